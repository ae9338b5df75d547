"""Commands that show executions: `status`, `list`, `journal`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from flowdsl.cli.edge import DATABASE, EXECUTION, EXITS, JSON, emit, on_store, only_json, show_exit, shown

if TYPE_CHECKING:
    from flowdsl.postgres.store import Store, Summary

_STATUSES = ["running", "suspended", "blocked", "succeeded", "failed", "cancelled"]


def ended(one: Summary) -> dict[str, Any]:
    """How an execution ended, for JSON: its status, and its result, failure, defect or cancellation; the cause, if it is blocked."""
    import json

    facts: dict[str, Any] = {"execution": one.id, "status": one.status}
    if one.exit:
        kind, value = next(iter(json.loads(one.exit).items()))
        facts["result" if kind == "success" else kind] = value
    if one.cause:
        facts["cause"] = one.cause
    return facts


def why_of(facts: dict[str, Any]) -> str:
    """The failure or defect among facts, as text: a defect's own words, and where it was."""
    import json

    match facts.get("defect", facts.get("failure", "")):
        case {"where": str(where), "message": str(message)}:
            return f"{message} ({where})"
        case str(text):
            return text
        case plain:
            return json.dumps(plain, ensure_ascii=False)


def facts_of(one: Summary) -> dict[str, Any]:
    """An execution for JSON."""
    return {
        "execution": one.id, "workflow": one.workflow, "key": one.key, "status": one.status, "parent": one.parent, "started": one.started,
        "ended": one.ended, "wake": one.wake, "worker": one.owner, "entries": one.entries, "note": one.note, "done": one.done, "total": one.total,
        "cause": one.cause,
    }  # fmt: skip


@click.command(short_help="An execution and its children; live with --follow.", epilog=EXITS)
@click.argument("id", type=EXECUTION)
@click.option("--follow", is_flag=True, help="Until it has ended, or is blocked.")
@DATABASE
@JSON
def status(id: str, follow: bool, database: str | None, as_json: bool) -> None:
    """An execution and its children: state, progress, what they wait for; and how it ended."""
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        from flowdsl.cli.screen import console, drawn, followed, grown

        plain = not sys.stdout.isatty()
        branch = await followed(store, id, quiet=as_json) if follow else await grown(store, id)
        summary = branch.summary
        facts = ended(summary)
        if as_json:
            emit({**branch.facts(), **facts})
        else:
            if not plain:
                console().print(drawn(branch))
            elif not follow:
                click.echo("\n".join(line for _, line in branch.lines()))
            show_exit(facts)
        return 1 if summary.status in ("failed", "cancelled", "blocked") else 0

    on_store(database, work)


@click.command("list")
@click.option("--workflow", metavar="NAME", help="Of this workflow only.")
@click.option("--status", type=click.Choice(_STATUSES), help="In this state only.")
@click.option("--limit", type=click.IntRange(1), default=30, show_default=True, metavar="N")
@DATABASE
@JSON
def list_(workflow: str | None, status: str | None, limit: int, database: str | None, as_json: bool) -> None:
    """The newest executions."""
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        from flowdsl.cli.screen import Column, clock, name_of, progress, table, took

        found = await store.list(workflow=workflow, status=status, limit=limit)
        if as_json:
            emit([facts_of(one) for one in found])
        elif not found:
            click.echo("no executions" + (" that fit" if workflow or status else ""))
        else:
            table(
                Column("execution", [one.id for one in found]),
                Column("status", [one.status for one in found]),
                Column("workflow and key", [name_of(one) for one in found], folds=True),
                Column("started", [clock(one.started) for one in found]),
                Column("took", [took(one) for one in found], right=True, room=100),
                Column("entries", [f"{one.entries:,}" for one in found], right=True, room=110),
                Column("progress", [progress(one) for one in found], folds=True, room=130),
            )
            if len(found) == limit:
                click.secho(f"the newest {limit}; --limit shows more", dim=True, err=True)
        return 0

    on_store(database, work)


@click.command(short_help="What is recorded of an execution.")
@click.argument("id", type=EXECUTION)
@DATABASE
@JSON
def journal(id: str, database: str | None, as_json: bool) -> None:
    """What happened to an execution, entry by entry. The recorded values are in --json."""
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        await store.summary(id)
        entries = await store.journal(id)
        if as_json:
            emit([_entry(one) for one in entries])
        elif not entries:
            click.echo("nothing is recorded yet")
        else:
            _show(entries)
        return 0

    on_store(database, work)


def _entry(one: Any) -> dict[str, Any]:
    import json

    from flowdsl.journal import KINDS

    return {
        "position": one.position, "kind": KINDS[one.kind], "at": one.at, "step": one.step, "fingerprint": one.fingerprint, "site": one.site,
        "size": len(one.body), "body": json.loads(one.body), "live": one.live,
    }  # fmt: skip


def _show(entries: list[Any]) -> None:
    from flowdsl.cli.screen import Column, table
    from flowdsl.journal import KINDS

    dated = len({one.at.astimezone().date() for one in entries}) > 1
    table(
        Column("position", [str(one.position) for one in entries], right=True),
        Column("step", [shown(one.step) for one in entries], folds=True),
        Column("kind", [KINDS[one.kind] for one in entries]),
        Column("what", [shown(_what(one.fingerprint)) for one in entries], folds=True),
        Column("where", [shown(one.site) for one in entries], folds=True),
        Column("at", [f"{one.at.astimezone():{'%Y-%m-%d ' if dated else ''}%H:%M:%S.%f}"[:-3] for one in entries]),
        Column("size", [f"{len(one.body):,} B" for one in entries], right=True, room=90),
    )


def _what(fingerprint: str) -> str:
    """Kind and name of what was asked, without the digest of its input."""
    kind, _, rest = fingerprint.partition(" ")
    name = rest.partition(" ")[0]
    if kind == "sleep" and name.endswith("us"):
        return f"sleep {int(name[:-2]) / 1e6:g} s"
    return f"{kind} {name}".rstrip()


COMMANDS = (status, list_, journal)
