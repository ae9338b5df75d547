"""The description language: a `Flow[A, E]` is an immutable value that describes work giving an `A` or failing with an `E`.

Building one does nothing. The control nodes below are understood by the machine alone; the instructions are all that an interpreter sees.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import update_wrapper
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, Generic, Literal, Never, ParamSpec, TypeAlias, TypeVar, Union, cast, get_args, get_origin, overload
from uuid import UUID

from attrs import frozen
from returns.result import Failure, Success
from typing_extensions import TypeAliasType, TypeForm

from flowdsl.errors import DefinitionError
from flowdsl.policy import Retry, Time, duration, shown

if TYPE_CHECKING:
    from flowdsl.definition import Activity, Workflow

A_co = TypeVar("A_co", covariant=True)
E_co = TypeVar("E_co", covariant=True)
A = TypeVar("A")
B = TypeVar("B")
E = TypeVar("E")
E2 = TypeVar("E2")
X = TypeVar("X")
R = TypeVar("R")
T = TypeVar("T")
S = TypeVar("S")
A5 = TypeVar("A5")
E5 = TypeVar("E5")
A6 = TypeVar("A6")
E6 = TypeVar("E6")
A7 = TypeVar("A7")
E7 = TypeVar("E7")
A8 = TypeVar("A8")
E8 = TypeVar("E8")
P = ParamSpec("P")


class Bound(Generic[E_co]):
    """What `yield from flow` hands to the machine. Opaque: a bare `yield flow` is a type error, and a defect at run time."""

    __slots__ = ("flow",)

    def __init__(self, flow: Flow[Any, E_co]) -> None:
        self.flow = flow


Steps = TypeAliasType("Steps", Generator[Bound[E], Any, A], type_params=(A, E))
"""What the body of a workflow or of a `@do` function returns: `Steps[answer, failures]`."""

Outcome = TypeAliasType("Outcome", Success[A] | Failure[E], type_params=(A, E))
"""A result in hand: closed, so that `match` is exact. It still is a `Result[A, E]`."""


@frozen
class Defect:
    """A bug or an outage, not a declared failure: where it happened, and its message."""

    where: str
    message: str


@frozen
class Cancelled:
    """Ended by a cancellation, with its reason."""

    reason: str


Exit = TypeAliasType("Exit", Success[A] | Failure[E] | Defect | Cancelled, type_params=(A, E))
"""How work ended."""


@frozen
class TimedOut:
    """A failure: the time was over. `after` is the limit as it was written."""

    after: str


@frozen
class Interrupted:
    """A failure: a worker died during an activity with crash="fail"; whether its effect happened is unknown."""


@frozen
class Died:
    """A defect as a value, or a child that was ended from outside: what `isolate` gives."""

    where: str
    cause: str


@frozen
class Skipped:
    """A `dag_attempt` node that did not run, and the failed or skipped node that it hung on."""

    because: str


@frozen
class Next(Generic[S]):
    """Go round again, with this state. The state is a checkpoint: keep it small."""

    state: S


@frozen
class Done(Generic[A]):
    """The loop's answer."""

    value: A


Round = TypeAliasType("Round", Next[S] | Done[A], type_params=(S, A))


@frozen
class Execution:
    """The running execution, as its body may know it."""

    id: str
    tenant: str
    workflow: str
    key: str | None
    parent: str | None
    started_at: datetime


Status: TypeAlias = Literal["open", "blocked", "succeeded", "failed", "cancelled"]


