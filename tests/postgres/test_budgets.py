"""Budgets over a real Postgres: drawers played by hand, then workers, then what dies in between."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Never
from unittest.mock import ANY

import asyncpg
import pytest
from attrs import frozen

from flowdsl import (
    Cancelled,
    Concurrency,
    Defect,
    Deployment,
    Failure,
    RateLimit,
    Result,
    Retry,
    Steps,
    Success,
    TimedOut,
    activity,
    bind,
    each,
    race,
    signal,
    workflow,
)
from flowdsl.budget import TICK, Rate
from flowdsl.errors import RetryAfter
from flowdsl.policy import Budget
from flowdsl.postgres import budgets as drawing
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.worker import Worker, new_id
from tests.postgres.proxy import Wire, proxied
from tests.postgres.scene import Scene, eventually, scene_at
from tests.postgres.stage import BRISK

DAY = timedelta(days=1)


@pytest.fixture
async def scene(database: str) -> AsyncIterator[Scene]:
    async with scene_at(database) as scene:
        yield scene


async def draw(
    connection: Any, worker: str, asked: Sequence[tuple[int, Sequence[Budget]]] = (), *, back: Sequence[int] = (), wanted: int | None = None
) -> Any:
    """Draws for attempts, by ticket: what is granted, what is left of each budget, and the pauses; all budgets are shared by everybody."""
    budgets = list(dict.fromkeys(budget for _, under in asked for budget in under))
    counts = Counter(budget for _, under in asked for budget in under)
    rates = [budget if isinstance(budget, RateLimit) else None for budget in budgets]
    pairs = [(ticket, budgets.index(budget) + 1) for ticket, under in asked for budget in under]
    return await connection.fetchrow(
        drawing._DRAW, worker, list(back), ["rate" if rate else "slots" for rate in rates], [budget.name for budget in budgets], [""] * len(budgets),
        [budget.limit for budget in budgets], [rate.per // TICK if rate else None for rate in rates],
        [(rate.burst or rate.limit) if rate else None for rate in rates], [wanted or counts[budget] for budget in budgets],
        [ticket for ticket, _ in pairs], [place for _, place in pairs],
    )  # fmt: skip


async def granted(connection: Any, worker: str, tickets: Sequence[int], *under: Budget, **more: Any) -> list[int]:
    return list((await draw(connection, worker, [(ticket, under) for ticket in tickets], **more))["granted"])


def quota(limit: int, per: timedelta = 365 * DAY, **more: Any) -> RateLimit:
    return RateLimit("quota", limit, per, **more)


def slots(limit: int) -> Concurrency:
    return Concurrency("slots", limit)


async def ago(scene: Scene, span: timedelta) -> None:
    """As if that time had passed for all budgets and demands."""
    await scene.watcher.execute("update flowdsl.budgets set at = at - $1::interval, rests_until = rests_until - $1::interval", span)
    await scene.watcher.execute("update flowdsl.demands set until = until - $1::interval, served = served - $1::interval", span)


async def tickets(scene: Scene, worker: str) -> list[int]:
    return [row["ticket"] for row in await scene.watcher.fetch("select ticket from flowdsl.slots where worker = $1 order by 1", worker)]


class TestRates:
    async def test_the_arithmetic_is_the_one_of_python(self, scene: Scene) -> None:
        chance = random.Random(7)
        for _ in range(300):
            rate = Rate(chance.randrange(0, 3000), chance.randrange(1, 10 ** chance.randrange(1, 13)), chance.randrange(1, 3000))
            debt, elapsed = chance.randrange(10 ** chance.randrange(1, 17)), chance.randrange(-10, 10 ** chance.randrange(2, 13))
            found = await scene.watcher.fetchrow(
                "select flowdsl.left_of($1, $2, $3) as debt, flowdsl.room($1, $3, $4, $5) as room, flowdsl.pause($1, $3, $4, $5) as pause",
                debt, elapsed, rate.limit, rate.per, rate.burst,
            )  # fmt: skip
            assert (found["debt"], found["room"], found["pause"]) == (rate.left(debt, elapsed), rate.room(debt), rate.pause(debt)), rate

    async def test_the_burst_and_then_one_at_a_time(self, scene: Scene) -> None:
        worker = await scene.worker()
        first = await draw(scene.watcher, worker, [(ticket, [quota(10)]) for ticket in range(15)])
        assert (first["granted"], first["b_left"]) == (list(range(10)), [0])
        assert first["b_pause"][0] == pytest.approx((365 * DAY / 10).total_seconds())
        assert await granted(scene.watcher, worker, [20], quota(10)) == []
        await ago(scene, 365 * DAY * 3 / 10)
        assert await granted(scene.watcher, worker, range(30, 40), quota(10)) == [30, 31, 32]

    async def test_many_at_once_draw_the_burst_and_no_more(self, scene: Scene) -> None:
        async def drawer(worker: str) -> int:
            connection = await scene.connection()
            return sum([len(await granted(connection, worker, range(n, n + 3), quota(100))) for n in range(0, 90, 3)])

        assert sum(await asyncio.gather(*[drawer(await scene.worker()) for _ in range(8)])) == 100

    async def test_the_newest_worker_says_what_the_limit_is(self, scene: Scene) -> None:
        old = await scene.worker()
        assert len(await granted(scene.watcher, old, range(4), quota(4))) == 4
        new = await scene.worker()
        assert len(await granted(scene.watcher, new, range(10), quota(7))) == 3, "the calls that were made count under the new limit too"
        assert await granted(scene.watcher, old, range(10), quota(100)) == [], "one that began before cannot take it back"
        newest = await scene.worker()
        assert await granted(scene.watcher, newest, range(10), quota(2)) == []
        await ago(scene, 365 * DAY * 5 / 2)
        assert await granted(scene.watcher, old, range(10), quota(4)) == []
        await ago(scene, 365 * DAY / 2)
        assert len(await granted(scene.watcher, old, range(10), quota(4))) == 1

    async def test_another_period_keeps_what_was_drawn(self, scene: Scene) -> None:
        await granted(scene.watcher, await scene.worker(), range(6), quota(10))
        assert len(await granted(scene.watcher, await scene.worker(), range(10), quota(10, DAY))) == 4

    async def test_nothing_is_a_limit_too(self, scene: Scene) -> None:
        worker = await scene.worker()
        stopped = await draw(scene.watcher, worker, [(1, [quota(0)]), (2, [slots(0)])])
        assert (stopped["granted"], stopped["b_pause"]) == ([], [None, None])
        assert await granted(scene.watcher, await scene.worker(), [3], quota(1)) == [3], "until a newer worker opens it"

    async def test_a_rest_is_for_everybody_and_the_longest_counts(self, scene: Scene) -> None:
        one, other = await scene.worker(), await scene.worker()
        await granted(scene.watcher, one, [1], quota(10))
        for seconds in (600.0, 5.0):
            await scene.watcher.execute("select flowdsl.rest($1, $2, $3)", ["quota"], [""], [seconds])
        refused = await draw(scene.watcher, other, [(1, [quota(10)])])
        assert refused["granted"] == []
        assert 590 < refused["b_pause"][0] <= 600
        await ago(scene, timedelta(seconds=601))
        assert await granted(scene.watcher, other, [1], quota(10)) == [1]

    async def test_a_clock_that_went_back_stops_nothing_for_long(self, scene: Scene) -> None:
        worker = await scene.worker()
        await granted(scene.watcher, worker, range(10), quota(10))
        await ago(scene, -3 * DAY)
        assert await granted(scene.watcher, worker, [11], quota(10)) == []
        await ago(scene, 365 * DAY / 10)
        assert await granted(scene.watcher, worker, [12], quota(10)) == [12], "it goes on from where the clock stands now"


class TestSlots:
    async def test_so_many_at_a_time(self, scene: Scene) -> None:
        one, other = await scene.worker(), await scene.worker()
        assert await granted(scene.watcher, one, range(3), slots(2)) == [0, 1]
        assert await granted(scene.watcher, other, range(3), slots(2)) == []
        await draw(scene.watcher, one, back=[0])
        assert await granted(scene.watcher, other, range(3), slots(2)) == [0]
        assert (await tickets(scene, one), await tickets(scene, other)) == ([1], [0])

    async def test_what_is_given_back_may_be_drawn_in_the_same_call(self, scene: Scene) -> None:
        worker = await scene.worker()
        await granted(scene.watcher, worker, [1, 2], slots(2))
        assert await granted(scene.watcher, worker, [3, 4], slots(2), back=[1]) == [3]

    async def test_a_repeat_grants_the_same_and_takes_nothing(self, scene: Scene) -> None:
        worker = await scene.worker()
        for _ in range(3):
            assert await granted(scene.watcher, worker, [1, 2, 3], slots(2), quota(10)) == [1, 2]
        assert await tickets(scene, worker) == [1, 2]
        assert len(await granted(scene.watcher, worker, range(10, 30), quota(10))) == 8, "nor was the rate drawn from again"

    async def test_nothing_is_spent_by_who_does_not_begin(self, scene: Scene) -> None:
        worker = await scene.worker()
        assert await granted(scene.watcher, worker, range(5), quota(10), slots(2)) == [0, 1]
        assert len(await granted(scene.watcher, worker, range(10, 30), quota(10))) == 8
        assert await granted(scene.watcher, worker, [40], quota(10), slots(5), back=[0, 1]) == []
        assert await tickets(scene, worker) == []

    async def test_the_slots_of_a_gone_worker_are_free_and_not_before(self, scene: Scene) -> None:
        dead = await scene.worker(lease=1, silent_for=50)
        other = await scene.worker()
        assert await granted(scene.watcher, dead, [1, 2], slots(2)) == [1, 2]
        assert await granted(scene.watcher, other, [1], slots(2)) == [], "it may live: nobody has declared it gone"
        await scene.watcher.execute("select flowdsl.take_over()")
        assert await granted(scene.watcher, other, [1, 2, 3], slots(2)) == [1, 2]
        assert await tickets(scene, dead) == []
        assert await draw(scene.watcher, dead, [(5, [slots(2)])]) is None, "a zombie draws nothing"
        await scene.watcher.execute("delete from flowdsl.workers where id = $1", other)
        assert await granted(scene.watcher, await scene.worker(), [1], slots(1)) == [1], "nor does one count whose row is no more"

    async def test_a_take_over_waits_for_a_draw_under_way(self, scene: Scene) -> None:
        dead, connection, other = await scene.worker(lease=1, silent_for=50), await scene.connection(), await scene.connection()
        transaction = connection.transaction()
        await transaction.start()
        assert await granted(connection, dead, [1], slots(1)) == [1]
        declaring = asyncio.create_task(
            other.execute("update flowdsl.workers set gone = true where id = (select id from flowdsl.workers where id = $1 for update)", dead)
        )
        await scene.waits(other)
        await transaction.commit()
        await declaring
        assert await granted(scene.watcher, await scene.worker(), [1], slots(1)) == [1]

    async def test_a_connection_that_dies_before_the_commit_has_taken_nothing(self, scene: Scene) -> None:
        worker, connection = await scene.worker(), await scene.connection()
        await connection.transaction().start()
        assert await granted(connection, worker, [1], slots(1), quota(1)) == [1]
        connection.terminate()
        assert await granted(scene.watcher, worker, [2], slots(1), quota(1)) == [2]

    async def test_a_lower_limit_takes_no_slot_away_and_gives_none(self, scene: Scene) -> None:
        old = await scene.worker()
        await granted(scene.watcher, old, [1, 2, 3], slots(3))
        new = await scene.worker()
        assert await granted(scene.watcher, new, [1], slots(1)) == []
        await draw(scene.watcher, old, back=[1, 2])
        assert await granted(scene.watcher, new, [1], slots(1)) == []
        await draw(scene.watcher, old, back=[3])
        assert await granted(scene.watcher, new, [1], slots(1)) == [1]

    async def test_crossing_draws_never_deadlock(self, scene: Scene) -> None:
        a, b = RateLimit("a", 1000, "1s"), Concurrency("b", 1000)

        async def drawer(worker: str, under: Sequence[Budget]) -> None:
            connection = await scene.connection()
            for n in range(60):
                await draw(connection, worker, [(n, under)], back=[n - 1])
                if n % 10 == 0:
                    await connection.execute("select flowdsl.rest(array['a'], array[''], array[0.0001]), flowdsl.tidy_budgets()")

        await asyncio.gather(*[drawer(await scene.worker(), under) for under in ((a, b), (b, a), (b,), (a,))])


class TestTurns:
    async def test_one_worker_does_not_keep_another_waiting_for_ever(self, scene: Scene) -> None:
        greedy, patient = await scene.worker(), await scene.worker()
        assert await granted(scene.watcher, greedy, range(50), slots(1)) == [0]
        assert await granted(scene.watcher, patient, range(50), slots(1)) == []
        assert await granted(scene.watcher, greedy, range(1, 50), slots(1), back=[0]) == [], "it is the other's turn"
        assert await granted(scene.watcher, patient, range(50), slots(1)) == [0]

    async def test_slots_are_dealt_evenly(self, scene: Scene) -> None:
        workers = [await scene.worker() for _ in range(3)]
        got = Counter[str]()
        for _ in range(3):
            for worker in workers:
                got[worker] += len(await granted(scene.watcher, worker, range(100 * got[worker], 100 * got[worker] + 90), slots(9)))
        assert sum(got.values()) == 9
        for _ in range(12):  # each gives one back and asks again
            for worker in workers:
                held = await tickets(scene, worker)
                await granted(scene.watcher, worker, range(5000 + max(held, default=0), 5090 + max(held, default=0)), slots(9), back=held[:1])
        shares = [len(await tickets(scene, worker)) for worker in workers]
        assert sum(shares) <= 9
        assert max(shares) - min(shares) <= 1

    async def test_a_rate_is_dealt_in_turn(self, scene: Scene) -> None:
        one, other = await scene.worker(), await scene.worker()
        await granted(scene.watcher, one, range(20), quota(10, DAY))
        got = Counter[str]()
        for _ in range(20):
            await ago(scene, DAY / 10)
            await scene.watcher.execute("update flowdsl.demands set until = clock_timestamp() + interval '1 day'")
            for worker in (one, other):  # the first always asks first
                got[worker] += len(await granted(scene.watcher, worker, range(20), quota(10, DAY)))
        assert sum(got.values()) == 20
        assert min(got.values()) >= 9

    async def test_a_demand_that_is_not_renewed_is_forgotten(self, scene: Scene) -> None:
        one, other = await scene.worker(), await scene.worker()
        await granted(scene.watcher, one, [1], slots(1))
        await granted(scene.watcher, other, [1], slots(1))
        await scene.watcher.execute("update flowdsl.demands set until = clock_timestamp() - interval '1 s' where worker = $1", other)
        assert await granted(scene.watcher, one, [2], slots(1), back=[1]) == [2]

    async def test_what_is_not_used_for_a_day_is_tidied_away(self, scene: Scene) -> None:
        worker = await scene.worker()
        await granted(scene.watcher, worker, [1], slots(1), quota(10, DAY))
        await granted(scene.watcher, worker, [2], RateLimit("in debt", 1, 30 * DAY))
        await ago(scene, 2 * DAY)
        await scene.watcher.execute("select flowdsl.tidy_budgets()")
        assert {row["name"] for row in await scene.watcher.fetch("select name from flowdsl.budgets")} == {"slots", "in debt"}, (
            "held, and not paid off"
        )
        await draw(scene.watcher, worker, back=[1])
        await scene.watcher.execute("update flowdsl.workers set gone = true")
        await scene.watcher.execute("select flowdsl.tidy_budgets()")
        assert {row["name"] for row in await scene.watcher.fetch("select name from flowdsl.budgets")} == {"in debt"}
        assert await scene.count("demands") == 0


# Workers

over = signal("over", int)
at_once = Concurrency("at once", 3)
one_by_one = Concurrency("one by one", 1)


@frozen
class Busy:
    retry_after: timedelta


@activity("budgets.held", budget=(at_once,), timeout="5m")
def held(name: str) -> Result[str, Never]: ...


@activity("budgets.counted", budget=(RateLimit("counted", 20, "365d"),), timeout="5m")
def counted(name: str) -> Result[str, Never]: ...


@activity("budgets.in_line", budget=(one_by_one,), timeout="5m")
def in_line(name: str) -> Result[str, Never]: ...


@activity("budgets.hasty", budget=(one_by_one,), timeout="1s", retry=Retry.constant("10ms", attempts=1))
def hasty(name: str) -> Result[str, TimedOut]: ...


@activity("budgets.limited", budget=(one_by_one,), schedule_to_close="200ms", timeout="5m")
def limited(name: str) -> Result[str, TimedOut]: ...


@activity("budgets.refused", budget=(RateLimit("refused", 1000, "1s"),), retry=Retry.constant("10ms", attempts=1))
def refused(name: str) -> Result[str, Busy]: ...


@activity("budgets.threaded", budget=(at_once,), timeout="5m")
def threaded(name: str) -> Result[str, Never]: ...


@activity("budgets.apart", budget=(Concurrency("apart", 1, each="tenant"),), timeout="5m")
def apart(name: str) -> Result[str, Never]: ...


ACTIVITIES: list[Any] = [held, counted, in_line, hasty, limited, refused, apart]


@workflow("budgets.holding")
def holding(name: str) -> Steps[str, Never]:
    return (yield from held(name))


@workflow("budgets.many")
def many(name: str) -> Steps[list[str], Never]:
    return (yield from each([f"{name}{n}" for n in range(10)], held, concurrency=10))


@workflow("budgets.counting")
def counting(name: str) -> Steps[str, Never]:
    return (yield from counted(name))


@workflow("budgets.waiting")
def waiting(name: str) -> Steps[str, Never]:
    return (yield from in_line(name))


@workflow("budgets.urgently", priority=5)
def urgently(name: str) -> Steps[str, Never]:
    return (yield from in_line(name))


@workflow("budgets.hastily")
def hastily(name: str) -> Steps[str, TimedOut]:
    return (yield from hasty(name))


@workflow("budgets.limiting")
def limiting(name: str) -> Steps[str, TimedOut]:
    return (yield from limited(name))


@workflow("budgets.refusing")
def refusing(name: str) -> Steps[str, Busy]:
    return (yield from refused(name))


@workflow("budgets.racing")
def racing(name: str) -> Steps[str, Never]:
    won = yield from race(in_line(name), over.receive().map(lambda _: "time"))
    return won


@workflow("budgets.threading")
def threading_(name: str) -> Steps[str, Never]:
    return (yield from threaded(name))


@workflow("budgets.parting")
def parting(name: str) -> Steps[str, Never]:
    return (yield from apart(name))


WORKFLOWS: list[Any] = [holding, many, counting, waiting, urgently, hastily, limiting, refusing, racing, threading_, parting]


class House:
    """Workers in one process, over one database; activities note when they begin, and wait at their gate if they have one."""

    def __init__(self, dsn: str, watcher: Any) -> None:
        self.dsn, self.watcher = dsn, watcher
        self.begun: list[str] = []
        self.running, self.most = 0, 0
        self.gates: dict[str, asyncio.Event] = {}
        self.scripts: dict[str, Any] = {}
        bindings = [bind(one, self._work) for one in ACTIVITIES] + [bind(threaded, self._threaded)]
        self.deployment = Deployment(WORKFLOWS, bindings)
        self.stores: list[Store] = []

    async def _work(self, name: str) -> Any:
        self.begun.append(name)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if name in self.gates:
                await self.gates[name].wait()
            else:
                await asyncio.sleep(0.002)
            return self.scripts.get(name, Success)(name)
        finally:
            self.running -= 1

    def _threaded(self, name: str) -> Any:
        self.begun.append(name)
        return Success(name)

    def gate(self, *names: str) -> None:
        for name in names:
            self.gates[name] = asyncio.Event()

    async def worker(self, dsn: str | None = None, **tuning: Any) -> Worker:
        from attrs import evolve

        store = await Store.open(dsn or self.dsn)
        self.stores.append(store)
        worker = Worker(self.deployment, store, evolve(BRISK, **tuning))
        await worker.begin()
        return worker

    async def start(self, worker: Worker, what: Any, *names: str, tenant: str = "default") -> list[str]:
        ids = [new_id() for _ in names]
        await worker.store.start(
            [NewStart(id, tenant, what.name, 1, "", None, "join", f'"{name}"'.encode()) for id, name in zip(ids, names, strict=True)]
        )
        worker.kick()
        return ids

    async def began(self, *names: str) -> None:
        await eventually(lambda: set(names) <= set(self.begun), f"{names} began; {self.begun} did")

    async def queued(self, worker: Worker, count: int) -> None:
        await eventually(lambda: len(worker.budgets) == count, f"{count} wait; {len(worker.budgets)} do")

    async def no_slots(self) -> None:
        async def none() -> bool:
            return int(await self.watcher.fetchval("select count(*) from flowdsl.slots")) == 0

        await eventually(none, "no slot is held")


@pytest.fixture
async def house(database: str) -> AsyncIterator[House]:
    watcher = await asyncpg.connect(database)
    house = House(database, watcher)
    yield house
    for gate in house.gates.values():
        gate.set()
    watcher.terminate()
    for store in house.stores:
        await store.close()


class TestWorkers:
    async def test_no_more_at_a_time_than_the_limit_over_all_workers(self, house: House) -> None:
        workers = [await house.worker() for _ in range(3)]
        ids = [(worker, id) for worker in workers for id in await house.start(worker, many, "a", "b", "c")]
        for worker, id in ids:
            assert isinstance(await asyncio.wait_for(worker.wait(id), 60), Success)
        assert len(house.begun) == 90
        assert house.most == 3, "as many as are allowed, and never more"
        await house.no_slots()
        for worker in workers:
            await worker.stop()

    async def test_no_more_calls_than_the_burst_over_all_workers(self, house: House) -> None:
        workers = [await house.worker() for _ in range(4)]
        for worker in workers:
            await house.start(worker, counting, *(f"{worker.id}{n}" for n in range(10)))

        async def twenty() -> bool:
            return len(house.begun) >= 20

        await eventually(twenty, "the burst began")

        async def all_claimed() -> bool:
            return sum(len(worker.budgets) for worker in workers) == 20

        await eventually(all_claimed, "the others wait")
        before = sum(worker.budgets.draws for worker in workers)
        await house.watcher.execute("update flowdsl.budgets set at = at - interval '36500 days' / 400")  # 18.25 days a call: five more
        await eventually(lambda: len(house.begun) >= 25, "five more")
        assert len(house.begun) == 25
        for worker in workers:
            await worker.stop()
        assert sum(worker.budgets.draws for worker in workers) < before + 400
        assert len(house.begun) == 25, "and a stop waits for none of them"

    async def test_in_order_of_priority_then_tenant_by_tenant_then_as_they_came(self, house: House) -> None:
        house.gate("first")
        worker = await house.worker()
        await house.start(worker, waiting, "first")
        await house.began("first")
        for number in range(3):
            await house.start(worker, waiting, f"x{number}", tenant="x")
            await house.queued(worker, number + 1)
        await house.start(worker, waiting, "y0", tenant="y")
        await house.queued(worker, 4)
        await house.start(worker, urgently, "urgent", tenant="x")
        await house.queued(worker, 5)
        house.gates["first"].set()
        await house.began("x2")
        assert house.begun == ["first", "urgent", "y0", "x0", "x1", "x2"], "x was served last when its urgent one was"
        await worker.stop()

    async def test_its_time_begins_when_it_begins(self, house: House) -> None:
        house.gate("first", "hasty")
        house.gates["hasty"].set()  # once it has begun it takes no time
        worker = await house.worker()
        await house.start(worker, waiting, "first")
        await house.began("first")
        (id,) = await house.start(worker, hastily, "hasty")
        await house.queued(worker, 1)
        await asyncio.sleep(1.1)  # longer than its timeout
        house.gates["first"].set()
        assert await worker.wait(id) == Success("hasty")
        await worker.stop()

    async def test_its_time_for_all_attempts_does_not_wait(self, house: House) -> None:
        house.gate("first")
        worker = await house.worker()
        await house.start(worker, waiting, "first")
        await house.began("first")
        (id,) = await house.start(worker, limiting, "late")
        assert isinstance(await worker.wait(id), Failure)
        assert house.begun == ["first"]
        house.gates["first"].set()
        await house.no_slots()
        await worker.stop()

    async def test_who_lost_a_race_or_is_cancelled_waits_no_longer(self, house: House) -> None:
        house.gate("first")
        worker = await house.worker()
        await house.start(worker, waiting, "first")
        await house.began("first")
        (lost,) = await house.start(worker, racing, "loser")
        (cancelled,) = await house.start(worker, waiting, "cancelled")
        await house.queued(worker, 2)
        await worker.store.send("default", lost, "signal", "over", b"1", new_id())
        assert await worker.wait(lost) == Success("time")
        await worker.store.send("default", cancelled, "cancel", "", b'"asked to"', new_id())
        assert isinstance(await worker.wait(cancelled), Cancelled)
        await house.queued(worker, 0)
        (after,) = await house.start(worker, waiting, "after")
        house.gates["first"].set()
        assert await worker.wait(after) == Success("after")
        assert house.begun == ["first", "after"]
        await house.no_slots()
        await worker.stop()

    async def test_who_runs_and_is_cancelled_gives_its_slot_back(self, house: House) -> None:
        house.gate("first")
        worker = await house.worker()
        (first,) = await house.start(worker, waiting, "first")
        await house.began("first")
        (second,) = await house.start(worker, waiting, "second")
        await house.queued(worker, 1)
        await worker.store.send("default", first, "cancel", "", b'"asked to"', new_id())
        assert await worker.wait(second) == Success("second")
        await worker.stop()

    async def test_what_raises_gives_its_slot_back(self, house: House) -> None:
        def broken(_: str) -> Any:
            raise RuntimeError("on purpose")

        house.scripts["broken"] = broken
        worker = await house.worker()
        (broken_one,) = await house.start(worker, hastily, "broken")
        assert isinstance(await worker.wait(broken_one), Defect)
        (id,) = await house.start(worker, waiting, "next")
        assert await worker.wait(id) == Success("next")
        await house.no_slots()
        await worker.stop()

    async def test_a_plain_function_waits_without_a_thread(self, house: House) -> None:
        house.gate("a", "b", "c")
        worker = await house.worker(threads=1)
        await house.start(worker, holding, "a", "b", "c")
        await house.began("a", "b", "c")
        ids = await house.start(worker, threading_, "d", "e")
        await house.queued(worker, 2)
        house.gates["a"].set()
        assert [await worker.wait(id) for id in ids] == [Success("d"), Success("e")]
        await worker.stop()

    async def test_a_stop_does_not_wait_for_who_waits(self, house: House) -> None:
        house.gate("first")
        worker = await house.worker(grace=30.0)
        (first,) = await house.start(worker, waiting, "first")
        await house.began("first")
        ids = await house.start(worker, waiting, "a", "b")
        await house.queued(worker, 2)
        stopping = asyncio.create_task(worker.stop())
        await eventually(lambda: not [id for id in ids if id in worker.residents], "those who wait are let go")
        assert house.begun == ["first"]
        house.gates["first"].set()
        await stopping
        other = await house.worker()
        assert [await other.wait(id) for id in [first, *ids]] == [Success("first"), Success("a"), Success("b")]
        assert Counter(house.begun) == {"first": 1, "a": 1, "b": 1}
        await other.stop()

    async def test_each_tenant_has_its_own(self, house: House) -> None:
        house.gate("x0", "x1", "y0", "y1")
        worker = await house.worker()
        await house.start(worker, parting, "x0", "x1", tenant="x")
        await house.start(worker, parting, "y0", "y1", tenant="y")
        await eventually(lambda: house.running == 2, "one of each runs")
        await house.queued(worker, 2)
        assert sorted(name[0] for name in house.begun) == ["x", "y"]
        house.gates[next(name for name in house.begun if name[0] == "y")].set()
        await house.began("y0", "y1")
        assert Counter(name[0] for name in house.begun) == {"x": 1, "y": 2}
        await worker.stop()

    async def test_those_who_wait_for_long_leave_room_for_others(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(drawing, "SHORTEST_OFF", timedelta(milliseconds=200))
        monkeypatch.setattr(drawing, "NEAR", 10)
        house.gate("first")
        worker = await house.worker(capacity=40)
        await house.start(worker, waiting, "first")
        await house.began("first")
        names = [f"w{n}" for n in range(100)]
        ids = await house.start(worker, waiting, *names)
        await eventually(lambda: len(worker.budgets) >= 10, "they wait")
        (other,) = await house.start(worker, counting, "other")
        assert await asyncio.wait_for(worker.wait(other), 60) == Success("other")
        assert house.begun == ["first", "other"]
        (told,) = await house.watcher.fetch(
            "select count(*) as n from flowdsl.executions where status = 'suspended' and wake is not null and owner is null"
        )
        house.gates["first"].set()
        for id in ids:
            assert isinstance(await asyncio.wait_for(worker.wait(id), 60), Success)
        assert sorted(house.begun) == sorted(["first", "other", *names]), "each once"
        assert house.most <= 2
        assert told["n"] > 0
        assert await house.watcher.fetchval("select count(*) from flowdsl.journal where kind = 5") == 0, "none counts as cut short"
        await worker.stop()

    async def test_mail_brings_back_who_was_put_off(self, house: House) -> None:
        house.gate("first")
        worker = await house.worker(poll=600.0, look=600.0, hints=False)  # else it might see the mail beforehand
        await house.start(worker, waiting, "first")
        await house.began("first")
        (id,) = await house.start(worker, waiting, "second")
        await house.queued(worker, 1)
        await house.watcher.execute(
            "update flowdsl.executions set mail = mail + 1 where id = $1", id
        )  # mail that it has not seen: it is not suspended
        assert worker.residents[id].put_off(worker.upper() + timedelta(hours=1))
        await house.queued(worker, 0)
        await house.queued(worker, 1)
        house.gates["first"].set()
        assert await worker.wait(id) == Success("second")
        await worker.stop()

    @pytest.mark.parametrize(
        ("answer", "exit"),
        [(Failure(Busy(timedelta(minutes=10))), Failure(Busy(timedelta(minutes=10)))), (RetryAfter("10m", "busy"), Defect(ANY, ANY))],
        ids=["returned", "raised"],
    )
    async def test_if_one_is_told_to_wait_all_do(self, house: House, answer: Any, exit: Any) -> None:
        def busy(_: str) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        house.scripts["told"] = busy
        one, other = await house.worker(), await house.worker()
        (told,) = await house.start(one, refusing, "told")
        assert await one.wait(told) == exit

        async def rests() -> bool:
            return bool(await house.watcher.fetchval("select rests_until > clock_timestamp() + interval '5 min' from flowdsl.budgets"))

        await eventually(rests, "it rests")
        (id,) = await house.start(other, refusing, "later")
        await eventually(lambda: len(one.budgets) + len(other.budgets) == 1, "it waits")
        await house.watcher.execute("update flowdsl.budgets set rests_until = '-infinity'")
        assert await other.wait(id) == Success("later")
        assert house.begun == ["told", "later"]
        for worker in (one, other):
            await worker.stop()

    async def test_nothing_begins_while_the_lease_may_be_over(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """The answer of a draw comes late: what it granted is given back, and drawn again once the lease is certain."""
        worker = await house.worker()

        class Drawer:
            id, fit, crowded, upper = worker.id, True, False, worker.upper

        drawer = Drawer()
        monkeypatch.setattr(worker.budgets, "_worker", drawer)
        draw = worker.budgets._draw

        async def late(asked: Any, back: Any) -> None:
            if asked and worker.budgets.draws == 0:
                fetchrow = worker.budgets._connection.fetchrow

                class Connection:
                    async def fetchrow(self, *arguments: Any, **options: Any) -> Any:
                        answer = await fetchrow(*arguments, **options)
                        drawer.fit = False
                        return answer

                kept, worker.budgets._connection = worker.budgets._connection, Connection()
                await draw(asked, back)
                worker.budgets._connection = kept
            else:
                await draw(asked, back)

        monkeypatch.setattr(worker.budgets, "_draw", late)
        (id,) = await house.start(worker, waiting, "late")
        await eventually(lambda: not drawer.fit, "the answer came")
        assert (house.begun, len(worker.budgets)) == ([], 1)
        drawer.fit = True
        assert await worker.wait(id) == Success("late")
        assert house.begun == ["late"]
        await house.no_slots()
        await worker.stop()

    async def test_it_needs_no_connection_that_others_hold(self, house: House) -> None:
        """B16: every connection of the pools is taken; what draws and what records have their own."""
        worker = await house.worker()
        (id,) = await house.start(worker, waiting, "one")
        assert await worker.wait(id) == Success("one")
        pool = worker._transactions
        taken = [await pool.acquire() for _ in range(worker.tuning.transactions)]
        (id,) = await house.start(worker, waiting, "two")
        assert await worker.wait(id) == Success("two")
        for connection in taken:
            await pool.release(connection)
        await worker.stop()


# What dies in between


def draws(wire: Wire, sent: bytes) -> bool:
    return b"flowdsl.draw(" in wire.said or b"flowdsl.draw(" in sent


class TestFaults:
    async def test_a_draw_whose_answer_is_lost_leaks_no_slot(self, house: House) -> None:
        async with proxied(house.dsn) as proxy:
            worker = await house.worker(proxy.dsn)
            (id,) = await house.start(worker, waiting, "before")
            assert await worker.wait(id) == Success("before")
            for number in range(3):
                proxy.swallow_once(draws)
                before = proxy.swallowed
                (id,) = await house.start(worker, waiting, f"lost{number}")
                assert await asyncio.wait_for(worker.wait(id), 60) == Success(f"lost{number}")
                await eventually(lambda before=before: proxy.swallowed > before, "an answer was lost")
            await house.no_slots()
            assert Counter(house.begun) == {"before": 1, "lost0": 1, "lost1": 1, "lost2": 1}
            await worker.stop()

    async def test_connections_that_are_cut_all_the_time_leak_no_slot(self, house: House) -> None:
        workers = [await house.worker() for _ in range(2)]
        ids = [(worker, id) for worker in workers for id in await house.start(worker, many, "a", "b", "c")]
        ended = asyncio.gather(*(worker.wait(id) for worker, id in ids))
        for _ in range(15):
            await house.watcher.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like '%flowdsl.draw(%'"
                " and pid <> pg_backend_pid()"
            )
            await asyncio.sleep(0.02)
        assert all(isinstance(exit, Success) for exit in await asyncio.wait_for(ended, 60))
        assert house.most <= 3
        await house.no_slots()
        for worker in workers:
            await worker.stop()

    async def test_what_a_lost_answer_gave_to_one_who_waits_no_longer_is_given_back(self, house: House, database: str) -> None:
        """The draw commits, its answer is lost, and meanwhile the attempt is withdrawn."""
        worker = await house.worker()
        (id,) = await house.start(worker, waiting, "one")
        await worker.wait(id)
        await house.watcher.execute("insert into flowdsl.slots (worker, ticket, name, scope) values ($1, 4711, 'one by one', '')", worker.id)
        worker.budgets._doubtful = True
        (id,) = await house.start(worker, waiting, "two")
        assert await asyncio.wait_for(worker.wait(id), 60) == Success("two")
        await house.no_slots()
        await worker.stop()

    async def test_a_worker_that_was_declared_gone_holds_nothing_and_begins_anew(self, house: House) -> None:
        house.gate("first")
        worker = await house.worker()
        (first,) = await house.start(worker, waiting, "first")
        await house.began("first")
        (second,) = await house.start(worker, waiting, "second")
        await house.queued(worker, 1)
        await house.watcher.execute("update flowdsl.workers set gone = true where id = (select id from flowdsl.workers for update)")
        house.gates["first"].set()
        assert [await asyncio.wait_for(worker.wait(id), 60) for id in (first, second)] == [Success("first"), Success("second")]
        await house.no_slots()
        await worker.stop()


KILLED = """
import asyncio, os
from typing import Never
from flowdsl import Concurrency, Deployment, Result, Steps, Success, activity, bind, workflow

