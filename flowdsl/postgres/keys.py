"""Keys for the service: made, listed, revoked and recognized. A key is `flow_<id>_<secret>`; the secret is shown once and kept nowhere."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, cast, get_args

from attrs import frozen

from flowdsl.codec import encode_plain
from flowdsl.errors import FlowError, NotFound
from flowdsl.postgres.store import Store

Role: TypeAlias = Literal["viewer", "operator", "admin"]

_FORM: Final = re.compile(r"flow_([0-9a-z]{12})_([A-Za-z0-9_-]{43})")
_NOBODYS: Final = hashlib.sha256(b"nobody's").digest()
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # none that looks like another


@frozen
class Key:
    """What is known of a key. `used` is true to about a minute."""

    id: str
    tenant: str
    role: Role
    name: str
    made: datetime
    expires: datetime | None
    revoked: datetime | None
    used: datetime | None


class BadKey(FlowError):
    """A wish for a key that cannot be made."""


async def make(store: Store, tenant: str, role: Role, name: str, *, lasts: timedelta | None = None, by: str = "") -> tuple[Key, str]:
    """A new key, and its only copy in plain text. Audited. Raises `BadKey`."""
    if role not in get_args(Role):
        raise BadKey(f"no role {role!r}: take one of {', '.join(get_args(Role))}")
    for what, text in (("tenant", tenant), ("name", name)):
        if not (0 < len(text) <= 200 and text.isprintable()):
            raise BadKey(f"the {what} {text!r} of a key is 1 to 200 printable characters")
    if "/" in tenant:
        raise BadKey(f"the tenant {tenant!r} holds a /, which ends a tenant's name in what is kept of deliveries: leave it out")
    if lasts is not None and lasts <= timedelta():
        raise BadKey("a key lasts longer than no time")
    id, secret = "".join(secrets.choice(_ALPHABET) for _ in range(12)), secrets.token_urlsafe(32)
    async with store.connection() as connection, connection.transaction():
        row = await connection.fetchrow(
            "insert into flowdsl.keys (id, tenant, role, name, digest, expires) values ($1, $2, $3, $4, $5, clock_timestamp() + $6) returning *",
            id,
            tenant,
            role,
            name,
            _digest(secret),
            lasts,
        )
        await _audited(connection, tenant, "KEY_MADE", {"key": id, "role": role, "name": name, "by": by})
    return _key(row), f"flow_{id}_{secret}"


async def listed(store: Store, tenant: str | None = None) -> Sequence[Key]:
    """The keys of a tenant, or of all; the newest first."""
    rows = await store.again("select * from flowdsl.keys where $1::text is null or tenant = $1 order by made desc, id", tenant)
    return [_key(row) for row in rows]


async def revoke(store: Store, id: str, *, tenant: str | None = None, by: str = "") -> Key:
    """Lets a key open nothing any more, within seconds. To repeat it changes nothing. Audited. Raises `NotFound`."""
    async with store.connection() as connection, connection.transaction():
        row = await connection.fetchrow("select * from flowdsl.keys where id = $1 and ($2::text is null or tenant = $2) for update", id, tenant)
        if row is None:
            raise NotFound("key", id, ())
        if row["revoked"] is None:
            row = await connection.fetchrow("update flowdsl.keys set revoked = clock_timestamp() where id = $1 returning *", id)
            await _audited(connection, row["tenant"], "KEY_REVOKED", {"key": id, "by": by})
    return _key(row)


async def recognized(store: Store, plain: str) -> Key | None:
    """The key that this is, if it opens anything now. An unknown one takes as long to refuse as a wrong one."""
    form = _FORM.fullmatch(plain)
    id, secret = (form[1], form[2]) if form is not None else ("", "")
    rows = await store.again(
        "select k.*, revoked is not null or coalesce(expires <= clock_timestamp(), false) as shut from flowdsl.keys k where id = $1",
        id,
    )
    fits = hmac.compare_digest(_digest(secret), rows[0]["digest"] if rows else _NOBODYS)
    return _key(rows[0]) if rows and fits and not rows[0]["shut"] else None


async def note_use(store: Store, ids: Sequence[str]) -> None:
    """Remembers that they were used just now."""
    await store.again(
        "update flowdsl.keys set used = clock_timestamp() where id = any($1) and (used is null or used < clock_timestamp() - interval '1 min')",
        list(ids),
    )


def _digest(secret: str) -> bytes:
    """256 random bits need no slow hash: nobody can try them all."""
    return hashlib.sha256(secret.encode()).digest()


async def _audited(connection: Any, tenant: str, event: str, facts: dict[str, str]) -> None:
    await connection.execute("select flowdsl.audited($1, null, $2, $3)", tenant, event, encode_plain(facts))


def _key(row: Any) -> Key:
    return Key(row["id"], row["tenant"], cast("Role", row["role"]), row["name"], row["made"], row["expires"], row["revoked"], row["used"])


__all__ = ["BadKey", "Key", "Role", "listed", "make", "note_use", "recognized", "revoke"]
