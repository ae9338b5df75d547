"""Transactions: what they hold, how they end, who waits for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import greenlet
from attrs import define, field

from tests.simulation.postgres.tables import CONFLICTS, Row, Snapshot, Version
from tests.simulation.postgres.values import fail

if TYPE_CHECKING:
    from tests.simulation.postgres.model import Session


async def in_place(work: Callable[[], Any]) -> Any:
    """Runs plain code that may stop and wait, by `wait`, in the middle."""
    runner = greenlet.greenlet(work)
    found = runner.switch()
    while not runner.dead:
        try:
            answer = await found
        except BaseException as error:
            found = runner.throw(error)
        else:
            found = runner.switch(answer)
    return found


def wait(work: Awaitable[Any]) -> Any:
    """To be called in code that `in_place` runs."""
    return greenlet.getcurrent().parent.switch(work)  # type: ignore[union-attr]


@define(eq=False)
class Savepoint:
    name: str
    undo: int
    notices: int
    settings: dict[str, str]


class Transaction:
    """`committed`: its place in the order of commits, once it has one."""

    def __init__(self, session: Session | None, began: datetime | None) -> None:
        self.session = session
        self.began = began
        self.committed: int | None = None
        self.ended = False
        self.failed = False
        self.block = False
        """Begun by BEGIN: it ends when somebody says so."""
        self.frozen: Snapshot | None = None
        """The one snapshot of all its statements, above READ COMMITTED."""
        self.repeatable = self.readonly = False
        self.command = 0
        self.undo: list[Callable[[], None]] = []
        self.touched: list[Row] = []
        self.advisory: list[int] = []
        self.notices: list[tuple[str, str]] = []
        self.savepoints: list[Savepoint] = []
        self.settings: dict[str, str] = {}
        self.waiters: list[asyncio.Future[None]] = []

    def wake(self) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def undo_to(self, length: int) -> None:
        while len(self.undo) > length:
            self.undo.pop()()

    def finish(self) -> None:
        """Lets go of all that it holds."""
        self.ended = True
        for row in self.touched:
            row.locks.pop(self, None)
        self.wake()


ALWAYS = Transaction(None, None)
ALWAYS.committed = 0
ALWAYS.ended = True


def hold(transaction: Transaction, row: Row, mode: int) -> None:
    before = row.locks.get(transaction)
    if before is not None and before >= mode:
        return
    row.locks[transaction] = mode
    if before is None:
        transaction.touched.append(row)

    def undo() -> None:
        if before is None:
            row.locks.pop(transaction, None)
        else:
            row.locks[transaction] = before

    transaction.undo.append(undo)


def blockers(transaction: Transaction, row: Row, mode: int) -> list[Transaction]:
    against = CONFLICTS[mode]
    return [other for other, held in row.locks.items() if other is not transaction and held in against]


def lock(session: Session, row: Row, mode: int, policy: str = "wait") -> bool:
    """Locks a row for the session's transaction. False when it is to be skipped."""
    transaction = session.transaction
    assert transaction is not None
    while True:
        others = blockers(transaction, row, mode) if row.locks else []
        if not others:
            hold(transaction, row, mode)
            return True
        if policy == "skip":
            return False
        if policy == "nowait":
            name = row.rows.table.name.rpartition(".")[2]
            raise fail("55P03", f'could not obtain lock on row in relation "{name}"')
        session.wait_for(others[0])


def newest(row: Row, transaction: Transaction) -> Version | None:
    """What a row is now for who has locked it; None when it is no more."""
    if not row.versions:
        return None
    last = row.versions[-1]
    return last if last.xmax is None else None


def write(transaction: Transaction, version: Version, values: Any, command: int) -> Version:
    """Another version in the place of the newest; the row is locked already."""
    row = version.row
    made = row.rows.put(row, values, transaction, command)
    version.xmax, version.cmax = transaction, command

    def undo() -> None:
        row.rows.drop(made)
        version.xmax = None

    transaction.undo.append(undo)
    return made


def remove(transaction: Transaction, version: Version, command: int) -> None:
    version.xmax, version.cmax = transaction, command

    def undo() -> None:
        version.xmax = None

    transaction.undo.append(undo)


def add(transaction: Transaction, rows: Any, values: Any, command: int) -> Version:
    made: Version = rows.insert(values, transaction, command)
    made.row.locks[transaction] = 4
    transaction.touched.append(made.row)

    def undo() -> None:
        made.row.locks.pop(transaction, None)
        rows.drop(made)

    transaction.undo.append(undo)
    return made


@define(eq=False)
class Waits:
    """Who waits for whom, and until when."""

    session: Session
    other: Transaction
    future: asyncio.Future[None] = field(factory=lambda: asyncio.get_running_loop().create_future())

    def until_ended(self) -> None:
        session, loop = self.session, asyncio.get_running_loop()
        self.other.waiters.append(self.future)
        session.blocked_by = self.other
        timers = [loop.call_later(session.model.deadlock_timeout, self._look_for_deadlock)]
        patience = session.setting_ms("lock_timeout")
        if patience:
            timers.append(loop.call_later(patience, self._give_up))
        session.interruptible = self.future
        try:
            wait(self.future)
        finally:
            session.blocked_by = session.interruptible = None
            for timer in timers:
                timer.cancel()
            if self.future in self.other.waiters:
                self.other.waiters.remove(self.future)

    def _give_up(self) -> None:
        if not self.future.done():
            self.future.set_exception(fail("55P03", "canceling statement due to lock timeout"))

    def _look_for_deadlock(self) -> None:
        if self.future.done():
            return
        seen: list[Transaction] = []
        at: Transaction | None = self.other
        while at is not None and at not in seen:
            if at is self.session.transaction:
                self.future.set_exception(fail("40P01", "deadlock detected"))
                return
            seen.append(at)
            at = at.session.blocked_by if at.session is not None else None


__all__ = ["ALWAYS", "Savepoint", "Transaction", "Waits", "add", "blockers", "hold", "in_place", "lock", "newest", "remove", "wait", "write"]
