"""The verdict of the demo: canonical rows against the stand-in's own truth, row by row."""

from __future__ import annotations

import json
from typing import Any

import httpx2
from attrs import define, field, frozen


@frozen
class Verdict:
    """`missing`: in the source, not here. `duplicated`: here, not in the source (a merged or deleted row still held for alive counts).
    `stale`: here with other content. `examples` names a few of each."""

    records: int
    missing: int
    duplicated: int
    stale: int
    by_entity: dict[str, int]
    examples: tuple[str, ...]


@define
class _Tally:
    records: int = 0
    missing: list[str] = field(factory=list[str])
    duplicated: list[str] = field(factory=list[str])
    stale: list[str] = field(factory=list[str])
    by_entity: dict[str, int] = field(factory=dict[str, int])


async def verdict(connection: Any, address: str, org: str) -> Verdict:
    """Compares what is held for an organization with what the stand-in at that address serves."""
    async with httpx2.AsyncClient(timeout=60) as http:
        response = await http.get(f"{address}/_standin/truth")
        truth: dict[str, dict[str, Any]] = json.loads(response.content)["entities"]
    tally = _Tally()
    for entity, rows in truth.items():
        held = await connection.fetch("select id, body from sync.records where org = $1 and entity = $2 and deleted_at is null", org, entity)
        mine = {row["id"]: json.loads(row["body"]) for row in held}
        tally.records += len(rows)
        tally.by_entity[entity] = len(rows)
        tally.missing += [f"{entity} {id}" for id in rows.keys() - mine.keys()]
        tally.duplicated += [f"{entity} {id}" for id in mine.keys() - rows.keys()]
        tally.stale += [f"{entity} {id}: {_difference(rows[id], mine[id])}" for id in rows.keys() & mine.keys() if _difference(rows[id], mine[id])]
    examples = [
        f"{kind}: {one}"
        for kind, many in (("missing", tally.missing), ("duplicated", tally.duplicated), ("stale", tally.stale))
        for one in sorted(many)[:5]
    ]
    return Verdict(tally.records, len(tally.missing), len(tally.duplicated), len(tally.stale), tally.by_entity, tuple(examples))


def _difference(true: dict[str, Any], held: dict[str, Any]) -> str:
    """The first thing that differs; empty when nothing does. An absent relationship is a null one, of many an empty list."""
    for name, value in true["attributes"].items():
        if held["attributes"].get(name) != value:
            return f"{name} is {held['attributes'].get(name)!r}, not {value!r}"
    for name, value in true["relationships"].items():
        if (held["relationships"].get(name) or None) != (value or None):
            return f"{name} is {held['relationships'].get(name)!r}, not {value!r}"
    return ""
