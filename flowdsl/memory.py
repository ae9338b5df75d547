"""The memory interpreter: the same machine and the same turns, a virtual clock, no event loop, no server.

run = Memory(deployment).run(count, 40)
assert run.exit == Success(40)
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from attrs import define, evolve, field, frozen
from returns.result import Success

from flowdsl.activation import OPEN, Activation, Ended, Mail, MailKind, NewChild, Sent, Stored, Turn, after, child_id, live_entries
from flowdsl.attempt import Ending, told
from flowdsl.binding import Deployment
from flowdsl.budget import Counted, Gate, counted, wished_rest
from flowdsl.codec import codec
from flowdsl.definition import Activity, Workflow
from flowdsl.errors import Rejected
from flowdsl.flow import Cancelled, Defect, Execution, Existing, Exit, Perform, Receive, Signal, Start, Status
from flowdsl.journal import BUG, OPERATOR, Divergence, Entry, Intervention, codecs_of, decode_exit, encode_exit
from flowdsl.machine import Pending
from flowdsl.operating import CannotRetry, Edits, Plan, Subject, edited, forked, position_of, public_status, retried, rewound
from flowdsl.policy import within
from flowdsl.story import Adopted, Arrived, Began, Called, Died, Dropped, Fate, Folded, Happening, Noted, Over, Recorded, Run, When, Wished
from flowdsl.story.pending import awaits, role_of, waits
from flowdsl.virtual import Rehearsal, VirtualAttempt

I = TypeVar("I")  # noqa: E741
A = TypeVar("A")
E = TypeVar("E")
T = TypeVar("T")

Answer: TypeAlias = Callable[[Any], Any]
"""A scripted implementation: takes the input, returns `Success`/`Failure`, or raises; plain or async."""

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@define
class _Kept:
    """What a store would hold of one execution."""

    execution: Execution
    workflow: Workflow[Any, Any, Any]
    request: bytes
    parent: str | None
    parent_step: str
    detached: bool
    terminates: bool = False
    status: Stored = "running"
    exit: bytes = b""
    cause: str | None = None
    journal: list[Entry] = field(factory=list[Entry])
    mailbox: list[Mail] = field(factory=list[Mail])
    mails: int = 0
    activation: Activation | None = None
    heartbeats: dict[str, bytes] = field(factory=dict[str, bytes])
    open: dict[str, Pending] = field(factory=dict[str, Pending])
    """What it waited for after its last turn."""
    claimed: bool = False
    """Whether a process has had it: when that dies, another one takes it over."""
    ended_at: datetime | None = None


@frozen(order=True)
class _Late:
    """An attempt that took its time: its ending is known, and comes when that time is over."""

    due: datetime
    number: int
    id: str = field(order=False)
    one: Pending = field(order=False)
    activation: Activation = field(order=False)
    ending: Ending = field(order=False)


Doom: TypeAlias = Callable[[When, str, Sequence[Entry]], bool]
"""Asked before and after the entries of a turn are recorded, with the id of their execution: True lets the process die at that moment."""


class Memory:
    """Runs workflows of a deployment in memory. `answers` scripts activities by contract, in place of their bindings.

    Time is virtual and jumps to the next due timer. `crash(n)` is asked after the n-th recorded entry of an execution: True throws the worker's
    memory of that execution away, and it is folded from its journal. `doom` is the death of the whole process: it forgets all executions at once.
    """

    doom: Doom | None = None
    deaths = 0

    def __init__(
        self,
        deployment: Deployment,
        answers: Mapping[Activity[Any, Any, Any], Answer] | None = None,
        *,
        crash: Callable[[int], bool] | None = None,
        connect: Callable[[], Any] | None = None,
        tenant: str = "default",
    ) -> None:
        self.now = EPOCH
        self._deployment, self._crash, self._connect, self._tenant = deployment, crash, connect, tenant
        self._answers = {activity.name: answer for activity, answer in (answers or {}).items()}
        self._kept: dict[str, _Kept] = {}
        self._keys: dict[tuple[str, str, str], str] = {}
        self._aliases: dict[tuple[str, str, str], str] = {}
        self._unmatched: dict[tuple[str, str, str], list[Sent]] = {}
        self._deliveries: set[tuple[str, str, str, str]] = set()
        self._jobs: deque[tuple[str, Pending]] = deque()
        self._gate = Gate[tuple[str, Pending]]()
        self._agenda: list[tuple[datetime, int, Callable[[], None]]] = []
        self._log: list[Happening] = []
        self._horizon: datetime | None = None
        self._signals: dict[str, Signal[Any]] = {}
        self._dying = False
        self._depth = 0
        self._late: list[_Late] = []
        self._rehearsal = Rehearsal()
        self._count = 0

    def run(self, workflow: Workflow[I, A, E], request: I, *, key: str | None = None) -> Run:
        """Starts an execution and runs until nothing more can happen."""
        id = self.start(workflow, request, key=key)
        try:
            self.go()
        finally:
            run = self.look(id)
            run.keep()
        return run

    def start(self, workflow: Workflow[I, A, E], request: I, *, key: str | None = None, tenant: str | None = None) -> str:
        """Starts an execution, idempotently by its key, and gives its id. Raises `Rejected` under reuse="reject"."""
        tenant = self._tenant if tenant is None else tenant
        chosen = key if key is not None else workflow.key_of(request) if workflow.key is not None else None
        encoded = within(self._deployment.limits.request, f"the input of {workflow.name}", codecs_of(workflow).request.encode(request))
        self._count += 1
        id = str(UUID(int=self._count))
        if chosen is None:
            self._create(_Kept(Execution(id, tenant, workflow.name, None, None, self.now), workflow, encoded, None, "", False))
            return id
        taken = self._claim_key((f"tenant {tenant}", workflow.name, chosen), workflow, id)
        if taken is not None:
            if workflow.reuse == "reject":
                raise Rejected(workflow.name, chosen, taken)
            return taken
        self._create(_Kept(Execution(id, tenant, workflow.name, chosen, None, self.now), workflow, encoded, None, "", False))
        return id

    def signal(self, to: str, signal: Signal[T], payload: T, *, delivery: str | None = None, tenant: str | None = None) -> None:
        """Sends a signal to an execution id or a correlation key; the same delivery id acts once."""
        self._count += 1
        self._signals[signal.name] = signal
        sent = Sent(to, "signal", signal.name, codec(signal.payload).encode(payload), delivery or f"sent-{self._count}")
        self._deliver(sent, self._tenant if tenant is None else tenant)

    def later(self, due: datetime, do: Callable[[], None]) -> None:
        """Does this when that time has come, before all else that is due then: what comes from outside."""
        self._count += 1
        heappush(self._agenda, (due, self._count, do))

    def cancel(self, id: str, reason: str = "asked to") -> None:
        """Asks an execution to end; one that is blocked does so when it is resumed."""
        self._wish(id, "cancel", reason)

    def pause(self, id: str, reason: str = "asked to") -> None:
        """Nothing new of it begins until it is resumed."""
        self._wish(id, "pause", reason)

    def resume(self, id: str) -> None:
        """Lets a blocked execution go on; undos that had failed run again."""
        kept = self._kept[id]
        if kept.status != "blocked":
            return
        if kept.exit:
            self.retry(id)
            return
        kept.mailbox = [mail for mail in kept.mailbox if mail.kind != "pause"]
        self._reopen(kept)

    def terminate(self, id: str, reason: str = "asked to") -> None:
        """Ends it at once, also when it is blocked: no finalizer and no undo runs."""
        kept = self._kept[id]
        if kept.status not in OPEN:
            return
        what = Intervention("terminate", "", reason)
        at = max(self.now, kept.journal[-1].at) if kept.journal else self.now
        self._record(kept, [Entry(len(kept.journal), OPERATOR, at, "", "operator", "", what.encode())])
        self._forget_jobs(kept)
        self._end(kept, Ended("cancelled", encode_exit(kept.workflow, Cancelled(f"terminated: {reason}"))))

    def retry(self, id: str, reason: str = "") -> None:
        """Does again what made it end badly, and first the same for the children that it waits for. Raises `CannotRetry`."""
        kept = self._kept[id]
        if kept.status in ("running", "suspended", "succeeded"):
            raise CannotRetry(f"execution {id} has not failed: its state is {kept.status}")
        plan = retried(self._subject(kept), by="", reason=reason)
        for child in plan.joins:
            if child in self._kept and self._kept[child].status in ("failed", "cancelled"):
                self.retry(child, reason)
        self._intervene(kept, plan)

    def rewind(self, id: str, to: str | int, reason: str = "") -> None:
        """Takes it back to just before a step was answered: from there on all is done anew."""
        kept = self._kept[id]
        self._intervene(kept, rewound(self._subject(kept), to, by="", reason=reason))

    def fork(self, id: str, to: str | int, edits: Edits | None = None) -> str:
        """A new execution that goes on from where that one stood, with these steps' exits replaced. Gives its id."""
        kept = self._kept[id]
        subject = self._subject(kept)
        prefix = kept.journal[: position_of(kept.journal, to)]
        self._count += 1
        new = str(UUID(int=self._count))
        entry = forked(subject, prefix, by="", reason=f"from {id}")
        execution = evolve(kept.execution, id=new, key=None, parent=None)
        copy = _Kept(execution, kept.workflow, kept.request, None, "", False)
        copy.journal = [*edited(subject, prefix, edits or {}), entry]
        self._create(copy)
        return new

    def go(self, until: datetime | None = None) -> None:
        """Runs until nothing more can happen, or until that time; the clock jumps to whatever is due."""
        self._horizon = until
        try:
            while self._jobs or self._let_through() or self._find_children() or self._pass_time():
                if self._jobs:
                    self._perform(*self._jobs.popleft())
        finally:
            self._rehearsal.close()

    def look(self, id: str) -> Run:
        """What is known of an execution."""
        kept = self._kept[id]
        elapsed = (kept.ended_at or self.now) - kept.execution.started_at
        facts = (public_status(kept.status), kept.cause, tuple(waits(_pending(kept))), tuple(kept.journal), elapsed)
        return Run(id, kept.workflow, _exit_of(kept), *facts, self._log, len(self._log), self.look)

    def die(self) -> None:
        """The process is gone at once, with all that it had in memory; another one takes over what is open."""
        self._dying, self.deaths = False, self.deaths + 1
        living = [kept for kept in self._kept.values() if kept.status in OPEN and kept.status != "blocked"]
        for kept in living:
            self._forget_jobs(kept)
            kept.activation = None
        for kept in living:
            if kept.status in OPEN and kept.activation is None:
                if not kept.claimed:
                    self._log.append(Folded(self.now, kept.execution.id, 0))
                self._wake(kept, taken_over=kept.claimed)

    # Interventions

    def _wish(self, id: str, kind: MailKind, reason: str) -> None:
        self._count += 1
        kept = self._kept[id]
        self._log.append(Wished(self.now, id, kind, reason))
        if kept.status in OPEN:
            self._post(kept, Sent(id, kind, "", json.dumps(reason).encode(), f"sent-{self._count}"), None)

    def _subject(self, kept: _Kept) -> Subject:
        return Subject(kept.execution, kept.request, kept.journal, self._deployment.workflow)

    def _intervene(self, kept: _Kept, plan: Plan) -> None:
        kept.activation = None  # from here on it records nothing more
        at = max(self.now, kept.journal[-1].at) if kept.journal else self.now
        self._log.append(Wished(self.now, kept.execution.id, plan.what.action, plan.what.reason))
        self._record(kept, [Entry(len(kept.journal), OPERATOR, at, "", "operator", "", plan.what.encode(), plan.live)])
        self._forget_jobs(kept)
        kept.mailbox = [mail for mail in kept.mailbox if mail.kind != "exit"]  # children that are retried end anew; the others' rows tell
        keys = [key for (_, _, key), id in self._aliases.items() if id == kept.execution.id]
        for name, key, body in plan.mails(keys):
            kept.mails += 1
            kept.mailbox.append(Mail(kept.mails, "signal", name, key, body))
        for child in plan.started:
            if (one := self._kept.get(child)) is not None and one.execution.key is None and not one.detached:
                self.cancel(child, "its start was taken back")
        self._reopen(kept)

    def _forget_jobs(self, kept: _Kept) -> None:
        self._jobs = deque(job for job in self._jobs if job[0] != kept.execution.id)
        self._late = sorted(late for late in self._late if late.id != kept.execution.id)

    def _reopen(self, kept: _Kept) -> None:
        kept.status, kept.exit, kept.cause, kept.ended_at = "running", b"", None, None
        self._wake(kept, taken_over=False)

    # The store

    def _create(self, kept: _Kept) -> None:
        self._kept[kept.execution.id] = kept
        self._log.append(Began(self.now, kept.execution.id, kept.execution, kept.workflow, kept.request, kept.parent_step))
        self._wake(kept, taken_over=False)

    def _wake(self, kept: _Kept, *, taken_over: bool) -> None:
        if taken_over:
            self._log.append(Folded(self.now, kept.execution.id, len(kept.journal)))
        kept.activation = Activation(kept.execution, kept.workflow, kept.request, self._deployment.workflow, self._deployment.limits)
        try:
            kept.activation.begin(live_entries(kept.journal), kept.mailbox, self.now, taken_over=taken_over)
        except Divergence as error:
            self._block(kept, str(error))
            return
        self._commit(kept)

    def _block(self, kept: _Kept, cause: str) -> None:
        kept.status, kept.cause, kept.activation = "blocked", cause, None
        self._over(kept)

    def _active(self, kept: _Kept) -> Activation:
        assert kept.activation is not None
        return kept.activation

    def _record(self, kept: _Kept, entries: Sequence[Entry]) -> None:
        if entries:
            kept.journal += entries
            self._log.append(Recorded(self.now, kept.execution.id, entries))

    def _commit(self, kept: _Kept) -> None:
        """One turn: everything in it happens, or, if the process dies, nothing of it has left."""
        if self._dying:
            kept.activation = None
            return
        self._depth += 1
        try:
            self._take_turn(kept)
        finally:
            self._depth -= 1
        if self._dying and not self._depth:
            self.die()

    def _take_turn(self, kept: _Kept) -> None:
        activation = self._active(kept)
        turn = activation.take_turn()
        if self._struck("before", kept, turn.entries):
            kept.activation = None
            return
        before, kept.claimed = len(kept.journal), True
        self._record(kept, turn.entries)
        self._log += [Dropped(self.now, kept.execution.id, kept.open[step]) for step in turn.closed if step in kept.open]
        kept.open = dict(activation.fold.machine.pending)
        kept.mailbox = [mail for mail in kept.mailbox if mail.seq not in turn.takes]
        self._follow(kept, turn, range(before + 1, len(kept.journal) + 1))
        self._struck("after", kept, turn.entries)

    def _struck(self, when: When, kept: _Kept, entries: Sequence[Entry]) -> bool:
        if self.doom is None or self._dying or not entries or not self.doom(when, kept.execution.id, entries):
            return False
        self._log.append(Died(self.now, kept.execution.id, when, entries))
        self._dying = True
        return True

    def _follow(self, kept: _Kept, turn: Turn, numbers: range) -> None:
        """What a turn has decided, now that it is recorded."""
        activation, id = self._active(kept), kept.execution.id
        self._log += [Noted(self.now, id, note) for note in turn.notes]
        for child in turn.children:
            self._begin_child(kept, child)
        for mail in turn.mails:
            self._deliver(mail, kept.execution.tenant)
        for scope in turn.cancels:
            self._cancel_children(kept, scope + ".")
        if kept.activation is not activation:
            return  # what was just sent has come back to it: a later turn has ended it, or crashed
        if turn.ended is not None:
            self._end(kept, turn.ended)
        elif activation.paused is not None:
            self._pause(kept, activation, turn)
        elif self._crash is not None and any(self._crash(n) for n in numbers):
            self._log.append(Died(self.now, id, "after", turn.entries))
            self._forget_jobs(kept)
            self._wake(kept, taken_over=True)
        else:
            self._let_out(kept, turn)

    def _pause(self, kept: _Kept, activation: Activation, turn: Turn) -> None:
        for one in [*turn.performs, *(one for id, one in self._jobs if id == kept.execution.id)]:
            activation.withdraw(one, self.now)
        self._record(kept, activation.take_turn().entries)
        self._jobs = deque(job for job in self._jobs if job[0] != kept.execution.id)
        if not any(late.activation is activation and self._wanted((late.id, late.one)) for late in self._late):  # what runs may end first
            self._block(kept, f"paused: {activation.paused}")

    def _let_out(self, kept: _Kept, turn: Turn) -> None:
        for one in turn.asks:
            if not self._dying:
                self._ask(kept, one)
        for one in turn.performs:
            if budgets := _budgets(kept, one):
                self._gate.join((kept.execution.id, one), budgets, kept.execution.tenant, kept.workflow.priority)
            else:
                self._jobs.append((kept.execution.id, one))

    def _begin_child(self, parent: _Kept, child: NewChild) -> None:
        if child.id in self._kept:
            return
        execution = Execution(child.id, parent.execution.tenant, child.workflow, child.key, parent.execution.id, self.now)
        workflow = self._deployment.workflow(child.workflow, child.version)
        self._create(_Kept(execution, workflow, child.request, parent.execution.id, child.step, child.detached, child.terminates))

    def _deliver(self, mail: Sent, tenant: str) -> None:
        """Once by its delivery id. What nobody waits for is kept under its key for the next who does."""
        kept, key = self._kept.get(mail.to), None
        if kept is None or kept.execution.tenant != tenant:
            kept, key = self._kept.get(self._aliases.get((tenant, mail.name, mail.to), "")), mail.to
        ended = kept is not None and kept.status not in OPEN
        seen = (tenant, mail.name, mail.to, mail.delivery)
        if (ended and key is None) or seen in self._deliveries:
            self._arrived(kept, mail, "again" if seen in self._deliveries else "too late")
            return
        self._deliveries.add(seen)
        if kept is None or ended:
            self._arrived(None, mail, "kept under its key")
            self._unmatched.setdefault(seen[:3], []).append(mail)
        else:
            self._arrived(kept, mail, "taken" if awaits(_pending(kept), mail.name, key) else "kept")
            self._post(kept, mail, key)

    def _arrived(self, kept: _Kept | None, mail: Sent, fate: Fate) -> None:
        if mail.kind == "signal":
            known = self._signals.get(mail.name)
            self._log.append(Arrived(self.now, "" if kept is None else kept.execution.id, mail.name, mail.body, mail.to, fate, known))

    def _post(self, kept: _Kept, mail: Sent, key: str | None) -> None:
        kept.mails += 1
        arrived = Mail(kept.mails, mail.kind, mail.name, key, mail.body)
        kept.mailbox.append(arrived)
        if kept.status in OPEN and kept.status != "blocked" and kept.activation is not None:
            kept.activation.deliver([arrived], self.now)
            self._commit(kept)

    def _cancel_children(self, parent: _Kept, prefix: str) -> None:
        for kept in list(self._kept.values()):
            if kept.parent == parent.execution.id and kept.parent_step.startswith(prefix) and kept.status in OPEN and not kept.detached:
                self._wish(kept.execution.id, "terminate" if kept.terminates else "cancel", "cancelled by its parent")

    def _end(self, kept: _Kept, ended: Ended) -> None:
        kept.status, kept.exit, kept.cause = ended.status, ended.exit, ended.cause
        kept.activation = None
        self._over(kept)
        if kept.status == "blocked":
            return
        self._cancel_children(kept, "")
        parent = self._kept.get(kept.parent or "")
        if parent is not None and not kept.detached:
            self._post(parent, Sent(parent.execution.id, "exit", kept.execution.id, kept.exit, kept.execution.id), None)

    def _over(self, kept: _Kept) -> None:
        kept.ended_at = self.now
        self._log.append(Over(self.now, kept.execution.id, public_status(kept.status), _exit_of(kept), kept.cause))

    # What the store is asked

    def _ask(self, kept: _Kept, one: Pending) -> None:
        activation = self._active(kept)
        match one.instruction:
            case Start() as start:
                self._keyed_child(kept, one, start)
            case Existing() as existing:
                statuses = self._statuses(kept, existing)
                activation.answered(one.step, codec(dict[str, Status]).encode(statuses), self.now)
            case Receive() as receive:
                alias = (kept.execution.tenant, receive.signal.name, receive.key or "")
                self._aliases[alias] = kept.execution.id
                for mail in self._unmatched.pop(alias, []):
                    self._post(kept, mail, receive.key)
                activation.registered(one.step)
            case _:
                raise AssertionError(one.instruction)
        if kept.activation is activation:
            self._commit(kept)

    def _keyed_child(self, kept: _Kept, one: Pending, start: Start[Any]) -> None:
        activation = self._active(kept)
        id = child_id(activation.fold.key(one.step))
        scope = (_children_of(kept), start.workflow.name, start.key or "")
        taken = None if id in self._kept else self._claim_key(scope, start.workflow, id)
        if taken is None:
            request = activation.fold.request(one)
            self._begin_child(
                kept, NewChild(id, start.workflow.name, start.workflow.version, start.key, request, one.step, start.detached, start.terminates)
            )
            activation.answered(one.step, codec(str).encode(id), self.now)
            return
        if start.workflow.reuse == "reject":
            taken_by = Defect(start.workflow.name, str(Rejected(start.workflow.name, start.key or "", taken)))
            activation.answered(one.step, codec(Defect).encode(taken_by), self.now, kind=BUG)
            return
        joined = self._kept[taken]
        joined.parent, joined.parent_step = kept.execution.id, one.step
        self._log.append(Adopted(self.now, taken, kept.execution.id))
        activation.answered(one.step, codec(str).encode(taken), self.now)
        if joined.status not in OPEN:
            self._post(kept, Sent(kept.execution.id, "exit", taken, joined.exit, taken), None)

    def _claim_key(self, scope: tuple[str, str, str], workflow: Workflow[Any, Any, Any], id: str) -> str | None:
        """Takes a key, or says who has it."""
        holder = self._keys.get(scope)
        if holder is not None:
            status = self._kept[holder].status
            again = (workflow.reuse == "after_close" and status not in OPEN) or (
                workflow.reuse == "after_failure" and status in ("failed", "cancelled")
            )
            if not again:
                return holder
        self._keys[scope] = id
        return None

    def _statuses(self, kept: _Kept, existing: Existing) -> dict[str, Status]:
        found = {key: self._keys.get((_children_of(kept), existing.workflow.name, key)) for key in existing.keys}
        return {key: public_status(self._kept[id].status) for key, id in found.items() if id is not None}

    # Time and work

    def _find_children(self) -> bool:
        """Answers the waits for children that had ended before and whose mail was taken; False when there are none."""
        for kept in list(self._kept.values()):
            activation = kept.activation if kept.status != "blocked" else None
            for child in activation.joins if activation is not None else ():
                ended = self._kept.get(child)
                if activation is not None and ended is not None and ended.status not in OPEN:
                    activation.found(child, ended.exit, self.now)
                    self._commit(kept)
                    return True
        return False

    def next_due(self) -> datetime | None:
        """When something is due next; None when nothing is, ever."""
        return self._next(self._timers())

    def _next(self, timers: list[tuple[datetime, _Kept]]) -> datetime | None:
        dues = [due for due, _ in timers]
        if self._late:
            dues.append(self._late[0].due)
        if self._agenda:
            dues.append(self._agenda[0][0])
        if (opens := self._gate.next(self.now)) is not None:
            dues.append(opens)
        return min(dues, default=None)

    def _timers(self) -> list[tuple[datetime, _Kept]]:
        live = [kept for kept in self._kept.values() if kept.activation is not None and kept.status in OPEN]
        return [(due, kept) for kept in live if kept.activation is not None and (due := kept.activation.next_due) is not None]

    def _pass_time(self) -> bool:
        """Jumps to the next due time; False when nothing is due ever. First comes what is from outside, then attempts that end, then timers."""
        timers = self._timers()
        due = self._next(timers)
        if due is None or (self._horizon is not None and due > self._horizon):
            self.now = self.now if due is None or self._horizon is None else max(self.now, self._horizon)
            return False
        if self._agenda and self._agenda[0][0] <= due:
            self.now = max(self.now, due)
            heappop(self._agenda)[2]()
            return True
        if self._late and self._late[0].due <= due:
            self._come(heappop(self._late))
            return True
        self.now = max(self.now, due)
        for over, kept in timers:
            if over <= self.now and kept.activation is not None:
                kept.activation.tick(self.now)
                self._commit(kept)
        return True

    def _come(self, late: _Late) -> None:
        kept = self._kept[late.id]
        if kept.activation is late.activation and self._wanted((late.id, late.one)):
            self.now = max(self.now, late.due)
            self._ended(kept, late.activation, late.one, late.ending)

    def _let_through(self) -> bool:
        """Begins what its budgets allow now; False when that is nothing."""
        self._jobs.extend(self._gate.through(self.now, self._wanted))
        return bool(self._jobs)

    def _wanted(self, job: tuple[str, Pending]) -> bool:
        activation = self._kept[job[0]].activation
        return activation is not None and activation.fold.machine.pending.get(job[1].step) is job[1]

    def _perform(self, id: str, one: Pending) -> None:
        kept = self._kept[id]
        activation, instruction = kept.activation, one.instruction
        if activation is None or not isinstance(instruction, Perform) or not self._wanted((id, one)):
            return
        activity, body = instruction.activity, activation.fold.request(one)
        answer = self._answer(activity, body)
        attempt = self._attempt(kept, activity, activation.fold.key(one.step), one)
        called = Called(self.now, id, one.step, activity, body, attempt.idempotency_key, attempt.number, role_of(one))
        self._log.append(called)
        ending, took = self._rehearsal.carry_out(attempt, answer, codecs_of(activity.root).request.decode(body), self._takes(activity))
        called.exit, called.took = ending.exit, took
        if attempt.details is not None:
            kept.heartbeats[attempt.idempotency_key] = attempt.details
        if took:
            self._count += 1
            heappush(self._late, _Late(self.now + took, self._count, id, one, activation, ending))
        else:
            self._ended(kept, activation, one, ending)

    def _answer(self, activity: Activity[Any, Any, Any], request: bytes) -> Answer:
        """What carries out an attempt of this activity."""
        return self._answers.get(activity.name) or self._deployment.binding(activity.name).implementation

    def _takes(self, activity: Activity[Any, Any, Any]) -> timedelta:
        """How long its attempts take at least."""
        return timedelta()

    def _attempt(self, kept: _Kept, activity: Activity[Any, Any, Any], key: str, one: Pending) -> VirtualAttempt:
        ends, overall = [after(self.now, activity.policies.start_to_close)], activity.policies.schedule_to_close
        if overall is not None:
            ends.append(after(one.opened, overall))
        left = None if overall is None else (ends[-1] - self.now).total_seconds()
        last = told(kept.heartbeats.get(key))
        return VirtualAttempt(activity, key, one.attempts + 1, kept.execution.tenant, min(ends), left, self._deployment.limits, last, self._connect)

    def _ended(self, kept: _Kept, activation: Activation, one: Pending, ending: Ending) -> None:
        if isinstance(ending.exit, Success):
            kept.heartbeats.pop(activation.fold.key(one.step), None)
        budgets = _budgets(kept, one)
        self._gate.over((kept.execution.id, one), budgets)
        if (rest := wished_rest(ending.exit, ending.wait)) is not None:
            self._gate.rest(budgets, self.now + rest, self.now)
        if kept.activation is activation:  # else it ended, or the process died, while the attempt was under way
            activation.ended(one.step, ending.exit, self.now, timed_out=ending.timed_out, final=ending.final, wait=ending.wait)
            self._commit(kept)


def _budgets(kept: _Kept, one: Pending) -> Counted:
    assert isinstance(one.instruction, Perform)
    budgets = one.instruction.activity.policies.budget
    if not budgets:
        return ()
    return counted(budgets, kept.execution.tenant, kept.workflow.name)


def _children_of(parent: _Kept) -> str:
    """The scope of the keys of its children: its second run finds those of its first."""
    return f"parent {(parent.execution.tenant, parent.execution.key or parent.execution.id)}"


def _pending(kept: _Kept) -> list[Pending]:
    return [] if kept.activation is None else list(kept.activation.fold.machine.pending.values())


def _exit_of(kept: _Kept) -> Exit[Any, Any] | None:
    ended = kept.status not in OPEN or kept.status == "blocked"
    return decode_exit(kept.workflow, kept.exit) if ended and kept.exit else None
