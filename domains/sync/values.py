"""What goes into the sync's workflows and activities, and what comes out. Records themselves are in none of these."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from attrs import frozen

from domains.sync.graph import Needs
from domains.sync.manifest import Entity, Manifest, SyncType
from domains.sync.paging import Cursor
from domains.sync.route import Endpoint

NOTHING = Needs()

# Orders and what they give


@frozen
class MainSync:
    """Everything of an organization, from one adapter."""

    org_id: str
    adapter_name: str = "pco"
    sync_type: SyncType = "full"
    triggered_by: str | None = None
    """webhook, schedule or manual; kept for those who read along."""


@frozen
class EntitySync:
    """One entity; with a `subject`, only the row of that id (of an entity that is read by owner: the rows of that owner)."""

    org_id: str
    adapter_name: str
    entity_name: str
    sync_type: SyncType
    dependencies: Needs = NOTHING
    subject: str | None = None


@frozen
class EntitySynced:
    """`total_records_processed` counts each record once, however often it was met."""

    entity_name: str
    sync_type: SyncType
    total_records_processed: int
    pages_processed: int
    records_deleted: int


EntityStatus: TypeAlias = Literal["completed", "failed", "skipped"]


@frozen
class EntityResult:
    """`reason` says why there is no result."""

    entity_name: str
    status: EntityStatus
    result: EntitySynced | None
    reason: str | None


@frozen
class MainSynced:
    """No field has a default: all of them are always written."""

    org_id: str
    adapter_name: str
    sync_type: SyncType
    entities_processed: int
    results: tuple[EntityResult, ...]


# Asked of the adapter


@frozen
class LoadManifest:
    adapter_name: str


@frozen
class LoadedManifest:
    manifest: Manifest
    entity_count: int


@frozen
class BuildGraph:
    manifest: Manifest
    sync_type: SyncType


@frozen
class GetDefinition:
    adapter_name: str
    entity_name: str


@frozen
class Definition:
    """An entity, with what the manifest as a whole says about it."""

    entity: Entity
    listed_under: tuple[str, ...]
    """The entities whose rows are read by owner, with this one as owner."""
    page_size: int
    overlap: timedelta
    pause: timedelta
    spare: float


@frozen
class ChooseEndpoint:
    entity: Entity
    sync_type: SyncType
    subject: str | None


@frozen
class GetClient:
    org_id: str
    adapter_name: str


@frozen
class ApiClient:
    """Which credential to use: a reference, never the secret."""

    org_id: str
    adapter_name: str
    credential: str


@frozen
class CheckSource:
    client: ApiClient
    path: str
    """A list that is read for one row."""


@frozen
class GetParameters:
    order: EntitySync
    overlap: timedelta


@frozen
class SyncParameters:
    started_at: datetime
    """The store's time: what was met from then on belongs to this sync."""
    since: datetime | None
    """The newest change seen so far, less the overlap."""
    unlisted: int
    """How many rows the source counts and does not list, as of the last comparison."""


@frozen
class Measure:
    order: EntitySync
    client: ApiClient
    definition: Definition


@frozen
class Extent:
    """An entity's size at the source and here. `total` is None if the source does not count reliably."""

    total: int | None
    newest: datetime | None
    live: int

    @property
    def surplus(self) -> int | None:
        """How many rows more the source counts than we have; fewer means that rows of ours are gone there."""
        return None if self.total is None else self.total - self.live

    @property
    def unlisted(self) -> int | None:
        """After a comparison: rows that the source counts and does not list. What is missing there is never one of these."""
        return None if self.surplus is None else max(0, self.surplus)


@frozen
class PageOrder:
    """One page of an endpoint: the next page of a list, or the next few of a list of work in the store."""

    order: EntitySync
    definition: Definition
    client: ApiClient
    endpoint: Endpoint
    parameters: SyncParameters
    cursor: Cursor
    moving_since: datetime | None
    """Rows changed since then may have changed during the walk, and their siblings after they were read; None: any may."""
    comparing: bool
    """Every row is looked at, and those that are not met are in doubt."""

    @property
    def counts_changes(self) -> bool:
        """A delta reports what changed, whatever it had to look at; the others report what they met."""
        return self.order.sync_type == "delta" and (self.parameters.since is not None or self.definition.entity.nested)


@frozen
class Page:
    """What a page did. The records are in the store already."""

    records: int
    deleted: int
    next: Cursor | None
    newest: datetime | None
    pause: timedelta
    total: int | None = None


@frozen
class SyncStatus:
    order: EntitySync
    records: int
    newest: datetime | None
    unlisted: int | None
    completed_at: datetime


@frozen
class LinkRows:
    org_id: str
    adapter_name: str
    entity_name: str
    relationship: str
    target: str


@frozen
class Linked:
    links: int
    dangling: int
    """References to rows that are not here: not fetched yet, or gone."""


# The state of a walk: the checkpoint


@frozen
class Tally:
    """What was done so far. `newest` is the newest change that a list has shown."""

    records: int = 0
    pages: int = 0
    deleted: int = 0
    newest: datetime | None = None

    def and_then(self, other: Tally) -> Tally:
        newest = max((one for one in (self.newest, other.newest) if one is not None), default=None)
        return Tally(self.records + other.records, self.pages + other.pages, self.deleted + other.deleted, newest)


@frozen
class Walk:
    """Where a walk over one endpoint stands."""

    cursor: Cursor
    tally: Tally = Tally()

    def after(self, page: Page) -> Walk:
        return Walk(page.next or self.cursor, self.tally.and_then(Tally(page.records, 1, page.deleted, page.newest)))
