"""Whether every row was made good once: what the order service says itself, compared with the rows of the file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx2
from attrs import frozen

from adapters.standins.meals.catalogue import Catalogue


@frozen
class Verdict:
    """In rows."""

    made_good: int = 0
    confirmed: int = 0
    lost: int = 0
    """Should have been made good, or confirmed, and were not."""
    twice: int = 0
    """Made good, or confirmed, more than once: under two references."""
    wrong: int = 0
    """Made good, or confirmed, and should not have been."""
    disturbed: int = 0
    """Looked at although they were done."""
    asked: int = 0

    @property
    def clean(self) -> bool:
        return not (self.lost or self.twice or self.wrong or self.disturbed)


@frozen
class Expected:
    """What should be true of a row in the end."""

    made_good: bool
    confirmed: bool
    may_be_asked: bool = True


def judged(records: Iterator[tuple[str, int, int, int]], expected: dict[str, Expected]) -> Verdict:
    """`records`: a row, how often it was asked for, made good, confirmed. What is expected is used up."""
    made = confirmed = lost = twice = wrong = disturbed = asked = 0
    nothing = Expected(False, False, False)
    for row, looked, goods, confirmations in records:
        due = expected.pop(row, nothing)
        made, confirmed, asked = made + bool(goods), confirmed + bool(confirmations), asked + bool(looked)
        lost += (due.made_good and not goods) or (due.confirmed and not confirmations)
        twice += goods > 1 or confirmations > 1
        wrong += (goods > 0 and not due.made_good) or (confirmations > 0 and not due.confirmed)
        disturbed += bool(looked) and not due.may_be_asked
    lost += sum(one.made_good or one.confirmed for one in expected.values())
    return Verdict(made, confirmed, lost, twice, wrong, disturbed, asked)


def after_first(catalogue: Catalogue, rows: int) -> dict[str, Expected]:
    """The file as it was: a short is made good before its confirmation bounces."""
    fates = ((f"{order_id} {sku}", catalogue.fate(order_id, sku)) for order_id, sku in catalogue.rows(0, rows))
    return {row: Expected(fate in ("fine", "bounces"), fate == "fine") for row, fate in fates}


def after_second(catalogue: Catalogue, before: int, rows: int) -> dict[str, Expected]:
    """All is mended but what was never in its order. Only what had failed, and the rows beyond the first ones, may be looked at."""
    fates = ((number, f"{one[0]} {one[1]}", catalogue.fate(*one)) for number, one in enumerate(catalogue.rows(0, rows)))
    return {row: Expected(fate != "absent", fate != "absent", fate != "fine" or number >= before) for number, row, fate in fates}


async def verdict(url: str, expected: dict[str, Expected]) -> Verdict:
    """Asks the stand-in at `url`."""
    async with httpx2.AsyncClient(timeout=300) as client:
        lines = [line async for line in _lines(client, url)]
    return judged(iter(lines), expected)


async def _lines(client: httpx2.AsyncClient, url: str) -> AsyncIterator[tuple[str, int, int, int]]:
    async with client.stream("GET", f"{url}/_standin/records") as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            order_id, sku, asked, goods, confirmations = line.split(" ")
            yield f"{order_id} {sku}", int(asked), int(goods), int(confirmations)
