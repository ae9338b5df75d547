"""The import in virtual time: chunks, children, counts, runs that are begun again, and what must never happen twice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domains.imports import activities as contracts
from domains.imports.failures import FileChanged, Unavailable, Unreadable
from domains.imports.values import Counts, Imported, ProcessMealShort, ProcessMealShortsCsv
from domains.imports.workflows import process_meal_short, process_meal_shorts_csv
from flowdsl import Failure, Success
from flowdsl.outline import outline
from flowdsl.testing import Fake, World, check, worlds
from flowdsl.testing.golden import compared, definitions_of, read
from tests.domains.imports_kitchen import ORDER, Kitchen, csv_of

LONG = 20 if os.environ.get("FLOWDSL_LONG") == "1" else 1
GOLDEN = Path(__file__).parents[1] / "golden" / "imports"


def counts_of(run: Any) -> Counts:
    assert isinstance(run.exit, Success), run
    found: Imported = run.exit.unwrap()
    return found.counts


# The file: a parent with a child for each row


@pytest.mark.shows("S3.20", "S3.25", "S3.31")
def test_each_row_has_one_child_and_the_counts_are_joined(fake: Fake) -> None:
    kitchen = Kitchen(csv_of("1,A", "1,B", "2,A", "3,A", "3"), unknown={"2,A"})
    run = kitchen.play(fake).run(process_meal_shorts_csv, ORDER)
    assert counts_of(run) == Counts(done=3, failed=1, malformed=1)
    assert sorted(kitchen.asked) == ["1,A", "1,B", "2,A", "3,A"]
    assert [(one.line, one.error.split(":")[0]) for one in kitchen.errors or []] == [(4, "there is no order 2"), (6, "1 cells, and 2 columns")]
    assert run.exit.unwrap().errors == "s3://kitchen/shorts.errors.csv"
    assert run.exit.unwrap().version == kitchen.digest
    assert kitchen.parts == {}


@pytest.mark.shows("S3.22", "S3.26")
def test_the_three_steps_of_a_row_are_one_after_another(fake: Fake) -> None:
    kitchen = Kitchen()
    run = kitchen.play(fake).run(process_meal_short, ProcessMealShort("1", "A"))
    assert run.exit == Success(None)
    told = str(run)
    assert told.index("validate_order(") < told.index("process(") < told.index("send_confirmation(")


def test_a_step_that_fails_ends_the_row(fake: Fake) -> None:
    kitchen = Kitchen(unknown={"1,A"})
    run = kitchen.play(fake).run(process_meal_short, ProcessMealShort("1", "A"))
    assert isinstance(run.exit, Failure)
    assert kitchen.goods == {}


@pytest.mark.shows("S3.11", "S3.12", "S3.30")
def test_keys_are_made_of_the_row_and_no_two_rows_share_one() -> None:
    key = process_meal_short.key_of
    assert key(ProcessMealShort("456", "ABC123")) == "meal-short-456-ABC123"
    assert key(ProcessMealShort("1-2", "3")) != key(ProcessMealShort("1", "2-3"))


# Begun again


@pytest.mark.shows("S3.6", "S3.16", "S3.24")
def test_the_second_run_does_failed_and_new_rows_and_nothing_else(fake: Fake) -> None:
    kitchen = Kitchen(csv_of("1,A", "1,B", "2,A", "2,B"), unknown={"1,B"}, bounces={"2,A"})
    assert counts_of(kitchen.play(fake).run(process_meal_shorts_csv, ORDER)) == Counts(done=2, failed=2)
    kitchen.unknown, kitchen.bounces, kitchen.asked = set(), set(), []
    kitchen.content += b"3,A\n"  # the file has changed between the runs: what it says now counts
    assert counts_of(fake.run(process_meal_shorts_csv, ORDER)) == Counts(done=3, already=2)
    assert sorted(kitchen.asked) == ["1,B", "2,A", "3,A"]
    assert kitchen.errors == []
    assert len(kitchen.goods) == len(kitchen.confirmed) == 5


@pytest.mark.shows("S3.6")
def test_a_row_whose_confirmation_failed_is_not_made_good_twice(fake: Fake) -> None:
    """The trap: the second child is another execution, and every attempt of it has another key."""
    kitchen = Kitchen(csv_of("1,A"), bounces={"1,A"})
    kitchen.play(fake).run(process_meal_shorts_csv, ORDER)
    kitchen.bounces = set()
    assert counts_of(fake.run(process_meal_shorts_csv, ORDER)) == Counts(done=1)
    assert kitchen.twice() == []
    assert kitchen.goods == {"meal-short-1-A": "1,A"}


def test_however_its_address_is_spelled_a_file_is_one_file(fake: Fake) -> None:
    kitchen = Kitchen(csv_of("1,A"))
    kitchen.play(fake).run(process_meal_shorts_csv, ORDER)
    again = fake.run(process_meal_shorts_csv, ProcessMealShortsCsv("https://s3.amazonaws.com/kitchen/shorts.csv"))
    assert counts_of(again) == Counts(already=1)


@pytest.mark.shows("S3.8")
def test_another_file_has_rows_of_its_own(fake: Fake) -> None:  # the seed's trap: unique over the table, asked for per parent
    kitchen = Kitchen(csv_of("1,A"))
    kitchen.play(fake).run(process_meal_shorts_csv, ORDER)
    assert counts_of(fake.run(process_meal_shorts_csv, ProcessMealShortsCsv("s3://kitchen/other.csv"))) == Counts(done=1)
    assert kitchen.twice() == []


@pytest.mark.shows("S3.3")
def test_a_key_that_comes_twice_in_the_file_is_one_row(fake: Fake) -> None:
    kitchen = Kitchen(csv_of("1,A", "1,A", "1,B", "1,A"), chunk=3)
    assert counts_of(kitchen.play(fake).run(process_meal_shorts_csv, ORDER)) == Counts(done=2, already=1, repeated=1)
    assert sorted(kitchen.asked) == ["1,A", "1,B"]


# The file changes, cannot be read, the storage is away


def test_a_file_that_changes_between_two_reads_ends_the_run_and_what_is_known_is_kept(fake: Fake) -> None:
    kitchen = Kitchen(csv_of("1,A", "1,B", "2,A", "2,B"), absent={"1,A"})

    def changing(request: Any) -> Any:
        if len(kitchen.offsets) == 1:
            kitchen.content = csv_of("9,Z", "1,B", "2,A")
        return kitchen.read_rows(request)

    run = kitchen.play(fake).on(contracts.read_rows, changing).run(process_meal_shorts_csv, ORDER)
    assert run.exit == Failure(FileChanged(ORDER.s3_url, 4))
    assert [one.line for one in kitchen.errors or []] == [2]
    again = fake.on(contracts.read_rows, kitchen.read_rows).run(process_meal_shorts_csv, ORDER)
    assert counts_of(again) == Counts(done=2, already=1)


def test_what_is_no_csv_fails_at_once(fake: Fake) -> None:
    run = Kitchen(b"PK\x03\x04zip").play(fake).run(process_meal_shorts_csv, ORDER)
    assert isinstance(run.exit, Failure) and isinstance(run.exit.failure(), Unreadable)
    assert "Save it as CSV" in str(run.exit.failure())


def test_a_storage_that_is_away_is_asked_again(fake: Fake) -> None:
    kitchen = Kitchen(csv_of("1,A"))
    away = Unavailable("s3", 503)
    fake = kitchen.play(fake).fails(contracts.inspect_file, away, times=3).fails(contracts.read_rows, away, times=5)
    run = fake.fails(contracts.publish_errors, away).fails(contracts.process, away).run(process_meal_shorts_csv, ORDER)
    assert counts_of(run) == Counts(done=1)


@pytest.mark.shows("S3.26", "S3.31")
def test_a_bug_in_one_row_stays_in_it(fake: Fake) -> None:
    kitchen = Kitchen(csv_of("1,A", "2,A"))

    def validated(request: ProcessMealShort) -> Any:
        if request.order_id == "1":
            raise ZeroDivisionError("a bug")
        return Success(None)

    run = kitchen.play(fake).on(contracts.validate_order, validated).run(process_meal_shorts_csv, ORDER)
    assert counts_of(run) == Counts(done=1, failed=1)
    assert "ZeroDivisionError" in (kitchen.errors or [])[0].error


# Crashes


def test_a_crash_after_every_entry_loses_nothing_and_does_nothing_twice(fake: Fake) -> None:
    kitchen = Kitchen(csv_of("1,A", "1,B", "2,A", "2,B", "x"), bounces={"1,B"})
    run = kitchen.play(fake).crash(everywhere=True).run(process_meal_shorts_csv, ORDER)
    assert counts_of(run) == Counts(done=3, failed=1, malformed=1)
    assert kitchen.twice() == []
    assert [one.line for one in kitchen.errors or []] == [3, 6]


def test_the_errors_are_there_when_the_process_dies_after_they_were_published(fake: Fake) -> None:
    kitchen = Kitchen(csv_of("1,A"), absent={"1,A"})
    kitchen.play(fake).crash(before="imports.publish_errors").run(process_meal_shorts_csv, ORDER)
    assert [one.line for one in kitchen.errors or []] == [2]


# Any file, any fate


CELLS = st.sampled_from(["1,A", "1,B", "2,A", "3,C", "bad", '"', "", '"4",D', '5,"E\nE"', "é,F"])


@pytest.mark.shows("S3.3", "S3.24")
@settings(max_examples=30 * LONG, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(CELLS, max_size=12), chunk=st.integers(1, 5), wrong=st.sets(st.sampled_from(["1,A", "2,A", "3,C"])), data=st.data())
def test_two_runs_of_any_file_do_every_row_once(rows: list[str], chunk: int, wrong: set[str], data: Any) -> None:
    kitchen = Kitchen(csv_of(*rows), chunk)
    setattr(kitchen, data.draw(st.sampled_from(["unknown", "absent", "bounces"])), set(wrong))
    fake = kitchen.play(Fake())
    first = counts_of(fake.run(process_meal_shorts_csv, ORDER))
    kitchen.unknown, kitchen.absent, kitchen.bounces, kitchen.asked = set(), set(), set(), []
    second = counts_of(fake.run(process_meal_shorts_csv, ORDER))
    assert first.rows == second.rows
    assert first.malformed == second.malformed
    assert second.failed == 0
    assert kitchen.twice() == []
    assert len(kitchen.asked) == len(set(kitchen.asked)) <= first.failed
    assert set(kitchen.goods.values()) == set(kitchen.confirmed.values()) == {one for one in kitchen.confirmed.values()}


@settings(max_examples=40 * LONG, deadline=None)
@given(worlds(process_meal_shorts_csv, request=st.just(ORDER), model=Kitchen))
def test_in_no_world_has_a_row_two_children_or_none(world: World[ProcessMealShortsCsv, Imported, object]) -> None:
    """Whatever the order service answers and wherever the process dies: one child that did a row, and no second one beside it."""
    run = world.run()
    children = [(child.calls(contracts.validate_order)[:1], child.exit) for child in run.children]
    rows = [row for row, _ in children if row]
    done = [row for row, exit in children if exit == Success(None)]
    assert len(done) == len(set(done))
    assert all(rows.count(row) == 1 for row in rows if row != (ProcessMealShort("1", "A"),)), "only the line that comes again may be tried again"
    if isinstance(run.exit, Success):
        assert {*rows} == {(ProcessMealShort(*row),) for row in ("1A", "1B", "2A")}
        assert run.exit.unwrap().counts.done == len(done)
        assert run.exit.unwrap().counts.rows == 4
    assert world.model.twice() == []


# The kit's laws, and the golden journal


@pytest.mark.parametrize("workflow", [process_meal_short, process_meal_shorts_csv], ids=lambda one: one.name)
def test_the_laws_hold(workflow: Any) -> None:
    request = st.just(ORDER) if workflow is process_meal_shorts_csv else None
    checked = check(workflow, request=request, model=Kitchen, examples=8 * LONG, elsewhere=LONG > 1, seed=4)
    assert checked.runs > 0
    if workflow is process_meal_short:
        lit = outline(workflow).lit(entry for journal in checked.journals for entry in journal)
        assert not lit.missing, lit


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.json")), ids=lambda one: one.stem)
def test_the_golden_journals_fold(file: Path) -> None:
    for one in read(file.read_text(), str(file)):
        verdict = compared(one, definitions_of(process_meal_shorts_csv, process_meal_short))
        assert verdict.verdict == "fits", "\n".join([verdict.why, *verdict.lines])


def test_there_are_golden_journals() -> None:
    assert len(list(GOLDEN.glob("*.json"))) >= 2
