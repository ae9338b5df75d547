"""The fake: scripts, virtual time, what comes from outside, deaths of the process, and the story of it all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Never

import pytest
from attrs import frozen
from returns.result import Failure, Result, Success

from flowdsl import (
    Cancelled,
    Concurrency,
    Defect,
    Deployment,
    GiveUp,
    Interrupted,
    RateLimit,
    Retry,
    RetryAfter,
    Steps,
    TimedOut,
    activity,
    all_,
    bind,
    each,
    report,
    saga,
    signal,
    sleep,
    this_attempt,
    workflow,
)
from flowdsl.journal import INTERRUPTED
from flowdsl.story import Called, Died, Folded, Recorded
from flowdsl.testing import Endless, Fake, Run, ScriptError, Unscripted


@frozen
class Order:
    id: int


@frozen
class Receipt:
    number: str


@frozen
class Declined:
    why: str


@frozen
class Unavailable:
    status: int


@activity("fake.fetch_page")
def fetch_page(n: int) -> Result[int, Never]: ...


@activity("fake.save_page", retry=Retry.constant("1s", on=(Unavailable,)))
def save_page(n: int) -> Result[None, Unavailable]: ...


@activity("fake.charge")
def charge(order: Order) -> Result[Receipt, Declined]: ...


@activity("fake.refund")
def refund(receipt: Receipt) -> Result[None, Never]: ...


@activity("fake.ship", retry=Retry.constant("1m", attempts=3, on=(Unavailable,)))
def ship(order: Order) -> Result[str, Unavailable]: ...


@activity("fake.once", crash="fail")
def once(n: int) -> Result[int, Interrupted]: ...


approved = signal("fake.approved", str)


@workflow("fake.page")
def page(n: int) -> Steps[None, Unavailable]:
    found = yield from fetch_page(n)
    yield from save_page(found)


@workflow("fake.order")
def order(asked: Order) -> Steps[str, Declined | Unavailable]:
    yield from charge(asked).compensate(refund)
    return (yield from ship(asked))


@workflow("fake.approval")
def approval(hours: int) -> Steps[str, Never]:
    yield from sleep(timedelta(hours=hours))
    return (yield from approved.receive())


@workflow("fake.batch")
def batch(count: int) -> Steps[list[str], Declined | Unavailable]:
    return (yield from each([Order(n) for n in range(count)], order.child))


@workflow("fake.patient")
def patient(to: str) -> Steps[str, Never]:
    return (yield from approved.receive(to))


def shop(fake: Fake) -> Fake:
    return fake.on(charge, lambda asked: Success(Receipt(f"r{asked.id}"))).on(refund, Success(None)).on(ship, Success("T"))


# Scripts


def test_it_reads_like_a_story(fake: Fake) -> None:
    fake.on(fetch_page, lambda n: Success(n + 2)).on(save_page, Success(None)).fails_once(save_page, Unavailable(503))
    run = fake.run(page, 1)
    assert run.exit == Success(None) and run.status == "succeeded" and run.cause is None
    assert run.story() == ["fetch_page", "save_page!", "sleep 1s", "save_page"]
    assert run.calls(save_page) == (3, 3) and run.count(save_page) == 2 and run.count(charge) == 0
    assert run.calls() == {"fake.fetch_page": (1,), "fake.save_page": (3, 3)}
    assert run.keys(save_page) == (f"{run.id}/1", f"{run.id}/1") and run.keys(fetch_page) == (f"{run.id}/0",)
    assert run.elapsed == timedelta(seconds=1) and [entry.position for entry in run.journal] == [0, 1, 2]


@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_several_answers_follow_each_other_and_the_last_stays(fake: Fake, times: int) -> None:
    @workflow("fake.polls")
    def polls(n: int) -> Steps[list[int], Never]:
        found: list[int] = []
        for _ in range(n):
            found.append((yield from fetch_page(0)))
        return found

    fake.on(fetch_page, Success(1), lambda n: Success(2), Success(3))
    assert fake.run(polls, times).exit == Success([1, 2, 3, 3, 3][:times])


def test_an_exception_is_raised_and_tried_again_by_the_policy(fake: Fake) -> None:
    fake.on(charge, RuntimeError("down"), OSError, Success(Receipt("r"))).on(ship, Success("T"))
    run = fake.run(order, Order(1))
    assert run.exit == Success("T") and run.story() == ["charge!", "sleep 1s", "charge!", "sleep 2s", "charge", "ship"]


def test_failures_come_first_and_are_counted(fake: Fake) -> None:
    shop(fake).fails(ship, Unavailable(1), times=2).fails(ship, GiveUp("no"))
    run = fake.run(order, Order(1))
    assert isinstance(run.exit, Defect) and "GiveUp: no" in run.exit.message and run.count(ship) == 3
    assert run.story()[-1] == "refund"
    assert fake.run(order, Order(2)).exit == Success("T"), "they are used up"


def test_a_wished_wait_is_kept(fake: Fake) -> None:
    shop(fake).fails_once(ship, RetryAfter("1h"))
    assert fake.run(order, Order(1)).elapsed == timedelta(hours=1)


def test_an_answer_may_be_async_and_may_ask_about_its_attempt(fake: Fake) -> None:
    seen: list[tuple[str, int]] = []

    async def charged(asked: Order) -> Result[Receipt, Declined]:
        import asyncio

        seen.append((this_attempt().idempotency_key, this_attempt().number))
        await asyncio.sleep(90)
        return Success(Receipt("r"))

    run = shop(fake).on(charge, charged).run(order, Order(1))
    assert run.exit == Success("T") and seen == [(f"{run.id}/0", 1)] and run.elapsed == timedelta(seconds=90)


def test_what_is_not_scripted_falls_back_on_the_deployment() -> None:
    deployment = Deployment([page], [bind(fetch_page, lambda n: Success(n * 10)), bind(save_page, lambda n: Success(None))])
    fake = Fake(deployment).on(save_page, Success(None))
    run = fake.fails_once(fetch_page, RuntimeError("x")).run(page, 4)
    assert run.calls(save_page) == (40,) and run.count(fetch_page) == 2


def test_contracts_that_nothing_names_are_found_when_they_are_asked(fake: Fake) -> None:
    table: dict[str, Any] = {"charge": charge, "child": order}

    @workflow("fake.by_table")
    def by_table(n: int) -> Steps[Any, Declined | Unavailable]:
        receipt = yield from table["charge"](Order(n))
        yield from table["child"].child(Order(n))
        return str(receipt)

    shop(fake)
    with pytest.raises(ScriptError, match=r"does not know the workflow 'fake.order'.*fake.knows\(the_workflow\)"):
        fake.run(by_table, 1)
    assert shop(Fake()).knows(order).run(by_table, 1).count(ship) == 1


def test_other_policies_for_one_call_are_the_same_activity(fake: Fake) -> None:
    @workflow("fake.using")
    def using(n: int) -> Steps[None, Unavailable]:
        yield from save_page.using(retry=Retry.constant("1h", on=(Unavailable,)))(n)

    run = fake.on(save_page.using(timeout="1s"), Success(None)).fails_once(save_page, Unavailable(1)).run(using, 1)
    assert run.story() == ["save_page!", "sleep 1h", "save_page"] and run.count(save_page) == 2


# Time


def test_an_attempt_takes_its_time(fake: Fake) -> None:
    run = shop(fake).takes(charge, "3s").takes(ship, timedelta(minutes=2)).run(order, Order(1))
    assert run.exit == Success("T") and run.elapsed == timedelta(minutes=2, seconds=3)


def test_what_takes_too_long_is_given_up_and_tried_again(fake: Fake) -> None:
    run = shop(fake).takes(ship, "6m").run(order, Order(1))
    assert isinstance(run.exit, Defect) and run.exit.message == "timed out after 5m"
    assert run.elapsed == 3 * timedelta(minutes=5) + 2 * timedelta(minutes=1) and run.story()[-1] == "refund"


def test_the_time_of_all_attempts_is_bounded_and_the_failure_declared(fake: Fake) -> None:
    @activity("fake.hurried", schedule_to_close="10s", retry=Retry.constant("4s"))
    def hurried(n: int) -> Result[int, TimedOut]: ...

    @workflow("fake.hurry")
    def hurry(n: int) -> Steps[int, TimedOut]:
        return (yield from hurried(n))

    assert fake.on(hurried, Success(1)).takes(hurried, "11s").run(hurry, 1).exit == Failure(TimedOut("10s"))
    assert Fake().on(hurried, RuntimeError("x")).takes(hurried, "1s").run(hurry, 1).count(hurried) == 2


def test_heartbeats_are_heard_and_their_silence_too(fake: Fake) -> None:
    @activity("fake.beating", heartbeat="10s", retry=Retry.constant("1s", attempts=2))
    def beating(n: int) -> Result[int, TimedOut]: ...

    @workflow("fake.beats")
    def beats(n: int) -> Steps[int, TimedOut]:
        return (yield from beating(n))

    async def silent(n: int) -> Result[int, TimedOut]:
        import asyncio

        if this_attempt().last_heartbeat is not None:
            return Success(int(str(this_attempt().last_heartbeat)))
        this_attempt().heartbeat(7)
        await asyncio.sleep(11)
        raise AssertionError("it is given up before")

    assert fake.on(beating, silent).run(beats, 1).exit == Success(7)
    assert Fake().on(beating, Success(1)).takes(beating, "1m").run(beats, 1).exit == Success(1), "what is said to take long does beat"


def test_budgets_hold_in_virtual_time(fake: Fake) -> None:
    @activity("fake.limited", budget=(RateLimit("source", 1, "1m"), Concurrency("slots", 1)))
    def limited(n: int) -> Result[int, Never]: ...

    @workflow("fake.limits")
    def limits(n: int) -> Steps[list[int], Never]:
        return (yield from each(range(n), limited))

    run = fake.on(limited, Success).takes(limited, "90s").run(limits, 4)
    assert run.exit == Success([0, 1, 2, 3]) and run.elapsed == 4 * timedelta(seconds=90)


def test_a_run_may_be_looked_at_before_its_end(fake: Fake) -> None:
    run = fake.run(approval, 5, until="2h")
    assert run.exit is None and run.waits == ("sleep",) and run.elapsed == timedelta(hours=2) and run.status == "open"


def test_a_run_without_an_end_is_refused(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    @workflow("fake.forever")
    def forever(n: int) -> Steps[Never, Never]:
        while True:
            yield from sleep("1h")

    monkeypatch.setattr("flowdsl.testing.fake.ENOUGH", 200)
    with pytest.raises(Endless, match=r'fake.forever does not come to rest: 200 turns in 8d8h.* fake.run\(..., until="1d"\)'):
        fake.run(forever, 1)
    assert len(Fake().run(forever, 1, until="1d").journal) == 24


# Signals


def test_an_early_signal_is_kept_and_a_late_one_wakes(fake: Fake) -> None:
    assert fake.signal(approved, "ann").run(approval, 3).elapsed == timedelta(hours=3)
    assert fake.signal(approved, "bob", at="1h").run(approval, 3).elapsed == timedelta(hours=3)
    run = fake.signal(approved, "cleo", at="5h").run(approval, 3)
    assert run.exit == Success("cleo") and run.elapsed == timedelta(hours=5)


def test_without_the_signal_it_waits(fake: Fake) -> None:
    run = fake.run(approval, 3)
    assert run.exit is None and run.waits == ("signal fake.approved",) and run.status == "open"
    assert str(run).endswith("It has not ended. It waits for signal fake.approved; nothing more happened after 3h.")


def test_the_same_delivery_acts_once(fake: Fake) -> None:
    @workflow("fake.two")
    def two(n: int) -> Steps[tuple[str, str], Never]:
        one = yield from approved.receive()
        return one, (yield from approved.receive())

    fake.signal(approved, "a", delivery="d").signal(approved, "b", at="1m", delivery="d")
    waiting = fake.run(two, 1)
    assert waiting.exit is None and "arrives again, with the same delivery: it acts once" in str(waiting)
    assert fake.signal(approved, "a").signal(approved, "b", at="1m").run(two, 1).exit == Success(("a", "b"))


def test_a_signal_to_a_key_finds_whoever_waits_for_it_and_wakes_an_older_run(fake: Fake) -> None:
    waiting = fake.run(patient, "order-7")
    assert waiting.waits == ("signal fake.approved for order-7",)
    fake.signal(approved, "ann", at="1h", to="order-7").run(approval, 0)
    assert fake.look(waiting).exit == Success("ann")
    assert fake.signal(approved, "bob", to="order-8").run(patient, "order-8").exit == Success("bob")


def test_a_signal_that_comes_when_all_is_over_changes_nothing(fake: Fake) -> None:
    run = fake.signal(approved, "ann").signal(approved, "bob", at="9h").run(approval, 3)
    assert run.exit == Success("ann") and run.elapsed == timedelta(hours=3)
    assert "arrives when all is over: nobody will ever take it" in str(run)


def test_what_comes_from_outside_is_for_one_run(fake: Fake) -> None:
    assert fake.signal(approved, "ann").run(approval, 3).exit == Success("ann")
    assert fake.run(approval, 3).exit is None


# Cancellations


def test_a_cancellation_at_a_time(fake: Fake) -> None:
    run = shop(fake).takes(ship, "1m").cancel(at="3s", reason="enough").run(order, Order(1))
    assert run.exit == Cancelled("enough") and run.calls(refund) == (Receipt("r1"),)
    assert "ship is given up while it is under way: it acts all the same, and its answer, Success('T'), is dropped" in str(run)


@pytest.mark.parametrize("step", [ship, "ship", "fake.ship"])
def test_a_cancellation_when_a_step_has_begun(fake: Fake, step: Any) -> None:
    run = shop(fake).cancel(step=step).run(order, Order(1))
    assert run.exit == Cancelled("asked to") and run.count(ship) == 1 and run.story() == ["charge", "cancel", "refund"]


def test_a_cancellation_that_ends_it_while_an_attempt_is_under_way(fake: Fake) -> None:
    run = fake.on(fetch_page, Success(1)).cancel(step=fetch_page).run(page, 1)
    assert run.exit == Cancelled("asked to") and run.count(fetch_page) == 1 and run.story() == ["cancel"]


def test_a_cancellation_reaches_the_children(fake: Fake) -> None:
    run = shop(fake).takes(ship, "1m").cancel(at="3s").run(batch, 2)
    assert run.exit == Cancelled("asked to") and [child.exit for child in run.children] == [Cancelled("cancelled by its parent")] * 2
    assert run.count(refund) == 2


def test_a_cancellation_that_waits_for_an_undo_to_be_registered(fake: Fake) -> None:
    """The charge is recorded first: its undo would be lost otherwise."""
    run = shop(fake).takes(charge, "10s").cancel(at="3s").run(order, Order(1))
    assert isinstance(run.exit, Cancelled) and run.count(charge) == run.count(refund) == 1


# Deaths of the process


def outcome(run: Run) -> tuple[Any, list[str]]:
    return run.exit, run.story()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", [1, 2, 3, 4, 5])
def test_a_death_anywhere_changes_nothing_that_is_recorded(when: str, place: int) -> None:
    def run_of(plan: Callable[[Fake], object]) -> Run:
        fake = shop(Fake()).fails_once(ship, Unavailable(503))
        plan(fake)
        return fake.run(order, Order(1))

    kwargs: dict[str, Any] = {when: place}
    whole, cut = run_of(lambda fake: None), run_of(lambda fake: fake.crash(**kwargs))
    assert cut.exit == whole.exit
    died = "the process dies here" in str(cut)
    assert died or f"this was planned and never happened: crash({when}={place})" in str(cut)
    assert died is (place <= 3)


def test_a_death_before_an_entry_loses_the_answer_and_keeps_the_key(fake: Fake) -> None:
    run = shop(fake).crash(before="charge").run(order, Order(1))
    assert run.exit == Success("T") and run.count(charge) == 2 and len(set(run.keys(charge))) == 1
    told = str(run)
    assert "the process dies here, before this was recorded as #0; charge has acted, and its answer is lost" in told
    assert "attempt 2: the same step again, with the same key …0001/0" in told


def test_a_death_after_an_entry_calls_nothing_again(fake: Fake) -> None:
    run = shop(fake).crash(after=charge).run(order, Order(1))
    assert run.exit == Success("T") and run.count(charge) == 1
    assert "the process dies here, just after #0 was recorded" in str(run)
    assert INTERRUPTED in {entry.kind for entry in run.journal}, "nobody knows whether the next one had begun"


def test_an_activity_that_runs_at_most_once_is_not_run_again(fake: Fake) -> None:
    @workflow("fake.careful")
    def careful(n: int) -> Steps[int, Interrupted]:
        return (yield from once(n))

    run = fake.on(once, Success(1)).crash(before="once").run(careful, 1)
    assert run.exit == Failure(Interrupted()) and run.count(once) == 1


def test_a_death_takes_the_children_too_and_they_go_on(fake: Fake) -> None:
    whole, cut = shop(Fake()).run(batch, 3), shop(fake).crash(before=5).crash(after=7).run(batch, 3)
    assert cut.exit == whole.exit == Success(["T"] * 3) and str(cut).count("the process dies here") == 2
    assert sorted(cut.story()) == sorted(whole.story())
    assert all(len(set(child.keys(charge))) == 1 for child in cut.children)


@pytest.mark.parametrize("count", [1, 4])
def test_deaths_everywhere(count: int) -> None:
    whole, cut = shop(Fake()).run(batch, count), shop(Fake()).takes(ship, "3s").crash(everywhere=True).run(batch, count)
    assert cut.exit == whole.exit and sorted(cut.story()) == sorted(whole.story())
    assert str(cut).count("the process dies here") >= 7, "none at the last attempt of an activity, so there are less with many at once"
    assert max(len(child.keys(charge)) for child in cut.children) <= 5


def lifeless(run: Run) -> list[Recorded | Called]:
    """What happened between a death and the moment when another process was there."""
    found: list[Recorded | Called] = []
    dead = False
    for one in run.happenings():
        dead = isinstance(one, Died) or (dead and not isinstance(one, Folded))
        if dead and isinstance(one, (Recorded, Called)):
            found.append(one)
    return found


@pytest.mark.parametrize("place", range(1, 9))
def test_who_is_dead_does_nothing_more(fake: Fake, place: int) -> None:
    """The first turn of each child records something: a death in one of them is a death of the parent's turn and of its siblings."""

    @workflow("fake.teller")
    def teller(n: int) -> Steps[int, Never]:
        yield from approved.send(f"nobody {n}", "x")
        return n

    @workflow("fake.tellers")
    def tellers(n: int) -> Steps[list[int], Never]:
        return (yield from each(range(n), teller.child))

    run = fake.crash(after=place).crash(before=place + 1).run(tellers, 3)
    assert run.exit == Success([0, 1, 2]) and not lifeless(run) and "the process dies here" in str(run)
    assert not lifeless(Fake().crash(everywhere=True).run(tellers, 3))


