"""Workers over a real Postgres: what ends how, what is called how often, and what a fault in between changes: nothing."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal as signals
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Never
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from attrs import frozen

from flowdsl import (
    Cancelled,
    Child,
    Defect,
    Deployment,
    Failure,
    Result,
    Retry,
    Steps,
    Success,
    TimedOut,
    Workflow,
    activity,
    all_,
    bind,
    each,
    iterate,
    race,
    signal,
    sleep,
    this_attempt,
    workflow,
)
from flowdsl.errors import Rejected, StoreError
from flowdsl.flow import Done, Next, Round, do
from flowdsl.journal import codecs_of
from flowdsl.postgres.embedded import start as start_server
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.worker import Worker, new_id
from tests.postgres.proxy import commits_a_transaction, proxied, records
from tests.postgres.scene import eventually
from tests.postgres.stage import Refused, Stage, act, mark, plain, short, stage_at

news = signal("news", int)


@workflow("one")
def one(name: str) -> Steps[str, Refused]:
    return (yield from act(name))


@workflow("steps")
def steps(names: str) -> Steps[str, Refused]:
    done = ""
    for name in names:
        done += yield from act(name)
    return done


@workflow("slow")
def slow(span: str) -> Steps[tuple[str, str], Refused]:
    before = yield from act("clock")
    yield from sleep(span)
    return before, (yield from act("clock"))


@workflow("marks")
def marks(names: str) -> Steps[list[str], Never]:
    return (yield from each(names, mark, concurrency=4))


@workflow("waits")
def waits(key: str) -> Steps[int, Never]:
    return (yield from news.receive(key or None))


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage
        await stage.check()


class TestRunning:
    async def test_one_after_the_other(self, stage: Stage) -> None:
        async with stage.worker(steps) as worker:
            id = await worker.start(steps, "abc")
            assert await worker.wait(id) == Success("abc")
        assert stage.names == ["a", "b", "c"]
        assert [entry.position for entry in await stage.journal(id)] == [0, 1, 2]
        assert {key for _, _, key in stage.calls} == {f"{id}/{n}" for n in range(3)}

    @pytest.mark.parametrize("flow", [steps, slow], ids=["steps", "suspended"])
    async def test_what_has_ended_leaves_nothing_to_the_cyclic_collector(self, stage: Stage, flow: Workflow[Any, Any, Any]) -> None:
        """Else it takes a tenth of a worker's time to look for what it left, when many are woken a quarter."""
        async with stage.worker(flow, warm=0) as worker:
            request = "abc" if flow is steps else "400ms"
            await worker.wait(await worker.start(flow, request))
            await asyncio.sleep(0.1)
            gc.collect()
            gc.disable()
            try:
                gc.set_debug(gc.DEBUG_SAVEALL)
                for _ in range(3):
                    await worker.wait(await worker.start(flow, request))
                await asyncio.sleep(0.1)
                gc.collect()
            finally:
                gc.set_debug(0)
                gc.enable()
                left = [type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("flowdsl")]
                gc.garbage.clear()
        assert left == []

    async def test_a_plain_function_in_a_thread(self, stage: Stage) -> None:
        @workflow("threaded")
        def threaded(name: str) -> Steps[str, Never]:
            return (yield from plain(name))

        async with stage.worker(threaded) as worker:
            assert await worker.wait(await worker.start(threaded, "a")) == Success("a")

    @pytest.mark.parametrize("span", ["30ms", "400ms"], ids=["kept in memory", "suspended"])
    async def test_a_timer_is_never_early_by_the_clock_of_postgres(self, stage: Stage, span: str) -> None:
        async def clock(_: str) -> Any:
            async with this_attempt().connection() as connection:
                return Success(str(await connection.fetchval("select extract(epoch from clock_timestamp())")))

        stage.scripts["clock"] = clock
        async with stage.worker(slow) as worker:
            exit = await worker.wait(await worker.start(slow, span))
        before, after = exit.unwrap()
        assert float(after) - float(before) >= float(span[:-2]) / 1000

    async def test_a_failure_stays_where_it_is(self, stage: Stage) -> None:
        stage.scripts["bad"] = lambda _: Failure(Refused("no"))
        stage.scripts["broken"] = lambda _: 1 / 0
        async with stage.worker(one) as worker:
            ids = [await worker.start(one, name) for name in ("bad", "broken", "a", "b")]
            exits = [await worker.wait(id) for id in ids]
        assert exits[0] == Failure(Refused("no"))
        assert isinstance(exits[1], Defect)
        assert "ZeroDivisionError" in exits[1].message
        assert exits[2:] == [Success("a"), Success("b")]
        assert stage.counts == {"bad": 3, "broken": 3, "a": 1, "b": 1}

    async def test_attempts_are_counted_over_restarts(self, stage: Stage) -> None:
        """A worker leaves in the delay between two attempts; the next one goes on counting."""
        leaving: list[Worker] = []

        async def until_it_leaves(_: str) -> Any:
            await eventually(lambda: len(stage.calls) == 3 or any(one._leaving for one in leaving[-1].residents.values()), "its worker leaves")
            return Failure(Refused("not yet"))

        stage.scripts["a"] = until_it_leaves

        @workflow("patient")
        def patient(name: str) -> Steps[str, Refused]:
            return (yield from act.using(retry=Retry.constant("100ms", attempts=3, on=(Refused,)))(name))

        ids: list[str] = []
        for attempts in (1, 2):
            async with stage.worker(patient, grace=60.0) as worker:
                leaving.append(worker)
                if not ids:
                    ids.append(await worker.start(patient, "a"))
                await eventually(lambda attempts=attempts: len(stage.calls) == attempts, "an attempt")  # type: ignore[misc]
            assert len(await stage.journal(ids[0])) == attempts
        async with stage.worker(patient) as worker:
            assert await worker.wait(ids[0]) == Failure(Refused("not yet"))
        assert [number for _, number, _ in stage.calls] == [1, 2, 3]

    async def test_a_key_starts_once(self, stage: Stage) -> None:
        @workflow("keyed", key="{name}", reuse="reject")
        def keyed(order: Order) -> Steps[str, Refused]:
            return (yield from act(order.name))

        async with stage.worker(keyed) as worker:
            found = await asyncio.gather(*(worker.start(keyed, Order("k")) for _ in range(5)), return_exceptions=True)
            (id,) = [one for one in found if isinstance(one, str)]
            assert all(isinstance(one, Rejected) and one.execution == id for one in found if one != id)
            assert await worker.wait(id) == Success("k")
        assert stage.counts == {"k": 1}

    async def test_a_loop_resumes_from_its_checkpoint(self, stage: Stage) -> None:
        @do
        def round(state: int) -> Steps[Round[int, int], Refused]:
            yield from act(f"round {state}")
            return Next(state + 1) if state < 9 else Done(state)

        @workflow("loop")
        def loop(request: int) -> Steps[int, Refused]:
            return (yield from iterate(0, round))

        stage.gate("round 7")
        async with stage.worker(loop, grace=0) as worker:
            id = await worker.start(loop, 0)
            await stage.at_gate("round 7")
        async with await Store.open(stage.dsn) as store:
            assert [entry.position for entry in (await store.load([id]))[id]] == [13]
        del stage.scripts["round 7"]
        async with stage.worker(loop) as worker:
            assert await worker.wait(id) == Success(9)
        assert stage.counts == {f"round {n}": 1 + (n == 7) for n in range(10)}


