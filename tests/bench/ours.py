"""Our engine: steps a second through a worker's `start` and `wait` in one process, and how long a start and a finish take."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import asyncpg
from attrs import frozen

from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Worker
from tests.bench.measured import Sample, Watch, lanes
from tests.bench.subject import Ticks, sequence


async def measure(dsn: str, watcher: Any, in_flight: int, seconds: float) -> Sample:
    """Workflows of ten steps, that many at a time."""
    ticks = Ticks()
    async with await Store.open(dsn) as store, Worker(ticks.deployment(), store) as worker:

        async def one(steps: int) -> None:
            await worker.wait(await worker.start(sequence, steps))

        return await lanes(in_flight, one, Watch(watcher, lambda: ticks.count).window("ours", in_flight, seconds))


@frozen
class Latency:
    """Milliseconds, one for each workflow of `STEPS` steps that was run alone."""

    start: list[float]
    """From the call of `start` to the first activity."""
    step: list[float]
    """From one activity to the next."""
    finish: list[float]
    """From the last activity to the answer of `wait`."""
    commit: list[float]
    """A bare insert of one row on a prepared statement: one round trip, one flush."""


async def latency(dsn: str, count: int) -> Latency:
    ticks = Ticks()
    found = Latency([], [], [], [])
    times: list[float] = []
    ticks.hook = lambda: times.append(time.perf_counter())
    bare = await asyncpg.connect(dsn)
    await bare.execute("create table if not exists bare_commits (id integer, body text)")
    insert = await bare.prepare("insert into bare_commits values ($1, $2)")
    async with await Store.open(dsn) as store, Worker(ticks.deployment(), store) as worker:
        await worker.wait(await worker.start(sequence, 10))
        for number in range(count):
            times.clear()
            called = time.perf_counter()
            await worker.wait(await worker.start(sequence, 10))
            answered = time.perf_counter()
            found.start.append((times[0] - called) * 1e3)
            found.step.extend((b - a) * 1e3 for a, b in pairwise(times))
            found.finish.append((answered - times[-1]) * 1e3)
            asked = time.perf_counter()
            await insert.fetch(number, "x" * 200)
            found.commit.append((time.perf_counter() - asked) * 1e3)
    await bare.close()
    return found
