"""A manifest: what an adapter's source has to offer, as data. Nothing here knows a particular source."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, TypeAlias

from attrs import field, frozen

SyncType: TypeAlias = Literal["full", "delta", "reconciliation"]


@frozen
class Relationship:
    """One entity's reference to another. The graph of dependencies is made of these."""

    name: str
    target: str
    required: bool = False
    """A hard dependency: rows make no sense before the target's are there. Otherwise a soft one, which only asks to come later."""
    linked_later: bool = False
    """May be filled in once both sides are loaded; how a cycle is broken."""


@frozen
class Merge:
    """Rows of the entity say that one row of `target` was merged into another."""

    target: str
    keep: str
    """The attribute with the id that stays."""
    remove: str
    """The attribute with the id that is gone."""


@frozen
class Mirror:
    """An owner says itself who its rows point at, so that a comparison need not read every owner's rows."""

    owner_says: str
    """The owner's relationship to many."""
    rows_say: str
    """The rows' relationship to one of them."""


@frozen
class Entity:
    """One kind of record, and what its endpoints can do."""

    name: str
    path: str
    """Where it is listed; with `{owner}` if only the rows of one owner can be."""
    relationships: tuple[Relationship, ...] = ()
    changed: str | None = "updated_at"
    """The attribute that moves when a row changes; None if nothing tells."""
    filterable: bool = True
    """Whether a list can be limited to rows changed since a time. If not, a delta reads the newest first."""
    owner: str | None = None
    """The relationship to the row that this one hangs on."""
    siblings: str | None = None
    """Where all rows of one owner are listed, if changing one row may change its siblings without a trace."""
    mirror: Mirror | None = None
    merge: Merge | None = None
    aliases: tuple[str, ...] = ()
    """Other names under which the source speaks of this type."""

    @property
    def nested(self) -> bool:
        """Whether there is no list but that of an owner's rows."""
        return "{owner}" in self.path

    def relationship(self, name: str) -> Relationship:
        """Raises `KeyError`: a manifest that names what it lacks is a bug."""
        for one in self.relationships:
            if one.name == name:
                return one
        raise KeyError(f"{self.name} has no relationship {name!r}")

    @property
    def owner_entity(self) -> str | None:
        return self.relationship(self.owner).target if self.owner else None


@frozen
class Manifest:
    """All entities of an adapter, and how its source wants to be read."""

    adapter_name: str
    entities: tuple[Entity, ...]
    page_size: int = 100
    overlap: timedelta = timedelta(minutes=2)
    """A delta starts so much before the newest change that was seen: commits come late, and clocks differ."""
    pause: timedelta = timedelta(seconds=1)
    """Between two pages, when the source says nothing about its quota."""
    spare: float = field(default=0.1)
    """The share of the quota that is kept free for calls on behalf of somebody who waits."""

    def entity(self, name: str) -> Entity | None:
        """The entity of that name or alias."""
        return next((one for one in self.entities if name == one.name or name in one.aliases), None)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.entities)

    def supports(self, entity: Entity, sync_type: SyncType) -> bool:
        """Whether rows of it can be synced in this way: a delta needs something that tells what has changed."""
        if sync_type != "delta" or entity.changed is not None:
            return True
        owner = self.entity(entity.owner_entity) if entity.nested and entity.owner_entity else None
        return owner is not None and self.supports(owner, sync_type)

    def listed_under(self, entity: Entity) -> tuple[str, ...]:
        """The entities that can only be read owner by owner, with this one as the owner."""
        return tuple(one.name for one in self.entities if one.nested and one.owner_entity == entity.name)
