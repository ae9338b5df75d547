"""The stand-in of Planning Center's People API behaves as its fact page says, over real HTTP where the wire matters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from adapters.standins.planning_center import BadChange, Churn, Faults, Organization, Quota, Unknown, create_app, serve
from adapters.standins.planning_center.census import STRANGE_NAMES
from adapters.standins.planning_center.churn import change
from adapters.standins.planning_center.faults import FAULTS, Fault
from adapters.standins.planning_center.resources import BY_TYPE, RESOURCES

OWNER = ("app_id", "secret")
PLENTY = Quota(limit=1_000_000)
LISTED = [resource for resource in RESOURCES if resource.top_level]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Watch:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = NOW.timestamp()

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def church(watch: Watch) -> Organization:
    return Organization.generate(people=230, seed=7, clock=watch)


def client_of(app: Starlette, auth: Any = OWNER) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://standin/people/v2", auth=auth)


@pytest.fixture
def api(church: Organization) -> httpx2.AsyncClient:
    return client_of(create_app(church, quota=PLENTY))


async def walk(client: httpx2.AsyncClient, path: str, **params: Any) -> list[dict[str, Any]]:
    """All rows behind a list, following `next` to its end."""
    answer = await client.get(path, params={"per_page": 100, **params})
    rows: list[dict[str, Any]] = []
    while True:
        assert answer.status_code == 200, answer.text
        document = answer.json()
        rows += document["data"]
        if "next" not in document["links"]:
            return rows
        answer = await client.get(document["links"]["next"])


def canonical(row: dict[str, Any]) -> dict[str, Any]:
    """A row of an answer in the words of the truth."""
    resource = BY_TYPE[row["type"]]
    empty: dict[str, Any] = {name: [] if name in resource.many else None for name in resource.relationships}
    told = {name: value["data"] for name, value in row["relationships"].items()}
    return {"attributes": row["attributes"], "relationships": empty | told}


async def told(client: httpx2.AsyncClient) -> dict[str, Any]:
    """The whole organization, as read through the API."""
    entities = {resource.type: {row["id"]: canonical(row) for row in await walk(client, resource.path)} for resource in LISTED}
    memberships: dict[str, Any] = {}
    for household in entities["Household"]:
        for row in await walk(client, f"households/{household}/household_memberships"):
            memberships[row["id"]] = canonical(row)
            memberships[row["id"]]["relationships"]["household"] = {"type": "Household", "id": household}
    return {**entities, "HouseholdMembership": memberships}


# The people


def test_a_seed_names_an_organization() -> None:
    first, again, other = (Organization.generate(60, seed) for seed in (1, 1, 2))
    assert first.truth() == again.truth()
    assert first.truth() != other.truth()


def test_the_people_are_many_and_awkward(church: Organization) -> None:
    entities: Any = church.truth()["entities"]
    people = entities["Person"].values()
    assert {type: len(rows) for type, rows in entities.items() if type in ("Campus", "Person", "Household")} == {
        "Campus": 5,
        "Person": 230,
        "Household": 92,
    }
    assert {(first, last) for first, last in STRANGE_NAMES} <= {(p["attributes"]["first_name"], p["attributes"]["last_name"]) for p in people}
    assert any("\x00" in p["attributes"]["name"] for p in people)
    ids = [int(id) for id in entities["Person"]]
    assert min(ids) < 10
    assert any(id > 2**32 for id in ids)
    assert any(id > 2**53 for id in ids)
    emails_per_person = Counter(row["relationships"]["person"]["id"] for row in entities["Email"].values())
    assert set(emails_per_person.values()) == {1, 2, 3}
    assert len(emails_per_person) < len(ids)
    ties = Counter(p["attributes"]["updated_at"] for p in people)
    assert max(ties.values()) > 10
    assert {p["relationships"]["primary_campus"]["type"] for p in people if p["relationships"]["primary_campus"]} == {"PrimaryCampus"}
    links = [row.relationships for row in church.tables["Person"].rows.values()]
    assert any("primary_campus" not in link for link in links)
    assert any(link.get("primary_campus", "absent") is None for link in links)
    households = entities["Household"].values()
    assert any(h["attributes"]["member_count"] != len(h["relationships"]["people"]) for h in households)
    assert any(h["relationships"]["people"] == [] for h in households)
    assert any(h["relationships"]["people"] and h["relationships"]["primary_contact"] is None for h in households)
    assert len(entities["PersonMerger"]) >= 2
    assert all(m["attributes"]["person_to_remove_id"] not in entities["Person"] for m in entities["PersonMerger"].values())


async def test_what_the_api_tells_is_the_truth(church: Organization, api: httpx2.AsyncClient) -> None:
    assert await told(api) == church.truth()["entities"]


# Shapes and pages


async def test_a_list_has_the_documented_shape(church: Organization, api: httpx2.AsyncClient) -> None:
    answer = await api.get("emails", params={"per_page": 2})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-pco-api-version"] == "2025-03-20"
    document = answer.json()
    assert document.keys() == {"data", "included", "links", "meta"}
    assert document["links"] == {
        "self": "http://standin/people/v2/emails?per_page=2",
        "next": "http://standin/people/v2/emails?per_page=2&offset=2",
    }
    assert document["meta"] == {
        "total_count": len(church.tables["Email"]),
        "count": 2,
        "next": {"offset": 2},
        "can_order_by": ["address", "created_at", "location", "primary", "updated_at"],
        "can_query_by": ["address", "blocked", "created_at", "location", "primary", "updated_at"],
        "can_include": [],
        "can_filter": [],
        "parent": {"id": "77", "type": "Organization"},
    }
    first = document["data"][0]
    assert first.keys() == {"type", "id", "attributes", "relationships", "links"}
    assert first["attributes"].keys() == {"address", "location", "primary", "blocked", "created_at", "updated_at"}
    assert first["relationships"]["person"]["data"]["type"] == "Person"
    assert (await api.get(first["links"]["self"])).json()["data"] == first


async def test_pages_end_where_next_is_absent(church: Organization, api: httpx2.AsyncClient) -> None:
    size = len(church.tables["Person"])
    assert (await api.get("people")).json()["meta"]["count"] == 25
    document = (await api.get("people", params={"per_page": 100, "offset": 200})).json()
    assert len(document["data"]) == size - 200
    assert "next" not in document["links"]
    assert "next" not in document["meta"]
    assert document["meta"]["prev"] == {"offset": 100}
    assert "offset=100" in document["links"]["prev"]
    beyond = (await api.get("people", params={"offset": 10_000})).json()
    assert (beyond["data"], beyond["meta"]["total_count"], "next" in beyond["links"]) == ([], size, False)


@pytest.mark.parametrize("resource", LISTED, ids=lambda resource: resource.path)
async def test_every_order_has_ties_by_rising_id(church: Organization, api: httpx2.AsyncClient, resource: Any) -> None:
    for attribute in resource.order_by:
        for sign in ("", "-"):
            rows = await walk(api, resource.path, order=sign + attribute)
            ids = [int(row["id"]) for row in rows]
            assert sorted(ids) == sorted(church.tables[resource.type].rows), attribute
            values = [row["attributes"][attribute] for row in rows]
            for position in range(1, len(rows)):
                if values[position - 1] == values[position]:
                    assert ids[position - 1] < ids[position], (sign, attribute)
    instants = [row["attributes"]["created_at"] for row in await walk(api, resource.path, order="-created_at")]
    assert instants == sorted(instants, reverse=True)


async def test_rows_come_by_rising_id_when_no_order_is_asked(api: httpx2.AsyncClient) -> None:
    ids = [int(row["id"]) for row in await walk(api, "people")]
    assert ids == sorted(ids)


# Filters


@pytest.mark.parametrize("path", ["people", "households", "emails", "phone_numbers", "campuses"])
async def test_dates_are_compared_to_the_second(api: httpx2.AsyncClient, path: str) -> None:
    rows = await walk(api, path)
    stamps = Counter(row["attributes"]["updated_at"] for row in rows)
    edge = stamps.most_common(1)[0][0]
    expected: dict[str, Callable[[str], bool]] = {
        "": lambda stamp: stamp == edge,
        "[gt]": lambda stamp: stamp > edge,
        "[gte]": lambda stamp: stamp >= edge,
        "[lt]": lambda stamp: stamp < edge,
        "[lte]": lambda stamp: stamp <= edge,
    }
    for operator, holds in expected.items():
        found = await walk(api, path, order="updated_at", **{f"where[updated_at]{operator}": edge})
        assert {row["id"] for row in found} == {row["id"] for row in rows if holds(row["attributes"]["updated_at"])}, operator


async def test_a_filter_and_a_second_one_meet(api: httpx2.AsyncClient) -> None:
    bounds = {"where[created_at][gte]": "2021-01-01", "where[created_at][lt]": "2023-01-01T02:00:00+02:00", "where[status]": "ACTIVE"}
    found = await walk(api, "people", **bounds)
    expected = [
        row for row in await walk(api, "people") if "2021" <= row["attributes"]["created_at"] < "2023" and row["attributes"]["status"] == "active"
    ]
    assert expected
    assert found == expected


async def test_a_fraction_of_a_second_lies_after_the_second(api: httpx2.AsyncClient) -> None:
    stamp = (await walk(api, "emails"))[0]["attributes"]["updated_at"]
    later = stamp.replace("Z", ".5Z")
    assert not await walk(api, "emails", **{"where[updated_at]": stamp, "where[updated_at][gt]": later})
    assert await walk(api, "emails", **{"where[updated_at]": stamp, "where[updated_at][lt]": later})


@pytest.mark.parametrize("attribute", ["created_at", "updated_at", "inactivated_at"])
async def test_a_list_from_an_instant_on_is_the_same_in_every_order(api: httpx2.AsyncClient, attribute: str) -> None:
    rows = [row for row in await walk(api, "people") if row["attributes"][attribute]]
    stamps = sorted(row["attributes"][attribute] for row in rows)
    for edge in (stamps[0], stamps[len(stamps) // 2], stamps[len(stamps) // 2].replace("Z", ".5Z"), stamps[-1], "2999-01-01"):
        where = {f"where[{attribute}][gte]": edge}
        wanted = sorted(int(row["id"]) for row in rows if row["attributes"][attribute][:-1] >= edge.removesuffix("Z"))
        for order in (attribute, f"-{attribute}", "created_at", "first_name"):
            found = await walk(api, "people", order=order, **where)
            assert sorted(int(row["id"]) for row in found) == wanted, (edge, order)
            told = [row["attributes"][order.removeprefix("-")] or "" for row in found]
            assert order == "first_name" or told == sorted(told, reverse=order.startswith("-"))
    both = await walk(api, "people", order=attribute, **where, **{"where[status]": "active"})
    assert not both
    both = await walk(api, "people", order=attribute, **{f"where[{attribute}][gte]": stamps[0], "where[status]": "inactive"})
    assert [row["id"] for row in both] == [row["id"] for row in sorted(rows, key=_by(attribute)) if row["attributes"]["status"] == "inactive"]


def _by(attribute: str) -> Callable[[Any], Any]:
    return lambda row: (row["attributes"][attribute], int(row["id"]))


@pytest.mark.parametrize(
    ("path", "where", "holds"),
    [
        ("people", {"where[first_name]": "mIRa"}, lambda a: a["first_name"] == "Mira"),
        ("people", {"where[name]": "ignored: not a filter"}, lambda a: True),
        ("people", {"where[last_name]": "o%r"}, lambda a: a["last_name"].lower().startswith("o") and a["last_name"].endswith("r")),
        ("people", {"where[child]": "true"}, lambda a: a["child"]),
        ("people", {"where[grade][gte]": "6"}, lambda a: a["grade"] is not None and a["grade"] >= 6),
        ("people", {"where[birthdate][lt]": "1970-01-01"}, lambda a: a["birthdate"] is not None and a["birthdate"] < "1970"),
        ("people", {"where[search_name]": "mira"}, lambda a: "mira" in f"{a['name']} {a['nickname']} {a['given_name']}".lower()),
        ("people", {"filter": "admins"}, lambda a: a["site_administrator"]),
        ("people", {"filter": "created_since", "time": "2024-01-01T00:00:00Z"}, lambda a: a["created_at"] >= "2024"),
        ("emails", {"where[primary]": "false"}, lambda a: not a["primary"]),
        ("emails", {"where[address]": "%okafor%"}, lambda a: "okafor" in a["address"].lower()),
        ("households", {"where[member_count][gt]": "2"}, lambda a: a["member_count"] > 2),
        ("addresses", {"where[city]": "austin"}, lambda a: a["city"] == "Austin"),
    ],
)
async def test_filters(api: httpx2.AsyncClient, path: str, where: dict[str, str], holds: Any) -> None:
    rows = await walk(api, path)
    expected = [row["id"] for row in rows if holds(row["attributes"])]
    assert [row["id"] for row in await walk(api, path, **where)] == expected
    assert expected


async def test_filters_by_id(church: Organization, api: httpx2.AsyncClient) -> None:
    campus = church.pick("Campus", Random(1)) or ""
    people = await walk(api, "people", **{"where[primary_campus_id]": campus})
    assert people
    assert {row["relationships"]["primary_campus"]["data"]["id"] for row in people} == {campus}
    assert [row["id"] for row in await walk(api, "people", **{"where[id]": people[0]["id"]})] == [people[0]["id"]]
    email = church.tables["Email"].pick(Random(2))
    assert email is not None
    found = await walk(api, "people", **{"where[search_name_or_email]": email.text("address")})
    assert str(email.linked("person")) in {row["id"] for row in found}
    merger = (await walk(api, "person_mergers"))[0]
    since = await walk(api, "person_mergers", **{"where[created_at][gte]": merger["attributes"]["created_at"]})
    assert merger in since


async def test_addresses_cannot_be_filtered_by_date(church: Organization, api: httpx2.AsyncClient) -> None:
    future = {"where[updated_at][gte]": "2040-01-01T00:00:00Z"}
    assert len(await walk(api, "addresses", **future)) == len(church.tables["Address"])
    strict = client_of(create_app(church, quota=PLENTY, unqueryable="refuse"))
    assert (await strict.get("addresses", params=future)).status_code == 400
    assert await walk(strict, "people", **future) == []
    stamps = [row["attributes"]["updated_at"] for row in await walk(api, "addresses", order="-updated_at")]
    assert stamps == sorted(stamps, reverse=True)


# Includes, fields, edges


async def test_people_include_their_contacts_and_households(church: Organization, api: httpx2.AsyncClient) -> None:
    names = {"emails": "Email", "phone_numbers": "PhoneNumber", "addresses": "Address", "households": "Household"}
    document = (await api.get("people", params={"per_page": 100, "include": ",".join(names)})).json()
    included = {(row["type"], row["id"]): row for row in document["included"]}
    assert len(included) == len(document["included"])
    for person in document["data"]:
        for name, type in names.items():
            linked = [row["id"] for row in person["relationships"][name]["data"]]
            assert all((type, id) in included for id in linked)
            if type != "Household":
                assert linked == [row.id for row in church.tables[type].belonging("person", int(person["id"]))]
    assert any(person["relationships"]["emails"]["data"] == [] for person in document["data"])
    plain = (await api.get("people", params={"per_page": 1})).json()["data"][0]
    assert plain["relationships"].keys() <= {"primary_campus", "gender"}


async def test_a_primary_campus_is_included_under_its_linkage_type(api: httpx2.AsyncClient) -> None:
    document = (await api.get("people", params={"per_page": 50, "include": "primary_campus"})).json()
    assert {row["type"] for row in document["included"]} == {"PrimaryCampus"}
    assert {row["links"]["self"].split("/")[-2] for row in document["included"]} == {"campuses"}


async def test_households_include_people_and_two_levels_are_enough(api: httpx2.AsyncClient) -> None:
    document = (await api.get("households", params={"per_page": 20, "include": "people"})).json()
    members = {row["id"] for household in document["data"] for row in household["relationships"]["people"]["data"]}
    assert {row["id"] for row in document["included"]} == members
    deeper = (await api.get("households", params={"per_page": 20, "include": "people.emails"})).json()
    assert {row["type"] for row in deeper["included"]} == {"Person", "Email"}
    assert all("emails" in row["relationships"] for row in deeper["included"] if row["type"] == "Person")
    assert (await api.get("households", params={"include": "people.households.people"})).status_code == 400


async def test_fields_are_sparse_and_some_appear_only_so(api: httpx2.AsyncClient) -> None:
    params = {"fields[Person]": "name,mfa_configured,nonsense", "include": "phone_numbers", "fields[PhoneNumber]": "formatted_number"}
    document = (await api.get("people", params=params)).json()
    assert {frozenset(row["attributes"]) for row in document["data"]} == {frozenset({"name", "mfa_configured"})}
    assert {frozenset(row["attributes"]) for row in document["included"]} == {frozenset({"formatted_number"})}
    full = (await api.get("people")).json()["data"][0]["attributes"]
    assert full.keys().isdisjoint({"mfa_configured", "stripe_customer_identifier", "directory_shared_info"})


async def test_a_row_and_what_hangs_on_it(church: Organization, api: httpx2.AsyncClient) -> None:
    household = next(row for row in church.tables["Household"].rows.values() if row.attributes["member_count"] == 3)
    listed = (await api.get(f"households/{household.id}/household_memberships", params={"include": "household,person"})).json()
    assert listed["meta"]["parent"] == {"id": household.id, "type": "Household"}
    assert {row["relationships"]["household"]["data"]["id"] for row in listed["data"]} == {household.id}
    assert {row["type"] for row in listed["included"]} == {"Household", "Person"}
    membership = listed["data"][0]
    assert membership["attributes"].keys() == {"person_name", "pending"}
    assert (await api.get(membership["links"]["self"])).json()["data"]["id"] == membership["id"]
    person = membership["relationships"]["person"]["data"]["id"]
    single = (await api.get(f"people/{person}", params={"include": "emails"})).json()
    assert single["data"]["id"] == person
    emails = await walk(api, f"people/{person}/emails", order="-updated_at")
    assert {row["id"] for row in emails} == {row["id"] for row in single["included"]}
    assert household.id in {row["id"] for row in await walk(api, f"people/{person}/households")}
    assert person in {row["id"] for row in await walk(api, f"households/{household.id}/people")}


@pytest.mark.parametrize(
    "path",
    [
        *("people/123456789", "people/abc", "people/99999999999999999999999", "people/٣", "nothing", "people/1/nothing", "people/1/emails/0"),
        *("household_memberships", "household_memberships/1", "households/0/household_memberships", "people/1/emails/1/person/x", ""),
    ],
)
async def test_what_is_not_there_is_404(api: httpx2.AsyncClient, path: str) -> None:
    answer = await api.get(f"/{path}")
    assert answer.status_code == 404
    assert answer.json()["errors"][0]["status"] == "404"
    assert "x-pco-api-request-rate-count" in answer.headers


@pytest.mark.parametrize(
    ("params", "parameter"),
    [
        ({"per_page": "0"}, "per_page"),
        ({"per_page": "101"}, "per_page"),
        ({"per_page": "ten"}, "per_page"),
        ({"offset": "-1"}, "offset"),
        ({"offset": "1e3"}, "offset"),
        ({"order": "shoe_size"}, "order"),
        ({"order": "--name"}, "order"),
        ({"order": "updated_at,id"}, "order"),
        ({"include": "shoes"}, "include"),
        ({"filter": "tall"}, "filter"),
        ({"filter": "created_since"}, "time"),
        ({"fields": "name"}, "fields"),
        ({"where": "x"}, "where"),
        ({"where[updated_at": "x"}, "where[updated_at"),
        ({"where[updated_at][near]": "2025-01-01"}, "where[updated_at]"),
        ({"where[updated_at][gte]": "yesterday"}, "where[updated_at]"),
        ({"where[updated_at][gte]": "2025-01-01T00:00:00 02:00"}, "where[updated_at]"),  # a plus sign that was not encoded
        ({"where[updated_at][gte]": "0001-01-01T00:00:00+14:00"}, "where[updated_at]"),
        ({"where[first_name][gt]": "A"}, "where[first_name]"),
        ({"where[child]": "yes"}, "where[child]"),
        ({"where[grade]": "sixth"}, "where[grade]"),
        ({"where[birthdate]": "01/02/1990"}, "where[birthdate]"),
        ({"where[id]": "x"}, "where[id]"),
    ],
)
async def test_a_malformed_query_is_400(api: httpx2.AsyncClient, params: dict[str, str], parameter: str) -> None:
    answer = await api.get("people", params=params)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["source"] == {"parameter": parameter}


async def test_writing_is_not_part_of_it_but_deleting_a_person_is(church: Organization, api: httpx2.AsyncClient) -> None:
    person = church.pick("Person", Random(3)) or ""
    assert (await api.post("people", json={})).status_code == 405
    assert (await api.delete("campuses/1")).status_code == 405
    assert (await api.delete(f"people/{person}")).status_code == 204
    assert (await api.delete(f"people/{person}")).status_code == 404
    assert church.deleted == [person]


# Credentials and quota


@pytest.mark.parametrize(
    ("authorization", "status", "hint"),
    [
        (None, 401, "CAPUCHIN"),
        ("Basic YXBwX2lkOndyb25n", 401, "CAPUCHIN"),
        ("Basic !!!", 401, "CAPUCHIN"),
        ("Bearer nonsense", 401, "CAPUCHIN"),
        ("Bearer expired", 401, "BABOON"),
        ("Bearer revoked", 401, "CAPUCHIN"),
        ("Bearer unscoped", 403, "PELICAN"),
        ("Bearer outsider", 403, "TRASH_PANDA"),
        ("Bearer token", 200, None),
        ("Basic YXBwX2lkOnNlY3JldA==", 200, None),
    ],
)
async def test_credentials(church: Organization, authorization: str | None, status: int, hint: str | None) -> None:
    client = client_of(create_app(church), auth=None)
    answer = await client.get("campuses", headers={"Authorization": authorization} if authorization else {})
    assert answer.status_code == status
    if hint:
        assert answer.json()["errors"][0]["code"] == hint
    assert {"x-pco-api-request-rate-limit", "x-pco-api-request-rate-period", "x-pco-api-request-rate-count"} <= answer.headers.keys()


async def test_the_quota_is_a_sliding_window_and_refused_requests_count(church: Organization, watch: Watch) -> None:
    client = client_of(create_app(church, quota=Quota(limit=3, period=20), clock=watch))
    periods: set[str] = set()
    for count in (1, 2, 3):
        answer = await client.get("campuses")
        assert (answer.status_code, answer.headers["x-pco-api-request-rate-count"]) == (200, str(count))
        assert "retry-after" not in answer.headers
        periods.add(answer.headers["x-pco-api-request-rate-period"])
        watch.seconds += 1
    assert periods == {"20", "20 seconds"}
    refused = await client.get("campuses")
    assert (refused.status_code, refused.headers["x-pco-api-request-rate-count"]) == (429, "4")
    assert refused.headers["x-pco-api-request-rate-limit"] == "3"
    assert refused.json()["errors"][0]["detail"] == "Rate limit exceeded: 4 of 3 requests per 20 seconds"
    # The first two must leave the window: the second came at 1, now is 3.
    assert refused.headers["retry-after"] == "18"
    watch.seconds += 17
    assert (await client.get("campuses")).status_code == 429  # too early, and it counts
    watch.seconds += 1
    assert (await client.get("campuses")).status_code == 429
    watch.seconds += 20
    assert (await client.get("campuses")).status_code == 200


async def test_one_user_has_one_quota_whichever_credential_is_used(church: Organization, watch: Watch) -> None:
    app = create_app(church, quota=Quota(limit=2), clock=watch)
    basic, anonymous = client_of(app), client_of(app, auth=None)
    await basic.get("campuses")
    await anonymous.get("campuses")
    answer = await anonymous.get("campuses", headers={"Authorization": "Bearer token"})
    assert (answer.status_code, answer.headers["x-pco-api-request-rate-count"]) == (200, "2")


async def test_deep_offsets_have_a_smaller_quota(church: Organization, watch: Watch) -> None:
    client = client_of(create_app(church, quota=Quota(limit=4), clock=watch))
    for _ in range(3):
        answer = await client.get("people", params={"offset": 30_001})
        assert (answer.status_code, answer.headers["x-pco-api-request-rate-limit"]) == (200, "3")
    assert (await client.get("people", params={"offset": 30_001})).status_code == 429
    assert Quota(deep_limit=10).allowed(30_001) == 10
    assert Quota().allowed(30_001) == 75
    assert Quota().allowed(30_000) == 100


# Faults


def only(fault: Fault, in_a_row: int = 2) -> Faults:
    return Faults(shares={fault: 1.0}, in_a_row=in_a_row, slowness=0.01)


@pytest.mark.parametrize(("fault", "status"), [("throttled", 429), ("throttled_bare", 429), ("broken", 500), ("unavailable", 503), ("late", 504)])
async def test_a_url_fails_twice_and_then_wins(church: Organization, fault: Fault, status: int) -> None:
    client = client_of(create_app(church, faults=only(fault)))
    answers = [await client.get("campuses") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [status, status, 200] * 2
    assert ("retry-after" in answers[0].headers) is (fault == "throttled")
    assert ("title" in answers[0].json()["errors"][0]) is (fault != "throttled_bare")
    assert all("x-pco-api-request-rate-count" in answer.headers for answer in answers)
    assert (await client.get("campuses?per_page=1")).status_code == status  # another URL has its own fate


async def test_truncated_and_slow_answers(church: Organization) -> None:
    client = client_of(create_app(church, faults=only("truncated", 1)))
    cut = await client.get("emails")
    assert cut.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        cut.json()
    assert (await client.get("emails")).json()["data"]
    slow = client_of(create_app(church, faults=only("slow")))
    assert (await slow.get("emails")).json()["data"]


async def test_a_lagging_replica_names_rows_that_it_does_not_include(church: Organization) -> None:
    client = client_of(create_app(church, faults=only("lagging", 1)))
    counts = []
    for _ in range(2):
        document = (await client.get("people", params={"include": "emails", "per_page": 100})).json()
        named = [row for person in document["data"] for row in person["relationships"]["emails"]["data"]]
        counts.append(len(named) - len(document["included"]))
    assert counts[0] > 0
    assert counts[1] == 0


async def test_a_connection_is_dropped_in_mid_body(church: Organization) -> None:
    with serve(create_app(church, faults=only("dropped", 1))) as url:
        async with httpx2.AsyncClient(base_url=f"{url}/people/v2", auth=OWNER, timeout=60) as client:
            with pytest.raises(httpx2.TransportError):
                await client.get("people")
            assert len((await client.get("people")).json()["data"]) == 25
            stats = (await client.get(f"{url}/_standin/stats")).json()
    assert stats["requests"] == {"/people/v2/people": {"dropped": 1, "200": 1}}
    assert stats["faults"] == {"dropped": 1}


def test_a_seed_names_the_faults() -> None:
    urls = [f"people?offset={offset}" for offset in range(300)]
    draws = [[faults.draw(url) for url in urls * 3] for faults in (Faults.level("rough", 1), Faults.level("rough", 1), Faults.level("rough", 2))]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert Faults.level("none").draw("people") is None
    mild = Faults.level("mild", 1)
    assert 0 < sum(mild.draw(url) is not None for url in urls * 3) < len(urls)
    drawn = Faults(shares=dict.fromkeys(FAULTS, 1 / len(FAULTS)))
    assert {drawn.draw(f"{url}&include=emails") for url in urls} == set(FAULTS)


async def test_with_retries_everything_arrives_through_rough_weather(church: Organization) -> None:
    app = create_app(church, quota=PLENTY, faults=Faults.level("rough", 5))
    with serve(app) as url:
        async with httpx2.AsyncClient(base_url=f"{url}/people/v2", auth=OWNER, timeout=60) as client:
            found: set[str] = set()
            target: str | None = "emails?per_page=2"
            while target:
                document = await _insist(client, target)
                found |= {row["id"] for row in document["data"]}
                target = document["links"].get("next")
    assert found == {row.id for row in church.tables["Email"].rows.values()}
    assert app.state.standin.faults.done


async def _insist(client: httpx2.AsyncClient, target: str) -> dict[str, Any]:
    for _ in range(3):
        try:
            answer = await client.get(target)
            if answer.status_code == 200:
                document: dict[str, Any] = answer.json()
                return document
        except (httpx2.TransportError, json.JSONDecodeError):
            continue
    raise AssertionError(f"{target} failed three times in a row")


# Changes


def person_with(church: Organization, type: str, least: int) -> str:
    return next(row.id for row in church.tables["Person"].rows.values() if len(church.tables[type].belonging("person", row.number)) >= least)


async def test_touch_moves_a_row_to_the_end(church: Organization, api: httpx2.AsyncClient) -> None:
    before = (await api.get("people", params={"order": "updated_at", "per_page": 100})).json()["data"]
    church.touch(before[0]["id"])
    after = (await api.get("people", params={"order": "updated_at", "per_page": 100})).json()["data"]
    assert [row["id"] for row in after[:99]] == [row["id"] for row in before[1:]]  # the second page begins one row later
    newest = (await api.get("people", params={"order": "-updated_at", "per_page": 1})).json()["data"][0]
    assert (newest["id"], newest["attributes"]["updated_at"]) == (before[0]["id"], "2026-01-02T03:04:05Z")


async def test_add_and_edit(church: Organization, api: httpx2.AsyncClient) -> None:
    newcomers = {"where[first_name]": "New"}
    assert await walk(api, "people", **newcomers) == []
    person = church.add_person({"first_name": "New", "last_name": "Comer"})
    assert [row["id"] for row in await walk(api, "people", **newcomers)] == [person]
    email = church.add_email(person, {"address": "new@example.org"})
    church.edit("Person", person, {"first_name": "Newer"})
    document = (await api.get(f"people/{person}", params={"include": "emails"})).json()
    assert document["data"]["attributes"]["name"] == "Newer Comer"
    assert email in {row["id"] for row in document["included"]}
    assert int(person) == max(church.tables["Person"].rows)
    with pytest.raises(Unknown, match="shoe_size"):
        church.edit("Person", person, {"shoe_size": 44})


async def test_delete_takes_contacts_and_memberships(church: Organization, api: httpx2.AsyncClient) -> None:
    person = next(
        row.id
        for row in church.tables["Person"].rows.values()
        if church.tables["HouseholdMembership"].belonging("person", row.number) and church.tables["Email"].belonging("person", row.number)
    )
    household = (await walk(api, f"people/{person}/households"))[0]["id"]
    church.delete_person(person)
    assert (await api.get(f"people/{person}")).status_code == 404
    assert person not in {row["relationships"]["person"]["data"]["id"] for row in await walk(api, "emails")}
    home = (await api.get(f"households/{household}")).json()["data"]
    assert person not in {row["id"] for row in home["relationships"]["people"]["data"]}
    assert home["attributes"]["primary_contact_id"] != person
    assert home["attributes"]["member_count"] == len(home["relationships"]["people"]["data"])
    assert home["attributes"]["updated_at"] == "2026-01-02T03:04:05Z"
    assert await told(api) == church.truth()["entities"]


@pytest.mark.parametrize("quiet", [False, True])
async def test_merge_moves_contacts_and_leaves_a_merger(church: Organization, api: httpx2.AsyncClient, quiet: bool) -> None:
    church.quiet_merges = quiet
    keep, remove = (row.id for row in [r for r in church.tables["Person"].rows.values() if church.tables["Email"].belonging("person", r.number)][:2])
    moved = {row["id"]: row["attributes"]["updated_at"] for row in await walk(api, f"people/{remove}/emails")}
    merger = church.merge(keep, remove)
    assert (await api.get(f"people/{remove}")).status_code == 404
    emails = {row["id"]: row["attributes"] for row in await walk(api, f"people/{keep}/emails")}
    assert moved.keys() <= emails.keys()
    assert sum(attributes["primary"] for attributes in emails.values()) == 1
    for id, stamp in moved.items():
        assert emails[id]["updated_at"] == (stamp if quiet else "2026-01-02T03:04:05Z")
    recorded = (await api.get(f"person_mergers/{merger}")).json()["data"]
    assert recorded["attributes"] == {"created_at": "2026-01-02T03:04:05Z", "person_to_keep_id": keep, "person_to_remove_id": remove}
    assert church.merged[remove] == keep
    assert remove not in {row["id"] for home in await walk(api, "households") for row in home["relationships"]["people"]["data"]}
    assert await told(api) == church.truth()["entities"]
    with pytest.raises(Unknown):
        church.merge(keep, keep)


async def test_the_old_primary_email_changes_without_a_trace(church: Organization, api: httpx2.AsyncClient) -> None:
    person = person_with(church, "Email", 2)
    before = {row["id"]: row["attributes"] for row in await walk(api, f"people/{person}/emails")}
    old = next(id for id, attributes in before.items() if attributes["primary"])
    new = next(id for id, attributes in before.items() if not attributes["primary"])
    church.make_primary_email(new)
    after = {row["id"]: row["attributes"] for row in await walk(api, f"people/{person}/emails")}
    assert (after[old]["primary"], after[new]["primary"]) == (False, True)
    assert after[old]["updated_at"] == before[old]["updated_at"]
    assert after[new]["updated_at"] == "2026-01-02T03:04:05Z"
    assert new in {row["id"] for row in await walk(api, "emails", **{"where[updated_at][gte]": "2026-01-01"})}


async def test_households_are_joined_and_left(church: Organization, api: httpx2.AsyncClient) -> None:
    household, person = church.pick("Household", Random(1)) or "", church.add_person()
    membership = church.join_household(household, person)
    assert church.join_household(household, person) == membership
    assert membership in {row["id"] for row in await walk(api, f"households/{household}/household_memberships")}
    church.leave_household(household, person)
    assert membership not in {row["id"] for row in await walk(api, f"households/{household}/household_memberships")}


def test_a_clock_that_goes_back_takes_no_change_back(church: Organization, watch: Watch) -> None:
    person = church.pick("Person", Random(1)) or ""
    church.touch(person)
    watch.seconds -= 3600
    church.touch(person)
    assert church.row("Person", person).attributes["updated_at"] == "2026-01-02T03:04:05Z"


async def test_churn_shifts_the_pages_stops_and_leaves_the_truth_readable(church: Organization) -> None:
    churn = Churn(every=1, changes=60, seed=3)
    client = client_of(create_app(church, quota=PLENTY, churn=churn))
    rows = await walk(client, "people", per_page=10, order="updated_at")
    walked = {row["id"] for row in rows}
    assert walked != {row.id for row in church.tables["Person"].rows.values()}
    while len(churn.made) < 60:
        await client.get("campuses")
    assert {str(made["change"]) for made in churn.made} >= {"touch", "add_person", "delete_person", "merge", "make_primary_email"}
    settled = church.truth()
    assert await told(client) == settled["entities"]
    assert church.truth() == settled


def test_a_seed_names_the_churn() -> None:
    made = []
    for _ in range(2):
        church, churn = Organization.generate(40, 3, clock=Watch()), Churn(every=2, changes=50, seed=9)
        for _ in range(200):
            churn.list_requested(church)
        made.append((churn.made, church.truth()))
    assert made[0] == made[1]
    assert len(made[0][0]) == 50


def test_churn_never_empties_a_small_church() -> None:
    church, churn = Organization.generate(6, 3, clock=Watch()), Churn(every=1, changes=400)
    for _ in range(400):
        churn.list_requested(church)
    assert len(church.tables["Person"]) >= 5


def test_orders_and_groups_stay_right_under_changes() -> None:
    church, random = Organization.generate(80, 11, clock=Watch()), Random(1)
    everything = [(table, f"{sign}{name}") for table in church.tables.values() for sign in ("", "-") for name in ("id", *table.resource.order_by)]
    for table, name in everything:
        table.order(name)
    for _ in range(300):
        kind = random.choice(["touch", "edit_contact", "add_person", "delete_person", "merge", "make_primary_email", "join_household"])
        if kind not in ("delete_person", "merge") or len(church.tables["Person"]) > 5:
            change(church, {"change": kind}, random)
    for table, name in everything:
        size = len(table)
        kept = table.order(name).numbers(0, size)
        table._orders.clear()
        assert kept == table.order(name).numbers(0, size)
    for type in ("Email", "PhoneNumber", "Address", "HouseholdMembership"):
        table = church.tables[type]
        grouped = [row.number for person in church.tables["Person"].rows for row in table.belonging("person", person)]
        assert sorted(grouped) == sorted(table.rows)


# Control


def test_truth_change_stats_settle_over_http(church: Organization) -> None:
    app = create_app(church, faults=Faults.level("rough", 1), churn=Churn(every=1, changes=1000))
    keep, remove = (church.pick("Person", Random(seed)) or "" for seed in (1, 2))
    with serve(app) as url, httpx2.Client(base_url=url, timeout=60) as control:
        wishes: list[dict[str, Any]] = [
            {"change": "merge", "keep": keep, "remove": remove},
            {"change": "touch"},
            {"change": "add_person", "attributes": {"nickname": "Zed"}},
        ]
        done = control.post("/_standin/change", json=wishes).json()["changes"]
        assert done[0] == {**wishes[0], "result": done[0]["result"]}
        assert done[1]["id"] == done[1]["result"]
        truth = control.get("/_standin/truth").json()
        assert truth.keys() == {"entities", "deleted", "merged"}
        assert truth["entities"].keys() == {resource.type for resource in RESOURCES}
        assert truth["merged"][remove] == keep
        assert done[0]["result"] in truth["entities"]["PersonMerger"]
        assert truth["entities"]["Person"][done[2]["result"]]["attributes"]["nickname"] == "Zed"
        assert control.post("/_standin/change", json={"change": "explode"}).status_code == 400
        assert control.post("/_standin/change", content=b"{").status_code == 400
        assert control.post("/_standin/change", json={"change": "touch", "id": "0"}).status_code == 404
        assert control.post("/_standin/change", json={"change": "merge", "keep": keep, "remove": keep}).status_code == 400
        assert control.post("/_standin/settle").json() == {"settled": True}
        for _ in range(30):
            assert control.get("/people/v2/people", auth=OWNER).status_code == 200
        stats = control.get("/_standin/stats").json()
    assert stats["requests"]["/people/v2/people"] == {"200": 30}
    assert (stats["rows"]["Person"], stats["faults"]) == (750, {})
    assert stats["churn"] == {"made": {}, "left": 0}
    assert stats["tables"]["Person"] == len(church.tables["Person"])


def test_a_change_needs_a_known_name(church: Organization) -> None:
    with pytest.raises(BadChange, match="make_primary_email"):
        change(church, {"change": "explode"}, Random(1))
    with pytest.raises(BadChange):
        change(church, {"change": "edit", "attributes": 3}, Random(1))


def test_it_runs_as_a_process() -> None:
    command = [
        sys.executable,
        "-m",
        "adapters.standins.planning_center",
        "--port",
        "0",
        "--people",
        "30",
        "--limit",
        "7",
        "--faults",
        "none",
        "--churn",
    ]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:")
            answer = httpx2.get(f"{line.split()[-1]}/people/v2/people", auth=OWNER, timeout=60)
            assert answer.json()["meta"]["total_count"] == 30
            assert answer.headers["x-pco-api-request-rate-limit"] == "7"
        finally:
            process.terminate()
        assert process.communicate()[1] == ""
