"""Attempts in virtual time: when there is another one, how long one may take, and what is made of whatever an implementation does."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from itertools import pairwise
from threading import get_ident
from typing import Any, Never

import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from flowdsl import (
    Defect,
    Deployment,
    Died,
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
    all_,
    bind,
    do,
    pure,
    race,
    sleep,
    this_attempt,
    workflow,
)
from flowdsl.attempt import TEXT, raised, returned
from flowdsl.codec import NotJournalable
from flowdsl.journal import ATTEMPT, BUG, FAILURE, INTENT, INTERRUPTED, SUCCESS, Entry
from flowdsl.memory import EPOCH, Memory, Run
from tests.flowdsl.test_activation import Unavailable, Worked, at, kinds, once, performs, retried

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "error::ResourceWarning")


@pytest.fixture(autouse=True)
def nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio" and record.levelname == "ERROR"] == []


@frozen
class Refused:
    why: str


@frozen
class Odd:
    @property
    def retry_after(self) -> timedelta:
        raise ZeroDivisionError("odd")


@activity("call", retry=Retry.constant("10s", attempts=3, on=(Refused,)), timeout="1m")
def call(name: str) -> Result[str, Refused | TimedOut]: ...


@activity("plain", retry=Retry.constant("10s", attempts=3), timeout="1m")
def plain(name: str) -> Result[str, Never]: ...


@activity("many", retry=Retry.constant("1s", attempts=2))
def many(names: list[str]) -> Result[list[str], Refused]: ...


@workflow("calls")
def calls(name: str) -> Steps[str, Refused | TimedOut]:
    return (yield from call(name))


@workflow("plainly")
def plainly(name: str) -> Steps[str, Never]:
    return (yield from plain(name))


@workflow("lists")
def lists(names: list[str]) -> Steps[list[str], Refused]:
    return (yield from many(names))


def nobody(_: Any) -> Any:
    raise AssertionError("not scripted")


DEPLOYMENT = Deployment([calls, plainly, lists], [bind(call, nobody), bind(plain, nobody), bind(many, nobody)])


def run(script: Callable[[Any], Any], of: Any = calls, request: Any = "a", *, crash: Callable[[int], bool] | None = None) -> Run:
    return Memory(DEPLOYMENT, {call: script, plain: script, many: script}, crash=crash).run(of, request)


def in_turn(*scripts: Callable[[Any], Any]) -> Callable[[Any], Any]:
    left = list(scripts)
    return lambda request: left.pop(0)(request)


def throws(error: BaseException) -> Callable[[Any], Any]:
    def throw(_: Any) -> Any:
        raise error

    return throw


def seconds(entry: Entry) -> float:
    return (entry.at - EPOCH).total_seconds()


def due(entry: Entry) -> str:
    return str(json.loads(entry.body)["due"])


class TestWhatAnImplementationSays:
    @pytest.mark.parametrize("after", ["2m", timedelta(minutes=2)])
    def test_when_to_try_again(self, after: Any) -> None:
        done = run(in_turn(throws(RetryAfter(after, "busy")), Success))
        assert done.exit == Success("a")
        assert [(entry.kind, seconds(entry)) for entry in done.journal] == [(ATTEMPT, 0), (SUCCESS, 120)]
        assert b"RetryAfter: again after" in done.journal[0].body and b"busy" in done.journal[0].body

    def test_it_lengthens_the_wait_and_never_shortens_it(self) -> None:
        done = run(in_turn(throws(RetryAfter("1s")), Success))
        assert seconds(done.journal[-1]) == 10

    def test_any_exception_may_say_so(self) -> None:
        class Throttled(Exception):
            retry_after = timedelta(minutes=5)

        assert seconds(run(in_turn(throws(Throttled()), Success)).journal[-1]) == 300

    def test_not_in_other_units(self) -> None:
        """Seconds or milliseconds: who knows. Only a span is one."""

        class Throttled(Exception):
            retry_after = 300

        assert seconds(run(in_turn(throws(Throttled()), Success)).journal[-1]) == 10

    def test_what_is_no_span_is_said(self) -> None:
        done = run(throws(RetryAfter("soon")), plainly)
        assert isinstance(done.exit, Defect)
        assert "'soon' is not a duration" in done.exit.message

    def test_within_the_limit_of_attempts(self) -> None:
        done = run(throws(RetryAfter("1m")))
        assert kinds(done.journal) == [ATTEMPT, ATTEMPT, BUG]

    def test_that_no_other_attempt_would_help(self) -> None:
        done = run(throws(GiveUp("the account is closed")), plainly)
        assert isinstance(done.exit, Defect) and done.exit.message == "GiveUp: the account is closed"
        assert kinds(done.journal) == [BUG] and done.count(plain) == 1

    def test_also_from_within_a_group_of_tasks(self) -> None:
        async def grouped(_: str) -> Any:
            async def give_up() -> None:
                raise GiveUp("closed")

            async with asyncio.TaskGroup() as group:
                group.create_task(give_up())
                group.create_task(asyncio.sleep(10))

        done = run(grouped, plainly)
        assert isinstance(done.exit, Defect) and done.exit.message == "ExceptionGroup of 1: GiveUp: closed"
        assert "give_up" in done.exit.where
        assert done.count(plain) == 1

    def test_a_failure_that_cannot_be_asked_when_is_a_defect(self) -> None:
        @activity("odd", retry=Retry.constant("1s", attempts=2, on=(Odd,)))
        def odd(name: str) -> Result[str, Odd]: ...

        @workflow("oddly")
        def oddly(name: str) -> Steps[str, Odd]:
            return (yield from odd(name))

        done = Memory(Deployment([oddly], [bind(odd, lambda _: Failure(Odd()))])).run(oddly, "a")
        assert isinstance(done.exit, Defect)
        assert "the retry_after of its failure cannot be read: ZeroDivisionError: odd" in done.exit.message


class TestTime:
    async def forever(self, _: str) -> Any:
        await asyncio.Event().wait()

    def test_an_attempt_is_given_up_and_made_again(self) -> None:
        done = run(self.forever)
        assert done.exit == Failure(TimedOut("1m"))
        assert [(entry.kind, seconds(entry)) for entry in done.journal] == [(ATTEMPT, 60), (ATTEMPT, 130), (FAILURE, 200)]

    def test_undeclared_it_is_a_defect(self) -> None:
        assert run(self.forever, plainly).exit == Defect("plain", "timed out after 1m")

    def test_it_is_told_and_may_clean_up(self) -> None:
        told: list[bool] = []

        async def tidy(_: str) -> Any:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                told.append(this_attempt().cancelled)
                return Success("late")

        assert run(tidy).exit == Failure(TimedOut("1m"))
        assert told == [True, True, True]

    def test_one_that_ignores_it_holds_up_the_flow_for_a_while_only(self) -> None:
        over = asyncio.Event()

        async def stubborn(_: str) -> Any:
            for _ in range(2):
                try:
                    await over.wait()
                except asyncio.CancelledError:
                    continue
            return Success("late")

        done = run(in_turn(stubborn, Success))
        assert done.exit == Success("a")
        assert [seconds(entry) for entry in done.journal] == [65, 75]

    def schedule(self, span: str, script: Callable[[Any], Any], retry: Retry | None = None) -> Run:
        limited = call.using(schedule_to_close=span, retry=retry)

        @workflow("limited")
        def within(name: str) -> Steps[str, Refused | TimedOut]:
            return (yield from limited(name))

        return Memory(Deployment([within], [bind(call, nobody)]), {call: script}).run(within, "a")

    def test_all_attempts_together_are_bounded(self) -> None:
        """The second attempt is cut off when the time of all is over, and there is no third."""
        done = self.schedule("90s", self.forever)
        assert done.exit == Failure(TimedOut("1m30s"))
        assert [(entry.kind, seconds(entry)) for entry in done.journal] == [(ATTEMPT, 60), (FAILURE, 90)]

    def test_the_last_of_them_tells_its_deadline(self) -> None:
        deadlines: list[float] = []

        async def slow(_: str) -> Any:
            deadlines.append((this_attempt().deadline - EPOCH).total_seconds())
            await self.forever("")

        self.schedule("90s", slow)
        assert deadlines == [60, 90]

    def test_no_attempt_is_begun_that_would_begin_too_late(self) -> None:
        done = self.schedule("15s", throws(ZeroDivisionError()), Retry.constant("20s"))
        assert isinstance(done.exit, Defect) and "ZeroDivisionError" in done.exit.message
        assert kinds(done.journal) == [BUG]

    def test_an_attempt_that_was_due_while_nobody_was_there_is_not_made_too_late(self) -> None:
        run = Worked(lambda: retried.using(schedule_to_close="1h")(1))
        assert kinds(run.ended("0", Failure(Unavailable(1)), 5).entries) == [ATTEMPT]
        run.again(7200, taken_over=False)
        turn = run.tick(7200)
        assert performs(turn) == [] and kinds(turn.entries) == [BUG]
        assert run.exit == Defect("x.retried", "timed out after 1h over all attempts")

    def test_nor_is_the_first(self) -> None:
        run = Worked(lambda: retried.using(schedule_to_close="1h")(1))
        assert performs(run.last) == [("0", 1)]
        turn = run.again(3600, taken_over=False)
        assert performs(turn) == [] and kinds(turn.entries) == [BUG]

    def test_a_race_is_won_by_who_takes_less_time(self) -> None:
        async def in_ten_minutes(name: str) -> Any:
            await asyncio.sleep(600)
            return Success(name)

        @workflow("races")
        def races(span: str) -> Steps[str, Refused | TimedOut]:
            return (yield from race(call.using(timeout="1h")("call"), sleep(span).map(lambda _: "sleep")))

        memory = Memory(Deployment([races], [bind(call, in_ten_minutes)]))
        assert memory.run(races, "5m").exit == Success("sleep")
        assert memory.run(races, "15m").exit == Success("call")

    def test_branches_take_their_time_side_by_side(self) -> None:
        async def slow(name: str) -> Any:
            await asyncio.sleep(float(name))
            return Success(name)

        @workflow("beside")
        def beside(name: str) -> Steps[tuple[str, str], Refused | TimedOut]:
            return (yield from all_(call("30"), call("20")))

        done = Memory(Deployment([beside], [bind(call, slow)])).run(beside, "")
        assert done.exit == Success(("30", "20"))
        assert [seconds(entry) for entry in done.journal] == [20, 30]

    def test_what_waits_for_the_outside_takes_the_time_that_it_takes(self) -> None:
        """A thread is not jumped over: its answer counts, however short the time-out is in virtual time."""

        async def asks(name: str) -> Any:
            return Success(f"{await asyncio.to_thread(get_ident) != get_ident()}")

        done = run(asks)
        assert done.exit == Success("True")
        assert seconds(done.journal[0]) == 0


class TestHeartbeats:
    def beating(self, script: Callable[[Any], Any], *, crash: Callable[[int], bool] | None = None) -> Run:
        lively = call.using(heartbeat="15s", timeout="1h")

        @workflow("lively")
        def lives(name: str) -> Steps[str, Refused | TimedOut]:
            return (yield from lively(name))

        return Memory(Deployment([lives], [bind(call, nobody)]), {call: script}, crash=crash).run(lives, "a")

    def test_who_beats_lives(self) -> None:
        async def beats(name: str) -> Any:
            for _ in range(100):
                await asyncio.sleep(10)
                this_attempt().heartbeat()
            return Success(name)

        done = self.beating(beats)
        assert done.exit == Success("a")
        assert seconds(done.journal[0]) == 1000

    def test_who_does_not_is_given_up(self) -> None:
        async def once_and_never_again(_: str) -> Any:
            await asyncio.sleep(10)
            this_attempt().heartbeat()
            await asyncio.sleep(3600)

        done = self.beating(once_and_never_again)
        assert done.exit == Failure(TimedOut("15s"))
        assert [seconds(entry) for entry in done.journal] == [25, 60, 95]

    def test_the_next_attempt_knows_what_was_told(self) -> None:
        seen: list[object] = []

        async def goes_on(_: str) -> Any:
            seen.append(this_attempt().last_heartbeat)
            this_attempt().heartbeat({"row": len(seen), "names": ("a", "b")})
            this_attempt().heartbeat()  # alive, and nothing new to tell
            if len(seen) < 3:
                raise ZeroDivisionError
            return Success("done")

        assert self.beating(goes_on).exit == Success("done")
        assert seen == [None, {"row": 1, "names": ["a", "b"]}, {"row": 2, "names": ["a", "b"]}]

    def test_what_is_told_is_what_it_was_then(self) -> None:
        seen: list[object] = []

        def mutates(_: str) -> Any:
            seen.append(this_attempt().last_heartbeat)
            rows = [1]
            this_attempt().heartbeat(rows)
            rows.append(2)
            return Success("") if len(seen) == 2 else Failure(Refused(""))

        self.beating(mutates)
        assert seen == [None, [1]]

    def test_after_a_crash_too(self) -> None:
        """The crash comes with the first entry; the attempt beside it was running, is made again, and knows."""
        seen: list[object] = []

        async def goes_on(name: str) -> Any:
            if name == "other":
                await asyncio.sleep(5)
                return Success(name)
            seen.append(this_attempt().last_heartbeat)
            this_attempt().heartbeat(len(seen))
            await asyncio.sleep(10)
            return Success(name)

        @workflow("both")
        def both(name: str) -> Steps[tuple[str, str], Refused | TimedOut]:
            return (yield from all_(call("one"), call("other")))

        crashes = [True]
        done = Memory(Deployment([both], [bind(call, goes_on)]), crash=lambda _: bool(crashes) and crashes.pop()).run(both, "")
        assert done.exit == Success(("one", "other"))
        assert seen == [None, 1]
        assert kinds(done.journal) == [SUCCESS, INTERRUPTED, SUCCESS]

    @pytest.mark.parametrize(("details", "said"), [(object(), "object"), ("x" * 70_000, "the limit is 64.0 KiB")], ids=["no fact", "too large"])
    def test_what_cannot_be_told_is_refused_there(self, details: object, said: str) -> None:
        refusals: list[Exception] = []

        def tells(name: str) -> Any:
            try:
                this_attempt().heartbeat(details)
            except (NotJournalable, TooLarge) as error:
                refusals.append(error)
            return Success(name)

        assert self.beating(tells).exit == Success("a")
        assert said in str(refusals[0])


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class TestWhateverItDoes:
    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (SystemExit(2), "SystemExit: 2"),
            (StopIteration("x"), "StopIteration: x"),
            (asyncio.CancelledError(), "CancelledError"),
            (type("Odd", (BaseException,), {})("odd"), "Odd: odd"),
            (ExceptionGroup("many", [ValueError("one"), ExceptionGroup("more", [KeyError(2)])]), "ExceptionGroup of 2: ValueError: one; KeyError: 2"),
            (Unspeakable(), "its message cannot be read: ValueError"),
            (Exception("\0 \udc80"), "Exception: \0 \\udc80"),
        ],
        ids=lambda value: type(value).__name__,
    )  # fmt: skip
    @pytest.mark.parametrize("how", ["async", "plain"])
    def test_what_it_raises_is_a_defect(self, error: BaseException, said: str, how: str) -> None:
        async def throw(_: str) -> Any:
            raise error

        if how == "async" and isinstance(error, StopIteration):
            said = "RuntimeError: coroutine raised StopIteration"
        done = run(throw if how == "async" else throws(error), plainly)
        assert isinstance(done.exit, Defect)
        assert said in done.exit.message
        assert kinds(done.journal) == [ATTEMPT, ATTEMPT, BUG]

    @pytest.mark.parametrize("character", ["x", "é", "\U0001f600", "\udc80"])
    def test_a_message_has_at_most_4_kib(self, character: str) -> None:
        for error in (ValueError(character * 100_000), ExceptionGroup("", [ValueError(character * 9000)] * 50)):
            exit = raised(error).exit
            assert isinstance(exit, Defect)
            assert TEXT - 20 < len(exit.message.encode()) <= TEXT

    @pytest.mark.parametrize("answer", [None, "text", ["x" * 100_000]], ids=["None", "a text", "much"])
    def test_what_is_no_result_is_a_defect(self, answer: object) -> None:
        exit = returned(plain, answer).exit
        assert isinstance(exit, Defect) and "return Success(...) or Failure(...)" in exit.message and len(exit.message) < 700

    def test_also_if_it_cannot_be_shown(self) -> None:
        class Shy:
            def __repr__(self) -> str:
                raise ValueError

        exit = returned(plain, Shy()).exit
        assert isinstance(exit, Defect) and "a Shy whose repr raises ValueError" in exit.message

    @pytest.mark.parametrize("how", ["async", "plain"])
    def test_a_person_who_interrupts_is_no_defect(self, how: str) -> None:
        async def throw(_: str) -> Any:
            raise KeyboardInterrupt

        memory = Memory(DEPLOYMENT, {plain: throw if how == "async" else throws(KeyboardInterrupt())})
        id = memory.start(plainly, "a")
        with pytest.raises(KeyboardInterrupt):
            memory.go()
        assert memory.look(id).journal == ()

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (Success(["a", object()]), "value[1] cannot be journaled: expected str, got object"),
            (Success(["a", "b", 3]), "value[2] cannot be journaled: expected str, got int 3"),
            (Failure(KeyError("x")), "KeyError"),
            (Failure(Refused(why=None)), "value.why cannot be journaled: expected str"),  # type: ignore[arg-type]
        ],
        ids=["answer", "deep in it", "undeclared failure", "deep in a failure"],
    )
    def test_what_cannot_be_recorded_is_named_and_not_tried_again(self, answer: Any, said: str) -> None:
        done = run(lambda _: answer, lists, ["a"])
        assert isinstance(done.exit, Defect)
        assert said in done.exit.message
        assert "perform many" in done.exit.where
        assert done.count(many) == 1

    def test_what_it_changes_later_changes_nothing(self) -> None:
        kept: list[list[str]] = []

        def keeps(names: list[str]) -> Any:
            if kept:
                kept[-1].append("changed")
            kept.append(names)
            return Success(names)

        @workflow("twice")
        def twice(names: list[str]) -> Steps[list[list[str]], Refused]:
            first = yield from many(names)
            second = yield from many(names)
            return [names, first, second]

        done = Memory(Deployment([twice], [bind(many, keeps)])).run(twice, ["a"])
        assert done.exit == Success([["a"], ["a"], ["a"]])
        assert done.calls()["many"] == (["a"], ["a"])

    def test_nor_what_it_was_given(self) -> None:
        """Each attempt gets its own: what the first did to its input, the second does not see."""
        seen: list[list[str]] = []

        def spoils(names: list[str]) -> Any:
            seen.append(list(names))
            names.append("spoiled")
            if len(seen) == 1:
                raise ZeroDivisionError
            return Success(names[:1])

        assert run(spoils, lists, ["a"]).exit == Success(["a"])
        assert seen == [["a"], ["a"]]

    def test_what_it_sets_in_its_context_stays_there(self) -> None:
        whose: ContextVar[str] = ContextVar("whose", default="nobody's")
        seen: list[str] = []

        async def sets(name: str) -> Any:
            seen.append(whose.get())
            whose.set(f"{name}'s")
            raise ZeroDivisionError

        run(sets)
        run(lambda name: (seen.append(whose.get()), whose.set(name))[0])
        assert set(seen) == {"nobody's"}


class TestSizes:
    small = evolve(DEPLOYMENT, limits=Limits(request=1000, answer=5000))

    def test_an_input_is_refused_at_the_call_and_nothing_is_done(self) -> None:
        @workflow("passes")
        def passes(size: int) -> Steps[list[str] | Refused | Died, Never]:
            return (yield from many(["x" * size]).isolate().catch(pure))

        memory = Memory(Deployment([passes], [bind(many, Success)]))
        largest = (2 << 20) - len('[""]')
        assert memory.run(passes, largest).exit == Success(["x" * largest])
        done = memory.run(passes, 3 << 20)
        assert isinstance(done.exit, Success)
        died = done.exit.unwrap()
        assert isinstance(died, Died) and "its input has 3.0 MiB, the limit is 2.0 MiB" in died.cause
        assert "perform many at passes" in died.where
        assert kinds(done.journal) == [BUG]

    def test_an_input_of_exactly_that_size_passes(self) -> None:
        memory = Memory(self.small, {many: Success})
        assert isinstance(memory.run(lists, ["x" * 996]).exit, Success)
        with pytest.raises(TooLarge, match="the input of lists has 1001 bytes, the limit is 1000 bytes") as refused:
            memory.run(lists, ["x" * 997])
        assert (refused.value.size, refused.value.limit) == (1001, 1000)

    def test_an_answer_is_recorded_as_too_large_and_not_tried_again(self) -> None:
        done = Memory(self.small, {many: lambda _: Success(["x" * 5000])}).run(lists, ["a"])
        assert isinstance(done.exit, Defect) and "its answer has 4.9 KiB, the limit is 4.9 KiB" in done.exit.message
        assert done.count(many) == 1

    def test_so_is_a_failure(self) -> None:
        done = Memory(self.small, {many: lambda _: Failure(Refused("x" * 5000))}).run(lists, ["a"])
        assert isinstance(done.exit, Defect) and "its failure has 4.9 KiB" in done.exit.message
        assert done.count(many) == 1

    def test_so_is_the_answer_of_a_workflow(self) -> None:
        @workflow("grows")
        def grows(names: list[str]) -> Steps[list[str], Refused]:
            part = yield from many(names)
            return part * 3

        done = Memory(evolve(self.small, workflows=[grows]), {many: lambda _: Success(["x" * 2000])}).run(grows, ["a"])
        assert isinstance(done.exit, Defect) and "5.9 KiB" in done.exit.message

    def test_a_child_is_not_started_with_too_much(self) -> None:
        @workflow("parent")
        def parent(size: int) -> Steps[Any, Refused | Died]:
            child = yield from lists.start(["x" * size]).isolate()
            return child.id

        memory = Memory(evolve(self.small, workflows=[parent]), {many: Success})
        assert isinstance(memory.run(parent, 10).exit, Success)
        exit = memory.run(parent, 2000).exit
        assert isinstance(exit, Failure) and "its input has 2.0 KiB" in exit.failure().cause

    def test_the_defaults_are_as_documented(self) -> None:
        assert Limits() == Limits(request=2 * 1024 * 1024, answer=64 * 1024 * 1024, heartbeat=64 * 1024)


class TestAtMostOnce:
    def test_an_attempt_that_never_began_is_taken_back(self) -> None:
        """It was let out and could not begin: the next worker makes it, and nobody is told that it may have happened."""
        run = Worked(lambda: once(1))
        (one,) = run.last.performs
        run.activation.withdraw(one, at(1))
        assert kinds(run.turn().entries) == [INTERRUPTED]
        turn = run.again(2, taken_over=False)
        assert kinds(turn.entries) == [INTENT] and performs(turn) == [("0", 1)]
        turn = run.again(3)
        assert kinds(turn.entries) == [FAILURE] and run.exit == Failure(Interrupted())

    def test_only_what_was_intended(self) -> None:
        run = Worked(lambda: retried(1))
        (one,) = run.last.performs
        run.activation.withdraw(one, at(1))
        assert run.turn().entries == []

    def test_paused_before_it_began_it_is_made_once_resumed(self) -> None:
        @workflow("once only")
        def once_only(n: int) -> Steps[int, Interrupted | Unavailable]:
            return (yield from once(n))

        memory = Memory(Deployment([once_only], [bind(once, Success)]))
        id = memory.start(once_only, 5)
        memory.pause(id)
        memory.go()
        memory.resume(id)
        memory.go()
        assert memory.look(id).exit == Success(5)
        assert memory.look(id).count(once) == 1


class TestTheLimit:
    """I17: no more attempts than the policy gives, and no shorter waits than it says, whatever crashes."""

    @given(
        attempts=st.integers(1, 6),
        kind=st.sampled_from([Retry.exponential, Retry.linear, Retry.constant]),
        jitter=st.sampled_from([0.0, 0.5]),
        crashes=st.sets(st.integers(0, 12)),
        how=st.lists(st.sampled_from(["failure", "defect", "time-out", "later"]), min_size=8, max_size=8),
    )
    def test_holds(self, attempts: int, kind: Any, jitter: float, crashes: set[int], how: list[str]) -> None:
        policy: Retry = kind("10s", maximum="25s", attempts=attempts, on=(Refused,), jitter=jitter)
        tried = call.using(retry=policy)
        numbers: list[int] = []

        @do
        def beside() -> Steps[str, Never]:
            while True:  # entries at which the worker may die while an attempt runs
                yield from sleep("17s")

        @workflow("tries")
        def tries(name: str) -> Steps[str, Refused | TimedOut]:
            return (yield from race(tried(name), beside()))

        async def fails(name: str) -> Any:
            number = this_attempt().number
            numbers.append(number)
            match how[number - 1]:
                case "failure":
                    return Failure(Refused("no"))
                case "time-out":
                    await asyncio.Event().wait()
                case "later":
                    raise RetryAfter("40s")
            raise ZeroDivisionError

        done = Memory(Deployment([tries], [bind(call, fails)]), crash=lambda n: n in crashes and not crashes.discard(n)).run(tries, "a")
        assert done.exit is not None and not isinstance(done.exit, Success)
        own = [entry for entry in done.journal if entry.step == "0.0.0"]
        assert len(own) == attempts and {entry.kind for entry in own[:-1]} <= {ATTEMPT, INTERRUPTED}
        assert numbers == sorted(set(numbers)) and max(numbers) <= attempts
        for earlier, later in pairwise(own):
            if earlier.kind == ATTEMPT:
                number, kept = json.loads(earlier.body)["number"], earlier.at + policy.delay(json.loads(earlier.body)["number"], 0.0)
                assert later.at >= kept
                if how[number - 1] == "later":
                    assert (later.at - earlier.at).total_seconds() >= 40
