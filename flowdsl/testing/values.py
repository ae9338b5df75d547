"""Values of any type that the journal can hold, as a Hypothesis strategy: small, readable, and such as validators let through.

@given(values(Order))
def test_every_order_has_a_key(order): ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from types import NoneType, UnionType
from typing import Any, Literal, Never, NoReturn, TypeVar, Union, cast, get_args, get_origin
from uuid import UUID

import attrs
from attrs import frozen
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from typing_extensions import TypeForm

from flowdsl.codec import codec
from flowdsl.codec.build import hooked
from flowdsl.codec.forms import field_types, opened, runtime_class, shown
from flowdsl.codec.records import Declared, declared, is_record
from flowdsl.errors import FlowError

T = TypeVar("T")

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 -_.:/%äπ漢"
_MOST = 3
"""Items in a list, a set, a dict."""
_YEAR = datetime(2026, 1, 1), datetime(2027, 1, 1)

SCALARS: Mapping[Any, SearchStrategy[Any]] = {
    NoneType: st.none(),
    bool: st.booleans(),
    int: st.integers(-100, 1000),
    float: st.floats(-1000, 1000),
    str: st.text(_LETTERS, min_size=1, max_size=8).map(lambda text: "" if text[0] == _LETTERS[-1] else text),  # what can be seen is plainer
    bytes: st.binary(max_size=8),
    datetime: st.datetimes(*_YEAR, timezones=st.just(UTC)),
    date: st.dates(*(day.date() for day in _YEAR)),
    time: st.times(),
    timedelta: st.timedeltas(timedelta(), timedelta(days=30)),
    Decimal: st.decimals(-1000, 1000, places=2),
    UUID: st.integers(0, 999).map(lambda number: UUID(int=number)),
}
_PLAIN = st.recursive(
    st.none() | st.booleans() | SCALARS[int] | SCALARS[str],
    lambda inner: st.lists(inner, max_size=_MOST) | st.dictionaries(SCALARS[str], inner, max_size=_MOST),
    max_leaves=4,
)


class Undrawable(FlowError):
    """A type of which no value can be made up."""

    def __init__(self, form: Any, why: str) -> None:
        self.form, self.why = form, why
        super().__init__(f"no value of {shown(form)} can be made up: {why}. Say what there is: given={{{shown(form)}: st.…}}")


def values(form: TypeForm[T], given: Mapping[Any, SearchStrategy[Any]] | None = None) -> SearchStrategy[T]:
    """Values of that type, whatever the codec takes: records, unions, enums, results, dates, and all that consists of them.

    Small on purpose, and the plainest first. `given` says which there are of a type, wherever it stands in this one: `{Email: st.emails()}`.
    Raises `Undrawable` for a type that has none, and `NotJournalable` for one that the journal cannot hold.
    """
    if not given:
        try:
            return cast("SearchStrategy[T]", _known[form])
        except KeyError:
            return cast("SearchStrategy[T]", _known.setdefault(form, _made(form, {})))
        except TypeError:  # it cannot be hashed
            pass
    return cast("SearchStrategy[T]", _made(form, given or {}))


_known: dict[Any, SearchStrategy[Any]] = {}


def _made(form: Any, given: Mapping[Any, SearchStrategy[Any]]) -> SearchStrategy[Any]:
    if form not in (Never, NoReturn) and not given:
        codec(form)  # says what is wrong with a type better than anything that could be drawn
    return _Drawing(given).strategy(form)


class _Drawing:
    """Makes one type's strategy, and those of its parts. What a type says of itself goes through a placeholder until it is made."""

    def __init__(self, given: Mapping[Any, SearchStrategy[Any]]) -> None:
        self._given = dict(given)
        self._known: dict[Any, SearchStrategy[Any]] = {}
        self._open: set[Any] = set()
        self._again = False
        """Whether something was met that contains itself."""

    def strategy(self, form: Any) -> SearchStrategy[Any]:
        try:
            known = self._given.get(form, self._known.get(form))
        except TypeError:
            return self._new(form)
        self._again = self._again or form in self._open
        if known is None:
            made: list[SearchStrategy[Any]] = []
            self._known[form] = st.deferred(lambda: made[0])
            self._open.add(form)
            made.append(self._new(form))
            self._open.discard(form)
            known = self._known[form] = made[0]
        return known

    def _many(self, form: Any) -> SearchStrategy[list[Any]]:
        """Few of those that contain themselves: else most values would not come to an end."""
        before, self._again = self._again, False
        items = self.strategy(form)
        found, self._again = self._again, self._again or before
        return st.just(()).map(list) | st.lists(items, max_size=2) if found else st.lists(items, max_size=_MOST)

    def _new(self, form: Any) -> SearchStrategy[Any]:
        if hooked(form):
            return _registered(form)
        inner = opened(form)
        if inner is not form:
            return self.strategy(inner)
        origin = get_origin(form)
        if origin is Literal:
            return st.sampled_from(get_args(form))
        if origin in (Union, UnionType):
            return self._union(get_args(form))
        if form in (Any, object):
            return _PLAIN
        if form in (Never, NoReturn):
            raise Undrawable(form, "there is none")
        return self._of_class(form, runtime_class(form), get_args(form))

    def _union(self, members: Sequence[Any]) -> SearchStrategy[Any]:
        """None is the plainest that there can be, wherever it was declared."""
        there = [member for member in members if member not in (Never, NoReturn)]
        return st.one_of([self.strategy(member) for member in sorted(there, key=lambda member: member not in (None, NoneType))])

    def _of_class(self, form: Any, cls: Any, arguments: Sequence[Any]) -> SearchStrategy[Any]:
        if cls in SCALARS:
            return SCALARS[cls]
        if cls in (list, set, frozenset):
            items = self._many(arguments[0] if arguments else object)
            return items if cls is list else items.map(cls)
        if cls is dict:
            keys, inner = arguments or (str, object)
            return self._many(cast(Any, tuple)[keys, inner]).map(dict)
        if cls is tuple:
            if form is tuple or arguments[1:] == (...,):
                return self._many(arguments[0] if arguments else object).map(tuple)
            return st.tuples(*(self.strategy(each) for each in arguments))
        if isinstance(cls, type) and issubclass(cls, Enum):
            return _of_enum(cls)
        if is_record(cls):
            return self._record(form, cls, arguments)
        raise Undrawable(form, "it is no record of plain types")

    def _record(self, form: Any, cls: Any, arguments: Sequence[Any]) -> SearchStrategy[Any]:
        fields = declared(cls)
        forms = {fields[0].name: arguments[0] if arguments else object} if cls.__module__ == "returns.result" else field_types(form)
        bounds = _bounds(cls)
        parts = [self._field(forms[each.name], bounds.get(each.name), each) for each in fields]
        keys = [each.key for each in fields]
        if cls.__module__ == "returns.result":
            return parts[0].map(cls)
        if not _picky(cls):
            return st.tuples(*parts).map(lambda row: cls(**dict(zip(keys, row, strict=True))))
        return st.tuples(*parts).map(lambda row: _tried(cls, keys, row)).filter(lambda value: value is not _REFUSED)

    def _field(self, form: Any, bounds: _Bounds | None, field: Declared) -> SearchStrategy[Any]:
        inner = form
        while opened(inner) is not inner:
            inner = opened(inner)
        if bounds is None or form in self._given or inner in self._given:
            return self.strategy(form)
        narrowed = bounds.strategy(inner)
        if narrowed is not None:
            return narrowed
        default = field.default  # whatever its validator wants, its default is one of them
        return self.strategy(form) if default is None else st.builds(default) | self.strategy(form)


