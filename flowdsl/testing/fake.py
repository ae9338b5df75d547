"""The fake interpreter: a workflow, run in virtual time, with scripted activities and whatever you want to go wrong.

def test_it_pays_once(fake):
    fake.on(charge, lambda order: Success(Receipt(order.id))).crash(before="charge")
    run = fake.run(checkout, Order(7))
    assert run.exit == Success(Receipt(7)) and len(set(run.keys(charge))) == 1
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar, cast

from returns.result import Failure

from flowdsl.binding import Binding, Deployment, bind, named_in
from flowdsl.codec import NotJournalable, codec
from flowdsl.definition import Activity, Workflow
from flowdsl.errors import NotFound
from flowdsl.flow import Perform, Signal
from flowdsl.journal import INTENT, INTERRUPTED, Entry, codecs_of
from flowdsl.memory import Memory, _Kept
from flowdsl.policy import Duration, Limits, duration
from flowdsl.story import Called, Missed, Run, When
from flowdsl.testing.script import (
    Answer,
    Cancel,
    Crash,
    Endless,
    Place,
    Script,
    ScriptError,
    Sent,
    Unscripted,
    brief,
    check_answer,
    first_sentence,
    is_named,
    name_in_code,
    spelled,
)

I = TypeVar("I")  # noqa: E741
A = TypeVar("A")
E = TypeVar("E")
T = TypeVar("T")

ENOUGH = 100_000
"""Turns after which a run is taken for endless."""


class Fake:
    """Runs workflows in virtual time, without a server or an event loop. What activities give is scripted; what is not falls back on `deployment`.

    The workflow's activities and children are found from what it names. Scripts stay for all runs of a fake; signals, cancellations and crashes
    are for the next one. Keys and the clock go on from run to run.
    """

    def __init__(self, deployment: Deployment | None = None, *, tenant: str = "default", connect: Callable[[], Any] | None = None) -> None:
        self._known = _Known(deployment)
        self._memory = _Scripted(self._known, self, tenant=tenant, connect=connect)
        self._scripts: dict[str, Script] = {}
        self._sent: list[Sent] = []
        self._cancels: list[Cancel] = []
        self._crashes: list[Crash] = []
        self._everywhere: set[tuple[Any, ...]] | None = None

    # What activities give

    def on(self, activity: Activity[I, A, E], *answers: Answer) -> Fake:
        """What an activity gives: an exit, or a function of the request. Of several, one after the other; the last from then on."""
        if not answers:
            raise ScriptError(
                f"fake.on({name_in_code(activity)}) says nothing", f"Add what it gives: fake.on({name_in_code(activity)}, Success(...))"
            )
        script = self._script(activity, "on")
        for answer in answers:
            check_answer(script.activity, answer, "on")
        script.answers = deque(answers)
        return self

    def fails(self, activity: Activity[I, A, E], failure: E | BaseException, *, times: int = 1) -> Fake:
        """So many attempts fail with this first, before what `on` says. A declared failure is given, an exception is raised."""
        script = self._script(activity, "fails")
        if times < 1:
            raise ScriptError(f"fails({name_in_code(activity)}, ..., times={times})", "Let it fail at least once: times=1")
        exit: Answer = failure if isinstance(failure, (BaseException, Failure)) else Failure(failure)
        check_answer(script.activity, exit, "fails")
        script.failures.extend([exit] * times)
        return self

    def fails_once(self, activity: Activity[I, A, E], failure: E | BaseException) -> Fake:
        """The next attempt fails with this."""
        return self.fails(activity, failure)

    def takes(self, activity: Activity[I, A, E], time: Duration) -> Fake:
        """How long each attempt takes, in virtual time. It acts when it begins; its answer comes when the time is over, unless it timed out."""
        self._script(activity, "takes").takes = duration(time)
        return self

    # What comes from outside, in the next run

    def signal(self, signal: Signal[T], payload: T, *, at: Duration | None = None, to: str | None = None, delivery: str | None = None) -> Fake:
        """Sends a signal to the execution that `run` starts, or to a correlation key: so long after the start, or else at once, before all work.

        Two with the same `delivery` act once.
        """
        if not isinstance(signal, Signal):
            raise ScriptError(f"fake.signal({brief(signal)}, ...): that is no signal", "Give the signal itself, made by signal(name, type)")
        try:
            codec(signal.payload).encode(payload)
        except NotJournalable as error:
            raise ScriptError(
                f"signal {signal.name} cannot carry {brief(payload)}: {first_sentence(error)}", "Give it what it was declared with"
            ) from None
        self._sent.append(Sent(signal, payload, None if at is None else duration(at), to, delivery))
        return self

    def cancel(self, *, at: Duration | None = None, step: Activity[Any, Any, Any] | str | None = None, reason: str = "asked to") -> Fake:
        """Asks the execution to end: so long after its start, or when an attempt of that activity has begun."""
        if (at is None) == (step is None):
            raise ScriptError("cancel() needs to know when", 'Say fake.cancel(at="3s"), or fake.cancel(step="charge")')
        self._cancels.append(Cancel(None if at is None else duration(at), step, reason))
        return self

    def crash(self, *, after: Place | None = None, before: Place | None = None, everywhere: bool = False) -> Fake:
        """The process dies, and another one goes on from the journal.

        `after=3`: just after the third entry was recorded. `before=3`: just before; its activity has acted, and its answer is lost. Instead of a
        number an activity: its first entry. `everywhere`: before and after each entry, but never during the last attempt that a policy gives.
        """
        for when, place in (("after", after), ("before", before)):
            if place is not None:
                if isinstance(place, int) and place < 1:
                    raise ScriptError(f"crash({when}={place})", f"Entries are counted from 1: crash({when}=1)")
                self._crashes.append(Crash("after" if when == "after" else "before", place))
        if everywhere:
            self._everywhere = set()
        elif after is None and before is None:
            raise ScriptError("crash() needs to know where", "Say fake.crash(after=3), fake.crash(before=3), or fake.crash(everywhere=True)")
        return self

    # Running

    def run(self, workflow: Workflow[I, A, E], request: I, *, key: str | None = None, until: Duration | None = None) -> Run:
        """Starts an execution and runs until nothing more can happen, or for so long in virtual time."""
        if not isinstance(workflow, Workflow):
            raise ScriptError(f"{brief(workflow)} is no workflow", "Write fake.run(order, Order(7)): the workflow, then its input")
        self._known.add(workflow)
        self._look_up_names(workflow)
        memory = self._memory
        memory.begin(workflow, self._doom if self._crashes or self._everywhere is not None else None)
        memory.root = id = memory.start(workflow, request, key=key)
        began = memory.now
        self._come(id, began)
        try:
            memory.go(None if until is None else began + duration(until))
        finally:
            self._tell_missed(id)
            run = memory.look(id)
            run.keep()
            self._sent, self._cancels, self._crashes, self._everywhere = [], [], [], None
        return run

    def look(self, run: Run) -> Run:
        """What has become of it since: an execution that waited may have gone on in a later run."""
        return self._memory.look(run.id)

    def knows(self, *workflows: Workflow[Any, Any, Any]) -> Fake:
        """Workflows that are started without being named in a body: those that a table or an argument holds."""
        for one in workflows:
            self._known.add(one)
        return self

    @property
    def now(self) -> datetime:
        """The virtual time."""
        return self._memory.now

    def _come(self, id: str, began: datetime) -> None:
        memory = self._memory

        def send(one: Sent) -> None:
            memory.signal(id if one.to is None else one.to, one.signal, one.payload, delivery=one.delivery)

        def cancel(one: Cancel) -> None:
            one.done = True
            memory.cancel(id, one.reason)

        for one in self._sent:
            if one.at is None:
                send(one)
            else:
                memory.later(began + one.at, lambda one=one: send(one))  # type: ignore[misc]
        for wish in self._cancels:
            if wish.at is not None:
                memory.later(began + wish.at, lambda wish=wish: cancel(wish))  # type: ignore[misc]

    def _doom(self, when: When, id: str, entries: Sequence[Entry]) -> bool:
        memory = self._memory
        memory.recorded += len(entries) if when == "after" else 0
        if any([one.strikes(when, entries, memory.recorded) for one in self._crashes]):
            return True
        return self._everywhere is not None and self._strikes_anew(when, id, entries)

    def _strikes_anew(self, when: When, id: str, entries: Sequence[Entry]) -> bool:
        """Each entry has one death before it and one after; what a death itself adds has none, else there would be no end."""
        assert self._everywhere is not None
        told = [entry for entry in entries if entry.kind != INTERRUPTED]
        if not told or self._memory.last_chance(id, told):
            return False
        place = (when, id, told[0].step, told[0].kind, self._memory.times(id, told[0]))
        if place in self._everywhere:
            return False
        self._everywhere.add(place)
        return True

    def _begun(self, activity: Activity[Any, Any, Any]) -> None:
        """An attempt has begun: those who waited for that cancel now."""
        for one in self._cancels:
            if not one.done and one.step is not None and is_named(one.step, activity):
                one.done = True
                self._memory.cancel(self._memory.root, one.reason)

    def _tell_missed(self, id: str) -> None:
        """A plan that did not come true is told, for a test that passes because of that proves nothing."""
        memory = self._memory
        missed = [f"{one}: there were {memory.recorded} entries" for one in self._crashes if not one.struck]
        missed += [f"cancel(step={spelled(one.step)}): it never began" for one in self._cancels if one.step is not None and not one.done]
        memory.tell(Missed(memory.now, id, what) for what in missed)

    def _script(self, activity: Any, method: str) -> Script:
        if not isinstance(activity, Activity):
            raise ScriptError(f"fake.{method}({brief(activity)}, ...): that is no activity", "Give the contract itself, made by @activity(...)")
        root: Activity[Any, Any, Any] = activity.root
        return self._scripts.setdefault(root.name, Script(root))

    def _look_up_names(self, workflow: Workflow[Any, Any, Any]) -> None:
        """A crash or a cancellation at an activity that there is not would never come."""
        known = [*self._known.activities(workflow), *(script.activity for script in self._scripts.values())]

        def found(place: Any) -> Any:
            if not isinstance(place, str):
                return place
            for activity in known:
                if is_named(place, activity):
                    return activity
            names = ", ".join(sorted({name_in_code(activity) for activity in known})) or "none"
            raise ScriptError(f"{workflow.name} has no activity {place!r}", f"Its activities: {names}")

        for crash in self._crashes:
            crash.place = found(crash.place)
        for cancel in self._cancels:
            cancel.step = found(cancel.step)

    def _answer(self, activity: Activity[Any, Any, Any], request: bytes) -> Callable[[Any], Any]:
        """What carries out the next attempt. Raises `Unscripted`."""
        script, binding = self._scripts.get(activity.name), self._known.bound(activity.name)
        answer = None if script is None else script.next()
        if answer is None:
            if binding is None:
                raise Unscripted(
                    activity, codecs_of(activity).request.decode(request), [name_in_code(one.activity) for one in self._scripts.values()]
                )
            answer = binding.implementation
        if not self._cancels:
            return answer

        def begun(request: Any) -> Any:
            self._begun(activity)
            return answer(request)

        return begun


class _Known:
    """The workflows that a fake has met, and what a deployment binds: what an interpreter asks of a deployment."""

    schedules = ()

    def __init__(self, deployment: Deployment | None) -> None:
        self._deployment = deployment
        self._found: list[Deployment] = [] if deployment is None else [deployment]
        self.limits = Limits() if deployment is None else deployment.limits

    def add(self, workflow: Workflow[Any, Any, Any]) -> None:
        """The newest of a name counts: tests often define one in a function."""
        found = _found_from(workflow)
        if self._found[:1] != [found]:
            self._found = [found, *(one for one in self._found if one is not found)]

    def workflow(self, name: str, version: int | None = None) -> Workflow[Any, Any, Any]:
        for one in self._found:
            if name in one.names and (version is None or (name, version) in one.versions):
                return one.workflow(name, version)
        known = sorted({known for one in self._found for known in one.names})
        raise ScriptError(
            f"the fake does not know the workflow {name!r}: nothing names it in its parent's body. Known: {', '.join(known)}",
            "Tell it: fake.knows(the_workflow)",
        )

    def bound(self, activity: str) -> Binding | None:
        try:
            return None if self._deployment is None else self._deployment.binding(activity)
        except NotFound:
            return None

    def activities(self, workflow: Workflow[Any, Any, Any]) -> list[Activity[Any, Any, Any]]:
        return [one.activity for one in _found_from(workflow).bindings]


class _Scripted(Memory):
    """Memory that asks a fake's scripts."""

    def __init__(self, known: _Known, fake: Fake, *, tenant: str, connect: Callable[[], Any] | None) -> None:
        super().__init__(cast("Deployment", known), tenant=tenant, connect=connect)  # it has all of a deployment that memory asks for
        self._fake = fake
        self.root = ""
        self.recorded = 0
        self._turns = 0
        self._workflow: Workflow[Any, Any, Any] | None = None
        self._began = self.now

    def begin(self, workflow: Workflow[Any, Any, Any], doom: Callable[[When, str, Sequence[Entry]], bool] | None) -> None:
        self.doom, self.recorded, self._turns, self._workflow, self._began = doom, 0, 0, workflow, self.now

    def tell(self, missed: Iterator[Missed]) -> None:
        self._log += missed

    def _answer(self, activity: Activity[Any, Any, Any], request: bytes) -> Callable[[Any], Any]:
        return self._fake._answer(activity.root, request)

    def _takes(self, activity: Activity[Any, Any, Any]) -> timedelta:
        script = self._fake._scripts.get(activity.name)
        return timedelta() if script is None else script.takes

    def _take_turn(self, kept: _Kept) -> None:
        self._turns += 1
        if self._turns > ENOUGH:
            assert self._workflow is not None
            raise Endless(self._workflow, ENOUGH, self.now - self._began)
        super()._take_turn(kept)

    def times(self, id: str, entry: Entry) -> int:
        """How many entries of that step and kind there are already."""
        return sum(one.step == entry.step and one.kind == entry.kind and one is not entry for one in self._kept[id].journal)

    def last_chance(self, id: str, entries: Sequence[Entry]) -> bool:
        """Whether a death now takes the last attempt from an activity that is running, or that these entries were to end."""
        return any(activity.policies.retry.exhausted(number) for activity, number in [*self._running(), *self._answered(id, entries)])

    def _running(self) -> Iterator[tuple[Activity[Any, Any, Any], int]]:
        for kept in self._kept.values():
            if kept.activation is not None:
                pending = kept.activation.fold.machine.pending
                for one in [pending[step] for step in kept.activation.busy if step in pending]:
                    if isinstance(one.instruction, Perform):
                        yield one.instruction.activity, one.attempts + 1

    def _answered(self, id: str, entries: Sequence[Entry]) -> Iterator[tuple[Activity[Any, Any, Any], int]]:
        steps = {entry.step for entry in entries if entry.kind != INTENT}
        for one in reversed(self._log):
            if isinstance(one, Called) and one.id == id and one.step in steps:
                steps.discard(one.step)
                yield one.activity, one.number


@lru_cache(maxsize=256)
def _found_from(workflow: Workflow[Any, Any, Any]) -> Deployment:
    """A deployment of all that a workflow names. Raises `DeploymentError` with what cannot work as it is written."""
    contracts: dict[str, Activity[Any, Any, Any]] = {}
    todo, seen = [workflow], {id(workflow)}
    while todo:
        for found in named_in(todo.pop().body):
            if isinstance(found, Activity):
                contracts.setdefault(found.name, found.root)
            elif id(found) not in seen:
                seen.add(id(found))
                todo.append(found)
    return Deployment([workflow], [bind(contract, _nobody) for contract in contracts.values()])


def _nobody(request: Any) -> Any:
    raise AssertionError(request)  # a fake looks for a script first


__all__ = ["Endless", "Fake", "ScriptError", "Unscripted"]
