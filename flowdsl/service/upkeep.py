"""Dead letters, schedules and the audit over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime

from attrs import frozen

from flowdsl.errors import DefinitionError, NotFound, StoreError
from flowdsl.journal import codecs_of
from flowdsl.postgres import looking, scheduling
from flowdsl.postgres.audit import verify
from flowdsl.postgres.looking import Place
from flowdsl.postgres.schedules import Fired
from flowdsl.schedule import Schedule
from flowdsl.service.executions import aware, cursor, limited, page_of, placed
from flowdsl.service.problem import Problem, invalid
from flowdsl.service.route import Call, Reply, Route
from flowdsl.service.starting import named
from flowdsl.service.wire import (
    Audit,
    Backfilled,
    ChainVerdict,
    DeadRetry,
    Discard,
    Discarded,
    Executions,
    FiredFacts,
    NewSchedule,
    Removed,
    Retried,
    ScheduleFacts,
    Schedules,
    Span,
    audit_of,
    schedule_of,
)

# Dead letters


@frozen
class DeadQuery:
    """Of which workflow; which page, and how long."""

    workflow: str | None = None
    cursor: str | None = None
    limit: int | None = None


async def dead(call: Call) -> Executions:
    """Those that failed or are blocked, and that nobody retried or discarded."""
    most, place = limited(call, call.query.limit), placed(Place, call.query.cursor)
    after = None if place is None else (place.started, place.id)
    found = await call.operator.dead(workflow=call.query.workflow, limit=most + 1, after=after)
    return page_of(found, most)


async def dead_retry(call: Call) -> Retried:
    """All that fit, each for itself."""
    body: DeadRetry = call.body
    if not 1 <= body.limit <= 1000:
        raise invalid([("body.limit", "expected 1 to 1000")])
    bulk = await call.operator.retry_dead(workflow=body.workflow, limit=body.limit, reason=body.reason)
    return Retried(bulk.done, dict(bulk.refused))


async def dead_discard(call: Call) -> Discarded:
    """Takes them off the list."""
    body: Discard = call.body
    wrong = [(f"body.executions[{number}]", "expected an execution's id") for number, id in enumerate(body.executions) if not looking.is_id(id)]
    if wrong or not 1 <= len(body.executions) <= 1000:
        raise invalid(wrong or [("body.executions", "expected 1 to 1000 of them")])
    return Discarded(tuple(await call.operator.discard(body.executions, body.reason)))


# Schedules


async def schedules(call: Call) -> Schedules:
    """Those of the caller's tenant."""
    return Schedules(tuple(map(schedule_of, await scheduling.listed(call.store, tenant=call.tenant))))


async def _one(call: Call) -> ScheduleFacts:
    [one] = await scheduling.listed(call.store, call.path("schedule"), tenant=call.tenant)
    return schedule_of(one)


async def schedule_make(call: Call) -> Reply:
    """A schedule of the tenant's own. Sent again it is there already."""
    body: NewSchedule = call.body
    schedule = _schedule(call, body)
    try:
        made = await scheduling.make(call.store, schedule, call.service.deployment.limits.request, by=call.caller.name)
    except StoreError as error:
        raise Problem(409, "there already", str(error)) from None
    [one] = await scheduling.listed(call.store, schedule.id, tenant=call.tenant)
    return Reply(schedule_of(one), 201 if made else 200)


def _schedule(call: Call, body: NewSchedule) -> Schedule:
    try:
        workflow = named(call.service.deployment, body.workflow)
    except NotFound as error:
        raise invalid([("body.workflow", str(error))]) from None
    request = codecs_of(workflow).request.structure(body.input, root="body.input")
    if (body.cron is None) == (body.every is None):
        raise invalid([("body", "expected either cron or every")])
    if not 0 < len(body.id) <= 100 or "/" in body.id:
        raise invalid([("body.id", "expected 1 to 100 characters without /")])
    id = scheduling.made_id(call.tenant, body.id)
    try:
        if body.cron is not None:
            return Schedule.cron(
                body.cron, workflow, request, id=id, zone=body.zone, jitter=body.jitter, overlap=body.overlap, catch_up=body.catch_up,
                within=body.within, tenant=call.tenant,
            )  # fmt: skip
        return Schedule.every(
            body.every or "", workflow, request, id=id, jitter=body.jitter, overlap=body.overlap, catch_up=body.catch_up, within=body.within,
            tenant=call.tenant,
        )  # fmt: skip
    except (DefinitionError, ValueError, OverflowError) as error:
        raise invalid([("body", str(error))]) from None


async def schedule_remove(call: Call) -> Removed:
    """What it started goes on."""
    try:
        await scheduling.remove(call.store, call.path("schedule"), by=call.caller.name, tenant=call.tenant)
    except StoreError as error:
        raise Problem(409, "in code", str(error)) from None
    return Removed(call.path("schedule"))


async def schedule_pause(call: Call) -> ScheduleFacts:
    """Starts nothing until it is resumed."""
    await scheduling.pause(call.store, call.path("schedule"), by=call.caller.name, tenant=call.tenant)
    return await _one(call)