_REFUSED: Any = object()


def _tried(cls: Callable[..., Any], keys: Sequence[str], row: Sequence[Any]) -> Any:
    try:
        return cls(**dict(zip(keys, row, strict=True)))
    except (ValueError, TypeError, ArithmeticError, FlowError):
        return _REFUSED


def _picky(cls: Any) -> bool:
    """Whether a class may refuse values of the types that it declares."""
    if any(hasattr(cls, name) for name in ("__attrs_post_init__", "__post_init__", "__attrs_pre_init__")):
        return True
    if attrs.has(cls):
        return any(each.validator is not None or each.converter is not None for each in attrs.fields(cls))
    return not dataclasses.is_dataclass(cls)


def _of_enum(cls: type[Enum]) -> SearchStrategy[Any]:
    members = list(cls)
    if not members and not issubclass(cls, Flag):
        raise Undrawable(cls, "it has no members")
    if not issubclass(cls, Flag):
        return st.sampled_from(members)
    flags = cast("list[Flag]", members)
    return st.lists(st.sampled_from(flags), max_size=len(flags), unique=True).map(lambda chosen: _together(cls, chosen)) if flags else st.just(cls(0))


def _together(cls: Any, chosen: Sequence[Flag]) -> Flag:
    whole = cls(0)
    for one in chosen:
        whole |= one
    return cast("Flag", whole)


