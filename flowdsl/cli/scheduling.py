"""`flowdsl schedules`: what is due when, what became of it, and what people do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from flowdsl.cli.edge import DATABASE, EXITS, JSON, Refusal, emit, on_store, only_json, shown

if TYPE_CHECKING:
    from datetime import datetime

    from flowdsl.postgres.schedules import Fired
    from flowdsl.postgres.scheduling import Listed
    from flowdsl.postgres.store import Store

ID = click.argument("id")


@click.group(invoke_without_command=True, short_help="What is due when; pause, resume, trigger, backfill.")
@DATABASE
@JSON
@click.pass_context
def schedules(ctx: click.Context, database: str | None, as_json: bool) -> None:
    """The schedules of this database: rule, next due time, last execution. Workers bring them: a deployment names them in its code."""
    if ctx.invoked_subcommand is None:
        _list(database, as_json)
    elif database is not None or as_json:
        raise Refusal(f"options come after the command: flowdsl schedules {ctx.invoked_subcommand} … {'--json' if as_json else '--database URL'}")


@schedules.command("list", short_help="The same as without a command.")
@DATABASE
@JSON
def list_(database: str | None, as_json: bool) -> None:
    """The schedules of this database."""
    _list(database, as_json)


def _list(database: str | None, as_json: bool) -> None:
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        from flowdsl.postgres.scheduling import listed

        found = await listed(store)
        if as_json:
            emit([_facts(one) for one in found])
        elif not found:
            click.echo("no schedules: a worker writes them down when it starts, from Deployment(schedules=[…])")
        else:
            _table(found)
        return 0

    on_store(database, work)


def _table(found: list[Listed]) -> None:
    from flowdsl.cli.screen import Column, table

    table(
        Column("schedule", [shown(one.id) for one in found], folds=True),
        Column("workflow", [shown(one.workflow) for one in found], folds=True, room=100),
        Column("rule", [shown(one.rule) for one in found]),
        Column("zone", [one.zone for one in found], room=90),
        Column("next", [_next(one) for one in found], folds=True),
        Column("last", [_moment(one, one.last) for one in found]),
        Column("execution", [one.execution or "" for one in found], room=140),
        Column("status", [one.status or "" for one in found]),
    )
    for one in found:
        if one.problem:
            click.secho(f"{shown(one.id)}: {shown(one.problem)}", fg="red", err=True)


def _next(one: Listed) -> str:
    """When it is due, in its own zone; or why it is not."""
    if not one.in_code:
        return "not in code"
    if one.paused:
        return "paused"
    return _moment(one, one.due) + (", one queued" if one.queued else "") + (" (see below)" if one.problem else "")


def _moment(one: Listed, at: datetime | None) -> str:
    from zoneinfo import ZoneInfo

    if at is None:
        return ""
    try:
        return f"{at.astimezone(ZoneInfo(one.zone)):%Y-%m-%d %H:%M:%S}"
    except (OSError, ValueError):  # a zone that only others know
        return f"{at:%Y-%m-%d %H:%M:%S}Z"


def _facts(one: Listed) -> dict[str, Any]:
    return {
        "schedule": one.id, "tenant": one.tenant, "workflow": one.workflow, "rule": one.rule, "zone": one.zone, "overlap": one.overlap,
        "catch_up": one.catch_up, "instant": one.upcoming, "due": one.due, "queued": one.queued, "last": one.last, "last_at": one.last_at,
        "execution": one.execution, "status": one.status, "paused": one.paused, "in_code": one.in_code, "problem": one.problem,
    }  # fmt: skip


def _fired(one: Fired) -> dict[str, Any]:
    return {"schedule": one.schedule, "instant": one.instant, "outcome": one.outcome, "execution": one.execution}


# What people do


@schedules.command(short_help="Start nothing until it is resumed.")
@ID
@DATABASE
@JSON
def pause(id: str, database: str | None, as_json: bool) -> None:
    """Starts nothing until it is resumed. What runs goes on; what is queued is let go."""
    _changed(id, database, as_json, paused=True)


@schedules.command(short_help="Go on from now.")
@ID
@DATABASE
@JSON
def resume(id: str, database: str | None, as_json: bool) -> None:
    """Goes on from now: what would have fired meanwhile is not made up for; see `backfill`."""
    _changed(id, database, as_json, paused=False)


def _changed(id: str, database: str | None, as_json: bool, *, paused: bool) -> None:
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        from flowdsl.postgres import scheduling as stored

        await (stored.pause if paused else stored.resume)(store, id, by=_user())
        [one] = await stored.listed(store, id)
        if as_json:
            emit(_facts(one))
        else:
            click.echo(f"{shown(id)}: " + ("paused" if paused else f"next {_next(one)} {one.zone}"))
        return 0

    on_store(database, work)


@schedules.command(short_help="Start it now.", epilog="Exit codes: 0 started, or queued; 1 skipped, since the last one is open; 2 wrong input.")
@ID
@DATABASE
@JSON
def trigger(id: str, database: str | None, as_json: bool) -> None:
    """Starts it now, paused or not, beside its rule. Its overlap policy holds: while the last execution is open it may be queued or skipped."""
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        from flowdsl.postgres import scheduling as stored

        fired = await stored.trigger(store, id, by=_user())
        if as_json:
            emit(_fired(fired))
        elif fired.outcome == "started":
            click.echo(fired.execution)
        else:
            click.echo(f"{fired.outcome}: execution {fired.execution} is open")
        return 1 if fired.outcome == "skipped" else 0

    on_store(database, work)


@schedules.command(short_help="Start what a span of the past names.", epilog=EXITS)
@ID
@click.option("--from", "since", required=True, metavar="TIME", help="The first: 2026-01-31, 2026-01-31T12:00, or with an offset.")
@click.option("--to", "until", metavar="TIME", help="The last, included. Default: now.")
@DATABASE
@JSON
def backfill(id: str, since: str, until: str | None, database: str | None, as_json: bool) -> None:
    """Starts what the rule names in a span of the past and was not started, at most 1,000 of them, all at once.

    Times without an offset are in the schedule's own zone. The same span again starts nothing anew.
    """
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        from datetime import UTC, datetime

        from flowdsl.postgres import scheduling as stored

        [one] = await stored.listed(store, id)
        first, last = _time("--from", since, one.zone), datetime.max.replace(tzinfo=UTC) if until is None else _time("--to", until, one.zone)
        if last < first:
            raise Refusal(f"--to {until} is before --from {since}")
        fired = await stored.backfill(store, id, first, last, by=_user())
        if as_json:
            emit([_fired(one) for one in fired])
        else:
            for each in fired:
                click.echo(f"{_moment(one, each.instant)}  {'was started' if each.outcome == 'again' else each.outcome}  {each.execution or ''}")
            if not fired:
                click.echo("the rule names nothing there")
        return 0

    on_store(database, work)


def _time(option: str, text: str, zone: str) -> datetime:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Refusal(f"{option} {text!r} is no time: write 2026-01-31, 2026-01-31T12:00, or 2026-01-31T12:00+01:00") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=ZoneInfo(zone))


def _user() -> str:
    import getpass
    import os

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"uid {os.getuid()}"


COMMANDS = (schedules,)
