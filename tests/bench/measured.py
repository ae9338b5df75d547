"""A window of time over work that goes on, or the time that some work takes: wall clock, CPU of this process and of the server's backends, WAL."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from attrs import asdict, field, frozen

RAMP = 0.2
"""Seconds of work before a window begins."""
FEWEST, LONGEST = 100, 8
"""Steps that a window is to see, and the most that it is made longer for their sake, in windows: who works in bursts is seen in several."""


@frozen
class Sample:
    """One window. What could not be measured is None."""

    what: str
    in_flight: int
    steps_per_s: float
    client_us: float
    """CPU of the process, a step."""
    server_us: float | None = None
    """CPU of the backends that lived through the window, a step."""
    wal_bytes: float | None = None

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    def figures(self, seconds: float, **more: float) -> Figures:
        return Figures(round(self.steps_per_s * seconds), seconds, self.client_us, self.server_us, self.wal_bytes, dict(more))


@frozen
class Figures:
    """What one measurement found: so many of a workload's units in so many seconds. What could not be measured is None."""

    count: int
    seconds: float
    client_us: float | None = None
    """CPU of the process, a unit."""
    server_us: float | None = None
    """CPU of the backends that lived through it, or of a peer's own server, a unit."""
    wal_bytes: float | None = None
    """WAL, a unit."""
    more: dict[str, float] = field(factory=dict[str, float])
    """What else this workload says."""

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@frozen
class Reading:
    count: int
    wall: float
    client: float
    backends: dict[int, float]
    wal: int | None

    def server_until(self, later: Reading) -> float | None:
        """CPU seconds of the backends that were there at both times."""
        stayed = self.backends.keys() & later.backends.keys()
        return sum(later.backends[pid] - self.backends[pid] for pid in stayed) if stayed else None

    def wal_until(self, later: Reading) -> int | None:
        return None if self.wal is None or later.wal is None else later.wal - self.wal


class Span:
    """Reads the clocks of this process."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    async def read(self) -> Reading:
        return Reading(self._count(), time.perf_counter(), time.process_time(), {}, None)

    async def over(self, count: int, work: Awaitable[object], **more: float) -> Figures:
        """What a piece of work takes that does so many units."""
        a = await self.read()
        await work
        b = await self.read()
        server, wal = a.server_until(b), a.wal_until(b)
        return Figures(
            count,
            b.wall - a.wall,
            (b.client - a.client) / count * 1e6,
            None if server is None else server / count * 1e6,
            None if wal is None else wal / count,
            dict(more),
        )

    async def window(self, what: str, in_flight: int, seconds: float, *, above: int = 0) -> Sample:
        """One window, once each of the `in_flight` has made a step beyond `above`."""
        patience = time.perf_counter() + 30
        while self._count() < above + in_flight and time.perf_counter() < patience:
            await asyncio.sleep(0.01)
        await asyncio.sleep(RAMP)
        a = await self.read()
        await asyncio.sleep(seconds)
        longest = time.perf_counter() + seconds * (LONGEST - 1)
        while self._count() - a.count < FEWEST and time.perf_counter() < longest:
            await asyncio.sleep(0.01)
        b = await self.read()
        steps = max(1, b.count - a.count)
        server, wal = a.server_until(b), a.wal_until(b)
        return Sample(
            what,
            in_flight,
            steps / (b.wall - a.wall),
            (b.client - a.client) / steps * 1e6,
            None if server is None else server / steps * 1e6,
            None if wal is None else wal / steps,
        )


class Beside(Span):
    """Reads the CPU of a server process too."""

    def __init__(self, pid: int, count: Callable[[], int]) -> None:
        super().__init__(count)
        self._pid = pid

    async def read(self) -> Reading:
        used = process_cpu(self._pid)
        return Reading(self._count(), time.perf_counter(), time.process_time(), {} if used is None else {self._pid: used}, None)


class Watch(Span):
    """Reads the database's too; `connection` sees the one that is measured, and does no work of its own meanwhile."""

    def __init__(self, connection: Any, count: Callable[[], int]) -> None:
        super().__init__(count)
        self._connection = connection

    async def read(self) -> Reading:
        wal, pids = await self._connection.fetchrow(
            "select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,"
            " array(select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid())"
        )
        backends = {pid: used for pid in pids if (used := backend_cpu(pid)) is not None}
        return Reading(self._count(), time.perf_counter(), time.process_time(), backends, wal)


def backend_cpu(pid: int) -> float | None:
    """CPU seconds of a backend on this machine; None when it is not here to be seen."""
    return process_cpu(pid, named="postgres")


def process_cpu(pid: int, named: str = "") -> float | None:
    """CPU seconds of a process and all its threads."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            name, _, facts = file.read().rpartition(")")
    except OSError:
        return None
    if named not in name:
        return None
    fields = facts.split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def lanes(in_flight: int, one: Callable[[int], Awaitable[Any]], meanwhile: Awaitable[Sample]) -> Sample:
    """Keeps that many going until the window is over. A lane is given the steps of each workflow: its first is shorter, so that lanes spread out."""
    over = False

    async def lane(index: int) -> None:
        steps = index % 10 + 1
        while not over:
            await one(steps)
            steps = 10

    async def watching() -> Sample:
        nonlocal over
        try:
            return await meanwhile
        finally:
            over = True

    watched = asyncio.create_task(watching())
    await asyncio.gather(watched, *(lane(index) for index in range(in_flight)))
    return watched.result()


def middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """Lowest to highest."""
    return f"{short(min(values))}–{short(max(values))}" if len(values) > 1 else ""


def short(value: float | None) -> str:
    """Three figures, as people read them."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
