"""`pytest --shows S3.22`: the tests that carry a row's number, and no others. tests/conftest.py takes these hooks in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.rows import RowError, numbers, systems
from tests.acceptance.shown import ROOT, shown

WANTED = pytest.StashKey[set[str]]()
FILES = pytest.StashKey[set[Path]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shows", action="append", metavar="ROW", help="only tests that show this row of ./dev acceptance: S3.22, S3.14-16, or S3 for a whole system"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "shows(*rows): the rows of ./dev acceptance that this test shows: S3.22, S3.14-16")
    asked = config.getoption("--shows", default=None)
    if not asked:
        return
    known = systems()
    try:
        wanted = set(numbers(asked, known))
        files = {ROOT / test.file for test in shown(known) if wanted & {*test.rows}}
    except RowError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[WANTED], config.stash[FILES] = wanted, files


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files without such a test are not even imported: that would take most of the time."""
    files = config.stash.get(FILES, None)
    return True if files is not None and collection_path.is_file() and collection_path not in files else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.stash.get(WANTED, None)
    if wanted is None:
        return
    known = systems()
    kept = [item for item in items if wanted & {row for mark in item.iter_markers("shows") for row in numbers(mark.args, known)}]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
