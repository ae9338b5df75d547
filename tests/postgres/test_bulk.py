"""Much at once: thousands of children in a turn, thousands of timers due, more work than fits into memory, notes faster than anybody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Never

import pytest

from flowdsl import Child, Steps, Success, Workflow, report, signal, sleep, workflow
from flowdsl.activation import NewChild, Turn
from flowdsl.postgres import committer
from flowdsl.postgres.committer import Commit, Fate
from flowdsl.postgres.worker import Worker
from tests.postgres.scene import an_id, entry, eventually
from tests.postgres.stage import Refused, Stage, act, stage_at

go = signal("go", int)
pytestmark = pytest.mark.anyio


@workflow("bulk.leaf")
def leaf(number: int) -> Steps[int, Never]:
    return number
    yield  # pragma: no cover


@workflow("bulk.root")
def root(count: int) -> Steps[int, Never]:
    children: list[Child[int, Never]] = []
    for number in range(count):
        children.append((yield from leaf.start(number)))
    yield from go.receive()
    return len(children)


@workflow("bulk.naps")
def naps(number: int) -> Steps[int, Never]:
    yield from sleep("1ms")
    return number


@workflow("bulk.one")
def one(name: str) -> Steps[str, Refused]:
    return (yield from act(name))


@workflow("bulk.tells")
def tells(count: int) -> Steps[int, Never]:
    for number in range(count):
        yield from report(f"\0 {number}", done=number, total=count)
    return count


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage
        await stage.check()


class TestManyChildren:
    @pytest.mark.shows("S3.4")
    async def test_thousands_of_one_turn_go_out_within_the_limits(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """As they are started the parent is only told of them: what is committed is bounded, and every child is there once."""
        sizes: list[int] = []
        commit = committer._commit

        async def watched(connection: Any, worker: str, batch: list[Commit], patience: str = "") -> Any:
            sizes.append(sum(committer._rows(one.turn) for one in batch))
            return await commit(connection, worker, batch, patience)

        monkeypatch.setattr(committer, "_commit", watched)
        async with stage.worker(root, poll=0.5) as worker:
            id = await worker.start(root, 5000)
            await worker.store.send("default", id, "signal", "go", b"1", an_id())
            assert await worker.wait(id) == Success(5000)
            query = "select count(*), count(distinct parent_step) from flowdsl.executions where parent = $1"
            assert tuple(await stage.watcher.fetchrow(query, id)) == (5000, 5000)
            assert sum(size > 1000 for size in sizes) >= 2, "the turn went out in parts"
            assert max(sizes) <= committer.ROWS

            async def ended() -> bool:
                left = await stage.watcher.fetchval("select count(*) from flowdsl.executions where status not in ('succeeded', 'cancelled')")
                return not left

            await eventually(ended, "all children ended", 90)

    def test_parts_are_in_order_and_only_the_last_ends_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(committer, "ROWS", 10)
        whole = a_turn(entries=[entry(n) for n in range(23)], children=[a_child(str(n)) for n in range(3, 23)], state="suspended")
        parts = committer._parts(whole)
        assert [one.position for part in parts for one in part.turn.entries] == list(range(23))
        assert [part.state for part in parts] == [None] * (len(parts) - 1) + ["suspended"]
        for part in parts:
            assert committer._rows(part.turn) <= 10
            steps = {one.step for one in part.turn.entries}
            assert {child.step for child in part.turn.children} <= steps, "a child goes with its entry"
        assert sum(len(part.turn.children) for part in parts) == 20

    def test_what_mail_hangs_on_stays_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(committer, "ROWS", 10)
        whole = a_turn(entries=[entry(n) for n in range(23)], takes=[4])
        assert committer._parts(whole) == [whole]

    @pytest.mark.parametrize("fate", ["left", "fenced"])
    def test_after_a_part_that_was_left_out_nothing_more_is_sent(self, monkeypatch: pytest.MonkeyPatch, fate: Fate) -> None:
        monkeypatch.setattr(committer, "ROWS", 10)
        told: list[Fate] = []
        whole = a_turn(entries=[entry(n) for n in range(23)])
        whole.told = lambda _, fate: told.append(fate)
        sent: list[Commit] = []
        first = committer._first(committer._parts(whole), sent.append)
        first.told(first, "done")
        assert len(sent) == 1
        sent[0].told(sent[0], fate)
        assert (len(sent), told) == (1, [fate])


def a_turn(state: str | None = None, **parts: Any) -> Commit:
    return Commit(an_id(), 1, "default", Turn(**parts), lambda *_: None, lambda *_: None, state)


def a_child(step: str) -> NewChild:
    return NewChild(an_id(), "bulk.leaf", 1, None, b"1", step, False)


class TestManyTimers:
    async def test_thousands_due_at_once_drain_in_bounded_claims_by_all_workers(self, stage: Stage) -> None:
        count = 3000
        async with stage.workers(2, naps, claim=50) as workers:
            claims: dict[int, list[int]] = {0: [], 1: []}
            for index, worker in enumerate(workers):
                take = worker.intake.take

                async def watched(found: Any, take: Any = take, index: int = index) -> None:
                    claims[index].append(len(found))
                    if len(claims[index]) == 1:  # neither has room for all of them, so there is some left for the other
                        await eventually(lambda: all(claims.values()), "both take part")
                    await take(found)

                worker.intake.take = watched  # type: ignore[method-assign]
            await stage.watcher.execute(
                "insert into flowdsl.executions (id, tenant, workflow, version, request, status, epoch, wake, started) select gen_random_uuid(),"
                " 'default', 'bulk.naps', 1, n::text::bytea, 'suspended', 1, clock_timestamp(), clock_timestamp() - interval '1 h'"
                "   from generate_series(1, $1) n",
                count,
            )

            async def drained() -> bool:
                return bool(await stage.watcher.fetchval("select count(*) = $1 from flowdsl.executions where status = 'succeeded'", count))

            await eventually(drained, "all ended", 240)
        assert max(claims[0] + claims[1]) <= 400
        assert sum(claims[0]), "the first took its part"
        assert sum(claims[1]), "and so did the second"
        assert await stage.watcher.fetchval("select count(*) from flowdsl.journal") == count


@workflow("bulk.hears")
def hears(number: int) -> Steps[int, Never]:
    return number + (yield from go.receive())


@asynccontextmanager
async def held_up(stage: Stage, workflow: Workflow[Any, Any, Any], count: int, **tuning: Any) -> AsyncIterator[tuple[Worker, asyncio.Event]]:
    """A worker whose first claim of several is long on its way into memory, until it is let go."""
    go_on, first = asyncio.Event(), True
    async with stage.worker(workflow, claim=4, poll=600.0, **tuning) as worker:
        load = worker.store.load

        async def slow(ids: Any) -> Any:
            nonlocal first
            if first:
                first = False
                await go_on.wait()
            return await load(ids)

        worker.store.load = slow  # type: ignore[method-assign]
        await stage.watcher.execute(
            "insert into flowdsl.executions (id, tenant, workflow, version, request, status, epoch, wake)"
            " select gen_random_uuid(), 'default', $1, 1, n::text::bytea, 'suspended', 1, clock_timestamp() from generate_series(1, $2::int) n",
            workflow.name,
            count,
        )
        worker.kick()
        await eventually(lambda: len(worker.intake.coming) == 4 and not first, "four are on their way")
        yield worker, go_on


class TestClaimsAtOnce:
    async def test_the_next_claim_is_under_way_while_the_last_is_folded(self, stage: Stage) -> None:
        async with held_up(stage, naps, 14) as (worker, go_on):
            await eventually(lambda: ended(stage, 10), "those of the later claims have ended")
            coming = list(worker.intake.coming)
            await worker.intake.look_around()
            rows = await stage.watcher.fetch("select owner::text, epoch from flowdsl.executions where id = any($1::uuid[])", coming)
            assert [tuple(row) for row in rows] == [(worker.id, 2)] * 4, "they are not taken for lost"
            go_on.set()
            await eventually(lambda: ended(stage, 14), "all have ended")

    async def test_mail_for_one_that_is_on_its_way_waits_for_no_look_around(self, stage: Stage) -> None:
        async with held_up(stage, hears, 5) as (worker, go_on):
            for id in list(worker.intake.coming):
                assert await worker.store.send("default", id, "signal", go.name, b"1", "one") == "sent"
            go_on.set()
            await eventually(lambda: ended(stage, 4), "those that were told have ended")

    async def test_what_is_on_its_way_when_the_worker_stops_is_anybodys(self, stage: Stage) -> None:
        async with held_up(stage, naps, 14, grace=0.2):
            await eventually(lambda: ended(stage, 10), "those of the later claims have ended")
        left = await stage.watcher.fetch("select owner, wake <= clock_timestamp() as due from flowdsl.executions where status = 'running'")
        assert [tuple(row) for row in left] == [(None, True)] * 4
        async with stage.worker(naps):
            await eventually(lambda: ended(stage, 14), "another has taken them")


async def ended(stage: Stage, count: int) -> bool:
    return bool(await stage.watcher.fetchval("select count(*) = $1 from flowdsl.executions where status = 'succeeded'", count))


class TestCapacity:
    async def test_no_more_than_fit_and_the_next_as_soon_as_one_has_gone(self, stage: Stage) -> None:
        for n in range(12):
            stage.gate(str(n))
        async with stage.worker(one, capacity=4, poll=600.0) as worker:
            ids = [await worker.start(one, str(n)) for n in range(12)]
            done: set[str] = set()
            while len(done) < 12:
                await eventually(lambda: len(stage.gates) == min(4, 12 - len(done)), "as many run as fit")
                assert len(worker.residents) <= 4
                name = min(stage.gates)
                done.add(name)
                stage.open_gate(name)
            assert [await worker.wait(id) for id in ids] == [Success(str(n)) for n in range(12)]

    async def test_a_claim_that_is_under_way_counts(self, stage: Stage) -> None:
        """What it will bring has no room yet: a start meanwhile is left to be claimed."""
        asked, go_on = asyncio.Event(), asyncio.Event()
        async with stage.worker(one, capacity=1, poll=600.0) as worker:
            claimed = worker.intake._claimed

            async def held(room: int) -> bool:
                asked.set()
                await go_on.wait()
                return await claimed(room)

            worker.intake._claimed = held  # type: ignore[method-assign]
            worker.kick()
            await asked.wait()
            ids = [await worker.start(one, str(n)) for n in range(3)]
            rows = await stage.watcher.fetch("select owner, epoch from flowdsl.executions")
            assert [tuple(row) for row in rows] == [(None, 0)] * 3
            go_on.set()
            assert [await worker.wait(id) for id in ids] == [Success(str(n)) for n in range(3)]


class TestNotes:
    async def test_the_last_one_is_written_even_by_a_worker_that_stops(self, stage: Stage) -> None:
        async with stage.worker(tells) as worker:
            ids = [await worker.start(tells, 400) for _ in range(5)]
            for id in ids:
                assert await worker.wait(id) == Success(400)
        rows = await stage.watcher.fetch("select execution::text as id, note, done from flowdsl.notes")
        assert {row["id"]: (row["note"], row["done"]) for row in rows} == {id: ("\\0 399", 399) for id in ids}

    async def test_while_the_store_is_away_the_newest_waits(self, stage: Stage) -> None:
        async with stage.worker(tells) as worker:
            again, refused = worker.store.again, 0

            async def away(query: str, *arguments: Any) -> Any:
                nonlocal refused
                if "flowdsl.notes" in query and refused < 3:
                    refused += 1
                    raise OSError("away")
                return await again(query, *arguments)

            worker.store.again = away  # type: ignore[method-assign]
            id = await worker.start(tells, 3)
            await worker.wait(id)

            async def written() -> bool:
                return bool(await stage.watcher.fetchval("select done = 2 from flowdsl.notes where execution = $1", id))

            await eventually(written, "the newest was written")
            assert refused == 3
