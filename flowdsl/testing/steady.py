"""Runs of one world that differ in one thing only: a crash, a cancellation, the order of what comes. What the laws compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import count as count_from
from os.path import basename
from random import Random
from typing import Any, Final

from attrs import define, field
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy

from flowdsl.activation import OPEN, MailKind
from flowdsl.attempt import Ending, ran_out, returned
from flowdsl.codec import Codec
from flowdsl.definition import Activity
from flowdsl.journal import ATTEMPT, BUG, FAILURE, INTENT, INTERRUPTED, OPERATOR, Entry, state_codec
from flowdsl.machine import Fiber, _Branches, _Ensure, _Iterate, _Saga
from flowdsl.memory import Memory, _Kept
from flowdsl.story import Began, Run
from flowdsl.testing.interleavings import Ordered, _Path
from flowdsl.testing.playing import Named, Plan, Played
from flowdsl.testing.replies import _NUMBERS, Moment, short
from flowdsl.testing.worlds import World
from flowdsl.virtual import VirtualAttempt


@define(eq=False)
class Watched:
    """A finalizer or an undo that was registered, and when it was begun."""

    fn: Callable[..., Any]
    id: str
    ran: list[int] = field(factory=list[int])
    clock: list[int] = field(factory=lambda: [0])

    def __call__(self, value: Any) -> Any:
        self.clock[0] += 1
        self.ran.append(self.clock[0])
        return self.fn(value)

    @property
    def name(self) -> str:
        code = getattr(self.fn, "__code__", None)
        name = str(getattr(self.fn, "__qualname__", self.fn)).rpartition("<locals>.")[2]
        return name if code is None else f"{name} ({basename(code.co_filename)}:{code.co_firstlineno})"


class Steady(Played):
    """A run of a world whose activities honour their idempotency keys: an attempt that was lost is told the same, at the same time.

    So a crash can change nothing that it should not. `gentle`: who takes over knows that nothing was cut short.
    """

    def __init__(self, world: World[Any, Any, Any], plan: Plan, *, gentle: bool = False, watch: bool = False) -> None:
        super().__init__(world.workflow, world._book, plan, None if world._make is None else world._make())
        self.gentle, self._watch = gentle, watch
        self._told: dict[tuple[str, int], tuple[Ending, datetime]] = {}
        self._clock = [0]
        self.finalizers: list[Watched] = []
        self.undos: list[Watched] = []
        self.states: list[tuple[Codec[Any], Any]] = []
        """Loop states that were seen."""
        self.open_finalizers: list[Watched] = []
        """Those that had to run when the cancellation came."""
        self.sagas: list[list[Watched]] = []
        """The undos of each saga, in the order in which they were registered, when the cancellation came."""

    @property
    def told(self) -> Run:
        return self.look(self.root)

    def executions(self) -> list[_Kept]:
        return list(self._kept.values())

    # Attempts

    def met(self, attempt: VirtualAttempt, request: Any, carry_out: Callable[..., tuple[Ending, timedelta]]) -> tuple[Ending, timedelta]:
        known = attempt.idempotency_key, self._heard[attempt.idempotency_key]
        if known not in self._told:
            ending, takes = super().met(attempt, request, carry_out)
            self._told[known] = ending, self.now + takes
            return ending, takes
        ending, end = self._told[known]
        return ending, max(end - self.now, timedelta())

    def _wake(self, kept: _Kept, *, taken_over: bool) -> None:
        super()._wake(kept, taken_over=taken_over and not self.gentle)

    # What is registered

    def _take_turn(self, kept: _Kept) -> None:
        self._look_at(kept)
        super()._take_turn(kept)

    def _wish(self, id: str, kind: MailKind, reason: str) -> None:
        kept = self._kept[id]
        if self._watch and kind == "cancel" and kept.status in OPEN and kept.activation is not None and not kept.activation.fold.machine.cancelling:
            for fiber in fibers(kept.activation.fold.machine._root):
                for frame in fiber.frames:
                    if isinstance(frame, _Ensure) and isinstance(frame.finalizer, Watched):
                        self.open_finalizers.append(frame.finalizer)
                    if isinstance(frame, _Saga) and frame.undos:
                        self.sagas.append([undo for undo, *_ in frame.undos if isinstance(undo, Watched)])
        super()._wish(id, kind, reason)

    def _look_at(self, kept: _Kept) -> None:
        if not self._watch or kept.activation is None or kept.activation.fold.machine.exit is not None:
            return
        for fiber in fibers(kept.activation.fold.machine._root):
            for frame in fiber.frames:
                if isinstance(frame, _Ensure) and not isinstance(frame.finalizer, Watched):
                    frame.finalizer = self._noted(frame.finalizer, kept, self.finalizers)
                elif isinstance(frame, _Saga):
                    for index, (undo, answer, began) in enumerate(frame.undos):
                        if not isinstance(undo, Watched):
                            frame.undos[index] = (self._noted(undo, kept, self.undos), answer, began)
                elif isinstance(frame, _Iterate):
                    self.states.append((state_codec(frame.node.step, frame.initial), frame.state))

    def _noted(self, fn: Any, kept: _Kept, among: list[Watched]) -> Watched:
        one = Watched(fn, kept.execution.id, clock=self._clock)
        among.append(one)
        return one


class Later:
    """Decides what was not asked before the laws are tried: by a number that the world itself gives, so that the same world goes the same way."""

    def __init__(self, seed: int) -> None:
        self._chance = Random(seed)

    def __call__(self, strategy: SearchStrategy[Any]) -> Any:
        for count, numbers in enumerate(_NUMBERS):
            if id(numbers) == id(strategy):
                return self._chance.randrange(count)
        skipped = self._chance.randrange(TRIED)
        tries = count_from(0)
        try:
            return find(strategy, lambda _: next(tries) >= skipped, settings=_FIND, random=Random(self._chance.random()))
        except NoSuchExample:  # there are not so many
            return find(strategy, lambda _: True, settings=_FIND)


TRIED: Final = 4
HEALTHY: Final[list[HealthCheck]] = list(HealthCheck)  # pyright: ignore[reportAssignmentType]
_FIND: Final = settings(max_examples=2 * TRIED, phases=[Phase.generate], database=None, suppress_health_check=HEALTHY)


def fibers(fiber: Fiber) -> Iterator[Fiber]:
    """A fiber and all that it waits for."""
    todo = [fiber]
    while todo:
        one = todo.pop()
        yield one
        for frame in one.frames:
            if isinstance(frame, _Branches):
                todo += frame.live.values()


def played(world: World[Any, Any, Any], plan: Plan = Plan(), *, gentle: bool = False, watch: bool = False) -> Steady:  # noqa: B008 (it is frozen)
    """A run of the world under another plan."""
    one = Steady(world, plan, gentle=gentle, watch=watch)
    one.play(world.workflow, world.request)
    return one


# Journals, compared


def bare(journal: Sequence[Entry], *, timed: bool) -> list[tuple[Any, ...]]:
    """A journal without what a crash may add to it: what it cut short, and with that positions and the numbers of attempts.

    What came at the same instant is put in the order of its steps: who of those is first, nothing decides. `timed`: whether the times count.
    """
    found = [
        (entry.kind, entry.at, entry.step, entry.fingerprint, b"" if entry.kind == ATTEMPT else entry.body)
        for entry in journal
        if entry.kind != INTERRUPTED
    ]
    found.sort(key=lambda one: (one[1], one[2], one[0]) if timed else (one[2], one[0]))
    return [one if timed else (one[0], None, *one[2:]) for one in found]


def policies_show(run: Memory) -> bool:
    """Whether a policy made something of an attempt that was cut short: it waited longer, or gave up earlier."""
    for kept in run._kept.values():
        cut: set[str] = set()
        for entry in kept.journal:
            if entry.kind == INTERRUPTED:
                cut.add(entry.step)
            elif (
                entry.kind == INTENT
                or (entry.kind == BUG and b"was cut short by the death" in entry.body)
                or (entry.kind in (ATTEMPT, FAILURE, BUG) and entry.step in cut)
            ):
                return True
    return False


def terminated(kept: _Kept) -> bool:
    """Whether it was ended at once, so that nothing more of it ran."""
    return any(entry.kind == OPERATOR for entry in kept.journal)


# Orders


class OrderedWorld(Ordered):
    """A world in which a path says what comes next."""

    def __init__(self, world: World[Any, Any, Any], names: Named, path: _Path) -> None:
        super().__init__(names, path, {}, None if world._make is None else world._make())
        self._world, self._contracts = world, names.contracts
        self._backed = dict(self._given)

    def play(self, world: World[Any, Any, Any], there: set[str]) -> None:
        """Runs it, with the signals that this world sent. `there`: the executions that its run had."""
        self.root = root = self.start(world.workflow, world.request)
        for arrival in world._book.arrivals.values():
            if arrival is not None:
                to = arrival.to or root
                what = f"signal {arrival.signal.name} {short(arrival.payload)}" + (f" for {to}" if to != root else "")
                possible = partial(self._kept.__contains__, to) if to in there else _always
                self.expect(what, lambda to=to, arrival=arrival: self.signal(to, arrival.signal, arrival.payload), possible)  # type: ignore[misc]
        self.go()

    def _answer(self, activity: Activity[Any, Any, Any], request: Any) -> Callable[[Any], Any]:
        given = self._world._book.given.get(activity.name)
        found = given if given is not None and callable(given) else None if given is not None else self._backed.get(activity.name)
        return found or _nobody

    def met(
        self, attempt: VirtualAttempt, implementation: Callable[[Any], Any], request: Any, carry_out: Callable[..., tuple[Ending, timedelta]]
    ) -> tuple[Ending, timedelta]:
        backed, activity = implementation is not _nobody, attempt.activity
        heard = attempt.number - 1
        moment = Moment(None, None if attempt.left is None else timedelta(seconds=attempt.left))
        reply = self._world._book.reply(attempt.idempotency_key, heard, activity, attempt.number, moment, backed=backed)
        ending, took = carry_out(attempt, implementation, request) if backed and reply.acts else (None, timedelta())
        if reply.times_out:
            return ran_out(activity, "timeout"), attempt.deadline - self.now
        if ending is None or reply.exit is not None:
            ending = returned(activity, reply.exit)
        return ending, took


def _always() -> bool:
    return True


def _nobody(request: Any) -> Any:
    raise AssertionError(request)


def began(run: Played) -> set[str]:
    """The executions that there were."""
    return {one.id for one in run._log if isinstance(one, Began)}