def _registered(form: Any) -> SearchStrategy[Any]:
    """A type with codec hooks of its own: Hypothesis may know how to make one."""
    try:
        strategy = st.from_type(form)
        strategy.validate()
    except Exception as error:
        raise Undrawable(form, f"its hooks say how it is written, not which there are ({type(error).__name__})") from None
    return strategy


# What validators say: a strategy that knows it refuses little. Validators have the last word all the same.


@frozen
class _Bounds:
    """What the validators of attrs that are known by name say of a field."""

    low: Any = None
    high: Any = None
    shortest: int = 0
    longest: int | None = None
    among: tuple[Any, ...] | None = None
    pattern: Any = None
    optional: bool = False

    def strategy(self, form: Any) -> SearchStrategy[Any] | None:
        """None when they say nothing that helps for this type."""
        members = get_args(form) if get_origin(form) in (Union, UnionType) else ()
        if NoneType in members and len(members) == 2:
            inner = attrs.evolve(self, optional=False).strategy(next(each for each in members if each is not NoneType))
            return None if inner is None else st.none() | inner
        if self.among is not None:
            return st.sampled_from(self.among) if self.among else None
        if form in (int, float, Decimal) and not (self.low is None and self.high is None):
            return self._number(form)
        if form is str and self.pattern is not None:
            return st.from_regex(self.pattern, fullmatch=True)
        if form is str and (self.shortest or self.longest is not None):
            return st.text(_LETTERS, min_size=self.shortest, max_size=self._longest(8))
        if get_origin(form) in (list, tuple) and (self.shortest or self.longest is not None):
            items = st.lists(values(get_args(form)[0]), min_size=self.shortest, max_size=self._longest(_MOST))
            return items if get_origin(form) is list else items.map(tuple) if get_args(form)[1:] == (...,) else None
        return None

    def _longest(self, usual: int) -> int:
        most = self.shortest + usual
        return most if self.longest is None else min(most, max(self.longest, self.shortest))

    def _number(self, form: Any) -> SearchStrategy[Any]:
        low = self.low if self.low is not None else min(-100, self.high - 1000)
        high = self.high if self.high is not None else max(1000, low + 1000)
        if low > high:
            return st.nothing()
        if form is int:
            return st.integers(-int(-low // 1), int(high // 1))
        return st.floats(float(low), float(high)) if form is float else st.decimals(low, high, places=2)


def _bounds(cls: Any) -> dict[str, _Bounds]:
    if not attrs.has(cls):
        return {}
    return {each.name: _said(each.validator, _Bounds()) for each in attrs.fields(cls) if each.validator is not None and each.converter is None}


def _said(validator: Any, so_far: _Bounds) -> _Bounds:
    match type(validator).__name__:
        case "_AndValidator":
            for one in validator._validators:
                so_far = _said(one, so_far)
            return so_far
        case "_OptionalValidator":
            return _said(validator.validator, so_far)
        case "_NumberValidator":
            upper = validator.compare_op in ("<", "<=")
            return attrs.evolve(so_far, **{"high" if upper else "low": validator.bound})
        case "_InValidator":
            return attrs.evolve(so_far, among=tuple(validator.options))
        case "_MaxLengthValidator":
            return attrs.evolve(so_far, longest=validator.max_length)
        case "_MinLengthValidator":
            return attrs.evolve(so_far, shortest=validator.min_length)
        case "_MatchesReValidator":
            return attrs.evolve(so_far, pattern=validator.pattern)
        case _:
            return so_far
