"""A small shop to be served, and a service over it: real HTTP on a port of its own, a real worker, a database of the test's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Never

import httpx2
from attrs import frozen

from flowdsl import Deployment, Failure, Result, Retry, Schedule, Steps, Success, activity, bind, execution, signal, workflow
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Tuning, Worker
from flowdsl.service import create_app
from flowdsl.service.access import Access
from flowdsl.service.route import Check
from flowdsl.service.server import server_of
from flowdsl.service.settings import Settings

QUICK = Tuning(lease=60, poll=0.05, linger=0.05, grace=1)
"""Nobody takes over from it, however long the machine stands still."""


@frozen
class Line:
    """What is ordered, and how much of it."""

    sku: str
    count: int = 1


@frozen
class Order:
    """An order of a customer."""

    order_id: str
    lines: tuple[Line, ...] = ()
    gift: bool = False
    note: str | None = None


@frozen
class Declined:
    """The bank said no."""

    why: str


DECLINES: set[str] = set()
"""Orders whose charge is declined for now."""


@activity("shop.charge", retry=Retry.constant("10ms", attempts=1))
def charge(order: str) -> Result[str, Declined]:
    """Takes the money."""
    ...


def charged(order: str) -> Result[str, Declined]:
    return Failure(Declined("no money")) if order in DECLINES else Success(f"receipt {order}")


approved = signal("approved", bool)


@workflow("shop.place_order", key="{order_id}")
def place_order(order: Order) -> Steps[str, Declined]:
    return (yield from charge(order.order_id))


@workflow("shop.approval")
def approval(order: str) -> Steps[bool, Never]:
    return (yield from approved.receive(f"order-{order}" if order else None))


@workflow("shop.family")
def family(orders: tuple[str, ...]) -> Steps[int, Declined]:
    for order in orders:
        yield from place_order.child(Order(order))
    return len(orders)


@workflow("shop.report")
def report(day: str) -> Steps[str | None, Never]:
    return (yield from execution()).key


FAR_OFF = (datetime.now(UTC).hour + 12) % 23
"""An hour that does not strike while the tests run."""
DEPLOYMENT = Deployment(
    [place_order, approval, family, report],
    [bind(charge, charged)],
    schedules=[Schedule.cron(f"0 {FAR_OFF} * * *", report, "today", id="nightly")],
)


@asynccontextmanager
async def listening(app: Any) -> AsyncGenerator[str]:
    """The address of an app that is served on a free port of this machine."""
    server = server_of(app)
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(60):
            while not server.started:
                if serving.done():
                    serving.result()
                await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        app.state.service.stopping.set()
        server.should_exit = True
        await serving


@asynccontextmanager
async def serving(
    database: str,
    *,
    deployment: Deployment = DEPLOYMENT,
    settings: Settings | None = None,
    access: Callable[[Store], Access] | None = None,
    works: bool = True,
    checks: Mapping[str, Check] | None = None,
) -> AsyncGenerator[httpx2.AsyncClient]:
    """A client of a service over that database, with a worker unless it is to do without."""
    async with await Store.open(database) as store, Worker(deployment, store, QUICK) if works else _nobody() as worker:
        app = create_app(deployment, settings, store=store, access=access(store) if access else None, worker=worker, checks=checks)
        async with listening(app) as address, httpx2.AsyncClient(base_url=address, timeout=30) as client:
            yield client


@asynccontextmanager
async def _nobody() -> AsyncGenerator[None]:
    yield None


async def until(client: httpx2.AsyncClient, id: str, *states: str, tenant: str = "default") -> dict[str, Any]:
    """The execution, once it is in one of these states."""
    async with asyncio.timeout(60):
        while True:
            answer = await client.get(f"/api/v1/workflows/{id}/status", headers={"X-Tenant-ID": tenant})
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            if found["status"] in states:
                return found
            await asyncio.sleep(0.02)


async def started(client: httpx2.AsyncClient, name: str, given: object, *, tenant: str = "default", **headers: str) -> str:
    """The id of a new execution."""
    answer = await client.post(f"/api/v1/workflows/{name}", json=given, headers={"X-Tenant-ID": tenant, **headers})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def problem(answer: httpx2.Response) -> dict[str, Any]:
    """A problem, which says that it is one."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    found: dict[str, Any] = json.loads(answer.content)
    assert found["status"] == answer.status_code
    return found
