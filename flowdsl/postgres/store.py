"""The store: the statements that are not commits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Literal, cast

import asyncpg
from attrs import evolve, field, frozen

from flowdsl import chance
from flowdsl.activation import Mail, Stored
from flowdsl.errors import NotFound, StoreError
from flowdsl.journal import Entry
from flowdsl.postgres.connection import Connection as Connection
from flowdsl.postgres.connection import connect as connect
from flowdsl.postgres.connection import full as full
from flowdsl.postgres.connection import lost as lost
from flowdsl.postgres.connection import open_pool, pooled, reached
from flowdsl.postgres.connection import reason as reason
from flowdsl.postgres.connection import refused as refused
from flowdsl.postgres.connection import refuses as refuses
from flowdsl.postgres.connection import shown_dsn as shown_dsn
from flowdsl.postgres.connection import trace as trace
from flowdsl.postgres.encryption import (
    PLAIN,
    Encryption,
    encrypted_with,
    exit_of,
    from_surroundings,
    mail_of,
    request_of,
    text_of,
)
from flowdsl.postgres.hints import Hints
from flowdsl.postgres.pages import Place, Sought
from flowdsl.postgres.server import Server, server_of

PATIENCE = 10.0
"""Seconds for which a statement is repeated while the store is away."""
AGAIN = 10.0
"""Seconds after which an execution is claimed again that could not go on for want of a key."""


_CLASHES = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.LockNotAvailableError)


@frozen
class Claimed:
    """An execution that this worker owns now."""

    id: str
    tenant: str
    workflow: str
    version: int
    scope: str
    key: str | None
    parent: str | None
    detached: bool
    epoch: int
    deaths: int
    mail: int
    request: bytes
    started: datetime
    taken_over: bool
    blocked: bool


@frozen
class NewStart:
    """A wish to start an execution."""

    id: str
    tenant: str
    workflow: str
    version: int
    scope: str
    key: str | None
    reuse: str
    request: bytes
    parent: str | None = None
    parent_step: str = ""
    detached: bool = False
    terminates: bool = False


@frozen
class Started:
    """What became of it: `id` is the execution that has the key now."""

    id: str
    outcome: Literal["new", "again", "joined", "rejected"]
    """`again`: this very start was recorded before."""
    status: Stored


@frozen
class Summary:
    """One execution as it is listed."""

    id: str
    tenant: str
    workflow: str
    version: int
    key: str | None
    status: Stored
    parent: str | None
    wake: datetime | None
    started: datetime
    ended: datetime | None
    kept_exit: bytes | None
    """As the row holds it."""
    cause: str | None
    note: str | None
    done: int | None
    total: int | None
    entries: int
    owner: str | None
    encryption: Encryption = field(default=PLAIN, repr=False, eq=False)

    @property
    def exit(self) -> bytes | None:
        """How it ended, encoded. Raises `KeyMissing`, `NotGenuine`."""
        return None if self.kept_exit is None else self.encryption.decrypt(exit_of(self.tenant, self.id), self.kept_exit)


class Store:
    """A pool over one database, and the statements that need no worker."""

    def __init__(self, dsn: str, pool: Any, pooled: bool = False, encryption: Encryption = PLAIN) -> None:
        self.dsn, self.pool, self.pooled, self.encryption = dsn, pool, pooled, encryption
        self.hints = Hints(pool)
        self.server: Server | None = None
        """The server as it was last met."""
        self.relied_on = False
        """Whether somebody keeps in memory what the server said: then another one, or an older state of it, is refused."""
        self.remembers: Callable[[Connection], Awaitable[str | None]] | None = None
        """A further test by who relies on it: what the server has forgotten, or None."""
        self.strayed: str | None = None
        """Why a connection was refused: what is kept in memory is worth nothing then."""

    @classmethod
    async def open(cls, dsn: str, *, size: int = 10, encryption: Encryption | None = None) -> Store:
        """Raises `StoreError` when the database cannot be reached. Without `encryption` the keys are those of the environment, if it names any."""
        encryption = from_surroundings() if encryption is None else encryption
        met: list[Store] = []

        async def meet(connection: Connection) -> None:
            await met[0].meet(connection)

        store = cls(dsn, await open_pool(dsn, size=size, command_timeout=60, init=meet), await pooled(dsn), encryption)
        met.append(store)
        await reached(dsn, store.pool)
        return store

    async def meet(self, connection: Connection) -> None:
        """Looks whom a new connection leads to. Raises `StoreError` when it is not the server that is relied on."""
        before = self.server  # of connections that open at once the later answer may be the older one
        server = await server_of(connection)
        why = server.lost_since(before) if before is not None and self.relied_on else None
        if why is None and self.remembers is not None:
            why = await self.remembers(connection)
        if why is not None:
            self.strayed = why
            raise StoreError(f"not the server that was relied on: {why}", "Nothing is to do: the worker begins anew")
        if self.server is before or self.server is None or server.written > self.server.written:
            self.server = server

    def forget_server(self) -> None:
        """Whoever answers next is the server."""
        self.server, self.strayed = None, None

    async def close(self) -> None:
        await self.hints.close()
        try:
            await asyncio.wait_for(self.pool.close(), 5)
        except TimeoutError:
            self.pool.terminate()

    async def __aenter__(self) -> Store:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        async with self.pool.acquire() as connection:
            yield connection

    async def again(self, query: str, *arguments: Any) -> list[Any]:
        """Fetches, and repeats when the connection is lost, for a while: only for statements that may be repeated."""
        pause, until = 0.05, asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                return cast("list[Any]", await self.pool.fetch(query, *arguments))
            except Exception as error:
                if not (lost(error) or isinstance(error, _CLASHES)) or asyncio.get_running_loop().time() > until:
                    raise
            await asyncio.sleep(pause * (0.5 + chance.random()))
            pause = min(2 * pause, 1.0)

    async def start(self, wishes: Sequence[NewStart]) -> list[Started]:
        """Starts executions, in one statement. To repeat it changes nothing."""
        return (await self.start_here(wishes, None, frozenset()))[0]

    async def start_here(self, wishes: Sequence[NewStart], worker: str | None, here: Collection[str]) -> tuple[list[Started], list[Claimed]]:
        """Starts executions; those of `here` begin as the worker's own, if they are new. Gives what became of each, and those that did."""
        kept = self._kept(wishes)
        rows = await self.again(
            "select * from flowdsl.start($1::uuid[],$2::text[],$3::text[],$4::int[],$5::text[],$6::text[],$7::text[],$8::bytea[],"
            "$9::uuid[],$10::text[],$11::bool[],$12::bool[],$13,$14::bool[])",
            *([getattr(wish, name) for wish in kept] for name in _STARTED),
            worker,
            [wish.id in here for wish in wishes],
        )
        found = {str(row["asked"]): Started(str(row["id"]), row["outcome"], row["status"]) for row in rows}
        began = {str(row["id"]): row["started"] for row in rows if row["mine"]}
        for wish in {wish.workflow: wish for wish in wishes if wish.id not in began}.values():  # of each one: whoever comes for it takes more
            self.hints.tell(wish.tenant, "", wish.id)
        return [found[wish.id] for wish in wishes], [_begun(wish, began[wish.id]) for wish in wishes if wish.id in began]

    async def begin(self, worker: str, wishes: Sequence[NewStart]) -> tuple[list[Started], list[Claimed]]:
        """Starts executions without a key or a parent as the worker's own. Gives what became of each, and those that began so."""
        kept = self._kept(wishes)
        try:
            rows = await self.again(
                "select * from flowdsl.begin($1, $2::uuid[], $3::text[], $4::text[], $5::int[], $6::bytea[])",
                worker,
                [w.id for w in wishes],
                [w.tenant for w in wishes],
                [w.workflow for w in wishes],
                [w.version for w in wishes],
                [w.request for w in kept],
            )
        except asyncpg.UniqueViolationError:
            return await self.start_here(wishes, worker, {wish.id for wish in wishes})
        began = {str(row["id"]): row["started"] for row in rows if row["mine"]}
        return [Started(wish.id, "new", "running") for wish in wishes], [_begun(wish, began[wish.id]) for wish in wishes if wish.id in began]

    def _kept(self, wishes: Sequence[NewStart]) -> Sequence[NewStart]:
        """With their inputs as rows hold them."""
        if not self.encryption.on:
            return wishes
        return [evolve(wish, request=self.encryption.encrypt(request_of(wish.tenant, wish.id), wish.request)) for wish in wishes]

    async def tenants(self, ids: Sequence[str]) -> dict[str, str]:
        rows = await self.again("select id, tenant from flowdsl.executions where id = any($1::uuid[])", list(ids))
        return {str(row["id"]): row["tenant"] for row in rows}

    async def load(self, ids: Sequence[str]) -> dict[str, list[Entry]]:
        """The live part of journals: from the newest checkpoint on, and the positions below it that it names; as rows hold them."""
        rows = await self.again(_LOAD, list(ids))
        found: dict[str, list[Entry]] = {id: [] for id in ids}
        for row in rows:
            found[str(row["execution"])].append(_entry(row))
        return found

    async def journal(self, id: str) -> list[Entry]:
        """The whole journal of an execution. Raises `KeyMissing`, `NotGenuine`."""
        rows = await self.again("select * from flowdsl.journal where execution = $1 order by position", id)
        return await self.opened(str(rows[0]["execution"]), [_entry(row) for row in rows]) if rows else []

    async def opened(self, id: str, entries: list[Entry]) -> list[Entry]:
        """Entries as they were recorded, if they are encrypted. Raises `KeyMissing`, `NotGenuine`."""
        if not any(encrypted_with(entry.body) for entry in entries):
            return entries
        return self.encryption.entries((await self.tenants([id])).get(id, ""), id, entries)

    async def mails(self, ids: Sequence[str]) -> dict[str, list[Mail]]:
        """What is in mailboxes, as rows hold it."""
        rows = await self.again("select * from flowdsl.mailbox where execution = any($1::uuid[]) order by execution, seq", list(ids))
        found: dict[str, list[Mail]] = {id: [] for id in ids}
        for row in rows:
            found[str(row["execution"])].append(Mail(row["seq"], row["kind"], row["name"], row["key"], row["body"]))
        return found

    async def children(self, ids: Sequence[str]) -> dict[str, tuple[str | None, bytes | None]]:
        """Of each: its parent, and its exit if it has ended. Raises `KeyMissing`, `NotGenuine`."""
        rows = await self.again(
            "select id, tenant, parent, case when status in ('succeeded', 'failed', 'cancelled') then exit end as exit from flowdsl.executions"
            " where id = any($1::uuid[])",
            list(ids),
        )
        return {
            str(row["id"]): (
                None if row["parent"] is None else str(row["parent"]),
                None if row["exit"] is None else self.encryption.decrypt(exit_of(row["tenant"], str(row["id"])), row["exit"]),
            )
            for row in rows
        }

    async def reclaim(self, worker: str, ids: Sequence[str]) -> list[Claimed]:
        """Those of these executions that are the worker's, in a new epoch."""
        rows = await self.again("select *, deaths > 0 as taken_over, false as blocked from flowdsl.reclaim($1, $2::uuid[])", worker, list(ids))
        return [claimed(row) for row in rows]

    async def existing(self, tenant: str, workflow: str, scope: str, keys: Sequence[str]) -> dict[str, Stored]:
        rows = await self.again(
            "select key, status from flowdsl.executions where tenant = $1 and workflow = $2 and scope = $3 and key = any($4::text[]) and current",
            tenant,
            workflow,
            scope,
            list(keys),
        )
        return {row["key"]: row["status"] for row in rows}

    async def send(self, tenant: str, to: str, kind: str, name: str, body: bytes, delivery: str) -> str:
        """Mail from outside: sent, again (the delivery id is known), ended, or unmatched."""
        body = self.encryption.encrypt(mail_of(tenant, to, kind, name), body)
        rows = await self.again("select flowdsl.send($1, $2, $3, $4, $5, $6)", tenant, to, kind, name, body, delivery)
        if rows[0][0] == "sent":
            self.hints.tell(tenant, name, to)
        return cast("str", rows[0][0])

    async def send_many(self, tenant: str, name: str, mails: Sequence[tuple[str, bytes, str]]) -> list[str]:
        """A signal to many executions, by id, each with its body and delivery id; in one commit. `unmatched`: there is none of that id."""
        rows = await self.again(
            "select flowdsl.send_many($1, $2::uuid[], $3, $4::bytea[], $5::text[])",
            tenant,
            [to for to, _, _ in mails],
            name,
            [self.encryption.encrypt(mail_of(tenant, to, "signal", name), body) for to, body, _ in mails],
            [delivery for _, _, delivery in mails],
        )
        outcomes = cast("list[str]", rows[0][0] or [])
        for (to, _, _), outcome in zip(mails, outcomes, strict=True):
            if outcome == "sent":
                self.hints.tell(tenant, name, to)
        return outcomes

    async def unmatched(self, tenant: str, limit: int, *, before: int | None = None) -> list[Any]:
        """Signals to correlation keys that nobody has waited for yet, newest first: name, key, delivery, body, at, seq.

        `before`: only those that came before the one of that `seq`. Raises `KeyMissing`, `NotGenuine`.
        """
        rows = await self.again(
            "select * from flowdsl.unmatched where tenant = $1 and ($3::bigint is null or seq < $3) order by seq desc limit $2", tenant, limit, before
        )
        return [{**dict(row), "body": self.encryption.decrypt(mail_of(tenant, row["key"], "signal", row["name"]), row["body"])} for row in rows]

    async def register(self, tenant: str, name: str, key: str, execution: str) -> None:
        await self.again("select flowdsl.register($1, $2, $3, $4)", tenant, name, key, execution)

    async def note(self, id: str, note: str, done: int | None, total: int | None) -> None:
        if self.encryption.on:
            note = self.encryption.encrypt_text(text_of((await self.tenants([id])).get(id, ""), id, "note"), note)
        await self.again(
            "insert into flowdsl.notes (execution, note, done, total) values ($1, $2, $3, $4) on conflict (execution)"
            " do update set note = excluded.note, done = excluded.done, total = excluded.total, at = clock_timestamp()",
            id,
            note,
            done,
            total,
        )

    async def block(self, worker: str, id: str, epoch: int, cause: str) -> None:
        """An execution of that worker's that needs a person, with the cause."""
        cause = cause.replace("\0", "\\0").encode(errors="backslashreplace").decode()
        if self.encryption.on and (tenant := (await self.tenants([id])).get(id)) is not None:
            cause = self.encryption.encrypt_text(text_of(tenant, id, "cause"), cause)
        await self.again(
            "update flowdsl.executions set status = 'blocked', owner = null, wake = null, cause = $4 where id = $2 and epoch = $3 and owner = $1",
            worker,
            id,
            epoch,
            cause,
        )

    async def put_off(self, worker: str, id: str, epoch: int, cause: str) -> None:
        """Lets go of an execution of that worker's that cannot go on there, for `AGAIN`. `cause` holds no payload."""
        await self.again(
            "update flowdsl.executions set owner = null, wake = clock_timestamp() + make_interval(secs => $5), cause = $4"
            " where id = $2 and epoch = $3 and owner = $1",
            worker,
            id,
            epoch,
            cause,
            AGAIN,
        )

    async def summary(self, id: str) -> Summary:
        """One execution. Raises `NotFound`."""
        try:
            rows = await self.again(_SUMMARY + " where x.id = $1::uuid", id)
        except (asyncpg.DataError, ValueError):
            rows = []
        if not rows:
            raise NotFound("execution", id)
        return self.summarized(rows[0])

    async def row(self, tenant: str, id: str) -> Any:
        """An execution as it is stored, with its input as it was given. Raises `NotFound`, `KeyMissing`, `NotGenuine`."""
        try:
            rows = await self.again("select * from flowdsl.executions where id = $1::uuid and tenant = $2", id, tenant)
        except (asyncpg.DataError, ValueError):
            rows = []
        if not rows:
            raise NotFound("execution", id)
        return {**dict(rows[0]), "request": self.encryption.decrypt(request_of(tenant, str(rows[0]["id"])), rows[0]["request"])}

    async def ended_badly(self, ids: Sequence[str]) -> list[str]:
        query = (
            "select x.id from unnest($1::uuid[]) as t(id) cross join lateral (select * from flowdsl.executions e where e.id = t.id offset 0) x"
            " where x.status in ('failed', 'cancelled') order by x.id"
        )
        return [str(row["id"]) for row in await self.again(query, list(ids))]

    async def correlation_keys(self, id: str) -> list[str]:
        return [row["key"] for row in await self.again("select distinct key from flowdsl.aliases where execution = $1", id)]

    async def audit(self, tenant: str, id: str | None, event: str, facts: bytes) -> None:
        await self.again("select flowdsl.audited($1, $2::uuid, $3, $4)", tenant, id, event, facts)

    async def dead(self, tenant: str, workflow: str | None, limit: int, *, after: tuple[datetime, str] | None = None) -> list[Summary]:
        """Executions that failed or are blocked, and that nobody retried or discarded; newest first, behind the one of that start and id."""
        return await self.summaries(tenant, Sought(workflow, dead=True), None if after is None else Place(*after), limit)

    async def by_key(self, tenant: str, workflow: str, key: str) -> Summary | None:
        rows = await self.again(
            _SUMMARY + " where x.tenant = $1 and x.workflow = $2 and x.scope = '' and x.key = $3 and x.current", tenant, workflow, key
        )
        return self.summarized(rows[0]) if rows else None

    async def summaries(self, tenant: str | None, sought: Sought, after: Place | None, limit: int) -> list[Summary]:
        """A page of executions, newest first, behind `after`."""
        return [self.summarized(row) for row in await self.again(_PAGE, *sought.arguments(tenant, after, limit))]

    async def list(self, *, workflow: str | None = None, status: str | None = None, parent: str | None = None, limit: int = 50) -> list[Summary]:
        """The newest executions that fit, of all tenants."""
        return await self.summaries(None, Sought(workflow, status, parent=parent), None, limit)

    def summarized(self, row: Any) -> Summary:
        """A row of `_SUMMARY`, for a person."""
        return _summary(row, self.encryption)


