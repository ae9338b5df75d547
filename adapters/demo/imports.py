"""`./dev demo imports`: a large file from S3, one child for each row."""

from __future__ import annotations

import click

from adapters.demo.front import performed
from adapters.demo.rows import Plan, play


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rows", type=click.IntRange(min=1), default=20_000, show_default=True, help="Rows in the file.")
@click.option("--seed", default=7, show_default=True, help="Of the rows that fail, and of the order service's faults.")
@click.option("--bad", type=click.IntRange(0, 1000), default=10, show_default=True, help="So many of a thousand rows fail.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Worker processes.")
@click.option("--kills", type=click.IntRange(min=0), default=2, show_default=True, help="Workers killed on the way, each time the one that reads.")
@click.option("--faults", type=click.Choice(["none", "mild", "rough"]), default="mild", show_default=True, help="What the order service does to us.")
@click.option("--database", help="Use this database instead of a fresh one in the embedded Postgres.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def main(rows: int, seed: int, bad: int, workers: int, kills: int, faults: str, database: str | None, as_json: bool) -> None:
    """Imports a file, kills workers in the middle; mends what made rows fail, adds rows, and imports it again.

    Exit code 0 when the order service's own records say that every row was made good once and no row twice, and that the second import
    looked at nothing but failed and new rows; 1 otherwise.
    """
    performed(lambda folder, screen: play(Plan(rows, seed, bad, workers, kills, faults, database, folder), screen), as_json=as_json)