def test_deaths_everywhere_and_failures_signals_and_a_cancellation(fake: Fake) -> None:
    fake.signal(approved, "ann", at="1h").crash(everywhere=True)
    assert fake.run(approval, 3).exit == Success("ann")
    run = shop(fake).fails(ship, Unavailable(1), times=1).takes(ship, "2s").cancel(at="1s").crash(everywhere=True).run(order, Order(1))
    assert isinstance(run.exit, Cancelled) and run.calls(refund)[-1:] == (Receipt("r1"),)


def test_it_finds_a_page_that_is_counted_twice(fake: Fake) -> None:
    """What the fake is for: an effect that is not idempotent shows under a crash."""
    counted: list[int] = []

    def fetched(n: int) -> Result[int, Never]:
        counted.append(n)
        return Success(n)

    fake.on(fetch_page, fetched).on(save_page, Success(None)).crash(before="fetch_page").run(page, 1)
    assert counted == [1, 1]


# Keys and several runs


def test_starting_twice_with_a_key_is_once(fake: Fake) -> None:
    shop(fake)
    one, two = fake.run(order, Order(1), key="k"), fake.run(order, Order(1), key="k")
    assert one.id == two.id and two.count(charge) == 1 and fake.run(order, Order(1), key="other").id != one.id


# Children, undos, notes, what blocks


