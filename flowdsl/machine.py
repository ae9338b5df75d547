"""The interpreter core without I/O: a flow goes in, instructions come out, exits go in.

No clock, no random, no event loop, no log. One loop runs fibers; a fiber is a stack of frames, so depth costs memory and never recursion.
Steps are positions in the tree of fibers: they depend on the flow alone, never on which branch was first.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from hashlib import blake2b
from heapq import heapify, heappop, heappush
from types import GeneratorType
from typing import Any, Final, TypeAlias, cast
from uuid import UUID

from attrs import define, field, frozen
from returns.result import Failure, Success

from flowdsl.errors import MachineError
from flowdsl.flow import (
    All,
    Ask,
    Audit,
    Bound,
    CancelChild,
    Cancelled,
    Catch,
    Changed,
    Compensate,
    Defect,
    Died,
    Do,
    Done,
    Ensure,
    Execution,
    Existing,
    Exit,
    Fail,
    Flow,
    Instruction,
    Isolate,
    Iterate,
    Join,
    Masked,
    Next,
    Perform,
    Pure,
    Race,
    Receive,
    Report,
    Saga,
    Send,
    Sleep,
    Start,
    Then,
)

_Going: TypeAlias = tuple[Flow[Any, Any] | None, int, Any]  # a flow to go on with, or else an exit; exit kind 0: the fiber waits
_AnyNode: TypeAlias = (
    Pure[Any]
    | Fail[Any]
    | Then[Any, Any]
    | Catch[Any, Any]
    | Isolate[Any, Any]
    | Ensure[Any, Any]
    | Compensate[Any, Any]
    | Saga[Any, Any]
    | Masked[Any, Any]
    | All[Any, Any]
    | Race[Any, Any]
    | Do[Any, Any]
    | Iterate[Any, Any]
    | Ask[Any]
    | Instruction
)

OK: Final = 1
FAILED: Final = 2
DEFECT: Final = 3
CANCELLED: Final = 4


@frozen
class Checkpoint:
    """What the machine asks for between two rounds: that the loop's state be recorded."""

    round: int
    state: Any
    initial: Any
    step: Any


@frozen
class CancelScope:
    """An effect: the children started under this step are to be cancelled."""

    scope: str


@frozen
class Marker:
    """What the machine asks to be recorded: that it went through a change, and where."""

    step: str
    id: str
    site: tuple[str, int, str]


class Pending:
    """An open step. The interpreter keeps what it knows of the attempts here."""

    __slots__ = ("attempts", "due", "fiber", "fingerprint", "instruction", "intended", "opened", "request", "step")

    def __init__(self, step: str, instruction: Instruction | Checkpoint, fiber: Fiber, opened: datetime) -> None:
        self.step, self.instruction, self.fiber, self.opened = step, instruction, fiber, opened
        self.attempts = 0
        self.due: datetime | None = None
        self.intended = False
        self.fingerprint: str | None = None
        self.request: bytes | None = None


class Segment:
    """Journal positions, as ranges: what a scope needs to be folded again."""

    __slots__ = ("ranges",)

    def __init__(self) -> None:
        self.ranges: list[list[int]] = []

    def add(self, position: int) -> None:
        if self.ranges and self.ranges[-1][1] == position:
            self.ranges[-1][1] = position + 1
        else:
            self.ranges.append([position, position + 1])

    def take(self, other: Segment) -> None:
        self.ranges = merged([*self.ranges, *other.ranges])


