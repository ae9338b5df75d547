"""The arithmetic of budgets, the order of those who wait, and what a run in memory makes of both."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any, Never

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from flowdsl import Concurrency, Deployment, Failure, RateLimit, Result, Retry, Steps, Success, activity, bind, each, race, sleep, workflow
from flowdsl.budget import Bucket, Line, Rate, counted
from flowdsl.errors import DefinitionError, DeploymentError
from flowdsl.memory import EPOCH, Memory

SECOND = 1_000_000

# The arithmetic

rates = st.builds(Rate, st.integers(1, 2000), st.integers(1, 10**12), st.integers(1, 3000))


class Drawn:
    """A limit, drawn from in a time that the test tells."""

    def __init__(self, rate: Rate) -> None:
        self.rate, self.debt, self.at = rate, 0, 0
        self.begun: list[tuple[int, int]] = []

    def draw(self, now: int, wanted: int) -> int:
        self.debt, self.at = self.rate.left(self.debt, now - self.at), now
        count = min(wanted, self.rate.room(self.debt))
        self.debt += count * self.rate.per
        if count:
            self.begun.append((now, count))
        return count


def test_a_full_limit_lets_its_burst_through_and_then_one_at_a_time() -> None:
    drawn = Drawn(Rate(10, SECOND, 10))
    assert [drawn.draw(0, 30), drawn.draw(0, 1)] == [10, 0]
    assert drawn.rate.pause(drawn.debt) == 100_000
    assert [drawn.draw(99_999, 5), drawn.draw(100_000, 5), drawn.draw(100_001, 5)] == [0, 1, 0]
    assert drawn.draw(10 * SECOND, 30) == 10, "more than the burst is never saved up"


def test_a_third_of_a_microsecond_is_not_lost() -> None:
    drawn = Drawn(Rate(3, 1, 1))
    assert sum(drawn.draw(now, 10) for now in range(0, 10**6, 7)) == len(range(0, 10**6, 7))
    uneven = Drawn(Rate(7, 10 * SECOND, 1))
    times: list[int] = []
    now = 0
    for _ in range(700):
        now += uneven.rate.pause(uneven.rate.left(uneven.debt, now - uneven.at)) or 0
        assert uneven.draw(now, 1) == 1
        times.append(now)
    assert 999 * SECOND - 10 * SECOND < times[-1] <= 999 * SECOND, "7 in 10 s are 700 in 1000 s: each comes at its microsecond"


def test_a_clock_that_went_back_gives_nothing_away_and_stops_nothing() -> None:
    drawn = Drawn(Rate(1, SECOND, 1))
    assert drawn.draw(10 * SECOND, 1) == 1
    assert drawn.draw(0, 1) == 0
    assert drawn.draw(SECOND, 1) == 1


@given(rates, st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 5000)), max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_window_of_any_length_holds_more_than_the_burst_and_what_the_rate_adds(rate: Rate, draws: list[tuple[int, int]]) -> None:
    drawn, now = Drawn(rate), 0
    for later, wanted in draws:
        now += later % (3 * rate.per)
        drawn.draw(now, wanted)
    for first in range(len(drawn.begun)):
        count = 0
        for at, more in drawn.begun[first:]:
            count += more
            assert count <= rate.burst + (at - drawn.begun[first][0]) * rate.limit // rate.per


@given(rates, st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 4)), min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_draws_by_many_are_draws_by_one(rate: Rate, draws: list[tuple[int, int]]) -> None:
    """Whoever draws, in whatever portions: together they get what one would who asked for all at the same moments."""
    one, many, now = Drawn(rate), Drawn(rate), 0
    for later, drawers in draws:
        now += later
        assert sum(many.draw(now, 3) for _ in range(drawers)) == one.draw(now, 3 * drawers)


@given(rates, st.integers(0, 10**15))
@settings(max_examples=300, deadline=None)
def test_after_the_pause_there_is_room_and_a_microsecond_before_there_is_none(rate: Rate, debt: int) -> None:
    pause = rate.pause(debt)
    assert pause is not None
    assert rate.room(rate.left(debt, pause)) >= 1
    if pause:
        assert rate.room(rate.left(debt, pause - 1)) == 0


@given(rates, rates, st.integers(0, 2000))
@settings(max_examples=200, deadline=None)
def test_calls_are_carried_over_to_another_limit(before: Rate, after: Rate, calls: int) -> None:
    assert before.carried_to(after, calls * before.per) == calls * after.per
    assert after.room(before.carried_to(after, calls * before.per)) == max(0, after.burst - calls)


def test_a_limit_of_nothing_never_opens() -> None:
    stopped = Rate(0, SECOND, 0)
    assert (stopped.room(0), stopped.pause(0), stopped.left(5, 10**9)) == (0, None, 5)


# Declaring


def test_where_a_call_is_counted() -> None:
    shared, slots, each_tenant, each_workflow = (
        RateLimit("a", 1, "1s"),
        Concurrency("a", 1),
        Concurrency("b", 1, each="tenant"),
        RateLimit("b", 1, "1s", each="workflow"),
    )
    found = counted((slots, shared, each_tenant, each_workflow), "acme", "main")
    assert [where for where, _ in found] == [
        Bucket("rate", "a", ""),
        Bucket("rate", "b", "workflow main"),
        Bucket("slots", "a", ""),
        Bucket("slots", "b", "tenant acme"),
    ]
    assert counted((shared, shared), "x", "y") == ((Bucket("rate", "a", ""), shared),)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: RateLimit("", 1, "1s"), "1 to 200 printable"),
        (lambda: Concurrency("a\0b", 1), "1 to 200 printable"),
        (lambda: RateLimit("a", -1, "1s"), "limit=-1"),
        (lambda: Concurrency("a", True), "limit=True"),
        (lambda: Concurrency("a", 2**31), "limit=2147483648"),
        (lambda: RateLimit("a", 1, "0s"), "no time at all"),
        (lambda: RateLimit("a", 1, "1s", burst=0), "burst=0"),
        (lambda: Concurrency("a", 1, each="user"), "each='user'"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_limit_that_cannot_work_is_refused(wrong: Any, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        wrong()


@pytest.mark.parametrize("priority", [1001, -1001, 0.5])
def test_a_priority_that_cannot_work_is_refused(priority: Any) -> None:
    with pytest.raises(DefinitionError, match="priority="):
        workflow("budget.priority", priority=priority)


def test_one_limit_that_is_declared_twice_and_differently_is_refused() -> None:
    @activity("budget.looser", budget=(RateLimit("per minute", 60, "60s"),))
    def looser(number: int) -> Result[int, Never]: ...

    @activity("budget.same_name", budget=(Concurrency("per minute", 60),))
    def same_name(number: int) -> Result[int, Never]: ...

    def bindings(*more: Any) -> list[Any]:
        return [*(bind(one, Success) for one in ACTIVITIES), *(bind(one, Success) for one in more)]

    Deployment([calls], bindings(same_name))
    with pytest.raises(DeploymentError, match=r"budget.call and budget.looser declare RateLimit 'per minute' differently"):
        Deployment([calls], bindings(looser))


# The order of those who wait


def test_by_priority_then_tenant_by_tenant_then_as_they_came() -> None:
    line = Line[str]()
    for one in ("x1", "x2", "x3", "y1", "z1", "y2"):
        line.join(one, one[0])
    line.join("X", "x", 5)
    assert line.first(10) == ["X", "x1", "y1", "z1", "x2", "y2", "x3"]
    assert line.first(2) == ["X", "x1"]
    line.leave("X", served=True)
    line.leave("x1", served=True)
    assert line.first(3) == ["y1", "z1", "x2"], "who was served comes last in the round"
    line.leave("y1")
    line.leave("y1")
    assert line.first(10) == ["y2", "z1", "x2", "x3"]
    assert len(line) == 4
    for one in ("z1", "x2", "x3", "y2"):
        line.leave(one, served=True)
    assert (line.first(1), len(line)) == ([], 0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=40), st.integers(1, 10))
@settings(max_examples=200, deadline=None)
def test_a_line_serves_everybody_once_and_no_tenant_twice_before_another_once(joins: list[tuple[str, int]], batch: int) -> None:
    line = Line[int]()
    for number, (tenant, priority) in enumerate(joins):
        line.join(number, tenant, priority)
    served: list[int] = []
    while line:
        for one in line.first(batch):
            line.leave(one, served=True)
            served.append(one)
    assert sorted(served) == list(range(len(joins)))
    assert [joins[one][1] for one in served] == sorted((priority for _, priority in joins), reverse=True)
    for priority in range(3):
        level = [joins[one][0] for one in served if joins[one][1] == priority]
        left, turns = Counter(level), Counter[str]()
        for tenant in level:
            turns[tenant] += 1
            assert all(turns[tenant] - turns[other] <= 1 for other in left if turns[other] < left[other])


# In memory

per_minute = RateLimit("per minute", 6, "60s")


@frozen
class Busy:
    retry_after: timedelta


@activity("budget.call", budget=(per_minute,), retry=Retry.constant("1s", attempts=3, on=(Busy,)))
def call(number: int) -> Result[int, Busy]: ...


@activity("budget.stopped", budget=(Concurrency("stopped", 0),))
def stopped(number: int) -> Result[int, Never]: ...


@activity("budget.apart", budget=(RateLimit("apart", 1, "10s", each="workflow"),))
def apart(number: int) -> Result[int, Never]: ...


ACTIVITIES: list[Any] = [call, stopped, apart]


@workflow("budget.calls")
def calls(count: int) -> Steps[list[int], Busy]:
    return (yield from each(range(count), call, concurrency=count))


@workflow("budget.other")
def other(number: int) -> Steps[int, Never]:
    return (yield from apart(number))


@workflow("budget.alone")
def alone(number: int) -> Steps[int, Never]:
    return (yield from apart(number))


@workflow("budget.given_up")
def given_up(number: int) -> Steps[int, Never]:
    return (yield from race(stopped(number), sleep("5s").map(lambda _: -1)))


@workflow("budget.urgent", priority=10)
def urgent(number: int) -> Steps[int, Busy]:
    return (yield from call(number))


@workflow("budget.late")
def late(number: int) -> Steps[int, Busy]:
    yield from race(call(number), sleep("1s"))
    return (yield from call(number))


def deployment() -> Deployment:
    return Deployment(
        [calls, other, alone, given_up, urgent, late],
        [bind(one, Success) for one in ACTIVITIES],
    )


def seconds(memory: Memory) -> float:
    return (memory.now - EPOCH).total_seconds()


def test_a_rate_delays_what_is_beyond_its_burst() -> None:
    memory = Memory(deployment())
    run = memory.run(calls, 10)
    assert run.exit == Success(list(range(10)))
    assert seconds(memory) == 40
    assert [(entry.at - EPOCH).total_seconds() for entry in run.journal] == [0] * 6 + [10, 20, 30, 40]


def test_what_is_counted_apart_does_not_wait_for_each_other() -> None:
    memory = Memory(deployment())
    ids = [memory.start(one, 1) for one in (other, alone, other)]
    memory.go()
    assert [(memory.look(id).journal[0].at - EPOCH).total_seconds() for id in ids] == [0, 0, 10]


def test_a_limit_of_nothing_waits_for_ever_and_the_loser_of_a_race_waits_no_longer() -> None:
    memory = Memory(deployment())
    run = memory.run(given_up, 1)
    assert (run.exit, run.count(stopped), seconds(memory)) == (Success(-1), 0, 5)


def test_who_waits_no_longer_spends_nothing() -> None:
    memory = Memory(deployment())
    memory.run(calls, 6)
    run = memory.run(late, 7)
    assert [(entry.at - EPOCH).total_seconds() for entry in run.journal] == [1, 10]


def test_the_higher_priority_goes_first() -> None:
    memory = Memory(deployment())
    first = memory.start(calls, 8)
    urgently = memory.start(urgent, 100)
    memory.go()
    assert (memory.look(urgently).journal[0].at - EPOCH).total_seconds() == 0
    assert (memory.look(first).journal[-1].at - EPOCH).total_seconds() == 30


@activity("budget.slow", budget=(Concurrency("two", 2),))
def slow(number: int) -> Result[int, Never]: ...


@workflow("budget.slowly")
def slowly(count: int) -> Steps[list[int], Never]:
    return (yield from each(range(count), slow, concurrency=count))


@workflow("budget.impatient")
def impatient(number: int) -> Steps[int, Never]:
    return (yield from race(slow(number), sleep("3s").map(lambda _: -1)))


async def take_ten_seconds(number: int) -> Result[int, Never]:
    await asyncio.sleep(10)
    return Success(number)


def test_so_many_at_a_time() -> None:
    memory = Memory(Deployment([slowly], [bind(slow, take_ten_seconds)]))
    run = memory.run(slowly, 5)
    assert run.exit == Success(list(range(5)))
    assert [(entry.at - EPOCH).total_seconds() for entry in run.journal] == [10, 10, 20, 20, 30]


def test_who_is_cancelled_holds_its_slot_no_longer() -> None:
    memory = Memory(Deployment([slowly, impatient], [bind(slow, take_ten_seconds)]))
    lost = [memory.start(impatient, number) for number in range(2)]
    after = memory.start(slowly, 1)
    memory.go()
    assert [memory.look(id).exit for id in lost] == [Success(-1), Success(-1)]
    assert [(entry.at - EPOCH).total_seconds() for entry in memory.look(after).journal] == [13]


def test_if_one_is_told_to_wait_all_do() -> None:
    asked: list[int] = []

    def busy_at_first(number: int) -> Result[int, Busy]:
        asked.append(number)
        return Failure(Busy(timedelta(seconds=100))) if len(asked) == 1 else Success(number)

    memory = Memory(deployment(), {call: busy_at_first})
    run = memory.run(urgent, 1)
    assert run.exit == Success(1)
    other_one = memory.run(urgent, 2)
    times = [(entry.at - EPOCH).total_seconds() for entry in run.journal + other_one.journal]
    assert times == [0, 100, 100]


def test_if_one_is_told_to_wait_those_who_were_let_through_before_are_not_held() -> None:
    answers = iter([Failure(Busy(timedelta(seconds=100))), *(Success(n) for n in range(20))])
    memory = Memory(deployment(), {call: lambda _: next(answers)})
    ids = [memory.start(urgent, n) for n in range(8)]
    memory.go()
    assert [(memory.look(id).journal[-1].at - EPOCH).total_seconds() for id in ids] == [100, 0, 0, 0, 0, 0, 100, 100]


@pytest.mark.parametrize("at", range(1, 9))
def test_a_crash_loses_nobody_who_waits(at: int) -> None:
    memory = Memory(deployment(), crash=lambda number: number == at)
    assert memory.run(calls, 8).exit == Success(list(range(8)))
