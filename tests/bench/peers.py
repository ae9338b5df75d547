"""Who takes part, each in a process of its own that is frozen while another is measured; and who could not, with the reason."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from attrs import frozen

from tests.bench.measured import Figures

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 400.0
"""Seconds until an answer is given up."""


@frozen
class Party:
    """Somebody who is measured. `database`: those who share one are never there at a time."""

    name: str
    title: str
    database: str
    needs: tuple[str, ...] = ()
    """Modules."""
    brought_by: str = "bench"
    """The extra that brings them."""
    server: str = ""
    """A program that it starts for itself."""
    server_brought_by: str = ""
    """The command that installs it where it is found, if the extra does not bring it."""

    def missing(self) -> str | None:
        """Why it cannot take part, and what to do about it."""
        remedies, extra = list[str](), f'pip install "flowdsl[{self.brought_by}]"'
        if any(find_spec(name) is None for name in self.needs):
            remedies.append(extra)
        if self.server and program(self.server) is None:
            remedies.append(self.server_brought_by or extra)
        return f"{self.title} is left out: {', and '.join(dict.fromkeys(remedies))}" if remedies else None


def program(name: str) -> str | None:
    """Where a server is: on PATH, beside this Python, or where npm puts it under this environment."""
    environment = Path(sys.prefix)
    packages = sorted((environment / "node_modules" / "@restatedev").glob(f"{name}-*/bin"))  # the binary itself, not the script that starts it
    folders = [os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent), *map(str, packages)]
    return shutil.which(name, path=os.pathsep.join(folders))


def _under_environment() -> str:
    """As it is typed in the folder of the repository."""
    return os.path.relpath(sys.prefix, ROOT) if Path(sys.prefix).is_relative_to(ROOT) else sys.prefix


PARTIES = {
    one.name: one
    for one in (
        Party("ours", "flowdsl", "ours"),
        Party("bare", "group commit", "limits"),
        Party("ends", "group commit, starts and ends too", "limits"),
        Party("single", "a commit a row", "limits"),
        Party("client", "a client without a journal", "limits"),
        Party("dbos", "DBOS", "dbos", ("dbos",)),
        Party("absurd", "Absurd", "absurd", ("absurd_sdk", "absurdctl", "psycopg")),
        Party("absurd8", "Absurd, 8 workers", "absurd", ("absurd_sdk", "absurdctl", "psycopg")),
        Party("temporal", "Temporal's dev server", "temporal", ("temporalio",), "peers", "temporal"),
        Party(
            "restate", "Restate", "restate", ("restate", "hypercorn", "aiohttp"), "peers", "restate-server",
            f"npm install --ignore-scripts --prefix {_under_environment()} @restatedev/restate-server",
        ),
    )
}  # fmt: skip
OURS, LIMITS = "ours", ("bare", "ends", "single", "client")
PEERS = tuple(name for name in PARTIES if name not in (OURS, *LIMITS))


class Silent(Exception):
    """Somebody did not answer, or answered with an error."""


class Entrant:
    """A process of `tests.bench.entrant`."""

    def __init__(self, name: str, process: Any, log: Any) -> None:
        self.name = name
        self.version = ""
        self.laps: dict[str, float] = {}
        """What its start went into, in seconds."""
        self._process, self._log = process, log

    @classmethod
    async def begin(cls, name: str, dsn: str, folder: str | None = None) -> Entrant:
        """Raises `Silent` with its last words when it does not come up. `folder`: for what it leaves on disk."""
        log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.entrant", name, dsn,
            cwd=ROOT, env=_environment(folder),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
        )  # fmt: skip
        entrant = cls(name, process, log)
        try:
            ready = await entrant._answer()
            entrant.version, entrant.laps = ready["ready"], ready["laps"]
        except BaseException:
            await entrant.end()
            raise
        return entrant

    async def measured(self, do: str, size: int, seconds: float) -> Figures:
        self.go_on()
        self._process.stdin.write(json.dumps({"do": do, "size": size, "seconds": seconds}).encode() + b"\n")
        facts = await self._answer()
        facts.pop("bench")
        return Figures(**facts)

    def freeze(self) -> None:
        """So that what it does when it is idle costs the others nothing; with it a server that it has started."""
        self._tell(signal.SIGSTOP)

    def go_on(self) -> None:
        self._tell(signal.SIGCONT)

    def _tell(self, number: int) -> None:
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self._process.pid)
            for process in (*own.children(recursive=True), own):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    async def died(self) -> None:
        """Waits until it was killed, as it was told to be."""
        async with asyncio.timeout(PATIENCE):
            code = await self._process.wait()
        if code != -signal.SIGKILL:
            raise Silent(f"{PARTIES[self.name].title} was to be killed and ended with {code}: {self._last_words()}")

    async def end(self) -> None:
        if self._process.returncode is None:
            self._tell(signal.SIGKILL)
        await self._process.wait()

    async def _answer(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(PATIENCE):
                while line := await self._process.stdout.readline():
                    if not line.startswith(b'{"bench"'):
                        continue  # what else it prints is its log
                    facts: dict[str, Any] = json.loads(line)
                    if "error" in facts:
                        raise Silent(f"{PARTIES[self.name].title}: {facts['error']}")
                    return facts
        except TimeoutError:
            raise Silent(f"{PARTIES[self.name].title} did not answer within {PATIENCE:.0f} s") from None
        raise Silent(f"{PARTIES[self.name].title} ended before it answered: {self._last_words()}")

    async def die(self, do: str, size: int) -> None:
        self._process.stdin.write(json.dumps({"do": do, "size": size, "seconds": 0}).encode() + b"\n")
        await self.died()

    def _last_words(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        self._log.seek(max(0, size - 2000))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _environment(folder: str | None) -> dict[str, str]:
    """Bytecode is kept, as it is of what is installed: else a cold start compiles our sources, and nobody else's."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    variables["FLOWDSL_BENCH_BEGUN"] = repr(time.perf_counter())
    return variables if folder is None else {**variables, "TMPDIR": folder}


