"""The worker processes: each seat is always taken; who dies is replaced."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

from attrs import define, field

from flowdsl.testing.chaos.processes import Child, begin


@define
class Crew:
    """So many workers. `environment`: of those that begin from now on. `died`: those that ended by themselves, which none should."""

    folder: Path
    environment: dict[str, str]
    lease: float
    seed: int
    seats: list[Child] = field(factory=list[Child])
    past: list[Child] = field(factory=list[Child])
    died: list[str] = field(factory=list[str])
    _closing: bool = False
    _watcher: asyncio.Task[None] | None = None
    _number: int = 0

    async def start(self, count: int) -> None:
        for _ in range(count):
            self.seats.append(await self._begin())
        self._watcher = asyncio.create_task(self._watch())

    async def _begin(self) -> Child:
        self._number += 1
        arguments = [str(self.lease), f"{self.seed}/{self._number}"]
        return await begin(self.folder, f"worker-{self._number}", "worker", arguments, self.environment)

    async def _watch(self) -> None:
        while not self._closing:
            for seat, child in enumerate(self.seats):
                child.weigh()
                if not child.alive:
                    self._bury(child)
                    self.seats[seat] = await self._begin()
            await asyncio.sleep(0.1)

    def _bury(self, child: Child) -> None:
        self.past.append(child)
        code = child.process.returncode
        if not child.killed or code not in (0, -signal.SIGKILL, -signal.SIGTERM):
            self.died.append(f"{child.name} ended by itself with exit code {code}")

    def thaw(self) -> None:
        """Nobody stays frozen."""
        for child in self.seats:
            if child.frozen:
                child.signal(signal.SIGCONT)
                child.frozen = False

    async def stop(self, patience: float = 30.0) -> None:
        """Tells all to stop, and waits. Who has not stopped then is killed, and listed."""
        self._closing = True
        if self._watcher is not None:
            await self._watcher
        self.thaw()
        for child in self.seats:
            child.weigh()
            child.signal(signal.SIGTERM)
        until = time.monotonic() + patience
        for child in self.seats:
            try:
                await asyncio.wait_for(child.process.wait(), max(0.1, until - time.monotonic()))
            except TimeoutError:
                child.signal(signal.SIGKILL)
                await child.process.wait()
                self.died.append(f"{child.name} did not stop within {patience:.0f} s of SIGTERM")
                self.past.append(child)
            else:
                self._bury(child)
        self.seats = []

    async def kill(self) -> None:
        """At once, when the run itself ends early."""
        self._closing = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        for child in self.seats:
            child.signal(signal.SIGKILL)  # a frozen one too
            await child.process.wait()

    @property
    def peak(self) -> int:
        """In KiB."""
        return max((child.peak for child in (*self.past, *self.seats)), default=0)
