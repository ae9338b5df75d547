"""What arithmetic says of large numbers, and a small simulation of what it does not say: how long a step waits for its commit.

`python -m tests.bench.growth_model` prints the tables of docs/scale.md that are computed; `--write` puts them there, with those that were measured.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"
MEASURED = PAGE.with_suffix(".json")
DAY = 86_400
SEED = 7


# Volumes


@frozen
class Costs:
    """What was measured, of an execution of ten steps of 100 bytes."""

    steps: int
    wal: float
    """Bytes a step, its share of the start and the end included."""
    stored: float
    """Bytes an execution, indexes included."""
    client_us: float
    server_us: float

    @classmethod
    def measured(cls) -> Costs:
        return cls(**json.loads(MEASURED.read_text())["costs"])


@frozen
class Volume:
    """One Postgres under so many executions a day, spread so that the busiest hour has three times the mean."""

    daily: int
    costs: Costs
    peak: float = 3.0

    @property
    def rate(self) -> float:
        return self.daily * self.costs.steps / DAY

    @property
    def cores(self) -> float:
        """Of the server, busy at the peak."""
        return self.rate * self.peak * self.costs.server_us / 1e6

    @property
    def processes(self) -> int:
        """Workers that the peak needs, none of them busier than two thirds."""
        return max(1, round(self.rate * self.peak * self.costs.client_us / 1e6 / 0.667 + 0.5))

    @property
    def wal_daily(self) -> float:
        return self.daily * self.costs.steps * self.costs.wal

    @property
    def stored_daily(self) -> float:
        return self.daily * self.costs.stored

    def transactions_daily(self, batch: float) -> float:
        return self.daily * self.costs.steps / batch


def volumes(costs: Costs) -> list[list[str]]:
    ofs = [Volume(daily, costs) for daily in (1_000_000, 10_000_000, 100_000_000)]
    batches = [_mean_batch(one) for one in ofs]
    rows: list[tuple[str, Iterable[str]]] = [
        ("executions a day", (f"{one.daily:,}" for one in ofs)),
        ("steps a second, mean", (f"{one.rate:,.0f}" for one in ofs)),
        ("steps a second in the busiest hour", (f"{one.rate * one.peak:,.0f}" for one in ofs)),
        ("server cores then", (f"{one.cores:.2f}" for one in ofs)),
        ("worker processes then", (f"{one.processes}" for one in ofs)),
        ("WAL a day", (_bytes(one.wal_daily) for one in ofs)),
        ("WAL a second, busiest hour", (_bytes(one.wal_daily / DAY * one.peak) for one in ofs)),
        ("stored a day", (_bytes(one.stored_daily) for one in ofs)),
        ("stored, kept 7 days", (_bytes(one.stored_daily * 7) for one in ofs)),
        ("stored, kept 30 days", (_bytes(one.stored_daily * 30) for one in ofs)),
        ("rows into the journal a day", (f"{one.daily * one.costs.steps:,}" for one in ofs)),
        ("dead rows a day, kept for ever", (f"{one.daily:,}" for one in ofs)),
        ("the same, pruned at the same pace", (f"{one.daily * (2 + one.costs.steps):,}" for one in ofs)),
        ("turns that share a commit, busiest hour", (f"{batch:.1f}" for batch in batches)),
        ("days until a table is frozen", (f"{2e8 / one.transactions_daily(batch):,.1f}" for one, batch in zip(ofs, batches, strict=True))),
    ]
    return [["", *(f"{one.daily // 1_000_000} million" for one in ofs)], *([what, *of] for what, of in rows)]


def _mean_batch(one: Volume) -> float:
    """Of each worker's committer at the peak."""
    own = one.rate * one.peak / one.processes
    return simulated(own, FLUSHES["a local disk"] + ROUND_TRIP, one.costs.client_us / 1e6).batch


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


# How long a step waits for its commit


ROUND_TRIP = 0.0002
FLUSHES = {"a local disk": 0.0002, "a network disk": 0.001, "a replica in another city": 0.01}
LOADS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


