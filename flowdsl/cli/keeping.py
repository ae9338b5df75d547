"""Commands that keep house: `cancel`, `migrate`, `doctor`, `demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowdsl.cli.edge import DATABASE, EXECUTION, JSON, Refusal, awaited, database_of, emit, on_store, only_json
from flowdsl.cli.loading import load

if TYPE_CHECKING:
    from flowdsl.postgres.choice import Choice
    from flowdsl.postgres.deep import Report
    from flowdsl.postgres.store import Store


@click.command(short_help="Ask an execution to end.", epilog="Exit codes: 0 asked; 1 it has ended already; 2 no such execution, or no database.")
@click.argument("id", type=EXECUTION)
@click.option("--reason", default="cancelled by a person", show_default=True, help="Kept in its journal.")
@DATABASE
@JSON
def cancel(id: str, reason: str, database: str | None, as_json: bool) -> None:
    """Asks an execution to end: finalizers and undos run. To ask twice is to ask once."""
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        import json

        one = await store.summary(id)
        over = one.status in ("succeeded", "failed", "cancelled")
        body = json.dumps(reason).encode()
        said = "ended" if over else await store.send(one.tenant, one.id, "cancel", "", body, f"cancel-{one.id}")
        outcome = {"ended": "it has ended already", "again": "asked already"}.get(said, "asked")
        if as_json:
            emit({"execution": one.id, "status": one.status, "outcome": outcome})
        else:
            click.echo(f"{outcome}: {one.status}" if over else outcome)
        return 1 if said == "ended" else 0

    on_store(database, work)


@click.command(short_help="Bring the tables up to date.")
@click.argument("deployment", required=False, metavar="[MODULE:DEPLOYMENT]")
@DATABASE
@JSON
def migrate(deployment: str | None, database: str | None, as_json: bool) -> None:
    """Brings the tables up to date; those of a deployment too, when one is named. To repeat it changes nothing."""
    from flowdsl.postgres.schema import migrate as apply

    if as_json:
        only_json()
    folders = load(deployment).migrations if deployment else ()

    async def work(choice: Choice) -> int:
        applied = await apply(choice.dsn, folders)
        if as_json:
            emit({"applied": applied})
        else:
            click.echo("\n".join(f"applied {name}" for name in applied) or "up to date")
        return 0

    with database_of(database) as choice:
        awaited(work(choice))


@click.command(
    short_help="Which database is meant, and what is wrong with it.",
    epilog="Exit codes: 0 nothing wrong; 1 something is; 2 the database cannot be reached.",
)
@click.argument("deployment", required=False, metavar="[MODULE:DEPLOYMENT]")
@click.option("--deep", is_flag=True, help="Also check the invariants, in the newest executions; with a deployment those that take its code.")
@click.option("--limit", type=click.IntRange(1), default=10_000, show_default=True, metavar="N", help="With --deep: as many executions.")
@DATABASE
@JSON
def doctor(deployment: str | None, deep: bool, limit: int, database: str | None, as_json: bool) -> None:
    """Says which database is meant and why, how it stands, and what is wrong with it. Nothing is changed."""
    from flowdsl.postgres.deep import look
    from flowdsl.postgres.doctor import examine
    from flowdsl.postgres.encryption import from_surroundings
    from flowdsl.postgres.schema import pending_migrations
    from flowdsl.postgres.store import connect, shown_dsn

    if deployment is not None and not deep:
        raise click.UsageError("a deployment is for --deep: without it no code is needed")
    if as_json:
        only_json()
    code_of = load(deployment) if deployment is not None else None

    async def work(choice: Choice) -> int:
        connection = await connect(choice.dsn)
        report: Report | None = None
        try:
            facts, problems = await examine(connection)
            if deep and not await pending_migrations(connection):
                report = await look(connection, code_of, limit=limit, encryption=from_surroundings())
        finally:
            await connection.close()
        about = {"source": choice.source, "why": choice.why, "database": shown_dsn(choice.dsn)}
        wrong = [*problems, *map(str, report.findings if report else ())]
        if as_json:
            emit({**about, **facts, "problems": problems, **({"deep": _deep(report)} if report else {})})
            return 1 if wrong else 0
        for name, value in {**about, **facts}.items():
            click.echo(f"{click.style(f'{name:<17}', dim=True)}{value}")
        if report is not None:
            _tell_report(report)
        for problem in wrong:
            click.secho(f"✗ {problem}", fg="red")
        if not wrong:
            click.secho("✓ nothing wrong", fg="green")
        return 1 if wrong else 0

    with database_of(database) as choice:
        code = awaited(work(choice))
    sys.exit(code)


def _deep(report: Report) -> dict[str, Any]:
    return {
        "executions": report.executions,
        "entries": report.entries,
        "complete": report.complete,
        "findings": [
            {"invariant": f"I{one.invariant}", "execution": one.execution, "found": one.found, "remedy": one.remedy} for one in report.findings
        ],
        "skipped": {f"I{number}": why for number, why in sorted(report.skipped.items())},
    }


def _tell_report(report: Report) -> None:
    part = "" if report.complete else ", the newest; more with --limit"
    click.echo(f"{click.style('looked at'.ljust(17), dim=True)}{report.executions} executions with {report.entries} entries{part}")
    for number, why in sorted(report.skipped.items()):
        click.secho(f"{'not checked':<17}I{number}: {why}", dim=True)


@click.command(short_help="Run the demo of the current folder.", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Runs the demo of the current folder: `python -m adapters.demo`, which takes the options (try --help)."""
    import os

    if not (Path.cwd() / "adapters" / "demo" / "__main__.py").is_file():
        raise Refusal("there is no demo in this folder: it comes with flowdsl's repository; clone it, and type ./dev demo there")
    os.execv(sys.executable, [sys.executable, "-m", "adapters.demo", *arguments])


COMMANDS = (cancel, migrate, doctor, demo)
