"""The journal: what is recorded folds back to the same, and what does not fit is told so that a person sees why."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Never

import pytest
from attrs import evolve, frozen
from returns.result import Failure, Result, Success

from flowdsl import (
    Cancelled,
    Defect,
    Deployment,
    Done,
    Flow,
    Next,
    Round,
    Steps,
    Workflow,
    activity,
    all_,
    audit,
    bind,
    changed,
    do,
    each,
    iterate,
    pure,
    sleep,
    workflow,
)
from flowdsl.activation import Activation, live_entries
from flowdsl.codec import Undecodable
from flowdsl.journal import BUG, CHECKPOINT, INTERRUPTED, SUCCESS, Divergence, Entry, decode_exit, encode_exit, state_codec
from flowdsl.memory import EPOCH, Memory


@frozen
class Broken:
    why: str


def contract(name: str) -> Any:
    @activity(f"shop.{name}")
    def made(n: int) -> Result[int, Broken]: ...

    return made


fetch, fetch_v2, save, mail, check = map(contract, ("fetch", "fetch_v2", "save", "mail", "check"))
ALL = (fetch, fetch_v2, save, mail, check)


def recorded(body: Callable[[int], Any], rows: int | None = None) -> tuple[Memory, str, list[Entry]]:
    """A whole run of a body, and its first rows."""
    flow = workflow("shop.order")(body)
    memory = Memory(Deployment([flow], [bind(one, Success) for one in ALL]))
    run = memory.run(flow, 1)
    return memory, run.id, list(run.journal)[:rows]


def deployed(body: Callable[[int], Any], memory: Memory, id: str, rows: list[Entry]) -> Activation:
    """Another body, given the same journal."""
    flow: Workflow[Any, Any, Any] = workflow("shop.order")(body)
    kept = memory._kept[id]
    activation = Activation(kept.execution, flow, kept.request, lambda _: flow)
    activation.begin(rows, [], memory.now)
    return activation


def first(n: int) -> Steps[int, Broken]:
    fetched = yield from fetch(n)
    saved = yield from save(fetched)
    mailed = yield from mail(saved)
    return (yield from check(mailed))


def diverges(body: Callable[[int], Any], rows: int = 3) -> list[str]:
    memory, id, journal = recorded(first, rows)
    with pytest.raises(Divergence) as raised:
        deployed(body, memory, id, journal)
    text = str(raised.value)
    assert text.startswith(f"execution {id} diverges at position {raised.value.position}: {raised.value.verdict}\n")
    assert text.endswith('Nothing was executed. Deploy code that fits the record (or guard the new steps with `changed("id")`), then resume it.')
    return text.splitlines()[:-1]


def lines_of(lines: list[str]) -> list[tuple[str, str, str, str]]:
    """Mark, recorded, asked, verdict; without the sites."""
    told = []
    for line in lines[2:]:
        if " | " in line:
            recorded, _, asked = line[4:].partition(" | ")
            left, right = recorded.split(), asked.split()
            verdict = [word for word in right if word in ("renamed", "replaced", "moved", "removed", "inserted")]
            verdict += ["other input"] if asked.endswith("other input") else []
            told.append((line[2], " ".join(left[:3]), " ".join(right[:3]) if len(right) > 2 else "", "".join(verdict)))
    return told


# Divergence, as a person reads it


def test_the_same_code_fits() -> None:
    memory, id, journal = recorded(first, 3)
    assert list(deployed(first, memory, id, journal).fold.machine.pending) == ["3"]


def test_renamed() -> None:
    def body(n: int) -> Steps[int, Broken]:
        return (yield from mail((yield from save((yield from fetch_v2(n))))))

    lines = diverges(body)
    assert "perform shop.fetch (step 0) was recorded, the code asks perform shop.fetch_v2 (step 0) instead" in lines[0]
    assert lines_of(lines) == [
        ("~", "0 perform shop.fetch", "0 perform shop.fetch_v2", "renamed"),
        ("=", "1 perform shop.save", "1 perform shop.save", ""),
        ("=", "2 perform shop.mail", "2 perform shop.mail", ""),
    ]


def test_moved() -> None:
    def body(n: int) -> Steps[int, Broken]:
        fetched = yield from fetch(n)
        mailed = yield from mail(fetched)
        return (yield from save(mailed))

    lines = diverges(body)
    assert "perform shop.mail (step 1) was moved" in lines[0]
    assert lines_of(lines) == [
        ("=", "0 perform shop.fetch", "0 perform shop.fetch", ""),
        ("+", "", "1 perform shop.mail", "moved"),
        ("=", "1 perform shop.save", "2 perform shop.save", ""),
        ("-", "2 perform shop.mail", "", "moved"),
    ]


def test_moved_into_branches() -> None:
    def body(n: int) -> Steps[Any, Broken]:
        fetched = yield from fetch(n)
        return (yield from all_(save(fetched), mail(fetched)))

    lines = diverges(body)
    assert "perform shop.save (step 1) was moved: it is step 1.0.0 now" in lines[0]
    assert lines_of(lines)[1:] == [
        ("~", "1 perform shop.save", "1.0.0 perform shop.save", "moved"),
        ("=", "2 perform shop.mail", "1.1.0 perform shop.mail", ""),
    ]


def test_removed() -> None:
    def body(n: int) -> Steps[int, Broken]:
        return (yield from check((yield from mail((yield from fetch(n))))))

    lines = diverges(body)
    assert "perform shop.save (step 1) was recorded, the code no longer asks it" in lines[0]
    assert lines_of(lines)[1:] == [("-", "1 perform shop.save", "", "removed"), ("=", "2 perform shop.mail", "1 perform shop.mail", "")]


def test_inserted() -> None:
    def body(n: int) -> Steps[int, Broken]:
        fetched = yield from fetch(n)
        yield from check(fetched)
        return (yield from mail((yield from save(fetched))))

    lines = diverges(body)
    assert "perform shop.check (step 1) is new: the record has something else there" in lines[0]
    assert lines_of(lines)[1:] == [
        ("+", "", "1 perform shop.check", "inserted"),
        ("=", "1 perform shop.save", "2 perform shop.save", ""),
        ("=", "2 perform shop.mail", "3 perform shop.mail", ""),
    ]


def test_other_input() -> None:
    def body(n: int) -> Steps[int, Broken]:
        fetched = yield from fetch(n)
        return (yield from mail((yield from save(fetched + 1))))

    lines = diverges(body)
    assert "perform shop.save (step 1) was recorded with another input than the code gives it now" in lines[0]
    assert lines_of(lines)[1:] == [
        ("~", "1 perform shop.save", "1 perform shop.save", "other input"),
        ("=", "2 perform shop.mail", "2 perform shop.mail", ""),
    ]


def test_the_code_ends_before() -> None:
    def body(n: int) -> Steps[int, Broken]:
        return (yield from fetch(n))

    lines = diverges(body)
    assert "perform shop.save (step 1) was recorded, the code ends before it" in lines[0]
    assert [verdict for *_, verdict in lines_of(lines)] == ["", "removed", "removed"]
    assert lines[-1] == "  + the end: <Success: 1>"


def test_replaced_by_something_of_another_kind() -> None:
    def body(n: int) -> Steps[int, Broken]:
        fetched = yield from fetch(n)
        yield from sleep("1h")
        return fetched

    lines = diverges(body, 2)
    assert lines_of(lines)[1:] == [("~", "1 perform shop.save", "1 sleep 1h", "replaced")]


def test_another_span_of_time_is_shown_as_people_write_it() -> None:
    def waits(span: str) -> Callable[[int], Steps[int, Broken]]:
        def body(n: int) -> Steps[int, Broken]:
            yield from sleep(span)
            return (yield from save(n))

        return body

    memory, id, journal = recorded(waits("5m"))
    with pytest.raises(Divergence) as raised:
        deployed(waits("1h30m"), memory, id, journal)
    assert raised.value.verdict == "sleep 5m (step 0) was recorded, the code asks sleep 1h30m (step 0) instead"


def test_both_sides_name_the_source_line_and_are_aligned() -> None:
    def body(n: int) -> Steps[int, Broken]:
        return (yield from mail((yield from save((yield from fetch_v2(n))))))

    lines = diverges(body)
    table = [line for line in lines if " | " in line]
    assert len({line.index(" | ") for line in table}) == 1
    assert all("first test_journal.py:" in line.partition(" | ")[0] for line in table[1:])
    assert all("body test_journal.py:" in line.partition(" | ")[2] for line in table[1:])
    code = body.__code__
    assert lines[-1].startswith(f"    asked at {__file__}:{code.co_firstlineno + 1} in ")


def test_only_the_last_three_that_fit_are_shown() -> None:
    def many(n: int) -> Steps[int, Broken]:
        for _ in range(6):
            n = yield from save(n)
        return (yield from mail(n))

    def other(n: int) -> Steps[int, Broken]:
        for _ in range(6):
            n = yield from save(n)
        return (yield from check(n))

    memory, id, journal = recorded(many)
    with pytest.raises(Divergence) as raised:
        deployed(other, memory, id, journal)
    assert [mark for mark, *_ in lines_of(str(raised.value).splitlines()[:-1])] == ["=", "=", "=", "~"]


def test_a_divergence_in_a_wide_fan_out_stays_readable() -> None:
    def wide(n: int) -> Steps[Any, Broken]:
        return (yield from each(range(100), save, concurrency=100))

    def other(n: int) -> Steps[Any, Broken]:
        return (yield from each(range(100), lambda i: save(i + 1), concurrency=100))

    memory, id, journal = recorded(wide, 50)
    with pytest.raises(Divergence) as raised:
        deployed(other, memory, id, journal)
    assert "(step 0.0.0) was recorded with another input" in raised.value.verdict
    assert len(raised.value.lines) < 25


def test_code_that_raises_on_the_way_is_told_as_the_end() -> None:
    def body(n: int) -> Steps[int, Broken]:
        yield from fetch(n)
        raise ValueError("new bug")

    assert "ValueError: new bug" in diverges(body)[-1]


# Change markers


def marked(n: int) -> Steps[int, Broken]:
    fetched = yield from fetch(n)
    if (yield from changed("check first")):
        yield from check(fetched)
    return (yield from save(fetched))


def unmarked(n: int) -> Steps[int, Broken]:
    fetched = yield from fetch(n)
    return (yield from save(fetched))


def test_a_new_execution_goes_the_new_way_and_says_so_in_its_journal() -> None:
    _, _, journal = recorded(marked)
    assert [(entry.step, entry.fingerprint.rpartition(" ")[0] or entry.fingerprint) for entry in journal] == [
        ("0", "perform shop.fetch"),
        ("changed:check first", "changed check"),
        ("1", "perform shop.check"),
        ("2", "perform shop.save"),
    ]
    assert journal[1].site == f"marked test_journal.py:{marked.__code__.co_firstlineno + 2}"


def test_an_old_execution_that_is_past_it_goes_the_old_way() -> None:
    memory, id, journal = recorded(unmarked)
    assert deployed(marked, memory, id, journal).fold.machine.exit == Success(1)


def test_an_old_execution_that_has_not_come_to_it_goes_the_new_way() -> None:
    memory, id, journal = recorded(unmarked, 1)
    activation = deployed(marked, memory, id, journal)
    assert [entry.fingerprint for entry in activation.take_turn().entries] == ["changed check first"]
    assert activation.fold.fingerprint(activation.fold.machine.pending["1"]).startswith("perform shop.check")


def test_a_new_execution_replays_the_new_way_from_any_row() -> None:
    memory, id, journal = recorded(marked)
    for rows in range(1, len(journal)):
        activation = deployed(marked, memory, id, journal[:rows])
        assert list(activation.fold.machine.pending) == ["1" if rows < 3 else "2"]


def test_a_marker_that_the_code_no_longer_asks_is_passed_over() -> None:
    def final(n: int) -> Steps[int, Broken]:
        fetched = yield from fetch(n)
        yield from check(fetched)
        return (yield from save(fetched))

    memory, id, journal = recorded(marked)
    assert deployed(final, memory, id, journal).fold.machine.exit == Success(1)


def test_a_marker_in_a_plain_loop_answers_an_old_execution_the_same_at_each_pass() -> None:
    def old(n: int) -> Steps[int, Broken]:
        for _ in range(3):
            n = yield from save(n)
        return n

    def new(n: int) -> Steps[int, Broken]:
        for _ in range(3):
            if (yield from changed("check")):
                yield from check(n)
            n = yield from save(n)
        return n

    memory, id, journal = recorded(old)
    activation = deployed(new, memory, id, journal[:2])
    assert activation.take_turn().entries == []
    assert activation.fold.fingerprint(activation.fold.machine.pending["2"]).startswith("perform shop.save")
    assert deployed(new, memory, id, journal).fold.machine.exit == Success(1)


# What is recorded folds back


def test_a_flow_sees_the_decoded_value_on_its_first_run_too() -> None:
    kept: list[list[int]] = [[1]]
    seen: list[list[int]] = []

    @activity("shop.list")
    def listed(n: int) -> Result[list[int], Never]: ...

    @workflow("shop.lists")
    def body(n: int) -> Steps[int, Never]:
        got = yield from listed(n)
        seen.append(got)
        return len(got)

    def implementation(_: int) -> Result[list[int], Never]:
        return Success(kept[0])

    Memory(Deployment([body], [bind(listed, implementation)])).run(body, 1)
    assert seen == kept and seen[0] is not kept[0]


def test_a_loop_sees_its_decoded_state_on_its_first_run_too() -> None:
    states: list[list[int]] = [[]]

    @do
    def one_round(state: list[int]) -> Steps[Round[list[int], int], Broken]:
        assert not any(state is known for known in states[1:])
        yield from save(len(state))
        states.append([*state, 1])
        return Next(states[-1]) if len(state) < 3 else Done(len(state))

    def body(n: int) -> Steps[int, Broken]:
        return (yield from iterate(states[0], one_round))

    memory, id, _ = recorded(body)
    assert memory.look(id).exit == Success(3)


@frozen
class State:
    n: int


def typed_round(order: str, state: State) -> Flow[Round[State, int], Broken]:
    return save(state.n).map(lambda _: Next(State(state.n + 1)) if state.n < 2 else Done(state.n))


@frozen
class Stepper:
    """A callable whose own fields are not its state's."""

    order: str

    def __call__(self, state: State) -> Flow[Round[State, int], Broken]:
        return typed_round(self.order, state)

    def step(self, state: State) -> Flow[Round[State, int], Broken]:
        return typed_round(self.order, state)


