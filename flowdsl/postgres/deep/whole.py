"""Invariants of tables as wholes: keys, what belongs to nobody, deliveries, schedules, tenants, the audit."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from flowdsl.postgres.audit import Anchor, tenants, verify
from flowdsl.postgres.deep.rows import Finding
from flowdsl.postgres.store import Connection

UNIQUE = {
    "executions": ("id", "tenant, workflow, scope, key"),
    "journal": ("execution, position",),
    "mailbox": ("execution, seq",),
    "deliveries": ("scope, delivery",),
    "aliases": ("tenant, name, key",),
    "audit": ("id", "tenant, seq", "tenant, prev"),
    "schedules": ("id",),
    "firings": ("schedule, instant",),
}
"""Where the same thing cannot be stored twice: what makes a twin harmless hangs on these."""

Findings = AsyncGenerator[Finding]

MOST = 20
"""Findings of one kind that are told."""


async def i1_unique_indexes(connection: Connection, limit: int) -> Findings:
    """The unique indexes are there and valid."""
    rows = await connection.fetch(
        """
        select c.relname as name, (select string_agg(a.attname, ', ' order by k.n) from unnest(i.indkey::smallint[]) with ordinality k(attnum, n)
                                     join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum) as columns
          from pg_index i join pg_class c on c.oid = i.indrelid join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = 'flowdsl' and i.indisunique and i.indisvalid and i.indisready and i.indislive
        """
    )
    there = {(row["name"], row["columns"]) for row in rows}
    for table, keys in UNIQUE.items():
        for columns in keys:
            if (table, columns) not in there:
                yield Finding(
                    1,
                    None,
                    f"flowdsl.{table} has no valid unique index on ({columns})",
                    "Recreate it as in the migrations; first remove what is twice",
                )


async def i13_deliveries_have_an_effect(connection: Connection, limit: int) -> Findings:
    """What was delivered to an execution by its id was counted as its mail; what came for a key that nobody has waits under it."""
    for row in await _sampled(connection, "deliveries", limit, _UNCOUNTED):
        yield Finding(
            13, str(row["id"]), f"{row['n']} deliveries were accepted for it, and its mail counts {row['mail']}", "Send again what it waits for"
        )
    for row in await _sampled(connection, "aliases", limit, _UNKEPT):
        found = f"signal {row['name']} for key {row['key']!r} (delivery {row['delivery']!r}) was accepted, and is neither kept nor delivered"
        yield Finding(13, None, found, "Send it again under another delivery id")


_UNCOUNTED = """
with part as (select scope from flowdsl.deliveries tablesample system ($1) limit $2),
     counted as (select scope, flowdsl.as_id(right(scope, 36)) as id, count(*) as n from part group by 1)
select x.id, x.mail, sum(c.n)::int as n from counted c
 cross join lateral (select e.id, e.mail, e.tenant from flowdsl.executions e where e.id = c.id offset 0) x
 where starts_with(c.scope, x.tenant || '/') group by 1, 2 having sum(c.n) > x.mail
"""

_UNKEPT = """
with part as (select * from flowdsl.aliases tablesample system ($1) where execution is null limit $2)
select a.tenant, a.name, a.key, d.delivery from part a
 cross join lateral (
   select * from flowdsl.deliveries e
    where e.scope = a.tenant || '/' || a.name || '/' || a.key and e.at > clock_timestamp() - interval '7 days' offset 0) d
 where not exists (
   select 1 from flowdsl.unmatched u where u.tenant = a.tenant and u.name = a.name and u.key = a.key and u.delivery = d.delivery)
"""


async def i14_nothing_without_its_execution(connection: Connection, limit: int) -> Findings:
    """Entries and mail belong to an execution that is there."""
    for table, number, query in (("journal", 6, _ENTRIES_OF_NOBODY), ("mailbox", 14, _MAIL_OF_NOBODY)):
        for row in await _sampled(connection, table, limit, query):
            found = f"{row['n']} rows of flowdsl.{table} are of an execution that is not there"
            yield Finding(number, str(row["execution"]), found, "Restore the execution from a backup, or delete them")


_ENTRIES_OF_NOBODY = """
with part as (select execution, count(*) as n from (select execution from flowdsl.journal tablesample system ($1) limit $2) j group by 1)
select p.* from part p left join lateral (select true as there from flowdsl.executions x where x.id = p.execution offset 0) x on true
 where x.there is null
"""

_MAIL_OF_NOBODY = """
with part as (select execution, count(*) as n from (select execution from flowdsl.mailbox tablesample system ($1) limit $2) j group by 1)
select p.* from part p left join lateral (select true as there from flowdsl.executions x where x.id = p.execution offset 0) x on true
 where x.there is null
