"""The play of the enrichment: subscribers come, three processes are killed when it hurts most, and the provider's books are compared with ours."""

from __future__ import annotations

import asyncio
import csv
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from attrs import define, field, frozen
from standardwebhooks import Webhook as Standard

from adapters.demo.front import store_for
from adapters.demo.screen import Screen
from adapters.demo.stage import Stage
from adapters.fullenrich import callbacks, settings
from adapters.fullenrich.part import part
from adapters.fullenrich.verdict import Verdict, verdict
from domains.enrichment.values import Upload
from domains.enrichment.workflows import upload
from flowdsl import FlowError
from flowdsl.journal import codecs_of
from flowdsl.postgres.store import NewStart, Store, connect
from flowdsl.postgres.worker import new_id

LEASE, PATIENCE = 5.0, 400.0
"""A worker of a busy machine that loses its lease is one killed too many: what it was about to submit is then nobody's for the whole silence."""
ENOUGH = 12
"""Submissions under way, when there are more addresses than the provider takes at a time."""
SECRET = "whsec_" + "ZW5yaWNobWVudCBkZW1v" * 2
CONFIGURED = {
    settings.KEY: "demo key",
    settings.COOLDOWN: "500ms",
    settings.DEBOUNCE: "1s",
    settings.BATCH: "25",
    settings.POLL: "3s",
    settings.SILENCE: "100s",
    settings.LIMIT: "10m",
    callbacks.SECRET: SECRET,
}
"""What takes hours in earnest takes seconds here. The silence outlasts the kills: this provider charges again for what is submitted once more."""
_INTERRUPTED = (
    "select distinct execution::text as id from flowdsl.journal"
    " where fingerprint like 'perform submit-to-fullenrich %' and convert_from(body, 'UTF8') like '%\"Interrupted\"%'"
)


@frozen
class Plan:
    addresses: int
    seed: int
    workers: int
    faults: str
    kill: bool
    database: str | None
    folder: Path


@define
class Outcome:
    """`interrupted`: submissions that a dead worker left behind, of which nobody knew whether they had been taken."""

    addresses: int
    batches: int = 0
    killed: list[str] = field(factory=list[str])
    interrupted: int = 0
    callbacks: int = 0
    refused: int = 0
    """Callbacks that were forged."""
    faults: dict[str, int] = field(factory=dict[str, int])
    seconds: float = 0.0
    verdict: Verdict | None = None

    @property
    def clean(self) -> bool:
        return self.verdict is not None and self.verdict.clean and self.verdict.addresses == self.addresses


async def play(plan: Plan, screen: Screen) -> Outcome:
    """Raises `FlowError` when the stage cannot be set."""
    async with store_for(plan.database, screen, part(CONFIGURED).migrations) as store:
        with Stage(plan.folder) as stage:
            played = Play(plan, screen, store, stage)
            async with played.client:
                return await played.run()


