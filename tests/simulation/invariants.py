"""What must hold after every commit, by code of its own: nothing of the runtime decides here. Numbers are those of the invariants in the design."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import define, field

from flowdsl.binding import Deployment
from flowdsl.codec import NotJournalable
from flowdsl.flow import Do, Execution
from flowdsl.journal import Entry, Fold, codecs_of, encode_exit

Row = Mapping[str, Any]
Change = tuple[str, Row | None, Row | None]
"""A table, the row as it was before the transaction, and as it is after."""

ENDED: Final = ("succeeded", "failed", "cancelled")
OPEN: Final = ("running", "suspended", "blocked")
SUCCESS, DEFECT, ATTEMPT, INTERRUPTED, OPERATOR = 1, 3, 4, 5, 9
SETTLED: Final = ("status", "exit", "epoch", "owner", "wake", "ended")


@define
class Watch:
    """Sees every commit, and says what is wrong with it. It keeps what it needs of the past."""

    lengths: dict[str, int] = field(factory=lambda: defaultdict[str, int](int))
    last: dict[str, Row] = field(factory=dict[str, Row])
    exits: set[tuple[str, str]] = field(factory=set[tuple[str, str]])
    operated: set[str] = field(factory=set[str])
    gone: set[str] = field(factory=set[str])
    posted: dict[str, int] = field(factory=lambda: defaultdict[str, int](int))
    keys: dict[tuple[Any, ...], str] = field(factory=dict[tuple[Any, ...], str])
    executions: dict[str, Row] = field(factory=dict[str, Row])

    def committed(self, changes: Sequence[Change]) -> Iterator[str]:
        by_table: dict[str, list[tuple[Row | None, Row | None]]] = defaultdict(list)
        for table, old, new in changes:
            by_table[table.removeprefix("flowdsl.")].append((old, new))
        for old, new in by_table["workers"]:
            yield from self._worker(old, new)
        for old, new in by_table["journal"]:
            yield from self._entry(old, new, by_table)
        yield from self._mail(by_table)
        for old, new in by_table["executions"]:
            yield from self._execution(old, new)
        for _, new in by_table["schedules"]:
            if new is not None and new["in_code"] and (new["due"] is None or new["upcoming"] is None):
                yield f"I15 schedule {new['id']} has no due time"

    def _worker(self, old: Row | None, new: Row | None) -> Iterator[str]:
        if new is None:
            return
        if old is not None and old["gone"] and not new["gone"]:
            yield f"I5 worker {new['id']} was declared gone, and came back"
        if new["gone"]:
            self.gone.add(str(new["id"]))

    def _entry(self, old: Row | None, new: Row | None, by_table: Mapping[str, Any]) -> Iterator[str]:
        if (
            new is None
            and old is not None
            and any(str(gone["id"]) == str(old["execution"]) for gone, after in by_table["executions"] if after is None)
        ):
            return  # its execution goes with it
        if old is not None or new is None:
            yield f"I6 a journal row was {'deleted' if new is None else 'changed'}: {(old or new or {}).get('execution')}"
            return
        id, position, step = str(new["execution"]), new["position"], new["step"]
        here = f"entry {position} of {id} (step {step})"
        if position != self.lengths[id]:
            yield f"I6 {here}: the journal had {self.lengths[id]} entries"
        self.lengths[id] = max(self.lengths[id], position + 1)
        row = self.executions.get(id)
        if row is None:
            row = next((after for _, after in by_table["executions"] if after is not None and str(after["id"]) == id), None)
        if row is None:
            yield f"I6 {here}: there is no such execution"
            return
        if new["kind"] == OPERATOR:
            self.operated.add(id)
        elif row["status"] in ENDED:
            yield f"I2 {here}: it had {row['status']} before"
        elif new["epoch"] != row["epoch"]:
            yield f"I5 {here}: written in epoch {new['epoch']}, and its owner's was {row['epoch']}"
        elif row["owner"] is None or str(row["owner"]) in self.gone:
            yield f"I5 {here}: written for {'nobody' if row['owner'] is None else 'a worker that was declared gone'}"
        before = self.last.get(id)
        if before is not None and (new["at"] < before["at"] or new["epoch"] < before["epoch"]):
            yield f"I6 {here}: it is older than the entry before it"
        self.last[id] = new
        if SUCCESS <= new["kind"] <= DEFECT and id not in self.operated:
            if (id, step) in self.exits:
                yield f"I1 {here}: that step has an exit already"
            self.exits.add((id, step))

    def _mail(self, by_table: Mapping[str, Any]) -> Iterator[str]:
        new: dict[str, list[int]] = defaultdict(list)
        for old, after in by_table["mailbox"]:
            if after is not None and old is None:
                new[str(after["execution"])].append(after["seq"])
        for id, seqs in new.items():
            row = next((after for _, after in by_table["executions"] if after is not None and str(after["id"]) == id), None)
            first = self.posted[id] + 1
            if row is None or sorted(seqs) != list(range(first, first + len(seqs))) or row["mail"] != self.posted[id] + len(seqs):
                yield f"I13 mail {sorted(seqs)} for {id}: {self.posted[id]} were accepted before, its row counts {row['mail'] if row else 'none'}"
            self.posted[id] += len(seqs)

    def _execution(self, old: Row | None, new: Row | None) -> Iterator[str]:
        if new is None:
            self.executions.pop(str(old["id"]) if old is not None else "", None)
            return
        id = str(new["id"])
        self.executions[id] = new
        yield from _state(id, new)
        if new["key"] is not None and new["current"]:
            key = new["tenant"], new["workflow"], new["scope"], new["key"]
            holder = self.keys.setdefault(key, id)
            if holder != id and holder in self.executions and self.executions[holder]["current"]:
                yield f"I12 one key, two executions: {key[3]} of {holder} and {id}"
            self.keys[key] = id
        if old is None:
            return
        if new["epoch"] < old["epoch"]:
            yield f"I5 execution {id}: its epoch fell from {old['epoch']} to {new['epoch']}"
        if old["status"] in ENDED and id not in self.operated and any(old[name] != new[name] for name in SETTLED):
            changed = ", ".join(f"{name}: {old[name]} -> {new[name]}" for name in SETTLED if old[name] != new[name])
            yield f"I2 execution {id} had ended, and changes: {changed}"
        if old["owner"] is not None and new["owner"] is not None and old["owner"] != new["owner"] and str(old["owner"]) not in self.gone:
            yield f"I5 execution {id} was taken from a worker that nobody has declared gone"
        if old["owner"] != new["owner"] and new["owner"] is not None and new["epoch"] == old["epoch"]:
            yield f"I5 execution {id} has a new owner in the same epoch"


def _state(id: str, row: Row) -> Iterator[str]:
    """I3: in exactly one state."""
    status, owner, wake = row["status"], row["owner"], row["wake"]
    if status in ENDED and (owner is not None or wake is not None or row["exit"] is None):
        yield f"I3 execution {id} has {status}: owner {owner}, wake {wake}, exit {row['exit']}"
    if status == "running" and (owner is None) == (wake is None):
        yield f"I3 execution {id} is running: owner {owner}, wake {wake}"
    if status == "suspended" and owner is not None:
        yield f"I3 execution {id} is suspended, and owned by {owner}"
    if status == "blocked" and (owner is not None or not row["cause"]):
        yield f"I3 execution {id} is blocked: owner {owner}, cause {row['cause']!r}"


# At the end


def refolded(executions: Mapping[str, Row], journals: Mapping[str, Sequence[Row]], deployment: Deployment) -> Iterator[str]:
    """I7 and I8: folding a finished journal anew gives the stored exit, byte for byte, and asks nothing."""
    for id, row in executions.items():
        if row["status"] not in ENDED or row["workflow"] == "chaos.tick":
            continue
        workflow = deployment.workflow(row["workflow"], row["version"])
        parent = None if row["parent"] is None else str(row["parent"])
        execution = Execution(id, row["tenant"], row["workflow"], row["key"], parent, row["started"])
        fold = Fold(execution, Do(workflow.body, (codecs_of(workflow).request.decode(row["request"]),)), deployment.definitions(row["workflow"], 1))
        try:
            fold.replay([_entry(one) for one in _standing(journals.get(id, ()))])
            given = None if fold.machine.exit is None else encode_exit(workflow, fold.machine.exit)
        except NotJournalable:
            continue
        except Exception as error:
            yield f"I8 execution {id} ({row['workflow']}): its journal does not fit its code: {str(error).splitlines()[0]}"
            continue
        if given != row["exit"] and not (row["cause"] or "").startswith("terminated"):
            yield f"I7 execution {id} ({row['workflow']}): folding its journal gives {given!r}, and stored is {row['exit']!r}"


def _standing(rows: Sequence[Row]) -> Sequence[Row]:
    """What the newest intervention of a person left standing, and all after it."""
    for row in reversed(rows):
        if row["kind"] == OPERATOR and row["live"] is not None:
            spans = [(span.lower, span.upper) for span in row["live"]]
            return [one for one in rows if one["position"] >= row["position"] or any(low <= one["position"] < high for low, high in spans)]
    return rows


def _entry(row: Row) -> Entry:
    live = None if row["live"] is None else tuple((one.lower, one.upper) for one in row["live"])
    return Entry(row["position"], row["kind"], row["at"], row["step"], row["fingerprint"], row["site"], row["body"], live)


def attempts(executions: Mapping[str, Row], journals: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """I17: no more attempts are recorded than the policies of the workload give."""
    limits = {"chaos.exhausted": 3, "chaos.bug": 2, "chaos.buggy_part": 2}
    for id, rows in journals.items():
        limit = limits.get(executions[id]["workflow"]) if id in executions else None
        tried = [row for row in rows if row["kind"] in (ATTEMPT, INTERRUPTED)]
        ended = sum(SUCCESS <= row["kind"] <= DEFECT for row in rows)
        if limit is not None and len(tried) + ended > limit + (tried[-1:] != [] and tried[-1]["kind"] == INTERRUPTED):
            yield f"I17 execution {id} ({executions[id]['workflow']}): {len(tried)} attempts were recorded and {ended} exits, {limit} are allowed"
        numbers = [json.loads(row["body"])["number"] for row in tried if limit is not None]
        if numbers != sorted(set(numbers)):
            yield f"I17 execution {id}: attempts are numbered {numbers}"
