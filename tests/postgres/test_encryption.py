"""Encrypted payloads: what is in the rows, who can read it, what a missing key does, and how a store gets another key under way."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Never

import pytest

from flowdsl import (
    Done,
    Failure,
    Next,
    Result,
    Retry,
    Round,
    Schedule,
    Steps,
    Success,
    activity,
    all_,
    audit,
    bind,
    do,
    iterate,
    report,
    signal,
    this_attempt,
    workflow,
)
from flowdsl.binding import Deployment
from flowdsl.errors import KeyMissing, NotGenuine, StoreError
from flowdsl.journal import OPERATOR
from flowdsl.postgres import rotation, scheduling, webhooks
from flowdsl.postgres.deep import look
from flowdsl.postgres.encryption import KEY_FILE, KEYS, MARK, PLAIN, Encryption, EncryptionKey, entry_of, from_surroundings, keys_of
from flowdsl.postgres.looking import audited, entries
from flowdsl.postgres.moving import exported, imported
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.schedules import register
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Worker, new_id
from flowdsl.service.settings import load
from flowdsl.testing.golden import read
from tests.postgres.scene import eventually
from tests.postgres.stage import BRISK, Refused, Stage, act, mark, stage_at

CANARY = "canary-7f3a@example.org"


def key(id: str) -> EncryptionKey:
    return EncryptionKey(id, (id * 32).encode()[:32])


ONE, TWO = key("one"), key("two")
PLACE = entry_of("default", new_id(), 3, 1, "0.2")


class TestBlobs:
    def test_it_opens_where_it_was_written_and_nowhere_else(self) -> None:
        encryption = Encryption([ONE])
        body = encryption.encrypt(PLACE, b'"x"')
        assert encryption.decrypt(PLACE, body) == b'"x"'
        assert CANARY.encode() not in encryption.encrypt(PLACE, CANARY.encode())
        for part in range(len(PLACE)):
            moved = tuple(one + ("0" if n == part else "") for n, one in enumerate(PLACE))
            with pytest.raises(NotGenuine, match="does not open with the key 'one'"):
                encryption.decrypt(moved, body)

    def test_no_two_places_are_the_same_bytes(self) -> None:
        encryption = Encryption([ONE])
        body = encryption.encrypt(("a", "b", "cause", "de"), b"x")
        with pytest.raises(NotGenuine):
            encryption.decrypt(("a", "b", "caus", "ede"), body)

    def test_a_changed_byte(self) -> None:
        encryption = Encryption([ONE])
        body = encryption.encrypt(PLACE, b'"x"')
        for index in range(len(MARK) + 1 + len(ONE.id), len(body)):
            with pytest.raises(NotGenuine):
                encryption.decrypt(PLACE, body[:index] + bytes([body[index] ^ 1]) + body[index + 1 :])
        for length in range(5, len(body)):
            with pytest.raises((NotGenuine, KeyMissing)):
                encryption.decrypt(PLACE, body[:length])

    def test_sent_again_it_is_the_same_and_elsewhere_or_with_another_body_it_is_not(self) -> None:
        encryption = Encryption([ONE])
        assert encryption.encrypt(PLACE, b"x") == Encryption([ONE, TWO]).encrypt(PLACE, b"x")
        nonces = {encryption.encrypt(place, body)[8:20] for place in (PLACE, (*PLACE[:-1], "0.3")) for body in (b"x", b"y")}
        assert len(nonces) == 4

    def test_the_first_key_writes_and_all_read(self) -> None:
        old = Encryption([ONE]).encrypt(PLACE, b"x")
        both = Encryption([TWO, ONE])
        assert both.decrypt(PLACE, old) == b"x" and not both.written_now(old)
        assert both.written_now(both.encrypt(PLACE, b"x"))
        with pytest.raises(KeyMissing, match=f"execution {PLACE[1]}: position 3 of its journal is encrypted with the key 'two'"):
            Encryption([ONE]).decrypt(PLACE, both.encrypt(PLACE, b"x"))

    def test_another_key_of_that_name(self) -> None:
        with pytest.raises(NotGenuine, match="stands for another key here"):
            Encryption([EncryptionKey("one", bytes(32))]).decrypt(PLACE, Encryption([ONE]).encrypt(PLACE, b"x"))

    def test_what_was_never_encrypted(self) -> None:
        assert Encryption([ONE]).decrypt(PLACE, b'{"a":1}') == b'{"a":1}' == PLAIN.encrypt(PLACE, b'{"a":1}')

    def test_texts(self) -> None:
        encryption = Encryption([ONE])
        text = encryption.encrypt_text(PLACE, f"a cause with {CANARY} ü \0")
        assert CANARY not in text and len(encryption.encrypt_text(PLACE, "ü" * 5000)) < 4096
        assert encryption.decrypt_text(PLACE, text) == f"a cause with {CANARY} ü \0"
        assert encryption.decrypt_text(PLACE, "encrypted: somebody's own words") == "encrypted: somebody's own words"
        assert "which is not here" in str(PLAIN.shown_text(PLACE, text))


class TestKeys:
    def test_of_the_environment_and_of_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert from_surroundings() is PLAIN
        lines = [f"{one.id}={base64.b64encode(one.secret).decode()}" for one in (TWO, ONE)]
        monkeypatch.setenv(KEYS, ", ".join(lines))
        assert from_surroundings().ids == ("two", "one")
        file = tmp_path / "keys"
        file.write_text("# the newest first\n" + "\n".join(lines) + "  # since May\n")
        monkeypatch.setenv(KEY_FILE, str(file))
        with pytest.raises(StoreError, match="both"):
            from_surroundings()
        monkeypatch.delenv(KEYS)
        assert from_surroundings().ids == ("two", "one")
        file.write_text("")  # a secret that was not mounted: never a reason to write plain
        with pytest.raises(StoreError, match="no encryption key in"):
            from_surroundings()
        file.unlink()
        with pytest.raises(StoreError, match="cannot be read"):
            from_surroundings()

    def test_of_a_file_that_the_settings_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "keys").write_text(f"one={base64.b64encode(ONE.secret).decode()}\n")
        assert from_surroundings().ids == () and from_surroundings(str(tmp_path / "keys")).ids == ("one",)
        (tmp_path / "flowdsl.toml").write_text('[encryption]\nkey_file = "keys"\n')
        assert from_surroundings().ids == ("one",) and load().encryption.key_file == "keys"
        (tmp_path / "flowdsl.toml").write_text("[encryption]\nkey_file = 3\n")
        with pytest.raises(StoreError, match="key_file is no text"):
            from_surroundings()

    @pytest.mark.parametrize(
        "word", ["one", "one=", "one=c2hvcnQ=", "=" + base64.b64encode(bytes(32)).decode(), "ö=" + "A" * 43 + "=", "one=" + "A" * 43]
    )
    def test_what_is_no_key_is_not_told(self, word: str) -> None:
        with pytest.raises(StoreError, match="key 1 of X") as raised:
            keys_of(word, "X")
        assert "c2hvcnQ" not in str(raised.value) and "AAAA" not in str(raised.value)

    def test_two_of_one_name(self) -> None:
        word = "one=" + base64.b64encode(bytes(32)).decode()
        with pytest.raises(StoreError, match="two keys 'one'"):
            keys_of(f"{word} {word}", "X")

    def test_a_key_does_not_show_itself(self) -> None:
        assert repr(ONE) == "EncryptionKey('one')"


# What runs


told = signal("told", str)


@activity("tell", retry=Retry.constant("10ms", attempts=2), timeout="20s")
def tell(what: str) -> Result[str, Never]: ...


def place_of(name: str) -> str:
    """A correlation key: those are not encrypted."""
    return f"by-{sha256(name.encode()).hexdigest()[:8]}"


@workflow("part")
def part(name: str) -> Steps[str, Refused]:
    return (yield from act(name))


@workflow("both")
def both(name: str) -> Steps[str, Refused]:
    one, two = yield from all_(act(name), told.receive())
    return f"{one}/{two}"


@do
def step(state: tuple[int, str]) -> Steps[Round[tuple[int, str], str], Refused]:
    number, name = state
    yield from act(name)
    return Next((number + 1, name)) if number < 3 else Done(name)


@workflow("all")
def everything(name: str) -> Steps[str, Refused]:
    """Every kind of payload that a workflow can bring about."""
    yield from report(f"begins with {name}")
    yield from audit("SEEN", {"who": name})
    yield from tell(name)
    yield from mark(name)
    child = yield from part.start(name)
    one = yield from child.join()
    two = yield from told.receive(place_of(name))
    three = yield from told.receive()
    four = yield from iterate((0, name), step)
    return "/".join([one, two, three, four])


def deployment(stage: Stage) -> Deployment:
    async def telling(what: str) -> Result[str, Never]:
        attempt = this_attempt()
        if attempt.number == 1:
            attempt.heartbeat({"seen": what})
            await asyncio.sleep(0)
            raise ValueError(f"not {what}")
        return Success(what)

    found = Deployment([everything, part, undone], [bind(act, stage._acted), bind(mark, stage._marked), bind(tell, telling)])
    stage.deployments.append(found)
    return found


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage


def use(monkeypatch: pytest.MonkeyPatch, *keys: EncryptionKey) -> None:
    monkeypatch.setenv(KEYS, " ".join(f"{one.id}={base64.b64encode(one.secret).decode()}" for one in keys))


async def run(worker: Worker, name: str) -> str:
    """Runs it as far as its last wait; the letter to its key comes before it waits."""
    assert await worker.store.send("default", place_of(name), "signal", "told", json.dumps(name).encode(), new_id()) == "unmatched"
    return await worker.start(everything, name)


async def waits(stage: Stage, id: str, after: str = "receive told") -> None:
    """Until it is out of memory at its last wait, and not before at the end of its child: its record has this by then."""

    async def so() -> bool:
        entries = await stage.journal(id)
        return any(entry.fingerprint.startswith(after) for entry in entries) and (await stage.row(id))["status"] == "suspended"

    await eventually(so, f"{id} waits")


async def plain_text(stage: Stage, canary: str) -> list[str]:
    """Where in our tables a text stands, in the clear or in what a dump would show of bytes."""
    found: list[str] = []
    for row in await stage.watcher.fetch("select table_name from information_schema.tables where table_schema = 'flowdsl' order by 1"):
        table = row["table_name"]
        rows = await stage.watcher.fetch(f"select t::text as line from flowdsl.{table} t where t::text like $1 or t::text like $2",
                                         f"%{canary}%", f"%{canary.encode().hex()}%")  # fmt: skip
        found += [table] * bool(rows)
    return found


class TestRows:
    async def test_everything_that_a_workflow_brings_about(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, ONE)
        known = deployment(stage)
        async with stage.worker(deployment=known) as worker:
            id = await run(worker, CANARY)
            await worker.store.send("default", id.upper(), "signal", "told", json.dumps(CANARY).encode(), new_id())
            exit = await worker.wait(id)
            assert exit == Success("/".join([CANARY] * 4))
            assert await plain_text(stage, CANARY) == []
            summary = await worker.store.summary(id)
            assert summary.note == f"begins with {CANARY}" and CANARY.encode() in (summary.exit or b"")
            assert any(CANARY.encode() in entry.body for entry in await worker.store.journal(id))
            assert [entry.body for entry in await entries(worker.store, "default", id, limit=1000)] == [
                entry.body for entry in await worker.store.journal(id)
            ]
            (seen,) = await audited(worker.store, "default", event="SEEN")
            assert json.loads(seen.facts) == {"who": CANARY}
        kept = await stage.watcher.fetch("select body from flowdsl.journal union all select request from flowdsl.executions")
        assert all(row["body"].startswith(MARK) for row in kept) and len(kept) > 10
        await stage.check()

    async def test_without_a_key_it_would_have_been_found(self, stage: Stage) -> None:
        """What the test above looks with does see."""
        async with stage.worker(deployment=deployment(stage)) as worker:
            id = await run(worker, CANARY)
            await worker.store.send("default", id, "signal", "told", json.dumps(CANARY).encode(), new_id())
            await worker.wait(id)
        assert {"audit", "executions", "journal", "notes"} <= set(await plain_text(stage, CANARY))

    async def test_a_payload_that_was_moved_to_another_row(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, ONE)
        known = deployment(stage)
        async with stage.worker(deployment=known) as worker:
            first, second = await run(worker, "a"), await worker.start(everything, "b")
            await waits(stage, first)
            await waits(stage, second, "join part")
        of = "(select position from flowdsl.journal where execution = $1 and fingerprint like 'perform tell %' and kind = 1)"
        await stage.watcher.execute(
            f"update flowdsl.journal set body = (select body from flowdsl.journal where execution = $2 and position = {of}) where execution = $1"
            f" and position = {of}",
            second,
            first,
        )
        report = await look(stage.watcher, known, encryption=Encryption([ONE]))
        assert [(one.invariant, one.execution) for one in report.findings] == [(7, second)]
        async with stage.worker(deployment=known) as worker:
            await worker.store.send("default", second, "signal", "told", b'"x"', new_id())
            row = await stage.becomes(second, "blocked")
            assert row["cause"].startswith("encrypted:")
            assert "it was changed or moved" in str((await worker.store.summary(second)).cause)
            (block,) = await audited(worker.store, "default", event="BLOCKED")
            assert "it was changed or moved" in json.loads(block.facts)["cause"]
            assert (await stage.row(first))["status"] == "suspended"

    async def test_undos_that_fail_say_why_to_who_has_the_key(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, ONE)
        stage.scripts |= {"undo": _raises, "fail": lambda name: Failure(Refused(CANARY))}
        async with stage.worker(deployment=deployment(stage)) as worker:
            id = await worker.start(undone, "x")
            await stage.becomes(id, "blocked")
            assert CANARY in str((await worker.store.summary(id)).cause)
            assert await plain_text(stage, CANARY) == []
            assert "which is not here" in str((await (await Store.open(stage.dsn, encryption=Encryption([TWO]))).summary(id)).cause)


def _raises(name: str) -> Any:
    raise ValueError(f"no {CANARY}")


@workflow("undone")
def undone(name: str) -> Steps[str, Refused]:
    yield from act("first").compensate(lambda _: act("undo"))
    return (yield from act("fail"))


class TestAMissingKey:
    async def test_an_execution_waits_for_it(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, ONE)
        known = deployment(stage)
        async with stage.worker(deployment=known) as worker:
            id = await run(worker, "a")
            await waits(stage, id)
        use(monkeypatch, TWO)
        async with stage.worker(deployment=known) as worker:
            await worker.store.send("default", id, "signal", "told", b'"x"', new_id())

            async def put_off() -> bool:
                row = await stage.row(id)
                return row["owner"] is None and "encrypted with the key 'one', which is not here" in (row["cause"] or "")

            await eventually(put_off, "it was let go, and says why")
            assert (await stage.row(id))["status"] == "running" and (await stage.row(id))["wake"] is not None
            assert await worker.wait(await worker.start(part, "other")) == Success("other")  # nobody else suffers
        use(monkeypatch, ONE, TWO)
        await stage.watcher.execute("update flowdsl.executions set wake = clock_timestamp() where id = $1", id)
        async with stage.worker(deployment=known) as worker:
            assert await worker.wait(id) == Success("a/a/x/a")
        await stage.check()

    async def test_mail_that_comes_to_one_in_memory(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, ONE)
        stage.gate("gate")
        async with stage.worker(both) as worker, await Store.open(stage.dsn, encryption=Encryption([TWO])) as other:
            id = await worker.start(both, "gate")
            await stage.at_gate("gate")
            await other.send("default", id, "signal", "told", b'"x"', new_id())

            async def put_off() -> bool:
                return "signal told to" in ((await stage.row(id))["cause"] or "")

            await eventually(put_off, "it was let go")
            assert (await stage.row(id))["status"] == "running" and id not in worker.residents
        use(monkeypatch, ONE, TWO)
        stage.scripts.clear()
        await stage.watcher.execute("update flowdsl.executions set wake = clock_timestamp() where id = $1", id)
        async with stage.worker(both) as worker:
            assert await worker.wait(id) == Success("gate/x")

    async def test_who_looks_is_told_which(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, ONE)
        known = deployment(stage)
        async with stage.worker(deployment=known) as worker:
            id = await run(worker, "a")
            await waits(stage, id)
            document = await exported(worker.store, [id])
        monkeypatch.delenv(KEYS)
        async with await Store.open(stage.dsn) as store:
            assert (await store.summary(id)).status == "suspended" and len(await store.list()) == 2
            for asked in (store.journal(id), store.row("default", id), exported(store, [id], plain=True), Operator(store, known).rewind(id, 0)):
                with pytest.raises(KeyMissing, match="the key 'one', which is not here"):
                    await asked
            assert '"bytes"' in await exported(store, [id])
        with pytest.raises(KeyMissing):
            await look(stage.watcher, known)
        with pytest.raises(KeyMissing):
            read(document)


class TestRotation:
    async def test_while_a_worker_runs(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """Plain, then with one key, then with two, then with the second alone: the same executions go on."""
        known = deployment(stage)
        async with stage.worker(deployment=known) as worker:
            ids = [await run(worker, f"{CANARY}{n}") for n in range(3)]
            for id in ids:
                await waits(stage, id)
        assert await plain_text(stage, CANARY)
        for keys in ([ONE], [TWO, ONE]):
            use(monkeypatch, *keys)
            async with stage.worker(deployment=known) as worker:
                while [one async for one in rotation.rotate(worker.store) if one.rows]:
                    pass
                ids.append(await run(worker, f"{CANARY}-{keys[0].id}"))
                await waits(stage, ids[-1])
        use(monkeypatch, TWO)
        async with stage.worker(deployment=known) as worker:
            used = {key for one in await rotation.needed(worker.store) if one.where != "audit.facts" for key in one.keys}
            assert used == {"two"}
            for number, id in enumerate(ids):
                await worker.store.send("default", id, "signal", "told", json.dumps(number).encode().join([b'"', b'"']), new_id())
            ends = [await worker.wait(id) for id in ids]
            assert all(isinstance(end, Success) and CANARY in end.unwrap() for end in ends)
        assert set(await plain_text(stage, CANARY)) <= {"audit"}  # what was audited before there was a key: its rows never change
        await stage.check()

    async def test_cut_short_it_is_begun_again(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rotation, "PAGE", 2)
        known = deployment(stage)
        async with stage.worker(deployment=known) as worker:
            for n in range(3):
                await waits(stage, await run(worker, f"{CANARY}{n}"))
        async with await Store.open(stage.dsn, encryption=Encryption([ONE])) as store:
            async for _ in rotation.rotate(store):
                break
            rows = [one async for one in rotation.rotate(store)]
            assert {one.where for one in rows if one.rows} >= {"executions.request", "journal.body", "notes.note"}
            assert not [one async for one in rotation.rotate(store) if one.rows]
        assert set(await plain_text(stage, CANARY)) == {"audit"}

    async def test_what_changes_meanwhile_is_left_alone(self, stage: Stage) -> None:
        async with stage.worker(deployment=deployment(stage)) as worker:
            id = await run(worker, "a")
            await waits(stage, id)
        for column in rotation._COLUMNS[:1]:
            assert await stage.watcher.execute(column.update, b"anew", b"as it was before somebody changed it", id) == "UPDATE 0"
            assert await stage.watcher.execute(column.update, b"anew", (await stage.row(id))["request"], id) == "UPDATE 1"

    async def test_without_a_key(self, stage: Stage) -> None:
        async with await Store.open(stage.dsn) as store:
            with pytest.raises(StoreError, match="no encryption key to write with"):
                async for _ in rotation.rotate(store):
                    pass


class TestOperating:
    async def test_interventions(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, ONE)
        known = deployment(stage)
        stage.scripts["a"] = lambda name: Failure(Refused(CANARY))
        async with stage.worker(deployment=known) as worker:
            operator = Operator(worker.store, known, by="me")
            id = await worker.start(part, "a")
            assert await worker.wait(id) == Failure(Refused(CANARY))
            stage.scripts.clear()
            await operator.retry(id, f"since {CANARY} said so")
            assert await worker.wait(id) == Success("a")
            await operator.rewind(id, 0)
            assert await worker.wait(id) == Success("a")
            copy = await operator.fork(id, 0)
            assert await worker.wait(copy) == Success("a")
            waiting = await run(worker, CANARY)
            await waits(stage, waiting)
            fork = await operator.fork(waiting, 5)
            await stage.becomes(fork, "suspended")
            assert CANARY.encode() in (await worker.store.row("default", fork))["request"]
            await operator.cancel(fork, f"for {CANARY}")
            await worker.wait(fork)
            await operator.terminate(waiting, f"for {CANARY}")
            assert CANARY in str(await worker.wait(waiting))
            assert [entry.kind for entry in await worker.store.journal(waiting)][-1] == OPERATOR
        rows = await stage.watcher.fetch("select kind, body from flowdsl.journal where kind = $1", OPERATOR)
        assert len(rows) >= 5 and all(row["body"].startswith(MARK) for row in rows)
        assert set(await plain_text(stage, CANARY)) == {"audit"}  # the reasons that people give are for the audit to show
        report = await look(stage.watcher, known, encryption=Encryption([ONE]))
        assert report.findings == []

    async def test_into_another_store_and_to_another_tenant(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, ONE)
        known = deployment(stage)
        async with stage.worker(deployment=known) as worker:
            id = await run(worker, CANARY)
            await waits(stage, id)
            await worker.store.send("default", id, "signal", "unasked", json.dumps(CANARY).encode(), new_id())
            document, plain = await exported(worker.store, [id]), await exported(worker.store, [id], plain=True)
        assert CANARY not in document and base64.b64encode(json.dumps(CANARY).encode()).decode() in plain
        assert [one.request for one in read(document)] == [one.request for one in read(plain)] == [json.dumps(CANARY).encode()] * 2
        for table in ("executions", "journal", "mailbox", "deliveries", "notes", "aliases", "unmatched", "heartbeats"):
            await stage.watcher.execute(f"delete from flowdsl.{table}")
        use(monkeypatch, TWO, ONE)
        async with await Store.open(stage.dsn) as store:
            await imported(store, document, tenant="other")
        use(monkeypatch, TWO)
        async with await Store.open(stage.dsn) as store, Worker(known, store, BRISK, tenant="other") as worker:
            await Operator(store, known, tenant="other").resume(id)
            await store.send("other", id, "signal", "told", b'"x"', new_id())
            assert await worker.wait(id) == Success("/".join([CANARY, CANARY, "x", CANARY]))
        assert set(await plain_text(stage, CANARY)) <= {"audit"}

    async def test_schedules(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, ONE)
        half = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=30)  # no hour strikes in the middle of it
        hourly = Schedule.every("1h", part, CANARY, id="s", overlap="allow", anchor=half)
        known = Deployment([part], [bind(act, stage._acted)], schedules=[hourly])
        stage.deployments.append(known)
        async with stage.worker(deployment=known) as worker:
            before = await stage.watcher.fetchrow("select xmin::text as version, request from flowdsl.schedules")
            await register(worker.store, known)
            assert await stage.watcher.fetchrow("select xmin::text as version, request from flowdsl.schedules") == before
            assert before["request"].startswith(MARK)
            fired = await scheduling.trigger(worker.store, "s")
            assert fired.execution is not None and await worker.wait(fired.execution) == Success(CANARY)
            await stage.watcher.execute("update flowdsl.schedules set upcoming = upcoming - interval '1h', due = due - interval '1h'")

            async def ran() -> bool:
                return (await stage.watcher.fetchval("select count(*) from flowdsl.executions where status = 'succeeded'")) == 2

            await eventually(ran, "the one that was due ran too")
        assert await plain_text(stage, CANARY) == []
        await stage.watcher.execute("update flowdsl.schedules set upcoming = upcoming - interval '1h', due = due - interval '1h'")
        use(monkeypatch, TWO)
        without = Deployment([part], [bind(act, stage._acted)])
        async with stage.worker(deployment=without) as worker:  # another key, and no schedule of its own: it has nothing to fire
            with pytest.raises(KeyMissing, match="the input of schedule s"):
                await scheduling.trigger(worker.store, "s")

    async def test_webhooks(self, stage: Stage) -> None:
        body, wrong = json.dumps({"mail": CANARY}).encode(), True

        async def react(came: webhooks.Received) -> str:
            assert came.body == body
            if wrong:
                raise ValueError(f"no {CANARY}")
            return f"told {CANARY}"

        async with await Store.open(stage.dsn, encryption=Encryption([ONE])) as store:
            assert await webhooks.keep(store, "default", "e", "d", body) and not await webhooks.keep(store, "default", "e", "d", body)
            for outcome in (f"ValueError: no {CANARY}", f"told {CANARY}"):
                assert await webhooks.act(store, ["e"], react) == 1
                (came,) = await webhooks.received(store, "default")
                assert (came.body, came.outcome) == (body, outcome)
                assert await plain_text(stage, CANARY) == []
                wrong = False
                await webhooks.again(store, "default", came.id)


class TestCommands:
    def test_a_store_gets_a_key_and_another(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from click.testing import CliRunner

        from flowdsl.cli import main

        def said(*words: str, code: int = 0) -> str:
            done = CliRunner().invoke(main, list(words))
            assert done.exit_code == code, done.output
            return done.output

        async def stored() -> None:
            async with await Store.open(database) as store:
                await store.send("default", "by-key", "signal", "told", json.dumps(CANARY).encode(), new_id())

        monkeypatch.setenv("FLOWDSL_DATABASE_URL", database)
        one, two = said("encryption", "new-key", "--id", "one").strip(), said("encryption", "new-key").strip()
        assert one.startswith("one=") and one != two
        assert "no encryption key to write with" in said("encryption", "rotate", code=2)
        asyncio.run(stored())
        assert "no keys here" in said("encryption", "status")
        monkeypatch.setenv(KEYS, one)
        asyncio.run(stored())
        assert "rotate" in said("encryption", "status")
        assert said("encryption", "rotate").endswith("1 payloads written with one\n")
        monkeypatch.setenv(KEYS, two)
        found = said("encryption", "status", code=1)
        assert "the key 'one' is not here" in found and re.search(r"unmatched\.body\s+one\s+2", found)
        assert "Add that key to FLOWDSL_ENCRYPTION_KEYS" in said("encryption", "rotate", code=2)
        monkeypatch.setenv(KEYS, f"{two} {one}")
        assert "unmatched.body: 2" in said("encryption", "rotate")
        monkeypatch.setenv(KEYS, two)
        assert said("encryption", "status").splitlines()[0].startswith("keys here:")
        assert "a key's name" in said("encryption", "new-key", "--id", "a b", code=2)
