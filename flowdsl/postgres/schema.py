"""The schema: numbered migrations that are never changed, and the functions, applied anew whenever their text changes."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import asyncpg

from flowdsl.errors import StoreError
from flowdsl.postgres.connection import Connection, connect, refused

FLOOR = 150000
_OURS = cast("Any", files("flowdsl.postgres"))
FUNCTIONS = "flowdsl/functions"


async def migrate(dsn: str, folders: Iterable[Path] = ()) -> list[str]:
    """Applies what is missing: our numbered files, our functions, then the files of each folder; each in one transaction, all under one lock.

    Gives the names of what was applied. Killed half way, the next call finishes; of several at once one runs and the others wait. A database
    that a newer flowdsl has migrated keeps its functions: they serve its older neighbours too.
    """
    connection = await connect(dsn)
    try:
        version = int(await connection.fetchval("show server_version_num"))
        if version < FLOOR:
            raise StoreError(f"PostgreSQL {version // 10000} is too old", "Use PostgreSQL 15 or newer")
        found = list(_numbered("flowdsl", _OURS / "migrations"))
        applied = [name for name, text in found if await _apply(connection, name, text)]
        if not await _newer(connection, {name for name, _ in found}) and await _apply(connection, FUNCTIONS, _functions(), again=True):
            applied.append(FUNCTIONS)
        for folder in folders:
            applied += [name for name, text in _numbered(folder.name, folder) if await _apply(connection, name, text)]
        await _keep_apart(connection)
        return applied
    except asyncpg.PostgresError as error:
        raise refused(dsn, error) from error
    finally:
        await connection.close()


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
    exists = await connection.fetchval("select to_regclass('flowdsl.migrations') is not null")
    known = {row["name"]: row["checksum"] for row in await connection.fetch("select * from flowdsl.migrations")} if exists else dict[str, str]()
    ours = [name for name, _ in _numbered("flowdsl", _OURS / "migrations")]
    missing = [name for name in ours if name not in known]
    if not missing and known.get(FUNCTIONS) != _checksum(_functions()) and not await _newer(connection, set(ours)):
        missing.append(FUNCTIONS)
    return missing


def newest_migration() -> str:
    """The last of our migrations that this code knows."""
    return max(name for name, _ in _numbered("flowdsl", _OURS / "migrations"))


def _numbered(owner: str, folder: Any) -> list[tuple[str, str]]:
    files = sorted((one for one in folder.iterdir() if one.name.endswith(".sql")), key=lambda one: str(one.name))
    return [(f"{owner}/{file.name}", file.read_text(encoding="utf-8")) for file in files]


def _functions() -> str:
    return "\n".join(text for _, text in _numbered("flowdsl", _OURS / "functions"))


def _checksum(text: str) -> str:
    return sha256(text.encode()).hexdigest()


async def _newer(connection: Connection, ours: set[str]) -> bool:
    """Whether a newer flowdsl was here: its migrations are numbered beyond ours."""
    names = await connection.fetch("select name from flowdsl.migrations where name ~ '^flowdsl/[0-9]{4}_'")
    newest = max(ours, default="")
    return any(row["name"] > newest and row["name"] not in ours for row in names)


async def _apply(connection: Connection, name: str, text: str, *, again: bool = False) -> bool:
    """Applies a file once; `again`: also whenever its text has changed."""
    checksum = _checksum(text)
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock(7162534241)")
        if await connection.fetchval("select to_regclass('flowdsl.migrations') is null"):  # who owns nothing finds that nothing is to do
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
