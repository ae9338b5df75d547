"""The command that breaks things on purpose: `chaos`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from flowdsl.cli.edge import JSON, aside, awaited, emit, only_json, shown

if TYPE_CHECKING:
    from flowdsl.testing.chaos.run import Progress, Report

_MOST = 20
"""Findings shown under one head; all of them are in the folder."""


@click.command(
    short_help="Run thousands of workflows, kill everything, and count.",
    epilog="Exit codes: 0 nothing was lost, doubled or stuck; 1 something was, and the evidence is kept; 2 wrong usage.",
)
@click.option("--workflows", type=click.IntRange(1), default=1000, show_default=True, metavar="N", help="How many are started from outside.")
@click.option("--seed", type=int, metavar="N", help="Draws the workload, its faults and their order. Default: one of its own, which is printed.")
@click.option("--workers", type=click.IntRange(2, 32), default=4, show_default=True, metavar="N", help="Worker processes.")
@click.option("--minutes", type=click.FloatRange(0.1), metavar="M", help="How long starts and faults go on. Default: as 17 starts a second take.")
@click.option("--keep", is_flag=True, help="Keep the evidence even if nothing is wrong.")
@JSON
def chaos(workflows: int, seed: int | None, workers: int, minutes: float | None, keep: bool, as_json: bool) -> None:
    """Runs a mixed workload on a Postgres of its own while worker processes, service, server and connections are killed, frozen and cut; then counts.

    What happened is judged by the rows of the store and by a ledger that the activities call, never by the runtime itself.
    """
    import asyncio
    import random

    from flowdsl.testing.chaos.run import SERVES, Wish, run

    if as_json:
        only_json()
    wish = Wish(workflows, random.SystemRandom().randrange(1_000_000) if seed is None else seed, workers, minutes)
    if not as_json:
        click.echo(f"chaos: {workflows} workflows, {workers} workers, about {wish.span:.0f} s of faults, seed {wish.seed}")

    if not SERVES:
        aside("nothing goes over HTTP: for that, pip install 'flowdsl[service]'")

    async def work() -> int:
        with _live() as tell:
            report = await run(wish, tell, keep=keep)
        if as_json:
            emit(_facts(report, keep))
        else:
            _print(report, keep)
        return 0 if report.passed else 1

    try:
        code = awaited(work())
    except asyncio.CancelledError:
        code = 143
    sys.exit(code)


@contextmanager
def _live() -> Generator[Callable[[Progress], None]]:
    """One line that moves, on a terminal; else one every ten seconds."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("starting") as status:
            yield lambda progress: status.update(_line(progress))
        return
    told = 0.0

    def tell(progress: Progress) -> None:
        nonlocal told
        if progress.seconds - told >= 10:
            told = progress.seconds
            aside(_line(progress))

    yield tell


def _line(progress: Progress) -> str:
    now = f"  now: {progress.now}" if progress.now else ""
    return (
        f"{progress.seconds:4.0f} s  {progress.phase}: {progress.started} executions, {progress.ended} ended, {progress.open} open;"
        f" {progress.faults} faults, {progress.hits} hit{now}"
    )


# The report

_SEEN = {
    "execution.taken_over": "executions taken over", "worker.gone": "workers that found themselves declared gone",
    "commit.repeated": "commits sent again", "turn.put_aside": "turns put aside for a lock", "heart.missed": "heartbeats missed",
    "poll.failed": "polls that failed",
}  # fmt: skip


def _facts(report: Report, keep: bool) -> dict[str, Any]:
    return {
        "passed": report.passed,
        "seed": report.wish.seed,
        "repeat": _repeat(report),
        "workflows": report.wish.workflows,
        "workers": report.wish.workers,
        "executions": report.executions,
        "wrong": {name: found for name, found in report.wrong.items() if found},
        "faults": {name: {"tried": one.tried, "hit": one.hit, "met": one.met} for name, one in report.faults.items()},
        "seen": {name: report.events.get(name, 0) for name in _SEEN},
        "calls": report.calls,
        "effects": report.effects,
        "unknown_calls": report.unknown,
        "relieved": report.relieved,
        "seconds": round(report.seconds, 1),
        "healed_after": round(report.healed, 1),
        "per_second": round(sum(report.executions.values()) / report.busy, 1),
        "worker_peak_mib": round(report.peak / 1024, 1),
        "evidence": str(report.folder) if keep or not report.passed else None,
    }


def _repeat(report: Report) -> str:
    wish = report.wish
    minutes = "" if wish.minutes is None else f" --minutes {wish.minutes:g}"
    return f"flowdsl chaos --workflows {wish.workflows} --seed {wish.seed} --workers {wish.workers}{minutes}"


def _print(report: Report, keep: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    faults = Table("fault", "tried", "really hit", "what it met", box=None, header_style="dim")
    for name, one in report.faults.items():
        faults.add_row(name, str(one.tried), str(one.hit), f"{one.met} {_MET.get(name, 'under way')}")
    console.print(faults)
    facts = Table(show_header=False, box=None)
    for status, count in sorted(report.executions.items()):
        facts.add_row(f"executions {status}", str(count))
    for name, text in _SEEN.items():
        facts.add_row(text, str(report.events.get(name, 0)))
    facts.add_row("effects, and calls that made them", f"{report.effects}, {report.calls}")
    facts.add_row("calls of the front of unknown fate, repeated", str(report.unknown))
    facts.add_row("blocked after three deaths in a row, and resumed", str(report.relieved))
    facts.add_row("executions a second, under fire", f"{sum(report.executions.values()) / report.busy:.1f}")
    facts.add_row("all had ended after the last fault in", f"{report.healed:.1f} s")
    facts.add_row("most memory of a worker", f"{report.peak / 1024:.0f} MiB")
    console.print(facts)
    for name, found in report.wrong.items():
        click.secho(f"{'✗' if found else '✓'} {name}{f': {len(found)}' if found else ''}", fg="red" if found else "green")
        for text in found[:_MOST]:
            click.echo(f"    {shown(text)}")
        if len(found) > _MOST:
            click.echo(f"    … and {len(found) - _MOST} more")
    if keep or not report.passed:
        click.echo(f"evidence: {report.folder}")
    click.echo(f"repeat: {_repeat(report)}")


_MET = {
    "kill worker": "executions in flight", "freeze worker": "executions in flight", "stop worker": "executions in flight",
    "kill backends": "statements or transactions cut off", "immediate stop": "executions in flight", "kill postmaster": "executions in flight",
    "cut": "connections that waited for an answer", "swallow": "replies swallowed", "late commit": "connections gone after sending",
    "slow": "messages held up", "kill front": "fronts at work",
    "kill service": "calls that waited for an answer", "rolling deploy": "executions in flight",
}  # fmt: skip

COMMANDS = (chaos,)
