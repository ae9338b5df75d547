"""An import as people look at it: its rows by state, the steps of one of them; and that a large file costs no memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from adapters.s3.reading import inspect_file, read_rows
from domains.imports import workflows
from domains.imports.values import ProcessMealShortsCsv, ReadRows
from domains.imports.workflows import process_meal_short
from flowdsl import Success
from tests.adapters.storage import s3_server, storage
from tests.adapters.test_imports import CATALOGUE, Kitchen, kitchen

__all__ = ["kitchen", "s3_server", "storage"]

pytestmark = pytest.mark.anyio


@pytest.mark.shows("S3.5", "S3.7", "S3.9", "S3.13", "S3.17-19", "S3.27", "S3.32")
async def test_the_family_of_an_import_is_found_from_either_end(kitchen: Kitchen) -> None:
    store = kitchen.worker.store
    kitchen.put(40)
    id = await kitchen.begin()
    assert isinstance(await kitchen.worker.wait(id), Success)
    parent = await store.summary(id)
    assert (parent.id, parent.workflow, parent.parent) == (id, "imports.meal_shorts_csv", None)
    children = await store.list(parent=id, limit=100)
    assert len(children) == 40 and {child.parent for child in children} == {id}
    failed = await store.list(parent=id, status="failed", limit=100)
    succeeded = await store.list(parent=id, status="succeeded", limit=100)
    assert {one.key for one in failed} | {one.key for one in succeeded} == {one.key for one in children}
    assert len(failed) == sum(CATALOGUE.fate(*row) != "fine" for row in CATALOGUE.rows(0, 40)) > 0
    row = failed[0]
    assert (await store.summary(row.id)).parent == id
    told = [entry.fingerprint for entry in await store.journal(row.id)]
    assert any("imports.validate_order" in one for one in told), told


@pytest.mark.shows("S3.14", "S3.16")
async def test_which_keys_exist_is_asked_of_one_import(kitchen: Kitchen) -> None:
    kitchen.put(5)
    id = await kitchen.begin()
    await kitchen.worker.wait(id)
    scope = await kitchen.database.fetchval("select scope from flowdsl.executions where parent = $1 limit 1", id)
    keys = [row["key"] for row in await kitchen.database.fetch("select key from flowdsl.executions where parent = $1", id)]
    ask = kitchen.worker.store.existing
    assert set(await ask("default", process_meal_short.name, scope, [*keys, "meal-short-none-none"])) == set(keys)
    assert await ask("default", process_meal_short.name, "another import", keys) == {}


@pytest.mark.shows("S3.4", "S3.33")
async def test_what_is_replayed_is_one_chunk_however_many_there_were(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflows, "ROWS", 20)
    kitchen.put(240)
    id = await kitchen.begin()
    assert isinstance(await kitchen.worker.wait(id), Success)
    whole, live = await kitchen.worker.store.journal(id), (await kitchen.worker.store.load([id]))[id]
    assert len(whole) > 2 * 240, "all of it is kept"
    assert len(live) < 2 * 20 + 30, "the start and the join of each row of the last chunk, and what follows"


@pytest.mark.shows("S3.33")
async def test_a_chunk_of_a_large_file_costs_a_few_blocks_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPORTS_FOLDER", str(tmp_path))
    with (tmp_path / "large.csv").open("w") as file:
        file.write("order_id,sku,note\n")
        file.writelines(f"{number},A,{'x' * 200}\n" for number in range(150_000))
    url = f"file://{tmp_path}/large.csv"
    source = (await inspect_file(ProcessMealShortsCsv(url))).unwrap()
    assert source.size > 30_000_000
    tracemalloc.start()
    try:
        offset, line, rows = source.offset, source.line, 0
        while rows < 20_000:
            chunk: Any = (await read_rows(ReadRows(source, offset, line, 1000))).unwrap()
            offset, line, rows = chunk.offset, chunk.line, rows + len(chunk.rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000, f"{peak:,} bytes"
