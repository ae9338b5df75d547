"""Jobs, and a provider that looks them up, as a model: what an enrichment's activities do, without a database or a network."""

from __future__ import annotations

from typing import Any

from attrs import define, field

from domains.enrichment import activities as contracts
from domains.enrichment.failures import NotFound, Refused
from domains.enrichment.values import (
    AskCredits,
    Batch,
    Claim,
    ClaimPart,
    Closing,
    Credits,
    EnrichmentResults,
    Fetch,
    Found,
    Job,
    Process,
    Profile,
    Registration,
    Submitted,
    Written,
)
from flowdsl import Failure, Result, Success, this_attempt
from flowdsl.testing import Fake


@define
class Row:
    id: int
    email: str
    state: str = "pending"
    batch: str | None = None
    reason: str | None = None
    written: int = 0


@define
class Books:
    """Six pending jobs. Of the addresses all are known but those that begin with `nobody`; `bad@` is refused, and all that is sent with it."""

    rows: dict[int, Row] = field(factory=lambda: {n: Row(n, f"{'nobody' if n == 3 else 'kim'}{n}@gmail.com") for n in range(1, 7)})
    balance: float = 100.0
    finished: bool = False
    """Whether a look finds batches done."""
    submissions: list[Batch] = field(factory=list[Batch])
    registered: dict[str, str] = field(factory=dict[str, str])
    answered: set[str] = field(factory=set[str])
    again: list[str] = field(factory=list[str])
    """Batches that were submitted although the answer to an earlier submission was known: money for nothing."""
    closed: list[Closing] = field(factory=list[Closing])
    claims: dict[str, Batch] = field(factory=dict[str, Batch])
    processed: dict[str, Written] = field(factory=dict[str, Written])

    def check_credits(self, _: AskCredits) -> Result[Credits, Any]:
        return Success(Credits(self.balance))

    def claim_batch(self, request: Claim) -> Result[Batch, Any]:
        if request.batch_id in self.claims:  # transactional too
            return Success(self.claims[request.batch_id])
        pending = [row for row in self.rows.values() if row.state == "pending"]
        if request.balance < 1 and pending:
            return Success(Batch(request.batch_id, (), False, "no credit"))
        picked = pending[: min(request.limit, int(request.balance))]
        for row in picked:
            row.state, row.batch = "batched", request.batch_id
        jobs = tuple(Job(row.id, row.email) for row in picked)
        self.claims[request.batch_id] = Batch(request.batch_id, jobs, len(picked) < len(pending))
        return Success(self.claims[request.batch_id])

    def claim_part(self, request: ClaimPart) -> Result[Batch, Any]:
        mine = [job for job in request.jobs if self.rows[job.id].batch in (request.of, request.batch_id) and self.rows[job.id].state == "batched"]
        for job in mine:
            self.rows[job.id].batch = request.batch_id
        return Success(Batch(request.batch_id, tuple(mine)))

    def submit_batch(self, batch: Batch) -> Result[Submitted, Any]:
        if any(job.email.startswith("bad@") for job in batch.jobs):
            return Failure(Refused(400, "error.reverse.email.invalid", "email is invalid"))
        self.again += [batch.id] if batch.id in self.answered else []
        self.submissions.append(batch)
        return Success(Submitted(f"e-{len(self.submissions)}"))

    def register_enrichment(self, request: Registration) -> Result[None, Any]:
        self.registered[request.enrichment_id] = request.batch_id
        self.answered.add(request.batch_id)
        return Success(None)

    def fetch_results(self, request: Fetch) -> Result[EnrichmentResults, Any]:
        number = int(request.enrichment_id.removeprefix("e-"))
        if number > len(self.submissions):
            return Failure(NotFound(request.enrichment_id))
        if not self.finished:
            return Success(EnrichmentResults(request.enrichment_id, "IN_PROGRESS"))
        return Success(results(self.submissions[number - 1].jobs, enrichment_id=request.enrichment_id))

    def process_results(self, request: Process) -> Result[Written, Any]:
        key = this_attempt().idempotency_key  # transactional: what was not recorded was not done
        if key not in self.processed:
            self.processed[key] = self._written(request)
        return Success(self.processed[key])

    def _written(self, request: Process) -> Written:
        enriched = absent = 0
        for one in request.news.results:
            row = self.rows.get(one.job)
            if row is None or row.batch != request.batch_id or row.state != "batched":
                continue
            if one.profile is not None:
                row.state, row.written, enriched = "enriched", row.written + 1, enriched + 1
            elif request.news.status == "FINISHED":
                row.state, row.written, absent = "absent", row.written + 1, absent + 1
        return Written(enriched, absent)

    def close_batch(self, request: Closing) -> Result[None, Any]:
        self.closed.append(request)
        self.registered = {id: batch for id, batch in self.registered.items() if batch != request.batch_id}
        asked = any(batch.id == request.batch_id for batch in self.submissions)
        back = request.end == "out of credit" or (request.end == "cancelled" and not asked)
        for row in self.rows.values():
            if row.batch == request.batch_id and row.state == "batched":
                row.state, row.reason = "pending" if back else "failed", request.reason
        return Success(None)

    @property
    def states(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for row in self.rows.values():
            found[row.state] = found.get(row.state, 0) + 1
        return found

    def play(self, fake: Fake) -> Fake:
        """Lets this provider and these jobs answer."""
        for name in (
            "check_credits claim_batch claim_part submit_batch register_enrichment fetch_results process_results close_batch".split()  # noqa: SIM905
        ):
            fake.on(getattr(contracts, name), getattr(self, name))
        return fake


def results(jobs: tuple[Job, ...], status: Any = "FINISHED", *, first: int | None = None, enrichment_id: str = "e-1") -> EnrichmentResults:
    """What the provider says of these jobs, or of the first of them."""
    found = tuple(Found(job.id, None if job.email.startswith("nobody") else Profile(f"Kim {job.id}")) for job in jobs[:first])
    return EnrichmentResults(enrichment_id, status, found, float(sum(one.profile is not None for one in found)))


ALL = tuple(Job(row.id, row.email) for row in Books().rows.values())
"""The jobs that a first batch claims."""
