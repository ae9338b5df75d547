"""Starts, children and wake-ups beside millions of executions that have ended, as times of the same with empty tables."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from attrs import frozen

from flowdsl import Deployment, Success, bind
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.worker import Worker, new_id
from tests.bench.growth_rows import database, kept
from tests.bench.measured import middle
from tests.bench.subject import Ticks, child, note, parent, sequence
from tests.bench.waiting import BATCH, go_on, waiting

PATIENCE = 600.0


@frozen
class Sizes:
    finished: int
    """Executions of one step that have ended already, with their journals."""
    starts: int
    """Also of children."""
    woken: int


@frozen
class Bench:
    """A worker in this process, over one database. Each measurement gives its seconds."""

    worker: Worker
    store: Store
    sizes: Sizes

    async def started(self) -> float:
        """From outside, each with a key, until the last has ended."""
        wishes = [NewStart(id, "default", child.name, 1, "", id, "join", b"1") for id in (new_id() for _ in range(self.sizes.starts))]
        begun = time.perf_counter()
        for at in range(0, len(wishes), BATCH):
            await self.store.start(wishes[at : at + BATCH])
        await self._all([one.id for one in wishes], "succeeded")
        return time.perf_counter() - begun

    async def stepped(self) -> float:
        """Workflows of ten steps, 64 at a time, started and awaited in the worker's own process."""
        begun, left = time.perf_counter(), iter(range(self.sizes.starts))

        async def lane() -> None:
            for _ in left:
                await self.worker.wait(await self.worker.start(sequence, 10))

        await asyncio.gather(*(lane() for _ in range(64)))
        return time.perf_counter() - begun

    async def joined(self) -> float:
        """A parent and its children."""
        begun = time.perf_counter()
        exit = await self.worker.wait(await self.worker.start(parent, self.sizes.starts))
        if exit != Success(self.sizes.starts):
            raise RuntimeError(f"{parent.name} ended with {exit}")
        return time.perf_counter() - begun

    async def woken(self) -> float:
        """From the first signal until the last has ended."""
        ids = [new_id() for _ in range(self.sizes.woken)]
        for at in range(0, len(ids), BATCH):
            await self.store.start([NewStart(id, "default", waiting.name, 1, "", None, "join", b"1") for id in ids[at : at + BATCH]])
        await self._all(ids, "suspended")
        begun = time.perf_counter()
        for at in range(0, len(ids), BATCH):
            await self.store.send_many("default", go_on.name, [(id, b"1", "one") for id in ids[at : at + BATCH]])
        await self._all(ids, "succeeded")
        return time.perf_counter() - begun

    async def _all(self, ids: Sequence[str], status: str) -> None:
        """Asks for a few by their ids: to count would read the whole table, and be measured too."""
        async with asyncio.timeout(PATIENCE):
            at = 0
            while at < len(ids):
                some = ids[at : at + 100]
                query = "select count(*) from flowdsl.executions where id = any($1::uuid[]) and status = $2"
                if (await self.store.again(query, some, status))[0][0] == len(some):
                    at += len(some)
                else:
                    await asyncio.sleep(0.01)


def _measurements(sizes: Sizes) -> dict[str, Callable[[Bench], Awaitable[float]]]:
    return {
        f"{sizes.starts:,} started with keys, run and ended": Bench.started,
        f"{sizes.starts:,} of ten steps, 64 at a time": Bench.stepped,
        f"{sizes.starts:,} children started and joined": Bench.joined,
        f"{sizes.woken:,} woken by a signal and ended": Bench.woken,
    }


async def against_finished(url: str, sizes: Sizes, rounds: int) -> list[dict[str, Any]]:
    """Both in turns; the first round is for the caches. The ratio is the median of those of the rounds."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(database(url, "none")), await stack.enter_async_context(kept(url, sizes.finished, 1))]
        benches = [await _bench(stack, dsn, sizes) for dsn, _ in stores]
        measurements = _measurements(sizes)
        found = [{what: [await ask(bench) for bench in benches] for what, ask in measurements.items()} for _ in range(rounds + 1)]
    return [_row(what, sizes, [one_round[what] for one_round in found[1:]]) for what in measurements]


async def _bench(stack: AsyncExitStack, dsn: str, sizes: Sizes) -> Bench:
    store = await stack.enter_async_context(await Store.open(dsn))
    deployment = Deployment(workflows=[sequence, child, parent, waiting], bindings=[bind(note, Ticks().note)])
    return Bench(await stack.enter_async_context(Worker(deployment, store)), store, sizes)


def _row(what: str, sizes: Sizes, pairs: Sequence[Sequence[float]]) -> dict[str, Any]:
    ratios = [beside / alone for alone, beside in pairs]
    return {
        "": what,
        "empty tables, s": middle([alone for alone, _ in pairs]),
        f"beside {sizes.finished:,} that have ended, s": middle([beside for _, beside in pairs]),
        "times as long": middle(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }
