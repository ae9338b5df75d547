"""The play: a full sync with a kill in the middle while rows move, a delta for what moved, and the verdict."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
from attrs import asdict, define, field, frozen

from adapters.demo.front import store_for
from adapters.demo.screen import Row, Screen
from adapters.demo.stage import Stage
from adapters.deployment import deployment
from adapters.verdict import verdict
from domains.sync.values import MainSync
from domains.sync.workflows import main_sync
from flowdsl import FlowError
from flowdsl.journal import codecs_of
from flowdsl.postgres.store import NewStart, Store, connect
from flowdsl.postgres.worker import new_id

ORG, LEASE = "org_123", 5.0


@frozen
class Plan:
    people: int
    seed: int
    workers: int
    faults: str
    kill: bool
    database: str | None
    logs: Path


@define
class Outcome:
    """What the demo found. `resumed` counts recorded steps that the dead worker's executions went on from without running them again."""

    people: int
    records: int = 0
    missing: int = 0
    duplicated: int = 0
    stale: int = 0
    killed: int = 0
    resumed: int = 0
    retries: int = 0
    status: str = ""
    entities: list[dict[str, Any]] = field(factory=list[dict[str, Any]])

    @property
    def clean(self) -> bool:
        return self.status == "succeeded" and self.records > 0 and not (self.missing or self.duplicated or self.stale)


@frozen
class Source:
    """The stand-in, and what it alone can be told."""

    client: httpx2.AsyncClient

    async def gate(self, rows: int | None) -> None:
        """Once so many rows were read it answers nobody, until it is told anew: no machine is too quick to be killed in the middle."""
        (await self.client.post("/_standin/gate", json={"rows": rows})).raise_for_status()

    async def waits(self) -> bool:
        return bool((await self.client.get("/_standin/stats")).raise_for_status().json()["held"])

    async def settle(self) -> None:
        await self.gate(None)
        (await self.client.post("/_standin/settle")).raise_for_status()


async def play(plan: Plan, screen: Screen) -> Outcome:
    """Raises `FlowError` when the stage cannot be set."""
    async with store_for(plan.database, screen, deployment.migrations) as store:
        return await _play(plan, screen, store)


