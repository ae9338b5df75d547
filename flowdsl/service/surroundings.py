"""What there is around executions: the workflows of the deployment, and whether all that the service needs is well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping

from attrs import evolve

from flowdsl.errors import DefinitionError, NotFound, StoreError
from flowdsl.outline import outline
from flowdsl.postgres import looking
from flowdsl.postgres.connection import lost
from flowdsl.service.problem import Problem
from flowdsl.service.route import Call, Reply, Route
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
    found = await checked(call.service.checks, {"database": _database(call)})
    return _told(tuple(evolve(one, detail="") for one in found))  # why not is for those who may ask /api/v1/coordination/health-check


async def coordination(call: Call) -> Reply:
    """The same with workers, for who operates the systems together."""
    return _told(await checked(call.service.checks, {"database": _database(call), "workers": _workers(call)}))


def _told(checks: tuple[Check, ...]) -> Reply:
    well = all(one.ok for one in checks)
    return Reply(Health("ok" if well else "unavailable", checks), 200 if well else 503, {} if well else {"Retry-After": "5"})


async def checked(others: Mapping[str, Asking], ours: Mapping[str, Awaitable[str]]) -> tuple[Check, ...]:
    """How each stands, all asked at once, none for longer than `PATIENCE`."""
    asked: dict[str, Awaitable[object]] = {**ours, **{name: check() for name, check in others.items()}}
    return tuple(await asyncio.gather(*(_check(name, work) for name, work in asked.items())))


async def _check(name: str, work: Awaitable[object]) -> Check:
    try:
        async with asyncio.timeout(PATIENCE):
            said = await work
    except TimeoutError:
        return Check(name, False, f"it did not answer within {PATIENCE:g} s")
    except Exception as error:  # whatever a check raises is its answer
        return Check(name, False, (str(error) or type(error).__name__)[:500])
    return Check(name, True, said if isinstance(said, str) else "")


async def _database(call: Call) -> str:
    try:
        async with (await call.service.store()).connection() as connection:
            await connection.fetchval("select 1")
    except StoreError as error:
        raise Problem(503, "not available", error.problem) from None
    except Exception as error:
        if lost(error):
            raise Problem(503, "not available", "the database does not answer") from None
        raise
    return ""


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
