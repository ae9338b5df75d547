"""Orders: all that there are, each once, and a word where not all were looked at."""

from __future__ import annotations

import warnings
from datetime import timedelta
from typing import Any, Never

import pytest

from flowdsl import Cancelled, Failure, Result, Retry, Steps, Success, TimedOut, activity, all_, race, saga, signal, sleep, workflow
from flowdsl.errors import FlowError
from flowdsl.story import recent
from flowdsl.testing import TooShallow, interleavings
from flowdsl.testing.interleavings import Unanswered


@activity("orders.one", timeout="5m")
def one(name: str) -> Result[str, Never]: ...


@activity("orders.two", timeout="5m")
def two(name: str) -> Result[str, Never]: ...


@activity("orders.undo")
def undo(name: str) -> Result[None, Never]: ...


rung, called = signal("orders.rung", str), signal("orders.called", str)
BOTH: dict[Any, Any] = {one: Success("one"), two: Success("two")}


@workflow("orders.races")
def races(name: str) -> Steps[str, Never]:
    return (yield from race(one(name), two(name), rung.receive(), sleep("1m").map(lambda _: "too late")))


def test_every_branch_of_a_race_wins_once() -> None:
    runs = list(interleavings(races, "", given=BOTH, signals=[(rung, "rung")]))
    assert {run.exit for run in runs} == {Success("one"), Success("two"), Success("rung"), Success("too late")}


@workflow("orders.undoes")
def undoes(name: str) -> Steps[str, Never]:
    first, second = yield from all_(one(name).compensate(undo), two(name).compensate(undo))
    yield from rung.receive()
    return first + second


def test_undos_are_registered_in_each_order() -> None:
    runs = list(interleavings(undoes, "", given={**BOTH, undo: Success(None)}, cancel=True))
    assert all(run.exit == Cancelled("asked to") for run in runs)
    assert {tuple(run.calls(undo)) for run in runs} >= {("one", "two"), ("two", "one")}


def test_the_number_of_orders_of_what_does_not_depend_on_each_other() -> None:
    @workflow("orders.three")
    def three(name: str) -> Steps[int, Never]:
        yield from all_(one("a"), one("b"), one("c"))
        return 3

    orders = interleavings(three, "", given=BOTH)
    assert len(list(orders)) == 6
    assert orders.cut == 0


def test_orders_that_lead_to_the_same_journal_are_looked_at_once() -> None:
    @workflow("orders.deaf")
    def deaf(name: str) -> Steps[str, Never]:
        first = yield from one(name)
        return first + (yield from two(name))

    orders = interleavings(deaf, "", given=BOTH, signals=[(rung, "x"), (rung, "x")])
    assert all(run.exit == Success("onetwo") for run in orders)
    same = interleavings(deaf, "", given=BOTH)
    assert len(list(same)) == 1


@workflow("orders.lost")
def lost(name: str) -> Steps[str, Never]:
    decided = rung.receive().then(one)
    in_time = yield from decided.timeout("2d").attempt()
    return in_time.unwrap() if isinstance(in_time, Success) else (yield from decided)


def test_a_timer_that_fires_while_an_activity_is_under_way() -> None:
    orders = interleavings(lost, "", given=BOTH, signals=[(rung, "yes")])
    stuck = [(orders.order, run) for run in orders if run.exit is None]
    assert stuck
    for order, run in stuck:
        assert any("just before the timer" in what for what in order), order
        assert run.waits == ("signal orders.rung",)
    assert "is given up while it is under way" in str(stuck[0][1])


def test_a_timer_cannot_fire_when_the_attempt_must_have_ended() -> None:
    @workflow("orders.in_time")
    def in_time(name: str) -> Steps[str, TimedOut]:
        return (yield from one(name).timeout("6m"))

    assert [run.exit for run in interleavings(in_time, "", given=BOTH)] == [Success("one")]


def test_an_attempt_that_fails_waits_and_is_tried_again_in_each_order() -> None:
    @activity("orders.stubborn", retry=Retry.constant("1s", attempts=2, on=(str,)))
    def stubborn(name: str) -> Result[str, str]: ...

    @workflow("orders.tries")
    def tries(name: str) -> Steps[str, str]:
        return (yield from stubborn(name))

    orders = interleavings(tries, "", given={stubborn: Failure("no")}, signals=[(rung, "x")])
    runs = list(orders)
    assert all(run.exit == Failure("no") and run.count(stubborn) == 2 for run in runs)
    assert all(run.elapsed >= timedelta(seconds=1) for run in runs)


def test_a_model_is_new_for_each_order() -> None:
    class Till:
        def __init__(self) -> None:
            self.asked: list[str] = []

        def one(self, name: str) -> Any:
            self.asked.append(name)
            return Success(str(len(self.asked)))

    @workflow("orders.asks_twice")
    def asks_twice(name: str) -> Steps[str, Never]:
        yield from rung.receive()
        return (yield from one("a")) + (yield from one("b"))

    orders = interleavings(asks_twice, "", model=Till, signals=[(rung, "x")])
    for run in orders:
        assert run.exit == Success("12")
        assert orders.model.asked == ["a", "b"]


def test_what_the_bound_cuts_off_is_said() -> None:
    orders = interleavings(races, "", given=BOTH, signals=[(rung, "x"), (called, "y")], depth=1)
    with pytest.warns(TooShallow, match="depth=4 looks deeper"):
        shallow = len(list(orders))
    assert orders.cut
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(interleavings(races, "", given=BOTH, signals=[(rung, "x"), (called, "y")], depth=9))) > shallow


def test_a_loop_that_never_ends_is_left_and_said() -> None:
    @workflow("orders.polls")
    def polls(name: str) -> Steps[None, Never]:
        while True:
            yield from sleep("1h")

    orders = interleavings(polls, "")
    with pytest.warns(TooShallow, match="went on and on"):
        assert [run.status for run in orders] == ["open"]


def test_a_signal_to_a_key_finds_who_waits_for_that_key() -> None:
    @workflow("orders.keyed")
    def keyed(name: str) -> Steps[str, Never]:
        yield from saga(one(name))
        return (yield from rung.receive(name))

    runs = list(interleavings(keyed, "k", given=BOTH, signals=[(rung, "for k", "k")]))
    assert runs
    assert all(run.exit == Success("for k") for run in runs)


def test_the_last_run_is_the_one_that_a_failing_test_shows() -> None:
    for run in interleavings(races, "", given=BOTH):
        assert recent.run is run


def test_what_is_missing_or_wrong_is_said() -> None:
    with pytest.raises(Unanswered, match=r"two was asked with .*given=\{two: Success"):
        list(interleavings(races, "", given={one: Success("1")}))
    with pytest.raises(FlowError, match="is no exit"):
        interleavings(races, "", given={one: "1"})
    with pytest.raises(FlowError, match="Write \\(signal, payload\\)"):
        interleavings(races, "", signals=[("rung", "x")])  # type: ignore[list-item]
