"""`python -m tests.bench`: what the engine costs, beside the physical limit and a peer, interleaved in one run. Read the ratios: machines drift."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import Any

import asyncpg
import structlog
from rich.console import Console

from flowdsl.collector import calm
from flowdsl.errors import FlowError
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import connect
from tests.bench import bare, history, inside, ours, tables
from tests.bench.measured import Sample
from tests.bench.peers import Dbos
from tests.bench.servers import scratch, server, settings

WORKLOADS = {
    "seq": "workflows of ten no-op steps, at 1, 32 and 256 in flight: ours, bare group commit, DBOS",
    "latency": "start to first activity, step to step, last activity to the answer of wait; alone",
    "history": "resuming after 100, 1,000 and 10,000 steps, and loops of 100 and 100,000 rounds",
    "inside": "machine, fold and codec alone, in memory",
}
IN_FLIGHT = (1, 32, 256)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="workloads:\n" + "\n".join(f"  {name:8} {what}" for name, what in WORKLOADS.items()),
    )
    parser.add_argument("--quick", action="store_true", help="short windows and two rounds: under 40 seconds")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 3; 2 with --quick)")
    parser.add_argument("--seconds", type=float, help="of each window (default 3; 0.4 with --quick)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, with every sample")
    parser.add_argument("--database", metavar="URL", help="a server where databases may be made (default: the embedded one)")
    parser.add_argument("--only", help=f"some of {','.join(WORKLOADS)}, with commas")
    parser.add_argument("--no-dbos", action="store_true", help="leave DBOS out although it is installed")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), help="the event loop of ours and bare (default: uvloop if installed)")
    chosen = parser.parse_args()
    chosen.only = (chosen.only or ",".join(WORKLOADS)).split(",")
    if unknown := set(chosen.only) - WORKLOADS.keys():
        parser.error(f"no such workload: {', '.join(sorted(unknown))} (there are {', '.join(WORKLOADS)})")
    chosen.rounds = chosen.rounds or (2 if chosen.quick else 3)
    chosen.seconds = chosen.seconds or (0.4 if chosen.quick else 3.0)
    chosen.loop = chosen.loop or ("uvloop" if find_spec("uvloop") else "asyncio")
    return chosen


class Bench:
    def __init__(self, chosen: argparse.Namespace, console: Console) -> None:
        self._chosen, self._console = chosen, console
        self._found: dict[str, Any] = {}

    async def run(self) -> dict[str, Any]:
        chosen, begun = self._chosen, time.monotonic()
        calm()  # as `flowdsl worker` does
        async with server(chosen.database) as url, scratch(url, "flowdsl") as dsn:
            await migrate(dsn)
            self._found["settings"] = {"loop": chosen.loop, "python": sys.version.split()[0], **await settings(url)}
            tables.settings(self._console, self._found["settings"])
            for name in WORKLOADS:
                if name in chosen.only:
                    await getattr(self, f"_{name}")(url, dsn)
        self._found["took_s"] = round(time.monotonic() - begun, 1)
        self._console.print(f"took {self._found['took_s']} s")
        return self._found

    async def _seq(self, url: str, dsn: str) -> None:
        samples: list[Sample] = []
        async with AsyncExitStack() as stack:
            peer = await self._peer(stack, url)
            watcher = await connect(dsn)
            stack.push_async_callback(watcher.close)
            for round in range(self._chosen.rounds):
                for in_flight in IN_FLIGHT:
                    self._console.print(f"[dim]round {round + 1}, {in_flight} in flight[/dim]")
                    samples += await self._side_by_side(dsn, watcher, in_flight, peer)
        self._found["seq"] = [sample.plain() for sample in samples]
        tables.sequences(self._console, samples, IN_FLIGHT)

    async def _side_by_side(self, dsn: str, watcher: Any, in_flight: int, peer: Dbos | None) -> list[Sample]:
        seconds = self._chosen.seconds
        found = [
            await ours.measure(dsn, watcher, in_flight, seconds),
            await bare.measure(dsn, watcher, in_flight, seconds, flows=False),
            await bare.measure(dsn, watcher, in_flight, seconds, flows=True),
        ]
        if peer is not None:
            found.append(Sample(**json.loads(await peer.window(in_flight, seconds))))
        return found

    async def _peer(self, stack: AsyncExitStack, url: str) -> Dbos | None:
        if self._chosen.no_dbos or find_spec("dbos") is None:
            self._console.print('[dim]without DBOS; to see it: pip install "flowdsl\\[bench]"[/dim]' if not self._chosen.no_dbos else "")
            return None
        peer = await Dbos.begin(await stack.enter_async_context(scratch(url, "dbos")))
        stack.push_async_callback(peer.end)
        if not await peer.ready():
            self._console.print("[yellow]without DBOS: it did not start; what it said stands above[/yellow]")
            return None
        return peer

    async def _latency(self, url: str, dsn: str) -> None:
        found = await ours.latency(dsn, 30 if self._chosen.quick else 200)
        self._found["latency_ms"] = tables.latencies(self._console, found)

    async def _history(self, url: str, dsn: str) -> None:
        lengths: list[tuple[history.Shape, int]] = [("steps", 100), ("steps", 1000), ("steps", 10_000), ("rounds", 100), ("rounds", 100_000)]
        found = [await history.measure(dsn, shape, length, self._chosen.rounds + 2) for shape, length in lengths]
        self._found["history"] = [one.plain() for one in found]
        tables.histories(self._console, found)

    async def _inside(self, url: str, dsn: str) -> None:
        found = await asyncio.to_thread(inside.measure, 2000 if self._chosen.quick else 10_000, self._chosen.rounds + 2)
        self._found["inside_us"] = {what: round(took, 2) for what, took in found.items()}
        tables.inside(self._console, found)


def main() -> int:
    chosen = arguments()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR), logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    terminal = sys.stderr if chosen.json else sys.stdout
    console = Console(file=terminal, width=None if terminal.isatty() else 150, highlight=False)
    bench = Bench(chosen, console)
    try:
        if chosen.loop == "uvloop":
            import uvloop

            found = uvloop.run(bench.run())
        else:
            found = asyncio.run(bench.run())
    except (FlowError, asyncpg.PostgresError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
