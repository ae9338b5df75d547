"""Each law can fail: for each there is a workflow, or a piece of the interpreter, that is broken on purpose, and `check` finds it."""

from __future__ import annotations

import random as chance
from collections.abc import Callable
from datetime import datetime
from typing import Any, Never

import pytest
from attrs import frozen
from hypothesis import strategies as st

from flowdsl import (
    Cancelled,
    Failure,
    Flow,
    Interrupted,
    Result,
    Retry,
    Steps,
    Success,
    activity,
    all_,
    do,
    masked,
    pure,
    race,
    signal,
    sleep,
    workflow,
)
from flowdsl.activation import Activation
from flowdsl.codec import converter
from flowdsl.errors import FlowError
from flowdsl.flow import Pure, Then
from flowdsl.journal import SUCCESS, Entry
from flowdsl.machine import Fiber, Machine, _Saga
from flowdsl.memory import Memory, _Kept
from flowdsl.testing import LawBroken, check
from flowdsl.testing.steady import Watched


@frozen
class Failed:
    why: str


@activity("laws.ask", retry=Retry.constant("1s", attempts=4, on=(Failed,)))
def ask(question: str) -> Result[int, Failed]: ...


@activity("laws.undo", retry=Retry.constant("1s"))
def take_back(question: str) -> Result[None, Never]: ...


@activity("laws.say", retry=Retry.constant("1s"))
def say(number: int) -> Result[None, Never]: ...


approved = signal("laws.approved", str)


def broken(law: int, workflow: Any, **about: Any) -> LawBroken:
    """What `check` says of it."""
    with pytest.raises(LawBroken) as caught:
        check(workflow, seed=1, **{"examples": 60, **about})
    assert caught.value.law == law, caught.value
    return caught.value


# A workflow that keeps them all


@workflow("laws.child")
def child(name: str) -> Steps[int, Failed]:
    return (yield from ask(name))


@do
def booked(name: str) -> Steps[int, Failed]:
    number = yield from ask(name).compensate(lambda _: take_back(name))
    yield from say(number)
    return number


@workflow("laws.kept")
def kept(name: str) -> Steps[int, Failed]:
    first, second = yield from all_(booked(f"{name} one"), booked(f"{name} two"))
    beside = yield from child.start(name)
    yield from race(approved.receive(), sleep("1d"))
    yield from masked(say(first)).ensure(lambda _: take_back(name))
    return second + (yield from beside.join())


def test_a_workflow_that_keeps_them_passes() -> None:
    checked = check(kept, examples=20)
    assert checked.laws == tuple(range(1, 11))
    assert checked.worlds >= 15
    assert checked.runs > 5 * checked.worlds
    assert not checked.left_out
    assert any(entry.fingerprint.startswith("perform laws.undo") for journal in checked.journals for entry in journal)


# 1: running twice


@workflow("laws.gambles")
def gambles(name: str) -> Steps[int, Failed]:
    return (yield from ask(f"{name} {chance.random()}"))


@workflow("laws.looks_at_the_clock")
def looks_at_the_clock(name: str) -> Steps[int, Failed]:
    return (yield from ask(f"{name} {datetime.now()}"))


STARTED: list[str] = []


@workflow("laws.counts_runs")
def counts_runs(name: str) -> Steps[int, Failed]:
    STARTED.append(name)
    return (yield from ask(f"{name} {len(STARTED)}"))


@pytest.mark.parametrize("one", [gambles, looks_at_the_clock, counts_runs])
def test_1_finds_chance_the_clock_and_what_is_global(one: Any) -> None:
    error = broken(1, one)
    assert "asks for perform laws.ask (step 0) with another input" in error.what
    assert [told.title for told in error.stories] == ["Run once", "Run again"]


@workflow("laws.sets")
def sets(name: str) -> Steps[int, Failed]:
    total = 0
    for place in {"north", "south", "east", "west", name}:
        total += yield from ask(place)
    return total


def test_1_finds_the_order_of_sets_in_another_process() -> None:
    error = broken(1, sets, examples=10)
    assert "in another process" in error.what
    assert "recorded" in error.stories[1].story


def test_1_says_when_no_other_process_can_look() -> None:
    @workflow("laws.within")
    def within(name: str) -> Steps[int, Failed]:
        return (yield from ask(name))

    (left_out,) = check(within, examples=5).left_out
    assert "defined within a function" in left_out


# 2 and 3: crashes

SEEN: list[str] = []


@workflow("laws.remembers")
def remembers(name: str) -> Steps[int, Failed]:
    SEEN.append(name)
    first = yield from ask(name).attempt()
    second = yield from ask(f"{name} {len(SEEN)}").attempt()
    SEEN.clear()
    return (first.value_or(0)) + second.value_or(0)