# `offset 0` keeps each part a scan of its own by (execution, position), whatever the planner thinks of the length of journals.
_LOAD = """
select j.* from unnest($1::uuid[]) as e(id)
  cross join lateral (
    select coalesce(max(c.position), 0) as position from flowdsl.journal c where c.execution = e.id and c.live is not null) as newest
  cross join lateral (select * from flowdsl.journal j where j.execution = e.id and j.position >= newest.position offset 0) as j
union all
select j.* from unnest($1::uuid[]) as e(id)
  cross join lateral (
    select c.live from flowdsl.journal c where c.execution = e.id and c.live is not null order by c.position desc limit 1) as newest
  cross join lateral unnest(newest.live) as span
  cross join lateral (
    select * from flowdsl.journal j where j.execution = e.id and j.position >= lower(span) and j.position < upper(span) offset 0) as j
order by execution, position
"""

_SUMMARY = """
select x.*, n.note, n.done, n.total, (select coalesce(max(j.position) + 1, 0) from flowdsl.journal j where j.execution = x.id) as entries
  from flowdsl.executions x left join flowdsl.notes n on n.execution = x.id
"""

# Each row of a page by its id, however many the planner takes a page to have.
_PAGE = """
select x.*, n.note, n.done, n.total, (select coalesce(max(j.position) + 1, 0) from flowdsl.journal j where j.execution = x.id) as entries
  from flowdsl.page($1, $2, $3, $4, $5, $6::uuid, $7, $8, $9, $10::uuid, $11, $12::uuid, $13) p
 cross join lateral (select * from flowdsl.executions e where e.id = p.id offset 0) x
  left join lateral (select * from flowdsl.notes o where o.execution = p.id offset 0) n on true
 order by p.started desc, p.id desc
"""


