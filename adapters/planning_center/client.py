"""One request to Planning Center's People API: its errors become declared failures here, once; its quota is drawn from a shared budget."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import httpx2
from attrs import frozen

from adapters import sync_store
from domains.sync.values import ApiClient, RateLimited, Refused, SourceFailure, Unauthorized, Unavailable, Unconfigured
from flowdsl import Failure, Result, Success, this_attempt

DEFAULT_URL = "https://api.planningcenteronline.com"
ROOT = "/people/v2"
VERSION = "2025-03-20"
SHARE = 0.9
"""The part of a quota that syncs may use: the rest is free for people and webhooks."""

_HINTS = {
    "BABOON": "the token has expired: make a new one",
    "CAPUCHIN": "the token was revoked or is wrong: make a new one",
    "PELICAN": "the token lacks the scope `people`: grant it",
    "TRASH_PANDA": "its user may not use People: give them access",
}


@frozen
class Answer:
    """A document, and what the quota leaves."""

    document: Any
    pause: timedelta


def configured() -> Result[ApiClient, Unconfigured]:
    """The reference to the credential that the environment names."""
    token = os.environ.get("PLANNING_CENTER_TOKEN", "")
    url = os.environ.get("PLANNING_CENTER_URL") or DEFAULT_URL
    if not token:
        return Failure(Unconfigured("set PLANNING_CENTER_TOKEN to app_id:secret, or to an OAuth access token"))
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        return Failure(Unconfigured(f"PLANNING_CENTER_URL={url!r} is no address: write https://host[:port]"))
    return Success(ApiClient(sha256(token.encode()).hexdigest()[:16], url.rstrip("/")))


def _authorization() -> str:
    token = os.environ.get("PLANNING_CENTER_TOKEN", "")
    return f"Basic {base64.b64encode(token.encode()).decode()}" if ":" in token else f"Bearer {token}"


_clients: dict[int, httpx2.AsyncClient] = {}


def _client() -> httpx2.AsyncClient:
    """One client an event loop: connections are kept."""
    loop = asyncio.get_running_loop()
    if id(loop) not in _clients:
        _clients[id(loop)] = httpx2.AsyncClient(
            timeout=httpx2.Timeout(30, connect=10),
            limits=httpx2.Limits(max_connections=16),
            headers={"User-Agent": "flowdsl-sync (https://example.org/contact)", "X-PCO-API-Version": VERSION},
        )
    return _clients[id(loop)]


async def get(client: ApiClient, path: str, query: Mapping[str, str | int]) -> Result[Answer, SourceFailure]:
    """The document at a path below /people/v2, as soon as the shared budget allows. A 404 is a document of None."""
    await _draw(client)
    try:
        response = await _client().get(
            f"{client.base_url}{ROOT}{path}", params=dict(query), headers={"Authorization": _authorization()}, follow_redirects=False
        )
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        return Failure(Unavailable(0, f"{type(error).__name__}: {error}"))
    except httpx2.InvalidURL as error:
        return Failure(Refused(0, f"{client.base_url}: {error}"))
    pause = await _account(client, response)
    return _read(response, pause)


def _read(response: httpx2.Response, pause: timedelta) -> Result[Answer, SourceFailure]:
    status = response.status_code
    if status == 200:
        try:
            document = json.loads(response.content)
        except (ValueError, RecursionError) as error:
            return Failure(Unavailable(200, f"not the JSON that it promises: {error}"))
        if not isinstance(document, dict) or "data" not in document:
            return Failure(Refused(200, "an answer without `data`: is PLANNING_CENTER_URL Planning Center's API?"))
        return Success(Answer(document, pause))
    detail, code = _error(response)
    match status:
        case 404:
            return Success(Answer(None, pause))
        case 429:
            return Failure(RateLimited(detail, _seconds(response.headers.get("Retry-After")) or _period(response)))
        case 401 | 403:
            return Failure(Unauthorized(status, code, _HINTS.get(code, "check PLANNING_CENTER_TOKEN")))
        case _ if status >= 500 or status == 408:
            return Failure(Unavailable(status, detail, _seconds(response.headers.get("Retry-After"))))
        case _:
            return Failure(Refused(status, detail))


def _error(response: httpx2.Response) -> tuple[str, str]:
    """Detail and code of an error body, whatever it is."""
    try:
        first = json.loads(response.content)["errors"][0]
        return str(first.get("detail") or first.get("title") or "")[:500], str(first.get("code") or first.get("status") or "")[:100]
    except (ValueError, LookupError, TypeError, AttributeError):
        return response.text[:200], ""


# The quota


async def _draw(client: ApiClient) -> None:
    """Waits for a place in the budget that all processes share."""
    while True:
        async with this_attempt().connection() as connection:
            wait = await sync_store.draw(connection, client.credential, SHARE)
        if wait <= 0:
            return
        await asyncio.sleep(min(wait, 5.0))


async def _account(client: ApiClient, response: httpx2.Response) -> timedelta:
    """Corrects the budget by what the source says of it. Gives the pause that a walk should make: none while there is room."""
    limit = _number(response.headers.get("X-PCO-API-Request-Rate-Limit"))
    count = _number(response.headers.get("X-PCO-API-Request-Rate-Count"))
    if limit is None or count is None or limit <= 0:
        return timedelta(seconds=_number(os.environ.get("PLANNING_CENTER_PAUSE")) or 1)
    period = _period(response)
    used = limit if response.status_code == 429 else count
    async with this_attempt().connection() as connection:
        await sync_store.correct(connection, client.credential, used, limit, period.total_seconds())
    room = 1 - count / limit
    return timedelta(0) if room > 0.3 else period * ((0.3 - room) * 0.25)


def _period(response: httpx2.Response) -> timedelta:
    """`20 seconds` or `20`."""
    return timedelta(seconds=_number(response.headers.get("X-PCO-API-Request-Rate-Period")) or 20)


def _seconds(text: str | None) -> timedelta | None:
    number = _number(text)
    return None if number is None else timedelta(seconds=min(number, 3600))


def _number(text: str | None) -> int | None:
    found = re.match(r"\s*(\d{1,9})", text or "")
    return int(found[1]) if found else None
