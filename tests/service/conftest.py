"""A service over a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx2
import pytest

from flowdsl.service import surroundings, watching
from tests.service.stage import DECLINES, serving


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is slow since the machine is busy is no store that says nothing; who tests that sets a patience of its own."""
    monkeypatch.setattr(surroundings, "PATIENCE", 60.0)
    monkeypatch.setattr(watching, "PATIENCE", 60.0)


@pytest.fixture
async def client(database: str) -> AsyncGenerator[httpx2.AsyncClient]:
    """A client of a service with a worker, in development mode."""
    DECLINES.clear()
    async with serving(database) as found:
        yield found
