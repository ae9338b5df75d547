"""The sync as a service: a service process and a stand-in process; by hand, by webhook, by the clock, and through a kill."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
from attrs import define

from adapters.deployment import deployment
from adapters.planning_center.schedules import ORGS, delta_syncs
from adapters.planning_center.webhooks import SECRETS
from adapters.standins.planning_center import Event, signed
from flowdsl import Deployment
from flowdsl.postgres.schedules import register
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import Store

ROOT = Path(__file__).resolve().parents[2]
ORG, SECRET = "org_123", "secret-of-a-subscription"
ENDPOINT = f"/webhooks/planning-center.{ORG}"


def free_ports(count: int) -> list[int]:
    """Below those that connections get for themselves: between now and their use nobody takes them by chance."""
    while True:
        ports = random.sample(range(15_000, 30_000), count)
        with ExitStack() as stack, suppress(OSError):
            for port in ports:
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return ports


@contextmanager
def process(*command: str, log: Path, **environment: str) -> Generator[subprocess.Popen[str]]:
    """A process that has said where it listens."""
    with log.open("a") as stderr:
        one = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        assert one.stdout is not None
        line = one.stdout.readline()
        assert line.startswith("listening on"), log.read_text()
        yield one
    finally:
        if one.poll() is None:
            one.send_signal(signal.SIGTERM)
        one.wait(60)


@define
class Both:
    """A service and the source that it syncs."""

    folder: Path
    database: str
    source_port: int
    port: int

    @property
    def source(self) -> str:
        return f"http://127.0.0.1:{self.source_port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def service(self) -> Any:
        secrets = self.folder / "secrets"
        secrets.write_text(f"{ORG}=another,{SECRET}\n", encoding="utf-8")
        return process(
            "-m", "flowdsl", "serve", "adapters.deployment:deployment", "--development", "--port", str(self.port), log=self.folder / "service",
            FLOWDSL_DATABASE_URL=self.database, PLANNING_CENTER_URL=self.source, PLANNING_CENTER_TOKEN="app_id:secret",
            PLANNING_CENTER_SYNC_ORGS=ORG, **{f"{SECRETS}_FILE": str(secrets)},
        )  # fmt: skip

    def standin(self) -> Any:
        return process(
            "-m", "adapters.standins.planning_center", "--port", str(self.source_port), "--people", "30", "--limit", "10000",
            "--webhooks", self.url + ENDPOINT, "--webhook-secret", SECRET, log=self.folder / "standin",
        )  # fmt: skip

    def change(self, **wish: object) -> dict[str, Any]:
        found: dict[str, Any] = httpx2.post(f"{self.source}/_standin/change", json=wish, timeout=60).raise_for_status().json()["changes"][0]
        return found

    def hold(self, rows: int | None) -> None:
        """The source answers nobody once so many rows were read; None: it does again."""
        httpx2.post(f"{self.source}/_standin/gate", json={"rows": rows}, timeout=60).raise_for_status()

    def asked(self) -> dict[str, int]:
        """How often each path of the source was asked."""
        told = httpx2.get(f"{self.source}/_standin/stats", timeout=60).json()["requests"]
        return {path.removeprefix("/people/v2/"): sum(each.values()) for path, each in told.items()}


@pytest.fixture
async def both(tmp_path: Path, database: str) -> Both:
    """The schedule is there already, and an hour late: the next quarter of an hour may be about to strike, and is not to before the hand does."""
    await migrate(database, deployment.migrations)
    async with await Store.open(database) as store:
        await register(store, Deployment(deployment.workflows, deployment.bindings, schedules=delta_syncs({ORGS: ORG})))
        await store.again("update flowdsl.schedules set upcoming = upcoming + interval '1 hour', due = due + interval '1 hour'")
    return Both(tmp_path, database, *free_ports(2))


async def ended(client: httpx2.AsyncClient, id: str) -> dict[str, Any]:
    async with asyncio.timeout(120):
        while True:
            found: dict[str, Any] = (await client.get(f"/api/v1/workflows/{id}/status")).json()
            if found["ended"]:
                return found
            await asyncio.sleep(0.05)


async def row(connection: Any, entity: str, id: str, **expected: object) -> None:
    """Waits until the destination holds that."""
    query = "select attributes::text, deleted_at is not null as gone from sync.records where org = $1 and entity = $2 and id = $3"
    async with asyncio.timeout(120):
        while True:
            found = await connection.fetchrow(query, ORG, entity, id)
            held = {} if found is None else {**json.loads(found["attributes"]), "gone": found["gone"]}
            if expected.items() <= held.items():
                return
            await asyncio.sleep(0.05)


@pytest.mark.shows("S4.47", "S4.51", "S4.53", "S4.55", "S4.56", "S4.60", "S4.71")
@pytest.mark.timeout(480)
async def test_by_hand_by_webhook_by_the_clock_and_through_a_kill(both: Both) -> None:
    with both.service() as first, both.standin():
        connection = await asyncpg.connect(both.database)
        async with httpx2.AsyncClient(base_url=both.url, timeout=30) as client:
            order = {"orgId": ORG, "adapterName": "pco", "syncType": "full", "triggeredBy": "manual"}
            answer = await client.post("/api/v1/workflows/main-sync-orchestrator", json=order)
            assert answer.status_code == 202, answer.text
            outcome = await ended(client, answer.json()["id"])
            assert outcome["status"] == "succeeded" and outcome["key"] == f"main-sync:{ORG}:pco:full", outcome
            assert {one["status"] for one in outcome["result"]["results"]} == {"completed"}

            # A webhook: that one person, and nobody else.
            before = both.asked()
            person = str(await connection.fetchval("select id from sync.records where entity = 'Person' and deleted_at is null order by id limit 1"))
            both.change(change="edit", id=person, attributes={"first_name": "Zenobia"})
            await row(connection, "Person", person, first_name="Zenobia", gone=False)
            after = both.asked()
            assert {path: after[path] - before.get(path, 0) for path in after if after[path] != before.get(path, 0)} == {"people/{id}": 1}

            await fifty_at_once(client, connection, person)
            await forged(client, connection)

            # Killed: what was sent meanwhile is sent again, and what had been stored is acted on by the next one.
            first.send_signal(signal.SIGKILL)
            first.wait(60)
            both.change(change="edit", id=person, attributes={"first_name": "Xanthippe"})
            both.change(change="delete_person", person=(other := await another(connection, person)))
            delivery = Event("stored-before-the-kill", "people.v2.events.person.updated", "Person", person, {"attributes": {}})
            await connection.execute(
                "insert into flowdsl.webhooks (tenant, endpoint, delivery, body) values ('default', $1, $2, $3)",
                ENDPOINT.rpartition("/")[2], delivery.id, delivery.body("77"),
            )  # fmt: skip
        with both.service():
            async with httpx2.AsyncClient(base_url=both.url, timeout=30) as client:
                await row(connection, "Person", person, first_name="Xanthippe")
                await row(connection, "Person", other, gone=True)
                await acted(connection, delivery.id)
                await by_the_clock(client, both)
        await connection.close()


async def another(connection: Any, person: str) -> str:
    query = "select id from sync.records where entity = 'Person' and deleted_at is null and id <> $1 order by id limit 1"
    return str(await connection.fetchval(query, person))


async def syncs(connection: Any, person: str) -> int:
    query = "select count(*) from flowdsl.executions where workflow = 'sync.entity' and key like $1"
    return int(await connection.fetchval(query, f"entity-sync:{ORG}:pco:Person:full:{person}:%"))


async def acted(connection: Any, delivery: str) -> str:
    """What came of a delivery, once something has."""
    async with asyncio.timeout(120):
        while True:
            found = await connection.fetchrow("select due, outcome from flowdsl.webhooks where delivery = $1", delivery)
            if found is not None and found["due"] is None:
                return str(found["outcome"])
            await asyncio.sleep(0.05)


async def fifty_at_once(client: httpx2.AsyncClient, connection: Any, person: str) -> None:
    """And once more later, as the next attempt: another body, another signature, the same news."""
    event = Event("again-and-again", "people.v2.events.person.updated", "Person", person, {"attributes": {"updated_at": "2001-01-01T00:00:00Z"}})
    body, secret, known = event.body("77"), SECRET, await syncs(connection, person)
    headers = signed(body, event, secret)
    answers = await asyncio.gather(*(client.post(ENDPOINT, content=body, headers=headers) for _ in range(50)))
    assert [one.status_code for one in answers] == [200] * 50
    assert sorted(one.json()["duplicate"] for one in answers) == [False] + [True] * 49
    assert "sync.entity" in await acted(connection, event.id)
    later = Event(event.id, event.name, event.type, event.row, event.record, attempt=2)
    answer = await client.post(ENDPOINT, content=later.body("77"), headers=signed(later.body("77"), later, secret))
    assert answer.json() == {"received": True, "duplicate": True}
    assert await syncs(connection, person) == known + 1


async def forged(client: httpx2.AsyncClient, connection: Any) -> None:
    event = Event("forged", "people.v2.events.person.updated", "Person", "1", {"attributes": {}})
    body = event.body("77")
    headers = signed(body, event, SECRET)
    wrong = [(body + b" ", headers), (body, {}), (body, signed(body, event, "guessed")), (json.dumps(json.loads(body), indent=1).encode(), headers)]
    for content, sent in wrong:
        assert (await client.post(ENDPOINT, content=content, headers=sent)).status_code == 401
    assert await connection.fetchval("select count(*) from flowdsl.webhooks where delivery = 'forged'") == 0


async def by_the_clock(client: httpx2.AsyncClient, both: Both) -> None:
    """Every quarter of an hour; one at a time."""
    (schedule,) = [one for one in (await client.get("/api/v1/schedules")).json()["schedules"] if one["workflow"] == "sync.main"]
    assert (schedule["id"], schedule["rule"], schedule["overlap"]) == (f"sync.delta.{ORG}", "*/15 * * * *", "skip")
    assert schedule["due"] is not None
    both.hold(0)  # the first is not over before the second is asked for
    answers = await asyncio.gather(*(client.post(f"/api/v1/schedules/{schedule['id']}/trigger") for _ in range(2)))
    both.hold(None)
    fired = sorted((one.json() for one in answers), key=lambda one: str(one["outcome"]), reverse=True)
    assert [one["outcome"] for one in fired] == ["started", "skipped"] and fired[0]["execution"] == fired[1]["execution"], fired
    outcome = await ended(client, fired[0]["execution"])
    assert outcome["status"] == "succeeded" and outcome["key"].startswith(f"sync.delta.{ORG}@")
    assert (outcome["result"]["sync_type"], len(outcome["result"]["results"])) == ("delta", 8)
