"""Signals: by execution and by correlation key, kept when they come early, once by their delivery id, with time-outs and races."""

from __future__ import annotations

from typing import Never

import pytest

from flowdsl import Steps, Success, TimedOut, all_, execution, race, sleep, workflow
from tests.conformance.parts import Refused, news, other, plain, sure, word
from tests.conformance.world import World


@workflow("s.two")
def two(name: str) -> Steps[list[int], Never]:
    first = yield from news.receive()
    yield from sure(f"got {first}")
    return [first, (yield from news.receive())]


@workflow("s.late")
def late(name: str) -> Steps[list[int], Never]:
    yield from sleep("120ms")
    return [(yield from news.receive()), (yield from news.receive()), (yield from news.receive())]


@workflow("s.keyed")
def keyed(key: str) -> Steps[int, Never]:
    return (yield from news.receive(key))


@workflow("s.keyed_twice")
def keyed_twice(key: str) -> Steps[list[int], Never]:
    return [(yield from news.receive(key)), (yield from news.receive(key))]


@workflow("s.limited")
def limited(name: str) -> Steps[str, TimedOut]:
    first = yield from news.receive().timeout("60ms").attempt()
    second = yield from news.receive().timeout("1h")
    return f"{type(first).__name__} {second}"


@workflow("s.any")
def any_of(name: str) -> Steps[str, Never]:
    return str((yield from race(news.receive(), word.receive())))


@workflow("s.both")
def both(name: str) -> Steps[list[str], Never]:
    number, text = yield from all_(news.receive(), word.receive())
    return [str(number), text]


@workflow("s.looks")
def looks(name: str) -> Steps[list[int | None], Never]:
    empty = yield from news.take()
    yield from other.receive()
    return [empty, (yield from news.take()), (yield from news.take()), (yield from news.take())]


@workflow("s.looks_at")
def looks_at(key: str) -> Steps[list[int | None], Never]:
    return [(yield from news.take(key)), (yield from news.take(key))]


@workflow("s.asks")
def asks(to: str) -> Steps[str, Never]:
    me = yield from execution()
    yield from word.send(to, me.id)
    return f"answer {(yield from news.receive())}"


@workflow("s.replies")
def replies(number: int) -> Steps[str, Never]:
    asked_by = yield from word.receive()
    yield from news.send(asked_by, number)
    return asked_by


@workflow("s.tells")
def tells(key: str) -> Steps[None, Never]:
    yield from news.send(key, 1)
    yield from news.send(key, 2)


@workflow("s.self")
def to_itself(name: str) -> Steps[int, Never]:
    me = yield from execution()
    yield from news.send(me.id, 7)
    return (yield from news.receive())


@workflow("s.working")
def working(name: str) -> Steps[int, Refused]:
    yield from plain(name)
    return (yield from news.receive())


@workflow("s.race_then_wait")
def race_then_wait(name: str) -> Steps[list[int], Never]:
    first = yield from race(news.receive(), sleep("60ms").map(lambda _: -1))
    return [first, (yield from news.receive())]


async def test_it_wakes_who_waits(world: World) -> None:
    await world.deploy(two)
    id = await world.start(two, "a")
    await world.settle()
    await world.signal(id, news, 1)
    await world.settle()
    assert await world.story(id) == ["receive news", "sure"] and await world.status(id) == "open"
    await world.signal(id, news, 2)
    assert await world.exit(id) == Success([1, 2])


async def test_those_that_come_before_the_wait_are_kept_in_their_order(world: World) -> None:
    await world.deploy(late)
    id = await world.start(late, "a")
    for number in (3, 1, 2):
        await world.signal(id, news, number)
    assert await world.exit(id) == Success([3, 1, 2])


async def test_one_that_comes_while_an_activity_runs_is_kept(world: World) -> None:
    await world.deploy(working)
    id = await world.start(working, "a")
    await world.signal(id, news, 4)
    assert await world.exit(id) == Success(4)


