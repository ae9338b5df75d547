"""Server-sent events: what is told, resuming by the last id, and a graceful end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from tests.service.stage import serving, started, until


async def read(client: httpx2.AsyncClient, id: str, last: str | None = None, *, until_event: str = "ended") -> list[tuple[str, str | None, Any]]:
    """Event, id and data of each, up to one of that name."""
    found: list[tuple[str, str | None, Any]] = []
    headers = {} if last is None else {"Last-Event-ID": last}
    async with asyncio.timeout(60), client.stream("GET", f"/api/v1/workflows/{id}/events", headers=headers) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        event: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                event[name] = value
            elif event:
                if "event" in event:
                    found.append((event["event"], event.get("id"), json.loads(event["data"])))
                    if event["event"] == until_event:
                        return found
                event = {}
    return found


@pytest.mark.shows("S1.16")
async def test_a_stream_tells_all_and_ends(client: httpx2.AsyncClient) -> None:
    id = await started(client, "shop.approval", "")
    reading = asyncio.create_task(read(client, id))
    await until(client, id, "suspended")
    await client.post(f"/api/v1/workflows/{id}/signal", json={"name": "approved", "payload": True})
    found = await reading
    assert found[0][0] == "status" and found[-1][0] == "ended" and found[-1][2]["result"] is True
    entries = [(event_id, data["body"]) for name, event_id, data in found if name == "entry"]
    assert entries == [("0", True)]


async def test_a_stream_goes_on_behind_the_last_id(client: httpx2.AsyncClient) -> None:
    id = await started(client, "shop.family", ["a", "b"])
    await until(client, id, "succeeded")
    everything = [event_id for name, event_id, _ in await read(client, id) if name == "entry"]
    rest = [event_id for name, event_id, _ in await read(client, id, everything[1]) if name == "entry"]
    assert everything == ["0", "1", "2", "3"] and rest == ["2", "3"]
    assert [name for name, _, _ in await read(client, id, "3")] == ["status", "ended"]


async def test_a_bad_last_id(client: httpx2.AsyncClient) -> None:
    id = await started(client, "shop.approval", "")
    answer = await client.get(f"/api/v1/workflows/{id}/events", headers={"Last-Event-ID": "first"})
    assert answer.status_code == 422


async def test_an_open_stream_does_not_hold_up_the_stop(database: str) -> None:
    reading: asyncio.Task[Any] | None = None
    async with serving(database) as client:
        id = await started(client, "shop.approval", "")
        told = asyncio.Event()

        async def open_stream() -> list[str]:
            lines: list[str] = []
            async with (
                httpx2.AsyncClient(timeout=30) as own,
                own.stream("GET", f"{str(client.base_url).rstrip(chr(47))}/api/v1/workflows/{id}/events") as answer,
            ):
                async for line in answer.aiter_lines():
                    lines.append(line)
                    told.set()
            return lines

        reading = asyncio.create_task(open_stream())
        await asyncio.wait_for(told.wait(), 60)
    lines = await asyncio.wait_for(reading, 60)  # the answer was ended, not cut
    assert any(line.startswith("event: status") for line in lines)
