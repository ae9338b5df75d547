"""Requests to the order service. Whatever goes wrong on the way is translated here, once, into the declared failures."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httpx2
from attrs import define, field, frozen

from adapters.meals.batches import Batches
from domains.imports.failures import NotConfigured, Refused, Unavailable
from flowdsl import Failure, Result, Success

URL = "MEALS_URL"
TOKEN = "MEALS_TOKEN"
_TIMEOUT = httpx2.Timeout(30, connect=10)
_AGAIN = {408, 425, 429}

CallFailure: TypeAlias = Refused | Unavailable | NotConfigured
T = TypeVar("T")


@frozen
class Answer:
    """What the service says of one item."""

    status: int
    detail: str


Told: TypeAlias = Result[Answer, CallFailure]


@frozen
class Settings:
    url: str
    token: str = field(repr=False)


def configured() -> Result[Settings, NotConfigured]:
    url, token = os.environ.get(URL, "").strip().rstrip("/"), os.environ.get(TOKEN, "").strip()
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        return Failure(NotConfigured(URL, f"is {url!r}, which is no address" if url else "is not set", "Set it to the order service's address"))
    if not token or not (token.isascii() and token.isprintable()):
        return Failure(NotConfigured(TOKEN, "is no credential" if token else "is not set", "Set it to the token that the order service gave you"))
    return Success(Settings(url, token))


@define(eq=False)
class Connection:
    """What one event loop shares: the connections, and what goes out together."""

    http: httpx2.AsyncClient = field(factory=lambda: httpx2.AsyncClient(timeout=_TIMEOUT, follow_redirects=False))
    batches: dict[str, Batches[Mapping[str, str], Told]] = field(factory=dict[str, Batches[Mapping[str, str], Told]])

    async def ask(self, path: str, item: Mapping[str, str]) -> Told:
        if path not in self.batches:
            self.batches[path] = Batches(lambda items: self.send(path, items))
        return await self.batches[path].ask(item)

    async def send(self, path: str, items: Sequence[Mapping[str, str]]) -> Sequence[Told]:
        """One answer an item; what befalls the request befalls each of them."""
        known = configured()
        if isinstance(known, Failure):
            return [known] * len(items)
        settings, what = known.unwrap(), f"POST {path}"
        try:
            response = await self.http.post(settings.url + path, json={"items": items}, headers={"Authorization": f"Bearer {settings.token}"})
        except httpx2.TimeoutException as error:
            return [Failure(Unavailable(f"{what}: no answer in time ({type(error).__name__})"))] * len(items)
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            return [Failure(Unavailable(f"{what}: the connection failed ({type(error).__name__})"))] * len(items)
        if response.status_code != 200:
            return [Failure(_refusal(what, response))] * len(items)
        return _answers(what, response.content, len(items))


_connections: WeakKeyDictionary[asyncio.AbstractEventLoop, Connection] = WeakKeyDictionary()


def _connection() -> Connection:
    """One per event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _connections:
        _connections[loop] = Connection()
    return _connections[loop]


async def ask(path: str, item: Mapping[str, str], read: Callable[[Answer], Result[None, T]]) -> Result[None, T | CallFailure]:
    """Asks for one item, beside others that are asked for at the same time. `read` says what an answer for good means."""
    told = await _connection().ask(path, item)
    if isinstance(told, Failure):
        return told
    answer = told.unwrap()
    if _worth_another_try(answer.status):
        return Failure(Unavailable(f"POST {path}", answer.status))
    return read(answer)


async def close() -> None:
    """Closes this loop's connections."""
    connection = _connections.pop(asyncio.get_running_loop(), None)
    if connection is not None:
        await connection.http.aclose()


def _refusal(what: str, response: httpx2.Response) -> CallFailure:
    status = response.status_code
    if status in (401, 403):
        return NotConfigured(TOKEN, f"was refused ({status})", "Check it with whoever runs the order service")
    if _worth_another_try(status):
        after = response.headers.get("Retry-After", "")
        return Unavailable(what, status, timedelta(seconds=int(after)) if after.isdecimal() else None)
    return Refused(what, status, response.text[:200])


def _worth_another_try(status: int) -> bool:
    return status >= 500 or status in _AGAIN


def _answers(what: str, content: bytes, count: int) -> Sequence[Told]:
    try:
        results: list[Any] = json.loads(content)["results"]
        answers: list[Told] = [Success(Answer(int(one["status"]), str(one.get("detail", "")))) for one in results]
    except (ValueError, KeyError, TypeError, AttributeError):
        answers = []
    if len(answers) != count:
        return [Failure(Unavailable(f"{what}: the answer cannot be read"))] * count
    return answers
