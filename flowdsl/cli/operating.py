"""Commands with which people intervene: `signal`, `pause`, `resume`, `terminate`, `retry`, `rewind`, `fork`, `what-if`, `dead`, `compat`, …"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowdsl.cli.edge import DATABASE, DEPLOYMENT, EXECUTION, JSON, Refusal, emit, on_store, only_json, shown
from flowdsl.cli.loading import load

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from flowdsl.binding import Deployment
    from flowdsl.compat import Fit
    from flowdsl.operating import Edits
    from flowdsl.postgres.operating import Done, Operator
    from flowdsl.postgres.store import Store

REASON = click.option("--reason", default="", metavar="TEXT", help="Why; kept in the journal and in the audit.")
TENANT = click.option("--tenant", default="default", show_default=True, metavar="NAME")
SET = click.option(
    "--set", "edits", multiple=True, metavar="STEP=JSON",
    help='How the step ended instead: its answer, or {"failure": …}, or {"defect": "why"}.',
)  # fmt: skip
TO = click.option("--to", "to", required=True, metavar="STEP|#POSITION", help="Just before this step was first answered; or a position, as #12.")


def _operated(database: str | None, tenant: str, deployment: Deployment | None, work: Callable[[Operator, Store], Coroutine[Any, Any, int]]) -> None:
    import getpass

    async def opened(store: Store) -> int:
        from flowdsl.postgres.operating import Operator

        return await work(Operator(store, deployment, by=getpass.getuser(), tenant=tenant), store)

    on_store(database, opened)


def _place(text: str) -> str | int:
    if not text.startswith("#"):
        return text
    if not text[1:].isdigit():
        raise Refusal(f"{text} is no position: write #12, or a step such as 2.0.1")
    return int(text[1:])


def _edits(pairs: tuple[str, ...]) -> Edits:
    import json

    from flowdsl.flow import Defect
    from flowdsl.journal import FAILURE, SUCCESS
    from flowdsl.operating import Written

    found: dict[str, Any] = {}
    for pair in pairs:
        step, sign, text = pair.partition("=")
        if not sign or not step:
            raise Refusal(f"--set {pair}: write STEP=JSON, such as 2=7; `flowdsl journal ID` shows the steps")
        try:
            plain = json.loads(text)
        except ValueError as error:
            raise Refusal(f"--set {pair}: {text!r} is no JSON ({error}); write --set 2='\"text\"'") from None
        match plain:
            case {"failure": failure} if len(plain) == 1:
                found[step] = Written(FAILURE, json.dumps(failure, separators=(",", ":")).encode())
            case {"defect": str(why)} if len(plain) == 1:
                found[step] = Defect("set by a person", why)
            case _:
                found[step] = Written(SUCCESS, json.dumps(plain, separators=(",", ":")).encode())
    return found


@contextmanager
def _fitting(pairs: tuple[str, ...]) -> Generator[None]:
    """What was set and is not of the step's type is told as what was typed."""
    from flowdsl.codec import Undecodable

    try:
        yield
    except Undecodable as error:
        if not pairs:
            raise
        problems = "; ".join(f"{path}: {problem}" for path, problem in error.problems)
        raise Refusal(f"--set {' --set '.join(pairs)} does not fit what that step may answer: {problems}") from None


@click.command("signal", short_help="Send a signal.", epilog="Exit codes: 0 sent, or kept for who comes; 1 the execution has ended; 2 wrong input.")
@click.argument("to", metavar="ID|KEY")
@click.argument("name")
@click.argument("payload", required=False, default="null", metavar="[JSON]")
@click.option("--delivery", metavar="ID", help="Sent again under this id, it acts once.")
@TENANT
@DATABASE
@JSON
def signal_(to: str, name: str, payload: str, delivery: str | None, tenant: str, database: str | None, as_json: bool) -> None:
    """Sends a signal to an execution, or to a correlation key. What nobody waits for yet is kept."""
    import json

    if as_json:
        only_json()
    try:
        body = json.dumps(json.loads(payload), separators=(",", ":"), ensure_ascii=False).encode()
    except ValueError as error:
        raise Refusal(f"the payload is no JSON: {error}") from None

    async def work(operator: Operator, store: Store) -> int:
        from flowdsl.postgres.worker import new_id

        said = await store.send(tenant, to, "signal", name, body, delivery or new_id())
        words = {
            "sent": "sent", "again": "sent before under this delivery id", "ended": "the execution has ended already",
            "unmatched": "nobody waits for it yet: kept for who comes",
        }  # fmt: skip
        if as_json:
            emit({"to": to, "signal": name, "outcome": said})
        else:
            click.echo(words[said])
        return 1 if said == "ended" else 0

    _operated(database, tenant, None, work)


