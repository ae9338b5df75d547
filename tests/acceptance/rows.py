"""What each system has to show, as numbered rows, and the numbers that tests carry."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import field, frozen

FOLDER = Path(__file__).resolve().parent

_NUMBERS = re.compile(r"(S\d+)(?:\.(\d+)(?:-(\d+))?)?")


class RowError(Exception):
    """A list, or a number on a test, that says nothing. Tells what would."""


@frozen
class Row:
    """`text` says what is shown; where a wish was mistaken as written, what was meant by it."""

    system: str
    at: int
    text: str
    open: str | None = None
    """Why no test can show it yet."""

    @property
    def number(self) -> str:
        return f"{self.system}.{self.at}"


@frozen
class System:
    number: str
    name: str
    about: str
    stands: bool
    why: str | None
    """What there is of one that does not stand."""
    rows: tuple[Row, ...] = field(repr=False)


def systems(folder: Path = FOLDER) -> list[System]:
    """The lists beside this module, in the order of their numbers."""
    return sorted((_system(file) for file in folder.glob("*.toml")), key=lambda one: one.number)


def _system(file: Path) -> System:
    told = tomllib.loads(file.read_text(encoding="utf-8"))
    number, rows, still_open = told["number"], told["rows"], told.get("open", {})
    if [int(at) for at in rows] != list(range(1, len(rows) + 1)):
        raise RowError(f"{file.name}: rows are numbered from 1, without a gap and in order")
    if not set(still_open) <= set(rows):
        raise RowError(f"{file.name}: [open] names rows that there are not: {', '.join(sorted(set(still_open) - set(rows)))}")
    made = (Row(number, int(at), text, still_open.get(at)) for at, text in rows.items())
    return System(number, told["name"], told["about"], told["stands"], told.get("why"), tuple(made))


def spelled(text: str) -> range | None:
    """The rows of `S3.22` or `S3.14-16`; None for a whole system, `S3`. Raises `RowError` for anything else."""
    found = _NUMBERS.fullmatch(text)
    if found is None:
        raise RowError(f"{text!r} names no row: write S3.22, S3.14-16, or S3 for all of them")
    if found[2] is None:
        return None
    first, last = int(found[2]), int(found[3] or found[2])
    if last < first or (found[3] is not None and last == first):
        raise RowError(f"{text!r} is no range: the last comes after the first")
    return range(first, last + 1)


def numbers(texts: Iterable[str], known: Iterable[System]) -> Iterator[str]:
    """The rows that these name, one by one. Raises `RowError` for one that there is not."""
    rows = {one.number: [row.number for row in one.rows] for one in known}
    for text in texts:
        span, system = spelled(text), text.partition(".")[0]
        if system not in rows:
            raise RowError(f"there is no system {system}; there are {', '.join(rows)}")
        named = rows[system] if span is None else [f"{system}.{at}" for at in span]
        lacking = [number for number in named if number not in rows[system]]
        if lacking:
            raise RowError(f"there is no row {lacking[0]}: {system} ends with {rows[system][-1]}")
        yield from named
