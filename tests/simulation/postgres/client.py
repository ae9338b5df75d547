"""The client's side: connections and pools as asyncpg's are, to a model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from tests.simulation.postgres.transactions import in_place
from tests.simulation.postgres.values import shown

if TYPE_CHECKING:
    from tests.simulation.postgres.model import Model, Session

_ISOLATIONS = {"read_committed": "READ COMMITTED", "repeatable_read": "REPEATABLE READ", "serializable": "SERIALIZABLE"}


class Record(tuple[Any, ...]):
    """A row, by place or by name."""

    names: list[str]

    @staticmethod
    def of(values: Sequence[Any], names: list[str]) -> Record:
        made = Record(shown(value) for value in values)
        made.names = names
        return made

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            try:
                return tuple.__getitem__(self, self.names.index(key))
            except ValueError:
                raise KeyError(key) from None
        return tuple.__getitem__(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self.names

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self.names else default

    def keys(self) -> Iterator[str]:
        return iter(self.names)

    def values(self) -> Iterator[Any]:
        return iter(self)

    def items(self) -> Iterator[tuple[str, Any]]:
        return iter(zip(self.names, self, strict=True))

    def __repr__(self) -> str:
        return f"<Record {' '.join(f'{name}={value!r}' for name, value in self.items())}>"


class Connection:
    """As an `asyncpg.Connection`."""

    def __init__(self, session: Session, patience: float | None = None) -> None:
        self.session = session
        self._patience = patience
        self._closed = False
        self._why = ""
        self._task: asyncio.Task[Any] | None = None
        self._reply: asyncio.Future[Any] | None = None
        self._listeners: dict[str, list[Callable[..., Any]]] = {}
        self._ends: list[Callable[[Any], Any]] = []
        self.open_transactions = 0

    # Statements

    async def fetch(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> list[Record]:
        rows, names, _ = await self._send(query, args, timeout)
        return [Record.of(row, names) for row in rows]

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> Record | None:
        rows, names, _ = await self._send(query, args, timeout)
        return Record.of(rows[0], names) if rows else None

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        rows, _, _ = await self._send(query, args, timeout)
        return shown(rows[0][column]) if rows else None

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        return str((await self._send(query, args, timeout))[2])

    async def executemany(self, command: str, args: Iterable[Sequence[Any]], *, timeout: float | None = None) -> None:
        async with self.transaction():
            for one in args:
                await self._send(command, tuple(one), timeout)

    async def prepare(self, query: str, **_: Any) -> Prepared:
        return Prepared(self, query)

    async def _send(self, text: str, arguments: tuple[Any, ...], timeout: float | None) -> Any:
        await self._settled()
        self._check_open()
        if self._reply is not None:
            raise asyncpg.InterfaceError("cannot perform operation: another operation is in progress")
        loop = asyncio.get_running_loop()
        self._reply = reply = loop.create_future()
        self._task = loop.create_task(self._serve(text, arguments, reply), name=f"postgres-{self.session.pid}")
        try:
            async with asyncio.timeout(timeout if timeout is not None else self._patience):
                return await reply
        except (TimeoutError, asyncio.CancelledError):
            if not reply.done() or reply.cancelled():
                self.session.cancel()
            raise
        finally:
            self._reply = None

    async def _settled(self) -> None:
        """Until the server has done with a statement that was given up."""
        if self._reply is None and self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _serve(self, text: str, arguments: tuple[Any, ...], reply: asyncio.Future[Any]) -> None:
        from tests.simulation.postgres.model import Gone

        session = self.session
        error: BaseException | None = None
        found: Any = None
        try:
            found = await in_place(lambda: session.run(text, arguments))
        except Gone:
            session.end("terminating connection due to administrator command")
        except asyncio.CancelledError:
            session.busy = False
            session.end("the server was stopped")
            raise
        except BaseException as raised:
            error = raised
        if session.mute or session.orphan:
            session.mute = False
            session.end("the reply was lost")
        if reply.done():
            return
        if self._closed:
            reply.set_exception(_lost(self._why))
        elif error is not None:
            reply.set_exception(error)
        else:
            reply.set_result(found)

    # Transactions

    def transaction(self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False) -> Transaction:
        self._check_open()
        return Transaction(self, isolation, readonly)

    def is_in_transaction(self) -> bool:
        transaction = self.session.transaction
        return transaction is not None and transaction.block

    # Listening

    async def add_listener(self, channel: str, callback: Callable[..., Any]) -> None:
        self._check_open()
        self._listeners.setdefault(channel, []).append(callback)

    async def remove_listener(self, channel: str, callback: Callable[..., Any]) -> None:
        if callback in self._listeners.get(channel, []):
            self._listeners[channel].remove(callback)

    def hears(self, channel: str) -> bool:
        return not self._closed and bool(self._listeners.get(channel))

    def told(self, pid: int, channel: str, payload: str) -> None:
        if not self._closed:
            for callback in list(self._listeners.get(channel, ())):
                callback(self, pid, channel, payload)

    def add_termination_listener(self, callback: Callable[[Any], Any]) -> None:
        self._ends.append(callback)

    def remove_termination_listener(self, callback: Callable[[Any], Any]) -> None:
        if callback in self._ends:
            self._ends.remove(callback)

    # Ends

    async def close(self, *, timeout: float | None = None) -> None:
        if not self._closed:
            await self._settled()
            self.terminate()

    def terminate(self) -> None:
        """The client goes; a server that is in the middle of something notices when it has done it."""
        if self._closed:
            return
        self.session.orphan = True
        self.lose("connection is closed")
        if not self.session.busy:
            self.session.end("the client has gone")

    def lose(self, why: str = "connection was closed in the middle of operation") -> None:
        """The connection is no more, as the client learns now."""
        if self._closed:
            return
        self._closed, self._why = True, why
        reply = self._reply
        if reply is not None and not reply.done():
            reply.set_exception(_lost(why))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # the run is over, and who was still at work in it is being forgotten
            return
        for callback in self._ends:
            loop.call_soon(callback, self)

    def is_closed(self) -> bool:
        return self._closed

    def get_server_pid(self) -> int:
        return self.session.pid

    def get_settings(self) -> Any:
        return self.session.model.settings

    def get_server_version(self) -> Any:
        return asyncpg.ServerVersion(18, 1, 0, "final", 0)

    async def reset(self, *, timeout: float | None = None) -> None:
        self._check_open()
        self._listeners.clear()
        if self.is_in_transaction():
            await self.execute("ROLLBACK")
        self.session._settings = {
            name: value for name, value in self.session._settings.items() if name in ("application_name", "jit", "lock_timeout")
        }

    def _check_open(self) -> None:
        if self._closed:
            raise asyncpg.InterfaceError("connection is closed")


def _lost(why: str) -> BaseException:
    return asyncpg.ConnectionDoesNotExistError(f"connection was closed in the middle of operation ({why})" if why else "connection was closed")


class Prepared:
    def __init__(self, connection: Connection, query: str) -> None:
        self._connection, self._query = connection, query

    async def fetch(self, *args: Any, timeout: float | None = None) -> list[Record]:
        return await self._connection.fetch(self._query, *args, timeout=timeout)

    async def fetchrow(self, *args: Any, timeout: float | None = None) -> Record | None:
        return await self._connection.fetchrow(self._query, *args, timeout=timeout)

    async def fetchval(self, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        return await self._connection.fetchval(self._query, *args, column=column, timeout=timeout)


class Transaction:
    """As asyncpg's: a block, or a savepoint inside of one."""

    def __init__(self, connection: Connection, isolation: str | None, readonly: bool) -> None:
        self._connection, self._isolation, self._readonly = connection, isolation, readonly
        self._savepoint: str | None = None
        self._state = "new"

    async def start(self) -> None:
        connection = self._connection
        if self._state != "new":
            raise asyncpg.InterfaceError("cannot start; the transaction is already started")
        if connection.is_in_transaction():
            connection.open_transactions += 1
            self._savepoint = f"__asyncpg_savepoint_{connection.open_transactions}__"
            await connection.execute(f"SAVEPOINT {self._savepoint};")
        else:
            isolation = f" ISOLATION LEVEL {_ISOLATIONS[self._isolation]}" if self._isolation else ""
            await connection.execute(f"BEGIN{isolation}{' READ ONLY' if self._readonly else ''};")
        self._state = "started"

    async def commit(self) -> None:
        self._check("commit")
        self._state = "committed"
        await self._connection.execute(f"RELEASE SAVEPOINT {self._savepoint};" if self._savepoint else "COMMIT;")

    async def rollback(self) -> None:
        self._check("rollback")
        self._state = "rolledback"
        await self._connection.execute(f"ROLLBACK TO {self._savepoint};" if self._savepoint else "ROLLBACK;")

    def _check(self, what: str) -> None:
        if self._state != "started":
            raise asyncpg.InterfaceError(f"cannot {what}; the transaction is in state {self._state}")

    async def __aenter__(self) -> Transaction:
        await self.start()
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._connection._check_open()
        if kind is not None:
            await self.rollback()
        else:
            await self.commit()


