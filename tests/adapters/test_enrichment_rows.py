"""What a batch leaves behind: another process goes on with it, its history and numbers are there, and an upload's rows are kept as they came."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adapters.fullenrich import settings
from adapters.fullenrich.triggers import get_execution_for_enrichment
from adapters.fullenrich.uploads import read_upload
from adapters.standins.fullenrich import Ledger
from domains.enrichment.values import ReadChunk, Upload, Uploaded
from tests.adapters.conftest import Perform
from tests.adapters.desk import desk_at
from tests.service.test_metrics import parsed

pytestmark = pytest.mark.anyio

EMAILS = [f"kim{number}@gmail.com" for number in range(4)]


@pytest.mark.shows("S2.9", "S2.56")
async def test_a_batch_that_one_process_submitted_is_finished_by_the_next(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the wait is in the process that began it: not the mapping, not the deadline."""
    ledger = Ledger()
    async with desk_at(database, monkeypatch, ledger=ledger) as desk:
        await desk.add(*EMAILS)
        id = await desk.start(poll=timedelta(seconds=1))
        enrichment_id = await desk.waits(id)
    async with desk_at(database, monkeypatch, ledger=ledger) as desk:
        assert await get_execution_for_enrichment(desk.store, enrichment_id) == id
        await desk.tell("finish", quiet=True)
        found = await desk.ended(id, "succeeded")
        assert found["result"]["jobs"] == len(EMAILS)
        assert await desk.processed() == {1}
        assert len(await desk.submissions()) == 1


@pytest.mark.shows("S2.57", "S2.59")
async def test_a_batch_has_a_history_and_is_counted(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk_at(database, monkeypatch) as desk:
        await desk.add(*EMAILS)
        id = await desk.start()
        await desk.waits(id)
        await desk.tell("finish")
        await desk.ended(id, "succeeded")
        entries = (await desk.service.get(f"/api/v1/workflows/{id}/journal", params={"limit": 100})).raise_for_status().json()["entries"]
        told = [one["fingerprint"].removeprefix("perform ").split(" ")[0] for one in entries]
        steps = ["check-credits", "batch-pending-jobs", "submit-to-fullenrich", "register-enrichment", "process-enrichment-results", "close-batch"]
        assert [one for one in dict.fromkeys(told) if one in steps] == steps
        assert [one["position"] for one in entries] == list(range(len(entries)))
        history = (await desk.service.get("/api/v1/workflows/history", params={"workflow": "subscriber-enrichment"})).json()["executions"]
        assert [(one["id"], one["status"]) for one in history] == [(id, "succeeded")]

        async def counted_by_now() -> Any:
            """An end is counted once the worker has heard that it is recorded."""
            found = parsed((await desk.service.get("/metrics")).text)
            return found if found.get(("flowdsl_executions_ended_total", "succeeded", "subscriber-enrichment")) else None

        counted = await desk.eventually(counted_by_now)
        assert counted["flowdsl_executions_ended_total", "succeeded", "subscriber-enrichment"] == 1
        assert counted["flowdsl_execution_seconds_count", "subscriber-enrichment"] == 1
        assert counted["flowdsl_attempts_total", "submit-to-fullenrich", "success"] == 1


@pytest.mark.shows("S2.42")
async def test_of_an_upload_address_kind_source_and_row_are_kept(
    perform: Perform, connection: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(settings.UPLOADS, str(tmp_path))
    (tmp_path / "list.csv").write_text("email,name\nKim@gmail.com,Kim\nada@example.org,Ada\n")
    chunk = (await perform(read_upload, ReadChunk(Upload("list.csv", "fair"), 0, None))).unwrap()
    assert chunk.counted == Uploaded(created=2, known=0, personal=1, refused=0)
    rows = await connection.fetch("select email, email_type, source, raw_payload from enrichment.subscribers order by email")
    assert [(row["email"], row["email_type"], row["source"], json.loads(row["raw_payload"])) for row in rows] == [
        ("ada@example.org", "corporate", "fair", {"email": "ada@example.org", "name": "Ada"}),
        ("kim@gmail.com", "personal", "fair", {"email": "Kim@gmail.com", "name": "Kim"}),
    ]
    query = "select s.email, j.state from enrichment.jobs j join enrichment.subscribers s on s.id = j.subscriber"
    assert [tuple(row) for row in await connection.fetch(query)] == [("kim@gmail.com", "pending")]
