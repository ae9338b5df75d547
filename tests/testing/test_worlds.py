"""Worlds: bugs that were planted are found and told, what is right passes, and a world is the same each time it is run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Never

import pytest
from attrs import field, frozen, validators
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import find as smallest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from flowdsl import (
    Defect,
    Done,
    Failure,
    Interrupted,
    Next,
    Result,
    Retry,
    Round,
    Steps,
    Success,
    TimedOut,
    activity,
    all_,
    bind,
    do,
    iterate,
    race,
    signal,
    sleep,
    this_attempt,
    workflow,
)
from flowdsl.flow import Cancelled
from flowdsl.journal import ATTEMPT, INTERRUPTED
from flowdsl.testing.playing import Crash
from flowdsl.testing.replies import BadWorld
from flowdsl.testing.worlds import World, worlds


@frozen
class Order:
    id: str
    pages: int = field(default=2, validator=[validators.ge(1), validators.le(3)])


@frozen
class Gone:
    """Nothing is left."""


@frozen
class Declined:
    why: str


@frozen
class Payment:
    order: str
    key: str | None


@frozen
class Page:
    number: int
    key: str | None


@activity("shop.reserve")
def reserve(order: Order) -> Result[None, Gone]: ...


@activity("shop.release")
def release(order: Order) -> Result[None, Never]: ...


@activity("shop.charge")
def charge(payment: Payment) -> Result[int, Declined]: ...


@activity("shop.save_page")
def save_page(page: Page) -> Result[None, Never]: ...


@activity("shop.book")
def book(verdict: bool) -> Result[None, Never]: ...


approved = signal("shop.approved", bool)


class Shop:
    """What the outside world would hold. It acts once for a key that it knows; without a key each time."""

    def __init__(self) -> None:
        self.reserved: list[str] = []
        self.taken: list[Payment] = []
        self.saved: list[Page] = []
        self.booked: list[bool] = []
        self._seen: set[str] = set()

    def _new(self, key: str | None) -> bool:
        new = key is None or key not in self._seen
        self._seen |= {key} - {None}  # type: ignore[arg-type]
        return new

    def reserve(self, order: Order) -> Any:
        if self._new(this_attempt().idempotency_key):
            self.reserved.append(order.id)
        return Success(None)

    def release(self, order: Order) -> Any:
        if order.id in self.reserved:
            self.reserved.remove(order.id)
        return Success(None)

    def charge(self, payment: Payment) -> Any:
        if self._new(payment.key):
            self.taken.append(payment)
        return Success(len(self.taken))

    async def save_page(self, page: Page) -> Any:
        if self._new(page.key):
            self.saved.append(page)
        return Success(None)

    def book(self, verdict: bool) -> Any:
        if self._new(this_attempt().idempotency_key):
            self.booked.append(verdict)
        return Success(None)


# Five bugs, each beside what is right


@workflow("shop.order")
def order_without_undo(order: Order) -> Steps[int, Gone | Declined]:
    yield from reserve(order)
    return (yield from charge(Payment(order.id, order.id)))


@workflow("shop.order")
def order_with_undo(order: Order) -> Steps[int, Gone | Declined]:
    yield from reserve(order).compensate(lambda _: release(order))
    return (yield from charge(Payment(order.id, order.id)))


def keeps_no_stock(world: World[Any, Any, Any]) -> bool:
    run = world.run()
    return not (isinstance(run.exit, Failure) and world.model.reserved)


@workflow("shop.pages")
def pages_without_key(order: Order) -> Steps[int, Never]:
    for number in range(order.pages):
        yield from save_page(Page(number, None))
    return order.pages


@workflow("shop.pages")
def pages_with_key(order: Order) -> Steps[int, Never]:
    for number in range(order.pages):
        yield from save_page(Page(number, f"{order.id}/{number}"))
    return order.pages


def counts_pages_once(world: World[Any, Any, Any]) -> bool:
    world.run()
    return max(Counter(page.number for page in world.model.saved).values(), default=0) <= 1


@workflow("shop.approval")
def approval_deaf(order: Order) -> Steps[bool, Never]:
    """Looks for the verdict only when a week is over, and then no more than once."""
    yield from sleep("7d")
    verdict = yield from approved.take()
    yield from book(bool(verdict))
    return bool(verdict)


@workflow("shop.approval")
def approval_late(order: Order) -> Steps[bool, Never]:
    """The verdict that comes after the week is lost."""
    verdict = yield from race(approved.receive(), sleep("7d").map(lambda _: False))
    yield from book(verdict)
    return verdict


@workflow("shop.approval")
def approval_patient(order: Order) -> Steps[bool, Never]:
    verdict = yield from race(approved.receive(), sleep("7d").map(lambda _: None))
    if verdict is None:
        verdict = yield from approved.receive()
    yield from book(verdict)
    return verdict


def hears_every_verdict(world: World[Any, Any, Any]) -> bool:
    run = world.run()
    said = [arrival.payload for arrival in world.signals]
    return not world.model.booked or run.exit is None or world.model.booked[0] in said


@workflow("shop.pay")
def pay_without_key(order: Order) -> Steps[int, Declined]:
    return (yield from charge(Payment(order.id, None)))


@workflow("shop.pay")
def pay_with_key(order: Order) -> Steps[int, Declined]:
    return (yield from charge(Payment(order.id, order.id)))


def pays_once(world: World[Any, Any, Any]) -> bool:
    world.run()
    return len(world.model.taken) <= 1


@workflow("shop.parent")
def parent_deaf(order: Order) -> Steps[str, Declined]:
    yield from pay_with_key.child(order).attempt()
    yield from save_page(Page(0, order.id))
    return "paid"


@workflow("shop.parent")
def parent_that_listens(order: Order) -> Steps[str, Declined]:
    yield from pay_with_key.child(order)
    yield from save_page(Page(0, order.id))
    return "paid"


def says_paid_when_paid(world: World[Any, Any, Any]) -> bool:
    return world.run().exit != Success("paid") or len(world.model.taken) == 1


Property = Callable[[World[Any, Any, Any]], bool]

PLANTED: dict[str, tuple[Any, Property, str]] = {
    "an undo is missing": (order_without_undo, keeps_no_stock, r"charge\(.*Failure\(Declined"),
    "a page is counted twice": (
        pages_without_key,
        counts_pages_once,
        r"(?s)process dies.*save_page has acted, and its answer is lost|acts, and its answer",
    ),
    "a signal comes after the timeout": (approval_late, hears_every_verdict, r"signal shop.approved|sleep 7d is over"),
    "no key is passed": (pay_without_key, pays_once, r"has acted, and its answer is lost|acts, and its answer is lost"),
    "a child's failure is ignored": (parent_deaf, says_paid_when_paid, r"child shop.pay|pay: charge\(.*Failure\(Declined"),
}
RIGHT: dict[str, tuple[Any, Property]] = {
    "undo": (order_with_undo, keeps_no_stock),
    "page": (pages_with_key, counts_pages_once),
    "signal": (approval_patient, hears_every_verdict),
    "key": (pay_with_key, pays_once),
    "child": (parent_that_listens, says_paid_when_paid),
}


def searched(strategy: SearchStrategy[World[Any, Any, Any]], holds: Property, examples: int) -> str | None:
    """What is printed of the smallest world in which something does not hold."""

    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False)
    @given(strategy)
    def test(world: World[Any, Any, Any]) -> None:
        assert holds(world)

    try:
        test()
    except AssertionError as error:
        return "\n".join(error.__notes__)
    return None


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found_and_its_story_names_the_cause(bug: str) -> None:
    subject, holds, cause = PLANTED[bug]
    told = searched(worlds(subject, model=Shop), holds, 200)
    assert told is not None, "it was not found"
    assert re.search(cause, told), told
    assert "The run:" in told


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes(name: str) -> None:
    subject, holds = RIGHT[name]
    assert searched(worlds(subject, model=Shop), holds, 500) is None


def test_the_smallest_world_says_no_more_than_needed() -> None:
    told = searched(worlds(pay_without_key, model=Shop), pays_once, 300)
    assert told is not None
    assert "times out, having acted" in told or re.search(r"crash before entry \d \(shop.charge\)", told)
    assert " late" not in told and "cancel" not in told and "Declined" not in told


def test_a_signal_that_is_only_looked_for_is_found_early() -> None:
    """A look at the end of a sleep sees what came before, and only that."""
    world = smallest(worlds(approval_deaf, model=Shop), lambda world: world.run().exit == Success(True))
    assert [str(arrival) for arrival in world.signals] == ["shop.approved True early"]


def find(strategy: SearchStrategy[World[Any, Any, Any]], holds: Callable[[World[Any, Any, Any]], Any]) -> World[Any, Any, Any]:
    """A world in which something holds, whichever comes first."""
    how = settings(max_examples=2000, phases=[Phase.generate], database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    return smallest(strategy, lambda world: bool(holds(world)), settings=how)


# The same world is the same


def seen(world: World[Any, Any, Any]) -> Any:
    run = world.run()
    return run.exit, run.journal, str(run)


@settings(max_examples=60, deadline=None)
@given(worlds(parent_that_listens, model=Shop))
def test_a_world_runs_the_same_each_time(world: World[Any, Any, Any]) -> None:
    assert seen(world) == seen(world) == seen(world)


@settings(max_examples=60, deadline=None)
@given(worlds(order_with_undo, model=Shop))
def test_a_calmer_world_gives_the_same_answers(world: World[Any, Any, Any]) -> None:
    calm = world.without(crashes=True, cancel=True)
    assert not calm.crashes and calm.cancel is None
    run = calm.run()
    assert INTERRUPTED not in [entry.kind for entry in run.journal] and not isinstance(run.exit, Cancelled)
    assert repr(calm).partition("; crash")[0].partition("; cancel")[0] in repr(world) or world.crashes or world.cancel is not None
    assert seen(calm) == seen(calm)


@settings(max_examples=40, deadline=None)
@given(worlds(order_with_undo, model=Shop, crashes=False, cancels=False))
def test_a_crash_anywhere_changes_no_answer(world: World[Any, Any, Any]) -> None:
    assert not world.crashes and world.cancel is None
    calm = world.run()
    for number in range(1, world.entries + 1):
        for crashed in (world.with_crashes({number}), world.with_crashes(before={number})):
            run = crashed.run()
            assert run.exit == calm.exit
            assert [entry.body for entry in run.journal if entry.kind not in (INTERRUPTED, ATTEMPT)] == [
                entry.body for entry in calm.journal if entry.kind not in (INTERRUPTED, ATTEMPT)
            ]


def test_an_attempt_whose_answer_was_lost_is_made_again_with_the_same_key() -> None:
    world = find(
        worlds(pay_without_key, model=Shop, cancels=False), lambda world: world.crashes == {Crash(1, before=True)} and not world.run().elapsed
    )
    run = world.run()
    assert run.count(charge) == 2 and len(set(run.keys(charge))) == 1
    assert len(world.model.taken) == 2, "the effect happened before the crash, and again after it"
    assert len(world.replies(charge)) == 1, "it was told the same again"
    assert "crash before entry 1 (shop.charge)" in repr(world)


def test_a_world_outlives_its_test() -> None:
    kept: list[World[Any, Any, Any]] = []

    @settings(max_examples=20, database=None, phases=[Phase.generate])
    @given(worlds(order_with_undo, model=Shop))
    def test(world: World[Any, Any, Any]) -> None:
        kept.append(world)

    test()
    for world in kept:
        assert seen(world) == seen(world)
        world.given(charge, st.just(Failure(Declined("no"))))
        assert world.without(crashes=True, cancel=True).run().exit in (Failure(Declined("no")), Failure(Gone()))


# What is drawn


def kinds(strategy: SearchStrategy[World[Any, Any, Any]], examples: int = 400) -> Counter[str]:
    """How often something occurs in the worlds of a strategy."""
    found: Counter[str] = Counter()

    @settings(max_examples=examples, database=None, deadline=None, phases=[Phase.generate], derandomize=True)
    @given(strategy)
    def test(world: World[Any, Any, Any]) -> None:
        run = world.run()
        found.update({"waits" if run.exit is None else type(run.exit).__name__, *(f"crash {crash.before}" for crash in world.crashes)})
        found.update({f"cancel {world.cancel.when}"} if world.cancel is not None else ())
        for arrival in world.signals:
            found.update({"early" if arrival.after is None else "late" if arrival.after else "at once", *(["twice"] if arrival.twice else ())})

    test()
    return found


def test_signals_come_early_at_once_late_twice_and_never() -> None:
    found = kinds(worlds(approval_patient, model=Shop))
    assert all(found[kind] for kind in ("early", "at once", "late", "twice", "waits", "Success", "crash True", "crash False"))


def test_cancellations_come_between_steps_and_during_attempts() -> None:
    found = kinds(worlds(order_with_undo, model=Shop))
    assert found["cancel recorded"] and found["cancel called"] and found["Cancelled"] and found["Failure"] and found["Success"]
    assert not found["Defect"]
    calm = kinds(worlds(order_with_undo, model=Shop, cancels=False, crashes=False), 100)
    assert not any(kind.startswith(("crash", "cancel")) for kind in calm)


def test_defects_come_on_wish_only() -> None:
    once = charge.using(retry=Retry.constant("1s", attempts=1))

    @workflow("shop.once")
    def once_only(order: Order) -> Steps[int, Declined]:
        return (yield from once(Payment(order.id, None)))

    assert not kinds(worlds(once_only))["Defect"]
    assert kinds(worlds(once_only, defects=True))["Defect"]
    world = find(worlds(once_only, crashes=False, cancels=False), lambda world: isinstance(world.run().exit, Success))
    assert isinstance(world.with_crashes(before={1}).run().exit, Defect), "what is asked for is done: its only attempt is lost"


@activity("shop.send", timeout="30s", crash="fail")
def send(order: Order) -> Result[None, Interrupted | TimedOut]: ...


@workflow("shop.sends")
def sends(order: Order) -> Steps[str, Never]:
    outcome = yield from send(order).attempt()
    return "sent" if isinstance(outcome, Success) else type(outcome.failure()).__name__


class Post:
    def __init__(self) -> None:
        self.sent = 0

    def send(self, order: Order) -> Any:
        self.sent += 1
        return Success(None)


@pytest.mark.parametrize("said", ["sent", "TimedOut", "Interrupted"])
@pytest.mark.parametrize("sent", [0, 1])
def test_whether_it_was_sent_is_not_told_by_a_lost_answer(said: str, sent: int) -> None:
    if (said, sent) == ("sent", 0):
        return
    world = find(worlds(sends, model=Post, cancels=False), lambda world: world.run().exit == Success(said) and world.model.sent == sent)
    assert world.model.sent == sent


def test_a_model_is_asked_as_the_time_goes() -> None:
    """Two branches: the one that takes longer ends later, and a time-out of the flow comes between."""

    @workflow("shop.slow")
    def slow(order: Order) -> Steps[tuple[int, int], Declined | TimedOut]:
        one, two = charge(Payment("one", None)), charge(Payment("two", None))
        return (yield from all_(one, two).timeout("1m"))

    world = find(worlds(slow, model=Shop, crashes=False, cancels=False), lambda world: isinstance(world.run().exit, Failure) and world.model.taken)
    assert world.run().exit == Failure(TimedOut("1m")) or "Declined" in repr(world)


class Strict:
    """A model that says itself what must not happen."""

    def __init__(self) -> None:
        self.count = 0

    async def charge(self, payment: Payment) -> Any:
        self.count += 1
        assert self.count == 1, "charged twice"
        return Success(self.count)


def test_what_a_model_asserts_fails_the_test() -> None:
    def runs(world: World[Any, Any, Any]) -> bool:
        world.run()
        return True

    told = searched(worlds(pay_without_key, model=Strict), runs, 200)
    assert told is not None and "charge(" in told


def test_bindings_of_a_model_stand_for_its_activities() -> None:
    class Bound:
        def __init__(self) -> None:
            self.taken: list[Payment] = []

        def bindings(self) -> list[Any]:
            def pay(payment: Payment) -> Result[int, Declined]:
                self.taken.append(payment)
                return Success(7)

            return [bind(charge, pay)]

    world = find(worlds(pay_with_key, model=Bound), lambda world: world.run().exit == Success(7))
    assert len(world.model.taken) == 1


# What is given


def test_what_is_given_is_given() -> None:
    strategy = worlds(order_with_undo, given={charge: st.just(Success(41)), reserve: lambda order: Success(None), str: st.just("x")})
    assert find(strategy, lambda _: True).request == Order("x", 1)

    @settings(max_examples=50, deadline=None)
    @given(strategy)
    def test(world: World[Any, Any, Any]) -> None:
        assert isinstance(world.run().exit, Cancelled) or world.run().exit == Success(41)
        world.given(charge, Failure(Declined("never")))
        assert isinstance(world.run().exit, Cancelled) or world.run().exit == Failure(Declined("never"))

    test()


def test_a_request_and_payloads_are_given() -> None:
    strategy = worlds(approval_patient, request=st.just(Order("mine")), signals={approved: True})
    world = find(strategy, lambda world: isinstance(world.run().exit, Success))
    assert world.request == Order("mine") and world.run().exit == Success(True)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: worlds(pay_with_key, given={charge: 3}), "shop.charge, 3 is no exit"),
        (lambda: worlds(pay_with_key, given={str: "x"}), "is no strategy"),
        (lambda: find(worlds(pay_with_key, given={charge: st.just(3)}), lambda _: True), "gave 3: give exits"),
        (lambda: find(worlds(pay_with_key, model=Post), lambda _: True), "Post has no method for any activity here. Name its methods charge"),
    ],
)
def test_a_world_that_was_described_wrongly_says_so(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(BadWorld, match=re.escape(says)):
        make()


# What goes on and on


@workflow("shop.forever")
def forever(order: Order) -> Steps[None, Declined]:
    @do
    def round_(count: int) -> Steps[Round[int, None], Declined]:
        yield from charge(Payment(order.id, str(count)))
        yield from sleep("30d")
        return Next(count + 1) if count >= 0 else Done(None)

    return (yield from iterate(0, round_))


def test_a_run_that_never_ends_is_cut() -> None:
    world = find(worlds(forever, crashes=False, cancels=False, given={charge: Success(1)}), lambda _: True)
    run = world.run()
    assert run.exit is None and world.cut and run.elapsed > timedelta(days=300)


def test_a_crash_is_known_by_its_place() -> None:
    assert Crash(3, what="this") == Crash(3, what="that") != Crash(3, before=True)
    assert str(Crash(3, before=True, what="shop.charge")) == "crash before entry 3 (shop.charge)"
