"""Generated flows: small frozen data that says what to build, what each activity answers, and when.

The same data gives the same flow as often as it is built (`build`), and is what the oracle reads; it never sees the flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import count
from random import Random
from typing import Any, Literal, Protocol, TypeAlias
from zlib import crc32

from attrs import evolve, fields, frozen, has
from hypothesis import strategies as st
from returns.result import Failure, Result, Success

from flowdsl import (
    Cancelled,
    Defect,
    Deployment,
    Died,
    Done,
    Flow,
    Next,
    Retry,
    Round,
    Skipped,
    Steps,
    TimedOut,
    activity,
    all_,
    audit,
    bind,
    catching,
    changed,
    dag,
    dag_attempt,
    do,
    each,
    each_attempt,
    fail,
    iterate,
    masked,
    node,
    now,
    pure,
    race,
    report,
    saga,
    signal,
    sleep,
    workflow,
)
from flowdsl.memory import EPOCH

MICROSECOND = timedelta(microseconds=1)
PAUSE = 7_000_000
"""Microseconds between two attempts."""


@frozen
class Oops:
    """The one declared failure."""

    code: int


@frozen
class Request:
    tag: int
    seen: int


@frozen
class Job:
    tag: int
    seen: int


@frozen
class Walk:
    round: int
    seen: int


Answer: TypeAlias = Literal["ok", "fail", "raise", "bug"]
"""`raise` is a defect that is tried again, `bug` an answer that the journal refuses: a defect at once."""


# What can be generated


@frozen
class Value:
    value: int


@frozen
class Fails:
    code: int


@frozen
class Raises:
    """A function that raises where it should give a flow."""


@frozen
class Call:
    """An activity: its answers attempt by attempt (the last one again and again), and hours until each."""

    tag: int
    answers: tuple[Answer, ...] = ("ok",)
    hours: int = 0
    attempts: int = 1
    stubborn: bool = False  # whether a declared failure is tried again


@frozen
class Sleeps:
    tag: int
    hours: int | None = 0  # None: no time at all
    absolute: bool = False


@frozen
class Instant:
    """What is answered at once."""

    what: Literal["audit", "changed", "report", "now"]


@frozen
class Receives:
    name: int
    wait: bool = True


@frozen
class Seq:
    first: Spec
    second: Spec


@frozen
class Catches:
    body: Spec
    handler: Spec


@frozen
class Attempts:
    body: Spec


@frozen
class Isolates:
    body: Spec
    handler: Spec


@frozen
class Ensures:
    body: Spec
    finalizer: Spec


@frozen
class Undoes:
    body: Spec
    undo: Spec


@frozen
class Saga:
    body: Spec


@frozen
class Mask:
    body: Spec


@frozen
class Many:
    how: Literal["all", "race", "each", "each_attempt"]
    parts: tuple[Spec, ...]
    concurrency: int = 8


@frozen
class Graph:
    """`edges[i]`: the nodes before the i-th, with whether the edge is hard."""

    attempt: bool
    parts: tuple[Spec, ...]
    edges: tuple[tuple[tuple[int, bool], ...], ...]
    concurrency: int


@frozen
class Body:
    parts: tuple[Spec, ...]
    ending: Literal["return", "fail", "raise"]


@frozen
class Loop:
    tag: int
    rounds: int
    body: Spec
    plain: bool  # a lambda that maps, instead of a `do` body


@frozen
class Timeout:
    tag: int
    body: Spec
    hours: int
    own: bool


@frozen
class Retries:
    tag: int
    body: Spec
    attempts: int


@frozen
class Inline:
    tag: int
    body: Spec


@frozen
class Child:
    tag: int
    body: Spec
    how: Literal["child", "beside", "detached"]


@frozen
class Made:
    """A flow made by hand of these parts; the oracle does not know it."""

    flow: Callable[[int], Flow[int, Any]]
    parts: tuple[Spec, ...]


Spec: TypeAlias = (
    Value | Fails | Raises | Call | Sleeps | Instant | Receives | Seq | Catches | Attempts | Isolates | Ensures | Undoes | Saga | Mask
    | Many | Graph | Body | Loop | Timeout | Retries | Inline | Child | Made
)  # fmt: skip


@frozen
class Plan:
    """A flow and the world that it runs in."""

    spec: Spec
    order: int = 0
    """Which of the possible orders the answers come in."""
    signals: tuple[tuple[int, int, int], ...] = ()
    """Microseconds, name, payload."""
    cancel: int | None = None
    """When it is cancelled."""

    def ordered(self, order: int) -> Plan:
        return evolve(self, order=order)

    def cancelled(self, at: int) -> Plan:
        return evolve(self, cancel=at)


# What is the same for the builder, the interpreter and the oracle: plain arithmetic

HOUR = 3_600_000_000


def drawn(*parts: object) -> int:
    """Some microseconds under an hour: another for every name, so that no two things happen at once."""
    return 1 + crc32(repr(parts).encode()) % (HOUR - 1)


def takes(call: Call, seen: int, attempt: int, order: int) -> int:
    return call.hours * HOUR + drawn(call.tag, seen, attempt, order)


def span(one: Sleeps | Timeout | Retries) -> int:
    if isinstance(one, Retries):
        return drawn("retry", one.tag)
    return 0 if one.hours is None else one.hours * HOUR + drawn("sleep", one.tag)


def child_pause(one: Child) -> int:
    return drawn("child", one.tag)


def mix(a: int, b: int) -> int:
    return (a * 31 + b) % 997


def answered(call: Call, seen: int) -> int:
    return mix(call.tag + 1, seen)


def answer_of(call: Call, attempt: int) -> Answer:
    return call.answers[min(attempt, len(call.answers) - 1)]


# The contracts

ping, pong = signal("ping", int), signal("pong", int)
SIGNALS = (ping, pong)


@activity("laws.call", retry=Retry.constant(timedelta(microseconds=PAUSE), attempts=1000))
def call(request: Request) -> Result[int, Oops]: ...


@activity("laws.stubborn", retry=Retry.constant(timedelta(microseconds=PAUSE), attempts=1000, on=(Oops,)))
def stubborn(request: Request) -> Result[int, Oops]: ...


@workflow("laws.job")
def job(order: Job) -> Steps[int, Oops | TimedOut | Died]:
    return (yield from build(BOOK[order.tag], order.seen))


@workflow("laws.late_job")
def late_job(order: Job) -> Steps[int, Oops | TimedOut | Died]:
    one = BOOK[order.tag]
    assert isinstance(one, Child)
    yield from sleep(child_pause(one) * MICROSECOND)
    return (yield from build(one.body, order.seen))


BOOK: dict[int, Any] = {}
CALLS: dict[int, Call] = {}


def install(plan: Plan) -> None:
    """Makes this plan's parts the ones that the workflows and activities find by their tags."""
    BOOK.clear()
    CALLS.clear()
    BOOK[-1] = plan.spec
    for part in walk(plan.spec):
        if isinstance(part, Inline):
            BOOK[part.tag] = part.body
        elif isinstance(part, Child):
            BOOK[part.tag] = part
        elif isinstance(part, Call):
            CALLS[part.tag] = part


