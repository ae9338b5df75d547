"""Changed code over open executions: what fits goes on, what does not is blocked with a diff and finishes once the code fits again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flowdsl import Done, Flow, Next, Retry, Round, Steps, Success, Workflow, changed, do, iterate, pure, workflow
from tests.conformance.parts import Refused, act, news, plain, sure
from tests.conformance.world import World

Part = Callable[[str], Flow[Any, Refused]]


def nothing(_: str) -> Flow[Any, Refused]:
    return pure(None)


def check(name: str) -> Flow[Any, Refused]:
    return act(f"{name} check")


@do
def guarded(name: str) -> Steps[None, Refused]:
    if (yield from changed("check")):
        yield from act(f"{name} check")


def staged(*, first: Part = nothing, between: Part = nothing, last: Part = nothing, second: Part | None = None) -> Workflow[str, str, Refused]:
    """Two steps with a wait between them; each deploy puts other parts in."""

    @workflow("staged")
    def body(name: str) -> Steps[str, Refused]:
        yield from first(name)
        yield from plain(f"{name} one")
        yield from between(name)
        yield from news.receive()
        yield from (second or (lambda name: plain(f"{name} two")))(name)
        yield from last(name)
        return name

    return body


async def waiting(world: World, code: Workflow[str, str, Refused], name: str = "a") -> str:
    """An execution that has done its first step and waits."""
    await world.deploy(code)
    id = await world.start(code, name)
    await world.settle()
    assert await world.status(id) == "open"
    return id


async def test_the_same_code_goes_on(world: World) -> None:
    id = await waiting(world, staged())
    await world.deploy(staged())
    await world.signal(id, news, 1)
    assert await world.exit(id) == Success("a") and world.names == ["a one", "a two"]


async def test_what_comes_after_where_it_stands_may_change(world: World) -> None:
    id = await waiting(world, staged())
    await world.deploy(staged(last=check))
    await world.signal(id, news, 1)
    assert await world.exit(id) == Success("a") and world.names == ["a one", "a two", "a check"]


@pytest.mark.parametrize("where", ["first", "between"])
async def test_a_step_put_in_where_it_has_been_blocks_it_and_does_nothing(world: World, where: str) -> None:
    id = await waiting(world, staged(last=check))
    await world.signal(id, news, 1)
    await world.exit(id)
    two = await waiting(world, staged(), "b")
    await world.signal(two, news, 1, delivery="d")
    await world.exit(two)
    three = await waiting(world, staged(), "c")
    world.calls.clear()
    await world.deploy(staged(**{"first": {"first": check}, "between": {"between": check}}[where]))
    await world.signal(three, news, 1)
    if where == "first":
        cause = await world.blocked(three)
        assert (
            "diverges" in cause
            and "perform act" in cause
            and "perform plain" in cause
            and "Nothing was executed" in cause
            and "test_change.py" in cause
        )
        assert world.calls == []
    else:
        # The wait had left nothing in the record: the new step comes before it.
        assert await world.exit(three) == Success("c") and world.names == ["c check", "c two"]


async def test_once_the_code_fits_again_it_finishes_and_nothing_is_done_twice(world: World) -> None:
    id = await waiting(world, staged())
    await world.deploy(staged(first=check))
    await world.signal(id, news, 1)
    await world.blocked(id)
    await world.deploy(staged())
    assert await world.status(id) == "blocked", "a person lets it go on"
    await world.resume(id)
    assert await world.exit(id) == Success("a") and world.names == ["a one", "a two"]


async def test_a_marker_keeps_those_that_were_past_it_on_their_way(world: World) -> None:
    old = await waiting(world, staged())
    code = staged(first=guarded)
    await world.deploy(code)
    await world.signal(old, news, 1)
    assert await world.exit(old) == Success("a")
    new = await world.start(code, "b")
    await world.signal(new, news, 1)
    assert await world.exit(new) == Success("b")
    assert world.names == ["a one", "a two", "b check", "b one", "b two"]


async def test_a_marker_answers_the_same_after_a_crash(world: World) -> None:
    code = staged(first=guarded)
    await world.deploy(code)
    world.dies(after=2)
    id = await world.start(code, "b")
    await world.signal(id, news, 1)
    assert await world.exit(id) == Success("b")
    assert list(dict.fromkeys(world.names)) == ["b check", "b one", "b two"] and world.deaths == 1


async def test_another_activity_in_the_place_of_one_that_was_done_blocks(world: World) -> None:
    id = await waiting(world, staged(first=lambda name: act(name)))
    await world.deploy(staged(first=lambda name: sure(name)))
    await world.signal(id, news, 1)
    cause = await world.blocked(id)
    assert "perform act" in cause and "perform sure" in cause


async def test_another_input_of_an_activity_that_was_done_blocks(world: World) -> None:
    id = await waiting(world, staged(first=lambda name: act(name)))
    await world.deploy(staged(first=lambda name: act(name + "!")))
    await world.signal(id, news, 1)
    assert "diverges" in await world.blocked(id)
    assert world.names == ["a", "a one"]


async def test_a_step_taken_out_blocks(world: World) -> None:
    id = await waiting(world, staged(first=check))
    await world.deploy(staged())
    await world.signal(id, news, 1)
    assert "perform act" in await world.blocked(id)


async def test_another_policy_is_no_other_step(world: World) -> None:
    id = await waiting(world, staged(first=lambda name: act(name)))
    await world.deploy(staged(first=lambda name: act.using(retry=Retry.constant("1h", attempts=99), timeout="1s")(name)))
    await world.signal(id, news, 1)
    assert await world.exit(id) == Success("a")


async def test_what_is_sent_to_a_blocked_one_is_kept(world: World) -> None:
    id = await waiting(world, staged())
    await world.deploy(staged(first=check))
    await world.signal(id, news, 1)
    await world.blocked(id)
    await world.signal(id, news, 2)
    await world.settle()
    assert await world.mails(id) == ["news", "news"]
    await world.deploy(staged())
    await world.resume(id)
    assert await world.exit(id) == Success("a") and await world.mails(id) == ["news"]


async def test_a_cancelled_one_that_is_blocked_ends_when_it_is_resumed(world: World) -> None:
    id = await waiting(world, staged())
    await world.deploy(staged(first=check))
    await world.signal(id, news, 1)
    await world.blocked(id)
    await world.cancel(id)
    await world.settle()
    assert await world.status(id) == "blocked"
    await world.terminate(id, "gone")
    assert str(await world.exit(id)) == "Cancelled(reason='terminated: gone')"


async def test_rounds_behind_a_checkpoint_may_change(world: World) -> None:
    def rounds(extra: bool) -> Workflow[int, int, Refused]:
        @workflow("rounds")
        def body(count: int) -> Steps[int, Refused]:
            @do
            def one(at: int) -> Steps[Round[int, int], Refused]:
                if extra:
                    yield from act(f"extra {at}")
                yield from news.receive()
                yield from plain(str(at))
                return Done(at) if at == count else Next(at + 1)

            return (yield from iterate(0, one))

        return body

    before, after = rounds(False), rounds(True)
    await world.deploy(before)
    id = await world.start(before, 2)
    await world.signal(id, news, 0)
    await world.settle()
    await world.deploy(after)
    await world.signal(id, news, 1)
    await world.settle()
    await world.signal(id, news, 2)
    assert await world.exit(id) == Success(2)
    assert world.names == ["0", "extra 1", "1", "extra 2", "2"]


def versioned(number: int) -> Workflow[str, str, Refused]:
    @workflow("versioned", version=number)
    def body(name: str) -> Steps[str, Refused]:
        yield from plain(f"{name} begun by {number}")
        yield from news.receive()
        yield from plain(f"{name} ended by {number}")
        return f"version {number}"

    return body


async def test_of_several_versions_an_open_one_keeps_its_own_and_a_new_one_takes_the_newest(world: World) -> None:
    one, two = versioned(1), versioned(2)
    await world.deploy(one)
    old = await world.start(one, "a")
    await world.settle()
    await world.deploy(one, two)
    new = await world.start(two, "b")
    for id in (old, new):
        await world.signal(id, news, 1)
    assert [await world.exit(old), await world.exit(new)] == [Success("version 1"), Success("version 2")]
    assert sorted(world.names) == ["a begun by 1", "a ended by 1", "b begun by 2", "b ended by 2"]


async def test_of_several_versions_each_survives_a_crash_as_its_own(world: World) -> None:
    one, two = versioned(1), versioned(2)
    await world.deploy(one, two)
    old, new = await world.start(one, "a"), await world.start(two, "b")
    await world.settle()
    await world.crash()
    for id in (old, new):
        await world.signal(id, news, 1)
    assert [await world.exit(old), await world.exit(new)] == [Success("version 1"), Success("version 2")]
