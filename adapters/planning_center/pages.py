"""The implementations of the sync's activities for Planning Center: fetch first, then save in the transaction of the journal's entry."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Never

from attrs import frozen

from adapters import sync_store
from adapters.planning_center import client
from adapters.planning_center.manifest import MANIFEST, TYPE_ALIASES
from adapters.sync_store import Record, Reference
from domains.sync.graph import plan
from domains.sync.values import (
    ApiClient,
    BuildGraph,
    ClientOf,
    Cursor,
    Cyclic,
    Endpoint,
    EntityDefinition,
    EntityOf,
    Graph,
    Linked,
    LinkOrder,
    LoadedManifest,
    LoadManifest,
    Manifest,
    Page,
    PageOrder,
    ParametersOf,
    SelectFor,
    SourceFailure,
    SweepOrder,
    Swept,
    SyncParameters,
    SyncStatus,
    Unconfigured,
    UnknownAdapter,
    UnknownEntity,
)
from flowdsl import Failure, Result, Success, this_attempt

OVERLAP = timedelta(seconds=30)
"""What a delta reads again before its watermark: clocks and replicas of the source may lag."""
STEP_BACK = 5
"""Rows that a page by offset reads again: rows before it may have been deleted meanwhile."""
PARENTS, LOOKUPS, AT_ONCE = 25, 25, 6

MANIFESTS: dict[str, Manifest] = {MANIFEST.adapter_name: MANIFEST}


# Plans


async def load_manifest(request: LoadManifest) -> Result[LoadedManifest, UnknownAdapter]:
    manifest = MANIFESTS.get(request.adapter_name)
    return Failure(UnknownAdapter(request.adapter_name)) if manifest is None else Success(LoadedManifest(manifest, len(manifest.entities)))


async def build_graph(request: BuildGraph) -> Result[Graph, Cyclic]:
    found = plan(request.manifest, request.sync_type)
    return Failure(found) if isinstance(found, Cyclic) else Success(found)


async def get_definition(request: EntityOf) -> Result[EntityDefinition, UnknownAdapter | UnknownEntity]:
    manifest = MANIFESTS.get(request.adapter_name)
    if manifest is None:
        return Failure(UnknownAdapter(request.adapter_name))
    found = manifest.entity(request.entity_name)
    return Failure(UnknownEntity(request.entity_name)) if found is None else Success(found)


async def select_endpoint(request: SelectFor) -> Result[Endpoint, Never]:
    definition = request.definition
    if request.subject is not None:
        return Success(Endpoint(f"get{definition.name}ById", "one", definition))
    if definition.parent is not None:
        return Success(Endpoint(f"list{definition.name}Of{definition.parent}", "below_parents", definition))
    if definition.filterable and definition.change is not None:
        return Success(Endpoint(f"list{definition.name}ByChange", "changes", definition))
    newest = request.sync_type == "delta" and definition.change is not None
    return Success(Endpoint(f"list{definition.name}{'NewestFirst' if newest else ''}", "newest_first" if newest else "plain", definition))


async def get_client(_: ClientOf) -> Result[ApiClient, Unconfigured]:
    return client.configured()


async def get_parameters(request: ParametersOf) -> Result[SyncParameters, Never]:
    if request.sync_type != "delta":
        return Success(SyncParameters(None))
    async with this_attempt().connection() as connection:
        mark = await sync_store.watermark(connection, request.org_id, request.entity_name)
    return Success(SyncParameters(None if mark is None else mark - OVERLAP))


# Pages


@frozen
class Fetched:
    """What a page brought, before it is saved."""

    records: tuple[Record, ...]
    next: Cursor | None
    pause: timedelta = timedelta(0)
    gone: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    newest: datetime | None = None


async def process_page(request: PageOrder) -> Result[Page, SourceFailure | Unconfigured]:
    match request.endpoint.way:
        case "below_parents":
            fetched = await _below_parents(request)
        case "one":
            fetched = await _one(request)
        case "changes":
            fetched = await _changes(request)
        case "newest_first" | "plain":
            fetched = await _by_offset(request)
    if isinstance(fetched, Failure):
        return fetched
    found: Fetched = fetched.unwrap()
    siblings = await _siblings(request, found)
    if isinstance(siblings, Failure):
        return siblings
    merged = await _merges(request, found)
    if isinstance(merged, Failure):
        return merged
    org, entity = request.order.org_id, request.order.entity_name
    async with this_attempt().transaction() as connection:
        count = await sync_store.save(connection, org, entity, request.walk, found.records)
        await sync_store.save(connection, org, entity, request.walk, siblings.unwrap())
        await sync_store.forget(connection, org, entity, found.gone)
        if found.owners:
            await sync_store.forget_other_children(connection, org, entity, found.owners, [one.id for one in found.records])
        merges = request.endpoint.definition.merges
        if merges is not None:
            removed = [str(one.attributes["person_to_remove_id"]) for one in found.records]
            await sync_store.forget(connection, org, merges, removed)
        for name, records in merged.unwrap().items():
            await sync_store.save(connection, org, name, request.walk, records)
    newest = max((one.changed for one in found.records if one.changed is not None), default=found.newest)
    return Success(Page(count, found.next, newest, found.pause))


async def _changes(request: PageOrder) -> Result[Fetched, SourceFailure]:
    """Oldest change first, from the last change seen on: rows that change meanwhile move to the end, and no offset shifts."""
    definition, cursor = request.endpoint.definition, request.cursor
    since = cursor.since or request.parameters.since
    query: dict[str, str | int] = {"per_page": definition.page_size, "order": str(definition.change), "offset": cursor.offset}
    if since is not None and not cursor.plain:
        query[f"where[{definition.change}][gte]"] = _spelled(since)
    answer = await client.get(request.client, definition.path, query)
    if isinstance(answer, Failure):
        return answer
    document, pause = answer.unwrap().document, answer.unwrap().pause
    records = _records(definition, document)
    return Success(Fetched(records, _after(cursor, since, records, _has_next(document)), pause))


def _after(cursor: Cursor, since: datetime | None, records: Sequence[Record], more: bool) -> Cursor | None:
    """Where to go on. Within one second of many changes by offset, a few rows back; past it from the last change seen."""
    if not more or not records:
        return None
    step = max(len(records) - STEP_BACK, 1)
    first, last = records[0].changed, records[-1].changed
    ignored = since is not None and (first is None or first < since)  # some endpoints ignore the filter silently
    if cursor.plain or ignored or last is None:
        return Cursor(None, cursor.offset + step, plain=True)
    if since is None or last > since:
        return Cursor(last, 0)
    return Cursor(since, cursor.offset + step)


async def _by_offset(request: PageOrder) -> Result[Fetched, SourceFailure]:
    """Where dates cannot be asked for: in the order of creation; or newest change first, until the watermark."""
    definition, cursor, newest_first = request.endpoint.definition, request.cursor, request.endpoint.way == "newest_first"
    order = f"-{definition.change}" if newest_first else definition.stable
    query: dict[str, str | int] = {"per_page": definition.page_size, "order": order, "offset": cursor.offset}
    answer = await client.get(request.client, definition.path, query)
    if isinstance(answer, Failure):
        return answer
    document, since = answer.unwrap().document, request.parameters.since
    records = _records(definition, document)
    more = _has_next(document) and bool(records)
    if newest_first and since is not None:
        kept = tuple(one for one in records if one.changed is None or one.changed >= since)
        more, records = more and len(kept) == len(records), kept
    offset = cursor.offset + max(len(records) - STEP_BACK, 1)
    return Success(Fetched(records, Cursor(offset=offset) if more else None, answer.unwrap().pause))


async def _below_parents(request: PageOrder) -> Result[Fetched, SourceFailure]:
    """All rows below the next few parents; a parent's list replaces what was held for it."""
    definition = request.endpoint.definition
    manifest = MANIFESTS[request.order.adapter_name]
    parent = manifest.entity(str(definition.parent))
    async with this_attempt().connection() as connection:
        owners = await sync_store.parents(
            connection, request.order.org_id, str(definition.parent), request.cursor.after, request.parameters.since, PARENTS
        )
    path, ids = parent.path if parent is not None else "", [id for id, _ in owners]
    lists = await _at_once([_all_of(request.client, definition, f"{path}/{id}{definition.path}", id) for id in ids])
    for one in lists:
        if isinstance(one, Failure):
            return one
    records = tuple(record for one in lists for record in one.unwrap())
    following = Cursor(after=ids[-1]) if len(ids) == PARENTS else None
    newest = max((changed for _, changed in owners if changed is not None), default=None)  # its rows have no changes of their own
    return Success(Fetched(records, following, owners=tuple(ids), newest=newest))


