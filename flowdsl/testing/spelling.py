"""Values as the Python that makes them, with the imports that this needs."""

from __future__ import annotations

import sys
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import ModuleType
from typing import Any
from uuid import UUID

import attrs
from attrs import define, field
from returns.result import Failure, Success

from flowdsl.codec import Codec


class NoSpelling(Exception):
    """There is no literal for this value."""


@define
class Spelling:
    """Spells values, and remembers what has to be imported for them."""

    imports: dict[str, set[str]] = field(factory=dict[str, set[str]])
    """Names by their modules."""
    _names: dict[str, object] = field(factory=dict[str, object])

    def value(self, value: Any, codec: Codec[Any], form: str) -> str:
        """A literal if it makes the very same value; else what rebuilds it from JSON. `form`: the Python for the value's codec."""
        encoded = codec.encode(value)
        try:
            text = self._spelled(value)
            made = eval(text, dict(self._names))  # our own text: does it make what we mean?
            if codec.encode(made) == encoded:
                return text
        except Exception:  # whatever stands against a literal, JSON is left
            pass
        return f"{form}.decode({encoded!r})"

    def named(self, thing: object, hints: tuple[str, ...]) -> str:
        """The name under which a module holds this very object. Raises `NoSpelling`."""
        known = [sys.modules[name] for name in hints if name in sys.modules]
        for module in [*known, *(one for one in list(sys.modules.values()) if isinstance(one, ModuleType) and one not in known)]:
            if module.__name__.partition(".")[0] in ("flowdsl", "_pytest", "pytest"):
                continue
            for name, held in list(vars(module).items()):
                if held is thing and name.isidentifier():
                    return self.use(module.__name__, name, thing)
        raise NoSpelling(thing)

    def use(self, module: str, name: str, thing: object) -> str:
        """Imports a name; one that another module has taken is refused."""
        if self._names.get(name, thing) is not thing:
            raise NoSpelling(name)
        self._names[name] = thing
        self.imports.setdefault(module, set()).add(name)
        return name

    def lines(self) -> list[str]:
        return [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(self.imports.items())]

    def _class(self, kind: type) -> str:
        outer = kind.__qualname__.partition(".")[0]
        found = getattr(sys.modules.get(kind.__module__), outer, None)
        if found is None or "<locals>" in kind.__qualname__:
            raise NoSpelling(kind)
        self.use(kind.__module__, outer, found)
        return kind.__qualname__

    def _spelled(self, value: Any) -> str:
        match value:
            case Enum():
                return f"{self._class(type(value))}.{value.name}"
            case None | bool() | int() | float() | str() | bytes():
                return repr(value)
            case Success():
                self.use("flowdsl", "Success", Success)
                return f"Success({self._spelled(value.unwrap())})"
            case Failure():
                self.use("flowdsl", "Failure", Failure)
                return f"Failure({self._spelled(value.failure())})"
            case datetime() | date() | time():
                return f"{self._class(type(value))}.fromisoformat({value.isoformat()!r})"
            case timedelta():
                self.use("datetime", "timedelta", timedelta)
                return repr(value).removeprefix("datetime.")
            case Decimal() | UUID():
                return f"{self._class(type(value))}({str(value)!r})"
            case list():
                return f"[{', '.join(map(self._spelled, value))}]"
            case tuple():
                return f"({', '.join(map(self._spelled, value))}{',' if len(value) == 1 else ''})"
            case set() | frozenset():
                return f"{type(value).__name__}([{', '.join(sorted(map(self._spelled, value)))}])"
            case dict():
                return f"{{{', '.join(f'{self._spelled(k)}: {self._spelled(v)}' for k, v in value.items())}}}"
            case _ if attrs.has(type(value)):
                given = [f"{one.alias}={self._spelled(getattr(value, one.name))}" for one in attrs.fields(type(value)) if one.init]
                return f"{self._class(type(value))}({', '.join(given)})"
            case _:
                raise NoSpelling(value)


__all__ = ["NoSpelling", "Spelling"]
