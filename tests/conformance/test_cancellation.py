"""Cancellation: sticky, idempotent, through activities, branches and children; finalizers; masked work; pause and terminate."""

from __future__ import annotations

import asyncio
from typing import Any, Never

import pytest

from flowdsl import Cancelled, Failure, Steps, Success, all_, masked, race, sleep, workflow
from flowdsl.journal import CANCEL
from tests.conformance.parts import Refused, act, news, other, plain, sure
from tests.conformance.world import World


@workflow("x.waits")
def waits(name: str) -> Steps[str, Refused]:
    yield from news.receive()
    return (yield from plain(name))


@workflow("x.sleeps")
def sleeps(name: str) -> Steps[str, Never]:
    yield from sleep("30d")
    return name


@workflow("x.works")
def works(name: str) -> Steps[str, Refused]:
    first = yield from plain("slow")
    return first + (yield from plain("after"))


@workflow("x.cleans")
def cleans(name: str) -> Steps[int, Refused]:
    def finalizer(exit: Any) -> Any:
        return sure(f"{name} {type(exit).__name__}")

    return (yield from news.receive().ensure(finalizer))


@workflow("x.cleans_deep")
def cleans_deep(name: str) -> Steps[int, Refused]:
    def last(_: Any) -> Any:
        return sure("outer")

    return (yield from cleans(name).ensure(last))


@workflow("x.cleans_long")
def cleans_long(name: str) -> Steps[int, Refused]:
    def finalizer(_: Any) -> Any:
        return sure("begin").then(lambda _: sleep("60ms")).then(lambda _: sure("end"))

    return (yield from news.receive().ensure(finalizer))


@workflow("x.cleans_told")
def cleans_told(name: str) -> Steps[int, Refused]:
    def finalizer(_: Any) -> Any:
        return sure("begin").then(lambda _: other.receive()).then(lambda _: sure("end"))

    return (yield from news.receive().ensure(finalizer))


@workflow("x.masked")
def holds(name: str) -> Steps[str, Refused]:
    first = yield from masked(other.receive().then(lambda number: sure(str(number))))
    yield from news.receive()
    return first


@workflow("x.branches")
def branches(name: str) -> Steps[None, Refused]:
    def over(which: str) -> Any:
        return lambda _: sure(which)

    yield from all_(news.receive().ensure(over("one")), sleep("1h").ensure(over("two")), news.receive("k").ensure(over("three")))


@workflow("x.catches")
def catches(name: str) -> Steps[str, Refused]:
    yield from waits(name).attempt()
    yield from sure("goes on")
    return "caught"


@workflow("x.isolates")
def isolates(name: str) -> Steps[str, Refused]:
    yield from waits(name).isolate().attempt()
    yield from sure("goes on")
    return "caught"


@workflow("x.bad_finalizer")
def bad_finalizer(name: str) -> Steps[int, Refused]:
    return (yield from news.receive().ensure(lambda _: plain("fails")))


async def test_it_ends_what_waits_with_its_reason(world: World) -> None:
    await world.deploy(waits)
    id = await world.start(waits, "a")
    await world.settle()
    await world.cancel(id, "enough")
    assert await world.exit(id) == Cancelled("enough")
    assert await world.status(id) == "cancelled" and world.calls == []


async def test_it_ends_a_long_sleep(world: World) -> None:
    await world.deploy(sleeps)
    id = await world.start(sleeps, "a")
    await world.settle()
    await world.cancel(id)
    assert await world.exit(id) == Cancelled("asked to")


async def test_twice_is_once_and_the_first_reason_counts(world: World) -> None:
    await world.deploy(cleans)
    id = await world.start(cleans, "a")
    await world.settle()
    await asyncio.gather(world.cancel(id, "first"))
    exit = await world.exit(id)
    assert exit == Cancelled("first")
    assert len([entry for entry in await world.journal(id) if entry.kind == CANCEL]) == 1
    assert world.requests(sure) == ["a Cancelled"]


async def test_a_second_wish_while_finalizers_run_changes_nothing(world: World) -> None:
    await world.deploy(cleans_told)
    id = await world.start(cleans_told, "a")
    await world.settle()
    await world.cancel(id, "first")
    await world.called(sure)
    await world.cancel(id, "second")
    await world.signal(id, other, 1)
    assert await world.exit(id) == Cancelled("first")
    assert world.requests(sure) == ["begin", "end"]
    assert len([entry for entry in await world.journal(id) if entry.kind == CANCEL]) == 1


async def test_it_reaches_an_activity_that_runs_and_its_answer_is_not_recorded(world: World) -> None:
    await world.deploy(works)

    async def slow(name: str) -> Any:
        await asyncio.sleep(20)
        return Success(name)

    world.does(plain, slow)
    id = await world.start(works, "a")
    await world.called(plain)
    await world.cancel(id)
    assert await world.exit(id) == Cancelled("asked to")
    assert await world.story(id) == ["cancel"] and world.requests(plain) == ["slow"]


async def test_finalizers_run_and_are_told(world: World) -> None:
    await world.deploy(cleans_deep)
    id = await world.start(cleans_deep, "a")
    await world.settle()
    await world.cancel(id)
    assert await world.exit(id) == Cancelled("asked to")
    assert world.requests(sure) == ["a Cancelled", "outer"]


