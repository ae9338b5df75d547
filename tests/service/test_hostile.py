"""Clients that mean harm, against the real process over real sockets: each is cut off in time, memory stays flat, and others are answered."""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from flowdsl.service import create_app, server
from tests.service.stage import DEPLOYMENT, listening
from tests.service.test_serve import served

START = "POST /api/v1/workflows/place-order HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LIMITS = {
    "FLOWDSL_SERVER_HEAD_SECONDS": "0.5", "FLOWDSL_SERVER_BODY_SECONDS": "0.5", "FLOWDSL_SERVER_CONNECTIONS": "40",
    "FLOWDSL_SERVER_BODY_BYTES": "1048576", "FLOWDSL_SERVER_BODY_DEPTH": "32", "FLOWDSL_SERVER_TIMEOUT_SECONDS": "5",
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


async def all_attacks(address: str) -> dict[str, list[bytes]]:
    chunked = START + "Transfer-Encoding: chunked\r\n\r\n"
    attacks: dict[str, tuple[str, bytes, float]] = {
        "headers, slowly": ("GET /health HTTP/1.1\r\nHost: localhost\r\n", b"X-A: b\r\n", 0.05),
        "nothing at all": ("", b"", 0.0),
        "a body, slowly": (START + "Content-Length: 1000\r\n\r\n", b" ", 0.05),
        "a body without end": (chunked, CHUNK, 0.0),
        "a body without end, for who does not read it": (chunked.replace("workflows/place-order", "nothing"), CHUNK, 0.01),
        "headers without end": ("GET /health HTTP/1.1\r\nHost: localhost\r\n", b"X-A: " + b"b" * 8192 + b"\r\n", 0.0),
        "one header without end": ("GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"b" * 65536, 0.0),
        "no HTTP": ("", b"\x16\x03\x01\x02\x00" * 100, 0.01),
        "a body that says it is large": (START + f"Content-Length: {1 << 40}\r\n\r\n", b"[" * 65536, 0.0),
        "a second request, slowly": ("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"G", 0.05),
    }  # fmt: skip
    found = await asyncio.gather(*(attacked(address, *attack) for attack in attacks.values() for _ in range(3)))
    return {name: [status(one) for one in found[3 * index : 3 * index + 3]] for index, name in enumerate(attacks)}


async def _hostile(address: str, pid: int) -> None:
    async with httpx2.AsyncClient(base_url=address, timeout=30) as client:
        deep = b"[" * 300_000 + b"]" * 300_000
        for body, expected in ((b'"' + b"x" * (2 << 20) + b'"', 413), (deep, 422), (b'{"order_id": 1' + b"0" * 100_000 + b"}", 422)):
            answer = await client.post("/api/v1/workflows/place-order", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == expected
        await all_attacks(address)  # what a first time costs is not what a repeat costs
        before = memory(pid)
        found = await all_attacks(address)
        assert (await client.get("/health")).status_code == 200
        assert memory(pid) - before < 48 << 20
    several = {
        "headers, slowly": {b"408"}, "nothing at all": {b""}, "a body, slowly": {b"408"}, "a body without end": {b"413", b"408"},
        "a body without end, for who does not read it": {b"404"}, "headers without end": {b"400", b"408"}, "one header without end": {b"400", b"408"},
        "no HTTP": {b"400"}, "a body that says it is large": {b"413"}, "a second request, slowly": {b"200"},
    }  # fmt: skip
    for name, expected in several.items():
        assert set(found[name]) <= {*expected, b""}, (name, found[name])  # who goes on sending may lose the answer when the connection is reset


async def _crowded(address: str, pid: int) -> None:
    """More connections than there may be: those beyond are told so, those that do nothing are closed, and then there is room again."""
    before, parts = memory(pid), urlsplit(address)
    crowd = await asyncio.gather(*(asyncio.open_connection(parts.hostname, parts.port) for _ in range(120)))

    async def ended(reader: asyncio.StreamReader) -> bytes:
        with suppress(ConnectionError):
            return await reader.read()
        return b""

    async with asyncio.timeout(AT_MOST):
        answers = await asyncio.gather(*(ended(reader) for reader, _ in crowd))
    for _, writer in crowd:
        writer.close()
    assert sum(status(one) == b"503" for one in answers) >= 20  # where it is slow, the first are closed before the last have come
    async with httpx2.AsyncClient(base_url=address, timeout=30) as client:
        assert (await client.get("/health")).status_code == 200
    assert memory(pid) - before < 32 << 20


def test_who_means_harm_is_cut_off(tmp_path: Path, database: str) -> None:
    with served(tmp_path, "--development", FLOWDSL_DATABASE_URL=database, **LIMITS) as (process, address):
        asyncio.run(_hostile(address, process.pid))
        asyncio.run(_crowded(address, process.pid))
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
        async with httpx2.AsyncClient(base_url=address) as client:
            assert (await client.get("/health")).status_code == 200