async def test_the_same_delivery_acts_once(world: World) -> None:
    await world.deploy(two)
    id = await world.start(two, "a")
    for _ in range(3):
        await world.signal(id, news, 1, delivery="d-1")
    await world.settle()
    assert await world.status(id) == "open"
    await world.signal(id, news, 2, delivery="d-2")
    assert await world.exit(id) == Success([1, 2])


async def test_a_late_duplicate_of_what_was_taken_is_still_known(world: World) -> None:
    await world.deploy(two)
    id = await world.start(two, "a")
    await world.signal(id, news, 1, delivery="d-1")
    await world.settle()
    await world.crash()
    await world.signal(id, news, 1, delivery="d-1")
    await world.settle()
    assert await world.mails(id) == [] and await world.status(id) == "open"


async def test_one_delivery_id_may_serve_two_signals(world: World) -> None:
    await world.deploy(both)
    id = await world.start(both, "a")
    await world.signal(id, news, 1, delivery="d")
    await world.signal(id, word, "x", delivery="d")
    assert await world.exit(id) == Success(["1", "x"])


async def test_one_that_nobody_waits_for_stays_in_the_mailbox(world: World) -> None:
    await world.deploy(two)
    id = await world.start(two, "a")
    await world.signal(id, other, 1)
    await world.signal(id, word, "x")
    await world.settle()
    assert await world.mails(id) == ["other", "word"] and await world.journal(id) == []


async def test_by_key_it_finds_who_waits(world: World) -> None:
    await world.deploy(keyed)
    id = await world.start(keyed, "order-1")
    await world.settle()
    await world.signal("order-1", news, 5)
    assert await world.exit(id) == Success(5)


async def test_by_key_it_is_kept_until_somebody_waits_and_is_listed(world: World) -> None:
    await world.deploy(keyed_twice)
    await world.signal("order-1", news, 5)
    await world.signal("order-2", news, 9)
    assert await world.unmatched() == [("news", "order-1"), ("news", "order-2")]
    id = await world.start(keyed_twice, "order-1")
    await world.settle()
    assert await world.unmatched() == [("news", "order-2")]
    await world.signal("order-1", news, 6)
    assert await world.exit(id) == Success([5, 6])


async def test_by_key_the_same_delivery_acts_once_also_before_anyone_waits(world: World) -> None:
    await world.deploy(keyed_twice)
    for _ in range(2):
        await world.signal("order-1", news, 5, delivery="d")
    id = await world.start(keyed_twice, "order-1")
    await world.settle()
    await world.signal("order-1", news, 5, delivery="d")
    await world.settle()
    assert await world.status(id) == "open" and await world.story(id) == ["receive news"]


async def test_by_key_what_comes_after_its_waiter_ended_is_kept_for_the_next(world: World) -> None:
    await world.deploy(keyed)
    one = await world.start(keyed, "k")
    await world.settle()
    await world.signal("k", news, 1)
    assert await world.exit(one) == Success(1)
    await world.signal("k", news, 2)
    assert await world.unmatched() == [("news", "k")]
    assert await world.run(keyed, "k") == Success(2)


async def test_by_key_the_last_who_waited_gets_it(world: World) -> None:
    await world.deploy(keyed)
    one = await world.start(keyed, "k")
    await world.settle()
    two_ = await world.start(keyed, "k")
    await world.settle()
    await world.signal("k", news, 1)
    assert await world.exit(two_) == Success(1)
    assert await world.status(one) == "open"


async def test_a_wait_that_is_over_leaves_the_next_one_to_wait_anew(world: World) -> None:
    await world.deploy(limited)
    id = await world.start(limited, "a")
    await world.settle()
    assert await world.story(id) == ["sleep 60ms"]
    await world.signal(id, news, 3)
    assert await world.exit(id) == Success("Failure 3")


async def test_one_that_comes_after_a_lost_race_is_for_the_next_wait(world: World) -> None:
    await world.deploy(race_then_wait)
    id = await world.start(race_then_wait, "a")
    await world.settle()
    await world.signal(id, news, 8)
    assert await world.exit(id) == Success([-1, 8])


