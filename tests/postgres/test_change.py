"""A workflow is changed while fifty executions of it are open: those that fit go on, the others are blocked with a diff, none does a wrong step."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from flowdsl import Flow, Steps, Success, Workflow, changed, do, pure, signal, workflow
from flowdsl.postgres.compat import compared
from flowdsl.postgres.operating import Operator
from tests.postgres.scene import eventually
from tests.postgres.stage import Refused, Stage, act, stage_at

go = signal("go", int)
COUNT = 50


def deployed(between: Callable[[str], Flow[object, Refused]]) -> Workflow[str, str, Refused]:
    """Four stages, let through by signals; what is done after the second is what deploys change."""

    @workflow("staged")
    def staged(name: str) -> Steps[str, Refused]:
        yield from act(f"{name} one")
        yield from go.receive()
        yield from act(f"{name} two")
        yield from between(name)
        yield from go.receive()
        yield from act(f"{name} three")
        yield from go.receive()
        yield from act(f"{name} four")
        return name

    return staged


@do
def guarded(name: str) -> Steps[None, Refused]:
    if (yield from changed("check")):
        yield from act(f"{name} check")


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage


async def test_fifty_open_executions(stage: Stage) -> None:
    before, wrong, fixed = deployed(lambda _: pure(None)), deployed(lambda name: act(f"{name} check")), deployed(guarded)
    async with stage.worker(before) as worker:
        ids = [await worker.start(before, str(n)) for n in range(COUNT)]
        got = {id: n % 3 for n, id in enumerate(ids)}
        for id in ids:
            for _ in range(got[id]):
                await stage.signal(worker, id, "go", b"1")

        async def standing() -> bool:
            query = (
                "select j.execution, count(*) from flowdsl.journal j join flowdsl.executions x on x.id = j.execution"
                " where x.status = 'suspended' group by j.execution"
            )
            return {str(row[0]): row[1] for row in await stage.watcher.fetch(query)} == {id: 1 + 2 * got[id] for id in ids}

        await eventually(standing, "each waits for its next signal")
        verdicts = [one async for one in compared(worker.store, stage.deployment(wrong))]
        beyond = {id for id in ids if got[id] == 2}
        assert {one.execution for one in verdicts if one.verdict == "needs a marker"} == beyond
        assert {one.verdict for one in verdicts if one.execution not in beyond} == {"fits"}
        assert all("staged test_change.py:" in one.place for one in verdicts if one.execution in beyond)

    stage.calls.clear()
    async with stage.worker(wrong) as worker:
        for id in ids:
            for _ in range(3 - got[id]):
                await stage.signal(worker, id, "go", b"2")

        async def told() -> bool:
            rows = await stage.watcher.fetch("select id, status from flowdsl.executions")
            return all(row["status"] == ("blocked" if str(row["id"]) in beyond else "succeeded") for row in rows)

        await eventually(told, "those that fit go on and end, the others are blocked")
        causes = [row["cause"] for row in await stage.watcher.fetch("select cause from flowdsl.executions where status = 'blocked'")]
    assert all("diverges" in cause and "perform act" in cause and "Nothing was executed" in cause and "test_change.py:" in cause for cause in causes)
    numbers = {id: str(n) for n, id in enumerate(ids)}
    assert Counter(name for name in stage.names if name.endswith("check")) == Counter(f"{numbers[id]} check" for id in ids if id not in beyond)
    assert not [name for name in stage.names if name.split()[0] in {numbers[id] for id in beyond}], "none did a wrong step"

    stage.calls.clear()
    async with stage.worker(fixed) as worker:
        everyone = {one.execution: one.verdict async for one in compared(worker.store, stage.deployments[-1])}
        assert everyone == dict.fromkeys(beyond, "fits")
        operator = Operator(worker.store, stage.deployments[-1])
        for id in beyond:
            await operator.resume(id)
        assert [await worker.wait(id) for id in ids] == [Success(numbers[id]) for id in ids]
    assert Counter(stage.names) == Counter(f"{numbers[id]} four" for id in beyond), "what had been done was not done again"


async def test_an_execution_keeps_to_the_version_that_it_began_with(stage: Stage) -> None:
    @workflow("pinned")
    def first(name: str) -> Steps[str, Refused]:
        yield from go.receive()
        return (yield from act(f"{name} first"))

    @workflow("pinned", version=2)
    def second(name: str) -> Steps[str, Refused]:
        yield from act(f"{name} begins")
        return (yield from act(f"{name} second"))

    async with stage.worker(first) as worker:
        id = await worker.start(first, "a")
        await stage.becomes(id, "suspended")
    async with stage.worker(second) as worker:
        await stage.signal(worker, id, "go", b"1")
        other = await worker.start(second, "b")
        assert await worker.wait(other) == Success("b second")
        row = await stage.row(id)
        assert (row["status"], row["owner"]) == ("suspended", None) and row["wake"] is not None, "nobody here knows its version: it is put by"
        assert {one.execution: one.verdict async for one in compared(worker.store, stage.deployments[-1])} == {id: "unknown"}
    async with stage.worker(first, second) as worker:
        assert await worker.wait(id) == Success("a first")
        assert await worker.wait(await worker.start(second, "c")) == Success("c second")
    await stage.check()
