"""`flowdsl keys`: who may ask the service for what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from flowdsl.cli.edge import DATABASE, JSON, Refusal, aside, emit, on_store, only_json, shown

if TYPE_CHECKING:
    from flowdsl.postgres.keys import Key
    from flowdsl.postgres.store import Store

_BY = "flowdsl keys"


@click.group(short_help="Make, list and revoke keys for the service.")
def keys() -> None:
    """Keys for the service: each opens one tenant, as viewer, operator or admin. Only a digest of a key is kept."""


@keys.command("make", short_help="A new key; it is shown once.")
@click.argument("name")
@click.option("--tenant", default="default", show_default=True, metavar="NAME", help="Whose things it opens.")
@click.option("--role", type=click.Choice(["viewer", "operator", "admin"]), default="operator", show_default=True)
@click.option("--lasts", metavar="TIME", help="Until it opens nothing any more, like 90d; without it, for ever.")
@DATABASE
@JSON
def make_(name: str, tenant: str, role: Any, lasts: str | None, database: str | None, as_json: bool) -> None:
    """Makes a key for whoever NAME is, and prints it. To replace a key, make a new one, hand it out, then revoke the old one."""
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        from flowdsl.policy import duration
        from flowdsl.postgres.keys import make

        key, plain = await make(store, tenant, role, name, lasts=None if lasts is None else duration(lasts), by=_BY)
        if as_json:
            emit({**_facts(key), "plain": plain})
        else:
            aside(f"key {key.id} of tenant {shown(key.tenant)}, {key.role}; keep it now, it is shown this once")
            click.echo(plain)
        return 0

    on_store(database, work)


@keys.command("list", short_help="The keys, without their secrets.")
@click.option("--tenant", metavar="NAME", help="Of this tenant only.")
@DATABASE
@JSON
def list_(tenant: str | None, database: str | None, as_json: bool) -> None:
    """The keys, the newest first."""
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        from flowdsl.postgres.keys import listed

        found = await listed(store, tenant)
        if as_json:
            emit([_facts(key) for key in found])
        elif not found:
            click.echo("no keys: flowdsl keys make NAME makes one")
        else:
            _table(found)
        return 0

    on_store(database, work)


@keys.command(short_help="Let a key open nothing any more.")
@click.argument("id")
@DATABASE
@JSON
def revoke(id: str, database: str | None, as_json: bool) -> None:
    """Lets the key with this ID open nothing any more. A running service knows within seconds."""
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        from flowdsl.errors import NotFound
        from flowdsl.postgres.keys import listed, revoke

        try:
            key = await revoke(store, id, by=_BY)
        except NotFound:
            named = [key.id for key in await listed(store) if key.name == id and key.revoked is None]
            if not named:
                raise
            raise Refusal(f"{id!r} is a name, and several keys may have it: revoke {' or '.join(named)}") from None
        if as_json:
            emit(_facts(key))
        else:
            click.echo(f"key {key.id} of {shown(key.name)} is revoked")
        return 0

    on_store(database, work)


def _table(found: Any) -> None:
    from flowdsl.cli.screen import Column, table

    def time(at: Any) -> str:
        return "" if at is None else f"{at:%Y-%m-%d %H:%M}"

    table(
        Column("key", [key.id for key in found]),
        Column("name", [shown(key.name) for key in found], folds=True),
        Column("tenant", [shown(key.tenant) for key in found], folds=True),
        Column("role", [key.role for key in found]),
        Column("made", [time(key.made) for key in found], room=100),
        Column("used", [time(key.used) for key in found], room=120),
        Column("expires", [time(key.expires) for key in found]),
        Column("revoked", [time(key.revoked) for key in found]),
    )


def _facts(key: Key) -> dict[str, Any]:
    return {
        "key": key.id, "tenant": key.tenant, "role": key.role, "name": key.name, "made": key.made, "expires": key.expires,
        "revoked": key.revoked, "used": key.used,
    }  # fmt: skip


COMMANDS = (keys,)
