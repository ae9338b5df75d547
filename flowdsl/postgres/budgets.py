"""The budgets of a worker: its attempts wait here, out of its residents' way, until all of their shared limits let them begin.

One task draws for all of them, one call after the other over a connection of its own: that order is what makes it safe to repeat a call whose
answer was lost. What a worker holds is given back by it, or is free once the worker is declared gone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import asyncpg
import structlog
from attrs import define

from flowdsl import chance
from flowdsl.attempt import Ending, RunningAttempt, ran_out
from flowdsl.budget import TICK, Bucket, Counted, Line, counted, wished_rest
from flowdsl.errors import FlowError
from flowdsl.flow import Perform
from flowdsl.hands import ABANDON
from flowdsl.machine import Pending
from flowdsl.policy import Budget, RateLimit
from flowdsl.postgres.store import lost, reason, trace
from flowdsl.replay import Resident

log = structlog.get_logger("flowdsl")

TICKETS: Final = 512
"""Attempts in one call, at most."""
REPLY: Final = 10.0
"""Seconds without an answer after which a connection is taken for dead."""
SOON, OFTEN, SELDOM = 0.02, 0.25, 5.0
"""Seconds until one asks again: at the least; while other workers hold the slots; when nothing is to be expected."""
TIDY: Final = 3600.0
NEAR, ROOM = 64, 256
"""When a worker's memory is full: how many of a line stay in it at least, and how many are put off at a time."""
SHORTEST_OFF, LONGEST_OFF = timedelta(seconds=10), timedelta(minutes=5)


class Drawer(Protocol):
    """The worker that draws."""

    id: str

    @property
    def fit(self) -> bool: ...
    @property
    def crowded(self) -> bool: ...
    def upper(self) -> datetime: ...


@define(eq=False)
class _Waiting:
    """An attempt that its budgets have not let through yet."""

    resident: Resident
    one: Pending
    counted: Counted
    ticket: int
    tenant: str
    priority: int
    asked: bool = False
    overdue: asyncio.TimerHandle | None = None


