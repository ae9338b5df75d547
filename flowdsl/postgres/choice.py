"""Which database: what was said, the environment, flowdsl.toml, or the embedded one. Says which won, and why."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from attrs import frozen

from flowdsl.errors import StoreError


@frozen
class Choice:
    """A database, and where its name came from. `embedded`: it is ours, and shared with other processes of this user."""

    dsn: str
    source: str
    why: str = ""
    setting: str = "FLOWDSL_DATABASE_URL"
    """What to correct should it be wrong."""
    embedded: bool = False


def named(said: str | None = None) -> Choice | None:
    """The database that somebody named; None when nobody did. Raises `StoreError` for a flowdsl.toml that cannot be read."""
    if said is not None:
        if not said.strip():
            raise StoreError("--database is empty", "Give it a URL, or leave it out")
        return Choice(said, "--database", "it was said, and comes before everything else", "--database")
    url = os.environ.get("FLOWDSL_DATABASE_URL")
    if url:
        return Choice(url, "the environment (FLOWDSL_DATABASE_URL)", "it is set, and there is no --database")
    url = _of_file(Path("flowdsl.toml"))
    if url:
        setting = "[database] url in flowdsl.toml"
        return Choice(url, f"flowdsl.toml of {Path.cwd()} ([database] url)", "neither --database nor FLOWDSL_DATABASE_URL names another", setting)
    for name in ("PGSERVICE", "PGHOST"):
        if os.environ.get(name):
            # asyncpg reads the PG… variables itself, all but this one
            dsn = f"postgresql://?service={quote(os.environ[name], safe='')}" if name == "PGSERVICE" else "postgresql://"
            why = "it is set, and neither --database, FLOWDSL_DATABASE_URL nor flowdsl.toml names another"
            return Choice(dsn, f"the environment ({name}={os.environ[name]} and its like)", why, "the PG… variables")
    return None


def _of_file(file: Path) -> str | None:
    """`[database] url`, if the file and the key are there."""
    if not file.is_file():
        return None
    try:
        section: Any = tomllib.loads(file.read_text(encoding="utf-8")).get("database", {})
    except (ValueError, OSError) as error:  # bad TOML and bad UTF-8 are ValueErrors
        raise StoreError(f"{file} cannot be read ({error})", 'Write [database] and below it url = "postgresql://…"') from error
    url: Any = cast("dict[str, Any]", section).get("url", "") if isinstance(section, dict) else section
    if not isinstance(section, dict) or not isinstance(url, str):
        raise StoreError(
            f"{file}: database{'.url' if isinstance(section, dict) else ''} is {url!r}", 'Write [database] and below it url = "postgresql://…"'
        )
    return url or None


@contextmanager
def choose(said: str | None = None) -> Generator[Choice]:
    """The database to use, for the length of a block; the embedded one is started if nobody named another. Raises `StoreError`."""
    found = named(said)
    if found is not None:
        yield found
        return
    from flowdsl.postgres.embedded import start

    with start() as server:
        server.watch()
        why = "nothing names another: no --database, no FLOWDSL_DATABASE_URL, no [database] url in a flowdsl.toml here, no PGHOST or PGSERVICE"
        yield Choice(server.dsn, f"embedded, data in {server.data}", why, "FLOWDSL_STATE_DIR", embedded=True)
