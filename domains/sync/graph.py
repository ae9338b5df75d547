"""From a manifest's relationships to the order of work. Nothing else decides what is synced, and after what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter

from attrs import frozen

from domains.sync.failures import PlanFault, UnbreakableCycle, UnknownTarget
from domains.sync.manifest import Entity, Manifest, SyncType
from flowdsl import Failure, Result, Success


@frozen
class Needs:
    """What an entity waits for: hard ones must have been synced, soft ones only be over."""

    hard: tuple[str, ...] = ()
    soft: tuple[str, ...] = ()


@frozen
class Link:
    """A relationship that is filled in when both sides are loaded."""

    entity_name: str
    relationship: str
    target: str


@frozen
class Graph:
    """`sync_order` keeps every dependency; `links` are the relationships for the step after it."""

    sync_order: tuple[str, ...]
    dependencies: dict[str, Needs]
    links: tuple[Link, ...]

    def among(self, names: Iterable[str]) -> Graph:
        """The same graph, of these entities only."""
        kept = set(names)
        dependencies = {
            name: Needs(tuple(one for one in needs.hard if one in kept), tuple(one for one in needs.soft if one in kept))
            for name, needs in self.dependencies.items()
            if name in kept
        }
        links = tuple(link for link in self.links if {link.entity_name, link.target} <= kept)
        return Graph(tuple(name for name in self.sync_order if name in kept), dependencies, links)


@frozen
class _Edge:
    entity: str
    target: str
    hard: bool


def plan(manifest: Manifest, sync_type: SyncType) -> Result[Graph, PlanFault]:
    """What waits for what, and what is linked afterwards.

    Hard edges that must stay come first: a cycle among them is refused. Then soft edges, and last the relationships that may be linked later:
    of these, one that would close a cycle is left out of the order, and its rows are linked when both sides are loaded.
    """
    for entity in manifest.entities:
        for one in entity.relationships:
            if manifest.entity(one.target) is None:
                return Failure(UnknownTarget(entity.name, one.name, one.target))
    chosen = [entity for entity in manifest.entities if manifest.supports(entity, sync_type)]
    edges = [edge for edge in _edges(manifest, chosen) if edge.hard]
    cycle = _cycle(edges)
    if cycle is not None:
        return Failure(UnbreakableCycle(cycle))
    for edge in (*(edge for edge in _edges(manifest, chosen) if not edge.hard), *_deferrable(manifest, chosen)):
        if edge not in edges and _cycle([*edges, edge]) is None:
            edges.append(edge)
    names = [entity.name for entity in chosen]
    dependencies = {name: _needs(name, edges) for name in names}
    return Success(Graph(_order(names, dependencies), dependencies, tuple(_links(manifest, chosen))))


def _edges(manifest: Manifest, chosen: list[Entity]) -> Iterator[_Edge]:
    """The edges that keep their place. What hangs on rows that may be merged waits softly for the merges."""
    names = {entity.name for entity in chosen}
    for entity in chosen:
        for one in entity.relationships:
            target = _named(manifest, one.target)
            if target in names and target != entity.name and not one.linked_later:
                yield _Edge(entity.name, target, one.required)
        for other in chosen:
            if other.merge is not None and other is not entity and entity.owner_entity == other.merge.target:
                yield _Edge(entity.name, other.name, False)


def _deferrable(manifest: Manifest, chosen: list[Entity]) -> Iterator[_Edge]:
    names = {entity.name for entity in chosen}
    for entity in chosen:
        for one in entity.relationships:
            target = _named(manifest, one.target)
            if one.linked_later and target in names and target != entity.name:
                yield _Edge(entity.name, target, one.required)


def _links(manifest: Manifest, chosen: list[Entity]) -> Iterator[Link]:
    names = {entity.name for entity in chosen}
    for entity in chosen:
        for one in entity.relationships:
            if one.linked_later and _named(manifest, one.target) in names:
                yield Link(entity.name, one.name, _named(manifest, one.target))


def _named(manifest: Manifest, name: str) -> str:
    entity = manifest.entity(name)
    return entity.name if entity else name


def _cycle(edges: Iterable[_Edge]) -> tuple[str, ...] | None:
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for edge in edges:
        sorter.add(edge.entity, edge.target)
    try:
        sorter.prepare()
    except CycleError as error:
        return tuple(reversed(error.args[1]))
    return None


def _needs(name: str, edges: list[_Edge]) -> Needs:
    hard = tuple(dict.fromkeys(edge.target for edge in edges if edge.entity == name and edge.hard))
    soft = tuple(dict.fromkeys(edge.target for edge in edges if edge.entity == name and not edge.hard and edge.target not in hard))
    return Needs(hard, soft)


def _order(names: list[str], dependencies: dict[str, Needs]) -> tuple[str, ...]:
    """The manifest's own order, as far as the dependencies allow."""
    order: list[str] = []
    waiting = list(names)
    while waiting:
        name = next(one for one in waiting if {*dependencies[one].hard, *dependencies[one].soft} <= {*order})
        waiting.remove(name)
        order.append(name)
    return tuple(order)
