"""Schedules over Postgres: whichever worker looks first takes what is due; the due time moves in the transaction of the start it causes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar
from uuid import NAMESPACE_URL, uuid5

import asyncpg
import structlog
from attrs import frozen

from flowdsl import chance
from flowdsl.binding import Deployment
from flowdsl.errors import FlowError, KeyMissing, NotGenuine, StoreError
from flowdsl.journal import codecs_of
from flowdsl.policy import within
from flowdsl.postgres.encryption import PLAIN, Encryption, encrypted_with, request_of, schedule_of
from flowdsl.postgres.store import PATIENCE, Connection, Store, lost, reason, refuses, trace
from flowdsl.rule import rule_of
from flowdsl.schedule import Schedule, Timetable, begun, key_of, plan

log = structlog.get_logger("flowdsl")

T = TypeVar("T")

BATCH = 100
"""Schedules that a worker takes at a time."""
STARTS = 500
"""Starts in one transaction, more or less; what would go beyond is taken in the next."""

Outcome = Literal["started", "queued", "skipped", "again"]


@frozen
class Fired:
    """What became of an instant. `execution`: the one that was started; of a skipped or queued one, the one in its way."""

    schedule: str
    instant: datetime
    outcome: Outcome
    execution: str | None


# What a deployment brings


async def register(store: Store, deployment: Deployment) -> None:
    """Writes down the deployment's schedules: new ones begin now, a changed rule is due anew, and what a person paused stays paused.

    Schedules of its workflows that it no longer names are kept, and listed as not in code; they start nothing. Others are another
    deployment's. Raises `NotJournalable` or `TooLarge` for an input that cannot be written.
    """
    limit = deployment.limits.request
    rows = {one.id: _columns(one, limit, store.encryption) for one in sorted(deployment.schedules, key=lambda one: one.id)}
    try:
        await _transacted(store, lambda connection: _register(connection, rows, deployment))
    except (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        what = "lacks a migration" if isinstance(error, asyncpg.UndefinedColumnError) else "has no flowdsl tables"
        raise StoreError(f"this database {what}", "Run `flowdsl migrate`") from error


_NAMES = ("id", "tenant", "workflow", "version", "request", "rule", "zone", "jitter", "overlap", "catch_up", "within")
_WHEN = ("rule", "zone", "jitter")
"""What decides when a schedule is due."""


def _columns(one: Schedule, limit: int, encryption: Encryption) -> tuple[Any, ...]:
    table, workflow = one.timetable, one.workflow
    request = within(limit, f"the input of schedule {one.id}", codecs_of(workflow).request.encode(one.request))
    request = encryption.encrypt(schedule_of(one.tenant, one.id), request)  # the same bytes each time: only what changed is written
    return (
        table.id, one.tenant, workflow.name, workflow.version, request, str(table.rule), table.rule.zone, table.jitter, table.overlap,
        table.catch_up, table.within,
    )  # fmt: skip


async def _register(connection: Connection, rows: dict[str, tuple[Any, ...]], deployment: Deployment) -> None:
    names = ", ".join(_NAMES)
    now = await connection.fetchval("select clock_timestamp()")
    tables = {one.id: one.timetable for one in deployment.schedules}
    for id, columns in rows.items():
        first = begun(tables[id], now)
        await connection.execute(
            f"insert into flowdsl.schedules ({names}, upcoming, due) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
            " on conflict do nothing",
            *columns,
            first.upcoming,
            first.due,
        )
    found = await connection.fetch(
        "select * from flowdsl.schedules where id = any($1::text[]) or (in_code and not made and workflow = any($2::text[])) order by id for update",
        list(rows),
        list(deployment.names),
    )
    for row in found:
        if row["id"] not in rows:
            await connection.execute("update flowdsl.schedules set in_code = false, due = null, upcoming = null where id = $1", row["id"])
            log.warning("schedule.not_in_code", schedule=row["id"])
        elif not row["in_code"] or row["made"] or tuple(row[name] for name in _NAMES) != rows[row["id"]]:
            await _change(connection, row, rows[row["id"]], tables[row["id"]], now)


async def _change(connection: Connection, row: Any, columns: tuple[Any, ...], table: Timetable, now: datetime) -> None:
    fresh = dict(zip(_NAMES, columns, strict=True))
    same = row["in_code"] and all(row[name] == fresh[name] for name in _WHEN)
    first = begun(table, now)
    await connection.execute(
        "update flowdsl.schedules set tenant = $2, workflow = $3, version = $4, request = $5, rule = $6, zone = $7, jitter = $8, overlap = $9,"
        " catch_up = $10, within = $11, upcoming = $12, due = $13, in_code = true, made = false, problem = null where id = $1",
        *columns,
        row["upcoming"] if same else first.upcoming,
        row["due"] if same else first.due,
    )


# Looking


class Lookout:
    """Starts what is due of a deployment's workflows, in turns with every other worker that looks."""

    def __init__(self, store: Store, deployment: Deployment, poll: float, started: Callable[[], object] = lambda: None) -> None:
        self._store, self._deployment, self._poll, self._started = store, deployment, poll, started

    async def keep(self) -> None:
        """Looks until it is cancelled. A store that is away is waited for."""
        while True:
            try:
                await self.look()
                pause = await self._pause()
            except Exception as error:
                if lost(error) or isinstance(error, (asyncpg.PostgresError, FlowError)):
                    log.warning("schedules.failed", error=reason(error))
                else:
                    log.error("schedules.failed", traceback=trace(error))
                pause = self._poll
            await asyncio.sleep(pause)

    async def look(self) -> list[Fired]:
        """Takes all that is due now, a batch a transaction. What is already another worker's at this moment is left to it."""
        fired: list[Fired] = []
        for take in (_take_queued, _take_due):
            while True:
                async with self._store.connection() as connection, connection.transaction():
                    found, more = await take(connection, list(self._deployment.names), self._store.encryption)
                fired += found
                for one in found:
                    log.info("schedule.fired", schedule=one.schedule, instant=one.instant.isoformat(), outcome=one.outcome, execution=one.execution)
                if any(one.outcome == "started" for one in found):
                    self._started()
                if not more:
                    break
        return fired

    async def _pause(self) -> float:
        """Until the next due time by Postgres's clock, and no longer than a poll: others may have changed it."""
        async with self._store.connection() as connection:
            left = await connection.fetchval(
                "select extract(epoch from min(due) - clock_timestamp()) from flowdsl.schedules where not paused and workflow = any($1::text[])",
                list(self._deployment.names),
            )
        poll = self._poll * (0.8 + 0.4 * chance.random())
        return poll if left is None else min(poll, max(0.01, float(left)))


