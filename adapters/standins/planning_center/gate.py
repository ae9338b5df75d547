"""Who may ask, and how often: credentials with their hint codes, and the request quota of a user."""

from __future__ import annotations

import math
from base64 import b64decode
from binascii import Error
from collections import deque
from collections.abc import Mapping

from attrs import frozen

NOBODY = "nobody"

# Bearer tokens that are known and refused, with the documented hints.
REFUSED_TOKENS: Mapping[str, tuple[int, str]] = {
    "expired": (401, "BABOON"),
    "revoked": (401, "CAPUCHIN"),
    "unscoped": (403, "PELICAN"),
    "outsider": (403, "TRASH_PANDA"),
}


@frozen
class Verdict:
    user: str
    status: int = 200
    hint: str = ""


@frozen
class Credentials:
    """One user, with a personal access token (Basic `app_id:secret`) and an OAuth access token (Bearer)."""

    app_id: str = "app_id"
    secret: str = "secret"
    token: str = "token"

    def judge(self, authorization: str | None) -> Verdict:
        scheme, _, value = (authorization or "").partition(" ")
        if scheme.lower() == "basic" and _decoded(value) == f"{self.app_id}:{self.secret}":
            return Verdict("owner")
        if scheme.lower() == "bearer" and value == self.token:
            return Verdict("owner")  # the quota belongs to the user, whichever way they come
        status, hint = REFUSED_TOKENS.get(value if scheme.lower() == "bearer" else "", (401, "CAPUCHIN"))
        return Verdict(NOBODY, status, hint)


def _decoded(value: str) -> str | None:
    try:
        return b64decode(value, validate=True).decode()
    except (Error, UnicodeDecodeError):
        return None


@frozen
class Quota:
    """At most `limit` requests in any `period` seconds; fewer once `offset` is large."""

    limit: int = 100
    period: float = 20.0
    deep_offset: int = 30_000
    deep_limit: int | None = None  # three quarters of the limit, unless told

    def allowed(self, offset: int) -> int:
        if offset <= self.deep_offset:
            return self.limit
        return max(1, self.limit * 3 // 4) if self.deep_limit is None else self.deep_limit


@frozen
class Reading:
    """The state of a user's quota after one more request."""

    limit: int
    period: float
    count: int
    retry_after: int  # whole seconds; 0 if this request may pass

    def headers(self) -> dict[str, str]:
        # Both spellings of the period are in use, so clients have to read both.
        unit = " seconds" if self.count % 2 else ""
        return {
            "X-PCO-API-Request-Rate-Limit": str(self.limit),
            "X-PCO-API-Request-Rate-Period": f"{self.period:g}{unit}",
            "X-PCO-API-Request-Rate-Count": str(self.count),
        }


class Meter:
    """Counts requests per user over a sliding window. Refused requests count too: who hammers stays out."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self._times: dict[str, deque[float]] = {}

    def count(self, user: str, offset: int, now: float) -> Reading:
        times = self._times.setdefault(user, deque())
        while times and times[0] <= now - self.quota.period:
            times.popleft()
        times.append(now)
        limit, count = self.quota.allowed(offset), len(times)
        wait = 0 if count <= limit else max(1, math.ceil(times[count - limit] + self.quota.period - now))
        return Reading(limit, self.quota.period, count, wait)
