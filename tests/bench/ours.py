"""Our engine, one worker in one process: steps a second through `start` and `wait`, wide workflows, children, storms; starts and ends alone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import asyncpg
from attrs import frozen

from flowdsl import Schedule, Success, Workflow
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Tuning, Worker
from tests.bench import waiting
from tests.bench.measured import Figures, Sample, Watch, lanes
from tests.bench.profiled import ORDER, Sampler
from tests.bench.servers import scratch
from tests.bench.subject import Ticks, child, parent, sequence, wide

LEASE = 2.0
"""Of a worker that is killed: its successor waits so long, which is not counted."""


async def measure(dsn: str, watcher: Any, in_flight: int, seconds: float, ticks: Ticks | None = None) -> Sample:
    """Workflows of ten steps, that many at a time."""
    ticks = ticks or Ticks()
    async with await Store.open(dsn) as store, Worker(ticks.deployment(), store) as worker:

        async def one(steps: int) -> None:
            await worker.wait(await worker.start(sequence, steps))

        return await lanes(in_flight, one, Watch(watcher, lambda: ticks.count).window("ours", in_flight, seconds))


class Ours:
    """flowdsl as it comes. Each measurement has a worker of its own."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._watcher: Any = None

    async def begin(self) -> str:
        self._watcher = await asyncpg.connect(self._dsn)
        await migrate(self._dsn)
        return version("flowdsl")

    async def seq(self, in_flight: int, seconds: float) -> Figures:
        ticks = Ticks()
        sample = await measure(self._dsn, self._watcher, in_flight, seconds, ticks)
        return sample.figures(seconds, total=ticks.count)

    async def profile(self, in_flight: int, seconds: float) -> Figures:
        """The client's CPU of a step, in µs, by the part of the code."""
        sampler, ticks = Sampler(), Ticks()
        with sampler.running():
            sample = await measure(self._dsn, self._watcher, in_flight, seconds, ticks)
        all = max(1, sampler.parts.total())
        return sample.figures(seconds, **{part: sample.client_us * sampler.parts[part] / all for part in ORDER}, samples=all)

    async def fanout(self, count: int, _: float) -> Figures:
        return await self._alone(wide, count)

    async def children(self, count: int, _: float) -> Figures:
        return await self._alone(parent, count)

    async def _alone(self, workflow: Workflow[int, int, Any], count: int) -> Figures:
        async with self._worker(Ticks()) as worker:
            await worker.wait(await worker.start(workflow, 10))

            async def work() -> None:
                exit = await worker.wait(await worker.start(workflow, count))
                if exit != Success(count):
                    raise RuntimeError(f"{workflow.name} of {count} ended with {exit}")

            return await Watch(self._watcher, int).over(count, work())

    async def wake(self, count: int, _: float) -> Figures:
        async with scratch(self._dsn, "wake") as dsn:  # of its own: what is there is counted
            found = await waiting.measure(dsn, count)
        facts = {name: getattr(found, name) for name in ("idle_mb", "suspended_mb", "peak_mb", "bytes_each", "start_s", "send_s")}
        return Figures(count, found.wake_s, more=facts)

    async def storm(self, count: int, _: float) -> Figures:
        """Schedules that all fall due in one instant, until the last of what they start has ended."""
        schedules = [Schedule.every("1d", child, number, id=f"bench-{time.time_ns()}-{number}") for number in range(count)]
        ticks, tuning = Ticks(), Tuning(poll=0.05)
        async with await Store.open(self._dsn) as store, Worker(ticks.deployment(schedules), store, tuning):
            found = await Watch(self._watcher, int).over(count, self._stormed(count, ticks))
        await self._watcher.execute("delete from flowdsl.schedules")
        return found

    async def _stormed(self, count: int, ticks: Ticks) -> None:
        last = asyncio.Event()
        ticks.hook = lambda: last.set() if ticks.count >= count else None
        await self._watcher.execute(_DUE_NOW)
        async with asyncio.timeout(300):
            await last.wait()
            while await self._watcher.fetchval(
                "select exists (select from flowdsl.executions where status = 'running' and workflow = $1)", child.name
            ):
                await asyncio.sleep(0.01)

    async def cold(self, steps: int, _: float) -> Figures:
        """The first result of a process; how long it took is for whoever started it."""
        async with self._worker(Ticks()) as worker:
            await worker.wait(await worker.start(sequence, steps))
        return Figures(steps, 0.0)

    # A kill in the middle of a long execution

    async def die(self, steps: int, _: float) -> Figures:
        """Runs that many steps, and is killed in the next."""
        ticks = Ticks()
        ticks.hook = lambda: os.kill(os.getpid(), signal.SIGKILL) if ticks.count > steps else None
        async with await Store.open(self._dsn) as store, Worker(ticks.deployment(), store, Tuning(lease=LEASE)) as worker:
            await worker.wait(await worker.start(sequence, steps + 1))
        raise RuntimeError(f"a workflow of {steps + 1} steps ended without the kill")

    async def resume(self, steps: int, _: float) -> Figures:
        """From the beginning of a fresh worker to the step that the dead one did not finish; its lease has run out before."""
        await self._watcher.execute("select pg_sleep($1)", LEASE + 0.5)
        kept = await self._watcher.fetchval("select count(*) from flowdsl.journal where kind = 1 and execution = (" + _LEFT + ")")
        ticks, running = Ticks(), asyncio.Event()
        ticks.hook = running.set
        async with await Store.open(self._dsn) as store:
            left = await self._watcher.fetchval(_LEFT)

            async def work() -> None:
                async with Worker(ticks.deployment(), store) as worker:
                    await running.wait()
                    found.append(time.perf_counter())
                    await worker.wait(str(left))

            found: list[float] = []
            begun = time.perf_counter()
            async with asyncio.timeout(120):
                await work()
        return Figures(steps, found[0] - begun, more={"kept": kept, "run_again": ticks.count - 1})

    @asynccontextmanager
    async def _worker(self, ticks: Ticks) -> AsyncGenerator[Worker]:
        async with await Store.open(self._dsn) as store, Worker(ticks.deployment(), store) as worker:
            yield worker


_DUE_NOW = "update flowdsl.schedules set due = today, upcoming = today from (select date_trunc('day', clock_timestamp(), 'UTC') as today) t"
_LEFT = "select id from flowdsl.executions where status = 'running' and workflow = 'bench.sequence' order by started desc limit 1"


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
