"""What starts an enrichment: a new subscriber, an upload, a person, the clock. Each gives the id of the execution."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Never, cast

from adapters.fullenrich.settings import api_keys, ways
from domains.enrichment.values import EnrichBatch, EnrichmentResults, RequestBatch, Saved, Trigger
from domains.enrichment.workflows import enrich_batch, enrichment_complete
from flowdsl import Result, Schedule, Success, this_attempt
from flowdsl.chance import new_id
from flowdsl.codec import codec
from flowdsl.journal import codecs_of
from flowdsl.postgres.store import Store

Fetch = Callable[..., Awaitable[Any]]
"""Runs a statement and gives its rows: a store's `again`, or a connection's `fetch`."""


async def trigger_enrichment_for_subscriber(store: Store, subscriber: Saved, *, tenant: str = "default") -> str | None:
    """The execution that will take this subscriber, and the others of the same moment; None for a corporate address."""
    return await request(store.again, "subscriber", tenant) if subscriber.email_type == "personal" else None


async def trigger_scheduled_enrichment_batch(store: Store, *, tenant: str = "default") -> str:
    """A batch of what is pending, now."""
    chosen = ways()
    return await begin(store.again, EnrichBatch("hand", window(datetime.now(UTC)), limit=chosen.batch, patience=chosen.patience), tenant)


async def get_execution_for_enrichment(store: Store, enrichment_id: str) -> str | None:
    """The execution that waits for this batch of the provider's; None for one that is unknown, or over."""
    rows = await store.again("select id from enrichment.batches where enrichment_id = $1 and closed_at is null", enrichment_id)
    return cast("str", rows[0]["id"]) if rows else None


async def emit_enrichment_complete(store: Store, execution: str, results: EnrichmentResults, *, tenant: str = "default") -> str:
    """Sends `enrichment-complete`, as the callback does: sent, again, ended or unmatched. The same results act once."""
    body = codec(EnrichmentResults).encode(results)
    return await store.send(tenant, execution, "signal", enrichment_complete.name, body, f"results {sha256(body).hexdigest()}")


async def request_enrichment(order: RequestBatch) -> Result[str, Never]:
    """The activity `request-enrichment`."""
    attempt = this_attempt()
    async with attempt.connection() as connection:
        return Success(await request(connection.fetch, order.trigger, attempt.tenant))


async def request(fetch: Fetch, trigger: Trigger, tenant: str) -> str:
    """Gathers: whoever asks within the same window gets the same execution, which claims once the window is over."""
    now = (await fetch("select clock_timestamp() as now"))[0]["now"]
    return await begin(fetch, debounced(trigger, now), tenant)


def debounced(trigger: Trigger, now: datetime) -> EnrichBatch:
    """The batch of the window that `now` lies in. Its claim comes after all that was committed by then."""
    chosen = ways()
    size = max(chosen.debounce, timedelta(milliseconds=1))
    begins = now - (now - datetime(1970, 1, 1, tzinfo=UTC)) % size
    return EnrichBatch(trigger, window(begins), begins + size, chosen.batch, chosen.patience)


def window(begins: datetime) -> str:
    """As it is read in a list of executions: without the colons, which a key would have to escape."""
    return f"{begins:%Y%m%dT%H%M%S.%fZ}"


async def begin(fetch: Fetch, order: EnrichBatch, tenant: str) -> str:
    """Starts it, or joins the one of that key."""
    flow, body = enrich_batch, codecs_of(enrich_batch).request.encode(order)
    rows = await fetch(
        "select id from flowdsl.start(array[$1::uuid], array[$2::text], array[$3::text], array[$4::int], array[''], array[$5::text],"
        " array[$6::text], array[$7::bytea], array[null::uuid], array[''], array[false], array[false])",
        new_id(),
        tenant,
        flow.name,
        flow.version,
        flow.key_of(order),
        flow.reuse,
        body,
    )
    return str(rows[0]["id"])


def enrichment_schedules(environment: Mapping[str, str]) -> list[Schedule]:
    """Every quarter of an hour what is pending, once there is an API key. A batch waits for a day, so several are open at once."""
    chosen = ways(environment)
    order = EnrichBatch("schedule", limit=chosen.batch, patience=chosen.patience)
    return [Schedule.cron("*/15 * * * *", enrich_batch, order, id="enrichment", jitter="1m", overlap="allow")] if api_keys(environment) else []
