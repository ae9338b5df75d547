"""Where to measure: a server that is named, or one of our own for this run; in databases beside its others, dropped at the end."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from flowdsl.postgres import embedded
from flowdsl.postgres.store import connect

SETTINGS = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "commit_delay",
)
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")


@asynccontextmanager
async def server(url: str | None, kept: Path | None = None) -> AsyncGenerator[str]:
    """Its address. One of our own is the embedded Postgres with durable settings and a folder of its own, so nobody else is on it.

    `kept`: that folder, with all that is in it, for the next run too.
    """
    if url is not None:
        yield url
        return
    if kept is not None:
        await asyncio.to_thread(kept.mkdir, mode=0o755, parents=True, exist_ok=True)
        with await asyncio.to_thread(embedded.start, kept, durable=True) as started:
            yield started.dsn
        return
    folder = _folder()
    try:
        with await asyncio.to_thread(embedded.start, folder, durable=True) as started:
            yield started.dsn
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _folder() -> Path:
    """FLOWDSL_BENCH_DIR says where: a disk is wanted, not memory."""
    folder = Path(tempfile.mkdtemp(prefix="flowdsl-bench-", dir=os.environ.get("FLOWDSL_BENCH_DIR")))
    folder.chmod(0o755)  # as root the server runs as another
    return folder


@asynccontextmanager
async def scratch(url: str, kind: str) -> AsyncGenerator[str]:
    """An empty database."""
    name = f"flowdsl_bench_{kind}_{os.getpid()}"
    await said(url, f"create database {name}")
    try:
        yield named(url, name)
    finally:
        await said(url, f"drop database if exists {name} with (force)")


def named(url: str, name: str) -> str:
    """Another database of that server."""
    return urlsplit(url)._replace(path=f"/{name}").geturl() if urlsplit(url).netloc else _without_host(url, name)


@asynccontextmanager
async def slow_flush(url: str, ms: float) -> AsyncGenerator[None]:
    """Every flush of the WAL takes so much longer, as on a disk behind a network; for all of the server's sessions, those that are open too.

    Who flushes sleeps first, with the lock that all others need for theirs. Those who come meanwhile are still taken along, which a real disk does
    not do: whoever commits on many connections at a time is treated better than there.
    """
    await said(url, f"alter system set commit_delay = {round(ms * 1000)}")
    await said(url, "alter system set commit_siblings = 0")
    await said(url, "select pg_reload_conf()")
    try:
        yield
    finally:
        await said(url, "alter system reset commit_delay")
        await said(url, "alter system reset commit_siblings")
        await said(url, "select pg_reload_conf()")


@asynccontextmanager
async def timed_flushes(url: str) -> AsyncGenerator[None]:
    """The server tells how long its flushes of the WAL take."""
    await said(url, "alter system set track_wal_io_timing = on")
    await said(url, "select pg_reload_conf()")
    try:
        yield
    finally:
        await said(url, "alter system reset track_wal_io_timing")
        await said(url, "select pg_reload_conf()")


def _without_host(url: str, name: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}:///{name}" + (f"?{rest.partition('?')[2]}" if "?" in rest else "")


async def said(url: str, statement: str) -> None:
    """On a connection of its own."""
    connection = await connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def settings(url: str) -> dict[str, str]:
    connection = await connect(url)
    try:
        found = {name: await connection.fetchval(f"show {name}") for name in SETTINGS}
        return found | {"disk": disk(await connection.fetchval("show data_directory"))}
    finally:
        await connection.close()


def disk(folder: str) -> str:
    """The kind of file system of a folder on this machine."""
    best, kind = "", "not on this machine"
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return "unknown"
    if not Path(folder).parent.exists():
        return kind
    for line in mounts:
        _, place, name = line.split()[:3]
        if (folder + "/").startswith(place.rstrip("/") + "/") and len(place) >= len(best):
            best, kind = place, name
    return kind


def free_port() -> int:
    """Of this machine, at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
