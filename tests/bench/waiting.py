"""Executions that wait: what each costs in the store and in its worker, and how long it takes until all are woken by their signals.

`python -m tests.bench.waiting --count 100000` for a run of its own; the worker is a process, so that its memory is its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Never

import asyncpg
import psutil
from attrs import asdict, frozen

from flowdsl import Deployment, Steps, signal, workflow
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.worker import new_id
from tests.bench.measured import Watch
from tests.bench.servers import scratch, server

BATCH = 1000
go_on = signal("bench.go-on", int)


@workflow("bench.waiting")
def waiting(n: int) -> Steps[int, Never]:
    return n + (yield from go_on.receive())


deployment = Deployment(workflows=[waiting])


@frozen
class Waited:
    count: int
    idle_mb: float
    """The worker's memory before there was anything."""
    suspended_mb: float
    """The same with all of them suspended."""
    peak_mb: float
    bytes_each: float
    """What one suspended execution takes in the store, indexes included."""
    start_s: float
    """Until all were started and suspended."""
    send_s: float
    """Until all signals were acknowledged."""
    wake_s: float
    """From the first signal until all had ended."""
    worker_us: float
    """CPU of the worker meanwhile, each."""
    server_us: float | None
    """CPU of the backends, each: of who sends and who asks, too."""
    wal_bytes: float | None


HOW_MANY = f"select count(*) from flowdsl.executions where workflow = '{waiting.name}' and status = '{{}}'"


@asynccontextmanager
async def a_worker(dsn: str) -> AsyncGenerator[psutil.Process]:
    command = [sys.executable, "-m", "flowdsl", "worker", "tests.bench.waiting:deployment"]
    worker = await asyncio.create_subprocess_exec(*command, env={**os.environ, "FLOWDSL_DATABASE_URL": dsn}, stderr=asyncio.subprocess.DEVNULL)
    try:
        yield psutil.Process(worker.pid)
    finally:
        if worker.returncode is None:
            worker.terminate()
        await worker.wait()


@asynccontextmanager
async def watching(dsn: str) -> AsyncGenerator[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def measure(dsn: str, count: int) -> Waited:
    await migrate(dsn)
    async with watching(dsn) as watcher, await Store.open(dsn) as store, a_worker(dsn) as worker:
        await _until(store, "select count(*) from flowdsl.workers where not gone", 1, worker)
        await asyncio.sleep(1)
        idle, began = _mb(worker), time.monotonic()
        ids = [new_id() for _ in range(count)]
        for at in range(0, count, BATCH):
            await store.start([NewStart(id, "default", waiting.name, 1, "", None, "join", b"1") for id in ids[at : at + BATCH]])
        peak = await _until(store, HOW_MANY.format("suspended"), count, worker)
        started = time.monotonic()
        await asyncio.sleep(1)
        suspended = _mb(worker)
        await store.again("vacuum flowdsl.executions")
        size = (await store.again("select sum(pg_total_relation_size(t)) from unnest(array["
                                  "'flowdsl.executions'::regclass, 'flowdsl.journal'::regclass, 'flowdsl.mailbox'::regclass]) t"))[0][0]  # fmt: skip
        watch, used = Watch(watcher, int), worker.cpu_times()
        before, sending = await watch.read(), time.monotonic()
        for at in range(0, count, BATCH):
            await store.send_many("default", go_on.name, [(id, b"1", "one") for id in ids[at : at + BATCH]])
        sent = time.monotonic()
        peak = max(peak, await _until(store, HOW_MANY.format("succeeded"), count, worker))
        ended, after, spent = time.monotonic(), await watch.read(), worker.cpu_times()
        server, wal = before.server_until(after), before.wal_until(after)
        return Waited(
            count, idle, suspended, peak, int(size) / count, started - began, sent - sending, ended - sending,
            (spent.user + spent.system - used.user - used.system) / count * 1e6,
            None if server is None else server / count * 1e6, None if wal is None else wal / count,
        )  # fmt: skip


async def _until(store: Store, query: str, wanted: int, worker: psutil.Process | None = None) -> float:
    """Waits for a count; gives the worker's highest memory meanwhile."""
    peak, deadline = 0.0, time.monotonic() + 600
    while time.monotonic() < deadline:
        if worker is not None and (not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE):
            raise SystemExit("waiting: the worker has ended; `flowdsl worker tests.bench.waiting:deployment` says why")
        found = (await store.again(query))[0][0]
        peak = max(peak, _mb(worker) if worker is not None else 0.0)
        if found >= wanted:
            return peak
        await asyncio.sleep(0.05)
    raise SystemExit(f"waiting: {found} of {wanted} after ten minutes ({query})")


def _mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20


async def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.waiting", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--database", metavar="URL", help="a server where databases may be made (default: the embedded one)")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    async with server(chosen.database) as url, scratch(url, "waiting") as dsn:
        found = await measure(dsn, chosen.count)
    facts: dict[str, Any] = asdict(found)
    if chosen.json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name:<14}{value:>12,.1f}" if isinstance(value, float) else f"{name:<14}{value:>12,}")


if __name__ == "__main__":
    asyncio.run(main())
