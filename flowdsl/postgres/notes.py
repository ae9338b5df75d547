"""Progress for people who watch: of each execution the newest note, written in batches. No order, no promise; but the last one is written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from flowdsl.flow import Report
from flowdsl.postgres.encryption import text_of
from flowdsl.postgres.store import Store, lost, reason

log = structlog.get_logger("flowdsl")

PAUSE = 0.2
"""Seconds between two batches: nobody watches closer than that."""
LAST = 2.0
"""Seconds that the last batch gets when the worker stops."""
_BATCH = 500

_WRITE = """
insert into flowdsl.notes (execution, note, done, total)
select * from unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[]) as n(execution, note, done, total) order by n.execution
on conflict (execution) do update set note = excluded.note, done = excluded.done, total = excluded.total, at = clock_timestamp()
"""


class Notes:
    """One writer a worker: so two notes of an execution never overtake each other."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._newest: dict[str, Report] = {}
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    def add(self, execution: str, note: Report) -> None:
        self._newest[execution] = note
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write(), name="flowdsl-notes")

    async def close(self) -> None:
        """Writes what is left, if the store answers."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=LAST)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _write(self) -> None:
        while self._newest:
            ids = list(self._newest)[:_BATCH]
            batch = {id: self._newest.pop(id) for id in ids}
            try:
                await self._store.again(_WRITE, *await self._columns(batch))
            except Exception as error:
                log.warning("notes.failed", notes=len(batch), error=reason(error))
                await self._kept(batch, error)
            if not self._closing.is_set():
                try:
                    await asyncio.wait_for(self._closing.wait(), PAUSE)
                except TimeoutError:
                    continue

    async def _kept(self, batch: dict[str, Report], error: Exception) -> None:
        """While the store is away they wait, unless newer ones come; a note that it refuses is left out."""
        if lost(error):
            self._newest = batch | self._newest
        elif len(batch) > 1:
            for id, note in batch.items():
                try:
                    await self._store.again(_WRITE, *await self._columns({id: note}))
                except Exception as refused:
                    log.warning("note.left_out", execution=id, error=reason(refused))

    async def _columns(self, batch: dict[str, Report]) -> tuple[Sequence[object], ...]:
        notes = list(batch.values())
        texts = [note.note.replace("\0", "\\0").encode(errors="backslashreplace").decode() for note in notes]
        encryption = self._store.encryption
        if encryption.on:
            tenants = await self._store.tenants(list(batch))
            texts = [encryption.encrypt_text(text_of(tenants.get(id, ""), id, "note"), text) for id, text in zip(batch, texts, strict=True)]
        return list(batch), texts, [note.done for note in notes], [note.total for note in notes]
