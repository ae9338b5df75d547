"""One run: everything is started, hurt, healed, and judged."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, field, frozen

from flowdsl.errors import FlowError
from flowdsl.postgres.deep import look
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.scheduling import pause
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import Store, connect
from flowdsl.testing.chaos.crew import Crew
from flowdsl.testing.chaos.evidence import ENDED, gathered, read_logs
from flowdsl.testing.chaos.ledger import ADDRESS
from flowdsl.testing.chaos.nemesis import DECK, Nemesis, Tally, Targets
from flowdsl.testing.chaos.orders import drawn
from flowdsl.testing.chaos.processes import Child, Links, begin, end, ready
from flowdsl.testing.chaos.server import Postgres
from flowdsl.testing.chaos.system import RELEASE, deployment
from flowdsl.testing.chaos.verdict import Trial, judged

SERVES = all(find_spec(library) is not None for library in ("starlette", "uvicorn", "typed_settings"))
"""Whether there is what the service needs; without it the front asks the store alone."""
RATE = 17.0
"""Workflows a second that are started, unless the minutes are said."""
OVERTIME = 20.0
"""Seconds that faults go on, at most, when the front is not done by then."""
PATIENCE = 60.0
"""Seconds after the last fault in which everything must end."""


@frozen
class Wish:
    """How much chaos."""

    workflows: int
    seed: int
    workers: int = 4
    minutes: float | None = None
    lease: float = 2.0

    @property
    def span(self) -> float:
        """Seconds over which starts and faults are spread."""
        return self.minutes * 60 if self.minutes is not None else max(20.0, self.workflows / RATE)


@define
class Progress:
    """How a run stands, for who watches."""

    phase: str = "starting"
    started: int = 0
    ended: int = 0
    open: int = 0
    faults: int = 0
    hits: int = 0
    now: str = ""
    seconds: float = 0.0


@define
class Report:
    """What a run showed."""

    wish: Wish
    folder: Path
    wrong: dict[str, list[str]]
    """Under each head of the verdict, what is wrong; empty where nothing is."""
    faults: dict[str, Tally]
    executions: dict[str, int]
    events: dict[str, int]
    calls: int
    effects: int
    unknown: int
    """Calls of the front that gave no answer, for the store was away or the front killed; each was repeated."""
    seconds: float
    busy: float
    """Seconds in which there was work: from the first start to the last end."""
    healed: float
    """Seconds from the last fault until everything had ended."""
    relieved: int
    """Executions that were blocked as suspects, having met three deaths in a row, and that we let go on."""
    peak: int
    """The most memory that a worker had, in KiB."""

    @property
    def passed(self) -> bool:
        return not any(self.wrong.values())


Tell = Callable[[Progress], None]


@define
class Run:
    wish: Wish
    folder: Path
    tell: Tell
    deck: ClassVar[Mapping[str, int]] = DECK
    patience: ClassVar[float] = PATIENCE
    progress: Progress = field(factory=Progress)
    _front: Child | None = None
    _asking: int = 0
    _service: Child | None = None
    _closing: bool = False
    _healed: float = 0.0
    _relieved: int = 0
    _begun: float = field(factory=time.time)
    _faults: dict[str, Tally] = field(factory=dict[str, Tally])

    async def carry_out(self) -> Report:
        """Starts everything, and leaves nothing running whatever happens."""
        postgres = await Postgres.start(self.folder)
        children: list[Child] = []
        crew: Crew | None = None
        stack = ExitStack()
        try:
            await self.prepare(postgres)
            wires = self.folder / "wires"
            wires.mkdir(mode=0o700)
            ledger = await begin(self.folder, "ledger", "ledger", [str(self.folder), str(wires / "ledger")], {})
            proxy = await begin(self.folder, "proxy", "proxy", [str(wires / ".s.PGSQL.5432"), postgres.socket], {})
            children += [ledger, proxy]
            for child in children:
                await ready(child)
            environment = {
                "FLOWDSL_DATABASE_URL": f"postgresql://postgres@/flowdsl?host={wires}",
                ADDRESS: str(wires / "ledger"),
                RELEASE: "1",
            }
            listening = stack.enter_context(_listening()) if SERVES else None
            crew = Crew(self.folder, environment, self.wish.lease, self.wish.seed)
            await crew.start(self.wish.workers)
            targets = Targets(postgres, crew, Links(proxy), lambda: self._front, lambda: self._service, lambda: self._asking)
            upkeep = asyncio.create_task(self._serve_over_http(environment, listening))
            try:
                await self._hurt(targets, environment, listening)
                await self._calm(targets)
            finally:
                self._closing = True
                if self._service is not None:
                    self._service.signal(signal.SIGTERM)
                served = await asyncio.gather(upkeep, return_exceptions=True)
            await crew.stop()
            wrong = [*crew.died, *map(str, filter(None, served)), *(f"{child.name} ended by itself" for child in children if not child.alive)]
            return await self._judge(postgres, crew, wrong)
        finally:
            if crew is not None:
                await crew.kill()
            if self._front is not None and self._front.alive:
                await end(self._front, 1)
            for child in children:
                await end(child)
            if self._service is not None:
                self._service.signal(signal.SIGKILL)
                await self._service.process.wait()
            stack.close()
            await postgres.stop()

    async def prepare(self, postgres: Postgres) -> None:
        """Makes the tables, before anybody works on them."""
        await migrate(postgres.dsn, deployment.migrations)

    # Phases

    async def _hurt(self, targets: Targets, environment: dict[str, str], listening: socket.socket | None) -> None:
        """The workload and the faults, side by side."""
        nemesis = Nemesis(targets, random.Random(f"{self.wish.seed}/nemesis"), self.wish.lease, self.deck)
        self._faults = nemesis.tallies
        self.progress.phase = "chaos"
        began = time.time() + 1.0
        serving = asyncio.create_task(self._serve(environment, began, listening))
        watching = asyncio.create_task(self._watch(targets.postgres, nemesis))
        pause = min(0.6, max(0.3, self.wish.span / sum(self.deck.values()) * 0.5))

        def enough() -> bool:
            """Also when nothing goes on any more: faults for ever would hide what is stuck."""
            return (serving.done() or time.time() > began + self.wish.span + OVERTIME) and all(tally.tried for tally in nemesis.tallies.values())

        try:
            await asyncio.sleep(2.0)  # something is to be under way when the first fault comes
            await nemesis.rage(pause, enough)
            await nemesis.heal()
            await asyncio.wait([serving], timeout=self.patience)
            if serving.done():
                await serving
        finally:
            for task in (serving, watching):
                task.cancel()
            await asyncio.gather(serving, watching, return_exceptions=True)
            if self._front is not None:
                await end(self._front, 1)
            (self.folder / "faults.txt").write_text("\n".join(nemesis.log) + "\n")

    async def _serve(self, environment: dict[str, str], began: float, listening: socket.socket | None) -> None:
        """The front, started again as often as it is killed."""
        wish = self.wish
        port = 0 if listening is None else listening.getsockname()[1]
        arguments = [str(self.folder), str(wish.seed), str(wish.workflows), str(began), str(wish.span), str(port)]
        while True:
            self._front = await begin(self.folder, "front", "front", arguments, environment)
            assert self._front.process.stdout is not None
            async for line in self._front.process.stdout:
                self._asking = int(line)
            code = await self._front.process.wait()
            self._asking = 0
            if code == 0:
                self._front = None
                return
            if not self._front.killed:
                raise RuntimeError(f"the front ended by itself with exit code {code}: see {self.folder / 'front.log'}")

    async def _serve_over_http(self, environment: Mapping[str, str], listening: socket.socket | None) -> None:
        """The service, started again as often as it is killed or told to stop, on one socket: who asks in between waits."""
        if listening is None:
            return
        begun = 0
        while not self._closing:
            begun += 1
            arguments = [str(self.wish.lease), f"{self.wish.seed}/service/{begun}", str(listening.fileno())]
            self._service = await begin(self.folder, f"service-{begun}", "service", arguments, environment, [listening.fileno()])
            code = await self._service.process.wait()
            if not self._service.killed or code not in (0, -signal.SIGKILL, -signal.SIGTERM):
                raise RuntimeError(f"{self._service.name} ended by itself with exit code {code}")
        self._service = None

    async def _calm(self, targets: Targets) -> None:
        """No more faults: now everything must end."""
        self.progress.phase = "healing"
        begun = time.monotonic()
        async with await Store.open(targets.postgres.dsn, size=2) as store:
            for schedule in deployment.schedules:
                await pause(store, schedule.id)
            while time.monotonic() < begun + self.patience:
                await self._relieve(targets.postgres, store)
                await self._count(targets.postgres)
                if not self.progress.open:
                    break
                await asyncio.sleep(0.25)
        self._healed = time.monotonic() - begun

    async def _relieve(self, postgres: Postgres, store: Store) -> None:
        """Who was met by three deaths in a row is rightly blocked as a suspect: a person looks, and lets it go on."""
        for row in await postgres.rows("select id from flowdsl.executions where status = 'blocked' and cause like 'three workers died %'"):
            with suppress(FlowError):  # the store went away, or the front was first
                await Operator(store, by="chaos").resume(str(row["id"]), "it was innocent")
                self._relieved += 1

    async def _judge(self, postgres: Postgres, crew: Crew, processes: list[str]) -> Report:
        self.progress.phase = "judging"
        self._tell()
        evidence = await gathered(postgres, self.folder)
        logs = read_logs(self.folder)
        wrong = judged(Trial(self.wish.seed, drawn(self.wish.seed, self.wish.workflows), evidence))
        wrong["a deep look finds nothing"] = await looked(postgres)
        wrong["nothing unexpected logged"] = [f"{text} ({count} times)" for text, count in Counter(logs.unexpected).items()]
        wrong["processes as told"] = processes
        return Report(
            wish=self.wish,
            folder=self.folder,
            wrong=wrong,
            faults=self._faults,
            executions=dict(Counter(row["status"] for row in evidence.executions.values())),
            events=dict(logs.events),
            calls=sum(len(calls) for calls in evidence.calls.values()),
            effects=len(evidence.calls),
            unknown=sum(one["state"] == "begun" for one in evidence.told) - sum(one["state"] == "ok" for one in evidence.told),
            seconds=time.time() - self._begun,
            busy=_busy(list(evidence.executions.values())),
            healed=self._healed,
            relieved=self._relieved,
            peak=crew.peak,
        )

    # Watching

    async def _watch(self, postgres: Postgres, nemesis: Nemesis) -> None:
        async with await Store.open(postgres.dsn, size=2) as store:
            while True:
                await self._look(postgres, nemesis)
                with suppress(Exception):  # the store is away: the next look will do
                    await self._relieve(postgres, store)
                await asyncio.sleep(0.5)

    async def _look(self, postgres: Postgres, nemesis: Nemesis) -> None:
        self.progress.faults = sum(tally.tried for tally in nemesis.tallies.values())
        self.progress.hits = sum(tally.hit for tally in nemesis.tallies.values())
        self.progress.now = nemesis.current
        await self._count(postgres)

    async def _count(self, postgres: Postgres) -> None:
        rows = await postgres.rows("select status, count(*) from flowdsl.executions group by status")
        counts = {row["status"]: row["count"] for row in rows}
        self.progress.started = sum(counts.values())
        self.progress.ended = sum(counts.get(status, 0) for status in ENDED)
        self.progress.open = self.progress.started - self.progress.ended
        self._tell()

    def _tell(self) -> None:
        self.progress.seconds = time.time() - self._begun
        self.tell(self.progress)


async def looked(postgres: Postgres) -> list[str]:
    """What `flowdsl doctor --deep` would find: every invariant of the store, and every finished journal folded anew."""
    connection = await connect(postgres.dsn)
    try:
        report = await look(connection, deployment, limit=10_000_000, timeout=120)
    finally:
        await connection.close()
    return [str(one) for one in report.findings]


def _busy(rows: list[Any]) -> float:
    if not rows:
        return 1.0
    last = max(row["ended"] or row["started"] for row in rows)
    return max(1.0, float((last - min(row["started"] for row in rows)).total_seconds()))


@contextmanager
def _listening() -> Generator[socket.socket]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen(2048)
        yield bound


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="flowdsl-chaos-"))
    folder.chmod(0o755)  # the server's account must get through, should we be root; what is private in it has a mode of its own
    return folder


async def run(wish: Wish, tell: Tell, *, keep: bool = False) -> Report:
    """A run in a folder of its own, which is removed when nothing was wrong and nobody wants to keep it."""
    folder = _folder()
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    try:
        report = await Run(wish, folder, tell).carry_out()
    except asyncio.CancelledError:
        shutil.rmtree(folder, ignore_errors=True)  # called off: there is nothing to judge
        raise
    except Exception as error:
        error.add_note(f"What there is of the run is in {folder}")
        raise
    if report.passed and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        (folder / "verdict.json").write_text(json.dumps({"seed": wish.seed, "wrong": report.wrong, "events": report.events}, indent=1))
    return report
