"""Invariants that take the workflow's code: what ended is folded anew, what is open must fit the code and wait for something."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from uuid import UUID

from flowdsl.binding import Deployment
from flowdsl.codec import NotJournalable
from flowdsl.errors import NotGenuine
from flowdsl.flow import Do, Execution, Join, Perform, Receive, Sleep
from flowdsl.journal import Divergence, Entry, Fold, codecs_of, encode_exit
from flowdsl.machine import Pending
from flowdsl.postgres.deep.rows import ATTEMPT, ENDED, INTERRUPTED, OPERATOR, Batch, Finding, Row, standing
from flowdsl.postgres.encryption import Encryption, Place, encrypted_with, entry_of, exit_of, request_of
from flowdsl.postgres.store import Connection

BYTES = 64 << 20
"""As much of journals and requests as is in memory at a time; one that is larger is read alone."""


async def refolded(connection: Connection, batch: Batch, deployment: Deployment, encryption: Encryption) -> list[Finding]:
    """I3, I7, I8, I14, I16 and I17 of the executions of a batch whose workflows this deployment has."""
    findings: list[Finding] = []
    known = [id for id, row in batch.executions.items() if (row["workflow"], row["version"]) in deployment.versions]
    for ids in await _parts(connection, known):
        requests = await connection.fetch("select id, request, exit from flowdsl.executions where id = any($1::uuid[])", ids)
        bodies: dict[UUID, dict[int, Row]] = {}
        for row in await connection.fetch("select execution, position, site, body from flowdsl.journal where execution = any($1::uuid[])", ids):
            bodies.setdefault(row["execution"], {})[row["position"]] = row
        for row in requests:
            one = batch.executions[row["id"]]
            try:
                opened, entries = _opened(one, row, encryption), _opened_entries(batch, one, bodies.get(row["id"], {}), encryption)
            except NotGenuine as error:
                findings.append(Finding(7, str(row["id"]), error.problem, error.remedy))
                continue
            findings += _of_one(batch, one, opened, entries, deployment)
    return findings


def _opened(row: Row, bodies: Row, encryption: Encryption) -> Row:
    """Input and exit as they were recorded. Raises `KeyMissing`, `NotGenuine`."""
    id, exit = str(row["id"]), bodies["exit"]
    return {
        "request": encryption.decrypt(request_of(row["tenant"], id), bodies["request"]),
        "exit": None if exit is None else encryption.decrypt(exit_of(row["tenant"], id), exit),
    }


def _opened_entries(batch: Batch, row: Row, entries: dict[int, Row], encryption: Encryption) -> dict[int, Row]:
    if not any(encrypted_with(one["body"]) for one in entries.values()):
        return entries
    kinds = {one["position"]: one for one in batch.journal(row["id"])}
    return {
        position: {**dict(one), "body": encryption.decrypt(_place(row, kinds[position]), one["body"])}
        for position, one in entries.items()
        if position in kinds
    }


def _place(row: Row, entry: Row) -> Place:
    return entry_of(row["tenant"], str(row["id"]), entry["position"], entry["kind"], entry["step"])


async def _parts(connection: Connection, ids: Sequence[UUID]) -> list[list[UUID]]:
    sizes = await connection.fetch(
        "select x.id, octet_length(x.request)"
        " + coalesce((select sum(octet_length(j.body)) from flowdsl.journal j where j.execution = x.id), 0) as size"
        " from flowdsl.executions x where x.id = any($1::uuid[])",
        ids,
    )
    parts: list[list[UUID]] = []
    size = BYTES
    for row in sizes:
        if size + row["size"] > BYTES:
            parts.append([])
            size = 0
        parts[-1].append(row["id"])
        size += row["size"]
    return parts


def _of_one(batch: Batch, row: Row, bodies: Row, entries: dict[int, Row], deployment: Deployment) -> Iterator[Finding]:
    id = str(row["id"])
    workflow, definitions = deployment.workflow(row["workflow"], row["version"]), deployment.definitions(row["workflow"], row["version"])
    parent = None if row["parent"] is None else str(row["parent"])
    execution = Execution(id, row["tenant"], row["workflow"], row["key"], parent, row["started"])
    recorded = [_entry(one, entries[one["position"]]) for one in standing(batch.journal(row["id"])) if one["position"] in entries]
    try:
        fold = Fold(execution, Do(workflow.body, (codecs_of(workflow).request.decode(bodies["request"]),)), definitions)
        fold.replay(recorded)
    except Divergence as error:
        if row["status"] != "blocked":  # one that is blocked says so already
            yield Finding(8, id, f"it does not fit the code: {error.verdict}", "Deploy code that fits the record: see `flowdsl compat`")
        return
    except Exception as error:  # bytes that are no JSON, values of other types: whatever it is, the look goes on
        if row["status"] != "blocked":
            yield Finding(
                7,
                id,
                f"its journal cannot be folded: {error or type(error).__name__}",
                "Restore its journal from a backup, or rewind it to a step before",
            )
        return
    yield from _times(batch, row, execution, recorded, deployment, bodies["request"])
    if row["status"] in ENDED:
        yield from _ended(row, bodies["exit"], fold, deployment)
    elif row["status"] == "suspended":
        yield from _waits(batch, row, fold)


def _entry(row: Row, body: Row) -> Entry:
    live = None if row["live"] is None else tuple((one.lower, one.upper) for one in row["live"])
    return Entry(row["position"], row["kind"], row["at"], row["step"], row["fingerprint"], body["site"], body["body"], live)


def _ended(row: Row, stored: bytes | None, fold: Fold, deployment: Deployment) -> Iterator[Finding]:
    """I7: the exit that folding gives is the stored one, byte for byte, and nothing is asked on the way."""
    id, exit = str(row["id"]), fold.machine.exit
    if exit is None:
        asked = ", ".join(f"{fold.fingerprint(one)} (step {one.step})" for one in list(fold.machine.pending.values())[:5])
        yield Finding(7, id, f"it has {row['status']}, and folding its journal still asks for {asked or 'nothing, without an end'}", _RESTORE)
        return
    given: bytes | None
    try:
        given = encode_exit(deployment.workflow(row["workflow"], row["version"]), exit)
    except NotJournalable:
        given = stored if stored is not None and stored.startswith(b'{"defect":') else None
    if given != stored:
        yield Finding(7, id, f"folding its journal gives the exit {_shown(given)}, and stored is {_shown(stored)}", _RESTORE)


_RESTORE = "Its journal or its row was changed: restore them from a backup, or rewind it to a step before"


def _shown(exit: bytes | None) -> str:
    return "none" if exit is None else bytes(exit[:200]).decode(errors="backslashreplace")


def _waits(batch: Batch, row: Row, fold: Fold) -> Iterator[Finding]:
    """I3 and I14: what is suspended waits for something that can come, and wakes when it is due."""
    id, pending = str(row["id"]), list(fold.machine.pending.values())
    if row["wake"] is not None and row["wake"] <= batch.now:
        return  # it will be claimed, and finds out
    if not pending:
        yield Finding(3, id, "it is suspended, and waits for nothing", _WAKE)
    dues = [due for one in pending if (due := _due(one)) is not None]
    if dues and (row["wake"] is None or row["wake"] > min(dues)):
        wake = "at " + row["wake"].isoformat() if row["wake"] is not None else "never"
        yield Finding(14, id, f"it has a timer due at {min(dues).isoformat()}, and wakes {wake}", _WAKE)
    for one in pending:
        came = _came(batch, row, one)
        if came:
            yield Finding(14, id, f"it waits for {fold.fingerprint(one)} (step {one.step}), and {came}: nothing wakes it", _WAKE)


_WAKE = "Set its wake to now: a worker claims it and goes on"


def _due(one: Pending) -> datetime | None:
    if isinstance(one.instruction, Sleep):
        until = one.instruction.until
        try:
            return until if isinstance(until, datetime) else one.opened + until
        except OverflowError:
            return None
    return one.due if isinstance(one.instruction, Perform) else None


def _came(batch: Batch, row: Row, one: Pending) -> str | None:
    """What an open wait is for has come already."""
    mails = batch.mail.get(row["id"], ())
    match one.instruction:
        case Receive() as receive:
            fits = [mail for mail in mails if (mail["kind"], mail["name"], mail["key"]) == ("signal", receive.signal.name, receive.key)]
            return f"mail {fits[0]['seq']} in its mailbox is that" if fits else None
        case Join() as join:
            fits = [mail for mail in mails if (mail["kind"], mail["name"]) == ("exit", join.child.id)]
            child = batch.relatives.get(UUID(join.child.id))
            if not fits and child is not None and child["parent"] == row["id"] and child["status"] in ENDED and row["wake"] is None:
                return f"that child has {child['status']}"
            return f"mail {fits[0]['seq']} in its mailbox is that" if fits else None
        case _:
            return None


def _times(batch: Batch, row: Row, execution: Execution, recorded: Sequence[Entry], deployment: Deployment, request: bytes) -> Iterator[Finding]:
    """I16 and I17, exactly: when each sleep was opened, and how many attempts its policy gives."""
    workflow, definitions = deployment.workflow(row["workflow"], row["version"]), deployment.definitions(row["workflow"], row["version"])
    if any(entry.kind == OPERATOR for entry in recorded):
        return  # what a person took back counts anew
    fold = Fold(execution, Do(workflow.body, (codecs_of(workflow).request.decode(request),)), definitions)
    fold.machine.markers = frozenset(entry.step for entry in recorded if entry.fingerprint.startswith("changed "))
    fold.machine.replaying = True
    fold.begin()
    for entry in recorded:
        one = fold.machine.pending.get(entry.step)
        if one is not None:
            yield from _too_early(execution.id, entry, one)
            yield from _too_many(execution.id, entry, one)
        fold.fold(entry)


def _too_early(id: str, entry: Entry, one: Pending) -> Iterator[Finding]:
    due = _due(one) if isinstance(one.instruction, Sleep) and entry.kind == 1 else None
    if due is not None and entry.at < due:
        found = f"the sleep of step {entry.step} was due at {due.isoformat()}, and ended at {entry.at.isoformat()}"
        yield Finding(16, id, found, "Compare the clocks of the workers with the server's")


def _too_many(id: str, entry: Entry, one: Pending) -> Iterator[Finding]:
    if isinstance(one.instruction, Perform) and entry.kind in (ATTEMPT, INTERRUPTED):
        number = json.loads(entry.body)["number"]
        last = number if entry.kind == ATTEMPT else number - 1  # the last attempt of all may be interrupted; its end follows
        if last and one.instruction.activity.policies.retry.exhausted(last):
            found = f"after attempt {last} of {one.instruction.activity.name} (step {entry.step}) its policy gives no more, and yet another followed"
            yield Finding(17, id, found, "If the policy was lowered since then this is no fault; else report it with the journal")


__all__ = ["refolded"]
