"""The workloads: what is done, in which sizes, by whom. Peers come in the sizes that they manage in a bearable time; ratios are of rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import frozen

Form = Literal["quick", "usual", "long"]
"""Quick: all of it, tiny. Usual: the page. Long: with the sizes that take minutes each."""


@frozen
class Workload:
    name: str
    title: str
    unit: str
    what: str
    who: Mapping[int, Sequence[str]]
    """By size."""
    quick: tuple[int, ...]
    long: tuple[int, ...] = ()
    """Sizes of the long form alone."""
    patience: float = 15.0
    """Seconds of all rounds for one size and one participant; who has used them up sits out the other rounds."""
    do: str = ""
    flush_ms: float = 0.0

    def sizes(self, form: Form) -> list[int]:
        if form == "quick":
            return list(self.quick)
        return [size for size in self.who if form == "long" or size not in self.long]

    def parties(self, size: int) -> Sequence[str]:
        """A size that is not in the list is that of the next smaller one."""
        known = max((one for one in self.who if one <= size), default=min(self.who))
        return self.who[known]


_LIMITS = ("bare", "ends", "single")
_PEERS = ("dbos", "absurd", "absurd8", "temporal", "restate")

WORKLOADS = {
    one.name: one
    for one in (
        Workload(
            "seq", "Sequential steps", "steps", "workflows of ten no-op steps that answer with 100 bytes, so many at a time",
            {1: ("ours", *_LIMITS, "dbos", "absurd", "temporal", "restate"), 32: ("ours", *_LIMITS, *_PEERS), 256: ("ours", *_LIMITS, *_PEERS)},
            quick=(1, 32), patience=30,
        ),
        Workload(
            "slow-disk", "Sequential steps, with a WAL flush that takes 1 ms longer", "steps", "the same on an emulated network disk",
            {1: ("ours", *_LIMITS, "dbos", "absurd"), 256: ("ours", *_LIMITS, "dbos", "absurd8")},
            quick=(1,), patience=15, do="seq", flush_ms=1.0,
        ),
        Workload(
            "fanout", "Parallel steps of one workflow", "steps", "one workflow that does so many no-op steps at once",
            {1000: ("ours", "bare", "dbos", "absurd", "temporal", "restate")}, quick=(100,), patience=14,
        ),
        Workload(
            "children", "Children", "children", "one workflow that starts so many children of one step each, and waits for all",
            {1000: ("ours", "ends", "dbos", "absurd", "restate"), 10_000: ("ours", "ends")}, quick=(100,), patience=20,
        ),
        Workload(
            "wake", "Suspended, then woken", "executions", "so many executions wait for a signal; from the first signal until the last has ended",
            {1000: ("ours", "dbos", "absurd"), 10_000: ("ours",), 100_000: ("ours",)}, quick=(200,), patience=15,
        ),
        Workload(
            "kill", "Killed, then resumed", "steps",
            "a process is killed after so many steps of one execution; from a fresh process's start of work to the next step, the lease not counted",
            {100: ("ours", "dbos", "absurd"), 1000: ("ours", "dbos", "absurd"), 10_000: ("ours",)}, quick=(100,), patience=14,
        ),
        Workload(
            "storm", "Schedule storms", "starts", "so many schedules fall due in one instant; until all that they start have ended",
            {1000: ("ours", "ends"), 10_000: ("ours", "ends")}, quick=(100,), patience=20, long=(10_000,),
        ),
        Workload(
            "cold", "Cold start", "processes", "from the start of a process to the first result of a workflow of one step; the server runs",
            {1: ("ours", "single", "dbos", "absurd", "temporal", "restate")}, quick=(1,), patience=12,
        ),
        Workload(
            "people", "A sync over HTTP", "records",
            "all people of an organization and what hangs on them, page by page into Postgres, with a journal; beside a client that asks for the same"
            " rows and writes them and their links with the same statements, and has no journal",
            {10_000: ("ours", "client"), 50_000: ("ours", "client")}, quick=(200,), long=(50_000,), patience=400,
        ),
    )
}  # fmt: skip

ALONE = {
    "latency": "start to first activity, step to step, last activity to the answer of wait; one execution at a time",
    "resume": "loading and folding journals of 100, 1,000 and 10,000 steps, and loops of 100 to 100,000 rounds, beside a bare fetch and decode",
    "inside": "machine, fold and codec alone, in memory",
    "profile": "where the client's CPU of a step goes",
}
"""What nobody else takes part in."""
