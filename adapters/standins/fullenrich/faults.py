"""What goes wrong between FullEnrich and who uses it, drawn from a seed."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Literal, TypeAlias

from attrs import define, field

Refusal: TypeAlias = Literal[429, 500, 502, 503, 504]
REFUSALS: tuple[Refusal, ...] = (429, 500, 502, 503, 504)

Level: TypeAlias = Literal["none", "mild", "rough"]


@define
class Faults:
    """Shares of requests and batches that it happens to."""

    seed: int = 0
    refused: float = 0.0
    """A request is answered with 429 or 5xx, and was not taken."""
    dropped: float = 0.0
    """A submission is taken, and the connection closed without an answer."""
    late: float = 0.0
    """A submission is taken, and answered with 504 all the same."""
    early: float = 0.0
    """The callback comes before the answer to the submission."""
    twice: float = 0.0
    """The callback comes twice, the second time as other bytes."""
    mute: float = 0.0
    """No callback is ever made; never of a batch whose submission was not answered."""
    shuffled: float = 0.0
    """A callback with part of the results comes after the one with all of them."""
    strange: float = 0.0
    """Beside it comes a callback for a batch that nobody knows."""
    forged: float = 0.0
    """Beside it comes a callback that is wrongly signed, and says that nobody was found."""
    in_a_row: int = 2
    done: Counter[str] = field(factory=Counter[str])
    stopped: bool = False
    _streak: int = 0
    _drawn: Counter[str] = field(factory=Counter[str])

    @classmethod
    def level(cls, level: Level, seed: int = 0) -> Faults:
        if level == "none":
            return cls(seed)
        rough = 2.0 if level == "rough" else 1.0
        return cls(
            seed, refused=0.12 * rough, dropped=0.1 * rough, early=0.2 * rough, twice=0.25 * rough, mute=0.15 * rough,
            shuffled=0.25 * rough, strange=0.25 * rough, forged=0.25 * rough,
        )  # fmt: skip

    def happens(self, kind: str) -> bool:
        """Whether this kind befalls the next one it may befall."""
        self._drawn[kind] += 1
        share: float = getattr(self, kind)
        if self.stopped or Random(f"{self.seed}|{kind}|{self._drawn[kind]}").random() >= share:
            return False
        self.done[kind] += 1
        return True

    def refusal(self) -> Refusal | None:
        """A status that a request is refused with; never too often in a row, so that retries win."""
        if self._streak >= self.in_a_row or not self.happens("refused"):
            self._streak = 0
            return None
        self._streak += 1
        return Random(f"{self.seed}|status|{self._drawn['refused']}").choice(REFUSALS)
