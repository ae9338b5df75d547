"""Children: joined, beside, detached; their failures; what becomes of them when their parent ends."""

from __future__ import annotations

from typing import Never

import pytest

from flowdsl import (
    Cancelled,
    Child,
    Defect,
    Died,
    Done,
    Failure,
    Next,
    Round,
    Steps,
    Success,
    do,
    each,
    each_attempt,
    execution,
    iterate,
    race,
    sleep,
    workflow,
)
from flowdsl.flow import OnClose
from tests.conformance.parts import Refused, news, plain, sure
from tests.conformance.world import World


@workflow("c.leaf")
def leaf(name: str) -> Steps[str, Refused]:
    return (yield from plain(name))


@workflow("c.waits")
def waits(name: str) -> Steps[str, Refused]:
    number = yield from news.receive().ensure(lambda _: sure(f"{name} over"))
    return f"{name} {number}"


@workflow("c.calls")
def calls(name: str) -> Steps[str, Refused]:
    return "parent of " + (yield from leaf.child(name))


@workflow("c.isolates")
def isolates(name: str) -> Steps[str, Refused]:
    outcome = yield from leaf.child(name).isolate().attempt()
    match outcome:
        case Success(answer):
            return answer
        case Failure(Died() as died):
            return f"died: {died.cause}"
        case Failure(refused):
            return f"refused: {refused}"


@workflow("c.window")
def window(count: int) -> Steps[list[str], Refused]:
    return (yield from each([str(number) for number in range(count)], leaf.child, concurrency=3))


@workflow("c.many")
def many(count: int) -> Steps[int, Refused]:
    children: list[Child[str, Refused]] = yield from each([str(number) for number in range(count)], leaf.start, concurrency=1000)
    answers = yield from each(children, lambda child: child.join(), concurrency=1000)
    return len(answers)


@workflow("c.outcomes")
def outcomes(names: list[str]) -> Steps[list[str], Never]:
    found = yield from each_attempt(names, leaf.child)
    return [one.unwrap() if isinstance(one, Success) else f"refused {one.failure().why}" for one in found]


@workflow("c.beside")
def beside(name: str) -> Steps[str, Refused]:
    child = yield from leaf.start(name)
    yield from sure("between")
    return (yield from child.join()) + " joined"


@workflow("c.late")
def late(name: str) -> Steps[str, Refused]:
    child = yield from leaf.start(name)
    yield from sleep("100ms")
    first = yield from child.join()
    return first + (yield from child.join())


@workflow("c.leaves")
def leaves(name: str) -> Steps[str, Refused]:
    child = yield from waits.start(name)
    return child.id


@workflow("c.detaches")
def detaches(name: str) -> Steps[str, Refused]:
    child = yield from waits.start(name, detached=True)
    return child.id


@workflow("c.fails")
def fails(name: str) -> Steps[str, Refused]:
    yield from waits.start(name)
    return (yield from plain("fails"))


@workflow("c.loses")
def loses(name: str) -> Steps[str, Refused]:
    first = yield from race(waits.child(name), sure("won"))
    yield from news.receive()
    return first


@workflow("c.gives_up_waiting")
def gives_up_waiting(name: str) -> Steps[str, Refused]:
    child = yield from waits.start(name)
    first = yield from race(child.join(), sleep("40ms").map(lambda _: "tired"))
    return f"{first}, then {(yield from child.join())}"


@workflow("c.cancels")
def cancels(name: str) -> Steps[str, Refused]:
    child = yield from waits.start(name)
    yield from sleep("30ms")
    yield from child.cancel()
    yield from child.cancel()
    outcome = yield from child.join().isolate().attempt()
    return str(outcome.failure()) if isinstance(outcome, Failure) else "?"


@workflow("c.grandparent")
def grandparent(name: str) -> Steps[str, Refused]:
    return "grand" + (yield from calls.child(name))


@workflow("c.who")
def who(name: str) -> Steps[list[str | None], Never]:
    me = yield from execution()
    return [me.id, me.parent, me.workflow, me.tenant]


