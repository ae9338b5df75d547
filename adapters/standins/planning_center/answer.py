"""Rows as JSON:API documents. A row's JSON is kept until it changes, so a page is mostly joined strings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeAlias
from urllib.parse import urlencode

from attrs import define, field, frozen

from adapters.standins.planning_center.organization import Organization, linkage
from adapters.standins.planning_center.query import Query, matcher, ordered_since
from adapters.standins.planning_center.resources import BY_TYPE, Resource
from adapters.standins.planning_center.table import Json, Ref, Row, rank

Key: TypeAlias = tuple[str, int]

_SHARE_LOST_TO_LAG = 0.3
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def dump(value: Json) -> str:
    return _ENCODER.encode(value)


@frozen
class Document:
    body: str
    rows: int
    included: int


@define
class Inclusion:
    """What `include` adds: rows for `included`, and relationships on the rows that named them."""

    rows: dict[Key, Row] = field(factory=dict[Key, Row])  # by the type of the linkage, which may not be the row's own
    named: dict[Key, dict[str, str]] = field(factory=dict[Key, dict[str, str]])  # relationship → JSON of its linkage


@frozen
class Page:
    """Where an answer is asked for: `base` is the API's root, `path` the collection under it."""

    organization: Organization
    base: str
    path: str
    lag: Random | None = None  # a lagging replica: some included rows are not there yet

    def listing(self, resource: Resource, query: Query, parent: Row | None = None, among: Sequence[Row] | None = None) -> Document:
        """One page of a resource; `among` restricts it to the rows at the end of `parent`'s edge."""
        rows, total = self._found(resource, query, among)
        following = query.offset + query.per_page if query.offset + len(rows) < total and rows else None
        before = max(0, query.offset - query.per_page) if query.offset else None
        links: dict[str, Json] = {"self": self._link(query, query.offset or None)}
        meta: dict[str, Json] = {"total_count": total, "count": len(rows)}
        if following is not None:
            links["next"], meta["next"] = self._link(query, following), {"offset": following}
        if before is not None:
            links["prev"], meta["prev"] = self._link(query, before), {"offset": before}
        meta |= {"can_order_by": list(resource.order_by), "can_query_by": list(resource.query_by)}
        meta |= self._abilities(resource, parent)
        inclusion = self._inclusion(rows, query)
        data = ",".join(self._render(row, query, inclusion) for row in rows)
        return self._document(links, f"[{data}]", self._included(rows, query, inclusion), meta, len(rows))

    def single(self, resource: Resource, query: Query, row: Row, parent: Row | None = None) -> Document:
        inclusion = self._inclusion([row], query)
        data = self._render(row, query, inclusion)
        meta = self._abilities(resource, parent)
        return self._document({"self": self._link(query, None)}, data, self._included([row], query, inclusion), meta, 1)

    def _found(self, resource: Resource, query: Query, among: Sequence[Row] | None) -> tuple[list[Row], int]:
        span = (query.offset, query.offset + query.per_page)
        if among is None:
            key = query.conditions if query.reusable else None
            since, others = ordered_since(resource, query)
            test = matcher(self.organization, resource, others)
            return self.organization.tables[resource.type].page(query.order, span, test, since=since, key=key)
        test = matcher(self.organization, resource, query.conditions)
        attribute = query.order.removeprefix("-")
        rows = sorted((row for row in among if test is None or test(row)), key=lambda row: row.number)
        rows.sort(key=lambda row: rank(row, attribute), reverse=query.order.startswith("-"))
        return rows[slice(*span)], len(rows)

    def _link(self, query: Query, offset: int | None) -> str:
        pairs = [*query.sent, *([("offset", str(offset))] if offset is not None else [])]
        return f"{self.base}/{self.path}?{urlencode(pairs)}" if pairs else f"{self.base}/{self.path}"

    def _abilities(self, resource: Resource, parent: Row | None) -> dict[str, Json]:
        holder = Ref(parent.type, parent.id) if parent else Ref("Organization", self.organization.id)
        return {
            "can_include": list(resource.can_include),
            "can_filter": list(resource.can_filter),
            "parent": {"id": holder.id, "type": holder.type},
        }

    def _document(self, links: dict[str, Json], data: str, included: list[str], meta: dict[str, Json], rows: int) -> Document:
        body = f'{{"links":{dump(links)},"data":{data},"included":[{",".join(included)}],"meta":{dump(meta)}}}'
        return Document(body, rows, len(included))

    def _inclusion(self, rows: Iterable[Row], query: Query) -> Inclusion:
        inclusion = Inclusion()
        for path in query.include:
            head, _, tail = path.partition(".")
            targets = self._include(inclusion, rows, head)
            if tail:
                self._include(inclusion, targets, tail)
        return inclusion

    def _include(self, inclusion: Inclusion, rows: Iterable[Row], name: str) -> list[Row]:
        found: list[Row] = []
        for row in rows:
            edge = BY_TYPE[row.type].edges.get(name)
            if edge is None:  # a part of the API that this organization does not use
                continue
            targets = self.organization.follow(row, edge)
            ref = row.relationships.get(name)
            alias = ref.type if isinstance(ref, Ref) else edge.target
            for target in targets:
                inclusion.rows[(alias, target.number)] = target
            one = BY_TYPE[row.type].leads_to_one(name)
            if (name not in row.relationships or name in BY_TYPE[row.type].unlisted) and (targets or not one):
                refs = ",".join(f'{{"type":"{alias}","id":"{target.number}"}}' for target in targets)
                inclusion.named.setdefault((row.type, row.number), {})[name] = refs if one else f"[{refs}]"
            found += targets
        return found

    def _included(self, rows: Sequence[Row], query: Query, inclusion: Inclusion) -> list[str]:
        left_out = {(row.type, row.number) for row in rows}
        left_out |= {key for key in inclusion.rows if self.lag and self.lag.random() < _SHARE_LOST_TO_LAG}
        return [self._render(row, query, inclusion, key[0]) for key, row in inclusion.rows.items() if key not in left_out]

    def _render(self, row: Row, query: Query, inclusion: Inclusion, alias: str | None = None) -> str:
        shown = alias or row.type
        chosen = query.fields.get(shown)
        if chosen is None and shown == row.type:
            opening = row.rendered or _remember(row)
        else:
            opening = _opening(row, shown, chosen)
        if named := inclusion.named.get((row.type, row.number)):
            inner = ",".join(f'"{name}":{{"data":{refs}}}' for name, refs in named.items())
            opening += inner if opening.endswith("{") else f",{inner}"
        return f'{opening}}},"links":{{"self":"{self.base}/{_place(row)}"}}}}'


def _place(row: Row) -> str:
    path = BY_TYPE[row.type].path
    if row.type == "HouseholdMembership":
        return f"households/{row.linked('household')}/{path}/{row.number}"
    return f"{path}/{row.number}"


def _remember(row: Row) -> str:
    row.rendered = _opening(row, row.type, None)
    return row.rendered


def _opening(row: Row, shown: str, chosen: frozenset[str] | None) -> str:
    """A row's JSON as far as the last relationship, with the braces still open for more of them."""
    resource = BY_TYPE[row.type]
    attributes: dict[str, Json] = {
        name: value for name, value in row.attributes.items() if (name not in resource.on_request if chosen is None else name in chosen)
    }
    relationships: dict[str, Json] = {
        name: {"data": linkage(relation, name in resource.many)} for name, relation in row.relationships.items() if name not in resource.unlisted
    }
    return f'{{"type":"{shown}","id":"{row.number}","attributes":{dump(attributes)},"relationships":{dump(relationships)[:-1]}'
