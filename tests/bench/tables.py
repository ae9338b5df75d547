"""What was measured, as tables: medians, their spread, and ratios taken round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from tests.bench.history import Resumed
from tests.bench.measured import Sample, middle, short, spread
from tests.bench.ours import Latency

OURS, BARE, FLOWS, DBOS = "ours", "bare", "bare with starts and ends", "dbos"


def settings(console: Console, found: Mapping[str, str]) -> None:
    console.print(", ".join(f"{name} {value}" for name, value in found.items()))
    loose = [name for name in ("fsync", "synchronous_commit", "full_page_writes") if found[name] != "on"]
    if loose:
        console.print(f"[red]not a durable server ({', '.join(loose)} off): no figure below says anything about a real one[/red]")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def sequences(console: Console, samples: Sequence[Sample], in_flight: Sequence[int]) -> None:
    speeds = _table("Sequential no-op steps: steps a second, medians (lowest–highest)", "in flight", OURS, BARE, FLOWS, DBOS)
    ratios = _table(
        "The same as ratios, round by round (lowest–highest)", "in flight", "ours / bare", "ours / bare with starts and ends", "ours / dbos"
    )
    costs = _table(
        "What a step costs: CPU µs of the client, of the server's backends; bytes of WAL",
        "in flight",
        "ours: client",
        "server",
        "WAL",
        "bare: client",
        "server",
        "WAL",
        "starts and ends: client",
        "server",
        "WAL",
        "dbos: client",
    )
    for number in in_flight:
        of = {what: [one for one in samples if one.in_flight == number and one.what == what] for what in (OURS, BARE, FLOWS, DBOS)}
        speeds.add_row(str(number), *(_middling([one.steps_per_s for one in of[what]]) for what in (OURS, BARE, FLOWS, DBOS)))
        rates = {what: [one.steps_per_s for one in found] for what, found in of.items()}
        ratios.add_row(
            str(number), *(_middling([a / b for a, b in zip(rates[OURS], rates[what], strict=False)], "×") for what in (BARE, FLOWS, DBOS))
        )
        costs.add_row(str(number), *(cell for what in (OURS, BARE, FLOWS) for cell in _costs(of[what])), _costs(of[DBOS])[0])
    console.print(speeds, ratios, costs)


def _middling(values: Sequence[float], unit: str = "") -> str:
    if not values:
        return "–"
    between = spread(values)
    return f"{short(middle(values))}{unit}" + (f" ({between})" if between else "")


def _costs(samples: Sequence[Sample]) -> tuple[str, str, str]:
    def of(values: list[float | None]) -> str:
        known = [value for value in values if value is not None]
        return short(middle(known)) if known else "–"

    return of([one.client_us for one in samples]), of([one.server_us for one in samples]), of([one.wal_bytes for one in samples])


def latencies(console: Console, found: Latency) -> dict[str, dict[str, float]]:
    table = _table("Alone: milliseconds", "", "p50", "p90", "p99", "p50 in bare commits")
    what = {
        "start → first activity": found.start,
        "activity → next activity": found.step,
        "last activity → answer of wait": found.finish,
        "a bare commit": found.commit,
    }
    commit = middle(found.commit)
    shown: dict[str, dict[str, float]] = {}
    for name, values in what.items():
        ordered = sorted(values)
        percents = {f"p{percent}": ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] for percent in (50, 90, 99)}
        shown[name] = {percent: round(value, 3) for percent, value in percents.items()}
        table.add_row(name, *(f"{value:.3f}" for value in percents.values()), f"{percents['p50'] / commit:.1f}×")
    console.print(table)
    return shown


def histories(console: Console, found: Sequence[Resumed]) -> None:
    table = _table(
        "Resuming: milliseconds, medians", "journal", "live rows", "load", "fold", "bare fetch and decode", "load + fold / bare", "by a fresh worker"
    )
    for one in found:
        table.add_row(
            f"{one.length:,} {one.shape}",
            f"{one.rows:,}",
            f"{one.load_ms:.2f}",
            f"{one.fold_ms:.2f}",
            f"{one.bare_ms:.2f}",
            f"{one.ratio:.1f}×",
            f"{one.worker_ms:.1f}",
        )
    console.print(table)


def inside(console: Console, found: Mapping[str, float]) -> None:
    table = _table("In memory: CPU µs a step", "", "µs")
    for what, took in found.items():
        table.add_row(what, f"{took:.2f}")
    console.print(table)
