"""The contracts of the sync, by the names of its design."""

from __future__ import annotations

from typing import Never

from domains.sync.values import (
    ApiClient,
    BuildGraph,
    ClientOf,
    Cyclic,
    Endpoint,
    EntityDefinition,
    EntityOf,
    Graph,
    Linked,
    LinkOrder,
    LoadedManifest,
    LoadManifest,
    Page,
    PageOrder,
    ParametersOf,
    RateLimited,
    SelectFor,
    SourceFailure,
    SweepOrder,
    Swept,
    SyncParameters,
    SyncStatus,
    Unavailable,
    Unconfigured,
    UnknownAdapter,
    UnknownEntity,
)
from flowdsl import Result, Retry, activity

PATIENT = Retry.exponential("250ms", maximum="60s", attempts=20, on=(Unavailable, RateLimited), jitter=0.2)
"""About a quarter of an hour: quotas and short outages are waited out."""


@activity("LoadEntityManifest")
def load_entity_manifest(request: LoadManifest) -> Result[LoadedManifest, UnknownAdapter]:
    """What an adapter can sync."""
    ...


@activity("BuildDependencyGraph")
def build_dependency_graph(request: BuildGraph) -> Result[Graph, Cyclic]:
    """Who comes after whom, from the manifest's relationships."""
    ...


@activity("GetEntityDefinition")
def get_entity_definition(request: EntityOf) -> Result[EntityDefinition, UnknownAdapter | UnknownEntity]: ...


@activity("SelectEndpoint")
def select_endpoint(request: SelectFor) -> Result[Endpoint, Never]:
    """How to ask for the rows that this kind of sync wants."""
    ...


@activity("GetApiClient")
def get_api_client(request: ClientOf) -> Result[ApiClient, Unconfigured]:
    """Which credential an organization uses: a reference."""
    ...


@activity("GetSyncParameters")
def get_sync_parameters(request: ParametersOf) -> Result[SyncParameters, Never]:
    """Since when, for a delta: the highest change that was seen, less an overlap."""
    ...


@activity("ProcessEntityPage", retry=PATIENT, timeout="3m", transactional=True)
def process_entity_page(request: PageOrder) -> Result[Page, SourceFailure | Unconfigured]:
    """Fetches one page and saves its rows, in the transaction that records it."""
    ...


@activity("SweepUnseen", retry=PATIENT, timeout="3m", transactional=True)
def sweep_unseen(request: SweepOrder) -> Result[Swept, SourceFailure | Unconfigured]:
    """Looks up rows that a complete walk did not see, a few at a time: those that are gone are marked so."""
    ...


@activity("LinkEntities", transactional=True)
def link_entities(request: LinkOrder) -> Result[Linked, Never]:
    """Resolves references whose target was not loaded when they were saved."""
    ...


@activity("UpdateSyncStatus", transactional=True)
def update_sync_status(request: SyncStatus) -> Result[None, Never]:
    """Records that a sync is complete, and its watermark: the highest change seen, never the time of its end."""
    ...
