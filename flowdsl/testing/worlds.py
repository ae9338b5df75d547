"""Worlds that a workflow may run in, as a Hypothesis strategy.

    @given(worlds(order, model=Bank))
    def test_money_is_taken_once(world):
        world.run()
        assert len(world.model.taken) <= 1

A world is drawn by running the workflow in it: whatever it asks is replied to with something that its contract allows. So it is whole, and can be
printed, before the test begins; `run()` gives that run, and each further `run()` the same one again, made anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from attrs import evolve
from hypothesis import currently_in_test_context, note
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from returns.result import Failure, Success

from flowdsl.definition import Activity, Workflow
from flowdsl.flow import Defect, Signal
from flowdsl.story import Run
from flowdsl.testing.playing import Book, Cancel, Crash, Plan, Played, named
from flowdsl.testing.replies import TEMPERS, Arrival, BadWorld, Draw, Given, Replies, Reply, drawn, lasting, short

I = TypeVar("I")  # noqa: E741
A = TypeVar("A")
E = TypeVar("E")

SHOWN = 8
"""Replies that the repr of a world lists."""
MANY = sys.maxsize
"""Crashes wherever there can be one."""


class World(Generic[I, A, E]):
    """One world: a request, a reply to everything that is asked, arrivals of signals, crashes, a cancellation.

    Whoever asks the same is told the same: replies belong to an idempotency key and to how many replies it has had before. So a world
    with other crashes, or with none, is the same world in all else.
    """

    def __init__(self, workflow: Workflow[I, A, E], request: I, book: Book, plan: Plan, model: Callable[[], Any] | None = None) -> None:
        self.workflow, self.request = workflow, request
        self.model: Any = None
        """The model of the last run: each run has a new one."""
        self.entries = 0
        """How many entries the last run recorded, over all of its executions: crashes count them from 1."""
        self.cut = False
        """Whether the last run was ended because it went on and on."""
        self._book, self._plan, self._make = book, plan, model
        self._waiting: Played | None = None
        self._runs = 0

    # What is in it

    @property
    def crashes(self) -> frozenset[Crash]:
        """The deaths of the process."""
        return self._plan.crashes

    @property
    def cancel(self) -> Cancel | None:
        """When it is cancelled, if it is."""
        return self._plan.cancel

    @property
    def signals(self) -> tuple[Arrival, ...]:
        """The signals that came, in the order in which they were decided."""
        return tuple(arrival for arrival in self._book.arrivals.values() if arrival is not None)

    def replies(self, activity: Activity[Any, Any, Any]) -> tuple[Reply, ...]:
        """What its attempts met, in the order in which they were first made."""
        return tuple(reply for name, reply in self._book.told.values() if name == activity.name)

    # Running it

    def run(self) -> Run:
        """The run of the workflow in this world: the same each time. An `AssertionError` in the model is raised here."""
        played = self._waiting or self._play()
        self._waiting, self._plan = None, evolve(self._plan, crashes=frozenset(played.struck), settled=True) if self._plan.kindly else self._plan
        self._runs += 1
        self.model, self.entries, self.cut = played.model, played.entries, played.cut
        run = played.look(played.root)
        run.keep()
        if currently_in_test_context():
            note(_Told(f"Run {self._runs} of {self!r}" if self._runs > 1 else "The run", run))
        if played.broken is not None:
            raise played.broken
        return run

    def _play(self) -> Played:
        played = Played(self.workflow, self._book, self._plan, None if self._make is None else self._make())
        played.play(self.workflow, self.request)
        return played

    def rehearse(self, plan: Plan | None = None) -> Played:
        """Runs it once, so that all is decided; `run()` gives that run."""
        self._plan = plan or self._plan
        played = self._waiting = self._play()
        self._plan = evolve(self._plan, crashes=frozenset(played.struck), cancel=played.cancelled, cancel_at=None, settled=True)
        return played

    # Others like it

    def given(self, activity: Activity[Any, Any, Any], reply: Given) -> World[I, A, E]:
        """From now on that activity replies so: a strategy of exits, an exit, or a function of the request. Gives this world."""
        _checked(activity, reply)
        self._book.given[activity.name] = reply
        self._book.forget(activity.name)
        self._waiting = None
        return self

    def without(self, *, crashes: bool = False, cancel: bool = False) -> World[I, A, E]:
        """The same world, calmer."""
        plan = self._plan
        return self._with(Plan(frozenset() if crashes else plan.crashes, None if cancel else plan.cancel, kindly=plan.kindly))

    def with_crashes(self, after: Iterable[int] = (), *, before: Iterable[int] = ()) -> World[I, A, E]:
        """The same world with crashes at exactly these entries, also where the policies turn one into a defect.

        `after` an entry: it is recorded, and nothing that follows from it has begun. `before`: what led to it has happened, and is lost.
        """
        crashes = [*(Crash(number) for number in after), *(Crash(number, before=True) for number in before)]
        return self._with(evolve(self._plan, crashes=frozenset(crashes), kindly=False))

    def with_cancel(self, cancel: Cancel | None) -> World[I, A, E]:
        """The same world, cancelled at that moment."""
        return self._with(evolve(self._plan, cancel=cancel, settled=False))

    def _with(self, plan: Plan) -> World[I, A, E]:
        return World(self.workflow, self.request, self._book, plan, self._make)

    def __repr__(self) -> str:
        told = [(name, reply) for name, reply in self._book.told.values() if not reply.plain]
        parts = [f"{name.rpartition('.')[2]}: {reply}" for name, reply in told[:SHOWN]]
        parts += [f"{len(told) - SHOWN} more replies"] if len(told) > SHOWN else []
        parts += [str(arrival) for arrival in self.signals]
        parts += [str(crash) for crash in sorted(self.crashes, key=lambda crash: crash.entry)]
        parts += [str(self.cancel)] if self.cancel is not None else []
        return f"World({self.workflow.name}, {short(self.request, 200)}{' | ' if parts else ''}{'; '.join(parts)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How Hypothesis prints it, whatever it knows of how it was drawn."""
        printer.text(repr(self))


