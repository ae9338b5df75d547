"""Values to bytes and back: exactly, or refused with the path to what does not fit."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from dataclasses import field as data_field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, Never, NewType, NoReturn, Optional, TypeVar, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
from attrs import Factory, field, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from returns.result import Failure, Result, Success
from typing_extensions import TypeAliasType

from flowdsl.codec import Codec, NotJournalable, Undecodable, codec, converter, digest, encode_plain, union_codec
from flowdsl.codec.shape import DEPTH
from flowdsl.errors import FlowError

T = TypeVar("T")
U = TypeVar("U")
Bounded = TypeVar("Bounded", bound=int)
Either = TypeVar("Either", int, str)


class Color(Enum):
    RED = "red"
    BLUE = 2
    CRIMSON = "red"  # noqa: PIE796


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Unit(StrEnum):
    KG = "kg"
    LB = "lb"


class Access(Flag):
    READ = 1
    WRITE = 2
    RUN = 4


@frozen
class Line:
    sku: str
    count: int
    gift: bool = False


@frozen
class Person:
    name: str
    lines: list[Line] = Factory(list)


@frozen
class Household:
    people: tuple[Person, ...]
    tags: dict[str, int] = Factory(dict)


@frozen
class Nothing:
    pass


@attrs.define
class Mutable:
    x: float
    _hidden: str = field(default="h", kw_only=True)
    other: int = field(default=0, alias="another")


@frozen
class Base:
    id: int


@frozen
class Sub(Base):
    name: str


@frozen
class Node:
    value: int
    next: Node | None = None


@frozen
class Leaf:
    at: int


@frozen
class Fork:
    left: Fork | Leaf
    right: Fork | Leaf


@frozen
class Box(Generic[T]):
    content: T
    spare: T | None = None


@frozen
class Both(Box[list[T]], Generic[T, U]):
    mine: T = field(kw_only=True)
    yours: dict[str, U] = field(kw_only=True)


@frozen
class IntBox(Box[int]):
    pass


@frozen
class Chain(Generic[T]):
    head: T
    tail: Chain[T] | None = None


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0
    labels: list[str] = data_field(default_factory=list)


@dataclass
class Pile(Generic[T]):
    items: list[T]


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Twin(NamedTuple, Generic[T]):
    one: T
    two: T


UserId = NewType("UserId", str)
Cents = NewType("Cents", int)
Maybe = TypeAliasType("Maybe", T | None, type_params=(T,))
Json = TypeAliasType("Json", "bool | int | float | str | list[Json] | dict[str, Json] | None")
OrInt = TypeAliasType("OrInt", int | U, type_params=(U,))
Outcome = TypeAliasType("Outcome", Success[T] | Failure[U], type_params=(T, U))


def canon(value: Any) -> Any:
    """A value with all that the codec promises to keep, for comparison: `==` takes 1 for True, 0.0 for -0.0, and NaN for nothing."""
    cls = type(value)
    if cls is float:
        return "float", "nan" if math.isnan(value) else value.hex()
    if cls is Decimal:
        return "Decimal", value.as_tuple()
    if cls in (datetime, time):
        zone = value.tzinfo
        named = zone.key if isinstance(zone, ZoneInfo) else zone and (str(zone.utcoffset(None)), zone.tzname(None))
        return cls.__name__, value.replace(tzinfo=None).isoformat(), value.fold, type(zone).__name__, named
    if cls in (list, tuple):
        return cls.__name__, [canon(each) for each in value]
    if cls in (set, frozenset):
        return cls.__name__, sorted((canon(each) for each in value), key=repr)
    if cls is dict:
        return "dict", [(canon(key), canon(each)) for key, each in value.items()]
    if cls in (Success, Failure):
        return cls.__name__, canon(value._inner_value)
    if attrs.has(cls):
        return cls.__name__, [canon(getattr(value, each.name)) for each in attrs.fields(cls)]
    if hasattr(cls, "__dataclass_fields__"):
        return cls.__name__, [canon(each) for each in vars(value).values()]
    if isinstance(value, tuple):
        return cls.__name__, [canon(each) for each in value]
    return cls.__name__, value


# Types and their values, generated together.

offsets = st.integers(-86_399, 86_399).map(lambda seconds: timedelta(seconds=seconds))
fixed_zones: st.SearchStrategy[tzinfo] = st.one_of(
    st.just(UTC), st.builds(timezone, offsets), st.builds(timezone, offsets, st.sampled_from(["CET", "a b", "ü", "UTC"]))
)
zones = st.one_of(st.none(), fixed_zones, st.sampled_from(["Europe/Berlin", "America/New_York", "UTC", "Asia/Kathmandu"]).map(ZoneInfo))
folds = st.sampled_from([0, 1])
texts = st.one_of(st.text(), st.sampled_from(["", "$", "v", "\0", "\ud800", "\udc00x", "é😀", '"\\', "\u2028", "\x7f", "\\ud83d"]))
numbers = st.one_of(st.integers(), st.sampled_from([0, 1, -1, 2**63, 2**200, -(10**4000), 10**4300 - 1]))
floats = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, 5e-324, 1e308]))
SCALARS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (None, st.none()),
    (bool, st.booleans()),
    (int, numbers),
    (float, floats),
    (str, texts),
    (bytes, st.binary()),
    (datetime, st.builds(lambda at, zone, fold: at.replace(tzinfo=zone, fold=fold), st.datetimes(), zones, folds)),
    (date, st.dates()),
    (time, st.builds(lambda at, zone, fold: at.replace(tzinfo=zone, fold=fold), st.times(), zones, folds)),
    (timedelta, st.timedeltas()),
    (Decimal, st.one_of(st.decimals(allow_nan=False), st.sampled_from(list(map(Decimal, ["NaN", "-NaN12", "Infinity", "-0", "1E+5", "1.50"]))))),
    (UUID, st.uuids()),
    (Color, st.sampled_from(Color)),
    (Level, st.sampled_from(Level)),
    (Unit, st.sampled_from(Unit)),
    (Access, st.sampled_from([Access(0), Access.READ, Access.READ | Access.RUN])),
    (Literal["a", 1, True, None, b"x", Color.RED], st.sampled_from(["a", 1, True, None, b"x", Color.RED])),
    (UserId, texts),
    (Annotated[int, "positive"], numbers),
    (Nothing, st.just(Nothing())),
    (Pair, st.builds(Pair, numbers, texts)),
    (Sub, st.builds(Sub, numbers, texts)),
    (Mutable, st.builds(Mutable, floats, hidden=texts, another=numbers)),
    (Point, st.builds(Point, numbers, floats, st.lists(texts, max_size=2))),
    (object, st.deferred(lambda: trees)),
    (Json, st.deferred(lambda: trees)),
    (Household, st.deferred(lambda: households)),
    (Fork, st.deferred(lambda: forks)),
]
trees = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, floats, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)
lines = st.builds(Line, texts, numbers, st.booleans())
households = st.builds(
    Household, st.lists(st.builds(Person, texts, st.lists(lines, max_size=2)), max_size=2).map(tuple), st.dictionaries(texts, numbers)
)
forks = st.recursive(st.builds(Fork, st.builds(Leaf, numbers), st.builds(Leaf, numbers)), lambda inner: st.builds(Fork, inner, inner), max_leaves=4)
HASHABLE = [pair for pair in SCALARS if pair[0] not in (object, Json, Household, Mutable, Point)]
# Members of one union: no two with the same class.
MEMBERS = [pair for pair in SCALARS if pair[0] not in (object, Json, UserId) and not str(pair[0]).startswith(("typing.Ann", "typing.Lit"))]


@st.composite
def kinds(draw: st.DrawFn, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    """A type, and a strategy for its values."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(SCALARS))
    form, values = draw(kinds(depth - 1))
    key, keys = draw(st.sampled_from(HASHABLE))
    other, others = draw(kinds(depth - 1))
    match draw(st.integers(0, 14)):
        case 0:
            return list[form], st.lists(values, max_size=3)
        case 1:
            return tuple[form, ...], st.lists(values, max_size=3).map(tuple)
        case 2:
            return tuple[form, other], st.tuples(values, others)
        case 3:
            return set[key], st.sets(keys, max_size=4)
        case 4:
            return frozenset[key], st.frozensets(keys, max_size=4)
        case 5:
            return dict[key, form], st.dictionaries(keys, values, max_size=3)
        case 6:
            return Mapping[str, form], st.dictionaries(texts, values, max_size=3)
        case 7:
            return form | None if isinstance(form, type) else Optional[form], st.one_of(st.none(), values)  # noqa: UP045
        case 8:
            members = draw(st.lists(st.sampled_from(MEMBERS), min_size=2, max_size=5))
            rest = [(list[form], st.lists(values, max_size=2)), (Box[form], st.builds(Box, values, values))]
            forms, strategies = zip(*members, *rest, strict=True)
            return Union[forms], st.one_of(strategies)  # noqa: UP007
        case 9:
            return Box[form], st.builds(Box, values, st.none() | values)
        case 10:
            return Both[form, other], st.builds(Both, st.lists(values, max_size=2), mine=values, yours=st.dictionaries(texts, others, max_size=2))
        case 11:
            return Result[form, other], st.one_of(st.builds(Success, values), st.builds(Failure, others))
        case 12:
            return Outcome[form, other], st.one_of(st.builds(Success, values), st.builds(Failure, others))
        case 13:
            return Twin[form], st.builds(Twin, values, values)
        case _:
            return Maybe[form], st.one_of(st.none(), values)


