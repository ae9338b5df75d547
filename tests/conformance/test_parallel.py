"""Work side by side: answers in order, the first failure ends the rest, so many at a time."""

from __future__ import annotations

import asyncio
from typing import Any, Never

import pytest

from flowdsl import Defect, Failure, Steps, Success, all_, each, each_attempt, pure, race, sleep, workflow
from tests.conformance.parts import Refused, act, news, plain, sure
from tests.conformance.world import World


@workflow("p.pair")
def pair(name: str) -> Steps[list[str], Refused]:
    return list((yield from all_(plain(f"{name}1"), plain(f"{name}2"))))


@workflow("p.names")
def names(those: list[str]) -> Steps[list[str], Refused]:
    return (yield from each(those, plain, concurrency=2))


@workflow("p.outcomes")
def outcomes(those: list[str]) -> Steps[list[str], Never]:
    found = yield from each_attempt(those, plain)
    return [type(one).__name__ for one in found]


@workflow("p.stops")
def stops(name: str) -> Steps[str, Refused]:
    yield from all_(plain("fails"), news.receive().ensure(lambda _: sure("stopped")), sleep("1h"))
    return name


@workflow("p.nested")
def nested(name: str) -> Steps[str, Refused]:
    (a, b), c = yield from all_(all_(plain("a"), plain("b")), plain("c").then(lambda c: plain(c + c)))
    return a + b + c


@workflow("p.empty")
def empty(name: str) -> Steps[int, Refused]:
    nothing: list[str] = []
    found = yield from each(nothing, plain)
    both = yield from all_(*(plain(one) for one in nothing))
    return len(found) + len(both)


@workflow("p.wide")
def wide(count: int) -> Steps[int, Refused]:
    return len((yield from each([str(number) for number in range(count)], plain, concurrency=50)))


@workflow("p.mixed")
def mixed(name: str) -> Steps[list[str], Refused]:
    a, b, c, d = yield from all_(plain(name), sleep("30ms"), news.receive(), pure(4))
    return [a, str(b), str(c), str(d)]


@workflow("p.in_race")
def in_race(name: str) -> Steps[str, Refused]:
    yield from race(all_(news.receive(), sleep("1h")), plain("won"))
    return (yield from plain("after"))


@workflow("p.bug")
def bug(name: str) -> Steps[str, Refused]:
    def broken(_: str) -> Any:
        raise ValueError("in the code")

    yield from all_(sure(name).then(broken), news.receive())
    return name


async def test_answers_come_in_the_order_of_the_branches(world: World) -> None:
    await world.deploy(pair)

    async def slower_first(name: str) -> Any:
        await asyncio.sleep(0.05 if name.endswith("1") else 0)
        return Success(name)

    world.does(plain, slower_first)
    id = await world.start(pair, "a")
    assert await world.exit(id) == Success(["a1", "a2"])
    steps = [entry.step for entry in await world.journal(id)]
    assert steps == ["0.1.0", "0.0.0"], "the journal has them as they came"


async def test_so_many_at_a_time(world: World) -> None:
    await world.deploy(names)
    now: list[int] = [0, 0]

    async def counted(name: str) -> Any:
        now[0] += 1
        now[1] = max(now)
        await asyncio.sleep(0.01)
        now[0] -= 1
        return Success(name)

    world.does(plain, counted)
    letters = list("abcdefg")
    assert await world.run(names, letters) == Success(letters)
    assert now[1] <= 2 and world.requests(plain) == letters


async def test_the_first_failure_ends_the_rest(world: World) -> None:
    await world.deploy(stops)
    world.answers(plain, Failure(Refused("no")))
    id = await world.start(stops, "a")
    assert await world.exit(id) == Failure(Refused("no"))
    assert await world.story(id) == ["plain!", "sure"] and world.requests(sure) == ["stopped"]


async def test_what_has_not_begun_after_a_failure_never_does(world: World) -> None:
    await world.deploy(names)
    world.does(plain, lambda name: Failure(Refused(name)) if name == "b" else Success(name))
    assert await world.run(names, list("abcdef")) == Failure(Refused("b"))
    assert set(world.requests(plain)) <= set("abc")


async def test_all_outcomes_are_gone_through(world: World) -> None:
    await world.deploy(outcomes)
    world.does(plain, lambda name: Failure(Refused(name)) if name == "b" else Success(name))
    assert await world.run(outcomes, list("abc")) == Success(["Success", "Failure", "Success"])


async def test_branches_have_branches(world: World) -> None:
    await world.deploy(nested)
    assert await world.run(nested, "x") == Success("abcc")
    assert sorted(world.requests(plain)) == ["a", "b", "c", "cc"]


async def test_nothing_at_all_is_done_at_once(world: World) -> None:
    await world.deploy(empty)
    id = await world.start(empty, "x")
    assert await world.exit(id) == Success(0) and await world.journal(id) == []


async def test_many_at_once(world: World) -> None:
    await world.deploy(wide)
    assert await world.run(wide, 150) == Success(150)
    assert len(set(world.requests(plain))) == 150 == world.count(plain)


async def test_branches_wait_for_different_things(world: World) -> None:
    await world.deploy(mixed)
    id = await world.start(mixed, "a")
    await world.settle()
    assert await world.status(id) == "open"
    await world.crash()
    await world.signal(id, news, 3)
    assert await world.exit(id) == Success(["a", "None", "3", "4"])
    assert world.requests(plain) == ["a"]


async def test_branches_that_lose_are_gone(world: World) -> None:
    await world.deploy(in_race)
    id = await world.start(in_race, "a")
    assert await world.exit(id) == Success("after")
    assert await world.story(id) == ["plain", "plain"]


async def test_a_bug_in_one_branch_ends_all(world: World) -> None:
    await world.deploy(bug)
    exit = await world.run(bug, "a")
    assert isinstance(exit, Defect) and exit.message == "ValueError: in the code" and "test_parallel.py" in exit.where


@pytest.mark.parametrize("crash", [{"before": 1}, {"after": 1}, {"before": 2}, {"after": 2}, {"before": 3}])
async def test_a_crash_between_branches_repeats_only_what_was_not_recorded(world: World, crash: dict[str, int]) -> None:
    await world.deploy(nested)
    world.dies(**crash)
    id = await world.start(nested, "x")
    assert await world.exit(id) == Success("abcc")
    assert sorted(await world.story(id)) == ["plain"] * 4 and world.deaths == 1
    assert set(world.requests(plain)) == {"a", "b", "c", "cc"}


async def test_a_failure_of_one_cancels_an_activity_that_runs(world: World) -> None:
    @workflow("p.running")
    def running(name: str) -> Steps[str, Refused]:
        yield from all_(act("slow"), sleep("50ms").then(lambda _: plain("fails")))
        return name

    async def slow(name: str) -> Any:
        await asyncio.sleep(20)
        return Success(name)

    await world.deploy(running)
    world.does(act, slow)
    world.answers(plain, Failure(Refused("no")))
    id = await world.start(running, "a")
    assert await world.exit(id) == Failure(Refused("no"))
    assert await world.story(id) == ["sleep 50ms", "plain!"]
