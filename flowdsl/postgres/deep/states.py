"""Invariants of executions: their states, their owners, their keys, their parents and children."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from hashlib import blake2b
from uuid import UUID

from flowdsl.postgres.deep.rows import CANCEL, ENDED, OPEN, OPERATOR, Batch, Finding, Row, as_id, standing


def i2_ended_is_ended(batch: Batch) -> Iterator[Finding]:
    """What has ended has an exit and the time of it, and nobody has it or will take it."""
    for id, row in batch.executions.items():
        if row["status"] not in ENDED:
            if row["ended"] is not None:
                yield Finding(2, str(id), f"it is {row['status']}, and has ended at {row['ended'].isoformat()}", "Retry it, or terminate it")
            continue
        if row["owner"] is not None or row["wake"] is not None:
            what = f"owned by worker {row['owner']}" if row["owner"] is not None else f"due at {row['wake'].isoformat()}"
            yield Finding(2, str(id), f"it has {row['status']}, and yet is {what}", "Clear owner and wake of its row: a worker would run it again")
        if row["exit"] is None or row["ended"] is None:
            yield Finding(
                2, str(id), f"it has {row['status']} without {'an exit' if row['exit'] is None else 'a time'}", "Retry it, or restore its row"
            )


def i3_one_state(batch: Batch) -> Iterator[Finding]:
    """What is open is owned, or will be claimed, or waits, or is blocked with a cause: one of these."""
    for id, row in batch.executions.items():
        if row["status"] not in OPEN:
            continue
        for found in _of_state(row):
            yield Finding(3, str(id), found, "Set its wake to now, so that a worker claims it and finds out; report this with its row")
        if row["owner"] is not None and row["owner"] not in batch.workers:
            yield Finding(
                3, str(id), f"its owner {row['owner']} has no row among the workers: nobody will take it over", "Clear its owner, set its wake to now"
            )


def _of_state(row: Row) -> Iterator[str]:
    owned, due = row["owner"] is not None, row["wake"] is not None
    match row["status"]:
        case "blocked":
            if owned or due:
                yield "it is blocked, and yet owned or due"
            if not row["cause"]:
                yield "it is blocked without a cause"
        case "running":
            if owned and due:
                yield "it is owned, and due for others at the same time"
            if not owned and not due:
                yield "it is running, and nobody has it or will ever claim it"
        case _:
            if owned:
                yield "it is suspended, and yet owned"
    if row["status"] != "blocked" and row["exit"] is not None:
        yield f"it is {row['status']}, and yet has an exit"


def i4_nothing_waits_for_long(batch: Batch, patience: timedelta) -> Iterator[Finding]:
    """While a worker lives nothing stays due, and nothing stays with a worker that is gone."""
    alive = [one for one in batch.workers.values() if not one["gone"] and one["beat"] > batch.now - one["lease"]]
    if not alive:
        return
    limit = 2 * max(one["lease"] for one in batch.workers.values()) + patience
    for id, row in batch.executions.items():
        owner = batch.workers.get(row["owner"]) if row["owner"] is not None else None
        if owner is not None and owner["beat"] < batch.now - limit:
            state = "is gone" if owner["gone"] else "is silent, and was never declared gone"
            found = f"its worker {state} for {_seconds(batch.now - owner['beat'])}, and nobody takes it over"
            yield Finding(4, str(id), found, f"Start a worker that knows {row['workflow']}")
        elif owner is None and row["status"] in ("running", "suspended") and row["wake"] is not None and row["wake"] < batch.now - limit:
            found = f"it has been due for {_seconds(batch.now - row['wake'])}, and nobody takes it"
            yield Finding(4, str(id), found, f"Start a worker that knows {row['workflow']}, or more of them")


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():.0f} s"


def i12_one_holder_a_key(batch: Batch) -> Iterator[Finding]:
    """A key has one current execution, and what it let go has ended."""
    holders: dict[tuple[str, str, str, str], UUID] = {}
    for id, row in batch.executions.items():
        if row["key"] is None:
            continue
        name = (row["tenant"], row["workflow"], row["scope"], row["key"])
        if row["current"] and holders.setdefault(name, id) != id:
            yield Finding(12, str(id), f"its key {row['key']!r} is that of {holders[name]} too", "Recreate the index executions_key; end one of them")
        intervened = any(one["kind"] == OPERATOR for one in batch.journal(id))
        if not row["current"] and row["status"] in OPEN and not intervened:
            yield Finding(12, str(id), f"it is {row['status']}, and another may have its key {row['key']!r}", "End it, or give it its key back")


def i18_started_by_its_parent(batch: Batch) -> Iterator[Finding]:
    """A child is of its parent's tenant, and its parent's journal tells of it."""
    for id, row in batch.executions.items():
        parent = batch.relatives.get(row["parent"])
        if parent is None:
            continue
        if parent["tenant"] != row["tenant"]:
            yield Finding(
                18, str(id), f"it is of tenant {row['tenant']!r}, its parent {parent['id']} of {parent['tenant']!r}", "Find out who wrote its row"
            )
        told = batch.starts.get((parent["id"], row["parent_step"]), ())
        if row["key"] is None and not any(as_id(body) == id for body in told):
            found = f"step {row['parent_step']} of its parent {parent['id']} has no entry that tells of it"
            yield Finding(18, str(id), found, "Terminate it: its parent will start another")


def i18_children_exist(batch: Batch) -> Iterator[Finding]:
    """What an open execution's journal tells to have started is there."""
    for id, row in batch.executions.items():
        if row["status"] not in OPEN:
            continue
        for entry in standing(batch.journal(id)):
            if entry["kind"] == 1 and entry["fingerprint"].startswith("start "):
                child = as_id(entry["body"])
                if child is not None and child == own_child(id, entry["step"]) and child not in batch.relatives and child not in batch.executions:
                    found = f"its step {entry['step']} started {child}, which is not there"
                    yield Finding(18, str(id), found, "Restore the child from a backup, or rewind to that step")


def i18_cancelled_with_its_parent(batch: Batch) -> Iterator[Finding]:
    """Once a parent has ended its children are asked to end, but for the detached ones."""
    for id, row in batch.executions.items():
        parent = batch.relatives.get(row["parent"])
        if parent is None or parent["status"] not in ENDED or row["status"] not in OPEN or row["detached"]:
            continue
        asked = any(one["kind"] == "cancel" for one in batch.mail.get(id, ()))
        taken = any(one["kind"] in (CANCEL, OPERATOR) for one in batch.journal(id))
        if not asked and not taken:
            yield Finding(18, str(id), f"its parent {parent['id']} has {parent['status']}, and nobody asked it to end", f"Run `flowdsl cancel {id}`")


def own_child(parent: UUID, step: str) -> UUID:
    """The id that a child without a key has: by its parent and step."""
    return UUID(bytes=parent.bytes[:6] + blake2b(f"{parent}/{step}".encode(), digest_size=16).digest()[6:])


CHECKS = (i2_ended_is_ended, i3_one_state, i12_one_holder_a_key, i18_started_by_its_parent, i18_children_exist, i18_cancelled_with_its_parent)
