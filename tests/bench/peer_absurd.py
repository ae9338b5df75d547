"""Absurd: stored procedures in Postgres. A worker has one connection, so there is a form with eight workers in the process.

All tasks are there before the clock starts, workers look every 10 ms, and the end is seen by one cheap query: its fastest form.
Each measurement has a queue of its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import asyncpg
from absurd_sdk import AsyncAbsurd
from absurdctl import BUNDLED_SCHEMA_SQL

from tests.bench.measured import Figures, Watch, lanes
from tests.bench.subject import FILLER

POLL = 0.01
DYING = "dying"
CLAIM = 2
"""Seconds of a claim in the queue where a worker is killed."""


class Absurd:
    workers = 1

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._watcher: Any = None
        self._queues = 0
        self._steps = 0
        self._over = False
        self._die_after = -1
        self._going = asyncio.Event()

    async def begin(self) -> str:
        self._watcher = await asyncpg.connect(self._dsn)
        if not await self._watcher.fetchval("select exists (select from pg_namespace where nspname = 'absurd')"):
            await self._watcher.execute(BUNDLED_SCHEMA_SQL)
        return version("absurd-sdk")

    async def _note(self, i: int) -> dict[str, object]:
        self._steps += 1
        if 0 <= self._die_after < self._steps:
            os.kill(os.getpid(), signal.SIGKILL)
        self._going.set()
        return {"i": i, "ok": True, "data": FILLER}

    def _app(self, queue: str, children: AsyncAbsurd | None = None) -> AsyncAbsurd:
        app = AsyncAbsurd(self._dsn, queue_name=queue)

        @app.register_task("sequence")
        async def sequence(params: Any, ctx: Any) -> int:
            for i in range(params["n"]):
                if self._over:
                    break
                await ctx.step(f"s{i}", lambda i=i: self._note(i))
            return int(params["n"])

        @app.register_task("wide")
        async def wide(params: Any, ctx: Any) -> int:
            return len(await asyncio.gather(*(ctx.step(f"s{i}", lambda i=i: self._note(i)) for i in range(params["n"]))))

        @app.register_task("child")
        async def child(params: Any, ctx: Any) -> Any:
            return await ctx.step("s", lambda: self._note(params["n"]))

        @app.register_task("waiting")
        async def waiting(_: Any, ctx: Any) -> Any:
            return await ctx.await_event("go")

        @app.register_task("parent")
        async def parent(params: Any, ctx: Any) -> int:
            assert children is not None

            async def spawned(i: int) -> str:
                return str((await children.spawn("child", {"n": i}, idempotency_key=f"{ctx.task_id}-{i}"))["task_id"])

            ids = [await ctx.step(f"c{i}", lambda i=i: spawned(i)) for i in range(params["n"])]
            return len(await asyncio.gather(*(ctx.await_task_result(id, queue_name=children._queue_name) for id in ids)))

        return app

    @asynccontextmanager
    async def _queue(self) -> AsyncGenerator[str]:
        self._queues += 1
        name = f"q{os.getpid()}_{self._queues}"
        await self._watcher.execute("select absurd.create_queue($1)", name)
        try:
            yield name
        finally:
            await self._watcher.execute("select absurd.drop_queue($1)", name)

    async def _spawn(self, queue: str, task: str, sizes: list[int]) -> None:
        await self._watcher.execute("select absurd.spawn_task($1, $2, jsonb_build_object('n', n)) from unnest($3::int[]) n", queue, task, sizes)

    @asynccontextmanager
    async def _working(self, queue: str, concurrency: int, claim: int = 120, children: str | None = None) -> AsyncGenerator[None]:
        there = None if children is None else self._app(children)
        apps = [self._app(queue, there) for _ in range(self.workers)]
        each = max(1, concurrency // self.workers)
        tasks = [
            asyncio.create_task(app.start_worker(f"w{i}", claim_timeout=claim, concurrency=each, poll_interval=POLL)) for i, app in enumerate(apps)
        ]
        if there is not None:
            kids = self._app(there._queue_name)
            apps += [there, kids]
            tasks.append(asyncio.create_task(kids.start_worker("kids", concurrency=32, poll_interval=POLL)))
        try:
            yield
        finally:
            for app in apps:
                app.stop_worker()
            _, late = await asyncio.wait(tasks, timeout=60)
            for task in late:
                task.cancel()
            for app in apps:
                await app.close()

    async def _ended(self, queue: str, count: int, states: tuple[str, ...] = ("completed", "failed", "cancelled")) -> None:
        async with asyncio.timeout(300):
            while await self._watcher.fetchval(f"select count(*) from absurd.t_{queue} where state = any($1)", list(states)) < count:
                await asyncio.sleep(0.02)

    async def seq(self, in_flight: int, seconds: float) -> Figures:
        """Enough tasks for the window; those that it leaves over go with the queue."""
        self._over = False
        async with self._queue() as queue:
            enough = in_flight + int((seconds + 3) * 250)
            await self._spawn(queue, "sequence", [i % 10 + 1 for i in range(in_flight)] + [10] * enough)
            async with self._working(queue, in_flight):
                before = self._steps
                sample = await lanes(0, _nothing, Watch(self._watcher, lambda: self._steps).window("absurd", in_flight, seconds, above=before))
                self._over = True
            return sample.figures(seconds, total=self._steps - before)

    async def _one(self, task: str, count: int, children: bool = False) -> Figures:
        self._over = False
        async with self._queue() as queue, self._queue() as others:
            async with self._working(queue, 1, children=others if children else None):
                await self._spawn(queue, task, [3])
                await self._ended(queue, 1)

                async def work() -> None:
                    await self._spawn(queue, task, [count])
                    await self._ended(queue, 2)

                found = await Watch(self._watcher, int).over(count, work())
            if await self._watcher.fetchval(f"select count(*) from absurd.t_{queue} where state = 'completed'") != 2:
                raise RuntimeError(f"Absurd's {task} did not complete")
            return found

    async def fanout(self, count: int, _: float) -> Figures:
        return await self._one("wide", count)

    async def children(self, count: int, _: float) -> Figures:
        return await self._one("parent", count, children=True)

    async def wake(self, count: int, _: float) -> Figures:
        """All wait for one event: its form for many at once."""
        self._over = False
        async with self._queue() as queue, self._working(queue, 64):
            begun = time.perf_counter()
            await self._spawn(queue, "waiting", [0] * count)
            await self._ended(queue, count, ("sleeping",))
            started = time.perf_counter() - begun

            async def work() -> None:
                await self._watcher.execute("select absurd.emit_event($1, 'go', '1')", queue)
                await self._ended(queue, count)

            return await Watch(self._watcher, int).over(count, work(), start_s=started)

    async def cold(self, steps: int, _: float) -> Figures:
        async with self._queue() as queue, self._working(queue, 1):
            await self._spawn(queue, "sequence", [steps])
            await self._ended(queue, 1)
        return Figures(steps, 0.0)

    async def die(self, steps: int, _: float) -> Figures:
        self._die_after = self._steps + steps
        await self._watcher.execute("select absurd.create_queue($1)", DYING)
        await self._spawn(DYING, "sequence", [steps + 1])
        async with self._working(DYING, 1, CLAIM):
            await self._ended(DYING, 1)
        raise RuntimeError(f"a task of {steps + 1} steps ended without the kill")

    async def resume(self, steps: int, _: float) -> Figures:
        """From the start of a fresh worker; the dead one's claim has lapsed before."""
        lapsed = f"select not exists (select from absurd.r_{DYING} where claim_expires_at > clock_timestamp())"
        async with asyncio.timeout(60):
            while not await self._watcher.fetchval(lapsed):
                await asyncio.sleep(0.05)
        begun, before = time.perf_counter(), self._steps
        async with asyncio.timeout(120), self._working(DYING, 1):
            await self._going.wait()
            took = time.perf_counter() - begun
            await self._ended(DYING, 1)
        await self._watcher.execute("select absurd.drop_queue($1)", DYING)
        return Figures(steps, took, more={"run_again": self._steps - before - 1})


class AbsurdTimes8(Absurd):
    workers = 8


async def _nothing(_: int) -> None: ...
