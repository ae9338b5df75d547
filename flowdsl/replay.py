"""The replaying interpreter's asyncio half: an execution resident in a worker. It hands over turns, runs implementations, keeps time.

What a turn lets out leaves only once the turn is committed. If the commit says that another owner was first, the resident is thrown away:
having fed it early did no harm.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any

import structlog
from returns.result import Success

from flowdsl.activation import Activation, Mail, Turn, after
from flowdsl.attempt import Ending, RunningAttempt, Transaction, Unrecorded, raised, ran_out, returned, told
from flowdsl.binding import Binding, current_attempt
from flowdsl.codec import NotJournalable
from flowdsl.errors import TooLarge
from flowdsl.flow import Join, Perform
from flowdsl.hands import ABANDON
from flowdsl.host import Host
from flowdsl.journal import codecs_of
from flowdsl.machine import Pending

log = structlog.get_logger("flowdsl")

AGAIN = 0.1
"""Seconds until one looks again whether the lease holds."""


class Resident:
    """One execution in a worker's memory."""

    __slots__ = (
        "_behind", "_commits", "_deferred", "_held", "_in_flight", "_leaving", "_looked", "_looks", "_one_slot", "_slot", "_timer",
        "activation", "attempts", "dropped", "epoch", "heartbeats", "host", "parent", "put_off_until", "scope", "since", "strangers",
        "suspect", "waits", "weight",
    )  # fmt: skip

    def __init__(self, host: Host, activation: Activation, epoch: int, *, parent: str | None, scope: str, suspect: bool = False) -> None:
        self.host, self.activation, self.epoch, self.parent, self.scope, self.suspect = host, activation, epoch, parent, scope, suspect
        self.attempts: dict[str, RunningAttempt] = {}
        self.waits: dict[str, None] = {}
        """Steps whose attempts wait for a budget: nothing of them runs."""
        self.put_off_until: datetime | None = None
        self.heartbeats: dict[str, bytes] = {}
        """What the heartbeats of earlier attempts have told, by the place of their step."""
        self.since = asyncio.get_running_loop().time()
        self.strangers = False
        """Whether it waits for a child that is another's, whose end nobody tells it."""
        self.weight = 0
        """Bytes of what was folded into it."""
        self.dropped = False
        self._in_flight = self._leaving = self._behind = False
        self._deferred: list[Callable[[], object]] = []
        self._held: list[Turn] = []
        self._timer: asyncio.TimerHandle | None = None
        self._slot: asyncio.Future[None] | None = None
        self._one_slot: asyncio.Lock | None = None
        self._looked: set[str] = set()
        self._looks = 0
        self._commits: dict[asyncio.Task[None], None] = {}

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
        if self.attempts and self.activation.quiet and self._slot is None and not self._begins_nothing:
            self._keep_time()
            return
        while True:
            turn = self._gathered()
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

    def _gathered(self) -> Turn:
        turn = self.activation.take_turn()
        if self._begins_nothing:
            held, self._held = self._held, []
            self._take_back(one for late in [*held, turn] for one in late.performs)
            self._take_back(one for step in list(self.waits) if (one := self.activation.fold.machine.pending.get(step)) is not None)
            turn.entries += self.activation.take_turn().entries
        return turn

    @property
    def _begins_nothing(self) -> bool:
        return self._leaving or self.activation.paused is not None

    def _take_back(self, attempts: Iterable[Pending]) -> None:
        """They have not begun, and are left to who goes on with this. What is run at most once must say that it was not."""
        for one in attempts:
            self._cancel_attempt(one.step)
            self.activation.withdraw(one, self.host.upper())

    def _submit(self, turn: Turn, state: str | None) -> None:
        self._in_flight = True
        self.host.submit(self, turn, state)

    def committed(self, turn: Turn, state: str | None, fate: str) -> None:
        """The fate of the turn in flight."""
        self._in_flight = False
        if self.heartbeats and fate not in ("left", "fenced"):
            self._forget_details()
        leaves = turn.ended is not None or state in ("released", "blocked") or (state == "suspended" and fate != "awake")
        if fate in ("left", "fenced") or leaves:
            self.drop()
            return
        self._come_back()
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
        for step, attempt in list(self.attempts.items()):
            self._keep_details(attempt)
            self._cancel_attempt(step)
        self.leave()

    def drop(self) -> None:
        """Forgets it: its attempts are cancelled, their late answers go nowhere."""
        if self.dropped:
            return
        self.dropped = True
        if self._timer is not None:
            self._timer.cancel()
        for step in [*self.attempts, *self.waits]:
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
        if activation.paused is not None:
            return "blocked"
        if turn.performs or turn.asks or self._behind or not activation.idle or not activation.fold.machine.pending:
            return None
        due = activation.next_due
        far = due is None or due > self.host.upper() + timedelta(seconds=self.host.linger)
        return "suspended" if far and not activation.joins and not turn.children else None

    def _let_out(self, turn: Turn) -> bool:
        """What is committed may leave, while the lease holds: else it is kept until it holds again. True when something was let out."""
        if self.dropped:
            return False
        if self._begins_nothing:
            self._take_back(turn.performs)
            return False
        for note in turn.notes:
            self.host.note(self, note)
        turn.notes = ()
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
                self._begin_or_wait(one)
        return True

    def _let_out_held(self) -> None:
        held, self._held = self._held, []
        self._carry_out(lambda: [self._let_out(turn) for turn in held], self._advance)

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
            self.feed(lambda: self.activation.tick(self.host.lower(), self.host.upper()))
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
        unknown = [step for step in joins if step not in self._looked]
        if unknown:
            self._looked.update(unknown)
            self._looks += 1
            self.host.look_for(self, tuple(dict.fromkeys(joins[step] for step in unknown)))
        elif self._looks:  # what it will find nobody tells again: once suspended, this would wait for ever
            self._timer = asyncio.get_running_loop().call_later(AGAIN, self._timed)
        else:
            self._submit(self.activation.take_turn(), "suspended")

    def looked(self) -> None:
        """The host has looked, and fed what it found."""
        self._looks -= 1
        self.go()

    # Attempts

    def _begin_or_wait(self, one: Pending) -> None:
        if isinstance(one.instruction, Perform) and one.instruction.activity.policies.budget:
            self.waits[one.step] = None
            self.host.budgets.admit(self, one)
        else:
            self._begin(one)

    def admitted(self, one: Pending) -> RunningAttempt | None:
        """Its budgets let it begin. None if nobody wants it any more."""
        self.waits.pop(one.step, None)
        if not (self._begins_nothing or self.dropped) and self.activation.fold.machine.pending.get(one.step) is one:
            self._carry_out(lambda: self._begin(one))
        return self.attempts.get(one.step)

    def put_off(self, until: datetime) -> bool:
        """Out of memory until then, if all that it does is to wait for budgets; they are asked anew. What it was to do at most once keeps it here."""
        pending, only_waits = self.activation.fold.machine.pending, self.activation.busy == self.waits.keys() and not self.activation.joins
        busy = self._in_flight or self.dropped or self.attempts or self._slot is not None or self._held or self._behind or self._begins_nothing
        if busy or not only_waits or self.activation.stirred or any(pending[step].intended for step in self.waits):
            return False
        self.put_off_until = until
        for step in self.waits:
            self.host.budgets.withdraw(self, step)
        self._submit(self.activation.take_turn(), "suspended")
        return True

    def _come_back(self) -> None:
        """It was to be put off, and mail came."""
        if self.put_off_until is not None:
            self.put_off_until, waits, self.waits = None, self.waits, {}
            for one in [one for step in waits if (one := self.activation.fold.machine.pending.get(step)) is not None]:
                self._begin_or_wait(one)

    def never_began(self, one: Pending, ending: Ending) -> None:
        """Its time was over before its budgets let it begin."""
        self.waits.pop(one.step, None)
        self.feed(lambda: self._fold_ending(one.step, ending))

    def _begin(self, one: Pending) -> None:
        attempt = self._attempt(one)
        self.attempts[one.step] = attempt
        binding = self.host.deployment.binding(attempt.activity.name)
        attempt.task = self.host.hands.task(self._run(attempt, binding), f"{attempt.activity.name} {attempt.idempotency_key}")

    def _attempt(self, one: Pending) -> RunningAttempt:
        assert isinstance(one.instruction, Perform)
        activity, key = one.instruction.activity, self.activation.fold.key(one.step)
        left, overall = None, activity.policies.schedule_to_close
        if overall is not None:
            left = (after(one.opened, overall) - self.host.upper()).total_seconds()
        tenant, limits = self.activation.execution.tenant, self.host.deployment.limits
        heard = told(self.heartbeats.get(_place(key))) if self.heartbeats else None
        return RunningAttempt(self, self.host.hands.rounds, one, activity, key, one.attempts + 1, tenant, limits, left, heard)

    async def _run(self, attempt: RunningAttempt, binding: Binding) -> None:
        current_attempt.set(attempt)
        abandoned = False
        try:
            ending = await self._carried_out(attempt, binding)
            if attempt.transacting is not None and isinstance(ending.exit, Success) and not attempt.cancelled:
                self._hand_over(attempt, attempt.transacting, ending.exit)
                return
        except asyncio.CancelledError as error:
            if attempt.task is not None and attempt.task.cancelling() and attempt.over is None:
                return  # nobody waits for it, or the worker stops: neither is an ending
            ending = raised(error)
        except (KeyboardInterrupt, GeneratorExit):  # the process is being ended, not the attempt
            abandoned = True
            raise
        except BaseException as error:
            ending = raised(error)
        finally:
            if attempt.transacting is not None and not abandoned:
                await asyncio.shield(attempt.transacting.rollback())
        self._ended(attempt, ending)

    async def _carried_out(self, attempt: RunningAttempt, binding: Binding) -> Ending:
        request = codecs_of(attempt.activity.root).request.decode(self.activation.fold.request(attempt.one))
        if binding.is_async:
            attempt.begin()
            return returned(attempt.activity, await binding.implementation(request))
        came_back, answer = await self.host.hands.call(lambda: binding.implementation(request), attempt.begin)
        if not came_back:
            return raised(answer)
        return returned(attempt.activity, await answer if inspect.isawaitable(answer) else answer)

    def overdue(self, attempt: RunningAttempt) -> None:
        """Its time is over: it is told so. One that follows is done with at once, one that does not after a while."""
        log.warning("attempt.timed_out", execution=self.id, activity=attempt.activity.name, number=attempt.number, policy=attempt.over)
        in_a_thread = attempt.begun and not self.host.deployment.binding(attempt.activity.name).is_async
        if attempt.task is not None and not in_a_thread:
            attempt.task.cancel()
        asyncio.get_running_loop().call_later(ABANDON, self._give_up, attempt)

    def _give_up(self, attempt: RunningAttempt) -> None:
        if self.attempts.get(attempt.one.step) is attempt and attempt.task is not None:
            attempt.task.cancel()
            self._ended(attempt, ran_out(attempt.activity, attempt.over or "timeout"))

    def beaten(self, attempt: RunningAttempt) -> None:
        if self.attempts.get(attempt.one.step) is attempt and attempt.details is not None:
            self.heartbeats[_place(attempt.idempotency_key)] = attempt.details
            self.host.beaten(self, attempt)

    def upper(self) -> datetime:
        return self.host.upper()

    def connection(self) -> AbstractAsyncContextManager[Any]:
        return self.host.connection()

    async def begin_transaction(self) -> Transaction:
        return await self.host.begin_transaction(self)

    def _ended(self, attempt: RunningAttempt, ending: Ending) -> None:
        step = attempt.one.step
        if self.attempts.get(step) is not attempt:
            return  # late: nobody waits for it any more
        if attempt.over is not None:
            ending = ran_out(attempt.activity, attempt.over)
        self._let_go(attempt, ending)
        attempt.task = None  # its context knows the attempt: left to the cyclic collector, they would cost a tenth of all time
        self.feed(lambda: self._fold_ending(step, ending))

    def _let_go(self, attempt: RunningAttempt, ending: Ending) -> None:
        del self.attempts[attempt.one.step]
        attempt.end()
        if attempt.activity.policies.budget:
            self.host.budgets.ended(self, attempt, ending)
        if not isinstance(ending.exit, Success):
            self._keep_details(attempt)

    def _fold_ending(self, step: str, ending: Ending) -> None:
        self.activation.ended(step, ending.exit, self.host.upper(), timed_out=ending.timed_out, final=ending.final, wait=ending.wait)

    def _keep_details(self, attempt: RunningAttempt) -> None:
        """For the next attempt, here or elsewhere."""
        if attempt.details is not None:
            self.heartbeats[_place(attempt.idempotency_key)] = attempt.details
            self.host.beaten(self, attempt, at_once=True)

    def _forget_details(self) -> None:
        fold = self.activation.fold
        done = self.heartbeats.keys() - {_place(fold.key(step)) for step in fold.machine.pending}
        for place in done:
            del self.heartbeats[place]
        if done:
            self.host.forget(self, sorted(done))

    def _cancel_attempt(self, step: str) -> None:
        if step in self.waits:
            self.waits.pop(step, None)
            self.host.budgets.withdraw(self, step)
        attempt = self.attempts.pop(step, None)
        if attempt is not None:
            if attempt.activity.policies.budget:
                self.host.budgets.cancelled(attempt)
            attempt.end()
            if attempt.task is not None:
                attempt.task.cancel()

    # Transactional activities: the position is chosen at the end, while nothing else of this execution is under way

    def _hand_over(self, attempt: RunningAttempt, transaction: Transaction, exit: Success[Any]) -> None:
        """From here on neither a time-out nor a cancellation interrupts: the fate of a commit must be known."""
        attempt.transacting = None
        attempt.stop_clocks()
        task = asyncio.get_running_loop().create_task(self._commit_transaction(attempt, transaction, exit))
        self._commits[task] = None
        task.add_done_callback(self._commits.pop)

    async def _commit_transaction(self, attempt: RunningAttempt, transaction: Transaction, exit: Success[Any]) -> None:
        self._one_slot = self._one_slot or asyncio.Lock()
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
                        self._let_go(attempt, Ending(exit))
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
            entry = activation.prepared(one, activation.encoded(one, exit.unwrap()), self.host.upper())
            if not await transaction.append(entry):
                return self.drop
        except Unrecorded as unrecorded:
            entry = unrecorded.entry
        except (NotJournalable, TooLarge):
            return lambda: activation.ended(one.step, exit, self.host.upper())
        except Exception as error:
            failed = raised(error)
            return lambda: self._fold_ending(one.step, failed)
        return lambda: activation.recorded(entry, self.host.upper())

    def _go_on_with(self, fold: Callable[[], object]) -> None:
        """Gives the slot back: what came in meanwhile is folded behind the transaction's entry."""
        self._slot, self._in_flight = None, False
        deferred, self._deferred = self._deferred, []
        self._carry_out(fold, *deferred, self._advance)


def _nothing() -> None:
    """A late answer that nobody asks for any more."""


def _place(key: str) -> str:
    """Where an attempt is in its execution: its idempotency key without the execution."""
    return key.partition("/")[2]


__all__ = ["ABANDON", "Host", "Resident", "Transaction", "Unrecorded"]
