"""A worker: claims what is due, keeps it in memory while it has work, lets it go while it waits."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg
import structlog
from attrs import evolve, frozen

from flowdsl.activation import Activation, Mail, Sent, Turn, child_id
from flowdsl.binding import Deployment
from flowdsl.codec import codec
from flowdsl.definition import Workflow
from flowdsl.errors import FlowError, Rejected, StoreError
from flowdsl.flow import Defect, Execution, Existing, Exit, Receive, Report, Start
from flowdsl.journal import BUG, INTERRUPTED, SUCCESS, Entry, codecs_of, decode_exit, defect_body
from flowdsl.machine import Pending
from flowdsl.memory import public_status
from flowdsl.postgres.committer import Commit, Committer, Fate
from flowdsl.postgres.heart import Heart, Reading
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import Claimed, NewStart, Started, Store, claimed, connect, lost, refuses, trace
from flowdsl.replay import Resident, Transaction, Unrecorded

log = structlog.get_logger("flowdsl")

I = TypeVar("I")  # noqa: E741
A = TypeVar("A")
E = TypeVar("E")

ENDED = ("succeeded", "failed", "cancelled")


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
    threads: int = 32
    transactions: int = 16
    """Connections for transactional activities."""
    look: float = 30.0
    """Seconds between two looks at a child that is another's: its end is told to its own parent."""
    grace: float = 10.0
    """Seconds that running activities get when the worker stops."""


