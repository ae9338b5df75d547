"""One execution at work, without I/O: what can be answered at once is answered, the rest is let out turn by turn.

Feed, commit, let out: an answer is folded in memory; all that follows from it is one turn; nothing of a turn leaves before it is committed.
Every interpreter drives this same code: it delivers exits, mail and the time, commits turns, and carries out what a turn lets out.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from heapq import heapify, heappop, heappush
from typing import Any, Final, Literal, TypeAlias, cast
from uuid import UUID

from attrs import define, frozen
from returns.result import Failure, Success

from flowdsl.codec import NotJournalable, Undecodable, codec, encode_plain
from flowdsl.definition import Activity, Workflow
from flowdsl.errors import TooLarge
from flowdsl.flow import (
    Audit,
    CancelChild,
    Changed,
    Defect,
    Do,
    Execution,
    Existing,
    Interrupted,
    Join,
    Perform,
    Receive,
    Report,
    Send,
    Sleep,
    Start,
    TimedOut,
    members,
)
from flowdsl.journal import (
    ATTEMPT,
    BUG,
    CHECKPOINT,
    FAILURE,
    INTENT,
    INTERRUPTED,
    NULL,
    SUCCESS,
    Entry,
    Fold,
    Intervention,
    attempt_body,
    codecs_of,
    defect_body,
    encode_exit,
)
from flowdsl.machine import CancelScope, Checkpoint, Pending, defect
from flowdsl.policy import Limits, shown, within
from flowdsl.secret import betrayed

Stored: TypeAlias = Literal["running", "suspended", "blocked", "succeeded", "failed", "cancelled"]
OPEN: Final[tuple[Stored, ...]] = ("running", "suspended", "blocked")


MailKind: TypeAlias = Literal["signal", "exit", "cancel", "pause", "terminate"]


@frozen
class Mail:
    """What was sent to an execution: a signal, the exit of a child, or a wish that it cancel, pause or end. `seq` is its place in the mailbox."""

    seq: int
    kind: MailKind
    name: str
    key: str | None
    body: bytes


@frozen
class Sent:
    """Mail on its way out."""

    to: str
    kind: MailKind
    name: str
    body: bytes
    delivery: str


@frozen
class NewChild:
    id: str
    workflow: str
    version: int
    key: str | None
    request: bytes
    step: str
    detached: bool
    terminates: bool = False


@frozen
class Ended:
    """How an execution ended, and the exit as it is stored."""

    status: Stored
    exit: bytes
    cause: str | None = None


@define(init=False)
class Turn:
    """All that follows from what was folded: committed as one. What is in `performs` and `asks` may leave once it is."""

    entries: list[Entry]
    children: list[NewChild]
    mails: list[Sent]
    takes: list[int]
    cancels: Sequence[str]
    audits: Sequence[tuple[str, bytes]]
    notes: Sequence[Report]
    performs: list[Pending]
    asks: list[Pending]
    closed: Sequence[str]
    ended: Ended | None

    def __init__(  # by hand, and with no list that is seldom wanted: each step makes one
        self,
        entries: list[Entry] | None = None,
        children: list[NewChild] | None = None,
        mails: list[Sent] | None = None,
        takes: list[int] | None = None,
        cancels: Sequence[str] = (),
        audits: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        self.entries = [] if entries is None else entries
        self.children = [] if children is None else children
        self.mails = [] if mails is None else mails
        self.takes = [] if takes is None else takes
        self.cancels, self.audits = cancels, audits
        self.notes = self.closed = ()
        self.performs, self.asks = [], []
        self.ended = None


def child_id(key: str) -> str:
    """The id of the child of a step, by the step's idempotency key. Begins with its parent's, so that ids stay in the order of time."""
    drawn = blake2b(key.encode(), digest_size=16).digest()
    return str(UUID(bytes=UUID(key.partition("/")[0]).bytes[:6] + drawn[6:]))


def live_entries(journal: Sequence[Entry]) -> list[Entry]:
    """What a store would load of a whole journal: the newest entry with a `live` set, the positions in it, and all from it on."""
    for entry in reversed(journal):
        if entry.live is not None:
            kept = [one for one in journal[: entry.position] if any(low <= one.position < high for low, high in entry.live)]
            return [*kept, *journal[entry.position :]]
    return list(journal)


class Activation:
    """Drives the fold of one execution. All times are Postgres's (or virtual): upper bounds when something begins, lower when it is due."""

    __slots__ = (
        "_doubt", "_due", "_mailbox", "_stale", "_turn", "_waiting", "busy", "execution", "fold", "limits", "paused", "seen", "workflow",
    )  # fmt: skip

    def __init__(
        self,
        execution: Execution,
        workflow: Workflow[Any, Any, Any],
        request: bytes,
        definitions: Callable[[str], Workflow[Any, Any, Any]],
        limits: Limits = Limits(),  # noqa: B008 (it is frozen)
        *,
        doubt: Callable[[], timedelta] = timedelta,
    ) -> None:
        self.execution, self.workflow, self.limits = execution, workflow, limits
        self._doubt = doubt  # how far `now` may be ahead of the time that it surely is
        self.fold = Fold(execution, Do(workflow.body, (codecs_of(workflow).request.decode(request),)), definitions)
        self.seen = 0
        self.paused: str | None = None
        """Why it is to stop, so that nothing new begins, until a person lets it go on."""
        self.busy: set[str] = set()
        """Steps that are out: an implementation or the store has been asked."""
        self._turn = Turn()
        self._due: list[tuple[datetime, str]] = []
        self._stale = 0
        self._mailbox: dict[tuple[str, str, str | None], deque[Mail]] = {}
        self._waiting: dict[tuple[str, str, str | None], list[str]] = {}

    # What comes in

    def begin(self, entries: Sequence[Entry], mails: Iterable[Mail], now: datetime, *, taken_over: bool = False) -> None:
        """Folds what is recorded, then goes on from there. After a take-over the attempts that were cut short are recorded.

        Raises `Divergence`; nothing was executed then.
        """
        self.fold.replay(entries)
        machine = self.fold.machine
        machine.opened.sort(key=_turn_of)
        for one in list(machine.opened):
            running = one.due is None or one.due <= now  # a delay that was over may have been followed by an attempt that nobody heard of
            cut_short = isinstance(one.instruction, Perform) and running and (taken_over or one.intended)
            if cut_short and machine.pending.get(one.step) is one:
                self._interrupted(one, now)
        self._wait_again(now)
        self.deliver(mails, now)

    def _wait_again(self, now: datetime) -> None:
        """What was waited for before its mail came is answered in the order in which it came, as if it had been here."""
        machine = self.fold.machine
        opened, machine.opened = machine.opened, []
        for one in opened:
            waits = isinstance(one.instruction, Join) or (isinstance(one.instruction, Receive) and one.instruction.wait)
            if not waits:
                machine.opened.append(one)
            elif machine.pending.get(one.step) is one:
                self._opened(one, now)

    def deliver(self, mails: Iterable[Mail], now: datetime) -> None:
        """Mail, in order. What has been seen already is passed over."""
        for mail in mails:
            if mail.seq <= self.seen:
                continue
            self.seen = mail.seq
            if mail.kind in ("cancel", "pause", "terminate"):
                self._turn.takes.append(mail.seq)
                self._wished(mail.kind, json.loads(mail.body), now)
                continue
            key = (mail.kind, mail.name, mail.key)
            self._mailbox.setdefault(key, deque()).append(mail)
            self._match(key, now)
        self._settle(now)

    def cancel(self, reason: str, now: datetime) -> None:
        """Asks it to end. The first reason counts; later ones are recorded as nothing."""
        if self.fold.machine.exit is None and not self.fold.machine.cancelling:
            self._turn.entries.append(self.fold.record_cancel(reason, now))
            self._settle(now)

    def _wished(self, kind: str, reason: str, now: datetime) -> None:
        if kind == "cancel":
            self.cancel(reason, now)
        elif kind == "pause":
            self.paused = reason
        elif self.fold.machine.exit is None:
            by = "its parent"
            self._turn.entries.append(self.fold.record_intervention(Intervention("terminate", by, reason), now))
            self._turn.audits = [*self._turn.audits, ("TERMINATED", encode_plain({"by": by, "reason": reason}))]

    def ended(
        self,
        step: str,
        exit: Success[Any] | Failure[Any] | Defect,
        now: datetime,
        *,
        timed_out: bool = False,
        final: bool = False,
        wait: timedelta | None = None,
    ) -> bool:
        """How an attempt ended: recorded as the step's exit, or as a failed attempt if the policy gives it another. False: nobody asks any more.

        `final`: it gets none, whatever the policy says; `wait`: none before that time is over.
        """
        self.busy.discard(step)
        one = self.fold.machine.pending.get(step)
        if one is None or not isinstance(one.instruction, Perform):
            return False
        if isinstance(exit, Success):
            self._answer(one, exit.unwrap(), now)
        else:
            self._failed(one, exit, now, again=None if not (timed_out or final) else not final, wait=wait)
        self._settle(now)
        return True

    def answered(self, step: str, body: bytes, now: datetime, *, kind: int = SUCCESS) -> None:
        """What the store said to a step of `Turn.asks`, encoded."""
        self.busy.discard(step)
        if step in self.fold.machine.pending:
            self._record(step, kind, body, now)
            self._settle(now)

    def prepared(self, one: Pending, body: bytes, now: datetime) -> Entry:
        """The entry that a transaction will commit as a step's success. Nothing else may be folded until its fate is known."""
        fold = self.fold
        return Entry(fold.position, SUCCESS, max(now, fold.at), one.step, fold.fingerprint(one), fold.site(one), body)

    def recorded(self, entry: Entry, now: datetime) -> None:
        """Folds an entry that is in the store already."""
        self.busy.discard(entry.step)
        self.fold.fold(entry)
        if entry.kind == INTERRUPTED:
            one = self.fold.machine.pending[entry.step]
            if not self._was_the_last(one, one.attempts, now, "was not committed"):
                self._let_out(one, now)
        self._settle(now)

    def registered(self, step: str) -> None:
        """The store knows now that this step waits for a correlation key; mail that had come to it has been delivered, more comes as mail does."""
        self.busy.discard(step)
        one = self.fold.machine.pending.get(step)
        if one is not None and isinstance(one.instruction, Receive) and not one.instruction.wait:
            self._stale += 1
            self._record(step, SUCCESS, NULL, self.fold.at)  # a look: nothing has come to that key
            self._settle(self.fold.at)

    def tick(self, sure: datetime, now: datetime | None = None) -> None:
        """The time: sleeps that are over end, attempts whose delay is over run again.

        What is due is decided by the earliest that it can be, and stamped with the latest: what opens then is not early either.
        """
        now = sure if now is None else now
        while self._due and self._due[0][0] <= sure:
            due, step = heappop(self._due)
            one = self.fold.machine.pending.get(step)
            if one is None:
                continue
            if isinstance(one.instruction, Sleep):
                self._record(step, SUCCESS, NULL, now)
            elif isinstance(one.instruction, Perform) and one.due == due:
                one.due = None
                self._let_out(one, now)
        self._settle(now)

    # What goes out

    def take_turn(self) -> Turn:
        """What has gathered since the last turn; empty when there is nothing."""
        turn, self._turn = self._turn, Turn()
        machine = self.fold.machine
        if machine.closed:
            turn.closed, machine.closed = machine.closed, []
            self.busy.difference_update(turn.closed)
            self._forget(len(turn.closed))
        if machine.effects:
            turn.cancels = [effect.scope for effect in machine.effects if isinstance(effect, CancelScope)]
            turn.notes = [effect for effect in machine.effects if not isinstance(effect, CancelScope)]
            machine.effects = []
        if turn.performs:
            turn.performs = [one for one in turn.performs if machine.pending.get(one.step) is one]
            self.busy.update([one.step for one in turn.performs])
        if turn.asks:
            turn.asks = [one for one in turn.asks if machine.pending.get(one.step) is one]
            self.busy.update([one.step for one in turn.asks])
        if machine.exit is not None:
            turn.ended = self._ended()
        return turn

    @property
    def next_due(self) -> datetime | None:
        """When something is due next; None when nothing is."""
        while self._due and self._due[0][1] not in self.fold.machine.pending:
            heappop(self._due)
        return self._due[0][0] if self._due else None

    @property
    def idle(self) -> bool:
        """Whether it only waits: for a time, for mail, for a child."""
        return not self.busy and self.fold.machine.exit is None

    @property
    def performing(self) -> bool:
        """Whether an activity is open: running, or waiting for its next attempt."""
        return any(isinstance(one.instruction, Perform) for one in self.fold.machine.pending.values())

    @property
    def stirred(self) -> bool:
        """Whether something has followed since the last turn was taken: it is not all recorded then."""
        turn = self._turn
        return bool(
            turn.entries or turn.performs or turn.asks or turn.takes or turn.children or turn.mails or turn.cancels or turn.audits or turn.notes
        )

    @property
    def quiet(self) -> bool:
        """Whether the next turn would be empty."""
        machine = self.fold.machine
        return not (machine.closed or machine.effects or machine.exit is not None or self.stirred)

    def found(self, child: str, exit: bytes, now: datetime) -> None:
        """A child had ended before anyone waited for it here, and its mail is gone."""
        for one in list(self.fold.machine.pending.values()):
            if isinstance(one.instruction, Join) and one.instruction.child.id == child:
                kind, body = exit_of_child(child, exit)
                self._record(one.step, kind, body, now)
        self._settle(now)

    @property
    def joins(self) -> tuple[str, ...]:
        """The children that are waited for."""
        return tuple(one.instruction.child.id for one in self.fold.machine.pending.values() if isinstance(one.instruction, Join))

    # Inside

    def _settle(self, now: datetime) -> None:
        """Answers what can be answered at once, until nothing more follows."""
        machine = self.fold.machine
        while machine.opened or machine.marks:
            marks, machine.marks = machine.marks, []
            self._turn.entries += [self.fold.record_mark(marker, now) for marker in marks]
            opened, machine.opened = machine.opened, []
            for one in opened:
                if machine.pending.get(one.step) is one:
                    self._opened(one, now)

    def _opened(self, one: Pending, now: datetime) -> None:
        instruction = one.instruction
        match instruction:
            case Perform():
                self._begin_attempts(one, now)
            case Sleep():
                self._push(_over_at(one, instruction.until), one, now)
            case Receive():
                key = ("signal", instruction.signal.name, instruction.key)
                if not instruction.wait and instruction.key is None and not self._mailbox.get(key):
                    self._record(one.step, SUCCESS, NULL, now)
                else:
                    if instruction.key is not None:
                        self._turn.asks.append(one)
                    self._wait(key, one, now)
            case Join():
                self._wait(("exit", instruction.child.id, None), one, now)
            case Checkpoint():
                self._checkpoint(one, instruction, now)
            case Start():
                self._begin_child(one, instruction, now)
            case Send():
                self._send(one, instruction, now)
            case CancelChild():
                reason = json.dumps("cancelled by its parent").encode()
                self._turn.mails.append(Sent(instruction.child.id, "cancel", "", reason, self.fold.key(one.step)))
                self._record(one.step, SUCCESS, NULL, now)
            case Audit():
                self._audit(one, instruction, now)
            case Existing():
                self._turn.asks.append(one)
            case Report() | Changed():
                pass  # never opened

    def _record(self, step: str, kind: int, body: bytes, now: datetime) -> None:
        self._turn.entries.append(self.fold.record(step, kind, body, now))

    def _answer(self, one: Pending, value: Any, now: datetime) -> None:
        try:
            body = self.encoded(one, value)
        except (NotJournalable, TooLarge) as error:
            self._refuse(one, error, now)
        else:
            self._record(one.step, SUCCESS, body, now)

    def encoded(self, one: Pending, value: Any) -> bytes:
        """An answer as it is recorded. Raises `NotJournalable` or `TooLarge`."""
        return _telling_nothing("answer", within(self.limits.answer, "its answer", self.fold.encode_answer(one, value)))

    def _encoded_failure(self, one: Pending, error: Any) -> bytes:
        return _telling_nothing("failure", within(self.limits.answer, "its failure", self.fold.encode_failure(one, error)))

    def _refuse(self, one: Pending, error: NotJournalable | TooLarge, now: datetime) -> None:
        self._record(one.step, BUG, defect_body(Defect(self._whose(one), str(error))), now)

    def _whose(self, one: Pending) -> str:
        return f"{self.fold.fingerprint(one).rpartition(' ')[0]} at {self.fold.site(one)}"

    def _forget(self, closed: int) -> None:
        """Now and then drops what was kept for steps that nobody waits for any more."""
        pending = self.fold.machine.pending
        self._stale += closed
        if self._stale > 64 + len(pending):
            self._stale = 0
            self._due = [due for due in self._due if due[1] in pending]
            heapify(self._due)
            left = {key: [step for step in steps if step in pending] for key, steps in self._waiting.items()}
            self._waiting = {key: steps for key, steps in left.items() if steps}

    # Activities

    def _begin_attempts(self, one: Pending, now: datetime) -> None:
        instruction = cast("Perform[Any, Any]", one.instruction)
        try:
            within(self.limits.request, "its input", self.fold.request(one))
        except (NotJournalable, TooLarge) as error:
            self._refuse(one, error, now)
            return
        if one.due is not None:
            self._push(one.due, one, now)
            return
        if instruction.activity.policies.crash == "fail" and not one.intended:
            self._record(one.step, INTENT, NULL, now)
        self._let_out(one, now)

    def _let_out(self, one: Pending, now: datetime) -> None:
        """An attempt is due. Not if all the time of its activity is over: nobody was there to make it."""
        activity = cast("Perform[Any, Any]", one.instruction).activity
        overall = activity.policies.schedule_to_close
        if overall is not None and now >= after(one.opened, overall) > one.opened:
            self._failed(one, timed_out(activity, "schedule_to_close"), now, again=False)
        else:
            self._turn.performs.append(one)

    def withdraw(self, one: Pending, now: datetime) -> None:
        """An attempt that was intended has not been made, and will not be made here."""
        if one.intended and self.fold.machine.pending.get(one.step) is one:
            self.busy.discard(one.step)
            self._record(one.step, INTERRUPTED, b'{"number":%d}' % one.attempts, now)

    def _interrupted(self, one: Pending, now: datetime) -> None:
        activity, number = cast("Perform[Any, Any]", one.instruction).activity, one.attempts + 1
        if activity.policies.crash == "fail":
            if one.intended:
                self._record(one.step, FAILURE, self.fold.encode_failure(one, Interrupted()), now)
        elif not self._was_the_last(one, number, now, "was cut short by the death of its worker"):
            self._record(one.step, INTERRUPTED, b'{"number":%d}' % number, now)

    def _was_the_last(self, one: Pending, number: int, now: datetime, what: str) -> bool:
        """Ends an activity whose attempt had no ending of its own, if there is to be no other."""
        activity = cast("Perform[Any, Any]", one.instruction).activity
        limit = activity.policies.schedule_to_close
        over = limit is not None and now >= after(one.opened, limit)
        if not (over or activity.policies.retry.exhausted(number)):
            return False
        if Interrupted in members(activity.root.shape.failures):
            self._record(one.step, FAILURE, self.fold.encode_failure(one, Interrupted()), now)
        else:
            why = "its schedule_to_close is over" if over else "its retry policy gives no more"
            self._record(one.step, BUG, defect_body(Defect(activity.name, f"attempt {number} {what}, and {why}")), now)
        return True

    def _failed(self, one: Pending, exit: Failure[Any] | Defect, now: datetime, *, again: bool | None = None, wait: timedelta | None = None) -> None:
        """`again`: whether there is to be another attempt, if that is not for the retry policy to say."""
        activity = cast("Perform[Any, Any]", one.instruction).activity
        policies, number = activity.policies, one.attempts + 1
        kind = BUG if isinstance(exit, Defect) else FAILURE
        try:
            body = defect_body(exit) if isinstance(exit, Defect) else self._encoded_failure(one, exit.failure())
        except (NotJournalable, TooLarge) as refused:
            self._refuse(one, refused, now)
            return
        try:
            again = isinstance(exit, Defect) or policies.retry.picks(exit.failure()) if again is None else again
            wished = wait if wait is not None or isinstance(exit, Defect) else getattr(exit.failure(), "retry_after", None)
            due = after(now, self._pause(one, number, wished))
        except Exception as broken:
            told = f"its retry policy cannot be asked: {defect(broken).message}"
            self._record(one.step, BUG, defect_body(Defect(activity.name, told)), now)
            return
        limit = policies.schedule_to_close
        if not again or policies.crash == "fail" or policies.retry.exhausted(number) or (limit is not None and due >= after(one.opened, limit)):
            self._record(one.step, kind, body, now)
            return
        self._record(one.step, ATTEMPT, attempt_body(number, due, kind, body), now)
        self._push(due, one, now)

    def _pause(self, one: Pending, number: int, wished: object) -> timedelta:
        retry = cast("Perform[Any, Any]", one.instruction).activity.policies.retry
        chance = 0.0
        if retry.jitter:
            drawn = blake2b(f"{self.execution.id}/{one.step}/{number}".encode(), digest_size=8).digest()
            chance = int.from_bytes(drawn, "big") / 2**64
        pause = retry.delay(number, chance)
        return max(pause, wished) if isinstance(wished, timedelta) else pause

    # Waits

    def _push(self, due: datetime, one: Pending, now: datetime) -> None:
        if due <= now and isinstance(one.instruction, Sleep) and (due <= one.opened or due <= now - self._doubt()):
            self._record(one.step, SUCCESS, NULL, now)
        else:
            heappush(self._due, (due, one.step))

    def _wait(self, key: tuple[str, str, str | None], one: Pending, now: datetime) -> None:
        self._waiting.setdefault(key, []).append(one.step)
        self._match(key, now)

    def _match(self, key: tuple[str, str, str | None], now: datetime) -> None:
        """Mail meets the steps that wait for it, oldest first on both sides."""
        mails, steps = self._mailbox.get(key), self._waiting.get(key)
        while mails and steps:
            one = self.fold.machine.pending.get(steps.pop(0))
            if one is None:
                continue  # the wait was closed meanwhile; the mail stays for the next one
            mail = mails.popleft()
            self._turn.takes.append(mail.seq)
            self.busy.discard(one.step)
            self._take(one, mail, now)
        if not mails:
            self._mailbox.pop(key, None)
        if not steps:
            self._waiting.pop(key, None)

    def _take(self, one: Pending, mail: Mail, now: datetime) -> None:
        try:
            if mail.kind == "signal":
                self._record(one.step, SUCCESS, mail.body, now)
            else:
                kind, body = exit_of_child(mail.name, mail.body)
                self._record(one.step, kind, body, now)
        except Undecodable as error:
            self._record(one.step, BUG, defect_body(Defect(f"{mail.kind} {mail.name}", str(error))), now)

    def _checkpoint(self, one: Pending, asked: Checkpoint, now: datetime) -> None:
        try:
            body = self.fold.encode_checkpoint(asked)
        except NotJournalable as error:
            self._record(one.step, BUG, defect_body(Defect(f"the state of iterate at {self.fold.site(one)}", str(error))), now)
            return
        live = tuple((low, high) for low, high in self.fold.machine.live_positions(one.step))
        self._turn.entries.append(self.fold.record(one.step, CHECKPOINT, body, now, live))

    def _begin_child(self, one: Pending, start: Start[Any], now: datetime) -> None:
        self.fold.parental = True
        try:
            request = within(self.limits.request, "its input", self.fold.request(one))
        except (NotJournalable, TooLarge) as error:
            self._refuse(one, error, now)
            return
        if start.key is not None:
            self._turn.asks.append(one)
            return
        id = child_id(self.fold.key(one.step))
        workflow = start.workflow
        self._turn.children.append(NewChild(id, workflow.name, workflow.version, None, request, one.step, start.detached, start.terminates))
        self._record(one.step, SUCCESS, json.dumps(id).encode(), now)

    def _send(self, one: Pending, send: Send, now: datetime) -> None:
        try:
            body = within(self.limits.request, "its payload", codec(send.signal.payload).encode(send.payload))
        except (NotJournalable, TooLarge) as error:
            self._refuse(one, error, now)
            return
        self._turn.mails.append(Sent(send.to, "signal", send.signal.name, body, self.fold.key(one.step)))
        self._record(one.step, SUCCESS, NULL, now)

    def _audit(self, one: Pending, audit: Audit, now: datetime) -> None:
        try:
            facts = encode_plain(audit.facts)
        except NotJournalable as error:
            self._refuse(one, error, now)
            return
        self._turn.audits = [*self._turn.audits, (audit.event, facts)]
        self._record(one.step, SUCCESS, NULL, now)

    def _ended(self) -> Ended:
        machine = self.fold.machine
        exit = machine.exit
        assert exit is not None
        try:
            body = within(self.limits.answer, "it", encode_exit(self.workflow, exit))
        except (NotJournalable, TooLarge) as error:
            exit = Defect(f"the answer of {self.workflow.name}", str(error))
            body = encode_exit(self.workflow, exit)
        if machine.failed_undos:
            return Ended("blocked", body, "undos failed: " + "; ".join(machine.failed_undos))
        status: Stored = "succeeded" if isinstance(exit, Success) else "failed" if isinstance(exit, (Failure, Defect)) else "cancelled"
        return Ended(status, body)


