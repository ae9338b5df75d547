"""The journal: entries, the fold of entries through the machine, and what is said when they do not fit.

A fold knows types: it encodes what is recorded and decodes what was. A flow therefore sees the decoded value on its first run too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from difflib import SequenceMatcher
from functools import cache, partial
from inspect import getclosurevars, signature, unwrap
from os.path import basename
from types import CodeType
from typing import Any, Final, Union, assert_never, cast, get_args, get_origin, get_type_hints

from attrs import evolve, frozen
from returns.result import Failure, Success

from flowdsl.codec import Codec, NotJournalable, codec, digest, encode_plain, union_codec
from flowdsl.definition import Activity, Shape, Workflow
from flowdsl.errors import FlowError, MachineError
from flowdsl.flow import (
    Audit,
    CancelChild,
    Cancelled,
    Changed,
    Child,
    Defect,
    Execution,
    Existing,
    Exit,
    Flow,
    Instruction,
    Join,
    Perform,
    Receive,
    Report,
    Round,
    Send,
    Sleep,
    Start,
)
from flowdsl.machine import CANCELLED, DEFECT, FAILED, OK, Checkpoint, Machine, Marker, Pending, public
from flowdsl.policy import shown

SUCCESS: Final = OK
FAILURE: Final = FAILED
BUG: Final = DEFECT
ATTEMPT: Final = 4
INTERRUPTED: Final = 5
INTENT: Final = 6
CANCEL: Final = 7
CHECKPOINT: Final = 8
OPERATOR: Final = 9

KINDS: Final[Mapping[int, str]] = {
    SUCCESS: "success",
    FAILURE: "failure",
    BUG: "defect",
    ATTEMPT: "failed attempt",
    INTERRUPTED: "interrupted",
    INTENT: "intent",
    CANCEL: "cancel",
    CHECKPOINT: "checkpoint",
    OPERATOR: "operator",
}

NULL: Final = b"null"

_CHANGED: Final = "changed "


@frozen
class Entry:
    """One thing that happened. `fingerprint` says what was asked ("perform NAME DIGEST"), `site` where the code asked it."""

    position: int
    kind: int
    at: datetime
    step: str
    fingerprint: str
    site: str
    body: bytes
    live: tuple[tuple[int, int], ...] | None = None


@frozen
class Codecs:
    """How the request, the answer and the failures of a contract are written."""

    request: Codec[Any]
    answer: Codec[Any]
    failures: Codec[Any]


def _codecs(shape: Shape) -> Codecs:
    return Codecs(codec(shape.request), codec(shape.answer), union_codec(shape.failures))


@cache
def codecs_of(definition: Activity[Any, Any, Any] | Workflow[Any, Any, Any]) -> Codecs:
    """The codecs of an activity (its root) or a workflow; made once."""
    return _codecs(definition.shape)


_DEFECT = codec(Defect)
_CANCELLED = codec(Cancelled)
_TIME = codec(datetime)
_STATUSES = codec(dict[str, str])


def encode_exit(definition: Workflow[Any, Any, Any], exit: Exit[Any, Any]) -> bytes:
    """The exit of an execution as it is stored with it. Raises `NotJournalable`."""
    codecs = codecs_of(definition)
    match exit:
        case Success(value):
            return b'{"success":' + codecs.answer.encode(value) + b"}"
        case Failure(error):
            return b'{"failure":' + codecs.failures.encode(error) + b"}"
        case Defect():
            return b'{"defect":' + _DEFECT.encode(exit) + b"}"
        case Cancelled():
            return b'{"cancelled":' + _CANCELLED.encode(exit) + b"}"
        case _ as never:
            assert_never(never)


def decode_exit(definition: Workflow[Any, Any, Any], data: bytes) -> Exit[Any, Any]:
    """The exit of an execution, read back. Raises `Undecodable`."""
    kind, plain = next(iter(json.loads(data).items()))
    codecs = codecs_of(definition)
    match kind:
        case "success":
            return Success(codecs.answer.structure(plain))
        case "failure":
            return Failure(codecs.failures.structure(plain))
        case "defect":
            return _DEFECT.structure(plain)
        case _:
            return _CANCELLED.structure(plain)


class Divergence(FlowError):
    """The code asks for something else than what was recorded. Nothing was executed; the execution is blocked with this."""

    def __init__(
        self, execution: str, position: int, verdict: str, lines: Sequence[str], *, difference: str = "", step: str = "", place: str = ""
    ) -> None:
        self.execution, self.position, self.verdict, self.lines = execution, position, verdict, tuple(lines)
        self.difference, self.step, self.place = difference, step, place
        """In one word (inserted, removed, renamed, …), the step, and where the code asks it."""
        super().__init__(
            f"execution {execution} diverges at position {position}: {verdict}\n"
            + "\n".join(lines)
            + '\nNothing was executed. Deploy code that fits the record (or guard the new steps with `changed("id")`), then resume it.'
        )


@frozen
class Intervention:
    """What a person did to an execution, as the operator's entry holds it.

    The entry's `live` names what still stands. `restarted`: steps whose time begins anew. `fresh`: what is done from here on is done anew, under new
    idempotency keys. `seen_as`: of a fork, the execution whose record it goes on with, as its flow knows it.
    """

    action: str
    by: str
    reason: str
    restarted: tuple[str, ...] = ()
    fresh: bool = False
    seen_as: Execution | None = None

    def encode(self) -> bytes:
        return _INTERVENTION.encode(self)

    @classmethod
    def of(cls, entry: Entry) -> Intervention:
        return _INTERVENTION.decode(entry.body)


_INTERVENTION = codec(Intervention)


class Fold:
    """A machine, folding the journal of one execution. Raises `Divergence` when an entry does not fit."""

    __slots__ = (
        "_begun", "_definitions", "at", "id", "machine", "parental", "position", "renewed",
    )  # fmt: skip

    def __init__(self, execution: Execution, flow: Flow[Any, Any], definitions: Callable[[str], Workflow[Any, Any, Any]]) -> None:
        self.machine = Machine(execution, flow)
        self.id = execution.id
        self.position = 0
        self.renewed: int | None = None
        """The position of the last intervention that made steps new: they have other idempotency keys since."""
        self.parental = False
        """Whether it may have children: it started one, or not all of its record was folded."""
        self.at = execution.started_at
        self._definitions = definitions
        self._begun = False

    def begin(self) -> None:
        if not self._begun:
            self._begun = True
            self.machine.start()

    def replay(self, entries: Sequence[Entry]) -> None:
        """Folds what was recorded; what happens on the way was done long ago and is not told again."""
        machine = self.machine
        machine.markers = frozenset(entry.step for entry in entries if entry.fingerprint.startswith(_CHANGED))
        for entry in entries:
            if entry.kind == OPERATOR and (seen_as := Intervention.of(entry).seen_as) is not None:
                machine.execution = seen_as
        self.parental = any(entry.position != index or entry.fingerprint.startswith("start ") for index, entry in enumerate(entries))
        last = max((index for index, entry in enumerate(entries) if entry.kind != OPERATOR), default=-1)
        machine.replaying = last >= 0
        self.begin()
        for index, entry in enumerate(entries):
            machine.replaying = index < last
            try:
                self.check(entry)
                self.fold(entry)
            except (MachineError, Misfit):
                raise _divergence(entries, index, self) from None
            machine.effects.clear()
        machine.opened = list(machine.pending.values())
        machine.closed.clear()
        machine.replaying = False

    def record(self, step: str, kind: int, body: bytes, at: datetime, live: tuple[tuple[int, int], ...] | None = None) -> Entry:
        """Makes the next entry of an open step and folds it: from here on it is as if it had been read back."""
        one = self.machine.pending[step]
        entry = Entry(self.position, kind, max(at, self.at), step, self.fingerprint(one), self.site(one), body, live)
        self.fold(entry)
        return entry

    def record_cancel(self, reason: str, at: datetime) -> Entry:
        entry = Entry(self.position, CANCEL, max(at, self.at), "", "cancel", "", json.dumps(reason).encode())
        self.fold(entry)
        return entry

    def record_intervention(self, what: Intervention, at: datetime) -> Entry:
        entry = Entry(self.position, OPERATOR, max(at, self.at), "", "operator", "", what.encode())
        self.fold(entry)
        return entry

    def record_mark(self, marker: Marker, at: datetime) -> Entry:
        entry = Entry(self.position, SUCCESS, max(at, self.at), marker.step, f"changed {marker.id}", _site(marker.site), b"true")
        self.fold(entry)
        return entry

    def fold(self, entry: Entry) -> None:
        """Folds one entry. Raises `MachineError` if its step is not open, `Undecodable` if its body is not of the step's type."""
        machine, at = self.machine, entry.at
        kind = entry.kind
        if entry.fingerprint.startswith(_CHANGED):
            machine.mark(entry.step, position=entry.position, at=at)
        elif kind <= DEFECT:
            one = machine.pending.get(entry.step)
            if one is None:
                raise MachineError(entry.step, "is not open")
            value: Any
            try:
                value = self.decoded(one, kind, entry.body)
            except RecursionError:
                raise MachineError(entry.step, "was recorded with a value nested too deep") from None
            machine.resume(entry.step, kind, value, position=entry.position, at=at)
        elif kind == ATTEMPT:
            one = machine.note(entry.step, position=entry.position, at=at)
            facts = json.loads(entry.body)
            one.attempts, one.intended = facts["number"], False
            one.due = _TIME.structure(facts["due"])
        elif kind == INTERRUPTED:
            one = machine.note(entry.step, position=entry.position, at=at)
            one.attempts, one.due, one.intended = json.loads(entry.body)["number"], None, False
        elif kind == INTENT:
            machine.note(entry.step, position=entry.position, at=at).intended = True
        elif kind == CHECKPOINT:
            facts = json.loads(entry.body)
            state = self._state_codec(entry.step).structure(facts["state"])
            machine.checkpoint(entry.step, facts["round"], state, position=entry.position, at=at)
        elif kind == CANCEL:
            machine.cancel(json.loads(entry.body), position=entry.position, at=at)
        elif kind == OPERATOR:
            what = Intervention.of(entry)
            machine.operated(what.restarted, position=entry.position, at=at)
            if what.fresh:
                self.renewed = entry.position
            if what.action == "terminate":
                machine.terminate(f"terminated: {what.reason}")
        self.position, self.at = entry.position + 1, at

    # What a step's answer is made of

    def encode_answer(self, one: Pending, value: Any) -> bytes:
        """A step's answer as it is recorded. Raises `NotJournalable`, with the path of the bad value."""
        found = self._answers(one.instruction)
        return NULL if found is None else found.encode(value)

    def encode_failure(self, one: Pending, error: Any) -> bytes:
        return self._failures(one.instruction).encode(error)

    def encode_exit(self, one: Pending, exit: Exit[Any, Any]) -> tuple[int, bytes]:
        """An exit of a step, as it is recorded: kind and body. Raises `NotJournalable`."""
        match exit:
            case Success(value):
                return SUCCESS, self.encode_answer(one, value)
            case Failure(error):
                return FAILURE, self.encode_failure(one, error)
            case _:
                return BUG, defect_body(exit if isinstance(exit, Defect) else Defect(one.step, str(exit)))

    def encode_checkpoint(self, asked: Checkpoint) -> bytes:
        """A loop's next round and its state. Raises `NotJournalable`."""
        return b'{"round":%d,"state":%s}' % (asked.round, state_codec(asked.step, asked.initial).encode(asked.state))

    def decoded(self, one: Pending, kind: int, body: bytes) -> Any:
        """A recorded exit of a step as the flow sees it. Raises `Undecodable` when it is not of the step's type."""
        if kind == OK:
            found = self._answers(one.instruction)
            if isinstance(one.instruction, Start):
                return Child[Any, Any](json.loads(body), one.instruction.workflow.name)
            return None if found is None else found.decode(body)
        return self._failures(one.instruction).decode(body) if kind == FAILED else _DEFECT.decode(body)

    def _answers(self, instruction: Instruction | Checkpoint) -> Codec[Any] | None:
        match instruction:
            case Perform():
                return codecs_of(instruction.activity.root).answer
            case Receive():
                payload: Any = instruction.signal.payload
                if not instruction.wait:
                    payload = Union[payload, None]  # noqa: UP007 (the payload may be None itself, which has no `|`)
                return codec(payload)
            case Join():
                return codecs_of(self._definitions(instruction.child.workflow)).answer
            case Existing():
                return _STATUSES
            case Start():
                return _STR
            case _:
                return None

    def _failures(self, instruction: Instruction | Checkpoint) -> Codec[Any]:
        match instruction:
            case Perform():
                return codecs_of(instruction.activity.root).failures
            case Join():
                return codecs_of(self._definitions(instruction.child.workflow)).failures
            case _:
                raise MachineError("", f"{type(instruction).__name__} cannot fail")

    def _state_codec(self, step: str) -> Codec[Any]:
        loop = self.machine.loop(step)
        return state_codec(loop.node.step, loop.initial)

    # Fingerprints

    def fingerprint(self, one: Pending) -> str:
        """Kind, name and digest of what is asked: equal if and only if the same thing is asked. Computed once per step."""
        if one.fingerprint is None:
            try:
                one.fingerprint = self._fingerprint(one)
            except NotJournalable:  # refused when the step is answered; until then it only has to be the same each time
                one.fingerprint = f"{type(one.instruction).__name__.lower()} unwritable"
        return one.fingerprint

    def request(self, one: Pending) -> bytes:
        """The encoded input of an activity or a child. Raises `NotJournalable`."""
        if one.request is None:
            instruction = cast("Perform[Any, Any] | Start[Any]", one.instruction)
            definition = instruction.activity.root if isinstance(instruction, Perform) else instruction.workflow
            one.request = codecs_of(definition).request.encode(instruction.request)
        return one.request

    def _fingerprint(self, one: Pending) -> str:
        instruction = one.instruction
        match instruction:
            case Perform():
                return f"perform {instruction.activity.name} {digest(self.request(one))}"
            case Sleep():
                return f"sleep {_when(instruction.until)}"
            case Receive():
                return f"{'receive' if instruction.wait else 'take'} {instruction.signal.name} {digest((instruction.key or '').encode())}"
            case Send():
                payload = codec(instruction.signal.payload).encode(instruction.payload)
                return f"send {instruction.signal.name} {digest(instruction.to.encode() + b'/' + payload)}"
            case Start():
                return f"start {instruction.workflow.name} {digest(self.request(one))}"
            case Join():
                return f"join {instruction.child.workflow} {digest(instruction.child.id.encode())}"
            case CancelChild():
                return f"cancel-child {instruction.child.workflow} {digest(instruction.child.id.encode())}"
            case Existing():
                return f"existing {instruction.workflow.name} {digest(json.dumps(instruction.keys).encode())}"
            case Audit():
                return f"audit {instruction.event} {digest(encode_plain(instruction.facts))}"
            case Checkpoint():
                return "iterate"
            case Report() | Changed():
                return type(instruction).__name__.lower()  # never open
            case _ as never:
                assert_never(never)

    def site(self, one: Pending) -> str:
        """Where the code asked it: function and line, without the folder."""
        return _site(self.machine.where(one))

    def key(self, step: str) -> str:
        """The idempotency key of a step: the same on every retry and replay; another one after an intervention that does it anew."""
        return f"{self.id}/{step}" if self.renewed is None else f"{self.id}/{step}@{self.renewed}"

    def check(self, entry: Entry) -> None:
        """Raises `Misfit` if the entry answers something else than what is asked."""
        if entry.kind in (CANCEL, CHECKPOINT, OPERATOR) or entry.fingerprint.startswith(_CHANGED):
            return
        one = self.machine.pending.get(entry.step)
        if one is None or self.fingerprint(one) != entry.fingerprint:
            raise Misfit


