"""What a tenant may ask for in a minute: shared by all processes, counted by the store's clock, and no other tenant's affair."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import httpx2
import pytest
from attrs import evolve

from flowdsl.postgres.allowances import Allowance, Allowances
from flowdsl.postgres.store import Store
from flowdsl.service.settings import BadSettings, Limits, Settings, load
from tests.service.stage import problem, serving, started, until

FEW = Settings(limits=Limits(starts=60, starts_at_once=5, signals=60, signals_at_once=3))
START = "/api/v1/workflows/shop.report"


def clock() -> float:
    """Seconds; each adds a call to what is allowed, and a slow machine takes some."""
    return asyncio.get_running_loop().time()


async def statuses(client: httpx2.AsyncClient, count: int, path: str = START, body: object = "x", tenant: str = "default") -> Counter[int]:
    answers = await asyncio.gather(*(client.post(path, json=body, headers={"X-Tenant-ID": tenant}) for _ in range(count)))
    return Counter(answer.status_code for answer in answers)


@pytest.mark.shows("S1.143")
async def test_too_many_starts_are_refused_and_leave_nothing(database: str) -> None:
    async with serving(database, settings=FEW, works=False) as client:
        began = clock()
        found = await statuses(client, 30)
        assert set(found) == {202, 429} and 5 <= found[202] <= 6 + clock() - began, "five at once, and one a second"
        answer = await client.post(START, json="x")
        if answer.status_code == 429:
            assert problem(answer)["title"] == "too many starts" and 1 <= int(answer.headers["retry-after"]) <= 2
        there = (await client.get("/api/v1/workflows")).json()["executions"]
        assert len(there) == found[202] + (answer.status_code == 202)


async def test_another_tenant_does_not_suffer(database: str) -> None:
    async with serving(database, settings=FEW, works=False) as client:
        began = clock()
        assert (await statuses(client, 30, tenant="greedy"))[429] >= 24 - (clock() - began)
        assert await statuses(client, 5, tenant="modest") == {202: 5}


async def test_signals_have_their_own(database: str) -> None:
    async with serving(database, settings=FEW) as client:
        id = await started(client, "shop.approval", "x")
        await until(client, id, "suspended")
        began = clock()
        found = await statuses(client, 20, "/api/v1/signals", {"name": "approved", "key": "nobody", "payload": True})
        assert 3 <= found[202] <= 4 + clock() - began and found[202] + found[429] == 20
        answer = await client.post(f"/api/v1/workflows/{id}/signal", json={"name": "approved", "payload": True})
        assert answer.status_code in (202, 429), "both ways to send one draw from the same"
        assert (await client.post(START, json="x")).status_code == 202


async def test_four_processes_share_it(database: str) -> None:
    """As many services over as many pools, each asking on its own: together they get what one would."""
    allowed = {"starts": Allowance(60, 20)}
    async with AsyncExitStack() as stack:
        each = [Allowances(await stack.enter_async_context(await Store.open(database)), allowed) for _ in range(4)]
        began = clock()
        waits = await asyncio.gather(*(each[number % 4].take("starts", "t") for number in range(200)))
        most = 21 + clock() - began
        for one in each:
            await one.close()
    granted = sum(wait == 0 for wait in waits)
    assert 20 <= granted <= most and all(wait <= 1.1 for wait in waits), "a burst of twenty, and one a second since"


async def test_what_gathers_goes_out_together(database: str) -> None:
    async with await Store.open(database) as store:
        asked = 0
        fetchrow = store.pool.fetchrow

        class Pool:
            async def fetchrow(self, *given: object, **named: object) -> object:
                nonlocal asked
                asked += 1
                return await fetchrow(*given, **named)

        view = evolve_pool(store, Pool())
        allowances = Allowances(view, {"starts": Allowance(6000, 1000)})
        waits = await asyncio.gather(*(allowances.take("starts", f"t{number % 7}") for number in range(500)))
        assert waits == [0.0] * 500 and asked <= 2


def evolve_pool(store: Store, pool: object) -> Store:
    from copy import copy

    view = copy(store)
    view.pool = pool
    return view


async def test_a_changed_limit_counts_at_once(database: str) -> None:
    async with await Store.open(database) as store:
        tight, wide = Allowances(store, {"starts": Allowance(1, 1)}), Allowances(store, {"starts": Allowance(6000, 100)})
        assert await tight.take("starts", "t") == 0 and 0 < await tight.take("starts", "t") <= 60
        assert await wide.take("starts", "t") == 0
        assert await tight.take("signals", "t") == 0, "what has no limit is not asked for"


async def test_a_store_that_is_away_lets_nobody_through(database: str) -> None:
    async with await Store.open(database) as store:
        allowances = Allowances(store, {"starts": Allowance(60, 60)})
        store.pool.terminate()
        with pytest.raises(Exception, match=r"closing|closed|terminated"):
            await allowances.take("starts", "t")


async def test_without_a_limit_nothing_is_kept(database: str) -> None:
    async with serving(database, works=False) as client:
        assert await statuses(client, 30) == {202: 30}
    async with await Store.open(database) as store:
        assert not await store.again("select 1 from flowdsl.budgets")


async def test_it_is_described(database: str) -> None:
    async with serving(database, works=False) as client:
        paths = (await client.get("/api/v1/openapi.json")).json()["paths"]
    for path in ("/api/v1/workflows/shop.report", "/api/v1/workflows/{id}/signal", "/api/v1/signals"):
        assert "429" in paths[path]["post"]["responses"]


def test_a_wrong_limit_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("FLOWDSL_LIMITS_STARTS", "-1")
    with pytest.raises(BadSettings, match=r"limits.starts must be 0 to"):
        load()
    monkeypatch.setenv("FLOWDSL_LIMITS_STARTS", "600")
    assert load().limits == evolve(Limits(), starts=600)