quick = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(kinds().flatmap(lambda kind: st.tuples(st.just(kind[0]), kind[1])))
def test_every_value_comes_back_exactly(case: tuple[Any, Any]) -> None:
    form, value = case
    made = codec(form)
    try:
        data = made.encode(value)
    except NotJournalable as error:
        assert "high surrogate" in error.got  # the only text that JSON cannot hold
        return
    again = made.decode(data)
    assert canon(again) == canon(value)
    assert made.encode(again) == data
    assert canon(made.structure(made.plain(value))) == canon(value)
    encode_plain(value)


@quick
@given(
    st.lists(st.sampled_from(MEMBERS), min_size=1, max_size=4).flatmap(
        lambda members: st.tuples(st.just(members), st.one_of([m[1] for m in members]))
    )
)
def test_a_tagged_union_grows_without_a_change_of_bytes(case: tuple[Any, Any]) -> None:
    members, value = case
    forms = [form for form, _ in members]
    few, more = union_codec(Union[*forms]), union_codec(Union[*forms, Leaf, list[int]])
    data = few.encode(value)
    assert "$" in json.loads(data)
    assert more.encode(value) == data
    assert canon(more.decode(data)) == canon(few.decode(data)) == canon(value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
@quick
def test_hostile_input_is_refused_or_read_never_anything_else(plain: Any) -> None:
    for form, _ in SCALARS:
        made: Codec[Any] = codec(form)
        try:
            value = made.decode(json.dumps(plain).encode())
        except Undecodable as error:
            assert error.problems and all(path.startswith("value") for path, _ in error.problems)
        else:
            assert canon(made.decode(made.encode(value))) == canon(value)


@given(st.binary())
def test_bytes_that_are_no_json(data: bytes) -> None:
    try:
        codec(object).decode(data)
    except Undecodable as error:
        assert error.problems[0][0] == "value"


@pytest.mark.parametrize(
    "data", [b"", b"nul", b"[1", b"[1]]", b"{'a':1}", b"\xff", b"\xef\xbb\xbf1", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000]
)
def test_input_that_is_no_json_names_the_root(data: bytes) -> None:
    with pytest.raises(Undecodable) as caught:
        codec(object).decode(data, "--input")
    assert [path for path, _ in caught.value.problems] == ["--input"]


def test_space_around_json_is_allowed() -> None:
    assert codec(list[int]).decode(b" \n[1, 2]\t\r\n") == [1, 2]


# How it is written.


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (int, 3, "3"),
        (float, -0.0, "-0.0"),
        (str, "é\0\ud800", '"\\u00e9\\u0000\\ud800"'),
        (bytes, b"\xff", '"/w=="'),
        (datetime, datetime(2026, 1, 31, 9, 30, tzinfo=UTC), '"2026-01-31T09:30:00+00:00"'),
        (datetime, datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1), '"2026-10-25T02:30:00[Europe/Berlin][fold=1]"'),
        (datetime, datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET")), '"2026-01-01T00:00:00+01:00[name=CET]"'),
        (timedelta, timedelta(days=-1, microseconds=5), "[-1,0,5]"),
        (Decimal, Decimal("1.50"), '"1.50"'),
        (Color, Color.CRIMSON, '"RED"'),
        (Access, Access.READ | Access.RUN, "5"),
        (set[int], {3, 10, 2}, "[10,2,3]"),
        (dict[str, int], {"b": 1, "a": 2}, '{"b":1,"a":2}'),
        (dict[Literal["a", "b"], int], {"b": 1}, '{"b":1}'),
        (dict[int | bool, str], {2: "x", True: "y"}, '[[2,"x"],[true,"y"]]'),
        (int | str | None, "3", '"3"'),
        (Line | None, Line("a", 1), '{"sku":"a","count":1}'),
        (Line | int, Line("a", 1), '{"$":"Line","sku":"a","count":1}'),
        (Line | int, 3, "3"),
        (list[int] | None, [1], "[1]"),
        (list[int] | int, [1], '{"$":"list","v":[1]}'),
        (dict[str, int] | int, {"$": 1}, '{"$":"dict","v":{"$":1}}'),
        (Result[int, Line], Success(3), '{"$":"Success","v":3}'),
        (Mutable, Mutable(1.0, hidden="x", another=2), '{"x":1.0,"hidden":"x","another":2}'),
        (Color | str, Color.RED, '{"$":"Color","v":"RED"}'),
    ],
)
def test_how_it_is_written(form: Any, value: Any, text: str) -> None:
    assert codec(form).encode(value).decode() == text
    assert canon(codec(form).decode(text.encode())) == canon(value)


