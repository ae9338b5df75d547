"""The verdict finds every kind of difference, and none where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.verdict import Counts, judged

TRUE: dict[str, Any] = {
    "attributes": {"name": "Nul\x00Byte", "grade": 0, "child": False, "nickname": None},
    "relationships": {"campus": {"type": "PrimaryCampus", "id": "7"}, "people": [], "gender": None},
}


def told(attributes: dict[str, Any] | None = None, relationships: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"attributes": {**TRUE["attributes"], **(attributes or {})}, "relationships": {**TRUE["relationships"], **(relationships or {})}}


def test_what_agrees_is_clean() -> None:
    found = judged({"Person": {"1": TRUE}}, [("Person", "1", told())])
    assert found.clean
    assert (found.records, found.missing, found.duplicated, found.stale) == (1, 0, 0, 0)


@pytest.mark.parametrize("relationships", [{"people": None}, {"people": []}, {"gender": []}])
def test_absent_empty_and_null_relationships_are_the_same(relationships: dict[str, Any]) -> None:
    assert judged({"Person": {"1": TRUE}}, [("Person", "1", told(relationships=relationships))]).clean
    bare = {"attributes": {key: value for key, value in TRUE["attributes"].items() if value is not None}, "relationships": {"campus": {"type": "PrimaryCampus", "id": "7"}}}  # fmt: skip # noqa: E501
    assert judged({"Person": {"1": TRUE}}, [("Person", "1", bare)]).clean


@pytest.mark.parametrize(
    ("attributes", "relationships"),
    [
        ({"name": "NulByte"}, {}),
        ({"grade": None}, {}),
        ({"child": None}, {}),
        ({"nickname": ""}, {}),
        ({}, {"campus": {"type": "PrimaryCampus", "id": "8"}}),
        ({}, {"campus": None}),
        ({}, {"people": [{"type": "Person", "id": "1"}]}),
    ],
)
def test_what_differs_is_stale(attributes: dict[str, Any], relationships: dict[str, Any]) -> None:
    assert judged({"Person": {"1": TRUE}}, [("Person", "1", told(attributes, relationships))]).stale == 1


def test_missing_stale_and_duplicated_are_counted_by_entity() -> None:
    truth = {"Person": {"1": TRUE, "2": TRUE}, "Email": {}}
    kept = [("Person", "1", told()), ("Person", "1", told()), ("Email", "9", told()), ("Cow", "1", told())]
    found = judged(truth, kept)
    assert not found.clean
    assert found.by_entity == {"Cow": Counts(1, 0, 0, 1), "Email": Counts(1, 0, 0, 1), "Person": Counts(2, 1, 1, 0)}
    assert (found.records, found.missing, found.duplicated, found.stale) == (4, 1, 1, 2)
