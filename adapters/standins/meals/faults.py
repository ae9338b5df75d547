"""What goes wrong between the order service and those who ask it, drawn from a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Literal, TypeAlias, get_args

from attrs import define, field

Fault: TypeAlias = Literal["throttled", "unavailable", "lost", "broken"]
"""429 with Retry-After · 503 before anything is done · all is done and the connection is cut · half of it is done, and a 500 for each of the rest."""
FAULTS: tuple[Fault, ...] = get_args(Fault)
Level: TypeAlias = Literal["none", "mild", "rough"]
_SHARES: Mapping[Level, float] = {"none": 0.0, "mild": 0.004, "rough": 0.03}


@define
class Faults:
    """Of a request; each kind has the same share."""

    level: Level = "none"
    seed: int = 7
    done: Counter[str] = field(factory=Counter[str])
    _random: Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._random = Random(self.seed)

    def draw(self) -> Fault | None:
        share = _SHARES[self.level]
        drawn = self._random.random()
        fault = FAULTS[int(drawn / share)] if share and drawn < share * len(FAULTS) else None
        if fault is not None:
            self.done[fault] += 1
        return fault
