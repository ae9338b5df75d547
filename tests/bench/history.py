"""Resuming: loading and folding long journals, beside a bare fetch and decode of the same rows."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import asyncpg
from attrs import asdict, evolve, frozen
from returns.result import Success

from flowdsl import Execution, Workflow
from flowdsl.activation import Activation
from flowdsl.flow import Perform
from flowdsl.journal import CHECKPOINT, Entry
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Worker, new_id
from tests.bench.measured import middle
from tests.bench.subject import Ticks, loop, noted, sequence

BEGUN = datetime.now(UTC) - timedelta(hours=1)
Shape = Literal["steps", "rounds"]


@frozen
class Resumed:
    """Milliseconds, medians."""

    shape: Shape
    length: int
    rows: int
    """Live rows that were loaded."""
    load_ms: float
    fold_ms: float
    bare_ms: float
    """One bare query for the same rows, and json.loads of each."""
    worker_ms: float
    """From the beginning of a fresh worker, connections included, to the next activity."""

    @property
    def ratio(self) -> float:
        return (self.load_ms + self.fold_ms) / self.bare_ms

    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio}


def driven(workflow: Workflow[Any, Any, Any], request: int, begin: list[Entry], count: int) -> list[Entry]:
    """The next entries of an execution, made by running it in memory."""
    activation = activated(workflow, request, new_id())
    activation.begin(begin, (), BEGUN)
    entries: list[Entry] = []
    while len(entries) < count and (turn := activation.take_turn()):
        entries += turn.entries
        for one in turn.performs:
            assert isinstance(one.instruction, Perform)
            activation.ended(one.step, Success(noted(one.instruction.request)), BEGUN)
    return entries[:count]


def activated(workflow: Workflow[Any, Any, Any], request: int, id: str) -> Activation:
    execution = Execution(id, "default", workflow.name, None, None, BEGUN)
    return Activation(execution, workflow, b"%d" % request, lambda _: workflow)


def journal(shape: Shape, length: int) -> Iterator[Entry]:
    """A journal of that many steps or rounds. Rounds are copies of real ones, but for the last few: those were really run."""
    if shape == "steps":
        yield from driven(sequence, length + 1, [], length)
        return
    last, pattern = max(1, length - 5), driven(loop, 0, [], 4)
    checkpoint = pattern[1]
    for number in range(last):
        yield evolve(pattern[0], position=2 * number, step=f"{checkpoint.step}.{number}.0")
        checkpoint = evolve(pattern[1], position=2 * number + 1, body=b'{"round":%d,"state":%d}' % (number + 1, number + 1))
        assert checkpoint.kind == CHECKPOINT
        yield checkpoint
    # one more entry than whole rounds have, so that there is something above the newest checkpoint
    yield from driven(loop, 0, [checkpoint], 2 * (length - last) + 1)


async def write(connection: Any, shape: Shape, length: int) -> str:
    """An execution with such a journal, due now and owned by nobody."""
    id, workflow = new_id(), sequence if shape == "steps" else loop
    rows = (
        (
            id, entry.position, 1, entry.kind, entry.at, entry.step, entry.fingerprint, entry.site, entry.body,
            None if entry.live is None else [asyncpg.Range(low, high) for low, high in entry.live],
        )
        for entry in journal(shape, length)
    )  # fmt: skip
    await connection.copy_records_to_table("journal", schema_name="flowdsl", records=rows)
    await connection.execute(
        "insert into flowdsl.executions (id, tenant, workflow, version, request, epoch, wake, started)"
        " values ($1, 'default', $2, $3, $4, 1, clock_timestamp(), $5)",
        id,
        workflow.name,
        workflow.version,
        b"%d" % (length + 1 if shape == "steps" else 0),
        BEGUN,
    )
    await connection.execute("vacuum analyze flowdsl.journal")
    return id


async def measure(dsn: str, shape: Shape, length: int, rounds: int) -> Resumed:
    workflow = sequence if shape == "steps" else loop
    loads: list[float] = []
    folds: list[float] = []
    bares: list[float] = []
    bare = await asyncpg.connect(dsn, server_settings={"jit": "off"})
    async with await Store.open(dsn) as store:
        id = await write(bare, shape, length)
        entries = (await store.load([id]))[id]  # the first is for the caches
        query = await bare.prepare("select position, step, body from flowdsl.journal where execution = $1 and position >= $2 order by position")
        for _ in range(rounds):
            a = time.perf_counter()
            entries = (await store.load([id]))[id]
            b = time.perf_counter()
            activated(workflow, length + 1, id).begin(entries, (), BEGUN)
            c = time.perf_counter()
            for row in await query.fetch(id, entries[0].position):
                json.loads(row["body"])
            d = time.perf_counter()
            for times, took in ((loads, b - a), (folds, c - b), (bares, d - c)):
                times.append(took * 1e3)
        woken = await resumed(store)
    await bare.close()
    return Resumed(shape, length, len(entries), middle(loads), middle(folds), middle(bares), woken)


async def resumed(store: Store) -> float:
    """Until a fresh worker has it running again."""
    ticks, running = Ticks(), asyncio.Event()
    ticks.hook = running.set
    begun = time.perf_counter()
    async with Worker(ticks.deployment(), store):
        await running.wait()
        took = (time.perf_counter() - begun) * 1e3
        await store.again("update flowdsl.executions set status = 'failed', owner = null, wake = null, epoch = epoch + 1 where owner is not null")
    return took
