"""What rules name in zones that jump: tables of known nights, and a walk from minute to minute as judge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Never
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowdsl import Schedule, Steps, execution, workflow
from flowdsl.errors import DefinitionError
from flowdsl.rule import Cron, Every, Rule, every_of, rule_of
from flowdsl.schedule import Timetable

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@workflow("work")
def work(name: str) -> Steps[str, Never]:
    yield from execution()
    return name


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def instants(rule: Rule, since: str, count: int) -> list[str]:
    """The first instants after a time, in UTC, as text."""
    found, at = [], utc(since)
    for _ in range(count):
        at = rule.after(at)
        found.append(f"{at:%m-%d %H:%M}")
    return found


# zone, rule, after (UTC), what comes then (UTC)
GAPS = [
    ("Europe/Berlin", "30 2 * * *", "2026-03-27 12:00", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
    ("Europe/Berlin", "0,15,30 2 * * *", "2026-03-28 12:00", ["03-29 01:00", "03-30 00:00", "03-30 00:15"]),
    ("Europe/Berlin", "30 2,3 * * *", "2026-03-28 12:00", ["03-29 01:00", "03-29 01:30", "03-30 00:30"]),
    ("Europe/Dublin", "30 1 * * *", "2026-03-28 12:00", ["03-29 01:00", "03-30 00:30"]),
    ("America/Sao_Paulo", "0 0 * * *", "2018-11-02 12:00", ["11-03 03:00", "11-04 03:00", "11-05 02:00"]),
    ("America/Sao_Paulo", "0 */6 * * *", "2018-11-03 16:00", ["11-03 21:00", "11-04 03:00", "11-04 08:00"]),
    ("America/Sao_Paulo", "15 * 4 11 *", "2018-11-03 12:00", ["11-04 03:15", "11-04 04:15"]),
    ("Asia/Beirut", "0 0 * * *", "2024-03-29 12:00", ["03-29 22:00", "03-30 22:00", "03-31 21:00"]),
    ("Africa/Cairo", "30 0 * * *", "2024-04-24 12:00", ["04-24 22:30", "04-25 22:00", "04-26 21:30"]),
    ("America/Havana", "0 0 * * 0", "2026-03-07 12:00", ["03-08 05:00", "03-15 04:00"]),
    ("Australia/Lord_Howe", "15 2 * * *", "2026-10-02 12:00", ["10-02 15:45", "10-03 15:30", "10-04 15:15"]),
    ("Pacific/Apia", "0 12 * * *", "2011-12-29 12:00", ["12-29 22:00", "12-30 10:00", "12-30 22:00"]),
]
REPEATS = [
    ("Europe/Berlin", "30 2 * * *", "2026-10-24 12:00", ["10-25 00:30", "10-26 01:30"]),
    ("Europe/Berlin", "30 2 * * *", "2026-10-25 01:10", ["10-26 01:30"]),
    ("Europe/Berlin", "*/20 2 * * *", "2026-10-25 00:10", ["10-25 00:20", "10-25 00:40", "10-26 01:00"]),
    ("America/Sao_Paulo", "30 23 * * *", "2018-02-16 12:00", ["02-17 01:30", "02-18 01:30", "02-19 02:30"]),
    ("Asia/Beirut", "30 23 * * *", "2024-10-25 22:00", ["10-26 20:30", "10-27 21:30"]),
    ("Africa/Cairo", "0 0 * * *", "2024-10-30 12:00", ["10-30 21:00", "10-31 22:00", "11-01 22:00"]),
    ("America/Havana", "0 0 * * *", "2026-10-31 12:00", ["11-01 04:00", "11-02 05:00"]),
    ("Australia/Lord_Howe", "45 1 * * *", "2026-04-03 20:00", ["04-04 14:45", "04-05 15:15"]),
    ("Australia/Lord_Howe", "0 */2 * * *", "2026-04-04 12:00", ["04-04 13:00", "04-04 15:30", "04-04 17:30"]),
]
ELAPSED = [
    ("Europe/Berlin", "*/30 * * * *", "2026-03-29 00:10", ["03-29 00:30", "03-29 01:00", "03-29 01:30"]),
    ("Europe/Berlin", "*/30 * * * *", "2026-10-25 00:10", ["10-25 00:30", "10-25 01:00", "10-25 01:30", "10-25 02:00"]),
    ("Australia/Lord_Howe", "0 * * * *", "2026-04-04 13:30", ["04-04 14:00", "04-04 15:30", "04-04 16:30"]),
    ("Australia/Lord_Howe", "45 * * * *", "2026-04-04 14:00", ["04-04 14:45", "04-04 15:15", "04-04 16:15"]),
    ("Asia/Beirut", "*/30 * * * *", "2024-03-30 21:10", ["03-30 21:30", "03-30 22:00", "03-30 22:30"]),
]


@pytest.mark.parametrize(("zone", "rule", "since", "expected"), GAPS, ids=[f"{zone} {rule}" for zone, rule, _, _ in GAPS])
def test_in_a_gap_it_is_the_first_instant_after_it(zone: str, rule: str, since: str, expected: list[str]) -> None:
    assert instants(Cron(rule, zone), since, len(expected)) == expected


@pytest.mark.parametrize(("zone", "rule", "since", "expected"), REPEATS, ids=[f"{zone} {rule}" for zone, rule, _, _ in REPEATS])
def test_in_a_repeated_hour_it_is_the_first_pass(zone: str, rule: str, since: str, expected: list[str]) -> None:
    assert instants(Cron(rule, zone), since, len(expected)) == expected


@pytest.mark.parametrize(("zone", "rule", "since", "expected"), ELAPSED, ids=[f"{zone} {rule} {since}" for zone, rule, since, _ in ELAPSED])
def test_without_an_hour_it_goes_on_as_time_does(zone: str, rule: str, since: str, expected: list[str]) -> None:
    assert instants(Cron(rule, zone), since, len(expected)) == expected


# Two days around a change of the clock, in zones that differ in when, by how much, and which way.
CHANGES = [
    ("Europe/Berlin", "2026-03-28 12:00"), ("Europe/Berlin", "2026-10-24 12:00"), ("America/Sao_Paulo", "2018-11-03 12:00"),
    ("America/Sao_Paulo", "2018-02-17 12:00"), ("Asia/Beirut", "2024-03-30 12:00"), ("Asia/Beirut", "2024-10-26 12:00"),
    ("Africa/Cairo", "2024-04-25 12:00"), ("Africa/Cairo", "2024-10-31 12:00"), ("Australia/Lord_Howe", "2026-10-03 06:00"),
    ("Australia/Lord_Howe", "2026-04-04 06:00"), ("Pacific/Apia", "2011-12-29 22:00"), ("America/Havana", "2026-10-31 18:00"),
    ("Africa/Casablanca", "2026-02-14 12:00"), ("Asia/Kathmandu", "2026-01-01 00:00"), ("UTC", "2026-01-01 00:00"),
]  # fmt: skip


@settings(deadline=None)
@given(change=st.sampled_from(CHANGES), minutes=st.sets(st.integers(0, 59), min_size=1, max_size=4), hours=st.sets(st.integers(0, 23), max_size=4))
@example(change=CHANGES[0], minutes={30}, hours={2})
@example(change=CHANGES[9], minutes={0}, hours={2})
def test_as_a_walk_from_minute_to_minute_finds_it(change: tuple[str, str], minutes: set[int], hours: set[int]) -> None:
    """What the walls show, minute after minute, is the judge; `hours` empty stands for every hour."""
    zone, since = ZoneInfo(change[0]), utc(change[1])
    walk = [(since + n * MINUTE, (since + n * MINUTE).astimezone(zone).replace(tzinfo=None, fold=0)) for n in range(48 * 60)]
    named = ",".join(map(str, sorted(minutes)))
    if not hours:
        rule = Cron(f"{named} * * * *", change[0])
        expected = [at for at, wall in walk if wall.minute in minutes]
    else:
        rule = Cron(f"{named} {','.join(map(str, sorted(hours)))} * * *", change[0])
        expected, highest = [], walk[0][1] - MINUTE
        for at, wall in walk:  # a wall time counts when it is reached, or jumped over, for the first time
            passed = [highest + n * MINUTE for n in range(1, (wall - highest) // MINUTE + 1)]
            if any(one.minute in minutes and one.hour in hours for one in passed):
                expected.append(at)
            highest = max(highest, wall)
    found = list(Timetable("t", rule).between(since, walk[-1][0]))
    assert found == expected


RULES: list[Rule] = [
    Cron("*/15 * * * *"), Cron("30 2 * * *", "Europe/Berlin"), Cron("0 0 * * 1-5", "America/Sao_Paulo"), Cron("0 0 29 2 *"), Cron("*/10 * * * * *"),
    Cron("* 9 * * *", "Australia/Lord_Howe"), Every(timedelta(seconds=1)), Every(timedelta(minutes=7), utc("2026-01-01 00:03")), Every(DAY),
    Cron("0 0 L * *", "Asia/Beirut"),
]  # fmt: skip
TIMES = st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))


class TestRules:
    @settings(deadline=None)
    @given(rule=st.sampled_from(RULES), at=TIMES)
    def test_the_next_is_later_and_nothing_lies_between(self, rule: Rule, at: datetime) -> None:
        following = rule.after(at)
        assert following > at
        assert following.tzinfo is UTC
        assert rule.after(following - timedelta(microseconds=1)) == following
        assert rule.after(at + (following - at) / 2) == following or (following - at) < timedelta(microseconds=2)

    @pytest.mark.parametrize("rule", RULES, ids=str)
    def test_it_is_what_its_text_says(self, rule: Rule) -> None:
        assert rule_of(str(rule), rule.zone) == rule

    def test_a_second_field_comes_first(self) -> None:
        at = utc("2026-01-01 00:00")
        assert Cron("*/20 * * * * *").after(at) == at + timedelta(seconds=20)

    def test_periods_are_counted_from_an_anchor(self) -> None:
        assert instants(Every(15 * MINUTE), "2026-01-01 00:01", 2) == ["01-01 00:15", "01-01 00:30"]
        assert instants(Every(HOUR, utc("2026-01-01 00:20")), "2025-12-31 22:30", 2) == ["12-31 23:20", "01-01 00:20"]

    @pytest.mark.parametrize(
        ("rule", "said"),
        [
            ("* * * *", "Wrong number of fields"), ("60 * * * *", "Bad minute"), ("0 0 31 2 *", "Bad day-of-month"), ("@daily", "Wrong number"),
            ("", "Wrong number"), ("a b c d e", "Bad minute"), (None, "no rule"),
        ],
    )  # fmt: skip
    def test_what_is_no_rule(self, rule: Any, said: str) -> None:
        with pytest.raises(DefinitionError, match=said):
            Schedule.cron(rule, work, "a", id="n")

    def test_a_zone_that_there_is_not(self) -> None:
        with pytest.raises(DefinitionError, match=r"'Europe/Berln'.*tzdata"):
            Schedule.cron("0 0 * * *", work, "a", id="n", zone="Europe/Berln")
        for odd in ("../etc/passwd", "", "/etc/localtime"):
            with pytest.raises(DefinitionError):
                Schedule.cron("0 0 * * *", work, "a", id="n", zone=odd)

    @pytest.mark.parametrize("period", ["0s", "500ms", "1500ms", timedelta(microseconds=1)])
    def test_a_period_is_whole_seconds(self, period: Any) -> None:
        with pytest.raises(DefinitionError, match="whole seconds"):
            Schedule.every(period, work, "a", id="n")

    def test_an_anchor_has_a_zone(self) -> None:
        with pytest.raises(DefinitionError, match="anchor"):
            Schedule.every("1h", work, "a", id="n", anchor=datetime(2026, 1, 1))

    def test_an_anchor_in_a_zone_is_an_instant(self) -> None:
        """A day is 24 hours, whatever the walls there show."""
        rule = every_of(DAY, datetime(2026, 3, 28, 12, tzinfo=ZoneInfo("Europe/Berlin")))
        assert instants(rule, "2026-03-28 00:00", 3) == ["03-28 11:00", "03-29 11:00", "03-30 11:00"]
