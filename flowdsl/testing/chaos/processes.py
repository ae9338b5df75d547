"""The processes of a run: started by us, ended by us, by their pid. What they say on stderr is kept."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import define, field


@define(eq=False)
class Child:
    """One process of ours. It dies with us: it holds the other end of its stdin."""

    name: str
    process: asyncio.subprocess.Process
    killed: bool = False
    """Whether we ended it, or told it to end."""
    frozen: bool = False
    peak: int = 0
    """The most memory that it was seen to have, in KiB."""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    def signal(self, which: signal.Signals) -> bool:
        """Whether there was still somebody to be told."""
        if not self.alive:
            return False
        self.killed = self.killed or which in (signal.SIGKILL, signal.SIGTERM)
        with suppress(ProcessLookupError):
            os.kill(self.pid, which)
        return True

    def weigh(self) -> None:
        with suppress(OSError, IndexError, ValueError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self.peak = max(self.peak, int(line.split()[1]))


async def begin(folder: Path, name: str, module: str, arguments: Sequence[str], environment: Mapping[str, str], files: Sequence[int] = ()) -> Child:
    """Starts `python -m flowdsl.testing.chaos.MODULE`; its stderr goes to a file of its own. `files`: open ones that it has too."""
    with (folder / f"{name}.log").open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            f"flowdsl.testing.chaos.{module}",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **environment},
            pass_fds=files,
            start_new_session=True,  # Ctrl-C is for us: we end them in order
        )
    return Child(name, process)


async def ready(child: Child) -> str:
    """Its first line. Raises `RuntimeError` when there is none."""
    assert child.process.stdout is not None
    line = await asyncio.wait_for(child.process.stdout.readline(), 60)
    if not line:
        raise RuntimeError(f"{child.name} did not start: see its log")
    return line.decode().strip()


async def end(child: Child, patience: float = 10.0) -> int | None:
    """Lets go of it and waits; kills what does not end. Gives its exit code, None when it had to be killed."""
    if child.alive:
        child.killed = True
        assert child.process.stdin is not None
        child.process.stdin.close()
        try:
            return await asyncio.wait_for(child.process.wait(), patience)
        except TimeoutError:
            child.signal(signal.SIGCONT)
            child.signal(signal.SIGKILL)
            await child.process.wait()
            return None
    return child.process.returncode


@define
class Links:
    """The wires between the others and Postgres, as the nemesis commands them."""

    child: Child
    _turn: asyncio.Lock = field(factory=asyncio.Lock)

    async def do(self, what: str, **how: Any) -> dict[str, Any]:
        """Tells the proxy; gives what it answers, which is mostly how often each fault has hit by now."""
        stdin, stdout = self.child.process.stdin, self.child.process.stdout
        assert stdin is not None and stdout is not None
        async with self._turn:
            stdin.write(json.dumps({"do": what, **how}).encode() + b"\n")
            await stdin.drain()
            found: dict[str, Any] = json.loads(await stdout.readline())
            return found
