"""A server for the whole run, a fresh migrated database for each test. FLOWDSL_TEST_DATABASE_URL names another server than our own."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import hypothesis
import pytest
from asyncpg import connect  # the real one, whatever a test puts in its place

from flowdsl.postgres.embedded import start
from flowdsl.postgres.schema import migrate
from tests import delays
from tests.acceptance import selecting
from tests.acceptance.selecting import pytest_collection_modifyitems, pytest_ignore_collect

__all__ = ["pytest_collection_modifyitems", "pytest_ignore_collect"]

pytest.register_assert_rewrite("tests.postgres", "tests.laws", "tests.conformance", "tests.adapters", "tests.simulation", "tests.service")
# A machine that is busy is no failure. With CI in the environment Hypothesis draws the same examples in every run: the parent is its profile then.
hypothesis.settings.register_profile("flowdsl", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("flowdsl")


os.environ["FLOWDSL_UNSAFE"] = "1"  # our server is a fast one


def pytest_addoption(parser: pytest.Parser) -> None:
    selecting.pytest_addoption(parser)
    delays.addoption(parser)


def pytest_configure(config: pytest.Config) -> None:
    selecting.pytest_configure(config)
    delays.configure(config)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What was collected is looked through no more: else each test that looks for its own garbage looks through all tests there are."""
    if not gc.get_freeze_count():  # at the beginning, and after a test that froze and thawed for itself
        gc.collect()
        gc.freeze()


def at(dsn: str, name: str) -> str:
    """The DSN of another database of the same server."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A server that root starts runs as another user, who must get through: else its data go to /var/lib, and stay there."""
    if os.geteuid() == 0:
        for folder in (tmp_path, *(one for one in tmp_path.parents if one.name.startswith(("pytest-", "popen-")))):
            folder.chmod(folder.stat().st_mode | 0o011)
    return tmp_path


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
    connection = await connect(server)
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


class Copies:
    """Copies of the template, made ahead while tests run: to make one takes longer than many tests do. What is done with is dropped there too."""

    AHEAD = 2

    def __init__(self, server: str, template: str) -> None:
        self._server, self._template = server, template
        self._beside = ThreadPoolExecutor(1, "copies")
        self._ready = deque(self._beside.submit(self._made) for _ in range(self.AHEAD))

    def _made(self) -> str:
        name = f"flowdsl_test_{uuid4().hex[:12]}"
        asyncio.run(_execute(self._server, f'create database "{name}" template "{self._template}" strategy file_copy'))
        return name

    def _dropped(self, name: str) -> None:
        asyncio.run(_execute(self._server, f'drop database if exists "{name}" with (force)'))

    @contextmanager
    def one(self) -> Generator[str]:
        made = self._ready.popleft()
        self._ready.append(self._beside.submit(self._made))
        try:
            name = made.result()
        except Exception:  # it was made during another test, which may have changed the environment
            name = self._made()
        yield name
        self._beside.submit(self._dropped, name)

    def close(self) -> None:
        for made in self._ready:
            with suppress(Exception):
                self._dropped(made.result())
        self._beside.shutdown()


@pytest.fixture(scope="session")
def copies(server: str, template: str) -> Iterator[Copies]:
    copies = Copies(server, template)
    yield copies
    copies.close()


@pytest.fixture
def database(server: str, copies: Copies) -> Iterator[str]:
    """The DSN of a migrated database that nobody else uses."""
    with copies.one() as name:
        yield at(server, name)
