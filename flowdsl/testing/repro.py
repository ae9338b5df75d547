"""A recorded execution as a pytest file of its own: what `flowdsl repro` writes, and what such a file uses."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from pprint import pformat
from typing import Any

from attrs import define, evolve, field
from returns.result import Failure, Success

from flowdsl.activation import live_entries
from flowdsl.codec import codec
from flowdsl.compat import Fit
from flowdsl.definition import Activity, Workflow
from flowdsl.errors import FlowError, NotFound
from flowdsl.flow import Cancelled, Defect, Exit, Perform, Receive, Signal, TimedOut
from flowdsl.journal import ATTEMPT, BUG, CANCEL, FAILURE, INTENT, INTERRUPTED, OPERATOR, SUCCESS, Entry, codecs_of, decode_exit
from flowdsl.operating import Definitions
from flowdsl.policy import Duration, duration, shown
from flowdsl.story import Run
from flowdsl.testing.fake import Fake
from flowdsl.testing.golden import Recorded, compared, definitions_of, golden, read
from flowdsl.testing.spelling import NoSpelling, Spelling

# What a written test uses


class NotRecorded(FlowError):
    """The code asks for more than the record holds."""

    def __init__(self, request: object) -> None:
        super().__init__(f"asked with {request!r}, and the record has nothing for that: say what it gives, (request, exit)")


async def never(request: object) -> Any:
    """An answer that does not come: the record has none, or it came too late."""
    await asyncio.sleep(10 * 365 * 86_400)


def answers(*recorded: tuple[Any, Any] | tuple[Any, Any, Duration]) -> Callable[[Any], Any]:
    """Recorded exits by their requests, for `fake.on`: `(request, exit)`, or `(request, exit, "3s")` with how long it took.

    A request that was not recorded gets the next one that is left.
    """
    left = list(recorded)

    async def given(request: Any) -> Any:
        chosen = next((one for one in left if one[0] == request), left[0] if left else None)
        if chosen is None:
            raise NotRecorded(request)
        left.remove(chosen)
        if len(chosen) == 3:
            await asyncio.sleep(duration(chosen[2]).total_seconds())
        if isinstance(chosen[1], BaseException):
            raise chosen[1]
        return await chosen[1](request) if chosen[1] is never else chosen[1]

    return given


def fake_at(began: str) -> Fake:
    """A fake whose clock begins at that time."""
    fake = Fake()
    fake._memory.now = datetime.fromisoformat(began)
    return fake


def fits(journal: str, *workflows: Workflow[Any, Any, Any]) -> Fit:
    """What these workflows make of a recorded journal."""
    return compared(read(journal)[0], definitions_of(*workflows))


class CannotRedact(FlowError):
    """A record that the code does not fit is shown as it is, digests of its values included."""

    def __init__(self, execution: str) -> None:
        self.execution = execution
        super().__init__(f"the code does not fit execution {execution}, and its record cannot be shown with other values: leave --redact out")


# What is read from a record


@define
class _Call:
    """One step that asked an activity: how its attempts ended, and how long each took."""

    activity: Activity[Any, Any, Any]
    request: Any
    began: datetime
    ended: list[tuple[Any, timedelta]] = field(factory=list[tuple[Any, timedelta]])
    lost: int | None = None
    """Which of its attempts a crash had cut short."""
    over: bool = False


@define
class _Seen:
    calls: list[_Call] = field(factory=list[_Call])
    signals: list[tuple[Signal[Any], Any, timedelta, str | None]] = field(factory=list[tuple[Signal[Any], Any, timedelta, str | None]])
    cancels: list[tuple[timedelta, str]] = field(factory=list[tuple[timedelta, str]])
    timed: bool = False
    """Whether how long things took may have decided something."""
    remarks: list[str] = field(factory=list[str])


def _gather(one: Recorded, definitions: Definitions, seen: _Seen, *, root: bool) -> None:
    """Folds a record, and keeps what came from outside. Not checked: the values may be other ones than those recorded."""
    entries = live_entries(one.journal)
    fold = one.subject(definitions).fold()
    machine, calls = fold.machine, dict[str, _Call]()
    machine.markers = frozenset(entry.step for entry in entries if entry.fingerprint.startswith("changed "))
    machine.replaying = bool(entries)
    fold.begin()

    def opened() -> None:
        for step, pending in machine.pending.items():
            if isinstance(pending.instruction, Perform) and step not in calls:
                calls[step] = _Call(pending.instruction.activity.root, pending.instruction.request, pending.opened)

    opened()
    for index, entry in enumerate(entries):
        pending = machine.pending.get(entry.step)
        instruction = pending.instruction if pending is not None else None
        machine.replaying = index < len(entries) - 1
        since = entry.at - one.execution.started_at
        if pending is not None and isinstance(instruction, Perform):
            _attempted(calls[entry.step], entry, partial(fold.decoded, pending))
        elif isinstance(instruction, Receive) and entry.kind == SUCCESS and (instruction.wait or entry.body != b"null"):
            if root:
                seen.signals.append((instruction.signal, codec(instruction.signal.payload).decode(entry.body), since, instruction.key))
            else:
                seen.remarks.append(f"a child took the signal {instruction.signal.name}: send it with to=, if it has a key")
        elif entry.kind == CANCEL and root:
            seen.cancels.append((since, json.loads(entry.body)))
        elif entry.kind == OPERATOR:
            seen.remarks.append("a person has intervened in it: that is not done again here")
        seen.timed |= entry.kind == CANCEL or entry.fingerprint.startswith(("sleep ", "receive ", "take "))
        fold.fold(entry)
        opened()
    seen.calls += calls.values()


def _attempted(call: _Call, entry: Entry, decoded: Callable[[int, bytes], Any]) -> None:
    took = entry.at - call.began
    if entry.kind == INTERRUPTED:
        call.lost = len(call.ended) if call.lost is None else call.lost
        call.began = entry.at
    elif entry.kind == ATTEMPT:
        facts = json.loads(entry.body)
        kind = FAILURE if "failure" in facts else BUG
        body = json.dumps(facts["failure" if kind == FAILURE else "defect"]).encode()
        call.ended.append((_ending(kind, decoded(kind, body)), took))
        call.began = datetime.fromisoformat(facts["due"])
    elif entry.kind != INTENT:
        call.ended.append((_ending(entry.kind, decoded(entry.kind, entry.body)), took))
        call.over = True


def _ending(kind: int, value: Any) -> Any:
    if kind == SUCCESS:
        return Success(value)
    if kind == FAILURE:
        return never if isinstance(value, TimedOut) else Failure(value)
    assert isinstance(value, Defect)
    return never if value.message.startswith("timed out ") else RuntimeError(value.message)


# What is written


def repro(executions: Sequence[Recorded], definitions: Definitions, *, redact: bool = False) -> str:
    """The test file for the first of these; the others are its children. Raises `NotFound` for a workflow that the code has no more."""
    verdict = compared(executions[0], definitions)
    if verdict.verdict in ("breaks", "needs a marker"):
        if redact:
            raise CannotRedact(executions[0].execution.id)
        return _of_divergence(executions[0], executions, definitions, Spelling(), verdict)
    text = _rendered(executions, definitions)
    if redact:
        text = _redacted(executions, definitions, text)
    return text


def _rendered(executions: Sequence[Recorded], definitions: Definitions) -> str:
    one = executions[0]
    workflow = definitions(one.execution.workflow)
    spelling = Spelling()
    seen = _Seen()
    for recorded in executions:
        if recorded is not one and not _known(recorded, definitions):
            seen.remarks.append(f"its child {recorded.execution.workflow} is not in the code any more")
            continue
        _gather(recorded, definitions, seen, root=recorded is one)
    hints = (workflow.body.__module__,)
    request = codecs_of(workflow).request.decode(one.request)
    form = _Form(spelling, hints)
    lines = [f"    fake = fake_at({one.execution.started_at.isoformat()!r})"]
    spelling.use("flowdsl.testing.repro", "fake_at", fake_at)
    lines += [f"    {line}" for line in form.script(seen)]
    key = f", key={one.execution.key!r}" if one.execution.key is not None else ""
    run = f"    return fake.run({form.name(workflow)}, {form.request(workflow, request)}{key})"
    asserted = list(form.asserted(one, workflow))
    name = re.sub(r"\W+", "_", one.execution.workflow).strip("_")
    spelling.use("flowdsl.testing", "Run", Run)
    parts = [
        _head(one, seen.remarks),
        "\n".join(spelling.lines()),
        "",
        "",
        f"def run_{name}() -> Run:",
        *lines,
        run,
        "",
        "",
        f"def test_{name}() -> None:",
        f"    run = run_{name}()",
        *(f"    {line}" for line in asserted),
    ]
    return "\n".join(parts) + "\n"


def _known(one: Recorded, definitions: Definitions) -> bool:
    try:
        definitions(one.execution.workflow)
    except NotFound:
        return False
    return True


def _head(one: Recorded, remarks: Sequence[str]) -> str:
    facts = f"execution {one.execution.id} of {one.execution.workflow}, version {one.version}, started {one.execution.started_at.isoformat()}"
    more = "".join(f"- {remark}\n" for remark in dict.fromkeys(remarks))
    return f'"""What happened to {facts}: {one.status}.\n\nEdit it: change what activities give, and say what should have come out.\n{more}"""\n'


def _of_divergence(one: Recorded, executions: Sequence[Recorded], definitions: Definitions, spelling: Spelling, verdict: Fit) -> str:
    names: list[str] = []
    for workflow in dict.fromkeys(definitions(each.execution.workflow) for each in executions if _known(each, definitions)):
        names.append(spelling.named(workflow, (workflow.body.__module__,)))
    spelling.use("flowdsl.testing.repro", "fits", fits)
    name = re.sub(r"\W+", "_", one.execution.workflow).strip("_")
    remarks = [f"today the code does not fit it: {verdict.why}"]
    if '"""' in golden(one) or "\\" in golden(one):
        journal = repr(golden(one))
    else:
        journal = f'"""\n{golden(one)}"""'
    said = [f"    # {line}".rstrip() for line in verdict.lines]
    test = [f"def test_{name}_fits() -> None:", *said, f"    verdict = fits(JOURNAL, {', '.join(names)})"]
    test.append('    assert verdict.verdict == "fits", "\\n".join([verdict.why, *verdict.lines])')
    return "\n".join([_head(one, remarks), *spelling.lines(), "", f"JOURNAL = {journal}", "", "", *test]) + "\n"


