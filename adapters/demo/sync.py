"""`./dev demo sync`, or just `./dev demo`: the sync of an organization."""

from __future__ import annotations

import click

from adapters.demo.front import performed
from adapters.demo.play import Plan, play


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
    performed(lambda folder, screen: play(Plan(people, seed, workers, faults, not no_kill, database, folder), screen), as_json=as_json)
