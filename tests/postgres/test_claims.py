"""Claims under load: who is claimed when, and what a claim reads. All of it by the rows and their order, none by time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, Never
from uuid import UUID

import pytest

from flowdsl import Deployment, Result, Steps, Success, activity, bind, workflow
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.worker import Tuning, Worker, new_id
from tests.postgres.scene import Scene, claim, scene_at


@pytest.fixture
async def scene(database: str) -> AsyncIterator[Scene]:
    async with scene_at(database) as scene:
        yield scene


async def many(
    scene: Scene, count: int, *, tenant: str = "flood", workflow: str = "w", wake: str = "clock_timestamp() - interval '1 hour'", **more: Any
) -> None:
    """So many executions, by default due for an hour, each a millisecond after the one before."""
    columns = {"status": "running", "owner": None, **more}
    await scene.watcher.execute(
        "insert into flowdsl.executions (id, tenant, workflow, version, request, wake, status, owner, exit)"
        f" select gen_random_uuid(), $1, $2, 1, 'null', {wake} + n * interval '1 ms', $3, $4, $5 from generate_series(1, $6::int) n",
        tenant, workflow, columns["status"], columns["owner"], columns.get("exit"), count,
    )  # fmt: skip


async def fairly(
    connection: Any, worker: str, limit: int, workflows: dict[str, int] | None = None, held: dict[str, int] | None = None, after: str = ""
) -> list[Any]:
    known, have = workflows or {"w": 0}, held or {}
    query = "select * from flowdsl.claim($1, $2, $3, true, $4, $5, $6, $7)"
    return list(await connection.fetch(query, worker, limit, list(known), list(known.values()), list(have), list(have.values()), after))


def tenants(rows: Sequence[Any]) -> list[str]:
    return [row["tenant"] for row in rows]


class TestFairness:
    async def test_a_tenant_that_floods_does_not_keep_another_waiting(self, scene: Scene) -> None:
        """C9: 20,000 are due and older; the one that comes last is in the next batch."""
        worker = await scene.worker()
        await many(scene, 20_000)
        assert set(tenants(await claim(scene.watcher, worker, limit=128))) == {"flood"}
        quiet = await scene.execution(tenant="quiet", wake=await scene.watcher.fetchval("select clock_timestamp()"))
        batch = await fairly(scene.watcher, worker, 128)
        assert len(batch) == 128, "and the batch is full: nobody's pace is lost"
        assert str(batch[1]["id"]) == quiet, "second: one of each tenant comes first"
        assert tenants(batch) == ["flood", "quiet", *["flood"] * 126]

    async def test_each_tenant_in_turn_and_each_in_its_own_order(self, scene: Scene) -> None:
        worker = await scene.worker()
        for tenant, count in (("a", 50), ("b", 3), ("c", 50)):
            await many(scene, count, tenant=tenant)
        batch = await fairly(scene.watcher, worker, 20)
        assert tenants(batch)[:9] == ["a", "b", "c"] * 3 or Counter(tenants(batch)[:9]) == {"a": 3, "b": 3, "c": 3}
        assert Counter(tenants(batch)) == {"a": 9, "b": 3, "c": 8} or Counter(tenants(batch)) == {"a": 8, "b": 3, "c": 9}
        wakes = {row["id"]: row["wake"] for row in await scene.watcher.fetch("select id, wake from flowdsl.executions where wake is not null")}
        rest = [str(row["id"]) for row in await fairly(scene.watcher, worker, 10)]
        assert len(rest) == 10
        for tenant in "ac":
            mine = await scene.watcher.fetch("select id from flowdsl.executions where tenant = $1 and id = any($2::uuid[])", tenant, rest)
            assert max(wakes[row["id"]] for row in mine) < await scene.watcher.fetchval(
                "select min(wake) from flowdsl.executions where tenant = $1 and owner is null", tenant
            )

    async def test_what_a_worker_has_of_a_tenant_counts(self, scene: Scene) -> None:
        """A worker whose room is one would else take the oldest, and that is always the flood's."""
        worker = await scene.worker()
        await many(scene, 1000)
        await many(scene, 3, tenant="quiet", wake="clock_timestamp() - interval '1 minute'")
        got = Counter({"flood": 40})
        for _ in range(5):
            (row,) = await fairly(scene.watcher, worker, 1, held=dict(got))
            got[row["tenant"]] += 1
        assert got == {"flood": 42, "quiet": 3}

    async def test_the_higher_priority_is_first_whoever_floods(self, scene: Scene) -> None:
        worker = await scene.worker()
        await many(scene, 5000, workflow="bulk")
        await many(scene, 3, workflow="urgent", wake="clock_timestamp() - interval '1 minute'")
        await many(scene, 2, workflow="plain", tenant="other", wake="clock_timestamp() - interval '1 minute'")
        batch = await fairly(scene.watcher, worker, 10, {"bulk": -5, "urgent": 10, "plain": 0})
        assert [row["workflow"] for row in batch] == ["urgent"] * 3 + ["plain"] * 2 + ["bulk"] * 5

    async def test_a_batch_is_full_however_the_rest_is_spread(self, scene: Scene) -> None:
        worker = await scene.worker()
        for number in range(40):
            await many(scene, 1, tenant=f"t{number:02}")
        await many(scene, 500, tenant="z")
        batch = await fairly(scene.watcher, worker, 128)
        assert Counter(tenants(batch)) == {"z": 88, **{f"t{number:02}": 1 for number in range(40)}}

    async def test_more_tenants_than_it_looks_at_are_all_reached(self, scene: Scene) -> None:
        worker = await scene.worker()
        await scene.watcher.execute(
            "insert into flowdsl.executions (id, tenant, workflow, version, request, wake)"
            " select gen_random_uuid(), 't' || lpad(n::text, 5, '0'), 'w', 1, 'null', clock_timestamp() - interval '1 hour' from generate_series(1, 3000) n,"
            " generate_series(1, 2)"
        )
        seen, after, claims = set[str](), "", 0
        while len(seen) < 3000:
            batch = await fairly(scene.watcher, worker, 500, after=after)
            assert len(batch) == 500 or claims >= 11
            seen |= set(tenants(batch))
            after, claims = batch[-1]["tenant"], claims + 1
        assert claims <= 12

    async def test_what_is_not_due_or_another_s_workflow_is_left(self, scene: Scene) -> None:
        worker = await scene.worker()
        await many(scene, 30)
        await many(scene, 30, tenant="later", wake="clock_timestamp() + interval '1 hour'")
        await many(scene, 30, tenant="foreign", workflow="unknown")
        await many(scene, 30, tenant="ended", status="succeeded", exit=b"{}", wake="null::timestamptz")
        assert set(tenants(await fairly(scene.watcher, worker, 20))) == {"flood"}
        assert tenants(await fairly(scene.watcher, worker, 20)) == ["flood"] * 10
        assert await fairly(scene.watcher, worker, 20) == []


