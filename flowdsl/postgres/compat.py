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


async def compared(store: Store, deployment: Deployment, *, workflow: str | None = None) -> AsyncGenerator[Fit]:
    """A verdict for each open execution, in the order of ids. Only reads; those that begin or move meanwhile may be missed or be behind.

    Raises `KeyMissing`, `NotGenuine`.
    """
    after = "00000000-0000-0000-0000-000000000000"
    while True:
        rows = await store.again(
            "select id, tenant, workflow, version, key, parent, started, request from flowdsl.executions"
            " where id > $1::uuid and status in ('running', 'suspended', 'blocked') and exit is null and ($2::text is null or workflow = $2)"
            " order by id limit $3",
            after,
            workflow,
            PAGE,
        )
        journals = await store.load([str(row["id"]) for row in rows])
        for row in rows:
            id, parent = str(row["id"]), None if row["parent"] is None else str(row["parent"])
            execution = Execution(id, row["tenant"], row["workflow"], row["key"], parent, row["started"])
            definitions = deployment.definitions(row["workflow"], row["version"])
            request = store.encryption.decrypt(request_of(row["tenant"], id), row["request"])
            entries = store.encryption.entries(row["tenant"], id, journals[id])
            yield fit(Subject(execution, request, entries, definitions), entries)
        if len(rows) < PAGE:
            return
        after = str(rows[-1]["id"])


__all__ = ["compared"]
