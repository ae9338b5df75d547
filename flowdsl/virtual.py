"""Attempts in virtual time: an implementation that only waits takes no time here, and yet runs out of it."""

from __future__ import annotations

import asyncio
import inspect
import selectors
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import copy_context
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from attrs import define

from flowdsl.activation import Span
from flowdsl.attempt import Ending, details_of_heartbeat, raised, ran_out, returned
from flowdsl.binding import current_attempt
from flowdsl.definition import Activity
from flowdsl.errors import FlowError
from flowdsl.policy import Limits

PATIENCE = 5.0
"""Virtual seconds that an implementation gets to follow a cancellation."""


@define(eq=False)
class VirtualAttempt:
    """What an implementation may ask in memory."""

    activity: Activity[Any, Any, Any]
    idempotency_key: str
    number: int
    tenant: str
    deadline: datetime
    left: float | None
    """Seconds until `schedule_to_close` is over."""
    limits: Limits
    last_heartbeat: object = None
    connect: Callable[[], Any] | None = None
    cancelled: bool = False
    details: bytes | None = None
    beat: float | None = None

    def heartbeat(self, details: object = None) -> None:
        if details is not None:
            self.details = details_of_heartbeat(details, self.limits)
        if self.beat is not None:
            self.beat = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Any]:
        yield self._connection()

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Any]:
        yield self._connection()

    def _connection(self) -> Any:
        if self.connect is None:
            raise FlowError("there is no database in memory: pass Memory(..., connect=...) a stand-in, or script this activity with answers=")
        return self.connect()


class Rehearsal:
    """Carries out attempts one by one, each in a context of its own, and says how long they would have taken."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None

    def carry_out(
        self, attempt: VirtualAttempt, implementation: Callable[[Any], Any], request: Any, takes: timedelta = timedelta()
    ) -> tuple[Ending, timedelta]:
        """`takes`: how long it takes at least, its heart beating meanwhile."""
        context = copy_context()
        context.run(current_attempt.set, attempt)
        try:
            answer = context.run(implementation, request)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return _lasting(attempt, raised(error), timedelta(), takes)
        if not inspect.isawaitable(answer):
            return _lasting(attempt, returned(attempt.activity, answer), timedelta(), takes)
        self._runner = self._runner or asyncio.Runner(loop_factory=VirtualLoop)
        ending, took = self._runner.run(_timed(attempt, answer), context=context)
        return _lasting(attempt, ending, took, takes)

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None


def _lasting(attempt: VirtualAttempt, ending: Ending, took: timedelta, takes: timedelta) -> tuple[Ending, timedelta]:
    """An ending that comes later, or not at all if that is too late."""
    if takes <= took or ending.timed_out:
        return ending, took
    span, limit = _first(_ends(attempt, 0.0), 0.0, None)
    return (ran_out(attempt.activity, span), timedelta(seconds=limit)) if limit <= takes.total_seconds() else (ending, takes)


def _ends(attempt: VirtualAttempt, begun: float) -> dict[Span, float]:
    ends: dict[Span, float] = {"timeout": begun + attempt.activity.policies.start_to_close.total_seconds()}
    if attempt.left is not None:
        ends["schedule_to_close"] = begun + attempt.left
    return ends


async def _timed(attempt: VirtualAttempt, answer: Any) -> tuple[Ending, timedelta]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    jumped, attempt.beat = loop.jumped, loop.time()
    policies = attempt.activity.policies
    ends = _ends(attempt, attempt.beat)
    task = loop.create_task(_ending(attempt, answer))
    task.add_done_callback(_seen)  # when a person interrupts, the loop raises it too
    over: Span | None = None
    while over is None:
        span, due = _first(ends, attempt.beat, policies.heartbeat)
        await asyncio.wait([task], timeout=max(0.0, due - loop.time()))
        if task.done():
            return task.result(), timedelta(seconds=loop.jumped - jumped)
        over = span if _first(ends, attempt.beat, policies.heartbeat)[1] <= loop.time() else None
    took = timedelta(seconds=loop.jumped - jumped)
    attempt.cancelled = True
    task.cancel()
    await asyncio.wait([task], timeout=PATIENCE)
    return ran_out(attempt.activity, over), took if task.done() else took + timedelta(seconds=PATIENCE)


def _seen(task: asyncio.Task[Ending]) -> None:
    if not task.cancelled():
        task.exception()


async def _ending(attempt: VirtualAttempt, answer: Any) -> Ending:
    try:
        return returned(attempt.activity, await answer)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        return raised(error)


def _first(ends: Mapping[Span, float], beat: float, silence: timedelta | None) -> tuple[Span, float]:
    """The span that is over first, and when."""
    spans: list[tuple[float, Span]] = [(end, span) for span, end in ends.items()]
    if silence is not None:
        spans.append((beat + silence.total_seconds(), "heartbeat"))
    end, span = min(spans)
    return span, end


class VirtualLoop(asyncio.SelectorEventLoop):
    """When nothing is left but to wait for a time, that time has come. While something outside is waited for, time passes as it does there."""

    def __init__(self) -> None:
        self._now = 0.0
        self.jumped = 0.0
        """Seconds that were waited for and did not pass."""
        self._outside = 0
        super().__init__(_Impatient(self))

    def time(self) -> float:
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self._outside += 1
        future.add_done_callback(self._back)
        return future

    def _back(self, _: object) -> None:
        self._outside -= 1

    def waited(self, seconds: float, *, jumped: bool) -> None:
        self._now += seconds
        self.jumped += seconds if jumped else 0.0

    def alone(self, files: int) -> bool:
        """Whether nothing outside is waited for: no thread, and no file but the loop's own."""
        return not self._outside and files <= 1


class _Impatient(selectors.DefaultSelector):
    """Never waits for the time alone."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is not None and self._loop.alone(len(self.get_map())):
            self._loop.waited(timeout, jumped=True)
            return []
        before = monotonic()
        ready = super().select(timeout)
        self._loop.waited(monotonic() - before, jumped=False)
        return ready
