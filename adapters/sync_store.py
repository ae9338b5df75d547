"""Canonical rows in Postgres: what a sync writes, always a whole page in one statement, and the lists of work that it keeps there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import frozen


@frozen
class Record:
    """One row of the source, as the source wrote it."""

    id: str
    owner: str | None
    changed: datetime | None
    attributes: Mapping[str, Any]
    relationships: Mapping[str, Any]


@frozen
class Mark:
    """Whose rows are to be read again when a record has changed: those of `entity` under the record itself, or under its owner."""

    entity: str
    under_owner: bool


@frozen
class Counted:
    """`fresh`: met for the first time in this sync. `changed`: new, or other than what was here."""

    fresh: int
    changed: int


def dumped(value: Any) -> str:
    """JSON in ASCII: a NUL or half a surrogate pair stays an escape, so nothing of a string is lost."""
    return _JSON.encode(value)


_JSON = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"), sort_keys=True)

_PUT = """
with page as materialized (
  select * from unnest($4::text[], $5::text[], $6::timestamptz[], $7::text[], $8::text[]) as p (id, owner, changed, attributes, relationships)
), before as materialized (
  select b.* from page p cross join lateral (
    select r.id, r.changed, r.fetched_at, r.seen_at, r.deleted_at, r.owner, r.attributes::text as attributes, r.relationships::text as relationships
      from sync.records r where r.org = $1 and r.adapter = $2 and r.entity = $3 and r.id = p.id
    offset 0 -- row by row, by the key: in a first sync there are no statistics, and a join would read all of the entity for each page
  ) b
), put as (
  insert into sync.records as r (org, adapter, entity, id, owner, changed, attributes, relationships, fetched_at, seen_at)
  select $1, $2, $3, p.id, p.owner, p.changed, p.attributes::json, p.relationships::json, $9, $9 from page p order by p.id
  on conflict (org, adapter, entity, id) do update set
    (owner, changed, attributes, relationships, fetched_at, deleted_at, successor) = (
      select excluded.owner, excluded.changed, excluded.attributes, excluded.relationships, excluded.fetched_at, null, null
       where sync.newer(r.changed, r.fetched_at, r.deleted_at is not null, excluded.changed, excluded.fetched_at)
      union all
      select r.owner, r.changed, r.attributes, r.relationships, r.fetched_at, r.deleted_at, r.successor
       where not sync.newer(r.changed, r.fetched_at, r.deleted_at is not null, excluded.changed, excluded.fetched_at)),
    seen_at = greatest(r.seen_at, excluded.seen_at)
), fates as (
  select p.id, p.owner, p.changed as moved, b.id is null or b.seen_at < $10 as fresh,
         b.id is null or b.deleted_at is not null
           or (b.owner, b.changed, b.attributes, b.relationships) is distinct from (p.owner, p.changed, p.attributes, p.relationships) as changed,
         -- Times of change are whole seconds: what we read so soon after one may have changed again, and back, before its rows were read.
         coalesce(b.fetched_at < b.changed + interval '5 seconds', false) as unsettled
    from page p left join before b on b.id = p.id
), marks as (
  insert into sync.rereads (org, adapter, entity, owner, asked_at)
  select distinct $1, $2, m.entity, case when m.under_owner then f.owner else f.id end as owner, $9::timestamptz
    from fates f cross join unnest($11::text[], $12::bool[]) as m (entity, under_owner)
   where (f.changed or f.unsettled) and (not m.under_owner or (
     f.owner is not null and ($13::timestamptz is null or f.moved is null or f.moved >= $13) and exists (
       select from sync.records o
        where o.org = $1 and o.adapter = $2 and o.entity = $3 and o.owner = f.owner and o.id <> f.id and o.deleted_at is null)))
   order by m.entity, owner
  on conflict (org, adapter, entity, owner) do update set asked_at = greatest(rereads.asked_at, excluded.asked_at)
)
select count(*) filter (where fresh) as fresh, count(*) filter (where changed) as changed from fates
"""


@frozen
class Records:
    """The records of one entity, over one connection. Times are the database's, from before the request that brought the news."""

    connection: Any
    org: str
    adapter: str
    entity: str

    async def put(
        self,
        records: Sequence[Record],
        at: datetime,
        *,
        since: datetime,
        marks: Sequence[Mark] = (),
        moving_since: datetime | None = None,
    ) -> Counted:
        """Takes in what is newer, in one statement. `since`: when this sync began. Siblings are marked for rows changed from `moving_since` on."""
        rows = _each_once(records)
        found = await self.connection.fetchrow(
            _PUT, *self._place, [row.id for row in rows], [row.owner for row in rows], [row.changed for row in rows],
            [dumped(row.attributes) for row in rows], [dumped(row.relationships) for row in rows], at, since,
            [mark.entity for mark in marks], [mark.under_owner for mark in marks], moving_since,
        )  # fmt: skip
        return Counted(found["fresh"], found["changed"])

    async def bury(self, ids: Sequence[str], at: datetime) -> int:
        """These are gone, as of a request at that time. How many of them were here."""
        return await self._changed("deleted_at = $5, fetched_at = $5, seen_at = $5 where {} and id = any($4) and deleted_at is null"
                                   " and fetched_at <= $5", list(ids), at)  # fmt: skip

    async def bury_others(self, owners: Sequence[str], ids: Sequence[str], at: datetime) -> int:
        """Of these owners there are no rows but these."""
        return await self._others("deleted_at = $6, fetched_at = $6, seen_at = $6", owners, ids, at)

    async def doubt_others(self, owners: Sequence[str], ids: Sequence[str], at: datetime) -> int:
        """The other rows of these owners may have gone elsewhere, or away."""
        return await self._others("seen_at = '-infinity'", owners, ids, at)

    async def _others(self, change: str, owners: Sequence[str], ids: Sequence[str], at: datetime) -> int:
        """Most often there are none, so they are looked for first."""
        found = await self.connection.fetch(_OTHERS, *self._place, list(owners), list(ids), at)
        if not found:
            return 0
        return await self._changed(f"{change} where {{}} and id = any($4) and owner = any($5) and deleted_at is null and fetched_at < $6",
                                   [row["id"] for row in found], list(owners), at)  # fmt: skip

    async def in_doubt(self, owner_entity: str | None, since: datetime, limit: int, *, unseen: bool) -> list[str]:
        """Rows that may be gone: in doubt, or of an owner that is gone, and with `unseen` all that this sync has not met."""
        rows = await self.connection.fetch(
            "select r.id from sync.records r where r.org = $1 and r.adapter = $2 and r.entity = $3 and r.deleted_at is null and r.seen_at < $5"
            " and ($7::bool or r.seen_at = '-infinity' or exists (select from sync.records o where o.org = $1 and o.adapter = $2 and o.entity = $4"
            " and o.id = r.owner and o.deleted_at is not null)) order by r.id limit $6",
            *self._place, owner_entity, since, limit, unseen,
        )  # fmt: skip
        return [row["id"] for row in rows]

    async def merge(self, removed: Sequence[str], kept: Sequence[str], at: datetime) -> int:
        """Rows that were merged away. Links to them point at what they became."""
        await self.connection.execute(
            "insert into sync.links select l.org, l.adapter, l.entity, l.id, l.relationship, l.target, m.kept from sync.links l"
            " join unnest($4::text[], $5::text[]) as m (removed, kept) on m.removed = l.target_id"
            " where l.org = $1 and l.adapter = $2 and l.target = $3 on conflict do nothing",
            *self._place, list(removed), list(kept),
        )  # fmt: skip
        await self.connection.execute(
            "delete from sync.links where org = $1 and adapter = $2 and target = $3 and target_id = any($4)", *self._place, list(removed)
        )
        await self.connection.execute(
            "update sync.records r set successor = m.kept from unnest($4::text[], $5::text[]) as m (removed, kept)"
            " where r.org = $1 and r.adapter = $2 and r.entity = $3 and r.id = m.removed",
            *self._place, list(removed), list(kept),
        )  # fmt: skip
        return await self.bury(removed, at)

    async def live(self) -> int:
        """How many there are."""
        query = "select count(*) from sync.records where org = $1 and adapter = $2 and entity = $3 and deleted_at is null"
        return int(await self.connection.fetchval(query, *self._place))

    async def link(self, relationship: str, target: str) -> tuple[int, int]:
        """Fills in a relationship from what its rows say: how many links there are, and how many references lead nowhere."""
        row = await self.connection.fetchrow(_LINK, *self._place, relationship, target)
        return row["links"], row["dangling"]

    # What is to be read again

    async def ask(self, owners: Sequence[str], at: datetime) -> None:
        """Rows of these owners are to be read again."""
        await self.connection.execute(_ASK + "select $1, $2, $3, o, $5 from unnest($4::text[]) o order by o" + _AGAIN, *self._place, list(owners), at)

    async def ask_all(self, owner_entity: str, at: datetime) -> None:
        """Rows of every owner that is here are to be read again."""
        await self._ask_where(owner_entity, at, "o.deleted_at is null")

    async def ask_bereft(self, owner_entity: str, at: datetime) -> None:
        """The same for every owner that is gone and has left rows."""
        await self._ask_where(owner_entity, at, "o.deleted_at is not null and exists (select from sync.records r where {} and r.deleted_at is null)")

    async def ask_differing(self, owner_entity: str, at: datetime, *, owner_says: str, rows_say: str) -> None:
        """The same for every owner that names others than its rows do, or does not say."""
        told = "o.relationships -> $6::text"
        theirs = f"array(select e ->> 'id' from json_array_elements({told}) e order by 1)"
        ours = "array(select r.relationships -> $7::text ->> 'id' from sync.records r where {} and r.deleted_at is null order by 1)"
        differs = f"case when json_typeof({told}) = 'array' then {theirs} is distinct from {ours} else true end"
        await self._ask_where(owner_entity, at, f"o.deleted_at is null and {differs}", owner_says, rows_say)

    async def _ask_where(self, owner_entity: str, at: datetime, condition: str, *arguments: str) -> None:
        """In the condition, `o` is the owner and `{}` stands for what makes `r` a row of it."""
        theirs = "r.org = $1 and r.adapter = $2 and r.entity = $3 and r.owner = o.id"
        query = "select $1, $2, $3, o.id, $5 from sync.records o where o.org = $1 and o.adapter = $2 and o.entity = $4 and "
        await self.connection.execute(
            _ASK + query + condition.replace("{}", theirs) + " order by o.id" + _AGAIN, *self._place, owner_entity, at, *arguments
        )

    async def asked(self, limit: int) -> list[str]:
        """Owners whose rows are to be read again, those first that have waited longest."""
        query = "select owner from sync.rereads where org = $1 and adapter = $2 and entity = $3 order by asked_at, owner limit $4"
        return [row["owner"] for row in await self.connection.fetch(query, *self._place, limit)]

    async def answered(self, owners: Sequence[str], at: datetime) -> None:
        """These have been read by requests at that time."""
        query = "delete from sync.rereads where org = $1 and adapter = $2 and entity = $3 and owner = any($4) and asked_at <= $5"
        await self.connection.execute(query, *self._place, list(owners), at)

    @property
    def _place(self) -> tuple[str, str, str]:
        return (self.org, self.adapter, self.entity)

    async def _changed(self, change: str, *arguments: Any) -> int:
        query = "update sync.records set " + change.format("org = $1 and adapter = $2 and entity = $3")
        return int((await self.connection.execute(query, *self._place, *arguments)).split()[-1])


