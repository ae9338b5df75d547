"""What people do: retry, rewind, fork; what stands is not done again."""

from __future__ import annotations

import asyncio
from typing import Any, Never

import pytest

from flowdsl import Cancelled, Defect, Failure, Steps, Success, each, sleep, workflow
from flowdsl.errors import FlowError
from tests.conformance.parts import Refused, act, news, plain, sure, undo
from tests.conformance.world import World


@workflow("e.steps")
def steps(names: str) -> Steps[str, Refused]:
    done = ""
    for name in names:
        done += yield from plain(name)
    return done


@workflow("e.parts")
def parts(names: str) -> Steps[list[str], Refused]:
    return (yield from each(names, steps.child))


@workflow("e.undone")
def undone(name: str) -> Steps[str, Refused]:
    yield from sure("first").compensate(undo)
    return (yield from plain(name))


@workflow("e.listens")
def listens(name: str) -> Steps[list[int], Refused]:
    one = yield from news.receive()
    yield from plain(name)
    return [one, (yield from news.receive())]


@workflow("e.waits")
def waits(name: str) -> Steps[int, Never]:
    yield from sure(name)
    return (yield from news.receive())


def refuses(*those: str) -> Any:
    return lambda name: Failure(Refused(name)) if name in those else Success(name)


async def test_a_retry_does_the_failed_step_again_and_nothing_before_it(world: World) -> None:
    await world.deploy(steps)
    world.does(plain, refuses("c"))
    id = await world.start(steps, "abcd")
    assert await world.exit(id) == Failure(Refused("c"))
    world.does(plain, Success)
    await world.retry(id)
    assert await world.exit(id) == Success("abcd")
    assert world.names == ["a", "b", "c", "c", "d"]
    assert len({call.key for call in world.calls if call.request == "c"}) == 1, "its key is the same: it may have had an effect"


async def test_a_retry_may_fail_again_and_be_retried_again(world: World) -> None:
    await world.deploy(steps)
    world.does(plain, refuses("b"))
    id = await world.start(steps, "abc")
    for _ in range(3):
        assert await world.exit(id) == Failure(Refused("b"))
        await world.retry(id)
    world.does(plain, Success)
    await world.ended(id)
    if await world.status(id) == "failed":
        await world.retry(id)
    assert await world.exit(id) == Success("abc")
    assert world.names[0] == "a" and world.names.count("a") == 1 and world.names[-1] == "c"


async def test_a_defect_is_retried_with_all_its_attempts(world: World) -> None:
    await world.deploy(steps)
    world.answers(plain, OSError("down"))
    id = await world.start(steps, "a")
    assert isinstance(await world.exit(id), Defect) and world.count(plain) == 3
    world.answers(plain, OSError("down"), OSError("down"), Success("a"))
    await world.retry(id)
    assert await world.exit(id) == Success("a") and world.count(plain) == 6


async def test_a_retry_goes_to_the_failed_children_first(world: World) -> None:
    await world.deploy(parts)
    world.does(plain, refuses("b"))
    id = await world.start(parts, "abc")
    assert await world.exit(id) == Failure(Refused("b"))
    world.does(plain, Success)
    await world.retry(id)
    assert await world.exit(id) == Success(["a", "b", "c"])
    assert len(await world.children(id)) == 3


async def test_what_has_not_failed_cannot_be_retried(world: World) -> None:
    await world.deploy(steps)
    id = await world.start(steps, "a")
    await world.exit(id)
    with pytest.raises(FlowError, match="its state is succeeded"):
        await world.retry(id)


async def test_a_cancelled_one_may_be_retried(world: World) -> None:
    await world.deploy(waits)
    id = await world.start(waits, "a")
    await world.settle()
    await world.cancel(id)
    assert await world.exit(id) == Cancelled("asked to")
    await world.retry(id)
    await world.signal(id, news, 4)
    assert await world.exit(id) == Success(4) and world.names == ["a"]


async def test_steps_that_were_undone_are_done_again_under_other_keys(world: World) -> None:
    await world.deploy(undone)
    world.does(plain, refuses("bad"))
    world.does(undo, lambda _: Success(None))
    id = await world.start(undone, "bad")
    await world.exit(id)
    world.does(plain, Success)
    await world.retry(id)
    assert await world.exit(id) == Success("bad")
    assert world.names == ["first", "bad", "first", "first", "bad"]
    firsts = [call.key for call in world.calls if call.activity == "sure"]
    assert len(set(firsts)) == 2


