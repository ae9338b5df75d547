"""Counts and spreads of numbers that cost a few dictionary look-ups each: what Prometheus wants is made of them when it asks."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class Spread:
    """How often a number was at most each bound."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self._counts, self._total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def into(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Adds itself, summed up as Prometheus wants it."""
        buckets, sum_so_far = list[tuple[str, float]](), 0
        for bound, count in zip((*self._bounds, float("inf")), list(self._counts), strict=True):
            sum_so_far += count
            buckets.append((str(floatToGoString(bound)), sum_so_far))  # type: ignore[no-untyped-call]
        family.add_metric(list(labels), buckets, sum_value=self._total)


class Spreads:
    """A spread for each value of its labels."""

    def __init__(self, name: str, about: str, bounds: Sequence[float], *labels: str) -> None:
        self._name, self._about, self._bounds, self._labels = name, about, bounds, labels
        self._known: dict[tuple[str, ...], Spread] = {} if labels else {(): Spread(bounds)}

    def of(self, *labels: str) -> Spread:
        found = self._known.get(labels)
        if found is None:
            found = self._known[labels] = Spread(self._bounds)
        return found

    def collect(self) -> Iterator[Any]:
        family = HistogramMetricFamily(f"flowdsl_{self._name}", self._about, labels=self._labels)
        for labels, spread in list(self._known.items()):
            spread.into(family, labels)
        yield family


class Counts:
    """A count for each value of its labels: `counts[labels] += 1` in `values`."""

    def __init__(self, name: str, about: str, *labels: str) -> None:
        self._name, self._about, self._labels = name, about, labels
        self.values: defaultdict[tuple[str, ...], int] = defaultdict(int, {} if labels else {(): 0})

    def add(self, count: int, *labels: str) -> None:
        self.values[labels] += count

    def collect(self) -> Iterator[Any]:
        family = CounterMetricFamily(f"flowdsl_{self._name}", self._about, labels=self._labels)
        for labels, count in list(self.values.items()):
            family.add_metric(list(labels), count)
        yield family


__all__ = ["Counts", "Spread", "Spreads"]