@frozen
class Queue:
    """What became of the answers that came to a committer. Seconds."""

    p50: float
    p99: float
    mean: float
    batch: float
    """How many turns a commit had, in the mean."""


def simulated(rate: float, commit: float, each: float, *, most: int | None = None, arrivals: int = 20_000, seed: int = SEED) -> Queue:
    """Answers come at random, `rate` a second. One committer takes what there is, `most` at a time: that lasts `commit`, and `each` for each of them.

    With `most=1` it is the queue M/D/1: one commit a step.
    """
    draw = random.Random(seed)
    times: list[float] = []
    now = 0.0
    for _ in range(arrivals):
        now += draw.expovariate(rate)
        times.append(now)
    waits: list[float] = []
    free, at, batches = 0.0, 0, 0
    while at < arrivals:
        begun = max(free, times[at])
        end = at + 1
        while end < arrivals and times[end] <= begun and (most is None or end - at < most):
            end += 1
        free = begun + commit + each * (end - at)
        waits += (free - come for come in times[at:end])
        at, batches = end, batches + 1
    settled = sorted(waits[arrivals // 10 :])
    return Queue(settled[len(settled) // 2], settled[len(settled) * 99 // 100], sum(settled) / len(settled), arrivals / batches)


def waits(costs: Costs) -> list[list[str]]:
    """Against the load of one worker process, as a share of what its loop can do; beside one commit a step."""
    each = costs.client_us / 1e6
    head = ["load", "steps/s"]
    for name in FLUSHES:
        head += [f"{name}: p50, ms", "p99", "turns a commit"]
    rows = [[*head, "one commit a step, local disk: p50, ms"]]
    for load in LOADS:
        rate = load / each
        row = [f"{load:.0%}", f"{rate:,.0f}"]
        for flush in FLUSHES.values():
            found = simulated(rate, ROUND_TRIP + flush, each)
            row += [f"{found.p50 * 1e3:.1f}", f"{found.p99 * 1e3:.1f}", f"{found.batch:.1f}"]
        single = FLUSHES["a local disk"] + ROUND_TRIP + each
        row.append(f"{simulated(rate, single - each, each, most=1).p50 * 1e3:.1f}" if rate * single < 1 else "never: it falls behind")
        rows.append(row)
    return rows


# The page


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    lines = [f"| {' | '.join(head)} |", "|" + "|".join("---" if n == 0 else "---:" for n in range(len(head))) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rest)])


def tables() -> dict[str, str]:
    """All tables of the page, by the names of their places."""
    costs, found = Costs.measured(), json.loads(MEASURED.read_text())
    return {
        "volumes": table(volumes(costs)),
        "waits": table(waits(costs)),
        "when": table(when(found)),
        **{name: table(curve_rows(curve)) for name, curve in found["curves"].items()},
    }


def when(found: dict[str, Any]) -> list[list[str]]:
    """How busy the machine was when each was measured."""
    said = found.get("when", {})
    rows = [[name, said[name]["at"], shown(said[name]["load"])] if name in said else [name, "–", "–"] for name in found["curves"]]
    return [["table", "measured on", "load when it began"], *rows]


def curve_rows(curve: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [list(curve[0]), *([shown(value) for value in row.values()] for row in curve)]


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def keep(found: dict[str, Any]) -> None:
    """Puts what was measured beside what was measured before, and all of it into the page."""
    kept = json.loads(MEASURED.read_text()) if MEASURED.exists() else {"curves": {}}
    kept = {**kept, **found, **{what: {**kept.get(what, {}), **found[what]} for what in ("curves", "when")}}
    MEASURED.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if PAGE.exists():
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")


def filled(page: str, found: dict[str, str]) -> str:
    """The page with its tables anew. Raises `KeyError` for a place that no table is for."""
    parts = page.split("<!-- table ")
    out = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition(" -->")
        _, mark, after = rest.partition("<!-- end -->")
        out.append(f"{name} -->\n{found[name]}\n{mark}{after}")
    return "<!-- table ".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.growth_model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/scale.md")
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
        return
    for name, text in tables().items():
        print(f"{name}\n{text}\n")


if __name__ == "__main__":
    main()