class Misfit(Exception):
    """An entry that answers something else than what is asked."""


_STR = codec(str)


@cache  # as many as the code has places
def _site(where: tuple[str, int, str]) -> str:
    file, line, function = where
    return f"{function.rpartition('<locals>.')[2]} {basename(file)}:{line}" if line else ""


def _when(until: timedelta | datetime) -> str:
    return f"{until // timedelta(microseconds=1)}us" if isinstance(until, timedelta) else until.isoformat()


def state_codec(step: Callable[[Any], Any], initial: Any) -> Codec[Any]:
    """How a loop's state is written: by the annotation of its step function, else by the class of its first state."""
    taken = unwrap(step)
    bound = len(taken.args) if isinstance(taken, partial) else 0
    function = taken.func if isinstance(taken, partial) else taken if hasattr(taken, "__code__") else type(taken).__call__
    key = (getattr(function, "__code__", None), bound, type(initial))
    if key not in _state_codecs:
        _state_codecs[key] = codec(_state_type(taken, function, type(initial)))
    return _state_codecs[key]


_state_codecs: dict[tuple[CodeType | None, int, type], Codec[Any]] = {}  # by code: a step function is often made anew by each execution


def _state_type(step: Callable[[Any], Any], function: Callable[..., Any], default: type) -> Any:
    try:
        closure = getclosurevars(function).nonlocals if getattr(function, "__closure__", None) else {}
        hints = get_type_hints(function, localns=dict(closure))
        state = next(iter(signature(step).parameters), "")
    except (NameError, TypeError, ValueError):
        return default
    if state in hints:
        return hints[state]
    found = get_args(hints.get("return"))
    return get_args(found[0])[0] if found and get_origin(found[0]) is Round else default


