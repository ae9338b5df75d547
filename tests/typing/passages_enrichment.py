"""Enrichment: results come by mail or by asking for them, whichever is first, within a day."""

from datetime import timedelta
from typing import Never, TypeAlias

from attrs import frozen

from flowdsl import (
    Cancelled,
    Defect,
    Exit,
    Failure,
    Result,
    Steps,
    Success,
    activity,
    do,
    now,
    race,
    signal,
    sleep,
    workflow,
)


@frozen
class EnrichBatch:
    trigger: str
    window: str


@frozen
class Claim:
    limit: int


@frozen
class Batch:
    id: str
    jobs: tuple[str, ...]


@frozen
class EnrichmentResults:
    batch_id: str
    contacts: tuple[str, ...]
    final: bool


@frozen
class Tally:
    jobs: int
    written: int


@frozen
class Closing:
    batch_id: str
    reason: str


@frozen
class Unavailable:
    status: int


@frozen
class OutOfCredits:
    left: int


@frozen
class Expired:
    batch_id: str


SubmitFailure: TypeAlias = Unavailable | OutOfCredits


@activity("enrichment.claim_batch")
def claim_batch(request: Claim) -> Result[Batch, Never]: ...


@activity("enrichment.submit")
def submit(request: Batch) -> Result[None, SubmitFailure]: ...


@activity("enrichment.fetch_results")
def fetch_results(request: Batch) -> Result[EnrichmentResults, Unavailable]: ...


@activity("enrichment.write_results")
def write_results(request: EnrichmentResults) -> Result[int, Never]: ...


@activity("enrichment.close_batch")
def close_batch(request: Closing) -> Result[None, Unavailable]: ...


def reason(exit: Exit[Tally, SubmitFailure | Expired]) -> str:
    match exit:
        case Success(tally):
            return f"{tally.written} of {tally.jobs}"
        case Failure(error):
            return str(error)
        case Defect(where, message):
            return f"{where}: {message}"
        case Cancelled(why):
            return why


# The passage, laid out for reading.
# fmt: off

enrichment_complete = signal("enrichment-complete", EnrichmentResults)

@do
def polled(batch: Batch) -> Steps[EnrichmentResults, Never]:
    while True:                                             # at most 96 rounds: short enough without iterate
        yield from sleep("15m")
        match (yield from fetch_results(batch).attempt()):
            case Success(seen) if seen.final:
                return seen
            case _:
                pass                                        # a failure would end the race: it stays in this branch

@do
def pursue(batch: Batch) -> Steps[Tally, SubmitFailure | Expired]:
    yield from submit(batch)
    deadline, written = (yield from now()) + timedelta(hours=24), 0
    while True:                                             # mail that came before the wait is there already
        news = yield from race(enrichment_complete.receive(batch.id), polled(batch)).timeout(deadline, Expired(batch.id))
        written += yield from write_results(news)           # partial results are written as they come
        if news.final:
            return Tally(len(batch.jobs), written)

@workflow("enrichment.batch", key="{trigger}:{window}")
def enrich_batch(order: EnrichBatch) -> Steps[Tally, SubmitFailure | Expired]:
    batch = yield from claim_batch(Claim(limit=100))
    if not batch.jobs:
        return Tally(0, 0)
    return (yield from pursue(batch).ensure(lambda exit: close_batch(Closing(batch.id, reason(exit)))))
