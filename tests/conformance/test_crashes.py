"""The process dies just before and just after each entry of a dozen workflows: the same exit, the same story, nothing recorded is done again."""

from __future__ import annotations

from collections import Counter
from typing import Any, Never

import pytest
from attrs import frozen

from flowdsl import (
    Child,
    Done,
    Failure,
    Flow,
    Next,
    Retry,
    Round,
    Steps,
    Success,
    Workflow,
    all_,
    dag_attempt,
    do,
    each,
    execution,
    fail,
    iterate,
    masked,
    node,
    pure,
    race,
    saga,
    sleep,
    workflow,
)
from flowdsl.journal import ATTEMPT, INTERRUPTED
from flowdsl.story import words
from tests.conformance.parts import Order, Refused, act, mark, news, once, other, plain, sure, undo
from tests.conformance.world import World


@workflow("z.leaf", key="{number}")
def leaf(order: Order) -> Steps[str, Refused]:
    yield from sleep("10ms")
    return (yield from plain(order.note))


@workflow("z.steps")
def steps(name: str) -> Steps[str, Refused]:
    done = ""
    for letter in "abcd":
        done += yield from plain(letter)
    return done


@workflow("z.retries")
def retries(name: str) -> Steps[str, Refused]:
    first = yield from sure("x")
    return first + (yield from act.using(retry=Retry.constant("10ms", attempts=9, on=(Refused,)))("refused twice"))


@workflow("z.mail")
def mail(name: str) -> Steps[list[int], Refused]:
    me = yield from execution()
    yield from news.send(me.id, 1)
    yield from other.send("z-key", 2)
    return [(yield from news.receive()), (yield from other.receive("z-key"))]


@workflow("z.children")
def children(name: str) -> Steps[list[str], Refused]:
    beside: Child[str, Refused] = yield from leaf.start(Order(1, "beside"))
    answers = yield from each([Order(2, "two"), Order(3, "three")], leaf.child)
    return [*answers, (yield from beside.join())]


@workflow("z.saga")
def undone(name: str) -> Steps[str, Refused]:
    yield from sure("one").compensate(undo)
    yield from saga(sure("two").compensate(undo))
    return (yield from fail(Refused("as told")))


@workflow("z.race")
def raced(name: str) -> Steps[str, Refused]:
    first = yield from race(news.receive().ensure(lambda _: sure("unwound")).map(str), sleep("20ms").map(lambda _: "timer"))
    yield from masked(sure("masked"))
    return first


@workflow("z.loop")
def loop(name: str) -> Steps[int, Refused]:
    @do
    def one(at: int) -> Steps[Round[int, int], Refused]:
        yield from plain(str(at))
        yield from sleep("5ms")
        return Done(at) if at == 2 else Next(at + 1)

    return (yield from iterate(0, one))


@workflow("z.graph")
def graph(name: str) -> Steps[list[str], Never]:
    found = yield from dag_attempt(
        {"a": node(plain("a")), "b": node(plain("no"), after=["a"]), "c": node(plain("c"), after=["b"]), "d": node(plain("d"), soft=["b"])}
    )
    return [f"{key} {type(one).__name__}" for key, one in sorted(found.items())]


@workflow("z.marks")
def marks(name: str) -> Steps[str, Refused]:
    first = yield from mark("m1")
    second = yield from mark("m2")
    return first + (yield from plain(second))


@workflow("z.parallel")
def parallel(name: str) -> Steps[list[str], Refused]:
    def branch(letter: str) -> Flow[str, Refused]:
        return plain(letter).then(lambda answer: sleep("10ms").then(lambda _: plain(answer * 2)))

    return list((yield from all_(branch("a"), branch("b"))))


@workflow("z.cleanup")
def cleanup(name: str) -> Steps[str, Refused]:
    part = plain("work").then(lambda _: fail(Refused("x"))).ensure(lambda exit: sure(f"clean {type(exit).__name__}"))
    return (yield from part.catch(lambda refused: pure(f"caught {refused.why}")))


