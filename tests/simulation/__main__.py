"""`./dev sim`: runs seeds, finds planted bugs, tells the story of one."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulation.bugs import BUGS, Bug
from tests.simulation.marks import Marks
from tests.simulation.run import Outcome, installed, shrunk, simulate

LIMIT = 2000
"""Seeds in which a planted bug is looked for."""


def repeat(seed: int, bug: Bug | None = None) -> str:
    return f"./dev sim --seed {seed}{f' --bug {bug.number}' if bug is not None else ''} --trace"


def failed(outcome: Outcome, bug: Bug | None = None) -> str:
    """The whole story of a seed that went wrong, with as few faults as will do."""
    fewest = shrunk(outcome.seed, outcome, bug=bug)
    orders = ", ".join(f"{order.index} {order.kind}" for order in outcome.orders)
    counts = f"{len(outcome.faults)} faults, {len(fewest.faults)} of them needed"
    return f"seed {outcome.seed} ({outcome.policy}; orders {orders}; {counts})\n{fewest.told()}\nrepeat: {repeat(outcome.seed, bug)}\n"


def seeds(first: int, count: int) -> int:
    marks, wrong, began, steps = Marks(), 0, time.monotonic(), 0
    for seed in range(first, first + count):
        outcome = simulate(seed)
        marks.met += outcome.marks.met
        steps += outcome.steps
        if outcome.wrong:
            wrong += 1
            print(failed(outcome), flush=True)
    took = time.monotonic() - began
    print(f"{count} seeds from {first} on: {wrong} went wrong; {steps:,} callbacks, {count / took:.1f} seeds/s")
    missing = marks.missing()
    print(f"{len(marks.met)} marks met" + (f"; never: {', '.join(missing)}" if missing else ""))
    return int(bool(wrong))


def bugs(limit: int, only: int | None = None) -> int:
    """For each planted bug: in how many seeds it was found."""
    found = 0
    chosen = [bug for bug in BUGS if only in (None, bug.number)]
    for bug in chosen:
        began = time.monotonic()
        for seed in range(limit):
            outcome = simulate(seed, bug=bug)
            if outcome.wrong:
                found += 1
                print(f"{bug.number:2} {bug.name:34} {seed + 1:5} seeds {time.monotonic() - began:6.1f} s   {repeat(seed, bug)}", flush=True)
                print(f"   {outcome.wrong[0][:180]}", flush=True)
                break
        else:
            print(f"{bug.number:2} {bug.name:34}  not found in {limit} seeds", flush=True)
    print(f"{found} of {len(chosen)} found")
    return int(found < len(chosen))


def one(seed: int, number: int | None, *, loud: bool) -> int:
    bug = next((bug for bug in BUGS if bug.number == number), None)
    outcome = simulate(seed, bug=bug, loud=loud)
    print(outcome.told())
    print(f"seed {seed}: trace {outcome.trace}, {outcome.steps} callbacks, {outcome.commits} commits, {outcome.seconds:.1f} virtual s")
    return int(bool(outcome.wrong))


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev sim", description="The real runtime under one seeded scheduler, over a Postgres in memory.")
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="one seed, with its timeline")
    parser.add_argument("--bugs", action="store_true", help="how many seeds it takes to find each planted bug; --seeds is the limit")
    parser.add_argument("--bug", type=int, help="that planted bug alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: every callback")
    asked = parser.parse_args()
    with installed():
        if asked.seed is not None:
            return one(asked.seed, asked.bug, loud=asked.trace)
        if asked.bugs or asked.bug is not None:
            return bugs(asked.seeds if asked.seeds != 200 else LIMIT, asked.bug)
        return seeds(asked.first, asked.seeds)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # nothing of what the killed processes of the last run have left is worth finalizing
