"""The order service over real HTTP: batches, references, and every way in which an answer can go missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from adapters.meals import client, rows
from adapters.meals.batches import Batches
from adapters.meals.verdict import Expected, judged
from adapters.standins.listening import serve
from adapters.standins.meals.app import create_app
from adapters.standins.meals.catalogue import Catalogue
from adapters.standins.meals.faults import Fault, Faults
from adapters.standins.meals.records import Records
from domains.imports.failures import NotConfigured, NotInOrder, Refused, Unavailable, UnknownOrder
from domains.imports.values import ProcessMealShort, Reference
from flowdsl import Failure, Success

CATALOGUE = Catalogue(seed=7, bad=300)


def of_fate(fate: str, count: int = 1) -> list[ProcessMealShort]:
    found = (ProcessMealShort(*row) for row in CATALOGUE.rows(0, 10_000) if CATALOGUE.fate(*row) == fate)
    return [next(found) for _ in range(count)]


class Weather(Faults):
    """One fault for every request."""

    fault: Fault | None = None

    def draw(self) -> Fault | None:
        return self.fault


@pytest.fixture
def records() -> Records:
    return Records(CATALOGUE)


@pytest.fixture
async def weather(records: Records, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Weather]:
    weather = Weather()
    with serve(create_app(records, weather)) as url:
        monkeypatch.setenv(client.URL, url)
        monkeypatch.setenv(client.TOKEN, "token")
        yield weather
        await client.close()


async def test_the_three_steps(weather: Weather, records: Records) -> None:
    (fine,) = of_fate("fine")
    reference = Reference("r-1", fine)
    assert await rows.validate_order(fine) == await rows.process(reference) == await rows.send_confirmation(reference) == Success(None)
    row = f"{fine.order_id} {fine.sku}"
    assert list(records.lines()) == [f"{row} 1 1 1\n".encode()]


async def test_why_a_row_fails_is_told(weather: Weather) -> None:
    (unknown,), (absent,), (bounces,) = of_fate("unknown"), of_fate("absent"), of_fate("bounces")
    assert await rows.validate_order(unknown) == Failure(UnknownOrder(unknown.order_id))
    assert await rows.validate_order(absent) == Failure(NotInOrder(absent.order_id, absent.sku))
    said = await rows.send_confirmation(Reference("r-1", bounces))
    assert str(said.failure()) == "no confirmation is sent: the customer's address bounces"


async def test_a_reference_acts_once_and_never_for_another_row(weather: Weather, records: Records) -> None:
    one, other = of_fate("fine", 2)
    assert await rows.process(Reference("r-1", one)) == await rows.process(Reference("r-1", one)) == Success(None)
    assert (len(records.shorts.references), records.shorts.again) == (1, 1)
    said = await rows.process(Reference("r-1", other))
    assert isinstance(said.failure(), Refused) and said.failure().status == 409


@pytest.mark.parametrize(("fault", "acted"), [("throttled", 0), ("unavailable", 0), ("lost", 1)])
async def test_what_befalls_the_request_is_worth_another_try(weather: Weather, records: Records, fault: Fault, acted: int) -> None:
    weather.fault = fault
    (fine,) = of_fate("fine")
    said = await rows.process(Reference("r-1", fine))
    assert isinstance(said.failure(), Unavailable), said
    assert (said.failure().retry_after is not None) == (fault == "throttled")
    assert len(records.shorts.references) == acted
    weather.fault = None
    assert await rows.process(Reference("r-1", fine)) == Success(None)
    assert list(records.shorts.times.values()) == [1]


async def test_in_a_batch_each_has_its_own_answer(weather: Weather, records: Records) -> None:
    weather.fault = "broken"
    wanted = [Reference(f"r-{number}", row) for number, row in enumerate(of_fate("fine", 6))]
    said = await asyncio.gather(*(rows.process(one) for one in wanted))
    assert [isinstance(one, Success) for one in said] == [True, True, True, False, False, False]
    assert len(records.shorts.references) == 3


@pytest.mark.parametrize(("name", "value"), [("MEALS_URL", None), ("MEALS_URL", "meals"), ("MEALS_TOKEN", None), ("MEALS_TOKEN", "other")])
async def test_a_wrong_setting_is_named(weather: Weather, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    said = await rows.process(Reference("r-1", *of_fate("fine")))
    assert isinstance(said.failure(), NotConfigured) and name in str(said.failure())


async def test_a_service_that_is_away_is_worth_another_try(weather: Weather, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEALS_URL", "http://127.0.0.1:1")
    assert isinstance((await rows.process(Reference("r-1", *of_fate("fine")))).failure(), Unavailable)


# Batches


async def test_what_comes_together_goes_out_together() -> None:
    sent: list[int] = []

    async def send(items: Sequence[int]) -> Sequence[int]:
        sent.append(len(items))
        await asyncio.sleep(0)
        return [item * 2 for item in items]

    batches = Batches(send, most=100, at_once=2)
    assert await asyncio.gather(*(batches.ask(number) for number in range(1050))) == [number * 2 for number in range(1050)]
    assert max(sent) == 100 and len(sent) < 15
    assert await batches.ask(7) == 14  # and again when all was quiet


async def test_what_was_cancelled_is_not_sent_and_holds_nobody_up() -> None:
    gate, sent = asyncio.Event(), list[int]()

    async def send(items: Sequence[int]) -> Sequence[int]:
        await gate.wait()
        sent.extend(items)
        return items

    batches = Batches(send, most=1, at_once=1)
    first, second, third = (asyncio.create_task(batches.ask(number)) for number in range(3))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second.cancel()
    gate.set()
    assert (await first, await third) == (0, 2)
    assert sent == [0, 2]


async def test_an_error_is_everybodys_and_the_next_are_sent() -> None:
    failing = [True]

    async def send(items: Sequence[int]) -> Sequence[int]:
        if failing.pop() if failing else False:
            raise OSError("away")
        return items

    batches = Batches(send)
    said = await asyncio.gather(batches.ask(1), batches.ask(2), return_exceptions=True)
    assert [type(one) for one in said] == [OSError, OSError]
    assert await batches.ask(3) == 3


# The verdict, which must be able to say no


def told(*lines: tuple[str, int, int, int]) -> Iterator[Any]:
    return iter(lines)


@pytest.mark.parametrize(
    ("line", "what"),
    [(("a", 1, 0, 0), "lost"), (("a", 1, 1, 0), "lost"), (("a", 1, 2, 1), "twice"), (("a", 1, 1, 2), "twice"), (("b", 1, 1, 0), "wrong")],
)
def test_the_verdict_finds(line: tuple[str, int, int, int], what: str) -> None:
    found = judged(told(line), {"a": Expected(True, True)} if line[0] == "a" else {})
    assert getattr(found, what) == 1 and not found.clean


def test_the_verdict_finds_what_was_never_asked_for_and_what_was_done_before() -> None:
    assert judged(told(), {"a": Expected(True, True)}).lost == 1
    assert judged(told(("a", 1, 1, 1)), {"a": Expected(True, True, may_be_asked=False)}).disturbed == 1
    assert judged(told(("a", 1, 1, 1)), {"a": Expected(True, True)}).clean
