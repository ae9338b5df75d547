"""Whole batches over real HTTP and real Postgres: every way in which a callback may come, or not; and what starts a batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from standardwebhooks import Webhook as Standard

from adapters.fullenrich import settings
from adapters.fullenrich.triggers import (
    emit_enrichment_complete,
    get_execution_for_enrichment,
    trigger_enrichment_for_subscriber,
    trigger_scheduled_enrichment_batch,
)
from adapters.standins.fullenrich import Faults, Ledger, profile_of
from domains.enrichment.values import EnrichmentResults, Found, Profile, Saved
from flowdsl.codec import codec
from tests.adapters.desk import ENVIRONMENT, Desk, desk_at
from tests.service.stage import started

pytestmark = pytest.mark.anyio

At: TypeAlias = Callable[..., AbstractAsyncContextManager[Desk]]
SOON = timedelta(milliseconds=200)
EMAILS = [f"kim{number}@gmail.com" for number in range(8)]
KNOWN = sum(profile_of(email) is not None for email in EMAILS)


@pytest.fixture
def at(database: str, monkeypatch: pytest.MonkeyPatch) -> At:
    return partial(desk_at, database, monkeypatch)


@pytest.fixture
async def desk(at: At) -> AsyncIterator[Desk]:
    async with at() as opened:
        await opened.add(*EMAILS)
        yield opened


async def whole(desk: Desk) -> bool:
    """Whether each job has its result, once, and the subscribers have what the provider's books say."""
    assert await desk.states() == {"enriched": KNOWN, "absent": len(EMAILS) - KNOWN}
    assert await desk.processed() == {1}
    rows = await desk.connection.fetch("select email, profile from enrichment.subscribers")
    for row in rows:
        known = profile_of(row["email"])
        kept = json.loads(row["profile"]) if row["profile"] else None
        assert (kept or {}).get("full_name") == (known or {}).get("full_name"), row["email"]
    return True


# The callback


@pytest.mark.shows("S2.3", "S2.4", "S2.6", "S2.9", "S2.14-17", "S2.22", "S2.23", "S2.43", "S2.47")
async def test_a_callback_brings_the_results(desk: Desk) -> None:
    id = await desk.start()
    enrichment_id = await desk.waits(id)
    assert await get_execution_for_enrichment(desk.store, enrichment_id) == id
    await desk.tell("finish")
    found = await desk.ended(id, "succeeded")
    assert found["result"]["enriched"] == KNOWN
    assert await whole(desk)
    assert await get_execution_for_enrichment(desk.store, enrichment_id) is None, "it is over"
    assert await get_execution_for_enrichment(desk.store, "nobody-knows-it") is None


@pytest.mark.shows("S2.12")
async def test_a_callback_before_the_mapping(at: At) -> None:
    async with at(faults=Faults(early=1.0)) as desk:
        await desk.add(*EMAILS)
        await desk.tell("gates", answer=True)
        id = await desk.start()
        await desk.eventually(lambda: desk.callbacks("sent"))
        (batch,) = await desk.submissions()
        assert not batch["answered"], "the provider has called back, and not answered yet"
        await desk.tell("gates", answer=False)
        await desk.ended(id, "succeeded")
        assert await whole(desk)


async def test_a_callback_after_an_answer_that_was_lost(at: At) -> None:
    async with at(work=0.2, faults=Faults(dropped=1.0)) as desk:
        await desk.add(*EMAILS)
        await desk.ended(await desk.start(), "succeeded")
        assert await whole(desk)
        assert len(await desk.submissions()) == 1, "paid once"


@pytest.mark.shows("S2.15")
async def test_a_callback_that_comes_twice(desk: Desk) -> None:
    id = await desk.start()
    await desk.waits(id)
    await desk.tell("finish", count=4, quiet=True)
    for bytes in ("some", "other"):  # some of the results, twice, while it waits for the others
        assert (await desk.tell("callback", status="IN_PROGRESS", custom={"bytes": bytes}))["status"] == 200
    await desk.tell("finish", quiet=True)
    assert (await desk.tell("callback"))["status"] == 200
    assert (await desk.tell("callback"))["status"] == 200  # the same bytes
    assert (await desk.tell("callback", status="FINISHED"))["status"] == 200
    await desk.ended(id, "succeeded")
    assert (await desk.tell("callback", custom={"bytes": "late"}))["status"] == 200
    await desk.eventually(lambda: desk.callbacks("ended"))
    assert await whole(desk)
    assert len(await desk.callbacks()) == 4, "equal bytes are one delivery"


