"""What is sent wrongly, or as an attack: refused early, in words, with memory flat."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from attrs import evolve

from flowdsl.service.settings import Server, Settings
from tests.service.stage import problem, serving

START = "/api/v1/workflows/shop.place_order"
JSON = {"Content-Type": "application/json"}
TIGHT = Settings(server=evolve(Server(), body_bytes=1 << 20, body_depth=20, body_seconds=60, timeout_seconds=60))
HASTY = Settings(server=evolve(Server(), body_seconds=0.5))


def grown() -> int:
    """Bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.shows("S1.142")
async def test_a_body_that_is_too_large(database: str) -> None:
    async with serving(database, settings=TIGHT, works=False) as client:
        said = await client.post(START, content=b'"' + b"x" * (2 << 20) + b'"', headers=JSON)
        assert said.status_code == 413 and problem(said)["title"] == "too large"


async def test_an_endless_body_costs_no_memory(database: str) -> None:
    async with serving(database, settings=TIGHT, works=False) as client:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            chunk = b" " * 65536
            while sent < 256 << 20:
                sent += len(chunk)
                yield chunk
                await asyncio.sleep(0)

        before = grown()
        try:
            answer = await client.post(START, content=endless(), headers=JSON)
            assert answer.status_code == 413
        except (httpx2.WriteError, httpx2.ReadError, httpx2.RemoteProtocolError):
            pass  # the server closed before all was sent
        assert sent < 64 << 20 and grown() - before < 32 << 20


@pytest.mark.shows("S1.144")
async def test_a_slow_body(database: str) -> None:
    async with serving(database, settings=HASTY, works=False) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(f"POST {START} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        assert head.startswith(b"HTTP/1.1 408 ")
        writer.close()


@pytest.mark.parametrize("body", [b"[" * 21 + b"]" * 21, b"[" * 500_000, b'{"a":' * 100_000, b"[" * 300_000 + b"]" * 300_000])
async def test_a_body_that_nests_too_deep(database: str, body: bytes) -> None:
    async with serving(database, settings=TIGHT, works=False) as client:
        answer = await client.post(START, content=body, headers=JSON)
        assert answer.status_code == 422, answer.text
        assert problem(answer)["errors"][0]["path"] == "body"


async def test_many_brackets_are_not_deep(client: httpx2.AsyncClient) -> None:
    lines = [{"sku": f"[[[{number}", "count": number} for number in range(2000)]
    assert (await client.post(START, json={"order_id": "many", "lines": lines})).status_code == 202


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Type": "Application/JSON; charset=UTF-8"}, 202),
    ],
)
async def test_the_media_type(client: httpx2.AsyncClient, headers: dict[str, str], status: int) -> None:
    answer = await client.post(START, content=b'{"order_id": "o"}', headers=headers)
    assert answer.status_code == status, answer.text


async def test_what_is_no_order(client: httpx2.AsyncClient) -> None:
    for body in (b"", b"{", b'{"order_id": "o"} x', b"\xff\xfe", b'{"order_id": NaN}', b'{"order_id": 1' + b"0" * 5000 + b"}", b"null"):
        answer = await client.post(START, content=body, headers=JSON)
        assert answer.status_code == 422 and problem(answer)["errors"], answer.text


async def test_what_postgres_cannot_hold(client: httpx2.AsyncClient) -> None:
    for text in ("\0", "\ud800", "x" * 2000):
        order = json.dumps({"order_id": text}).encode()
        wish = json.dumps({"name": text, "key": text, "payload": text}).encode()
        gone = json.dumps({"executions": [text], "reason": text}).encode()
        for path, body in ((START, order), ("/api/v1/signals", wish), ("/api/v1/dead-letters/discard", gone)):
            assert (await client.post(path, content=body, headers=JSON)).status_code == 422, (path, text)


async def test_a_wrong_path_and_method(client: httpx2.AsyncClient) -> None:
    nothing = problem(await client.get("/api/v1/nothing"))
    assert nothing["status"] == 404 and "/api/v1/openapi.json lists" in nothing["detail"]
    answer = await client.delete("/api/v1/workflows")
    assert problem(answer)["status"] == 405 and "GET" in answer.headers["allow"] and "openapi.json" in problem(answer)["detail"]


@pytest.mark.parametrize("tenant", ["", "x" * 201, "a\tb"])
async def test_a_wrong_tenant(client: httpx2.AsyncClient, tenant: str) -> None:
    assert (await client.get("/api/v1/workflows", headers={"X-Tenant-ID": tenant})).status_code == 400


async def test_a_database_that_is_away(database: str) -> None:
    nowhere = Settings(database=evolve(Settings().database, url="postgresql://flowdsl@127.0.0.1:1/none"))
    from flowdsl.service import create_app
    from tests.service.stage import DEPLOYMENT, listening

    async with listening(create_app(DEPLOYMENT, nowhere)) as address, httpx2.AsyncClient(base_url=address, timeout=30) as client:
        assert (await client.get("/health")).json() == {"status": "ok", "checks": []}
        ready = await client.get("/ready")
        assert ready.status_code == 503 and ready.json()["checks"] == [{"name": "database", "ok": False, "detail": ""}]
        answer = await client.get("/api/v1/workflows")
        assert answer.status_code == 503 and problem(answer)["title"] == "not available" and "retry-after" in answer.headers


@pytest.mark.shows("S1.32", "S1.126")
async def test_what_the_service_depends_on(database: str) -> None:
    async def payment() -> None:
        raise OSError("connection refused")

    async def post() -> str:
        return "all well"

    async with serving(database, checks={"payment": payment, "post": post}) as client:
        answer = await client.post("/api/v1/coordination/health-check")
        assert answer.status_code == 503
        found = {one["name"]: (one["ok"], one["detail"]) for one in answer.json()["checks"]}
        assert found.pop("tenants")[0], "apart, by whatever"
        ours = {"database": (True, ""), "worker": (True, ""), "workers": (True, "1 alive")}
        assert found == {**ours, "payment": (False, "connection refused"), "post": (True, "all well")}
        ready = await client.get("/ready")
        assert ready.status_code == 503 and "refused" not in ready.text


async def test_without_a_worker(database: str) -> None:
    async with serving(database, works=False) as client:
        assert (await client.get("/ready")).status_code == 200
        answer = await client.post("/api/v1/coordination/health-check")
        assert answer.status_code == 503 and "nobody works" in answer.text
        assert (await client.post(START, json={"order_id": "o"})).status_code == 202
