"""Schedules: each instant once, in its order, whoever was there; what is still open; hours that are missing or come twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Never

import pytest

from flowdsl import Schedule, Steps, Success, execution, scheduled_for, workflow
from flowdsl.schedule import key_of
from tests.conformance.clocks import Clock, InMemory, OnPostgresClock
from tests.conformance.parts import sure, word

HOUR = timedelta(hours=1)


@workflow("schedules.quick")
def quick(name: str) -> Steps[tuple[str, datetime | None], Never]:
    me = yield from execution()
    return (yield from sure(name)), scheduled_for(me)


@workflow("schedules.slow")
def slow(name: str) -> Steps[str, Never]:
    """Open until it is told."""
    return name + (yield from word.receive())


WORKFLOWS = [quick, slow]


@pytest.fixture
async def clock(dsn: str | None, request: pytest.FixtureRequest) -> AsyncIterator[Clock]:
    """It begins with 2026, or when the case says."""
    given = getattr(request, "param", None)
    at = {} if given is None else {"at": given}
    made: Clock = InMemory(**at) if dsn is None else OnPostgresClock(dsn, **at)
    try:
        yield made
    finally:
        await made.close()


def hourly(flow: Any = quick, **policies: Any) -> Schedule:
    return Schedule.every("1h", flow, "a", id="hourly", **policies)


def hours(*outcomes: tuple[float, str]) -> list[tuple[timedelta, str]]:
    return [(number * HOUR, outcome) for number, outcome in outcomes]


async def test_each_instant_starts_one_execution_that_knows_it(clock: Clock) -> None:
    await clock.deploy(WORKFLOWS, hourly())
    assert await clock.passes(3.5 * HOUR) == hours((1, "started"), (2, "started"), (3, "started"))
    assert await clock.passes(timedelta()) == []
    instants = [clock.at + number * HOUR for number in (1, 2, 3)]
    assert [await clock.exit(id) for id in clock.started] == [Success(("a", instant)) for instant in instants]
    assert [await clock.facts(id) for id in clock.started] == [(key_of("hourly", instant), "default") for instant in instants]


async def test_none_is_early(clock: Clock) -> None:
    await clock.deploy(WORKFLOWS, hourly())
    assert await clock.passes(HOUR - timedelta(microseconds=1)) == []
    assert await clock.passes(timedelta(microseconds=1)) == hours((1, "started"))


async def test_two_schedules_of_two_tenants(clock: Clock) -> None:
    other = Schedule.every("90m", quick, "b", id="other", tenant="acme")
    await clock.deploy(WORKFLOWS, hourly(), other)
    assert await clock.passes(2.5 * HOUR) == hours((1, "started"), (1.5, "started"), (2, "started"))
    assert [(await clock.facts(id))[1] for id in clock.started] == ["default", "acme", "default"]


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        ("skip", [(1, "started"), (2, "skipped"), (3, "skipped")]),
        ("queue", [(1, "started"), (2, "queued"), (3, "skipped")]),
        ("allow", [(1, "started"), (2, "started"), (3, "started")]),
    ],
)
async def test_what_is_due_while_the_last_is_open(clock: Clock, overlap: Any, expected: list[tuple[float, str]]) -> None:
    await clock.deploy(WORKFLOWS, hourly(slow, overlap=overlap))
    assert await clock.passes(3.5 * HOUR) == hours(*expected)


async def test_what_is_queued_starts_once_the_former_has_ended(clock: Clock) -> None:
    await clock.deploy(WORKFLOWS, hourly(slow, overlap="queue"))
    await clock.passes(2.5 * HOUR)
    await clock.signal(clock.started[0], word, "!")
    assert await clock.passes(0.2 * HOUR) == hours((2, "started"))
    assert await clock.exit(clock.started[0]) == Success("a!")
    assert await clock.passes(0.5 * HOUR) == hours((3, "queued")), "and it is in the way of the next"


async def test_what_was_skipped_stays_skipped(clock: Clock) -> None:
    await clock.deploy(WORKFLOWS, hourly(slow))
    await clock.passes(2.5 * HOUR)
    await clock.signal(clock.started[0], word, "!")
    assert await clock.passes(HOUR) == hours((3, "started"))


async def test_a_blocked_one_is_open(clock: Clock) -> None:
    await clock.deploy(WORKFLOWS, hourly(slow))
    await clock.passes(1.5 * HOUR)
    await clock.pause(clock.started[0])
    assert await clock.passes(HOUR) == hours((2, "skipped"))


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ({"catch_up": "one"}, [(5, "started")]),
        ({"catch_up": "skip"}, []),
        ({"catch_up": "all", "overlap": "allow"}, [(number, "started") for number in (1, 2, 3, 4, 5)]),
        ({"catch_up": "all", "overlap": "allow", "within": "2h"}, [(4, "started"), (5, "started")]),
        ({"catch_up": "one", "within": "10m"}, []),
    ],
    ids=str,
)
async def test_what_was_due_while_nobody_was_there(clock: Clock, policies: Any, expected: list[tuple[float, str]]) -> None:
    await clock.deploy(WORKFLOWS, hourly(**policies))
    assert await clock.passes(5.5 * HOUR, watched=False) == hours(*expected)
    assert await clock.passes(HOUR) == hours((6, "started")), "and then it goes on"


async def test_less_than_a_minute_late_is_not_missed(clock: Clock) -> None:
    await clock.deploy(WORKFLOWS, hourly(catch_up="skip"))
    assert await clock.passes(HOUR + timedelta(seconds=59), watched=False) == hours((1, "started"))


async def test_of_very_many_the_newest_hundred_are_made_up_for(clock: Clock) -> None:
    await clock.deploy(WORKFLOWS, Schedule.every("1m", quick, "a", id="often", overlap="allow", catch_up="all"))
    found = await clock.passes(5 * HOUR, watched=False)
    assert found == [(timedelta(minutes=number), "started") for number in range(201, 301)]


async def test_jitter_delays_each_by_its_own_and_loses_none(clock: Clock) -> None:
    schedule = hourly(jitter="30m")
    await clock.deploy(WORKFLOWS, schedule)
    due = [schedule.timetable.due(clock.at + number * HOUR) - clock.at for number in (1, 2, 3)]
    assert len({one % HOUR for one in due}) == 3
    assert await clock.passes(due[0] - timedelta(microseconds=1)) == []
    assert await clock.passes(due[2] - due[0]) == hours((1, "started"), (2, "started"))
    assert await clock.passes(timedelta(microseconds=1)) == hours((3, "started"))


@pytest.mark.parametrize("clock", [datetime(2026, 3, 28, 12, tzinfo=UTC)], indirect=True, ids=["spring"])
async def test_an_hour_that_is_missing(clock: Clock) -> None:
    await clock.deploy(WORKFLOWS, Schedule.cron("30 2 * * *", quick, "a", id="nightly", zone="Europe/Berlin"))
    assert await clock.passes(37 * HOUR) == hours((13, "started"), (36.5, "started")), "the first instant after it; then as ever"


@pytest.mark.parametrize("clock", [datetime(2025, 10, 25, 12, tzinfo=UTC)], indirect=True, ids=["autumn"])
async def test_an_hour_that_comes_twice(clock: Clock) -> None:
    nightly = Schedule.cron("30 2 * * *", quick, "a", id="nightly", zone="Europe/Berlin")
    often = Schedule.cron("*/30 * * * *", quick, "a", id="often", zone="Europe/Berlin")
    await clock.deploy(WORKFLOWS, nightly, often)
    found = await clock.passes(14.25 * HOUR)
    assert found.count((12.5 * HOUR, "started")) == 2 and found.count((13.5 * HOUR, "started")) == 1, "once, and the first time"
    assert len(found) == 1 + 28, "the other one goes on through both"
