"""Faults of docs/reliability.md that no other file is about: the network goes silent, disks fill, loops block, migrations are killed."""

from __future__ import annotations

import ast
import asyncio
import gc
import inspect
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest
from attrs import evolve

from flowdsl import Deployment, Failure, Result, Retry, Steps, Success, TimedOut, activity, bind, sleep, this_attempt, workflow
from flowdsl.errors import StoreError
from flowdsl.flow import Done, Next, Round, do, iterate
from flowdsl.postgres import committer
from flowdsl.postgres.connection import open_pool
from flowdsl.postgres.schema import migrate, pending_migrations
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Worker
from tests.postgres.proxy import Proxy, Wire, proxied
from tests.postgres.scene import Scene, claim, eventually, scene_at
from tests.postgres.stage import BRISK, Refused, Stage, act, stage_at

pytestmark = pytest.mark.anyio


@workflow("letters")
def letters(names: str) -> Steps[str, Refused]:
    done = ""
    for name in names:
        done += yield from act(name)
    return done


@workflow("keyed")
def keyed(name: str) -> Steps[str, Refused]:
    return (yield from act(name))


@workflow("naps")
def naps(span: str) -> Steps[None, Refused]:
    yield from act("before")
    yield from sleep(span)
    yield from act("after")


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage
        await stage.check()


@pytest.fixture
async def scene(database: str) -> AsyncIterator[Scene]:
    async with scene_at(database) as scene:
        yield scene


