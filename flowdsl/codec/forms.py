"""Type forms as they are written: aliases opened, type variables replaced, annotations looked up."""

from __future__ import annotations

import re
import sys
import typing
from collections.abc import Mapping
from inspect import get_annotations
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NewType, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from returns.result import Failure, Result, Success
from typing_extensions import NoDefault, TypeAliasType, get_original_bases

from flowdsl.codec.shape import Mismatch

_ALIASES: tuple[Any, ...] = (TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType))
NO_CLASS: tuple[Any, ...] = (Any, object, Literal, Union, UnionType, Annotated, Result)


def shown(form: Any) -> str:
    """A type as it is written, without its modules."""
    if form is NoneType:
        return "None"
    if get_origin(form) is Literal:
        return " or ".join(map(repr, get_args(form)))
    return form.__name__ if isinstance(form, type) else re.sub(r"[\w<>]+\.(?=\w|<)", "", repr(form))


def opened(form: Any) -> Any:
    """What an alias, a NewType, an annotation or a bare type variable stands for; any other form itself."""
    origin = get_origin(form)
    if form is None:
        return NoneType
    if origin in (Annotated, Final):
        return get_args(form)[0]
    if isinstance(form, NewType):
        return form.__supertype__
    if isinstance(form, TypeVar):
        return _stand_in(form)
    if isinstance(form, _ALIASES):
        return _value(form)
    if isinstance(origin, _ALIASES):
        return substituted(_value(origin), dict(zip(_parameters(origin), get_args(form), strict=False)))
    if origin is Result or form is Result:
        answer, failure = get_args(form) or (object, object)
        return cast(Any, Success)[answer] | cast(Any, Failure)[failure]
    return form


def opened_fully(form: Any) -> Any:
    """The same until nothing is left to open."""
    for _ in range(100):
        inner = opened(form)
        if inner is form:
            return form
        form = inner
    raise Mismatch("a type", f"{shown(form)}, an alias of itself")


def _value(alias: Any) -> Any:
    """An alias' type, names in quotes looked up in its module."""
    holder = type("holder", (), {"__annotations__": {"value": alias.__value__}, "__module__": alias.__module__})
    return _looked_up(holder, {alias.__name__: alias})["value"]


def _stand_in(variable: Any) -> Any:
    """For a type variable that nobody gave: its default, its bound, or anything plain."""
    default = getattr(variable, "__default__", NoDefault)
    if default is not NoDefault:
        return default
    if variable.__constraints__:
        return Union[variable.__constraints__]  # noqa: UP007
    return variable.__bound__ or object


def _parameters(form: Any) -> tuple[Any, ...]:
    return tuple(getattr(form, "__type_params__", ())) or tuple(getattr(form, "__parameters__", ()))


def substituted(form: Any, given: Mapping[Any, Any]) -> Any:
    """`form` with its type variables replaced."""
    if isinstance(form, TypeVar):
        return given.get(form, form)
    free = () if isinstance(form, (type, *_ALIASES)) else getattr(form, "__parameters__", ())
    return form[tuple(given.get(variable, variable) for variable in free)] if free else form


def runtime_class(form: Any) -> type | None:
    """The class of the form's values, if they all have the same."""
    form = opened_fully(form)
    found = get_origin(form) or form
    if found is Mapping:
        return dict
    return found if isinstance(found, type) and found not in NO_CLASS else None


def field_types(form: Any) -> dict[str, Any]:
    """The annotations of a class and its bases, its own last, type variables replaced by what `form` gives."""
    cls = get_origin(form) or form
    given = _given(cls, dict(zip(_parameters(cls), get_args(form), strict=False)))
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        own = get_annotations(base) if base in given else {}
        if own:
            hints = _looked_up(base, {})
            found.update((name, substituted(hints[name], given[base])) for name in own if name in hints)
    return found


def _given(cls: type, mine: dict[Any, Any]) -> dict[type, dict[Any, Any]]:
    """What the type variables of a class and of each of its bases stand for: two bases may use one variable for two things."""
    found = {cls: mine}
    for base in get_original_bases(cls):
        origin = get_origin(base) or base
        if isinstance(origin, type) and origin not in (object, typing.Generic):
            arguments = [substituted(argument, mine) for argument in get_args(base)]
            found.update(_given(origin, dict(zip(_parameters(origin), arguments, strict=False))))
    return found


def _looked_up(holder: type, names: dict[str, Any]) -> dict[str, Any]:
    """Annotations with names in quotes looked up: in the class itself, then in its module. It may name itself."""
    nested = {name: value for name, value in vars(holder).items() if isinstance(value, type)}
    try:
        return get_type_hints(holder, localns={holder.__name__: holder, **nested, **names}, include_extras=True)
    except (NameError, TypeError, SyntaxError) as error:
        where = "" if holder.__module__ in sys.modules else f", whose module {holder.__module__} is gone"
        raise Mismatch("annotations that can be looked up", f"{holder.__name__}{where}: {error}", "define the types in the module") from None
