"""The sync by hand, over HTTP, in the words of those who order it."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from domains.sync.graph import Needs
from domains.sync.manifest import SyncType
from domains.sync.values import NOTHING, EntitySync, MainSync
from domains.sync.workflows import entity_sync, main_sync
from flowdsl.service.alias import starts

# The fields are spelled as callers send them.


@frozen
class MainSyncOrchestrator:
    """A whole organization. `delta` brings what changed since the last sync; `full` and `reconciliation` also find what is gone."""

    orgId: str
    adapterName: Literal["pco"]
    syncType: SyncType
    triggeredBy: Literal["webhook", "schedule", "manual"] | None = None


@frozen
class EntitySyncOrder:
    """One entity. `subject`: only the row of that id, such as one person; or, of an entity that is read by owner, the rows of that owner."""

    orgId: str
    adapterName: Literal["pco"]
    entityName: str
    syncType: SyncType
    dependencies: Needs = NOTHING
    subject: str | None = None


ROUTES = (
    starts(
        "/api/v1/workflows/main-sync-orchestrator",
        main_sync,
        body=MainSyncOrchestrator,
        read=lambda body: MainSync(body.orgId, body.adapterName, body.syncType, body.triggeredBy),
        summary="Sync an organization: each entity of the adapter's manifest as soon as what it needs is there.",
        name="main_sync_orchestrator",
        example={"orgId": "org_123", "adapterName": "pco", "syncType": "full", "triggeredBy": "manual"},
    ),
    starts(
        "/api/v1/workflows/entity-sync",
        entity_sync,
        body=EntitySyncOrder,
        read=lambda body: EntitySync(body.orgId, body.adapterName, body.entityName, body.syncType, body.dependencies, body.subject),
        summary="Sync one entity of an organization, or one row of it.",
        name="entity_sync",
        example={"orgId": "org_123", "adapterName": "pco", "entityName": "Person", "syncType": "full", "subject": "501"},
    ),
)

__all__ = ["ROUTES", "EntitySyncOrder", "MainSyncOrchestrator"]