def merged(ranges: list[list[int]]) -> list[list[int]]:
    """The same positions in as few ranges as there can be, in order."""
    out: list[list[int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1]:
            out[-1][1] = max(out[-1][1], high)
        else:
            out.append([low, high])
    return out


class Fiber:
    __slots__ = ("cancel", "changes", "counter", "frames", "index", "loop", "mask", "owner", "parent", "saga", "scope", "unwinding", "waiting")

    def __init__(self, parent: Fiber | None, owner: _Branches | None, index: int, scope: str) -> None:
        self.parent, self.owner, self.index, self.scope = parent, owner, index, scope
        self.counter = 0
        self.frames: list[_Frame] = []
        self.changes: dict[str, bool] = {}  # change markers passed, by step: the same answer at each pass
        self.mask = 0
        self.cancel: str | None = None
        self.unwinding = False
        self.waiting: str | _Branches | None = None  # an open step by its name: by itself it would be a cycle, left to the collector
        self.loop: _Iterate | None = parent.loop if parent else None
        self.saga: _Saga | None = parent.saga if parent else None


class _Frame:
    __slots__ = ()


class _Then(_Frame):
    __slots__ = ("fn",)

    def __init__(self, fn: Any) -> None:
        self.fn = fn


class _Catch(_Frame):
    __slots__ = ("handler",)

    def __init__(self, handler: Any) -> None:
        self.handler = handler


class _Isolate(_Frame):
    __slots__ = ()


class _Mask(_Frame):
    __slots__ = ()


class _Ensure(_Frame):
    __slots__ = ("finalizer",)

    def __init__(self, finalizer: Any) -> None:
        self.finalizer = finalizer


class _Ensured(_Frame):
    """A finalizer is running; this is the exit to go on with."""

    __slots__ = ("kind", "value")

    def __init__(self, kind: int, value: Any) -> None:
        self.kind, self.value = kind, value


class _Compensate(_Frame):
    __slots__ = ("began", "undo")

    def __init__(self, undo: Any, began: int) -> None:
        self.undo, self.began = undo, began


class _Saga(_Frame):
    __slots__ = ("loop", "outer", "undos")

    def __init__(self, fiber: Fiber) -> None:
        self.outer, self.loop = fiber.saga, fiber.loop
        self.undos: list[tuple[Any, Any, int]] = []


class _Rollback(_Frame):
    """Undos are running, last first; this is the exit to go on with."""

    __slots__ = ("base", "began", "done", "failed", "kind", "saga", "saved", "value")

    def __init__(self, kind: int, value: Any, saga: _Saga, base: str, saved: tuple[str, int]) -> None:
        self.kind, self.value, self.saga, self.base, self.saved = kind, value, saga, base, saved
        self.done = self.began = 0
        self.failed: list[str] = []


class _Do(_Frame):
    __slots__ = ("body", "saved")

    def __init__(self, body: GeneratorType[Any, Any, Any], saved: tuple[str, int] | None) -> None:
        self.body, self.saved = body, saved


class _Iterate(_Frame):
    __slots__ = ("base", "begun", "initial", "mask", "node", "outer", "pinned", "round", "saga", "saved", "segment", "state")

    def __init__(self, fiber: Fiber, node: Iterate[Any, Any], base: str) -> None:
        self.node, self.base, self.outer, self.saga, self.mask = node, base, fiber.loop, fiber.saga, fiber.mask
        self.saved = (fiber.scope, fiber.counter)
        self.state = self.initial = node.state
        self.round = 0
        self.segment = Segment()
        self.begun: int | None = None
        self.pinned = False


class _Branches(_Frame):
    """Branches that a fiber waits for."""

    __slots__ = ("base", "fiber", "kind", "live", "value")

    def __init__(self, fiber: Fiber, base: str) -> None:
        self.fiber, self.base = fiber, base
        self.live: dict[int, Fiber] = {}
        self.kind = 0  # set once the outcome of the whole is decided and only the unwinding of the rest is waited for
        self.value: Any = None

    def decide(self, kind: int, value: Any) -> None:
        """A defect in the unwinding of a branch is never hidden by the outcome that began it."""
        if self.kind == 0 or (kind == DEFECT and self.kind != DEFECT):
            self.kind, self.value = kind, value


class _All(_Branches):
    __slots__ = ("answers", "begun", "dependents", "ended", "needs", "node", "ready")

    def __init__(self, fiber: Fiber, base: str, node: All[Any, Any]) -> None:
        super().__init__(fiber, base)
        self.node = node
        self.answers: list[Any] = [None] * node.count
        self.begun = self.ended = 0
        self.ready: list[int] = []
        self.dependents: dict[int, list[int]] = {}
        self.needs: list[int] = []
        if node.after is not None:
            self.needs = [len(needed) for needed in node.after]
            for index, needed in enumerate(node.after):
                for one in needed:
                    self.dependents.setdefault(one, []).append(index)
            self.ready = [index for index, count in enumerate(self.needs) if count == 0]
            heapify(self.ready)

    def next_index(self) -> int | None:
        """The branch to begin now, if there is one and room for it."""
        if self.node.concurrency is not None and len(self.live) >= self.node.concurrency:
            return None
        if self.node.after is not None:
            return heappop(self.ready) if self.ready else None
        if self.begun >= self.node.count:
            return None
        self.begun += 1
        return self.begun - 1

    def end(self, index: int, answer: Any) -> None:
        self.answers[index] = answer
        self.ended += 1
        for dependent in self.dependents.get(index, ()):
            self.needs[dependent] -= 1
            if self.needs[dependent] == 0:
                heappush(self.ready, dependent)


class _Race(_Branches):
    __slots__ = ()


@define
class Trace:
    """What led to the exit, for who has to find the entries to do again: kept only when asked for."""

    failing: list[tuple[Any, int]] = field(factory=list[tuple[Any, int]])
    """Each failure and defect, and the position of the entry that was folded when it first was one."""
    failed_undos: list[Any] = field(factory=list[Any])
    undone: list[tuple[int, Any]] = field(factory=list[tuple[int, Any]])
    """For each undo that ran: the position of the last entry before what it undoes began (-1: before all), and what was rolled back after."""


class Machine:
    """Folds exits into a flow. After each call `pending` holds what is open, and `exit` how it all ended, once it has.

    `opened`, `closed`, `marks` and `effects` gather what happened since they were last emptied. `markers` are the change markers that the
    journal holds, and `replaying` says that there is more of it to come: who replays sets them, and ignores what happens on the way.
    """

    __slots__ = (
        "_flow", "_loops", "_queue", "_root", "closed", "effects", "execution", "exit", "failed_undos", "markers", "marks", "now", "opened",
        "pending", "position", "replaying", "segment", "trace",
    )  # fmt: skip

    def __init__(self, execution: Execution, flow: Flow[Any, Any]) -> None:
        self.execution, self._flow = execution, flow
        self.now = execution.started_at
        self.pending: dict[str, Pending] = {}
        self.opened: list[Pending] = []
        self.closed: list[str] = []
        self.effects: list[CancelScope | Report] = []
        self.exit: Exit[Any, Any] | None = None
        self.failed_undos: tuple[str, ...] = ()
        self.segment = Segment()
        self.markers: frozenset[str] = frozenset()
        self.marks: list[Marker] = []
        self.replaying = False
        self.position = -1
        self.trace: Trace | None = None
        self._loops: dict[str, tuple[Fiber, _Iterate]] = {}
        self._queue: list[tuple[Fiber, Flow[Any, Any] | None, int, Any]] = []
        self._root = Fiber(None, None, 0, "")

    # Going in

    def start(self) -> None:
        """Runs the flow to its first standstill."""
        self._begin_saga(self._root)
        self._run(self._root, self._flow, OK, None)
        self._drain()

    def resume(self, step: str, kind: int, value: Any, *, position: int, at: datetime) -> None:
        """The exit of an open step, in journal order; runs to a standstill. Raises `MachineError` if the step is not open."""
        one = self._take(step)
        self.now, self.position = at, position
        fiber = one.fiber
        (fiber.loop or self).segment.add(position)
        self._go(fiber, None, kind, value)
        self._drain()

    def note(self, step: str, *, position: int, at: datetime) -> Pending:
        """An entry about an open step that does not end it (a failed attempt, an intent)."""
        if step not in self.pending:
            raise MachineError(step, "is not open")
        one = self.pending[step]
        self.now, self.position = at, position
        (one.fiber.loop or self).segment.add(position)
        return one

    def mark(self, step: str, *, position: int, at: datetime) -> None:
        """A change marker, recorded: needed for as long as the round that it is in."""
        self.now, self.position = at, position
        around = [base for base in self._loops if step.startswith(f"{base}.")]
        (self._loops[max(around, key=len)][1] if around else self).segment.add(position)

    def checkpoint(self, step: str, round: int, state: Any, *, position: int, at: datetime) -> None:
        """The named loop drops whatever round it is in and begins this one."""
        if step not in self._loops:
            raise MachineError(step, "is no open loop")
        fiber, loop = self._loops[step]
        self.now, self.position = at, position
        self._drop_above(fiber, loop)
        if loop.pinned:
            kept = (loop.outer or self).segment
            if loop.begun is not None:
                kept.take(_single(loop.begun))
            kept.take(loop.segment)
        loop.segment, loop.pinned, loop.begun = Segment(), False, position
        loop.round, loop.state = round, state
        self._queue.append((fiber, *self._round(fiber, loop)))
        self._drain()

    def cancel(self, reason: str, *, position: int, at: datetime) -> None:
        """Interrupts every fiber that is not masked, innermost first. A second call changes nothing."""
        self.now, self.position = at, position
        self.segment.add(position)
        if self.exit is None:
            self._interrupt(self._root, reason)
            self._drain()

    def terminate(self, reason: str) -> None:
        """Ends at once: nothing more runs, no finalizer and no undo."""
        self.closed += self.pending
        self.pending.clear()
        self.opened.clear()
        if self.exit is None:
            self.exit = Cancelled(reason)

    def operated(self, restarted: Iterable[str], *, position: int, at: datetime) -> None:
        """A person intervened: needed for as long as the execution is; the named steps begin their time anew."""
        self.now, self.position = at, position
        self.segment.add(position)
        for step in restarted:
            if step in self.pending:
                self.pending[step].opened = at

    @property
    def cancelling(self) -> bool:
        """Whether a cancellation was asked for."""
        return self._root.cancel is not None

    def live_positions(self, checkpoint_of: str) -> list[list[int]]:
        """The positions still needed once a checkpoint of this loop, for which it now waits, is recorded."""
        _, closing = self._loops[checkpoint_of]
        ranges = [list(span) for span in self.segment.ranges]
        for _, loop in self._loops.values():
            if loop is not closing or loop.pinned:
                ranges += [list(span) for span in loop.segment.ranges]
                if loop.begun is not None:
                    ranges.append([loop.begun, loop.begun + 1])
        return merged(ranges)

    def loop(self, step: str) -> _Iterate:
        """The open loop of that step. Raises `MachineError` if there is none."""
        if step not in self._loops:
            raise MachineError(step, "is no open loop")
        return self._loops[step][1]

    def where(self, one: Pending) -> tuple[str, int, str]:
        """File, line and function of the bind that opened a step."""
        return self._where(one.fiber)

    def _where(self, at: Fiber) -> tuple[str, int, str]:
        fiber: Fiber | None = at
        while fiber is not None:
            for frame in reversed(fiber.frames):
                if isinstance(frame, _Do) and frame.body.gi_frame is not None:
                    code = frame.body.gi_frame.f_code
                    return code.co_filename, frame.body.gi_frame.f_lineno, code.co_qualname
            fiber = fiber.parent
        return "", 0, ""

    # The loop

    def _drain(self) -> None:
        while self._queue:
            queue, self._queue = self._queue, []  # first in, first out: what is queued meanwhile comes behind all of these
            for fiber, flow, kind, value in queue:
                if fiber.cancel is not None and not fiber.mask and not fiber.unwinding:
                    fiber.unwinding = True
                    if kind != DEFECT:
                        flow, kind, value = None, CANCELLED, Cancelled(fiber.cancel)
                self._run(fiber, flow, kind, value)

    def _go(self, fiber: Fiber, flow: Flow[Any, Any] | None, kind: int, value: Any) -> None:
        fiber.waiting = None
        self._queue.append((fiber, flow, kind, value))

    def _run(self, fiber: Fiber, flow: Flow[Any, Any] | None, kind: int, value: Any) -> None:
        """Runs one fiber until it waits or ends: down into flows, back up with exits."""
        frames = fiber.frames
        while True:
            while flow is not None:
                node = cast("_AnyNode", flow)
                match node:
                    case Do():
                        try:
                            body = node.body(*node.args, **(node.kwargs or {}))
                        except Exception as error:
                            flow, kind, value = None, DEFECT, defect(error)
                            continue
                        if not isinstance(body, GeneratorType):
                            flow, kind, value = None, DEFECT, _no_body(node.body, body)
                            continue
                        flow, kind, value = self._advance(fiber, _Do(body, self._enter(fiber) if node.scope else None), None)
                    case Then():
                        frames.append(_Then(node.fn))
                        flow = node.flow
                    case Pure():
                        flow, kind, value = None, OK, node.value
                    case Perform() | Sleep() | Receive() | Send() | Start() | Join() | CancelChild() | Existing() | Audit():
                        self._open(fiber, node)
                        return
                    case Report():
                        self.effects.append(node)
                        flow, kind, value = None, OK, None
                    case Changed():
                        flow, kind, value = None, OK, self._changed(fiber, node)
                    case Catch():
                        frames.append(_Catch(node.handler))
                        flow = node.flow
                    case Fail():
                        flow, kind, value = None, FAILED, node.error
                    case Ask():
                        flow, kind, value = None, OK, self._ask(fiber, node.what)
                    case Isolate():
                        frames.append(_Isolate())
                        flow = node.flow
                    case Ensure():
                        frames.append(_Ensure(node.finalizer))
                        flow = node.flow
                    case Compensate():
                        frames.append(_Compensate(node.undo, self.position))
                        fiber.mask += 1
                        flow = node.flow
                    case Masked():
                        frames.append(_Mask())
                        fiber.mask += 1
                        flow = node.flow
                    case Saga():
                        self._begin_saga(fiber)
                        flow = node.flow
                    case Iterate():
                        loop = _Iterate(fiber, node, self._step(fiber))
                        frames.append(loop)
                        fiber.loop = loop
                        self._loops[loop.base] = (fiber, loop)
                        flow, kind, value = self._round(fiber, loop)
                    case All():
                        branches = _All(fiber, self._step(fiber), node)
                        if node.count == 0:
                            flow, kind, value = None, OK, node.gather([])
                            continue
                        frames.append(branches)
                        fiber.waiting = branches
                        self._more(branches)
                        return
                    case Race():
                        racing = _Race(fiber, self._step(fiber))
                        frames.append(racing)
                        fiber.waiting = racing
                        for index, one in enumerate(node.flows):
                            self._branch(racing, index, one, OK, None)
                        return
                    case _:  # only reachable past the types
                        flow, kind, value = None, DEFECT, _not_a_flow(node, None)
            if kind != OK and self.trace is not None:
                self.trace.failing.append((value, self.position))
            if not frames:
                self._end(fiber, kind, value)
                return
            flow, kind, value = self._up(fiber, frames.pop(), kind, value)
            if flow is None and kind == 0:
                return

    def _up(self, fiber: Fiber, frame: _Frame, kind: int, value: Any) -> _Going:
        """One frame's answer to an exit: a flow to go on with, or an exit for the next frame; kind 0: the fiber waits."""
        frames = fiber.frames
        match frame:
            case _Do():
                if kind == OK:
                    return self._advance(fiber, frame, value)
                with suppress(Exception):  # a body that insists on living after its failure has nobody to tell
                    frame.body.close()
                self._leave(fiber, frame.saved)
            case _Then():
                if kind == OK:
                    return self._call(frame.fn, value)
            case _Catch():
                if kind == FAILED:
                    return self._call(frame.handler, value)
            case _Isolate():
                if kind == DEFECT and (fiber.mask or not fiber.unwinding):  # nothing takes a cancellation back
                    return None, FAILED, Died(value.where, value.message)
            case _Mask():
                return self._unmask(fiber, kind, value)
            case _Compensate():
                if kind == OK:
                    self._register(fiber, frame, value)
                return self._unmask(fiber, kind, value)
            case _Ensure():
                frames.append(_Ensured(kind, value))
                fiber.mask += 1
                return self._call(frame.finalizer, public(kind, value))
            case _Ensured():
                if kind != OK:
                    return self._cleaned(fiber, DEFECT, _of_undo("a finalizer", kind, value))
                return self._cleaned(fiber, frame.kind, frame.value)
            case _Saga():
                return self._settle(fiber, frame, kind, value)
            case _Rollback():
                return self._undone(fiber, frame, kind, value)
            case _Iterate():
                return self._turned(fiber, frame, kind, value)
            case _:
                pass  # branches: this is the outcome of the whole
        return None, kind, value

    def _advance(self, fiber: Fiber, frame: _Do, answer: Any) -> _Going:
        """Sends an answer into a body; its frame stays only while the body does."""
        try:
            bound = frame.body.send(answer)
        except StopIteration as stop:
            self._leave(fiber, frame.saved)
            return None, OK, stop.value
        except Exception as error:
            self._leave(fiber, frame.saved)
            return None, DEFECT, defect(error)
        fiber.frames.append(frame)
        if type(bound) is Bound:
            return bound.flow, OK, None
        return None, DEFECT, _bare_yield(frame.body, bound)

    def _call(self, fn: Any, *args: Any) -> _Going:
        try:
            made = fn(*args)
        except Exception as error:
            return None, DEFECT, defect(error)
        return (made, OK, None) if isinstance(made, Flow) else (None, DEFECT, _not_a_flow(made, fn))

    # Scopes and steps

    def _step(self, fiber: Fiber) -> str:
        step = f"{fiber.scope}.{fiber.counter}" if fiber.scope else str(fiber.counter)
        fiber.counter += 1
        return step

    def _enter(self, fiber: Fiber) -> tuple[str, int]:
        scope = self._step(fiber)
        saved = (fiber.scope, fiber.counter)
        fiber.scope, fiber.counter = scope, 0
        return saved

    def _leave(self, fiber: Fiber, saved: tuple[str, int] | None) -> None:
        if saved is not None:
            fiber.scope, fiber.counter = saved

    # Instructions

    def _open(self, fiber: Fiber, instruction: Instruction) -> None:
        step = self._step(fiber)
        fiber.waiting = step
        one = self.pending[step] = Pending(step, instruction, fiber, self.now)
        self.opened.append(one)

    def _changed(self, fiber: Fiber, marker: Changed) -> bool:
        """Never waits, so that no race hangs on it: new unless the journal passed here without a mark, and the same at each pass."""
        step = f"{fiber.scope}.changed:{marker.id}" if fiber.scope else f"changed:{marker.id}"
        new = fiber.changes.get(step)
        if new is None:
            known = step in self.markers
            new = fiber.changes[step] = known or not self.replaying
            if new and not known:
                self.marks.append(Marker(step, marker.id, self._where(fiber)))
        return new

    def _take(self, step: str) -> Pending:
        one = self.pending.pop(step, None)
        if one is None:
            raise MachineError(step, "is not open")
        return one

    def _ask(self, fiber: Fiber, what: str) -> Any:
        match what:
            case "now":
                return self.now
            case "execution":
                return self.execution
            case _:
                drawn = blake2b(f"{self.execution.id}/{self._step(fiber)}".encode(), digest_size=16).digest()
                return UUID(bytes=drawn, version=4) if what == "uuid" else (int.from_bytes(drawn[:8], "big") >> 11) * 2.0**-53

    # Branches

    def _branch(self, owner: _Branches, index: int, flow: Flow[Any, Any] | None, kind: int, value: Any) -> None:
        fiber = Fiber(owner.fiber, owner, index, f"{owner.base}.{index}")
        owner.live[index] = fiber
        self._queue.append((fiber, flow, kind, value))

    def _more(self, branches: _All) -> None:
        while branches.kind == 0 and (index := branches.next_index()) is not None:
            self._branch(branches, index, *self._call(branches.node.branch, index, branches.answers))

    def _end(self, fiber: Fiber, kind: int, value: Any) -> None:
        """A fiber has ended: tell who waits for it."""
        if fiber.cancel is not None and kind != OK and fiber.owner is not None:
            self.effects.append(CancelScope(fiber.scope))
        owner = fiber.owner
        if owner is None:
            self.exit = public(kind, value)
            return
        del owner.live[fiber.index]
        if isinstance(owner, _All) and kind == OK:
            owner.end(fiber.index, value)
            self._more(owner)
            if owner.ended == owner.node.count:
                owner.decide(OK, owner.node.gather(owner.answers))
        else:
            first = owner.kind == 0
            if first or kind == DEFECT:
                owner.decide(kind, value)
            if first:
                reason = "another branch won" if isinstance(owner, _Race) else "another branch failed"
                for other in list(owner.live.values()):
                    self._interrupt(other, reason)
        if not owner.live and owner.kind:
            self._go(owner.fiber, None, owner.kind, owner.value)

    def _interrupt(self, fiber: Fiber, reason: str) -> None:
        todo = [fiber]
        while todo:
            one = todo.pop()
            if one.cancel is None:
                one.cancel = reason
                if one.mask == 0:
                    todo += reversed(self._deliver(one, reason))

    def _deliver(self, fiber: Fiber, reason: str) -> list[Fiber]:
        """A cancellation reaches an unmasked fiber where it waits: gives the branches to go on with. One that is about to run finds it there."""
        waiting = fiber.waiting
        if isinstance(waiting, str):
            if not isinstance(self.pending[waiting].instruction, Start):  # a start is answered first: otherwise nobody would know the child
                del self.pending[waiting]
                self.closed.append(waiting)
                self._go(fiber, None, CANCELLED, Cancelled(reason))
        elif waiting is not None:
            if waiting.kind != DEFECT:
                waiting.kind, waiting.value = CANCELLED, Cancelled(reason)
            return list(waiting.live.values())
        return []

    def _unmask(self, fiber: Fiber, kind: int, value: Any) -> tuple[None, int, Any]:
        """A cancellation that came meanwhile takes the place of what the masked work gave."""
        fiber.mask -= 1
        if fiber.cancel is not None and fiber.mask == 0 and not fiber.unwinding:
            fiber.unwinding = True
            return None, CANCELLED, Cancelled(fiber.cancel)
        return None, kind, value

    def _cleaned(self, fiber: Fiber, kind: int, value: Any) -> tuple[None, int, Any]:
        """The same after a finalizer or undos: what went wrong there, or had gone wrong before, is not hidden."""
        cancelled = self._unmask(fiber, kind, value)
        return (None, kind, value) if kind == DEFECT else cancelled

    # Sagas

    def _begin_saga(self, fiber: Fiber) -> None:
        frame = _Saga(fiber)
        fiber.frames.append(frame)
        fiber.saga = frame

    def _register(self, fiber: Fiber, frame: _Compensate, value: Any) -> None:
        saga = fiber.saga
        if saga is not None:  # None in an undo: nothing undoes it
            saga.undos.append((frame.undo, value, frame.began))
            _pin(fiber.loop, saga.loop)

    def _settle(self, fiber: Fiber, frame: _Saga, kind: int, value: Any) -> _Going:
        fiber.saga = frame.outer
        if kind == OK:
            if frame.outer is not None and frame.undos:
                frame.outer.undos += frame.undos
                _pin(frame.loop, frame.outer.loop)
            return None, kind, value
        if not frame.undos:
            return None, kind, value
        base = self._step(fiber)
        rollback = _Rollback(kind, value, frame, base, (fiber.scope, fiber.counter))
        fiber.saga = None
        fiber.mask += 1
        return self._next_undo(fiber, rollback)

    def _next_undo(self, fiber: Fiber, rollback: _Rollback) -> _Going:
        undos = rollback.saga.undos
        if not undos:
            fiber.scope, fiber.counter = rollback.saved
            fiber.saga = rollback.saga.outer
            if rollback.failed:
                _pin(fiber.loop, None)  # it blocks the execution at its end: no checkpoint may forget it
                self.failed_undos += tuple(rollback.failed)
                cause = Defect(
                    "compensation", "undos failed: " + "; ".join(rollback.failed) + f" (rolling back after {public(rollback.kind, rollback.value)})"
                )
                return self._cleaned(fiber, DEFECT, cause)
            return self._cleaned(fiber, rollback.kind, rollback.value)
        undo, answer, rollback.began = undos.pop()
        fiber.scope, fiber.counter = f"{rollback.base}.{rollback.done}", 0
        rollback.done += 1
        fiber.frames.append(rollback)
        return self._call(undo, answer)

    def _undone(self, fiber: Fiber, rollback: _Rollback, kind: int, value: Any) -> _Going:
        if kind != OK:
            rollback.failed.append(f"{public(kind, value)}")
        if self.trace is not None:
            if kind == OK:
                self.trace.undone.append((rollback.began, rollback.value))
            else:
                self.trace.failed_undos.append(value)
        return self._next_undo(fiber, rollback)

    # Loops

    def _round(self, fiber: Fiber, loop: _Iterate) -> _Going:
        fiber.scope, fiber.counter = f"{loop.base}.{loop.round}", 0
        if fiber.changes:
            fiber.changes = {step: new for step, new in fiber.changes.items() if not step.startswith(f"{loop.base}.")}
        return self._call(loop.node.step, loop.state)

    def _turned(self, fiber: Fiber, loop: _Iterate, kind: int, value: Any) -> _Going:
        """A round has ended."""
        if kind == OK and isinstance(value, Next):
            fiber.frames.append(loop)
            if not loop.segment.ranges:  # nothing recorded since it began: nothing to save
                loop.round, loop.state = loop.round + 1, value.state
                return self._round(fiber, loop)
            asked = Checkpoint(loop.round + 1, value.state, loop.initial, loop.node.step)
            fiber.waiting = loop.base
            one = self.pending[loop.base] = Pending(loop.base, asked, fiber, self.now)
            self.opened.append(one)
            return None, 0, None
        self._close_loop(fiber, loop)
        fiber.scope, fiber.counter = loop.saved
        if kind == OK and not isinstance(value, Done):
            return None, DEFECT, Defect("iterate", f"a round gave {value!r}: return Next(state) or Done(answer)")
        return None, kind, value.value if kind == OK else value

    def _close_loop(self, fiber: Fiber, loop: _Iterate) -> None:
        kept = (loop.outer or self).segment
        if loop.begun is not None:
            kept.take(_single(loop.begun))
        kept.take(loop.segment)
        fiber.loop = loop.outer
        del self._loops[loop.base]

    def _drop_above(self, fiber: Fiber, loop: _Iterate) -> None:
        """Forgets the round that a loop is in: nothing of it runs, no undo, no finalizer."""
        self._forget(fiber)
        gone: list[_Frame] = []
        while fiber.frames[-1] is not loop:
            gone.append(fiber.frames.pop())
        while gone:
            frame = gone.pop()
            if isinstance(frame, _Do):
                with suppress(Exception):
                    frame.body.close()
            elif isinstance(frame, _Iterate):
                self._loops.pop(frame.base, None)
            elif isinstance(frame, _Branches):
                for child in frame.live.values():
                    self._forget(child)
                    gone += child.frames
        fiber.loop, fiber.saga, fiber.mask = loop, loop.saga, loop.mask

    def _forget(self, fiber: Fiber) -> None:
        if isinstance(fiber.waiting, str):
            self.pending.pop(fiber.waiting, None)
        fiber.waiting = None


def public(kind: int, value: Any) -> Exit[Any, Any]:
    """An exit as users see it."""
    match kind:
        case 1:
            return Success(value)
        case 2:
            return Failure(value)
        case _:
            return cast("Defect | Cancelled", value)


def defect(error: BaseException) -> Defect:
    """What was raised, and where: the innermost frame, message at most 4 KiB."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else "?"
    try:
        text = str(error)
    except Exception as worse:
        text = f"(its message cannot be read: {type(worse).__name__})"
    return Defect(where, f"{type(error).__name__}: {text}"[:4096])


def _of_undo(what: str, kind: int, value: Any) -> Defect:
    return Defect(what, f"ended with {public(kind, value)}")


def _not_a_flow(made: object, fn: Any) -> Defect:
    code = getattr(fn, "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno} in {code.co_name}" if code is not None else "a flow was expected"
    return Defect(where, f"it gave {made!r}"[:500] + ", which is no flow: return one, e.g. pure(value)")


def _no_body(fn: Any, got: object) -> Defect:
    code = getattr(fn, "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno} in {code.co_name}" if code is not None else "a body"
    return Defect(where, f"it gave {got!r}"[:500] + ": a body holds a `yield from`; without work to do, `return (yield from pure(value))`")


def _bare_yield(body: GeneratorType[Any, Any, Any], got: object) -> Defect:
    frame = body.gi_frame
    where = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame is not None else "a body"
    return Defect(where, f"a bare `yield {type(got).__name__}`: write `yield from`")


def _pin(inner: _Iterate | None, outer: _Iterate | None) -> None:
    """Rounds between an undo and the saga that holds it are kept for as long as it may run."""
    while inner is not outer and inner is not None:
        inner.pinned = True
        inner = inner.outer


def _single(position: int) -> Segment:
    one = Segment()
    one.add(position)
    return one
