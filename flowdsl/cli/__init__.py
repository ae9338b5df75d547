"""The command line. Commands import what they need when they run: `flowdsl --help` loads click and nothing else."""

from __future__ import annotations

import copy

import click

from flowdsl.cli import (
    auditing,
    bench,
    breaking,
    completing,
    developing,
    drawing,
    encrypting,
    keeping,
    keys,
    looking,
    operating,
    proving,
    running,
    scheduling,
    serving,
    starter,
)
from flowdsl.cli.edge import LOGS, Commands

__all__ = ["main"]

_EXITS = "Exit codes: 0 done; 1 it was not, or not all of it; 2 wrong usage or input, or no database."


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="flowdsl")
@LOGS
def main() -> None:
    """Durable workflows in Python, on Postgres. With no database named, flowdsl brings its own.

    \b
    flowdsl run hello:deployment hello.count --input 40 --id one    starts it, or resumes it
    flowdsl list                                                    what there is
    flowdsl status ID --follow                                      how it goes
    """


for command in (
    running.run,
    running.worker,
    running.start,
    *looking.COMMANDS,
    *drawing.COMMANDS,
    *keeping.COMMANDS,
    *operating.COMMANDS,
    *proving.COMMANDS,
    *auditing.COMMANDS,
    *scheduling.COMMANDS,
    *keys.COMMANDS,
    *encrypting.COMMANDS,
    *serving.COMMANDS,
    *developing.COMMANDS,
    *breaking.COMMANDS,
    *bench.COMMANDS,
    *starter.COMMANDS,
    *completing.COMMANDS,
):
    main.add_command(command)

_dead_letters = copy.copy(operating.dead)  # what the service calls them
_dead_letters.hidden = True
main.add_command(_dead_letters, "dead-letters")


def _document(command: click.Command) -> None:
    """Each command says how it ends, those that end as most do as well."""
    if isinstance(command, click.Group):
        for one in command.commands.values():
            _document(one)
    if not isinstance(command, click.Group) or command.invoke_without_command:
        command.epilog = command.epilog or _EXITS


_document(main)
