"""What is asked of the system under chaos: drawn from a seed, the same in every process that asks."""

from __future__ import annotations

from random import Random
from typing import Literal

from attrs import frozen

KINDS: dict[str, int] = {
    "sequence": 6, "refused": 2, "exhausted": 2, "bug": 1, "once": 3, "threaded": 2, "marks": 6, "timers": 5, "signals": 5, "letters": 5,
    "deadline": 4, "silence": 2, "children": 5, "keyed": 3, "isolated": 3, "beside": 4, "saga": 5, "inner_saga": 3, "race": 4, "loop": 6, "fan": 4,
    "pen_pals": 4, "cancelled": 4, "too_late": 4, "waiting": 2, "bounded": 3, "paused": 3, "terminated": 2, "retried": 3, "deployed": 5,
}  # fmt: skip
"""How often each kind is drawn, by share."""


@frozen
class Order:
    """The input of every workflow of the workload. What `size`, `fails` and `pause` (milliseconds) mean is the kind's own."""

    index: int
    kind: str
    size: int
    fails: int
    pause: int

    def label(self, place: str) -> str:
        """The name of one effect, mark or child of this order."""
        return f"{self.index}/{place}"


@frozen
class Errand:
    """One call of the front: `wait` seconds after the one before it was acknowledged."""

    name: str
    call: Literal["start", "signal", "letter", "cancel", "pause", "resume", "terminate", "retry"]
    wait: float = 0.0
    number: int = 0
    twice: bool = False
    """Whether it is repeated once it was acknowledged, under the same key or delivery id."""


def drawn(seed: int, count: int) -> list[Order]:
    """Every kind comes before any comes again by chance."""
    chance = Random(seed)
    kinds = list(KINDS)
    chance.shuffle(kinds)
    kinds = kinds[:count] + chance.choices(list(KINDS), list(KINDS.values()), k=max(0, count - len(kinds)))
    return [Order(index, kind, chance.randint(2, 6), chance.randint(0, 2), chance.randint(50, 1200)) for index, kind in enumerate(kinds)]


def errands(seed: int, order: Order) -> list[Errand]:
    """What the front does about an order."""
    chance = Random(f"{seed}/{order.index}")
    found = [Errand("start", "start", twice=chance.random() < 0.2)]
    match order.kind:
        case "signals" | "letters":
            call: Literal["signal", "letter"] = "signal" if order.kind == "signals" else "letter"
            sent = [Errand(f"{call}{n}", call, chance.choice((0.0, 0.1, 0.8)), n, chance.random() < 0.4) for n in range(order.size)]
            early = chance.randint(0, order.size) if call == "letter" else 0  # a letter may be there before there is anybody
            found = sent[:early] + found + sent[early:]
        case "deadline":
            found.append(Errand("signal0", "signal", order.pause / 1000 * chance.uniform(0.5, 1.5), twice=True))
        case "cancelled":
            found.append(Errand("cancel", "cancel", chance.uniform(0, 2), twice=True))
        case "too_late" | "waiting":
            found.append(Errand("cancel", "cancel", chance.uniform(0, order.size * order.pause / 1000), twice=chance.random() < 0.5))
        case "paused":
            found += [Errand("pause", "pause", chance.uniform(0, 1)), Errand("resume", "resume", chance.uniform(0, 1))]
        case "terminated":
            found.append(Errand("terminate", "terminate", chance.uniform(0, 2)))
        case "retried":
            found.append(Errand("retry", "retry"))
        case _:
            pass
    return found


def by_http(seed: int, order: Order) -> bool:
    """Whether the front asks the service for this order, and not the store."""
    return Random(f"{seed}/{order.index}/way").random() < 0.5


def token(order: int, number: int) -> str:
    """What a signal carries, so that each can be followed."""
    return f"{order}:{number}"


def correlation(order: int) -> str:
    """The key that letters to an order are sent to."""
    return f"chaos-letters-{order}"


RELEASES = 6
"""How many versions there are of the workflow that is deployed anew."""
TICK = 2
"""Seconds between two firings of the schedule."""
REASON = "called off by the front"
RATE = 4
"""Calls a second that the bounded activity may make, and at once after a rest."""