@pytest.mark.parametrize("step", [Stepper("o"), Stepper("o").step, partial(typed_round, "o"), lambda state: typed_round("o", state)])
def test_a_loops_state_is_written_by_its_own_type_however_the_step_is_made(step: Any) -> None:
    def body(n: int) -> Steps[int, Broken]:
        return (yield from iterate(State(0), step))

    memory, id, journal = recorded(body)
    assert memory.look(id).exit == Success(2)
    assert [entry.body for entry in journal if entry.kind == CHECKPOINT] == [b'{"round":1,"state":{"n":1}}', b'{"round":2,"state":{"n":2}}']


def test_an_annotated_state_may_be_a_union() -> None:
    def step(state: State | None) -> Flow[Round[State | None, int], Broken]:
        return pure(Done(1))

    assert state_codec(step, None).decode(state_codec(step, None).encode(State(1))) == State(1)


@workflow("shop.exits")
def exits(n: int) -> Steps[int, Broken]:
    return (yield from pure(n))


@pytest.mark.parametrize("exit", [Success(3), Failure(Broken("x")), Defect("here", "boom"), Cancelled("enough")])
def test_an_exit_comes_back_as_it_was_stored(exit: Any) -> None:
    assert decode_exit(exits, encode_exit(exits, exit)) == exit


