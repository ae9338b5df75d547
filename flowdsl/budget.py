"""Shared limits without I/O: the arithmetic of a rate limit, the order of those who wait, and a gate in virtual time.

A rate limit is GCRA, counted in whole numbers: each call adds `per` microseconds to a debt, each microsecond pays off `limit` of it, and a call may
begin while the debt leaves room for `per` more below `burst * per`. Nothing is ever rounded, so no series of draws gains or loses a call.
`flowdsl.room` and `flowdsl.pause` in functions/budgets.sql are the same in SQL.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

from attrs import define, frozen
from returns.result import Failure

from flowdsl.policy import Budget, Concurrency, RateLimit

T = TypeVar("T")

TICK = timedelta(microseconds=1)


class Bucket(NamedTuple):
    """What one limit is counted under: `scope` is empty, or names the tenant or workflow that has it for itself."""

    kind: Literal["rate", "slots"]
    name: str
    scope: str


Counted: TypeAlias = tuple[tuple[Bucket, Budget], ...]
"""The budgets of a call, each once, with where it is counted; in one order for all."""


def counted(budgets: Iterable[Budget], tenant: str, workflow: str) -> Counted:
    """Where a call of that tenant's execution of that workflow is counted."""
    scopes = {None: "", "tenant": f"tenant {tenant}", "workflow": f"workflow {workflow}"}
    found = {Bucket("rate" if isinstance(one, RateLimit) else "slots", one.name, scopes[one.each]): one for one in budgets}
    return tuple(sorted(found.items(), key=itemgetter(0)))


@frozen
class Rate:
    """A rate limit in whole numbers."""

    limit: int
    per: int
    """Microseconds."""
    burst: int

    @classmethod
    def of(cls, budget: RateLimit) -> Rate:
        return cls(budget.limit, budget.per // TICK, budget.limit if budget.burst is None else budget.burst)

    def left(self, debt: int, elapsed: int) -> int:
        """The debt after so many microseconds. A clock that went back pays nothing off."""
        return max(0, debt - max(0, elapsed) * self.limit)

    def room(self, debt: int) -> int:
        """How many calls may begin now."""
        return max(0, (self.burst * self.per - debt) // self.per) if self.limit else 0

    def pause(self, debt: int) -> int | None:
        """Microseconds until the next call may begin; None when no time will do."""
        return max(0, -(((self.burst - 1) * self.per - debt) // self.limit)) if self.limit else None

    def carried_to(self, other: Rate, debt: int) -> int:
        """The debt of the same calls under another limit."""
        return -(-debt * other.per // self.per)


LONGEST_REST = timedelta(hours=1)


def wished_rest(exit: object, wait: timedelta | None) -> timedelta | None:
    """How long the other side wants to be left alone, if an attempt ended so: a failure's own `retry_after`, or the wait that was asked for."""
    wished: object = getattr(exit.failure(), "retry_after", None) if isinstance(exit, Failure) else wait
    return min(wished, LONGEST_REST) if isinstance(wished, timedelta) and wished > timedelta() else None


# The order of those who wait


class Line(Generic[T]):
    """Those who wait for the same: by priority, then each tenant in turn, then as they came."""

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[str, dict[T, None]]] = {}
        self._places: dict[T, tuple[int, str]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def join(self, one: T, tenant: str, priority: int = 0) -> None:
        self._places[one] = (priority, tenant)
        self._levels.setdefault(priority, OrderedDict()).setdefault(tenant, {})[one] = None

    def leave(self, one: T, *, served: bool = False) -> None:
        """It waits no longer. Served, its tenant goes to the end of the round."""
        if one not in self._places:
            return
        priority, tenant = self._places.pop(one)
        tenants = self._levels[priority]
        del tenants[tenant][one]
        if served:
            tenants.move_to_end(tenant)
        if not tenants[tenant]:
            del tenants[tenant]
        if not tenants:
            del self._levels[priority]

    def first(self, count: int) -> list[T]:
        """Those whose turn it is next, in order."""
        found: list[T] = []
        for priority in sorted(self._levels, reverse=True):
            round = deque(map(iter, self._levels[priority].values()))
            while round and len(found) < count:
                turn = round.popleft()
                for one in turn:
                    found.append(one)
                    round.append(turn)
                    break
        return found


# In virtual time


@define
class _Spent:
    rate: Rate
    debt: int
    at: datetime
    rests_until: datetime

    def pay(self, rate: Rate, now: datetime) -> None:
        """Brings it up to now; the newest limit counts."""
        self.debt = self.rate.carried_to(rate, self.rate.left(self.debt, (now - self.at) // TICK))
        self.rate, self.at = rate, now

    def opens(self) -> datetime | None:
        """When the next call may begin."""
        pause = self.rate.pause(self.debt)
        return None if pause is None else max(self.rests_until, self.at + pause * TICK)


class Gate(Generic[T]):
    """The budgets of one process, in a time that it is told."""

    def __init__(self) -> None:
        self._spent: dict[Bucket, _Spent] = {}
        self._held: dict[Bucket, set[T]] = {}
        self._lines: dict[Counted, Line[T]] = {}

    def join(self, one: T, budgets: Counted, tenant: str, priority: int = 0) -> None:
        """It waits until all of its budgets allow it."""
        self._lines.setdefault(budgets, Line()).join(one, tenant, priority)

    def through(self, now: datetime, wanted: Callable[[T], bool]) -> Iterator[T]:
        """Those who may begin now. Who is not wanted any more spends nothing, and holds nothing."""
        self._held = {where: found for where, held in self._held.items() if (found := {one for one in held if wanted(one)})}
        for budgets, line in list(self._lines.items()):
            while line:
                one = line.first(1)[0]
                if not wanted(one):
                    line.leave(one)
                    continue
                if self._opens(budgets, now) != now:
                    break
                for spent in self._rates(budgets, now):
                    spent.debt += spent.rate.per
                for where, _ in budgets:
                    if where.kind == "slots":
                        self._held.setdefault(where, set()).add(one)
                line.leave(one, served=True)
                yield one
            if not line:
                del self._lines[budgets]

    def over(self, one: T, budgets: Counted) -> None:
        """It holds its slots no longer."""
        for where, _ in budgets:
            self._held.get(where, set[T]()).discard(one)

    def next(self, now: datetime) -> datetime | None:
        """When somebody may begin next; None when time alone lets nobody begin."""
        return min((opens for budgets in self._lines if (opens := self._opens(budgets, now)) is not None), default=None)

    def rest(self, budgets: Counted, until: datetime, now: datetime) -> None:
        """The other side wants to be left alone: nobody begins until then."""
        for spent in self._rates(budgets, now):
            spent.rests_until = max(spent.rests_until, until)

    def _rates(self, budgets: Counted, now: datetime) -> Iterator[_Spent]:
        for where, budget in budgets:
            if isinstance(budget, RateLimit):
                rate = Rate.of(budget)
                spent = self._spent.setdefault(where, _Spent(rate, 0, now, now))
                spent.pay(rate, now)
                yield spent

    def _opens(self, budgets: Counted, now: datetime) -> datetime | None:
        if any(isinstance(budget, Concurrency) and len(self._held.get(where, ())) >= budget.limit for where, budget in budgets):
            return None
        found = now
        for spent in self._rates(budgets, now):
            opens = spent.opens()
            if opens is None:
                return None
            found = max(found, opens)
        return found
