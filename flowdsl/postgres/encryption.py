"""Payloads that only holders of a key can read: AES-256-GCM at the edge of the store, each bound to the place that it was written for.

What the database computes on stays as it is: ids, keys, names, steps, times. Without a key nothing here is called for what is written.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
import tomllib
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from attrs import evolve, frozen

from flowdsl.errors import KeyMissing, NotGenuine, StoreError
from flowdsl.journal import OPERATOR, Entry

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from flowdsl.activation import Mail

KEYS: Final = "FLOWDSL_ENCRYPTION_KEYS"
KEY_FILE: Final = "FLOWDSL_ENCRYPTION_KEY_FILE"

MARK: Final = b"\xfeFD\x01"
"""How what is encrypted begins: no UTF-8 text has that first byte, and everything else that is kept is text."""
_NONCE, _TAG = 12, 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,32}")
_KNOWN = 4096
"""Places whose own keys are kept at hand."""
_TEXT: Final = "encrypted:"
_TEXT_BYTES = 2900
"""What is kept of a text: with it the whole still has 4 KiB, at which an audit row cuts it off."""

Place: TypeAlias = tuple[str, ...]
"""What a payload is bound to: the tenant, whose it is (an execution, a correlation key, a schedule), and what of it."""


@frozen(repr=False)
class EncryptionKey:
    """256 bits, and the name under which what was written with them is found again."""

    id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"EncryptionKey({self.id!r})"


class Encryption:
    """The keys of a process: the first writes, all read. Without keys what is written stays plain."""

    def __init__(self, keys: Sequence[EncryptionKey] = ()) -> None:
        self._keys = {key.id: key for key in keys}
        self.on = bool(keys)
        self.current = keys[0].id if keys else None
        self._head = _head(keys[0].id) if keys else b""
        self._ciphers: dict[tuple[str, str, str], tuple[AESGCM, bytes]] = {}
        if keys:
            _library()

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the keys, the one that writes first."""
        return tuple(self._keys)

    def encrypt(self, place: Place, body: bytes) -> bytes:
        """The same bytes for the same body in the same place, so that what is sent again is what was sent; without a key, the body itself."""
        if self.current is None:
            return body
        cipher, secret = self._cipher(self.current, place)
        bound = _bound(place)
        # A keyed hash of place and body, so that no nonce serves two bodies, whatever the state of anybody's source of chance.
        nonce = blake2b(bound + body, key=secret, digest_size=_NONCE).digest()
        return self._head + nonce + cipher.encrypt(nonce, body, bound)

    def decrypt(self, place: Place, body: bytes) -> bytes:
        """What was encrypted for that place; what was never encrypted, as it is. Raises `KeyMissing`, `NotGenuine`."""
        if body[:4] != MARK:
            return body
        id, at = _id_of(body)
        if id not in self._keys:
            raise KeyMissing(id, told(place))
        from cryptography.exceptions import InvalidTag

        cipher, _ = self._cipher(id, place)
        try:
            return cipher.decrypt(body[at : at + _NONCE], bytes(body[at + _NONCE :]), _bound(place))
        except (InvalidTag, ValueError):
            raise NotGenuine(id, told(place)) from None

    def written_now(self, body: bytes) -> bool:
        """Whether it is as it would be written today: with the first key, or plain where there is none."""
        return body.startswith(self._head) if self.on else body[:4] != MARK

    # Texts: what the database keeps as text

    def encrypt_text(self, place: Place, text: str) -> str:
        if not self.on:
            return text
        cut = text.encode(errors="backslashreplace")[:_TEXT_BYTES]
        return _TEXT + base64.b64encode(self.encrypt(place, cut)).decode()

    def decrypt_text(self, place: Place, text: str) -> str:
        """Raises `KeyMissing`, `NotGenuine`."""
        if not text.startswith(_TEXT):
            return text
        try:
            body = base64.b64decode(text.removeprefix(_TEXT), validate=True)
        except ValueError:
            return text  # somebody's own words
        return self.decrypt(place, body).decode(errors="replace")

    def shown_text(self, place: Place, text: str | None) -> str | None:
        """The same for who only shows it: without the key it says so."""
        if text is None or not text.startswith(_TEXT):
            return text
        try:
            return self.decrypt_text(place, text)
        except StoreError as error:
            return f"({error})"

    # What has many bodies

    def entries(self, tenant: str, execution: str, entries: Sequence[Entry]) -> list[Entry]:
        """Entries as they were recorded. Raises `KeyMissing`, `NotGenuine`."""
        return [
            evolve(one, body=self.decrypt(entry_of(tenant, execution, one.position, one.kind, one.step), one.body)) if one.body[:4] == MARK else one
            for one in entries
        ]

    def mails(self, tenant: str, execution: str, mails: Sequence[Mail]) -> list[Mail]:
        """Mail as it was sent. Raises `KeyMissing`, `NotGenuine`."""
        return [
            evolve(mail, body=self.decrypt(mail_of(tenant, mail.key or execution, mail.kind, mail.name), mail.body))
            if mail.body[:4] == MARK
            else mail
            for mail in mails
        ]

    # Inside

    def _cipher(self, id: str, place: Place) -> tuple[AESGCM, bytes]:
        """A key for what belongs together, made of the named one: none ever encrypts so much that chance could repeat a nonce."""
        whose = (id, place[0], place[1])
        found = self._ciphers.get(whose)
        if found is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            made = hmac.digest(self._keys[id].secret, b"flowdsl payloads" + _bound(place[:2]), "sha512")
            if len(self._ciphers) >= _KNOWN:
                del self._ciphers[next(iter(self._ciphers))]
            found = self._ciphers[whose] = AESGCM(made[:32]), made[32:]
        return found


