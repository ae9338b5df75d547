"""What the enrichment's description promises by itself: its steps, policies and limits, and that the clock starts it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from adapters.fullenrich.settings import KEY
from adapters.fullenrich.triggers import enrichment_schedules
from domains.enrichment import activities as contracts
from domains.enrichment.failures import RateLimited, Refused, Unavailable
from domains.enrichment.values import Batch, Claim, EnrichBatch, Process, Registration
from domains.enrichment.workflows import enrich_batch, enrichment_complete
from flowdsl import Defect, Deployment, Failure, bind
from flowdsl.calendar import Calendar
from flowdsl.memory import EPOCH
from flowdsl.outline import outline
from flowdsl.policy import Retry, Retryable
from flowdsl.testing import Fake
from tests.domains.enrichment_books import ALL, Books, Row, results

STEPS = {
    "check-credits": contracts.check_credits,
    "batch-pending-jobs": contracts.claim_batch,
    "submit-to-fullenrich": contracts.submit_batch,
    "register-enrichment": contracts.register_enrichment,
    "fetch-enrichment-results": contracts.fetch_results,
    "process-enrichment-results": contracts.process_results,
    "close-batch": contracts.close_batch,
}
MINUTE = timedelta(minutes=1)


@pytest.mark.shows("S2.7", "S2.36", "S2.38", "S2.51", "S2.61")
def test_its_steps_are_read_from_the_definition_and_nothing_runs() -> None:
    drawn = outline(enrich_batch)
    items = [item for _, item in drawn.walk()]
    first: list[str] = []
    for item in items:
        waits = item.kind == "receive" or any(ask.startswith(f"receive {enrichment_complete.name}") for ask in item.asks)
        name = "wait" if waits else item.label
        if (waits or item.kind == "activity") and name not in first:
            first.append(name)
    asked = ["check-credits", "batch-pending-jobs", "submit-to-fullenrich", "register-enrichment", "wait"]
    assert [name for name in first if name in asked] == asked
    assert first.index("wait") < first.index("process-enrichment-results") < first.index("close-batch")
    choices = [item.label for item in items if item.kind == "choice"]
    assert "not batch.jobs?" in choices and "batch.more?" in choices
    assert any(item.kind == "ensure" for item in items), "what is done on an error too"
    assert set(drawn.children) == {"subscriber-enrichment", "enrichment.part"}


@pytest.mark.shows("S2.24", "S2.29", "S2.52")
def test_each_step_has_a_policy_of_its_own() -> None:
    assert {name: one.name for name, one in STEPS.items()} == {name: name for name in STEPS}
    retries: dict[str, Retry] = {name: one.policies.retry for name, one in STEPS.items()}
    assert {name for name, retry in retries.items() if retry == contracts.PROVIDER} == {"check-credits", "fetch-enrichment-results"}
    ours = {"batch-pending-jobs", "register-enrichment", "process-enrichment-results", "close-batch"}
    assert {name for name, retry in retries.items() if retry == contracts.STORE} == ours
    picked: Retryable = contracts.PROVIDER.on
    assert picked == (Unavailable, RateLimited), "429 and what the server says of itself"


@pytest.mark.shows("S2.33", "S2.53")
def test_a_step_that_takes_too_long_is_given_up_and_made_again(fake: Fake) -> None:
    limits = {name: one.policies.start_to_close for name, one in STEPS.items()}
    assert {name for name, limit in limits.items() if limit == 2 * MINUTE} == {"check-credits", "submit-to-fullenrich", "fetch-enrichment-results"}
    assert all(timedelta() < limit <= 5 * MINUTE for limit in limits.values())
    books = Books()
    run = books.play(fake).takes(contracts.check_credits, "3m").run(enrich_batch, EnrichBatch())
    assert isinstance(run.exit, Defect), run
    assert run.count(contracts.check_credits) == 5
    assert run.elapsed == 5 * 2 * MINUTE + timedelta(seconds=1 + 2 + 4 + 8)
    assert books.states == {"pending": 6}


@pytest.mark.shows("S2.37")
def test_later_steps_are_given_what_earlier_ones_answered(fake: Fake) -> None:
    books = Books({n: row for n, row in Books().rows.items() if n <= 3}, balance=4.0)
    run = books.play(fake).signal(enrichment_complete, results(ALL), at="1m").run(enrich_batch, EnrichBatch("hand", "w", limit=9))
    (claim,), (batch,), (registered,), (processed,) = (
        run.calls(one) for one in (contracts.claim_batch, contracts.submit_batch, contracts.register_enrichment, contracts.process_results)
    )
    assert claim == Claim(run.id, "hand", 9, 4.0), "the balance of the first step"
    assert batch == Batch(run.id, ALL[:3]), "the jobs of the second"
    assert registered == Registration(run.id, "e-1"), "the id of the third"
    assert processed == Process(run.id, results(ALL)), "and what was waited for"


@pytest.mark.shows("S2.20")
def test_each_quarter_of_an_hour_the_clock_starts_a_batch_though_the_last_one_waits() -> None:
    books = Books()
    played = [bind(one, getattr(books, one.contract.__name__)) for one in (*STEPS.values(), contracts.claim_part)]
    calendar = Calendar(Deployment([enrich_batch], played, schedules=enrichment_schedules({KEY: "key"})))
    fired = calendar.run_until(EPOCH + timedelta(minutes=62))
    assert [one.outcome for one in fired] == ["started"] * len(fired)
    assert len(fired) in (4, 5), "jitter may move the last one out of the hour"
    runs = [calendar.look(one.execution) for one in fired]
    assert len({run.id for run in runs}) == len(fired)
    assert [run.exit is None for run in runs] == [True, *[False] * (len(runs) - 1)], "the first has all the jobs and waits; the others find none"


@pytest.mark.shows("S2.29")
def test_a_refusal_is_not_tried_again(fake: Fake) -> None:
    run = Books({1: Row(1, "bad@gmail.com")}).play(fake).run(enrich_batch, EnrichBatch())
    assert isinstance(run.exit, Failure) and isinstance(run.exit.failure(), Refused)
    assert run.count(contracts.submit_batch) == 1
