"""Behind a pooler in transaction mode, where each transaction has another server connection: ours always, and PgBouncer itself where it is installed."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Never
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import asyncpg
import pytest

from flowdsl import Child, Steps, Success, all_, iterate, signal, sleep, workflow
from flowdsl.errors import StoreError
from flowdsl.flow import Done, Next, Round, do
from flowdsl.postgres import connection
from flowdsl.postgres.connection import connect, open_pool, pooled
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import new_id
from tests.postgres.pooler import Pooler, pooled_at
from tests.postgres.scene import eventually
from tests.postgres.stage import Refused, Stage, act, mark, stage_at

news = signal("news", int)
pytestmark = pytest.mark.anyio
PGBOUNCER = os.environ.get("FLOWDSL_TEST_PGBOUNCER") or shutil.which("pgbouncer") or ""


@do
def rounds(state: int) -> Steps[Round[int, int], Refused]:
    yield from act(f"round {state}")
    return Next(state + 1) if state < 3 else Done(state)


@workflow("pooler.child")
def child(name: str) -> Steps[str, Refused]:
    return (yield from act(f"child {name}"))


@workflow("pooler.mixed")
def mixed(name: str) -> Steps[str, Refused]:
    marked, loop = yield from all_(mark(name), iterate(0, rounds))
    started: Child[str, Refused] = yield from child.start(name, key=name)
    yield from sleep("30ms")
    got = yield from news.receive()
    return f"{marked} {loop} {got} {(yield from started.join())}"


@workflow("pooler.waits")
def waits(key: str) -> Steps[int, Never]:
    return (yield from news.receive(key))


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage
        await stage.check()


@pytest.fixture(params=["ours", "PgBouncer"])
async def address(request: pytest.FixtureRequest, stage: Stage, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "ours":
        async with pooled_at(stage.dsn, size=4) as pooler:
            yield pooler.dsn
    elif not PGBOUNCER:
        pytest.skip("there is no pgbouncer: install it, or name it by FLOWDSL_TEST_PGBOUNCER")
    else:
        process = bouncer(stage.dsn, tmp_path)
        url = at(stage.dsn, str(tmp_path))
        await eventually(lambda: answers(url), "PgBouncer answers")
        yield url
        process.terminate()
        process.wait()


async def answers(url: str) -> bool:
    try:
        await (await asyncpg.connect(url, statement_cache_size=0)).close()
    except (OSError, asyncpg.PostgresError):
        return False
    return True


def at(dsn: str, folder: str) -> str:
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(query=urlencode({"host": folder})))


def bouncer(dsn: str, folder: Path) -> subprocess.Popen[bytes]:
    parts = urlsplit(dsn)
    (folder / "users.txt").write_text(f'"{parts.username}" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={parse_qs(parts.query)['host'][0]} port={parts.port or 5432} user={parts.username}\n"
        f"[pgbouncer]\nlisten_addr =\nunix_socket_dir = {folder}\nlisten_port = 5432\nauth_type = trust\nauth_file = {folder}/users.txt\n"
        "pool_mode = transaction\ndefault_pool_size = 4\nmax_client_conn = 200\nserver_round_robin = 1\n"
    )
    folder.chmod(0o777)
    as_somebody: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        somebody = pwd.getpwnam("postgres" if "postgres" in {one.pw_name for one in pwd.getpwall()} else "nobody")
        as_somebody = {"user": somebody.pw_uid, "group": somebody.pw_gid}
        for one in (folder, *folder.iterdir()):
            os.chown(one, somebody.pw_uid, somebody.pw_gid)
        for above in list(folder.parents)[:3]:
            above.chmod(above.stat().st_mode | 0o055)
    return subprocess.Popen([PGBOUNCER, "-q", str(folder / "pgbouncer.ini")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_somebody)


class TestWorking:
    async def test_all_kinds_of_work_end(self, stage: Stage, address: str) -> None:
        async with stage.worker(mixed, dsn=address, transactions=1) as worker:
            assert worker.store.pooled, "found out by itself"
            assert worker.listener is None
            ids = [await worker.start(mixed, f"m{n}") for n in range(12)]
            for id in ids:
                await worker.store.send("default", id, "signal", "news", b"7", new_id())
            assert [await worker.wait(id) for id in ids] == [Success(f"m{n} 3 7 child m{n}") for n in range(12)]
        assert await stage.marks() == sorted(f"m{n}" for n in range(12))

    async def test_two_workers_share_the_work(self, stage: Stage, address: str) -> None:
        deployment = stage.deployment(mixed)
        async with (
            stage.worker(deployment=deployment, dsn=address, transactions=1) as worker,
            stage.worker(deployment=deployment, dsn=address, transactions=1, capacity=4) as other,
        ):
            ids = [await worker.start(mixed, f"m{n}") for n in range(8)]
            for id in ids:
                await other.store.send("default", id, "signal", "news", b"7", new_id())
            assert [await worker.wait(id) for id in ids] == [Success(f"m{n} 3 7 child m{n}") for n in range(8)]

    async def test_correlation_keys(self, stage: Stage, address: str) -> None:
        async with stage.worker(waits, dsn=address) as worker:
            early, late = await worker.start(waits, "late"), await worker.start(waits, "early")
            assert await worker.store.send("default", "early", "signal", "news", b"1", new_id()) in ("sent", "unmatched")
            await worker.store.send("default", "late", "signal", "news", b"2", new_id())
            assert (await worker.wait(early), await worker.wait(late)) == (Success(2), Success(1))

    async def test_a_row_that_somebody_locks_holds_up_nobody_else(self, stage: Stage, address: str) -> None:
        """Without a setting of its own the committer's patience goes with each statement."""
        async with stage.worker(child, dsn=address) as worker:
            stage.gate("child a")
            held = await worker.start(child, "a")
            await stage.at_gate("child a")
            async with stage.watcher.transaction():
                await stage.watcher.execute("select 1 from flowdsl.executions where id = $1 for update", held)
                stage.open_gate("child a")
                await eventually(lambda: worker.committer.has(held), "its turn is under way")
                assert await asyncio.wait_for(worker.wait(await worker.start(child, "b")), 60) == Success("child b")
            assert await worker.wait(held) == Success("child a")

    async def test_the_tables_are_made_through_it(self, server: str, address: str, stage: Stage) -> None:
        await stage.watcher.execute("drop schema flowdsl cascade")
        assert await migrate(address) != []
        assert await migrate(address) == []


