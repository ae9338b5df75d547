"""The schema: numbered migrations that are never changed, and the functions, applied anew whenever their text changes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

import asyncpg

from flowdsl.errors import StoreError
from flowdsl.postgres.connection import Connection, connect, refused

_Texts: TypeAlias = list[tuple[str, str]]
FLOOR = 150000
_OURS = Path(__file__).parent
FUNCTIONS = "flowdsl/functions"


async def migrate(dsn: str, folders: Iterable[Path] = ()) -> list[str]:
    """Applies what is missing: our numbered files, our functions, then the files of each folder; each in one transaction, all under one lock.

    Gives the names of what was applied. Killed half way, the next call finishes; of several at once one runs and the others wait. A database
    that a newer flowdsl has migrated keeps its functions: they serve its older neighbours too.
    """
    ours = _numbered("flowdsl", _OURS / "migrations")
    theirs = [one for folder in folders for one in _numbered(folder.name, folder)]
    connection = await connect(dsn)
    try:
        version = int(await connection.fetchval("show server_version_num"))
        if version < FLOOR:
            raise StoreError(f"PostgreSQL {version // 10000} is too old", "Use PostgreSQL 15 or newer")
        applied = [] if await _has_all(connection, ours, theirs) else await _applied(connection, ours, theirs)
        await _keep_apart(connection)
        return applied
    except asyncpg.PostgresError as error:
        raise refused(dsn, error) from error
    finally:
        await connection.close()


async def _has_all(connection: Connection, ours: _Texts, theirs: _Texts) -> bool:
    """Whether nothing is to be applied, as most processes find at their start; seen without the lock, since what was applied stays."""
    known = await _known(connection)
    functions = [] if _newer(known, ours) else [(FUNCTIONS, _functions())]
    return all(known.get(name) == _checksum(text) for name, text in (*ours, *functions, *theirs))


async def _applied(connection: Connection, ours: _Texts, theirs: _Texts) -> list[str]:
    found = [name for name, text in ours if await _apply(connection, name, text)]
    if not _newer(await _known(connection), ours) and await _apply(connection, FUNCTIONS, _functions(), again=True):
        found.append(FUNCTIONS)
    return found + [name for name, text in theirs if await _apply(connection, name, text)]


async def _keep_apart(connection: Connection) -> None:
    """Gives each table of tenants' rows its policy, and makes the role for which these hold. What this user may not do, or cannot do now because
    somebody is long at work on a table, is left for the next time: `flowdsl doctor` says so."""
    if await connection.fetchval("select flowdsl.not_apart()") is None:
        return
    try:
        for row in await connection.fetch("select name from flowdsl.tenant_tables() where not guarded"):
            await connection.execute("select flowdsl.guard($1)", row["name"])  # each for itself: it waits for who works on that table
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock(7162534241)")
            await connection.execute("select flowdsl.make_tenant_role()")
    except (asyncpg.InsufficientPrivilegeError, asyncpg.LockNotAvailableError):
        return


async def pending_migrations(connection: Connection) -> list[str]:
    """The names of our migrations that this database lacks."""
    known, ours = await _known(connection), _numbered("flowdsl", _OURS / "migrations")
    missing = [name for name, _ in ours if name not in known]
    if not missing and known.get(FUNCTIONS) != _checksum(_functions()) and not _newer(known, ours):
        missing.append(FUNCTIONS)
    return missing


async def _known(connection: Connection) -> dict[str, str]:
    """What was applied here: names and checksums."""
    exists = await connection.fetchval("select to_regclass('flowdsl.migrations') is not null")
    return {row["name"]: row["checksum"] for row in await connection.fetch("select * from flowdsl.migrations")} if exists else {}


def newest_migration() -> str:
    """The last of our migrations that this code knows."""
    return max(f"flowdsl/{file.name}" for file in (_OURS / "migrations").glob("*.sql"))


def _numbered(owner: str, folder: Path) -> _Texts:
    files = sorted((one for one in folder.iterdir() if one.name.endswith(".sql")), key=lambda one: one.name)
    return [(f"{owner}/{file.name}", file.read_text(encoding="utf-8")) for file in files]


def _functions() -> str:
    return "\n".join(text for _, text in _numbered("flowdsl", _OURS / "functions"))


def _checksum(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _newer(known: Iterable[str], ours: _Texts) -> bool:
    """Whether a newer flowdsl was here: its migrations are numbered beyond ours."""
    newest = max((name for name, _ in ours), default="")
    return any(name > newest for name in known if re.match(r"flowdsl/\d{4}_", name))


async def _apply(connection: Connection, name: str, text: str, *, again: bool = False) -> bool:
    """Applies a file once; `again`: also whenever its text has changed."""
    checksum = _checksum(text)
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock(7162534241)")
        # Read from the table: what a session knows of names may be from before it waited. Who owns nothing finds that nothing is to do.
        if not await connection.fetchval("select exists (select from pg_tables where schemaname = 'flowdsl' and tablename = 'migrations')"):
            await connection.execute("create schema if not exists flowdsl")
            await connection.execute(
                "create table flowdsl.migrations (name text primary key, checksum text not null, at timestamptz not null default clock_timestamp())"
            )
        known = await connection.fetchval("select checksum from flowdsl.migrations where name = $1", name)
        if known is not None and known != checksum and not again:
            raise StoreError(f"migration {name} was changed after it was applied here", "Put the file back, and add a new one instead")
        if known == checksum:
            return False
        await connection.execute(text)
        await connection.execute(
            "insert into flowdsl.migrations (name, checksum) values ($1, $2)"
            " on conflict (name) do update set checksum = excluded.checksum, at = clock_timestamp()",
            name,
            checksum,
        )
        return True


__all__ = ["FLOOR", "FUNCTIONS", "migrate", "newest_migration", "pending_migrations"]
