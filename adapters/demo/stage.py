"""The processes of the demo: the stand-in, the workers. Each is ended by its pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from attrs import define, field

from flowdsl import FlowError

ROOT = Path(__file__).resolve().parents[2]


@define
class Stage:
    """Starts processes, and ends those that still run when the block is left."""

    logs: Path
    environment: dict[str, str] = field(factory=lambda: dict(os.environ))
    workers: dict[int, subprocess.Popen[bytes]] = field(factory=dict[int, "subprocess.Popen[bytes]"])
    services: dict[int, subprocess.Popen[str]] = field(factory=dict[int, "subprocess.Popen[str]"])
    _others: list[subprocess.Popen[str]] = field(factory=list["subprocess.Popen[str]"])

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        running: list[subprocess.Popen[bytes] | subprocess.Popen[str]] = [*self.workers.values(), *self.services.values()]
        for process in running:
            process.terminate()
        for process in running:
            _end(process)
        for other in self._others:
            other.terminate()
            _end(other)

    def standin(self, *arguments: str, of: str = "planning_center") -> str:
        """Starts a stand-in and gives its address. Raises `FlowError` with its last words when it does not come up."""
        log = self.logs / f"{of}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", f"adapters.standins.{of}", "--port", "0", *arguments],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._others.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("listening on "):
                return line.split()[-1]
        raise FlowError(f"the stand-in did not start:\n{log.read_text(errors='replace')[-2000:]}")

    def worker(self, dsn: str, lease: float) -> int:
        """Starts a worker process and gives its pid."""
        with (self.logs / f"worker-{len(self.workers) + 1}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "flowdsl", "worker", "adapters.deployment:deployment", "--database", dsn, "--lease", str(lease)],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        self.workers[process.pid] = process
        return process.pid

    def service(self, dsn: str, port: int = 0) -> tuple[int, str]:
        """Starts the HTTP service without a worker: its pid, and its address. Raises `FlowError` with its last words when it does not come up."""
        log = self.logs / f"service-{len(self.services) + 1}.log"
        command = ["serve", "adapters.deployment:deployment", "--no-worker", "--keys", "--database", dsn, "--port", str(port)]
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "flowdsl", *command], cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.services[process.pid] = process
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("listening on "):
                return process.pid, line.split()[-1].removesuffix("/api/v1")
        raise FlowError(f"the service did not start:\n{log.read_text(errors='replace')[-2000:]}")

    def freeze(self, pid: int) -> None:
        """So that what is counted of it before the kill is still true at the kill."""
        os.kill(pid, signal.SIGSTOP)

    def kill(self, pid: int) -> None:
        """SIGKILL: no goodbye, nothing written."""
        process = self.workers.get(pid) or self.services[pid]
        process.kill()
        process.wait()


def _end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