class Flow(Generic[A_co, E_co]):
    """Work as a value. Bind it in a body with `answer = yield from flow`; combine it with the methods below."""

    __slots__ = ()

    def __iter__(self) -> Generator[Bound[E_co], Any, A_co]:
        answer: A_co = yield Bound(self)
        return answer

    def map(self, fn: Callable[[A_co], B]) -> Flow[B, E_co]:
        """The same work, its answer put through a pure function."""
        return Then(self, lambda answer: Pure(fn(answer)))

    def then(self, fn: Callable[[A_co], Flow[B, E2]]) -> Flow[B, E_co | E2]:
        """This work, then the work that `fn` makes of its answer."""
        return Then(self, fn)

    def attempt(self) -> Flow[Outcome[A_co, E_co], Never]:
        """The failure as a value: never fails, gives `Success(answer)` or `Failure(error)`."""
        return Catch(Then(self, _as_success), _as_failure)

    def catch(self, handler: Callable[[E_co], Flow[B, E2]]) -> Flow[A_co | B, E2]:
        """Handles every declared failure. For one member of several use `catching`."""
        return Catch(self, handler)

    def isolate(self) -> Flow[A_co, E_co | Died]:
        """A defect in this work, or a child of it ended from outside, as the failure `Died`. Our own cancellation passes through."""
        return Isolate(self)

    def ensure(self, finalizer: Callable[[Exit[A_co, E_co]], Flow[object, object]]) -> Flow[A_co, E_co]:
        """Runs the finalizer whatever the exit is, and tells it. The finalizer is not interrupted; should it fail, that is a defect."""
        return Ensure(self, finalizer)

    def compensate(self, undo: Callable[[A_co], Flow[object, object]]) -> Flow[A_co, E_co]:
        """Registers an undo in the nearest saga once this has succeeded. A cancellation waits for it: its answer is recorded first."""
        return Compensate(self, undo)

    @overload
    def timeout(self, after: Time) -> Flow[A_co, E_co | TimedOut]: ...
    @overload
    def timeout(self, after: Time, failure: X) -> Flow[A_co, E_co | X]: ...
    def timeout(self, after: Time, failure: Any = None) -> Flow[Any, Any]:
        """Fails when the time is over (a span, or an aware `datetime`): with `failure` if given, else with `TimedOut`."""
        limit = until(after)
        error = failure if failure is not None else TimedOut(shown(limit) if isinstance(limit, timedelta) else limit.isoformat())
        return Race((self, Then(Sleep(limit), lambda _: Fail(error))))

    def retry(self, policy: Retry) -> Flow[A_co, E_co]:
        """Several steps again as one, by the policy; without `on` every declared failure is tried again."""
        return _retried(self, policy)


# Control nodes: the machine alone understands them.


@frozen(eq=False)
class Pure(Flow[A_co, Never]):
    value: A_co


@frozen(eq=False)
class Fail(Flow[Never, E_co]):
    error: E_co


@frozen(eq=False)
class Then(Flow[A_co, E_co]):
    flow: Flow[Any, Any]
    fn: Callable[[Any], Flow[Any, Any]]


@frozen(eq=False)
class Catch(Flow[A_co, E_co]):
    flow: Flow[Any, Any]
    handler: Callable[[Any], Flow[Any, Any]]


@frozen(eq=False)
class Isolate(Flow[A_co, E_co]):
    flow: Flow[Any, Any]


@frozen(eq=False)
class Ensure(Flow[A_co, E_co]):
    flow: Flow[Any, Any]
    finalizer: Callable[[Any], Flow[Any, Any]]


@frozen(eq=False)
class Compensate(Flow[A_co, E_co]):
    flow: Flow[Any, Any]
    undo: Callable[[Any], Flow[Any, Any]]


@frozen(eq=False)
class Saga(Flow[A_co, E_co]):
    flow: Flow[Any, Any]


@frozen(eq=False)
class Masked(Flow[A_co, E_co]):
    flow: Flow[Any, Any]


@frozen(eq=False)
class All(Flow[A_co, E_co]):
    """`count` branches, each begun when the branches in `after[i]` have ended and there is room; the first failure cancels the rest.

    `branch(i, answers)` makes the i-th from the answers so far (of which it may read its predecessors'), `gather` the answer of the whole.
    """

    count: int
    branch: Callable[[int, Sequence[Any]], Flow[Any, Any]]
    gather: Callable[[list[Any]], Any]
    concurrency: int | None = None
    after: tuple[tuple[int, ...], ...] | None = None


@frozen(eq=False)
class Race(Flow[A_co, E_co]):
    flows: tuple[Flow[Any, Any], ...]


