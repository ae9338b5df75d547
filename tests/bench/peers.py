"""Other engines, each in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any


class Dbos:
    """The peer, in a process of its own; idle between its windows."""

    def __init__(self, process: Any) -> None:
        self._process = process

    @classmethod
    async def begin(cls, dsn: str) -> Dbos:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.bench.peer_dbos",
            dsn,
            cwd=Path(__file__).parent.parent.parent,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return cls(process)

    async def ready(self) -> bool:
        """Whether it came up."""
        try:
            return bool(await self._line("ready"))
        except (RuntimeError, TimeoutError):
            return False

    async def window(self, in_flight: int, seconds: float) -> str:
        self._process.stdin.write(f"{in_flight} {seconds}\n".encode())
        return await self._line("{")

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def _line(self, beginning: str) -> str:
        """The next line that begins so; what else it prints is its log."""
        async with asyncio.timeout(120):
            while data := await self._process.stdout.readline():
                text = str(data.decode())
                if text.startswith(beginning):
                    return text
        raise RuntimeError("DBOS ended before it answered; its own message stands above")