Span: TypeAlias = Literal["timeout", "schedule_to_close", "heartbeat"]
"""The policies that an attempt can run out of."""

_RAN_OUT: Final[dict[Span, str]] = {
    "timeout": "after {}",
    "schedule_to_close": "after {} over all attempts",
    "heartbeat": "without a heartbeat for {}",
}


def timed_out(activity: Activity[Any, Any, Any], span: Span) -> Failure[TimedOut] | Defect:
    """How an attempt ends that is given up: the failure `TimedOut` if the contract declares it."""
    policies = activity.policies
    limit = shown({"timeout": policies.start_to_close, "heartbeat": policies.heartbeat}.get(span, policies.schedule_to_close) or timedelta())
    if TimedOut in members(activity.root.shape.failures):
        return Failure(TimedOut(limit))
    return Defect(activity.name, f"timed out {_RAN_OUT[span].format(limit)}")


def _over_at(one: Pending, until: timedelta | datetime) -> datetime:
    """When a sleep is over."""
    return until if isinstance(until, datetime) else after(one.opened, until)


def _turn_of(one: Pending) -> datetime:
    """What became due while nobody looked is taken in the order of its time, and after all else."""
    over = _over_at(one, one.instruction.until) if isinstance(one.instruction, Sleep) else _EARLIEST
    return over if over > one.opened else _EARLIEST


def after(at: datetime, span: timedelta) -> datetime:
    try:
        return at + span
    except OverflowError:
        return _LATEST


_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)


def _telling_nothing(what: str, body: bytes) -> bytes:
    """What is to be recorded of an implementation's answer; refused if the value of a secret is in it."""
    if (name := betrayed(body)) is not None:
        raise NotJournalable(what, "no value of a secret", f"the value of {name!r}", f"return Secret({name!r}): its name is recorded")
    return body


def exit_of_child(child: str, body: bytes) -> tuple[int, bytes]:
    """A child's stored exit, as the exit of the join that waits for it: one ended from outside is a defect of the join."""
    kind, plain = next(iter(json.loads(body).items()))
    match kind:
        case "success":
            return SUCCESS, json.dumps(plain, separators=(",", ":")).encode()
        case "failure":
            return FAILURE, json.dumps(plain, separators=(",", ":")).encode()
        case "defect":
            return BUG, defect_body(Defect(f"child {child}: {plain['where']}", plain["message"]))
        case _:
            return BUG, defect_body(Defect(f"child {child}", f"ended from outside: {plain['reason']}"))
