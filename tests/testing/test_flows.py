"""Flows as a strategy: they run, they hold the algebra of the language, crashes change nothing, and a broken combinator is found."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import find as searched
from returns.result import Success

from flowdsl import Flow, all_, fail, masked, pure, race, saga
from flowdsl.testing import flows
from flowdsl.testing.flows import Sample


def find(strategy: Any, holds: Callable[[Any], Any], **how: Any) -> Any:
    """The same search each time."""
    return searched(strategy, holds, random=Random(0), **how)


LONG = 30 if os.environ.get("FLOWDSL_LONG") == "1" else 1
law = settings(max_examples=60 * LONG, deadline=None, suppress_health_check=list(HealthCheck))


def undone(flow: Flow[Any, Any]) -> Flow[Any, Any]:
    return flow.attempt().then(lambda one: pure(one.unwrap()) if isinstance(one, Success) else fail(one.failure()))


SAME: dict[str, Any] = {
    "then pure": lambda flow: flow.then(pure),
    "map identity": lambda flow: flow.map(lambda answer: answer),
    "catch fail": lambda flow: flow.catch(fail),
    "attempt, undone": undone,
    "ensure nothing": lambda flow: flow.ensure(lambda _: pure(None)),
    "saga of a whole": saga,
    "race of one": race,
    "all of one": lambda flow: all_(flow).map(lambda answers: answers[0]),
}


@law
@given(flows())
def test_two_ways_to_say_the_same_do_the_same(sample: Sample) -> None:
    plain = sample.run()
    for name, way in SAME.items():
        assert sample.run(way) == plain, name


@law
@given(flows())
def test_a_mask_in_a_mask_is_a_mask(sample: Sample) -> None:
    assert sample.run(masked) == sample.run(lambda flow: masked(masked(flow)))


@law
@given(flows(cancels=False))
def test_a_crash_after_any_entry_changes_nothing(sample: Sample) -> None:
    whole = sample.run()
    for n in range(1, min(len(whole.told.journal), 6) + 1):
        crashed = sample.run(crash=lambda at, n=n: at == n)  # type: ignore[misc]
        assert crashed.status == whole.status, n
        assert crashed.exit == whole.exit or not crashed.plain, n


def test_all_kinds_are_drawn() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(flows())
    def look(sample: Sample) -> None:
        seen.update(
            kind
            for kind in ("step(", "saga(", "all_(", "race(", ".compensate(", ".timeout(", "iterate(", "bell", "cancelled")
            if kind in repr(sample)
        )
        seen[sample.run().status] += 1

    look()
    assert not {"step(", "saga(", "all_(", "race(", ".compensate(", ".timeout(", "iterate(", "bell", "cancelled", "succeeded", "failed"} - set(
        seen
    ), seen


def test_the_same_sample_runs_the_same_way_again() -> None:
    sample = find(flows(), lambda one: len(one.run().calls) > 1, settings=settings(database=None, max_examples=300, phases=[Phase.generate]))
    one, other = sample.run(), sample.run()
    assert one == other
    assert [(entry.at, entry.step, entry.body) for entry in one.told.journal] == [(entry.at, entry.step, entry.body) for entry in other.told.journal]


def test_a_combinator_that_swallows_failures_is_found_in_a_small_flow() -> None:
    def swallow(flow: Flow[Any, Any]) -> Flow[Any, Any]:
        return flow.catch(lambda _: pure(0))

    worst = find(flows(), lambda one: one.run(swallow) != one.run(), settings=settings(database=None, max_examples=500))
    assert len(repr(worst)) < 80, worst


def test_one_that_runs_a_flow_twice_is_found() -> None:
    def twice(flow: Flow[Any, Any]) -> Flow[Any, Any]:
        return flow.then(lambda _: flow)

    worst = find(flows(), lambda one: one.run(twice) != one.run(), settings=settings(database=None, max_examples=500))
    assert len(repr(worst)) < 40, worst


def test_without_signals_cancels_and_defects_there_are_none() -> None:
    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(flows(signals=False, cancels=False, defects=False))
    def look(sample: Sample) -> None:
        outcome = sample.run()
        assert outcome.status in ("succeeded", "failed", "blocked")  # blocked: an undo that fails
        assert not any(word in repr(sample) for word in ("bell", "broken", "bug", "cancelled"))

    look()


@pytest.mark.parametrize("depth", [0, 1])
def test_depth_bounds_how_far_they_nest(depth: int) -> None:
    @settings(max_examples=40, deadline=None)
    @given(flows(depth=depth))
    def look(sample: Sample) -> None:
        assume(depth == 0)
        assert "race(" not in repr(sample)

    if depth == 0:
        look()
    else:
        assert find(flows(depth=depth), lambda one: "race(" in repr(one), settings=settings(database=None, max_examples=3000))
