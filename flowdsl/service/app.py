"""The service as one Starlette app, made from the route table."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog
from attrs import evolve
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Served

from flowdsl.binding import Deployment
from flowdsl.codec import codec
from flowdsl.errors import DefinitionError, FlowError
from flowdsl.metrics import Metrics
from flowdsl.postgres.connection import full, lost, reason, refuses, trace
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Worker
from flowdsl.service import events, executions, operations, starting, surroundings, upkeep, watching
from flowdsl.service.access import Access, Caller, DevelopmentAccess
from flowdsl.service.body import not_json, query_of, read, read_json
from flowdsl.service.openapi import openapi
from flowdsl.service.problem import Problem, busy, invalid, of_error, of_status
from flowdsl.service.route import INPUT, Call, Check, Reply, Route, Service
from flowdsl.service.settings import Settings

if TYPE_CHECKING:
    from flowdsl.tracing import Tracing

log = structlog.get_logger("flowdsl")

_NOBODY = Caller("", frozenset(), "anyone")
_SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


async def _described(call: Call) -> Response:
    text = json.dumps(openapi(table(call.service.deployment), call.service.deployment, keyed=not isinstance(call.service.access, DevelopmentAccess)))
    return Response(text, media_type="application/json")


def checked(routes: Iterable[Route]) -> tuple[Route, ...]:
    """A table of routes. Raises `DefinitionError` when two are of one name, or of one method and path."""
    found = tuple(routes)
    seen: set[str] = set()
    for route in found:
        for name in (route.name, f"{route.method} {route.path}"):
            if name in seen:
                raise DefinitionError(f"route {name}", "there are two of it", "Rename one")
            seen.add(name)
    return found


ROUTES = checked(
    [
        *starting.ROUTES,
        *executions.ROUTES,
        *events.ROUTES,
        *operations.ROUTES,
        *upkeep.ROUTES,
        *surroundings.ROUTES,
        *watching.ROUTES,
        Route("GET", "/api/v1/openapi.json", "openapi", "This description.", "anyone", _described, {200: None}, storeless=True),
    ]
)
"""What the service answers whatever is deployed, webhooks apart."""


def table(deployment: Deployment) -> tuple[Route, ...]:
    """All that the service answers for a deployment, webhooks apart: its own routes first, since they may name one workflow where ours take any."""
    return checked([*deployment.routes, *ROUTES])


def create_app(
    deployment: Deployment,
    settings: Settings | None = None,
    *,
    store: Store | None = None,
    dsn: str | None = None,
    access: Access | None = None,
    worker: Worker | None = None,
    checks: Mapping[str, Check] | None = None,
    metrics: Metrics | None = None,
    tracing: Tracing | None = None,
) -> Starlette:
    """The API of a deployment, over a store or the database at `dsn`. Without `access` it is in development mode: for this machine only.

    `worker`: the one of this process, if there is one. `checks`: what else must be well for /ready, by name; each raises when it is not.
    `metrics`: the numbers that /metrics tells, else new ones; of `worker` they are kept too. `tracing`: spans for OpenTelemetry. Mounted into another
    app, its `state.service` is to be closed by that app.
    """
    chosen = settings or Settings()
    url = dsn or chosen.database.url or None
    numbers = metrics or (Metrics() if chosen.server.metrics != "off" else None)
    service = Service(
        deployment, chosen.server, access or DevelopmentAccess(), url, store, worker, checks or {}, chosen.limits, numbers,
        None if numbers is None else watching.StoreNumbers(numbers), tracing,
    )  # fmt: skip
    for watch in (numbers, tracing):
        if watch is not None and worker is not None:
            watch.watch(worker)
    handlers: Any = {HTTPException: _refused, Exception: _failed}
    served = [*(_served(service, _ruled(service, route)) for route in table(deployment)), *_webhooks(service)]
    app = Starlette(routes=served, exception_handlers=handlers, lifespan=_lived(service))
    app.state.service = service
    return app


def _ruled(service: Service, route: Route) -> Route:
    """The route under the rule that the settings give it."""
    return evolve(route, rule="anyone") if route.endpoint is watching.metrics and service.settings.metrics == "open" else route


def _lived(service: Service) -> Any:
    @asynccontextmanager
    async def lived(_: Starlette) -> AsyncGenerator[None]:
        try:
            if service.deployment.webhooks:
                await service.webhooks()
            yield
        finally:
            await service.close()

    return lived


def _webhooks(service: Service) -> list[Served]:
    """One route for all endpoints: each verifies for itself who sends."""
    if not service.deployment.webhooks:
        return []

    async def answer(request: Request) -> Response:
        return await (await service.webhooks()).receive(request)

    async def received(request: Request) -> Response:
        began = asyncio.get_running_loop().time()
        response = await _in_time(service, request, answer)
        _count(service, request, "/webhooks/{name}", response.status_code, asyncio.get_running_loop().time() - began)
        return response

    return [Served("/webhooks/{name}", received, methods=["POST"])]


def _served(service: Service, route: Route) -> Served:
    async def answer(request: Request) -> Response:
        if service.tracing is None:
            return await _answer(service, route, request)
        with service.tracing.request(route.method, route.path, request.headers) as span:
            try:
                found = await _answer(service, route, request)
            except Exception as error:
                found = _problem(error, request).response()
            service.tracing.answered(span, found.status_code)
            return found

    async def endpoint(request: Request) -> Response:
        began = asyncio.get_running_loop().time()
        response = await _in_time(service, request, answer)
        _count(service, request, route.path, response.status_code, asyncio.get_running_loop().time() - began)
        return response

    return Served(route.path, endpoint, methods=[route.method], name=route.name)


async def _in_time(service: Service, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """The answer, or that it took too long. What streams is answered once it is known to be there; how long it goes on is its own affair.

    Work that is cut off may still wait for a store that says nothing, until its driver gives up: who asked does not.
    """
    task = asyncio.ensure_future(answer(request))
    try:
        await asyncio.wait([task], timeout=service.settings.timeout_seconds)
    except asyncio.CancelledError:
        service.abandon(task)
        raise
    if not task.done():
        service.abandon(task)
        return busy(f"It took longer than {service.settings.timeout_seconds:g} s: whether it was done is not known").response()
    try:
        return task.result()
    except Exception as error:
        return _problem(error, request).response()


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def _count(service: Service, request: Request, route: str, status: int, seconds: float | None = None) -> None:
    if service.metrics is not None:
        method = request.method if request.method in _METHODS else "other"  # a name that somebody made up is no label
        service.metrics.requests.labels(method, route, status).inc()
        if seconds is not None:
            service.metrics.answer_seconds.labels(method, route).observe(seconds)


async def _answer(service: Service, route: Route, request: Request) -> Response:
    """Who asks, whether they may, what they sent, and only then the route's own work."""
    caller = _NOBODY
    if route.rule != "anyone":
        caller = await service.access.authenticate(request)
        if not caller.may(route.rule):
            held = ", ".join(sorted(caller.roles)) or "no role"
            raise Problem(403, "not allowed", f"This is for the role {route.rule}, and this key has {held}")
    if route.spends is not None:
        await _allow(service, route.spends, caller)
    query = _query(route, request)
    body = await _body(service, route, request)
    store = None if route.storeless else await service.store_of(caller.tenant)
    reply = await route.endpoint(Call(service, request, caller, store, body, query))
    if isinstance(reply, Response):
        reply.headers.update({name: value for name, value in _SAFE.items() if name.lower() not in reply.headers})
        return reply
    reply = reply if isinstance(reply, Reply) else Reply(reply)
    form = route.answers[reply.status]
    return Response(codec(form).encode(reply.value), reply.status, {**_SAFE, **reply.headers}, "application/json")


