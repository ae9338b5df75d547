"""Loops: rounds whose state is a checkpoint; nothing before the last round is needed again."""

from __future__ import annotations

from typing import Never

import pytest
from attrs import frozen

from flowdsl import Defect, Done, Failure, Flow, Next, Round, Steps, Success, all_, do, each, iterate, pure, race, sleep, uuid, workflow
from flowdsl.journal import CHECKPOINT
from tests.conformance.parts import Refused, news, plain, sure
from tests.conformance.world import World


@frozen
class Walk:
    offset: int = 0
    seen: tuple[str, ...] = ()


@workflow("l.walk")
def walk(count: int) -> Steps[tuple[str, ...], Refused]:
    @do
    def page(at: Walk) -> Steps[Round[Walk, tuple[str, ...]], Refused]:
        answer = yield from plain(str(at.offset))
        at = Walk(at.offset + 1, (*at.seen, answer))
        return Done(at.seen) if at.offset == count else Next(at)

    return (yield from iterate(Walk(), page))


@workflow("l.quiet")
def quiet(count: int) -> Steps[int, Never]:
    @do
    def step(at: int) -> Steps[Round[int, int], Never]:
        yield from pure(None)
        return Done(at) if at == count else Next(at + 1)

    answer = yield from iterate(0, step)
    yield from sure("once")
    return answer


@workflow("l.nested")
def nested(count: int) -> Steps[int, Refused]:
    @do
    def inner(at: int) -> Steps[Round[int, int], Refused]:
        yield from plain(f"inner {at}")
        return Done(at) if at == 2 else Next(at + 1)

    @do
    def outer(total: int) -> Steps[Round[int, int], Refused]:
        total += 1 + (yield from iterate(0, inner))
        yield from plain(f"outer {total}")
        return Done(total) if total >= count * 3 else Next(total)

    return (yield from iterate(0, outer))


@workflow("l.mailed")
def mailed(count: int) -> Steps[int, Never]:
    """A loop that folds its mail."""

    @do
    def one(state: tuple[int, int]) -> Steps[Round[tuple[int, int], int], Never]:
        at, total = state
        total += yield from news.receive()
        return Done(total) if at + 1 == count else Next((at + 1, total))

    return (yield from iterate((0, 0), one))


@workflow("l.branches")
def branches(count: int) -> Steps[list[int], Refused]:
    def loop(name: str) -> Flow[int, Refused]:
        @do
        def step(at: int) -> Steps[Round[int, int], Refused]:
            yield from plain(f"{name}{at}")
            return Done(at) if at == count else Next(at + 1)

        return iterate(0, step)

    return list((yield from all_(loop("a"), loop("b"))))


@workflow("l.bad")
def bad(name: str) -> Steps[int, Refused]:
    @do
    def step(at: int) -> Steps[Round[int, int], Refused]:
        yield from plain(str(at))
        return 5  # type: ignore[return-value]

    return (yield from iterate(0, step))


@workflow("l.ids")
def ids(count: int) -> Steps[list[str], Refused]:
    @do
    def step(seen: list[str]) -> Steps[Round[list[str], list[str]], Refused]:
        drawn = yield from uuid()
        yield from plain(str(len(seen)))
        seen = [*seen, str(drawn)]
        return Done(seen) if len(seen) == count else Next(seen)

    return (yield from iterate(list[str](), step))


@workflow("l.waits")
def waits(count: int) -> Steps[int, Never]:
    @do
    def step(at: int) -> Steps[Round[int, int], Never]:
        yield from sleep("20ms")
        yield from race(sure(str(at)), sleep("1h"))
        return Done(at) if at == count else Next(at + 1)

    return (yield from iterate(0, step))


async def test_the_state_goes_from_round_to_round(world: World) -> None:
    await world.deploy(walk)
    id = await world.start(walk, 5)
    assert await world.exit(id) == Success(("0", "1", "2", "3", "4"))
    assert [entry.kind for entry in await world.journal(id)].count(CHECKPOINT) == 4


