"""Who waits in this process for the end of an execution."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from flowdsl.activation import Stored
from flowdsl.binding import Deployment
from flowdsl.definition import Workflow
from flowdsl.errors import StoreError
from flowdsl.flow import Exit
from flowdsl.journal import decode_exit
from flowdsl.postgres.store import Store

ENDED: tuple[Stored, ...] = ("succeeded", "failed", "cancelled")


class Ends:
    """Tells of ends here at once, and of those elsewhere by looking."""

    def __init__(self, deployment: Deployment, store: Store) -> None:
        self._deployment, self._store = deployment, store
        self._awaited: dict[str, asyncio.Future[tuple[Workflow[Any, Any, Any], bytes] | None]] = {}

    def tell(self, id: str, told: tuple[Workflow[Any, Any, Any], bytes] | None = None) -> None:
        """Wakes who waits for it: with its exit, or to look for themselves."""
        ended = self._awaited.pop(id, None)
        if ended is not None and not ended.done():
            ended.set_result(told)

    def look(self, here: Collection[str]) -> None:
        """Lets those look who wait for an execution that is not in memory here."""
        for id in [id for id in self._awaited if id not in here]:
            self.tell(id)

    async def wait(self, id: str, here: Collection[str], pause: float) -> Exit[Any, Any]:
        """How it ended. Raises `StoreError` when it is blocked."""
        while True:
            ended = self._awaited.setdefault(id, asyncio.get_running_loop().create_future())
            if id not in here:
                summary = await self._store.summary(id)
                if summary.status in ENDED:
                    self._awaited.pop(id, None)
                    return decode_exit(self._deployment.workflow(summary.workflow, summary.version), summary.exit or b"")
                if summary.status == "blocked":
                    self._awaited.pop(id, None)
                    raise StoreError(f"execution {id} is blocked: {summary.cause}", "See `flowdsl status` and `flowdsl journal`")
            await asyncio.wait([ended], timeout=pause)
            if ended.done() and (told := ended.result()) is not None:
                return decode_exit(*told)
