"""What heartbeats tell the next attempt, kept in a side table: the newest of each attempt, many in one statement, at most once a second."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import structlog
from attrs import define

from flowdsl.attempt import RunningAttempt
from flowdsl.errors import KeyMissing, NotGenuine
from flowdsl.postgres.encryption import encrypted_with, heartbeat_of
from flowdsl.postgres.store import Store, lost, reason

log = structlog.get_logger("flowdsl")

PAUSE = 1.0
"""Seconds between two statements. What an attempt that has just failed told is not kept waiting."""
SHARE = 3.0
"""An attempt's details are written at most once in this part of the silence that its policy allows."""
LAST = 2.0
"""Seconds that the last batch gets when the worker stops."""
_BATCH = 500


@define
class _Waiting:
    attempt: RunningAttempt
    epoch: int
    due: float


class Heartbeats:
    """One writer a worker. What it could not write, because the store is away or the process dies, the next attempt does not know."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[tuple[str, str], _Waiting] = {}
        self._done: dict[tuple[str, str], int] = {}
        self._written: dict[tuple[str, str], float] = {}
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._closing = False
        self._swept = 0.0

    async def load(self, executions: Collection[str]) -> dict[str, dict[str, bytes]]:
        """What earlier attempts have told, by execution and place."""
        rows = await self._store.again("select execution, place, body from flowdsl.heartbeats where execution = any($1::uuid[])", list(executions))
        tenants = await self._store.tenants(list(executions)) if any(encrypted_with(row["body"]) for row in rows) else {}
        found: dict[str, dict[str, bytes]] = {}
        for row in rows:
            id = str(row["execution"])
            try:
                body = self._store.encryption.decrypt(heartbeat_of(tenants.get(id, ""), id, row["place"]), row["body"])
            except (KeyMissing, NotGenuine) as error:  # a help for the next attempt, which must do without it at times
                log.warning("heartbeats.unreadable", execution=id, key=error.key)
            else:
                found.setdefault(id, {})[row["place"]] = body
        return found

    def add(self, epoch: int, attempt: RunningAttempt, *, at_once: bool = False) -> None:
        """It has told something new."""
        where = _where(attempt)
        span = attempt.activity.policies.heartbeat
        pace = max(PAUSE, span.total_seconds() / SHARE) if span is not None else PAUSE
        due = 0.0 if at_once else self._written.get(where, -pace) + pace
        self._waiting[where] = _Waiting(attempt, epoch, due)
        self._done.pop(where, None)
        self._begin(hurry=at_once)

    def forget(self, execution: str, epoch: int, places: Sequence[str]) -> None:
        """Those steps have been answered."""
        for place in places:
            self._waiting.pop((execution, place), None)
            self._written.pop((execution, place), None)
            self._done[execution, place] = epoch
        self._begin()

    async def close(self) -> None:
        """Writes what is left, if the store answers."""
        self._closing = True
        self._hurry.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=LAST)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def sweep(self) -> None:
        """Now and then removes what workers that died have left."""
        now = asyncio.get_running_loop().time()
        if now - self._swept > 60:
            self._swept = now
            await self._store.again("select flowdsl.sweep_heartbeats(1000)")

    def _begin(self, *, hurry: bool = False) -> None:
        if hurry:
            self._hurry.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._keep(), name="flowdsl-heartbeats")

    async def _keep(self) -> None:
        while self._waiting or self._done:
            self._hurry.clear()
            now = asyncio.get_running_loop().time()
            batch = [one for one in self._waiting.values() if self._closing or one.due <= now][:_BATCH]
            try:
                await self._write(batch)
                await self._remove()
            except Exception as error:
                log.warning("heartbeats.failed", attempts=len(batch), error=reason(error))
                if self._closing or not lost(error):
                    self._done.clear()
            if not self._closing and (self._waiting or self._done):
                soon = min((one.due for one in self._waiting.values()), default=now)
                try:
                    async with asyncio.timeout(max(PAUSE, soon - now)):
                        await self._hurry.wait()
                except TimeoutError:
                    continue

    async def _write(self, batch: list[_Waiting]) -> None:
        rows = []
        for one in batch:
            where = _where(one.attempt)
            if self._waiting.get(where) is one:
                del self._waiting[where]
            body = one.attempt.taken()
            if body is not None:
                kept = self._store.encryption.encrypt(heartbeat_of(one.attempt.tenant, *where), body)
                rows.append((*where, one.epoch, one.attempt.number, kept))
            self._written[where] = asyncio.get_running_loop().time()
        if rows:
            try:
                await self._store.again("select flowdsl.beat($1, $2, $3, $4, $5)", *(list(column) for column in zip(*rows, strict=True)))
            except Exception:
                if not self._closing:
                    for one in batch:  # tried again with the next ones, unless something newer is waiting
                        self._waiting.setdefault(_where(one.attempt), one)
                raise

    async def _remove(self) -> None:
        done = dict(self._done)
        if done:
            ids, places = [id for id, _ in done], [place for _, place in done]
            await self._store.again("select flowdsl.still($1, $2, $3)", ids, places, list(done.values()))
            for where, epoch in done.items():
                if self._done.get(where) == epoch:
                    del self._done[where]


def _where(attempt: RunningAttempt) -> tuple[str, str]:
    execution, _, place = attempt.idempotency_key.partition("/")
    return execution, place
