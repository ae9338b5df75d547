"""What a stretch of WAL is made of, by table, with pg_walinspect, which comes with Postgres and takes a superuser; and what flushing it took."""

from __future__ import annotations

from typing import Any

import asyncpg

# A record counts once, with its first block; those without a block are commits and what the server does for itself. What is left of the stretch is
# alignment and page headers.
_KINDS = """
with asked as (select $1::text::pg_lsn as since, $2::text::pg_lsn as until),
blocks as (
  select relfilenode, record_length - coalesce(block_fpi_length, 0) as plain, coalesce(block_fpi_length, 0) as image
    from asked, pg_get_wal_block_info(since, until) where block_id = 0),
named as (
  select case c.relkind when 'i' then 'index ' || c.relname when 't' then 'toast' when 'r' then c.relname else 'others' end as place, plain, image
    from blocks left join pg_class c on pg_relation_filenode(c.oid) = blocks.relfilenode
     and c.relnamespace in ('flowdsl'::regnamespace, 'pg_toast'::regnamespace)),
found as (
  select place as what, plain as bytes from named
  union all select 'page images after a checkpoint', image from named where image > 0
  union all select 'commits', record_size from asked, pg_get_wal_stats(since, until, true) where "resource_manager/record_type" like 'Transaction/%')
select what, sum(bytes)::bigint as bytes from found group by what order by 2 desc
"""


_NOT_HERE = (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFileError, asyncpg.FeatureNotSupportedError)


async def position(connection: Any) -> Any:
    return await connection.fetchval("select pg_current_wal_insert_lsn()::text")


async def by_kind(connection: Any, begin: str, end: str) -> dict[str, int] | None:
    """Bytes between two positions; None where the server does not let us look."""
    try:
        await connection.execute("create extension if not exists pg_walinspect")
        rows = await connection.fetch(_KINDS, begin, end, timeout=120)
        all = await connection.fetchval("select ($2::text::pg_lsn - $1::text::pg_lsn)::bigint", begin, end)
    except _NOT_HERE:
        return None
    found = {row["what"]: int(row["bytes"]) for row in rows}
    return found | {"alignment and page headers": max(0, int(all) - sum(found.values()))}


async def flushes(connection: Any) -> tuple[int, float]:
    """How many the server has done, and the seconds they took; those are counted where it times them, and told when a session has ended."""
    if connection.get_server_version().major >= 18:
        query = "select sum(fsyncs), sum(fsync_time) from pg_stat_io where object = 'wal'"
    else:
        query = "select wal_sync, wal_sync_time from pg_stat_wal"
    number, took = await connection.fetchrow(query)
    return int(number or 0), float(took or 0) / 1e3