def test_children_are_runs_of_their_own(fake: Fake) -> None:
    run = shop(fake).run(batch, 2)
    first, second = run.children
    assert first.calls(charge) == (Order(0),) and second.calls(charge) == (Order(1),) and run.calls(charge) == (Order(0), Order(1))
    assert first.children == () and first.workflow is order


def test_what_grandchildren_do_is_part_of_it(fake: Fake) -> None:
    @workflow("fake.whole")
    def whole(n: int) -> Steps[list[str], Declined | Unavailable]:
        return (yield from batch.child(n))

    run = shop(fake).takes(ship, "3s").run(whole, 2)
    assert run.count(ship) == 2 and [child.count(ship) for child in run.children] == [2]
    assert "       3s              order 2: ends: Success('T')" in str(run)


def test_an_undo_that_fails_blocks_it(fake: Fake) -> None:
    @workflow("fake.stuck")
    def stuck(n: int) -> Steps[str, Declined | Unavailable]:
        return (yield from saga(order(Order(n))))

    run = shop(fake).on(refund, RuntimeError("no")).fails(ship, Unavailable(1), times=3).run(stuck, 1)
    assert run.status == "blocked" and "undos failed" in (run.cause or "") and "needs a person" in str(run)


def test_notes_are_kept(fake: Fake) -> None:
    @workflow("fake.notes")
    def notes(n: int) -> Steps[None, Never]:
        yield from report("half", done=1, total=2)

    run = fake.run(notes, 1)
    assert [note.note for note in run.notes] == ["half"] and "reports 'half' (1 of 2)" in str(run)