PLAIN: Final = Encryption()
"""Without keys: it writes plain, reads plain, and says which key is missing."""


# Places


def request_of(tenant: str, execution: str) -> Place:
    return tenant, execution, "request"


def exit_of(tenant: str, execution: str) -> Place:
    """Of an execution's row, and of the mail that tells its parent."""
    return tenant, execution, "exit"


def entry_of(tenant: str, execution: str, position: int, kind: int, step: str) -> Place:
    return operator_of(tenant, execution) if kind == OPERATOR else (tenant, execution, "entry", str(position), str(kind), step)


def operator_of(tenant: str, execution: str) -> Place:
    """Of an intervention's entry: its position is the database's to say."""
    return tenant, execution, "operator"


def mail_of(tenant: str, to: str, kind: str, name: str) -> Place:
    """`to`: the correlation key that it was sent to, or else the execution. The mail of an exit is bound to whose exit it is."""
    return (tenant, name, "exit") if kind == "exit" else (tenant, _folded(to), "mail", kind, name)


def heartbeat_of(tenant: str, execution: str, place: str) -> Place:
    return tenant, execution, "heartbeat", place


def schedule_of(tenant: str, schedule: str) -> Place:
    return tenant, schedule, "schedule"


def webhook_of(tenant: str, endpoint: str, delivery: str) -> Place:
    return tenant, endpoint, "webhook", delivery


def outcome_of(tenant: str, endpoint: str, delivery: str) -> Place:
    """What came of a webhook."""
    return (*webhook_of(tenant, endpoint, delivery), "outcome")


def audit_of(tenant: str, execution: str | None, event: str) -> Place:
    return tenant, execution or "", "audit", event


def text_of(tenant: str, execution: str, what: str) -> Place:
    """`what`: cause or note."""
    return tenant, execution, "text", what


_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _folded(to: str) -> str:
    """The database takes an id in either case for the same."""
    return to.lower() if _ID.fullmatch(to) else to


def told(place: Place) -> str:
    """A place, for a person."""
    _, whose, what, *rest = place
    match what:
        case "entry":
            return f"execution {whose}: position {rest[0]} of its journal"
        case "mail":
            return f"{rest[0]} {rest[1]} to {whose}" if rest[0] != rest[1] else f"{rest[0]} to {whose}"
        case "schedule":
            return f"the input of schedule {whose}"
        case "webhook":
            return f"webhook {whose} {rest[0]}"
        case "audit":
            return f"the facts of {rest[0]} {whose}".rstrip()
        case "text":
            return f"execution {whose}: its {rest[0]}"
        case "operator":
            return f"execution {whose}: an intervention"
        case _:
            return f"execution {whose}: its {what}"


def _bound(place: Place) -> bytes:
    """Each part behind its length: no two places have the same bytes."""
    return "".join([f"{len(part)}:{part}" for part in place]).encode(errors="surrogatepass")


def _head(id: str) -> bytes:
    return MARK + bytes([len(id)]) + id.encode()


