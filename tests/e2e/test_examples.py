"""The examples of docs/, as a newcomer runs them: outside of the repository, with nothing but `flowdsl[testing]`.

Each holds a workflow as its author wrote it, the mended one, and one test. The test finds the bug, its story names the cause, and the mended
workflow passes. What a page shows is what the files say and what pytest prints.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "examples"
CAUSES = {  # what each story must say
    "order_saga": r"charge\(.*\n(.*\n)*?.*undo: release\(",
    "page_sync": r"append_rows has acted, and its answer is lost\n(.*\n)*?.* append_rows\(.*\[attempt 3: the same step again",
    "approval": r"takes the signal expenses\.decided.*\n(.*\n)*?.*book is given up(.*\n)*?.*It waits for signal expenses\.decided",
    "payout": r"transfer\(Transfer\(reference='([-0-9a-f]+)'.*\n(.*\n)*?.*transfer\(Transfer\(reference='(?!\1)",
    "signup": r"workspace: ends: (cancelled: cancelled by its parent|Failure)",
}
NEVER = {"order_saga": "undo: refund"}
LONG = pytest.mark.skipif(not os.environ.get("FLOWDSL_LONG"), reason="the long form: FLOWDSL_LONG=1")
UPDATE = os.environ.get("FLOWDSL_UPDATE_EXAMPLES")
"""Write what is printed into the pages, in place of comparing it."""


def pytest_on(folder: Path, workflow: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Runs the test of an example as its page says, against one of its two workflows; with a seed, so that a page can show what is printed."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}  # CI=true would make them say more
    variables = {**kept, "PYTHONPATH": workflow, "COLUMNS": "150", "PYTHONDONTWRITEBYTECODE": "1"}
    strangers = ["-p", "no:schemathesis", "-p", "no:cacheprovider"]  # the first leaves the world out of what Hypothesis prints; a newcomer has it not
    seeded = [
        python,
        "-m",
        "pytest",
        *strangers,
        "--hypothesis-seed=0",
    ]  # one that finds them all: about one seed in ten passes over order_saga's bug
    return subprocess.run(seeded, cwd=folder, env=variables, capture_output=True, text=True, timeout=250)


@pytest.fixture(params=sorted(CAUSES))
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    assert not tmp_path.is_relative_to(ROOT)
    return Path(shutil.copytree(FOLDER / request.param, tmp_path / request.param))


def finds_the_bug(folder: Path, python: str = sys.executable) -> str:
    """Gives what the failing test printed."""
    failed = pytest_on(folder, "as_written", python)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "1 failed" in failed.stdout and "AssertionError" in failed.stdout, failed.stdout
    assert re.search(CAUSES[folder.name], failed.stdout), f"the story does not say {CAUSES[folder.name]!r}:\n{failed.stdout}"
    assert NEVER.get(folder.name, "error") not in failed.stdout, failed.stdout
    passed = pytest_on(folder, "mended", python)
    assert passed.returncode == 0 and "1 passed" in passed.stdout and "warning" not in passed.stdout, passed.stdout + passed.stderr
    return failed.stdout


def test_the_test_finds_the_bug_and_names_its_cause(example: Path) -> None:
    printed = told(finds_the_bug(example))
    page = FOLDER / example.name / "README.md"
    if UPDATE:
        shown = page.read_text(encoding="utf-8")
        page.write_text(re.sub(r"(?<=^```text\n).*?(?=^```)", lambda _: printed, shown, flags=re.M | re.S), encoding="utf-8")
    assert blocks(page.parent, "text") == [printed], "FLOWDSL_UPDATE_EXAMPLES=1 writes what is printed into the page"


def told(printed: str) -> str:
    """Of a report the command, the assertion and the story. Left out: addresses of objects and lines of code, and what the page shows anyway."""
    lines = [line for line in printed.splitlines() if not re.match(r"E +(\+|/|Explanation:|These lines were)", line)]
    begin = next(number for number, line in enumerate(lines) if line.startswith("E  "))
    end = next(number for number, line in enumerate(lines) if "short test summary" in line)
    kept = [line for line in lines[begin - 1 : end] if line.strip() and not re.match(r"test_\w+\.py:\d+: ", line)]
    return "\n".join(["$ PYTHONPATH=as_written pytest", "…", *kept]) + "\n"


def one(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def blocks(folder: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", (folder / "README.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("name", sorted(CAUSES))
def test_the_page_shows_what_there_is(name: str) -> None:
    folder = FOLDER / name
    test = one(folder, "test_*.py").read_text(encoding="utf-8")
    assert test.count("\n") <= 30, "a newcomer's test is short"
    assert blocks(folder, f"python {one(folder, 'test_*.py').name}") == [test]
    as_written, mended = (one(folder, f"{kind}/*.py").read_text(encoding="utf-8").splitlines() for kind in ("as_written", "mended"))
    changes = [line for line in difflib.ndiff(as_written, mended) if line[0] in "+-"]
    assert changes, "the mended workflow is another one"
    (shown,) = blocks(folder, "diff")
    assert [line for line in shown.splitlines() if line[0] in "+-"] == [line[0] + line[2:] for line in changes]


def test_the_pages_name_each_example() -> None:
    folders = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
    assert folders == sorted(CAUSES)
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in folders if f"]({name}/README.md)" not in index] == []


@LONG
def test_the_same_with_only_the_wheel(tmp_path: Path) -> None:
    """The wheel and its extra `testing`, in an environment of their own: nothing of ours is on the path by accident."""
    made = run("uv", "build", "--quiet", "--wheel", "--out-dir", str(tmp_path), str(ROOT))
    installed = made
    if made.returncode == 0:
        assert run("uv", "venv", "--quiet", "--python", sys.executable, str(tmp_path / "env")).returncode == 0
        python = str(tmp_path / "env" / "bin" / "python")
        installed = run("uv", "pip", "install", "--quiet", "--python", python, f"flowdsl[testing] @ {one(tmp_path, '*.whl').as_uri()}")
    if re.search(r"error sending request|[Ff]ailed to fetch|network|dns error", installed.stderr):
        pytest.skip(f"packages cannot be had here: {installed.stderr.strip()}")
    assert installed.returncode == 0, installed.stderr
    for name in sorted(CAUSES):
        finds_the_bug(Path(shutil.copytree(FOLDER / name, tmp_path / name)), python)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not on PATH")
    return subprocess.run(command, capture_output=True, text=True, timeout=100)