class Worker:
    """Runs a deployment's executions over one store. `start` and `wait` are for the process that it runs in."""

    def __init__(self, deployment: Deployment, store: Store, tuning: Tuning | None = None, *, tenant: str = "default") -> None:
        self.deployment, self.store, self.tuning, self.tenant = deployment, store, tuning or Tuning(), tenant
        self.id = str(uuid4())
        self.linger = self.tuning.linger
        self.threads = ThreadPoolExecutor(self.tuning.threads, thread_name_prefix="flowdsl-activity")
        self.residents: dict[str, Resident] = {}
        self._heart = Heart(store.dsn, self.id, self.tuning.lease)
        self._committer = Committer(self.id, self._connect)
        self._kick = asyncio.Event()
        self._left = asyncio.Event()
        self._stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._transactions: Any = None
        self._ends: dict[str, asyncio.Future[tuple[Workflow[Any, Any, Any], bytes] | None]] = {}
        self._mailed: set[str] = set()
        self._beginning: set[str] = set()
        self._wishes: list[tuple[NewStart, asyncio.Future[Started]]] = []

    # Life

    async def __aenter__(self) -> Worker:
        await self.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def begin(self) -> None:
        """Registers the worker and starts to claim. Raises `StoreError` when the database cannot be reached or lacks our tables."""
        await self._register()
        self._transactions = await asyncpg.create_pool(
            self.store.dsn, min_size=0, max_size=self.tuning.transactions, server_settings={"application_name": "flowdsl-activity", "jit": "off"}
        )
        self._poller = asyncio.create_task(self._poll(), name="flowdsl-poll")

    async def _register(self) -> None:
        """A row of its own, under an id that nobody had; with it a heart and a committer."""
        id = str(uuid4())
        committer = Committer(id, self._connect)
        await committer.open()
        sent = time.monotonic()
        try:
            async with self.store.connection() as connection:
                stamp = await connection.fetchval(
                    "insert into flowdsl.workers (id, lease, host, pid) values ($1, make_interval(secs => $2), $3, $4) returning clock_timestamp()",
                    id,
                    self.tuning.lease,
                    socket.gethostname(),
                    os.getpid(),
                )
        except BaseException as error:
            await committer.close()
            if isinstance(error, (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)):
                raise StoreError("this database has no flowdsl tables", "Run `flowdsl migrate`") from error
            raise
        self.id, self._committer, self._heart = id, committer, Heart(self.store.dsn, id, self.tuning.lease)
        self._heart.start(Reading(stamp, sent, time.monotonic()))

    async def stop(self) -> None:
        """Claims nothing more, lets running activities finish for the grace period, then lets go of every execution."""
        self._stopping = True
        self._kick.set()
        deadline = time.monotonic() + self.tuning.grace
        if self._poller is not None:
            await asyncio.wait([self._poller], timeout=1)
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        for resident in list(self.residents.values()):
            resident.leave()
        await self._emptied(deadline - time.monotonic())
        for resident in list(self.residents.values()):
            resident.release()
        await self._emptied(1)
        for resident in list(self.residents.values()):
            resident.drop()
        await self._committer.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._heart.stop()
        try:
            async with asyncio.timeout(5):
                await self._sign_off()
                await self._transactions.close()
        except (TimeoutError, Exception) as error:
            log.warning("worker.left_untidily", worker=self.id, error=str(error) or type(error).__name__)
            self._transactions.terminate()
        self.threads.shutdown(wait=False, cancel_futures=True)

    async def _emptied(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.residents:
                    self._left.clear()
                    await self._left.wait()

    async def _sign_off(self) -> None:
        """Gone, once no commit of ours is under way; what is still ours is free then, and its worker did not die."""
        await self.store.again("update flowdsl.workers set gone = true where id = (select id from flowdsl.workers where id = $1 for update)", self.id)
        await self.store.again(
            "update flowdsl.executions set owner = null, wake = clock_timestamp()"
            " where id = any(array(select id from flowdsl.executions where owner = $1 order by id for no key update)) and owner = $1",
            self.id,
        )

    # For the process around it

    async def start(self, workflow: Workflow[I, A, E], request: I, *, key: str | None = None) -> str:
        """Starts an execution, idempotently by its key, and gives its id. Raises `Rejected` under reuse="reject"."""
        chosen = key if key is not None else workflow.key_of(request) if workflow.key is not None else None
        wish = NewStart(
            new_id(), self.tenant, workflow.name, workflow.version, "", chosen, workflow.reuse, codecs_of(workflow).request.encode(request)
        )
        started = await self._started(wish)
        if started.outcome == "rejected":
            raise Rejected(workflow.name, chosen or "", started.id)
        return started.id

    async def wait(self, id: str) -> Exit[Any, Any]:
        """How an execution ended; waits for it. Raises `StoreError` when it is blocked: the cause needs a person."""
        while True:
            ended = self._ends.setdefault(id, asyncio.get_running_loop().create_future())
            if id not in self.residents:
                summary = await self.store.summary(id)
                if summary.status in ENDED:
                    self._ends.pop(id, None)
                    return decode_exit(self.deployment.workflow(summary.workflow), summary.exit or b"")
                if summary.status == "blocked":
                    self._ends.pop(id, None)
                    raise StoreError(f"execution {id} is blocked: {summary.cause}", "See `flowdsl status` and `flowdsl journal`")
            await asyncio.wait([ended], timeout=self.tuning.poll)
            if ended.done() and (told := ended.result()) is not None:
                return decode_exit(*told)

    # As the host of residents

    def upper(self) -> datetime:
        return self._heart.upper()

    def lower(self) -> datetime:
        return self._heart.lower()

    @property
    def fit(self) -> bool:
        return self._heart.fit

    def submit(self, resident: Resident, turn: Turn, state: str | None) -> None:
        if state is None and resident.suspect and any(entry.kind != INTERRUPTED for entry in turn.entries):
            state = "alive"
        commit = Commit(
            resident.id, resident.epoch, resident.activation.execution.tenant, turn, self._told, self._refused, state, seen=resident.activation.seen
        )
        if state == "suspended":
            commit.wake = resident.activation.next_due
            if resident.strangers:
                look = self.upper() + timedelta(seconds=self.tuning.look)
                commit.wake = look if commit.wake is None else min(look, commit.wake)
        if turn.ended is not None:
            commit.exit, commit.cause = turn.ended.exit, turn.ended.cause
            if turn.ended.status != "blocked":
                turn.cancels.append("")
                if resident.parent is not None:
                    turn.mails.append(Sent(resident.parent, "exit", resident.id, turn.ended.exit, resident.id))
        self._committer.submit(commit)

    def _told(self, commit: Commit, fate: Fate) -> None:
        turn = commit.turn
        leaves_work = turn.children or turn.mails or turn.cancels not in ([], [""])  # an end alone leaves nothing to claim
        if leaves_work and fate in ("done", "awake", "again"):
            self._mailed.update(mail.to for mail in turn.mails if mail.to in self.residents)
            self._kick.set()
        resident = self.residents.get(commit.execution)
        if turn.ended is not None and fate in ("done", "again"):
            known = resident is not None and turn.ended.status != "blocked"
            self._tell_end(commit.execution, (resident.activation.workflow, turn.ended.exit) if known and resident is not None else None)
        if resident is not None and resident.epoch == commit.epoch:
            if fate == "awake":
                self._mailed.add(commit.execution)
                self._kick.set()
            resident.committed(turn, commit.state, fate)

    def _refused(self, commit: Commit, reason: str) -> None:
        resident = self.residents.get(commit.execution)
        if resident is not None and resident.epoch == commit.epoch:
            resident.drop()
        self._spawn(self._block(commit.execution, commit.epoch, reason))

    def broken(self, resident: Resident, error: Exception) -> None:
        log.error("execution.broken", execution=resident.id, traceback=trace(error))
        self._spawn(self._block(resident.id, resident.epoch, _cause(error)))

    async def _block(self, id: str, epoch: int, cause: str) -> None:
        log.error("execution.blocked", execution=id, cause=cause)
        await self.store.block(self.id, id, epoch, cause)
        self._tell_end(id)

    def _tell_end(self, id: str, told: tuple[Workflow[Any, Any, Any], bytes] | None = None) -> None:
        """Wakes who waits for it here: with its exit, or to look for themselves."""
        ended = self._ends.pop(id, None)
        if ended is not None and not ended.done():
            ended.set_result(told)

    def ask(self, resident: Resident, one: Pending) -> None:
        self._spawn(self._asked(resident, one), resident)

    def look_for(self, resident: Resident, children: tuple[str, ...]) -> None:
        async def look() -> None:
            known = await self.store.children(children)
            await self._fetch_mail([resident.id])
            for child in children:
                parent, exit = known.get(child, (None, None))
                if exit is not None:
                    resident.feed(lambda child=child, exit=exit: resident.activation.found(child, exit, self.upper()))  # type: ignore[misc]
                elif parent != resident.id:
                    resident.strangers = True
            resident.go()

        self._spawn(look(), resident)

    def note(self, resident: Resident, note: Report) -> None:
        log.info(note.note, execution=resident.id, workflow=resident.activation.workflow.name, done=note.done, total=note.total)
        self._spawn(self.store.note(resident.id, note.note, note.done, note.total))

    def gone(self, resident: Resident) -> None:
        if self.residents.get(resident.id) is resident:
            del self.residents[resident.id]
            self._left.set()

    def connection(self) -> AbstractAsyncContextManager[Any]:
        return self._activity_connection()

    @asynccontextmanager
    async def _activity_connection(self) -> AsyncGenerator[Any]:
        async with self._transactions.acquire() as connection:
            yield connection

    async def begin_transaction(self, resident: Resident) -> Transaction:
        connection = await self._transactions.acquire()
        transaction = connection.transaction()
        try:
            await transaction.start()
            await connection.execute(f"set local idle_in_transaction_session_timeout = {int(self.tuning.lease * 1000)}")
        except BaseException:
            await self._transactions.release(connection)
            raise
        return _Transaction(self, self._transactions, resident, connection, transaction)

    # Asking the store

    async def _asked(self, resident: Resident, one: Pending) -> None:
        activation = resident.activation
        match one.instruction:
            case Start() as start:
                await self._keyed_child(resident, one, start)
            case Existing() as existing:
                found = await self.store.existing(self._tenant(resident), existing.workflow.name, _scope(resident), existing.keys)
                body = codec(dict[str, str]).encode({key: public_status(status) for key, status in found.items()})
                resident.feed(lambda: activation.answered(one.step, body, self.upper()))
            case Receive() as receive:
                await self.store.register(self._tenant(resident), receive.signal.name, receive.key or "", resident.id)
                resident.feed(lambda: activation.registered(one.step))
                await self._fetch_mail([resident.id])
            case _:
                raise FlowError(f"{one.instruction} cannot be asked of the store")

    async def _keyed_child(self, resident: Resident, one: Pending, start: Start[Any]) -> None:
        activation, workflow = resident.activation, start.workflow
        wish = NewStart(
            child_id(resident.id, one.step), self._tenant(resident), workflow.name, workflow.version, _scope(resident), start.key, workflow.reuse,
            activation.fold.request(one), resident.id, one.step, start.detached,
        )  # fmt: skip
        started = await self._started(wish)
        if started.outcome == "rejected":
            taken = Defect(workflow.name, str(Rejected(workflow.name, start.key or "", started.id)))
            resident.feed(lambda: activation.answered(one.step, defect_body(taken), self.upper(), kind=BUG))
        else:
            resident.feed(lambda: activation.answered(one.step, json.dumps(started.id).encode(), self.upper()))

    def _tenant(self, resident: Resident) -> str:
        return resident.activation.execution.tenant

    async def _started(self, wish: NewStart) -> Started:
        """Starts that come together go out together."""
        told: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
        self._wishes.append((wish, told))
        if len(self._wishes) == 1:
            self._spawn(self._start_all())
        return await told

    async def _start_all(self) -> None:
        await asyncio.sleep(0)
        wishes, self._wishes = self._wishes, []
        await self._start_these(wishes)
        self._kick.set()

    async def _start_these(self, wishes: list[tuple[NewStart, asyncio.Future[Started]]]) -> None:
        try:
            outcomes = await self._outcomes([wish for wish, _ in wishes])
        except Exception as error:
            if len(wishes) > 1 and refuses(error):  # of one of them: not the others' fault
                for one in wishes:
                    await self._start_these([one])
                return
            for _, told in wishes:
                if not told.done():
                    told.set_exception(error)
            return
        for (_, told), outcome in zip(wishes, outcomes, strict=True):
            if not told.done():
                told.set_result(outcome)

    async def _outcomes(self, wishes: list[NewStart]) -> list[Started]:
        """What has no key cannot be another's: it begins here, without a claim, as long as there is room."""
        if self._stopping or not self.fit or any(wish.key or wish.parent for wish in wishes) or len(self.residents) >= self.tuning.capacity:
            return await self.store.start(wishes)
        ids = {wish.id for wish in wishes}
        self._beginning |= ids
        try:
            await self._take(await self.store.begin(self.id, wishes))
        finally:
            self._beginning -= ids
        return [Started(wish.id, "new", "running") for wish in wishes]

    # Claims

    async def _poll(self) -> None:
        look_around = 0.0
        while not self._stopping:
            pause = self.tuning.poll * (0.8 + 0.4 * random.random())
            try:
                if self._heart.gone:
                    await self._begin_anew()
                if self._heart.fit:
                    more = await self._claim()
                    await self._fetch_hinted()
                    if time.monotonic() >= look_around:
                        look_around = time.monotonic() + self.tuning.poll
                        await self._look_around()
                    if more:
                        continue
                    pause = min(pause, look_around - time.monotonic() + 0.01)
                else:
                    pause = min(pause, 0.1)
            except Exception as error:
                if not (lost(error) or isinstance(error, (asyncpg.PostgresError, FlowError))):
                    log.error("poll.failed", worker=self.id, traceback=trace(error))
                else:
                    log.warning("poll.failed", worker=self.id, error=str(error) or type(error).__name__)
                await asyncio.sleep(0.2)
            try:
                async with asyncio.timeout(max(0.005, pause)):
                    await self._kick.wait()
            except TimeoutError:
                pass
            self._kick.clear()

    async def _begin_anew(self) -> None:
        """Declared gone: everything in memory belongs to others now. A new worker id begins with nothing."""
        for resident in list(self.residents.values()):
            resident.drop()
        await self._committer.close()
        await self._register()

    async def _claim(self) -> bool:
        """Takes what is due. True when there may be more at once."""
        room = min(self.tuning.claim, self.tuning.capacity - len(self.residents))
        if room <= 0:
            return False
        suspect = not any(resident.suspect for resident in self.residents.values())
        rows = await self.store.pool.fetch("select * from flowdsl.claim($1, $2, $3, $4)", self.id, room, list(self.deployment.names), suspect)
        found = [claimed(row) for row in rows]
        for one in found:
            if one.blocked:
                log.error("execution.blocked", execution=one.id, cause="three workers died while they had it")
                self._tell_end(one.id)
        await self._take([one for one in found if not one.blocked])
        return len(rows) >= room

    async def _take(self, found: Sequence[Claimed]) -> None:
        """Loads and folds what was claimed."""
        if not found:
            return
        old = [one.id for one in found if one.epoch > 1]
        posted = [one.id for one in found if one.mail]
        journals = await self.store.load(old) if old else {}
        mails = await self.store.mails(posted) if posted else {}
        for one in found:
            await self._fold(one, journals.get(one.id, []), mails.get(one.id, []))

    async def _fold(self, one: Claimed, entries: list[Entry], mails: list[Mail]) -> None:
        known = self.residents.get(one.id)
        if known is not None:
            known.drop()
        try:
            workflow = self.deployment.workflow(one.workflow)
            execution = Execution(one.id, one.tenant, one.workflow, one.key, one.parent, one.started)
            activation = Activation(execution, workflow, one.request, self.deployment.workflow)
            resident = Resident(self, activation, one.epoch, parent=one.parent, scope=one.scope, suspect=one.deaths > 0)
            activation.begin(entries, mails, self.upper(), taken_over=one.taken_over)
        except Exception as error:  # Divergence, Undecodable, NotFound; whatever it is, the others that were claimed must not suffer from it
            if not isinstance(error, FlowError):
                log.error("execution.broken", execution=one.id, traceback=trace(error))
            await self._block(one.id, one.epoch, _cause(error))
            return
        activation.seen = max(activation.seen, one.mail)
        if one.taken_over:
            log.info("execution.taken_over", execution=one.id, workflow=one.workflow, entries=len(entries))
        self.residents[one.id] = resident
        resident.go()

    async def _fetch_hinted(self) -> None:
        hinted, self._mailed = self._mailed, set()
        try:
            await self._fetch_mail(hinted)
        except BaseException:
            self._mailed |= hinted
            raise

    async def _fetch_mail(self, ids: Collection[str], accepted: Mapping[str, int] | None = None) -> None:
        """Delivers what is in the mailboxes; `accepted`: how many mails were ever, where that is known."""
        here = [id for id in ids if id in self.residents]
        if not here:
            return
        for id, mails in (await self.store.mails(here)).items():
            resident = self.residents.get(id)
            if resident is not None:
                resident.deliver(mails, accepted.get(id, 0) if accepted else 0)

    async def _look_around(self) -> None:
        """The net under every hint: gone workers, mail for what is here, and what the store says is ours and memory does not."""
        await self.store.again("select flowdsl.take_over()")
        before = set(self.residents)
        rows = await self.store.again("select x.id, x.mail from flowdsl.executions x where x.owner = $1", self.id)
        ours = {str(row["id"]): row["mail"] for row in rows}
        here = {id: resident for id in ours if (resident := self.residents.get(id)) is not None}
        await self._fetch_mail([id for id, resident in here.items() if ours[id] > resident.activation.seen], ours)
        expected = before | self._beginning
        missing = [id for id in ours if id not in here and id not in expected and not self._committer.has(id)]
        if missing:
            await self._take(await self.store.reclaim(self.id, missing))
        for resident in here.values():
            if resident.suspect and asyncio.get_running_loop().time() - resident.since > self.tuning.lease:
                resident.acquit()
        for id in [id for id in self._ends if id not in self.residents]:
            self._tell_end(id)

    # Small things

    def _spawn(self, work: Awaitable[Any], resident: Resident | None = None) -> None:
        async def run() -> None:
            try:
                await work
            except Exception as error:
                away = (lost(error) or isinstance(error, (StoreError, asyncpg.PostgresError))) and not refuses(error)
                if resident is not None and not resident.dropped and not away:
                    self.broken(resident, error)
                else:
                    log.warning("store.failed", worker=self.id, error=str(error) or type(error).__name__)
                if resident is not None:
                    resident.drop()  # the store still says that it is ours: the next look around loads it, or finds it blocked

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> Any:
        return await connect(self.store.dsn, lock_timeout="2000")


class _Transaction:
    """See `flowdsl.replay.Transaction`."""

    def __init__(self, worker: Worker, pool: Any, resident: Resident, connection: Any, transaction: Any) -> None:
        self._worker, self._pool, self._resident, self.connection, self._transaction = worker, pool, resident, connection, transaction
        self._open = True

    async def append(self, entry: Entry) -> bool:
        try:
            async with asyncio.timeout(self._worker.tuning.lease):
                ours = await self.connection.fetchval(
                    "select flowdsl.append_own($1,$2,$3,$4,$5,$6,$7,$8,$9,$10)",
                    self._worker.id, self._resident.id, entry.position, self._resident.epoch, entry.kind, entry.at, entry.step, entry.fingerprint,
                    entry.site, entry.body,
                )  # fmt: skip
                if not ours:
                    return False
                await self._transaction.commit()
        except asyncpg.PostgresError as error:
            if lost(error):
                return await self._unknown(entry)
            if isinstance(error, asyncpg.UniqueViolationError) and (getattr(error, "schema_name", ""), getattr(error, "table_name", "")) == (
                "flowdsl",
                "journal",
            ):
                return False
            raise  # the server says that it did not commit
        except Exception:
            return await self._unknown(entry)
        return True

    async def _unknown(self, entry: Entry) -> bool:
        """The position is taken with another entry: that waits for the open transaction, and tells what became of it.

        Until it is known nothing else of this execution may be recorded: else its next turn could be taken for what is unknown.
        """
        self._abandon()
        interrupted = evolve(entry, kind=INTERRUPTED, body=_interruption(self._resident, entry))
        fate = await self._told(
            "select flowdsl.append($1, array[$2::uuid], array[$3::int], array[$4::int], array[true], array[$5::smallint], array[$6::timestamptz],"
            " array[$7], array[$8], array[$9], array[$10::bytea])",
            self._worker.id, self._resident.id, entry.position, self._resident.epoch, INTERRUPTED, entry.at, entry.step, entry.fingerprint,
            entry.site, interrupted.body,
        )  # fmt: skip
        if fate is None:
            raise Unrecorded(interrupted)
        if fate[0] != "again":
            return False
        query = "select kind from flowdsl.journal where execution = $1 and position = $2"
        if await self._told(query, self._resident.id, entry.position) != SUCCESS:
            raise Unrecorded(interrupted)
        return True

    async def _told(self, query: str, *arguments: Any) -> Any:
        """The answer of the store, however long it is away; dropped meanwhile, nobody asks any more."""
        while not self._resident.dropped:
            try:
                return (await self._worker.store.again(query, *arguments))[0][0]
            except Exception as error:
                log.warning("transaction.unknown", execution=self._resident.id, error=str(error) or type(error).__name__)
                await asyncio.sleep(0.5)
        return ["left"]

    async def rollback(self) -> None:
        """Never raises. A connection that does not answer is never pooled again: it may hold a hidden transaction."""
        if not self._open:
            return
        self._open = False
        try:
            async with asyncio.timeout(5):
                if self.connection.is_in_transaction():
                    await self._transaction.rollback()
        except (TimeoutError, Exception):
            self._abandon()
        with suppress(Exception):
            await self._pool.release(self.connection)

    def _abandon(self) -> None:
        with suppress(Exception):  # it may be back in the pool: one that has died goes there by itself
            self.connection.terminate()


def _interruption(resident: Resident, entry: Entry) -> bytes:
    return b'{"number":%d}' % (resident.activation.fold.machine.pending[entry.step].attempts + 1)


def _scope(resident: Resident) -> str:
    """The scope of a child's key: its parent's key, or else its parent's id."""
    return resident.activation.execution.key or resident.id


def _cause(error: BaseException) -> str:
    return str(error) if isinstance(error, FlowError) else f"{type(error).__name__}: {error}"


def new_id() -> str:
    """An id that sorts by the time it was made."""
    stamp = (time.time_ns() // 1_000_000).to_bytes(6, "big")
    return str(UUID(bytes=stamp + os.urandom(10)))


@asynccontextmanager
async def opened(deployment: Deployment, dsn: str, tuning: Tuning | None = None) -> AsyncGenerator[Worker]:
    """A worker over a migrated database, for the length of a block."""
    await migrate(dsn, deployment.migrations)
    async with await Store.open(dsn) as store, Worker(deployment, store, tuning) as worker:
        yield worker


__all__ = ["Tuning", "Worker", "new_id", "opened"]
