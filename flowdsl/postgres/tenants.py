"""One tenant's view of a store: whatever a statement forgets to ask for, there are no rows of others. Postgres sees to it, by row-level security."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from copy import copy
from typing import Any

from attrs import frozen

from flowdsl.errors import FlowError
from flowdsl.postgres.connection import Connection
from flowdsl.postgres.store import Store

ROLE = "flowdsl_tenant"
_AS = "select set_config('flowdsl.tenant', $1, true), set_config('role', $2, true)"  # for this transaction: a pooler's next client is another


async def not_apart(store: Store) -> str | None:
    """Why the server does not keep tenants apart, and what to do; None when it does."""
    rows = await store.again("select flowdsl.not_apart()")
    return None if rows[0][0] is None else str(rows[0][0])


def of_tenant(store: Store, tenant: str) -> Store:
    """The same store, for one tenant: each statement is in a transaction in which nothing else is there.

    Its pool is the store's: closing is the store's too. What a worker does for the tenant does not go through it.
    """
    if not tenant:
        raise FlowError("of_tenant: a tenant has a name")
    view = copy(store)
    view.pool = _Pool(store.pool, tenant)
    return view


@frozen(eq=False)
class _Pool:
    """As much of a pool as a store uses."""

    whole: Any
    tenant: str

    @asynccontextmanager
    async def acquire(self) -> AsyncGenerator[Connection]:
        async with self.whole.acquire() as connection:
            yield _Connection(connection, self.tenant)

    async def fetch(self, query: str, *arguments: Any) -> list[Any]:
        async with self.acquire() as connection:
            return list(await connection.fetch(query, *arguments))


@frozen(eq=False)
class _Connection:
    """As much of a connection as a statement for one tenant needs: each is in a transaction of the tenant's, if not in one that was begun."""

    whole: Any
    tenant: str

    @asynccontextmanager
    async def transaction(self, **options: Any) -> AsyncGenerator[None]:
        async with self.whole.transaction(**options):
            await self.whole.fetchrow(_AS, self.tenant, ROLE)
            yield

    async def fetch(self, query: str, *arguments: Any, **options: Any) -> Any:
        async with self._within():
            return await self.whole.fetch(query, *arguments, **options)

    async def fetchrow(self, query: str, *arguments: Any, **options: Any) -> Any:
        async with self._within():
            return await self.whole.fetchrow(query, *arguments, **options)

    async def fetchval(self, query: str, *arguments: Any, **options: Any) -> Any:
        async with self._within():
            return await self.whole.fetchval(query, *arguments, **options)

    async def execute(self, query: str, *arguments: Any, **options: Any) -> Any:
        async with self._within():
            return await self.whole.execute(query, *arguments, **options)

    def cursor(self, query: str, *arguments: Any, **options: Any) -> Any:
        return self.whole.cursor(query, *arguments, **options)  # there is none outside a transaction

    def is_in_transaction(self) -> bool:
        return bool(self.whole.is_in_transaction())

    def _within(self) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self.whole.is_in_transaction() else self.transaction()


__all__ = ["ROLE", "not_apart", "of_tenant"]
