"""The memory interpreter in a generated world: replies, arrivals, crashes and a cancellation come from decisions that are made once and kept."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, cast

from attrs import define, field, frozen

from flowdsl.activation import Turn
from flowdsl.attempt import Ending, ran_out, returned
from flowdsl.binding import Binding, Deployment, bind, named_in
from flowdsl.definition import Activity, Workflow
from flowdsl.errors import DefinitionError
from flowdsl.flow import Interrupted, Perform, Receive, Signal
from flowdsl.journal import ATTEMPT, KINDS, Entry
from flowdsl.memory import Memory
from flowdsl.outline import read
from flowdsl.outline.reading import Reader
from flowdsl.outline.values import Known
from flowdsl.story import Called, When
from flowdsl.testing.replies import SECOND, Arrival, BadWorld, Draw, Given, Moment, Replies, Reply, Temper, drawn, forms
from flowdsl.virtual import Rehearsal, VirtualAttempt

CALLS = 100
"""Attempts after which a run is cut: it may be one that never ends."""
ENTRIES = 1000
"""Entries after which it is."""


# What can be known before anything runs


@frozen(eq=False)
class Named:
    """What a workflow and its children name."""

    deployment: Deployment
    contracts: Mapping[str, Activity[Any, Any, Any]]
    signals: Mapping[str, Signal[Any]]


def _unanswered(request: Any) -> Any:
    raise AssertionError(f"nobody was asked for {request!r}")


@lru_cache(maxsize=256)
def named(workflow: Workflow[Any, Any, Any]) -> Named:
    """What a workflow and its children name, found once."""
    contracts: dict[str, Activity[Any, Any, Any]] = {}
    signals: dict[str, Signal[Any]] = {}
    todo, seen = [workflow], list[Workflow[Any, Any, Any]]()
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.append(one)
        for found in named_in(one.body):
            if isinstance(found, Workflow):
                todo.append(found)
            else:
                contracts.setdefault(found.name, found.root)
        reader = Reader()
        with suppress(DefinitionError):  # no source to read: its signals are known when it waits for them
            read(one, reader)
        todo += reader.children.values()
        values = [value.value for value in reader.values.values() if isinstance(value, Known)]
        signals.update({value.name: value for value in values if isinstance(value, Signal)})
    deployment = Deployment(workflows=seen, bindings=[bind(contract, _unanswered) for contract in contracts.values()])
    return Named(deployment, contracts, signals)


# What is decided


@frozen
class Crash:
    """The death of the whole process, before or after an entry is recorded; entries are counted over all executions of the run, from 1."""

    entry: int
    before: bool = False
    what: str = field(default="", eq=False)

    def __str__(self) -> str:
        return f"crash {'before' if self.before else 'after'} entry {self.entry}" + (f" ({self.what})" if self.what else "")


@frozen
class Cancel:
    """A cancellation of the execution: when a step has been recorded, or while an attempt of it is under way."""

    when: Literal["recorded", "called"]
    id: str
    step: str
    number: int
    """Of an entry its kind, of an attempt how many were heard of before."""
    what: str = field(default="", eq=False)
    again: int = 0
    """Of an attempt: how many before it were cut short since, and not heard of."""

    def __str__(self) -> str:
        return f"cancel {'after' if self.when == 'recorded' else 'during'} {self.what.rpartition('.')[2] or self.step}"


@frozen(eq=False)
class Plan:
    """What happens to the process and to the execution, whatever it asks. `cancel_at`: the moment to cancel at, until it is known which that is."""

    crashes: frozenset[Crash] = frozenset()
    cancel: Cancel | None = None
    cancel_at: int | None = None
    kindly: bool = True
    """Whether no crash happens that the policies turn into a defect."""
    settled: bool = False
    """Whether it has been found which these are: what more is decided meanwhile must not change it."""


@define(eq=False)
class Book:
    """The decisions of one world, each drawn when it is first asked for, and kept: who asks again is told the same."""

    draw: Draw
    replies: Replies
    given: dict[str, Given]
    payloads: Mapping[str, Any]
    temper: Temper
    told: dict[tuple[str, int], tuple[str, Reply]] = field(factory=dict[tuple[str, int], tuple[str, Reply]])
    """By place and number of replies heard before: the activity's name, and its reply."""
    arrivals: dict[str, Arrival | None] = field(factory=dict[str, Arrival | None])
    """By what they answer: the wait, the look, or the beginning."""

    def reply(self, key: str, heard: int, activity: Activity[Any, Any, Any], number: int, moment: Moment, *, backed: bool) -> Reply:
        """The reply to an attempt. One whose answer was lost is told the same again: it is the same request, under the same key."""
        key = place(key, activity)
        found = self.told.get((key, heard))
        if found is None:
            done = any(self.told[key, before][1].acts for before in range(heard) if (key, before) in self.told)
            given = self.given.get(activity.name)
            reply = self.replies.draw(self.draw, activity, number, moment, given=given, backed=backed, done=done, temper=self.temper)
            found = self.told[key, heard] = (activity.name, reply)
        return found[1]

    def arrival(self, wait: str, signal: Signal[Any], to: str, moment: Moment) -> Arrival | None:
        """What comes to somebody who waits."""
        if wait not in self.arrivals:
            self.arrivals[wait] = self.replies.arrival(self.draw, signal, to, moment, self.payloads.get(signal.name))
        return self.arrivals[wait]

    def chance(self, look: str, signal: Signal[Any], to: str) -> Arrival | None:
        """What has come when somebody looks again."""
        if look not in self.arrivals:
            comes = drawn(self.draw, 8) == 7
            payload = self.replies.payload(self.draw, signal, self.payloads.get(signal.name)) if comes else None
            self.arrivals[look] = Arrival(signal, to, payload, timedelta()) if comes else None
        return self.arrivals[look]

    def forget(self, activity: str) -> None:
        """What was decided of an activity does not count."""
        self.told = {key: told for key, told in self.told.items() if told[0] != activity}


