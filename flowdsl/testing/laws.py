"""The ten laws that hold for every workflow, tried on generated worlds.

def test_resumes_anywhere():
    check(order)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import wraps
from random import SystemRandom
from typing import Any, Final, NoReturn, TypeVar
from zlib import crc32

from attrs import define, field
from hypothesis import given as drawn_from
from hypothesis import seed as seeded
from hypothesis import settings
from hypothesis.strategies import SearchStrategy
from returns.result import Failure, Success

from flowdsl.activation import OPEN
from flowdsl.codec import Codec, NotJournalable, codec
from flowdsl.definition import Workflow
from flowdsl.errors import FlowError
from flowdsl.flow import Defect, Do, Flow, Signal, fail, pure, saga
from flowdsl.journal import BUG, FAILURE, SUCCESS, Entry, codecs_of
from flowdsl.memory import Memory, _exit_of, _Kept
from flowdsl.story import Arrived, Called, Run
from flowdsl.testing.broken import KINDS, LAWS, LawBroken, Told
from flowdsl.testing.elsewhere import Recorded, differs
from flowdsl.testing.interleavings import _Known, _Path
from flowdsl.testing.playing import Crash, Plan, Played, named
from flowdsl.testing.replies import short
from flowdsl.testing.steady import HEALTHY, Later, OrderedWorld, Steady, bare, played, policies_show, terminated
from flowdsl.testing.worlds import World, worlds

I = TypeVar("I")  # noqa: E741
A = TypeVar("A")
E = TypeVar("E")

PLACES: Final = 6
"""Crashes and cancellations that are tried in each world; of more places some, others in each world."""
ORDERS: Final = 12
"""Orders that are tried in each world."""
DEPTH: Final = 4
CUT_SHORT: Final = "was cut short by the death of its worker"
"""What a crash in the last attempt that a policy gives leads to, as it is meant to."""
SHRINKS: Final = 80
"""Worlds that are tried when a smaller one is looked for."""


@define
class Checked:
    """What `check` has looked at."""

    workflow: str
    laws: tuple[int, ...]
    worlds: int = 0
    runs: int = 0
    journals: list[tuple[Entry, ...]] = field(factory=list[tuple[Entry, ...]], repr=False)
    """Those of the calm runs, children's too: `outline(order).lit(...)` tells from them what was reached."""
    left_out: list[str] = field(factory=list[str])
    """What could not be looked at, and why."""


def check(
    workflow: Workflow[I, A, E],
    *,
    request: SearchStrategy[I] | None = None,
    given: Mapping[Any, Any] | None = None,
    signals: Mapping[Signal[Any], Any] | None = None,
    model: Callable[[], Any] | None = None,
    examples: int = 100,
    without: Collection[int] = (),
    elsewhere: bool = True,
    seed: int | None = None,
) -> Checked:
    """Holds the laws (`LAWS`) against a workflow in so many generated worlds. Raises `LawBroken` with the smallest world that shows it.

    `request`, `given`, `signals`, `model`: as for `worlds`. `without`: numbers of laws that are not to hold here; say why beside it.
    `elsewhere`: whether other processes, where hashes are others, fold what was recorded too; that takes a second or two.
    Each run draws other worlds; `seed`, which a broken law names, draws the same ones again.
    """
    for number in without:
        if number not in LAWS:
            raise FlowError(f"without={sorted(without)}: there is no law {number}. They are numbered from 1 to {len(LAWS)}")
    chosen = tuple(number for number in LAWS if number not in without)
    checked = Checked(workflow.name, chosen)
    seed = SystemRandom().randrange(2**32) if seed is None else seed
    trial = _Trial(workflow, chosen, checked, f"check({getattr(workflow, '__name__', workflow.name)}, ..., seed={seed})")
    quiet = settings(max_examples=examples, deadline=None, database=None, report_multiple_bugs=False, suppress_health_check=HEALTHY)
    strategy = worlds(workflow, request=request, given=given, signals=signals, model=model, crashes=False, cancels=False)

    @seeded(seed)
    @quiet
    @drawn_from(strategy)
    def holds(world: World[Any, Any, Any]) -> None:
        trial.hold(world)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        holds()
    if 1 in chosen and elsewhere:
        trial.hold_elsewhere()
    return checked


