"""A deep look at a live store: the invariants, checked by code that shares nothing with what writes.

Nothing is locked and nothing is written. Executions are read in batches, newest first, each batch in one short transaction of its own that is
repeatable read and read only: what belongs together is of one moment, and no snapshot is held for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
from attrs import define, field

from flowdsl.binding import Deployment
from flowdsl.postgres.deep import journals, mail, states, whole
from flowdsl.postgres.deep.refold import refolded
from flowdsl.postgres.deep.rows import ENDED, OPERATOR, Batch, Finding, read
from flowdsl.postgres.encryption import PLAIN, Encryption
from flowdsl.postgres.store import Connection

NEEDS_CODE = {
    7: "folding what has ended gives the stored exit: name a deployment (module:deployment)",
    8: "what is open fits the code: name a deployment (module:deployment)",
}
NOT_HERE = {
    9: "each success has a call: only a ledger of the calls knows; `flowdsl chaos` keeps one",
    10: "one effect a key: only a ledger of the effects knows; `flowdsl chaos` keeps one",
    11: "one row a transactional success: only the application knows its rows; `flowdsl chaos` keeps such rows",
}


@define
class Report:
    """What a deep look saw, and what is wrong. `skipped`: invariants that it could not check, and why."""

    executions: int = 0
    entries: int = 0
    complete: bool = True
    """Whether every execution was looked at."""
    findings: list[Finding] = field(factory=list[Finding])
    skipped: dict[int, str] = field(factory=dict[int, str])


async def look(
    connection: Connection,
    deployment: Deployment | None = None,
    *,
    limit: int = 10_000,
    batch: int = 200,
    patience: float = 30.0,
    timeout: float = 30.0,
    encryption: Encryption = PLAIN,
) -> Report:
    """Looks at the newest `limit` executions, and about as many rows of what belongs to none of them.

    `patience`: seconds beyond two leases after which something that nobody takes is a finding. `timeout`: seconds that a statement may take; what
    did not come in time is listed as skipped. Raises `KeyMissing` when something is encrypted with a key that is not in `encryption`.
    """
    report = Report(skipped={**NOT_HERE, **({} if deployment else NEEDS_CODE)})
    settled: dict[UUID, Any] = {}
    after: tuple[Any, UUID] | None = None
    while report.executions < limit:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await _bounded(connection, timeout)
            page = await _page(connection, after, min(batch, limit - report.executions))
            if not page:
                break
            found = await read(connection, [row["id"] for row in page], encryption)
            report.findings += _findings(found, timedelta(seconds=patience))
            if deployment is not None:
                report.findings += await refolded(connection, found, deployment, encryption)
        settled |= {id: _settled(found, id) for id, row in found.executions.items() if row["status"] in ENDED}
        report.executions += len(page)
        report.entries += sum(map(len, found.journals.values()))
        after = page[-1]["started"], page[-1]["id"]
    else:
        report.complete = await connection.fetchval("select count(*) from (select from flowdsl.executions limit $1) x", limit + 1) <= limit
    await _wholes(connection, report, limit, timeout)
    await _still_settled(connection, report, settled, batch, timeout, encryption)
    return report


async def _bounded(connection: Connection, timeout: float) -> None:
    await connection.execute(f"set local statement_timeout = {int(timeout * 1000)}")


async def _page(connection: Connection, after: tuple[Any, UUID] | None, size: int) -> Sequence[Any]:
    if after is None:
        return list(await connection.fetch("select id, started from flowdsl.executions order by started desc, id desc limit $1", size))
    query = "select id, started from flowdsl.executions where started <= $1 and (started, id) < ($1, $2) order by started desc, id desc limit $3"
    return list(await connection.fetch(query, *after, size))


def _findings(batch: Batch, patience: timedelta) -> list[Finding]:
    checks = (*journals.CHECKS, *states.CHECKS, *mail.CHECKS)
    return [*(one for check in checks for one in check(batch)), *states.i4_nothing_waits_for_long(batch, patience)]


async def _wholes(connection: Connection, report: Report, limit: int, timeout: float) -> None:
    """The tables as wholes, each in a transaction of its own."""
    for check in whole.CHECKS:
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                await _bounded(connection, timeout)
                report.findings += [one async for one in check(connection, limit)]
        except asyncpg.QueryCanceledError:
            number = int(check.__name__[1:].partition("_")[0])
            report.skipped[number] = f"{check.__doc__} This took longer than {timeout:.0f} s: look when less is going on, or lower the limit"
    report.findings += [one async for one in whole.i20_chains(connection, limit)]


def _settled(batch: Batch, id: UUID) -> Any:
    row = batch.executions[id]
    return row["status"], row["exit"], row["epoch"], len(batch.journal(id))


async def _still_settled(connection: Connection, report: Report, settled: dict[UUID, Any], size: int, timeout: float, encryption: Encryption) -> None:
    """I2: what had ended at the first glance is the same at the second, unless a person intervened or it was deleted."""
    ids = list(settled)
    for start in range(0, len(ids), size):
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await _bounded(connection, timeout)
            found = await read(connection, ids[start : start + size], encryption)
        for id in found.executions:
            intervened = any(one["kind"] == OPERATOR for one in found.journal(id)[settled[id][3] :])
            if not intervened and _settled(found, id) != settled[id]:
                what = f"it had ended, and changed while we looked: from {settled[id]} to {_settled(found, id)}"
                report.findings.append(Finding(2, str(id), what, "A worker or a person wrote past its end: report this with the journal"))


__all__ = ["Finding", "Report", "look"]
