"""The main job over real HTTP and real Postgres, with a worker killed on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.shows("S4.55", "S4.56")
@pytest.mark.timeout(480)
@pytest.mark.parametrize("faults", ["mild", "rough"])
def test_the_demo_ends_with_a_clean_verdict(database: str, faults: str) -> None:
    command = [sys.executable, "-m", "adapters.demo", "--people", "400", "--faults", faults, "--database", database, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["records"] > 1500
    assert (outcome["missing"], outcome["duplicated"], outcome["stale"]) == (0, 0, 0)
    assert outcome["killed"] == 1
    assert outcome["resumed"] > 0


@pytest.mark.shows("S2.56")
@pytest.mark.timeout(480)
def test_the_enrichment_ends_with_a_clean_verdict_by_the_providers_books(database: str) -> None:
    command = [sys.executable, "-m", "adapters.demo", "enrichment", "--addresses", "60", "--database", database, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    found = outcome["verdict"]
    assert (found["addresses"], found["enriched"] + found["absent"]) == (60, 60)
    assert (found["paid_twice"], found["asked_twice"], found["lost"], found["processed_twice"], found["wrong"]) == (0, 0, 0, 0, 0)
    assert outcome["killed"] == ["worker while a submission was under way", "service while a callback came", "worker while it wrote results"]
    assert outcome["interrupted"] >= 1
