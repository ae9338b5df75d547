"""One execution in memory, with a host played by hand: when turns leave, what waits for whom, and what is left when it is thrown away."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, Never
from uuid import uuid4

import pytest
from attrs import define

from flowdsl import (
    Deployment,
    Execution,
    GiveUp,
    Interrupted,
    Result,
    Retry,
    RetryAfter,
    Steps,
    Success,
    activity,
    all_,
    bind,
    race,
    signal,
    sleep,
    this_attempt,
    workflow,
)
from flowdsl.activation import Activation, Mail, Turn
from flowdsl.attempt import RunningAttempt, told
from flowdsl.flow import Report
from flowdsl.hands import Hands
from flowdsl.journal import ATTEMPT, BUG, INTENT, INTERRUPTED, SUCCESS, Entry, codecs_of
from flowdsl.machine import Pending
from flowdsl.replay import Resident, Unrecorded

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@define
class Fake:
    """A transaction whose commit is played by hand."""

    connection: str = "a connection"
    asked: int = 0
    rolled_back: int = 0
    entry: Any = None
    answer: Any = None

    async def append(self, entry: Entry) -> bool:
        self.asked += 1
        self.entry = entry
        self.answer = asyncio.get_running_loop().create_future()
        return await self.answer

    async def rollback(self) -> None:
        self.rolled_back += 1


class Played:
    """The loop, with a clock that the test moves: what a span allows is the same however slow the machine is."""

    def __init__(self) -> None:
        self._loop, self.now, self._timers = asyncio.get_running_loop(), 0.0, list[asyncio.TimerHandle]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, what: Callable[..., object], *given: Any) -> asyncio.TimerHandle:
        return self.call_at(self.now + seconds, what, *given)

    def call_at(self, at: float, what: Callable[..., object], *given: Any) -> asyncio.TimerHandle:
        self._timers.append(asyncio.TimerHandle(at, what, given, self._loop))
        return self._timers[-1]

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [one for one in self._timers if not one.cancelled() and one.when() <= until]:
            first = min(due, key=asyncio.TimerHandle.when)
            self._timers.remove(first)
            self.now = max(self.now, first.when())
            first._run()
        self.now = until


class Stage:
    """A host that hands over nothing by itself: the test commits the turns."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.linger, self.fit = deployment, 0.02, True
        self.leaks: list[int] = []
        self.kept: dict[str, Any] = {}
        self.hands = Hands(4, self.leaks.append)
        self.turns: list[tuple[Resident, Turn, str | None]] = []
        self.asks: list[Pending] = []
        self.looks: list[tuple[str, ...]] = []
        self.causes: list[str] = []
        self.transactions: list[Fake] = []
        self.forgotten = 0

    def now(self) -> datetime:
        return BEGAN + timedelta(seconds=asyncio.get_running_loop().time())

    upper = lower = now

    def submit(self, resident: Resident, turn: Turn, state: str | None) -> None:
        assert all(waiting is not resident for waiting, _, _ in self.turns), "two turns of one execution are under way"
        self.turns.append((resident, turn, state))

    def ask(self, resident: Resident, one: Pending) -> None:
        self.asks.append(one)

    def look_for(self, resident: Resident, children: tuple[str, ...]) -> None:
        self.looks.append(children)

    def note(self, resident: Resident, note: Report) -> None: ...

    def gone(self, resident: Resident) -> None:
        self.forgotten += 1

    def broken(self, resident: Resident, error: Exception) -> None:
        self.causes.append(str(error))

    def beaten(self, resident: Resident, attempt: RunningAttempt, *, at_once: bool = False) -> None:
        self.kept[attempt.idempotency_key.partition("/")[2]] = told(attempt.taken())

    def forget(self, resident: Resident, places: Sequence[str]) -> None:
        for place in places:
            self.kept.pop(place, None)

    @asynccontextmanager
    async def connection(self) -> Any:
        yield None

    async def begin_transaction(self, resident: Resident) -> Fake:
        self.transactions.append(Fake())
        return self.transactions[-1]

    def enter(self, name: str, request: Any = 0, mails: tuple[Mail, ...] = (), entries: tuple[Entry, ...] = ()) -> Resident:
        workflow = self.deployment.workflow(name)
        execution = Execution(str(uuid4()), "default", name, None, None, BEGAN)
        activation = Activation(execution, workflow, codecs_of(workflow).request.encode(request), self.deployment.workflow)
        resident = Resident(self, activation, 1, parent=None, scope="")
        activation.begin(entries, mails, self.now())
        resident.go()
        return resident

    def commit(self, fate: str = "done") -> tuple[Turn, str | None]:
        """The fate of the oldest turn under way."""
        resident, turn, state = self.turns.pop(0)
        resident.committed(turn, state, fate)
        return turn, state

    async def next(self) -> tuple[Turn, str | None]:
        """The next turn that is handed over, without its fate."""
        await until(lambda: bool(self.turns))
        return self.turns[0][1:]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.001)


