"""The request budget of a credential: one row in Postgres, from which every process draws before it asks."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from attrs import frozen

from adapters.planning_center.quota import Quota
from domains.sync.failures import RateLimited
from flowdsl import Failure, Result, Success, this_attempt

PATIENCE = 25.0
"""Seconds that an attempt waits for its turn; longer waits are left to the retry policy, which holds nothing meanwhile."""


@frozen
class Grant:
    """`count` requests that may be made now. `at` is the database's time: what they bring is at least as new.

    `known` is the quota as our row has it, with our own requests; `others` is what the source counted beside them.
    """

    count: int
    at: datetime
    known: Quota
    others: int


async def draw(budget: str, wanted: int, share: float) -> Result[Grant, RateLimited]:
    """Up to `wanted` requests, at least one; waits for its turn. `share` of the quota may be used up."""
    waited = 0.0
    while True:
        async with this_attempt().connection() as connection:
            row = await connection.fetchrow("select * from sync.draw($1, $2, $3)", budget, wanted, share)
        if row["granted"]:
            return Success(Grant(row["granted"], row["at"], Quota(row["quota"], row["period"], row["ours"]), row["others"]))
        wait = max(0.01, row["wait"])
        if waited + wait > PATIENCE:
            return Failure(RateLimited(timedelta(seconds=wait)))
        waited += wait
        await asyncio.sleep(wait)


async def learn(budget: str, grant: Grant, seen: Quota) -> None:
    """Corrects the row if the source counts otherwise: another quota, or more or fewer requests of others."""
    others = max(0, seen.count - grant.known.count)
    surprising = abs(others - grant.others) > max(2, seen.limit // 10)
    if not surprising and (seen.limit, seen.period) == (grant.known.limit, grant.known.period):
        return
    async with this_attempt().connection() as connection:
        await connection.execute("select sync.learn($1, $2, $3, $4, null)", budget, seen.limit, seen.period, others if surprising else None)


async def block(budget: str, wait: timedelta) -> None:
    """Nobody asks for so long: the source has said so."""
    async with this_attempt().connection() as connection:
        await connection.execute("select sync.learn($1, null, null, null, $2)", budget, wait.total_seconds())
