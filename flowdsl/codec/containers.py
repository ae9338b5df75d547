"""list, tuple, set, dict, and the tree of plain values that `object` stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from flowdsl.codec.shape import Mismatch, Part, Shape, came, dumps, not_exactly, refusing, seen, short
from flowdsl.codec.values import SCALARS


def many(cls: Any, item: Shape, name: str) -> Shape:
    """A list, a tuple of any length, a set or a frozenset. Sets are sorted as written, so that the hash seed has no say."""
    ordered = cls in (list, tuple)
    only = frozenset() if item.exact is None else frozenset((item.exact,))
    write, read = item.plain, item.structure

    def plain(value: Any) -> list[Any]:
        if type(value) is not cls:
            raise not_exactly(name, cls, value)
        items = list(value) if only.issuperset(map(type, value)) else [write(each) for each in value]
        return items if ordered else sorted(items, key=dumps)

    def structure(items: Any) -> Any:
        if type(items) is not list:
            raise Mismatch(f"{name}, as a list", came(items))
        members = items if only.issuperset(map(type, items)) else [read(each) for each in items]
        if ordered:
            return cls(members)
        try:
            found = cls(members)
        except TypeError as error:
            raise Mismatch(name, str(error)) from None
        if len(found) != len(items):
            raise Mismatch(f"{name}, no member twice", "a list with repeats")
        return found

    def parts_out(value: Any) -> Iterable[Part]:
        if type(value) is not cls:
            return ()
        return [(f"[{i}]" if ordered else f"[{short(each)}]", item, each) for i, each in enumerate(value)]

    def parts_in(items: Any) -> Iterable[Part]:
        return [(f"[{i}]", item, each) for i, each in enumerate(items)] if type(items) is list else ()

    return Shape(name, plain, structure, parts_out, parts_in)


def fixed(items: Sequence[Shape], name: str) -> Shape:
    """A tuple of so many."""
    count = len(items)
    writes, reads = [item.plain for item in items], [item.structure for item in items]

    def plain(value: Any) -> list[Any]:
        if type(value) is not tuple:
            raise not_exactly(name, tuple, value)
        if len(value) != count:
            raise Mismatch(name, f"a tuple of {len(value)}")
        return [write(each) for write, each in zip(writes, value, strict=True)]

    def structure(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != count:
            raise Mismatch(f"{name}, as a list of {count}", f"a list of {len(value)}" if type(value) is list else came(value))
        return tuple([read(each) for read, each in zip(reads, value, strict=True)])

    def parts(value: Any) -> Iterable[Part]:
        if type(value) not in (tuple, list) or len(value) != count:
            return ()
        return [(f"[{i}]", item, each) for i, (item, each) in enumerate(zip(items, value, strict=True))]

    return Shape(name, plain, structure, parts, parts)


def by_name(key: Shape, item: Shape, name: str) -> Shape:
    """A dict whose keys are text: a JSON object, in its own order."""
    text, only = frozenset((str,)), frozenset() if item.exact is None else frozenset((item.exact,))
    any_text = key.exact is str
    write, read = item.plain, item.structure

    def keys_out(value: dict[Any, Any]) -> Iterable[str]:
        return value if any_text and text.issuperset(map(type, value)) else map(key.plain, value)

    def plain(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise not_exactly(name, dict, value)
        if only.issuperset(map(type, value.values())):
            return dict(zip(keys_out(value), value.values(), strict=True))
        return dict(zip(keys_out(value), [write(each) for each in value.values()], strict=True))

    def structure(value: Any) -> dict[Any, Any]:
        if type(value) is not dict:
            raise Mismatch(f"{name}, as an object", came(value))
        if any_text and text.issuperset(map(type, value)):
            return {at: read(each) for at, each in value.items()}
        return {key.structure(at): read(each) for at, each in value.items()}

    def parts(value: Any) -> Iterable[Part]:
        if type(value) is not dict:
            return ()
        keys: list[Part] = [(f".keys[{short(at)}]", key, at) for at in value]
        return [*keys, *((f"[{short(at)}]", item, each) for at, each in value.items())]

    return Shape(name, plain, structure, parts, parts)


def by_key(key: Shape, item: Shape, name: str) -> Shape:
    """A dict with other keys: a list of pairs, in its own order."""

    def plain(value: Any) -> list[list[Any]]:
        if type(value) is not dict:
            raise not_exactly(name, dict, value)
        return [[key.plain(at), item.plain(each)] for at, each in value.items()]

    def structure(pairs: Any) -> dict[Any, Any]:
        if type(pairs) is not list or not all(type(pair) is list and len(pair) == 2 for pair in pairs):
            raise Mismatch(f"{name}, as a list of pairs", came(pairs))
        try:
            found = {key.structure(at): item.structure(each) for at, each in pairs}
        except TypeError as error:
            raise Mismatch(name, str(error)) from None
        if len(found) != len(pairs):
            raise Mismatch(f"{name}, no key twice", "pairs with a repeated key")
        return found

    def parts_out(value: Any) -> Iterable[Part]:
        if type(value) is not dict:
            return ()
        keys: list[Part] = [(f".keys[{short(at)}]", key, at) for at in value]
        return [*keys, *((f"[{short(at)}]", item, each) for at, each in value.items())]

    def parts_in(pairs: Any) -> Iterable[Part]:
        if type(pairs) is not list:
            return ()
        whole = [pair for pair in pairs if type(pair) is list and len(pair) == 2]
        if len(whole) != len(pairs):
            return [(f"[{i}]", NO_PAIR, pair) for i, pair in enumerate(pairs) if type(pair) is not list or len(pair) != 2]
        keys: list[Part] = [(f"[{i}][0]", key, at) for i, (at, _) in enumerate(whole)]
        return [*keys, *((f"[{i}][1]", item, each) for i, (_, each) in enumerate(whole))]

    return Shape(name, plain, structure, parts_out, parts_in)


NO_PAIR = refusing("a pair [key, value]", "something else")
_PLAIN = frozenset(cls for cls, shape in SCALARS.items() if shape.exact is not None)
_TREE = "None, bool, int, float, str, list or dict with str keys"


def _tree(value: Any) -> Any:
    cls = type(value)
    if cls in _PLAIN:
        return value
    if cls is list:
        return [_tree(each) for each in value]
    if cls is dict and all(type(at) is str for at in value):
        return {at: _tree(each) for at, each in value.items()}
    raise Mismatch(_TREE, "a dict with other keys" if cls is dict else seen(value), "declare its type instead of object")


def _tree_parts(value: Any) -> Iterable[Part]:
    if type(value) is list:
        return [(f"[{i}]", TREE, each) for i, each in enumerate(value)]
    if type(value) is dict:
        return [(f"[{short(at)}]", TREE if type(at) is str else TEXT_KEY, each) for at, each in value.items()]
    return ()


TREE = Shape("object", _tree, _tree, _tree_parts, _tree_parts, deep=True)
TEXT_KEY = refusing("a str as key", "another key")
