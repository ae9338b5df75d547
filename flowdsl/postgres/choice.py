"""Which database: what was said, the environment, flowdsl.toml, or the embedded one. Says which won, and why."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from flowdsl.errors import StoreError


@frozen
class Choice:
    """A database, and where its name came from. `embedded`: it is ours, and shared with other processes of this user."""

    dsn: str
    source: str
    embedded: bool = False


def named(said: str | None = None) -> Choice | None:
    """The database that somebody named; None when nobody did. Raises `StoreError` for a flowdsl.toml that cannot be read."""
    if said:
        return Choice(said, "--database")
    for name in ("FLOWDSL_DATABASE_URL", "DATABASE_URL"):
        if os.environ.get(name):
            return Choice(os.environ[name], f"the environment ({name})")
    file = Path("flowdsl.toml")
    if file.is_file():
        try:
            url = tomllib.loads(file.read_text(encoding="utf-8")).get("database", {}).get("url")
        except (tomllib.TOMLDecodeError, OSError, AttributeError) as error:
            raise StoreError(f"flowdsl.toml cannot be read ({error})", 'Write [database] and below it url = "postgresql://…"') from error
        if url:
            return Choice(str(url), "flowdsl.toml ([database] url)")
    for name in ("PGHOST", "PGSERVICE"):
        if os.environ.get(name):
            return Choice("postgresql://", f"the environment ({name})")
    return None


@contextmanager
def choose(said: str | None = None) -> Generator[Choice]:
    """The database to use, for the length of a block; the embedded one is started if nobody named another. Raises `StoreError`."""
    found = named(said)
    if found is not None:
        yield found
        return
    from flowdsl.postgres.embedded import start

    with start() as server:
        yield Choice(server.dsn, f"embedded, data in {server.data}", embedded=True)