async def test_finalizers_are_told_of_success_too(world: World) -> None:
    await world.deploy(cleans)
    id = await world.start(cleans, "a")
    await world.signal(id, news, 3)
    assert await world.exit(id) == Success(3) and world.requests(sure) == ["a Success"]


async def test_a_finalizer_that_fails_is_a_defect(world: World) -> None:
    await world.deploy(bad_finalizer)
    world.answers(plain, Failure(Refused("no")))
    id = await world.start(bad_finalizer, "a")
    await world.settle()
    await world.cancel(id)
    exit = await world.exit(id)
    assert type(exit).__name__ == "Defect" and "a finalizer" in str(exit)


async def test_masked_work_is_finished_first(world: World) -> None:
    await world.deploy(holds)
    id = await world.start(holds, "a")
    await world.settle()
    await world.cancel(id, "later")
    await world.settle()
    assert await world.status(id) == "open"
    await world.signal(id, other, 5)
    assert await world.exit(id) == Cancelled("later")
    assert world.requests(sure) == ["5"]


async def test_all_branches_are_unwound(world: World) -> None:
    await world.deploy(branches)
    id = await world.start(branches, "a")
    await world.settle()
    await world.cancel(id)
    assert await world.exit(id) == Cancelled("asked to")
    assert sorted(world.requests(sure)) == ["one", "three", "two"]


@pytest.mark.parametrize("which", ["catches", "isolates"])
async def test_nothing_takes_a_cancellation_back(world: World, which: str) -> None:
    one = catches if which == "catches" else isolates
    await world.deploy(one)
    id = await world.start(one, "a")
    await world.settle()
    await world.cancel(id, "enough")
    assert await world.exit(id) == Cancelled("enough") and world.calls == []


async def test_one_that_has_not_begun_ends_without_a_step(world: World) -> None:
    await world.deploy(waits)
    id = await world.start(waits, "a")
    await world.cancel(id)
    assert await world.exit(id) == Cancelled("asked to")
    assert world.calls == []


@pytest.mark.parametrize("crash", [{"before": 1}, {"after": 1}, {"before": 2}, {"after": 2}, {"after": 3}])
async def test_a_crash_while_it_unwinds_changes_nothing(world: World, crash: dict[str, int]) -> None:
    await world.deploy(cleans_long)
    id = await world.start(cleans_long, "a")
    await world.settle()
    world.dies(**crash)
    await world.cancel(id, "enough")
    assert await world.exit(id) == Cancelled("enough")
    assert await world.story(id) == ["cancel", "sure", "sleep 60ms", "sure"]
    assert list(dict.fromkeys(world.requests(sure))) == ["begin", "end"] and world.deaths == 1


# Pause, resume, terminate


async def test_paused_nothing_new_begins_until_it_is_resumed(world: World) -> None:
    await world.deploy(waits)
    id = await world.start(waits, "a")
    await world.settle()
    await world.pause(id, "for the night")
    assert await world.blocked(id) == "paused: for the night"
    await world.signal(id, news, 1)
    await world.settle()
    assert await world.status(id) == "blocked" and world.calls == []
    await world.resume(id)
    assert await world.exit(id) == Success("a")


async def test_paused_it_survives_a_crash(world: World) -> None:
    await world.deploy(waits)
    id = await world.start(waits, "a")
    await world.settle()
    await world.pause(id)
    await world.blocked(id)
    await world.crash()
    await world.settle()
    assert await world.status(id) == "blocked"
    await world.resume(id)
    await world.signal(id, news, 1)
    assert await world.exit(id) == Success("a")


async def test_paused_and_cancelled_it_ends_when_it_is_resumed(world: World) -> None:
    await world.deploy(cleans)
    id = await world.start(cleans, "a")
    await world.settle()
    await world.pause(id)
    await world.blocked(id)
    await world.cancel(id, "enough")
    await world.settle()
    assert await world.status(id) == "blocked" and world.calls == []
    await world.resume(id)
    assert await world.exit(id) == Cancelled("enough") and world.requests(sure) == ["a Cancelled"]


async def test_terminated_it_ends_at_once_without_finalizers(world: World) -> None:
    await world.deploy(cleans)
    id = await world.start(cleans, "a")
    await world.settle()
    await world.terminate(id, "now")
    assert await world.exit(id) == Cancelled("terminated: now")
    assert world.calls == [] and await world.status(id) == "cancelled"


async def test_a_paused_one_may_be_terminated(world: World) -> None:
    await world.deploy(cleans)
    id = await world.start(cleans, "a")
    await world.settle()
    await world.pause(id)
    await world.blocked(id)
    await world.terminate(id, "now")
    assert await world.exit(id) == Cancelled("terminated: now")


async def test_terminated_while_an_activity_runs_its_answer_goes_nowhere(world: World) -> None:
    await world.deploy(works)

    async def slow(name: str) -> Any:
        await asyncio.sleep(20 if name == "slow" else 0)
        return Success(name)

    world.does(plain, slow)
    id = await world.start(works, "a")
    await world.called(plain)
    await world.terminate(id)
    assert await world.exit(id) == Cancelled("terminated: asked to")
    await world.settle()
    assert world.requests(plain) == ["slow"]


async def test_a_scope_that_is_cancelled_is_not_the_execution(world: World) -> None:
    @workflow("x.scope")
    def scope(name: str) -> Steps[str, Refused]:
        first = yield from race(waits(name), act("won"))
        return first + (yield from act("after"))

    await world.deploy(scope)
    assert await world.run(scope, "a") == Success("wonafter")
