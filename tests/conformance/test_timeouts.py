"""Time-outs: of an attempt, of all attempts, of the silence between heartbeats, and around any flow."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Never

from flowdsl import Defect, Failure, Result, Steps, Success, TimedOut, all_, now, sleep, this_attempt, workflow
from flowdsl.journal import ATTEMPT
from tests.conformance.parts import Refused, act, bounded, brief, hasty, news, undo, watched
from tests.conformance.world import World


@workflow("o.brief")
def one_brief(name: str) -> Steps[str, TimedOut]:
    return (yield from brief(name))


@workflow("o.hasty")
def one_hasty(name: str) -> Steps[str, Refused]:
    return (yield from hasty(name))


@workflow("o.watched")
def one_watched(name: str) -> Steps[str, TimedOut]:
    return (yield from watched(name))


@workflow("o.bounded")
def one_bounded(name: str) -> Steps[str, TimedOut | Refused]:
    return (yield from bounded(name))


@workflow("o.around")
def around(name: str) -> Steps[str, Refused]:
    return (yield from sleep("1h").then(lambda _: act(name)).timeout("40ms", Refused("too slow")))


@workflow("o.until")
def until(name: str) -> Steps[int, TimedOut]:
    end = (yield from now()) + timedelta(milliseconds=40)
    return (yield from news.receive().timeout(end))


@workflow("o.in_time")
def in_time(name: str) -> Steps[str, Refused | TimedOut]:
    answer = yield from act(name).timeout("1h")
    yield from news.receive()
    return answer


@workflow("o.undone")
def undone(name: str) -> Steps[str, Refused | TimedOut]:
    yield from act(name).compensate(undo)
    yield from sleep("1h").timeout("40ms")
    return name


@workflow("o.inner")
def inner(name: str) -> Steps[str, TimedOut]:
    first = yield from sleep("1h").timeout("30ms").attempt()
    second = yield from all_(sleep("30ms"), sleep("50ms")).timeout("1h").attempt()
    return f"{type(first).__name__} {type(second).__name__}"


def hangs(times: int) -> Any:
    """Hangs so often, then answers at once."""
    left = [times]

    async def script(name: str) -> Result[str, Never]:
        left[0] -= 1
        if left[0] >= 0:
            await asyncio.sleep(30)
        return Success(name)

    return script


async def test_an_attempt_that_takes_too_long_is_given_up_and_made_again(world: World) -> None:
    await world.deploy(one_brief)
    world.does(brief, hangs(1))
    id = await world.start(one_brief, "a")
    assert await world.exit(id) == Success("a")
    assert [entry.kind == ATTEMPT for entry in await world.journal(id)] == [True, False]
    assert [call.number for call in world.calls] == [1, 2]


async def test_a_time_out_is_the_failure_that_the_contract_declares(world: World) -> None:
    await world.deploy(one_brief)
    world.does(brief, hangs(9))
    assert await world.run(one_brief, "a") == Failure(TimedOut("200ms"))
    assert world.count(brief) == 2


async def test_a_time_out_that_the_contract_does_not_declare_is_a_defect(world: World) -> None:
    await world.deploy(one_hasty)
    world.does(hasty, hangs(9))
    exit = await world.run(one_hasty, "a")
    assert exit == Defect("hasty", "timed out after 200ms")


async def test_silence_between_heartbeats_ends_an_attempt(world: World) -> None:
    await world.deploy(one_watched)
    world.does(watched, hangs(9))
    assert await world.run(one_watched, "a") == Failure(TimedOut("200ms"))
    assert world.count(watched) == 2


async def test_heartbeats_keep_a_long_attempt_alive(world: World) -> None:
    await world.deploy(one_watched)

    silences: list[float] = []

    async def beats(name: str) -> Result[str, TimedOut]:
        clock = asyncio.get_running_loop().time
        for step in range(8):
            this_attempt().heartbeat(step)
            beat = clock()
            try:
                await asyncio.sleep(0.05)
            finally:
                silences.append(clock() - beat)
        return Success(name)

    world.does(watched, beats)
    exit = await world.run(one_watched, "a")
    if max(silences) < 0.2:
        assert exit == Success("a") and world.count(watched) == 1
    else:  # the machine stood still between two beats: then it was silent indeed
        assert world.kind == "postgres" and exit in (Success("a"), Failure(TimedOut("200ms")))


async def test_what_a_heartbeat_told_reaches_the_next_attempt(world: World) -> None:
    await world.deploy(one_watched)
    seen: list[Any] = []

    async def goes_on(name: str) -> Result[str, TimedOut]:
        attempt = this_attempt()
        seen.append(attempt.last_heartbeat)
        if attempt.number == 1:
            attempt.heartbeat({"row": 17})
            raise OSError("cut")
        return Success(name)

    world.does(watched, goes_on)
    assert await world.run(one_watched, "a") == Success("a")
    assert seen == [None, {"row": 17}]


async def test_what_a_heartbeat_told_is_not_the_next_steps(world: World) -> None:
    @workflow("o.watched_twice")
    def watched_twice(name: str) -> Steps[str, TimedOut]:
        yield from watched(name)
        return (yield from watched(name))

    await world.deploy(watched_twice)
    seen: list[Any] = []

    async def beats(name: str) -> Result[str, TimedOut]:
        seen.append(this_attempt().last_heartbeat)
        this_attempt().heartbeat(name)
        await asyncio.sleep(0.01)
        return Success(name)

    world.does(watched, beats)
    assert await world.run(watched_twice, "a") == Success("a")
    assert seen == [None, None]


async def test_all_attempts_together_have_a_limit(world: World) -> None:
    await world.deploy(one_bounded)
    world.answers(bounded, Failure(Refused("no")))
    exit = await world.run(one_bounded, "a")
    assert exit in (Failure(Refused("no")), Failure(TimedOut("300ms"))), "its last attempt, or none: the time was over before it began"
    assert (world.kind == "postgres" or world.calls) and world.count(bounded) <= 4


async def test_the_limit_of_all_attempts_ends_one_that_hangs(world: World) -> None:
    await world.deploy(one_bounded)
    world.does(bounded, hangs(9))
    assert await world.run(one_bounded, "a") == Failure(TimedOut("300ms"))
    assert world.count(bounded) == 1 or (world.kind == "postgres" and not world.calls), "or none: the time was over before it began"


async def test_around_a_flow_it_ends_what_runs_with_the_failure_given(world: World) -> None:
    await world.deploy(around)
    id = await world.start(around, "a")
    assert await world.exit(id) == Failure(Refused("too slow"))
    assert world.calls == [] and await world.story(id) == ["sleep 40ms"]


async def test_it_may_be_an_instant(world: World) -> None:
    await world.deploy(until)
    exit = await world.run(until, "a")
    assert isinstance(exit, Failure) and isinstance(exit.failure(), TimedOut)


async def test_what_ends_in_time_takes_its_limit_with_it(world: World) -> None:
    await world.deploy(in_time)
    id = await world.start(in_time, "a")
    await world.settle()
    await world.signal(id, news, 1)
    assert await world.exit(id) == Success("a")
    assert await world.story(id) == ["act", "receive news"]


async def test_undos_run_when_a_time_out_fails_the_workflow(world: World) -> None:
    await world.deploy(undone)
    world.does(undo, lambda _: Success(None))
    id = await world.start(undone, "a")
    assert await world.exit(id) == Failure(TimedOut("40ms"))
    assert await world.story(id) == ["act", "sleep 40ms", "undo"] and world.requests(undo) == ["a"]


async def test_inner_limits_do_not_reach_outward(world: World) -> None:
    await world.deploy(inner)
    assert await world.run(inner, "a") == Success("Failure Success")
