"""A look at a live store: what it is, and what is wrong with it. Nothing here reads a table as a whole but the counts, and those give up early."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import asyncpg

from flowdsl.postgres.encryption import is_encrypted
from flowdsl.postgres.schema import FLOOR, pending_migrations
from flowdsl.postgres.store import Connection

OVERDUE = 60.0
"""Seconds that something may be due before that is a problem."""
LONG = 60.0
"""Seconds that a transaction may be open."""
AGE = 1_500_000_000
"""Transactions after which the server must be vacuumed; at about two thousand million it refuses to write."""
FREE = 0.05
"""The part of the disk that should be free."""


async def examine(connection: Connection) -> tuple[dict[str, Any], list[str]]:
    """Facts, and problems in words that say what to do."""
    facts: dict[str, Any] = {}
    problems: list[str] = []
    parts = list(_SERVER)
    missing = await pending_migrations(connection)
    parts += [] if missing else _STORE
    for part in parts:
        try:
            async with connection.transaction(readonly=True):
                await connection.execute("set local statement_timeout = '5s'")
                found = [one async for one in part(connection)]
            problems += [one for one in found if isinstance(one, str)]
            facts |= dict(one for one in found if not isinstance(one, str))
        except asyncpg.QueryCanceledError:
            facts[_label(part)] = "not known: to find out took too long"
        except asyncpg.InsufficientPrivilegeError:
            facts[_label(part)] = "not known: this user may not see it"
    if missing:
        problems.append(f"{len(missing)} migrations are missing ({missing[0]} …): run `flowdsl migrate`")
    return facts, problems


Told = AsyncGenerator[tuple[str, Any] | str]
"""Facts, each a name and a value; and problems."""


def _label(part: Callable[[Connection], Told]) -> str:
    return part.__name__.removeprefix("_").replace("_", " ")


# The server


async def _server(connection: Connection) -> Told:
    version = int(await connection.fetchval("show server_version_num"))
    yield "server", f"PostgreSQL {await connection.fetchval('show server_version')}"
    if version < FLOOR:
        yield "the server is too old: use PostgreSQL 15 or newer"
    if await connection.fetchval("select pg_is_in_recovery()"):
        yield "this is a replica, which cannot be written: name the primary"
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        if await connection.fetchval(f"show {setting}") == "off":
            yield f"{setting} is off: what was acknowledged can be lost in a crash of the server; switch it on"


async def _transactions(connection: Connection) -> Told:
    age = await connection.fetchval("select age(datfrozenxid) from pg_database where datname = current_database()")
    yield "transaction age", f"{age:,}"
    if age > AGE:
        yield f"the oldest row is {age:,} transactions old, and at 2,000,000,000 the server stops writing: run `vacuum freeze` now"
    rows = await connection.fetch(
        "select pid, usename, application_name, state, extract(epoch from clock_timestamp() - xact_start)::float8 as age from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
        " and xact_start < clock_timestamp() - make_interval(secs => $1) order by xact_start limit 5",
        LONG,
    )
    for row in rows:
        whose = f"{row['usename']} {row['application_name']}".strip()
        what = f"a transaction of {whose} has been open for {row['age']:.0f} s ({row['state']})"
        yield (
            f"{what}: rows that changed since cannot be cleaned up, and claims slow down;"
            f" end it (select pg_terminate_backend({row['pid']})), and set idle_in_transaction_session_timeout"
        )
    rows = await connection.fetch(
        "select gid from pg_prepared_xacts where database = current_database() and prepared < clock_timestamp() - make_interval(secs => $1)", LONG
    )
    for row in rows:
        yield f"transaction {row['gid']!r} was prepared and never finished: commit prepared, or rollback prepared"


async def _notifications(connection: Connection) -> Told:
    usage = float(await connection.fetchval("select pg_notification_queue_usage()"))
    yield "notify queue", f"{usage:.0%} full"
    if usage > 0.5:
        yield f"the notify queue is {usage:.0%} full: a session listens and does not read; find it in pg_stat_activity (LISTEN), and end it"


async def _replicas(connection: Connection) -> Told:
    slots = await connection.fetch(
        "select slot_name, active, wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint as behind from pg_replication_slots"
        " where not pg_is_in_recovery() order by 1"
    )
    names = await connection.fetchval("select string_agg(application_name, ', ') from pg_stat_replication")
    if names:
        synchronous = await connection.fetchval("show synchronous_standby_names")
        yield "replicas", f"{names} ({'synchronous' if synchronous else 'asynchronous: a failover can lose what was acknowledged'})"
    for slot in slots:
        if not slot["active"] and (slot["behind"] or 0) > 1 << 30:
            what = f"replication slot {slot['slot_name']} is read by nobody and keeps {slot['behind'] / 1e9:.1f} GB of log on the disk"
            yield f"{what}: start its replica, or drop the slot"


async def _disk(connection: Connection) -> Told:
    size = await connection.fetchval("select pg_database_size(current_database())")
    yield "size", f"{size / 1e6:,.0f} MB"
    folder = await connection.fetchval("select current_setting('data_directory', true)")
    here = await connection.fetchval("select inet_server_addr() is null")  # a socket: the server's disk is ours
    if here and folder and Path(folder).is_dir():  # noqa: ASYNC240 (one look, in a command that does nothing else)
        usage = shutil.disk_usage(folder)
        if usage.free < FREE * usage.total:
            yield f"only {usage.free / 1e9:.1f} GB of the disk under {folder} are free: make room before Postgres stops"


# The store


async def _executions(connection: Connection) -> Told:
    counts = await connection.fetch("select status, count(*) from flowdsl.executions group by status order by status")
    yield "executions", ", ".join(f"{row['count']} {row['status']}" for row in counts) or "none"


async def _workers(connection: Connection) -> Told:
    rows = await connection.fetch(
        "select w.id, w.host, w.pid, w.gone, extract(epoch from clock_timestamp() - w.beat)::float8 as age,"
        " w.gone or w.beat < clock_timestamp() - w.lease as dead,"
        " (select count(*) from flowdsl.executions x where x.owner = w.id) as held from flowdsl.workers w order by w.started"
    )
    alive = [row for row in rows if not row["dead"]]
    late = [row for row in rows if row["dead"] and not row["gone"]]
    yield "workers", ", ".join(f"{_name(row)} (beat {row['age']:.1f} s ago, has {row['held']})" for row in alive) or "none"
    for row in late:
        what = f"worker {_name(row)} has not beaten for {row['age']:.0f} s, longer than its lease, and has {row['held']} executions"
        yield f"{what}: {'another will take them over' if alive else 'start a worker, which takes them over'}"
    held = sum(row["held"] for row in rows if row["gone"])
    if held:
        what = f"{held} executions belong to workers that are gone"
        yield f"{what}: {'start a worker that knows their workflows' if alive else 'no worker is alive: start one'}"
    orphans = await connection.fetchval(
        "select count(*) from flowdsl.executions x where x.owner is not null and not exists (select 1 from flowdsl.workers w where w.id = x.owner)"
    )
    if orphans:
        yield f"{orphans} executions are owned by workers without a row: nobody takes them over; run `flowdsl doctor --deep`"


def _name(row: Any) -> str:
    return f"{row['host']}/{row['pid']}"


async def _oldest_due(connection: Connection) -> Told:
    row = await connection.fetchrow(
        "select id, workflow, extract(epoch from clock_timestamp() - wake)::float8 as age from flowdsl.executions"
        " where owner is null and wake <= statement_timestamp() and status <> 'blocked' order by wake limit 1"
    )
    yield "oldest due", "none" if row is None else f"{row['workflow']} {row['id']}, for {row['age']:.1f} s"
    if row is None:
        return
    alive = await connection.fetchval("select exists (select 1 from flowdsl.workers where not gone and beat > clock_timestamp() - lease)")
    if not alive:
        yield f"executions are due and no worker is alive: start one that knows {row['workflow']}"
    elif row["age"] > OVERDUE:
        what = f"{row['workflow']} {row['id']} has been due for {row['age']:.0f} s"
        yield f"{what}, and nobody takes it: start a worker that knows it, or more of them"


async def _dead_letters(connection: Connection) -> Told:
    rows = await connection.fetch(
        "select id, workflow, status, cause, count(*) over (partition by status) as n from flowdsl.executions"
        " where status in ('failed', 'blocked') and discarded is null order by started desc"
    )
    failed = next((row["n"] for row in rows if row["status"] == "failed"), 0)
    blocked = [row for row in rows if row["status"] == "blocked"]
    yield "dead letters", f"{failed} failed, {len(blocked)} blocked"
    for row in blocked[:10]:
        cause = f"see `flowdsl status {row['id']}`" if is_encrypted(row["cause"]) else (str(row["cause"]).splitlines() or [""])[0]
        yield f"{row['workflow']} {row['id']} is blocked: {cause}"
    if len(blocked) > 10:
        yield f"{len(blocked) - 10} more are blocked: see `flowdsl list --status blocked`"


async def _schedules(connection: Connection) -> Told:
    rows = await connection.fetch(
        "select id, problem, extract(epoch from clock_timestamp() - due)::float8 as age from flowdsl.schedules where in_code and not paused"
    )
    if rows:
        yield "schedules", len(rows)
    for row in rows:
        if row["problem"]:
            yield f"schedule {row['id']} cannot be planned: {row['problem'].splitlines()[0]}"
        elif row["age"] is not None and row["age"] > OVERDUE:
            yield f"schedule {row['id']} has been due for {row['age']:.0f} s: start a worker whose deployment has it"


async def _audit(connection: Connection) -> Told:
    row = await connection.fetchrow(
        "select count(*) as rows, extract(epoch from clock_timestamp() - min(at))::float8 as age from flowdsl.audit where seq is null"
    )
    if row["age"] is not None and row["age"] > OVERDUE:
        what = f"{row['rows']} rows of the audit have waited {row['age']:.0f} s to be chained"
        yield f"{what}: start a worker; if one runs, see `flowdsl audit verify`"


async def _tenants(connection: Connection) -> Told:
    why = await connection.fetchval("select flowdsl.not_apart()")
    yield "tenants", "kept apart by row-level security" if why is None else "kept apart by conditions alone"
    if why is not None:
        yield f"tenants are kept apart by the conditions of our statements, and not by the server as well: {why}"
    elif int(await connection.fetchval("show server_version_num")) < 150003:
        yield "PostgreSQL before 15.3 may use a plan made for another user's policies (CVE-2023-2455): update the server"


_SERVER = (_server, _transactions, _notifications, _replicas, _disk)
_STORE = (_executions, _workers, _oldest_due, _dead_letters, _schedules, _audit, _tenants)
