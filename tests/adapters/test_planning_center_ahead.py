"""Reading ahead: what was read for a page goes to that page, once, and to no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import define, evolve, field

from adapters.planning_center import ahead, client, settings
from adapters.planning_center.bindings import get_entity_definition
from adapters.planning_center.pages import process_entity_page
from adapters.standins.planning_center import create_app, serve
from adapters.standins.planning_center.gate import Quota
from adapters.standins.planning_center.organization import Organization
from domains.sync.paging import Cursor, begin
from domains.sync.route import route
from domains.sync.values import ApiClient, EntitySync, GetDefinition, PageOrder, SyncParameters
from flowdsl.binding import current_attempt
from tests.adapters.conftest import HandMade, Perform

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


async def first_page(entity: str = "Person", since: datetime = NOON) -> PageOrder:
    order = EntitySync("org", "pco", entity, "full")
    definition = (await get_entity_definition(GetDefinition("pco", entity))).unwrap()
    cursor = begin(newest_first=False, filterable=True, floor=None)
    endpoint = route(definition.entity, "full").endpoint
    return PageOrder(order, definition, ApiClient("org", "pco", settings.TOKEN), endpoint, SyncParameters(since, None, 0), cursor, None, True)


@define
class Asking:
    """Answers with its number: how often it was asked."""

    count: int = 0
    ended: asyncio.Event = field(factory=asyncio.Event)
    waits: bool = False

    async def __call__(self) -> int:
        self.count += 1
        number = self.count
        try:
            if self.waits:
                await asyncio.Event().wait()
        finally:
            self.ended.set()
        return number


@contextmanager
def attempt(execution: str) -> Iterator[None]:
    token = current_attempt.set(HandMade(None, f"{execution}/7"))
    yield
    current_attempt.reset(token)


@pytest.fixture(autouse=True)
async def nothing_left(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Nor does anything grow old, however long the machine stands still."""
    monkeypatch.setattr(ahead, "KEPT", 10_000.0)
    yield
    ahead.forget_all()


NEXT = Cursor(offset=99)


async def test_it_goes_to_its_page_once() -> None:
    page, asking = await first_page(), Asking()
    with attempt("one"):
        ahead.begin(page, NEXT, asking)
        assert await ahead.read(evolve(page, cursor=NEXT), asking) == 1
        assert await ahead.read(evolve(page, cursor=NEXT), asking) == 2  # the page is made again: what it read is old


async def test_a_page_that_stands_elsewhere_asks_for_itself() -> None:
    page, early, now = await first_page(), Asking(waits=True), Asking()
    with attempt("one"):
        ahead.begin(page, NEXT, early)
        await until(lambda: early.count == 1)
        assert await asyncio.wait_for(ahead.read(page, now), 60) == 1
        await asyncio.wait_for(early.ended.wait(), 60)  # nobody comes for that one: it is given up
        assert await ahead.read(evolve(page, cursor=NEXT), now) == 2


async def test_another_walk_does_not_get_it() -> None:
    page, early = await first_page(), Asking()
    others = [("two", page), ("one", await first_page("Email")), ("one", await first_page(since=NOON + timedelta(seconds=1)))]
    with attempt("one"):
        ahead.begin(page, NEXT, early)
    for execution, other in others:
        with attempt(execution):
            now = Asking()
            await ahead.read(evolve(other, cursor=NEXT), now)
            assert now.count == 1
    with attempt("one"):
        assert await ahead.read(evolve(page, cursor=NEXT), early) == 1


async def test_nobody_comes_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "KEPT", 0.01)
    page, early, now = await first_page(), Asking(waits=True), Asking()
    with attempt("one"):
        ahead.begin(page, NEXT, early)
        await asyncio.wait_for(early.ended.wait(), 60)
        assert await ahead.read(evolve(page, cursor=NEXT), now) == 1


async def test_what_it_raised_is_told_to_who_comes_for_it() -> None:
    async def broken() -> int:
        raise ValueError("no room")

    page = await first_page()
    with attempt("one"):
        ahead.begin(page, NEXT, broken)
        with pytest.raises(ValueError, match="no room"):
            await ahead.read(evolve(page, cursor=NEXT), broken)


# Over HTTP


@pytest.fixture
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How often its list of persons was asked."""
    app = create_app(Organization.generate(250, 7), quota=request.param)
    with serve(app) as url:
        monkeypatch.setenv(settings.URL, url)
        monkeypatch.setenv(settings.TOKEN, "app_id:secret")
        yield lambda: sum(app.state.standin.requests.get("/people/v2/people", {}).values())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


async def done(perform: Perform, order: PageOrder) -> Any:
    return (await perform(process_entity_page, order)).unwrap()


@pytest.mark.parametrize("source", [Quota(limit=1000)], indirect=True)
async def test_the_next_page_is_on_its_way_when_one_is_written(source: Callable[[], int], perform: Perform) -> None:
    order = await first_page()
    page, met = await done(perform, order), 1
    while page.next is not None:
        await until(lambda: source() == met + 1)  # noqa: B023 (it is called here)
        page, met = await done(perform, evolve(order, cursor=page.next)), met + 1
    assert source() == met >= 3  # none was asked for twice, and nothing behind the end
    await client.close()


@pytest.mark.parametrize(("source", "begun"), [(Quota(limit=1000), 1), (Quota(limit=1), 0)], indirect=["source"])
async def test_nothing_is_read_ahead_while_the_quota_calls_for_a_rest(
    source: Callable[[], int], begun: int, perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Cursor] = []
    monkeypatch.setattr(ahead, "begin", lambda _order, cursor, _ask: told.append(cursor))
    page = await done(perform, await first_page())
    assert (len(told), source()) == (begun, 1)
    assert bool(page.pause) is (begun == 0)
    assert told in ([], [page.next])
    await client.close()
