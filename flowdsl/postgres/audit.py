"""The audit chain of each tenant: sealed by workers, verified and anchored by whoever wants to know.

Verification shares nothing with what seals: it reads rows and computes each hash itself. What a chain alone cannot show (a tail that was cut off,
a chain that was written anew from the start) is shown by anchors: heads that were stored elsewhere before.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import struct
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import structlog
from attrs import define, field, frozen

from flowdsl.errors import StoreError
from flowdsl.postgres.store import Connection, Store, lost

log = structlog.get_logger("flowdsl")

AT_ONCE = 1000
ROUNDS = 20
LATE = 60.0
"""Seconds after which a row that nobody has sealed is a finding."""


# Sealing


async def seal(store: Store) -> int:
    """Numbers and chains what has no number yet, of every tenant; gives the count. Of several at once each tenant has one that does it.

    A worker calls this at each look around. What a tenant's broken chain refuses is logged, and holds up no other tenant.
    """
    sealed = 0
    for row in await store.again("select * from flowdsl.unsealed() as tenant"):
        for _ in range(ROUNDS):
            try:
                count = (await store.again("select flowdsl.seal($1, $2)", row["tenant"], AT_ONCE))[0][0]
            except asyncpg.PostgresError as error:
                if lost(error):
                    raise
                log.error("audit.unsealed", tenant=row["tenant"], error=str(error), hint="flowdsl audit verify")
                break
            sealed += count
            if count < AT_ONCE:
                break
    return sealed


# Anchors


@frozen
class Anchor:
    """The head of a tenant's chain at a time: its last number, and that row's hash."""

    tenant: str
    seq: int
    hash: bytes
    at: str

    def signed(self, key: bytes | None) -> str:
        """One line of JSON; with a key it carries an HMAC-SHA256 of the rest."""
        facts: dict[str, Any] = {"tenant": self.tenant, "seq": self.seq, "hash": self.hash.hex(), "at": self.at}
        return json.dumps(facts | ({"hmac": _hmac(facts, key)} if key else {}), ensure_ascii=False)


def _hmac(facts: Mapping[str, Any], key: bytes) -> str:
    return hmac.new(key, json.dumps(facts, sort_keys=True, separators=(",", ":")).encode(), sha256).hexdigest()


def read_anchors(path: Path, key: bytes | None) -> list[Anchor]:
    """The anchors of a file, oldest first. Raises `StoreError` for a line that is none, or whose signature is not by the key."""
    anchors: list[Anchor] = []
    for number, line in enumerate(_lines(path), 1):
        try:
            facts = json.loads(line)
            signature = facts.pop("hmac", None)
            anchor = Anchor(str(facts["tenant"]), int(facts["seq"]), bytes.fromhex(facts["hash"]), str(facts["at"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"line {number} of {path} is no anchor", "Take another copy of the file: each line is one JSON object") from error
        if key is not None and not hmac.compare_digest(signature or "", _hmac(facts, key)):
            raise StoreError(f"line {number} of {path} is not signed with this key", "Take another copy of the file, or the key it was signed with")
        anchors.append(anchor)
    return anchors


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]  # behind the last line end there is nothing, or what a crash left of a line
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"the anchors in {path} cannot be read ({error})", "Name the file that `flowdsl audit anchor --file` wrote") from error


def add_anchors(path: Path, anchors: Iterable[Anchor], key: bytes | None) -> None:
    """Appends to the file, on the disk when this returns. The half of a line that a crash left is taken away first: it was never told."""
    with path.open("a+b") as file:
        file.seek(0)
        before = file.read()
        if not before.endswith(b"\n"):
            file.truncate(before.rfind(b"\n") + 1)
        file.write("".join(anchor.signed(key) + "\n" for anchor in anchors).encode())
        file.flush()
        os.fsync(file.fileno())


# Verification


@define
class Verdict:
    """What was found of one tenant's chain: `rows` that fit, and what does not."""

    tenant: str
    rows: int = 0
    seq: int = 0
    hash: bytes = b""
    unsealed: int = 0
    wrong: list[str] = field(factory=list[str])

    def anchor(self, at: datetime | None = None) -> Anchor:
        return Anchor(self.tenant, self.seq, self.hash, (at or datetime.now(UTC)).isoformat(timespec="seconds"))