_OTHERS = """
select r.id from unnest($4::text[]) as o (owner) cross join lateral (
  select id from sync.records
   where org = $1 and adapter = $2 and entity = $3 and owner = o.owner and deleted_at is null and id <> all($5) and fetched_at < $6
  offset 0 -- owner by owner, as in _PUT
) r
"""
_ASK = "insert into sync.rereads (org, adapter, entity, owner, asked_at) "
_AGAIN = " on conflict (org, adapter, entity, owner) do update set asked_at = greatest(rereads.asked_at, excluded.asked_at)"

_LINK = """
with wanted as materialized (
  select distinct r.id, reference ->> 'id' as target_id
    from sync.records r
    cross join lateral (select r.relationships -> $4::text as value) one
    cross join lateral json_array_elements(
      case json_typeof(one.value) when 'array' then one.value when 'object' then json_build_array(one.value) else '[]' end) as reference
   where r.org = $1 and r.adapter = $2 and r.entity = $3 and r.deleted_at is null
), there as (
  select w.id, w.target_id from wanted w
    join sync.records t on t.org = $1 and t.adapter = $2 and t.entity = $5 and t.id = w.target_id and t.deleted_at is null
), dropped as (
  delete from sync.links l where l.org = $1 and l.adapter = $2 and l.entity = $3 and l.relationship = $4
     and not exists (select from there w where w.id = l.id and w.target_id = l.target_id)
), made as (
  insert into sync.links (org, adapter, entity, id, relationship, target, target_id)
  select $1, $2, $3, w.id, $4, $5, w.target_id from there w order by w.id, w.target_id on conflict do nothing
)
select (select count(*) from there) as links, (select count(*) from wanted) - (select count(*) from there) as dangling
"""


def _each_once(records: Sequence[Record]) -> list[Record]:
    """A page that repeats a row has it once, in its newest form: one statement cannot write a row twice."""
    kept: dict[str, Record] = {}
    for record in records:
        other = kept.get(record.id)
        if other is None or other.changed is None or record.changed is None or record.changed >= other.changed:
            kept[record.id] = record
    return list(kept.values())
