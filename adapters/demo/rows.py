"""The play of the import: a file, kills in the middle, what failed mended, new rows, the file once more, the verdict."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from unittest.mock import patch

import httpx2
from attrs import define, field, frozen

from adapters.demo.front import store_for
from adapters.demo.screen import Screen
from adapters.demo.stage import Stage
from adapters.deployment import deployment
from adapters.meals.verdict import Verdict, after_first, after_second, verdict
from adapters.s3.store import opened
from adapters.standins.meals.catalogue import Catalogue
from domains.imports.values import ProcessMealShortsCsv
from domains.imports.workflows import process_meal_shorts_csv
from flowdsl import FlowError
from flowdsl.journal import codecs_of
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.worker import new_id

BUCKET, URL, LEASE = "kitchen", "s3://kitchen/meal-shorts.csv", 6.0


@frozen
class Plan:
    rows: int
    seed: int
    bad: int
    workers: int
    kills: int
    faults: str
    database: str | None
    folder: Path

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.seed, self.bad)

    @property
    def more(self) -> int:
        """Rows that the file has the second time."""
        return max(1, self.rows // 100)


@define
class Import:
    """One import of the file. `live` is the most entries of its journal that a worker had to read to go on; `memory` a worker's, in MiB."""

    status: str = ""
    counts: dict[str, int] = field(factory=dict[str, int])
    seconds: float = 0.0
    rows_per_second: float = 0.0
    entries: int = 0
    live: int = 0
    memory: list[int] = field(factory=list[int])
    """The largest of the workers at each tenth of the file."""
    cpu_seconds: float = 0.0
    """Of the workers that were not killed."""
    verdict: Verdict | None = None


@define
class Outcome:
    rows: int
    killed: int = 0
    again: int = 0
    """What the order service was asked a second time, under the same reference."""
    faults: dict[str, int] = field(factory=dict[str, int])
    first: Import = field(factory=Import)
    second: Import = field(factory=Import)

    @property
    def clean(self) -> bool:
        return all(one.status == "succeeded" and one.verdict is not None and one.verdict.clean for one in (self.first, self.second))


async def play(plan: Plan, screen: Screen) -> Outcome:
    """Raises `FlowError` when the stage cannot be set."""
    async with store_for(plan.database, screen, deployment.migrations) as store:
        with Stage(plan.folder) as stage:
            return await Play(plan, screen, store, stage).run()


