"""The HTTP face: routes, refusals, faults, and the control endpoints that the real API does not have."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Coroutine, Mapping
from time import monotonic
from typing import Any

from attrs import define, field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from adapters.standins.fullenrich.calling import Caller
from adapters.standins.fullenrich.faults import Faults
from adapters.standins.fullenrich.ledger import Batch, Ledger, Wrong
from adapters.standins.gate import Gate

BULK = "/api/v2/contact/reverse/email/bulk"


def create_app(
    ledger: Ledger | None = None,
    *,
    faults: Faults | None = None,
    key: str = "key",
    work: float | None = 0.3,
    answer: float = 0.0,
    per_minute: int = 60,
    again: float = 60.0,
    old_keys: tuple[str, ...] = (),
) -> Starlette:
    """The API of one workspace. `work`: seconds until a batch is done, None: when `/_standin/finish` says so; `answer`: seconds between taking a
    submission and answering it; `again`: seconds between two tries of a callback."""
    books, weather = ledger or Ledger(), faults or Faults()
    gates = {"answer": Gate(), "callback": Gate()}
    caller = Caller(books, weather, key, again, gates["callback"])
    standin = Standin(
        ledger=books, gates=gates, faults=weather, caller=caller, keys=(key, *old_keys), work=work, answer=answer, per_minute=per_minute
    )
    api = [
        Route("/api/v2/account/keys/verify", standin.api(standin.verify), methods=["GET"]),
        Route("/api/v2/account/credits", standin.api(standin.credits), methods=["GET"]),
        Route(BULK, standin.api(standin.submit), methods=["POST"]),
        Route(BULK + "/{id}", standin.api(standin.read), methods=["GET"]),
    ]
    control = [
        Route("/_standin/ledger", standin.told, methods=["GET"]),
        Route("/_standin/stats", standin.stats, methods=["GET"]),
        Route("/_standin/credits", standin.set_credits, methods=["POST"]),
        Route("/_standin/finish", standin.finish, methods=["POST"]),
        Route("/_standin/callback", standin.call, methods=["POST"]),
        Route("/_standin/speak", standin.speak, methods=["POST"]),
        Route("/_standin/gates", standin.move, methods=["POST"]),
        Route("/_standin/settle", standin.settle, methods=["POST"]),
    ]
    app = Starlette(routes=[*api, *control])
    app.state.standin = standin
    return app


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"code": code, "message": message}, status)


class _Dropped(Response):
    """A connection that is closed before anything of the answer was told but its length."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"64")]})
        await send({"type": "http.response.body", "body": b"", "more_body": True})


