"""The import over real HTTP and real Postgres, with workers killed on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONG = os.environ.get("FLOWDSL_LONG") == "1"


@pytest.mark.shows("S3.4", "S3.24", "S3.33")
@pytest.mark.timeout(3000 if LONG else 480)
@pytest.mark.parametrize("rows", [1_000_000 if LONG else 600])
def test_the_demo_ends_with_a_clean_verdict(database: str, rows: int) -> None:
    command = [sys.executable, "-m", "adapters.demo", "imports", "--rows", str(rows), "--kills", "2", "--database", database, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["clean"] and outcome["killed"] == 2
    first, second = outcome["first"], outcome["second"]
    assert first["counts"]["done"] + first["counts"]["failed"] == first["verdict"]["asked"] == rows
    assert second["verdict"]["asked"] == first["counts"]["failed"] + max(1, rows // 100)
    assert 0 < first["live"] < 2100  # a chunk's entries, however many chunks there were
    assert max(first["memory"]) < 400
