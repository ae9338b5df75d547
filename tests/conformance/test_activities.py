"""Activities: answers, failures, defects; what an attempt knows; at most once; in the journal's own transaction."""

from __future__ import annotations

from typing import Any, Never

import pytest

from flowdsl import Defect, Failure, GiveUp, Interrupted, Steps, Success, this_attempt, workflow
from flowdsl.journal import INTENT, INTERRUPTED
from tests.conformance.parts import Refused, act, mark, once, plain, sure
from tests.conformance.world import World


@workflow("two")
def two(name: str) -> Steps[str, Refused]:
    first = yield from plain(name)
    return first + (yield from plain(first + name))


@workflow("one.sure")
def one_sure(name: str) -> Steps[str, Never]:
    return (yield from sure(name))


@workflow("one.once")
def one_once(name: str) -> Steps[str, Interrupted]:
    return (yield from once(name))


@workflow("one.mark")
def one_mark(name: str) -> Steps[str, Refused]:
    return (yield from mark(name))


@workflow("attempted")
def attempted(name: str) -> Steps[str, Never]:
    match (yield from plain(name).attempt()):
        case Success(answer):
            return f"had {answer}"
        case Failure(refused):
            return f"refused: {refused.why}"


@pytest.mark.shows("S4.34")
async def test_answers_flow_from_step_to_step(world: World) -> None:
    await world.deploy(two)
    world.does(plain, lambda name: Success(name + "!"))
    id = await world.start(two, "a")
    assert await world.exit(id) == Success("a!a!a!")
    assert world.requests(plain) == ["a", "a!a"]
    assert await world.story(id) == ["plain", "plain"]


async def test_a_declared_failure_is_the_workflows_failure(world: World) -> None:
    await world.deploy(two)
    world.answers(plain, Success("x"), Failure(Refused("full")))
    id = await world.start(two, "a")
    assert await world.exit(id) == Failure(Refused("full"))
    assert await world.status(id) == "failed"
    assert await world.story(id) == ["plain", "plain!"]


async def test_a_failure_may_be_handled_where_it_comes(world: World) -> None:
    await world.deploy(attempted)
    world.answers(plain, Failure(Refused("full")))
    assert await world.run(attempted, "a") == Success("refused: full")
    assert world.count(plain) == 1


async def test_an_exception_is_a_defect_and_says_where(world: World) -> None:
    await world.deploy(one_sure)
    world.answers(sure, OSError("no route"))
    exit = await world.run(one_sure, "a")
    assert isinstance(exit, Defect) and exit.message == "OSError: no route" and "world.py" in exit.where
    assert world.count(sure) == 3


async def test_a_defect_is_no_failure_that_attempt_could_catch(world: World) -> None:
    await world.deploy(attempted)
    world.answers(plain, ValueError("odd"))
    exit = await world.run(attempted, "a")
    assert isinstance(exit, Defect) and exit.message == "ValueError: odd"


async def test_what_is_no_result_is_a_defect(world: World) -> None:
    await world.deploy(one_sure)
    world.does(sure, lambda name: name)
    exit = await world.run(one_sure, "a")
    assert isinstance(exit, Defect) and "its implementation returned 'a'" in exit.message


async def test_an_answer_of_another_type_is_a_defect_and_is_not_tried_again(world: World) -> None:
    await world.deploy(one_sure)
    world.does(sure, lambda _: Success(5))
    exit = await world.run(one_sure, "a")
    assert isinstance(exit, Defect) and "sure" in exit.where
    assert world.count(sure) == 1


async def test_an_undeclared_failure_is_a_defect(world: World) -> None:
    await world.deploy(one_sure)
    world.answers(sure, Failure(Refused("undeclared")))
    exit = await world.run(one_sure, "a")
    assert isinstance(exit, Defect)


async def test_each_step_has_a_key_of_its_own_and_each_attempt_of_it_the_same(world: World) -> None:
    await world.deploy(two)
    world.answers(plain, OSError("down"), Success("x"))
    id = await world.start(two, "a")
    await world.exit(id)
    assert [(call.key, call.number) for call in world.calls] == [(f"{id}/0", 1), (f"{id}/0", 2), (f"{id}/1", 1)]


