"""What workers record, counted once a batch, and what they have in hand when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import structlog
from prometheus_client.core import GaugeMetricFamily

from flowdsl.journal import ATTEMPT, BUG, FAILURE, INTERRUPTED, SUCCESS
from flowdsl.metrics.attempts import SHORT
from flowdsl.metrics.spread import Counts, Spreads

if TYPE_CHECKING:
    from flowdsl.postgres.committer import Commit, Fate
    from flowdsl.postgres.store import Claimed
    from flowdsl.postgres.worker import Worker

log = structlog.get_logger("flowdsl")

_LONG: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 512)
_OUTCOMES: Final = {SUCCESS: "success", FAILURE: "failure", BUG: "defect", ATTEMPT: "failed attempt", INTERRUPTED: "interrupted"}


class Recorded:
    """The numbers of all workers of a process."""

    def __init__(self) -> None:
        self.workers: dict[Worker, None] = {}
        self.steps = Counts("steps", "Answers of activities that were recorded.", "activity", "outcome")
        self.ended = Counts("executions_ended", "Executions that ended or are blocked.", "workflow", "status")
        self.lasted = Spreads("execution_seconds", "From the start of executions to their end.", _LONG, "workflow")
        self.claims = Counts("claimed_executions", "Executions that came into memory.")
        self.takeovers = Counts("takeovers", "Executions of workers that are gone, taken over here.")
        self.blocks = Counts("blocked_executions", "Executions that need a person since then.")
        self.turns = Counts("turns", "Turns of executions that were sent to the store, by their fate.", "fate")
        self.entries = Counts("entries", "Journal entries that were recorded.")
        self.repeats = Counts("commit_repeats", "Commits that were sent again.")
        self.commit_seconds = Spreads("commit_seconds", "How long commits took, repeats included.", SHORT)
        self.commit_turns = Spreads("commit_turns", "Turns that shared a commit.", _SIZES)

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        for one in list(vars(self).values()):
            if isinstance(one, (Counts, Spreads)):
                yield from one.collect()
        yield from _in_hand(list(self.workers))


class Eye:
    """Is told by one worker: see `flowdsl.postgres.watching.Watch`."""

    def __init__(self, numbers: Recorded, worker: Worker) -> None:
        self._numbers, self._worker = numbers, worker

    def recorded(self, batch: Sequence[Commit], fates: Sequence[Fate], seconds: float) -> None:
        try:
            self._count(batch, fates, seconds)
        except Exception as error:  # a number that is missing must not cost a commit
            log.error("metrics.failed", error=str(error) or type(error).__name__)

    def _count(self, batch: Sequence[Commit], fates: Sequence[Fate], seconds: float) -> None:
        numbers, turns, steps, entries = self._numbers, self._numbers.turns.values, self._numbers.steps.values, 0
        numbers.commit_seconds.of().add(seconds)
        numbers.commit_turns.of().add(len(batch))
        for commit, fate in zip(batch, fates, strict=True):
            turns[(fate,)] += 1
            if fate not in ("done", "awake"):
                continue  # an earlier repeat was counted, or another worker's was
            turn = commit.turn
            entries += len(turn.entries)
            for entry in turn.entries:
                what = entry.fingerprint.split(" ", 2)
                if what[0] == "perform" and entry.kind in _OUTCOMES:
                    steps[what[1], _OUTCOMES[entry.kind]] += 1
            if turn.ended is not None:
                self._ended(commit.execution, turn.ended.status)
        numbers.entries.add(entries)

    def _ended(self, id: str, status: str) -> None:
        resident = self._worker.residents.get(id)
        if status == "blocked":
            self.blocked(1)
        if resident is None:
            return
        execution, workflow = resident.activation.execution, resident.activation.workflow.name
        self._numbers.ended.add(1, workflow, status)
        if status != "blocked":
            self._numbers.lasted.of(workflow).add(max(0.0, (self._worker.upper() - execution.started_at).total_seconds()))

    def repeated(self) -> None:
        self._numbers.repeats.add(1)

    def claimed(self, found: Sequence[Claimed]) -> None:
        self._numbers.claims.add(len(found))
        self._numbers.takeovers.add(sum(one.taken_over for one in found))
        self.blocked(sum(one.blocked for one in found))

    def blocked(self, count: int) -> None:
        self._numbers.blocks.add(count)


def _in_hand(workers: Sequence[Worker]) -> Iterator[GaugeMetricFamily]:
    def summed(name: str, about: str, of: Callable[[Worker], float]) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"flowdsl_{name}", about, value=sum(map(of, workers)))

    yield summed("workers_here", "Workers of this process.", lambda _: 1)
    yield summed("residents", "Executions in memory.", lambda worker: len(worker.residents))
    yield summed("residents_limit", "Executions that have room in memory.", lambda worker: worker.tuning.capacity)
    yield summed("warm_executions", "Suspended executions whose machines are kept.", lambda worker: len(worker.warm))
    yield summed("budget_waits", "Attempts that wait until their budgets let them begin.", lambda worker: len(worker.budgets))
    yield summed("leaked_threads", "Threads lost to implementations that do not come back.", lambda worker: worker.hands.leaked)
    pools = [store.pool for store in {worker.store: None for worker in workers}]
    idle = sum(pool.get_idle_size() for pool in pools)
    family = GaugeMetricFamily("flowdsl_pool_connections", "Connections of the store's pool.", labels=["state"])
    family.add_metric(["idle"], idle)
    family.add_metric(["used"], sum(pool.get_size() for pool in pools) - idle)
    yield family
    yield GaugeMetricFamily("flowdsl_pool_limit", "Connections that there may be.", value=sum(pool.get_max_size() for pool in pools))


__all__ = ["Eye", "Recorded"]
