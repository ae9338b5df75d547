"""`flowdsl graph` and `flowdsl lint`, as a person and a script meet them."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

SHOP = """
from datetime import datetime
from typing import Never
from flowdsl import Deployment, Result, Steps, Success, activity, bind, signal, workflow

print("a module that prints")
paid = signal("paid", int)

@activity("shop.charge")
def charge(cents: int) -> Result[int, Never]: ...

@workflow("shop.item")
def item(cents: int) -> Steps[int, Never]:
    return (yield from charge(cents))

@workflow("shop.order")
def order(cents: int) -> Steps[int, Never]:
    at = datetime.now(){allowed}
    yield from item.child(cents)
    return (yield from paid.receive())

deployment = Deployment(workflows=[order], bindings=[bind(charge, lambda cents: Success(cents))])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP.replace("{allowed}", ""))
    return tmp_path


def flowdsl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowdsl", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=120)


def test_a_graph_is_the_only_thing_on_stdout(folder: Path) -> None:
    done = flowdsl(folder, "graph", "shop:deployment", "shop.order")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("flowchart TD\n")
    assert "shop.item" in done.stdout and "receive paid" in done.stdout
    assert done.stderr == "a module that prints\n"


def test_without_a_workflow_all_are_drawn_and_linked(folder: Path) -> None:
    done = flowdsl(folder, "graph", "shop:deployment", "--format", "svg")
    root = ET.fromstring(done.stdout)
    assert [group.get("id") for group in root if group.get("id")] == ["workflow-shop.order", "workflow-shop.item"]
    assert 'href="#workflow-shop.item"' in done.stdout


@pytest.mark.parametrize(("name", "begin"), [("a.svg", "<svg "), ("a.json", '{\n  "workflow"'), ("a.mmd", "flowchart"), ("a", "flowchart")])
def test_the_ending_of_a_file_says_its_form(folder: Path, name: str, begin: str) -> None:
    done = flowdsl(folder, "graph", "shop:deployment", "shop.order", "--output", name)
    assert (done.returncode, done.stdout.replace("a module that prints\n", "")) == (0, "")
    assert f"{name}: shop.order" in done.stderr
    assert (folder / name).read_text(encoding="utf-8").startswith(begin)


def test_json_holds_the_sites_and_the_children(folder: Path) -> None:
    facts = json.loads(flowdsl(folder, "graph", "shop:deployment", "--format", "json").stdout)
    assert [one["workflow"] for one in facts] == ["shop.order", "shop.item"]
    line = SHOP.splitlines().index("    yield from item.child(cents)") + 1
    assert facts[0]["sites"] == [f"order shop.py:{line}", f"order shop.py:{line + 1}"]
    assert facts[0]["children"] == ["shop.item"]


def test_what_cannot_be_drawn_is_told_in_a_line(folder: Path) -> None:
    missing = flowdsl(folder, "graph", "shop:deployment", "shop.ordr")
    assert (missing.returncode, "did you mean shop.order?" in missing.stderr) == (2, True)
    nowhere = flowdsl(folder, "graph", "shop:deployment", "--output", "no/such/folder/a.svg")
    assert nowhere.returncode == 2
    assert nowhere.stderr.splitlines()[-1] == "flowdsl: no/such/folder/a.svg cannot be written: No such file or directory"


def test_lint_names_place_rule_and_remedy(folder: Path) -> None:
    done = flowdsl(folder, "lint", "shop:deployment")
    assert done.returncode == 1
    line = SHOP.splitlines().index("    at = datetime.now(){allowed}") + 1
    told = [one for one in done.stdout.splitlines() if one.startswith("shop.py")]
    assert told == [
        f"shop.py:{line}: error clock: `datetime.now(…)`: it differs in every replay: bind `yield from now()`",
        f"shop.py:{line + 2}: warning no-timeout: `receive paid` waits for ever when nothing comes: give it `.timeout(…)`, or race it with a `sleep`",
    ]
    assert "2 workflows read: 1 error, 1 warning" in done.stderr


def test_lint_as_json_and_warnings_alone_are_no_failure(folder: Path) -> None:
    (folder / "shop.py").write_text(SHOP.replace("{allowed}", "  # flowdsl: allow clock because nobody reads it"))
    done = flowdsl(folder, "lint", "shop:deployment", "--json")
    assert done.returncode == 0
    (one,) = json.loads(done.stdout)
    assert (one["rule"], one["severity"], one["function"]) == ("no-timeout", "warning", "order")
    assert Path(one["file"]).name == "shop.py"


@pytest.mark.parametrize("name", ["graph", "lint"])
def test_help_does_not_load_what_reads_workflows(name: str) -> None:
    code = "import sys; from flowdsl.cli import main; main(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, name, "--help"], capture_output=True, text=True, timeout=120)
    assert "MODULE:DEPLOYMENT" in done.stdout
    assert not {"flowdsl.outline", "flowdsl.lint", "flowdsl.journal"} & set(done.stdout.splitlines()[-1].split()), done.stdout
