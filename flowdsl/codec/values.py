"""Values without parts: None, bool, int, float, str, bytes, dates and times, Decimal, UUID, enums, literals."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from types import NoneType
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from flowdsl.codec.shape import Mismatch, Shape, came, did_you_mean, not_exactly, refusing, seen, short

T = TypeVar("T")
Clock = TypeVar("Clock", datetime, time)

_SUFFIX = re.compile(r"(?:\[([^\[\]=]+)\]|\[name=([^\[\]]+)\])?(\[fold=1\])?", re.DOTALL)


def _raw(cls: type, name: str) -> Shape:
    """Plain already, if it is of exactly this class."""

    def plain(value: Any) -> Any:
        if type(value) is cls:
            return value
        raise Mismatch(name, seen(value))

    def structure(value: Any) -> Any:
        if type(value) is cls:
            return value
        raise Mismatch(name, came(value))

    return Shape(name, plain, structure, cls=cls, exact=cls)


def _text(cls: type[T], write: Callable[[T], str], read: Callable[[str], T], example: str) -> Shape:
    """Written as text."""

    def plain(value: Any) -> str:
        if type(value) is cls:
            return write(value)
        raise not_exactly(cls.__name__, cls, value)

    def structure(text: Any) -> T:
        if type(text) is str:
            try:
                return read(text)
            except (ValueError, ArithmeticError, LookupError, OSError):  # the last two from names of zones
                pass
        raise Mismatch(f"{cls.__name__}, as {example}", came(text))

    return Shape(cls.__name__, plain, structure, cls=cls)


def _decimal(text: str) -> Decimal:
    if not text.isascii() or "_" in text or text != text.strip():  # Decimal() takes these too
        raise ValueError(text)
    return Decimal(text)


def _uuid(text: str) -> UUID:
    found = UUID(text)
    if str(found) != text.lower():  # UUID() also takes braces, a prefix, and hyphens anywhere
        raise ValueError(text)
    return found


def _with_zone(value: datetime | time) -> str:
    """ISO 8601, then in brackets what it cannot say: a zone's key, a fixed offset's own name, the second pass of a repeated hour."""
    zone = value.tzinfo
    fold = "[fold=1]" if value.fold else ""
    if zone is None or zone is UTC:
        return value.isoformat() + fold
    if type(zone) is ZoneInfo and zone.key:
        return f"{value.replace(tzinfo=None).isoformat()}[{zone.key}]{fold}"
    name, offset = (zone.tzname(None), zone.utcoffset(None)) if type(zone) is timezone else ("", timedelta())
    if not name or "[" in name or "]" in name or offset.microseconds:  # fromisoformat takes +00:00:00.000001 for UTC
        raise Mismatch("a zone of zoneinfo or a fixed offset in seconds", repr(zone), "convert it with astimezone(ZoneInfo(...))")
    own = name != timezone(offset).tzname(None)
    return value.isoformat() + (f"[name={name}]" if own else "") + fold


def _read_zone(read: Callable[[str], Clock], text: str) -> Clock:
    start = text.find("[")
    if start < 0:
        return read(text)
    suffix, value = _SUFFIX.fullmatch(text, start), read(text[:start])
    if suffix is None:
        raise ValueError(text)
    key, name, fold = suffix.groups()
    zone = value.tzinfo
    offset = zone.utcoffset(None) if zone else None
    if (key and zone) or (name and offset is None):
        raise ValueError(text)
    if key:
        zone = ZoneInfo(key)
    elif name and offset is not None:
        zone = timezone(offset, name)
    return value.replace(tzinfo=zone, fold=1 if fold else 0)


def _span(plain: Any) -> timedelta:
    if type(plain) is list and len(plain) == 3 and all(type(part) is int for part in plain):
        try:
            return timedelta(days=plain[0], seconds=plain[1], microseconds=plain[2])
        except OverflowError:
            pass
    raise Mismatch("timedelta, as [days, seconds, microseconds]", came(plain))


def _of_span(value: Any) -> list[int]:
    if type(value) is timedelta:
        return [value.days, value.seconds, value.microseconds]
    raise not_exactly("timedelta", timedelta, value)


SCALARS: dict[Any, Shape] = {
    NoneType: _raw(NoneType, "None"),
    bool: _raw(bool, "bool"),
    int: _raw(int, "int"),
    float: _raw(float, "float"),
    str: _raw(str, "str"),
    bytes: _text(bytes, lambda value: b64encode(value).decode(), lambda text: b64decode(text, validate=True), "base64"),
    datetime: _text(
        datetime, _with_zone, lambda text: _read_zone(datetime.fromisoformat, text), "2026-01-31T09:30:00[Europe/Berlin] or …T09:30:00+00:00"
    ),
    date: _text(date, date.isoformat, date.fromisoformat, "2026-01-31"),
    time: _text(time, _with_zone, lambda text: _read_zone(time.fromisoformat, text), "09:30:00"),
    timedelta: Shape("timedelta", _of_span, _span, cls=timedelta),
    Decimal: _text(Decimal, str, _decimal, '"12.50"'),
    UUID: _text(UUID, str, _uuid, "36 characters"),
}
NEVER = refusing("nothing: the type is Never", "a value")


def enum(cls: type[Enum]) -> Shape:
    """By the member's name, which outlives a change of its value; a Flag, which combines members, by its number."""
    members = cls.__members__
    if issubclass(cls, Flag):
        return _flag(cls)

    def plain(value: Any) -> str:
        if type(value) is cls:
            return str(value._name_)
        raise Mismatch(cls.__name__, seen(value))

    def structure(name: Any) -> Enum:
        if type(name) is str and name in members:
            return members[name]
        remedy = did_you_mean(name, members) if isinstance(name, str) else ""
        raise Mismatch(f"{cls.__name__}: {', '.join(list(members)[:20])}", came(name), remedy)

    return Shape(cls.__name__, plain, structure)


def _flag(cls: type[Flag]) -> Shape:
    def plain(value: Any) -> Any:
        if type(value) is cls:
            return value.value
        raise Mismatch(cls.__name__, seen(value))

    def structure(number: Any) -> Flag:
        if type(number) is int:
            try:
                found = cls(number)
            except ValueError:
                pass
            else:
                if type(found) is cls and found.value == number:
                    return found
        raise Mismatch(f"the number of a {cls.__name__}", came(number))

    return Shape(cls.__name__, plain, structure)


def limited(shape: Shape, values: Sequence[Any]) -> Shape:
    """The members of a `Literal` that are of one class."""
    allowed, cls = frozenset(values), shape.cls
    name = " or ".join(map(short, values))

    def plain(value: Any) -> Any:
        if type(value) is cls and value in allowed:
            return shape.plain(value)
        raise Mismatch(name, short(value) if type(value) is str else seen(value))

    def structure(value: Any) -> Any:
        read = shape.structure(value)
        if read not in allowed:
            raise Mismatch(name, came(value), did_you_mean(value, map(str, values)) if isinstance(value, str) else "")
        return read

    return Shape(name, plain, structure, cls=cls, deep=False)
