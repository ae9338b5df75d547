"""`flowdsl dev`: the service in development, begun anew whenever a source file changes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from flowdsl.cli.edge import DATABASE, DEPLOYMENT, LOGS, aside, awaited, database_of, log_options
from flowdsl.cli.serving import listening, serve

HOST = "127.0.0.1"


@click.command(
    short_help="The service in development: reload, no keys, this machine only.",
    epilog="Exit codes: 0 stopped when told; 2 wrong usage or settings, the port is taken, or no database.",
)
@DEPLOYMENT
@click.option("--port", type=click.IntRange(0, 65535), help="Default: [server] port of the settings, else 8084; 0 is any that is free.")
@click.option("--open", "opens", is_flag=True, help="Open it in a browser.")
@click.option("--watch", "folders", multiple=True, type=click.Path(exists=True, path_type=Path), metavar="PATH", help="Watch this as well.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE", help="Settings. Default: ./flowdsl.toml.")
@DATABASE
@LOGS
@click.pass_context
def dev(
    ctx: click.Context, deployment: str, port: int | None, opens: bool, folders: tuple[Path, ...], config: Path | None, database: str | None
) -> None:
    """Serves a deployment in development mode, with a worker; when a .py, .toml or .sql file changes, with the new code.

    Executions that run go on after the reload, with the new code; requests that come meanwhile wait for it. New code that cannot be loaded is told,
    and the old goes on until it is mended. Whoever is on this machine may do anything; nobody else may.
    """
    from importlib.util import find_spec

    from flowdsl.cli.reloading import PARENT, Wish, developed, end_with

    if (parent := os.environ.pop(PARENT, None)) is not None:
        end_with(int(parent))
        ctx.invoke(serve, deployment=deployment, host=HOST, port=port, keyed=False, works=True, config=config, database=database)
        return
    for library in ("starlette", "uvicorn", "typed_settings", "watchfiles"):
        if find_spec(library) is None:  # told here, once, and not by each service that is begun
            raise ModuleNotFoundError(name=library)
    aside(f"watching {Path.cwd()}; {deployment} is being loaded")  # a database may take its time
    with database_of(database) as choice:  # held here too: an embedded server stays up while the service is begun anew
        given = {"FLOWDSL_DATABASE_URL": choice.dsn} if database else {}
        options = ["--config", str(config)] if config is not None else []
        with listening(HOST, _port(config) if port is None else port) as bound:
            wish = Wish(deployment, tuple(log_options()), tuple(options), given, (Path.cwd(), *folders), opens, bound)
            code = awaited(developed(wish))
    sys.exit(code)


def _port(config: Path | None) -> int:
    from flowdsl.service.settings import load

    return load(config).server.port


COMMANDS = (dev,)
"""What this module adds to the command line."""
