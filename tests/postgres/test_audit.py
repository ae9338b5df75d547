"""The audit chain: whatever is done to it afterwards is found, and nothing that writes or seals at the same time can fork it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from attrs import evolve
from click.testing import CliRunner

from flowdsl import Steps, audit, workflow
from flowdsl.cli import main
from flowdsl.errors import StoreError
from flowdsl.postgres.audit import Anchor, Verdict, add_anchors, read_anchors, seal, tenants, verify
from flowdsl.postgres.store import Store
from tests.postgres.scene import Scene, an_id, eventually, scene_at, send, start, turn
from tests.postgres.stage import Refused, Stage, act, stage_at

pytestmark = pytest.mark.anyio


@workflow("audited")
def audited(name: str) -> Steps[str, Refused]:
    yield from act(name)
    yield from audit("paid", {"name": name})
    return name


@pytest.fixture
async def scene(database: str) -> AsyncIterator[Scene]:
    async with scene_at(database) as scene:
        yield scene


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with await Store.open(database) as store:
        yield store


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage


async def write(connection: Any, *events: str, tenant: str = "default") -> None:
    for event in events:
        await connection.execute("select flowdsl.audited($1, null, $2, $3)", tenant, event, json.dumps({"event": event}).encode())


async def sealed(scene: Scene, store: Store, count: int = 6, *, tenant: str = "default") -> Verdict:
    await write(scene.watcher, *(f"e{n}" for n in range(count)), tenant=tenant)
    await seal(store)
    found = await verify(scene.watcher, tenant)
    assert (found.wrong, found.unsealed) == ([], 0)
    return found


async def tampered(scene: Scene, *statements: str) -> None:
    """As somebody who owns the tables: the triggers are off."""
    async with scene.watcher.transaction():
        await scene.watcher.execute("set local session_replication_role = replica")
        for statement in statements:
            await scene.watcher.execute(statement)


# Sealing


async def test_rows_are_numbered_and_chained_each_tenant_by_itself(scene: Scene, store: Store) -> None:
    await write(scene.watcher, "a", "b", "c")
    await write(scene.watcher, "x", tenant="other")
    assert await seal(store) == 4
    assert await seal(store) == 0
    rows = await scene.watcher.fetch("select tenant, event, seq, prev, hash from flowdsl.audit order by tenant, seq")
    assert [(row["tenant"], row["event"], row["seq"]) for row in rows] == [
        ("default", "a", 1),
        ("default", "b", 2),
        ("default", "c", 3),
        ("other", "x", 1),
    ]
    assert [row["prev"] for row in rows[1:3]] == [row["hash"] for row in rows[:2]]
    assert await tenants(scene.watcher) == ["default", "other"]
    assert [(await verify(scene.watcher, tenant)).rows for tenant in ("default", "other")] == [3, 1]


async def test_the_hash_does_not_depend_on_settings_of_the_session(scene: Scene, store: Store) -> None:
    await scene.watcher.execute(
        "set timezone = 'Asia/Kathmandu'; set datestyle = 'German'; set bytea_output = 'escape'; set intervalstyle = 'iso_8601'"
    )
    await write(scene.watcher, "here")
    assert await scene.watcher.fetchval("select flowdsl.seal('default', 10)") == 1
    await write(scene.watcher, "there")
    await seal(store)
    assert (await verify(scene.watcher, "default")).wrong == []
    assert (await verify(await scene.connection(), "default")).rows == 2


async def test_a_row_that_commits_late_is_sealed_late(scene: Scene, store: Store) -> None:
    late = await scene.connection()
    transaction = late.transaction()
    await transaction.start()
    await write(late, "first")
    await write(scene.watcher, "second")
    assert await seal(store) == 1
    await transaction.commit()
    assert await seal(store) == 1
    rows = await scene.watcher.fetch("select event, id, seq from flowdsl.audit order by seq")
    assert [row["event"] for row in rows] == ["second", "first"]
    assert rows[0]["id"] > rows[1]["id"]
    assert (await verify(scene.watcher, "default")).wrong == []


async def test_a_row_that_was_rolled_back_leaves_no_gap(scene: Scene, store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        async with scene.watcher.transaction():
            await write(scene.watcher, "never")
            raise ZeroDivisionError
    found = await sealed(scene, store, 2)
    assert found.seq == 2


async def test_fifty_writers_and_three_sealers_make_one_chain(scene: Scene, database: str, store: Store) -> None:
    """S23"""
    writing = True

    async def writer(number: int) -> None:
        async with store.connection() as connection:
            for n in range(12):
                async with connection.transaction():
                    await write(connection, f"{number}.{n}", tenant=("default", "other")[number % 2])

    async def sealer() -> int:
        count = 0
        async with await Store.open(database, size=1) as own:
            while writing:
                count += await seal(own)
            return count

    sealers = [asyncio.ensure_future(sealer()) for _ in range(3)]
    await asyncio.gather(*(writer(n) for n in range(50)))
    writing = False
    counts = await asyncio.gather(*sealers)
    counts.append(await seal(store))
    assert sum(counts) == 600
    for tenant in ("default", "other"):
        found = await verify(scene.watcher, tenant)
        assert (found.wrong, found.rows, found.unsealed) == ([], 300, 0)


async def test_two_sealers_at_once_the_second_leaves_it_to_the_first(scene: Scene) -> None:
    await write(scene.watcher, "a", "b")
    first, second = await scene.connection(), await scene.connection()
    transaction = first.transaction()
    await transaction.start()
    assert await first.fetchval("select flowdsl.seal('default', 10)") == 2
    late = await scene.blocked(second, second.fetchval("select flowdsl.seal('default', 10)"))  # both had to make the head
    await transaction.commit()
    assert await late == 0
    await write(scene.watcher, "c")
    await (transaction := first.transaction()).start()
    assert await first.fetchval("select flowdsl.seal('default', 10)") == 1
    assert await second.fetchval("select flowdsl.seal('default', 10)") == 0
    await transaction.commit()
    assert (await verify(scene.watcher, "default")).rows == 3


Hold = Callable[[Scene, Any], Awaitable[Any]]


async def at_the_head(scene: Scene, holder: Any) -> None:
    """Before anything is read: the first sealer of a tenant waits for one that makes the head at the same time."""
    await holder.execute("insert into flowdsl.audit_heads (tenant, seq, hash) values ('default', 0, flowdsl.audit_genesis('default'))")


async def at_the_first_row(scene: Scene, holder: Any) -> None:
    await holder.execute("select 1 from flowdsl.audit where event = 'a' for update")


async def at_the_last_row(scene: Scene, holder: Any) -> None:
    """Rows before it are updated already."""
    await holder.execute("select 1 from flowdsl.audit where event = 'c' for update")


@pytest.mark.parametrize("hold", [at_the_head, at_the_first_row, at_the_last_row], ids=lambda hold: hold.__name__)
async def test_a_sealer_that_dies_in_the_middle_has_sealed_nothing(scene: Scene, store: Store, hold: Hold) -> None:
    await write(scene.watcher, "a", "b", "c")
    holder, sealer = await scene.connection(), await scene.connection()
    transaction = holder.transaction()
    await transaction.start()
    await hold(scene, holder)
    pid = sealer.get_server_pid()
    task = await scene.blocked(sealer, sealer.fetchval("select flowdsl.seal('default', 10)"))
    await scene.watcher.execute("select pg_terminate_backend($1)", pid)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await task
    await transaction.rollback()
    await eventually(_dead(scene, pid), "the sealer's backend has ended")
    assert await scene.count("audit", "seq is not null") == 0
    assert await seal(store) == 3
    assert (await verify(scene.watcher, "default")).wrong == []


def _dead(scene: Scene, pid: int) -> Callable[[], Awaitable[bool]]:
    async def dead() -> bool:
        return await scene.watcher.fetchval("select count(*) from pg_stat_activity where pid = $1", pid) == 0

    return dead


@pytest.mark.parametrize("commits", [False, True], ids=["before its commit", "after its commit"])
async def test_a_sealer_that_dies_around_its_commit(scene: Scene, store: Store, commits: bool) -> None:
    await write(scene.watcher, "a", "b", "c")
    sealer = await scene.connection()
    await (transaction := sealer.transaction()).start()
    assert await sealer.fetchval("select flowdsl.seal('default', 2)") == 2
    pid = sealer.get_server_pid()
    if commits:
        await transaction.commit()
    await scene.watcher.execute("select pg_terminate_backend($1)", pid)
    await eventually(_dead(scene, pid), "the sealer's backend has ended")
    assert await seal(store) == (1 if commits else 3)
    found = await verify(scene.watcher, "default")
    assert (found.wrong, found.rows) == ([], 3)


async def test_a_broken_chain_of_one_tenant_holds_up_no_other(scene: Scene, store: Store) -> None:
    await sealed(scene, store, 3)
    await tampered(scene, "delete from flowdsl.audit_heads")
    await write(scene.watcher, "more")
    await write(scene.watcher, "x", tenant="other")
    assert await seal(store) == 1
    assert "the head of the chain is missing" in (await verify(scene.watcher, "default")).wrong
    assert (await verify(scene.watcher, "other")).wrong == []


async def test_workers_seal_within_a_look_around(stage: Stage) -> None:
    async def is_sealed() -> bool:
        return bool(await stage.watcher.fetchval("select count(*) from flowdsl.audit where event = 'paid' and seq = 1"))

    async with stage.worker(audited) as worker:
        await worker.wait(await worker.start(audited, "a"))
        await eventually(is_sealed, "the worker has sealed the row")
    assert (await verify(stage.watcher, "default")).wrong == []
    await stage.check()


# Tampering


TAMPERINGS = {
    "edit a fact": ("""update flowdsl.audit set facts = '{"event": "nothing"}' where seq = 3""", "row 3 (e2"),
    "edit a time": ("update flowdsl.audit set at = at + interval '1 microsecond' where seq = 3", "was changed after it was sealed"),
    "edit an event": ("update flowdsl.audit set event = 'E2' where seq = 3", "was changed after it was sealed"),
    "point it at another execution": ("update flowdsl.audit set execution = gen_random_uuid() where seq = 3", "was changed after it was sealed"),
    "edit the last": ("update flowdsl.audit set facts = 'x' where seq = 6", "row 6 (e5"),
    "edit a hash": ("update flowdsl.audit set hash = sha256('x') where seq = 3", "was changed after it was sealed"),
    "delete one": ("delete from flowdsl.audit where seq = 3", "row 3 is missing"),
    "delete the first": ("delete from flowdsl.audit where seq = 1", "row 1 is missing"),
    "delete one and close the gap": (
        "delete from flowdsl.audit where seq = 3; update flowdsl.audit set seq = seq - 1 where seq > 3",
        "row 3 (e3",
    ),
    "insert one": (
        "update flowdsl.audit set seq = seq + 100 where seq > 3; update flowdsl.audit set seq = seq - 99 where seq > 100;"
        "insert into flowdsl.audit (tenant, event, facts, seq, prev, hash) select tenant, 'forged', 'x', 4, sha256('p'), sha256('y') from flowdsl.audit where seq = 3",
        "row 4 (forged",
    ),
    "insert a forged one at the end": (
        "insert into flowdsl.audit (tenant, event, facts, seq, prev, hash) select tenant, 'forged', 'x', 7, hash, sha256('y') from flowdsl.audit where seq = 6",
        "row 7 (forged",
    ),
    "swap two": (
        "update flowdsl.audit set seq = 100 where seq = 3; update flowdsl.audit set seq = 3 where seq = 4; update flowdsl.audit set seq = 4 where seq = 100",
        "row 3 (e3",
    ),
    "swap what two say": (
        "update flowdsl.audit a set facts = b.facts, event = b.event from flowdsl.audit b where a.seq in (3, 4) and b.seq in (3, 4) and a.seq <> b.seq",
        "row 3 (e3",
    ),
    "cut off the tail": ("delete from flowdsl.audit where seq > 4", "the head names row 6, and its last row is 4"),
    "move the head back": (
        "update flowdsl.audit_heads set (seq, hash) = (select seq, hash from flowdsl.audit where seq = 4)",
        "the head names row 4",
    ),
    "drop the rows, keep the head": ("truncate flowdsl.audit", "the head names row 6, and its last row is 0"),
    "unseal the tail": ("update flowdsl.audit set seq = null, prev = null, hash = null where seq > 4", "the head names row 6"),
    "give it to another tenant": (
        "update flowdsl.audit set tenant = 'other'; update flowdsl.audit_heads set tenant = 'other'",
        "was changed after it was sealed|does not follow row 0",
    ),
}


@pytest.mark.parametrize("how", TAMPERINGS)
async def test_tampering_is_found(scene: Scene, store: Store, how: str) -> None:
    """S23"""
    statements, said = TAMPERINGS[how]
    before = await sealed(scene, store)
    await tampered(scene, statements)
    wrong = [what for tenant in await tenants(scene.watcher) for what in (await verify(scene.watcher, tenant, [before.anchor()])).wrong]
    assert any(part in what for what in wrong for part in said.split("|")), wrong


async def rewritten(scene: Scene, store: Store, keep: str) -> None:
    """The chain anew, from its first row, head included: as one who has all rights, and our own code."""
    await tampered(
        scene,
        f"delete from flowdsl.audit where not ({keep})",
        "delete from flowdsl.audit_heads",
        "update flowdsl.audit set seq = null, prev = null, hash = null",
    )
    await seal(store)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ("event <> 'e2'", "the chain ends at row 5, and row 6 was anchored"),
        ("seq <= 4", "its tail was cut off"),
        ("false", "the chain ends at row 0"),
    ],
    ids=["one row less", "the tail and the head", "the whole chain"],
)
async def test_a_chain_that_was_written_anew_is_found_by_its_anchor_alone(scene: Scene, store: Store, keep: str, said: str) -> None:
    anchor = (await sealed(scene, store)).anchor()
    await rewritten(scene, store, keep)
    assert (await verify(scene.watcher, "default")).wrong == []
    assert any(said in what for what in (await verify(scene.watcher, "default", [anchor])).wrong)


async def test_a_chain_that_was_written_anew_and_then_grew_is_found_by_its_anchor(scene: Scene, store: Store) -> None:
    anchor = (await sealed(scene, store)).anchor()
    await rewritten(scene, store, "event <> 'e2'")
    await write(scene.watcher, "more", "yet more")
    await seal(store)
    assert (await verify(scene.watcher, "default")).wrong == []
    found = await verify(scene.watcher, "default", [anchor])
    assert "row 6 is not the one that was anchored" in found.wrong[0]
    assert (await verify(scene.watcher, "default", [anchor], since=anchor)).wrong  # also when only what came since is read


async def test_what_nobody_seals_is_a_finding(scene: Scene, store: Store) -> None:
    await write(scene.watcher, "young")
    found = await verify(scene.watcher, "default")
    assert (found.unsealed, found.wrong) == (1, [])
    await scene.watcher.execute(
        "insert into flowdsl.audit (tenant, event, facts, at) values ('default', 'old', '', clock_timestamp() - interval '1 hour')"
    )
    assert "start a worker" in (await verify(scene.watcher, "default")).wrong[0]


@pytest.mark.parametrize(
    "statement",
    [
        "update flowdsl.audit set facts = 'x' where seq = 1",
        "update flowdsl.audit set seq = 9 where seq = 1",
        "update flowdsl.audit set seq = 9, prev = sha256('1'), hash = sha256('2'), tenant = 'x' where seq is null",
        "update flowdsl.audit set facts = 'x' where seq is null",
        "update flowdsl.audit set seq = null, prev = null, hash = null where seq = 1",
        "delete from flowdsl.audit where seq = 1",
        "delete from flowdsl.audit where seq is null",
        "truncate flowdsl.audit",
    ],
)
async def test_the_table_refuses_what_is_not_sealing(scene: Scene, store: Store, statement: str) -> None:
    await sealed(scene, store, 2)
    await write(scene.watcher, "young")
    with pytest.raises(asyncpg.RestrictViolationError, match="never changed or deleted"):
        await scene.watcher.execute(statement)
    assert (await verify(scene.watcher, "default")).unsealed == 1


async def test_a_fork_cannot_be_stored(scene: Scene, store: Store) -> None:
    await sealed(scene, store, 3)
    for seq in (2, 9):
        with pytest.raises(asyncpg.UniqueViolationError):
            await scene.watcher.execute(
                "insert into flowdsl.audit (tenant, event, facts, seq, prev, hash)"
                " select 'default', 'twin', '', $1::bigint, case when $1::bigint = 9 then prev else sha256('z') end, sha256('x') from flowdsl.audit where seq = 2",
                seq,
            )


# What is audited by itself


async def events(scene: Scene, id: str) -> list[tuple[str, Any]]:
    rows = await scene.watcher.fetch("select event, facts from flowdsl.audit where execution = $1 order by id", id)
    return [(row["event"], json.loads(row["facts"])) for row in rows]


async def test_a_block_is_audited_wherever_it_comes_from(scene: Scene, store: Store) -> None:
    """S24"""
    worker = await scene.worker()
    by_turn, by_worker, by_deaths = [await scene.execution(worker) for _ in range(3)]
    connection = await scene.connection()
    await send(connection, worker, evolve_cause(turn(by_turn, state="blocked", exit=b"x"), "undos failed"))
    await store.block(worker, by_worker, 1, 'a "cause" with\ttabs')
    gone = await scene.worker(lease=1, silent_for=60)
    await scene.watcher.execute("update flowdsl.executions set owner = $1, deaths = 2 where id = $2", gone, by_deaths)
    await scene.watcher.execute("update flowdsl.workers set gone = true where id = $1", gone)
    await connection.fetch("select * from flowdsl.claim($1, 10, array['w'], true)", worker)
    assert await events(scene, by_turn) == [("BLOCKED", {"cause": "undos failed"})]
    assert await events(scene, by_worker) == [("BLOCKED", {"cause": 'a "cause" with\ttabs'})]
    assert [event for event, _ in await events(scene, by_deaths)] == ["BLOCKED"]


def evolve_cause(commit: Any, cause: str) -> Any:
    commit.cause = cause
    return commit


@pytest.mark.shows("S1.141")
async def test_starts_and_ends_are_audited_when_asked_for(scene: Scene, store: Store) -> None:
    worker = await scene.worker()
    before = await start(scene.watcher, "before")
    await store.again("select flowdsl.audit_workflows(array['w'])")
    ((id, _, _),) = await start(scene.watcher, "one")
    await start(scene.watcher, "one")
    await scene.watcher.execute("update flowdsl.executions set owner = $1, epoch = 1, wake = null where id = $2", worker, id)
    connection = await scene.connection()
    for _ in range(2):
        await send(connection, worker, turn(id, state="succeeded", exit=b'{"success":1}'))
    other = await scene.execution(workflow="other")
    found = await events(scene, id)
    assert [event for event, _ in found] == ["STARTED", "ENDED"]
    assert (found[0][1]["key"], found[1][1]["status"]) == ("one", "succeeded")
    assert await events(scene, other) == await events(scene, before[0][0]) == []
    await store.again("select flowdsl.audit_workflows(array['*'])")
    assert [event for event, _ in await events(scene, await scene.execution(workflow="other"))] == ["STARTED"]
    await store.again("select flowdsl.audit_workflows(array[]::text[])")
    assert await events(scene, await scene.execution()) == []


async def test_a_start_that_is_rolled_back_leaves_no_row(scene: Scene, store: Store) -> None:
    await store.again("select flowdsl.audit_workflows(array['*'])")
    await (transaction := scene.watcher.transaction()).start()
    id = await scene.execution(id=an_id())
    assert len(await events(scene, id)) == 1
    await transaction.rollback()
    assert await scene.count("audit") == 0


# Anchors and the command line


def test_anchors_are_read_back_and_their_signature_is_asked_for(tmp_path: Path) -> None:
    file, anchor = tmp_path / "anchors", Anchor("ä", 7, b"\x01\x02", "2026-01-01T00:00:00+00:00")
    add_anchors(file, [anchor], b"secret")
    add_anchors(file, [evolve(anchor, seq=9)], b"secret")
    assert read_anchors(file, b"secret") == read_anchors(file, None) == [anchor, evolve(anchor, seq=9)]
    with pytest.raises(StoreError, match="not signed with this key"):
        read_anchors(file, b"another")
    file.write_text(file.read_text().replace('"seq": 9', '"seq": 8'))
    with pytest.raises(StoreError, match="line 2"):
        read_anchors(file, b"secret")


def test_half_a_line_that_a_crash_left_is_no_anchor(tmp_path: Path) -> None:
    file, anchor = tmp_path / "anchors", Anchor("a", 7, b"\x01", "now")
    file.write_text(anchor.signed(None) + "\n" + anchor.signed(None)[:20])
    assert read_anchors(file, None) == [anchor]
    add_anchors(file, [evolve(anchor, seq=8)], None)
    assert read_anchors(file, None) == [anchor, evolve(anchor, seq=8)]
    file.write_text("nonsense\n")
    with pytest.raises(StoreError, match="no anchor"):
        read_anchors(file, None)


async def command(*arguments: str) -> tuple[int, str]:
    result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    return result.exit_code, result.output


async def test_the_commands_verify_anchor_and_list(scene: Scene, database: str, tmp_path: Path) -> None:
    await write(scene.watcher, "a", "b", "c")
    file, key = tmp_path / "anchors", tmp_path / "key"
    key.write_bytes(b"secret\n")
    signed = ("--key-file", str(key), "--database", database)
    code, said = await command("audit", "anchor", "--file", str(file), *signed)
    assert (code, said) == (0, "")
    code, said = await command("audit", "verify", "--anchor", str(file), *signed)
    assert (code, "default: 3 rows" in said) == (0, True)
    code, said = await command("audit", "list", "--limit", "2", "--database", database)
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()] == ["3", "2"]
    await write(scene.watcher, "d")
    code, said = await command("audit", "anchor", "--file", str(file), *signed)
    assert [anchor.seq for anchor in read_anchors(file, b"secret")] == [3, 4]
    await tampered(scene, "truncate flowdsl.audit", "truncate flowdsl.audit_heads")
    code, said = await command("audit", "verify", "--database", database)
    assert code == 0
    code, said = await command("audit", "verify", "--anchor", str(file), *signed)
    assert (code, "its tail was cut off" in said) == (1, True)
    code, said = await command("audit", "anchor", "--file", str(file), *signed)
    assert code == 1
    assert len(read_anchors(file, b"secret")) == 2


async def test_the_command_says_whose_starts_and_ends_are_audited(database: str) -> None:
    assert await command("audit", "record", "--database", database) == (0, "none\n")
    code, said = await command("audit", "record", "a", "b", "--database", database)
    assert (code, [line.split()[0] for line in said.splitlines()]) == (0, ["a", "b"])
    assert (await command("audit", "record", "--none", "--database", database))[1] == "none\n"
    assert (await command("audit", "record", "a", "--all", "--database", database))[0] == 2
