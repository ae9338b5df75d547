"""Which endpoints are read for an entity, by sync type: a pure choice over its definition."""

from __future__ import annotations

from typing import Literal, TypeAlias

from attrs import frozen

from domains.sync.manifest import Entity, SyncType

Kind: TypeAlias = Literal["list", "one", "of_owner", "doubtful"]
"""A list, page by page · the one row that was asked for · all rows of an owner, owner by owner · single rows that may be gone."""


@frozen
class Endpoint:
    """What is asked, and where. `{id}` and `{owner}` in the path are filled in per request."""

    name: str
    kind: Kind
    path: str
    newest_first: bool = False


@frozen
class Route:
    """The endpoint of the sync type, and the smaller rounds after it."""

    endpoint: Endpoint
    then: tuple[Endpoint, ...] = ()
    again: tuple[Endpoint, ...] = ()
    """What is read when the source turns out to have another number of rows than we."""


def route(entity: Entity, sync_type: SyncType, subject: str | None = None) -> Route:
    """A subject is one row only, or, of an entity that is read by owner, the rows of one owner."""
    if entity.nested:
        return Route(Endpoint(f"list{entity.name}Of{entity.owner_entity}", "of_owner", entity.path))
    one = Endpoint(f"get{entity.name}ById", "one", f"{entity.path}/{{id}}")
    siblings = (Endpoint(f"list{entity.name}Of{entity.owner_entity}", "of_owner", entity.siblings),) if entity.siblings else ()
    doubtful = Endpoint(f"get{entity.name}ById", "doubtful", f"{entity.path}/{{id}}")
    if subject is not None:
        return Route(one, siblings)
    everything = Endpoint(f"list{entity.name}", "list", entity.path)
    if sync_type != "delta":
        return Route(everything, (*siblings, doubtful))
    return Route(_changes(entity), (*siblings, doubtful), (everything, *siblings, doubtful))


def _changes(entity: Entity) -> Endpoint:
    if entity.filterable:
        return Endpoint(f"list{entity.name}ChangedSince", "list", entity.path)
    return Endpoint(f"list{entity.name}NewestFirst", "list", entity.path, newest_first=True)
