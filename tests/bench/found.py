"""What was found: one figure for each workload, size, participant and round; medians, spreads, ratios round by round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from attrs import asdict, field, frozen

from tests.bench.measured import Figures, middle


@frozen
class Found:
    workload: str
    size: int
    who: str
    round: int
    count: int
    seconds: float
    client_us: float | None = None
    server_us: float | None = None
    wal_bytes: float | None = None
    more: dict[str, float] = field(factory=dict[str, float])

    @classmethod
    def of(cls, workload: str, size: int, who: str, round: int, figures: Figures) -> Found:
        return cls(workload, size, who, round, **asdict(figures))

    @property
    def per_s(self) -> float:
        return self.count / self.seconds

    def plain(self) -> dict[str, Any]:
        return asdict(self)


class Results:
    """All figures of a run."""

    def __init__(self, all: Iterable[Found]) -> None:
        self.all = list(all)

    def of(self, workload: str, size: int, who: str) -> list[Found]:
        return [one for one in self.all if (one.workload, one.size, one.who) == (workload, size, who)]

    def sizes(self, workload: str) -> list[int]:
        return sorted({one.size for one in self.all if one.workload == workload})

    def parties(self, workload: str, order: Iterable[str]) -> list[str]:
        there = {one.who for one in self.all if one.workload == workload}
        return [name for name in order if name in there]

    def rates(self, workload: str, size: int, who: str) -> list[float]:
        return [one.per_s for one in self.of(workload, size, who)]

    def middle(self, workload: str, size: int, who: str, what: str) -> float | None:
        """The median of a figure or of something more; None where nobody measured it."""
        found = [value for one in self.of(workload, size, who) if (value := getattr(one, what, one.more.get(what))) is not None]
        return middle(found) if found else None

    def ratios(self, workload: str, size: int, who: str) -> list[float]:
        """Our rate by theirs, in the rounds that both were in."""
        ours = {one.round: one.per_s for one in self.of(workload, size, "ours")}
        return [ours[one.round] / one.per_s for one in self.of(workload, size, who) if one.round in ours]

    def ratio(self, workload: str, size: int, who: str) -> tuple[float, int] | None:
        """The median of our rate by theirs, and the size at which they were measured: this one, or the next smaller one that they took part in."""
        for there in (size, *sorted((one for one in self.sizes(workload) if one < size), reverse=True)):
            if ratios := self.ratios(workload, there, who):
                ours = self.rates(workload, size, "ours")
                return (middle(ours) / middle(self.rates(workload, there, who)) if ours and there != size else middle(ratios)), there
        return None


def percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
