"""Planning Center as a source: every quirk of its fact pages, at the edge where it is translated."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from attrs import define, field

from adapters.planning_center import client, settings
from adapters.planning_center.budget import Grant
from adapters.planning_center.client import open_source
from adapters.planning_center.document import instant, more, records, spelled, total
from adapters.planning_center.manifest import PEOPLE
from adapters.planning_center.quota import Quota, pause, quota, retry_after
from domains.sync.failures import (
    Malformed,
    NotConfigured,
    NotFound,
    RateLimited,
    Refused,
    Unauthorized,
    Unavailable,
    Unexpected,
)
from domains.sync.graph import plan
from domains.sync.manifest import Entity
from flowdsl import Success

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
RATE = {"X-PCO-API-Request-Rate-Limit": "100", "X-PCO-API-Request-Rate-Period": "20 seconds", "X-PCO-API-Request-Rate-Count": "37"}


def entity(name: str) -> Entity:
    found = PEOPLE.entity(name)
    assert found is not None
    return found


# The environment


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.URL, "http://church.test")
    monkeypatch.setenv(settings.TOKEN, "app_id:secret")
    monkeypatch.delenv(settings.CONTACT, raising=False)


def test_importing_the_deployment_needs_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.TOKEN)
    from adapters.deployment import deployment

    assert {"sync.main", "sync.entity"} <= set(deployment.names)


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        (settings.TOKEN, "", "is not set"),
        (settings.TOKEN, "two words", "is no credential"),
        (settings.TOKEN, "tab\there:x", "is no credential"),
        (settings.URL, "church.test", "is no address"),
        (settings.URL, "ftp://church.test", "is no address"),
    ],
)
def test_a_bad_setting_is_one_clear_failure(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, problem: str) -> None:
    monkeypatch.setenv(variable, value)
    failure = open_source(1.0).failure()
    assert isinstance(failure, NotConfigured)
    assert failure.setting == variable
    assert problem in failure.problem
    assert variable in str(failure)
    assert "\n" not in str(failure)


def test_the_address_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.URL)
    assert settings.configured().unwrap().root == "https://api.planningcenteronline.com/people/v2"


@pytest.mark.parametrize("url", ["http://church.test", "http://church.test/", "http://church.test/people/v2", "http://church.test/people/v2/"])
def test_the_address_may_name_the_api_or_its_host(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv(settings.URL, url)
    assert settings.configured().unwrap().root == "http://church.test/people/v2"


@pytest.mark.shows("S4.26")
def test_the_secret_is_shown_nowhere() -> None:
    known = settings.configured().unwrap()
    assert "secret" not in repr(known) + known.budget


def test_a_credential_has_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    one = settings.configured().unwrap().budget
    assert settings.configured().unwrap().budget == one
    monkeypatch.setenv(settings.TOKEN, "app_id:other")
    assert settings.configured().unwrap().budget != one


# Requests. The budget is not drawn from here: what is told about it is written down


@define
class Told:
    blocked: list[timedelta] = field(factory=list[timedelta])
    learned: list[Quota] = field(factory=list[Quota])
    requests: list[httpx2.Request] = field(factory=list[httpx2.Request])


Answering = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    told = Told()

    async def draw(budget: str, wanted: int, share: float) -> Any:
        return Success(Grant(wanted, NOW, Quota(100, 20, 1), 0))

    async def learn(budget: str, grant: Grant, seen: Quota) -> None:
        told.learned.append(seen)

    async def block(budget: str, wait: timedelta) -> None:
        told.blocked.append(wait)

    for name, stand_in in {"draw": draw, "learn": learn, "block": block}.items():
        monkeypatch.setattr(client, name, stand_in)
    yield told


@pytest.fixture
async def ask(told: Told) -> AsyncIterator[Callable[[Answering], Any]]:
    """`await ask(answering)`: what `GET /people?per_page=1` gives when the source answers so."""

    async def asked(answering: Answering) -> Any:
        def handle(request: httpx2.Request) -> httpx2.Response:
            told.requests.append(request)
            return answering(request)

        await client.close()
        client._clients[asyncio.get_running_loop()] = httpx2.AsyncClient(transport=httpx2.MockTransport(handle))
        return await open_source(1.0).unwrap().get("people", [("per_page", "1")])

    yield asked
    await client.close()


def saying(status: int, body: Any = None, **headers: str) -> Answering:
    content = body if isinstance(body, bytes) else json.dumps(body if body is not None else {"data": []}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: httpx2.Response(status, content=content, headers={**RATE, **named})


def raising(error: Exception) -> Answering:
    def answer(_: httpx2.Request) -> httpx2.Response:
        raise error

    return answer


@pytest.mark.shows("S4.64")
async def test_a_request_says_who_asks_and_for_which_version(ask: Any, told: Told) -> None:
    assert isinstance(await ask(saying(200)), Success)
    request = told.requests[0]
    assert str(request.url) == "http://church.test/people/v2/people?per_page=1"
    assert request.headers["Authorization"] == "Basic " + b64encode(b"app_id:secret").decode()
    assert request.headers["X-PCO-API-Version"] == "2025-03-20"
    assert "flowdsl" in request.headers["User-Agent"]
    assert told.learned == [Quota(100, 20.0, 37)]


async def test_a_token_without_a_colon_is_a_bearer_token(ask: Any, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.TOKEN, "at_1")
    await ask(saying(200))
    assert told.requests[0].headers["Authorization"] == "Bearer at_1"


@pytest.mark.parametrize(
    "error",
    [
        httpx2.ConnectError("refused"),
        httpx2.ConnectTimeout("slow"),
        httpx2.ReadTimeout("slow"),
        httpx2.ReadError("reset"),
        httpx2.RemoteProtocolError("peer closed connection without sending complete message body"),
        httpx2.DecodingError("bad gzip"),
    ],
)
async def test_a_connection_that_fails_is_unavailable(ask: Any, error: Exception) -> None:
    failure = (await ask(raising(error))).failure()
    assert isinstance(failure, Unavailable)
    assert failure.status is None
    assert type(error).__name__ in str(failure)


@pytest.mark.parametrize(
    "body",
    [b"", b'{"data":[{"type":"Per', b"<html>busy</html>", b"\xff\xfe", b'{"data":[NaN]}', b"[]", b'{"meta":{}}', b"null", b"[" * 100_000],
)
async def test_what_is_no_document_is_malformed(ask: Any, body: bytes) -> None:
    assert (await ask(saying(200, body))).failure() == Malformed("GET /people")


@pytest.mark.parametrize("status", [408, 409, 425, 500, 502, 503, 504])
async def test_the_sources_own_faults_are_worth_another_try(ask: Any, status: int) -> None:
    assert (await ask(saying(status, {"errors": []}))).failure() == Unavailable("GET /people", status, None)


async def test_a_fault_may_say_when_to_come_back(ask: Any) -> None:
    assert (await ask(saying(503, {}, Retry_After="7"))).failure() == Unavailable("GET /people", 503, timedelta(seconds=7))


@pytest.mark.parametrize(
    ("status", "hint", "word"),
    [(401, "BABOON", "expired"), (401, "CAPUCHIN", "revoked"), (403, "PELICAN", "scope"), (403, "TRASH_PANDA", "access"), (403, "", "Check")],
)
async def test_a_refused_credential_says_what_to_do(ask: Any, status: int, hint: str, word: str) -> None:
    body = {"errors": [{"code": hint, "title": "Forbidden", "detail": hint}]} if hint else {}
    failure = (await ask(saying(status, body))).failure()
    assert isinstance(failure, Unauthorized)
    assert (failure.status, failure.hint) == (status, hint)
    assert word in failure.remedy
    assert "secret" not in str(failure)


@pytest.mark.parametrize("status", [404, 410])
async def test_what_is_not_there(ask: Any, status: int) -> None:
    assert (await ask(saying(status, {"errors": []}))).failure() == NotFound("GET /people")


async def test_a_request_that_will_never_do_says_why(ask: Any) -> None:
    body = {"errors": [{"title": "Bad Request", "detail": "cannot be queried", "source": {"parameter": "where[updated_at]"}}, {"title": "Worse"}]}
    failure = (await ask(saying(400, body))).failure()
    assert failure == Refused("GET /people", 400, "cannot be queried where[updated_at]; Worse")
    assert (await ask(saying(422, b"<html>"))).failure() == Refused("GET /people", 422, "<html>")


async def test_the_credential_is_not_carried_elsewhere(ask: Any, told: Told) -> None:
    failure = (await ask(saying(302, b"", Location="http://elsewhere.test/"))).failure()
    assert failure == Refused("GET /people", 302, "http://elsewhere.test/")
    assert len(told.requests) == 1


# Quotas


async def test_a_refusal_for_the_quota_shuts_the_door_for_everybody(ask: Any, told: Told) -> None:
    body = {"errors": [{"code": "429", "detail": "Rate limit exceeded: 118 of 100 requests per 20 seconds"}]}
    assert (await ask(saying(429, body, Retry_After="3"))).failure() == RateLimited(timedelta(seconds=3))
    assert (await ask(saying(429, body))).failure() == RateLimited(None)
    assert told.blocked == [timedelta(seconds=3), timedelta(seconds=1)]
    assert told.learned == []  # it counts refusals


@pytest.mark.parametrize(
    ("period", "seconds"),
    [("20 seconds", 20.0), ("20", 20.0), (" 20 Seconds ", 20.0), ("1 second", 1.0), ("0.5", 0.5), ("60s", 60.0)],
)
def test_both_spellings_of_the_period_are_read(period: str, seconds: float) -> None:
    assert quota({**RATE, "X-PCO-API-Request-Rate-Period": period}) == Quota(100, seconds, 37)


@pytest.mark.parametrize("headers", [{}, {**RATE, "X-PCO-API-Request-Rate-Limit": "many"}, {**RATE, "X-PCO-API-Request-Rate-Period": "0"}])
def test_headers_that_say_nothing(headers: dict[str, str]) -> None:
    assert quota(headers) is None


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("3", timedelta(seconds=3)),
        ("Thu, 01 Jan 2026 12:00:30 GMT", timedelta(seconds=30)),
        ("Thu, 01 Jan 2026 11:00:00 GMT", timedelta()),
        ("999999", timedelta(hours=1)),
        ("soon", None),
        ("-5", None),
    ],
)
def test_how_long_to_wait(text: str, wait: timedelta | None) -> None:
    assert retry_after({"Retry-After": text}, NOW) == wait


@pytest.mark.shows("S4.31")
def test_the_pause_follows_the_quota() -> None:
    default = timedelta(seconds=1)
    assert pause(None, default) == default
    assert pause(Quota(100, 20, 37), default) == timedelta()
    assert timedelta() < pause(Quota(100, 20, 90), default) < pause(Quota(100, 20, 99), default) < timedelta(seconds=20)
    assert pause(Quota(100, 20, 118), default) == timedelta(seconds=5)


# Documents


def person(**more: Any) -> dict[str, Any]:
    return {"type": "Person", "id": "501", "attributes": {"updated_at": "2025-06-01T17:40:11Z"}, **more}


@pytest.mark.shows("S4.41")
def test_a_row_becomes_a_record() -> None:
    row = {
        "type": "Email",
        "id": "9001",
        "attributes": {"address": "mira@example.org", "updated_at": "2025-06-01T17:40:11Z"},
        "relationships": {"person": {"data": {"type": "Person", "id": "501"}}},
        "links": {"self": "…"},
    }
    record = records("GET /emails", {"data": [row]}, entity("Email")).unwrap()[0]
    assert (record.id, record.owner, record.changed) == ("9001", "501", datetime(2025, 6, 1, 17, 40, 11, tzinfo=UTC))
    assert record.attributes == row["attributes"]
    assert record.relationships == {"person": {"type": "Person", "id": "501"}}


def test_one_row_and_a_list_are_read_alike() -> None:
    one = records("GET /people/501", {"data": person()}, entity("Person")).unwrap()
    assert one == records("GET /people", {"data": [person()]}, entity("Person")).unwrap()


def test_an_alias_is_the_same_entity() -> None:
    row = {"type": "PrimaryCampus", "id": "7", "attributes": {}}
    assert records("GET /campuses", {"data": [row]}, entity("Campus")).unwrap()[0].id == "7"
    assert PEOPLE.entity("PrimaryCampus") == entity("Campus")


@pytest.mark.parametrize(
    ("relationships", "kept"),
    [
        ({"primary_campus": {"data": None}}, {"primary_campus": None}),
        ({"primary_campus": {"data": []}}, {"primary_campus": []}),
        ({"primary_campus": {"links": {}}}, {"primary_campus": None}),
        ({"primary_campus": {"data": {"type": "PrimaryCampus", "id": 7}}}, {"primary_campus": {"type": "PrimaryCampus", "id": "7"}}),
        ({}, {}),
        (None, {}),
    ],
)
def test_empty_and_absent_relationships(relationships: Any, kept: dict[str, Any]) -> None:
    row = person(relationships=relationships)
    assert records("GET /people", {"data": [row]}, entity("Person")).unwrap()[0].relationships == kept


def test_a_nested_row_is_told_its_owner() -> None:
    row = {"type": "HouseholdMembership", "id": "3", "attributes": {"pending": False}, "relationships": {}}
    record = records("GET /…", {"data": [row]}, entity("HouseholdMembership"), "88").unwrap()[0]
    assert (record.owner, record.changed) == ("88", None)
    assert record.relationships == {"household": {"type": "Household", "id": "88"}}


@pytest.mark.parametrize("id", ["18446744073709551617", 18446744073709551617])
def test_ids_are_text_however_long(id: Any) -> None:
    assert records("GET /people", {"data": [person(id=id)]}, entity("Person")).unwrap()[0].id == "18446744073709551617"


@pytest.mark.parametrize("row", [person(type="Cow"), person(id=None), person(id=True), person(id=""), person(id="1\x00"), {}, 7, None])
def test_a_row_that_is_not_as_documented_is_not_asked_for_again(row: Any) -> None:
    failure = records("GET /people", {"data": [row]}, entity("Person")).failure()
    assert isinstance(failure, Unexpected)
    assert failure.what == "GET /people"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-06-01T17:40:11Z", datetime(2025, 6, 1, 17, 40, 11, tzinfo=UTC)),
        ("2025-06-01T19:40:11+02:00", datetime(2025, 6, 1, 17, 40, 11, tzinfo=UTC)),
        ("2025-06-01T17:40:11.5", datetime(2025, 6, 1, 17, 40, 11, 500_000, tzinfo=UTC)),
        ("yesterday", None),
        (None, None),
        (5, None),
    ],
)
def test_times_of_change(text: Any, moment: datetime | None) -> None:
    assert instant(text) == moment


def test_a_filter_is_rounded_down_to_the_second() -> None:
    assert spelled(datetime(2025, 6, 1, 17, 40, 11, 999_999, tzinfo=UTC)) == "2025-06-01T17:40:11Z"


@pytest.mark.shows("S4.43")
@pytest.mark.parametrize(("document", "there_is"), [({"links": {"next": "http://…"}}, True), ({"links": {"self": "…"}}, False), ({}, False)])
def test_the_end_is_where_no_next_link_is(document: dict[str, Any], there_is: bool) -> None:
    assert more(document) is there_is


@pytest.mark.parametrize(("meta", "count"), [({"total_count": 7}, 7), ({}, None), ({"total_count": "7"}, None), (None, None)])
def test_the_total(meta: Any, count: int | None) -> None:
    assert total({"meta": meta}) == count


# The manifest


@pytest.mark.shows("S4.45")
def test_the_order_of_the_people_api() -> None:
    graph = plan(PEOPLE, "full").unwrap()
    assert graph.sync_order == ("Campus", "Household", "Person", "HouseholdMembership", "PersonMerger", "Email", "PhoneNumber", "Address")
    assert {(link.entity_name, link.relationship) for link in graph.links} == {("Household", "primary_contact"), ("Household", "people")}
    assert plan(PEOPLE, "delta").unwrap() == graph


@pytest.mark.shows("S4.40")
def test_every_page_is_a_hundred_rows() -> None:
    assert PEOPLE.page_size == 100
