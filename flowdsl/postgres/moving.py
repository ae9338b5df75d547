"""Executions out of a store and into another: whole, with their journals, mail and descendants."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from flowdsl.errors import NotFound, StoreError
from flowdsl.postgres.encryption import Encryption, Place, entry_of, exit_of, from_surroundings, mail_of, request_of, text_of
from flowdsl.postgres.store import Store

FORMAT = 1
_TABLES = {
    "executions": "id, tenant, workflow, version, scope, key, current, status, mail, parent, parent_step, detached, terminates, request, exit,"
    " cause, started, ended",
    "journal": "execution, position, epoch, kind, at, step, fingerprint, site, body, live::text as live",
    "mailbox": "execution, seq, kind, name, key, body",
}


async def exported(store: Store, ids: Sequence[str], *, tenant: str = "default", plain: bool = False) -> str:
    """These executions and their descendants as one JSON document, as of one moment. What is encrypted stays so, unless it is to be `plain`.

    Raises `NotFound` for one that is not there, and, when it is to be plain, `KeyMissing` and `NotGenuine`.
    """
    async with store.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        family = await connection.fetch(
            "with recursive family as ("
            " select id from flowdsl.executions where id = any($1::uuid[]) and tenant = $2"
            " union select c.id from flowdsl.executions c join family f on c.parent = f.id) select id from family",
            list(ids),
            tenant,
        )
        known = {str(row["id"]) for row in family}
        for id in ids:
            if id not in known:
                raise NotFound("execution", id)
        out: dict[str, Any] = {"flowdsl": FORMAT}
        for table, columns in _TABLES.items():
            by = "id" if table == "executions" else "execution"
            query = f"select {columns} from flowdsl.{table} where {by} = any($1::uuid[]) order by 1, 2"
            out[table] = [dict(row) for row in await connection.fetch(query, sorted(known))]
    if plain:
        _change(out, store.encryption.decrypt, store.encryption.decrypt_text)
    for table in _TABLES:
        out[table] = [{name: _plain(value) for name, value in row.items()} for row in out[table]]
    return json.dumps(out, ensure_ascii=False)


def _change(tables: Mapping[str, Any], body: Callable[[Place, bytes], bytes], text: Callable[[Place, str], str]) -> None:
    """Puts something else in the place of each payload of these rows."""
    whose = {row["id"]: row["tenant"] for row in tables["executions"]}
    for row in tables["executions"]:
        id, tenant = str(row["id"]), row["tenant"]
        row["request"] = body(request_of(tenant, id), row["request"])
        row["exit"] = None if row["exit"] is None else body(exit_of(tenant, id), row["exit"])
        row["cause"] = None if row["cause"] is None else text(text_of(tenant, id, "cause"), row["cause"])
    for row in tables["journal"]:
        id = row["execution"]
        row["body"] = body(entry_of(whose[id], str(id), row["position"], row["kind"], row["step"]), row["body"])
    for row in tables["mailbox"]:
        id = row["execution"]
        row["body"] = body(mail_of(whose[id], row["key"] or str(id), row["kind"], row["name"]), row["body"])


async def imported(store: Store, document: str, *, tenant: str | None = None) -> list[str]:
    """Puts exported executions into this store, all or none, and gives their ids. Those that were open are blocked until they are resumed.

    `tenant`: whose they become. Payloads are encrypted with this store's key, if it has one. Raises `StoreError` for a document that is not ours, or
    an id or key that is taken here, and `KeyMissing` and `NotGenuine`.
    """
    try:
        found = json.loads(document)
        if found["flowdsl"] != FORMAT:
            raise StoreError(f"this is an export of format {found['flowdsl']}, and this flowdsl reads {FORMAT}", "Use the flowdsl that wrote it")
        rows = plain_rows(found, store.encryption)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"this is no export of flowdsl ({type(error).__name__}: {error})", "Make one with `flowdsl export`") from error
    for row in rows["executions"]:
        row["tenant"] = tenant or row["tenant"]
        epochs = [entry["epoch"] for entry in rows["journal"] if entry["execution"] == row["id"]]
        row["epoch"] = max(epochs, default=0) + 1  # whoever claims it loads its journal
        if row["status"] in ("running", "suspended"):
            row["status"], row["cause"] = "blocked", "paused: imported"
    _change(rows, store.encryption.encrypt, store.encryption.encrypt_text)
    try:
        async with store.connection() as connection, connection.transaction():
            for table in _TABLES:
                for row in rows[table]:
                    await _insert(connection, table, row)
            for row in rows["executions"]:
                await connection.execute("select flowdsl.audited($1, $2, 'IMPORTED', $3)", row["tenant"], row["id"], b"{}")
    except asyncpg.UniqueViolationError as error:
        what = getattr(error, "detail", "")
        raise StoreError(f"something of it is in this store already ({what})", "Nothing was imported") from error
    return [str(row["id"]) for row in rows["executions"]]


def plain_rows(document: Mapping[str, Any], encryption: Encryption | None = None) -> dict[str, list[dict[str, Any]]]:
    """The rows of an exported document by their tables, with values as a store gives them, and payloads as they were recorded.

    What is encrypted is opened with these keys, or with those of the environment. Raises `KeyMissing`, `NotGenuine`.
    """
    rows = {table: [{name: _read(value) for name, value in row.items()} for row in document[table]] for table in _TABLES}
    opened = encryption or from_surroundings()
    _change(rows, opened.decrypt, opened.decrypt_text)
    return rows


async def _insert(connection: Any, table: str, row: dict[str, Any]) -> None:
    allowed = {name.split("::")[0].strip() for name in _TABLES[table].replace(" as live", "").split(",")} | {"epoch"}
    names = [name for name in row if name in allowed]  # the names come from our list, never from the document
    places = [f"${n + 1}" + ("::text::int4multirange" if name == "live" else "") for n, name in enumerate(names)]
    query = f"insert into flowdsl.{table} ({', '.join(names)}) values ({', '.join(places)})"
    await connection.execute(query, *(row[name] for name in names))


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return {"bytes": base64.b64encode(value).decode()}
        case datetime():
            return {"at": value.isoformat()}
        case UUID():
            return {"uuid": str(value)}
        case _:
            return value


def _read(value: Any) -> Any:
    match value:
        case {"bytes": str(text)}:
            return base64.b64decode(text, validate=True)
        case {"at": str(text)}:
            return datetime.fromisoformat(text)
        case {"uuid": str(text)}:
            return UUID(text)
        case _:
            return value


__all__ = ["exported", "imported", "plain_rows"]
