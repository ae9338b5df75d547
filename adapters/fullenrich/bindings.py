"""Who carries out what is asked of the provider."""

from __future__ import annotations

from adapters.enrichment_store import BINDINGS as STORE
from adapters.enrichment_store import submitting, untaken
from adapters.fullenrich.client import FullEnrich
from adapters.fullenrich.document import results_of, submission
from adapters.fullenrich.settings import provider
from adapters.fullenrich.triggers import request_enrichment
from adapters.fullenrich.uploads import read_upload
from domains.enrichment import activities
from domains.enrichment.failures import AskFailure, FetchFailure, NotFound, Refused, SubmitFailure, Unanswered, Unexpected
from domains.enrichment.values import AskCredits, Batch, Credits, EnrichmentResults, Fetch, Submitted
from flowdsl import Failure, Result, Success, bind

REVERSE = "/contact/reverse/email/bulk"
IN_PROGRESS = "error.enrichment.in_progress"


async def check_credits(_: AskCredits) -> Result[Credits, AskFailure]:
    known = provider()
    if isinstance(known, Failure):
        return known
    path = "/account/credits"
    answer = await FullEnrich(known.unwrap()).get(path)
    if isinstance(answer, Failure):
        failure = answer.failure()
        return Failure(Unexpected(f"GET {path}", str(failure)) if isinstance(failure, Refused | NotFound) else failure)
    balance = answer.unwrap().get("balance")
    if isinstance(balance, bool) or not isinstance(balance, (int, float)):
        return Failure(Unexpected(f"GET {path}", "balance is no number"))
    return Success(Credits(float(balance)))


async def submit_batch(batch: Batch) -> Result[Submitted, SubmitFailure]:
    """Marks the batch before the request goes out, and takes the mark back only when it was certainly not taken."""
    known = provider()
    if isinstance(known, Failure):
        return known
    await submitting(batch.id)
    answer = await FullEnrich(known.unwrap()).post(REVERSE, submission(batch, known.unwrap().callback_url))
    if isinstance(answer, Failure):
        if not isinstance(answer.failure(), Unanswered):
            await untaken(batch.id)
        return answer
    id = answer.unwrap().get("enrichment_id")
    if not isinstance(id, str) or not id:
        return Failure(Unanswered(f"POST {REVERSE}: an answer without an enrichment_id"))
    return Success(Submitted(id))


async def fetch_results(request: Fetch) -> Result[EnrichmentResults, FetchFailure]:
    known = provider()
    if isinstance(known, Failure):
        return known
    answer = await FullEnrich(known.unwrap()).get(f"{REVERSE}/{request.enrichment_id}")
    if isinstance(answer, Failure):
        failure = answer.failure()
        if isinstance(failure, Refused) and failure.code == IN_PROGRESS:
            return Success(EnrichmentResults(request.enrichment_id, "IN_PROGRESS"))
        return Failure(failure)
    what = f"GET {REVERSE}/{request.enrichment_id}"
    try:
        news = results_of(answer.unwrap())
    except ValueError as error:
        return Failure(Unexpected(what, str(error)))
    return Success(news) if news.enrichment_id == request.enrichment_id else Failure(Unexpected(what, "it is another batch's"))


BINDINGS = (
    bind(activities.check_credits, check_credits),
    bind(activities.submit_batch, submit_batch),
    bind(activities.fetch_results, fetch_results),
    bind(activities.request_batch, request_enrichment),
    bind(activities.read_upload, read_upload),
    *STORE,
)
