"""The wire between workers and Postgres, in a process of its own: it cuts connections, is slow, and swallows the replies to what was committed.

A Unix socket in a private folder, not a TCP port: the server behind it trusts whoever can connect.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
import sys
from collections import Counter
from contextlib import suppress
from typing import Any

STATEMENTS = {
    "records": (b"insert into flowdsl.journal", b"flowdsl.append(", b"flowdsl.commit(", b"COMMIT;"),
    "commits": (b"COMMIT;",),
    "asks": (b"flowdsl.claim(", b"flowdsl.start(", b"flowdsl.send(", b"flowdsl.reclaim("),
}
"""What a statement holds that records turns; that ends a transaction; that claims, starts or sends."""
_STARTUP = struct.Struct("!I")
_HEAD = struct.Struct("!cI")


class Wire:
    """One connection: who sent what, as far as faults need to know."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.asked = False
        """Whether the server owes an answer."""
        self.deaf = False
        self._prepared: dict[bytes, bytes] = {}
        self._rest = b""
        self._begun = False

    def statements(self, sent: bytes) -> list[bytes]:
        """The texts of the statements that are executed by what was sent."""
        self._rest += sent
        found: list[bytes] = []
        while True:
            if not self._begun:
                if len(self._rest) < 8:
                    return found
                (size,) = _STARTUP.unpack_from(self._rest)
                if len(self._rest) < size:
                    return found
                self._begun = self._rest[4:8] == b"\0\3\0\0"  # before it come requests for encryption
                self._rest = self._rest[size:]
                continue
            if len(self._rest) < 5:
                return found
            kind, size = _HEAD.unpack_from(self._rest)
            if len(self._rest) < size + 1:
                return found
            body, self._rest = self._rest[5 : size + 1], self._rest[size + 1 :]
            if kind == b"P":
                name, text = body.split(b"\0", 2)[:2]
                self._prepared[name] = text
            elif kind == b"B":
                found.append(self._prepared.get(body.split(b"\0", 2)[1], b""))
            elif kind == b"Q":
                found.append(body)

    def cut(self) -> None:
        for writer in (self.client, self.server):
            writer.transport.abort()


class Proxy:
    """Passes everything on, unless told otherwise."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.wires: set[Wire] = set()
        self.delay = 0.0
        self.hits: Counter[str] = Counter()
        self._armed: list[tuple[str, tuple[bytes, ...]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, server = await asyncio.open_unix_connection(self._target)
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
                fault = self._fault_for(wire.statements(sent))
                await self._be_slow()
                wire.asked = True
                wire.deaf = wire.deaf or fault == "swallow"
                wire.server.write(sent)
                await wire.server.drain()
                if fault == "late":  # it reaches the server, which goes on with it while we are gone
                    self.hits["late"] += 1
                    break
        self._end(wire)

    async def _answer(self, wire: Wire, answers: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while heard := await answers.read(1 << 16):
                if wire.deaf:
                    self.hits["swallow"] += 1
                    break
                await self._be_slow()
                wire.asked = not heard.endswith((b"Z\0\0\0\5I", b"Z\0\0\0\5T"))
                wire.client.write(heard)
                await wire.client.drain()
        self._end(wire)

    def _fault_for(self, statements: list[bytes]) -> str | None:
        """Takes the first armed fault that fits."""
        for armed in self._armed:
            kind, texts = armed
            if any(text in statement for statement in statements for text in texts):
                self._armed.remove(armed)
                return kind
        return None

    async def _be_slow(self) -> None:
        if self.delay:
            self.hits["delayed"] += 1
            await asyncio.sleep(self.delay * (0.5 + random.random()))

    def _end(self, wire: Wire) -> None:
        wire.cut()
        self.wires.discard(wire)

    async def obey(self, wish: dict[str, Any]) -> dict[str, Any]:
        """One wish of the nemesis; answers with what it did to whom, or with how often each fault has hit."""
        match wish["do"]:
            case "cut":
                return await self._cut(wish["share"])
            case "arm":
                self._armed += [(wish["kind"], STATEMENTS[wish["statements"]])] * wish["count"]
            case "delay":
                self.delay = wish["seconds"]
            case "heal":
                self.delay, self._armed = 0.0, []
            case _:
                pass
        return dict(self.hits)

    async def _cut(self, share: float) -> dict[str, Any]:
        """As soon as somebody waits for an answer, or after a second: those who wait, and a share of the others."""
        for _ in range(1000):
            if any(wire.asked for wire in self.wires):
                break
            await asyncio.sleep(0.001)
        chosen = [wire for wire in self.wires if wire.asked or random.random() < share]
        busy = sum(wire.asked for wire in chosen)
        for wire in chosen:
            wire.cut()
        return {"cut": len(chosen), "busy": busy}


async def serve(path: str, target: str) -> None:
    proxy = Proxy(target)
    async with await asyncio.start_unix_server(proxy.meet, path, backlog=200):
        print("ready", flush=True)
        while wish := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await proxy.obey(json.loads(wish))), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