def test_a_tagged_union_of_one() -> None:
    assert union_codec(int).encode(3) == b'{"$":"int","v":3}'
    assert union_codec(Line).encode(Line("a", 1)) == b'{"$":"Line","sku":"a","count":1}'
    assert union_codec(None).encode(None) == b'{"$":"None","v":null}'
    assert union_codec(Literal["a"]).encode("a") == b'{"$":"str","v":"a"}'
    assert union_codec(Line).decode(b'{"count":1,"$":"Line","sku":"a"}') == Line("a", 1)


@pytest.mark.parametrize("form", [Never, NoReturn])
def test_never_fits_nothing(form: Any) -> None:
    for made in (codec(form), union_codec(form)):
        with pytest.raises(NotJournalable):
            made.encode(None)
        with pytest.raises(Undecodable):
            made.decode(b"null")


def test_never_vanishes_from_a_union() -> None:
    assert codec(int | None | OrInt[Never]).encode(None) == b"null"
    assert codec(Outcome[int, Never]).encode(Success(1)) == b'{"$":"Success","v":1}'


def test_the_same_codec_each_time() -> None:
    assert codec(list[Line]) is codec(list[Line])
    assert codec(list[Line]) is not union_codec(list[Line])
    assert codec(Literal[1]) is not codec(Literal[True])
    assert codec(Annotated[int, []]).encode(3) == b"3"  # metadata that cannot be hashed


