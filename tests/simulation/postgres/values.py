"""Values as Postgres has them: the types that our SQL uses, casts between them, and its errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any
from uuid import UUID as PlainUUID

import asyncpg
from asyncpg.pgproto.pgproto import UUID

INFINITY = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
MINUS_INFINITY = datetime(1, 1, 1, tzinfo=UTC)


def fail(state: str, message: str, **more: str) -> asyncpg.PostgresError:
    """The error that a server raises; `more`: detail, schema, table, constraint."""
    letters = {"detail": "D", "hint": "H", "schema": "s", "table": "t", "column": "c", "constraint": "n"}
    fields = {"S": "ERROR", "V": "ERROR", "C": state, "M": message} | {letters[name]: text for name, text in more.items()}
    return asyncpg.PostgresError.new(fields)  # type: ignore[attr-defined]


class Unsupported(Exception):
    """SQL that this model does not know."""


class Composite:
    """A row as a value: a record variable, old and new of a trigger."""

    __slots__ = ("names", "values")

    def __init__(self, names: list[str], values: list[Any]) -> None:
        self.names, self.values = names, values

    def get(self, name: str) -> Any:
        try:
            return self.values[self.names.index(name)]
        except ValueError:
            if not self.names:  # not assigned yet, or no row was found
                return None
            raise fail("42703", f'record has no field "{name}"') from None

    def put(self, name: str, value: Any) -> None:
        self.values[self.names.index(name)] = value

    def copy(self) -> Composite:
        return Composite(list(self.names), list(self.values))


class Span(tuple[int | None, int | None]):
    """An int4range, normalized: [low, high)."""

    __slots__ = ()


class Spans(tuple[Span, ...]):
    """An int4multirange."""

    __slots__ = ()


def of_array(type: str | None) -> str | None:
    return type[:-2] if type is not None and type.endswith("[]") else None


def coerce(value: Any, type: str | None) -> Any:
    """The value as one of that type; a text is read as a literal."""
    if value is None or type is None:
        return value
    caster = _CASTS.get(type)
    if caster is None:
        if not type.endswith("[]"):
            raise Unsupported(f"the type {type}")
        inner = _CASTS.get(type[:-2])
        if inner is None:
            raise Unsupported(f"the type {type}")
        return _array(value, type, inner)
    return caster(value)


def caster(type: str | None) -> Callable[[Any], Any] | None:
    """What reads a value as of that type, if it is anything but the value itself."""
    if type is None or type == "record":
        return None
    found = _CASTS.get(type)
    if found is not None:
        return lambda value: None if value is None else found(value)
    return lambda value: coerce(value, type)


def _array(value: Any, type: str, inner: Callable[[Any], Any]) -> list[Any]:
    if isinstance(value, str):
        if not (value.startswith("{") and value.endswith("}")):
            raise fail("22P02", f'malformed array literal: "{value}"')
        value = _split(value[1:-1])
    elif not isinstance(value, (list, tuple)):
        raise fail("42804", f"{value!r} is no array")
    return [None if one is None else inner(one) for one in value]


def _split(text: str) -> list[str | None]:
    parts = [one for one in re.findall(r'"((?:[^"\\]|\\.)*)"|([^,]+)', text)]
    return [re.sub(r"\\(.)", r"\1", quoted) if quoted or not plain else (None if plain.upper() == "NULL" else plain) for quoted, plain in parts]


def _uuid(value: Any) -> UUID:
    if type(value) is UUID:
        return value
    if isinstance(value, PlainUUID):
        return UUID(value.bytes)
    try:
        return UUID(value)
    except (ValueError, TypeError) as error:
        raise fail("22P02", f'invalid input syntax for type uuid: "{value}"') from error


def _int(bits: int, name: str) -> Callable[[Any], int]:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1

    def cast(value: Any) -> int:
        if type(value) is not int:
            try:
                if isinstance(value, Decimal):
                    value = int(value.to_integral_value(ROUND_HALF_UP))
                elif isinstance(value, float):
                    value = int(Decimal(value).to_integral_value(ROUND_HALF_EVEN))
                else:
                    value = int(value)
            except (ValueError, TypeError) as error:
                raise fail("22P02", f'invalid input syntax for type {name}: "{value}"') from error
        if not low <= value <= high:
            raise fail("22003", f"{name} out of range")
        return int(value)

    return cast


def text_of(value: Any) -> str:
    match value:
        case str():
            if "\0" in value:
                raise fail("22021", 'invalid byte sequence for encoding "UTF8": 0x00')
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    raise asyncpg.DataError(f"invalid input for query argument: {error}") from error
            return value
        case bool():
            return "true" if value else "false"
        case bytes():
            return "\\x" + value.hex()
        case datetime():
            return value.isoformat(" ")
        case Composite():
            return "(" + ",".join("" if one is None else _quoted(text_of(one)) for one in value.values) + ")"
        case list():
            return "{" + ",".join("NULL" if one is None else _quoted(text_of(one)) for one in value) + "}"
        case _:
            return str(value)


def _quoted(text: str) -> str:
    if text and re.fullmatch(r"[^\s{}\",\\]+", text) and text.upper() != "NULL":
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _bool(value: Any) -> bool:
    if isinstance(value, str):
        low = value.strip().lower()
        if low in ("t", "true", "yes", "on", "1"):
            return True
        if low in ("f", "false", "no", "off", "0"):
            return False
        raise fail("22P02", f'invalid input syntax for type boolean: "{value}"')
    return bool(value)


def _bytes(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if not isinstance(value, str):
        raise fail("42804", f"{value!r} is no bytea")
    return bytes.fromhex(value[2:]) if value.startswith("\\x") else value.encode()


def _timestamp(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value if value.tzinfo is UTC else value.astimezone(UTC)
    if value in ("infinity", "-infinity"):
        return INFINITY if value == "infinity" else MINUS_INFINITY
    try:
        found = datetime.fromisoformat(value)
    except (ValueError, TypeError) as error:
        raise fail("22007", f'invalid input syntax for type timestamp with time zone: "{value}"') from error
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


_UNITS = {
    "day": 86400,
    "hour": 3600,
    "hr": 3600,
    "minute": 60,
    "min": 60,
    "second": 1,
    "sec": 1,
    "s": 1,
    "millisecond": 0.001,
    "ms": 0.001,
    "week": 604800,
}


def _interval(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    total, rest = 0.0, str(value)
    for number, unit in re.findall(r"(-?[\d.]+)\s*([a-z]+)", rest):
        total += float(number) * _UNITS[unit.rstrip("s") if unit not in ("s", "ms") else unit]
    clock = re.search(r"(-?)(\d+):(\d+)(?::([\d.]+))?", rest)
    if clock:
        total += (-1 if clock[1] else 1) * (int(clock[2]) * 3600 + int(clock[3]) * 60 + float(clock[4] or 0))
    return timedelta(seconds=total)


def _numeric(value: Any) -> Decimal:
    if isinstance(value, Decimal):
        return value
    try:
        return Decimal(str(value)) if isinstance(value, float) else Decimal(value)
    except InvalidOperation as error:
        raise fail("22P02", f'invalid input syntax for type numeric: "{value}"') from error


def _spans(value: Any) -> Spans:
    if isinstance(value, Spans):
        return value
    if isinstance(value, (list, tuple)):
        pairs = [(one.lower, one.upper) for one in value]
    else:
        pairs = [(int(low), int(high) + (end == "]")) for low, high, end in re.findall(r"\[(\d+),(\d+)([\])])", value)]
    merged: list[tuple[Any, Any]] = []
    for low, high in sorted(pair for pair in pairs if pair[0] < pair[1]):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return Spans(Span(pair) for pair in merged)


def _lsn(value: Any) -> Decimal:
    if isinstance(value, str):
        high, low = value.split("/")
        return Decimal((int(high, 16) << 32) + int(low, 16))
    return _numeric(value)


def _same(value: Any) -> Any:
    return value


_CASTS: dict[str, Callable[[Any], Any]] = {
    "uuid": _uuid, "int2": _int(16, "smallint"), "int4": _int(32, "integer"), "int8": _int(64, "bigint"), "text": text_of, "bool": _bool,
    "bytea": _bytes, "timestamptz": _timestamp, "timestamp": _timestamp, "interval": _interval, "numeric": _numeric,
    "float8": float, "int4multirange": _spans, "pg_lsn": _lsn, "jsonb": text_of, "json": text_of, "name": text_of,
    "regclass": text_of, "record": _same, "void": _same, "unknown": _same, "tid": _same, "int4range": _same,
    "oid": _int(64, "oid"), "anyarray": _same,
}  # fmt: skip
_NAMES = {"varchar": "text", "bpchar": "text", "float4": "float8", "int": "int4"}


def type_named(node: dict[str, Any]) -> str:
    """The type that a TypeName of the parser means."""
    name = node["names"][-1]["String"]["sval"]
    name = _NAMES.get(name, name)
    return name + "[]" if node.get("arrayBounds") else name


def shown(value: Any) -> Any:
    """The value as asyncpg gives it."""
    if isinstance(value, Spans):
        return [asyncpg.Range(one[0], one[1], lower_inc=True, upper_inc=False) for one in value]
    if isinstance(value, Span):
        return asyncpg.Range(value[0], value[1], lower_inc=True, upper_inc=False)
    if isinstance(value, Composite):
        return tuple(shown(one) for one in value.values)
    if type(value) is list:
        return [shown(one) for one in value]
    return value
