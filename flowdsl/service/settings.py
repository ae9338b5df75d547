"""How the service is set: a TOML file, then the environment (`FLOWDSL_SERVER_PORT`), over defaults. A wrong value is one clear line.

Secrets are in neither file nor defaults: they come from the environment or files of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typed_settings
from attrs import Attribute, field, frozen
from typed_settings.converters import TSConverter
from typed_settings.exceptions import TsError

from flowdsl.postgres.connection import shown_dsn
from flowdsl.service.given import FORMS, PREFIX, BadSettings, Given


def _wrong(section: object, attribute: Attribute[Any], what: str) -> ValueError:
    return ValueError(f"{_SECTIONS[type(section).__name__]}.{attribute.name} {what}")


_SECTIONS = {
    "Server": "server", "Limits": "limits", "Temporal": "temporal", "Services": "services", "Workflows": "workflows",
    "RetryPolicy": "workflows.retry_policy",
}  # fmt: skip


def _within(low: float, high: float) -> Any:
    def check(section: Any, attribute: Attribute[Any], value: float) -> None:
        if not low <= value <= high:
            raise _wrong(section, attribute, f"must be {_plain(low)} to {_plain(high)}, and is {_plain(value)}")

    return check


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(number)


def _address(section: Any, attribute: Attribute[Any], value: str) -> None:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _wrong(section, attribute, f'must be an address like "http://localhost:8081", and is {value!r}')


def _some(section: Any, attribute: Attribute[Any], value: str) -> None:
    if not value.strip():
        raise _wrong(section, attribute, "must not be empty")


def _positive(section: Any, attribute: Attribute[Any], value: timedelta) -> None:
    if value <= timedelta():
        raise _wrong(section, attribute, "must be longer than no time")


def _one_of(*known: str) -> Any:
    def check(section: Any, attribute: Attribute[Any], value: str) -> None:
        if value not in known:
            raise _wrong(section, attribute, f"must be {', '.join(known[:-1])} or {known[-1]}, and is {value!r}")

    return check


@frozen
class Server:
    """The HTTP side. `timeout_seconds`: the longest that a request may take; the body limits are those of one request.

    `head_seconds`: how long a connection may take to send a request's headers, or be idle. `connections` and `streams`: how many may be open, in
    one process. `drain_seconds`: what requests under way get at the stop. `metrics`: who may read /metrics: whoever has a key, anyone, or nobody.
    `require_row_level_security`: answer nothing on a server that cannot keep tenants apart by itself.
    """

    host: str = field(default="127.0.0.1", validator=_some)
    port: int = field(default=8084, validator=_within(0, 65535))
    timeout_seconds: float = field(default=30.0, validator=_within(0.1, 3600))
    body_bytes: int = field(default=1 << 20, validator=_within(1, 1 << 30))
    body_depth: int = field(default=64, validator=_within(1, 500))
    body_seconds: float = field(default=10.0, validator=_within(0.1, 3600))
    page: int = field(default=100, validator=_within(1, 10_000))
    head_seconds: float = field(default=10.0, validator=_within(0.1, 3600))
    connections: int = field(default=2000, validator=_within(1, 1_000_000))
    streams: int = field(default=500, validator=_within(0, 1_000_000))
    drain_seconds: float = field(default=10.0, validator=_within(0, 3600))
    metrics: str = field(default="keys", validator=_one_of("keys", "open", "off"))
    traces: str = field(default="off", validator=_one_of("on", "off"))
    require_row_level_security: bool = False


@frozen
class Limits:
    """What one tenant may do in a minute, over all processes; 0: as much as it likes. `…_at_once`: after a rest; 0: a minute's worth."""

    starts: int = field(default=0, validator=_within(0, 10_000_000))
    starts_at_once: int = field(default=0, validator=_within(0, 10_000_000))
    signals: int = field(default=0, validator=_within(0, 10_000_000))
    signals_at_once: int = field(default=0, validator=_within(0, 10_000_000))


@frozen
class Database:
    """Where the journal is; empty: see `flowdsl doctor` for what is chosen then."""

    url: str = ""