async def test_a_failure_in_a_round_is_the_loops(world: World) -> None:
    await world.deploy(walk)
    world.does(plain, lambda name: Failure(Refused(name)) if name == "2" else Success(name))
    assert await world.run(walk, 5) == Failure(Refused("2"))
    assert world.names == ["0", "1", "2"]


async def test_rounds_in_which_nothing_happens_are_not_recorded(world: World) -> None:
    await world.deploy(quiet)
    id = await world.start(quiet, 5000)
    assert await world.exit(id) == Success(5000)
    assert len(await world.journal(id)) == 1


async def test_loops_in_loops(world: World) -> None:
    await world.deploy(nested)
    assert await world.run(nested, 2) == Success(6)
    assert world.names == ["inner 0", "inner 1", "inner 2", "outer 3", "inner 0", "inner 1", "inner 2", "outer 6"]


async def test_loops_side_by_side(world: World) -> None:
    await world.deploy(branches)
    assert await world.run(branches, 3) == Success([3, 3])
    assert [name for name in world.names if name[0] == "a"] == ["a0", "a1", "a2", "a3"]


async def test_a_loop_over_mail(world: World) -> None:
    await world.deploy(mailed)
    id = await world.start(mailed, 6)
    for number in (1, 2):
        await world.signal(id, news, number)
    await world.settle()
    await world.crash()
    for number in (3, 4, 5, 6):
        await world.signal(id, news, number)
    assert await world.exit(id) == Success(21)


async def test_a_round_that_gives_neither_is_a_defect(world: World) -> None:
    await world.deploy(bad)
    exit = await world.run(bad, "x")
    assert isinstance(exit, Defect) and "Next(state) or Done(answer)" in exit.message


async def test_each_round_draws_ids_of_its_own(world: World) -> None:
    await world.deploy(ids)
    world.dies(after=3)
    exit = await world.run(ids, 4)
    assert isinstance(exit, Success) and len(set(exit.unwrap())) == 4


@pytest.mark.shows("S4.62")
async def test_steps_of_rounds_have_keys_of_their_own(world: World) -> None:
    await world.deploy(walk)
    await world.run(walk, 5)
    assert len({call.key for call in world.calls}) == 5


async def test_rounds_may_wait(world: World) -> None:
    await world.deploy(waits)
    assert await world.run(waits, 3) == Success(3)
    assert world.names == ["0", "1", "2", "3"]


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_in_any_round_goes_on_in_that_round(world: World, when: str, n: int) -> None:
    await world.deploy(walk)
    world.dies(**{when: n})
    id = await world.start(walk, 4)
    assert await world.exit(id) == Success(("0", "1", "2", "3"))
    assert list(dict.fromkeys(world.names)) == ["0", "1", "2", "3"] and len(world.names) <= 5 and world.deaths == 1


async def test_a_long_loop_resumes_from_its_last_round(world: World) -> None:
    @workflow("l.long")
    def long(count: int) -> Steps[int, Refused]:
        @do
        def step(at: int) -> Steps[Round[int, int], Refused]:
            yield from plain(str(at))
            if at == count:
                yield from news.receive()
                return Done(at)
            return Next(at + 1)

        return (yield from iterate(0, step))

    await world.deploy(long)
    id = await world.start(long, 60)
    await world.settle()
    await world.crash()
    await world.signal(id, news, 1)
    assert await world.exit(id) == Success(60) and world.count(plain) == 61


async def test_a_window_in_each_round(world: World) -> None:
    @workflow("l.window")
    def window(chunks: int) -> Steps[int, Refused]:
        @do
        def chunk(at: int) -> Steps[Round[int, int], Refused]:
            yield from each([f"{at}.{number}" for number in range(4)], plain, concurrency=2)
            return Done(at) if at == chunks else Next(at + 1)

        return (yield from iterate(0, chunk))

    await world.deploy(window)
    world.dies(after=6)
    assert await world.run(window, 2) == Success(2)
    assert len(set(world.names)) == 12
