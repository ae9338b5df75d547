"""The Postgres server of a run: ours to kill and to start again."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from attrs import define, field

from flowdsl.postgres import embedded
from flowdsl.postgres.store import Connection, connect, lost

PATIENCE = 60.0


@define(eq=False)
class Postgres:
    """A server with a data folder of its own. `rows` asks it by the straight way, past the proxy."""

    folder: Path
    server: embedded.Server
    _connection: Connection = None
    _turn: asyncio.Lock = field(factory=asyncio.Lock)
    _restart: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, folder: Path) -> Postgres:
        return cls(folder, await asyncio.to_thread(embedded.start, folder))

    @property
    def dsn(self) -> str:
        return self.server.dsn

    @property
    def socket(self) -> str:
        return str(self.server.socket / ".s.PGSQL.5432")

    async def rows(self, query: str, *arguments: Any) -> list[Any]:
        """Fetches; waits while the server is away, for so long."""
        async with self._turn:
            until = asyncio.get_running_loop().time() + PATIENCE
            while True:
                try:
                    if self._connection is None or self._connection.is_closed():
                        self._connection = await connect(self.dsn)
                    found: list[Any] = await self._connection.fetch(query, *arguments, timeout=30)
                    return found
                except Exception as error:
                    if asyncio.get_running_loop().time() > until or not (lost(error) or "cannot be reached" in str(error)):
                        raise
                    self._connection = None
                await asyncio.sleep(0.1)

    def _postmaster(self) -> int:
        return int((self.server.data / "postmaster.pid").read_text().split()[0])

    async def end(self, how: signal.Signals) -> None:
        """SIGQUIT: an immediate stop, as by `pg_ctl -m immediate`. SIGKILL: nobody says goodbye, and orphans of it live on for a moment."""
        pid = self._postmaster()
        os.kill(pid, how)
        for _ in range(500):
            if how == signal.SIGKILL or not embedded._is_postgres(pid):
                break
            await asyncio.sleep(0.02)

    async def begin(self) -> None:
        """Starts it again, on the data that it left. Once begun it is not called off: a server that nobody knows would be left behind."""

        async def restarted() -> None:
            old, self.server = self.server, await asyncio.to_thread(embedded.start, self.folder)
            old.release()  # the newer one uses it too, so it goes on

        self._restart = asyncio.create_task(restarted())
        await asyncio.shield(self._restart)

    async def stop(self) -> None:
        if self._restart is not None:
            await asyncio.wait([self._restart])
        if self._connection is not None:
            self._connection.terminate()
        await asyncio.to_thread(self.server.release)
