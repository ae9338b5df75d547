"""A store that has been in use for a month: finished executions with their journals, made in SQL as fast as Postgres writes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from flowdsl.postgres.schema import migrate
from tests.bench.servers import named, said, scratch
from tests.bench.subject import FILLER

CHUNK = 50_000

# Ids are in the order of time, as real ones are. Of ten executions six are one tenant's, one is a child, two have a key; of a hundred two failed.
_FINISHED = """
with begun as (
  select n, date_trunc('milliseconds', clock_timestamp() - interval '30 days' + n * (interval '29 days' / $3::float8)) as at
    from generate_series($1::bigint, $2::bigint) n),
named as (
  select n, at, (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || substr(md5(n::text), 1, 20))::uuid as id from begun),
made as (
  insert into flowdsl.executions
    (id, tenant, workflow, version, key, status, epoch, parent, parent_step, request, exit, cause, started, ended, discarded)
  select id, case when n % 2 = 0 or n % 10 = 3 then 'default' else 'tenant-' || n % 19 end,
         case when n % 3 = 0 then 'bench.sequence' else 'made.' || n % 7 end, 1,
         case when n % 5 = 0 then 'key-' || n end,
         case when n % 100 in (7, 57) then 'failed' when n % 100 = 31 then 'cancelled' else 'succeeded' end, 1,
         case when n % 10 = 3 then lag(id) over (order by n) end, case when n % 10 = 3 then '0' else '' end, '10',
         convert_to(case when n % 100 in (7, 57) then '{"failure":{"Refused":{"why":"no"}}}'
                         when n % 100 = 31 then '{"cancelled":{"reason":"asked to"}}' else '{"success":10}' end, 'UTF8'),
         case when n % 100 in (7, 57) then 'Refused(why=no)' end, at, at + interval '3 seconds', case when n % 100 = 7 then at + interval '1 day' end
    from named order by n
  returning id, started)
insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body)
select id, p, 1, 1, started + p * interval '250 milliseconds', p::text, 'perform bench.note ' || substr(md5(p::text), 1, 16),
       'sequence subject.py:40', convert_to('{"i":' || p || ',"ok":true,"data":"' || $4::text || '"}', 'UTF8')
  from made cross join generate_series(0, $5::integer - 1) s(p) order by made.id, s.p
"""

# Half wait for a signal for ever, half for a time that is far off.
_SUSPENDED = """
insert into flowdsl.executions (id, tenant, workflow, version, status, epoch, wake, request, started)
select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || substr(md5('waits' || n), 1, 20))::uuid,
       case when n % 4 < 2 then 'default' else 'tenant-' || n % 19 end, 'made.waiting', 1, 'suspended', 1,
       case when n % 2 = 0 then clock_timestamp() + interval '1 day' + n * interval '1 second' end, '1', at
  from (select n, clock_timestamp() - interval '40 days' + n * interval '1 millisecond' as at from generate_series(1, $1::bigint) n) begun
"""


async def fill(connection: Any, finished: int, *, steps: int = 10, suspended: int = 0) -> None:
    """So many finished executions with journals of `steps` rows, begun over the last month, and so many that are suspended."""
    for low in range(1, finished + 1, CHUNK):
        high = min(finished, low + CHUNK - 1)
        await connection.execute(_FINISHED, low, high, float(finished), FILLER, steps, timeout=600)
    if suspended:
        await connection.execute(_SUSPENDED, suspended, timeout=600)


@asynccontextmanager
async def database(url: str, kind: str, finished: int = 0, suspended: int = 0) -> AsyncGenerator[tuple[str, Any]]:
    """A migrated database with so much in it, and a connection that watches."""
    async with scratch(url, kind) as dsn, _filled(dsn, finished, 10, suspended) as watcher:
        yield dsn, watcher


@asynccontextmanager
async def kept(url: str, finished: int, steps: int) -> AsyncGenerator[tuple[str, Any]]:
    """The same, which stays: made once, and again if it was not made to the end."""
    name = f"flowdsl_bench_kept_{finished}_{steps}"
    connection = await asyncpg.connect(url)
    try:
        done = await connection.fetchval("select shobj_description(oid, 'pg_database') from pg_database where datname = $1", name)
    finally:
        await connection.close()
    if done != "filled":
        await said(url, f"drop database if exists {name} with (force)")
        await said(url, f"create database {name}")
    async with _filled(named(url, name), 0 if done == "filled" else finished, steps, 0) as watcher:
        await watcher.execute(f"comment on database {name} is 'filled'")
        yield named(url, name), watcher


@asynccontextmanager
async def _filled(dsn: str, finished: int, steps: int, suspended: int) -> AsyncGenerator[Any]:
    await migrate(dsn)
    watcher = await asyncpg.connect(dsn)
    try:
        await fill(watcher, finished, steps=steps, suspended=suspended)
        await watcher.execute("vacuum analyze", timeout=3600)
        await watcher.execute("checkpoint", timeout=600)  # else the checkpoint of the filling is measured
        yield watcher
    finally:
        await watcher.close()