async def _one(request: PageOrder) -> Result[Fetched, SourceFailure]:
    id = str(request.order.subject)
    answer = await client.get(request.client, f"{request.endpoint.definition.path}/{id}", {})
    if isinstance(answer, Failure):
        return answer
    document = answer.unwrap().document
    if document is None:
        return Success(Fetched((), None, gone=(id,)))
    return Success(Fetched((_record(request.endpoint.definition, document["data"]),), None))


async def _siblings(request: PageOrder, found: Fetched) -> Result[tuple[Record, ...], SourceFailure]:
    """In a delta: all rows of the owners of changed ones, since a change may touch the others silently."""
    definition = request.endpoint.definition
    if definition.siblings is None or request.parameters.since is None:
        return Success(())
    owners = sorted({ref.target_id for one in found.records for ref in one.references if ref.relation == definition.siblings})
    return await _of_owners(request, definition, owners)


async def _of_owners(request: PageOrder, definition: EntityDefinition, owners: Sequence[str]) -> Result[tuple[Record, ...], SourceFailure]:
    lists = await _at_once([_all_of(request.client, definition, f"/people/{owner}{definition.path}", None) for owner in owners])
    for one in lists:
        if isinstance(one, Failure):
            return one
    return Success(tuple(record for one in lists for record in one.unwrap()))