@frozen
class Order:
    name: str


class TestChildren:
    async def test_with_and_without_a_key(self, stage: Stage) -> None:
        @workflow("parent")
        def parent(request: int) -> Steps[list[str], Refused]:
            return (yield from all_(one.child("a"), one.child("b", key="k"), one.start("c").then(Child.join)).map(list))

        async with stage.workers(2, parent) as (worker, _):
            id = await worker.start(parent, 0)
            assert await worker.wait(id) == Success(["a", "b", "c"])
        rows = await stage.watcher.fetch("select key, parent, parent_step from flowdsl.executions where parent is not null order by parent_step")
        assert [(row["key"], str(row["parent"])) for row in rows] == [(None, id), ("k", id), (None, id)]

    async def test_a_hundred_at_once(self, stage: Stage) -> None:
        @workflow("many")
        def many(count: int) -> Steps[int, Refused]:
            return len((yield from each(range(count), lambda n: one.child(f"c{n}"), concurrency=100)))

        async with stage.workers(2, many) as (worker, _):
            assert await worker.wait(await worker.start(many, 100)) == Success(100)
        assert set(stage.counts.values()) == {1}

    async def test_failures_and_defects_of_a_child(self, stage: Stage) -> None:
        stage.scripts |= {"bad": lambda _: Failure(Refused("no")), "broken": lambda _: 1 / 0}

        @workflow("careful")
        def careful(request: int) -> Steps[tuple[Any, Any], Never]:
            return (yield from all_(one.child("bad").attempt().map(str), one.child("broken").isolate().attempt().map(str)))

        async with stage.worker(careful) as worker:
            bad, broken = (await worker.wait(await worker.start(careful, 0))).unwrap()
        assert "Refused(why='no')" in bad
        assert "Died" in broken

    async def test_the_same_handle_is_joined_twice(self, stage: Stage) -> None:
        @workflow("twice")
        def twice(request: int) -> Steps[str, Refused]:
            child = yield from one.start("a")
            other = yield from one.start("b")
            texts = []
            for handle in (child, child, other, other):
                texts.append((yield from handle.join()))
            return "".join(texts)

        async with stage.worker(twice) as worker:
            assert await worker.wait(await worker.start(twice, 0)) == Success("aabb")

    async def test_a_detached_child_may_be_joined(self, stage: Stage) -> None:
        @workflow("apart")
        def apart(request: int) -> Steps[str, Refused]:
            child = yield from one.start("a", detached=True)
            return (yield from child.join())

        stage.gate("a")
        async with stage.worker(apart, look=60) as worker:
            id = await worker.start(apart, 0)
            await stage.at_gate("a")
            await stage.becomes(id, "suspended")
            stage.open_gate("a")
            assert await worker.wait(id) == Success("a")

    async def test_a_detached_child_outlives_its_parent(self, stage: Stage) -> None:
        @workflow("leaves")
        def leaves(request: int) -> Steps[str, Never]:
            return (yield from one.start("a", detached=True)).id

        stage.gate("a")
        async with stage.worker(leaves) as worker:
            child = (await worker.wait(await worker.start(leaves, 0))).unwrap()
            await stage.at_gate("a")
            stage.open_gate("a")
            assert await worker.wait(child) == Success("a")

    async def test_a_child_that_was_started_in_the_last_turn_is_cancelled(self, stage: Stage) -> None:
        @workflow("careless")
        def careless(request: int) -> Steps[str, Never]:
            return (yield from waits.start("")).id

        async with stage.worker(careless) as worker:
            child = (await worker.wait(await worker.start(careless, 0))).unwrap()
            assert await worker.wait(child) == Cancelled("cancelled by its parent")

    async def test_somebody_elses_child_is_looked_for_again_and_again(self, stage: Stage) -> None:
        """Its end is told to its own parent only; who holds a handle from elsewhere must find out too."""

        @workflow("holder")
        def holder(request: int) -> Steps[Child[str, Refused], Never]:
            return (yield from one.start("a", detached=True))

        @workflow("grandparent")
        def grandparent(request: int) -> Steps[str, Refused]:
            handle = yield from holder.child(0)
            return (yield from handle.join())

        stage.gate("a")
        async with stage.worker(grandparent) as worker:
            id = await worker.start(grandparent, 0)
            await stage.at_gate("a")
            await stage.becomes(id, "suspended")
            stage.open_gate("a")
            assert await worker.wait(id) == Success("a")

    async def test_two_parents_of_one_key_share_a_child(self, stage: Stage) -> None:
        """The second joins the first one's child; both learn its end."""

        @workflow("left", key="{name}")
        def left(order: Order) -> Steps[str, Refused]:
            return (yield from one.child("a", key="shared"))

        @workflow("right", key="{name}")
        def right(order: Order) -> Steps[str, Refused]:
            return (yield from one.child("a", key="shared"))

        stage.gate("a")
        async with stage.worker(left, right) as worker:
            ids = [await worker.start(left, Order("k")), await worker.start(right, Order("k"))]
            await stage.at_gate("a")
            for id in ids:
                await stage.becomes(id, "suspended")
            stage.open_gate("a")
            assert [await worker.wait(id) for id in ids] == [Success("a"), Success("a")]
        assert stage.counts == {"a": 1}

    async def test_a_second_run_finds_the_children_of_the_first(self, stage: Stage) -> None:
        stage.scripts["b"] = lambda _: Failure(Refused("no"))

        @workflow("again", key="{name}", reuse="after_failure")
        def again(order: Order) -> Steps[str, Refused]:
            return (yield from one.child("a", key="first")) + (yield from one.child("b"))

        async with stage.worker(again) as worker:
            assert await worker.wait(await worker.start(again, Order("k"))) == Failure(Refused("no"))
            del stage.scripts["b"]
            assert await worker.wait(await worker.start(again, Order("k"))) == Success("ab")
        assert stage.counts["a"] == 1

    async def test_a_key_that_cannot_be_stored_needs_a_person(self, stage: Stage) -> None:
        @workflow("odd")
        def odd(key: str) -> Steps[str, Refused]:
            return (yield from one.child("a", key=key))

        async with stage.worker(odd) as worker:
            id, good = await asyncio.gather(worker.start(odd, "x\ud800"), worker.start(odd, "fine"))
            assert await worker.wait(good) == Success("a")
            assert "utf-8" in (await stage.becomes(id, "blocked"))["cause"]


