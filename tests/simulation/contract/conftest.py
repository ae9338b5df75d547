"""A database that is a model, under the name that the tests of the real one use: what they say of Postgres must hold for it too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from flowdsl.postgres import connection
from tests.simulation.postgres.model import EPOCH, Model

_PLANNER, _RIGHTS, _PROXY, _MANY = "the planner", "roles and rights", "a proxy", "too many rows"
NOT_MODELLED = {
    "TestPlans": _PLANNER,
    "TestCost": _PLANNER,
    "test_the_plans": _PLANNER,
    "reads_only_what_is_due": _PLANNER,
    "a_missing_right": _RIGHTS,
    "tampering": _RIGHTS,
    "written_anew": _RIGHTS,
    "commands_verify": "a process of its own",
    "without_tables": "a database that is not migrated",
    "reply_is_lost": _PROXY,
    "TestCrashes": _PROXY,
    "connections_die": _PROXY,
    "ten_thousand": _MANY,
    "thousand_due": _MANY,
    "more_tenants_than_it_looks_at": _MANY,
    "tenant_that_floods": _MANY,
    "fifty_writers": _MANY,
    "random_batches_on_five": _MANY,  # test_interleavings.py has its like
}
"""What a model has no say about, by a part of the tests' names."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    out = [item for item in items if "_on_model" in item.nodeid and any(name in item.nodeid for name in NOT_MODELLED)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


@pytest.fixture
def model() -> Model:
    made = Model()
    made.deadlock_timeout = 0.05
    made.skew = datetime.now(UTC) - EPOCH - timedelta(seconds=time.monotonic())
    return made


@pytest.fixture
def database(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its DSN. asyncpg itself goes there too, for those who ask it directly."""
    dsn = f"postgresql://model/{uuid4().hex}"
    really = asyncpg.connect

    async def connect(to: str | None = None, **options: Any) -> Any:
        return await (model.connect(to, **options) if (to or options.get("dsn")) == dsn else really(to, **options))

    monkeypatch.setattr(asyncpg, "connect", connect)
    connection.drivers[dsn] = model
    connection._found[dsn] = False
    yield dsn
    del connection.drivers[dsn], connection._found[dsn]
    assert model.broken == []
