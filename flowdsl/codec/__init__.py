"""Values to bytes and back, exactly or not at all.

    orders = codec(list[Order])
    data = orders.encode([Order("o-1", 3)])
    assert orders.decode(data) == [Order("o-1", 3)]

Nothing is converted on the way: True is no int, a subclass is not its base, "3" is no 3. What cannot come back the same is refused, with
the path to it. A field that equals its default is left out, so that a new field with a default changes no old bytes; which is why a
default, once used, must not change. A default made by a function is always written, since it may be another tomorrow.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Generic, TypeVar, cast, final

from typing_extensions import TypeForm

from flowdsl.codec.build import converter, shape_of
from flowdsl.codec.facts import FACT
from flowdsl.codec.shape import DEPTH, Mismatch, NotJournalable, Shape, Undecodable, dumps, faults, parsed, too_deep, written

__all__ = ["Codec", "NotJournalable", "Undecodable", "codec", "converter", "digest", "encode_plain", "union_codec"]

T = TypeVar("T")


@final
class Codec(Generic[T]):
    """One type's way to bytes and back. `root` is what the paths in error messages begin with."""

    __slots__ = ("_deep", "_read", "_shape", "_write")

    def __init__(self, shape: Shape) -> None:
        self._shape, self._write, self._read, self._deep = shape, shape.plain, shape.structure, shape.deep

    def encode(self, value: T, root: str = "value") -> bytes:
        """JSON in ASCII: the same bytes for the same value, in every process. Raises `NotJournalable`."""
        try:
            plain = self._write(value)
            text = dumps(plain)
            if "\\ud" in text:
                written(plain)
        except (Mismatch, ValueError, AttributeError, RecursionError) as error:
            raise self._refusal(value, root, error) from None
        if self._deep and too_deep(text, plain):
            raise _too_deep(root)
        return text.encode()

    def decode(self, data: bytes, root: str = "value") -> T:
        """The value again. Raises `Undecodable` with all that is wrong."""
        try:
            plain = parsed(data)
        except ValueError as error:
            raise Undecodable([(root, f"expected JSON: {error}")]) from None
        except RecursionError:
            raise Undecodable([(root, "expected less nesting")]) from None
        return self.structure(plain, root)

    def plain(self, value: T, root: str = "value") -> Any:
        """The value as None, bool, int, float, str, list and dict. Raises `NotJournalable`."""
        try:
            return self._write(value)
        except (Mismatch, ValueError, AttributeError, RecursionError) as error:
            raise self._refusal(value, root, error) from None

    def structure(self, plain: Any, root: str = "value") -> T:
        """The value that such plain values stand for. Raises `Undecodable` with all that is wrong."""
        try:
            return cast(T, self._read(plain))
        except Mismatch as error:
            try:
                problems = [(path, str(fault)) for path, fault in faults(self._shape, plain, root, out=False)]
            except RecursionError:
                problems = []
            raise Undecodable(problems or [(root, str(error))]) from None
        except RecursionError:
            raise Undecodable([(root, "expected less nesting")]) from None

    def _refusal(self, value: T, root: str, error: Exception) -> NotJournalable:
        try:
            found = faults(self._shape, value, root, out=True)
        except RecursionError:
            return _too_deep(root)
        own = error if isinstance(error, Mismatch) else Mismatch(self._shape.name, str(error))
        path, fault = found[0] if found else (root, own)
        return NotJournalable(path, fault.expected, fault.got, fault.remedy)


def _too_deep(root: str) -> NotJournalable:
    return NotJournalable(root, f"at most {DEPTH} levels", "a value nested deeper, or one that holds itself", "flatten it: a list of nodes with ids")


_codecs: dict[tuple[Any, bool], Codec[Any]] = {}


def codec(form: TypeForm[T]) -> Codec[T]:
    """The codec of a type, built once. Raises `NotJournalable` for a type that the journal cannot hold."""
    return _codec(form, tagged=False)


def union_codec(form: TypeForm[T]) -> Codec[T]:
    """The same for a union that may gain members, such as the failures of an activity: tagged even while it has only one. `Never` fits nothing."""
    return _codec(form, tagged=True)


def _codec(form: Any, *, tagged: bool) -> Codec[Any]:
    try:
        known = _codecs.get((form, tagged))
    except TypeError:  # it cannot be hashed
        return Codec(shape_of(form, tagged=tagged))
    if known is None:
        known = _codecs.setdefault((form, tagged), Codec(shape_of(form, tagged=tagged)))
    return known


_facts: Codec[Any] = Codec(FACT)


def encode_plain(value: object, root: str = "value") -> bytes:
    """A fact for people to read, such as an audit entry: written by what it is, records with their class. It is not for decoding."""
    return _facts.encode(value, root)


def digest(data: bytes) -> str:
    """A fingerprint of encoded bytes: 16 characters."""
    return blake2b(data, digest_size=8).hexdigest()
