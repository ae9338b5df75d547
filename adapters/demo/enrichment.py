"""`./dev demo enrichment`: addresses looked up in batches, at a provider that calls back, sometimes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path

import click
from attrs import asdict
from rich.console import Console

from adapters.demo.lookups import Plan, play
from adapters.demo.screen import Screen
from flowdsl import FlowError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--addresses", type=click.IntRange(min=10), default=240, show_default=True, help="New personal subscribers.")
@click.option("--seed", default=7, show_default=True, help="Of the provider's faults.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Worker processes.")
@click.option("--faults", type=click.Choice(["none", "mild", "rough"]), default="mild", show_default=True, help="What the provider does to us.")
@click.option("--no-kill", is_flag=True, help="Let all processes live.")
@click.option("--database", help="Use this database instead of a fresh one in the embedded Postgres.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def main(addresses: int, seed: int, workers: int, faults: str, no_kill: bool, database: str | None, as_json: bool) -> None:
    """Subscribers come by webhook and by CSV file, and are looked up in batches. On the way a worker is killed while a submission is under way, one
    while results come in, and the service while callbacks do. The provider of this demo charges an address each time that it is asked about it.

    Exit code 0 when its own books say that nothing was paid twice, nothing lost, and nothing processed twice; 1 otherwise.
    """
    console = Console(stderr=as_json)
    signal.signal(signal.SIGTERM, _stop)  # so that the processes that were started are ended too
    with tempfile.TemporaryDirectory(prefix="flowdsl-demo-") as folder:
        plan = Plan(addresses, seed, workers, faults, not no_kill, database, Path(folder))
        try:
            outcome = asyncio.run(play(plan, Screen(console, quiet=as_json)))
        except FlowError as error:
            raise click.ClickException(str(error)) from None
        if as_json:
            print(json.dumps({**asdict(outcome), "clean": outcome.clean}))
        if not outcome.clean:
            _show_logs(Path(folder), console)
    sys.exit(0 if outcome.clean else 1)


def _stop(*_: object) -> None:
    sys.exit(143)


def _show_logs(folder: Path, console: Console) -> None:
    for log in sorted(folder.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-15:]
        if lines:
            console.print(f"[dim]{log.name}[/]\n" + "\n".join(lines), markup=True, highlight=False)
