"""Retention: in small transactions, each row looked at once, and nobody is held up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from flowdsl.postgres.operating import _WINDOW, Operator
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import new_id
from tests.bench.growth_rows import fill
from tests.postgres.plans import explained

pytestmark = pytest.mark.anyio
HOUR = timedelta(hours=1)


@pytest.fixture
async def watcher(database: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def test_what_stays_is_looked_at_once(watcher: Any, database: str) -> None:
    """Of twelve thousand of a tenant one in seven goes: no statement looks at more than a window of them, and all together not much more than once."""
    await fill(watcher, 20_000, steps=1)
    await watcher.execute("vacuum analyze")
    of_made = "select count(*) from flowdsl.executions where tenant = 'default' and workflow = 'made.1'"
    made = await watcher.fetchval(of_made)
    async with explained(database) as plans, await Store.open(database) as store:
        assert await Operator(store).prune(HOUR, workflow="made.1") == made > 500
    assert await watcher.fetchval(of_made) == 0
    assert (
        await watcher.fetchval("select count(*) from flowdsl.journal j where not exists (select from flowdsl.executions x where x.id = j.execution)")
        == 0
    )
    looks = [ran.rows for ran in plans.ran if "prune" in ran.where and ran.query.startswith("select x.id from flowdsl.executions x")]
    assert len(looks) >= 5
    assert max(looks) <= 3 * _WINDOW, "with the parents and children that may be open"
    assert sum(looks) <= 5 * 12_000


async def test_a_long_journal_ends_a_batch(watcher: Any, database: str) -> None:
    """Four of fifteen thousand entries each take two transactions, though a batch may have hundreds."""
    await fill(watcher, 6, steps=15_000)
    async with explained(database) as plans, await Store.open(database) as store:
        assert await Operator(store).prune(HOUR) == 4
    deleted = [
        ran.plan["Plans"][0]["Actual Rows"] for ran in plans.ran if "prune" in ran.where and ran.query.startswith("delete from flowdsl.journal")
    ]
    assert sorted(deleted) == [0, 30_000, 30_000]


async def test_it_waits_for_nobody(watcher: Any, database: str) -> None:
    """An execution that somebody has locked stays for the next time."""
    await fill(watcher, 20, steps=2)
    held = await watcher.fetchval("select id from flowdsl.executions where tenant = 'default' order by id limit 1")
    other = await asyncpg.connect(database)
    async with other.transaction(), await Store.open(database) as store:
        await other.execute("select 1 from flowdsl.executions where id = $1 for update", held)
        assert await Operator(store).prune(HOUR) == 11
        assert await watcher.fetchval("select count(*) from flowdsl.journal where execution = $1", held) == 2
    async with await Store.open(database) as store:
        assert await Operator(store).prune(HOUR) == 1
    await other.close()


async def test_mail_and_keys_go_with_it_however_many(watcher: Any, database: str) -> None:
    open_one = new_id()
    await watcher.execute(
        "insert into flowdsl.executions (id, tenant, workflow, version, request, status) values ($1, 'default', 'w', 1, 'null', 'suspended')",
        open_one,
    )
    await fill(watcher, 10, steps=1)
    await watcher.execute(
        "insert into flowdsl.deliveries (scope, delivery, at)"
        " select 'default/a/' || n, 'one', clock_timestamp() - case when n <= 12000 then interval '8 days' else interval '6 days' end"
        " from generate_series(1, 12500) n"
    )
    await watcher.execute(
        "insert into flowdsl.aliases (tenant, name, key, execution)"
        " select 'default', 'a', 'key-' || n, case when n % 3 = 0 then null when n % 3 = 1 then $1::uuid else gen_random_uuid() end"
        " from generate_series(1, 12000) n",
        open_one,
    )
    async with explained(database) as plans, await Store.open(database) as store:
        await Operator(store).prune(HOUR)
    assert await watcher.fetchval("select count(*) from flowdsl.deliveries") == 500
    assert await watcher.fetchval("select array[count(*), count(execution)] from flowdsl.aliases") == [8000, 4000]
    deleted = [ran.plan["Plans"][0]["Actual Rows"] for ran in plans.ran if ran.query.startswith("delete from flowdsl.") and "prune_" in ran.where]
    assert max(deleted) <= 5000 and sum(deleted) == 16_000
