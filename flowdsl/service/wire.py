"""What is sent and answered: each a record, from which come the check of what arrives, the answer and their JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeAlias

from attrs import frozen

from flowdsl.activation import Stored
from flowdsl.journal import KINDS, Entry
from flowdsl.postgres.looking import Audited
from flowdsl.postgres.scheduling import Listed
from flowdsl.postgres.store import Summary

State: TypeAlias = Stored


def told(body: bytes | None) -> Any:
    """What was recorded, as JSON that everybody reads: NaN and the infinities are text."""
    return None if not body else json.loads(body, parse_constant=str)


# Executions


@frozen
class Started:
    """What became of a start. `joined`: the key has this execution already; `same_input` says whether that was started with the same input."""

    id: str
    workflow: str
    key: str | None
    status: State
    outcome: Literal["new", "joined"]
    same_input: bool
    status_url: str


@frozen
class ExecutionFacts:
    """An execution. `result`, `failure`, `defect` and `cancelled`: how it ended; `cause`: why it is blocked; `wake`: when it goes on."""

    id: str
    workflow: str
    version: int
    key: str | None
    status: State
    parent: str | None
    started: datetime
    ended: datetime | None
    wake: datetime | None
    entries: int
    note: str | None
    done: int | None
    total: int | None
    cause: str | None
    result: object
    failure: object
    defect: object
    cancelled: object


def facts_of(one: Summary) -> ExecutionFacts:
    exit: dict[str, Any] = told(one.exit) or {}
    return ExecutionFacts(
        one.id, one.workflow, one.version, one.key, one.status, one.parent, one.started, one.ended, one.wake, one.entries, one.note, one.done,
        one.total, one.cause, exit.get("success"), exit.get("failure"), exit.get("defect"), exit.get("cancelled"),
    )  # fmt: skip


@frozen
class Executions:
    """A page of executions, newest first. `next`: the cursor of the next page, if there is one."""

    executions: tuple[ExecutionFacts, ...]
    next: str | None


@frozen
class EntryFacts:
    """An entry of a journal, with what was recorded."""

    position: int
    kind: str
    at: datetime
    step: str
    fingerprint: str
    site: str
    body: object


def entry_of(entry: Entry) -> EntryFacts:
    return EntryFacts(entry.position, KINDS[entry.kind], entry.at, entry.step, entry.fingerprint, entry.site, told(entry.body))


@frozen
class Journal:
    """A page of a journal, from its beginning. `next`: the cursor of the next page, if there is one."""

    execution: str
    entries: tuple[EntryFacts, ...]
    next: str | None


@frozen
class Keys:
    """Which keys are asked for."""

    keys: tuple[str, ...]


@frozen
class Existing:
    """Of those keys the ones that executions have, and in what state these are."""

    existing: Mapping[str, State]


# What people do


@frozen
class Reason:
    """Why; kept in the journal and in the audit."""

    reason: str = ""


@frozen
class Done:
    """What was done, and the execution's state after it."""

    execution: str
    outcome: Literal["asked", "resumed", "terminated", "retried", "rewound"]
    status: State
    executions: tuple[str, ...]
    again: tuple[str, ...]


@frozen
class Rewind:
    """Back to just before a step was first answered, or to a position."""

    to: str | int
    reason: str = ""


@frozen
class Edit:
    """How a step ended instead: one of the three."""

    step: str
    success: object = None
    failure: object = None
    defect: str | None = None


@frozen
class Fork:
    """From just before a step, or from a position, with these steps' exits replaced. `paused`: it begins blocked, to be looked at first."""

    to: str | int
    edits: tuple[Edit, ...] = ()
    paused: bool = False
    reason: str = ""


@frozen
class Forked:
    """A new execution, and the one that it was made from."""

    id: str
    source: str
    status_url: str


@frozen
class Edits:
    """How steps ended instead."""

    edits: tuple[Edit, ...] = ()


@frozen
class Asked:
    """What would be asked of the world."""

    step: str
    what: str
    where: str


@frozen
class Supposed:
    """Where it would go: how it would end, or what it would ask."""

    exit: str | None
    asks: tuple[Asked, ...]
    used: int
    unused: int


# Signals


@frozen
class ToExecution:
    """A signal to one execution. Sent again under the same `delivery`, it acts once."""

    name: str
    payload: object = None
    delivery: str | None = None


@frozen
class ToKey:
    """A signal to a correlation key. Sent again under the same `delivery`, it acts once."""

    name: str
    key: str
    payload: object = None
    delivery: str | None = None


@frozen
class Sent:
    """`sent`; `again`: known by its delivery; `unmatched`: kept for who comes."""

    outcome: Literal["sent", "again", "unmatched"]
    delivery: str


