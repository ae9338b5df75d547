"""The pytest plugin: the `fake` fixture, and the story of the last run beside each failing test. Loads nothing of flowdsl before it is used."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flowdsl.testing.fake import Fake

TITLE = "story of the last run"


@pytest.fixture
def fake() -> Fake:
    """A fake interpreter: script activities, run workflows in virtual time, let the process die where you like."""
    from flowdsl.testing.fake import Fake

    return Fake()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("flowdsl").addoption("--flowdsl-paths", action="store_true", help="Tell which bind sites of the workflows the runs have reached.")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("flowdsl_paths"):
        from flowdsl.testing.paths import PathsSummary

        config.pluginmanager.register(PathsSummary(), "flowdsl-paths")


def _recent() -> Any:
    """Where the last run is kept; None as long as nothing ran."""
    story = sys.modules.get("flowdsl.story")
    return None if story is None else story.recent


def pytest_runtest_setup() -> None:
    if (recent := _recent()) is not None:
        recent.run = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    recent = _recent()
    if call.when == "call" and report.failed and recent is not None and recent.run is not None:
        story = _told(recent.run)
        if not _printed(story, report.longreprtext):
            report.sections.append((TITLE, story))
    return report


def _told(run: Any) -> str:
    try:
        return str(run)
    except Exception as error:  # a value whose repr fails must not hide why the test failed
        return f"it cannot be told: {error!r}"


def _printed(story: str, text: str) -> bool:
    """Whether it is in the report already: Hypothesis prints what was noted of its smallest example."""
    return all(line in text for line in story.splitlines())
