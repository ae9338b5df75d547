"""A proxy between a worker and Postgres that cuts connections, refuses them, and swallows the reply to what was committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

COMMIT = b"COMMIT;"
RECORD = b"select flowdsl.append(", b"insert into flowdsl.journal", b"select flowdsl.commit("


class Wire:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.said = b""
        self.deaf = False

    @property
    def records(self) -> bool:
        """Whether it is a committer's."""
        return any(statement in self.said for statement in RECORD)

    def cut(self) -> None:
        for writer in (self.client, self.server):
            if writer.transport is not None:
                writer.transport.abort()


class Proxy:
    """Passes everything on, unless told otherwise. `dsn` leads through it."""

    def __init__(self, target: str, folder: str) -> None:
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        host = query.get("host", [parts.hostname or "localhost"])[0]
        port = parts.port or 5432
        self._unix = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else None
        self._address = (host, port)
        self._path = f"{folder}/.s.PGSQL.5432"
        user = f"{parts.username or ''}:{parts.password}@" if parts.password else f"{parts.username or ''}@"
        self.dsn = urlunsplit((parts.scheme, user, parts.path, urlencode({"host": folder}), ""))
        self.refuses = False
        self.swallows: Callable[[Wire, bytes], bool] = lambda wire, sent: False
        """Asked for each message of a client: whether the server's answer to it never arrives."""
        self.swallowed = 0
        self.wires: set[Wire] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def swallow_once(self, which: Callable[[Wire, bytes], bool]) -> None:
        """Swallows one answer; the connection is cut then."""
        before = self.swallowed
        self.swallows = lambda wire, sent: self.swallowed == before and which(wire, sent)

    def cut(self) -> None:
        for wire in list(self.wires):
            wire.cut()

    async def serve(self) -> asyncio.AbstractServer:
        return await asyncio.start_unix_server(self._meet, self._path)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        try:
            up = asyncio.open_unix_connection(self._unix) if self._unix else asyncio.open_connection(*self._address)
            answers, server = await up
        except OSError:
            writer.transport.abort()
            return
        wire = Wire(writer, server)
        self.wires.add(wire)
        for work in (self._ask(wire, reader), self._answer(wire, answers)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, wire: Wire, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while sent := await reader.read(1 << 16):
                wire.said += sent
                wire.deaf = wire.deaf or self.swallows(wire, sent)
                wire.server.write(sent)
                await wire.server.drain()
        wire.cut()
        self.wires.discard(wire)

    async def _answer(self, wire: Wire, answers: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while heard := await answers.read(1 << 16):
                if wire.deaf:
                    self.swallowed += 1
                    break
                wire.client.write(heard)
                await wire.client.drain()
        wire.cut()
        self.wires.discard(wire)


def commits_a_transaction(wire: Wire, sent: bytes) -> bool:
    """The COMMIT of a transactional activity."""
    return COMMIT in sent and b"flowdsl.append_own" in wire.said


def records(wire: Wire, sent: bytes) -> bool:
    """A batch on its way: the execution of a commit function, not the parsing of it."""
    return sent[:1] == b"B" and wire.records


@asynccontextmanager
async def proxied(target: str) -> AsyncIterator[Proxy]:
    with TemporaryDirectory(prefix="wire") as folder:
        proxy = Proxy(target, str(Path(folder)))
        server = await proxy.serve()
        try:
            yield proxy
        finally:
            server.close()
            proxy.cut()