class _Trial:
    """Holds laws against one world after another."""

    def __init__(self, workflow: Workflow[Any, Any, Any], laws: Sequence[int], checked: Checked, again: str) -> None:
        self._workflow, self._laws, self._checked, self._again = workflow, laws, checked, again
        self._recorded: list[tuple[Recorded, Workflow[Any, Any, Any], World[Any, Any, Any], Run]] = []
        self._world: World[Any, Any, Any]
        self._base: Steady
        self._runs: list[tuple[str, Memory]] = []
        """Those that the laws of every run have not been held against."""
        self._shift = 0
        """A number that the world gives: which places are tried in it, of many."""
        self._source = 0
        """The law that is held, for which runs are made; 0 before all."""
        self._first: int | None = None
        """The same when the first law was broken."""
        self._shrinks = 0
        self._shown = set[int]()
        """The worlds that have shown it."""

    def hold(self, world: World[Any, Any, Any]) -> None:
        """All laws; once one was broken that one alone, while the smallest world is looked for."""
        self._shift = crc32(repr(world).encode())  # before the laws ask for more than the world has decided
        if self._first is not None:
            self._shrinks += 1
            if self._shrinks > SHRINKS and self._shift not in self._shown:
                return  # the smallest that was found must do
        self._world = world
        self._checked.worlds += 1
        self._runs, self._source = [], 0
        world._book.draw = Later(self._shift)
        self._base = self._play("The run", watch=True)
        if self._first is None:
            self._remember()
        self._hold_each()
        for self._source, law in _HELD.items():
            if self._source in self._laws and self._first in (None, self._source):
                law(self)
                self._hold_each()
        if self._base.broken is not None:
            raise self._base.broken

    def _hold_each(self) -> None:
        for number, law in _OF_EACH.items():
            if number in self._laws:
                for title, run in self._runs:
                    law(self, title, run)
        self._runs = []

    def broken(self, number: int, what: str, *stories: tuple[str, Memory]) -> NoReturn:
        self._first = self._source
        self._shown.add(self._shift)
        told = [Told(title, str(run.look(self._root(run)))) for title, run in stories]
        raise KINDS[number](number, self._workflow, what, repr(self._world), told, self._again)

    def _root(self, run: Memory) -> str:
        assert isinstance(run, (Played, OrderedWorld))
        return run.root

    def _play(self, title: str, plan: Plan = Plan(), *, gentle: bool = False, watch: bool = False) -> Steady:  # noqa: B008 (it is frozen)
        self._checked.runs += 1
        run = played(self._world, plan, gentle=gentle, watch=watch)
        self._runs.append((title, run))
        return run

    def _remember(self) -> None:
        """What other processes will fold, and what tells of the sites that were reached."""
        base = self._base
        story = base.look(base.root)
        for kept in base.executions():
            self._checked.journals.append(tuple(kept.journal))
            told = Recorded(len(self._recorded), kept.execution, kept.workflow.version, kept.request, tuple(kept.journal), _ended(kept))
            self._recorded.append((told, kept.workflow, self._world, story))

    # The laws

    def same_steps(self) -> None:
        again = self._play("Run again")
        if (what := _difference(self._base, again)) is not None:
            self.broken(1, f"without any crash, in the same world, {what}", ("Run once", self._base), ("Run again", again))

    def hold_elsewhere(self) -> None:
        """The same in processes whose hashes are others."""
        found = differs([(told, workflow) for told, workflow, _, _ in self._recorded])
        if isinstance(found, str):
            self._checked.left_out.append(f"whether the order of sets makes a difference (law 1): {found}")
        elif found:
            told, _, world, story = self._recorded[min(found, key=lambda one: len(self._recorded[one.index][0].journal)).index]
            what = next(one.what for one in found if one.index == told.index)
            seen = "in another process, where texts have other hashes, it does something else. Look for a set that is iterated over"
            raise KINDS[1](1, self._workflow, seen, repr(world), [Told("Here", str(story)), Told("There", what)], self._again)

    def one_crash(self) -> None:
        for number in self._places(self._base.entries):
            self._survives(2, [Crash(number)])

    def two_crashes(self) -> None:
        last = self._base.entries
        for number in self._places(last)[:3]:
            other = 1 + (number * 7 + self._shift) % (last + 1)
            self._survives(3, [Crash(number, before=number % 2 == 0), Crash(other + (other == number), before=self._shift % 2 == 0)])

    def _survives(self, law: int, crashes: Sequence[Crash]) -> None:
        if self._base.cut:
            return
        plan, title = Plan(frozenset(crashes)), "With " + " and ".join(f"a crash {str(crash).partition(' ')[2]}" for crash in crashes)
        run = self._play(title, plan)
        what = _difference(self._base, run, exactly=False)
        shows = policies_show(run)
        if shows:
            self._runs.remove((title, run))  # nor is it held against the workflow that attempts ran out
        if what is None:
            return
        if shows:
            run = self._play(title, plan, gentle=True)  # what a policy makes of an attempt that was cut short is no difference of the workflow
            what = _difference(self._base, run, exactly=False)
            if what is None or policies_show(run):
                return
        self.broken(law, f"{title[0].lower()}{title[1:]} {what}", ("Without a crash", self._base), (title, run))

    def round_trips(self) -> None:
        for where, form, value in _values(self._base):
            if (what := _changed(form, value)) is not None:
                self.broken(4, f"{where} {what}", ("The run", self._base))

    def declared(self, title: str, run: Memory) -> None:
        for kept in run._kept.values():
            if kept.status in ("running", "suspended", "succeeded"):
                continue
            exit = _exit_of(kept)
            if kept.status == "blocked" and not (kept.cause or "").startswith("undos failed"):
                self.broken(5, f"{kept.workflow.name} is blocked: {(kept.cause or '').partition(chr(10))[0]}", (title, run))
            elif isinstance(exit, Defect) and kept.status != "blocked" and CUT_SHORT not in exit.message:
                self.broken(5, f"{kept.workflow.name} ends with a defect at {exit.where}: {exit.message}", (title, run))

    def ends_when_cancelled(self) -> None:
        if self._base.cut:
            return
        for number in self._places(self._base.moments):
            run = self._play(f"Cancelled at moment {number}", Plan(cancel_at=number), watch=True)
            title = f"With {run.cancelled}" if run.cancelled is not None else "Without a cancellation"
            self._runs[-1] = (title, run)
            self._hold_each()
            if run.cancelled is not None:
                self._ended_well(title, run)

    def _ended_well(self, title: str, run: Steady) -> None:
        root = run._kept[run.root]
        if root.status in OPEN and root.status != "blocked" and not run.cut:
            waits = ", ".join(run.told.waits) or "nothing"
            self.broken(6, f"{run.cancelled}: it does not end, it waits for {waits}", ("Not cancelled", self._base), (title, run))
        ended = {kept.execution.id for kept in run.executions() if kept.status not in OPEN and not terminated(kept)}
        for one in run.open_finalizers:
            if one.id in ended and len(one.ran) != 1:
                self.broken(6, f"{run.cancelled}: the finalizer {one.name} ran {_times(len(one.ran))}", (title, run))
        cancelled = {kept.execution.id for kept in run.executions() if kept.status == "cancelled"} & ended
        for one in run.undos:
            if (one.id in cancelled and len(one.ran) != 1) or len(one.ran) > 1:
                self.broken(6, f"{run.cancelled}: the undo {one.name} ran {_times(len(one.ran))}", (title, run))
        for registered in run.sagas:
            ran = [one.ran[0] for one in registered if one.ran]
            if ran != sorted(ran, reverse=True):
                names = ", ".join(one.name for one in sorted((one for one in registered if one.ran), key=lambda one: one.ran[0]))
                self.broken(6, f"{run.cancelled}: undos did not run last-first, but {names}", (title, run))

    def no_order_is_stuck(self) -> None:
        if self._base.cut:
            return
        ended: OrderedWorld | None = None
        stuck: OrderedWorld | None = None
        for run in self._orders():
            self._runs.append((_title(run), run))
            if (what := run.lost()) is not None:
                self.broken(7, what, (_title(run), run))
            if run._kept[run.root].status not in OPEN:
                ended = ended or run
            elif run._kept[run.root].status != "blocked" and not run.endless:
                stuck = stuck or run
        if ended is not None and stuck is not None:
            waits = ", ".join(stuck.look(stuck.root).waits)
            what = f"in one order of the same things it ends, in another it waits for ever for {waits}"
            self.broken(7, what, (_title(ended), ended), (_title(stuck), stuck))

    def _orders(self) -> Iterator[OrderedWorld]:
        todo: list[tuple[int, ...]] = [()]
        seen: dict[Any, int] = {}
        for _ in range(ORDERS):
            if not todo:
                return
            path = _Path(todo.pop(), DEPTH, seen)
            run = OrderedWorld(self._world, named(self._workflow), path)
            self._checked.runs += 1
            try:
                run.play(self._world, {kept.execution.id for kept in self._base.executions()})
                yield run
            except _Known:
                pass
            todo += list(path.others())[::-1]

    def answered_once(self, title: str, run: Memory) -> None:
        for kept in run._kept.values():
            seen: set[str] = set()
            for entry in kept.journal:
                if entry.kind in (SUCCESS, FAILURE, BUG):
                    if entry.step in seen:
                        self.broken(8, f"step {entry.step} of {kept.workflow.name} ({entry.fingerprint}) has two answers", (title, run))
                    seen.add(entry.step)
        asked: dict[str, Any] = {}
        for one in run._log:
            if isinstance(one, Called):
                form = codecs_of(one.activity.root).request.encode(one.request)
                if asked.setdefault(one.key, (one.activity.name, form)) != (one.activity.name, form):
                    self.broken(8, f"the idempotency key {one.key} was given to two requests: one is {short(one.request)}", (title, run))

    def children_end(self, title: str, run: Memory) -> None:
        for kept in run._kept.values():
            parent = run._kept.get(kept.parent or "")
            if parent is None or kept.detached or parent.status in OPEN or kept.status not in OPEN or kept.status == "blocked":
                continue
            if isinstance(run, Played) and run.cut:
                return
            what = f"{kept.workflow.name} was started by {parent.workflow.name}, which has ended, and goes on: it waits for "
            self.broken(9, what + (", ".join(run.look(kept.execution.id).waits) or "nothing"), (title, run))

    def said_otherwise(self) -> None:
        if self._base.cut:
            return
        names = list(WAYS)
        name = names[self._shift % len(names)]
        run = Steady(self._world, Plan())
        self._checked.runs += 1
        run.play(_otherwise(self._workflow, WAYS[name]), self._world.request)
        if _told(run) != _told(self._base):
            self.broken(10, f"{name}, but it does not do the same", ("The workflow m", self._base), (f"The left side of: {name}", run))

    def _places(self, count: int) -> list[int]:
        """From 1; of many some, which shift from world to world."""
        if count <= PLACES:
            return list(range(1, count + 1))
        return sorted({1 + (index * count // PLACES + self._shift) % count for index in range(PLACES)})


_HELD: Final[Mapping[int, Callable[[_Trial], None]]] = {
    1: _Trial.same_steps,
    4: _Trial.round_trips,
    2: _Trial.one_crash,
    3: _Trial.two_crashes,
    6: _Trial.ends_when_cancelled,
    7: _Trial.no_order_is_stuck,
    10: _Trial.said_otherwise,
}
_OF_EACH: Final[Mapping[int, Callable[[_Trial, str, Memory], None]]] = {8: _Trial.answered_once, 9: _Trial.children_end, 5: _Trial.declared}
"""What holds for every run, whatever it was made for."""


# What is compared


def _difference(one: Steady, other: Steady, *, exactly: bool = True) -> str | None:
    """In words, how the second went otherwise."""
    timed = not any(contract.policies.budget for contract in one._named.contracts.values())  # after a crash a budget is drawn from anew
    before, after = ({kept.execution.id: kept for kept in run.executions()} for run in (one, other))
    for id, kept in before.items():
        now = after.get(id)
        name = kept.workflow.name
        if now is None:
            return f"{name} ({id}) is not started"
        if now.status == "blocked" and kept.status != "blocked":
            return f"{name} is blocked: {(now.cause or '').partition(chr(10))[0]}"
        first, second = ([_plain(entry) for entry in each.journal] if exactly else bare(each.journal, timed=timed) for each in (kept, now))
        for left, right in zip(first, second, strict=False):
            if left != right:
                return f"{name} {_other(left, right)}"
        if (kept.status, kept.exit) != (now.status, now.exit):
            return f"{name} ends otherwise: {_said(now)} instead of {_said(kept)}"
        if len(first) != len(second):
            return f"{name} records {len(now.journal)} entries instead of {len(kept.journal)}"
    more = [after[id].workflow.name for id in after if id not in before]
    return f"{more[0]} is started as well" if more else None


def _plain(entry: Entry) -> tuple[Any, ...]:
    return (entry.kind, entry.at, entry.step, entry.fingerprint, entry.body)


def _other(left: tuple[Any, ...], right: tuple[Any, ...]) -> str:
    """Of two entries: kind, time, step, fingerprint, body."""
    names = [fingerprint.rpartition(" ")[0] or fingerprint for fingerprint in (left[3], right[3])]
    if names[0] != names[1] or left[2] != right[2]:
        return f"asks for {names[1]} (step {right[2]}) instead of {names[0]} (step {left[2]})"
    if left[3] != right[3]:
        return f"asks for {names[1]} (step {right[2]}) with another input"
    if left[1] != right[1]:
        return f"hears from {names[1]} (step {right[2]}) at {right[1]:%H:%M:%S.%f} instead of {left[1]:%H:%M:%S.%f}"
    return f"hears otherwise from {names[1]} (step {right[2]}): {right[4].decode(errors='replace')} instead of {left[4].decode(errors='replace')}"


def _said(kept: _Kept) -> str:
    return short(_exit_of(kept), 120) if kept.exit else f"it is {kept.status}"


def _ended(kept: _Kept) -> bytes:
    return kept.exit if kept.status not in OPEN else b""


def _told(run: Played) -> tuple[Any, ...]:
    """What can be seen of it from outside: its exit, and what was asked of activities, in order."""
    calls = [(one.activity.name, codecs_of(one.activity.root).request.encode(one.request), one.role) for one in run._log if isinstance(one, Called)]
    kept = run._kept[run.root]
    return kept.status, kept.exit, calls


def _values(run: Steady) -> Iterator[tuple[str, Codec[Any], Any]]:
    """Every value that the run has written down, how it is written, and what it is."""
    for kept in run.executions():
        codecs = codecs_of(kept.workflow)
        yield f"the input of {kept.workflow.name}", codecs.request, codecs.request.decode(kept.request)
        match _exit_of(kept):
            case Success(answer):
                yield f"the answer of {kept.workflow.name}", codecs.answer, answer
            case Failure(error):
                yield f"the failure of {kept.workflow.name}", codecs.failures, error
            case _:
                pass
    signals = named(run.told.workflow).signals
    for one in run._log:
        if isinstance(one, Called):
            codecs = codecs_of(one.activity.root)
            yield f"the input of {one.activity.name}", codecs.request, one.request
            if isinstance(one.exit, Success):
                yield f"the answer of {one.activity.name}", codecs.answer, one.exit.unwrap()
            elif isinstance(one.exit, Failure):
                yield f"the failure of {one.activity.name}", codecs.failures, one.exit.failure()
        elif isinstance(one, Arrived) and one.signal in signals:
            form = codec(signals[one.signal].payload)
            yield f"the signal {one.signal}", form, form.decode(one.payload)
    for form, state in run.states:
        yield "the state of a loop", form, state


def _changed(form: Codec[Any], value: Any) -> str | None:
    """How a value comes back otherwise."""
    try:
        written = form.encode(value)
    except NotJournalable:
        return None  # refused where it is given: that is law 5
    try:
        back = form.decode(written)
        again = form.encode(back)
    except Exception as error:
        return f"cannot be read back: {short(value)} is recorded as {written.decode(errors='replace')}, and {type(error).__name__}: {error}"
    if again != written:
        return f"is recorded as {written.decode(errors='replace')}, read, and recorded as {again.decode(errors='replace')}"
    compares = _compares(type(value)) and _equal(value, value)
    if compares and not _equal(back, value):
        return f"goes in as {short(value)}, and comes back as {short(back)}"
    return None


def _compares(kind: Any) -> bool:
    return kind.__eq__ is not object.__eq__


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other)


def _times(count: int) -> str:
    return {0: "not at all", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _title(run: OrderedWorld) -> str:
    return f"In this order ({', '.join(run.path.order) or 'nothing to choose'})"


# Two ways to say the same


WAYS: Final[Mapping[str, Callable[[Flow[Any, Any]], Flow[Any, Any]]]] = {
    "m.map(identity) is m": lambda m: m.map(lambda answer: answer),
    "m.then(pure) is m": lambda m: m.then(pure),
    "m.catch(fail) is m": lambda m: m.catch(fail),
    "m.attempt(), undone, is m": lambda m: m.attempt().then(lambda one: pure(one.unwrap()) if isinstance(one, Success) else fail(one.failure())),
    "m.ensure(nothing) is m": lambda m: m.ensure(lambda _: pure(None)),
    "saga(m) is m, for all of a workflow": saga,
}


def _otherwise(workflow: Workflow[Any, Any, Any], way: Callable[[Flow[Any, Any]], Flow[Any, Any]]) -> Workflow[Any, Any, Any]:
    @wraps(workflow.body)
    def body(request: Any) -> Any:
        return (yield from way(Do(workflow.body, (request,))))

    other: Workflow[Any, Any, Any] = Workflow(workflow.name, body, workflow.key, workflow.reuse, workflow.version, workflow.priority)
    vars(other)["shape"] = workflow.shape
    return other


__all__ = ["LAWS", "WAYS", "Checked", "LawBroken", "Run", "check"]