@activity("killed.held", budget=(Concurrency("killed", 2),), timeout="120s")
def held(number: int) -> Result[int, Never]: ...

@workflow("killed.holding")
def holding(number: int) -> Steps[int, Never]:
    return (yield from held(number))

async def do_held(number: int) -> Result[int, Never]:
    with open(os.environ["LEDGER"], "a") as file:
        file.write(f"{os.getpid()} {number}\\n")
    while not os.path.exists(os.environ["LEDGER"] + ".open"):
        await asyncio.sleep(0.01)
    return Success(number)

deployment = Deployment(workflows=[holding], bindings=[bind(held, do_held)])
"""


async def test_the_slots_of_a_killed_process_are_free_once_its_lease_is_over(database: str, tmp_path: Path) -> None:
    (tmp_path / "killed_slots.py").write_text(KILLED)
    ledger = tmp_path / "ledger"
    environment = {**os.environ, "FLOWDSL_DATABASE_URL": database, "LEDGER": str(ledger)}
    command = [sys.executable, "-m", "flowdsl", "worker", "killed_slots:deployment", "--lease", "600"]

    def spawn() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)

    def calls() -> list[tuple[str, str]]:
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        return [(line.split()[0], line.split()[1]) for line in lines]

    def open_gate() -> None:
        Path(f"{ledger}.open").touch()

    watcher = await asyncpg.connect(database)
    processes = [spawn()]
    async with await Store.open(database) as store:
        await store.start([NewStart(new_id(), "default", "killed.holding", 1, "", None, "join", str(n).encode()) for n in range(6)])
        try:
            await eventually(lambda: len(calls()) == 2, "two began", 60)
            processes.append(spawn())

            async def waits() -> bool:
                return bool(await watcher.fetchval("select count(*) from flowdsl.workers where not gone") == 2)

            await eventually(waits, "the other is there", 60)
            processes[0].kill()
            processes[0].wait()
            await asyncio.sleep(0.5)
            assert len(calls()) == 2, "its lease is not over"
            await watcher.execute("update flowdsl.workers set beat = beat - interval '1 hour' where pid = $1", processes[0].pid)
            await eventually(lambda: len(calls()) == 4, "two more began once the dead one's lease was over", 60)
            assert await watcher.fetchval("select count(*) from flowdsl.workers where gone") == 1
            held = await watcher.fetchval("select count(*) from flowdsl.slots s join flowdsl.workers w on w.id = s.worker where not w.gone")
            assert held == 2
            open_gate()

            async def all_ended() -> bool:
                return bool(await watcher.fetchval("select count(*) from flowdsl.executions where status = 'succeeded'") == 6)

            await eventually(all_ended, "all ended", 60)
            assert sorted(Counter(number for _, number in calls()).values()) == [1, 1, 1, 1, 2, 2], "only what the dead one ran has run twice"
        finally:
            for process in processes:
                process.kill()
                process.wait()
    watcher.terminate()


DRAWER = """
import asyncio, os, sys
import asyncpg
sys.path.insert(0, os.environ["ROOT"])
from tests.postgres.test_budgets import draw
from flowdsl import RateLimit

