"""Interventions: retry, rewind, fork, what if, pause, terminate; over the memory interpreter, and their plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import frozen

from flowdsl import (
    Activity,
    Cancelled,
    Defect,
    Deployment,
    Done,
    Failure,
    Flow,
    Next,
    Result,
    Retry,
    Round,
    Steps,
    Success,
    Workflow,
    activity,
    all_,
    bind,
    do,
    each,
    each_attempt,
    fail,
    iterate,
    pure,
    saga,
    signal,
    sleep,
    this_attempt,
    uuid,
    workflow,
)
from flowdsl.errors import FlowError
from flowdsl.journal import OPERATOR, Divergence
from flowdsl.memory import Memory
from flowdsl.operating import CannotRetry, Subject, position_of, retried, what_if


@frozen
class Broken:
    why: str


ONCE = Retry.constant("1s", attempts=1)


@activity("o.work", retry=ONCE)
def work(n: int) -> Result[int, Broken]:
    """Work."""
    ...


@activity("o.undo", retry=ONCE)
def undo(n: int) -> Result[None, Broken]:
    """Undoes work."""
    ...


@activity("o.other", retry=ONCE)
def other(n: int) -> Result[int, Broken]:
    """Other work."""
    ...


class World:
    """Scripted work: what fails now, and what was called, with which key."""

    def __init__(self) -> None:
        self.bad: set[tuple[str, int]] = set()
        self.called: list[str] = []
        self.keys: list[str] = []

    def on(self, name: str) -> Callable[[int], Any]:
        def call(n: int) -> Any:
            self.called.append(f"{name} {n}")
            self.keys.append(this_attempt().idempotency_key)
            return Failure(Broken(f"{name} {n}")) if (name, n) in self.bad else Success(n if name != "undo" else None)

        return call


def made(body: Callable[[int], Flow[Any, Any]], world: World, **options: Any) -> tuple[Memory, Workflow[int, Any, Any]]:
    @workflow("o.whole", **options)
    def whole(n: int) -> Steps[Any, Broken]:
        return (yield from body(n))

    bindings = [bind(work, world.on("work")), bind(undo, world.on("undo")), bind(other, world.on("other"))]
    return Memory(Deployment([whole], bindings)), whole


class TestRetry:
    def test_the_failed_step_runs_again_and_what_succeeded_does_not(self) -> None:
        world = World()
        world.bad = {("work", 3)}
        memory, whole = made(lambda n: each([1, 2, 3, 4], work, concurrency=1), world)
        run = memory.run(whole, 1)
        assert run.exit == Failure(Broken("work 3"))
        world.bad = set()
        memory.retry(run.id)
        memory.go()
        assert memory.look(run.id).exit == Success([1, 2, 3, 4])
        assert world.called == ["work 1", "work 2", "work 3", "work 3", "work 4"]
        assert world.keys[2] == world.keys[3], "the same attempt at the same thing"
        assert [entry.kind for entry in memory.look(run.id).journal].count(OPERATOR) == 1

    def test_twice_and_with_a_crash_after_each_entry(self) -> None:
        for n in range(1, 12):
            world = World()
            world.bad = {("work", 3)}
            patient = work.using(retry=Retry.constant("1s", attempts=5))
            memory, whole = made(lambda n, work=patient: each([1, 2, 3, 4], work, concurrency=2), world)
            memory._crash = lambda at, n=n: at == n
            run = memory.run(whole, 1)
            memory.retry(run.id)
            memory.go()
            assert memory.look(run.id).exit == Failure(Broken("work 3"))
            world.bad = set()
            memory.retry(run.id)
            memory.go()
            assert memory.look(run.id).exit == Success([1, 2, 3, 4])

    def test_all_that_failed_when_the_code_made_a_failure_of_it(self) -> None:
        world = World()
        world.bad = {("work", 1), ("work", 3)}

        @do
        def counted(n: int) -> Steps[int, Broken]:
            outcomes = yield from each_attempt([1, 2, 3, 4], work, concurrency=4)
            failed = [one for one in outcomes if isinstance(one, Failure)]
            if failed:
                return (yield from fail(Broken(f"{len(failed)} failed")))
            return len(outcomes)

        memory, whole = made(counted, world)
        run = memory.run(whole, 1)
        assert run.exit == Failure(Broken("2 failed"))
        world.bad = set()
        memory.retry(run.id)
        memory.go()
        assert memory.look(run.id).exit == Success(4)
        assert world.called[4:] == ["work 1", "work 3"]

    def test_what_was_undone_runs_again_under_new_keys(self) -> None:
        world = World()
        world.bad = {("work", 3)}
        memory, whole = made(lambda n: other(0).then(lambda _: work(1).compensate(undo)).then(lambda _: work(2)).then(lambda _: work(3)), world)
        run = memory.run(whole, 1)
        assert world.called == ["other 0", "work 1", "work 2", "work 3", "undo 1"]
        world.bad = set()
        memory.retry(run.id)
        memory.go()
        assert memory.look(run.id).exit == Success(3)
        assert world.called[5:] == ["work 1", "work 2", "work 3"], "from the first undone step on, and nothing before it"
        assert not set(world.keys[:5]) & set(world.keys[5:])

    def test_an_inner_saga_that_was_rolled_back_and_handled_stays(self) -> None:
        world = World()
        world.bad = {("work", 2), ("work", 9)}
        inner = saga(work(1).compensate(undo).then(lambda _: work(2)))
        memory, whole = made(lambda n: inner.attempt().then(lambda _: work(9)), world)
        run = memory.run(whole, 1)
        assert run.exit == Failure(Broken("work 9"))
        world.bad = set()
        memory.retry(run.id)
        memory.go()
        assert memory.look(run.id).exit == Success(9)
        assert world.called[-1:] == ["work 9"] and world.called.count("work 1") == 1

    def test_failing_undos_run_again_when_it_is_resumed(self) -> None:
        world = World()
        world.bad = {("work", 3), ("undo", 1)}
        memory, whole = made(lambda n: work(1).compensate(undo).then(lambda _: work(2).compensate(undo)).then(lambda _: work(3)), world)
        run = memory.run(whole, 1)
        assert run.cause is not None and "undos failed" in run.cause
        world.bad = {("work", 3)}
        memory.resume(run.id)
        memory.go()
        after = memory.look(run.id)
        assert after.cause is None and after.exit == Failure(Broken("work 3"))
        assert world.called == ["work 1", "work 2", "work 3", "undo 2", "undo 1", "undo 1"]

    def test_a_cancelled_execution_goes_on(self) -> None:
        world = World()
        memory, whole = made(lambda n: work(1).then(lambda _: sleep("1h")).then(lambda _: work(2)), world)
        id = memory.start(whole, 1)
        while memory._jobs:
            memory._perform(*memory._jobs.popleft())
        memory.cancel(id)
        assert memory.look(id).exit == Cancelled("asked to")
        memory.retry(id)
        memory.go()
        assert memory.look(id).exit == Success(2)
        assert world.called == ["work 1", "work 2"]

    def test_a_timeout_gets_its_whole_time_again(self) -> None:
        news = signal("o.news", int)
        memory, whole = made(lambda n: news.receive().timeout("1h", Broken("late")), World())
        run = memory.run(whole, 1)
        assert run.exit == Failure(Broken("late"))
        memory.retry(run.id)
        memory.signal(run.id, news, 7)
        memory.go()
        assert memory.look(run.id).exit == Success(7)

    def test_failed_children_are_retried_first(self) -> None:
        world = World()
        world.bad = {("work", 2)}

        @workflow("o.part")
        def part(n: int) -> Steps[int, Broken]:
            yield from other(n)
            return (yield from work(n))

        memory, whole = made(lambda n: each([1, 2, 3], part.child, concurrency=3), world)
        memory = Memory(Deployment([whole, part], [bind(work, world.on("work")), bind(undo, world.on("undo")), bind(other, world.on("other"))]))
        run = memory.run(whole, 1)
        assert run.exit == Failure(Broken("work 2"))
        world.bad = set()
        memory.retry(run.id)
        memory.go()
        assert memory.look(run.id).exit == Success([1, 2, 3])
        assert world.called.count("other 2") == 1 and world.called.count("work 2") == 2 and world.called.count("work 1") == 1

    def test_a_fixed_bug_in_the_body(self) -> None:
        world, bugs = World(), [True]

        @do
        def body(n: int) -> Steps[int, Broken]:
            one = yield from work(1)
            if bugs[0]:
                raise KeyError("oops")
            return one + (yield from work(2))

        memory, whole = made(body, world)
        run = memory.run(whole, 1)
        assert isinstance(run.exit, Defect)
        with pytest.raises(CannotRetry, match="Deploy a fix"):
            memory.retry(run.id)
        bugs[0] = False
        memory.retry(run.id)
        memory.go()
        assert memory.look(run.id).exit == Success(3)
        assert world.called == ["work 1", "work 2"]

    def test_what_has_not_failed_is_refused(self) -> None:
        memory, whole = made(work, World())
        run = memory.run(whole, 1)
        with pytest.raises(CannotRetry, match="succeeded"):
            memory.retry(run.id)

    def test_behind_a_checkpoint(self) -> None:
        world = World()
        world.bad = {("work", 7)}

        @do
        def round(n: int) -> Steps[Round[int, int], Broken]:
            yield from work(n)
            return Done(n) if n == 9 else Next(n + 1)

        memory, whole = made(lambda n: iterate(0, round), world)
        run = memory.run(whole, 1)
        assert run.exit == Failure(Broken("work 7"))
        world.bad = set()
        memory.retry(run.id)
        memory.go()
        assert memory.look(run.id).exit == Success(9)
        assert world.called == [f"work {n}" for n in (0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 9)]


class TestRewind:
    def test_from_a_step_on_all_is_done_anew(self) -> None:
        world = World()
        memory, whole = made(lambda n: work(1).then(lambda _: work(2)).then(lambda _: work(3)), world)
        run = memory.run(whole, 1)
        memory.rewind(run.id, "1")
        memory.go()
        assert memory.look(run.id).exit == Success(3)
        assert world.called == ["work 1", "work 2", "work 3", "work 2", "work 3"]
        assert world.keys[3] != world.keys[1]

    def test_mail_that_was_taken_is_put_back(self) -> None:
        news = signal("o.news2", int)
        world = World()
        memory, whole = made(lambda n: work(1).then(lambda _: all_(news.receive(), news.receive("k"))).then(lambda two: pure(sum(two))), world)
        id = memory.start(whole, 1)
        memory.signal(id, news, 5)
        memory.signal("k", news, 6)
        memory.go()
        assert memory.look(id).exit == Success(11)
        memory.rewind(id, 0)
        memory.go()
        assert memory.look(id).exit == Success(11), "nothing was sent again"
        assert world.called == ["work 1", "work 1"]

    def test_children_are_started_anew(self) -> None:
        @workflow("o.part2")
        def part(n: int) -> Steps[int, Broken]:
            return (yield from work(n))

        world = World()
        memory, whole = made(part.child, world)
        memory = Memory(Deployment([whole, part], [bind(work, world.on("work"))]))
        run = memory.run(whole, 4)
        memory.rewind(run.id, 0)
        memory.go()
        assert memory.look(run.id).exit == Success(4)
        assert world.called == ["work 4", "work 4"] and len({key.partition("/")[0] for key in world.keys}) == 2

    def test_behind_a_checkpoint_and_before_it(self) -> None:
        world = World()

        @do
        def round(n: int) -> Steps[Round[int, int], Broken]:
            yield from work(n)
            return Done(n) if n == 3 else Next(n + 1)

        memory, whole = made(lambda n: iterate(0, round), world)
        run = memory.run(whole, 1)
        memory.rewind(run.id, 3)
        memory.go()
        assert memory.look(run.id).exit == Success(3)
        memory.rewind(run.id, 0)
        memory.go()
        assert memory.look(run.id).exit == Success(3)
        assert world.called[-4:] == ["work 0", "work 1", "work 2", "work 3"]

    def test_a_step_that_never_was(self) -> None:
        memory, whole = made(work, World())
        run = memory.run(whole, 1)
        with pytest.raises(FlowError, match=r"step 9 was never answered here\. There are: 0"):
            memory.rewind(run.id, "9")
        with pytest.raises(FlowError, match="no position 7"):
            memory.rewind(run.id, 7)


class TestFork:
    def test_it_goes_on_from_the_prefix_under_keys_of_its_own(self) -> None:
        world = World()
        memory, whole = made(lambda n: uuid().then(lambda id: work(len(str(id)))).then(lambda _: work(2)), world)
        run = memory.run(whole, 1)
        other = memory.fork(run.id, 1)
        memory.go()
        assert memory.look(other).exit == Success(2), "ids drawn before the fork are the same"
        assert world.called == ["work 36", "work 2", "work 2"]
        assert world.keys[2].startswith(other)

    def test_with_another_exit(self) -> None:
        world = World()
        memory, whole = made(lambda n: work(1).then(lambda one: work(one + 1)), world)
        run = memory.run(whole, 1)
        other = memory.fork(run.id, 1, {"0": Success(41)})
        memory.go()
        assert memory.look(other).exit == Success(42)
        assert memory.look(run.id).exit == Success(2)

    def test_a_fork_of_a_fork(self) -> None:
        memory, whole = made(lambda n: uuid().then(lambda id: work(len(str(id)))).then(lambda _: work(2)), World())
        run = memory.run(whole, 1)
        one = memory.fork(run.id, 1)
        memory.go()
        two = memory.fork(one, 2)
        memory.go()
        assert memory.look(two).exit == Success(2)


class TestWhatIf:
    def subject(self, memory: Memory, id: str) -> Subject:
        return memory._subject(memory._kept[id])

    def test_where_it_would_go(self) -> None:
        world = World()

        @do
        def body(n: int) -> Steps[int, Broken]:
            one = yield from work(1)
            return (yield from work(2)) if one == 1 else (yield from other(one))

        memory, whole = made(body, world)
        run = memory.run(whole, 1)
        found = what_if(self.subject(memory, run.id), {"0": Success(9)})
        assert found.exit is None and [(step, what) for step, what, _ in found.asked] == [("1", "perform o.other")]
        assert [entry.step for entry in found.unused] == ["1"]
        failed = what_if(self.subject(memory, run.id), {"0": Failure(Broken("x"))})
        assert failed.exit == Failure(Broken("x")) and world.called == ["work 1", "work 2"], "nothing was called"

    def test_in_a_loop(self) -> None:
        @do
        def round(n: int) -> Steps[Round[int, int], Broken]:
            got = yield from work(n)
            return Done(got) if got >= 3 else Next(got + 1)

        memory, whole = made(lambda n: iterate(0, round), World())
        run = memory.run(whole, 1)
        subject = self.subject(memory, run.id)
        last = max(entry.step for entry in subject.journal if entry.fingerprint.startswith("perform"))
        assert what_if(subject, {last: Success(77)}).exit == Success(77)


class TestPauseAndTerminate:
    def test_nothing_begins_until_it_is_resumed(self) -> None:
        world = World()
        memory, whole = made(lambda n: sleep("1h").then(lambda _: work(1)), world)
        id = memory.start(whole, 1)
        memory.pause(id, "a look at the bill")
        memory.go()
        assert memory.look(id).cause == "paused: a look at the bill" and world.called == []
        memory.pause(id)
        memory.resume(id)
        memory.go()
        assert memory.look(id).exit == Success(1)

    def test_a_blocked_one_is_cancelled_when_it_is_resumed(self) -> None:
        memory, whole = made(lambda n: sleep("1h").then(lambda _: work(1)).ensure(lambda _: other(1)), world := World())
        id = memory.start(whole, 1)
        memory.pause(id)
        memory.cancel(id, "enough")
        memory.resume(id)
        memory.go()
        assert memory.look(id).exit == Cancelled("enough") and world.called == ["other 1"]

    def test_terminate_runs_no_finalizer_and_tells_the_parent(self) -> None:
        world = World()

        @workflow("o.part3")
        def part(n: int) -> Steps[int, Broken]:
            return (yield from sleep("1h").then(lambda _: work(n)).ensure(lambda _: other(1)))

        memory, whole = made(lambda n: part.child(n).isolate().attempt().map(str), world)
        memory = Memory(Deployment([whole, part], [bind(work, world.on("work")), bind(other, world.on("other"))]))
        id = memory.start(whole, 1)
        child = next(one for one in memory._kept if one != id)
        memory.terminate(child, "out of control")
        memory.go()
        assert memory.look(child).exit == Cancelled("terminated: out of control") and world.called == []
        assert "terminated: out of control" in str(memory.look(id).exit)
        memory.retry(child)
        memory.go()
        assert memory.look(child).exit == Success(1)


def test_a_plan_needs_code_that_fits() -> None:
    world, changed = World(), [False]
    world.bad = {("work", 2)}
    memory, whole = made(lambda n: (other(1) if changed[0] else work(1)).then(lambda _: work(2)), world)
    run = memory.run(whole, 1)
    changed[0] = True
    with pytest.raises(Divergence, match=r"o\.other"):
        retried(memory._subject(memory._kept[run.id]), by="", reason="")


def test_the_position_of_a_step() -> None:
    memory, whole = made(lambda n: all_(work(1), work(2)), World())
    run = memory.run(whole, 1)
    assert [position_of(run.journal, step) for step in ("0.0.0", "0.1.0")] == [0, 1]
    assert isinstance(work, Activity)


@pytest.mark.parametrize("on_close", ["cancel", "terminate", "abandon"])
def test_what_becomes_of_a_child_when_its_parent_ends_first(on_close: Any) -> None:
    world = World()

    @workflow("o.beside")
    def beside(n: int) -> Steps[int, Broken]:
        return (yield from sleep("1h").then(lambda _: work(n)).ensure(lambda _: other(n)))

    memory, whole = made(lambda n: beside.start(n, on_close=on_close).map(lambda child: child.id), world)
    memory = Memory(Deployment([whole, beside], [bind(work, world.on("work")), bind(other, world.on("other"))]))
    run = memory.run(whole, 1)
    assert isinstance(run.exit, Success)
    child = memory.look(run.exit.unwrap())
    assert world.called == {"cancel": ["other 1"], "terminate": [], "abandon": ["work 1", "other 1"]}[on_close]
    assert str(child.exit) == {
        "cancel": "Cancelled(reason='cancelled by its parent')",
        "terminate": "Cancelled(reason='terminated: cancelled by its parent')",
        "abandon": "<Success: 1>",
    }[on_close]  # fmt: skip


def test_a_policy_that_says_two_things() -> None:
    with pytest.raises(FlowError, match="Leave one of them out"):
        made(work, World())[1].start(1, detached=True, on_close="cancel")
    with pytest.raises(FlowError, match="Use one of cancel, terminate, abandon"):
        made(work, World())[1].start(1, on_close="kill")  # type: ignore[arg-type]
