"""What a store holds written anew with the first of the keys, while workers run; and which keys it needs.

There is nothing to resume from: what is written as it would be today is left alone, so a rotation that was cut short is begun again. A row that
somebody changes meanwhile is left to them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final

from attrs import frozen

from flowdsl.errors import StoreError
from flowdsl.postgres.encryption import (
    MARK,
    Encryption,
    Place,
    entry_of,
    exit_of,
    head_of,
    heartbeat_of,
    mail_of,
    outcome_of,
    request_of,
    schedule_of,
    text_of,
    webhook_of,
)
from flowdsl.postgres.schedules import _transacted
from flowdsl.postgres.store import Connection, Store

PAGE: Final = 1000
BYTES: Final = 8 << 20
"""What is read and written at a time, more or less."""


@frozen
class _Column:
    """Where payloads are: the primary key with its types, and what the place of one is made of."""

    table: str
    column: str
    key: Mapping[str, str]
    place: Callable[[Any], Place]
    text: bool = False

    @property
    def listed(self) -> str:
        return ", ".join(f"t.{name}" for name in self.key)

    @property
    def rows(self) -> str:
        """The rows of some keys, each with its tenant."""
        whose = "tenant" if self.table in ("executions", "unmatched", "schedules", "webhooks") else None
        join = "" if whose else " join flowdsl.executions x on x.id = t.execution"
        given = ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(self.key.values(), 1))
        fits = " and ".join(f"t.{name} = k.{name}" for name in self.key)
        return (
            f"select t.*, {'t' if whose else 'x'}.tenant as whose, t.{self.column} as kept from unnest({given}) as k({', '.join(self.key)})"
            f" join flowdsl.{self.table} t on {fits}{join} order by {self.listed}"
        )

    @property
    def update(self) -> str:
        """Of one row, if it still is as it was read."""
        fits = " and ".join(f"t.{name} = ${n}" for n, name in enumerate(self.key, 3))
        return f"update flowdsl.{self.table} t set {self.column} = $1 where t.{self.column} = $2 and {fits}"


def _id(row: Any) -> str:
    return str(row["execution"])


_OWN: Final = {"id": "uuid"}
_MAIL: Final = {"tenant": "text", "name": "text", "key": "text", "delivery": "text"}

_COLUMNS: Final = (
    _Column("executions", "request", _OWN, lambda row: request_of(row["whose"], str(row["id"]))),
    _Column("executions", "exit", _OWN, lambda row: exit_of(row["whose"], str(row["id"]))),
    _Column("executions", "cause", _OWN, lambda row: text_of(row["whose"], str(row["id"]), "cause"), text=True),
    _Column(
        "journal", "body", {"execution": "uuid", "position": "int"},
        lambda row: entry_of(row["whose"], _id(row), row["position"], row["kind"], row["step"]),
    ),
    _Column(
        "mailbox", "body", {"execution": "uuid", "seq": "int"}, lambda row: mail_of(row["whose"], row["key"] or _id(row), row["kind"], row["name"])
    ),
    _Column("unmatched", "body", _MAIL, lambda row: mail_of(row["whose"], row["key"], "signal", row["name"])),
    _Column("heartbeats", "body", {"execution": "uuid", "place": "text"}, lambda row: heartbeat_of(row["whose"], _id(row), row["place"])),
    _Column("notes", "note", {"execution": "uuid"}, lambda row: text_of(row["whose"], _id(row), "note"), text=True),
    _Column("schedules", "request", {"id": "text"}, lambda row: schedule_of(row["whose"], row["id"])),
    _Column("webhooks", "body", {"id": "bigint"}, lambda row: webhook_of(row["whose"], row["endpoint"], row["delivery"])),
    _Column("webhooks", "outcome", {"id": "bigint"}, lambda row: outcome_of(row["whose"], row["endpoint"], row["delivery"]), text=True),
)  # fmt: skip


@frozen
class Rotated:
    """How much of a column has been written anew so far."""

    where: str
    rows: int


async def rotate(store: Store) -> AsyncGenerator[Rotated]:
    """Writes everything anew that the first key has not written, the audit apart, batch by batch; tells of each.

    Raises `StoreError` without a key, and `KeyMissing` and `NotGenuine` at what cannot be read: what comes before it stays rotated.
    """
    if not store.encryption.on:
        raise StoreError("there is no encryption key to write with", "Make one with `flowdsl encryption new-key`")
    for column in _COLUMNS:
        rows, page = 0, await _page(store, column, None)
        while page:
            for chunk in _chunks(page):
                rows += await _written(store, column, chunk)
            page = await _page(store, column, page[-1]) if len(page) == PAGE else []
            yield Rotated(f"{column.table}.{column.column}", rows)


async def _page(store: Store, column: _Column, last: Any) -> list[Any]:
    """The next rows that may be written otherwise than today, behind the last one: their keys and sizes."""
    given: list[Any] = [] if column.text else [head_of(store.encryption.current or "")]
    conditions = [f"t.{column.column} is not null"]
    if not column.text:  # of a text the beginning does not tell
        conditions.append(f"substr(t.{column.column}, 1, octet_length($1::bytea)) <> $1")
    if last is not None:
        marks = ", ".join(f"${len(given) + n}::{kind}" for n, kind in enumerate(column.key.values(), 1))
        conditions.append(f"({column.listed}) > ({marks})")
        given += [last[name] for name in column.key]
    size = f"octet_length(t.{column.column}) as size"
    query = f"select {column.listed}, {size} from flowdsl.{column.table} t where {' and '.join(conditions)} order by {column.listed} limit {PAGE}"
    return await store.again(query, *given)


def _chunks(page: list[Any]) -> list[list[Any]]:
    chunks: list[list[Any]] = []
    size = BYTES + 1
    for row in page:
        if size > BYTES:
            chunks.append([])
            size = 0
        chunks[-1].append(row)
        size += row["size"]
    return chunks


async def _written(store: Store, column: _Column, chunk: list[Any]) -> int:
    """In one transaction, rows in the order of their key, as all who lock several of them do."""

    async def work(connection: Connection) -> int:
        rows = await connection.fetch(column.rows, *([row[name] for row in chunk] for name in column.key))
        changes = [
            (new, row["kept"], *(row[name] for name in column.key)) for row in rows if (new := _anew(store.encryption, column, row)) != row["kept"]
        ]
        if changes:
            await connection.executemany(column.update, changes)
        return len(changes)

    return await _transacted(store, work)


def _anew(encryption: Encryption, column: _Column, row: Any) -> Any:
    place, kept = column.place(row), row["kept"]
    if kept is None:
        return None
    if column.text:
        return encryption.encrypt_text(place, encryption.decrypt_text(place, kept))
    return kept if encryption.written_now(kept) else encryption.encrypt(place, encryption.decrypt(place, kept))


# What a store needs


@frozen
class Needed:
    """How many payloads are encrypted with each key; None: with none."""

    where: str
    keys: Mapping[str | None, int]


async def needed(store: Store) -> list[Needed]:
    """Of every column with payloads, and of the audit, whose rows are never written anew. Reads every row."""
    found: list[Needed] = []
    for table, column, text in (*((one.table, one.column, one.text) for one in _COLUMNS), ("audit", "facts", False)):
        body = f"t.{column}"
        if text:
            body = f"case when {body} ~ '^encrypted:[A-Za-z0-9+/=]{{44,}}$' then decode(substr({body}, 11, 64), 'base64') else '' end"
        rows = await store.again(
            f"select case when substr(b.body, 1, 4) = $1 then encode(substr(b.body, 6, get_byte(b.body, 4)), 'escape') end as key, count(*) as n"
            f" from (select {body} as body from flowdsl.{table} t where t.{column} is not null) b group by 1 order by 1 nulls first",
            MARK,
        )
        if rows:
            found.append(Needed(f"{table}.{column}", {row["key"]: row["n"] for row in rows}))
    return found


__all__ = ["Needed", "Rotated", "needed", "rotate"]
