"""The gate at which a stand-in stops: nobody passes while it is closed, and who waits is told."""

from __future__ import annotations

import asyncio

import pytest

from adapters.standins.gate import Gate

pytestmark = pytest.mark.anyio


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_open_gate_holds_nobody() -> None:
    gate = Gate()
    await gate.passed("kim")
    assert gate.held == []


async def test_a_closed_one_holds_whoever_comes_until_it_is_opened() -> None:
    gate = Gate()
    gate.move(0)
    waiting = asyncio.create_task(gate.passed("kim"))
    await turns()
    assert gate.held == ["kim"] and not waiting.done()
    gate.move(None)
    await waiting
    assert gate.held == []


async def test_it_closes_from_a_count_on_and_can_be_moved_on() -> None:
    gate, count = Gate(), 2
    gate.move(3)
    await gate.passed("first", lambda: count)
    count = 3
    second = asyncio.create_task(gate.passed("second", lambda: count))
    await turns()
    gate.move(3)
    await turns()
    assert gate.held == ["second"], "it was moved, and not far enough"
    gate.move(4)
    await second


async def test_who_is_cancelled_no_longer_waits() -> None:
    gate = Gate()
    gate.move(0)
    waiting = asyncio.create_task(gate.passed("kim"))
    await turns()
    waiting.cancel()
    await turns()
    assert gate.held == []