@frozen(eq=False)
class Do(Flow[A_co, E_co]):
    """A body. `scope` opens a scope of steps of its own (an inlined workflow); a part shares its caller's."""

    body: Callable[..., Generator[Any, Any, Any]]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    scope: bool = False


@frozen(eq=False)
class Iterate(Flow[A_co, E_co]):
    state: Any
    step: Callable[[Any], Flow[Any, Any]]


@frozen(eq=False)
class Ask(Flow[A_co, Never]):
    """What the machine itself knows: replayed without a journal entry."""

    what: Literal["now", "uuid", "random", "execution"]


# Instructions: all that an interpreter ever sees.


@frozen(eq=False)
class Perform(Flow[A_co, E_co]):
    activity: Activity[Any, A_co, E_co]
    request: Any


@frozen(eq=False)
class Sleep(Flow[None, Never]):
    until: timedelta | datetime


@frozen(eq=False)
class Receive(Flow[A_co, Never]):
    signal: Signal[Any]
    key: str | None
    wait: bool


@frozen(eq=False)
class Send(Flow[None, Never]):
    to: str
    signal: Signal[Any]
    payload: Any


OnClose: TypeAlias = Literal["cancel", "terminate", "abandon"]
"""What becomes of a child when its parent, or the scope that started it, ends first: asked to end, ended at once, or left alone."""


@frozen(eq=False)
class Start(Flow[A_co, Never]):
    workflow: Workflow[Any, Any, Any]
    request: Any
    key: str | None
    detached: bool
    terminates: bool = False


@frozen(eq=False)
class Join(Flow[A_co, E_co]):
    child: Child[Any, Any]


@frozen(eq=False)
class CancelChild(Flow[None, Never]):
    child: Child[Any, Any]


@frozen(eq=False)
class Existing(Flow[dict[str, Status], Never]):
    workflow: Workflow[Any, Any, Any]
    keys: tuple[str, ...]


@frozen(eq=False)
class Report(Flow[None, Never]):
    note: str
    done: int | None
    total: int | None


@frozen(eq=False)
class Audit(Flow[None, Never]):
    event: str
    facts: object


@frozen(eq=False)
class Changed(Flow[bool, Never]):
    id: str


Instruction: TypeAlias = Union[  # noqa: UP007 (a runtime union of generic classes)
    Perform[Any, Any],
    Sleep,
    Receive[Any],
    Send,
    Start[Any],
    Join[Any, Any],
    CancelChild,
    Existing,
    Report,
    Audit,
    Changed,
]


@frozen
class Child(Generic[A, E]):
    """A child execution that runs beside: plain data, it may be kept in a loop's state."""

    id: str
    workflow: str

    def join(self) -> Flow[A, E]:
        """Waits for it and gives its answer or failure. Cancelling the wait leaves it running."""
        return Join(self)

    def cancel(self) -> Flow[None, Never]:
        """Asks it to end; cancelling twice is once."""
        return CancelChild(self)


@frozen
class Signal(Generic[T]):
    """A typed message. One that comes before the wait is kept."""

    name: str
    payload: Any

    def receive(self, key: str | None = None) -> Flow[T, Never]:
        """Waits for the next one sent to this execution, or to that correlation key."""
        return Receive(self, key, True)

    def take(self, key: str | None = None) -> Flow[T | None, Never]:
        """The oldest that has arrived, or None: never waits."""
        return Receive(self, key, False)

    def send(self, to: str, payload: T) -> Flow[None, Never]:
        """Sends one to an execution id or a correlation key; kept there until it is asked for."""
        return Send(to, self, payload)


def signal(name: str, payload: TypeForm[T]) -> Signal[T]:
    """A signal of that durable name; its payload may be a union."""
    if not name or "\0" in name:
        raise DefinitionError(f"signal {name!r}", "a signal needs a name without NUL", "Give it a name such as 'order-paid'")
    return Signal(name, payload)


# Bodies


def do(body: Callable[P, Steps[A, E]]) -> Callable[P, Flow[A, E]]:
    """Makes a flow of a generator function, without a durable name: rounds of a loop, branches, parts."""

    def made(*args: P.args, **kwargs: P.kwargs) -> Flow[A, E]:
        return Do(body, args, kwargs or None)

    return update_wrapper(made, body)


