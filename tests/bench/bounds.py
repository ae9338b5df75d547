"""Why an aim is missed, and what the next bound is: computed from the figures of the same run. Microseconds, but where it says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import frozen

from tests.bench.found import Results
from tests.bench.measured import short
from tests.bench.peers import OURS, PARTIES
from tests.bench.sheets import Sheet, one_of, results
from tests.bench.workloads import WORKLOADS

ALONE = ("seq", "slow-disk")
"""With one in flight these wait for each commit in turn."""
BUSY = 0.6
"""Of a core: from here on the process's CPU is the bound."""


@frozen
class Cost:
    """Of one unit of a workload: the time from one to the next, and the CPU of both sides meanwhile, which may overlap."""

    wall: float
    client: float | None
    server: float | None

    @classmethod
    def of(cls, found: Results, workload: str, size: int, who: str) -> Cost | None:
        rate = found.middle(workload, size, who, "per_s")
        if not rate:
            return None
        return cls(1e6 / rate, *(found.middle(workload, size, who, what) for what in ("client_us", "server_us")))

    @property
    def busy(self) -> float:
        """The share of one core that the client takes."""
        return (self.client or 0.0) / self.wall

    @property
    def waited(self) -> float:
        return max(0.0, self.wall - (self.client or 0.0) - (self.server or 0.0))


def missed(facts: Mapping[str, Any], workload: str, size: int, who: str, wanted: float) -> str:
    """Why a ratio is below what is wanted."""
    found = results(facts)
    ours, theirs = Cost.of(found, workload, size, OURS), Cost.of(found, workload, size, who)
    if ours is None or ours.client is None:
        return ""
    one = one_of(WORKLOADS[workload])
    target = None if theirs is None else theirs.wall / wanted
    if workload in ALONE and size == 1:
        return _one_by_one(found, workload, ours, who, target)
    if ours.busy > BUSY:
        return _by_cpu(facts, ours, one, size, target)
    server = "" if ours.server is None else f", the backends {ours.server / ours.wall:.0%}"
    return f"bound: waiting. Of {short(ours.wall)} µs a {one} our process was busy for {ours.busy:.0%} of one core{server}"


def _one_by_one(found: Results, workload: str, ours: Cost, who: str, target: float | None) -> str:
    """Beside the limit: what each of the two has to do before the next may begin."""
    limit = Cost.of(found, workload, 1, "bare")
    split = f"{short(ours.client)} our CPU, {short(ours.server)} the server's, {short(ours.waited)} flush and waiting"
    text = f"bound: one after another, {short(ours.wall)} µs a step: {split}"
    if limit is None or limit.client is None or limit.server is None:
        return text
    text += f"; a bare commit: {short(limit.wall)} ({short(limit.client)}, {short(limit.server)}, {short(limit.waited)})"
    if target is None:
        return text
    if target < limit.wall * 1.05:
        return f"{text}. Wanted are {short(target)}: only who commits less often than each step gets there"
    return f"{text}. Wanted are {short(target)}: {short(ours.wall - target)} too many"


def _by_cpu(facts: Mapping[str, Any], ours: Cost, one: str, size: int, target: float | None) -> str:
    client = ours.client or 0.0
    text = f"bound: our CPU, {short(client)} of {short(ours.wall)} µs a {one}"
    if size == 256 and (parts := largest_parts(facts, "256")):
        text += f" ({parts})"
    if target is not None:
        text += f"; wanted are {short(target)}"
    if ours.server and ours.server < client:
        text += f". Next bound: a backend's CPU, {short(ours.server)}"
    return text


def largest_parts(facts: Mapping[str, Any], size: str) -> str:
    profile = facts.get("profile", {}).get(size)
    if profile is None:
        return ""
    largest = sorted(profile["parts"].items(), key=lambda one: -one[1])[:3]
    return ", ".join(f"{part} {short(took)}" for part, took in largest)


# Costs


def memory(facts: Mapping[str, Any]) -> str:
    """A line through what was found at two sizes: what the first ones cost, and what each more does."""
    points = [(size, above) for size, above in _above_idle(results(facts)) if size >= 1000]
    if len(points) < 2:
        return ""
    (few, small), (many, large) = points[-2:]
    each = (large - small) / (many - few) * 2**20
    at_once = small - each * few / 2**20
    return f"bound: {short(at_once)} MB however many wait, then {short(each)} bytes for each"


def _above_idle(found: Results) -> list[tuple[int, float]]:
    pairs = [(size, *(found.middle("wake", size, OURS, what) for what in ("idle_mb", "suspended_mb"))) for size in found.sizes("wake")]
    return [(size, suspended - idle) for size, idle, suspended in pairs if idle is not None and suspended is not None]


