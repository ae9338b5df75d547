"""Who carries out the sync's activities: the small ones here, those that read pages beside."""

from __future__ import annotations

from typing import Never

from adapters.planning_center.client import open_source
from adapters.planning_center.manifest import PEOPLE
from adapters.planning_center.pages import measure_entity, process_entity_page
from adapters.planning_center.settings import TOKEN, configured
from adapters.sync_store import Records
from domains.sync import activities
from domains.sync.failures import (
    CheckFailure,
    Malformed,
    NotConfigured,
    PlanFault,
    RateLimited,
    Unavailable,
    UnknownAdapter,
    UnknownEntity,
    Unreachable,
)
from domains.sync.graph import Graph, plan
from domains.sync.manifest import Manifest
from domains.sync.route import Route, route
from domains.sync.values import (
    ApiClient,
    BuildGraph,
    CheckSource,
    ChooseEndpoint,
    Definition,
    GetClient,
    GetDefinition,
    GetParameters,
    Linked,
    LinkRows,
    LoadedManifest,
    LoadManifest,
    SyncParameters,
    SyncStatus,
)
from flowdsl import Failure, Result, Success, bind, this_attempt

MANIFESTS = {PEOPLE.adapter_name: PEOPLE}


def manifest_of(adapter_name: str) -> Result[Manifest, UnknownAdapter]:
    found = MANIFESTS.get(adapter_name)
    return Success(found) if found else Failure(UnknownAdapter(adapter_name, tuple(MANIFESTS)))


async def load_entity_manifest(request: LoadManifest) -> Result[LoadedManifest, UnknownAdapter]:
    return manifest_of(request.adapter_name).map(lambda found: LoadedManifest(found, len(found.entities)))


async def build_dependency_graph(request: BuildGraph) -> Result[Graph, PlanFault]:
    return plan(request.manifest, request.sync_type)


async def get_entity_definition(request: GetDefinition) -> Result[Definition, UnknownAdapter | UnknownEntity]:
    found = manifest_of(request.adapter_name)
    if isinstance(found, Failure):
        return found
    manifest = found.unwrap()
    entity = manifest.entity(request.entity_name)
    if entity is None:
        return Failure(UnknownEntity(request.entity_name, manifest.names))
    listed = manifest.listed_under(entity)
    return Success(Definition(entity, listed, manifest.page_size, manifest.overlap, manifest.pause, manifest.spare))


async def select_endpoint(request: ChooseEndpoint) -> Result[Route, Never]:
    return Success(route(request.entity, request.sync_type, request.subject))


async def get_api_client(request: GetClient) -> Result[ApiClient, NotConfigured | UnknownAdapter]:
    """Names the setting that holds the credential; what it holds is read at each request."""
    found = manifest_of(request.adapter_name)
    if isinstance(found, Failure):
        return found
    known = configured()
    if isinstance(known, Failure):
        return known
    return Success(ApiClient(request.org_id, request.adapter_name, TOKEN))


async def check_source(request: CheckSource) -> Result[None, CheckFailure]:
    """Whether the source is there and takes the credential. A quota that is used up says yes to both."""
    opened = open_source(1.0)
    if isinstance(opened, Failure):
        return opened
    source = opened.unwrap()
    asked = await source.get(request.path, [("per_page", "1")])
    if isinstance(asked, Success):
        return Success(None)
    match asked.failure():
        case Unavailable() | Malformed() as failure:
            return Failure(Unreachable(source.settings.url, str(failure)))
        case RateLimited():
            return Success(None)
        case failure:
            return Failure(failure)


async def get_sync_parameters(request: GetParameters) -> Result[SyncParameters, Never]:
    order = request.order
    async with this_attempt().connection() as connection:
        row = await connection.fetchrow(
            "select clock_timestamp() as now, s.watermark, coalesce(s.unlisted, 0) as unlisted from (select) one"
            " left join sync.statuses s on s.org = $1 and s.adapter = $2 and s.entity = $3",
            order.org_id, order.adapter_name, order.entity_name,
        )  # fmt: skip
    watermark = row["watermark"] if order.sync_type == "delta" else None
    return Success(SyncParameters(row["now"], watermark - request.overlap if watermark else None, row["unlisted"]))


async def update_sync_status(request: SyncStatus) -> Result[None, Never]:
    """The watermark only ever moves forward, to the newest change that was seen."""
    order = request.order
    async with this_attempt().transaction() as connection:
        await connection.execute(
            "insert into sync.statuses as s (org, adapter, entity, watermark, unlisted, sync_type, records, completed_at)"
            " values ($1, $2, $3, $4, coalesce($5, 0), $6, $7, $8) on conflict (org, adapter, entity) do update set"
            " watermark = greatest(s.watermark, excluded.watermark), unlisted = coalesce($5, s.unlisted), sync_type = excluded.sync_type,"
            " records = excluded.records, completed_at = excluded.completed_at",
            order.org_id, order.adapter_name, order.entity_name, request.newest, request.unlisted, order.sync_type, request.records,
            request.completed_at,
        )  # fmt: skip
    return Success(None)


async def link_entity(request: LinkRows) -> Result[Linked, Never]:
    async with this_attempt().transaction() as connection:
        store = Records(connection, request.org_id, request.adapter_name, request.entity_name)
        links, dangling = await store.link(request.relationship, request.target)
    return Success(Linked(links, dangling))


BINDINGS = (
    bind(activities.load_entity_manifest, load_entity_manifest),
    bind(activities.build_dependency_graph, build_dependency_graph),
    bind(activities.get_entity_definition, get_entity_definition),
    bind(activities.select_endpoint, select_endpoint),
    bind(activities.get_api_client, get_api_client),
    bind(activities.check_source, check_source),
    bind(activities.get_sync_parameters, get_sync_parameters),
    bind(activities.measure_entity, measure_entity),
    bind(activities.process_entity_page, process_entity_page),
    bind(activities.update_sync_status, update_sync_status),
    bind(activities.link_entity, link_entity),
)
