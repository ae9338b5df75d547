"""`python -m tests.bench.fake`: how long the fake takes, in real milliseconds; no server. Read it beside what it stands for in virtual time."""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Never

from attrs import frozen
from returns.result import Result, Success
from rich.console import Console
from rich.table import Table

from flowdsl import Retry, Steps, activity, each, sleep, workflow
from flowdsl.policy import shown
from flowdsl.testing import Fake, Run


@frozen
class Down:
    status: int


@activity("bench.poll", retry=Retry.constant("40m", on=(Down,)))
def poll(n: int) -> Result[int, Down]: ...


@workflow("bench.month")
def month(n: int) -> Steps[int, Down]:
    found = yield from poll(n)
    yield from sleep("30d")
    return found


@workflow("bench.short")
def short(n: int) -> Steps[int, Down]:
    return (yield from poll(n))


@workflow("bench.wide")
def wide(count: int) -> Steps[list[int], Down]:
    return (yield from each(range(count), short.child))


@workflow("bench.ticks")
def ticks(count: int) -> Steps[int, Never]:
    for _ in range(count):
        yield from sleep("1h")
    return count


CASES: dict[str, Callable[[], Run]] = {
    "a 30-day wait after 1,000 retries": lambda: Fake().on(poll, Success(1)).fails(poll, Down(503), times=1000).run(month, 1),
    "1,000 timers, one after the other": lambda: Fake().run(ticks, 1000),
    "100 children, each an activity of 3 s": lambda: Fake().on(poll, Success).takes(poll, "3s").run(wide, 100),
    "20 timers, a death before and after each": lambda: Fake().crash(everywhere=True).run(ticks, 20),
    "one activity": lambda: Fake().on(poll, Success(1)).run(short, 1),
}


def measured(case: Callable[[], Run], rounds: int) -> tuple[Run, list[float]]:
    run, found = case(), list[float]()  # the first one makes codecs
    for _ in range(rounds):
        gc.collect()
        begun = perf_counter()
        run = case()
        found.append((perf_counter() - begun) * 1000)
    return run, found


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.fake", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="of each case (default 15)")
    rounds = parser.parse_args().rounds
    table = Table("case", "virtual time", "entries", "median ms", "best ms")
    for name, case in CASES.items():
        run, found = measured(case, rounds)
        entries = len(run.journal) + sum(len(child.journal) for child in run.children)
        table.add_row(name, shown(run.elapsed), str(entries), f"{statistics.median(found):.1f}", f"{min(found):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
