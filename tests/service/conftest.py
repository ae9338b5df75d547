"""A service over a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx2
import pytest

from tests.service.stage import DECLINES, serving


@pytest.fixture
async def client(database: str) -> AsyncGenerator[httpx2.AsyncClient]:
    """A client of a service with a worker, in development mode."""
    DECLINES.clear()
    async with serving(database) as found:
        yield found
