"""What the demonstrations share: a folder for logs, a database, a screen or one JSON object, and an exit code that is the verdict."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

import click
from attrs import asdict
from rich.console import Console

from adapters.demo.screen import Screen
from flowdsl import FlowError
from flowdsl.postgres.choice import choose
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import Store, connect


def performed(play: Callable[[Path, Screen], Coroutine[Any, Any, Any]], *, as_json: bool) -> NoReturn:
    """Carries out a demonstration and leaves: 0 if its outcome is `clean`, else 1, with the ends of the logs."""
    console = Console(stderr=as_json)
    signal.signal(signal.SIGTERM, _stop)  # so that the processes that were started are ended too
    with tempfile.TemporaryDirectory(prefix="flowdsl-demo-") as name:
        folder = Path(name)
        try:
            outcome = asyncio.run(play(folder, Screen(console, quiet=as_json)))
        except FlowError as error:
            raise click.ClickException(str(error)) from None
        if as_json:
            print(json.dumps({**asdict(outcome), "clean": outcome.clean}))
        if not outcome.clean:
            _show_logs(folder, console)
    sys.exit(0 if outcome.clean else 1)


def _stop(*_: object) -> None:
    sys.exit(143)


def _show_logs(folder: Path, console: Console) -> None:
    for log in sorted(folder.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-15:]
        if lines:
            console.print(f"[dim]{log.name}[/]\n" + "\n".join(lines), markup=True, highlight=False)


@asynccontextmanager
async def store_for(database: str | None, screen: Screen, migrations: Iterable[Path]) -> AsyncGenerator[Store]:
    """The store of the database named, else of a fresh one, dropped at the end, in the server that flowdsl would choose. Raises `FlowError`."""
    with choose(database) as choice:
        dsn = database or await _fresh(choice.dsn)
        try:
            screen.say(f"Postgres: {choice.source}")
            await migrate(dsn, migrations)
            async with await Store.open(dsn) as store:
                yield store
        finally:
            if database is None:
                await _drop(choice.dsn, dsn)


async def _fresh(server: str) -> str:
    name = f"flowdsl_demo_{os.getpid()}_{os.urandom(3).hex()}"
    connection = await connect(server)
    try:
        await connection.execute(f'create database "{name}"')
    finally:
        await connection.close()
    return urlunsplit(urlsplit(server)._replace(path="/" + name))


async def _drop(server: str, dsn: str) -> None:
    connection = await connect(server)
    try:
        await connection.execute(f'drop database if exists "{urlsplit(dsn).path[1:]}" with (force)')
    finally:
        await connection.close()