@define
class _Form:
    """The lines of a test."""

    spelling: Spelling
    hints: tuple[str, ...]

    def name(self, thing: Activity[Any, Any, Any] | Workflow[Any, Any, Any]) -> str:
        function = thing.contract if isinstance(thing, Activity) else thing.body
        try:
            return self.spelling.named(thing, (function.__module__, *self.hints))
        except NoSpelling:
            raise NotFound("module that holds", thing.name) from None

    def request(self, definition: Any, value: Any) -> str:
        return self.spelling.value(value, codecs_of(definition).request, self._codec(definition, "request"))

    def _codec(self, definition: Any, part: str) -> str:
        from flowdsl.journal import codecs_of

        self.spelling.use("flowdsl.journal", "codecs_of", codecs_of)
        return f"codecs_of({self.name(definition)}).{part}"

    def exit(self, definition: Any, ending: Any) -> str:
        if ending is never:
            return self.spelling.use("flowdsl.testing.repro", "never", never)
        if isinstance(ending, BaseException):
            return f"RuntimeError({str(ending)!r})"
        kind = Success if isinstance(ending, Success) else Failure
        self.spelling.use("flowdsl", kind.__name__, kind)
        codecs = codecs_of(definition)
        if isinstance(ending, Success):
            return f"Success({self.spelling.value(ending.unwrap(), codecs.answer, self._codec(definition, 'answer'))})"
        return f"Failure({self.spelling.value(ending.failure(), codecs.failures, self._codec(definition, 'failures'))})"

    def script(self, seen: _Seen) -> Iterator[str]:
        timed = seen.timed or any(not call.over for call in seen.calls) or any(end is never for call in seen.calls for end, _ in call.ended)
        by_activity: dict[str, list[_Call]] = {}
        for call in seen.calls:
            by_activity.setdefault(call.activity.name, []).append(call)
        for calls in by_activity.values():
            yield self._on(calls, timed)
        for calls in by_activity.values():
            if calls[0].lost == 0:
                yield f"fake.crash(before={self.name(calls[0].activity)})"
            if any(call.lost is not None for call in calls[1:]) or calls[0].lost not in (0, None):
                seen.remarks.append(f"another attempt of {calls[0].activity.name} was cut short by a crash: that is not done again here")
        for signal, payload, at, key in seen.signals:
            name = self.spelling.named(signal, self.hints)
            form = f"codec({name}.payload)"
            text = self.spelling.value(payload, codec(signal.payload), form)
            if text.startswith(form):
                self.spelling.use("flowdsl.codec", "codec", codec)
            yield f"fake.signal({name}, {text}, at={self._span(at)}{'' if key is None else f', to={key!r}'})"
        for at, reason in seen.cancels:
            yield f"fake.cancel(at={self._span(at)}, reason={reason!r})"

    def _on(self, calls: Sequence[_Call], timed: bool) -> str:
        activity = calls[0].activity
        rows: list[tuple[str, str, str]] = []
        for call in calls:
            ended = [*call.ended] if call.over else [*call.ended, (never, timedelta())]
            if call is calls[0] and call.lost == 0:
                ended.insert(0, ended[0])  # the attempt whose answer was lost
            for ending, took in ended:
                span = self._span(took) if timed and ending is not never and took >= timedelta(milliseconds=1) else ""
                rows.append((self.request(activity, call.request), self.exit(activity, ending), span))
        name = self.name(activity)
        if len(calls) == 1 and not any(span for _, _, span in rows):
            return f"fake.on({name}, {', '.join(exit for _, exit, _ in rows)})"
        self.spelling.use("flowdsl.testing.repro", "answers", answers)
        told = "".join(f"\n            ({', '.join(part for part in row if part)})," for row in rows)
        return f"fake.on(\n        {name},\n        answers({told}\n        ),\n    )"

    def _span(self, span: timedelta) -> str:
        if span % timedelta(milliseconds=1):
            self.spelling.use("datetime", "timedelta", timedelta)
            return repr(span).removeprefix("datetime.")
        return repr(shown(span))

    def asserted(self, one: Recorded, workflow: Workflow[Any, Any, Any]) -> Iterator[str]:
        exit: Exit[Any, Any] | None = decode_exit(workflow, one.exit) if one.exit is not None else None
        match exit:
            case None:
                yield f"# It was {one.status}{f': {one.cause}' if one.cause else ''}. Say what it should have come to."
                yield "assert run.exit is None, run"
            case Defect():
                yield f"# It ended with a bug, {pformat(exit.message, width=100_000)}: this test fails until it is mended."
                for kind in (Success, Failure):
                    self.spelling.use("flowdsl", kind.__name__, kind)
                yield "assert isinstance(run.exit, (Success, Failure)), run"
            case Cancelled():
                self.spelling.use("flowdsl", "Cancelled", Cancelled)
                yield "assert isinstance(run.exit, Cancelled), run"
            case _:
                if isinstance(exit, Failure):
                    yield "# This is what came out. If it is what went wrong, say here what should have."
                yield f"assert run.exit == {self.exit(workflow, exit)}, run"