async def test_callbacks_out_of_order(desk: Desk) -> None:
    id = await desk.start()
    await desk.waits(id)
    await desk.tell("finish", quiet=True)
    await desk.tell("callback")
    await desk.tell("callback", first=2, status="IN_PROGRESS")
    await desk.ended(id, "succeeded")
    assert await whole(desk)


@pytest.mark.shows("S2.22")
async def test_a_callback_for_an_unknown_id_does_nothing(desk: Desk) -> None:
    id = await desk.start()
    await desk.waits(id)
    stranger = "0199aaaa-0000-7000-8000-000000000000"
    assert (await desk.tell("callback", id="unknown", custom={"batch_id": stranger}, status="FINISHED"))["status"] == 200
    await desk.eventually(lambda: desk.callbacks("unmatched"))
    assert await desk.states() == {"batched": len(EMAILS)}
    await desk.tell("finish")
    await desk.ended(id, "succeeded")
    assert await whole(desk)


@pytest.mark.parametrize("forged", [{"key": "not the key"}, {"unsigned": True}], ids=["another key", "no signature"])
async def test_a_forged_callback_is_refused(desk: Desk, forged: dict[str, Any]) -> None:
    id = await desk.start()
    await desk.waits(id)
    assert (await desk.tell("callback", status="FINISHED", **forged))["status"] == 401
    assert await desk.callbacks() == [], "nothing of it is kept"
    assert await desk.states() == {"batched": len(EMAILS)}
    await desk.tell("finish")
    await desk.ended(id, "succeeded")
    assert await whole(desk)


async def test_a_callback_that_names_jobs_of_another_batch_finishes_none_of_them(at: At) -> None:
    """Signed as it should be, and wrong: the provider says something of what it was not asked in that batch, or never asked."""
    async with at() as desk:
        await desk.add(*EMAILS)
        first, second = [await desk.start(window=window, jobs=1) for window in "12"]
        batches = {id: await desk.waits(id) for id in (first, second)}
        other = await desk.connection.fetchval("select id from enrichment.jobs where batch = $1", second)
        await desk.tell("finish", quiet=True)
        for job in (other, 10**15):
            assert (await desk.tell("callback", batch=batches[first], custom={"job_id": str(job)}))["status"] == 200
        await desk.ended(first, "succeeded")
        assert await desk.connection.fetchval("select state from enrichment.jobs where id = $1", other) == "batched"
        reason = await desk.connection.fetchval("select reason from enrichment.jobs where batch = $1", first)
        assert reason == "the final results say nothing of it"
        await desk.tell("callback", batch=batches[second])
        await desk.ended(second, "succeeded")
        assert await desk.processed() == {1}


async def test_a_callback_signed_with_the_key_that_is_being_replaced(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, settings.KEY, "key,old key")
    async with at() as desk:
        await desk.add(*EMAILS)
        id = await desk.start()
        await desk.waits(id)
        await desk.tell("finish", quiet=True)
        assert (await desk.tell("callback", key="old key"))["status"] == 200
        await desk.ended(id, "succeeded")


async def test_partial_results_are_written_as_they_come(desk: Desk) -> None:
    id = await desk.start()
    await desk.waits(id)
    await desk.tell("finish", count=4)
    known = sum(profile_of(email) is not None for email in EMAILS[:4])
    await desk.tell("callback", status="IN_PROGRESS")
    await desk.eventually(lambda: desk.connection.fetchval("select count(*) from enrichment.jobs where state = 'enriched'"))
    assert await desk.states() == {"enriched": known, "batched": len(EMAILS) - known}
    await desk.tell("finish")
    await desk.ended(id, "succeeded")
    assert await whole(desk)


async def test_a_callback_without_items_finds_who_waits_for_the_providers_id(desk: Desk) -> None:
    id = await desk.start()
    await desk.waits(id)
    await desk.tell("callback", status="CANCELED", empty=True)
    await desk.ended(id, "succeeded")
    assert await desk.states() == {"failed": len(EMAILS)}


