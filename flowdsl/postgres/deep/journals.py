"""Invariants of one journal: outcomes, epochs, order, times, attempts."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from flowdsl.postgres.deep.rows import ATTEMPT, EXITS, INTENT, INTERRUPTED, OPERATOR, Batch, Finding, Row, standing, within

TAMPERED = "Rows of the journal are never changed: find out what wrote to it, and restore it from a backup or rewind the execution to a step before"


def i1_one_outcome_a_step(batch: Batch) -> Iterator[Finding]:
    """A step has one exit, unless a person took the first one back."""
    for id, rows in batch.journals.items():
        seen: dict[str, int] = {}
        for row in rows:
            if row["kind"] == OPERATOR and row["live"] is not None:
                seen = {step: position for step, position in seen.items() if within(row, position)}
            elif row["kind"] in EXITS:
                if row["step"] in seen:
                    found = f"step {row['step']} has two exits, at positions {seen[row['step']]} and {row['position']}"
                    yield Finding(1, str(id), found, TAMPERED)
                seen[row["step"]] = row["position"]


def i5_epochs_grow(batch: Batch) -> Iterator[Finding]:
    """Along the positions epochs never fall, and none is newer than the execution's."""
    for id, rows in batch.journals.items():
        for before, row in itertools.pairwise(rows):
            if row["epoch"] < before["epoch"]:
                found = f"position {row['position']} was written in epoch {row['epoch']}, after position {before['position']} in {before['epoch']}"
                yield Finding(5, str(id), found, "A worker wrote that had lost the execution: report this, with the journal")
                break
        execution = batch.executions.get(id)
        newest = max(row["epoch"] for row in rows)
        if execution is not None and newest > execution["epoch"]:
            found = f"an entry is of epoch {newest}, and the execution has only come to {execution['epoch']}"
            yield Finding(5, str(id), found, "Raise its epoch above that of its entries before a worker claims it")


def i6_gapless(batch: Batch) -> Iterator[Finding]:
    """Positions count from 0, and time does not run back along them."""
    for id, rows in batch.journals.items():
        gap = next((n for n, row in enumerate(rows) if row["position"] != n), None)
        if gap is not None:
            yield Finding(6, str(id), f"position {gap} is missing: the next is {rows[gap]['position']}", TAMPERED)
        for before, row in itertools.pairwise(rows):
            if row["at"] < before["at"]:
                found = (
                    f"position {row['position']} is of {row['at'].isoformat()}, before position {before['position']} of {before['at'].isoformat()}"
                )
                yield Finding(6, str(id), found, TAMPERED)
                break


def i6_causal(batch: Batch) -> Iterator[Finding]:
    """What follows in a scope was recorded later: a step's exit never stands before that of a step whose answer it could use."""
    for id, rows in batch.journals.items():
        if any(row["kind"] == OPERATOR for row in rows):
            continue  # what was taken back is done again
        last: dict[str, tuple[int, Row]] = {}
        for row in standing(rows):
            scope, number = _place(row["step"])
            if row["kind"] not in EXITS or number is None:
                continue
            if scope in last and last[scope][0] > number:
                later = last[scope][1]
                found = f"step {row['step']} (position {row['position']}) was recorded after step {later['step']} (position {later['position']})"
                yield Finding(6, str(id), found, TAMPERED)
                break
            last[scope] = number, row


def i6_live_ranges(batch: Batch) -> Iterator[Finding]:
    """A `live` set names positions that are there, below its own entry."""
    for id, rows in batch.journals.items():
        there = {row["position"] for row in rows}
        for row in rows:
            for span in row["live"] or ():
                missing = _missing(span, row["position"], there)
                if missing is not None:
                    found = f"the live set of position {row['position']} names position {missing}, which is not below it in the journal"
                    yield Finding(6, str(id), found, TAMPERED)