@pytest.mark.parametrize("crash", [{"before": 1}, {"after": 1}, {"before": 2}])
async def test_a_crash_after_a_retry_changes_nothing(world: World, crash: dict[str, int]) -> None:
    await world.deploy(steps)
    world.does(plain, refuses("c"))
    id = await world.start(steps, "abcd")
    await world.exit(id)
    world.does(plain, Success)
    world.dies(**crash)
    await world.retry(id)
    assert await world.exit(id) == Success("abcd")
    assert list(dict.fromkeys(world.names)) == ["a", "b", "c", "d"] and world.names.count("a") == 1


async def test_a_rewind_does_everything_from_a_step_on_anew(world: World) -> None:
    await world.deploy(steps)
    id = await world.start(steps, "abc")
    assert await world.exit(id) == Success("abc")
    await world.rewind(id, "1")
    assert await world.exit(id) == Success("abc")
    assert world.names == ["a", "b", "c", "b", "c"]
    assert len({call.key for call in world.calls}) == 5, "under new keys"
    assert await world.story(id) == ["plain", "plain", "plain"]


async def test_a_rewind_puts_back_the_mail_that_it_takes_from_the_record(world: World) -> None:
    await world.deploy(listens)
    id = await world.start(listens, "a")
    await world.signal(id, news, 1)
    await world.signal(id, news, 2)
    assert await world.exit(id) == Success([1, 2])
    await world.rewind(id, 0)
    assert await world.exit(id) == Success([1, 2]) and world.names == ["a", "a"]


async def test_a_rewind_of_one_that_waits(world: World) -> None:
    await world.deploy(waits)
    id = await world.start(waits, "a")
    await world.settle()
    await world.rewind(id, 0)
    await world.settle()
    assert world.names == ["a", "a"]
    await world.signal(id, news, 1)
    assert await world.exit(id) == Success(1)


async def test_a_rewound_one_survives_a_crash(world: World) -> None:
    await world.deploy(steps)
    id = await world.start(steps, "abc")
    await world.exit(id)
    world.dies(after=1)
    await world.rewind(id, "1")
    assert await world.exit(id) == Success("abc")
    assert world.names.count("a") == 1


async def test_a_fork_goes_on_from_a_step_and_leaves_the_first_as_it_is(world: World) -> None:
    await world.deploy(steps)
    id = await world.start(steps, "abc")
    await world.exit(id)
    journal = await world.journal(id)
    new = await world.fork(id, "2")
    assert new != id and await world.exit(new) == Success("abc")
    assert world.names == ["a", "b", "c", "c"] and await world.journal(id) == journal
    assert {call.execution for call in world.calls[3:]} == {new}


async def test_a_fork_may_have_other_answers(world: World) -> None:
    await world.deploy(steps)
    id = await world.start(steps, "abc")
    await world.exit(id)
    new = await world.fork(id, "2", {"0": Success("A")})
    assert await world.exit(new) == Success("Abc")
    assert await world.exit(id) == Success("abc")


async def test_a_fork_may_be_forked_and_crashed(world: World) -> None:
    await world.deploy(steps)
    id = await world.start(steps, "abc")
    await world.exit(id)
    new = await world.fork(id, "1")
    await world.exit(new)
    world.dies(before=1)
    third = await world.fork(new, "2")
    assert await world.exit(third) == Success("abc")
    assert world.names.count("a") == 1


async def test_paused_while_an_activity_runs_its_answer_is_recorded(world: World) -> None:
    @workflow("e.slow")
    def slow(name: str) -> Steps[str, Refused]:
        first = yield from act("slow")
        yield from sleep("20ms")
        return first + (yield from act("after"))

    paused = False

    async def takes_time(name: str) -> Any:
        while name == "slow" and world.kind == "postgres" and not paused:  # in memory nothing else happens meanwhile
            await asyncio.sleep(0.005)
        return Success(name)

    await world.deploy(slow)
    world.does(act, takes_time)
    id = await world.start(slow, "a")
    await world.called(act)
    await world.pause(id, "a look")
    await world.heard(id)
    paused = True
    assert await world.blocked(id) == "paused: a look"
    assert world.requests(act) == ["slow"]
    await world.resume(id)
    assert await world.exit(id) == Success("slowafter")
    assert world.requests(act) == ["slow", "after"]
