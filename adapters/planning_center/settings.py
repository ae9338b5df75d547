"""Where Planning Center is, and as whom we ask: read from the environment when it is needed, never on import."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from urllib.parse import urlsplit

from attrs import Factory, field, frozen

from domains.sync.failures import NotConfigured
from flowdsl import Failure, Result, Success

URL = "PLANNING_CENTER_URL"
TOKEN = "PLANNING_CENTER_TOKEN"
CONTACT = "PLANNING_CENTER_CONTACT"
DEFAULT_URL = "https://api.planningcenteronline.com"
_ROOT = "/people/v2"


def _root_of(settings: Settings) -> str:
    return settings.url if settings.url.endswith(_ROOT) else settings.url + _ROOT


def _headers_of(settings: Settings) -> Mapping[str, str]:
    encoded = b64encode(settings.token.encode()).decode()
    return {
        "Authorization": f"Basic {encoded}" if ":" in settings.token else f"Bearer {settings.token}",
        "X-PCO-API-Version": "2025-03-20",
        "User-Agent": f"flowdsl sync ({settings.contact})",
        "Accept": "application/json",
    }


def _budget_of(settings: Settings) -> str:
    return "pco-" + sha256(f"{settings.url}\n{settings.token}".encode()).hexdigest()[:24]


@frozen
class Settings:
    """What follows from them is worked out once: it is wanted for each request."""

    url: str
    token: str = field(repr=False)
    contact: str
    root: str = field(init=False, eq=False, default=Factory(_root_of, takes_self=True))
    """The address of the People API."""
    headers: Mapping[str, str] = field(init=False, eq=False, repr=False, default=Factory(_headers_of, takes_self=True))
    """`app_id:secret` is a personal access token; anything else is an OAuth access token."""
    budget: str = field(init=False, eq=False, default=Factory(_budget_of, takes_self=True))
    """Names the request budget that everybody with this credential shares, without saying the credential."""


def configured() -> Result[Settings, NotConfigured]:
    token = os.environ.get(TOKEN, "").strip()
    url = (os.environ.get(URL, "").strip() or DEFAULT_URL).rstrip("/")
    if not token:
        remedy = "Set it to app_id:secret of a personal access token (https://api.planningcenteronline.com/oauth/applications), or to an OAuth token"
        return Failure(NotConfigured(TOKEN, "is not set", remedy))
    if not (token.isascii() and token.isprintable()) or (":" not in token and " " in token):
        return Failure(NotConfigured(TOKEN, "is no credential", "It is app_id:secret, or an OAuth access token, without blanks"))
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        return Failure(NotConfigured(URL, f"is {url!r}, which is no address", f"Write it like {DEFAULT_URL}, or leave it out"))
    return Success(Settings(url, token, os.environ.get(CONTACT, "").strip() or f"{CONTACT} is not set"))
