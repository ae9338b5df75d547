"""What one tenant may see of a store: executions, journals, schedules, audit, page by page. Every statement carries the tenant."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from attrs import frozen

from flowdsl.errors import NotFound
from flowdsl.journal import Entry
from flowdsl.postgres.ends import ENDED
from flowdsl.postgres.store import _SUMMARY, Store, Summary, _entry, _summary

PAGE_BYTES = 8 << 20
"""What the bodies of one page of a journal have together, more or less: a first one that is larger comes alone."""


@frozen
class Sought:
    """Which executions are asked for. `text` is looked for in keys and names of workflows, and is an id if it looks like one."""

    workflow: str | None = None
    status: str | None = None
    ended: bool = False
    parent: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None


@frozen
class Place:
    """Where a page of executions ended: the next one begins behind it."""

    started: datetime
    id: str


@frozen
class Audited:
    """A row of the audit. Without `seq` it waits to be sealed."""

    id: int
    execution: str | None
    event: str
    facts: bytes
    at: datetime
    seq: int | None


def is_id(text: str) -> bool:
    """Whether it looks like an execution's id."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


async def execution(store: Store, tenant: str, id: str) -> Summary:
    """One execution. Raises `NotFound`, for another tenant's too."""
    rows = await store.again(_SUMMARY + " where x.id = $1::uuid and x.tenant = $2", id, tenant) if is_id(id) else []
    if not rows:
        raise NotFound("execution", id)
    return _summary(rows[0])


async def executions(store: Store, tenant: str, sought: Sought, *, after: Place | None = None, limit: int = 50) -> list[Summary]:
    """The executions that fit, newest first, behind `after`."""
    text = None if sought.text is None else "%" + sought.text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    rows = await store.again(
        _SUMMARY + " where x.tenant = $1 and ($2::text is null or x.workflow = $2) and ($3::text is null or x.status = $3)"
        " and ($4::text[] is null or x.status = any($4)) and ($5::uuid is null or x.parent = $5)"
        " and ($6::timestamptz is null or x.started >= $6) and ($7::timestamptz is null or x.started < $7)"
        " and ($8::text is null or x.key ilike $8 or x.workflow ilike $8 or x.id = $9::uuid)"
        " and ($10::timestamptz is null or (x.started, x.id) < ($10, $11::uuid))"
        " order by x.started desc, x.id desc limit $12",
        tenant, sought.workflow, sought.status, list(ENDED) if sought.ended else None, sought.parent, sought.since, sought.until, text,
        sought.text if sought.text is not None and is_id(sought.text) else None, after and after.started, after and after.id, limit,
    )  # fmt: skip
    return [_summary(row) for row in rows]


async def request_of(store: Store, tenant: str, id: str) -> bytes:
    """The input of an execution, as it was recorded. Raises `NotFound`."""
    return bytes((await store.row(tenant, id))["request"])


async def entries(store: Store, tenant: str, id: str, *, first: int = 0, limit: int = 100) -> list[Entry]:
    """Entries of a journal from a position on; fewer than `limit` also when they are large. Nothing of another tenant's."""
    if not is_id(id):
        return []
    rows = await store.again(
        "select j.* from ("
        " select i.*, sum(octet_length(i.body)) over (order by i.position) - octet_length(i.body) as before from ("
        "  select j.* from flowdsl.journal j join flowdsl.executions x on x.id = j.execution"
        "   where j.execution = $1::uuid and x.tenant = $2 and j.position >= $3 order by j.position limit $4) i) j"
        " where j.before < $5 order by j.position",
        id, tenant, first, limit, PAGE_BYTES,
    )  # fmt: skip
    return [_entry(row) for row in rows]


async def audited(
    store: Store, tenant: str, *, execution: str | None = None, event: str | None = None, before: int | None = None, limit: int = 50
) -> list[Audited]:
    """Rows of the audit, newest first, behind the row of that id."""
    rows = await store.again(
        "select id, execution, event, facts, at, seq from flowdsl.audit where tenant = $1 and ($2::uuid is null or execution = $2)"
        " and ($3::text is null or event = $3) and ($4::bigint is null or id < $4) order by id desc limit $5",
        tenant,
        execution,
        event,
        before,
        limit,
    )
    return [
        Audited(row["id"], None if row["execution"] is None else str(row["execution"]), row["event"], bytes(row["facts"]), row["at"], row["seq"])
        for row in rows
    ]


async def workers(store: Store) -> Any:
    """How many workers beat within their lease, and what waits longest, in seconds. It says nothing of anybody's executions."""
    rows = await store.again(
        "select (select count(*) from flowdsl.workers where not gone and beat > clock_timestamp() - lease) as alive,"
        " (select extract(epoch from clock_timestamp() - min(wake))::float8 from flowdsl.executions"
        "   where owner is null and wake is not null and status <> 'blocked' and wake <= clock_timestamp()) as oldest"
    )
    return rows[0]


__all__ = ["Audited", "Place", "Sought", "audited", "entries", "execution", "executions", "is_id", "request_of", "workers"]
