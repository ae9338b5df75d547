"""Values of every type that the journal can hold: each comes back from its bytes, and validators are heard."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from random import Random
from typing import Annotated, Any, Generic, Literal, NamedTuple, Never, NewType, TypeVar
from uuid import UUID

import pytest
from attrs import field, frozen, validators
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import find as searched
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from flowdsl import Failure, Result, Success
from flowdsl.codec import NotJournalable, codec, converter
from flowdsl.testing.values import Undrawable, values


def find(strategy: Any, holds: Callable[[Any], Any], **how: Any) -> Any:
    """The same search each time."""
    return searched(strategy, holds, random=Random(0), **how)


T = TypeVar("T")


class Color(Enum):
    RED = 1
    BLUE = 2


class Right(Flag):
    READ = 1
    WRITE = 2


Email = NewType("Email", str)


@frozen
class Person:
    id: int
    name: str
    mail: Email | None = None


@frozen
class Tree:
    """It may contain itself."""

    label: str
    parts: tuple[Tree, ...] = ()


@frozen
class Paged(Generic[T]):
    rows: list[T]
    following: int | None


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0


class Pair(NamedTuple):
    left: str
    right: bool


@frozen
class Hidden:
    _secret: str = field(alias="secret")


Known = TypeAliasType("Known", Person | Point | None)


@frozen
class Shelf:
    """It may contain itself in more ways than one."""

    left: Shelf | None
    boxes: list[Shelf]
    named: dict[str, Shelf]


FORMS: list[Any] = [
    None, bool, int, float, str, bytes, Decimal, UUID, datetime, date, time, timedelta, Color, Right, Literal["a", 3], Email,
    Annotated[int, "a count"], int | None, Person | Point, Known, list[int], tuple[int, str], tuple[Color, ...], set[int], frozenset[Color],
    dict[str, Person], Mapping[str, int], dict[int, bool], list[list[int | None]], Person, Tree, Shelf, Paged[Person], Point, Pair, Hidden,
    Any, object, Result[Person, Color], Success[int], Failure[Color],
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_value_comes_back_from_its_bytes(form: Any) -> None:
    exact: Any = codec(form)

    @settings(max_examples=30, database=None, deadline=None)
    @given(values(form))
    def test(value: Any) -> None:
        data = exact.encode(value)
        assert exact.decode(data) == value and exact.encode(exact.decode(data)) == data

    test()


@pytest.mark.parametrize(
    ("form", "plainest"),
    [(int, 0), (str, "0"), (int | None, None), (None | Person, None), (Person | None, None), (list[int], []), (Color, Color.RED), (Tree, Tree("0"))],
)
def test_the_plainest_comes_first(form: Any, plainest: Any) -> None:
    assert find(values(form), lambda _: True) == plainest


@pytest.mark.parametrize(
    ("form", "sought"),
    [
        (Person | Point, Point(0.0)),
        (Result[int, Color], Failure(Color.BLUE)),
        (Right, Right.READ | Right.WRITE),
        (Literal["a", 3], 3),
        (dict[str, int], {"0": 0}),
    ],
)
def test_every_kind_of_value_is_found(form: Any, sought: Any) -> None:
    assert find(values(form), lambda value: value == sought, settings=settings(max_examples=3000, database=None)) == sought


def test_what_contains_itself_goes_deep_and_comes_to_an_end() -> None:
    assert find(values(Tree), lambda tree: len(tree.parts) == 2 and any(part.parts for part in tree.parts)).label == "0"


def test_times_are_aware_and_near_to_where_virtual_time_begins() -> None:
    @settings(max_examples=50, database=None)
    @given(values(datetime))
    def test(at: datetime) -> None:
        assert at.tzinfo is UTC and 2026 <= at.year <= 2027

    test()


# Validators


def even(_: Any, __: Any, value: int) -> None:
    if value % 2:
        raise ValueError(f"{value} is odd")


@frozen
class Booked:
    cents: int = field(validator=[validators.ge(5000), validators.lt(5010)])
    rate: float = field(validator=validators.and_(validators.gt(2000.0), validators.le(2001.0)))
    fee: Decimal = field(validator=validators.ge(Decimal(3000)))
    code: str = field(validator=validators.matches_re(r"[A-Z]{3}-[0-9]{2}"))
    name: str = field(validator=[validators.min_len(10), validators.max_len(12)])
    kind: str = field(validator=validators.in_(["in", "out"]))
    seats: list[int] = field(validator=validators.min_len(2))
    note: str | None = field(default=None, validator=validators.optional(validators.min_len(20)))
    count: int = field(default=4, validator=even)
    size: int = field(default=987_654, validator=lambda _, __, value: even(_, __, value) if value == 987_654 else even(_, __, 1))


@frozen
class Span:
    low: int
    high: int

    def __attrs_post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("upside down")


@settings(max_examples=100, database=None, deadline=None)
@given(values(Booked))
def test_validators_are_heard_without_trying_much(booked: Booked) -> None:
    """A health check of Hypothesis would refuse a strategy that throws most of what it makes away."""
    assert 5000 <= booked.cents < 5010 and booked.kind in ("in", "out") and re.fullmatch(r"[A-Z]{3}-[0-9]{2}", booked.code)
    assert len(booked.seats) >= 2 and 10 <= len(booked.name) <= 12 and (booked.note is None or len(booked.note) >= 20)
    assert booked.count % 2 == 0 and booked.size == 987_654


@settings(max_examples=100, database=None)
@given(values(Span))
def test_what_a_class_refuses_itself_is_not_drawn(span: Span) -> None:
    assert span.low <= span.high


def test_what_is_given_for_a_type_stands_wherever_that_type_does() -> None:
    @settings(max_examples=50, database=None)
    @given(values(Paged[Person], {Email: st.just(Email("x@example.com")), int: st.just(7)}))
    def test(page: Paged[Person]) -> None:
        assert page.following in (None, 7)
        assert all(person.id == 7 and person.mail in (None, "x@example.com") for person in page.rows)

    test()
    assert find(values(Person), lambda person: person.id == 8).id == 8, "only where it was given"


# What there is none of


class Money:
    """A type of somebody's own, with hooks of the codec."""

    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    def __hash__(self) -> int:
        return self.cents


class Opaque:
    def __init__(self, *parts: Any, unknown: Any) -> None:
        self.parts = parts


converter.register_unstructure_hook(Money, lambda value: value.cents)
converter.register_structure_hook(Money, lambda plain, _: Money(plain))
converter.register_unstructure_hook(Opaque, lambda value: 0)
converter.register_structure_hook(Opaque, lambda plain, _: Opaque(unknown=plain))


def test_a_type_with_hooks_is_made_as_hypothesis_would_make_it() -> None:
    assert find(values(list[Money]), lambda found: len(found) == 2) == [Money(0), Money(0)]


@pytest.mark.parametrize("form", [Never, Opaque])
def test_what_cannot_be_made_up_says_what_to_do(form: Any) -> None:
    with pytest.raises(Undrawable, match=re.escape("Say what there is: given={")):
        values(form)
    assert find(values(form, {form: st.just(3)}), lambda _: True) == 3


def test_what_the_journal_cannot_hold_is_refused_as_the_codec_refuses_it() -> None:
    with pytest.raises(NotJournalable, match="complex"):
        values(list[complex])


def test_drawing_is_quick() -> None:
    """A strategy is made once for a type."""
    assert values(Person) is values(Person)
    drawn: list[Person] = []

    @settings(max_examples=200, database=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
    @given(values(Person))
    def test(person: Person) -> None:
        drawn.append(person)

    test()
    assert len(set(drawn)) > 50