@workflow("c.asks_who")
def asks_who(name: str) -> Steps[list[str | None], Never]:
    child = yield from who.start(name)
    return [child.id, child.workflow, *(yield from child.join())]


@workflow("c.rounds")
def rounds(count: int) -> Steps[list[str], Refused]:
    @do
    def one(seen: list[str]) -> Steps[Round[list[str], list[str]], Refused]:
        answer = yield from leaf.child(str(len(seen)))
        seen = [*seen, answer]
        return Done(seen) if len(seen) == count else Next(seen)

    return (yield from iterate(list[str](), one))


@workflow("c.kept")
def kept(name: str) -> Steps[str, Refused]:
    """A handle in the state of a loop, joined in a later round."""

    @do
    def one(child: Child[str, Refused] | None) -> Steps[Round[Child[str, Refused] | None, str], Refused]:
        if child is None:
            return Next((yield from leaf.start(name)))
        yield from sure("round")
        return Done((yield from child.join()))

    return (yield from iterate(None, one))


@workflow("c.inline")
def inline(name: str) -> Steps[str, Refused]:
    return "inline " + (yield from leaf(name))


async def test_its_answer_is_the_answer_of_the_call(world: World) -> None:
    await world.deploy(calls)
    id = await world.start(calls, "a")
    assert await world.exit(id) == Success("parent of a")
    [child] = await world.children(id)
    assert child.workflow == "c.leaf" and child.status == "succeeded" and child.parent == id
    assert await world.story(id) == ["start leaf", "join leaf"] and await world.story(child.id) == ["plain"]


async def test_its_failure_is_the_failure_of_the_call(world: World) -> None:
    await world.deploy(calls)
    world.answers(plain, Failure(Refused("no")))
    assert await world.run(calls, "a") == Failure(Refused("no"))


async def test_its_defect_is_a_defect_of_the_call_and_names_it(world: World) -> None:
    await world.deploy(calls)
    world.answers(plain, OSError("down"))
    id = await world.start(calls, "a")
    exit = await world.exit(id)
    [child] = await world.children(id)
    assert isinstance(exit, Defect) and child.id in exit.where and exit.message == "OSError: down"


async def test_isolated_its_defect_is_a_value(world: World) -> None:
    await world.deploy(isolates)
    world.answers(plain, OSError("down"))
    assert await world.run(isolates, "a") == Success("died: OSError: down")


async def test_isolated_its_termination_is_a_value(world: World) -> None:
    @workflow("c.isolates_wait")
    def isolates_wait(name: str) -> Steps[str, Refused]:
        outcome = yield from waits.child(name).isolate().attempt()
        return str(outcome.failure()) if isinstance(outcome, Failure) else "?"

    await world.deploy(isolates_wait)
    id = await world.start(isolates_wait, "a")
    await world.settle()
    [child] = await world.children(id)
    await world.terminate(child.id, "gone")
    exit = await world.exit(id)
    assert isinstance(exit, Success) and "ended from outside: terminated: gone" in exit.unwrap()
    assert world.calls == [], "no finalizer runs"


@pytest.mark.shows("S3.4")
async def test_several_go_through_a_window(world: World) -> None:
    await world.deploy(window)
    id = await world.start(window, 7)
    assert await world.exit(id) == Success([str(number) for number in range(7)])
    assert len(await world.children(id)) == 7


@pytest.mark.shows("S3.4")
async def test_many_are_started_at_once(world: World) -> None:
    await world.deploy(many)
    assert await world.run(many, 60) == Success(60)
    assert sorted(world.requests(plain), key=int) == [str(number) for number in range(60)]


async def test_each_outcome_is_seen(world: World) -> None:
    await world.deploy(outcomes)
    world.does(plain, lambda name: Failure(Refused(name)) if name == "b" else Success(name))
    assert await world.run(outcomes, ["a", "b", "c"]) == Success(["a", "refused b", "c"])


