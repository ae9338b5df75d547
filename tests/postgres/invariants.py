"""What must be true of a store after any test: read from its rows; only the fold is the runtime's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import asyncpg

from flowdsl import Deployment, Execution
from flowdsl.activation import Activation, live_entries
from flowdsl.journal import CHECKPOINT, OPERATOR, Entry
from flowdsl.postgres import store
from flowdsl.postgres.deep import look
from flowdsl.postgres.encryption import exit_of, from_surroundings, request_of

EXITS = (1, 2, 3)
ENDED = ("succeeded", "failed", "cancelled")


async def check(connection: asyncpg.Connection, deployment: Deployment) -> list[str]:
    """What is wrong, in words; nothing when all is well. The rows are those of one moment: workers may still be at it."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        wrong = await _of_all(connection, deployment)
    report = await look(connection, deployment, limit=1_000_000, encryption=from_surroundings())
    return wrong + [str(finding) for finding in report.findings]


async def _of_all(connection: asyncpg.Connection, deployment: Deployment) -> list[str]:
    wrong: list[str] = []
    journals: dict[str, list[Any]] = {}
    for row in await connection.fetch("select * from flowdsl.journal order by execution, position"):
        journals.setdefault(str(row["execution"]), []).append(row)
    rows = {str(row["id"]): row for row in await connection.fetch("select * from flowdsl.executions")}
    for id in journals:
        wrong += [f"{id}: {what}" for what in of_journal(journals[id])]
    for id, row in rows.items():
        wrong += [f"{id}: {what}" for what in await of_execution(connection, row, rows, deployment, journals.get(id, []))]
    for row in await connection.fetch("select execution, array_agg(seq order by seq) as seqs from flowdsl.mailbox group by 1"):
        counted = rows[str(row["execution"])]["mail"]
        if max(row["seqs"]) > counted:
            wrong.append(f"{row['execution']}: mail {row['seqs']} beyond the count {counted}")
    return wrong


def of_journal(rows: list[Any]) -> list[str]:
    wrong: list[str] = []
    if [row["position"] for row in rows] != list(range(len(rows))):
        wrong.append(f"positions {[row['position'] for row in rows]}")
    if [row["epoch"] for row in rows] != sorted(row["epoch"] for row in rows):
        wrong.append("epochs fall")
    if [row["at"] for row in rows] != sorted(row["at"] for row in rows):
        wrong.append("time runs back")
    exits: Counter[str] = Counter()
    for row in rows:
        if row["kind"] == OPERATOR:
            exits.clear()  # what was taken back is done again
        elif row["kind"] in EXITS:
            exits[row["step"]] += 1
    wrong += [f"step {step} has {count} exits" for step, count in exits.items() if count > 1]
    return wrong


async def of_execution(connection: Any, row: Any, rows: Mapping[str, Any], deployment: Deployment, journal: list[Any]) -> list[str]:
    id, wrong = str(row["id"]), []
    if journal and journal[-1]["epoch"] > row["epoch"]:
        wrong.append("an entry is of an epoch that it never had")
    if row["status"] in ENDED:
        if row["owner"] is not None or row["wake"] is not None or row["exit"] is None:
            wrong.append("ended, and yet owned, due, or without an exit")
        keys = from_surroundings()
        live = keys.entries(row["tenant"], id, [store._entry(one) for one in await connection.fetch(store._LOAD, [id])])
        every = keys.entries(row["tenant"], id, [store._entry(one) for one in journal])
        row = {
            **dict(row),
            "request": keys.decrypt(request_of(row["tenant"], id), row["request"]),
            "exit": keys.decrypt(exit_of(row["tenant"], id), row["exit"] or b""),
        }
        if any(entry.kind == OPERATOR for entry in every):
            every = live_entries(every)  # a person took some of it back
        for how, entries in (("all", every), ("live", live)):
            refolded = refold(deployment, row, entries)
            if refolded != row["exit"]:
                wrong.append(f"folding {how} rows gives {refolded!r}, stored is {row['exit']!r}")
    elif row["status"] != "blocked" and row["owner"] is None and row["wake"] is None and row["status"] == "running":
        wrong.append("running, and nobody will ever claim it")
    parent = rows.get(str(row["parent"]))
    if parent is not None and parent["status"] in ENDED and row["status"] not in (*ENDED, "blocked") and not row["detached"]:
        cancels = await connection.fetchval("select count(*) from flowdsl.mailbox where execution = $1 and kind = 'cancel'", row["id"])
        taken = any(one["kind"] == 7 for one in journal)
        if not cancels and not taken:
            wrong.append("its parent has ended, and nobody asked it to end")
    return wrong


def refold(deployment: Deployment, row: Any, entries: list[Entry]) -> bytes | str:
    """The exit that a fresh fold of a finished journal gives; what is open else."""
    parent = None if row["parent"] is None else str(row["parent"])
    execution = Execution(str(row["id"]), row["tenant"], row["workflow"], row["key"], parent, row["started"])
    workflow, definitions = deployment.workflow(row["workflow"], row["version"]), deployment.definitions(row["workflow"], row["version"])
    activation = Activation(execution, workflow, row["request"], definitions)
    activation.begin(entries, [], entries[-1].at if entries else row["started"])
    turn = activation.take_turn()
    new = [entry for entry in turn.entries if entry.kind != CHECKPOINT]
    if turn.ended is None or turn.performs or new:
        return f"open steps {list(activation.fold.machine.pending)}, new entries {new}"
    return turn.ended.exit
