"""The lists, the numbers on tests, and the command that puts them together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.__main__ import main
from tests.acceptance.rows import FOLDER, RowError, numbers, spelled, systems
from tests.acceptance.shown import ROOT, Shown, by_row, shown

ALL = systems()
COUNTS = {"S0": 59, "S1": 144, "S2": 61, "S3": 34, "S4": 77}


@cache
def carried() -> list[Shown]:
    return shown(ALL)


def pytest_says(*arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers --import-mode=importlib -p no:schemathesis"]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


# The lists and the tests that there are


def test_no_row_was_lost() -> None:
    assert {one.number: len(one.rows) for one in ALL} == COUNTS
    texts = [row.text for one in ALL for row in one.rows]
    assert all(text and text[0] == text[0].strip() and not text.endswith(".") for text in texts)


def test_every_row_of_a_system_that_stands_has_a_test_or_says_why_not() -> None:
    tests = by_row(carried())
    lacking = [row.number for one in ALL if one.stands for row in one.rows if row.number not in tests and not row.open]
    assert not lacking, f"no test carries {', '.join(lacking)}: write it, above it @pytest.mark.shows(…)"
    assert not [row.number for one in ALL if one.number in ("S2", "S3") for row in one.rows if row.open]


def test_what_is_said_to_be_open_is_open() -> None:
    tests = by_row(carried())
    stale = [row.number for one in ALL for row in one.rows if row.open and row.number in tests]
    assert not stale, f"tests show {', '.join(stale)} now: take them out of [open]"
    assert all(one.stands or one.why for one in ALL), "a system that does not stand says so"


def test_numbers_are_nowhere_but_in_marks() -> None:
    """In a comment nobody checks them."""
    loose = re.compile(r"#.*\bS[0-4]\.\d+")
    files = [file for file in (ROOT / "tests").rglob("*.py") if file.parent != FOLDER]
    found = [f"{file.relative_to(ROOT)}: {line.strip()}" for file in files for line in file.read_text("utf-8").splitlines() if loose.search(line)]
    assert not found, "write @pytest.mark.shows(…) above the test instead:\n" + "\n".join(found)


def test_pytest_collects_the_tests_that_are_named(request: pytest.FixtureRequest) -> None:
    named = {one.test for one in carried()}
    own = [item for item in request.session.items if isinstance(item, pytest.Function) and item.function.__module__ == item.module.__name__]
    here = {item.nodeid.partition("[")[0]: item for item in own}  # some are run again elsewhere, on the model of Postgres
    if named <= here.keys():  # a run of everything knows already
        collected = {name for name, item in here.items() if item.get_closest_marker("shows")}
    else:
        asked = [argument for one in ALL for argument in ("--shows", one.number)]
        lines = pytest_says("--collect-only", "-q", *asked).splitlines()
        collected = {line.partition("[")[0].strip() for line in lines if "::" in line}
    assert collected == named


@pytest.mark.shows("S2.50")
def test_one_file_runs_alone_and_of_it_only_what_shows_a_row() -> None:
    said = pytest_says("tests/domains/test_enrichment.py", "--shows", "S2.52", "-v")
    assert "test_the_policy_is_the_seeds PASSED" in said and re.search(r"\b1 passed, \d+ deselected", said), said


# How numbers are written, and what is refused


@pytest.mark.parametrize(("text", "rows"), [("S3.22", [22]), ("S3.14-16", [14, 15, 16]), ("S3", None)])
def test_a_number_names_rows(text: str, rows: list[int] | None) -> None:
    found = spelled(text)
    assert (None if found is None else list(found)) == rows


@pytest.mark.parametrize("text", ["", "3.1", "S3.", "S3.x", "S3.5-2", "S3.5-5", "S3.1, S3.2", "S9", "S3.0", "S3.35", "S3.30-40"])
def test_a_number_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(RowError, match=r"names no row|is no range|there is no"):
        list(numbers([text], ALL))


def planted(root: Path, text: str) -> Path:
    (root / "tests").mkdir()
    (root / "tests" / "test_planted.py").write_text(f"import pytest\n\n\n{text}\n")
    return root


def test_marks_are_read_from_functions_and_methods(tmp_path: Path) -> None:
    text = (
        '@pytest.mark.anyio\n@pytest.mark.shows("S3.1", "S3.3-5")\n@pytest.mark.shows("S2.1")\nasync def test_a(): ...\n'
        'class TestB:\n    @pytest.mark.shows("S3.3")\n    def test_c(self): ...\n    def test_d(self): ...\n'
    )
    found = shown(ALL, planted(tmp_path, text))
    assert [(one.test, one.rows) for one in found] == [
        ("tests/test_planted.py::test_a", ("S3.1", "S3.3", "S3.4", "S3.5", "S2.1")),
        ("tests/test_planted.py::TestB::test_c", ("S3.3",)),
    ]
    assert [one.name for one in by_row(found)["S3.3"]] == ["test_a", "TestB::test_c"]


@pytest.mark.parametrize("mark", ['"S3.99"', '"S3.1" + "2"', "ROW"])
def test_a_wrong_mark_is_named_with_its_place(tmp_path: Path, mark: str) -> None:
    with pytest.raises(RowError, match=r"^tests/test_planted\.py:5: test_a: "):
        shown(ALL, planted(tmp_path, f"@pytest.mark.shows({mark})\ndef test_a(): ..."))


def test_a_list_with_a_gap_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('number = "S9"\nname = "x"\nabout = ""\nstands = true\n[rows]\n1 = "a"\n3 = "b"\n')
    with pytest.raises(RowError, match="without a gap"):
        systems(tmp_path)


# The command


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_the_table_names_each_row_and_its_tests(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys)
    assert all(f" {row.number} " in out for one in ALL for row in one.rows)
    assert all(one.test in out for one in carried())
    assert re.search(r"^S3 imports +34 of 34 rows shown$", out, re.MULTILINE)
    assert re.search(r"^S0 erasure +\d+ of 59 rows shown, \d+ open: ", out, re.MULTILINE)


def test_a_system_a_row_and_what_is_open(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "imports") == said(capsys, "S3")
    one = said(capsys, "S3.22")
    assert "S3.22" in one and "S3.23" not in one and "test_the_three_steps_of_a_row" in one
    assert "S4.77" not in (left := said(capsys, "S4", "--open")) and "S4.72" in left


def test_the_same_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    document: dict[str, Any] = json.loads(said(capsys, "sync", "--json"))
    (system,) = document["systems"]
    assert (system["number"], system["shown"] + system["open"], len(system["rows"])) == ("S4", 77, 77)
    row = next(one for one in system["rows"] if one["number"] == "S4.31")
    assert row["shown"] and all(set(test) == {"test", "line"} for test in row["tests"])


def test_what_there_is_not_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["S7"]) == 2
    assert capsys.readouterr().err == "acceptance: there is no system S7; there are S0, S1, S2, S3, S4\n"
    assert main(["kitchen"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