# The story


def test_the_long_story() -> None:
    fake = shop(Fake()).fails(ship, Unavailable(503), times=2).takes(charge, "3s").crash(before="ship")
    assert str(fake.run(order, Order(7))).splitlines() == [
        "       0s      fake.order begins with Order(id=7)",
        "       0s      charge(Order(id=7)) [key …0001/0] begins, and takes 3s",
        "       3s  #0  charge → Success(Receipt(number='r7'))",
        "       3s      ship(Order(id=7)) [key …0001/1] → Failure(Unavailable(status=503))",
        "       3s  ☠   the process dies here, before this was recorded as #1; ship has acted, and its answer is lost",
        "       3s  ↻   another process takes it over, folds 1 recorded entry, and goes on from there",
        "       3s  #1  ship: attempt 1 was cut short; whether it has acted, nobody knows",
        "       3s  #2  ship(Order(id=7)) [attempt 2: the same step again, with the same key …0001/1] → Failure(Unavailable(status=503));"
        " again after 1m",
        "     1m3s  #3  ship(Order(id=7)) [attempt 3, the same key …0001/1] → Success('T')",
        "It ended after 1m3s: Success('T')",
    ]


def test_the_story_of_a_signal_that_comes_early_and_of_a_child() -> None:
    @workflow("fake.sends")
    def sends(n: int) -> Steps[list[str], Never]:
        return list((yield from all_(approval.child(2), approval.child(3))))

    waiting = Fake().run(sends, 1)
    assert waiting.waits == ("child fake.approval", "child fake.approval")
    early = Fake().signal(approved, "ann", at="1h").run(approval, 2)
    assert str(early).splitlines()[1:3] == [
        "       1h      signal fake.approved('ann') arrives while nobody waits for it: it is kept",
        "       2h  #0  sleep 2h is over",
    ]
    assert "  #1  takes the signal fake.approved('ann'), which came at 1h" in str(early)
    assert "       0s          approval 1: child fake.approval begins with 2" in str(waiting)
    assert "#0      approval 2: sleep 3h is over" in str(waiting)