# The time of the statement, which an index can be asked about: clock_timestamp() may differ from row to row.
_DUE = """
select *, statement_timestamp() as now from flowdsl.schedules
 where due <= statement_timestamp() and not paused and workflow = any($2::text[]) order by due limit $1 for update skip locked
"""


async def _take_due(connection: Connection, workflows: Sequence[str], encryption: Encryption) -> tuple[list[Fired], bool]:
    """Of workflows that are known here: what nobody can run is better late than piled up."""
    rows = await connection.fetch(_DUE, BATCH, workflows)
    plans: dict[str, Any] = {}
    starts = 0
    for row in rows:
        if starts >= STARTS:
            break
        try:
            plans[row["id"]] = planned = plan(_table(row), row["upcoming"], row["now"])
        except Exception as error:  # one that was written by a newer flowdsl, or whose zone is not known here: the others must not wait for it
            await _put_off(connection, row["id"], error)
            starts += 1
            continue
        starts += len(planned.firings)
    found, refused = await _fire_apart(connection, "due", {id: planned.firings for id, planned in plans.items()}, encryption)
    plans = {id: planned for id, planned in plans.items() if id not in refused}
    await connection.execute(
        "select flowdsl.go_on($1::text[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[])",
        list(plans),
        [planned.upcoming for planned in plans.values()],
        [planned.due for planned in plans.values()],
        [planned.missed for planned in plans.values()],
    )
    for id, planned in plans.items():
        if planned.missed is not None:
            log.warning("schedule.missed", schedule=id, since=planned.missed.isoformat(), started=len(planned.firings))
    return found, bool(rows)


