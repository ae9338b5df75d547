"""One committer for all executions of a process: whatever has gathered goes out in one call, one round trip, one commit.

While a batch is in flight the next one gathers. Alone, a turn leaves at once. A batch whose outcome is unknown is sent again as it was: the
commit functions say of each turn what became of it. Nothing is ever decided by a SELECT.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import asyncpg
import structlog
from attrs import define, evolve

from flowdsl import chance
from flowdsl.activation import Turn
from flowdsl.errors import FlowError
from flowdsl.postgres import columns
from flowdsl.postgres.store import full, lost, reason, refuses, trace

if TYPE_CHECKING:
    from flowdsl.postgres.watching import Watch

ENDED = ("succeeded", "failed", "cancelled")

Fate: TypeAlias = Literal["done", "awake", "again", "left", "fenced"]
"""done: recorded · awake: recorded, but not suspended, since mail came · again: was recorded before · left: another owner was first · fenced: this
worker was declared gone."""

log = structlog.get_logger("flowdsl")

TURNS = 512
ROWS = 4096
BYTES = 4 << 20
"""What one batch may hold. A turn that has more goes out in parts, where that does no harm, else alone."""
REPLY = 60.0
"""Seconds without an answer after which a connection is taken for dead."""
ASIDE = 1.0
"""Seconds that a turn is put aside when something locks a row that it needs."""


@define(eq=False)
class Commit:
    """A turn on its way to the store, and who is told its fate."""

    execution: str
    epoch: int
    tenant: str
    turn: Turn
    told: Callable[[Commit, Fate], None]
    refused: Callable[[Commit, str], None]
    state: str | None = None
    wake: datetime | None = None
    seen: int = 0
    exit: bytes | None = None
    cause: str | None = None
    rows: int = 0
    size: int = 0
    """How much it is, once it is submitted."""

    @property
    def narrow(self) -> bool:
        """Entries, mail that they take, perhaps an end, and nothing else: the light statement will do."""
        turn = self.turn
        if turn.children or turn.mails or turn.cancels or turn.audits:
            return False
        return bool(turn.entries) and (self.state is None or self.state in ENDED)


class Committer:
    """Owns one connection. `submit` never blocks; each commit's fate is told once."""

    def __init__(self, worker: str, connect: Callable[[], Awaitable[Any]], *, pooled: bool = False) -> None:
        self._worker, self._connect = worker, connect
        self._patience = _PATIENCE if pooled else ""
        self._queue: list[Commit] = []
        self._under_way: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._connection: Any = None
        self._task: asyncio.Task[None] | None = None
        self.batches = self.turns = 0
        self.watch: Watch | None = None
        """Who is told of each batch, if somebody wants to know."""
        self.kept: Callable[[Commit], Commit] | None = None
        """Makes of a turn what its rows will hold, where that is something else."""
        self.full = False
        """Whether the store has no room just now: then it is no use to take on more."""

    async def open(self) -> None:
        """Raises `StoreError` when the database cannot be reached."""
        self._connection = await self._connect()
        self._task = asyncio.create_task(self._run(), name="flowdsl-committer")

    async def close(self) -> None:
        """What was submitted still goes out, for a while; then the connection is closed."""
        for _ in range(200):
            if self._task is None or self._task.done() or not self._under_way:
                break
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._connection is not None:
            self._connection.terminate()

    async def abandon(self) -> None:
        """Nothing that was submitted goes out any more."""
        self._queue.clear()
        self._under_way.clear()
        await self.close()

    def submit(self, commit: Commit) -> None:
        parts = _parts(commit if self.kept is None else self.kept(commit))
        self._under_way[commit.execution] = self._under_way.get(commit.execution, 0) + 1
        self._enqueue(parts[0] if len(parts) == 1 else _first(parts, self.submit))

    def has(self, execution: str) -> bool:
        """Whether the fate of a turn of that execution is still open."""
        return execution in self._under_way

    def _enqueue(self, commit: Commit) -> None:
        self._queue.append(commit)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            if not self._queue:
                await asyncio.sleep(0)  # what follows at once from the last batch is here then, and nobody need be woken for it
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
            await self._send(self._gathered())

    def _gathered(self) -> list[Commit]:
        """As much as fits. Of an execution whose machine was thrown away two turns may be queued: they never share a batch."""
        batch: dict[str, Commit] = {}
        left: list[Commit] = []
        rows = size = 0
        for index, commit in enumerate(self._queue):
            rows, size = rows + commit.rows, size + commit.size
            if batch and (len(batch) == TURNS or rows > ROWS or size > BYTES):
                left += self._queue[index:]
                break
            if batch.setdefault(commit.execution, commit) is not commit:
                left.append(commit)
        self._queue = left
        return sorted(batch.values(), key=_execution)

    async def _send(self, batch: list[Commit]) -> None:
        """Sends a batch until its fate is known. The one turn that Postgres refuses, or that something holds up, is found by halving."""
        began = asyncio.get_running_loop().time()
        try:
            fates = await self._repeated(batch)
        except _Held as held:
            if len(batch) > 1:
                await self._halved(batch)
            else:
                log.warning("turn.put_aside", execution=batch[0].execution, error=str(held))
                asyncio.get_running_loop().call_later(ASIDE, self._enqueue, batch[0])
        except Exception as error:
            if len(batch) > 1:
                await self._halved(batch)
            else:
                reason = f"Postgres refuses to record this turn: {error}"
                self._settle(batch[0], batch[0].refused, reason)
        else:
            self.batches += 1
            self.turns += len(batch)
            if self.watch is not None:
                self.watch.recorded(batch, fates, asyncio.get_running_loop().time() - began)
            for commit, fate in zip(batch, fates, strict=True):
                self._settle(commit, commit.told, fate)

    async def _halved(self, batch: list[Commit]) -> None:
        await self._send(batch[: len(batch) // 2])
        await self._send(batch[len(batch) // 2 :])

    def _settle(self, commit: Commit, tell: Callable[[Commit, Any], None], what: Fate | str) -> None:
        left = self._under_way.get(commit.execution, 0) - 1
        if left > 0:
            self._under_way[commit.execution] = left
        else:
            self._under_way.pop(commit.execution, None)
        try:
            tell(commit, what)
        except Exception as error:  # of one execution: the others must not lose their committer by it
            log.error("turn.failed", execution=commit.execution, traceback=trace(error))

    async def _repeated(self, batch: list[Commit]) -> Sequence[Fate]:
        """The fates of a batch. Lost connections, deadlocks and a store that is away are waited out; values that are refused are raised."""
        tries = 0
        while True:
            try:
                if self._connection is None or self._connection.is_closed():
                    self._connection = await self._connect()
                send = _append if all(commit.narrow for commit in batch) else _commit
                try:
                    found = await send(self._connection, self._worker, batch, self._patience)
                except asyncpg.UniqueViolationError:  # of one of them the position is taken: which, is found with care
                    found = await send(self._connection, self._worker, batch, self._patience, careful=True)
                self.full = False
                return cast("Sequence[Fate]", found if found is not None else ["done"] * len(batch))
            except Exception as error:
                if not (isinstance(error, (asyncpg.PostgresError, FlowError)) or lost(error)):
                    raise  # it could not even be written down
                if refuses(error):
                    raise
                self._drop(error)
                tries += 1
                self.full = full(error)
                waited_out = self.full or lost(error) or isinstance(error, (FlowError, asyncpg.DeadlockDetectedError, asyncpg.SerializationError))
                if isinstance(error, asyncpg.LockNotAvailableError) or (tries >= 3 and not waited_out):
                    raise _Held(str(error)) from error
            await asyncio.sleep(min(0.02 * 2**tries, 2.0) * (0.5 + chance.random()))

    def _drop(self, error: BaseException) -> None:
        """A connection that failed is never used again: it may hold a hidden transaction."""
        log.warning("commit.repeated", error=reason(error))
        if self.watch is not None:
            self.watch.repeated()
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None


class _Held(Exception):
    """Something keeps a batch from being recorded, and it is not the connection: a lock, a missing right."""


def _execution(commit: Commit) -> str:
    return commit.execution


def _measured(commit: Commit) -> Commit:
    commit.rows, commit.size = _rows(commit.turn), _bytes(commit.turn)
    return commit


def _rows(turn: Turn) -> int:
    return len(turn.entries) + len(turn.children) + len(turn.mails) + len(turn.takes)


def _bytes(turn: Turn) -> int:
    size = 0
    for entry in turn.entries:
        size += len(entry.body)
    for child in turn.children:
        size += len(child.request)
    for mail in turn.mails:
        size += len(mail.body)
    return size


# Turns that are too big: thousands of children at once


def _parts(commit: Commit) -> list[Commit]:
    """The turn as several, in order; each begins where the one before it ends, and the last one has what is not an entry or a child.

    Mail, in or out, belongs to an entry that must not be recorded without it: such a turn stays whole.
    """
    turn = _measured(commit).turn
    if (commit.rows <= ROWS and commit.size <= BYTES) or turn.takes or turn.mails or turn.cancels or turn.audits:
        return [commit]
    children = {child.step: child for child in turn.children}
    parts, room = [Turn()], (ROWS, BYTES)
    for entry in turn.entries:
        child = children.get(entry.step)
        rows, size = (1, len(entry.body)) if child is None else (2, len(entry.body) + len(child.request))
        if parts[-1].entries and (room[0] < rows or room[1] < size):
            parts.append(Turn())
            room = (ROWS, BYTES)
        room = (room[0] - rows, room[1] - size)
        parts[-1].entries.append(entry)
        if child is not None:
            parts[-1].children.append(child)
    found = [evolve(commit, turn=part, state=None, exit=None, cause=None) for part in parts[:-1]]
    last = copy(turn)
    last.entries, last.children = parts[-1].entries, parts[-1].children
    found.append(evolve(commit, turn=last))
    return [_measured(part) for part in found]


def _first(parts: list[Commit], submit: Callable[[Commit], None]) -> Commit:
    """The first of them; each is submitted once the one before it is recorded. What became of the last became of the whole."""
    first, rest = parts[0], parts[1:]
    if not rest:
        return first

    def told(part: Commit, fate: Fate) -> None:
        if fate in ("done", "again"):
            submit(_first(rest, submit))
        else:
            rest[-1].told(rest[-1], fate)

    def refused(part: Commit, reason: str) -> None:
        rest[-1].refused(rest[-1], reason)

    return evolve(first, told=told, refused=refused)


_PATIENCE = " from set_config('lock_timeout', '2000', true)"
"""For a connection that cannot keep a setting of its own."""


async def _append(connection: Any, worker: str, batch: list[Commit], patience: str = "", careful: bool = False) -> Any:
    if len(batch) == 1 and len(batch[0].turn.entries) == 1 and not (careful or patience or batch[0].turn.takes):
        statement, *given = columns.append_one(worker, batch[0])
        if await connection.fetchval(statement, *given, timeout=REPLY):
            return None
    statement, *given = columns.append(worker, batch, careful)
    return await connection.fetchval(statement + patience, *given, timeout=REPLY)


async def _commit(connection: Any, worker: str, batch: list[Commit], patience: str = "", careful: bool = False) -> Any:
    statement, *given = columns.commit(worker, batch, careful)
    return await connection.fetchval(statement + patience, *given, timeout=REPLY)
