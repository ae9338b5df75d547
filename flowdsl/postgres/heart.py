"""A worker's heartbeat, on a connection and a thread of its own: blocked user code must not cost the lease. Also the store's clock."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from attrs import frozen

from flowdsl import threads
from flowdsl.errors import FlowError
from flowdsl.postgres.store import connect, reason
from flowdsl.postgres.watch import LoopWatch

log = structlog.get_logger("flowdsl")

STUCK = 5.0
"""Seconds for which a loop may be blocked at the least, however short the lease: a machine that is merely busy is not taken for stuck."""


@frozen
class Reading:
    """The store's time, and our monotonic clock just before we asked and just after we heard."""

    store: datetime
    sent: float
    heard: float


COARSE = 0.001
"""Seconds by which two readings of a loop's clock may be apart although they are one moment: uvloop counts whole milliseconds."""

_NEVER = Reading(datetime(1970, 1, 1, tzinfo=UTC), -1e9, -1e9)


class Heart:
    """Beats until stopped. `fit` turns False before the lease can have run out, and for good once another declared us gone."""

    def __init__(self, dsn: str, worker: str, lease: float) -> None:
        self._dsn, self._worker, self._lease = dsn, worker, lease
        self._reading = _NEVER
        self._stopped = False
        self._watch: LoopWatch | None = None
        self._clock = _now
        self._upper = (_NEVER, 0.0, _NEVER.store)
        self.gone = self.lost = False
        """Whether it was declared gone; whether the store has forgotten its last heartbeat."""

    def start(self, reading: Reading) -> None:
        """To be called in the worker's own loop: it is watched from now on."""
        self._reading = reading
        loop = asyncio.get_running_loop()
        self._clock = loop.time  # to ask for the running loop is a system call on Python 3.11
        self._watch = LoopWatch(loop)
        threads.beside(self._beat, "flowdsl-heart")

    def stop(self) -> None:
        self._stopped = True

    @property
    def fit(self) -> bool:
        return not self.gone and self._clock() - self._reading.sent + COARSE < self._lease

    def upper(self) -> datetime:
        """The store's time, at the latest: it stamped after we sent."""
        reading, now = self._reading, self._clock()
        known, then, upper = self._upper
        if now != then or known is not reading:  # a coarse clock says the same many times over
            upper = reading.store + timedelta(seconds=now - reading.sent + COARSE)
            self._upper = (reading, now, upper)
        return upper

    def lower(self) -> datetime:
        """The store's time, at the earliest: it stamped before we heard."""
        reading = self._reading
        return reading.store + timedelta(seconds=self._clock() - reading.heard - COARSE)

    async def forgotten(self, connection: Any) -> bool:
        """Whether the store does not know of our last heartbeat: then it is an older state of it, whatever its log says."""
        acknowledged = self._reading.store  # before asking: the next beat may be acknowledged meanwhile
        beat = await connection.fetchval("select beat from flowdsl.workers where id = $1", self._worker)
        return beat is None or beat < acknowledged

    @property
    def _stuck(self) -> bool:
        """Whether its loop has been blocked past the lease: then nothing here will ever end, and others are to have it."""
        return self._watch is not None and self._watch.blocked > max(self._lease, STUCK)

    async def _look(self) -> None:
        while self._watch is not None:
            self._watch.look()
            await asyncio.sleep(0.25)

    async def _beat(self) -> None:
        connection: Any = None
        looking = asyncio.create_task(self._look(), name="flowdsl-watch")
        while not self._stopped and not self.gone:
            if self._stuck:
                log.error("worker.stuck", worker=self._worker, hint="its loop is blocked past the lease: others take over what it has")
                while self._stuck and not self._stopped:  # noqa: ASYNC110 (another thread sets it)
                    await asyncio.sleep(0.1)
                continue
            try:
                if connection is None:
                    async with asyncio.timeout(max(self._lease, STUCK)):  # what was open before says nothing of what opens now
                        connection = await connect(self._dsn)
                        forgotten = await self.forgotten(connection)
                    if forgotten:
                        self.gone = self.lost = True
                        break
                sent = _now()
                async with asyncio.timeout(self._lease / 3):
                    store = await connection.fetchval(
                        "update flowdsl.workers set beat = clock_timestamp() where id = $1 and not gone returning beat", self._worker
                    )
                if store is None:
                    self.gone = True
                    log.error("worker.gone", worker=self._worker, hint="its lease ran out and another worker took over")
                else:
                    self._reading = Reading(store, sent, _now())
            except (OSError, FlowError, TimeoutError, Exception) as error:
                log.warning("heart.missed", worker=self._worker, error=reason(error))
                if connection is not None:
                    connection.terminate()
                connection = None
            for _ in range(10):
                if self._stopped:
                    break
                await asyncio.sleep(min(self._lease / 5, 1.0) / 10)
        looking.cancel()
        if connection is not None:
            connection.terminate()


def _now() -> float:
    """Every loop's clock is the same one."""
    return asyncio.get_running_loop().time()
