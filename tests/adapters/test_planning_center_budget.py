"""One request budget per credential, for every process that uses it. Periods are so long here that no request grows old unless a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from adapters.planning_center import budget
from adapters.planning_center.budget import Grant, block, draw, learn
from adapters.planning_center.quota import Quota
from domains.sync.failures import RateLimited
from flowdsl import Failure, Success

Perform = Callable[[Callable[[Any], Awaitable[Any]], Any], Awaitable[Any]]
LONG = 100_000.0


async def drawn(connection: Any, wanted: int, share: float = 1.0, name: str = "a") -> Any:
    return await connection.fetchrow("select * from sync.draw($1, $2, $3)", name, wanted, share)


@pytest.fixture
async def connection(connection: Any) -> Any:
    await connection.execute("select sync.learn('a', 100, $1, null, null)", LONG)
    return connection


async def test_a_draw_gives_what_is_left(connection: Any) -> None:
    assert [(await drawn(connection, wanted))["granted"] for wanted in (30, 60, 50, 1)] == [30, 60, 10, 0]


async def test_a_share_is_kept_free_for_those_who_wait(connection: Any) -> None:
    assert (await drawn(connection, 100, 0.9))["granted"] == 90
    assert (await drawn(connection, 1, 0.9))["granted"] == 0
    assert (await drawn(connection, 1, 1.0))["granted"] == 1


async def test_credentials_do_not_share(connection: Any) -> None:
    await drawn(connection, 100)
    assert (await drawn(connection, 5, name="b"))["granted"] == 5


async def test_an_empty_budget_says_when_to_come_back(connection: Any) -> None:
    await drawn(connection, 100)
    refused = await drawn(connection, 1)
    assert 0 < refused["wait"] <= LONG * 21 / 20


async def test_requests_grow_old(connection: Any) -> None:
    await drawn(connection, 100)
    await connection.execute("update sync.budgets set slot = slot - 10 where credential = 'a'")
    assert (await drawn(connection, 1))["granted"] == 0
    await connection.execute("update sync.budgets set slot = slot - 10 where credential = 'a'")
    assert (await drawn(connection, 100))["granted"] == 100


async def test_a_clock_that_went_back_gives_nothing_away(connection: Any) -> None:
    await drawn(connection, 100)
    await connection.execute("update sync.budgets set slot = slot + 5 where credential = 'a'")
    refused = await drawn(connection, 1)
    assert (refused["granted"], refused["ours"]) == (0, 100)


async def test_many_at_once_never_draw_too_much(canonical: str, connection: Any) -> None:
    async def one() -> int:
        own = await asyncpg.connect(canonical)
        taken = sum([(await drawn(own, 3))["granted"] for _ in range(10)])
        await own.close()
        return taken

    assert sum(await asyncio.gather(*(one() for _ in range(8)))) == 100


# From an attempt


async def test_an_attempt_draws_and_gives_up_on_a_long_wait(connection: Any, perform: Perform) -> None:
    async def taking(wanted: int) -> Any:
        return await draw("a", wanted, 1.0)

    grant: Grant = (await perform(taking, 70)).unwrap()
    assert (grant.count, grant.known, grant.others) == (70, Quota(100, LONG, 70), 0)
    assert (await perform(taking, 70)).unwrap().count == 30
    refused = await perform(taking, 1)
    assert isinstance(refused, Failure)
    assert isinstance(refused.failure(), RateLimited)
    assert refused.failure().retry_after > timedelta(seconds=budget.PATIENCE)


async def test_an_attempt_waits_for_its_turn(connection: Any, perform: Perform) -> None:
    await connection.execute("select sync.learn('a', 2, 0.2, null, null)")

    async def taking(wanted: int) -> Any:
        return await draw("a", wanted, 1.0)

    assert [(await perform(taking, 2)).unwrap().count for _ in range(4)] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("seen", "quota", "period", "others"),
    [
        (Quota(100, LONG, 10), 100, LONG, 0),  # as we thought
        (Quota(100, LONG, 19), 100, LONG, 0),  # some of ours have not arrived, or somebody made a few
        (Quota(100, LONG, 70), 100, LONG, 60),  # somebody else is at it
        (Quota(75, LONG, 10), 75, LONG, 0),  # a deep offset has a smaller quota
        (Quota(5000, 60.0, 10), 5000, 60.0, 0),
    ],
)
async def test_the_answers_correct_the_budget(connection: Any, perform: Perform, seen: Quota, quota: int, period: float, others: int) -> None:
    async def asking(_: Any) -> Any:
        grant = (await draw("a", 10, 1.0)).unwrap()
        await learn("a", grant, seen)
        return Success(None)

    await perform(asking, None)
    row = await connection.fetchrow("select quota, period, others, drawn from sync.budgets where credential = 'a'")
    assert (row["quota"], row["period"], row["others"], sum(row["drawn"])) == (quota, period, others, 10)
    assert (await drawn(connection, 10_000))["granted"] == quota - 10 - others


async def test_the_others_may_stop(connection: Any, perform: Perform) -> None:
    async def asking(count: int) -> Any:
        grant = (await draw("a", 1, 1.0)).unwrap()
        await learn("a", grant, Quota(100, LONG, count))
        return Success(None)

    await perform(asking, 60)
    assert (await drawn(connection, 0))["others"] == 59
    await perform(asking, 2)
    assert (await drawn(connection, 0))["others"] == 0


async def test_a_shut_door_is_shut_for_everybody(connection: Any, perform: Perform) -> None:
    async def refused(_: Any) -> Any:
        await block("a", timedelta(seconds=3600))
        await block("a", timedelta(seconds=1))  # the longer one counts
        return await draw("a", 1, 1.0)

    failure = (await perform(refused, None)).failure()
    assert isinstance(failure, RateLimited)
    assert failure.retry_after is not None
    assert failure.retry_after > timedelta(seconds=3000)
