"""Temporal's dev server, with its SQLite file: server, worker and client on this machine. Figures of a development server, not of a cluster.

Its fastest form that keeps what it acknowledges: SQLite's write-ahead log, flushed at each commit; no sandbox; as many pollers as it likes.
Regular activities.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from datetime import timedelta
from importlib.metadata import version
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import PollerBehaviorAutoscaling, UnsandboxedWorkflowRunner, Worker

from tests.bench.measured import Beside, Figures, Sample, lanes
from tests.bench.peers import program
from tests.bench.servers import free_port
from tests.bench.subject import FILLER

QUEUE, LIMIT = "bench", timedelta(seconds=60)
steps_made = 0


@activity.defn
async def note(i: int) -> dict[str, Any]:
    global steps_made
    steps_made += 1
    return {"i": i, "ok": True, "data": FILLER}


async def _note(i: int) -> Any:
    return await workflow.execute_activity(note, i, start_to_close_timeout=LIMIT)


@workflow.defn
class Sequence:
    @workflow.run
    async def run(self, steps: int) -> int:
        for i in range(steps):
            await _note(i)
        return steps


@workflow.defn
class Wide:
    @workflow.run
    async def run(self, count: int) -> int:
        return len(await asyncio.gather(*(_note(i) for i in range(count))))


class Temporal:
    def __init__(self, _: str) -> None:
        self._client: Any = None
        self._server: Any = None
        self._ids = 0

    async def begin(self) -> str:
        port = free_port()
        database = tempfile.mkdtemp(prefix="flowdsl-bench-") + "/temporal.db"
        self._server = await asyncio.create_subprocess_exec(
            program("temporal") or "temporal", "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port),
            "--db-filename", database, "--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=2", "--log-level", "error",
            stdout=asyncio.subprocess.DEVNULL, stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        for _ in range(300):
            try:
                self._client = await Client.connect(f"127.0.0.1:{port}")
                break
            except RuntimeError:
                if self._server.returncode is not None:
                    raise RuntimeError(f"`temporal server start-dev` ended with {self._server.returncode}") from None
                await asyncio.sleep(0.1)
        worker = Worker(
            self._client, task_queue=QUEUE, workflows=[Sequence, Wide], activities=[note], workflow_runner=UnsandboxedWorkflowRunner(),
            max_concurrent_activities=256, max_concurrent_workflow_tasks=256,
            activity_task_poller_behavior=PollerBehaviorAutoscaling(), workflow_task_poller_behavior=PollerBehaviorAutoscaling(),
        )  # fmt: skip
        self._working = asyncio.create_task(worker.run())
        return f"{await self._version()}, SDK {version('temporalio')}"

    async def _version(self) -> str:
        """Of the server: `temporal version 1.9.1 (Server 1.32.0, UI 2.54.1)`."""
        asked = await asyncio.create_subprocess_exec(program("temporal") or "temporal", "--version", stdout=asyncio.subprocess.PIPE)
        told = (await asked.communicate())[0].decode()
        found = re.search(r"Server ([0-9.]+)", told)
        return found[1] if found else told.strip()

    async def _run(self, what: Any, size: int) -> int:
        self._ids += 1
        return int(await self._client.execute_workflow(what.run, size, id=f"bench-{time.time_ns()}-{self._ids}", task_queue=QUEUE))

    async def seq(self, in_flight: int, seconds: float) -> Figures:
        before = steps_made
        span = Beside(self._server.pid, lambda: steps_made)

        async def one(steps: int) -> None:
            await self._run(Sequence, steps)

        sample: Sample = await lanes(in_flight, one, span.window("temporal", in_flight, seconds, above=before))
        return sample.figures(seconds, total=steps_made - before)

    async def fanout(self, count: int, _: float) -> Figures:
        await self._run(Wide, 10)
        return await Beside(self._server.pid, int).over(count, self._run(Wide, count))

    async def cold(self, steps: int, _: float) -> Figures:
        """With the start of its server, which is a part of the process here."""
        await self._run(Sequence, steps)
        return Figures(steps, 0.0)

    async def end(self) -> None:
        self._server.kill()
        await self._server.wait()
