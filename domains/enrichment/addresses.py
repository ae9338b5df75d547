"""E-mail addresses: which are addresses at all, and which are a person's own."""

from __future__ import annotations

import re
from typing import Final, Literal, TypeAlias

EmailType: TypeAlias = Literal["personal", "corporate"]

CONSUMER_DOMAINS: Final = frozenset({
    "aol.com", "fastmail.com", "gmail.com", "gmx.com", "gmx.de", "gmx.net", "googlemail.com", "hotmail.co.uk", "hotmail.com", "icloud.com",
    "live.com", "mac.com", "mail.com", "me.com", "msn.com", "outlook.com", "pm.me", "proton.me", "protonmail.com", "t-online.de", "web.de",
    "yahoo.co.uk", "yahoo.com", "yandex.com", "ymail.com", "zoho.com",
})  # fmt: skip

_ADDRESS = re.compile(r"[^\s@\x00-\x20\x7f]{1,64}@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}")


def normal(given: str) -> str | None:
    """The address as it is kept, or None when it is none. Capitals make no other mailbox, in practice."""
    address = given.strip().lower()
    return address if len(address) <= 254 and _ADDRESS.fullmatch(address) else None


def email_type(address: str) -> EmailType:
    """Of a consumer's mail provider, or of somebody's own domain."""
    return "personal" if address.rpartition("@")[2] in CONSUMER_DOMAINS else "corporate"
