"""Planning Center's webhooks: whom we believe, how its envelope is read, and which rows are read again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from adapters.planning_center.manifest import PEOPLE
from domains.sync.news import News, key_of, orders
from domains.sync.workflows import entity_sync
from flowdsl.errors import DefinitionError
from flowdsl.service.verifiers import planning_center
from flowdsl.service.webhooks import Delivery, Reaction, Webhook, start, webhook

SECRETS = "PLANNING_CENTER_WEBHOOK_SECRETS"
TENANT = "PLANNING_CENTER_TENANT"
_FORM = "Write ORG=SECRET,SECRET for each organization, blanks between them: the secret of each of its subscriptions"


def webhooks(environment: Mapping[str, str]) -> list[Webhook]:
    """`POST /webhooks/planning-center.ORG` for each organization of `PLANNING_CENTER_WEBHOOK_SECRETS=ORG=SECRET,SECRET …`, or of a file of that form.

    A subscription is for one event and has a secret of its own: an organization has several, and while one is rotated one more.
    """
    whose = tenant(environment)
    return [
        webhook(f"planning-center.{org}", planning_center(secrets), partial(reactions, org), tenant=whose)
        for org, secrets in _secrets(environment).items()
    ]


def tenant(environment: Mapping[str, str]) -> str:
    """Whose executions the clock and the webhooks start."""
    return environment.get(TENANT, "").strip() or "default"


def _secrets(environment: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    text, file = environment.get(SECRETS, ""), environment.get(f"{SECRETS}_FILE", "")
    where = f"{SECRETS}_FILE={file}" if file else SECRETS
    if file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DefinitionError(where, f"cannot be read ({type(error).__name__})", "Name a file that this user may read") from None
    found: dict[str, tuple[str, ...]] = {}
    for number, part in enumerate(text.split(), 1):
        org, equals, secrets = part.partition("=")
        known = tuple(one for one in secrets.split(",") if one)
        if not equals or not known or not re.fullmatch(r"[\w.-]+", org, re.ASCII):  # never said itself: it may be a secret
            raise DefinitionError(where, f"part {number} of it is no ORG=SECRET, with ORG of letters, digits, '-', '_' and '.'", _FORM)
        if org in found:
            raise DefinitionError(where, f"names {org} twice", f"{_FORM}; several of one organization with commas")
        found[org] = known
    return found


def reactions(org: str, delivery: Delivery) -> Iterator[Reaction]:
    """Each row that the delivery names is read again, as it is by then. Raises `ValueError` for an envelope that is none."""
    for news in told(delivery.json()):
        for order in orders(news, PEOPLE, org):
            yield start(entity_sync, order, key=key_of(order, news))


def told(envelope: Any) -> Iterator[News]:
    """What a delivery tells: a list of events, each with a payload that is JSON in a string."""
    try:
        for event in envelope["data"]:
            payload = json.loads(event["attributes"]["payload"])
            row = payload["data"]
            relationships = row.get("relationships") or {}
            owners = {name: str(one["data"]["id"]) for name, one in relationships.items() if isinstance((one or {}).get("data"), dict)}
            yield News(str(event["id"]), str(row["type"]), str(row["id"]), row.get("attributes") or {}, owners)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no envelope of Planning Center: {type(error).__name__}: {error}") from None


__all__ = ["SECRETS", "TENANT", "reactions", "tenant", "told", "webhooks"]
