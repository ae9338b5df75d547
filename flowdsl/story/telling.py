"""The long story of a run: line by line what happened, when, and why."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import singledispatchmethod
from typing import TYPE_CHECKING, Any, Final

from returns.result import Failure, Success

from flowdsl.codec import Undecodable, codec
from flowdsl.definition import Activity
from flowdsl.flow import Cancelled, Defect, Join, Perform, Receive, Report, Sleep
from flowdsl.journal import ATTEMPT, BUG, CANCEL, CHECKPOINT, FAILURE, INTENT, INTERRUPTED, OPERATOR, SUCCESS, Entry, Intervention, codecs_of, slept
from flowdsl.policy import shown
from flowdsl.story.happenings import Adopted, Arrived, Began, Called, Died, Dropped, Folded, Happening, Missed, Noted, Over, Recorded, Wished

if TYPE_CHECKING:
    from flowdsl.story.run import Run

WIDTH: Final = 100
"""Characters of a value that are shown."""
LINES: Final = 240
"""Lines of a story that are shown: of a longer one the beginning and the end."""

_SIGNS: Final[dict[str, str]] = {
    "taken": "arrives, and is waited for",
    "kept": "arrives while nobody waits for it: it is kept",
    "kept under its key": "arrives while nobody waits for that key: it is kept there",
    "again": "arrives again, with the same delivery: it acts once",
    "too late": "arrives when all is over: nobody will ever take it",
}
_ROLES: Final[dict[str, str]] = {"": "", "undo": "undo: ", "finalizer": "finally: "}


def told(run: Run) -> str:
    """The story of a run and its children, as a person reads it."""
    lines = list(_Teller(run).lines())
    if len(lines) > LINES:
        lines[LINES // 2 : -LINES // 2] = [f"        … {len(lines) - LINES} lines more …"]
    return "\n".join(lines)


def pause_after(entry: Entry) -> timedelta:
    """How long the next attempt waits after a failed one."""
    return datetime.fromisoformat(json.loads(entry.body)["due"]) - entry.at


class _Teller:
    """Goes through what happened, and remembers what explains the next line."""

    def __init__(self, run: Run) -> None:
        self.run, self.happenings = run, run.happenings()
        self.began = next((one.at for one in self.happenings if isinstance(one, Began)), None)
        self.names = dict(self._names())
        self.signals = {one.signal: one.declared for one in self.happenings if isinstance(one, Arrived) and one.declared is not None}
        self.wished: set[tuple[str, str]] = set()
        self.depths = {run.id: 0}
        self.taken: dict[tuple[str, str], deque[datetime]] = {}
        """When the signals came that were kept."""
        self.cut: set[tuple[str, str]] = set()
        """Steps whose last attempt came to nothing."""
        self.begun: dict[tuple[str, str], int] = {}
        """How many attempts of each step began."""
        self.dropped: dict[int, Called] = {}
        self.ends = dict(self._ends())
        self.calls = {(id(entry.body), entry.position): call for call, entry in self._answers()}

    def lines(self) -> Iterator[str]:
        for one in self.happenings:
            for position, text in self.tell(one):
                label = f"{self.names[one.id]}: " if self.depths.get(one.id) else ""
                yield f"{self.since(one.at):>9}  {position:<3} {'    ' * self.depths.get(one.id, 0)}{label}{text}"
        yield self.end()

    def end(self) -> str:
        run = self.run
        if run.status == "blocked":
            return f"It is blocked after {shown(run.elapsed)}, and needs a person: {run.cause}"
        if run.exit is not None:
            return f"It ended after {shown(run.elapsed)}: {exit_text(run.exit)}"
        return f"It has not ended. It waits for {', '.join(run.waits) or 'nothing'}; nothing more happened after {shown(run.elapsed)}."

    def since(self, at: datetime) -> str:
        return shown(at - (at if self.began is None else self.began))

    # What belongs together

    def _names(self) -> Iterator[tuple[str, str]]:
        """The executions, as lines name them: by their keys, else by number if there are several of a workflow."""
        begun = [one for one in self.happenings if isinstance(one, Began)]
        counts = Counter(one.workflow.name for one in begun)
        numbers: Counter[str] = Counter()
        for one in begun:
            name = one.workflow.name
            numbers[name] += 1
            which = one.execution.key if one.execution.key is not None else str(numbers[name])
            yield one.id, name.rpartition(".")[2] + (f" {which}" if counts[name] > 1 else "")

    def _ends(self) -> Iterator[tuple[int, Entry | Died | Dropped]]:
        """For each call the entry that tells its end, the death that lost it, or the moment from which on nobody waited for it."""
        open: dict[tuple[str, str], Called] = {}
        for one in self.happenings:
            if isinstance(one, Called):
                open[one.id, one.step] = one
            elif isinstance(one, Dropped):
                if (call := open.pop((one.id, one.what.step), None)) is not None:
                    self.dropped[id(one)] = call
                    yield id(call), one
            elif isinstance(one, (Recorded, Died)):
                for entry in one.entries:
                    call = open.get((one.id, entry.step))
                    if call is None or entry.kind in (INTENT, INTERRUPTED) or (isinstance(one, Died) and one.when == "after"):
                        continue
                    del open[one.id, entry.step]
                    yield id(call), one if isinstance(one, Died) else entry

    def _answers(self) -> Iterator[tuple[Called, Entry]]:
        for one in self.happenings:
            if isinstance(one, Called) and isinstance(end := self.ends.get(id(one)), Entry):
                yield one, end

    def called(self, entry: Entry) -> Called | None:
        return self.calls.get((id(entry.body), entry.position))

    # What each happening says: the position of its entry, and words

    @singledispatchmethod
    def tell(self, one: Happening) -> Iterator[tuple[str, str]]:
        raise AssertionError(one)

    @tell.register
    def _(self, one: Began) -> Iterator[tuple[str, str]]:
        workflow, parent = one.workflow, one.execution.parent
        self.depths.setdefault(one.id, self.depths.get(parent or "", -1) + 1)
        key = f", key {one.execution.key!r}" if one.execution.key is not None else ""
        yield (
            "",
            f"{'child ' if self.depths[one.id] else ''}{workflow.name} begins with {brief(codecs_of(workflow).request.decode(one.request))}{key}",
        )

    @tell.register
    def _(self, one: Adopted) -> Iterator[tuple[str, str]]:
        yield "", f"is there already, by its key: {self.names.get(one.parent, 'its parent')} joins it"

    @tell.register
    def _(self, one: Called) -> Iterator[tuple[str, str]]:
        end, takes = self.ends.get(id(one)), f", and takes {shown(one.took)}" if one.took else ""
        remark = f", {one.remark}" if one.remark else ""
        if isinstance(end, Entry) and not one.took:
            return  # the line of its entry tells all
        if one.took or isinstance(end, Dropped) or one.exit is None:
            yield "", f"{self.call(one)} begins{remark}{takes}"
        else:
            yield "", f"{self.call(one)} → {exit_text(one.exit)}{remark and f' ({one.remark})'}"

    def call(self, one: Called) -> str:
        """An attempt: what was asked, which attempt it is, and under which key."""
        again, place = "", (one.id, one.step)
        self.begun[place] = one.number
        if place in self.cut:
            again = f" [attempt {one.number}: the same step again, with the same key {short_key(one.key)}]"
        elif one.number > 1:
            again = f" [attempt {one.number}, the same key {short_key(one.key)}]"
        else:
            again = f" [key {short_key(one.key)}]"
        self.cut.discard(place)
        return f"{_ROLES[one.role]}{name_of(one.activity)}({brief(one.request)}){again}"

    @tell.register
    def _(self, one: Recorded) -> Iterator[tuple[str, str]]:
        for entry in one.entries:
            yield f"#{entry.position}", self.entry(one, entry)

    @tell.register
    def _(self, one: Dropped) -> Iterator[tuple[str, str]]:
        match one.what.instruction:
            case Perform() as perform:
                call, name = self.dropped.get(id(one)), name_of(perform.activity)
                if call is None:
                    yield "", f"{name} is given up before its {'next' if self.begun.get((one.id, one.what.step)) else 'first'} attempt"
                elif isinstance(call.exit, Success):
                    yield "", f"{name} is given up while it is under way: it acts all the same, and its answer, {exit_text(call.exit)}, is dropped"
                else:
                    yield "", f"{name} is given up while it is under way: nobody hears how it ends"
            case Receive() as receive:
                yield "", f"the wait for signal {receive.signal.name} is given up"
            case Join() as join:
                yield "", f"the wait for child {join.child.workflow} is given up"
            case Sleep():
                yield "", "a timer is given up"
            case _:
                pass

    @tell.register
    def _(self, one: Noted) -> Iterator[tuple[str, str]]:
        yield "", f"reports {note_text(one.note)}"

    @tell.register
    def _(self, one: Arrived) -> Iterator[tuple[str, str]]:
        to = f" for {one.to!r}" if one.to != one.id else ""
        if one.fate.startswith("kept"):
            self.taken.setdefault((one.id, one.signal), deque()).append(one.at)
        yield "", f"signal {one.signal}({self.payload(one.signal, one.payload)}){to} {_SIGNS[one.fate]}"

    def payload(self, signal: str, body: bytes) -> str:
        declared = self.signals.get(signal)
        try:
            return plain(body) if declared is None else brief(codec(declared.payload).decode(body))
        except Undecodable:
            return plain(body)

    @tell.register
    def _(self, one: Wished) -> Iterator[tuple[str, str]]:
        if (one.id, one.wish) not in self.wished:
            self.wished.add((one.id, one.wish))
            yield "", f"is asked to {one.wish}: {one.reason}"

    @tell.register
    def _(self, one: Died) -> Iterator[tuple[str, str]]:
        numbers, were = spanned(one.entries), "was" if len(one.entries) == 1 else "were"
        self.cut |= {place for place, call in self._under_way(one).items() if call is not None}
        if one.when == "after":
            yield "☠", f"the process dies here, just after {numbers} {were} recorded; all that it had in memory is gone"
            return
        lost = [call for call in self._under_way(one).values() if self.ends.get(id(call)) is one]
        acted = "".join(f"; {name_of(call.activity)} has acted, and its answer is lost" for call in lost)
        yield "☠", f"the process dies here, before this was recorded as {numbers}{acted}"

    def _under_way(self, death: Died) -> dict[tuple[str, str], Called]:
        """The attempts that were begun before a death, and have no entry before it."""
        found: dict[tuple[str, str], Called] = {}
        for one in self.happenings:
            if one is death:
                break
            if isinstance(one, Called):
                found[one.id, one.step] = one
            elif isinstance(one, Recorded):
                for entry in one.entries:
                    if entry.kind != INTENT:
                        found.pop((one.id, entry.step), None)
        return found

    @tell.register
    def _(self, one: Folded) -> Iterator[tuple[str, str]]:
        if not one.entries:
            yield "↻", "another process begins it anew: nothing of it was recorded"
            return
        yield "↻", f"another process takes it over, folds {one.entries} recorded {'entry' if one.entries == 1 else 'entries'}, and goes on from there"

    @tell.register
    def _(self, one: Over) -> Iterator[tuple[str, str]]:
        if one.id != self.run.id:
            yield "", f"is blocked: {one.cause}" if one.status == "blocked" else f"ends: {exit_text(one.exit)}"

    @tell.register
    def _(self, one: Missed) -> Iterator[tuple[str, str]]:
        yield "!", f"this was planned and never happened: {one.what}"

    # What each entry says

    def entry(self, one: Recorded, entry: Entry) -> str:
        kind, _, rest = entry.fingerprint.partition(" ")
        name = rest.partition(" ")[0].rpartition(".")[2]
        if entry.kind == CANCEL:
            return f"the cancellation is recorded: {json.loads(entry.body)}"
        if entry.kind == OPERATOR:
            return f"an operator's entry: {Intervention.of(entry).action}"
        if entry.kind == CHECKPOINT:
            return f"checkpoint: the loop goes round again with {plain(json.dumps(json.loads(entry.body)['state']).encode())}"
        match kind:
            case "perform":
                return self.performed(one, entry, name)
            case "sleep":
                return f"sleep {slept(rest)} is over"
            case "receive" | "take" if entry.kind == SUCCESS:
                return self.received(one, entry, kind, rest.partition(" ")[0])
            case "start":
                return f"starts a child: {rest.partition(' ')[0]}"
            case "join":
                return f"hears from its child {name}: {recorded_exit(entry)}"
            case "changed":
                return f"goes through the change {rest!r}"
            case _:
                return f"{kind} {name}".strip() + ("" if entry.kind == SUCCESS else f": {recorded_exit(entry)}")

    def performed(self, one: Recorded, entry: Entry, name: str) -> str:
        if entry.kind == INTENT:
            return f"{name} is about to be called, at most once"
        if entry.kind == INTERRUPTED:
            number, begun = json.loads(entry.body)["number"], self.begun.get((one.id, entry.step), 0)
            if begun < number:
                return f"{name}: attempt {number} had not begun, but the new process cannot know, and counts it as one"
            self.cut.add((one.id, entry.step))
            return f"{name}: attempt {number} was cut short; whether it has acted, nobody knows"
        call = self.called(entry)
        if call is None:
            return f"{name}: {recorded_exit(entry)}"  # it never began, or ended without an attempt
        who = f"{name_of(call.activity)}" if call.took else self.call(call)
        pause = f"; again after {shown(pause_after(entry))}" if entry.kind == ATTEMPT else ""
        gave = (
            exit_text(call.exit)
            if entry.kind != BUG or not isinstance(call.exit, Success)
            else f"{exit_text(call.exit)}, which is {recorded_exit(entry)}"
        )
        remark = f" ({call.remark})" if call.remark and not call.took else ""
        return f"{who} → {gave}{remark}{pause}"

    def received(self, one: Recorded, entry: Entry, kind: str, signal: str) -> str:
        if kind == "take" and entry.body == b"null":
            return f"looks for a signal {signal}: none has come"
        waiting = self.taken.get((one.id, signal)) or self.taken.get(("", signal))
        came = f", which came at {self.since(at)}" if waiting and (at := waiting.popleft()) != one.at else ""
        return f"takes the signal {signal}({self.payload(signal, entry.body)}){came}"


# Words for values


def exit_text(exit: Any) -> str:
    match exit:
        case Success(value):
            return f"Success({brief(value)})"
        case Failure(error):
            return f"Failure({brief(error)})"
        case Defect():
            return f"a defect: {exit.message} ({exit.where})"
        case Cancelled():
            return f"cancelled: {exit.reason}"
        case _:
            return brief(exit)


def brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def plain(body: bytes) -> str:
    """A recorded value as it stands in the journal."""
    text = body.decode(errors="replace")
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def recorded_exit(entry: Entry) -> str:
    what = {SUCCESS: "", FAILURE: "a failure, ", BUG: "a defect, "}.get(entry.kind, "")
    if entry.kind == BUG:
        facts = json.loads(entry.body)
        return f"a defect: {facts['message']} ({facts['where']})"
    return f"{what}{plain(entry.body)}"


def name_of(activity: Activity[Any, Any, Any]) -> str:
    """As it is called in code."""
    return str(getattr(activity.contract, "__name__", activity.name))


def short_key(key: str) -> str:
    id, _, step = key.partition("/")
    return f"…{id[-4:]}/{step}"


def spanned(entries: Sequence[Entry]) -> str:
    first, last = entries[0].position, entries[-1].position
    return f"#{first}" if first == last else f"#{first} to #{last}"


def note_text(note: Report) -> str:
    of = f" of {note.total}" if note.total is not None else ""
    return f"{note.note!r}" + (f" ({note.done}{of})" if note.done is not None else "")
