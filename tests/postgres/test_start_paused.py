"""Executions that are made now and begun later."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Never

import pytest

from flowdsl import Cancelled, Deployment, Result, Steps, Success, activity, bind, workflow
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.worker import Tuning, new_id, opened

pytestmark = pytest.mark.anyio

done: list[str] = []


@activity("paused.deed")
def deed(name: str) -> Result[str, Never]: ...


def itself(name: str) -> str:
    return name


@workflow("paused.work", key=itself)
def work(name: str) -> Steps[str, Never]:
    return (yield from deed(name))


async def do_deed(name: str) -> Result[str, Never]:
    done.append(name)
    return Success(name)


DEPLOYMENT = Deployment([work], [bind(deed, do_deed)])
TUNING = Tuning(poll=0.05, linger=0.05, grace=1)


def wish(name: str, id: str | None = None) -> NewStart:
    return NewStart(id or new_id(), "default", work.name, 1, "", name, "join", f'"{name}"'.encode())


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


@pytest.mark.shows("S3.23")
async def test_nothing_is_done_until_it_is_resumed(database: str) -> None:
    async with opened(DEPLOYMENT, database, TUNING) as worker:
        operator = Operator(worker.store)
        made = await operator.start_paused(wish("later"))
        assert (made.outcome, made.status) == ("new", "blocked")
        assert await worker.wait(await worker.start(work, "now")) == Success("now")
        found = await worker.store.summary(made.id)
        assert (found.status, found.cause, found.entries, done) == ("blocked", "paused: not begun yet", 0, ["now"])
        await operator.resume(made.id, "its time has come")
        assert await worker.wait(made.id) == Success("later")
        assert done == ["now", "later"]
        events = [row["event"] for row in await worker.store.again("select event from flowdsl.audit where execution = $1 order by id", made.id)]
        assert events == ["BLOCKED", "RESUMED"]


async def test_what_has_its_key_already_is_left_alone(database: str) -> None:
    async with opened(DEPLOYMENT, database, TUNING) as worker:
        operator = Operator(worker.store)
        first = await worker.start(work, "one")
        again = await operator.start_paused(wish("one"))
        assert (again.outcome, again.id) == ("joined", first)
        assert await worker.wait(first) == Success("one")


async def test_to_repeat_it_changes_nothing_also_once_it_has_been_resumed(database: str) -> None:
    async with opened(DEPLOYMENT, database, TUNING) as worker:
        operator, asked = Operator(worker.store), wish("one")
        assert [(await operator.start_paused(asked)).outcome for _ in range(2)] == ["new", "again"]
        await operator.resume(asked.id)
        assert await worker.wait(asked.id) == Success("one")
        late = await operator.start_paused(asked)
        assert (late.outcome, late.status, done) == ("again", "succeeded", ["one"])


async def test_many_at_once_make_one(database: str) -> None:
    async with await Store.open(database) as store:
        operator = Operator(store)
        made = await asyncio.gather(*(operator.start_paused(wish("one")) for _ in range(20)))
        assert sorted(one.outcome for one in made) == ["joined"] * 19 + ["new"]
        assert len({one.id for one in made}) == 1
        assert {row["status"] for row in await store.again("select status from flowdsl.executions")} == {"blocked"}


async def test_it_may_be_terminated_without_having_begun(database: str) -> None:
    async with opened(DEPLOYMENT, database, TUNING) as worker:
        operator = Operator(worker.store)
        made = await operator.start_paused(wish("never"))
        await operator.terminate(made.id, "not needed")
        assert isinstance(await worker.wait(made.id), Cancelled)
        assert done == []


@pytest.mark.shows("S3.23")
def test_the_commands(database: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)

    def flowdsl(*arguments: str) -> Any:
        command = [sys.executable, "-m", "flowdsl", *arguments, "--database", database, "--json"]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**os.environ})
        return json.loads(said.stdout)

    made = flowdsl("start", "shop", "shop.order", "--input", '"a"', "--paused")
    assert (made["status"], made["outcome"]) == ("blocked", "new")
    assert flowdsl("status", made["execution"])["cause"] == "paused: not begun yet"
    assert flowdsl("resume", made["execution"]) == {"resumed": [made["execution"]], "refused": {}}
    assert flowdsl("status", made["execution"])["status"] == "running"


SHOP = """
from typing import Never
from flowdsl import Deployment, Steps, workflow

@workflow("shop.order")
def order(name: str) -> Steps[str, Never]:
    yield from ()
    return name

deployment = Deployment([order])
"""