def walk(spec: Any) -> Iterator[Spec]:
    """A spec and all its parts."""
    if isinstance(spec, tuple):
        for one in spec:
            yield from walk(one)
    elif has(type(spec)):
        yield spec
        for one in fields(type(spec)):
            yield from walk(getattr(spec, one.name))


def holds(spec: Spec, *kinds: type) -> bool:
    return any(isinstance(part, kinds) for part in walk(spec))


def _never(request: Request) -> Result[int, Oops]:
    raise AssertionError(request)


DEPLOYMENT = Deployment(workflows=[job, late_job], bindings=[bind(call, _never), bind(stubborn, _never)])


def code(value: object) -> int:
    """Any exit or failure, as a number."""
    match value:
        case int():
            return value
        case Oops(number):
            return 1000 + number
        case TimedOut():
            return 2000
        case Died():
            return 3000
        case Skipped(because):
            return 9000 + int(because[1:])
        case Success(inner):
            return code(inner)
        case Failure(inner):
            return code(inner)
        case Defect():
            return 4000
        case Cancelled():
            return 5000
        case None:
            return 0
        case _:
            raise AssertionError(value)


def folded(values: list[Any] | tuple[Any, ...]) -> int:
    total = 0
    for value in values:
        total = mix(total, code(value))
    return total


