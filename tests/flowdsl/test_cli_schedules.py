"""`flowdsl schedules`, as a person and a script meet it: real processes, over a real database."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Never
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from flowdsl import Deployment, Schedule, Steps, execution, workflow
from flowdsl.postgres.schedules import register
from flowdsl.postgres.store import Store
from tests.flowdsl.test_cli import document, eventually, flowdsl

TICKING = """
from typing import Never
from flowdsl import Deployment, Schedule, Steps, execution, workflow

@workflow("tick")
def tick(_: None) -> Steps[str | None, Never]:
    return (yield from execution()).key

deployment = Deployment([tick], schedules=[Schedule.every("1s", tick, None, id="often", overlap="allow")])
"""


@workflow("report")
def report(name: str) -> Steps[str, Never]:
    yield from execution()
    return name


DEPLOYMENT = Deployment(
    [report],
    schedules=[
        Schedule.cron("30 2 * * *", report, "a", id="nightly", zone="Europe/Berlin"),
        Schedule.every("1h", report, "b", id="hourly"),
    ],
)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


@pytest.fixture
def folder(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the schedules of `DEPLOYMENT` are written down."""

    async def brought() -> None:
        async with await Store.open(database) as store:
            await register(store, DEPLOYMENT)

    run(brought())
    monkeypatch.setenv("FLOWDSL_DATABASE_URL", database)
    return tmp_path


def ask(database: str, query: str, *arguments: Any) -> Any:
    async def asked() -> Any:
        connection = await asyncpg.connect(database)
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()

    return run(asked())


def test_they_are_listed(folder: Path, database: str) -> None:
    hourly, nightly = document(flowdsl(folder, "schedules", "--json"))
    assert (nightly["schedule"], nightly["rule"], nightly["zone"]) == ("nightly", "30 2 * * *", "Europe/Berlin")
    assert (hourly["rule"], hourly["due"], hourly["paused"], hourly["in_code"], hourly["execution"]) == (
        "every 1h", ask(database, "select due from flowdsl.schedules where id = 'hourly'").isoformat(), False, True, None,
    )  # fmt: skip
    fired = document(flowdsl(folder, "schedules", "trigger", "hourly", "--json"))
    assert fired["outcome"] == "started"
    ask(database, "update flowdsl.schedules set in_code = false, due = null, upcoming = null where id = 'nightly'")
    ask(database, "update flowdsl.schedules set problem = 'the moon is not full' where id = 'hourly'")
    shown = flowdsl(folder, "schedules", "list")
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["schedule", "workflow", "rule", "zone", "next", "last", "execution", "status"]
    assert [line.split()[0] for line in lines[1:]] == ["hourly", "nightly"]
    assert fired["execution"] in lines[1] and lines[1].endswith("running")
    assert "not in code" in lines[2] and "Europe/Berlin" in lines[2]
    assert shown.stderr == "hourly: the moon is not full\n"


def test_a_database_without_any(tmp_path: Path, database: str) -> None:
    done = flowdsl(tmp_path, "schedules", FLOWDSL_DATABASE_URL=database)
    assert (done.returncode, done.stdout[:12]) == (0, "no schedules")
    assert document(flowdsl(tmp_path, "schedules", "--json", FLOWDSL_DATABASE_URL=database)) == []


def test_pause_and_resume(folder: Path, database: str) -> None:
    assert document(flowdsl(folder, "schedules", "pause", "nightly", "--json"))["paused"] is True
    assert "paused" in flowdsl(folder, "schedules").stdout.splitlines()[2]
    resumed = flowdsl(folder, "schedules", "resume", "nightly")
    next = ask(database, "select due from flowdsl.schedules where id = 'nightly'").astimezone(ZoneInfo("Europe/Berlin"))
    assert resumed.stdout == f"nightly: next {next:%Y-%m-%d %H:%M:%S} Europe/Berlin\n"


def test_trigger_obeys_the_overlap_policy(folder: Path) -> None:
    started = flowdsl(folder, "schedules", "trigger", "nightly")
    assert started.returncode == 0
    skipped = flowdsl(folder, "schedules", "trigger", "nightly")
    assert (skipped.returncode, skipped.stdout) == (1, f"skipped: execution {started.stdout.strip()} is open\n")


