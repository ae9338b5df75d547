"""The command line. Commands import what they need when they run: `flowdsl --help` loads click and nothing else."""

from __future__ import annotations

import click

from flowdsl.cli import auditing, breaking, drawing, keeping, keys, looking, operating, proving, running, scheduling, serving
from flowdsl.cli.edge import LOGS, Commands

__all__ = ["main"]


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
    *serving.COMMANDS,
    *breaking.COMMANDS,
):
    main.add_command(command)
