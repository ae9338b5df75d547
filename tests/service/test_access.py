"""Who may what: each route against each role and another tenant, generated from the route table."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from attrs import evolve
from starlette.requests import HTTPConnection

from adapters.deployment import deployment as deployed
from flowdsl import Deployment
from flowdsl.codec import codec
from flowdsl.errors import DefinitionError
from flowdsl.postgres import looking
from flowdsl.postgres.schedules import register
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import Store, Summary
from flowdsl.postgres.tenants import of_tenant
from flowdsl.service.access import ROLES, Caller, DevelopmentAccess, Unauthenticated
from flowdsl.service.app import ROUTES, checked, table
from flowdsl.service.route import INPUT, Call, Route
from tests.service.stage import DECLINES, DEPLOYMENT, problem, serving, started, until

SERVED = Deployment(
    [*DEPLOYMENT.workflows, *deployed.workflows], [*DEPLOYMENT.bindings, *deployed.bindings], DEPLOYMENT.schedules,
    routes=deployed.routes, migrations=deployed.migrations,
)  # fmt: skip
"""The shop, and all that is really deployed: its routes are in the table too."""
TABLE = table(SERVED)


class Named:
    """Believes the test: X-Tenant-ID and X-Role."""

    async def authenticate(self, request: HTTPConnection) -> Caller:
        role = request.headers.get("x-role", "admin")
        if role == "nobody":
            raise Unauthenticated()
        return Caller(request.headers["x-tenant-id"], frozenset({role}), f"{role} of {request.headers['x-tenant-id']}")  # type: ignore[arg-type]


@asynccontextmanager
async def shop(database: str) -> AsyncGenerator[tuple[httpx2.AsyncClient, Mapping[str, str]]]:
    """Tenant `default` with one of everything: what stands for each name in a path."""
    DECLINES.clear()
    DECLINES.add("bad")
    await migrate(database, SERVED.migrations)
    async with serving(database, deployment=SERVED, access=lambda _: Named()) as client:
        waiting = await started(client, "shop.approval", "")
        failed = await started(client, "shop.place_order", {"order_id": "bad"})
        await until(client, waiting, "suspended"), await until(client, failed, "failed")
        await client.post("/api/v1/signals", json={"name": "remarked", "key": "order-1", "payload": "canary"}, headers={"X-Tenant-ID": "default"})
        yield client, {"id": waiting, "failed": failed, "schedule": "nightly", "name": "shop.approval"}


def filled(route: Route, there: Mapping[str, str]) -> str:
    """The path with things of the first tenant; a name that the test does not know is an error."""
    path = route.path
    for name in route.parameters:
        path = path.replace(f"{{{name}}}", there[name])
    return path


def body_of(route: Route, there: Mapping[str, str]) -> Any:
    """A body that the route takes, with ids of the first tenant in it."""
    if route.name == "dead_discard":
        return {"executions": [there["failed"]]}
    if route.request == INPUT:
        return ""
    if route.name == "schedule_make":
        return {"id": "nightly", "workflow": "shop.report", "input": "now", "every": "1d"}
    if route.request is not None:
        codec(route.request).structure(route.example)
    return route.example


async def ask(client: httpx2.AsyncClient, route: Route, there: Mapping[str, str], **headers: str) -> httpx2.Response:
    sent = {} if route.request is None else {"json": body_of(route, there)}
    return await client.request(route.method, filled(route, there), headers=headers, **sent)


async def rows_of(store: Store, tenant: str) -> str:
    """All that is stored of a tenant, and when, in whatever tables there are: the worker of the test has nothing to do for it by then."""
    tables = [row["name"] for row in await store.again("select name from flowdsl.tenant_tables()")]
    found: dict[str, Any] = {}
    async with of_tenant(store, tenant).connection() as connection, connection.transaction(readonly=True):
        for table in tables:
            if table != "audit_heads":  # moves when the sealer does, and so do these columns
                rows = await connection.fetch(f"select to_jsonb(t) - 'seq' - 'hash' - 'prev' as row from flowdsl.{table} t")
                found[table] = sorted(row["row"] for row in rows)
    assert len(found) > 10 and found["executions"] and found["schedules"] and found["unmatched"]
    return json.dumps(found, indent=1)


@pytest.mark.shows("S1.58", "S1.140")
async def test_another_tenants_things_are_not_there(database: str) -> None:
    asked = 0
    async with shop(database) as (client, there), await Store.open(database, size=1) as watcher:
        before = await rows_of(watcher, "default")
        mentioned = [there["id"], there["failed"], "canary", '"nightly"']
        for route in TABLE:
            if route.rule == "anyone":
                continue
            answer = await ask(client, route, there, **{"X-Tenant-ID": "intruder"})
            asked += 1
            names = set(route.parameters) & {"id", "schedule"}
            if names:
                assert (route.name, answer.status_code) == (route.name, 404), answer.text
                assert problem(answer)["title"].startswith("no such")
            elif route.request is None:
                assert answer.status_code == 200, f"{route.name}: {answer.text}"
                assert not any(one in answer.text for one in mentioned), f"{route.name}: {answer.text}"
            else:
                assert answer.status_code in (200, 201, 202), f"{route.name}: {answer.text}"
                assert not any(one in answer.text for one in mentioned[:2]), f"{route.name}: {answer.text}"
            assert await rows_of(watcher, "default") == before, f"{route.name} changed another tenant's rows"
    assert asked > 30


async def test_the_same_requests_of_their_own_tenant_are_answered(database: str) -> None:
    """What the test above sends is no nonsense: for its own tenant each route finds something."""
    for route in TABLE:
        assert route.rule in (*ROLES, "anyone")
    async with shop(database) as (client, there):
        for route in TABLE:
            if route.streams or route.name in ("terminate", "schedule_remove"):
                continue
            own = {**there, "id": there["failed"]} if route.name == "retry" else there
            answer = await ask(client, route, own, **{"X-Tenant-ID": "default"})
            assert answer.status_code in (200, 201, 202, 409), f"{route.name}: {answer.text}"


@pytest.mark.parametrize("role", ["nobody", *ROLES])
async def test_each_route_asks_for_its_role(database: str, role: str) -> None:
    async with shop(database) as (client, there), await Store.open(database, size=1) as watcher:
        before = await rows_of(watcher, "default")
        for route in TABLE:
            if route.rule == "anyone":
                assert (await ask(client, route, there, **{"X-Role": "nobody"})).status_code == 200
            elif role == "nobody":
                answer = await ask(client, route, there, **{"X-Tenant-ID": "default", "X-Role": role})
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), route.name
            elif ROLES.index(role) < ROLES.index(route.rule):
                answer = await ask(client, route, there, **{"X-Tenant-ID": "default", "X-Role": role})
                assert (route.name, answer.status_code) == (route.name, 403)
        assert await rows_of(watcher, "default") == before


async def test_a_route_that_forgets_the_tenant_tells_nothing_all_the_same(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The condition is gone from what nearly every route asks first: the server still has none of another's rows for it."""

    async def forgets(store: Store, tenant: str, id: str) -> Summary:
        return await store.summary(id)

    async with shop(database) as (client, there), await Store.open(database, size=1) as watcher:
        before = await rows_of(watcher, "default")
        monkeypatch.setattr(looking, "execution", forgets)
        for route in TABLE:
            if "id" in route.parameters:
                answer = await ask(client, route, there, **{"X-Tenant-ID": "intruder"})
                assert (route.name, answer.status_code) == (route.name, 404), answer.text
        assert await rows_of(watcher, "default") == before
        mine = await client.get(f"/api/v1/workflows/{there['id']}/status", headers={"X-Tenant-ID": "default"})
        assert mine.status_code == 200


