"""Requests to FullEnrich. Whatever goes wrong on the way is translated here, once, into the declared failures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import httpx2
from attrs import frozen

from adapters.fullenrich.settings import Provider
from domains.enrichment.failures import AskFailure, NotFound, RateLimited, Refused, Unanswered, Unauthorized, Unavailable, Unexpected
from flowdsl import Failure, Result, Success

_TIMEOUT = httpx2.Timeout(30, connect=10)
_LIMITS = httpx2.Limits(max_keepalive_connections=0)  # one that the other side has just closed would leave a submission in doubt
_PATIENCE = 90
"""Seconds for a whole answer, however slowly it drips."""
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
_AGAIN = {408, 425}  # beside every 5xx

_trusted = cache(httpx2.create_ssl_context)  # to read the certificates takes longer than most requests

Answered = tuple[int, dict[str, Any]]


@frozen
class FullEnrich:
    provider: Provider

    async def get(self, path: str) -> Result[dict[str, Any], AskFailure | Refused | NotFound]:
        """A document. 402 carries one too: a batch for which the credit was not enough."""
        answer = await self._ask("GET", path, None)
        if isinstance(answer, Unanswered):
            return Failure(Unavailable(answer.what))
        if not isinstance(answer, tuple):
            return Failure(answer)
        status, document = answer
        return Success(document) if status in (200, 402) else Failure(self._refusal(f"GET {path}", status, document))

    async def post(self, path: str, body: Mapping[str, Any]) -> Result[dict[str, Any], AskFailure | Refused | Unanswered]:
        """Sent once. `Unanswered`: it may have been taken."""
        answer = await self._ask("POST", path, body)
        if not isinstance(answer, tuple):
            return Failure(answer)
        status, document = answer
        if status == 200:
            return Success(document)
        refusal = self._refusal(f"POST {path}", status, document)
        return Failure(Refused(status, "", "no such address") if isinstance(refusal, NotFound) else refusal)

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> Answered | Unavailable | Unanswered | Unexpected:
        what = f"{method} {path}"
        headers = {"Authorization": f"Bearer {self.provider.key}", "Accept": "application/json"}
        try:
            async with asyncio.timeout(_PATIENCE), self._client() as client:
                response = await client.request(method, self.provider.url + path, json=body, headers=headers)
        except _UNSENT as error:
            return Unavailable(f"{what}: {self.provider.url} cannot be reached ({type(error).__name__})")
        except (httpx2.HTTPError, httpx2.StreamError, TimeoutError) as error:
            return Unanswered(f"{what} ({type(error).__name__})")
        if response.status_code >= 500 or response.status_code in _AGAIN:
            return Unavailable(what, response.status_code)
        try:
            document = json.loads(response.content)
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict):
            return response.status_code, document
        if response.status_code == 200:
            return Unanswered(f"{what}: an answer that cannot be read") if method == "POST" else Unavailable(f"{what}: the answer cannot be read")
        return response.status_code, {"message": response.text[:200]}

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(timeout=_TIMEOUT, limits=_LIMITS, verify=_trusted(), follow_redirects=False)

    def _refusal(self, what: str, status: int, document: Mapping[str, Any]) -> AskFailure | Refused | NotFound:
        code, message = str(document.get("code", ""))[:200], str(document.get("message", ""))[:500]
        if status == 429:
            return RateLimited(self.provider.cooldown)
        if status in (401, 403):
            return Unauthorized(code or str(status))
        if status == 404:
            return NotFound(what.rpartition("/")[2])
        if 300 <= status < 400:
            return Unexpected(what, f"a redirection ({status}). Check FULLENRICH_URL")
        return Refused(status, code, message)
