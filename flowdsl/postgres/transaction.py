"""Transactional activities: what the implementation writes and the entry of its success commit together, or neither does."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg
import structlog
from attrs import evolve

from flowdsl.journal import INTERRUPTED, SUCCESS, Entry
from flowdsl.postgres.encryption import entry_of
from flowdsl.postgres.store import Store, lost, reason
from flowdsl.replay import Resident, Unrecorded

log = structlog.get_logger("flowdsl")


class OwnTransaction:
    """See `flowdsl.replay.Transaction`. On a connection of its own: what users lock there never holds up a committer."""

    def __init__(self, store: Store, pool: Any, worker: str, resident: Resident, *, lease: float) -> None:
        self._store, self._pool, self._worker, self._resident, self._lease = store, pool, worker, resident, lease
        self.connection: Any = None
        self._transaction: Any = None
        self._open = False

    async def begin(self) -> OwnTransaction:
        """Waits for a connection, and for a server that is away: nothing has happened yet, so that is no attempt that failed.

        A client that freezes between append and commit holds up a take-over no longer than its lease.
        """
        pause = 0.05
        while not await self._begun():
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)
        self._open = True
        return self

    async def _begun(self) -> bool:
        """False: that connection, or the server, is gone."""
        connection = None
        try:
            connection = self.connection = await self._pool.acquire()
            self._transaction = connection.transaction()
            await self._transaction.start()
            await connection.execute(f"set local idle_in_transaction_session_timeout = {int(self._lease * 1000)}")
        except BaseException as error:
            if connection is not None:
                with suppress(Exception):  # a reset that fails ends it
                    await self._pool.release(connection)
            if self._pool.is_closing() or not lost(error):
                raise
            log.warning("transaction.waits", execution=self._resident.id, error=reason(error))
            return False
        return True

    async def append(self, entry: Entry) -> bool:
        try:
            async with asyncio.timeout(self._lease):
                ours = await self.connection.fetchval(
                    "select flowdsl.append_own($1,$2,$3,$4,$5,$6,$7,$8,$9,$10)",
                    self._worker, self._resident.id, entry.position, self._resident.epoch, entry.kind, entry.at, entry.step, entry.fingerprint,
                    entry.site, self._kept(entry),
                )  # fmt: skip
                if not ours:
                    return False
                await self._transaction.commit()
        except asyncpg.PostgresError as error:
            if lost(error):
                return await self._unknown(entry)
            if isinstance(error, asyncpg.UniqueViolationError) and (getattr(error, "schema_name", ""), getattr(error, "table_name", "")) == (
                "flowdsl",
                "journal",
            ):
                return False
            raise  # the server says that it did not commit
        except Exception:
            return await self._unknown(entry)
        return True

    def _kept(self, entry: Entry) -> bytes:
        encryption, execution = self._store.encryption, self._resident.activation.execution
        return encryption.encrypt(entry_of(execution.tenant, execution.id, entry.position, entry.kind, entry.step), entry.body)

    async def _unknown(self, entry: Entry) -> bool:
        """The position is taken with another entry: that waits for the open transaction, and tells what became of it.

        Until it is known nothing else of this execution may be recorded: else its next turn could be taken for what is unknown.
        """
        self._abandon()
        interrupted = evolve(entry, kind=INTERRUPTED, body=_interruption(self._resident, entry))
        fate = await self._told(
            "select flowdsl.append($1, array[$2::uuid], array[$3::int], array[$4::int], array[true], array[$5::smallint], array[$6::timestamptz],"
            " array[$7], array[$8], array[$9], array[$10::bytea])",
            self._worker, self._resident.id, entry.position, self._resident.epoch, INTERRUPTED, entry.at, entry.step, entry.fingerprint,
            entry.site, self._kept(interrupted),
        )  # fmt: skip
        if fate is None:
            raise Unrecorded(interrupted)
        if fate[0] != "again":
            return False
        query = "select kind from flowdsl.journal where execution = $1 and position = $2"
        if await self._told(query, self._resident.id, entry.position) != SUCCESS:
            raise Unrecorded(interrupted)
        return True

    async def _told(self, query: str, *arguments: Any) -> Any:
        """The answer of the store, however long it is away; dropped meanwhile, nobody asks any more."""
        while not self._resident.dropped:
            try:
                return (await self._store.again(query, *arguments))[0][0]
            except Exception as error:
                log.warning("transaction.unknown", execution=self._resident.id, error=reason(error))
                await asyncio.sleep(0.5)
        return ["left"]

    async def rollback(self) -> None:
        """Never raises. A connection that does not answer is never pooled again: it may hold a hidden transaction."""
        if not self._open:
            return
        self._open = False
        try:
            async with asyncio.timeout(5):
                if self.connection.is_in_transaction():
                    await self._transaction.rollback()
        except (TimeoutError, Exception):
            self._abandon()
        with suppress(Exception):
            await self._pool.release(self.connection)

    def _abandon(self) -> None:
        with suppress(Exception):  # it may be back in the pool: one that has died goes there by itself
            self.connection.terminate()


def _interruption(resident: Resident, entry: Entry) -> bytes:
    return b'{"number":%d}' % (resident.activation.fold.machine.pending[entry.step].attempts + 1)