def test_the_story_of_a_signal_that_is_no_such_signal(fake: Fake) -> None:
    other: Any = signal("fake.approved", int)
    run = fake.signal(other, 5).run(approval, 0)
    assert isinstance(run.exit, Defect) and "receive approved: a defect: " in str(run) and "signal fake.approved(5) arrives" in str(run)


def test_the_story_of_an_undo_and_of_a_finalizer(fake: Fake) -> None:
    @workflow("fake.tidy")
    def tidy(n: int) -> Steps[str, Declined | Unavailable]:
        return (yield from order(Order(n)).ensure(lambda _: fetch_page(n)))

    told = str(shop(fake).on(fetch_page, Success(1)).fails(ship, Unavailable(1), times=3).run(tidy, 1))
    assert "undo: refund(Receipt(number='r1'))" in told and "finally: fetch_page(1)" in told


def test_a_long_story_is_shown_in_part(fake: Fake) -> None:
    told = str(fake.on(fetch_page, Success(1)).on(save_page, Success(None)).fails(save_page, Unavailable(1), times=500).run(page, 1))
    assert "… 264 lines more …" in told and told.endswith("It ended after 8m20s: Success(None)") and len(told.splitlines()) == 241


def test_a_value_that_cannot_be_shown_at_once_is_cut(fake: Fake) -> None:
    run = shop(fake).run(approval, 0)
    assert repr(run) == "<run of fake.approval: waits=('signal fake.approved',)>"
    long = fake.signal(approved, "x" * 5000).run(approval, 0)
    assert max(map(len, str(long).splitlines())) < 200