@define(eq=False)
class Standin:
    """One running stand-in: its books, its weather, and what was asked of it so far."""

    ledger: Ledger
    gates: Mapping[str, Gate]
    """`answer`: a submission is taken and not answered yet. `callback`: half of it is sent."""
    faults: Faults
    caller: Caller
    keys: tuple[str, ...]
    work: float | None
    answer: float
    per_minute: int
    requests: Counter[str] = field(factory=Counter[str])
    _times: deque[float] = field(factory=deque[float])
    _tasks: set[asyncio.Task[None]] = field(factory=set[asyncio.Task[None]])

    def api(self, endpoint: Any) -> Any:
        async def asked(request: Request) -> Response:
            shape = f"{request.method} {request.url.path if 'id' not in request.path_params else BULK + '/{id}'}"
            response: Response = self._refused(request) or await endpoint(request)
            self.requests[f"{shape} {response.status_code if not isinstance(response, _Dropped) else 'dropped'}"] += 1
            return response

        return asked

    def _refused(self, request: Request) -> Response | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if not key:
            return _error(401, "error.authorization.not_set", "authorization header is required")
        if scheme != "Bearer":
            return _error(401, "error.authorization.not_bearer", "authorization is not a bearer token")
        if key not in self.keys:
            return _error(401, "error.api.key", "unknown API key")
        now = monotonic()
        while self._times and self._times[0] <= now - 60:
            self._times.popleft()
        self._times.append(now)
        if len(self._times) > self.per_minute:
            return _error(429, "error.rate.limit", "rate limit exceeded, wait one minute")
        status = self.faults.refusal()
        if status == 429:
            return _error(429, "error.rate.limit", "rate limit exceeded, wait one minute")
        return Response("upstream is unwell", status, media_type="text/plain") if status else None

    async def verify(self, request: Request) -> Response:
        return JSONResponse({"workspace_id": "5f0c8f0e-0000-4000-8000-000000000001"})

    async def credits(self, request: Request) -> Response:
        return JSONResponse({"balance": self.ledger.balance})

    async def submit(self, request: Request) -> Response:
        try:
            batch = self.ledger.submit(json.loads(await request.body()))
        except Wrong as wrong:
            return _error(wrong.status, wrong.code, wrong.message)
        except ValueError:
            return _error(400, "error.enrichment.data.empty", "the body is no JSON")
        early, dropped, late = self.faults.happens("early"), self.faults.happens("dropped"), self.faults.happens("late")
        batch.mute = self.faults.happens("mute") and not (dropped or early)
        if early:
            self.ledger.work(batch)
            await asyncio.wait([self._spawn(self.caller.tell(batch))], timeout=2)
        elif self.work is not None:
            self._spawn(self._done(batch, self.work + self.answer))
        await asyncio.sleep(self.answer)
        await self.gates["answer"].passed(batch.own)
        if dropped or await request.is_disconnected():
            self._speak(batch)
            return _Dropped()
        if late:
            return Response("upstream is slow", 504, media_type="text/plain")
        batch.answered = True
        return JSONResponse({"enrichment_id": batch.id})

    async def read(self, request: Request) -> Response:
        batch = self.ledger.batches.get(request.path_params["id"])
        if batch is None:
            return _error(404, "error.reverse.email.not_found", "no such enrichment")
        if batch.status == "IN_PROGRESS" and request.query_params.get("forceResults") == "false":
            return _error(400, "error.enrichment.in_progress", "try again in 30 seconds")
        return JSONResponse(self.ledger.document(batch), 402 if batch.status == "CREDITS_INSUFFICIENT" else 200)

    async def _done(self, batch: Batch, after: float) -> None:
        await asyncio.sleep(after)
        self.ledger.work(batch)
        if batch.mute:
            batch.callbacks.append("mute")
        else:
            await self.caller.tell(batch)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Control

    async def told(self, request: Request) -> Response:
        return JSONResponse(self.ledger.told())

    async def stats(self, request: Request) -> Response:
        open = [batch.id for batch in self.ledger.batches.values() if batch.status == "IN_PROGRESS"]
        return JSONResponse(
            {
                "requests": self.requests,
                "faults": self.faults.done,
                "held": {name: gate.held for name, gate in self.gates.items()},
                "open": open,
            }
        )

    async def set_credits(self, request: Request) -> Response:
        self.ledger.balance = float((await request.json())["balance"])
        return await self.credits(request)

    async def finish(self, request: Request) -> Response:
        """Batches that are under way are done now; `count`: only so many items of each; `quiet`: no callback; `status`: they end so."""
        asked = await request.json() if await request.body() else {}
        done = [batch for batch in self.ledger.batches.values() if batch.status == "IN_PROGRESS"]
        for batch in done:
            self.ledger.work(batch, asked.get("count"))
            batch.status = asked.get("status", batch.status)
            if not asked.get("quiet") and batch.status != "IN_PROGRESS":
                await self.caller.tell(batch)
        return JSONResponse({"batches": [batch.id for batch in done]})

    async def call(self, request: Request) -> Response:
        """A callback as told: `batch` (ours) or the newest; `first`, `status`, `id` and `empty` change what it says, `key` who signs it."""
        asked = await request.json()
        batch = self.ledger.batches[asked["batch"]] if "batch" in asked else [*self.ledger.batches.values()][-1]
        document = self.ledger.document(batch, first=asked.get("first"), status=asked.get("status"))
        document |= {"id": asked["id"]} if "id" in asked else {}
        for item in document["data"]:
            item["custom"] = {**item["custom"], **asked.get("custom", {})}
        document |= {"data": []} if asked.get("empty") else {}
        return JSONResponse({"status": await self.caller.post(batch, document, key=asked.get("key"), unsigned=bool(asked.get("unsigned")))})

    async def speak(self, request: Request) -> Response:
        """No batch of these owners' ids is mute any more: their owners never read the answer to the submission."""
        owners = set((await request.json())["own"])
        for batch in [batch for batch in self.ledger.batches.values() if batch.own in owners]:
            self._speak(batch)
        return JSONResponse({"speaking": sorted(owners)})

    def _speak(self, batch: Batch) -> None:
        """A callback is all that its owner will ever hear of it."""
        if batch.mute or batch.answered:
            batch.mute = batch.answered = False
            if batch.status != "IN_PROGRESS":
                self._spawn(self.caller.tell(batch))

    async def move(self, request: Request) -> Response:
        """`{"answer": true, "callback": false}`: which gates are closed from now on."""
        for name, closed in (await request.json()).items():
            self.gates[name].move(0 if closed else None)
        return Response(status_code=204)

    async def settle(self, request: Request) -> Response:
        self.faults.stopped = True
        return JSONResponse({"settled": True})
