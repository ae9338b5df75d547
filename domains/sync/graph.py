"""From a manifest's relationships to a graph: nothing is known here of any entity."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from domains.sync.values import Cyclic, Dependencies, Graph, Link, Manifest, SyncType


def plan(manifest: Manifest, sync_type: SyncType) -> Graph | Cyclic:
    """Who comes after whom. A required reference to one row, and being listed below another entity, are hard; every other reference is soft.

    Of a cycle a soft reference is taken out, to be linked when both sides are loaded. A delta leaves out what cannot be asked for changes.
    """
    entities = {one.name: one for one in manifest.entities if sync_type != "delta" or one.supports_delta}
    hard: dict[str, set[str]] = {name: set() for name in entities}
    soft: dict[str, dict[str, str]] = {name: {} for name in entities}
    for name, entity in entities.items():
        if entity.parent in entities and entity.parent is not None:
            hard[name].add(entity.parent)
        for reference in entity.relationships:
            if reference.target not in entities or reference.target == name:
                continue
            if reference.required and not reference.many:
                hard[name].add(reference.target)
            else:
                soft[name].setdefault(reference.target, reference.name)
    links: list[Link] = []
    while (cycle := _cycle(entities, hard, soft)) is not None:
        link = _breakable(cycle, hard, soft)
        if link is None:
            return Cyclic(tuple(cycle))
        del soft[link.entity][link.target]
        links.append(link)
    dependencies = {name: Dependencies(_ordered(entities, hard[name]), _ordered(entities, set(soft[name]) - hard[name])) for name in entities}
    return Graph(_order(dependencies), dependencies, tuple(links))


def _cycle(entities: Mapping[str, object], hard: Mapping[str, set[str]], soft: Mapping[str, dict[str, str]]) -> list[str] | None:
    """One cycle, each followed by what it waits for; None when there is none."""
    sorter = TopologicalSorter({name: _ordered(entities, hard[name] | set(soft[name])) for name in entities})
    try:
        sorter.prepare()
    except CycleError as error:
        found: list[str] = list(reversed(error.args[1]))
        return found
    return None


def _breakable(cycle: list[str], hard: Mapping[str, set[str]], soft: Mapping[str, dict[str, str]]) -> Link | None:
    for waiting, target in pairwise(cycle):
        if target in soft[waiting] and target not in hard[waiting]:
            return Link(waiting, soft[waiting][target], target)
    return None


def _ordered(entities: Mapping[str, object], names: set[str]) -> tuple[str, ...]:
    return tuple(name for name in entities if name in names)


def _order(dependencies: Mapping[str, Dependencies]) -> tuple[str, ...]:
    """The manifest's order, as far as the edges allow."""
    done: list[str] = []
    while len(done) < len(dependencies):
        done.append(next(name for name, needs in dependencies.items() if name not in done and {*needs.hard, *needs.soft} <= set(done)))
    return tuple(done)
