"""What an enrichment asks of the provider and of its tables. The names are durable."""

from __future__ import annotations

from typing import Never

from domains.enrichment.failures import (
    AskFailure,
    FetchFailure,
    NotAnAddress,
    RateLimited,
    SubmitFailure,
    Unavailable,
    Unreadable,
)
from domains.enrichment.values import (
    AskCredits,
    Batch,
    Chunk,
    Claim,
    ClaimPart,
    Closing,
    Credits,
    EnrichmentResults,
    Fetch,
    NewSubscriber,
    Process,
    ReadChunk,
    Registration,
    RequestBatch,
    Saved,
    Submitted,
    Written,
)
from flowdsl import RateLimit, Result, Retry, activity

PROVIDER = Retry.exponential("1s", maximum="60s", attempts=5, on=(Unavailable, RateLimited))
"""429, 500, 502, 503 and 504: the provider has not taken the request."""
STORE = Retry.exponential("200ms", maximum="30s", attempts=20)
CALLS = RateLimit("fullenrich", 30, "1m", burst=30)
"""The provider takes 60 calls in any minute, all endpoints together: at most 30 after a rest and 30 in the minute."""


@activity("check-credits", retry=PROVIDER, timeout="2m", budget=(CALLS,))
def check_credits(request: AskCredits) -> Result[Credits, AskFailure]: ...


@activity("batch-pending-jobs", retry=STORE, transactional=True)
def claim_batch(request: Claim) -> Result[Batch, Never]:
    """Claims pending jobs that nobody else is claiming, as many as credit and budget allow, and writes the batch."""
    ...


@activity("batch-part", retry=STORE, transactional=True)
def claim_part(request: ClaimPart) -> Result[Batch, Never]: ...


@activity("submit-to-fullenrich", timeout="2m", budget=(CALLS,), crash="fail")
def submit_batch(batch: Batch) -> Result[Submitted, SubmitFailure]:
    """At most once: the provider knows no idempotency key. The workflow submits again what was certainly not taken."""
    ...


@activity("register-enrichment", retry=STORE, transactional=True)
def register_enrichment(request: Registration) -> Result[None, Never]: ...


@activity("fetch-enrichment-results", retry=PROVIDER, timeout="2m", budget=(CALLS,))
def fetch_results(request: Fetch) -> Result[EnrichmentResults, FetchFailure]: ...


@activity("process-enrichment-results", retry=STORE, transactional=True)
def process_results(request: Process) -> Result[Written, Never]: ...


@activity("close-batch", retry=STORE, transactional=True)
def close_batch(request: Closing) -> Result[None, Never]: ...


@activity("upsert-subscriber", retry=STORE, transactional=True)
def upsert_subscriber(request: NewSubscriber) -> Result[Saved, NotAnAddress]: ...


@activity("request-enrichment", retry=STORE)
def request_batch(request: RequestBatch) -> Result[str, Never]:
    """The execution that will claim what is pending: one for all who ask within the debounce."""
    ...


@activity("read-upload", retry=STORE, transactional=True)
def read_upload(request: ReadChunk) -> Result[Chunk, Unreadable]: ...