class TestSignals:
    @pytest.mark.parametrize("key", ["", "order-7"])
    async def test_early_and_late(self, stage: Stage, key: str) -> None:
        async with stage.worker(waits) as worker:
            ids = [new_id(), new_id()]
            request = codecs_of(waits).request.encode(key)
            if key:
                assert await stage.signal(worker, key, "news", b"5") == "unmatched"
                await worker.store.start([NewStart(ids[0], "default", "waits", 1, "", None, "join", request)])
            else:
                await worker.store.start([NewStart(ids[0], "default", "waits", 1, "", None, "join", request)])
                assert await stage.signal(worker, ids[0], "news", b"5") == "sent"
            assert await worker.wait(ids[0]) == Success(5)
            await worker.store.start([NewStart(ids[1], "default", "waits", 1, "", None, "join", request)])
            await stage.becomes(ids[1], "suspended")
            assert await stage.signal(worker, key or ids[1], "news", b"6") == "sent"
            assert await worker.wait(ids[1]) == Success(6)

    async def test_many_at_once_are_kept_in_order(self, stage: Stage) -> None:
        @workflow("collects")
        def collects(count: int) -> Steps[list[int], Never]:
            seen = []
            for _ in range(count):
                seen.append((yield from news.receive()))
            return seen

        async with stage.workers(2, collects) as (worker, _):
            id = await worker.start(collects, 40)
            for n in range(40):
                await stage.signal(worker, id, "news", b"%d" % n)
                if n % 10 == 0:
                    await asyncio.sleep(0)
            assert await worker.wait(id) == Success(list(range(40)))

    async def test_from_flow_to_flow_by_id_and_by_key(self, stage: Stage) -> None:
        @workflow("teller")
        def teller(to: str) -> Steps[None, Never]:
            yield from news.send(to, 1)
            yield from news.send("order-8", 2)

        async with stage.worker(waits, teller) as worker:
            by_id, by_key = await worker.start(waits, ""), await worker.start(waits, "order-8")
            assert await worker.wait(await worker.start(teller, by_id)) == Success(None)
            assert [await worker.wait(by_id), await worker.wait(by_key)] == [Success(1), Success(2)]

    async def test_none_is_not_nothing(self, stage: Stage) -> None:
        empty = signal("empty", type(None))

        @workflow("takes")
        def takes(request: int) -> Steps[str, TimedOut]:
            got = yield from empty.receive().timeout("20s")
            return f"got {got}"

        async with stage.worker(takes) as worker:
            id = await worker.start(takes, 0)
            await stage.signal(worker, id, "empty", b"null")
            assert await worker.wait(id) == Success("got None")

    async def test_a_payload_of_another_type_is_a_defect(self, stage: Stage) -> None:
        async with stage.worker(waits) as worker:
            id = await worker.start(waits, "")
            await stage.signal(worker, id, "news", b'"five"')
            assert isinstance(await worker.wait(id), Defect)