class Budgets:
    """Lets attempts begin when their budgets allow it: by priority, then each tenant in turn, then as they came. `close` ends it."""

    def __init__(self, worker: Drawer, connect: Callable[[], Awaitable[Any]]) -> None:
        self._worker, self._connect = worker, connect
        self._waiting: dict[int, _Waiting] = {}
        self._tickets: dict[tuple[Resident, str], int] = {}
        self._lines: dict[Counted, Line[int]] = {}
        self._held: dict[int, Counted] = {}
        self._own: Counter[Bucket] = Counter()
        self._attempts: dict[RunningAttempt, int] = {}
        self._served: dict[str, int] = {}
        self._back: set[int] = set()
        self._freed: set[Bucket] = set()
        """What was given back since the last call was sent: its answer does not know of it."""
        self._rests: list[tuple[Bucket, float]] = []
        self._closed: dict[Bucket, float] = {}
        self._patience: dict[Bucket, float] = {}
        self._last = self._turns = 0
        self._doubtful = False
        self._tidy_at = 0.0
        self._wake = asyncio.Event()
        self._connection: Any = None
        self._task: asyncio.Task[None] | None = None
        self.draws = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def close(self) -> None:
        """Draws no more. What is still held is free once the worker has signed off."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._connection is not None:
            self._connection.terminate()

    # What residents ask

    def admit(self, resident: Resident, one: Pending) -> None:
        """It waits from now on; `Resident.admitted` is called when its turn has come."""
        assert isinstance(one.instruction, Perform)
        policies, activation = one.instruction.activity.policies, resident.activation
        tenant, workflow = activation.execution.tenant, activation.workflow
        self._last += 1
        waiting = _Waiting(resident, one, counted(policies.budget, tenant, workflow.name), self._last, tenant, workflow.priority)
        self._waiting[waiting.ticket] = waiting
        self._tickets[resident, one.step] = waiting.ticket
        self._lines.setdefault(waiting.counted, Line()).join(waiting.ticket, tenant, workflow.priority)
        if policies.schedule_to_close is not None:
            left = (one.opened + policies.schedule_to_close - resident.host.upper()).total_seconds()
            waiting.overdue = asyncio.get_running_loop().call_later(max(0.0, left), self._overdue, waiting)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="flowdsl-budgets")
        self._wake.set()

    def withdraw(self, resident: Resident, step: str) -> None:
        """It is not to begin any more."""
        waiting = self._waiting.get(self._tickets.get((resident, step), 0))
        if waiting is not None:
            self._leave(waiting)
            if waiting.asked:
                self._give_back(waiting.ticket, waiting.counted)

    def cancelled(self, attempt: RunningAttempt) -> None:
        """Nobody waits for it any more. If it ignores that, it keeps its slots for a while, and then no longer."""
        if attempt in self._attempts:
            asyncio.get_running_loop().call_later(ABANDON, self._release, attempt)

    def ended(self, resident: Resident, attempt: RunningAttempt, ending: Ending) -> None:
        """How it ended. If the other side wants to be left alone for a while, everybody leaves it alone."""
        self._release(attempt)
        rest = wished_rest(ending.exit, ending.wait)
        if rest is None:
            return
        seconds = rest.total_seconds()
        for where, _ in counted(attempt.activity.policies.budget, attempt.tenant, resident.activation.workflow.name):
            if where.kind == "rate":
                self._rests.append((where, seconds))
                self._closed[where] = max(self._closed.get(where, 0.0), _now() + min(seconds, SELDOM))
        self._wake.set()

    def _overdue(self, waiting: _Waiting) -> None:
        assert isinstance(waiting.one.instruction, Perform)
        self.withdraw(waiting.resident, waiting.one.step)
        waiting.resident.never_began(waiting.one, ran_out(waiting.one.instruction.activity, "schedule_to_close"))

    def _leave(self, waiting: _Waiting, *, served: bool = False) -> None:
        del self._waiting[waiting.ticket], self._tickets[waiting.resident, waiting.one.step]
        line = self._lines[waiting.counted]
        line.leave(waiting.ticket, served=served)
        if not line:
            del self._lines[waiting.counted]
        if waiting.overdue is not None:
            waiting.overdue.cancel()

    # What is held

    def _begin(self, waiting: _Waiting) -> None:
        """Its turn has come. Its slots are its own until its implementation has ended."""
        self._leave(waiting, served=True)
        attempt = waiting.resident.admitted(waiting.one)
        if attempt is None or attempt.task is None:
            self._give_back(waiting.ticket, waiting.counted)
        elif _slots(waiting.counted):
            self._held[waiting.ticket] = waiting.counted
            self._own.update(_slots(waiting.counted))
            self._attempts[attempt] = waiting.ticket
            in_a_thread = not waiting.resident.host.deployment.binding(attempt.activity.name).is_async
            attempt.task.add_done_callback(lambda _: self._over(attempt, in_a_thread))

    def _over(self, attempt: RunningAttempt, in_a_thread: bool) -> None:
        if not (in_a_thread and attempt.begun and attempt.cancelled):  # a thread cannot be interrupted: it may go on for a while
            self._release(attempt)

    def _release(self, attempt: RunningAttempt) -> None:
        ticket = self._attempts.pop(attempt, None)
        if ticket is not None:
            held = self._held.pop(ticket)
            self._own -= Counter(_slots(held))
            self._give_back(ticket, held)

    def _give_back(self, ticket: int, budgets: Counted) -> None:
        slots = _slots(budgets)
        if slots:
            self._back.add(ticket)
            self._freed.update(slots)
            for where in slots:
                self._closed.pop(where, None)
                self._patience.pop(where, None)
            self._wake.set()

    # Drawing

    async def _run(self) -> None:
        tries = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(0)  # what comes in the same moment goes out together
            try:
                await self._round()
                tries = 0
            except Exception as error:
                log.warning("budgets.failed", worker=self._worker.id, error=reason(error), **_traced(error))
                self._doubtful, tries = True, tries + 1
                if self._connection is not None:
                    self._connection.terminate()  # it may hold a hidden transaction
                    self._connection = None
                self._wake.set()
                await asyncio.sleep(min(0.05 * 2**tries, 2.0) * (0.5 + chance.random()))

    def _pause(self) -> float | None:
        """Seconds until something may have opened; None when nobody waits."""
        if self._back or self._rests:
            return 0.0
        opens = [max(self._closed.get(where, 0.0) for where, _ in budgets) for budgets in self._lines]
        return max(0.0, min(opens) - _now()) if opens else None

    async def _round(self) -> None:
        if not self._worker.fit:
            await asyncio.sleep(SOON)
            self._wake.set()
            return
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        await self._say_rests()
        if self._doubtful:
            await self._compare()
        if _now() >= self._tidy_at:
            await self._connection.execute("select flowdsl.tidy_budgets()", timeout=REPLY)
            self._tidy_at = _now() + TIDY * (0.5 + chance.random())
        asked, back = self._asked(), list(self._back)
        if asked or back:
            await self._draw(asked, back)
        if self._worker.crowded:
            self._make_room()

    def _make_room(self) -> None:
        """Those who will wait for long make room for executions that can go on: they are put off, the longer they have waited already."""
        now, left = self._worker.upper(), ROOM
        for budgets, line in list(self._lines.items()):
            near = max(NEAR, 2 * min(_at_once(budget) for _, budget in budgets))
            for ticket in line.first(near + left)[near:]:
                waiting = self._waiting.get(ticket)
                if waiting is not None:
                    waited = now - waiting.one.opened
                    left -= waiting.resident.put_off(now + min(max(waited / 2, SHORTEST_OFF), LONGEST_OFF) * (0.5 + chance.random()))

    async def _say_rests(self) -> None:
        if self._rests:
            said = list(self._rests)
            await self._connection.execute(
                "select flowdsl.rest($1::text[], $2::text[], $3::float8[])",
                [where.name for where, _ in said],
                [where.scope for where, _ in said],
                [seconds for _, seconds in said],
                timeout=REPLY,
            )
            del self._rests[: len(said)]

    async def _compare(self) -> None:
        """Slots that the store has and memory does not: the answer that gave them was lost."""
        rows = await self._connection.fetch("select distinct ticket from flowdsl.slots where worker = $1::uuid", self._worker.id, timeout=REPLY)
        self._back |= {row["ticket"] for row in rows} - self._held.keys() - self._waiting.keys()
        self._doubtful = False

    def _asked(self) -> list[_Waiting]:
        """Whose budgets may be open, in order: by priority, then tenant by tenant, who was served longest ago first, then as they came."""
        now, found = _now(), list[_Waiting]()
        for budgets, line in list(self._lines.items()):
            if any(self._closed.get(where, 0.0) > now for where, _ in budgets):
                continue
            most = max(16, min(_at_once(budget) for _, budget in budgets))
            found += [self._waiting[ticket] for ticket in line.first(min(most, TICKETS - len(found)))]
            self._lines[budgets] = self._lines.pop(budgets)  # next time another line is first
            if len(found) >= TICKETS:
                break
        turns, seen = dict[int, int](), Counter[tuple[int, str]]()
        for one in found:
            turns[one.ticket] = seen[one.priority, one.tenant]
            seen[one.priority, one.tenant] += 1
        return sorted(found, key=lambda one: (-one.priority, turns[one.ticket], self._served.get(one.tenant, 0), one.ticket))

    async def _draw(self, asked: list[_Waiting], back: list[int]) -> None:
        buckets = {where: budget for waiting in asked for where, budget in waiting.counted}
        places = {where: place for place, where in enumerate(buckets, 1)}
        wanted = dict.fromkeys(buckets, 0)
        for budgets, line in self._lines.items():
            for where, _ in budgets:
                if where in wanted:
                    wanted[where] += len(line)
        pairs = [(waiting.ticket, places[where]) for waiting in asked for where, _ in waiting.counted]
        for waiting in asked:
            waiting.asked = True
        rates = [budget if isinstance(budget, RateLimit) else None for budget in buckets.values()]
        self.draws += 1
        self._freed.clear()
        answer = await self._connection.fetchrow(
            _DRAW,
            self._worker.id,
            back,
            [where.kind for where in buckets],
            [where.name for where in buckets],
            [where.scope for where in buckets],
            [budget.limit for budget in buckets.values()],
            [rate.per // TICK if rate else None for rate in rates],
            [_at_once(rate) if rate else None for rate in rates],
            list(wanted.values()),
            [ticket for ticket, _ in pairs],
            [place for _, place in pairs],
            timeout=REPLY,
        )
        self._back -= set(back)
        if answer is not None:
            self._learn(buckets, answer["b_left"], answer["b_pause"])
            self._grant(answer["granted"], asked)

    def _learn(self, buckets: dict[Bucket, Budget], left: list[int], pauses: list[float | None]) -> None:
        now = _now()
        for (where, budget), more, pause in zip(buckets.items(), left, pauses, strict=True):
            if more > 0 or where in self._freed:
                self._closed.pop(where, None)
                self._patience.pop(where, None)
            elif where.kind == "rate":
                self._closed[where] = now + (SELDOM if pause is None else min(max(pause, SOON), SELDOM))
            elif self._own[where] >= budget.limit:
                self._closed[where] = now + SELDOM  # what it waits for is its own to give back
            else:
                patience = self._patience[where] = min(2 * self._patience.get(where, SOON / 2), OFTEN)
                self._closed[where] = now + patience * (0.75 + 0.5 * chance.random())
        if len(self._closed) + len(self._patience) > 4096:
            known = {where for budgets in self._lines for where, _ in budgets}
            self._closed = {where: until for where, until in self._closed.items() if where in known}
            self._patience = {where: span for where, span in self._patience.items() if where in known}
        if len(self._served) > 4096:
            waiting = {one.tenant for one in self._waiting.values()}
            self._served = {tenant: turn for tenant, turn in self._served.items() if tenant in waiting}

    def _grant(self, granted: list[int], asked: list[_Waiting]) -> None:
        counts = {waiting.ticket: waiting.counted for waiting in asked}
        for ticket in granted:
            waiting = self._waiting.get(ticket)
            if waiting is None or not self._worker.fit:  # withdrawn meanwhile; or it may not begin now, and draws again
                self._give_back(ticket, counts[ticket])
                continue
            self._turns += 1
            self._served[waiting.tenant] = self._turns
            try:
                self._begin(waiting)
            except Exception as error:  # of one execution: the others must not lose their draws by it
                log.error("attempt.failed", execution=waiting.resident.id, traceback=trace(error))


_DRAW = (
    "select * from flowdsl.draw($1::uuid, $2::bigint[], $3::text[], $4::text[], $5::text[], $6::int[], $7::bigint[], $8::int[], $9::int[],"
    " $10::bigint[], $11::int[])"
)


def _slots(budgets: Counted) -> list[Bucket]:
    return [where for where, _ in budgets if where.kind == "slots"]


def _at_once(budget: Budget) -> int:
    """How many it may let through in one moment."""
    return budget.burst if isinstance(budget, RateLimit) and budget.burst is not None else budget.limit


def _now() -> float:
    return asyncio.get_running_loop().time()


def _traced(error: Exception) -> dict[str, str]:
    known = lost(error) or isinstance(error, (asyncpg.PostgresError, FlowError))
    return {} if known else {"traceback": trace(error)}


__all__ = ["Budgets", "Drawer"]
