"""From a type to its shape. The registry is a cattrs converter, in which users may register hooks for their own types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Never, NoReturn, Union, get_args, get_origin

from attrs import frozen
from cattrs import Converter
from returns.result import Failure, Success

from flowdsl.codec.containers import TREE, by_key, by_name, fixed, many
from flowdsl.codec.forms import field_types, opened, runtime_class, shown
from flowdsl.codec.records import Row, declared, is_record, record
from flowdsl.codec.shape import Mismatch, NotJournalable, Shape, came, not_exactly
from flowdsl.codec.unions import RAW, optional, tag_of, union
from flowdsl.codec.values import NEVER, SCALARS, enum, limited

_SHAPES: dict[Any, Shape] = {}


@frozen
class _Strict:
    """The converter's hook for every type that nobody registered one for: this codec."""

    form: Any

    def __call__(self, value: Any, form: Any = None) -> Any:
        shape = shape_of(self.form)
        return shape.plain(value) if form is None else shape.structure(value)


def _any_form(_: Any) -> bool:
    return True


converter = Converter()
"""Strict for every type that the codec knows. For a type of your own register both hooks, before its first use: the unstructure hook
gives plain values (None, bool, int, float, str, list, dict), from which the structure hook must make an equal value again."""
converter.register_unstructure_hook_factory(_any_form, _Strict)
converter.register_structure_hook_factory(_any_form, _Strict)
for _cls in (*SCALARS, Path):  # cattrs finds hooks of classes before it asks the factories, and has lenient ones for some of these
    converter.register_unstructure_hook(_cls, _Strict(_cls))
    converter.register_structure_hook(_cls, _Strict(_cls))


def shape_of(form: Any, *, tagged: bool = False) -> Shape:
    """The shape of a type; `NotJournalable` if it has none."""
    builder = _Builder(shown(form))
    try:
        shape = builder.tagged(form) if tagged else builder.shape(form)
    except Mismatch as error:
        raise NotJournalable("".join(builder.path), error.expected, error.got, error.remedy) from None
    except RecursionError:
        raise NotJournalable(shown(form), "a type of finite depth", "one that grows inside itself", "break the cycle") from None
    _SHAPES.update(builder.made)
    return shape


