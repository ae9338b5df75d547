"""Interventions over Postgres: what people do to executions, with owners alive, dead, suspended; each audited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Never

import pytest

from flowdsl import Cancelled, Done, Failure, Next, Round, Steps, Success, do, each, iterate, signal, sleep, workflow
from flowdsl.errors import NotFound, StoreError
from flowdsl.journal import OPERATOR
from flowdsl.operating import CannotRetry
from flowdsl.postgres.compat import compared
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.store import Store
from tests.postgres.scene import eventually
from tests.postgres.stage import Refused, Stage, act, stage_at

news = signal("news", int)


@workflow("steps")
def steps(names: str) -> Steps[str, Refused]:
    done = ""
    for name in names:
        done += yield from act(name)
    return done


@workflow("cleaned")
def cleaned(name: str) -> Steps[str, Refused]:
    return (yield from sleep("1h").then(lambda _: act(name)).ensure(lambda _: act("cleaned")))


@workflow("undone")
def undone(name: str) -> Steps[str, Refused]:
    yield from act("first").compensate(lambda _: act("undo"))
    return (yield from act(name))


@workflow("parts")
def parts(names: str) -> Steps[list[str], Refused]:
    return (yield from each(names, lambda name: steps.child(name)))


@workflow("listens")
def listens(key: str) -> Steps[int, Never]:
    one = yield from news.receive()
    return one + (yield from news.receive(key))


@workflow("rounds")
def rounds(count: int) -> Steps[int, Refused]:
    @do
    def round(n: int) -> Steps[Round[int, int], Refused]:
        yield from act(str(n))
        return Done(n) if n == count else Next(n + 1)

    return (yield from iterate(0, round))


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage
        await stage.check()


async def refused(name: str) -> Any:
    return Failure(Refused(name))


def operator(stage: Stage, store: Store) -> Operator:
    return Operator(store, stage.deployments[-1], by="ann")


async def ended(stage: Stage, id: str) -> str:
    async def is_so() -> bool:
        return (await stage.row(id))["status"] in ("succeeded", "failed", "cancelled", "blocked")

    await eventually(is_so, f"{id} has ended")
    return str((await stage.row(id))["status"])


async def events(stage: Stage, id: str) -> list[str]:
    return [row["event"] for row in await stage.watcher.fetch("select event from flowdsl.audit where execution = $1 order by id", id)]


class TestRetry:
    async def test_the_failed_step_runs_again_and_what_succeeded_does_not(self, stage: Stage) -> None:
        stage.scripts["c"] = refused
        async with stage.worker(steps) as worker:
            id = await worker.start(steps, "abcd")
            assert await worker.wait(id) == Failure(Refused("c"))
            before = stage.names
            del stage.scripts["c"]
            done = await operator(stage, worker.store).retry(id, "the other side is back")
            assert done.executions == (id,) and {entry.step for entry in done.dropped} == {"2"}
            assert await worker.wait(id) == Success("abcd")
        assert stage.names[len(before) :] == ["c", "d"]
        assert len({key for name, _, key in stage.calls if name == "c"}) == 1
        assert "RETRIED" in await events(stage, id)
        with pytest.raises(CannotRetry, match="its state is succeeded"):
            async with await Store.open(stage.dsn) as store:
                await operator(stage, store).retry(id)

    async def test_children_first(self, stage: Stage) -> None:
        stage.scripts["b"] = refused
        async with stage.worker(parts) as worker:
            id = await worker.start(parts, "abc")
            assert await worker.wait(id) == Failure(Refused("b"))
            del stage.scripts["b"]
            done = await operator(stage, worker.store).retry(id)
            assert done.executions[-1] == id and len(done.executions) >= 2
            assert await worker.wait(id) == Success(["a", "b", "c"])
        assert stage.counts["a"] <= 2

    async def test_two_people_at_once(self, stage: Stage) -> None:
        stage.scripts["b"] = refused
        async with stage.worker(steps) as worker:
            id = await worker.start(steps, "ab")
            await worker.wait(id)
            del stage.scripts["b"]
            outcomes = await asyncio.gather(*(operator(stage, worker.store).retry(id) for _ in range(4)), return_exceptions=True)
            assert await worker.wait(id) == Success("ab")
        assert all(not isinstance(one, BaseException) or isinstance(one, CannotRetry) for one in outcomes)
        interventions = [entry for entry in await stage.journal(id) if entry.kind == OPERATOR]
        assert len(interventions) == sum(not isinstance(one, BaseException) for one in outcomes) == 1

    async def test_failing_undos_are_resumed(self, stage: Stage) -> None:
        stage.scripts |= {"bad": refused, "undo": refused}
        async with stage.worker(undone) as worker:
            id = await worker.start(undone, "bad")
            assert await ended(stage, id) == "blocked"
            assert "undos failed" in (await stage.row(id))["cause"]
            del stage.scripts["undo"]
            await operator(stage, worker.store).resume(id)
            assert await worker.wait(id) == Failure(Refused("bad"))
        assert stage.counts["first"] == 1

    async def test_undone_steps_run_again_under_other_keys(self, stage: Stage) -> None:
        stage.scripts["bad"] = refused
        async with stage.worker(undone) as worker:
            id = await worker.start(undone, "bad")
            await worker.wait(id)
            del stage.scripts["bad"]
            await operator(stage, worker.store).retry(id)
            assert await worker.wait(id) == Success("bad")
        assert len({key for name, _, key in stage.calls if name == "first"}) == 2

    async def test_behind_a_checkpoint_and_over_a_restart(self, stage: Stage) -> None:
        stage.scripts["7"] = refused
        async with stage.worker(rounds) as worker:
            id = await worker.start(rounds, 9)
            await worker.wait(id)
            del stage.scripts["7"]
            await operator(stage, worker.store).retry(id)
        async with stage.worker(rounds) as worker:
            assert await worker.wait(id) == Success(9)
        assert stage.counts["0"] == stage.counts["6"] == 1

    async def test_dead_letters_in_bulk(self, stage: Stage) -> None:
        stage.scripts["b"] = refused
        async with stage.worker(steps) as worker:
            ids = [await worker.start(steps, "ab") for _ in range(5)]
            for id in ids:
                await worker.wait(id)
            one = operator(stage, worker.store)
            assert {letter.id for letter in await one.dead()} == set(ids)
            assert await one.discard(ids[:1], "a test order") == ids[:1]
            del stage.scripts["b"]
            bulk = await one.retry_dead()
            assert set(bulk.done) == set(ids[1:]) and not bulk.refused
            for id in ids[1:]:
                assert await worker.wait(id) == Success("ab")
            assert await one.dead() == []


class TestRewindAndFork:
    async def test_mail_is_put_back(self, stage: Stage) -> None:
        async with stage.worker(listens) as worker:
            id = await worker.start(listens, "k")
            await stage.signal(worker, id, "news", b"5")
            await stage.signal(worker, "k", "news", b"6")
            assert await worker.wait(id) == Success(11)
            await operator(stage, worker.store).rewind(id, 0)
            assert await worker.wait(id) == Success(11)

    async def test_an_owned_execution_is_fenced(self, stage: Stage) -> None:
        """Its owner is in the middle of an activity: what that gives is recorded nowhere."""
        stage.gate("b")
        async with stage.worker(steps) as worker:
            id = await worker.start(steps, "abc")
            await stage.at_gate("b")
            old = stage.gates["b"]
            del stage.scripts["b"]
            await operator(stage, worker.store).rewind(id, "0")
            if not old.done():
                old.set_result(Success("late"))
            assert await worker.wait(id) == Success("abc")
        assert stage.counts["a"] == 2
        assert len({key for name, _, key in stage.calls if name == "a"}) == 2

    async def test_children_that_were_started_are_taken_back(self, stage: Stage) -> None:
        stage.gate("b")
        async with stage.worker(parts) as worker:
            id = await worker.start(parts, "ab")
            await stage.at_gate("b")
            del stage.scripts["b"]
            await operator(stage, worker.store).rewind(id, 0)
            assert await worker.wait(id) == Success(["a", "b"])
            rows = await stage.watcher.fetch("select status from flowdsl.executions where parent = $1", id)
            assert len(rows) == 4

    async def test_a_fork_with_another_exit(self, stage: Stage) -> None:
        async with stage.worker(steps) as worker:
            id = await worker.start(steps, "abc")
            assert await worker.wait(id) == Success("abc")
            one = operator(stage, worker.store)
            fork = await one.fork(id, "2", edits={"0": Success("X")}, paused=True)
            assert (await stage.row(fork))["status"] == "blocked"
            await one.resume(fork)
            assert await worker.wait(fork) == Success("Xbc")
            supposed = await one.what_if(id, {"1": Failure(Refused("b"))})
            assert supposed.exit == Failure(Refused("b"))
        assert stage.names == ["a", "b", "c", "c"]
        assert await events(stage, fork) == ["FORKED", "RESUMED"] or "FORKED" in await events(stage, fork)


class TestPauseAndTerminate:
    async def test_what_runs_may_end_and_nothing_new_begins(self, stage: Stage) -> None:
        stage.gate("a")
        async with stage.worker(steps) as worker:
            id = await worker.start(steps, "ab")
            await stage.at_gate("a")
            one = operator(stage, worker.store)
            await one.pause(id, "the audit")

            async def heard() -> bool:
                return worker.residents[id].activation.paused is not None

            await eventually(heard, "the owner has read it")
            stage.open_gate("a")
            row = await stage.becomes(id, "blocked")
            assert row["cause"] == "paused: the audit" and stage.names == ["a"]
            del stage.scripts["a"]
            await one.resume(id)
            assert await worker.wait(id) == Success("ab")
        assert stage.names == ["a", "b"]

    async def test_a_suspended_one_too(self, stage: Stage) -> None:
        async with stage.worker(cleaned) as worker:
            id = await worker.start(cleaned, "a")
            await stage.becomes(id, "suspended")
            await operator(stage, worker.store).pause(id)
            await stage.becomes(id, "blocked")
            with pytest.raises(StoreError, match="blocked"):
                await worker.wait(id)
            await operator(stage, worker.store).cancel(id, "enough")
            await operator(stage, worker.store).resume(id)
            assert await worker.wait(id) == Cancelled("enough")
        assert stage.names == ["cleaned"]

    @pytest.mark.parametrize("state", ["suspended", "running", "blocked"])
    async def test_terminate_runs_nothing_more(self, stage: Stage, state: str) -> None:
        @workflow("outer")
        def outer(name: str) -> Steps[str, Never]:
            outcome = yield from cleaned.child(name).isolate().attempt()
            return str(outcome)

        stage.gate("cleaned")
        async with stage.worker(outer) as worker:
            id = await worker.start(outer, "a")

            async def child_of() -> Any:
                return await stage.watcher.fetchval("select id::text from flowdsl.executions where parent = $1", id)

            await eventually(child_of, "the child is there")
            child = await child_of()
            await stage.becomes(child, "suspended")
            one = operator(stage, worker.store)
            if state == "running":
                await one.cancel(child)
                await stage.at_gate("cleaned")
            elif state == "blocked":
                await one.pause(child)
                await stage.becomes(child, "blocked")
            await one.terminate(child, "out of control")
            exit = await worker.wait(id)
            assert "terminated: out of control" in str(exit)
            with pytest.raises(StoreError, match="has ended already"):
                await one.terminate(child)
        assert (await stage.row(child))["status"] == "cancelled"
        assert "TERMINATED" in await events(stage, child)

    async def test_what_is_not_there(self, stage: Stage) -> None:
        async with stage.worker(steps) as worker:
            one = operator(stage, worker.store)
            nobody = "00000000-0000-7000-8000-000000000000"
            for call in (one.pause, one.cancel, one.terminate, one.resume, one.retry):
                with pytest.raises(NotFound):
                    await call(nobody)
            other = Operator(worker.store, stage.deployments[-1], tenant="other")
            id = await worker.start(steps, "a")
            await worker.wait(id)
            with pytest.raises(NotFound):
                await other.retry(id)


class TestRetention:
    async def test_whole_executions_or_nothing(self, stage: Stage) -> None:
        async with stage.worker(parts, cleaned) as worker:
            done = await worker.start(parts, "ab")
            await worker.wait(done)
            waiting = await worker.start(cleaned, "a")
            one = operator(stage, worker.store)
            assert await one.prune(timedelta(hours=1)) == 0
            assert await one.prune(timedelta(0), batch=1) == 3
            tables = ("executions", "journal", "mailbox")
            left = {table: await stage.watcher.fetchval(f"select count(*) from flowdsl.{table}") for table in tables}
            assert left == {"executions": 1, "journal": 0, "mailbox": 0}
            await one.terminate(waiting)


class TestCompat:
    async def test_fits_needs_a_marker_breaks(self, stage: Stage) -> None:
        async with stage.worker(cleaned, listens) as worker:
            ids = [await worker.start(cleaned, "a"), await worker.start(listens, "k")]
            await stage.signal(worker, ids[1], "news", b"1")

            async def waits() -> bool:
                return all([(await stage.row(id))["status"] == "suspended" for id in ids]) and len(await stage.journal(ids[1])) == 1

            await eventually(waits, "both wait")
            store = worker.store
            same = [one async for one in compared(store, stage.deployments[-1])]
            assert {one.verdict for one in same} == {"fits"}

        @workflow("listens")
        def listens_anew(key: str) -> Steps[int, Never]:
            yield from sleep("1s")
            one = yield from news.receive()
            return one + (yield from news.receive(key))

        async with await Store.open(stage.dsn) as store:
            changed = {one.workflow: one async for one in compared(store, stage.deployment(cleaned, listens_anew))}
            assert changed["listens"].verdict == "needs a marker" and "listens_anew" in changed["listens"].place
            missing = {one.workflow: one.verdict async for one in compared(store, stage.deployment(cleaned))}
            assert missing == {"cleaned": "fits", "listens": "unknown"}
        stage.deployments.clear()


@pytest.mark.parametrize("keyed", [False, True])
async def test_a_child_that_is_terminated_with_its_parent(stage: Stage, keyed: bool) -> None:
    @workflow("leaves")
    def leaves(name: str) -> Steps[str, Refused]:
        child = yield from cleaned.start(name, key=name if keyed else None, on_close="terminate")
        return child.id

    async with stage.worker(leaves, cleaned) as worker:
        exit = await worker.wait(await worker.start(leaves, "a"))
        child = exit.unwrap()
        assert await worker.wait(child) == Cancelled("terminated: cancelled by its parent")
    assert stage.names == [], "no finalizer ran"
