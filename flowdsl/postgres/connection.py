"""Connections to Postgres, also through PgBouncer. Its errors are translated here, once."""

from __future__ import annotations

import os
import re
import traceback
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from flowdsl.errors import StoreError

Connection = Any  # asyncpg ships no complete types

_OPENING = 10.0
"""Seconds that a connection may take to open, whoever opens it: a server that is silent is asked anew, not waited for."""
_NAME = "flowdsl"
_found: dict[str, bool] = {}
"""Of each URL: whether a pooler answers there. Looked at once a process."""
drivers: dict[str, Any] = {}
"""Of a URL: what opens connections to it instead of asyncpg. For tests: a store that is no server."""


async def connect(dsn: str, **settings: str) -> Connection:
    """One connection. Raises `StoreError`, with the remedy. Behind a pooler it has no settings of its own."""
    try:
        return await _driver(dsn).connect(**await _arguments(dsn, _NAME, settings), timeout=_OPENING)
    except _CANNOT as error:
        raise refused(dsn, error) from error


async def open_pool(dsn: str, *, size: int, name: str = _NAME, keeps_state: bool = False, **options: Any) -> Any:
    """A pool that opens its connections when they are needed. `keeps_state`: who uses one may leave settings behind, which are cleared then."""
    try:
        arguments = await _arguments(dsn, name, {})
        reset = None if keeps_state else _as_it_is
        return await _driver(dsn).create_pool(min_size=0, max_size=size, reset=reset, timeout=_OPENING, **arguments, **options)
    except _CANNOT as error:
        raise refused(dsn, error) from error


async def reached(dsn: str, pool: Any) -> None:
    """A pool has opened its first connection. Raises `StoreError`, with the remedy, and the pool is of no use then."""
    try:
        async with pool.acquire(timeout=_OPENING):
            return
    except BaseException as error:
        pool.terminate()
        if isinstance(error, _CANNOT):
            raise refused(dsn, error) from error
        raise


def _driver(dsn: str) -> Any:
    return drivers.get(dsn, asyncpg)


async def _as_it_is(_: Connection) -> None:
    """Nothing is left behind by statements of ours: to clear it would cost a round trip each time."""


async def pooled(dsn: str) -> bool:
    """Whether a pooler in transaction mode (PgBouncer and its like) is between us and Postgres.

    `?pgbouncer=true` or `false` in the URL, or FLOWDSL_PGBOUNCER, says so. Else it is found out: a pooler gives each of its clients a process id
    that is not the server process's.
    """
    said, plain = _split(dsn)
    if said is not None:
        return said
    if plain not in _found:
        try:
            connection = await _driver(dsn).connect(plain, timeout=_OPENING, statement_cache_size=0, server_settings={"application_name": _NAME})
        except _CANNOT as error:
            raise refused(dsn, error) from error
        try:
            _found[plain] = await connection.fetchval("select pg_backend_pid()") != connection.get_server_pid()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise refused(dsn, error) from error
        finally:
            connection.terminate()
    return _found[plain]


async def _arguments(dsn: str, name: str, settings: dict[str, str]) -> dict[str, Any]:
    if not dsn.startswith(("postgresql://", "postgres://")):
        raise ValueError("it does not begin with postgresql://")
    if await pooled(dsn):  # no named statements, and no settings: each transaction may have another server process
        return {"dsn": _split(dsn)[1], "statement_cache_size": 0, "server_settings": {"application_name": name}}
    return {"dsn": _split(dsn)[1], "server_settings": {"application_name": name, "jit": "off", **settings}}


def _split(dsn: str) -> tuple[bool | None, str]:
    """What the URL, else the environment, says about a pooler; and the URL without that."""
    parts = urlsplit(dsn)
    said = os.environ.get("FLOWDSL_PGBOUNCER") or None
    if "pgbouncer=" not in parts.query:
        return _truth(said), dsn
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    said = next((value for key, value in pairs if key == "pgbouncer"), said)
    query = urlencode([pair for pair in pairs if pair[0] != "pgbouncer"], safe="/")
    return _truth(said), urlunsplit(parts._replace(query=query)) if parts.netloc else f"{parts.scheme}://{parts.path}{'?' if query else ''}{query}"


def _truth(said: str | None) -> bool | None:
    if said is None:
        return None
    if said.lower() in ("true", "1", "yes", "on"):
        return True
    if said.lower() in ("false", "0", "no", "off"):
        return False
    raise StoreError(f"pgbouncer={said} is neither true nor false", "Write ?pgbouncer=true in the URL, or FLOWDSL_PGBOUNCER=true")


# Errors


_CANNOT = (TimeoutError, OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError)


def lost(error: BaseException) -> bool:
    """Whether the connection is gone, so that the outcome of what was under way is unknown."""
    return isinstance(error, (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)) or (
        _state(error)[:3] in ("57P", "533")
    )


def refuses(error: BaseException) -> bool:
    """Whether Postgres refuses a value, now and at each repeat."""
    return _state(error)[:2] in ("22", "23", "54")


def full(error: BaseException) -> bool:
    """Whether Postgres has no room: on its disk, in its memory, for more connections. Nothing was recorded, and nobody is at fault."""
    return _state(error)[:2] == "53" or (_state(error) in ("58030", "XX000") and "No space left" in str(error))


def _state(error: BaseException) -> str:
    return str(getattr(error, "sqlstate", None) or "") if isinstance(error, asyncpg.PostgresError) else ""


def trace(error: BaseException) -> str:
    """A bug's traceback for a log: files, lines and classes, of its causes too. What was raised may quote somebody's values, and is left out."""
    lines: list[str] = []
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        lines[:0] = ["Traceback (most recent call last):\n", *traceback.format_tb(one.__traceback__), f"{type(one).__qualname__}\n"]
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return "".join(lines)[-8192:]


def reason(error: BaseException) -> str:
    """Why something failed, for a log: in the error's words where they are about the server, else only what class of error it is."""
    if isinstance(error, asyncpg.PostgresError) and (refuses(error) or _state(error)[:1] in ("P", "")):
        return f"{type(error).__name__} {_state(error)}".rstrip()
    if isinstance(error, (StoreError, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        return str(error) or type(error).__name__
    return type(error).__name__


def shown_dsn(dsn: str) -> str:
    """A DSN without its passwords, however they are written."""
    return re.sub(r"([?&][a-z]*password=)[^&]*", r"\1…", re.sub(r"(://[^:/?#@]*):.*@", r"\1:…@", dsn))


def refused(dsn: str, error: BaseException) -> StoreError:
    """One line about a database that cannot be reached, and what to do."""
    where = shown_dsn(dsn)
    match error:
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            return StoreError(f"the database at {where} refused the user or password", "Check the user and password in FLOWDSL_DATABASE_URL")
        case asyncpg.InvalidCatalogNameError():
            return StoreError(f"there is no such database: {where}", "Create it (createdb NAME), or correct FLOWDSL_DATABASE_URL")
        case asyncpg.InsufficientPrivilegeError():
            return StoreError(f"not allowed at {where}: {error}", "Grant the right, or use the owner of the schema flowdsl")
        case ValueError() | asyncpg.InterfaceError() | asyncpg.ClientConfigurationError():
            return StoreError(f"{where!r} is no usable database URL ({error})", "Write postgresql://user:password@host:port/name")
        case _:
            text = str(error) or type(error).__name__
            return StoreError(f"the database at {where} cannot be reached ({text})", "Start it, or correct FLOWDSL_DATABASE_URL")
