"""Every order in which things can come: exits of activities, timers, signals, and if you like a cancellation.

for run in interleavings(approve, expense, given={ask: Success(None)}, signals=[(decided, KIM)]):
    assert run.exit == Success(KIM)
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias, TypeVar

from attrs import define, frozen
from returns.result import Failure, Success

from flowdsl.activation import OPEN
from flowdsl.attempt import Ending
from flowdsl.definition import Activity, Workflow
from flowdsl.errors import FlowError
from flowdsl.flow import Defect, Perform, Receive, Signal
from flowdsl.machine import Pending
from flowdsl.memory import Memory, _Kept, _Late
from flowdsl.story import Called, Run
from flowdsl.testing.playing import Named, backing, named
from flowdsl.testing.replies import short
from flowdsl.virtual import Rehearsal, VirtualAttempt

I = TypeVar("I")  # noqa: E741
A = TypeVar("A")
E = TypeVar("E")

MOMENT: Final = timedelta(microseconds=1)
ENOUGH: Final = 500
"""Events after which a run is left as it stands: it may be one that never ends."""

Coming: TypeAlias = tuple[Signal[Any], Any] | tuple[Signal[Any], Any, str]
"""A signal and its payload, to the execution that is started, or to that correlation key."""


class Unanswered(FlowError):
    """An activity was asked for that nothing was given for."""

    def __init__(self, activity: Activity[Any, Any, Any], request: Any) -> None:
        self.activity, self.request = activity, request
        name = getattr(activity.contract, "__name__", activity.name)
        super().__init__(f"{name} was asked with {short(request, 80)}, and nothing says what it gives. Add it: given={{{name}: Success(...)}}")


class TooShallow(UserWarning):
    """Not all orders were looked at."""


@frozen
class _Option:
    """One thing that could come next."""

    what: str
    happen: Callable[[], None]


@define(eq=False)
class _Flying:
    """An attempt that is under way: it can end from `ready` on, and must before `deadline`."""

    id: str
    late: _Late
    called: Called
    ready: datetime
    deadline: datetime


@frozen(eq=False)
class _Script:
    """What every order of one workflow is tried with."""

    workflow: Workflow[Any, Any, Any]
    request: Any
    given: Mapping[str, Any]
    signals: Sequence[Coming]
    model: Callable[[], Any] | None
    cancel: bool


class _Known(Exception):
    """From here on everything has been looked at already."""


class _Path:
    """The choices of one run: those to follow, and what else there was. Below `depth` the first is taken."""

    def __init__(self, follow: tuple[int, ...], depth: int, seen: dict[Any, int]) -> None:
        self.follow, self.depth, self._seen = follow, depth, seen
        self.widths: list[int] = []
        self.cut = 0
        self.order: list[str] = []

    def choose(self, options: Sequence[_Option], state: Callable[[], Any]) -> _Option:
        at = len(self.widths)
        if len(options) == 1:
            chosen = options[0]
        elif at < len(self.follow):
            self.widths.append(len(options))
            chosen = options[self.follow[at]]
        elif at < self.depth:
            self.look(state())
            self.widths.append(len(options))
            chosen = options[0]
        else:
            self.cut += 1
            chosen = options[0]
        self.order.append(chosen.what)
        return chosen

    def look(self, state: Any) -> None:
        """Raises `_Known` where a run has been before that had as many choices left."""
        at = len(self.widths)
        if self._seen.get(state, self.depth + 1) <= at:
            raise _Known
        self._seen[state] = at

    def others(self) -> Iterator[tuple[int, ...]]:
        """What was not chosen, the nearest to this run first."""
        for at in range(len(self.widths) - 1, len(self.follow) - 1, -1):
            before = (*self.follow, *[0] * (at - len(self.follow)))
            yield from ((*before, other) for other in range(1, self.widths[at]))


class _Stage(Rehearsal):
    """Attempts act when they begin; that they have ended is told later."""

    def __init__(self, ordered: Ordered) -> None:
        super().__init__()
        self._ordered = ordered

    def carry_out(
        self, attempt: VirtualAttempt, implementation: Callable[[Any], Any], request: Any, takes: timedelta = timedelta()
    ) -> tuple[Ending, timedelta]:
        ending, took = self._ordered.met(attempt, implementation, request, super().carry_out)
        self._ordered.begun = (self._ordered.now + took, max(attempt.deadline, self._ordered.now + took))
        return ending, max(took, MOMENT)  # so that it is not over at once


class Ordered(Memory):
    """The memory interpreter, where a path says what comes next whenever more than one thing could."""

    def __init__(self, names: Named, path: _Path, given: Mapping[str, Any], model: Any) -> None:
        super().__init__(names.deployment)
        self._rehearsal = _Stage(self)
        self._given = {**backing(model, names.contracts), **given}
        self.path, self.model = path, model
        self._shortest = min([one.policies.start_to_close for one in names.contracts.values()], default=timedelta())
        self._flying: list[_Flying] = []
        self._coming: list[tuple[str, Callable[[], None], Callable[[], bool]]] = []
        self.begun = (self.now, self.now)
        self.root = ""
        self.endless = False

    def expect(self, what: str, happen: Callable[[], None], possible: Callable[[], bool] = lambda: True) -> None:
        """Something from outside that comes once, at any time from when it is possible."""
        self._coming.append((what, happen, possible))

    # Running

    def go(self, until: datetime | None = None) -> None:
        events = 0
        try:
            while True:
                while self._jobs or self._let_through():
                    self._begin(*self._jobs.popleft())
                if self._find_children():
                    continue
                options = list(self._options())
                if not options or events >= ENOUGH:
                    self.endless = bool(options)
                    break
                events += 1
                self.path.choose(options, self.state).happen()
            self.path.look(("end", self.state()))
        finally:
            self._rehearsal.close()
            for one in self._flying:
                one.called.took = one.deadline - one.called.at

    def _begin(self, id: str, one: Pending) -> None:
        before = len(self._late)
        self._perform(id, one)
        if len(self._late) > before:
            late = max(self._late, key=lambda late: late.number)
            self._late.remove(late)
            self._late.sort()
            called = next(one for one in reversed(self._log) if isinstance(one, Called))
            self._flying.append(_Flying(id, late, called, *self.begun))

    def met(
        self, attempt: VirtualAttempt, implementation: Callable[[Any], Any], request: Any, carry_out: Callable[..., tuple[Ending, timedelta]]
    ) -> tuple[Ending, timedelta]:
        """How an attempt will end, and how long it takes at least."""
        return carry_out(attempt, implementation, request)

    def _answer(self, activity: Activity[Any, Any, Any], request: Any) -> Callable[[Any], Any]:
        if activity.name not in self._given:
            raise Unanswered(activity.root, request)
        return _answering(self._given[activity.name])

    # What could come next

    def _options(self) -> Iterator[_Option]:
        """Attempts that can end, what comes from outside, timers: each now, or if that may make a difference, just before the next timer."""
        self._drop_unwanted()
        due = min((due for due, _ in self._timers()), default=None)
        opens = self._gate.next(self.now)
        latest = min([one.deadline for one in self._flying], default=None)
        soonest = min([time for time in (due, opens) if time is not None], default=None)
        for one in self._flying:
            if soonest is None or one.ready <= soonest:
                yield _Option(f"{_named(one.called)} ends", lambda one=one: self._end_flying(one, max(self.now, one.ready)))  # type: ignore[misc]
                late = self._late_time(soonest, latest)
                if late is not None and late > one.ready:
                    yield _Option(f"{_named(one.called)} ends just before the timer", lambda one=one, late=late: self._end_flying(one, late))  # type: ignore[misc]
        for index, (what, happen, possible) in enumerate(self._coming):
            if any(what == before for before, *_ in self._coming[:index]) or not possible():
                continue
            yield _Option(what, lambda index=index, happen=happen: self._come_in(index, happen, self.now))  # type: ignore[misc]
            late = self._late_time(soonest, latest)
            if late is not None:
                yield _Option(f"{what} just before the timer", lambda index=index, happen=happen, late=late: self._come_in(index, happen, late))  # type: ignore[misc]
        if soonest is not None and (latest is None or soonest <= latest):
            yield from self._time(soonest)

    def _drop_unwanted(self) -> None:
        """Attempts that nobody waits for any more may go on for as long as they like."""
        for one in list(self._flying):
            if not self._wanted((one.id, one.late.one)) or self._kept[one.id].activation is not one.late.activation:
                self._flying.remove(one)
                one.called.took = one.deadline - one.called.at

    def _time(self, soonest: datetime) -> Iterator[_Option]:
        """The timers that are due first: those of one execution after those of another, in each order."""
        found = [kept for due, kept in self._timers() if due == soonest]
        for kept in found:
            yield _Option(f"a timer of {kept.workflow.name} is due", lambda kept=kept: self._tick(kept, soonest))  # type: ignore[misc]
        if not found:
            yield _Option("the budget opens", lambda: self._pass(soonest))

    def _late_time(self, soonest: datetime | None, latest: datetime | None) -> datetime | None:
        """Just before the next timer; None when what begins now could still be under way then, or when something must have ended before."""
        if soonest is None or soonest <= self.now + self._shortest:
            return None
        late = soonest - MOMENT
        return late if latest is None or late < latest else None

    def _end_flying(self, one: _Flying, at: datetime) -> None:
        self._flying.remove(one)
        self.now = max(self.now, at)
        one.called.took = self.now - one.called.at
        self._ended(self._kept[one.id], one.late.activation, one.late.one, one.late.ending)

    def _come_in(self, index: int, happen: Callable[[], None], at: datetime) -> None:
        del self._coming[index]
        self.now = max(self.now, at)
        happen()

    def _tick(self, kept: _Kept, due: datetime) -> None:
        self.now = max(self.now, due)
        self._active(kept).tick(self.now)
        self._commit(kept)

    def _pass(self, due: datetime) -> None:
        self.now = max(self.now, due)

    # What has become of it

    def state(self) -> Any:
        """All that can make a difference to what comes."""
        executions = [(kept.execution.id, kept.status, kept.exit, *map(_facts, kept.journal), *kept.mailbox) for kept in self._kept.values()]
        flying = [(one.id, one.late.one.step, one.late.one.attempts, one.ready, one.deadline, repr(one.late.ending)) for one in self._flying]
        calls = [(one.key, one.number) for one in self._log if isinstance(one, Called)]
        return repr((self.now, executions, flying, calls, [what for what, *_ in self._coming], self._unmatched))

    def lost(self) -> str | None:
        """What should have woken an execution, and has not: a bug of the interpreter, whatever the workflow says."""
        for kept in self._kept.values():
            if kept.status not in OPEN or kept.status == "blocked":
                continue
            name = f"{kept.workflow.name} ({kept.execution.id})"
            if kept.activation is None:
                return f"{name} is open, and nobody has it"
            mails = {(mail.name, mail.key) for mail in kept.mailbox if mail.kind == "signal"}
            for one in kept.activation.fold.machine.pending.values():
                if isinstance(one.instruction, Receive) and (one.instruction.signal.name, one.instruction.key) in mails:
                    return f"{name} waits for the signal {one.instruction.signal.name}, which lies in its mailbox"
                if isinstance(one.instruction, Perform) and one.due is None and not self.endless and not _is_out(self, kept, one):
                    return f"{name} waits for {one.instruction.activity.name}, and no attempt is under way"
        return None


def _is_out(ordered: Ordered, kept: _Kept, one: Pending) -> bool:
    return any(flying.id == kept.execution.id and flying.late.one is one for flying in ordered._flying)


class Interleavings(Iterator[Run]):
    """The runs, one for each order. `order` names that of the last run, `model` is its model."""

    def __init__(self, script: _Script, depth: int) -> None:
        self._script, self.depth = script, depth
        self._names = named(script.workflow)
        self._todo: list[tuple[int, ...]] = [()]
        self._seen: dict[Any, int] = {}
        self.runs = 0
        """How many orders made a difference."""
        self.cut = 0
        """How often more than one thing could have come next below `depth`, where only the first was tried."""
        self.endless = 0
        """How many runs were left as they stood, for they went on and on."""
        self.order: tuple[str, ...] = ()
        self.model: Any = None

    def __next__(self) -> Run:
        while self._todo:
            ordered = self._run(self._todo.pop())
            if ordered is not None:
                self.runs += 1
                self.endless += ordered.endless
                self.order, self.model = tuple(ordered.path.order), ordered.model
                run = ordered.look(ordered.root)
                run.keep()
                return run
        if self.cut or self.endless:
            warnings.warn(self.word, TooShallow, stacklevel=2)
        raise StopIteration

    def _run(self, follow: tuple[int, ...]) -> Ordered | None:
        path = _Path(follow, self.depth, self._seen)
        try:
            return self._ordered(path)
        except _Known:
            return None
        finally:
            self.cut += path.cut
            self._todo += list(path.others())[::-1]

    def _ordered(self, path: _Path) -> Ordered:
        script = self._script
        ordered = Ordered(self._names, path, script.given, None if script.model is None else script.model())
        ordered.root = root = ordered.start(script.workflow, script.request)
        for signal, payload, *to in script.signals:
            what = f"signal {signal.name} {short(payload)}" + (f" for {to[0]}" if to else "")
            ordered.expect(what, lambda to=to, signal=signal, payload=payload: ordered.signal(to[0] if to else root, signal, payload))  # type: ignore[misc]
        if script.cancel:
            ordered.expect("a cancellation", lambda: ordered.cancel(root), lambda: ordered._kept[root].status in OPEN)
        ordered.go()
        return ordered

    @property
    def word(self) -> str:
        """What was looked at, and what was not."""
        name = self._script.workflow.name
        said = f"interleavings of {name}: {self.runs} orders looked at, down to depth {self.depth}"
        if self.cut:
            said += f"; below it, {self.cut} times more than one thing could have come next, and only the first was tried: "
            said += f"depth={self.depth + 3} looks deeper"
        if self.endless:
            said += f"; {self.endless} runs went on and on and were left after {ENOUGH} events: give what ends their loop"
        return said


def interleavings(
    workflow: Workflow[I, A, E],
    request: I,
    *,
    given: Mapping[Activity[Any, Any, Any], Any] | None = None,
    signals: Sequence[Coming] = (),
    model: Callable[[], Any] | None = None,
    cancel: bool = False,
    depth: int = 5,
) -> Interleavings:
    """A run for each order in which exits of activities, timers and signals can come, as far as that makes a difference.

    `given` says what activities give: an exit, an exception, or a function of the request. Each of `signals` comes once, at any time; with `cancel`
    so does a cancellation. An attempt takes any time up to its timeout. `depth`: how often there is a choice; below it the first thing that can
    come does, and a warning (`TooShallow`) says so. Orders that lead to the same journal are looked at once.
    """
    for coming in signals:
        if len(coming) not in (2, 3) or not isinstance(coming[0], Signal):
            raise FlowError(f"signals=[{short(coming)}] is no signal that can come. Write (signal, payload), or (signal, payload, key)")
    for activity, answer in (given or {}).items():
        _check(activity, answer)
    answers = {activity.name: answer for activity, answer in (given or {}).items()}
    return Interleavings(_Script(workflow, request, answers, signals, model, cancel), depth)


def _check(activity: Any, answer: Any) -> None:
    if not isinstance(activity, Activity):
        raise FlowError(f"given={{{short(activity)}: ...}} is no activity. Name the contract")
    if not (callable(answer) or isinstance(answer, (Success, Failure, BaseException))):
        name = activity.name
        raise FlowError(f"given[{name}] = {short(answer)} is no exit. Give Success(...), Failure(...), an exception, or a function of the request")


def _answering(answer: Any) -> Callable[[Any], Any]:
    if inspect.isclass(answer) and issubclass(answer, BaseException):
        answer = answer()
    if isinstance(answer, BaseException):
        failure = answer

        def fails(_: Any) -> Any:
            raise failure

        return fails
    return answer if callable(answer) else lambda _: answer


def _named(called: Called) -> str:
    return f"{called.activity.name.rpartition('.')[2]}" + (f" (attempt {called.number})" if called.number > 1 else "")


def _facts(entry: Any) -> tuple[Any, ...]:
    return (entry.kind, entry.at, entry.step, entry.fingerprint, entry.body)


__all__ = ["Defect", "Interleavings", "Ordered", "TooShallow", "Unanswered", "interleavings"]
