"""Retries: which failures, how many attempts, how long between them; what of it survives a crash."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from typing import Any, Never

import pytest

from flowdsl import Defect, Failure, Result, Retry, RetryAfter, Steps, Success, activity, do, workflow
from flowdsl.journal import ATTEMPT, BUG, INTERRUPTED
from tests.conformance.parts import Busy, Refused, act, busy, plain, sure
from tests.conformance.world import World


@activity("grows", retry=Retry.exponential("10ms", maximum="35ms", attempts=5, on=(Refused,)))
def grows(name: str) -> Result[str, Refused]: ...


@activity("climbs", retry=Retry.linear("10ms", attempts=4, on=(Refused,)))
def climbs(name: str) -> Result[str, Refused]: ...


@activity("jitters", retry=Retry.constant("20ms", attempts=3, on=(Refused,), jitter=0.5))
def jitters(name: str) -> Result[str, Refused]: ...


def worth_it(failure: Refused) -> bool:
    return failure.why == "busy"


@activity("chosen", retry=Retry.constant("5ms", attempts=5, on=worth_it))
def chosen(name: str) -> Result[str, Refused]: ...


@activity("patient", retry=Retry.constant("1h", attempts=3, on=(Refused,)))
def patient(name: str) -> Result[str, Refused]: ...


@activity("soon", retry=Retry.constant("150ms", attempts=3, on=(Refused,)))
def soon(name: str) -> Result[str, Refused]: ...


@workflow("retry.all")
def every_kind(kind: str) -> Steps[str, Refused]:
    contract = {"act": act, "plain": plain, "grows": grows, "climbs": climbs, "jitters": jitters, "chosen": chosen, "patient": patient, "soon": soon}
    return (yield from contract[kind](kind))


@workflow("retry.sure")
def one_sure(name: str) -> Steps[str, Never]:
    return (yield from sure(name))


@workflow("retry.busy")
def one_busy(name: str) -> Steps[str, Busy]:
    return (yield from busy(name))


@workflow("retry.using")
def with_more(name: str) -> Steps[str, Refused]:
    return (yield from plain.using(retry=Retry.constant("5ms", attempts=6, on=(Refused,)))(name))


@workflow("retry.together")
def together(name: str) -> Steps[str, Refused]:
    @do
    def both() -> Steps[str, Refused]:
        one = yield from sure("first")
        return one + (yield from plain(name))

    return (yield from both().retry(Retry.constant("5ms", attempts=3)))


# `every_kind` reaches its contracts through a dictionary: named here too, so that a deployment finds them.
ALL = (act, plain, grows, climbs, jitters, chosen, patient, soon)


async def pauses(world: World, id: str) -> list[timedelta]:
    """Between each failed attempt and the time that the next one is due."""
    found = [(entry.at, json.loads(entry.body)["due"]) for entry in await world.journal(id) if entry.kind == ATTEMPT]
    return [datetime.fromisoformat(due) - at for at, due in found]


def ms(*numbers: int) -> list[timedelta]:
    return [timedelta(milliseconds=number) for number in numbers]


NO = Failure(Refused("no"))


async def test_a_failure_that_the_policy_picks_is_tried_again(world: World) -> None:
    await world.deploy(every_kind)
    world.answers(act, NO, NO, Success("at last"))
    id = await world.start(every_kind, "act")
    assert await world.exit(id) == Success("at last")
    assert await world.story(id) == ["act!", "act!", "act"]
    assert [call.number for call in world.calls] == [1, 2, 3]


@pytest.mark.shows("S4.58")
async def test_when_the_attempts_are_used_up_the_last_failure_counts(world: World) -> None:
    await world.deploy(every_kind)
    world.answers(act, NO, NO, Failure(Refused("still no")), Success("too late"))
    assert await world.run(every_kind, "act") == Failure(Refused("still no"))
    assert world.count(act) == 3


async def test_a_failure_that_the_policy_does_not_pick_is_an_answer(world: World) -> None:
    await world.deploy(every_kind)
    world.answers(plain, NO, Success("never asked"))
    assert await world.run(every_kind, "plain") == NO
    assert world.count(plain) == 1


async def test_a_predicate_may_pick(world: World) -> None:
    await world.deploy(every_kind)
    world.answers(chosen, Failure(Refused("busy")), Failure(Refused("busy")), Failure(Refused("closed")), Success("never asked"))
    assert await world.run(every_kind, "chosen") == Failure(Refused("closed"))
    assert world.count(chosen) == 3


async def test_a_predicate_that_raises_is_a_defect_of_the_step(world: World) -> None:
    await world.deploy(every_kind)
    world.answers(plain, Success("unused"))

    @activity("odd", retry=Retry.constant("5ms", on=lambda failure: 1 // 0 > 0))
    def odd(name: str) -> Result[str, Refused]: ...

    @workflow("retry.odd")
    def asks(name: str) -> Steps[str, Refused]:
        return (yield from odd(name))

    await world.deploy(asks)
    world.answers(odd, NO)
    exit = await world.run(asks, "a")
    assert isinstance(exit, Defect) and "retry policy cannot be asked" in exit.message and world.count(odd) == 1


async def test_defects_are_tried_again_whatever_the_policy_picks(world: World) -> None:
    await world.deploy(one_sure)
    world.answers(sure, OSError("1"), ValueError("2"), Success("up again"))
    assert await world.run(one_sure, "a") == Success("up again")


@pytest.mark.shows("S1.10", "S1.120", "S4.57")
@pytest.mark.parametrize(("kind", "expected"), [("grows", (10, 20, 35, 35)), ("climbs", (10, 20, 30)), ("act", (10, 10))])
async def test_the_wait_between_attempts_is_the_policys_and_is_recorded(world: World, kind: str, expected: tuple[int, ...]) -> None:
    await world.deploy(every_kind)
    world.does({"grows": grows, "climbs": climbs, "act": act}[kind], lambda _: NO)
    id = await world.start(every_kind, kind)
    assert await world.exit(id) == NO
    assert await pauses(world, id) == ms(*expected)


async def test_jitter_lengthens_the_wait_by_its_share_at_most_and_is_drawn_once(world: World) -> None:
    await world.deploy(every_kind)
    world.answers(jitters, NO)
    world.dies(after=1)
    id = await world.start(every_kind, "jitters")
    assert await world.exit(id) == NO
    waits, cut = await pauses(world, id), [entry for entry in await world.journal(id) if entry.kind == INTERRUPTED]
    assert len(waits) + len(cut) == 2 and len(set(waits)) == len(waits) and all(ms(20)[0] <= wait <= ms(30)[0] for wait in waits)
    # Had it died in memory, and the take-over taken longer than the delay, the next attempt would count as made.
    assert waits and (world.kind == "postgres" or not cut)


async def test_a_failure_may_say_when_it_is_worth_trying_again(world: World) -> None:
    await world.deploy(one_busy)
    world.answers(busy, Failure(Busy(timedelta(milliseconds=60))), Success("in"))
    id = await world.start(one_busy, "a")
    assert await world.exit(id) == Success("in")
    assert await pauses(world, id) == ms(60)


async def test_an_exception_may_say_when_it_is_worth_trying_again(world: World) -> None:
    await world.deploy(one_sure)
    world.answers(sure, RetryAfter("70ms", "429"), Success("in"))
    id = await world.start(one_sure, "a")
    assert await world.exit(id) == Success("in")
    assert await pauses(world, id) == ms(70)


async def test_a_wish_to_be_asked_sooner_than_the_policy_says_is_not_followed(world: World) -> None:
    await world.deploy(one_sure)
    world.answers(sure, RetryAfter("1ms"), Success("in"))
    id = await world.start(one_sure, "a")
    assert await world.exit(id) == Success("in")
    assert await pauses(world, id) == ms(10)


@pytest.mark.shows("S4.58")
async def test_a_call_may_have_another_policy_than_its_contract(world: World) -> None:
    await world.deploy(with_more)
    world.answers(plain, NO, NO, NO, NO, NO, Success("sixth"))
    assert await world.run(with_more, "a") == Success("sixth")


async def test_several_steps_are_tried_again_as_one(world: World) -> None:
    await world.deploy(together)
    world.answers(plain, NO, Success("x"))
    id = await world.start(together, "a")
    assert await world.exit(id) == Success("firstx")
    assert world.names == ["first", "a", "first", "a"]
    assert len({call.key for call in world.calls}) == 4
    assert await world.story(id) == ["sure", "plain!", "sleep 5ms", "sure", "plain"]


@pytest.mark.parametrize("n", [1, 2])
async def test_failed_attempts_survive_a_crash_after_them(world: World, n: int) -> None:
    await world.deploy(every_kind)
    world.answers(soon, NO)
    world.dies(after=n)
    id = await world.start(every_kind, "soon")
    exit = await world.exit(id)
    assert world.deaths == 1
    if world.kind == "memory":
        assert exit == NO and world.count(soon) == 3
        assert not [entry for entry in await world.journal(id) if entry.kind == INTERRUPTED], "it waited for its next attempt: none was cut short"
    else:  # had the take-over taken longer than the delay, an attempt might have begun: it would count
        cut = [entry for entry in await world.journal(id) if entry.kind == INTERRUPTED or (entry.kind == BUG and b"cut short" in entry.body)]
        assert world.count(soon) + len(cut) == 3


@pytest.mark.parametrize("n", [1, 2, 3])
async def test_an_attempt_that_a_crash_cut_short_counts(world: World, n: int) -> None:
    await world.deploy(every_kind)
    world.answers(act, NO)
    world.dies(before=n)
    id = await world.start(every_kind, "act")
    exit = await world.exit(id)
    assert world.count(act) == 3
    if n < 3:
        assert exit == NO
    else:
        assert isinstance(exit, Defect) and "attempt 3 was cut short by the death of its worker" in exit.message


async def test_a_long_wait_for_the_next_attempt_is_a_wait_like_others(world: World) -> None:
    await world.deploy(every_kind)
    world.answers(patient, NO, Success("later"))
    id = await world.start(every_kind, "patient")
    await world.settle()
    assert await world.status(id) == "open" and world.count(patient) == 1
    await world.crash()
    await world.settle()
    assert world.count(patient) == 1
    await world.cancel(id)
    assert str(await world.exit(id)) == "Cancelled(reason='asked to')"


async def test_slow_attempts_are_counted_one_by_one(world: World) -> None:
    await world.deploy(every_kind)
    tries: list[int] = []

    async def slow(name: str) -> Any:
        tries.append(len(tries))
        await asyncio.sleep(0.03)
        return NO if len(tries) < 3 else Success(name)

    world.does(act, slow)
    assert await world.run(every_kind, "act") == Success("act")
    assert tries == [0, 1, 2]
