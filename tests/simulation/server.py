"""The simulated server as a run has it: who is connected from where, what each commit changed, and the faults on the way to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from flowdsl.postgres import connection, schema
from flowdsl.testing import chaos
from tests.simulation.loop import Lane, Loop, Process, here
from tests.simulation.postgres.catalog import Catalog
from tests.simulation.postgres.model import Model, Session
from tests.simulation.postgres.tables import Rows, Snapshot
from tests.simulation.postgres.transactions import Transaction
from tests.simulation.postgres.values import shown
from tests.simulation.system import DSN

if TYPE_CHECKING:
    from tests.simulation.bugs import Bug

SEEN = ("executions", "journal", "mailbox", "unmatched", "workers", "schedules")
"""Tables whose changes are looked at, commit by commit."""

_catalogs: dict[str, Catalog] = {}


def catalog(bug: Bug | None) -> Catalog:
    """Our tables and functions, and those of the workload; compiled once a process, once more for each fault planted in SQL."""
    name = bug.name if bug is not None and (bug.sql or bug.defines) else ""
    if name not in _catalogs:
        model = Model()
        for file in sorted((Path(chaos.__path__[0]) / "tables").glob("*.sql")):
            model.define(file.read_text())
        if name and bug is not None:
            if bug.sql:
                model.define(bug.functions(schema._functions()))  # pyright: ignore[reportPrivateUsage]
            if bug.defines:
                model.define(bug.defines)
        _catalogs[name] = model.catalog
    return _catalogs[name]


class Watched(Model):
    """The model, telling what each commit changed and keeping apart who is a client and who is the server."""

    def __init__(self, server: Server, bug: Bug | None) -> None:
        super().__init__()
        self.server = server
        self.catalog = catalog(bug)
        for name, table in self.catalog.tables.items():
            if name not in self.rows:
                self.rows[name] = Rows(table)
            else:
                self.rows[name].table = table
        self.names = {f"flowdsl.{name}": [column.name for column in self.catalog.tables[f"flowdsl.{name}"].columns] for name in SEEN}
        self.lanes: dict[int, Lane] = {}

    async def connect(self, dsn: str | None = None, **options: Any) -> Any:
        pid = self._pids + 1
        self.lanes[pid] = here()
        return await super().connect(dsn, **options)

    def commit(self, transaction: Transaction) -> None:
        changes = self._changes(transaction)
        session = transaction.session
        self.server.client = self.lanes[session.pid].process if session is not None else None
        super().commit(transaction)
        if changes:
            self.server.committed(changes)

    def _changes(self, transaction: Transaction) -> list[Any]:
        found = []
        for row in dict.fromkeys(transaction.touched):
            names = self.names.get(row.rows.table.name)
            if names is None:
                continue
            old = new = None
            for version in row.versions:
                if version.xmin is transaction:
                    new = version if version.xmax is None else new
                elif version.xmax is transaction:
                    old = version
            if old is not None or new is not None:
                found.append((row.rows.table.name, old and dict(zip(names, old, strict=True)), new and dict(zip(names, new, strict=True))))
        return found

    def _notify(self, channel: str, payload: str, source: Session | None) -> None:
        """As the model does it; but it is the client's own loop that hears it."""
        loop = asyncio.get_running_loop()
        for session in list(self.sessions.values()):
            client = session.client
            if client is None or not client.hears(channel):
                continue
            if self.server.deaf_until > loop.time():
                self.server.lost += 1
                continue
            lane = self.lanes[session.pid]
            if not lane.process.dead:
                lane.context.run(loop.call_soon, client.told, source.pid if source is not None else 0, channel, payload)


