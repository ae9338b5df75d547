"""The front's way to the service: one call, one connection, and what the answer means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import quote

from attrs import field, frozen

from flowdsl.testing.chaos.orders import REASON, Order

AT_ONCE = 64
"""Calls that may wait for their answers."""
PATIENCE = 15.0
AWAY = (408, 429, 503, 504)
"""Answers that say: come again."""


class Unanswered(Exception):
    """Nobody answered, or only to say that it must be asked again: what became of the call is unknown."""


class Refused(Exception):
    """An answer that should not be."""


@frozen
class Api:
    """The service at that port of this machine. Each method gives what is said, as the store would say it. Raises `Unanswered` and `Refused`."""

    port: int
    _pool: ThreadPoolExecutor = field(factory=lambda: ThreadPoolExecutor(AT_ONCE))

    async def start(self, workflow: str, order: Order, body: bytes) -> tuple[str, bool]:
        """Its id, and whether it is new by this call. Every second order's start is known again by its header, the others' by their key alone."""
        headers = {"Idempotency-Key": f"order-{order.index}"} if order.index % 2 else {}
        said = await self._post(f"workflows/{quote(workflow)}", body, headers)
        return said["id"], said["outcome"] == "new"

    async def signal(self, to: str, name: str, payload: Any, delivery: str) -> str:
        return str((await self._post(f"workflows/{to}/signal", {"name": name, "payload": payload, "delivery": delivery}))["outcome"])

    async def letter(self, key: str, name: str, payload: Any, delivery: str) -> str:
        return str((await self._post("signals", {"name": name, "key": key, "payload": payload, "delivery": delivery}))["outcome"])

    async def cancel(self, id: str) -> str:
        return str((await self._post(f"workflows/{id}/cancel", {"reason": REASON}))["outcome"])

    async def _post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Any:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, said = await asyncio.get_running_loop().run_in_executor(self._pool, self._asked, path, text, {**(headers or {})})
        if status == 409 and said.get("state") in ("succeeded", "failed", "cancelled"):
            return {"outcome": "ended"}
        if status in AWAY:
            raise Unanswered(f"{status} {said}")
        if status >= 400:
            raise Refused(f"POST {path}: {status} {said}")
        return said

    def _asked(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("POST", f"/api/v1/{path}", body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, HTTPException) as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from None
        finally:
            connection.close()


__all__ = ["Api", "Refused", "Unanswered"]
