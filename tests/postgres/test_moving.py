"""Export and import: whole executions with their descendants, from one store into another, all or none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from flowdsl import Steps, Success, signal, workflow
from flowdsl.errors import NotFound, StoreError
from flowdsl.postgres.moving import exported, imported
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.store import Store
from tests.postgres.scene import eventually
from tests.postgres.stage import Refused, Stage, act, stage_at

go = signal("go", int)


@workflow("part")
def part(name: str) -> Steps[str, Refused]:
    return (yield from act(name))


@workflow("moved")
def moved(name: str) -> Steps[str, Refused]:
    one = yield from part.child(name)
    number = yield from go.receive()
    return one + (yield from act(str(number)))


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage


async def emptied(stage: Stage) -> None:
    for table in ("executions", "journal", "mailbox", "deliveries"):
        await stage.watcher.execute(f"delete from flowdsl.{table}")


async def test_an_open_execution_goes_on_in_another_store(stage: Stage) -> None:
    async with stage.worker(moved) as worker:
        id = await worker.start(moved, "a")

        async def waits() -> bool:
            return (await stage.row(id))["status"] == "suspended" and len(await stage.journal(id)) == 2

        await eventually(waits, "it waits for the signal")
        document = await exported(worker.store, [id])
    assert {row["workflow"] for row in json.loads(document)["executions"]} == {"moved", "part"}
    await emptied(stage)
    async with stage.worker(moved) as worker:
        ids = await imported(worker.store, document)
        assert len(ids) == 2 and (await stage.row(id))["cause"] == "paused: imported"
        with pytest.raises(StoreError, match="in this store already"):
            await imported(worker.store, document)
        await Operator(worker.store).resume(id)
        await stage.signal(worker, id, "go", b"5")
        assert await worker.wait(id) == Success("a5")
    assert stage.names == ["a", "5"], "what was done before is not done again"
    await stage.check()


async def test_what_cannot_be_moved_says_why(stage: Stage) -> None:
    async with await Store.open(stage.dsn) as store:
        with pytest.raises(NotFound):
            await exported(store, ["00000000-0000-7000-8000-000000000000"])
        for text in ("", "{}", '{"flowdsl": 1}', "[]"):
            with pytest.raises(StoreError, match="no export of flowdsl"):
                await imported(store, text)
        with pytest.raises(StoreError, match="format 9"):
            await imported(store, '{"flowdsl": 9}')


async def test_a_document_names_no_columns(stage: Stage) -> None:
    """What a document says is values only: it cannot reach other columns or tables."""
    async with stage.worker(part) as worker:
        id = await worker.start(part, "a")
        await worker.wait(id)
        document = json.loads(await exported(worker.store, [id]))
        await emptied(stage)
        document["executions"][0] |= {"owner": {"uuid": id}, "id) values (1); --": "x"}
        assert await imported(worker.store, json.dumps(document)) == [id]
        assert (await stage.row(id))["owner"] is None
