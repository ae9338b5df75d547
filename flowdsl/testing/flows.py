"""Flows themselves, as a Hypothesis strategy: for people who write combinators, and for the laws of the language.

@given(flows())
def test_twice_is_the_same_as_then(sample):
    assert sample.run(twice) == sample.run(lambda flow: flow.then(lambda _: flow))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import cache, partial
from typing import Any, Final, TypeAlias
from zlib import crc32

from attrs import evolve, field, frozen
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from returns.result import Failure, Result, Success

from flowdsl.activation import OPEN, Activation
from flowdsl.attempt import Ending
from flowdsl.binding import Deployment, bind
from flowdsl.definition import Workflow, activity, workflow
from flowdsl.flow import Defect, Done, Exit, Flow, Next, Steps, all_, do, fail, iterate, masked, pure, race, saga, signal, sleep
from flowdsl.machine import Pending
from flowdsl.memory import Memory, _Kept
from flowdsl.policy import Retry
from flowdsl.story import Called, Role, Run
from flowdsl.testing.steady import policies_show
from flowdsl.virtual import Rehearsal, VirtualAttempt

HOUR: Final = 3_600_000_000
_MOST: Final = 997


@frozen
class Oops:
    """The failure that these flows declare."""

    code: int


@frozen
class Asked:
    """What a step of these flows asks: which step it is, and the number that it has come to."""

    tag: int
    number: int


@activity("flows.step", retry=Retry.constant("7s", attempts=1000), timeout="12h")
def step(asked: Asked) -> Result[int, Oops]: ...


bell = signal("flows.bell", int)
"""What these flows receive, and what rings for them now and then."""

Make: TypeAlias = Callable[[int], Flow[int, Any]]


@frozen(repr=False)
class Sample:
    """A flow, and the world that it runs in. Made anew as often as you like: `flow()`, `run()`."""

    text: str
    make: Make = field(eq=False)
    """The flow, once it has come to this number."""
    tries: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """What each step gives, attempt by attempt: ok, oops, or a bug that is tried again."""
    rings: tuple[int, ...] = ()
    """Hours after which the bell rings."""
    cancel: int | None = None
    """Hours after which it is cancelled."""
    order: int = 0
    """Which step takes how long."""

    def flow(self, number: int = 0) -> Flow[int, Any]:
        """The flow itself: gives a number, or fails with `Oops` and with what its timeouts give."""
        return self.make(number)

    def run(self, through: Callable[[Flow[int, Any]], Flow[Any, Any]] = lambda flow: flow, *, crash: Callable[[int], bool] | None = None) -> Outcome:
        """What it does, put through a combinator. `crash(n)`: whether the process dies after the n-th entry."""
        memory = _Timed(self, lambda: through(self.flow()), crash)
        run = memory.run(memory.workflow, 0)
        kept = memory._kept[run.id]
        calls: list[tuple[int, int, Role]] = [
            (one.request.tag, one.request.number, one.role) for one in memory._log if isinstance(one, Called) and one.number == 1
        ]
        return Outcome(
            "waits" if kept.status in OPEN and kept.status != "blocked" else kept.status, run.exit, tuple(calls), run, not policies_show(memory)
        )

    def __repr__(self) -> str:
        world = [f"bell after {hours}h" for hours in self.rings] + ([f"cancelled after {self.cancel}h"] if self.cancel is not None else [])
        tries = [f"step {tag}: {', '.join(exits)}" for tag, exits in self.tries if exits != ("ok",)]
        return f"{self.text}" + (f"  [{'; '.join([*tries, *world])}]" if tries or world else "")


@frozen
class Outcome:
    """What can be seen of a run from outside: how it ended, and which steps were asked, in which order and role."""

    status: str
    exit: Exit[Any, Any] | None = field(eq=lambda exit: type(exit).__name__ if isinstance(exit, Defect) else repr(exit))
    calls: tuple[tuple[int, int, Role], ...]
    told: Run = field(eq=False, repr=False)
    """The run itself; `str(outcome.told)` tells it at length."""
    plain: bool = field(eq=False, repr=False)
    """Whether no policy made something of an attempt that a crash cut short."""


class _Timed(Memory):
    """The memory interpreter, where each step takes its own time: no two things happen at once."""

    def __init__(self, sample: Sample, make: Callable[[], Flow[Any, Any]], crash: Callable[[int], bool] | None) -> None:
        def body(_: int) -> Steps[int, Oops]:
            answer: int = yield from make()
            return answer

        self.workflow: Workflow[int, int, Oops] = evolve(_DEFINED, body=body)
        vars(self.workflow)["shape"] = _DEFINED.shape
        super().__init__(_deployment(), crash=crash)
        self._sample, self._tries = sample, dict(sample.tries)
        self._rehearsal = _Stage(self)
        self._ends: dict[tuple[str, int], Any] = {}
        self._heard: Counter[str] = Counter()
        """Endings that were heard, by idempotency key: an attempt that a crash cut short was none."""

    def start(self, *args: Any, **more: Any) -> str:
        id: str = super().start(*args, **more)
        for index, hours in enumerate(self._sample.rings):
            self.later(self.now + _spell("bell", index, hours=hours), partial(self.signal, id, bell, index))
        if self._sample.cancel is not None:
            self.later(self.now + _spell("cancel", hours=self._sample.cancel), lambda: self.cancel(id))
        return id

    def met(self, attempt: VirtualAttempt, asked: Asked) -> tuple[Ending, timedelta]:
        """The same step is told the same at the same time, also when a crash cut it short."""
        key, heard = attempt.idempotency_key, self._heard[attempt.idempotency_key]
        exits = self._tries.get(asked.tag, ("ok",))
        exit = exits[min(heard, len(exits) - 1)]
        ends = self._ends.setdefault((key, heard), self.now + _spell(asked, heard, self._sample.order))
        ending: dict[str, Any] = {
            "ok": Success(_mixed(asked.tag, asked.number)),
            "oops": Failure(Oops(asked.tag)),
            "bug": Defect("flows.step", "as told"),
        }
        return Ending(ending[exit]), max(ends - self.now, timedelta(microseconds=1))

    def _ended(self, kept: _Kept, activation: Activation, one: Pending, ending: Ending) -> None:
        if kept.activation is activation:
            self._heard[activation.fold.key(one.step)] += 1
        super()._ended(kept, activation, one, ending)


class _Stage(Rehearsal):
    def __init__(self, timed: _Timed) -> None:
        super().__init__()
        self._timed = timed

    def carry_out(
        self, attempt: VirtualAttempt, implementation: Callable[[Any], Any], request: Any, takes: timedelta = timedelta()
    ) -> tuple[Ending, timedelta]:
        return self._timed.met(attempt, request)


@workflow("flows.sample")
def _DEFINED(number: int) -> Steps[int, Oops]:
    return (yield from step(Asked(0, number)))


@cache
def _deployment() -> Deployment:
    return Deployment([_DEFINED], [bind(step, _nobody)])


def _nobody(asked: Asked) -> Result[int, Oops]:
    raise AssertionError(asked)


def _spell(*name: object, hours: int = 0) -> timedelta:
    """So many hours, and a part of one: another for every name."""
    return timedelta(hours=hours, microseconds=1 + crc32(repr(name).encode()) % (HOUR - 1))


def _mixed(one: int, other: int) -> int:
    return (31 * one + other + 1) % _MOST


# Drawing


@st.composite
def flows(draw: Any, *, depth: int = 3, signals: bool = True, cancels: bool = True, defects: bool = True) -> Sample:
    """Flows of all that the language has, with the world that they run in. The smallest is `pure`.

    `depth`: how many combinators stand within each other. Without `signals`, `cancels`,
    `defects` nothing waits for the bell, is cancelled, or has a bug.
    """
    part = draw(_parts(depth, signals, defects))
    numbered = _numbered(part)
    kinds = ["ok"] * 3 + ["oops"] + ["bug"] * defects
    tries = [(tag, (*["bug"] * (defects and draw(st.integers(0, 3)) == 3), draw(st.sampled_from(kinds)))) for tag in range(numbered.steps)]
    told = tuple((tag, exits if exits[-1] != "bug" else (*exits, "ok")) for tag, exits in tries)
    rings = draw(st.lists(st.integers(0, 3), max_size=3)) if signals and "bell" in numbered.text else []
    cancel = draw(st.none() | st.integers(0, 3)) if cancels else None
    return Sample(numbered.text, numbered.make, told, tuple(rings), cancel, draw(st.integers(0, 3)))


@cache
def _parts(depth: int, signals: bool, defects: bool) -> SearchStrategy[_Part]:
    """Made once: a strategy costs more than what is drawn from it."""
    leaves = _leaves(signals, defects)
    return st.one_of(leaves, *_inner(_parts(depth - 1, signals, defects), defects=defects)) if depth else leaves


@frozen
class _Part:
    """A flow in the making: its text with {} for each step, and how it is made once the steps are numbered."""

    text: str
    steps: int
    make: Callable[[int, int], Flow[int, Any]] = field(eq=False)
    """From the number of its first step and the number it has come to."""

    def __repr__(self) -> str:
        return self.text


@frozen
class _Numbered:
    text: str
    steps: int
    make: Make


def _numbered(part: _Part) -> _Numbered:
    tags = iter(range(part.steps))
    pieces = part.text.split("§")
    text = pieces[0] + "".join(f"{next(tags)}{piece}" for piece in pieces[1:])
    return _Numbered(text, part.steps, lambda number: part.make(0, number))


def _leaf(text: str, make: Callable[[int], Flow[int, Any]]) -> _Part:
    return _Part(text, 0, lambda _, number: make(number))


def _leaves(signals: bool, defects: bool) -> SearchStrategy[_Part]:
    found = [_leaf(f"pure({value})", lambda number, value=value: pure(_mixed(value, number))) for value in range(3)]  # type: ignore[misc]
    asked = _Part("step(§)", 1, lambda first, number: step(Asked(first, number)))
    found += [asked] * 4
    found += [_leaf("fail(1)", lambda _: fail(Oops(1)))]
    found += [_leaf(f"sleep({hours}h)", lambda number, hours=hours: sleep(_spell("sleep", hours=hours)).map(lambda _: number)) for hours in (0, 2)]  # type: ignore[misc]
    if signals:
        found += [_leaf("bell.receive()", lambda number: bell.receive().map(lambda rung: _mixed(rung, number)))]
        found += [_leaf("bell.take()", lambda number: bell.take().map(lambda rung: _mixed(-1 if rung is None else rung, number)))]
    if defects:
        found += [_leaf("pure(0).then(broken)", lambda number: pure(number).then(_broken))]
    return st.sampled_from(found)


def _broken(_: int) -> Flow[int, Any]:
    raise ValueError("as told")


One: TypeAlias = Callable[[Flow[int, Any]], Flow[int, Any]]

_AROUND: Final[dict[str, One]] = {
    "saga({})": saga,
    "masked({})": masked,
    "{}.attempt()": lambda flow: flow.attempt().map(lambda one: one.value_or(-1) if isinstance(one, Success) else -2),
    "{}.timeout(1h)": lambda flow: flow.timeout(_spell("timeout"), Oops(2)),
    "{}.retry(2)": lambda flow: flow.retry(Retry.constant("11s", attempts=2)),
}


def _inner(part: SearchStrategy[_Part], *, defects: bool) -> list[SearchStrategy[_Part]]:
    two = st.tuples(part, part)
    around = dict(_AROUND)
    if defects:
        around["{}.isolate()"] = lambda flow: flow.isolate().catch(lambda error: pure(-3) if not isinstance(error, Oops) else fail(error))
    ways = [part.map(partial(_wrapped, text, way)) for text, way in around.items()]
    ways += 2 * [two.map(partial(_paired, text, way)) for text, way in _PAIRS.items()]
    return [*ways, part.map(_looped), part.map(_bodied)]


def _wrapped(text: str, way: One, part: _Part) -> _Part:
    return _Part(text.format(part.text), part.steps, lambda first, number: way(part.make(first, number)))


Two: TypeAlias = Callable[[Flow[int, Any], Make], Flow[int, Any]]

_PAIRS: Final[dict[str, Two]] = {
    "{}.then(lambda _: {})": lambda one, other: one.then(other),
    "{}.catch(lambda _: {})": lambda one, other: one.catch(lambda _: other(-4)),
    "{}.ensure(lambda _: {})": lambda one, other: one.ensure(lambda _: other(-5)),
    "{}.compensate(lambda _: {})": lambda one, other: one.compensate(other),
    "all_({}, {})": lambda one, other: all_(one, other(7)).map(lambda both: _mixed(*both)),
    "race({}, {})": lambda one, other: race(one, other(8)),
}


def _paired(text: str, way: Two, parts: tuple[_Part, _Part]) -> _Part:
    one, other = parts

    def make(first: int, number: int) -> Flow[int, Any]:
        return way(one.make(first, number), lambda seen: other.make(first + one.steps, seen))

    return _Part(text.format(one.text, other.text), one.steps + other.steps, make)


def _looped(part: _Part) -> _Part:
    def make(first: int, number: int) -> Flow[int, Any]:
        def round(state: int) -> Flow[Next[int] | Done[int], Any]:
            gone, came = divmod(state, _MOST)
            return part.make(first, came).map(lambda seen: Done(seen) if seen % 2 or gone > 1 else Next((gone + 1) * _MOST + seen % _MOST))

        return iterate(number % _MOST, round)

    return _Part(f"iterate({part.text})", part.steps, make)


def _bodied(part: _Part) -> _Part:
    def make(first: int, number: int) -> Flow[int, Any]:
        @do
        def body() -> Steps[int, Any]:
            return (yield from part.make(first, number))

        return body()

    return _Part(f"do({part.text})", part.steps, make)


__all__ = ["Asked", "Oops", "Outcome", "Sample", "bell", "flows", "step"]
