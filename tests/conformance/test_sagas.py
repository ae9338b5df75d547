"""Sagas: undos run last-first when work fails or is cancelled; failing undos block, and are resumed."""

from __future__ import annotations

from typing import Any

import pytest

from flowdsl import Cancelled, Defect, Done, Failure, Next, Round, Steps, Success, all_, do, each, fail, iterate, pure, saga, workflow
from tests.conformance.parts import Refused, news, plain, sure, undo
from tests.conformance.world import World


@workflow("g.three")
def three(last: str) -> Steps[str, Refused]:
    yield from sure("one").compensate(undo)
    yield from sure("two").compensate(undo)
    yield from sure("three").compensate(undo)
    return (yield from plain(last))


@workflow("g.waits")
def waits(name: str) -> Steps[int, Refused]:
    yield from sure("one").compensate(undo)
    yield from sure("two").compensate(undo)
    return (yield from news.receive())


@workflow("g.inner")
def inner(last: str) -> Steps[str, Refused]:
    @do
    def part() -> Steps[str, Refused]:
        yield from sure("in").compensate(undo)
        return (yield from plain(last))

    yield from sure("out").compensate(undo)
    outcome = yield from saga(part()).attempt()
    yield from sure("after")
    return type(outcome).__name__


@workflow("g.handed")
def handed(last: str) -> Steps[str, Refused]:
    """An inner saga that succeeds hands its undos outward."""
    yield from sure("out").compensate(undo)
    yield from saga(sure("in").compensate(undo))
    return (yield from plain(last))


@workflow("g.before")
def before(name: str) -> Steps[str, Refused]:
    """Registered before the call: a lost answer may hide what was made."""
    yield from pure(name).compensate(undo)
    return (yield from plain("fails"))


@workflow("g.branches")
def branches(name: str) -> Steps[str, Refused]:
    yield from all_(sure("a").compensate(undo), sure("b").compensate(undo))
    return (yield from plain("fails"))


@workflow("g.rounds")
def rounds(count: int) -> Steps[str, Refused]:
    @do
    def one(at: int) -> Steps[Round[int, int], Refused]:
        yield from sure(str(at)).compensate(undo)
        return Done(at) if at == count else Next(at + 1)

    yield from iterate(0, one)
    return (yield from plain("fails"))


@workflow("g.child")
def child(name: str) -> Steps[str, Refused]:
    yield from sure(name).compensate(undo)
    return name


@workflow("g.parent")
def parent(name: str) -> Steps[str, Refused]:
    yield from child.child(name)
    return (yield from plain("fails"))


@workflow("g.itself")
def itself(name: str) -> Steps[str, Refused]:
    """A step that fails registers nothing."""
    yield from plain("fails").compensate(undo)
    return name


@workflow("g.ends_well")
def ends_well(name: str) -> Steps[str, Refused]:
    yield from sure("one").compensate(undo)
    return (yield from plain("fails").catch(lambda _: pure("handled")))


@workflow("g.several")
def several(name: str) -> Steps[str, Refused]:
    def longer(_: str) -> Any:
        return sure("undo 1").then(lambda _: sure("undo 2"))

    yield from sure("one").compensate(longer)
    return (yield from fail(Refused(name)))


def failing(world: World) -> None:
    world.does(plain, lambda name: Failure(Refused(name)) if name == "fails" else Success(name))
    world.does(undo, lambda _: Success(None))


@pytest.mark.shows("S1.10", "S1.18", "S1.121")
async def test_undos_run_last_first_when_it_fails(world: World) -> None:
    await world.deploy(three)
    failing(world)
    id = await world.start(three, "fails")
    assert await world.exit(id) == Failure(Refused("fails"))
    assert world.requests(undo) == ["three", "two", "one"]
    assert await world.story(id) == ["sure", "sure", "sure", "plain!", "undo", "undo", "undo"]


async def test_no_undo_runs_when_it_succeeds(world: World) -> None:
    await world.deploy(three)
    failing(world)
    assert await world.run(three, "works") == Success("works")
    assert world.requests(undo) == []


async def test_undos_run_after_a_defect(world: World) -> None:
    await world.deploy(three)
    failing(world)
    world.answers(plain, ValueError("odd"))
    exit = await world.run(three, "x")
    assert isinstance(exit, Defect) and world.requests(undo) == ["three", "two", "one"]


async def test_undos_run_when_it_is_cancelled(world: World) -> None:
    await world.deploy(waits)
    failing(world)
    id = await world.start(waits, "a")
    await world.settle()
    await world.cancel(id, "enough")
    assert await world.exit(id) == Cancelled("enough")
    assert world.requests(undo) == ["two", "one"]


async def test_no_undo_runs_when_it_is_terminated(world: World) -> None:
    await world.deploy(waits)
    failing(world)
    id = await world.start(waits, "a")
    await world.settle()
    await world.terminate(id, "now")
    assert await world.exit(id) == Cancelled("terminated: now")
    assert world.requests(undo) == []


