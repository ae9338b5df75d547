"""One run of an implementation: what it may ask, how long it may take, and what is made of what it returns or raises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final, Protocol

from attrs import define, frozen
from returns.result import Failure, Success

from flowdsl.activation import Span, after, timed_out
from flowdsl.codec import encode_plain
from flowdsl.definition import Activity
from flowdsl.errors import FlowError, GiveUp, RetryAfter
from flowdsl.flow import Defect
from flowdsl.journal import Entry
from flowdsl.machine import Pending, defect
from flowdsl.policy import Limits, duration, within
from flowdsl.secret import concealed

TEXT: Final = 4096
"""The bytes of a message that are kept."""


@frozen
class Ending:
    """How an attempt ended, and what is said of another one."""

    exit: Success[Any] | Failure[Any] | Defect
    final: bool = False
    """Whether no other is worth making, whatever the policy says."""
    wait: timedelta | None = None
    """How long the next one is to wait at least."""
    timed_out: bool = False


def returned(activity: Activity[Any, Any, Any], answer: object) -> Ending:
    """What an implementation returned."""
    if isinstance(answer, Success):
        return Ending(answer)
    if isinstance(answer, Failure):
        try:
            return Ending(answer, wait=_wished(answer.failure()))
        except Exception as error:
            return Ending(Defect(activity.name, capped(f"the retry_after of its failure cannot be read: {defect(error).message}")))
    return Ending(Defect(activity.name, f"its implementation returned {_seen(answer)}: return Success(...) or Failure(...)"))


def raised(error: BaseException) -> Ending:
    """What an implementation raised: a defect, whatever it is. Of a group each member has its say."""
    leaves = list(_leaves(error))
    found = defect(leaves[0])
    message = found.message
    if isinstance(error, BaseExceptionGroup):
        message = f"{type(error).__name__} of {len(leaves)}: " + "; ".join(defect(leaf).message for leaf in leaves[:20])
    try:
        waits = [wait for wait in map(_wished, leaves) if wait is not None]
    except Exception as broken:
        return Ending(Defect(capped(found.where, 1024), capped(f"{message}; its retry_after: {defect(broken).message}")))
    final = any(isinstance(leaf, GiveUp) for leaf in leaves)
    return Ending(Defect(capped(found.where, 1024), capped(message)), final, max(waits, default=None))


def ran_out(activity: Activity[Any, Any, Any], span: Span) -> Ending:
    """An attempt that is given up."""
    return Ending(timed_out(activity, span), final=span == "schedule_to_close", timed_out=True)


def capped(text: str, limit: int = TEXT) -> str:
    """At most so many bytes of it, all of them writable, and none of a secret that was revealed here."""
    return concealed(text).encode(errors="backslashreplace")[:limit].decode(errors="ignore")


def details_of_heartbeat(details: object, limits: Limits) -> bytes:
    """What a heartbeat tells the next attempt, encoded. Raises `NotJournalable` or `TooLarge`."""
    return within(limits.heartbeat, "what this heartbeat tells", encode_plain(details, "details"))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


def _wished(error: object) -> timedelta | None:
    """How long the next attempt is to wait at least, if a failure or an exception says so."""
    if isinstance(error, RetryAfter):
        return duration(error.after)
    wished = getattr(error, "retry_after", None)
    return wished if isinstance(wished, timedelta) else None


def _seen(value: object) -> str:
    try:
        return capped(repr(value), 500)
    except Exception as error:
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"


# While it runs


class Transaction(Protocol):
    """A transaction of the journal's database, in which an implementation writes."""

    connection: Any

    async def append(self, entry: Entry) -> bool:
        """Adds the entry and commits both. False: it is certain that nothing was committed and this worker no longer owns the execution.

        Raises `Unrecorded` when nothing was committed but the attempt may be made again.
        """
        ...

    async def rollback(self) -> None:
        """Ends it, if it has not ended."""
        ...


class Unrecorded(FlowError):
    """A transactional attempt whose commit did not happen; the interruption is recorded under this position."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        super().__init__("the transaction was not committed; the attempt is made again")


class Owner(Protocol):
    """Who waits for an attempt."""

    def overdue(self, attempt: RunningAttempt) -> None:
        """One of its spans is over: `attempt.over` says which."""
        ...

    def beaten(self, attempt: RunningAttempt) -> None:
        """It has told something new to the next attempt. Told once until `attempt.taken` is called."""
        ...

    def upper(self) -> datetime:
        """The store's time, at the latest."""
        ...

    def connection(self) -> AbstractAsyncContextManager[Any]: ...
    async def begin_transaction(self) -> Transaction: ...


