"""What a flow may know: the time of the record, ids and numbers drawn from its steps, itself; the same on every replay."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Never
from uuid import UUID

import pytest

from flowdsl import Execution, Steps, Success, all_, execution, now, random, uuid, workflow
from tests.conformance.parts import news, sure
from tests.conformance.world import World


@workflow("i.draws")
def draws(name: str) -> Steps[list[str], Never]:
    first = [str((yield from now())), str((yield from uuid())), str((yield from random()))]
    yield from sure(" ".join(first))
    yield from news.receive()
    second = [str((yield from now())), str((yield from uuid())), str((yield from random()))]
    yield from sure(" ".join(second))
    return first + second


@workflow("i.branches")
def branches(name: str) -> Steps[list[UUID], Never]:
    return list((yield from all_(uuid(), uuid(), sure(name).then(lambda _: uuid()))))


@workflow("i.knows")
def knows(name: str) -> Steps[Execution, Never]:
    yield from sure(name)
    return (yield from execution())


@workflow("i.clock")
def clock(name: str) -> Steps[list[datetime], Never]:
    one = yield from now()
    two = yield from now()
    yield from sure(name)
    return [one, two, (yield from now())]


@pytest.mark.parametrize("crash", [{"before": 1}, {"after": 1}, {"before": 2}, {"after": 2}, {"before": 3}])
async def test_what_was_drawn_is_drawn_again_after_a_crash(world: World, crash: dict[str, int]) -> None:
    await world.deploy(draws)
    world.dies(**crash)
    id = await world.start(draws, "a")
    await world.settle()
    await world.signal(id, news, 1)
    exit = await world.exit(id)
    assert isinstance(exit, Success)
    told = exit.unwrap()
    assert list(dict.fromkeys(world.requests(sure))) == [" ".join(told[:3]), " ".join(told[3:])], "the same inputs at each attempt"
    assert told[1] != told[4] and told[2] != told[5] and world.deaths == 1


async def test_ids_are_uuids_and_numbers_lie_between_nothing_and_one(world: World) -> None:
    await world.deploy(draws)
    id = await world.start(draws, "a")
    await world.signal(id, news, 1)
    exit = await world.exit(id)
    assert isinstance(exit, Success)
    told = exit.unwrap()
    assert UUID(told[1]).version == 4 and 0 <= float(told[2]) < 1


async def test_each_execution_draws_its_own(world: World) -> None:
    await world.deploy(branches)
    exits = [await world.run(branches, "a") for _ in range(3)]
    assert len({drawn for exit in exits if isinstance(exit, Success) for drawn in exit.unwrap()}) == 9


async def test_an_execution_knows_itself(world: World) -> None:
    await world.deploy(knows)
    id = await world.start(knows, "a", key="mine", tenant="acme")
    exit = await world.exit(id)
    assert isinstance(exit, Success)
    me = exit.unwrap()
    assert (me.id, me.tenant, me.workflow, me.key, me.parent) == (id, "acme", "i.knows", "mine", None) and me.started_at.tzinfo == UTC


async def test_time_stands_still_between_entries_and_never_runs_back(world: World) -> None:
    await world.deploy(clock)
    exit = await world.run(clock, "a")
    assert isinstance(exit, Success)
    one, two, three = exit.unwrap()
    assert one == two <= three


async def test_now_is_the_time_of_the_last_entry(world: World) -> None:
    await world.deploy(clock)
    id = await world.start(clock, "a")
    exit = await world.exit(id)
    assert isinstance(exit, Success) and exit.unwrap()[2] == (await world.journal(id))[0].at
