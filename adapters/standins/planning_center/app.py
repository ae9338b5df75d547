"""The HTTP face: routes, refusals, faults, and the control endpoints that the real API does not have."""

from __future__ import annotations

import json
from collections import Counter
from random import Random

import anyio
from attrs import define, field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from adapters.standins.gate import Gate
from adapters.standins.planning_center.answer import Document, Page, dump
from adapters.standins.planning_center.churn import BadChange, Churn, change
from adapters.standins.planning_center.deliveries import Subscriptions
from adapters.standins.planning_center.faults import Fault, Faults
from adapters.standins.planning_center.gate import Credentials, Meter, Quota, Reading, Verdict
from adapters.standins.planning_center.organization import Clock, Organization, Unknown
from adapters.standins.planning_center.query import Malformed, Query, Unqueryable, understand
from adapters.standins.planning_center.resources import BY_PATH, BY_TYPE, Resource
from adapters.standins.planning_center.table import Json, Row

VERSION = "2025-03-20"
_ROOT = "/people/v2"
_FAILURES: dict[Fault, tuple[int, str]] = {
    "broken": (500, "Internal Server Error"),
    "unavailable": (503, "Service Unavailable"),
    "late": (504, "Gateway Timeout"),
}


def create_app(
    organization: Organization,
    *,
    faults: Faults | None = None,
    quota: Quota | None = None,
    clock: Clock | None = None,
    churn: Churn | None = None,
    credentials: Credentials | None = None,
    unqueryable: Unqueryable = "ignore",
    subscriptions: Subscriptions | None = None,
) -> Starlette:
    """The API of one organization. `clock` (Unix seconds, the organization's own unless given) moves the quota's window.

    `subscriptions`: who is told by webhook of changes that are asked for.
    """
    standin = Standin(
        organization=organization,
        faults=faults or Faults(),
        meter=Meter(quota or Quota()),
        clock=clock or organization.clock,
        churn=churn,
        credentials=credentials or Credentials(),
        unqueryable=unqueryable,
        subscriptions=subscriptions,
    )
    routes = [
        Route("/_standin/truth", standin.truth, methods=["GET"]),
        Route("/_standin/stats", standin.stats, methods=["GET"]),
        Route("/_standin/change", standin.change, methods=["POST"]),
        Route("/_standin/gate", standin.move, methods=["POST"]),
        Route("/_standin/settle", standin.settle, methods=["POST"]),
        Route(f"{_ROOT}/{{path:path}}", standin.ask, methods=["GET", "POST", "PATCH", "DELETE"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    app.state.standin = standin
    return app


class _Cut(Response):
    """Headers that promise a whole body, half of it, and a closed connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body[: len(self.body) // 2]), "more_body": True})


def _json(text: str, status: int = 200) -> Response:
    return Response(text.encode(), status, media_type="application/json")


def _error(status: int, title: str | None, detail: str, *, code: str = "", source: dict[str, Json] | None = None) -> Response:
    error: dict[str, Json] = {"code": code or str(status), "status": str(status), "detail": detail}
    error |= {"title": title} if title else {}
    error |= {"source": source} if source else {}
    return _json(dump({"errors": [error]}), status)


def _throttled(reading: Reading, *, bare: bool = False) -> Response:
    detail = f"Rate limit exceeded: {reading.count} of {reading.limit} requests per {reading.period:g} seconds"
    response = _error(429, None if bare else "Too Many Requests", detail)
    if not bare:
        response.headers["Retry-After"] = str(reading.retry_after)
    return response


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error(status, str(getattr(error, "detail", "")), f"{request.method} {request.url.path}")


@define(eq=False)
class Standin:
    """One running stand-in: its organization, its weather, and what was asked of it so far."""

    organization: Organization
    faults: Faults
    meter: Meter
    clock: Clock
    churn: Churn | None
    credentials: Credentials
    unqueryable: Unqueryable
    subscriptions: Subscriptions | None = None
    requests: dict[str, Counter[str]] = field(factory=dict[str, Counter[str]])
    rows: Counter[str] = field(factory=Counter[str])
    random: Random = field(factory=lambda: Random("changes asked for"))
    gate: Gate = field(factory=Gate)

    async def ask(self, request: Request) -> Response:
        """Every request to the API: who asks, how often, what goes wrong, and only then the answer."""
        verdict = self.credentials.judge(request.headers.get("authorization"))
        reading = self.meter.count(verdict.user, _offset(request), self.clock())
        fault: Fault | None = None
        if verdict.hint:
            response = _refusal(verdict)
        elif reading.retry_after:
            response = _throttled(reading)
        else:
            url = f"{request.method} {request.url.path}?{request.url.query}"
            fault = self.faults.draw(url)
            if fault == "slow":
                await anyio.sleep(self.faults.delay(url))
            if fault in ("throttled", "throttled_bare"):
                reading = Reading(reading.limit, reading.period, reading.limit + 18, 1)
            response = self._failure(fault, reading) or self._answer(request, lagging=fault == "lagging")
            await self.gate.passed(request.url.path, count=self.rows.total)
        response.headers.update(reading.headers())
        response.headers["X-PCO-API-Version"] = VERSION
        self._note(request, response.status_code, fault)
        return _spoiled(response, fault)

    def _failure(self, fault: Fault | None, reading: Reading) -> Response | None:
        if fault in ("throttled", "throttled_bare"):
            return _throttled(reading, bare=fault == "throttled_bare")
        if fault is None or fault not in _FAILURES:
            return None
        status, title = _FAILURES[fault]
        return _error(status, title, "This is our fault; please try again")

    def _answer(self, request: Request, *, lagging: bool) -> Response:
        path = request.path_params["path"]
        page = Page(
            organization=self.organization,
            base=f"{request.url.scheme}://{request.url.netloc}{_ROOT}",
            path=path,
            lag=Random(path) if lagging else None,
        )
        try:
            with self.organization.lock:
                if request.method != "GET":
                    return self._write(request.method, path.split("/"))
                resource, document = self._read(page, path.split("/"), request.query_params.multi_items())
        except Malformed as error:
            return _error(400, "Bad Request", error.detail, source={"parameter": error.parameter})
        except Unknown:
            return _error(404, "Not Found", "The resource you requested could not be found")
        self.rows[resource.type] += document.rows
        self.rows["included"] += document.included
        return _json(document.body)

    def _write(self, method: str, parts: list[str]) -> Response:
        if method != "DELETE" or len(parts) != 2 or parts[0] != "people":
            return _error(405, "Method Not Allowed", f"{method} is not part of this stand-in")
        self.organization.delete_person(parts[1])
        return Response(status_code=204)

    def _read(self, page: Page, parts: list[str], pairs: list[tuple[str, str]]) -> tuple[Resource, Document]:
        resource = BY_PATH.get(parts[0])
        if resource is None or not resource.top_level or len(parts) > 4:
            raise Unknown("collection", parts[0])
        if self.churn is not None and len(parts) in (1, 3):
            self.churn.list_requested(self.organization)
        if len(parts) == 1:
            return resource, page.listing(resource, self._query(resource, pairs))
        row = self.organization.row(resource.type, parts[1])
        if len(parts) == 2:
            return resource, page.single(resource, self._query(resource, pairs), row)
        return self._follow(page, row, parts[2:], pairs)

    def _follow(self, page: Page, row: Row, parts: list[str], pairs: list[tuple[str, str]]) -> tuple[Resource, Document]:
        """What lies at the end of an edge: a list, or one row of it."""
        source, edge = BY_TYPE[row.type], BY_TYPE[row.type].edges.get(parts[0])
        if edge is None:
            raise Unknown(f"edge of {row.type}", parts[0])
        target, found = BY_TYPE[edge.target], self.organization.follow(row, edge)
        query = self._query(target, pairs)
        if len(parts) == 1 and not source.leads_to_one(parts[0]):
            return target, page.listing(target, query, row, found)
        one = next((member for member in found if len(parts) == 1 or member.id == parts[1]), None)
        if one is None:
            raise Unknown(target.type, parts[-1])
        return target, page.single(target, query, one, row)

    def _query(self, resource: Resource, pairs: list[tuple[str, str]]) -> Query:
        return understand(resource, pairs, unqueryable=self.unqueryable)

    def _note(self, request: Request, status: int, fault: Fault | None) -> None:
        parts = request.path_params["path"].split("/")
        shape = "/".join("{id}" if position % 2 else part for position, part in enumerate(parts))
        outcome = "dropped" if fault == "dropped" and status == 200 else str(status)
        self.requests.setdefault(f"{_ROOT}/{shape}", Counter())[outcome] += 1

    # Control

    async def truth(self, request: Request) -> Response:
        return _json(dump(self.organization.truth()))

    async def stats(self, request: Request) -> Response:
        churn = self.churn
        told: dict[str, Json] = {
            "requests": {path: dict[str, Json](statuses) for path, statuses in sorted(self.requests.items())},
            "rows": dict[str, Json](self.rows),
            "faults": dict[str, Json](self.faults.done),
            "churn": {
                "made": dict[str, Json](Counter(str(made["change"]) for made in churn.made)) if churn else {},
                "left": 0 if churn is None or churn.stopped else churn.changes - len(churn.made),
            },
            "held": list[Json](self.gate.held),
            "tables": {type: len(table) for type, table in self.organization.tables.items()},
        }
        return _json(dump(told))

    async def change(self, request: Request) -> Response:
        """One change or a list of them, made in order; a bad one stops the rest."""
        try:
            sent = json.loads(await request.body())
            wishes = sent if isinstance(sent, list) else [sent]
            done: list[Json] = []
            with self.organization.lock:
                before = self.organization.truth() if self.subscriptions is not None else {}
                try:
                    for wish in wishes:
                        if not isinstance(wish, dict):
                            raise BadChange("a change is an object with the key change")
                        done.append(change(self.organization, wish, self.random))
                finally:
                    if self.subscriptions is not None:
                        self.subscriptions.tell(before, self.organization.truth(), self.organization.id)
        except (BadChange, ValueError) as error:
            return _error(400, "Bad Request", str(error))
        except Unknown as error:
            return _error(404, "Not Found", str(error))
        return _json(dump({"changes": done}))

    async def move(self, request: Request) -> Response:
        """`{"rows": n}`: once so many rows were read, answers wait for the next move; with null they go out."""
        self.gate.move((await request.json())["rows"])
        return Response(status_code=204)

    async def settle(self, request: Request) -> Response:
        """No more churn, no more faults; the quota stays."""
        self.faults.stopped = True
        if self.churn is not None:
            self.churn.stopped = True
        return _json('{"settled":true}')


def _offset(request: Request) -> int:
    text = request.query_params.get("offset", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _refusal(verdict: Verdict) -> Response:
    title = "Unauthorized" if verdict.status == 401 else "Forbidden"
    response = _error(verdict.status, title, verdict.hint, code=verdict.hint)
    if verdict.status == 401:
        response.headers["WWW-Authenticate"] = 'Basic realm="API"'
    return response


def _spoiled(response: Response, fault: Fault | None) -> Response:
    """The answer as it arrives: cut off with the connection, or cut off and still called complete."""
    if response.status_code != 200 or fault not in ("dropped", "truncated"):
        return response
    if fault == "truncated":
        kept = bytes(response.body[: len(response.body) * 2 // 3])
        headers = {name: value for name, value in response.headers.items() if name != "content-length"}
        return Response(kept, 200, headers)
    return _Cut(response.body, 200, dict(response.headers))
