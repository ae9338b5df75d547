"""`./dev demo sync`, or just `./dev demo`: the sync of an organization."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import click
from attrs import asdict
from rich.console import Console

from adapters.demo.play import Outcome, Plan, play
from adapters.demo.screen import Screen
from flowdsl import FlowError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--people", default=5000, show_default=True, help="People in the organization; everything else hangs on them.")
@click.option("--seed", default=7, show_default=True, help="Of the organization, its faults and its changes during the walk.")
@click.option("--workers", default=2, show_default=True, help="Worker processes.")
@click.option("--faults", type=click.Choice(["none", "mild", "rough"]), default="mild", show_default=True, help="What the source does to us.")
@click.option("--no-kill", is_flag=True, help="Let all workers live.")
@click.option("--database", help="Use this database instead of a fresh one in the embedded Postgres.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def main(people: int, seed: int, workers: int, faults: str, no_kill: bool, database: str | None, as_json: bool) -> None:
    """Syncs an organization from HTTP pages into Postgres, kills a worker in the middle, and compares the outcome row by row.

    Exit code 0 when nothing is missing, doubled or stale; 1 otherwise.
    """
    console = Console(stderr=as_json)
    with tempfile.TemporaryDirectory(prefix="flowdsl-demo-") as logs:
        plan = Plan(people, seed, workers, faults, not no_kill, database, Path(logs))
        try:
            outcome = asyncio.run(play(plan, Screen(console, quiet=as_json)))
        except FlowError as error:
            raise click.ClickException(str(error)) from None
        if as_json:
            print(json.dumps(_facts(outcome)))
        if not outcome.clean:
            _show_logs(Path(logs), console)
    sys.exit(0 if outcome.clean else 1)


def _facts(outcome: Outcome) -> dict[str, object]:
    return {**asdict(outcome), "clean": outcome.clean}


def _show_logs(folder: Path, console: Console) -> None:
    for log in sorted(folder.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-15:]
        if lines:
            console.print(f"[dim]{log.name}[/]\n" + "\n".join(lines), markup=True, highlight=False)
