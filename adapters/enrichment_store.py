"""Subscribers, jobs and batches in Postgres."""

from __future__ import annotations

import json
import math
from typing import Any, Never

from attrs import asdict

from adapters.fullenrich.settings import ways
from domains.enrichment import activities
from domains.enrichment.addresses import email_type, normal
from domains.enrichment.failures import NotAnAddress
from domains.enrichment.values import (
    Batch,
    Claim,
    ClaimPart,
    Closing,
    Job,
    NewSubscriber,
    Process,
    Registration,
    Saved,
    Written,
)
from flowdsl import Failure, Result, Success, bind, this_attempt

TRIES = 3
"""Times that a job may be claimed, when its failures pass."""

# Claims


async def claim_batch(request: Claim) -> Result[Batch, Never]:
    """Rows that another claim holds are passed over, never waited for."""
    async with this_attempt().transaction() as connection:
        allowed, why = await _allowed(connection, request)
        rows = await connection.fetch(_CLAIM, request.batch_id, allowed, TRIES) if allowed else []
        more = bool(await connection.fetchval(_MORE, [row["id"] for row in rows], TRIES))
        if rows:
            await connection.execute(_BATCH, request.batch_id, None, request.trigger, len(rows))
    return Success(Batch(request.batch_id, _jobs(rows), more and bool(rows), why if more and not rows else None))


async def _allowed(connection: Any, request: Claim) -> tuple[int, str | None]:
    """How many jobs may be claimed, at a credit each; and what says none, if it is none."""
    waiting = math.ceil(await connection.fetchval(_WAITING))
    rest = math.floor(request.balance) - waiting
    why = f"FullEnrich has {request.balance:g} credits for us, of which {waiting} are for batches under way: add credit"
    monthly = ways().monthly
    if monthly is not None:
        await connection.execute("select from enrichment.purse for update")
        spent = math.ceil(await connection.fetchval(_SPENT))
        if monthly - spent < rest:
            rest, why = monthly - spent, f"{spent} of this month's {monthly} credits are spent or kept back: raise ENRICHMENT_MONTHLY_CREDITS"
    return max(0, min(request.limit, rest)), why if rest <= 0 else None


_CLAIMABLE = "(j.state = 'pending' or (j.state = 'failed' and j.again_at <= clock_timestamp() and j.tries < {}))"

_CLAIM = f"""
with picked as (
  select j.id from enrichment.jobs j where {_CLAIMABLE.format("$3")} order by j.id limit $2 for update skip locked
)
update enrichment.jobs j set state = 'batched', batch = $1, tries = j.tries + 1, reason = null, again_at = null
  from picked, enrichment.subscribers s where j.id = picked.id and s.id = j.subscriber
returning j.id, s.email
"""
_MORE = f"select exists (select from enrichment.jobs j where {_CLAIMABLE.format('$2')} and j.id <> all($1::bigint[]))"
_BATCH = "insert into enrichment.batches (id, part_of, trigger, jobs) values ($1, $2, $3, $4)"
# What partial results cost is no batch's last word: while it is open, each of its jobs may still cost a credit.
_WAITING = "select coalesce(sum(greatest(jobs - coalesce(credits, 0), 0)), 0)::float8 from enrichment.batches where closed_at is null"
_SPENT = (
    "select coalesce(sum(case when closed_at is null then greatest(jobs, credits) else coalesce(credits, jobs) end), 0)::float8"
    " from enrichment.batches where created_at >= date_trunc('month', clock_timestamp(), 'UTC')"
)


async def claim_part(request: ClaimPart) -> Result[Batch, Never]:
    """Takes jobs over from the batch that they were refused with."""
    async with this_attempt().transaction() as connection:
        rows = await connection.fetch(
            "update enrichment.jobs j set batch = $1 from enrichment.subscribers s"
            " where s.id = j.subscriber and j.batch = $2 and j.state = 'batched' and j.id = any($3::bigint[]) returning j.id, s.email",
            request.batch_id, request.of, [job.id for job in request.jobs],
        )  # fmt: skip
        if rows:
            await connection.execute("update enrichment.batches set jobs = jobs - $2 where id = $1", request.of, len(rows))
            await connection.execute(_BATCH, request.batch_id, request.of, "part", len(rows))
    return Success(Batch(request.batch_id, _jobs(rows)))


def _jobs(rows: Any) -> tuple[Job, ...]:
    return tuple(sorted((Job(row["id"], row["email"]) for row in rows), key=lambda job: job.id))


# Marks that a submission makes beside its transactionless work: written before the request, so that they survive whatever follows


async def submitting(batch_id: str) -> None:
    """From now on the provider may have it."""
    async with this_attempt().connection() as connection:
        await connection.execute("update enrichment.batches set state = 'submitting' where id = $1 and state = 'claimed'", batch_id)


