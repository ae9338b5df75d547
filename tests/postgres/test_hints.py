"""Hints between processes: what they save is the wait for the poll, which is switched off here by making it long; and that nothing rests on them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Never

import asyncpg
import pytest

from flowdsl import Child, Deployment, Steps, Success, signal, sleep, workflow
from flowdsl.postgres import hints
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.worker import Worker, new_id
from tests.postgres.scene import an_id, eventually, scene_at
from tests.postgres.stage import Refused, Stage, act, stage_at

NEVER: dict[str, Any] = {"poll": 600.0, "look": 600.0}
"""Within a test only a hint lets a worker look."""
news = signal("news", int)
pytestmark = pytest.mark.anyio


@workflow("hints.waits")
def waits(key: str) -> Steps[int, Never]:
    return (yield from news.receive(key or None))


@workflow("hints.one")
def one(name: str) -> Steps[str, Refused]:
    return (yield from act(name))


@workflow("hints.parent")
def parent(name: str) -> Steps[str, Refused]:
    child: Child[str, Refused] = yield from one.start(name)
    return (yield from child.join())


@workflow("hints.naps")
def naps(span: str) -> Steps[str, Never]:
    yield from sleep(span)
    return "awake"


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage
        await stage.check()


@asynccontextmanager
async def outside(stage: Stage) -> AsyncIterator[Store]:
    """Another process: it has a store, and no worker."""
    async with await Store.open(stage.dsn) as store:
        yield store


def wish(workflow: Any, request: bytes) -> NewStart:
    return NewStart(new_id(), "default", workflow.name, workflow.version, "", None, "join", request)


class TestWithoutThePoll:
    async def test_a_start_from_outside_is_taken(self, stage: Stage) -> None:
        async with stage.worker(one, **NEVER) as worker, outside(stage) as store:
            await listening(worker)
            started = await store.start([wish(one, b'"a"')])
            await stage.becomes(started[0].id, "succeeded")

    @pytest.mark.parametrize("key", ["", "order 7"], ids=["by id", "by key"])
    async def test_a_signal_from_outside_wakes_who_was_suspended(self, stage: Stage, key: str) -> None:
        async with stage.worker(waits, **NEVER) as worker, outside(stage) as store:
            await listening(worker)
            id = await worker.start(waits, key)
            await stage.becomes(id, "suspended")
            assert await store.send("default", key or id, "signal", "news", b"7", new_id()) == "sent"
            await stage.becomes(id, "succeeded")

    async def test_mail_reaches_what_another_worker_has_in_memory(self, stage: Stage) -> None:
        async with stage.worker(waits, linger=600.0, **NEVER) as worker, stage.worker(waits, **NEVER) as other:
            await listening(worker)
            id = await worker.start(waits, "")
            await eventually(lambda: id in worker.residents, "it is in memory")
            await other.store.send("default", id, "signal", "news", b"7", new_id())
            assert await asyncio.wait_for(worker.wait(id), 60) == Success(7)

    async def test_many_signals_at_once(self, stage: Stage) -> None:
        async with stage.worker(waits, **NEVER) as worker, outside(stage) as store:
            await listening(worker)
            ids = [await worker.start(waits, "") for _ in range(40)]
            for id in ids:
                await stage.becomes(id, "suspended")
            assert set(await store.send_many("default", "news", [(id, b"1", new_id()) for id in ids])) == {"sent"}
            for id in ids:
                await stage.becomes(id, "succeeded")

    async def test_a_child_is_run_by_another_worker_and_its_exit_comes_home(self, stage: Stage) -> None:
        deployment = stage.deployment(parent)
        only_children = Deployment([one], [binding for binding in deployment.bindings if binding.activity.name == "act"])
        async with (
            stage.worker(deployment=deployment, capacity=1, linger=600.0, **NEVER) as worker,
            stage.worker(deployment=only_children, **NEVER) as other,
        ):
            await listening(worker)
            await listening(other)
            await eventually(lambda: not worker.store.hints.alone, "the first knows of the second")
            id = await worker.start(parent, "a")
            await stage.becomes(id, "succeeded")
            assert other.warm.misses + len(stage.calls) >= 1

    async def test_a_timer_needs_no_hint(self, stage: Stage) -> None:
        async with stage.worker(naps, **NEVER) as worker:
            assert await asyncio.wait_for(worker.wait(await worker.start(naps, "300ms")), 60) == Success("awake")


class TestLost:
    async def test_without_a_notification_the_poll_finds_it(self, stage: Stage) -> None:
        async with stage.worker(waits, poll=0.2) as worker, outside(stage) as store:
            store.hints.on = False
            id = await worker.start(waits, "")
            await stage.becomes(id, "suspended")
            await store.send("default", id, "signal", "news", b"7", new_id())
            await stage.becomes(id, "succeeded")
            assert store.hints.sent == 0

    async def test_a_new_listening_connection_begins_with_a_look_at_everything(self, stage: Stage) -> None:
        """What was told while nobody listened was heard by nobody."""
        async with stage.worker(waits, **NEVER) as worker, outside(stage) as store:
            await listening(worker)
            suspended, resident = await worker.start(waits, ""), await worker.start(waits, "")
            await stage.becomes(suspended, "suspended")
            await stage.becomes(resident, "suspended")
            store.hints.on = False
            for id in (suspended, resident):
                await store.send("default", id, "signal", "news", b"7", new_id())
            assert await stage.kill_connections("flowdsl-listen") == 1
            await stage.becomes(suspended, "succeeded")
            await stage.becomes(resident, "succeeded")

    async def test_hints_can_be_switched_off(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLOWDSL_HINTS", "off")
        async with stage.worker(waits, poll=0.2) as worker, outside(stage) as store:
            id = await worker.start(waits, "")
            await store.send("default", id, "signal", "news", b"7", new_id())
            assert await worker.wait(id) == Success(7)
            found = await stage.watcher.fetchval("select count(*) from pg_stat_activity where application_name = 'flowdsl-listen'")
            assert (found, store.hints.sent, worker.store.hints.sent) == (0, 0, 0)

    async def test_a_worker_that_is_alone_tells_nobody(self, stage: Stage) -> None:
        async with stage.worker(parent) as worker:
            await eventually(lambda: worker.store.hints.alone, "it looked around")
            assert await worker.wait(await worker.start(parent, "a")) == Success("a")
            assert worker.store.hints.sent == 0


class TestPayloads:
    """What the store makes of a hint: few words, to whom it may concern."""

    async def test_a_thousand_of_one_workflow_are_one_word(self, database: str) -> None:
        async with scene_at(database) as scene, heard(database) as words:
            ids = [await scene.execution(workflow="w", wake=await _now(scene)) for _ in range(300)]
            ids += [await scene.execution(workflow="x" * 500, wake=await _now(scene))]
            assert await _hint(scene, None, ids) == 2
            await eventually(lambda: len(words) == 2, "both were heard")
            assert sorted(words) == ["due w", "due " + "x" * 200]

    async def test_few_are_named_many_are_a_look(self, database: str) -> None:
        async with scene_at(database) as scene, heard(database) as words:
            few, many, ours = [await scene.worker() for _ in range(3)]
            named = [await scene.execution(few) for _ in range(3)]
            others = [await scene.execution(owner) for owner in (many, ours) for _ in range(20)]
            assert await _hint(scene, ours, [*named, *others]) == 4
            await eventually(lambda: len(words) == 4, "all were heard")
            assert sorted(words) == sorted([*(f"mail {id}" for id in named), f"look {many}"])

    async def test_what_is_not_due_and_what_has_ended_is_no_news(self, database: str) -> None:
        async with scene_at(database) as scene:
            later = await scene.watcher.fetchval("select clock_timestamp() + interval '1 hour'")
            ids = [await scene.execution(wake=later, status="suspended"), await scene.execution(status="succeeded", exit=b"1"), an_id()]
            assert await _hint(scene, None, ids) == 0

    async def test_too_many_words_become_two(self, database: str) -> None:
        async with scene_at(database) as scene, heard(database) as words:
            ids = [await scene.execution(workflow=f"w{n}", wake=await _now(scene)) for n in range(50)]
            assert await _hint(scene, None, ids) == 2
            await eventually(lambda: sorted(words) == ["due", "look"], "both were heard")

    async def test_sends_of_a_moment_go_out_as_one(self, database: str) -> None:
        async with scene_at(database) as scene, await Store.open(database) as store, heard(database) as words:
            for _ in range(200):
                store.hints.tell("default", "", await scene.execution(wake=await _now(scene)))
            for n in range(500):
                store.hints.tell("default", "", str(n))
            await eventually(lambda: bool(words), "it was heard")
            await store.hints.close()
            assert set(words) == {"due w"}


async def listening(worker: Worker) -> None:
    """Until it listens, and has had the look around that this begins with: it must not be taken for a hint's."""

    def so() -> bool:
        return worker.listener is not None and worker.listener.connections > 0 and worker._look_at > time.monotonic() + 100

    await eventually(so, "a worker listens")


@asynccontextmanager
async def heard(dsn: str) -> AsyncIterator[list[str]]:
    words: list[str] = []
    connection = await asyncpg.connect(dsn)
    await connection.add_listener(hints.CHANNEL, lambda *said: words.append(said[3]))
    yield words
    await connection.close()


async def _now(scene: Any) -> Any:
    return await scene.watcher.fetchval("select clock_timestamp()")


async def _hint(scene: Any, worker: str | None, ids: list[str]) -> int:
    n = len(ids)
    return int(await scene.watcher.fetchval(hints._HINT, worker, ["default"] * n, [""] * n, ids, []))
