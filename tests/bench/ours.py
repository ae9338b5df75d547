"""Our engine, one worker in one process: steps a second through `start` and `wait`, wide workflows, children, storms; starts and ends alone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import asyncpg
from attrs import frozen

from flowdsl import Schedule, Success, Workflow
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Tuning, Worker
from tests.bench import wal
from tests.bench.measured import Figures, Sample, Watch, lanes
from tests.bench.profiled import ORDER, Sampler
from tests.bench.subject import Ticks, child, parent, sequence, wide

WAL = "wal: "
"""Before the name of what takes so many bytes a step."""
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
        self._running = AsyncExitStack()

    async def begin(self) -> str:
        self._watcher = await asyncpg.connect(self._dsn)
        await migrate(self._dsn)
        return ""  # whose version it is the run knows

    async def seq(self, in_flight: int, seconds: float) -> Figures:
        ticks = Ticks()
        sample = await measure(self._dsn, self._watcher, in_flight, seconds, ticks)
        return sample.figures(seconds, total=ticks.count)

    async def profile(self, in_flight: int, seconds: float) -> Figures:
        """The client's CPU of a step, in µs, by the part of the code; its flushes, and its WAL by table, where the server tells."""
        sampler, ticks = Sampler(), Ticks()
        begin, before = await wal.position(self._watcher), await wal.flushes(self._watcher)
        with sampler.running():
            sample = await measure(self._dsn, self._watcher, in_flight, seconds, ticks)
        end = await wal.position(self._watcher)
        await self._alone_again()
        after = await wal.flushes(self._watcher)
        more = {part: sample.client_us * sampler.parts[part] / max(1, sampler.parts.total()) for part in ORDER}
        more |= {"samples": sampler.parts.total(), "flushes": (after[0] - before[0]) / ticks.count}
        more |= {"flush_us": (after[1] - before[1]) / ticks.count * 1e6} if after[1] > before[1] else {}
        kinds = await wal.by_kind(self._watcher, begin, end) or {}
        return sample.figures(seconds, **more, **{f"{WAL}{what}": bytes / ticks.count for what, bytes in kinds.items()})

    async def _alone_again(self) -> None:
        """Sessions tell what they did when they end."""
        others = (
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
        )
        async with asyncio.timeout(60):
            while await self._watcher.fetchval(others):
                await asyncio.sleep(0.01)

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
        from tests.bench import waiting  # these look at processes and servers, which no cold start needs
        from tests.bench.servers import scratch

        async with scratch(self._dsn, "wake") as dsn:  # of its own: what is there is counted
            found = await waiting.measure(dsn, count)
        facts = {name: getattr(found, name) for name in ("idle_mb", "suspended_mb", "peak_mb", "bytes_each", "start_s", "send_s")}
        return Figures(count, found.wake_s, found.worker_us, found.server_us, found.wal_bytes, more=facts)

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
        """The first result of a process; how long it took is for whoever started it. The worker goes on, as those of the others do."""
        worker = await self._running.enter_async_context(self._worker(Ticks()))
        await worker.wait(await worker.start(sequence, steps))
        return Figures(steps, 0.0)

    async def end(self) -> None:
        await self._running.aclose()

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
