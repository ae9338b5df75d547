"""The command that measures: `bench`. What it measures with lives in the repository, beside the tests; this finds it and hands on what was asked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from flowdsl.cli.edge import Refusal


@click.command(
    short_help="Measure steps a second beside the physical limit and the peers.",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measures what the engine costs, beside the physical limit and every peer that is installed, and makes a page of it. `--help` says more."""

    root = _checkout()
    if root is None:
        raise Refusal("the measurements are not part of the package: run this from a checkout of flowdsl's repository, or `./dev bench` there")
    folders = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": folders, "FLOWDSL_BENCH_NAME": "flowdsl bench"}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "tests.bench", *arguments], variables)  # so that signals and the exit code are its own


def _checkout() -> Path | None:
    """Where the measurements are: the folder that we stand in, or the one that this package was installed from."""
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / "tests" / "bench" / "__main__.py").is_file() and (folder / "flowdsl").is_dir():
            return folder
    return None


COMMANDS = (bench,)