def pure(value: A) -> Flow[A, Never]:
    """An answer, without work."""
    return Pure(value)


def fail(error: E) -> Flow[Never, E]:
    """A failure. A body ends early with `return (yield from fail(...))`."""
    return Fail(error)


# Combinators, built from the nodes in plain sight


def _as_success(answer: Any) -> Flow[Any, Never]:
    return Pure(Success(answer))


def _as_failure(error: Any) -> Flow[Any, Never]:
    return Pure(Failure(error))


def members(kind: Any) -> tuple[type, ...]:
    """The classes in a class, a union, or an alias of one."""
    if isinstance(kind, TypeAliasType):
        return members(kind.__value__)
    found = tuple(part for arg in get_args(kind) for part in members(arg)) if get_origin(kind) in _UNIONS else ()
    return found or (get_origin(kind) or kind,)


_UNIONS = (Union, type(int | str))


class Catching(Generic[X, B, E2]):
    """`catching(kind, handler)`, waiting for the flow whose failures it takes out."""

    def __init__(self, kind: TypeForm[X], handler: Callable[[X], Flow[B, E2]]) -> None:
        self._kinds, self._handler = members(kind), handler

    @overload
    def __call__(self, flow: Flow[A, X]) -> Flow[A | B, E2]: ...
    @overload
    def __call__(self, flow: Flow[A, X | R]) -> Flow[A | B, R | E2]: ...
    def __call__(self, flow: Flow[Any, Any]) -> Flow[Any, Any]:
        kinds, handler = self._kinds, cast("Callable[[Any], Flow[B, E2]]", self._handler)
        return Catch(flow, lambda error: handler(error) if isinstance(error, kinds) else Fail(error))


def catching(kind: TypeForm[X], handler: Callable[[X], Flow[B, E2]]) -> Catching[X, B, E2]:
    """`catching(NotFound, handler)(flow)`: handles exactly that failure (a class, or an alias of several) and leaves the rest."""
    return Catching(kind, handler)


def saga(flow: Flow[A, E]) -> Flow[A, E]:
    """An inner scope of undos: run last-first when it fails or is cancelled, handed outward when it succeeds."""
    return Saga(flow)


def masked(flow: Flow[A, E]) -> Flow[A, E]:
    """Work that a cancellation waits for."""
    return Masked(flow)


def until(time: Time) -> timedelta | datetime:
    """A span or an aware instant. Raises `DefinitionError` for a naive `datetime`."""
    if not isinstance(time, datetime):
        return duration(time)
    if time.tzinfo is None:
        raise DefinitionError("time", f"{time!r} has no time zone", "Pass an aware datetime, e.g. (yield from now()) + timedelta(hours=1)")
    return time


def sleep(time: Time) -> Flow[None, Never]:
    """A durable timer: never early, and it costs no memory while it waits."""
    return Sleep(until(time))


def now() -> Flow[datetime, Never]:
    """The time of the last recorded entry, in UTC: the same on every replay."""
    return Ask("now")


def uuid() -> Flow[UUID, Never]:
    """An id drawn from execution and step: the same on every replay."""
    return Ask("uuid")


def random() -> Flow[float, Never]:
    """A number in [0, 1) drawn from execution and step: the same on every replay."""
    return Ask("random")


def execution() -> Flow[Execution, Never]:
    """The running execution."""
    return Ask("execution")


def report(note: str, *, done: int | None = None, total: int | None = None) -> Flow[None, Never]:
    """Progress for people who watch, and a log line. Not journaled: shown once per live run, silent in replay."""
    return Report(note, done, total)


def audit(event: str, facts: object = None) -> Flow[None, Never]:
    """An entry in the audit log, written in the transaction of its journal entry."""
    return Audit(event, facts)


def changed(id: str) -> Flow[bool, Never]:
    """True for executions that came here after the change of that id was deployed; false for those already past."""
    return Changed(id)


def _tuple(answers: list[Any]) -> Any:
    return tuple(answers)