def test_backfill_in_the_time_of_its_zone(folder: Path) -> None:
    """Over the night that lacks half past two; what was started is told as such."""
    span = ("schedules", "backfill", "nightly", "--from", "2026-03-28", "--to", "2026-03-30T02:30")
    fired = document(flowdsl(folder, *span, "--json"))
    assert [one["instant"] for one in fired] == [f"2026-03-{day}T0{hour}+00:00" for day, hour in ((28, "1:30:00"), (29, "1:00:00"), (30, "0:30:00"))]
    assert {one["outcome"] for one in fired} == {"started"}
    again = flowdsl(folder, *span)
    assert [line.split()[:4] for line in again.stdout.splitlines()] == [
        ["2026-03-28", "02:30:00", "was", "started"], ["2026-03-29", "03:00:00", "was", "started"], ["2026-03-30", "02:30:00", "was", "started"],
    ]  # fmt: skip
    nothing = flowdsl(folder, "schedules", "backfill", "nightly", "--from", "2026-03-28", "--to", "2026-03-28T01:00")
    assert (nothing.returncode, nothing.stdout) == (0, "the rule names nothing there\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pause", "nightlie"), "no schedule named 'nightlie'. Known: hourly, nightly."),
        (("trigger", "nightlie", "--json"), "Known: hourly, nightly."),
        (("backfill", "nightly", "--from", "tomorrow"), "'tomorrow' is no time: write 2026-01-31"),
        (("backfill", "nightly", "--from", "2026-03-28", "--to", "2026-03-27"), "--to 2026-03-27 is before --from 2026-03-28"),
        (("backfill", "hourly", "--from", "2020-01-01"), "more than 1,000 instants"),
        (("backfill", "nightly"), "Missing option '--from'"),
        (("--json", "pause", "nightly"), "flowdsl schedules pause … --json"),
    ],
)
def test_what_is_wrong_is_told(folder: Path, database: str, arguments: tuple[str, ...], said: str) -> None:
    done = flowdsl(folder, "schedules", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert ask(database, "select count(*) from flowdsl.executions") == 0


def test_a_run_by_hand_leaves_them_alone(folder: Path, database: str) -> None:
    """It may have other code at hand, or another environment: it is here for one execution."""
    (folder / "ticking.py").write_text(TICKING.replace('"tick"', '"report"'))
    before = document(flowdsl(folder, "schedules", "--json"))
    assert flowdsl(folder, "run", "ticking:deployment", "report", "--wait").returncode == 0
    assert document(flowdsl(folder, "schedules", "--json")) == before


def test_a_worker_brings_and_fires_them(tmp_path: Path, database: str) -> None:
    """One process runs, is killed, and another goes on: one execution an instant."""
    (tmp_path / "ticking.py").write_text(TICKING)
    settings = {**os.environ, "FLOWDSL_DATABASE_URL": database}

    def begun() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "flowdsl", "worker", "ticking:deployment", "--lease", "5"]
        return subprocess.Popen(command, cwd=tmp_path, env=settings, stderr=subprocess.DEVNULL)

    def ended(least: int) -> bool:
        return bool(ask(database, "select count(*) >= $1 from flowdsl.executions where status = 'succeeded'", least))

    first = begun()
    try:
        eventually(lambda: ended(2))
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    before = ask(database, "select count(*) from flowdsl.executions")
    second = begun()
    try:
        eventually(lambda: ended(before + 2))
    finally:
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 0
    [listed] = document(flowdsl(tmp_path, "schedules", "--json", FLOWDSL_DATABASE_URL=database))
    assert (listed["schedule"], listed["in_code"]) == ("often", True)
    keys = json.loads(ask(database, "select json_agg(key order by key) from flowdsl.executions"))
    assert len(keys) == len(set(keys))
    last = datetime.fromisoformat(listed["last"])
    assert keys[-1] == f"often@{last.astimezone(UTC):%Y-%m-%dT%H:%M:%S}Z"
    assert last < datetime.fromisoformat(listed["due"]) < last + timedelta(minutes=1)