class Field:
    """All who take part, over one server; each comes when it is first asked."""

    def __init__(self, dsns: dict[str, str], folder: str) -> None:
        self._dsns, self._folder = dsns, folder
        self._there: dict[str, Entrant] = {}
        self.versions: dict[str, str] = {}

    async def measured(self, name: str, do: str, size: int, seconds: float) -> Figures:
        entrant = self._there.get(name)
        if entrant is None:
            entrant = self._there[name] = await self._begin(name)
        try:
            found = await entrant.measured(do, size, seconds)
        except Silent:
            del self._there[name]
            await entrant.end()
            raise
        entrant.freeze()
        return found

    async def cold(self, name: str, steps: int) -> Figures:
        """From the start of a process to its first result."""
        begun = time.perf_counter()
        entrant = await self._begin(name)
        try:
            before = time.perf_counter()
            await entrant.measured("cold", steps, 0)
            ended = time.perf_counter()
            return Figures(1, ended - begun, more={**entrant.laps, "first_s": ended - before})
        finally:
            await entrant.end()

    async def killed(self, name: str, steps: int) -> Figures:
        """A process is killed in an execution of so many steps; another goes on."""
        victim = await self._begin(name)
        try:
            await victim.die("die", steps)
        finally:
            await victim.end()
        successor = await self._begin(name)
        try:
            return await successor.measured("resume", steps, 0)
        finally:
            await successor.end()

    async def _begin(self, name: str) -> Entrant:
        entrant = await Entrant.begin(name, self._dsns[PARTIES[name].database], self._folder)
        self.versions[name] = entrant.version
        return entrant

    async def end(self) -> None:
        for entrant in self._there.values():
            await entrant.end()


@asynccontextmanager
async def field(dsns: dict[str, str]) -> AsyncGenerator[Field]:
    with tempfile.TemporaryDirectory(prefix="flowdsl-bench-", ignore_cleanup_errors=True) as folder:
        found = Field(dsns, folder)
        try:
            yield found
        finally:
            await found.end()
