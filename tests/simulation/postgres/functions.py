"""The functions of Postgres itself that our SQL calls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from decimal import ROUND_DOWN, Decimal
from typing import TYPE_CHECKING, Any

from tests.simulation.postgres.values import INFINITY, MINUS_INFINITY, Span, Unsupported, coerce, fail, of_array, text_of

if TYPE_CHECKING:
    from tests.simulation.postgres.expressions import Code


def call(name: str, codes: list[Code], names: list[str]) -> Code:
    """A call of one of them."""
    from tests.simulation.postgres.expressions import Code

    runs = [code.run for code in codes]
    if name in _HERE:
        about, type = _HERE[name]
        return Code(lambda e: about(e[0], *(run(e) for run in runs)), type)
    if name == "make_interval":
        keys = list(names)
        return Code(lambda e: _make_interval(dict(zip(keys, (run(e) for run in runs), strict=True))), "interval")
    if name == "unnest":
        raise Unsupported("unnest outside FROM")
    if name not in _PLAIN:
        raise Unsupported(f"the function {name}")
    plain, type = _PLAIN[name]
    found: str | None = type(codes) if callable(type) else type
    if name in _NULLS:
        return Code(lambda e: plain(*(run(e) for run in runs)), found)
    casts = _ARGUMENTS.get(name)
    if casts:
        runs = [(lambda e, run=run, cast=cast: coerce(run(e), cast)) for run, cast in zip(runs, casts, strict=False)]  # type: ignore[misc]

    def strict(e: Any) -> Any:
        values = [run(e) for run in runs]
        return None if None in values else plain(*values)

    return Code(strict, found)


# About the session and the server


def _advisory(call: Any, key: int) -> bool:
    return bool(call.session.try_advisory(int(key)))


def _terminate(call: Any, pid: int) -> bool:
    return bool(call.session.model.terminate(pid))


def _set_config(call: Any, name: str, value: str, local: bool) -> str:
    call.session.set(name, value, local=local)
    return value


def _setting(call: Any, name: str, missing_ok: bool = False) -> str | None:
    found = call.session.setting(name)
    if found is None and not missing_ok:
        raise fail("42704", f'unrecognized configuration parameter "{name}"')
    return None if found is None else str(found)


def _notify(call: Any, channel: str, payload: str | None) -> None:
    text = payload or ""
    if len(text.encode()) >= 8000:
        raise fail("22023", "payload string too long")
    transaction = call.session.transaction
    if (channel, text) not in transaction.notices:
        transaction.notices.append((channel, text))


def _regclass(call: Any, name: str) -> int | None:
    names = sorted(call.session.model.catalog.tables)
    return names.index(name) + 1 if name in names else None


def _regprocedure(call: Any, name: str) -> str | None:
    return name if call.session.model.catalog.routine(name.partition("(")[0]) is not None else None


def _blocking(call: Any, pid: int) -> list[int]:
    for session in call.session.model.sessions.values():
        if session.pid == pid and session.blocked_by is not None:
            return [session.blocked_by.session.pid]
    return []


def _walfile(call: Any, lsn: Any) -> str:
    return f"{call.session.model.timeline:08X}0000000000000001"


_HERE: dict[str, tuple[Callable[..., Any], str | None]] = {
    "clock_timestamp": (lambda call: call.session.model.now(), "timestamptz"),
    "statement_timestamp": (lambda call: call.session.statement_at, "timestamptz"),
    "now": (lambda call: call.session.transaction.began, "timestamptz"),
    "pg_try_advisory_xact_lock": (_advisory, "bool"),
    "pg_advisory_xact_lock": (lambda call, key: call.session.advisory(int(key)), "void"),
    "pg_backend_pid": (lambda call: call.session.pid, "int4"),
    "pg_terminate_backend": (_terminate, "bool"),
    "pg_blocking_pids": (_blocking, "int4[]"),
    "set_config": (_set_config, "text"),
    "current_setting": (_setting, "text"),
    "pg_notify": (_notify, "void"),
    "pg_notification_queue_usage": (lambda call: call.session.model.queue_usage, "float8"),
    "pg_current_wal_flush_lsn": (lambda call: Decimal(call.session.model.written), "pg_lsn"),
    "pg_current_wal_insert_lsn": (lambda call: Decimal(call.session.model.written), "pg_lsn"),
    "pg_walfile_name": (_walfile, "text"),
    "pg_is_in_recovery": (lambda call: call.session.model.standby, "bool"),
    "current_database": (lambda call: call.session.model.name, "text"),
    "to_regclass": (_regclass, "regclass"),
    "to_regprocedure": (_regprocedure, "text"),
    "inet_server_addr": (lambda call: None, "text"),
    "gen_random_uuid": (lambda call: call.session.model.an_id(), "uuid"),
    "pg_sleep": (lambda call, seconds: call.session.sleep(float(seconds)), "void"),
}


# Plain ones


def _make_interval(parts: dict[str, Any]) -> timedelta | None:
    if None in parts.values():
        return None
    units = {"secs": 1.0, "mins": 60.0, "hours": 3600.0, "days": 86400.0}
    return timedelta(seconds=sum(units[name] * float(value) for name, value in parts.items()))


def _extract(field: str, value: Any) -> Decimal:
    if field != "epoch":
        raise Unsupported(f"extract({field})")
    if not isinstance(value, timedelta):
        from datetime import UTC, datetime

        value = value - datetime(1970, 1, 1, tzinfo=UTC)
    return Decimal(value.days * 86_400_000_000 + value.seconds * 1_000_000 + value.microseconds) / 1_000_000


def _date_trunc(field: str, value: Any) -> Any:
    if field != "second":
        raise Unsupported(f"date_trunc({field})")
    return value if value in (INFINITY, MINUS_INFINITY) else value.replace(microsecond=0)


def _to_char(value: Any, form: str) -> str:
    if form != 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"':
        raise Unsupported(f"to_char with {form}")
    return str(value.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


def _fill(value: Any, sizes: list[int]) -> list[Any]:
    return [value] * sizes[0]


def _position(among: list[Any], value: Any) -> int | None:
    return among.index(value) + 1 if among is not None and value in among else None


def _json_object(*parts: Any) -> str:
    pairs = [(parts[index], parts[index + 1]) for index in range(0, len(parts), 2)]
    shown = [(key, value if value is None or isinstance(value, (int, str, bool)) else text_of(value)) for key, value in pairs]
    return "{" + ", ".join(f"{json.dumps(key)} : {json.dumps(value, ensure_ascii=False)}" for key, value in shown) + "}"


def _div(a: Any, b: Any) -> Decimal:
    if not b:
        raise fail("22012", "division by zero")
    return (Decimal(a) / Decimal(b)).to_integral_value(ROUND_DOWN) if abs(Decimal(a)) < 10**24 else Decimal(int(a) // int(b))


def _encode(value: bytes, form: str) -> str:
    if form == "hex":
        return value.hex()
    raise Unsupported(f"encode as {form}")


def _format(form: str, *values: Any) -> str:
    out, left = "", list(values)
    parts = form.split("%")
    out = parts[0]
    for part in parts[1:]:
        value = left.pop(0)
        out += (
            ("NULL" if value is None else "'" + text_of(value).replace("'", "''") + "'")
            if part[0] == "L"
            else ""
            if value is None
            else text_of(value)
        )
        out += part[1:]
    return out


def _left(text: str, count: int) -> str:
    return text[:count] if count >= 0 else text[: len(text) + count]


def _low(value: Any) -> Any:
    return value[0] if isinstance(value, Span) else value[0][0] if isinstance(value, tuple) and value else str(value).lower()


def _high(value: Any) -> Any:
    return value[1] if isinstance(value, Span) else value[-1][1] if isinstance(value, tuple) and value else str(value).upper()


def _same(codes: list[Any]) -> str | None:
    found: str | None = codes[0].type
    return found


def _many(codes: list[Any]) -> str | None:
    return None if codes[0].type in (None, "unknown") else f"{codes[0].type}[]"


_PLAIN: dict[str, tuple[Callable[..., Any], Any]] = {
    "cardinality": (len, "int4"),
    "array_length": (lambda value, dimension: len(value) or None, "int4"),
    "array_fill": (_fill, _many),
    "array_position": (_position, "int4"),
    "array_append": (lambda among, value: [*(among or []), value], _same),
    "array_remove": (lambda among, value: None if among is None else [one for one in among if one != value], _same),
    "string_to_array": (lambda text, by: text_of(text).split(by) if text else [], "text[]"),
    "chr": (chr, "text"),
    "substr": (lambda value, first, count: value[first - 1 : first - 1 + count], _same),
    "array_to_string": (lambda among, by: by.join(text_of(one) for one in among if one is not None), "text"),
    "starts_with": (lambda text, start: text.startswith(start), "bool"),
    "left": (_left, "text"),
    "right": (lambda text, count: text[-count:] if count > 0 else text[-count:] if count < 0 else "", "text"),
    "split_part": (lambda text, by, place: parts[place - 1] if place <= len(parts := text.split(by)) else "", "text"),
    "lower": (_low, None),
    "upper": (_high, None),
    "length": (len, "int4"),
    "octet_length": (lambda value: len(value.encode() if isinstance(value, str) else value), "int4"),
    "sha256": (lambda value: hashlib.sha256(value).digest(), "bytea"),
    "md5": (lambda value: hashlib.md5(value.encode() if isinstance(value, str) else value, usedforsecurity=False).hexdigest(), "text"),
    "convert_to": (lambda text, encoding: text_of(text).encode(), "bytea"),
    "convert_from": (lambda value, encoding: value.decode(), "text"),
    "encode": (_encode, "text"),
    "int4send": (lambda value: value.to_bytes(4, "big", signed=True), "bytea"),
    "int8send": (lambda value: value.to_bytes(8, "big", signed=True), "bytea"),
    "uuid_send": (lambda value: value.bytes, "bytea"),
    "extract": (_extract, "numeric"),
    "date_trunc": (_date_trunc, "timestamptz"),
    "timezone": (lambda zone, value: value, "timestamp"),
    "to_char": (_to_char, "text"),
    "div": (_div, "numeric"),
    "lpad": (lambda text, length, fill=" ": text.rjust(length, fill)[:length], "text"),
    "abs": (abs, _same),
    "floor": (lambda value: Decimal(value).to_integral_value("ROUND_FLOOR"), "numeric"),
    "round": (lambda value, digits=0: round(value, digits), "numeric"),
    "format": (_format, "text"),
    "json_build_object": (_json_object, "json"),
    "isempty": (lambda value: not value, "bool"),
    "concat": (lambda *values: "".join(text_of(value) for value in values if value is not None), "text"),
    "replace": (lambda text, old, new: text.replace(old, new), "text"),
    "repeat": (lambda text, count: text * count, "text"),
    "random": (lambda: 0.5, "float8"),
}
_NULLS = {"array_fill", "array_position", "array_append", "array_remove", "format", "json_build_object", "concat"}
_ARGUMENTS = {
    "sha256": ("bytea",),
    "starts_with": ("text", "text"),
    "left": ("text", "int4"),
    "int4send": ("int4",),
    "int8send": ("int8",),
    "uuid_send": ("uuid",),
}


# Aggregates


def _present(values: list[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _every(values: list[Any]) -> bool | None:
    found = _present(values)
    return all(found) if found else None


def _some(values: list[Any]) -> bool | None:
    found = _present(values)
    return any(found) if found else None


AGGREGATES: dict[str, Callable[..., Any]] = {
    "count": lambda values: len(_present(values)),
    "array_agg": lambda values: list(values) or None,
    "max": lambda values: max(_present(values), default=None),
    "min": lambda values: min(_present(values), default=None),
    "sum": lambda values: sum(found) if (found := _present(values)) else None,
    "bool_and": _every,
    "bool_or": _some,
    "string_agg": lambda values, by=",": by.join(_present(values)) or None,
}


def aggregate_type(name: str, type: str | None) -> str | None:
    match name:
        case "count":
            return "int8"
        case "array_agg":
            return None if type in (None, "unknown") else f"{type}[]"
        case "max" | "min":
            return type
        case "sum":
            return "int8" if type in ("int2", "int4") else "numeric" if type == "int8" else type
        case "string_agg":
            return "text"
        case _:
            return "bool"


def rows_of(name: str, values: list[Any]) -> list[list[Any]] | None:
    """The columns of a set-returning function of Postgres's own; None when it is none of them."""
    if name == "unnest":
        return [[] if value is None else list(value) for value in values]
    if name == "generate_series":
        low, high = values[0], values[1]
        return [[] if low is None or high is None else list(range(int(low), int(high) + 1))]
    return None


__all__ = ["AGGREGATES", "aggregate_type", "call", "of_array", "rows_of"]