async def test_one_beside_is_joined_when_it_has_ended_long_ago(world: World) -> None:
    await world.deploy(late)
    assert await world.run(late, "a") == Success("aa")
    assert world.requests(plain) == ["a"]


async def test_one_beside_runs_while_its_parent_goes_on(world: World) -> None:
    await world.deploy(beside)
    assert await world.run(beside, "a") == Success("a joined")


async def test_one_that_is_still_open_is_cancelled_when_its_parent_ends(world: World) -> None:
    await world.deploy(leaves)
    id = await world.start(leaves, "a")
    exit = await world.exit(id)
    [child] = await world.children(id)
    assert exit == Success(child.id)
    assert await world.exit(child.id) == Cancelled("cancelled by its parent")
    assert world.requests(sure) == ["a over"], "its finalizer ran"


async def test_one_that_is_still_open_is_cancelled_when_its_parent_fails(world: World) -> None:
    await world.deploy(fails)
    world.answers(plain, Failure(Refused("no")))
    id = await world.start(fails, "a")
    assert await world.exit(id) == Failure(Refused("no"))
    [child] = await world.children(id)
    assert await world.exit(child.id) == Cancelled("cancelled by its parent")


async def test_one_that_is_still_open_is_cancelled_when_its_parent_is_terminated(world: World) -> None:
    @workflow("c.holds")
    def holds(name: str) -> Steps[str, Refused]:
        return (yield from waits.child(name))

    await world.deploy(holds)
    id = await world.start(holds, "a")
    await world.settle()
    await world.terminate(id)
    [child] = await world.children(id)
    assert await world.exit(child.id) == Cancelled("cancelled by its parent")


async def test_a_detached_one_outlives_its_parent(world: World) -> None:
    await world.deploy(detaches)
    exit = await world.run(detaches, "a")
    assert isinstance(exit, Success)
    child = exit.unwrap()
    await world.settle()
    assert await world.status(child) == "open"
    await world.signal(child, news, 3)
    assert await world.exit(child) == Success("a 3")


async def test_a_cancelled_parent_cancels_what_it_waits_for(world: World) -> None:
    @workflow("c.both")
    def both(name: str) -> Steps[list[str], Refused]:
        return (yield from each([f"{name}1", f"{name}2"], waits.child))

    await world.deploy(both)
    id = await world.start(both, "a")
    await world.settle()
    await world.cancel(id, "enough")
    assert await world.exit(id) == Cancelled("enough")
    for child in await world.children(id):
        assert await world.exit(child.id) == Cancelled("cancelled by its parent")
    assert sorted(world.requests(sure)) == ["a1 over", "a2 over"]


async def test_a_scope_that_lost_a_race_takes_its_child_with_it(world: World) -> None:
    await world.deploy(loses)
    id = await world.start(loses, "a")
    await world.settle()
    [child] = await world.children(id)
    assert await world.exit(child.id) == Cancelled("cancelled by its parent")
    assert await world.status(id) == "open"
    await world.signal(id, news, 1)
    assert await world.exit(id) == Success("won")


async def test_to_stop_waiting_does_not_stop_the_child(world: World) -> None:
    await world.deploy(gives_up_waiting)
    id = await world.start(gives_up_waiting, "a")
    await world.settle()
    [child] = await world.children(id)
    assert child.status == "open"
    await world.signal(child.id, news, 5)
    assert await world.exit(id) == Success("tired, then a 5")


async def test_it_may_be_cancelled_by_its_handle_and_twice_is_once(world: World) -> None:
    await world.deploy(cancels)
    exit = await world.run(cancels, "a")
    assert isinstance(exit, Success) and "ended from outside: cancelled by its parent" in exit.unwrap()
    assert world.requests(sure) == ["a over"]


@pytest.mark.shows("S3.2")
async def test_children_have_children(world: World) -> None:
    await world.deploy(grandparent)
    assert await world.run(grandparent, "a") == Success("grandparent of a")


