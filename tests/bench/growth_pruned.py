"""Retention, measured: how fast, how long one batch holds its locks, what a worker beside it does, and how much tables grow when all comes again."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

from flowdsl.postgres.operating import Operator
from flowdsl.postgres.store import Store
from tests.bench import ours
from tests.bench.growth_rows import database, fill


async def retained(url: str, count: int, seconds: float) -> list[dict[str, Any]]:
    """Prunes so many executions, and fills the tables again."""
    rows: list[dict[str, Any]] = []
    async with database(url, "pruned", count) as (dsn, watcher), await Store.open(dsn) as store:
        before = await size(watcher)
        alone = await ours.measure(dsn, watcher, 16, seconds)
        longest, began, gone = 0.0, time.perf_counter(), 0
        pruning = asyncio.create_task(_prune(store))
        beside = await ours.measure(dsn, watcher, 16, seconds)
        gone, longest = await pruning
        took = time.perf_counter() - began
        await watcher.execute("vacuum flowdsl.executions; ", timeout=1200)
        await watcher.execute("vacuum flowdsl.journal", timeout=1200)
        empty = await size(watcher)
        await fill(watcher, count)
        await watcher.execute("vacuum flowdsl.journal", timeout=1200)
        rows.append(
            {
                "pruned": gone, "executions/s": gone / took, "longest batch, ms": longest * 1e3, "steps/s beside it": beside.steps_per_s,
                "alone": alone.steps_per_s, "MB before": before / 1e6, "MB after a vacuum": empty / 1e6,
                "filled again, of before": await size(watcher) / before,
            }
        )  # fmt: skip
    return rows


async def _prune(store: Store) -> tuple[int, float]:
    """All tenants' executions; and the longest that one statement took."""
    longest, gone = 0.0, 0
    again = store.again

    async def timed(query: str, *arguments: Any) -> list[Any]:
        nonlocal longest
        begun = time.perf_counter()
        try:
            return await again(query, *arguments)
        finally:
            longest = max(longest, time.perf_counter() - begun)

    store.again = timed  # type: ignore[method-assign]
    for row in await again("select distinct tenant from flowdsl.executions"):
        gone += await Operator(store, tenant=row["tenant"]).prune(timedelta(hours=1))
    return gone, longest


async def size(watcher: Any) -> int:
    """Bytes of executions and journal, indexes included."""
    query = "select pg_total_relation_size('flowdsl.executions') + pg_total_relation_size('flowdsl.journal')"
    return int(await watcher.fetchval(query))
