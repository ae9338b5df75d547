"""One run: what a seed draws, the safety phase, the liveness phase, and the verdict."""

from __future__ import annotations

import asyncio
import gc
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from random import Random
from typing import Any
from unittest.mock import patch

import structlog
from attrs import define, field

from flowdsl import binding, threads
from flowdsl import chance as chances
from flowdsl.postgres import committer as committers
from flowdsl.postgres import schema, transaction
from flowdsl.postgres import worker as workers
from flowdsl.postgres.worker import Tuning
from flowdsl.testing.chaos import verdict
from flowdsl.testing.chaos.evidence import Evidence
from flowdsl.testing.chaos.orders import Order
from tests.simulation.bugs import Bug
from tests.simulation.faults import Fault, Nemesis, Plan
from tests.simulation.invariants import ENDED, Watch, attempts, refolded
from tests.simulation.loop import LANE, POLICIES, Loop, Overrun, here
from tests.simulation.marks import EVENTS, STRUCK, Marks, rows_met
from tests.simulation.postgres.model import Session
from tests.simulation.server import Server
from tests.simulation.system import World, drawn

PATIENCE = 60.0
"""Virtual seconds in which everything must have ended once no fault strikes any more."""
STEPS = 400_000


@define
class Outcome:
    """What came of a seed."""

    seed: int
    wrong: list[str] = field(factory=list[str])
    trace: str = ""
    marks: Marks = field(factory=Marks)
    faults: list[Fault] = field(factory=list[Fault])
    timeline: list[tuple[float, str, str]] = field(factory=list[tuple[float, str, str]])
    orders: list[Order] = field(factory=list[Order])
    steps: int = 0
    commits: int = 0
    seconds: float = 0.0
    policy: str = ""

    def told(self) -> str:
        """The timeline, for a person."""
        lines = [f"{at - 1000:9.4f}  {who:<10} {what}" for at, who, what in self.timeline]
        return "\n".join([*lines, "", *(f"WRONG: {one}" for one in self.wrong)])


class _Drawn:
    """Chance for the runtime: from the seed, and stamps from virtual time."""

    def __init__(self, chance: Random, loop: Loop) -> None:
        self._chance, self._loop = chance, loop
        self.random = chance.random

    def bits(self, count: int) -> bytes:
        return self._chance.randbytes(count)

    def stamp(self) -> int:
        return 1_700_000_000_000 + int(self._loop.time() * 1000)


class _Hand:
    """A thread as the simulation has it: the call happens at its beginning or at its end, and takes a while."""

    def __init__(self, name: str) -> None:
        self._lane = RUN.loop.beside(f"{here().process.name}/thread")

    def carry_out(self, call: Callable[[], Any], back: Callable[[bool, Any], None]) -> None:
        loop = asyncio.get_running_loop()
        takes, late = RUN.chance.choice((0.0, 0.001, 0.05, 0.4)), RUN.chance.random() < 0.5

        async def work() -> None:
            if late:
                await asyncio.sleep(takes)
            try:
                returned, value = True, call()
            except BaseException as error:
                returned, value = False, error
            if not late:
                await asyncio.sleep(takes)
            loop.call_soon_threadsafe(back, returned, value)

        here().process.start(work, self._lane)

    def dismiss(self) -> None: ...


def _beside(main: Callable[[], Any], name: str) -> None:
    process = here().process
    process.start(main, RUN.loop.beside(f"{process.name}/{name.removeprefix('flowdsl-')}"))


