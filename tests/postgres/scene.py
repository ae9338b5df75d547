"""Rows and turns for tests that play several workers by hand, each on a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg

from flowdsl.activation import Mail, NewChild, Sent, Turn
from flowdsl.journal import Entry
from flowdsl.postgres import committer
from flowdsl.postgres.committer import Commit

T = TypeVar("T")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PATIENCE = 60.0


def an_id(number: int = 0) -> str:
    """An id; with a number, one that sorts by it."""
    return str(UUID(int=number << 64 | uuid4().int >> 64)) if number else str(uuid4())


def entry(position: int, body: bytes = b"null", *, kind: int = 1, step: str | None = None, live: tuple[tuple[int, int], ...] | None = None) -> Entry:
    return Entry(position, kind, NOON, str(position) if step is None else step, "perform a 0", "body a.py:1", body, live)


def entries(*positions: int, body: bytes = b"null") -> list[Entry]:
    return [entry(position, body) for position in positions]


def child(id: str, step: str, *, detached: bool = False) -> NewChild:
    return NewChild(id, "w", 1, None, b"null", step, detached)


def mail(to: str, name: str = "news", *, kind: Any = "signal", body: bytes = b"1") -> Sent:
    return Sent(to, kind, name, body, uuid4().hex)


def turn(
    execution: str, epoch: int = 1, *, state: str | None = None, seen: int = 0, exit: bytes | None = None, wake: Any = None, **parts: Any
) -> Commit:
    """A turn as a worker hands it to its committer; `parts` are those of `Turn`."""

    def nobody(*_: Any) -> None: ...

    return Commit(execution, epoch, "default", Turn(**parts), nobody, nobody, state, wake, seen, exit)


async def send(connection: Any, worker: str, *turns: Commit, narrow: bool | None = None) -> list[str]:
    """Sends a batch as a committer does, and gives the fate of each turn."""
    batch = sorted(turns, key=lambda one: one.execution)
    light = all(one.narrow for one in batch) if narrow is None else narrow
    write = committer._append if light else committer._commit
    try:
        found = await write(connection, worker, batch)
    except asyncpg.UniqueViolationError:
        found = await write(connection, worker, batch, careful=True)
    fates = dict(zip((one.execution for one in batch), found or ["done"] * len(batch), strict=True))
    return [fates[one.execution] for one in turns]


class Scene:
    """One database and those who play in it."""

    def __init__(self, dsn: str, watcher: Any) -> None:
        self.dsn, self.watcher = dsn, watcher
        self._connections: list[Any] = []

    async def connection(self) -> Any:
        connection = await asyncpg.connect(self.dsn)
        self._connections.append(connection)
        return connection

    async def worker(self, *, lease: float = 60, silent_for: float = 0) -> str:
        id = str(uuid4())
        await self.watcher.execute(
            "insert into flowdsl.workers (id, lease, host, pid, beat) values ($1, make_interval(secs => $2), 'h', 1, clock_timestamp() - make_interval(secs => $3))",
            id,
            lease,
            silent_for,
        )
        return id

    async def execution(self, owner: str | None = None, *, id: str | None = None, epoch: int = 1, **columns: Any) -> str:
        """A row; owned executions are running at epoch 1 unless said otherwise."""
        values: dict[str, Any] = {
            "id": id or an_id(), "tenant": "default", "workflow": "w", "version": 1, "request": b"null", "owner": owner, "epoch": epoch, **columns,
        }  # fmt: skip
        names, marks = ", ".join(values), ", ".join(f"${n}" for n in range(1, len(values) + 1))
        await self.watcher.execute(f"insert into flowdsl.executions ({names}) values ({marks})", *values.values())
        return str(values["id"])

    async def row(self, id: str) -> Any:
        return await self.watcher.fetchrow("select * from flowdsl.executions where id = $1", id)

    async def positions(self, id: str) -> list[tuple[int, int]]:
        """(position, epoch) of its journal."""
        rows = await self.watcher.fetch("select position, epoch from flowdsl.journal where execution = $1 order by position", id)
        return [(row["position"], row["epoch"]) for row in rows]

    async def mailbox(self, id: str) -> list[Mail]:
        rows = await self.watcher.fetch("select * from flowdsl.mailbox where execution = $1 order by seq", id)
        return [Mail(row["seq"], row["kind"], row["name"], row["key"], row["body"]) for row in rows]

    async def count(self, table: str, where: str = "true") -> int:
        return int(await self.watcher.fetchval(f"select count(*) from flowdsl.{table} where {where}"))

    async def waits(self, connection: Any) -> None:
        """Until that connection's statement waits for a lock."""
        pid = connection.get_server_pid()

        async def blocked() -> bool:
            return bool(await self.watcher.fetchval("select cardinality(pg_blocking_pids($1)) > 0", pid))

        await eventually(blocked, f"backend {pid} waits for a lock")

    async def blocked(self, connection: Any, work: Awaitable[T]) -> asyncio.Future[T]:
        """Starts a statement on a connection, and returns once it waits for a lock."""
        task: asyncio.Future[T] = asyncio.ensure_future(work)
        await self.waits(connection)
        assert not task.done()
        return task

    async def close(self) -> None:
        for connection in self._connections:
            connection.terminate()


@asynccontextmanager
async def scene_at(dsn: str) -> AsyncIterator[Scene]:
    watcher = await asyncpg.connect(dsn)
    scene = Scene(dsn, watcher)
    try:
        yield scene
    finally:
        await scene.close()
        watcher.terminate()


async def eventually(check: Any, what: str, patience: float = PATIENCE) -> None:
    """Asks until the answer is yes; fails loudly when it never is."""
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        answer = check()
        if await answer if asyncio.iscoroutine(answer) else answer:
            return
        assert asyncio.get_running_loop().time() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.005)


START = (
    "select * from flowdsl.start($1::uuid[],$2::text[],$3::text[],$4::int[],$5::text[],$6::text[],$7::text[],$8::bytea[],"
    "$9::uuid[],$10::text[],$11::bool[])"
)


async def start(
    connection: Any, *keys: str | None, reuse: str = "join", ids: Sequence[str] = (), parent: str | None = None, step: str = "0", scope: str = ""
) -> list[tuple[str, str, str]]:
    """Starts one execution of workflow `w` a key: (id, outcome, status), in the order asked."""
    asked = list(ids) or [an_id() for _ in keys]
    n = len(keys)
    rows = await connection.fetch(
        START, asked, ["default"] * n, ["w"] * n, [1] * n, [scope] * n, list(keys), [reuse] * n, [b"null"] * n, [parent] * n, [step] * n, [False] * n
    )
    found = {str(row["asked"]): (str(row["id"]), row["outcome"], row["status"]) for row in rows}
    return [found[id] for id in asked]


async def claim(connection: Any, worker: str, *, limit: int = 10, workflows: Sequence[str] = ("w",), suspect: bool = True) -> list[Any]:
    return list(await connection.fetch("select * from flowdsl.claim($1, $2, $3, $4)", worker, limit, list(workflows), suspect))
