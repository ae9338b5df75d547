"""What a person does to an execution, planned without I/O: retry, rewind, fork, what if. A plan says which entries still stand.

Nothing recorded is ever changed: an intervention is one more entry, whose `live` set leaves out what is to be done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from attrs import evolve, field, frozen
from returns.result import Failure

from flowdsl.activation import Stored, live_entries
from flowdsl.codec import digest
from flowdsl.definition import Workflow
from flowdsl.errors import FlowError, MachineError
from flowdsl.flow import Cancelled, Defect, Do, Execution, Exit, Flow, Join, Perform, Sleep, Status
from flowdsl.journal import (
    BUG,
    CANCEL,
    CHECKPOINT,
    FAILURE,
    OPERATOR,
    SUCCESS,
    Entry,
    Fold,
    Intervention,
    Misfit,
    codecs_of,
)
from flowdsl.machine import Checkpoint, Pending, Trace, merged


@frozen
class Written:
    """An exit as it is recorded: its kind, and its body as our codec writes it."""

    kind: int
    body: bytes


Edits: TypeAlias = Mapping[str, Exit[Any, Any] | Written]
Definitions: TypeAlias = Callable[[str], Workflow[Any, Any, Any]]


def public_status(stored: Stored) -> Status:
    """A stored status in the words of `Status`."""
    return "open" if stored == "running" or stored == "suspended" else stored


class CannotRetry(FlowError):
    """There is nothing that could be done again; nothing was changed."""


@frozen
class Subject:
    """An execution to intervene in, and its whole journal."""

    execution: Execution
    request: bytes
    journal: Sequence[Entry]
    definitions: Definitions

    @property
    def workflow(self) -> Workflow[Any, Any, Any]:
        return self.definitions(self.execution.workflow)

    def fold(self) -> Fold:
        flow: Flow[Any, Any] = Do(self.workflow.body, (codecs_of(self.workflow).request.decode(self.request),))
        return Fold(self.execution, flow, self.definitions)


@frozen
class Plan:
    """What an intervention changes."""

    what: Intervention
    live: tuple[tuple[int, int], ...]
    """The positions that still stand."""
    dropped: tuple[Entry, ...]
    """What was live and is no more: what it asked is asked again."""
    joins: tuple[str, ...] = ()
    """The children that it waits for afterwards: those that ended badly are to be retried first."""

    @property
    def started(self) -> tuple[str, ...]:
        """The children whose starts are dropped."""
        return tuple(json.loads(entry.body) for entry in self.dropped if entry.kind == SUCCESS and entry.fingerprint.startswith("start "))

    def mails(self, keys: Iterable[str] = ()) -> list[tuple[str, str | None, bytes]]:
        """Signals that dropped entries had taken, to be put back: name, correlation key (one of `keys`), body."""
        by_digest: dict[str, str | None] = {digest(key.encode()): key for key in keys} | {digest(b""): None}
        found: list[tuple[str, str | None, bytes]] = []
        for entry in self.dropped:
            kind, _, rest = entry.fingerprint.partition(" ")
            if entry.kind == SUCCESS and (kind == "receive" or (kind == "take" and entry.body != b"null")):
                name, _, key = rest.rpartition(" ")
                found.append((name, by_digest.get(key), entry.body))
        return found


def retried(subject: Subject, *, by: str, reason: str) -> Plan:
    """Does again what made it fail, be cancelled or be blocked by failing undos; what succeeded and still stands does not run again.

    When steps were undone, all from the first of them on runs again, under new idempotency keys. Raises `CannotRetry` when the code itself decided
    the end, and `Divergence` when the code does not fit the record.
    """
    entries = live_entries(subject.journal)
    fold = subject.fold()
    trace = fold.machine.trace = Trace()
    fold.replay(entries)
    exit = fold.machine.exit
    steps = _to_do_again(entries, trace, exit)
    undone = [began for began, value in trace.undone if exit is not None and not trace.failed_undos and _led_to(value, exit)]
    cut = min(undone) + 1 if undone else None
    kept, dropped, after = _refolded(subject, entries, steps, cut)
    if not dropped and exit is not None:
        raise CannotRetry(f"{subject.execution.workflow} {subject.execution.id} would end the same way: its own code decided it ({exit}). "
                          "Deploy a fix and retry, or rewind it to a step")  # fmt: skip
    fresh = cut is not None or any(entry.kind == SUCCESS and entry.fingerprint.startswith("start ") for entry in dropped)
    what = Intervention("retry", by, reason, tuple(sorted(steps & after.pending.keys())), fresh)
    return Plan(what, _ranges(kept), tuple(dropped), _joins(after.pending.values()))


def rewound(subject: Subject, to: str | int, *, by: str, reason: str) -> Plan:
    """Takes it back to just before a step was first answered, or to a position: from there on all is done again, under new idempotency keys.

    Raises `FlowError` for a step that was never answered, and `Divergence` when the code does not fit what is kept.
    """
    position = position_of(subject.journal, to)
    kept = live_entries(subject.journal[:position])
    standing = {entry.position for entry in kept}
    fold = subject.fold()
    fold.replay(kept)
    restarted = tuple(sorted(step for step, one in fold.machine.pending.items() if isinstance(one.instruction, (Perform, Sleep))))
    dropped = tuple(entry for entry in live_entries(subject.journal) if entry.position not in standing)
    return Plan(Intervention("rewind", by, reason, restarted, fresh=True), _ranges(kept), dropped, _joins(fold.machine.pending.values()))


def position_of(journal: Sequence[Entry], at: str | int) -> int:
    """The position of a step's first live entry; or the position itself. Raises `FlowError` when there is none."""
    if isinstance(at, int):
        if not 0 <= at <= len(journal):
            raise FlowError(f"there is no position {at}: the journal has {len(journal)} entries")
        return at
    found = next((entry.position for entry in live_entries(journal) if entry.step == at and entry.kind != CHECKPOINT), None)
    if found is None:
        steps = ", ".join(dict.fromkeys(entry.step for entry in live_entries(journal) if entry.step))
        raise FlowError(f"step {at} was never answered here. There are: {steps[:500] or 'none'}")
    return found


