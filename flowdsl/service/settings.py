"""How the service is set: a TOML file, then the environment (`FLOWDSL_SERVER_PORT`), over defaults. A wrong value is one clear line.

Secrets are in neither file nor defaults: they come from the environment or files of their own.
"""

from __future__ import annotations

import ast
import math
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typed_settings
from attrs import Attribute, field, fields, frozen
from typed_settings.converters import TSConverter
from typed_settings.exceptions import ConfigFileLoadError, InvalidOptionsError, InvalidSettingsError, TsError

from flowdsl.errors import DefinitionError, FlowError
from flowdsl.policy import duration


class BadSettings(FlowError):
    """A setting that cannot be used: where it is, what it is, and what was expected."""


def _wrong(section: object, attribute: Attribute[Any], what: str) -> ValueError:
    return ValueError(f"{_SECTIONS[type(section).__name__]}.{attribute.name} {what}")


_SECTIONS = {"Server": "server", "Temporal": "temporal", "Services": "services", "Workflows": "workflows", "RetryPolicy": "workflows.retry_policy"}


def _within(low: float, high: float) -> Any:
    def check(section: Any, attribute: Attribute[Any], value: float) -> None:
        if not low <= value <= high:
            raise _wrong(section, attribute, f"must be {low:g} to {high:g}, and is {value:g}")

    return check


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


@frozen
class Server:
    """The HTTP side. `timeout_seconds`: the longest that a request may take; the body limits are those of one request."""

    host: str = field(default="127.0.0.1", validator=_some)
    port: int = field(default=8084, validator=_within(0, 65535))
    timeout_seconds: float = field(default=30.0, validator=_within(0.1, 3600))
    body_bytes: int = field(default=1 << 20, validator=_within(1, 1 << 30))
    body_depth: int = field(default=64, validator=_within(1, 500))
    body_seconds: float = field(default=10.0, validator=_within(0.1, 3600))
    page: int = field(default=100, validator=_within(1, 10_000))


@frozen
class Database:
    """Where the journal is; empty: see `flowdsl doctor` for what is chosen then."""

    url: str = ""


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
    database: Database = Database()
    temporal: Temporal = Temporal()
    services: Services = Services()
    workflows: Workflows = Workflows()


def load(file: Path | None = None, *, environment: bool = True) -> Settings:
    """The settings of a file and the environment; without a file, of `./flowdsl.toml` if it is there. Raises `BadSettings`."""
    files = [file] if file is not None else [path] if (path := Path("flowdsl.toml")).exists() else []
    if file is not None and not file.exists():
        raise BadSettings(f"{file}: there is no such file")
    loaders: list[Any] = [typed_settings.FileLoader({"*": typed_settings.TomlFormat(section=None)}, [f"!{one}" for one in files])]
    if environment:
        loaders.append(typed_settings.EnvLoader("FLOWDSL_"))
    try:
        return typed_settings.load_settings(Settings, loaders, converter=_Strict())
    except ConfigFileLoadError as error:
        raise BadSettings(f"{files[0]}: {error}") from None
    except InvalidOptionsError as error:
        raise BadSettings(f"{files[0]}: {_unknown(str(error))}") from None
    except (InvalidSettingsError, TsError) as error:
        raise BadSettings("; ".join(_lines(error))) from None


def _unknown(told: str) -> str:
    names = told.partition(": ")[2].split(", ")
    known = sorted(_names(Settings))
    said = [f"{name} is no setting" + ("" if not (near := _near(name, known)) else f" (did you mean {near}?)") for name in names]
    return "; ".join(said)


def _near(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, known, 1)), "")


def _names(of: type[Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for one in fields(of):
        inner = one.default
        found += _names(type(inner), f"{prefix}{one.name}.") if hasattr(type(inner), "__attrs_attrs__") else [prefix + one.name]
    return found


_TOLD = re.compile(
    r"Could not convert value .* for option '(?P<option>[^']+)' from loader (?P<loader>\w+)(?:\[(?P<file>.*)\])?: ValueError\((?P<why>.*)\)$", re.S
)
_CHECKED = re.compile(r"Could not convert loaded settings: ValueError\((?P<why>.*)\)$", re.S)


def _lines(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [line for one in error.exceptions for line in _lines(one)]
    if (told := _TOLD.search(str(error))) is not None:
        where = told["file"] or f"FLOWDSL_{told['option'].upper().replace('.', '_')} in the environment"
        return [f"{where}: {told['option']} {ast.literal_eval(told['why'])}"]
    checked = _CHECKED.search(str(error))
    return [str(ast.literal_eval(checked["why"])) if checked is not None else str(error)]


class _Strict(TSConverter):
    """Takes numbers for numbers and text for text. The environment holds text only: there it may be read as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar_converters = {int: _int, float: _float, str: _str, timedelta: _span}


def _int(value: Any, _: type) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number, and is {value!r}")
    return value


def _float(value: Any, _: type) -> float:
    try:
        found = float(value) if isinstance(value, str) or (isinstance(value, (int, float)) and not isinstance(value, bool)) else math.nan
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"must be a number, and is {value!r}")
    return found


def _str(value: Any, _: type) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text in quotes, and is {value!r}")
    return value


def _span(value: Any, _: type) -> timedelta:
    if isinstance(value, timedelta):
        return value
    try:
        return duration(value)
    except DefinitionError:
        raise ValueError(f'must be a time like "300s", and is {value!r}') from None


__all__ = ["BadSettings", "Database", "RetryPolicy", "Server", "Services", "Settings", "Temporal", "Workflows", "load"]