class Play:
    def __init__(self, plan: Plan, screen: Screen, store: Store, stage: Stage) -> None:
        self._plan, self._screen, self._store, self._stage = plan, screen, store, stage
        self._outcome = Outcome(plan.addresses)
        self._provider = self._service = ""
        self.client = httpx2.AsyncClient(timeout=30)
        self._service_pid = 0
        self._moments = [self._while_it_submits, self._while_it_is_called, self._while_it_writes] if plan.kill else []

    async def run(self) -> Outcome:
        plan, outcome, stage, begun = self._plan, self._outcome, self._stage, time.monotonic()
        weather = ("--faults", plan.faults, "--seed", str(plan.seed), "--forgets", "--again", "1", "--per-minute", "100000")
        self._provider = stage.standin("--key", "demo key", "--work", "1", *weather, of="fullenrich")
        stage.environment |= CONFIGURED | {settings.URL: f"{self._provider}/api/v2", settings.UPLOADS: str(plan.folder)}
        self._service_pid, self._service = stage.service(self._store.dsn)
        stage.environment[settings.CALLBACK] = f"{self._service}/webhooks/fullenrich"
        pids = [stage.worker(self._store.dsn, LEASE) for _ in range(plan.workers)]
        self._screen.say(f"FullEnrich stand-in at {self._provider}, faults {plan.faults}; it charges each time that it is asked")
        self._screen.say(f"service: process {self._service_pid} at {self._service}; {plan.workers} workers: processes {', '.join(map(str, pids))}")
        await self._close(answer=plan.kill, callback=plan.kill)
        await self._subscribe()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._follow()
        except TimeoutError:
            self._screen.say(f"[red]after {PATIENCE:g} s it is not over[/]")
        connection = await connect(self._store.dsn)
        try:
            outcome.verdict = await verdict(connection, self._provider)
        finally:
            await connection.close()
        await self._count()
        outcome.seconds = round(time.monotonic() - begun, 1)
        self._tell()
        return outcome

    # What comes

    async def _subscribe(self) -> None:
        """Half by webhook, some of them twice; half by file. Corporate addresses are kept, and nobody asks about them."""
        emails = [f"someone{number}@{'gmail.com' if number % 2 else 'proton.me'}" for number in range(self._plan.addresses)]
        half = len(emails) // 2
        with (self._plan.folder / "list.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["email", "name"])
            rows.writerows([email, f"Some, One\n{email}"] for email in [*emails[half:], *emails[half : half + 5], "boss@example.org"])
        for number, email in enumerate([*emails[:half], *emails[:5], "sales@example.org"]):
            await self._deliver(f"msg_{number}", email)
        order = Upload("list.csv")
        body = codecs_of(upload).request.encode(order)
        await self._store.start([NewStart(new_id(), "default", upload.name, upload.version, "", upload.key_of(order), upload.reuse, body)])
        self._screen.say(f"{half} subscribers came by webhook, {len(emails) - half} by file")

    async def _deliver(self, id: str, email: str) -> None:
        body, now = json.dumps({"email": email, "source": "form"}), datetime.now(UTC)
        headers = {"webhook-id": id, "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": Standard(SECRET).sign(id, now, body)}
        (await self.client.post(f"{self._service}/webhooks/subscribers", content=body, headers=headers)).raise_for_status()

    # What is done to it

    async def _follow(self) -> None:
        """Until every job has its result; kills on the way."""
        told = ""
        while True:
            states = await self._states()
            if self._moments and await self._moments[0](states):
                self._moments.pop(0)
            said = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
            if said != told:
                self._screen.say(said)
                told = said
            finished = states.get("enriched", 0) + states.get("absent", 0)
            if finished == self._plan.addresses and not self._moments and not await self._open():
                return
            if all(worker.poll() is not None for worker in self._stage.workers.values()):
                raise FlowError("all workers have ended; their last words are in the logs below")
            await self._speak()
            await asyncio.sleep(0.1)

    async def _while_it_submits(self, states: Mapping[str, int]) -> bool:
        """Once all that is to come has been taken by the provider, which answers nobody: what is cut short then has been taken for sure."""
        taken, held = {batch["own"] for batch in (await self._ask("ledger"))["batches"]}, (await self._ask("stats"))["held"]["answer"]
        ours = {row["id"] for row in await self._store.again("select id from enrichment.batches")}
        ours -= {row["id"] for row in await self._store.again(_INTERRUPTED)}  # of these none is under way any more, taken or not
        whole = sum(states.values()) == self._plan.addresses and not states.get("pending")
        if not held or not ours <= taken or not (whole or len(held) >= ENOUGH):
            return False
        await self._kill_worker(held[-1], "while a submission was under way")  # the newest: its worker has not given up on the answer
        await self._close(answer=False)
        return True

    async def _while_it_is_called(self, _: Mapping[str, int]) -> bool:
        """Half of a callback has come."""
        if not (await self._ask("stats"))["held"]["callback"]:
            return False
        killed, port = self._service_pid, urlsplit(self._service).port or 0
        self._stage.kill(killed)
        self._service_pid, _url = await asyncio.to_thread(self._stage.service, self._store.dsn, port)
        self._outcome.killed.append("service while a callback came")
        self._screen.say(f"[bold red]kill -9 {killed}[/] while a callback came; service {self._service_pid} is started")
        return True

    async def _while_it_writes(self, _: Mapping[str, int]) -> bool:
        """Jobs of one batch are locked, and so whoever brings its results stands still in the middle of that."""
        connection = await connect(self._store.dsn)
        try:
            async with connection.transaction():
                batch = await connection.fetchval("select batch from enrichment.jobs where state = 'batched' order by id desc limit 1 for update")
                if batch is None:
                    return False
                await self._close(callback=False)
                while not await self._store.again("select from pg_stat_activity where $1 = any (pg_blocking_pids(pid))", connection.get_server_pid()):
                    await self._speak()
                    await asyncio.sleep(0.05)
                await self._kill_worker(batch, "while it wrote results")
        finally:
            await connection.close()
        return True

    async def _kill_worker(self, execution: str, when: str) -> None:
        """The one that has this execution."""
        rows = await self._store.again(
            "select w.pid from flowdsl.executions x join flowdsl.workers w on w.id = x.owner where x.id = $1::uuid", execution
        )
        running = [pid for pid, worker in self._stage.workers.items() if worker.poll() is None]
        pid = next((row["pid"] for row in rows if row["pid"] in running), running[0])
        self._stage.kill(pid)
        self._outcome.killed.append(f"worker {when}")
        self._screen.say(f"[bold red]kill -9 {pid}[/] {when}; worker {self._stage.worker(self._store.dsn, LEASE)} is started")

    async def _close(self, **gates: bool) -> None:
        (await self.client.post(f"{self._provider}/_standin/gates", json=gates)).raise_for_status()

    async def _speak(self) -> None:
        """Of a submission whose answer was never read only a callback can tell, so the provider makes one."""
        interrupted = [row["id"] for row in await self._store.again(_INTERRUPTED)]
        if len(interrupted) > self._outcome.interrupted:
            self._outcome.interrupted = len(interrupted)
            (await self.client.post(f"{self._provider}/_standin/speak", json={"own": interrupted})).raise_for_status()

    # What is to be seen

    async def _states(self) -> dict[str, int]:
        rows = await self._store.again("select state, count(*) as n from enrichment.jobs group by state")
        return {row["state"]: row["n"] for row in rows}

    async def _open(self) -> bool:
        rows = await self._store.again("select exists (select from flowdsl.executions where status in ('running', 'suspended')) as open")
        return bool(rows[0]["open"])

    async def _ask(self, what: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.client.get(f"{self._provider}/_standin/{what}")).raise_for_status().json()
        return found

    async def _count(self) -> None:
        outcome, stats = self._outcome, await self._ask("stats")
        outcome.faults = stats["faults"]
        outcome.batches = (await self._store.again("select count(*) as n from enrichment.batches"))[0]["n"]
        outcome.callbacks = (await self._store.again("select count(*) as n from flowdsl.webhooks where endpoint = 'fullenrich'"))[0]["n"]
        outcome.refused = outcome.faults.get("forged", 0)

    def _tell(self) -> None:
        outcome, found = self._outcome, self._outcome.verdict
        assert found is not None
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.faults.items())) or "none"
        self._screen.say(
            f"{len(outcome.killed)} processes killed, {outcome.interrupted} submissions cut short by it; the provider's faults: {faults}"
        )
        mark = "[bold green]✓" if outcome.clean else "[bold red]✗"
        self._screen.say(
            f"{mark} by the provider's books: {found.addresses} addresses in {outcome.batches} batches, {found.enriched} enriched, {found.absent} "
            f"not found; {found.paid_twice} paid twice, {found.asked_twice} asked twice, {found.lost} lost, {found.processed_twice} processed twice, "
            f"{found.wrong} wrong; {found.credits:g} credits, {found.unaccounted:g} unaccounted for[/]"
        )