class TestCancelling:
    async def test_it_reaches_activities_and_children(self, stage: Stage) -> None:
        stopped: list[str] = []

        async def stuck(name: str) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.append(name)

        stage.scripts |= {"a": stuck, "b": stuck, "c": stuck}

        @workflow("family")
        def family(request: int) -> Steps[Any, Refused]:
            return (yield from all_(act("a"), one.child("b"), one.child("c", key="k")).ensure(lambda exit: act("closing")))

        async with stage.workers(2, family) as (worker, _):
            id = await worker.start(family, 0)
            await eventually(lambda: len(stage.calls) == 3, "all three run")
            await stage.cancel(worker, id)
            await stage.cancel(worker, id)  # cancelling twice is once
            assert await worker.wait(id) == Cancelled("asked to")
            for row in await stage.watcher.fetch("select id from flowdsl.executions where parent = $1", id):
                assert await worker.wait(str(row["id"])) == Cancelled("cancelled by its parent")
            await eventually(lambda: sorted(stopped) == ["a", "b", "c"], "the implementations were told")
        assert stage.counts["closing"] == 1

    async def test_it_wakes_who_is_suspended(self, stage: Stage) -> None:
        async with stage.worker(waits) as worker:
            id = await worker.start(waits, "")
            await stage.becomes(id, "suspended")
            await stage.cancel(worker, id)
            assert await worker.wait(id) == Cancelled("asked to")

    async def test_losing_a_race_ends_the_child(self, stage: Stage) -> None:
        @workflow("racing")
        def racing(request: int) -> Steps[Any, Refused]:
            return (yield from race(waits.child(""), act("fast")))

        async with stage.worker(racing) as worker:
            id = await worker.start(racing, 0)
            assert await worker.wait(id) == Success("fast")
            (child,) = await stage.watcher.fetch("select id from flowdsl.executions where parent = $1", id)
            assert isinstance(await worker.wait(str(child["id"])), Cancelled)

    async def test_undos_run_last_first(self, stage: Stage) -> None:
        @workflow("saga")
        def undone(request: int) -> Steps[str, Refused]:
            for name in "abc":
                yield from act(name).compensate(lambda done: act(f"undo {done}"))
            return (yield from act("stuck"))

        stage.gate("stuck")
        async with stage.worker(undone) as worker:
            id = await worker.start(undone, 0)
            await stage.at_gate("stuck")
            await stage.cancel(worker, id)
            assert await worker.wait(id) == Cancelled("asked to")
        assert stage.names[4:] == ["undo c", "undo b", "undo a"]


