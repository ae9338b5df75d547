"""`python -m adapters.demo [NAME] [OPTIONS]`: each demo is a module here, with a click command `main`."""

from __future__ import annotations

import sys
from importlib import import_module

import click

DEMOS = {
    "sync": "An organization from HTTP pages into Postgres; this one if none is named.",
    "enrichment": "Addresses looked up in batches at a provider that calls back, sometimes.",
    "imports": "A large CSV file from S3, one child for each row.",
}


def main(arguments: list[str]) -> None:
    name, *rest = arguments if arguments and not arguments[0].startswith("-") else ["sync", *arguments]
    if name not in DEMOS:
        raise SystemExit(f"there is no demo {name!r}:\n" + _listed())
    if arguments in (["-h"], ["--help"]):
        click.echo(f"Usage: ./dev demo [NAME] [OPTIONS]; ./dev demo NAME --help says which options.\n\n{_listed()}\n\nThe sync takes these:\n")
    command: click.Command = import_module(f"adapters.demo.{name}").main
    command.main(rest, prog_name=f"./dev demo {name}")


def _listed() -> str:
    return "\n".join(f"  {name:<11} {told}" for name, told in DEMOS.items())


main(sys.argv[1:])
