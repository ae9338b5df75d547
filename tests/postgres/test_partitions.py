"""docs/scale.md's recipe for a journal by days: as it is written there, on a store that is in use."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any, Never

import asyncpg
import pytest

from flowdsl import Steps, Success, do, each, workflow
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.store import _LOAD, NewStart, Store
from tests.bench.growth_rows import fill
from tests.postgres.stage import Refused, act, plain, stage_at

pytestmark = pytest.mark.anyio
PAGE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"


@workflow("partitions.leaf")
def leaf(name: str) -> Steps[str, Never]:
    return (yield from plain(name))


@workflow("partitions.work")
def work(name: str) -> Steps[list[str], Refused]:
    children = []
    for number in range(3):
        children.append((yield from leaf.start(f"{name} {number}")))
    yield from act(name)
    return list((yield from each(children, joined)))


@do
def joined(child: Any) -> Steps[str, Never]:
    return (yield from child.join())


def recipes() -> list[str]:
    return re.findall(r"^```sql\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


async def test_it_goes_on_by_days(database: str) -> None:
    async with stage_at(database) as stage:
        async with stage.worker(work, leaf) as worker:
            before = await worker.start(work, "before")
            await worker.wait(before)
        await fill(stage.watcher, 50, steps=2)
        await stage.watcher.execute("update flowdsl.executions set tenant = 'default'")
        for recipe in recipes():
            await stage.watcher.execute(recipe)
        async with stage.worker(work, leaf) as worker:
            assert await worker.wait(await worker.start(work, "after")) == Success([f"after {number}" for number in range(3)])
            assert await worker.wait(before) == Success([f"before {number}" for number in range(3)])
            # What begins tomorrow is in a table of its own, its children too: the clock of ids is the starter's.
            tomorrow = await stage.watcher.fetchval(_TOMORROW)
            await worker.store.start([NewStart(str(tomorrow), "default", work.name, 1, "", None, "join", b'"tomorrow"')])
            await stage.becomes(str(tomorrow), "succeeded")
        where = await stage.watcher.fetch("select tableoid::regclass::text as name, count(distinct execution) as n from flowdsl.journal group by 1")
        assert {row["name"]: row["n"] for row in where} == {"flowdsl.journal_before": 50 + 4 + 4, "flowdsl.journal_day_1": 4}
        async with await Store.open(database) as store:
            assert await Operator(store).prune(timedelta(hours=1)) == 50
        await stage.check()
        # That day goes at once: its executions have ended, and then their journal is dropped.
        async with await Store.open(database) as store:
            assert await Operator(store).prune(timedelta(0)) == 12
        await stage.watcher.execute("drop table flowdsl.journal_day_1")
        await stage.check()


async def test_an_open_journal_is_loaded_by_its_index_from_one_table(database: str) -> None:
    connection = await asyncpg.connect(database)
    await fill(connection, 500, steps=3)
    for recipe in recipes():
        await connection.execute(recipe)
    await connection.execute("analyze")
    some = await connection.fetchval("select array_agg(id) from (select id from flowdsl.executions limit 2) x")
    plan = "\n".join(row[0] for row in await connection.fetch("explain (analyze, timing off) " + _LOAD, some))
    assert all("never executed" in line for line in plan.splitlines() if "Seq Scan" in line) and "never executed" in plan, plan
    await connection.close()


_TOMORROW = """
select (lpad(to_hex((extract(epoch from date_trunc('day', now()) + interval '30 hours') * 1000)::bigint), 12, '0') || substr(md5('x'), 1, 20))::uuid
"""
