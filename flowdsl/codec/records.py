"""Records: attrs classes, dataclasses, named tuples, and `returns`' Success and Failure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from inspect import signature
from typing import Any, cast

import attrs
from attrs import evolve, frozen
from returns.result import Failure, Success

from flowdsl.codec.shape import Mismatch, Part, Shape, came, did_you_mean, dumps, not_exactly, refusing, seen

Make = Callable[[], Any]


@frozen
class Declared:
    """A field as its class declares it. `default` makes the default, if it is always the same one."""

    name: str
    key: str
    required: bool
    default: Make | None
    converter: Callable[[Any], Any] | None = None


@frozen
class Row:
    """A field and how it is written."""

    declared: Declared
    shape: Shape

    def out(self) -> Shape:
        """The shape for writing. A converter runs again on reading: a value that it would change is refused."""
        convert, shape = self.declared.converter, self.shape
        if convert is None:
            return shape

        def steady(part: Any) -> Any:
            plain = shape.plain(part)
            if dumps(shape.plain(convert(part))) != dumps(plain):
                raise Mismatch("a value that its converter leaves alone", seen(part), "convert before the record is made: reading converts again")
            return plain

        return Shape(shape.name, steady, shape.structure, lambda part: shape.parts_out(part))


def is_record(cls: Any) -> bool:
    """Can `declared` list its fields?"""
    return isinstance(cls, type) and (cls in (Success, Failure) or attrs.has(cls) or dataclasses.is_dataclass(cls) or _is_named_tuple(cls))


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_field_defaults")


@cache
def declared(cls: Any) -> list[Declared]:
    """The fields that make a value: their names, the arguments that they are in `__init__`, and defaults."""
    if cls in (Success, Failure):
        return [Declared("_inner_value", "v", True, None)]
    if attrs.has(cls):
        found = [_of_attrs(cls, each) for each in attrs.fields(cls)]
    elif dataclasses.is_dataclass(cls):
        found = [_of_dataclass(each) for each in dataclasses.fields(cls)]
    else:
        found = [_field(name, name, cls._field_defaults.get(name, attrs.NOTHING), None) for name in cls._fields]
    _must_be_arguments(cls, {each.key for each in found})
    return found


def _must_be_arguments(cls: Any, keys: set[str]) -> None:
    """Refuses a field that `__init__` does not take, and an argument that is kept in no field."""
    arguments = signature(cls).parameters
    needed = {name for name, each in arguments.items() if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    init_vars = getattr(cls, "__dataclass_fields__", {}).keys() & arguments.keys()
    odd = (keys - arguments.keys()) | (needed - keys) | (init_vars - keys)
    if odd:
        remedy = "make it a property, or a field that is an argument of __init__"
        raise Mismatch("fields that are the arguments of __init__", f"{cls.__name__}.{min(odd)}", remedy)


def _of_attrs(cls: type, each: Any) -> Declared:
    factory: Any = each.default if isinstance(each.default, cast(type, attrs.Factory)) else None
    make = None if factory is None or factory.takes_self else factory.factory
    field = _field(each.name, each.alias, each.default, make, made=factory is not None)
    if getattr(each.converter, "takes_self", False) or getattr(each.converter, "takes_field", False):
        raise Mismatch("a converter of the value alone", f"{cls.__name__}.{each.name}", "convert before the record is made")
    return evolve(field, converter=each.converter)


def _of_dataclass(each: dataclasses.Field[Any]) -> Declared:
    made = each.default_factory is not dataclasses.MISSING
    default = attrs.NOTHING if each.default is dataclasses.MISSING else each.default
    return _field(each.name, each.name, default, each.default_factory if made else None, made=made)


def _field(name: str, key: str, default: Any, factory: Any, *, made: bool = False) -> Declared:
    if made:
        return Declared(name, key, False, factory if _always_alike(factory) else None)
    return Declared(name, key, default is attrs.NOTHING, None if default is attrs.NOTHING else lambda: default)


def _always_alike(factory: Any) -> bool:
    """Does this factory make equal values today and tomorrow? A function may read a clock: its product would be another when read back."""
    if factory in (list, dict, set, frozenset, tuple):
        return True
    return is_record(factory) and all(each.default is not None for each in declared(factory))


def record(cls: Any, rows: Sequence[Row], name: str) -> Shape:
    """An object with a key for each field, in the order of their declaration; a field that equals its default exactly is left out."""
    writers = [(row.declared, row.out()) for row in rows]
    outs = [(row.declared.name, row.declared.key, shape.exact, shape.plain, _omission(row)) for row, (_, shape) in zip(rows, writers, strict=True)]
    ins = {row.declared.key: (row.shape.exact, row.shape.structure) for row in rows}
    make: Callable[..., Any] = _container(cls) if cls in (Success, Failure) else cls

    def plain(value: Any) -> dict[str, Any]:
        if type(value) is not cls:
            raise not_exactly(name, cls, value)
        found: dict[str, Any] = {}
        for attribute, key, exact, write, omitted in outs:
            part = getattr(value, attribute)
            if type(part) is not exact:
                part = write(part)
            if omitted is None or not omitted(part):
                found[key] = part
        return found

    def structure(value: Any) -> Any:
        if type(value) is not dict:
            raise Mismatch(f"{name}, as an object", came(value))
        given: dict[str, Any] = {}
        for key, part in value.items():
            field = ins.get(key)
            if field is None:
                raise Mismatch(name, f"a field {key!r}")
            given[key] = part if type(part) is field[0] else field[1](part)
        try:
            return make(**given)
        except RecursionError:
            raise
        except Exception as error:  # a validator's objection, or a missing field
            raise Mismatch(f"what {name} takes", f"{type(error).__name__}: {error}") from None

    def parts_out(value: Any) -> Iterable[Part]:
        if type(value) is not cls:
            return ()
        return [(f".{field.key}", shape, getattr(value, field.name)) for field, shape in writers if hasattr(value, field.name)]

    def parts_in(value: Any) -> Iterable[Part]:
        return _fields_in(rows, name, value) if type(value) is dict else ()

    return Shape(name, plain, structure, parts_out, parts_in)


def _container(cls: Any) -> Callable[[Any], Any]:
    return lambda v: cls(v)


def _fields_in(rows: Sequence[Row], name: str, value: dict[Any, Any]) -> Iterable[Part]:
    known = {row.declared.key: row.shape for row in rows}
    for key, part in value.items():
        unknown = refusing(f"one of the fields of {name}", f"{key!r}", did_you_mean(str(key), known.keys() - value.keys()))
        yield f".{key}", known.get(key, unknown), part
    for row in rows:
        if row.declared.required and row.declared.key not in value:
            yield f".{row.declared.key}", refusing(row.shape.name, "nothing: the field is missing"), None


def _omission(row: Row) -> Callable[[Any], bool] | None:
    """Tells whether a written field is its default: as written, so that 0.0 and -0.0, 1 and True differ, and NaN is NaN."""
    make = row.declared.default
    if make is None:
        return None

    @cache
    def default() -> tuple[Any, Any, str]:
        try:
            plain = row.shape.plain(make())
        except Mismatch:  # a default that its own type does not allow is never left out: no value equals it
            return None, None, ""
        return type(plain), plain, dumps(plain)

    def omitted(part: Any) -> bool:
        cls, plain, text = default()
        if type(part) is not cls:
            return False
        if cls is float or cls is list or cls is dict:
            return (cls is float or len(part) == len(plain)) and dumps(part) == text
        return bool(part == plain)

    return omitted
