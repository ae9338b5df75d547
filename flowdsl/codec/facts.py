"""Facts that are written and never read by the program: encoded by what they are, not by a declared type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flowdsl.codec.build import hooked, shape_of
from flowdsl.codec.records import declared, is_record
from flowdsl.codec.shape import Mismatch, NotJournalable, Part, Shape, dumps, short

_KEPT = (type(None), bool, int, float, str)


def _fact(value: Any) -> Any:
    """Records with their class under "$" and with every field; scalars as the codec of their class writes them."""
    cls: Any = type(value)
    if cls in _KEPT:
        return value
    if cls in (list, tuple):
        return [_fact(each) for each in value]
    if cls in (set, frozenset):
        return sorted(map(_fact, value), key=dumps)
    if cls is dict:
        if all(type(key) is str for key in value):
            return {key: _fact(each) for key, each in value.items()}
        return [[_fact(key), _fact(each)] for key, each in value.items()]
    if is_record(cls) and not hooked(cls):
        return {"$": cls.__name__, **{field.key: _fact(getattr(value, field.name)) for field in declared(cls)}}
    try:
        shape = shape_of(cls)
    except NotJournalable as error:
        raise Mismatch(error.expected, error.got, error.remedy) from None
    return shape.plain(value)


def _parts(value: Any) -> Iterable[Part]:
    cls: Any = type(value)
    if cls in (list, tuple, set, frozenset):
        return [(f"[{i}]", FACT, each) for i, each in enumerate(value)]
    if cls is dict:
        pairs = [(f"[{short(key)}]", key, each) for key, each in value.items()]
        return [part for at, key, each in pairs for part in ((f".keys{at}", FACT, key), (at, FACT, each))]
    if is_record(cls):
        return [(f".{field.key}", FACT, getattr(value, field.name)) for field in declared(cls)]
    return ()


FACT = Shape("a fact", _fact, _fact, _parts, deep=True)
