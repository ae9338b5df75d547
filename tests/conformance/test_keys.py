"""Keys: a second start joins, is new, or is refused; scopes of tenant and of parent; which keys exist."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Never

import pytest

from flowdsl import Defect, Failure, Status, Steps, Success, all_, each, sleep, workflow
from flowdsl.errors import Rejected
from tests.conformance.parts import Order, Refused, news, plain, sure
from tests.conformance.world import World


@workflow("k.join", key="order-{number}")
def joins(order: Order) -> Steps[str, Refused]:
    return (yield from plain(order.note))


@workflow("k.after_close", key="order-{number}", reuse="after_close")
def after_close(order: Order) -> Steps[str, Refused]:
    return (yield from plain(order.note))


@workflow("k.after_failure", key="order-{number}", reuse="after_failure")
def after_failure(order: Order) -> Steps[str, Refused]:
    return (yield from plain(order.note))


@workflow("k.reject", key="order-{number}", reuse="reject")
def rejects(order: Order) -> Steps[str, Refused]:
    return (yield from plain(order.note))


@workflow("k.open", key="order-{number}", reuse="after_close")
def open_one(order: Order) -> Steps[int, Never]:
    return (yield from news.receive())


@workflow("k.unkeyed")
def unkeyed(name: str) -> Steps[str, Never]:
    return (yield from sure(name))


@workflow("k.parent")
def parent(order: Order) -> Steps[list[str], Refused]:
    return list((yield from all_(joins.child(order), joins.child(order))))


@workflow("k.parent_rejects")
def parent_rejects(order: Order) -> Steps[str, Refused]:
    first = yield from rejects.child(order)
    return first + (yield from rejects.child(order))


@workflow("k.again", key="run", reuse="after_close")
def again(orders: list[Order]) -> Steps[list[str], Refused]:
    known = yield from joins.existing([joins.key_of(order) for order in orders])
    new = [order for order in orders if known.get(joins.key_of(order)) != "succeeded"]
    answers = yield from each(new, joins.child)
    return [*(f"{key} {status}" for key, status in sorted(known.items())), *answers]


@workflow("k.statuses")
def statuses(orders: list[Order]) -> Steps[dict[str, Status], Refused]:
    yield from open_one.start(orders[0])
    outcome = yield from joins.child(orders[1]).attempt()
    assert outcome is not None
    return (yield from open_one.existing(["order-0", "order-9"]))


ALL = (joins, after_close, after_failure, rejects, open_one, unkeyed)


def held(world: World) -> Callable[[], None]:
    """Nothing ends before what this gives is called."""
    over: list[bool] = []

    async def holds(name: str) -> Any:
        while not over:
            await asyncio.sleep(0.005)
        return Success(name)

    world.does(plain, holds)
    return lambda: over.append(True)


@pytest.mark.parametrize("how", ["joins", "after_close", "after_failure", "rejects"])
async def test_while_it_is_open_a_second_start_is_never_a_second_execution(world: World, how: str) -> None:
    one = {"joins": joins, "after_close": after_close, "after_failure": after_failure, "rejects": rejects}[how]
    await world.deploy(*ALL)

    let_go = held(world)
    id = await world.start(one, Order(1))
    if how == "rejects":
        with pytest.raises(Rejected, match=id):
            await world.start(one, Order(1))
    else:
        assert await world.start(one, Order(1)) == id
    let_go()
    assert await world.exit(id) == Success("") and world.count(plain) == 1


@pytest.mark.parametrize(
    ("how", "answer", "same"),
    [
        ("joins", Success("x"), True),
        ("joins", Failure(Refused("x")), True),
        ("after_close", Success("x"), False),
        ("after_close", Failure(Refused("x")), False),
        ("after_failure", Success("x"), True),
        ("after_failure", Failure(Refused("x")), False),
    ],
)
async def test_once_it_has_ended_reuse_says_what_a_second_start_does(world: World, how: str, answer: Any, same: bool) -> None:
    one = {"joins": joins, "after_close": after_close, "after_failure": after_failure}[how]
    await world.deploy(*ALL)
    world.answers(plain, answer)
    id = await world.start(one, Order(1))
    assert await world.exit(id) == answer
    second = await world.start(one, Order(1))
    assert (second == id) is same
    assert await world.exit(second) == answer and world.count(plain) == (1 if same else 2)


async def test_a_rejected_start_is_rejected_after_the_end_too(world: World) -> None:
    await world.deploy(*ALL)
    id = await world.start(rejects, Order(1))
    await world.exit(id)
    with pytest.raises(Rejected, match=f"is taken by execution {id}"):
        await world.start(rejects, Order(1))


async def test_a_cancelled_one_counts_as_failed(world: World) -> None:
    @workflow("k.retried", key="{number}", reuse="after_failure")
    def retried(order: Order) -> Steps[int, Never]:
        return (yield from news.receive())

    await world.deploy(retried)
    id = await world.start(retried, Order(1))
    await world.settle()
    await world.cancel(id)
    await world.exit(id)
    assert await world.start(retried, Order(1)) != id


async def test_other_keys_are_other_executions(world: World) -> None:
    await world.deploy(*ALL)
    assert len({await world.start(joins, Order(number)) for number in (1, 2, 3, 1)}) == 3


async def test_the_key_alone_decides_not_the_input(world: World) -> None:
    await world.deploy(*ALL)
    id = await world.start(joins, Order(1, "first"))
    assert await world.start(joins, Order(1, "second")) == id
    assert await world.exit(id) == Success("first")


async def test_a_key_belongs_to_its_workflow(world: World) -> None:
    await world.deploy(*ALL)
    assert await world.start(joins, Order(1)) != await world.start(after_close, Order(1))


async def test_a_key_belongs_to_its_tenant(world: World) -> None:
    await world.deploy(*ALL)
    ours, theirs = await world.start(joins, Order(1), tenant="ours"), await world.start(joins, Order(1), tenant="theirs")
    assert ours != theirs and await world.start(joins, Order(1), tenant="theirs") == theirs


async def test_without_a_key_each_start_is_its_own(world: World) -> None:
    await world.deploy(*ALL)
    assert await world.start(unkeyed, "a") != await world.start(unkeyed, "a")


async def test_a_key_may_be_given_with_the_start(world: World) -> None:
    await world.deploy(*ALL)
    id = await world.start(unkeyed, "a", key="mine")
    assert await world.start(unkeyed, "b", key="mine") == id
    assert (await world.row(id)).key == "mine"


async def test_of_many_starters_at_once_one_wins(world: World) -> None:
    await world.deploy(*ALL)
    let_go = held(world)
    ids = await asyncio.gather(*(world.start(after_close, Order(7)) for _ in range(12)))
    let_go()
    assert await world.exit(ids[0]) == Success("")
    assert len(set(ids)) == 1 == world.count(plain)


async def test_two_children_with_one_key_are_one(world: World) -> None:
    await world.deploy(parent)
    id = await world.start(parent, Order(1, "x"))
    assert await world.exit(id) == Success(["x", "x"])
    assert len(await world.children(id)) == 1 and world.count(plain) == 1


async def test_a_childs_key_is_its_parents(world: World) -> None:
    await world.deploy(parent, *ALL)
    outside = await world.start(joins, Order(1, "outside"))
    one, two = await world.start(parent, Order(1, "one")), await world.start(parent, Order(1, "two"))
    assert [await world.exit(id) for id in (outside, one, two)] == [Success("outside"), Success(["one", "one"]), Success(["two", "two"])]


async def test_a_rejected_child_is_a_defect_of_its_start(world: World) -> None:
    await world.deploy(parent_rejects)
    exit = await world.run(parent_rejects, Order(1))
    assert isinstance(exit, Defect) and "is taken by" in exit.message


async def test_a_second_run_of_a_parent_finds_the_children_of_its_first(world: World) -> None:
    await world.deploy(again)
    assert await world.run(again, [Order(1, "a"), Order(2, "b")]) == Success(["a", "b"])
    assert await world.run(again, [Order(1, "a"), Order(2, "b"), Order(3, "c")]) == Success(["order-1 succeeded", "order-2 succeeded", "c"])
    assert sorted(world.requests(plain)) == ["a", "b", "c"]


async def test_which_keys_exist_and_in_what_status(world: World) -> None:
    await world.deploy(statuses)
    assert await world.run(statuses, [Order(0), Order(1)]) == Success({"order-0": "open"})


@pytest.mark.parametrize("crash", [{"before": 1}, {"after": 1}, {"before": 2}, {"after": 2}])
async def test_a_crash_around_a_keyed_start_finds_its_own_child(world: World, crash: dict[str, int]) -> None:
    await world.deploy(parent)
    world.dies(**crash)
    id = await world.start(parent, Order(1, "x"))
    assert await world.exit(id) == Success(["x", "x"])
    assert len(await world.children(id)) == 1


async def test_a_key_with_any_text_is_that_text(world: World) -> None:
    await world.deploy(*ALL)
    keys = ["a/b", "a b", "ü", "'", "%", "{x}", "A", "a"]
    ids = [await world.start(unkeyed, key, key=key) for key in keys]
    assert len(set(ids)) == len(keys)
    assert [(await world.row(id)).key for id in ids] == keys


@workflow("k.template", key="{number}:{note}", reuse="join")
def templated(order: Order) -> Steps[str, Never]:
    yield from sleep("0s")
    return order.note


async def test_fields_of_a_key_never_run_into_each_other(world: World) -> None:
    await world.deploy(templated)
    orders = [Order(1, "2:3"), Order(1, "2"), Order(12, ""), Order(1, "")]
    assert len({await world.start(templated, order) for order in orders}) == 4
