"""What the doctor says of a store: facts, and each problem with what to do."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flowdsl.postgres import doctor
from flowdsl.postgres.doctor import examine
from tests.postgres.scene import Scene, scene_at
from tests.postgres.test_audit import command, tampered

pytestmark = pytest.mark.anyio

UNSAFE = ("fsync is off", "full_page_writes is off", "synchronous_commit is off")  # as the server of the tests is


@pytest.fixture
async def scene(database: str) -> AsyncIterator[Scene]:
    async with scene_at(database) as scene:
        yield scene


async def problems(scene: Scene) -> list[str]:
    """But for what is true of the tests' server."""
    return [one for one in (await examine(scene.watcher))[1] if not one.startswith(UNSAFE)]


def seconds(pattern: str, problem: str) -> int:
    """As many as a problem tells; a few more may have gone by than the test has made up, no hour of them."""
    found = re.search(pattern, problem)
    assert found is not None, problem
    told = int(found[1])
    assert told < 2 * 3600
    return told


async def test_an_empty_store_has_no_problem(scene: Scene) -> None:
    facts, _ = await examine(scene.watcher)
    assert await problems(scene) == []
    assert facts["executions"] == facts["workers"] == facts["oldest due"] == "none"
    assert facts["dead letters"] == "0 failed, 0 blocked"
    assert set(facts) >= {"server", "transaction age", "notify queue", "size"}


async def test_unsafe_settings_are_problems(scene: Scene) -> None:
    """B15"""
    await scene.watcher.execute("set synchronous_commit = off")
    assert any("synchronous_commit is off" in one for one in (await examine(scene.watcher))[1])


async def test_the_only_worker_died_with_executions(scene: Scene) -> None:
    dead = await scene.worker(lease=10, silent_for=60)
    await scene.execution(dead)
    (problem,) = await problems(scene)
    assert seconds(r"has not beaten for (\d+) s", problem) >= 60
    assert "has 1 executions: start a worker" in problem
    await scene.worker()
    assert "another will take them over" in (await problems(scene))[0]
    await scene.watcher.execute("update flowdsl.workers set gone = true where id = $1", dead)
    assert "start a worker that knows their workflows" in (await problems(scene))[0]
    await scene.watcher.execute("update flowdsl.executions set owner = null, status = 'suspended'")
    assert await problems(scene) == []


async def test_what_is_due_is_told_and_is_a_problem_when_nobody_takes_it(scene: Scene) -> None:
    id = await scene.execution(wake=await scene.watcher.fetchval("select clock_timestamp() - interval '5 s'"))
    facts, _ = await examine(scene.watcher)
    assert id in facts["oldest due"]
    assert "no worker is alive: start one that knows w" in (await problems(scene))[0]
    await scene.worker()
    assert await problems(scene) == []
    await scene.watcher.execute("update flowdsl.executions set wake = clock_timestamp() - interval '2 min'")
    assert seconds(rf"w {id} has been due for (\d+) s", (await problems(scene))[0]) >= 120


async def test_dead_letters_are_counted_and_blocked_ones_named(scene: Scene) -> None:
    id = await scene.execution(status="blocked", cause="first line\nsecond")
    await scene.execution(status="failed")
    await scene.execution(status="blocked", cause=None)
    assert (await examine(scene.watcher))[0]["dead letters"] == "1 failed, 2 blocked"
    assert f"w {id} is blocked: first line" in await problems(scene)
    await scene.watcher.execute("update flowdsl.executions set discarded = now()")
    assert await problems(scene) == []


async def test_an_owner_without_a_row_is_a_problem(scene: Scene) -> None:
    worker = await scene.worker()
    await scene.execution(worker)
    await scene.watcher.execute("delete from flowdsl.workers")
    assert "1 executions are owned by workers without a row" in (await problems(scene))[0]


async def test_a_transaction_that_is_open_for_long_is_named_with_what_ends_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """B12"""
    monkeypatch.setattr(doctor, "LONG", 0.0)
    other = await scene.connection()
    await (transaction := other.transaction()).start()
    await other.execute("select 1")
    (problem,) = [one for one in await problems(scene) if "open for" in one]
    assert f"pg_terminate_backend({other.get_server_pid()})" in problem
    await transaction.rollback()
    assert not [one for one in await problems(scene) if "open for" in one]


async def test_old_transaction_ids_are_a_problem(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """B17"""
    monkeypatch.setattr(doctor, "AGE", 0)
    assert any("vacuum freeze" in one for one in await problems(scene))


async def test_a_schedule_that_cannot_be_planned_is_a_problem(scene: Scene) -> None:
    insert = (
        "insert into flowdsl.schedules (id, tenant, workflow, version, request, rule, zone, jitter, overlap, catch_up, within, due, upcoming, problem)"
        " values ($1, 'default', 'w', 1, 'null', '0 3 * * *', 'UTC', '0', 'skip', 'one', '1 day', now() - $2::interval, now(), $3)"
    )
    from datetime import timedelta

    await scene.watcher.execute(insert, "broken", timedelta(0), "the zone is gone\nmore")
    await scene.watcher.execute(insert, "late", timedelta(hours=1), None)
    broken, late = await problems(scene)
    assert broken.startswith("schedule broken cannot be planned:")
    assert seconds(r"^schedule late has been due for (\d+) s:", late) >= 3600


async def test_an_audit_that_nobody_seals_is_a_problem(scene: Scene) -> None:
    await scene.watcher.execute("insert into flowdsl.audit (tenant, event, facts, at) values ('default', 'x', '', now() - interval '1 hour')")
    assert seconds(r"1 rows of the audit have waited (\d+) s", (await problems(scene))[0]) >= 3600


async def test_what_takes_too_long_is_said_to_be_unknown(scene: Scene) -> None:
    """A table that is locked does not keep the doctor from the rest."""
    holder = await scene.connection()
    await (transaction := holder.transaction()).start()
    await holder.execute("lock table flowdsl.schedules in access exclusive mode")
    facts, _ = await examine(scene.watcher)
    assert facts["schedules"].startswith("not known")
    assert "dead letters" in facts
    await transaction.rollback()
    assert await scene.watcher.fetchval("show statement_timeout") == "0"


# The command


def document(said: str) -> Any:
    return json.loads(next(line for line in said.splitlines() if line.startswith("{")))


async def test_the_command_looks_deep(scene: Scene, database: str) -> None:
    await scene.execution(status="running", owner=None)
    code, said = await command("doctor", "--database", database)
    assert (code, "I3" in said) == (1, False)
    code, said = await command("doctor", "--deep", "--database", database)
    assert code == 1
    assert "it is running, and nobody has it or will ever claim it" in said
    assert "I7: folding what has ended gives the stored exit" in said
    assert "looked at" in said


async def test_the_command_refuses_a_deployment_without_deep(database: str) -> None:
    code, said = await command("doctor", "hello:deployment", "--database", database)
    assert code == 2
    assert "--deep" in said


async def test_a_broken_audit_is_found_by_the_deep_look(scene: Scene, database: str) -> None:
    await scene.watcher.execute("select flowdsl.audited('default', null, 'seen', 'x')")
    await scene.watcher.execute("select flowdsl.seal('default', 10)")
    await tampered(scene, "update flowdsl.audit set facts = 'y'")
    _, said = await command("doctor", "--deep", "--database", database)
    assert "I20 audit of 'default': row 1" in said
