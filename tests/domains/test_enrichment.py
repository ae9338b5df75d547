"""The enrichment without a provider: each way that a batch may go, on the fake; and what must be true of all of them, on drawn worlds."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.enrichment import activities as contracts
from domains.enrichment.addresses import email_type, normal
from domains.enrichment.failures import (
    Expired,
    NotConfigured,
    RateLimited,
    Refused,
    Unanswered,
    Unauthorized,
    Unavailable,
)
from domains.enrichment.values import (
    NOTHING,
    Added,
    Chunk,
    Credits,
    EnrichBatch,
    EnrichmentResults,
    Found,
    NewSubscriber,
    Patience,
    Profile,
    ReadChunk,
    Saved,
    Tally,
    Upload,
    Uploaded,
)
from domains.enrichment.workflows import add_subscriber, enrich_batch, enrich_part, enrichment_complete, upload
from flowdsl import Cancelled, Failure, Interrupted, Success
from flowdsl.lint import lint
from flowdsl.policy import Retry
from flowdsl.testing import Fake, World, check, worlds
from flowdsl.testing.golden import compared, read
from tests.domains.enrichment_books import ALL, Books, Row, results
from tests.domains.enrichment_goldens import FOLDER, definitions, made

ORDER = EnrichBatch("hand", "w")
WHOLE = results(ALL)


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def played(fake: Fake, books: Books) -> Fake:
    return books.play(fake)


# The four steps


@pytest.mark.shows("S2.1", "S2.4", "S2.15", "S2.17", "S2.36", "S2.45")
def test_it_claims_submits_waits_and_writes(played: Fake, books: Books) -> None:
    run = played.signal(enrichment_complete, WHOLE, at="3m").run(enrich_batch, ORDER)
    assert run.exit == Success(Tally(6, 5, 1, 5.0, "FINISHED"))
    steps = [step for step in run.story() if not step.startswith(("report", "sleep"))]
    assert steps[:4] == ["check-credits", "batch-pending-jobs", "submit-to-fullenrich", "register-enrichment"]
    assert steps[-2:] == ["process-enrichment-results", "close-batch"]
    assert books.states == {"enriched": 5, "absent": 1}


@pytest.mark.shows("S2.12", "S2.16", "S2.46", "S2.55")
def test_the_id_is_known_while_it_waits_and_not_afterwards(played: Fake, books: Books) -> None:
    waiting = played.run(enrich_batch, ORDER, until="1h")
    assert books.registered == {"e-1": waiting.id}
    played.signal(enrichment_complete, WHOLE, to=waiting.id).run(enrich_batch, EnrichBatch("hand", "another"))
    assert played.look(waiting).exit is not None
    assert "e-1" not in books.registered


@pytest.mark.shows("S2.11", "S2.45")
def test_a_batch_is_at_most_a_hundred_and_the_rest_goes_on_in_the_next(fake: Fake) -> None:
    books = Books({n: Row(n, f"kim{n}@gmail.com") for n in range(250)}, balance=1000.0, finished=True)
    run = books.play(fake).run(enrich_batch, ORDER)
    assert run.exit == Success(Tally(100, 100, 0, 100.0, "FINISHED"))
    assert [len(batch.jobs) for batch in books.submissions] == [100, 100, 50]
    assert books.states == {"enriched": 250}


@pytest.mark.shows("S2.61")
def test_nothing_pending_submits_nothing(fake: Fake) -> None:
    run = Books({}).play(fake).run(enrich_batch, ORDER)
    assert run.exit == Success(NOTHING)
    assert run.count(contracts.submit_batch) == 0


def test_what_is_triggered_soon_is_claimed_when_the_window_is_over(played: Fake) -> None:
    order = EnrichBatch("subscriber", "10:00", played.now + timedelta(seconds=30))
    run = played.signal(enrichment_complete, WHOLE, at="1m").run(enrich_batch, order)
    assert run.story()[0].startswith("sleep")
    assert enrich_batch.key_of(order) == "subscriber:10%3A00"


# Callbacks


@pytest.mark.shows("S2.12")
def test_a_callback_before_the_mapping(played: Fake, books: Books) -> None:
    run = played.signal(enrichment_complete, WHOLE).takes(contracts.submit_batch, "5s").run(enrich_batch, ORDER)
    assert run.exit == Success(Tally(6, 5, 1, 5.0, "FINISHED"))
    assert run.elapsed == timedelta(seconds=5)


def test_a_callback_when_the_answer_to_the_submission_was_lost(played: Fake, books: Books) -> None:
    run = played.signal(enrichment_complete, WHOLE, at="3m").crash(before="submit-to-fullenrich").run(enrich_batch, ORDER)
    assert run.exit == Success(Tally(6, 5, 1, 5.0, "FINISHED"))
    assert len(books.submissions) == 1, "it was paid once"


@pytest.mark.shows("S2.15")
def test_a_callback_that_comes_twice(played: Fake, books: Books) -> None:
    played.signal(enrichment_complete, WHOLE, at="3m").signal(enrichment_complete, WHOLE, at="3m")
    run = played.run(enrich_batch, ORDER)
    assert run.exit == Success(Tally(6, 5, 1, 5.0, "FINISHED"))
    assert {row.written for row in books.rows.values()} == {1}


def test_callbacks_out_of_order(played: Fake, books: Books) -> None:
    late = results(ALL, "IN_PROGRESS", first=2)
    run = played.signal(enrichment_complete, WHOLE, at="3m").signal(enrichment_complete, late, at="4m").run(enrich_batch, ORDER)
    assert run.exit == Success(Tally(6, 5, 1, 5.0, "FINISHED"))
    assert {row.written for row in books.rows.values()} == {1}


@pytest.mark.shows("S2.22")
def test_a_callback_for_an_unknown_id_does_nothing(played: Fake, books: Books) -> None:
    run = played.signal(enrichment_complete, WHOLE, to="nobody-waits-for-this", at="3m").run(enrich_batch, ORDER, until="1h")
    assert run.exit is None
    assert books.states == {"batched": 6}


@pytest.mark.shows("S2.60")
def test_a_callback_without_items_finds_who_waits_for_the_providers_id(played: Fake, books: Books) -> None:
    empty = EnrichmentResults("e-1", "CANCELED")
    run = played.signal(enrichment_complete, empty, to="e-1", at="3m").run(enrich_batch, ORDER)
    assert run.exit == Success(Tally(6, 0, 0, 0.0, "CANCELED"))
    assert books.states == {"failed": 6}


def test_a_forged_callback_can_name_no_job_of_others(played: Fake, books: Books) -> None:
    """What is forged never comes as far as this: the service refuses it. Were it signed, it still could finish only jobs of that batch."""
    books.rows[7] = Row(7, "kim7@gmail.com", "batched", "another")
    foreign = EnrichmentResults("e-9", "IN_PROGRESS", (Found(7, Profile("Eve")), Found(99, Profile("Eve"))))
    run = played.signal(enrichment_complete, foreign, at="1m").run(enrich_batch, ORDER, until="20m")
    assert books.states == {"batched": 7}
    assert [asked.enrichment_id for asked in run.calls(contracts.fetch_results)] == ["e-1"], "nor does it lead the looks astray"
    played.signal(enrichment_complete, WHOLE, to=run.id).run(enrich_batch, EnrichBatch("hand", "x"))
    assert played.look(run).exit == Success(Tally(6, 5, 1, 5.0, "FINISHED"))
    assert (books.rows[7].state, books.rows[7].written) == ("batched", 0)


def test_partial_results_are_written_as_they_come(played: Fake, books: Books) -> None:
    played.signal(enrichment_complete, results(ALL, "IN_PROGRESS", first=4), at="3m")
    run = played.run(enrich_batch, ORDER, until="4m")
    assert run.exit is None
    assert books.states == {"enriched": 3, "batched": 3}  # nobody3 may still be found
    played.signal(enrichment_complete, WHOLE, to=run.id).run(enrich_batch, EnrichBatch("hand", "x"))
    assert books.states == {"enriched": 5, "absent": 1}
    assert {row.written for row in books.rows.values()} == {1}


@pytest.mark.shows("S2.13", "S2.34", "S2.49", "S2.53")
def test_no_callback_ever_and_a_day_passes(played: Fake, books: Books) -> None:
    run = played.run(enrich_batch, ORDER)
    assert run.exit == Failure(Expired(run.id))
    assert timedelta(hours=24) <= run.elapsed < timedelta(hours=24, minutes=1)
    assert 90 <= run.count(contracts.fetch_results) <= 97, "a look each quarter of an hour, and a last one"
    assert books.states == {"failed": 6}
    assert all("expired" in str(row.reason) for row in books.rows.values())


@pytest.mark.shows("S2.60")
def test_no_callback_and_the_look_finds_it(played: Fake, books: Books) -> None:
    books.finished = True
    run = played.run(enrich_batch, ORDER)
    assert run.exit == Success(Tally(6, 5, 1, 5.0, "FINISHED"))
    assert run.elapsed == timedelta(minutes=15)


def test_the_last_look_finds_what_no_look_before_found(played: Fake, books: Books) -> None:
    order = EnrichBatch("hand", "w", patience=Patience(poll=timedelta(hours=48)))
    books.finished = True
    run = played.run(enrich_batch, order)
    assert run.exit == Success(Tally(6, 5, 1, 5.0, "FINISHED"))
    assert run.elapsed == timedelta(hours=24)


def test_the_last_look_keeps_what_is_there(played: Fake, books: Books) -> None:
    played.on(contracts.fetch_results, Success(results(ALL, "IN_PROGRESS", first=2)))
    run = played.run(enrich_batch, EnrichBatch("hand", "w", patience=Patience(poll=timedelta(hours=48))))
    assert run.exit == Failure(Expired(run.id))
    assert books.states == {"enriched": 2, "failed": 4}


# Submissions whose fate is not known


def test_after_a_silence_it_is_submitted_once_more(played: Fake, books: Books) -> None:
    played.fails(contracts.submit_batch, Unanswered("POST"))
    books.finished = True
    run = played.run(enrich_batch, ORDER)
    assert run.exit == Success(Tally(6, 5, 1, 5.0, "FINISHED"))
    assert run.count(contracts.submit_batch) == 2
    assert run.elapsed == timedelta(hours=2, minutes=15)


def test_and_never_a_third_time(played: Fake, books: Books) -> None:
    played.on(contracts.submit_batch, Failure(Unanswered("POST")))
    run = played.run(enrich_batch, ORDER)
    assert run.exit == Failure(Expired(run.id))
    assert run.count(contracts.submit_batch) == 2
    assert run.elapsed == timedelta(hours=24)


def test_a_crash_while_it_submits_is_no_second_submission(played: Fake, books: Books) -> None:
    run = played.crash(before="submit-to-fullenrich").run(enrich_batch, ORDER, until="1h")
    assert run.exit is None
    assert run.count(contracts.submit_batch) == 1


# Retries


@pytest.mark.shows("S2.25-28", "S2.30-32", "S2.52")
def test_the_policy_is_the_seeds() -> None:
    one = timedelta(seconds=1)
    policy = contracts.PROVIDER
    assert (policy.kind, policy.attempts, policy.initial, policy.maximum) == ("exponential", 5, one, 60 * one)
    assert [policy.delay(n, 0) // one for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [Retry.linear("1s").delay(n, 0) // one for n in range(1, 5)] == [1, 2, 3, 4]
    assert [Retry.constant("1s").delay(n, 0) // one for n in range(1, 5)] == [1, 1, 1, 1]
    assert contracts.check_credits.policies.retry is contracts.fetch_results.policies.retry is policy


@pytest.mark.shows("S2.25", "S2.29", "S2.30", "S2.48")
@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_submission_that_was_not_taken_is_made_again(played: Fake, books: Books, status: int) -> None:
    books.finished = True
    run = played.fails(contracts.submit_batch, Unavailable("POST", status), times=4).run(enrich_batch, ORDER)
    assert isinstance(run.exit, Success)
    assert run.count(contracts.submit_batch) == 5
    assert run.elapsed == timedelta(seconds=1 + 2 + 4 + 8, minutes=15)


@pytest.mark.shows("S2.25", "S2.39", "S2.40")
def test_after_five_it_has_failed_and_its_jobs_say_why(played: Fake, books: Books) -> None:
    run = played.on(contracts.submit_batch, Failure(Unavailable("POST", 503))).run(enrich_batch, ORDER)
    assert run.exit == Failure(Unavailable("POST", 503))
    assert run.count(contracts.submit_batch) == 5
    assert {row.reason for row in books.rows.values()} == {"POST: FullEnrich answered 503"}
    assert books.closed[-1].passing


@pytest.mark.shows("S2.29")
def test_too_many_requests_wait_the_minute_that_the_provider_asks_for(played: Fake, books: Books) -> None:
    books.finished = True
    run = played.fails_once(contracts.submit_batch, RateLimited(timedelta(minutes=1))).run(enrich_batch, ORDER)
    assert run.elapsed == timedelta(minutes=16)


@pytest.mark.shows("S2.29")
@pytest.mark.parametrize(
    "failure", [Unauthorized("error.api.key"), Unavailable("GET /account/credits", 503), RateLimited(timedelta(minutes=1))], ids=str
)
def test_who_cannot_ask_for_credit_claims_nothing(played: Fake, books: Books, failure: Unauthorized | Unavailable | RateLimited) -> None:
    run = played.on(contracts.check_credits, Failure(failure)).run(enrich_batch, ORDER)
    assert run.exit == Failure(failure)
    assert run.count(contracts.check_credits) == (1 if isinstance(failure, Unauthorized) else 5)
    assert books.states == {"pending": 6}


@pytest.mark.parametrize("failure", [Unauthorized("error.api.key"), NotConfigured("KEY", "is not set", "Set it")], ids=str)
def test_what_a_retry_does_not_mend_is_not_tried_again(played: Fake, books: Books, failure: Unauthorized | NotConfigured) -> None:
    run = played.on(contracts.submit_batch, Failure(failure)).run(enrich_batch, ORDER)
    assert run.exit == Failure(failure)
    assert run.count(contracts.submit_batch) == 1
    assert not books.closed[-1].passing


# On error only what is unfinished


@pytest.mark.shows("S2.38", "S2.40")
def test_a_failure_marks_unfinished_jobs_only(played: Fake, books: Books) -> None:
    run = played.signal(enrichment_complete, results(ALL, "IN_PROGRESS", first=2), at="1h").run(enrich_batch, ORDER)
    assert run.exit == Failure(Expired(run.id))
    assert books.states == {"enriched": 2, "failed": 4}


@pytest.mark.shows("S2.38", "S2.39")
def test_a_bug_marks_them_too(played: Fake, books: Books) -> None:
    run = played.on(contracts.process_results, RuntimeError("no such column")).signal(enrichment_complete, WHOLE).run(enrich_batch, ORDER)
    assert books.states == {"failed": 6}
    assert "no such column" in str(books.rows[1].reason), run


def test_cancelled_before_anything_was_asked_leaves_them_pending(played: Fake, books: Books) -> None:
    run = played.cancel(step="batch-pending-jobs").run(enrich_batch, ORDER)
    assert isinstance(run.exit, Cancelled)
    assert books.states == {"pending": 6}


@pytest.mark.shows("S2.58")
def test_cancelled_while_it_waits_marks_them_failed(played: Fake, books: Books) -> None:
    run = played.cancel(at="1h").run(enrich_batch, ORDER)
    assert isinstance(run.exit, Cancelled)
    assert books.states == {"failed": 6}
    assert all("cancelled" in str(row.reason) for row in books.rows.values())


# Credit


def test_missing_credit_keeps_what_was_found_and_leaves_the_rest_pending(played: Fake, books: Books) -> None:
    run = played.signal(enrichment_complete, results(ALL, "CREDITS_INSUFFICIENT", first=2), at="3m").run(enrich_batch, ORDER)
    assert run.exit == Success(Tally(6, 2, 0, 2.0, "CREDITS_INSUFFICIENT"))
    assert books.states == {"enriched": 2, "pending": 4}


def test_without_credit_nothing_is_claimed_and_somebody_is_told(played: Fake, books: Books) -> None:
    run = played.on(contracts.check_credits, Success(Credits(0.5))).run(enrich_batch, ORDER)
    assert run.exit == Success(NOTHING)
    assert books.states == {"pending": 6}
    assert any("jobs stay pending" in str(note) for note in run.notes), run.notes


# One bad row


@pytest.mark.parametrize("code", ["error.enrichment.webhook_url", "error.enrichment.custom.key.exceeded", "error.enrichment.data.exceeded"])
def test_what_is_wrong_with_every_batch_is_not_tried_in_halves(played: Fake, books: Books, code: str) -> None:
    run = played.on(contracts.submit_batch, Failure(Refused(400, code, "no"))).run(enrich_batch, ORDER)
    assert run.exit == Failure(Refused(400, code, "no"))
    assert run.count(contracts.submit_batch) == 1
    assert {row.reason for row in books.rows.values()} == {f"FullEnrich refused it with 400 {code}: no"}


def test_one_bad_row_does_not_block_the_others(played: Fake, books: Books) -> None:
    books.rows[4].email, books.finished = "bad@gmail.com", True
    run = played.run(enrich_batch, ORDER)
    assert isinstance(run.exit, Success)
    assert books.states == {"enriched": 4, "absent": 1, "failed": 1}
    assert "error.reverse.email.invalid" in str(books.rows[4].reason)
    asked = [job.id for batch in books.submissions for job in batch.jobs]
    assert sorted(asked) == [1, 2, 3, 5, 6], "each of the others once"


# Crashes


@pytest.mark.shows("S2.6")
def test_no_crash_changes_what_comes_out(played: Fake, books: Books) -> None:
    run = played.signal(enrichment_complete, WHOLE, at="1h").crash(everywhere=True).run(enrich_batch, ORDER)
    assert run.exit == Success(Tally(6, 5, 1, 5.0, "FINISHED"))
    assert len(books.submissions) <= 1, "dead before the call or after it: it is not called again"
    assert {row.written for row in books.rows.values()} == {1}


# What makes jobs


@pytest.mark.shows("S2.10", "S2.19", "S2.41", "S2.44", "S2.54", "S2.61")
@pytest.mark.parametrize(
    ("saved", "execution"),
    [
        (Saved(1, "created", "personal"), "execution-1"),
        (Saved(1, "known", "personal"), None),
        (Saved(1, "created", "corporate"), None),
    ],
    ids=["personal", "known", "corporate"],
)
def test_only_a_new_personal_subscriber_starts_an_enrichment(fake: Fake, saved: Saved, execution: str | None) -> None:
    fake.on(contracts.upsert_subscriber, Success(saved)).on(contracts.request_batch, Success("execution-1"))
    run = fake.run(add_subscriber, NewSubscriber("kim@gmail.com"))
    assert run.exit == Success(Added(saved, execution))


def test_an_upload_goes_chunk_by_chunk_through_crashes(fake: Fake) -> None:
    chunks = {
        0: Chunk(10, "v", Uploaded(2, 0, 1, 0)),
        10: Chunk(20, "v", Uploaded(0, 1, 0, 1)),
        20: Chunk(None, "v", Uploaded(1, 0, 1, 0)),
    }

    def read_chunk(asked: ReadChunk) -> Success[Chunk]:
        return Success(chunks[asked.offset])

    fake.on(contracts.read_upload, read_chunk).on(contracts.request_batch, Success("e"))
    run = fake.crash(everywhere=True).run(upload, Upload("new.csv"))
    assert run.exit == Success(Uploaded(3, 1, 2, 1))
    assert {(asked.offset, asked.version) for asked in run.calls(contracts.read_upload)} == {(0, None), (10, "v"), (20, "v")}


@pytest.mark.shows("S2.54")
@pytest.mark.parametrize(
    ("given", "address", "kind"),
    [
        (" Kim@GMail.com ", "kim@gmail.com", "personal"),
        ("kim@proton.me", "kim@proton.me", "personal"),
        ("kim@example.org", "kim@example.org", "corporate"),
        ("kim@gmail.com.example.org", "kim@gmail.com.example.org", "corporate"),
        ("kim", None, None),
        ("kim@", None, None),
        ("kim@gmail", None, None),
        ("kim @gmail.com", None, None),
        ("a@b@gmail.com", None, None),
        ("kim\0@gmail.com", None, None),
        (f"{'k' * 65}@gmail.com", None, None),
        ("", None, None),
    ],
)
def test_what_an_address_is(given: str, address: str | None, kind: str | None) -> None:
    assert normal(given) == address
    assert address is None or email_type(address) == kind


# What must be true in every world


FOUND = st.builds(Found, st.integers(1, 7), st.none() | st.just(Profile("Kim")))
NEWS = st.builds(
    EnrichmentResults,
    st.sampled_from(["e-1", "e-2"]),
    st.sampled_from(["IN_PROGRESS", "FINISHED", "CREDITS_INSUFFICIENT", "CANCELED", "UNKNOWN"]),
    st.lists(FOUND, max_size=6).map(tuple),
    st.sampled_from([0.0, 3.0]),
)
REQUEST = st.builds(EnrichBatch, st.just("hand"), st.just("w"), st.none(), st.integers(1, 6))


@settings(max_examples=40)
@given(worlds(enrich_batch, request=REQUEST, signals={enrichment_complete: NEWS}, model=Books))
def test_in_no_world_is_a_job_forgotten_or_processed_twice(world: World[EnrichBatch, Tally, object]) -> None:
    run = world.run()
    if run.exit is not None and not run.children:
        assert "batched" not in world.model.states, "no job is left with a batch that is over"
    assert all(row.written <= 1 for row in world.model.rows.values())
    assert not (set(world.model.registered.values()) & {run.id}) or run.exit is None, "its id is free again"


@settings(max_examples=40)
@given(worlds(enrich_batch, request=REQUEST, signals={enrichment_complete: NEWS}, model=Books))
def test_in_no_world_is_a_batch_submitted_again_that_was_answered(world: World[EnrichBatch, Tally, object]) -> None:
    world.run()
    taken = [batch.id for batch in world.model.submissions]
    assert all(taken.count(id) <= 2 for id in taken)
    assert world.model.again == []


def test_the_ten_laws_hold() -> None:
    check(enrich_batch, request=REQUEST, signals={enrichment_complete: NEWS}, model=Books, examples=5, elsewhere=False)
    check(add_subscriber, examples=5, elsewhere=False)
    check(upload, examples=3, elsewhere=False)


def test_lint_finds_nothing() -> None:
    for one in (enrich_batch, enrich_part, add_subscriber, upload):
        assert lint(one) == []


@pytest.mark.shows("S2.34", "S2.38", "S2.51")
def test_the_definition_is_the_seeds() -> None:
    assert enrich_batch.name == "subscriber-enrichment"
    assert enrichment_complete.name == "enrichment-complete"
    assert Patience().limit == timedelta(hours=24)
    assert Interrupted in contracts.submit_batch.shape.failures.__args__
    assert contracts.submit_batch.policies.crash == "fail"
    assert isinstance(Failure(Refused(400, "", "")), Failure)


# Recorded executions go on under later code


def test_the_golden_journals_hold_each_way_that_a_batch_goes() -> None:
    assert {file.stem for file in FOLDER.glob("*.json")} == {name for name, _ in made()}


@pytest.mark.shows("S2.5")
@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_a_recorded_batch_still_folds_to_its_exit(file: Path) -> None:
    for one in read(file.read_text(), str(file)):
        verdict = compared(one, definitions)
        assert verdict.verdict == "fits", "\n".join([verdict.why, *verdict.lines])
