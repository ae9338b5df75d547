"""`flowdsl serve` as a process of its own, as a person and their curl meet it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "run-the-service.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@contextmanager
def served(folder: Path, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and where it listens."""
    (folder / "shop.py").write_text(next(block for block in blocks("python") if block.startswith("# shop.py")), encoding="utf-8")
    command = [sys.executable, "-m", "flowdsl", "serve", "shop:deployment", "--port", "0", *options]
    settings = {**os.environ, **environment}
    process = subprocess.Popen(command, cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=(folder / "stderr").open("w"), text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://"), (folder / "stderr").read_text()
        yield process, line.removeprefix("listening on ").strip().removesuffix("/api/v1")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.mark.shows("S1.56")
@pytest.mark.skipif(subprocess.run(["which", "curl"], capture_output=True).returncode != 0, reason="there is no curl here")
def test_the_page_works_as_written(tmp_path: Path, database: str) -> None:
    with served(tmp_path, "--development", FLOWDSL_DATABASE_URL=database) as (process, address):
        script = "set -e\n" + "\necho\n".join(blocks("bash")).replace("http://localhost:8084", address)
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=90)
        said = done.stdout
        assert done.returncode == 0, said + done.stderr
        assert '"outcome":"new"' in said and "body.amuont" in said and "did you mean 'amount'" in said
        assert "event: ended" in said and "receipt for o-3" in said
        assert '"status":409' in said and '"state":"succeeded"' in said and '"name":"workers","ok":true' in said
        assert said.rstrip().endswith('{"status":"ok","checks":[{"name":"database","ok":true,"detail":""},{"name":"worker","ok":true,"detail":""}]}')
    assert process.returncode == 0
    assert "development mode" in (tmp_path / "stderr").read_text()


def test_it_stops_with_an_open_stream(tmp_path: Path, database: str) -> None:
    with (
        served(tmp_path, "--development", FLOWDSL_DATABASE_URL=database) as (process, address),
        httpx2.Client(base_url=address, timeout=30) as client,
    ):
        id = client.post("/api/v1/workflows/place-order", json={"order_id": "o", "amount": 5000}).json()["id"]
        with client.stream("GET", f"/api/v1/workflows/{id}/events") as stream:
            lines = stream.iter_lines()
            assert next(lines)
            process.send_signal(signal.SIGTERM)
            for _ in lines:
                pass  # to its end, which is a whole answer
        assert process.wait(60) == 0


def test_keys_are_asked_for(tmp_path: Path, database: str) -> None:
    settings = {**os.environ, "FLOWDSL_DATABASE_URL": database}
    with served(tmp_path, FLOWDSL_DATABASE_URL=database) as (_, address):
        assert "no API key yet" in (tmp_path / "stderr").read_text()
        assert httpx2.get(f"{address}/api/v1/workflows", timeout=60).status_code == 401
        assert httpx2.get(f"{address}/health", timeout=60).status_code == 200
        made = subprocess.run(
            [sys.executable, "-m", "flowdsl", "keys", "make", "ada", "--role", "viewer"], env=settings, capture_output=True, text=True
        )
        key = {"Authorization": f"Bearer {made.stdout.strip()}"}
        with httpx2.Client(base_url=address, headers=key, timeout=60) as client:
            assert client.get("/api/v1/workflows").status_code == 200
            assert client.post("/api/v1/workflows/place-order", json={"order_id": "o", "amount": 1}).status_code == 403
            assert client.get("/api/v1/workflows", headers={"X-Tenant-ID": "other"}).status_code == 403


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--development", "--host", "0.0.0.0"], "this machine only"),
        (["--config", "missing.toml"], "does not exist"),
        (["--port", "99999"], "99999"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, database: str, options: list[str], says: str) -> None:
    command = [sys.executable, "-m", "flowdsl", "serve", "adapters.deployment:deployment", *options]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "FLOWDSL_DATABASE_URL": database}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_a_port_that_is_taken(tmp_path: Path, database: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "flowdsl", "serve", "adapters.deployment:deployment", "--development", "--port", port]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "FLOWDSL_DATABASE_URL": database}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and f"cannot listen on 127.0.0.1:{port}" in done.stderr and "Traceback" not in done.stderr


def test_workers_serve_their_numbers(tmp_path: Path, database: str) -> None:
    """Each of two processes on a port of its own."""
    (tmp_path / "shop.py").write_text(next(block for block in blocks("python") if block.startswith("# shop.py")), encoding="utf-8")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()  # so that the first port is not free
        first = taken.getsockname()[1]
        command = [sys.executable, "-m", "flowdsl", "worker", "shop:deployment", "--processes", "2", "--metrics", str(first)]
        process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "FLOWDSL_DATABASE_URL": database}, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            places = set[str]()
            for line in process.stderr:
                places.update(re.findall(r"numbers at (\S+)", line))
                if len(places) == 2:
                    break
            assert all(int(place.rpartition(":")[2].partition("/")[0]) > first for place in places)
            for place in places:
                assert "flowdsl_workers_here 1.0" in httpx2.get(place, timeout=60).text
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def test_a_wrong_address_for_numbers(database: str) -> None:
    command = [sys.executable, "-m", "flowdsl", "worker", "adapters.deployment:deployment", "--metrics", "x:y"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "FLOWDSL_DATABASE_URL": database}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "such as 9464" in done.stderr
