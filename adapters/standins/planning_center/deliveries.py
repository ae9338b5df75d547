"""Webhooks as Planning Center sends them: an envelope with JSON in a string, signed, at least once, in no order that can be relied on."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import httpx2
from attrs import define, evolve, field, frozen

RESOURCES: Mapping[str, str] = {
    "Person": "person",
    "Email": "email",
    "PhoneNumber": "phone_number",
    "Address": "address",
    "Household": "household",
    "PersonMerger": "person_merger",
}
"""What there are events for: none for campuses and memberships of households."""
PAUSES = (0.2, 0.4, 0.8, 1.6, *(3.2,) * 30)
"""Seconds between the attempts of a delivery; the real ones begin at half a minute, and go on for days."""


@frozen
class Event:
    """Something that happened to a row, with the row as it was then; when it is gone, as it last was."""

    id: str
    name: str
    type: str
    row: str
    record: Mapping[str, Any]
    attempt: int = 1

    def body(self, organization: str) -> bytes:
        """The envelope: a list of one, whose payload is JSON once more."""
        parent = {"type": "Organization", "id": organization}
        payload = {"data": {"type": self.type, "id": self.row, **self.record}, "included": [], "meta": {"parent": parent}}
        attributes = {"name": self.name, "attempt": self.attempt, "payload": json.dumps(payload)}
        delivery = {"id": self.id, "type": "EventDelivery", "attributes": attributes, "relationships": {"organization": {"data": parent}}}
        return json.dumps({"data": [delivery]}).encode()


def signed(body: bytes, event: Event, secret: str) -> dict[str, str]:
    """Its headers. The signature is over the body alone: nothing else can be believed."""
    return {
        "Content-Type": "application/json",
        "X-PCO-Webhooks-Authenticity": hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
        "X-PCO-Webhooks-Event-ID": event.id,
        "X-PCO-Webhooks-Name": event.name,
    }


def events_between(before: Mapping[str, Any], after: Mapping[str, Any], seed: str) -> Iterator[Event]:
    """What happened between two looks at the truth. A row that changed without a trace in its `updated_at` is not told of."""
    for type, name in RESOURCES.items():
        old, new = before["entities"][type], after["entities"][type]
        for row in sorted({*old, *new}):
            then: Mapping[str, Any] = old.get(row) or {}
            now: Mapping[str, Any] = new.get(row) or {}
            verb = "created" if not then else "destroyed" if not now else "updated"
            if verb == "updated" and then["attributes"].get("updated_at") == now["attributes"].get("updated_at"):
                continue
            record = now or then
            relationships = {key: {"data": value} for key, value in record["relationships"].items()}
            id = str(uuid5(NAMESPACE_URL, f"{seed}/{type}/{row}/{verb}"))
            yield Event(id, f"people.v2.events.{name}.{verb}", type, row, {"attributes": record["attributes"], "relationships": relationships})


@define(eq=False)
class Subscriptions:
    """Whom to tell, with the secret of the subscriptions."""

    url: str
    secret: str = field(repr=False)
    answered: list[int] = field(factory=list[int])
    _told: int = 0
    _tasks: set[asyncio.Task[None]] = field(factory=set[asyncio.Task[None]])

    def tell(self, before: Mapping[str, Any], after: Mapping[str, Any], organization: str) -> Sequence[Event]:
        """Sends what happened, each on its own; whoever changes things does not wait for it."""
        self._told += 1
        found = list(events_between(before, after, f"{organization}/{self._told}"))
        for event in found:
            task = asyncio.get_running_loop().create_task(self._deliver(event, organization))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return found

    async def _deliver(self, event: Event, organization: str) -> None:
        async with httpx2.AsyncClient(timeout=10) as client:
            for number, pause in enumerate((*PAUSES, 0.0), 1):
                event = evolve(event, attempt=number)
                body = event.body(organization)
                try:
                    answer = await client.post(self.url, content=body, headers=signed(body, event, self.secret))
                    self.answered.append(answer.status_code)
                    if answer.is_success or answer.status_code == 410:
                        return
                except httpx2.HTTPError:
                    self.answered.append(0)
                await asyncio.sleep(pause)


__all__ = ["RESOURCES", "Event", "Subscriptions", "events_between", "signed"]
