"""A crash changes nothing: forgetting after every commit in one process, and SIGKILL at random moments over several."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Never

import asyncpg
import pytest

from flowdsl import Deployment, Done, Next, Result, Round, Steps, Success, activity, all_, bind, do, each, iterate, pure, race, saga, sleep, workflow
from flowdsl.activation import Activation
from flowdsl.flow import Execution
from flowdsl.journal import encode_exit
from flowdsl.postgres.committer import Commit, Fate
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Tuning, Worker

# Forgetting after every commit


@activity("crash.add")
def add(number: int) -> Result[int, Never]: ...


@workflow("crash.child")
def child(number: int) -> Steps[int, Never]:
    yield from sleep("10ms")
    return (yield from add(number))


@workflow("crash.all_of_it")
def all_of_it(number: int) -> Steps[int, Never]:
    @do
    def round(at: int) -> Steps[Round[int, int], Never]:
        value = yield from add(at)
        return Done(value) if at >= number + 3 else Next(at + 1)

    first, second = yield from all_(add(number), child.child(number))
    looped = yield from iterate(number, round)
    many = yield from each(range(4), add, concurrency=2)
    won = yield from race(add(100), sleep("1h").map(lambda _: 0))
    kept = yield from saga(add(7).compensate(add))
    yield from pure(0).compensate(add)
    return first + second + looped + sum(many) + won + kept


async def _add(number: int) -> Result[int, Never]:
    return Success(number + 1)


deployment = Deployment(workflows=[all_of_it], bindings=[bind(add, _add)])


class Forgetful(Worker):
    """Throws each execution out of memory after each of its commits, as a restart would."""

    forgotten = 0

    def _told(self, commit: Commit, fate: Fate) -> None:
        super()._told(commit, fate)
        resident = self.residents.get(commit.execution)
        if resident is not None:
            self.forgotten += 1
            resident.drop()


@pytest.mark.shows("S4.54")
async def test_forgetting_after_every_commit_gives_the_same_exit_and_the_same_journal(database: str) -> None:
    kept: list[tuple[object, Counter[tuple[str, int, bytes]]]] = []
    forgotten = 0
    async with await Store.open(database) as store:
        for kind in (Worker, Forgetful):
            async with kind(deployment, store, Tuning(poll=0.02, linger=0.05)) as worker:
                id = await worker.start(all_of_it, 5)
                exit = await asyncio.wait_for(worker.wait(id), 60)
                entries = await store.journal(id)
                steps = Counter((entry.step, entry.kind, entry.body) for entry in entries if "child" not in entry.fingerprint)
                kept.append((exit, steps))
                assert [entry.position for entry in entries] == list(range(len(entries)))
            forgotten = getattr(worker, "forgotten", 0)
    assert forgotten > 10
    assert kept[0] == kept[1]


# SIGKILL

SYSTEM = """
import os
from typing import Never
from flowdsl import (
    Deployment, Done, Next, Result, Retry, Round, Steps, Success, activity, bind, do, each, iterate, signal, sleep, this_attempt, workflow
)

enough = signal("enough", int)

@activity("kill.effect", retry=Retry.constant("20ms", attempts=50))
def effect(number: int) -> Result[int, Never]: ...

@activity("kill.mark", retry=Retry.constant("20ms", attempts=50), transactional=True)
def mark(number: int) -> Result[int, Never]: ...

@workflow("kill.child")
def child(number: int) -> Steps[int, Never]:
    yield from sleep("400ms")
    return (yield from effect(number))

@workflow("kill.parent")
def parent(number: int) -> Steps[int, Never]:
    @do
    def round(at: int) -> Steps[Round[int, int], Never]:
        yield from mark(number * 100 + at)
        return Done(at) if at >= 4 else Next(at + 1)

    yield from iterate(0, round)
    answers = yield from each(range(3), lambda index: child.child(number * 10 + index))
    yield from sleep("3s")
    return sum(answers)

@workflow("kill.last")
def last(number: int) -> Steps[int, Never]:
    return (yield from enough.receive())

async def do_effect(number: int) -> Result[int, Never]:
    with open(os.environ["LEDGER"], "a") as file:
        file.write(this_attempt().idempotency_key + "\\n")
    return Success(number)

async def do_mark(number: int) -> Result[int, Never]:
    async with this_attempt().transaction() as connection:
        await connection.execute("insert into marks (number) values ($1)", number)
    return Success(number)

