"""The plots of the page, as small SVG files whose text stays text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

from tests.bench.found import Results
from tests.bench.measured import middle
from tests.bench.peers import LIMITS, OURS, PARTIES
from tests.bench.profiled import ORDER
from tests.bench.sheets import results
from tests.bench.workloads import WORKLOADS

matplotlib.use("svg")

from matplotlib import pyplot

_COLOURS = {OURS: "#1b7f5c", "peer": "#c0603a", "limit": "#8a8f98"}
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "flowdsl", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def draw(facts: Mapping[str, Any], folder: Path) -> list[Path]:
    """One file for each plot whose figures are there."""
    drawn: list[Path] = []
    with matplotlib.rc_context(_SETTINGS):
        for name, plot in _PLOTS.items():
            figure, axes = pyplot.subplots(figsize=(7.2, 3.4), layout="constrained")
            if plot(facts, axes):
                path = folder / f"{name}.svg"
                figure.savefig(path, metadata={"Date": None})
                path.write_text("\n".join(line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()) + "\n", encoding="utf-8")
                drawn.append(path)
            pyplot.close(figure)
    return drawn


def _colour(name: str) -> str:
    return _COLOURS[OURS if name == OURS else "limit" if name in LIMITS else "peer"]


def _rates(workload: str) -> Callable[[Mapping[str, Any], Any], bool]:
    def plot(facts: Mapping[str, Any], axes: Any) -> bool:
        """A group of bars for each size, on a logarithmic scale; lines say lowest and highest."""
        found = results(facts)
        sizes, parties = found.sizes(workload), found.parties(workload, PARTIES)
        if not sizes:
            return False
        width = 0.8 / len(parties)
        for place, name in enumerate(parties):
            _bars(axes, found, workload, sizes, name, place * width - 0.4, width)
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(rate for size in sizes for name in parties for rate in found.rates(workload, size, name)) / 10)
        axes.set_xticks(range(len(sizes)), [f"{size} in flight" for size in sizes])
        axes.set_ylabel(f"{WORKLOADS[workload].unit} a second")
        return True

    return plot


def _bars(axes: Any, found: Results, workload: str, sizes: list[int], name: str, at: float, width: float) -> None:
    for index, size in enumerate(sizes):
        if rates := found.rates(workload, size, name):
            low, high = middle(rates) - min(rates), max(rates) - middle(rates)
            axes.bar(
                index + at + width / 2, middle(rates), width * 0.92, color=_colour(name), yerr=[[low], [high]], ecolor="#333333", error_kw={"lw": 0.8}
            )
            place = min(rates) / 1.15
            axes.text(index + at + width / 2, place, PARTIES[name].title, rotation=90, ha="center", va="top", fontsize=6, color="white", clip_on=True)


def _times(facts: Mapping[str, Any], axes: Any) -> bool:
    """How many times as fast we are as each peer, over the workloads."""
    found = results(facts)
    rows = [
        (f"{name} {size:,}: {PARTIES[who].title}", middle(ratios))
        for name in WORKLOADS
        for size in found.sizes(name)
        for who in found.parties(name, PARTIES)
        if who not in (OURS, *LIMITS) and (ratios := found.ratios(name, size, who))
    ]
    if not rows:
        return False
    axes.figure.set_size_inches(7.2, 0.9 + 0.2 * len(rows))
    axes.barh([label for label, _ in rows], [ratio for _, ratio in rows], color=_COLOURS["peer"])
    axes.axvline(1, color="#333333", lw=0.8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("times as fast as the peer")
    return True


def _resumes(facts: Mapping[str, Any], axes: Any) -> bool:
    rows = facts.get("resume", ())
    if not rows:
        return False
    for shape, label in (("steps", "plain steps"), ("rounds", "rounds of a loop")):
        some = [one for one in rows if one["shape"] == shape]
        axes.plot([one["length"] for one in some], [one["load_ms"] + one["fold_ms"] for one in some], "o-", label=f"{label}: load and fold")
    some = [one for one in rows if one["shape"] == "steps"]
    axes.plot([one["length"] for one in some], [one["bare_ms"] for one in some], "o--", color=_COLOURS["limit"], label="bare fetch and decode")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("length of the history")
    axes.set_ylabel("ms")
    axes.legend(frameon=False, fontsize=7)
    return True


def _profiles(facts: Mapping[str, Any], axes: Any) -> bool:
    profiles = facts.get("profile", {})
    if not profiles:
        return False
    names = [f"{size} in flight" for size in profiles]
    left = [0.0] * len(names)
    for part in ORDER:
        took = [one["parts"][part] for one in profiles.values()]
        axes.barh(names, took, left=left, label=part)
        left = [a + b for a, b in zip(left, took, strict=True)]
    axes.figure.set_size_inches(7.2, 2.4)
    axes.set_xlabel("CPU µs of a step")
    axes.figure.legend(frameon=False, fontsize=6, ncols=3, loc="outside upper center")
    return True


_PLOTS: dict[str, Callable[[Mapping[str, Any], Any], bool]] = {
    "seq": _rates("seq"),
    "slow-disk": _rates("slow-disk"),
    "times": _times,
    "resume": _resumes,
    "profile": _profiles,
}
