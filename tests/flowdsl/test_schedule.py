"""Schedules as values: what is started however the clock runs and however often it is asked."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta
from itertools import islice, pairwise
from typing import Any, Never

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowdsl import Deployment, Execution, Schedule, Steps, execution, scheduled_for, workflow
from flowdsl.errors import DefinitionError, DeploymentError
from flowdsl.rule import EPOCH, Cron, Every
from flowdsl.schedule import MOST, ON_TIME, Plan, Timetable, begun, key_of, plan
from tests.flowdsl.test_rule import RULES, TIMES, utc

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@workflow("work")
def work(name: str) -> Steps[str, Never]:
    yield from execution()
    return name


@workflow("other")
def other(name: str) -> Steps[str, Never]:
    yield from execution()
    return name


TABLES = st.builds(
    Timetable,
    st.sampled_from(["a", "b"]),
    st.sampled_from(RULES),
    st.sampled_from([timedelta(), timedelta(seconds=3), 20 * MINUTE, 3 * DAY]),
    st.just("allow"),
    st.sampled_from(["skip", "one", "all"]),
    st.sampled_from([timedelta(), HOUR, 7 * DAY]),
)
STEPS = st.lists(
    st.one_of(
        st.timedeltas(-HOUR, HOUR), st.timedeltas(timedelta(), timedelta(seconds=90)), st.timedeltas(timedelta(), 10 * DAY), st.just(timedelta())
    ),
    max_size=15,
)


class TestPlanning:
    @settings(deadline=None)
    @given(table=TABLES, start=TIMES, steps=STEPS)
    def test_each_instant_is_decided_on_once_and_in_order(self, table: Timetable, start: datetime, steps: list[timedelta]) -> None:
        """However the clock jumps, and however often it is asked."""
        now, upcoming = start, begun(table, start).upcoming
        assert upcoming > start
        decided: list[datetime] = []
        for step in steps:
            now += step
            made = plan(table, upcoming, now)
            passed = list(islice(table.between(upcoming, made.upcoming - timedelta(microseconds=1)), 5_000))
            if len(passed) < 5_000:
                self.fits(table, now, made, passed)
            assert made.upcoming >= upcoming
            assert all(upcoming <= instant < made.upcoming for instant in made.firings)
            assert made.due == table.due(made.upcoming) > now
            assert plan(table, made.upcoming, now) == Plan((), made.upcoming, made.due)
            decided += made.firings
            upcoming = made.upcoming
        assert all(a < b for a, b in pairwise(decided))

    def fits(self, table: Timetable, now: datetime, made: Plan, passed: list[datetime]) -> None:
        """What it starts is what its policy says of all that came due."""
        assert all(table.due(instant) <= now for instant in passed)
        patience = ON_TIME if table.catch_up == "skip" else table.within
        fit = [instant for instant in passed if now - table.due(instant) <= patience]
        assert list(made.firings) == (fit[-1:] if table.catch_up == "one" else fit[-MOST:])
        assert made.missed == (None if len(made.firings) == len(passed) else passed[0])

    @settings(deadline=None)
    @given(table=TABLES, at=TIMES)
    def test_jitter_is_drawn_once_and_ends_before_the_next(self, table: Timetable, at: datetime) -> None:
        instant = table.rule.after(at)
        due = table.due(instant)
        assert instant <= due < min(instant + table.jitter + timedelta(microseconds=1), table.rule.after(instant))
        assert table.due(instant) == due

    def test_jitter_spreads(self) -> None:
        rule = Every(DAY)
        dues = {Timetable(f"s{n}", rule, jitter=HOUR).due(EPOCH) - EPOCH for n in range(200)}
        assert len(dues) == 200
        assert min(dues) < 10 * MINUTE < 50 * MINUTE < max(dues) < HOUR

    def test_a_year_of_downtime_is_no_walk(self) -> None:
        """A rule of seconds: what is started is bounded, and so is what is looked at."""
        table = Timetable("s", Counted(timedelta(seconds=1)), catch_up="all", overlap="allow")
        made = plan(table, utc("2025-01-01 00:00"), utc("2026-01-01 00:00"))
        assert len(made.firings) == MOST
        assert made.firings[-1] == utc("2026-01-01 00:00")
        assert table.rule.asked < 1000  # type: ignore[union-attr]

    def test_what_is_on_time_is_started_whatever_was_missed(self) -> None:
        table = Timetable("s", Every(HOUR), catch_up="skip")
        made = plan(table, utc("2026-01-01 00:00"), utc("2026-01-01 05:00") + ON_TIME)
        assert (made.firings, made.missed) == ((utc("2026-01-01 05:00"),), utc("2026-01-01 00:00"))
        assert plan(table, utc("2026-01-01 00:00"), utc("2026-01-01 05:02")).firings == ()


class Counted(Every):
    """Counts how often it is asked."""

    asked = 0

    def after(self, at: datetime) -> datetime:
        type(self).asked += 1
        return super().after(at)


class TestSchedules:
    def test_policies_are_values(self) -> None:
        made = Schedule.cron(
            "0  3 * * *", work, "a", id="n", zone="Asia/Beirut", jitter="5m", overlap="allow", catch_up="all", within="1d", tenant="t"
        )
        assert made.timetable == Timetable("n", Cron("0 3 * * *", "Asia/Beirut"), 5 * MINUTE, "allow", "all", DAY)
        assert (made.id, made.workflow, made.request, made.tenant) == ("n", work, "a", "t")

    @pytest.mark.parametrize(
        ("policies", "said"),
        [
            ({"id": ""}, "durable name"),
            ({"id": "a\0b"}, "durable name"), ({"id": "n" * 201}, "durable name"), ({"overlap": "both"}, "overlap='both'"),
            ({"catch_up": "some"}, "catch_up='some'"), ({"catch_up": "all"}, 'overlap="allow"'), ({"jitter": "-1s"}, "not a duration"),
            ({"within": "soon"}, "not a duration"), ({"tenant": ""}, "no tenant"),
        ],
    )  # fmt: skip
    def test_what_cannot_work_is_refused(self, policies: dict[str, Any], said: str) -> None:
        with pytest.raises(DefinitionError, match=said):
            Schedule.every("1h", work, "a", **{"id": "n", **policies})

    def test_a_deployment_knows_its_schedules(self) -> None:
        made = Schedule.every("1h", work, "a", id="n")
        assert Deployment([], schedules=[made]).names == ("work",)
        with pytest.raises(DeploymentError, match="2 schedules have the id n"):
            Deployment([work, other], schedules=[made, Schedule.every("2h", other, "a", id="n")])

    @settings(deadline=None)
    @given(id=st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1), at=TIMES)
    def test_the_key_tells_the_instant(self, id: str, at: datetime) -> None:
        found = Execution("x", "default", "work", key_of(id, at), None, at)
        assert scheduled_for(found) == at

    @pytest.mark.parametrize("key", [None, "", "a", "a@2026", "@2026-01-01T00:00:00Z", "a@2026-01-01T00:00:00"])
    def test_other_keys_tell_none(self, key: str | None) -> None:
        assert scheduled_for(Execution("x", "default", "work", key, None, EPOCH)) is None

    def test_nobody_pays_who_has_none(self) -> None:
        code = "import flowdsl, sys; print(*(m for m in ('cronsim', 'zoneinfo') if m in sys.modules))"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
