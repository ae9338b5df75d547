"""The disk of the write-ahead log is full: Postgres panics, and stays down until there is room. A small disk of its own is filled for real."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest
from attrs import frozen

from flowdsl import Steps, Success, sleep, workflow
from flowdsl.postgres import embedded
from flowdsl.postgres.embedded import Server
from flowdsl.postgres.schema import migrate
from tests.postgres.scene import eventually
from tests.postgres.stage import Refused, Stage, act, mark, stage_at

pytestmark = pytest.mark.anyio

SIZE = 64 << 20


@workflow("log_full.steps")
def steps(names: str) -> Steps[str, Refused]:
    done = ""
    for name in names:
        done += yield from act(name)
        yield from sleep("30ms")
        yield from mark(name)
    return done


@frozen
class Disk:
    """A file system of 64 MiB that holds nothing but the write-ahead log of a server."""

    server: Server
    folder: Path

    def fill(self) -> None:
        """Takes all the room there is, also what Postgres gives back in between."""
        with suppress(OSError), (self.folder / "filler").open("ab") as filler:
            while True:
                os.write(filler.fileno(), b"\0" * 65536)

    def clear(self) -> None:
        (self.folder / "filler").unlink()

    def said(self, words: str) -> int:
        return (self.server.data.parent / "server.log").read_text(errors="replace").count(words)


@pytest.fixture
def disk() -> Iterator[Disk]:
    base = Path(tempfile.mkdtemp(prefix="flowdsl-tests-"))
    base.chmod(0o755)  # the server's account must get through
    folder = base / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode != 0:
        shutil.rmtree(base)
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        server = embedded.start(base, settings={"listen_addresses": ""})
        server.release()
        log, own = server.data / "pg_wal", (folder / "wal")
        shutil.copytree(log, own)
        for path in (folder, own, *own.rglob("*")):
            shutil.chown(path, log.stat().st_uid, log.stat().st_gid)
        shutil.rmtree(log)
        log.symlink_to(own)
        own.chmod(0o700)
        server = embedded.start(base, settings={"listen_addresses": "", "min_wal_size": "32MB", "max_wal_size": "32MB"})
        asyncio.run(migrate(server.dsn))
        yield Disk(server, folder)
        server.release()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(base, ignore_errors=True)


async def written_until_it_dies(server: Server) -> None:
    """Goes on to the next segments of the log until there is no room for one."""
    connection = await asyncpg.connect(server.dsn)
    try:
        for _ in range(20):
            await connection.execute("select pg_logical_emit_message(false, 'flowdsl-test', repeat('x', 4000000))", timeout=20)
    except (asyncpg.PostgresError, OSError, asyncpg.InterfaceError):
        return
    finally:
        connection.terminate()
    raise AssertionError("there was still room")


async def test_all_go_on_once_there_is_room_again(disk: Disk) -> None:
    """B13. No call goes beyond what could be recorded; nobody starts the server again but who uses it."""
    disk.server.watch()
    async with stage_at(disk.server.dsn) as stage, stage.worker(steps) as worker:
        ids = [await worker.start(steps, "abcdefgh") for _ in range(5)]
        await eventually(lambda: len(stage.calls) > 5, "it is in full swing")
        disk.fill()
        await written_until_it_dies(disk.server)
        await eventually(lambda: disk.said("PANIC") > 0, "Postgres has panicked")
        disk.fill()  # what a failed recovery gave back
        await eventually(lambda: disk.said("No space left on device") >= 3, "it cannot come back", 60)
        await none_recorded(stage)
        before = stage.counts
        await eventually(lambda: disk.said("No space left on device") >= 4, "it still cannot come back", 60)
        assert stage.counts.total() - before.total() <= len(ids), "one call each at most can be under way"
        disk.clear()
        assert [await asyncio.wait_for(worker.wait(id), 120) for id in ids] == [Success("abcdefgh")] * 5
        stage.watcher = await asyncpg.connect(disk.server.dsn)
        assert await stage.marks() == sorted("abcdefgh" * 5)
        await stage.check()


async def none_recorded(stage: Stage) -> None:
    """Whoever would record something is refused: there is no server."""
    with pytest.raises((OSError, asyncpg.PostgresError)):
        await asyncpg.connect(stage.dsn, timeout=5)
