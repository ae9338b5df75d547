"""A look at a live store: what it is, and what is wrong with it."""

from __future__ import annotations

from typing import Any

from flowdsl.postgres.schema import FLOOR, pending_migrations
from flowdsl.postgres.store import Connection


async def examine(connection: Connection) -> tuple[dict[str, Any], list[str]]:
    """Facts, and problems in words that say what to do."""
    problems: list[str] = []
    version = int(await connection.fetchval("show server_version_num"))
    facts: dict[str, Any] = {"server": f"PostgreSQL {await connection.fetchval('show server_version')}"}
    if version < FLOOR:
        problems.append("the server is too old: use PostgreSQL 15 or newer")
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        if await connection.fetchval(f"show {setting}") == "off":
            problems.append(f"{setting} is off: what was acknowledged can be lost in a crash of the server; switch it on")
    missing = await pending_migrations(connection)
    if missing:
        problems.append(f"{len(missing)} migrations are missing ({missing[0]} …): run `flowdsl migrate`")
        return facts, problems
    counts = await connection.fetch("select status, count(*) from flowdsl.executions group by status order by status")
    facts["executions"] = ", ".join(f"{row['count']} {row['status']}" for row in counts) or "none"
    workers = await connection.fetch(
        "select id, host, pid, extract(epoch from clock_timestamp() - beat)::float8 as age, beat < clock_timestamp() - lease as late"
        " from flowdsl.workers where not gone order by started"
    )
    facts["workers"] = ", ".join(f"{row['host']}/{row['pid']} (beat {row['age']:.1f} s ago)" for row in workers) or "none"
    oldest = await connection.fetchval(
        "select extract(epoch from clock_timestamp() - min(wake))::float8 from flowdsl.executions where owner is null and wake <= clock_timestamp()"
    )
    if oldest is not None and oldest > 60:
        problems.append(f"an execution has been due for {oldest:.0f} s and nobody takes it: start a worker that knows its workflow")
    orphans = await connection.fetchval(
        "select count(*) from flowdsl.executions x left join flowdsl.workers w on w.id = x.owner where x.owner is not null and w.id is null"
    )
    if orphans:
        problems.append(f"{orphans} executions are owned by workers without a row")
    for row in await connection.fetch("select id, workflow, cause from flowdsl.executions where status = 'blocked' order by started desc limit 10"):
        problems.append(f"{row['workflow']} {row['id']} is blocked: {str(row['cause']).splitlines()[0]}")
    return facts, problems