def _list(answers: list[Any]) -> Any:
    return answers


# Flows that cannot fail come first: pyright makes Unknown of a union of type variables when each of them is Never.


@overload
def all_(a: Flow[A, Never], b: Flow[B, Never], /) -> Flow[tuple[A, B], Never]: ...
@overload
def all_(a: Flow[A, Never], b: Flow[B, Never], c: Flow[T, Never], /) -> Flow[tuple[A, B, T], Never]: ...
@overload
def all_(a: Flow[A, Never], b: Flow[B, Never], c: Flow[T, Never], d: Flow[S, Never], /) -> Flow[tuple[A, B, T, S], Never]: ...
@overload
def all_(a: Flow[A, Never], b: Flow[B, Never], c: Flow[T, Never], d: Flow[S, Never], e: Flow[A5, Never], /) -> Flow[tuple[A, B, T, S, A5], Never]: ...
@overload
def all_(
    a: Flow[A, Never], b: Flow[B, Never], c: Flow[T, Never], d: Flow[S, Never], e: Flow[A5, Never], f: Flow[A6, Never], /
) -> Flow[tuple[A, B, T, S, A5, A6], Never]: ...
@overload
def all_(
    a: Flow[A, Never], b: Flow[B, Never], c: Flow[T, Never], d: Flow[S, Never], e: Flow[A5, Never], f: Flow[A6, Never], g: Flow[A7, Never], /
) -> Flow[tuple[A, B, T, S, A5, A6, A7], Never]: ...
@overload
def all_(
    a: Flow[A, Never],
    b: Flow[B, Never],
    c: Flow[T, Never],
    d: Flow[S, Never],
    e: Flow[A5, Never],
    f: Flow[A6, Never],
    g: Flow[A7, Never],
    h: Flow[A8, Never],
    /,
) -> Flow[tuple[A, B, T, S, A5, A6, A7, A8], Never]: ...
@overload
def all_(a: Flow[A, E], b: Flow[B, E2], /) -> Flow[tuple[A, B], E | E2]: ...
@overload
def all_(a: Flow[A, E], b: Flow[B, E2], c: Flow[T, X], /) -> Flow[tuple[A, B, T], E | E2 | X]: ...
@overload
def all_(a: Flow[A, E], b: Flow[B, E2], c: Flow[T, X], d: Flow[S, R], /) -> Flow[tuple[A, B, T, S], E | E2 | X | R]: ...
@overload
def all_(a: Flow[A, E], b: Flow[B, E2], c: Flow[T, X], d: Flow[S, R], e: Flow[A5, E5], /) -> Flow[tuple[A, B, T, S, A5], E | E2 | X | R | E5]: ...
@overload
def all_(
    a: Flow[A, E], b: Flow[B, E2], c: Flow[T, X], d: Flow[S, R], e: Flow[A5, E5], f: Flow[A6, E6], /
) -> Flow[tuple[A, B, T, S, A5, A6], E | E2 | X | R | E5 | E6]: ...
@overload
def all_(
    a: Flow[A, E], b: Flow[B, E2], c: Flow[T, X], d: Flow[S, R], e: Flow[A5, E5], f: Flow[A6, E6], g: Flow[A7, E7], /
) -> Flow[tuple[A, B, T, S, A5, A6, A7], E | E2 | X | R | E5 | E6 | E7]: ...
@overload
def all_(
    a: Flow[A, E], b: Flow[B, E2], c: Flow[T, X], d: Flow[S, R], e: Flow[A5, E5], f: Flow[A6, E6], g: Flow[A7, E7], h: Flow[A8, E8], /
) -> Flow[tuple[A, B, T, S, A5, A6, A7, A8], E | E2 | X | R | E5 | E6 | E7 | E8]: ...
@overload
def all_(*flows: Flow[A, E]) -> Flow[tuple[A, ...], E]: ...
def all_(*flows: Flow[Any, Any]) -> Flow[Any, Any]:
    """All answers, in order; the first failure cancels the rest."""
    return All(len(flows), lambda index, _: flows[index], _tuple)


