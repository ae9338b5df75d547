"""The memory interpreter, as a world: a process that dies forgets every machine, and folds them all again from what was recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, ClassVar

from attrs import define, field

from flowdsl import Activity, Deployment, Workflow, this_attempt
from flowdsl.activation import OPEN
from flowdsl.flow import Exit, Signal
from flowdsl.journal import SUCCESS, Entry
from flowdsl.memory import Memory, _Kept
from flowdsl.operating import public_status
from tests.conformance.world import SOON, Row, World

ENOUGH = 20_000
"""Steps after which a run is taken for endless."""


class Mortal(Memory):
    """A process over a record that outlives it: it dies as it is told, and may be followed by one with other code."""

    def replaced(self, deployment: Deployment) -> None:
        """Other code, over the same record."""
        self._deployment = deployment
        living = [kept for kept in self._kept.values() if kept.status in OPEN]
        for kept in living:
            kept.workflow = deployment.workflow(kept.workflow.name, kept.workflow.version)
            kept.activation = None
        for kept in living:
            if kept.status != "blocked" and kept.activation is None:
                self._wake(kept, taken_over=False)

    def step(self, horizon: timedelta | None) -> bool:
        """Does one thing. False when there is nothing to do but to wait longer than that."""
        if self._jobs:
            self._perform(*self._jobs.popleft())
            return True
        if self._let_through() or self._find_children():
            return True
        due = self.next_due()
        return due is not None and (horizon is None or due <= self.now + horizon) and self._pass_time()


@define(slots=False)
class InMemory(World):
    kind: ClassVar[str] = "memory"
    memory: Mortal | None = None
    written: list[tuple[str, str]] = field(factory=list[tuple[str, str]])
    thread: ThreadPoolExecutor = field(factory=lambda: ThreadPoolExecutor(1))
    """It brings its own event loop, so it cannot run in ours."""

    @property
    def m(self) -> Mortal:
        assert self.memory is not None, "deploy first"
        doom = self.doom
        self.memory.doom = None if doom is None else lambda when, _, entries: doom.strikes(when, len(entries))
        return self.memory

    async def deploy(self, *workflows: Workflow[Any, Any, Any]) -> None:
        deployment = self.made(*workflows)
        if self.memory is None:
            self.memory = Mortal(deployment, connect=lambda: _Marks(self.written))
        else:
            await self._go(timedelta())
            self.memory.replaced(deployment)

    async def start(self, workflow: Workflow[Any, Any, Any], request: Any, *, key: str | None = None, tenant: str = "default") -> str:
        return self.m.start(workflow, request, key=key, tenant=tenant)

    async def signal(self, to: str, signal: Signal[Any], payload: Any, *, delivery: str | None = None, tenant: str = "default") -> None:
        self.m.signal(to, signal, payload, delivery=delivery, tenant=tenant)

    async def cancel(self, id: str, reason: str = "asked to") -> None:
        self.m.cancel(id, reason)

    async def pause(self, id: str, reason: str = "asked to") -> None:
        self.m.pause(id, reason)

    async def resume(self, id: str) -> None:
        self.m.resume(id)

    async def terminate(self, id: str, reason: str = "asked to") -> None:
        self.m.terminate(id, reason)

    async def retry(self, id: str) -> None:
        self.m.retry(id)

    async def rewind(self, id: str, to: str | int) -> None:
        self.m.rewind(id, to)

    async def fork(self, id: str, to: str | int, edits: Any = None) -> str:
        return self.m.fork(id, to, edits)

    async def crash(self) -> None:
        self.m.die()

    async def _go(self, horizon: timedelta | None, until: Callable[[], bool] = lambda: False) -> None:
        await asyncio.get_running_loop().run_in_executor(self.thread, self._steps, horizon, until)

    def _steps(self, horizon: timedelta | None, until: Callable[[], bool]) -> None:
        memory = self.m
        for _ in range(ENOUGH):
            if until() or not memory.step(horizon):
                break
        else:
            raise AssertionError("it never comes to rest")
        self.deaths = memory.deaths

    async def ended(self, id: str) -> str:
        kept = self.m._kept[id]
        await self._go(None, lambda: kept.status == "blocked" or kept.status not in OPEN)
        assert kept.status == "blocked" or kept.status not in OPEN, f"it waits: {await self.story(id)}"
        return kept.status

    async def settle(self) -> None:
        await self._go(timedelta(seconds=SOON))

    async def heard(self, id: str) -> None:
        """It hears at once."""

    async def called(self, contract: Activity[Any, Any, Any], times: int = 1) -> None:
        await self._go(timedelta(seconds=SOON), lambda: self.count(contract) >= times)
        assert self.count(contract) >= times, f"{contract.name} was called {self.count(contract)} times"

    async def row(self, id: str) -> Row:
        return self._row(self.m._kept[id])

    def _row(self, kept: _Kept) -> Row:
        execution = kept.execution
        return Row(execution.id, execution.workflow, execution.key, public_status(kept.status), kept.parent)

    async def stored_exit(self, id: str) -> Exit[Any, Any] | None:
        return self.m.look(id).exit

    async def cause(self, id: str) -> str | None:
        return self.m._kept[id].cause

    async def journal(self, id: str) -> list[Entry]:
        return list(self.m._kept[id].journal)

    async def children(self, id: str) -> list[Row]:
        return [self._row(kept) for kept in self.m._kept.values() if kept.parent == id]

    async def mails(self, id: str) -> list[str]:
        return [mail.name for mail in self.m._kept[id].mailbox if mail.kind == "signal"]

    async def unmatched(self) -> list[tuple[str, str]]:
        return sorted((mail.name, mail.to) for mails in self.m._unmatched.values() for mail in mails)

    async def marks(self) -> list[str]:
        """Of each step what its last attempt wrote, if its success is recorded: the others were rolled back."""
        last = {key: name for key, name in self.written}
        found: list[str] = []
        for key, name in last.items():
            id, _, step = key.partition("/")
            if [entry for entry in await self.journal(id) if entry.step == step and entry.kind == SUCCESS]:
                found.append(name)
        return sorted(found)

    async def close(self) -> None:
        if self.memory is not None:
            await asyncio.get_running_loop().run_in_executor(self.thread, self.memory._rehearsal.close)
        self.thread.shutdown()


class _Marks:
    """A stand-in of the database that `mark` writes to."""

    def __init__(self, written: list[tuple[str, str]]) -> None:
        self._written = written

    async def execute(self, _: str, name: str) -> None:
        self._written.append((this_attempt().idempotency_key, name))
