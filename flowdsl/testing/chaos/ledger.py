"""The effect ledger: an outside system in a process of its own, and the only judge of how often something happened.

It honours idempotency keys: the first call under a key makes the effect, each later one is told the first one's receipt. It counts them all.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from flowdsl.testing.chaos.log import Log

ADDRESS = "FLOWDSL_CHAOS_LEDGER"
"""The environment variable that names its socket."""


async def tell(facts: dict[str, Any]) -> tuple[int, int]:
    """Calls the ledger; gives the receipt of the effect, and how often it was called for this label by now."""
    reader, writer = await asyncio.open_unix_connection(os.environ[ADDRESS])
    try:
        writer.write(json.dumps(facts).encode() + b"\n")
        return _read(await reader.readline())
    finally:
        writer.close()


def tell_blocking(facts: dict[str, Any]) -> tuple[int, int]:
    """The same, for an implementation that runs in a thread."""
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as said:
        client.connect(os.environ[ADDRESS])
        client.sendall(json.dumps(facts).encode() + b"\n")
        return _read(said.readline())


def _read(line: bytes) -> tuple[int, int]:
    receipt, count = line.split()
    return int(receipt), int(count)


class Ledger:
    def __init__(self, folder: Path) -> None:
        self._log = Log(folder / "ledger.jsonl")
        self._receipts: dict[str, int] = {}
        self._counts: Counter[str] = Counter()

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One call a connection. The receipt is given once the call is on disk."""
        try:
            line = await reader.readline()
            if not line.endswith(b"\n"):
                return  # whoever called died in the middle of it
            call = json.loads(line)
            again = call["key"] in self._receipts
            receipt = self._receipts.setdefault(call["key"], len(self._receipts) + 1)
            self._counts[call["label"]] += 1
            count = self._counts[call["label"]]
            await self._log.add({**call, "receipt": receipt, "again": again, "at": time.time()})
            writer.write(b"%d %d\n" % (receipt, count))
            await writer.drain()
        except OSError:
            pass  # called, written down, and gone before the answer
        finally:
            writer.close()


async def serve(folder: Path, path: str) -> None:
    ledger = Ledger(folder)
    async with await asyncio.start_unix_server(ledger.meet, path, backlog=1000):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until our maker lets go of us, or dies


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
