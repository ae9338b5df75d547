"""`kill -9` of the service under load: every start that was answered is there, once, and the store is whole."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.service.test_serve import served

RATE, ANSWERED, MORE, MOST = 200, 100, 60, 12_000
"""Starts a second; it is killed once so many are answered; so many come after that; and no more in all, on a machine that is busy."""


async def _load(address: str, process: subprocess.Popen[str]) -> tuple[dict[str, str], list[str]]:
    """Starts at that rate, whether or not the ones before are answered. Gives the ids of those that were answered, and what was asked."""
    answered: dict[str, str] = {}
    asked: list[str] = []

    async def one(client: httpx2.AsyncClient, key: str) -> None:
        asked.append(key)
        try:
            answer = await client.post("/api/v1/workflows/place-order", json={"order_id": key, "amount": 1}, headers={"Idempotency-Key": key})
        except httpx2.HTTPError:
            return
        if answer.status_code in (200, 202):
            answered[key] = answer.json()["id"]

    loop = asyncio.get_running_loop()
    limits = httpx2.Limits(max_connections=100)
    async with httpx2.AsyncClient(base_url=address, timeout=20, limits=limits) as client:
        began, tasks = loop.time(), list[asyncio.Task[None]]()
        killed = 0
        for number in range(MOST):
            await asyncio.sleep(max(0.0, began + number / RATE - loop.time()))
            tasks.append(asyncio.create_task(one(client, f"k-{number}")))
            if not killed and len(answered) >= ANSWERED:
                process.kill()
                killed = number
            if killed and number >= killed + MORE:
                break
        await asyncio.gather(*tasks)
    return answered, asked


async def _again(address: str, answered: dict[str, str]) -> None:
    """Each is known by its id and by its key, and ends."""
    patience = httpx2.Timeout(30, pool=None)  # more ask than there are connections
    async with httpx2.AsyncClient(base_url=address, timeout=patience, limits=httpx2.Limits(max_connections=20)) as client:

        async def one(key: str, id: str) -> None:
            again = await client.post("/api/v1/workflows/place-order", json={"order_id": key, "amount": 1}, headers={"Idempotency-Key": key})
            assert (again.status_code, again.json()["id"], again.json()["outcome"]) == (200, id, "joined")
            async with asyncio.timeout(120):
                while (found := (await client.get(f"/api/v1/workflows/{id}/status")).json())["status"] != "succeeded":
                    assert found["status"] == "running", found
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(one(key, id) for key, id in answered.items()))


async def _rows(database: str) -> list[Any]:
    connection = await asyncpg.connect(database)
    try:
        return list(await connection.fetch("select key, id::text from flowdsl.executions"))
    finally:
        await connection.close()


@pytest.mark.timeout(300)
def test_every_start_that_was_answered_is_there_once(tmp_path: Path, database: str) -> None:
    with served(tmp_path, "--development", FLOWDSL_DATABASE_URL=database) as (process, address):
        answered, asked = asyncio.run(_load(address, process))
        assert process.wait(60) == -9
    assert ANSWERED <= len(answered) <= len(asked) - MORE, "some were answered, and some were cut off"
    with served(tmp_path, "--development", FLOWDSL_DATABASE_URL=database) as (_, address):
        asyncio.run(_again(address, answered))
    rows = asyncio.run(_rows(database))
    assert max(Counter(row["key"] for row in rows).values()) == 1 and {row["key"] for row in rows} <= set(asked)
    assert answered.items() <= {row["key"]: row["id"] for row in rows}.items()
    doctor = [sys.executable, "-m", "flowdsl", "doctor", "--deep", "shop:deployment"]
    done = subprocess.run(doctor, cwd=tmp_path, env={**os.environ, "FLOWDSL_DATABASE_URL": database}, capture_output=True, text=True, timeout=100)
    expected = re.compile(r"switch it on|has not beaten .* and has \d+ execution")  # the tests' server is a fast one; and somebody was killed
    wrong = [line for line in done.stdout.splitlines() if "✗" in line and not expected.search(line)]
    assert f"looked at        {len(rows)} executions" in done.stdout and not wrong, done.stdout + done.stderr
