"""What an attempt of an activity meets in a generated world: which replies its contract and its policies allow, and the drawing of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import UnionType
from typing import Any, Final, Never, NoReturn, TypeAlias, Union, cast, get_args, get_origin

from attrs import field, frozen
from hypothesis import Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import Frozen
from hypothesis.strategies import SearchStrategy
from returns.result import Failure, Success

from flowdsl.codec.forms import opened
from flowdsl.definition import Activity
from flowdsl.errors import FlowError
from flowdsl.flow import Defect, Interrupted, Signal, TimedOut
from flowdsl.policy import shown
from flowdsl.testing.values import values

Draw: TypeAlias = Callable[[SearchStrategy[Any]], Any]
Given: TypeAlias = SearchStrategy[Any] | Success[Any] | Failure[Any] | Defect | Callable[[Any], Any]
"""What there is instead of what would be drawn: a strategy of exits, an exit, or a function of the request."""

SECOND: Final = timedelta(seconds=1)
PLAIN: Final = 10
"""How much more often an attempt just succeeds than that it meets any one thing in particular, unless a temper says otherwise."""


@frozen
class Temper:
    """How rough a world is: how often all goes well, and which one kind of trouble there is, if there is only one."""

    plain: int = PLAIN
    only: str | None = None


TEMPERS: Final = (
    *(Temper(),) * 3,
    Temper(3),
    *(Temper(plain, kind) for kind, plain in (("failure", 1), ("failure", 4), ("time out", 1), ("time out", 3), ("slow", 1))),
)
"""Worlds differ in what they are bad at: one that does everything a little does nothing often enough."""


class BadWorld(FlowError):
    """A world that was described wrongly."""


@frozen
class Reply:
    """What an attempt meets. `exit` is None where the function or the model that stands for the activity decides."""

    exit: Success[Any] | Failure[Any] | Defect | None
    takes: timedelta = timedelta()
    times_out: bool = False
    acts: bool = True
    """Whether the effect happens; not so when the attempt fails before, or never gets there."""

    @property
    def plain(self) -> bool:
        """Whether it says no more than that all went well."""
        return (self.exit is None or self.exit == Success(None)) and not self.takes and not self.times_out

    def __str__(self) -> str:
        if self.times_out:
            return "times out" + (", having acted" if self.acts else ", not having acted")
        late = f" after {shown(self.takes)}" if self.takes else ""
        return (short(self.exit) if self.exit is not None else "acts") + late


@frozen
class Arrival:
    """A signal that comes: how long after somebody began to wait for it, or, with `after` None, before the execution did anything."""

    signal: Signal[Any]
    to: str
    payload: Any
    after: timedelta | None
    twice: bool = False
    """Sent again with the same delivery id: it acts once."""

    def __str__(self) -> str:
        when = "early" if self.after is None else f"{shown(self.after)} late" if self.after else "at once"
        return f"{self.signal.name} {short(self.payload)} {when}" + (", twice" if self.twice else "")


def short(value: object, limit: int = 60) -> str:
    """A value in a line for people; `returns` writes its results with angle brackets, we as they are made."""
    match value:
        case Success(inner):
            return f"Success({short(inner, limit)})"
        case Failure(inner):
            return f"Failure({short(inner, limit)})"
        case _:
            text = repr(value)
            return text if len(text) <= limit else text[: limit - 1] + "…"


@frozen
class Moment:
    """What a draw may look at: how long until the next thing is due, and the time that is left to all attempts."""

    next_due: timedelta | None
    left: timedelta | None

    def delays(self, limit: timedelta) -> list[timedelta]:
        """Spans that may make a difference: under a second thing that waits, and over it."""
        spans = [SECOND, timedelta(hours=1)]
        if self.next_due is not None and self.next_due > timedelta():
            spans = [SECOND, self.next_due / 2, self.next_due + SECOND, timedelta(hours=1)]
        return [span for span in spans if span < limit and (self.left is None or span < self.left)]


@frozen(eq=False)
class Replies:
    """The replies that activities and signals of one workflow can get; kept over all of its worlds."""

    types: Mapping[Any, SearchStrategy[Any]] = field(factory=dict[Any, SearchStrategy[Any]])
    defects: bool = False
    _values: dict[Any, SearchStrategy[Any]] = field(factory=dict[Any, SearchStrategy[Any]])
    _failures: dict[str, tuple[SearchStrategy[Any], ...]] = field(factory=dict[str, tuple[SearchStrategy[Any], ...]])

    def values(self, form: Any) -> SearchStrategy[Any]:
        """The values of a type, with what was given for the types in it."""
        if not self.types:
            return values(form)
        if form not in self._values:
            self._values[form] = values(form, self.types)
        return self._values[form]

    def failures(self, activity: Activity[Any, Any, Any]) -> tuple[SearchStrategy[Any], ...]:
        """A strategy for each failure that the contract declares for itself: those of time and of crashes come of time and of crashes."""
        if activity.name not in self._failures:
            own = [form for form in forms(activity.root.shape.failures) if form not in (TimedOut, Interrupted)]
            self._failures[activity.name] = tuple(self.values(form) for form in own)
        return self._failures[activity.name]

    def draw(
        self,
        draw: Draw,
        activity: Activity[Any, Any, Any],
        number: int,
        moment: Moment,
        *,
        given: Given | None = None,
        backed: bool = False,
        done: bool = False,
        temper: Temper = Temper(),
    ) -> Reply:
        """The reply to the attempt of that number. `backed`: what succeeds is decided by whoever stands for the activity.

        `done`: an earlier attempt has acted, though its answer was lost. To the same key nobody then says that it cannot be done.
        """
        if given is not None:
            slow = drawn(draw, PLAIN + 2) >= PLAIN
            takes = self._delay(draw, activity, moment) if slow else timedelta()
            return Reply(None if _calls(given) else of_given(draw, activity, given), takes)
        failures = () if done else self.failures(activity)
        kinds = ["failure"] * 2 * bool(failures) + ["slow"] * 2  # the plainest first: so it shrinks
        kinds += ["time out"] * 2 * self._may_time_out(activity, number) + ["defect"] * self.defects
        kinds = ["success"] * temper.plain + [kind for kind in kinds if temper.only in (None, kind)]
        match kinds[drawn(draw, len(kinds))]:
            case "success":
                return self._success(draw, activity, backed)
            case "slow":
                return self._slow(draw, activity, moment, failures, backed)
            case "failure":
                return Reply(Failure(draw(one_of(draw, failures))), acts=False)
            case "time out":
                return Reply(None, times_out=True, acts=drawn(draw, 3) < 2)
            case _:
                return Reply(Defect(activity.name, "something that nobody expects"), acts=False)

    def _success(self, draw: Draw, activity: Activity[Any, Any, Any], backed: bool) -> Reply:
        return Reply(None if backed else Success(draw(self.values(activity.root.shape.answer))))

    def _slow(self, draw: Draw, activity: Any, moment: Moment, failures: Sequence[SearchStrategy[Any]], backed: bool) -> Reply:
        takes = self._delay(draw, activity, moment)
        if failures and drawn(draw, 3) == 2:
            return Reply(Failure(draw(one_of(draw, failures))), takes, acts=False)
        return Reply(self._success(draw, activity, backed).exit, takes)

    def _delay(self, draw: Draw, activity: Activity[Any, Any, Any], moment: Moment) -> timedelta:
        spans = moment.delays(activity.policies.start_to_close)
        return spans[drawn(draw, len(spans))] if spans else timedelta()

    def _may_time_out(self, activity: Activity[Any, Any, Any], number: int) -> bool:
        """Where the contract does not declare it, a time-out of the last attempt is a defect."""
        if self.defects or TimedOut in forms(activity.root.shape.failures):
            return True
        policies = activity.policies
        another = policies.retry.attempts is None or number + 2 <= policies.retry.attempts
        return another and policies.crash == "retry" and policies.schedule_to_close is None

    def arrival(self, draw: Draw, signal: Signal[Any], to: str, moment: Moment, given: Any) -> Arrival | None:
        """When what somebody waits for comes, if it does."""
        kind = drawn(draw, 10)
        if 6 <= kind < 9:
            return None
        spans = [*moment.delays(timedelta.max), timedelta(days=1)]
        after = spans[drawn(draw, len(spans))] if 2 <= kind < 6 else timedelta()
        return Arrival(signal, to, self.payload(draw, signal, given), after, twice=kind == 9)

    def payload(self, draw: Draw, signal: Signal[Any], given: Any) -> Any:
        """What a signal says."""
        if isinstance(given, SearchStrategy):
            return draw(given)
        return draw(self.values(signal.payload)) if given is None else given


def drawn(draw: Draw, count: int) -> int:
    """A number under `count`; 0 is the plainest."""
    if count not in _NUMBERS:
        _NUMBERS[count] = st.integers(0, count - 1)
    return int(draw(_NUMBERS[count]))


def one_of(draw: Draw, these: Sequence[SearchStrategy[Any]]) -> SearchStrategy[Any]:
    """One of several; the first is the plainest."""
    return these[drawn(draw, len(these))] if len(these) > 1 else these[0]


_NUMBERS: dict[int, SearchStrategy[Any]] = {}


def forms(form: Any) -> tuple[Any, ...]:
    """The members of a union, with their arguments; none of `Never`."""
    inner = opened(form)
    if inner is not form:
        return forms(inner)
    if get_origin(form) in (Union, UnionType):
        return tuple(part for member in get_args(form) for part in forms(member))
    return () if form in (Never, NoReturn) else (form,)


def _calls(given: Given) -> bool:
    return not isinstance(given, (SearchStrategy, Success, Failure, Defect))


def of_given(draw: Draw, activity: Activity[Any, Any, Any], given: Given) -> Success[Any] | Failure[Any] | Defect:
    """The exit that was given, or one of those."""
    exit = draw(given) if isinstance(given, SearchStrategy) else given
    if not isinstance(exit, (Success, Failure, Defect)):
        raise BadWorld(f"given[{activity.name}] gave {short(exit)}: give exits, such as st.just(Success(…)) or Failure(…)")
    return cast("Success[Any]", exit)


def lasting(draw: Draw) -> Draw:
    """A draw that goes on, with the plainest value there is, after the test that it belonged to has ended."""

    def drawing(strategy: SearchStrategy[Any]) -> Any:
        try:
            return draw(strategy)
        except Frozen:
            return plainest(strategy)

    return drawing


def plainest(strategy: SearchStrategy[Any]) -> Any:
    """The value that a strategy shrinks to, or one near it."""
    return find(strategy, lambda _: True, settings=settings(max_examples=50, phases=[Phase.generate], database=None))
