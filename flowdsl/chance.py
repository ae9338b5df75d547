"""Where the runtime's random numbers and ids come from: one place, so that a simulation can put a seeded source there.

Ask for `chance.random()`, and never import the function by name: what is replaced must be replaced for all who ask.
"""

from __future__ import annotations

import os
import random as _random
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol
from uuid import UUID


class Source(Protocol):
    """What chance is made of."""

    def random(self) -> float:
        """At least 0, less than 1."""
        ...

    def bits(self, count: int, /) -> bytes: ...
    def stamp(self) -> int:
        """Milliseconds of the wall clock: ids begin with them."""
        ...


class _System:
    """The system's own; also after a fork each process has its own numbers."""

    random = staticmethod(_random.random)
    bits = staticmethod(os.urandom)

    @staticmethod
    def stamp() -> int:
        return time.time_ns() // 1_000_000


_source: Source = _System()


def random() -> float:
    """At least 0, less than 1."""
    return _source.random()


def new_id() -> str:
    """An id that sorts by the time it was made."""
    return str(UUID(bytes=_source.stamp().to_bytes(6, "big") + _source.bits(10)))


@contextmanager
def drawn_from(source: Source) -> Generator[None]:
    """For the length of a block all of this comes from that source."""
    global _source
    before, _source = _source, source
    try:
        yield
    finally:
        _source = before
