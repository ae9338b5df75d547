"""Schedules over both stores: time passes as a case says, from the same instant on, and what fired is told the same way."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, TypeVar

from attrs import define, field

from flowdsl import Deployment, Schedule, Success, Workflow, bind
from flowdsl.calendar import Calendar
from flowdsl.flow import Exit, Signal
from flowdsl.memory import EPOCH
from flowdsl.postgres.schedules import Lookout, register
from flowdsl.postgres.store import Store
from tests.conformance.on_postgres import OnPostgres
from tests.conformance.parts import sure

T = TypeVar("T")

Fired = tuple[timedelta, str]
"""An instant, counted from the beginning, and what became of it."""


@define(slots=False)
class Clock(ABC):
    """Schedules that begin at `at`, in a store of their own."""

    at: datetime = EPOCH
    started: list[str] = field(factory=list[str])
    """The executions that schedules started, in order."""

    @abstractmethod
    async def deploy(self, workflows: Sequence[Workflow[Any, Any, Any]], *schedules: Schedule) -> None: ...

    @abstractmethod
    async def passes(self, span: timedelta, *, watched: bool = True) -> list[Fired]:
        """That time passes; somebody looks at each moment at which something is due, or else only at the end. Gives what fired, in order."""

    @abstractmethod
    async def signal(self, to: str, signal: Signal[Any], payload: Any) -> None: ...
    @abstractmethod
    async def pause(self, id: str) -> None: ...
    @abstractmethod
    async def exit(self, id: str) -> Exit[Any, Any] | None: ...
    @abstractmethod
    async def facts(self, id: str) -> tuple[str | None, str]:
        """Its key and its tenant."""

    @abstractmethod
    async def close(self) -> None: ...


class InMemory(Clock):
    calendar: Calendar

    def __init__(self, at: datetime = EPOCH) -> None:
        super().__init__(at)
        self.thread = ThreadPoolExecutor(1)  # it brings its own event loop, so it cannot run in ours

    async def _there(self, what: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread, what)

    async def deploy(self, workflows: Sequence[Workflow[Any, Any, Any]], *schedules: Schedule) -> None:
        self.calendar = Calendar(Deployment(workflows, [bind(sure, Success)], schedules=schedules))
        self.calendar.now = self.at
        await self._there(lambda: self.calendar.run_until(self.at))

    async def passes(self, span: timedelta, *, watched: bool = True) -> list[Fired]:
        until = self.calendar.now + span
        if not watched:
            self.calendar.now = until
        found = await self._there(lambda: self.calendar.run_until(until))
        self.started += [one.execution for one in found if one.outcome == "started"]
        return [(one.instant - self.at, one.outcome) for one in found]

    async def signal(self, to: str, signal: Signal[Any], payload: Any) -> None:
        self.calendar.signal(to, signal, payload)

    async def pause(self, id: str) -> None:
        self.calendar.pause(id)

    async def exit(self, id: str) -> Exit[Any, Any] | None:
        return self.calendar.look(id).exit

    async def facts(self, id: str) -> tuple[str | None, str]:
        execution = self.calendar._kept[id].execution
        return execution.key, execution.tenant

    async def close(self) -> None:
        self.thread.shutdown()


# Whoever looks for what is due asks a clock of ours, always in the past: what was started is for the workers' clock due at once.
_CLOCK = """
create schema if not exists clock;
create table if not exists clock.hand (at timestamptz not null);
delete from clock.hand;
insert into clock.hand values ('{0}');
create or replace function clock.clock_timestamp() returns timestamptz language sql stable as $$ select at from clock.hand $$;
create or replace function clock.statement_timestamp() returns timestamptz language sql stable as $$ select at from clock.hand $$;
"""


class OnPostgresClock(Clock):
    def __init__(self, dsn: str, at: datetime = EPOCH) -> None:
        super().__init__(at)
        self.dsn, self.world = dsn, OnPostgres(dsn=dsn)
        self.lookout: Lookout | None = None
        self.store: Store | None = None

    async def deploy(self, workflows: Sequence[Workflow[Any, Any, Any]], *schedules: Schedule) -> None:
        await self.world.open()
        await self.world.watcher.execute(_CLOCK.format(self.at.isoformat()))
        self.store = await Store.open(f"{self.dsn}&search_path=clock,pg_catalog", size=2)
        deployment = Deployment(workflows, [bind(sure, Success)], schedules=schedules)
        await self.world.deploy(*workflows)
        assert self.world.worker is not None and self.world.worker._lookout is None, "it would ask the server's clock, by which all of it is due"
        await register(self.store, deployment)
        self.lookout = Lookout(self.store, deployment, 1.0)

    async def _set(self, at: datetime) -> None:
        await self.world.watcher.execute("update clock.hand set at = $1", at)

    async def passes(self, span: timedelta, *, watched: bool = True) -> list[Fired]:
        until = (await self.world.watcher.fetchval("select at from clock.hand")) + span
        found: list[Fired] = []
        while watched:
            found += await self._look()
            due = await self.world.watcher.fetchval("select min(due) from flowdsl.schedules")
            if due is None or due > until:
                break
            await self._set(due)
        await self._set(until)
        return found + await self._look()

    async def _look(self) -> list[Fired]:
        """What is due now; executions that can end do, and what waited for that is looked at again."""
        assert self.lookout is not None
        found: list[Fired] = []
        await self.world.settle()
        while fired := [one for one in await self.lookout.look() if one.outcome != "again"]:
            found += [(one.instant - self.at, one.outcome) for one in fired]
            self.started += [str(one.execution) for one in fired if one.outcome == "started"]
            self.world._kick()
            await self.world.settle()
        return found

    async def signal(self, to: str, signal: Signal[Any], payload: Any) -> None:
        await self.world.signal(to, signal, payload)

    async def pause(self, id: str) -> None:
        await self.world.pause(id)
        await self.world.settle()

    async def exit(self, id: str) -> Exit[Any, Any] | None:
        return await self.world.stored_exit(id)

    async def facts(self, id: str) -> tuple[str | None, str]:
        row = await self.world._stored(id)
        return row["key"], row["tenant"]

    async def close(self) -> None:
        if self.store is not None:
            await self.world.check()
            await self.store.close()
            await self.world.watcher.execute("drop schema clock cascade")
            await self.world.close()


__all__ = ["Clock", "Fired", "InMemory", "OnPostgresClock"]