_STARTED = (
    *("id", "tenant", "workflow", "version", "scope", "key", "reuse", "request"),
    *("parent", "parent_step", "detached", "terminates"),
)
"""What `flowdsl.start` takes of a wish, in its order."""


def _begun(wish: NewStart, started: datetime) -> Claimed:
    """An execution that began as the worker's own."""
    return Claimed(
        wish.id,
        wish.tenant,
        wish.workflow,
        wish.version,
        wish.scope,
        wish.key,
        wish.parent,
        wish.detached,
        1,
        0,
        0,
        wish.request,
        started,
        False,
        False,
    )


def _entry(row: Any) -> Entry:
    live = row["live"]
    spans = None if live is None else tuple((one.lower, one.upper) for one in live)
    return Entry(row["position"], row["kind"], row["at"], row["step"], row["fingerprint"], row["site"], row["body"], spans)


def claimed(row: Any) -> Claimed:
    parent = row["parent"]
    return Claimed(
        str(row["id"]), row["tenant"], row["workflow"], row["version"], row["scope"], row["key"], None if parent is None else str(parent),
        row["detached"], row["epoch"], row["deaths"], row["mail"], row["request"], row["started"], row["taken_over"], row["blocked"],
    )  # fmt: skip


def _summary(row: Any, encryption: Encryption) -> Summary:
    id, tenant = str(row["id"]), row["tenant"]
    cause, note = (encryption.shown_text(text_of(tenant, id, what), row[what]) for what in ("cause", "note"))

    def text(name: str) -> str | None:
        return None if row[name] is None else str(row[name])

    return Summary(
        id, tenant, row["workflow"], row["version"], row["key"], row["status"], text("parent"), row["wake"], row["started"],
        row["ended"], row["exit"], cause, note, row["done"], row["total"], row["entries"], text("owner"), encryption,
    )  # fmt: skip
