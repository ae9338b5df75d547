"""Starts without a key: they begin as the worker's own, and are nobody's loss when that worker dies."""

from __future__ import annotations

from typing import Never
from uuid import uuid4

import asyncpg

from flowdsl import Deployment, Result, Steps, Success, activity, bind, workflow
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.worker import Tuning, Worker, new_id


@activity("begin.double")
def double(number: int) -> Result[int, Never]: ...


@workflow("begin.doubled")
def doubled(number: int) -> Steps[int, Never]:
    return (yield from double(number))


deployment = Deployment(workflows=[doubled], bindings=[bind(double, lambda number: Success(number * 2))])


def wish(number: int) -> NewStart:
    return NewStart(new_id(), "default", doubled.name, 1, "", None, "join", str(number).encode())


async def _worker_row(store: Store, *, gone: bool = False) -> str:
    id = str(uuid4())
    await store.again("insert into flowdsl.workers (id, lease, host, pid, gone) values ($1, interval '5 s', 'h', 1, $2)", id, gone)
    return id


async def test_a_begun_execution_is_the_workers_and_a_repeat_changes_nothing(database: str) -> None:
    async with await Store.open(database) as store:
        worker = await _worker_row(store)
        wishes = [wish(1), wish(2)]
        first = await store.begin(worker, wishes)
        assert {one.id for one in first} == {one.id for one in wishes}
        assert {one.epoch for one in first} == {1}
        assert await store.begin(worker, wishes) == first
        assert await store.again("select count(*) from flowdsl.executions") == [(2,)]
        assert await store.again("select * from flowdsl.claim($1, 10, array['begin.doubled'], true)", worker) == []


async def test_a_worker_declared_gone_begins_for_others(database: str) -> None:
    async with await Store.open(database) as store:
        gone, other = await _worker_row(store, gone=True), await _worker_row(store)
        one = wish(3)
        assert await store.begin(gone, [one]) == []
        assert await store.begin(str(uuid4()), [one]) == [], "nor does a worker that has no row"
        claimed = await store.again("select * from flowdsl.claim($1, 10, array['begin.doubled'], true)", other)
        assert [str(row["id"]) for row in claimed] == [one.id]


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
