"""The two tiers of a sync: `sync.main` follows the manifest's graph, `sync.entity` walks one entity's pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Never, TypeAlias

from attrs import evolve, frozen

from domains.sync.activities import (
    build_dependency_graph,
    check_source,
    get_api_client,
    get_entity_definition,
    get_sync_parameters,
    link_entity,
    load_entity_manifest,
    measure_entity,
    process_entity_page,
    select_endpoint,
    update_sync_status,
)
from domains.sync.failures import EntityFailure, MainFailure, PlanFault, SourceFailure
from domains.sync.graph import Graph, Needs
from domains.sync.manifest import Manifest
from domains.sync.paging import begin
from domains.sync.route import Endpoint, Route
from domains.sync.values import (
    ApiClient,
    BuildGraph,
    CheckSource,
    ChooseEndpoint,
    Definition,
    EntityResult,
    EntitySync,
    EntitySynced,
    Extent,
    GetClient,
    GetDefinition,
    GetParameters,
    LinkRows,
    LoadManifest,
    MainSync,
    MainSynced,
    Measure,
    PageOrder,
    SyncParameters,
    SyncStatus,
    Tally,
    Walk,
)
from flowdsl import (
    Died,
    Done,
    Failure,
    Flow,
    Next,
    Outcome,
    Round,
    Skipped,
    Steps,
    Success,
    dag_attempt,
    do,
    each_attempt,
    iterate,
    node,
    now,
    report,
    sleep,
    workflow,
)

Ended: TypeAlias = Outcome[EntitySynced, EntityFailure | Died] | Skipped


@frozen
class Job:
    """What every step of one entity's sync needs to know."""

    order: EntitySync
    definition: Definition
    client: ApiClient
    parameters: SyncParameters
    comparing: bool


@workflow("sync.entity", key="entity-sync:{org_id}:{adapter_name}:{entity_name}:{sync_type}:{subject}", reuse="after_close")
def entity_sync(order: EntitySync) -> Steps[EntitySynced, EntityFailure]:
    """One entity: its pages, then what hangs on them, then the rows in doubt. A subject is a single row, and moves no watermark."""
    yield from report(f"{order.entity_name}: {order.sync_type} sync begins")
    definition = yield from get_entity_definition(GetDefinition(order.adapter_name, order.entity_name))
    route = yield from select_endpoint(ChooseEndpoint(definition.entity, order.sync_type, order.subject))
    yield from report(f"{order.entity_name}: reads {route.endpoint.name}")
    client = yield from get_api_client(GetClient(order.org_id, order.adapter_name))
    parameters = yield from get_sync_parameters(GetParameters(order, definition.overlap))
    job = Job(order, definition, client, parameters, comparing=order.sync_type != "delta")
    done = (yield from every_row(job, route)) if order.subject is None else (yield from rounds(job, (route.endpoint, *route.then), None))
    yield from report(f"{order.entity_name}: {done.records} records, {done.deleted} deleted", done=done.records)
    return EntitySynced(order.entity_name, order.sync_type, done.records, done.pages, done.deleted)


@do
def every_row(job: Job, route: Route) -> Steps[Tally, SourceFailure]:
    """All rows, or all that changed; in the end the source and we agree on their number."""
    changes_only = job.order.sync_type == "delta" and job.parameters.since is not None
    moving_since = None if changes_only else (yield from measured(job)).newest
    done = yield from rounds(job, (route.endpoint, *route.then), moving_since)
    extent = yield from measured(job)
    if changes_only and route.again and extent.surplus not in (None, job.parameters.unlisted):
        yield from report(f"{job.order.entity_name}: {extent.total} rows at the source, {extent.live} here: all are compared")
        done = done.and_then((yield from rounds(evolve(job, comparing=True), route.again, extent.newest)))
        extent = yield from measured(job)
    yield from update_sync_status(SyncStatus(job.order, done.records, done.newest, extent.unlisted, (yield from now())))
    return done


@do
def measured(job: Job) -> Steps[Extent, SourceFailure]:
    if job.definition.entity.nested:  # nobody counts what has no list
        return Extent(None, None, 0)
    return (yield from measure_entity(Measure(job.order, job.client, job.definition)))


@do
def rounds(job: Job, endpoints: tuple[Endpoint, ...], moving_since: datetime | None) -> Steps[Tally, SourceFailure]:
    """Each endpoint to its end, one after another. Pages are those of the first; the smaller rounds after it have none of their own."""
    done = yield from walked(job, endpoints[0], moving_since)
    for endpoint in endpoints[1:]:
        done = done.and_then(evolve((yield from walked(job, endpoint, moving_since)), pages=0))
    return done