async def schedule_resume(call: Call) -> ScheduleFacts:
    """Goes on from now."""
    await scheduling.resume(call.store, call.path("schedule"), by=call.caller.name, tenant=call.tenant)
    return await _one(call)


async def schedule_trigger(call: Call) -> Reply:
    """Starts it now, under its overlap policy."""
    fired = await scheduling.trigger(call.store, call.path("schedule"), by=call.caller.name, tenant=call.tenant)
    return Reply(_fired(fired), 200 if fired.outcome == "skipped" else 202)


async def schedule_backfill(call: Call) -> Reply:
    """Starts what its rule names in a span of the past."""
    since, until = aware("body.since", call.body.since), aware("body.until", call.body.until) or datetime.max.replace(tzinfo=UTC)
    if since is None or until < since:
        raise invalid([("body.until", "expected a time that is not before since")])
    try:
        fired = await scheduling.backfill(call.store, call.path("schedule"), since, until, by=call.caller.name, tenant=call.tenant)
    except StoreError as error:
        raise invalid([("body.since", str(error))]) from None
    return Reply(Backfilled(tuple(map(_fired, fired))), 202)


def _fired(one: Fired) -> FiredFacts:
    return FiredFacts(one.schedule, one.instant, one.outcome, one.execution)


# Audit


@frozen
class AuditQuery:
    """Which rows are asked for."""

    execution: str | None = None
    event: str | None = None
    cursor: str | None = None
    limit: int | None = None


@frozen
class Row:
    """Where a page of the audit ended."""

    id: int


async def audit(call: Call) -> Audit:
    """What was done, by whom and when."""
    query: AuditQuery = call.query
    if query.execution is not None and not looking.is_id(query.execution):
        raise invalid([("query.execution", "expected an execution's id")])
    most, place = limited(call, query.limit), placed(Row, query.cursor)
    if place is not None and not 0 <= place.id < 1 << 63:
        raise invalid([("query.cursor", "expected what `next` said on another page")])
    before = None if place is None else place.id
    rows = await looking.audited(call.store, call.tenant, execution=query.execution, event=query.event, before=before, limit=most + 1)
    page = rows[:most]
    return Audit(tuple(map(audit_of, page)), cursor(Row(page[-1].id)) if len(rows) > most else None)


async def audit_verify(call: Call) -> ChainVerdict:
    """Computes the tenant's chain anew."""
    async with call.store.connection() as connection:
        found = await verify(connection, call.tenant)
    return ChainVerdict(not found.wrong, found.rows, found.seq, found.hash.hex(), found.unsealed, tuple(found.wrong))


_SCHEDULE = "/api/v1/schedules/{schedule}"

ROUTES = (
    Route("GET", "/api/v1/dead-letters", "dead", "Executions that failed or are blocked, until somebody retries or discards them.", "viewer", dead,
          {200: Executions}, query=DeadQuery),
    Route("POST", "/api/v1/dead-letters/retry", "dead_retry", "Retry dead letters: failed ones do again what failed, blocked ones are resumed.",
          "operator", dead_retry, {200: Retried}, request=DeadRetry, example={"limit": 10}),
    Route("POST", "/api/v1/dead-letters/discard", "dead_discard", "Take dead letters off the list.", "admin", dead_discard, {200: Discarded},
          request=Discard, example={"executions": ["01234567-89ab-7def-8123-456789abcdef"]}),
    Route("GET", "/api/v1/schedules", "schedules", "The schedules of the tenant.", "viewer", schedules, {200: Schedules}),
    Route("POST", "/api/v1/schedules", "schedule_make", "Make a schedule. Sent again just so, it is there already.", "operator", schedule_make,
          {201: ScheduleFacts, 200: ScheduleFacts}, request=NewSchedule, problems=(409,)),
    Route("DELETE", _SCHEDULE, "schedule_remove", "Remove a schedule that was made over the API.", "operator", schedule_remove, {200: Removed},
          problems=(404, 409)),
    Route("POST", f"{_SCHEDULE}/pause", "schedule_pause", "Start nothing until it is resumed.", "operator", schedule_pause, {200: ScheduleFacts},
          problems=(404,)),
    Route("POST", f"{_SCHEDULE}/resume", "schedule_resume", "Go on from now.", "operator", schedule_resume, {200: ScheduleFacts}, problems=(404,)),
    Route("POST", f"{_SCHEDULE}/trigger", "schedule_trigger", "Start it now, under its overlap policy.", "operator", schedule_trigger,
          {202: FiredFacts, 200: FiredFacts}, problems=(404,)),
    Route("POST", f"{_SCHEDULE}/backfill", "schedule_backfill", "Start what its rule names in a span of the past and was not started.", "operator",
          schedule_backfill, {202: Backfilled}, request=Span, problems=(404,), example={"since": "2026-01-01T00:00:00+00:00",
          "until": "2026-01-02T00:00:00+00:00"}),
    Route("GET", "/api/v1/audit", "audit", "What was done, by whom and when, newest first.", "admin", audit, {200: Audit}, query=AuditQuery),
    Route("GET", "/api/v1/audit/verdict", "audit_verify", "Whether the audit's chain is whole.", "admin", audit_verify, {200: ChainVerdict}),
)  # fmt: skip