class _Told:
    """A story that is only written if somebody is to read it."""

    def __init__(self, title: str, run: Run) -> None:
        self._title, self._run = title, run

    def __repr__(self) -> str:
        return f"{self._title}:\n{self._run}"


def _checked(activity: Any, reply: Any) -> Activity[Any, Any, Any]:
    if not isinstance(activity, Activity):
        raise BadWorld(f"given({short(activity)}, …): that is no activity: name the contract")
    if isinstance(reply, (SearchStrategy, Success, Failure, Defect)) or callable(reply):
        return activity
    raise BadWorld(f"given {activity.name}, {short(reply)} is no exit: give Success(…), Failure(…), a strategy of those, or a function")


def worlds(
    workflow: Workflow[I, A, E],
    *,
    request: SearchStrategy[I] | None = None,
    given: Mapping[Any, Any] | None = None,
    signals: Mapping[Signal[Any], Any] | None = None,
    model: Callable[[], Any] | None = None,
    crashes: bool | int = True,
    cancels: bool = True,
    defects: bool = False,
) -> SearchStrategy[World[I, A, E]]:
    """Worlds for a workflow. All that is left out is drawn from the types that the workflow and its contracts declare.

    `given` says what an activity replies (a strategy of exits, an exit, or a function of the request), or which values there are of a type;
    `signals` the payloads of a signal (a strategy, or one payload). `model`: a class whose methods, named as the contracts' functions, carry out
    the activities on its own state; a new one for each run. The world then decides whether an attempt fails before it acts, or acts and its answer
    is lost. `crashes`: whether the process may die, or how often; `cancels`: whether the execution may be cancelled; `defects`: whether attempts
    may end in what no contract declares.
    """
    about: dict[Any, Any] = dict(given or {})
    contracts: dict[str, Given] = {}
    for key, strategy in list(about.items()):
        if isinstance(key, Activity):
            contracts[key.name] = about.pop(_checked(key, strategy))
        elif not isinstance(strategy, SearchStrategy):
            raise BadWorld(f"given {short(key)}: {short(strategy)} is no strategy: of a type say which values there are, as in st.just(…)")
    named(workflow)  # what is wrong with it is said here, not by a test
    payloads = {signal.name: payload for signal, payload in (signals or {}).items()}
    most = MANY if crashes is True else int(crashes)
    return _worlds(workflow, request, Replies(about, defects), contracts, payloads, model, most, cancels)


@st.composite
def _worlds(
    draw: Draw,
    workflow: Workflow[Any, Any, Any],
    request: SearchStrategy[Any] | None,
    replies: Replies,
    contracts: dict[str, Given],
    payloads: Mapping[str, Any],
    model: Callable[[], Any] | None,
    crashes: int,
    cancels: bool,
) -> World[Any, Any, Any]:
    book = Book(lasting(draw), replies, dict(contracts), payloads, TEMPERS[drawn(draw, len(TEMPERS))])
    crashed, cancelled = _weather(draw, crashes, cancels)
    _early(draw, book, list(named(workflow).signals.values()))
    world = World(workflow, draw(replies.values(workflow.shape.request) if request is None else request), book, Plan(), model)
    calm = world.rehearse()
    if crashed or cancelled:
        found = _places(draw, calm.entries, crashed, many=crashes == MANY)
        world.rehearse(Plan(frozenset(found), cancel_at=1 + drawn(draw, calm.moments) if cancelled else None))
    return world


def _weather(draw: Draw, crashes: int, cancels: bool) -> tuple[int, bool]:
    """How many crashes, and whether a cancellation. Many worlds are calm, so that what else is drawn is seen; few have everything."""
    weathers = [(0, False)] * 4
    weathers += [(1, False)] * 3 + [(crashes, False)] * 2 if crashes else []
    weathers += [(0, True)] * 2 if cancels else []
    weathers += [(1, True)] if cancels and crashes else []
    return weathers[drawn(draw, len(weathers))]


def _places(draw: Draw, entries: int, count: int, *, many: bool) -> list[Crash]:
    """Where crashes strike. More often before an entry than after: then something has happened that nobody knows."""
    if count > 1 and many:
        mask = drawn(draw, 2 ** min(entries, 20))
        return [Crash(1 + place, before=True) for place in range(entries) if mask >> place & 1]
    places = [drawn(draw, 3 * entries) for _ in range(count if entries else 0)]
    return [Crash(1 + place // 3, before=place % 3 < 2) for place in places]


def _early(draw: Draw, book: Book, signals: list[Signal[Any]]) -> None:
    """Now and then a signal is there before the execution has done anything."""
    if signals and drawn(draw, 6) == 5:
        one = signals[drawn(draw, len(signals))]
        payload = book.replies.payload(draw, one, book.payloads.get(one.name))
        book.arrivals[f"early {one.name}"] = Arrival(one, "", payload, None)


__all__ = ["Arrival", "BadWorld", "Cancel", "Crash", "Reply", "World", "worlds"]