class TestTelling:
    async def test_a_direct_connection_is_no_pooler(self, stage: Stage) -> None:
        assert not await pooled(stage.dsn)

    async def test_a_pooler_is_told_by_its_process_ids(self, stage: Stage) -> None:
        async with pooled_at(stage.dsn) as pooler:
            assert await pooled(pooler.dsn)
            assert pooler.refused == [], "and is asked nothing that it refuses"

    @pytest.mark.parametrize(("said", "meant"), [("true", True), ("1", True), ("FALSE", False)])
    async def test_the_url_says_so(self, stage: Stage, said: str, meant: bool) -> None:
        url = f"{stage.dsn}&pgbouncer={said}"
        assert await pooled(url) is meant
        one = await connect(url, lock_timeout="2000")
        assert (await one.fetchval("show lock_timeout") == "2s") is not meant, "settings are for direct connections"
        await one.close()

    async def test_the_environment_says_so_and_the_url_wins(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLOWDSL_PGBOUNCER", "true")
        assert await pooled(stage.dsn)
        assert not await pooled(f"{stage.dsn}&pgbouncer=false")

    async def test_what_is_neither_is_refused(self, stage: Stage) -> None:
        with pytest.raises(StoreError, match="pgbouncer=maybe is neither true nor false"):
            await Store.open(f"{stage.dsn}&pgbouncer=maybe")

    async def test_a_direct_url_brings_hints_back(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLOWDSL_DIRECT_URL", stage.dsn)
        async with pooled_at(stage.dsn) as pooler, stage.worker(child, dsn=pooler.dsn) as worker:
            await eventually(lambda: worker.listener is not None and worker.listener.connections == 1, "it listens")


class TestThePoolerItself:
    """Ours must be as hard as the real one, or it shows nothing."""

    async def test_each_transaction_has_another_server_process(self, stage: Stage) -> None:
        async with pooled_at(stage.dsn) as pooler:
            one = await asyncpg.connect(pooler.dsn, statement_cache_size=0)
            assert len({await one.fetchval("select pg_backend_pid()") for _ in range(9)}) == 3
            async with one.transaction():
                assert len({await one.fetchval("select pg_backend_pid()") for _ in range(9)}) == 1
            await one.close()

    async def test_named_statements_fail(self, stage: Stage) -> None:
        async with pooled_at(stage.dsn) as pooler:
            one = await asyncpg.connect(pooler.dsn)
            with pytest.raises((asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)):
                for _ in range(9):
                    await one.fetchval("select $1::int", 1)
            one.terminate()

    async def test_settings_are_refused(self, stage: Stage) -> None:
        async with pooled_at(stage.dsn) as pooler:
            with pytest.raises(asyncpg.PostgresError, match="unsupported startup parameter: jit"):
                await asyncpg.connect(pooler.dsn, server_settings={"jit": "off"})
            assert pooler.refused == ["jit"]

    async def test_who_leaves_in_the_middle_leaves_nothing_open(self, stage: Stage) -> None:
        async with pooled_at(stage.dsn, size=1) as pooler:
            one = await asyncpg.connect(pooler.dsn, statement_cache_size=0)
            await one.execute("begin; insert into marks values ('half', 'done')")
            one.terminate()
            assert await _asked(pooler, "select count(*) from marks") == 0


async def _asked(pooler: Pooler, query: str) -> Any:
    pool = await open_pool(pooler.dsn, size=1)
    try:
        return await pool.fetchval(query)
    finally:
        pool.terminate()


@pytest.fixture(autouse=True)
def _nothing_known() -> None:
    connection._found.clear()
