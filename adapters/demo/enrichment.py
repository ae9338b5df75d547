"""`./dev demo enrichment`: addresses looked up in batches, at a provider that calls back, sometimes."""

from __future__ import annotations

import click

from adapters.demo.front import performed
from adapters.demo.lookups import Plan, play


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
    while it writes results, and the service while a callback comes. The provider of this demo charges an address each time that it is asked about it.

    Exit code 0 when its own books say that nothing was paid twice, nothing lost, and nothing processed twice; 1 otherwise.
    """
    performed(lambda folder, screen: play(Plan(addresses, seed, workers, faults, not no_kill, database, folder), screen), as_json=as_json)
