"""Where a stand-in stops, so that a process can be killed at just that moment: no machine is too quick for it, and none too slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from attrs import define, field


@define(eq=False)
class Gate:
    """Open until it is closed from some count on; whoever comes then waits until it is moved."""

    held: list[str] = field(factory=list[str])
    """Who waits at it."""
    _closed_from: int | None = None
    _moved: asyncio.Event = field(factory=asyncio.Event)

    async def passed(self, who: str = "", count: Callable[[], int] = lambda: 0) -> None:
        """Comes back once the gate is open for this count, which is asked anew each time that it was moved."""
        self.held.append(who)
        try:
            while self._closed_from is not None and count() >= self._closed_from:
                await self._moved.wait()
        finally:
            self.held.remove(who)

    def move(self, closed_from: int | None) -> None:
        """None opens it."""
        self._closed_from = closed_from
        before, self._moved = self._moved, asyncio.Event()
        before.set()
