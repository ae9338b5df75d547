"""A Postgres server in memory, and what can happen to it: its sessions, its commits, its faults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import md5
from typing import Any

import asyncpg
from asyncpg.pgproto.pgproto import UUID

from flowdsl.postgres import schema
from tests.simulation.postgres.catalog import DEFINES, Call, Catalog, Statement
from tests.simulation.postgres.client import Connection, Pool
from tests.simulation.postgres.tables import Row, Rows, Snapshot
from tests.simulation.postgres.transactions import ALWAYS, Savepoint, Transaction, Waits, wait
from tests.simulation.postgres.values import Unsupported, fail, text_of

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""What the server's clock shows when the event loop's shows 0."""
Pause = Callable[["Session", str], "Awaitable[None] | None"]


class Gone(BaseException):
    """The session was ended from outside."""


@cache
def migrated() -> tuple[Catalog, list[tuple[str, str]]]:
    """The catalog with all our tables and functions, and what the table of migrations says."""
    catalog = Catalog().derive(
        "create schema flowdsl; create table flowdsl.migrations"
        " (name text primary key, checksum text not null, at timestamptz not null default clock_timestamp())"
    )
    names: list[tuple[str, str]] = []
    for name, text in [*schema._numbered("flowdsl", schema._OURS / "migrations"), (schema.FUNCTIONS, schema._functions())]:
        catalog = catalog.derive(text)
        names.append((name, schema._checksum(text)))
    return catalog, names


