"""Graphs: each node begins once what it needs is done; hard and soft edges; what is skipped says why."""

from __future__ import annotations

from typing import Any, Never

import pytest

from flowdsl import Defect, Failure, Nodes, Outcome, Skipped, Steps, Success, dag, dag_attempt, node, workflow
from tests.conformance.parts import Refused, plain, sure
from tests.conformance.world import World


@workflow("d.diamond")
def diamond(name: str) -> Steps[dict[str, str], Refused]:
    return (
        yield from dag(
            {
                "last": node(plain("last"), after=["left", "right"]),
                "left": node(plain("left"), after=["first"]),
                "right": node(plain("right"), after=["first"]),
                "first": node(plain("first")),
            }
        )
    )


@workflow("d.attempt")
def attempted(name: str) -> Steps[list[str], Never]:
    found = yield from dag_attempt(
        {
            "a": node(plain("a")),
            "b": node(plain("b"), after=["a"]),
            "c": node(plain("c"), after=["b"]),
            "d": node(plain("d"), soft=["b"]),
            "e": node(plain("e"), after=["a"], soft=["c"]),
        }
    )
    return [f"{key} {told(one)}" for key, one in sorted(found.items())]


@workflow("d.line")
def line(count: int) -> Steps[int, Refused]:
    nodes: Nodes[str, Refused] = {str(at): node(plain(str(at)), after=[str(at - 1)] if at else []) for at in range(count)}
    return len((yield from dag(nodes)))


@workflow("d.cycle")
def cycle(name: str) -> Steps[None, Refused]:
    yield from dag({"a": node(plain("a"), after=["b"]), "b": node(plain("b"), after=["a"])})


@workflow("d.leaf")
def leaf(name: str) -> Steps[str, Refused]:
    return (yield from plain(name))


@workflow("d.children")
def children(name: str) -> Steps[list[str], Refused]:
    answers = yield from dag({"one": node(leaf.child("one")), "two": node(leaf.child("two"), after=["one"])})
    yield from sure("done")
    return [answers["one"], answers["two"]]


def told(outcome: Outcome[str, Refused] | Skipped) -> str:
    match outcome:
        case Success(answer):
            return f"gave {answer}"
        case Failure(refused):
            return f"refused {refused.why}"
        case Skipped(because):
            return f"skipped for {because}"


def fails(*those: str) -> Any:
    return lambda name: Failure(Refused(name)) if name in those else Success(name)


async def test_each_node_runs_once_after_what_it_needs(world: World) -> None:
    await world.deploy(diamond)
    exit = await world.run(diamond, "x")
    assert exit == Success({"last": "last", "left": "left", "right": "right", "first": "first"})
    assert world.names[0] == "first" and world.names[-1] == "last" and sorted(world.names) == ["first", "last", "left", "right"]


async def test_the_first_failure_ends_the_graph(world: World) -> None:
    await world.deploy(diamond)
    world.does(plain, fails("first"))
    assert await world.run(diamond, "x") == Failure(Refused("first"))
    assert world.names == ["first"]


async def test_all_is_gone_through_and_what_is_skipped_says_why(world: World) -> None:
    await world.deploy(attempted)
    world.does(plain, fails("b"))
    assert await world.run(attempted, "x") == Success(["a gave a", "b refused b", "c skipped for b", "d gave d", "e gave e"])
    assert world.count(plain) == 4


async def test_skipping_goes_on_from_the_root(world: World) -> None:
    await world.deploy(attempted)
    world.does(plain, fails("a"))
    assert await world.run(attempted, "x") == Success(["a refused a", "b skipped for a", "c skipped for b", "d gave d", "e skipped for a"])


async def test_a_line_is_one_after_the_other(world: World) -> None:
    await world.deploy(line)
    assert await world.run(line, 12) == Success(12)
    assert world.names == [str(at) for at in range(12)]


async def test_a_cycle_is_a_defect_that_names_it(world: World) -> None:
    await world.deploy(cycle)
    exit = await world.run(cycle, "x")
    assert isinstance(exit, Defect) and "cycle" in exit.message and world.calls == []


async def test_nodes_may_be_children(world: World) -> None:
    await world.deploy(children)
    id = await world.start(children, "x")
    assert await world.exit(id) == Success(["one", "two"])
    assert len(await world.children(id)) == 2


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_at_any_node_changes_nothing(world: World, when: str, n: int) -> None:
    await world.deploy(attempted)
    world.does(plain, fails("b"))
    world.dies(**{when: n})
    id = await world.start(attempted, "x")
    assert await world.exit(id) == Success(["a gave a", "b refused b", "c skipped for b", "d gave d", "e gave e"])
    assert sorted(await world.story(id)) == ["plain", "plain", "plain", "plain!"]
