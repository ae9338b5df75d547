"""The quick form: some seeds, the marks that they must meet, the trace that they must give, and that the net holds what is thrown in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.simulation.bugs import BUGS
from tests.simulation.many import hunts, many, repeat
from tests.simulation.marks import MARKS, Marks
from tests.simulation.run import installed, shrunk, simulate

LONG = bool(os.environ.get("FLOWDSL_LONG"))
SEEDS = 20_000 if LONG else 800
SELDOM = {
    "crash loop",
    "turn fenced",
    "start repeated",
    "front unknown",
    "taken over in mid-transaction",
    "transaction unknown",
    "at most once, cut short",
    "mail too late",
}
"""Marks that the quick form's seeds need not meet; those of the long one must."""
QUICK = (1, 5, 9, 16, 21)
LIMIT = 2000 if LONG else 200

_TRACES = """
from tests.simulation.run import installed, simulate
import os
with installed():
    print(*(simulate(seed).trace for seed in range(6)), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module", autouse=True)
def _simulated() -> Generator[None]:
    with installed():
        yield


@pytest.mark.timeout(7200 if LONG else 400)
def test_nothing_goes_wrong_and_everything_happens() -> None:
    marks = Marks()
    for some in many(0, SEEDS):
        marks.met += some.marks
        assert not some.wrong, some.wrong[0]
    never = [name for name in marks.missing() if LONG or name not in SELDOM]
    assert not never, f"never met in {SEEDS} seeds: {', '.join(f'{name} ({MARKS[name]})' for name in never)}"


@pytest.mark.timeout(7200 if LONG else 400)
def test_planted_bugs_are_found() -> None:
    bugs = {bug.number: bug for bug in BUGS if LONG or bug.number in QUICK}
    missed = [f"{bugs[hunt.number].name}: {repeat(0, bugs[hunt.number])}" for hunt in hunts(list(bugs), LIMIT) if hunt.seed is None]
    assert not missed, f"not found in {LIMIT} seeds: {missed}"


def test_a_failure_needs_few_faults() -> None:
    bug = next(one for one in BUGS if one.number == 1)
    outcome = next(found for seed in range(LIMIT) if (found := simulate(seed, bug=bug)).wrong and found.faults)
    fewest = shrunk(outcome.seed, outcome, bug=bug)
    assert fewest.wrong
    assert len(fewest.faults) <= len(outcome.faults)
    assert simulate(outcome.seed, bug=bug).trace == outcome.trace


def test_a_seed_is_the_same_run_under_another_hash_seed() -> None:
    root = Path(__file__).parents[2]
    traces = {
        subprocess.run(
            [sys.executable, "-c", _TRACES], cwd=root, env={**os.environ, "PYTHONHASHSEED": number}, check=True, capture_output=True, text=True
        ).stdout
        for number in ("1", "4711")
    }
    assert len(traces) == 1, traces
    assert len(set(traces.pop().split())) == 6
