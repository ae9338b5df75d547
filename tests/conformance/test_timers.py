"""Timers: never early, in their order, out of memory while they wait, the same after a crash."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Never

import pytest

from flowdsl import Cancelled, Steps, Success, TimedOut, all_, each, now, race, sleep, workflow
from tests.conformance.parts import Refused, act, news, sure
from tests.conformance.world import World


@workflow("t.nap")
def nap(name: str) -> Steps[str, Never]:
    yield from sleep("60ms")
    return (yield from sure(name))


@workflow("t.around")
def around(name: str) -> Steps[list[datetime], Never]:
    before = yield from now()
    yield from sleep("40ms")
    return [before, (yield from now())]


@workflow("t.instant")
def instant(back: int) -> Steps[timedelta, Never]:
    began = yield from now()
    yield from sleep(began + timedelta(milliseconds=back))
    return (yield from now()) - began


@workflow("t.in_order")
def in_order(name: str) -> Steps[str, Never]:
    def one(span: int) -> object:
        return sleep(timedelta(milliseconds=span)).then(lambda _: sure(str(span)))

    yield from all_(sleep("150ms").then(lambda _: sure("150")), sleep("30ms").then(lambda _: sure("30")), sleep("90ms").then(lambda _: sure("90")))
    return name


@workflow("t.at_once")
def at_once(count: int) -> Steps[int, Never]:
    def woken(number: int) -> object:
        return sleep("50ms").map(lambda _: number)

    answers = yield from each(range(count), lambda number: sleep("50ms").map(lambda _: number), concurrency=1000)
    return sum(answers)


@workflow("t.long")
def long(name: str) -> Steps[str, Never]:
    yield from sleep("30d")
    return (yield from sure(name))


@workflow("t.twice")
def twice(name: str) -> Steps[str, Refused]:
    first = yield from act("first")
    yield from sleep("120ms")
    return first + (yield from act("second"))


@workflow("t.zero")
def zero(name: str) -> Steps[str, Never]:
    yield from sleep("0s")
    return name


@workflow("t.limit")
def limit(name: str) -> Steps[str, TimedOut]:
    yield from sleep("1h").timeout("40ms")
    return name


@workflow("t.raced")
def raced(name: str) -> Steps[str, Never]:
    first = yield from race(sleep("40ms").map(lambda _: "short"), sleep("1h").map(lambda _: "long"))
    yield from news.receive()
    return first


async def test_a_timer_lets_what_follows_wait(world: World) -> None:
    await world.deploy(nap)
    id = await world.start(nap, "a")
    assert await world.exit(id) == Success("a")
    assert await world.story(id) == ["sleep 60ms", "sure"]


async def test_it_is_never_early_by_the_time_that_the_flow_sees(world: World) -> None:
    await world.deploy(around)
    exit = await world.run(around, "a")
    assert isinstance(exit, Success)
    before, after = exit.unwrap()
    assert after - before >= timedelta(milliseconds=40)


async def test_it_may_wait_for_an_instant(world: World) -> None:
    await world.deploy(instant)
    exit = await world.run(instant, 50)
    assert isinstance(exit, Success) and exit.unwrap() >= timedelta(milliseconds=50)


async def test_an_instant_that_is_past_is_no_wait(world: World) -> None:
    await world.deploy(instant)
    exit = await world.run(instant, -60_000)
    assert isinstance(exit, Success) and exit.unwrap() < timedelta(seconds=30)


async def test_no_time_at_all_is_a_step_like_others(world: World) -> None:
    await world.deploy(zero)
    id = await world.start(zero, "a")
    assert await world.exit(id) == Success("a") and await world.story(id) == ["sleep 0s"]


async def test_timers_of_branches_end_in_the_order_of_their_times(world: World) -> None:
    await world.deploy(in_order)
    await world.run(in_order, "a")
    assert world.requests(sure) == ["30", "90", "150"]


async def test_many_timers_of_one_execution_are_due_at_once(world: World) -> None:
    await world.deploy(at_once)
    assert await world.run(at_once, 200) == Success(sum(range(200)))


async def test_timers_of_many_executions_are_due_at_once(world: World) -> None:
    await world.deploy(nap)
    ids = [await world.start(nap, str(number)) for number in range(30)]
    assert [await world.exit(id) for id in ids] == [Success(str(number)) for number in range(30)]
    assert sorted(world.requests(sure)) == sorted(str(number) for number in range(30))


async def test_a_long_timer_outlives_its_process(world: World) -> None:
    await world.deploy(long)
    id = await world.start(long, "a")
    await world.settle()
    await world.crash()
    await world.settle()
    assert await world.status(id) == "open" and await world.journal(id) == [] and world.calls == []
    await world.cancel(id, "enough")
    assert await world.exit(id) == Cancelled("enough")


@pytest.mark.parametrize("crash", [{"before": 2}, {"after": 1}, {"after": 2}])
async def test_a_crash_around_a_timer_changes_nothing(world: World, crash: dict[str, int]) -> None:
    await world.deploy(twice)
    world.dies(**crash)
    id = await world.start(twice, "a")
    assert await world.exit(id) == Success("firstsecond")
    assert await world.story(id) == ["act", "sleep 120ms", "act"] and world.count(act) == 2 and world.deaths == 1
    first, slept, _ = (entry.at for entry in (await world.journal(id))[:3])
    assert slept - first >= timedelta(milliseconds=120), "it counts from the entry that opened it"


async def test_it_is_due_while_nobody_is_there(world: World) -> None:
    await world.deploy(twice)
    world.dies(after=1)
    id = await world.start(twice, "a")
    assert await world.exit(id) == Success("firstsecond")


async def test_a_shorter_timer_ends_a_longer_one(world: World) -> None:
    await world.deploy(limit)
    exit = await world.run(limit, "a")
    assert str(exit) == "<Failure: TimedOut(after='40ms')>"


async def test_a_timer_that_lost_its_race_never_fires(world: World) -> None:
    await world.deploy(raced)
    id = await world.start(raced, "a")
    await world.settle()
    assert await world.story(id) == ["sleep 40ms"]
    await world.crash()
    await world.signal(id, news, 1)
    assert await world.exit(id) == Success("short")
    assert await world.story(id) == ["sleep 40ms", "receive news"]
