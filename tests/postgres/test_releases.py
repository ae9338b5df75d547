"""What each release left behind: its ended executions fold to their exits, to the byte, and its open ones go on in a store of today."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flowdsl.journal import KINDS
from flowdsl.postgres.deep import look
from flowdsl.postgres.moving import imported
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.store import Store, connect
from flowdsl.testing.golden import Recorded, compared, definitions_of, read
from tests.postgres.release import FOLDER, ROOT, WORKFLOWS, Outside, sums, tell_the_rest, version, working

pytestmark = pytest.mark.anyio

RELEASES = sorted(folder for folder in FOLDER.iterdir() if folder.is_dir())
each_release = pytest.mark.parametrize("release", RELEASES, ids=lambda folder: folder.name)


def executions(release: Path) -> list[Recorded]:
    return read((release / "store.json").read_text(), release.name)


def test_each_release_has_left_something_and_none_of_it_was_edited() -> None:
    told = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "docs" / "changes.md").read_text(), re.M)
    assert {*told, version()} == {release.name for release in RELEASES}, "python -m tests.postgres.release writes that of the version at hand"
    for release in RELEASES:
        assert (release / "SHA256SUMS").read_text() == sums(release), f"{release.name} was edited"


@each_release
def test_they_fold_to_their_exits(release: Path) -> None:
    found = {one.execution.id: compared(one, definitions_of(*WORKFLOWS)) for one in executions(release)}
    assert {id: (one.why, one.lines) for id, one in found.items() if one.verdict != "fits"} == {}


def test_they_hold_each_kind_of_entry_and_instruction() -> None:
    entries = [entry for release in RELEASES for one in executions(release) for entry in one.journal]
    assert {KINDS[entry.kind] for entry in entries} >= set(KINDS.values()) - {"interrupted", "cancel"}, "which the journals beside them have"
    asked = {entry.fingerprint.split(" ")[0] for entry in entries}
    assert asked >= {"perform", "receive", "send", "start", "join", "audit", "changed", "iterate", "existing"}, asked


def test_another_byte_would_be_seen() -> None:
    one = next(one for one in executions(RELEASES[0]) if one.execution.workflow == "release.values")
    entry = one.journal[0]
    assert b"1.10" in entry.body
    changed = Recorded(
        one.execution,
        one.version,
        one.request,
        one.status,
        one.exit,
        one.cause,
        (_with(entry, entry.body.replace(b"1.10", b"1.1")), *one.journal[1:]),
    )
    assert compared(changed, definitions_of(*WORKFLOWS)).verdict == "breaks"


def _with(entry: Any, body: bytes) -> Any:
    from attrs import evolve

    return evolve(entry, body=body)


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with await Store.open(database) as store:
        yield store


@each_release
async def test_what_was_open_goes_on(release: Path, store: Store, database: str) -> None:
    facts = json.loads((release / "ends.json").read_text())
    done_before = {one.execution.id for one in executions(release) if one.exit is not None}
    outside = Outside(healed=True)
    await imported(store, (release / "store.json").read_text())
    assert await deep(database, outside) == []
    async with working(database, outside) as worker:
        operator = Operator(store, outside.deployment())
        for id in facts["waits"]:
            await operator.resume(id)
        await tell_the_rest(worker, facts["open"])
        for id in facts["waits"]:
            await worker.wait(id)
    rows = await store.again("select id, status, exit from flowdsl.executions where id = any($1::uuid[])", list(facts["ends"]))
    assert {str(row["id"]): [row["status"], bytes(row["exit"]).decode()] for row in rows} == facts["ends"]
    assert sorted(outside.calls) == sorted(facts["calls"]), "what was recorded is not done again"
    assert done_before == facts["ends"].keys() - set(facts["waits"])
    assert await deep(database, outside) == []


async def deep(dsn: str, outside: Outside) -> list[str]:
    connection = await connect(dsn)
    try:
        return [str(one) for one in (await look(connection, outside.deployment(), limit=1000, timeout=60)).findings]
    finally:
        await connection.close()
