"""What runs under simulation: workers and a front, each a process of its own, over one server; and the world outside that they act on.

The workflows are those of the chaos run, with what may become of them; only their activities act on a ledger here that needs no process.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from random import Random
from typing import Any, Never

from attrs import define, field, frozen

from flowdsl import Deployment, Result, Steps, Success, activity, bind, this_attempt, workflow
from flowdsl.errors import FlowError
from flowdsl.journal import codecs_of
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.store import NewStart, Store, lost
from flowdsl.postgres.worker import Tuning, Worker, new_id
from flowdsl.testing.chaos import activities, prediction
from flowdsl.testing.chaos.activities import Ask, Problem, Receipt
from flowdsl.testing.chaos.orders import KINDS, REASON, Errand, Order, correlation, errands, token
from flowdsl.testing.chaos.prediction import Possible, Possibles
from flowdsl.testing.chaos.system import deployment as chaos
from tests.simulation.loop import Loop, Process
from tests.simulation.postgres.model import EPOCH

DSN = "postgresql://sim@server/flowdsl?pgbouncer=false"

# Workflows of the simulation's own: values that are easily mistaken


@frozen
class Basket:
    """What an activity gives away and goes on changing."""

    values: list[int]


@activity("sim.nothing", timeout="30s")
def nothing(ask: Ask) -> Result[None, Never]: ...


@activity("sim.basket", timeout="30s")
def basket(ask: Ask) -> Result[Basket, Never]: ...


@workflow("chaos.nothing", key="{kind}:{index}")
def given_nothing(order: Order) -> Steps[str, Problem]:
    """None is an answer."""
    first = yield from nothing(Ask(order.label("nothing"), 0, pause=order.pause // 4))
    yield from activities.effect(Ask(order.label("step0"), order.index, pause=order.pause // 4))
    return "none" if first is None else "something"


@workflow("chaos.basket", key="{kind}:{index}")
def given_a_basket(order: Order) -> Steps[int, Problem]:
    """What it was given is what was recorded, whatever the giver does to it afterwards."""
    found = yield from basket(Ask(order.label("basket"), order.index))
    yield from activities.effect(Ask(order.label("step0"), order.index, pause=order.pause // 2))
    yield from activities.effect(Ask(order.label("step1"), sum(found.values), pause=order.pause // 4))
    return sum(found.values)


@workflow("chaos.chopped", key="{kind}:{index}")
def chopped(order: Order) -> Steps[int, Problem]:
    """Ended from outside while it works: whoever has it in memory learns that at its next turn."""
    total = 0
    for place in range(order.size * 2):
        total += (yield from activities.effect(Ask(order.label(f"step{place}"), order.index, pause=order.pause // 2))).value
    return total


def _chopped(order: Order) -> Possibles:
    labels = frozenset(order.label(f"step{place}") for place in range(order.size * 2))
    return (
        Possible("success", order.index * order.size * 2, labels),
        Possible("cancelled", f"terminated: {REASON}", maybe=labels, called=labels),
    )


def _errands(seed: int, order: Order) -> list[Errand]:
    found = errands(seed, order)
    if order.kind == "chopped":
        found.append(Errand("terminate", "terminate", Random(f"{seed}/{order.index}").uniform(0, order.size * order.pause / 1000)))
    return found


def _nothing(order: Order) -> Possibles:
    return (Possible("success", "none", frozenset({order.label("step0")})),)


def _basket(order: Order) -> Possibles:
    labels = frozenset(order.label(name) for name in ("step0", "step1"))
    return (Possible("success", order.index, labels),)


prediction._PREDICTIONS.update({"nothing": _nothing, "basket": _basket, "chopped": _chopped})  # pyright: ignore[reportPrivateUsage]

KINDS_HERE = {**KINDS, "nothing": 3, "basket": 3, "chopped": 3}
UNSUPPORTED: set[str] = set()


def drawn(chance: Random, count: int, only: Sequence[str] = ()) -> list[Order]:
    names = [name for name in KINDS_HERE if name in only or not (only or name in UNSUPPORTED)]
    weights = [KINDS_HERE[name] for name in names]
    kinds = chance.choices(names, weights, k=count)
    return [Order(index, kind, chance.randint(2, 3), chance.randint(0, 2), chance.choice((40, 200, 1000))) for index, kind in enumerate(kinds)]


# The world outside


@define
class Ledger:
    """Counts what happens. It honours idempotency keys: the first call under one makes the effect."""

    loop: Loop
    heard: Callable[[str], None]
    calls: list[dict[str, Any]] = field(factory=list[dict[str, Any]])
    receipts: dict[str, int] = field(factory=dict[str, int])
    counts: Counter[str] = field(factory=Counter[str])
    fenced: set[tuple[str, int]] = field(factory=set[tuple[str, int]])
    """Executions and epochs of which a worker was told that it is not the owner any more."""
    wrong: Callable[[str], None] = print

    def call(self, ask: Ask, *, in_thread: bool = False) -> tuple[int, int]:
        attempt: Any = this_attempt()
        if not in_thread and (attempt.owner.id, attempt.owner.epoch) in self.fenced:
            self.wrong(f"R7 {ask.label} was called for a turn whose loss was known")
        receipt = self.receipts.setdefault(attempt.idempotency_key, len(self.receipts) + 1)
        self.counts[ask.label] += 1
        at = EPOCH.timestamp() + self.loop.time()
        self.calls.append(
            {
                "key": attempt.idempotency_key,
                "label": ask.label,
                "value": ask.value,
                "number": attempt.number,
                "receipt": receipt,
                "at": at,
                "called": at,
            }
        )
        self.heard(f"effect {ask.label} (attempt {attempt.number})")
        return receipt, self.counts[ask.label]


@define
class World:
    """One run's processes and what they share: nothing but the server and the outside."""

    loop: Loop
    chance: Random
    orders: list[Order]
    tuning: Tuning
    seed: int
    heard: Callable[[str], None]
    ledger: Ledger = field(init=False)
    deployment: Deployment = field(init=False)
    workers: dict[str, tuple[Process, asyncio.Event]] = field(factory=dict[str, tuple[Process, asyncio.Event]])
    living: dict[str, Worker] = field(factory=dict[str, Worker])
    told: list[dict[str, Any]] = field(factory=list[dict[str, Any]])
    said: dict[str, str] = field(factory=dict[str, str])
    ids: dict[str, list[str]] = field(factory=dict[str, list[str]])
    """Of each call that starts something: the ids that it wished for, try by try."""
    served: set[int] = field(factory=set[int])
    front: Process | None = None
    janitor: Process | None = None
    schedules: bool = True
    _number: int = 0

    def __attrs_post_init__(self) -> None:
        self.ledger = Ledger(self.loop, self.heard)
        self.deployment = _deployment(self.ledger, schedules=self.schedules)

    # Workers

    def begin_worker(self) -> str:
        self._number += 1
        name = f"worker{self._number}"
        process, stop = self.loop.process(name), asyncio.Event()
        self.workers[name] = process, stop
        process.start(lambda: self._work(name, stop))
        return name

    async def _work(self, name: str, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                store = await Store.open(DSN)
                worker = Worker(self.deployment, store, self.tuning)
                await worker.begin()
            except (FlowError, OSError, TimeoutError, Exception) as error:
                if not (isinstance(error, FlowError) or lost(error) or getattr(error, "sqlstate", None)):
                    raise
                await asyncio.sleep(0.3)
                continue
            self.living[name] = worker
            await stop.wait()
            self.living.pop(name, None)
            await worker.stop()
            await store.close()
        self.workers.pop(name, None)
        self.heard("has stopped")

    # The front

    def begin_front(self) -> None:
        self._number += 1
        self.front = self.loop.process(f"front{self._number}")
        self.front.start(self._serve_all)

    async def _serve_all(self) -> None:
        while True:
            try:
                store = await Store.open(DSN, size=4)
                break
            except FlowError:
                await asyncio.sleep(0.2)
        async with asyncio.TaskGroup() as group:
            for order in self.orders:
                group.create_task(self._serve(store, order))
        self.front = None

    async def _serve(self, store: Store, order: Order) -> None:
        await asyncio.sleep(order.index * 0.15)
        for errand in _errands(self.seed, order):
            if f"{order.index}/{errand.name}" not in self.said:
                await asyncio.sleep(errand.wait)
            calls = [errand.name, f"{errand.name}/again"][: 1 + errand.twice]
            if errand.call == "start":  # two starters of one key
                await asyncio.gather(*(self._until_acknowledged(store, order, errand, call) for call in calls))
            else:
                for call in calls:
                    await self._until_acknowledged(store, order, errand, call)
        self.served.add(order.index)

    async def _until_acknowledged(self, store: Store, order: Order, errand: Errand, name: str) -> None:
        call, pause = f"{order.index}/{name}", 0.05
        while call not in self.said:
            try:
                answer = await self._do(store, order, errand, name)
            except Exception as error:  # what became of it is unknown: it is repeated, under the same key or delivery id
                expected = lost(error) or isinstance(error, FlowError) or getattr(error, "sqlstate", None) in ("55P03", "40P01", "40001")
                self.told.append({"call": call, "state": "unknown", "error": f"{type(error).__name__}: {error}", "expected": expected})
                self.heard(f"{call}: unknown ({type(error).__name__})")
                await asyncio.sleep(pause)
                pause = min(2 * pause, 1.0)
                continue
            self.told.append({"call": call, "state": "ok", "said": answer})
            self.heard(f"{call} ({order.kind}): {answer}")
            self.said[call] = answer

    async def _do(self, store: Store, order: Order, errand: Errand, name: str) -> str:
        if errand.call == "start":
            definition = self.deployment.workflow(f"chaos.{order.kind}")
            key, request = definition.key_of(order), codecs_of(definition).request.encode(order)
            wish = NewStart(id := new_id(), "default", definition.name, definition.version, "", key, definition.reuse, request)
            self.ids.setdefault(f"{order.index}/{name}", []).append(id)
            return (await store.start([wish]))[0].id
        to = self.said.get(f"{order.index}/start", "")
        if errand.call in ("pause", "resume", "terminate", "retry"):
            return await self._operate(store, errand.call, to)
        delivery = f"{order.index}/{errand.name}"
        if errand.call == "cancel":
            return await store.send("default", to, "cancel", "", json.dumps(REASON).encode(), delivery)
        body = json.dumps({"token": token(order.index, errand.number), "value": errand.number}, separators=(",", ":")).encode()
        target = to if errand.call == "signal" else correlation(order.index)
        return await store.send("default", target, "signal", "chaos-news", body, delivery)

    def begin_person(self, blocked: Callable[[], list[str]]) -> None:
        """Somebody who lets go on what was blocked because three workers had died with it."""
        self.loop.process("person").start(lambda: self._care(blocked))

    async def _care(self, blocked: Callable[[], list[str]]) -> None:
        store = await Store.open(DSN, size=1)
        operator = Operator(store, self.deployment, by="person")
        while True:
            for id in blocked():
                try:
                    await operator.resume(id, "the workers live again")
                except FlowError:
                    continue
            await asyncio.sleep(0.5)

    def begin_janitor(self) -> asyncio.Task[Any]:
        """Somebody who deletes what has ended."""
        self._number += 1
        process = self.loop.process(f"janitor{self._number}")
        self.janitor = process
        return process.start(self._prune)

    async def _prune(self) -> None:
        store = await Store.open(DSN, size=1)
        await Operator(store, by="janitor").prune(timedelta(0), batch=2)

    async def _operate(self, store: Store, what: str, id: str) -> str:
        """Does it, or finds that it was done or comes too late; a resumption waits for the pause, a retry for the failure."""
        operator = Operator(store, self.deployment, by="front")
        while True:
            status = (await store.summary(id)).status
            if status in ("succeeded", "cancelled") or (status == "failed" and what != "retry"):
                return status
            try:
                match what:
                    case "pause":
                        return await operator.pause(id, REASON)
                    case "terminate":
                        await operator.terminate(id, REASON)
                        return "terminated"
                    case "resume" if status == "blocked":
                        await operator.resume(id, REASON)
                        return "resumed"
                    case "retry" if status == "failed":
                        await operator.retry(id, REASON)
                    case _:
                        pass
            except FlowError:  # it moved between our look and our word
                pass
            await asyncio.sleep(0.2)


def _deployment(ledger: Ledger, *, schedules: bool) -> Deployment:
    """The chaos run's workflows; their activities call the ledger, and take virtual time."""

    async def effect(ask: Ask) -> Result[Receipt, Problem]:
        told = ledger.call(ask)
        await asyncio.sleep(ask.pause / 1000)
        return activities._answer(ask, told)  # pyright: ignore[reportPrivateUsage]

    def effect_in_thread(ask: Ask) -> Result[Receipt, Problem]:
        return activities._answer(ask, ledger.call(ask, in_thread=True))  # pyright: ignore[reportPrivateUsage]

    async def once(ask: Ask) -> Any:
        receipt, _ = ledger.call(ask)
        await asyncio.sleep(ask.pause / 1000)
        return Success(Receipt(ask.value, receipt))

    async def no_answer(ask: Ask) -> Result[None, Never]:
        await asyncio.sleep(ask.pause / 1000)
        return Success(None)

    async def given_basket(ask: Ask) -> Result[Basket, Never]:
        found = Basket([ask.value])
        asyncio.get_running_loop().call_later(0.001, found.values.append, 1)
        return Success(found)

    bindings = [
        bind(activities.effect, effect), bind(activities.effect_in_thread, effect_in_thread), bind(activities.once, once),
        bind(activities.bounded, effect), bind(activities.mark, activities._mark),  # pyright: ignore[reportPrivateUsage]
        bind(nothing, no_answer), bind(basket, given_basket),
    ]  # fmt: skip
    return Deployment([*chaos.workflows, given_nothing, given_a_basket, chopped], bindings, chaos.schedules if schedules else ())
