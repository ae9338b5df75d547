"""The replaying interpreter's asyncio half: an execution resident in a worker. It hands over turns, runs implementations, keeps time.

What a turn lets out leaves only once the turn is committed. If the commit says that another owner was first, the resident is thrown away:
having fed it early did no harm.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog
from attrs import define
from returns.result import Failure, Success

from flowdsl.activation import Activation, Mail, Turn
from flowdsl.binding import Binding, Deployment, current_attempt
from flowdsl.codec import NotJournalable
from flowdsl.errors import FlowError
from flowdsl.flow import Defect, Join, Perform, Report, TimedOut, members
from flowdsl.journal import Entry, codecs_of
from flowdsl.machine import Pending, defect
from flowdsl.policy import shown

log = structlog.get_logger("flowdsl")

ABANDON = 5.0
"""Seconds that an implementation gets to follow a cancellation; then its answer is no longer waited for."""
AGAIN = 0.1
"""Seconds until one looks again whether the lease holds."""


class Transaction(Protocol):
    """A transaction of the journal's database, in which an implementation writes."""

    connection: Any

    async def append(self, entry: Entry) -> bool:
        """Adds the entry and commits both. False: it is certain that nothing was committed and this worker no longer owns the execution.

        Raises `Unrecorded` when nothing was committed but the attempt may be made again.
        """
        ...

    async def rollback(self) -> None:
        """Ends it, if it has not ended."""
        ...


class Unrecorded(FlowError):
    """A transactional attempt whose commit did not happen; the interruption is recorded under this position."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        super().__init__("the transaction was not committed; the attempt is made again")


class Host(Protocol):
    """What a resident needs of its worker."""

    deployment: Deployment
    linger: float

    @property
    def threads(self) -> Executor: ...

    def upper(self) -> datetime:
        """The store's time, at the latest."""
        ...

    def lower(self) -> datetime:
        """The store's time, at the earliest."""
        ...

    @property
    def fit(self) -> bool:
        """Whether its lease has certainly not run out: else nothing may leave."""
        ...

    def submit(self, resident: Resident, turn: Turn, state: str | None) -> None: ...
    def ask(self, resident: Resident, one: Pending) -> None: ...
    def look_for(self, resident: Resident, children: tuple[str, ...]) -> None: ...
    def note(self, resident: Resident, note: Report) -> None: ...
    def gone(self, resident: Resident) -> None: ...
    def broken(self, resident: Resident, error: Exception) -> None:
        """It cannot go on: it needs a person, with this as the cause."""
        ...

    def connection(self) -> AbstractAsyncContextManager[Any]: ...
    async def begin_transaction(self, resident: Resident) -> Transaction: ...


@define(eq=False)
class RunningAttempt:
    """One run of an implementation."""

    resident: Resident
    one: Pending
    number: int
    deadline: datetime
    transactional: bool
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    timed_out: bool = False
    last_heartbeat: object = None
    _transaction: Transaction | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def idempotency_key(self) -> str:
        return f"{self.resident.activation.execution.id}/{self.one.step}"

    @property
    def tenant(self) -> str:
        return self.resident.activation.execution.tenant

    def heartbeat(self, details: object = None) -> None:
        self.resident.heartbeats[self.one.step] = details

    def connection(self) -> AbstractAsyncContextManager[Any]:
        return self.resident.host.connection()

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        if not self.transactional:
            raise FlowError(f"{self.one.step}: this activity is not transactional; declare it with @activity(..., transactional=True)")
        return _Block(self)


class _Block:
    """`async with this_attempt().transaction() as connection`: opened on entry, committed with the success, rolled back else."""

    def __init__(self, attempt: RunningAttempt) -> None:
        self._attempt = attempt

    async def __aenter__(self) -> Any:
        attempt = self._attempt
        if attempt._transaction is None:
            attempt._transaction = await attempt.resident.host.begin_transaction(attempt.resident)
        return attempt._transaction.connection

    async def __aexit__(self, *_: object) -> None:
        return None


