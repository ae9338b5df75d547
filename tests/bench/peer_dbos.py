"""DBOS: its workflows are awaited directly, without a queue, which is its fastest form."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from importlib.metadata import version
from typing import Any

import asyncpg
from dbos import DBOS, SendMessage, SetWorkflowID

from tests.bench.measured import Figures, Watch, lanes
from tests.bench.subject import FILLER

DYING = "bench-dying"
steps_made = 0
die_after = -1
going = asyncio.Event()


@DBOS.step()
async def note(i: int) -> dict[str, object]:
    global steps_made
    steps_made += 1
    if 0 <= die_after < steps_made:
        os.kill(os.getpid(), signal.SIGKILL)
    going.set()
    return {"i": i, "ok": True, "data": FILLER}


@DBOS.workflow()
async def sequence(steps: int) -> int:
    for i in range(steps):
        await note(i)
    return steps


@DBOS.workflow()
async def wide(count: int) -> int:
    return len(await asyncio.gather(*(note(i) for i in range(count))))


@DBOS.workflow()
async def child(number: int) -> dict[str, object]:
    return await note(number)


@DBOS.workflow()
async def parent(count: int) -> int:
    handles = [await DBOS.start_workflow_async(child, number) for number in range(count)]
    return len([await handle.get_result() for handle in handles])


@DBOS.workflow()
async def waiting(number: int) -> int:
    await DBOS.recv_async("go", timeout_seconds=3600)
    return number


class Dbos:
    """Launched when it is first asked for more than to be there."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._watcher: Any = None
        self._launched = False

    async def begin(self) -> str:
        self._watcher = await asyncpg.connect(self._dsn)
        self._config = {
            "name": "bench",
            "system_database_url": self._dsn,
            "application_version": "1",
            "executor_id": "local",
            "log_level": "ERROR",
        }
        return version("dbos")

    async def _launch(self) -> None:
        if not self._launched:
            self._launched = True
            DBOS(config=self._config)  # type: ignore[arg-type]
            DBOS.launch()
            await sequence(1)

    async def seq(self, in_flight: int, seconds: float) -> Figures:
        await self._launch()
        watch, before = Watch(self._watcher, lambda: steps_made), steps_made
        sample = await lanes(in_flight, sequence, watch.window("dbos", in_flight, seconds, above=before))
        return sample.figures(seconds, total=steps_made - before)

    async def fanout(self, count: int, _: float) -> Figures:
        await self._launch()
        await wide(10)
        return await Watch(self._watcher, int).over(count, wide(count))

    async def children(self, count: int, _: float) -> Figures:
        await self._launch()
        await parent(10)
        return await Watch(self._watcher, int).over(count, parent(count))

    async def wake(self, count: int, _: float) -> Figures:
        await self._launch()
        ids = [f"waiting-{time.time_ns()}-{number}" for number in range(count)]
        begun = time.perf_counter()
        for number, id in enumerate(ids):
            with SetWorkflowID(id):
                await DBOS.start_workflow_async(waiting, number)
        started = time.perf_counter() - begun
        return await Watch(self._watcher, int).over(count, self._woken(ids), start_s=started)

    async def _woken(self, ids: list[str]) -> None:
        for at in range(0, len(ids), 500):
            await DBOS.send_bulk_async([SendMessage(destination_id=id, message=1, topic="go") for id in ids[at : at + 500]])
        query = "select count(*) from dbos.workflow_status where workflow_uuid = any($1) and status = 'PENDING'"
        async with asyncio.timeout(300):
            while await self._watcher.fetchval(query, ids):
                await asyncio.sleep(0.05)

    async def cold(self, steps: int, _: float) -> Figures:
        DBOS(config=self._config)  # type: ignore[arg-type]
        DBOS.launch()
        await sequence(steps)
        return Figures(steps, 0.0)

    async def die(self, steps: int, _: float) -> Figures:
        global die_after
        await self._launch()
        die_after = steps_made + steps
        with SetWorkflowID(f"{DYING}-{time.time_ns()}"):
            await sequence(steps + 1)
        raise RuntimeError(f"a workflow of {steps + 1} steps ended without the kill")

    async def resume(self, steps: int, _: float) -> Figures:
        """Launching recovers what the dead process left."""
        begun, before = time.perf_counter(), steps_made
        DBOS(config=self._config)  # type: ignore[arg-type]
        DBOS.launch()
        self._launched = True
        async with asyncio.timeout(120):
            await going.wait()
            took = time.perf_counter() - begun
            while await self._watcher.fetchval("select count(*) from dbos.workflow_status where status = 'PENDING'"):
                await asyncio.sleep(0.05)
        return Figures(steps, took, more={"run_again": steps_made - before - 1})
