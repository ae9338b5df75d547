"""The two tiers: `sync.main` coordinates what a manifest names, `sync.entity` walks one entity page by page."""

from __future__ import annotations

from domains.sync.activities import (
    build_dependency_graph,
    get_api_client,
    get_entity_definition,
    get_sync_parameters,
    link_entities,
    load_entity_manifest,
    process_entity_page,
    select_endpoint,
    sweep_unseen,
    update_sync_status,
)
from domains.sync.values import (
    ApiClient,
    BuildGraph,
    ClientOf,
    Dependencies,
    Endpoint,
    EntityFailure,
    EntityOf,
    EntityResult,
    EntitySync,
    EntitySynced,
    Link,
    LinkOrder,
    LoadManifest,
    MainSync,
    MainSynced,
    PageOrder,
    ParametersOf,
    PlanFailure,
    SelectFor,
    SourceFailure,
    SweepOrder,
    SyncStatus,
    Unconfigured,
    Walk,
)
from flowdsl import (
    Died,
    Done,
    Failure,
    Next,
    Outcome,
    Round,
    Skipped,
    Steps,
    Success,
    dag_attempt,
    do,
    each_attempt,
    execution,
    iterate,
    node,
    now,
    report,
    sleep,
    workflow,
)


@workflow("sync.entity", key="entity-sync:{org_id}:{adapter_name}:{entity_name}:{sync_type}:{subject}", reuse="after_close")
def entity_sync(order: EntitySync) -> Steps[EntitySynced, EntityFailure]:
    """Walks one entity. Each round's state is a checkpoint: a crash costs at most the page in hand."""
    definition = yield from get_entity_definition(EntityOf(order.adapter_name, order.entity_name))
    endpoint = yield from select_endpoint(SelectFor(definition, order.sync_type, order.subject))
    client = yield from get_api_client(ClientOf(order.org_id, order.adapter_name))
    parameters = yield from get_sync_parameters(ParametersOf(order.org_id, order.entity_name, order.sync_type))
    walk_id = (yield from execution()).id

    @do
    def one_page(walk: Walk) -> Steps[Round[Walk, Walk], SourceFailure | Unconfigured]:
        page = yield from process_entity_page(PageOrder(order, endpoint, client, parameters, walk.cursor, walk_id))
        walk = walk.after(page)
        yield from report(f"{order.entity_name}: page {walk.pages}", done=walk.records)
        if not page.has_more:
            return Done(walk)
        if page.pause:
            yield from sleep(page.pause)
        return Next(walk)

    walk = yield from iterate(Walk(), one_page)
    deleted = 0
    if order.sync_type != "delta" and order.subject is None:
        deleted = yield from swept(order, endpoint, client, walk_id)
    if order.subject is None:
        at = yield from now()
        yield from update_sync_status(SyncStatus(order.org_id, order.entity_name, order.sync_type, walk.records, walk.newest_change, at))
    return EntitySynced(order.entity_name, order.sync_type, walk.records, walk.pages, deleted)


@do
def swept(order: EntitySync, endpoint: Endpoint, client: ApiClient, walk: str) -> Steps[int, SourceFailure | Unconfigured]:
    """How many rows were found to be gone."""

    @do
    def some(deleted: int) -> Steps[Round[int, int], SourceFailure | Unconfigured]:
        batch = yield from sweep_unseen(SweepOrder(order, endpoint, client, walk))
        return Next(deleted + batch.deleted) if batch.more else Done(deleted + batch.deleted)

    return (yield from iterate(0, some))


@workflow("sync.main", key="main-sync:{org_id}:{adapter_name}:{sync_type}", reuse="after_close")
def main_sync(order: MainSync) -> Steps[MainSynced, PlanFailure]:
    """Runs a child for each entity as soon as its hard dependencies are done, then links what closes a cycle."""
    yield from report(f"starting a {order.sync_type} sync of {order.org_id}")
    loaded = yield from load_entity_manifest(LoadManifest(order.adapter_name))
    graph = yield from build_dependency_graph(BuildGraph(loaded.manifest, order.sync_type))
    yield from report(f"{loaded.entity_count} entities: {' → '.join(graph.sync_order)}")
    outcomes = yield from dag_attempt(
        {
            name: node(entity_sync.child(entity_order(order, name, needs)).isolate(), after=needs.hard, soft=needs.soft)
            for name, needs in graph.dependencies.items()
        },
        concurrency=4,
    )
    yield from each_attempt(graph.links, lambda link: link_entities(linking(order, link)))
    results = tuple(entity_result(name, outcomes[name]) for name in graph.sync_order)
    return MainSynced(order.org_id, order.adapter_name, order.sync_type, len(results), results)


def entity_order(order: MainSync, name: str, needs: Dependencies) -> EntitySync:
    return EntitySync(order.org_id, order.adapter_name, name, order.sync_type, needs)


def linking(order: MainSync, link: Link) -> LinkOrder:
    return LinkOrder(order.org_id, link)


def entity_result(name: str, outcome: Outcome[EntitySynced, EntityFailure | Died] | Skipped) -> EntityResult:
    """An entity's line in the result; closed: a case left out is an error in both checkers."""
    match outcome:
        case Success(synced):
            return EntityResult(name, "completed", synced)
        case Failure(failure):
            return EntityResult(name, "failed", reason=str(failure))
        case Skipped(because):
            return EntityResult(name, "skipped", reason=f"{because} did not complete")
