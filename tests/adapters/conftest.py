"""A database with the sync's tables, and attempts for implementations that are called without an interpreter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from attrs import define

from adapters.deployment import deployment
from flowdsl import Success
from flowdsl.binding import current_attempt
from flowdsl.postgres.schema import migrate


@pytest.fixture
async def canonical(database: str) -> str:
    """The DSN of a database with the sync's tables."""
    await migrate(database, deployment.migrations)
    return database


@pytest.fixture
async def connection(canonical: str) -> AsyncIterator[Any]:
    opened = await asyncpg.connect(canonical)
    yield opened
    await opened.close()


@define
class HandMade:
    """An attempt over a pool: its transaction commits with a success, as an interpreter's would."""

    pool: Any
    idempotency_key: str = "by-hand/0"
    number: int = 1
    tenant: str = "default"
    deadline: datetime = datetime(2099, 1, 1, tzinfo=UTC)
    cancelled: bool = False
    last_heartbeat: object = None
    open: Any = None

    def heartbeat(self, details: object = None) -> None: ...

    def connection(self) -> Any:
        return self.pool.acquire()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        if self.open is None:
            connection = await self.pool.acquire()
            self.open = (connection, connection.transaction())
            await self.open[1].start()
        yield self.open[0]

    async def end(self, committed: bool) -> None:
        if self.open is not None:
            connection, transaction = self.open
            await (transaction.commit() if committed else transaction.rollback())
            await self.pool.release(connection)


Perform = Callable[[Callable[[Any], Awaitable[Any]], Any], Awaitable[Any]]


@pytest.fixture
async def perform(canonical: str) -> AsyncIterator[Perform]:
    """`await perform(implementation, request)`: one attempt."""
    async with asyncpg.create_pool(canonical, min_size=0, max_size=8) as pool:

        async def once(implementation: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
            attempt = HandMade(pool)
            token = current_attempt.set(attempt)
            answer: Any = None
            try:
                answer = await implementation(request)
                return answer
            finally:
                current_attempt.reset(token)
                await attempt.end(isinstance(answer, Success))

        yield once
