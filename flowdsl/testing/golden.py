"""Golden journals: recorded executions in files of their own, small and readable, that every later flowdsl and every later code must still fold.

A file holds one execution. Bodies stand in it as the JSON that they are; where that would not give the same bytes again, as a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from attrs import frozen

from flowdsl.activation import live_entries
from flowdsl.binding import Deployment, named_in
from flowdsl.compat import Fit, fit
from flowdsl.definition import Workflow
from flowdsl.errors import FlowError, NotFound
from flowdsl.flow import Execution
from flowdsl.journal import KINDS, Entry, encode_exit
from flowdsl.operating import Definitions, Subject
from flowdsl.story import Began, Run

FORMAT = 1

_WORDS = {word: kind for kind, word in KINDS.items()}


class BadJournal(FlowError):
    """A file that holds no recorded execution that we can read."""

    def __init__(self, file: str, problem: str) -> None:
        self.file, self.problem = file, problem
        super().__init__(f"{file} is no recorded execution: {problem}. Write one with `flowdsl export --golden FOLDER ID`, or `flowdsl export ID`")


@frozen
class Recorded:
    """An execution as it was recorded."""

    execution: Execution
    version: int
    request: bytes
    status: str
    exit: bytes | None
    cause: str | None
    journal: tuple[Entry, ...]
    parent_step: str = ""

    def subject(self, definitions: Definitions) -> Subject:
        return Subject(self.execution, self.request, self.journal, definitions)


def golden(one: Recorded) -> str:
    """The text of its file."""
    facts: dict[str, Any] = {
        "flowdsl journal": FORMAT,
        "workflow": one.execution.workflow,
        "version": one.version,
        "execution": one.execution.id,
        "tenant": one.execution.tenant,
        "key": one.execution.key,
        "parent": one.execution.parent,
        "parent step": one.parent_step,
        "started": one.execution.started_at.isoformat(),
        "request": _shown(one.request),
        "status": one.status,
        "cause": one.cause,
        "exit": None if one.exit is None else _shown(one.exit),
    }
    head = "".join(f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)},\n" for name, value in facts.items() if value not in (None, ""))
    lines = ",\n".join(f"    {json.dumps(_line(entry), ensure_ascii=False)}" for entry in one.journal)
    return f'{{\n{head}  "journal": [\n{lines}\n  ]\n}}\n'


def _line(entry: Entry) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "at": entry.at.isoformat(),
        "step": entry.step,
        "kind": KINDS[entry.kind],
        "asked": entry.fingerprint,
        "site": entry.site,
        "body": _shown(entry.body),
    }
    return facts if entry.live is None else {**facts, "live": [list(span) for span in entry.live]}


def _shown(body: bytes) -> Any:
    try:
        value = json.loads(body)
    except ValueError:
        return {"text": body.decode()}
    return {"json": value} if _compact(value) == body else {"text": body.decode()}


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _bytes(shown: Any) -> bytes:
    return _compact(shown["json"]) if "json" in shown else str(shown["text"]).encode()


def read(text: str, name: str = "it") -> list[Recorded]:
    """The executions in a golden file, or in what `flowdsl export` wrote. Raises `BadJournal`."""
    try:
        facts = json.loads(text)
        if "flowdsl" in facts:
            return _exported(facts)
        if facts["flowdsl journal"] != FORMAT:
            raise BadJournal(name, f"it has format {facts['flowdsl journal']}, and this flowdsl reads {FORMAT}")
        return [_golden(facts)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadJournal(name, f"{type(error).__name__}: {error}") from error


def _golden(facts: Mapping[str, Any]) -> Recorded:
    started = datetime.fromisoformat(facts["started"])
    execution = Execution(facts["execution"], facts.get("tenant", ""), facts["workflow"], facts.get("key"), facts.get("parent"), started)
    entries: list[Entry] = []
    for line in facts["journal"]:
        live = tuple((low, high) for low, high in line["live"]) if "live" in line else None
        at = datetime.fromisoformat(line["at"])
        entries.append(Entry(len(entries), _WORDS[line["kind"]], at, line["step"], line["asked"], line["site"], _bytes(line["body"]), live))
    exit = _bytes(facts["exit"]) if "exit" in facts else None
    request, status, cause = _bytes(facts["request"]), facts["status"], facts.get("cause")
    return Recorded(execution, facts["version"], request, status, exit, cause, tuple(entries), facts.get("parent step", ""))


def _exported(document: Mapping[str, Any]) -> list[Recorded]:
    from flowdsl.postgres.moving import plain_rows

    tables = plain_rows(document)
    journals: dict[Any, list[Entry]] = {}
    for row in tables["journal"]:
        live = None if row["live"] is None else tuple((int(low), int(high)) for low, high in _spans(row["live"]))
        entry = Entry(row["position"], row["kind"], row["at"], row["step"], row["fingerprint"], row["site"], row["body"], live)
        journals.setdefault(row["execution"], []).append(entry)
    return [
        Recorded(
            Execution(
                str(row["id"]), row["tenant"], row["workflow"], row["key"], None if row["parent"] is None else str(row["parent"]), row["started"]
            ),
            row["version"],
            row["request"],
            row["status"],
            row["exit"] or None,
            row["cause"],
            tuple(sorted(journals.get(row["id"], []), key=lambda entry: entry.position)),
            row["parent_step"] or "",
        )
        for row in tables["executions"]
    ]


def _spans(multirange: str) -> Iterator[tuple[str, str]]:
    """Of `{[0,3),[5,6)}`, as Postgres spells it."""
    for span in multirange.strip("{}").split("),"):
        if span:
            low, _, high = span.strip("[)").partition(",")
            yield low, high


def recorded_by(run: Run) -> list[Recorded]:
    """A run in memory and its children, as a store would have recorded them."""
    began = next(one for one in run.happenings() if isinstance(one, Began) and one.id == run.id)
    status = {"open": "suspended"}.get(run.status, run.status)
    exit = None if run.exit is None else encode_exit(run.workflow, run.exit)
    one = Recorded(began.execution, run.workflow.version, began.request, status, exit, run.cause, run.journal)
    return [one, *(found for child in run.children for found in recorded_by(child))]


def written(folder: Path, executions: Sequence[Recorded]) -> list[Path]:
    """Writes each into a file of its own, named by workflow and execution. What is there stays as it is: journals are added, never edited."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{_file_name(one.execution.workflow)}-{one.execution.id[-12:]}.json" for one in executions]
    for file, one in zip(files, executions, strict=True):
        if file.exists() and file.read_text(encoding="utf-8") != golden(one):
            raise BadJournal(str(file), "another one has its name, and golden journals are never edited: give another folder")
        file.write_text(golden(one), encoding="utf-8")
    return files


