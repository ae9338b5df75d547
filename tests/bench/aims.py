"""The aims, what was found beside each, and where one is missed, why, as measured in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import evolve, frozen

from tests.bench import bounds
from tests.bench.found import Results
from tests.bench.measured import short
from tests.bench.peers import PARTIES
from tests.bench.sheets import results


@frozen
class Aim:
    name: str
    wanted: float
    unit: str = "×"
    most: bool = False
    """Whether `wanted` is the most it may be, instead of the least."""


@frozen
class Verdict:
    aim: Aim
    found: float | None
    """None: not measured in this run."""
    remark: str = ""

    @property
    def met(self) -> bool | None:
        if self.found is None:
            return None
        return self.found <= self.aim.wanted if self.aim.most else self.found >= self.aim.wanted

    def row(self) -> list[str]:
        sign = {True: "✓", False: "✗", None: "–"}[self.met]
        found = "not measured" if self.found is None else _figure(self.found, self.aim.unit)
        return [self.aim.name, f"{'≤' if self.aim.most else '≥'} {_figure(self.aim.wanted, self.aim.unit)}", found, sign, self.remark]


def _figure(value: float, unit: str) -> str:
    return f"{value * 100:.0f} %" if unit == "%" else f"{short(value)}{'' if unit == '×' else ' '}{unit}"


def verdicts(facts: Mapping[str, Any]) -> list[Verdict]:
    return list(_verdicts(facts))


def _verdicts(facts: Mapping[str, Any]) -> Iterator[Verdict]:
    found = results(facts)
    absent = facts.get("absent", {})
    for workload, size, who, wanted in _RATIOS:
        unit = "%" if who in _SHARES else "×"
        aim = Aim(f"{_spoken(workload, size)}: {'share of' if unit == '%' else 'against'} {PARTIES[who].title}", wanted, unit)
        ratio = found.ratio(workload, size, who)
        if ratio is None:
            yield Verdict(aim, None, absent.get(who, ""))
            continue
        both = found.rates(workload, size, "ours")
        remark = "" if ratio[1] == size else f"{'theirs' if both else 'both'} measured at {ratio[1]:,}"
        verdict = Verdict(aim, ratio[0], remark)
        why = "" if verdict.met else bounds.missed(facts, workload, size if both else ratio[1], who, wanted)
        yield evolve(verdict, remark="; ".join(filter(None, (remark, why))))
    yield from _resumes(facts)
    for aim, what, why in _COSTS:
        verdict = Verdict(aim, what(found))
        yield verdict if verdict.met is not False else evolve(verdict, remark=why(facts))


_SHARES = {"bare", "client", "ends", "single"}
_RATIOS: tuple[tuple[str, int, str, float], ...] = (
    ("seq", 256, "dbos", 50), ("seq", 256, "absurd", 15), ("seq", 256, "restate", 7), ("seq", 256, "bare", 0.35),
    ("seq", 32, "dbos", 40), ("seq", 32, "absurd8", 12), ("seq", 32, "bare", 0.30),
    ("seq", 1, "dbos", 10), ("seq", 1, "absurd", 4), ("seq", 1, "bare", 0.60),
    ("slow-disk", 1, "bare", 0.80), ("slow-disk", 256, "dbos", 30),
    ("children", 1000, "dbos", 20), ("children", 1000, "restate", 8), ("fanout", 1000, "dbos", 30),
    ("wake", 10_000, "dbos", 50), ("wake", 10_000, "absurd", 10),
    ("people", 50_000, "client", 0.70),
)  # fmt: skip


def _spoken(workload: str, size: int) -> str:
    match workload:
        case "seq":
            return f"{size} in flight"
        case "slow-disk":
            return f"{size} in flight, flushes 1 ms longer"
        case "people":
            return f"a sync of {size:,} people"
        case "wake":
            return f"{size:,} woken"
        case "fanout":
            return f"{size:,} parallel steps"
        case _:
            return f"{size:,} {workload}"


def _resumes(facts: Mapping[str, Any]) -> Iterator[Verdict]:
    rows = {(one["shape"], one["length"]): one for one in facts.get("resume", ())}
    long = rows.get(("steps", 10_000))
    aim = Aim("resume after 10,000 steps, by a bare fetch and decode of its rows", 6, most=True)
    value = None if long is None else long["ratio"]
    fold = "" if long is None or value <= aim.wanted else f"bound: the fold takes {long['fold_ms']:.0f} of {long['fold_ms'] + long['load_ms']:.0f} ms"
    yield Verdict(aim, value, fold)
    short_loop, long_loop = rows.get(("rounds", 1000)), rows.get(("rounds", 100_000))
    flat = Aim("resume of a loop after 100,000 rounds, by the same after 1,000", 1.5, most=True)
    if short_loop is None or long_loop is None:
        yield Verdict(flat, None)
    else:
        took = [one["load_ms"] + one["fold_ms"] for one in (long_loop, short_loop)]
        yield Verdict(flat, took[0] / took[1], f"{long_loop['rows']} live rows against {short_loop['rows']}")


def _above_idle(found: Results) -> float | None:
    idle, suspended = (found.middle("wake", 100_000, "ours", what) for what in ("idle_mb", "suspended_mb"))
    return None if idle is None or suspended is None else suspended - idle


_COSTS: tuple[tuple[Aim, Callable[[Results], float | None], Callable[[Mapping[str, Any]], str]], ...] = (
    (Aim("worker memory above idle, 100,000 suspended", 20, "MB", most=True), _above_idle, bounds.memory),
    (Aim("WAL of a step, 256 in flight", 450, "bytes", most=True), lambda found: found.middle("seq", 256, "ours", "wal_bytes"), bounds.wal),
    (Aim("client CPU of a step, 256 in flight", 60, "µs", most=True), lambda found: found.middle("seq", 256, "ours", "client_us"), bounds.cpu),
    (Aim("cold start", 0.4, "s", most=True), lambda found: found.middle("cold", 1, "ours", "seconds"), bounds.cold),
)
