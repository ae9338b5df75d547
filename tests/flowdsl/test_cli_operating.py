"""The commands with which people intervene, as a person at a terminal meets them: real processes over a real database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WORK = """
from pathlib import Path
from attrs import frozen
from flowdsl import Deployment, Failure, Result, Retry, Steps, Success, activity, bind, signal, sleep, workflow

@frozen
class Down:
    why: str

@activity("w.call", retry=Retry.constant("10ms", attempts=1))
def call(name: str) -> Result[str, Down]: ...

go = signal("go", int)

@workflow("w.order")
def order(name: str) -> Steps[str, Down]:
    one = yield from call("one")
    return one + (yield from call(name))

@workflow("w.wait")
def wait(name: str) -> Steps[int, Down]:
    yield from call(name)
    return (yield from go.receive())

async def called(name: str) -> Result[str, Down]:
    return Failure(Down("503")) if Path("down").exists() and name == "two" else Success(name)

deployment = Deployment([order, wait], [bind(call, called)])
"""


@pytest.fixture
def folder(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop.py").write_text(WORK)
    monkeypatch.setenv("FLOWDSL_DATABASE_URL", database)
    return tmp_path


@pytest.fixture
def worker(folder: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "flowdsl", "worker", "shop"], cwd=folder, stderr=subprocess.DEVNULL)
    yield
    process.terminate()
    process.wait(60)


def flowdsl(folder: Path, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowdsl", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, input=said, env={**os.environ})
    assert "Traceback" not in done.stderr, done.stderr
    return done


def told(folder: Path, *arguments: str) -> Any:
    done = flowdsl(folder, *arguments, "--json")
    assert done.stdout.count("\n") == 1, (done.stdout, done.stderr)
    return json.loads(done.stdout)


def began(folder: Path, workflow: str, request: str) -> str:
    return str(told(folder, "start", "shop", workflow, "--input", json.dumps(request))["execution"])


def status(folder: Path, id: str) -> Any:
    """As it is once nothing more happens by itself."""
    return told(folder, "status", id, "--follow")


@pytest.mark.usefixtures("worker")
def test_a_failed_execution_from_the_list_to_its_end(folder: Path) -> None:
    (folder / "down").touch()
    id = began(folder, "w.order", "two")
    assert status(folder, id)["status"] == "failed"
    listed = told(folder, "dead", "list")
    assert [one["execution"] for one in listed] == [id] and listed[0]["failure"]["why"] == "503"
    assert id in flowdsl(folder, "dead", "list").stdout
    supposed = told(folder, "what-if", "shop", id, "--set", '1="fine"')
    assert "onefine" in supposed["exit"] and supposed["asks"] == []
    asked = flowdsl(folder, "what-if", "shop", id, "--set", '0={"failure": {"$": "Down", "why": "x"}}')
    assert "it would end: <Failure" in asked.stdout
    (folder / "down").unlink()
    again = told(folder, "retry", "shop", id, "--reason", "they are back")
    assert again == {"executions": [id], "again": ["1"]}
    assert status(folder, id)["result"] == "onetwo"
    assert flowdsl(folder, "dead", "list").stdout == "no dead letters\n"
    refused = flowdsl(folder, "retry", "shop", id)
    assert refused.returncode == 2 and "has not failed: its state is succeeded" in refused.stderr

    fork = told(folder, "fork", "shop", id, "--to", "1", "--set", '0="ONE"')["execution"]
    assert status(folder, fork)["result"] == "ONEtwo"
    back = told(folder, "rewind", "shop", id, "--to", "0")
    assert back["again"] == ["0", "1"]
    assert status(folder, id)["result"] == "onetwo"
    assert flowdsl(folder, "rewind", "shop", id, "--to", "7").stderr.startswith("flowdsl: step 7 was never answered here")
    kinds = [entry["kind"] for entry in told(folder, "journal", id)]
    assert kinds.count("operator") == 2
    assert told(folder, "prune", "--older-than", "0s")["deleted"] == 2


@pytest.mark.usefixtures("worker")
def test_pause_resume_signal_terminate(folder: Path) -> None:
    id = began(folder, "w.wait", "a")
    assert flowdsl(folder, "pause", id, "--reason", "the audit").stdout == "asked\n"
    assert status(folder, id)["cause"] == "paused: the audit"
    assert told(folder, "signal", id, "go", "7", "--delivery", "d1")["outcome"] == "sent"
    assert told(folder, "signal", id, "go", "7", "--delivery", "d1")["outcome"] == "again"
    assert told(folder, "resume", id) == {"resumed": [id], "refused": {}}
    assert status(folder, id)["result"] == 7
    late = flowdsl(folder, "signal", id, "go", "8")
    assert late.returncode == 1 and late.stdout == "the execution has ended already\n"
    assert told(folder, "signal", "nobody", "go", "8")["outcome"] == "unmatched"
    kept = told(folder, "unmatched")
    assert [(one["name"], one["key"], one["payload"]) for one in kept] == [("go", "nobody", 8)]
    assert "nobody" in flowdsl(folder, "unmatched").stdout
    assert flowdsl(folder, "signal", id, "go", "{").returncode == 2

    other = began(folder, "w.wait", "b")
    assert flowdsl(folder, "terminate", other).stdout == "terminated\n"
    assert status(folder, other)["cancelled"] == {"reason": "terminated: by a person"}
    assert flowdsl(folder, "terminate", other).returncode == 2


@pytest.mark.usefixtures("worker")
def test_compat_export_and_import(folder: Path) -> None:
    id = began(folder, "w.wait", "a")
    until = 200
    while told(folder, "status", id)["status"] != "suspended" and until:
        until -= 1
    assert flowdsl(folder, "compat", "shop").stdout == "✓ w.wait: 1 fits\n"
    (folder / "changed.py").write_text(WORK.replace("    yield from call(name)\n", "    yield from call('other')\n"))
    broken = flowdsl(folder, "compat", "changed")
    assert broken.returncode == 1 and "w.wait: 1 breaks" in broken.stdout and "other input" in broken.stdout
    (folder / "smaller.py").write_text(WORK.replace("[order, wait]", "[order]").replace('@workflow("w.wait")', '@workflow("w.gone")'))
    assert told(folder, "compat", "smaller")[0]["verdict"] == "unknown"

    document = flowdsl(folder, "export", id).stdout
    assert flowdsl(folder, "import", said=document).returncode == 2
    assert flowdsl(folder, "terminate", id).returncode == 0
    assert told(folder, "prune", "--older-than", "0s")["deleted"] == 1
    imported = flowdsl(folder, "import", said=document)
    assert imported.stdout == f"{id}\n"
    assert told(folder, "resume", "--all")["resumed"] == [id]
    flowdsl(folder, "signal", id, "go", "3")
    assert status(folder, id)["result"] == 3
