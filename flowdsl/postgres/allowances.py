"""What a tenant may ask of the service in a minute, shared by all of its processes: counted in the store, by the store's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from flowdsl.postgres.store import Store

REPLY: Final = 5.0
"""Seconds without an answer after which nobody is let through."""
REMEMBERED: Final = 2.0
"""The longest that a refusal is told again without asking, in seconds: the limit may have been raised."""


@frozen
class Allowance:
    """So many in a minute, evenly; after a rest up to `at_once` of them."""

    limit: int
    at_once: int


class Allowances:
    """Asks for all that wait in one statement; while it is under way the next ones gather."""

    def __init__(self, store: Store, allowed: Mapping[str, Allowance]) -> None:
        self._store, self._allowed = store, allowed
        self._waiting: dict[tuple[str, str], list[asyncio.Future[float]]] = {}
        self._closed: dict[tuple[str, str], float] = {}
        self._task: asyncio.Task[None] | None = None

    async def take(self, what: str, tenant: str) -> float:
        """0: it may. Else the seconds after which it is worth asking again. Raises what the store raises."""
        if what not in self._allowed:
            return 0.0
        place, now = (what, tenant), asyncio.get_running_loop().time()
        if (until := self._closed.get(place, 0.0)) > now:
            return until - now
        told: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(place, []).append(told)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._ask(), name="flowdsl-allowances")
        return await told

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting, {}
            try:
                row = await self._asked({place: len(told) for place, told in asked.items()})
            except BaseException as error:
                for told in (one for several in asked.values() for one in several if not one.done()):
                    told.set_exception(error if isinstance(error, Exception) else ConnectionError("the service stops"))
                if not isinstance(error, Exception):
                    raise
                continue
            self._answer(asked, row)

    async def _asked(self, wanted: Mapping[tuple[str, str], int]) -> Any:
        limits = [self._allowed[what] for what, _ in wanted]
        return await self._store.pool.fetchrow(
            "select * from flowdsl.allow($1::text[], $2::text[], $3::integer[], $4::integer[], $5::integer[])",
            [what for what, _ in wanted],
            [tenant for _, tenant in wanted],
            list(wanted.values()),
            [one.limit for one in limits],
            [one.at_once for one in limits],
            timeout=REPLY,
        )

    def _answer(self, asked: Mapping[tuple[str, str], list[asyncio.Future[float]]], row: Any) -> None:
        now = asyncio.get_running_loop().time()
        self._closed = {place: until for place, until in self._closed.items() if until > now}
        for (place, told), granted, pause in zip(asked.items(), row["granted"], row["pauses"], strict=True):
            if pause is not None:
                self._closed[place] = now + min(pause, REMEMBERED)
            for number, one in enumerate(told):
                if not one.done():
                    one.set_result(0.0 if number < granted else max(pause or 0.0, 0.001))


__all__ = ["Allowance", "Allowances"]
