"""One page of a sync: requests first, then everything they brought in one transaction, together with the page's journal entry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from attrs import evolve, frozen

from adapters.planning_center import ahead
from adapters.planning_center.budget import Grant
from adapters.planning_center.client import Answer, Source, open_source
from adapters.planning_center.document import more, records, spelled, total
from adapters.planning_center.quota import Quota, pause
from adapters.sync_store import Mark, Record, Records
from domains.sync.failures import NotFound, RateLimited, SourceFailure, Unauthorized
from domains.sync.manifest import Entity
from domains.sync.paging import Cursor, Key, advance, seen
from domains.sync.values import Extent, Measure, Page, PageOrder
from flowdsl import Failure, Result, Success, this_attempt

A = TypeVar("A")

BATCH = 50
"""Owners or single rows per page."""
AT_ONCE = 8
FIRST = 25
"""Rows of the first page of a list that is read newest first."""
CAP = 10_000
"""A total of exactly this was once the most that the source would say."""


async def process_entity_page(order: PageOrder) -> Result[Page, SourceFailure]:
    """The next page of a list, one row, or the next few owners or doubtful rows from the lists in the store."""
    opened = open_source(1.0 if order.order.subject is not None else 1 - order.definition.spare)
    if isinstance(opened, Failure):
        return opened
    job = _Job(order, opened.unwrap())
    match order.endpoint.kind:
        case "list":
            return await job.next_page()
        case "one":
            return await job.one_row()
        case "of_owner":
            return await job.of_owner()
        case "doubtful":
            return await job.doubtful()


async def measure_entity(request: Measure) -> Result[Extent, SourceFailure]:
    """How many rows the source counts and which is the newest, from a list of one row."""
    opened = open_source(1 - request.definition.spare)
    if isinstance(opened, Failure):
        return opened
    entity = request.definition.entity
    parameters = [("per_page", "1"), *([("order", f"-{entity.changed}")] if entity.changed else [])]
    asked = await opened.unwrap().get(entity.path, parameters)
    if isinstance(asked, Failure):
        return asked
    answer = asked.unwrap()
    read = records(f"GET /{entity.path}", answer.document, entity)
    if isinstance(read, Failure):
        return read
    counted = total(answer.document)
    async with this_attempt().connection() as connection:
        live = await Records(connection, request.order.org_id, request.order.adapter_name, entity.name).live()
    return Success(Extent(None if counted == CAP else counted, newest(read.unwrap(), answer.at), live))


def newest(rows: Sequence[Record], at: datetime) -> datetime | None:
    """The newest change among rows. One dated in the future counts as now: it must not hide what changes until then."""
    return max((min(row.changed, at) for row in rows if row.changed is not None), default=None)


@frozen
class _Batch:
    """Many requests, of which some may have failed: what came, by what was asked for."""

    grant: Grant
    answers: list[tuple[str, list[Record]]]
    gone: list[str]
    failures: list[SourceFailure]
    quota: Quota | None

    def rest(self, default: timedelta) -> timedelta:
        """A refusal among them says how long to wait."""
        asked = [one.retry_after for one in self.failures if isinstance(one, RateLimited) and one.retry_after]
        return max([pause(self.quota, default), *asked])


@frozen
class _Job:
    order: PageOrder
    source: Source

    @property
    def entity(self) -> Entity:
        return self.order.definition.entity

    def store(self, connection: object, entity: str | None = None) -> Records:
        return Records(connection, self.order.order.org_id, self.order.order.adapter_name, entity or self.entity.name)

    @property
    def marks(self) -> tuple[Mark, ...]:
        siblings = (Mark(self.entity.name, under_owner=True),) if self.entity.siblings else ()
        return (*siblings, *(Mark(name, under_owner=False) for name in self.order.definition.listed_under))

    # A list

    async def next_page(self) -> Result[Page, SourceFailure]:
        cursor, definition = self.order.cursor, self.order.definition
        asked = await ahead.read(self.order, lambda: self._list(cursor))
        if isinstance(asked, Failure):
            return asked
        answer = asked.unwrap()
        read = records(f"GET /{self.order.endpoint.path}", answer.document, self.entity)
        if isinstance(read, Failure):
            return read
        rows = read.unwrap()
        keys = [None if row.changed is None else Key(row.changed, row.id) for row in rows]
        page = seen(keys, more=more(answer.document), newest_first=cursor.newest_first)
        following = advance(cursor, page, definition.page_size)
        rest = pause(answer.quota, definition.pause) if following else timedelta()
        if following is not None and not rest:
            ahead.begin(self.order, following, lambda: self._list(following))
        async with this_attempt().transaction() as connection:
            counted = await self.store(connection).put(
                rows, answer.at, since=self.order.parameters.started_at, marks=self.marks, moving_since=self.order.moving_since
            )
            buried = await self._merge(connection, rows, answer.at)
        return Success(
            Page(
                records=counted.changed if self.order.counts_changes else counted.fresh,
                deleted=buried,
                next=following,
                newest=newest(rows, answer.at),
                pause=rest,
                total=None if cursor.since else total(answer.document),
            )
        )

    async def _list(self, cursor: Cursor) -> Result[Answer, SourceFailure]:
        return await self.source.get(self.order.endpoint.path, self._parameters(cursor))

    def _parameters(self, cursor: Cursor) -> list[tuple[str, str]]:
        changed = self.entity.changed
        size = self.order.definition.page_size
        if cursor.newest_first and not cursor.offset:  # most often it ends here
            size = min(size, FIRST)
        parameters = [("per_page", str(size))]
        if changed is not None:
            parameters.append(("order", f"-{changed}" if cursor.newest_first else changed))
            if cursor.since is not None and not cursor.newest_first:
                parameters.append((f"where[{changed}][gte]", spelled(cursor.since)))
        return [*parameters, ("offset", str(cursor.offset))] if cursor.offset else parameters

    async def _merge(self, connection: object, rows: Sequence[Record], at: datetime) -> int:
        """Rows that tell of merges: what was merged away is gone. What hung on it is in doubt by that, and asked for one by one."""
        merge = self.entity.merge
        if merge is None or not rows:
            return 0
        pairs = [(row.attributes.get(merge.remove), row.attributes.get(merge.keep)) for row in rows]
        known = [(str(removed), str(kept)) for removed, kept in pairs if removed and kept and removed != kept]
        if not known:
            return 0
        return await self.store(connection, merge.target).merge([removed for removed, _ in known], [kept for _, kept in known], at)

    # One row

    async def one_row(self) -> Result[Page, SourceFailure]:
        """The row that was asked for, as it is now: it may be gone."""
        id = self.order.order.subject or ""
        batch = await self._batch([id], self._row)
        if isinstance(batch, Failure):
            return batch
        return await self._settle(batch.unwrap())

    # Rows that may be gone

    async def doubtful(self) -> Result[Page, SourceFailure]:
        async with this_attempt().connection() as connection:
            store = self.store(connection)
            ids = await store.in_doubt(self.entity.owner_entity, self.order.parameters.started_at, BATCH + 1, unseen=self.order.comparing)
        if not ids:
            return Success(Page(0, 0, None, None, timedelta()))
        batch = await self._batch(ids[:BATCH], self._row)
        if isinstance(batch, Failure):
            return batch
        unsettled = len(ids) > len(batch.unwrap().answers) + len(batch.unwrap().gone)
        return await self._settle(batch.unwrap(), again=unsettled)

    async def _settle(self, batch: _Batch, *, again: bool = False) -> Result[Page, SourceFailure]:
        rows = [row for _, found in batch.answers for row in found]
        async with this_attempt().transaction() as connection:
            store = self.store(connection)
            counted = await store.put(rows, batch.grant.at, since=self.order.parameters.started_at, marks=self.marks)
            buried = await store.bury(batch.gone, batch.grant.at)
        return Success(Page(counted.changed, buried, self._round() if again else None, None, batch.rest(self.order.definition.pause)))

    async def _row(self, id: str, grant: Grant) -> Result[tuple[list[Record], Quota | None], SourceFailure]:
        path = self.order.endpoint.path.format(id=id)
        asked = await self.source.get(path, grant=grant)
        if isinstance(asked, Failure):
            return asked
        answer: Answer = asked.unwrap()
        return records(f"GET /{path}", answer.document, self.entity).map(lambda rows: (rows, answer.quota))

    # Rows by owner

    async def of_owner(self) -> Result[Page, SourceFailure]:
        """The rows of the next few owners on the list. Those that cannot be read now stay on it."""
        async with this_attempt().connection() as connection:
            store = self.store(connection)
            await self._fill(store)
            owners = await store.asked(2 * BATCH)
        if not owners:
            return Success(Page(0, 0, None, None, timedelta()))
        batch = await ahead.read(self.order, lambda: self._batch(owners[:BATCH], self._rows_of))
        if isinstance(batch, Failure):
            return batch
        done = batch.unwrap()
        read = [owner for owner, _ in done.answers]
        told = {*read, *done.gone}
        left = [owner for owner in owners if owner not in told]
        rest = done.rest(self.order.definition.pause) if left else timedelta()
        if left and not rest and not done.failures:
            ahead.begin(self.order, self._round(), lambda: self._batch(left[:BATCH], self._rows_of))
        rows = [row for _, found in done.answers for row in found]
        ids, at = [row.id for row in rows], done.grant.at
        async with this_attempt().transaction() as connection:
            store = self.store(connection)
            marks = tuple(mark for mark in self.marks if not mark.under_owner)
            counted = await store.put(rows, at, since=self.order.parameters.started_at, marks=marks)
            if self.entity.nested:
                buried = await store.bury_others([*read, *done.gone], ids, at)
            else:  # the others are asked for by id, in the round that follows
                buried = 0
                await store.doubt_others([*read, *done.gone], ids, at)
            await store.answered([*read, *done.gone], at)
        fresh = self.entity.nested and not self.order.counts_changes
        return Success(
            Page(
                records=counted.fresh if fresh else counted.changed,
                deleted=buried,
                next=self._round() if left else None,
                newest=None,
                pause=rest,
            )
        )

    async def _fill(self, store: Records) -> None:
        """Before the first round over an entity that has no list of its own. A delta finds the owners that changed on the list already."""
        owners, mirror, order = self.entity.owner_entity, self.entity.mirror, self.order.order
        if not self.entity.nested or owners is None or self.order.cursor.offset:
            return
        at = self.order.parameters.started_at
        if order.subject is not None:
            return await store.ask([order.subject], at)
        await store.ask_bereft(owners, at)
        if order.sync_type == "full" or (order.sync_type == "reconciliation" and mirror is None):
            await store.ask_all(owners, at)
        elif order.sync_type == "reconciliation" and mirror is not None:
            await store.ask_differing(owners, at, owner_says=mirror.owner_says, rows_say=mirror.rows_say)

    async def _rows_of(self, owner: str, grant: Grant) -> Result[tuple[list[Record], Quota | None], SourceFailure]:
        """All rows of one owner, over all their pages."""
        path, found = self.order.endpoint.path.format(owner=owner), list[Record]()
        size, offset, drawn = self.order.definition.page_size, 0, grant
        while True:
            parameters = [("per_page", str(size)), *([("offset", str(offset))] if offset else [])]
            asked = await self.source.get(path, parameters, drawn if offset == 0 else None)
            if isinstance(asked, Failure):
                return asked
            answer = asked.unwrap()
            read = records(f"GET /{path}", answer.document, self.entity, owner)
            if isinstance(read, Failure):
                return read
            rows = read.unwrap()
            found += rows
            if not rows or not more(answer.document):
                return Success((found, answer.quota))
            offset += len(rows)

    # Many requests

    async def _batch(
        self, ids: Sequence[str], ask: Callable[[str, Grant], Awaitable[Result[tuple[list[Record], Quota | None], SourceFailure]]]
    ) -> Result[_Batch, SourceFailure]:
        """As many as the budget lets through, some at a time. Fails only if all of them do."""
        drawn = await self.source.grant(len(ids))
        if isinstance(drawn, Failure):
            return drawn
        grant = drawn.unwrap()
        room = asyncio.Semaphore(AT_ONCE)

        stop: list[SourceFailure] = []

        async def one(id: str) -> Result[tuple[list[Record], Quota | None], SourceFailure]:
            async with room:
                if stop:
                    return Failure(stop[0])
                told = await ask(id, grant)
                if isinstance(told, Failure) and isinstance(told.failure(), (RateLimited, Unauthorized)):
                    stop.append(told.failure())  # to go on asking would only keep the door shut
                return told

        asked = ids[: grant.count]
        batch = _Batch(grant, [], [], [], None)
        for id, told in zip(asked, await asyncio.gather(*map(one, asked)), strict=True):
            if isinstance(told, Success):
                rows, quota = told.unwrap()
                batch.answers.append((id, rows))
                batch = evolve(batch, quota=quota or batch.quota)
            elif isinstance(told.failure(), NotFound):
                batch.gone.append(id)
            else:
                batch.failures.append(told.failure())
        if batch.failures and not batch.answers and not batch.gone:
            return Failure(batch.failures[0])
        return Success(batch)

    def _round(self) -> Cursor:
        return evolve(self.order.cursor, offset=self.order.cursor.offset + 1)
