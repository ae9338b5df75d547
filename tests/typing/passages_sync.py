"""Sync: pages of one entity with a checkpoint after each, then all entities of an adapter in the order of their dependencies."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TypeAlias

from attrs import frozen

from flowdsl import (
    Died,
    Done,
    Failure,
    Next,
    Outcome,
    Result,
    Round,
    Skipped,
    Steps,
    Success,
    activity,
    dag_attempt,
    do,
    each_attempt,
    iterate,
    node,
    now,
    sleep,
    workflow,
)


@frozen
class EntitySync:
    org_id: str
    adapter_name: str
    entity_name: str
    sync_type: str
    subject: str | None = None


@frozen
class EntitySynced:
    entity_name: str
    sync_type: str
    records: int
    pages: int


@frozen
class MainSync:
    org_id: str
    adapter_name: str
    sync_type: str


@frozen
class EntityResult:
    entity_name: str
    status: str
    synced: EntitySynced | None = None
    reason: str | None = None


@frozen
class MainSynced:
    entities: int
    results: tuple[EntityResult, ...]


@frozen
class Unavailable:
    status: int


@frozen
class Forbidden:
    entity_name: str


@frozen
class NotConfigured:
    org_id: str


@frozen
class Malformed:
    adapter_name: str
    message: str


SourceFailure: TypeAlias = Unavailable | Forbidden
EntityFailure: TypeAlias = SourceFailure | NotConfigured
PlanFailure: TypeAlias = Malformed | Unavailable


@frozen
class GetSyncParameters:
    org_id: str
    entity_name: str
    sync_type: str


@frozen
class SyncParameters:
    since: datetime | None


@frozen
class PageOrder:
    order: EntitySync
    parameters: SyncParameters
    offset: int


@frozen
class Page:
    records: int
    has_more: bool
    pause: timedelta
    newest_change: datetime | None


@frozen
class Walk:
    offset: int = 0
    records: int = 0
    pages: int = 0
    newest_change: datetime | None = None

    def after(self, page: Page) -> "Walk":
        return Walk(self.offset + page.records, self.records + page.records, self.pages + 1, page.newest_change or self.newest_change)


@frozen
class SyncStatus:
    order: EntitySync
    records: int
    newest_change: datetime | None
    at: datetime


@frozen
class LoadManifest:
    adapter_name: str


@frozen
class Manifest:
    entities: tuple[str, ...]


@frozen
class BuildGraph:
    manifest: Manifest
    sync_type: str


@frozen
class Needs:
    hard: tuple[str, ...]
    soft: tuple[str, ...]


@frozen
class Graph:
    dependencies: Mapping[str, Needs]
    sync_order: tuple[str, ...]


@frozen
class Link:
    parent: str
    child: str


@activity("sync.get_sync_parameters")
def get_sync_parameters(request: GetSyncParameters) -> Result[SyncParameters, NotConfigured]: ...


@activity("sync.process_entity_page")
def process_entity_page(request: PageOrder) -> Result[Page, SourceFailure]: ...


@activity("sync.update_sync_status")
def update_sync_status(request: SyncStatus) -> Result[None, Unavailable]: ...


@activity("sync.load_entity_manifest")
def load_entity_manifest(request: LoadManifest) -> Result[Manifest, Malformed]: ...


@activity("sync.build_dependency_graph")
def build_dependency_graph(request: BuildGraph) -> Result[Graph, Malformed]: ...


@activity("sync.link")
def link(request: Link) -> Result[int, Unavailable]: ...


def entity_order(order: MainSync, name: str, needs: Needs) -> EntitySync:
    return EntitySync(order.org_id, order.adapter_name, name, order.sync_type, needs.hard[0] if needs.hard else None)


def links_between(graph: Graph, outcomes: Mapping[str, Outcome[EntitySynced, EntityFailure | Died] | Skipped]) -> list[Link]:
    return [
        Link(parent, child)
        for child, needs in graph.dependencies.items()
        for parent in needs.hard
        if isinstance(outcomes[parent], Success) and isinstance(outcomes[child], Success)
    ]


# The passage, laid out for reading.
# fmt: off

@workflow("sync.entity", key="entity-sync:{org_id}:{adapter_name}:{entity_name}:{sync_type}:{subject}", reuse="after_close")
def entity_sync(order: EntitySync) -> Steps[EntitySynced, EntityFailure]:
    parameters = yield from get_sync_parameters(GetSyncParameters(order.org_id, order.entity_name, order.sync_type))

    @do
    def one_page(walk: Walk) -> Steps[Round[Walk, Walk], SourceFailure]:
        page = yield from process_entity_page(PageOrder(order, parameters, walk.offset))
        walk = walk.after(page)
        if not page.has_more:
            return Done(walk)
        yield from sleep(page.pause)
        return Next(walk)                                   # the checkpoint: nothing before it is replayed

    walk = yield from iterate(Walk(), one_page)
    yield from update_sync_status(SyncStatus(order, walk.records, walk.newest_change, (yield from now())))
    return EntitySynced(order.entity_name, order.sync_type, walk.records, walk.pages)

@workflow("sync.main", key="main-sync:{org_id}:{adapter_name}:{sync_type}", reuse="after_close")
def main_sync(order: MainSync) -> Steps[MainSynced, PlanFailure]:
    manifest = yield from load_entity_manifest(LoadManifest(order.adapter_name))
    graph = yield from build_dependency_graph(BuildGraph(manifest, order.sync_type))
    outcomes = yield from dag_attempt({                     # the graph is data: known only now
        name: node(entity_sync.child(entity_order(order, name, needs)).isolate(), after=needs.hard, soft=needs.soft)
        for name, needs in graph.dependencies.items()}, concurrency=4)
    yield from each_attempt(links_between(graph, outcomes), link)
    return MainSynced(len(outcomes), tuple(entity_result(name, outcomes[name]) for name in graph.sync_order))

def entity_result(name: str, outcome: Outcome[EntitySynced, EntityFailure | Died] | Skipped) -> EntityResult:
    match outcome:                                          # closed: leave a case out and both checkers say so
        case Success(synced):
            return EntityResult(name, "completed", synced)
        case Failure(failure):
            return EntityResult(name, "failed", reason=str(failure))
        case Skipped(because):
            return EntityResult(name, "skipped", reason=because)