class Model:
    """One database. `functions`: other text of our SQL functions, for one with a fault planted in it.

    `pause` is awaited wherever a server may let another session go first: (session, where), with where one of arrive, statement, lock, insert,
    commit, reply.
    """

    def __init__(self, name: str = "flowdsl", *, functions: str | None = None) -> None:
        self.name = name
        catalog, names = migrated()
        self.catalog = catalog if functions is None else catalog.derive(functions)
        self.rows: dict[str, Rows] = {table: Rows(found) for table, found in self.catalog.tables.items()}
        self.sessions: dict[int, Session] = {}
        self.pause: Pause | None = None
        self.lossy: Callable[[Session, str, str], bool] | None = None
        """Asked of each notification for each listener: whether it is lost."""
        self.commits = 0
        self.written = 1000
        self.timeline, self.system, self.standby = 1, 7_000_000_000_000_000_001, False
        self.queue_usage = 0.0
        self.deadlock_timeout = 1.0
        self.skew = timedelta()
        self.settings = {
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
            "server_version_num": "180001",
            "server_version": "18.1",
        }
        self.advisory: dict[int, Transaction] = {}
        self.broken: list[str] = []
        """What this model could not do, and a server could: never to be taken for an error of Postgres."""
        self._garbage: list[Row] = []
        self._pids = 1000
        self._ids = 0
        self._refused_until = -1.0
        for migration, checksum in names:
            rows = self.rows["flowdsl.migrations"]
            rows.insert([migration, checksum, EPOCH], ALWAYS, 0)

    # Time

    def now(self) -> datetime:
        try:
            time = asyncio.get_running_loop().time()
        except RuntimeError:
            time = 0.0
        return EPOCH + timedelta(microseconds=round(time * 1e6)) + self.skew

    def jump(self, seconds: float) -> None:
        """Sets the server's clock forward or back."""
        self.skew += timedelta(seconds=seconds)

    def an_id(self) -> UUID:
        """One that no other call gave; the same in each run."""
        self._ids += 1
        return UUID(md5(b"%d" % self._ids, usedforsecurity=False).digest())

    # Clients

    async def connect(self, dsn: str | None = None, **options: Any) -> Connection:
        """As `asyncpg.connect`."""
        self._check_open()
        settings = dict(options.get("server_settings") or {})
        self._pids += 1
        session = Session(self, self._pids, settings)
        connection = Connection(session, options.get("command_timeout"))
        session.client = connection
        self.sessions[session.pid] = session
        hook = self.pause(session, "connect") if self.pause is not None else None
        if hook is not None:
            await hook
            if session.dead:
                raise ConnectionResetError("connection was closed while it was opened")
        return connection

    async def create_pool(self, dsn: str | None = None, **options: Any) -> Pool:
        """As `asyncpg.create_pool`."""
        return Pool(self, options)

    def _check_open(self) -> None:
        if asyncio.get_running_loop().time() < self._refused_until:
            raise ConnectionRefusedError(111, "the server is away")

    # Faults

    def kill(self, session: Session) -> None:
        """Ends a session at once, as pg_terminate_backend or a cut cable that both sides have seen: what it had not committed is undone."""
        session.end("terminating connection due to administrator command")

    def terminate(self, pid: int) -> bool:
        session = self.sessions.get(pid)
        if session is None:
            return False
        if session.busy and session.interruptible is None:
            session.doomed = True  # itself, or one that is not waiting: at its next stop
        else:
            self.kill(session)
        return True

    def lose_reply(self, session: Session) -> None:
        """The reply to the statement under way, or else the next one, never arrives: what it did stays done."""
        session.mute = True

    def cut(self, session: Session) -> None:
        """The client finds its connection lost at once; the server goes on with what it was doing, commits it, and only then notices."""
        session.cut()

    def commit_late(self, session: Session, seconds: float) -> None:
        """At its next commit the client finds its connection lost; the commit happens so much later."""
        session.late = seconds

    def restart(self, away: float = 0.0) -> None:
        """All connections die, all open transactions are undone; sequences and everything committed stay."""
        self.refuse(asyncio.get_running_loop().time() + away)
        for session in list(self.sessions.values()):
            session.end("terminating connection due to unexpected postmaster exit")

    def refuse(self, until: float) -> None:
        """No connection is accepted before that time of the event loop."""
        self._refused_until = until

    # Commits

    def define(self, text: str) -> None:
        """A text of definitions takes effect."""
        self.catalog = self.catalog.derive(text)
        for name, table in self.catalog.tables.items():
            held = self.rows.get(name)
            if held is None:
                self.rows[name] = Rows(table)
                continue
            held.table = table
            for column in table.lookups:
                held.add_lookup(column)
        for name in [name for name in self.rows if name not in self.catalog.tables]:
            del self.rows[name]

    def commit(self, transaction: Transaction) -> None:
        self.commits += 1
        transaction.committed = self.commits
        self.written += 100
        touched = transaction.touched
        transaction.finish()
        self._vacuum(touched)
        for channel, payload in transaction.notices:
            self._notify(channel, payload, transaction.session)

    def _vacuum(self, touched: list[Row]) -> None:
        """Forgets versions that nobody can see any more."""
        horizon = min((session.sees_since for session in self.sessions.values() if session.sees_since is not None), default=self.commits)
        waiting, self._garbage = self._garbage, []
        for row in dict.fromkeys([*waiting, *touched]):
            for version in list(row.versions):
                ended = version.xmax
                if ended is not None and ended.committed is not None:
                    if ended.committed <= horizon:
                        row.rows.drop(version)
                    else:
                        self._garbage.append(row)

    def _notify(self, channel: str, payload: str, source: Session | None) -> None:
        for session in list(self.sessions.values()):
            client = session.client
            if client is not None and client.hears(channel) and not (self.lossy is not None and self.lossy(session, channel, payload)):
                asyncio.get_running_loop().call_soon(client.told, source.pid if source is not None else 0, channel, payload)

    # What is stored, without a session

    def table(self, name: str) -> list[dict[str, Any]]:
        """The committed rows of a table, in the order of their primary key."""
        rows = self.rows[name if "." in name else f"flowdsl.{name}"]
        snapshot = Snapshot(Transaction(None, None), self.commits, 0)
        names = [column.name for column in rows.table.columns]
        found = [dict(zip(names, version, strict=True)) for version in rows.visible(snapshot)]
        key = [names[column] for column in rows.table.uniques[0].columns] if rows.table.uniques else names[:1]
        return sorted(found, key=lambda row: [str(row[one]) if not isinstance(row[one], (int, str)) else row[one] for one in key])