# From data to flows


def build(spec: Spec, x: int) -> Flow[int, Any]:
    """The flow that a spec describes, when it has seen `x`."""
    match spec:
        case Value(value):
            return pure(mix(value, x))
        case Fails(number):
            return fail(Oops(number))
        case Raises():
            return pure(x).then(_raising)
        case Call():
            contract = stubborn if spec.stubborn else call
            policy = contract.policies.retry
            return contract.using(retry=evolve(policy, attempts=spec.attempts))(Request(spec.tag, x))
        case Sleeps():
            wait = EPOCH + span(spec) * MICROSECOND if spec.absolute else span(spec) * MICROSECOND
            return sleep(wait).map(lambda _: x)
        case Instant(what):
            return _instant(what, x)
        case Receives(name, wait):
            asked: Flow[int | None, Any] = SIGNALS[name].receive() if wait else SIGNALS[name].take()
            return asked.map(lambda got: mix(x, code(got)))
        case Seq(first, second):
            return build(first, x).then(lambda y: build(second, y))
        case Catches(body, handler):
            return build(body, x).catch(lambda error: build(handler, code(error)))
        case Attempts(body):
            return build(body, x).attempt().map(code)
        case Isolates(body, handler):
            return catching(Died, lambda died: build(handler, code(died)))(build(body, x).isolate())
        case Ensures(body, finalizer):
            return build(body, x).ensure(lambda exit: build(finalizer, code(exit)))
        case Undoes(body, undo):
            return build(body, x).compensate(lambda y: build(undo, y))
        case Saga(body):
            return saga(build(body, x))
        case Mask(body):
            return masked(build(body, x))
        case Many():
            return _many(spec, x)
        case Graph():
            return _graph(spec, x)
        case Body():
            return _body(spec, x)
        case Loop():
            return _loop(spec, x)
        case Timeout(_, body, _, own):
            limit = span(spec) * MICROSECOND
            return build(body, x).timeout(limit, Oops(77)) if own else build(body, x).timeout(limit)
        case Retries(_, body, attempts):
            return build(body, x).retry(Retry.constant(span(spec) * MICROSECOND, attempts=attempts))
        case Inline(tag, _):
            return job(Job(tag, x))
        case Made(flow, _):
            return flow(x)
        case Child(tag, _, how):
            if how == "child":
                return late_job.child(Job(tag, x))
            return late_job.start(Job(tag, x), detached=how == "detached").map(lambda _: x)


def _raising(_: int) -> Flow[int, Any]:
    raise ValueError("as told")