def test_2_finds_what_is_kept_outside_of_the_body() -> None:
    error = broken(2, remembers)
    assert "with a crash after entry 1 laws.remembers asks for perform laws.ask (step 1) with another input" in error.what
    assert [told.title for told in error.stories] == ["Without a crash", "With a crash after entry 1"]
    assert "folds 1 recorded entry" in error.stories[1].story


TIMES: list[str] = []


@workflow("laws.third_time")
def third_time(name: str) -> Steps[int, Failed]:
    TIMES.append(name)
    total = 0
    for place in range(4):
        total += (yield from ask(f"{name} {place} {len(TIMES) > 2}").attempt()).value_or(0)
    TIMES.clear()
    return total


def test_3_finds_what_only_two_crashes_show() -> None:
    error = broken(3, third_time)
    assert " and a crash " in error.what


# 4: values


class Temperature:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Temperature) and other.degrees == self.degrees

    def __hash__(self) -> int:
        return hash(self.degrees)

    def __repr__(self) -> str:
        return f"Temperature({self.degrees})"


converter.register_unstructure_hook(Temperature, lambda value: round(value.degrees))
converter.register_structure_hook(Temperature, lambda value, _: Temperature(float(value)))


@activity("laws.measure", retry=Retry.constant("1s"))
def measure(place: str) -> Result[Temperature, Never]: ...


@workflow("laws.measures")
def measures(place: str) -> Steps[int, Never]:
    return int((yield from measure(place)).degrees)


def test_4_finds_a_hook_that_loses_something() -> None:
    degrees = st.sampled_from([20.0, 20.25]).map(lambda one: Success(Temperature(one)))
    error = broken(4, measures, given={measure: degrees})
    assert "the answer of laws.measure goes in as Temperature(20.25), and comes back as Temperature(20.0)" in error.what


# 5: what fails


@workflow("laws.raises")
def raises(name: str) -> Steps[int, Failed]:
    number = yield from ask(name)
    return 100 // (number - 7)


def test_5_finds_a_body_that_raises() -> None:
    error = broken(5, raises, given={int: st.sampled_from([1, 7])})
    assert "ZeroDivisionError" in error.what
    assert "Success(7)" in error.stories[0].story


# 6: cancellations


@workflow("laws.stays")
def stays(name: str) -> Steps[str, Failed]:
    yield from ask(name)
    return (yield from masked(approved.receive()))


def test_6_finds_a_mask_that_waits_for_ever() -> None:
    error = broken(6, stays)
    assert "it does not end, it waits for signal laws.approved" in error.what
    assert error.stories[0].title == "Not cancelled"


@workflow("laws.hasty")
def hasty(name: str) -> Steps[int, Failed]:
    def settle(exit: Any) -> Flow[object, object]:
        return say(1 if isinstance(exit, Success) else len(exit.failure().why))

    return (yield from ask(name).then(lambda number: sleep("1h").map(lambda _: number)).ensure(settle))


def test_6_and_5_find_a_finalizer_that_forgets_cancellations() -> None:
    error = broken(5, hasty)
    assert "'Cancelled' object has no attribute 'failure'" in error.what


@workflow("laws.books")
def books(name: str) -> Steps[int, Failed]:
    first = yield from ask(name).compensate(lambda _: take_back(f"{name} first"))
    second = yield from ask(name).compensate(lambda _: take_back(f"{name} second"))
    yield from sleep("1h").ensure(lambda _: say(first))
    return second


def test_6_finds_undos_in_the_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = Machine._settle

    def reversed_first(self: Machine, fiber: Fiber, frame: _Saga, kind: int, value: Any) -> Any:
        frame.undos.reverse()
        return settle(self, fiber, frame, kind, value)

    monkeypatch.setattr(Machine, "_settle", reversed_first)
    error = broken(6, books)
    assert "undos did not run last-first" in error.what
    assert "undo: take_back" in error.stories[0].story


