"""Schedules in virtual time: what fires, and what it starts."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Never

import pytest

from flowdsl import Deployment, Result, Schedule, Steps, Success, activity, bind, execution, now, scheduled_for, sleep, workflow
from flowdsl.calendar import Calendar
from flowdsl.memory import EPOCH

HOUR = timedelta(hours=1)


@activity("calendar.note")
def note(at: datetime) -> Result[datetime, Never]: ...


@workflow("calendar.report")
def report(pause: str) -> Steps[datetime | None, Never]:
    me = yield from execution()
    yield from note((yield from now()))
    yield from sleep(pause)
    return scheduled_for(me)


def a_calendar(*many: Schedule) -> Calendar:
    return Calendar(Deployment([report], [bind(note, lambda at: Success(at))], schedules=many))


def daily(pause: str = "0s", **policies: Any) -> Schedule:
    return Schedule.cron("0 3 * * *", report, pause, id="daily", **policies)


def test_a_week_of_days() -> None:
    calendar = a_calendar(daily())
    firings = calendar.run_until(EPOCH + timedelta(days=7))
    expected = [EPOCH + timedelta(days=n, hours=3) for n in range(7)]
    assert [(one.instant, one.outcome) for one in firings] == [(instant, "started") for instant in expected]
    runs = [calendar.look(one.execution) for one in firings]
    assert [run.exit for run in runs] == [Success(instant) for instant in expected]
    assert [run.calls(note) for run in runs] == [(instant,) for instant in expected], "each began when it was due"
    assert calendar.now == EPOCH + timedelta(days=7)
    assert calendar.run_until(EPOCH + timedelta(days=7)) == ()


def test_two_halves_are_a_whole() -> None:
    whole, halved = a_calendar(daily("5h")), a_calendar(daily("5h"))
    halves = [halved.run_until(EPOCH + n * HOUR) for n in range(1, 49)]
    assert [one for half in halves for one in half] == list(whole.run_until(EPOCH + 48 * HOUR))
    assert [len(half) for half in halves].count(1) == 2


def test_an_execution_is_not_hurried_beyond_the_end() -> None:
    calendar = a_calendar(daily("5h"))
    [fired] = calendar.run_until(EPOCH + 4 * HOUR)
    assert calendar.look(fired.execution).exit is None
    calendar.run_until(EPOCH + 9 * HOUR)
    assert calendar.look(fired.execution).exit == Success(EPOCH + 3 * HOUR)


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        ("skip", [(1, "started"), (2, "skipped"), (3, "skipped"), (4, "started"), (5, "skipped")]),
        ("queue", [(1, "started"), (2, "queued"), (3, "skipped"), (2, "started"), (4, "queued"), (5, "skipped")]),
        ("allow", [(n, "started") for n in range(1, 6)]),
    ],
)
def test_what_is_due_while_the_last_is_open(overlap: Any, expected: list[tuple[int, str]]) -> None:
    """Each takes two hours and a half."""
    calendar = a_calendar(Schedule.every("1h", report, "150m", id="hourly", overlap=overlap))
    firings = calendar.run_until(EPOCH + 5 * HOUR)
    assert [((one.instant - EPOCH) // HOUR, one.outcome) for one in firings] == expected


def test_what_is_queued_starts_when_the_former_ends() -> None:
    calendar = a_calendar(Schedule.every("1h", report, "90m", id="hourly", overlap="queue"))
    firings = calendar.run_until(EPOCH + 3 * HOUR)
    begun = [calendar.look(id).calls(note) for id in dict.fromkeys(one.execution for one in firings)]
    assert begun == [(EPOCH + HOUR,), (EPOCH + 2.5 * HOUR,)]


def test_the_night_that_lacks_three_o_clock() -> None:
    """And it begins when it is told to."""
    calendar = a_calendar(Schedule.cron("30 2 * * *", report, "0s", id="nightly", zone="Europe/Berlin"))
    calendar.now = datetime.fromisoformat("2026-03-28T12:00:00Z")
    [fired] = calendar.run_until(calendar.now + timedelta(hours=18))
    assert fired.instant == datetime.fromisoformat("2026-03-29T01:00:00Z")


def test_tenants_and_plain_runs() -> None:
    calendar = a_calendar(daily(tenant="acme"))
    plain = calendar.run(report, "1h")
    assert plain.exit == Success(None)
    [fired] = calendar.run_until(EPOCH + 4 * HOUR)
    assert calendar._kept[fired.execution].execution.tenant == "acme"
    assert calendar._kept[plain.id].execution.tenant == "default"