ALL: dict[str, Workflow[str, Any, Any]] = {
    "steps": steps, "retries": retries, "mail": mail, "children": children, "saga": undone, "race": raced, "loop": loop, "graph": graph,
    "marks": marks, "parallel": parallel, "cleanup": cleanup,
}  # fmt: skip


@frozen
class Told:
    """What must be the same whatever dies: how it ended, what each journal tells, and what every activity was asked."""

    exit: str
    stories: tuple[tuple[str, ...], ...]
    asked: frozenset[tuple[str, str]]
    marks: tuple[str, ...]


def scripted(world: World) -> None:
    def twice(name: str) -> Any:
        return Failure(Refused("not yet")) if world.calls[-1].number < 3 else Success(name)

    world.does(act, twice)
    world.does(plain, lambda name: Failure(Refused(name)) if name == "no" else Success(name))
    world.does(undo, lambda _: Success(None))


async def told(world: World, code: Workflow[str, Any, Any]) -> tuple[Told, str]:
    world.calls.clear()
    before = Counter(await world.marks())
    id = await world.start(code, "n")
    exit = await world.exit(id)
    await world.settle()
    stories = [sorted(await settled(world, id)), *sorted([sorted(await settled(world, child.id)) for child in await world.children(id)])]
    wrote = sorted((Counter(await world.marks()) - before).elements())
    asked = frozenset((call.activity, str(call.request)) for call in world.calls)
    return Told(str(exit), tuple(map(tuple, stories)), asked, tuple(wrote)), id


async def settled(world: World, id: str) -> list[str]:
    """Its story without failed attempts: how many there are hangs on how many a death cut short."""
    return [line for entry in await world.journal(id) if entry.kind not in (ATTEMPT, INTERRUPTED) for line in words(entry)]


async def entries(world: World, id: str) -> int:
    return sum([len(await world.journal(one)) for one in [id, *(child.id for child in await world.children(id))]])


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", list(ALL))
async def test_a_death_at_each_entry_changes_nothing(world: World, name: str, when: str) -> None:
    code = ALL[name]
    await world.deploy(code)
    scripted(world)
    whole, id = await told(world, code)
    count = await entries(world, id)
    assert count >= 2 and world.deaths == 0
    for n in range(1, count + 1):
        world.dies(**{when: n})
        cut, id = await told(world, code)
        assert cut == whole, f"died {when} entry {n}"
        await World.check(world)  # the store as a whole is checked at the end
        journal = await world.journal(id)
        if when == "after" and not [entry for entry in journal if entry.kind == INTERRUPTED]:
            assert len({call.key for call in world.calls}) <= len(world.calls) <= len({(call.key, call.number) for call in world.calls})
    assert world.deaths == count


@pytest.mark.parametrize("name", list(ALL))
async def test_two_deaths_in_one_run_change_nothing(world: World, name: str) -> None:
    code = ALL[name]
    await world.deploy(code)
    scripted(world)
    whole, _ = await told(world, code)
    world.dies(before=1)
    cut, _ = await told(world, code)
    world.dies(after=2)
    again, _ = await told(world, code)
    assert cut == whole == again and world.deaths == 2


@workflow("z.once")
def at_most_once(name: str) -> Steps[str, Refused]:
    outcome = yield from once("o").attempt()
    return type(outcome).__name__ + (yield from plain("p"))


@pytest.mark.parametrize(("crash", "expected", "calls"), [
    ({"before": 1}, "Success", 1), ({"after": 1}, "Failure", 0), ({"before": 2}, "Failure", 1), ({"after": 2}, "Success", 1),
])  # fmt: skip
async def test_at_most_once_is_at_most_once(world: World, crash: dict[str, int], expected: str, calls: int) -> None:
    await world.deploy(at_most_once)
    world.dies(**crash)
    assert await world.run(at_most_once, "n") == Success(f"{expected}p")
    assert world.count(once) == calls
