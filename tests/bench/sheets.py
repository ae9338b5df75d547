"""What was measured, as tables: the terminal and the page show the same. Everything is read from the facts of a run, as `--json` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from tests.bench.found import Found, Results
from tests.bench.measured import middle, short, spread
from tests.bench.peers import OURS, PARTIES
from tests.bench.workloads import WORKLOADS, Workload

RATES = ("seq", "slow-disk")
"""Told as units a second; the others as seconds."""


@frozen
class Sheet:
    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(factory=list[list[str]])


def results(facts: Mapping[str, Any]) -> Results:
    return Results(Found(**one) for one in facts.get("found", ()))


def sheets_of(facts: Mapping[str, Any], name: str) -> list[Sheet]:
    """The tables of one workload; none if it was not run."""
    if name in WORKLOADS:
        found, workload = results(facts), WORKLOADS[name]
        if not found.sizes(name):
            return []
        return [_speeds(found, workload), *_costs(found, workload), *_more(found, workload)]
    return [sheet for sheet in [_ALONE[name](facts)] if sheet is not None]


def _speeds(found: Results, workload: Workload) -> Sheet:
    """A column for each participant; behind the figure of another, how many times as fast we are."""
    parties = found.parties(workload.name, PARTIES)
    told = f"{workload.unit} a second" if workload.name in RATES else "seconds"
    sheet = Sheet(f"{workload.title}: {told}, medians (lowest–highest) · ours by theirs", ["", *(PARTIES[name].title for name in parties)])
    for size in found.sizes(workload.name):
        sheet.rows.append([f"{size:,}", *(_cell(found, workload.name, size, name) for name in parties)])
    return sheet


def _cell(found: Results, workload: str, size: int, name: str) -> str:
    all = found.of(workload, size, name)
    if not all:
        return "–"
    values = [one.per_s if workload in RATES else one.seconds for one in all]
    between = spread(values)
    text = short(middle(values)) + (f" ({between})" if between else "")
    ratios = found.ratios(workload, size, name) if name != OURS else []
    return text + (f" · {short(middle(ratios))}×" if ratios else "")


def one_of(workload: Workload) -> str:
    """Its unit, as one."""
    return {"processes": "process", "children": "child"}.get(workload.unit, workload.unit.removesuffix("s"))


def _costs(found: Results, workload: Workload) -> list[Sheet]:
    sheet = Sheet(
        f"What one {one_of(workload)} costs: CPU µs of the client and of the server's backends, bytes of WAL", ["", "", "client", "server", "WAL"]
    )
    for size in found.sizes(workload.name):
        for name in found.parties(workload.name, PARTIES):
            costs = [found.middle(workload.name, size, name, what) for what in ("client_us", "server_us", "wal_bytes")]
            if any(cost is not None for cost in costs):
                sheet.rows.append([f"{size:,}", PARTIES[name].title, *map(short, costs)])
    return [sheet] if sheet.rows else []


_MORE = {
    "wake": {"idle_mb": "worker idle, MB", "suspended_mb": "all suspended, MB", "peak_mb": "highest, MB", "bytes_each": "stored bytes each",
             "start_s": "started and suspended in, s"},
    "kill": {"kept": "steps kept", "run_again": "steps run again"},
    "cold": {"python_s": "Python, s", "imports_s": "imports, s", "schema_s": "connection and schema, s", "first_s": "worker and workflow, s"},
    "people": {"requests": "requests", "entries": "journal entries"},
}  # fmt: skip


def _more(found: Results, workload: Workload) -> list[Sheet]:
    what = _MORE.get(workload.name)
    if what is None:
        return []
    sheet = Sheet("Besides, medians", ["", "", *what.values()])
    for size in found.sizes(workload.name):
        for name in found.parties(workload.name, PARTIES):
            values = [found.middle(workload.name, size, name, one) for one in what]
            if any(value is not None for value in values):
                sheet.rows.append([f"{size:,}", PARTIES[name].title, *map(short, values)])
    return [sheet] if sheet.rows else []


# What nobody else takes part in


def _latencies(facts: Mapping[str, Any]) -> Sheet | None:
    if "latency_ms" not in facts:
        return None
    commit = facts["latency_ms"]["a bare commit"]["p50"]
    rows = [[name, *(f"{one[p]:.3f}" for p in ("p50", "p90", "p99")), f"{one['p50'] / commit:.1f}×"] for name, one in facts["latency_ms"].items()]
    return Sheet("Alone: milliseconds", ["", "p50", "p90", "p99", "p50 in bare commits"], rows)


def _resumed(facts: Mapping[str, Any]) -> Sheet | None:
    if "resume" not in facts:
        return None
    columns = ["journal", "live rows", "load", "fold", "bare fetch and decode", "load + fold by bare", "by a fresh worker"]
    rows = [
        [
            f"{one['length']:,} {one['shape']}", f"{one['rows']:,}",
            *(f"{one[what]:.2f}" for what in ("load_ms", "fold_ms", "bare_ms")), f"{one['ratio']:.1f}×", f"{one['worker_ms']:.1f}",
        ]
        for one in facts["resume"]
    ]  # fmt: skip
    return Sheet("Resuming: milliseconds, medians", columns, rows)


def _inside(facts: Mapping[str, Any]) -> Sheet | None:
    if "inside_us" not in facts:
        return None
    return Sheet("In memory, no database: CPU µs a step", ["", "µs"], [[what, f"{took:.2f}"] for what, took in facts["inside_us"].items()])


def _profile(facts: Mapping[str, Any]) -> Sheet | None:
    if "profile" not in facts:
        return None
    profiles = facts["profile"]
    parts = [part for part in next(iter(profiles.values()))["parts"]]
    rows = [[part, *(_share(one, part) for one in profiles.values())] for part in parts]
    rows.append(["together", *(f"{one['client_us']:.1f}" for one in profiles.values())])
    return Sheet("The client's CPU of a step, µs, by what was running", ["", *(f"{size} in flight" for size in profiles)], rows)


def _share(profile: Mapping[str, Any], part: str) -> str:
    took = profile["parts"][part]
    return f"{took:.1f} ({100 * took / max(1e-9, profile['client_us']):.0f} %)"


_ALONE = {"latency": _latencies, "resume": _resumed, "inside": _inside, "profile": _profile}