async def _merges(request: PageOrder, found: Fetched) -> Result[dict[str, tuple[Record, ...]], SourceFailure]:
    """Of rows that were merged: the kept one and what moved to it, read again. Merges that are no news need nothing."""
    merges = request.endpoint.definition.merges
    if merges is None or not found.records:
        return Success({})
    removed = {str(one.attributes["person_to_remove_id"]): str(one.attributes["person_to_keep_id"]) for one in found.records}
    async with this_attempt().connection() as connection:
        known = await connection.fetch(
            "select id from sync.records where org = $1 and entity = $2 and id = any($3::text[]) and deleted_at is null",
            request.order.org_id, merges, list(removed),
        )  # fmt: skip
    kept = sorted({removed[row[0]] for row in known})
    manifest = MANIFESTS[request.order.adapter_name]
    moved: dict[str, tuple[Record, ...]] = {}
    person = manifest.entity(merges)
    if person is not None and kept:
        answers = await _at_once([client.get(request.client, f"{person.path}/{id}", {}) for id in kept])
        for answer in answers:
            if isinstance(answer, Failure):
                return answer
        documents = [answer.unwrap().document for answer in answers]
        moved[merges] = tuple(_record(person, document["data"]) for document in documents if document is not None)
    for reference in request.endpoint.definition.relationships:
        definition = manifest.entity(reference.target)
        if reference.many and definition is not None and kept:
            lists = await _of_owners(request, definition, kept)
            if isinstance(lists, Failure):
                return lists
            moved[definition.name] = lists.unwrap()
    return Success(moved)