def test_digest() -> None:
    assert digest(b"x") == digest(b"x") != digest(b"y")
    assert len(digest(b"")) == 16


HASHED = """
import sys
from flowdsl.codec import codec, digest, encode_plain
print(digest(codec(set[str]).encode({"a", "b", "c", "dd"})))
print(digest(codec(frozenset[tuple[int, str]]).encode(frozenset({(1, "a"), (2, "b"), (10, "c")}))))
print(digest(codec(dict[str, frozenset[str] | int]).encode({"z": frozenset("qwertz"), "a": 1})), digest(encode_plain({"s": {"x", "y", "z"}})))
"""


def test_no_hash_seed_has_a_say() -> None:
    runs = {
        subprocess.run(
            [sys.executable, "-c", HASHED], env={**os.environ, "PYTHONHASHSEED": str(seed)}, capture_output=True, check=True, text=True
        ).stdout
        for seed in range(4)
    }
    assert len(runs) == 1


# What is refused when written.


@frozen
class Holder:
    item: Any


class Text(str):
    pass


class Stamp(datetime):
    pass


@pytest.mark.parametrize(
    ("form", "value", "path", "got"),
    [
        (int, True, "value", "True"),
        (int, "3", "value", "str"),
        pytest.param(int, 10**4300, "value", "a longer one", id="4301 digits"),
        (int, Level.LOW, "value", "Level.LOW"),
        (float, 3, "value", "int 3"),
        (bool, 1, "value", "int 1"),
        (str, None, "value", "None"),
        (str, Text("x"), "value", "Text"),
        (str, "\ud83d\ude00", "value", "high surrogate"),
        (bytes, bytearray(b"x"), "value", "bytearray"),
        (datetime, Stamp(2026, 1, 1), "value", "Stamp"),
        (date, datetime(2026, 1, 1), "value", "datetime"),
        (Color, "red", "value", "str"),
        (Literal[1, 2], True, "value", "True"),
        (Literal["a"], "b", "value", "'b'"),
        (list[int], (1,), "value", "tuple"),
        (list[int], [1, True], "value[1]", "True"),
        (list[Any], [1, [None, {"a": (1,)}]], "value[1][1]['a']", "tuple"),
        (tuple[int, str], (1,), "value", "a tuple of 1"),
        (tuple[int, str], (1, 2), "value[1]", "int 2"),
        (tuple[int, ...], (1, None), "value[1]", "None"),
        (dict[str, int], OrderedDict(a=1), "value", "OrderedDict"),
        (dict[str, int], defaultdict(int), "value", "defaultdict"),
        (dict[str, int], {1: 1}, "value.keys[1]", "int 1"),
        (dict[str, int], {"a": "b"}, "value['a']", "str"),
        (dict[Color, int], {Color.RED: 1.0}, "value[<Color.RED: 'red'>]", "float 1.0"),
        (dict[str, str], {"a": "\ud83d\ude00"}, "value['a']", "high surrogate"),
        (object, {1: 2}, "value[1]", "another key"),
        (object, [{1, 2}], "value[0]", "set"),
        (Base, Sub(1, "a"), "value", "Sub, a subclass"),
        (Base | None, Sub(1, "a"), "value", "Sub, a subclass"),
        (Base | Line, Sub(1, "a"), "value", "Sub, a subclass"),
        (int | str, 1.0, "value", "float 1.0"),
        (Line | Leaf, Leaf("x"), "value.at", "str"),
        (Household, Household((Person("a"), Person("b", [Line("s", 1), Line("t", None)]))), "value.people[1].lines[1].count", "None"),
        (Box[int], Box("x"), "value.content", "str"),
        (Both[int, str], Both(content=[1, "x"], mine=1, yours={}), "value.content[1]", "str"),
        (Success[int], Success("x"), "value.v", "str"),
        (Result[int, str], Failure(3), "value.v", "int 3"),
        (Point, Point(1, 2), "value.y", "int 2"),
        (Pair, (1, "r"), "value", "tuple"),
    ],
)
def test_what_is_not_exactly_of_its_type_is_refused_with_its_path(form: Any, value: Any, path: str, got: str) -> None:
    with pytest.raises(NotJournalable) as caught:
        codec(form).encode(value)
    error = caught.value
    assert (error.path, got in error.got) == (path, True), error
    assert isinstance(error, FlowError) and path in str(error) and error.remedy[1:] in str(error)
    if got != "high surrogate" and got != "a longer one":
        with pytest.raises(NotJournalable):
            codec(form).plain(value)


