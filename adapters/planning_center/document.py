"""From a JSON:API document to records."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from adapters.sync_store import Record
from domains.sync.failures import Unexpected
from domains.sync.manifest import Entity
from flowdsl import Failure, Result, Success

Document = Mapping[str, Any]


def records(what: str, document: Document, entity: Entity, owner: str | None = None) -> Result[list[Record], Unexpected]:
    """The rows of a document; `owner` is whose rows were asked for, which some rows do not say themselves."""
    data = document["data"]
    rows: list[Any] = data if isinstance(data, list) else [data]
    try:
        return Success([_record(row, entity, owner) for row in rows])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Failure(Unexpected(what, f"{type(error).__name__}: {error}"))


def _record(row: Any, entity: Entity, owner: str | None) -> Record:
    if row["type"] != entity.name and row["type"] not in entity.aliases:
        raise ValueError(f"a {row['type']} among rows of {entity.name}")
    attributes = dict(row.get("attributes") or {})
    relationships = {name: linkage(told) for name, told in (row.get("relationships") or {}).items()}
    if entity.owner and owner is not None and not relationships.get(entity.owner):
        relationships[entity.owner] = {"type": entity.owner_entity, "id": owner}
    linked = relationships.get(entity.owner) if entity.owner else None
    return Record(
        id=_id(row),
        owner=linked["id"] if isinstance(linked, dict) else None,
        changed=instant(attributes.get(entity.changed)) if entity.changed else None,
        attributes=attributes,
        relationships=relationships,
    )


def linkage(told: Any) -> Any:
    """A relationship's `data`, ids as text: one reference, a list of them, or None."""
    data = told.get("data") if isinstance(told, dict) else None
    if isinstance(data, list):
        return [{**one, "id": _id(one)} for one in data]
    return {**data, "id": _id(data)} if isinstance(data, dict) else None


def _id(row: Any) -> str:
    id = row["id"]
    if isinstance(id, bool) or not isinstance(id, (str, int)) or id == "" or "\0" in str(id):
        raise ValueError(f"{id!r} is no id")
    return str(id)


def instant(text: Any) -> datetime | None:
    """A time of change in UTC; None if there is none that can be read."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def spelled(moment: datetime) -> str:
    """As the API writes times: to the second, rounded down."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def more(document: Document) -> bool:
    """Whether there is another page: the API says so by a `next` link, and only by that."""
    links = document.get("links")
    return isinstance(links, dict) and bool(links.get("next"))


def total(document: Document) -> int | None:
    """How many rows there are in all, as the source counts."""
    meta = document.get("meta")
    found = meta.get("total_count") if isinstance(meta, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None
