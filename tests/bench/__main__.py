"""What the engine costs, beside the physical limit and every peer that is installed, interleaved in one run. Read the ratios: machines drift."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import signal
import sys
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg
import structlog
from rich.console import Console
from rich.table import Table

from flowdsl.collector import calm
from flowdsl.errors import FlowError
from flowdsl.postgres.schema import migrate
from tests.bench import history, inside, ours, page, sheets
from tests.bench.found import percentile
from tests.bench.measured import Figures
from tests.bench.ours import WAL
from tests.bench.peers import OURS, PARTIES, PEERS, Field, Silent, field
from tests.bench.profiled import ORDER
from tests.bench.race import Race
from tests.bench.servers import DURABLE, scratch, server, settings, timed_flushes
from tests.bench.workloads import ALONE, WORKLOADS

ALL = (*WORKLOADS, *ALONE)
PROFILED = (1, 256)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=os.environ.get("FLOWDSL_BENCH_NAME", "python -m tests.bench"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="workloads:\n"
        + "\n".join(f"  {name:10} {what}" for name, what in ({one.name: one.what for one in WORKLOADS.values()} | ALONE).items()),
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="some of those below (default: all)")
    parser.add_argument("--rounds", type=int, metavar="N", help="interleaved rounds (default 5; 2 with --quick)")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each window (default 0.6; 0.3 with --quick)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether everything runs, not how fast")
    parser.add_argument("--long", action="store_true", help="with the sizes that take minutes each: 50,000 people, 10,000 schedules")
    parser.add_argument("--sizes", metavar="N,N", help="of the workloads named, instead of theirs")
    parser.add_argument("--peers", metavar="NAMES", help=f"some of {','.join(PEERS)}, or none (default: all that are installed)")
    parser.add_argument("--flush-ms", type=float, default=0.0, metavar="MS", help="every WAL flush takes so much longer, as on a network disk")
    parser.add_argument("--profile", action="store_true", help="only where the client's CPU of a step goes")
    parser.add_argument("--json", metavar="FILE", help="also every figure of every round, as one JSON document; - for standard output")
    parser.add_argument("--page", metavar="FILE", help="measure nothing: write docs/performance.md and its plots from such a document")
    parser.add_argument("--out", metavar="PAGE", default=str(page.PAGE), help="write the page there instead")
    parser.add_argument("--note", metavar="TEXT", default="", help="a sentence about the machine, kept with the figures and shown on the page")
    parser.add_argument(
        "--database", metavar="URL", help="a server where databases may be made (default: one of its own, durable, removed afterwards)"
    )
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), help="the event loop of ours and the limits (default: uvloop if installed)")
    return checked(parser, parser.parse_args(given))


def checked(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> argparse.Namespace:
    if chosen.profile:
        chosen.workloads = ["profile"]
    if unknown := [name for name in chosen.workloads if name not in ALL]:
        parser.error(f"no such workload: {', '.join(unknown)} (there are {', '.join(ALL)})")
    if chosen.quick and chosen.long:
        parser.error("--quick and --long contradict each other: give one")
    if chosen.flush_ms and chosen.database:
        parser.error("--flush-ms changes the server's settings, which the bench does to its own only: leave out --database")
    if not 0 <= chosen.flush_ms <= 100:
        parser.error("--flush-ms: Postgres waits 100 ms at most")
    named = PEERS if chosen.peers is None else () if chosen.peers == "none" else chosen.peers.split(",")
    if unknown := [name for name in named if name not in PEERS]:
        parser.error(f"no such peer: {', '.join(unknown)} (there are {', '.join(PEERS)})")
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error("--rounds: one at least")
    if chosen.seconds is not None and chosen.seconds <= 0:
        parser.error("--seconds: more than none")
    try:
        chosen.sizes = [int(size) for size in chosen.sizes.split(",")] if chosen.sizes else None
    except ValueError:
        parser.error(f"--sizes: {chosen.sizes!r} is no list of numbers")
    chosen.named = named
    chosen.workloads = list(dict.fromkeys(chosen.workloads or ALL))
    chosen.form = "quick" if chosen.quick else "long" if chosen.long else "usual"
    chosen.rounds = chosen.rounds or (2 if chosen.quick else 5)
    chosen.seconds = chosen.seconds or (0.3 if chosen.quick else 0.6)
    chosen.loop = chosen.loop or ("uvloop" if find_spec("uvloop") else "asyncio")
    return chosen


class Bench:
    def __init__(self, chosen: argparse.Namespace, console: Console) -> None:
        self._chosen, self._console = chosen, console
        self._race: Race | None = None
        self._url = ""
        self.facts: dict[str, Any] = {}

    async def run(self) -> dict[str, Any]:
        """All figures. A SIGTERM cancels it: servers and processes end with it, and what was measured so far is kept."""
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await self._run()

    async def _run(self) -> dict[str, Any]:
        chosen, begun = self._chosen, time.monotonic()
        calm()  # as `flowdsl worker` does
        async with AsyncExitStack() as stack:
            self._url = url = await stack.enter_async_context(server(chosen.database))
            self.facts |= await self._surroundings(url)
            self.facts["absent"] = absent = self._absent()
            kinds = {one.database for one in PARTIES.values()}
            dsns = {kind: await stack.enter_async_context(scratch(url, kind)) for kind in sorted(kinds)}
            await migrate(dsns["ours"])
            entrants = await stack.enter_async_context(field(dsns))
            race = Race(url, entrants, chosen.rounds, chosen.seconds, self._tell)
            self._race = race
            for name in chosen.workloads:
                if name in WORKLOADS:
                    sizes = chosen.sizes or WORKLOADS[name].sizes(chosen.form)
                    await race.run(WORKLOADS[name], sizes, list(absent), chosen.flush_ms)
                else:
                    await getattr(self, f"_{name}")(dsns["ours"], entrants)
                self._keep()
                self._show(name)
        self.facts["took_s"] = round(time.monotonic() - begun, 1)
        self._keep()
        return self.facts

    def _keep(self) -> None:
        """What there is so far: a run that is cut short leaves its figures."""
        if self._race is not None:
            self.facts |= self._race.facts()
        if self._chosen.json not in (None, "-"):
            half = Path(f"{self._chosen.json}.half")
            half.write_text(json.dumps(self.facts) + "\n", encoding="utf-8")
            half.replace(self._chosen.json)

    async def _surroundings(self, url: str) -> dict[str, Any]:
        found = await settings(url)
        self._console.print(f"Postgres: {', '.join(f'{name} {value}' for name, value in found.items())}")
        if loose := [name for name in DURABLE if found[name] != "on"] + [f"on {found['disk']}" for _ in [0] if found["disk"] in ("tmpfs", "ramfs")]:
            self._console.print(f"[red]not durable ({', '.join(loose)}): no figure below says anything about a real server[/red]")
        return {
            "flowdsl": version("flowdsl"),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "note": self._chosen.note,
            "form": self._chosen.form,
            "rounds": self._chosen.rounds,
            "window_s": self._chosen.seconds,
            "flush_ms": self._chosen.flush_ms,
            "loop": self._chosen.loop,
            "machine": {"cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version(), "load": os.getloadavg()[0]},
            "settings": found,
        }

    def _absent(self) -> dict[str, str]:
        """Who is not there, each said in a line."""
        absent: dict[str, str] = {}
        for name in PEERS:
            reason = PARTIES[name].missing() if name in self._chosen.named else f"{PARTIES[name].title} is left out, as asked"
            if reason:
                absent[name] = reason
                self._console.print(f"[dim]{reason.replace('[', chr(92) + '[')}[/dim]")
        return absent

    async def _latency(self, dsn: str, _: Field) -> None:
        found = await ours.latency(dsn, 20 if self._chosen.form == "quick" else 200)
        what = {
            "start → first activity": found.start,
            "activity → next activity": found.step,
            "last activity → answer of wait": found.finish,
            "a bare commit": found.commit,
        }
        self.facts["latency_ms"] = {name: {f"p{p}": round(percentile(values, p), 3) for p in (50, 90, 99)} for name, values in what.items()}

    async def _resume(self, dsn: str, _: Field) -> None:
        quick: list[tuple[history.Shape, int]] = [("steps", 100), ("rounds", 100)]
        usual: list[tuple[history.Shape, int]] = [("steps", 1000), ("steps", 10_000), ("rounds", 1000), ("rounds", 10_000), ("rounds", 100_000)]
        lengths = sorted(quick if self._chosen.form == "quick" else quick + usual, key=lambda one: (one[0] == "rounds", one[1]))
        rounds = self._chosen.rounds if self._chosen.form == "quick" else max(15, self._chosen.rounds)  # they take milliseconds
        self.facts["resume"] = [(await history.measure(dsn, shape, length, rounds)).plain() for shape, length in lengths]

    async def _inside(self, _: str, __: Field) -> None:
        found = await asyncio.to_thread(inside.measure, 1000 if self._chosen.form == "quick" else 10_000, self._chosen.rounds)
        self.facts["inside_us"] = {what: round(took, 2) for what, took in found.items()}
        importing = await asyncio.to_thread(inside.imports, self._chosen.rounds)
        self.facts["imports_ms"] = {what: round(took, 1) for what, took in importing.items()}

    async def _profile(self, _: str, entrants: Field) -> None:
        async with AsyncExitStack() as stack:
            if self._chosen.database is None:
                await stack.enter_async_context(timed_flushes(self._url))
            found = {size: await entrants.measured(OURS, "profile", size, self._chosen.seconds * 6) for size in PROFILED}
        self.facts["profile"] = {str(size): _profiled(figures) for size, figures in found.items()}

    def _tell(self, text: str) -> None:
        self._keep()
        self._console.print(f"[dim]{text.replace('[', chr(92) + '[')}[/dim]")

    def _show(self, name: str) -> None:
        for sheet in sheets.sheets_of(self.facts, name):
            show(self._console, sheet)


def _profiled(figures: Figures) -> dict[str, Any]:
    kinds = {name.removeprefix(WAL): round(each, 1) for name, each in figures.more.items() if name.startswith(WAL)}
    return {
        "wall_us": round(figures.seconds / figures.count * 1e6, 2),
        "client_us": figures.client_us,
        "server_us": figures.server_us,
        "flush_us": figures.more.get("flush_us"),
        "flushes": figures.more["flushes"],
        "wal": kinds,
        "samples": figures.more["samples"],
        "parts": {part: round(figures.more[part], 2) for part in ORDER},
    }


def show(console: Console, sheet: sheets.Sheet) -> None:
    table = Table(title=sheet.title, title_justify="left", header_style="bold")
    table.add_column(sheet.columns[0])
    for column in sheet.columns[1:]:
        table.add_column(column, justify="left" if column in ("", "why, or what comes next") else "right")
    for row in sheet.rows:
        table.add_row(*row)
    console.print(table)


def main(given: list[str] | None = None) -> int:
    chosen = arguments(given)
    if chosen.page:
        return paged(chosen)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR), logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    os.environ["FLOWDSL_BENCH_LOOP"] = chosen.loop  # for the processes of the others
    terminal = sys.stderr if chosen.json == "-" else sys.stdout
    console = Console(file=terminal, width=None if terminal.isatty() else 170, highlight=False)
    bench = Bench(chosen, console)
    try:
        if chosen.loop == "uvloop":
            import uvloop

            facts = uvloop.run(bench.run())
        else:
            facts = asyncio.run(bench.run())
    except (FlowError, Silent, OSError, asyncpg.PostgresError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except asyncio.CancelledError:
        return 143
    if chosen.form != "quick":
        show(console, page.aims_of(facts))
    if chosen.json == "-":
        print(json.dumps(facts))
    console.print(f"took {facts['took_s']} s" + (f"; --page {chosen.json} makes a page of it" if chosen.json not in (None, "-") else ""))
    return 0


def paged(chosen: argparse.Namespace) -> int:
    try:
        facts = json.loads(Path(chosen.page).read_text(encoding="utf-8"))
        made = page.write(facts, Path(chosen.out))
    except (OSError, ValueError, KeyError, page.NoPlots) as error:
        print(f"bench: no page from {chosen.page}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for path in made:
        print(f"wrote {os.path.relpath(path)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