@define
class Run:
    """One seed, under way."""

    seed: int
    bug: Bug | None
    skip: frozenset[int]
    loud: bool
    outcome: Outcome = field(init=False)
    chance: Random = field(init=False)
    loop: Loop = field(init=False)
    world: World = field(init=False)
    server: Server = field(init=False)
    nemesis: Nemesis = field(init=False)
    watch: Watch = field(factory=Watch)
    processes: dict[str, Any] = field(factory=dict[str, Any])
    """By worker id."""
    calm: bool = False

    def __attrs_post_init__(self) -> None:
        chance = Random(f"simulation {self.seed}")
        self.outcome = Outcome(self.seed)
        policy = chance.choice(POLICIES)
        self.chance = Random(chance.getrandbits(64))
        self.loop = Loop(Random(chance.getrandbits(64)), policy, cost=chance.choice((1e-6, 2e-5, 2e-4)))
        self.outcome.policy = policy.name
        plan = Plan.drawn(chance)
        tuning = _tuning(chance)
        kinds = self.bug.kinds if self.bug is not None else ()
        orders = drawn(chance, chance.choice((1, 2, 2, 3, 4, 8)), kinds)
        if self.bug is not None:
            plan, tuning = self.bug.focused(plan, tuning)
        self.outcome.orders = orders
        self.server = Server(self.loop, Random(chance.getrandbits(64)), self.bug, self.committed, self.heard)
        schedules = chance.random() < 0.3 or bool(self.bug and self.bug.schedules)
        self.world = World(self.loop, self.chance, orders, tuning, self.seed, self.heard, schedules=schedules)
        self.nemesis = Nemesis(self.world, self.server, plan, Random(chance.getrandbits(64)), self.skip, self.heard)
        self.world.ledger.wrong = self.wrong
        self.loop.between = self.nemesis.between
        if self.loud:
            self.loop.heard = lambda who, what: self.outcome.timeline.append((self.loop.time(), who, f"  {what}"))

    # What is heard

    def heard(self, what: str) -> None:
        lane = LANE.get(None)
        self.outcome.timeline.append((self.loop.time(), lane.process.name if lane is not None else "server", what))

    def wrong(self, what: str) -> None:
        self.outcome.wrong.append(what)
        self.heard(f"WRONG {what}")

    def committed(self, changes: list[Any]) -> None:
        self.outcome.commits += 1
        self.loop.policy.nudge()
        _mark_commit(self, changes)
        for one in self.watch.committed(changes):
            self.wrong(one)

    def logged(self, _: Any, level: str, event: dict[str, Any]) -> Any:
        if self.loop.is_closed():  # what is finalized after the run has no part in it
            raise structlog.DropEvent
        name = event.get("event", "")
        if name in EVENTS:
            self.outcome.marks.meet(EVENTS[name])
        if level in ("warning", "error", "critical"):
            self.heard(f"{name} {' '.join(f'{key}={value}' for key, value in event.items() if key not in ('event', 'worker'))}"[:240])
        if event.get("traceback"):
            self.wrong(f"{name}: {str(event['traceback']).strip().splitlines()[-1]}")
        raise structlog.DropEvent

    # Phases

    async def _phases(self) -> None:
        loop, world = self.loop, self.world
        for _ in range(self.chance.choice((1, 2, 2, 3))):
            world.begin_worker()
        world.begin_front()
        end = loop.time() + self.nemesis.plan.span
        while loop.time() < end and not self.outcome.wrong:
            await asyncio.sleep(0.25)
            if self._over():
                break
        self.nemesis.heal()
        self.calm = True
        self.heard("no more faults")
        if world.front is not None and world.front.dead:
            world.begin_front()
        world.begin_person(self._crash_loops)
        if not any(not stop.is_set() for _, stop in world.workers.values()):
            world.begin_worker()
        end = loop.time() + PATIENCE
        while loop.time() < end and not self.outcome.wrong and not self._over():
            await asyncio.sleep(0.25)
        if world.schedules:
            self.server.pause_schedules()
            end = max(end, loop.time() + 10)
            while loop.time() < end and not self.outcome.wrong and not self._over(ticks=True):
                await asyncio.sleep(0.25)

    def _over(self, *, ticks: bool = False) -> bool:
        if len(self.world.served) < len(self.world.orders):
            return False
        return all(row["status"] in ENDED or (not ticks and row["workflow"] == "chaos.tick") for row in self.watch.executions.values())

    def _crash_loops(self) -> list[str]:
        rows = self.watch.executions.values()
        return [str(row["id"]) for row in rows if row["status"] == "blocked" and row["cause"].startswith("three workers died")]

    async def _swept(self) -> None:
        """Deletes what has ended, by somebody who dies in the middle of it; then by one who does not."""
        task = self.world.begin_janitor()
        for _ in range(self.chance.randrange(60)):
            await asyncio.sleep(0)
        assert self.world.janitor is not None
        if not task.done():
            self.loop.kill(self.world.janitor)
            self.server.died(self.world.janitor)
        await asyncio.sleep(1.0)
        there = {str(row["id"]) for row in self.server.rows("flowdsl.executions")}
        for table in ("journal", "mailbox", "notes"):
            for id in {str(row["execution"]): None for row in self.server.rows(f"flowdsl.{table}")}:
                if id not in there:
                    self.wrong(f"I14 {table} has rows of {id}, which is no more")

    def carry_out(self) -> Outcome:
        outcome = self.outcome
        try:
            self.loop.run(self._phases, until=1000 + PATIENCE + 60, steps=STEPS)
        except Overrun as error:
            outcome.wrong.append(f"L it does not come to an end {error}")
        outcome.wrong += self.loop.complaints
        outcome.wrong += [f"M the model cannot do this: {one}" for one in self.server.model.broken]
        if not outcome.wrong:
            outcome.wrong += self._judged()
        if not outcome.wrong and (self.chance.random() < 0.2 or (self.bug is not None and self.bug.number == 16)):
            try:
                self.loop.run(self._swept, until=self.loop.time() + 10, steps=self.loop.steps + 50_000)
            except Overrun as error:
                outcome.wrong.append(f"L what has ended is not deleted {error}")
        outcome.trace, outcome.steps, outcome.seconds = self.loop.trace, self.loop.steps, self.loop.time() - 1000
        outcome.faults = self.nemesis.struck
        for fault in outcome.faults:
            outcome.marks.meet(STRUCK[fault.kind])
        if outcome.faults and not outcome.wrong:
            outcome.marks.meet("ended after faults")
        self.loop.close()
        return outcome

    def _judged(self) -> Iterator[str]:
        evidence = self.evidence()
        rows_met(self.outcome.marks, evidence.executions, evidence.journals)
        self._met(evidence)
        trial = verdict.Trial(self.seed, self.world.orders, evidence)
        jumped = any(fault.kind == "jump" for fault in self.nemesis.struck)
        for name, judge in verdict.JUDGES.items():
            off = (name == "schedule complete" and (not evidence.firings or jumped)) or (name in ("timers never early", "rate kept") and jumped)
            if not off:
                yield from (f"L {one}" for one in judge(trial))
        yield from refolded(evidence.executions, evidence.journals, self.world.deployment)
        yield from attempts(evidence.executions, evidence.journals)

    def _met(self, evidence: Evidence) -> None:
        marks = self.outcome.marks
        if any(len(calls) > len({call["number"] for call in calls}) for calls in evidence.calls.values()):
            marks.meet("called again")
        if any(label.endswith("undone") for labels in evidence.labels.values() for label in labels.values()):
            marks.meet("undone")
        unsure = {one["call"] for one in self.world.told if one["state"] == "unknown"}
        if unsure:
            marks.meet("front unknown")
        if any("/start" in call and self.world.said.get(call) in self.world.ids.get(call, [])[:1] for call in unsure):
            marks.meet("start repeated")

    def evidence(self) -> Evidence:
        rows = self.server.rows
        executions = {str(row["id"]): row for row in rows("flowdsl.executions")}
        journals: dict[str, list[Any]] = defaultdict(list)
        for row in sorted(rows("flowdsl.journal"), key=lambda row: row["position"]):
            journals[str(row["execution"])].append(row)
        marks = rows("chaos_marks")
        firings = sorted(rows("flowdsl.firings"), key=lambda row: row["instant"])
        calls: dict[str, list[Any]] = defaultdict(list)
        for call in self.world.ledger.calls:
            calls[call["key"]].append(call)
        labels: dict[str, dict[str, str]] = defaultdict(dict)
        for key, label in ({key: found[0]["label"] for key, found in calls.items()} | {row["key"]: row["label"] for row in marks}).items():
            labels[key.partition("/")[0]][key] = label
        mailbox, unmatched, schedules = (rows(f"flowdsl.{table}") for table in ("mailbox", "unmatched", "schedules"))
        found = Evidence(executions, dict(journals), mailbox, unmatched, marks, firings, schedules, dict(calls), self.world.told, dict(labels))
        for id, row in executions.items():
            if row["parent"] is not None:
                found.children[str(row["parent"])].append(id)
        return found