async def _allow(service: Service, what: str, caller: Caller) -> None:
    """Raises `Problem` when the tenant has asked for too much of it: before its body is read."""
    seconds = await service.allowed(what, caller.tenant)
    if seconds > 0:
        after = max(1, math.ceil(seconds))
        if service.metrics is not None:
            service.metrics.limited.labels(what).inc()
        detail = f"This tenant may send so many {what} a minute, and has: send it again after {after} s, under the same Idempotency-Key or delivery"
        raise Problem(429, f"too many {what}", detail, headers={"Retry-After": str(after)})


def _query(route: Route, request: Request) -> Any:
    given: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        given.setdefault(name, []).append(value)
    if route.query is not None:
        return query_of(route.query, given)
    if given:
        raise invalid([(f"query.{name}", "expected no such parameter") for name in given])
    return None


async def _body(service: Service, route: Route, request: Request) -> Any:
    if route.request is None or route.request == INPUT:
        return None
    if route.may_be_empty and "content-type" not in request.headers:
        if await read(request, service.settings):
            raise not_json()
        return codec(route.request).structure({}, root="body")
    plain = await read_json(request, service.settings)
    return codec(route.request).structure(plain, root="body")


# What goes wrong


def _problem(error: Exception, request: Request) -> Problem:
    """Every error as a problem. What nobody foresaw is logged under a number, and tells nothing else."""
    if isinstance(error, FlowError):
        problem = of_error(error)
        if problem.status == 503:
            log.warning("service.away", route=_route(request), error=str(error))
        return problem
    if refuses(error):
        return invalid([("request", f"the store cannot hold a value of it: {error}")])
    if lost(error) or full(error):
        log.warning("service.away", route=_route(request), error=reason(error))
        return busy("The database does not answer: whether it was done is not known. Send it again, under the same Idempotency-Key")
    number = uuid4().hex[:12]
    log.error("service.failed", number=number, method=request.method, route=_route(request), traceback=trace(error))
    return Problem(500, "failed", f"This is a bug of the service or of the deployment; its log says more under the number {number}")


def _route(request: Request) -> str:
    """As the table names it: what stands in a path in place of a name may be a key, and a key may be anything."""
    return str(getattr(request.scope.get("route"), "path", "none"))


_ELSEWHERE = {
    404: "There is nothing at this path: GET /api/v1/openapi.json lists what there is.",
    405: "This path has no such method: GET /api/v1/openapi.json lists what there is.",
}
"""What to do about a request that no route takes."""


async def _refused(request: Request, error: HTTPException) -> Response:
    _count(request.app.state.service, request, "none", error.status_code)
    return of_status(error.status_code, _ELSEWHERE.get(error.status_code, ""), headers=error.headers).response()


async def _failed(request: Request, error: Exception) -> Response:
    return _problem(error, request).response()


__all__ = ["ROUTES", "checked", "create_app", "table"]