# What is said to whoever is wrong


def wrong(*mistake: Callable[[Fake], object]) -> str:
    fake = Fake()
    with pytest.raises(ScriptError) as told:
        for one in mistake:
            one(fake)
    return str(told.value)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda fake: fake.on(charge), "fake.on(charge) says nothing. Add what it gives: fake.on(charge, Success(...))"),
        (lambda fake: fake.on(charge, 5), "fake.on(charge, 5): that is no exit. Wrap it: fake.on(charge, Success(5))"),
        (
            lambda fake: fake.on(charge, Success(5)),
            "fake.on(charge, Success(5)): charge cannot give that: value cannot be journaled: expected Receipt, got int 5. "
            "It gives Success(Receipt) or Failure(Declined(...)); a bug is scripted as an exception, RuntimeError(...)",
        ),
        (
            lambda fake: fake.on(charge, Failure(Unavailable(1))),
            "expected Declined, got Unavailable. It gives Success(Receipt) or Failure(Declined(...))",
        ),
        (lambda fake: fake.fails_once(charge, Unavailable(1)), "fake.fails(charge, Failure(Unavailable(status=1))): charge cannot give that"),
        (lambda fake: fake.fails_once(refund, Unavailable(1)), "expected nothing: the type is Never, got a value. It gives Success(None)"),
        (lambda fake: fake.fails(charge, Declined("x"), times=0), "fails(charge, ..., times=0). Let it fail at least once: times=1"),
        (lambda fake: fake.on(charge, Defect("a", "b")), "Script a bug as an exception: fake.on(charge, RuntimeError(...))"),
        (lambda fake: fake.on(charge, lambda: 1), "it cannot be called with the request. Let it take one argument: lambda request: Success(...)"),
        (lambda fake: fake.on(order, Success("x")), "fake.on(order, ...): that is no activity. Give the contract itself, made by @activity(...)"),
        (lambda fake: fake.on("charge", Success("x")), "fake.on('charge', ...): that is no activity"),
        (
            lambda fake: fake.signal("approved", "x"),
            "fake.signal('approved', ...): that is no signal. Give the signal itself, made by signal(name, type)",
        ),
        (lambda fake: fake.signal(approved, 3), "signal fake.approved cannot carry 3: value cannot be journaled: expected str, got int 3"),
        (lambda fake: fake.cancel(), 'cancel() needs to know when. Say fake.cancel(at="3s"), or fake.cancel(step="charge")'),
        (lambda fake: fake.cancel(at="3s", step="charge"), "cancel() needs to know when"),
        (lambda fake: fake.crash(), "crash() needs to know where. Say fake.crash(after=3), fake.crash(before=3), or fake.crash(everywhere=True)"),
        (lambda fake: fake.crash(after=0), "crash(after=0). Entries are counted from 1: crash(after=1)"),
        (lambda fake: fake.crash(before="chrage").run(order, Order(1)), "fake.order has no activity 'chrage'. Its activities: charge, refund, ship"),
        (lambda fake: fake.cancel(step="chrage").run(order, Order(1)), "fake.order has no activity 'chrage'. Its activities: charge, refund, ship"),
        (lambda fake: fake.run(order(Order(1)), None), "is no workflow. Write fake.run(order, Order(7)): the workflow, then its input"),
    ],
)
def test_a_mistake_is_told_at_once_and_with_its_remedy(mistake: Callable[[Fake], object], said: str) -> None:
    assert said in wrong(mistake)


def test_an_activity_without_a_script_is_never_guessed(fake: Fake) -> None:
    fake.on(charge, Success(Receipt("r")))
    with pytest.raises(Unscripted) as told:
        fake.run(order, Order(4))
    assert str(told.value) == (
        "ship was asked with Order(id=4), and the fake has no answer. Say before run() what it gives, Success(str) or Failure(Unavailable(...)): "
        "fake.on(ship, Success(...)), or fake.on(ship, lambda request: ...). Scripted so far: charge"
    )
    assert told.value.activity is ship and told.value.request == Order(4)


def test_failures_alone_are_no_script(fake: Fake) -> None:
    with pytest.raises(Unscripted, match="ship was asked"):
        shop_but_ship = fake.on(charge, Success(Receipt("r"))).fails_once(ship, Unavailable(1))
        shop_but_ship.run(order, Order(4))


def test_a_crash_that_never_came_is_told(fake: Fake) -> None:
    told = str(shop(fake).crash(after=9).cancel(step=refund).run(order, Order(1)))
    assert "this was planned and never happened: crash(after=9): there were 2 entries" in told
    assert "this was planned and never happened: cancel(step=refund): it never began" in told
