"""The real worker over the model of Postgres, in plain asyncio: it begins, runs workflows to their ends, and stops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowdsl.postgres import connection
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Tuning, Worker
from tests.postgres.crew import deployment, two
from tests.simulation.postgres.model import Model

DSN = "postgresql://model/runs?pgbouncer=false"


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    connection.drivers["postgresql://model/runs"] = connection.drivers[DSN] = made
    yield made
    del connection.drivers["postgresql://model/runs"], connection.drivers[DSN]


async def test_a_workflow_runs_to_its_end(model: Model, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWDSL_TEST_CALLS", f"{tmp_path}/calls")
    async with await Store.open(DSN) as store, Worker(deployment, store, Tuning(poll=0.05)) as worker:
        exit = await worker.wait(await worker.start(two, "a"))
        assert str(exit) == "<Success: aa, then>"
    (row,) = model.table("executions")
    assert (row["status"], row["owner"], row["wake"]) == ("succeeded", None, None)
    assert [entry["position"] for entry in model.table("journal")] == [0, 1]
    assert all(one["gone"] for one in model.table("workers"))
    assert model.broken == []
