"""Whether what we have is what the provider's own books say, and what was paid for it was paid once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
from attrs import frozen


@frozen
class Verdict:
    """Counts of addresses, but for the credits."""

    addresses: int
    enriched: int
    absent: int
    lost: int
    """Personal ones that the provider was never asked about, or whose answer never reached them."""
    wrong: int
    """Those of whom we say something other than the provider."""
    paid_twice: int
    asked_twice: int
    processed_twice: int
    credits: float
    """What the provider charged."""
    unaccounted: float
    """How far our own sum is from that."""

    @property
    def clean(self) -> bool:
        return self.addresses > 0 and not (self.lost or self.wrong or self.paid_twice or self.asked_twice or self.processed_twice or self.unaccounted)


async def verdict(connection: Any, standin: str) -> Verdict:
    """Compares with the stand-in at that address."""
    async with httpx2.AsyncClient(timeout=60) as client:
        books = (await client.get(f"{standin}/_standin/ledger")).raise_for_status().json()
    rows = await connection.fetch(
        "select s.email, s.profile::text as profile, j.state, j.written from enrichment.subscribers s join enrichment.jobs j on j.subscriber = s.id"
    )
    ours = await connection.fetchval("select coalesce(sum(credits), 0)::float8 from enrichment.batches")
    return judged(books["batches"], rows, ours)


def judged(batches: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], credits: float) -> Verdict:
    """`batches`: the provider's books. `rows`: email, profile, state and written of each of our jobs. `credits`: what we think it cost."""
    items = [item for batch in batches for item in batch["items"]]
    asked, paid = Counter(item["email"] for item in items), Counter(item["email"] for item in items if item["charged"])
    known = {item["email"]: item["full_name"] for item in items if item["done"]}
    states = Counter(row["state"] for row in rows)
    done = [row for row in rows if row["state"] in ("enriched", "absent")]
    charged = sum(item["charged"] for item in items)
    return Verdict(
        addresses=len(rows),
        enriched=states["enriched"],
        absent=states["absent"],
        lost=len(rows) - len(done) + sum(row["email"] not in known for row in done),
        wrong=sum(_name(row["profile"]) != known.get(row["email"]) for row in done),
        paid_twice=sum(count > 1 for count in paid.values()),
        asked_twice=sum(count > 1 for count in asked.values()),
        processed_twice=sum(row["written"] > 1 for row in rows),
        credits=charged,
        unaccounted=round(abs(charged - credits), 6),
    )


def _name(profile: str | None) -> str | None:
    name: str | None = json.loads(profile)["full_name"] if profile else None
    return name
