"""What one tenant may see of a store: executions, journals, schedules, audit, page by page. Every statement carries the tenant."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from uuid import UUID

from attrs import evolve, frozen

from flowdsl.codec import encode_plain
from flowdsl.errors import NotFound, StoreError
from flowdsl.journal import Entry
from flowdsl.postgres.encryption import audit_of, text_of
from flowdsl.postgres.pages import Place, Sought
from flowdsl.postgres.store import _SUMMARY, Store, Summary, _entry

PAGE_BYTES = 8 << 20
"""What the bodies of one page of a journal have together, more or less: a first one that is larger comes alone."""


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
    return store.summarized(rows[0])


async def executions(store: Store, tenant: str, sought: Sought, *, after: Place | None = None, limit: int = 50) -> list[Summary]:
    """The executions that fit, newest first, behind `after`."""
    exactly = sought.text is not None and is_id(sought.text)
    found = await store.summaries(tenant, evolve(sought, text=None, id=sought.text), after, limit) if exactly else []
    return found or await store.summaries(tenant, sought, after, limit)


async def request_of(store: Store, tenant: str, id: str) -> bytes:
    """The input of an execution, as it was recorded. Raises `NotFound`, `KeyMissing`, `NotGenuine`."""
    return bytes((await store.row(tenant, id))["request"])


async def entries(store: Store, tenant: str, id: str, *, first: int = 0, limit: int = 100) -> list[Entry]:
    """Entries of a journal from a position on; fewer than `limit` also when they are large. Nothing of another tenant's.

    Raises `KeyMissing`, `NotGenuine`.
    """
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
    return store.encryption.entries(tenant, id.lower(), [_entry(row) for row in rows])


async def audited(
    store: Store, tenant: str, *, execution: str | None = None, event: str | None = None, before: int | None = None, limit: int = 50
) -> list[Audited]:
    """Rows of the audit, newest first, behind the row of that id."""
    given: list[Any] = [tenant]
    asked = {
        "a.execution = {}::uuid": execution,
        "a.event = {}": event,
        "(a.at, a.id) < ((select b.at from flowdsl.audit b where b.id = {0}), {0})": before,
    }
    conditions = ["a.tenant = $1"]
    for condition, value in asked.items():  # as for pages of executions: what nobody asked for is not in the statement
        if value is not None:
            given.append(value)
            conditions.append(condition.format(f"${len(given)}"))
    rows = await store.again(
        f"select a.id, a.tenant, a.execution, a.event, a.facts, a.at, a.seq from flowdsl.audit a where {' and '.join(conditions)}"
        f" order by a.at desc, a.id desc limit {int(limit)}",
        *given,
    )
    return [
        Audited(row["id"], None if row["execution"] is None else str(row["execution"]), row["event"], facts_of(store, row), row["at"], row["seq"])
        for row in rows
    ]


def facts_of(store: Store, row: Any) -> bytes:
    """The facts of a row of the audit, or, for who has not their key, which key that is."""
    id = None if row["execution"] is None else str(row["execution"])
    try:
        facts = store.encryption.decrypt(audit_of(row["tenant"], id, row["event"]), bytes(row["facts"]))
    except StoreError as error:
        return encode_plain({"unreadable": str(error)})
    cause = _CAUSE.fullmatch(facts) if row["event"] == "BLOCKED" and id is not None else None
    if cause is None:
        return facts
    return encode_plain({"cause": store.encryption.shown_text(text_of(row["tenant"], id or "", "cause"), cause[1].decode())})


_CAUSE = re.compile(rb'\{"cause" : "(encrypted:[A-Za-z0-9+/=]*)"\}')
"""What the database writes of a block, which cannot open its cause."""


async def workers(store: Store) -> Any:
    """How many workers beat within their lease, and what waits longest, in seconds. It says nothing of anybody's executions."""
    rows = await store.again(
        "select (select count(*) from flowdsl.workers where not gone and beat > clock_timestamp() - lease) as alive,"
        " (select extract(epoch from clock_timestamp() - min(wake))::float8 from flowdsl.executions"
        "   where owner is null and wake is not null and status <> 'blocked' and wake <= statement_timestamp()) as oldest"
    )
    return rows[0]


__all__ = ["Audited", "Place", "Sought", "audited", "entries", "execution", "executions", "facts_of", "is_id", "request_of", "workers"]
