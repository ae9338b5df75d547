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
    return Success(Provider(url.rstrip("/"), keys[0], callback, _span(COOLDOWN, "60s")))


def ways() -> Ways:
    """Raises `FlowError`, which says what is wrong with a setting."""
    monthly = os.environ.get(MONTHLY, "").strip()
    return Ways(
        _span(DEBOUNCE, "30s"),
        _count(BATCH, str(LARGEST), LARGEST),
        Patience(_span(LIMIT, "24h"), _span(POLL, "15m"), _span(SILENCE, "2h")),
        _count(MONTHLY, monthly, 2**31 - 1, least=0) if monthly else None,
        Path(os.environ.get(UPLOADS, "").strip() or "uploads"),
    )


def _span(name: str, default: str) -> timedelta:
    try:
        return duration(os.environ.get(name, "").strip() or default)
    except FlowError as error:
        raise FlowError(f"{name}: {error}") from None


def _count(name: str, default: str, most: int, *, least: int = 1) -> int:
    text = os.environ.get(name, "").strip() or default
    if not (text.isascii() and text.isdigit() and len(text) < 12 and least <= int(text) <= most):
        raise FlowError(f"{name} is {text!r}. It is a whole number from {least} to {most}")
    return int(text)