@overload
def race(a: Flow[A, Never], b: Flow[B, Never], /) -> Flow[A | B, Never]: ...
@overload
def race(a: Flow[A, Never], b: Flow[B, Never], c: Flow[T, Never], /) -> Flow[A | B | T, Never]: ...
@overload
def race(a: Flow[A, Never], b: Flow[B, Never], c: Flow[T, Never], d: Flow[S, Never], /) -> Flow[A | B | T | S, Never]: ...
@overload
def race(a: Flow[A, Never], b: Flow[B, Never], c: Flow[T, Never], d: Flow[S, Never], e: Flow[A5, Never], /) -> Flow[A | B | T | S | A5, Never]: ...
@overload
def race(
    a: Flow[A, Never], b: Flow[B, Never], c: Flow[T, Never], d: Flow[S, Never], e: Flow[A5, Never], f: Flow[A6, Never], /
) -> Flow[A | B | T | S | A5 | A6, Never]: ...
@overload
def race(
    a: Flow[A, Never], b: Flow[B, Never], c: Flow[T, Never], d: Flow[S, Never], e: Flow[A5, Never], f: Flow[A6, Never], g: Flow[A7, Never], /
) -> Flow[A | B | T | S | A5 | A6 | A7, Never]: ...
@overload
def race(
    a: Flow[A, Never],
    b: Flow[B, Never],
    c: Flow[T, Never],
    d: Flow[S, Never],
    e: Flow[A5, Never],
    f: Flow[A6, Never],
    g: Flow[A7, Never],
    h: Flow[A8, Never],
    /,
) -> Flow[A | B | T | S | A5 | A6 | A7 | A8, Never]: ...
@overload
def race(a: Flow[A, E], b: Flow[B, E2], /) -> Flow[A | B, E | E2]: ...
@overload
def race(a: Flow[A, E], b: Flow[B, E2], c: Flow[T, X], /) -> Flow[A | B | T, E | E2 | X]: ...
@overload
def race(a: Flow[A, E], b: Flow[B, E2], c: Flow[T, X], d: Flow[S, R], /) -> Flow[A | B | T | S, E | E2 | X | R]: ...
@overload
def race(a: Flow[A, E], b: Flow[B, E2], c: Flow[T, X], d: Flow[S, R], e: Flow[A5, E5], /) -> Flow[A | B | T | S | A5, E | E2 | X | R | E5]: ...
@overload
def race(
    a: Flow[A, E], b: Flow[B, E2], c: Flow[T, X], d: Flow[S, R], e: Flow[A5, E5], f: Flow[A6, E6], /
) -> Flow[A | B | T | S | A5 | A6, E | E2 | X | R | E5 | E6]: ...
@overload
def race(
    a: Flow[A, E], b: Flow[B, E2], c: Flow[T, X], d: Flow[S, R], e: Flow[A5, E5], f: Flow[A6, E6], g: Flow[A7, E7], /
) -> Flow[A | B | T | S | A5 | A6 | A7, E | E2 | X | R | E5 | E6 | E7]: ...
@overload
def race(
    a: Flow[A, E], b: Flow[B, E2], c: Flow[T, X], d: Flow[S, R], e: Flow[A5, E5], f: Flow[A6, E6], g: Flow[A7, E7], h: Flow[A8, E8], /
) -> Flow[A | B | T | S | A5 | A6 | A7 | A8, E | E2 | X | R | E5 | E6 | E7 | E8]: ...
@overload
def race(*flows: Flow[A, E]) -> Flow[A, E]: ...
def race(*flows: Flow[Any, Any]) -> Flow[Any, Any]:
    """The first exit in journal order, a failure included; the rest are cancelled."""
    if not flows:
        raise DefinitionError("race", "a race of nothing never ends", "Give it at least one flow")
    return Race(flows)


def each(items: Iterable[T], fn: Callable[[T], Flow[A, E]], *, concurrency: int = 8) -> Flow[list[A], E]:
    """The answers in input order, at most `concurrency` at a time; the first failure cancels the rest."""
    todo = tuple(items)
    return All(len(todo), lambda index, _: fn(todo[index]), _list, _checked(concurrency))


