"""Whole imports: S3 and the order service over real HTTP, a worker over real Postgres, and the order service's own records."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from adapters.deployment import deployment
from adapters.meals import client
from adapters.meals.verdict import after_first, after_second, judged
from adapters.standins.listening import serve
from adapters.standins.meals.app import create_app
from adapters.standins.meals.catalogue import Catalogue
from adapters.standins.meals.faults import Faults
from adapters.standins.meals.records import Records
from domains.imports import workflows
from domains.imports.failures import FileChanged, NotConfigured
from domains.imports.values import Counts, Imported, ProcessMealShort, ProcessMealShortsCsv
from domains.imports.workflows import process_meal_short, process_meal_shorts_csv
from flowdsl import Failure, Success
from flowdsl.postgres.worker import Tuning, Worker, opened
from tests.adapters.storage import Storage, s3_server, storage

__all__ = ["s3_server", "storage"]

CATALOGUE = Catalogue(seed=7, bad=100)


@define
class Kitchen:
    """A worker, the storage and the order service that it works with."""

    worker: Worker
    storage: Storage
    records: Records
    faults: Faults
    database: Any

    def put(self, rows: int) -> None:
        self.storage.put(b"".join(CATALOGUE.file(0, rows)))

    async def run(self, url: str | None = None) -> Any:
        return await self.worker.wait(await self.begin(url))

    async def begin(self, url: str | None = None) -> str:
        return await self.worker.start(process_meal_shorts_csv, ProcessMealShortsCsv(url or self.storage.url))

    async def counts(self) -> Counts:
        exit = await self.run()
        assert isinstance(exit, Success), exit
        found: Imported = exit.unwrap()
        return found.counts

    def told(self) -> Any:
        """What the order service says of each row."""
        for line in self.records.lines():
            order_id, sku, *counts = line.decode().split()
            yield f"{order_id} {sku}", *(int(one) for one in counts)

    def errors(self) -> list[dict[str, str]]:
        text = self.storage.get(self.storage.url.replace(".csv", ".errors.csv")).decode()
        return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
async def kitchen(canonical: str, connection: Any, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kitchen]:
    records, faults = Records(CATALOGUE), Faults("mild")
    monkeypatch.setattr(workflows, "ROWS", 100)
    with serve(create_app(records, faults)) as url:
        monkeypatch.setenv(client.URL, url)
        monkeypatch.setenv(client.TOKEN, "token")
        async with opened(deployment, canonical, Tuning(poll=0.2, grace=1)) as worker:
            yield Kitchen(worker, storage, records, faults, connection)
        await client.close()


@pytest.mark.shows("S3.6", "S3.16", "S3.24", "S3.25", "S3.31")
async def test_a_file_is_imported_and_imported_again(kitchen: Kitchen) -> None:
    kitchen.put(240)
    first = await kitchen.counts()
    assert first.rows == 240 and 10 < first.failed < 40
    verdict = judged(kitchen.told(), after_first(CATALOGUE, 240))
    assert verdict.clean and verdict.asked == 240, verdict
    errors = kitchen.errors()
    assert len(errors) == first.failed
    assert {one["error"].split(":")[0].rstrip("0123456789") for one in errors} >= {"there is no order ", "no confirmation is sent"}
    lines = [int(one["line"]) for one in errors]
    assert lines == sorted(lines)

    kitchen.records.mended, kitchen.records.asked = True, {}
    kitchen.put(250)
    second = await kitchen.counts()
    assert (second.already, second.done + second.failed) == (first.done, first.failed + 10)
    verdict = judged(kitchen.told(), after_second(CATALOGUE, 240, 250))
    assert verdict.clean and verdict.asked == first.failed + 10, verdict
    assert len(kitchen.errors()) == second.failed


@pytest.mark.shows("S3.14", "S3.15")
async def test_a_chunk_asks_once_which_of_its_rows_are_known(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    existing = kitchen.worker.store.existing

    async def counting(tenant: str, workflow: str, scope: str, keys: Sequence[str]) -> Any:
        asked.append(len(keys))
        return await existing(tenant, workflow, scope, keys)

    monkeypatch.setattr(kitchen.worker.store, "existing", counting)
    kitchen.put(210)
    await kitchen.counts()
    assert asked == [100, 100, 10]


@pytest.mark.shows("S3.1", "S3.7", "S3.13", "S3.17-19", "S3.25", "S3.27")
async def test_every_row_can_be_looked_at(kitchen: Kitchen) -> None:
    kitchen.put(30)
    parent = await kitchen.begin()
    await kitchen.worker.wait(parent)
    rows = await kitchen.database.fetch("select id::text, key, status from flowdsl.executions where parent = $1", parent)
    assert {row["key"] for row in rows} == {process_meal_short.key_of(ProcessMealShort(*row)) for row in CATALOGUE.rows(0, 30)}
    for row in rows:
        summary = await kitchen.worker.store.summary(row["id"])
        assert (summary.parent, summary.key, summary.status) == (parent, row["key"], row["status"])
        fate = CATALOGUE.fate(*row["key"].removeprefix("meal-short-").replace("-", " ", 1).replace("%2D", "-").split(" "))
        assert row["status"] == ("succeeded" if fate == "fine" else "failed")


async def test_what_is_replaced_while_it_is_read_is_told_and_done_the_next_time(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen.put(220)
    existing = kitchen.worker.store.existing

    async def replacing(*asked: Any) -> Any:
        if not kitchen.records.asked:
            kitchen.put(210)
        return await existing(*asked)

    monkeypatch.setattr(kitchen.worker.store, "existing", replacing)
    exit = await kitchen.run()
    assert isinstance(exit, Failure) and isinstance(exit.failure(), FileChanged) and exit.failure().line == 102, exit
    again = await kitchen.counts()
    assert again.rows == 210 and again.already > 70
    assert judged(kitchen.told(), after_first(CATALOGUE, 210)).clean


async def test_two_imports_of_a_file_at_once_are_one(kitchen: Kitchen) -> None:
    kitchen.put(120)
    bucket, key = kitchen.storage.url.removeprefix("s3://").split("/", 1)
    spellings = [kitchen.storage.url, f"https://s3.amazonaws.com/{bucket}/{key.replace(' ', '%20')}"] * 3
    ids = await asyncio.gather(*(kitchen.begin(url) for url in spellings))
    assert len({*ids}) == 1
    exit = await kitchen.worker.wait(ids[0])
    assert isinstance(exit, Success) and exit.unwrap().counts.rows == 120
    verdict = judged(kitchen.told(), after_first(CATALOGUE, 120))
    assert verdict.clean and max(kitchen.records.asked.values()) <= 1 + kitchen.faults.done.total(), "asked again only after a fault"
    assert (await kitchen.counts()).already > 90, "begun after the end it is another import"


async def test_a_file_on_disk(kitchen: Kitchen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shorts.csv").write_bytes(b"".join(CATALOGUE.file(0, 20)))
    url = f"file://{tmp_path}/shorts.csv"
    refused = await kitchen.run(url)
    assert isinstance(refused, Failure) and isinstance(refused.failure(), NotConfigured)
    monkeypatch.setenv("IMPORTS_FOLDER", str(tmp_path))
    exit = await kitchen.run(url)
    assert exit.unwrap().counts.rows == 20
    assert exit.unwrap().errors == f"file://{tmp_path}/shorts.errors.csv"
    assert (tmp_path / "shorts.errors.csv").read_text().startswith("line,order_id,sku,error\n")