class Session:
    """The server's side of one connection."""

    def __init__(self, model: Model, pid: int, settings: dict[str, str]) -> None:
        self.model, self.pid = model, pid
        self.name = settings.get("application_name", "")
        self.client: Connection | None = None
        self.transaction: Transaction | None = None
        self.statement_at = EPOCH
        self.blocked_by: Transaction | None = None
        self.interruptible: asyncio.Future[None] | None = None
        self.sees_since: int | None = None
        self.busy = self.dead = self.mute = self.doomed = self.orphan = False
        self.cancelled = False
        self.late: float | None = None
        self.statement = ""
        """What it is at, or was at last."""
        self._settings = dict(settings)
        self._depth = 0

    # Statements

    def run(self, text: str, arguments: tuple[Any, ...]) -> tuple[list[Any], list[str], str]:
        """Rows, the names of their columns, and what was done; to be called in place."""
        self.busy, self.statement, self.cancelled = True, text, False
        try:
            self.pause("arrive")
            self.statement_at = self.model.now()
            found: tuple[list[Any], list[str], str] = ([], [], "")
            for statement in self.model.catalog.plan(text):
                found = self._one(statement, arguments)
            self.pause("reply")
            return found
        except Gone:
            self._abort()
            raise
        except asyncpg.PostgresError:
            raise
        except Exception as error:
            self.model.broken.append(f"{type(error).__name__}: {error}; at: {text}")
            raise
        finally:
            self.busy = False
            self.sees_since = self.transaction.frozen.at if self.transaction is not None and self.transaction.frozen is not None else None

    def _one(self, statement: Statement, arguments: tuple[Any, ...]) -> tuple[list[Any], list[str], str]:
        if statement.kind == "TransactionStmt":
            return [], [], self._transact(statement.node["TransactionStmt"])
        alone = self.transaction is None
        if self.transaction is None:
            self._begin()
        elif self.transaction.failed:
            raise fail("25P02", "current transaction is aborted, commands ignored until end of transaction block")
        try:
            found = self._done(statement, arguments)
            if alone:
                self._commit()
            return found
        except Exception:
            if alone:
                self._abort()
            elif self.transaction is not None:
                self._fail(self.transaction)
            raise

    def _fail(self, transaction: Transaction) -> None:
        """What it did since its last savepoint is taken back at once, its locks too; it answers nothing more until it is ended."""
        transaction.failed = True
        if transaction.savepoints:
            self.back_to(transaction.savepoints[-1])
        else:
            transaction.undo_to(0)
            transaction.wake()

    def _done(self, statement: Statement, arguments: tuple[Any, ...]) -> tuple[list[Any], list[str], str]:
        if statement.query is None and statement.kind in ("SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt"):
            statement.query = self.model.catalog.plan(statement.text)[0].query
        if statement.query is not None:
            call = Call(self, self.take_snapshot(), arguments, {})
            rows = statement.query.run(call, None)
            count = call.count if call.count is not None else len(rows)
            word = {"SelectStmt": "SELECT", "InsertStmt": "INSERT 0", "UpdateStmt": "UPDATE", "DeleteStmt": "DELETE"}[statement.kind]
            return rows, [name for name, _ in statement.query.columns], f"{word} {count}"
        if statement.kind in DEFINES:
            self.model.define(statement.text)
            return [], [], statement.kind
        return self._utility(statement)

    def run_text(self, text: str) -> None:
        """A text put together by a function."""
        for statement in self.model.catalog.plan(text):
            self._done(statement, ())

    def _utility(self, statement: Statement) -> tuple[list[Any], list[str], str]:
        body = statement.node[statement.kind]
        match statement.kind:
            case "VariableSetStmt":
                value = "".join(_text(one) for one in body.get("args", []))
                self.set(body["name"], value, local=bool(body.get("is_local")))
                return [], [], "SET"
            case "VariableShowStmt":
                found = self.setting(body["name"])
                if found is None:
                    raise fail("42704", f'unrecognized configuration parameter "{body["name"]}"')
                return [(found,)], [body["name"]], "SHOW"
            case "TruncateStmt":
                for one in body["relations"]:
                    self._truncate(f"{one['RangeVar'].get('schemaname', '')}.{one['RangeVar']['relname']}".lstrip("."))
                return [], [], "TRUNCATE TABLE"
            case "DiscardStmt" | "UnlistenStmt" | "ClosePortalStmt" | "LockStmt":
                return [], [], statement.kind
            case other:
                raise Unsupported(f"{other}: {statement.text.strip()}")

    def _truncate(self, name: str) -> None:
        for trigger in self.model.catalog.triggers.get(name, ()):
            if "truncate" in trigger.events:
                self.model.catalog.routine(trigger.routine).trigger(self, None, None)  # type: ignore[arg-type, union-attr]
        self.model.rows[name] = Rows(self.model.catalog.tables[name])

    # Transactions

    def _transact(self, body: dict[str, Any]) -> str:
        match body["kind"]:
            case "TRANS_STMT_BEGIN" | "TRANS_STMT_START":
                if self.transaction is None:
                    self._begin()
                    assert self.transaction is not None
                    self.transaction.block = True
                    for option in body.get("options", []):
                        self._option(option["DefElem"])
                return "BEGIN"
            case "TRANS_STMT_COMMIT":
                if self.transaction is None:
                    return "COMMIT"
                if self.transaction.failed:
                    self._abort()
                    return "ROLLBACK"
                self._commit()
                return "COMMIT"
            case "TRANS_STMT_ROLLBACK":
                self._abort()
                return "ROLLBACK"
            case kind:
                return self._save(kind, body.get("savepoint_name", ""))

    def _save(self, kind: str, name: str) -> str:
        transaction = self.transaction
        if transaction is None:
            raise fail("25P01", "SAVEPOINT can only be used in transaction blocks")
        if kind == "TRANS_STMT_SAVEPOINT":
            if transaction.failed:
                raise fail("25P02", "current transaction is aborted, commands ignored until end of transaction block")
            transaction.savepoints.append(self.savepoint(name))
            return "SAVEPOINT"
        place = next((index for index in range(len(transaction.savepoints) - 1, -1, -1) if transaction.savepoints[index].name == name), None)
        if place is None:
            raise fail("3B001", f'savepoint "{name}" does not exist')
        if kind == "TRANS_STMT_RELEASE":
            if transaction.failed:
                raise fail("25P02", "current transaction is aborted, commands ignored until end of transaction block")
            del transaction.savepoints[place:]
            return "RELEASE"
        self.back_to(transaction.savepoints[place])
        del transaction.savepoints[place + 1 :]
        transaction.failed = False
        return "ROLLBACK"

    def savepoint(self, name: str) -> Savepoint:
        assert self.transaction is not None
        return Savepoint(name, len(self.transaction.undo), len(self.transaction.notices), dict(self.transaction.settings))

    def back_to(self, mark: Savepoint) -> None:
        transaction = self.transaction
        assert transaction is not None
        transaction.undo_to(mark.undo)
        del transaction.notices[mark.notices :]
        transaction.settings = dict(mark.settings)
        transaction.wake()

    def _option(self, option: dict[str, Any]) -> None:
        assert self.transaction is not None
        value = option["arg"]["A_Const"]
        if option["defname"] == "transaction_isolation":
            self.transaction.repeatable = value["sval"]["sval"] in ("repeatable read", "serializable")
        elif option["defname"] == "transaction_read_only":
            self.transaction.readonly = bool(value["ival"].get("ival", 0))

    def _begin(self) -> None:
        self.transaction = Transaction(self, self.statement_at)

    def _commit(self) -> None:
        transaction = self.transaction
        assert transaction is not None
        self.pause("commit")
        if self.late is not None:
            seconds, self.late = self.late, None
            self.cut()
            self.sleep(seconds)
        self.transaction = None
        self._free(transaction)
        self.model.commit(transaction)

    def _abort(self) -> None:
        transaction, self.transaction = self.transaction, None
        if transaction is not None:
            transaction.undo_to(0)
            self._free(transaction)
            transaction.finish()

    def _free(self, transaction: Transaction) -> None:
        for key in transaction.advisory:
            self.model.advisory.pop(key, None)

    def take_snapshot(self, *, pause: bool = True) -> Snapshot:
        transaction = self.transaction
        assert transaction is not None
        if pause:
            self.pause("statement")
        transaction.command += 1
        if transaction.repeatable:
            if transaction.frozen is None:
                transaction.frozen = Snapshot(transaction, self.model.commits, transaction.command)
            return Snapshot(transaction, transaction.frozen.at, transaction.command)
        if self.sees_since is None:
            self.sees_since = self.model.commits
        return Snapshot(transaction, self.model.commits, transaction.command)

    # Waiting

    def pause(self, where: str) -> None:
        """Lets others go first, if the model's hook says so."""
        hook = self.model.pause
        if hook is not None:
            work = hook(self, where)
            if work is not None:
                wait(work)
        if self.dead or self.doomed:
            raise Gone
        if self.cancelled and where not in ("reply", "commit"):
            self.cancelled = False
            raise fail("57014", "canceling statement due to user request")

    def wait_for(self, other: Transaction) -> None:
        """Until that transaction has ended, or may have let go of something."""
        if self.dead or self.doomed:
            raise Gone
        Waits(self, other).until_ended()

    def sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self.interruptible = loop.create_future()
        timer = loop.call_later(seconds, lambda future: future.done() or future.set_result(None), self.interruptible)
        try:
            wait(self.interruptible)
        finally:
            timer.cancel()
            self.interruptible = None

    def try_advisory(self, key: int) -> bool:
        transaction = self.transaction
        assert transaction is not None
        holder = self.model.advisory.get(key)
        if holder is None:
            self.model.advisory[key] = transaction
            transaction.advisory.append(key)
        return holder is None or holder is transaction

    def advisory(self, key: int) -> None:
        while not self.try_advisory(key):
            self.wait_for(self.model.advisory[key])

    # Settings

    def setting(self, name: str) -> str | None:
        if self.transaction is not None and name in self.transaction.settings:
            return self.transaction.settings[name]
        return (
            self._settings.get(name) or self.model.settings.get(name) or {"lock_timeout": "0", "statement_timeout": "0", "timezone": "UTC"}.get(name)
        )

    def set(self, name: str, value: str, *, local: bool) -> None:
        if local and self.transaction is not None:
            self.transaction.settings[name] = value
        else:
            self._settings[name] = value

    def setting_ms(self, name: str) -> float:
        """Seconds; 0: none."""
        text = self.setting(name) or "0"
        number = text.rstrip("ms ")
        return float(number) * (1.0 if text.endswith("s") and not text.endswith("ms") else 0.001)

    # Ends

    def cancel(self) -> None:
        """As a client's request to cancel what runs."""
        if not self.busy:
            return
        if self.interruptible is not None and not self.interruptible.done():
            self.interruptible.set_exception(fail("57014", "canceling statement due to user request"))
        else:
            self.cancelled = True

    def cut(self) -> None:
        """The client is gone, and the server has not noticed yet."""
        self.orphan = True
        if self.client is not None:
            self.client.lose()
        if not self.busy:
            self.end("client has gone")

    def end(self, why: str) -> None:
        """The session dies; what it had open is undone."""
        if self.dead:
            return
        self.dead = True
        self.model.sessions.pop(self.pid, None)
        if self.interruptible is not None and not self.interruptible.done():
            self.interruptible.set_exception(Gone())
        elif not self.busy:
            self._abort()
        if self.client is not None:
            self.client.lose(why)


def _text(node: dict[str, Any]) -> str:
    constant = node["A_Const"]
    found: Any = next((constant[kind].get(kind, 0) for kind in ("sval", "ival", "fval") if kind in constant), "")
    return text_of(found)


__all__ = ["EPOCH", "Gone", "Model", "Pause", "Session", "asyncpg", "migrated"]
