"""Bugs planted on purpose: the net is tested too. Each is a switch for the length of a run, in a test and nowhere else.

Where a bug is one of our SQL, the text of our functions is changed; where it is one of the runtime, a method of it is replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from attrs import evolve, field, frozen

from flowdsl.activation import Activation
from flowdsl.attempt import raised
from flowdsl.flow import Perform, Sleep
from flowdsl.journal import NULL, SUCCESS, Fold
from flowdsl.postgres import connection, schedules, store, transaction, worker
from flowdsl.postgres.connection import lost
from flowdsl.postgres.heart import Heart
from flowdsl.postgres.hints import Listener
from flowdsl.postgres.intake import Intake
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Tuning, Worker
from flowdsl.replay import Resident
from tests.simulation.faults import Plan
from tests.simulation.loop import here


@frozen
class Bug:
    number: int
    name: str
    sql: tuple[tuple[str, str], ...] = ()
    """What is replaced in the text of our functions."""
    instead: Callable[[], list[tuple[Any, str, Any]]] = list
    """What is replaced in the runtime: where, which name, by what."""
    kinds: tuple[str, ...] = ()
    """The orders that it is looked for with; all of them if there are none."""
    schedules: bool = False
    faults: dict[str, int] = field(factory=dict[str, int])
    """The faults that it is looked for with; those that the seed draws if there are none."""
    knobs: dict[str, Any] = field(factory=dict[str, Any])
    defines: str = ""
    """SQL of its own, after the tables were made."""

    def functions(self, text: str) -> str:
        for old, new in self.sql:
            if old not in text:
                raise ValueError(f"bug {self.number} ({self.name}) plants nothing: our functions do not contain {old!r}")
            text = text.replace(old, new)
        return text

    def focused(self, plan: Plan, tuning: Tuning) -> tuple[Plan, Tuning]:
        if self.faults:
            plan = Plan(self.faults, min(plan.every, 200.0), plan.span)
        return plan, evolve(tuning, **self.knobs)

    @contextmanager
    def planted(self) -> Generator[None]:
        with ExitStack() as stack:
            for place, name, thing in self.instead():
                stack.enter_context(patch.object(place, name, thing))
            yield


# 4 None as absent


def _nothing_is_absent() -> list[tuple[Any, str, Any]]:
    load = Store.load

    async def loaded(self: Store, ids: Any) -> Any:
        found = await load(self, ids)
        return {id: [one for one in entries if not (one.body == NULL and one.fingerprint.startswith("perform "))] for id, entries in found.items()}

    return [(Store, "load", loaded)]


# 5 a timeout that is not recorded


def _unrecorded_timeouts() -> list[tuple[Any, str, Any]]:
    record = Activation._record

    def recorded(self: Activation, step: str, kind: int, body: bytes, now: Any) -> None:
        one = self.fold.machine.pending[step]
        if not isinstance(one.instruction, Sleep):
            record(self, step, kind, body, now)
            return
        at = self.fold.position
        self.fold.record(step, kind, body, now)
        self.fold.position = at  # who comes back later has to find out by itself that the time was over

    return [(Activation, "_record", recorded)]


# 6 an error swallowed in recovery, 7 a stale list


def _swallowed() -> list[tuple[Any, str, Any]]:
    take = Intake.take

    async def taken(self: Intake, found: Any) -> None:
        try:
            await take(self, found)
        except Exception as error:
            if not (lost(error) or getattr(error, "sqlstate", None)):
                raise
            for one in found:  # logged, and never looked at again
                self._worker.committer._under_way[one.id] += 1

    return [(Intake, "take", taken), (store, "PATIENCE", 0.0)]


def _stale_list() -> list[tuple[Any, str, Any]]:
    again, before = Store.again, dict[Any, Any]()

    async def asked(self: Store, query: str, *arguments: Any) -> Any:
        rows = await again(self, query, *arguments)
        if query.startswith("select x.id, x.mail from flowdsl.executions x where x.owner"):
            rows, before[arguments] = before.get(arguments, rows), rows
        return rows

    return [(Store, "again", asked)]


# 8 the loser continues


def _loser_goes_on() -> list[tuple[Any, str, Any]]:
    committed = Resident.committed
    return [(Resident, "committed", lambda self, turn, state, fate: committed(self, turn, state, "done" if fate in ("left", "fenced") else fate))]


# 9 blind retry, 10 a SELECT decides


def _sending(decide: bool) -> Callable[[], list[tuple[Any, str, Any]]]:
    async def sent(self: Store, tenant: str, to: str, kind: str, name: str, body: bytes, delivery: str) -> str:
        for number in range(40):
            try:
                if number and decide:
                    known = await self.pool.fetch(
                        "select 1 from flowdsl.deliveries where scope = $1 and delivery like $2 || '%'", f"{tenant}/{name}/{to}", delivery
                    )
                    if known:
                        return "again"
                said = (
                    await self.pool.fetch(
                        "select flowdsl.send($1, $2, $3, $4, $5, $6)", tenant, to, kind, name, body, f"{delivery} {number}" if number else delivery
                    )
                )[0][0]
                if said == "sent":
                    self.hints.tell(tenant, name, to)
                return str(said)
            except Exception as error:
                if not lost(error):
                    raise
            await asyncio.sleep(0.05)
        raise TimeoutError

    return lambda: [(Store, "send", sent)]


# 11 and 12: who is not told never looks


def _only_told(*, rescans: bool) -> Callable[[], list[tuple[Any, str, Any]]]:
    def instead() -> list[tuple[Any, str, Any]]:
        async def looked_around(self: Worker) -> None:
            self._look_at = asyncio.get_running_loop().time() + 1e6
            await self.intake.look_around()

        def silent(self: Listener, dsn: str, hear: Any, look: Any) -> None:
            made(self, dsn, hear, look if rescans else lambda: None)

        made = Listener.__init__
        return [(Worker, "_look_around", looked_around), (Listener, "__init__", silent)]

    return instead


# 13 the worker's own clock


def _own_clock() -> list[tuple[Any, str, Any]]:
    upper, lower = Heart.upper, Heart.lower

    def wrong() -> timedelta:
        name = here().process.name
        return timedelta(seconds=(sum(name.encode()) * 37 % 9) - 4)

    return [(Heart, "upper", lambda self: upper(self) + wrong()), (Heart, "lower", lambda self: lower(self) + wrong())]


# 14 and 15: order of arrival


def _no_winner() -> list[tuple[Any, str, Any]]:
    load = Store.load

    async def loaded(self: Store, ids: Any) -> Any:
        """What work answered is kept; that the time was over first is not."""
        found = await load(self, ids)
        kept = {id: [one for one in entries if not one.fingerprint.startswith("sleep ")] for id, entries in found.items()}
        return {id: [evolve(one, position=place) for place, one in enumerate(entries)] for id, entries in kept.items()}

    return [(Store, "load", loaded)]


def _keys_by_arrival() -> list[tuple[Any, str, Any]]:
    key = Fold.key

    def numbered(self: Fold, step: str) -> str:
        """The branches of one scope are told apart by who asked first in this process."""
        scope, _, last = step.rpartition(".")
        if not scope or not last.isdigit():
            return key(self, step)
        seen: dict[str, dict[str, int]] = self.__dict__.setdefault("arrivals", {})
        found = seen.setdefault(scope, {})
        return key(self, f"{scope}.{found.setdefault(last, len(found))}")

    return [(Fold, "key", numbered)]


# 16, 17: two transactions where there must be one


def _woken_later() -> list[tuple[Any, str, Any]]:
    send = Store.send

    async def sent(self: Store, tenant: str, to: str, kind: str, name: str, body: bytes, delivery: str) -> str:
        said = await send(self, tenant, to, kind, name, body, delivery)
        await self.again("update flowdsl.executions set wake = clock_timestamp() where id = flowdsl.as_id($1) and status = 'suspended'", to)
        return said

    return [(Store, "send", sent)]


# 18 attempts in memory


def _counted_in_memory() -> list[tuple[Any, str, Any]]:
    begin = Activation.begin

    def begun(self: Activation, entries: Any, mails: Any, now: Any, *, taken_over: bool = False) -> None:
        replay = self.fold.replay

        def replayed(entries: Any) -> None:
            replay(entries)
            for one in self.fold.machine.pending.values():
                if isinstance(one.instruction, Perform):
                    one.attempts = 0

        with patch.object(self.fold, "replay", replayed):
            begin(self, entries, mails, now, taken_over=taken_over)

    return [(Activation, "begin", begun)]


# 19 a cancellation that is forgotten


def _forgotten_cancel() -> list[tuple[Any, str, Any]]:
    def cancel(self: Activation, reason: str, now: Any) -> None:
        if self.fold.machine.exit is None and not self.fold.machine.cancelling:
            at = self.fold.position
            self.fold.record_cancel(reason, now)
            self.fold.position = at
            self._settle(now)

    return [(Activation, "cancel", cancel)]


# 20 a shutdown that is somebody's failure


def _shutdown_fails() -> list[tuple[Any, str, Any]]:
    def release(self: Resident) -> None:
        for attempt in list(self.attempts.values()):
            task = attempt.task
            self._ended(attempt, evolve(raised(asyncio.CancelledError()), final=True))
            if task is not None:
                task.cancel()
        self.leave()

    return [(Resident, "release", release)]


# 21 the raw value on the first run


def _raw() -> list[tuple[Any, str, Any]]:
    answer, decoded = Activation._answer, Fold.decoded
    given: list[Any] = []

    def answered(self: Activation, one: Any, value: Any, now: Any) -> None:
        given.append(value)
        try:
            answer(self, one, value, now)
        finally:
            given.clear()

    def seen(self: Fold, one: Any, kind: int, body: bytes) -> Any:
        return given.pop() if given and kind == SUCCESS and isinstance(one.instruction, Perform) else decoded(self, one, kind, body)

    return [(Activation, "_answer", answered), (Fold, "decoded", seen)]


# 23 a cancelled connection that is pooled


def _pooled_anyway() -> list[tuple[Any, str, Any]]:
    async def rollback(self: Any) -> None:
        if self._open:
            self._open = False
            if self.connection.is_closed() or not self._resident.dropped:
                await self._transaction_over()
            await self._pool.release(self.connection)

    async def over(self: Any) -> None:
        if self.connection.is_in_transaction():
            await self._transaction.rollback()

    opened = connection.open_pool

    async def pool(dsn: str, *, keeps_state: bool = False, **more: Any) -> Any:
        return await opened(dsn, **more)

    own: Any = transaction.OwnTransaction
    own._transaction_over = over
    return [(own, "rollback", rollback), (worker, "open_pool", pool)]


# 24 the next time, kept apart


def _next_time_apart() -> list[tuple[Any, str, Any]]:
    async def look(self: Any) -> list[Any]:
        names = list(self._deployment.names)
        async with self._store.connection() as one, one.transaction():
            rows = await one.fetch(schedules._DUE, schedules.BATCH, names)
            plans = {row["id"]: schedules.plan(schedules._table(row), row["upcoming"], row["now"]) for row in rows}
            await one.execute(
                "select flowdsl.go_on($1::text[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[])",
                list(plans), [p.upcoming for p in plans.values()], [p.due for p in plans.values()], [p.missed for p in plans.values()],
            )  # fmt: skip
        async with self._store.connection() as one, one.transaction():
            fired = await schedules._fire(one, "due", [(id, instant) for id, found in plans.items() for instant in found.firings])
        if fired:
            self._started()
        return fired

    return [(schedules.Lookout, "look", look)]


def _deleted_apart() -> list[tuple[Any, str, Any]]:
    prune = Operator.prune

    async def pruned(self: Operator, older_than: Any, **more: Any) -> int:
        ids = [row["id"] for row in await self._store.again("select id from flowdsl.executions where ended is not null")]
        gone = await prune(self, older_than, **more)
        await self._store.again("delete from flowdsl.journal where execution = any($1::uuid[])", ids)
        return gone

    return [(Operator, "prune", pruned)]


_WORKER = "  perform 1 from flowdsl.workers where id = p_worker and not gone for key share;"
_OWNED = "(select x.epoch = {0}.epoch and x.owner = p_worker from flowdsl.executions x where x.id = {0}.execution)"
_DEATHS = {"kill": 3, "freeze": 3, "pause": 2, "commit_late": 2}
_WAY = {"cut": 3, "lose_reply": 3, "commit_late": 2}

BUGS: list[Bug] = [
    Bug(1, "no fence", sql=((_WORKER, "  perform 1;"), (_OWNED.format("t"), "true"), (_OWNED.format("e"), "true")), faults=_DEATHS),
    Bug(2, "fence without lock", sql=((_WORKER, _WORKER.replace(" for key share", "")),), faults={"kill": 3, "commit_late": 4, "pause": 3}),
    Bug(3, "check before register", sql=(("and (t.state <> 'suspended' or x.mail = t.seen)", ""),), kinds=("signals", "letters", "pen_pals",
        "children")),
    Bug(4, "None as absent", instead=_nothing_is_absent, kinds=("nothing",), faults={"kill": 2, "stop": 2}),
    Bug(5, "timeout not recorded", instead=_unrecorded_timeouts, kinds=("deadline", "race", "timers"), faults={"kill": 2, "stop": 2}),
    Bug(6, "error swallowed in recovery", instead=_swallowed, faults={"kill": 2, **_WAY}),
    Bug(
        7, "stale recovery list", instead=_stale_list,
        sql=(("where x.id = any(p_ids) and x.owner = p_worker for update skip locked)\n    update flowdsl.executions x set epoch = x.epoch + 1 from",
              "where x.id = any(p_ids) for update skip locked)\n    update flowdsl.executions x set epoch = x.epoch + 1, owner = p_worker from"),),
    ),
    Bug(8, "loser continues", instead=_loser_goes_on, kinds=("chopped", "terminated", "sequence")),
    Bug(9, "blind retry after unknown commit", instead=_sending(False), kinds=("signals", "letters", "deadline"), faults=_WAY),
    Bug(10, "select decides", instead=_sending(True), kinds=("signals", "letters", "deadline"), faults={"commit_late": 3, "cut": 2}),
    Bug(11, "notify as the only wake-up", instead=_only_told(rescans=True), faults={"deaf": 2}, knobs={"hints": True}, kinds=("signals", "letters",
        "pen_pals")),
    Bug(12, "no rescan after reconnect", instead=_only_told(rescans=False), faults={"cut": 2}, knobs={"hints": True}, kinds=("signals", "letters",
        "pen_pals")),
    Bug(13, "app clock for due times", instead=_own_clock, kinds=("timers", "silence", "loop"), faults={"kill": 2, "stop": 2}),
    Bug(14, "race winner not recorded", instead=_no_winner, kinds=("race", "deadline"), faults={"kill": 2, "stop": 2}),
    Bug(15, "step ID by arrival", instead=_keys_by_arrival, kinds=("fan", "threaded", "children"), faults={"kill": 2, "stop": 2}),
    Bug(16, "GC in two transactions", instead=_deleted_apart, sql=(("  delete from flowdsl.journal where execution = any(gone);\n", ""),),
        faults={"kill": 1}),
    Bug(17, "wake-up after commit", instead=_woken_later, kinds=("signals", "letters"),
        sql=(("wake = case when x.status = 'suspended' then least(coalesce(x.wake, clock_timestamp()), clock_timestamp()) else x.wake end",
            "wake = x.wake"),)),
    Bug(18, "attempts in memory", instead=_counted_in_memory, kinds=("exhausted", "bug", "sequence"), faults={"kill": 3, "stop": 2}),
    Bug(19, "cancel not sticky", instead=_forgotten_cancel, kinds=("cancelled", "too_late", "waiting"), faults={"kill": 3, "stop": 2}),
    Bug(20, "shutdown recorded as failure", instead=_shutdown_fails, faults={"stop": 3}, knobs={"grace": 0.1}),
    Bug(21, "raw value on first run", instead=_raw, kinds=("basket",), faults={"kill": 1}),
    Bug(22, "unique key dropped", defines="alter table flowdsl.executions drop constraint executions_key"),
    Bug(23, "cancelled connection pooled", instead=_pooled_anyway, kinds=("marks", "loop"), faults={"freeze": 2, "cut": 1, "stop": 2},
        knobs={"transactions": 1}),
    Bug(24, "schedule next-time kept apart", instead=_next_time_apart, schedules=True, kinds=("timers",), faults={"kill": 2, **_WAY}),
]  # fmt: skip