class TestTransactions:
    async def test_writes_and_success_are_one(self, stage: Stage) -> None:
        stage.scripts["b"] = lambda _: 1 / 0
        async with stage.worker(marks) as worker:
            good, bad = await worker.start(marks, "acd"), await worker.start(marks, "b")
            assert await worker.wait(good) == Success(["a", "c", "d"])
            assert isinstance(await worker.wait(bad), Defect)
        assert await stage.marks() == ["a", "c", "d"]
        assert stage.counts["b"] == 4

    async def test_the_connection_dies_before_the_commit(self, stage: Stage) -> None:
        """After the entry was appended, inside COMMIT: nothing of it happened; the interruption is recorded and the attempt is made again."""
        await stage.watcher.execute(
            "create sequence commits;"  # no rollback takes a number back
            " create function die() returns trigger language plpgsql as $$ begin"
            "   if nextval('commits') <= 2 then perform pg_terminate_backend(pg_backend_pid()); end if; return null; end $$;"
            " create constraint trigger die after insert on marks deferrable initially deferred for each row execute function die()"
        )
        async with stage.worker(marks) as worker:
            id = await worker.start(marks, "a")
            assert await worker.wait(id) == Success(["a"])
        assert stage.counts == {"a": 3}, "it was tried again"
        assert await stage.marks() == ["a"]
        assert [entry.kind for entry in await stage.journal(id)].count(1) == 1

    async def test_a_commit_whose_reply_is_lost_is_not_done_again(self, stage: Stage) -> None:
        async with proxied(stage.dsn) as proxy, stage.worker(marks, dsn=proxy.dsn) as worker:
            proxy.swallow_once(commits_a_transaction)
            id = await worker.start(marks, "ab")
            assert await worker.wait(id) == Success(["a", "b"])
            assert proxy.swallowed == 1
        assert await stage.marks() == ["a", "b"]
        assert stage.counts == {"a": 1, "b": 1}

    async def test_a_lost_reply_while_the_store_is_away(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """The fate stays unknown for longer than a statement is repeated: nothing else may take that position meanwhile."""
        tries = 0

        async with proxied(stage.dsn) as proxy, stage.worker(marks, dsn=proxy.dsn) as worker:
            again = worker.store.again

            async def away(query: str, *arguments: Any) -> Any:
                nonlocal tries
                if proxy.swallowed and "flowdsl.append(" in query and tries < 3:
                    tries += 1
                    raise ConnectionRefusedError("away")
                return await again(query, *arguments)

            monkeypatch.setattr(worker.store, "again", away)
            proxy.swallow_once(commits_a_transaction)
            id = await worker.start(marks, "a")
            assert await worker.wait(id) == Success(["a"])
        assert tries == 3
        assert await stage.marks() == ["a"]
        assert stage.counts == {"a": 1}

    async def test_a_commit_that_postgres_refuses_is_a_failed_attempt(self, stage: Stage) -> None:
        """A constraint that is checked at the end: known not to have happened, counted, and given up by the policy."""
        await stage.watcher.execute(
            "alter table marks add constraint once unique (name) deferrable initially deferred; insert into marks values ('a', '')"
        )
        async with stage.worker(marks) as worker:
            id = await worker.start(marks, "a")
            exit = await worker.wait(id)
        assert isinstance(exit, Defect)
        assert "once" in exit.message
        assert [number for _, number, _ in stage.calls] == [1, 2, 3, 4]
        assert await stage.marks() == ["a"]

    async def test_a_twin_rolls_back(self, stage: Stage) -> None:
        """The execution was taken from a worker while its activity ran: its late success is nowhere, the other's is everywhere."""
        stage.gate("a")
        async with stage.workers(2, marks) as (first, second):
            id = await first.start(marks, "a")
            await stage.at_gate("a")
            late = stage.gates.pop("a")
            owner = next(one for one in (first, second) if id in one.residents)
            other = second if owner is first else first
            await stage.watcher.execute("update flowdsl.executions set owner = $2, epoch = epoch + 1 where id = $1", id, other.id)
            await stage.at_gate("a")
            late.set_result(Success("late"))
            await eventually(lambda: id not in owner.residents or owner.residents[id].epoch > 1, "the first lets go")
            stage.open_gate("a")
            assert await first.wait(id) == Success(["a"])
        assert await stage.marks() == ["a"]

    async def test_a_transaction_that_idles_too_long_is_ended(self, stage: Stage) -> None:
        """The lease bounds what a frozen client holds up; the activity sees an error, and is tried again."""
        waited: list[float] = [2.0]

        async def idle(name: str) -> Any:
            if waited:
                await asyncio.sleep(waited.pop())
            return Success(name)

        stage.scripts["a"] = idle
        async with stage.worker(marks, lease=1.0) as worker:
            id = await worker.start(marks, "a")
            assert await worker.wait(id) == Success(["a"])
        assert await stage.marks() == ["a"]
        assert stage.counts["a"] >= 2, "the second too where the machine is frozen for so long"

    async def test_more_of_them_than_connections(self, stage: Stage) -> None:
        async with stage.worker(marks, transactions=2) as worker:
            ids = [await worker.start(marks, "abcdef") for _ in range(5)]
            assert [await worker.wait(id) for id in ids] == [Success(list("abcdef"))] * 5
        assert len(await stage.marks()) == 30


class TestImplementations:
    async def test_one_that_takes_too_long(self, stage: Stage) -> None:
        @workflow("hasty")
        def hasty(name: str) -> Steps[str, TimedOut]:
            return (yield from short(name))

        async def stuck(_: str) -> Any:
            await asyncio.Event().wait()

        stage.scripts["a"] = stuck
        async with stage.worker(hasty) as worker:
            assert await worker.wait(await worker.start(hasty, "a")) == Failure(TimedOut("50ms"))
        assert stage.counts == {"a": 2}

    async def test_one_that_ignores_its_cancellation(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("flowdsl.replay.ABANDON", 0.1)
        over = asyncio.Event()

        @workflow("hasty")
        def hasty(name: str) -> Steps[str, TimedOut]:
            return (yield from short(name))

        async def stubborn(_: str) -> Any:
            while not over.is_set():
                try:
                    await over.wait()
                except asyncio.CancelledError:
                    continue
            return Success("late")

        stage.scripts["a"] = stubborn
        async with stage.worker(hasty) as worker:
            assert await worker.wait(await worker.start(hasty, "a")) == Failure(TimedOut("50ms"))
            over.set()

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (Failure(KeyError("x")), "KeyError"), (Success(object()), "object"), ("no result at all", "return Success"),
            (None, "return Success"),
        ],
        ids=["undeclared failure", "no value of ours", "no result", "None"],
    )  # fmt: skip
    async def test_one_that_answers_what_it_must_not(self, stage: Stage, answer: Any, said: str) -> None:
        stage.scripts["a"] = lambda _: answer
        async with stage.worker(one) as worker:
            exit = await worker.wait(await worker.start(one, "a"))
        assert isinstance(exit, Defect)
        assert said in exit.message

    async def test_a_body_that_raises(self, stage: Stage) -> None:
        @workflow("raises")
        def raises(request: int) -> Steps[int, Refused]:
            yield from act("a").compensate(lambda _: act("undo"))
            raise ValueError("out of here")

        async with stage.worker(raises) as worker:
            exit = await worker.wait(await worker.start(raises, 0))
        assert isinstance(exit, Defect)
        assert "out of here" in exit.message
        assert stage.names == ["a", "undo"]

    async def test_none_where_nothing_else_is_meant(self, stage: Stage) -> None:
        @activity("nothing")
        def nothing(request: int) -> Result[None, Never]: ...

        @workflow("gives nothing")
        def gives_nothing(request: int) -> Steps[None, Never]:
            return (yield from nothing(1))

        async def done(request: int) -> Any:
            stage.calls.append(("nothing", 1, ""))
            return Success(None)

        deployment = Deployment([gives_nothing], [bind(nothing, done)])
        stage.deployments.append(deployment)
        async with stage.worker(deployment=deployment) as worker:
            assert await worker.wait(await worker.start(gives_nothing, 1)) == Success(None)
        assert stage.counts == {"nothing": 1}


