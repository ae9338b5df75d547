"""Webhooks in: verified over the raw body, stored, answered, then acted on.

people = webhook("people", planning_center(secret), lambda delivery: [start(sync_person, delivery.json()["data"][0]["id"])])
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import structlog
from attrs import frozen
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flowdsl.chance import new_id
from flowdsl.codec import codec
from flowdsl.definition import Workflow
from flowdsl.errors import DefinitionError
from flowdsl.flow import Signal
from flowdsl.journal import codecs_of
from flowdsl.postgres.store import NewStart, Store, reason
from flowdsl.postgres.webhooks import Received, act, keep
from flowdsl.service.body import BodyLimits, read
from flowdsl.service.problem import Problem, busy
from flowdsl.service.verifiers import Forged, Verifier

log = structlog.get_logger("flowdsl")

I = TypeVar("I")  # noqa: E741
T = TypeVar("T")


@frozen
class Delivery:
    """What came: the endpoint it came to, its id, and the body as it was signed."""

    endpoint: str
    id: str
    body: bytes

    def json(self) -> Any:
        """The body as plain values. Raises `ValueError` when it is no JSON."""
        return json.loads(self.body)


@frozen
class Starting:
    workflow: Workflow[Any, Any, Any]
    request: Any
    key: str | None


@frozen
class Telling:
    to: str
    signal: Signal[Any]
    payload: Any


Reaction: TypeAlias = Starting | Telling


def start(workflow: Workflow[I, Any, Any], request: I, *, key: str | None = None) -> Reaction:
    """Starts an execution. Without a key it has one by the delivery: what is delivered twice starts once."""
    return Starting(workflow, request, key)


def send(to: str, signal: Signal[T], payload: T) -> Reaction:
    """Sends a signal to an execution or a correlation key; it is kept when nobody waits yet. A delivery sends it once."""
    return Telling(to, signal, payload)


@frozen
class Webhook:
    """An endpoint, `POST /webhooks/{name}`, of one tenant."""

    name: str
    verifier: Verifier
    react: Callable[[Delivery], Iterable[Reaction]]
    tenant: str = "default"


def webhook(name: str, verifier: Verifier, react: Callable[[Delivery], Iterable[Reaction]], *, tenant: str = "default") -> Webhook:
    """What is to happen when a provider calls. `react` is pure: it says what to start and what to send; it may be asked again."""
    if not name or not all(part.isalnum() or part in "-_." for part in name):
        raise DefinitionError(f"webhook {name!r}", "its name is part of an address", "Use letters, digits, '-', '_' and '.'")
    return Webhook(name, verifier, react, tenant)


class Webhooks:
    """The endpoints of a service over one store, and the task that acts on what came."""

    def __init__(
        self,
        webhooks: Sequence[Webhook],
        store: Store,
        limits: BodyLimits,
        *,
        poll: float = 1.0,
        told: Callable[[str, str], None] | None = None,
        store_of: Callable[[str], Awaitable[Store]] | None = None,
    ) -> None:
        """`told`: hears of each endpoint what became of a delivery. `store_of`: the store as a tenant sees it, for what is done in its name."""
        self._known = {webhook.name: webhook for webhook in webhooks}
        if len(self._known) < len(webhooks):
            raise DefinitionError("webhooks", "two of them have one name", "Give each endpoint a name of its own")
        self._store, self._limits, self._poll = store, limits, poll
        self._told = told or _to_nobody
        self._store_of = store_of or self._whole
        self._came = asyncio.Event()

    @property
    def routes(self) -> list[Route]:
        return [Route("/webhooks/{name}", self.receive, methods=["POST"])]

    async def receive(self, request: Request) -> Response:
        webhook = self._known.get(request.path_params["name"])
        if webhook is None:
            return Problem(404, "no such webhook", "No endpoint has this name").response()
        try:
            body = await read(request, self._limits)
            try:
                delivery = webhook.verifier.verify(body, request.headers)
            except Forged as error:
                self._told(webhook.name, "refused")
                log.warning("webhook.refused", endpoint=webhook.name, reason=str(error), address=request.client.host if request.client else None)
                return Problem(401, "not signed", "The signature does not fit this endpoint").response()
            try:
                new = await keep(await self._store_of(webhook.tenant), webhook.tenant, webhook.name, delivery, body)
            except Exception as error:
                self._told(webhook.name, "not stored")
                log.error("webhook.not_stored", endpoint=webhook.name, error=reason(error))
                raise busy("it could not be stored: deliver it again") from error
        except Problem as problem:
            return problem.response()
        self._told(webhook.name, "new" if new else "duplicate")
        self._came.set()
        return JSONResponse({"received": True, "duplicate": not new})

    async def run(self) -> None:
        """Acts on what came until it is cancelled; what an earlier process left is taken up too."""
        while True:
            try:
                found = await act(self._store, list(self._known), self._act)
            except Exception as error:
                log.warning("webhooks.away", error=reason(error))
                found = 0
            if not found:
                try:
                    await asyncio.wait_for(self._came.wait(), self._poll)
                except TimeoutError:
                    continue
                finally:
                    self._came.clear()

    async def _act(self, came: Received) -> str:
        webhook = self._known[came.endpoint]
        reactions = list(webhook.react(Delivery(came.endpoint, came.delivery, came.body)))
        outcomes = [await self._react(came, index, reaction) for index, reaction in enumerate(reactions)]
        return "; ".join(outcomes) or "nothing to do"

    async def _whole(self, tenant: str) -> Store:
        return self._store

    async def _react(self, came: Received, index: int, reaction: Reaction) -> str:
        own, store = f"webhook {came.endpoint} {came.delivery} {index}", await self._store_of(came.tenant)
        if isinstance(reaction, Telling):
            body = codec(reaction.signal.payload).encode(reaction.payload)
            sent = await store.send(came.tenant, reaction.to, "signal", reaction.signal.name, body, own)
            return f"signal {reaction.signal.name} to {reaction.to}: {sent}"
        workflow = reaction.workflow
        key = reaction.key or (workflow.key_of(reaction.request) if workflow.key is not None else own)
        body = codecs_of(workflow).request.encode(reaction.request)
        wish = NewStart(new_id(), came.tenant, workflow.name, workflow.version, "", key, workflow.reuse, body)
        (started,) = await store.start([wish])
        return f"{workflow.name} {started.id}: {started.outcome}"


def _to_nobody(endpoint: str, verdict: str) -> None: ...


__all__ = ["Delivery", "Reaction", "Webhook", "Webhooks", "send", "start", "webhook"]