@frozen
class Encryption:
    """The file with the keys that payloads are encrypted with; empty: they stay plain, unless FLOWDSL_ENCRYPTION_KEYS holds keys."""

    key_file: str = ""


@frozen
class Temporal:
    """For the interpreter on Temporal."""

    server_url: str = field(default="http://localhost:7233", validator=_address)
    namespace: str = field(default="default", validator=_some)
    task_queue: str = field(default="workflow-service-queue", validator=_some)
    worker_identity: str = field(default="workflow-service-worker", validator=_some)
    max_concurrent_activities: int = field(default=100, validator=_within(1, 100_000))
    max_concurrent_workflows: int = field(default=50, validator=_within(1, 100_000))


@frozen
class Services:
    """The services that workflows call."""

    auth_service: str = field(default="http://localhost:8081", validator=_address)
    user_service: str = field(default="http://localhost:8082", validator=_address)
    tenant_service: str = field(default="http://localhost:8085", validator=_address)
    file_service: str = field(default="http://localhost:8083", validator=_address)
    api_gateway: str = field(default="http://localhost:8080", validator=_address)


@frozen
class RetryPolicy:
    """What activities of the platform's workflows do when they fail."""

    initial_interval: timedelta = field(default=timedelta(seconds=1), validator=_positive)
    backoff_coefficient: float = field(default=2.0, validator=_within(1, 100))
    maximum_interval: timedelta = field(default=timedelta(seconds=60), validator=_positive)
    maximum_attempts: int = field(default=3, validator=_within(1, 1_000_000))


@frozen
class Workflows:
    default_timeout: timedelta = field(default=timedelta(seconds=300), validator=_positive)
    batch_size: int = field(default=100, validator=_within(1, 100_000))
    retry_policy: RetryPolicy = RetryPolicy()


@frozen
class Settings:
    """All of it. `Settings()` are the defaults."""

    server: Server = Server()
    limits: Limits = Limits()
    database: Database = Database()
    encryption: Encryption = Encryption()
    temporal: Temporal = Temporal()
    services: Services = Services()
    workflows: Workflows = Workflows()


def load(file: Path | None = None, *, environment: bool = True) -> Settings:
    """The settings of a file and the environment; without a file, of `./flowdsl.toml` if it is there. Raises `BadSettings`."""
    given = Given.of(Settings, file, os.environ if environment else {})
    problems = [*given.unknown(), *given.wrong()]
    if problems:
        raise BadSettings("; ".join(problems))
    loaders: list[Any] = [typed_settings.FileLoader({"*": typed_settings.TomlFormat(section=None)}, [f"!{one}" for one in given.files])]
    if environment:
        loaders.append(typed_settings.EnvLoader(PREFIX))
    try:
        return typed_settings.load_settings(Settings, loaders, converter=_Strict())
    except TsError as error:
        raise BadSettings(str(error)) from None


def shown(settings: Settings, file: Path | None = None, *, said: Mapping[str, str] | None = None, environment: bool = True) -> str:
    """The settings in force as a TOML file that gives the same, each with where it is from. No password is in it.

    `said`: those that an option of the command line names, with that option.
    """
    given, lines, section = Given.of(Settings, file, os.environ if environment else {}), list[str](), ""
    for name in given.options:
        above, _, own = name.rpartition(".")
        if above != section:
            lines += ["", f"[{above}]"]
            section = above
        value = attrgetter(name)(settings)
        source = (said or {}).get(name) or given.source(name) or "default"
        lines.append(f"{own} = {_spelled(shown_dsn(value) if name == 'database.url' else value)}  # {source}")
    return "\n".join(lines[1:])


def _spelled(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case timedelta():
            return f'"{value.total_seconds():g}s"'
        case int() | float():
            return repr(value)
        case _:
            return json.dumps(str(value), ensure_ascii=False)


class _Strict(TSConverter):
    """Takes numbers for numbers and text for text. The environment holds text only: there it may be read as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar_converters = dict(FORMS)


__all__ = [
    "BadSettings",
    "Database",
    "Encryption",
    "Limits",
    "RetryPolicy",
    "Server",
    "Services",
    "Settings",
    "Temporal",
    "Workflows",
    "load",
    "shown",
]
