"""Where the client's CPU of a step goes: samples by CPU time, charged to the part of the code that was running.

The kernel's CPU clock asks, Python answers between two instructions. Code in C has no line of its own: what it took is charged to the Python line
that called it; what no Python line called, which is the event loop and the driver's protocol beneath it, shows as a function that has just begun.
"""

from __future__ import annotations

import dis
import signal
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from types import CodeType, FrameType

PERIOD = 0.001
LOOP, OTHER = "event loop, and the driver's C code", "other"
PARTS = {
    "machine": ("flowdsl/machine", "flowdsl/flow", "flowdsl/journal", "flowdsl/activation", "flowdsl/policy", "flowdsl/binding", "flowdsl/definition",
                "flowdsl/budget", "flowdsl/memory", "/returns/"),
    "codec": ("flowdsl/codec", "/json/", "/cattrs/"),
    "committer": ("flowdsl/postgres/committer", "flowdsl/postgres/transaction", "flowdsl/postgres/store"),
    "worker": ("flowdsl/postgres/", "flowdsl/replay", "flowdsl/hands", "flowdsl/host", "flowdsl/attempt", "flowdsl/"),
    "driver": ("/asyncpg/",),
    LOOP: ("/asyncio/", "/uvloop/", "/selectors.py"),
    "the workflow, its activity, the measurement": ("tests/bench/",),
}  # fmt: skip
"""By the first of these that the file's name contains; what is nobody's (the standard library) is its caller's."""
ORDER = (*PARTS, OTHER)


class Sampler:
    def __init__(self) -> None:
        self.parts: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self._of: dict[CodeType, str | None] = {}

    @contextmanager
    def running(self) -> Generator[None]:
        before = signal.signal(signal.SIGPROF, self._sampled)
        signal.setitimer(signal.ITIMER_PROF, PERIOD, PERIOD)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0, 0)
            signal.signal(signal.SIGPROF, before)

    def _sampled(self, _: int, frame: FrameType | None) -> None:
        part, place = self.charged(frame)
        self.parts[part] += 1
        self.places[f"{part}: {place}"] += 1

    def charged(self, frame: FrameType | None) -> tuple[str, str]:
        """The part, and the function."""
        if frame is not None and _just_begun(frame):
            frame = frame.f_back
            if frame is None or self._part(frame.f_code) in (None, LOOP):
                return LOOP, "-"
        while frame is not None:
            if part := self._part(frame.f_code):
                return part, frame.f_code.co_qualname
            frame = frame.f_back
        return OTHER, "-"

    def _part(self, code: CodeType) -> str | None:
        if code not in self._of:
            self._of[code] = part_of(code.co_filename)
        return self._of[code]


def part_of(file: str) -> str | None:
    """attrs names what it generates after the class: `<attrs generated init flowdsl.flow.Perform>`."""
    name = file.replace(".", "/") if file.startswith("<attrs") else file
    found = [(part, at) for part, marks in PARTS.items() for mark in marks if (at := name.rfind(mark)) >= 0]
    return max(found, key=lambda one: one[1])[0] if found else None


def _just_begun(frame: FrameType) -> bool:
    """Whether nothing of it has run yet, since it was called or was gone on with."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]] in _BEGINNINGS


_BEGINNINGS = {"RESUME", "RETURN_GENERATOR", "RESUME_CHECK"} if sys.version_info >= (3, 11) else set()
