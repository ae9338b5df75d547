"""The static graph of a workflow: what it may do, drawn without running it, and lit up by what a run has recorded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attrs import evolve, frozen

from flowdsl.definition import Workflow
from flowdsl.errors import DefinitionError
from flowdsl.journal import Entry
from flowdsl.outline.reading import Reader
from flowdsl.outline.source import written
from flowdsl.outline.values import BODIES, Function, Item


@frozen
class Lit:
    """Which sites of an outline a run has recorded something at. As text: `17 of 23 sites reached`."""

    sites: tuple[str, ...]
    reached: frozenset[str]
    items: frozenset[str]
    """The paths of the items that were reached."""

    @property
    def missing(self) -> tuple[str, ...]:
        """The sites that were not reached, in the order of the outline."""
        return tuple(site for site in self.sites if site not in self.reached)

    def __str__(self) -> str:
        return f"{len(self.reached)} of {len(self.sites)} sites reached"


@frozen
class Outline:
    """What a workflow may do. `root` is its body; `children` are the workflows that it starts as executions of their own."""

    workflow: str
    version: int
    file: str
    root: Item
    children: Mapping[str, Workflow[Any, Any, Any]]

    def walk(self) -> Iterator[tuple[str, Item]]:
        """Each item with its path, top-down: a path is the same for as long as the code is."""
        todo = [("0", self.root)]
        while todo:
            path, item = todo.pop()
            yield path, item
            todo += reversed([(f"{path}.{index}", part) for index, part in enumerate(item.parts)])

    @property
    def sites(self) -> tuple[str, ...]:
        """Where something is recorded, as `Entry.site` says it, in the order of the outline. `now`, `uuid` and `report` record nothing."""
        return tuple(dict.fromkeys(item.site for _, item in self.walk() if item.site and recorded(item)))

    def lit(self, entries: Iterable[Entry]) -> Lit:
        """What these entries, of one execution or of many, show to have been reached. Those of children belong to their own outlines."""
        seen = {(entry.site, entry.fingerprint) for entry in entries}
        at = {site for site, _ in seen}
        reached = frozenset(
            path
            for path, item in self.walk()
            if any(site == item.site and any(_says(print, ask) for ask in item.asks) for site, print in seen)
            or (item.kind == "unknown" and item.site in at)
        )
        sites = self.sites
        return Lit(sites, frozenset(site for site in sites if site in at), reached)

    def facts(self) -> dict[str, Any]:
        """The outline as plain data."""
        return {
            "workflow": self.workflow,
            "version": self.version,
            "file": self.file,
            "sites": list(self.sites),
            "children": list(self.children),
            "root": _facts("0", self.root),
        }

    def to_json(self) -> str:
        """The outline as one JSON document."""
        return json.dumps(self.facts(), indent=2, ensure_ascii=False)

    def to_mermaid(self, lit: Lit | None = None) -> str:
        """The outline as a Mermaid flowchart; what `lit` holds is marked."""
        from flowdsl.outline.mermaid import mermaid

        return mermaid([(self, lit)])

    def to_svg(self, lit: Lit | None = None) -> str:
        """The outline as a picture of its own, for light and dark; what `lit` holds is marked."""
        from flowdsl.outline.svg import svg

        return svg([(self, lit)])


def recorded(item: Item) -> bool:
    """Whether a run that comes here is sure to record it there: not so what only a late answer or a further round records."""
    return (bool(item.asks) and item.kind not in ("timeout", "retry", "iterate")) or item.kind == "unknown"


def _says(fingerprint: str, ask: str) -> bool:
    return fingerprint == ask or fingerprint.startswith(f"{ask} ")


def _facts(path: str, item: Item) -> dict[str, Any]:
    facts: dict[str, Any] = {"id": path, "kind": item.kind, "label": item.label}
    more = {"when": item.when, "site": item.site, "line": item.line, "link": item.link, "asks": list(item.asks), "facts": dict(item.facts)}
    facts |= {name: value for name, value in more.items() if value}
    if item.parts:
        facts["parts"] = [_facts(f"{path}.{index}", part) for index, part in enumerate(item.parts)]
    return facts


def outline(workflow: Workflow[Any, Any, Any]) -> Outline:
    """The outline of a workflow, read from its source. Raises `DefinitionError` when there is no source to read."""
    root, reader, source = read(workflow)
    return Outline(workflow.name, workflow.version, source, _undone(_once(root, {}), ""), reader.children)


def read(workflow: Workflow[Any, Any, Any], reader: Reader | None = None) -> tuple[Item, Reader, str]:
    """Its body as one item in which parts stand as often as they are called, who read it, and its file."""
    source = written(workflow.body)
    if source is None:
        raise DefinitionError(workflow.name, "its source cannot be read", "Define it in a file: what is typed into a prompt or made by exec has none")
    reader = reader or Reader()
    return reader.body("workflow", workflow.name, Function(source)), reader, source.file


def _undone(item: Item, saga: str) -> Item:
    """Undos run where their saga was bound; those of the workflow itself when no body is left, so that their entries name no site."""
    within = item.site if item.kind == "saga" else saga
    parts = tuple(_undone(part, within) for part in item.parts)
    if item.kind == "compensate" and len(parts) == 2:
        parts = (parts[0], _moved(parts[1], saga))
    return evolve(item, parts=parts)


def _moved(item: Item, site: str) -> Item:
    return evolve(item, site=site, parts=item.parts if item.kind in BODIES else tuple(_moved(part, site) for part in item.parts))


def _once(item: Item, seen: dict[int, list[tuple[Item, ...]]]) -> Item:
    """Each part is drawn where it comes first; later it is named only, unless other flows were given to it."""
    if item.kind in BODIES and item.parts:
        known = seen.setdefault(id(item.source), [])
        if item.parts in known:
            return evolve(item, kind="again", link=item.label, parts=())
        known.append(item.parts)
    return evolve(item, parts=tuple(_once(part, seen) for part in item.parts))


__all__ = ["Item", "Lit", "Outline", "outline", "read", "recorded"]
