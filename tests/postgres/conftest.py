"""A fresh, migrated database for each test, on the server of FLOWDSL_TEST_DATABASE_URL."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest

from flowdsl.postgres.store import migrate


def at(dsn: str, name: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server() -> str:
    dsn = os.environ.get("FLOWDSL_TEST_DATABASE_URL")
    if not dsn:
        pytest.skip("FLOWDSL_TEST_DATABASE_URL is not set")
    return dsn


@pytest.fixture(scope="session")
async def template(server: str) -> AsyncIterator[str]:
    name = f"flowdsl_template_{uuid4().hex[:12]}"
    connection = await asyncpg.connect(server)
    await connection.execute(f'create database "{name}"')
    await migrate(at(server, name))
    yield name
    await connection.execute(f'drop database "{name}" with (force)')
    await connection.close()


@pytest.fixture
async def database(server: str, template: str) -> AsyncIterator[str]:
    name = f"flowdsl_test_{uuid4().hex[:12]}"
    connection = await asyncpg.connect(server)
    await connection.execute(f'create database "{name}" template "{template}"')
    yield at(server, name)
    await connection.execute(f'drop database "{name}" with (force)')
    await connection.close()
