"""`python -m tests.bench.growth`: how what a step costs grows, as curves: against executions in flight, the length of journals, what is stored,
worker processes, executions that wait; and what retention leaves. Points of one curve are measured in turns. Read ratios: machines drift."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from attrs import evolve, frozen
from rich.console import Console
from rich.table import Table

from flowdsl.collector import calm
from flowdsl.errors import FlowError
from flowdsl.postgres import looking
from flowdsl.postgres.looking import Sought
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.worker import Worker, new_id
from tests.bench import growth_model, history, ours, waiting
from tests.bench.growth_finished import Sizes, against_finished
from tests.bench.growth_pruned import retained, size
from tests.bench.growth_rows import database
from tests.bench.measured import Sample, Watch, middle
from tests.bench.servers import scratch, server, settings
from tests.bench.subject import Ticks, sequence

Row = dict[str, Any]
deployment = Ticks().deployment()
"""For worker processes."""


@frozen
class Scale:
    """How far the curves go."""

    seconds: float
    rounds: int
    finished: tuple[int, ...]
    """Executions of ten steps that are in the store already."""
    lengths: tuple[int, ...]
    turns: tuple[int, ...]
    """Rounds of a loop."""
    suspended: tuple[int, ...]
    drained: int
    """Executions that worker processes share."""
    pruned: int
    ended: Sizes
    """What is done beside how many that have ended."""
    in_flight: tuple[int, ...] = (1, 4, 16, 64, 256)
    workers: tuple[int, ...] = (1, 2, 4)


QUICK = Scale(0.5, 2, (0, 20_000), (10, 100, 1000), (1000, 10_000), (1000,), 1000, 10_000, Sizes(20_000, 200, 200))
USUAL = Scale(2.0, 3, (0, 100_000), (10, 100, 1000, 10_000), (1000, 10_000, 100_000), (1000, 10_000), 5000, 100_000, Sizes(1_000_000, 1000, 2000))
LONG = Scale(
    3.0,
    3,
    (0, 100_000, 1_000_000),
    (10, 100, 1000, 10_000),
    (1000, 10_000, 100_000),
    (1000, 10_000, 100_000),
    20_000,
    1_000_000,
    Sizes(10_000_000, 1000, 10_000),
)


async def against_in_flight(url: str, scale: Scale) -> list[Row]:
    """Workflows of ten steps."""
    async with database(url, "flight") as (dsn, watcher):
        samples = [await ours.measure(dsn, watcher, number, scale.seconds) for _ in range(scale.rounds) for number in scale.in_flight]
    return [{"in flight": number, **_costs([one for one in samples if one.in_flight == number])} for number in scale.in_flight]


async def against_length(url: str, scale: Scale) -> list[Row]:
    """Sixteen in flight, each of so many plain steps: what a step costs near the end of a long one."""
    samples: list[tuple[int, Sample]] = []
    for _ in range(scale.rounds):
        for length in scale.lengths:
            async with database(url, "length") as (dsn, watcher):
                samples.append((length, await _steady(dsn, watcher, 16, length, scale.seconds)))
    return [{"steps of each": length, **_costs([one for at, one in samples if at == length])} for length in scale.lengths]


async def _steady(dsn: str, watcher: Any, in_flight: int, steps: int, seconds: float) -> Sample:
    """One window; what is under way at its end is let go of."""
    ticks = Ticks()
    async with await Store.open(dsn) as store, Worker(ticks.deployment(), store) as worker:

        async def lane() -> None:
            while True:
                await worker.wait(await worker.start(sequence, steps))

        lanes = [asyncio.create_task(lane()) for _ in range(in_flight)]
        try:
            return await Watch(watcher, lambda: ticks.count).window("ours", in_flight, seconds)
        finally:
            for one in lanes:
                one.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)


async def against_stored(url: str, scale: Scale) -> list[Row]:
    """Sixty-four in flight, beside what has ended; and what is read meanwhile: an empty claim, a look, pages of a list."""
    found = await _beside(url, scale, [("stored", number, 0) for number in scale.finished])
    return [{"executions": number, "entries": number * 10, **row} for number, row in zip(scale.finished, found, strict=True)]


async def against_suspended(url: str, scale: Scale) -> list[Row]:
    """The same beside executions that wait, half of them for a time."""
    numbers = (0, *scale.suspended)
    found = await _beside(url, scale, [("waits", 0, number) for number in numbers])
    return [{"suspended": number, **row} for number, row in zip(numbers, found, strict=True)]


async def suspended(url: str, scale: Scale) -> list[Row]:
    """What each of them takes of its worker and of the store; all of them suspended by one worker, and woken by signals."""
    rows: list[Row] = []
    for number in scale.suspended:
        async with scratch(url, "wake") as dsn:
            one = await waiting.measure(dsn, number)
        rows.append(
            {
                "suspended": number, "worker idle, MB": one.idle_mb, "more with them, MB": one.suspended_mb - one.idle_mb,
                "bytes stored each": one.bytes_each, "all suspended, s": one.start_s, "all woken and ended, s": one.wake_s,
            }
        )  # fmt: skip
    return rows


async def _beside(url: str, scale: Scale, stores: Sequence[tuple[str, int, int]]) -> list[Row]:
    """In turns, so that a moment in which the machine is busy is everybody's."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(database(url, f"{kind}{n}", finished, waits)) for n, (kind, finished, waits) in enumerate(stores)]
        samples = [[await ours.measure(dsn, watcher, 64, scale.seconds) for dsn, watcher in opened] for _ in range(scale.rounds)]
        return [{**_costs([one_round[n] for one_round in samples]), **await _read(dsn, watcher)} for n, (dsn, watcher) in enumerate(opened)]


