"""Callbacks, as the provider makes them: signed, five times again, and in bad weather twice, out of order, or by somebody else."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx2
from attrs import define

from adapters.standins.fullenrich.faults import Faults
from adapters.standins.fullenrich.ledger import Batch, Ledger
from adapters.standins.gate import Gate

TRIES = 6
"""The first, and five more."""


@define(eq=False)
class Caller:
    ledger: Ledger
    faults: Faults
    key: str
    again: float
    gate: Gate
    client: httpx2.AsyncClient | None = None

    def _client(self) -> httpx2.AsyncClient:
        if self.client is None:
            self.client = httpx2.AsyncClient(timeout=10, limits=httpx2.Limits(max_keepalive_connections=0))
        return self.client

    async def tell(self, batch: Batch) -> None:
        """A batch is over: its callback, and what comes with it on a bad day."""
        if batch.webhook_url is None:
            return
        document = self.ledger.document(batch)
        if self.faults.happens("forged"):
            nobody = {**document, "data": [{**item, "profile": None} for item in document["data"]]}
            batch.callbacks.append(f"forged {await self.post(batch, nobody, key='not the key')}")
        if self.faults.happens("strange"):
            stranger = {
                **document,
                "id": str(uuid4()),
                "data": [{**item, "custom": {"batch_id": str(uuid4()), "job_id": "1"}} for item in document["data"]],
            }
            await self.post(batch, stranger)
        await self._until_heard(batch, document)
        if self.faults.happens("twice"):
            await self.post(batch, {**document, "again": True})
        if self.faults.happens("shuffled"):
            await self.post(batch, self.ledger.document(batch, first=len(batch.items) // 2, status="IN_PROGRESS"))

    async def _until_heard(self, batch: Batch, document: dict[str, Any]) -> None:
        """Never given up for a batch whose submission was not answered: its owner could not look."""
        while len(batch.callbacks) < TRIES or not batch.answered:
            status = await self.post(batch, document, gate=self.gate)
            batch.callbacks.append(str(status or "nobody there"))
            if 200 <= status < 300:
                return
            await asyncio.sleep(self.again)

    async def post(self, batch: Batch, document: dict[str, Any], *, key: str | None = None, unsigned: bool = False, gate: Gate | None = None) -> int:
        """One try. 0: nobody answered. A gate is passed when half of it is sent."""
        body = json.dumps(document).encode()
        signature = hmac.new((key or self.key).encode(), body, hashlib.sha1).hexdigest()
        headers = {"content-type": "application/json"} | ({} if unsigned else {"X-Signature-SHA1": signature})
        headers["content-length"] = str(len(body))
        try:
            return (await self._client().post(str(batch.webhook_url), content=_halves(body, batch.own, gate), headers=headers)).status_code
        except httpx2.HTTPError:
            return 0


async def _halves(body: bytes, own: str, gate: Gate | None) -> AsyncIterator[bytes]:
    yield body[: len(body) // 2]
    if gate is not None:
        await gate.passed(own)
    yield body[len(body) // 2 :]