def attempt_body(number: int, due: datetime, kind: int, body: bytes) -> bytes:
    """A failed attempt: its number, when the next one is due, and how it ended."""
    how = "failure" if kind == FAILED else "defect"
    return b'{"number":%d,"due":%s,"%s":%s}' % (number, _TIME.encode(due), how.encode(), body)


def defect_body(cause: Defect) -> bytes:
    return _DEFECT.encode(cause)


# When they do not fit

AHEAD: Final = 8
"""How many steps from the first that does not fit are compared."""


@frozen
class _Asked:
    step: str
    fingerprint: str
    site: str
    place: str


@frozen
class _Row:
    """One line of the comparison; its verdict is empty where both sides agree."""

    mark: str
    recorded: Entry | None
    asked: _Asked | None
    verdict: str = ""


def _divergence(entries: Sequence[Entry], index: int, fold: Fold) -> Divergence:
    """What differs, in words, and recorded and asked side by side, aligned like a diff: three entries that fit, then those that do not.

    Spends the fold.
    """
    exits = [entry for entry in entries[index + 1 :] if entry.kind <= DEFECT or entry.kind == CHECKPOINT]
    recorded = [entries[index], *exits][:AHEAD]
    end = fold.machine.exit
    asked = _asked_next(recorded, fold)
    rows = list(_aligned(recorded, asked, ended=fold.machine.exit is not None))
    wrong = next((row for row in rows if row.verdict), rows[0])
    fitting = [entry for entry in entries[:index] if not entry.fingerprint.startswith(_CHANGED) and entry.kind not in (CANCEL, OPERATOR)]
    lines = _table(fitting[-3:], rows)
    if end is not None:
        lines.append(f"  + the end: {end}")
    if wrong.asked is not None and wrong.asked.place:
        lines.append(f"    asked at {wrong.asked.place}")
    place = wrong.asked.site if wrong.asked is not None else wrong.recorded.site if wrong.recorded is not None else ""
    step = wrong.recorded.step if wrong.recorded is not None else wrong.asked.step if wrong.asked is not None else ""
    words = _in_words(wrong, ended=end is not None)
    return Divergence(fold.id, entries[index].position, words, lines, difference=wrong.verdict, step=step, place=place)


