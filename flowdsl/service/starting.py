"""Starts over HTTP: the input by the workflow's own type, the same request twice once."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid5

from attrs import frozen

from flowdsl.binding import Deployment
from flowdsl.definition import Workflow
from flowdsl.errors import DefinitionError, NotFound, Rejected
from flowdsl.journal import codecs_of
from flowdsl.policy import within
from flowdsl.postgres.looking import request_of
from flowdsl.postgres.starting import new_id
from flowdsl.postgres.store import NewStart
from flowdsl.service.body import read_json
from flowdsl.service.problem import Problem, invalid
from flowdsl.service.route import INPUT, Call, Reply, Route
from flowdsl.service.wire import Existing, Keys, Started

_REQUESTS = UUID("5c1b3a52-3f5c-5d0f-8a53-0d8f8f0c9a01")


@frozen
class StartQuery:
    """`key`: the execution's key, in place of the workflow's own."""

    key: str | None = None


def named(deployment: Deployment, name: str) -> Workflow[Any, Any, Any]:
    """The workflow of that name, or of that last part of it with hyphens: user-onboarding is platform.user_onboarding. Raises `NotFound`."""
    if name in deployment.names:
        return deployment.workflow(name)
    meant = [known for known in deployment.names if known.rpartition(".")[2].replace("_", "-") == name]
    if len(meant) != 1:
        raise NotFound("workflow", name, meant or deployment.names)
    return deployment.workflow(meant[0])


def _key(name: str, key: str | None) -> str | None:
    if key is not None and not (0 < len(key) <= 1000 and "\0" not in key):
        raise invalid([(name, "expected 1 to 1000 characters")])
    return key


async def start(call: Call) -> Reply:
    """Starts it, or finds the execution that this request or its key has started before."""
    workflow = named(call.service.deployment, call.path("name"))
    given = _key("query.key", call.query.key)
    request = codecs_of(workflow).request.structure(await read_json(call.request, call.service.settings), root="body")
    return await begun(call, workflow, request, given)


async def begun(call: Call, workflow: Workflow[Any, Any, Any], request: Any, given: str | None = None) -> Reply:
    """The same for an input that is there already; `given`: the key, in place of the workflow's own."""
    repeated = _key("header.Idempotency-Key", call.request.headers.get("idempotency-key"))
    codecs = codecs_of(workflow)
    body = within(call.service.deployment.limits.request, f"the input of {workflow.name}", codecs.request.encode(request))
    try:
        key = given if given is not None else workflow.key_of(request) if workflow.key is not None else None
    except DefinitionError as error:
        raise invalid([("body", error.problem)], "The workflow's key cannot be made from this input.") from None
    # The same request has the same id: so it is known again, whatever the workflow's reuse policy says of its key.
    id = new_id() if repeated is None else str(uuid5(_REQUESTS, f"{len(call.tenant)}:{call.tenant}{workflow.name}\n{repeated}"))
    known = None if repeated is None else await _known(call, id)
    if known is not None:
        return await _again(call, workflow, id, key, body)
    wish = NewStart(id, call.tenant, workflow.name, workflow.version, "", key, workflow.reuse, body)
    worker = call.service.worker
    if call.service.tracing is not None:
        await call.service.tracing.keep(await call.service.store(), id)
    done = await worker.starts.one(wish) if worker is not None and worker.has_room else (await call.store.start([wish]))[0]
    if done.outcome == "rejected":
        raise Rejected(workflow.name, key or "", done.id)
    if done.outcome == "joined":
        same = await request_of(call.store, call.tenant, done.id) == body
        return _started(call, Started(done.id, workflow.name, key, done.status, "joined", same, call.url("workflows", done.id, "status")))
    if repeated is not None and done.outcome == "again":  # a twin of this request was first
        return await _again(call, workflow, id, key, body)
    if repeated is not None and await request_of(call.store, call.tenant, id) != body:  # the same, at the worker of this process
        raise _another_input(id)
    return _started(call, Started(done.id, workflow.name, key, done.status, "new", True, call.url("workflows", done.id, "status")))


async def _known(call: Call, id: str) -> bytes | None:
    try:
        return await request_of(call.store, call.tenant, id)
    except NotFound:
        return None


async def _again(call: Call, workflow: Workflow[Any, Any, Any], id: str, key: str | None, body: bytes) -> Reply:
    row = await call.store.row(call.tenant, id)
    if bytes(row["request"]) != body:
        raise _another_input(id)
    return _started(call, Started(id, workflow.name, row["key"], row["status"], "joined", True, call.url("workflows", id, "status")))


def _another_input(id: str) -> Problem:
    return Problem(422, "another input", "This Idempotency-Key was sent before with another input: use a new one for a new request", execution=id)


def _started(call: Call, started: Started) -> Reply:
    return Reply(started, 202 if started.outcome == "new" else 200, {"Location": started.status_url})


async def existing(call: Call) -> Existing:
    """Which of these keys executions have that were started from outside."""
    workflow = named(call.service.deployment, call.path("name"))
    if len(call.body.keys) > 10_000:
        raise invalid([("body.keys", "expected at most 10,000 keys")])
    return Existing(await call.store.existing(call.tenant, workflow.name, "", list(call.body.keys)))


ROUTES = (
    Route(
        "POST", "/api/v1/workflows/{name}", "start", "Start a workflow. A request that is repeated under its Idempotency-Key, or a key that is taken,"
        " gives the execution that is there.", "operator", start, {202: Started, 200: Started}, request=INPUT, query=StartQuery,
        problems=(404, 409, 413), spends="starts",
        headers={"Idempotency-Key": "The same for the same request, however often it is sent: it acts once."},
    ),
    Route(
        "POST", "/api/v1/workflows/{name}/existing", "existing", "Which keys executions of a workflow have already.", "viewer", existing,
        {200: Existing}, request=Keys, problems=(404,), example={"keys": ["a", "b"]},
    ),
)  # fmt: skip
