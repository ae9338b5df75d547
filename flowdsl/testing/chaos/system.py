"""The system under chaos: workflows that use everything the language promises."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from attrs import frozen

from flowdsl import (
    Deployment,
    Died,
    Done,
    Failure,
    Next,
    Retry,
    Round,
    Schedule,
    Steps,
    Success,
    TimedOut,
    Workflow,
    all_,
    do,
    each,
    execution,
    fail,
    iterate,
    race,
    saga,
    signal,
    sleep,
    workflow,
)
from flowdsl.testing.chaos.activities import (
    BINDINGS,
    Ask,
    Flaky,
    Problem,
    Receipt,
    Refused,
    bounded,
    effect,
    effect_in_thread,
    mark,
    once,
)
from flowdsl.testing.chaos.orders import RELEASES, TICK, Order, correlation

KEY = "{kind}:{index}"
RELEASE = "FLOWDSL_CHAOS_RELEASE"
"""The environment variable that says which release a process is of."""


@frozen
class News:
    token: str
    value: int


@frozen
class Part:
    """The input of a child."""

    order: int
    place: str
    value: int
    pause: int
    mode: str = "fine"
    size: int = 0
    friend: str = ""

    @property
    def label(self) -> str:
        return f"{self.order}/{self.place}"


news = signal("chaos-news", News)
reply = signal("chaos-reply", int)


def step(order: Order, place: int, *, fails: int = 0, bugs: int = 0, pause: int = 0) -> Ask:
    return Ask(order.label(f"step{place}"), order.index + place, fails, bugs, pause)


def undo(made: Receipt, label: str) -> Ask:
    return Ask(f"{label} undone", -made.value)


# Activities, failing and not


@workflow("chaos.sequence", key=KEY)
def sequence(order: Order) -> Steps[int, Problem]:
    total = 0
    for place in range(order.size):
        receipt = yield from effect(step(order, place, fails=order.fails if place % 2 else 0, bugs=int(place == 2), pause=order.pause // 10))
        total += receipt.value
    return total


@workflow("chaos.refused", key=KEY)
def refused(order: Order) -> Steps[int, Problem]:
    yield from effect(step(order, 0, fails=order.fails))
    return (yield from effect(Ask(order.label("refused"), 0, refused=True))).value


@workflow("chaos.exhausted", key=KEY)
def exhausted(order: Order) -> Steps[int, Problem]:
    thrice = effect.using(retry=Retry.constant("50ms", attempts=3, on=(Flaky,)))
    return (yield from thrice(Ask(order.label("exhausted"), 0, fails=1000))).value


@workflow("chaos.bug", key=KEY)
def bug(order: Order) -> Steps[int, Problem]:
    twice = effect.using(retry=Retry.constant("50ms", attempts=2))
    return (yield from twice(Ask(order.label("bug"), 0, bugs=1000))).value


@workflow("chaos.once", key=KEY)
def at_most_once(order: Order) -> Steps[str, Problem]:
    outcome = yield from once(Ask(order.label("once"), 1, pause=order.pause)).attempt()
    yield from effect(step(order, 0))
    return "once" if isinstance(outcome, Success) else "interrupted"


@workflow("chaos.threaded", key=KEY)
def threaded(order: Order) -> Steps[int, Problem]:
    first, second = yield from all_(effect_in_thread(step(order, 0, fails=order.fails, pause=order.pause // 4)), effect_in_thread(step(order, 1)))
    return first.value + second.value


@workflow("chaos.marks", key=KEY)
def marks(order: Order) -> Steps[int, Problem]:
    total = 0
    for place in range(order.size):
        total += yield from mark(step(order, place, fails=order.fails if place == 1 else 0, bugs=int(place == 3), pause=order.pause // 20))
    return total


# Time and mail


@workflow("chaos.timers", key=KEY)
def timers(order: Order) -> Steps[int, Problem]:
    total = 0
    for place in range(order.size):
        total += (yield from effect(step(order, place))).value
        yield from sleep(f"{order.pause}ms")
    return total + (yield from effect(step(order, order.size))).value


@workflow("chaos.signals", key=KEY)
def signals(order: Order) -> Steps[list[str], Problem]:
    found: list[str] = []
    for place in range(order.size):
        if place % 2:
            yield from effect(step(order, place))
        found.append((yield from news.receive()).token)
    return found


@workflow("chaos.letters", key=KEY)
def letters(order: Order) -> Steps[list[str], Problem]:
    yield from effect(step(order, 0, pause=order.pause))
    found: list[str] = []
    for _ in range(order.size):
        found.append((yield from news.receive(correlation(order.index))).token)
    return found


@workflow("chaos.deadline", key=KEY)
def deadline(order: Order) -> Steps[str, Problem]:
    first = yield from news.receive().timeout(f"{order.pause}ms").attempt()
    yield from effect(step(order, 0))
    if isinstance(first, Success):
        return f"in time {first.unwrap().token}"
    return f"late {(yield from news.receive()).token}"


@workflow("chaos.silence", key=KEY)
def silence(order: Order) -> Steps[str, TimedOut]:
    return (yield from news.receive().timeout(f"{order.pause}ms")).token


@workflow("chaos.pen_pals", key=KEY)
def pen_pals(order: Order) -> Steps[int, Problem]:
    here = (yield from execution()).id
    pal = yield from pen_pal.start(Part(order.index, "pal", order.index, order.pause // 4, size=order.size, friend=here))
    total = 0
    for place in range(order.size):
        yield from news.send(pal.id, News(f"{order.index}>{place}", place))
        total += yield from reply.receive()
    return total + (yield from pal.join())


@workflow("chaos.pen_pal")
def pen_pal(part: Part) -> Steps[int, Problem]:
    for place in range(part.size):
        letter = yield from news.receive()
        yield from effect(Ask(f"{part.label}{place}", part.value, pause=part.pause))
        yield from reply.send(part.friend, part.value + letter.value)
    return part.value


# Children


@workflow("chaos.part")
def part(part: Part) -> Steps[int, Problem]:
    if part.mode == "forever":
        yield from sleep("30d")
    receipt = yield from effect(Ask(part.label, part.value, bugs=1000 if part.mode == "bug" else 0, refused=part.mode == "refused"))
    yield from sleep(f"{part.pause}ms")
    return receipt.value


@workflow("chaos.buggy_part")
def buggy_part(part: Part) -> Steps[int, Problem]:
    return (yield from effect.using(retry=Retry.constant("50ms", attempts=2))(Ask(part.label, part.value, bugs=1000))).value


def child(order: Order, place: int, mode: str = "fine") -> Part:
    return Part(order.index, f"child{place}", order.index + place, order.pause // 2, mode)


@workflow("chaos.children", key=KEY)
def children(order: Order) -> Steps[int, Problem]:
    return sum((yield from each(range(order.size), lambda place: part.child(child(order, place)), concurrency=4)))


@workflow("chaos.keyed", key=KEY)
def keyed(order: Order) -> Steps[int, Problem]:
    first = yield from part.start(child(order, 0), key="the one")
    again, other = yield from all_(part.child(child(order, 0), key="the one"), part.child(child(order, 1), key="the other"))
    return (yield from first.join()) + again + other


@workflow("chaos.isolated", key=KEY)
def isolated(order: Order) -> Steps[list[str], Problem]:
    found: list[str] = []
    for outcome in (
        (yield from part.child(child(order, 0, "refused")).isolate().attempt()),
        (yield from buggy_part.child(child(order, 1, "bug")).isolate().attempt()),
        (yield from part.child(child(order, 2)).isolate().attempt()),
    ):
        error = outcome.failure() if isinstance(outcome, Failure) else None
        found.append("died" if isinstance(error, Died) else "refused" if error is not None else "fine")
    return found


@workflow("chaos.beside", key=KEY)
def beside(order: Order) -> Steps[int, Problem]:
    yield from part.start(child(order, 0, "forever"))
    yield from part.start(child(order, 1), detached=True)
    receipt = yield from effect(step(order, 0, pause=order.pause // 4))
    if order.fails:
        return (yield from fail(Refused(order.label("beside"))))
    return receipt.value


# Undos, races, loops


@do
def undone_later(order: Order, place: int) -> Steps[int, Problem]:
    ask = step(order, place, fails=order.fails if place == 1 else 0)
    return (yield from effect(ask).compensate(lambda made: effect(undo(made, ask.label)))).value


@workflow("chaos.saga", key=KEY)
def failing_saga(order: Order) -> Steps[int, Problem]:
    for place in range(order.size):
        yield from undone_later(order, place)
    return (yield from effect(Ask(order.label("refused"), 0, refused=True))).value


@workflow("chaos.inner_saga", key=KEY)
def inner_saga(order: Order) -> Steps[str, Problem]:
    @do
    def inner() -> Steps[int, Problem]:
        for place in range(order.size):
            yield from undone_later(order, place)
        return (yield from fail(Refused(order.label("inner"))))

    outcome = yield from saga(inner()).attempt()
    yield from effect(step(order, order.size))
    return "kept" if isinstance(outcome, Success) else "rolled back"


@workflow("chaos.race", key=KEY)
def racing(order: Order) -> Steps[str, Problem]:
    work = effect(step(order, 0, pause=order.pause)).map(lambda _: "effect")
    first = yield from race(work, sleep(f"{order.pause}ms").map(lambda _: "timer"))
    yield from effect(step(order, 1))
    return first


@workflow("chaos.loop", key=KEY)
def loop(order: Order) -> Steps[int, Problem]:
    @do
    def round(at: tuple[int, int]) -> Steps[Round[tuple[int, int], int], Problem]:
        place, total = at
        total += (yield from effect(step(order, place))).value
        total += yield from mark(Ask(order.label(f"mark{place}"), 1))
        yield from sleep(f"{order.pause // 4}ms")
        return Done(total) if place + 1 == order.size else Next((place + 1, total))

    return (yield from iterate((0, 0), round))


@workflow("chaos.fan", key=KEY)
def fan(order: Order) -> Steps[int, Problem]:
    receipts = yield from each(range(order.size * 4), lambda place: effect(step(order, place, pause=order.pause // 10)), concurrency=order.size)
    return sum(receipt.value for receipt in receipts)


@workflow("chaos.bounded", key=KEY)
def within_bounds(order: Order) -> Steps[int, Problem]:
    receipts = yield from each(range(order.size), lambda place: bounded(step(order, place, pause=order.pause // 8)))
    return sum(receipt.value for receipt in receipts)


# From outside


@workflow("chaos.cancelled", key=KEY)
def cancelled(order: Order) -> Steps[int, Problem]:
    yield from undone_later(order, 0)
    return (yield from news.receive().ensure(lambda _: effect(Ask(order.label("finalizer"), 0)))).value


@workflow("chaos.too_late", key=KEY)
def too_late(order: Order) -> Steps[int, Problem]:
    total = 0
    for place in range(order.size):
        total += yield from undone_later(order, place)
        yield from sleep(f"{order.pause}ms")
    return total


@workflow("chaos.waiting", key=KEY)
def waiting(order: Order) -> Steps[int, Problem]:
    return (yield from part.child(child(order, 0, "forever")))


@workflow("chaos.paused", key=KEY)
def paused(order: Order) -> Steps[int, Problem]:
    total = 0
    for place in range(order.size):
        total += (yield from effect(step(order, place, pause=order.pause // 4))).value
        yield from sleep(f"{order.pause // 4}ms")
    return total


@workflow("chaos.terminated", key=KEY)
def terminated(order: Order) -> Steps[int, Problem]:
    yield from undone_later(order, 0)
    return (yield from news.receive().ensure(lambda _: effect(Ask(order.label("finalizer"), 0)))).value


@workflow("chaos.retried", key=KEY)
def retried(order: Order) -> Steps[int, Problem]:
    first = yield from effect(step(order, 0))
    second = yield from effect(Ask(order.label("again"), order.index, refusals=1))
    return first.value + second.value


def deployed(version: int) -> Workflow[Order, int, Problem]:
    """What each release does after all that the one before it did."""

    @workflow("chaos.deployed", key=KEY, version=version)
    def deployed(order: Order) -> Steps[int, Problem]:
        total = 0
        for place in range(order.size):
            total += (yield from effect(step(order, place, pause=order.pause // 8))).value
            yield from sleep(f"{order.pause // 2}ms")
        for number in range(1, version):
            total += (yield from effect(Ask(order.label(f"new{number}"), 1))).value
        return total

    return deployed


def ticking(version: int) -> Workflow[Order, int, Problem]:
    """Started by the clock alone: in the version of the newest release, while workers of the one before it are there too."""

    @workflow("chaos.tick", version=version)
    def tick(order: Order) -> Steps[int, Problem]:
        here = (yield from execution()).id
        value = (yield from effect(Ask(order.label(here), version))).value
        for _ in range(2):  # each time anybody may go on with it
            yield from sleep(f"{order.pause}ms")
        return value

    return tick


WORKFLOWS: list[Workflow[Any, Any, Any]] = [
    sequence, refused, exhausted, bug, at_most_once, threaded, marks, timers, signals, letters, deadline, silence, pen_pals, children, keyed,
    isolated, beside, failing_saga, inner_saga, racing, loop, fan, cancelled, too_late, waiting, within_bounds, paused, terminated, retried,
]  # fmt: skip


def deployment_of(release: int) -> Deployment:
    """What runs from that release on: the new versions of two workflows, and those that executions of earlier ones still have."""
    ticks = [ticking(version) for version in range(1, release + 1)]
    return Deployment(
        workflows=[*WORKFLOWS, *(deployed(version) for version in range(1, release + 1)), *ticks],
        bindings=BINDINGS,
        schedules=[Schedule.every(f"{TICK}s", ticks[-1], Order(-1, "tick", 0, 0, 300), id="chaos-tick", overlap="allow", catch_up="all")],
        migrations=[Path(__file__).parent / "tables"],
    )


def deployment_here() -> Deployment:
    """That of the release which this process is started with."""
    return deployment_of(int(os.environ.get(RELEASE, "1")))


deployment = deployment_of(RELEASES)
