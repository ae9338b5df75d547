"""What the bench claims was done is what the store has: each workload, tiny."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.bench import measured, people, waiting
from tests.bench.bare import TABLES, Ends, Rows, Single, Writer
from tests.bench.entrant import KINDS
from tests.bench.measured import Figures
from tests.bench.ours import WAL, Ours
from tests.bench.peers import Entrant, Silent, field
from tests.bench.profiled import ORDER
from tests.bench.servers import settings, slow_flush
from tests.bench.workloads import WORKLOADS
from tests.postgres.scene import eventually

STEPS = "select count(*) from flowdsl.journal where kind = 1 and fingerprint like 'perform bench.note %'"


@pytest.fixture(autouse=True)
def windows_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until steps enough were seen, however long the machine stands still."""
    monkeypatch.setattr(measured, "LONGEST", 10_000)


async def asked(dsn: str, query: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def ours(dsn: str) -> Ours:
    entrant = Ours(dsn)
    await entrant.begin()
    return entrant


async def test_each_sequential_step_that_is_counted_is_in_the_journal(database: str) -> None:
    entrant = await ours(database)
    figures = await entrant.seq(3, 0.2)
    assert figures.more["total"] == await asked(database, STEPS) >= figures.count > 0
    assert figures.wal_bytes is not None and figures.wal_bytes > 100  # more than what a step answers with
    profile = await entrant.profile(2, 0.2)
    parts = [profile.more[part] for part in ORDER]
    assert profile.client_us is not None and (sum(parts) == pytest.approx(profile.client_us) or profile.more["samples"] <= 1)
    bytes = {name: each for name, each in profile.more.items() if name.startswith(WAL)}
    assert bytes[f"{WAL}journal"] > 100 and bytes[f"{WAL}index journal_pkey"] > 30  # a row that holds the answer, and its place in the index


async def test_parallel_steps_children_and_storms_are_all_there(database: str) -> None:
    entrant = await ours(database)
    assert (await entrant.fanout(40, 0)).count == 40
    assert await asked(database, STEPS) == 40 + 10  # ten come before, to warm up
    assert (await entrant.children(30, 0)).count == 30
    done = "select count(*) from flowdsl.executions where workflow = 'bench.child' and status = 'succeeded'"
    assert await asked(database, done) == 30 + 10
    for again in (1, 2):  # an instant is started once for each schedule: the second storm has others
        assert (await entrant.storm(20, 0)).count == 20
        assert await asked(database, done) == 40 + again * 20
    assert await asked(database, "select count(*) from flowdsl.executions where status <> 'succeeded'") == 0


async def test_woken_executions_had_all_been_suspended_whatever_else_the_store_has(database: str) -> None:
    entrant = await ours(database)
    await entrant.fanout(5, 0)
    await entrant.children(5, 0)
    assert await asked(database, waiting.HOW_MANY.format("succeeded")) == 0  # though others have
    found = await waiting.measure(database, 5)
    assert await asked(database, "select count(*) from flowdsl.executions where workflow = 'bench.waiting' and status = 'succeeded'") == 5
    assert found.count == 5 and found.bytes_each > 100 and found.suspended_mb > 10


async def test_the_killed_process_s_steps_are_kept_and_none_runs_again(database: str) -> None:
    async with field({"ours": database}) as found:
        figures = await found.killed("ours", 7)
    assert figures.count == figures.more["kept"] == 7
    assert figures.more["run_again"] == 0
    assert await asked(database, STEPS) == 8


async def test_the_limits_write_what_they_count(database: str) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute(TABLES)
    writer = Writer(connection)
    writing = asyncio.create_task(writer.write())
    flow = uuid4()
    await asyncio.gather(writer.put("begun", flow, 0, b"1"), *(writer.put("row", flow, seq, b"{}") for seq in range(9)))
    await writer.put("ended", flow, 0, b"1")
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert writer.steps == await asked(database, "select count(*) from bare_rows") == 9
    assert await asked(database, "select count(*) from bare_flows where state = 2") == 1
    await connection.close()


@asynccontextmanager
async def keeping(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
    """Limits clear their tables away; here they leave them to be counted."""
    execute = asyncpg.Connection.execute

    async def kept(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
        return None if query.startswith("truncate") else await execute(self, query, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.Connection, "execute", kept)
        yield


async def test_a_commit_a_row_and_wide_limits_count_their_rows(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with keeping(monkeypatch):
        single = Single(database)
        await single.begin()
        figures = await single.seq(2, 0.1)
        assert figures.more["total"] == await asked(database, "select count(*) from bare_rows")
        await single.cold(1, 0)
        rows, ends = Rows(database), Ends(database)
        await rows.begin()
        await ends.begin()
        before = await asked(database, "select count(*) from bare_rows")
        await rows.fanout(25, 0)
        await ends.children(15, 0)
        assert await asked(database, "select count(*) from bare_rows") - before == 25 + 1 + 15 + 1
        assert await asked(database, "select count(*) from bare_flows where state = 2") == 15
        assert (await rows.seq(2, 0.2)).count > 0


async def test_a_sync_and_the_client_beside_it_write_the_same_rows(server: str) -> None:
    with_journal, without = [await people.measured(server, name, 30) for name in ("ours", "client")]
    assert with_journal.count == without.count > 30
    assert with_journal.more["links"] == without.more["links"] > 10
    assert with_journal.more["entries"] > 30 and without.more["entries"] == 0
    assert with_journal.more["requests"] >= without.more["requests"] > 10


async def test_dbos_does_what_is_counted(database: str) -> None:
    pytest.importorskip("dbos")
    async with field({"dbos": database}) as found:
        steps = "select count(*) from dbos.operation_outputs"
        figures = await found.measured("dbos", "seq", 3, 0.1)
        assert figures.more["total"] == await asked(database, steps) - 1 >= max(1, figures.count)  # one came before, to warm up
        before = await asked(database, steps)
        await found.measured("dbos", "fanout", 12, 0)
        assert await asked(database, steps) - before == 12 + 10
        await found.measured("dbos", "children", 3, 0)
        assert await asked(database, "select count(*) from dbos.workflow_status where name = 'child' and status = 'SUCCESS'") == 3 + 10
        await found.measured("dbos", "wake", 3, 0)
        assert await asked(database, "select count(*) from dbos.workflow_status where name = 'waiting' and status = 'SUCCESS'") == 3
        assert found.versions["dbos"][0].isdigit()


async def test_absurd_does_what_is_counted(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("absurd_sdk")
    pytest.importorskip("absurdctl")
    from tests.bench.peer_absurd import Absurd

    class Kept(Absurd):
        """Its queues stay, to be counted."""

        @asynccontextmanager
        async def _queue(self) -> AsyncGenerator[str]:
            self._queues += 1
            await self._watcher.execute("select absurd.create_queue($1)", name := f"q{self._queues}")
            yield name

    absurd = Kept(database)
    await absurd.begin()
    figures = await absurd.seq(2, 0.1)
    assert figures.more["total"] == await asked(database, "select count(*) from absurd.c_q1") >= figures.count > 0
    await absurd.fanout(6, 0)  # three come before, to warm up
    assert await asked(database, "select count(*) from absurd.c_q2") == 6 + 3
    await absurd.children(4, 0)
    assert await asked(database, "select count(*) from absurd.t_q5 where state = 'completed'") == 4 + 3
    await absurd.wake(4, 0)
    assert await asked(database, "select count(*) from absurd.t_q6 where state = 'completed'") == 4


async def test_an_entrant_that_fails_says_why(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with field({"ours": database}) as found:
        with pytest.raises(Silent, match=r"flowdsl: .*nothing_of_the_kind"):
            await found.measured("ours", "nothing_of_the_kind", 1, 0)
        figures = await found.measured("ours", "fanout", 3, 0)  # another process takes its place
        assert isinstance(figures, Figures) and figures.count == 3
    with pytest.raises(Silent, match="flowdsl ended before it answered"):
        await Entrant.begin("ours", "postgresql:///nowhere?host=/nowhere")


async def test_the_slow_disk_is_the_server_s_for_as_long_as_it_is_wanted(server: str) -> None:
    before = (await settings(server))["commit_delay"]

    async def delayed(wanted: str) -> None:
        async def there() -> bool:
            return bool((await settings(server))["commit_delay"] == wanted)

        await eventually(there, f"commit_delay is {wanted}")  # the server reads its settings when it gets round to it

    async with slow_flush(server, 1.5):
        await delayed("1500")
    await delayed(before)


def test_every_workload_says_who_takes_part_and_can_be_asked_of_them() -> None:
    for workload in WORKLOADS.values():
        for size in (*workload.who, *workload.quick):
            for name in set(workload.parties(size)) - {"client"}:
                module, kind = KINDS[name]
                assert find_spec(module) is not None, module
                if name in ("ours", "bare", "ends", "single"):
                    do = workload.do or workload.name
                    wanted = {"kill": ["die", "resume"]}.get(do, [] if do == "people" else [do])
                    assert all(hasattr(getattr(import_module(module), kind), one) for one in wanted), (workload.name, name)
