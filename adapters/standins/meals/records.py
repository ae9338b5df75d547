"""What the order service knows to have done. Nothing of it comes from us but the references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import define, field

from adapters.standins.meals.catalogue import Catalogue


@define
class Deeds:
    """Of one kind. `references`: what each was done for; asking again under a reference does nothing. `times`: how often for each row."""

    references: dict[str, str] = field(factory=dict[str, str])
    times: dict[str, int] = field(factory=dict[str, int])
    again: int = 0

    def do(self, reference: str, row: str) -> int:
        """A status: done now, was done, or the reference is another row's."""
        known = self.references.get(reference)
        if known is not None:
            self.again += 1
            return 200 if known == row else 409
        self.references[reference] = row
        self.times[row] = self.times.get(row, 0) + 1
        return 201


@define
class Records:
    catalogue: Catalogue = field(factory=Catalogue)
    mended: bool = False
    """The orders that were missing are entered, the addresses that bounced are right."""
    shorts: Deeds = field(factory=Deeds)
    confirmations: Deeds = field(factory=Deeds)
    asked: dict[str, int] = field(factory=dict[str, int])
    """How often each row was to be validated, since `forget`."""

    def check(self, item: Mapping[str, Any]) -> dict[str, Any]:
        order_id, sku = str(item["order_id"]), str(item["sku"])
        row = f"{order_id} {sku}"
        self.asked[row] = self.asked.get(row, 0) + 1
        fate = self.catalogue.fate(order_id, sku)
        if fate == "unknown" and not (self.mended and order_id.isdecimal()):
            return {"status": 404}
        return {"status": 422} if fate == "absent" else {"status": 200}

    def make_good(self, item: Mapping[str, Any]) -> dict[str, Any]:
        return {"status": self.shorts.do(str(item["reference"]), f"{item['order_id']} {item['sku']}")}

    def confirm(self, item: Mapping[str, Any]) -> dict[str, Any]:
        order_id, sku = str(item["order_id"]), str(item["sku"])
        if not self.mended and self.catalogue.fate(order_id, sku) == "bounces":
            return {"status": 422, "detail": "the customer's address bounces"}
        return {"status": self.confirmations.do(str(item["reference"]), f"{order_id} {sku}")}

    def lines(self) -> Iterator[bytes]:
        """A line for each row that anything is known of: order, article, how often asked, made good, confirmed."""
        for row in self.asked.keys() | self.shorts.times.keys() | self.confirmations.times.keys():
            yield f"{row} {self.asked.get(row, 0)} {self.shorts.times.get(row, 0)} {self.confirmations.times.get(row, 0)}\n".encode()
