"""The tasks and threads in which implementations run: each is owned, and one that does not come back holds up nobody."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from attrs import define

from flowdsl import threads

if TYPE_CHECKING:
    from flowdsl.threads import Hand
from flowdsl.attempt import Rounds

log = structlog.get_logger("flowdsl")

ABANDON = 5.0
"""Seconds that an implementation gets to follow a cancellation; then its answer is no longer waited for."""


@define(eq=False)
class _Call:
    """A plain function on its way through a thread."""

    done: asyncio.Future[tuple[bool, Any]]
    abandoned: bool = False
    returned: bool = False


class Hands:
    """Carries out implementations of one worker: async ones as tasks, plain ones in up to `threads` threads at a time.

    A thread cannot be interrupted. One that goes on for `ABANDON` seconds after its cancellation is counted as leaked, and no longer as one of
    `threads`; `leaked` is told how many there are then. Threads are daemons: none keeps the process from ending.
    """

    def __init__(self, threads: int, leaked: Callable[[int], None]) -> None:
        self.rounds = Rounds()
        self._slots = asyncio.Semaphore(threads)
        self._tell = leaked
        self._idle: list[Hand] = []
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._context = contextvars.copy_context()
        self._closed = False
        self.leaked = 0

    def task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Owns it until it ends. It begins with the worker's context: what one implementation sets in its own, no other sees."""
        task = self.rounds.loop.create_task(work, name=name, context=self._context.copy())
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    async def call(self, function: Callable[[], Any], begins: Callable[[], None]) -> tuple[bool, Any]:
        """Whether it returned, and what it returned or raised. Waits for a free thread first; `begins` is called when there is one."""
        await self._slots.acquire()
        call = _Call(asyncio.get_running_loop().create_future())
        try:
            begins()
            thread = self._idle.pop() if self._idle else threads.Hand("flowdsl-activity")
            thread.carry_out(partial(contextvars.copy_context().run, function), partial(self._back, thread, call))
        except BaseException:
            self._slots.release()
            raise
        try:
            return await asyncio.shield(call.done)
        except asyncio.CancelledError:
            if not call.returned:
                asyncio.get_running_loop().call_later(ABANDON, self._abandon, call)
            raise

    def _back(self, thread: Hand, call: _Call, returned: bool, value: Any) -> None:
        """A thread has come back, with what its function returned or raised."""
        call.returned = True
        if call.abandoned:
            self.leaked -= 1
        else:
            self._slots.release()
        if self._closed or call.abandoned:
            thread.dismiss()
        else:
            self._idle.append(thread)
        if call.done.cancelled() or call.abandoned:
            _drop(value)
        else:
            call.done.set_result((returned, value))

    def _abandon(self, call: _Call) -> None:
        if call.returned or self._closed:
            return
        call.abandoned = True
        call.done.cancel()
        self.leaked += 1
        self._slots.release()
        self._tell(self.leaked)

    async def close(self, seconds: float = 1.0) -> None:
        """Cancels what still runs and waits so long for it. What does not follow is named, and left behind."""
        self._closed = True
        for thread in self._idle:
            thread.dismiss()
        self._idle.clear()
        left = [task for task in self._tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            _, left_behind = await asyncio.wait(left, timeout=seconds)
            for task in left_behind:
                log.error("activity.left_behind", task=task.get_name(), hint="its implementation ignores its cancellation")

    @property
    def left_behind(self) -> int:
        """Tasks that have not ended."""
        return len(self._tasks)


def _drop(value: Any) -> None:
    if inspect.iscoroutine(value):
        value.close()
