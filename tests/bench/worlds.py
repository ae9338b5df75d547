"""`python -m tests.bench.worlds`: how many worlds of small workflows are drawn and run in a second, and how many are run again; no server."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from attrs import frozen
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from returns.result import Result, Success
from rich.console import Console
from rich.table import Table

from flowdsl import Steps, activity, race, signal, sleep, workflow
from flowdsl.testing import World, worlds

EXAMPLES = 1000


@frozen
class Job:
    id: int


@frozen
class Refused:
    pass


approved = signal("bench.approved", bool)


@activity("bench.one")
def one(job: Job) -> Result[int, Refused]: ...


@activity("bench.two")
def two(job: Job) -> Result[int, Refused]: ...


@workflow("bench.pair")
def pair(job: Job) -> Steps[int, Refused]:
    return (yield from one(job).compensate(lambda _: two(job))) + (yield from two(job))


@workflow("bench.ask")
def ask(job: Job) -> Steps[int, Refused]:
    yield from race(approved.receive(), sleep("1d"))
    return (yield from one(job))


class Model:
    def one(self, job: Job) -> Result[int, Refused]:
        return Success(job.id)

    def two(self, _: object) -> Result[int, Refused]:
        return Success(2)


def drawn(strategy: SearchStrategy[World[Any, Any, Any]]) -> float:
    """Worlds a second, Hypothesis included."""

    @settings(max_examples=EXAMPLES, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def test(world: World[Any, Any, Any]) -> None:
        world.run()

    began = perf_counter()
    test()
    return EXAMPLES / (perf_counter() - began)


def again(strategy: SearchStrategy[World[Any, Any, Any]]) -> float:
    """Runs a second of worlds that are there."""
    kept: list[World[Any, Any, Any]] = []

    @settings(max_examples=50, database=None, deadline=None, phases=[Phase.generate])
    @given(strategy)
    def test(world: World[Any, Any, Any]) -> None:
        world.run()
        kept.append(world)

    test()
    began = perf_counter()
    for _ in range(EXAMPLES // len(kept)):
        for world in kept:
            world.run()
    return EXAMPLES // len(kept) * len(kept) / (perf_counter() - began)


def main() -> None:
    table = Table("worlds per second", "drawn and run", "run again")
    cases: dict[str, Callable[[], SearchStrategy[World[Any, Any, Any]]]] = {
        "two activities and an undo": lambda: worlds(pair),
        "the same, with a model": lambda: worlds(pair, model=Model),
        "a signal, a timer, an activity": lambda: worlds(ask),
    }
    for name, make in cases.items():
        table.add_row(name, f"{drawn(make()):,.0f}", f"{again(make()):,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
