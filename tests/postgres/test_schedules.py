"""Schedules over Postgres: each instant once, whoever looks and whatever dies; what people do with them."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, Never

import asyncpg
import pytest
from attrs import frozen

from flowdsl import Deployment, Result, Schedule, Steps, Success, activity, bind, execution, scheduled_for, workflow
from flowdsl.codec import NotJournalable
from flowdsl.errors import NotFound, StoreError
from flowdsl.policy import duration
from flowdsl.postgres import schedules
from flowdsl.postgres.schedules import Fired, Lookout, register
from flowdsl.postgres.scheduling import backfill, listed, pause, resume, trigger
from flowdsl.postgres.store import Store
from flowdsl.schedule import key_of
from tests.postgres.proxy import Proxy, Wire, proxied
from tests.postgres.scene import eventually
from tests.postgres.stage import Refused, act, stage_at

MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@workflow("nightly")
def nightly(name: str) -> Steps[str, Never]:
    return (yield from note(name))


@workflow("weekly")
def weekly(name: str) -> Steps[str, Never]:
    return (yield from note(name))


@workflow("dated")
def dated(_: None) -> Steps[datetime | None, Never]:
    return scheduled_for((yield from execution()))


@workflow("acts")
def acts(name: str) -> Steps[str, Refused]:
    return (yield from act(name))


@activity("note")
def note(name: str) -> Result[str, Never]: ...


async def _note(name: str) -> Result[str, Never]:
    return Success(name)


def deploy(*many: Schedule, workflows: Sequence[Any] = (nightly,)) -> Deployment:
    return Deployment(workflows, [bind(note, _note)], schedules=many)


BEGAN: list[datetime] = []


@pytest.fixture(autouse=True)
def began() -> None:
    BEGAN[:] = [datetime.now(UTC).replace(microsecond=0)]


def every(period: str = "15m", workflow: Any = nightly, request: Any = "a", *, id: str = "n", **policies: Any) -> Schedule:
    """Its next instant is half a period off: at a quarter of an hour, one might strike in the middle of a test."""
    half = timedelta(seconds=duration(period) // timedelta(seconds=2))
    return Schedule.every(period, workflow, request, id=id, **{"anchor": BEGAN[0] - half, **policies})


class Clockwork:
    """One database, a lookout, and hands that turn schedules back in time."""

    def __init__(self, dsn: str, watcher: Any, store: Store) -> None:
        self.dsn, self.watcher, self.store = dsn, watcher, store
        self._stack = AsyncExitStack()

    async def bring(self, *many: Schedule, workflows: Sequence[Any] = (nightly,)) -> Lookout:
        deployment = deploy(*many, workflows=workflows)
        await register(self.store, deployment)
        return Lookout(self.store, deployment, 0.05)

    async def lookout(self, deployment: Deployment, dsn: str | None = None) -> Lookout:
        """One of another process."""
        return Lookout(await self._stack.enter_async_context(await Store.open(dsn or self.dsn)), deployment, 0.05)

    async def back(self, span: timedelta, id: str = "n") -> datetime:
        """As if nobody had looked for that long: the first instant that is still to be decided on."""
        row = await self.watcher.fetchrow(
            "update flowdsl.schedules set upcoming = upcoming - $2::interval, due = due - $2::interval where id = $1 returning upcoming", id, span
        )
        return row["upcoming"]  # type: ignore[no-any-return]

    async def fire(self, instant: datetime) -> Fired:
        """As if that instant were due."""
        async with self.store.connection() as connection, connection.transaction():
            return (await schedules._fire(connection, "due", [("n", instant)]))[0]

    async def row(self, id: str = "n") -> Any:
        return await self.watcher.fetchrow("select * from flowdsl.schedules where id = $1", id)

    async def history(self, id: str = "n") -> list[tuple[datetime, str]]:
        rows = await self.watcher.fetch("select * from flowdsl.firings where schedule = $1 order by instant", id)
        return [(row["instant"], row["outcome"]) for row in rows]

    async def executions(self) -> list[Any]:
        return list(await self.watcher.fetch("select * from flowdsl.executions order by key"))

    async def keys(self) -> list[str]:
        return [row["key"] for row in await self.executions()]

    async def end(self, execution: str | None, status: str = "succeeded") -> None:
        """As if a worker had run it."""
        await self.watcher.execute(
            'update flowdsl.executions set status = $2, wake = null, exit = \'{"success":"a"}\', ended = clock_timestamp() where id = $1::uuid',
            execution,
            status,
        )

    async def check(self) -> None:
        """I15: an enabled schedule has a due time; of each instant one execution, the one that its record names."""
        assert await self.watcher.fetchval("select count(*) from flowdsl.schedules where in_code and due is null") == 0
        started = await self.watcher.fetch("select * from flowdsl.firings where outcome = 'started'")
        keys = {str(row["id"]): row["key"] for row in await self.executions()}
        assert {str(row["execution"]): key_of(row["schedule"], row["instant"]) for row in started} == {id: key for id, key in keys.items() if key}

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def clockwork(database: str) -> AsyncIterator[Clockwork]:
    watcher = await asyncpg.connect(database)
    async with await Store.open(database) as store:
        clockwork = Clockwork(database, watcher, store)
        yield clockwork
        await clockwork.check()
        await clockwork.close()
    watcher.terminate()


class TestRegistering:
    async def test_a_new_one_begins_now(self, clockwork: Clockwork) -> None:
        before = await clockwork.watcher.fetchval("select clock_timestamp()")
        lookout = await clockwork.bring(every(anchor=NOON))
        row = await clockwork.row()
        now = await clockwork.watcher.fetchval("select clock_timestamp()")
        assert before < row["due"] <= now + 15 * MINUTE
        assert row["due"] == row["upcoming"]
        assert (row["upcoming"].minute % 15, row["upcoming"].second) == (0, 0)
        assert [one for one in await lookout.look() if one.instant < row["due"]] == []

    async def test_unchanged_it_stays_as_it_is(self, clockwork: Clockwork) -> None:
        await clockwork.bring(every())
        await clockwork.back(100 * MINUTE)
        before = await clockwork.row()
        await clockwork.bring(every())
        assert await clockwork.row() == before

    async def test_a_changed_rule_is_due_anew_and_another_input_is_not(self, clockwork: Clockwork) -> None:
        await clockwork.bring(every())
        await clockwork.back(100 * MINUTE)
        before = await clockwork.row()
        await clockwork.bring(every(request="b", overlap="allow"))
        after = await clockwork.row()
        assert (after["upcoming"], after["request"], after["overlap"]) == (before["upcoming"], b'"b"', "allow")
        await clockwork.bring(every("5m", request="b"))
        assert (await clockwork.row())["upcoming"] > await clockwork.watcher.fetchval("select clock_timestamp()")
        assert await clockwork.history() == []

    async def test_removed_from_the_code_it_is_kept_and_silent(self, clockwork: Clockwork) -> None:
        await clockwork.bring(every(), every(id="m"))
        await pause(clockwork.store, "n")
        lookout = await clockwork.bring(every(id="m"))
        [m, n] = await listed(clockwork.store)
        assert (m.in_code, n.in_code, n.due, n.paused) == (True, False, None, True)
        assert await lookout.look() == []
        await clockwork.bring(every(), every(id="m"))
        [m, n] = await listed(clockwork.store)
        assert (n.in_code, n.paused) == (True, True)
        assert n.due is not None

    async def test_the_schedules_of_another_deployment_are_left_alone(self, clockwork: Clockwork) -> None:
        await clockwork.bring(every())
        await clockwork.bring(every(workflow=weekly, id="w"), workflows=[weekly])
        assert [one.in_code for one in await listed(clockwork.store)] == [True, True]

    async def test_many_workers_at_once(self, clockwork: Clockwork) -> None:
        many = [every(id=f"s{n}") for n in range(20)]
        await asyncio.gather(*(register(clockwork.store, deploy(*many)) for _ in range(6)), register(clockwork.store, deploy(*reversed(many))))
        assert len(await listed(clockwork.store)) == 20

    async def test_an_input_that_cannot_be_written(self, clockwork: Clockwork) -> None:
        with pytest.raises(NotJournalable):
            await clockwork.bring(every(request=object()))
        assert await listed(clockwork.store) == []

    async def test_a_database_without_tables(self, clockwork: Clockwork) -> None:
        await clockwork.watcher.execute("alter schema flowdsl rename to elsewhere")
        with pytest.raises(StoreError, match="Run `flowdsl migrate`"):
            await clockwork.bring(every())
        await clockwork.watcher.execute("alter schema elsewhere rename to flowdsl")


class TestFiring:
    async def test_the_start_and_the_next_due_time(self, clockwork: Clockwork) -> None:
        lookout = await clockwork.bring(every())
        instant = await clockwork.back(15 * MINUTE)
        [fired] = await lookout.look()
        assert fired == Fired("n", instant, "started", fired.execution)
        [row] = await clockwork.executions()
        assert (str(row["id"]), row["key"], row["status"], row["request"]) == (fired.execution, key_of("n", instant), "running", b'"a"')
        assert row["wake"] is not None
        after = await clockwork.row()
        assert (after["upcoming"], after["due"], after["last"]) == (instant + 15 * MINUTE, instant + 15 * MINUTE, instant)
        assert await lookout.look() == []

    async def test_the_key_of_an_execution_outlives_the_record(self, clockwork: Clockwork) -> None:
        """A second reason why an instant starts once."""
        await clockwork.bring(every(overlap="allow"))
        first = await clockwork.fire(NOON)
        await clockwork.watcher.execute("delete from flowdsl.firings")
        await clockwork.watcher.execute("update flowdsl.executions set id = gen_random_uuid()")
        second = await clockwork.fire(NOON)
        [row] = await clockwork.executions()
        assert (second.outcome, second.execution) == ("started", str(row["id"]))
        assert second.execution != first.execution

    async def test_jitter_delays_it_and_is_not_drawn_again(self, clockwork: Clockwork) -> None:
        await clockwork.bring(every("1d", jitter="23h"))
        first = await clockwork.row()
        assert first["upcoming"] < first["due"] < first["upcoming"] + timedelta(hours=23)
        await clockwork.bring(every("1d", jitter="23h", request="b"))
        assert (await clockwork.row())["due"] == first["due"]

    async def test_the_tenant_is_the_schedules(self, clockwork: Clockwork) -> None:
        lookout = await clockwork.bring(every(tenant="acme"))
        await clockwork.back(15 * MINUTE)
        await lookout.look()
        assert [row["tenant"] for row in await clockwork.executions()] == ["acme"]

    async def test_a_workflow_that_nobody_here_knows_waits(self, clockwork: Clockwork) -> None:
        """The deployment that had it is away: its workers will make up for it."""
        await clockwork.bring(every(workflow=weekly, id="w"), workflows=[weekly])
        await clockwork.back(15 * MINUTE, "w")
        lookout = await clockwork.bring(every())
        assert await lookout.look() == []
        assert await lookout._pause() > 0.02, "nor is it looked at again and again"

    async def test_one_that_cannot_be_planned_holds_up_nobody(self, clockwork: Clockwork) -> None:
        lookout = await clockwork.bring(every(), every(id="m"))
        await clockwork.back(15 * MINUTE)
        await clockwork.back(15 * MINUTE, "m")
        rule = (await clockwork.row("m"))["rule"]
        await clockwork.watcher.execute("update flowdsl.schedules set rule = 'when the moon is full' where id = 'm'")
        assert [one.schedule for one in await lookout.look()] == ["n"]
        [m, _] = await listed(clockwork.store)
        assert m.problem is not None and "moon" in m.problem
        assert m.due is not None
        await clockwork.watcher.execute("update flowdsl.schedules set rule = $1, due = upcoming where id = 'm'", rule)
        assert [one.schedule for one in await lookout.look()] == ["m"]
        assert (await clockwork.row("m"))["problem"] is None

    async def test_one_whose_start_is_refused_holds_up_nobody(self, clockwork: Clockwork) -> None:
        lookout = await clockwork.bring(every(), every(id="m", tenant="odd"), every(id="o"))
        for id in "mno":
            await clockwork.back(15 * MINUTE, id)
        await clockwork.watcher.execute("alter table flowdsl.executions add constraint even check (tenant <> 'odd')")
        assert sorted(one.schedule for one in await lookout.look()) == ["n", "o"]
        [m, _, _] = await listed(clockwork.store)
        assert m.problem is not None and "even" in m.problem
        assert await clockwork.history("m") == []
        await clockwork.watcher.execute("alter table flowdsl.executions drop constraint even")
        await clockwork.watcher.execute("update flowdsl.schedules set due = upcoming where id = 'm'")
        assert [one.outcome for one in await lookout.look()] == ["started"]

    async def test_a_thousand_due_at_once(self, clockwork: Clockwork, monkeypatch: pytest.MonkeyPatch) -> None:
        """In batches, by three who look at once: each starts once."""
        deployment = deploy(*(every(id=f"s{n:04}") for n in range(1000)))
        await register(clockwork.store, deployment)
        await clockwork.watcher.execute("update flowdsl.schedules set upcoming = upcoming - interval '15 min', due = due - interval '15 min'")
        taken: list[int] = []
        fire = schedules._fire

        async def counted(connection: Any, cause: str, firings: Sequence[tuple[str, datetime]], *more: Any) -> list[Fired]:
            taken.append(len(firings))
            return await fire(connection, cause, firings, *more)

        monkeypatch.setattr(schedules, "_fire", counted)
        found = await asyncio.gather(*[(await clockwork.lookout(deployment)).look() for _ in range(3)])
        assert sorted(one.schedule for part in found for one in part) == [f"s{n:04}" for n in range(1000)]
        assert {one.outcome for part in found for one in part} == {"started"}
        assert max(taken) == schedules.BATCH
        assert len(await clockwork.executions()) == 1000

    async def test_a_look_reads_only_what_is_due(self, clockwork: Clockwork) -> None:
        await clockwork.bring(*(every("1d", id=f"s{n:04}") for n in range(2000)))
        await clockwork.watcher.execute("analyze flowdsl.schedules")
        query = schedules._DUE.replace("$1", "100").replace("$2", "'{nightly}'")
        lines = [row[0] for row in await clockwork.watcher.fetch(f"explain {query}")]
        assert any("Index Scan using schedules_due" in line for line in lines), lines
        assert any("Index Cond: (due <= statement_timestamp())" in line for line in lines), lines

    async def test_an_instant_is_in_the_key(self, clockwork: Clockwork, database: str) -> None:
        async with stage_at(database) as stage:
            deployment = deploy(every("1d", dated, None), workflows=[dated])
            stage.deployments.append(deployment)
            async with stage.worker(deployment=deployment) as worker:
                instant = await clockwork.back(timedelta(days=1))
                await eventually(lambda: _has(clockwork.executions(), 1), "it has started")
                [row] = await clockwork.executions()
                assert await worker.wait(str(row["id"])) == Success(instant)


async def _has(work: Any, count: int) -> bool:
    return len(await work) >= count


class TestCatchingUp:
    @pytest.mark.parametrize(
        ("policies", "started"),
        [({"catch_up": "skip"}, 0), ({"catch_up": "one"}, 1), ({"catch_up": "all", "overlap": "allow"}, 20)],
        ids=["skip", "one", "all"],
    )
    async def test_after_five_hours(self, clockwork: Clockwork, policies: dict[str, Any], started: int) -> None:
        anchor = datetime.now(UTC).replace(microsecond=0) - 5 * MINUTE  # so the newest is five minutes late
        lookout = await clockwork.bring(every(anchor=anchor, **policies))
        first = await clockwork.back(300 * MINUTE)
        assert [one.instant for one in await lookout.look()] == [first + n * 15 * MINUTE for n in range(20)][20 - started :]
        assert [instant for instant, outcome in await clockwork.history() if outcome == "missed"] == ([first] if started < 20 else [])
        assert (await clockwork.row())["upcoming"] == first + 300 * MINUTE

    async def test_at_most_a_hundred(self, clockwork: Clockwork) -> None:
        lookout = await clockwork.bring(every("1m", catch_up="all", overlap="allow"))
        await clockwork.back(timedelta(days=2))
        assert len(await lookout.look()) == 100
        assert len(await clockwork.executions()) == 100

    async def test_what_would_be_too_much_is_left_for_the_next_transaction(self, clockwork: Clockwork, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(schedules, "STARTS", 5)
        many = [every("1h", id=f"s{n}", catch_up="all", overlap="allow") for n in range(4)]
        lookout = await clockwork.bring(*many)
        for one in many:
            await clockwork.back(timedelta(hours=4), one.id)
        assert len(await lookout.look()) == 16


class TestOverlap:
    @pytest.mark.parametrize(
        ("overlap", "outcomes"),
        [("skip", ["started", "skipped", "skipped"]), ("queue", ["started", "queued", "skipped"]), ("allow", ["started", "started", "started"])],
    )
    async def test_while_the_last_is_open(self, clockwork: Clockwork, overlap: Any, outcomes: list[str]) -> None:
        await clockwork.bring(every(overlap=overlap))
        instant = await clockwork.back(45 * MINUTE)
        found = [await clockwork.fire(instant + n * 15 * MINUTE) for n in range(3)]
        assert [one.outcome for one in found] == outcomes
        assert [outcome for _, outcome in await clockwork.history()] == outcomes
        if overlap != "allow":
            assert {one.execution for one in found} == {found[0].execution}, "the one that was started is the one in the way"

    @pytest.mark.parametrize("status", ["running", "suspended", "blocked"])
    async def test_what_is_open(self, clockwork: Clockwork, status: str) -> None:
        await clockwork.bring(every())
        await clockwork.fire(NOON)
        await clockwork.watcher.execute("update flowdsl.executions set status = $1", status)
        assert (await clockwork.fire(NOON + MINUTE)).outcome == "skipped"

    @pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
    async def test_what_has_ended(self, clockwork: Clockwork, status: str) -> None:
        await clockwork.bring(every())
        await clockwork.end((await clockwork.fire(NOON)).execution, status)
        assert (await clockwork.fire(NOON + MINUTE)).outcome == "started"

    async def test_an_execution_that_is_no_longer_kept_is_in_nobodys_way(self, clockwork: Clockwork) -> None:
        await clockwork.bring(every())
        await clockwork.fire(NOON)
        await clockwork.watcher.execute("delete from flowdsl.executions")
        await clockwork.watcher.execute("delete from flowdsl.firings")
        assert (await clockwork.fire(NOON + MINUTE)).outcome == "started"

    async def test_what_is_queued_starts_at_the_next_look(self, clockwork: Clockwork) -> None:
        lookout = await clockwork.bring(every(overlap="queue"))
        first, queued, _ = [await clockwork.fire(NOON + n * MINUTE) for n in range(3)]
        assert await lookout.look() == []
        await clockwork.end(first.execution, "failed")
        [late] = await lookout.look()
        assert (late.outcome, late.instant) == ("started", queued.instant)
        assert [outcome for _, outcome in await clockwork.history()] == ["started", "started", "skipped"]
        assert await lookout.look() == []
        assert (await clockwork.fire(NOON + 5 * MINUTE)).outcome == "queued", "one may be queued again"

    async def test_what_is_queued_comes_before_what_is_due(self, clockwork: Clockwork) -> None:
        lookout = await clockwork.bring(every(overlap="queue"))
        first, queued = [await clockwork.fire(NOON + n * MINUTE) for n in range(2)]
        await clockwork.end(first.execution)
        instant = await clockwork.back(15 * MINUTE)
        assert [(one.instant, one.outcome) for one in await lookout.look()] == [(queued.instant, "started"), (instant, "queued")]

    async def test_a_worker_starts_what_is_queued_once_the_former_has_ended(self, database: str) -> None:
        async with stage_at(database) as stage:
            stage.gate("a")
            schedule = every("1d", acts, overlap="queue")
            deployment = Deployment([acts], stage.deployment(acts).bindings, schedules=[schedule])
            stage.deployments.append(deployment)
            async with stage.worker(deployment=deployment) as worker:
                outcomes = []
                for _ in range(2):
                    outcomes.append((await trigger(worker.store, "n")).outcome)
                    await stage.at_gate("a")
                assert outcomes == ["started", "queued"]
                assert len(stage.calls) == 1
                stage.open_gate("a")
                await stage.at_gate("a")
                stage.open_gate("a")
                [one] = await listed(worker.store)
                assert one.execution is not None
                await stage.becomes(one.execution, "succeeded")
            assert len(stage.calls) == 2


class TestPeople:
    async def test_pause_and_resume(self, clockwork: Clockwork) -> None:
        lookout = await clockwork.bring(every())
        await pause(clockwork.store, "n")
        await pause(clockwork.store, "n")
        await clockwork.back(300 * MINUTE)
        assert await lookout.look() == []
        await resume(clockwork.store, "n")
        assert await lookout.look() == [], "what would have fired meanwhile is not made up for"
        after = await clockwork.row()
        await resume(clockwork.store, "n")
        assert await clockwork.row() == after
        await clockwork.back(15 * MINUTE)
        assert len(await lookout.look()) == 1

    async def test_to_resume_what_runs_lets_nothing_go(self, clockwork: Clockwork) -> None:
        lookout = await clockwork.bring(every())
        await clockwork.back(15 * MINUTE)
        await resume(clockwork.store, "n")
        assert len(await lookout.look()) == 1

    async def test_a_pause_lets_go_of_what_is_queued(self, clockwork: Clockwork) -> None:
        lookout = await clockwork.bring(every(overlap="queue"))
        await trigger(clockwork.store, "n")
        queued = await trigger(clockwork.store, "n")
        assert queued.outcome == "queued"
        await pause(clockwork.store, "n")
        assert [outcome for _, outcome in await clockwork.history()] == ["started", "skipped"]
        await clockwork.end((await listed(clockwork.store))[0].execution)
        await resume(clockwork.store, "n")
        assert await lookout.look() == []

    async def test_trigger_starts_now_and_changes_no_due_time(self, clockwork: Clockwork) -> None:
        await clockwork.bring(every())
        before = await clockwork.row()
        await pause(clockwork.store, "n")
        fired = await trigger(clockwork.store, "n")
        again = await trigger(clockwork.store, "n")
        assert (fired.outcome, again.outcome, again.execution) == ("started", "skipped", fired.execution)
        [one] = await listed(clockwork.store)
        assert (one.due, one.last, one.execution, one.status) == (before["due"], fired.instant, fired.execution, "running")

    async def test_a_trigger_whose_reply_is_lost_starts_once(self, clockwork: Clockwork) -> None:
        await clockwork.bring(every(overlap="allow"))
        async with proxied(clockwork.dsn) as proxy, await Store.open(proxy.dsn) as store:
            proxy.swallow_once(_commits)
            fired = await trigger(store, "n")
            assert proxy.swallowed == 1
        assert fired.outcome == "started"
        assert [str(row["id"]) for row in await clockwork.executions()] == [fired.execution]

    async def test_backfill(self, clockwork: Clockwork) -> None:
        """What was missed and skipped, but not what was started, nor what is to come; twice is once."""
        lookout = await clockwork.bring(every())
        first = await clockwork.back(300 * MINUTE)
        [newest] = await lookout.look()
        found = await backfill(clockwork.store, "n", first, datetime(2100, 1, 1, tzinfo=UTC))
        assert [one.instant for one in found] == [first + n * 15 * MINUTE for n in range(20)]
        assert [one.outcome for one in found] == 19 * ["started"] + ["again"]
        assert found[-1].execution == newest.execution
        assert [one.outcome for one in await backfill(clockwork.store, "n", first, newest.instant)] == 20 * ["again"]
        assert len(await clockwork.executions()) == 20
        assert (await listed(clockwork.store))[0].execution == newest.execution

    async def test_what_was_backfilled_is_not_started_when_it_is_due(self, clockwork: Clockwork) -> None:
        lookout = await clockwork.bring(every())
        first = await clockwork.back(15 * MINUTE)
        await backfill(clockwork.store, "n", first, first)
        assert [one.outcome for one in await lookout.look()] == ["again"]
        assert (await clockwork.row())["upcoming"] == first + 15 * MINUTE

    async def test_each_is_audited_once(self, clockwork: Clockwork) -> None:
        await clockwork.bring(every(tenant="acme", anchor=NOON))
        for _ in range(2):
            await pause(clockwork.store, "n", by="ada")
        for _ in range(2):
            await resume(clockwork.store, "n", by="ada")
        fired = await trigger(clockwork.store, "n", by="ada")
        for _ in range(2):
            await backfill(clockwork.store, "n", NOON, NOON + 30 * MINUTE, by="ada")
        rows = await clockwork.watcher.fetch("select * from flowdsl.audit where event like 'SCHEDULE%' order by id")
        assert [(row["tenant"], row["event"]) for row in rows] == [
            ("acme", f"SCHEDULE_{what}") for what in ("PAUSED", "RESUMED", "TRIGGERED", "BACKFILLED")
        ]
        assert str(rows[2]["execution"]) == fired.execution
        assert json.loads(rows[3]["facts"]) == {"schedule": "n", "by": "ada", "since": str(NOON), "until": str(NOON + 30 * MINUTE), "started": 3}

    async def test_a_range_that_is_too_long(self, clockwork: Clockwork) -> None:
        await clockwork.bring(every("1s"))
        with pytest.raises(StoreError, match="more than 1,000 instants"):
            await backfill(clockwork.store, "n", datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC))
        assert await clockwork.executions() == []

    async def test_a_name_that_there_is_not(self, clockwork: Clockwork) -> None:
        await clockwork.bring(every())
        now = datetime(2026, 1, 1, tzinfo=UTC)
        for work in (
            pause(clockwork.store, "x"),
            resume(clockwork.store, "x"),
            trigger(clockwork.store, "x"),
            backfill(clockwork.store, "x", now, now),
        ):
            with pytest.raises(NotFound, match="Known: n"):
                await work


def _commits(wire: Wire, sent: bytes) -> bool:
    """The COMMIT of a firing."""
    return b"COMMIT;" in sent and b"flowdsl.fire" in wire.said


@frozen
class Moment:
    """A message of the transaction, after which the connection is gone; `swallowed`: the server still does what it says."""

    statement: bytes
    swallowed: bool


MOMENTS = [
    Moment(b"for update skip locked", False), Moment(b"flowdsl.fire", False), Moment(b"flowdsl.go_on", False), Moment(b"COMMIT;", False),
    Moment(b"COMMIT;", True),
]  # fmt: skip


class TestCrashes:
    @pytest.mark.parametrize("moment", MOMENTS, ids=["taken", "before the start", "before the due time", "before the commit", "after the commit"])
    async def test_each_instant_once(self, clockwork: Clockwork, moment: Moment) -> None:
        """A worker that dies in the middle of a firing, and another that looks after it."""
        schedule = every(catch_up="all", overlap="allow")
        other = await clockwork.bring(schedule)
        first = await clockwork.back(75 * MINUTE)
        async with proxied(clockwork.dsn) as proxy:
            dying = await clockwork.lookout(deploy(schedule), proxy.dsn)
            cut = _cut(proxy, moment)
            with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
                await dying.look()
            assert cut()

            async def settled() -> bool:
                return not await clockwork.watcher.fetchval(
                    "select count(*) from pg_locks where relation = 'flowdsl.schedules'::regclass and pid <> pg_backend_pid()"
                )

            await eventually(settled, "the dead worker's transaction is over")
        at_once = (5, first + 75 * MINUTE) if moment.swallowed else (0, first)
        assert (len(await clockwork.executions()), (await clockwork.row())["upcoming"]) == at_once, "start and due time are one"
        assert [one.outcome for one in await other.look()] == ([] if moment.swallowed else 5 * ["started"])
        assert await clockwork.keys() == [key_of("n", first + n * 15 * MINUTE) for n in range(5)]
        assert (await clockwork.row())["upcoming"] == first + 75 * MINUTE

    async def test_two_whose_connections_die_again_and_again(self, clockwork: Clockwork, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before or after anything that they say, the commit included: each instant of two hundred schedules once, none left out."""
        seed = random.randrange(10**6)
        print(f"seed {seed}")
        chance = random.Random(seed)
        monkeypatch.setattr(schedules, "BATCH", 10)
        many = [every(id=f"s{n:03}", catch_up="all", overlap="allow") for n in range(200)]
        await clockwork.bring(*many)
        for one in many:
            await clockwork.back(30 * MINUTE, one.id)

        def swallows(wire: Wire, sent: bytes) -> bool:
            if proxy.swallowed and chance.random() < 0.92:
                return False
            if proxy.swallowed and chance.random() < 0.5:
                wire.server.transport.abort()
            return True

        async def all_decided() -> bool:
            return not await clockwork.watcher.fetchval("select count(*) from flowdsl.schedules where due <= clock_timestamp()")

        async with proxied(clockwork.dsn) as proxy:
            lookouts = [await clockwork.lookout(deploy(*many), proxy.dsn) for _ in range(2)]
            proxy.swallows = swallows
            tasks = [asyncio.create_task(one.keep()) for one in lookouts]
            await eventually(all_decided, "all are decided on", 60)
            assert proxy.swallowed > 0
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for one in many:
            upcoming = (await clockwork.row(one.id))["upcoming"]
            assert await clockwork.history(one.id) == [(upcoming - 30 * MINUTE, "started"), (upcoming - 15 * MINUTE, "started")]
        assert len(await clockwork.executions()) == 400

    async def test_the_due_time_is_that_of_postgres(self, clockwork: Clockwork, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker whose clock is an hour off, either way, fires neither sooner nor later."""
        lookout = await clockwork.bring(every())
        for off in (-3600.0, 3600.0):
            wrong = time.time() + off
            monkeypatch.setattr("time.time", lambda wrong=wrong: wrong)
            assert await lookout.look() == []
        await clockwork.back(15 * MINUTE)
        assert len(await lookout.look()) == 1


def _cut(proxy: Proxy, moment: Moment) -> Any:
    """Arms the proxy; tells whether it has struck."""
    struck: list[bytes] = []

    def swallows(wire: Wire, sent: bytes) -> bool:
        begun = b"for update skip locked" in wire.said
        if struck or moment.statement not in sent or not begun or (moment.statement == b"COMMIT;" and b"flowdsl.go_on" not in wire.said):
            return False
        struck.append(sent)
        if not moment.swallowed:
            wire.server.transport.abort()
        return True

    proxy.swallows = swallows
    return lambda: bool(struck)


class TestWorkers:
    async def test_they_fire_by_themselves(self, database: str) -> None:
        async with stage_at(database) as stage:
            deployment = deploy(every("1s", overlap="allow", catch_up="all"))
            stage.deployments.append(deployment)
            async with AsyncExitStack() as stack:
                for _ in range(2):
                    await stack.enter_async_context(stage.worker(deployment=deployment))

                async def three() -> bool:
                    return bool(await stage.watcher.fetchval("select count(*) >= 3 from flowdsl.executions where status = 'succeeded'"))

                await eventually(three, "three have ended")
            rows = await stage.watcher.fetch("select started, key from flowdsl.executions order by key")
            instants = [datetime.fromisoformat(row["key"].partition("@")[2]) for row in rows]
            assert instants == [instants[0] + n * timedelta(seconds=1) for n in range(len(instants))]
            assert all(row["started"] >= instant for row, instant in zip(rows, instants, strict=True)), "never early, by the clock of Postgres"
            await stage.check()

    async def test_one_without_schedules_silences_those_that_its_code_dropped(self, database: str) -> None:
        async with stage_at(database) as stage:
            async with stage.worker(deployment=deploy(every())) as worker:
                assert [one.in_code for one in await listed(worker.store)] == [True]
            async with stage.worker(deployment=deploy()) as worker:
                assert [one.in_code for one in await listed(worker.store)] == [False]
                assert worker._lookout is None
