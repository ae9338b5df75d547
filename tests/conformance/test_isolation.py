"""Nothing of one execution, tenant or workflow reaches another."""

from __future__ import annotations

import asyncio
from typing import Any, Never

from flowdsl import Defect, Failure, Steps, Success, workflow
from tests.conformance.parts import Refused, news, other, plain, sure
from tests.conformance.world import World


@workflow("n.works")
def works(name: str) -> Steps[str, Refused]:
    return (yield from plain(name))


@workflow("n.waits")
def waits(key: str) -> Steps[int, Never]:
    return (yield from news.receive(key))


@workflow("n.direct")
def direct(name: str) -> Steps[int, Never]:
    return (yield from news.receive())


@workflow("n.broken")
def broken(name: str) -> Steps[str, Never]:
    yield from sure(name)
    raise ValueError(name)


async def test_a_defect_of_one_is_not_anothers(world: World) -> None:
    await world.deploy(works)

    def some(name: str) -> Any:
        if int(name) % 3 == 0:
            raise OSError(name)
        return Success(name) if int(name) % 3 == 1 else Failure(Refused(name))

    world.does(plain, some)
    ids = [await world.start(works, str(number)) for number in range(12)]
    exits = [await world.exit(id) for id in ids]
    assert [type(exit).__name__ for exit in exits] == ["Defect", "Success", "Failure"] * 4


async def test_a_bug_in_the_code_ends_its_execution_and_says_where(world: World) -> None:
    await world.deploy(broken, works)
    exit = await world.run(broken, "odd")
    assert isinstance(exit, Defect) and exit.message == "ValueError: odd" and "test_isolation.py" in exit.where
    assert await world.run(works, "a") == Success("a")


async def test_a_correlation_key_belongs_to_its_tenant(world: World) -> None:
    await world.deploy(waits)
    ours, theirs = await world.start(waits, "k", tenant="ours"), await world.start(waits, "k", tenant="theirs")
    await world.settle()
    await world.signal("k", news, 1, tenant="theirs")
    await world.signal("k", news, 2, tenant="ours")
    assert await world.exit(ours) == Success(2) and await world.exit(theirs) == Success(1)


async def test_an_execution_of_another_tenant_cannot_be_reached_by_its_id(world: World) -> None:
    await world.deploy(direct)
    id = await world.start(direct, "a", tenant="theirs")
    await world.settle()
    await world.signal(id, news, 1, tenant="ours")
    await world.settle()
    assert await world.status(id) == "open" and await world.mails(id) == []
    await world.signal(id, news, 2, tenant="theirs")
    assert await world.exit(id) == Success(2)


async def test_a_correlation_key_belongs_to_its_signal(world: World) -> None:
    await world.deploy(waits)
    id = await world.start(waits, "k")
    await world.settle()
    await world.signal("k", other, 1)
    await world.settle()
    assert await world.status(id) == "open" and await world.unmatched() == [("other", "k")]
    await world.signal("k", news, 2)
    assert await world.exit(id) == Success(2)


async def test_the_same_delivery_id_may_reach_two_executions(world: World) -> None:
    await world.deploy(direct)
    ids = [await world.start(direct, "a"), await world.start(direct, "b")]
    for number, id in enumerate(ids):
        await world.signal(id, news, number, delivery="d")
    assert [await world.exit(id) for id in ids] == [Success(0), Success(1)]


async def test_many_side_by_side_each_with_its_own_answer(world: World) -> None:
    await world.deploy(works)
    world.does(plain, lambda name: Success(name[::-1]))
    ids = await asyncio.gather(*(world.start(works, f"n{number}") for number in range(40)))
    assert [await world.exit(id) for id in ids] == [Success(f"n{number}"[::-1]) for number in range(40)]


async def test_a_crash_while_many_are_open_loses_none(world: World) -> None:
    @workflow("n.two")
    def two(name: str) -> Steps[str, Refused]:
        return (yield from plain(name)) + (yield from plain(name))

    await world.deploy(two)
    world.dies(after=17)
    ids = [await world.start(two, str(number)) for number in range(20)]
    assert [await world.exit(id) for id in ids] == [Success(f"{number}{number}") for number in range(20)]
    assert world.deaths == 1


async def test_a_blocked_one_holds_up_nobody(world: World) -> None:
    await world.deploy(direct, works)
    id = await world.start(direct, "a")
    await world.settle()
    await world.pause(id)
    await world.blocked(id)
    assert await world.run(works, "b") == Success("b")
    await world.resume(id)
    await world.signal(id, news, 1)
    assert await world.exit(id) == Success(1)