async def test_no_path_answers_to_another_verb(database: str) -> None:
    """What is not in the table is not served: nothing slips in beside the rules."""
    served = [(route.method, re.compile(re.sub(r"\{\w+\}", "[^/]+", route.path))) for route in TABLE]
    async with shop(database) as (client, there), await Store.open(database, size=1) as watcher:
        before = await rows_of(watcher, "default")
        for path in {filled(route, there) for route in TABLE}:
            for verb in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
                if not any(verb == method and pattern.fullmatch(path) for method, pattern in served):
                    answer = await client.request(verb, path, json={}, headers={"X-Tenant-ID": "default"})
                    assert answer.status_code == 405, f"{verb} {path}: {answer.status_code}"
        assert await rows_of(watcher, "default") == before


async def _nothing(call: Call) -> None: ...


def test_a_route_without_a_rule_is_refused() -> None:
    for rule in (None, "", "everybody"):
        with pytest.raises(DefinitionError, match="is no rule"):
            Route("GET", "/api/v1/secrets", "secrets", "All of them.", rule, _nothing, {200: None})  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Route("GET", "/api/v1/secrets", "secrets", "All of them.", endpoint=_nothing, answers={200: None})  # type: ignore[call-arg]


def test_a_table_has_each_route_once() -> None:
    with pytest.raises(DefinitionError, match="there are two"):
        checked([*ROUTES, evolve(ROUTES[0], name="other")])


# Development mode


def connection(client: str | None = "127.0.0.1", **headers: str) -> HTTPConnection:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in {"host": "localhost:8084", **headers}.items()]
    return HTTPConnection({"type": "http", "headers": raw, "client": None if client is None else (client, 4711)})


async def test_development_believes_this_machine() -> None:
    access = DevelopmentAccess()
    assert (await access.authenticate(connection())).tenant == "default"
    assert (await access.authenticate(connection("::1", x_tenant_id="acme"))).tenant == "acme"
    assert (await access.authenticate(connection("::ffff:127.0.0.1", origin="http://localhost:8084"))).may("admin")


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        ("10.0.0.7", {}),
        (None, {}),
        ("testclient", {}),
        ("127.0.0.1", {"host": "rebound.example"}),
        ("127.0.0.1", {"host": "127.0.0.1.evil.example"}),
        ("127.0.0.1", {"origin": "https://evil.example"}),
        ("127.0.0.1", {"origin": "null"}),
        ("127.0.0.1", {"x_forwarded_for": "10.0.0.7"}),
        ("127.0.0.1", {"origin": "http://localhost:3000"}),
    ],
)
async def test_development_refuses_others(client: str | None, headers: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated):
        await DevelopmentAccess().authenticate(connection(client, **headers))


async def test_schedules_that_a_tenant_makes_are_its_own(database: str) -> None:
    async with shop(database) as (client, _):
        wish = {"id": "same", "workflow": "shop.report", "input": "x", "every": "1d"}
        ids = [(await client.post("/api/v1/schedules", json=wish, headers={"X-Tenant-ID": tenant})).json()["id"] for tenant in ("a", "b", "a:same")]
        assert len(set(ids)) == 3
        async with await Store.open(database) as store:
            await register(store, DEPLOYMENT)  # a worker that starts again
        found = (await client.get("/api/v1/schedules", headers={"X-Tenant-ID": "a"})).json()["schedules"]
        assert [(one["id"], one["due"] is not None) for one in found] == [(ids[0], True)]
