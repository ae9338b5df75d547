"""What the answers say about the request quota, and how long to rest because of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from attrs import frozen

_HEADER = "X-PCO-API-Request-Rate-"
_NUMBER = re.compile(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*(?:s|sec|secs|second|seconds)?\s*", re.IGNORECASE)
_LONGEST = timedelta(hours=1)


@frozen
class Quota:
    """`count` of `limit` requests were made in the current `period` (seconds)."""

    limit: int
    period: float
    count: int


def quota(headers: Mapping[str, str]) -> Quota | None:
    """The state of the quota; None if the headers are missing or make no sense."""
    limit, period, count = (_number(headers.get(_HEADER + name)) for name in ("Limit", "Period", "Count"))
    if limit is None or period is None or count is None or limit < 1 or period <= 0:
        return None
    return Quota(int(limit), period, int(count))


def _number(text: str | None) -> float | None:
    """Both `20` and `20 seconds` are in use."""
    found = _NUMBER.fullmatch(text or "")
    return float(found[1]) if found else None


def retry_after(headers: Mapping[str, str], now: datetime) -> timedelta | None:
    """What Retry-After asks for, in seconds or as a date, but never more than an hour."""
    text = headers.get("Retry-After")
    seconds = _number(text)
    if seconds is not None:
        return min(timedelta(seconds=seconds), _LONGEST)
    try:
        moment = parsedate_to_datetime(text or "")
    except (ValueError, TypeError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max(moment - now, timedelta()), _LONGEST)


def pause(seen: Quota | None, default: timedelta) -> timedelta:
    """The rest between two pages: none while a fifth of the quota is free, then longer the less there is; `default` if nobody tells."""
    if seen is None:
        return default
    free = max(0.0, 1 - seen.count / seen.limit)
    return timedelta(seconds=0 if free >= 0.2 else seen.period / 4 * (1 - free / 0.2))
