"""The memory interpreter: a virtual clock, scripted answers, mail, children, keys, crashes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Never

import pytest
from attrs import frozen
from returns.result import Failure, Result, Success

from flowdsl import (
    Cancelled,
    Child,
    Defect,
    Deployment,
    Flow,
    Interrupted,
    Retry,
    Steps,
    activity,
    all_,
    bind,
    execution,
    fail,
    now,
    pure,
    race,
    report,
    signal,
    sleep,
    this_attempt,
    workflow,
)
from flowdsl.errors import FlowError, Rejected
from flowdsl.journal import INTERRUPTED
from flowdsl.memory import EPOCH, Memory, Run


@frozen
class Broken:
    why: str


@activity("m.work", retry=Retry.constant("1s", attempts=3))
def work(n: int) -> Result[int, Broken]: ...


@activity("m.undo")
def undo(n: int) -> Result[None, Broken]: ...


@activity("m.once", crash="fail")
def once(n: int) -> Result[int, Interrupted]: ...


news = signal("news", int)


@workflow("m.quick")
def quick(n: int) -> Steps[int, Broken]:
    return (yield from pure(n + 100))


@workflow("m.slow")
def slow(n: int) -> Steps[int, Broken]:
    yield from sleep("1h").ensure(lambda _: report(f"slow {n} ends"))
    return (yield from work(n))


@workflow("m.stuck")
def stuck(n: int) -> Steps[int, Broken]:
    yield from pure(n).compensate(undo)
    return (yield from fail(Broken("as told")))


@workflow("m.talker")
def talker(to: str) -> Steps[int, Never]:
    yield from news.send(to, 1)
    return 5


@workflow("m.keyed", key="{number}")
def keyed(order: Numbered) -> Steps[int, Broken]:
    return (yield from work(order.number))


@frozen
class Numbered:
    number: int


IMPLEMENTATIONS = [bind(work, lambda n: Success(n)), bind(undo, lambda n: Success(None)), bind(once, lambda n: Success(n))]
PARTS = [quick, slow, stuck, talker, keyed]


def memory_of(make: Callable[[], Flow[Any, Any]], **options: Any) -> tuple[Memory, Any]:
    @workflow("m.whole", key=options.pop("key", None))
    def whole(n: int) -> Steps[Any, Broken | Interrupted]:
        return (yield from make())

    return Memory(Deployment([whole, *PARTS], IMPLEMENTATIONS), **options), whole


def run_of(make: Callable[[], Flow[Any, Any]], **options: Any) -> Run:
    memory, whole = memory_of(make, **options)
    return memory.run(whole, 1)


# Time and answers


def test_time_jumps_to_what_is_due() -> None:
    memory, whole = memory_of(lambda: sleep("30d").then(lambda _: now()).map(str))
    assert memory.run(whole, 1).exit == Success(str(EPOCH + timedelta(days=30)))
    assert memory.now == EPOCH + timedelta(days=30)


def test_a_scripted_answer_takes_the_place_of_a_binding_and_the_story_tells_it() -> None:
    tries = iter([Failure(Broken("x")), Success(7)])
    run = run_of(lambda: work(1).retry(Retry.constant("1s", attempts=2)), answers={work: lambda n: next(tries)})
    assert run.exit == Success(7) and run.count(work) == 2 and run.calls() == {"m.work": (1, 1)}
    assert run.story() == ["work!", "sleep 1s", "work"]


def test_an_implementation_may_be_async_and_may_ask_about_its_attempt() -> None:
    seen: list[tuple[str, int]] = []

    async def answer(n: int) -> Result[int, Broken]:
        attempt = this_attempt()
        seen.append((attempt.idempotency_key, attempt.number))
        if len(seen) == 1:
            raise OSError("down")
        return Success(n)

    run = run_of(lambda: work(3), answers={work: answer})
    assert run.exit == Success(3)
    assert seen == [(f"{run.id}/0", 1), (f"{run.id}/0", 2)]
    with pytest.raises(FlowError, match="there is none here"):
        this_attempt()


def test_what_is_no_result_is_a_defect() -> None:
    run = run_of(lambda: work(1), answers={work: lambda n: n})
    assert isinstance(run.exit, Defect) and "its implementation returned 1" in run.exit.message
    assert run.count(work) == 3


def test_the_execution_knows_itself() -> None:
    memory, whole = memory_of(lambda: execution().map(lambda it: f"{it.tenant} {it.workflow} {it.key} {it.parent}"), tenant="acme")
    assert memory.run(whole, 1, key="k").exit == Success("acme m.whole k None")


# Mail


def test_a_signal_before_the_wait_is_kept_and_one_after_it_wakes() -> None:
    memory, whole = memory_of(lambda: sleep("1h").then(lambda _: all_(news.receive(), news.receive())).map(sum))
    id = memory.start(whole, 1)
    memory.signal(id, news, 1)
    memory.go()
    assert memory.look(id).exit is None
    memory.signal(id, news, 2)
    assert memory.look(id).exit == Success(3)


def test_the_same_delivery_acts_once() -> None:
    memory, whole = memory_of(lambda: all_(news.receive(), news.receive()))
    id = memory.start(whole, 1)
    for _ in range(2):
        memory.signal(id, news, 1, delivery="d-1")
    assert memory.look(id).exit is None


def test_a_signal_to_a_key_finds_who_waits_for_it_before_or_after() -> None:
    memory, whole = memory_of(lambda: news.receive("order-1").then(lambda one: news.receive("order-1").map(lambda two: one * 10 + two)))
    memory.signal("order-1", news, 4)
    id = memory.start(whole, 1)
    memory.signal("order-1", news, 2)
    assert memory.look(id).exit == Success(42)


def test_a_look_at_a_key_finds_what_came_before_anyone_waited() -> None:
    memory, whole = memory_of(lambda: news.take("k").then(lambda one: news.take("k").map(lambda two: (one, two)).map(str)))
    memory.signal("k", news, 4)
    assert memory.run(whole, 1).exit == Success("(4, None)")


def test_a_workflow_may_signal_itself() -> None:
    run = run_of(lambda: execution().then(lambda it: news.send(it.id, 6)).then(lambda _: news.receive()))
    assert run.exit == Success(6)


# Cancellation


def test_a_cancellation_ends_it_and_its_children() -> None:
    memory, whole = memory_of(lambda: all_(slow.child(1), slow.start(2), slow.start(3, detached=True)))
    id = memory.start(whole, 1)
    memory.cancel(id, "enough")
    memory.cancel(id, "again")
    assert memory.look(id).exit == Cancelled("enough")
    assert sorted(note.note for note in memory.look(id).notes) == ["slow 1 ends", "slow 2 ends"]
    memory.go()
    run = memory.look(id)
    assert len(run.notes) == 3 and run.calls() == {"m.work": (3,)}


def test_a_scope_that_loses_a_race_takes_its_children_with_it() -> None:
    run = run_of(lambda: race(slow.child(1), sleep("1m").map(lambda _: 0)).then(lambda _: sleep("1d")).map(lambda _: 9))
    assert run.exit == Success(9) and run.calls() == {}


def test_losing_a_race_ends_the_wait_and_not_the_child() -> None:
    def patient(child: Child[int, Broken]) -> Flow[int, Broken]:
        return race(child.join(), sleep("1m").map(lambda _: 0)).then(lambda _: child.join())

    assert run_of(lambda: slow.start(4).then(patient)).exit == Success(4)


def test_a_child_may_be_cancelled_by_its_handle() -> None:
    run = run_of(lambda: slow.start(4).then(lambda child: child.cancel().then(lambda _: child.join().isolate().attempt())).map(str))
    assert "ended from outside: cancelled by its parent" in str(run.exit)


# Children


def test_a_child_that_ends_at_once_is_joined() -> None:
    assert run_of(lambda: quick.child(1)).exit == Success(101)


def test_a_child_may_be_joined_twice() -> None:
    def twice(child: Child[int, Broken]) -> Flow[Any, Broken]:
        return child.join().then(lambda one: child.join().map(lambda two: one + two))

    assert run_of(lambda: quick.start(1).then(twice)).exit == Success(202)
    assert run_of(lambda: slow.start(1).then(twice)).exit == Success(2)


def test_a_child_that_ends_at_once_may_end_its_parent_while_the_store_is_asked() -> None:
    assert run_of(lambda: race(quick.child(1), quick.existing(["k"]).map(lambda _: 0))).exit == Success(101)


def test_a_child_may_end_its_parent_with_its_last_words() -> None:
    memory, whole = memory_of(lambda: execution().then(lambda it: race(news.receive(), talker.child(it.id))))
    run = memory.run(whole, 1)
    assert run.exit == Success(1)
    child = next(kept for kept in memory._kept.values() if kept.parent == run.id)
    assert child.status == "succeeded" and memory.look(child.execution.id).exit == Success(5)
    assert len([mail for mail in memory._kept[run.id].mailbox if mail.kind == "exit"]) == 1


def test_a_blocked_child_lets_its_parent_be_cancelled() -> None:
    memory, whole = memory_of(lambda: stuck.child(1).ensure(lambda _: report("over")), answers={undo: lambda n: Failure(Broken("stuck"))})
    id = memory.start(whole, 1)
    memory.go()
    assert memory.look(id).exit is None
    child = next(kept for kept in memory._kept.values() if kept.parent == id)
    blocked = memory.look(child.execution.id)
    assert child.status == "blocked" and "undos failed" in (blocked.cause or "") and isinstance(blocked.exit, Defect)
    memory.cancel(child.execution.id)
    memory.cancel(id)
    assert memory.look(id).exit == Cancelled("asked to")


def test_a_failure_of_a_child_is_the_failure_of_the_call() -> None:
    assert run_of(lambda: stuck.child(1)).exit == Failure(Broken("as told"))


# Keys


@pytest.mark.parametrize(
    ("reuse", "answer", "same"),
    [
        ("join", Success(1), True),
        ("after_close", Success(1), False),
        ("after_failure", Success(1), True),
        ("after_failure", Failure(Broken("x")), False),
    ],
)
def test_a_second_start_with_a_key_does_what_reuse_says(reuse: Any, answer: Any, same: bool) -> None:
    @workflow("m.reused", key="k-{number}", reuse=reuse)
    def reused(order: Numbered) -> Steps[int, Broken]:
        yield from sleep("1m")
        return (yield from work(order.number))

    memory = Memory(Deployment([reused], IMPLEMENTATIONS), {work: lambda n: answer})
    one = memory.start(reused, Numbered(1))
    assert memory.start(reused, Numbered(1)) == one != memory.start(reused, Numbered(2))
    memory.go()
    assert (memory.start(reused, Numbered(1)) == one) is same


def test_a_key_may_be_rejected() -> None:
    @workflow("m.single", reuse="reject")
    def single(n: int) -> Steps[int, Broken]:
        return (yield from work(n))

    memory = Memory(Deployment([single], IMPLEMENTATIONS))
    one = memory.start(single, 1, key="k")
    with pytest.raises(Rejected, match=one):
        memory.start(single, 1, key="k")


def test_two_children_with_one_key_are_one() -> None:
    run = run_of(lambda: all_(keyed.child(Numbered(3)), keyed.child(Numbered(3))))
    assert run.calls() == {"m.work": (3,)}


def test_a_parents_second_run_finds_the_children_of_its_first() -> None:
    @workflow("m.parent", key="p", reuse="after_close")
    def parent(n: int) -> Steps[str, Broken]:
        before = yield from keyed.existing(["3", "4"])
        after = yield from keyed.child(Numbered(3))
        return f"{before} {after}"

    memory = Memory(Deployment([parent], IMPLEMENTATIONS))
    assert memory.run(parent, 1).exit == Success("{} 3")
    run = memory.run(parent, 1)
    assert run.exit == Success("{'3': 'succeeded'} 3") and run.calls() == {"m.work": (3,)}


def test_a_childs_key_is_no_key_of_a_tenant() -> None:
    @workflow("m.tenant", key="acme")
    def parent(n: int) -> Steps[int, Broken]:
        return (yield from keyed.child(Numbered(3)))

    memory = Memory(Deployment([parent], IMPLEMENTATIONS), tenant="acme")
    of_the_tenant, of_the_parent = memory.run(keyed, Numbered(3)), memory.run(parent, 1)
    assert of_the_tenant.calls() == of_the_parent.calls() == {"m.work": (3,)}
    assert of_the_parent.keys(work) != of_the_tenant.keys(work)


def test_a_rejected_child_is_a_defect_of_its_start() -> None:
    @workflow("m.only", key="{number}", reuse="reject")
    def only(order: Numbered) -> Steps[int, Broken]:
        return (yield from work(order.number))

    @workflow("m.both")
    def both(n: int) -> Steps[Any, Broken]:
        return (yield from only.child(Numbered(1)).then(lambda _: only.child(Numbered(1))))

    exit = Memory(Deployment([both], IMPLEMENTATIONS)).run(both, 1).exit
    assert isinstance(exit, Defect) and "is taken by" in exit.message


# Crashes


def test_a_crash_runs_an_activity_again_and_records_that_it_was_cut_short() -> None:
    run = run_of(lambda: work(1).then(lambda n: all_(work(n + 1), work(n + 2))).map(sum), crash=lambda n: n == 1)
    assert run.exit == Success(5)
    assert [entry.kind == INTERRUPTED for entry in run.journal] == [False, True, True, False, False]


def test_an_activity_that_runs_at_most_once_is_interrupted_by_a_crash() -> None:
    run = run_of(lambda: once(1), crash=lambda n: n == 1)
    assert run.exit == Failure(Interrupted()) and run.calls() == {}


@pytest.mark.parametrize("n", range(1, 9))
def test_a_crash_after_any_entry_is_not_seen(n: int) -> None:
    def make() -> Flow[Any, Any]:
        return all_(slow.child(1), sleep("1m").then(lambda _: news.receive("k")), work(2).compensate(undo)).map(sum)

    def told(crash: Callable[[int], bool] | None) -> Run:
        memory, whole = memory_of(make, crash=crash)
        memory.signal("k", news, 5)
        return memory.run(whole, 1)

    whole, cut = told(None), told(lambda entry: entry == n)
    assert cut.exit == whole.exit == Success(8)
    assert cut.story() == whole.story() or INTERRUPTED in {entry.kind for entry in cut.journal}


def test_there_is_no_database_in_memory_unless_one_is_given() -> None:
    async def wants(n: int) -> Result[int, Broken]:
        async with this_attempt().connection() as connection:
            return Success(int(connection))

    run = run_of(lambda: work(1), answers={work: wants})
    assert isinstance(run.exit, Defect) and "there is no database in memory" in run.exit.message
    assert run_of(lambda: work(1), answers={work: wants}, connect=lambda: 5).exit == Success(5)