async def _all_of(api: ApiClient, definition: EntityDefinition, path: str, owner: str | None) -> Result[tuple[Record, ...], SourceFailure]:
    """A short list, whole."""
    found: list[Record] = []
    while True:
        answer = await client.get(api, path, {"per_page": definition.page_size, "offset": len(found)})
        if isinstance(answer, Failure):
            return answer
        document = answer.unwrap().document
        if document is None:
            return Success(())
        found += [_record(definition, row, owner) for row in document["data"]]
        if not _has_next(document):
            return Success(tuple(found))


async def _at_once(works: Sequence[Any]) -> list[Any]:
    """A few at a time, answers in order."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(work: Any) -> Any:
        async with room:
            return await work

    return list(await asyncio.gather(*(one(work) for work in works)))


# Rows


def _records(definition: EntityDefinition, document: Any) -> tuple[Record, ...]:
    return tuple(_record(definition, row) for row in (document or {"data": []})["data"])


def _record(definition: EntityDefinition, row: Any, owner: str | None = None) -> Record:
    """A JSON:API row in canonical form. An absent relationship is null, of many an empty list."""
    attributes = dict(row.get("attributes") or {})
    relationships = {name: (value or {}).get("data") for name, value in (row.get("relationships") or {}).items()}
    if owner is not None and definition.parent is not None:
        relationships[definition.parent.lower()] = {"type": definition.parent, "id": owner}
    references = tuple(
        Reference(name, TYPE_ALIASES.get(str(one["type"]), str(one["type"])), str(one["id"]))
        for name, value in relationships.items()
        for one in (value if isinstance(value, list) else [value] if value else [])
    )
    changed = attributes.get(definition.change) if definition.change else None
    return Record(str(row["id"]), _instant(changed), attributes, relationships, owner, references)


def _instant(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None


def _spelled(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _has_next(document: Any) -> bool:
    return bool(document and (document.get("links") or {}).get("next"))


# After the walk


async def sweep(request: SweepOrder) -> Result[Swept, SourceFailure | Unconfigured]:
    """Rows not seen are asked for by id. What is listed below a parent is gone with it."""
    org, definition = request.order.org_id, request.endpoint.definition
    if definition.parent is not None:
        async with this_attempt().transaction() as connection:
            return Success(Swept(await sync_store.forget_orphans(connection, org, definition.name, definition.parent), 0, False))
    async with this_attempt().connection() as connection:
        ids = await sync_store.unseen(connection, org, definition.name, request.walk, LOOKUPS)
    answers = await _at_once([client.get(request.client, f"{definition.path}/{id}", {}) for id in ids])
    for answer in answers:
        if isinstance(answer, Failure):
            return answer
    documents = [answer.unwrap().document for answer in answers]
    found = [_record(definition, document["data"]) for document in documents if document is not None]
    gone = [id for id, document in zip(ids, documents, strict=True) if document is None]
    async with this_attempt().transaction() as connection:
        await sync_store.save(connection, org, definition.name, request.walk, found)
        await sync_store.forget(connection, org, definition.name, gone)
        await connection.execute(  # found, though older than what is held: seen all the same
            "update sync.records set seen = $3 where org = $1 and entity = $2 and id = any($4::text[])", org, definition.name, request.walk, ids
        )
    return Success(Swept(len(gone), len(found), len(ids) == LOOKUPS))


async def link(request: LinkOrder) -> Result[Linked, Never]:
    async with this_attempt().transaction() as connection:
        return Success(Linked(await sync_store.link(connection, request.org_id, request.link.entity, request.link.target)))


async def update_status(request: SyncStatus) -> Result[None, Never]:
    async with this_attempt().transaction() as connection:
        await sync_store.complete(
            connection, request.org_id, request.entity_name, request.sync_type, request.total_records_processed, request.newest_change,
            request.completed_at,
        )  # fmt: skip
    return Success(None)
