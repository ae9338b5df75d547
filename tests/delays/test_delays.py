"""A run with --delays is a run whose statements are late, here and in the processes that tests start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.delays.sitecustomize import VARIABLE, spec

ROOT = Path(__file__).parents[2]
ASKED = """
from asyncpg.connection import Connection
from asyncpg.prepared_stmt import PreparedStatement
found = {one.__module__.rpartition(".")[2] for one in (Connection.fetch, PreparedStatement.fetchrow)}
"""


@pytest.mark.parametrize("given", [{}, {VARIABLE: "7", "PYTHONPATH": str(Path(__file__).parent)}])
def test_a_process_that_a_test_starts_is_slowed_when_it_was_asked_for(given: dict[str, str]) -> None:
    variables = {name: value for name, value in os.environ.items() if name not in (VARIABLE, "PYTHONPATH")}
    printed = subprocess.run(
        [sys.executable, "-c", f"{ASKED}print(*found)"], env=variables | given, capture_output=True, text=True, timeout=60
    ).stdout
    assert set(printed.split()) == ({"sitecustomize"} if given else {"connection", "prepared_stmt"})


def test_statements_of_the_tests_own_process_are_slowed(tmp_path: Path) -> None:
    (tmp_path / "test_slowed.py").write_text(f"{ASKED}\n\ndef test_slowed():\n    assert found == {{'sitecustomize'}}\n")
    ours = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "tests.conftest", "--delays", "7:0.5:0.01")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *ours, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_what_is_left_out_is_moderate() -> None:
    assert spec("7") == ("7", 0.1, 0.2)
    assert spec("7:0.5") == ("7", 0.5, 0.2)
    assert spec("7:0.5:2") == ("7", 0.5, 2)


@pytest.mark.parametrize("wrong", ["", "7:2", "7:0.1:90", "7:x", "7:1:1:1"])
def test_what_cannot_be_meant_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError):
        spec(wrong)