def place(key: str, activity: Activity[Any, Any, Any]) -> str:
    """Where a reply belongs: in runs of one world that part after a crash, other activities may have the same idempotency key."""
    return f"{key} {activity.name}"


# The run


class _Stage(Rehearsal):
    """Where attempts run: in front of the world, in place of their implementations."""

    def __init__(self, played: Played) -> None:
        super().__init__()
        self._played = played

    def carry_out(
        self, attempt: VirtualAttempt, implementation: Callable[[Any], Any], request: Any, takes: timedelta = timedelta()
    ) -> tuple[Ending, timedelta]:
        return self._played.met(attempt, request, super().carry_out)


class Played(Memory):
    """One run of a workflow in a world. What was decided before is asked of `book`; what `plan` leaves open becomes known."""

    def __init__(self, workflow: Workflow[Any, Any, Any], book: Book, plan: Plan, model: Any = None) -> None:
        self._named = named(workflow)
        super().__init__(self._named.deployment)
        self._answers, self._rehearsal = _Anybody(), _Stage(self)
        self.book, self.plan, self.model = book, plan, model
        self._backing = backing(model, self._named.contracts)
        self.doom = self._strikes
        self.entries = 0
        """Entries recorded, over all executions."""
        self.cut = False
        self.struck: set[Crash] = set()
        self.cancelled: Cancel | None = None
        self.broken: AssertionError | None = None
        """What the model asserted in vain."""
        self.moments = 0
        """When it could have been cancelled."""
        self._attempts = 0
        self._heard: Counter[str] = Counter()
        self._made: Counter[tuple[str, int]] = Counter()
        self._sent: set[str] = set()
        self._calls: dict[str, tuple[Activity[Any, Any, Any], int, datetime]] = {}
        self.root = ""

    def play(self, workflow: Workflow[Any, Any, Any], request: Any) -> None:
        """Runs it until nothing more can happen."""
        with _unwatched():
            self.root = self.start(workflow, request)
            for delivery, arrival in self.book.arrivals.items():
                if arrival is not None and arrival.after is None:
                    self._send(arrival, self.root, self.now, delivery)
            self.go()

    def go(self, until: datetime | None = None) -> None:
        self._horizon = until
        try:
            while not self.cut and (self._comes_now() or self._works() or self._pass_time()):
                pass
        finally:
            self._rehearsal.close()

    def _comes_now(self) -> bool:
        """What comes from outside comes at once, not only when there is nothing else to do."""
        return bool(self._agenda) and self._agenda[0][0] <= self.now and self._pass_time()

    def _works(self) -> bool:
        if not (self._jobs or self._let_through()):
            return self._find_children()
        self._perform(*self._jobs.popleft())
        return True

    # Attempts

    def met(self, attempt: VirtualAttempt, request: Any, carry_out: Callable[..., tuple[Ending, timedelta]]) -> tuple[Ending, timedelta]:
        """How an attempt ends, and how long it takes."""
        activity, key = attempt.activity, attempt.idempotency_key
        heard = self._heard[key]
        self._calls[key] = (activity, attempt.number, self._began(attempt))
        self._attempts += 1
        self.cut = self.cut or self._attempts >= CALLS
        implementation = self._implementation(activity)
        reply = self.book.reply(key, heard, activity, attempt.number, self._moment(attempt.left), backed=implementation is not None)
        ending, takes = None, reply.takes
        if implementation is not None or reply.times_out:
            self._remark(reply)
        if implementation is not None and reply.acts:
            ending, took = carry_out(attempt, self._watched(implementation), request)
            takes = max(took, takes)
        if reply.times_out:
            ending, takes = self._timed_out(attempt)
        elif ending is None or reply.exit is not None:
            ending = returned(activity, reply.exit)
        again = self._made[key, heard]
        self._made[key, heard] += 1
        if self._cancels("called", key.partition("/")[0], key.partition("/")[2], heard, activity.name, again=again):
            takes = max(takes, timedelta(microseconds=1))  # so that the cancellation comes first
        return ending, takes

    def _began(self, attempt: VirtualAttempt) -> datetime:
        """When the first attempt could have been made."""
        overall = attempt.activity.policies.schedule_to_close
        return self.now if overall is None or attempt.left is None else self.now + timedelta(seconds=attempt.left) - overall

    def _remark(self, reply: Reply) -> None:
        """What the story is to say of an attempt: an answer alone does not tell whether anything happened."""
        if reply.times_out or not reply.acts:
            said = "acts, and its answer is lost" if reply.acts else "never gets there" if reply.times_out else "fails before it acts"
            call = self._log[-1]
            if isinstance(call, Called) and hasattr(call, "remark"):
                call.remark = said

    def _timed_out(self, attempt: VirtualAttempt) -> tuple[Ending, timedelta]:
        limit = attempt.activity.policies.start_to_close
        if attempt.left is not None and attempt.left < limit.total_seconds():
            return ran_out(attempt.activity, "schedule_to_close"), timedelta(seconds=max(attempt.left, 0))
        return ran_out(attempt.activity, "timeout"), limit

    def _implementation(self, activity: Activity[Any, Any, Any]) -> Callable[[Any], Any] | None:
        given = self.book.given.get(activity.name)
        return given if given is not None and callable(given) else None if given is not None else self._backing.get(activity.name)

    def _watched(self, implementation: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """What the model asserts fails the test: it is no defect of the workflow."""

        async def awaited(answer: Any) -> Any:
            try:
                return await answer
            except AssertionError as error:
                self.broken = self.broken or error
                raise

        def watched(request: Any) -> Any:
            try:
                answer = implementation(request)
            except AssertionError as error:
                self.broken = self.broken or error
                raise
            return awaited(answer) if inspect.isawaitable(answer) else answer

        return watched

    def _moment(self, left: float | None) -> Moment:
        due = self.next_due()
        return Moment(None if due is None else due - self.now, None if left is None else timedelta(seconds=left))

    # Crashes and cancellations

    def _strikes(self, when: When, id: str, entries: Sequence[Entry]) -> bool:
        if when == "after":
            self.entries += len(entries)
            self._follows(id, entries)
        if not self.plan.crashes:
            return False
        first = self.entries + 1 if when == "before" else self.entries - len(entries) + 1
        for number, entry in enumerate(entries, first):
            crash = Crash(number, when == "before", _named(entry))
            if crash in self.plan.crashes and crash not in self.struck and not (self.plan.kindly and not self.plan.settled and self._fatal()):
                self.struck.add(crash)
                return True
        return False

    def _fatal(self) -> bool:
        """Whether a crash now takes an attempt too many from an activity that does not expect it: one whose end is not recorded yet."""
        calls = {**self._calls, **{key: (activity, number, began) for key, activity, number, began in self._out()}}
        return any(_last(activity, number + self._decided(key, activity) - 1, began, self.now) for key, (activity, number, began) in calls.items())

    def _decided(self, key: str, activity: Activity[Any, Any, Any]) -> int:
        """How many more attempts it takes to hear all that has been decided, the next one included."""
        heard = self._heard[key]
        return max(1, sum(number >= heard for other, number in self.book.told if other == place(key, activity)))

    def _out(self) -> Iterator[tuple[str, Activity[Any, Any, Any], int, datetime]]:
        """The attempts that are under way, or about to be: who takes over cannot tell which. Each with its number, and when its activity began."""
        for kept in self._kept.values():
            pending = kept.activation.fold.machine.pending if kept.activation is not None else {}
            for one in [pending[step] for step in kept.activation.busy if step in pending] if kept.activation is not None else ():
                if isinstance(one.instruction, Perform):
                    yield f"{kept.execution.id}/{one.step}", one.instruction.activity, one.attempts + 1, one.opened

    def _follows(self, id: str, entries: Sequence[Entry]) -> None:
        """What the world does when it sees these entries."""
        for entry in entries:
            if entry.kind == ATTEMPT:
                self._heard[f"{id}/{entry.step}"] += 1
            if entry.body == b"null" and entry.fingerprint.startswith("take "):
                self._looked(id, entry)
        if entries:
            self._cancels("recorded", id, entries[-1].step, entries[-1].kind, _named(entries[-1]), among=entries)
        kept = self._kept[id]
        pending = kept.activation.fold.machine.pending if kept.activation is not None else {}
        self._calls = {key: call for key, call in self._calls.items() if not key.startswith(id) or key.partition("/")[2] in pending}
        self.cut = self.cut or self.entries >= ENTRIES

    def _cancels(
        self, when: Literal["recorded", "called"], id: str, step: str, number: int, what: str, among: Iterable[Entry] = (), again: int = 0
    ) -> bool:
        """Whether the cancellation comes now; then it is on its way."""
        if self.cancelled is not None:
            return False
        self.moments += 1
        here = Cancel(when, id, step, number, what, again)
        if self.plan.cancel is not None:
            if self.plan.cancel not in (here, *(Cancel(when, id, entry.step, entry.kind) for entry in among)):
                return False
        elif self.moments != self.plan.cancel_at:
            return False
        self.cancelled = here
        self.later(self.now, lambda: self.cancel(self.root))
        return True

    # Signals

    def _let_out(self, kept: Any, turn: Turn) -> None:
        super()._let_out(kept, turn)
        if kept.activation is None:
            return
        for one in list(kept.activation.fold.machine.pending.values()):
            if isinstance(one.instruction, Receive) and one.instruction.wait:
                self._awaited(kept.execution.id, one.step, one.instruction)

    def _awaited(self, id: str, step: str, receive: Receive[Any]) -> None:
        """Somebody waits: what comes, comes once, whatever becomes of the process meanwhile."""
        wait = f"{id}/{step}"
        if wait not in self._sent:
            self._sent.add(wait)
            to = id if receive.key is None else receive.key
            self._send_later(wait, self.book.arrival(wait, receive.signal, to, self._moment(None)))

    def _looked(self, id: str, entry: Entry) -> None:
        signal, look = self._named.signals.get(_subject(entry)), f"{id}/{entry.step}"
        if signal is not None and look not in self._sent:
            self._sent.add(look)
            self._send_later(look, self.book.chance(look, signal, id))

    def _send_later(self, delivery: str, arrival: Arrival | None) -> None:
        if arrival is not None:
            due = self.now + (arrival.after or timedelta())
            self._send(arrival, arrival.to, due, delivery)
            if arrival.twice:
                self._send(arrival, arrival.to, due + SECOND, delivery)

    def _send(self, arrival: Arrival, to: str, due: datetime, delivery: str) -> None:
        self.later(due, lambda: self.signal(to, arrival.signal, arrival.payload, delivery=delivery))


@contextmanager
def _unwatched() -> Generator[None]:
    """Hypothesis looks at every line that runs while it explains a failure, which makes a run of ours ten times slower; the story explains more."""
    watching = sys.gettrace()
    if not type(getattr(watching, "__self__", None)).__module__.startswith("hypothesis."):
        yield
        return
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(watching)


def _named(entry: Entry) -> str:
    """What an entry is about, in a word or two."""
    kind, name = entry.fingerprint.partition(" ")[0], _subject(entry)
    said = name if kind == "perform" else f"{kind} {name}".strip()
    return f"failed attempt of {said}" if entry.kind == ATTEMPT else said or KINDS[entry.kind]


def _last(activity: Activity[Any, Any, Any], number: int, began: datetime, now: datetime) -> bool:
    """Whether there is no attempt after that one, and no failure declared that says so."""
    limit = activity.policies.schedule_to_close
    over = limit is not None and now - began >= limit
    return (over or activity.policies.retry.exhausted(number)) and Interrupted not in forms(activity.root.shape.failures)


def _subject(entry: Entry) -> str:
    """The name in a fingerprint: "perform NAME DIGEST"; of a sleep, its time."""
    kind, _, rest = entry.fingerprint.partition(" ")
    return rest if kind in ("sleep", "changed") else rest.rpartition(" ")[0]


class _Anybody(dict[str, Any]):
    """An implementation for every activity there may be: none is ever called, the world replies in its place."""

    def get(self, key: str, default: Any = None) -> Any:
        return _unanswered


def backing(model: Any, contracts: Mapping[str, Activity[Any, Any, Any]]) -> dict[str, Callable[[Any], Any]]:
    """What a model stands for: by its `bindings()`, else by the names of its methods, which are those of the contracts' functions."""
    if model is None:
        return {}
    if callable(bindings := getattr(model, "bindings", None)):
        found = cast("Iterable[Binding]", bindings())
        return {binding.activity.name: binding.implementation for binding in found}
    functions = {name: contract.contract.__name__ for name, contract in contracts.items()}
    methods = {name: getattr(model, function, None) for name, function in functions.items()}
    if contracts and not any(map(callable, methods.values())):
        raise BadWorld(f"{type(model).__name__} has no method for any activity here. Name its methods {', '.join(sorted(functions.values()))}")
    return {name: method for name, method in methods.items() if callable(method)}
