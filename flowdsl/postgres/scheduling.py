"""What people do with schedules: look at them, pause, resume, trigger, backfill; each change is audited."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from attrs import frozen

from flowdsl.activation import Stored
from flowdsl.errors import NotFound, StoreError
from flowdsl.postgres.schedules import Fired, _fire, _table, _transacted
from flowdsl.postgres.store import Connection, Store
from flowdsl.schedule import begun

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


async def listed(store: Store, id: str | None = None) -> list[Listed]:
    """All schedules, or that one. Raises `NotFound`."""
    rows = await store.again(
        "select s.*, x.status from flowdsl.schedules s left join flowdsl.executions x on x.id = s.last_execution"
        " where $1::text is null or s.id = $1 order by s.id",
        id,
    )
    if id is not None and not rows:
        raise await _unknown(store, id)
    return [
        Listed(
            row["id"], row["tenant"], row["workflow"], row["rule"], row["zone"], row["overlap"], row["catch_up"], row["upcoming"], row["due"],
            row["queued"], row["last"], row["last_at"], None if row["last_execution"] is None else str(row["last_execution"]), row["status"],
            row["paused"], row["in_code"], row["problem"],
        )
        for row in rows
    ]  # fmt: skip


async def pause(store: Store, id: str, *, by: str = "") -> None:
    """Starts nothing until `resume`; a start that was queued is let go. Raises `NotFound`."""

    async def work(connection: Connection) -> None:
        row = await _locked(store, connection, id)
        if row["paused"]:
            return
        await connection.execute("update flowdsl.schedules set paused = true, queued = null where id = $1", id)
        await connection.execute("update flowdsl.firings set outcome = 'skipped' where schedule = $1 and instant = $2", id, row["queued"])
        await _audit(connection, row, "SCHEDULE_PAUSED", by)

    await _transacted(store, work)


async def resume(store: Store, id: str, *, by: str = "") -> None:
    """Goes on from now; what would have fired meanwhile is not made up for. Raises `NotFound`."""

    async def work(connection: Connection) -> None:
        row = await _locked(store, connection, id)
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


async def trigger(store: Store, id: str, *, by: str = "") -> Fired:
    """Starts it now, under its overlap policy, paused or not. Raises `NotFound`."""
    instant: datetime = (await store.again("select clock_timestamp()"))[0][0]  # chosen once: however often it is repeated, it starts once

    async def work(connection: Connection) -> Fired:
        row = await _locked(store, connection, id)
        fired = (await _fire(connection, "triggered", [(id, instant)]))[0]
        if fired.outcome != "again":
            await _audit(connection, row, "SCHEDULE_TRIGGERED", by, fired.execution, outcome=fired.outcome)
            return fired
        outcome = await connection.fetchval("select outcome from flowdsl.firings where schedule = $1 and instant = $2", id, instant)
        return Fired(id, instant, outcome, fired.execution)

    return await _transacted(store, work)


async def backfill(store: Store, id: str, since: datetime, until: datetime, *, by: str = "") -> list[Fired]:
    """Starts what the rule names from `since` to `until`, as far as that is past and was not started; executions may overlap.

    Raises `NotFound`, and `StoreError` for a range that names too many instants.
    """

    async def work(connection: Connection) -> list[Fired]:
        row = await _locked(store, connection, id)
        table, instants = _table(row), list[datetime]()
        for instant in table.between(since, min(until, row["now"])):
            instants.append(instant)
            if len(instants) > RANGE:
                raise StoreError(f"schedule {id} has more than {RANGE:,} instants in that range", f"Narrow it: the {RANGE:,}th is {instants[-2]}")
        fired = await _fire(connection, "backfilled", [(id, instant) for instant in instants])
        started = sum(one.outcome == "started" for one in fired)
        if started:
            await _audit(connection, row, "SCHEDULE_BACKFILLED", by, since=instants[0], until=instants[-1], started=started)
        return fired

    return await _transacted(store, work)


async def _audit(connection: Connection, row: Any, event: str, by: str, execution: str | None = None, **facts: object) -> None:
    body = json.dumps({"schedule": row["id"], "by": by, **facts}, default=str).encode()
    await connection.execute("select flowdsl.audited($1, $2::uuid, $3, $4)", row["tenant"], execution, event, body)


async def _locked(store: Store, connection: Connection, id: str) -> Any:
    row = await connection.fetchrow("select *, clock_timestamp() as now from flowdsl.schedules where id = $1 for update", id)
    if row is None:
        raise await _unknown(store, id)
    return row


async def _unknown(store: Store, id: str) -> NotFound:
    return NotFound("schedule", id, [row["id"] for row in await store.again("select id from flowdsl.schedules order by id limit 20")])