@pytest.mark.shows("S3.1")
async def test_a_child_knows_its_parent_and_the_handle_knows_the_child(world: World) -> None:
    await world.deploy(asks_who)
    id = await world.start(asks_who, "a", tenant="acme")
    [child] = await world.children(id) if await world.exit(id) else []
    assert await world.exit(id) == Success([child.id, "c.who", child.id, id, "c.who", "acme"])


async def test_each_round_of_a_loop_may_have_its_child(world: World) -> None:
    await world.deploy(rounds)
    id = await world.start(rounds, 4)
    assert await world.exit(id) == Success(["0", "1", "2", "3"])
    assert len(await world.children(id)) == 4


async def test_a_handle_may_be_kept_in_the_state_of_a_loop(world: World) -> None:
    await world.deploy(kept)
    assert await world.run(kept, "a") == Success("a")


async def test_called_inline_it_is_no_child(world: World) -> None:
    await world.deploy(inline)
    id = await world.start(inline, "a")
    assert await world.exit(id) == Success("inline a")
    assert await world.children(id) == [] and await world.story(id) == ["plain"]


@pytest.mark.parametrize("crash", [{"before": 1}, {"after": 1}, {"before": 2}, {"after": 2}, {"before": 3}, {"after": 3}])
async def test_a_crash_at_any_point_leaves_one_child_and_one_call(world: World, crash: dict[str, int]) -> None:
    await world.deploy(calls)
    world.dies(**crash)
    id = await world.start(calls, "a")
    assert await world.exit(id) == Success("parent of a")
    await world.settle()
    assert len(await world.children(id)) == 1 and world.deaths == 1
    assert world.count(plain) == (2 if crash == {"before": 2} else 1)


async def test_a_signal_to_a_child_does_not_reach_its_parent(world: World) -> None:
    await world.deploy(gives_up_waiting)
    id = await world.start(gives_up_waiting, "a")
    await world.settle()
    await world.signal(id, news, 1)
    await world.settle()
    assert await world.status(id) == "open" and await world.mails(id) == ["news"]


@workflow("c.closes")
def closes(how: str) -> Steps[str, Refused]:
    on_close: OnClose = "terminate" if how == "terminate" else "abandon" if how == "abandon" else "cancel"
    child = yield from waits.start("c", on_close=on_close)
    yield from news.receive()
    return child.id


@pytest.mark.parametrize(("how", "expected", "finalized"), [("cancel", "cancelled by its parent", True), ("terminate", "terminated", False)])
@pytest.mark.parametrize("end", ["returns", "cancelled", "terminated"])
async def test_its_policy_says_what_its_parents_end_does_to_it(world: World, how: str, expected: str, finalized: bool, end: str) -> None:
    await world.deploy(closes)
    id = await world.start(closes, how)
    await world.settle()
    [child] = await world.children(id)
    if end == "returns":
        await world.signal(id, news, 1)
    elif end == "cancelled":
        await world.cancel(id)
    else:
        await world.terminate(id)
    await world.exit(id)
    exit = await world.exit(child.id)
    assert isinstance(exit, Cancelled) and expected in exit.reason
    assert world.requests(sure) == (["c over"] if finalized else [])


async def test_an_abandoned_one_is_left_alone(world: World) -> None:
    await world.deploy(closes)
    id = await world.start(closes, "abandon")
    await world.settle()
    [child] = await world.children(id)
    await world.cancel(id)
    await world.exit(id)
    await world.settle()
    assert await world.status(child.id) == "open"
    await world.signal(child.id, news, 2)
    assert await world.exit(child.id) == Success("c 2")


@pytest.mark.parametrize("crash", [{"before": 1}, {"after": 1}])
async def test_a_crash_at_its_parents_end_still_ends_it(world: World, crash: dict[str, int]) -> None:
    await world.deploy(closes)
    id = await world.start(closes, "cancel")
    await world.settle()
    world.dies(**crash)
    await world.signal(id, news, 1)
    await world.exit(id)
    [child] = await world.children(id)
    assert await world.exit(child.id) == Cancelled("cancelled by its parent") and set(world.requests(sure)) == {"c over"}
