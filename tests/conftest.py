"""A server for the whole run, a fresh migrated database for each test. FLOWDSL_TEST_DATABASE_URL names another server than our own."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import hypothesis
import pytest

from flowdsl.postgres.embedded import start
from flowdsl.postgres.schema import migrate

pytest.register_assert_rewrite("tests.postgres", "tests.laws", "tests.conformance", "tests.adapters", "tests.simulation", "tests.service")
hypothesis.settings.register_profile("flowdsl", deadline=None)  # a machine that is busy is no failure
hypothesis.settings.load_profile("flowdsl")


os.environ["FLOWDSL_UNSAFE"] = "1"  # our server is a fast one


def at(dsn: str, name: str) -> str:
    """The DSN of another database of the same server."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A fast server of our own: what a crash of the server itself loses is not asked of it."""
    named = os.environ.get("FLOWDSL_TEST_DATABASE_URL")
    if named:
        yield named
        return
    folder = Path(tempfile.mkdtemp(prefix="flowdsl-tests-"))
    folder.chmod(0o755)
    with start(folder, durable=False) as running:
        yield running.dsn
    shutil.rmtree(folder, ignore_errors=True)


async def _execute(server: str, statement: str) -> None:
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def template(server: str) -> Iterator[str]:
    name = f"flowdsl_template_{uuid4().hex[:12]}"
    asyncio.run(_execute(server, f'create database "{name}"'))
    asyncio.run(migrate(at(server, name)))
    yield name
    asyncio.run(_execute(server, f'drop database "{name}" with (force)'))


@pytest.fixture
def database(server: str, template: str) -> Iterator[str]:
    """The DSN of a migrated database that nobody else uses."""
    name = f"flowdsl_test_{uuid4().hex[:12]}"
    asyncio.run(_execute(server, f'create database "{name}" template "{template}" strategy file_copy'))
    yield at(server, name)
    asyncio.run(_execute(server, f'drop database "{name}" with (force)'))
