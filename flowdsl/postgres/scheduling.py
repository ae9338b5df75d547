"""What people do with schedules: look at them, pause, resume, trigger, backfill; each change is audited."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from attrs import frozen

from flowdsl.activation import Stored
from flowdsl.errors import NotFound, StoreError
from flowdsl.postgres.schedules import _NAMES, Fired, _columns, _fire, _table, _transacted
from flowdsl.postgres.store import Connection, Store
from flowdsl.schedule import Schedule, begun

RANGE = 1000
"""Instants in one backfill."""


@frozen
class Listed:
    """A schedule as it stands."""

    id: str
    tenant: str
    workflow: str
    rule: str
    zone: str
    overlap: str
    catch_up: str
    upcoming: datetime | None
    due: datetime | None
    queued: datetime | None
    last: datetime | None
    last_at: datetime | None
    execution: str | None
    status: Stored | None
    """Of the last execution; None also when that is no longer kept."""
    paused: bool
    in_code: bool
    problem: str | None
    made: bool = False
    """By a person, not by a deployment."""


async def listed(store: Store, id: str | None = None, *, tenant: str | None = None) -> list[Listed]:
    """All schedules, or that one; of a tenant, if one is named, and so it is below. Raises `NotFound`."""
    rows = await store.again(
        "select s.*, x.status from flowdsl.schedules s left join flowdsl.executions x on x.id = s.last_execution"
        " where ($1::text is null or s.id = $1) and ($2::text is null or s.tenant = $2) order by s.id",
        id,
        tenant,
    )
    if id is not None and not rows:
        raise await _unknown(store, id, tenant)
    return [
        Listed(
            row["id"], row["tenant"], row["workflow"], row["rule"], row["zone"], row["overlap"], row["catch_up"], row["upcoming"], row["due"],
            row["queued"], row["last"], row["last_at"], None if row["last_execution"] is None else str(row["last_execution"]), row["status"],
            row["paused"], row["in_code"], row["problem"], row["made"],
        )
        for row in rows
    ]  # fmt: skip


async def pause(store: Store, id: str, *, by: str = "", tenant: str | None = None) -> None:
    """Starts nothing until `resume`; a start that was queued is let go. Raises `NotFound`."""

    async def work(connection: Connection) -> None:
        row = await _locked(store, connection, id, tenant)
        if row["paused"]:
            return
        await connection.execute("update flowdsl.schedules set paused = true, queued = null where id = $1", id)
        await connection.execute("update flowdsl.firings set outcome = 'skipped' where schedule = $1 and instant = $2", id, row["queued"])
        await _audit(connection, row, "SCHEDULE_PAUSED", by)

    await _transacted(store, work)


async def resume(store: Store, id: str, *, by: str = "", tenant: str | None = None) -> None:
    """Goes on from now; what would have fired meanwhile is not made up for. Raises `NotFound`."""

    async def work(connection: Connection) -> None:
        row = await _locked(store, connection, id, tenant)
        if not row["paused"]:
            return
        first = begun(_table(row), row["now"])
        await connection.execute(
            "update flowdsl.schedules set paused = false, upcoming = case when in_code then $2::timestamptz end,"
            " due = case when in_code then $3::timestamptz end, problem = null where id = $1",
            id,
            first.upcoming,
            first.due,
        )
        await _audit(connection, row, "SCHEDULE_RESUMED", by)

    await _transacted(store, work)


async def trigger(store: Store, id: str, *, by: str = "", tenant: str | None = None) -> Fired:
    """Starts it now, under its overlap policy, paused or not. Raises `NotFound`."""
    instant: datetime = (await store.again("select clock_timestamp()"))[0][0]  # chosen once: however often it is repeated, it starts once

    async def work(connection: Connection) -> Fired:
        row = await _locked(store, connection, id, tenant)
        fired = (await _fire(connection, "triggered", [(id, instant)], store.encryption))[0]
        if fired.outcome != "again":
            await _audit(connection, row, "SCHEDULE_TRIGGERED", by, fired.execution, outcome=fired.outcome)
            return fired
        outcome = await connection.fetchval("select outcome from flowdsl.firings where schedule = $1 and instant = $2", id, instant)
        return Fired(id, instant, outcome, fired.execution)

    return await _transacted(store, work)


async def backfill(store: Store, id: str, since: datetime, until: datetime, *, by: str = "", tenant: str | None = None) -> list[Fired]:
    """Starts what the rule names from `since` to `until`, as far as that is past and was not started; executions may overlap.

    Raises `NotFound`, and `StoreError` for a range that names too many instants.
    """

    async def work(connection: Connection) -> list[Fired]:
        row = await _locked(store, connection, id, tenant)
        table, instants = _table(row), list[datetime]()
        for instant in table.between(since, min(until, row["now"])):
            instants.append(instant)
            if len(instants) > RANGE:
                raise StoreError(f"schedule {id} has more than {RANGE:,} instants in that range", f"Narrow it: the {RANGE:,}th is {instants[-2]}")
        fired = await _fire(connection, "backfilled", [(id, instant) for instant in instants], store.encryption)
        started = sum(one.outcome == "started" for one in fired)
        if started:
            await _audit(connection, row, "SCHEDULE_BACKFILLED", by, since=instants[0], until=instants[-1], started=started)
        return fired

    return await _transacted(store, work)


# Made by people


def made_id(tenant: str, id: str) -> str:
    """The durable name of a schedule that a tenant makes: no other tenant can have it."""
    return f"{tenant.replace('%', '%25').replace(':', '%3A')}:{id}"


async def make(store: Store, schedule: Schedule, limit: int, *, by: str = "") -> bool:
    """Writes down a schedule that no deployment names; workers of its workflow fire it. False: it was there already, just so.

    Raises `StoreError` when one of that id differs, and `NotJournalable` or `TooLarge` for its input.
    """
    columns = _columns(schedule, limit, store.encryption)

    async def work(connection: Connection) -> bool:
        first = begun(schedule.timetable, await connection.fetchval("select clock_timestamp()"))
        marks = ", ".join(f"${number + 1}" for number in range(len(columns) + 2))
        made = await connection.fetchval(
            f"insert into flowdsl.schedules ({', '.join(_NAMES)}, upcoming, due, made) values ({marks}, true) on conflict do nothing returning id",
            *columns,
            first.upcoming,
            first.due,
        )
        row = await connection.fetchrow("select * from flowdsl.schedules where id = $1", schedule.id)
        if made is None:
            if row is None or tuple(row[name] for name in _NAMES) != columns:
                raise StoreError(f"schedule {schedule.id} is there already, and differs", "Remove it first, or use another id")
            return False
        await _audit(connection, row, "SCHEDULE_MADE", by, rule=row["rule"], workflow=row["workflow"])
        return True

    return await _transacted(store, work)


async def remove(store: Store, id: str, *, by: str = "", tenant: str | None = None) -> None:
    """Takes away a schedule that a person made; what it started goes on. Raises `NotFound`, and `StoreError` for one that a deployment names."""

    async def work(connection: Connection) -> None:
        row = await _locked(store, connection, id, tenant)
        if not row["made"]:
            raise StoreError(f"schedule {id} is in the code of a deployment", "Pause it, or take it out of the deployment")
        await connection.execute("delete from flowdsl.schedules where id = $1", id)
        await _audit(connection, row, "SCHEDULE_REMOVED", by)

    await _transacted(store, work)


async def _audit(connection: Connection, row: Any, event: str, by: str, execution: str | None = None, **facts: object) -> None:
    body = json.dumps({"schedule": row["id"], "by": by, **facts}, default=str).encode()
    await connection.execute("select flowdsl.audited($1, $2::uuid, $3, $4)", row["tenant"], execution, event, body)


async def _locked(store: Store, connection: Connection, id: str, tenant: str | None) -> Any:
    row = await connection.fetchrow(
        "select *, clock_timestamp() as now from flowdsl.schedules where id = $1 and ($2::text is null or tenant = $2) for update", id, tenant
    )
    if row is None:
        raise await _unknown(store, id, tenant)
    return row


async def _unknown(store: Store, id: str, tenant: str | None) -> NotFound:
    query = "select id from flowdsl.schedules where $1::text is null or tenant = $1 order by id limit 20"
    return NotFound("schedule", id, [row["id"] for row in await store.again(query, tenant)])
