"""Rounds over attempts whose time is far off: one timer, however long they last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowdsl.attempt import Rounds


class Loop:
    """Timers that are fired by hand."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []

    def call_later(self, seconds: float, what: Callable[[], None]) -> object:
        self.timers.append(what)
        return object()

    def fire(self) -> int:
        due, self.timers = self.timers, []
        for one in due:
            one()
        return len(due)


class Far:
    """An attempt whose time is not over for a while."""

    def __init__(self, rounds: Rounds) -> None:
        self.rounds, self.looked = rounds, 0

    def set_timer(self) -> None:
        self.looked += 1
        self.rounds.join(self)  # type: ignore[arg-type]


def made() -> tuple[Any, Loop]:
    rounds, loop = Rounds(), Loop()
    vars(rounds)["loop"] = loop
    return rounds, loop


def test_a_long_attempt_is_looked_at_once_a_round() -> None:
    rounds, loop = made()
    far = Far(rounds)
    rounds.join(far)
    assert [loop.fire() for _ in range(20)] == [1] * 20
    assert far.looked == 20


def test_when_all_have_left_nobody_looks_and_the_next_begins_anew() -> None:
    rounds, loop = made()
    far = Far(rounds)
    rounds.join(far)
    rounds.leave(far)
    assert loop.fire() == 1
    assert loop.timers == []
    rounds.join(far)
    assert len(loop.timers) == 1
