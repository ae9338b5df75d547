"""What somebody else's news means for us: which single rows are to be read again. Pure, and driven by the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from attrs import frozen

from domains.sync.manifest import Entity, Manifest
from domains.sync.values import EntitySync

Attributes: TypeAlias = Mapping[str, Any]


@frozen
class News:
    """A row was made, changed or removed, says its source. It names the row, which is never taken from here: news comes late, and in any order."""

    id: str
    """The same when the same news is told again."""
    entity_name: str
    subject: str
    attributes: Attributes
    owners: Mapping[str, str]
    """Of each relationship the row's id on its other side."""


def orders(news: News, manifest: Manifest, org_id: str) -> Iterator[EntitySync]:
    """What is to be read again because of it; nothing for what the manifest does not have."""
    entity = manifest.entity(news.entity_name)
    if entity is None:
        return
    if entity.merge is not None:
        for side in (entity.merge.remove, entity.merge.keep):  # who is gone first: what hung on them moves to who stays
            if news.attributes.get(side):
                yield EntitySync(org_id, manifest.adapter_name, entity.merge.target, "full", subject=str(news.attributes[side]))
    subject = _subject(entity, news)
    if subject is not None:
        yield EntitySync(org_id, manifest.adapter_name, entity.name, "full", subject=subject)


def key_of(order: EntitySync, news: News) -> str:
    """One execution for each news, beside those that run: one under way may have read the row before it changed."""
    return f"entity-sync:{order.org_id}:{order.adapter_name}:{order.entity_name}:{order.sync_type}:{order.subject}:{news.id}"


def _subject(entity: Entity, news: News) -> str | None:
    """What has no address of its own is read by its owner."""
    return news.owners.get(entity.owner) if entity.nested and entity.owner is not None else news.subject


__all__ = ["News", "key_of", "orders"]
