"""docs/scale.md says what its commands say; its simulation agrees with the formula where there is one; what must not grow does not."""

from __future__ import annotations

import os

import asyncpg
import pytest

from flowdsl.postgres.deep import look
from tests.bench import growth_model, history
from tests.bench.growth_model import Costs, Volume, simulated
from tests.bench.growth_rows import fill

LONG = bool(os.environ.get("FLOWDSL_LONG"))


def test_the_page_is_what_the_commands_say() -> None:
    page, tables = growth_model.PAGE.read_text(encoding="utf-8"), growth_model.tables()
    assert page.count("<!-- table ") == page.count("<!-- end -->") == len(tables)
    assert growth_model.filled(page, tables) == page, "run: python -m tests.bench.growth_model --write"


def test_a_place_without_a_table_is_an_error() -> None:
    with pytest.raises(KeyError):
        growth_model.filled("<!-- table nothing -->\n<!-- end -->", {})


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_one_commit_a_step_is_the_queue_of_the_books(load: float) -> None:
    """M/D/1: a step takes its service, and waits load / (2 (1 - load)) services."""
    service = 0.0005
    found = simulated(load / service, service - 1e-4, 1e-4, most=1, arrivals=200_000)
    assert found.mean == pytest.approx(service * (1 + load / (2 * (1 - load))), rel=0.05)
    assert found.batch == 1


def test_who_shares_commits_keeps_up() -> None:
    """At twenty times as many as there can be commits a second, a step takes about two of them."""
    rate, commit = 10_000, 0.002
    found = simulated(rate, commit, 5e-5)
    assert found.batch > 20 and commit < found.p50 < 4 * commit
    assert simulated(rate, commit, 5e-5, most=1, arrivals=10_000).mean > 100 * found.mean


def test_volumes_are_in_proportion() -> None:
    costs = Costs(10, 500.0, 3000.0, 100.0, 50.0)
    small, large = Volume(1_000_000, costs), Volume(100_000_000, costs)
    assert small.rate == pytest.approx(115.7, abs=0.1) and small.wal_daily == 5e9 and small.stored_daily == 3e9
    assert large.cores == pytest.approx(100 * small.cores) and large.processes > 3 > small.processes


@pytest.mark.anyio
async def test_a_loop_loads_its_last_round(database: str) -> None:
    lengths = (1000, 10_000, 100_000) if LONG else (100, 3000)
    found = [await history.measure(database, "rounds", length, 1) for length in lengths]
    assert len({one.rows for one in found}) == 1 and found[0].rows < 10


@pytest.mark.anyio
async def test_the_month_that_is_made_up_could_have_been(database: str) -> None:
    """What is measured against is a store as the runtime leaves it."""
    connection = await asyncpg.connect(database)
    await fill(connection, 400, steps=3, suspended=20)
    found = await look(connection, None)
    assert found.executions == 420 and found.entries == 1200
    wrong = [str(one) for one in found.findings]
    assert [one for one in wrong if "has no entry that tells of it" not in one] == [], "but that parents are made of plain steps"
    await connection.close()
