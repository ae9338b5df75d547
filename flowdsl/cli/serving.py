"""`flowdsl serve`: the HTTP API, the schedules and a worker, in one process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowdsl.cli.edge import DATABASE, DEPLOYMENT, LOGS, Refusal, Stop, aside, awaited, begin_logs, database_of
from flowdsl.cli.loading import load

LISTEN_FD = "FLOWDSL_LISTEN_FD"
"""The number of a listening socket that a service inherits, in place of one of its own."""

if TYPE_CHECKING:
    import socket

    from flowdsl.binding import Deployment
    from flowdsl.service.settings import Settings


@click.command(
    short_help="The HTTP API, schedules and a worker, in one process.",
    epilog="Exit codes: 0 stopped when told; 2 wrong usage or settings, the port is taken, or no database.",
)
@DEPLOYMENT
@click.option("--host", metavar="ADDRESS", help="Where it listens. Default: [server] host of the settings, else 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), help="Default: [server] port of the settings, else 8084; 0 is any that is free.")
@click.option("--keys/--development", "keyed", default=None, help="Ask for API keys; or believe whoever is on this machine. Default: see below.")
@click.option("--worker/--no-worker", "works", default=True, show_default=True, help="Also work on executions here.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE", help="Settings. Default: ./flowdsl.toml.")
@click.option("--print-config", "printed", is_flag=True, help="Print the settings in force, and who sets each, without passwords; serve nothing.")
@DATABASE
@LOGS
def serve(
    deployment: str, host: str | None, port: int | None, keyed: bool | None, works: bool, config: Path | None, printed: bool, database: str | None
) -> None:  # fmt: skip
    """Serves a deployment over HTTP, and works on its executions.

    On a database that you name it asks for API keys; `flowdsl keys make` makes them. With the embedded Postgres, as long as there is no key in it, it
    is in development mode: it asks for none, and so it answers this machine only. SIGTERM or Ctrl-C: no new connection is taken, requests under way
    are answered, open streams end, and running activities get some seconds.
    """
    from attrs import evolve

    from flowdsl.service.settings import load as settings_of

    loaded, settings = load(deployment), settings_of(config)
    server = settings.server
    settings = evolve(settings, server=evolve(server, host=server.host if host is None else host, port=server.port if port is None else port))
    if printed:
        from flowdsl.service.settings import shown

        given = (("server.host", host, "--host"), ("server.port", port, "--port"), ("database.url", database, "--database"))
        settings = evolve(settings, database=evolve(settings.database, url=database or settings.database.url))
        click.echo(shown(settings, config, said={name: option for name, value, option in given if value is not None}))
        return
    begin_logs()
    of_file = settings.database.url if config is not None and "FLOWDSL_DATABASE_URL" not in os.environ else None
    with database_of(database or of_file or None) as choice:  # the environment and ./flowdsl.toml it finds, and names, itself
        code = awaited(_serve(loaded, settings, choice.dsn, choice.source, keyed=keyed, works=works, embedded=choice.embedded), fast=True)
    sys.exit(code)


async def _serve(deployment: Deployment, settings: Settings, dsn: str, source: str, *, keyed: bool | None, works: bool, embedded: bool) -> int:
    from contextlib import AsyncExitStack

    from flowdsl.postgres.encryption import from_surroundings
    from flowdsl.postgres.schema import migrate
    from flowdsl.postgres.store import Store
    from flowdsl.postgres.worker import Worker
    from flowdsl.service import create_app
    from flowdsl.service.access import DEVELOPMENT, DevelopmentAccess
    from flowdsl.service.keys import KeyAccess

    stop = Stop()
    await migrate(dsn, deployment.migrations)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(await Store.open(dsn, encryption=from_surroundings(settings.encryption.key_file)))
        has_keys = await _has_keys(store)
        asks = keyed if keyed is not None else has_keys or not embedded
        if not asks and not _local(settings.server.host):
            raise Refusal(f"in development mode it listens on this machine only, not on {settings.server.host}: say --keys, or --host 127.0.0.1")
        bound = handed_over() or listening(settings.server.host, settings.server.port)
        stack.callback(bound.close)
        worker = await stack.enter_async_context(Worker(deployment, store)) if works else None
        access, tracing = KeyAccess(store) if asks else DevelopmentAccess(), _tracing() if settings.server.traces == "on" else None
        app = create_app(deployment, settings, store=store, access=access, worker=worker, tracing=tracing)
        place = f"http://{_shown(settings.server.host)}:{bound.getsockname()[1]}"
        aside(f"database: {source}")
        if not asks:
            click.secho(f"flowdsl: {DEVELOPMENT}", fg="yellow", err=True)
        elif not has_keys:
            aside("there is no API key yet, so nobody is let in: flowdsl keys make NAME --role admin")
        aside(f"process {os.getpid()} serves {', '.join(deployment.names)}")
        click.echo(f"listening on {place}/api/v1")
        await _until_stopped(app, bound, stop, worker.spent if worker is not None else None)
    spent = worker is not None and worker.spent.is_set() and not stop.code
    aside(f"process {os.getpid()}: {'too many of its threads never returned; ' if spent else ''}stopped")
    if worker is not None and worker.hands.left_behind:
        sys.stderr.flush()
        os._exit(75 if spent else 0)  # what ignores its cancellation would be waited for, for ever
    return 75 if spent else 0  # EX_TEMPFAIL: a process that begins anew has its threads again


def _tracing() -> Any:
    try:
        from flowdsl.tracing import Tracing
    except ImportError:
        raise Refusal('the settings say [server] traces = "on", and OpenTelemetry is not installed: pip install "flowdsl[otel]"') from None
    return Tracing()


async def _until_stopped(app: Any, bound: Any, stop: Stop, spent: Any) -> None:
    """Answers until a signal comes, or the worker's threads are spent; then ends open streams and lets requests under way end."""
    import asyncio

    from flowdsl.service.server import server_of

    server = server_of(app)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    waits = [asyncio.create_task(event.wait()) for event in (stop.asked, spent) if event is not None]
    await asyncio.wait([serving, *waits], return_when=asyncio.FIRST_COMPLETED)
    for waiting in waits:
        waiting.cancel()
    app.state.service.stopping.set()
    server.should_exit = True
    await serving


async def _has_keys(store: Any) -> bool:
    from flowdsl.postgres.keys import listed

    return bool(await listed(store))


def listening(host: str, port: int) -> socket.socket:
    """A socket that is ours before anything else is begun. Raises `Refusal`."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(2048)  # who connects before the server is up waits for it
    except OSError as error:
        bound.close()
        raise Refusal(f"cannot listen on {_shown(host)}:{port} ({error.strerror}): stop what listens there, or take another --port") from None
    return bound


def handed_over() -> socket.socket | None:
    """The listening socket of whoever began this process, should there be one: who connects while no process serves waits in it."""
    import socket

    said = os.environ.pop(LISTEN_FD, None)  # it is for us, not for what we begin
    if said is None:
        return None
    try:
        found = socket.socket(fileno=int(said))
        found.set_inheritable(False)
        if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(22, "it does not listen")
    except (OSError, ValueError) as error:
        raise Refusal(
            f"{LISTEN_FD}={said} is no listening socket ({error}): unset it, or give the number of one that this process inherits"
        ) from None
    return found


def _local(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


COMMANDS = (serve,)