def edited(subject: Subject, journal: Sequence[Entry], edits: Edits) -> list[Entry]:
    """A journal in which the exits of these steps are others. Raises `NotJournalable`, or `FlowError` for a step without an exit."""
    last = {entry.step: index for index, entry in enumerate(journal) if entry.kind <= BUG}
    unknown = [step for step in edits if step not in last]
    if unknown:
        raise FlowError(f"step {unknown[0]} has no recorded exit to edit; see `flowdsl journal {subject.execution.id}`")
    fold, out = subject.fold(), list(journal)
    for entry in live_entries(journal):
        if entry.step in edits and last[entry.step] == entry.position:
            fold.begin()
            entry = _with_exit(fold, entry, edits[entry.step])
            out[entry.position] = entry
        fold.begin()
        _try(fold, entry)
    return out


def forked(subject: Subject, prefix: Sequence[Entry], *, by: str, reason: str) -> Entry:
    """The entry with which a new execution takes over another's record: it goes on as that one, under idempotency keys of its own."""
    seen_as = next((what.seen_as for entry in prefix if entry.kind == OPERATOR and (what := Intervention.of(entry)).seen_as), subject.execution)
    what = Intervention("fork", by, reason, fresh=True, seen_as=seen_as)
    at = prefix[-1].at if prefix else subject.execution.started_at
    live = _ranges(live_entries(prefix))
    return Entry(len(prefix), OPERATOR, at, "", "operator", "", what.encode(), live)


@frozen
class Supposed:
    """What would happen if some exits were others: nothing was called."""

    exit: Exit[Any, Any] | None
    """How it would end; None when it would ask something that was never recorded."""
    asked: tuple[tuple[str, str, str], ...]
    """What it would ask the world then: step, what (kind and name), where in the code."""
    used: tuple[Entry, ...]
    """The entries that still answer a question."""
    unused: tuple[Entry, ...]
    edits: Edits = field(factory=dict[str, Any])


def what_if(subject: Subject, edits: Edits) -> Supposed:
    """Folds the record with these steps' exits replaced. Other steps get their recorded answer, if the same thing is asked of them."""
    entries = [entry for entry in live_entries(subject.journal) if entry.kind != CANCEL]
    fold, used = subject.fold(), list[Entry]()
    fold.machine.markers = frozenset(entry.step for entry in entries if entry.fingerprint.startswith("changed "))
    fold.machine.replaying = True
    fold.begin()
    left, progress, changed = entries, True, False
    while progress and fold.machine.exit is None:
        progress, rest = False, list[Entry]()
        for entry in left:
            if changed:
                _settle_checkpoints(fold)
            answer = entry
            if entry.step in edits and entry.kind <= BUG and entry.step in fold.machine.pending:
                answer, changed = _with_exit(fold, entry, edits[entry.step]), True
            elif entry.kind == CHECKPOINT and changed:
                continue  # its state comes from what was; the loops go on with what is
            if _try(fold, evolve(answer, position=fold.position, at=max(answer.at, fold.at), live=None)):
                used.append(entry)
                progress = True
            else:
                rest.append(entry)
        left = rest
        if changed:
            _settle_checkpoints(fold)
    asked = tuple((one.step, fold.fingerprint(one).rpartition(" ")[0], fold.site(one)) for one in fold.machine.pending.values())
    return Supposed(fold.machine.exit, asked if fold.machine.exit is None else (), tuple(used), tuple(left), edits)