def _id_of(body: bytes) -> tuple[str, int]:
    """The name of its key, and where what follows begins. Of something that only looks like ours the name is made of what stands there."""
    end = 5 + (body[4] if len(body) > 4 else 0)
    return bytes(body[5:end]).decode("ascii", "backslashreplace"), end


def encrypted_with(body: bytes) -> str | None:
    """The name of the key that it is encrypted with; None for what is plain."""
    return _id_of(body)[0] if body[:4] == MARK else None


def is_encrypted(text: str | None) -> bool:
    """Whether it is a text that only a holder of its key can read."""
    return text is not None and text.startswith(_TEXT)


def head_of(id: str) -> bytes:
    """How what was written with that key begins."""
    return _head(id)


# Where keys come from


def keys_of(text: str, source: str) -> list[EncryptionKey]:
    """Keys as they are written down: `id=base64`, the one that writes first, with blanks, commas or line ends between. Raises `StoreError`."""
    keys: list[EncryptionKey] = []
    for line in text.splitlines():
        for word in re.split(r"[\s,]+", line.partition("#")[0].strip()):
            if word:
                keys.append(_key(word, f"key {len(keys) + 1} of {source}"))
    doubled = {key.id for key in keys if [one.id for one in keys].count(key.id) > 1}
    if doubled:
        raise StoreError(f"{source} names two keys {min(doubled)!r}", "Give each key a name of its own: what was written is found again by it")
    return keys


def _key(word: str, which: str) -> EncryptionKey:
    id, _, secret = word.partition("=")
    try:
        found = base64.b64decode(secret, validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if not _NAME.fullmatch(id) or len(found) != 32:  # never what was said: it may be the key
        raise StoreError(f"{which} is not a name, '=' and 32 bytes in base64", "Make one with `flowdsl encryption new-key`")
    return EncryptionKey(id, found)


def from_surroundings(file: str = "") -> Encryption:
    """With the keys of the environment, or of the file named there, by the caller, or by `[encryption] key_file` in ./flowdsl.toml.

    Raises `StoreError`.
    """
    said, named = os.environ.get(KEYS, ""), os.environ.get(KEY_FILE, "")
    if said.strip() and named:
        raise StoreError(f"both {KEYS} and {KEY_FILE} are set", "Keep one of them")
    if said.strip():
        return Encryption(_some(keys_of(said, KEYS), KEYS))
    path = named or file or _of_settings(Path("flowdsl.toml"))
    if not path:
        return PLAIN
    source = f"{path} ({KEY_FILE})" if named else path
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"the encryption keys in {source} cannot be read ({_why(error)})", "Name the file with the keys") from None
    return Encryption(_some(keys_of(text, source), source))


def _of_settings(file: Path) -> str:
    try:
        section: Any = tomllib.loads(file.read_text(encoding="utf-8")).get("encryption", {}) if file.is_file() else {}
    except (ValueError, OSError) as error:
        raise StoreError(f"{file} cannot be read ({error})", "Correct it, or take it away") from error
    path: Any = section.get("key_file", "") if isinstance(section, dict) else None
    if not isinstance(path, str):
        raise StoreError(f"{file}: encryption.key_file is no text", 'Write [encryption] and below it key_file = "…"')
    return path


def _some(keys: list[EncryptionKey], source: str) -> list[EncryptionKey]:
    if not keys:  # an empty file is a secret that was not mounted: to write plain then would be the worst answer
        raise StoreError(f"there is no encryption key in {source}", "Make one with `flowdsl encryption new-key`, or take the setting away")
    return keys


def _why(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is no text"


def _library() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers import aead
    except ImportError:
        raise StoreError("there are encryption keys, and the library for them is not installed", "Run `pip install 'flowdsl[encryption]'`") from None
    return aead


__all__ = [
    "KEYS",
    "KEY_FILE",
    "MARK",
    "PLAIN",
    "Encryption",
    "EncryptionKey",
    "Place",
    "audit_of",
    "encrypted_with",
    "entry_of",
    "exit_of",
    "from_surroundings",
    "head_of",
    "heartbeat_of",
    "is_encrypted",
    "keys_of",
    "mail_of",
    "operator_of",
    "outcome_of",
    "request_of",
    "schedule_of",
    "text_of",
    "told",
    "webhook_of",
]  # fmt: skip