class _Builder:
    """Builds a type and all that it consists of. Nothing is kept unless all can be built."""

    def __init__(self, root: str) -> None:
        self.path = [root]
        self.made: dict[Any, Shape] = {}
        self.open: list[Shape] = []

    def shape(self, form: Any, segment: str = "") -> Shape:
        try:
            known = _SHAPES.get(form) or self.made.get(form)
        except TypeError:  # metadata or a literal that cannot be hashed: built anew each time
            known = None
        if known is not None and known in self.open:
            known.deep = True
        shape = known or self._new(form, segment)
        if shape.deep and self.open:
            self.open[-1].deep = True
        return shape

    def _new(self, form: Any, segment: str) -> Shape:
        """A type may contain itself: until it is built, what refers to it goes through the placeholder."""
        cls, custom = runtime_class(form), hooked(form) is not None
        shape = Shape(shown(form), lambda value: shape.plain(value), lambda value: shape.structure(value))
        shape.cls, shape.record = None if custom and cls in RAW else cls, is_record(cls) and not custom
        with suppress(TypeError):
            self.made[form] = shape
        self.open.append(shape)
        self.path.append(segment)
        built = self._built(form)
        for name in ("plain", "structure", "parts_out", "parts_in", "exact"):
            setattr(shape, name, getattr(built, name))
        shape.cls, shape.deep = shape.cls or built.cls, shape.deep or built.deep
        self.path.pop()
        self.open.pop()
        return shape

    def _built(self, form: Any) -> Shape:
        if hooks := hooked(form):
            return _custom(form, *hooks)
        inner = opened(form)
        if inner is not form:
            return self.shape(inner)
        origin, arguments = get_origin(form), get_args(form)
        if origin in (Union, UnionType, Literal):
            return self._union(form)
        if form in (Any, object):
            return TREE
        if form in (Never, NoReturn):
            return NEVER
        return self._of_class(form, runtime_class(form), arguments)

    def _of_class(self, form: Any, cls: Any, arguments: Sequence[Any]) -> Shape:
        name = shown(form)
        if cls in SCALARS:
            return SCALARS[cls]
        if cls in (list, set, frozenset):
            return many(cls, self.shape(arguments[0] if arguments else object, "[]"), name)
        if cls is dict:
            key, item = arguments or (str, object)
            keys, items = self.shape(key, ".keys[]"), self.shape(item, "[]")
            return (by_name if keys.cls is str else by_key)(keys, items, name)
        if cls is tuple:
            if form is tuple or arguments[1:] == (...,):
                return many(tuple, self.shape(arguments[0] if arguments else object, "[]"), name)
            return fixed([self.shape(each, f"[{i}]") for i, each in enumerate(arguments)], name)
        if isinstance(cls, type) and issubclass(cls, Enum):
            return enum(cls)
        if is_record(cls):
            return record(cls, self._rows(form, cls, arguments), name)
        raise Mismatch("a type that the journal can hold", name, "use a record of plain types, or register hooks in flowdsl.codec.converter")

    def tagged(self, form: Any) -> Shape:
        """A union that stays readable when members are added: tagged even if it has only one."""
        return self._union(form, always_tagged=True)

    def _union(self, form: Any, *, always_tagged: bool = False) -> Shape:
        members, name = self._members(form), shown(form)
        if not members:
            return NEVER
        if any(member.plain is TREE.plain for member in members):
            if always_tagged or any(member.plain is not TREE.plain and member.cls not in RAW for member in members):
                raise Mismatch("members with a class of their own", "object in a union", "name the classes, or declare object alone")
            return TREE
        if not always_tagged:
            others = [member for member in members if member.cls is not NoneType]
            if len(members) == 1:
                return members[0]
            if len(others) == 1:
                return optional(others[0], name)
        tags = [tag_of(member) for member in members]
        for member, tag in zip(members, tags, strict=True):
            if member.cls is None or tags.count(tag) > 1:
                raise Mismatch("members with a class of their own", f"{tag} twice" if member.cls else tag, "put one into a record of its own")
        return union(members, name, always_tagged=always_tagged)

    def _members(self, form: Any) -> list[Shape]:
        """A union's members, unions within it dissolved, literals of one class put together; a literal whose whole class is a member is dropped."""
        forms: list[Any] = []
        literals: dict[type, list[Any]] = {}
        waiting, names = [form], list[Any]()
        while waiting:
            each = waiting.pop(0)
            inner = each if hooked(each) else opened(each)
            if inner is not each:
                if each not in names:  # an alias that is a member of itself adds nothing
                    waiting.insert(0, inner)
                names.append(each)
            elif get_origin(each) in (Union, UnionType):
                waiting[:0] = get_args(each)
            elif get_origin(each) is Literal:
                for value in get_args(each):
                    literals.setdefault(type(value), []).append(value)
            elif each not in (Never, NoReturn) and each not in forms:
                forms.append(each)
        members = [self.shape(each) for each in forms]
        whole = {member.cls for member in members}
        return members + [limited(self.shape(cls), values) for cls, values in literals.items() if cls not in whole]

    def _rows(self, form: Any, cls: Any, arguments: Sequence[Any]) -> list[Row]:
        if cls in (Success, Failure):
            types: dict[str, Any] = {"_inner_value": arguments[0] if arguments else object}
        else:
            types = field_types(form)
        rows: list[Row] = []
        for each in declared(cls):
            if each.name not in types:
                raise Mismatch("a type for every field", f"{cls.__name__}.{each.name} without annotation", "annotate it")
            rows.append(Row(each, self.shape(types[each.name], f".{each.key}")))
        return rows


def hooked(form: Any) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]] | None:
    """The hooks that a user registered for this type."""
    try:
        write, read = converter.get_unstructure_hook(form), converter.get_structure_hook(form)
    except TypeError:  # it cannot be hashed
        return None
    strict = isinstance(write, _Strict), isinstance(read, _Strict)
    if any(strict) and not all(strict):
        raise Mismatch("an unstructure and a structure hook", f"only one for {shown(form)}", "register the other one too")
    return None if all(strict) else (write, read)


def _custom(form: Any, write: Callable[[Any], Any], read: Callable[[Any, Any], Any]) -> Shape:
    """A user's own type. What its hooks raise is a mismatch."""
    name = shown(form)

    def plain(value: Any) -> Any:
        if isinstance(form, type) and not isinstance(value, form):
            raise not_exactly(name, form, value)
        try:
            found = write(value)
        except RecursionError:
            raise
        except Exception as error:
            raise Mismatch(name, f"{type(error).__name__}: {error}", "its hook refused it") from None
        return TREE.plain(found)

    def structure(value: Any) -> Any:
        try:
            return read(value, form)
        except RecursionError:
            raise
        except Exception as error:
            raise Mismatch(name, f"{came(value)} ({type(error).__name__}: {error})") from None

    return Shape(name, plain, structure, deep=True)
