"""What a deep look reads: some executions and all that belongs to them, as of one moment, in one short read-only transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from attrs import frozen

from flowdsl.errors import NotGenuine
from flowdsl.postgres.encryption import PLAIN, Encryption, encrypted_with, entry_of
from flowdsl.postgres.store import Connection

Row: TypeAlias = Mapping[str, Any]

OPEN = ("running", "suspended", "blocked")
ENDED = ("succeeded", "failed", "cancelled")

EXITS = (1, 2, 3)
ATTEMPT, INTERRUPTED, INTENT, CANCEL, OPERATOR = 4, 5, 6, 7, 9
"""Kinds of entries, as the journal stores them."""


@frozen
class Finding:
    """Something that must not be: the invariant that it breaks, where, what was found, and what to do."""

    invariant: int
    execution: str | None
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"I{self.invariant} {self.execution + ': ' if self.execution else ''}{self.found}. {self.remedy}"


@frozen
class Batch:
    """Some executions as of one moment. Journals are whole; bodies are there where a check reads them."""

    now: datetime
    executions: Mapping[UUID, Row]
    journals: Mapping[UUID, Sequence[Row]]
    mail: Mapping[UUID, Sequence[Row]]
    relatives: Mapping[UUID, Row]
    """The parents of those executions, and the children that their journals tell of."""
    starts: Mapping[tuple[UUID, str], Sequence[bytes]]
    """By parent and step: what starts of children answered."""
    workers: Mapping[UUID, Row]

    def journal(self, id: UUID) -> Sequence[Row]:
        return self.journals.get(id, ())


async def read(connection: Connection, ids: Sequence[UUID], encryption: Encryption = PLAIN) -> Batch:
    """Reads them. The caller's transaction is repeatable read: what belongs together is of one moment. Raises `KeyMissing`."""
    executions = await connection.fetch(f"select {_EXECUTION} from flowdsl.executions where id = any($1::uuid[])", ids)
    whose = {row["id"]: row["tenant"] for row in executions}
    journal = [_opened(row, whose, encryption) for row in await connection.fetch(_JOURNAL, ids)]
    parents = [row["parent"] for row in executions if row["parent"] is not None]
    children = [id for row in journal if row["kind"] == 1 and row["fingerprint"].startswith("start ") and (id := as_id(row["body"])) is not None]
    relatives = await connection.fetch(f"select {_EXECUTION} from flowdsl.executions where id = any($1::uuid[])", [*parents, *children])
    whose |= {row["id"]: row["tenant"] for row in relatives}
    query = (
        "select execution, position, kind, step, body from flowdsl.journal"
        " where execution = any($1::uuid[]) and kind = 1 and fingerprint like 'start %'"
    )
    starts = [_opened(row, whose, encryption) for row in await connection.fetch(query, parents)]
    owners = await connection.fetch("select id, beat, lease, gone from flowdsl.workers")
    return Batch(
        await connection.fetchval("select clock_timestamp()"),
        {row["id"]: row for row in executions},
        grouped(journal, "execution"),
        grouped(
            await connection.fetch("select execution, seq, kind, name, key from flowdsl.mailbox where execution = any($1::uuid[])", ids), "execution"
        ),
        {row["id"]: row for row in relatives},
        {key: [row["body"] for row in rows] for key, rows in grouped(starts, "execution", "step").items()},
        {row["id"]: row for row in owners},
    )


def _opened(row: Row, whose: Mapping[UUID, str], encryption: Encryption) -> Row:
    """An entry as it was recorded. One that does not open is no JSON, and its reader says what is wrong with it."""
    body = row["body"]
    if body is None or encrypted_with(body) is None:
        return row
    try:
        place = entry_of(whose.get(row["execution"], ""), str(row["execution"]), row["position"], row["kind"], row["step"])
        return {**dict(row), "body": encryption.decrypt(place, body)}
    except NotGenuine:
        return row


_EXECUTION = (
    "id, tenant, workflow, version, scope, key, current, status, owner, epoch, wake, mail, parent, parent_step, detached, deaths, cause,"
    " started, ended, case when substr(exit, 1, 4) = '\\xfe464401' then 'encrypted' else md5(exit) end as exit"
)

_JOURNAL = """
select execution, position, epoch, kind, at, step, fingerprint, live,
       case when kind in (4, 5, 9) or fingerprint like 'start %' then body end as body
  from flowdsl.journal where execution = any($1::uuid[]) order by execution, position
"""


def grouped(rows: Sequence[Row], *names: str) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[names[0]] if len(names) == 1 else tuple(row[name] for name in names), []).append(row)
    return found


def as_id(body: bytes) -> UUID | None:
    """The id that the answer of a start is."""
    try:
        return UUID(json.loads(body))
    except (ValueError, TypeError, AttributeError):
        return None


def within(row: Row, position: int) -> bool:
    """Whether the `live` set of an entry names a position."""
    return any(span.lower <= position < span.upper for span in row["live"])


def standing(rows: Sequence[Row]) -> list[Row]:
    """The entries that still count: the newest with a `live` set, those it names, and all from it on."""
    newest = next((row for row in reversed(rows) if row["live"] is not None), None)
    return [row for row in rows if newest is None or row["position"] >= newest["position"] or within(newest, row["position"])]
