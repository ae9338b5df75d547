"""The aims, what was found beside each, and where one is missed, the bound that was met first, as measured in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import frozen

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
        yield verdict if verdict.met else Verdict(aim, ratio[0], "; ".join(filter(None, (remark, _bound(found, facts, workload, size)))))
    yield from _resumes(facts)
    for aim, what in _COSTS:
        value = what(found)
        yield Verdict(aim, value, _cpu(facts) if value is not None and aim.unit == "µs" and value > aim.wanted else "")


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


_COSTS: tuple[tuple[Aim, Callable[[Results], float | None]], ...] = (
    (Aim("worker memory above idle, 100,000 suspended", 20, "MB", most=True), _above_idle),
    (Aim("WAL of a step, 256 in flight", 450, "bytes", most=True), lambda found: found.middle("seq", 256, "ours", "wal_bytes")),
    (Aim("client CPU of a step, 256 in flight", 60, "µs", most=True), lambda found: found.middle("seq", 256, "ours", "client_us")),
    (Aim("cold start", 0.4, "s", most=True), lambda found: found.middle("cold", 1, "ours", "seconds")),
)


# The bound that was met first


def _bound(found: Results, facts: Mapping[str, Any], workload: str, size: int) -> str:
    """What a missed ratio is bound by: our process's CPU when it was busy, else the waits of one step after another."""
    client, rates = found.middle(workload, size, "ours", "client_us"), found.rates(workload, size, "ours")
    if client is None or not rates:
        return ""
    rate = found.middle(workload, size, "ours", "per_s") or 0.0
    busy = rate * client / 1e6
    unit = "step" if workload in ("seq", "slow-disk", "fanout") else "unit"
    if busy > 0.6:
        return f"bound: our own CPU, {client:.0f} µs a {unit} keep one core {min(1.0, busy) * 100:.0f} % busy: {1e6 / client:,.0f} a second at most"
    server = found.middle(workload, size, "ours", "server_us") or 0.0
    if workload not in ("seq", "slow-disk") or size > 1:
        shares = f"ours was busy {busy * 100:.0f} % of one, the backends {rate * server / 1e4:.0f} %"
        return f"bound: waiting, for a flush or for a core that others hold: {shares}"
    waited = max(0.0, 1e6 / rate - client - server)
    return (
        f"bound: one after another, {1e6 / rate:,.0f} µs a {unit}: {client:.0f} our CPU, {server:.0f} the server's, {waited:,.0f} flush and waiting"
    )


def _cpu(facts: Mapping[str, Any]) -> str:
    profile = facts.get("profile", {}).get("256")
    if profile is None:
        return ""
    largest = sorted(profile["parts"].items(), key=lambda one: -one[1])[:3]
    return "bound: " + ", ".join(f"{part} {took:.0f} µs" for part, took in largest)
