"""Warm machines: a wake-up that needs no replay, and every way in which one that is kept may be out of date. Kept or not, nothing comes out otherwise."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from typing import Any, Never

import pytest

from flowdsl import Child, Steps, Success, all_, iterate, race, signal, sleep, workflow
from flowdsl.activation import Activation
from flowdsl.flow import Done, Execution, Next, Round, do
from flowdsl.postgres.warm import Warm
from flowdsl.postgres.worker import Worker, new_id
from tests.postgres.scene import NOON, an_id, eventually
from tests.postgres.stage import Refused, Stage, act, stage_at

news = signal("news", int)
other = signal("other", str)
pytestmark = pytest.mark.anyio


@workflow("warm.counts")
def counts(until: int) -> Steps[list[int], Refused]:
    got: list[int] = []
    while len(got) < until:
        got.append((yield from news.receive()))
        yield from act(str(got[-1]))
    return got


@workflow("warm.child")
def child(name: str) -> Steps[str, Refused]:
    number = yield from news.receive()
    return (yield from act(f"{name}{number}"))


@do
def turned(state: int) -> Steps[Round[int, int], Refused]:
    number = yield from news.receive()
    yield from act(f"round {state} {number}")
    return Next(state + number) if state + number < 12 else Done(state)


@do
def hurried() -> Steps[str, Never]:
    yield from sleep("10h")
    return "late"


@workflow("warm.mixed")
def mixed(name: str) -> Steps[str, Refused]:
    first = yield from race(other.receive(), hurried())
    started: Child[str, Refused] = yield from child.start(name)
    yield from sleep("20ms")
    both = yield from all_(other.receive(), iterate(0, turned))
    yield from news.send(started.id, 5)
    return f"{first} {both} {(yield from started.join())}"


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage
        await stage.check()


async def rests(stage: Stage, worker: Worker, id: str) -> bool:
    """Whether it is out of memory, and nothing has come that it has not taken. What the store has, the worker may not have heard of yet."""
    return id not in worker.residents and bool(
        await stage.watcher.fetchval(
            "select (status in ('suspended', 'succeeded')) and not exists (select 1 from flowdsl.mailbox where execution = $1)"
            " from flowdsl.executions where id = $1",
            id,
        )
    )


async def send(stage: Stage, worker: Worker, id: str, name: str, body: str) -> None:
    await worker.store.send("default", id, "signal", name, body.encode(), new_id())
    await eventually(lambda: rests(stage, worker, id), f"{id} took {name}")


def loads(worker: Worker) -> list[str]:
    """From now on, whose journals it reads."""
    asked: list[str] = []
    load = worker.store.load

    async def watched(ids: Sequence[str]) -> Any:
        asked.extend(ids)
        return await load(ids)

    worker.store.load = watched  # type: ignore[method-assign]
    return asked


class TestWaking:
    async def test_who_comes_back_to_the_same_worker_is_not_folded_anew(self, stage: Stage) -> None:
        async with stage.worker(counts, linger=0.0) as worker:
            asked = loads(worker)
            id = await worker.start(counts, 5)
            await eventually(lambda: rests(stage, worker, id), "it waits")
            for n in range(5):
                await send(stage, worker, id, "news", str(n))
            assert await worker.wait(id) == Success([0, 1, 2, 3, 4])
            assert (asked, worker.warm.hits) == ([], 5)
            assert len(worker.warm) == 0, "what has ended is not kept"
        assert stage.names == ["0", "1", "2", "3", "4"]

    async def test_switched_off_every_wake_up_folds(self, stage: Stage) -> None:
        async with stage.worker(counts, linger=0.0, warm=0) as worker:
            asked = loads(worker)
            id = await worker.start(counts, 3)
            for n in range(3):
                await eventually(lambda: rests(stage, worker, id), "it waits")
                await send(stage, worker, id, "news", str(n))
            assert await worker.wait(id) == Success([0, 1, 2])
            assert asked == [id] * 3

    async def test_another_worker_had_it_in_between(self, stage: Stage) -> None:
        async with stage.worker(counts, linger=0.0) as worker:
            asked = loads(worker)
            id = await worker.start(counts, 3)
            await eventually(lambda: rests(stage, worker, id), "it waits")
            await send(stage, worker, id, "news", "0")
            await blind(worker)
            async with stage.worker(counts, linger=0.0) as between:
                await send(stage, between, id, "news", "1")
                assert len(between.warm) == 1
                await blind(between)
                del worker.intake.claim
                await send(stage, worker, id, "news", "2")
            assert await worker.wait(id) == Success([0, 1, 2])
            assert asked == [id]
        assert stage.counts == {"0": 1, "1": 1, "2": 1}

    async def test_an_operator_raised_the_epoch(self, stage: Stage) -> None:
        async with stage.worker(counts, linger=0.0) as worker:
            asked = loads(worker)
            id = await worker.start(counts, 1)
            await eventually(lambda: rests(stage, worker, id), "it waits")
            await stage.watcher.execute("update flowdsl.executions set epoch = epoch + 1 where id = $1", id)
            await send(stage, worker, id, "news", "0")
            assert await worker.wait(id) == Success([0])
            assert asked == [id]

    async def test_mail_that_meets_a_suspension(self, stage: Stage) -> None:
        """Signals come as fast as they can be sent: into memory, into the commit of a suspension, to who was just suspended."""
        async with stage.worker(counts, linger=0.0) as worker:
            id = await worker.start(counts, 60)
            for n in range(60):
                await worker.store.send("default", id, "signal", "news", str(n).encode(), new_id())
            assert await worker.wait(id) == Success(list(range(60)))
        assert stage.names == [str(n) for n in range(60)]

    async def test_a_worker_declared_gone_keeps_nothing(self, stage: Stage) -> None:
        async with stage.worker(counts, linger=0.0) as worker:
            before = worker.id
            id = await worker.start(counts, 1)
            await eventually(lambda: len(worker.warm) == 1, "it is kept")
            await stage.watcher.execute("update flowdsl.workers set gone = true")
            await eventually(lambda: worker.id != before, "it began anew")
            assert len(worker.warm) == 0
            await send(stage, worker, id, "news", "0")


class TestNothingComesOutOtherwise:
    @pytest.mark.parametrize("seed", range(3))
    async def test_the_journals_are_the_same(self, stage: Stage, seed: int) -> None:
        found = []
        for warm in (1000, 0, 1):
            chance = random.Random(seed)
            async with stage.worker(mixed, linger=0.0, warm=warm, poll=0.02) as worker:
                ids = [await worker.start(mixed, name) for name in ("a", "b")]
                for id in ids:
                    await eventually(lambda id=id, worker=worker: rests(stage, worker, id), "it waits")
                for id in chance.sample(ids, 2):
                    await send(stage, worker, id, "other", f'"{id == ids[0]}"')
                for step in chance.sample([0, 1] * 6, 12):
                    await send(stage, worker, ids[step], "news", "2")
                for id in ids:
                    await send(stage, worker, id, "other", '"last"')
                exits = [await worker.wait(id) for id in ids]
                found.append(([str(exit) for exit in exits], [await told(stage, id) for id in ids]))
                assert bool(worker.warm.hits) == bool(warm)
        assert found[0] == found[1] == found[2]


async def told(stage: Stage, id: str) -> list[tuple[object, ...]]:
    """A journal without what differs from one execution to the next."""
    entries = await stage.journal(id)
    return [
        (e.position, e.kind, e.step, e.fingerprint.rpartition(" ")[0], e.live, b"" if e.fingerprint.startswith("start") else e.body) for e in entries
    ]


async def blind(worker: Worker) -> None:
    """It claims nothing from now on."""
    looks = 0

    async def claim() -> bool:
        nonlocal looks
        looks += 1
        return False

    worker.intake.claim = claim  # type: ignore[method-assign]
    await eventually(lambda: looks > 0, "what it had begun to claim is claimed")


class TestKeeping:
    def test_only_the_next_epoch_will_do_and_only_once(self) -> None:
        warm, one = Warm(10, 1000), machine()
        warm.keep(4, one, 10)
        assert warm.take(one.execution.id, 6) is None
        warm.keep(4, one, 10)
        assert warm.take(one.execution.id, 5) == (one, 10)
        assert warm.take(one.execution.id, 5) is None
        assert (len(warm), warm.weight, warm.hits, warm.misses) == (0, 0, 1, 2)

    def test_who_was_left_first_goes_first(self) -> None:
        warm, ones = Warm(2, 1000), [machine() for _ in range(3)]
        for one in (ones[0], ones[1], ones[0], ones[2]):
            warm.keep(1, one, 1)
        assert [warm.take(one.execution.id, 2) is not None for one in ones] == [True, False, True]

    def test_bytes_are_bounded_too(self) -> None:
        warm, ones = Warm(10, 100), [machine() for _ in range(4)]
        for one, weight in zip(ones, (60, 50, 101, 50), strict=True):
            warm.keep(1, one, weight)
        assert (len(warm), warm.weight) == (2, 100)
        assert [warm.take(one.execution.id, 2) is not None for one in ones] == [False, True, False, True]


def machine() -> Activation:
    execution = Execution(an_id(), "default", counts.name, None, None, NOON)
    return Activation(execution, counts, b"1", lambda _: counts)