"""


async def i15_schedules_are_due(connection: Connection, limit: int) -> Findings:
    """A schedule that is not paused has a due time, and what it fired it started."""
    rows = await connection.fetch(
        "select id from flowdsl.schedules where in_code and not paused and (due is null or upcoming is null) and problem is null limit $1", limit
    )
    for row in rows:
        yield Finding(
            15, None, f"schedule {row['id']!r} has no due time: it will never fire again", "Pause and resume it, so that it is planned anew"
        )
    rows = await connection.fetch("select schedule, instant from flowdsl.firings where outcome = 'started' and execution is null limit $1", limit)
    for row in rows:
        found = f"schedule {row['schedule']!r} fired for {row['instant'].isoformat()}, and names no execution"
        yield Finding(15, None, found, "Backfill that instant")


async def i19_one_tenant(connection: Connection, limit: int) -> Findings:
    """What refers to an execution is of its tenant."""
    for table, query in _STRANGERS.items():
        for row in await _sampled(connection, table, limit, query):
            found = f"{row['n']} rows of flowdsl.{table} that name it are not of its tenant {row['tenant']!r}, but of {row['other']!r}"
            yield Finding(19, str(row["id"]), found, "Find out who wrote them, before anything else is shown to that tenant")


# `offset 0` keeps each look at an execution one by its id: what was sampled is never joined with all of them.
_STRANGERS = {
    "aliases": """
        with part as (select tenant, execution from flowdsl.aliases tablesample system ($1) limit $2)
        select x.id, x.tenant, p.tenant as other, count(*) as n from part p
         cross join lateral (select e.id, e.tenant from flowdsl.executions e where e.id = p.execution offset 0) x
         where p.tenant <> x.tenant group by 1, 2, 3""",
    "audit": """
        with part as (select tenant, execution from flowdsl.audit tablesample system ($1) limit $2)
        select x.id, x.tenant, p.tenant as other, count(*) as n from part p
         cross join lateral (select e.id, e.tenant from flowdsl.executions e where e.id = p.execution offset 0) x
         where p.tenant <> x.tenant group by 1, 2, 3""",
    "deliveries": """
        with part as (select scope from flowdsl.deliveries tablesample system ($1) limit $2),
             strangers as materialized (
               select x.id, x.tenant, p.scope from part p
                cross join lateral (select e.id, e.tenant from flowdsl.executions e where e.id = flowdsl.as_id(right(p.scope, 36)) offset 0) x
                where not starts_with(p.scope, x.tenant || '/'))
        select s.id, s.tenant, split_part(s.scope, '/', 1) as other, count(*) as n from strangers s
         -- to a correlation key that reads like an id is nobody's mail: it left an alias
         where not exists (select 1 from flowdsl.aliases a where a.tenant || '/' || a.name || '/' || a.key = s.scope) group by 1, 2, 3""",
}


async def i20_audited(connection: Connection, limit: int) -> Findings:
    """Interventions, blocks, and the starts and ends that are asked for have their rows."""
    for what, query in _UNAUDITED.items():
        for row in await connection.fetch(query, limit):
            yield Finding(
                20,
                str(row["id"]),
                f"{what} has no row in the audit",
                "Somebody changed it past flowdsl, or took the row out: see `flowdsl audit verify`",
            )


_UNAUDITED = {
    "an intervention of a person": """
        select x.id from (select * from flowdsl.executions order by started desc limit $1) x
         cross join lateral (select count(*) as n from flowdsl.journal j where j.execution = x.id and j.kind = 9 and j.epoch > 0 offset 0) j
         where j.n > (select count(*) from flowdsl.audit a where a.execution = x.id)
           and not exists (select 1 from flowdsl.audit a where a.execution = x.id and a.event = 'IMPORTED' offset 0) limit 20""",
    "that it is blocked": """
        select x.id from (select * from flowdsl.executions where status = 'blocked' and discarded is null order by started desc limit $1) x
         where x.started > (select at from flowdsl.migrations where name = 'flowdsl/0006_audit.sql')
           and not exists (select 1 from flowdsl.audit a where a.execution = x.id and a.event in ('BLOCKED', 'IMPORTED', 'FORKED')) limit 20""",
    "its start": """
        select x.id from (select * from flowdsl.executions order by started desc limit $1) x
          join flowdsl.audited_workflows w on w.workflow in (x.workflow, '*') and x.started > w.since
         where not exists (select 1 from flowdsl.audit a where a.execution = x.id and a.event in ('STARTED', 'IMPORTED', 'FORKED')) limit 20""",
    "its end": """
        select x.id from (select * from flowdsl.executions order by started desc limit $1) x
          join flowdsl.audited_workflows w on w.workflow in (x.workflow, '*') and x.ended > w.since
         where x.status in ('succeeded', 'failed', 'cancelled')
           and not exists (select 1 from flowdsl.audit a where a.execution = x.id and a.event in ('ENDED', 'IMPORTED')) limit 20""",
}


async def i20_chains(connection: Connection, limit: int) -> Findings:
    """Each tenant's chain is whole, as far back as the limit goes."""
    for tenant in await tenants(connection):
        since = await connection.fetchrow(
            "select a.seq, a.hash from flowdsl.audit a, flowdsl.audit_heads h where h.tenant = $1 and a.tenant = $1 and a.seq = h.seq - $2",
            tenant,
            limit,
        )
        verdict = await verify(connection, tenant, since=None if since is None else Anchor(tenant, since["seq"], since["hash"], ""))
        for what in verdict.wrong:
            yield Finding(20, None, f"audit of {tenant!r}: {what}", "See docs/how-to/audit.md")


async def _sampled(connection: Connection, table: str, limit: int, query: str) -> list[Any]:
    """The rows that a query finds in all of a table, or in as many pages of it as hold about that many rows."""
    rows = float(await connection.fetchval("select greatest(reltuples, 0) from pg_class where oid = to_regclass($1)", f"flowdsl.{table}"))
    return list(await connection.fetch(query, min(100.0, 100.0 * limit / max(rows, 1.0)), limit))[:MOST]


CHECKS: tuple[Any, ...] = (
    i1_unique_indexes,
    i13_deliveries_have_an_effect,
    i14_nothing_without_its_execution,
    i15_schedules_are_due,
    i19_one_tenant,
    i20_audited,
)
