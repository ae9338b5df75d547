"""Which bind sites of a workflow the runs of a test session have reached.

def test_that_all_of_it_is_tested():
    assert paths(order).missing == []
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from os.path import basename
from typing import Any

import pytest
from attrs import define, field, frozen

from flowdsl.binding import named_in
from flowdsl.definition import Workflow
from flowdsl.errors import DefinitionError
from flowdsl.journal import Entry
from flowdsl.outline import Item, Lit, Outline, outline, recorded
from flowdsl.story import Run, recent

_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


@frozen
class Paths:
    """The bind sites of one workflow. Those of workflows that it starts or calls count for their own."""

    workflow: Workflow[Any, Any, Any]

    @property
    def sites(self) -> list[str]:
        """All of them, in the order of the source: `orders.py:41 refund`."""
        return [text for _, text in _sites(self.workflow)]

    @property
    def missing(self) -> list[str]:
        """Those that no run has reached."""
        return [text for site, text in _sites(self.workflow) if site not in _seen.at]

    @property
    def lit(self) -> Lit:
        """What was reached, as marks on the outline: `outline(order).to_mermaid(paths(order).lit)`."""
        return self.outline.lit(_seen.entries())

    @property
    def outline(self) -> Outline:
        return outline(self.workflow)

    def add(self, run: Run) -> Paths:
        """Counts a run that was not made by the testing kit in this session."""
        record(run.workflow, run.journal)
        for child in run.children:
            self.add(child)
        return self

    def __str__(self) -> str:
        return _told(self.workflow.name, self.sites, self.missing)


@define
class _Seen:
    """All that was reached in this process."""

    at: set[str] = field(factory=set[str])
    asked: set[tuple[str, str]] = field(factory=set[tuple[str, str]])
    """Sites, and what was asked there, without the input."""
    workflows: dict[tuple[str, int], Workflow[Any, Any, Any]] = field(factory=dict[tuple[str, int], Workflow[Any, Any, Any]])

    def entries(self) -> list[Entry]:
        return [Entry(0, 1, _MOMENT, "", asked, site, b"null") for site, asked in sorted(self.asked)]


_seen = _Seen()


def paths(workflow: Workflow[Any, Any, Any]) -> Paths:
    """The bind sites of a workflow, and which of them were reached so far. Raises `DefinitionError` when its source cannot be read."""
    _sites(workflow)
    return Paths(workflow)


def record(workflow: Workflow[Any, Any, Any], entries: Iterable[Entry]) -> None:
    """Counts what these entries, of an execution of that workflow, have reached."""
    for one in _called(workflow):
        _seen.workflows.setdefault((one.name, one.version), one)
    for entry in entries:
        if entry.site:
            _seen.at.add(entry.site)
            _seen.asked.add((entry.site, " ".join(entry.fingerprint.split(" ")[:2])))


def listen() -> None:
    """From here on each run of the testing kit in this process counts."""
    if _heard not in recent.listeners:
        recent.listeners.append(_heard)


def _heard(run: Run) -> None:
    record(run.workflow, run.journal)
    for child in run.children:
        _heard(child)


@lru_cache(maxsize=1024)
def _called(workflow: Workflow[Any, Any, Any]) -> tuple[Workflow[Any, Any, Any], ...]:
    """It, and the workflows that its body calls in place."""
    found = [workflow]
    for one in found:
        found += [other for other in named_in(one.body) if isinstance(other, Workflow) and other not in found]
    inline = {item.label for _, item in _outlined(workflow).walk() if item.kind == "workflow"} if _readable(workflow) else set[str]()
    return tuple(one for one in found if one is workflow or one.name in inline)


def _readable(workflow: Workflow[Any, Any, Any]) -> bool:
    try:
        _outlined(workflow)
    except DefinitionError:
        return False
    return True


@lru_cache(maxsize=1024)
def _outlined(workflow: Workflow[Any, Any, Any]) -> Outline:
    return outline(workflow)


@lru_cache(maxsize=1024)
def _sites(workflow: Workflow[Any, Any, Any]) -> tuple[tuple[str, str], ...]:
    """Each site as the journal spells it, and for people."""
    read = _outlined(workflow)
    file = basename(read.file)
    found: dict[str, list[str]] = {}
    for item in _own(read.root):
        if item.site and recorded(item):
            labels = found.setdefault(item.site, [])
            labels += [item.label] if item.label not in labels else []
    return tuple((site, f"{site.rpartition(' ')[2] or file} {', '.join(labels)}") for site, labels in found.items())


def _own(item: Item) -> Iterator[Item]:
    """An item and its parts, without the bodies of workflows that are called in it."""
    yield item
    for part in item.parts:
        if part.kind != "workflow":
            yield from _own(part)


listen()  # whoever asks for paths imports this when tests are collected, so that all of them count


# The summary of a session


def _told(name: str, sites: list[str], missing: list[str]) -> str:
    reached = f"{name} {len(sites) - len(missing)} of {len(sites)} bind sites"
    return f"{reached} (missing: {', '.join(missing)})" if missing else reached


class PathsSummary:
    """The part of the pytest plugin that tells the paths at a session's end, those that xdist's workers have seen included."""

    def __init__(self) -> None:
        self._gathered: dict[str, tuple[list[str], set[str]]] = {}

    def pytest_sessionfinish(self, session: Any) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["flowdsl_paths"] = json.dumps(self._here())

    @pytest.hookimpl(optionalhook=True)  # xdist's
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        output = getattr(node, "workeroutput", None) or {}
        if "flowdsl_paths" in output:
            self._gather(json.loads(output["flowdsl_paths"]))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        self._gather(self._here())
        lines = [_told(name, sites, [one for one in sites if one in missing]) for name, (sites, missing) in sorted(self._gathered.items())]
        terminalreporter.section("flowdsl paths")
        for line in lines or ["no workflow was run"]:
            terminalreporter.write_line(line)

    def _here(self) -> dict[str, tuple[list[str], list[str]]]:
        found = [(one, paths(one)) for one in _seen.workflows.values() if _readable(one)]
        return {one.name if one.version == 1 else f"{one.name} v{one.version}": (each.sites, each.missing) for one, each in found}

    def _gather(self, seen: dict[str, tuple[list[str], list[str]]]) -> None:
        """A site is missing when it is missing everywhere."""
        for name, (sites, missing) in seen.items():
            before = self._gathered.get(name, (sites, set(sites)))
            self._gathered[name] = (sites, before[1] & set(missing))


__all__ = ["Paths", "PathsSummary", "listen", "paths", "record"]
