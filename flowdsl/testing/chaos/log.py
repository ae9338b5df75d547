"""A file of JSON lines in which nothing is said to be written before it is on disk."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


class Log:
    """Appends; those that come together share one fsync. A line that a kill cut in half is no line."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            os.write(self._file, b"\n")
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def add(self, record: dict[str, Any]) -> None:
        """Returns once it is on disk."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((json.dumps(record).encode() + b"\n", written))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        await written

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            self._write(b"".join(line for line, _ in batch))
            await asyncio.to_thread(os.fsync, self._file)
            for _, written in batch:
                if not written.done():
                    written.set_result(None)

    def note(self, record: dict[str, Any]) -> None:
        """A line that need not outlive a crash."""
        self._write(json.dumps(record).encode() + b"\n")

    def _write(self, text: bytes) -> None:
        while text:
            text = text[os.write(self._file, text) :]


def read(path: Path) -> Iterator[dict[str, Any]]:
    """All whole lines."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            with suppress(ValueError):
                yield json.loads(line)
