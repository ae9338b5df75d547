"""Attempts over Postgres, with workers that die just before and just after each thing that is recorded."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal, Never

import pytest
from attrs import evolve
from structlog.testing import capture_logs

from flowdsl import (
    Defect,
    Deployment,
    Failure,
    GiveUp,
    Interrupted,
    Limits,
    Result,
    Retry,
    RetryAfter,
    Steps,
    Success,
    TimedOut,
    TooLarge,
    activity,
    bind,
    each,
    this_attempt,
    workflow,
)
from flowdsl.activation import Turn
from flowdsl.attempt import Rounds
from flowdsl.definition import Workflow
from flowdsl.journal import ATTEMPT, BUG, FAILURE, INTENT, INTERRUPTED, SUCCESS
from flowdsl.postgres.committer import Commit, Fate
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Worker
from flowdsl.replay import Resident
from tests.postgres.scene import eventually
from tests.postgres.stage import BRISK, Refused, Stage, stage_at

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

When = Literal["before", "after"]


@pytest.fixture(autouse=True)
def nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio" and record.levelname == "ERROR"] == []


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage
        await stage.check()


@activity("call", retry=Retry.constant("20ms", attempts=4, on=(Refused,)), timeout="20s")
def call(name: str) -> Result[str, Refused | TimedOut]: ...


@activity("threaded", retry=Retry.constant("10ms", attempts=2), timeout="50ms")
def threaded(name: str) -> Result[str, TimedOut]: ...


@activity("once", crash="fail", timeout="20s")
def once(name: str) -> Result[str, Interrupted]: ...


def calls_with(**policies: Any) -> Workflow[Any, Any, Any]:
    contract = call.using(**policies)

    @workflow("calls")
    def calls(name: str) -> Steps[str, Refused | TimedOut]:
        return (yield from contract(name))

    return calls


@workflow("once only")
def once_only(name: str) -> Steps[str, Interrupted]:
    return (yield from once(name))


@workflow("in threads")
def in_threads(names: list[str]) -> Steps[list[str], TimedOut]:
    patient = threaded.using(timeout="60s")
    return (yield from each(names, lambda name: threaded(name) if name == "stuck" else patient(name)))


class Mortal(Worker):
    """Dies just before a turn is sent, or just after it is committed: nothing it has in memory is ever heard of again."""

    def __init__(self, stage: Stage, deployment: Deployment, store: Store, dies: Callable[[Turn], When | None], **tuning: Any) -> None:
        super().__init__(deployment, store, evolve(BRISK, **tuning))
        self._stage, self._dies = stage, dies
        self.dead = asyncio.Event()
        self._last: Turn | None = None

    def submit(self, resident: Resident, turn: Turn, state: str | None) -> None:
        when = None if self.dead.is_set() else self._dies(turn)
        if when == "before":
            self.die()
        elif not self.dead.is_set():
            self._last = turn if when == "after" else None
            super().submit(resident, turn, state)

    def _told(self, commit: Commit, fate: Fate) -> None:
        if commit.turn is self._last:
            assert fate in ("done", "again")
            self.die()
        elif not self.dead.is_set():
            super()._told(commit, fate)

    def die(self) -> None:
        self.dead.set()
        self._stopping = True
        self.heart.stop()
        for task in (self._poller, self.committer._task, self.heartbeats._task):
            if task is not None:
                task.cancel()
        for resident in list(self.residents.values()):
            resident.drop()

    async def bury(self) -> None:
        """Others see that its lease is over."""
        self.die()
        await self._stage.watcher.execute("update flowdsl.workers set gone = true where id = $1", self.id)
        await self.hands.close()
        await self.notes.close()
        await self.budgets.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, *filter(None, (self._poller, self.committer._task)), return_exceptions=True)
        self.committer._connection.terminate()
        self._transactions.terminate()


def never(_: Turn) -> None:
    return None


def at_entry(kind: int, when: When, nth: int = 1) -> Callable[[Turn], When | None]:
    """Dies with the turn that holds the nth entry of that kind."""
    seen = 0

    def dies(turn: Turn) -> When | None:
        nonlocal seen
        seen += sum(entry.kind == kind for entry in turn.entries)
        return when if seen == nth and any(entry.kind == kind for entry in turn.entries) else None

    return dies


@asynccontextmanager
async def mortal(stage: Stage, deployment: Deployment, dies: Callable[[Turn], When | None] = never, **tuning: Any) -> AsyncIterator[Mortal]:
    async with await Store.open(stage.dsn) as store:
        worker = Mortal(stage, deployment, store, dies, **tuning)
        await worker.begin()
        try:
            yield worker
        finally:
            await worker.bury()


def deployed(stage: Stage, workflow: Workflow[Any, Any, Any], implementation: Callable[[str], Any], **changes: Any) -> Deployment:
    deployment = Deployment([workflow], [bind(one, implementation) for one in (call, threaded, once)], **changes)
    stage.deployments.append(deployment)
    return deployment


async def kinds(stage: Stage, id: str) -> list[int]:
    return [entry.kind for entry in await stage.journal(id)]


class TestTheLimit:
    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("nth", [1, 2, 3])
    async def test_holds_over_the_deaths_of_workers(self, stage: Stage, when: When, nth: int) -> None:
        """F10, I17: the fourth attempt is the last, whoever makes it, and however the others ended."""
        numbers: list[int] = []

        async def fails(_: str) -> Any:
            numbers.append(this_attempt().number)
            return Failure(Refused("no"))

        deployment = deployed(stage, calls_with(), fails)
        async with mortal(stage, deployment, at_entry(ATTEMPT, when, nth)) as dying:
            id = await dying.start(deployment.workflow("calls"), "a")
            await dying.dead.wait()
        async with stage.worker(deployment=deployment) as worker:
            exit = await worker.wait(id)
        assert exit == Failure(Refused("no")) or (nth == 3 and when == "after" and isinstance(exit, Defect))
        if when == "before":  # the attempt whose failure nobody heard of was cut short
            assert numbers == [1, 2, 3, 4]
            assert await kinds(stage, id) == [*[ATTEMPT] * (nth - 1), INTERRUPTED, *[ATTEMPT] * (3 - nth), FAILURE]
        else:  # its delay was over when it was taken over: nobody knows that the next was not made, so it counts as made
            assert numbers in ([1, 2, 3, 4], [number for number in (1, 2, 3, 4) if number != nth + 1])
            assert len(await stage.journal(id)) == 4

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_the_last_failure_is_not_tried_again(self, stage: Stage, when: When) -> None:
        numbers: list[int] = []

        async def fails(_: str) -> Any:
            numbers.append(this_attempt().number)
            raise ZeroDivisionError

        deployment = deployed(stage, calls_with(retry=Retry.constant("10ms", attempts=1)), fails)
        async with mortal(stage, deployment, at_entry(BUG, when)) as dying:
            id = await dying.start(deployment.workflow("calls"), "a")
            await dying.dead.wait()
        async with stage.worker(deployment=deployment) as worker:
            exit = await worker.wait(id)
        assert isinstance(exit, Defect)
        assert ("ZeroDivisionError" if when == "after" else "cut short by the death of its worker") in exit.message
        assert numbers == [1]

    async def test_a_graceful_stop_between_two_attempts_loses_nothing(self, stage: Stage) -> None:
        numbers: list[int] = []

        async def fails(_: str) -> Any:
            numbers.append(this_attempt().number)
            return Failure(Refused("no"))

        deployment = deployed(stage, calls_with(retry=Retry.constant("300ms", attempts=3, on=(Refused,))), fails)
        async with stage.worker(deployment=deployment) as worker:
            id = await worker.start(deployment.workflow("calls"), "a")

            async def recorded() -> bool:
                return len(await stage.journal(id)) >= 1

            await eventually(recorded, "the first attempt was made")
        async with stage.worker(deployment=deployment) as worker:
            assert await worker.wait(id) == Failure(Refused("no"))
        assert numbers == [1, 2, 3]


class TestTheWait:
    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("says", ["policy", "implementation", "failure"])
    async def test_is_kept_by_who_takes_over(self, stage: Stage, when: When, says: str) -> None:
        """The next attempt is due when the entry says so. An attempt whose failure is not recorded was cut short: nobody knows a wait for it."""
        asked: list[int] = []

        async def fails(_: str) -> Any:
            asked.append(this_attempt().number)
            if len(asked) == 2 or (when == "before" and len(asked) == 3):
                return Success("done")
            if says == "implementation":
                raise RetryAfter("400ms")
            return Failure(Refused("no"))

        wait = Retry.constant("400ms" if says != "implementation" else "1ms", attempts=3, on=(Refused,))
        deployment = deployed(stage, calls_with(retry=wait), fails)
        async with mortal(stage, deployment, at_entry(ATTEMPT, when)) as dying:
            id = await dying.start(deployment.workflow("calls"), "a")
            await dying.dead.wait()
        async with stage.worker(deployment=deployment) as worker:
            assert await worker.wait(id) == Success("done")
        first, *between, last = await stage.journal(id)
        assert (first.kind, last.kind) == (INTERRUPTED if when == "before" else ATTEMPT, SUCCESS)
        # A machine so slow that the wait was over at the take-over: nobody knows that the second was not made, so it counts as made.
        assert [entry.kind for entry in between] in ([], [INTERRUPTED] if when == "after" else [])
        if when == "after":
            assert last.at - first.at >= timedelta(milliseconds=400)

    async def test_is_spent_out_of_memory(self, stage: Stage) -> None:
        async def busy(_: str) -> Any:
            raise RetryAfter("1h", "busy")

        deployment = deployed(stage, calls_with(), busy)
        async with stage.worker(deployment=deployment) as worker:
            id = await worker.start(deployment.workflow("calls"), "a")
            row = await stage.becomes(id, "suspended")
            (entry,) = await stage.journal(id)
            assert row["wake"] - entry.at == timedelta(hours=1)
            assert id not in worker.residents

    async def test_who_gives_up_is_not_asked_again(self, stage: Stage) -> None:
        async def gives_up(_: str) -> Any:
            raise GiveUp("closed")

        deployment = deployed(stage, calls_with(), gives_up)
        async with stage.worker(deployment=deployment) as worker:
            id = await worker.start(deployment.workflow("calls"), "a")
            exit = await worker.wait(id)
        assert isinstance(exit, Defect) and exit.message == "GiveUp: closed"
        assert await kinds(stage, id) == [BUG]


async def earlier(stage: Stage, id: str, span: timedelta) -> None:
    """As if all of it had been so much earlier: nobody has to wait until the time is over."""
    await stage.watcher.execute("update flowdsl.executions set started = started - $2::interval, wake = wake - $2::interval where id = $1", id, span)
    await stage.watcher.execute("update flowdsl.journal set at = at - $2::interval where execution = $1", id, span)


class TestTheTimeOfAllAttempts:
    async def test_counts_from_the_first_over_a_take_over(self, stage: Stage) -> None:
        """Derived from the journal alone: the second worker knows when the first began."""
        numbers: list[int] = []
        doubts = [timedelta(milliseconds=1)]

        async def hangs(_: str) -> Any:
            numbers.append(this_attempt().number)
            if len(numbers) > 1:
                doubts.append(worker.doubt())
            await asyncio.Event().wait()

        deployment = deployed(stage, calls_with(schedule_to_close="1h", retry=Retry.constant("1ms")), hangs)
        async with mortal(stage, deployment) as dying:
            id = await dying.start(deployment.workflow("calls"), "a")
            await eventually(lambda: len(numbers) == 1, "it runs")
        await earlier(stage, id, timedelta(hours=1) - timedelta(seconds=8))
        async with stage.worker(deployment=deployment) as worker:
            assert await worker.wait(id) == Failure(TimedOut("1h"))
        row = await stage.row(id)
        first, last = await stage.journal(id)
        assert (first.kind, last.kind) == (INTERRUPTED, FAILURE)
        assert timedelta(hours=1) - 2 * max(doubts) <= last.at - row["started"] < timedelta(hours=1, minutes=2), "as well as it knows the time"
        assert numbers == [1, 2]

    async def test_is_over_for_who_comes_too_late(self, stage: Stage) -> None:
        """The second attempt was due while no worker was there; when one comes, all the time is over."""
        numbers: list[int] = []

        async def fails(_: str) -> Any:
            numbers.append(this_attempt().number)
            return Failure(Refused("no"))

        deployment = deployed(stage, calls_with(schedule_to_close="1h", retry=Retry.constant("200ms", on=(Refused,))), fails)
        async with mortal(stage, deployment, at_entry(ATTEMPT, "after")) as dying:
            id = await dying.start(deployment.workflow("calls"), "a")
            await dying.dead.wait()
        await stage.watcher.execute("select pg_sleep(0.3)")
        await earlier(stage, id, timedelta(hours=1))
        async with stage.worker(deployment=deployment) as worker:
            assert await worker.wait(id) == Failure(TimedOut("1h"))
        assert numbers == [1]

    async def test_is_over_too_for_what_was_cut_short(self, stage: Stage) -> None:
        numbers: list[int] = []

        async def hangs(_: str) -> Any:
            numbers.append(this_attempt().number)
            await asyncio.Event().wait()

        deployment = deployed(stage, calls_with(schedule_to_close="1h"), hangs)
        async with mortal(stage, deployment) as dying:
            id = await dying.start(deployment.workflow("calls"), "a")
            await eventually(lambda: len(numbers) == 1, "it runs")
        await earlier(stage, id, timedelta(hours=1))
        async with stage.worker(deployment=deployment) as worker:
            exit = await worker.wait(id)
        assert isinstance(exit, Defect) and "its schedule_to_close is over" in exit.message
        assert numbers == [1]


async def told(stage: Stage) -> dict[str, bytes]:
    return {row["place"]: row["body"] for row in await stage.watcher.fetch("select place, body from flowdsl.heartbeats")}


class TestHeartbeats:
    async def test_what_was_told_reaches_the_next_attempt_on_another_worker(self, stage: Stage) -> None:
        seen: list[tuple[int, object]] = []

        async def counts(_: str) -> Any:
            attempt = this_attempt()
            seen.append((attempt.number, attempt.last_heartbeat))
            attempt.heartbeat({"row": 5})
            if attempt.number == 1:
                await asyncio.Event().wait()
            return Success("done")

        deployment = deployed(stage, calls_with(heartbeat="10s"), counts)
        async with mortal(stage, deployment) as dying:
            id = await dying.start(deployment.workflow("calls"), "a")

            async def kept() -> bool:
                return await told(stage) == {"0": b'{"row":5}'}

            await eventually(kept, "what it told is kept")
        async with stage.worker(deployment=deployment) as worker:
            assert await worker.wait(id) == Success("done")
        assert seen == [(1, None), (2, {"row": 5})]
        assert await told(stage) == {}

    async def test_dying_before_it_was_written_the_next_knows_the_one_before(self, stage: Stage) -> None:
        seen: list[object] = []
        more = asyncio.Event()

        async def counts(_: str) -> Any:
            attempt = this_attempt()
            seen.append(attempt.last_heartbeat)
            if attempt.number > 1:
                return Success("done")
            attempt.heartbeat(1)
            await more.wait()
            attempt.heartbeat(2)
            asyncio.get_running_loop().call_soon(dying.die)  # its heartbeats know of it by then
            await asyncio.Event().wait()

        deployment = deployed(stage, calls_with(heartbeat="60s"), counts)
        async with mortal(stage, deployment) as dying:
            id = await dying.start(deployment.workflow("calls"), "a")

            async def kept() -> bool:
                return await told(stage) == {"0": b"1"}

            await eventually(kept, "what it told first is kept")
            more.set()
            await dying.dead.wait()
        async with stage.worker(deployment=deployment) as worker:
            assert await worker.wait(id) == Success("done")
        assert seen == [None, 1]

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_the_last_words_of_a_failing_attempt_are_kept(self, stage: Stage, when: When) -> None:
        """However short it ran, and wherever the next one runs: here the execution leaves memory in between, or its worker dies."""
        seen: list[object] = []

        async def fails(_: str) -> Any:
            attempt = this_attempt()
            seen.append(attempt.last_heartbeat)
            for row in range(100):
                attempt.heartbeat({"attempt": attempt.number, "row": row})
            return Failure(Refused("no")) if attempt.number < 3 else Success("done")

        deployment = deployed(stage, calls_with(heartbeat="10m", retry=Retry.constant("500ms", attempts=3, on=(Refused,))), fails)
        dies = at_entry(ATTEMPT, "before", 2) if when == "before" else at_entry(ATTEMPT, "after", 2)
        async with mortal(stage, deployment, dies, warm=0) as dying:
            id = await dying.start(deployment.workflow("calls"), "a")
            await dying.dead.wait()
        async with stage.worker(deployment=deployment) as worker:
            assert await worker.wait(id) == Success("done")
        assert seen[:2] == [None, {"attempt": 1, "row": 99}]
        assert seen[2] in ({"attempt": 1, "row": 99}, {"attempt": 2, "row": 99})  # it died with what it had not yet written
        assert await told(stage) == {}

    @pytest.mark.parametrize("warm", [0, 100])
    async def test_they_are_there_after_a_wait_out_of_memory(self, stage: Stage, warm: int) -> None:
        seen: list[object] = []

        async def fails(_: str) -> Any:
            seen.append(this_attempt().last_heartbeat)
            this_attempt().heartbeat([len(seen)])
            return Failure(Refused("no")) if len(seen) < 3 else Success("done")

        deployment = deployed(stage, calls_with(retry=Retry.constant("300ms", attempts=3, on=(Refused,))), fails)
        async with stage.worker(deployment=deployment, warm=warm, linger=0.01) as worker:
            assert await worker.wait(await worker.start(deployment.workflow("calls"), "a")) == Success("done")
        assert seen == [None, [1], [2]]

    async def test_who_does_not_beat_is_given_up_here_and_made_again(self, stage: Stage) -> None:
        numbers: list[int] = []

        async def silent(_: str) -> Any:
            numbers.append(this_attempt().number)
            await asyncio.Event().wait()

        deployment = deployed(stage, calls_with(heartbeat="50ms", retry=Retry.constant("1ms", attempts=2)), silent)
        async with stage.worker(deployment=deployment) as worker:
            assert await worker.wait(await worker.start(deployment.workflow("calls"), "a")) == Failure(TimedOut("50ms"))
        assert numbers == [1, 2]

    async def test_many_at_once_are_few_statements(self, stage: Stage) -> None:
        """300 attempts that beat all the time: written together, at most once a second."""
        go = asyncio.Event()
        statements: list[int] = []

        async def beats(_: str) -> Any:
            while not go.is_set():
                this_attempt().heartbeat({"some": "progress"})
                await asyncio.sleep(0.01)
            return Success("")

        @workflow("many")
        def many(names: list[str]) -> Steps[list[str], Refused | TimedOut]:
            return (yield from each(names, call, concurrency=300))

        deployment = deployed(stage, many, beats)
        async with stage.worker(deployment=deployment) as worker:
            again = worker.store.again

            async def counted(query: str, *arguments: Any) -> Any:
                if "flowdsl.beat(" in query:
                    statements.append(len(arguments[0]))
                return await again(query, *arguments)

            worker.store.again = counted  # type: ignore[method-assign]
            began = time.monotonic()
            id = await worker.start(many, [str(n) for n in range(300)])

            async def kept() -> bool:
                return len(await told(stage)) == 300 and len(statements) >= 2

            await eventually(kept, "all of it is kept, and written again")
            assert len(statements) <= 2 + (time.monotonic() - began)
            assert max(statements) > 100
            go.set()
            assert isinstance(await worker.wait(id), Success)
        assert await told(stage) == {}

    async def test_a_zombies_late_words_are_not_heard(self, stage: Stage) -> None:
        """Who had it in an earlier epoch changes nothing any more, neither by writing nor by removing."""
        beat, still = "select flowdsl.beat($1, $2, $3, $4, $5)", "select flowdsl.still($1, $2, $3)"
        async with await Store.open(stage.dsn) as store:
            id = (await stage.watcher.fetchrow("insert into flowdsl.executions (id, tenant, workflow, version, request, status, epoch, cause)"
                " values (gen_random_uuid(), 't', 'w', 1, 'null', 'blocked', 2, 'test') returning id"))["id"]  # fmt: skip
            await store.again(beat, [id], ["0"], [1], [1], [b'"old"'])
            assert await told(stage) == {}
            await store.again(beat, [id, id], ["0", "1"], [2, 2], [2, 1], [b'"new"', b'"other"'])
            await store.again(beat, [id], ["0"], [1], [1], [b'"old"'])
            await store.again(still, [id], ["0"], [1])
            assert await told(stage) == {"0": b'"new"', "1": b'"other"'}
            await stage.watcher.execute(
                "update flowdsl.executions set epoch = 1 where id = $1", id
            )  # as a statement sees it that began before the claim
            await store.again(beat, [id], ["0"], [1], [1], [b'"old"'])
            assert (await told(stage))["0"] == b'"new"'
            await store.again(still, [id], ["0"], [2])
            assert await told(stage) == {"1": b'"other"'}

    async def test_what_a_dead_worker_has_left_is_swept(self, stage: Stage) -> None:
        async def done(name: str) -> Any:
            return Success(name)

        deployment = deployed(stage, calls_with(), done)
        async with stage.worker(deployment=deployment) as worker:
            ended = await worker.start(deployment.workflow("calls"), "a")
            await worker.wait(ended)
        # no worker is there any more: it sweeps too
        await stage.watcher.execute(
            "insert into flowdsl.heartbeats (execution, place, epoch, number, body, at) values ($1, '0', 1, 1, '1', now() - interval '1 hour'),"
            " (gen_random_uuid(), '0', 1, 1, '1', now() - interval '1 hour'), ($1, '1', 1, 1, '1', now())",
            ended,
        )
        assert await stage.watcher.fetchval("select flowdsl.sweep_heartbeats(100)") == 2
        assert set(await told(stage)) == {"1"}

    async def test_while_the_store_is_away_they_wait(self, stage: Stage) -> None:
        go = asyncio.Event()

        async def beats(name: str) -> Any:
            this_attempt().heartbeat("told")
            await go.wait()
            return Success(name)

        deployment = deployed(stage, calls_with(), beats)
        async with stage.worker(deployment=deployment) as worker:
            again, refusals = worker.store.again, [ConnectionRefusedError("away")] * 2

            async def away(query: str, *arguments: Any) -> Any:
                if "flowdsl.beat(" in query and refusals:
                    raise refusals.pop()
                return await again(query, *arguments)

            worker.store.again = away  # type: ignore[method-assign]
            id = await worker.start(deployment.workflow("calls"), "a")

            async def kept() -> bool:
                return await told(stage) == {"0": b'"told"'}

            await eventually(kept, "it is written once the store is back")
            go.set()
            assert await worker.wait(id) == Success("a")


class TestStopping:
    async def test_an_attempt_that_is_cut_off_is_made_again_as_if_it_had_not_been(self, stage: Stage) -> None:
        """A6: no entry says that it failed; it has the same number again, and knows what it had told."""
        seen: list[tuple[int, object]] = []

        async def works(_: str) -> Any:
            attempt = this_attempt()
            seen.append((attempt.number, attempt.last_heartbeat))
            if len(seen) == 1:
                attempt.heartbeat("half")
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    raise RuntimeError("a stop is no failure of mine") from None
            return Success("done")

        deployment = deployed(stage, calls_with(), works)
        async with stage.worker(deployment=deployment, grace=0.1) as worker:
            id = await worker.start(deployment.workflow("calls"), "a")
            await eventually(lambda: len(seen) == 1, "it runs")
        assert await stage.journal(id) == []
        async with stage.worker(deployment=deployment) as worker:
            assert await worker.wait(id) == Success("done")
        assert seen == [(1, None), (1, "half")]
        assert await kinds(stage, id) == [SUCCESS]

    async def test_one_that_ends_within_the_grace_is_recorded(self, stage: Stage) -> None:
        began, go = asyncio.Event(), asyncio.Event()

        async def works(name: str) -> Any:
            began.set()
            await go.wait()
            return Success(name)

        deployment = deployed(stage, calls_with(), works)
        async with stage.worker(deployment=deployment, grace=60.0) as worker:
            id = await worker.start(deployment.workflow("calls"), "a")
            await began.wait()
            asyncio.get_running_loop().call_later(0.05, go.set)
        assert await kinds(stage, id) == [SUCCESS]

    async def test_one_that_ignores_it_holds_up_nobody(self, stage: Stage) -> None:
        over, began = asyncio.Event(), asyncio.Event()

        async def stubborn(name: str) -> Any:
            began.set()
            while not over.is_set():
                try:
                    await over.wait()
                except asyncio.CancelledError:
                    continue
            return Success(name)

        deployment = deployed(stage, calls_with(), stubborn)
        with capture_logs() as logs:
            async with stage.worker(deployment=deployment, grace=0.1) as worker:
                id = await worker.start(deployment.workflow("calls"), "a")
                await began.wait()
        assert [log["task"] for log in logs if log["event"] == "activity.left_behind"] == [f"call {id}/0"]
        assert worker.hands.left_behind == 1
        assert (await stage.row(id))["owner"] is None and await stage.journal(id) == []
        over.set()
        await eventually(lambda: worker.hands.left_behind == 0, "it has ended")


class TestAtMostOnce:
    @pytest.mark.parametrize(
        ("kind", "when", "made", "exit"),
        [
            (INTENT, "before", 1, Success("a")),  # nobody has heard of it: it is made
            (INTENT, "after", 0, Failure(Interrupted())),  # it may have been made: nobody can know
            (SUCCESS, "before", 1, Failure(Interrupted())),  # its effect has happened, and nobody heard
            (SUCCESS, "after", 1, Success("a")),
        ],
        ids=["before the intent", "after the intent", "after the effect", "after the answer"],
    )
    async def test_is_never_made_twice(self, stage: Stage, kind: int, when: When, made: int, exit: Any) -> None:
        effects: list[int] = []

        async def effect(name: str) -> Any:
            effects.append(this_attempt().number)
            return Success(name)

        deployment = deployed(stage, once_only, effect)
        async with mortal(stage, deployment, at_entry(kind, when)) as dying:
            id = await dying.start(once_only, "a")
            await dying.dead.wait()
        async with stage.worker(deployment=deployment) as worker:
            assert await worker.wait(id) == exit
        assert len(effects) == made

    async def test_a_stop_that_cuts_it_off_leaves_it_unknown(self, stage: Stage) -> None:
        effects: list[int] = []

        async def effect(name: str) -> Any:
            effects.append(1)
            await asyncio.Event().wait()

        deployment = deployed(stage, once_only, effect)
        async with stage.worker(deployment=deployment, grace=0.1) as worker:
            id = await worker.start(once_only, "a")
            await eventually(lambda: len(effects) == 1, "it runs")
        async with stage.worker(deployment=deployment) as worker:
            assert await worker.wait(id) == Failure(Interrupted())
        assert effects == [1]


class TestLongTimes:
    """A time that is far off has no timer of its own until it is near."""

    @pytest.fixture(autouse=True)
    def often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Rounds, "EVERY", 0.02)

    async def test_are_kept(self, stage: Stage) -> None:
        async def hangs(name: str) -> Any:
            await asyncio.Event().wait()

        deployment = deployed(stage, calls_with(timeout="200ms", retry=Retry.constant("1ms", attempts=1)), hangs)
        async with stage.worker(deployment=deployment) as worker:
            id = await worker.start(deployment.workflow("calls"), "a")
            assert await worker.wait(id) == Failure(TimedOut("200ms"))
            assert worker.hands.rounds.watched == 0

    async def test_what_ends_before_is_watched_no_longer(self, stage: Stage) -> None:
        watched: list[int] = []

        async def ends(name: str) -> Any:
            watched.append(worker.hands.rounds.watched)
            return Success(name)

        deployment = deployed(stage, calls_with(timeout="20s"), ends)
        async with stage.worker(deployment=deployment) as worker:
            assert await worker.wait(await worker.start(deployment.workflow("calls"), "a")) == Success("a")
            assert (watched, worker.hands.rounds.watched) == ([1], 0)


class TestThreads:
    async def test_a_worker_that_has_lost_all_of_them_makes_room_for_another(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """F1: the execution times out all the same; the worker says that it is spent, lets go of what it has, and claims nothing more."""
        for module in ("hands", "replay"):
            monkeypatch.setattr(f"flowdsl.{module}.ABANDON", 0.05)
        release = threading.Event()

        def stuck(name: str) -> Any:
            if name == "stuck":
                release.wait(300)
            return Success(name)

        deployment = deployed(stage, in_threads, stuck)
        with capture_logs() as logs:
            async with stage.worker(deployment=deployment, threads=2) as spent:
                id = await spent.start(in_threads, ["stuck"])
                assert await spent.wait(id) == Failure(TimedOut("50ms"))
                await asyncio.wait_for(spent.spent.wait(), 60)
                intake = spent.intake
                await eventually(lambda: not (spent.residents or intake.asked or intake.coming), "it has let go of everything, and claims nothing")
                ids = [await spent.start(in_threads, ["a", "b"]) for _ in range(3)]
                assert await spent.intake.claim() is False
                assert spent.residents == {}
                async with stage.worker(deployment=deployment) as fresh:
                    assert [await fresh.wait(one) for one in ids] == [Success(["a", "b"])] * 3
                release.set()
        assert [log["threads"] for log in logs if log["event"] == "activity.leaked"] == [1, 2]
        assert [log["event"] for log in logs if log["event"] == "worker.spent"] == ["worker.spent"]


class TestTheLoop:
    async def test_what_blocks_it_is_named_and_costs_no_lease(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """F11: the heart beats on in its own thread."""
        monkeypatch.setattr("flowdsl.postgres.watch.NAMED", 0.3)

        async def blocks(name: str) -> Any:
            began, task = worker.heart._reading, f"call {this_attempt().idempotency_key}"
            for _ in range(6000):
                time.sleep(0.01)  # noqa: ASYNC251 (that is the fault)
                beaten = worker.heart._reading.sent - began.sent > 1.2 * worker.tuning.lease
                if beaten and any(log["event"] == "loop.blocked" and log["task"] == task for log in logs):
                    break
            return Success(name)

        deployment = deployed(stage, calls_with(), blocks)
        with capture_logs() as logs:
            async with stage.worker(deployment=deployment, lease=1.0) as worker:
                id = worker.id
                execution = await worker.start(deployment.workflow("calls"), "a")
                assert await worker.wait(execution) == Success("a")
                assert worker.id == id
                await eventually(lambda: any(log["event"] == "loop.free_again" for log in logs), "it is free again")
        # On a machine that stands still for a moment, others are named beside it.
        (named,) = [log for log in logs if log["event"] == "loop.blocked" and log["task"] == f"call {execution}/0"]
        assert named["where"].startswith("test_attempts.py:") and "in blocks" in named["where"]

    async def test_past_its_lease_the_worker_fences_itself(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """A loop that never comes round would keep for ever what it has: so the heart stops."""
        monkeypatch.setattr("flowdsl.postgres.heart.STUCK", 0.2)
        fit: list[bool] = []

        async def blocks(name: str) -> Any:
            if not fit:
                fit.append(worker.fit)
                for _ in range(6000):
                    time.sleep(0.01)  # noqa: ASYNC251
                    if not worker.fit and any(log["event"] == "worker.stuck" for log in logs):
                        break
                fit.append(worker.fit)
            return Success(name)

        deployment = deployed(stage, calls_with(), blocks)
        with capture_logs() as logs:
            async with stage.worker(deployment=deployment, lease=1.0) as worker:
                execution = await worker.start(deployment.workflow("calls"), "a")
                assert await worker.wait(execution) == Success("a")
        assert fit == [True, False]
        assert "worker.stuck" in [log["event"] for log in logs]


class TestConnections:
    async def test_one_that_is_cut_off_in_a_statement_is_never_used_again(self, stage: Stage) -> None:
        """B4: it may hold a transaction that nobody sees."""
        pids: list[int] = []

        async def asks(name: str) -> Any:
            async with this_attempt().connection() as connection:
                pids.append(await connection.fetchval("select pg_backend_pid()"))
                if len(pids) == 1:
                    await connection.execute("begin")
                    await connection.execute("insert into marks values ('hidden', '')")
                    await connection.execute("select pg_sleep(60)")
                await connection.execute("insert into marks values ('seen', '')")
            return Success(name)

        deployment = deployed(stage, calls_with(timeout="300ms", retry=Retry.constant("1ms", attempts=100)), asks)
        async with stage.worker(deployment=deployment, transactions=1) as worker:
            assert await worker.wait(await worker.start(deployment.workflow("calls"), "a")) == Success("a")

            async def gone() -> bool:
                return not await stage.watcher.fetchval("select count(*) from pg_stat_activity where pid = $1", pids[0])

            await eventually(gone, "its backend is gone")
        assert pids[0] not in pids[1:]
        assert set(await stage.marks()) == {"seen"}

    async def test_waiting_for_one_holds_up_no_recording(self, stage: Stage) -> None:
        """B16: renewing and recording have connections of their own."""
        held, go = asyncio.Event(), asyncio.Event()

        async def asks(name: str) -> Any:
            if name == "plain":
                return Success(name)
            async with this_attempt().connection():
                held.set()
                await go.wait()
            return Success(name)

        deployment = deployed(stage, calls_with(), asks)
        calls = deployment.workflow("calls")
        async with stage.worker(deployment=deployment, transactions=1) as worker:
            ids = [await worker.start(calls, "holds") for _ in range(5)]
            await held.wait()
            assert await worker.wait(await worker.start(calls, "plain")) == Success("plain")
            go.set()
            assert [await worker.wait(id) for id in ids] == [Success("holds")] * 5


class TestSizes:
    async def test_what_is_too_large_leaves_no_row(self, stage: Stage) -> None:
        async def done(name: str) -> Any:
            return Success(name)

        deployment = deployed(stage, calls_with(), done)
        async with stage.worker(deployment=deployment) as worker:
            with pytest.raises(TooLarge, match=r"the input of calls has 3\.0 MiB, the limit is 2\.0 MiB"):
                await worker.start(deployment.workflow("calls"), "x" * (3 << 20))
            assert await stage.watcher.fetchval("select count(*) from flowdsl.executions") == 0

    async def test_an_answer_is_taken_up_to_its_limit_and_recorded_as_too_large_beyond_it(self, stage: Stage) -> None:
        numbers: list[int] = []

        async def large(size: str) -> Any:
            numbers.append(this_attempt().number)
            return Success("x" * int(size))

        deployment = deployed(stage, calls_with(), large, limits=Limits(answer=8 << 20))
        async with stage.worker(deployment=deployment) as worker:
            fits, does_not = [await worker.start(deployment.workflow("calls"), str(size)) for size in ((8 << 20) - 200, 9 << 20)]
            exit = await worker.wait(fits)
            assert isinstance(exit, Success) and len(exit.unwrap()) == (8 << 20) - 200
            exit = await worker.wait(does_not)
            assert isinstance(exit, Defect) and "its answer has 9.0 MiB, the limit is 8.0 MiB" in exit.message
        assert numbers == [1, 1]
        assert await kinds(stage, does_not) == [BUG]


@activity("mark", retry=Retry.constant("10ms", attempts=2), transactional=True)
def mark(name: str) -> Result[str, Never]: ...


@workflow("marks")
def marks(name: str) -> Steps[str, Never]:
    return (yield from mark(name))


class TestTransactional:
    async def test_too_large_an_answer_writes_nothing(self, stage: Stage) -> None:
        async def writes(name: str) -> Any:
            async with this_attempt().transaction() as connection:
                await connection.execute("insert into marks values ($1, '')", name)
                return Success("x" * 2000)

        deployment = Deployment([marks], [bind(mark, writes)], limits=Limits(answer=1000))
        stage.deployments.append(deployment)
        async with stage.worker(deployment=deployment) as worker:
            exit = await worker.wait(await worker.start(marks, "a"))
        assert isinstance(exit, Defect) and "its answer has" in exit.message
        assert await stage.marks() == []