async def verify(connection: Connection, tenant: str, anchors: Sequence[Anchor] = (), *, since: Anchor | None = None) -> Verdict:
    """Computes a tenant's chain anew, from the first row (or from an anchor on) to the head, and compares it with what is stored and anchored."""
    verdict = Verdict(tenant, seq=since.seq if since else 0, hash=since.hash if since else genesis(tenant))
    expected = {anchor.seq: anchor for anchor in anchors if anchor.tenant == tenant}
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        async for row in _sealed(connection, tenant, verdict.seq):
            if not _follows(verdict, row):
                break
            anchored = expected.get(verdict.seq)
            if anchored is not None and anchored.hash != verdict.hash:
                verdict.wrong.append(f"row {verdict.seq} is not the one that was anchored at {anchored.at}: the chain was written anew")
        if not verdict.wrong:
            await _compare_head(connection, verdict, max(expected.values(), key=lambda one: one.seq, default=None))
        waiting = await connection.fetchrow(
            "select count(*) as rows, extract(epoch from clock_timestamp() - min(at))::float8 as age from flowdsl.audit"
            " where tenant = $1 and seq is null",
            tenant,
        )
    verdict.unsealed = waiting["rows"]
    if waiting["rows"] and waiting["age"] > LATE:
        verdict.wrong.append(
            f"{waiting['rows']} rows have waited {waiting['age']:.0f} s to be sealed: start a worker, or look into its log for audit.unsealed"
        )
    return verdict


def _follows(verdict: Verdict, row: Any) -> bool:
    """Takes the next row of the chain; says what is wrong with it."""
    seq, what = row["seq"], f"{row['event']} of {row['at'].isoformat()}"
    if seq != verdict.seq + 1:
        verdict.wrong.append(f"row {verdict.seq + 1} is missing: the next is {seq} ({what})")
    elif row["prev"] != verdict.hash:
        verdict.wrong.append(
            f"row {seq} ({what}) does not follow row {seq - 1}: a row was put in, taken out or moved, or row {seq - 1} was written anew"
        )
    elif row["hash"] != chained(verdict.hash, row):
        verdict.wrong.append(f"row {seq} ({what}) was changed after it was sealed")
    else:
        verdict.rows, verdict.seq, verdict.hash = verdict.rows + 1, seq, row["hash"]
        return True
    return False


async def _compare_head(connection: Connection, verdict: Verdict, anchor: Anchor | None) -> None:
    head = await connection.fetchrow("select seq, hash from flowdsl.audit_heads where tenant = $1", verdict.tenant)
    if anchor is not None and anchor.seq > verdict.seq:
        verdict.wrong.append(f"the chain ends at row {verdict.seq}, and row {anchor.seq} was anchored at {anchor.at}: its tail was cut off")
    if head is None and verdict.seq:
        verdict.wrong.append("the head of the chain is missing")
    elif head is not None and (head["seq"], head["hash"]) != (verdict.seq, verdict.hash):
        cut = f"its last row is {verdict.seq}: the tail was cut off" if head["seq"] > verdict.seq else "it is not that of the last row"
        verdict.wrong.append(f"the head names row {head['seq']}, and {cut}")


async def _sealed(connection: Connection, tenant: str, seq: int) -> AsyncGenerator[Any]:
    """The rows behind that number, page by page: a cursor would keep the plan of its first row."""
    while True:
        page = await connection.fetch(
            "select id, tenant, execution, event, facts, at, seq, prev, hash from flowdsl.audit where tenant = $1 and seq > $2"
            " order by seq limit 2000",
            tenant,
            seq,
        )
        for row in page:
            yield row
        if len(page) < 2000:
            return
        seq = page[-1]["seq"]
        await asyncio.sleep(0)


def genesis(tenant: str) -> bytes:
    """What the first row of a tenant names as the one before it."""
    return sha256(b"flowdsl audit of " + tenant.encode()).digest()


def chained(prev: bytes, row: Mapping[str, Any]) -> bytes:
    """The hash of a row, after that one: over its fields, each behind its length."""
    return sha256(b"".join(_lengths(prev, row))).digest()


def _lengths(prev: bytes, row: Mapping[str, Any]) -> Iterator[bytes]:
    execution: UUID | None = row["execution"]
    at: datetime = row["at"].astimezone(UTC)
    for part in (
        prev,
        row["tenant"].encode(),
        struct.pack(">q", row["seq"]),
        struct.pack(">q", row["id"]),
        f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond:06d}Z".encode(),
        None if execution is None else execution.bytes,
        row["event"].encode(),
        bytes(row["facts"]),
    ):
        yield struct.pack(">i", -1) if part is None else struct.pack(">i", len(part)) + part


async def tenants(connection: Connection) -> list[str]:
    """Whose chain there is, or should be."""
    rows = await connection.fetch(
        """
        with recursive whose as (
          (select tenant from flowdsl.audit order by tenant limit 1)
          union all
          select (select a.tenant from flowdsl.audit a where a.tenant > w.tenant order by a.tenant limit 1) from whose w where w.tenant is not null)
        select tenant from whose where tenant is not null union select tenant from flowdsl.audit_heads order by 1
        """
    )
    return [row["tenant"] for row in rows]


__all__ = ["Anchor", "Verdict", "add_anchors", "chained", "genesis", "read_anchors", "seal", "tenants", "verify"]
