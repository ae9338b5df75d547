"""Starting and looking, over real HTTP."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from tests.service.stage import DECLINES, problem, started, until

ORDER = {"order_id": "o-1", "lines": [{"sku": "a", "count": 2}]}


@pytest.mark.shows("S1.12")
async def test_a_start_is_told_where_to_look(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/api/v1/workflows/shop.place_order", json=ORDER)
    assert answer.status_code == 202
    one = answer.json()
    assert answer.headers["location"] == one["status_url"] == f"/api/v1/workflows/{one['id']}/status"
    assert (one["outcome"], one["key"], one["same_input"]) == ("new", "o-1", True)
    ended = await until(client, one["id"], "succeeded")
    assert ended["result"] == "receipt o-1"


@pytest.mark.shows("S4.62")
async def test_a_key_starts_once(client: httpx2.AsyncClient) -> None:
    first = await client.post("/api/v1/workflows/place-order", json=ORDER)
    again = await client.post("/api/v1/workflows/shop.place_order", json={**ORDER, "gift": True})
    assert (first.status_code, again.status_code) == (202, 200)
    assert (again.json()["id"], again.json()["outcome"], again.json()["same_input"]) == (first.json()["id"], "joined", False)


@pytest.mark.shows("S4.62")
async def test_the_same_request_acts_once(client: httpx2.AsyncClient) -> None:
    headers = {"Idempotency-Key": "r-1"}
    answers = await asyncio.gather(*(client.post("/api/v1/workflows/shop.approval", json="", headers=headers) for _ in range(20)))
    assert sorted((answer.status_code, answer.json()["outcome"]) for answer in answers) == [(200, "joined")] * 19 + [(202, "new")]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len((await client.get("/api/v1/workflows")).json()["executions"]) == 1
    other = await client.post("/api/v1/workflows/shop.approval", json="another", headers=headers)
    assert other.status_code == 422 and "new one" in problem(other)["detail"]
    elsewhere = await client.post("/api/v1/workflows/shop.approval", json="", headers={**headers, "X-Tenant-ID": "other"})
    assert elsewhere.status_code == 202 and elsewhere.json()["id"] != answers[0].json()["id"]


async def test_a_key_that_is_given(client: httpx2.AsyncClient) -> None:
    one = await client.post("/api/v1/workflows/shop.approval", params={"key": "mine"}, json="")
    two = await client.post("/api/v1/workflows/shop.approval", params={"key": "mine"}, json="")
    assert (one.status_code, two.status_code, two.json()["id"]) == (202, 200, one.json()["id"])
    found = await client.post("/api/v1/workflows/shop.approval/existing", json={"keys": ["mine", "yours"]})
    assert found.status_code == 200 and list(found.json()["existing"]) == ["mine"]


async def test_each_bad_field_is_named(client: httpx2.AsyncClient) -> None:
    wrong = {"order_id": 7, "lines": [{"sku": "a"}, {"count": "x"}], "gfit": True}
    answer = await client.post("/api/v1/workflows/shop.place_order", json=wrong)
    assert answer.status_code == 422
    paths = {one["path"]: one["problem"] for one in problem(answer)["errors"]}
    assert set(paths) == {"body.order_id", "body.lines[1].count", "body.lines[1].sku", "body.gfit"}
    assert "did you mean 'gift'" in paths["body.gfit"]
    assert (await client.get("/api/v1/workflows")).json()["executions"] == []


async def test_an_unknown_workflow(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/api/v1/workflows/shop.nothing", json={})
    assert answer.status_code == 404 and "shop.place_order" in problem(answer)["detail"]


async def test_an_unknown_execution(client: httpx2.AsyncClient) -> None:
    for id in ("nothing", "01234567-89ab-7def-8123-456789abcdef", "%00", "0123456789ab7def8123456789abcdef"):
        for what in ("status", "journal", "children", "events"):
            assert problem(await client.get(f"/api/v1/workflows/{id}/{what}"))["status"] == 404


@pytest.mark.shows("S1.30")
async def test_pages(client: httpx2.AsyncClient) -> None:
    ids = [await started(client, "shop.approval", "", **{"Idempotency-Key": f"p-{number}"}) for number in range(7)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = (await client.get("/api/v1/workflows", params={"limit": 3, **({"cursor": cursor} if cursor else {})})).json()
        seen += [one["id"] for one in page["executions"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == ids[::-1]


@pytest.mark.shows("S1.30", "S1.31")
async def test_filters(client: httpx2.AsyncClient) -> None:
    DECLINES.add("bad")
    good, bad = await started(client, "shop.place_order", {"order_id": "good"}), await started(client, "shop.place_order", {"order_id": "bad"})
    waits = await started(client, "shop.approval", "")
    await until(client, good, "succeeded"), await until(client, bad, "failed"), await until(client, waits, "suspended")

    async def found(path: str = "", **query: str) -> list[str]:
        answer = await client.get(f"/api/v1/workflows{path}", params=query)
        assert answer.status_code == 200, answer.text
        return [one["id"] for one in answer.json()["executions"]]

    assert await found(workflow="shop.place_order") == [bad, good]
    assert await found(status="failed") == [bad]
    assert await found("/history") == [bad, good]
    assert await found(text="goo") == [good] and await found(text=waits) == [waits] and await found(text="%") == []
    started_at = (await client.get(f"/api/v1/workflows/{bad}/status")).json()["started"]
    assert await found(since=started_at) == [waits, bad] and await found(until=started_at) == [good]
    failure = (await client.get(f"/api/v1/workflows/{bad}/status")).json()["failure"]
    assert failure == {"$": "Declined", "why": "no money"}


BAD = {
    "limit=0": "query.limit",
    "limit=x": "query.limit",
    "limit=1&limit=2": "query.limit",
    "status=gone": "query.status",
    "since=today": "query.since",
    "since=2026-01-01T00:00:00": "query.since",
    "cursor=bogus": "query.cursor",
    "cursor=e30": "query.cursor",
    "colour=red": "query.colour",
}


async def test_a_bad_query(client: httpx2.AsyncClient) -> None:
    for query, path in BAD.items():
        answer = await client.get(f"/api/v1/workflows?{query}")
        assert answer.status_code == 422, answer.text
        assert [one["path"] for one in problem(answer)["errors"]] == [path]


@pytest.mark.shows("S1.17", "S3.5", "S3.13", "S3.17", "S3.32")
async def test_journal_and_children(client: httpx2.AsyncClient) -> None:
    id = await started(client, "shop.family", ["a", "b", "c"])
    await until(client, id, "succeeded")
    first = (await client.get(f"/api/v1/workflows/{id}/journal", params={"limit": 2})).json()
    rest = (await client.get(f"/api/v1/workflows/{id}/journal", params={"cursor": first["next"]})).json()
    entries = first["entries"] + rest["entries"]
    assert [one["position"] for one in entries] == list(range(6)) and rest["next"] is None
    assert [one["body"] for one in entries[1::2]] == ["receipt a", "receipt b", "receipt c"]
    children = (await client.get(f"/api/v1/workflows/{id}/children")).json()["executions"]
    assert sorted(one["key"] for one in children) == ["a", "b", "c"] and {one["parent"] for one in children} == {id}
