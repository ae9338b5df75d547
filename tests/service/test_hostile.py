"""Clients that mean harm, against the real process over real sockets: each is cut off in time, memory stays flat, and others are answered."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import httpx2
import pytest

from flowdsl.service import create_app, server
from tests.service.stage import DEPLOYMENT, listening
from tests.service.test_serve import served

NO_TIME = {"FLOWDSL_SERVER_HEAD_SECONDS": "0.5", "FLOWDSL_SERVER_BODY_SECONDS": "0.5"}
MUCH_TIME = {f"FLOWDSL_SERVER_{what}_SECONDS": "600" for what in ("HEAD", "BODY", "TIMEOUT")}
"""Who is cut off for what they send is not cut off for taking their time, however slow the machine is."""
START = "POST /api/v1/workflows/place-order HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LIMITS = {
    "FLOWDSL_SERVER_CONNECTIONS": "40", "FLOWDSL_SERVER_BODY_BYTES": "1048576", "FLOWDSL_SERVER_BODY_DEPTH": "32",
}  # fmt: skip
AT_MOST = 60.0
"""Seconds that a connection may take to be cut: far more than it should, far less than for ever."""
CHUNK = b"10000\r\n" + b" " * 65536 + b"\r\n"


def memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def attacked(address: str, head: str, drip: bytes, pause: float = 0.0) -> bytes:
    """What came back until the service closed, while `drip` was sent again and again."""
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(head.encode())

    async def go_on() -> None:
        with suppress(OSError):
            while drip:
                writer.write(drip)
                await writer.drain()
                await asyncio.sleep(pause)

    sending, found = asyncio.create_task(go_on()), b""
    try:
        async with asyncio.timeout(AT_MOST):
            with suppress(ConnectionError):
                while data := await reader.read(65536):
                    found += data
    finally:
        sending.cancel()
        writer.transport.abort()
    return found


def status(answer: bytes) -> bytes:
    return answer.partition(b"\r\n")[0][9:12]


Attack: TypeAlias = tuple[str, bytes, float]
"""What is sent first, what again and again, and the pause between."""
CHUNKED = START + "Transfer-Encoding: chunked\r\n\r\n"
HEALTH = "GET /health HTTP/1.1\r\nHost: localhost\r\n"
SLOW: dict[str, tuple[Attack, set[bytes]]] = {
    "headers": ((HEALTH, b"X-A: b\r\n", 0.05), {b"408"}),
    "nothing at all": (("", b"", 0.0), {b""}),
    "a body": ((START + "Content-Length: 1000\r\n\r\n", b" ", 0.05), {b"408"}),
    "a second request": ((HEALTH + "\r\n", b"G", 0.05), {b"200", b"408"}),
    "a body without end, for who does not read it": ((CHUNKED.replace("workflows/place-order", "nothing"), CHUNK, 0.01), {b"404", b"408"}),
}  # fmt: skip
"""What each of them is told. What takes long is told so, be it that the machine takes long."""
LARGE: dict[str, tuple[Attack, set[bytes]]] = {
    "a body without end": ((CHUNKED, CHUNK, 0.0), {b"413"}),
    "a body that says it is large": ((START + f"Content-Length: {1 << 40}\r\n\r\n", b"[" * 65536, 0.0), {b"413"}),
    "headers without end": ((HEALTH, b"X-A: " + b"b" * 8192 + b"\r\n", 0.0), {b"400"}),
    "one header without end": ((HEALTH + "X-A: ", b"b" * 65536, 0.0), {b"400"}),
    "no HTTP": (("", b"\x16\x03\x01\x02\x00" * 100, 0.01), {b"400"}),
}  # fmt: skip


async def all_of(attacks: Mapping[str, tuple[Attack, set[bytes]]], address: str) -> None:
    """Each three times at once; each is cut off, and told why."""
    found = await asyncio.gather(*(attacked(address, *attack) for attack, _ in attacks.values() for _ in range(3)))
    for index, (name, (_, expected)) in enumerate(attacks.items()):
        told = {status(one) for one in found[3 * index : 3 * index + 3]}
        assert told <= {*expected, b""}, (name, told)  # who goes on sending may lose the answer when the connection is reset


async def _flat(attacks: Mapping[str, tuple[Attack, set[bytes]]], address: str, pid: int) -> None:
    await all_of(attacks, address)  # what a first time costs is not what a repeat costs
    before = memory(pid)
    await all_of(attacks, address)
    await answers(address)
    assert memory(pid) - before < 48 << 20


async def answers(address: str) -> None:
    """Waits until somebody else is answered. Who asks may themselves be too slow for it, or come before the last have gone."""
    async with asyncio.timeout(AT_MOST), httpx2.AsyncClient(base_url=address, timeout=AT_MOST) as client:
        while True:
            with suppress(httpx2.TransportError):
                if (await client.get("/health")).status_code == 200:
                    return
            await asyncio.sleep(0.05)


async def _large(address: str, pid: int) -> None:
    async with httpx2.AsyncClient(base_url=address, timeout=AT_MOST) as client:
        deep = b"[" * 300_000 + b"]" * 300_000
        for body, expected in ((b'"' + b"x" * (2 << 20) + b'"', 413), (deep, 422), (b'{"order_id": 1' + b"0" * 100_000 + b"}", 422)):
            answer = await client.post("/api/v1/workflows/place-order", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == expected
    await _flat(LARGE, address, pid)
    await _crowded(address, pid)


async def _crowded(address: str, pid: int) -> None:
    """More connections than there may be: those beyond are told so, and once the others have gone there is room again."""
    before, crowd = memory(pid), await _crowd(address)
    ending = [asyncio.create_task(_ended(reader)) for reader, _ in crowd]
    async with asyncio.timeout(AT_MOST):
        while sum(task.done() for task in ending) < 80:
            await asyncio.sleep(0.01)
    assert {status(task.result()) for task in ending if task.done()} == {b"503"}
    for _, writer in crowd:
        writer.close()
    await answers(address)
    await asyncio.gather(*ending)
    assert memory(pid) - before < 32 << 20


async def _idle(address: str) -> None:
    """As many that do nothing: they are closed, and then there is room again."""
    crowd = await _crowd(address)
    async with asyncio.timeout(AT_MOST):
        await asyncio.gather(*(_ended(reader) for reader, _ in crowd))
    await answers(address)
    for _, writer in crowd:
        writer.close()


async def _crowd(address: str) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    parts = urlsplit(address)
    return await asyncio.gather(*(asyncio.open_connection(parts.hostname, parts.port) for _ in range(120)))


async def _ended(reader: asyncio.StreamReader) -> bytes:
    with suppress(ConnectionError):
        return await reader.read()
    return b""


def test_who_sends_too_much_is_cut_off(tmp_path: Path, database: str) -> None:
    with served(tmp_path, "--development", FLOWDSL_DATABASE_URL=database, **LIMITS, **MUCH_TIME) as (process, address):
        asyncio.run(_large(address, process.pid))
        assert process.poll() is None
    assert process.returncode == 0 and "Traceback" not in (tmp_path / "stderr").read_text()


def test_who_is_too_slow_is_cut_off(tmp_path: Path, database: str) -> None:
    with served(tmp_path, "--development", FLOWDSL_DATABASE_URL=database, **LIMITS, **NO_TIME) as (process, address):
        asyncio.run(_flat(SLOW, address, process.pid))
        asyncio.run(_idle(address))
        assert process.poll() is None
    assert process.returncode == 0 and "Traceback" not in (tmp_path / "stderr").read_text()


async def test_who_takes_nothing_of_an_answer_is_cut_off(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SENDING", 0.3)
    app = create_app(DEPLOYMENT, dsn=database)
    async with listening(app) as address:
        parts = urlsplit(address)
        _, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)
        async with asyncio.timeout(AT_MOST):
            while not writer.transport.is_closing():
                try:
                    writer.write(b"\r\n")
                    await writer.drain()
                except OSError:
                    break
                await asyncio.sleep(0.02)
        writer.transport.abort()
        async with httpx2.AsyncClient(base_url=address, timeout=AT_MOST) as client:
            assert (await client.get("/health")).status_code == 200