class TestDeployments:
    async def test_changed_code_blocks_with_the_difference_and_the_fixed_one_goes_on(self, stage: Stage) -> None:
        def version(*names: str) -> Any:
            @workflow("evolving")
            def evolving(request: int) -> Steps[str, Refused]:
                for name in names:
                    yield from act(name)
                got = yield from news.receive()
                return f"{got}"

            return evolving

        first, other = version("a", "b"), version("a", "changed")
        async with stage.worker(first) as worker:
            id = await worker.start(first, 0)
            await stage.becomes(id, "suspended")
        async with stage.worker(other) as worker:
            await stage.signal(worker, id, "news", b"7")
            row = await stage.becomes(id, "blocked")
            with pytest.raises(StoreError, match="is blocked"):
                await worker.wait(id)
        assert "other input" in row["cause"]
        assert "changed" not in stage.names
        async with stage.worker(first) as worker:
            await stage.watcher.execute("update flowdsl.executions set status = 'running', wake = now(), cause = null where id = $1", id)
            assert await worker.wait(id) == Success("7")
        assert stage.counts == {"a": 1, "b": 1}

    async def test_a_workflow_that_a_worker_does_not_know_stays_for_others(self, stage: Stage) -> None:
        async with stage.worker(one) as ignorant, await Store.open(stage.dsn) as store:
            id = new_id()
            await store.start([NewStart(id, "default", "steps", 1, "", None, "join", b'"ab"')])
            for _ in range(3):
                assert await ignorant.wait(await ignorant.start(one, "x")) == Success("x")
            row = await stage.row(id)
            assert (row["owner"], row["epoch"], row["status"]) == (None, 0, "running")
            async with stage.worker(one, steps) as worker:
                assert await worker.wait(id) == Success("ab")

    async def test_one_that_cannot_be_folded_does_not_hold_up_those_claimed_with_it(self, stage: Stage) -> None:
        async with await Store.open(stage.dsn) as store:
            ids = [new_id() for _ in range(5)]
            await store.start([NewStart(id, "default", "one", 1, "", None, "join", b"[1]" if id == ids[2] else b'"a"') for id in ids])
            await stage.watcher.execute(
                "insert into flowdsl.executions (id, tenant, workflow, version, request, epoch, wake) values ($1, 'default', 'one', 1, '\"a\"', 5, now())",
                broken := new_id(),
            )
            await stage.watcher.execute("insert into flowdsl.journal values ($1, 0, 5, 7, now(), '', 'cancel', '', 'no json', null)", broken)
            async with stage.worker(one) as worker:
                for id in ids[:2] + ids[3:]:
                    assert await worker.wait(id) == Success("a")
                assert "str" in (await stage.becomes(ids[2], "blocked"))["cause"]
                assert "JSON" in (await stage.becomes(broken, "blocked"))["cause"]


class TestLeaving:
    async def test_another_worker_goes_on(self, stage: Stage) -> None:
        stage.gate("b")
        async with stage.worker(steps, grace=0) as worker:
            id = await worker.start(steps, "abc")
            await stage.at_gate("b")
        row = await stage.row(id)
        assert (row["owner"], row["status"], row["deaths"]) == (None, "running", 0)
        del stage.scripts["b"]
        async with stage.worker(steps) as worker:
            assert await worker.wait(id) == Success("abc")
        assert stage.names == ["a", "b", "b", "c"]
        assert [number for _, number, _ in stage.calls] == [1, 1, 1, 1]  # a stop is no failed attempt

    async def test_what_runs_may_end_in_the_grace_period(self, stage: Stage) -> None:
        stage.gate("b")
        async with stage.worker(steps, grace=60.0) as worker:
            id = await worker.start(steps, "abc")
            await stage.at_gate("b")
            stopping = asyncio.create_task(worker.stop())
            await eventually(lambda: worker.residents[id]._leaving, "it is to begin nothing new")
            await asyncio.sleep(0.1)
            assert not stopping.done()
            stage.open_gate("b")
            await stopping
            assert [entry.step for entry in await stage.journal(id)] == ["0", "1"]
            assert stage.names == ["a", "b"]
            worker.stop = _nothing  # type: ignore[method-assign]
        async with stage.worker(steps) as worker:
            assert await worker.wait(id) == Success("abc")
        assert stage.names == ["a", "b", "c"]

    async def test_what_it_did_not_know_of_is_free_too(self, stage: Stage) -> None:
        """A claim whose answer was lost in the moment of leaving is no death."""
        async with stage.worker(one, poll=60) as worker:
            await worker.wait(await worker.start(one, "x"))
            id = await stage.claimed(worker, one, '"a"')
        row = await stage.row(id)
        assert row["owner"] is None
        async with stage.worker(one) as worker:
            assert await worker.wait(id) == Success("a")


async def _nothing() -> None: ...


class TestMemory:
    @pytest.mark.shows("S2.3")
    async def test_who_only_waits_is_not_in_memory(self, stage: Stage) -> None:
        async with stage.workers(2, waits, slow) as (worker, other):
            waiting = [await worker.start(waits, "") for _ in range(20)]
            sleeping = await worker.start(slow, "600ms")
            for id in waiting:
                await stage.becomes(id, "suspended")
            await eventually(lambda: not (worker.residents.keys() | other.residents.keys()) & set(waiting), "they are in nobody's memory")
            for n, id in enumerate(waiting):
                await stage.signal(worker, id, "news", b"%d" % n)
            assert [await worker.wait(id) for id in waiting] == [Success(n) for n in range(20)]
            assert (await worker.wait(sleeping)).unwrap() == ("clock", "clock")
            assert (await stage.row(sleeping))["epoch"] >= 2, "it was let go and came back"
            await eventually(lambda: not (worker.residents or other.residents), "nobody is in memory")

    async def test_who_waits_for_a_child_is_not_in_memory_either(self, stage: Stage) -> None:
        @workflow("parent")
        def parent(request: int) -> Steps[int, Never]:
            return (yield from waits.child(""))

        async with stage.worker(parent, look=60) as worker:
            id = await worker.start(parent, 0)
            assert (await stage.becomes(id, "suspended"))["wake"] is None
            (child,) = await stage.watcher.fetch("select id from flowdsl.executions where parent = $1", id)
            await stage.becomes(str(child["id"]), "suspended")
            await eventually(lambda: not worker.residents, "nobody is in memory")
            await stage.signal(worker, str(child["id"]), "news", b"3")
            assert await worker.wait(id) == Success(3)

    async def test_more_executions_than_room(self, stage: Stage) -> None:
        async with stage.worker(slow, capacity=3, claim=2) as worker:
            ids = [await worker.start(slow, "200ms") for _ in range(12)]
            assert {str(await worker.wait(id)) for id in ids} == {str(Success(("clock", "clock")))}


