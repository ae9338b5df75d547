"""Unions: told apart by exact class when written, by JSON kind or by tag when read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import NoneType
from typing import Any

from flowdsl.codec.shape import Mismatch, Part, Shape, came, did_you_mean, not_exactly, seen

RAW = frozenset((NoneType, bool, int, float, str))


def tag_of(member: Shape) -> str:
    """What stands under "$"."""
    return "None" if member.cls is NoneType else member.cls.__name__ if member.cls else member.name


def optional(member: Shape, name: str) -> Shape:
    """None or one other type, which is written as it is alone."""
    write, read = member.plain, member.structure

    def plain(value: Any) -> Any:
        if value is None:
            return None
        found = write(value)
        if found is None:
            raise Mismatch(name, f"{seen(value)}, whose hook writes null", "let the hook write something else: null is None here")
        return found

    def structure(value: Any) -> Any:
        return None if value is None else read(value)

    def parts(value: Any) -> Iterable[Part]:
        return () if value is None else (("", member, value),)

    return Shape(name, plain, structure, parts, parts)


def union(members: Sequence[Shape], name: str, *, always_tagged: bool = False) -> Shape:
    """None, bool, int, float and str as they are (unless `always_tagged`); other members as `{"$": tag, …}`.

    A record's fields stand beside its tag, everything else is under "v". The caller sees to it that no two tags are equal.
    """
    raw = {} if always_tagged else {member.cls: member for member in members if member.cls in RAW}
    tagged = {tag_of(member): member for member in members if member.cls not in raw}
    writers = {member.cls: member.plain if member.cls in raw else _writer(member) for member in members}
    by_class = {member.cls: member for member in members}

    def plain(value: Any) -> Any:
        write = writers.get(type(value))
        if write is None:
            kin = next((cls for cls in by_class if cls and cls not in RAW and isinstance(value, cls)), NoneType)
            raise not_exactly(name, kin, value)
        return write(value)

    def member_in(value: Any) -> tuple[Shape, Any] | None:
        if type(value) is not dict:
            member = raw.get(type(value))
            return None if member is None else (member, value)
        tag = value.get("$")
        member = tagged.get(tag) if type(tag) is str else None
        if member is None:
            return None
        if member.record:
            rest = value.copy()
            del rest["$"]
            return member, rest
        return (member, value["v"]) if value.keys() == {"$", "v"} else None

    def structure(value: Any) -> Any:
        found = member_in(value)
        if found is None:
            raise _no_member(name, raw, tagged, value)
        return found[0].structure(found[1])

    def parts_out(value: Any) -> Iterable[Part]:
        member = by_class.get(type(value))
        return () if member is None else (("", member, value),)

    def parts_in(value: Any) -> Iterable[Part]:
        found = member_in(value)
        return () if found is None else (("", *found),)

    return Shape(name, plain, structure, parts_out, parts_in)


def _writer(member: Shape) -> Callable[[Any], Any]:
    write, tag = member.plain, tag_of(member)
    if member.record:
        return lambda value: {"$": tag, **write(value)}
    return lambda value: {"$": tag, "v": write(value)}


def _no_member(name: str, raw: Iterable[type | None], tagged: Iterable[str], value: Any) -> Mismatch:
    kinds = sorted("None" if cls in (None, NoneType) else cls.__name__ for cls in raw)
    if tags := ", ".join(tagged):
        kinds.append(f'an object with "$": {tags}')
    got, remedy = came(value), ""
    if type(value) is dict:
        tag = value.get("$")
        got = 'an object without "$"' if tag is None else f'"$": {came(tag)}'
        remedy = did_you_mean(tag, tagged) if isinstance(tag, str) and tag not in tagged else 'beside "$" stands "v" alone' if tag else ""
    return Mismatch(f"{name}, as {' or '.join(kinds)}", got, remedy)
