"""A worker: claims what is due, keeps it in memory while it has work, lets it go while it waits."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import asyncpg
import structlog
from attrs import evolve, frozen

from flowdsl import chance
from flowdsl.activation import Sent, Turn
from flowdsl.attempt import RunningAttempt
from flowdsl.binding import Deployment
from flowdsl.collector import sweep
from flowdsl.definition import Workflow
from flowdsl.errors import FlowError, KeyMissing, Rejected, StoreError
from flowdsl.flow import Exit, Report
from flowdsl.hands import Hands
from flowdsl.journal import INTERRUPTED, codecs_of
from flowdsl.machine import Pending
from flowdsl.policy import within
from flowdsl.postgres.asking import ask, look_for
from flowdsl.postgres.audit import seal
from flowdsl.postgres.budgets import Budgets
from flowdsl.postgres.committer import Commit, Committer, Fate
from flowdsl.postgres.connection import open_pool, reason
from flowdsl.postgres.ends import ENDED, Ends
from flowdsl.postgres.heart import Heart, Reading
from flowdsl.postgres.heartbeats import Heartbeats
from flowdsl.postgres.hints import Listener, direct
from flowdsl.postgres.intake import Intake, cause_of
from flowdsl.postgres.notes import Notes
from flowdsl.postgres.payloads import encrypted
from flowdsl.postgres.schedules import Lookout, register
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.server import beyond, check_schema, check_settings
from flowdsl.postgres.starting import Starts, new_id
from flowdsl.postgres.store import NewStart, Store, connect, lost, refuses, trace
from flowdsl.postgres.transaction import OwnTransaction
from flowdsl.postgres.warm import Warm
from flowdsl.postgres.watching import Watch
from flowdsl.replay import Resident, Transaction

log = structlog.get_logger("flowdsl")

I = TypeVar("I")  # noqa: E741
A = TypeVar("A")
E = TypeVar("E")

MEETING = 10.0
"""Seconds that a new connection may take to say whom it leads to."""
FORGOTTEN = "it does not know of this worker's last heartbeat: it has gone back in time"


@frozen
class Tuning:
    """How a worker behaves; the defaults suit one machine."""

    lease: float = 10.0
    """Seconds after its last beat in which nobody else takes its executions."""
    poll: float = 1.0
    """The longest wait between two looks at the store; most looks come sooner, by a hint."""
    linger: float = 1.0
    """Seconds that an execution which only waits is kept in memory."""
    capacity: int = 2000
    """Executions in memory at a time."""
    claim: int = 128
    """Executions in a claim; when more is due the next one asks for twice as many, up to eight times."""
    hints: bool = True
    """Whether it listens for the hints of other processes, on a connection of its own; without them the poll finds everything."""
    warm: int = 256
    """Suspended executions whose machines are kept, so that a wake-up need not fold their journals; 0 keeps none."""
    warm_bytes: int = 64 << 20
    """As much as may have been folded into those; they take a few times that of memory."""
    threads: int = 32
    transactions: int = 16
    """Connections for transactional activities."""
    look: float = 30.0
    """Seconds between two looks at a child that is another's: its end is told to its own parent."""
    grace: float = 10.0
    """Seconds that running activities get when the worker stops."""
    schedules: bool = True
    """Whether it brings the deployment's schedules, and starts what is due; a process that is here for one execution does not."""