def test_an_entry_is_never_earlier_than_the_one_before() -> None:
    memory, id, journal = recorded(first, 2)
    activation = deployed(first, memory, id, journal)
    activation.ended("2", Success(1), EPOCH - timedelta(days=1))
    assert activation.take_turn().entries[0].at == journal[-1].at


def test_a_recorded_answer_that_is_no_longer_of_its_type_is_refused() -> None:
    memory, id, journal = recorded(first, 1)
    with pytest.raises(Undecodable, match="expected int"):
        deployed(first, memory, id, [evolve(journal[0], body=b'"text"')])


def test_an_entry_for_what_is_not_open_diverges() -> None:
    memory, id, journal = recorded(first, 2)
    again = evolve(journal[1], position=2)
    with pytest.raises(Divergence) as raised:
        deployed(first, memory, id, [*journal, again])
    assert raised.value.position == 2
    stray = evolve(journal[1], position=2, kind=INTERRUPTED, body=b'{"number":1}')
    with pytest.raises(Divergence):
        deployed(first, memory, id, [*journal, stray])
    loop = evolve(journal[1], position=2, kind=CHECKPOINT, fingerprint="iterate", body=b'{"round":1,"state":1}')
    with pytest.raises(Divergence):
        deployed(first, memory, id, [*journal, loop])


