"""Canonical rows in Postgres: saved set-wise, newer over older; and the budget that all processes share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from attrs import frozen

Connection = Any


@frozen
class Reference:
    relation: str
    target_entity: str
    target_id: str


@frozen
class Record:
    """A row as it is kept: its attributes and linkages, canonical."""

    id: str
    changed: datetime | None
    attributes: dict[str, Any]
    relationships: dict[str, Any]
    owner: str | None = None
    references: tuple[Reference, ...] = ()

    @property
    def body(self) -> str:
        return json.dumps({"attributes": self.attributes, "relationships": self.relationships}, sort_keys=True, separators=(",", ":"))


async def save(connection: Connection, org: str, entity: str, walk: str, records: Sequence[Record]) -> int:
    """Upserts rows: newer or as new over older, never the other way. Gives how many this walk had not seen yet."""
    rows = {record.id: record for record in records}
    if not rows:
        return 0
    seen = await connection.fetchval(
        "select count(*) from sync.records where org = $1 and entity = $2 and id = any($3::text[]) and seen = $4", org, entity, list(rows), walk
    )
    ordered = [rows[id] for id in sorted(rows)]
    await connection.execute(
        "insert into sync.records as r (org, entity, id, changed, body, owner, seen)"
        " select $1, $2, t.id, t.changed, t.body, t.owner, $3 from unnest($4::text[], $5::timestamptz[], $6::text[], $7::text[])"
        " as t(id, changed, body, owner)"
        " on conflict (org, entity, id) do update set changed = excluded.changed, body = excluded.body, owner = excluded.owner,"
        " seen = excluded.seen, deleted_at = null where r.changed is null or excluded.changed is null or excluded.changed >= r.changed",
        org, entity, walk, [one.id for one in ordered], [one.changed for one in ordered], [one.body for one in ordered],
        [one.owner for one in ordered],
    )  # fmt: skip
    await _refer(connection, org, entity, ordered)
    return len(rows) - int(seen)


async def _refer(connection: Connection, org: str, entity: str, records: Sequence[Record]) -> None:
    await connection.execute(
        "delete from sync.links where org = $1 and entity = $2 and id = any($3::text[])", org, entity, [one.id for one in records]
    )
    links = sorted({(one.id, ref.relation, ref.target_entity, ref.target_id) for one in records for ref in one.references})
    await connection.execute(
        "insert into sync.links (org, entity, id, relation, target_entity, target_id, linked)"
        " select $1, $2, t.id, t.relation, t.target_entity, t.target_id,"
        " exists (select 1 from sync.records r where r.org = $1 and r.entity = t.target_entity and r.id = t.target_id and r.deleted_at is null)"
        " from unnest($3::text[], $4::text[], $5::text[], $6::text[]) as t(id, relation, target_entity, target_id) on conflict do nothing",
        org, entity, [one[0] for one in links], [one[1] for one in links], [one[2] for one in links], [one[3] for one in links],
    )  # fmt: skip


async def link(connection: Connection, org: str, entity: str, target: str) -> int:
    """Links references between two entities whose target has arrived meanwhile, in both directions."""
    done = await connection.execute(
        "update sync.links l set linked = true where l.org = $1 and not l.linked and ((l.entity = $2 and l.target_entity = $3)"
        " or (l.entity = $3 and l.target_entity = $2)) and exists (select 1 from sync.records r where r.org = l.org"
        " and r.entity = l.target_entity and r.id = l.target_id and r.deleted_at is null)",
        org,
        entity,
        target,
    )
    return int(done.split()[-1])


async def forget(connection: Connection, org: str, entity: str, ids: Sequence[str]) -> list[str]:
    """Marks rows as gone. Gives those that were there."""
    rows = await connection.fetch(
        "update sync.records set deleted_at = clock_timestamp() where org = $1 and entity = $2 and id = any($3::text[]) and deleted_at is null"
        " returning id",
        org,
        entity,
        sorted(ids),
    )
    return [row[0] for row in rows]


async def forget_other_children(connection: Connection, org: str, entity: str, owners: Sequence[str], kept: Sequence[str]) -> None:
    """Of the rows below these owners only the kept ones are still there."""
    await connection.execute(
        "update sync.records set deleted_at = clock_timestamp() where org = $1 and entity = $2 and owner = any($3::text[])"
        " and not id = any($4::text[]) and deleted_at is null",
        org,
        entity,
        sorted(owners),
        sorted(kept),
    )


async def forget_orphans(connection: Connection, org: str, entity: str, parent: str) -> int:
    """Rows below an owner that is gone are gone."""
    done = await connection.execute(
        "update sync.records c set deleted_at = clock_timestamp() where c.org = $1 and c.entity = $2 and c.deleted_at is null and not exists"
        " (select 1 from sync.records p where p.org = c.org and p.entity = $3 and p.id = c.owner and p.deleted_at is null)",
        org,
        entity,
        parent,
    )
    return int(done.split()[-1])


async def unseen(connection: Connection, org: str, entity: str, walk: str, limit: int) -> list[str]:
    """Rows that are held for alive and that this walk did not see."""
    rows = await connection.fetch(
        "select id from sync.records where org = $1 and entity = $2 and seen <> $3 and deleted_at is null order by id limit $4",
        org, entity, walk, limit,
    )  # fmt: skip
    return [row[0] for row in rows]


async def parents(connection: Connection, org: str, entity: str, after: str, since: datetime | None, limit: int) -> list[tuple[str, datetime | None]]:
    """The next rows below which others are listed, and when they changed; with `since` only those changed from then on."""
    rows = await connection.fetch(
        "select id, changed from sync.records where org = $1 and entity = $2 and id > $3 and deleted_at is null"
        " and ($4::timestamptz is null or changed >= $4) order by id limit $5",
        org, entity, after, since, limit,
    )  # fmt: skip
    return [(row[0], row[1]) for row in rows]


async def watermark(connection: Connection, org: str, entity: str) -> datetime | None:
    found: datetime | None = await connection.fetchval("select watermark from sync.status where org = $1 and entity = $2", org, entity)
    return found


async def complete(connection: Connection, org: str, entity: str, sync_type: str, records: int, newest: datetime | None, at: datetime) -> None:
    """Records a complete walk. The watermark only rises."""
    await connection.execute(
        "insert into sync.status as s (org, entity, watermark, sync_type, records, completed_at) values ($1, $2, $3, $4, $5, $6)"
        " on conflict (org, entity) do update set watermark = greatest(s.watermark, excluded.watermark), sync_type = excluded.sync_type,"
        " records = excluded.records, completed_at = excluded.completed_at",
        org, entity, newest, sync_type, records, at,
    )  # fmt: skip


async def draw(connection: Connection, credential: str, share: float) -> float:
    """Takes one request from a credential's budget. 0, or the seconds to wait before asking again."""
    row = await connection.fetchrow(
        "insert into sync.budgets as b (credential, used) values ($1, 1) on conflict (credential) do update"
        " set used = case when clock_timestamp() >= b.began + make_interval(secs => b.period) then 1 else b.used + 1 end,"
        " began = case when clock_timestamp() >= b.began + make_interval(secs => b.period) then clock_timestamp() else b.began end"
        " where b.used < greatest(floor(b.quota * $2::float8), 1) or clock_timestamp() >= b.began + make_interval(secs => b.period) returning used",
        credential,
        share,
    )
    if row is not None:
        return 0.0
    wait = await connection.fetchval(
        "select greatest(extract(epoch from began + make_interval(secs => period) - clock_timestamp()), 0.05)::float8"
        " from sync.budgets where credential = $1",
        credential,
    )
    return float(wait or 0.05)


async def correct(connection: Connection, credential: str, used: int, quota: int, period: float) -> None:
    """What the source says of the budget wins where it is stricter, or where it has changed."""
    await connection.execute(
        "update sync.budgets set used = greatest(used, $2), quota = $3, period = $4"
        " where credential = $1 and (used < $2 or quota <> $3 or period <> $4)",
        credential, used, quota, period,
    )  # fmt: skip