def test_the_root_of_a_path_is_the_callers() -> None:
    with pytest.raises(NotJournalable, match=r"^result\.people\[0\]\.name cannot be journaled: expected str, got int 3\. "):
        codec(Household).encode(Household((Person(3),)), "result")


def test_a_subclass_is_told_to_use_a_union() -> None:
    with pytest.raises(NotJournalable, match=r"declare Base \| Sub"):
        codec(list[Base]).encode([Sub(1, "a")])


class Elsewhere(tzinfo):
    def utcoffset(self, at: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def tzname(self, at: datetime | None) -> str:
        return "elsewhere"

    def dst(self, at: datetime | None) -> None:
        return None


ODD = [timezone(timedelta(hours=1), "a]b"), timezone(timedelta(hours=1), ""), timezone(timedelta(microseconds=1))]


@pytest.mark.parametrize("zone", [Elsewhere(), *ODD])
def test_a_zone_that_cannot_be_named_is_refused(zone: tzinfo) -> None:
    with pytest.raises(NotJournalable, match="zone of zoneinfo"):
        codec(datetime).encode(datetime(2026, 1, 1, tzinfo=zone))


@pytest.mark.parametrize("size", [DEPTH + 1, 2_000, 100_000])
def test_depth_is_refused_never_a_recursion_error(size: int) -> None:
    node, tree = None, []
    for i in range(size):
        node, tree = Node(i, node), [tree]
    for form, value in ((Node, node), (object, tree), (Json, tree), (Box[object], Box(tree))):
        with pytest.raises(NotJournalable, match="nested deeper"):
            codec(form).encode(value)
    with pytest.raises(NotJournalable, match="nested deeper"):
        encode_plain(node)


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotJournalable, match="holds itself"):
        codec(object).encode(loop)


def test_what_was_written_can_be_read_from_a_deep_call() -> None:
    node = None
    for i in range(DEPTH):
        node = Node(i, node)
    data = codec(Node).encode(node)

    def at(depth: int) -> Node:
        return at(depth - 1) if depth else codec(Node).decode(data)

    assert at(400) == node


def test_wide_is_not_deep() -> None:
    value = [Node(i, Node(i)) for i in range(1000)]
    assert codec(list[Node]).decode(codec(list[Node]).encode(value)) == value


# What is refused when read.


def problems(form: Any, text: str) -> dict[str, str]:
    with pytest.raises(Undecodable) as caught:
        codec(form).decode(text.encode(), "input")
    return dict(caught.value.problems)


def test_all_problems_at_once() -> None:
    found = problems(
        Household,
        '{"people": [{"name": 3, "lines": [{"sku": "a", "count": "1"}, {"skuu": "b", "count": 1, "gift": false}]}, []], "tags": {"a": 1.0}, "x": 1}',
    )
    assert found == {
        "input.people[0].name": "expected str, got the number 3",
        "input.people[0].lines[0].count": "expected int, got the text '1'",
        "input.people[0].lines[1].skuu": "expected one of the fields of Line, got 'skuu'; did you mean 'sku'?",
        "input.people[0].lines[1].sku": "expected str, got nothing: the field is missing",
        "input.people[1]": "expected Person, as an object, got a list",
        "input.tags['a']": "expected int, got the number 1.0",
        "input.x": "expected one of the fields of Household, got 'x'",
    }


def test_the_message_lists_the_problems() -> None:
    with pytest.raises(Undecodable) as caught:
        codec(list[int]).decode(json.dumps(["x"] * 25).encode())
    assert len(caught.value.problems) == 25
    assert "\n  - value[0]: expected int, got the text 'x'" in str(caught.value) and "and 5 more" in str(caught.value)