def i16_timers_never_early(batch: Batch) -> Iterator[Finding]:
    """A sleep ends when it is due or later: counted from the last thing that is known to have come before it."""
    for id, rows in batch.journals.items():
        execution = batch.executions.get(id)
        ends: dict[str, datetime] = {}
        for row in rows:
            scope, _ = _place(row["step"])
            opened = ends.get(scope) or (execution["started"] if execution is not None else None)
            until = _until(row, opened)
            if row["kind"] == 1 and until is not None and row["at"] < until:
                found = f"the sleep of step {row['step']} ended at {row['at'].isoformat()}, and was due at {until.isoformat()} at the earliest"
                yield Finding(16, str(id), found, "Compare the clocks of the workers with the server's, and report this with the journal")
            if row["kind"] in EXITS:
                ends[scope] = row["at"]


def i17_attempts_in_order(batch: Batch) -> Iterator[Finding]:
    """Failed and interrupted attempts of a step are numbered from 1, and nothing of the step is recorded before the next one was due."""
    for id, rows in batch.journals.items():
        made: dict[str, tuple[int, int, datetime | None]] = {}  # by step: the last attempt's number, position and the next one's due
        intended = set[str]()
        for row in rows:
            if row["kind"] == OPERATOR and row["live"] is not None:
                made = {step: one for step, one in made.items() if within(row, one[1])}
            number, _, due = made.get(row["step"], (0, 0, None))
            if row["kind"] in EXITS and due is not None and row["at"] < due:
                yield Finding(17, str(id), _hasty(row, due), TAMPERED)
            if row["kind"] == INTENT:
                intended.add(row["step"])
            if row["kind"] in (ATTEMPT, INTERRUPTED):
                facts = _facts(row)
                if row["kind"] == INTERRUPTED and row["step"] in intended and facts.get("number") == number:
                    intended.remove(row["step"])  # an intent that was taken back: nothing was called
                    continue
                if facts.get("number") != number + 1:
                    found = f"position {row['position']} records attempt {facts.get('number')} of step {row['step']}, after attempt {number}"
                    yield Finding(17, str(id), found, TAMPERED)
                elif due is not None and row["at"] < due:
                    yield Finding(17, str(id), _hasty(row, due), TAMPERED)
                made[row["step"]] = facts.get("number") or number + 1, row["position"], _due(facts)


def _hasty(row: Row, due: datetime) -> str:
    return f"position {row['position']} records an attempt of step {row['step']} at {row['at'].isoformat()}, before it was due at {due.isoformat()}"


def _facts(row: Row) -> dict[str, Any]:
    try:
        return dict(json.loads(row["body"]))
    except (ValueError, TypeError):
        return {}


def _due(facts: dict[str, Any]) -> datetime | None:
    return datetime.fromisoformat(facts["due"]) if "due" in facts else None


def _place(step: str) -> tuple[str, int | None]:
    """A step's scope, and its number there."""
    scope, _, number = step.rpartition(".")
    return scope, int(number) if number.isdigit() else None


def _until(row: Row, opened: datetime | None) -> datetime | None:
    """When a sleep was due at the earliest; None for what is no sleep."""
    kind, _, rest = row["fingerprint"].partition(" ")
    if kind != "sleep":
        return None
    if not re.fullmatch(r"-?\d+us", rest):
        try:
            return datetime.fromisoformat(rest)
        except ValueError:
            return None
    try:
        return None if opened is None else opened + timedelta(microseconds=int(rest[:-2]))
    except OverflowError:
        return None


def _missing(span: Any, position: int, there: set[int]) -> int | None:
    """A position that a range names and should not."""
    low, high = (span.lower if span.lower is not None else -1), (span.upper if span.upper is not None else position + 1)
    if low < 0 or high > position:
        return low if low < 0 else high - 1
    return next((one for one in range(low, high) if one not in there), None)


CHECKS = (i1_one_outcome_a_step, i5_epochs_grow, i6_gapless, i6_causal, i6_live_ranges, i16_timers_never_early, i17_attempts_in_order)