def _tuning(chance: Random) -> Tuning:
    """Knobs, often at their ends."""
    return Tuning(
        lease=chance.choice((1.0, 1.0, 2.0, 3.0)),
        poll=chance.choice((0.1, 0.3, 1.0)),
        linger=chance.choice((0.0, 0.05, 0.3, 1.0)),
        capacity=chance.choice((2, 4, 2000)),
        claim=chance.choice((1, 2, 128)),
        hints=chance.random() < 0.7,
        warm=chance.choice((0, 1, 1000)),
        threads=chance.choice((1, 32)),
        transactions=chance.choice((1, 2, 16)),
        look=chance.choice((0.3, 2.0)),
        grace=chance.choice((0.1, 0.5, 3.0)),
    )


RUN: Run


def _mark_commit(run: Run, changes: list[Any]) -> None:
    marks, before = run.outcome.marks, run.watch.executions
    for table, old, new in changes:
        name = table.removeprefix("flowdsl.")
        if name == "mailbox" and old is None and new is not None and new["kind"] == "signal":
            row = before.get(str(new["execution"]))
            if row is not None and row["status"] in ("running", "suspended"):
                marks.meet(f"mail to a {row['status']} one")
        elif name == "unmatched" and old is None:
            marks.meet("mail before its wait")
        elif (
            name == "workers"
            and new is not None
            and new["gone"]
            and not (old and old["gone"])
            and run.server.in_transaction(run.processes.get(str(new["id"])))
        ):
            marks.meet("taken over in mid-transaction")
        elif name == "workers" and old is None and new is not None:
            run.processes[str(new["id"])] = run.server.client
        elif name == "executions" and new is not None and new["deaths"] >= 3:
            marks.meet("crash loop")
        elif name == "executions" and new is not None and new["deaths"] > (old["deaths"] if old else 0):
            marks.meet("suspect")


