"""Whether the records here are those of the source: compared row by row with what a stand-in says about itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx2
from attrs import frozen


@frozen
class Counts:
    """`stale`: other than at the source, or no longer there."""

    records: int = 0
    missing: int = 0
    duplicated: int = 0
    stale: int = 0


@frozen
class Verdict(Counts):
    """`records` are those that live here."""

    by_entity: Mapping[str, Counts] = {}

    @property
    def clean(self) -> bool:
        return not (self.missing or self.duplicated or self.stale)


async def verdict(connection: Any, truth_url: str, org: str, adapter: str = "pco") -> Verdict:
    """Compares with the stand-in at `truth_url`, its root or its /_standin/truth."""
    address = truth_url if truth_url.endswith("/_standin/truth") else truth_url.rstrip("/") + "/_standin/truth"
    async with httpx2.AsyncClient(timeout=120) as client:
        truth = (await client.get(address)).raise_for_status().json()
    rows = await connection.fetch(
        "select entity, id, attributes::text as attributes, relationships::text as relationships from sync.records"
        " where org = $1 and adapter = $2 and deleted_at is null",
        org,
        adapter,
    )
    return judged(truth["entities"], [(row["entity"], row["id"], _told(row)) for row in rows])


def judged(truth: Mapping[str, Mapping[str, Any]], kept: list[tuple[str, str, dict[str, Any]]]) -> Verdict:
    """`truth`: entity → id → attributes and relationships. `kept`: entity, id and the same of every record here."""
    by_entity = {
        entity: _compared(truth.get(entity, {}), [(id, told) for kind, id, told in kept if kind == entity])
        for entity in sorted({*truth, *(kind for kind, _, _ in kept)})
    }
    every = by_entity.values()
    return Verdict(
        sum(one.records for one in every),
        sum(one.missing for one in every),
        sum(one.duplicated for one in every),
        sum(one.stale for one in every),
        by_entity,
    )


def _compared(truth: Mapping[str, Any], kept: list[tuple[str, dict[str, Any]]]) -> Counts:
    met = Counter(id for id, _ in kept)
    stale = sum(id not in truth or not agrees(truth[id], told) for id, told in kept)
    return Counts(len(kept), len(truth.keys() - met.keys()), sum(count - 1 for count in met.values()), stale)


def agrees(true: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether a record says all that is true. An absent relationship, an empty one and null are the same."""
    attributes, relationships = told["attributes"], told["relationships"]
    return all(attributes.get(name) == value for name, value in true["attributes"].items()) and all(
        (relationships.get(name) or None) == (value or None) for name, value in true["relationships"].items()
    )


def _told(row: Any) -> dict[str, Any]:
    return {"attributes": json.loads(row["attributes"]), "relationships": json.loads(row["relationships"])}