@click.command(short_help="Signals that nobody waits for yet.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@TENANT
@DATABASE
@JSON
def unmatched(limit: int, tenant: str, database: str | None, as_json: bool) -> None:
    """Signals to correlation keys that nobody has waited for yet: kept for who comes, and deleted by `prune` after a week."""
    if as_json:
        only_json()

    async def work(operator: Operator, store: Store) -> int:
        import json

        from flowdsl.cli.screen import Column, clock, table

        found = await store.unmatched(tenant, limit)
        if as_json:
            emit([{**{name: row[name] for name in ("name", "key", "delivery", "at")}, "payload": json.loads(row["body"])} for row in found])
        elif not found:
            click.echo("none")
        else:
            table(
                Column("signal", [shown(row["name"]) for row in found]),
                Column("key", [shown(row["key"]) for row in found], folds=True),
                Column("at", [clock(row["at"]) for row in found]),
                Column("payload", [shown(row["body"].decode(errors="replace"))[:200] for row in found], folds=True),
            )
        return 0

    _operated(database, tenant, None, work)


@click.command(short_help="Hold an execution until it is resumed.")
@click.argument("id", type=EXECUTION)
@REASON
@TENANT
@DATABASE
@JSON
def pause(id: str, reason: str, tenant: str, database: str | None, as_json: bool) -> None:
    """Nothing new of it begins: what runs may end and is recorded, then it is blocked until it is resumed."""
    if as_json:
        only_json()

    async def work(operator: Operator, store: Store) -> int:
        await operator.pause(id, reason or "by a person")
        if as_json:
            emit({"execution": id, "outcome": "asked"})
        else:
            click.echo("asked")
        return 0

    _operated(database, tenant, None, work)


@click.command(short_help="Let blocked executions go on.", epilog="Exit codes: 0 resumed; 1 some could not be; 2 wrong input, or no database.")
@click.argument("id", required=False, type=EXECUTION)
@click.option("--all", "everything", is_flag=True, help="All that are blocked, e.g. after a fixed deploy.")
@click.option("--workflow", metavar="NAME", help="With --all: of this workflow only.")
@click.option("--deployment", metavar="MODULE:DEPLOYMENT", help="Needed where undos failed: they run again.")
@REASON
@TENANT
@DATABASE
@JSON
def resume(
    id: str | None, everything: bool, workflow: str | None, deployment: str | None, reason: str, tenant: str, database: str | None, as_json: bool
) -> None:
    """Lets an execution go on that is blocked: paused, diverged and fixed since, or with undos that failed."""
    if as_json:
        only_json()
    if (id is None) != everything:
        raise Refusal("name an execution, or say --all")
    loaded = load(deployment) if deployment else None

    async def work(operator: Operator, store: Store) -> int:
        from flowdsl.errors import FlowError

        done: list[str] = []
        refused: dict[str, str] = {}
        blocked = [one.id for one in await store.list(workflow=workflow, status="blocked", limit=100_000)] if everything else [id or ""]
        for one in blocked:
            try:
                await operator.resume(one, reason)
                done.append(one)
            except FlowError as error:
                if not everything:
                    raise
                refused[one] = str(error)
        if as_json:
            emit({"resumed": done, "refused": refused})
        else:
            click.echo(f"resumed {len(done)}" if everything else "resumed")
            for one, why in refused.items():
                click.secho(f"{one}: {shown(why)}", fg="red", err=True)
        return 1 if refused else 0

    _operated(database, tenant, loaded, work)


@click.command(short_help="End an execution at once.")
@click.argument("id", type=EXECUTION)
@REASON
@TENANT
@DATABASE
@JSON
def terminate(id: str, reason: str, tenant: str, database: str | None, as_json: bool) -> None:
    """Ends it at once, also when it is blocked: no finalizer and no undo runs. `flowdsl cancel` is kinder."""
    if as_json:
        only_json()

    async def work(operator: Operator, store: Store) -> int:
        await operator.terminate(id, reason or "by a person")
        if as_json:
            emit({"execution": id, "outcome": "terminated"})
        else:
            click.echo("terminated")
        return 0

    _operated(database, tenant, None, work)


def _told(done: Done, as_json: bool) -> int:
    steps = list(dict.fromkeys(entry.step for entry in done.dropped if entry.step))
    if as_json:
        emit({"executions": done.executions, "again": steps})
    else:
        children = len(done.executions) - 1
        click.echo("goes on" + (f", with {children} children" if children > 0 else "") + (f"; done again: {', '.join(steps[:20])}" if steps else ""))
    return 0


@click.command(short_help="Do again what made an execution fail.")
@DEPLOYMENT
@click.argument("id", type=EXECUTION)
@REASON
@TENANT
@DATABASE
@JSON
def retry(deployment: str, id: str, reason: str, tenant: str, database: str | None, as_json: bool) -> None:
    """Does again what made it fail, be cancelled or have failing undos, children first. What succeeded and still stands does not run again."""
    if as_json:
        only_json()

    async def work(operator: Operator, store: Store) -> int:
        return _told(await operator.retry(id, reason), as_json)

    _operated(database, tenant, load(deployment), work)


@click.command(short_help="Take an execution back to a step.")
@DEPLOYMENT
@click.argument("id", type=EXECUTION)
@TO
@REASON
@TENANT
@DATABASE
@JSON
def rewind(deployment: str, id: str, to: str, reason: str, tenant: str, database: str | None, as_json: bool) -> None:
    """Takes it back to just before a step: from there on all is done anew, under new idempotency keys. Signals it had taken are put back."""
    if as_json:
        only_json()

    async def work(operator: Operator, store: Store) -> int:
        return _told(await operator.rewind(id, _place(to), reason), as_json)

    _operated(database, tenant, load(deployment), work)


@click.command(short_help="A new execution from another's record.")
@DEPLOYMENT
@click.argument("id", type=EXECUTION)
@TO
@SET
@click.option("--paused", is_flag=True, help="It begins blocked, to be looked at first.")
@REASON
@TENANT
@DATABASE
@JSON
def fork(
    deployment: str, id: str, to: str, edits: tuple[str, ...], paused: bool, reason: str, tenant: str, database: str | None, as_json: bool
) -> None:
    """A new execution that goes on from where that one stood before a step, also with other exits. It really calls what comes next."""
    if as_json:
        only_json()

    async def work(operator: Operator, store: Store) -> int:
        with _fitting(edits):
            new = await operator.fork(id, _place(to), edits=_edits(edits), paused=paused, reason=reason)
        if as_json:
            emit({"execution": new, "from": id})
        else:
            click.echo(new)
        return 0

    _operated(database, tenant, load(deployment), work)


@click.command("what-if", short_help="Where it would go if steps had ended otherwise.")
@DEPLOYMENT
@click.argument("id", type=EXECUTION)
@SET
@TENANT
@DATABASE
@JSON
def what_if(deployment: str, id: str, edits: tuple[str, ...], tenant: str, database: str | None, as_json: bool) -> None:
    """Folds the record with these exits replaced: how it would end, or what it would call. Nothing is called, nothing is changed."""
    if as_json:
        only_json()

    async def work(operator: Operator, store: Store) -> int:
        with _fitting(edits):
            found = await operator.what_if(id, _edits(edits))
        asked = [{"step": step, "what": what, "where": where} for step, what, where in found.asked]
        if as_json:
            emit({"exit": None if found.exit is None else str(found.exit), "asks": asked, "used": len(found.used), "unused": len(found.unused)})
        else:
            click.echo(f"{len(found.used)} recorded entries answer a question, {len(found.unused)} no longer do")
            click.echo(f"it would end: {shown(str(found.exit))}" if found.exit is not None else "it would ask:")
            for one in asked:
                click.echo(f"  {one['step']}  {shown(one['what'])}  {shown(one['where'])}")
        return 0

    _operated(database, tenant, load(deployment), work)


@click.group(short_help="Executions that failed or are blocked.")
def dead() -> None:
    """Dead letters: executions that failed or are blocked, until somebody retries or discards them."""


@dead.command("list")
@click.option("--workflow", metavar="NAME")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@TENANT
@DATABASE
@JSON
def dead_list(workflow: str | None, limit: int, tenant: str, database: str | None, as_json: bool) -> None:
    """Which there are, newest first, with the cause."""
    if as_json:
        only_json()

    async def work(operator: Operator, store: Store) -> int:
        from flowdsl.cli.looking import ended, facts_of, why_of
        from flowdsl.cli.screen import Column, clock, name_of, table

        found = await operator.dead(workflow=workflow, limit=limit)
        if as_json:
            emit([{**facts_of(one), **ended(one)} for one in found])
        elif not found:
            click.echo("no dead letters")
        else:
            why = [(one.cause or why_of(ended(one))).splitlines() for one in found]
            table(
                Column("execution", [one.id for one in found]),
                Column("status", [one.status for one in found]),
                Column("workflow and key", [name_of(one) for one in found], folds=True),
                Column("started", [clock(one.started) for one in found]),
                Column("why", [shown(lines[0])[:200] if lines else "" for lines in why], folds=True),
            )
        return 0

    _operated(database, tenant, None, work)


@dead.command("retry")
@DEPLOYMENT
@click.option("--workflow", metavar="NAME")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@REASON
@TENANT
@DATABASE
@JSON
def dead_retry(deployment: str, workflow: str | None, limit: int, reason: str, tenant: str, database: str | None, as_json: bool) -> None:
    """Retries them: failed ones do again what failed, blocked ones are resumed."""
    if as_json:
        only_json()

    async def work(operator: Operator, store: Store) -> int:
        bulk = await operator.retry_dead(workflow=workflow, limit=limit, reason=reason)
        if as_json:
            emit({"retried": bulk.done, "refused": dict(bulk.refused)})
        else:
            click.echo(f"retried {len(bulk.done)}")
            for one, why in bulk.refused.items():
                click.secho(f"{one}: {shown(why)}", fg="red", err=True)
        return 1 if bulk.refused else 0

    _operated(database, tenant, load(deployment), work)


@dead.command("discard")
@click.argument("ids", nargs=-1, required=True, metavar="ID…", type=EXECUTION)
@REASON
@TENANT
@DATABASE
@JSON
def dead_discard(ids: tuple[str, ...], reason: str, tenant: str, database: str | None, as_json: bool) -> None:
    """Takes them off the list; they stay what they are."""
    if as_json:
        only_json()

    async def work(operator: Operator, store: Store) -> int:
        done = await operator.discard(ids, reason)
        if as_json:
            emit({"discarded": done})
        else:
            click.echo(f"discarded {len(done)} of {len(ids)}")
        return 0 if len(done) == len(set(ids)) else 1

    _operated(database, tenant, None, work)


@click.command(short_help="Delete executions that ended long ago.")
@click.option("--older-than", required=True, metavar="DURATION", help="Such as 30d: ended longer ago than that.")
@click.option("--workflow", metavar="NAME")
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice(["succeeded", "failed", "cancelled"]), help="In this state only; may be repeated."
)
@TENANT
@DATABASE
@JSON
def prune(older_than: str, workflow: str | None, statuses: tuple[Any, ...], tenant: str, database: str | None, as_json: bool) -> None:
    """Deletes executions, each with its journal and mail or not at all. One that an open parent may join, or with open children, stays."""
    from flowdsl.policy import duration

    if as_json:
        only_json()
    age = duration(older_than)

    async def work(operator: Operator, store: Store) -> int:
        gone = await operator.prune(age, workflow=workflow, statuses=statuses or ("succeeded", "failed", "cancelled"))
        if as_json:
            emit({"deleted": gone})
        else:
            click.echo(f"deleted {gone}")
        return 0

    _operated(database, tenant, None, work)


