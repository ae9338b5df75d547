"""The rounds: A B A B. In each, all participants of a workload one after another, each alone on the machine as far as we can see to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from tests.bench import people
from tests.bench.found import Found, Results
from tests.bench.measured import Figures
from tests.bench.peers import PARTIES, Field, Silent
from tests.bench.servers import slow_flush
from tests.bench.workloads import Workload


class Race:
    def __init__(self, url: str, field: Field, rounds: int, seconds: float, tell: Callable[[str], object]) -> None:
        self._url, self._field, self._rounds, self._seconds, self._tell = url, field, rounds, seconds, tell
        self.results = Results([])
        self.out: dict[str, str] = {}
        """Who fell out, and why."""

    async def run(self, workload: Workload, sizes: Sequence[int], absent: Sequence[str], flush_ms: float) -> None:
        async with AsyncExitStack() as stack:
            if slower := workload.flush_ms or flush_ms:
                await stack.enter_async_context(slow_flush(self._url, slower))
            for size in sizes:
                await self._size(workload, size, [name for name in workload.parties(size) if name not in absent])

    async def _size(self, workload: Workload, size: int, names: list[str]) -> None:
        used = dict.fromkeys(names, 0.0)
        for round in range(self._rounds):
            for name in names:
                # Who would not be done within the patience, by the pace so far, sits out; once everybody is in.
                if f"{workload.name} {name}" in self.out or (round and used[name] * (round + 1) / round > workload.patience):
                    continue
                begun = time.monotonic()
                try:
                    figures = await self._measured(workload, name, size)
                except Silent as error:
                    self.out[f"{workload.name} {name}"] = str(error)
                    self._tell(f"{workload.name} {size:,}: without {name}. {error}")
                    continue
                used[name] += time.monotonic() - begun
                self.results.all.append(Found.of(workload.name, size, name, round, figures))
            self._tell(f"{workload.name} {size:,}: round {round + 1} of {self._rounds}")

    async def _measured(self, workload: Workload, name: str, size: int) -> Figures:
        match workload.do or workload.name:
            case "cold":
                return await self._field.cold(name, size)
            case "kill":
                return await self._field.killed(name, size)
            case "people":
                return await people.measured(self._url, name, size)
            case do:
                return await self._field.measured(name, do, size, self._seconds)

    def facts(self) -> dict[str, Any]:
        return {
            "versions": {PARTIES[name].title: version for name, version in self._field.versions.items() if version},
            "fell_out": self.out,
            "found": [one.plain() for one in self.results.all],
        }
