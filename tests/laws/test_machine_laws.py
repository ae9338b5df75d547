"""The laws of the machine, on generated flows: what the oracle says, crashes, checkpoints, cancellations, algebra, depth.

Each law is tried on plans that Hypothesis can shrink and on plans from plain seeds, which are bigger. FLOWDSL_LONG=1: fifty times as many.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Never

import pytest
from attrs import evolve, fields, has
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from returns.result import Failure, Result, Success

from flowdsl import (
    Cancelled,
    Deployment,
    Done,
    Flow,
    Next,
    Round,
    Steps,
    activity,
    all_,
    bind,
    changed,
    do,
    fail,
    iterate,
    masked,
    pure,
    race,
    saga,
    signal,
    sleep,
    workflow,
)  # fmt: skip
from flowdsl.activation import Activation, live_entries
from flowdsl.flow import Execution
from flowdsl.journal import BUG, FAILURE, SUCCESS, Entry, Fold
from flowdsl.machine import Fiber, Machine, _Branches, _Iterate, _Rollback, _Saga
from flowdsl.memory import EPOCH, Memory, _Kept
from tests.laws.flows import (
    DEPLOYMENT,
    MICROSECOND,
    Fails,
    Loop,
    Made,
    Many,
    Mask,
    Plan,
    Receives,
    Shape,
    Spec,
    Value,
    build,
    holds,
    plans,
    seeded,
)  # fmt: skip
from tests.laws.oracle import Tie, Told, foretold
from tests.laws.simulated import Simulated, plain

LONG = 50 if os.environ.get("FLOWDSL_LONG") == "1" else 1
pytestmark = pytest.mark.timeout(600 * LONG)
START = int(os.environ.get("FLOWDSL_SEED", "0"))
PATIENT = Shape(patient=True)
UNDOS = ("saga", "saga", "undo", "undo", "isolate", "isolate", "attempt", "loop", "seq", "body", "many")
CUTS = ("race", "race", "timeout", "mask", "ensure", "ensure", "isolate", "catch", "undo", "saga", "seq", "loop", "child")
CALM = Shape(patient=True, calm=True)


def law(examples: int) -> Any:
    return settings(max_examples=examples * LONG, deadline=None, suppress_health_check=list(HealthCheck))


def seeds(count: int) -> Iterable[int]:
    return range(START, START + count * LONG)


def told_or_skipped(plan: Plan) -> Told | None:
    try:
        return foretold(plan)
    except Tie:
        return None


def renumbered(spec: Any) -> Any:
    """The same spec with other tags."""
    if isinstance(spec, tuple):
        return tuple(renumbered(one) for one in spec)
    if not has(type(spec)):
        return spec
    changes = {one.name: renumbered(getattr(spec, one.name)) for one in fields(type(spec))}
    return evolve(spec, **{**changes, "tag": spec.tag + 1000} if "tag" in changes else changes)


def micros(entry: Entry) -> int:
    return (entry.at - EPOCH) // MICROSECOND


# The machine does what the oracle says


def agrees(plan: Plan) -> None:
    want = told_or_skipped(plan)
    if want is not None:
        run = Simulated(plan)
        assert run.told() == want, plan
        for kept in run._kept.values():
            answers = Counter(entry.step for entry in kept.journal if entry.kind in (SUCCESS, FAILURE, BUG))
            assert max(answers.values(), default=1) == 1, (plan, "a step was answered twice")


@law(100)
@given(plans())
def test_exits_calls_and_undos_are_what_the_oracle_says(plan: Plan) -> None:
    agrees(plan)


def test_so_they_are_in_bigger_flows() -> None:
    for seed in seeds(1500):
        agrees(seeded(seed))
    for seed in seeds(300):
        agrees(seeded(seed, Shape(depth=4.5)))
    for seed in seeds(600):
        agrees(seeded(seed, Shape(depth=4, kinds=UNDOS, children=False, signals=False)))
        agrees(seeded(seed, Shape(depth=4, kinds=CUTS, signals=False)))


@pytest.mark.parametrize("order", range(4))
def test_a_race_is_decided_by_the_order_of_the_answers(order: int) -> None:
    agrees(seeded(5, Shape(depth=4)).ordered(order))


# Crashes


def survives(plan: Plan, crashes: set[int]) -> None:
    """The same exit, calls and journal, but for what says that it was interrupted."""
    whole = Simulated(plan)
    want = whole.told()
    cut = Simulated(plan, crash=lambda n: n in crashes)
    assert cut.told() == want, (plan, crashes)
    for id, kept in whole._kept.items():
        assert plain(cut._kept[id].journal) == plain(kept.journal), (plan, crashes)


def length(plan: Plan) -> int:
    run = Simulated(plan)
    run.told()
    return max(len(kept.journal) for kept in run._kept.values())


@law(40)
@given(plans(PATIENT), st.data())
def test_one_or_two_crashes_change_nothing(plan: Plan, data: st.DataObject) -> None:
    assume(length(plan))
    survives(plan, data.draw(st.sets(st.integers(1, length(plan) + 1), min_size=1, max_size=2)))


def test_a_crash_after_each_entry_changes_nothing() -> None:
    for seed in seeds(60):
        plan = seeded(seed, evolve(PATIENT, depth=3.5))
        for n in range(1, min(length(plan), 40) + 1):
            survives(plan, {n})


def test_two_crashes_change_nothing() -> None:
    for seed in seeds(100):
        plan = seeded(seed, evolve(PATIENT, depth=4))
        survives(plan, set(Random(seed).choices(range(1, length(plan) + 3), k=2)))


def test_a_crash_and_a_cancellation_change_nothing_but_the_end() -> None:
    for seed in seeds(100):
        chance, plan = Random(seed), seeded(seed, PATIENT)
        ends = [at for at, _, _ in foretold_calls(plan)] or [0]
        survives(plan.cancelled(chance.choice(ends) + 1), {chance.randint(1, length(plan) + 1)})


def foretold_calls(plan: Plan) -> tuple[tuple[int, int, int], ...]:
    run = Simulated(plan)
    return run.told().calls


# Checkpoints: what is loaded folds to the same as all that there is


def state(fold: Fold) -> dict[str, Any]:
    """All of a machine that can make a difference later."""
    machine = fold.machine
    pending = [
        (step, fold.fingerprint(one), fold.site(one), one.opened, one.attempts, one.due, one.intended) for step, one in machine.pending.items()
    ]
    return {
        "position": (fold.position, fold.at, machine.now),
        "exit": machine.exit,
        "undone": (machine.failed_undos, machine.cancelling),
        "pending": pending,
        "kept": machine.segment.ranges,
        "loops": {step: _loop(loop) for step, (_, loop) in machine._loops.items()},
        "live": {step: machine.live_positions(step) for step in machine._loops},
        "fibers": _fiber(machine._root),
    }


def _loop(loop: _Iterate) -> tuple[Any, ...]:
    return loop.round, loop.state, loop.begun, loop.pinned, loop.segment.ranges, loop.mask


def _fiber(fiber: Fiber) -> tuple[Any, ...]:
    frames: list[Any] = []
    for frame in fiber.frames:
        kind = type(frame).__name__
        if isinstance(frame, _Saga):
            frames.append((kind, [answer for _, answer, _ in frame.undos]))
        elif isinstance(frame, _Rollback):
            frames.append((kind, frame.kind, frame.value, frame.done, frame.failed, [answer for _, answer, _ in frame.saga.undos]))
        elif isinstance(frame, _Branches):
            frames.append((kind, frame.kind, frame.value, {index: _fiber(child) for index, child in frame.live.items()}))
        else:
            frames.append(kind)
    return fiber.scope, fiber.counter, fiber.mask, fiber.cancel, fiber.unwinding, fiber.changes, frames


def replayed(kept: _Kept, entries: list[Entry]) -> dict[str, Any]:
    activation = Activation(kept.execution, kept.workflow, kept.request, DEPLOYMENT.workflow)
    activation.fold.replay(entries)
    return state(activation.fold)


def folds_the_same(plan: Plan, longest: int = 60) -> int:
    """Live rows against all rows, after every entry; gives how many prefixes there were where they differ."""
    run = Simulated(plan)
    run.told()
    tried = 0
    for kept in run._kept.values():
        for n in range(1, min(len(kept.journal), longest) + 1):
            rows = kept.journal[:n]
            live = live_entries(rows)
            if len(live) < len(rows):
                tried += 1
                assert replayed(kept, live) == replayed(kept, rows), (plan, n)
    return tried


@law(40)
@given(plans())
def test_live_rows_fold_to_the_same_as_all_rows(plan: Plan) -> None:
    folds_the_same(plan)


def test_so_they_do_in_loops_with_undos_masks_and_cancellations() -> None:
    tried = 0
    for seed in seeds(250):
        plan = seeded(seed, Shape(depth=4, kinds=((), UNDOS, CUTS)[seed // 6 % 3]))
        plan = Plan(Many("all", (Loop(-2, 3, plan.spec, False), Loop(-3, 2, Value(1), True))), plan.order, plan.signals)
        if seed % 3 == 0:
            plan = evolve(plan, spec=Mask(plan.spec))
        if seed % 2:
            plan = plan.cancelled(Random(seed).choice([at for at, _, _ in foretold_calls(plan)] or [0]) + 1)
        tried += folds_the_same(plan)
    assert tried > 100


# Cancellation


def ends_when_cancelled(plan: Plan, at: int) -> None:
    cancelled = plan.cancelled(at)
    want = told_or_skipped(cancelled)
    if want is None:
        return
    run = Simulated(cancelled)
    got = run.told()
    assert got == want, cancelled
    twice = Simulated(cancelled)
    for later in (1, 2_000_000):
        twice.at(EPOCH + (at + later) * MICROSECOND, lambda: twice.cancel(twice.root, "again"))
    assert twice.told() == want
    assert plain(twice.journal) == plain(run.journal)
    whole = Simulated(plan)
    ended = whole.told()
    if not holds(plan.spec, Mask, Receives) and (ended.exit is None or micros(whole.journal[-1] if whole.journal else _at_start()) > at):
        assert got.exit is not None, (cancelled, "it did not end")


def _at_start() -> Entry:
    return Entry(0, SUCCESS, EPOCH, "", "", "", b"")


def test_a_cancellation_after_each_entry_ends_it_with_its_finalizers_and_undos() -> None:
    for seed in seeds(120):
        plan = seeded(seed, Shape(depth=3.5))
        run = Simulated(plan)
        run.told()
        for at in sorted({micros(entry) + 1 for entry in run.journal})[:20]:
            ends_when_cancelled(plan, at)


@law(40)
@given(plans(), st.integers(0, 6), st.integers(0, 60))
def test_a_cancellation_at_any_time_ends_it(plan: Plan, hours: int, minutes: int) -> None:
    ends_when_cancelled(plan, (hours * 60 + minutes) * 60_000_000 + 1)


# Steps


def steps(plan: Plan) -> dict[str, str]:
    run = Simulated(plan)
    run.told()
    return {f"{id}/{entry.step}": entry.fingerprint for id, kept in run._kept.items() for entry in kept.journal}


def test_steps_do_not_depend_on_the_order_of_the_answers() -> None:
    for seed in seeds(60):
        plan = seeded(seed, evolve(CALM, depth=4))
        assert len({tuple(sorted(steps(plan.ordered(order)).items())) for order in range(4)}) == 1, plan


# Algebra: two ways to say the same

Side = Callable[[int], Flow[int, Any]]
Law = Callable[[Spec, Spec, int], tuple[Side, Side]]

ALGEBRA: dict[str, Law] = {
    "pure(a).then(f) is f(a)": lambda m, f, a: (lambda x: pure(a).then(lambda y: build(f, y)), lambda x: build(f, a)),
    "m.then(pure) is m": lambda m, f, a: (lambda x: build(m, x).then(pure), lambda x: build(m, x)),
    "then is associative": lambda m, f, a: (
        lambda x: build(m, x).then(lambda y: build(f, y)).then(lambda y: pure(y + a)),
        lambda x: build(m, x).then(lambda y: build(f, y).then(lambda z: pure(z + a))),
    ),
    "map is then of pure": lambda m, f, a: (lambda x: build(m, x).map(lambda y: y + a), lambda x: build(m, x).then(lambda y: pure(y + a))),
    "two maps are one": lambda m, f, a: (
        lambda x: build(m, x).map(lambda y: y + a).map(lambda y: y * 2),
        lambda x: build(m, x).map(lambda y: (y + a) * 2),
    ),
    "fail(e).catch(h) is h(e)": lambda m, f, a: (lambda x: fail(a).catch(lambda e: build(f, e)), lambda x: build(f, a)),
    "fail(e).then(f) is fail(e)": lambda m, f, a: (lambda x: build(Fails(a), x).then(lambda y: build(f, y)), lambda x: build(Fails(a), x)),
    "pure(a).catch(h) is pure(a)": lambda m, f, a: (lambda x: pure(a).catch(lambda _: build(f, 0)), lambda x: pure(a)),
    "m.catch(fail) is m": lambda m, f, a: (lambda x: build(m, x).catch(fail), lambda x: build(m, x)),
    "m.attempt(), undone, is m": lambda m, f, a: (
        lambda x: build(m, x).attempt().then(lambda o: pure(o.unwrap()) if isinstance(o, Success) else fail(o.failure())),
        lambda x: build(m, x),
    ),
    "race(m) is m": lambda m, f, a: (lambda x: race(build(m, x)), lambda x: build(m, x)),
    "all_(m) is m": lambda m, f, a: (lambda x: all_(build(m, x)).map(lambda one: one[0]), lambda x: build(m, x)),
    "a mask in a mask is a mask": lambda m, f, a: (lambda x: masked(masked(build(m, x))), lambda x: masked(build(m, x))),
    "a saga in a saga is a saga": lambda m, f, a: (lambda x: saga(saga(build(m, x))), lambda x: saga(build(m, x))),
    "m.ensure(nothing) is m": lambda m, f, a: (lambda x: build(m, x).ensure(lambda _: pure(None)), lambda x: build(m, x)),
    "a loop of one round is its round": lambda m, f, a: (lambda x: iterate(x, lambda y: build(m, y).map(Done)), lambda x: build(m, x)),
    "a mask within a saga is a saga within a mask": lambda m, f, a: (
        lambda x: masked(saga(build(m, x))),
        lambda x: masked(saga(masked(build(m, x)))),
    ),
}


@pytest.mark.parametrize("name", ALGEBRA)
def test_two_ways_to_say_the_same(name: str) -> None:
    shape = Shape(depth=2, children=False)
    for seed in seeds(60):
        m, f = seeded(2 * seed, shape).spec, renumbered(seeded(2 * seed + 1, shape).spec)
        left, right = ALGEBRA[name](m, f, seed % 7)
        one, other = Plan(Made(left, (m, f)), seed % 4), Plan(Made(right, (m, f)), seed % 4)
        if seed % 2:
            one, other = one.cancelled((seed % 5) * 3_000_000_000 + 1), other.cancelled((seed % 5) * 3_000_000_000 + 1)
        assert Simulated(one).told() == Simulated(other).told(), (name, seed)


# Depth and length


def machine_of(flow: Flow[Any, Any]) -> Machine:
    return Machine(Execution("e", "t", "w", None, None, EPOCH), flow)


DEEP = 100_000


def left(wrap: Callable[[Flow[int, Any]], Flow[int, Any]], depth: int = DEEP) -> Flow[int, Any]:
    flow: Flow[int, Any] = pure(0)
    for _ in range(depth):
        flow = wrap(flow)
    return flow


def down(n: int) -> Flow[int, Any]:
    return pure(n).then(lambda m: down(m - 1) if m else pure(0))


@do
def bodies(n: int) -> Steps[int, Any]:
    return (yield from bodies(n - 1)) if n else 0


NESTED: dict[str, tuple[Callable[[], Flow[int, Any]], int]] = {
    "then, to the left": (lambda: left(lambda flow: flow.then(lambda n: pure(n + 1))), DEEP),
    "then, to the right": (lambda: down(DEEP), 0),
    "map": (lambda: left(lambda flow: flow.map(lambda n: n + 1)), DEEP),
    "catch": (lambda: left(lambda flow: flow.catch(fail)), 0),
    "isolate": (lambda: left(lambda flow: flow.isolate()), 0),
    "ensure": (lambda: left(lambda flow: flow.ensure(lambda _: pure(None))), 0),
    "compensate": (lambda: left(lambda flow: flow.compensate(lambda _: pure(None))), 0),
    "saga": (lambda: left(saga), 0),
    "masked": (lambda: left(masked), 0),
    "bodies": (lambda: bodies(DEEP), 0),
    "silent rounds": (lambda: iterate(0, lambda n: pure(Next(n + 1) if n < DEEP else Done(n))), DEEP),
    "races": (lambda: left(race, 2000), 0),
}


@pytest.mark.parametrize("name", NESTED)
def test_depth_costs_no_recursion(name: str) -> None:
    make, want = NESTED[name]
    machine = machine_of(make())
    machine.start()
    assert machine.exit == Success(want)


def test_a_failure_and_a_cancellation_come_up_through_any_depth() -> None:
    machine = machine_of(left(lambda flow: flow.then(lambda n: pure(n + 1))).then(lambda n: fail(n).then(pure)))
    machine.start()
    assert machine.exit == Failure(DEEP)
    deep: Flow[Any, Any] = sleep("1s")
    for _ in range(2000):
        deep = race(deep).ensure(lambda _: pure(None))
    machine = machine_of(deep)
    machine.start()
    machine.cancel("enough", position=0, at=EPOCH)
    assert machine.exit == Cancelled("enough")


def test_dropping_a_round_costs_no_recursion() -> None:
    def step(n: int) -> Flow[Any, Any]:
        deep: Flow[Any, Any] = sleep("1s")
        for _ in range(2000):
            deep = race(deep)
        return deep

    machine = machine_of(iterate(0, step))
    machine.start()
    machine.checkpoint("0", 7, 7, position=0, at=EPOCH)
    assert len(machine.pending) == 1


# A long loop costs what is open, not what is done

hint = signal("hint", int)


@activity("laws.count")
def counted(n: int) -> Result[int, Never]: ...


@workflow("laws.long")
def long_loop(rounds: int) -> Steps[int, Never]:
    @do
    def one_round(n: int) -> Steps[Round[int, int], Never]:
        first = yield from race(counted(n), hint.receive(), sleep("1d").map(lambda _: 0))
        inner = yield from iterate(0, lambda i: counted(i).map(lambda _: Done(i) if i else Next(i + 1)))
        new = yield from changed("always")
        return Next(first + inner * new) if first + 1 < rounds else Done(first)

    return (yield from iterate(0, one_round))


def test_a_long_loop_keeps_little() -> None:
    rounds = 2000 * LONG
    memory = Memory(Deployment([long_loop], [bind(counted, lambda n: Success(n))]))
    id = memory.start(long_loop, rounds)
    kept, largest = memory._kept[id], Counter[str]()
    commit = memory._commit

    def watched(one: _Kept) -> None:
        activation = one.activation
        commit(one)
        if activation is not None:
            largest["dues"] = max(largest["dues"], len(activation._due))
            largest["waits"] = max(largest["waits"], sum(map(len, activation._waiting.values())))
            largest["pending"] = max(largest["pending"], len(activation.fold.machine.pending))
            largest["loops"] = max(largest["loops"], len(activation.fold.machine._loops))
            largest["changes"] = max(largest["changes"], len(activation.fold.machine._root.changes))
            largest["kept"] = max(largest["kept"], len(activation.fold.machine.segment.ranges))

    memory._commit = watched  # type: ignore[method-assign]
    memory.go()
    assert memory.look(id).exit == Success(rounds - 1)
    live = [entry for entry in kept.journal if entry.live is not None]
    assert len(live) >= rounds
    assert max(sum(high - low for low, high in entry.live or ()) for entry in live) <= 8
    assert max(len(entry.live or ()) for entry in live) <= 3
    assert len(live_entries(kept.journal)) <= 8
    assert largest["dues"] <= 200 and largest["waits"] <= 200
    assert largest["pending"] <= 4 and largest["loops"] <= 2 and largest["changes"] <= 1 and largest["kept"] <= 2
