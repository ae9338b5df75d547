"""What the sync speaks of: manifests, graphs, orders, pages. All of it is frozen and journalable."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from attrs import evolve, frozen

SyncType: TypeAlias = Literal["full", "delta", "reconciliation"]


# The manifest: what there is to sync, and how its parts refer to each other


@frozen
class Relationship:
    """A reference to another entity. A required one to a single row must be loaded after its target."""

    name: str
    target: str
    required: bool = False
    many: bool = False


@frozen
class EntityDefinition:
    """One entity of a source.

    `change`: the attribute that tells a row's last change, None where there is none; `filterable`: whether the source can be asked for changes since
    then; `parent`: rows are listed below each row of that entity only; `siblings`: a changed row may change others of the same owner silently;
    `merges`: its rows say that one row of another entity was merged into another.
    """

    name: str
    path: str
    change: str | None = "updated_at"
    filterable: bool = True
    stable: str = "created_at"
    page_size: int = 100
    parent: str | None = None
    siblings: str | None = None
    merges: str | None = None
    relationships: tuple[Relationship, ...] = ()

    @property
    def supports_delta(self) -> bool:
        """Whether what changed can be found without reading all."""
        return self.change is not None or self.parent is not None


@frozen
class Manifest:
    adapter_name: str
    entities: tuple[EntityDefinition, ...]

    def entity(self, name: str) -> EntityDefinition | None:
        return next((one for one in self.entities if one.name == name), None)


@frozen
class Dependencies:
    """What must have succeeded, and what is only waited for."""

    hard: tuple[str, ...] = ()
    soft: tuple[str, ...] = ()


@frozen
class Link:
    """A relationship that closes a cycle: its rows are loaded first and linked when both sides are there."""

    entity: str
    relation: str
    target: str


@frozen
class Graph:
    sync_order: tuple[str, ...]
    dependencies: dict[str, Dependencies]
    links: tuple[Link, ...] = ()


# Orders


@frozen
class MainSync:
    """A sync of all that a manifest names."""

    org_id: str
    adapter_name: str = "pco"
    sync_type: SyncType = "full"
    triggered_by: str | None = None


@frozen
class EntitySync:
    """A sync of one entity; of one row of it when `subject` names its id."""

    org_id: str
    adapter_name: str
    entity_name: str
    sync_type: SyncType
    dependencies: Dependencies = Dependencies()
    subject: str | None = None


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
class EntityOf:
    adapter_name: str
    entity_name: str


@frozen
class SelectFor:
    definition: EntityDefinition
    sync_type: SyncType
    subject: str | None


Way: TypeAlias = Literal["changes", "newest_first", "plain", "below_parents", "one"]


@frozen
class Endpoint:
    """How rows are asked for. `changes`: oldest change first; `newest_first`: until the watermark; `plain`: in a stable order."""

    name: str
    way: Way
    definition: EntityDefinition


@frozen
class ClientOf:
    org_id: str
    adapter_name: str


@frozen
class ApiClient:
    """A reference to a credential: never the credential, never a client object."""

    credential: str
    base_url: str


@frozen
class ParametersOf:
    org_id: str
    entity_name: str
    sync_type: SyncType


@frozen
class SyncParameters:
    """`since`: the watermark less its overlap; None reads all."""

    since: datetime | None


@frozen
class Cursor:
    """Where a walk is. `offset` counts within what `since` leaves; `after` is the last parent done."""

    since: datetime | None = None
    offset: int = 0
    after: str = ""
    plain: bool = False


@frozen
class PageOrder:
    order: EntitySync
    endpoint: Endpoint
    client: ApiClient
    parameters: SyncParameters
    cursor: Cursor
    walk: str


@frozen
class Page:
    """What a page came to. Rows are in the database, not here."""

    records_processed: int
    next: Cursor | None
    newest_change: datetime | None
    pause: timedelta

    @property
    def has_more(self) -> bool:
        return self.next is not None


@frozen
class Walk:
    """The state of a walk over pages: its checkpoint."""

    cursor: Cursor = Cursor()
    pages: int = 0
    records: int = 0
    newest_change: datetime | None = None

    def after(self, page: Page) -> Walk:
        newest = max((one for one in (self.newest_change, page.newest_change) if one is not None), default=None)
        return evolve(
            self,
            cursor=page.next or self.cursor,
            pages=self.pages + 1,
            records=self.records + page.records_processed,
            newest_change=newest,
        )


@frozen
class SweepOrder:
    """Rows that this walk did not see are looked up one by one: gone, or only missed."""

    order: EntitySync
    endpoint: Endpoint
    client: ApiClient
    walk: str


@frozen
class Swept:
    deleted: int
    found: int
    more: bool


@frozen
class LinkOrder:
    org_id: str
    link: Link


@frozen
class Linked:
    links: int


@frozen
class SyncStatus:
    org_id: str
    entity_name: str
    sync_type: SyncType
    total_records_processed: int
    newest_change: datetime | None
    completed_at: datetime


# Answers


@frozen
class EntitySynced:
    entity_name: str
    sync_type: SyncType
    total_records_processed: int
    pages_processed: int
    deleted: int = 0


@frozen
class EntityResult:
    entity_name: str
    status: Literal["completed", "failed", "skipped"]
    result: EntitySynced | None = None
    reason: str | None = None


@frozen
class MainSynced:
    org_id: str
    adapter_name: str
    sync_type: SyncType
    entities_processed: int
    results: tuple[EntityResult, ...]


# Failures


@frozen
class UnknownAdapter:
    adapter_name: str


@frozen
class UnknownEntity:
    entity_name: str


@frozen
class Cyclic:
    """Required relationships in a circle, with none that could be linked afterwards."""

    cycle: tuple[str, ...]


@frozen
class Unconfigured:
    """A setting is missing; `remedy` says which."""

    remedy: str


@frozen
class Unavailable:
    """The source is down, slow or cut the connection: worth another try."""

    status: int
    detail: str
    retry_after: timedelta | None = None


@frozen
class RateLimited:
    """The quota is used up: worth another try, later."""

    detail: str
    retry_after: timedelta | None = None


@frozen
class Unauthorized:
    """The credential was refused. `hint` is the source's own code."""

    status: int
    hint: str
    remedy: str


@frozen
class Refused:
    """The source does not take this request, or its answer is not what it promises."""

    status: int
    detail: str


SourceFailure: TypeAlias = Unavailable | RateLimited | Unauthorized | Refused
EntityFailure: TypeAlias = UnknownAdapter | UnknownEntity | Unconfigured | SourceFailure
PlanFailure: TypeAlias = UnknownAdapter | Cyclic
