"""Stores that are older than the code, and stores that are none yet: one command brings both up to date."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from flowdsl.postgres import schema
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import new_id
from tests.conftest import at

pytestmark = pytest.mark.anyio


@pytest.fixture
async def empty(server: str) -> Iterator[str]:
    """The DSN of a database in which there is nothing."""
    name = f"flowdsl_empty_{uuid4().hex[:12]}"
    connection = await asyncpg.connect(server)
    await connection.execute(f'create database "{name}"')
    yield at(server, name)
    await connection.execute(f'drop database "{name}" with (force)')
    await connection.close()


@pytest.mark.shows("S3.8", "S3.29")
async def test_a_store_of_the_first_days_gets_what_came_later_and_keeps_what_it_held(
    empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Path(schema.__file__).parent / "migrations"
    for folder in ("migrations", "functions"):
        (tmp_path / folder).mkdir()
    shutil.copy(ours / "0001_journal.sql", tmp_path / "migrations")
    (tmp_path / "functions" / "none.sql").write_text("select 1;")
    with monkeypatch.context() as then:
        then.setattr(schema, "_OURS", tmp_path)
        then.setattr(schema, "_keep_apart", _nothing)
        await migrate(empty)
    connection = await asyncpg.connect(empty)
    parent, child = new_id(), new_id()
    insert = """
        insert into flowdsl.executions (id, tenant, workflow, version, scope, key, parent, request, status)
        values ($1, 'default', $2, 1, $3, $4, $5, '1', 'succeeded')"""
    await connection.execute(insert, parent, "imports.meal_shorts_csv", "", "s3://kitchen/shorts.csv", None)
    await connection.execute(insert, child, "imports.meal_short", "s3://kitchen/shorts.csv", "meal-short-1-A", parent)

    applied = await migrate(empty)
    assert applied == [*(f"flowdsl/{one.name}" for one in sorted(ours.glob("*.sql"))[1:]), "flowdsl/functions"]
    assert await migrate(empty) == []
    columns = {
        row["column_name"] for row in await connection.fetch("select column_name from information_schema.columns where table_name = 'executions'")
    }
    assert {"parent", "key", "terminates", "discarded"} <= columns
    indexes = {row["indexname"] for row in await connection.fetch("select indexname from pg_indexes where schemaname = 'flowdsl'")}
    assert {"executions_parent", "executions_key", "executions_listed", "executions_waiting"} <= indexes
    async with await Store.open(empty, size=2) as store:
        assert [(one.id, one.key) for one in await store.list(parent=parent)] == [(child, "meal-short-1-A")]
        known = await store.existing("default", "imports.meal_short", "s3://kitchen/shorts.csv", ["meal-short-1-A", "meal-short-1-B"])
        assert known == {"meal-short-1-A": "succeeded"}
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute(insert, new_id(), "imports.meal_short", "s3://kitchen/shorts.csv", "meal-short-1-A", parent)
    await connection.execute(insert, new_id(), "imports.meal_short", "s3://kitchen/other.csv", "meal-short-1-A", None)  # another import's own
    await connection.close()


async def _nothing(_: object) -> None: ...


@pytest.mark.shows("S3.28")
async def test_one_command_makes_the_tables_and_needs_no_file_of_yours(empty: str, tmp_path: Path) -> None:
    def run() -> list[str]:
        command = [sys.executable, "-m", "flowdsl", "migrate", "--database", empty, "--json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**os.environ})
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout)["applied"])

    applied = run()
    assert applied[0] == "flowdsl/0001_journal.sql" and applied[-1] == "flowdsl/functions"
    assert run() == []
    assert os.listdir(tmp_path) == []


async def test_where_nothing_is_to_be_applied_nobody_is_waited_for(database: str) -> None:
    """A process that begins beside one that migrates has what it needs, and begins."""
    busy = await asyncpg.connect(database)
    async with asyncio.timeout(20):
        async with busy.transaction():
            await busy.execute("select pg_advisory_xact_lock(7162534241)")
            await busy.execute("delete from flowdsl.migrations where name = 'flowdsl/functions'")  # not seen by others yet
            assert await migrate(database) == []
        assert await migrate(database) == ["flowdsl/functions"]
    await busy.close()
