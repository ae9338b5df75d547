"""Copies a club's members, page by page, from its directory into the warehouse."""

from datetime import date
from typing import Never

from attrs import frozen

from flowdsl import Done, Next, Result, Retry, Round, Steps, activity, do, iterate, workflow


@frozen
class Sync:
    club: str
    day: date


@frozen
class Member:
    id: int
    name: str


@frozen
class Page:
    members: tuple[Member, ...]
    following: int | None
    """The number of the next page; None: this was the last."""


@frozen
class PageOf:
    club: str
    number: int


@frozen
class Append:
    """Rows for the warehouse. Of one insert id it takes the first and drops the rest; without one it takes whatever comes."""

    rows: tuple[Member, ...]
    insert_id: str | None = None


@frozen
class At:
    page: int
    members: int


@frozen
class Unavailable:
    status: int


@activity("members.fetch_page", retry=Retry.exponential("1s", attempts=5, on=(Unavailable,)))
def fetch_page(page: PageOf) -> Result[Page, Unavailable]:
    """One page of the directory."""
    ...


@activity("members.append_rows")
def append_rows(rows: Append) -> Result[None, Never]:
    """Appends rows to the table."""
    ...


@workflow("members.sync", key="{club}:{day}")
def sync_members(order: Sync) -> Steps[int, Unavailable]:
    """Answers how many members there are."""

    @do
    def one_page(at: At) -> Steps[Round[At, int], Unavailable]:
        page = yield from fetch_page(PageOf(order.club, at.page))
        yield from append_rows(Append(page.members))
        members = at.members + len(page.members)
        return Done(members) if page.following is None else Next(At(page.following, members))

    return (yield from iterate(At(page=1, members=0), one_page))