def _skipping(what: type, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Machine._call

    def skips(self: Machine, fn: Any, *args: Any) -> Any:
        skipped = isinstance(fn, Watched) and any(isinstance(arg, what) for arg in args)
        return call(self, pure, None) if skipped else call(self, fn, *args)

    monkeypatch.setattr(Machine, "_call", skips)


def test_6_finds_finalizers_that_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _skipping(Cancelled, monkeypatch)
    assert "ran not at all" in broken(6, books, without=[10]).what


def test_6_finds_undos_that_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    _skipping(int, monkeypatch)
    error = broken(6, books)
    assert "the undo" in error.what
    assert "ran not at all" in error.what


# 7: orders


@do
def acted_on(answer: str) -> Steps[str, Never]:
    yield from say(len(answer))
    return answer


@workflow("laws.loses_a_signal")
def loses_a_signal(name: str) -> Steps[str, Never]:
    decided = approved.receive().then(acted_on)
    in_time = yield from decided.timeout("1m").attempt()
    return in_time.unwrap() if isinstance(in_time, Success) else (yield from decided)


def test_7_finds_a_signal_that_a_timer_loses() -> None:
    error = broken(7, loses_a_signal)
    assert "in another it waits for ever for signal laws.approved" in error.what
    assert len(error.stories) == 2


def test_7_finds_a_wake_up_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    match = Activation._match

    def forgetful(self: Activation, key: Any, now: datetime) -> None:
        if not self.busy:  # nobody is woken who only waits
            return
        match(self, key, now)

    monkeypatch.setattr(Activation, "_match", forgetful)
    error = broken(7, loses_a_signal, without=[2, 3])
    assert "which lies in its mailbox" in error.what


# 8: answers


def test_8_finds_a_step_that_is_answered_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Memory._record

    def twice(self: Memory, one: _Kept, entries: list[Entry]) -> None:
        record(self, one, entries)
        if entries and entries[-1].kind == SUCCESS and entries[-1].fingerprint.startswith("sleep"):
            one.journal.append(entries[-1])

    monkeypatch.setattr(Memory, "_record", twice)
    assert "has two answers" in broken(8, books).what


def test_8_finds_a_key_that_is_given_to_two_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowdsl.journal import Fold

    monkeypatch.setattr(Fold, "key", lambda self, step: f"{self.id}/0")
    assert "was given to two requests" in broken(8, books).what


# 9: children


@workflow("laws.waits")
def waits(name: str) -> Steps[str, Never]:
    return (yield from approved.receive(name))


@workflow("laws.leaves")
def leaves(name: str) -> Steps[int, Failed]:
    yield from waits.start(name)
    return (yield from ask(name))


def test_9_finds_a_child_that_nobody_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    check(leaves, examples=10, without=[1])
    monkeypatch.setattr(Memory, "_cancel_children", lambda self, parent, prefix: None)
    assert "laws.waits was started by laws.leaves, which has ended, and goes on" in broken(9, leaves).what


# 10: algebra


def _map(flow: Flow[Any, Any], fn: Callable[[Any], Any]) -> Flow[Any, Any]:
    return Then(flow, lambda answer: Pure(fn(answer) if not isinstance(answer, int) else fn(answer) + 1))


def test_10_finds_a_map_that_adds_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flow, "map", _map)
    assert "m.map(identity) is m" in broken(10, child).what


# What is said


def test_the_message_names_the_law_what_to_do_the_world_and_how_to_see_it_again() -> None:
    error = broken(2, remembers)
    told = str(error)
    assert "laws.remembers breaks law 2: a crash after any entry, then a resume, gives the same exit and the same journal." in told
    assert "What to do:   What a body knows is gone when the process dies" in told
    assert "In the world: World(laws.remembers, " in told
    assert "seed=1)" in told


def test_what_a_model_asserts_in_vain_is_raised_as_it_is() -> None:
    class Says:
        def say(self, number: int) -> Any:
            assert number < 3, "it says too much"
            return Success(None)

    @workflow("laws.says")
    def says(number: int) -> Steps[int, Never]:
        yield from say(number)
        return number

    with pytest.raises(AssertionError, match="it says too much"):
        check(says, model=Says, without=[5])


def test_laws_can_be_left_out_and_only_those_that_there_are() -> None:
    assert 5 not in check(raises, examples=5, without=[5]).laws
    with pytest.raises(FlowError, match="there is no law 11"):
        check(kept, without=[11])


@activity("laws.once", crash="fail")
def once(number: int) -> Result[int, Interrupted]: ...


@activity("laws.declines")
def declines(number: int) -> Result[int, int]: ...


@activity("laws.sure")
def sure(number: int) -> Result[int, Never]: ...


@workflow("laws.parts")
def parts(number: int) -> Steps[int, int]:
    """After a crash another activity has the step, and so the idempotency key, that `declines` has without one."""
    if isinstance((yield from once(number).attempt()), Failure):
        return (yield from sure(number))
    return (yield from declines(number))


def test_where_a_crash_parts_the_ways_no_activity_is_given_the_reply_of_another() -> None:
    assert check(parts, given={once: Success(1), declines: Failure(7)}, examples=10, elsewhere=False, seed=1).runs
