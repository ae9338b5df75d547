"""Hints between processes, by NOTIFY: sent after the commit, on another connection, many as one. All that they save is the wait for the next poll.

Who sends looks nobody up: the store finds out whom a hint is for. Who listens does so on a connection of its own; while that is away nothing is
heard, so each new one begins with a look at everything.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from flowdsl import chance
from flowdsl.postgres.connection import connect, reason

log = structlog.get_logger("flowdsl")

CHANNEL = "flowdsl"
PAUSE = 0.01
"""Seconds in which hints gather, after one was sent: the first leaves at once."""
LAST = 1.0
"""Seconds that the last hints get when a store is closed."""
_CHECK = 5.0
"""Seconds after which a silent connection is asked whether it lives, and that it gets to answer."""
_MOST = 4.0

_HINT = "select flowdsl.hint($1::uuid, $2::text[], $3::text[], $4::text[], $5::uuid[])"


def switched_on() -> bool:
    """Unless FLOWDSL_HINTS says off."""
    return os.environ.get("FLOWDSL_HINTS", "on").lower() not in ("off", "false", "0", "no")


class _Pool(Protocol):
    async def fetch(self, query: str, *args: Any) -> Any: ...


class Hints:
    """What a process tells the others. Never raises and never waits: a hint that is lost is lost."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self.on = switched_on()
        self.worker: str | None = None
        """The worker of this process: it needs no hint about its own."""
        self.alone = False
        """Whether nobody else is there to be told."""
        self.here: Callable[[str], None] = _nobody
        """Told first: whom a mail is for."""
        self._told: dict[tuple[str, str, str], None] = {}
        self._parents: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None
        self.sent = 0

    def tell(self, tenant: str, name: str, to: str) -> None:
        """Something was sent to an execution, or to a correlation key; or an execution is due."""
        self.here(to)
        if self.on and not self.alone:
            self._told[tenant, name, to] = None
            self._begin()

    def tell_children(self, parent: str) -> None:
        """Something was sent to open children of it."""
        if self.on and not self.alone:
            self._parents[parent] = None
            self._begin()

    async def tell_all(self, word: str) -> None:
        """`look`: somebody came; `due`: somebody went and left work."""
        if self.on:
            try:
                await self._pool.fetch("select pg_notify($1, $2)", CHANNEL, word)
            except Exception as error:
                log.info("hints.lost", hints=1, error=reason(error))

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._flush(), name="flowdsl-hints")

    async def _flush(self) -> None:
        while self._told or self._parents:
            told, self._told = list(self._told), {}
            parents, self._parents = list(self._parents), {}
            try:
                await self._pool.fetch(_HINT, self.worker, [t for t, _, _ in told], [n for _, n, _ in told], [to for _, _, to in told], parents)
                self.sent += 1
            except Exception as error:
                log.info("hints.lost", hints=len(told) + len(parents), error=reason(error))
            await asyncio.sleep(PAUSE)

    async def close(self) -> None:
        """Sends what has gathered, if the store answers."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=LAST)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class Listener:
    """Hears the hints of others."""

    def __init__(self, dsn: str, hear: Callable[[str], None], look: Callable[[], None]) -> None:
        """`look`: called with each new connection, since nobody knows what was told before it."""
        self._dsn, self._hear, self._look = dsn, hear, look
        self.connection: Any = None
        self.connections = 0
        """How often it began to listen."""

    async def keep(self) -> None:
        """Listens until cancelled."""
        pause = 0.1
        while True:
            try:
                gone = asyncio.Event()
                self.connection = await connect(self._dsn, application_name="flowdsl-listen")
                self.connection.add_termination_listener(_setting(gone))
                await self.connection.add_listener(CHANNEL, self._said)
                self.connections += 1
                self._look()
                pause = 0.1
                await self._until(gone)
            except Exception as error:
                log.warning("hints.unheard", error=reason(error))
            finally:
                if self.connection is not None:
                    self.connection.terminate()
            await asyncio.sleep(pause * (0.5 + chance.random()))
            pause = min(2 * pause, _MOST)

    def _said(self, connection: object, pid: int, channel: str, payload: str) -> None:
        self._hear(payload)

    async def _until(self, gone: asyncio.Event) -> None:
        while not gone.is_set():
            try:
                await asyncio.wait_for(gone.wait(), _CHECK)
            except TimeoutError:
                await self.connection.fetchval("select 1", timeout=_CHECK)


def _setting(event: asyncio.Event) -> Callable[[object], None]:
    return lambda _: event.set()


def _nobody(_: str) -> None: ...


def direct(dsn: str, *, pooled: bool) -> str | None:
    """The URL to listen at: behind a pooler only FLOWDSL_DIRECT_URL will do."""
    return os.environ.get("FLOWDSL_DIRECT_URL") or (None if pooled else dsn)


__all__ = ["CHANNEL", "Hints", "Listener", "direct", "switched_on"]
