"""`world`: the same cases over the memory interpreter and over the Postgres one. After each case the store is checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from tests.conformance.in_memory import InMemory
from tests.conformance.on_postgres import OnPostgres
from tests.conformance.world import World
from tests.conftest import at


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a process that died had only just begun is never awaited."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"))


async def _told(server: str, statement: str) -> None:
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def shared(server: str, template: str) -> Iterator[str]:
    """One database for all cases, emptied before each: to make one takes longer than most cases do."""
    name = f"flowdsl_conformance_{uuid4().hex[:12]}"
    asyncio.run(_told(server, f'create database "{name}" template "{template}" strategy file_copy'))
    yield at(server, name)
    asyncio.run(_told(server, f'drop database "{name}" with (force)'))


@pytest.fixture(params=["memory", "postgres"])
def dsn(request: pytest.FixtureRequest) -> str | None:
    """Where the world is kept; None: in memory."""
    return None if request.param == "memory" else str(request.getfixturevalue("shared"))


@pytest.fixture
async def world(dsn: str | None) -> AsyncIterator[World]:
    made: InMemory | OnPostgres
    if dsn is None:
        made = InMemory()
    else:
        made = OnPostgres(dsn=dsn)
        await made.open()
    try:
        yield made
        await made.check()
    finally:
        await made.close()