@pytest.mark.parametrize(
    ("form", "text", "path"),
    [
        (int, "true", "input"),
        (int, "1.0", "input"),
        (int, '"1"', "input"),
        (float, "1", "input"),
        (bool, "1", "input"),
        (str, "1", "input"),
        (None, "0", "input"),
        (bytes, '"=x"', "input"),
        (datetime, '"yesterday"', "input"),
        (datetime, '"2026-01-01T00:00:00[Nowhere/Land]"', "input"),
        (datetime, '"2026-01-01T00:00:00[../../etc/passwd]"', "input"),
        (datetime, '"2026-01-01T00:00:00+01:00[Europe/Berlin]"', "input"),
        (datetime, '"2026-01-01T00:00:00[name=X]"', "input"),
        (datetime, '"2026-01-01T00:00:00[America]"', "input"),
        (timedelta, "[1, 2]", "input"),
        (timedelta, "[9999999999, 0, 0]", "input"),
        (Decimal, '"1,5"', "input"),
        (Decimal, "1.5", "input"),
        (Decimal, '" 1_0"', "input"),
        (Decimal, '"1E+99999999999999999999"', "input"),
        (set[Mutable], '[{"x": 1.0}]', "input"),
        (UUID, '"{12345678-1234-5678-1234-567812345678}"', "input"),
        (Color, '"red"', "input"),
        (Access, "64", "input"),
        (Literal["a", "b"], '"c"', "input"),
        (Literal[1], "true", "input"),
        (set[int], "[1, 1]", "input"),
        (set[int | bool], "[1, true]", "input"),
        (dict[int, int], "[[1, 2], [1, 3]]", "input"),
        (dict[int, int], "[[1]]", "input[0]"),
        (dict[int, int], '[["1", 2]]', "input[0][0]"),
        (dict[int, int], '{"1": 2}', "input"),
        (tuple[int, str], "[1]", "input"),
        (int | str, "null", "input"),
        (Line | Leaf, '{"sku": "a", "count": 1}', "input"),
        (Line | Leaf, '{"$": "Lime", "at": 1}', "input"),
        (Line | Leaf, '{"$": ["Line"], "at": 1}', "input"),
        (Line | Leaf, '{"$": "Leaf", "at": "1"}', "input.at"),
        (list[int] | int, '{"$": "list", "v": [1], "w": 1}', "input"),
        (list[int] | int, '{"$": "list", "v": ["1"]}', "input[0]"),
        (Result[int, str], '{"$": "Success"}', "input.v"),
        (Pair, '{"left": 1, "right": 2}', "input.right"),
        (Maybe[int], '"x"', "input"),
    ],
)
def test_nothing_is_converted_on_the_way_in(form: Any, text: str, path: str) -> None:
    assert list(problems(form, text)) == [path]


def test_an_unknown_member_is_suggested() -> None:
    assert problems(Line | Leaf | int, '{"$": "Lime"}')["input"] == (
        "expected Line | Leaf | int, as int or an object with \"$\": Line, Leaf, got \"$\": the text 'Lime'; did you mean 'Line'?"
    )
    assert "did you mean 'RED'?" in problems(Color, '"REDD"')["input"]


def test_a_validator_has_its_say() -> None:
    assert "ValueError" in problems(list[Positive], '[{"n": 1}, {"n": -1}]')["input[1]"]


@frozen
class Positive:
    n: int = field(validator=attrs.validators.gt(0))


def test_keys_of_plain_values_are_checked_too() -> None:
    with pytest.raises(Undecodable):
        codec(dict[str, int]).structure({1: 1})
    with pytest.raises(Undecodable):
        codec(Line).structure({1: 1, "sku": "a", "count": 1})


# Defaults.


@frozen
class V1:
    a: int


@frozen
class V1Box:
    n: int = 3


@frozen
class Defaults:
    one: int | bool | float = 1
    zero: float = 0.0
    nan: float = math.nan
    items: list[int] = Factory(list)
    line: Line = Line("x", 1)
    box: V1Box = Factory(V1Box)
    odd: int = None


def test_a_new_field_with_a_default_changes_no_bytes() -> None:
    old = codec(V1).encode(V1(3))

    @frozen
    class Later:
        a: int
        flag: bool = False
        many: list[int] = Factory(list)
        box: V1Box = Factory(V1Box)
        when: float = math.nan

    @dataclass
    class Data:
        a: int
        many: dict[str, int] = data_field(default_factory=dict)

    for cls in (Later, Data):
        made: Codec[Any] = codec(cls)
        assert made.encode(cls(3)) == old
        assert canon(made.decode(old)) == canon(cls(3))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "{}"),
        ({"one": True}, '{"one":true}'),
        ({"one": 1.0}, '{"one":1.0}'),
        ({"zero": -0.0}, '{"zero":-0.0}'),
        ({"nan": float("nan")}, "{}"),
        ({"items": [1]}, '{"items":[1]}'),
        ({"line": Line("x", 1)}, "{}"),
        ({"line": Line("x", 2)}, '{"line":{"sku":"x","count":2}}'),
        ({"box": V1Box(4)}, '{"box":{"n":4}}'),
    ],
)
def test_only_exactly_the_default_is_left_out(change: dict[str, Any], text: str) -> None:
    value = Defaults(**{"odd": 1, **change})
    assert codec(Defaults).encode(value).decode().replace(',"odd":1', "").replace('"odd":1', "") == text
    assert canon(codec(Defaults).decode(codec(Defaults).encode(value))) == canon(value)