@contextmanager
def installed() -> Generator[None]:
    """The seams, for the length of a block: all runs in it are simulated ones."""
    repeated, told, reclaim = committers.Committer._repeated, workers.Worker._told, workers.Store.reclaim
    take = workers.Warm.take
    send, unknown, wait_for = workers.Store.send, transaction.OwnTransaction._unknown, Session.wait_for

    async def marked_repeated(self: Any, batch: Any) -> Any:
        before = RUN.server.unknown.get(here().process.name, 0)
        fates = await repeated(self, batch)
        lost = RUN.server.unknown.get(here().process.name, 0) > before
        for fate in fates:
            RUN.outcome.marks.meet(
                {"done": "turn done", "awake": "turn awake", "again": "turn again", "left": "turn left", "fenced": "turn fenced"}[fate]
            )
        if lost and "done" in fates:
            RUN.outcome.marks.meet("turn not committed")
        return fates

    def marked_told(self: Any, commit: Any, fate: Any) -> None:
        if fate in ("left", "fenced"):
            RUN.world.ledger.fenced.add((commit.execution, commit.epoch))
        if commit.state == "released" and fate == "done":
            RUN.outcome.marks.meet("released")
        told(self, commit, fate)

    async def marked_reclaim(self: Any, worker: str, ids: Any) -> Any:
        found = await reclaim(self, worker, ids)
        if found:
            RUN.outcome.marks.meet("claimed unknowing")
        return found

    def marked_take(self: Any, id: str, epoch: int) -> Any:
        found = take(self, id, epoch)
        if found is not None:
            RUN.outcome.marks.meet("warm")
        return found

    async def marked_send(self: Any, *arguments: Any) -> str:
        said: str = await send(self, *arguments)
        if said in ("again", "ended"):
            RUN.outcome.marks.meet("mail twice" if said == "again" else "mail too late")
        return said

    async def marked_unknown(self: Any, entry: Any) -> bool:
        RUN.outcome.marks.meet("transaction unknown")
        return await unknown(self, entry)

    def marked_wait(self: Any, other: Any) -> None:
        RUN.outcome.marks.meet("lock waited for")
        wait_for(self, other)

    with ExitStack() as stack:
        for place, name, instead in (
            (threads, "beside", _beside), (threads, "Hand", _Hand), (committers.Committer, "_repeated", marked_repeated),
            (workers.Worker, "_told", marked_told), (workers.Store, "reclaim", marked_reclaim), (workers.Warm, "take", marked_take),
            (workers.Store, "send", marked_send), (transaction.OwnTransaction, "_unknown", marked_unknown), (Session, "wait_for", marked_wait),
        ):  # fmt: skip
            stack.enter_context(patch.object(place, name, instead))
        for place, name in ((binding, "named_in"), (schema, "_numbered")):  # each process of each run asks, and the files stay as they are
            stack.enter_context(patch.object(place, name, _remembered(getattr(place, name))))
        settings = structlog.get_config()
        structlog.configure(processors=[lambda *said: RUN.logged(*said)], wrapper_class=structlog.BoundLogger, cache_logger_on_first_use=False)
        stack.callback(lambda: structlog.configure(**settings))
        stack.enter_context(Server.installed())
        stack.enter_context(_no_collections())
        yield


