"""Webhooks in: FullEnrich's callback, and new subscribers."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.fullenrich.document import batch_of, results_of
from adapters.fullenrich.settings import api_keys
from domains.enrichment.values import NewSubscriber
from domains.enrichment.workflows import add_subscriber, enrichment_complete
from flowdsl.codec import codec
from flowdsl.service.verifiers import StandardWebhooks, full_enrich
from flowdsl.service.webhooks import Delivery, Reaction, Webhook, send, start, webhook

SECRET = "ENRICHMENT_SUBSCRIBERS_SECRET"


def on_results(delivery: Delivery) -> list[Reaction]:
    """To the execution whose id every item echoes; where there is no item, to whoever waits for the provider's id."""
    document = delivery.json()
    news = results_of(document)
    return [send(batch_of(document) or news.enrichment_id, enrichment_complete, news)]


def on_subscriber(delivery: Delivery) -> list[Reaction]:
    """`{"email": …, "source": …, "raw_payload": {…}}`; delivered twice it is one."""
    return [start(add_subscriber, codec(NewSubscriber).structure(delivery.json()))]


def enrichment_webhooks(environment: Mapping[str, str]) -> list[Webhook]:
    """Those whose secrets are there: without one anybody could sign."""
    keys, secret = api_keys(environment), environment.get(SECRET, "").strip()
    found = [webhook("fullenrich", full_enrich(keys), on_results)] if keys else []
    return found + ([webhook("subscribers", StandardWebhooks(secret), on_subscriber)] if secret else [])