@frozen
class UnmatchedSignal:
    """A signal to a correlation key that nobody has waited for yet."""

    name: str
    key: str
    delivery: str
    at: datetime
    payload: object


@frozen
class Unmatched:
    """A page of signals that nobody has waited for yet, newest first. `next`: the cursor of the next page, if there is one."""

    signals: tuple[UnmatchedSignal, ...]
    next: str | None


# Dead letters


@frozen
class DeadRetry:
    """Which dead letters are retried: those of a workflow, up to so many."""

    workflow: str | None = None
    limit: int = 100
    reason: str = ""


@frozen
class Retried:
    """Those that go on, and the others with the reason why not."""

    retried: tuple[str, ...]
    refused: Mapping[str, str]


@frozen
class Discard:
    """Which dead letters nobody will retry."""

    executions: tuple[str, ...]
    reason: str = ""


@frozen
class Discarded:
    """Those that were on the list, and are no more."""

    discarded: tuple[str, ...]


# Schedules


@frozen
class ScheduleFacts:
    """A schedule: its rule, when it is due, what it started last. `made`: over the API, not by a deployment."""

    id: str
    workflow: str
    rule: str
    zone: str
    overlap: str
    catch_up: str
    due: datetime | None
    queued: datetime | None
    last: datetime | None
    execution: str | None
    status: State | None
    paused: bool
    in_code: bool
    made: bool
    problem: str | None


def schedule_of(one: Listed) -> ScheduleFacts:
    return ScheduleFacts(
        one.id, one.workflow, one.rule, one.zone, one.overlap, one.catch_up, one.due, one.queued, one.last, one.execution, one.status, one.paused,
        one.in_code and not one.made, one.made, one.problem,
    )  # fmt: skip


@frozen
class Schedules:
    """The schedules of the tenant."""

    schedules: tuple[ScheduleFacts, ...]


@frozen
class NewSchedule:
    """A workflow to be started by the clock, each time with the same input: `cron` with its `zone`, or `every`, such as 15m."""

    id: str
    workflow: str
    input: object = None
    cron: str | None = None
    zone: str = "UTC"
    every: str | None = None
    jitter: str = "0s"
    overlap: Literal["skip", "queue", "allow"] = "skip"
    catch_up: Literal["skip", "one", "all"] = "one"
    within: str = "7d"


@frozen
class Span:
    """A span of the past, both ends included; times with their offset. `until`: now, if it is left out."""

    since: datetime
    until: datetime | None = None


@frozen
class FiredFacts:
    """What became of an instant. `execution`: the one that was started; else the one in its way."""

    schedule: str
    instant: datetime
    outcome: Literal["started", "queued", "skipped", "again"]
    execution: str | None


@frozen
class Backfilled:
    """What became of the instants of a span."""

    fired: tuple[FiredFacts, ...]


@frozen
class Removed:
    """What is there no more."""

    removed: str


# Audit


@frozen
class AuditRow:
    """Something that was done. Without `seq` it waits to be sealed."""

    id: int
    seq: int | None
    at: datetime
    event: str
    execution: str | None
    facts: object


def audit_of(row: Audited) -> AuditRow:
    try:
        facts: object = told(row.facts)
    except ValueError:
        facts = row.facts.decode(errors="backslashreplace")
    return AuditRow(row.id, row.seq, row.at, row.event, row.execution, facts)


@frozen
class Audit:
    """A page of the audit, newest first. `next`: the cursor of the next page, if there is one."""

    rows: tuple[AuditRow, ...]
    next: str | None


@frozen
class ChainVerdict:
    """Whether the tenant's chain is whole: `wrong` says what is not. `unsealed` rows wait for a worker."""

    whole: bool
    rows: int
    seq: int
    hash: str
    unsealed: int
    wrong: tuple[str, ...]


# The deployment and its surroundings


@frozen
class WorkflowFacts:
    """A workflow of this deployment, and where it is started."""

    name: str
    version: int
    start_url: str
    outline_url: str


@frozen
class Workflows:
    """The workflows of this deployment."""

    workflows: tuple[WorkflowFacts, ...]


@frozen
class Outlined:
    """What a workflow may do, drawn without running it: as data, and as a Mermaid flowchart."""

    workflow: str
    version: int
    outline: object
    mermaid: str


@frozen
class Check:
    """How something that the service depends on stands."""

    name: str
    ok: bool
    detail: str


@frozen
class Health:
    """`ok`, or what is wrong."""

    status: Literal["ok", "unavailable"]
    checks: tuple[Check, ...]
