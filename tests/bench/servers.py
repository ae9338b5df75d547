"""Where to measure: a server that is named, or the embedded one; in databases of our own beside its others, dropped at the end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from flowdsl.postgres import embedded
from flowdsl.postgres.store import connect

SETTINGS = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "wal_sync_method", "commit_delay")


@asynccontextmanager
async def server(url: str | None) -> AsyncIterator[str]:
    """Its address. The embedded one runs with durable settings."""
    if url is not None:
        yield url
        return
    with await asyncio.to_thread(embedded.start, durable=True) as started:
        yield started.dsn


@asynccontextmanager
async def scratch(url: str, kind: str) -> AsyncIterator[str]:
    """An empty database."""
    name = f"flowdsl_bench_{kind}_{os.getpid()}"
    await _said(url, f"create database {name}")
    try:
        yield urlsplit(url)._replace(path=f"/{name}").geturl() if urlsplit(url).netloc else _without_host(url, name)
    finally:
        await _said(url, f"drop database if exists {name} with (force)")


def _without_host(url: str, name: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}:///{name}" + (f"?{rest.partition('?')[2]}" if "?" in rest else "")


async def _said(url: str, statement: str) -> None:
    connection = await connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def settings(url: str) -> dict[str, str]:
    connection = await connect(url)
    try:
        return {name: await connection.fetchval(f"show {name}") for name in SETTINGS}
    finally:
        await connection.close()
