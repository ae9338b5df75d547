"""Schedules: which of the instants that a rule names are to be started. Pure: whoever asks says what time it is."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args

from attrs import frozen

from flowdsl.definition import Workflow
from flowdsl.errors import DefinitionError
from flowdsl.flow import Execution
from flowdsl.policy import Duration, duration
from flowdsl.rule import EPOCH, Rule, cron_of, every_of

I = TypeVar("I")  # noqa: E741

Overlap: TypeAlias = Literal["skip", "queue", "allow"]
CatchUp: TypeAlias = Literal["skip", "one", "all"]

MOST: Final = 100
"""How many instants are made up for at once."""
ON_TIME: Final = timedelta(minutes=1)
"""What is later than this was missed."""


# Planning


@frozen
class Timetable:
    """When a schedule fires, and what it does about what it missed."""

    id: str
    rule: Rule
    jitter: timedelta = timedelta()
    overlap: Overlap = "skip"
    catch_up: CatchUp = "one"
    within: timedelta = timedelta(days=7)

    def due(self, instant: datetime) -> datetime:
        """When that instant is started: up to `jitter` later, before the next one, and always the same."""
        if not self.jitter:
            return instant
        room = min(self.jitter, self.rule.after(instant) - instant) // timedelta(microseconds=1)
        chance = int.from_bytes(sha256(key_of(self.id, instant).encode()).digest()[:8], "big")
        return instant + timedelta(microseconds=room * chance >> 64)

    def between(self, since: datetime, until: datetime) -> Iterator[datetime]:
        """The instants from `since` to `until`, both included."""
        instant = self.rule.after(since - timedelta(microseconds=1))
        while instant <= until:
            yield instant
            instant = self.rule.after(instant)


@frozen
class Plan:
    """What a look gave: the instants to start, the one that comes next and when it is due; `missed`: the first of those let go, if any."""

    firings: tuple[datetime, ...]
    upcoming: datetime
    due: datetime
    missed: datetime | None = None


def begun(table: Timetable, now: datetime) -> Plan:
    """The plan of a schedule that is new, changed, or goes on after a pause: nothing is made up for."""
    upcoming = table.rule.after(now)
    return Plan((), upcoming, table.due(upcoming))


def plan(table: Timetable, upcoming: datetime, now: datetime) -> Plan:
    """What is to be started at `now`, when `upcoming` is the first instant that nobody decided on.

    Each instant is decided on once, in order: started or let go. Its `upcoming` is where the next call goes on; a clock that runs back
    changes nothing until it is there again.
    """
    due = table.due(upcoming)
    if due > now:
        return Plan((), upcoming, due)
    patience = ON_TIME if table.catch_up == "skip" else table.within
    recent = _newest(table, max(upcoming, now - patience - table.jitter), now)
    ripe = [instant for instant in recent if now - patience <= table.due(instant) <= now]
    firings = tuple(ripe[-1:] if table.catch_up == "one" else ripe[-MOST:])
    pending = bool(recent) and table.due(recent[-1]) > now  # its jitter is not over
    following = recent[-1] if pending else table.rule.after(now)
    missed = None if firings and firings[0] == upcoming else upcoming
    return Plan(firings, following, table.due(following), missed)


def _newest(table: Timetable, since: datetime, until: datetime) -> list[datetime]:
    """The newest instants of a span, at most one more than can be started, without a walk through all of a long one."""
    count = 2 if table.catch_up == "one" else MOST + 1
    span = timedelta(minutes=2)
    while True:
        low = max(since, until - span)
        found = deque(table.between(low, until), count)
        if low == since or len(found) == count:
            return list(found)
        span *= 2


# Schedules


@frozen(eq=False)
class Schedule:
    """A workflow that is started by the clock, each time with the same input."""

    timetable: Timetable
    workflow: Workflow[Any, Any, Any]
    request: Any
    tenant: str = "default"

    @property
    def id(self) -> str:
        return self.timetable.id

    @classmethod
    def cron(
        cls,
        rule: str,
        workflow: Workflow[I, Any, Any],
        request: I,
        *,
        id: str,
        zone: str = "UTC",
        jitter: Duration = "0s",
        overlap: Overlap = "skip",
        catch_up: CatchUp = "one",
        within: Duration = "7d",
        tenant: str = "default",
    ) -> Schedule:
        """Starts the workflow whenever the clock of `zone` fits five cron fields; see `Cron` for the hours that a zone repeats or leaves out.

        `id` is its durable name. `jitter` delays each start by up to that much. `overlap`: what happens when the last execution is still
        open: nothing, one start is kept until it has ended, or both run. `catch_up`: what of the instants that nobody was there for is
        started, so long as they are `within` reach: none that is more than a minute late, the newest, or all up to 100.
        """
        return _schedule(cron_of(rule, zone), workflow, request, id, tenant, jitter, overlap, catch_up, within)

    @classmethod
    def every(
        cls,
        period: Duration,
        workflow: Workflow[I, Any, Any],
        request: I,
        *,
        id: str,
        anchor: datetime = EPOCH,
        jitter: Duration = "0s",
        overlap: Overlap = "skip",
        catch_up: CatchUp = "one",
        within: Duration = "7d",
        tenant: str = "default",
    ) -> Schedule:
        """Starts the workflow at `anchor` and whole periods from it, whatever clocks on walls do; the rest as for `cron`.

        Without an anchor it is the start of 1970, in UTC: `"15m"` fires on the quarter of an hour, `"1d"` at midnight.
        """
        return _schedule(every_of(duration(period), anchor), workflow, request, id, tenant, jitter, overlap, catch_up, within)


def _schedule(
    rule: Rule,
    workflow: Workflow[Any, Any, Any],
    request: object,
    id: str,
    tenant: str,
    jitter: Duration,
    overlap: Overlap,
    catch_up: CatchUp,
    within: Duration,
) -> Schedule:
    name = f"schedule {id!r}"
    if not isinstance(id, str) or not id or not id.isprintable() or len(id) > 200:
        raise DefinitionError(name, "a durable name is 1 to 200 printable characters", "Write it as a literal: it outlives refactors")
    if overlap not in get_args(Overlap):
        raise DefinitionError(name, f"overlap={overlap!r}", f"Use one of {', '.join(get_args(Overlap))}")
    if catch_up not in get_args(CatchUp):
        raise DefinitionError(name, f"catch_up={catch_up!r}", f"Use one of {', '.join(get_args(CatchUp))}")
    if catch_up == "all" and overlap != "allow":
        remedy = 'Say overlap="allow", or catch_up="one"'
        raise DefinitionError(name, f'catch_up="all" starts several at once, and overlap={overlap!r} lets only one run', remedy)
    if not tenant or "\0" in tenant:
        raise DefinitionError(name, f"{tenant!r} is no tenant", "Name one, or leave it out")
    return Schedule(Timetable(id, rule, duration(jitter), overlap, catch_up, duration(within)), workflow, request, tenant)


# Keys


def key_of(schedule: str, instant: datetime) -> str:
    """The key of the execution that a schedule starts for an instant: `nightly@2026-01-01T03:00:00Z`."""
    return f"{schedule}@{instant.astimezone(UTC).replace(tzinfo=None).isoformat()}Z"


_KEY = re.compile(r".+@(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{6})?)Z")


def scheduled_for(execution: Execution) -> datetime | None:
    """The instant that an execution was started for by a schedule; None when something else started it.

    It stays the same however late the start was; a workflow that reports about a day asks for it, and can be backfilled.
    """
    found = _KEY.fullmatch(execution.key or "")
    return datetime.fromisoformat(found[1]).replace(tzinfo=UTC) if found else None
