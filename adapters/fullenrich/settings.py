"""Where FullEnrich is, as whom we ask, and how patient we are: read from the environment when it is needed, never on import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from attrs import field, frozen

from domains.enrichment.failures import NotConfigured
from domains.enrichment.values import LARGEST, Patience
from flowdsl import Failure, FlowError, Result, Success
from flowdsl.errors import DefinitionError
from flowdsl.policy import duration

URL = "FULLENRICH_URL"
KEY = "FULLENRICH_API_KEY"
CALLBACK = "FULLENRICH_CALLBACK_URL"
COOLDOWN = "FULLENRICH_COOLDOWN"
DEFAULT_URL = "https://app.fullenrich.com/api/v2"

MONTHLY = "ENRICHMENT_MONTHLY_CREDITS"
DEBOUNCE = "ENRICHMENT_DEBOUNCE"
BATCH = "ENRICHMENT_BATCH"
UPLOADS = "ENRICHMENT_UPLOADS"
LIMIT, POLL, SILENCE = "ENRICHMENT_LIMIT", "ENRICHMENT_POLL", "ENRICHMENT_SILENCE"


@frozen
class Provider:
    url: str
    key: str = field(repr=False)
    callback_url: str | None
    cooldown: timedelta
    """After a 429, which names no time of its own."""


@frozen
class Ways:
    """How enrichments are made: how long triggers are gathered, how many jobs a batch has, how long it waits."""

    debounce: timedelta
    batch: int
    patience: Patience
    monthly: int | None
    """Credits that all batches of a calendar month may cost; None leaves it to the provider's balance."""
    uploads: Path


def api_keys(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The key, and after it those that still sign callbacks of running batches: `new,old`."""
    return tuple(key.strip() for key in environment.get(KEY, "").split(",") if key.strip())


def provider() -> Result[Provider, NotConfigured]:
    keys = api_keys(os.environ)
    if not keys or not (keys[0].isascii() and keys[0].isprintable()):
        return Failure(NotConfigured(KEY, "is not set" if not keys else "is no key", "Set it to the API key of the workspace"))
    url, callback = os.environ.get(URL, "").strip() or DEFAULT_URL, os.environ.get(CALLBACK, "").strip() or None
    for name, address in ((URL, url), (CALLBACK, callback)):
        if address is not None and (urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname):
            return Failure(NotConfigured(name, f"is {address!r}, which is no address", "Write it like https://hooks.example.org/webhooks/fullenrich"))
    return Success(Provider(url.rstrip("/"), keys[0], callback, _span(os.environ, COOLDOWN, "60s")))


def ways(environment: Mapping[str, str] = os.environ) -> Ways:
    """Raises `DefinitionError`, which says what is wrong with a setting."""

    def span(name: str, default: str) -> timedelta:
        return _span(environment, name, default)

    return Ways(
        span(DEBOUNCE, "30s"),
        _count(environment, BATCH, LARGEST) or LARGEST,
        Patience(span(LIMIT, "24h"), span(POLL, "15m"), span(SILENCE, "2h")),
        _count(environment, MONTHLY, 2**31 - 1, least=0),
        Path(environment.get(UPLOADS, "").strip() or "uploads"),
    )


def _span(environment: Mapping[str, str], name: str, default: str) -> timedelta:
    text = environment.get(name, "").strip() or default
    try:
        return duration(text)
    except FlowError:
        raise DefinitionError(name, f"is {text!r}, which is no span of time", "Write it like 500ms, 30s, 15m or 24h") from None


def _count(environment: Mapping[str, str], name: str, most: int, *, least: int = 1) -> int | None:
    text = environment.get(name, "").strip()
    if text and not (text.isascii() and text.isdigit() and len(text) < 12 and least <= int(text) <= most):
        raise DefinitionError(name, f"is {text!r}", f"It is a whole number from {least} to {most}")
    return int(text) if text else None
