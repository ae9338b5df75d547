"""Which server a connection leads to: whether it keeps what it acknowledges, whether we know its schema, whether it is still the one we knew."""

from __future__ import annotations

import os

import asyncpg
from attrs import frozen

from flowdsl.errors import StoreError
from flowdsl.postgres.connection import Connection
from flowdsl.postgres.schema import FLOOR, FUNCTIONS, newest_migration, pending_migrations

_DURABLE = ("fsync", "full_page_writes", "synchronous_commit")

# The timeline of the file that is written now: the control file tells a promotion only at its next checkpoint.
_WHERE = """
select current_setting('server_version_num')::int as version, pg_is_in_recovery() as standby,
       case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) end as timeline,
       case when not pg_is_in_recovery() then pg_current_wal_flush_lsn() - '0/0'::pg_lsn end as written
"""
_SYSTEM = "select system_identifier from pg_control_system()"
_KNOWS = "select to_regprocedure('flowdsl.needs()') is not null"


@frozen
class Server:
    """The server behind a connection, as far as it tells. `written`: how far its log is on disk; that never runs back while nothing is lost."""

    version: int
    system: int | None
    timeline: str | None
    written: int

    def lost_since(self, before: Server) -> str | None:
        """Why this is not the server that we knew, with all that it had acknowledged; None when it is."""
        if self.system != before.system:
            return f"another cluster answers: {self.system} instead of {before.system}"
        if self.timeline != before.timeline:
            return f"a standby was promoted, or a backup restored: timeline {self.timeline} instead of {before.timeline}"
        if self.written < before.written:
            return f"it has gone back in time: its log ends at {self.written}, and was at {before.written} before"
        return None


class Standby(StoreError):
    """A standby answers: for a while, until it is promoted or the primary is back."""

    def __init__(self) -> None:
        super().__init__("this server is a standby", "Point FLOWDSL_DATABASE_URL at the primary")


async def server_of(connection: Connection) -> Server:
    """Raises `Standby`, and `StoreError` for a server that is too old."""
    row = await connection.fetchrow(_WHERE)
    if row["version"] < FLOOR:
        raise StoreError(f"PostgreSQL {row['version'] // 10000} is too old", "Use PostgreSQL 15 or newer")
    if row["standby"]:
        raise Standby()
    try:
        system = await connection.fetchval(_SYSTEM)
    except asyncpg.InsufficientPrivilegeError:
        system = None
    return Server(row["version"], system, row["timeline"], int(row["written"]))


def unsafe_allowed() -> bool:
    """Whether FLOWDSL_UNSAFE says that acknowledged work may be lost: for tests and trials."""
    return os.environ.get("FLOWDSL_UNSAFE", "").lower() in ("1", "true", "yes", "on")


async def loose_settings(connection: Connection) -> list[str]:
    """Settings with which a crash of the server loses what it has acknowledged."""
    rows = await connection.fetch("select name from pg_settings where name = any($1::text[]) and setting = 'off' order by name", list(_DURABLE))
    return [row["name"] for row in rows]


async def check_settings(connection: Connection, *, unsafe: bool = False) -> None:
    """Raises `StoreError` for a server that may lose what it acknowledges, unless that was allowed."""
    loose = await loose_settings(connection)
    if loose and not (unsafe or unsafe_allowed()):
        raise StoreError(
            f"{', '.join(loose)} {'is' if len(loose) == 1 else 'are'} off: a crash of the server loses what was acknowledged",
            "Switch it on, or allow it with FLOWDSL_UNSAFE=1, for tests and trials only",
        )


async def check_schema(connection: Connection) -> None:
    """Raises `StoreError` where tables are missing, or where a newer flowdsl has changed what this one cannot know."""
    needs = await connection.fetchval("select flowdsl.needs()") if await connection.fetchval(_KNOWS) else None
    problem = beyond(needs)
    if problem is not None:
        raise StoreError(problem, "Update flowdsl here")
    missing = [name for name in await pending_migrations(connection) if name != FUNCTIONS]  # a neighbour may have brought newer ones
    if missing:
        what = "has no flowdsl tables" if missing[0].startswith("flowdsl/0001") else f"lacks {', '.join(missing)}"
        raise StoreError(f"this database {what}", "Run `flowdsl migrate`")


def beyond(needs: str | None) -> str | None:
    """What is wrong when the store needs code that knows this migration; None when this code does."""
    if needs is None or needs <= newest_migration():
        return None
    return f"this database was migrated by a newer flowdsl: it needs one that knows {needs}, and this one ends at {newest_migration()}"
