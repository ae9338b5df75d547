"""Where Planning Center is, and as whom we ask: read from the environment when it is needed, never on import."""

from __future__ import annotations

import os
from base64 import b64encode
from hashlib import sha256
from urllib.parse import urlsplit

from attrs import field, frozen

from domains.sync.failures import NotConfigured
from flowdsl import Failure, Result, Success

URL = "PLANNING_CENTER_URL"
TOKEN = "PLANNING_CENTER_TOKEN"
CONTACT = "PLANNING_CENTER_CONTACT"
DEFAULT_URL = "https://api.planningcenteronline.com"
_ROOT = "/people/v2"


@frozen
class Settings:
    url: str
    token: str = field(repr=False)
    contact: str

    @property
    def root(self) -> str:
        """The address of the People API."""
        return self.url if self.url.endswith(_ROOT) else self.url + _ROOT

    @property
    def headers(self) -> dict[str, str]:
        """`app_id:secret` is a personal access token; anything else is an OAuth access token."""
        encoded = b64encode(self.token.encode()).decode()
        return {
            "Authorization": f"Basic {encoded}" if ":" in self.token else f"Bearer {self.token}",
            "X-PCO-API-Version": "2025-03-20",
            "User-Agent": f"flowdsl sync ({self.contact})",
            "Accept": "application/json",
        }

    @property
    def budget(self) -> str:
        """Names the request budget that everybody with this credential shares, without saying the credential."""
        return "pco-" + sha256(f"{self.url}\n{self.token}".encode()).hexdigest()[:24]


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
