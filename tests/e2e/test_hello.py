"""The tutorial, as a newcomer types it: a workflow in a file of its own, killed, and resumed by the same command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

HELLO = """
import asyncio
from os.path import exists
from typing import Never
from flowdsl import Deployment, Result, Steps, Success, activity, bind, sleep, workflow

@activity("hello.note")
def note(number: int) -> Result[int, Never]: ...

@workflow("hello.count")
def count(until: int) -> Steps[int, Never]:
    for number in range(until):
        yield from note(number)
        yield from sleep("50ms")
    return until

async def do_note(number: int) -> Result[int, Never]:
    with open("noted.txt", "a") as file:
        file.write(f"{number}\\n")
    while number == 15 and exists("held"):
        await asyncio.sleep(0.02)
    return Success(number)

deployment = Deployment(workflows=[count], bindings=[bind(note, do_note)])
"""


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "flowdsl", *arguments]


def flowdsl(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *arguments), cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}, timeout=250)


@pytest.fixture
def folder(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "hello.py").write_text(HELLO)
    monkeypatch.setenv("FLOWDSL_DATABASE_URL", database)
    return tmp_path


def noted(folder: Path) -> list[int]:
    file = folder / "noted.txt"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.mark.shows("S4.67", "S4.73")
def test_a_killed_run_is_resumed_by_the_same_command(folder: Path) -> None:
    arguments = ("run", "hello:deployment", "hello.count", "--input", "25", "--id", "one", "--wait", "--json", "--lease", "2")
    (folder / "held").touch()
    first = subprocess.Popen(command(folder, *arguments), cwd=folder, stdout=subprocess.PIPE)
    until = time.monotonic() + 120
    while noted(folder) != list(range(16)):
        assert time.monotonic() < until, noted(folder)
        time.sleep(0.05)
    first.kill()
    first.wait()
    (folder / "held").unlink()

    second = flowdsl(folder, *arguments)
    assert second.returncode == 0, second.stderr
    line = json.loads(second.stdout)
    assert (line["status"], line["result"]) == ("succeeded", 25)
    counts = Counter(noted(folder))
    assert counts == {number: 1 + (number == 15) for number in range(25)}, "only the effect in flight at the kill happens again"

    third = flowdsl(folder, *arguments)
    assert json.loads(third.stdout) == line
    assert Counter(noted(folder)) == counts


def test_what_was_recorded_is_shown(folder: Path) -> None:
    done = json.loads(flowdsl(folder, "run", "hello:deployment", "hello.count", "--input", "2", "--json").stdout)
    entries = json.loads(flowdsl(folder, "journal", done["execution"], "--json").stdout)
    assert [entry["fingerprint"].split()[0] for entry in entries] == ["perform", "sleep", "perform", "sleep"]
    assert "hello.note" in flowdsl(folder, "journal", done["execution"]).stdout
    status = json.loads(flowdsl(folder, "status", done["execution"], "--json").stdout)
    assert (status["status"], status["result"], status["entries"]) == ("succeeded", 2, 4)
    assert [one["execution"] for one in json.loads(flowdsl(folder, "list", "--json").stdout)] == [done["execution"]]


@pytest.mark.shows("S1.57")
def test_a_worker_takes_what_was_started_and_stops_when_told(folder: Path) -> None:
    id = flowdsl(folder, "start", "hello:deployment", "hello.count", "--input", "3").stdout.strip()
    worker = subprocess.Popen(command(folder, "worker", "hello:deployment", "--processes", "2"), cwd=folder, stderr=subprocess.PIPE, text=True)
    followed = flowdsl(folder, "status", id, "--follow", "--json")
    worker.terminate()
    assert worker.wait(timeout=60) == 0
    assert json.loads(followed.stdout)["result"] == 3


def test_the_doctor_finds_unsafe_settings(folder: Path) -> None:
    done = flowdsl(folder, "doctor", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 1, "the server of the tests is not durable"
    assert any("fsync is off" in problem for problem in facts["problems"])
    assert "FLOWDSL_DATABASE_URL" in facts["source"]


def test_a_cancelled_execution_ends_as_cancelled(folder: Path) -> None:
    id = flowdsl(folder, "start", "hello:deployment", "hello.count", "--input", "100000", "--id", "long").stdout.strip()
    assert flowdsl(folder, "cancel", id, "--reason", "enough").stdout.strip() == "asked"
    ended = flowdsl(folder, "run", "hello:deployment", "hello.count", "--input", "100000", "--id", "long", "--json")
    assert ended.returncode == 1
    assert json.loads(ended.stdout)["cancelled"] == {"reason": "enough"}
    assert flowdsl(folder, "cancel", id).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "hello:deployment", "hello.count", "--input", '"x"'), "input: expected int, got the text 'x'"),
        (("run", "hello:deployment", "hello.count", "--input", "{"), "input"),
        (("run", "hello:deploymnt", "hello.count"), "did you mean hello:deployment?"),
        (("run", "helo:deployment", "hello.count"), "no module 'helo'"),
        (("run", "hello:deployment", "hello.cont", "--input", "1"), "Known: hello.count"),
        (("run", "hello:deployment", "hello.count", "--input", "1", "--database", "nonsense"), "Write postgresql://"),
        (("list", "--database", "postgresql://x:secret@127.0.0.1:1/none"), "cannot be reached"),
        *(((command, "four"), "an id looks like") for command in ("status", "cancel", "resume", "terminate", "export")),
        (("journal", "01a1fcec-e110-45a0-6b7a-8d53a3aefa94"), "no execution named"),
    ],
)
def test_what_is_wrong_is_one_line_that_says_what_to_do(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    done = flowdsl(folder, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    assert done.stdout == ""


def test_an_error_in_the_users_module_is_shown_with_its_place(folder: Path) -> None:
    (folder / "broken.py").write_text("import flowdsl\n\nraise ValueError('half done')\n")
    done = flowdsl(folder, "run", "broken:deployment", "x")
    assert done.returncode == 2
    assert "broken.py:3: ValueError: half done" in done.stderr


def test_a_worker_does_not_fall_back_to_the_embedded_server_silently(folder: Path) -> None:
    done = flowdsl(folder, "worker", "hello:deployment", FLOWDSL_DATABASE_URL="")
    assert done.returncode == 2
    assert "--embedded" in done.stderr