async def untaken(batch_id: str) -> None:
    """The provider said that it does not have it."""
    async with this_attempt().connection() as connection:
        await connection.execute(
            "update enrichment.batches set state = 'claimed' where id = $1 and state = 'submitting' and enrichment_id is null", batch_id
        )


async def register_enrichment(request: Registration) -> Result[None, Never]:
    async with this_attempt().transaction() as connection:
        await connection.execute(
            "update enrichment.batches set enrichment_id = $2, state = 'submitted' where id = $1 and closed_at is null",
            request.batch_id,
            request.enrichment_id,
        )
    return Success(None)


# Results and the end


async def process_results(request: Process) -> Result[Written, Never]:
    """Only jobs of this batch that are unfinished; so what comes twice, or late, changes nothing."""
    news = request.news
    async with this_attempt().transaction() as connection:
        profiles = [None if one.profile is None else json.dumps(asdict(one.profile)) for one in news.results]
        row = await connection.fetchrow(
            _PROCESS, request.batch_id, [one.job for one in news.results], profiles, news.status == "FINISHED", news.credits
        )
    return Success(Written(row["enriched"], row["absent"]))


_PROCESS = """
with done as (
  update enrichment.jobs j set state = case when n.profile is null then 'absent' else 'enriched' end, written = j.written + 1
    from unnest($2::bigint[], $3::text[]) as n (job, profile)
   where j.id = n.job and j.batch = $1 and j.state = 'batched' and (n.profile is not null or $4)
  returning j.subscriber, n.profile
), told as (
  update enrichment.subscribers s set profile = d.profile::json, enriched_at = clock_timestamp()
    from done d where s.id = d.subscriber and d.profile is not null
), cost as (
  update enrichment.batches b set credits = greatest(b.credits, $5::float8) where b.id = $1 and ($4 or $5::float8 > 0)
)
select count(*) filter (where profile is not null) as enriched, count(*) filter (where profile is null) as absent from done
"""


async def close_batch(request: Closing) -> Result[None, Never]:
    """Frees the provider's id. A batch that was never claimed has nothing to close."""
    async with this_attempt().transaction() as connection:
        await connection.execute(_CLOSE, request.batch_id, request.end, request.reason, request.passing)
    return Success(None)


_CLOSE = """
with batch as (
  update enrichment.batches b set closed_at = clock_timestamp(), ended = $2, reason = $3,
         credits = coalesce(b.credits, case when b.state = 'claimed' then 0 end)
   where b.id = $1 and b.closed_at is null
  returning b.id, $2 = 'out of credit' or ($2 = 'cancelled' and b.state = 'claimed') as back
)
update enrichment.jobs j set
       state = case when batch.back then 'pending' else 'failed' end,
       tries = j.tries - batch.back::int,
       batch = case when batch.back then null else j.batch end,
       again_at = case when $4 then clock_timestamp() + interval '1 hour' end,
       reason = $3
  from batch where j.batch = batch.id and j.state = 'batched'
"""

# Subscribers


async def upsert_subscriber(request: NewSubscriber) -> Result[Saved, NotAnAddress]:
    """With it its job, if the address is personal. Known already: nothing is changed."""
    address = normal(request.email)
    if address is None:
        return Failure(NotAnAddress(request.email[:254]))
    async with this_attempt().transaction() as connection:
        created = await insert_subscribers(connection, {address: dict(request.raw_payload)}, request.source)
        id = await connection.fetchval("select id from enrichment.subscribers where email = $1", address)
    return Success(Saved(id, "created" if created else "known", email_type(address)))


async def insert_subscribers(connection: Any, payloads: dict[str, dict[str, str]], source: str) -> list[str]:
    """Addresses, and what came with each; gives those that are new. In order, so that two at once never wait for each other crosswise."""
    emails = sorted(payloads)
    rows = await connection.fetch(
        _INSERT, emails, [email_type(one) for one in emails], [json.dumps(payloads[one]) for one in emails], source.replace("\0", "")
    )
    return [row["email"] for row in rows]


_INSERT = """
with created as (
  insert into enrichment.subscribers (email, email_type, source, raw_payload)
  select n.email, n.type, $4, n.payload::json from unnest($1::text[], $2::text[], $3::text[]) with ordinality as n (email, type, payload, place)
   order by n.place
  on conflict (email) do nothing returning id, email, email_type
), jobs as (
  insert into enrichment.jobs (subscriber) select id from created where email_type = 'personal' order by id
)
select email from created
"""

BINDINGS = (
    bind(activities.claim_batch, claim_batch),
    bind(activities.claim_part, claim_part),
    bind(activities.register_enrichment, register_enrichment),
    bind(activities.process_results, process_results),
    bind(activities.close_batch, close_batch),
    bind(activities.upsert_subscriber, upsert_subscriber),
)
