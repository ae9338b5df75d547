"""An enrichment over real HTTP: the stand-in on a port, the service with its webhooks on another, a worker, and Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import httpx2
import pytest
from attrs import define

from adapters.fullenrich import settings
from adapters.fullenrich.part import part
from adapters.standins.fullenrich import create_app, serve
from domains.enrichment.values import EnrichBatch, Patience
from flowdsl import Deployment
from flowdsl.codec import codec
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import Store
from tests.service.stage import serving, started

ENVIRONMENT = {settings.KEY: "key", "ENRICHMENT_SUBSCRIBERS_SECRET": "whsec_" + "c2VjcmV0" * 4}
LONG = timedelta(hours=1)


def deployed() -> Deployment:
    """The enrichment alone, without its schedule: a test may run on a quarter of an hour."""
    mine = part(ENVIRONMENT)
    return Deployment(mine.workflows, mine.bindings, webhooks=mine.webhooks, migrations=mine.migrations)


@define
class Desk:
    standin: str
    service: httpx2.AsyncClient
    store: Store
    connection: Any

    async def add(self, *emails: str) -> None:
        """Subscribers whose jobs are pending."""
        await self.connection.execute(
            "with s as (insert into enrichment.subscribers (email, email_type, source, raw_payload)"
            " select e, 'personal', 'test', '{}' from unnest($1::text[]) e returning id)"
            " insert into enrichment.jobs (subscriber) select id from s order by id",
            list(emails),
        )

    async def start(self, *, window: str = "w", jobs: int = 100, **patience: timedelta) -> str:
        """A batch by hand; it waits for an hour, and neither looks nor submits again, unless told."""
        waits = Patience(**{"limit": LONG, "poll": LONG, "silence": LONG, **patience})
        order = codec(EnrichBatch).plain(EnrichBatch("hand", window, limit=jobs, patience=waits))
        return await started(self.service, "subscriber-enrichment", order)

    async def ended(self, id: str, *states: str) -> dict[str, Any]:
        """The execution, once it has ended; so, if a state is named."""
        query = "select exists (select from flowdsl.executions where id = $1::uuid and status in ('succeeded', 'failed', 'cancelled'))"
        await self.eventually(lambda: self.connection.fetchval(query, id))
        found: dict[str, Any] = (await self.service.get(f"/api/v1/workflows/{id}/status")).raise_for_status().json()
        assert not states or found["status"] in states, found
        return found

    async def waits(self, id: str) -> str:
        """Waits until the batch is registered; gives the provider's id."""
        query = "select enrichment_id from enrichment.batches where id = $1 and enrichment_id is not null"
        found = await self.eventually(lambda: self.connection.fetchval(query, id))
        return str(found)

    async def eventually(self, asked: Callable[[], Awaitable[Any]]) -> Any:
        """What is asked for, once it is there."""
        async with asyncio.timeout(100):
            while not (found := await asked()):
                await asyncio.sleep(0.02)
        return found

    async def tell(self, control: str, **asked: Any) -> dict[str, Any]:
        async with httpx2.AsyncClient(timeout=30) as client:
            answer = (await client.post(f"{self.standin}/_standin/{control}", json=asked)).raise_for_status()
            return dict(answer.json()) if answer.content else {}

    async def ask(self, control: str) -> dict[str, Any]:
        async with httpx2.AsyncClient(timeout=30) as client:
            return dict((await client.get(f"{self.standin}/_standin/{control}")).raise_for_status().json())

    async def ended_of_themselves(self, id: str, count: int) -> None:
        """Waits until so many batches have ended beside this one: those that it left the rest to."""
        query = (
            "select count(*) >= $2 from flowdsl.executions where workflow = 'subscriber-enrichment' and id <> $1::uuid"
            " and status in ('succeeded', 'failed', 'cancelled')"
        )
        await self.eventually(lambda: self.connection.fetchval(query, id, count))

    async def waits_for_a_callback_alone(self, id: str) -> None:
        """Until nothing but a callback, or the limit of an hour, can wake it."""
        query = "select status = 'suspended' and wake > clock_timestamp() + interval '30 minutes' from flowdsl.executions where id = $1::uuid"
        await self.eventually(lambda: self.connection.fetchval(query, id))

    async def submissions(self) -> list[dict[str, Any]]:
        return list((await self.ask("ledger"))["batches"])

    async def states(self) -> dict[str, int]:
        rows = await self.connection.fetch("select state, count(*) as n from enrichment.jobs group by state")
        return {row["state"]: row["n"] for row in rows}

    async def processed(self) -> set[int]:
        """How often results were written to those jobs that have one."""
        rows = await self.connection.fetch("select distinct written from enrichment.jobs where state in ('enriched', 'absent')")
        return {row["written"] for row in rows}

    async def callbacks(self, outcome: str = "") -> list[str]:
        """What became of the webhooks that came."""
        rows = await self.connection.fetch("select outcome from flowdsl.webhooks where endpoint = 'fullenrich' order by id")
        return [str(row["outcome"]) for row in rows if outcome in str(row["outcome"])]


@asynccontextmanager
async def desk_at(database: str, monkeypatch: pytest.MonkeyPatch, **weather: Any) -> AsyncGenerator[Desk]:
    """`weather`: what the stand-in is made with; its batches are done when a test says so, unless it is told how long they take."""
    deployment = deployed()
    await migrate(database, deployment.migrations)
    made: dict[str, Any] = {"work": None, "per_minute": 10_000, "again": 0.1, **weather}
    with serve(create_app(**made)) as standin:
        monkeypatch.setenv(settings.URL, f"{standin}/api/v2")
        monkeypatch.setenv(settings.KEY, "key")
        monkeypatch.setenv(settings.COOLDOWN, "100ms")
        monkeypatch.setenv(settings.DEBOUNCE, "300ms")
        async with serving(database, deployment=deployment) as service, await Store.open(database) as store:
            monkeypatch.setenv(settings.CALLBACK, f"{service.base_url}/webhooks/fullenrich".replace("//webhooks", "/webhooks"))
            connection = await asyncpg.connect(database)
            try:
                yield Desk(standin, service, store, connection)
            finally:
                await connection.close()