# No callback


async def test_no_callback_ever_and_the_look_finds_it(at: At) -> None:
    async with at(work=0.1, faults=Faults(mute=1.0)) as desk:
        await desk.add(*EMAILS)
        await desk.ended(await desk.start(poll=SOON), "succeeded")
        assert await whole(desk)


@pytest.mark.shows("S2.49")
async def test_no_callback_ever_and_the_time_is_over(desk: Desk) -> None:
    id = await desk.start(limit=timedelta(seconds=1), poll=SOON)
    found = await desk.ended(id, "failed")
    assert "expired" in json.dumps(found).lower()
    assert await desk.states() == {"failed": len(EMAILS)}
    reasons = {row["reason"] for row in await desk.connection.fetch("select reason from enrichment.jobs")}
    assert len(reasons) == 1 and "expired" in reasons.pop()
    assert (await desk.tell("callback", status="FINISHED"))["status"] == 200
    await desk.eventually(lambda: desk.callbacks("ended"))
    assert await desk.states() == {"failed": len(EMAILS)}, "a late callback changes nothing"


# Submissions


@pytest.mark.shows("S2.29", "S2.48")
async def test_what_was_not_taken_is_submitted_again(at: At) -> None:
    async with at(work=0.1, faults=Faults(seed=3, refused=0.7)) as desk:
        await desk.add(*EMAILS)
        await desk.ended(await desk.start(poll=SOON), "succeeded")
        assert await whole(desk)
        assert len(await desk.submissions()) == 1
        assert any(request.startswith("POST") and not request.endswith("200") for request in (await desk.ask("stats"))["requests"])


async def test_an_answer_of_504_to_what_was_taken_costs_nothing_more(at: At) -> None:
    """The seed retries 504; whoever sent it had taken the batch. The provider charges an address once in three months."""
    async with at(work=0.1, faults=Faults(seed=1, late=0.5)) as desk:
        await desk.add(*EMAILS)
        await desk.ended(await desk.start(poll=SOON), "succeeded")
        assert await whole(desk)
        charges = [item["charged"] for batch in await desk.submissions() for item in batch["items"]]
        assert sum(charges) <= KNOWN


async def test_a_submission_that_nobody_answered_is_made_once_more(at: At) -> None:
    async with at(faults=Faults(dropped=1.0)) as desk:
        await desk.add(*EMAILS)
        id = await desk.start(silence=SOON)
        await desk.waits_for_a_callback_alone(id)
        assert len(await desk.submissions()) == 2, "and never a third time"
        await desk.tell("finish")
        await desk.ended(id, "succeeded")
        assert await whole(desk)


async def test_one_bad_row_does_not_block_the_others(at: At) -> None:
    async with at(ledger=Ledger(unwanted={EMAILS[3]}), work=0.1) as desk:
        await desk.add(*EMAILS)
        await desk.ended(await desk.start(), "succeeded")
        states = await desk.states()
        assert states.pop("failed") == 1
        assert sum(states.values()) == len(EMAILS) - 1
        reason = await desk.connection.fetchval("select reason from enrichment.jobs where state = 'failed'")
        assert "error.reverse.email.invalid" in reason
        asked = [item["email"] for batch in await desk.submissions() for item in batch["items"]]
        assert sorted(asked) == sorted({*EMAILS} - {EMAILS[3]})


@pytest.mark.shows("S2.16", "S2.58")
async def test_cancelled_while_it_waits(desk: Desk) -> None:
    id = await desk.start()
    enrichment_id = await desk.waits(id)
    assert (await desk.service.post(f"/api/v1/workflows/{id}/cancel", json={"reason": "no longer"})).status_code < 300
    await desk.ended(id, "cancelled")
    assert await desk.states() == {"failed": len(EMAILS)}
    assert await get_execution_for_enrichment(desk.store, enrichment_id) is None


# Credit and budget


