"""How values of one type become plain JSON values and come back, and what is said of a value that does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from enum import Enum
from typing import Any, TypeAlias

from attrs import define, field

from flowdsl.errors import FlowError

DEPTH = 100
"""Levels of nesting in what is written: far below Python's recursion limit, so that what could be written can be read from any call."""

_REMEDY = "give a value of exactly that type, or declare the type that the value has"
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def _encoder() -> Callable[[Any], str]:
    """`json` makes its C encoder anew on each call, which takes half of the time: make it once, where this Python has it in that form."""
    public = json.JSONEncoder(separators=(",", ":"), check_circular=False)
    module: Any = json.encoder
    try:
        made = module.c_make_encoder(None, public.default, module.encode_basestring_ascii, None, ":", ",", False, False, True)
        sample = [None, True, -0.0, {"a": 1e999}, "\ud800é"]
        if "".join(made(sample, 0)) == public.encode(sample):
            return lambda plain: "".join(made(plain, 0))
    except (AttributeError, TypeError):
        pass
    return public.encode


dumps = _encoder()
_unescaped = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode
_scan = json.JSONDecoder(parse_constant=float).raw_decode  # a fresh NaN each time: two may be members of one set


class NotJournalable(FlowError):
    """A value, or a type, that cannot be written so that exactly it is read again. `path` leads to it: `result.people[3].name`."""

    def __init__(self, path: str, expected: str, got: str, remedy: str = "") -> None:
        self.path, self.expected, self.got, self.remedy = path, expected, got, remedy or _REMEDY
        super().__init__(f"{path} cannot be journaled: expected {expected}, got {got}. {self.remedy[0].upper()}{self.remedy[1:]}.")


class Undecodable(FlowError):
    """Input that is not of the declared type: each problem is a path, and what was expected and what came there."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        lines = [f"\n  - {path}: {text}" for path, text in self.problems[:20]]
        more = f"\n  and {len(self.problems) - 20} more" if len(self.problems) > 20 else ""
        super().__init__(f"the input does not fit its type; correct this and send it again:{''.join(lines)}{more}")


class Mismatch(Exception):
    """Inside the codec: this value is not of this type. The path is found only when somebody is to be told."""

    def __init__(self, expected: str, got: str, remedy: str = "") -> None:
        self.expected, self.got, self.remedy = expected, got, remedy
        super().__init__(f"expected {expected}, got {got}" + (f"; {remedy}" if remedy else ""))


Part: TypeAlias = "tuple[str, Shape, Any]"
"""A piece of a value: how the path goes on to it, its shape, and itself."""


def _no_parts(_: Any) -> Iterable[Part]:
    return ()


@define(eq=False)
class Shape:
    """One type's two functions, and what a container needs to know of it.

    `plain` and `structure` are quick and say only that something is wrong; `parts_out` and `parts_in` list a value's pieces for
    finding out where.
    """

    name: str
    plain: Callable[[Any], Any]
    structure: Callable[[Any], Any]
    parts_out: Callable[[Any], Iterable[Part]] = _no_parts
    parts_in: Callable[[Any], Iterable[Part]] = _no_parts
    cls: type | None = None
    """The class of all its values, if they have only one."""
    record: bool = False
    """Written as an object with fixed keys, so that a tag can stand among them."""
    exact: type | None = field(default=None)
    """Plain already: a value of exactly this class is written, and read, as it is."""
    deep: bool = False
    """Can nest without end."""


def faults(shape: Shape, value: Any, path: str, *, out: bool) -> list[tuple[str, Mismatch]]:
    """Every place in `value` that does not fit, as path and reason."""
    try:
        if out:
            written(shape.plain(value))
        else:
            shape.structure(value)
    except (Mismatch, ValueError, AttributeError) as error:
        parts = shape.parts_out(value) if out else shape.parts_in(value)
        inner = [fault for segment, child, part in parts for fault in faults(child, part, path + segment, out=out)]
        own = error if isinstance(error, Mismatch) else Mismatch(shape.name, str(error))
        return inner or [(path, own)]
    return []


def written(plain: Any) -> str:
    """The JSON text of plain values, in ASCII; refused where JSON would not give back the same."""
    try:
        text = dumps(plain)
    except ValueError:
        raise Mismatch("an int of at most 4300 digits", "a longer one", "Python would not read it again: keep it as text") from None
    if "\\ud" in text and _PAIR.search(_unescaped(plain)):
        raise Mismatch("text that JSON gives back", "a high surrogate followed by a low one", "JSON would join the two: keep it as bytes")
    return text


def parsed(data: bytes) -> Any:
    """The plain values in JSON text; a `ValueError` if it is none."""
    text = data.decode().strip(" \t\r\n")
    plain, end = _scan(text)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return plain


def too_deep(text: str, plain: Any) -> bool:
    """Is it nested in more than `DEPTH` levels?"""
    if text.count("[") + text.count("{") <= DEPTH:
        return False
    layer, level = [plain], -1
    while layer and level <= DEPTH:
        nodes = [node for node in layer if type(node) in (list, dict)]
        layer = [child for node in nodes for child in (node.values() if type(node) is dict else node)]
        level += 1
    return level > DEPTH


def refusing(expected: str, got: str, remedy: str = "") -> Shape:
    """Fits nothing, for the reason given."""

    def refuse(_: Any) -> Any:
        raise Mismatch(expected, got, remedy)

    return Shape(expected, refuse, refuse)


def seen(value: Any) -> str:
    """A Python value in a message: its class, and itself where that is short and tells nobody's secrets."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if value is None or type(value) is bool:
        return str(value)
    return f"{type(value).__name__} {short(value)}" if type(value) in (int, float) else type(value).__name__


def came(plain: Any) -> str:
    """A JSON value in a message."""
    if plain is None or type(plain) is bool:
        return {None: "null", True: "true", False: "false"}[plain]
    kind: str = {str: "the text", int: "the number", float: "the number", list: "a list", dict: "an object"}.get(type(plain), "")
    return f"{kind} {short(plain)}" if kind.startswith("the") else kind or type(plain).__name__


def short(value: Any) -> str:
    """At most 40 characters of a repr."""
    if type(value) is int and value.bit_length() > 200:
        return f"of {value.bit_length()} bits"
    text = repr(value[:40] if isinstance(value, str) else value)
    return text if len(text) <= 42 else text[:40] + "…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy: the known name that is meant, if one is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def not_exactly(shape_name: str, cls: type, value: Any) -> Mismatch:
    """`value` is not of the class itself; a subclass has its own remedy."""
    if isinstance(value, cls):
        theirs = type(value).__name__
        return Mismatch(shape_name, f"{theirs}, a subclass", f"only a union keeps which class it was: declare {cls.__name__} | {theirs}")
    return Mismatch(shape_name, seen(value))
