"""Implementations that are timed and counted when they run, in whatever thread: each leaves one note, and the notes are counted together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from threading import Lock
from time import perf_counter
from typing import Any, Final, TypeAlias

from attrs import evolve
from returns.result import Failure, Success

from flowdsl.binding import Binding
from flowdsl.metrics.spread import Counts, Spreads

SHORT: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
MOST: Final = 1000
"""Notes that gather before they are counted, if nobody asks."""

_Note: TypeAlias = tuple[str, str, str, float]
"""The activity, the outcome, the class of what went wrong or nothing, the seconds."""


class Attempts:
    """What runs of implementations came to."""

    def __init__(self) -> None:
        self._notes: deque[_Note] = deque()
        self._counting = Lock()
        self._attempts = Counts("attempts", "Runs of implementations, by how they ended.", "activity", "outcome")
        self._seconds = Spreads("attempt_seconds", "How long implementations ran.", SHORT, "activity")
        self._failures = Counts("failures", "Failures and exceptions of implementations, by their class.", "activity", "type")

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        self._count()
        for one in (self._attempts, self._seconds, self._failures):
            yield from one.collect()

    def _count(self) -> None:
        with self._counting:
            for _ in range(len(self._notes)):
                activity, outcome, kind, seconds = self._notes.popleft()
                self._attempts.values[activity, outcome] += 1
                self._seconds.of(activity).add(seconds)
                if kind:
                    self._failures.values[activity, kind] += 1

    def _note(self, activity: str, outcome: str, kind: str, began: float) -> None:
        self._notes.append((activity, outcome, kind, perf_counter() - began))
        if len(self._notes) >= MOST:
            self._count()

    # What is timed

    def timed(self, binding: Binding) -> Binding:
        """The same binding; its runs are noted."""
        name = binding.activity.name

        def returned(answer: Any, began: float) -> Any:
            if isinstance(answer, Success):
                self._note(name, "success", "", began)
            elif isinstance(answer, Failure):
                self._note(name, "failure", type(answer.failure()).__name__, began)
            else:
                self._note(name, "defect", "no result", began)
            return answer

        def raised(error: BaseException, began: float) -> None:
            cancelled = isinstance(error, asyncio.CancelledError)
            self._note(name, "cancelled" if cancelled else "defect", "" if cancelled else type(error).__name__, began)

        return evolve(binding, implementation=(_awaiting if binding.is_async else _calling)(binding.implementation, returned, raised))


_Returned: TypeAlias = Callable[[Any, float], Any]
_Raised: TypeAlias = Callable[[BaseException, float], None]


def _awaiting(carry_out: Callable[[Any], Any], returned: _Returned, raised: _Raised) -> Callable[[Any], Any]:
    async def timed(request: Any) -> Any:
        began = perf_counter()
        try:
            answer = await carry_out(request)
        except BaseException as error:
            raised(error, began)
            raise
        return returned(answer, began)

    return timed


def _calling(carry_out: Callable[[Any], Any], returned: _Returned, raised: _Raised) -> Callable[[Any], Any]:
    async def awaited(answer: Any, began: float) -> Any:
        try:
            found = await answer
        except BaseException as error:
            raised(error, began)
            raise
        return returned(found, began)

    def timed(request: Any) -> Any:
        began = perf_counter()
        try:
            answer = carry_out(request)
        except BaseException as error:
            raised(error, began)
            raise
        return awaited(answer, began) if hasattr(answer, "__await__") else returned(answer, began)

    return timed


__all__ = ["SHORT", "Attempts"]
