"""An import as a family: who is whose child, under which key, and what there is of it in a bigger one."""

from __future__ import annotations

import pytest

from domains.imports import activities as contracts
from domains.imports.failures import ImportFailure, RowFailure
from domains.imports.values import ProcessMealShort, ProcessMealShortsCsv
from domains.imports.workflows import process_meal_short, process_meal_shorts_csv
from flowdsl import Steps, Success, each, workflow
from flowdsl.testing import Fake
from tests.domains.imports_kitchen import ORDER, URL, Kitchen, csv_of


@workflow("rows.of_a_person")
def of_a_person(row: ProcessMealShort) -> Steps[tuple[str, ...], RowFailure]:
    child = yield from process_meal_short.start(row, key="item-456-ABC123")
    again = yield from process_meal_short.start(row, key="item-456-ABC123")
    assert child.id == again.id
    yield from child.join()
    return tuple((yield from process_meal_short.existing(["item-456-ABC123", process_meal_short.key_of(row)])))


@workflow("rows.of_a_week")
def of_a_week(urls: tuple[str, ...]) -> Steps[int, ImportFailure]:
    imported = yield from each([ProcessMealShortsCsv(url) for url in urls], process_meal_shorts_csv.child)
    return sum(one.counts.done for one in imported)


@pytest.mark.shows("S3.3", "S3.10", "S3.11")
def test_a_child_has_the_key_that_it_is_given_and_its_own_arguments(fake: Fake) -> None:
    kitchen = Kitchen(csv_of("456,ABC123"))
    run = kitchen.play(fake).run(of_a_person, ProcessMealShort("456", "ABC123"))
    assert run.exit == Success(("item-456-ABC123",)), "the key that was given, and not the workflow's own"
    (child,) = run.children
    assert child.workflow is process_meal_short
    assert kitchen.asked == ["456,ABC123"]


@pytest.mark.shows("S3.1", "S3.20", "S3.21")
def test_the_parent_reads_its_file_and_starts_a_child_a_row(fake: Fake) -> None:
    kitchen = Kitchen(csv_of("1,A", "1,B", "2,A"))
    run = kitchen.play(fake).run(process_meal_shorts_csv, ORDER)
    assert [(child.workflow.name, child.exit) for child in run.children] == [("imports.meal_short", Success(None))] * 3
    assert {asked.file.url for asked in run.calls(contracts.read_rows)} == {URL}
    assert [asked for child in run.children for asked in child.calls(contracts.validate_order)] == [
        ProcessMealShort("1", "A"),
        ProcessMealShort("1", "B"),
        ProcessMealShort("2", "A"),
    ]
    assert set(kitchen.goods) == {"meal-short-1-A", "meal-short-1-B", "meal-short-2-A"}


@pytest.mark.shows("S3.2")
def test_a_week_of_files_is_a_tree_of_three_levels(fake: Fake) -> None:
    run = Kitchen(csv_of("1,A", "2,A"), chunk=5).play(fake).run(of_a_week, (URL, "s3://kitchen/tuesday.csv"))
    assert run.exit == Success(4)
    assert [child.workflow.name for child in run.children] == ["imports.meal_shorts_csv"] * 2
    assert [[row.workflow.name for row in file.children] for file in run.children] == [["imports.meal_short"] * 2] * 2
