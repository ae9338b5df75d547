"""What a generated flow must do, said a second time and naively: recursion over the spec, Python's own exceptions, a heap of events.

It shares no code with the machine: a branch is a generator, a cancellation is thrown into it, undos are a list. Slow and plain on purpose.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Any, TypeAlias

from attrs import define, frozen

from tests.laws.flows import (
    PAUSE,
    Attempts,
    Body,
    Call,
    Catches,
    Child,
    Ensures,
    Fails,
    Graph,
    Inline,
    Instant,
    Isolates,
    Loop,
    Many,
    Mask,
    Plan,
    Raises,
    Receives,
    Retries,
    Saga,
    Seq,
    Sleeps,
    Spec,
    Timeout,
    Undoes,
    Value,
    answer_of,
    answered,
    child_pause,
    install,
    mix,
    span,
    takes,
)


class Tie(Exception):
    """Two things at the very same moment: which is first is nobody's promise."""


class Failed(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


class Bug(Exception):
    pass


class Cut(Exception):
    pass


EXITS: dict[type[BaseException], int] = {Bug: 4000, Cut: 5000}

Work: TypeAlias = Generator[Callable[["Task"], None], Any, int]


@frozen
class Told:
    """What happened, as far as it can be told from outside."""

    exit: str | None
    code: int
    blocked: int
    """How many undos failed."""
    calls: tuple[tuple[int, int, int], ...]
    """When, tag, input."""

    @property
    def multiset(self) -> Counter[tuple[int, int]]:
        return Counter((tag, seen) for _, tag, seen in self.calls)


@define(eq=False)
class Loops:
    outer: Loops | None
    touched: bool = False


@define(eq=False)
class Task:
    """A branch."""

    run: Run
    work: Work
    parent: Task | None
    tell: Callable[[Any], None]
    loops: Loops | None
    mask: int = 0
    cancelled: bool = False
    unwinding: bool = False
    interrupt: Callable[[], None] | None = None
    """How it is interrupted where it waits; None when it is about to run, or waits for what nothing interrupts."""
    waits: object = None

    def recorded(self) -> None:
        loops = self.loops
        while loops is not None:
            loops.touched = True
            loops = loops.outer

    def within(self, other: Task) -> bool:
        task: Task | None = self
        while task is not None:
            if task is other:
                return True
            task = task.parent
        return False


class World:
    """All executions and the one clock."""

    def __init__(self, plan: Plan) -> None:
        install(plan)
        self.plan = plan
        self.now = 0
        self.count = 0
        self.heap: list[tuple[int, int, Callable[[], None]]] = []
        self.calls: list[tuple[int, int, int]] = []
        self.running: list[Run] = []

    def at(self, time: int, then: Callable[[], None]) -> None:
        self.count += 1
        heappush(self.heap, (time, self.count, then))

    def told(self) -> Told:
        root = Run(self, plan_work(self.plan), None, None)
        root.turn()
        for time, name, value in self.plan.signals:
            self.at(time, lambda name=name, value=value: root.signal(name, value))  # type: ignore[misc]
        if self.plan.cancel is not None:
            self.at(self.plan.cancel, root.cancel)
        while self.heap:
            time, _, then = heappop(self.heap)
            if self.heap and self.heap[0][0] == time:
                raise Tie
            self.now = time
            then()
        return Told(root.exit, root.code, root.failed_undos if root.exit else 0, tuple(sorted(self.calls)))


def plan_work(plan: Plan) -> Callable[[Task], Work]:
    return lambda task: in_saga(lambda undos: ev(plan.spec, 0, task, undos), task, None)


class Run:
    """One execution: a turn runs it until everything waits, then lets out what has to leave."""

    def __init__(self, world: World, work: Callable[[Task], Work], parent: Run | None, starter: Task | None, detached: bool = False) -> None:
        self.world, self.parent, self.starter, self.detached = world, parent, starter, detached
        self.ready: deque[tuple[Task, Any]] = deque()
        self.instants: deque[Callable[[], None]] = deque()
        self.children: list[Run] = []
        self.begun: list[Run] = []
        self.calls: list[Callable[[], None]] = []
        self.cuts: list[Task] = []
        self.mail: dict[int, deque[int]] = {0: deque(), 1: deque()}
        self.waiters: dict[int, list[tuple[Task, object]]] = {0: [], 1: []}
        self.exit: str | None = None
        self.code = 0
        self.failed_undos = 0
        self.on_exit: Callable[[Any], None] | None = None
        self.early: list[Any] = []
        self.root = self.spawn(work, None, self.ended)

    @property
    def open(self) -> bool:
        return self.exit is None

    def spawn(self, work: Callable[[Task], Work], parent: Task | None, tell: Callable[[Any], None]) -> Task:
        task = Task(self, None, parent, tell, parent.loops if parent else None)  # type: ignore[arg-type]
        task.work = work(task)
        self.ready.append((task, None))
        return task

    def turn(self) -> None:
        while self.ready or self.instants:
            if self.ready:
                self.step(*self.ready.popleft())
            else:
                self.instants.popleft()()
        begun, self.begun = self.begun, []
        for child in begun:
            child.turn()
        cuts, self.cuts = self.cuts, []
        for child in self.children:
            if any(child.starter is not None and child.starter.within(cut) for cut in cuts) and not child.detached:
                child.cancel()
        calls, self.calls = self.calls, []
        for one in calls:
            one()

    def step(self, task: Task, got: Any) -> None:
        task.interrupt = task.waits = None
        if task.cancelled and not task.mask and not task.unwinding:
            task.unwinding = True
            got = got if isinstance(got, Bug) else Cut()
        try:
            wait = task.work.throw(got) if isinstance(got, Exception) else task.work.send(got)
        except StopIteration as stop:
            self.finished(task, stop.value)
        except (Failed, Bug, Cut) as exit:
            self.finished(task, exit)
        else:
            wait(task)

    def finished(self, task: Task, exit: Any) -> None:
        if task.cancelled and isinstance(exit, Exception) and task.parent is not None:
            self.cuts.append(task)
        task.tell(exit)

    def go(self, task: Task, got: Any) -> None:
        task.interrupt = task.waits = None
        self.ready.append((task, got))

    def cut(self, task: Task) -> None:
        """Asks a branch to end."""
        if not task.cancelled:
            task.cancelled = True
            if not task.mask and task.interrupt is not None:
                task.interrupt()

    def ended(self, exit: Any) -> None:
        self.code = exit if isinstance(exit, int) else exit.code if isinstance(exit, Failed) else EXITS[type(exit)]
        self.exit = "blocked" if self.failed_undos else "success" if isinstance(exit, int) else type(exit).__name__
        if self.failed_undos:
            return
        for child in self.children:
            if not child.detached:
                self.calls.append(child.cancel)
        if self.parent is not None and not self.detached:
            told = exit if not isinstance(exit, Cut) else Bug()
            self.calls.append(lambda: self.tell_parent(told))

    def tell_parent(self, told: Any) -> None:
        if self.on_exit is not None:
            self.on_exit(told)
        else:
            self.early.append(told)

    # From outside

    def cancel(self) -> None:
        if self.open and not self.root.cancelled:
            self.cut(self.root)
            self.turn()

    def signal(self, name: int, value: int) -> None:
        if not self.open:
            return
        self.mail[name].append(value)
        self.match(name)
        self.turn()

    def match(self, name: int) -> None:
        while self.mail[name] and self.waiters[name]:
            task, wait = self.waiters[name].pop(0)
            if task.waits is wait:
                task.recorded()
                self.go(task, self.mail[name].popleft())


# How a branch waits: each gives a function that is told the task


def waiting(task: Task, interruptible: bool = True) -> object:
    mark = task.waits = object()
    if interruptible:
        task.interrupt = lambda: task.run.go(task, Cut())
    return mark


def later(at: Callable[[Task], int], then: Callable[[Task], None]) -> Callable[[Task], None]:
    def wait(task: Task) -> None:
        mark = waiting(task)

        def over() -> None:
            if task.waits is mark:
                then(task)
                task.run.turn()

        task.run.world.at(at(task), over)

    return wait


def at_once(answer: Callable[[Task], Any], interruptible: bool = True) -> Callable[[Task], None]:
    """Answered in the same turn, after all that was asked before it."""

    def wait(task: Task) -> None:
        mark = waiting(task, interruptible)

        def over() -> None:
            if task.waits is mark:
                task.recorded()
                task.run.go(task, answer(task))

        task.run.instants.append(over)

    return wait


# The meaning of each spec


Undos: TypeAlias = list[tuple[Spec, int]]


def ev(spec: Spec, x: int, t: Task, undos: Undos | None) -> Work:
    match spec:
        case Value(value):
            return mix(value, x)
        case Fails(code):
            raise Failed(1000 + code)
        case Raises():
            raise Bug
        case Call():
            return (yield from called(spec, x, t))
        case Sleeps():
            due = span(spec) if spec.absolute else t.run.world.now + span(spec)
            if due <= t.run.world.now:
                yield at_once(lambda _: None)
            else:
                yield later(lambda _: due, lambda task: (task.recorded(), task.run.go(task, None)))  # type: ignore[arg-type,return-value]
            return x
        case Instant(what):
            if what == "audit":
                yield at_once(lambda _: None)
            elif what == "changed":
                t.run.instants.appendleft(t.recorded)  # its mark is recorded first of all, and nobody waits for it
            return {"changed": mix(x, 1), "now": mix(x, t.run.world.now)}.get(what, x)
        case Receives(name, wait):
            got = yield (receive(name) if wait else at_once(lambda task: task.run.mail[name].popleft() if task.run.mail[name] else None))
            return mix(x, got or 0)
        case Seq(first, second):
            return (yield from ev(second, (yield from ev(first, x, t, undos)), t, undos))
        case Catches(body, handler):
            try:
                return (yield from ev(body, x, t, undos))
            except Failed as failed:
                code = failed.code
            return (yield from ev(handler, code, t, undos))
        case Attempts(body):
            try:
                return (yield from ev(body, x, t, undos))
            except Failed as failed:
                return failed.code
        case Isolates(body, handler):
            try:
                return (yield from ev(body, x, t, undos))
            except Bug:
                if t.unwinding and not t.mask:
                    raise  # it is being cancelled: nothing takes it back
            return (yield from ev(handler, 3000, t, undos))
        case Ensures(body, finalizer):
            return (yield from ensured(body, finalizer, x, t, undos))
        case Undoes(body, undo):

            def done() -> Work:
                y = yield from ev(body, x, t, undos)
                if undos is not None:
                    undos.append((undo, y))
                return y

            return (yield from unbroken(done(), t))
        case Saga(body):
            return (yield from in_saga(lambda mine: ev(body, x, t, mine), t, undos))
        case Mask(body):
            return (yield from unbroken(ev(body, x, t, undos), t))
        case Many():
            return (yield from many(spec, x, t, undos))
        case Graph():
            return (yield from graph(spec, x, t, undos))
        case Body():
            for part in spec.parts:
                x = yield from ev(part, x, t, undos)
            if spec.ending != "return":
                raise Failed(1055) if spec.ending == "fail" else Bug
            return x
        case Loop():
            return (yield from looped(spec, x, t, undos))
        case Timeout(_, body, _, own):

            def limit(task: Task) -> Work:
                due = task.run.world.now + span(spec)
                yield later(lambda _: due, lambda one: (one.recorded(), one.run.go(one, None)))  # type: ignore[arg-type,return-value]
                raise Failed(1077 if own else 2000)

            return (yield from raced([lambda task: ev(body, x, task, undos), limit], t))
        case Retries(_, body, attempts):
            return (yield from retried(spec, body, attempts, x, t, undos))
        case Inline(_, body):
            return (yield from ev(body, x, t, undos))
        case Child():
            return (yield from child(spec, x, t))


def unbroken(work: Work, t: Task) -> Work:
    """Not interrupted; a cancellation that came meanwhile takes effect at its end, whatever it gave."""
    t.mask += 1
    try:
        answer = yield from work
    except (Failed, Bug, Cut):
        t.mask -= 1
        cut_now(t)
        raise
    t.mask -= 1
    cut_now(t)
    return answer


def cut_now(t: Task) -> None:
    if t.cancelled and not t.mask and not t.unwinding:
        t.unwinding = True
        raise Cut


def cleaned_up(work: Work, exit: Exception | None, t: Task) -> Work:
    """After the cleaning up it goes on ending; a cancellation that came meanwhile hides no bug, neither an old one nor one of the cleaning up."""
    bug = exit if isinstance(exit, Bug) else None

    def noted() -> Work:
        nonlocal bug
        try:
            return (yield from work)
        except Bug as worse:
            bug = worse
            raise

    try:
        yield from unbroken(noted(), t)
    except (Bug, Cut) as ended:
        raise (bug or ended) from None
    if exit is not None:
        raise exit
    return 0


def ensured(body: Spec, finalizer: Spec, x: int, t: Task, undos: Undos | None) -> Work:
    def final(code: int) -> Work:
        try:
            yield from ev(finalizer, code, t, undos)
        except Exception:
            raise Bug from None
        return 0

    try:
        answer = yield from ev(body, x, t, undos)
    except (Failed, Bug, Cut) as exit:
        code = exit.code if isinstance(exit, Failed) else EXITS[type(exit)]
        return (yield from cleaned_up(final(code), exit, t))
    yield from cleaned_up(final(answer), None, t)
    return answer


def in_saga(work: Callable[[Undos], Work], t: Task, outer: Undos | None) -> Work:
    mine: Undos = []

    def roll_back() -> Work:
        failed = 0
        while mine:
            undo, y = mine.pop()
            try:
                yield from ev(undo, y, t, None)
            except (Failed, Bug, Cut):
                failed += 1
        if failed:
            t.run.failed_undos += failed
            raise Bug
        return 0

    try:
        answer = yield from work(mine)
    except (Failed, Bug, Cut) as exit:
        return (yield from cleaned_up(roll_back(), exit, t)) if mine else _raised(exit)
    if outer is not None:
        outer.extend(mine)
    return answer


def _raised(exit: Exception) -> int:
    raise exit


def called(spec: Call, x: int, t: Task) -> Work:
    tries = 0
    while True:
        told = yield perform(spec, x, tries)
        tries += 1
        again = told == "raise" or (told == "fail" and spec.stubborn)
        if told == "ok":
            return answered(spec, x)
        if not again or tries >= spec.attempts:
            raise Failed(1000 + spec.tag) if told == "fail" else Bug


def perform(spec: Call, x: int, attempt: int) -> Callable[[Task], None]:
    """One attempt, and the wait before it; it begins at the end of the turn that asks for it."""

    def wait(task: Task) -> None:
        mark, world = waiting(task), task.run.world

        def begin() -> None:
            if task.waits is mark:
                world.calls.append((world.now, spec.tag, x))
                world.at(world.now + takes(spec, x, attempt, world.plan.order), over)

        def over() -> None:
            if task.waits is mark:
                task.recorded()
                task.run.go(task, answer_of(spec, attempt))
                task.run.turn()

        if attempt == 0:
            task.run.calls.append(begin)
        else:
            world.at(world.now + PAUSE, begin)

    return wait


def receive(name: int) -> Callable[[Task], None]:
    def wait(task: Task) -> None:
        mark = waiting(task)

        def asked() -> None:
            if task.waits is mark:
                task.run.waiters[name].append((task, mark))
                task.run.match(name)

        task.run.instants.append(asked)

    return wait


def looped(spec: Loop, x: int, t: Task, undos: Undos | None) -> Work:
    outer = t.loops
    mine = t.loops = Loops(outer)
    number = 0
    try:
        while True:
            mine.touched = False
            x = yield from ev(spec.body, mix(x, number), t, undos)
            number += 1
            if number >= spec.rounds:
                return x
            if mine.touched:
                yield at_once(lambda _: None)
    finally:
        t.loops = outer


def retried(spec: Retries, body: Spec, attempts: int, x: int, t: Task, undos: Undos | None) -> Work:
    tries = 0
    while True:
        tries += 1
        try:
            return (yield from ev(body, x, t, undos))
        except Failed:
            if tries >= attempts:
                raise
        due = t.run.world.now + span(spec)
        yield later(lambda _: due, lambda one: (one.recorded(), one.run.go(one, None)))  # type: ignore[arg-type,return-value] # noqa: B023


def child(spec: Child, x: int, t: Task) -> Work:
    begun: list[Run] = []

    def start(task: Task) -> None:
        def work(own: Task) -> Work:
            due = own.run.world.now + child_pause(spec)

            def body(undos: Undos) -> Work:
                yield later(lambda _: due, lambda one: (one.recorded(), one.run.go(one, None)))  # type: ignore[arg-type,return-value]
                return (yield from ev(spec.body, x, own, undos))

            return in_saga(body, own, None)

        one = Run(task.run.world, work, task.run, task, spec.how == "detached")
        begun.append(one)
        task.run.children.append(one)
        task.run.begun.append(one)

    yield at_once(start, interruptible=False)
    if spec.how != "child":
        return x

    def join(task: Task) -> None:
        mark = waiting(task)

        def ended(exit: Any) -> None:
            if task.waits is mark:
                task.recorded()
                task.run.go(task, exit)
                task.run.turn()

        begun[0].on_exit = ended

    return (yield join)


# Branches


class Group:
    """Branches that a task waits for: the first that does not merely succeed decides, in a race any."""

    def __init__(self, task: Task, race: bool) -> None:
        self.task, self.race = task, race
        self.live: dict[int, Task] = {}
        self.decided: Any = None
        self.more: Callable[[], bool] = lambda: False
        self.answers: dict[int, int] = {}

    def begin(self, index: int, work: Callable[[Task], Work]) -> None:
        self.live[index] = self.task.run.spawn(work, self.task, lambda exit: self.ended(index, exit))

    def ended(self, index: int, exit: Any) -> None:
        del self.live[index]
        if not isinstance(exit, Exception) and not self.race:
            self.answers[index] = exit
            if self.decided is None and not self.more():
                self.decided = 0
        elif self.decided is None:
            self.decided = exit
            for other in list(self.live.values()):
                self.task.run.cut(other)
        elif isinstance(exit, Bug) and not isinstance(self.decided, Bug):
            self.decided = exit
        if not self.live and self.decided is not None:
            self.task.run.go(self.task, self.decided)

    def interrupt(self) -> None:
        if not isinstance(self.decided, Bug):
            self.decided = Cut()
        for other in list(self.live.values()):
            self.task.run.cut(other)

    def wait(self, task: Task) -> None:
        task.waits, task.interrupt = self, self.interrupt


def raced(works: list[Callable[[Task], Work]], t: Task) -> Work:
    group = Group(t, race=True)
    for index, work in enumerate(works):
        group.begin(index, work)
    return (yield group.wait)


def gathered(
    count: int, work: Callable[[int, dict[int, int]], Callable[[Task], Work]], before: list[set[int]], concurrency: int, t: Task
) -> Generator[Callable[[Task], None], Any, list[int]]:
    """All the answers; `before[i]` must have ended for the i-th to begin."""
    group = Group(t, race=False)
    begun: set[int] = set()

    def more() -> bool:
        """Begins what can begin. Whether anything is still to end."""
        for index in range(count):
            if index not in begun and len(group.live) < concurrency and before[index] <= group.answers.keys():
                begun.add(index)
                group.begin(index, work(index, group.answers))
        return len(group.answers) < count

    group.more = more
    if count:
        more()
        yield group.wait
    return [group.answers[index] for index in range(count)]


def folded(values: list[int]) -> int:
    total = 0
    for value in values:
        total = mix(total, value)
    return total


def many(spec: Many, x: int, t: Task, undos: Undos | None) -> Work:
    parts = spec.parts
    if spec.how == "race":
        return (yield from raced([lambda task, part=part: ev(part, x, task, undos) for part in parts], t))  # type: ignore[misc]

    def one(index: int, _: dict[int, int]) -> Callable[[Task], Work]:
        part = Attempts(parts[index]) if spec.how == "each_attempt" else parts[index]
        return lambda task: ev(part, x if spec.how == "all" else mix(x, index), task, undos)

    concurrency = len(parts) if spec.how == "all" else spec.concurrency
    return folded((yield from gathered(len(parts), one, [set() for _ in parts], concurrency, t)))


def graph(spec: Graph, x: int, t: Task, undos: Undos | None) -> Work:
    outcomes: dict[int, str] = {}

    def one(index: int, _: dict[int, int]) -> Callable[[Task], Work]:
        def work(task: Task) -> Work:
            hung = [j for j, hard in spec.edges[index] if hard and outcomes[j] != "success"] if spec.attempt else []
            if hung:
                outcomes[index] = "skipped"
                return 9000 + hung[0]
            try:
                answer = yield from ev(spec.parts[index], x, task, undos)
            except Failed as failed:
                if not spec.attempt:
                    raise
                outcomes[index] = "failed"
                return failed.code
            outcomes[index] = "success"
            return answer

        return work

    before = [{j for j, _ in edges} for edges in spec.edges]
    return folded((yield from gathered(len(spec.parts), one, before, spec.concurrency, t)))


def foretold(plan: Plan) -> Told:
    """What this plan must do. Raises `Tie` when it hangs on what is promised to nobody."""
    return World(plan).told()
