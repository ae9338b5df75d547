"""Values: what goes in comes out exactly, or is refused with its path; large ones are refused where they are made."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Never
from uuid import UUID

import pytest
from attrs import frozen

from flowdsl import Defect, Result, Retry, Steps, Success, activity, workflow
from tests.conformance.world import World


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@frozen
class Circle:
    radius: float


@frozen
class Square:
    side: int


@frozen
class Everything:
    text: str
    number: int
    real: float
    exact: Decimal
    flag: bool
    nothing: str | None
    day: date
    moment: datetime
    span: timedelta
    id: UUID
    colour: Colour
    shapes: tuple[Circle | Square, ...]
    table: dict[str, list[int]]
    raw: bytes
    words: frozenset[str] = frozenset()


@activity("v.echo", retry=Retry.constant("1ms", attempts=2))
def echo(value: Everything) -> Result[Everything, Never]: ...


@activity("v.numbers", retry=Retry.constant("1ms", attempts=2))
def numbers(value: list[float]) -> Result[list[float], Never]: ...


@activity("v.any", retry=Retry.constant("1ms", attempts=2))
def shaped(value: int) -> Result[Circle | Square | None, Never]: ...


@workflow("v.echoes")
def echoes(value: Everything) -> Steps[Everything, Never]:
    return (yield from echo((yield from echo(value))))


@workflow("v.floats")
def floats(value: list[float]) -> Steps[list[float], Never]:
    return (yield from numbers(value))


@workflow("v.shapes")
def shapes(value: int) -> Steps[list[Circle | Square | None], Never]:
    return [(yield from shaped(0)), (yield from shaped(1)), (yield from shaped(2))]


@workflow("v.bad_answer")
def bad_answer(value: int) -> Steps[int, Never]:
    yield from shaped(0)
    return "text"  # type: ignore[return-value]


def everything(**other: Any) -> Everything:
    values: dict[str, Any] = {
        "text": "t\N{SNOWMAN}\n", "number": 2**70, "real": -0.0, "exact": Decimal("1.10"), "flag": True, "nothing": None, "day": date(2026, 2, 28),
        "moment": datetime(2026, 1, 1, 12, 0, 0, 1, tzinfo=UTC), "span": timedelta(microseconds=1), "id": UUID(int=5), "colour": Colour.BLUE,
        "shapes": (Circle(0.1), Square(3)), "table": {"b": [1], "a": []}, "raw": b"\x00\xff", "words": frozenset({"x", "y"}),
    }  # fmt: skip
    return Everything(**{**values, **other})


async def test_all_kinds_of_values_come_back_as_they_were(world: World) -> None:
    await world.deploy(echoes)
    value = everything()
    exit = await world.run(echoes, value)
    assert exit == Success(value) and str(exit.unwrap()) == str(value)
    assert world.names == [value, value]


async def test_they_come_back_as_they_were_after_a_crash(world: World) -> None:
    await world.deploy(echoes)
    world.dies(after=1)
    value = everything()
    exit = await world.run(echoes, value)
    assert exit == Success(value) and list(exit.unwrap().table) == ["b", "a"] and str(exit.unwrap().real) == "-0.0"


async def test_numbers_keep_every_bit(world: World) -> None:
    await world.deploy(floats)
    those = [0.1, 1e300, 5e-324, -0.0, 1 / 3, 2.0**53 + 2]
    exit = await world.run(floats, those)
    assert isinstance(exit, Success) and [value.hex() for value in exit.unwrap()] == [value.hex() for value in those]


async def test_members_of_a_union_keep_their_class(world: World) -> None:
    await world.deploy(shapes)
    world.does(shaped, lambda value: Success([Circle(1.0), Square(1), None][value]))
    assert await world.run(shapes, 0) == Success([Circle(1.0), Square(1), None])


@pytest.mark.parametrize("wrong", [everything(number=True), everything(text=5), everything(nothing=b"x"), everything(shapes=(5,))])
async def test_an_answer_that_is_not_of_its_type_is_refused_with_its_path(world: World, wrong: Everything) -> None:
    await world.deploy(echoes)
    world.does(echo, lambda _: Success(wrong))
    exit = await world.run(echoes, everything())
    assert isinstance(exit, Defect) and any(name in exit.message for name in ("number", "text", "nothing", "shapes"))
    assert world.count(echo) == 1


async def test_an_answer_of_the_workflow_that_is_not_of_its_type_is_a_defect(world: World) -> None:
    await world.deploy(bad_answer)
    world.does(shaped, lambda _: Success(None))
    exit = await world.run(bad_answer, 1)
    assert isinstance(exit, Defect) and "v.bad_answer" in exit.where


async def test_an_input_that_is_not_of_its_type_starts_nothing(world: World) -> None:
    await world.deploy(echoes)
    with pytest.raises(Exception, match="number"):
        await world.start(echoes, everything(number="5"))
