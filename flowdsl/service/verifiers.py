"""Whether a webhook was sent by who it says: one verifier a provider, over the raw body, in constant time."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeAlias, cast

from attrs import field, frozen
from standardwebhooks import Webhook as Standard
from standardwebhooks import WebhookVerificationError

from flowdsl.errors import DefinitionError, FlowError

Headers: TypeAlias = Mapping[str, str]
"""Names in any case."""


class Forged(FlowError):
    """Not signed, wrongly signed, or too old. Which of these is for the log, not for who sent it."""


class Verifier(Protocol):
    """Knows how one provider signs."""

    def verify(self, body: bytes, headers: Headers) -> str:
        """The delivery's id: the same when the same thing is delivered again. Raises `Forged`."""
        ...


@frozen
class Secrets:
    """One secret, or two while one replaces the other. None of them is shown."""

    values: tuple[str, ...] = field(repr=False)


def secrets_of(said: str | tuple[str, ...] | Secrets) -> Secrets:
    """Raises `DefinitionError` when there is none, or an empty one: it would sign for everybody."""
    if isinstance(said, Secrets):
        return said
    values = (said,) if isinstance(said, str) else tuple(said)
    if not values or not all(isinstance(value, str) and value.strip() for value in values):
        raise DefinitionError("webhook", "its secret is empty", "Give the provider's secret, from the environment or a file")
    return Secrets(values)


@frozen
class StandardWebhooks:
    """Signed as the Standard Webhooks specification says: id, time and body, HMAC-SHA256. Five minutes old or new at most."""

    secrets: Secrets = field(converter=secrets_of)

    def __attrs_post_init__(self) -> None:
        for secret in self.secrets.values:
            try:
                Standard(secret)
            except Exception:
                raise DefinitionError("webhook", "its secret is no base64", 'A Standard Webhooks secret looks like "whsec_…"') from None

    def verify(self, body: bytes, headers: Headers) -> str:
        plain = {name.lower(): value for name, value in headers.items()}
        why = ""
        for secret in self.secrets.values:
            try:
                Standard(secret).verify(body, plain, json_parse=False)
            except WebhookVerificationError as error:
                why = str(error)
            except Exception:  # what cannot even be read is no signature
                why = "its headers cannot be read"
            else:
                return plain["webhook-id"]
        raise Forged(why)


@frozen
class Signed:
    """Signed with a plain HMAC of the raw body, in one header. `delivery` finds the id in the body, which is signed; headers are not.

    Without it the body's digest is the id: what is sent again byte for byte acts once.
    """

    secrets: Secrets = field(converter=secrets_of)
    header: str = "x-signature"
    algorithm: Literal["sha1", "sha256", "sha512"] = "sha256"
    prefix: str = ""
    delivery: Callable[[Any], str] | None = None

    def verify(self, body: bytes, headers: Headers) -> str:
        said = next((value for name, value in headers.items() if name.lower() == self.header.lower()), None)
        if said is None:
            raise Forged(f"no header {self.header}")
        given = said.strip().encode("utf-8", "backslashreplace")
        fits = [hmac.compare_digest(given, self._sign(secret, body)) for secret in self.secrets.values]  # all of them, whichever fits
        if not any(fits):
            raise Forged(f"the signature in {self.header} does not fit")
        if self.delivery is None:
            return hashlib.sha256(body).hexdigest()
        try:
            return str(self.delivery(json.loads(body)))
        except Exception as error:
            raise Forged(f"signed, and yet it names no delivery ({type(error).__name__})") from error

    def _sign(self, secret: str, body: bytes) -> bytes:
        return f"{self.prefix}{hmac.new(secret.encode(), body, self.algorithm).hexdigest()}".encode()


def planning_center(secret: str | tuple[str, ...]) -> Verifier:
    """Planning Center's `X-PCO-Webhooks-Authenticity`; the deliveries' own ids count, since the headers are not signed."""
    return Signed(secrets_of(secret), "x-pco-webhooks-authenticity", delivery=_planning_center_ids)


def _planning_center_ids(body: Any) -> str:
    ids = [cast("str", one["id"]) for one in body["data"]]
    if not ids or not all(isinstance(id, str) for id in ids):
        raise ValueError("data holds no ids")
    return " ".join(ids)


def full_enrich(api_key: str | tuple[str, ...]) -> Verifier:
    """FullEnrich's `X-Signature-SHA1`, with the API key. It names no delivery: equal bodies are one."""
    return Signed(secrets_of(api_key), "x-signature-sha1", "sha1")


__all__ = ["Forged", "Headers", "Secrets", "Signed", "StandardWebhooks", "Verifier", "full_enrich", "planning_center"]
