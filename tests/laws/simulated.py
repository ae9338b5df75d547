"""The memory interpreter under a plan: every activity takes its time, signals and a cancellation come from outside, crashes when told to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from heapq import heappop, heappush
from typing import Any

from returns.result import Failure, Success

from flowdsl import Cancelled, Defect
from flowdsl.activation import Activation, Turn
from flowdsl.flow import Exit, Perform
from flowdsl.journal import ATTEMPT, INTERRUPTED, Entry
from flowdsl.machine import Pending
from flowdsl.memory import EPOCH, Memory, _Kept
from tests.laws.flows import CALLS, DEPLOYMENT, MICROSECOND, SIGNALS, Job, Oops, Plan, Request, answer_of, answered, code, install, job, takes
from tests.laws.oracle import Told


class Simulated(Memory):
    """Runs a plan; `crash(n)` as in `Memory`, for the root and its children alike."""

    def __init__(self, plan: Plan, *, crash: Callable[[int], bool] | None = None) -> None:
        install(plan)
        super().__init__(DEPLOYMENT, crash=crash)
        self.plan = plan
        self.agenda: list[tuple[datetime, int, Callable[[], None]]] = []
        self.made: list[tuple[int, int, int]] = []
        self._number = 0
        self._tries: Counter[tuple[str, str]] = Counter()
        self._ends: dict[tuple[str, str, int], datetime] = {}
        self.root = ""

    def at(self, time: datetime, then: Callable[[], None]) -> None:
        self._number += 1
        heappush(self.agenda, (time, self._number, then))

    def told(self) -> Told:
        """Runs the plan to its end, and tells it as the oracle would."""
        for time, name, value in self.plan.signals:
            self.at(EPOCH + time * MICROSECOND, lambda name=name, value=value: self.signal(self.root, SIGNALS[name], value))  # type: ignore[misc]
        if self.plan.cancel is not None:
            self.at(EPOCH + self.plan.cancel * MICROSECOND, lambda: self.cancel(self.root))
        self.root = self.start(job, Job(-1, 0))
        self.go()
        run = self.look(self.root)
        kept = self._kept[self.root]
        failed = (run.cause or "").count("; ") + 1 if kept.status == "blocked" else 0
        return Told(_name(run.exit, kept), 0 if run.exit is None else code(run.exit), failed, tuple(sorted(self.made)))

    @property
    def journal(self) -> list[Entry]:
        return self._kept[self.root].journal

    def go(self) -> None:
        while True:
            dues = [due for kept in self._kept.values() if kept.activation is not None and (due := kept.activation.next_due) is not None]
            if self.agenda and self.agenda[0][0] <= min(dues, default=self.agenda[0][0]):
                time, _, then = heappop(self.agenda)
                self.now = max(self.now, time)
                then()
            elif not dues or not self._pass_time():
                return

    def _let_out(self, kept: _Kept, turn: Turn) -> None:
        super()._let_out(kept, turn)
        while self._jobs:
            self._begin(*self._jobs.popleft())

    def _open(self, id: str, one: Pending) -> Activation | None:
        activation = self._kept[id].activation
        return activation if activation is not None and activation.fold.machine.pending.get(one.step) is one else None

    def _begin(self, id: str, one: Pending) -> None:
        """An attempt takes as long as the plan says; when a crash cut it short, the next one ends when it would have ended."""
        instruction = one.instruction
        assert isinstance(instruction, Perform)
        request: Request = instruction.request
        if self._open(id, one) is None:
            return
        call, attempt = CALLS[request.tag], self._tries[id, one.step]
        if (id, one.step, attempt) not in self._ends:
            self.made.append(((self.now - EPOCH) // MICROSECOND, request.tag, request.seen))
        end = self._ends.setdefault((id, one.step, attempt), self.now + takes(call, request.seen, attempt, self.plan.order) * MICROSECOND)
        exit: Any = {
            "ok": Success(answered(call, request.seen)),
            "fail": Failure(Oops(call.tag)),
            "bug": Success("no number"),
            "raise": Defect("laws.call", "as told"),
        }[answer_of(call, attempt)]

        def over() -> None:
            activation = self._open(id, one)
            if activation is not None:
                self._tries[id, one.step] += 1
                activation.ended(one.step, exit, self.now)
                self._commit(self._kept[id])

        self.at(max(end, self.now), over)


def _name(exit: Exit[Any, Any] | None, kept: _Kept) -> str | None:
    match exit:
        case None:
            return None
        case _ if kept.status == "blocked":
            return "blocked"
        case Success():
            return "success"
        case Failure():
            return "Failed"
        case Defect():
            return "Bug"
        case Cancelled():
            return "Cut"


def plain(journal: list[Entry]) -> list[tuple[Any, ...]]:
    """A journal without what a crash may add: interruptions, and with them positions and the numbers of attempts."""
    return [
        (entry.kind, entry.at, entry.step, entry.fingerprint, b"" if entry.kind == ATTEMPT else entry.body)
        for entry in journal
        if entry.kind != INTERRUPTED
    ]