# Without what it says of people


def _redacted(executions: Sequence[Recorded], definitions: Definitions, text: str) -> str:
    """Texts are replaced by others of the same length, each by the same, wherever the run takes the same course without them."""
    wanted = _course(text)
    hidden: dict[str, str] = {}

    def hide(found: list[str]) -> None:
        nonlocal text
        tried = {**hidden, **{one: _placeholder(one, number) for number, one in enumerate(found, len(hidden))}}
        try:
            candidate = _rendered([_without(one, tried) for one in executions], definitions)
            holds = candidate if _course(candidate) == wanted else None
        except Exception:  # a text that was no mere text: a name, a date, part of a key
            holds = None
        if holds is not None:
            hidden.update(tried)
            text = holds
        elif len(found) > 1:
            hide(found[: len(found) // 2])
            hide(found[len(found) // 2 :])

    strings = sorted({found for one in executions for body in _bodies(one) for found in _strings(json.loads(body))})
    if strings:
        hide(strings)
    return text


def _course(text: str) -> tuple[Any, ...]:
    """Which way a written test goes."""
    names: dict[str, Any] = {"__name__": "repro"}
    exec(compile(text, "<repro>", "exec"), names)  # what we have just written
    run = next(thing for name, thing in names.items() if name.startswith("run_"))()
    return type(run.exit), run.status, run.story()


def _placeholder(text: str, number: int) -> str:
    return (f"{number}".rjust(len(text), "x") if len(f"{number}") < len(text) else "x" * len(text))[-len(text) :]


def _bodies(one: Recorded) -> Iterator[bytes]:
    yield one.request
    yield from (entry.body for entry in one.journal if entry.kind in (SUCCESS, FAILURE, BUG, ATTEMPT))
    if one.exit is not None:
        yield one.exit


def _strings(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, str) and len(value) > 1 and name != "$":
        yield value
    for name, part in value.items() if isinstance(value, dict) else [("", part) for part in value] if isinstance(value, list) else []:
        yield from _strings(part, name)


def _without(one: Recorded, hidden: dict[str, str]) -> Recorded:
    def replaced(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {name: replaced(part, name) for name, part in value.items()}
        if isinstance(value, list):
            return [replaced(part) for part in value]
        return hidden.get(value, value) if isinstance(value, str) and name not in ("$", "due") else value

    def body(data: bytes) -> bytes:
        return json.dumps(replaced(json.loads(data)), separators=(",", ":")).encode()

    journal = tuple(evolve(entry, body=body(entry.body)) if entry.kind in (SUCCESS, FAILURE, BUG, ATTEMPT) else entry for entry in one.journal)
    key = hidden.get(one.execution.key or "", one.execution.key)
    exit = None if one.exit is None else body(one.exit)
    return evolve(one, execution=evolve(one.execution, key=key), request=body(one.request), exit=exit, journal=journal)


__all__ = ["CannotRedact", "NotRecorded", "answers", "fake_at", "fits", "never", "repro"]
