"""What people do to executions, over real HTTP."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from flowdsl.chance import new_id
from flowdsl.postgres.store import NewStart, Store
from tests.service.stage import DECLINES, problem, serving, started, until

ENDED_SAYS = ("cancel", "pause", "resume", "terminate", "signal")


@pytest.mark.shows("S1.15")
async def test_a_failed_one_is_retried(client: httpx2.AsyncClient) -> None:
    DECLINES.add("o")
    id = await started(client, "shop.place_order", {"order_id": "o"})
    await until(client, id, "failed")
    DECLINES.clear()
    answer = await client.post(f"/api/v1/workflows/{id}/retry", json={"reason": "the bank is back"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["executions"] == [id] and answer.json()["again"] == ["0"]
    assert (await until(client, id, "succeeded"))["result"] == "receipt o"


async def test_retry_of_a_parent_goes_through_its_children(client: httpx2.AsyncClient) -> None:
    DECLINES.add("b")
    id = await started(client, "shop.family", ["a", "b"])
    await until(client, id, "failed")
    DECLINES.clear()
    answer = await client.post(f"/api/v1/workflows/{id}/retry")
    assert answer.status_code == 200 and len(answer.json()["executions"]) == 2
    assert (await until(client, id, "succeeded"))["result"] == 2


async def test_what_has_ended_says_its_state(client: httpx2.AsyncClient) -> None:
    id = await started(client, "shop.place_order", {"order_id": "o"})
    await until(client, id, "succeeded")
    for what in (*ENDED_SAYS, "retry"):
        answer = await client.post(f"/api/v1/workflows/{id}/{what}", json={"name": "approved"} if what == "signal" else {})
        found = problem(answer)
        assert (what, answer.status_code, found["state"], found["execution"]) == (what, 409, "succeeded", id)
        assert "succeeded" in found["title"]


@pytest.mark.shows("S1.14", "S1.28")
async def test_cancel_ends_it(client: httpx2.AsyncClient) -> None:
    id = await started(client, "shop.approval", "x")
    answer = await client.post(f"/api/v1/workflows/{id}/cancel", json={"reason": "no longer wanted"})
    assert answer.status_code == 202 and answer.json()["outcome"] == "asked"
    assert (await until(client, id, "cancelled"))["cancelled"] == {"reason": "no longer wanted"}
    assert problem(await client.post(f"/api/v1/workflows/{id}/cancel"))["state"] == "cancelled"


async def test_pause_and_resume(client: httpx2.AsyncClient) -> None:
    id = await started(client, "shop.approval", "x")
    await until(client, id, "suspended")
    assert (await client.post(f"/api/v1/workflows/{id}/pause", json={"reason": "lunch"})).status_code == 202
    assert "lunch" in (await until(client, id, "blocked"))["cause"]
    assert (await client.post(f"/api/v1/workflows/{id}/resume")).status_code == 200
    await until(client, id, "suspended", "running")
    answer = await client.post(f"/api/v1/workflows/{id}/resume")
    assert answer.status_code == 409


async def test_terminate(client: httpx2.AsyncClient) -> None:
    id = await started(client, "shop.approval", "x")
    answer = await client.post(f"/api/v1/workflows/{id}/terminate")
    assert answer.status_code == 200 and answer.json()["status"] == "cancelled"


async def test_rewind_and_fork(client: httpx2.AsyncClient) -> None:
    id = await started(client, "shop.place_order", {"order_id": "o"})
    await until(client, id, "succeeded")
    again = await client.post(f"/api/v1/workflows/{id}/rewind", json={"to": 0})
    assert again.status_code == 200 and again.json()["outcome"] == "rewound", again.text
    await until(client, id, "succeeded")
    edits = [{"step": "0", "success": "another"}]
    made = await client.post(f"/api/v1/workflows/{id}/fork", json={"to": 1, "edits": edits})
    assert made.status_code == 201, made.text
    assert (await until(client, made.json()["id"], "succeeded"))["result"] == "another"
    supposed = await client.post(f"/api/v1/workflows/{id}/what-if", json={"edits": edits})
    assert supposed.status_code == 200 and "another" in supposed.json()["exit"]
    wrong = await client.post(f"/api/v1/workflows/{id}/rewind", json={"to": "99"})
    assert wrong.status_code == 422 and "never answered" in problem(wrong)["errors"][0]["problem"]


async def test_signals(client: httpx2.AsyncClient) -> None:
    by_id = await started(client, "shop.approval", "")
    sent = [await client.post(f"/api/v1/workflows/{by_id}/signal", json={"name": "approved", "payload": True, "delivery": "d-1"}) for _ in range(2)]
    assert sent[0].json()["outcome"] == "sent" and all(one.status_code in (202, 409) for one in sent)
    assert (await until(client, by_id, "succeeded"))["result"] is True


async def test_a_signal_that_comes_early_waits(client: httpx2.AsyncClient) -> None:
    wish = {"name": "approved", "key": "order-7", "payload": True, "delivery": "d"}
    first = await client.post("/api/v1/signals", json=wish)
    again = await client.post("/api/v1/signals", json=wish)
    assert [first.json()["outcome"], again.json()["outcome"]] == ["unmatched", "again"]
    assert [one["payload"] for one in (await client.get("/api/v1/signals")).json()["signals"]] == [True]
    id = await started(client, "shop.approval", "7")
    assert (await until(client, id, "succeeded"))["result"] is True
    assert (await client.get("/api/v1/signals")).json()["signals"] == []


@pytest.mark.shows("S4.59")
async def test_dead_letters(client: httpx2.AsyncClient) -> None:
    DECLINES.update({"a", "b"})
    ids = [await started(client, "shop.place_order", {"order_id": order}) for order in ("a", "b")]
    for id in ids:
        await until(client, id, "failed")
    assert {one["id"] for one in (await client.get("/api/v1/dead-letters")).json()["executions"]} == set(ids)
    gone = await client.post("/api/v1/dead-letters/discard", json={"executions": [ids[0]]})
    assert gone.json() == {"discarded": [ids[0]]}
    DECLINES.clear()
    retried = await client.post("/api/v1/dead-letters/retry", json={"workflow": "shop.place_order"})
    assert retried.json() == {"retried": [ids[1]], "refused": {}}
    await until(client, ids[1], "succeeded")
    assert (await client.post("/api/v1/dead-letters/discard", json={"executions": ["x"]})).status_code == 422


async def test_schedules(client: httpx2.AsyncClient) -> None:
    [one] = (await client.get("/api/v1/schedules")).json()["schedules"]
    assert (one["id"], one["in_code"], one["made"]) == ("nightly", True, False)
    assert (await client.post("/api/v1/schedules/nightly/pause")).json()["paused"] is True
    assert (await client.post("/api/v1/schedules/nightly/resume")).json()["paused"] is False
    fired = await client.post("/api/v1/schedules/nightly/trigger")
    assert fired.status_code == 202 and fired.json()["outcome"] == "started"
    await until(client, fired.json()["execution"], "succeeded")
    span = {"since": "2026-01-01T00:00:00+00:00", "until": "2026-01-02T23:00:00+00:00"}
    filled = await client.post("/api/v1/schedules/nightly/backfill", json=span)
    assert filled.status_code == 202 and len(filled.json()["fired"]) == 2, filled.text
    assert problem(await client.delete("/api/v1/schedules/nightly"))["status"] == 409
    assert problem(await client.post("/api/v1/schedules/nothing/pause"))["status"] == 404


async def test_a_schedule_is_made_and_removed(client: httpx2.AsyncClient) -> None:
    wish = {"id": "often", "workflow": "shop.report", "input": "now", "every": "1s"}
    made = await client.post("/api/v1/schedules", json=wish)
    assert made.status_code == 201 and made.json()["made"] is True, made.text
    assert (await client.post("/api/v1/schedules", json=wish)).status_code == 200
    assert (await client.post("/api/v1/schedules", json={**wish, "every": "2s"})).status_code == 409
    id = made.json()["id"]
    async with asyncio.timeout(60):
        while not (found := (await client.get("/api/v1/workflows", params={"workflow": "shop.report"})).json()["executions"]):
            await asyncio.sleep(0.02)
    assert (await until(client, found[0]["id"], "succeeded"))["result"].startswith(f"{id}@")
    assert (await client.delete(f"/api/v1/schedules/{id}")).json() == {"removed": id}
    assert [one["id"] for one in (await client.get("/api/v1/schedules")).json()["schedules"]] == ["nightly"]


async def test_a_wrong_schedule_is_refused(client: httpx2.AsyncClient) -> None:
    hourly: dict[str, object] = {"id": "often", "workflow": "shop.report", "input": "now", "every": "1h"}
    nightly: dict[str, object] = {"id": "often", "workflow": "shop.report", "input": "now", "cron": "0 3 * * *"}
    for change in ({"every": "soon"}, {"cron": "x"}, {"cron": "0 3 * * *"}, {"every": None}, {"input": 7}, {"workflow": "no"}, {"id": "a/b"}):
        assert (await client.post("/api/v1/schedules", json={**hourly, **change})).status_code == 422, change
    for change in ({"zone": "Moon"}, {"cron": "99 * * * *"}, {"overlap": "never"}, {"jitter": "-1s"}):
        assert (await client.post("/api/v1/schedules", json={**nightly, **change})).status_code == 422, change
    assert [one["id"] for one in (await client.get("/api/v1/schedules")).json()["schedules"]] == ["nightly"]


@pytest.mark.shows("S1.141")
async def test_what_people_do_is_audited(client: httpx2.AsyncClient) -> None:
    id = await started(client, "shop.approval", "x")
    await client.post(f"/api/v1/workflows/{id}/terminate", json={"reason": "because"})
    page = (await client.get("/api/v1/audit", params={"execution": id})).json()
    assert [(one["event"], one["facts"]["by"], one["facts"]["reason"]) for one in page["rows"]] == [("TERMINATED", "development", "because")]
    verdict = (await client.get("/api/v1/audit/verdict")).json()
    assert verdict["whole"] is True and verdict["rows"] + verdict["unsealed"] >= 1


async def test_outlines(client: httpx2.AsyncClient) -> None:
    found = (await client.get("/api/v1/outlines")).json()["workflows"]
    assert [one["name"] for one in found] == ["shop.approval", "shop.family", "shop.place_order", "shop.report"]
    drawn = (await client.get("/api/v1/outlines/place-order")).json()
    assert "shop.charge" in drawn["mermaid"] and drawn["outline"]["workflow"] == "shop.place_order"


# What a signal carries


async def test_a_payload_is_of_the_type_that_was_declared(client: httpx2.AsyncClient) -> None:
    id = await started(client, "shop.approval", "x")
    await until(client, id, "suspended")
    for path, wish in ((f"/api/v1/workflows/{id}/signal", {}), ("/api/v1/signals", {"key": "order-x"})):
        answer = await client.post(path, json={"name": "approved", "payload": "yes", **wish})
        assert answer.status_code == 422
        (wrong,) = problem(answer)["errors"]
        assert wrong["path"] == "body.payload" and "bool" in wrong["problem"]
    assert (await client.post(f"/api/v1/workflows/{id}/signal", json={"name": "approved"})).status_code == 422, "none is no bool"
    assert (await client.get("/api/v1/signals")).json()["signals"] == []
    assert (await client.post("/api/v1/signals", json={"name": "approved", "key": "order-x", "payload": True})).status_code == 202
    assert (await until(client, id, "succeeded"))["result"] is True


async def test_a_signal_that_nobody_declared_carries_anything(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/api/v1/signals", json={"name": "remarked", "key": "k", "payload": {"a": [1, None]}})
    assert answer.status_code == 202 and answer.json()["outcome"] == "unmatched"


# Page by page


async def test_signals_come_page_by_page(client: httpx2.AsyncClient) -> None:
    for number in range(7):
        await client.post("/api/v1/signals", json={"name": "remarked", "key": "k", "payload": number})
    pages = await paged(client, "/api/v1/signals", "signals")
    assert [[one["payload"] for one in page] for page in pages] == [[6, 5, 4], [3, 2, 1], [0]]


async def test_dead_letters_come_page_by_page(client: httpx2.AsyncClient) -> None:
    DECLINES.update("abcde")
    ids = [await started(client, "shop.place_order", {"order_id": order}) for order in "abcde"]
    for id in ids:
        await until(client, id, "failed")
    pages = await paged(client, "/api/v1/dead-letters", "executions")
    assert [[one["id"] for one in page] for page in pages] == [ids[:1:-1], ids[1::-1]]


async def paged(client: httpx2.AsyncClient, path: str, field: str) -> list[list[dict[str, object]]]:
    pages, following = [], ""
    while True:
        answer = (await client.get(f"{path}?limit=3{following}")).json()
        pages.append(answer[field])
        if answer["next"] is None:
            return pages
        following = f"&cursor={answer['next']}"


async def test_a_page_that_nobody_gave(client: httpx2.AsyncClient) -> None:
    for path in ("/api/v1/signals", "/api/v1/dead-letters", "/api/v1/audit"):
        for query in ("cursor=x", "cursor=eyJzZXEiOi0xfQ", "limit=0", "limit=101"):
            assert (await client.get(f"{path}?{query}")).status_code == 422, (path, query)


# A start that is repeated


async def test_a_start_that_was_recorded_is_not_new_again(database: str) -> None:
    async with await Store.open(database) as store:
        wish = NewStart(new_id(), "default", "shop.report", 1, "", None, "after_close", b'"x"')
        assert [one.outcome for one in await store.start([wish])] == ["new"]
        assert [(one.outcome, one.id) for one in await store.start([wish])] == [("again", wish.id)]


async def test_the_same_request_many_times_at_once(database: str) -> None:
    async with serving(database, works=False) as client:
        sent = (client.post("/api/v1/workflows/shop.report", json="x", headers={"Idempotency-Key": "one"}) for _ in range(20))
        answers = await asyncio.gather(*sent)
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted(answer.json()["outcome"] for answer in answers) == ["joined"] * 19 + ["new"]
