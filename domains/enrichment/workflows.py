"""`subscriber-enrichment` claims a batch, submits it, and waits for its results; what came in wrongly as a whole goes on in halves.

An execution is its batch: the provider is given the execution's id to echo, so a callback finds it even when the answer to the submission was lost.
"""

from __future__ import annotations

from typing import Never, TypeAlias

from attrs import evolve

from domains.enrichment.activities import (
    PROVIDER,
    check_credits,
    claim_batch,
    claim_part,
    close_batch,
    fetch_results,
    process_results,
    read_upload,
    register_enrichment,
    request_batch,
    submit_batch,
    upsert_subscriber,
)
from domains.enrichment.failures import (
    BatchFailure,
    Expired,
    NotAnAddress,
    RateLimited,
    Refused,
    Rejection,
    Unavailable,
    Uncertain,
    Unreadable,
)
from domains.enrichment.values import (
    NOTHING,
    Added,
    AskCredits,
    Batch,
    Claim,
    ClaimPart,
    Closing,
    EnrichBatch,
    EnrichmentResults,
    Fetch,
    NewSubscriber,
    Part,
    Patience,
    Position,
    Process,
    ReadChunk,
    Registration,
    RequestBatch,
    Submitted,
    Tally,
    Upload,
    Uploaded,
    Watch,
)
from flowdsl import (
    Cancelled,
    Defect,
    Done,
    Exit,
    Failure,
    Flow,
    Next,
    Round,
    Signal,
    Steps,
    Success,
    audit,
    catching,
    do,
    each_attempt,
    execution,
    fail,
    iterate,
    now,
    pure,
    race,
    report,
    signal,
    sleep,
    workflow,
)

enrichment_complete: Signal[EnrichmentResults] = signal("enrichment-complete", EnrichmentResults)

Silence: TypeAlias = None
"""Nothing was heard: of a look at the provider, or in all the time after a submission that nobody answered."""


@workflow("subscriber-enrichment", key="{trigger}:{window}", reuse="after_close")
def enrich_batch(order: EnrichBatch) -> Steps[Tally, BatchFailure]:
    """One batch, from the claim until its last job is finished, failed or pending again."""
    if order.not_before is not None:
        yield from sleep(order.not_before)
    me = (yield from execution()).id
    return (yield from claimed(me, order).ensure(lambda exit: close_batch(closing(me, exit))))


@do
def claimed(id: str, order: EnrichBatch) -> Steps[Tally, BatchFailure]:
    credits = yield from check_credits(AskCredits())
    batch = yield from claim_batch(Claim(id, order.trigger, order.limit, credits.balance))
    if batch.held_back is not None:
        yield from report(f"jobs stay pending: {batch.held_back}")
        yield from audit("ENRICHMENT_HELD_BACK", batch.held_back)
    if not batch.jobs:
        return NOTHING
    if batch.more:
        yield from enrich_batch.start(EnrichBatch("more", id, limit=order.limit, patience=order.patience), detached=True)
    return (yield from pursued(batch, order.patience))


def closing(id: str, exit: Exit[Tally, BatchFailure]) -> Closing:
    """What becomes of the jobs that have no result. Those that have one keep it, however this ended."""
    match exit:
        case Success(tally):
            if tally.status == "CREDITS_INSUFFICIENT":
                return Closing(id, "out of credit", "the provider had no credit left for it")
            if tally.status == "CANCELED":
                return Closing(id, "canceled by the provider", "the provider canceled its batch")
            return Closing(id, "done", "the final results say nothing of it")
        case Failure(failure):
            return Closing(id, "failed", str(failure), passing=isinstance(failure, Unavailable | RateLimited))
        case Defect(where, message):
            return Closing(id, "failed", f"{where}: {message}")
        case Cancelled(reason):
            return Closing(id, "cancelled", f"cancelled: {reason}")


# A batch at the provider


@do
def pursued(batch: Batch, patience: Patience) -> Steps[Tally, BatchFailure]:
    """Submits, and waits; a batch that is refused for one of its rows goes on in halves."""
    match (yield from submitted(batch).attempt()):
        case Success(answer):
            return (yield from awaited(batch, answer, patience))
        case Failure(Refused() as refused) if len(batch.jobs) > 1 and not refused.whatever_the_rows:
            return (yield from halved(batch, patience))
        case Failure(rejection):
            return (yield from fail(rejection))


def submitted(batch: Batch) -> Flow[Submitted | None, Rejection]:
    """None: whether the provider has it is not known."""
    asked: Flow[Submitted | None, Rejection] = catching(Uncertain, lambda _: pure(None))(submit_batch(batch).retry(PROVIDER))
    return asked


