"""Worker processes that are killed, frozen, stopped and started: real ones, over one database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.worker import new_id
from tests.postgres.crew import deployment, one, two
from tests.postgres.invariants import check
from tests.postgres.scene import eventually

ROOT = Path(__file__).resolve().parents[2]
LONG = 60.0
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]


@define
class Crew:
    """Processes that this test started, and what they called."""

    store: Store
    folder: Path
    processes: list[subprocess.Popen[str]] = field(factory=list[subprocess.Popen[str]])

    def begin(self, *options: str, lease: float = 600.0, grace: float = 10.0) -> subprocess.Popen[str]:
        """Its lease is over when the test says so: see `expired`."""
        environment = {
            **os.environ, "FLOWDSL_DATABASE_URL": self.store.dsn, "FLOWDSL_TEST_CALLS": str(self.folder / "calls"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        command = [
            sys.executable,
            "-m",
            "flowdsl",
            "-v",
            "worker",
            "tests.postgres.crew:deployment",
            f"--lease={lease}",
            f"--grace={grace}",
            *options,
        ]
        log = (self.folder / f"log {len(self.processes)}").open("w")
        self.processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True))
        return self.processes[-1]

    def log(self, number: int = 0) -> str:
        return (self.folder / f"log {number}").read_text()

    async def start(self, workflow: Any, *names: str) -> list[str]:
        wishes = [NewStart(new_id(), "default", workflow.name, 1, "", None, "join", json.dumps(name).encode()) for name in names]
        return [started.id for started in await self.store.start(wishes)]

    def calls(self, name: str) -> list[tuple[int, int]]:
        """(process, number of the attempt)."""
        file = self.folder / "calls"
        lines = [line.split(" ", 2) for line in file.read_text().splitlines()] if file.exists() else []
        return [(int(pid), int(number)) for pid, number, said in lines if said == name]

    async def called(self, name: str, times: int = 1) -> list[tuple[int, int]]:
        await self.until(lambda: len(self.calls(name)) >= times, f"{name} was called {times} times")
        return self.calls(name)

    def let(self, name: str) -> None:
        (self.folder / name).touch()

    async def until(self, what: Callable[[], Any], words: str) -> None:
        await eventually(what, words, LONG)

    async def pids(self) -> list[int]:
        return [row["pid"] for row in await self.store.again("select pid from flowdsl.workers where not gone order by started")]

    async def manned(self, count: int) -> list[int]:
        async def so() -> bool:
            return len(await self.pids()) == count

        await self.until(so, f"{count} workers work")
        return await self.pids()

    async def expired(self, pid: int) -> None:
        """As if that process had been silent for longer than its lease."""
        await self.store.again("update flowdsl.workers set beat = beat - interval '1 hour' where pid = $1", pid)

    async def quiet(self) -> None:
        """Until no worker listens any more: those that stop let go of it just before they tell their executions to begin nothing new."""
        query = "select 1 from pg_stat_activity where application_name = 'flowdsl-listen' and datname = current_database()"

        async def so() -> bool:
            return not await self.store.again(query)

        await self.until(so, "nobody listens")

    async def become(self, ids: list[str], status: str) -> None:
        async def so() -> bool:
            rows = await self.store.again("select 1 from flowdsl.executions where id = any($1::uuid[]) and status = $2", ids, status)
            return len(rows) == len(ids)

        await self.until(so, f"all are {status}")


@pytest.fixture
async def crew(database: str, tmp_path: Path) -> AsyncIterator[Crew]:
    async with await Store.open(database) as store:
        crew = Crew(store, tmp_path)
        try:
            yield crew
        finally:
            for process in crew.processes:
                if process.poll() is None:
                    os.kill(process.pid, signal.SIGCONT)
                    process.terminate()
            for process in crew.processes:
                process.wait(60)
        async with store.connection() as connection:
            assert await check(connection, deployment) == []


class TestSupervised:
    async def test_a_killed_child_is_started_again_and_all_stop_with_their_parent(self, crew: Crew) -> None:
        parent = crew.begin("--processes=2")
        before = await crew.manned(2)
        assert parent.pid not in before, "the parent does no work"
        os.kill(before[0], signal.SIGKILL)

        async def replaced() -> bool:
            return len(set(await crew.pids()) - {before[0]}) == 2

        await crew.until(replaced, "another took its place")
        await crew.become(await crew.start(one, "a", "b"), "succeeded")
        pids = [pid for pid in await crew.pids() if pid != before[0]]
        parent.terminate()
        assert parent.wait(LONG) == 0
        assert [pid for pid in pids if alive(pid)] == []
        assert f"worker process {before[0]} was ended by SIGKILL; another is started in" in crew.log()

    async def test_each_line_says_which_process_it_is_of(self, crew: Crew) -> None:
        crew.begin("--processes=2", "--log-json")
        pids = await crew.manned(2)
        await crew.store.again("update flowdsl.workers set gone = true")  # something that they will log
        await crew.until(lambda: crew.log().count("worker.gone") == 2, "both said so")
        said = [json.loads(line)["process"] for line in crew.log().splitlines() if "worker.gone" in line]
        assert sorted(said) == sorted(pids)

    async def test_children_do_not_outlive_a_parent_that_is_killed(self, crew: Crew) -> None:
        parent = crew.begin("--processes=2")
        pids = await crew.manned(2)
        parent.kill()
        await crew.until(lambda: not any(map(alive, pids)), "they stopped")
        assert await crew.pids() == [], "in good order"

    async def test_one_that_kills_every_worker_is_blocked_and_the_others_go_on(self, crew: Crew) -> None:
        crew.begin("--processes=2")
        await crew.manned(2)
        deadly = await crew.start(one, "deadly")
        others = await crew.start(two, *(f"quick {n}" for n in range(30)))

        async def blocked() -> bool:
            for pid in await crew.pids():
                if not alive(pid):
                    await crew.expired(pid)
            return (await crew.store.summary(deadly[0])).status == "blocked"

        await crew.until(blocked, "it is blocked")
        await crew.become(others, "succeeded")
        await crew.become(await crew.start(one, "later"), "succeeded")
        assert [number for _, number in crew.calls("deadly")] == [1, 2, 3]
        cause = (await crew.store.summary(deadly[0])).cause
        assert cause is not None
        assert "three workers died" in cause


class TestStopped:
    async def test_what_ends_within_the_grace_period_is_recorded(self, crew: Crew) -> None:
        process = crew.begin(grace=60.0)
        ids = await crew.start(two, "slow a")
        await crew.called("slow a")
        process.terminate()
        await crew.until(lambda: "stops" in crew.log(), "it was told")
        await crew.quiet()
        crew.let("slow a")
        assert process.wait(LONG) == 0
        assert len(await crew.store.journal(ids[0])) == 1
        assert crew.calls("slow a, then") == [], "nothing new began"
        crew.begin()
        await crew.become(ids, "succeeded")
        assert len(crew.calls("slow a")) == 1

    async def test_what_does_not_is_run_again_and_no_stop_is_recorded(self, crew: Crew) -> None:
        process = crew.begin(grace=0.3)
        ids = await crew.start(two, "slow a")
        await crew.called("slow a")
        process.terminate()
        assert process.wait(LONG) == 0
        assert await crew.store.journal(ids[0]) == []
        assert (await crew.store.summary(ids[0])).owner is None
        crew.let("slow a")
        crew.begin()
        await crew.become(ids, "succeeded")
        assert [number for _, number in crew.calls("slow a")] == [1, 1]

    async def test_a_second_signal_ends_it_at_once(self, crew: Crew) -> None:
        process = crew.begin(grace=600)
        await crew.start(one, "slow a")
        await crew.called("slow a")
        process.send_signal(signal.SIGINT)
        await crew.until(lambda: "stops" in crew.log(), "it was told")
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == 130
        crew.let("slow a")
        await crew.expired(process.pid)
        crew.begin()
        await crew.called("slow a", 2)


class TestFrozen:
    async def test_a_zombie_writes_nothing_and_forgets_what_it_had(self, crew: Crew) -> None:
        """Frozen past its lease in the middle of an activity, then woken: its answer is refused, the other's counts, and it works on as another."""
        zombie = crew.begin()
        ids = await crew.start(two, "slow a")
        await crew.called("slow a")
        os.kill(zombie.pid, signal.SIGSTOP)
        other = crew.begin()
        await crew.manned(2)
        await crew.expired(zombie.pid)
        calls = await crew.called("slow a", 2)
        assert calls == [(zombie.pid, 1), (other.pid, 2)], "the interrupted attempt was recorded"
        os.kill(zombie.pid, signal.SIGCONT)
        crew.let("slow a")
        await crew.become(ids, "succeeded")
        await crew.until(lambda: "worker.gone" in crew.log(0), "it knows that it was declared gone")
        assert sorted(await crew.manned(2)) == sorted([zombie.pid, other.pid])
        assert crew.calls("slow a, then") == [(other.pid, 1)]
        epochs = [row["epoch"] for row in await crew.store.again("select epoch from flowdsl.journal where execution = $1 order by position", ids[0])]
        assert epochs == [2, 2, 2]
        await crew.become(await crew.start(one, *(f"more {n}" for n in range(20))), "succeeded")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