async def test_an_attempt_knows_its_tenant_and_when_it_is_given_up(world: World) -> None:
    await world.deploy(one_sure)
    seen: list[Any] = []

    def look(name: str) -> Any:
        attempt = this_attempt()
        seen.append((attempt.tenant, attempt.deadline.tzinfo is not None, attempt.cancelled, attempt.last_heartbeat))
        return Success(name)

    world.does(sure, look)
    id = await world.start(one_sure, "a", tenant="acme")
    await world.exit(id)
    assert seen == [("acme", True, False, None)]


async def test_giving_up_ends_the_attempts_whatever_the_policy_says(world: World) -> None:
    await world.deploy(one_sure)
    world.answers(sure, GiveUp("the account is closed"))
    exit = await world.run(one_sure, "a")
    assert isinstance(exit, Defect) and exit.message == "GiveUp: the account is closed"
    assert world.count(sure) == 1


async def test_at_most_once_its_intent_is_recorded_first(world: World) -> None:
    await world.deploy(one_once)
    id = await world.start(one_once, "a")
    assert await world.exit(id) == Success("a")
    assert [entry.kind == INTENT for entry in await world.journal(id)] == [True, False]


async def test_at_most_once_a_defect_is_not_tried_again(world: World) -> None:
    await world.deploy(one_once)
    world.answers(once, OSError("down"))
    exit = await world.run(one_once, "a")
    assert isinstance(exit, Defect) and world.count(once) == 1


async def test_at_most_once_a_crash_before_its_answer_is_recorded_is_interrupted(world: World) -> None:
    await world.deploy(one_once)
    world.dies(before=2)
    assert await world.run(one_once, "a") == Failure(Interrupted())
    assert world.count(once) == 1 and world.deaths == 1


async def test_at_most_once_a_crash_between_intent_and_call_is_interrupted_too(world: World) -> None:
    await world.deploy(one_once)
    world.dies(after=1)
    assert await world.run(one_once, "a") == Failure(Interrupted())
    assert world.count(once) == 0 and world.deaths == 1


async def test_at_most_once_a_crash_before_the_intent_changes_nothing(world: World) -> None:
    await world.deploy(one_once)
    world.dies(before=1)
    assert await world.run(one_once, "a") == Success("a")
    assert world.count(once) == 1 and world.deaths == 1


@pytest.mark.shows("S4.70")
async def test_a_crash_before_an_answer_is_recorded_runs_the_activity_again_with_the_same_key(world: World) -> None:
    await world.deploy(two)
    world.dies(before=2)
    id = await world.start(two, "a")
    assert await world.exit(id) == Success("aaa")
    assert [(call.request, call.number, call.key) for call in world.calls] == [("a", 1, f"{id}/0"), ("aa", 1, f"{id}/1"), ("aa", 2, f"{id}/1")]
    assert [entry.kind == INTERRUPTED for entry in await world.journal(id)] == [False, True, False]


@pytest.mark.shows("S4.55", "S4.70")
async def test_a_crash_after_an_answer_is_recorded_does_not_run_it_again(world: World) -> None:
    await world.deploy(two)
    world.dies(after=1)
    id = await world.start(two, "a")
    assert await world.exit(id) == Success("aaa")
    assert world.requests(plain).count("a") == 1 and world.deaths == 1


@pytest.mark.shows("S4.42", "S4.61")
async def test_writes_of_a_transactional_activity_come_with_its_success(world: World) -> None:
    await world.deploy(one_mark)
    assert await world.run(one_mark, "a") == Success("a")
    assert await world.marks() == ["a"]


async def test_a_crash_after_a_transactional_success_writes_once(world: World) -> None:
    await world.deploy(one_mark)
    world.dies(after=1)
    assert await world.run(one_mark, "a") == Success("a")
    assert await world.marks() == ["a"] and world.count(mark) == 1


@pytest.mark.parametrize("name", ["", "ünïcode \N{SNOWMAN}", "a\nb", "'; drop table marks; --", "\\x00 and \\", "x" * 100_000])
async def test_any_text_goes_through_as_it_is(world: World, name: str) -> None:
    await world.deploy(one_sure)
    assert await world.run(one_sure, name) == Success(name)
    assert world.requests(sure) == [name]


async def test_workflows_of_one_deployment_do_not_meet(world: World) -> None:
    await world.deploy(two, one_sure)
    world.does(act, lambda name: Success(name))
    ids = [await world.start(two, "a"), await world.start(one_sure, "b"), await world.start(two, "c")]
    assert [await world.exit(id) for id in ids] == [Success("aaa"), Success("b"), Success("ccc")]
    assert len(world.calls) == 5