class TestDraining:
    async def test_ten_thousand_due_at_once_are_claimed_once_each(self, scene: Scene) -> None:
        """C8, by four workers at a time; to the last one each batch is full, so none of them pauses."""
        await many(scene, 9_000)
        await many(scene, 1_000, tenant="other")
        taken: list[tuple[UUID, int]] = []

        async def drain(worker: str) -> None:
            connection = await scene.connection()
            while batch := await fairly(connection, worker, 100):
                taken.extend((row["id"], row["epoch"]) for row in batch)

        await asyncio.gather(*[drain(await scene.worker()) for _ in range(4)])
        assert len(taken) == len({id for id, _ in taken}) == 10_000
        assert {epoch for _, epoch in taken} == {1}

    async def test_two_who_claim_at_once_never_take_the_same_and_neither_goes_short(self, scene: Scene) -> None:
        await many(scene, 1000)
        first, second = await scene.connection(), await scene.connection()
        one, other = await scene.worker(), await scene.worker()
        transaction = first.transaction()
        await transaction.start()
        mine = await fairly(first, one, 100)
        await second.execute("set lock_timeout = '2s'")  # the first may be frozen while it is told what it has
        theirs = await fairly(second, other, 100)
        await transaction.commit()
        ids = [row["id"] for row in [*mine, *theirs]]
        assert len(ids) == len(set(ids)) == 200

    async def test_a_claim_of_few_waits_for_nobody(self, scene: Scene) -> None:
        await many(scene, 300)
        first = await scene.connection()
        transaction = first.transaction()
        await transaction.start()
        await fairly(first, await scene.worker(), 100)
        await scene.watcher.execute("set lock_timeout = '200ms'")
        assert await fairly(scene.watcher, await scene.worker(), 400) != []
        await transaction.rollback()


async def reads(connection: Any, worker: str, limit: int) -> Counter[str]:
    """What one claim reads of `executions`, counted by the server."""
    query = "select seq_scan, seq_tup_read, idx_scan, idx_tup_fetch from pg_stat_xact_user_tables where relid = 'flowdsl.executions'::regclass"
    transaction = connection.transaction()
    await transaction.start()
    before = await connection.fetchrow(query)
    assert len(await fairly(connection, worker, limit)) == limit
    after = await connection.fetchrow(query)
    await transaction.rollback()
    return Counter({name: after[name] - before[name] for name in before.keys()})  # noqa: SIM118 (a record)


