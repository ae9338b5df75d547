"""A worker's heartbeat, on a connection and a thread of its own: blocked user code must not cost the lease. Also the store's clock."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from attrs import frozen

from flowdsl.errors import FlowError
from flowdsl.postgres.store import connect

log = structlog.get_logger("flowdsl")


@frozen
class Reading:
    """The store's time, and our monotonic clock just before we asked and just after we heard."""

    store: datetime
    sent: float
    heard: float


class Heart:
    """Beats until stopped. `fit` turns False before the lease can have run out, and for good once another declared us gone."""

    def __init__(self, dsn: str, worker: str, lease: float) -> None:
        self._dsn, self._worker, self._lease = dsn, worker, lease
        self._reading = Reading(datetime.now(UTC), time.monotonic() - 3600, time.monotonic() - 3600)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="flowdsl-heart", daemon=True)
        self.gone = False

    def start(self, reading: Reading) -> None:
        self._reading = reading
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    @property
    def fit(self) -> bool:
        return not self.gone and time.monotonic() - self._reading.sent < self._lease

    def upper(self) -> datetime:
        """The store's time, at the latest: it stamped after we sent."""
        reading = self._reading
        return reading.store + timedelta(seconds=time.monotonic() - reading.sent)

    def lower(self) -> datetime:
        """The store's time, at the earliest: it stamped before we heard."""
        reading = self._reading
        return reading.store + timedelta(seconds=time.monotonic() - reading.heard)

    def _main(self) -> None:
        asyncio.run(self._beat())

    async def _beat(self) -> None:
        connection: Any = None
        while not self._stop.is_set() and not self.gone:
            try:
                if connection is None:
                    connection = await connect(self._dsn)
                sent = time.monotonic()
                async with asyncio.timeout(self._lease / 3):
                    store = await connection.fetchval(
                        "update flowdsl.workers set beat = clock_timestamp() where id = $1 and not gone returning clock_timestamp()", self._worker
                    )
                if store is None:
                    self.gone = True
                    log.error("worker.gone", worker=self._worker, hint="its lease ran out and another worker took over")
                else:
                    self._reading = Reading(store, sent, time.monotonic())
            except (OSError, FlowError, TimeoutError, Exception) as error:
                log.warning("heart.missed", worker=self._worker, error=str(error) or type(error).__name__)
                if connection is not None:
                    connection.terminate()
                connection = None
            for _ in range(10):
                if self._stop.is_set():
                    break
                await asyncio.sleep(min(self._lease / 5, 1.0) / 10)
        if connection is not None:
            connection.terminate()
