"""Policies are values: durations, retries, shared limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias, cast, get_args

from attrs import field, frozen

from flowdsl.errors import DefinitionError, TooLarge

Duration: TypeAlias = timedelta | str
Time: TypeAlias = timedelta | str | datetime
"""How long (`"30m"`) or until when (an aware `datetime`)."""

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")


def duration(value: Duration) -> timedelta:
    """The time span that `"500ms"`, `"1h30m"` or a `timedelta` names. Raises `DefinitionError` for anything else."""
    if isinstance(value, timedelta):
        span = value
    else:
        parts = _DURATION.findall(value) if isinstance(value, str) else []
        if not parts or _DURATION.sub("", value).strip():
            raise DefinitionError("duration", f"{value!r} is not a duration", 'Write a timedelta, or "500ms", "60s", "30m", "24h", "1h30m"')
        try:
            span = sum((timedelta(**{_UNITS[unit]: float(number)}) for number, unit in parts), timedelta())
        except OverflowError:
            raise DefinitionError("duration", f"{value!r} is too long", "A duration is at most 999999999 days") from None
    if span < timedelta():
        raise DefinitionError("duration", f"{value!r} is negative", "A duration is zero or more")
    return span


def shown(span: timedelta) -> str:
    """A span as a person writes it: `1h30m`, `1s`, `250ms`."""
    left = span // timedelta(milliseconds=1)
    if left == 0:
        return "0s"
    text = ""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        text += f"{count}{unit}" if count else ""
    return text


_YEAR = 365 * 86_400.0

Retryable: TypeAlias = tuple[type, ...] | Callable[[Any], bool]


@frozen
class Retry:
    """Which failures are worth another try, how many tries there are in all, and how long to wait between them.

    Defects and time-outs are always tried again; of the declared failures those that `on` picks: types, or a predicate over the failure.
    A failure or an exception with a `retry_after: timedelta`, and `RetryAfter`, lengthen the wait; `GiveUp` is never tried again. `attempts`
    counts the first try and tries cut short by a crash; None means no limit. `jitter` adds up to that share of the wait, drawn from execution,
    step and attempt: the same on every replay.
    """

    kind: Literal["exponential", "linear", "constant"]
    initial: timedelta
    maximum: timedelta | None = None
    attempts: int | None = None
    on: Retryable = ()
    jitter: float = field(default=0.0)

    @classmethod
    def exponential(
        cls,
        initial: Duration,
        *,
        maximum: Duration | None = None,
        attempts: int | None = None,
        on: Retryable = (),
        jitter: float = 0.0,
    ) -> Retry:
        """Waits of initial x 1, 2, 4, 8 …, at most `maximum`."""
        return _retry("exponential", initial, maximum, attempts, on, jitter)

    @classmethod
    def linear(
        cls,
        initial: Duration,
        *,
        maximum: Duration | None = None,
        attempts: int | None = None,
        on: Retryable = (),
        jitter: float = 0.0,
    ) -> Retry:
        """Waits of initial x 1, 2, 3, 4 …, at most `maximum`."""
        return _retry("linear", initial, maximum, attempts, on, jitter)

    @classmethod
    def constant(
        cls,
        initial: Duration,
        *,
        maximum: Duration | None = None,
        attempts: int | None = None,
        on: Retryable = (),
        jitter: float = 0.0,
    ) -> Retry:
        """The same wait each time."""
        return _retry("constant", initial, maximum, attempts, on, jitter)

    def picks(self, failure: object) -> bool:
        """Whether this declared failure is worth another try."""
        return isinstance(failure, self.on) if isinstance(self.on, tuple) else bool(self.on(failure))

    def exhausted(self, attempts: int) -> bool:
        """Whether that many tries were all there are."""
        return self.attempts is not None and attempts >= self.attempts

    def delay(self, attempt: int, chance: float) -> timedelta:
        """The wait after the `attempt`-th try (from 1), with `chance` in [0, 1) as the draw for the jitter. Never overflows."""
        if self.kind == "exponential":
            factor = 2.0 ** min(attempt - 1, 62)
        else:
            factor = float(min(attempt, 2**62)) if self.kind == "linear" else 1.0
        seconds = self.initial.total_seconds() * factor
        ceiling = self.maximum.total_seconds() if self.maximum is not None else max(_YEAR, self.initial.total_seconds())
        return timedelta(seconds=min(min(seconds, ceiling) * (1 + self.jitter * chance), 1000 * _YEAR))


def _retry(
    kind: Literal["exponential", "linear", "constant"],
    initial: Duration,
    maximum: Duration | None,
    attempts: int | None,
    on: Retryable,
    jitter: float,
) -> Retry:
    if attempts is not None and attempts < 1:
        raise DefinitionError(f"Retry.{kind}", f"attempts={attempts}", "There is at least one attempt: the first")
    if not 0 <= jitter <= 1:
        raise DefinitionError(f"Retry.{kind}", f"jitter={jitter}", "It is a share of the wait, from 0 to 1")
    return Retry(kind, duration(initial), duration(maximum) if maximum is not None else None, attempts, on, jitter)


DEFAULT_RETRY = Retry.exponential("1s", maximum="100s", attempts=5)
"""What an activity without `retry=` gets: five attempts for defects and time-outs; declared failures are answers, not retried."""


Apart: TypeAlias = Literal["tenant", "workflow"]


@frozen
class RateLimit:
    """`limit` calls in each `per`, evenly, over all workers that share `name`; after a rest up to `burst` of them at once (else `limit`).

    So at most `burst + limit` begin in any `per`. 0 stops them. `each="tenant"` or `each="workflow"`: every one of those has the limit for itself.
    """

    name: str
    limit: int
    per: timedelta = field(converter=duration)
    burst: int | None = field(default=None, kw_only=True)
    each: Apart | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        _check_budget(self)
        if self.per <= timedelta():
            raise DefinitionError(f"RateLimit {self.name!r}", "per is no time at all", 'Write how long, as in RateLimit("source", 100, "1m")')
        if self.burst is not None and not _counts(self.burst, 1):
            raise DefinitionError(f"RateLimit {self.name!r}", f"burst={self.burst!r}", "At least one call at a time can be let through")


@frozen
class Concurrency:
    """At most `limit` calls at a time, over all workers that share `name`.

    0 stops them. `each="tenant"` or `each="workflow"`: every one of those has the limit for itself.
    """

    name: str
    limit: int
    each: Apart | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        _check_budget(self)


Budget: TypeAlias = RateLimit | Concurrency


def _check_budget(budget: Budget) -> None:
    kind, name = type(budget).__name__, cast("object", budget.name)
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > 200:
        raise DefinitionError(f"{kind} {name!r}", "its name is not 1 to 200 printable characters", "Workers share a limit by its name")
    if not _counts(budget.limit, 0):
        raise DefinitionError(f"{kind} {name!r}", f"limit={budget.limit!r}", f"A limit is a whole number from 0 (stopped) to {_MOST}")
    if budget.each not in (None, *get_args(Apart)):
        raise DefinitionError(f"{kind} {name!r}", f"each={budget.each!r}", 'Use each="tenant", each="workflow", or leave it out')


def _counts(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST


_MOST = 2**31 - 1


@frozen
class Policies:
    """How an activity is run; not part of its fingerprint, so changing one never diverges."""

    retry: Retry = DEFAULT_RETRY
    start_to_close: timedelta = timedelta(minutes=5)
    schedule_to_close: timedelta | None = None
    heartbeat: timedelta | None = None
    budget: tuple[Budget, ...] = ()
    crash: Literal["retry", "fail"] = "retry"
    transactional: bool = False


@frozen
class Limits:
    """How large, in bytes as they are recorded, what is passed around may be.

    A larger input is refused at the call, before anything of it is done; a larger answer or failure is recorded as a defect in its place, and not
    tried again; larger details of a heartbeat are refused where they are given.
    """

    request: int = 2 << 20
    answer: int = 64 << 20
    heartbeat: int = 64 << 10


def within(limit: int, what: str, body: bytes) -> bytes:
    """What was encoded, if it is not too large. Raises `TooLarge`."""
    if len(body) > limit:
        raise TooLarge(what, len(body), limit)
    return body
