"""The adapter against the stand-in, request by request; its documents; the stand-in's own rules; and the verdict."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from socket import socket
from typing import Any

import httpx2
import pytest
from attrs import evolve

from adapters.fullenrich import client, settings
from adapters.fullenrich.bindings import check_credits, fetch_results
from adapters.fullenrich.callbacks import enrichment_webhooks, on_results, on_subscriber
from adapters.fullenrich.client import FullEnrich
from adapters.fullenrich.document import batch_of, results_of, submission
from adapters.fullenrich.part import part
from adapters.fullenrich.settings import Provider, provider, ways
from adapters.fullenrich.triggers import debounced
from adapters.fullenrich.verdict import judged
from adapters.standins.fullenrich import Faults, Ledger, create_app, profile_of, serve
from domains.enrichment.failures import NotConfigured, NotFound, RateLimited, Refused, Unanswered, Unauthorized, Unavailable, Unexpected
from domains.enrichment.values import AskCredits, Batch, Credits, EnrichBatch, Fetch, Found, Job, Profile
from domains.enrichment.workflows import enrich_batch
from flowdsl import Failure, FlowError, Success
from flowdsl.service.verifiers import Forged
from flowdsl.service.webhooks import Delivery

pytestmark = pytest.mark.anyio

BULK = "/contact/reverse/email/bulk"
BATCH = Batch("b-1", (Job(1, "kim0@gmail.com"), Job(2, "kim1@gmail.com")))


def at(url: str, key: str = "key") -> FullEnrich:
    return FullEnrich(Provider(f"{url}/api/v2", key, None, timedelta(minutes=1)))


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serve(create_app(Ledger(balance=42.5), work=None, per_minute=1000)) as url:
        monkeypatch.setenv(settings.URL, f"{url}/api/v2")
        monkeypatch.setenv(settings.KEY, "key")
        yield url


# Requests


@pytest.mark.shows("S2.2")
async def test_a_batch_is_submitted_read_and_done(standin: str) -> None:
    answer = (await at(standin).post(BULK, submission(BATCH, None))).unwrap()
    id = answer["enrichment_id"]
    open = (await fetch_results(Fetch(id))).unwrap()
    assert (open.status, open.final, [one.profile for one in open.results]) == ("IN_PROGRESS", False, [None, None])
    httpx2.post(f"{standin}/_standin/finish", timeout=60).raise_for_status()
    done = (await fetch_results(Fetch(id))).unwrap()
    assert (done.status, done.final, [one.job for one in done.results]) == ("FINISHED", True, [1, 2])
    assert done.credits == sum(profile_of(job.email) is not None for job in BATCH.jobs)
    assert await check_credits(AskCredits()) == Success(Credits(42.5 - done.credits))


async def test_a_batch_without_enough_credit_is_a_document_too(standin: str) -> None:
    id = (await at(standin).post(BULK, submission(BATCH, None))).unwrap()["enrichment_id"]
    httpx2.post(f"{standin}/_standin/credits", json={"balance": 0}, timeout=60).raise_for_status()
    httpx2.post(f"{standin}/_standin/finish", timeout=60).raise_for_status()
    assert httpx2.get(f"{standin}/api/v2{BULK}/{id}", headers={"Authorization": "Bearer key"}, timeout=60).status_code == 402
    assert (await fetch_results(Fetch(id))).unwrap().status == "CREDITS_INSUFFICIENT"


async def test_what_it_refuses(standin: str) -> None:
    assert await at(standin, "other").get("/account/credits") == Failure(Unauthorized("error.api.key"))
    assert await fetch_results(Fetch("unknown")) == Failure(NotFound("unknown"))
    bad = evolve(BATCH, jobs=(*BATCH.jobs, Job(3, "no address")))
    refused = (await at(standin).post(BULK, submission(bad, None))).failure()
    assert refused == Refused(400, "error.reverse.email.invalid", "email is invalid")
    many = evolve(BATCH, jobs=tuple(Job(n, f"k{n}@gmail.com") for n in range(101)))
    assert isinstance((await at(standin).post(BULK, submission(many, None))).failure(), Refused)


@pytest.mark.shows("S2.29")
async def test_after_sixty_calls_in_a_minute_it_rests() -> None:
    with serve(create_app(per_minute=2)) as url:
        answers = [await at(url).get("/account/credits") for _ in range(3)]
    assert answers[2] == Failure(RateLimited(timedelta(minutes=1)))


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_nobody_there_is_a_request_that_was_not_sent(method: str) -> None:
    with socket() as bound:  # and not listening: nobody else gets this port meanwhile
        bound.bind(("127.0.0.1", 0))
        nobody = at(f"http://127.0.0.1:{bound.getsockname()[1]}")
        answer: Any = await (nobody.get("/account/credits") if method == "GET" else nobody.post(BULK, submission(BATCH, None)))
    assert isinstance(answer.failure(), Unavailable)


async def test_a_connection_that_breaks_leaves_a_submission_in_doubt_and_no_look() -> None:
    ledger = Ledger()
    with serve(create_app(ledger, work=None, faults=Faults(dropped=1.0))) as url:
        assert isinstance((await at(url).post(BULK, submission(BATCH, None))).failure(), Unanswered)
    assert len(ledger.batches) == 1, "it was taken"


@pytest.mark.shows("S2.29")
async def test_an_answer_that_takes_too_long_leaves_a_submission_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_PATIENCE", 0.2)
    app = create_app(work=None)
    app.state.standin.gates["answer"].move(0)
    with serve(app) as url:
        failure = (await at(url).post(BULK, submission(BATCH, None))).failure()
    assert isinstance(failure, Unanswered) and "TimeoutError" in str(failure)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_fault_of_its_own_is_worth_another_try(status: int) -> None:
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    async def unwell(_: Any) -> Response:
        return Response("<html>unwell</html>", status)

    with serve(Starlette(routes=[Route("/api/v2/account/credits", unwell)])) as url:
        assert (await at(url).get("/account/credits")).failure() == Unavailable("GET /account/credits", status)


# Settings


def test_settings_say_what_is_wrong_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.KEY, raising=False)
    assert isinstance(provider().failure(), NotConfigured)
    monkeypatch.setenv(settings.KEY, "new,old")
    assert provider().unwrap().key == "new"
    assert "new" not in repr(provider().unwrap())
    monkeypatch.setenv(settings.URL, "ftp://x")
    assert provider().failure().setting == settings.URL
    monkeypatch.setenv(settings.MONTHLY, "many")
    with pytest.raises(FlowError, match="ENRICHMENT_MONTHLY_CREDITS: is 'many'"):
        ways()
    for wrong in ({settings.BATCH: "101"}, {settings.BATCH: "0"}, {settings.POLL: "soon"}, {settings.MONTHLY: "-1"}):
        with pytest.raises(FlowError, match=next(iter(wrong))):
            part(wrong)


def test_what_the_clock_starts_is_patient_as_configured() -> None:
    (schedule,) = part({settings.KEY: "key", settings.BATCH: "7", settings.POLL: "1m"}).schedules
    order: EnrichBatch = schedule.request
    assert (order.limit, order.patience.poll, order.patience.limit) == (7, timedelta(minutes=1), timedelta(hours=24))


@pytest.mark.shows("S2.20")
def test_without_a_key_there_is_no_endpoint_and_no_schedule() -> None:
    bare, keyed = part({}), part({settings.KEY: "key"})
    assert ([*bare.schedules], [*bare.webhooks]) == ([], [])
    assert [one.id for one in keyed.schedules] == ["enrichment"]
    assert [one.name for one in keyed.webhooks] == ["fullenrich"]
    assert keyed.schedules[0].timetable.overlap == "allow", "a batch waits for a day, and the next quarter of an hour comes"


def test_whoever_asks_in_one_window_asks_for_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.DEBOUNCE, "30s")
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    first, later, other = (debounced("subscriber", noon + timedelta(seconds=seconds)) for seconds in (0, 29.9, 30))
    assert enrich_batch.key_of(first) == enrich_batch.key_of(later) != enrich_batch.key_of(other)
    assert first.not_before == noon + timedelta(seconds=30) == later.not_before


# Documents


@pytest.mark.shows("S2.2")
def test_what_is_sent() -> None:
    sent = submission(BATCH, "https://hooks.example.org/webhooks/fullenrich")
    assert sent["data"][0] == {"email": "kim0@gmail.com", "custom": {"batch_id": "b-1", "job_id": "1"}}
    assert all(isinstance(value, str) for one in sent["data"] for value in one["custom"].values())
    assert sent["webhook_url"].endswith("/fullenrich")


def told(**more: Any) -> dict[str, Any]:
    item = {"custom": {"batch_id": "b-1", "job_id": "7"}, "profile": {"full_name": "Mira\0 Okafor"}}
    return {"id": "e", "status": "FINISHED", "data": [item], "cost": {"credits": 1}} | more


@pytest.mark.shows("S2.5")
def test_what_is_read() -> None:
    assert results_of(told()).results == (Found(7, Profile("Mira Okafor")),)
    assert batch_of(told()) == "b-1"
    assert batch_of(told(data=[])) is None
    assert results_of(told(status="NEW WORD")).status == "UNKNOWN"
    assert results_of(told(data=[{"custom": {}}, {"custom": None}, None, {"custom": {"job_id": "x"}}])).results == ()


def test_a_head_count_of_nought_is_the_range() -> None:
    company = {"name": "Acme", "headcount": 0, "headcount_range": "51-200", "industry": {"main_industry": "Software"}}
    item = {"custom": {"job_id": "1"}, "profile": {"full_name": "K", "employment": {"current": {"title": "VP", "company": company}}}}
    (found,) = results_of(told(data=[item])).results
    assert found.profile is not None
    assert (found.profile.headcount, found.profile.industry, found.profile.company) == ("51-200", "Software", "Acme")


@pytest.mark.parametrize("document", [None, [], {}, {"id": 3}, told(data="x"), told(cost={"credits": "1"}), told(cost={"credits": -1})], ids=str)
def test_what_cannot_be_read_is_no_result(document: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        results_of(document)


# Webhooks in


def test_a_callback_is_believed_with_either_key_and_with_no_other() -> None:
    (hook,) = enrichment_webhooks({settings.KEY: "new,old"})
    body = json.dumps(told()).encode()
    for key in ("new", "old"):
        assert hook.verifier.verify(body, {"X-Signature-SHA1": hmac.new(key.encode(), body, hashlib.sha1).hexdigest()})
    with pytest.raises(Forged):
        hook.verifier.verify(body + b" ", {"X-Signature-SHA1": hmac.new(b"new", body, hashlib.sha1).hexdigest()})
    with pytest.raises(Forged):
        hook.verifier.verify(body, {})


@pytest.mark.shows("S2.14", "S2.43")
def test_whom_a_callback_tells() -> None:
    reactions: list[Any] = on_results(Delivery("fullenrich", "d", json.dumps(told()).encode()))
    assert [(one.to, one.signal.name) for one in reactions] == [("b-1", "enrichment-complete")]
    reactions = on_results(Delivery("fullenrich", "d", json.dumps(told(data=[])).encode()))
    assert [one.to for one in reactions] == ["e"]


def test_what_a_new_subscriber_starts() -> None:
    (reaction,) = on_subscriber(Delivery("subscribers", "d", b'{"email": "kim@gmail.com"}'))
    started: Any = reaction
    assert (started.workflow.name, started.request.email) == ("enrichment.subscriber", "kim@gmail.com")


# The verdict


def row(email: str, name: str | None, state: str = "enriched", written: int = 1) -> dict[str, Any]:
    return {"email": email, "profile": None if name is None else json.dumps({"full_name": name}), "state": state, "written": written}


def booked(email: str, name: str | None, charged: float = 1.0, *, done: bool = True) -> dict[str, Any]:
    return {"items": [{"email": email, "full_name": name, "charged": charged, "done": done}]}


def test_a_verdict_that_is_clean() -> None:
    found = judged([booked("a", "A"), booked("b", None, 0.0)], [row("a", "A"), row("b", None, "absent")], 1.0)
    assert found.clean, found


@pytest.mark.parametrize(
    ("batches", "rows", "credits", "what"),
    [
        ([booked("a", "A"), booked("a", "A")], [row("a", "A")], 2.0, "paid_twice"),
        ([booked("a", None, 0.0), booked("a", None, 0.0)], [row("a", None, "absent")], 0.0, "asked_twice"),
        ([booked("a", "A")], [row("a", None, "failed", 0)], 1.0, "lost"),
        ([booked("a", "A")], [row("a", None, "batched", 0)], 1.0, "lost"),
        ([], [row("a", "A")], 0.0, "lost"),
        ([booked("a", "A")], [row("a", "B")], 1.0, "wrong"),
        ([booked("a", "A")], [row("a", None, "absent")], 1.0, "wrong"),
        ([booked("a", "A")], [row("a", "A", written=2)], 1.0, "processed_twice"),
        ([booked("a", "A")], [row("a", "A")], 0.0, "unaccounted"),
    ],
)
def test_a_verdict_that_is_not(batches: list[Any], rows: list[Any], credits: float, what: str) -> None:
    found = judged(batches, rows, credits)
    assert not found.clean
    assert getattr(found, what)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (told(id="another"), "it is another batch's"),
        ({"status": "FINISHED"}, "it has no id"),
        (told(data={"0": {}}), "data is no list"),
        (told(cost={"credits": 1e12}), "cost.credits is no number"),
    ],
    ids=["another batch", "no id", "no list", "a fortune"],
)
async def test_a_look_that_lies_is_no_news(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], problem: str) -> None:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def lying(_: Any) -> JSONResponse:
        return JSONResponse(answer)

    with serve(Starlette(routes=[Route(f"/api/v2{BULK}/e", lying)])) as url:
        monkeypatch.setenv(settings.URL, f"{url}/api/v2")
        monkeypatch.setenv(settings.KEY, "key")
        failure = (await fetch_results(Fetch("e"))).failure()
    assert isinstance(failure, Unexpected) and failure.problem == problem


async def test_a_redirection_is_no_answer() -> None:
    from starlette.applications import Starlette
    from starlette.responses import RedirectResponse
    from starlette.routing import Route

    async def elsewhere(_: Any) -> RedirectResponse:
        return RedirectResponse("https://app.example.org/login")

    with serve(Starlette(routes=[Route("/api/v2/account/credits", elsewhere)])) as url:
        assert isinstance((await at(url).get("/account/credits")).failure(), Unexpected)
