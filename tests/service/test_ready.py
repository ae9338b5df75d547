"""Health and readiness: told within a bound whatever hangs, with nothing of why to who has no key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import httpx2
import pytest
from attrs import evolve

from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Worker
from flowdsl.service import create_app, surroundings, watching
from flowdsl.service.settings import Server, Settings
from tests.service.stage import DEPLOYMENT, QUICK, listening, problem, serving


@asynccontextmanager
async def muffled(database: str, folder: str) -> AsyncGenerator[tuple[str, asyncio.Event]]:
    """A DSN that leads to the database until the event is set: from then on nothing comes back, and no connection is closed."""
    parts, silent = urlsplit(database), asyncio.Event()
    host = parse_qs(parts.query)["host"][0]
    tasks: set[asyncio.Task[None]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if not (back and silent.is_set()):
                    writer.write(data)
        writer.close()

    async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{parts.port or 5432}")
        for one in (pass_on(reader, here, False), pass_on(there, writer, True)):
            tasks.add(asyncio.create_task(one))

    server = await asyncio.start_unix_server(met, f"{folder}/.s.PGSQL.5432")
    try:
        yield urlunsplit(parts._replace(query=urlencode({"host": folder}))), silent
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.shows("S1.38", "S1.125", "S1.126")
async def test_a_silent_store_is_told_in_time(database: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes what is sent and never answers: readiness is refused, and so is a request, each within its bound."""
    settings = Settings(server=evolve(Server(), timeout_seconds=2, metrics="open"))
    async with muffled(database, str(tmp_path_factory.mktemp("s"))) as (dsn, silent):
        app = create_app(DEPLOYMENT, settings, dsn=dsn)
        async with listening(app) as address, httpx2.AsyncClient(base_url=address, timeout=20) as client:
            async with asyncio.timeout(60):
                while (await client.get("/ready")).status_code != 200:  # a machine that is busy takes its time to connect
                    await asyncio.sleep(0.1)
            silent.set()
            monkeypatch.setattr(surroundings, "PATIENCE", 0.3)
            monkeypatch.setattr(watching, "PATIENCE", 0.3)
            for _ in range(2):
                answer = await client.get("/ready")
                assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
                assert answer.json() == {"status": "unavailable", "checks": [{"name": "database", "ok": False, "detail": ""}]}
                assert problem(await client.get("/api/v1/workflows"))["title"] == "not available"
                assert "flowdsl_store_up 0.0" in (await client.get("/metrics")).text
                assert (await client.get("/health")).status_code == 200
            app.state.service._own.pool.terminate()


async def test_a_check_that_hangs_or_ignores_its_end(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "PATIENCE", 0.1)
    done = asyncio.Event()

    async def stubborn() -> None:
        while not done.is_set():
            with suppress(asyncio.CancelledError):
                await done.wait()

    async with serving(database, checks={"stubborn": stubborn}, works=False) as client:
        answer = await client.post("/api/v1/coordination/health-check")
        found = {one["name"]: one["detail"] for one in answer.json()["checks"]}
        assert answer.status_code == 503 and found["stubborn"] == "it did not answer within 0.1 s"
        assert (await client.get("/ready")).status_code == 503
        done.set()


@pytest.mark.shows("S1.126")
async def test_a_database_that_lacks_a_migration(database: str) -> None:
    async with serving(database, works=False) as client:
        assert (await client.get("/ready")).status_code == 200
        async with await Store.open(database) as store:
            await store.again("delete from flowdsl.migrations where name like '%allowances%' returning name")
        assert (await client.get("/ready")).status_code == 503
        answer = await client.post("/api/v1/coordination/health-check")
        assert "lacks flowdsl/0014_allowances.sql: run `flowdsl migrate`" in answer.text


async def test_functions_of_a_neighbour_are_no_reason(database: str) -> None:
    async with serving(database, works=False) as client:
        async with await Store.open(database) as store:
            await store.again("update flowdsl.migrations set checksum = 'another' where name = 'flowdsl/functions' returning name")
        assert (await client.get("/ready")).status_code == 200


async def test_a_worker_that_does_nothing(database: str) -> None:
    async with await Store.open(database) as store, Worker(DEPLOYMENT, store, QUICK) as worker:
        app = create_app(DEPLOYMENT, store=store, worker=worker)
        async with listening(app) as address, httpx2.AsyncClient(base_url=address, timeout=60) as client:
            assert (await client.get("/ready")).status_code == 200
            assert worker._poller is not None
            worker._poller.cancel()  # from now on it says nothing of itself
            await asyncio.wait([worker._poller])
            assert "it has stopped" in await refused(client)
            worker.spent.set()
            assert await refused(client) == "too many of its threads never returned: its process is to be replaced"
            worker.outdated = "it is older than the database"
            assert "older than the database" in await refused(client)


async def refused(client: httpx2.AsyncClient) -> str:
    assert (await client.get("/ready")).status_code == 503
    answer = await client.post("/api/v1/coordination/health-check")
    return next(str(one["detail"]) for one in answer.json()["checks"] if one["name"] == "worker")


async def test_nothing_is_said_of_why(database: str) -> None:
    async def secretive() -> None:
        raise OSError("password=hunter2 was refused")

    async with serving(database, checks={"bank": secretive}, works=False) as client:
        for _ in range(2):
            answer = await client.get("/ready")
            assert answer.status_code == 503 and "hunter2" not in answer.text and '"name":"bank"' in answer.text


async def test_who_asks_at_the_same_time_shares_the_answer(database: str) -> None:
    asked = come = 0
    go_on = asyncio.Event()

    async def counted() -> None:
        nonlocal asked
        asked += 1
        await go_on.wait()

    class Counting:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            nonlocal come
            come += scope.get("path") == "/ready"
            await self.app(scope, receive, send)

    async with await Store.open(database) as store:
        app = create_app(DEPLOYMENT, store=store, checks={"counted": counted})
        app.add_middleware(Counting)
        async with listening(app) as address, httpx2.AsyncClient(base_url=address, timeout=60) as client:
            asking = [asyncio.create_task(client.get("/ready")) for _ in range(30)]
            async with asyncio.timeout(60):
                while come < 30 or not asked:
                    await asyncio.sleep(0.01)
            go_on.set()
            assert {(await one).status_code for one in asking} == {200}
    assert asked < 10, "those that come late ask once more, together"