def test_a_refused_state_is_recorded_so_that_what_follows_replays() -> None:
    def body(n: int) -> Steps[int, Broken]:
        bad: Any = object()
        yield from iterate(0, lambda i: save(i).map(lambda _: Next(bad))).isolate().attempt()
        return (yield from mail(n))

    memory, id, journal = recorded(body)
    assert [(entry.kind, entry.step) for entry in journal] == [(SUCCESS, "0.0.0"), (BUG, "0"), (SUCCESS, "1")]
    assert b"the state of iterate at body test_journal.py:" in journal[1].body and b"expected int, got object" in journal[1].body
    for rows in range(1, 4):
        deployed(body, memory, id, journal[:rows])


def test_live_rows_hold_the_marks_of_the_round_that_goes_on() -> None:
    def body(n: int) -> Steps[int, Broken]:
        @do
        def one_round(i: int) -> Steps[Round[int, int], Broken]:
            if (yield from changed("audit")):
                yield from audit("round", i)
            yield from save(i)
            yield from check(i)
            return Next(i + 1) if i < 2 else Done(i)

        return (yield from iterate(0, one_round))

    memory, id, journal = recorded(body)
    for rows in range(1, len(journal) + 1):
        some = journal[:rows]
        from_live = deployed(body, memory, id, live_entries(some)).fold.machine
        assert list(from_live.pending) == list(deployed(body, memory, id, some).fold.machine.pending)