def _asked_next(recorded: Sequence[Entry], fold: Fold) -> list[_Asked]:
    """What the code asks from here on, given what was recorded for the like of it, as far as that goes."""
    asked: list[_Asked] = []
    seen: list[Pending] = []
    left = list(recorded)
    while len(asked) < AHEAD:
        one = next((one for one in fold.machine.pending.values() if one not in seen), None)
        if one is None:
            break
        seen.append(one)
        fingerprint, (file, line, function) = fold.fingerprint(one), fold.machine.where(one)
        asked.append(_Asked(one.step, fingerprint, fold.site(one), f"{file}:{line} in {function}" if line else ""))
        like = next((entry for entry in left if entry.fingerprint == fingerprint), None)
        like = like or next((entry for entry in left if _like(entry.fingerprint) == _like(fingerprint)), None)
        if like is not None:
            left.remove(like)
        for entry in [like] if like is not None else left:
            with suppress(Exception):  # an answer of another type, or code that cannot go on from it
                fold.fold(evolve(entry, step=one.step, position=fold.position))
                break
    return asked


def _aligned(recorded: Sequence[Entry], asked: Sequence[_Asked], *, ended: bool) -> Iterator[_Row]:
    names, wanted = [_like(entry.fingerprint) for entry in recorded], [_like(one.fingerprint) for one in asked]
    agree = True
    codes = SequenceMatcher(None, names, wanted, autojunk=False).get_opcodes()
    removed = {name for what, i, i2, _, _ in codes if what != "equal" for name in names[i:i2]}  # without a counterpart in its place
    added = {name for what, _, _, j, j2 in codes if what != "equal" for name in wanted[j:j2]}
    for what, i, i2, j, j2 in codes:
        gone, new = list(recorded[i:i2]), list(asked[j:j2])
        if what == "equal":
            pairs = list(zip(gone, new, strict=True))
        else:  # what has its like elsewhere was moved, the rest stands for each other
            pairs = list(
                zip([e for e in gone if _like(e.fingerprint) not in added], [o for o in new if _like(o.fingerprint) not in removed], strict=False)
            )
        for entry, one in pairs:
            verdict = _difference(entry, one, agree) if what == "equal" else _replaced(entry, one)
            agree = agree and not verdict
            yield _Row("~" if verdict else "=", entry, one, verdict)
            gone.remove(entry)
            new.remove(one)
        for entry in gone:
            moved = _like(entry.fingerprint) in added
            if moved or i2 < len(recorded) or ended or agree:
                yield _Row("-", entry, None, "moved" if moved else "removed")
            else:
                yield _Row(" ", entry, None)  # the code could not be followed this far
        if i2 < len(recorded) or agree:
            yield from (_Row("+", None, one, "moved" if _like(one.fingerprint) in removed else "inserted") for one in new)
        agree = agree and what == "equal"