async def settled() -> None:
    """Everything that can happen without time or the host has happened."""
    for _ in range(50):
        await asyncio.sleep(0)


# What it runs

calls: list[str] = []
gates: dict[str, asyncio.Future[Any]] = {}
news = signal("news", int)


@activity("work")
def work(name: str) -> Result[int, Never]: ...


@activity("write", transactional=True)
def write(name: str) -> Result[int, Never]: ...


@activity("in a thread")
def in_a_thread(name: str) -> Result[int, Never]: ...


async def gated(name: str) -> Any:
    calls.append(name)
    gates[name] = asyncio.get_running_loop().create_future()
    return await gates[name]


async def written(name: str) -> Any:
    async with this_attempt().transaction():
        return await gated(name)


def threaded(name: str) -> Any:
    calls.append(f"{name} in {threading.current_thread().name[:4]}")
    return Success(1)


@workflow("two steps")
def two_steps(request: int) -> Steps[int, Never]:
    first = yield from work("a")
    return first + (yield from work("b"))


@workflow("branches")
def branches(request: int) -> Steps[tuple[int, int], Never]:
    return (yield from all_(two_steps(0), work("c")))


@workflow("writes")
def writes(request: int) -> Steps[tuple[int, int, int], Never]:
    return (yield from all_(write("x"), write("y"), work("c")))


@workflow("a race with a write")
def a_race_with_a_write(request: int) -> Steps[int, Never]:
    return (yield from race(write("x"), work("c")))


@workflow("endless")
def endless(request: int) -> Steps[int, Never]:
    while True:
        yield from work(f"endless {request}")


@workflow("busy")
def busy(request: int) -> Steps[tuple[int, int, int], Never]:
    return (yield from all_(endless(1), endless(2), write("x")))


@workflow("waits")
def waits(request: int) -> Steps[int, Never]:
    return (yield from news.receive())


@workflow("joins twice")
def joins_twice(request: int) -> Steps[int, Never]:
    total = 0
    for _ in range(2):
        child = yield from two_steps.start(0)
        total += yield from child.join()
        total += yield from child.join()
    return total


@workflow("sleeps")
def sleeps(request: int) -> Steps[int, Never]:
    yield from sleep(timedelta(milliseconds=request))
    return request


@workflow("calls a stranger")
def calls_a_stranger(request: int) -> Steps[int, Never]:
    contract = {"it": stranger}["it"]
    return (yield from contract("a"))


@activity("nobody bound this")
def stranger(name: str) -> Result[int, Never]: ...


@workflow("threads")
def threads(request: int) -> Steps[int, Never]:
    return (yield from in_a_thread("t"))


pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.fixture(autouse=True)
def nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No task is destroyed while it is pending, no exception is never looked at."""
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio" and record.levelname == "ERROR"] == []


@pytest.fixture
async def stage() -> Any:
    calls.clear()
    gates.clear()
    workflows = [two_steps, branches, writes, a_race_with_a_write, endless, busy, waits, joins_twice, sleeps, threads]
    bindings = [bind(work, gated), bind(write, written), bind(in_a_thread, threaded)]
    stage = Stage(Deployment(workflows, bindings))
    yield stage
    await stage.hands.close()


async def answered(name: str, value: Any = 1) -> None:
    await until(lambda: name in gates)
    gates.pop(name).set_result(Success(value))
    await settled()


class TestTurns:
    async def test_what_follows_leaves_only_once_it_is_committed(self, stage: Stage) -> None:
        stage.enter("two steps")
        await answered("a")
        assert calls == ["a"]
        stage.commit()
        await settled()
        assert calls == ["a", "b"]
        await answered("b")
        turn, state = stage.commit()
        assert (len(turn.entries), state) == (1, "succeeded")
        assert stage.forgotten == 1

    async def test_one_turn_at_a_time_and_answers_gather(self, stage: Stage) -> None:
        stage.enter("branches")
        await answered("c")
        await answered("a")
        assert [len(turn.entries) for _, turn, _ in stage.turns] == [1]
        stage.commit()
        assert [len(turn.entries) for _, turn, _ in stage.turns] == [1]
        assert calls == ["a", "c"]

    @pytest.mark.parametrize("fate", ["left", "fenced"])
    async def test_a_turn_left_out_throws_everything_away(self, stage: Stage, fate: str) -> None:
        resident = stage.enter("branches")
        await answered("a")
        stage.commit(fate)
        assert resident.dropped
        assert resident.attempts == {}
        gates["c"].cancel()
        await settled()
        assert stage.turns == []

    @pytest.mark.parametrize("fate", ["again", "done"])
    async def test_a_suspension_forgets_it(self, stage: Stage, fate: str) -> None:
        stage.enter("waits")
        _, state = stage.commit(fate)
        assert (state, stage.forgotten) == ("suspended", 1)

    async def test_awake_it_waits_for_the_mail_that_it_has_not_seen(self, stage: Stage) -> None:
        """Not a suspension tried again and again until somebody fetches the mail."""
        resident = stage.enter("waits")
        assert stage.commit("awake")[1] == "suspended"
        await asyncio.sleep(5 * stage.linger)
        assert stage.turns == []
        resident.deliver([Mail(1, "signal", "news", None, b"7")])
        turn, state = await stage.next()
        assert ([entry.body for entry in turn.entries], state) == ([b"7"], "succeeded")

    async def test_awake_without_new_mail_it_suspends_again(self, stage: Stage) -> None:
        """The mail that kept it was fetched already when it was told so."""
        resident = stage.enter("waits")
        stage.commit("awake")
        resident.deliver([])
        assert (await stage.next())[1] == "suspended"

    async def test_a_gap_in_the_mailbox_does_not_keep_it_for_ever(self, stage: Stage) -> None:
        resident = stage.enter("waits")
        stage.commit("awake")
        resident.deliver([], 3)
        assert (await stage.next())[1] == "suspended"
        assert resident.activation.seen == 3


class TestTheLease:
    async def test_what_could_not_leave_leaves_once_the_lease_holds_again(self, stage: Stage) -> None:
        stage.enter("two steps")
        await answered("a")
        stage.fit = False
        stage.commit()
        await asyncio.sleep(0.3)
        assert calls == ["a"]
        stage.fit = True
        await until(lambda: calls == ["a", "b"])
        await answered("b")
        assert stage.commit()[1] == "succeeded"

    async def test_a_first_attempt_waits_too(self, stage: Stage) -> None:
        stage.fit = False
        resident = stage.enter("two steps")
        assert calls == []
        stage.fit = True
        await until(lambda: calls == ["a"])
        assert len(resident.attempts) == 1

    async def test_what_was_closed_meanwhile_is_not_begun(self, stage: Stage) -> None:
        stage.fit = False
        resident = stage.enter("branches")
        resident.feed(lambda: resident.activation.cancel("asked to", stage.now()))
        assert stage.commit()[1] == "cancelled"
        stage.fit = True
        await asyncio.sleep(0.3)
        assert calls == []


class TestTransactions:
    async def test_the_position_is_chosen_when_nothing_else_is_under_way(self, stage: Stage) -> None:
        resident = stage.enter("writes")
        await until(lambda: len(gates) == 3)
        await answered("c")
        await answered("x")
        assert [one.asked for one in stage.transactions] == [0, 0]  # the turn with c's entry is under way
        stage.commit()
        await settled()
        (own,) = [one for one in stage.transactions if one.asked]
        assert own.entry.position == 1
        own.answer.set_result(True)
        await settled()
        assert resident.activation.fold.position == 2
        await answered("y")
        (second,) = [one for one in stage.transactions if one.asked and one is not own]
        assert second.entry.position == 2
        second.answer.set_result(True)
        await settled()
        assert stage.commit()[1] == "succeeded"
        assert [one.rolled_back for one in stage.transactions] == [1, 1]

    async def test_what_comes_in_meanwhile_is_folded_behind_it(self, stage: Stage) -> None:
        stage.enter("writes")
        await until(lambda: len(gates) == 3)
        await answered("x")
        await answered("c")
        await answered("y")
        first, second = sorted(stage.transactions, key=lambda one: -one.asked)
        assert (first.asked, second.asked, stage.turns) == (1, 0, [])
        first.answer.set_result(True)
        await settled()
        turn, _ = stage.commit()
        assert [entry.position for entry in turn.entries] == [1]
        await settled()
        assert second.entry.position == 2

    async def test_busy_branches_do_not_keep_it_waiting(self, stage: Stage) -> None:
        """Two branches that always have an answer ready: the third still gets its position after the turn that was under way."""
        stage.enter("busy")
        await until(lambda: len(gates) == 3)
        await answered("endless 1")
        await answered("x")
        for _ in range(3):
            for name in ("endless 1", "endless 2"):
                if name in gates:
                    await answered(name)
            if stage.turns:
                stage.commit()
            await settled()
        assert stage.transactions[0].asked == 1

    async def test_thrown_away_while_two_wait_it_gives_both_connections_back(self, stage: Stage) -> None:
        resident = stage.enter("writes")
        await until(lambda: len(gates) == 3)
        await answered("c")
        await answered("x")
        await answered("y")
        stage.commit("left")
        await until(lambda: [one.rolled_back for one in stage.transactions] == [1, 1])
        assert resident.dropped
        assert [one.asked for one in stage.transactions] == [0, 0]

    async def test_thrown_away_during_the_commit_of_the_first(self, stage: Stage) -> None:
        resident = stage.enter("writes")
        await until(lambda: len(gates) == 3)
        await answered("x")
        await answered("y")
        resident.drop()
        (first,) = [one for one in stage.transactions if one.asked]
        first.answer.set_result(True)
        await until(lambda: [one.rolled_back for one in stage.transactions] == [1, 1])

    async def test_the_loser_of_a_race_rolls_back(self, stage: Stage) -> None:
        stage.enter("a race with a write")
        await until(lambda: len(gates) == 2)
        await answered("c")
        assert stage.commit()[1] == "succeeded"
        await until(lambda: stage.transactions[0].rolled_back == 1)
        assert stage.transactions[0].asked == 0

    async def test_a_twin_throws_it_away(self, stage: Stage) -> None:
        resident = stage.enter("writes")
        await until(lambda: len(gates) == 3)
        await answered("x")
        stage.transactions[0].answer.set_result(False)
        await until(lambda: resident.dropped)

    async def test_a_commit_that_did_not_happen_is_tried_again(self, stage: Stage) -> None:
        resident = stage.enter("a race with a write")
        await until(lambda: len(gates) == 2)
        await answered("x")
        (first,) = stage.transactions
        interrupted = Entry(first.entry.position, 5, stage.now(), first.entry.step, first.entry.fingerprint, "", b'{"number":1}')
        first.answer.set_exception(Unrecorded(interrupted))
        await until(lambda: calls.count("x") == 2)
        assert resident.activation.fold.position == 1
        await answered("x", 5)
        stage.transactions[1].answer.set_result(True)
        await settled()
        assert stage.commit()[1] == "succeeded"

    async def test_but_no_more_often_than_its_policy_says(self, stage: Stage) -> None:
        only = write.using(retry=Retry.constant("1ms", attempts=1))

        @workflow("only once")
        def only_once(request: int) -> Steps[int, Never]:
            return (yield from only("x"))

        stage.deployment = Deployment([only_once], [bind(write, written)])
        stage.enter("only once")
        await answered("x")
        (first,) = stage.transactions
        first.answer.set_exception(Unrecorded(Entry(0, INTERRUPTED, stage.now(), first.entry.step, first.entry.fingerprint, "", b'{"number":1}')))
        turn, state = await stage.next()
        assert ([entry.kind for entry in turn.entries], state, calls) == ([BUG], "failed", ["x"])
        assert b"attempt 1 was not committed, and its retry policy gives no more" in turn.entries[0].body

    async def test_an_answer_after_its_time_is_not_committed(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """The implementation ignored its time-out, and succeeded late: the time-out stands, and nothing is committed."""

        async def stubborn(name: str) -> Any:
            async with this_attempt().transaction():
                try:
                    return await gated(name)
                except asyncio.CancelledError:
                    return Success(1)

        short = write.using(timeout="20ms")

        @workflow("short")
        def short_of_time(request: int) -> Steps[int, Never]:
            return (yield from short("x"))

        stage.deployment = Deployment([short_of_time], [bind(write, stubborn)])
        stage.enter("short")
        turn, _ = await stage.next()
        assert b"timed out" in turn.entries[0].body
        assert [(one.asked, one.rolled_back) for one in stage.transactions] == [(0, 1)]


class TestLeaving:
    async def test_what_only_waits_is_released_at_once(self, stage: Stage) -> None:
        stage.linger = 1e9
        resident = stage.enter("sleeps", 10**9)
        assert stage.turns == []
        resident.leave()
        assert stage.commit()[1] == "released"
        assert resident.dropped

    async def test_what_runs_may_end_and_nothing_new_begins(self, stage: Stage) -> None:
        resident = stage.enter("two steps")
        resident.leave()
        assert stage.turns == []
        await answered("a")
        turn, state = stage.commit()
        assert ([entry.kind for entry in turn.entries], state) == ([SUCCESS], "released")
        assert calls == ["a"]
        assert resident.dropped

    async def test_released_by_force_it_keeps_what_was_answered(self, stage: Stage) -> None:
        """An answer that came while a turn was under way is recorded with the release: its work need not be done again."""
        resident = stage.enter("branches")
        await answered("a")
        await answered("c")
        resident.release()
        stage.commit()
        turn, state = stage.commit()
        assert (len(turn.entries), state) == (1, "released")

    async def test_it_leaves_behind_a_transaction_that_is_being_committed(self, stage: Stage) -> None:
        resident = stage.enter("writes")
        await until(lambda: len(gates) == 3)
        await answered("x")
        resident.release()
        assert stage.turns == []
        stage.transactions[0].answer.set_result(True)
        assert (await stage.next())[1] == "released"
        stage.commit()
        assert resident.dropped


class TestJoins:
    async def test_a_child_is_looked_for_once_a_join(self, stage: Stage) -> None:
        """The second join of a child finds no mail: its exit is read from its row, for each such join anew."""
        resident = stage.enter("joins twice")
        for round in (1, 2):
            turn = stage.commit()[0] if stage.turns else Turn()
            await until(lambda round=round: len(stage.looks) == 2 * round - 1)  # type: ignore[misc]
            (child,) = stage.looks[-1]
            resident.deliver([Mail(round, "exit", child, None, b'{"success":5}')])
            stage.commit()
            await until(lambda round=round: len(stage.looks) == 2 * round)  # type: ignore[misc]
            resident.feed(lambda child=child: resident.activation.found(child, b'{"success":5}', stage.now()))  # type: ignore[misc]
        turn, state = stage.commit()
        assert state == "succeeded"
        assert turn.ended is not None
        assert turn.ended.exit == b'{"success":20}'

    async def test_nothing_is_suspended_while_it_is_looked_for(self, stage: Stage) -> None:
        """What the look finds nobody tells again: suspended meanwhile, it would wait for ever."""
        resident = stage.enter("joins twice")
        if stage.turns:
            stage.commit()
        await until(lambda: len(stage.looks) == 1)
        for _ in range(5):
            resident.deliver([])  # any event: it sets the clock of the suspension anew
            await asyncio.sleep(2 * stage.linger)
        assert stage.turns == []
        resident.looked()
        assert (await stage.next())[1] == "suspended"


class TestImplementations:
    async def test_a_plain_function_runs_in_a_thread(self, stage: Stage) -> None:
        stage.enter("threads")
        assert (await stage.next())[1] == "succeeded"
        assert calls == ["t in flow"]

    @pytest.mark.parametrize(
        "raised", [asyncio.CancelledError("by itself"), BaseExceptionGroup("many", [ValueError()]), type("Odd", (BaseException,), {})("odd")], ids=str
    )
    async def test_whatever_it_raises_is_a_defect(self, stage: Stage, raised: BaseException) -> None:
        """Also what is no `Exception`, and a cancellation that nobody asked for: it must not run out its time instead."""
        stage.enter("two steps")
        await until(lambda: "a" in gates)
        gates.pop("a").set_exception(raised) if not isinstance(raised, asyncio.CancelledError) else gates.pop("a").cancel()
        turn, _ = await stage.next()
        assert type(raised).__name__.encode() in turn.entries[0].body

    async def test_it_may_turn_its_cancellation_into_an_answer_that_nobody_hears(self, stage: Stage) -> None:
        async def stubborn(name: str) -> Any:
            try:
                return await gated(name)
            except asyncio.CancelledError:
                return Success(99)

        stage.deployment = Deployment([branches], [bind(work, stubborn)])
        resident = stage.enter("branches")
        await settled()
        resident.feed(lambda: resident.activation.cancel("asked to", stage.now()))
        turn, state = stage.commit()
        await settled()
        assert (len(turn.entries), state, stage.turns) == (1, "cancelled", [])

    async def test_without_an_implementation_it_needs_a_person(self, stage: Stage) -> None:
        stage.deployment = Deployment([calls_a_stranger], [bind(stranger, gated)])
        del stage.deployment._bindings["nobody bound this"]
        resident = stage.enter("calls a stranger")
        assert resident.dropped
        assert "nobody bound this" in stage.causes[0]

    async def test_what_cannot_be_folded_needs_a_person(self, stage: Stage) -> None:
        resident = stage.enter("two steps")

        def broken() -> None:
            raise KeyError("a bug")

        resident.feed(broken)
        assert resident.dropped
        assert stage.causes == ["'a bug'"]


class TestAttempts:
    """The clocks here are real, but for a few: what must happen is waited for, what must not happen is given the time to."""

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("hands", "replay"):
            monkeypatch.setattr(f"flowdsl.{module}.ABANDON", 0.05)

    def deploy(self, stage: Stage, implementation: Callable[[str], Any], **policies: Any) -> Resident:
        contract = in_a_thread.using(retry=Retry.constant("1ms", attempts=2), **policies)

        @workflow("deployed")
        def deployed(request: int) -> Steps[int, Never]:
            return (yield from contract("t"))

        stage.deployment = Deployment([deployed], [bind(in_a_thread, implementation)])
        return stage.enter("deployed")

    def played(self, stage: Stage) -> Played:
        """The clock of what it carries out from now on."""
        clock = vars(stage.hands.rounds)["loop"] = Played()
        return clock

    async def ends(self, stage: Stage) -> tuple[Turn, str | None]:
        """Commits until it has ended."""
        while True:
            turn, state = await stage.next()
            stage.commit()
            if turn.ended is not None:
                return turn, state

    async def test_who_does_not_beat_is_given_up(self, stage: Stage) -> None:
        async def silent(_: str) -> Any:
            this_attempt().heartbeat("told")
            await asyncio.Event().wait()

        self.deploy(stage, silent, heartbeat="30ms")
        turn, _ = await self.ends(stage)
        assert b"timed out without a heartbeat for 30ms" in turn.entries[0].body

    async def test_a_thread_that_beats_is_not(self, stage: Stage) -> None:
        go = threading.Event()

        def beats(_: str) -> Any:
            while not go.wait(0.005):
                this_attempt().heartbeat({"at": 1})
            return Success(1)

        clock = self.played(stage)
        (attempt,) = self.deploy(stage, beats, heartbeat="1s", timeout="1m").attempts.values()
        await until(lambda: stage.kept == {"0": {"at": 1}})
        for _ in range(10):
            clock.pass_time(0.9)
            await until(lambda: attempt._beat == clock.now)
        assert stage.turns == []
        go.set()
        assert (await self.ends(stage))[1] == "succeeded"
        assert stage.kept == {}  # what it has told is needed by nobody now

    async def test_the_next_attempt_is_told(self, stage: Stage) -> None:
        seen: list[object] = []

        def tells(_: str) -> Any:
            seen.append(this_attempt().last_heartbeat)
            this_attempt().heartbeat([len(seen)])
            if len(seen) == 2:
                return Success(1)
            raise ZeroDivisionError

        self.deploy(stage, tells)
        await stage.next()
        assert stage.kept == {"0": [1]}  # kept before its failure is recorded
        await self.ends(stage)
        assert seen == [None, [1]]

    async def test_a_thread_is_told_that_its_time_is_over_and_may_follow(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("hands", "replay"):
            monkeypatch.setattr(f"flowdsl.{module}.ABANDON", 60.0)  # it does follow, however slowly
        threads: list[threading.Thread] = []

        def follows(_: str) -> Any:
            threads.append(threading.current_thread())
            attempt = this_attempt()
            while not attempt.cancelled:
                pass
            return Success(1)

        self.deploy(stage, follows, timeout="20ms")
        turn, _ = await self.ends(stage)
        assert b"timed out after 20ms" in turn.entries[0].body
        assert stage.leaks == []
        assert len(set(threads)) == 1  # the second attempt found the first one's thread free

    async def test_a_thread_that_never_returns_is_counted_and_the_flow_goes_on(self, stage: Stage) -> None:
        release = threading.Event()

        def stuck(_: str) -> Any:
            release.wait(20)
            return Success(1)

        self.deploy(stage, stuck, timeout="20ms")
        turn, state = await self.ends(stage)
        assert (b"timed out" in turn.entries[0].body, state) == (True, "failed")
        await until(lambda: stage.leaks == [1, 2])
        release.set()
        await until(lambda: stage.hands.leaked == 0)
        assert stage.turns == []  # what it answers now is nobody's

    async def test_leaked_threads_do_not_take_the_place_of_others(self, stage: Stage) -> None:
        release = threading.Event()
        stage.hands = Hands(1, stage.leaks.append)
        self.deploy(stage, lambda _: release.wait(20), timeout="20ms")
        await self.ends(stage)
        await until(lambda: stage.leaks == [1, 2])
        self.deploy(stage, lambda _: Success(1))
        assert (await self.ends(stage))[1] == "succeeded"
        release.set()
        await until(lambda: stage.hands.leaked == 0)

    async def test_waiting_for_a_thread_takes_nothing_of_its_time(self, stage: Stage) -> None:
        release = threading.Event()
        stage.hands = Hands(1, stage.leaks.append)
        clock = self.played(stage)
        self.deploy(stage, lambda _: Success(release.wait(20) and 1), timeout="1m")
        second = self.deploy(stage, lambda _: Success(2), timeout="500ms")
        await settled()
        clock.pass_time(0.6)
        assert [one.over for one in second.attempts.values()] == [None] and stage.turns == []
        release.set()
        assert [(await self.ends(stage))[1] for _ in range(2)] == ["succeeded", "succeeded"]

    async def test_but_of_the_time_of_all_attempts(self, stage: Stage) -> None:
        release = threading.Event()
        stage.hands = Hands(1, stage.leaks.append)
        self.deploy(stage, lambda _: Success(release.wait(20) and 1), timeout="1m")
        self.deploy(stage, lambda _: Success(2), schedule_to_close="50ms")
        turn, _ = await self.ends(stage)
        assert b"timed out after 50ms over all attempts" in turn.entries[0].body
        release.set()
        await self.ends(stage)

    async def test_it_ends_with_the_flow(self, stage: Stage) -> None:
        """Cancelled while its thread goes on: nobody waits for that."""
        release, began = threading.Event(), threading.Event()

        def stuck(_: str) -> Any:
            began.set()
            release.wait(20)
            return Success(1)

        resident = self.deploy(stage, stuck)
        await until(began.is_set)
        resident.feed(lambda: resident.activation.cancel("asked to", stage.now()))
        assert (await self.ends(stage))[1] == "cancelled"
        await until(lambda: stage.leaks == [1])
        release.set()
        await until(lambda: stage.hands.leaked == 0)

    @pytest.mark.parametrize("raised", [SystemExit(2), KeyboardInterrupt(), StopIteration(), GeneratorExit()], ids=repr)
    async def test_whatever_a_thread_raises_is_a_defect(self, stage: Stage, raised: BaseException) -> None:
        def throws(_: str) -> Any:
            raise raised

        self.deploy(stage, throws)
        turn, state = await self.ends(stage)
        assert (type(raised).__name__.encode() in turn.entries[0].body, state) == (True, "failed")

    async def test_a_program_that_exits_ends_its_attempt_only(self, stage: Stage) -> None:
        async def exits(_: str) -> Any:
            sys.exit("usage: …")

        self.deploy(stage, exits)
        turn, _ = await self.ends(stage)
        assert b"SystemExit: usage" in turn.entries[0].body

    async def test_when_there_is_no_thread_to_be_had(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        refuses = [RuntimeError("can't start new thread")]

        class Refusing(threading.Thread):
            def start(self) -> None:
                if refuses:
                    raise refuses.pop()
                super().start()

        monkeypatch.setattr("flowdsl.threads.Thread", Refusing)
        stage.hands = Hands(1, stage.leaks.append)
        self.deploy(stage, lambda _: Success(1))
        turn, _ = await stage.next()
        assert b"can't start new thread" in turn.entries[0].body
        assert (await self.ends(stage))[1] == "succeeded"

    @pytest.mark.parametrize("how", ["async", "plain"])
    async def test_what_one_sets_in_its_context_no_other_sees(self, stage: Stage, how: str) -> None:
        seen: list[str] = []

        def sets(_: str) -> Any:
            seen.append(whose.get())
            whose.set("mine")
            assert this_attempt().number == len(seen)
            raise ZeroDivisionError

        async def also_sets(name: str) -> Any:
            return sets(name)

        ended = asyncio.Event()

        def committed(resident: Resident, turn: Turn, state: str | None) -> None:
            resident.committed(turn, state, "done")
            if turn.ended is not None:
                ended.set()

        loop = asyncio.get_running_loop()  # what follows from an attempt is called in its own context
        stage.submit = lambda resident, turn, state: loop.call_soon(committed, resident, turn, state)  # type: ignore[method-assign]
        self.deploy(stage, sets if how == "plain" else also_sets)
        await asyncio.wait_for(ended.wait(), 60)
        assert seen == ["nobody's", "nobody's"]

    async def test_what_it_says_of_the_next_attempt(self, stage: Stage) -> None:
        answers: list[BaseException] = [RetryAfter("1h", "busy"), GiveUp("closed")]

        async def says(_: str) -> Any:
            raise answers.pop(0)

        resident = self.deploy(stage, says)
        turn, state = await stage.next()
        assert (turn.entries[0].kind, state) == (ATTEMPT, "suspended")
        due = resident.activation.next_due
        assert due is not None and due >= turn.entries[0].at + timedelta(hours=1)
        resident = self.deploy(stage, says)
        stage.turns.clear()
        turn, state = await stage.next()
        assert (turn.entries[0].kind, state) == (BUG, "failed")

    async def test_a_late_answer_of_a_stubborn_one_is_nobodys(self, stage: Stage) -> None:
        over = asyncio.Event()

        async def stubborn(_: str) -> Any:
            while not over.is_set():
                try:
                    await over.wait()
                except asyncio.CancelledError:
                    continue
            return Success(1)

        self.deploy(stage, stubborn, timeout="20ms")
        turn, state = await self.ends(stage)
        assert (b"timed out" in turn.entries[0].body, state) == (True, "failed")
        assert stage.hands.left_behind == 2  # still owned
        over.set()
        await until(lambda: stage.hands.left_behind == 0)
        assert stage.turns == []

    async def test_stopping_is_no_ending(self, stage: Stage) -> None:
        """A6: cut off by the stop of its worker, an attempt leaves no entry; what it told is kept at once."""

        async def works(_: str) -> Any:
            this_attempt().heartbeat("half")
            await asyncio.Event().wait()

        resident = self.deploy(stage, works)
        await until(lambda: len(resident.attempts) == 1 and stage.hands.left_behind == 1)
        await settled()
        stage.kept.clear()
        resident.release()
        turn, state = stage.commit()
        assert (turn.entries, state, stage.kept) == ([], "released", {"0": "half"})
        await until(lambda: stage.hands.left_behind == 0)
        assert stage.turns == []

    async def test_nor_is_a_loop_that_is_torn_down(self, stage: Stage) -> None:
        release = threading.Event()
        resident = self.deploy(stage, lambda _: Success(release.wait(20)))
        await settled()
        (attempt,) = resident.attempts.values()
        assert attempt.task is not None
        attempt.task.cancel()  # as asyncio.run does at its end
        await asyncio.gather(attempt.task, return_exceptions=True)
        assert stage.turns == []
        release.set()


class TestAtMostOnce:
    @pytest.fixture
    async def once_only(self, stage: Stage) -> Resident:
        @workflow("once only")
        def once_only(request: int) -> Steps[int, Interrupted]:
            yield from work("a")
            return (yield from once("b"))

        stage.deployment = Deployment([once_only], [bind(work, gated), bind(once, gated)])
        return stage.enter("once only")

    async def test_the_intent_is_recorded_before_it_begins(self, stage: Stage, once_only: Resident) -> None:
        await answered("a")
        turn, _ = await stage.next()
        assert ([entry.kind for entry in turn.entries], calls) == ([SUCCESS, INTENT], ["a"])
        stage.commit()
        await until(lambda: calls == ["a", "b"])
        await answered("b")
        assert stage.commit()[1] == "succeeded"

    async def test_left_before_it_began_the_intent_is_taken_back(self, stage: Stage, once_only: Resident) -> None:
        """Else the next worker would have to say that nobody knows whether it happened."""
        await answered("a")
        once_only.leave()
        stage.commit()
        turn, state = stage.commit()
        assert ([entry.kind for entry in turn.entries], state, calls) == ([INTERRUPTED], "released", ["a"])

    async def test_also_when_it_is_asked_to_leave_just_before(self, stage: Stage, once_only: Resident) -> None:
        once_only.leave()
        await answered("a")
        turn, state = stage.commit()
        assert ([entry.kind for entry in turn.entries], state) == ([SUCCESS, INTENT, INTERRUPTED], "released")

    async def test_also_while_the_lease_is_in_doubt(self, stage: Stage, once_only: Resident) -> None:
        await answered("a")
        stage.fit = False
        stage.commit()
        once_only.leave()
        turn, state = stage.commit()
        assert ([entry.kind for entry in turn.entries], state) == ([INTERRUPTED], "released")

    async def test_cut_off_after_it_began_nobody_knows(self, stage: Stage, once_only: Resident) -> None:
        await answered("a")
        stage.commit()
        await until(lambda: calls == ["a", "b"])
        once_only.release()
        turn, state = stage.commit()
        assert (turn.entries, state) == ([], "released")


whose: ContextVar[str] = ContextVar("whose", default="nobody's")


@activity("once", crash="fail")
def once(name: str) -> Result[int, Interrupted]: ...