class Slow(Proxy):
    """Each message takes its time, or nothing of what is answered arrives while the connections stay open."""

    silent = False
    delay = 0.0

    async def _ask(self, wire: Wire, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while sent := await reader.read(1 << 16):
                await asyncio.sleep(self.delay)
                wire.server.write(sent)
        wire.cut()
        self.wires.discard(wire)

    async def _answer(self, wire: Wire, answers: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while heard := await answers.read(1 << 16):
                if not self.silent:
                    wire.client.write(heard)
        wire.cut()
        self.wires.discard(wire)


@asynccontextmanager
async def slowed(target: str) -> AsyncIterator[Slow]:
    with TemporaryDirectory(prefix="wire") as folder:
        proxy = Slow(target, str(Path(folder)))
        server = await proxy.serve()
        try:
            yield proxy
        finally:
            server.close()
            proxy.cut()


@asynccontextmanager
async def impatient(dsn: str) -> AsyncIterator[Store]:
    """A store that takes a statement for lost after a second, not after a minute."""
    pool = await open_pool(dsn, size=5, command_timeout=1)
    try:
        yield Store(dsn, pool)
    finally:
        pool.terminate()


# The connection


async def test_a_store_that_cannot_be_reached_says_what_to_do(database: str) -> None:
    with pytest.raises(StoreError, match=r"there is no such database.*Create it"):
        await Store.open(urlunsplit(urlsplit(database)._replace(path="/flowdsl_nowhere")))
    with pytest.raises(StoreError, match=r"cannot be reached.*Start it"):
        await Store.open("postgresql://postgres@127.0.0.1:1/flowdsl")


async def test_a_start_whose_reply_is_lost_is_repeated_and_starts_once(stage: Stage) -> None:
    """A5"""
    async with proxied(stage.dsn) as proxy, stage.worker(keyed, dsn=proxy.dsn) as worker:
        proxy.swallow_once(lambda wire, sent: b"flowdsl.start(" in wire.said and sent[:1] == b"B")
        id = await worker.start(keyed, "a", key="a")
        assert await worker.wait(id) == Success("a")
        assert await worker.start(keyed, "a", key="a") == id
        assert proxy.swallowed == 1
    assert stage.counts == {"a": 1}
    assert await stage.watcher.fetchval("select count(*) from flowdsl.executions") == 1


async def test_a_worker_whose_server_goes_silent_is_taken_over_and_begins_anew(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """B3: its connections stay open, and nothing comes any more. Its own deadlines end that, not the server's."""
    monkeypatch.setattr(committer, "REPLY", 1.0)
    monkeypatch.setattr("flowdsl.postgres.connection._OPENING", 2.0)
    first = asyncio.Event()

    async def once(name: str) -> Any:
        if stage.counts[name] == 1:
            await first.wait()
        return Success(name)

    stage.scripts["b"] = once
    deployment = stage.deployment(letters)
    async with slowed(stage.dsn) as proxy, impatient(proxy.dsn) as store, Worker(deployment, store, evolve(BRISK, lease=1.5)) as deaf:
        id = await deaf.start(letters, "abc")
        await eventually(lambda: stage.counts["b"] == 1, "the second step has begun")
        proxy.silent = True
        async with stage.worker(deployment=deployment, lease=1.5) as other:
            assert await other.wait(id) == Success("abc")
        first.set()  # a late answer, by one that has lost it
        old = deaf.id
        proxy.silent = False
        await eventually(lambda: deaf.id != old, "it has begun anew")
        assert await deaf.wait(await deaf.start(letters, "d")) == Success("d")
    assert stage.counts["b"] == 2
    assert (await stage.row(id))["status"] == "succeeded"


async def test_a_connection_that_a_pool_opens_to_a_silent_server_is_given_up(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """B3: who claims is held up by one that opens as by one that is open; asyncpg itself would wait for a minute."""
    monkeypatch.setattr("flowdsl.postgres.connection._OPENING", 0.5)
    async with slowed(database) as proxy:
        proxy.silent = True
        pool = await open_pool(f"{proxy.dsn}&pgbouncer=false", size=1)  # nobody is asked what it leads to
        try:
            async with asyncio.timeout(30):
                with pytest.raises(TimeoutError):
                    await pool.fetchval("select 1")
        finally:
            pool.terminate()


async def test_slow_statements_cost_no_lease_and_double_nothing(stage: Stage) -> None:
    """B6"""
    async with slowed(stage.dsn) as proxy, stage.worker(letters, dsn=proxy.dsn) as worker:
        proxy.delay = 0.15
        id = worker.id
        ids = [await worker.start(letters, f"{n}ab") for n in range(3)]
        for n, one in enumerate(ids):
            assert await worker.wait(one) == Success(f"{n}ab")
        assert worker.id == id
        assert not await stage.watcher.fetchval("select gone from flowdsl.workers where id = $1", id)
    assert stage.counts == {"0": 1, "1": 1, "2": 1, "a": 3, "b": 3}


@activity("hasty", transactional=True, timeout="200ms", retry=Retry.constant("10ms", attempts=100))
def hasty(name: str) -> Result[str, TimedOut]: ...


@workflow("hurries")
def hurries(name: str) -> Steps[str, TimedOut]:
    return (yield from hasty(name))


async def test_a_statement_cut_off_in_the_middle_leaves_no_open_transaction(stage: Stage) -> None:
    """B4: its connection is not used again: what another does on it would vanish with the hidden transaction."""
    cut_off = False

    async def insert(name: str) -> Result[str, TimedOut]:
        nonlocal cut_off
        async with this_attempt().transaction() as connection:
            await connection.execute("insert into marks (name, key) values ($1, $2)", name if cut_off else "hidden", "k")
            if not cut_off:
                cut_off = True
                await connection.execute("select pg_sleep(60)")
            return Success(name)

    deployment = Deployment([hurries], [bind(hasty, insert)])
    stage.deployments.append(deployment)
    async with stage.worker(deployment=deployment, transactions=1) as worker:
        assert await worker.wait(await worker.start(hurries, "x")) == Success("x")
        assert await worker.wait(await worker.start(hurries, "y")) == Success("y")
        assert await stage.marks() == ["x", "y"]

        async def none_open() -> bool:
            hidden = "select count(*) from pg_stat_activity where datname = current_database() and state = 'idle in transaction'"
            return not await stage.watcher.fetchval(hidden)

        await eventually(none_open, "no transaction is open")


@pytest.mark.parametrize("error", [asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError])
async def test_a_clash_is_repeated_until_it_is_none(error: type[Exception]) -> None:
    """B5"""
    asked = 0

    class Pool:
        async def fetch(self, query: str, *arguments: Any) -> list[Any]:
            nonlocal asked
            asked += 1
            if asked < 4:
                raise error("try again")
            return [query]

    assert await Store("postgresql://nowhere", Pool()).again("select 1") == ["select 1"]
    assert asked == 4


@pytest.mark.parametrize("code", ["53100", "53200", "53400"])
async def test_a_full_disk_is_waited_out_and_nothing_is_blocked_or_failed(stage: Stage, code: str) -> None:
    """B14"""
    async with stage.worker(letters) as worker:
        await stage.watcher.execute(
            f"create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no space left' using errcode = '{code}'; end $$;"
            "create trigger refuse before insert on flowdsl.journal for each statement execute function refuse()"
        )
        ids = [await worker.start(letters, "ab") for _ in range(3)]
        await eventually(lambda: stage.counts["a"] > 0, "one was called")
        await eventually(_refused(stage), "something was refused")
        statuses = await stage.watcher.fetch("select distinct status from flowdsl.executions")
        assert [row["status"] for row in statuses] == ["running"]
        await stage.watcher.execute("drop trigger refuse on flowdsl.journal")
        assert [await worker.wait(id) for id in ids] == [Success("ab")] * 3
    assert stage.counts == {"a": 3, "b": 3}


def _refused(stage: Stage) -> Any:
    async def refused() -> bool:
        return bool(await stage.watcher.fetchval("select xact_rollback > 0 from pg_stat_database where datname = current_database()"))

    return refused


# Ownership


async def test_two_who_declare_a_worker_gone_at_once_count_one_death(scene: Scene) -> None:
    """C5"""
    dead, one, two = await scene.worker(lease=1, silent_for=60), await scene.worker(), await scene.worker()
    ids = [await scene.execution(dead) for _ in range(20)]
    first, second = await scene.connection(), await scene.connection()

    async def recover(connection: Any, worker: str) -> list[str]:
        await connection.fetchval("select flowdsl.take_over()")
        return [str(row["id"]) for row in await claim(connection, worker, limit=15)]

    taken = await asyncio.gather(recover(first, one), recover(second, two))
    taken += [await recover(first, one)]
    assert sorted(id for ids_of in taken for id in ids_of) == sorted(ids)
    rows = await scene.watcher.fetch("select deaths, epoch from flowdsl.executions")
    assert [(row["deaths"], row["epoch"]) for row in rows] == [(1, 2)] * 20


async def test_a_blocked_loop_costs_no_lease(stage: Stage) -> None:
    """F11: an implementation that holds up its loop for longer than the lease; the heart has a thread of its own."""

    async def block(name: str) -> Any:
        began = worker.heart._reading
        for _ in range(6000):
            time.sleep(0.01)  # noqa: ASYNC251 (it is the fault)
            if worker.heart._reading.store - began.store > timedelta(seconds=2):
                break
        beaten.append(worker.heart._reading.store - began.store)
        return Success(name)

    beaten: list[timedelta] = []
    stage.scripts["a"] = block
    async with stage.worker(letters, lease=1.0) as worker:
        id, before = await worker.start(letters, "ab"), worker.id
        assert await worker.wait(id) == Success("ab")
        assert beaten[0] > timedelta(seconds=2), "its heart was beating all the time, as the store has it"
        last = worker.heart._reading
        await eventually(lambda: worker.heart._reading is not last, "its heart goes on beating")
        assert worker.id == before
        assert not await stage.watcher.fetchval("select gone from flowdsl.workers where id = $1", before)
    assert stage.counts == {"a": 1, "b": 1}


async def test_no_task_is_left_behind_or_lost(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """F12: the collector runs all the time; whatever is still needed is held by somebody, and whatever was begun is ended."""
    loop = asyncio.get_running_loop()
    complaints: list[Any] = []
    before = asyncio.all_tasks()
    loop.set_exception_handler(lambda _, facts: complaints.append(facts))
    gc.collect()
    gc.freeze()  # what other tests left in this process would make each look a long one
    try:
        async with stage.workers(2, letters, naps) as (worker, _):
            ids = [await worker.start(letters, "abc") for _ in range(10)] + [await worker.start(naps, "100ms") for _ in range(10)]
            open = [await worker.start(naps, "1h") for _ in range(5)]

            async def collect() -> None:
                while True:
                    gc.collect()
                    await asyncio.sleep(0.001)

            collector = asyncio.ensure_future(collect())
            try:
                await asyncio.gather(*(worker.wait(id) for id in ids))
            finally:
                collector.cancel()
                await asyncio.gather(collector, return_exceptions=True)
            for id in open:
                await stage.cancel(worker, id)
        gc.collect()
        await asyncio.sleep(0)
        assert [task for task in asyncio.all_tasks() - before if not task.done()] == []
        assert complaints == []
    finally:
        gc.unfreeze()
        loop.set_exception_handler(None)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What Python says of bodies that cling to life when they are closed; for longer than any test's own fixtures keep one."""
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: told.append(str(one.exc_value)))
    yield told
    gc.collect()


async def test_an_execution_dropped_from_memory_does_nothing_on_its_way_out(closed: list[str], stage: Stage) -> None:
    """G6: a body with a `finally` that asks for something is closed when its execution is forgotten, and nobody listens."""

    @workflow("clings")
    def clings(name: str) -> Steps[str, Refused]:
        try:
            yield from act(name)
            yield from sleep("1h")
        finally:
            yield from act("too late")
        return name

    async with stage.worker(clings, warm=0) as worker:
        id = await worker.start(clings, "a")
        await stage.becomes(id, "suspended")
        await eventually(lambda: id not in worker.residents, "it is forgotten")
        gc.collect()
        other = await worker.start(clings, "b")
        await stage.becomes(other, "suspended")
        await eventually(lambda: gc.collect() >= 0 and bool(closed), "the first one's body is closed")
        assert set(closed) == {"generator ignored GeneratorExit"}
    assert stage.counts == {"a": 1, "b": 1}
    assert await stage.watcher.fetchval("select count(*) from flowdsl.journal") == 2


# Time


async def test_a_wall_clock_that_jumps_changes_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """D1: an hour forth and back; due times and leases are Postgres's, deadlines in the process are monotonic."""
    real, real_ns, shift = time.time, time.time_ns, [0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + shift[0] * 10**9)
    async with stage.worker(naps) as worker:
        before, ids = worker.id, []
        for hours in (1, -1, 0):
            shift[0] = hours * 3600
            ids.append(await worker.start(naps, "200ms"))
        for id in ids:
            assert await worker.wait(id) == Success(None)
        assert worker.id == before
    assert stage.counts == {"before": 3, "after": 3}
    sleeps = await stage.watcher.fetch(
        "select s.at - a.at as slept from flowdsl.journal s join flowdsl.journal a on a.execution = s.execution and a.position = s.position - 1"
        " where s.fingerprint like 'sleep %'"
    )
    assert all(0.2 <= row["slept"].total_seconds() < 60 for row in sleeps)


def test_the_store_reads_no_wall_clock_but_for_ids() -> None:
    """D1: the one place that reads it makes an id of it, and the heart's first guess is replaced before anything is due."""
    found = []
    for path in sorted(Path(inspect.getfile(committer)).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "time.time",
                "time.time_ns",
                "datetime.utcnow",
                "datetime.now",
                "datetime.today",
            ):
                found.append((path.name, ast.unparse(node)))
    assert {name for name, _ in found} <= {"worker.py", "heart.py", "starting.py", "embedded.py", "audit.py", "schedules.py"}


# Signals


@do
def gathered(count: int) -> Steps[Round[int, int], Refused]:
    from tests.postgres.test_worker import news

    for expected in range(count, count + 100):
        assert (yield from news.receive()) == expected
    return Done(count + 100) if count + 100 == 10_000 else Next(count + 100)


@workflow("gathers")
def gathers(count: int) -> Steps[int, Refused]:
    return (yield from iterate(count, gathered))


async def test_ten_thousand_signals_to_one_execution(stage: Stage) -> None:
    """E8: all are kept and taken, each once, in their order."""
    async with stage.worker(gathers) as worker:
        id = await worker.start(gathers, 0)
        for start in range(0, 10_000, 1000):
            await worker.store.again(
                "select flowdsl.send_many($1, $2::uuid[], $3, $4::bytea[], $5::text[])",
                "default", [id] * 1000, "news", [b"%d" % n for n in range(start, start + 1000)], [f"d{n}" for n in range(start, start + 1000)],
            )  # fmt: skip
        assert await worker.wait(id) == Success(10_000)
        assert await stage.watcher.fetchval("select count(*) from flowdsl.mailbox") == 0
        assert (await stage.row(id))["mail"] == 10_000


# Migrations


@pytest.fixture
async def empty(server: str) -> AsyncIterator[str]:
    name = f"flowdsl_empty_{uuid4().hex[:12]}"
    connection = await asyncpg.connect(server)
    await connection.execute(f'create database "{name}"')
    yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    await connection.execute(f'drop database "{name}" with (force)')
    await connection.close()


@pytest.mark.shows("S4.65")
async def test_four_migrators_at_once_apply_each_migration_once(empty: str) -> None:
    """H1"""
    applied = await asyncio.gather(*(migrate(empty) for _ in range(4)))
    everything = [name for names in applied for name in names]
    assert len(everything) == len(set(everything)) >= 3
    connection = await asyncpg.connect(empty)
    assert await pending_migrations(connection) == []
    await connection.close()


async def test_a_migrator_killed_half_way_is_finished_by_the_next(empty: str) -> None:
    """H1: the one that was under way left nothing; those before it stay."""
    watcher = await asyncpg.connect(empty)
    holder = await asyncpg.connect(empty)
    task = asyncio.ensure_future(migrate(empty))
    await eventually(_exists(watcher, "flowdsl.audit"), "the first migration is there")
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("lock table flowdsl.audit in access exclusive mode")
    if not task.done():
        waiting = "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and pid <> pg_backend_pid()"

        async def killed() -> bool:
            pid = await watcher.fetchval(waiting)
            return task.done() or (pid is not None and await watcher.fetchval("select pg_terminate_backend($1)", pid))

        await eventually(killed, "it was killed")
    await transaction.rollback()
    await asyncio.gather(task, return_exceptions=True)
    before = {row["name"] for row in await watcher.fetch("select name from flowdsl.migrations")}
    assert not before & set(await migrate(empty))
    assert await pending_migrations(watcher) == []
    for connection in (watcher, holder):
        await connection.close()


def _exists(connection: Any, table: str) -> Any:
    async def exists() -> bool:
        return await connection.fetchval("select to_regclass($1) is not null", table)

    return exists


async def test_a_migration_that_was_changed_after_it_was_applied_is_refused(empty: str, tmp_path: Path) -> None:
    (tmp_path / "0001_mine.sql").write_text("create table mine (n int)")
    await migrate(empty, [tmp_path])
    (tmp_path / "0001_mine.sql").write_text("create table mine (n bigint)")
    with pytest.raises(StoreError, match="was changed after it was applied"):
        await migrate(empty, [tmp_path])


async def test_an_older_worker_beside_a_newer_schema_goes_on(stage: Stage) -> None:
    """H2: it changes no function, and runs what there is."""
    await stage.watcher.execute("insert into flowdsl.migrations (name, checksum) values ('flowdsl/9999_future.sql', 'x')")
    await stage.watcher.execute("update flowdsl.migrations set checksum = 'of the newer one' where name = 'flowdsl/functions'")
    assert await migrate(stage.dsn) == []
    assert await pending_migrations(stage.watcher) == []
    async with stage.worker(letters) as worker:
        assert await worker.wait(await worker.start(letters, "ab")) == Success("ab")


# What is given back


async def test_failing_everything_leaves_no_connection_behind(stage: Stage) -> None:
    """B16: every activity fails in every way while there are few connections; afterwards all of them are free."""
    ways = iter(range(1000))

    def fail(name: str) -> Any:
        if next(ways) % 2:
            raise RuntimeError(name)
        return Failure(Refused(name))

    stage.scripts |= dict.fromkeys("abcdef", fail)
    async with stage.worker(letters, transactions=2) as worker:
        ids = [await worker.start(letters, name) for name in "abcdef"]
        for id in ids:
            await worker.wait(id)
        busy = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'"
        assert await stage.watcher.fetchval(busy) == 0
