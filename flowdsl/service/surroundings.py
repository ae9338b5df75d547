"""What there is around executions: the workflows of the deployment, and whether all that the service needs is well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping

from attrs import evolve

from flowdsl.errors import DefinitionError, NotFound, StoreError
from flowdsl.outline import outline
from flowdsl.postgres import looking
from flowdsl.postgres.connection import lost
from flowdsl.postgres.schema import FUNCTIONS, pending_migrations
from flowdsl.postgres.tenants import not_apart
from flowdsl.postgres.worker import Worker
from flowdsl.service.problem import Problem
from flowdsl.service.route import Call, Reply, Route, Service
from flowdsl.service.route import Check as Asking
from flowdsl.service.starting import named
from flowdsl.service.wire import Check, Health, Outlined, WorkflowFacts, Workflows

PATIENCE = 5.0
"""Seconds that each check gets."""


async def workflows(call: Call) -> Workflows:
    """The workflows that can be started here."""
    deployment = call.service.deployment
    found = [deployment.workflow(name) for name in sorted(deployment.names)]
    return Workflows(tuple(WorkflowFacts(one.name, one.version, call.url("workflows", one.name), call.url("outlines", one.name)) for one in found))


async def outlined(call: Call) -> Outlined:
    """What a workflow may do."""
    workflow = named(call.service.deployment, call.path("name"))
    try:
        drawn = await asyncio.to_thread(outline, workflow)
    except DefinitionError as error:
        raise NotFound("outline", f"{workflow.name} ({error.problem})") from None
    return Outlined(drawn.workflow, drawn.version, drawn.facts(), drawn.to_mermaid())


# Health


async def health(call: Call) -> Health:
    """That this process answers."""
    return Health("ok", ())


async def ready(call: Call) -> Reply:
    """That what it depends on answers too."""
    service = call.service
    if service.checking is None or service.checking.done():  # who asks costs nothing that another has not asked for at the moment
        service.checking = asyncio.create_task(checked(service, _ours(call, service.settings.require_row_level_security)), name="flowdsl-ready")
    found = await asyncio.shield(service.checking)
    return _told(tuple(evolve(one, detail="") for one in found))  # why not is for those who may ask /api/v1/coordination/health-check


async def coordination(call: Call) -> Reply:
    """The same with workers, for who operates the systems together."""
    return _told(await checked(call.service, {**_ours(call, True), "workers": _workers(call)}))


def _ours(call: Call, apart: bool) -> dict[str, Awaitable[str]]:
    """Our own checks; `apart`: also how tenants are kept apart."""
    found: dict[str, Awaitable[str]] = {"database": _database(call)}
    if call.service.worker is not None:
        found["worker"] = _worker(call.service.worker)
    if apart:
        found["tenants"] = _tenants(call)
    return found


def _told(checks: tuple[Check, ...]) -> Reply:
    well = all(one.ok for one in checks)
    return Reply(Health("ok" if well else "unavailable", checks), 200 if well else 503, {} if well else {"Retry-After": "5"})


async def checked(service: Service, ours: Mapping[str, Awaitable[str]]) -> tuple[Check, ...]:
    """How each stands, all asked at once, none for longer than `PATIENCE`: one that does not heed its cancellation is left behind."""
    asked: dict[str, Awaitable[object]] = {**ours, **{name: _asked(check) for name, check in service.checks.items()}}
    tasks = {name: asyncio.ensure_future(work) for name, work in asked.items()}
    await asyncio.wait(tasks.values(), timeout=PATIENCE)
    return tuple(_said(service, name, task) for name, task in tasks.items())


async def _asked(check: Asking) -> object:
    return await check()


def _said(service: Service, name: str, task: asyncio.Future[object]) -> Check:
    if not task.done():
        service.abandon(task)
        return Check(name, False, f"it did not answer within {PATIENCE:g} s")
    if task.cancelled():
        return Check(name, False, "it was cancelled")
    error = task.exception()
    if error is not None:  # whatever a check raises is its answer
        why = error.detail if isinstance(error, Problem) else str(error)
        return Check(name, False, (why or type(error).__name__)[:500])
    said = task.result()
    return Check(name, True, said if isinstance(said, str) else "")


async def _database(call: Call) -> str:
    try:
        async with (await call.service.store()).connection() as connection:
            # A neighbour that is being replaced may have brought other functions: they serve both, and this one stays ready.
            pending = [name for name in await pending_migrations(connection) if name != FUNCTIONS]
    except StoreError as error:
        raise Problem(503, "not available", error.problem) from None
    except Exception as error:
        if lost(error):
            raise Problem(503, "not available", "the database does not answer") from None
        raise
    if pending:
        raise Problem(503, "not available", f"it lacks {', '.join(pending[:3])}: run `flowdsl migrate`")
    return ""


async def _worker(worker: Worker) -> str:
    """Whether the worker of this process takes on work."""
    why = worker.trouble
    if why is not None:
        raise Problem(503, "not available", why)
    return ""


async def _tenants(call: Call) -> str:
    """How tenants are kept apart. By the conditions of our statements alone is well, unless the settings require more."""
    why = await not_apart(await call.service.store())
    if why is not None and call.service.settings.require_row_level_security:
        raise Problem(503, "not available", f"row-level security is required, and {why}")
    return "kept apart by row-level security" if why is None else f"kept apart by conditions alone: {why}"


async def _workers(call: Call) -> str:
    row = await looking.workers(await call.service.store())
    if not row["alive"]:
        raise Problem(503, "no worker", "nobody works: start `flowdsl worker`, or `flowdsl serve` without --no-worker")
    late = f", the oldest work has waited {row['oldest']:.1f} s" if row["oldest"] is not None and row["oldest"] > 1 else ""
    return f"{row['alive']} alive{late}"


ROUTES = (
    Route("GET", "/api/v1/outlines", "workflows", "The workflows of this deployment.", "viewer", workflows, {200: Workflows}),
    Route("GET", "/api/v1/outlines/{name}", "outlined", "What a workflow may do, drawn without running it.", "viewer", outlined, {200: Outlined},
          problems=(404,)),
    Route("POST", "/api/v1/coordination/health-check", "coordination", "How the service and all that it depends on stand.", "viewer", coordination,
          {200: Health, 503: Health}, storeless=True),
    Route("GET", "/health", "health", "Whether this process answers.", "anyone", health, {200: Health}, storeless=True),
    Route("GET", "/ready", "ready", "Whether what it depends on answers too.", "anyone", ready, {200: Health, 503: Health}, storeless=True),
)  # fmt: skip