async def test_missing_credit_leaves_the_rest_pending_until_there_is_some(at: At) -> None:
    async with at(ledger=Ledger(balance=2)) as desk:
        await desk.add(*EMAILS)
        first = await desk.start(window="1", jobs=2)
        await desk.waits(first)
        await desk.ended_of_themselves(first, 1)  # what it left the rest to has found no credit
        assert await desk.states() == {"batched": 2, "pending": len(EMAILS) - 2}, "as many as there was credit for"
        await desk.tell("finish")
        await desk.ended(first, "succeeded")
        assert (await desk.ask("ledger"))["balance"] == 0
        found = await desk.ended(await desk.start(window="2"), "succeeded")
        assert found["result"]["status"] == "nothing to do", "without credit nothing is claimed"
        await desk.tell("credits", balance=100)
        last = await desk.start(window="3")
        await desk.waits(last)
        await desk.tell("finish")
        await desk.ended(last, "succeeded")
        assert await whole(desk)


async def test_credit_that_ends_on_the_way_pays_for_what_it_can(at: At) -> None:
    async with at(ledger=Ledger(balance=100)) as desk:
        await desk.add(*EMAILS)
        id = await desk.start()
        await desk.waits(id)
        await desk.tell("credits", balance=2)
        await desk.tell("finish")
        found = await desk.ended(id, "succeeded")
        assert found["result"]["status"] == "CREDITS_INSUFFICIENT"
        states = await desk.states()
        assert states["enriched"] == 2
        assert states["pending"] == len(EMAILS) - states["enriched"] - states.get("absent", 0)


async def test_the_months_budget_is_never_exceeded_by_batches_at_once(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.MONTHLY, "5")
    async with at(work=0.2) as desk:
        await desk.add(*EMAILS)
        ids = [await desk.start(window=str(number), jobs=3) for number in range(4)]
        for id in ids:
            await desk.ended(id, "succeeded")
        assert sum(len(batch["items"]) for batch in await desk.submissions()) <= 5 + 3, "what was kept back and not spent may be claimed again"
        assert sum(item["charged"] for batch in await desk.submissions() for item in batch["items"]) <= 5


async def test_what_partial_results_cost_frees_nothing_of_the_months_budget(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.MONTHLY, "6")
    async with at() as desk:
        await desk.add(*EMAILS)
        id = await desk.start(window="1", jobs=5)
        batch = await desk.waits(id)
        await desk.eventually(lambda: desk.connection.fetchval("select count(*) = 2 from enrichment.batches where state = 'submitted'"))
        await desk.tell("finish", count=2)
        await desk.tell("callback", batch=batch, status="IN_PROGRESS")
        await desk.eventually(lambda: desk.connection.fetchval("select credits from enrichment.batches where id = $1 and credits > 0", id))
        found = await desk.ended(await desk.start(window="2", jobs=5), "succeeded")
        assert found["result"]["status"] == "nothing to do", "the others of the first batch may still cost a credit each"
        assert [len(one["items"]) for one in await desk.submissions()] == [5, 1], "the second is what was left of the budget"


# Claims


@pytest.mark.shows("S2.1", "S2.45")
async def test_claims_at_once_share_the_jobs_and_none_is_taken_twice(at: At) -> None:
    async with at(work=0.1) as desk:
        await desk.add(*(f"someone{number}@gmail.com" for number in range(60)))
        for id in [await desk.start(window=str(number), jobs=7) for number in range(8)]:
            await desk.ended(id, "succeeded")
        await desk.eventually(partial(_all_done, desk))
        asked = [item["email"] for batch in await desk.submissions() for item in batch["items"]]
        assert len(asked) == len(set(asked)) == 60
        assert all(len(batch["items"]) <= 7 for batch in await desk.submissions())


async def _all_done(desk: Desk) -> bool:
    return {*(await desk.states())} <= {"enriched", "absent"}


# What starts a batch