class Rounds:
    """Attempts whose time will not be over for a while: looked at now and then, since nearly all of them end before. A timer for each costs more."""

    EVERY = 1.0

    def __init__(self) -> None:
        self._far: dict[RunningAttempt, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The worker's: kept, since to ask for the running loop is a system call on Python 3.11."""
        return asyncio.get_running_loop()

    def join(self, attempt: RunningAttempt) -> None:
        self._far[attempt] = None
        if self._timer is None:
            self._timer = self.loop.call_later(self.EVERY, self._look)

    def leave(self, attempt: RunningAttempt) -> None:
        self._far.pop(attempt, None)

    @property
    def watched(self) -> int:
        return len(self._far)

    def _look(self) -> None:
        try:
            for attempt in list(self._far):
                attempt.set_timer()  # it joins again: there is a timer, as far as it can see, or each round would begin two
        finally:
            self._timer = self.loop.call_later(self.EVERY, self._look) if self._far else None


@define(eq=False)
class RunningAttempt:
    """One run of an implementation, as it may know it (see `Attempt`), with its clocks."""

    owner: Owner
    rounds: Rounds
    one: Pending
    activity: Activity[Any, Any, Any]
    idempotency_key: str
    number: int
    tenant: str
    limits: Limits
    left: float | None
    """Seconds until `schedule_to_close` is over."""
    last_heartbeat: object = None
    cancelled: bool = False
    over: Span | None = None
    task: asyncio.Task[None] | None = None
    transacting: Transaction | None = None
    details: bytes | None = None
    _over_at: float | None = None
    """When `schedule_to_close` is over, by the loop's clock."""
    _beat: float | None = None
    _end: float | None = None
    """When its own time is over."""
    _deadline: datetime | None = None
    _telling: bool = False
    _timer: asyncio.TimerHandle | None = None

    def __attrs_post_init__(self) -> None:
        if self.left is not None:
            self._over_at = self.rounds.loop.time() + self.left
            self.set_timer()

    def begin(self) -> None:
        """It has got what it waited for, a thread or its turn: its own time begins."""
        self._beat = self.rounds.loop.time()
        self._end = self._beat + self.activity.policies.start_to_close.total_seconds()
        self.set_timer()

    @property
    def begun(self) -> bool:
        return self._beat is not None

    def end(self) -> None:
        """Nobody waits for it any more."""
        self.cancelled = True
        self.stop_clocks()

    def stop_clocks(self) -> None:
        self.rounds.leave(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def set_timer(self) -> None:
        """For the span that is over first, when that is near; else the next round sees to it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due, now = self._next()[1], self.rounds.loop.time()
        if due - now > 2 * self.rounds.EVERY:
            self.rounds.join(self)
        else:
            self.rounds.leave(self)
            self._timer = self.rounds.loop.call_at(max(due, now + 0.0005), self._look)

    def _next(self) -> tuple[Span, float]:
        """The span that is over first, and when."""
        span, end = self._given_up()
        silence = self.activity.policies.heartbeat
        if silence is not None and self._beat is not None and self._beat + silence.total_seconds() < end:
            return "heartbeat", self._beat + silence.total_seconds()
        return span, end

    def _given_up(self) -> tuple[Span, float]:
        """The same for who keeps its heartbeats up."""
        if self._end is None or (self._over_at is not None and self._over_at < self._end):
            assert self._over_at is not None, "before it begins, no other span runs"
            return "schedule_to_close", self._over_at
        return "timeout", self._end

    def _look(self) -> None:
        self._timer = None
        span, due = self._next()
        if due > self.rounds.loop.time():
            self.set_timer()
        else:
            self.over, self.cancelled = span, True
            self.owner.overdue(self)

    # What an implementation asks

    @property
    def deadline(self) -> datetime:
        if self._deadline is None:
            self._deadline = after(self.owner.upper(), timedelta(seconds=self._given_up()[1] - self.rounds.loop.time()))
        return self._deadline

    def heartbeat(self, details: object = None) -> None:
        if details is not None:
            self.details = details_of_heartbeat(details, self.limits)
        self._beat = self.rounds.loop.time()
        if details is not None and not (self._telling or self.cancelled):
            self._telling = True
            self.rounds.loop.call_soon_threadsafe(self.owner.beaten, self)

    def taken(self) -> bytes | None:
        """What it has told last; it is heard again when it tells more."""
        self._telling = False
        return self.details

    def connection(self) -> AbstractAsyncContextManager[Any]:
        return self.owner.connection()

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        if not self.activity.policies.transactional:
            raise FlowError(f"{self.one.step}: this activity is not transactional; declare it with @activity(..., transactional=True)")
        return _Block(self)


def told(body: bytes | None) -> object:
    """What a heartbeat told, as plain values."""
    return None if body is None else json.loads(body)


class _Block:
    """`async with this_attempt().transaction() as connection`: opened on entry, committed with the success, rolled back else."""

    def __init__(self, attempt: RunningAttempt) -> None:
        self._attempt = attempt

    async def __aenter__(self) -> Any:
        attempt = self._attempt
        if attempt.transacting is None:
            attempt.transacting = await attempt.owner.begin_transaction()
        return attempt.transacting.connection

    async def __aexit__(self, *_: object) -> None:
        return None
