"""How much is open in a store, in numbers: for whom watches. Read from indexes on what is open, whatever has ended beside it."""

from __future__ import annotations

from attrs import frozen

from flowdsl.postgres.store import Store

REPLY = 3.0
"""Seconds without an answer after which the numbers are given up."""


@frozen
class Waiting:
    """Executions of a workflow in a state; `due` of them could be worked on now, the oldest for that many seconds."""

    workflow: str
    status: str
    count: int
    due: int
    oldest: float


@frozen
class Backlog:
    """`late`: seconds by which schedules and webhooks are behind. `unmatched`: signals that nobody waits for, counted up to 10,001."""

    executions: tuple[Waiting, ...]
    workers: int
    schedules_late: float
    webhooks: int
    webhooks_late: float
    unmatched: int


async def backlog(store: Store) -> Backlog:
    """What is open now. Raises what the driver raises: a store that is away is not waited for."""
    async with store.connection() as connection:
        rows = await connection.fetch(_EXECUTIONS, timeout=REPLY)
        rest = await connection.fetchrow(_REST, timeout=REPLY)
    return Backlog(
        tuple(Waiting(row["workflow"], row["status"], row["count"], row["due"], row["oldest"]) for row in rows),
        rest["workers"], rest["schedules_late"], rest["webhooks"], rest["webhooks_late"], rest["unmatched"],
    )  # fmt: skip


# Each part is read from an index of its own: executions_waiting, executions_owner, executions_dead.
_EXECUTIONS = """
select workflow, status, sum(n)::integer as count, sum(due)::integer as due,
       coalesce(greatest(0, extract(epoch from statement_timestamp() - min(since))), 0)::float8 as oldest
  from (
    select workflow, status, count(*) as n, count(*) filter (where wake <= statement_timestamp() and status <> 'blocked') as due,
           min(wake) filter (where wake <= statement_timestamp() and status <> 'blocked') as since
      from flowdsl.executions where owner is null and status in ('running', 'suspended', 'blocked') group by workflow, status
    union all
    select workflow, status, count(*), 0, null from flowdsl.executions where owner is not null group by workflow, status
    union all
    select workflow, status, count(*), 0, null from flowdsl.executions
     where status in ('failed', 'blocked') and status = 'failed' and discarded is null group by workflow, status
  ) as parts group by workflow, status
"""

_REST = """
select (select count(*)::integer from flowdsl.workers where not gone and beat > clock_timestamp() - lease) as workers,
       (select coalesce(greatest(0, extract(epoch from statement_timestamp() - min(due))), 0)::float8
          from flowdsl.schedules where not paused and due is not null) as schedules_late,
       (select count(*)::integer from flowdsl.webhooks where due is not null) as webhooks,
       (select coalesce(greatest(0, extract(epoch from statement_timestamp() - min(due))), 0)::float8
          from flowdsl.webhooks where due is not null) as webhooks_late,
       (select count(*)::integer from (select 1 from flowdsl.unmatched limit 10001) as counted) as unmatched
"""

__all__ = ["Backlog", "Waiting", "backlog"]