def _difference(entry: Entry, one: _Asked, agree: bool) -> str:
    """Of two that have the same name: once something differs, other inputs are no wonder."""
    if _name(entry.fingerprint) != _name(one.fingerprint):
        return "replaced"
    if agree and entry.fingerprint != one.fingerprint:
        return "other input"
    return "moved" if agree and entry.step != one.step else ""


def _replaced(entry: Entry, one: _Asked) -> str:
    recorded, asked = entry.fingerprint.split(" "), one.fingerprint.split(" ")
    same_input = len(recorded) == len(asked) == 3 and recorded[2] == asked[2]
    return "renamed" if recorded[0] == asked[0] and same_input else "replaced"


def _in_words(row: _Row, *, ended: bool) -> str:
    """The first difference, as a sentence."""
    recorded = f"{_name(row.recorded.fingerprint)} (step {row.recorded.step})" if row.recorded is not None else ""
    asked = f"{_name(row.asked.fingerprint)} (step {row.asked.step})" if row.asked is not None else ""
    match row.verdict:
        case "other input":
            return f"{recorded} was recorded with another input than the code gives it now"
        case "renamed" | "replaced":
            return f"{recorded} was recorded, the code asks {asked} instead"
        case "moved" if recorded and asked:
            return f"{recorded} was moved: it is step {row.asked.step if row.asked else ''} now"
        case "moved":
            return f"{recorded or asked} was moved"
        case "inserted":
            return f"{asked} is new: the record has something else there"
        case "removed":
            return f"{recorded} was recorded, the code {'ends before it' if ended else 'no longer asks it'}"
        case _:
            return "the code asks for something else than what was recorded"


