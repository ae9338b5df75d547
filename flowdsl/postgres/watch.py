"""From another thread: how long an event loop has not come round, and what holds it up."""

from __future__ import annotations

import asyncio
import sys
import traceback
from os.path import basename
from threading import get_ident

import structlog

log = structlog.get_logger("flowdsl")

NAMED = 2.0
"""Seconds after which what blocks the loop is named."""
_FRAMES = 8


class LoopWatch:
    """Made in the loop's own thread, asked from another. Something must call `look` again and again, a few times a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._thread = loop, get_ident()
        self._asked = self._loop.time()
        self._answered = True
        self._named = False

    @property
    def blocked(self) -> float:
        """Seconds for which it has answered nothing."""
        return 0.0 if self._answered else self._loop.time() - self._asked

    def look(self) -> None:
        """Asks it for a sign of life; names what blocks it, once each time."""
        if self._answered:
            if self._named:
                log.warning("loop.free_again", seconds=round(self._loop.time() - self._asked, 1))
            self._named, self._answered, self._asked = False, False, self._loop.time()
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # it has ended: there is nothing left to block
                self._answered = True
        elif self.blocked > NAMED and not self._named:
            self._named = True
            task = asyncio.current_task(self._loop)
            hint = "plain code in an async implementation holds up every execution here: await it, or bind a plain function, which gets a thread"
            name = task.get_name() if task is not None else ""
            log.error("loop.blocked", seconds=round(self.blocked, 1), task=name, where=self.where(), hint=hint)

    def where(self) -> str:
        """The innermost frames of the loop's thread, innermost first."""
        frame = sys._current_frames().get(self._thread)
        stack = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=_FRAMES, lookup_lines=False) if frame is not None else []
        return " < ".join(f"{basename(one.filename)}:{one.lineno} in {one.name}" for one in stack)

    def _answer(self) -> None:
        self._answered = True