@click.command(
    short_help="Do open executions fit this code?", epilog="Exit codes: 0 all fit; 1 some need a marker, or break; 2 wrong input, or no database."
)
@DEPLOYMENT
@click.option("--workflow", metavar="NAME")
@click.option(
    "--journals",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Instead of a store: recorded executions in files, ended ones too (see `flowdsl export --golden`).",
)
@DATABASE
@JSON
def compat(deployment: str, workflow: str | None, journals: Path | None, database: str | None, as_json: bool) -> None:
    """Folds all open executions of the store through the code at hand: fits, needs a marker here, breaks at this step. Calls nothing.

    Run it before a deploy.
    """
    if as_json:
        only_json()
    loaded = load(deployment)
    if journals is not None:
        from flowdsl.cli.proving import compare_journals

        sys.exit(compare_journals(loaded, journals, workflow, as_json))

    async def work(store: Store) -> int:
        from flowdsl.postgres.compat import compared

        groups: dict[tuple[str, str, str, str], list[Fit]] = {}
        async for one in compared(store, loaded, workflow=workflow):
            groups.setdefault(one.group, []).append(one)
        return tell_fits(groups, as_json, empty="no open executions")

    on_store(database, work)


def tell_fits(groups: dict[tuple[str, str, str, str], list[Fit]], as_json: bool, *, empty: str) -> int:
    """Tells verdicts, those that are alike once, and gives the exit code."""
    bad = [found for (_, verdict, _, _), found in groups.items() if verdict != "fits"]
    if as_json:
        emit([
            {"workflow": name, "verdict": verdict, "where": where, "why": why, "executions": len(found), "first": found[0].execution,
             "step": found[0].step, "lines": found[0].lines}
            for (name, verdict, where, why), found in sorted(groups.items())
        ])  # fmt: skip
        return 1 if bad else 0
    for (name, verdict, where, why), found in sorted(groups.items()):
        place = f" at {where}" if where and verdict != "fits" else ""
        click.secho(f"{'✓' if verdict == 'fits' else '✗'} {name}: {len(found)} {verdict}{place}", fg="green" if verdict == "fits" else "red")
        if why:
            click.echo(f"  {shown(why)}")
            click.echo("\n".join(f"  {line}" for line in found[0].lines))
            click.secho(f"  the first of them: {found[0].execution}", dim=True)
    if not groups:
        click.echo(empty)
    return 1 if bad else 0


