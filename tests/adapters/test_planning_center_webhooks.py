"""Planning Center's webhooks: the environment that names them, the envelope, and what each event makes us read again."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from adapters.planning_center.schedules import delta_syncs
from adapters.planning_center.webhooks import SECRETS, TENANT, told, webhooks
from adapters.standins.planning_center import Event, Organization, events_between, signed
from domains.sync.values import EntitySync
from flowdsl.errors import DefinitionError
from flowdsl.service.verifiers import Forged
from flowdsl.service.webhooks import Delivery, Starting, Webhook

# As its documentation shows one.
SAMPLE: dict[str, Any] = {
    "data": [
        {
            "id": "0b6c3c1e-6c07-4f55-9a1c-0d5d1d2f7a11",
            "type": "EventDelivery",
            "attributes": {
                "name": "people.v2.events.email.updated",
                "attempt": 1,
                "payload": '{"data":{"type":"Email","id":"9001","attributes":{"address":"mira@example.org","primary":true},"relationships":'
                '{"person":{"data":{"type":"Person","id":"501"}}}},"included":[],"meta":{"parent":{"type":"Organization","id":"77"}}}',
            },
            "relationships": {"organization": {"data": {"type": "Organization", "id": "77"}}},
        }
    ]
}


def one(environment: Mapping[str, str] | None = None) -> Webhook:
    (found,) = webhooks(environment or {SECRETS: "org_123=first,second"})
    return found


def asked(body: bytes) -> list[tuple[EntitySync, str | None]]:
    found: list[tuple[EntitySync, str | None]] = []
    for reaction in one().react(Delivery("planning-center.org_123", "d", body)):
        assert isinstance(reaction, Starting)
        found.append((reaction.request, reaction.key))
    return found


def test_the_sample_of_the_documentation() -> None:
    ((order, key),) = asked(json.dumps(SAMPLE).encode())
    assert order == EntitySync("org_123", "pco", "Email", "full", subject="9001")
    assert key == "entity-sync:org_123:pco:Email:full:9001:0b6c3c1e-6c07-4f55-9a1c-0d5d1d2f7a11"


def test_each_change_at_the_source_is_news_of_its_rows() -> None:
    organization = Organization.generate(people=20, seed=3)
    before: dict[str, Any] = organization.truth()
    people = sorted(before["entities"]["Person"], key=int)
    merger = organization.merge(people[0], people[1])
    organization.edit("Person", people[2], {"first_name": "Zenobia"})
    organization.delete_person(people[3])
    rows: set[tuple[str, str | None]] = set()
    for event in events_between(before, organization.truth(), "s"):
        rows |= {(order.entity_name, order.subject) for order, _ in asked(event.body("77"))}
    assert rows >= {("Person", people[number]) for number in range(4)} | {("PersonMerger", merger)}


def test_a_verb_makes_no_difference_and_an_event_that_is_not_ours_none_at_all() -> None:
    for verb in ("created", "updated", "destroyed"):
        assert [order.subject for order, _ in asked(Event("e", f"people.v2.events.person.{verb}", "Person", "5", {}).body("77"))] == ["5"]
    assert asked(Event("e", "people.v2.events.note.created", "Note", "5", {}).body("77")) == []


@pytest.mark.parametrize(
    "envelope",
    [
        [],
        {},
        {"data": [1]},
        {"data": [{"id": "1", "attributes": {}}]},
        {"data": [{"id": "1", "attributes": {"payload": {}}}]},
        {"data": [{"id": "1", "attributes": {"payload": "{"}}]},
        {"data": [{"id": "1", "attributes": {"payload": '{"data":{"type":"Person"}}'}}]},
        {"data": [{"id": "1", "attributes": {"payload": '{"data":null}'}}]},
    ],
)
def test_what_is_signed_and_no_envelope_is_kept_with_its_error(envelope: Any) -> None:
    with pytest.raises(ValueError):
        list(told(envelope))


def test_either_secret_signs_and_no_other() -> None:
    body = json.dumps(SAMPLE).encode()
    event = Event("e", "n", "Person", "5", {})
    for secret in ("first", "second"):
        assert one().verifier.verify(body, signed(body, event, secret)) == SAMPLE["data"][0]["id"]
    for headers in ({}, signed(body, event, "first,second"), {"X-PCO-Webhooks-Authenticity": hmac.new(b"first", body, hashlib.sha1).hexdigest()}):
        with pytest.raises(Forged):
            one().verifier.verify(body, headers)


def test_nobody_is_named_and_there_is_nothing() -> None:
    assert webhooks({}) == [] == webhooks({SECRETS: " "})


def test_many_organizations_and_their_tenant() -> None:
    environment = {SECRETS: "a=1 b=2,3\n", TENANT: "acme", "PLANNING_CENTER_SYNC_ORGS": "a"}
    assert [(each.name, each.tenant) for each in webhooks(environment)] == [("planning-center.a", "acme"), ("planning-center.b", "acme")]
    assert [each.tenant for each in delta_syncs(environment)] == ["acme"]


@pytest.mark.parametrize("text", ["hush", "=hush", "org=", "a/b=hush", "a=hush a=hush2", "ä=hush", "a=,"])
def test_what_is_wrong_is_told_without_telling_the_secret(text: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        webhooks({SECRETS: text})
    assert SECRETS in str(caught.value) and "hush" not in str(caught.value)


def test_secrets_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("org_123=hush\n")
    assert one({f"{SECRETS}_FILE": str(file), SECRETS: ""}).name == "planning-center.org_123"
    with pytest.raises(DefinitionError, match="cannot be read"):
        webhooks({f"{SECRETS}_FILE": str(tmp_path / "none")})