class Resident:
    """One execution in a worker's memory."""

    def __init__(self, host: Host, activation: Activation, epoch: int, *, parent: str | None, scope: str, suspect: bool = False) -> None:
        self.host, self.activation, self.epoch, self.parent, self.scope, self.suspect = host, activation, epoch, parent, scope, suspect
        self.attempts: dict[str, RunningAttempt] = {}
        self.heartbeats: dict[str, object] = {}
        self.since = asyncio.get_running_loop().time()
        self.strangers = False
        """Whether it waits for a child that is another's, whose end nobody tells it."""
        self.dropped = False
        self._in_flight = self._leaving = self._behind = False
        self._deferred: list[Callable[[], object]] = []
        self._held: list[Turn] = []
        self._timer: asyncio.TimerHandle | None = None
        self._slot: asyncio.Future[None] | None = None
        self._one_slot = asyncio.Lock()
        self._looked: set[str] = set()
        self._commits: set[asyncio.Task[None]] = set()

    @property
    def id(self) -> str:
        return self.activation.execution.id

    # What comes in

    def feed(self, fold: Callable[[], object]) -> None:
        """Folds something in, now or behind a transaction that waits for its position; then goes on."""
        if self.dropped:
            return
        if self._slot is not None:
            self._deferred.append(fold)
            return
        self._carry_out(fold, self._advance)

    def deliver(self, mails: Sequence[Mail], seen: int = 0) -> None:
        """Mail, in order; `seen`: how many were ever accepted, as far as is known."""

        def fold() -> None:
            self._behind = False
            self.activation.deliver(mails, self.host.upper())
            self.activation.seen = max(self.activation.seen, seen)

        self.feed(fold)

    def go(self) -> None:
        """Goes on from where it stands."""
        self._carry_out(self._advance)

    def _carry_out(self, *work: Callable[[], object]) -> None:
        """What raises here is a bug, or a value that nobody can write: half folded, it must neither stay nor be forgotten."""
        try:
            for one in work:
                if not self.dropped:
                    one()
        except Exception as error:
            self.host.broken(self, error)
            self.drop()

    # Turns

    def _advance(self) -> None:
        """Hands over the turn that has gathered, if none is in flight."""
        if self._in_flight or self.dropped:
            return
        while True:
            turn = self.activation.take_turn()
            for step in turn.closed:
                self._cancel_attempt(step)
            state = self._state(turn)
            if turn.entries or turn.takes or turn.cancels or state is not None:
                self._submit(turn, state)
                return
            if not self._let_out(turn):
                break
        if self._slot is not None:
            self._in_flight = True
            self._slot.set_result(None)
            return
        self._keep_time()

    def _submit(self, turn: Turn, state: str | None) -> None:
        self._in_flight = True
        self.host.submit(self, turn, state)

    def committed(self, turn: Turn, state: str | None, fate: str) -> None:
        """The fate of the turn in flight."""
        self._in_flight = False
        leaves = turn.ended is not None or state == "released" or (state == "suspended" and fate != "awake")
        if fate in ("left", "fenced") or leaves:
            self.drop()
            return
        self._behind = self._behind or fate == "awake"
        self.suspect = self.suspect and state is None
        self._carry_out(lambda: self._let_out(turn), self._advance)

    def acquit(self) -> None:
        """It was here for long enough, and the worker lives."""
        if not (self._in_flight or self.dropped):
            self._submit(self.activation.take_turn(), "alive")

    def leave(self) -> None:
        """Lets go of it as soon as nothing of it runs: what runs may end and be recorded, nothing new begins."""
        self._leaving = True
        self.go()

    def release(self) -> None:
        """Lets go of it, so that any worker may claim it: nothing is journaled of its attempts, they run again."""
        for step in list(self.attempts):
            self._cancel_attempt(step)
        self.leave()

    def drop(self) -> None:
        """Forgets it: its attempts are cancelled, their late answers go nowhere."""
        if self.dropped:
            return
        self.dropped = True
        if self._timer is not None:
            self._timer.cancel()
        for step in list(self.attempts):
            self._cancel_attempt(step)
        if self._slot is not None and not self._slot.done():
            self._slot.set_result(None)
        self.host.gone(self)

    def _state(self, turn: Turn) -> str | None:
        """Whether this turn also ends, releases or suspends it."""
        if turn.ended is not None:
            return turn.ended.status
        if self.attempts or self._slot is not None:
            return None
        if self._leaving:
            return "released"
        activation = self.activation
        if turn.performs or turn.asks or self._behind or not activation.idle or not activation.fold.machine.pending:
            return None
        due = activation.next_due
        far = due is None or due > self.host.upper() + timedelta(seconds=self.host.linger)
        return "suspended" if far and not activation.joins and not turn.children else None

    def _let_out(self, turn: Turn) -> bool:
        """What is committed may leave, while the lease holds: else it is kept until it holds again. True when something was let out."""
        if self._leaving or self.dropped:
            return False
        for note in turn.notes:
            self.host.note(self, note)
        turn.notes = []
        if not (turn.asks or turn.performs):
            return False
        if not self.host.fit:
            self._held.append(turn)
            if len(self._held) == 1:
                asyncio.get_running_loop().call_later(AGAIN, self._let_out_held)
            return False
        pending = self.activation.fold.machine.pending
        for one in turn.asks:
            if pending.get(one.step) is one:
                self.host.ask(self, one)
        for one in turn.performs:
            if pending.get(one.step) is one:
                self._begin(one)
        return True

    def _let_out_held(self) -> None:
        held, self._held = self._held, []
        self._carry_out(lambda: [self._let_out(turn) for turn in held])

    def _keep_time(self) -> None:
        """A timer for what is due next; or, when it only waits, for its suspension."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        activation = self.activation
        if activation.fold.machine.exit is not None:
            return
        pauses: list[float] = []
        due = activation.next_due
        if due is not None:
            pauses.append((due - self.host.lower()).total_seconds())
        if activation.idle and not self.attempts:
            pauses.append(self.host.linger)
        if pauses:
            self._timer = asyncio.get_running_loop().call_later(max(min(pauses), 0.0005), self._timed)

    def _timed(self) -> None:
        self._timer = None
        now = self.host.lower()
        due = self.activation.next_due
        if due is not None and due <= now:
            self.feed(lambda: self.activation.tick(self.host.lower()))
        elif (
            self.activation.idle
            and not (self.attempts or self._in_flight or self._behind)
            and (due is None or (due - now).total_seconds() > self.host.linger)
        ):
            self._carry_out(self._suspend)
        else:
            self._keep_time()

    def _suspend(self) -> None:
        """Out of memory, unless mail has come that it has not seen; a child that ended before it was joined is looked for once a join."""
        joins = {step: one.instruction.child.id for step, one in self.activation.fold.machine.pending.items() if isinstance(one.instruction, Join)}
        unknown = joins.keys() - self._looked
        if unknown:
            self._looked |= unknown
            self.host.look_for(self, tuple({joins[step] for step in unknown}))
        else:
            self._submit(self.activation.take_turn(), "suspended")

    # Attempts

    def _begin(self, one: Pending) -> None:
        instruction = one.instruction
        assert isinstance(instruction, Perform)
        activity = instruction.activity
        limit = activity.policies.start_to_close
        attempt = RunningAttempt(self, one, one.attempts + 1, self.host.upper() + limit, activity.policies.transactional)
        attempt.last_heartbeat = self.heartbeats.get(one.step)
        self.attempts[one.step] = attempt
        binding = self.host.deployment.binding(activity.name)
        loop = asyncio.get_running_loop()
        attempt.timer = loop.call_later(limit.total_seconds(), self._time_out, attempt)
        attempt.task = loop.create_task(self._run(attempt, binding))

    async def _run(self, attempt: RunningAttempt, binding: Binding) -> None:
        one = attempt.one
        current_attempt.set(attempt)
        exit: Success[Any] | Failure[Any] | Defect
        try:
            instruction = one.instruction
            assert isinstance(instruction, Perform)
            request = codecs_of(instruction.activity.root).request.decode(self.activation.fold.request(one))
            if binding.is_async:
                answer = await binding.implementation(request)
            else:
                call = contextvars.copy_context()
                answer = await asyncio.get_running_loop().run_in_executor(self.host.threads, lambda: call.run(binding.implementation, request))
                if inspect.isawaitable(answer):
                    answer = await answer
            exit = answer if isinstance(answer, (Success, Failure)) else _no_result(binding, answer)
            if attempt._transaction is not None and isinstance(exit, Success) and not attempt.cancelled:
                self._hand_over(attempt, attempt._transaction, exit)
                return
        except asyncio.CancelledError as error:
            if attempt.task is not None and attempt.task.cancelling() and not attempt.timed_out:
                return
            exit = defect(error)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            exit = defect(error)
        finally:
            if attempt._transaction is not None:
                await asyncio.shield(attempt._transaction.rollback())
        self._ended(attempt, exit)

    def _time_out(self, attempt: RunningAttempt) -> None:
        attempt.timed_out = attempt.cancelled = True
        if attempt.task is not None:
            attempt.task.cancel()
        asyncio.get_running_loop().call_later(ABANDON, self._ended, attempt, Defect("", "timed out"))

    def _ended(self, attempt: RunningAttempt, exit: Success[Any] | Failure[Any] | Defect) -> None:
        step = attempt.one.step
        if self.attempts.get(step) is not attempt:
            return
        del self.attempts[step]
        if attempt.timer is not None:
            attempt.timer.cancel()
        if attempt.timed_out:
            exit = _timed_out(attempt.one)
        self.feed(lambda: self.activation.ended(step, exit, self.host.upper(), timed_out=attempt.timed_out))

    def _cancel_attempt(self, step: str) -> None:
        attempt = self.attempts.pop(step, None)
        if attempt is None:
            return
        attempt.cancelled = True
        if attempt.timer is not None:
            attempt.timer.cancel()
        if attempt.task is not None:
            attempt.task.cancel()

    # Transactional activities: the position is chosen at the end, while nothing else of this execution is under way

    def _hand_over(self, attempt: RunningAttempt, transaction: Transaction, exit: Success[Any]) -> None:
        """From here on neither a time-out nor a cancellation interrupts: the fate of a commit must be known."""
        attempt._transaction = None
        if attempt.timer is not None:
            attempt.timer.cancel()
        task = asyncio.get_running_loop().create_task(self._commit_transaction(attempt, transaction, exit))
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)

    async def _commit_transaction(self, attempt: RunningAttempt, transaction: Transaction, exit: Success[Any]) -> None:
        async with self._one_slot:
            follows: Callable[[], object] = self.drop
            try:
                await self._position()
                follows = await self._appended(attempt.one, transaction, exit)
            finally:
                try:
                    await transaction.rollback()
                finally:
                    if self.attempts.get(attempt.one.step) is attempt:
                        del self.attempts[attempt.one.step]
                    self._go_on_with(follows)

    async def _position(self) -> None:
        """Until what was folded is committed and nothing else is: the next position is known then. What comes in meanwhile is folded later."""
        if not self.dropped:
            slot = self._slot = asyncio.get_running_loop().create_future()
            self.go()
            await slot

    async def _appended(self, one: Pending, transaction: Transaction, exit: Success[Any]) -> Callable[[], object]:
        """Commits, and gives what is to be folded then."""
        activation = self.activation
        if self.dropped or activation.fold.machine.pending.get(one.step) is not one:
            return _nothing
        try:
            entry = activation.prepared(one, activation.fold.encode_answer(one, exit.unwrap()), self.host.upper())
            if not await transaction.append(entry):
                return self.drop
        except Unrecorded as unrecorded:
            entry = unrecorded.entry
        except NotJournalable:
            return lambda: activation.ended(one.step, exit, self.host.upper())
        except Exception as error:
            failed = defect(error)
            return lambda: activation.ended(one.step, failed, self.host.upper())
        return lambda: activation.recorded(entry, self.host.upper())

    def _go_on_with(self, fold: Callable[[], object]) -> None:
        """Gives the slot back: what came in meanwhile is folded behind the transaction's entry."""
        self._slot, self._in_flight = None, False
        deferred, self._deferred = self._deferred, []
        self._carry_out(fold, *deferred, self._advance)


def _nothing() -> None:
    """A late answer that nobody asks for any more."""


def _no_result(binding: Binding, answer: object) -> Defect:
    return Defect(binding.activity.name, f"its implementation returned {answer!r}: return Success(...) or Failure(...)")


def _timed_out(one: Pending) -> Failure[Any] | Defect:
    instruction = one.instruction
    assert isinstance(instruction, Perform)
    activity = instruction.activity
    after = shown(activity.policies.start_to_close)
    if TimedOut in members(activity.root.shape.failures):
        return Failure(TimedOut(after))
    return Defect(activity.name, f"timed out after {after}")
