"""docs/performance.md and its plots, from the facts of a run: the same facts give the same files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.bench import bounds
from tests.bench.aims import verdicts
from tests.bench.peers import PARTIES, ROOT
from tests.bench.sheets import Sheet, sheets_of
from tests.bench.workloads import ALONE, WORKLOADS

PAGE = ROOT / "docs" / "performance.md"


class NoPlots(Exception):
    """What draws them is not installed."""


def aims_of(facts: Mapping[str, Any]) -> Sheet:
    return Sheet("The aims", ["", "wanted", "found", "met", "why, or what comes next"], [verdict.row() for verdict in verdicts(facts)])


def write(facts: Mapping[str, Any], place: Path) -> list[Path]:
    """The page, and its plots in a folder of its name beside it; gives what was written."""
    try:
        from tests.bench import plots
    except ImportError as error:
        raise NoPlots(f'{error}: the plots need what `pip install "flowdsl[bench]"` brings') from None
    folder = place.with_suffix("")
    "\n".join(_lines(facts, {}))  # whoever has no figures for a page gets no half of one
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(facts, folder)
    place.write_text("\n".join(_lines(facts, {path.stem: f"{folder.name}/{path.name}" for path in drawn})).rstrip() + "\n", encoding="utf-8")
    return [place, *drawn]


def _lines(facts: Mapping[str, Any], plots: Mapping[str, str]) -> Iterator[str]:
    yield "# Performance"
    yield ""
    yield "Made by `flowdsl bench --page`, from a run of `flowdsl bench --json`; not edited by hand."
    yield ""
    yield from _how(facts)
    yield "## Aims"
    yield ""
    yield from _table(aims_of(facts))
    if "times" in plots:
        yield f"![Times as fast as each peer]({plots['times']})"
        yield ""
    yield from _where_missed(facts)
    for name in (*WORKLOADS, *ALONE):
        found = sheets_of(facts, name)
        if not found:
            continue
        workload = WORKLOADS.get(name)
        yield f"## {workload.title if workload else _TITLES[name]}"
        yield ""
        what = workload.what if workload else ALONE[name]
        yield f"{what[0].upper()}{what[1:]}."
        yield ""
        yield from _ABOUT.get(name, ())
        if name in plots:
            yield f"![{_TITLES.get(name, name)}]({plots[name]})"
            yield ""
        for sheet in found:
            yield f"**{sheet.title}**"
            yield ""
            yield from _table(sheet)


def _where_missed(facts: Mapping[str, Any]) -> Iterator[str]:
    found = list(bounds.sheets(facts))
    if not found or all(verdict.met is not False for verdict in verdicts(facts)):
        return
    yield "## Where an aim is missed"
    yield ""
    yield "What the remarks above are computed from. What a step takes is of the run for the profile, whose samples cost a little themselves."
    yield ""
    for sheet in found:
        yield f"**{sheet.title}**"
        yield ""
        yield from _table(sheet)


_TITLES = {"latency": "Alone", "resume": "Resuming", "inside": "In memory", "profile": "Where a step's CPU goes", "seq": "Steps a second"}
_ABOUT = {
    "seq": (
        "The limits: one connection whose writer commits whatever came together (*group commit*), the same with a start row and a finish update",
        "around each ten, and a commit for every row on a connection of its own, 32 at most, as pgbench does. Rows are as wide as ours; there is no",
        "engine and no fence.",
        "",
    ),
    "slow-disk": (
        "The flush is slowed down by `commit_delay = 1000` and `commit_siblings = 0`: whoever flushes the WAL sleeps 1 ms first, holding the lock",
        "that every other flush needs, which is how a slow `fdatasync` feels from outside. Where it differs it is kinder to the others: what other",
        "connections commit during the sleep goes along with that flush, while a real disk would make it wait for the next one. One writer has",
        "nobody to take along, so our figures and those of group commit are what a real disk gives.",
        "",
    ),
    "cold": (
        "*Python* lasts until the first of our lines runs; *imports* has the engine, its driver, and a few milliseconds of the measurement;",
        "*worker and workflow* lasts until the answer. Each process also opens a connection that watches the server. Servers of Temporal and Restate",
        "start with it.",
        "",
    ),
    "wake": ("DBOS and Absurd are woken in their fastest form: in bulk, and by one event that all wait for.", ""),
    "kill": ("Peers run the smaller lengths: the steps before the kill take them minutes.", ""),
    "profile": (
        "Samples by CPU time, not a tracing profiler: that one makes small functions look large. What C code takes is charged to the Python line",
        "that called it; what no Python line called is the event loop's and the driver's.",
        "",
    ),
    "people": (
        "Both read from the same stand-in, a process of its own on the same cores, with the same library, as many lists and requests at a time, and",
        "a page ahead of what they write. The client knows nothing of quotas, of what moves meanwhile, or of what depends on what.",
        "",
    ),
}


def _how(facts: Mapping[str, Any]) -> Iterator[str]:
    machine, settings = facts["machine"], facts["settings"]
    minutes = f" in {facts['took_s'] / 60:.0f} minutes" if "took_s" in facts else ""
    yield (
        f"flowdsl {facts['flowdsl']}, {facts['at'][:10]}: {facts['rounds']} rounds, interleaved A B A B{minutes}, windows of {facts['window_s']:g} s;"
        f" {machine['cores']} cores, {machine['system']}, Python {machine['python']}, {facts['loop']}; load {machine['load']:.1f} when it began."
        f"{' ' + facts['note'] if facts.get('note') else ''}"
    )
    yield ""
    yield "Read the ratios: figures drift with the machine, and who sat out a round for want of time has fewer."
    yield "A ratio is the median of those of the rounds."
    yield "Each participant is a process of its own, and is frozen while another is measured."
    yield ""
    yield f"Postgres, durable: {', '.join(f'`{name}` {value}' for name, value in settings.items())}."
    if facts.get("flush_ms"):
        yield f"**All of it with WAL flushes that take {facts['flush_ms']:g} ms longer.**"
    yield ""
    versions = {title: version for title, version in facts.get("versions", {}).items() if title in _NAMED}
    told = [f"{title} {version}" for title, version in versions.items()]
    absent = " · ".join(dict.fromkeys(facts.get("absent", {}).values()))
    yield f"Peers: {', '.join(told) or 'none'}.{f' {absent}.' if absent else ''}"
    yield from (f"- {what}: {why}" for what, why in facts.get("fell_out", {}).items())
    yield ""
    yield "On your machine, in about a quarter of an hour: `flowdsl bench --long --json figures.json`, then `flowdsl bench --page figures.json`."
    yield 'DBOS and Absurd come with `pip install "flowdsl[bench]"`; Temporal\'s dev server and Restate\'s SDK with `pip install "flowdsl[peers]"`;'
    yield "Restate's server with `npm install --ignore-scripts --prefix .venv @restatedev/restate-server`. Who is not there is left out."
    yield ""
    yield "## What these figures say, and what not"
    yield ""
    yield from _LIMITS
    yield ""


_LIMITS = (
    "- Steps do nothing and answer with 100 bytes. An activity that asks another service takes milliseconds, and then none of these is the bound.",
    "- Everybody is one process beside one server, all on the same cores. Who takes more CPU a step loses more here than where there are cores to",
    "  spare. DBOS, Temporal and Restate run on many machines; how anybody scales out is not measured on this page (of ours, two and four processes:",
    "  [scale](scale.md)).",
    "- Everybody has a step on disk before the next one of the same workflow begins. The large factors are those with many in flight: our process",
    "  puts the steps of all its executions into one transaction, and DBOS and Absurd commit each. With one in flight there is nobody to share with.",
    "- Tables are nearly empty. What millions of executions that have ended change is in [scale](scale.md) too.",
    "- Temporal's dev server is made for development: one process and a SQLite file. It says nothing about a cluster, nor does a single node of",
    "  Restate. Both keep files of their own: their server's CPU is that of one process, and WAL is Postgres's only.",
    "- How each of them is run is in `tests/bench/peer_*.py`, in the fastest form that we found in its documentation. We may have missed one.",
)
_NAMED = {PARTIES[name].title for name in ("dbos", "absurd", "temporal", "restate")}


def _table(sheet: Sheet) -> Iterator[str]:
    yield f"| {' | '.join(sheet.columns)} |"
    yield "|" + "|".join("---" if column in ("", "why, or what comes next") else "--:" for column in sheet.columns) + "|"
    for row in sheet.rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
    yield ""
