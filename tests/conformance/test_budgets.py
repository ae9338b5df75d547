"""Shared limits: so many at a time, so many in a span; what waits for them can be cancelled and survives a crash."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Never

import pytest

from flowdsl import Cancelled, Concurrency, RateLimit, Result, Retry, Steps, Success, activity, each, execution, workflow
from tests.conformance.world import World

TWICE = Retry.constant("5ms", attempts=3)


@activity("b.lined", budget=(Concurrency("conformance lines", 2),), retry=TWICE)
def lined(name: str) -> Result[str, Never]: ...


@activity("b.paced", budget=(RateLimit("conformance pace", 5, "300ms", burst=1),), retry=TWICE)
def paced(name: str) -> Result[str, Never]: ...


@activity("b.stopped", budget=(Concurrency("conformance stopped", 0),), retry=TWICE)
def stopped(name: str) -> Result[str, Never]: ...


@activity("b.both", budget=(Concurrency("conformance one", 1), RateLimit("conformance both", 50, "100ms", burst=2)), retry=TWICE)
def both(name: str) -> Result[str, Never]: ...


@workflow("b.lines")
def lines(count: int) -> Steps[list[str], Never]:
    return (yield from each([str(at) for at in range(count)], lined, concurrency=count))


@workflow("b.paces")
def paces(count: int) -> Steps[str, Never]:
    began = (yield from execution()).started_at
    yield from each([str(at) for at in range(count)], paced, concurrency=count)
    return began.isoformat()


@workflow("b.stops")
def stops(name: str) -> Steps[str, Never]:
    return (yield from stopped(name))


@workflow("b.boths")
def boths(count: int) -> Steps[list[str], Never]:
    return (yield from each([str(at) for at in range(count)], both, concurrency=count))


SLOW = 0.15


async def slow(name: str) -> Any:
    await asyncio.sleep(SLOW)
    return Success(name)


async def test_no_more_than_so_many_at_a_time(world: World) -> None:
    await world.deploy(lines)
    running, most = 0, 0

    async def counted(name: str) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await slow(name)
        finally:
            running -= 1

    world.does(lined, counted)
    id = await world.start(lines, 6)
    assert await world.exit(id) == Success([str(at) for at in range(6)])
    assert most <= 2
    if world.kind == "memory":  # where they run one after the other, by its clock side by side
        ends = [entry.at for entry in await world.journal(id)]
        least = timedelta(seconds=SLOW)
        assert all(third - first >= least for first, third in zip(ends, ends[2:], strict=False)), "of three ends, one began after another's end"


async def test_no_more_than_so_many_in_a_span(world: World) -> None:
    await world.deploy(paces)
    id = await world.start(paces, 6)
    await world.exit(id)
    began, last = (await world.journal(id))[0].at, (await world.journal(id))[-1].at
    assert last >= began and world.count(paced) == 6
    assert (last - (await started(world, id))) >= timedelta(milliseconds=220), "five of six waited 60 ms each"


async def started(world: World, id: str) -> Any:
    from datetime import datetime

    exit = await world.exit(id)
    assert isinstance(exit, Success)
    return datetime.fromisoformat(exit.unwrap())


async def test_several_limits_hold_together(world: World) -> None:
    await world.deploy(boths)
    assert await world.run(boths, 5) == Success([str(at) for at in range(5)])
    assert world.count(both) == 5


async def test_what_waits_for_a_limit_may_be_cancelled(world: World) -> None:
    await world.deploy(stops)
    id = await world.start(stops, "a")
    await world.cancel(id)
    assert await world.exit(id) == Cancelled("asked to") and world.calls == []


@pytest.mark.parametrize("crash", [{"before": 2}, {"after": 3}])
async def test_what_waits_for_a_limit_survives_a_crash_and_slots_come_back(world: World, crash: dict[str, int]) -> None:
    await world.deploy(lines)
    world.does(lined, slow)
    world.dies(**crash)
    id = await world.start(lines, 5)
    assert await world.exit(id) == Success([str(at) for at in range(5)])
    assert world.deaths == 1 and len(await world.story(id)) == 5