async def claimed_and_left(stage: Stage, id: str) -> bool:
    row = await stage.row(id)
    return row["epoch"] > 0 and row["owner"] is None


class TestOwnership:
    async def test_a_claim_whose_reply_was_lost_is_found(self, stage: Stage) -> None:
        async with stage.worker(one) as worker:
            id = await stage.claimed(worker, one, '"a"')
            assert await worker.wait(id) == Success("a")

    async def test_what_it_claims_while_it_becomes_spent_goes_to_another(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        asked, go = asyncio.Event(), asyncio.Event()
        async with stage.worker(one) as spent:
            claimed = spent.intake._claimed

            async def held(room: int) -> bool:
                asked.set()
                await go.wait()
                return await claimed(room)

            monkeypatch.setattr(spent.intake, "_claimed", held)
            spent.kick()
            await asked.wait()
            spent.leaked(spent.tuning.threads)
            id = new_id()
            await spent.store.start([NewStart(id, "default", "one", 1, "", None, "join", b'"a"')])
            go.set()
            await eventually(lambda: claimed_and_left(stage, id), "it was claimed, and let go of")
            assert stage.calls == []
            async with stage.worker(one) as fresh:
                assert await fresh.wait(id) == Success("a")

    async def test_what_was_thrown_away_in_its_first_epoch_goes_on_from_its_journal(self, stage: Stage) -> None:
        """Loaded anew by the same worker, it must not begin from nothing: what was recorded is not called again."""
        stage.gate("c")
        async with stage.worker(steps) as worker:
            id = await worker.start(steps, "abcd")
            await stage.at_gate("c")
            stage.gates.pop("c")
            worker.residents[id].drop()
            await stage.at_gate("c")
            stage.open_gate("c")
            assert await worker.wait(id) == Success("abcd")
        assert stage.counts == {"a": 1, "b": 1, "c": 2, "d": 1}
        assert (await stage.row(id))["epoch"] == 2

    async def test_a_late_turn_of_a_machine_that_was_thrown_away_is_not_taken_for_the_new_ones(self, stage: Stage) -> None:
        """Its commit hangs while the machine is thrown away; the one that replaces it must not believe that its own turn is recorded."""
        stage.gate("a")
        async with stage.worker(steps) as worker:
            id = await worker.start(steps, "ab")
            await stage.at_gate("a")
            blocker = await asyncpg.connect(stage.dsn)
            held = blocker.transaction()
            await held.start()
            await blocker.execute("insert into flowdsl.journal values ($1, 0, 0, 1, now(), '9', 'x', '', 'null', null)", id)  # the position is held
            stage.open_gate("a", Success("old"))
            await eventually(lambda: worker.committer.has(id), "the turn is under way")
            stage.scripts["a"] = lambda _: Success("new")
            worker.residents[id].drop()
            await asyncio.sleep(0.3)
            assert stage.counts == {"a": 1}  # not loaded anew while the fate of its turn is open
            await held.rollback()
            blocker.terminate()
            assert await worker.wait(id) == Success("oldb")

    async def test_declared_gone_it_begins_anew(self, stage: Stage) -> None:
        """Everything in its memory belongs to others; it takes it back under a new id. A store that is away just then is waited for."""
        stage.gate("b")
        async with proxied(stage.dsn) as proxy, stage.worker(steps, dsn=proxy.dsn, lease=1.5) as worker:
            id, before = await worker.start(steps, "abc"), worker.id
            await stage.at_gate("b")
            stage.gates.pop("b")
            refusals = 0

            async def refusing() -> Any:
                nonlocal refusals
                if refusals < 3:
                    refusals += 1
                    raise StoreError("away", "wait")
                return await connect()

            connect, worker._connect = worker._connect, refusing  # type: ignore[method-assign]
            del stage.scripts["b"]
            await stage.watcher.execute("update flowdsl.workers set gone = true where id = $1", before)
            assert await worker.wait(id) == Success("abc")
            assert worker.id != before
            assert refusals == 3
        assert stage.counts == {"a": 1, "b": 2, "c": 1}

    async def test_a_dead_workers_executions_are_taken_over(self, stage: Stage) -> None:
        stage.gate("b")
        async with AsyncExitStack() as stack:
            dying = await stack.enter_async_context(stage.worker(steps, lease=1.0))
            id = await dying.start(steps, "abc")
            await stage.at_gate("b")
            stage.gates.pop("b")
            dying.heart.stop()  # as if the process were frozen
            dying._stopping = True
            survivor = await stack.enter_async_context(stage.worker(steps, lease=1.0))
            await stage.at_gate("b")
            stage.open_gate("b")
            assert await survivor.wait(id) == Success("abc")
            dying.residents.clear()
        assert [(name, number) for name, number, _ in stage.calls] == [("a", 1), ("b", 1), ("b", 2), ("c", 1)]
        assert [entry.kind for entry in await stage.journal(id)] == [1, 5, 1, 1]

    async def test_a_suspect_that_lives_long_enough_is_acquitted(self, stage: Stage) -> None:
        """Interrupted attempts are no sign of life: a killer writes those too. Surviving for a lease is."""
        hold = asyncio.Event()

        async def held(name: str) -> Any:
            await hold.wait()
            return Success(name)

        stage.scripts["b"] = held
        await stage.watcher.execute("insert into flowdsl.workers (id, lease, host, pid, gone) values ($1, '1s', 'h', 1, true)", dead := new_id())
        async with await Store.open(stage.dsn) as store:
            ids = [new_id() for _ in range(2)]
            await store.start([NewStart(id, "default", "steps", 1, "", None, "join", b'"bc"') for id in ids])
        await stage.watcher.execute("update flowdsl.executions set owner = $1, epoch = 1, wake = null, deaths = 1", dead)
        async with stage.worker(steps, lease=1.0) as worker:
            await eventually(lambda: len(stage.calls) == 1, "the first is tried")
            (first,) = worker.residents
            row = await stage.row(first)
            assert (row["deaths"], len(await stage.journal(first))) == (2, 1)  # its interrupted attempt is recorded, and clears it of nothing
            await eventually(lambda: len(stage.calls) == 2, "the second is tried once the first is acquitted")
            assert (await stage.row(first))["deaths"] == 0
            hold.set()
            assert [await worker.wait(id) for id in ids] == [Success("bc")] * 2


async def mixed_load(stage: Stage, worker: Worker, count: int) -> list[str]:
    return [await worker.start(mixed, n) for n in range(count)]


@do
def counted(state: int) -> Steps[Round[int, int], Refused]:
    yield from act(f"round {state % 3}")
    yield from sleep("5ms")
    return Next(state + 1) if state % 3 < 2 else Done(state)


stubborn = mark.using(retry=Retry.constant("10ms", attempts=100))
"""Outlasts every connection that is cut under it."""


@workflow("mixed")
def mixed(n: int) -> Steps[tuple[str, str, int], Refused]:
    yield from act(f"first {n}")
    marked, child, loop = yield from all_(stubborn(f"m{n}"), one.child(f"child {n}", key=f"k{n}" if n % 2 else None), iterate(3 * n, counted))
    yield from sleep("20ms" if n % 3 else "150ms")
    yield from stubborn(f"last {n}")
    return marked, child, loop


def expected(count: int) -> list[Any]:
    return [Success((f"m{n}", f"child {n}", 3 * n + 2)) for n in range(count)]


class TestFaults:
    async def all_is_well(self, stage: Stage, count: int) -> None:
        assert await stage.marks() == sorted([f"m{n}" for n in range(count)] + [f"last {n}" for n in range(count)])
        recorded = await stage.watcher.fetchval("select count(*) from flowdsl.journal where kind = 1 and fingerprint like 'perform mark %'")
        assert recorded == 2 * count
        await stage.check()

    async def test_connections_die_again_and_again(self, stage: Stage) -> None:
        async with stage.workers(2, mixed) as (worker, _):
            ids = await mixed_load(stage, worker, 50)
            killed = 0

            async def nemesis() -> None:
                nonlocal killed
                clock = asyncio.get_running_loop().time
                for number in range(1000):
                    began = clock()
                    await worker.store.again("select 1")
                    await asyncio.sleep(max(0.06, clock() - began))  # a machine that is busy connects slowly: nobody is to be kept out for good
                    killed += await stage.kill_connections()
                    if number >= 25 and killed > 50:
                        break

            await asyncio.gather(nemesis(), *(worker.wait(id) for id in ids))
            assert [await worker.wait(id) for id in ids] == expected(50)
            assert killed > 50
        await self.all_is_well(stage, 50)

    async def test_replies_are_swallowed(self, stage: Stage) -> None:
        """One answer in ten to what records something, or commits a transaction, never arrives."""
        seed = random.randrange(2**32)
        print("seed", seed)
        draw, lost = random.Random(seed), list[bool]()

        def next_lost() -> bool:
            if not lost:  # of each ten, one
                lost.extend(draw.sample([True, *[False] * 9], 10))
            return lost.pop()

        async with proxied(stage.dsn) as proxy, stage.worker(mixed, dsn=proxy.dsn) as worker:
            proxy.swallows = lambda wire, sent: (records(wire, sent) or commits_a_transaction(wire, sent)) and next_lost()
            ids = await mixed_load(stage, worker, 30)
            assert [await worker.wait(id) for id in ids] == expected(30)
            assert proxy.swallowed > 5
        await self.all_is_well(stage, 30)

    async def test_one_lost_reply_of_a_commit_calls_nothing_twice(self, stage: Stage) -> None:
        async with proxied(stage.dsn) as proxy, stage.worker(steps, dsn=proxy.dsn) as worker:
            proxy.swallow_once(records)
            assert await worker.wait(await worker.start(steps, "abc")) == Success("abc")
            assert proxy.swallowed == 1
        assert stage.counts == {"a": 1, "b": 1, "c": 1}

    @pytest.mark.parametrize("how", ["stop", "kill"])
    async def test_postgres_restarts(self, tmp_path: Path, how: str) -> None:
        server = start_server(tmp_path, durable=how == "kill", settings={"listen_addresses": ""})
        try:
            await migrate(server.dsn)
            async with stage_at(server.dsn) as stage, stage.worker(mixed) as worker:
                ids = await mixed_load(stage, worker, 20)
                await eventually(lambda: len(stage.calls) > 30, "it is in full swing")
                if how == "kill":
                    immediate = int((server.data / "postmaster.pid").read_text().split()[0])
                    os.kill(immediate, signals.SIGQUIT)
                    await eventually(lambda: not (server.data / "postmaster.pid").exists(), "it is down")
                server.release()
                server = await asyncio.to_thread(start_server, tmp_path, durable=how == "kill")
                assert [await worker.wait(id) for id in ids] == expected(20)
                stage.watcher = await asyncpg.connect(server.dsn)
                await self.all_is_well(stage, 20)
        finally:
            server.release()


class TestStarting:
    async def test_a_database_without_our_tables_says_so(self, server: str) -> None:
        elsewhere = urlunsplit(urlsplit(server)._replace(path="/postgres"))
        async with await Store.open(elsewhere) as store:
            with pytest.raises(StoreError, match="flowdsl migrate"):
                await Worker(Stage("", None).deployment(one), store).begin()
