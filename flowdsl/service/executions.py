"""Looking at executions: one, many, their journals and children."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from attrs import frozen

from flowdsl.activation import Stored
from flowdsl.codec import Undecodable, codec
from flowdsl.postgres import looking
from flowdsl.postgres.looking import Place, Sought
from flowdsl.postgres.store import Summary
from flowdsl.service.problem import invalid
from flowdsl.service.reading import payloads_shown
from flowdsl.service.route import Call, Route
from flowdsl.service.wire import EntryFacts, ExecutionFacts, Executions, Journal, entry_of, facts_of

# Cursors


def cursor(place: object) -> str:
    """Where a page ended, as text that nobody needs to read."""
    return base64.urlsafe_b64encode(codec(type(place)).encode(place)).decode().rstrip("=")


def placed(form: Any, text: str | None) -> Any:
    """Where a page ended. Raises `Problem` for a cursor that no page gave."""
    if text is None:
        return None
    try:
        place = codec(form).decode(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (ValueError, Undecodable):
        raise invalid([("query.cursor", "expected what `next` said on another page")]) from None
    if isinstance(place, Place) and not (looking.is_id(place.id) and place.started.tzinfo is not None):
        raise invalid([("query.cursor", "expected what `next` said on another page")])
    return place


def limited(call: Call, limit: int | None) -> int:
    """How many come on a page. Raises `Problem` for more than may."""
    most = call.service.settings.page
    if limit is not None and not 1 <= limit <= most:
        raise invalid([("query.limit", f"expected 1 to {most}")])
    return limit if limit is not None else min(50, most)


# Executions


@frozen
class ListQuery:
    """Which executions are asked for. `text` is looked for in keys and names of workflows."""

    workflow: str | None = None
    status: Stored | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None
    cursor: str | None = None
    limit: int | None = None


@frozen
class PageQuery:
    """Which page, and how long."""

    cursor: str | None = None
    limit: int | None = None


def aware(name: str, at: datetime | None) -> datetime | None:
    """A time that says where it is meant. Raises `Problem`."""
    if at is not None and at.tzinfo is None:
        raise invalid([(name, "expected a time with its offset: 2026-01-31T12:00:00+00:00")])
    return at


async def listed(call: Call) -> Executions:
    """Those that fit, whatever their state."""
    return await _page(call, ended=False)


async def history(call: Call) -> Executions:
    """Those that fit and have ended."""
    return await _page(call, ended=True)


async def _page(call: Call, *, ended: bool) -> Executions:
    query: ListQuery = call.query
    since, until = aware("query.since", query.since), aware("query.until", query.until)
    sought = Sought(query.workflow, query.status, ended, None, since, until, query.text)
    return await _executions(call, sought, query.cursor, query.limit)


async def _executions(call: Call, sought: Sought, at: str | None, limit: int | None) -> Executions:
    most = limited(call, limit)
    found = await looking.executions(call.store, call.tenant, sought, after=placed(Place, at), limit=most + 1)
    await payloads_shown(call, "result", [one.id for one in found[:most] if one.kept_exit is not None])
    return page_of(found, most)


def page_of(found: Sequence[Summary], most: int) -> Executions:
    """The first `most` of these executions; what is beyond says that there is another page."""
    page = found[:most]
    following = cursor(Place(page[-1].started, page[-1].id)) if len(found) > most else None
    return Executions(tuple(map(facts_of, page)), following)


async def status(call: Call) -> ExecutionFacts:
    """How it stands; how it ended."""
    one = await looking.execution(call.store, call.tenant, call.path("id"))
    await payloads_shown(call, "result", [one.id] if one.kept_exit is not None else [])
    return facts_of(one)


async def children(call: Call) -> Executions:
    """The executions that it started."""
    one = await looking.execution(call.store, call.tenant, call.path("id"))
    return await _executions(call, Sought(parent=one.id), call.query.cursor, call.query.limit)


@frozen
class Position:
    """Where a page of a journal ended."""

    position: int


async def journal(call: Call) -> Journal:
    """What is recorded of it, with what was passed around."""
    one = await looking.execution(call.store, call.tenant, call.path("id"))
    most = limited(call, call.query.limit)
    place: Position | None = placed(Position, call.query.cursor)
    first = place.position if place is not None else 0
    if not 0 <= first < 1 << 31:
        raise invalid([("query.cursor", "expected what `next` said on another page")])
    await payloads_shown(call, "journal", [one.id])
    found = await looking.entries(call.store, call.tenant, one.id, first=first, limit=most)
    more = bool(found) and found[-1].position + 1 < one.entries
    return Journal(one.id, tuple(map(entry_of, found)), cursor(Position(found[-1].position + 1)) if more else None)


_PLAIN_ENTRY = codec(EntryFacts)
_PLAIN_FACTS = codec(ExecutionFacts)


def event_data(value: EntryFacts | ExecutionFacts) -> str:
    """One line of JSON for an event."""
    return json.dumps(_PLAIN_ENTRY.plain(value) if isinstance(value, EntryFacts) else _PLAIN_FACTS.plain(value))


ROUTES = (
    Route("GET", "/api/v1/workflows", "list", "Executions, newest first.", "viewer", listed, {200: Executions}, query=ListQuery),
    Route("GET", "/api/v1/workflows/history", "history", "Executions that have ended, newest first.", "viewer", history, {200: Executions},
          query=ListQuery),
    Route("GET", "/api/v1/workflows/{id}/status", "status", "One execution.", "viewer", status, {200: ExecutionFacts}, problems=(404,)),
    Route("GET", "/api/v1/workflows/{id}/journal", "journal", "What is recorded of an execution, entry by entry, with payloads.", "viewer", journal,
          {200: Journal}, query=PageQuery, problems=(404,)),
    Route("GET", "/api/v1/workflows/{id}/children", "children", "The executions that an execution started.", "viewer", children, {200: Executions},
          query=PageQuery, problems=(404,)),
)  # fmt: skip