async def _read(dsn: str, watcher: Any) -> Row:
    """Milliseconds, medians of ten; the first is for the caches."""
    worker = new_id()
    await watcher.execute("insert into flowdsl.workers (id, lease, host, pid) values ($1, '1 hour', 'bench', 0)", worker)
    async with await Store.open(dsn) as store:

        async def claim() -> object:
            return await store.again("select * from flowdsl.claim($1, 128, $2, true)", worker, ["bench.sequence"])

        async def look() -> object:
            return await store.again("select * from flowdsl.look($1)", worker)

        async def page() -> object:
            return await looking.executions(store, "default", Sought(), limit=50)

        async def failed() -> object:
            return await looking.executions(store, "default", Sought(status="failed"), limit=50)

        async def dead() -> object:
            return await store.dead("tenant-9", None, 50)

        asked = {"empty claim, ms": claim, "look, ms": look, "a page, ms": page, "failed ones, ms": failed, "dead letters, ms": dead}
        found = {what: await _median_ms(ask) for what, ask in asked.items()}
    await watcher.execute("delete from flowdsl.workers where id = $1", worker)
    return found


async def _median_ms(ask: Callable[[], Awaitable[object]]) -> float:
    times: list[float] = []
    for _ in range(11):
        begun = time.perf_counter()
        await ask()
        times.append((time.perf_counter() - begun) * 1e3)
    return middle(times[1:])


async def against_workers(url: str, scale: Scale) -> list[Row]:
    """Worker processes that share what is due, until the last has ended."""
    rows: list[Row] = []
    for number in scale.workers:
        async with database(url, "workers") as (dsn, watcher):
            taken, connections = await _drained(dsn, watcher, number, scale.drained)
        rows.append({"processes": number, "executions": scale.drained, "steps/s": scale.drained * 10 / taken, "connections of each": connections})
    return [row | {"of one": row["steps/s"] / rows[0]["steps/s"]} for row in rows]


async def _drained(dsn: str, watcher: Any, processes: int, count: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "flowdsl", "worker", "tests.bench.growth:deployment"]
    environment = {**os.environ, "FLOWDSL_DATABASE_URL": dsn}
    started = [await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.DEVNULL) for _ in range(processes)]
    try:
        await _until(watcher, "select count(*) from flowdsl.workers where not gone", processes)
        async with await Store.open(dsn) as store:
            wishes = [NewStart(new_id(), "default", sequence.name, 1, "", None, "join", b"10") for _ in range(count)]
            begun = time.perf_counter()
            for at in range(0, count, 1000):
                await store.start(wishes[at : at + 1000])
            await _until(watcher, "select count(*) from flowdsl.executions where ended is not null", count)
            took = time.perf_counter() - begun
        open_ones = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'flowdsl%'"
        return took, await watcher.fetchval(open_ones) / processes
    finally:
        for one in started:
            one.terminate()
        await asyncio.gather(*(one.wait() for one in started))


async def _until(watcher: Any, query: str, wanted: int) -> None:
    async with asyncio.timeout(900):
        while await watcher.fetchval(query) < wanted:
            await asyncio.sleep(0.05)


async def resumed(url: str, scale: Scale) -> list[Row]:
    """Loading and folding a journal: rows that are read, and the time beside a bare fetch and decode of the same rows."""
    async with database(url, "resumed") as (dsn, _):
        found = [await history.measure(dsn, "steps", length, scale.rounds + 2) for length in scale.lengths[1:]]
        found += [await history.measure(dsn, "rounds", turns, scale.rounds + 2) for turns in scale.turns]
    return [
        {"of": one.shape, "length": one.length, "rows loaded": one.rows, "load and fold, ms": one.load_ms + one.fold_ms, "bare, ms": one.bare_ms,
         "times bare": one.ratio, "in a fresh worker, ms": one.worker_ms}
        for one in found
    ]  # fmt: skip