deployment = Deployment(workflows=[parent, last], bindings=[bind(effect, do_effect), bind(mark, do_mark)])
"""

EXPIRED = "update flowdsl.workers set beat = beat - interval '1 hour' where pid = $1"
"""The lease of a process that is dead is over: nobody waits for it, and none that lives loses its own on a machine that stands still."""
LONG = bool(os.environ.get("FLOWDSL_LONG"))


class Workers:
    """Worker processes; the dead are replaced, and all are ended by their pid."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder, self.running = folder, list[subprocess.Popen[bytes]]()
        self.environment = {**os.environ, "FLOWDSL_DATABASE_URL": database, "LEDGER": str(folder / "ledger")}

    def add(self) -> None:
        command = [sys.executable, "-m", "flowdsl", "worker", "killed:deployment", "--lease", "600"]
        self.running.append(subprocess.Popen(command, cwd=self.folder, env=self.environment, stderr=subprocess.DEVNULL))

    def kill(self, one: subprocess.Popen[bytes]) -> None:
        one.kill()
        one.wait()
        self.running.remove(one)


@pytest.mark.shows("S4.56")
@pytest.mark.timeout(1200 if LONG else 240)
@pytest.mark.parametrize("seed", range(20 if LONG else 1))
async def test_killed_workers_lose_nothing_and_record_nothing_twice(database: str, tmp_path: Path, seed: int) -> None:
    (tmp_path / "killed.py").write_text(SYSTEM)
    sys.path.insert(0, str(tmp_path))
    try:
        sys.modules.pop("killed", None)
        import killed  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    chance, count = random.Random(seed), 30
    connection = await asyncpg.connect(database)
    await connection.execute("create table marks (number int not null)")
    workers = Workers(tmp_path, database)
    async with await Store.open(database) as store:
        from flowdsl.postgres.store import NewStart
        from flowdsl.postgres.worker import new_id

        ids = [new_id() for _ in range(count)]
        last = NewStart(new_id(), "default", "kill.last", 1, "", None, "join", b"0")
        await store.start([NewStart(id, "default", "kill.parent", 1, "", None, "join", str(n).encode()) for n, id in enumerate(ids)] + [last])
        try:
            for _ in range(3):
                workers.add()
            kills = 0
            until = time.monotonic() + 170
            while await connection.fetchval("select count(*) from flowdsl.executions where status not in ('succeeded', 'failed', 'cancelled')"):
                assert time.monotonic() < until, f"seed {seed}: not all ended after {kills} kills"
                await asyncio.sleep(chance.uniform(0.2, 0.6))
                if kills < 8 and await connection.fetchval("select exists (select 1 from flowdsl.journal)"):  # there is something to lose
                    dead = chance.choice(workers.running)
                    workers.kill(dead)
                    workers.add()
                    kills += 1
                    await connection.execute(EXPIRED, dead.pid)
                    if kills == 5:  # they are what this is about: it is not over before
                        await store.send("default", last.id, "signal", "enough", b"1", new_id())
        finally:
            for one in list(workers.running):
                workers.kill(one)

        rows = await connection.fetch("select * from flowdsl.executions")
        assert len(rows) == count * 4 + 1 and {row["status"] for row in rows} == {"succeeded"}, f"seed {seed}"
        recorded = 0
        for row in rows:
            entries = await store.journal(str(row["id"]))
            assert [entry.position for entry in entries] == list(range(len(entries)))
            ended = Counter(entry.step for entry in entries if entry.kind <= 3)
            assert max(ended.values(), default=1) == 1, "a step has one exit"
            recorded += sum(entry.kind == 1 and entry.fingerprint.startswith("perform kill.mark ") for entry in entries)
            definition = killed.deployment.workflow(row["workflow"])
            known = Execution(str(row["id"]), row["tenant"], row["workflow"], row["key"], None, row["started"])
            again = Activation(known, definition, row["request"], killed.deployment.workflow)
            again.begin((await store.load([str(row["id"])]))[str(row["id"])], [], row["started"])
            exit = again.fold.machine.exit
            assert exit is not None and encode_exit(definition, exit) == row["exit"], "folded again, the same exit"
        ledger = set((tmp_path / "ledger").read_text().split())
        assert len(ledger) == count * 3, "each effect happened, under one key each"
        assert await connection.fetchval("select count(*) from marks") == recorded == count * 5, "a transactional effect exists exactly once"
        assert kills >= 5
    await connection.close()