class Worker:
    """Runs a deployment's executions over one store. `start` and `wait` are for the process that it runs in."""

    def __init__(self, deployment: Deployment, store: Store, tuning: Tuning | None = None, *, tenant: str = "default") -> None:
        if "/" in tenant:
            raise StoreError(f"the tenant {tenant!r} holds a /", "It ends a tenant's name in what is kept of deliveries: leave it out")
        self.deployment, self.store, self.tuning, self.tenant = deployment, store, tuning or Tuning(), tenant
        self.id = new_id()
        self.linger = self.tuning.linger
        self.hands = Hands(self.tuning.threads, self.leaked)
        self.heartbeats = Heartbeats(store)
        self.spent = asyncio.Event()
        """Set when too many of its threads are lost: it has let go of what it had, claims nothing more, and is to be replaced."""
        self.residents: dict[str, Resident] = {}
        self.warm = Warm(self.tuning.warm, self.tuning.warm_bytes)
        self.ends = Ends(deployment, store)
        self.starts = Starts(self)
        self.intake = Intake(self)
        self.notes = Notes(store)
        self.heart = Heart(store.dsn, self.id, self.tuning.lease)
        self.committer = Committer(self.id, self._connect, pooled=self.store.pooled)
        self.budgets = Budgets(self, self._connect)
        self._kick = asyncio.Event()
        self._left = asyncio.Event()
        self._stopping = False
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._chores: dict[str, asyncio.Task[Any]] = {}
        self._poller: asyncio.Task[None] | None = None
        self._lookout: asyncio.Task[None] | None = None
        self.watch: Watch | None = None
        """Who is told what happens here, if somebody wants to know."""
        self.listener: Listener | None = None
        self._listening: asyncio.Task[None] | None = None
        self._look_at = 0.0
        self._transactions: Any = None
        self._anew = False
        self._left_behind: str | None = None
        self.outdated: str | None = None
        """Why it claims nothing: the store is beyond what this code knows."""

    # Life

    async def __aenter__(self) -> Worker:
        await self.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def begin(self) -> None:
        """Registers the worker and starts to claim. Raises `StoreError` when the database cannot be reached or lacks our tables."""
        async with self.store.connection() as connection:
            await check_settings(connection)
            await check_schema(connection)
        if self.tuning.schedules:
            await register(self.store, self.deployment)
        self.store.relied_on = True
        await self._register()
        self._transactions = await open_pool(self.store.dsn, size=self.tuning.transactions, name="flowdsl-activity", keeps_state=True)
        self.store.hints.here = self._sent_here
        self._poller = asyncio.create_task(self._poll(), name="flowdsl-poll")
        listen_at = direct(self.store.dsn, pooled=self.store.pooled) if self.tuning.hints and self.store.hints.on else None
        if listen_at is not None:
            self.listener = Listener(listen_at, self._hinted, self.look_around)
            self._listening = asyncio.create_task(self.listener.keep(), name="flowdsl-listen")
        self.spawn(self.store.hints.tell_all("look"))
        if self.tuning.schedules and self.deployment.schedules:
            self._lookout = asyncio.create_task(Lookout(self.store, self.deployment, self.tuning.poll, self.kick).keep(), name="flowdsl-schedules")

    async def _register(self) -> None:
        """A row of its own, under an id that nobody had; with it a heart and a committer."""
        id = new_id()
        committer = Committer(id, self._connect, pooled=self.store.pooled)
        committer.watch = self.watch
        if self.store.encryption.on:
            committer.kept = partial(encrypted, encryption=self.store.encryption)
        await committer.open()
        sent = _now()
        try:
            async with self.store.connection() as connection:
                stamp = await connection.fetchval(
                    "insert into flowdsl.workers (id, lease, host, pid) values ($1, make_interval(secs => $2), $3, $4) returning beat",
                    id,
                    self.tuning.lease,
                    socket.gethostname(),
                    os.getpid(),
                )
        except BaseException:
            await committer.close()
            raise
        self.id, self.committer, self.heart = id, committer, Heart(self.store.dsn, id, self.tuning.lease)
        self.heart.start(Reading(stamp, sent, _now()))
        self.store.remembers = self._remembered
        self.store.hints.worker = id

    async def stop(self) -> None:
        """Claims nothing more, lets running activities finish for the grace period, then lets go of every execution."""
        self._stopping = True
        self._kick.set()
        deadline = _now() + self.tuning.grace
        if self._poller is not None:
            await asyncio.wait([self._poller], timeout=1)
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        for task in (self._lookout, self._listening):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for resident in list(self.residents.values()):
            resident.leave()
        await self._emptied(deadline - _now())
        for resident in list(self.residents.values()):
            resident.release()
        await self._emptied(1)
        for resident in list(self.residents.values()):
            resident.drop()
        await self.committer.close()
        await self.budgets.close()
        await self.notes.close()
        await self.heartbeats.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.heart.stop()
        try:
            async with asyncio.timeout(5):
                await self._sign_off(self.id)
                await self.store.hints.tell_all("due")
                await self._transactions.close()
        except (TimeoutError, Exception) as error:
            log.warning("worker.left_untidily", worker=self.id, error=reason(error))
            self._transactions.terminate()
        await self.hands.close()

    async def _emptied(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.residents:
                    self._left.clear()
                    await self._left.wait()

    async def _sign_off(self, id: str) -> None:
        """Gone, once no commit of ours is under way; what is still ours is free then, and its worker did not die."""
        await self.store.again("update flowdsl.workers set gone = true where id = (select id from flowdsl.workers where id = $1 for update)", id)
        await self.store.again(
            "update flowdsl.executions set owner = null, wake = clock_timestamp()"
            " where id = any(array(select id from flowdsl.executions where owner = $1 order by id for no key update)) and owner = $1",
            id,
        )

    # For the process around it

    async def start(self, workflow: Workflow[I, A, E], request: I, *, key: str | None = None) -> str:
        """Starts an execution, idempotently by its key, and gives its id. Raises `Rejected` under reuse="reject"."""
        chosen = key if key is not None else workflow.key_of(request) if workflow.key is not None else None
        body = within(self.deployment.limits.request, f"the input of {workflow.name}", codecs_of(workflow).request.encode(request))
        wish = NewStart(new_id(), self.tenant, workflow.name, workflow.version, "", chosen, workflow.reuse, body)
        started = await self.starts.one(wish)
        if started.outcome == "rejected":
            raise Rejected(workflow.name, chosen or "", started.id)
        return started.id

    async def wait(self, id: str) -> Exit[Any, Any]:
        """How an execution ended; waits for it. Raises `StoreError` when it is blocked: the cause needs a person."""
        return await self.ends.wait(id, self.residents, self.tuning.poll)

    # As the host of residents

    def upper(self) -> datetime:
        return self.heart.upper()

    def lower(self) -> datetime:
        return self.heart.lower()

    def doubt(self) -> timedelta:
        return self.heart.upper() - self.heart.lower()

    @property
    def fit(self) -> bool:
        return self.heart.fit

    @property
    def crowded(self) -> bool:
        """Whether nothing more has room in memory."""
        return len(self.residents) >= self.tuning.capacity

    @property
    def room(self) -> int:
        """How many executions may begin here now."""
        if self._stopping or self.outdated or self.committer.full or self.spent.is_set() or not self.fit:
            return 0
        return max(0, self.tuning.capacity - len(self.residents) - len(self.starts.beginning) - len(self.intake.coming) - self.intake.asked)

    @property
    def has_room(self) -> bool:
        """Whether an execution may begin here now."""
        return self.room > 0

    def takes(self, owner: str) -> bool:
        """Whether what was claimed under that id may still begin here."""
        return self.id == owner and not self._stopping

    @property
    def trouble(self) -> str | None:
        """Why it takes on nothing; None when it works."""
        if self.outdated is not None:
            return self.outdated
        if self.spent.is_set():
            return "too many of its threads never returned: its process is to be replaced"
        if self._stopping or self._poller is None or self._poller.done():
            return "it has stopped"
        if not self.fit:
            return "its heartbeat does not reach the store"
        return "the store has no room" if self.committer.full else None

    def submit(self, resident: Resident, turn: Turn, state: str | None) -> None:
        if state is None and resident.suspect and any(entry.kind != INTERRUPTED for entry in turn.entries):
            state = "alive"
        commit = Commit(
            resident.id, resident.epoch, resident.activation.execution.tenant, turn, self._told, self._refused, state, seen=resident.activation.seen
        )
        resident.weight += sum(len(entry.body) for entry in turn.entries)
        if state == "suspended":
            commit.wake = resident.activation.next_due
            if resident.put_off_until is not None:
                commit.wake = resident.put_off_until if commit.wake is None else min(resident.put_off_until, commit.wake)
            if resident.strangers:
                look = self.upper() + timedelta(seconds=self.tuning.look)
                commit.wake = look if commit.wake is None else min(look, commit.wake)
        if state == "blocked":
            commit.cause = f"paused: {resident.activation.paused}"
        if turn.ended is not None:
            commit.exit, commit.cause = turn.ended.exit, turn.ended.cause
            if turn.ended.status != "blocked":
                if resident.activation.fold.parental:
                    turn.cancels = [*turn.cancels, ""]
                if resident.parent is not None:
                    turn.mails.append(Sent(resident.parent, "exit", resident.id, turn.ended.exit, resident.id))
        self.committer.submit(commit)

    def _told(self, commit: Commit, fate: Fate) -> None:
        turn = commit.turn
        leaves_work = turn.children or turn.mails or any(turn.cancels)  # an end alone leaves nothing to claim
        if leaves_work and fate in ("done", "awake", "again"):
            self._hint(commit)
            self.kick()
        resident = self.residents.get(commit.execution)
        if turn.ended is not None and fate in ("done", "again"):
            known = resident is not None and turn.ended.status != "blocked"
            self.ends.tell(commit.execution, (resident.activation.workflow, turn.ended.exit) if known and resident is not None else None)
        if resident is not None and resident.epoch == commit.epoch:
            if fate in ("done", "awake", "again"):  # also those of a turn with which it leaves
                notes, turn.notes = turn.notes, ()
                for note in notes:
                    self.note(resident, note)
            if fate == "awake":
                self.intake.mailed[commit.execution] = None
                self.kick()
            elif fate == "done" and commit.state == "suspended":
                self._due_at(commit.wake)
                if not (resident.activation.stirred or resident.waits):
                    self.warm.keep(resident.epoch, resident.activation, resident.weight)
            resident.committed(turn, commit.state, fate)

    def _hint(self, commit: Commit) -> None:
        """Tells the others what a turn has left for them. Of many children one a workflow is enough: whoever comes for it takes more."""
        turn, hints = commit.turn, self.store.hints
        for mail in turn.mails:
            hints.tell(commit.tenant, mail.name, mail.to)
        for child in {child.workflow: child for child in turn.children}.values():
            hints.tell(commit.tenant, "", child.id)
        if any(turn.cancels):
            hints.tell_children(commit.execution)

    def _refused(self, commit: Commit, reason: str) -> None:
        resident = self.residents.get(commit.execution)
        if resident is not None and resident.epoch == commit.epoch:
            resident.drop()
        self.spawn(self.block(commit.execution, commit.epoch, reason))

    def broken(self, resident: Resident, error: Exception) -> None:
        log.error("execution.broken", execution=resident.id, traceback=trace(error))
        self.spawn(self.block(resident.id, resident.epoch, cause_of(error)))

    async def block(self, id: str, epoch: int, cause: str) -> None:
        """An execution of ours that needs a person."""
        log.error("execution.blocked", execution=id, hint=f"flowdsl status {id} tells the cause")  # which may quote what it is about
        if self.watch is not None:
            self.watch.blocked(1)
        await self.store.block(self.id, id, epoch, cause)
        self.ends.tell(id)

    async def put_off(self, id: str, epoch: int, error: KeyMissing) -> None:
        """An execution of ours that takes a key which is not here: it is let go, for who has the key, and looked at again."""
        log.error("execution.waits_for_key", execution=id, key=error.key, hint="see docs/how-to/secure.md")
        resident = self.residents.get(id)
        if resident is not None:
            resident.drop()
        self.warm.forget(id)
        await self.store.put_off(self.id, id, epoch, str(error))
        self.ends.tell(id)

    def ask(self, resident: Resident, one: Pending) -> None:
        self.spawn(ask(self, resident, one), resident)

    def look_for(self, resident: Resident, children: tuple[str, ...]) -> None:
        self.spawn(look_for(self, resident, children), resident)

    def note(self, resident: Resident, note: Report) -> None:
        log.info("execution.reports", execution=resident.id, workflow=resident.activation.workflow.name, done=note.done, total=note.total)
        self.notes.add(resident.id, note)

    def beaten(self, resident: Resident, attempt: RunningAttempt, *, at_once: bool = False) -> None:
        self.heartbeats.add(resident.epoch, attempt, at_once=at_once)

    def forget(self, resident: Resident, places: Sequence[str]) -> None:
        self.heartbeats.forget(resident.id, resident.epoch, places)

    def leaked(self, count: int) -> None:
        """So many threads are lost to implementations that do not come back. When it is as many as there may be, others do its work."""
        log.error("activity.leaked", worker=self.id, threads=count, limit=self.tuning.threads, hint="an implementation ignores its cancellation")
        if count >= self.tuning.threads and not self.spent.is_set():
            log.error("worker.spent", worker=self.id, hint="it claims nothing more: stop its process, and start another")
            self.spent.set()
            for resident in list(self.residents.values()):
                resident.leave()

    def gone(self, resident: Resident) -> None:
        if self.residents.get(resident.id) is resident:
            if len(self.residents) >= self.tuning.capacity:
                self._kick.set()  # there is room again
            del self.residents[resident.id]
            self._left.set()

    def connection(self) -> AbstractAsyncContextManager[Any]:
        return self._activity_connection()

    @asynccontextmanager
    async def _activity_connection(self) -> AsyncGenerator[Any]:
        async with self._transactions.acquire() as connection:
            try:
                yield connection
            except asyncio.CancelledError:  # cut off in a statement, it may hold a transaction that nobody sees: it is never used again
                await asyncio.shield(self.spawn(_ended(connection)))
                raise

    async def begin_transaction(self, resident: Resident) -> Transaction:
        return await OwnTransaction(self.store, self._transactions, self.id, resident, lease=self.tuning.lease).begin()

    # Looking at the store

    def kick(self) -> None:
        """Something may be due: looks at once."""
        self._kick.set()

    def look_around(self) -> None:
        """Something may have been missed: looks at everything at once."""
        self._look_at = 0.0
        self._kick.set()

    async def _remembered(self, connection: Any) -> str | None:
        return FORGOTTEN if await self.heart.forgotten(connection) else None

    def met(self, needs: str, written: int) -> None:
        """What the store needs of code, and how far its server has written."""
        outdated = beyond(needs)
        if outdated is not None and self.outdated is None:
            log.error("worker.outdated", worker=self.id, why=outdated, hint="it claims nothing more; update flowdsl here")
        self.outdated = outdated
        if self.store.server is not None:
            self.store.server = evolve(self.store.server, written=written)

    def _due_at(self, when: datetime | None) -> None:
        """Something is due then: looks no later."""
        if when is not None and (at := _now() + max((when - self.lower()).total_seconds(), 0.001)) < self._look_at:
            self._look_at = at
            self._kick.set()

    def _sent_here(self, to: str) -> None:
        if to in self.residents:
            self.intake.mailed[to] = None
        self._kick.set()

    def _hinted(self, payload: str) -> None:
        what, _, rest = payload.partition(" ")
        if what == "due" and (not rest or any(name[:200] == rest for name in self.deployment.names)):
            self.kick()
        elif what == "mail" and rest in self.residents:
            self.intake.mailed[rest] = None
            self.kick()
        elif what == "look" and rest in ("", self.id):
            self.look_around()

    async def _poll(self) -> None:
        while not self._stopping:
            pause = await self._looked()
            if pause > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.005, pause)):
                        await self._kick.wait()
            self._kick.clear()

    async def _looked(self) -> float:
        """Looks at the store. Gives the seconds until the next look, unless a hint comes."""
        try:
            if self.heart.gone or self.store.strayed is not None or self._anew:
                await self._begin_anew()
            if not self.heart.fit:
                return 0.1
            more = await self.intake.claim()
            await self.intake.fetch_mailed()
            if _now() >= self._look_at:
                await self._look_around()
            return 0.0 if more else self._look_at - _now()
        except Exception as error:
            if not (lost(error) or isinstance(error, (asyncpg.PostgresError, FlowError))):
                log.error("poll.failed", worker=self.id, traceback=trace(error))
            else:
                log.warning("poll.failed", worker=self.id, error=reason(error))
            await asyncio.sleep(0.2)
            return self.tuning.poll

    async def _begin_anew(self) -> None:
        """Declared gone, or on another server: what is in memory is others', or never was. A new worker id begins with nothing."""
        if self.store.strayed is not None or self.heart.lost:
            log.error("server.changed", worker=self.id, why=self.store.strayed or FORGOTTEN, dropped=len(self.residents))
            self._left_behind = self.id
        self._anew = True  # until all of this has succeeded: it may take several tries
        for resident in list(self.residents.values()):
            resident.drop()
        self.warm.clear()
        await self.committer.abandon()
        self.heart.stop()
        self.store.forget_server()
        self.store.remembers = None
        await self._register()
        if self._left_behind is not None:
            await self._sign_off(self._left_behind)  # nobody waits for its lease to run out
        self._left_behind, self._anew = None, False

    async def _look_around(self) -> None:
        self._look_at = _now() + self.tuning.poll * (0.8 + 0.4 * chance.random())
        self._due_at(await self.intake.look_around())
        sweep()
        self.chore("seal", lambda: seal(self.store))
        self.chore("heartbeats", self.heartbeats.sweep)

    # Small things

    def chore(self, name: str, work: Callable[[], Awaitable[Any]]) -> None:
        """Does it beside everything else, unless it is still being done."""
        task = self._chores.get(name)
        if task is None or task.done():
            self._chores[name] = self.spawn(work())

    def spawn(self, work: Awaitable[Any], resident: Resident | None = None) -> asyncio.Task[None]:
        """A task of the worker's: what goes wrong in it is told, and is the end of the resident that it was for."""

        async def run() -> None:
            try:
                await work
            except Exception as error:
                away = (lost(error) or isinstance(error, (StoreError, asyncpg.PostgresError))) and not refuses(error)
                if resident is not None and not resident.dropped and not away:
                    self.broken(resident, error)
                else:
                    log.warning("store.failed", worker=self.id, error=reason(error))
                if resident is not None:
                    resident.drop()  # the store still says that it is ours: the next look around loads it, or finds it blocked

        task = asyncio.get_running_loop().create_task(run())
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    async def _connect(self) -> Any:
        connection = await connect(self.store.dsn, lock_timeout="2000")
        try:
            async with asyncio.timeout(MEETING):
                await self.store.meet(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _ended(connection: Any) -> None:
    """Ends it, and what the server still does for it."""
    try:
        async with asyncio.timeout(5):
            await connection.close()
    except Exception:
        connection.terminate()


@asynccontextmanager
async def opened(deployment: Deployment, dsn: str, tuning: Tuning | None = None) -> AsyncGenerator[Worker]:
    """A worker over a migrated database, for the length of a block."""
    await migrate(dsn, deployment.migrations)
    async with await Store.open(dsn) as store, Worker(deployment, store, tuning) as worker:
        yield worker


__all__ = ["ENDED", "Tuning", "Worker", "new_id", "opened"]