async def pruned(url: str, scale: Scale) -> list[Row]:
    """Retention: how fast, how long one batch holds its locks, what a worker beside it does, and how much the tables grow when all comes again."""
    return await retained(url, scale.pruned, scale.seconds)


async def finished(url: str, scale: Scale) -> list[Row]:
    """Starts, children and wake-ups beside executions of one step that have ended, in seconds; and the same with empty tables."""
    return await against_finished(url, scale.ended, scale.rounds)


def _costs(samples: Sequence[Sample]) -> Row:
    def of(values: Sequence[float | None]) -> float:
        return middle([value for value in values if value is not None] or [0.0])

    return {
        "steps/s": middle([one.steps_per_s for one in samples]),
        "client µs": of([one.client_us for one in samples]),
        "server µs": of([one.server_us for one in samples]),
        "WAL bytes": of([one.wal_bytes for one in samples]),
    }


CURVES: dict[str, Callable[[str, Scale], Awaitable[list[Row]]]] = {
    "in-flight": against_in_flight,
    "length": against_length,
    "stored": against_stored,
    "waiting": against_suspended,
    "suspended": suspended,
    "workers": against_workers,
    "resumed": resumed,
    "pruned": pruned,
    "finished": finished,
}


def printed(console: Console, name: str, rows: Sequence[Row]) -> None:
    table = Table(title=f"{name}: {(CURVES[name].__doc__ or '').strip()}", title_justify="left", header_style="bold")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(growth_model.shown, row.values()))
    console.print(table)


def costs_of(curves: dict[str, list[Row]], stored: float) -> Row:
    """What the model starts from: the point with 64 in flight."""
    row = next(row for row in curves["in-flight"] if row["in flight"] == 64)
    return {"steps": 10, "wal": row["WAL bytes"], "stored": stored, "client_us": row["client µs"], "server_us": row["server µs"]}


async def stored_each(url: str) -> float:
    """Bytes of one finished execution of ten steps, indexes included."""
    async with database(url, "each", 20_000) as (_, watcher):
        return await size(watcher) / 20_000


async def run(chosen: argparse.Namespace, console: Console) -> Row:
    calm()
    scale = QUICK if chosen.quick else LONG if chosen.long else USUAL
    if chosen.finished is not None:
        scale = evolve(scale, ended=evolve(scale.ended, finished=chosen.finished))
    async with server(chosen.database, chosen.store) as url:
        found: Row = {"settings": await settings(url), "curves": {}, "when": {}}
        for name, curve in CURVES.items():
            if name in chosen.only:
                found["when"][name] = {"at": datetime.now(UTC).date().isoformat(), "load": round(os.getloadavg()[0], 1)}
                found["curves"][name] = await curve(url, scale)
                printed(console, name, found["curves"][name])
        if "in-flight" in chosen.only:
            found["costs"] = costs_of(found["curves"], await stored_each(url))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.growth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short windows and small tables: about two minutes")
    parser.add_argument("--long", action="store_true", help="ten million executions that have ended, 100,000 that wait: over an hour")
    parser.add_argument("--only", default=",".join(CURVES), help=f"some of {','.join(CURVES)}, with commas")
    parser.add_argument("--database", metavar="URL", help="a server where databases may be made (default: the embedded one, for this run)")
    parser.add_argument(
        "--store", metavar="FOLDER", type=Path, help="its server's data stays here: what --only finished has filled is there next time"
    )
    parser.add_argument("--finished", type=int, metavar="N", help="so many executions that have ended, for --only finished")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--keep", action="store_true", help="what was measured goes into docs/scale.json, and from there into docs/scale.md")
    chosen = parser.parse_args()
    chosen.only = chosen.only.split(",")
    if unknown := set(chosen.only) - CURVES.keys():
        parser.error(f"no such curve: {', '.join(sorted(unknown))} (there are {', '.join(CURVES)})")
    if chosen.store and chosen.database:
        parser.error("--store is for a server of its own: leave out --database, whose data stays anyway")
    terminal = sys.stderr if chosen.json else sys.stdout
    console = Console(file=terminal, width=None if terminal.isatty() else 170, highlight=False)
    try:
        found = asyncio.run(run(chosen, console))
    except (FlowError, asyncpg.PostgresError) as error:
        print(f"growth: {error}", file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps(found))
    if chosen.keep:
        growth_model.keep(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
