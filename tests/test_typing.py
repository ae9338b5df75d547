"""What the checkers promise to who writes workflows: the right lines pass, every wrong line is refused, by mypy and by pyright.

The files are in `typing/`. Wrong lines carry an ignore of each checker; both refuse an ignore that is not needed, so a line that stops being
wrong is found by the same run. The net itself is tested too: without its ignores, every wrong line must be named by both.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "tests" / "typing"
IGNORES = re.compile(r"  # (?:type|pyright): ignore\[[^\]]*\]")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, env=environment)


def mypy(*paths: Path, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    where = ["--cache-dir", str(cache)] if cache else []
    return run("mypy", "--strict", "--no-pretty", "--no-error-summary", *where, *map(str, paths))


def pyright(*paths: Path) -> subprocess.CompletedProcess[str]:
    return run("pyright", "--pythonpath", sys.executable, "--outputjson", *map(str, paths))


def refused_by_mypy(*paths: Path) -> set[tuple[str, int]]:
    output = mypy(*paths, cache=paths[0].parent / "cache").stdout
    found = re.finditer(r"^(.+?):(\d+): error: ", output, re.MULTILINE)
    return {(Path(match[1]).name, int(match[2])) for match in found}


def refused_by_pyright(*paths: Path) -> set[tuple[str, int]]:
    found = json.loads(pyright(*paths).stdout)["generalDiagnostics"]
    return {(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in found}


@pytest.mark.shows("S4.66", "S2.5")
@pytest.mark.parametrize("checker", [mypy, pyright], ids=lambda checker: checker.__name__)
def test_the_checker_agrees(checker: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = checker(FILES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("refused", [refused_by_mypy, refused_by_pyright], ids=lambda refused: refused.__name__)
def test_the_net_has_no_holes(tmp_path: Path, refused: Callable[..., set[tuple[str, int]]]) -> None:
    """Every wrong line is named once its ignore is gone, and so is an ignore that no line needs."""
    comment = "type" if refused is refused_by_mypy else "pyright"
    lines = (FILES / "negative.py").read_text("utf-8").splitlines()
    wrong = {("stripped.py", number) for number, line in enumerate(lines, 1) if f"  # {comment}: ignore[" in line}
    stripped, needless = tmp_path / "stripped.py", tmp_path / "needless.py"
    stripped.write_text("\n".join(IGNORES.sub("", line) for line in lines) + "\n", "utf-8")
    needless.write_text("number: int = 1  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]\n", "utf-8")
    assert len(wrong) > 80
    assert refused(stripped, needless) == wrong | {("needless.py", 1)}


@pytest.mark.parametrize("path", [*sorted(FILES.glob("passages_*.py")), FILES / "positive.py"], ids=lambda path: path.stem)
def test_what_passes_can_be_imported(path: Path) -> None:
    """Its contracts, keys and signals stand the checks that are made on import."""
    runpy.run_path(str(path))
