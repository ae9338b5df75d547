"""`flowdsl encryption`: keys for payloads, what is encrypted with which, and writing it all anew."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from flowdsl.cli.edge import DATABASE, JSON, Refusal, aside, emit, on_store, only_json

if TYPE_CHECKING:
    from flowdsl.postgres.rotation import Needed
    from flowdsl.postgres.store import Store


@click.group(short_help="Keys that encrypt what is recorded, and their rotation.")
def encryption() -> None:
    """Encryption of payloads. The keys come from FLOWDSL_ENCRYPTION_KEYS, or the file that FLOWDSL_ENCRYPTION_KEY_FILE names.

    \b
    The first key writes, all of them read. To change it, in this order:
    1. add the new key behind the old one, in every process
    2. move it to the front, in every process
    3. flowdsl encryption rotate
    4. take the old one away, once `flowdsl encryption status` no longer counts anything under it
    """


@encryption.command("new-key", short_help="Print a new key.")
@click.option("--id", "id", metavar="NAME", help="Its name, which stands in every row. Default: the date and a few letters.")
def new_key(id: str | None) -> None:
    """Prints a new key as it stands in the key file: NAME=BASE64. Nothing is stored: who loses it has lost what it encrypts."""
    import secrets  # with it comes OpenSSL

    name = id or f"{datetime.now(UTC):%Y-%m-%d}-{secrets.token_hex(2)}"
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,32}", name):
        raise Refusal("a key's name has 1 to 32 letters, digits, '.', '_' or '-'")
    click.echo(f"{name}={base64.b64encode(secrets.token_bytes(32)).decode()}")


@encryption.command(short_help="Which keys the store needs.", epilog="Exit codes: 0 all are here; 1 one is missing; 2 no database, or a bad key.")
@DATABASE
@JSON
def status(database: str | None, as_json: bool) -> None:
    """Counts what is encrypted with each key, and says which key is missing here. Reads every row."""
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        from flowdsl.postgres.rotation import needed

        found = await needed(store)
        here = store.encryption.ids
        missing = sorted({key for one in found for key in one.keys if key is not None} - set(here))
        if as_json:
            emit({"keys": list(here), "missing": missing, "payloads": {one.where: {key or "": n for key, n in one.keys.items()} for one in found}})
        else:
            _show(found, here, missing)
        return 1 if missing else 0

    on_store(database, work)


def _show(found: Sequence[Needed], here: Sequence[str], missing: Sequence[str]) -> None:
    from flowdsl.cli.screen import Column, table

    click.echo(f"keys here: {', '.join(here)} ({here[0]} writes)" if here else "no keys here: what is written is plain")
    rows = [(one.where, key, n) for one in found for key, n in one.keys.items()]
    if rows:
        table(
            Column("payloads", [where for where, _, _ in rows]),
            Column("encrypted with", [key or "nothing" for _, key, _ in rows]),
            Column("count", [f"{n:,}" for _, _, n in rows], right=True),
        )
    for key in missing:
        click.secho(f"✗ the key {key!r} is not here, and what needs it waits", fg="red", err=True)
    old = {key for one in found if one.where != "audit.facts" for key in one.keys} - {here[0] if here else None}
    if here and old:
        aside("`flowdsl encryption rotate` writes the rest with the first key")


@encryption.command(
    "rotate", short_help="Write everything anew with the first key.", epilog="Exit codes: 0 done; 2 a key is missing, or no database."
)
@DATABASE
@JSON
def rotate_(database: str | None, as_json: bool) -> None:
    """Writes everything anew that the first key has not written, also what is plain, while workers run; the audit stays as it is, for good.

    Cut short, it is begun again, and goes on. What a process with older settings writes meanwhile is found by the next rotation.
    """
    if as_json:
        only_json()

    async def work(store: Store) -> int:
        from flowdsl.postgres.rotation import rotate

        counts: dict[str, int] = {}
        async for step in rotate(store):
            if step.rows and not as_json and step.rows != counts.get(step.where, 0):
                aside(f"{step.where}: {step.rows:,}")
            counts[step.where] = step.rows
        if as_json:
            emit({"key": store.encryption.current, "written": counts})
        else:
            click.echo(f"{sum(counts.values()):,} payloads written with {store.encryption.current}")
        return 0

    on_store(database, work)


COMMANDS = (encryption,)
