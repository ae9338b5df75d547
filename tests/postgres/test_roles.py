"""The roles of docs/how-to/secure.md: who owns nothing runs everything, and who only looks changes nothing."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from flowdsl import Steps, Success, workflow
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import Store
from tests.postgres.stage import Refused, Stage, act, stage_at

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "secure.md"
ROLES = ("flowdsl_worker", "flowdsl_reader")


@workflow("part")
def part(name: str) -> Steps[str, Refused]:
    return (yield from act(name))


def as_role(dsn: str, role: str) -> str:
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        (granted,) = re.findall(r"^```sql\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
        await stage.watcher.execute(granted)
        try:
            yield stage
        finally:
            for role in ROLES:
                await stage.watcher.execute(f"drop owned by {role}; drop role {role}")


async def test_a_worker_owns_nothing(stage: Stage) -> None:
    dsn = as_role(stage.dsn, "flowdsl_worker")
    assert await migrate(dsn) == []
    async with stage.worker(part, dsn=dsn) as worker:
        assert await worker.wait(await worker.start(part, "a")) == Success("a")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await worker.store.pool.fetch("alter table flowdsl.audit disable trigger audit_update")


async def test_who_looks_changes_nothing(stage: Stage) -> None:
    async with stage.worker(part) as worker:
        id = await worker.start(part, "a")
        await worker.wait(id)
    async with await Store.open(as_role(stage.dsn, "flowdsl_reader")) as store:
        assert (await store.summary(id)).status == "succeeded" and len(await store.journal(id)) == 1 and len(await store.list()) == 1
        for statement in ("update flowdsl.executions set status = 'failed'", "delete from flowdsl.journal", "select * from flowdsl.keys"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await store.pool.fetch(statement)