def _file_name(workflow: str) -> str:
    return "".join(char if char.isalnum() or char in "._-" else "_" for char in workflow)


# Against the code at hand


def compared(one: Recorded, definitions: Definitions) -> Fit:
    """What the code makes of a recorded execution: all that `fit` says, and that an ended one gives the same exit, byte for byte."""
    subject = one.subject(definitions)
    verdict = fit(subject, live_entries(one.journal))
    if verdict.verdict != "fits" or one.exit is None or one.status not in ("succeeded", "failed", "cancelled"):
        return verdict
    fold = subject.fold()
    fold.replay(live_entries(one.journal))
    given = None if fold.machine.exit is None else encode_exit(subject.workflow, fold.machine.exit)
    if given == one.exit or (given is not None and _defect(given) and _defect(one.exit)):  # a defect says where it was: lines move
        return verdict
    now = f"now it gives {given[:300].decode()}" if given is not None else "now it has not ended"
    return Fit(one.execution.id, one.execution.workflow, "breaks", why=f"it ended with {one.exit[:300].decode()}, {now}")


def _defect(exit: bytes) -> bool:
    return exit.startswith(b'{"defect":')


def in_folder(folder: Path, deployment: Deployment) -> Iterator[tuple[Path, Fit]]:
    """A verdict for each execution in the files of a folder and the folders in it. Raises `BadJournal`."""
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise BadJournal(str(folder), "there is no *.json in it")
    for file in files:
        for one in read(file.read_text(encoding="utf-8"), str(file)):
            yield file, compared(one, deployment.definitions(one.execution.workflow, one.version))


def definitions_of(*workflows: Workflow[Any, Any, Any]) -> Definitions:
    """Workflows and all that they name, for who has no deployment."""
    known, todo = {one.name: one for one in workflows}, list(workflows)
    for one in todo:
        for other in named_in(one.body):
            if isinstance(other, Workflow) and other.name not in known:
                known[other.name] = other
                todo.append(other)

    def found(name: str) -> Workflow[Any, Any, Any]:
        if name not in known:
            raise NotFound("workflow", name, sorted(known))
        return known[name]

    return found


__all__ = ["FORMAT", "BadJournal", "Recorded", "compared", "definitions_of", "golden", "in_folder", "read", "recorded_by", "written"]