def each_attempt(items: Iterable[T], fn: Callable[[T], Flow[A, E]], *, concurrency: int = 8) -> Flow[list[Outcome[A, E]], Never]:
    """The outcomes in input order; goes through them all."""
    todo = tuple(items)
    return All(len(todo), lambda index, _: fn(todo[index]).attempt(), _list, _checked(concurrency))


def _checked(concurrency: int) -> int:
    if concurrency < 1:
        raise DefinitionError("concurrency", f"{concurrency} at a time is none", "Give 1 or more")
    return concurrency


@frozen(eq=False)
class Node(Generic[A_co, E_co]):
    """Work in a `dag`, with its hard and soft predecessors."""

    flow: Flow[A_co, E_co]
    after: tuple[str, ...]
    soft: tuple[str, ...]


Nodes = TypeAliasType("Nodes", dict[str, Node[A, E]], type_params=(A, E))


def node(flow: Flow[A, E], *, after: Iterable[str] = (), soft: Iterable[str] = ()) -> Node[A, E]:
    """`after`: what must have succeeded; `soft`: what is only waited for."""
    return Node(flow, tuple(after), tuple(soft))


def dag(nodes: Mapping[str, Node[A, E]], *, concurrency: int = 8) -> Flow[dict[str, A], E]:
    """Each node starts as soon as what it needs is done; the first failure cancels the rest. A cycle is refused here, and named."""
    names, after = _order(nodes)
    return All(
        len(names),
        lambda index, _: nodes[names[index]].flow,
        lambda answers: dict(zip(names, answers, strict=True)),
        _checked(concurrency),
        after,
    )


def dag_attempt(nodes: Mapping[str, Node[A, E]], *, concurrency: int = 8) -> Flow[dict[str, Outcome[A, E] | Skipped], Never]:
    """Goes through them all: what hangs on a failed or skipped node by a hard edge is `Skipped`, and says on which."""
    names, after = _order(nodes)
    index_of = {name: index for index, name in enumerate(names)}

    def branch(index: int, outcomes: Sequence[Any]) -> Flow[Any, Any]:
        one = nodes[names[index]]
        for name in one.after:
            if not isinstance(outcomes[index_of[name]], Success):
                return Pure(Skipped(name))
        return one.flow.attempt()

    return All(len(names), branch, lambda outcomes: dict(zip(names, outcomes, strict=True)), _checked(concurrency), after)


def _order(nodes: Mapping[str, Node[Any, Any]]) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    names = tuple(nodes)
    index_of = {name: index for index, name in enumerate(names)}
    for name, one in nodes.items():
        for needed in (*one.after, *one.soft):
            if needed not in index_of:
                raise DefinitionError("dag", f"{name!r} comes after {needed!r}, which is no node", f"The nodes are: {', '.join(names)}")
    try:
        TopologicalSorter({name: (*one.after, *one.soft) for name, one in nodes.items()}).prepare()
    except CycleError as error:
        raise DefinitionError("dag", f"a cycle: {' → '.join(reversed(error.args[1]))}", "Make one of these edges a later step") from None
    return names, tuple(tuple(sorted({index_of[needed] for needed in (*one.after, *one.soft)})) for one in nodes.values())


def iterate(state: S, step: Callable[[S], Flow[Round[S, A], E]]) -> Flow[A, E]:
    """A loop whose state is its checkpoint: what was recorded before its last round is never replayed."""
    return Iterate(state, step)


@do
def _retried(flow: Flow[A, E], policy: Retry) -> Steps[A, E]:
    attempt = 0
    while True:
        attempt += 1
        outcome = yield from flow.attempt()
        if isinstance(outcome, Success):
            return outcome.unwrap()
        error = outcome.failure()
        if policy.exhausted(attempt) or not (policy.on == () or policy.picks(error)):
            return (yield from fail(error))
        chance = (yield from random()) if policy.jitter else 0.0
        pause = policy.delay(attempt, chance)
        after: object = getattr(error, "retry_after", None)
        yield from sleep(max(pause, after) if isinstance(after, timedelta) else pause)
