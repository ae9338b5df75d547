"""How a list is walked by offset while its rows move, so that no row which stays is missed.

Rows come in the order of their last change. A change moves a row to the end, a deletion moves all behind it up. So the walk asks for rows changed
at or after the last one it saw, which keeps offsets small; within one second it overlaps by a row, and where that row is not met again,
something has moved up and the walk steps back until it meets what it knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, TypeAlias

from attrs import evolve, frozen

Sorted: TypeAlias = Literal["fully", "by_change", "not"]


@frozen
class Key:
    """Where a row stands: by its last change, then by rising id."""

    changed: datetime
    id: str


@frozen
class Cursor:
    """Where a walk stands. `since` is sent as the filter, if there is one."""

    newest_first: bool = False
    floor: datetime | None = None
    """Rows changed before this are of no interest."""
    since: datetime | None = None
    offset: int = 0
    last: Key | None = None
    seeks: bool = True
    """Whether the filter may be moved along."""
    checks: bool = True
    """Whether rows of one second come in a known order, so that a gap can be seen."""


@frozen
class Seen:
    """What a page showed."""

    count: int
    more: bool
    first: Key | None = None
    last: Key | None = None
    sorted: Sorted = "fully"


def seen(keys: Sequence[Key | None], *, more: bool, newest_first: bool) -> Seen:
    """A page in short. Rows without a time of change count, and say nothing about the order."""
    known = [one for one in keys if one is not None]
    places = [_place(one, newest_first) for one in known]
    if places == sorted(places):
        order: Sorted = "fully"
    elif [place[0] for place in places] == sorted(place[0] for place in places):
        order = "by_change"
    else:
        order = "not"
    return Seen(len(keys), more, known[0] if known else None, known[-1] if known else None, order)


def _place(one: Key, newest_first: bool) -> tuple[float, int, str]:
    moment = one.changed.timestamp()
    return (-moment if newest_first else moment, len(one.id), one.id)  # ids are digits: the shorter one is smaller


def ignored(cursor: Cursor, page: Seen) -> bool:
    """Whether the source let the filter pass without a word."""
    return cursor.since is not None and not cursor.newest_first and page.first is not None and page.first.changed < cursor.since


def advance(cursor: Cursor, page: Seen, page_size: int) -> Cursor | None:
    """Where to go on, or None at the end."""
    if ignored(cursor, page):
        return Cursor(newest_first=cursor.floor is not None, floor=cursor.floor, seeks=False)
    if page.sorted != "fully":
        cursor = evolve(cursor, checks=False, seeks=cursor.seeks and page.sorted == "by_change")
    if _gap(cursor, page):
        return evolve(cursor, offset=max(0, cursor.offset - max(1, page_size // 2)))
    if not page.more or not page.count or _past_floor(cursor, page):
        return None
    if cursor.seeks and not cursor.newest_first and page.last is not None and (cursor.since is None or page.last.changed > cursor.since):
        return evolve(cursor, since=page.last.changed, offset=0, last=page.last)
    step = max(1, page.count - 1) if cursor.checks else page.count
    return evolve(cursor, offset=cursor.offset + step, last=page.last or cursor.last)


def _gap(cursor: Cursor, page: Seen) -> bool:
    """Rows have moved up past the place that was asked for."""
    if not cursor.checks or cursor.offset == 0 or cursor.last is None:
        return False
    if page.first is None:
        return page.count == 0
    return _place(page.first, cursor.newest_first) > _place(cursor.last, cursor.newest_first)


def _past_floor(cursor: Cursor, page: Seen) -> bool:
    if not cursor.newest_first or cursor.floor is None or page.last is None or page.sorted == "not":
        return False
    return page.last.changed < cursor.floor


def begin(*, newest_first: bool, filterable: bool, floor: datetime | None) -> Cursor:
    """The start of a walk: from the floor on if the source can filter, newest first if it cannot and there is a floor, else everything."""
    if newest_first and floor is not None:
        return Cursor(newest_first=True, floor=floor, seeks=False)
    return Cursor(floor=floor if filterable else None, since=floor if filterable else None, seeks=filterable)
