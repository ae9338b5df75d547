"""What a sync asks of its adapter and its store. The names are durable."""

from __future__ import annotations

from typing import Never

from domains.sync.failures import (
    CheckFailure,
    Malformed,
    NotConfigured,
    PlanFault,
    RateLimited,
    SourceFailure,
    Unavailable,
    UnknownAdapter,
    UnknownEntity,
    Unreachable,
)
from domains.sync.graph import Graph
from domains.sync.route import Route
from domains.sync.values import (
    ApiClient,
    BuildGraph,
    CheckSource,
    ChooseEndpoint,
    Definition,
    Extent,
    GetClient,
    GetDefinition,
    GetParameters,
    Linked,
    LinkRows,
    LoadedManifest,
    LoadManifest,
    Measure,
    Page,
    PageOrder,
    SyncParameters,
    SyncStatus,
)
from flowdsl import Result, Retry, activity

PATIENT = Retry.exponential("500ms", maximum="60s", attempts=40, on=(Unavailable, RateLimited, Malformed), jitter=0.3)
"""Half an hour of a source that is down, or of a quota that others use up."""
BRIEF = Retry.exponential("500ms", maximum="5s", attempts=6, on=(Unreachable,), jitter=0.3)
"""Before anything is begun, a person may still be waiting for the answer."""
STORE = Retry.exponential("200ms", maximum="30s", attempts=20)


@activity("LoadEntityManifest")
def load_entity_manifest(request: LoadManifest) -> Result[LoadedManifest, UnknownAdapter]: ...


@activity("BuildDependencyGraph")
def build_dependency_graph(request: BuildGraph) -> Result[Graph, PlanFault]: ...


@activity("GetEntityDefinition")
def get_entity_definition(request: GetDefinition) -> Result[Definition, UnknownAdapter | UnknownEntity]: ...


@activity("SelectEndpoint")
def select_endpoint(request: ChooseEndpoint) -> Result[Route, Never]: ...


@activity("GetApiClient")
def get_api_client(request: GetClient) -> Result[ApiClient, NotConfigured | UnknownAdapter]: ...


@activity("CheckSource", retry=BRIEF, timeout="60s")
def check_source(request: CheckSource) -> Result[None, CheckFailure]: ...


@activity("GetSyncParameters", retry=STORE)
def get_sync_parameters(request: GetParameters) -> Result[SyncParameters, Never]: ...


@activity("MeasureEntity", retry=PATIENT)
def measure_entity(request: Measure) -> Result[Extent, SourceFailure]: ...


@activity("ProcessEntityPage", retry=PATIENT, transactional=True)
def process_entity_page(request: PageOrder) -> Result[Page, SourceFailure]: ...


@activity("UpdateSyncStatus", retry=STORE, transactional=True)
def update_sync_status(request: SyncStatus) -> Result[None, Never]: ...


@activity("LinkEntity", retry=STORE, transactional=True)
def link_entity(request: LinkRows) -> Result[Linked, Never]: ...
