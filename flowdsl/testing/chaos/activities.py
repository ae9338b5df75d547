"""The activities of the system under chaos: contracts that an outside ledger counts, and implementations that fail as they are told to."""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeAlias

from attrs import frozen

from flowdsl import Concurrency, Failure, Interrupted, RateLimit, Result, Retry, Success, activity, bind, this_attempt
from flowdsl.testing.chaos.ledger import tell, tell_blocking
from flowdsl.testing.chaos.orders import RATE


@frozen
class Ask:
    """One effect: what it is called, what it is worth, how often it fails by declaration and then by a bug before it succeeds."""

    label: str
    value: int
    fails: int = 0
    bugs: int = 0
    pause: int = 0
    refused: bool = False
    refusals: int = 0
    """So many calls are refused, whoever makes them."""


@frozen
class Receipt:
    value: int
    number: int
    """The ledger's."""


@frozen
class Flaky:
    """A failure that the retry policy tries again."""

    label: str


@frozen
class Refused:
    """A failure that is an answer."""

    label: str


Problem: TypeAlias = Flaky | Refused
_SOON = Retry.constant("50ms", on=(Flaky,))


class Scripted(Exception):
    """A bug on purpose."""


@activity("chaos.effect", retry=_SOON, timeout="30s")
def effect(ask: Ask) -> Result[Receipt, Problem]: ...


@activity("chaos.effect_in_thread", retry=_SOON, timeout="30s")
def effect_in_thread(ask: Ask) -> Result[Receipt, Problem]: ...


@activity("chaos.once", crash="fail", timeout="30s")
def once(ask: Ask) -> Result[Receipt, Interrupted]: ...


@activity("chaos.bounded", retry=_SOON, timeout="30s", budget=(Concurrency("chaos-slots", 3), RateLimit("chaos-rate", RATE, "1s")))
def bounded(ask: Ask) -> Result[Receipt, Problem]: ...


@activity("chaos.mark", retry=_SOON, timeout="30s", transactional=True)
def mark(ask: Ask) -> Result[int, Problem]: ...


# Implementations


def _facts(ask: Ask) -> dict[str, Any]:
    attempt = this_attempt()
    return {"key": attempt.idempotency_key, "label": ask.label, "value": ask.value, "number": attempt.number, "called": time.time()}


def _answer(ask: Ask, told: tuple[int, int]) -> Result[Receipt, Problem]:
    number = this_attempt().number
    receipt, count = told
    if number <= ask.fails:
        return Failure(Flaky(ask.label))
    if number <= ask.fails + ask.bugs:
        raise Scripted(ask.label)
    return Failure(Refused(ask.label)) if ask.refused or count <= ask.refusals else Success(Receipt(ask.value, receipt))


async def _effect(ask: Ask) -> Result[Receipt, Problem]:
    told = await tell(_facts(ask))
    await asyncio.sleep(ask.pause / 1000)
    return _answer(ask, told)


def _effect_in_thread(ask: Ask) -> Result[Receipt, Problem]:
    told = tell_blocking(_facts(ask))
    time.sleep(ask.pause / 1000)
    return _answer(ask, told)


async def _once(ask: Ask) -> Result[Receipt, Interrupted]:
    receipt, _ = await tell(_facts(ask))
    await asyncio.sleep(ask.pause / 1000)
    return Success(Receipt(ask.value, receipt))


async def _mark(ask: Ask) -> Result[int, Problem]:
    """Writes first and fails afterwards, so that what a failure leaves behind would be seen."""
    attempt = this_attempt()
    async with attempt.transaction() as connection:
        await connection.execute(
            "insert into chaos_marks (key, label, attempt) values ($1, $2, $3)", attempt.idempotency_key, ask.label, attempt.number
        )
    await asyncio.sleep(ask.pause / 1000)
    outcome = _answer(ask, (0, 1))
    return outcome.map(lambda receipt: receipt.value)


BINDINGS = [
    bind(effect, _effect), bind(effect_in_thread, _effect_in_thread), bind(once, _once), bind(mark, _mark), bind(bounded, _effect),
]  # fmt: skip
