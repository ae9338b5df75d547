"""The provider's own books: which batches there are, what they found, and what was charged."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

from attrs import define, field

from adapters.standins.fullenrich.people import profile_of

LARGEST, RUNNING = 100, 100
PRICE = 1.0
_EMAIL = re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]+")


class Wrong(Exception):
    """A submission that is refused, by its code."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        self.code, self.message, self.status = code, message, status
        super().__init__(code)


@define
class Item:
    email: str
    custom: dict[str, str]
    done: bool = False
    charged: float = 0.0


@define
class Batch:
    """A submission that was taken."""

    id: str
    name: str
    items: list[Item]
    webhook_url: str | None
    status: str = "IN_PROGRESS"
    answered: bool = False
    mute: bool = False
    callbacks: list[str] = field(factory=list[str])
    """What became of each callback: a status, or why there was none."""

    @property
    def own(self) -> str:
        """The id that its owner gave it."""
        return self.items[0].custom.get("batch_id", "")


@define
class Ledger:
    """`forgets`: an address costs again each time; the real one charges it once in three months."""

    balance: float = 10_000.0
    share: float = 0.75
    forgets: bool = False
    batches: dict[str, Batch] = field(factory=dict[str, Batch])
    unwanted: set[str] = field(factory=set[str])
    """Addresses that the provider refuses, and the whole submission with them."""
    _charged: set[str] = field(factory=set[str])

    def submit(self, document: Any) -> Batch:
        """Takes a submission, or raises `Wrong`. One bad item refuses them all, and the code says nothing of which it was."""
        if not isinstance(document, dict) or not document.get("name"):
            raise Wrong("error.enrichment.name.empty", "name is required")
        data = document.get("data")
        if not isinstance(data, list) or not data:
            raise Wrong("error.enrichment.data.empty", "data is required")
        if len(data) > LARGEST:
            raise Wrong("error.enrichment.data.exceeded", f"at most {LARGEST} contacts")
        webhook = document.get("webhook_url")
        if webhook is not None and not re.fullmatch(r"https?://\S+", str(webhook)):
            raise Wrong("error.enrichment.webhook_url", "webhook_url is no URL")
        if sum(one.status == "IN_PROGRESS" for one in self.batches.values()) >= RUNNING:
            raise Wrong("error.rate.limit", "too many batches under way", 429)
        batch = Batch(str(uuid4()), str(document["name"]), [self._item(one) for one in data], webhook)
        self.batches[batch.id] = batch
        return batch

    def _item(self, told: Any) -> Item:
        email, custom = (told.get("email"), told.get("custom") or {}) if isinstance(told, dict) else (None, {})
        if not email:
            raise Wrong("error.reverse.email.empty", "email is required")
        if not isinstance(email, str) or not _EMAIL.fullmatch(email) or email in self.unwanted:
            raise Wrong("error.reverse.email.invalid", "email is invalid")
        if len(custom) > 10:
            raise Wrong("error.enrichment.custom.key.exceeded", "at most 10 keys")
        if any(not isinstance(value, str) or len(value) > 100 for value in custom.values()):
            raise Wrong("error.enrichment.custom.value.exceeded", "values are strings of at most 100 characters")
        return Item(email, dict(custom))

    def work(self, batch: Batch, count: int | None = None) -> None:
        """Looks up the next items, or all of them; each that is found is charged, as far as credit goes."""
        todo = [item for item in batch.items if not item.done][:count]
        for item in todo:
            price = self._price(item.email)
            if price > self.balance:
                batch.status = "CREDITS_INSUFFICIENT"
                return
            self.balance -= price
            item.done, item.charged = True, price
            if price:
                self._charged.add(item.email)
        if all(item.done for item in batch.items):
            batch.status = "FINISHED"

    def _price(self, email: str) -> float:
        found = profile_of(email, self.share) is not None
        return PRICE if found and (self.forgets or email not in self._charged) else 0.0

    def document(self, batch: Batch, *, first: int | None = None, status: str | None = None) -> dict[str, Any]:
        """A batch as it is read and called back; with `first` only so many of its items."""
        items = [
            {
                "input": {"email": item.email},
                "custom": item.custom,
                "profile": profile_of(item.email, self.share) if item.done else None,
            }
            for item in batch.items[:first]
        ]
        credits = sum(item.charged for item in batch.items)
        return {"id": batch.id, "name": batch.name, "status": status or batch.status, "data": items, "cost": {"credits": credits}}

    def told(self) -> dict[str, Any]:
        """The books, for a verdict."""
        return {
            "balance": self.balance,
            "batches": [
                {
                    "id": batch.id,
                    "own": batch.own,
                    "status": batch.status,
                    "answered": batch.answered,
                    "callbacks": batch.callbacks,
                    "items": [
                        {
                            "email": item.email,
                            "charged": item.charged,
                            "done": item.done,
                            "full_name": (profile_of(item.email, self.share) or {}).get("full_name"),
                        }
                        for item in batch.items
                    ],
                }
                for batch in self.batches.values()
            ],
        }
