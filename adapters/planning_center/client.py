"""Requests to Planning Center. Whatever goes wrong on the way is translated here, once, into the declared failures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn
from urllib.parse import urlencode
from weakref import WeakKeyDictionary

import httpx2
from attrs import frozen

from adapters.planning_center import ahead
from adapters.planning_center.budget import Grant, block, draw, learn
from adapters.planning_center.quota import Quota, quota, retry_after
from adapters.planning_center.settings import TOKEN, Settings, configured
from domains.sync.failures import (
    Malformed,
    NotConfigured,
    NotFound,
    RateLimited,
    Refused,
    SourceFailure,
    Unauthorized,
    Unavailable,
)
from flowdsl import Failure, Result, Success

_TIMEOUT = httpx2.Timeout(30, connect=10)
_LIMITS = httpx2.Limits(max_connections=64, max_keepalive_connections=32, keepalive_expiry=3)
_AGAIN = {408, 409, 425}  # refusals that are worth another try, beside every 5xx
_HINTS = {
    "BABOON": f"The token has expired: make a new one and set {TOKEN}",
    "CAPUCHIN": f"The token is unknown or was revoked: check {TOKEN}",
    "PELICAN": "The token lacks the scope `people`: authorize the application again with it",
    "TRASH_PANDA": "The user has no access to the People app: ask an administrator of the organization for it",
}

_EXTENSIONS = {"timeout": _TIMEOUT.as_dict()}

_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = WeakKeyDictionary()
_sent: WeakKeyDictionary[httpx2.AsyncClient, tuple[Settings, httpx2.Headers]] = WeakKeyDictionary()


def _client() -> httpx2.AsyncClient:
    """One per event loop, so that connections are used again."""
    loop = asyncio.get_running_loop()
    client = _clients.get(loop)
    if client is None:
        client = _clients[loop] = httpx2.AsyncClient(timeout=_TIMEOUT, limits=_LIMITS, follow_redirects=False)
    return client


def _request(client: httpx2.AsyncClient, settings: Settings, path: str, parameters: Sequence[tuple[str, str]]) -> httpx2.Request:
    """Put together here: to have the client merge the same headers and parameters anew for each request costs a fifth of what a request does."""
    known = _sent.get(client)
    if known is None or known[0] != settings:
        headers = httpx2.Headers(client.headers)
        headers.update(settings.headers)
        known = _sent[client] = (settings, headers)
    address = f"{settings.root}/{path}?{urlencode(parameters)}" if parameters else f"{settings.root}/{path}"
    return httpx2.Request("GET", address, headers=known[1], extensions=_EXTENSIONS)


async def close() -> None:
    """Closes this loop's connections, and forgets what was read ahead over them."""
    ahead.forget_all()
    client = _clients.pop(asyncio.get_running_loop(), None)
    if client is not None:
        await client.aclose()


@frozen
class Answer:
    """A document, the time before it was asked for, and the quota as the source sees it."""

    document: dict[str, Any]
    at: datetime
    quota: Quota | None


@frozen
class Source:
    """Planning Center as one attempt sees it. `share` of the request quota may be used up."""

    settings: Settings
    share: float

    async def grant(self, wanted: int = 1) -> Result[Grant, RateLimited]:
        return await draw(self.settings.budget, wanted, self.share)

    async def get(self, path: str, parameters: Sequence[tuple[str, str]] = (), grant: Grant | None = None) -> Result[Answer, SourceFailure]:
        """One document. Draws from the budget, unless a grant is given that has room for it."""
        if grant is None:
            drawn = await self.grant()
            if isinstance(drawn, Failure):
                return drawn
            grant = drawn.unwrap()
        what, client = f"GET /{path}", _client()
        try:
            response = await client.send(_request(client, self.settings, path, parameters))
        except httpx2.TimeoutException as error:
            return Failure(Unavailable(f"{what}: no answer in time ({type(error).__name__})"))
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            return Failure(Unavailable(f"{what}: the connection failed ({type(error).__name__}{f': {error}' if str(error) else ''})"))
        seen = quota(response.headers)
        if seen is not None and response.status_code != 429:  # what a refusal counts, Retry-After says better
            await learn(self.settings.budget, grant, seen)
        if response.status_code != 200:
            return Failure(await self._refusal(what, response))
        return _answer(what, response, grant.at, seen)

    async def _refusal(self, what: str, response: httpx2.Response) -> SourceFailure:
        status, wait = response.status_code, retry_after(response.headers, datetime.now(UTC))
        if status == 429:
            await block(self.settings.budget, wait or timedelta(seconds=1))
            return RateLimited(wait)
        if status >= 500 or status in _AGAIN:
            return Unavailable(what, status, wait)
        if status in (401, 403):
            hint = next((one for one in _HINTS if one in response.text), "")
            return Unauthorized(status, hint, _HINTS.get(hint, f"Check {TOKEN}, and what its user may see"))
        return NotFound(what) if status in (404, 410) else Refused(what, status, _detail(response))


def open_source(share: float) -> Result[Source, NotConfigured]:
    """The source that the environment names."""
    return configured().map(lambda known: Source(known, share))


def _answer(what: str, response: httpx2.Response, at: datetime, seen: Quota | None) -> Result[Answer, SourceFailure]:
    try:
        document = _JSON.decode(response.content.decode(json.detect_encoding(response.content), "surrogatepass"))
    except (ValueError, RecursionError):
        return Failure(Malformed(what))
    if not isinstance(document, dict) or "data" not in document:
        return Failure(Malformed(what))
    return Success(Answer(document, at, seen))


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


_JSON = json.JSONDecoder(parse_constant=_no_number)


def _detail(response: httpx2.Response) -> str:
    """What the error document says, or the beginning of whatever came instead."""
    try:
        errors = json.loads(response.content)["errors"]
        found = [_line(error) for error in errors]
    except (ValueError, KeyError, TypeError, AttributeError):
        found = [response.headers.get("Location", "") or response.text[:200]]
    return "; ".join(line for line in found if line)


def _line(error: Mapping[str, Any]) -> str:
    source = error.get("source") or {}
    return " ".join(str(part) for part in (error.get("detail") or error.get("title"), source.get("parameter") or source.get("pointer")) if part)
