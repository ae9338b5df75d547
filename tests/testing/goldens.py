"""The workflows of the golden journals, and the runs they come from. `python -m tests.testing.goldens` writes those that are missing.

Never change a workflow here: add another one, and a run of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Never

from attrs import frozen
from returns.result import Failure, Result, Success

from flowdsl import (
    Deployment,
    Done,
    Next,
    Retry,
    Round,
    Steps,
    activity,
    audit,
    bind,
    changed,
    do,
    each_attempt,
    iterate,
    race,
    signal,
    sleep,
    workflow,
)
from flowdsl.testing.fake import Fake
from flowdsl.testing.golden import Recorded, definitions_of, recorded_by, written

FOLDER = Path(__file__).parents[1] / "golden"


@frozen
class Order:
    id: str
    pages: int


@frozen
class Down:
    status: int


@activity("golden.charge", retry=Retry.constant("1s", attempts=3, on=(Down,)))
def charge(order: Order) -> Result[str, Down]: ...


@activity("golden.refund")
def refund(receipt: str) -> Result[None, Never]: ...


@activity("golden.page")
def page(number: int) -> Result[int, Down]: ...


approved = signal("golden.approved", str)
told = signal("golden.told", int)


@workflow("golden.pages", key="{id}")
def pages(order: Order) -> Steps[int, Down]:
    @do
    def one(number: int) -> Steps[Round[int, int], Down]:
        count = yield from page(number)
        return Done(number) if number + count > order.pages else Next(number + count)

    return (yield from iterate(1, one))


@workflow("golden.orders", key="{id}")
def orders(order: Order) -> Steps[str, Down]:
    yield from audit("ORDERED", order.id)
    receipt = yield from charge(order).compensate(refund)
    if (yield from changed("golden-1")):
        yield from each_attempt([1, 2], page)
    child = yield from pages.start(order)
    yield from pages.existing([order.id])
    count = yield from child.join()
    yield from told.send(order.id, count)
    return f"{receipt} in {count}"


@workflow("golden.asked", key="{id}")
def asked(order: Order) -> Steps[str | None, Down]:
    yield from approved.take()
    answer = yield from race(approved.receive(), sleep("2h"))
    yield from charge(order).compensate(refund)
    yield from sleep("30d")
    return answer


def nothing(request: Any) -> Any:
    raise AssertionError(request)  # journals are only folded


deployment = Deployment([orders, asked, pages], [bind(charge, nothing), bind(refund, nothing), bind(page, nothing)])
definitions = definitions_of(orders, asked, pages)


def made() -> Iterator[tuple[str, Recorded]]:
    """Each run by its name; the same each time."""
    order = Order("7", 3)
    for name, fake, which in _scripted():
        run: Any = fake.run(which, order)
        for one in recorded_by(run):
            yield name if one.execution.id == run.id else f"{name} child", one


def _scripted() -> Iterator[tuple[str, Fake, Any]]:
    def plain() -> Fake:
        return Fake().on(charge, Success("a-1")).on(page, Success(1)).on(refund, Success(None))

    yield "orders", plain().fails_once(charge, Down(503)), orders
    yield "orders that fail", plain().on(page, Failure(Down(500))).crash(before="golden.charge"), orders
    yield "asked", plain().signal(approved, "kim", at="1h"), asked
    yield "cancelled", plain().cancel(at="3d", reason="no longer"), asked


def write() -> None:
    for number, (name, one) in enumerate(made()):
        file = FOLDER / f"{number:02}-{name.replace(' ', '-')}.json"
        if not file.exists():
            (made_at,) = written(FOLDER, [one])
            made_at.rename(file)


if __name__ == "__main__":
    write()