class TestCost:
    async def test_neither_what_has_ended_nor_what_is_not_due_is_read(self, scene: Scene) -> None:
        worker, connection = await scene.worker(), await scene.connection()
        await many(scene, 1000)
        await many(scene, 10, tenant="quiet")
        await scene.watcher.execute("analyze flowdsl.executions")
        alone = await reads(connection, worker, 100)
        for tenant in ("flood", "quiet", "other"):
            await many(scene, 10_000, tenant=tenant, status="succeeded", exit=b"{}", wake="null::timestamptz")
            await many(scene, 10_000, tenant=tenant, status="suspended", wake="clock_timestamp() + interval '1 day'")
            await many(scene, 3_000, tenant=tenant, status="suspended", wake="null::timestamptz")
        for analyzed in (False, True):
            if analyzed:
                await scene.watcher.execute("analyze flowdsl.executions")
            crowded = await reads(connection, worker, 100)
            assert crowded["seq_tup_read"] == crowded["seq_scan"] == 0
            assert crowded["idx_tup_fetch"] <= alone["idx_tup_fetch"] + 20, f"analyzed: {analyzed}; one more tenant to skip over"
        assert alone["idx_tup_fetch"] < 2000

    async def test_a_flood_ten_times_as_large_costs_no_more(self, scene: Scene) -> None:
        worker, connection = await scene.worker(), await scene.connection()
        await many(scene, 1000)
        small = await reads(connection, worker, 100)
        await many(scene, 20_000)
        await scene.watcher.execute("analyze flowdsl.executions")
        large = await reads(connection, worker, 100)
        assert large["idx_tup_fetch"] <= small["idx_tup_fetch"] + 10
        assert large["seq_scan"] == 0

    async def test_the_plans_skip_by_the_partial_indexes(self, scene: Scene) -> None:
        await many(scene, 5000)
        await many(scene, 5000, status="succeeded", exit=b"{}", wake="null::timestamptz")
        await scene.watcher.execute("analyze flowdsl.executions")
        open_ones = "from flowdsl.executions where owner is null and"
        for index, query in (
            ("executions_fair", f"select tenant {open_ones} wake is not null and workflow = 'w' and tenant > 'a' order by tenant limit 1"),
            ("executions_fair", f"select id, wake {open_ones} workflow = 'w' and tenant = 'flood' and wake <= now() order by wake limit 9"),
            ("executions_due", f"select id {open_ones} wake <= now() and status <> 'blocked' and workflow = any('{{w}}') order by wake limit 9"),
        ):
            plan = "\n".join(row[0] for row in await scene.watcher.fetch("explain " + query))
            assert f"using {index}" in plan, plan
            assert "Sort" not in plan, plan


# Through a worker


@activity("claims.note")
def note(name: str) -> Result[str, Never]: ...


@workflow("claims.bulk")
def bulk(name: str) -> Steps[str, Never]:
    return (yield from note(name))


@workflow("claims.urgent", priority=10)
def urgent(name: str) -> Steps[str, Never]:
    return (yield from note(name))


async def test_a_worker_passes_on_priorities_and_what_it_has(database: str) -> None:
    """One at a time: what is urgent is first, then the tenants take turns."""
    noted: list[str] = []

    async def do_note(name: str) -> Result[str, Never]:
        noted.append(name)
        return Success(name)

    async with await Store.open(database) as store:
        wishes = [NewStart(new_id(), "flood", bulk.name, 1, "", None, "join", f'"flood{n}"'.encode()) for n in range(30)]
        wishes += [NewStart(new_id(), "quiet", bulk.name, 1, "", None, "join", b'"quiet"')]
        wishes += [NewStart(new_id(), "flood", urgent.name, 1, "", None, "join", f'"urgent{n}"'.encode()) for n in range(2)]
        await store.start(wishes)
        async with Worker(Deployment([bulk, urgent], [bind(note, do_note)]), store, Tuning(poll=0.05, capacity=4, claim=4)) as worker:
            for wish in wishes:
                assert isinstance(await asyncio.wait_for(worker.wait(wish.id), 60), Success)
    assert set(noted[:2]) == {"urgent0", "urgent1"}
    assert "quiet" in noted[:4]
    assert len(noted) == 33
