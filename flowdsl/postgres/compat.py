"""All open executions of a store against the code at hand."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from flowdsl.binding import Deployment
from flowdsl.compat import Fit, fit
from flowdsl.flow import Execution
from flowdsl.operating import Subject
from flowdsl.postgres.encryption import request_of
from flowdsl.postgres.store import Store

PAGE = 200
_OPEN = """
select id from flowdsl.executions where owner is null and status in ('running', 'suspended', 'blocked') and ($1::text is null or workflow = $1)
union all select id from flowdsl.executions where owner is not null and ($1::text is null or workflow = $1) order by id
"""
"""Two indexes know them: that of what waits, and that of what workers have. What has ended is in neither."""
_ROWS = """
select id, tenant, workflow, version, key, parent, started, request from flowdsl.executions
 where id = any($1::uuid[]) and status in ('running', 'suspended', 'blocked') and exit is null order by id
"""


async def compared(store: Store, deployment: Deployment, *, workflow: str | None = None) -> AsyncGenerator[Fit]:
    """A verdict for each open execution, in the order of ids. Only reads; those that begin meanwhile are missed, those that move may be behind.

    Raises `KeyMissing`, `NotGenuine`.
    """
    open = await _open(store, workflow)
    for first in range(0, len(open), PAGE):
        rows = await store.again(_ROWS, open[first : first + PAGE])
        journals = await store.load([str(row["id"]) for row in rows])
        for row in rows:
            id, parent = str(row["id"]), None if row["parent"] is None else str(row["parent"])
            execution = Execution(id, row["tenant"], row["workflow"], row["key"], parent, row["started"])
            definitions = deployment.definitions(row["workflow"], row["version"])
            request = store.encryption.decrypt(request_of(row["tenant"], id), row["request"])
            entries = store.encryption.entries(row["tenant"], id, journals[id])
            yield fit(Subject(execution, request, entries, definitions), entries)


async def _open(store: Store, workflow: str | None) -> list[str]:
    async with store.connection() as connection, connection.transaction(readonly=True):
        await connection.execute("set local enable_seqscan = off")  # with stale statistics nearly all are believed to be open
        return [str(row["id"]) for row in await connection.fetch(_OPEN, workflow)]


__all__ = ["compared"]