# Inside


def _to_do_again(entries: Sequence[Entry], trace: Trace, exit: Exit[Any, Any] | None) -> set[str]:
    """The steps whose answers led to the end: the one that failed; if the code made a failure of what it had seen, all that had failed."""
    first: dict[int, int] = {}
    for value, position in trace.failing:
        first.setdefault(id(value), position)
    at = {entry.position: entry for entry in entries}
    if trace.failed_undos:
        culprits = [at.get(first[id(value)]) for value in trace.failed_undos]
        return {entry.step for entry in culprits if entry is not None and entry.step}
    if exit is None or isinstance(exit, Cancelled):
        return set()
    value = exit.failure() if isinstance(exit, Failure) else exit
    culprit = at.get(first.get(id(value), -1))
    if culprit is not None and (culprit.kind in (FAILURE, BUG) or culprit.fingerprint.startswith("sleep ")):
        return {culprit.step}
    if isinstance(exit, Defect):
        return set()  # raised by the code itself: only other code can mend it
    return {entry.step for entry in entries if entry.kind in (FAILURE, BUG)}


def _led_to(value: Any, exit: Exit[Any, Any]) -> bool:
    """Whether a rollback ran because of what the execution ended with."""
    if isinstance(exit, Cancelled):
        return isinstance(value, Cancelled)
    return value is (exit.failure() if isinstance(exit, Failure) else exit)


def _refolded(subject: Subject, entries: Sequence[Entry], steps: set[str], cut: int | None) -> tuple[list[Entry], list[Entry], Any]:
    """Folds what still stands: an entry whose step is not asked without those that are left out, is left out too."""
    fold = subject.fold()
    for entry in entries:
        if entry.kind == OPERATOR and (seen_as := Intervention.of(entry).seen_as) is not None:
            fold.machine.execution = seen_as
    fold.machine.markers = frozenset(entry.step for entry in entries if entry.fingerprint.startswith("changed "))
    fold.machine.replaying = True
    fold.begin()
    kept: list[Entry] = []
    dropped: list[Entry] = []
    for entry in entries:
        ended_it = entry.kind == CANCEL or (entry.kind == OPERATOR and Intervention.of(entry).action == "terminate")
        again = entry.step in steps and entry.kind != CHECKPOINT
        late = cut is not None and entry.position >= cut and entry.kind != OPERATOR
        stands = not (ended_it or again or late) and _try(fold, entry)
        (kept if stands else dropped).append(entry)
    return kept, dropped, fold.machine


def _try(fold: Fold, entry: Entry) -> bool:
    """Folds an entry if it answers what is asked."""
    try:
        fold.check(entry)
        fold.fold(entry)
    except (MachineError, Misfit):
        return False
    return True


def _with_exit(fold: Fold, entry: Entry, exit: Exit[Any, Any] | Written) -> Entry:
    one = fold.machine.pending.get(entry.step)
    if one is None:
        return entry
    if isinstance(exit, Written):
        kind, body = exit.kind, exit.body
        fold.decoded(one, kind, body)
    else:
        kind, body = fold.encode_exit(one, exit)
    return evolve(entry, kind=kind, body=body)


def _settle_checkpoints(fold: Fold) -> None:
    """A loop's own question, answered with what it is now."""
    for one in list(fold.machine.pending.values()):
        if isinstance(one.instruction, Checkpoint):
            fold.record(one.step, CHECKPOINT, fold.encode_checkpoint(one.instruction), fold.at)


def _ranges(kept: Sequence[Entry]) -> tuple[tuple[int, int], ...]:
    return tuple((low, high) for low, high in merged([[entry.position, entry.position + 1] for entry in kept]))


def _joins(pending: Iterable[Pending]) -> tuple[str, ...]:
    return tuple(one.instruction.child.id for one in pending if isinstance(one.instruction, Join))


__all__ = ["CannotRetry", "Edits", "Plan", "Subject", "Supposed", "Written", "edited", "forked", "position_of", "retried", "rewound", "what_if"]