def test_a_default_that_its_type_forbids_is_refused_like_any_value() -> None:
    with pytest.raises(NotJournalable, match=r"value\.odd"):
        codec(Defaults).encode(Defaults())


@frozen
class Stamped:
    on: date = Factory(date.today)
    n: int = Factory(lambda: 3)
    m: int = field()

    @m.default
    def _m(self) -> int:
        return self.n


@frozen
class Around:
    inner: Stamped = Factory(Stamped)


def test_what_a_function_makes_is_always_written() -> None:
    value = Around()
    data = codec(Around).encode(value)
    assert set(json.loads(data)["inner"]) == {"on", "n", "m"}
    assert codec(Around).decode(data) == value


def test_a_converter_that_would_change_the_value_again() -> None:
    @frozen
    class Price:
        cents: int = field(converter=lambda euros: euros * 100)

    @frozen
    class Names:
        of: tuple[str, ...] = field(converter=tuple)

    value = Names(["a"])
    assert codec(Names).decode(codec(Names).encode(value)) == value
    with pytest.raises(NotJournalable, match=r"value\.cents.*converter"):
        codec(Price).encode(Price(3))


# Types.


def test_recursive_types() -> None:
    chain = Chain("a", Chain("b"))
    assert codec(Chain[str]).decode(codec(Chain[str]).encode(chain)) == chain
    with pytest.raises(NotJournalable, match=r"value\.tail\.head"):
        codec(Chain[str]).encode(Chain("a", Chain(1)))
    fork = Fork(Leaf(1), Fork(Leaf(2), Leaf(3)))
    assert codec(Fork).decode(codec(Fork).encode(fork)) == fork


def test_generics() -> None:
    assert codec(Box[int]).decode(b'{"content":1}') == Box(1)
    assert codec(IntBox).decode(b'{"content":1}') == IntBox(1)
    assert problems(IntBox, '{"content":"x"}')["input.content"] == "expected int, got the text 'x'"
    assert problems(Box[Box[str]], '{"content":{"content":1}}') == {"input.content.content": "expected str, got the number 1"}
    assert codec(Box).encode(Box([1, {"a": None}])) == b'{"content":[1,{"a":null}]}'
    both = Both([1], mine=2, yours={"a": "b"})
    assert codec(Both[int, str]).decode(codec(Both[int, str]).encode(both)) == both
    assert problems(Both[int, str], '{"content":["x"],"mine":"y","yours":{"a":1}}').keys() == {"input.content[0]", "input.mine", "input.yours['a']"}
    assert codec(Pile[Color]).decode(b'{"items":["RED"]}') == Pile([Color.RED])


def test_a_class_in_a_function_may_name_itself() -> None:
    @frozen
    class Local:
        n: int
        next: Local | None = None

    assert codec(Local).decode(b'{"n":1,"next":{"n":2}}') == Local(1, Local(2))


def test_an_exception_that_is_a_record() -> None:
    @attrs.define
    class Boom(Exception):
        code: int

    data = union_codec(Boom).encode(Boom(3))
    assert union_codec(Boom).decode(data).code == 3


def test_a_field_that_was_never_set() -> None:
    with pytest.raises(NotJournalable, match="no attribute"):
        codec(Leaf).encode(Leaf.__new__(Leaf))


def test_type_variables_stand_for_their_bounds() -> None:
    @frozen
    class Limited(Generic[Bounded, Either]):
        a: Bounded
        b: Either

    assert problems(Limited, '{"a":"x","b":1.0}').keys() == {"input.a", "input.b"}


def test_names_of_types() -> None:
    assert codec(Final[int]).encode(1) == b"1"
    assert codec(list[Cents]).encode([Cents(1)]) == b"[1]"
    assert codec(UserId | Cents).decode(b'"a"') == "a"
    assert codec(Maybe[Maybe[Line]]).decode(b"null") is None
    assert codec(Literal["a"] | Literal["b"] | None).decode(b'"b"') == "b"
    assert codec(Literal["a"] | str).decode(b'"zzz"') == "zzz"
    assert codec(tuple[()]).decode(b"[]") == ()
    assert problems(tuple[()], "[1]").keys() == {"input"}
    assert codec(tuple).decode(b"[1]") == (1,)
    assert codec(Within).decode(b"1") == 1
    assert union_codec(Within).decode(b'{"$":"int","v":1}') == 1
    assert codec(dict).decode(b'{"a":[1]}') == {"a": [1]}
    assert codec(Any | None).encode({"a": None}) == b'{"a":null}'


class Circle:
    __slots__ = ("r",)

    def __init__(self, r: int) -> None:
        self.r = r


@frozen
class Unset:
    a: int
    b: int = field(init=False, default=1)


@dataclass
class Unset2:
    a: int
    b: int = data_field(init=False, default=1)


