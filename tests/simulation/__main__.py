"""`./dev sim`: runs seeds, finds planted bugs, tells the story of one."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulation.bugs import BUGS
from tests.simulation.many import hunts, many, repeat
from tests.simulation.marks import Marks
from tests.simulation.run import installed, simulate

LIMIT = 2000
"""Seeds in which a planted bug is looked for."""


def seeds(first: int, count: int, jobs: int) -> int:
    marks, wrong, steps, began = Marks(), 0, 0, time.monotonic()
    for some in many(first, count, jobs):
        marks.met += some.marks
        steps += some.steps
        wrong += len(some.wrong)
        for story in some.wrong:
            print(story, flush=True)
    took = time.monotonic() - began
    print(f"{count} seeds from {first} on: {wrong} went wrong; {steps:,} callbacks, {count / took:.1f} seeds/s")
    missing = marks.missing()
    print(f"{len(marks.met)} marks met" + (f"; never: {', '.join(missing)}" if missing else ""))
    return int(bool(wrong))


def bugs(limit: int, only: int | None, jobs: int) -> int:
    """For each planted bug: in how many seeds it was found."""
    chosen = {bug.number: bug for bug in BUGS if only in (None, bug.number)}
    found = 0
    for hunt in hunts(list(chosen), limit, jobs):
        bug = chosen[hunt.number]
        if hunt.seed is None:
            print(f"{bug.number:2} {bug.name:34}  not found in {limit} seeds", flush=True)
        else:
            found += 1
            print(f"{bug.number:2} {bug.name:34} {hunt.seed + 1:5} seeds   {repeat(hunt.seed, bug)}\n   {hunt.why[:180]}", flush=True)
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
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    asked = parser.parse_args()
    if asked.seed is not None:
        with installed():
            return one(asked.seed, asked.bug, loud=asked.trace)
    if asked.bugs or asked.bug is not None:
        return bugs(asked.seeds if asked.seeds != 200 else LIMIT, asked.bug, asked.jobs)
    return seeds(asked.first, asked.seeds, asked.jobs)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # nothing of what the killed processes of the last run have left is worth finalizing
