"""Commands that read workflows without running them: `graph`, `lint`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowdsl.cli.edge import DEPLOYMENT, JSON, Refusal, emit, only_json, shown

if TYPE_CHECKING:
    from flowdsl.lint import Finding
    from flowdsl.outline import Outline


@click.command(short_help="What a workflow may do, drawn without running it.")
@DEPLOYMENT
@click.argument("workflow", required=False)
@click.option("--format", "form", type=click.Choice(["mermaid", "svg", "json"]), default=None, help="Default: what FILE's ending says, else mermaid.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there instead of to stdout.")
def graph(deployment: str, workflow: str | None, form: str | None, output: Path | None) -> None:
    """The steps of a workflow with the branches and loops around them, from its source; of all workflows, if none is named."""
    from contextlib import redirect_stdout

    from flowdsl.cli.loading import load, workflow_of
    from flowdsl.outline import outline

    with redirect_stdout(sys.stderr):  # a module that prints must not end up in the picture
        loaded = load(deployment)
    chosen = [workflow_of(loaded, workflow)] if workflow else [loaded.workflow(name) for name in loaded.names]
    text = _drawn([outline(one) for one in chosen], form or _form_of(output), single=workflow is not None)
    if output is None:
        sys.stdout.buffer.write(text.encode())
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refusal(f"{output} cannot be written: {error.strerror}") from None
    click.echo(f"{output}: {', '.join(one.name for one in chosen)}", err=True)


def _form_of(output: Path | None) -> str:
    return {".svg": "svg", ".json": "json"}.get(output.suffix.lower() if output is not None else "", "mermaid")


def _drawn(outlines: list[Outline], form: str, *, single: bool) -> str:
    if form == "json":
        import json

        facts: Any = [one.facts() for one in outlines]
        return json.dumps(facts[0] if single else facts, indent=2, ensure_ascii=False) + "\n"
    if form == "svg":
        from flowdsl.outline.svg import svg

        return svg([(one, None) for one in outlines])
    from flowdsl.outline.mermaid import mermaid

    return mermaid([(one, None) for one in outlines])


@click.command(short_help="Mistakes in workflow bodies that no type checker sees.")
@DEPLOYMENT
@JSON
def lint(deployment: str, as_json: bool) -> None:
    """Reads the bodies of all workflows of a deployment. Exit code 1 when there is an error; warnings alone leave it at 0.

    A finding is silenced on its line, with a reason: # flowdsl: allow RULE because …
    """
    if as_json:
        only_json()
    from flowdsl.cli.loading import load
    from flowdsl.lint import lint as findings_of

    loaded = load(deployment)
    found = findings_of(loaded)
    if as_json:
        emit([one.facts() for one in found])
    else:
        _tell(found, len(loaded.names))
    sys.exit(1 if any(one.severity == "error" for one in found) else 0)


def _tell(found: list[Finding], workflows: int) -> None:
    for one in found:
        place = click.style(f"{_near(one.file)}:{one.line}", bold=True)
        word = click.style(one.severity, fg="red" if one.severity == "error" else "yellow")
        click.echo(f"{place}: {word} {one.rule}: {shown(one.message)}")
    errors = sum(one.severity == "error" for one in found)
    counted = f"{_some(errors, 'error')}, {_some(len(found) - errors, 'warning')}" if found else "nothing found"
    click.secho(f"{_some(workflows, 'workflow')} read: {counted}", err=True, dim=True)


def _some(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _near(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


COMMANDS = (graph, lint)