class Server:
    def __init__(self, loop: Loop, chance: Random, bug: Bug | None, committed: Callable[[list[Any]], None], heard: Callable[[str], None]) -> None:
        self.loop, self._chance, self.committed, self._heard = loop, chance, committed, heard
        self.model = Watched(self, bug)
        self.model.pause = self._pause
        self.latency = chance.choice((0.0, 0.0, 0.001, 0.01))
        self.often = chance.choice((0.02, 0.2, 1.0))
        self.stops = chance.choice((0.0, 0.02, 0.2))
        self.deaf_until = self._slow_until = -1.0
        self._extra = 0.0
        self._held: dict[int, float] = {}
        self.unknown: Counter[str] = Counter()
        """Of each process: statements whose fate it was not told."""
        self.lost = 0
        self.client: Process | None = None
        """Whose commit it is."""
        connection.drivers[DSN] = connection.drivers[DSN.partition("?")[0]] = self.model

    @staticmethod
    @contextmanager
    def installed() -> Generator[None]:
        before = dict(connection.drivers)
        try:
            yield
        finally:
            connection.drivers.clear()
            connection.drivers.update(before)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """What is committed."""
        rows = self.model.rows[table]
        names = [column.name for column in rows.table.columns]
        snapshot = Snapshot(Transaction(None, None), self.model.commits, 0)
        return [dict(zip(names, map(shown, version), strict=True)) for version in rows.visible(snapshot)]

    # Time on the way

    def _pause(self, session: Session, where: str) -> Awaitable[None] | None:
        held = self._held.pop(session.pid, None) if self._held else None
        if held is not None:
            self._heard(f"held up at {where}: {session.statement[:60]}")
            return asyncio.sleep(held)
        extra = self._extra if self._slow_until > self.loop.time() else 0.0
        if where in ("arrive", "reply", "connect"):
            if extra or (self.latency and self._chance.random() < self.often):
                return asyncio.sleep((self.latency + extra) * self._chance.random())
        elif self.stops and self._chance.random() < self.stops:
            return asyncio.sleep((self.latency + extra) * self._chance.random())
        return None

    # Who is connected

    def of(self, process: Process) -> list[Session]:
        return [session for session in self.model.sessions.values() if self.model.lanes[session.pid].process is process]

    def _name(self, session: Session) -> str:
        return f"{self.model.lanes[session.pid].process.name} ({session.name.removeprefix('flowdsl') or 'main'} {session.pid})"

    def _any(self, own: Random, *, busy: bool = False) -> Session | None:
        sessions = [session for session in self.model.sessions.values() if not self.model.lanes[session.pid].process.dead]
        at_work = [session for session in sessions if session.busy or session.transaction is not None]
        if at_work and (busy or own.random() < 0.7):
            sessions = at_work
        return own.choice(sessions) if sessions else None

    def in_transaction(self, process: Process | None) -> bool:
        return process is not None and any(session.transaction is not None for session in self.of(process))

    # Faults

    def died(self, process: Process) -> None:
        """Its sockets are closed; a server that is in the middle of something notices when it has done it."""
        for session in self.of(process):
            self.model.cut(session)

    def _unknown(self, session: Session) -> None:
        self.unknown[self.model.lanes[session.pid].process.name] += 1

    def cut(self, own: Random) -> str | None:
        session = self._any(own)
        if session is None:
            return None
        name = self._name(session)
        self._unknown(session)
        if own.random() < 0.5:
            self.model.cut(session)
            return f"{name}, and the server goes on"
        self.model.terminate(session.pid)
        return f"{name}, by the server"

    def lose_reply(self, own: Random) -> str | None:
        session = self._any(own, busy=True)
        if session is None:
            return None
        self._unknown(session)
        self.model.lose_reply(session)
        return f"{self._name(session)}: {session.statement[:50]}"

    def commit_late(self, own: Random, seconds: float) -> str | None:
        session = self._any(own, busy=True)
        if session is None:
            return None
        self._unknown(session)
        self.model.commit_late(session, seconds)
        return f"{self._name(session)} by {seconds} s: {session.statement[:50]}"

    def hold_up(self, own: Random, seconds: float) -> str | None:
        session = self._any(own, busy=True)
        if session is None:
            return None
        self._held[session.pid] = seconds
        return f"{self._name(session)} for {seconds} s"

    def slow(self, seconds: float, span: float) -> str:
        self._extra, self._slow_until = seconds, self.loop.time() + span
        return f"by {seconds} s for {span} s"

    def restart(self, away: float) -> str:
        for session in self.model.sessions.values():
            if session.busy:
                self._unknown(session)
        self.model.restart(away)
        return f"away for {away} s"

    def refuse(self, span: float) -> str:
        self.model.refuse(self.loop.time() + span)
        return f"for {span} s"

    def deaf(self, span: float) -> str:
        self.deaf_until = self.loop.time() + span
        return f"for {span} s"

    def jump(self, seconds: float) -> str:
        self.model.jump(seconds)
        return f"by {seconds} s"

    def heal(self) -> None:
        self.model.refuse(-1.0)
        self.deaf_until = self._slow_until = -1.0
        self._held.clear()

    def pause_schedules(self) -> None:
        """What the clock starts is to end, too."""
        rows = self.model.rows["flowdsl.schedules"]
        at = rows.table.at("paused")
        for row in list(rows.rows.values()):
            for version in list(row.versions):
                if version.xmax is None:
                    made = rows.put(row, [*version[:at], True, *version[at + 1 :]], version.xmin, version.cmin)
                    made.xmax = None
                    rows.drop(version)
