"""`flowdsl dev` as a process of its own: edited, broken and mended under its feet."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from flowdsl.service.server import LAST

SHOP = """
from typing import Never
from flowdsl import Deployment, Result, Steps, Success, activity, bind, signal, workflow

@activity("shop.note")
def note(text: str) -> Result[str, Never]: ...

go = signal("go", str)

@workflow("shop.order")
def order(name: str) -> Steps[str, Never]:
    first = yield from note("begun " + name)
    word = yield from go.receive()
    return f"{first}, {yield from note(word)}"

async def do_note(text: str) -> Result[str, Never]:
    with open("noted.txt", "a") as file:
        file.write(f"{text}\\n")
    return Success(f"old {text}")

deployment = Deployment([order], [bind(note, do_note)])
"""


class Dev:
    """The process, and what it has said so far."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder, self.process, self.said = folder, process, ""
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def says(self, pattern: str) -> re.Match[str]:
        """Waits for a line in which that is; what came before it is passed over."""
        until = time.monotonic() + 90
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"nothing like {pattern!r}:\n{self.said}") from None
            self.said += line
            if (found := re.search(pattern, line)) is not None:
                return found

    def listens(self) -> str:
        return self.says(r"listening on (\S+)")[1]

    def edit(self, before: str, after: str) -> None:
        """In one step, and as if no time had passed: what was compiled before is not to be taken for what is written now."""
        file, written, stat = self.folder / "shop.py", self.folder / "shop.py.written", (self.folder / "shop.py").stat()
        text = file.read_text()
        assert before in text
        written.write_text(text.replace(before, after))
        os.utime(written, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        written.replace(file)


@contextmanager
def developed(folder: Path, database: str, *options: str, text: str = SHOP, **environment: str) -> Iterator[Dev]:
    (folder / "shop.py").write_text(text)
    command = [sys.executable, "-m", "flowdsl", "dev", "shop:deployment", "--port", "0", *options]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # at a newcomer's, Python compiles
    settings = {**kept, "FLOWDSL_DATABASE_URL": database, "PYTHONUNBUFFERED": "1", **environment}
    process = subprocess.Popen(command, cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield Dev(folder, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


def eventually(true: Callable[[], Any]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.05)


def status(address: str, id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.get(f"{address}/workflows/{id}/status", timeout=30).json()
    return found


@pytest.mark.shows("S0.35")
def test_an_edit_is_taken_up_and_what_runs_goes_on(tmp_path: Path, database: str) -> None:
    opened = tmp_path / "opened"
    (tmp_path / "browser").write_text(f'#!/bin/sh\necho "$1" >> {opened}\n')
    (tmp_path / "browser").chmod(0o755)
    with developed(tmp_path, database, "--open", BROWSER=f"{tmp_path / 'browser'} %s") as dev:
        dev.says(r"watching .*; \S+ is being loaded")
        dev.says("development mode")
        address = dev.listens()
        id = httpx2.post(f"{address}/workflows/order", json="ada", timeout=30).json()["id"]
        eventually((tmp_path / "noted.txt").exists)

        dev.edit("def do_note(", "def do_note(:")
        assert "shop.py:" in dev.says("SyntaxError").string
        dev.says("goes on with the code from before")
        assert status(address, id)["status"] in ("running", "suspended"), "the old one answers"

        dev.edit("def do_note(:", "def do_note(")
        dev.says(r"shop\.py changed: the service begins anew")
        assert dev.listens() == address, "at the same port"
        dev.edit('f"old ', 'f"new ')
        dev.says("begins anew")
        assert dev.listens() == address
        assert httpx2.post(f"{address}/workflows/{id}/signal", json={"name": "go", "payload": "mended"}, timeout=30).status_code < 300
        eventually(lambda: status(address, id)["status"] == "succeeded")
        assert status(address, id)["result"] == "old begun ada, new mended"
        assert (tmp_path / "noted.txt").read_text().splitlines() == ["begun ada", "mended"], "nothing that was recorded was done again"
        dev.process.send_signal(signal.SIGINT)
        assert dev.process.wait(60) == 0
    assert [line.rpartition(":")[0] for line in opened.read_text().splitlines()] == ["http://127.0.0.1"], "opened once, not at each reload"


class Asking:
    """Somebody who asks and asks, each time on a connection of its own; `failures`: what was no answer.

    A service that stops waits a moment for what a connection may yet ask: who was held up between the two for longer is closed, and asks again.
    """

    def __init__(self, address: str) -> None:
        self.address, self.answered, self.failures = address, 0, list[str]()
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._enough.is_set():
            at: dict[str, float] = {}
            try:
                with httpx2.Client(timeout=60) as client:
                    trace = partial(_timed, at)
                    assert client.get(f"{self.address.removesuffix('/api/v1')}/health", extensions={"trace": trace}).status_code == 200
                self.answered += 1
            except Exception as error:
                asked = at.get("http11.send_request_headers.complete", time.monotonic())
                if asked - at.get("connection.connect_tcp.started", asked) < LAST:
                    self.failures.append(f"{type(error).__name__}: {error}")

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()


def _timed(at: dict[str, float], what: str, _: object) -> None:
    at.setdefault(what, time.monotonic())


def test_who_asks_during_a_reload_waits(tmp_path: Path, database: str) -> None:
    with developed(tmp_path, database) as dev:
        address = dev.listens()
        with Asking(address) as one, Asking(address) as other:
            eventually(lambda: one.answered and other.answered)
            dev.edit('f"old ', 'f"new ')
            dev.says("begins anew")
            assert dev.listens() == address
            answered = one.answered, other.answered
            eventually(lambda: one.answered > answered[0] and other.answered > answered[1])
        assert one.failures + other.failures == []


def test_code_that_is_broken_from_the_beginning_is_waited_for(tmp_path: Path, database: str) -> None:
    with developed(tmp_path, database, text="import nonsense_of_ours\n") as dev:
        dev.says("nonsense_of_ours")
        dev.says("begins when that is mended")
        (tmp_path / "shop.py").write_text(SHOP)
        dev.listens()


def test_a_service_that_dies_begins_anew_and_none_outlives_its_parent(tmp_path: Path, database: str) -> None:
    with developed(tmp_path, database) as dev:
        first = int(dev.says(r"process (\d+) serves")[1])
        address = dev.listens()
        os.kill(first, signal.SIGKILL)
        dev.says("ended by itself")
        second = int(dev.says(r"process (\d+) serves")[1])
        assert dev.listens() == address
        dev.process.kill()
        eventually(lambda: not alive(second))


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_only_this_machine_reaches_it_whatever_the_settings_say(tmp_path: Path, database: str) -> None:
    (tmp_path / "flowdsl.toml").write_text('[server]\nhost = "0.0.0.0"\n')
    with developed(tmp_path, database) as dev:
        assert dev.listens().startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_ends_it(tmp_path: Path, database: str) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with developed(tmp_path, database, "--port", str(taken.getsockname()[1])) as dev:
            dev.says("cannot listen on")
            assert dev.process.wait(60) == 2
