"""JSON Schema of the types that our codec writes and reads: what a schema allows is what the codec takes, field for field and tag for tag."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from types import NoneType, UnionType
from typing import Any, Literal, Never, NoReturn, Union, get_args, get_origin
from uuid import UUID

from returns.result import Failure, Success

from flowdsl.codec import codec
from flowdsl.codec.build import hooked
from flowdsl.codec.forms import field_types, opened, runtime_class, shown
from flowdsl.codec.records import declared, is_record
from flowdsl.codec.unions import RAW

Schema = dict[str, Any]

_SCALARS: dict[Any, Schema] = {
    NoneType: {"type": "null"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bytes: {"type": "string", "contentEncoding": "base64"},
    datetime: {"type": "string", "format": "date-time"},
    date: {"type": "string", "format": "date"},
    time: {"type": "string", "description": "A time of day: 09:30:00"},
    timedelta: {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3, "description": "[days, seconds, microseconds]"},
    Decimal: {"type": "string", "description": "A decimal number: 12.50"},
    UUID: {"type": "string", "format": "uuid"},
}


class Schemas:
    """Collects the records that schemas refer to, each under a name of its own."""

    def __init__(self, where: str = "#/components/schemas/") -> None:
        self._where = where
        self.components: dict[str, Schema] = {}
        self._names: dict[Any, str] = {}

    def of(self, form: Any) -> Schema:
        """The schema of a type, as the codec reads and writes it. Raises `NotJournalable` for one that it cannot hold."""
        codec(form)
        return self._of(form)

    def _of(self, form: Any) -> Schema:
        if hooked(form):
            return {"description": f"{shown(form)}, as its own hooks write it"}
        inner = opened(form)
        if inner is not form:
            return self._of(inner)
        origin, arguments = get_origin(form), get_args(form)
        if origin in (Union, UnionType, Literal):
            return self._union(form)
        if form in (Any, object):
            return {}
        if form in (Never, NoReturn):
            return {"not": {}}
        return self._of_class(form, runtime_class(form), arguments)

    def _of_class(self, form: Any, cls: Any, arguments: Sequence[Any]) -> Schema:
        if cls in _SCALARS:
            return dict(_SCALARS[cls])
        if cls in (list, set, frozenset):
            return {"type": "array", "items": self._of(arguments[0] if arguments else object), **({} if cls is list else {"uniqueItems": True})}
        if cls is dict:
            return self._mapping(*(arguments or (str, object)))
        if cls is tuple:
            return self._tuple(form, arguments)
        if isinstance(cls, type) and issubclass(cls, Enum):
            return {"type": "integer"} if issubclass(cls, Flag) else {"type": "string", "enum": list(cls.__members__)}
        if is_record(cls):
            return self._reference(form)
        return {}

    def _mapping(self, key: Any, item: Any) -> Schema:
        if runtime_class(key) is str:
            return {"type": "object", "additionalProperties": self._of(item)}
        pair = {"type": "array", "prefixItems": [self._of(key), self._of(item)], "items": False, "minItems": 2, "maxItems": 2}
        return {"type": "array", "items": pair}

    def _tuple(self, form: Any, arguments: Sequence[Any]) -> Schema:
        if form is tuple or arguments[1:] == (...,):
            return {"type": "array", "items": self._of(arguments[0] if arguments else object)}
        count = len(arguments)
        return {"type": "array", "prefixItems": [self._of(one) for one in arguments], "items": False, "minItems": count, "maxItems": count}

    # Records

    def _reference(self, form: Any) -> Schema:
        name = self._names.get(form)
        if name is None:
            name = self._names[form] = self._free(shown(form))
            self.components[name] = {}
            self.components[name] = self._record(form)
        return {"$ref": self._where + name}

    def _free(self, wished: str) -> str:
        name = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in wished).strip("_")
        number = 1
        while (free := name if number == 1 else f"{name}_{number}") in self.components:
            number += 1
        return free

    def _record(self, form: Any, tag: str | None = None) -> Schema:
        cls: Any = get_origin(form) or form
        arguments = get_args(form)
        types = {"_inner_value": arguments[0] if arguments else object} if cls in (Success, Failure) else field_types(form)
        fields = declared(cls)
        properties = {each.key: self._of(types[each.name]) for each in fields}
        required = [each.key for each in fields if each.required]
        if tag is not None:
            properties, required = {"$": {"const": tag}, **properties}, ["$", *required]
        about = (cls.__doc__ or "").partition("\n")[0].strip()
        written = {"description": about} if about and not about.startswith("Method generated") else {}
        return {"type": "object", **written, "properties": properties, "required": required, "additionalProperties": False}

    # Unions

    def _union(self, form: Any) -> Schema:
        forms, literals = _members(form)
        others = [one for one in forms if one is not NoneType]
        if any(one in (Any, object) for one in forms):
            return {}
        if len(others) + len(literals) == 1:
            found = [self._of(others[0]) if others else _literal(*next(iter(literals.items())))]
        else:
            found = [self._member(one) for one in others] + [_literal(cls, values) for cls, values in literals.items() if cls is not NoneType]
        if NoneType in forms or NoneType in literals:
            found.append({"type": "null"})
        return found[0] if len(found) == 1 else {"anyOf": found}

    def _member(self, form: Any) -> Schema:
        """Of a union of several: None, bool, int, float and str as they are, others with their tag."""
        cls: Any = runtime_class(form)
        custom = hooked(form) is not None
        if cls in RAW and not custom:
            return self._of(form)
        tag = cls.__name__ if cls is not None else shown(form)
        if is_record(cls) and not custom:
            return self._record(form, tag)
        properties = {"$": {"const": tag}, "v": self._of(form)}
        return {"type": "object", "properties": properties, "required": ["$", "v"], "additionalProperties": False}


def _members(form: Any) -> tuple[list[Any], dict[type, list[Any]]]:
    """A union's members, unions within it dissolved; its literals by class, but for those whose class is a member."""
    forms, literals = list[Any](), dict[type, list[Any]]()
    waiting, seen = [form], list[Any]()
    while waiting:
        each = waiting.pop(0)
        inner = each if hooked(each) else opened(each)
        if inner is not each:
            if each not in seen:
                waiting.insert(0, inner)
            seen.append(each)
        elif get_origin(each) in (Union, UnionType):
            waiting[:0] = get_args(each)
        elif get_origin(each) is Literal:
            for value in get_args(each):
                literals.setdefault(type(value), []).append(value)
        elif each not in (Never, NoReturn) and each not in forms:
            forms.append(each)
    return forms, {cls: values for cls, values in literals.items() if cls not in forms}


def _literal(cls: type, values: Sequence[Any]) -> Schema:
    if issubclass(cls, Enum):
        return {"enum": [value.name for value in values]}
    return {"enum": list(values)}


__all__ = ["Schema", "Schemas"]