def _remembered(asked: Callable[..., Any]) -> Callable[..., Any]:
    return cache(lambda *arguments: list(asked(*arguments)))


@contextmanager
def _no_collections() -> Generator[None]:
    """What the collector finds when is no part of a seed."""
    gc.collect()
    gc.freeze()
    gc.disable()
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # what a killed process leaves behind is finalized here, long after
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
            try:
                yield
            finally:
                gc.collect()
    finally:
        sys.unraisablehook = hook
        gc.enable()
        gc.unfreeze()


def simulate(seed: int, *, bug: Bug | None = None, skip: frozenset[int] = frozenset(), loud: bool = False) -> Outcome:
    """Runs a seed; to be called in a block of `installed()`."""
    global RUN
    RUN = run = Run(seed, bug, skip, loud)
    with ExitStack() as stack:
        stack.enter_context(chances.drawn_from(_Drawn(Random(f"runtime {seed}"), run.loop)))
        if bug is not None:
            stack.enter_context(bug.planted())
        outcome = run.carry_out()
    if seed % 32 == 31:
        gc.collect()
    return outcome


def shrunk(seed: int, outcome: Outcome, *, bug: Bug | None = None, tries: int = 60) -> Outcome:
    """The same failure with as few faults as can be found by leaving out one after the other."""
    left: frozenset[int] = frozenset()
    head = _head(outcome)
    for fault in [*reversed(outcome.faults)][:tries]:
        found = simulate(seed, bug=bug, skip=left | {fault.number})
        if found.wrong and _head(found) == head and len(found.faults) < len(outcome.faults):  # left out, one may make room for others
            left, outcome = left | {fault.number}, found
    return outcome


def _head(outcome: Outcome) -> str:
    return outcome.wrong[0].split(" ")[0] if outcome.wrong else ""