class _Acquiring:
    """`await pool.acquire()` and `async with pool.acquire()`."""

    def __init__(self, pool: Pool, timeout: float | None) -> None:
        self._pool, self._timeout = pool, timeout
        self._connection: Connection | None = None

    def __await__(self) -> Any:
        return self._pool._take(self._timeout).__await__()

    async def __aenter__(self) -> Connection:
        self._connection = await self._pool._take(self._timeout)
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        connection, self._connection = self._connection, None
        await self._pool.release(connection)


class Pool:
    """As an `asyncpg.Pool`: opens connections when they are needed, and keeps them."""

    def __init__(self, model: Model, options: dict[str, Any]) -> None:
        self._model, self._options = model, options
        self._size = options.get("max_size", 10)
        self._init: Callable[[Connection], Awaitable[None]] | None = options.get("init")
        self._reset: Callable[[Connection], Awaitable[None]] | None = options.get("reset")
        self._free: deque[Connection] = deque()
        self._out: dict[Connection, None] = {}
        self._opening = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closing = self._closed = False

    def is_closing(self) -> bool:
        return self._closing or self._closed

    def acquire(self, *, timeout: float | None = None) -> _Acquiring:
        return _Acquiring(self, timeout)

    async def _take(self, timeout: float | None) -> Connection:
        if self.is_closing():
            raise asyncpg.InterfaceError("pool is closing" if not self._closed else "pool is closed")
        async with asyncio.timeout(timeout):
            while True:
                while self._free:
                    connection = self._free.pop()
                    if not connection.is_closed():
                        self._out[connection] = None
                        return connection
                if len(self._out) + self._opening < self._size:
                    break
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                try:
                    await waiter
                except BaseException:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)
                    else:
                        self._next()
                    raise
        return await self._open()

    async def _open(self) -> Connection:
        self._opening += 1
        connection: Connection | None = None
        try:
            connection = await self._model.connect(**self._options)
            if self._init is not None:
                await self._init(connection)
        except BaseException:
            if connection is not None:
                connection.terminate()
            self._opening -= 1
            self._next()
            raise
        self._opening -= 1
        self._out[connection] = None
        return connection

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        if connection is None or connection not in self._out:
            return
        try:
            if not connection.is_closed():
                await connection._settled()
                if not connection.is_closed():
                    await (self._reset(connection) if self._reset is not None else connection.reset())
        except BaseException:
            connection.terminate()
            raise
        finally:
            self._out.pop(connection, None)
            if not connection.is_closed() and not self._closed:
                self._free.append(connection)
            self._next()

    def _next(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    @asynccontextmanager
    async def _one(self) -> AsyncGenerator[Connection]:
        async with self.acquire() as connection:
            yield connection

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[Record]:
        async with self._one() as connection:
            return await connection.fetch(query, *args, timeout=timeout)

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None) -> Record | None:
        async with self._one() as connection:
            return await connection.fetchrow(query, *args, timeout=timeout)

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        async with self._one() as connection:
            return await connection.fetchval(query, *args, column=column, timeout=timeout)

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        async with self._one() as connection:
            return await connection.execute(query, *args, timeout=timeout)

    async def close(self) -> None:
        """Waits for those that are in use."""
        self._closing = True
        while self._out or self._opening:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        self.terminate()

    def terminate(self) -> None:
        self._closing = self._closed = True
        for connection in [*self._free, *self._out]:
            connection.terminate()
        self._free.clear()

    def get_size(self) -> int:
        return len(self._free) + len(self._out)

    def get_idle_size(self) -> int:
        return len(self._free)