async def _take_queued(connection: Connection, workflows: Sequence[str], encryption: Encryption) -> tuple[list[Fired], bool]:
    """Those that waited for the last execution to end, and need not any more."""
    rows = await connection.fetch(
        "select id, queued from flowdsl.schedules where queued is not null and not paused and in_code and workflow = any($2::text[])"
        " and flowdsl.in_the_way(id) is null limit $1 for update skip locked",
        BATCH,
        workflows,
    )
    found, _ = await _fire_apart(connection, "queued", {row["id"]: [row["queued"]] for row in rows}, encryption)
    return found, len(rows) == BATCH


async def _fire_apart(
    connection: Connection, cause: str, firings: Mapping[str, Sequence[datetime]], encryption: Encryption
) -> tuple[list[Fired], set[str]]:
    """What became of them all, and the schedules whose start Postgres refuses: it is put off, and is not the others' fault."""
    try:
        async with connection.transaction():
            return await _fire(connection, cause, [(id, instant) for id, instants in firings.items() for instant in instants], encryption), set()
    except Exception as error:
        if not (refuses(error) or isinstance(error, (KeyMissing, NotGenuine))):
            raise
        if len(firings) == 1:
            await _put_off(connection, next(iter(firings)), error)
            return [], set(firings)
    found, refused = list[Fired](), set[str]()
    for id in firings:
        fired, put_off = await _fire_apart(connection, cause, {id: firings[id]}, encryption)
        found, refused = found + fired, refused | put_off
    return found, refused


async def _put_off(connection: Connection, id: str, error: Exception) -> None:
    log.error("schedule.problem", schedule=id, error=reason(error), traceback="" if isinstance(error, FlowError) else trace(error))
    await connection.execute(
        "update flowdsl.schedules set problem = $2, due = clock_timestamp() + interval '1 minute' where id = $1", id, str(error).replace("\0", "")
    )


async def _fire(connection: Connection, cause: str, firings: Sequence[tuple[str, datetime]], encryption: Encryption = PLAIN) -> list[Fired]:
    """Raises `KeyMissing`, `NotGenuine` for an input that cannot be read here."""
    if not firings:
        return []
    keys = [key_of(id, instant) for id, instant in firings]
    executions = [str(uuid5(NAMESPACE_URL, key)) for key in keys]  # the same for the same instant: a third reason why it starts once
    kept = await _requests(connection, [id for id, _ in firings], encryption)
    rows = await connection.fetch(
        "select * from flowdsl.fire($1, $2::text[], $3::timestamptz[], $4::text[], $5::uuid[], $6::bytea[])",
        cause,
        [id for id, _ in firings],
        [instant for _, instant in firings],
        keys,
        executions,
        [_for(kept, id, execution, encryption) for (id, _), execution in zip(firings, executions, strict=True)],
    )
    return [Fired(row["schedule"], row["instant"], row["outcome"], None if row["execution"] is None else str(row["execution"])) for row in rows]


async def _requests(connection: Connection, ids: Sequence[str], encryption: Encryption) -> dict[str, Any]:
    """The rows of schedules whose inputs are encrypted, or are to be."""
    rows = await connection.fetch("select id, tenant, request from flowdsl.schedules where id = any($1::text[])", sorted(set(ids)))
    return {row["id"]: row for row in rows if encryption.on or encrypted_with(row["request"]) is not None}


def _for(kept: dict[str, Any], id: str, execution: str, encryption: Encryption) -> bytes | None:
    """A schedule's input as one of its executions keeps it; None: as the schedule does."""
    row = kept.get(id)
    if row is None:
        return None
    return encryption.encrypt(request_of(row["tenant"], execution), encryption.decrypt(schedule_of(row["tenant"], id), row["request"]))


def _table(row: Any) -> Timetable:
    return Timetable(row["id"], rule_of(row["rule"], row["zone"]), row["jitter"], row["overlap"], row["catch_up"], row["within"])


async def _transacted(store: Store, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Its answer, in one transaction, tried again for a while when the connection is lost: only for work that may be repeated."""
    pause, until = 0.05, asyncio.get_running_loop().time() + PATIENCE
    while True:
        try:
            async with store.connection() as connection, connection.transaction():
                return await work(connection)
        except Exception as error:
            clash = isinstance(error, (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.LockNotAvailableError))
            if not (lost(error) or clash) or asyncio.get_running_loop().time() > until:
                raise
        await asyncio.sleep(pause * (0.5 + chance.random()))
        pause = min(2 * pause, 1.0)
