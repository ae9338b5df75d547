"""Starts without a key: they begin as the worker's own, and are nobody's loss when that worker dies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Never
from uuid import uuid4

import asyncpg
from attrs import evolve

from flowdsl import Deployment, Result, Steps, Success, activity, bind, each, workflow
from flowdsl.postgres.store import Claimed, NewStart, Started, Store
from flowdsl.postgres.worker import Tuning, Worker, new_id


@activity("begin.double")
def double(number: int) -> Result[int, Never]: ...


def of(number: int) -> str:
    return f"of-{number}"


@workflow("begin.keyed", key=of, reuse="after_close")
def keyed(number: int) -> Steps[int, Never]:
    return (yield from double(number))


@workflow("begin.all")
def all_of_them(count: int) -> Steps[int, Never]:
    return sum((yield from each(range(count), lambda number: keyed.child(number), concurrency=count)))


@workflow("begin.doubled")
def doubled(number: int) -> Steps[int, Never]:
    return (yield from double(number))


deployment = Deployment(workflows=[doubled, all_of_them], bindings=[bind(double, lambda number: Success(number * 2))])


def wish(number: int) -> NewStart:
    return NewStart(new_id(), "default", doubled.name, 1, "", None, "join", str(number).encode())


async def _worker_row(store: Store, *, gone: bool = False, lease: str = "5 s") -> str:
    id = str(uuid4())
    await store.again("insert into flowdsl.workers (id, lease, host, pid, gone) values ($1, $3::text::interval, 'h', 1, $2)", id, gone, lease)
    return id


async def test_a_begun_execution_is_the_workers_and_a_repeat_changes_nothing(database: str) -> None:
    async with await Store.open(database) as store:
        worker = await _worker_row(store)
        wishes = [wish(1), wish(2)]
        told, begun = await store.begin(worker, wishes)
        assert [(one.id, one.outcome) for one in told] == [(one.id, "new") for one in wishes]
        assert [(one.id, one.epoch) for one in begun] == [(one.id, 1) for one in wishes]
        told, begun = await store.begin(worker, wishes)
        assert [(one.id, one.outcome) for one in told] == [(one.id, "again") for one in wishes]
        assert begun == []
        assert await store.again("select count(*) from flowdsl.executions") == [(2,)]
        assert await store.again("select * from flowdsl.claim($1, 10, array['begin.doubled'], true)", worker) == []


async def test_a_worker_declared_gone_begins_for_others(database: str) -> None:
    async with await Store.open(database) as store:
        gone, other = await _worker_row(store, gone=True), await _worker_row(store)
        one = wish(3)
        assert await store.begin(gone, [one]) == ([Started(one.id, "new", "running")], [])
        another = wish(4)
        assert (await store.begin(str(uuid4()), [another]))[1] == [], "nor does a worker that has no row"
        claimed = await store.again("select * from flowdsl.claim($1, 10, array['begin.doubled'], true)", other)
        assert {str(row["id"]) for row in claimed} == {one.id, another.id}


def _keyed(number: int) -> NewStart:
    return evolve(wish(number), workflow=keyed.name, key=f"of-{number}", reuse="after_close")


async def test_of_those_with_a_key_what_is_new_begins_here_and_nothing_else(database: str) -> None:
    async with await Store.open(database) as store:
        worker = await _worker_row(store)
        first, second, elsewhere = _keyed(1), _keyed(2), _keyed(3)
        ids = {first.id, second.id}
        told, begun = await store.start_here([first, second, elsewhere], worker, ids)
        assert [one.outcome for one in told] == ["new", "new", "new"]
        assert {(one.id, one.key, one.epoch) for one in begun} == {(first.id, "of-1", 1), (second.id, "of-2", 1)}
        twin = _keyed(1)
        told, begun = await store.start_here([first, twin], worker, {first.id, twin.id})
        assert [(one.id, one.outcome) for one in told] == [(first.id, "again"), (first.id, "joined")]
        assert begun == [], "it is at work already"
        due = await store.again("select * from flowdsl.claim($1, 10, array['begin.keyed'], true)", await _worker_row(store))
        assert [str(row["id"]) for row in due] == [elsewhere.id]


async def test_the_next_run_of_a_key_begins_here(database: str) -> None:
    async with await Store.open(database) as store:
        worker, first, next_run = await _worker_row(store), _keyed(1), _keyed(1)
        await store.start_here([first], worker, {first.id})
        await store.again("update flowdsl.executions set status = 'failed', owner = null, ended = clock_timestamp() where id = $1", first.id)
        told, begun = await store.start_here([next_run], worker, {next_run.id})
        assert (told[0].outcome, [one.id for one in begun]) == ("new", [next_run.id])


async def test_a_worker_that_is_gone_begins_nothing_with_a_key(database: str) -> None:
    async with await Store.open(database) as store:
        one = _keyed(1)
        told, begun = await store.start_here([one], await _worker_row(store, gone=True), {one.id})
        assert (told[0].outcome, begun) == ("new", [])
        due = await store.again("select * from flowdsl.claim($1, 10, array['begin.keyed'], true)", await _worker_row(store))
        assert [str(row["id"]) for row in due] == [one.id]


async def test_children_begin_beside_their_parent_but_leave_some_for_others(database: str) -> None:
    async with await Store.open(database) as store, Worker(deployment, store, Tuning(claim=20)) as worker:
        neighbour = await _worker_row(store, lease="1 hour")
        await worker.intake.look_around()
        begun: list[int] = []
        take = worker.intake.take

        async def counted(found: Sequence[Claimed]) -> None:
            begun.append(sum(one.workflow == keyed.name and one.epoch == 1 and one.id in worker.starts.beginning for one in found))
            await take(found)

        worker.intake.take = counted  # type: ignore[method-assign]
        assert await worker.wait(await worker.start(all_of_them, 100)) == Success(9900)
        assert 0 < sum(begun) <= 20
        begun.clear()
        await store.again("update flowdsl.workers set gone = true where id = $1", neighbour)
        await worker.intake.look_around()
        again = await worker.start(all_of_them, 100)
        assert await worker.wait(again) == Success(9900)
        assert sum(begun) == 100


async def test_what_this_worker_does_not_know_is_left_to_those_who_do(database: str) -> None:
    less = Deployment(workflows=[doubled], bindings=[bind(double, lambda number: Success(number * 2))])
    async with await Store.open(database) as store, Worker(less, store) as worker:
        started = await worker.starts.one(_keyed(4))
        assert (await store.again("select owner, epoch from flowdsl.executions where id = $1", started.id)) == [(None, 0)]
        async with Worker(deployment, store) as knows:
            assert await knows.wait(started.id) == Success(8)


async def test_what_a_dead_worker_had_begun_is_taken_over(database: str) -> None:
    async with await Store.open(database) as store:
        dead = await _worker_row(store)
        one = wish(21)
        await store.begin(dead, [one])
        await store.again("update flowdsl.workers set beat = beat - interval '1 hour' where id = $1", dead)
        async with Worker(deployment, store, Tuning(lease=3, poll=0.1)) as worker:
            assert await worker.wait(one.id) == Success(42)


async def test_many_starts_at_once_each_end_once(database: str) -> None:
    import asyncio

    async with await Store.open(database) as store, Worker(deployment, store) as worker:
        ids = await asyncio.gather(*(worker.start(doubled, number) for number in range(200)))
        exits = await asyncio.gather(*(worker.wait(id) for id in ids))
        assert exits == [Success(number * 2) for number in range(200)]
    connection = await asyncpg.connect(database)
    assert await connection.fetchval("select count(*) from flowdsl.executions where status = 'succeeded' and owner is null") == 200
    assert await connection.fetchval("select count(*) from flowdsl.journal") == 200
    await connection.close()
