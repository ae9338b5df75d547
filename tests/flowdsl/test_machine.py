"""The machine, driven by hand: what is open after each exit, and how it all ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from attrs import frozen
from returns.result import Failure, Result, Success

from flowdsl import (
    Cancelled,
    Defect,
    Died,
    Done,
    Flow,
    Next,
    Skipped,
    Steps,
    activity,
    all_,
    changed,
    dag,
    dag_attempt,
    do,
    each,
    each_attempt,
    execution,
    fail,
    iterate,
    masked,
    node,
    now,
    pure,
    race,
    random,
    report,
    saga,
    signal,
    sleep,
    uuid,
    workflow,
)
from flowdsl.errors import DefinitionError, MachineError
from flowdsl.flow import Execution, Perform, Sleep, Start
from flowdsl.machine import DEFECT, FAILED, OK, CancelScope, Checkpoint, Machine
from flowdsl.memory import EPOCH


@frozen
class Broken:
    why: str


def contract(name: str) -> Any:
    @activity(name)
    def made(n: int) -> Result[int, Broken]: ...

    return made


a, b, c, d, undo, clean = map(contract, ("a", "b", "c", "d", "undo", "clean"))


@workflow("inlined")
def inlined(n: int) -> Steps[int, Broken]:
    return (yield from a((yield from b(n))))


class Driven:
    """A machine with a journal that counts."""

    def __init__(self, flow: Flow[Any, Any]) -> None:
        self.machine = Machine(Execution("e-1", "t", "w", None, None, EPOCH), flow)
        self.position = 0
        self.machine.start()

    @property
    def open(self) -> dict[str, str]:
        """Step to what is asked."""
        return {step: _shown(one.instruction) for step, one in self.machine.pending.items()}

    @property
    def exit(self) -> Any:
        return self.machine.exit

    def _at(self) -> dict[str, Any]:
        self.position += 1
        return {"position": self.position - 1, "at": EPOCH + timedelta(seconds=self.position)}

    def step(self, named: str) -> str:
        """The first open step that asks this."""
        return next(step for step, shown in self.open.items() if named in (step, shown.partition(" ")[0]))

    def answer(self, named: str, value: Any = None) -> Driven:
        self.machine.resume(self.step(named), OK, value, **self._at())
        return self

    def fails(self, named: str, error: Any = Broken("x")) -> Driven:
        self.machine.resume(self.step(named), FAILED, error, **self._at())
        return self

    def breaks(self, named: str) -> Driven:
        self.machine.resume(self.step(named), DEFECT, Defect(named, "boom"), **self._at())
        return self

    def cancel(self, reason: str = "enough") -> Driven:
        self.machine.cancel(reason, **self._at())
        return self

    def checkpoint(self) -> Driven:
        step, one = next((step, one) for step, one in self.machine.pending.items() if isinstance(one.instruction, Checkpoint))
        self.machine.checkpoint(step, one.instruction.round, one.instruction.state, **self._at())
        return self


def _shown(instruction: Any) -> str:
    if isinstance(instruction, Perform):
        return f"{instruction.activity.name} {instruction.request}"
    return type(instruction).__name__.lower()


# Steps


def test_steps_count_up_and_a_part_shares_its_callers() -> None:
    @do
    def part() -> Steps[int, Broken]:
        yield from a(1)
        return (yield from b(2))

    run = Driven(c(0).then(lambda _: part()).then(lambda _: d(3)))
    assert run.open == {"0": "c 0"}
    assert run.answer("c").open == {"1": "a 1"}
    assert run.answer("a").open == {"2": "b 2"}
    assert run.answer("b").open == {"3": "d 3"}


def test_an_inlined_workflow_has_a_scope_of_its_own() -> None:
    run = Driven(inlined(7).then(lambda n: c(n)))
    assert run.open == {"0.0": "b 7"}
    assert run.answer("b", 8).open == {"0.1": "a 8"}
    assert run.answer("a", 9).open == {"1": "c 9"}


def test_branches_and_rounds_have_scopes_of_their_own() -> None:
    run = Driven(all_(a(0), iterate(5, lambda n: b(n).map(lambda _: Next(n + 1))), race(c(1), d(2))))
    assert run.open == {"0.0.0": "a 0", "0.1.0.0.0": "b 5", "0.2.0.0.0": "c 1", "0.2.0.1.0": "d 2"}
    run.answer("b").checkpoint()
    assert run.open["0.1.0.1.0"] == "b 6"


def test_a_step_does_not_depend_on_who_is_first() -> None:
    def flow() -> Flow[Any, Any]:
        return each(range(3), lambda n: a(n).then(b), concurrency=2)

    one, other = Driven(flow()), Driven(flow())
    one.answer("0.0.0", 0).answer("0.1.0", 1).answer("0.0.1", 0)
    other.answer("0.1.0", 1).answer("0.0.0", 0).answer("0.0.1", 0)
    assert one.open == other.open == {"0.1.1": "b 1", "0.2.0": "a 2"}


def test_chance_takes_a_step_and_the_rest_of_what_the_machine_knows_does_not() -> None:
    @do
    def body() -> Steps[Any, Broken]:
        yield from now()
        yield from execution()
        yield from report("here")
        yield from changed("it")
        drawn = (yield from uuid()), (yield from uuid()), (yield from random())
        yield from a(0)
        return drawn

    one, other = Driven(body()), Driven(body())
    assert one.open == {"3": "a 0"}
    drawn = one.answer("a").exit.unwrap()
    assert drawn == other.answer("a").exit.unwrap()
    assert drawn[0] != drawn[1] and 0 <= drawn[2] < 1


def test_now_is_the_time_of_the_last_entry() -> None:
    run = Driven(now().then(lambda first: a(0).then(lambda _: now()).map(lambda second: (first, second))))
    assert run.answer("a").exit == Success((EPOCH, EPOCH + timedelta(seconds=1)))


# Branches


def test_the_first_exit_in_journal_order_wins_a_race() -> None:
    run = Driven(race(a(0), b(0).then(c)))
    assert run.answer("b", 1).exit is None
    assert run.answer("c", "b's").exit == Success("b's")
    assert run.open == {} and run.machine.closed == ["0.0.0"]


def test_a_losers_late_answer_is_no_longer_open() -> None:
    run = Driven(race(a(0), b(0)).then(c)).answer("a", 1)
    with pytest.raises(MachineError, match=r"0\.1\.0: is not open"):
        run.machine.resume("0.1.0", OK, 2, position=1, at=EPOCH)


def test_a_failure_may_win_a_race() -> None:
    assert Driven(race(a(0), b(0))).fails("b", Broken("first")).exit == Failure(Broken("first"))


def test_a_branch_that_ends_at_once_wins_before_the_others_begin() -> None:
    run = Driven(race(pure(1), a(0)))
    assert run.exit == Success(1) and run.machine.opened == []


def test_the_first_failure_cancels_the_rest() -> None:
    run = Driven(all_(a(0), b(0).ensure(lambda exit: clean(type(exit).__name__)), c(0))).fails("a")
    assert run.open == {"0.1.1": "clean Cancelled"}
    assert run.answer("clean").exit == Failure(Broken("x"))


def test_a_branch_that_is_made_with_an_exception_is_a_defect() -> None:
    assert "ZeroDivisionError" in Driven(each([1, 0], lambda n: a(1 // n))).exit.message


def test_nothing_to_do_is_done() -> None:
    assert Driven(each([], a)).exit == Success([])
    assert Driven(all_()).exit == Success(())
    assert Driven(dag({})).exit == Success({})


def test_no_more_than_concurrency_at_a_time_and_answers_in_order() -> None:
    run = Driven(each([5, 6, 7], a, concurrency=2))
    assert list(run.open.values()) == ["a 5", "a 6"]
    assert list(run.answer("0.1.0", "six").open.values()) == ["a 5", "a 7"]
    assert run.answer("0.2.0", "seven").answer("0.0.0", "five").exit == Success(["five", "six", "seven"])


def test_each_attempt_goes_through_them_all() -> None:
    run = Driven(each_attempt([1, 2], a)).fails("0.0.0", Broken("one")).answer("0.1.0", 2)
    assert run.exit == Success([Failure(Broken("one")), Success(2)])


def test_a_node_begins_when_what_it_needs_is_done() -> None:
    run = Driven(dag({"x": node(a(0)), "y": node(b(0), after=["x"]), "z": node(c(0), after=["x"], soft=["y"])}))
    assert list(run.open.values()) == ["a 0"]
    assert list(run.answer("a", 1).open.values()) == ["b 0"]
    assert run.answer("b", 2).answer("c", 3).exit == Success({"x": 1, "y": 2, "z": 3})


def test_what_hangs_on_a_failure_is_skipped_and_says_on_which() -> None:
    nodes = {"x": node(a(0)), "y": node(b(0), after=["x"]), "z": node(c(0), after=["y"]), "w": node(d(0), soft=["x"])}
    run = Driven(dag_attempt(nodes)).fails("a", Broken("x"))
    assert list(run.open.values()) == ["d 0"]
    assert run.answer("d", 4).exit == Success({"x": Failure(Broken("x")), "y": Skipped("x"), "z": Skipped("y"), "w": Success(4)})


def test_a_cycle_is_refused_when_the_dag_is_built_and_named() -> None:
    with pytest.raises(DefinitionError, match=r"a cycle: .* → ") as refused:
        dag({"x": node(a(0), after=["z"]), "y": node(a(0), after=["x"]), "z": node(a(0), soft=["y"])})
    assert all(name in str(refused.value) for name in "xyz")
    with pytest.raises(DefinitionError, match="'x' comes after 'q', which is no node"):
        dag({"x": node(a(0), after=["q"])})


# Masks


def test_a_start_in_a_race_is_answered_before_its_branch_is_cancelled() -> None:
    run = Driven(race(inlined.start(1).then(lambda child: child.join()), b(0))).answer("b", 2)
    assert run.open == {"0.0.0": "start"} and run.exit is None
    assert isinstance(run.machine.pending["0.0.0"].instruction, Start)
    assert run.answer("start").exit == Success(2)
    assert run.machine.effects == [CancelScope("0.0")]


def test_work_with_an_undo_is_recorded_before_a_cancellation_is_delivered() -> None:
    run = Driven(race(a(0).compensate(undo), b(0)).then(lambda _: fail(Broken("late")))).answer("b", 2)
    assert run.open == {"0.0.0": "a 0"}
    assert run.answer("a", 7).open == {"1.0.0": "undo 7"}
    assert run.answer("undo").exit == Failure(Broken("late"))


def test_masked_work_is_not_interrupted_and_what_it_gave_gives_way() -> None:
    run = Driven(masked(a(0).then(b)).then(c)).cancel()
    assert run.open == {"0": "a 0"}
    assert run.answer("a", 1).open == {"1": "b 1"}
    assert run.answer("b").exit == Cancelled("enough")


def test_branches_of_masked_work_still_race() -> None:
    run = Driven(masked(race(a(0), b(0)))).cancel()
    assert run.answer("a").exit == Cancelled("enough")


# Undos


def test_undos_run_last_first_and_the_failure_goes_on() -> None:
    run = Driven(a(0).compensate(undo).then(lambda _: b(0).compensate(undo)).then(c))
    run.answer("a", 1).answer("b", 2).fails("c", Broken("c"))
    assert run.open == {"3.0.0": "undo 2"}
    assert run.answer("undo").open == {"3.1.0": "undo 1"}
    assert run.answer("undo").exit == Failure(Broken("c"))


def test_a_failing_undo_is_noted_and_the_others_still_run() -> None:
    run = Driven(a(0).compensate(undo).then(lambda _: b(0).compensate(undo)).then(c))
    run.answer("a", 1).answer("b", 2).fails("c", Broken("c")).fails("undo", Broken("stuck"))
    assert run.open == {"3.1.0": "undo 1"}
    exit = run.answer("undo").exit
    assert isinstance(exit, Defect) and exit.where == "compensation"
    assert "stuck" in exit.message and "Broken(why='c')" in exit.message
    assert run.machine.failed_undos == ("<Failure: Broken(why='stuck')>",)


def test_an_inner_saga_hands_its_undos_outward_when_it_succeeds() -> None:
    run = Driven(a(0).compensate(undo).then(lambda _: saga(b(0).compensate(undo))).then(c))
    run.answer("a", 1).answer("b", 2).fails("c")
    assert run.answer("undo").open == {"3.1.0": "undo 1"}


def test_an_inner_saga_settles_its_undos_when_it_fails() -> None:
    run = Driven(a(0).compensate(undo).then(lambda _: saga(b(0).compensate(undo).then(c)).attempt()).then(lambda _: d(0)))
    run.answer("a", 1).answer("b", 2).fails("c")
    assert run.open == {"3.0.0": "undo 2"}
    assert run.answer("undo").open == {"4": "d 0"}
    assert run.fails("d").open == {"5.0.0": "undo 1"}


def test_what_an_undo_would_have_undone_is_dropped() -> None:
    run = Driven(a(0).compensate(lambda n: undo(n).compensate(undo)).then(c)).answer("a", 1).fails("c")
    assert run.answer("undo").exit == Failure(Broken("x"))


def test_after_an_inner_rollback_undos_go_to_the_outer_saga_again() -> None:
    inner = saga(a(0).compensate(undo).then(b)).attempt()
    run = Driven(inner.then(lambda _: c(0).compensate(undo)).then(d)).answer("a", 1).fails("b").answer("undo").answer("c", 2).fails("d")
    assert list(run.open.values()) == ["undo 2"]


def test_an_undo_without_work_before_it_covers_a_lost_answer() -> None:
    run = Driven(pure(5).compensate(undo).then(a)).breaks("a")
    assert list(run.open.values()) == ["undo 5"]


# Finalizers


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        (lambda run: run.answer("a", 1), "<Success: 1>"),
        (lambda run: run.fails("a"), "<Failure: Broken(why='x')>"),
        (lambda run: run.breaks("a"), "Defect(where='a', message='boom')"),
        (lambda run: run.cancel(), "Cancelled(reason='enough')"),
    ],
)
def test_a_finalizer_is_told_each_exit_and_the_exit_goes_on(ends: Callable[[Driven], Driven], told: str) -> None:
    run = ends(Driven(a(0).ensure(lambda exit: clean(str(exit)))))
    assert run.open == {"1": f"clean {told}"}
    assert str(run.answer("clean").exit) == told


def test_a_finalizer_is_not_interrupted_and_its_failure_is_a_defect() -> None:
    run = Driven(a(0).ensure(lambda _: clean(0))).answer("a").cancel()
    assert run.open == {"1": "clean 0"}
    exit = run.fails("clean").exit
    assert isinstance(exit, Defect) and exit.where == "a finalizer"


def test_a_finalizers_failure_in_a_cancelled_branch_is_not_hidden() -> None:
    run = Driven(race(a(0).ensure(lambda _: clean(0)), b(0))).answer("b").fails("clean")
    assert isinstance(run.exit, Defect)
    run = Driven(race(a(0).ensure(lambda _: clean(0)), b(0))).cancel().fails("clean")
    assert isinstance(run.exit, Defect)


# Defects


def test_isolate_gives_a_defect_as_a_value() -> None:
    assert Driven(a(0).isolate()).breaks("a").exit == Failure(Died("a", "boom"))


def test_isolate_takes_back_no_cancellation() -> None:
    assert Driven(a(0).isolate().then(b)).cancel().exit == Cancelled("enough")
    run = Driven(a(0).ensure(lambda _: clean(0)).isolate().attempt().then(b)).cancel().fails("clean")
    assert isinstance(run.exit, Defect) and run.open == {}


def test_isolate_works_while_cleaning_up() -> None:
    run = Driven(a(0).ensure(lambda _: clean(0).isolate().attempt())).cancel().breaks("clean")
    assert run.exit == Cancelled("enough")


def test_a_bare_yield_is_a_defect_that_says_yield_from() -> None:
    @do
    def body() -> Any:
        yield a(0)

    exit = Driven(body()).exit
    assert "write `yield from`" in exit.message and "Perform" in exit.message
    assert __file__ in exit.where and exit.where.endswith("in body")


def test_a_body_that_raises_is_a_defect_with_the_line() -> None:
    @do
    def body() -> Steps[int, Broken]:
        yield from a(0)
        raise KeyError("gone")

    exit = Driven(body()).answer("a").exit
    assert exit.message == "KeyError: 'gone'" and f"{__file__}:" in exit.where and exit.where.endswith("in body")


def test_a_body_without_a_bind_is_a_defect_that_says_what_to_write() -> None:
    @do
    def body() -> Any:
        return pure(1)

    exit = Driven(body()).exit
    assert "`yield from`" in exit.message and exit.where.endswith("in body")


@pytest.mark.parametrize("use", ["then", "catch", "ensure", "each"])
def test_a_function_that_gives_no_flow_is_a_defect(use: str) -> None:
    def forgetful(_: Any) -> Any:
        return None

    flows: dict[str, Flow[Any, Any]] = {
        "then": pure(1).then(forgetful),
        "catch": fail(1).catch(forgetful),
        "ensure": pure(1).ensure(forgetful),
        "each": each([1], forgetful),
    }
    exit = Driven(flows[use]).exit
    assert isinstance(exit, Defect) and ("None, which is no flow" in exit.message or "None, which is no flow" in str(exit))


def test_the_failed_body_is_closed() -> None:
    closed: list[bool] = []

    @do
    def body() -> Steps[None, Broken]:
        try:
            yield from a(0)
        finally:
            closed.append(True)

    Driven(body()).fails("a")
    assert closed == [True]


# Loops


def test_a_round_that_gives_anything_else_is_a_defect() -> None:
    exit = Driven(iterate(0, lambda _: pure(5))).exit  # type: ignore[arg-type, return-value]
    assert exit == Defect("iterate", "a round gave 5: return Next(state) or Done(answer)")


def test_a_checkpoint_is_asked_between_rounds_that_recorded_something() -> None:
    run = Driven(iterate(0, lambda n: (a(n) if n % 2 else pure(0)).map(lambda _: Next(n + 1) if n < 4 else Done(n))))
    assert run.open == {"0.1.0": "a 1"}
    run.answer("a")
    assert run.open == {"0": "checkpoint"}
    assert run.machine.pending["0"].instruction.round == 2  # type: ignore[union-attr]
    assert run.checkpoint().open == {"0.3.0": "a 3"}


def test_a_checkpoint_drops_the_round_that_its_loop_is_in() -> None:
    run = Driven(iterate(0, lambda n: race(a(n), masked(b(n)), iterate(0, lambda _: c(0))).map(Next)))  # type: ignore[arg-type, return-value]
    assert len(run.open) == 3
    run.machine.checkpoint("0", 7, 70, position=0, at=EPOCH)
    assert run.open == {"0.7.0.0.0": "a 70", "0.7.0.1.0": "b 70", "0.7.0.2.0.0.0": "c 0"}
    assert run.exit is None and run.machine._root.mask == 0
    with pytest.raises(MachineError, match="is no open loop"):
        run.machine.checkpoint("9", 1, 1, position=1, at=EPOCH)


def rounds(body: Callable[[int], Flow[Any, Any]]) -> Driven:
    return Driven(iterate(0, lambda n: body(n).map(lambda _: Next(n + 1))))


def test_a_round_leaves_nothing_behind_its_checkpoint() -> None:
    run = rounds(a)
    for _ in range(3):
        run.answer("a")
        assert run.machine.live_positions("0") == []
        run.checkpoint()


def test_a_round_with_an_undo_for_outside_is_kept_with_the_checkpoint_that_began_it() -> None:
    run = rounds(lambda n: a(n).compensate(undo) if n == 1 else a(n))
    run.answer("a").checkpoint().answer("a")
    assert run.machine.live_positions("0") == [[1, 3]]
    assert run.checkpoint().answer("a").machine.live_positions("0") == [[1, 3]]


def test_a_round_whose_undos_were_settled_within_it_leaves_nothing() -> None:
    run = rounds(lambda n: saga(a(n).compensate(undo).then(b)).attempt())
    run.answer("a").fails("b").answer("undo")
    assert run.machine.live_positions("0") == []


def test_an_undo_for_an_outer_round_pins_the_inner_rounds_alone() -> None:
    inner = iterate(0, lambda n: a(n).compensate(undo).map(lambda _: Next(n + 1) if n < 1 else Done(n)))
    run = rounds(lambda n: saga(inner.then(b)).attempt())
    run.answer("a")
    assert run.machine.live_positions("0.0.0") == [[0, 1]]
    run.checkpoint().answer("a").fails("b").answer("undo").answer("undo")
    assert run.machine.live_positions("0") == []


def test_a_round_whose_undo_failed_is_kept_for_the_end_to_tell() -> None:
    run = rounds(lambda n: saga(a(n).compensate(undo).then(b)).isolate().attempt())
    run.answer("a").fails("b").fails("undo")
    assert run.machine.failed_undos != ()
    assert run.machine.live_positions("0") == [[0, 3]]


# Cancellation


def test_cancelling_twice_is_once() -> None:
    run = Driven(a(0).ensure(lambda _: clean(0))).cancel("first").cancel("second")
    assert run.open == {"1": "clean 0"}
    assert run.answer("clean").exit == Cancelled("first")
    assert run.cancel("third").exit == Cancelled("first")


def test_a_cancellation_closes_what_is_open_and_undoes_what_was_done() -> None:
    run = Driven(a(0).compensate(undo).then(lambda _: all_(b(0), sleep("1h"), signal("s", int).receive()))).answer("a", 1)
    assert list(run.cancel().open.values()) == ["undo 1"]
    assert run.machine.closed == ["1.0.0", "1.1.0", "1.2.0"]
    assert run.answer("undo").exit == Cancelled("enough")


def test_a_finalizer_sees_the_time_of_the_cancellation() -> None:
    run = Driven(a(0).ensure(lambda _: now().then(lambda at: clean((at - EPOCH).seconds))))
    run.position = 40
    assert run.cancel().open == {"1": "clean 41"}


def test_a_scope_that_is_cancelled_takes_its_children_with_it_even_if_its_cleaning_up_fails() -> None:
    run = Driven(race(inlined.start(1).then(lambda _: a(0)).ensure(lambda _: clean(0)), b(0))).answer("start").answer("b")
    run.fails("clean")
    assert CancelScope("0.0") in run.machine.effects


# Change markers


def test_a_change_marker_never_waits_and_asks_for_a_mark() -> None:
    run = Driven(race(changed("new"), a(0)))
    assert run.exit == Success(True)
    assert [(mark.step, mark.id) for mark in run.machine.marks] == [("0.0.changed:new", "new")]


def test_a_change_marker_answers_the_same_at_each_pass() -> None:
    @do
    def body() -> Steps[list[bool], Broken]:
        seen = []
        for _ in range(2):
            seen.append((yield from changed("new")))
            yield from a(0)
        return seen

    machine = Machine(Execution("e-1", "t", "w", None, None, EPOCH), body())
    machine.replaying = True
    machine.start()
    machine.replaying = False
    for step in "01":
        machine.resume(step, OK, 0, position=int(step), at=EPOCH)
    assert machine.exit == Success([False, False]) and machine.marks == []


def test_where_names_the_bind_that_opened_a_step() -> None:
    @do
    def body() -> Steps[Any, Broken]:
        return (yield from all_(a(0).then(b), sleep("1s")))

    run = Driven(body())
    for one in run.machine.pending.values():
        file, line, function = run.machine.where(one)
        assert file == __file__ and line > 1 and function.endswith("body")
    assert isinstance(run.machine.pending["0.1.0"].instruction, Sleep)