@pytest.mark.shows("S2.8", "S2.18", "S2.19", "S2.54")
async def test_subscribers_of_one_moment_are_one_batch(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    async with at(work=0.1) as desk:
        monkeypatch.setenv(settings.DEBOUNCE, "1000000h")  # a window that began in 1970, and ends in 2084: none ends while this runs
        personal, corporate = Saved(1, "created", "personal"), Saved(2, "created", "corporate")
        ids = [await trigger_enrichment_for_subscriber(desk.store, personal) for _ in range(5)]
        assert len({*ids}) == 1 and ids[0] is not None
        assert await trigger_enrichment_for_subscriber(desk.store, corporate) is None


@pytest.mark.shows("S2.8", "S2.20", "S2.21")
async def test_a_batch_by_hand(desk: Desk) -> None:
    id = await trigger_scheduled_enrichment_batch(desk.store)
    enrichment_id = await desk.waits(id)
    assert await trigger_scheduled_enrichment_batch(desk.store) != id, "each time another, which finds nothing left to ask"
    news = EnrichmentResults(enrichment_id, "IN_PROGRESS", (Found(1, Profile("Kim")),))
    assert await emit_enrichment_complete(desk.store, id, news) == "sent"
    assert await emit_enrichment_complete(desk.store, id, news) == "again"
    await desk.tell("finish")
    await desk.ended(id, "succeeded")
    assert await desk.processed() == {1}


@pytest.mark.shows("S2.10", "S2.41", "S2.44")
async def test_new_subscribers_by_webhook_are_enriched_together(at: At) -> None:
    async with at(work=0.1) as desk:
        signed = Standard(ENVIRONMENT["ENRICHMENT_SUBSCRIBERS_SECRET"])
        for number, email in enumerate([*EMAILS, "kim@example.org", EMAILS[0]]):
            body, id, now = json.dumps({"email": email, "source": "form"}), f"msg_{number}", datetime.now(UTC)
            headers = {"webhook-id": id, "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signed.sign(id, now, body)}
            answers = await asyncio.gather(*(desk.service.post("/webhooks/subscribers", content=body, headers=headers) for _ in range(2)))
            assert {answer.status_code for answer in answers} == {200}
        await desk.eventually(partial(_whole_list, desk))
        assert await desk.connection.fetchval("select count(*) from enrichment.subscribers") == len(EMAILS) + 1
        asked = [item["email"] for batch in await desk.submissions() for item in batch["items"]]
        assert sorted(asked) == sorted(EMAILS)


async def _whole_list(desk: Desk) -> bool:
    states = await desk.states()
    return states.get("enriched", 0) + states.get("absent", 0) == len(EMAILS)


@pytest.mark.shows("S2.42")
async def test_an_upload_is_enriched(at: At, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(settings.UPLOADS, str(tmp_path))
    rows = [
        "name,Email,note",
        *(f'"Kim {n}",{email},"two\nlines"' for n, email in enumerate(EMAILS)),
        "Nobody,,",
        "Twice,KIM0@gmail.com,",
        "C,c@example.org,",
    ]
    (tmp_path / "list.csv").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    async with at(work=0.1) as desk:
        id = await started(desk.service, "enrichment.upload", {"path": "list.csv"})
        found = await desk.ended(id)
        assert found["result"] == {"created": 9, "known": 1, "personal": 8, "refused": 1}, found
        await desk.eventually(partial(_whole_list, desk))
        kept = await desk.connection.fetchval("select raw_payload from enrichment.subscribers where email = $1", EMAILS[0])
        assert json.loads(kept) == {"name": "Kim 0", "email": EMAILS[0], "note": "two\nlines"}
        again = await desk.ended(await started(desk.service, "enrichment.upload", {"path": "list.csv"}))
        assert again["result"] == {"created": 0, "known": 10, "personal": 0, "refused": 1}


@pytest.mark.parametrize(
    ("path", "content", "problem"),
    [
        ("missing.csv", None, "No such file"),
        ("../secret.csv", "email\nkim@gmail.com\n", "is not in"),
        ("other.csv", "name\nKim\n", "names no column"),
        ("bytes.csv", b"email\n\xff\xfe@gmail.com\n", "line 2 is not UTF-8"),
    ],
)
async def test_an_upload_that_cannot_be_read(
    at: At, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str, content: str | bytes | None, problem: str
) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    monkeypatch.setenv(settings.UPLOADS, str(folder))
    if content is not None:
        (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)
    async with at() as desk:
        found = await desk.ended(await started(desk.service, "enrichment.upload", {"path": path}))
        assert found["status"] == "failed" and problem in json.dumps(found), found


@pytest.mark.shows("S2.5", "S2.23")
def test_the_payload_of_the_signal_has_a_code() -> None:
    news = EnrichmentResults("e", "FINISHED", (Found(1, Profile("王")),), 1.5)
    assert codec(EnrichmentResults).decode(codec(EnrichmentResults).encode(news)) == news
