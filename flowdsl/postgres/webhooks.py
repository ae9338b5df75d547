"""Webhooks as they are kept: stored before anybody is told that they came, acted on after that, once each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final

from attrs import frozen

from flowdsl.postgres.encryption import outcome_of, webhook_of
from flowdsl.postgres.store import Store

TRIES: Final = 12
"""Times that a webhook is tried: over about a day. After that a person has to look."""


@frozen
class Received:
    """One delivery. `endpoint` is the webhook's name; `due` is None when it was acted on, or given up; `outcome` says which."""

    id: int
    tenant: str
    endpoint: str
    delivery: str
    body: bytes
    at: datetime
    tries: int
    due: datetime | None
    outcome: str | None


async def keep(store: Store, tenant: str, endpoint: str, delivery: str, body: bytes) -> bool:
    """Stores a delivery. False: it was stored before. To repeat it changes nothing."""
    rows = await store.again(
        "insert into flowdsl.webhooks (tenant, endpoint, delivery, body) values ($1, $2, $3, $4)"
        " on conflict (tenant, endpoint, delivery) do nothing returning id",
        tenant,
        endpoint,
        delivery,
        store.encryption.encrypt(webhook_of(tenant, endpoint, delivery), body),
    )
    return bool(rows)


async def act(store: Store, endpoints: Sequence[str], on: Callable[[Received], Awaitable[str]], *, limit: int = 32) -> int:
    """Acts on what is due, oldest first; others leave alone what is being acted on here. Gives how many.

    What `on` returns is the outcome. What it raises is kept too, and it is tried again later: what it does must be idempotent.
    """
    async with store.connection() as connection, connection.transaction():
        rows = await connection.fetch(
            "select * from flowdsl.webhooks where due <= statement_timestamp() and endpoint = any($1)"
            " order by due, id limit $2 for update skip locked",
            list(endpoints),
            limit,
        )
        for row in rows:
            try:
                outcome, done = await on(_received(store, row)), True
            except Exception as error:
                outcome, done = f"{type(error).__name__}: {error}", False
            await connection.execute(
                "update flowdsl.webhooks set tries = tries + 1, outcome = $2,"
                " due = case when not $3 and tries + 1 < $4 then clock_timestamp() + make_interval(secs => 5 * 2 ^ tries) end where id = $1",
                row["id"],
                store.encryption.encrypt_text(outcome_of(row["tenant"], row["endpoint"], row["delivery"]), outcome.replace("\0", "\\0")[:2000]),
                done,
                TRIES,
            )
    return len(rows)


async def again(store: Store, tenant: str, id: int) -> bool:
    """Lets a delivery be acted on once more, now. False: there is none of that number."""
    rows = await store.again("update flowdsl.webhooks set due = clock_timestamp(), tries = 0 where id = $1 and tenant = $2 returning id", id, tenant)
    return bool(rows)


async def received(store: Store, tenant: str, *, limit: int = 50, before: int | None = None) -> list[Received]:
    """What came, the newest first; `before`: only what came before that one."""
    rows = await store.again(
        "select * from flowdsl.webhooks where tenant = $1"
        + ("" if before is None else " and (at, id) < ((select w.at from flowdsl.webhooks w where w.id = $2), $2)")
        + f" order by at desc, id desc limit {int(limit)}",
        *((tenant,) if before is None else (tenant, before)),
    )
    return [_received(store, row) for row in rows]


def _received(store: Store, row: Any) -> Received:
    """Raises `KeyMissing`, `NotGenuine`."""
    body = store.encryption.decrypt(webhook_of(row["tenant"], row["endpoint"], row["delivery"]), row["body"])
    outcome = store.encryption.shown_text(outcome_of(row["tenant"], row["endpoint"], row["delivery"]), row["outcome"])
    kept: dict[str, Any] = {**dict(row), "body": body, "outcome": outcome}
    return Received(**kept)


__all__ = ["TRIES", "Received", "act", "again", "keep", "received"]