def _table(fitting: Sequence[Entry], rows: Sequence[_Row]) -> list[str]:
    both = [*(_Row("=", entry, _Asked(entry.step, entry.fingerprint, entry.site, "")) for entry in fitting), *rows]
    left, right = _column("recorded", [row.recorded for row in both]), _column("asked by the code", [row.asked for row in both])
    marks, verdicts = [" ", *(row.mark for row in both)], ["", *(row.verdict for row in both)]
    return [f"  {mark} {one} | {other}  {verdict}".rstrip() for mark, one, other, verdict in zip(marks, left, right, verdicts, strict=True)]


def _column(head: str, cells: Sequence[Entry | _Asked | None]) -> list[str]:
    steps, names = [one.step if one else "" for one in cells], [_name(one.fingerprint) if one else "" for one in cells]
    wide = [max(map(len, column), default=0) for column in (steps, names)]
    lines = [f"{step:<{wide[0]}}  {name:<{wide[1]}}  {one.site if one else ''}" for step, name, one in zip(steps, names, cells, strict=True)]
    width = max(map(len, (head, *lines)))
    return [f"{line:<{width}}" for line in (head, *lines)]


def _like(fingerprint: str) -> str:
    """What is compared: kind and name, without the input."""
    kind, _, rest = fingerprint.partition(" ")
    return kind if kind == "sleep" else f"{kind} {rest.partition(' ')[0]}".rstrip()


def _name(fingerprint: str) -> str:
    """What is shown: the same, with how long a sleep is."""
    kind, _, rest = fingerprint.partition(" ")
    return f"sleep {slept(rest)}" if kind == "sleep" else _like(fingerprint)


def slept(until: str) -> str:
    """How long, or until when, from a sleep's fingerprint."""
    return shown(timedelta(microseconds=int(until[:-2]))) if until.endswith("us") else f"until {until}"


__all__ = [
    "ATTEMPT", "BUG", "CANCEL", "CANCELLED", "CHECKPOINT", "FAILURE", "INTENT", "INTERRUPTED", "KINDS", "NULL", "OPERATOR", "SUCCESS",
    "Codecs", "Divergence", "Entry", "Fold", "Intervention", "Misfit", "attempt_body", "codecs_of", "decode_exit", "defect_body", "encode_exit",
    "public", "slept", "state_codec",
]  # fmt: skip