async def _play(plan: Plan, screen: Screen, store: Store) -> Outcome:
    outcome = Outcome(plan.people)
    with Stage(plan.logs) as stage:
        quota = ("--limit", "1500", "--period", "2")
        churn = ("--churn", "--churn-every", "4", "--churn-changes", "150")
        address = stage.standin("--people", str(plan.people), "--seed", str(plan.seed), "--faults", plan.faults, *quota, *churn)
        screen.say(f"Planning Center stand-in: {plan.people:,} people at {address}, faults {plan.faults}, rows move during the walk")
        stage.environment |= {"PLANNING_CENTER_URL": address, "PLANNING_CENTER_TOKEN": "app_id:secret"}
        pids = [stage.worker(store.dsn, LEASE) for _ in range(plan.workers)]
        screen.say(f"{plan.workers} workers: processes {', '.join(map(str, pids))}")

        async with httpx2.AsyncClient(base_url=address, timeout=30) as client:
            source = Source(client)
            await source.gate(plan.people * 4 // 5 if plan.kill else None)
            full = await _start(store, "full")
            await _follow(screen, store, stage, full, "full", outcome, source if plan.kill else None)
            await source.settle()
        screen.say("the source has settled: a delta fetches what changed behind the walk's back, a reconciliation finds what was deleted")
        runs = [full]
        for sync_type in ("delta", "reconciliation"):
            runs.append(await _start(store, sync_type))
            await _follow(screen, store, stage, runs[-1], sync_type)

        summaries = [await store.summary(one) for one in runs]
        outcome.status = next((one.status for one in summaries if one.status != "succeeded"), "succeeded")
        connection = await connect(store.dsn)
        try:
            found = await verdict(connection, address, ORG)
        finally:
            await connection.close()
        outcome.records, outcome.missing, outcome.duplicated, outcome.stale = found.records, found.missing, found.duplicated, found.stale
    mark = "[bold green]✓" if outcome.clean else "[bold red]✗"
    screen.say(
        f"{mark} {outcome.records:,} records compared with the source: {outcome.missing} missing, {outcome.duplicated} duplicated, "
        f"{outcome.stale} stale[/]; {outcome.killed} worker killed, {outcome.resumed} recorded steps kept, {outcome.retries} retries"
    )
    return outcome


async def _start(store: Store, sync_type: Any) -> str:
    order = MainSync(ORG, "pco", sync_type, "manual")
    wish = NewStart(
        new_id(),
        "default",
        main_sync.name,
        main_sync.version,
        "",
        main_sync.key_of(order),
        main_sync.reuse,
        codecs_of(main_sync).request.encode(order),
    )
    return (await store.start([wish]))[0].id


async def _follow(
    screen: Screen, store: Store, stage: Stage, id: str, sync_type: str, outcome: Outcome | None = None, source: Source | None = None
) -> None:
    """Shows a sync until it ends, and tells the outcome. With a source, kills a worker as soon as that waits for it."""
    title = f"{sync_type} sync"
    kept: dict[str, int] = {}
    screen.begin()
    while True:
        summary = await store.summary(id)
        rows = await _rows(store, id, kept)
        screen.show(title, rows)
        if summary.status not in ("running", "suspended"):
            break
        if outcome is not None and source is not None and not outcome.killed and await source.waits():
            kept = await _kill(screen, store, stage, outcome)
            if outcome.killed:
                await source.gate(None)
        if all(worker.poll() is not None for worker in stage.workers.values()):
            raise FlowError("all workers have ended; their last words are in the logs below")
        await asyncio.sleep(0.15)
    screen.end(title, rows)
    if outcome is not None:
        outcome.resumed, outcome.retries = sum(row.resumed for row in rows), sum(row.retries for row in rows)
        outcome.entities = [asdict(row) for row in rows]
    if summary.cause:
        screen.say(f"[red]{summary.status}: {summary.cause}[/]")


async def _kill(screen: Screen, store: Store, stage: Stage, outcome: Outcome) -> dict[str, int]:
    """Kills the worker whose entities have recorded most, and starts another. Gives what each of them had recorded by then."""
    busiest = await store.again(
        f"select pid from ({_OWNED}) owned where pid = any($1::int[]) group by pid order by sum(steps) desc limit 1", [*stage.workers]
    )
    if not busiest:
        return {}
    pid = busiest[0]["pid"]
    stage.freeze(pid)
    owned = await store.again(f"select * from ({_OWNED}) owned where pid = $1", pid)
    stage.kill(pid)
    outcome.killed += 1
    screen.say(f"[bold red]kill -9 {pid}[/]: it had {len(owned)} executions; worker {stage.worker(store.dsn, LEASE)} is started")
    return {str(row["id"]): row["steps"] for row in owned}


_OWNED = (
    "select x.id, w.pid, count(*) as steps from flowdsl.executions x join flowdsl.workers w on w.id = x.owner and not w.gone"
    " join flowdsl.journal j on j.execution = x.id and j.kind <= 3 where x.parent is not null group by x.id, w.pid"
)
"""Entities that have recorded something, and who has them. Who has the parent alone has recorded steps too, and none that are shown."""


async def _rows(store: Store, id: str, kept: dict[str, int]) -> list[Row]:
    children = await store.again(
        "select x.id, x.status, x.request, x.exit, n.done, n.note,"
        " count(j.*) as entries, count(j.*) filter (where j.kind in (4, 5)) as retries,"
        " count(j.*) filter (where j.kind = 1 and j.fingerprint like 'perform ProcessEntityPage %') as pages"
        " from flowdsl.executions x left join flowdsl.notes n on n.execution = x.id left join flowdsl.journal j on j.execution = x.id"
        " where x.parent = $1 group by x.id, n.execution order by x.started, x.id",
        id,
    )
    return [_row(child, kept) for child in children]


def _row(child: Any, kept: dict[str, int]) -> Row:
    exit: dict[str, Any] = json.loads(child["exit"]) if child["exit"] else {}
    synced: dict[str, Any] = exit.get("success") or {}
    return Row(
        json.loads(child["request"])["entity_name"],
        child["status"],
        synced.get("pages_processed", child["pages"]),
        synced.get("total_records_processed", child["done"] or 0),
        child["retries"],
        kept.get(str(child["id"]), 0),
        child["entries"],
    )
