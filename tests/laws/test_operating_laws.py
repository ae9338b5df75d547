"""Interventions in generated flows: a retry or a rewind leads to an end again, what stands is never called again, and folding tells the same."""

from __future__ import annotations

from random import Random

from flowdsl.activation import Activation, live_entries
from flowdsl.errors import FlowError
from flowdsl.journal import SUCCESS
from flowdsl.memory import Memory, _Kept
from flowdsl.operating import CannotRetry, Plan, Subject, retried, rewound
from tests.laws import test_machine_laws as laws
from tests.laws.flows import DEPLOYMENT, Shape, seeded
from tests.laws.simulated import Simulated

ENDED = ("succeeded", "failed", "cancelled")


class Watched(Simulated):
    """Keeps what each intervention left standing, and what is called afterwards."""

    def __init__(self, plan: laws.Plan) -> None:
        super().__init__(plan)
        self.standing: dict[str, set[str]] = {}
        self.wrong: list[str] = []

    def _intervene(self, kept: _Kept, plan: Plan) -> None:
        stands = {p for low, high in plan.live for p in range(low, high)}
        self.standing[kept.execution.id] = {entry.step for entry in kept.journal if entry.position in stands and entry.kind == SUCCESS}
        for key in [key for key in self._ends if key[0] == kept.execution.id]:
            del self._ends[key]
        super()._intervene(kept, plan)

    def _begin(self, id: str, one: laws.Pending) -> None:
        if one.step in self.standing.get(id, ()):
            self.wrong.append(f"{id} {one.step} stood, and is called again")
        super()._begin(id, one)


def subject(run: Memory, kept: _Kept) -> Subject:
    return Subject(kept.execution, kept.request, kept.journal, DEPLOYMENT.workflow)


def consistent(run: Watched) -> None:
    assert not run.wrong, run.plan
    for kept in run._kept.values():
        activation = Activation(kept.execution, kept.workflow, kept.request, DEPLOYMENT.workflow)
        activation.fold.replay(live_entries(kept.journal))
        if kept.status in ENDED:
            ended = activation.take_turn().ended
            assert ended is not None and ended.exit == kept.exit, run.plan


def test_a_retry_leads_to_an_end_and_calls_nothing_that_stands() -> None:
    tried = 0
    for seed in laws.seeds(400):
        plan = seeded(seed, Shape(depth=3.5 + seed % 2))
        if seed % 3 == 0:
            plan = plan.cancelled(Random(seed).randrange(1, 40_000_000))
        run = Watched(plan)
        before = run.told().exit
        kept = run._kept[run.root]
        if kept.status not in ("failed", "cancelled", "blocked"):
            continue
        try:
            planned = retried(subject(run, kept), by="", reason="")
        except CannotRetry:
            assert before in ("Bug", "Failed"), plan
            continue
        assert planned.dropped
        tried += 1
        try:
            run.retry(run.root)
        except CannotRetry:
            continue  # a child whose own code decided its end
        run.go()
        consistent(run)
    assert tried > 40


def test_a_rewind_to_any_entry_leads_to_an_end() -> None:
    tried = 0
    for seed in laws.seeds(250):
        plan = seeded(seed, Shape(depth=4))
        run = Watched(plan)
        run.told()
        kept = run._kept[run.root]
        if not kept.journal:
            continue
        tried += 1
        position = Random(seed).randrange(len(kept.journal))
        planned = rewound(subject(run, kept), position, by="", reason="")
        assert planned.what.fresh
        run.rewind(run.root, position)
        run.go()
        consistent(run)
    assert tried > 100


def test_a_fork_of_any_prefix_goes_on_from_there() -> None:
    for seed in laws.seeds(150):
        run = Watched(seeded(seed, Shape(depth=4)))
        run.told()
        kept = run._kept[run.root]
        if kept.journal:
            position = Random(seed).randrange(len(kept.journal))
            run.fork(run.root, position)
            run.go()
            consistent(run)


def test_what_is_refused_says_why() -> None:
    run = Watched(seeded(1))
    run.told()
    kept = run._kept[run.root]
    try:
        rewound(subject(run, kept), "no.such.step", by="", reason="")
    except FlowError as error:
        assert "never answered here" in str(error)
    else:
        raise AssertionError("a step that never was")