class Play:
    def __init__(self, plan: Plan, screen: Screen, store: Store, stage: Stage) -> None:
        self._plan, self._screen, self._store, self._stage = plan, screen, store, stage
        self._outcome = Outcome(plan.rows)
        self._kills_left = plan.kills
        self._http = httpx2.AsyncClient(timeout=60)

    async def run(self) -> Outcome:
        plan, outcome, stage = self._plan, self._outcome, self._stage
        storage = stage.standin(of="s3")
        meals = stage.standin("--seed", str(plan.seed), "--bad", str(plan.bad), "--faults", plan.faults, of="meals")
        stage.environment |= environment(storage, meals)
        self._screen.say(f"order service at {meals}, faults {plan.faults}; S3 at {storage}")
        await self._put(storage, plan.rows)
        pids = [stage.worker(self._store.dsn, LEASE) for _ in range(plan.workers)]
        self._screen.say(f"{plan.workers} workers: processes {', '.join(map(str, pids))}; {plan.rows:,} rows in {URL}")
        await self._gate(meals)
        await self._imported(outcome.first, meals)
        outcome.first.verdict = await verdict(meals, after_first(plan.catalogue, plan.rows))
        self._tell("first import", outcome.first)
        (await self._http.post(f"{meals}/_standin/mend")).raise_for_status()
        await self._put(storage, plan.rows + plan.more)
        self._screen.say(f"orders and addresses are mended, {plan.more:,} rows are added, and the file is imported again")
        await self._imported(outcome.second, meals)
        outcome.second.verdict = await verdict(meals, after_second(plan.catalogue, plan.rows, plan.rows + plan.more))
        self._tell("second import", outcome.second)
        counts = (await self._http.get(f"{meals}/_standin/counts")).json()
        outcome.again, outcome.faults = counts["again"], counts["faults"]
        self._screen.say(f"{outcome.killed} workers killed; faults {outcome.faults}; {outcome.again:,} things asked again, and not done again")
        return outcome

    async def _put(self, storage: str, rows: int) -> None:
        import obstore

        with patch.dict(os.environ, environment(storage, "")):
            file = opened(URL).unwrap()
            (await self._http.put(f"{storage}/{BUCKET}")).raise_for_status()
            await obstore.put_async(file.store, file.path, _awaited(self._plan.catalogue.file(0, rows)))

    async def _imported(self, told: Import, meals: str) -> None:
        """Starts the import and waits for its end; kills on the way."""
        order = ProcessMealShortsCsv(URL)
        wish = NewStart(
            new_id(), "default", process_meal_shorts_csv.name, process_meal_shorts_csv.version, "", process_meal_shorts_csv.key_of(order),
            process_meal_shorts_csv.reuse, codecs_of(process_meal_shorts_csv).request.encode(order),
        )  # fmt: skip
        id, begun = (await self._store.start([wish]))[0].id, time.monotonic()
        while True:
            summary = await self._store.summary(id)
            if summary.status not in ("running", "suspended"):
                break
            await self._watch(id, told, (summary.done or 0) / (summary.total or 1))
            await self._kill_when_due(id, told, meals)
            if all(worker.poll() is not None for worker in self._stage.workers.values()):
                raise FlowError("all workers have ended; their last words are in the logs below")
            await asyncio.sleep(0.25)
        told.status, told.seconds = summary.status, round(time.monotonic() - begun, 1)
        await self._watch(id, told, 1.0)
        if summary.status != "succeeded":
            raise FlowError(f"the import is {summary.status}: {summary.cause or summary.exit!r}")
        counts = json.loads(summary.exit or b"{}")["success"]["counts"]
        told.counts, told.entries = counts, summary.entries
        told.rows_per_second = round((counts.get("done", 0) + counts.get("failed", 0)) / told.seconds, 1)
        told.cpu_seconds = round(sum(_cpu(pid) for pid in self._running()), 1)

    async def _watch(self, id: str, told: Import, share: float) -> None:
        told.live = max(told.live, await _live(self._store, id))
        if share >= (len(told.memory) + 1) / 10 and self._running():
            told.memory += [0] * (int(share * 10) - len(told.memory) - 1)  # tenths that went by between two looks
            told.memory.append(max((_memory(pid) for pid in self._running()), default=0))
            self._screen.say(f"{share:4.0%} of the file, {told.live:,} live entries, {told.memory[-1]} MiB in a worker")

    async def _kill_when_due(self, id: str, told: Import, meals: str) -> None:
        """In the first import, spread over its rows as the order service has seen them; it waits there for the kill, so no machine is too quick."""
        if told is not self._outcome.first or (due := self._due) is None:
            return
        if (await self._http.get(f"{meals}/_standin/counts")).json()["asked"] >= due:
            self._kills_left -= 1
            await self._kill(id)
            await self._gate(meals)

    @property
    def _due(self) -> int | None:
        """At how many rows the next worker is killed."""
        plan = self._plan
        return plan.rows * (plan.kills - self._kills_left + 1) // (plan.kills + 1) if self._kills_left else None

    async def _gate(self, meals: str) -> None:
        (await self._http.post(f"{meals}/_standin/gate", json={"asked": self._due})).raise_for_status()

    async def _kill(self, id: str) -> None:
        """Kills the worker that has the parent, else any, and starts another."""
        rows = await self._store.again("select w.pid from flowdsl.executions x join flowdsl.workers w on w.id = x.owner where x.id = $1", id)
        running = self._running()
        pid = next((row["pid"] for row in rows if row["pid"] in running), running[0])
        self._stage.kill(pid)
        self._outcome.killed += 1
        self._screen.say(f"[bold red]kill -9 {pid}[/]; worker {self._stage.worker(self._store.dsn, LEASE)} is started")

    def _running(self) -> list[int]:
        return [pid for pid, worker in self._stage.workers.items() if worker.poll() is None]

    def _tell(self, title: str, told: Import) -> None:
        found = told.verdict
        assert found is not None
        mark = "[bold green]✓" if found.clean else "[bold red]✗"
        self._screen.say(f"{title}: {told.counts} in {told.seconds} s, {told.rows_per_second:,} rows a second")
        self._screen.say(
            f"{mark} by the order service's records: {found.asked:,} rows looked at, {found.made_good:,} made good, {found.confirmed:,} confirmed; "
            f"{found.lost} lost, {found.twice} twice, {found.wrong} wrongly, {found.disturbed} done before and looked at again[/]"
        )


def environment(storage: str, meals: str) -> dict[str, str]:
    """What a worker needs to reach the stand-ins."""
    return {
        "AWS_ENDPOINT_URL_S3": storage, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1",
        "MEALS_URL": meals, "MEALS_TOKEN": "token",
    }  # fmt: skip


async def _awaited(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    for block in blocks:
        yield block


async def _live(store: Store, id: str) -> int:
    """Entries from the newest checkpoint on, and those before it that it names: what a worker reads to go on."""
    rows = await store.again(
        "select (select count(*) from flowdsl.journal j where j.execution = $1 and j.position >= coalesce(c.position, 0))"
        " + coalesce((select sum(upper(span) - lower(span)) from unnest(c.live) as span), 0) as live"
        " from (select) one left join lateral"
        " (select position, live from flowdsl.journal where execution = $1 and live is not null order by position desc limit 1) c on true",
        id,
    )
    return int(rows[0]["live"])


def _memory(pid: int) -> int:
    """MiB of a process that are in memory; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except OSError:
        return 0


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
