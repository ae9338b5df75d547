"""The order service over HTTP: many items a request, an answer for each.

POST /v1/orders/check, /v1/shorts, /v1/confirmations: {"items": [{"order_id", "sku", "reference"}]} → {"results": [{"status", "detail"?}]}
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from hmac import compare_digest
from itertools import islice
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from adapters.standins.gate import Gate
from adapters.standins.meals.faults import Faults
from adapters.standins.meals.records import Records

MOST = 500
Deed = Callable[[Mapping[str, Any]], dict[str, Any]]


def create_app(records: Records, faults: Faults | None = None, token: str = "token") -> Starlette:
    """The service over these records, which stay the caller's to look at."""
    weather = faults or Faults()
    gate = Gate()

    async def check(request: Request) -> Response:
        answer = await checked(request)
        await gate.passed(count=lambda: len(records.asked))
        return answer

    async def move(request: Request) -> Response:
        """`{"asked": n}`: once so many rows have been looked at, answers about rows wait for the next move; with null they go out."""
        gate.move(json.loads(await request.body())["asked"])
        return Response(status_code=204)

    def answers(deed: Deed) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if not compare_digest(request.headers.get("Authorization", ""), f"Bearer {token}"):
                return JSONResponse({"error": "unknown token"}, 401)
            items = _items(await request.body())
            if items is None:
                return JSONResponse({"error": f"a body has 1 to {MOST} items, each with order_id and sku"}, 400)
            return _answered(items, deed, weather)

        return endpoint

    async def told(_: Request) -> Response:
        lines = records.lines()
        return StreamingResponse(iter(lambda: b"".join(islice(lines, 5000)), b""), media_type="text/plain")

    async def counted(_: Request) -> Response:
        again = records.shorts.again + records.confirmations.again
        return JSONResponse({"asked": len(records.asked), "shorts": len(records.shorts.references), "again": again, "faults": dict(weather.done)})

    async def mend(_: Request) -> Response:
        records.mended, records.asked = True, {}
        return Response(status_code=204)

    checked = answers(records.check)
    return Starlette(
        routes=[
            Route("/v1/orders/check", check, methods=["POST"]),
            Route("/v1/shorts", answers(records.make_good), methods=["POST"]),
            Route("/v1/confirmations", answers(records.confirm), methods=["POST"]),
            Route("/_standin/records", told),
            Route("/_standin/counts", counted),
            Route("/_standin/mend", mend, methods=["POST"]),
            Route("/_standin/gate", move, methods=["POST"]),
        ]
    )


def _items(body: bytes) -> list[Mapping[str, Any]] | None:
    try:
        items = json.loads(body)["items"]
        fit = 0 < len(items) <= MOST and all(one["order_id"] and one["sku"] for one in items)
    except (ValueError, KeyError, TypeError):
        return None
    return items if fit else None


def _answered(items: list[Mapping[str, Any]], deed: Deed, weather: Faults) -> Response:
    match weather.draw():
        case "throttled":
            return JSONResponse({"error": "too many requests"}, 429, {"Retry-After": "1"})
        case "unavailable":
            return JSONResponse({"error": "try again"}, 503)
        case "lost":
            for item in items:
                deed(item)
            return Cut()
        case "broken":
            half = len(items) // 2
            return JSONResponse({"results": [*(deed(item) for item in items[:half]), *({"status": 500} for _ in items[half:])]})
        case None:
            return JSONResponse({"results": [deed(item) for item in items]})


class Cut(Response):
    """An answer that breaks off: whoever asked does not know what became of it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b'{"results": [', "more_body": True})
        raise ConnectionError("cut on purpose")
