"""What a settings file and the environment say, looked at as a whole: each name and value that cannot be is one line, with who says it."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from attrs import Attribute, field, fields, frozen

from flowdsl.errors import DefinitionError, FlowError
from flowdsl.policy import duration

PREFIX = "FLOWDSL_"
OTHERS = {
    "FLOWDSL_DIRECT_URL",
    "FLOWDSL_ENCRYPTION_KEYS",
    "FLOWDSL_HINTS",
    "FLOWDSL_PGBOUNCER",
    "FLOWDSL_PG_BIN",
    "FLOWDSL_STATE_DIR",
    "FLOWDSL_UNSAFE",
}
"""Variables of ours that are no settings of the service."""


class BadSettings(FlowError):
    """A setting that cannot be used: where it is, what it is, and what was expected."""


@frozen
class Option:
    """A setting: the class that has it, and what that says of it."""

    section: type[Any]
    attribute: Attribute[Any]

    def check(self, name: str, raw: Any) -> None:
        """Raises `ValueError`, with the name, the value and what it may be."""
        try:
            value = self._form(raw)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
        if self.attribute.validator is not None:
            self.attribute.validator(object.__new__(self.section), self.attribute, value)

    def _form(self, raw: Any) -> Any:
        named = self.attribute.type if isinstance(self.attribute.type, str) else getattr(self.attribute.type, "__name__", "")
        form, convert = next((form, convert) for form, convert in FORMS.items() if form.__name__ == named)
        return convert(raw, form)


def options_of(of: type[Any], prefix: str = "") -> Iterator[tuple[str, Option]]:
    """The settings of a class and the classes in it, by their names with dots."""
    for one in fields(of):
        inner = type(one.default)
        if hasattr(inner, "__attrs_attrs__"):
            yield from options_of(inner, f"{prefix}{one.name}.")
        else:
            yield prefix + one.name, Option(of, one)


@frozen(slots=False)
class Given:
    """What is said, before it was made settings of."""

    options: Mapping[str, Option]
    files: Sequence[Path]
    told: Mapping[str, Any] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, settings: type[Any], file: Path | None, environment: Mapping[str, str]) -> Given:
        """Of that file, else of `./flowdsl.toml` if it is there. Raises `BadSettings` for a file that cannot be read."""
        options, found = dict(options_of(settings)), file if file is not None else Path("flowdsl.toml")
        if not found.exists():
            if file is not None:
                raise BadSettings(f"{file}: there is no such file")
            return cls(options, (), {}, environment)
        try:
            return cls(options, (found,), tomllib.loads(found.read_text(encoding="utf-8")), environment)
        except (OSError, ValueError) as error:  # bad TOML and bad UTF-8 are ValueErrors
            raise BadSettings(f"{found}: {error}") from None

    @cached_property
    def variables(self) -> dict[str, str]:
        """Each variable that sets something, and what."""
        return {variable(name): name for name in self.options}

    def source(self, name: str) -> str | None:
        """Who sets it; None when nobody does."""
        if variable(name) in self.environment:
            return f"{variable(name)} in the environment"
        return str(self.files[0]) if self._has(name) else None

    def wrong(self) -> Iterator[str]:
        """A line for each value that cannot be."""
        for name, option in self.options.items():
            if not self._has(name):
                continue
            try:
                option.check(name, self._raw(name))
            except ValueError as error:
                yield f"{self.source(name)}: {error}"

    def unknown(self) -> Iterator[str]:
        """A line for each name that nothing is set by: in the file, and in the environment if it looks like one of ours."""
        for name, value in self._leaves(self.told):
            inside = [option for option in self.options if option.startswith(f"{name}.")]
            if name in self.options:
                continue
            if not inside:
                yield f"{self.files[0]}: {name} is no setting{_perhaps(name, self.options)}"
            elif not isinstance(value, Mapping):
                yield f"{self.files[0]}: {name} is a section, and is {value!r}: write [{name}]"
        sections = {f"{PREFIX}{name.partition('.')[0].upper()}_" for name in self.options}
        for one in sorted(self.environment):
            if one.startswith(PREFIX) and one not in self.variables and one not in OTHERS:
                ours = any(one.startswith(section) for section in sections)
                near = _perhaps(one, self.variables, 0.6 if ours else 0.93)
                if ours or near:  # what is like none of them may be another program's
                    yield f"{one} in the environment is no setting{near}"

    def _has(self, name: str) -> bool:
        return self._raw(name) is not None  # TOML has no null

    def _raw(self, name: str) -> Any:
        """A variable counts before the file."""
        if variable(name) in self.environment:
            return self.environment[variable(name)]
        found: Any = self.told
        for part in name.split("."):
            found = cast("Mapping[str, Any]", found).get(part) if isinstance(found, Mapping) else None
        return found

    def _leaves(self, told: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in told.items():
            if isinstance(value, Mapping) and value and prefix + name not in self.options:
                yield from self._leaves(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
            else:
                yield prefix + name, cast("Any", value)


def variable(name: str) -> str:
    """The variable that sets it."""
    return PREFIX + name.upper().replace(".", "_")


def _perhaps(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), 1, cutoff)
    return f" (did you mean {near[0]}?)" if near else ""


# Numbers for numbers and text for text. The environment holds text only: there it may be read as a number.


def _bool(value: Any, _: type) -> bool:
    found = {"true": True, "false": False}.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise ValueError(f"must be true or false, and is {value!r}")
    return found


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


FORMS: Mapping[type[Any], Callable[[Any, type], Any]] = {bool: _bool, int: _int, float: _float, str: _str, timedelta: _span}

__all__ = ["FORMS", "PREFIX", "BadSettings", "Given", "Option", "options_of", "variable"]