@do
def awaited(batch: Batch, answer: Submitted | None, patience: Patience) -> Steps[Tally, BatchFailure]:
    """Results as they come, until they are final: by callback, or by a look now and then."""
    deadline = (yield from now()) + patience.limit

    @do
    def one_round(watch: Watch) -> Steps[Round[Watch, Tally], BatchFailure]:
        heard = heard_of(watch, patience).timeout(watch.deadline, Expired(batch.id))
        news = yield from heard.catch(lambda expired: last_look(batch, watch, expired))
        if news is None:
            return Next((yield from submitted_again(batch, watch)) if watch.enrichment_id is None else watch)
        if watch.enrichment_id is None:
            yield from register_enrichment(Registration(batch.id, news.enrichment_id))
        written = yield from process_results(Process(batch.id, news))
        watch = watch.after(news, written)
        yield from report(f"{news.status}: {written.enriched} enriched, {written.absent} not found", done=watch.tally.enriched, total=len(batch.jobs))
        return Done(watch.tally) if news.final else Next(watch)

    known = answer.enrichment_id if answer is not None else None
    if known is not None:
        yield from register_enrichment(Registration(batch.id, known))
    yield from report(f"waits for the results of {len(batch.jobs)} jobs" if known else "nobody answered the submission: waits for a callback")
    return (yield from iterate(Watch(deadline, known, evolve(NOTHING, jobs=len(batch.jobs), status="CREATED")), one_round))


def heard_of(watch: Watch, patience: Patience) -> Flow[EnrichmentResults | Silence, Never]:
    """The next news. A callback that came before we waited, or before we knew the provider's id, is there already."""
    callback = enrichment_complete.receive()
    if watch.enrichment_id is not None:
        return race(callback, enrichment_complete.receive(watch.enrichment_id), looked(watch.enrichment_id, patience))
    return callback if watch.resubmitted else race(callback, sleep(patience.silence))


@do
def looked(enrichment_id: str, patience: Patience) -> Steps[EnrichmentResults | Silence, Never]:
    """A look at the provider, after a while. That it fails is no news: another follows."""
    yield from sleep(patience.poll)
    match (yield from fetch_results(Fetch(enrichment_id)).isolate().attempt()):
        case Success(news):
            return news
        case Failure(failure):
            yield from report(f"a look at {enrichment_id} failed: {failure}")
            return None


@do
def last_look(batch: Batch, watch: Watch, expired: Expired) -> Steps[EnrichmentResults, Expired]:
    """Before the time is declared over: the callbacks may all have been lost. What is there already is kept."""
    if watch.enrichment_id is None:
        return (yield from fail(expired))
    match (yield from fetch_results(Fetch(watch.enrichment_id)).isolate().attempt()):
        case Success(news) if news.final:
            return news
        case Success(news):
            yield from process_results(Process(batch.id, news))
        case Failure(failure):
            yield from report(f"the last look failed: {failure}")
    return (yield from fail(expired))


@do
def submitted_again(batch: Batch, watch: Watch) -> Steps[Watch, Rejection]:
    """Once more, and never a third time: should the first have been taken after all, the provider charges an address once in three months."""
    yield from report("no callback came: it is submitted once more")
    answer = yield from submitted(batch)
    if answer is not None:
        yield from register_enrichment(Registration(batch.id, answer.enrichment_id))
    return evolve(watch, resubmitted=True, enrichment_id=answer.enrichment_id if answer is not None else None)


# Halves


@do
def halved(batch: Batch, patience: Patience) -> Steps[Tally, Never]:
    """One bad row must not block ninety-nine. Each half is an execution of its own, and answers for its own jobs."""
    middle = len(batch.jobs) // 2
    parts = [Part(batch.id, jobs, patience) for jobs in (batch.jobs[:middle], batch.jobs[middle:])]
    outcomes = yield from each_attempt(parts, lambda part: enrich_part.child(part).isolate())
    tallies = (outcome.unwrap() for outcome in outcomes if isinstance(outcome, Success))
    return sum(tallies, evolve(NOTHING, status="in halves"))


def key_of_part(part: Part) -> str:
    return f"{part.of}:{part.jobs[0].id if part.jobs else 0}-{len(part.jobs)}"


@workflow("enrichment.part", key=key_of_part, reuse="after_close")
def enrich_part(part: Part) -> Steps[Tally, BatchFailure]:
    """Some jobs of a batch that was refused."""
    me = (yield from execution()).id
    return (yield from parted(me, part).ensure(lambda exit: close_batch(closing(me, exit))))


@do
def parted(id: str, part: Part) -> Steps[Tally, BatchFailure]:
    batch = yield from claim_part(ClaimPart(id, part.of, part.jobs))
    return (yield from pursued(batch, part.patience)) if batch.jobs else NOTHING


# What makes jobs


@workflow("enrichment.subscriber")
def add_subscriber(new: NewSubscriber) -> Steps[Added, NotAnAddress]:
    """A new personal address is enriched, soon, together with others that come meanwhile; a corporate or known one is only kept."""
    saved = yield from upsert_subscriber(new)
    wanted = saved.status == "created" and saved.email_type == "personal"
    return Added(saved, (yield from request_batch(RequestBatch("subscriber"))) if wanted else None)


@workflow("enrichment.upload", key="{path}", reuse="after_close")
def upload(order: Upload) -> Steps[Uploaded, Unreadable]:
    """A CSV file of subscribers, chunk by chunk."""

    @do
    def one_chunk(at: Position) -> Steps[Round[Position, Uploaded], Unreadable]:
        chunk = yield from read_upload(ReadChunk(order, at.offset, at.version))
        counted = at.counted + chunk.counted
        if chunk.counted.personal:
            yield from request_batch(RequestBatch("upload"))
        yield from report(f"{order.path}: {counted.created} new, {counted.known} known, {counted.refused} without an address")
        return Done(counted) if chunk.next_offset is None else Next(Position(chunk.next_offset, chunk.version, counted))

    return (yield from iterate(Position(), one_chunk))
