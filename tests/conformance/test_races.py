"""Races: the first exit in the order of the journal wins, failures included; the rest is unwound; the same after any crash."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Never

import pytest

from flowdsl import Failure, Steps, Success, all_, execution, fail, pure, race, sleep, workflow
from tests.conformance.parts import Refused, act, news, other, plain, sure, word
from tests.conformance.world import World


@workflow("r.two")
def two(name: str) -> Steps[str, Refused]:
    first = yield from race(plain("one"), plain("two"))
    yield from news.receive()
    return first


@workflow("r.signals")
def signals(name: str) -> Steps[list[int], Never]:
    first = yield from race(news.receive(), other.receive().map(lambda number: -number))
    second = yield from race(news.receive(), other.receive().map(lambda number: -number))
    return [first, second]


@workflow("r.failure")
def failure(name: str) -> Steps[int, Refused]:
    return (yield from race(sleep("20ms").then(lambda _: fail(Refused("first"))), news.receive()))


@workflow("r.cleans")
def cleans(name: str) -> Steps[str, Refused]:
    loser = news.receive().ensure(lambda exit: sure(type(exit).__name__))
    first = yield from race(loser.map(str), plain("won"))
    return first + (yield from plain("after"))


@workflow("r.at_once")
def at_once(name: str) -> Steps[str, Refused]:
    return (yield from race(pure("pure"), plain("never")))


@workflow("r.nested")
def nested(name: str) -> Steps[str, Refused]:
    inner = race(sleep("1h").map(lambda _: "hour"), sleep("30ms").map(lambda _: "inner"))
    return (yield from race(inner, news.receive().map(str)))


@workflow("r.rounds")
def polls(name: str) -> Steps[int, Never]:
    """An enrichment that is polled, unless its signal comes."""
    polled = 0
    while True:
        number = yield from race(news.receive(), sleep("30ms" if polled < 3 else "1h").map(lambda _: -1))
        if number >= 0:
            return number * 100 + polled
        polled += 1
        if polled == 3:
            yield from news.send(name, 5)


async def test_the_first_answer_wins_and_the_loser_is_not_recorded(world: World) -> None:
    await world.deploy(two)

    async def slow_one(name: str) -> Any:
        await asyncio.sleep(5 if name == "one" else 0)
        return Success(name)

    world.does(plain, slow_one)
    id = await world.start(two, "a")
    await world.called(plain, 2)
    await world.settle()
    await world.signal(id, news, 1)
    assert await world.exit(id) == Success("two")
    assert await world.story(id) == ["plain", "receive news"] and sorted(world.requests(plain)) == ["one", "two"]


async def test_the_order_of_arrival_decides(world: World) -> None:
    await world.deploy(signals)
    id = await world.start(signals, "a")
    await world.settle()
    await world.signal(id, other, 1)
    await world.signal(id, news, 2)
    assert await world.exit(id) == Success([-1, 2])


async def test_of_two_that_came_before_the_race_the_first_branch_takes_its_own(world: World) -> None:
    @workflow("r.late")
    def late(name: str) -> Steps[list[int], Never]:
        yield from word.receive()
        return [(yield from race(news.receive(), other.receive())), len((yield from all_(pure(1), pure(2))))]

    await world.deploy(late)
    id = await world.start(late, "a")
    await world.signal(id, other, 1)
    await world.signal(id, news, 2)
    await world.signal(id, word, "go")
    assert await world.exit(id) == Success([2, 2])
    assert await world.mails(id) == ["other"]


async def test_a_failure_wins_as_an_answer_does(world: World) -> None:
    await world.deploy(failure)
    assert await world.run(failure, "a") == Failure(Refused("first"))


async def test_the_loser_is_unwound_before_the_race_is_over(world: World) -> None:
    await world.deploy(cleans)
    id = await world.start(cleans, "a")
    assert await world.exit(id) == Success("wonafter")
    assert await world.story(id) == ["plain", "sure", "plain"] and world.requests(sure) == ["Cancelled"]


async def test_what_needs_no_work_wins_and_nothing_else_begins(world: World) -> None:
    await world.deploy(at_once)
    id = await world.start(at_once, "a")
    assert await world.exit(id) == Success("pure")
    assert await world.journal(id) == [] and world.calls == []


async def test_a_race_in_a_race(world: World) -> None:
    await world.deploy(nested)
    assert await world.run(nested, "a") == Success("inner")


async def test_a_signal_against_a_timer_again_and_again(world: World) -> None:
    @workflow("r.self")
    def itself(name: str) -> Steps[int, Never]:
        me = yield from execution()
        return (yield from polls(me.id))

    await world.deploy(itself)
    id = await world.start(itself, "a")
    assert await world.exit(id) == Success(503)


@pytest.mark.parametrize("crash", [{"before": 1}, {"after": 1}, {"before": 2}, {"after": 2}])
async def test_the_winner_is_the_same_after_a_crash(world: World, crash: dict[str, int]) -> None:
    await world.deploy(cleans)
    world.dies(**crash)
    id = await world.start(cleans, "a")
    assert await world.exit(id) == Success("wonafter")
    assert await world.story(id) == ["plain", "sure", "plain"] and world.deaths == 1


async def test_a_late_answer_of_the_loser_goes_nowhere(world: World) -> None:
    @workflow("r.late_loser")
    def late_loser(name: str) -> Steps[str, Refused]:
        first = yield from race(act("late"), sleep("40ms").map(lambda _: "timer"))
        yield from sleep("120ms")
        return first

    async def slow(name: str) -> Any:
        with suppress(asyncio.CancelledError):  # it is told that it has lost, and answers all the same
            await asyncio.sleep(60)
        return Success(name)

    await world.deploy(late_loser)
    world.does(act, slow)
    id = await world.start(late_loser, "a")
    assert await world.exit(id) == Success("timer")
    assert await world.story(id) == ["sleep 40ms", "sleep 120ms"]
