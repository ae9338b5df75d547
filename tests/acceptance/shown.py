"""Which test shows which row, read from the tests' source: `@pytest.mark.shows("S3.22", "S3.14-16")` above the function."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from attrs import frozen

from tests.acceptance.rows import RowError, System, numbers

ROOT = Path(__file__).resolve().parents[2]
MARK = "pytest.mark.shows"


@frozen
class Shown:
    """A test, as pytest names it, and the rows that it carries."""

    file: str
    line: int
    name: str
    rows: tuple[str, ...]

    @property
    def test(self) -> str:
        return f"{self.file}::{self.name}"


def shown(known: Iterable[System], root: Path = ROOT) -> list[Shown]:
    """All tests that carry numbers. Raises `RowError`, with file and line, for a number that there is not."""
    known = list(known)
    return [one for file in sorted((root / "tests").rglob("test_*.py")) for one in _of_file(file, root, known)]


def by_row(tests: Iterable[Shown]) -> Mapping[str, list[Shown]]:
    found: dict[str, list[Shown]] = {}
    for test in tests:
        for row in test.rows:
            found.setdefault(row, []).append(test)
    return found


def _of_file(file: Path, root: Path, known: list[System]) -> Iterator[Shown]:
    text = file.read_text(encoding="utf-8")
    if MARK not in text:  # to parse them all takes seconds
        return
    path = file.relative_to(root).as_posix()
    for name, function in _functions(ast.parse(text, path)):
        marks = [one for one in function.decorator_list if isinstance(one, ast.Call) and ast.unparse(one.func) == MARK]
        if not marks:
            continue
        try:
            rows = tuple(dict.fromkeys(numbers((_text(argument) for mark in marks for argument in mark.args), known)))
        except RowError as error:
            raise RowError(f"{path}:{function.lineno}: {name}: {error}") from None
        yield Shown(path, function.lineno, name, rows)


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Of the module and of its classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}::{one.name}", one) for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))


def _text(argument: ast.expr) -> str:
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value
    raise RowError(f"{ast.unparse(argument)} is no number: write it out, for example {MARK}('S3.22')")
