"""Many seeds, on all cores. Each process has its own hash seed: that too must not matter."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from attrs import field, frozen

from tests.simulation.bugs import BUGS, Bug
from tests.simulation.marks import Marks
from tests.simulation.run import Outcome, installed, shrunk, simulate

CHUNK = 50


@frozen
class Some:
    """What came of some seeds."""

    count: int
    steps: int
    marks: Counter[str]
    wrong: list[str] = field(factory=list[str])
    """The stories of those that went wrong."""


@frozen
class Hunt:
    """How a planted bug was looked for; `seed` is None when it was not found."""

    number: int
    seed: int | None
    why: str = ""


def repeat(seed: int, bug: Bug | None = None) -> str:
    return f"./dev sim --seed {seed}{f' --bug {bug.number}' if bug is not None else ''} --trace"


def failed(outcome: Outcome, bug: Bug | None = None) -> str:
    """The whole story of a seed that went wrong, with as few faults as will do."""
    fewest = shrunk(outcome.seed, outcome, bug=bug)
    orders = ", ".join(f"{order.index} {order.kind}" for order in outcome.orders)
    counts = f"{len(outcome.faults)} faults, {len(fewest.faults)} of them needed"
    return f"seed {outcome.seed} ({outcome.policy}; orders {orders}; {counts})\n{fewest.told()}\nrepeat: {repeat(outcome.seed, bug)}\n"


def carried_out(first: int, count: int) -> Some:
    marks, steps, wrong = Marks(), 0, list[str]()
    with installed():
        for seed in range(first, first + count):
            outcome = simulate(seed)
            marks.met += outcome.marks.met
            steps += outcome.steps
            if outcome.wrong:
                wrong.append(failed(outcome))
    return Some(count, steps, marks.met, wrong)


def hunted(number: int, limit: int) -> Hunt:
    bug = next(bug for bug in BUGS if bug.number == number)
    with installed():
        for seed in range(limit):
            outcome = simulate(seed, bug=bug)
            if outcome.wrong:
                return Hunt(number, seed, outcome.wrong[0])
    return Hunt(number, None)


def many(first: int, count: int, jobs: int | None = None) -> Iterator[Some]:
    """Some after some, in order."""
    with _pool(jobs) as pool:
        starts = range(first, first + count, CHUNK)
        yield from pool.map(carried_out, starts, [min(CHUNK, first + count - start) for start in starts])


def hunts(numbers: list[int], limit: int, jobs: int | None = None) -> Iterator[Hunt]:
    """Each planted bug, in the order asked."""
    with _pool(jobs) as pool:
        yield from pool.map(hunted, numbers, [limit] * len(numbers))


def _pool(jobs: int | None) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=get_context("spawn"))