def walked(job: Job, endpoint: Endpoint, moving_since: datetime | None) -> Flow[Tally, SourceFailure]:
    """One endpoint, page by page."""
    name = job.order.entity_name

    @do
    def one_page(walk: Walk) -> Steps[Round[Walk, Tally], SourceFailure]:
        asked = PageOrder(job.order, job.definition, job.client, endpoint, job.parameters, walk.cursor, moving_since, job.comparing)
        page = yield from process_entity_page(asked)
        walk = walk.after(page)
        yield from report(f"{name}: page {walk.tally.pages} of {endpoint.name}", done=walk.tally.records, total=page.total)
        if page.next is None:
            return Done(walk.tally)
        if page.pause > timedelta():
            yield from sleep(page.pause)
        return Next(walk)  # the checkpoint: nothing before it is replayed

    floor = None if job.comparing else job.parameters.since
    start = begin(newest_first=endpoint.newest_first, filterable=job.definition.entity.filterable, floor=floor)
    return iterate(Walk(start), one_page)


@workflow("sync.main", key="main-sync:{org_id}:{adapter_name}:{sync_type}", reuse="after_close")
def main_sync(order: MainSync) -> Steps[MainSynced, MainFailure]:
    """All entities of an adapter, each as soon as what it needs is there; then what moved meanwhile, then the links."""
    yield from report(f"{order.sync_type} sync of {order.org_id} begins ({order.triggered_by or 'no trigger named'})")
    client = yield from get_api_client(GetClient(order.org_id, order.adapter_name))
    loaded = yield from load_entity_manifest(LoadManifest(order.adapter_name))
    yield from report(f"the manifest of {order.adapter_name} has {loaded.entity_count} entities")
    graph = yield from build_dependency_graph(BuildGraph(loaded.manifest, order.sync_type))
    yield from report(f"in order: {', '.join(graph.sync_order)}")
    yield from check_source(CheckSource(client, first_list(loaded.manifest)))
    outcomes = yield from dag_attempt(  # the graph is data: known only now
        {
            name: node(entity_sync.child(entity_order(order, name, graph)).isolate(), after=needs.hard, soft=needs.soft)
            for name, needs in ordered(graph)
        },
        concurrency=AT_A_TIME,
    )
    if order.sync_type == "full":
        outcomes = yield from caught_up(order, loaded.manifest, outcomes)
    yield from each_attempt(links_between(order, graph, outcomes), linked)
    results = tuple(entity_result(name, outcomes[name]) for name in graph.sync_order)
    yield from report(f"{sum(one.status == 'completed' for one in results)} of {len(results)} entities completed")
    return MainSynced(order.org_id, order.adapter_name, order.sync_type, len(results), results)


AT_A_TIME = 4
"""Entities walked beside each other; they share one request budget."""


@do
def caught_up(order: MainSync, manifest: Manifest, outcomes: Mapping[str, Ended]) -> Steps[dict[str, Ended], PlanFault]:
    """What moved while the others were walked: a person deleted after the persons' last page has left e-mails behind that were read before."""
    synced = [name for name, outcome in outcomes.items() if isinstance(outcome, Success)]
    graph = (yield from build_dependency_graph(BuildGraph(manifest, "delta"))).among(synced)
    closing = evolve(order, sync_type="delta")
    later = yield from dag_attempt(
        {name: node(entity_sync(entity_order(closing, name, graph)).isolate(), after=needs.hard, soft=needs.soft) for name, needs in ordered(graph)},
        concurrency=AT_A_TIME,
    )
    return {name: joined(outcome, later.get(name)) for name, outcome in outcomes.items()}


def joined(first: Ended, later: Ended | None) -> Ended:
    """One outcome for both walks. Rows met again are no new records."""
    match first, later:
        case Success(walked), Success(again):
            return Success(evolve(walked, records_deleted=walked.records_deleted + again.records_deleted))
        case Success(), Failure() | Skipped():
            return later
        case _:
            return first


def ordered(graph: Graph) -> Iterator[tuple[str, Needs]]:
    return ((name, graph.dependencies[name]) for name in graph.sync_order)


def entity_order(order: MainSync, name: str, graph: Graph) -> EntitySync:
    return EntitySync(order.org_id, order.adapter_name, name, order.sync_type, graph.dependencies.get(name, Needs()))


def first_list(manifest: Manifest) -> str:
    """A list that shows whether the source is there and takes the credential."""
    return next((entity.path for entity in manifest.entities if not entity.nested), "")


@do
def linked(rows: LinkRows) -> Steps[None, Never]:
    """Dangling references are no failure: what they name comes with a later delta, or is gone."""
    made = yield from link_entity(rows)
    yield from report(f"{rows.entity_name}.{rows.relationship}: {made.links} links, {made.dangling} dangling")


def links_between(order: MainSync, graph: Graph, outcomes: Mapping[str, Ended]) -> list[LinkRows]:
    """The relationships left for now whose both sides have been loaded."""
    there = {name for name, outcome in outcomes.items() if isinstance(outcome, Success)}
    return [
        LinkRows(order.org_id, order.adapter_name, link.entity_name, link.relationship, link.target)
        for link in graph.links
        if {link.entity_name, link.target} <= there
    ]


def entity_result(name: str, outcome: Ended) -> EntityResult:
    match outcome:  # closed: leave a case out and both checkers say so
        case Success(synced):
            return EntityResult(name, "completed", synced, None)
        case Failure(failure):
            return EntityResult(name, "failed", None, failure.cause if isinstance(failure, Died) else str(failure))
        case Skipped(because):
            return EntityResult(name, "skipped", None, f"{because} was not synced")
