"""A pooler in transaction mode, as PgBouncer is: each transaction of a client gets another server connection. It knows of the protocol what that takes.

It is as strict as PgBouncer 1.18: settings in a startup message are refused, and nobody clears what a transaction leaves behind on a connection.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from tempfile import TemporaryDirectory
from typing import TypeAlias
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

KNOWN = {"user", "database", "client_encoding", "application_name"}
STARTUP = 196608
ENDS_IN_READY = (b"Q", b"S", b"F")
_Read: TypeAlias = "asyncio.Future[tuple[bytes, bytes]]"


class Upstream:
    """One connection to the server, lent to one client at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.greeting = b""


class Pooler:
    def __init__(self, target: str, folder: str, size: int) -> None:
        parts = urlsplit(target)
        host = parse_qs(parts.query)["host"][0]
        self._server, self._path = f"{host}/.s.PGSQL.{parts.port or 5432}", f"{folder}/.s.PGSQL.5432"
        self._who = {"user": parts.username or "postgres", "database": parts.path[1:], "client_encoding": "UTF8"}
        self.dsn = urlunsplit((parts.scheme, f"{parts.username}@", parts.path, urlencode({"host": folder}), ""))
        self._size, self._free = size, asyncio.Queue[Upstream]()
        self._tasks: set[asyncio.Task[None]] = set()
        self.transactions = 0
        self.refused: list[str] = []

    async def serve(self) -> asyncio.AbstractServer:
        for _ in range(self._size):
            self._free.put_nowait(await self._upstream())
        return await asyncio.start_unix_server(self._meet, self._path)

    async def _upstream(self) -> Upstream:
        one = Upstream(*await asyncio.open_unix_connection(self._server))
        body = struct.pack("!I", STARTUP) + b"".join(f"{k}\0{v}\0".encode() for k, v in self._who.items()) + b"\0"
        one.writer.write(struct.pack("!I", len(body) + 4) + body)
        while True:
            kind, message = await _message(one.reader)
            if kind == b"Z":
                return one
            if kind in (b"E", b"X"):
                raise OSError(message)
            if kind == b"S":
                one.greeting += message

    def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, OSError):
                if await self._greet(reader, writer):
                    asked: _Read = asyncio.ensure_future(_message(reader))
                    while (await asked)[0] != b"X":
                        asked = await self._transaction(reader, writer, asked)
        finally:
            writer.transport.abort()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        size, code = struct.unpack("!II", await reader.readexactly(8))
        words = (await reader.readexactly(size - 8)).split(b"\0")
        if code != STARTUP:
            return False  # a cancellation, of whichever server process: PgBouncer would look it up
        unknown = {word.decode() for word in words[:-2:2]} - KNOWN
        if unknown:
            self.refused += sorted(unknown)
            said = f"SFATAL\0C08P01\0Munsupported startup parameter: {min(unknown)}\0\0".encode()
            writer.write(b"E" + struct.pack("!I", len(said) + 4) + said)
            await writer.drain()
            return False
        one = await self._free.get()
        greeting = one.greeting
        self._free.put_nowait(one)
        writer.write(b"R" + struct.pack("!II", 8, 0) + greeting + b"K" + struct.pack("!I", 12) + os.urandom(8) + b"Z" + struct.pack("!I", 5) + b"I")
        await writer.drain()
        return True

    async def _transaction(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: _Read) -> _Read:
        """Lends a connection from the first message until the server is idle again and has answered all. Gives the read that is under way."""
        one = await self._free.get()
        self.transactions += 1
        waiting, clean = 0, False
        answered = asyncio.ensure_future(_message(one.reader))
        try:
            while not clean:
                await asyncio.wait([asked, answered], return_when=asyncio.FIRST_COMPLETED)
                if answered.done():
                    kind, message = answered.result()
                    if kind == b"X":
                        break
                    writer.write(message)
                    waiting -= kind == b"Z"
                    clean = kind == b"Z" and message[-1:] == b"I" and not waiting
                    answered = asyncio.ensure_future(_message(one.reader))
                elif asked.done():
                    kind, message = asked.result()
                    if kind == b"X":
                        break
                    one.writer.write(message)
                    waiting += kind in ENDS_IN_READY
                    asked = asyncio.ensure_future(_message(reader))
            return asked
        finally:
            answered.cancel()  # an idle server says nothing: no message is cut in two
            await asyncio.gather(answered, return_exceptions=True)
            if clean:
                self._free.put_nowait(one)
            else:  # somebody left in the middle: what is open goes with the connection
                one.writer.transport.abort()
                with suppress(asyncio.IncompleteReadError, OSError):
                    self._free.put_nowait(await self._upstream())

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._free.empty():
            self._free.get_nowait().writer.transport.abort()


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Its kind, and all of it; who is gone says goodbye."""
    try:
        head = await reader.readexactly(5)
        return head[:1], head + await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
    except (asyncio.IncompleteReadError, OSError):
        return b"X", b""


@asynccontextmanager
async def pooled_at(target: str, *, size: int = 3) -> AsyncIterator[Pooler]:
    with TemporaryDirectory(prefix="pool") as folder:
        pooler = Pooler(target, folder, size)
        server = await pooler.serve()
        try:
            yield pooler
        finally:
            server.close()
            await pooler.close()