async def test_an_inner_saga_undoes_its_own(world: World) -> None:
    await world.deploy(inner)
    failing(world)
    id = await world.start(inner, "fails")
    assert await world.exit(id) == Success("Failure")
    assert world.requests(undo) == ["in"] and world.names[-1] == "after"


async def test_an_inner_saga_that_succeeds_hands_its_undos_outward(world: World) -> None:
    await world.deploy(handed)
    failing(world)
    assert await world.run(handed, "fails") == Failure(Refused("fails"))
    assert world.requests(undo) == ["in", "out"]


async def test_an_undo_may_be_registered_before_the_work(world: World) -> None:
    await world.deploy(before)
    failing(world)
    await world.run(before, "account")
    assert world.requests(undo) == ["account"]


async def test_undos_of_branches_all_run(world: World) -> None:
    await world.deploy(branches)
    failing(world)
    await world.run(branches, "x")
    assert sorted(world.requests(undo)) == ["a", "b"]


async def test_undos_of_the_rounds_of_a_loop_all_run_last_first(world: World) -> None:
    await world.deploy(rounds)
    failing(world)
    await world.run(rounds, 4)
    assert world.requests(undo) == ["4", "3", "2", "1", "0"]


@pytest.mark.parametrize("crash", [{"after": 3}, {"before": 5}, {"after": 9}])
async def test_undos_of_rounds_behind_a_checkpoint_survive_a_crash(world: World, crash: dict[str, int]) -> None:
    await world.deploy(rounds)
    failing(world)
    world.dies(**crash)
    await world.run(rounds, 4)
    assert list(dict.fromkeys(world.requests(undo))) == ["4", "3", "2", "1", "0"] and world.deaths == 1


async def test_a_childs_undos_are_its_own(world: World) -> None:
    await world.deploy(parent)
    failing(world)
    assert await world.run(parent, "a") == Failure(Refused("fails"))
    assert world.requests(undo) == []


async def test_what_fails_itself_is_not_undone(world: World) -> None:
    await world.deploy(itself)
    failing(world)
    await world.run(itself, "a")
    assert world.requests(undo) == []


async def test_a_failure_that_is_handled_undoes_nothing(world: World) -> None:
    await world.deploy(ends_well)
    failing(world)
    assert await world.run(ends_well, "a") == Success("handled") and world.requests(undo) == []


async def test_an_undo_may_be_several_steps(world: World) -> None:
    await world.deploy(several)
    assert await world.run(several, "no") == Failure(Refused("no"))
    assert world.names == ["one", "undo 1", "undo 2"]


async def test_an_undo_is_tried_again_by_its_own_policy(world: World) -> None:
    await world.deploy(three)
    failing(world)
    world.answers(undo, OSError("down"), Success(None))
    assert await world.run(three, "fails") == Failure(Refused("fails"))
    assert world.requests(undo) == ["three", "three", "two", "one"]


async def test_failing_undos_block_with_the_list_and_the_others_run(world: World) -> None:
    await world.deploy(three)
    failing(world)
    world.does(undo, lambda name: Failure(Refused(f"cannot undo {name}")) if name == "two" else Success(None))
    id = await world.start(three, "fails")
    cause = await world.blocked(id)
    assert "undos failed" in cause and "cannot undo two" in cause and "cannot undo three" not in cause
    assert world.requests(undo) == ["three", "two", "one"]


async def test_failing_undos_are_resumed_with_those_behind_them_under_the_same_keys(world: World) -> None:
    await world.deploy(three)
    failing(world)
    world.does(undo, lambda name: Failure(Refused("later")) if name == "two" else Success(None))
    id = await world.start(three, "fails")
    await world.blocked(id)
    world.does(undo, lambda _: Success(None))
    await world.resume(id)
    assert await world.exit(id) == Failure(Refused("fails"))
    assert world.requests(undo) == ["three", "two", "one", "two", "one"] and world.count(sure) == 3
    undone = [call.key for call in world.calls if call.activity == "undo"]
    assert undone[1:3] == undone[3:]


@pytest.mark.parametrize("n", range(4, 8))
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_while_undos_run_changes_nothing(world: World, when: str, n: int) -> None:
    await world.deploy(three)
    failing(world)
    world.dies(**{when: n})
    id = await world.start(three, "fails")
    assert await world.exit(id) == Failure(Refused("fails"))
    assert await world.story(id) == ["sure", "sure", "sure", "plain!", "undo", "undo", "undo"]
    assert list(dict.fromkeys(world.requests(undo))) == ["three", "two", "one"]
    assert len(world.calls) == (8 if when == "before" else 7)


async def test_each_of_many_is_undone(world: World) -> None:
    @workflow("g.each")
    def every(count: int) -> Steps[None, Refused]:
        yield from each([str(number) for number in range(count)], lambda name: sure(name).compensate(undo))
        yield from plain("fails")

    await world.deploy(every)
    failing(world)
    await world.run(every, 10)
    assert sorted(world.requests(undo), key=int) == [str(number) for number in range(10)]
