"""What a run left behind: rows, the ledger's calls, what the front was told, and what the processes logged."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import define, field

from flowdsl.testing.chaos.front import FILE
from flowdsl.testing.chaos.log import read
from flowdsl.testing.chaos.server import Postgres

ENDED = ("succeeded", "failed", "cancelled")
SUCCESS, FAILURE, DEFECT, ATTEMPT, INTERRUPTED, OPERATOR = 1, 2, 3, 4, 5, 9


@define
class Evidence:
    executions: dict[str, Any]
    journals: dict[str, list[Any]]
    mailbox: list[Any]
    unmatched: list[Any]
    marks: list[Any]
    firings: list[Any]
    schedules: list[Any]
    calls: dict[str, list[dict[str, Any]]]
    """The ledger's, by idempotency key, in the order of their coming."""
    told: list[dict[str, Any]]
    """The front's log."""
    labels: dict[str, dict[str, str]]
    """By execution and idempotency key: of everything that was called or marked."""
    children: dict[str, list[str]] = field(factory=lambda: defaultdict[str, list[str]](list))

    def journal(self, id: str) -> list[Any]:
        return self.journals.get(id, [])

    def recorded(self, id: str) -> list[tuple[str, Any]]:
        """The successes of our activities: label and row; an unknown label is empty."""
        rows = (row for row in self.standing(id) if row["kind"] == SUCCESS and row["fingerprint"].startswith("perform chaos."))
        labels = self.labels.get(id, {})
        return [(labels.get(self.key(id, row["step"]), ""), row) for row in rows]

    def standing(self, id: str) -> list[Any]:
        """What the newest intervention of a person left standing, and all that came after it."""
        rows = self.journal(id)
        for row in reversed(rows):
            if row["kind"] == OPERATOR and row["live"] is not None:
                spans = [(span.lower, span.upper) for span in row["live"]]
                return [one for one in rows if one["position"] > row["position"] or any(low <= one["position"] < high for low, high in spans)]
        return rows

    def key(self, id: str, step: str) -> str:
        """The idempotency key of a step; of one that a person let run anew, the newest."""
        plain = f"{id}/{step}"
        return max((key for key in self.labels.get(id, {}) if key.partition("@")[0] == plain), default=plain)


async def gathered(postgres: Postgres, folder: Path) -> Evidence:
    async def rows(query: str) -> list[dict[str, Any]]:
        return [dict(row) for row in await postgres.rows(query)]

    executions = {str(row["id"]): row for row in await rows("select * from flowdsl.executions")}
    journals: dict[str, list[Any]] = defaultdict(list)
    for row in await rows("select * from flowdsl.journal order by execution, position"):
        journals[str(row["execution"])].append(row)
    marks = await rows("select * from chaos_marks")
    firings = await rows("select * from flowdsl.firings order by instant")
    schedules = await rows("select * from flowdsl.schedules")
    calls: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for call in read(folder / "ledger.jsonl"):
        calls[call["key"]].append(call)
    labels: dict[str, dict[str, str]] = defaultdict(dict)
    for key, label in ({key: found[0]["label"] for key, found in calls.items()} | {row["key"]: row["label"] for row in marks}).items():
        labels[key.partition("/")[0]][key] = label
    mailbox, unmatched = await rows("select * from flowdsl.mailbox"), await rows("select * from flowdsl.unmatched")
    found = Evidence(executions, dict(journals), mailbox, unmatched, marks, firings, schedules, dict(calls), list(read(folder / FILE)), dict(labels))
    for id, row in executions.items():
        if row["parent"] is not None:
            found.children[str(row["parent"])].append(id)
    return found


def exit_of(row: Any) -> tuple[str, Any]:
    """How an execution ended, and what it gave: read from the stored bytes."""
    kind, value = next(iter(json.loads(row["exit"]).items()))
    return kind, value["reason"] if kind == "cancelled" else value


# Logs

NOISE = ("was never awaited", "never retrieved", "was destroyed but it is pending", "unclosed")


@define
class Logs:
    events: Counter[str] = field(factory=Counter[str])
    unexpected: list[str] = field(factory=list[str])


def read_logs(folder: Path) -> Logs:
    """What was logged how often, and what nobody should ever see: a traceback, a lost task."""
    logs = Logs()
    for file in sorted(folder.glob("*.log")):
        lines = file.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                logs.events[str(record["event"])] += 1
            except (ValueError, TypeError, KeyError):
                logs.unexpected += _unexpected(file.name, lines, number)
                continue
            if record.get("level") in ("error", "critical") and "traceback" in record:
                logs.unexpected.append(f"{file.name}: {record['event']}: {_last(record['traceback'].splitlines())}")
    return logs


def _unexpected(name: str, lines: list[str], number: int) -> Iterator[str]:
    line = lines[number]
    if line.startswith("Traceback (most recent call last)"):
        rest = next((text for text in lines[number + 1 :] if text and not text.startswith(" ")), "")
        yield f"{name}:{number + 1}: {rest}"
    elif any(word in line for word in NOISE):
        yield f"{name}:{number + 1}: {line[:300]}"


def _last(lines: list[str]) -> str:
    return next((line for line in reversed(lines) if line.strip()), "")[:300]
