"""One execution at work: attempts and their delays, crashes, time, mail, and what each turn lets out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Never

import pytest
from attrs import frozen
from returns.result import Failure, Result, Success

from flowdsl import (
    Cancelled,
    Defect,
    Interrupted,
    Retry,
    Steps,
    TimedOut,
    Workflow,
    activity,
    all_,
    audit,
    pure,
    race,
    report,
    signal,
    sleep,
    workflow,
)
from flowdsl.activation import Activation, Mail, Turn, child_id
from flowdsl.flow import Execution, Flow
from flowdsl.journal import ATTEMPT, BUG, CANCEL, FAILURE, INTENT, INTERRUPTED, SUCCESS, Entry, codecs_of, decode_exit
from flowdsl.memory import EPOCH

ID = "00000000-0000-0000-0000-000000000001"


@frozen
class Unavailable:
    status: int


@frozen
class Slow:
    retry_after: timedelta


@frozen
class Other:
    pass


@activity("x.plain")
def plain(n: int) -> Result[int, Unavailable]: ...


@activity("x.retried", retry=Retry.exponential("10s", maximum="30s", attempts=4, on=(Unavailable,)))
def retried(n: int) -> Result[int, Unavailable | Other]: ...


@activity("x.asked", retry=Retry.constant("1s", attempts=3, on=(Slow,)))
def asked(n: int) -> Result[int, Slow]: ...


@activity("x.once", crash="fail")
def once(n: int) -> Result[int, Interrupted | Unavailable]: ...


@activity("x.twice", retry=Retry.constant("1s", attempts=2))
def twice(n: int) -> Result[int, Never]: ...


@activity("x.told", retry=Retry.constant("1s", attempts=2))
def told(n: int) -> Result[int, Interrupted]: ...


@workflow("x.part", key="part-{n}")
def part(order: Order) -> Steps[int, Unavailable]:
    return (yield from plain(order.n))


@workflow("x.keyless")
def keyless(n: int) -> Steps[int, Unavailable]:
    return (yield from plain(n))


@frozen
class Order:
    n: int


news = signal("news", int)


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


class Worked:
    """An activation with its journal, and a clock in seconds."""

    def __init__(self, make: Callable[[], Flow[Any, Any]]) -> None:
        @workflow("x.worked")
        def body(n: int) -> Steps[Any, Unavailable | Slow | Other | Interrupted | TimedOut]:
            return (yield from make())

        self.workflow: Workflow[Any, Any, Any] = body
        self.journal: list[Entry] = []
        self.again(0, taken_over=False)

    def again(self, seconds: float, *, taken_over: bool = True, mails: Sequence[Mail] = ()) -> Turn:
        """In the memory of another worker."""
        execution = Execution(ID, "t", "x.worked", None, None, EPOCH)
        request = codecs_of(self.workflow).request.encode(1)
        definitions = {one.name: one for one in (part, keyless, self.workflow)}
        self.activation = Activation(execution, self.workflow, request, definitions.__getitem__)
        self.activation.begin(list(self.journal), mails, at(seconds), taken_over=taken_over)
        return self.turn()

    def turn(self) -> Turn:
        self.last = self.activation.take_turn()
        self.journal += self.last.entries
        return self.last

    def ended(self, step: str, exit: Any, seconds: float, *, timed_out: bool = False) -> Turn:
        assert self.activation.ended(step, exit, at(seconds), timed_out=timed_out)
        return self.turn()

    def tick(self, seconds: float) -> Turn:
        self.activation.tick(at(seconds))
        return self.turn()

    def mail(self, seq: int, value: int, seconds: float = 0, key: str | None = None) -> Turn:
        self.activation.deliver([a_signal(seq, value, key)], at(seconds))
        return self.turn()

    @property
    def exit(self) -> Any:
        return None if self.last.ended is None else decode_exit(self.workflow, self.last.ended.exit)


def a_signal(seq: int, value: int, key: str | None = None) -> Mail:
    return Mail(seq, "signal", "news", key, str(value).encode())


def performs(turn: Turn) -> list[tuple[str, int]]:
    return [(one.step, one.attempts + 1) for one in turn.performs]


def kinds(entries: Sequence[Entry]) -> list[int]:
    return [entry.kind for entry in entries]


def defect_in(entry: Entry) -> Defect:
    assert entry.kind == BUG
    return Defect(**json.loads(entry.body))


# Attempts


def test_a_first_attempt_writes_nothing() -> None:
    run = Worked(lambda: plain(1))
    assert run.journal == [] and performs(run.last) == [("0", 1)]


def test_a_failed_attempt_is_recorded_before_its_delay_and_the_delays_grow_to_their_maximum() -> None:
    run = Worked(lambda: retried(1))
    seconds = 5.0
    for number, delay in ((1, 10), (2, 20), (3, 30)):
        turn = run.ended("0", Failure(Unavailable(503)), seconds)
        assert kinds(turn.entries) == [ATTEMPT] and turn.performs == []
        facts = json.loads(turn.entries[0].body)
        assert facts["number"] == number and facts["failure"] == {"$": "Unavailable", "status": 503}
        assert run.activation.next_due == at(seconds + delay)
        assert performs(run.tick(seconds + delay - 1)) == []
        seconds += delay
        assert performs(run.tick(seconds)) == [("0", number + 1)]
    turn = run.ended("0", Failure(Unavailable(504)), seconds)
    assert kinds(turn.entries) == [FAILURE] and run.exit == Failure(Unavailable(504))


def test_a_declared_failure_that_is_not_picked_is_an_answer() -> None:
    run = Worked(lambda: retried(1))
    assert kinds(run.ended("0", Failure(Other()), 1).entries) == [FAILURE]
    run = Worked(lambda: plain(1))
    assert kinds(run.ended("0", Failure(Unavailable(1)), 1).entries) == [FAILURE]


def test_a_defect_is_tried_again_and_then_is_the_exit() -> None:
    run = Worked(lambda: twice(1))
    assert kinds(run.ended("0", Defect("there", "boom"), 1).entries) == [ATTEMPT]
    run.tick(2)
    assert kinds(run.ended("0", Defect("there", "boom again"), 3).entries) == [BUG]
    assert run.exit == Defect("there", "boom again")


def test_a_time_out_is_tried_again_whether_declared_or_not() -> None:
    @activity("x.timed", retry=Retry.constant("1s", attempts=2))
    def timed(n: int) -> Result[int, TimedOut]: ...

    run = Worked(lambda: timed(1))
    assert kinds(run.ended("0", Failure(TimedOut("5m")), 1, timed_out=True).entries) == [ATTEMPT]
    run.tick(2)
    assert kinds(run.ended("0", Failure(TimedOut("5m")), 3, timed_out=True).entries) == [FAILURE]


@pytest.mark.parametrize(("wished", "waits"), [(60, 60), (0.5, 1)])
def test_a_failures_own_retry_after_lengthens_the_wait(wished: float, waits: float) -> None:
    run = Worked(lambda: asked(1))
    run.ended("0", Failure(Slow(timedelta(seconds=wished))), 5)
    assert run.activation.next_due == at(5 + waits)


def test_no_attempt_begins_after_schedule_to_close() -> None:
    run = Worked(lambda: retried.using(schedule_to_close="25s")(1))
    assert kinds(run.ended("0", Failure(Unavailable(1)), 5).entries) == [ATTEMPT]
    run.tick(15)
    assert kinds(run.ended("0", Failure(Unavailable(2)), 16).entries) == [FAILURE]
    assert run.exit == Failure(Unavailable(2))


def test_jitter_is_drawn_the_same_by_every_worker() -> None:
    policy = Retry.constant("10s", attempts=5, jitter=0.5, on=(Unavailable,))
    one, other = (Worked(lambda: retried.using(retry=policy)(1)) for _ in range(2))
    for run in (one, other):
        run.ended("0", Failure(Unavailable(1)), 0)
    assert one.activation.next_due == other.activation.next_due
    assert one.activation.next_due is not None and at(10) <= one.activation.next_due <= at(15)


def test_a_predicate_that_raises_is_a_defect() -> None:
    policy = Retry.constant("1s", on=lambda failure: failure.missing)
    run = Worked(lambda: retried.using(retry=policy)(1))
    turn = run.ended("0", Failure(Unavailable(1)), 1)
    assert "its retry policy cannot be asked: AttributeError" in defect_in(turn.entries[0]).message


def test_an_endless_wait_does_not_overflow() -> None:
    run = Worked(lambda: all_(sleep(timedelta.max), asked.using(schedule_to_close=timedelta.max)(1)))
    run.ended("0.1.0", Failure(Slow(timedelta.max)), 1)
    assert run.activation.next_due is None or run.activation.next_due.year == 9999


# What the journal cannot hold


def test_an_undeclared_failure_is_a_defect() -> None:
    run = Worked(lambda: plain(1))
    turn = run.ended("0", Failure(Other()), 1)
    assert "got Other" in defect_in(turn.entries[0]).message
    assert isinstance(run.exit, Defect)


def test_an_answer_of_another_type_is_a_defect_with_its_path_and_is_not_tried_again() -> None:
    @activity("x.listed")
    def listed(n: int) -> Result[list[int], Never]: ...

    run = Worked(lambda: listed(1))
    found = defect_in(run.ended("0", Success([1, "two"]), 1).entries[0])
    assert "value[1]" in found.message and "expected int, got str" in found.message
    assert found.where.startswith("perform x.listed at ")


def test_an_argument_of_another_type_is_refused_before_anything_runs() -> None:
    run = Worked(lambda: part(Order("x")))  # type: ignore[arg-type]
    assert performs(run.last) == []
    assert "expected int, got str" in defect_in(run.journal[0]).message


@pytest.mark.parametrize("make", ["start", "keyed start", "send", "audit"])
def test_so_is_all_else_that_leaves(make: str) -> None:
    bad: Any = object()
    flows: dict[str, Callable[[], Flow[Any, Any]]] = {
        "start": lambda: keyless.start(bad),
        "keyed start": lambda: keyless.start(bad, key="k"),
        "send": lambda: news.send("there", bad),
        "audit": lambda: audit("seen", bad),
    }
    run = Worked(flows[make])
    assert "object" in defect_in(run.journal[0]).message
    assert run.last.asks == [] and run.last.children == [] and run.last.mails == [] and not run.last.audits
    assert run.again(1, taken_over=True).entries == []


def test_an_answer_of_the_workflow_that_cannot_be_stored_is_a_defect() -> None:
    @workflow("x.bad")
    def bad(n: int) -> Steps[int, Never]:
        return (yield from pure("text"))  # type: ignore[return-value]

    activation = Activation(Execution(ID, "t", "x.bad", None, None, EPOCH), bad, b"1", lambda _: bad)
    activation.begin([], [], EPOCH)
    ended = activation.take_turn().ended
    assert ended is not None and ended.status == "failed" and b"the answer of x.bad" in ended.exit


# Crashes


def test_a_take_over_records_that_an_attempt_was_cut_short_and_counts_it() -> None:
    run = Worked(lambda: retried(1))
    turn = run.again(3)
    assert kinds(turn.entries) == [INTERRUPTED] and performs(turn) == [("0", 2)]
    run.ended("0", Failure(Unavailable(1)), 4)
    assert run.activation.next_due == at(4 + 20)


def test_a_claim_without_a_death_records_nothing() -> None:
    run = Worked(lambda: retried(1))
    turn = run.again(3, taken_over=False)
    assert turn.entries == [] and performs(turn) == [("0", 1)]


def test_an_activity_in_its_delay_was_not_cut_short() -> None:
    run = Worked(lambda: retried(1))
    run.ended("0", Failure(Unavailable(1)), 0)
    turn = run.again(3)
    assert turn.entries == [] and turn.performs == [] and run.activation.next_due == at(10)
    assert performs(run.tick(10)) == [("0", 2)]


def test_an_activity_that_is_cut_short_too_often_is_a_defect() -> None:
    run = Worked(lambda: twice(1))
    assert performs(run.again(1)) == [("0", 2)]
    turn = run.again(2)
    assert defect_in(turn.entries[0]).message == "attempt 2 was cut short by the death of its worker, and its retry policy gives no more"
    assert turn.performs == []


def test_after_schedule_to_close_it_is_not_run_again() -> None:
    run = Worked(lambda: twice.using(schedule_to_close="1h")(1))
    assert kinds(run.again(3599).entries) == [INTERRUPTED]
    run = Worked(lambda: twice.using(schedule_to_close="1h")(1))
    turn = run.again(3600)
    assert "its schedule_to_close is over" in defect_in(turn.entries[0]).message and turn.performs == []


def test_or_the_failure_interrupted_where_that_is_declared() -> None:
    run = Worked(lambda: told(1))
    run.again(1)
    run.again(2)
    assert run.exit == Failure(Interrupted())


def test_of_two_in_a_race_that_were_cut_short_too_often_the_first_ends_it() -> None:
    run = Worked(lambda: race(told(1), told(2), told(3)))
    run.again(1)
    turn = run.again(2)
    assert kinds(turn.entries) == [FAILURE] and run.exit == Failure(Interrupted())


def test_at_most_once_records_its_intent_first_and_is_not_run_again_after_a_crash() -> None:
    run = Worked(lambda: once(1))
    assert kinds(run.journal) == [INTENT] and performs(run.last) == [("0", 1)]
    turn = run.again(1)
    assert kinds(turn.entries) == [FAILURE] and turn.performs == [] and run.exit == Failure(Interrupted())


def test_at_most_once_is_not_tried_again_either() -> None:
    run = Worked(lambda: once.using(retry=Retry.constant("1s", attempts=9, on=(Unavailable,)))(1))
    assert kinds(run.ended("0", Failure(Unavailable(1)), 1).entries) == [FAILURE]


def test_a_late_answer_goes_nowhere() -> None:
    run = Worked(lambda: race(plain(1), plain(2)))
    turn = run.ended("0.0.0", Success(1), 1)
    assert turn.closed == ["0.1.0"] and run.exit == Success(1)
    assert run.activation.ended("0.1.0", Success(2), at(2)) is False
    assert run.activation.take_turn().entries == []


# Time


def test_a_sleep_ends_when_it_is_due_by_the_entry_that_opened_it() -> None:
    run = Worked(lambda: plain(1).then(lambda _: sleep("1m")))
    run.ended("0", Success(1), 30)
    assert run.activation.next_due == at(90)
    assert run.tick(89).entries == []
    assert kinds(run.tick(90).entries) == [SUCCESS]
    assert run.again(500).entries == []


def test_a_sleep_into_the_past_is_over_at_once() -> None:
    assert Worked(lambda: sleep(EPOCH - timedelta(days=1)).map(lambda _: 5)).exit == Success(5)
    assert Worked(lambda: sleep("0s").map(lambda _: 5)).exit == Success(5)


def test_what_became_due_while_nobody_looked_is_taken_in_that_order() -> None:
    run = Worked(lambda: race(sleep("30m").map(lambda _: 30), sleep("10m").map(lambda _: 10), sleep("20m").map(lambda _: 20)))
    run.again(7200)
    assert run.exit == Success(10)


def test_mail_that_came_meanwhile_goes_before_what_became_due() -> None:
    run = Worked(lambda: race(sleep("1h").map(lambda _: 0), news.receive()))
    run.again(7200, mails=[a_signal(1, 5)])
    assert run.exit == Success(5)


def test_what_is_due_next_forgets_what_was_closed() -> None:
    run = Worked(lambda: race(sleep("1m"), plain(1)).then(lambda _: sleep("1h")))
    run.ended("0.1.0", Success(1), 5)
    assert run.activation.next_due == at(3605)


# Mail


def test_a_signal_that_comes_before_the_wait_is_kept() -> None:
    run = Worked(lambda: plain(1).then(lambda _: news.receive()))
    assert run.mail(1, 7).entries == []
    turn = run.ended("0", Success(1), 1)
    assert turn.takes == [1] and run.exit == Success(7)


def test_mail_is_taken_in_order_by_who_waited_first() -> None:
    run = Worked(lambda: all_(news.receive(), news.receive(), news.receive()))
    run.mail(1, 1)
    run.activation.deliver([a_signal(1, 1), a_signal(2, 2), a_signal(3, 3)], EPOCH)
    turn = run.turn()
    assert turn.takes == [2, 3]
    assert [entry.step for entry in run.journal] == ["0.0.0", "0.1.0", "0.2.0"]
    assert [entry.body for entry in run.journal] == [b"1", b"2", b"3"]


def test_a_look_gives_the_oldest_or_none_and_never_waits() -> None:
    run = Worked(lambda: plain(1).then(lambda _: all_(news.take(), news.take())).map(lambda both: (both[0] or 0) * 10 + (both[1] or 0)))
    run.mail(1, 4)
    run.ended("0", Success(1), 1)
    assert run.exit == Success(40)
    assert [entry.body for entry in run.journal[1:]] == [b"4", b"null"]


def test_a_signal_may_carry_nothing() -> None:
    poke = signal("poke", None)
    run = Worked(lambda: poke.take().then(lambda _: poke.receive()).map(lambda _: 5))
    run.activation.deliver([Mail(1, "signal", "poke", None, b"null")], EPOCH)
    run.turn()
    assert run.exit == Success(5)


def test_a_lost_wait_leaves_the_mail_for_the_next() -> None:
    run = Worked(lambda: news.receive().timeout("1m").attempt().then(lambda _: news.receive()))
    run.tick(60)
    assert run.mail(1, 9, 61).takes == [1]
    assert run.exit == Success(9)


def test_a_signal_of_another_type_is_a_defect_of_the_wait() -> None:
    run = Worked(lambda: news.receive())
    run.activation.deliver([Mail(1, "signal", "news", None, b'"text"')], EPOCH)
    assert "expected int" in defect_in(run.turn().entries[0]).message


def test_a_wait_for_a_key_asks_the_store_and_hears_only_that_key() -> None:
    run = Worked(lambda: news.receive("k"))
    assert [one.step for one in run.last.asks] == ["0"]
    run.activation.registered("0")
    assert run.turn().entries == [] and run.activation.idle
    run.mail(1, 1)
    run.mail(2, 2, key="other")
    assert run.exit is None
    run.mail(3, 3, key="k")
    assert run.exit == Success(3)


def test_a_look_at_a_key_asks_the_store_before_it_says_that_there_is_none() -> None:
    run = Worked(lambda: news.take("k").map(lambda got: got or -1))
    assert [one.step for one in run.last.asks] == ["0"] and run.exit is None
    run.activation.registered("0")
    run.turn()
    assert run.exit == Success(-1)
    run = Worked(lambda: news.take("k").map(lambda got: got or -1))
    run.mail(1, 5, key="k")
    assert run.exit == Success(5)


def test_a_wish_to_cancel_comes_as_mail_and_counts_once() -> None:
    run = Worked(lambda: plain(1).ensure(lambda _: plain(2)))
    run.activation.deliver([Mail(1, "cancel", "", None, b'"enough"'), Mail(2, "cancel", "", None, b'"again"')], EPOCH)
    turn = run.turn()
    assert kinds(turn.entries) == [CANCEL] and turn.takes == [1, 2] and turn.closed == ["0"]
    run.ended("1", Success(1), 1)
    assert run.exit == Cancelled("enough")
    assert run.last.ended is not None and run.last.ended.status == "cancelled"


# Children


def test_a_child_without_key_begins_in_its_parents_turn() -> None:
    run = Worked(lambda: keyless.child(3))
    child = run.last.children[0]
    assert child.id == child_id(f"{ID}/0") and child.request == b"3" and child.step == "0" and not child.detached
    assert run.activation.joins == (child.id,)


def test_a_child_with_key_is_asked_of_the_store() -> None:
    run = Worked(lambda: part.child(Order(3)))
    assert run.last.children == [] and [one.step for one in run.last.asks] == ["0"]
    run.activation.answered("0", json.dumps(ID).encode(), at(1))
    run.turn()
    assert run.activation.joins == (ID,)


def joined() -> tuple[Worked, str]:
    run = Worked(lambda: keyless.child(3).isolate().attempt().map(str))
    return run, run.last.children[0].id


@pytest.mark.parametrize(
    ("exit", "kind"),
    [
        (b'{"success":5}', SUCCESS),
        (b'{"failure":{"$":"Unavailable","status":1}}', FAILURE),
        (b'{"defect":{"where":"w","message":"m"}}', BUG),
        (b'{"cancelled":{"reason":"r"}}', BUG),
    ],
)
def test_a_childs_exit_is_the_joins(exit: bytes, kind: int) -> None:
    run, child = joined()
    run.activation.deliver([Mail(1, "exit", child, None, exit)], EPOCH)
    assert kinds(run.turn().entries) == [kind]


def test_a_child_that_ended_before_and_whose_mail_is_gone_is_found() -> None:
    run, child = joined()
    run.activation.found(child, b'{"success":5}', EPOCH)
    assert kinds(run.turn().entries) == [SUCCESS] and run.activation.joins == ()


# Turns


def test_a_turn_lets_out_only_what_is_still_open() -> None:
    run = Worked(lambda: race(plain(1), news.take()).map(lambda _: 0))
    assert run.last.performs == [] and run.last.closed == ["0.0.0"] and run.exit == Success(0)


def test_nor_does_it_ask_the_store_for_what_is_closed() -> None:
    run = Worked(lambda: race(news.receive("k"), news.take()).map(lambda _: 0))
    assert run.last.asks == [] and run.exit == Success(0)


def test_a_turn_holds_what_is_audited() -> None:
    run = Worked(lambda: audit("looked", Order(5)).map(lambda _: 0))
    assert [(event, json.loads(facts)["n"]) for event, facts in run.last.audits] == [("looked", 5)]


def test_it_is_idle_when_it_only_waits() -> None:
    run = Worked(lambda: plain(1).then(lambda _: sleep("1h")).then(lambda _: quick_look()))
    assert not run.activation.idle
    run.ended("0", Success(1), 1)
    assert run.activation.idle
    run.tick(3601)
    assert not run.activation.idle and [one.step for one in run.last.asks] == ["2"]
    run.activation.answered("2", b"{}", at(3602))
    assert run.turn().ended is not None and not run.activation.idle


def quick_look() -> Flow[Any, Never]:
    return keyless.existing(["k"]).map(str)


def test_it_is_idle_again_when_what_was_out_has_lost() -> None:
    run = Worked(lambda: race(plain(1), news.receive()).then(lambda _: sleep("1h")))
    assert not run.activation.idle
    run.mail(1, 1)
    assert run.activation.idle


def test_what_a_transaction_has_committed_is_folded_and_is_not_in_the_turn_again() -> None:
    run = Worked(lambda: plain(1).then(plain))
    entry = run.activation.prepared(run.last.performs[0], b"7", at(3))
    assert (entry.position, entry.kind, entry.step, entry.at) == (0, SUCCESS, "0", at(3))
    run.activation.recorded(entry, at(3))
    turn = run.turn()
    assert turn.entries == [] and performs(turn) == [("1", 1)]


def test_a_transaction_that_was_cut_short_runs_again() -> None:
    run = Worked(lambda: plain(1))
    one = run.last.performs[0]
    cut = Entry(0, INTERRUPTED, at(3), "0", run.activation.fold.fingerprint(one), "", b'{"number":1}')
    run.activation.recorded(cut, at(3))
    assert performs(run.turn()) == [("0", 2)]


def test_a_cancellation_of_what_has_ended_records_nothing() -> None:
    run = Worked(lambda: pure(1))
    run.activation.cancel("late", at(1))
    assert run.activation.take_turn().entries == []


def test_a_report_is_told_once_and_not_in_replay() -> None:
    run = Worked(lambda: report("here", done=1, total=2).then(lambda _: plain(1)))
    assert [note.note for note in run.last.notes] == ["here"]
    run.ended("0", Failure(Unavailable(1)), 1)
    assert not run.again(2).notes


def test_failed_undos_block_the_execution_and_are_listed() -> None:
    run = Worked(lambda: plain(1).compensate(lambda n: plain(n)).then(lambda _: plain(2)))
    run.ended("0", Success(1), 1)
    run.ended("1", Failure(Unavailable(2)), 2)
    run.ended("2.0.0", Failure(Unavailable(3)), 3)
    ended = run.last.ended
    assert ended is not None and ended.status == "blocked" and "Unavailable(status=3)" in (ended.cause or "")


def test_a_sleep_that_may_not_be_over_is_not_over() -> None:
    """Its worker knows the store's time from below and from above; only what is over for sure ends, and what follows opens by the latest."""

    @workflow("doubtful")
    def doubtful(_: None) -> Steps[None, Never]:
        yield from sleep("10s")
        yield from sleep("10s")

    activation = Activation(
        Execution(ID, "default", "doubtful", None, None, at(0)), doubtful, b"null", lambda name: doubtful, doubt=lambda: timedelta(seconds=3)
    )
    activation.begin([], [], at(0))
    activation.deliver([], at(12))
    assert activation.take_turn().entries == []
    activation.tick(at(9), at(12))
    assert activation.take_turn().entries == []
    activation.tick(at(10), at(13))
    assert [entry.at for entry in activation.take_turn().entries] == [at(13)]
    assert activation.next_due == at(23)
