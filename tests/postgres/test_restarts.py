"""Postgres goes away and comes back: killed backends, stopped at once, its postmaster killed, an older copy of it, no room on its disk. Nobody helps."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal as signals
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from flowdsl import Deployment, Result, Retry, Steps, Success, bind, sleep, this_attempt, workflow
from flowdsl.errors import StoreError
from flowdsl.journal import SUCCESS
from flowdsl.postgres import embedded
from flowdsl.postgres.embedded import Server
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.server import server_of
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Worker
from tests.postgres.scene import eventually
from tests.postgres.stage import Refused, Stage, act, mark, stage_at

pytestmark = pytest.mark.anyio


stubborn = mark.using(retry=Retry.constant("10ms", attempts=100))
"""Outlasts every connection that is cut under it."""


@workflow("restarts.steps")
def steps(names: str) -> Steps[str, Refused]:
    done = ""
    for name in names:
        done += yield from act(name)
        yield from sleep("30ms")
        yield from stubborn(name)
    return done


@workflow("restarts.once")
def once(name: str) -> Steps[str, Refused]:
    return (yield from mark.using(retry=Retry.constant("10ms", attempts=1))(name))


@workflow("restarts.acts")
def acts(names: str) -> Steps[str, Refused]:
    done = ""
    for name in names:
        done += yield from act(name)
    return done


@workflow("restarts.one")
def one(name: str) -> Steps[str, Refused]:
    return (yield from act(name))


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage
        await stage.check()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server that one test may hurt."""
    tmp_path.chmod(0o755)
    server = embedded.start(tmp_path, settings={"listen_addresses": ""})
    asyncio.run(migrate(server.dsn))
    yield server
    server.release()
    embedded.start(tmp_path).release()  # whoever started it again may have been a thread that has ended


def postmaster(server: Server) -> int:
    return int((server.data / "postmaster.pid").read_text().split()[0])


async def swing(stage: Stage, worker: Worker, count: int) -> list[str]:
    ids = [await worker.start(steps, "abc") for _ in range(count)]
    await eventually(lambda: len(stage.calls) > count, "it is in full swing")
    return ids


async def all_end(server: Server, stage: Stage, worker: Worker, ids: list[str]) -> None:
    """Each ends as if nothing had been; every transactional write is there once."""
    assert [await asyncio.wait_for(worker.wait(id), 60) for id in ids] == [Success("abc")] * len(ids)
    stage.watcher = await asyncpg.connect(server.dsn)
    assert await stage.marks() == sorted("abc" * len(ids))
    await stage.check()


class TestServerDies:
    @pytest.mark.parametrize("how", [signals.SIGQUIT, signals.SIGKILL], ids=["stopped at once", "postmaster killed"])
    async def test_whoever_uses_the_embedded_server_starts_it_again(self, own: Server, how: signals.Signals) -> None:
        own.watch()
        async with stage_at(own.dsn) as stage, stage.worker(steps) as worker:
            ids = await swing(stage, worker, 10)
            before = postmaster(own)
            os.kill(before, how)
            await all_end(own, stage, worker, ids)
            assert postmaster(own) != before
            await eventually(lambda: worker.listener is not None and worker.listener.connections > 1, "it listens again")

    async def test_every_connection_is_killed_again_and_again(self, stage: Stage) -> None:
        async with stage.worker(steps) as worker:
            ids = await swing(stage, worker, 10)
            for _ in range(8):
                await stage.kill_connections()
                await asyncio.wait({asyncio.ensure_future(worker.wait(ids[-1]))}, timeout=0.1)
            assert [await worker.wait(id) for id in ids] == [Success("abc")] * 10
        assert await stage.marks() == sorted("abc" * 10)

    async def test_a_transaction_that_cannot_begin_waits_for_the_server(self, own: Server) -> None:
        """Nothing has happened yet: it is no attempt of those that the policy counts."""

        async def after_a_stop(name: str) -> Result[str, Refused]:
            await asyncio.to_thread(stopped, own)
            async with this_attempt().transaction() as connection:
                await connection.execute("insert into marks (name, key) values ($1, $2)", name, this_attempt().idempotency_key)
                return Success(name)

        deployment = Deployment([once], [bind(mark, after_a_stop)])
        async with stage_at(own.dsn) as stage:
            with capture_logs() as logs:
                async with stage.worker(deployment=deployment, lease=60.0) as worker:
                    id = await worker.start(once, "a")
                    await eventually(lambda: any(line["event"] == "transaction.waits" for line in logs), "it waits")
                    await asyncio.to_thread(restarted, own)
                    assert await asyncio.wait_for(worker.wait(id), 60) == Success("a")
            stage.watcher = await asyncpg.connect(own.dsn)
            assert [entry.kind for entry in await stage.journal(id)] == [SUCCESS]
            assert await stage.marks() == ["a"]

    async def test_a_restored_copy_is_noticed_and_what_it_lost_is_done_again(self, own: Server, tmp_path: Path) -> None:
        """What the old server had acknowledged after the copy is gone; nothing in memory may build on it."""
        async with stage_at(own.dsn) as stage, stage.worker(acts, lease=30.0) as worker:
            stage.gate("b")
            stage.gate("c")
            id = await worker.start(acts, "abcd")
            await stage.at_gate("b")
            await asyncio.to_thread(stopped, own)
            copy = tmp_path / "copy"
            await asyncio.to_thread(lambda: subprocess.run(["cp", "-a", own.data, copy], check=True))
            known = worker.lower()
            await asyncio.to_thread(restarted, own)
            stage.open_gate("b")
            await stage.at_gate("c")
            await eventually(lambda: worker.heart._reading.store > known, "its heart has beaten since the copy: that is what gives the copy away")
            await asyncio.to_thread(stopped, own)
            shutil.rmtree(own.data)
            copy.rename(own.data)
            before = worker.id
            with capture_logs() as logs:
                await asyncio.to_thread(restarted, own)
                stage.open_gate("c")
                await eventually(lambda: worker.id != before, "it began anew", 60)
            assert {"back in time" in line["why"] for line in logs if line["event"] == "server.changed"} == {True}, "at each try to begin anew"
            stage.scripts.clear()
            assert await asyncio.wait_for(worker.wait(id), 60) == Success("abcd")
            assert stage.counts["b"] >= 2, "its outcome was lost with the old server"
            stage.watcher = await asyncpg.connect(own.dsn)
            await stage.check()


