"""docs/reliability.md has a row for each fault that we know of, and each row a test that exists, or the reason why there is none yet."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"

FAULTS = {"A": 9, "B": 17, "C": 9, "D": 6, "E": 9, "F": 12, "G": 8, "H": 4}
ROWS = [f"{letter}{number}" for letter, count in FAULTS.items() for number in range(1, count + 1)]

NAMED = re.compile(r"`(tests/[\w/]+\.py)((?:::\w+)+)`")


def rows(text: str) -> list[list[str]]:
    """The cells of each row that begins with a fault's number."""
    found = (re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in cells] for cells in found if re.fullmatch(r"[A-H]\d+", cells[0].strip())]


def wrong(text: str) -> list[str]:
    """What the page lacks."""
    found = rows(text)
    numbers = [cells[0] for cells in found]
    out = [f"{number} is missing" for number in ROWS if number not in numbers]
    out += [
        f"{number} is there more than once, or is no fault of ours"
        for number in dict.fromkeys(numbers)
        if numbers.count(number) > 1 or number not in ROWS
    ]
    for cells in found:
        if len(cells) != 4 or not all(cells):
            out.append(f"{cells[0]} has not its four cells")
            continue
        out += [f"{cells[0]}: {what}" for what in wrong_evidence(cells[3])]
    return out


def wrong_evidence(cell: str) -> list[str]:
    tests = NAMED.findall(cell)
    left = NAMED.sub("", cell).strip(" ,")
    if not tests:
        return [] if re.match(r"not yet: \w.{20,}", cell) else ["it names no test, and does not say why (not yet: …)"]
    out = [f"{left!r} is not the name of a test"] if left else []
    return out + [f"there is no test {path}{name}" for path, name in tests if name not in named_in(path)]


@cache
def named_in(path: str) -> frozenset[str]:
    """The tests of a file, as pytest names them."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"::{node.name}::{one.name}" for one in node.body if _is_test(one)}
        elif _is_test(node):
            assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            names.add(f"::{node.name}")
    return frozenset(names)


def _is_test(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")


def test_every_fault_has_its_row_and_its_test() -> None:
    assert wrong(PAGE.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: re.sub(r"^\| C5 .*\n", "", text, flags=re.M), "C5 is missing"),
        (lambda text: re.sub(r"^(\| C5 .*\n)", r"\1\1", text, flags=re.M), "C5 is there more than once"),
        (lambda text: text.replace("| C5 |", "| C99 |"), "C99 is there more than once, or is no fault"),
        (lambda text: text.replace("::test_two_who_declare_a_worker_gone", "::test_three_who_declare"), "C5: there is no test"),
        (lambda text: text.replace("`tests/postgres/test_faults.py::test_two_who", "`tests/nowhere.py::test_two_who"), "C5: there is no test"),
        (lambda text: re.sub(r"^(\| C5 .*\|)[^|]*\|$", r"\1 surely |", text, flags=re.M), "C5: it names no test"),
        (lambda text: re.sub(r"^(\| C5 .*\|)[^|]*\|$", r"\1 not yet: later |", text, flags=re.M), "C5: it names no test"),
        (lambda text: re.sub(r"^(\| C5 .*\|)([^|]*)\|$", r"\1\2 and more |", text, flags=re.M), "is not the name of a test"),
        (lambda text: re.sub(r"^(\| C5 \|)[^|]*\|", r"\1 |", text, flags=re.M), "C5 has not its four cells"),
    ],
)
def test_what_is_missing_would_be_found(change: object, said: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    changed = change(text)  # type: ignore[operator]
    assert changed != text
    assert any(said in one for one in wrong(changed)), wrong(changed)
