"""What Prometheus reads: the numbers are what happened, labels are names from code, and a store that is away is told, not waited for."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from attrs import evolve
from prometheus_client.parser import text_string_to_metric_families

from flowdsl import Deployment
from flowdsl.metrics import Metrics
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Worker
from flowdsl.service import create_app, watching
from flowdsl.service.keys import KeyAccess
from flowdsl.service.settings import Server, Settings
from flowdsl.service.verifiers import Signed
from flowdsl.service.webhooks import webhook
from tests.service.stage import DECLINES, DEPLOYMENT, QUICK, listening, problem, serving, started, until

OPEN = Settings(server=evolve(Server(), metrics="open"))


class Numbers(dict[tuple[str, ...], float]):
    """Of each name, and values of labels in the order of their names, the value; what nobody counted is nothing."""

    def __missing__(self, key: tuple[str, ...]) -> float:
        return 0.0


def parsed(text: str) -> Numbers:
    found = Numbers()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, *(sample.labels[name] for name in sorted(sample.labels))] = sample.value
    return found


async def numbers(client: httpx2.AsyncClient) -> Numbers:
    answer = await client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parsed(answer.text)


async def counted(client: httpx2.AsyncClient, ended: int) -> Numbers:
    """The numbers, once so many ends are in them: the store may know of one before its worker has heard that it does."""
    async with asyncio.timeout(60):
        while True:
            found = await numbers(client)
            if sum(value for key, value in found.items() if key[0] == "flowdsl_executions_ended_total") >= ended:
                return found
            await asyncio.sleep(0.01)


@pytest.mark.shows("S1.127-130")
async def test_what_happened_is_counted(client: httpx2.AsyncClient) -> None:
    DECLINES.add("bad")
    for order in ("a", "b", "bad"):
        await until(client, await started(client, "shop.place_order", {"order_id": order}), "succeeded", "failed")
    await client.get("/api/v1/workflows/00000000-0000-0000-0000-000000000000/status")
    await client.get("/no/such/page")
    found = await counted(client, 3)
    assert found["flowdsl_executions_ended_total", "succeeded", "shop.place_order"] == 2
    assert found["flowdsl_executions_ended_total", "failed", "shop.place_order"] == 1
    assert found["flowdsl_execution_seconds_count", "shop.place_order"] == 3
    assert found["flowdsl_steps_total", "shop.charge", "success"] == 2 and found["flowdsl_steps_total", "shop.charge", "failure"] == 1
    assert found["flowdsl_attempts_total", "shop.charge", "success"] == 2 and found["flowdsl_attempts_total", "shop.charge", "failure"] == 1
    assert found["flowdsl_attempt_seconds_count", "shop.charge"] == 3
    assert found["flowdsl_failures_total", "shop.charge", "Declined"] == 1
    assert found["flowdsl_entries_total",] == 3 and found["flowdsl_turns_total", "done"] >= 3
    assert 1 <= found["flowdsl_commit_seconds_count",] == found["flowdsl_commit_turns_count",] <= 3
    assert found["flowdsl_takeovers_total",] == 0
    assert found["flowdsl_http_requests_total", "POST", "/api/v1/workflows/{name}", "202"] == 3
    assert found["flowdsl_http_requests_total", "GET", "/api/v1/workflows/{id}/status", "404"] == 1
    assert found["flowdsl_http_requests_total", "GET", "none", "404"] == 1
    assert found["flowdsl_http_request_seconds_count", "POST", "/api/v1/workflows/{name}"] == 3
    assert found["process_resident_memory_bytes",] > 1 << 20
    await until(client, id := await started(client, "shop.approval", ""), "suspended")
    await client.post(f"/api/v1/workflows/{id}/signal", json={"name": "approved", "payload": True})
    await until(client, id, "succeeded")
    before = found["flowdsl_claimed_executions_total",]  # none, unless its lease was in doubt: they begin where they are asked for
    assert (await numbers(client))["flowdsl_claimed_executions_total",] == before + 1, "to go on, it was claimed"


async def test_what_is_open_is_asked_of_the_store(client: httpx2.AsyncClient) -> None:
    DECLINES.add("bad")
    await until(client, await started(client, "shop.approval", "x"), "suspended")
    await until(client, await started(client, "shop.place_order", {"order_id": "bad"}), "failed")
    await client.post("/api/v1/signals", json={"name": "approved", "key": "nobody", "payload": True})
    found = await numbers(client)
    assert found["flowdsl_store_up",] == 1 and found["flowdsl_workers",] == 1
    assert found["flowdsl_executions", "suspended", "shop.approval"] == 1 and found["flowdsl_executions", "failed", "shop.place_order"] == 1
    assert found["flowdsl_unmatched_signals",] == 1
    assert found["flowdsl_workers_here",] == 1 and found["flowdsl_residents_limit",] == QUICK.capacity
    assert 1 <= found["flowdsl_pool_connections", "idle"] + found["flowdsl_pool_connections", "used"] <= found["flowdsl_pool_limit",]


async def test_what_nobody_works_on_is_late(database: str) -> None:
    async with serving(database, works=False) as client:
        id = await started(client, "shop.report", "x")
        async with await Store.open(database) as store:
            await store.again("update flowdsl.executions set wake = wake - interval '1 hour' where id = $1 returning id", id)
            await store.again(
                "insert into flowdsl.webhooks (tenant, endpoint, delivery, body, due) values ('t', 'e', 'd', '', now() - interval '1 hour')"
            )
        found = await numbers(client)
    assert found["flowdsl_executions", "running", "shop.report"] == 1 == found["flowdsl_due", "shop.report"]
    assert found["flowdsl_oldest_due_seconds", "shop.report"] >= 3600 and found["flowdsl_workers",] == 0
    assert found["flowdsl_webhooks_waiting",] == 1 and found["flowdsl_webhooks_late_seconds",] >= 3600


async def test_no_label_names_somebody(client: httpx2.AsyncClient) -> None:
    id = await started(client, "shop.approval", "canary", tenant="tenant-canary")
    await until(client, id, "suspended", tenant="tenant-canary")
    await client.post("/api/v1/signals", json={"name": "canary", "key": "canary"}, headers={"X-Tenant-ID": "tenant-canary"})
    await client.get("/api/v1/workflows?text=canary", headers={"X-Tenant-ID": "tenant-canary"})
    await client.request("CANARY", "/canary")
    text = (await client.get("/metrics")).text
    assert "canary" not in text.lower() and id not in text


async def test_scrapes_ask_the_store_once_in_a_while(client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "FRESH", 300.0)
    await asyncio.gather(*(numbers(client) for _ in range(10)))
    first = await numbers(client)
    await until(client, await started(client, "shop.approval", "x"), "suspended")
    again = await numbers(client)
    assert again["flowdsl_executions", "suspended", "shop.approval"] == first["flowdsl_executions", "suspended", "shop.approval"] == 0


async def test_who_may_read_them(database: str) -> None:
    async with serving(database, access=KeyAccess, works=False) as client:
        assert (await client.get("/metrics")).status_code == 401
    async with serving(database, access=KeyAccess, works=False, settings=OPEN) as client:
        assert (await client.get("/metrics")).status_code == 200
    async with serving(database, works=False, settings=Settings(server=evolve(Server(), metrics="off"))) as client:
        assert problem(await client.get("/metrics"))["status"] == 404
        assert (await client.get("/api/v1/workflows")).status_code == 200


async def test_a_store_that_is_away_is_told() -> None:
    app = create_app(DEPLOYMENT, OPEN, dsn="postgresql://flowdsl@127.0.0.1:1/none")
    async with listening(app) as address, httpx2.AsyncClient(base_url=address, timeout=30) as client:
        found = await numbers(client)
    assert found["flowdsl_store_up",] == 0 and ("flowdsl_due", "shop.report") not in found


async def test_deliveries_by_verdict(database: str) -> None:
    import hashlib
    import hmac

    hook = webhook("bank", Signed("secret", "X-Signature"), lambda _: [])
    deployment = evolve(DEPLOYMENT, webhooks=[hook])
    signed = {"X-Signature": hmac.new(b"secret", b"{}", hashlib.sha256).hexdigest()}
    async with serving(database, deployment=deployment) as client:
        for headers in (signed, signed, {"X-Signature": "0"}, {}):
            await client.post("/webhooks/bank", content=b"{}", headers=headers)
        await client.post("/webhooks/none", content=b"{}")
        found = await numbers(client)
    assert [found["flowdsl_webhooks_total", "bank", verdict] for verdict in ("new", "duplicate", "refused")] == [1, 1, 2]
    assert found["flowdsl_http_requests_total", "POST", "/webhooks/{name}", "401"] == 2


async def test_a_takeover_is_counted(database: str) -> None:
    async with await Store.open(database) as store:
        await store.again(
            "insert into flowdsl.workers (id, lease, host, pid, beat) values (gen_random_uuid(), '1s', 'gone', 1, now() - interval '1h') returning id"
        )
        (gone,) = await store.again("select id from flowdsl.workers")
        await store.again(
            "insert into flowdsl.executions (id, tenant, workflow, version, request, owner, epoch) values"
            " (gen_random_uuid(), 'default', 'shop.report', 1, '\"x\"', $1, 1) returning id",
            gone["id"],
        )
    async with serving(database) as client:
        (one,) = (await client.get("/api/v1/workflows")).json()["executions"]
        await until(client, one["id"], "succeeded")
        assert (await numbers(client))["flowdsl_takeovers_total",] == 1


async def test_a_number_that_fails_costs_no_commit(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no room for another label")

    async with serving(database) as client:
        monkeypatch.setattr("flowdsl.metrics.recorded.Eye._count", broken)
        await until(client, await started(client, "shop.place_order", {"order_id": "a"}), "succeeded")


async def test_a_worker_without_the_service_is_watched_too(database: str) -> None:
    metrics = Metrics()
    async with await Store.open(database) as store, Worker(DEPLOYMENT, store, QUICK) as worker:
        metrics.watch(worker)
        metrics.watch(worker)
        await worker.wait(await worker.start(DEPLOYMENT.workflow("shop.report"), "x"))
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{metrics.serve(0)}", timeout=60) as client:
            found = await counted(client, 1)
        assert found["flowdsl_executions_ended_total", "succeeded", "shop.report"] == 1 == found["flowdsl_workers_here",]
        metrics.forget(worker)
    assert parsed(metrics.page().decode())["flowdsl_workers_here",] == 0


async def test_the_page_names_what_there_is(client: httpx2.AsyncClient) -> None:
    """What docs/how-to/watch.md and its alerts ask for is served, and what is served is in it."""
    DECLINES.add("bad")
    await until(client, await started(client, "shop.place_order", {"order_id": "bad"}), "failed")
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "watch.md").read_text(encoding="utf-8")
    text = (await client.get("/metrics")).text
    served = {name for name in re.findall(r"^# TYPE (flowdsl_\w+)", text, re.M)}
    known = {re.sub(r"_bucket$", "", name) for name in re.findall(r"\bflowdsl_\w+", page)}
    assert known == served


def test_a_watched_deployment_is_the_same() -> None:
    timed = Metrics().timed(DEPLOYMENT)
    assert isinstance(timed, Deployment) and timed.names == DEPLOYMENT.names and timed.versions == DEPLOYMENT.versions
    assert [one.is_async for one in timed.bindings] == [one.is_async for one in DEPLOYMENT.bindings]