def stopped(server: Server) -> None:
    done = server._place.run("pg_ctl", "-D", str(server.data), "-m", "immediate", "-w", "stop")
    assert done.returncode == 0, done.stderr


def restarted(server: Server) -> None:
    embedded._start(server._place, server._settings)


class TestNoRoom:
    """A trigger refuses what Postgres refuses on a full disk."""

    async def test_nothing_is_blocked_and_all_goes_on_when_there_is_room_again(self, stage: Stage) -> None:
        await full(stage, True)
        go = asyncio.Event()

        async def waits(name: str) -> Any:
            await go.wait()
            return Success(name)

        stage.scripts["a"] = waits
        async with stage.worker(one) as worker:
            ids = [await worker.start(one, name) for name in "aaa"]
            await eventually(lambda: len(stage.calls) == 3, "all run")
            go.set()
            await eventually(lambda: worker.committer.full, "it knows that there is no room")
            assert not worker.has_room
            assert [(await stage.row(id))["status"] for id in ids] == ["running"] * 3
            await full(stage, False)
            assert [await asyncio.wait_for(worker.wait(id), 60) for id in ids] == [Success("a")] * 3
            assert not worker.committer.full and worker.has_room, "it knows that there is room"
        assert stage.counts == {"a": 3}

    async def test_claims_wait_too(self, stage: Stage) -> None:
        async with stage.worker(one) as worker:
            await full(stage, True)
            id = await worker.start(one, "a")
            await eventually(lambda: worker.committer.full, "it knows that there is no room")
            other = await worker.start(one, "b")
            assert (await stage.row(other))["owner"] is None, "it stays for whoever has room"
            await full(stage, False)
            assert [await asyncio.wait_for(worker.wait(one), 60) for one in (id, other)] == [Success("a"), Success("b")]
        assert stage.counts == {"a": 1, "b": 1}


async def full(stage: Stage, on: bool) -> None:
    await stage.watcher.execute(
        "create or replace function no_room() returns trigger language plpgsql as $$ begin"
        "  raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;"
        "drop trigger if exists no_room on flowdsl.journal;"
        + ("create trigger no_room before insert on flowdsl.journal for each row execute function no_room()" if on else "")
    )


class TestRefused:
    async def test_a_server_that_loses_what_it_acknowledges(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FLOWDSL_UNSAFE")
        with pytest.raises(StoreError, match=r"fsync, full_page_writes, synchronous_commit are off.*FLOWDSL_UNSAFE=1"):
            async with stage.worker(one):
                pass
        assert await stage.watcher.fetchval("select count(*) from flowdsl.workers") == 0

    async def test_a_store_beyond_this_code_at_the_start(self, stage: Stage) -> None:
        await stage.watcher.execute(NEWER)
        with pytest.raises(StoreError, match=r"needs one that knows flowdsl/9999_later\.sql.*Update flowdsl"):
            async with stage.worker(one):
                pass

    async def test_a_store_that_is_migrated_beyond_this_code_while_it_works(self, stage: Stage) -> None:
        async with stage.worker(one) as worker:
            assert await worker.wait(await worker.start(one, "a")) == Success("a")
            with capture_logs() as logs:
                await stage.watcher.execute(NEWER)
                await eventually(lambda: worker.outdated is not None, "it knows")
                id, looked = await worker.start(one, "b"), worker._look_at
                await eventually(lambda: worker._look_at > looked, "it looks again")
                assert (await stage.row(id))["owner"] is None
            assert [line["event"] for line in logs if line["log_level"] == "error"] == ["worker.outdated"]
            await stage.watcher.execute(NEWER.replace("9999_later", "0001_journal"))
            assert await worker.wait(id) == Success("b")

    async def test_a_standby_is_not_worked_on(self, stage: Stage) -> None:
        class Recovering:
            async def fetchrow(self, query: str) -> Any:
                return {"version": 180000, "standby": True, "timeline": None, "written": None}

        with pytest.raises(StoreError, match="standby"):
            await server_of(Recovering())

    async def test_the_same_server_later_is_the_same(self, stage: Stage) -> None:
        async with await Store.open(stage.dsn) as store, store.connection() as connection:
            before = await server_of(connection)
            await connection.execute("create table something as select generate_series(1, 1000)")
            after = await server_of(connection)
        assert after.lost_since(before) is None
        assert before.written <= after.written


NEWER = "create or replace function flowdsl.needs() returns text language sql immutable as $$ select 'flowdsl/9999_later.sql'::text $$"
