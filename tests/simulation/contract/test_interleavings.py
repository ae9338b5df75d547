"""The same random schedule on the model and on Postgres: the same answers, the same waits, the same tables at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.simulation.contract.schedules import TABLES, Outcome, Step, Theatre, schedule
from tests.simulation.postgres.model import Model

LONG = os.environ.get("FLOWDSL_LONG") == "1"
SEEDS = int(os.environ.get("FLOWDSL_INTERLEAVINGS", "3000" if LONG else "100"))
BATCH = 50


@pytest.fixture
def real(server: str, template: str) -> Iterator[str]:
    """The DSN of a migrated database of a real server."""
    import asyncio
    from uuid import uuid4

    from tests.conftest import _execute, at

    name = f"flowdsl_test_{uuid4().hex[:12]}"
    asyncio.run(_execute(server, f'create database "{name}" template "{template}" strategy file_copy'))
    asyncio.run(_execute(server, f"alter database \"{name}\" set deadlock_timeout = '10min'"))
    yield at(server, name)
    asyncio.run(_execute(server, f'drop database "{name}" with (force)'))


async def on_model(steps: list[Step]) -> Outcome:
    model = Model()
    model.deadlock_timeout = 1e6
    model.skew = timedelta(days=365)  # later than any time that a schedule names
    connections = [await model.connect() for _ in range(3)]

    async def waiting(asked: list[Any]) -> list[list[int]]:
        others = [connection.session.blocked_by for connection in asked]
        return [[other.session.pid] if other is not None and other.session is not None else [] for other in others]

    found = await Theatre(connections, await model.connect(), waiting, 0).play(steps)
    assert model.broken == []
    return found


class Real:
    """A real server's connections, used again and again."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connections: list[Any] = []

    async def play(self, steps: list[Step]) -> Outcome:
        self._connections = [one for one in self._connections if not one.is_closed()]
        while len(self._connections) < 4:
            self._connections.append(await asyncpg.connect(self._dsn))
        watcher, *connections = self._connections

        async def waiting(asked: list[Any]) -> list[list[int]]:
            pids = [connection.get_server_pid() for connection in asked]
            rows = await watcher.fetch(
                "select pg_blocking_pids(u.pid) as pids from unnest($1::int[]) with ordinality as u(pid, n) order by u.n", pids
            )
            return [row["pids"] for row in rows]

        try:
            return await Theatre(connections, watcher, waiting, 0.001).play(steps)
        finally:
            await watcher.execute("set session_replication_role = replica; alter sequence flowdsl.audit_id_seq restart")
            await watcher.execute("; ".join(f"delete from flowdsl.{table}" for table in TABLES))
            await watcher.execute("set session_replication_role = default")

    async def close(self) -> None:
        for connection in self._connections:
            connection.terminate()


async def differs(real: Real, steps: list[Step]) -> str | None:
    """What is different, in words."""
    ours, theirs = await on_model(steps), await real.play(steps)
    for number, (mine, other) in enumerate(zip(ours.lines, theirs.lines, strict=False)):
        if mine != other:
            return f"step {number}: the model says\n  {mine}\nand Postgres\n  {other}"
    if len(ours.lines) != len(theirs.lines):
        return f"the model ends after {len(ours.lines)} steps, Postgres after {len(theirs.lines)}"
    for table in TABLES:
        if ours.tables[table] != theirs.tables[table]:
            only = [row for row in ours.tables[table] if row not in theirs.tables[table]]
            other_only = [row for row in theirs.tables[table] if row not in ours.tables[table]]
            return f"{table}: only the model has\n  {only}\nonly Postgres\n  {other_only}"
    return None


async def shortest(real: Real, steps: list[Step]) -> list[Step]:
    """Without what can be left out while it still differs."""
    index = len(steps) - 1
    while index >= 0:
        fewer = steps[:index] + steps[index + 1 :]
        if await differs(real, fewer):
            steps = fewer
        index -= 1
    return steps


@pytest.mark.timeout(3600 if LONG else 120)
@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
async def test_the_same_on_both(real: str, first: int) -> None:
    theirs = Real(real)
    try:
        for seed in range(first, first + BATCH):
            steps = schedule(seed)
            if await differs(theirs, steps):
                steps = await shortest(theirs, steps)
                shown = "\n".join(f"  {step}" for step in steps)
                pytest.fail(f"seed {seed}, {len(steps)} steps:\n{shown}\n{await differs(theirs, steps)}", pytrace=False)
    finally:
        await theirs.close()


def test_a_schedule_is_the_same_each_time() -> None:
    assert [str(step) for seed in range(50) for step in schedule(seed)] == [str(step) for seed in range(50) for step in schedule(seed)]