def wal(facts: Mapping[str, Any]) -> str:
    kinds = facts.get("profile", {}).get("256", {}).get("wal", {})
    largest = sorted(kinds.items(), key=lambda one: -one[1])[:3]
    limit = results(facts).middle("seq", 256, "bare", "wal_bytes")
    beside = f"; a bare row of this width takes {short(limit)}" if limit else ""
    return f"bound: {', '.join(f'{what} {short(bytes)}' for what, bytes in largest)} bytes{beside}" if largest else ""


def cold(facts: Mapping[str, Any]) -> str:
    found = results(facts)
    laps = {name: found.middle("cold", 1, OURS, what) for what, name in LAPS.items()}
    if any(took is None for took in laps.values()):
        return ""
    told = ", ".join(f"{name} {took:.2f} s" for name, took in laps.items())
    imports = sorted(facts.get("imports_ms", {}).items(), key=lambda one: -one[1])[:4]
    return f"bound: {told}" + (f". Of importing, ms: {', '.join(f'{name} {took:.0f}' for name, took in imports)}" if imports else "")


LAPS = {"python_s": "Python", "imports_s": "imports", "schema_s": "connection and schema", "first_s": "worker and workflow"}


def cpu(facts: Mapping[str, Any]) -> str:
    parts = largest_parts(facts, "256")
    return f"bound: {parts} µs" if parts else ""


# The tables of the section


def sheets(facts: Mapping[str, Any]) -> Iterator[Sheet]:
    for made in (_steps(facts), _wal(facts), _memory(facts), _imports(facts)):
        if made is not None:
            yield made


def _steps(facts: Mapping[str, Any]) -> Sheet | None:
    """Both ways of working beside the limit's."""
    profiles = {size: one for size, one in facts.get("profile", {}).items() if "wall_us" in one}
    if not profiles:
        return None
    found = results(facts)
    limits = {size: Cost.of(found, "seq", int(size), "bare") for size in profiles}
    columns = [column for size in profiles for column in (f"{size} in flight", PARTIES["bare"].title)]
    sheet = Sheet("A step, µs, beside the limit's. With many in flight the rows overlap, and one of them is the bound", ["", *columns])
    for part in next(iter(profiles.values()))["parts"]:
        sheet.rows.append([f"our CPU: {part}", *(text for one in profiles.values() for text in (short(one["parts"][part]), ""))])
    rows: dict[str, tuple[Callable[[Mapping[str, Any]], float | None], Callable[[Cost], float | None]]] = {
        "our CPU": (lambda one: one["client_us"], lambda limit: limit.client),
        "the server's CPU": (lambda one: one["server_us"], lambda limit: limit.server),
        "flush": (lambda one: one["flush_us"], lambda _: None),
        "from one step to the next": (lambda one: one["wall_us"], lambda limit: limit.wall),
    }
    for name, (ours, theirs) in rows.items():
        cells = ((ours(one), None if (limit := limits[size]) is None else theirs(limit)) for size, one in profiles.items())
        sheet.rows.append([name, *(short(value) for pair in cells for value in pair)])
    sheet.rows.append(["flushes a step", *(text for one in profiles.values() for text in (short(one["flushes"]), ""))])
    return sheet


def _wal(facts: Mapping[str, Any]) -> Sheet | None:
    profiles = {size: one["wal"] for size, one in facts.get("profile", {}).items() if one.get("wal")}
    if not profiles:
        return None
    kinds = sorted({kind for one in profiles.values() for kind in one}, key=lambda kind: -max(one.get(kind, 0.0) for one in profiles.values()))
    rows = [[kind, *(short(one.get(kind, 0.0)) for one in profiles.values())] for kind in kinds]
    return Sheet("WAL of a step, bytes; a start and an end are a tenth of theirs", ["", *(f"{size} in flight" for size in profiles)], rows)


def _memory(facts: Mapping[str, Any]) -> Sheet | None:
    rows = [[f"{size:,}", short(above)] for size, above in _above_idle(results(facts))]
    return Sheet("A worker's memory above idle, by how many are suspended, MB", ["", "MB"], rows) if len(rows) > 1 else None


def _imports(facts: Mapping[str, Any]) -> Sheet | None:
    rows = [[name, f"{took:.0f}"] for name, took in facts.get("imports_ms", {}).items()]
    return Sheet("Importing a worker, ms by package; its modules that others import first are theirs", ["", "ms"], rows) if rows else None
