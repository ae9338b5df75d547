"""A sync of an organization over HTTP: ours, with a journal, beside a client that asks for the same lists and writes the same rows, with none.

Both read from a stand-in process without faults and with a quota that is never reached. What bounds them first is the stand-in.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import psutil

from adapters.demo.stage import Stage
from adapters.deployment import deployment
from adapters.planning_center.document import records
from adapters.planning_center.manifest import PEOPLE
from adapters.planning_center.pages import AT_ONCE, BATCH
from adapters.planning_center.settings import Settings
from adapters.sync_store import Mark, Records
from domains.sync.graph import Link, plan
from domains.sync.manifest import Entity
from domains.sync.values import MainSync
from domains.sync.workflows import AT_A_TIME, main_sync
from flowdsl.journal import codecs_of
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.worker import new_id
from tests.bench.measured import Figures
from tests.bench.peers import Silent
from tests.bench.servers import scratch

ORG = "org_bench"
QUOTA = ("--limit", "100000000", "--period", "2", "--faults", "none", "--seed", "7")


async def measured(url: str, name: str, people: int) -> Figures:
    """Records a second. Raises `Silent` when the sync does not succeed."""
    async with scratch(url, f"people_{name}") as dsn:
        await migrate(dsn, deployment.migrations)
        async with _source(people) as (stage, address):
            took, cpu, entries = await (_synced(stage, dsn) if name == "ours" else _read(address, dsn))
            asked = httpx2.get(f"{address}/_standin/stats", timeout=30).json()
        connection = await asyncpg.connect(dsn)
        written = await connection.fetchval("select count(*) from sync.records where deleted_at is null")
        links = await connection.fetchval("select count(*) from sync.links")
        await connection.close()
    requests = sum(count for outcomes in asked["requests"].values() for count in outcomes.values())
    return Figures(written, took, cpu / written * 1e6, more={"requests": requests, "entries": entries, "links": links})


@asynccontextmanager
async def _source(people: int) -> AsyncGenerator[tuple[Stage, str]]:
    with tempfile.TemporaryDirectory(prefix="flowdsl-bench-") as logs, Stage(Path(logs)) as stage:
        address = await asyncio.to_thread(stage.standin, "--people", str(people), *QUOTA)
        stage.environment |= {"PLANNING_CENTER_URL": address, "PLANNING_CENTER_TOKEN": "app_id:secret"}
        yield stage, address


async def _synced(stage: Stage, dsn: str) -> tuple[float, float, int]:
    """One worker process, which is there before; seconds, CPU seconds of the worker, entries of the journal."""
    order = MainSync(ORG, "pco", "full", "manual")
    key, body = main_sync.key_of(order), codecs_of(main_sync).request.encode(order)
    async with await Store.open(dsn, size=2) as store:
        pid = stage.worker(dsn, 10.0)

        async def until(query: str, *wanted: object) -> Any:
            while (found := await store.again(query))[0][0] not in wanted:
                if stage.workers[pid].poll() is not None:
                    raise Silent(f"the worker of the sync ended with {stage.workers[pid].returncode}")
                await asyncio.sleep(0.02)
            return found[0]

        await until("select count(*) from flowdsl.workers where not gone", 1)
        worker = psutil.Process(pid)
        begun, before = time.perf_counter(), worker.cpu_times()
        await store.start([NewStart(new_id(), "default", main_sync.name, main_sync.version, "", key, main_sync.reuse, body)])
        ended = "select status, cause from flowdsl.executions where parent is null"
        status, cause = await until(ended, "succeeded", "failed", "cancelled", "blocked")
        took, after = time.perf_counter() - begun, worker.cpu_times()
        if status != "succeeded":
            raise Silent(f"the sync {status}: {cause}")
        entries = (await store.again("select count(*) from flowdsl.journal"))[0][0]
    return took, after.user + after.system - before.user - before.system, entries


# The bare client


async def _read(address: str, dsn: str) -> tuple[float, float, int]:
    """Seconds, and CPU seconds; it has no journal."""
    begun, used = time.perf_counter(), time.process_time()
    headers = dict(Settings(address, "app_id:secret", "bench").headers)
    async with asyncpg.create_pool(dsn, min_size=AT_A_TIME, max_size=AT_A_TIME) as pool, httpx2.AsyncClient(headers=headers, timeout=60) as client:
        reader = _Reader(client, pool, f"{address}/people/v2")
        room = asyncio.Semaphore(AT_A_TIME)
        read = {entity.name: asyncio.Event() for entity in PEOPLE.entities}

        async def one(entity: Entity) -> None:
            if entity.nested:
                await read[entity.owner_entity or ""].wait()
            async with room:
                await (reader.by_owner(entity) if entity.nested else reader.pages(entity))
            read[entity.name].set()

        await asyncio.gather(*map(one, PEOPLE.entities))
        for link in plan(PEOPLE, "full").unwrap().links:
            await reader.link(link)
    return time.perf_counter() - begun, time.process_time() - used, 0


class _Reader:
    """Reads ahead by a page, as ours does: what was read is written while the next is on its way."""

    def __init__(self, client: httpx2.AsyncClient, pool: Any, root: str) -> None:
        self._client, self._pool, self._root = client, pool, root
        self._writing: dict[str, asyncio.Task[None]] = {}

    async def pages(self, entity: Entity) -> None:
        """Page by page, each in a transaction of its own."""
        address = f"{self._root}/{entity.path}?per_page={PEOPLE.page_size}" + (f"&order={entity.changed}" if entity.changed else "")
        while address:
            at = await self._now()
            document = await self._document(address)
            await self._write(entity, records(address, document, entity).unwrap(), at)
            address = document.get("links", {}).get("next")
        await self._writing[entity.name]

    async def by_owner(self, entity: Entity) -> None:
        """Owner by owner, some at once, so many owners in a transaction."""
        async with self._pool.acquire() as connection:
            found = await connection.fetch("select id from sync.records where entity = $1 order by id", entity.owner_entity)
        owners = [row["id"] for row in found]
        room = asyncio.Semaphore(AT_ONCE)

        async def of(owner: str) -> list[Any]:
            async with room:
                document = await self._document(f"{self._root}/{entity.path.format(owner=owner)}?per_page={PEOPLE.page_size}")
                return records(owner, document, entity, owner).unwrap()

        for first in range(0, len(owners), BATCH):
            at = await self._now()
            rows = [row for some in await asyncio.gather(*map(of, owners[first : first + BATCH])) for row in some]
            await self._write(entity, rows, at)
        await self._writing[entity.name]

    async def link(self, link: Link) -> None:
        async with self._pool.acquire() as connection, connection.transaction():
            await Records(connection, ORG, PEOPLE.adapter_name, link.entity_name).link(link.relationship, link.target)

    async def _document(self, address: str) -> dict[str, Any]:
        response = await self._client.get(address)
        response.raise_for_status()
        document: dict[str, Any] = response.json()
        return document

    async def _now(self) -> Any:
        async with self._pool.acquire() as connection:
            return await connection.fetchval("select clock_timestamp()")

    async def _write(self, entity: Entity, rows: list[Any], at: Any) -> None:
        """Begins to, once the page before it is written."""
        before = self._writing.get(entity.name)
        if before is not None:
            await before
        self._writing[entity.name] = asyncio.create_task(self._put(entity, rows, at))

    async def _put(self, entity: Entity, rows: list[Any], at: Any) -> None:
        marks = (Mark(entity.name, under_owner=True),) if entity.siblings else ()
        async with self._pool.acquire() as connection, connection.transaction():
            await Records(connection, ORG, PEOPLE.adapter_name, entity.name).put(rows, at, since=at, marks=marks, moving_since=at)
