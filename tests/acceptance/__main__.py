"""`./dev acceptance`: every row of every system, with the tests that show it; what no test shows yet is open."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from rich.console import Console
from rich.text import Text

from tests.acceptance.rows import Row, RowError, System, numbers, systems
from tests.acceptance.shown import Shown, by_row, shown

Tests = Mapping[str, Sequence[Shown]]
INDENT = " " * 10


def document(chosen: Sequence[System], wanted: set[str], tests: Tests) -> dict[str, Any]:
    """The same for a program."""
    return {
        "systems": [
            {"number": one.number, "name": one.name, "about": one.about, "stands": one.stands, "why": one.why, **counted(one, tests)}
            | {"rows": [_plain(row, tests) for row in one.rows if row.number in wanted]}
            for one in chosen
        ]
    }


def _plain(row: Row, tests: Tests) -> dict[str, Any]:
    found = [{"test": one.test, "line": one.line} for one in tests.get(row.number, ())]
    return {"number": row.number, "text": row.text, "shown": bool(found), "tests": found, "open": row.open}


def counted(system: System, tests: Tests) -> dict[str, int]:
    done = sum(row.number in tests for row in system.rows)
    return {"shown": done, "open": len(system.rows) - done}


def told(console: Console, chosen: Sequence[System], wanted: set[str], tests: Tests) -> None:
    for system in (one for one in chosen if any(row.number in wanted for row in one.rows)):
        console.print(Text.assemble((f"{system.number} {system.name}", "bold"), f"  {system.about}"), soft_wrap=True)
        for row in (row for row in system.rows if row.number in wanted):
            _row(console, row, tests.get(row.number, ()))
        console.print()
    for system in chosen:
        count = counted(system, tests)
        left = f", {count['open']} open" if count["open"] else ""
        why = f": {system.why}" if system.why else ""
        console.print(Text(f"{system.number} {system.name:<11}{count['shown']:4} of {len(system.rows)} rows shown{left}{why}"), soft_wrap=True)


def _row(console: Console, row: Row, found: Sequence[Shown]) -> None:
    mark, style = ("✓", "green") if found else ("·", "yellow")
    text = row.text
    if console.is_terminal:  # elsewhere a line is a row, for grep
        text = "\n".join(wrap(text, max(30, console.width - len(INDENT)), subsequent_indent=INDENT))
    console.print(Text.assemble((mark, style), " ", (f"{row.number:<8}", "bold"), text, style="" if found else "dim"), soft_wrap=True)
    if row.open:
        console.print(Text(f"{INDENT}open: {row.open}", style="yellow"), soft_wrap=True)
    for one in found:
        console.print(Text(f"{INDENT}{one.test}", style="dim"), soft_wrap=True)


def chosen_of(asked: Sequence[str], known: Sequence[System]) -> tuple[list[System], set[str]]:
    """The systems, by name or number, and the rows of them that are asked for."""
    named = {one.name: one.number for one in known}
    wanted = set(numbers((named.get(one, one) for one in asked), known)) if asked else {row.number for one in known for row in one.rows}
    return [one for one in known if any(row.number in wanted for row in one.rows)], wanted


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./dev acceptance", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="SYSTEM", help="S3, imports, S3.22 or S3.14-16; all if none is named")
    parser.add_argument("--open", action="store_true", help="only rows that no test shows")
    parser.add_argument("--json", action="store_true", help="one document on stdout")
    asked = parser.parse_args(arguments)
    known = systems()
    try:
        chosen, wanted = chosen_of(asked.rows, known)
        tests = by_row(shown(known))
    except RowError as error:
        print(f"acceptance: {error}", file=sys.stderr)
        return 2
    if asked.open:
        wanted -= set(tests)
    if asked.json:
        print(json.dumps(document(chosen, wanted, tests), indent=1, ensure_ascii=False))
    else:
        told(Console(highlight=False), chosen, wanted, tests)
    return 0


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    raise SystemExit(code)
