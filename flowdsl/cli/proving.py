"""Recorded executions against the code at hand: `repro`, and `compat --journals`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowdsl.cli.edge import DATABASE, DEPLOYMENT, EXECUTION, Refusal, aside, on_store
from flowdsl.cli.loading import load

if TYPE_CHECKING:
    from flowdsl.binding import Deployment
    from flowdsl.compat import Fit
    from flowdsl.postgres.store import Store


@click.command(short_help="A stored execution as a test that runs.")
@DEPLOYMENT
@click.argument("execution", metavar="ID|FILE")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Default: stdout.")
@click.option("--redact", is_flag=True, help="Other texts of the same length, wherever the run does not depend on them.")
@click.option("--tenant", default="default", show_default=True, metavar="NAME")
@DATABASE
def repro(deployment: str, execution: str, output: Path | None, redact: bool, tenant: str, database: str | None) -> None:
    """Writes a pytest file that does what an execution of the store, or of a file that `flowdsl export` wrote, has done.

    Its request, what activities gave, signals, failed attempts and crashes stand in it as plain Python. Edit it, and mend the code with it.
    """
    loaded = load(deployment)
    if Path(execution).is_file():
        _write(Path(execution).read_text(encoding="utf-8"), execution, None, loaded, redact, output)
        return
    try:
        id = EXECUTION.convert(execution, None, None)
    except Refusal as refusal:
        raise Refusal(f"there is no file {execution!r} here, and {refusal.message}") from None

    async def work(store: Store) -> int:
        from flowdsl.postgres.moving import exported

        _write(await exported(store, [id], tenant=tenant), execution, id, loaded, redact, output)
        return 0

    on_store(database, work)


def _write(text: str, name: str, id: str | None, deployment: Deployment, redact: bool, output: Path | None) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from flowdsl.testing.golden import read
    from flowdsl.testing.repro import repro as written

    found = read(text, name)
    first = next((one for one in found if one.execution.id == id), None) or next(
        (one for one in found if one.execution.parent not in {other.execution.id for other in found}), found[0]
    )
    definitions = deployment.definitions(first.execution.workflow, first.version)
    with ThreadPoolExecutor(1) as apart:  # a run that is tried has an event loop of its own
        test = apart.submit(written, [first, *(one for one in found if one is not first)], definitions, redact=redact).result()
    if output is None:
        click.echo(test, nl=False)
    else:
        output.write_text(test, encoding="utf-8")
        aside(f"{output}: run it with pytest, then edit it")


def compare_journals(deployment: Deployment, folder: Path, workflow: str | None, as_json: bool) -> int:
    """Folds the recorded executions in a folder; gives the exit code."""
    from flowdsl.cli.operating import tell_fits
    from flowdsl.testing.golden import in_folder

    groups: dict[tuple[str, str, str, str], list[Fit]] = {}
    for _, one in in_folder(folder, deployment):
        if workflow is None or one.workflow == workflow:
            groups.setdefault(one.group, []).append(one)
    return tell_fits(groups, as_json, empty="no recorded executions")


COMMANDS = (repro,)
