"""The audit: `audit list`, `audit verify`, `audit anchor`, `audit record`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowdsl.cli.edge import DATABASE, EXECUTION, JSON, emit, on_store, only_json, shown

if TYPE_CHECKING:
    from flowdsl.postgres.audit import Anchor, Verdict
    from flowdsl.postgres.store import Store

_TENANT = click.option("--tenant", metavar="NAME", help="Of this tenant only.")
_KEY = click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Sign anchors, and ask for the signature, with the bytes of this file (HMAC-SHA256).",
)


@click.group(short_help="What was done, in a chain that shows tampering.")
def audit() -> None:
    """What was done, by whom and when: one chain of rows a tenant. A row that is changed, taken out, put in or moved breaks it."""


@audit.command("list", short_help="The newest rows.")
@_TENANT
@click.option("--execution", type=EXECUTION, metavar="ID", help="About this execution only.")
@click.option("--event", metavar="NAME", help="Of this kind only.")
@click.option("--limit", type=click.IntRange(1), default=30, show_default=True, metavar="N")
@DATABASE
@JSON
def list_(tenant: str | None, execution: str | None, event: str | None, limit: int, database: str | None, as_json: bool) -> None:
    """The newest rows. A row without a number waits to be sealed."""
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        rows = await store.again(
            "select id, tenant, execution, event, facts, at, seq from flowdsl.audit where ($1::text is null or tenant = $1)"
            " and ($2::text is null or execution = flowdsl.as_id($2)) and ($3::text is null or event = $3) order by id desc limit $4",
            tenant,
            execution,
            event,
            limit,
        )
        from flowdsl.postgres.looking import facts_of

        if as_json:
            emit([{**dict(row), "facts": _facts(facts_of(store, row))} for row in rows])
            return 0
        for row in rows:
            number = "–" if row["seq"] is None else row["seq"]
            about = shown(f"{row['tenant']} {row['event']} {row['execution'] or ''}").rstrip()
            click.echo(f"{number!s:>8}  {row['at']:%Y-%m-%d %H:%M:%S.%f}  {about}  {click.style(shown(_text(facts_of(store, row))), dim=True)}")
        if not rows:
            click.echo("nothing")
        return 0

    on_store(database, work)


def _text(facts: bytes) -> str:
    return bytes(facts).decode(errors="backslashreplace")


def _facts(facts: bytes) -> Any:
    import json

    try:
        return json.loads(facts)
    except ValueError:
        return _text(facts)


@audit.command(short_help="Whether the chains are whole.", epilog="Exit codes: 0 whole; 1 not; 2 no database, or no such file.")
@_TENANT
@click.option("--anchor", "anchor_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Compare with the anchors in it.")
@_KEY
@DATABASE
@JSON
def verify(tenant: str | None, anchor_file: Path | None, key_file: Path | None, database: str | None, as_json: bool) -> None:
    """Computes each chain anew, from its first row to its head.

    Whoever owns the tables can write a whole chain anew, or cut off its end together with its head: that shows only against anchors that
    were stored elsewhere.
    """
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        from flowdsl.postgres.audit import read_anchors, tenants
        from flowdsl.postgres.audit import verify as verified

        anchors = read_anchors(anchor_file, _key(key_file)) if anchor_file else []
        async with store.connection() as connection:
            names = [tenant] if tenant else sorted({*await tenants(connection), *(one.tenant for one in anchors)})
            verdicts = [await verified(connection, name, anchors) for name in names]
        _tell(verdicts, as_json)
        return 1 if any(verdict.wrong for verdict in verdicts) else 0

    on_store(database, work)


@audit.command(short_help="The heads of the chains, to be stored elsewhere.", epilog="Exit codes: 0 written; 1 a chain is broken; 2 no database.")
@_TENANT
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Append to it; else they are printed.")
@_KEY
@DATABASE
def anchor(tenant: str | None, file: Path | None, key_file: Path | None, database: str | None) -> None:
    """The heads of the chains, a line of JSON each: keep them where who owns the database cannot write. Run it every hour.

    What came since the last anchor in the file is verified first; of a chain that is broken no anchor is taken.
    """
    known = file is not None and file.exists()

    async def work(store: Store) -> int:
        from flowdsl.postgres.audit import add_anchors, read_anchors, seal, tenants
        from flowdsl.postgres.audit import verify as verified

        key = _key(key_file)
        before = read_anchors(file, key) if file is not None and known else []
        await seal(store)
        async with store.connection() as connection:
            names = [tenant] if tenant else sorted({*await tenants(connection), *(one.tenant for one in before)})
            verdicts = [await verified(connection, name, before, since=_last(before, name)) for name in names]
        broken = [verdict for verdict in verdicts if verdict.wrong]
        anchors = [verdict.anchor() for verdict in verdicts if verdict.seq and not verdict.wrong]
        if file is not None:
            add_anchors(file, anchors, key)
        else:
            for one in anchors:
                click.echo(one.signed(key))
        _wrong(broken)
        return 1 if broken else 0

    on_store(database, work)


@audit.command(short_help="Audit the starts and ends of workflows.")
@click.argument("workflows", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Of all workflows.")
@click.option("--none", "nothing", is_flag=True, help="Of none, which is the default.")
@DATABASE
@JSON
def record(workflows: tuple[str, ...], everything: bool, nothing: bool, database: str | None, as_json: bool) -> None:
    """From now on the starts and ends of these workflows are audited, and of no others. Without a name: says of which they are.

    Blocks, what people do, and what a workflow says with `audit(...)` are always audited. A start and an end are a row each, written with the
    change itself: that about doubles what a workflow of one step writes.
    """
    if bool(workflows) + everything + nothing > 1:
        raise click.UsageError("name workflows, or say --all, or --none")
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        if workflows or everything or nothing:
            await store.again("select flowdsl.audit_workflows($1::text[])", ["*"] if everything else list(workflows))
        rows = await store.again("select workflow, since from flowdsl.audited_workflows order by 1")
        if as_json:
            emit([dict(row) for row in rows])
        else:
            click.echo(
                "\n".join(f"{'all workflows' if row['workflow'] == '*' else row['workflow']} since {row['since']:%Y-%m-%d %H:%M}" for row in rows)
                or "none"
            )
        return 0

    on_store(database, work)


def _key(file: Path | None) -> bytes | None:
    return None if file is None else file.read_bytes().strip()


def _last(anchors: list[Anchor], tenant: str) -> Anchor | None:
    return max((one for one in anchors if one.tenant == tenant), key=lambda one: one.seq, default=None)


def _tell(verdicts: list[Verdict], as_json: bool) -> None:
    from attrs import asdict

    if as_json:
        emit([{**asdict(one), "hash": one.hash.hex()} for one in verdicts])
        return
    for one in verdicts:
        if not one.wrong:
            waiting = f", {one.unsealed} not sealed yet" if one.unsealed else ""
            click.secho(f"✓ {shown(one.tenant)}: {one.rows} rows{waiting}", fg="green")
    _wrong(verdicts)
    if not verdicts:
        click.echo("nothing was audited yet")


def _wrong(verdicts: list[Verdict]) -> None:
    for one in verdicts:
        for what in one.wrong:
            click.secho(f"✗ {shown(one.tenant)}: {shown(what)}", fg="red", err=True)


COMMANDS = (audit,)
