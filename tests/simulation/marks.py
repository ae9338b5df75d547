"""What is to happen in some run: a fault that never strikes where it could hurt proves nothing. Each mark must be met over the seeds of a run."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from attrs import define, field

MARKS: Final[dict[str, str]] = {
    # what became of a turn
    "turn done": "a turn was recorded",
    "turn awake": "a suspension was refused, for mail had come",
    "turn again": "a commit whose reply was lost had been committed: its repeat was told so",
    "turn not committed": "a commit whose reply was lost had not been committed: its repeat did it",
    "turn left": "another epoch had begun, and a turn was left out",
    "turn fenced": "a worker that was declared gone was told so at its commit",
    # ownership
    "taken over": "an execution of a worker that is gone was claimed",
    "taken over in mid-transaction": "a worker was declared gone while a transaction of its process was open",
    "claimed unknowing": "a claim whose reply was lost was found by a look around",
    "gone and back": "a worker found that it had been declared gone, and began anew",
    "suspect": "an execution was claimed after a death",
    "crash loop": "three workers died with one execution",
    "released": "a worker that stops let go of what it had",
    "warm": "a wake-up found its machine in memory",
    "heart missed": "a heartbeat failed",
    # mail
    "mail to a running one": "mail came to an execution that somebody owned",
    "mail to a suspended one": "mail woke an execution",
    "mail twice": "a delivery id came again",
    "mail before its wait": "a signal was stored before anybody had registered its key",
    "mail too late": "a signal came after its execution's end",
    "event beats timeout": "a wait with a deadline was met by its signal",
    "timeout beats event": "a wait with a deadline ran out, and its signal came later",
    # attempts
    "attempt failed": "a failed attempt was recorded before its delay",
    "attempt interrupted": "a death cut an attempt short, and the next owner recorded it",
    "called again": "an implementation was called again under its key",
    "at most once, cut short": "what may be tried once was cut short",
    "transaction unknown": "the commit of a transactional activity had no reply",
    "race won by work": "a race was won by its activity",
    "race won by time": "a race was won by its timer",
    # ends
    "undone": "an undo was recorded",
    "cancelled": "an execution ended by its cancellation",
    "cancelled too late": "a cancellation came when everything was done",
    "checkpoint": "a loop wrote its state",
    "child": "a child was started",
    "keyed child": "a child was started under a key",
    "schedule fired": "a schedule started an execution",
    # the front, the server, the way
    "start repeated": "a start whose reply was lost found its own execution",
    "front unknown": "the front did not learn what became of a call",
    "front killed": "the front died with calls under way",
    "killed": "a worker was killed", "frozen": "a process was frozen", "blocked loop": "a loop was blocked, and the heart beat on",
    "stopped": "a worker was asked to stop", "cut": "a connection was cut", "reply lost": "a reply was lost after its commit",
    "late commit": "a commit came after its client had gone", "restarted": "the server restarted", "refused": "the server took no connections",
    "deaf": "notifications were lost", "clock": "the server's clock jumped", "slow": "everything took long",
    "held up": "a statement was held up half way",
    "lock waited for": "a transaction waited for another's lock",
    "ended after faults": "an execution went through a fault and ended as predicted",
}  # fmt: skip

EVENTS: Final = {
    "execution.taken_over": "taken over", "worker.gone": "gone and back", "heart.missed": "heart missed",
    "transaction.unknown": "transaction unknown",
}  # fmt: skip
"""Marks that a line of the log is."""

STRUCK: Final = {
    "kill": "killed", "kill_front": "front killed", "stop": "stopped", "freeze": "frozen", "block": "blocked loop", "cut": "cut",
    "lose_reply": "reply lost",
    "commit_late": "late commit", "pause": "held up", "restart": "restarted", "refuse": "refused", "deaf": "deaf", "jump": "clock", "slow": "slow",
}  # fmt: skip
"""Marks that a fault is."""


@define
class Marks:
    met: Counter[str] = field(factory=Counter[str])

    def meet(self, name: str) -> None:
        assert name in MARKS, name
        self.met[name] += 1

    def missing(self) -> list[str]:
        return [name for name in MARKS if not self.met[name]]


def rows_met(marks: Marks, executions: dict[str, Any], journals: dict[str, list[Any]]) -> None:
    """What the rows that a run has left tell."""
    for id, rows in journals.items():
        names = {4: "attempt failed", 5: "attempt interrupted", 8: "checkpoint"}
        for row in rows:
            if row["kind"] in names:
                marks.meet(names[row["kind"]])
        workflow = executions[id]["workflow"] if id in executions else ""
        if workflow == "chaos.once" and any(row["kind"] == 2 for row in rows):
            marks.meet("at most once, cut short")
    for row in executions.values():
        kind = row["workflow"].removeprefix("chaos.")
        if row["parent"] is not None:
            marks.meet("keyed child" if row["key"] is not None else "child")
        if kind == "tick":
            marks.meet("schedule fired")
        if row["status"] == "cancelled":
            marks.meet("cancelled")
        exit = bytes(row["exit"] or b"")
        if kind == "too_late" and row["status"] == "succeeded":
            marks.meet("cancelled too late")
        if kind == "race" and exit:
            marks.meet("race won by work" if b"effect" in exit else "race won by time")
        if kind == "deadline" and exit:
            marks.meet("event beats timeout" if b"in time" in exit else "timeout beats event")
