"""The orders there are, and what is wrong with some of the rows that are imported for them: all of it follows from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias
from zlib import crc32

from attrs import frozen

Fate: TypeAlias = Literal["fine", "unknown", "absent", "bounces"]
"""Goes through · the order was not entered (until it is mended) · the order never held the article · its address bounces (until it is mended)."""


@frozen
class Catalogue:
    """`bad` of a thousand rows fail, in equal parts for each of the three reasons."""

    seed: int = 7
    bad: int = 10

    def row(self, number: int) -> tuple[str, str]:
        """The number-th row: two articles an order."""
        return str(100_000 + number // 2), f"SKU-{crc32(f'{number // 2}'.encode()) % 500 + 500 * (number % 2):03}"

    def rows(self, first: int, count: int) -> Iterator[tuple[str, str]]:
        return (self.row(number) for number in range(first, first + count))

    def fate(self, order_id: str, sku: str) -> Fate:
        if not (order_id.isdecimal() and len(order_id) < 12):
            return "unknown"
        if sku not in (self.row((int(order_id) - 100_000) * 2)[1], self.row((int(order_id) - 100_000) * 2 + 1)[1]):
            return "absent"
        if crc32(f"{self.seed}|{order_id}".encode()) % 3000 < self.bad:
            return "unknown"
        drawn = crc32(f"{self.seed}|{order_id}|{sku}".encode()) % 3000
        return "absent" if drawn < self.bad else "bounces" if drawn < 2 * self.bad else "fine"

    def file(self, first: int, count: int) -> Iterator[bytes]:
        """Such rows as a CSV file, some thousands of them at a time, with a column that nobody asks for."""
        yield b"order_id,sku,reported_by\r\n"
        for start in range(first, first + count, 10_000):
            rows = self.rows(start, min(10_000, first + count - start))
            yield "".join(f'{order_id},{sku},"Kitchen, {order_id[-1]}"\r\n' for order_id, sku in rows).encode()
