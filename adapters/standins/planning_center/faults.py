"""What goes wrong between an API and its reader, drawn from a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Literal, get_args

from attrs import define, field

Fault = Literal["throttled", "throttled_bare", "broken", "unavailable", "late", "slow", "dropped", "truncated", "lagging"]
"""429 with and without Retry-After · 500 · 503 · 504 · a slow answer · a connection cut in mid-body · half a JSON text · included rows missing."""

FAULTS: tuple[Fault, ...] = get_args(Fault)

Level = Literal["none", "mild", "rough"]

_SHARES: Mapping[Level, Mapping[Fault, float]] = {
    "none": {},
    "mild": {
        "throttled": 0.008,
        "throttled_bare": 0.002,
        "broken": 0.005,
        "unavailable": 0.005,
        "late": 0.003,
        "slow": 0.01,
        "dropped": 0.004,
        "truncated": 0.003,
        "lagging": 0.0,
    },
    "rough": {
        "throttled": 0.03,
        "throttled_bare": 0.02,
        "broken": 0.03,
        "unavailable": 0.03,
        "late": 0.02,
        "slow": 0.05,
        "dropped": 0.04,
        "truncated": 0.03,
        "lagging": 0.05,
    },
}


@define
class Faults:
    """A URL's fate depends on the seed, the URL and how often it was asked for, so requests in parallel do not disturb the draw."""

    shares: Mapping[Fault, float] = field(factory=dict[Fault, float])
    seed: int = 0
    in_a_row: int = 2  # after so many faults in a row a URL is answered well once, so retries win
    slowness: float = 0.3  # seconds, at most
    done: Counter[str] = field(factory=Counter[str])
    stopped: bool = False
    _visits: Counter[str] = field(factory=Counter[str])
    _streaks: Counter[str] = field(factory=Counter[str])

    @classmethod
    def level(cls, level: Level, seed: int = 0) -> Faults:
        return cls(shares=_SHARES[level], seed=seed)

    def draw(self, url: str) -> Fault | None:
        """What befalls this visit to a URL."""
        if self.stopped or not self.shares:
            return None
        self._visits[url] += 1
        fault = self._fate(Random(f"{self.seed}|{url}|{self._visits[url]}").random())
        if fault == "lagging" and "include=" not in url:
            fault = None
        if fault is None or self._streaks[url] >= self.in_a_row:
            self._streaks[url] = 0
            return None
        self._streaks[url] += 1
        self.done[fault] += 1
        return fault

    def _fate(self, draw: float) -> Fault | None:
        for fault in FAULTS:
            draw -= self.shares.get(fault, 0.0)
            if draw < 0:
                return fault
        return None

    def delay(self, url: str) -> float:
        return self.slowness * (0.2 + 0.8 * Random(f"{self.seed}|{url}|slow|{self._visits[url]}").random())