@dataclass
class Init:
    a: int
    b: InitVar[int]

    def __post_init__(self, b: int) -> None:
        pass


@attrs.define(init=False)
class OwnInit:
    a: int

    def __init__(self, b: int) -> None:
        self.a = b


Bare = attrs.make_class("Bare", ["x"])
Itself = TypeAliasType("Itself", "Itself")
Within = TypeAliasType("Within", "Within | int")
OtherLine = attrs.make_class("Line", {"x": attrs.field(type=int)})


@frozen
class Deep:
    inner: dict[str, list[Box[Path | None]]]


@frozen
class Lost:
    x: Missing  # noqa: F821


@pytest.mark.parametrize(
    ("form", "path", "got"),
    [
        (Circle, "Circle", "Circle"),
        (Deep, "Deep.inner[][].content", "Path"),
        (Sequence[int], "Sequence[int]", "Sequence"),
        (complex, "complex", "complex"),
        (Path, "Path", "Path"),
        (Text, "Text", "Text"),
        (Unset, "Unset", "Unset.b"),
        (Unset2, "Unset2", "Unset2.b"),
        (Init, "Init", "Init.b"),
        (OwnInit, "OwnInit", "OwnInit.a"),
        (Bare, "Bare", "without annotation"),
        (Lost, "Lost", "Missing"),
        (Line | OtherLine, "Line | Line", "Line twice"),
        (list[int] | list[str], "list[int] | list[str]", "list twice"),
        (list[int] | Any, "list[int] | Any", "object in a union"),
        (type, "type", "type"),
        ([int], "[<class 'int'>]", "int"),
        ("Line", "'Line'", "Line"),
        (Itself, "Itself", "Itself"),
    ],
)
def test_a_type_that_cannot_be_journaled_is_refused_when_its_codec_is_built(form: Any, path: str, got: str) -> None:
    for _ in range(2):  # nothing half-built stays behind
        with pytest.raises(NotJournalable) as caught:
            codec(form)
        assert (caught.value.path, got in caught.value.got) == (path, True), caught.value


@frozen
class Growing(Generic[T]):
    inner: Growing[list[T]] | None = None


def test_a_type_without_end_is_refused() -> None:
    with pytest.raises(NotJournalable, match="grows inside itself"):
        codec(Growing[int])


class Ring(Circle):
    __slots__ = ()


def test_hooks_for_types_of_ones_own() -> None:
    converter.register_unstructure_hook(Fraction, lambda value: [value.numerator, value.denominator])
    converter.register_structure_hook(Fraction, lambda plain, _: Fraction(*plain))
    made = codec(dict[str, Fraction | None])
    assert made.encode({"a": Fraction(1, 3), "b": None}) == b'{"a":[1,3],"b":null}'
    assert made.decode(b'{"a":[1,3],"b":null}') == {"a": Fraction(1, 3), "b": None}
    assert codec(Fraction | int).encode(Fraction(1, 3)) == b'{"$":"Fraction","v":[1,3]}'
    assert problems(list[Fraction], "[[1, 0], [1, 2]]").keys() == {"input[0]"}
    with pytest.raises(NotJournalable, match=r"value\[0\]"):
        codec(list[Fraction]).encode([1])
    converter.register_unstructure_hook(Ring, lambda value: value.r)
    with pytest.raises(NotJournalable, match="only one for Ring"):
        codec(Ring)
    converter.register_structure_hook(Ring, lambda plain, _: Ring(plain))
    assert codec(Ring).decode(b"3").r == 3


def test_the_converter_itself_is_strict() -> None:
    assert converter.structure({"sku": "a", "count": 1}, Line) == Line("a", 1)
    assert converter.unstructure(Line("a", 1)) == {"sku": "a", "count": 1}
    for plain, form in (("1", int), (1, str), (True, int), ("1", Decimal | int)):
        with pytest.raises(Exception, match="expected"):
            converter.structure(plain, form)


# Facts.


def test_facts_are_written_by_what_they_are() -> None:
    value = {"who": Person("a", [Line("s", 1)]), "at": date(2026, 1, 1), "seen": {Color.RED}, 1: (Success(Leaf(1)),), "pair": Pair(1)}
    assert json.loads(encode_plain({"facts": value})) == {
        "facts": [
            ["who", {"$": "Person", "name": "a", "lines": [{"$": "Line", "sku": "s", "count": 1, "gift": False}]}],
            ["at", "2026-01-01"],
            ["seen", ["RED"]],
            [1, [{"$": "Success", "v": {"$": "Leaf", "at": 1}}]],
            ["pair", {"$": "Pair", "left": 1, "right": "r"}],
        ]
    }


def test_a_fact_that_cannot_be_written_names_its_path() -> None:
    with pytest.raises(NotJournalable) as caught:
        encode_plain({"a": [Holder(1), Holder(1j)]}, "audit")
    assert caught.value.path == "audit['a'][1].item"