def _instant(what: str, x: int) -> Flow[int, Any]:
    match what:
        case "audit":
            return audit("seen", x).map(lambda _: x)
        case "changed":
            return changed("always").map(lambda new: mix(x, int(new)))
        case "report":
            return report("on the way").map(lambda _: x)
        case _:
            return now().map(lambda at: mix(x, (at - EPOCH) // MICROSECOND))


def _many(spec: Many, x: int) -> Flow[int, Any]:
    parts = spec.parts
    match spec.how:
        case "all":
            return all_(*(build(part, x) for part in parts)).map(folded)
        case "race":
            return race(*(build(part, x) for part in parts))
        case "each":
            return each(range(len(parts)), lambda i: build(parts[i], mix(x, i)), concurrency=spec.concurrency).map(folded)
        case _:
            return each_attempt(range(len(parts)), lambda i: build(parts[i], mix(x, i)), concurrency=spec.concurrency).map(folded)


def _graph(spec: Graph, x: int) -> Flow[int, Any]:
    nodes = {
        f"n{i}": node(build(part, x), after=[f"n{j}" for j, hard in edges if hard], soft=[f"n{j}" for j, hard in edges if not hard])
        for i, (part, edges) in enumerate(zip(spec.parts, spec.edges, strict=True))
    }
    named: Callable[[dict[str, Any]], int] = lambda answers: folded([answers[f"n{i}"] for i in range(len(nodes))])  # noqa: E731
    return dag_attempt(nodes, concurrency=spec.concurrency).map(named) if spec.attempt else dag(nodes, concurrency=spec.concurrency).map(named)


def _body(spec: Body, x: int) -> Flow[int, Any]:
    @do
    def body() -> Steps[int, Any]:
        seen = x
        for part in spec.parts:
            seen = yield from build(part, seen)
        if spec.ending == "raise":
            raise ValueError("as told")
        if spec.ending == "fail":
            return (yield from fail(Oops(55)))
        return seen

    return body()


def _loop(spec: Loop, x: int) -> Flow[int, Any]:
    def after(walk: Walk, seen: int) -> Next[Walk] | Done[int]:
        return Next(Walk(walk.round + 1, seen)) if walk.round + 1 < spec.rounds else Done(seen)

    @do
    def one_round(walk: Walk) -> Steps[Round[Walk, int], Any]:
        seen = yield from build(spec.body, mix(walk.seen, walk.round))
        return after(walk, seen)

    if spec.plain:
        return iterate(Walk(0, x), lambda walk: build(spec.body, mix(walk.seen, walk.round)).map(lambda seen: after(walk, seen)))
    return iterate(Walk(0, x), one_round)


# Strategies


@frozen
class Shape:
    """Which flows are drawn."""

    depth: float = 3
    patient: bool = False
    """Activities have attempts enough for any number of crashes."""
    calm: bool = False
    """Nothing fails, nothing is decided by who is first."""
    children: bool = True
    signals: bool = True
    kinds: tuple[str, ...] = ()
    """What to make flows of, instead of everything."""


class Source(Protocol):
    """Where choices come from: Hypothesis, which can shrink them, or a plain random number generator, which draws bigger flows."""

    def pick(self, among: Sequence[Any]) -> Any: ...
    def number(self, low: int, high: int) -> int: ...


class _Drawn:
    def __init__(self, draw: Any) -> None:
        self._draw = draw

    def pick(self, among: Sequence[Any]) -> Any:
        return self._draw(st.sampled_from(among))

    def number(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))


class _Random:
    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def pick(self, among: Sequence[Any]) -> Any:
        return self._random.choice(among)

    def number(self, low: int, high: int) -> int:
        return self._random.randint(low, high)


@st.composite
def plans(draw: Any, shape: Shape = Shape()) -> Plan:
    """Plans that shrink."""
    return a_plan(_Drawn(draw), shape)


def seeded(seed: int, shape: Shape = Shape()) -> Plan:
    """A plan of the kind that only chance finds; `plans` to shrink what it shows."""
    return a_plan(_Random(seed), shape)


def a_plan(source: Source, shape: Shape) -> Plan:
    spec = _Drawer(source, shape).spec(shape.depth)
    heard = sorted({part.name for part in walk(spec) if isinstance(part, Receives)})
    sent = [(source.number(0, 3), source.pick(heard)) for _ in range(source.number(0, 4))] if heard else []
    signals = [(hours * HOUR + drawn("signal", index), name, index + 1) for index, (hours, name) in enumerate(sent)]
    return Plan(spec, source.number(0, 3), tuple(sorted(signals)))


BRANCHING = {"seq", "body", "many", "graph", "race", "loop"}


class _Drawer:
    def __init__(self, source: Source, shape: Shape) -> None:
        self.pick, self.number, self.shape, self.tags = source.pick, source.number, shape, count()
        leaves = ["call"] * 9 + ["sleep", "sleep", "instant", "value"]
        inner = ["seq"] * 3 + ["body"] * 2 + ["undo"] * 3 + ["saga"] * 2 + ["loop"] * 3 + ["many"] * 2
        inner += ["graph", "mask", "ensure", "attempt", "inline"]
        if not shape.calm:
            leaves += ["fail", "raise"] + ["receive", "take"] * shape.signals
            inner += ["catch", "isolate", "race", "race", "timeout", "retry"]
        if shape.children:
            inner += ["child"]
        self.leaves, self.inner = leaves, list(shape.kinds) or inner

    def spec(self, depth: float) -> Spec:
        """`depth` counts the branchings still allowed; what merely wraps costs half."""
        if depth <= 0 or self.number(0, 15) == 15:
            return self.leaf(self.pick(self.leaves))
        kind = self.pick(self.inner)
        return self.compound(kind, depth - (1 if kind in BRANCHING else 0.5))

    def leaf(self, kind: str) -> Spec:
        pick = self.pick
        match kind:
            case "call":
                return self.call()
            case "value":
                return Value(self.number(0, 3))
            case "sleep":
                tag = next(self.tags)
                if self.shape.calm:
                    return Sleeps(tag, pick([None, 0, 1]))
                return Sleeps(tag, pick([None, 0, 1, 2]), pick([False, True]))
            case "instant":
                return Instant(pick(["audit", "changed", "report"] if self.shape.calm else ["audit", "changed", "report", "now"]))
            case "fail":
                return Fails(self.number(0, 3))
            case "raise":
                return Raises()
            case _:
                return Receives(self.number(0, 1), kind == "receive")

    def call(self) -> Call:
        tag, pick = next(self.tags), self.pick
        hours = self.number(0, 2)
        if self.shape.calm:
            return Call(tag, ("ok",), hours, 1000)
        stubborn = self.number(0, 4) == 4
        before: list[Answer] = [pick(["raise", "fail"] if stubborn else ["raise"]) for _ in range(pick([0, 0, 0, 1, 2]))]
        last: Answer = pick(["ok"] * 7 + ["bug"] if stubborn else ["ok"] * 7 + ["fail", "fail", "bug"])
        attempts = 1000 if self.shape.patient else pick([1, 2, 3, 1000])
        return Call(tag, (*before, last), hours, attempts, stubborn)

    def parts(self, depth: float, low: int, high: int) -> tuple[Spec, ...]:
        return tuple(self.spec(depth) for _ in range(self.number(low, high)))

    def compound(self, kind: str, depth: float) -> Spec:
        pick, number, spec = self.pick, self.number, self.spec
        match kind:
            case "seq":
                return Seq(spec(depth), spec(depth))
            case "body":
                return Body(self.parts(depth, 2, 3), "return" if self.shape.calm else pick(["return"] * 8 + ["fail", "raise"]))
            case "undo":
                return Undoes(spec(depth), spec(min(depth, 1)))
            case "saga":
                return Saga(spec(depth))
            case "loop":
                return Loop(next(self.tags), number(1, 4), spec(depth), pick([False, True]))
            case "many":
                how = pick(["all", "each", "each_attempt"])
                return Many(how, self.parts(depth, pick([0, 2, 2]) if how != "all" else 2, 3), number(1, 3))
            case "race":
                return Many("race", self.parts(depth, 2, 3))
            case "graph":
                return self.graph(depth)
            case "mask":
                return Mask(spec(depth))
            case "ensure":
                return Ensures(spec(depth), spec(min(depth, 1)))
            case "attempt":
                return Attempts(spec(depth))
            case "inline":
                return Inline(next(self.tags), spec(depth))
            case "catch":
                return Catches(spec(depth), spec(min(depth, 1)))
            case "isolate":
                return Isolates(spec(depth), spec(min(depth, 1)))
            case "timeout":
                return Timeout(next(self.tags), spec(depth), number(0, 3), pick([False, True]))
            case "retry":
                return Retries(next(self.tags), spec(depth), number(1, 3))
            case _:
                how = "child" if self.shape.calm else pick(["child", "child", "beside", "detached"])
                return Child(next(self.tags), spec(depth), how)

    def graph(self, depth: float) -> Graph:
        parts = self.parts(depth, 2, 4)
        edges = tuple(
            tuple((j, self.pick([False, True])) for j in range(i) if self.pick([False, True]))  #
            for i in range(len(parts))
        )
        return Graph(self.pick([False, True]), parts, edges, self.number(1, 3))