@pytest.mark.shows("S2.60")
@pytest.mark.parametrize("first", ["news", "word"])
async def test_any_of_several(world: World, first: str) -> None:
    await world.deploy(any_of)
    id = await world.start(any_of, "a")
    await world.settle()
    if first == "news":
        await world.signal(id, news, 1)
    else:
        await world.signal(id, word, "x")
    assert await world.exit(id) == Success("1" if first == "news" else "x")


async def test_all_of_several_in_any_order(world: World) -> None:
    await world.deploy(both)
    id = await world.start(both, "a")
    await world.signal(id, word, "x")
    await world.settle()
    await world.crash()
    await world.signal(id, news, 1)
    assert await world.exit(id) == Success(["1", "x"])


async def test_a_look_never_waits(world: World) -> None:
    await world.deploy(looks)
    id = await world.start(looks, "a")
    await world.settle()
    await world.signal(id, news, 1)
    await world.signal(id, news, 2)
    await world.signal(id, other, 0)
    assert await world.exit(id) == Success([None, 1, 2, None])


async def test_a_look_at_a_key_finds_what_came_before(world: World) -> None:
    await world.deploy(looks_at)
    await world.signal("k", news, 4)
    assert await world.run(looks_at, "k") == Success([4, None])


async def test_executions_may_ask_each_other(world: World) -> None:
    await world.deploy(asks, replies)
    replier = await world.start(replies, 42)
    asker = await world.start(asks, replier)
    assert await world.exit(asker) == Success("answer 42")
    assert await world.exit(replier) == Success(asker)


async def test_an_execution_may_write_to_itself(world: World) -> None:
    await world.deploy(to_itself)
    assert await world.run(to_itself, "a") == Success(7)


async def test_what_is_sent_from_a_flow_to_a_key_arrives_in_its_order(world: World) -> None:
    await world.deploy(tells, keyed_twice)
    id = await world.start(keyed_twice, "k")
    await world.settle()
    await world.run(tells, "k")
    assert await world.exit(id) == Success([1, 2])


@pytest.mark.parametrize("crash", [{"before": 1}, {"after": 1}, {"before": 2}])
async def test_what_is_sent_from_a_flow_is_sent_once_whatever_crashes(world: World, crash: dict[str, int]) -> None:
    await world.deploy(tells, keyed_twice)
    world.dies(**crash)
    await world.run(tells, "k")
    assert await world.unmatched() == [("news", "k"), ("news", "k")]
    assert await world.run(keyed_twice, "k") == Success([1, 2])


@pytest.mark.parametrize("crash", [{"before": 1}, {"after": 1}])
async def test_a_crash_around_its_taking_neither_loses_nor_doubles_it(world: World, crash: dict[str, int]) -> None:
    await world.deploy(two)
    id = await world.start(two, "a")
    await world.settle()
    world.dies(**crash)
    await world.signal(id, news, 1)
    await world.settle()
    await world.signal(id, news, 2)
    assert await world.exit(id) == Success([1, 2])
    assert world.deaths == 1 and await world.story(id) == ["receive news", "sure", "receive news"]


async def test_one_that_comes_while_no_process_lives_is_there_when_one_does(world: World) -> None:
    await world.deploy(late)
    id = await world.start(late, "a")
    for number in (1, 2):
        await world.signal(id, news, number)
    await world.crash()
    await world.signal(id, news, 3)
    assert await world.exit(id) == Success([1, 2, 3])


async def test_one_to_an_execution_that_has_ended_changes_nothing(world: World) -> None:
    await world.deploy(to_itself)
    id = await world.start(to_itself, "a")
    exit, journal = await world.exit(id), await world.journal(id)
    await world.signal(id, news, 9)
    await world.settle()
    assert await world.exit(id) == exit and await world.journal(id) == journal and await world.unmatched() == []


async def test_a_union_payload_arrives_as_it_was_sent(world: World) -> None:
    from flowdsl import signal

    either = signal("either", int | str)

    @workflow("s.either")
    def either_of(name: str) -> Steps[list[int | str], Never]:
        return [(yield from either.receive()), (yield from either.receive())]

    await world.deploy(either_of)
    id = await world.start(either_of, "a")
    await world.signal(id, either, "1")
    await world.signal(id, either, 1)
    assert await world.exit(id) == Success(["1", 1])