async def main():
    connection = await asyncpg.connect(os.environ["DSN"])
    limit = RateLimit("shared", 50, os.environ["PER"])
    count = 0
    for n in range(int(os.environ["ROUNDS"])):
        count += len((await draw(connection, os.environ["WORKER"], [(t, [limit]) for t in range(3)]))["granted"])
    print(count)

asyncio.run(main())
"""


def drawer(folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "ROOT": str(Path(__file__).resolve().parents[2]), **environment}
    return subprocess.Popen([sys.executable, "drawer.py"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("per", "rounds"), [("365d", 60), ("2s", 300)])
async def test_four_processes_draw_the_burst_and_what_the_time_adds_and_no_more(scene: Scene, tmp_path: Path, per: str, rounds: int) -> None:
    """S25: the limiter's state and clock are Postgres's, so more processes, or their clocks, gain nothing."""
    (tmp_path / "drawer.py").write_text(DRAWER)
    began = await scene.watcher.fetchval("select clock_timestamp()")
    processes: list[subprocess.Popen[str]] = []
    for _ in range(4):
        processes.append(drawer(tmp_path, {"DSN": scene.dsn, "WORKER": await scene.worker(), "PER": per, "ROUNDS": str(rounds)}))
    counts = [int((await asyncio.to_thread(process.communicate))[0]) for process in processes]
    ended = await scene.watcher.fetchval("select clock_timestamp()")
    span = timedelta(seconds=2) if per == "2s" else 365 * DAY
    assert 50 <= sum(counts) <= 50 + (ended - began) * 50 // span
    assert await scene.count("slots") == 0