@click.command("export", short_help="Executions as one JSON document.")
@click.argument("ids", nargs=-1, required=True, metavar="ID…", type=EXECUTION)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Default: stdout.")
@click.option(
    "--golden",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Journals alone, each in a readable file there: for `flowdsl compat --journals FOLDER`.",
)
@click.option("--plain", is_flag=True, help="Also what is encrypted, in the clear; else it stays as it is, and its key must be where it is imported.")
@TENANT
@DATABASE
def export(ids: tuple[str, ...], output: Path | None, golden: Path | None, plain: bool, tenant: str, database: str | None) -> None:
    """Executions with their journals, mail and descendants, as of one moment."""
    if golden is not None and output is not None:
        raise click.UsageError("--golden and --output are two forms: name one of them")

    async def work(store: Store) -> int:
        from flowdsl.postgres.moving import exported

        text = await exported(store, ids, tenant=tenant, plain=plain)
        if golden is not None:
            from flowdsl.testing.golden import read, written

            click.echo("\n".join(map(str, written(golden, read(text)))))
        elif output is None:
            click.echo(text)
        else:
            output.write_text(text, encoding="utf-8")  # noqa: ASYNC240 (nothing else goes on)
        return 0

    on_store(database, work)


@click.command("import", short_help="Put exported executions into this store.")
@click.argument("file", type=click.File("r", encoding="utf-8"), default="-")
@click.option("--tenant", metavar="NAME", help="Whose they become; default: whose they were.")
@DATABASE
@JSON
def import_(file: Any, tenant: str | None, database: str | None, as_json: bool) -> None:
    """All or none. Those that were open are blocked until `flowdsl resume`."""
    if as_json:
        only_json()
    text = file.read()

    async def work(store: Store) -> int:
        from flowdsl.postgres.moving import imported

        ids = await imported(store, text, tenant=tenant)
        if as_json:
            emit({"imported": ids})
        else:
            click.echo("\n".join(ids))
        return 0

    on_store(database, work)


COMMANDS = (signal_, unmatched, pause, resume, terminate, retry, rewind, fork, what_if, dead, prune, compat, export, import_)
