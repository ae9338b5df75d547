"""What a release leaves behind for every later one: executions out of a real store, ended and open, in `tests/golden/releases/VERSION`.

`python -m tests.postgres.release` writes that of the version at hand, if it is missing. Never change a workflow here once its release is out: add
another one. Until then the folder may be removed and written anew.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tempfile
import tomllib
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Any, Never
from uuid import UUID

from attrs import define, field, frozen

from flowdsl import (
    Child,
    Deployment,
    Died,
    Done,
    Failure,
    Interrupted,
    Next,
    Result,
    Retry,
    Round,
    Steps,
    Success,
    activity,
    all_,
    audit,
    bind,
    changed,
    do,
    each_attempt,
    execution,
    iterate,
    now,
    race,
    random,
    report,
    signal,
    sleep,
    this_attempt,
    uuid,
    workflow,
)
from flowdsl.postgres import embedded
from flowdsl.postgres.moving import exported
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Tuning, Worker, new_id
from tests.postgres.scene import eventually

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "golden" / "releases"
TUNING = Tuning(lease=5.0, poll=0.05, linger=0.05, look=0.2)


class Colour(Enum):
    RED = "red"
    BLUE = 2


@frozen
class Line:
    sku: str
    count: int = 1


@frozen
class Gone:
    at: datetime


@frozen
class Everything:
    """A value of each kind that journals hold."""

    text: str
    number: int
    ratio: float
    price: Decimal
    at: datetime
    day: date
    took: timedelta
    id: UUID
    raw: bytes
    colour: Colour
    lines: tuple[Line, ...]
    tags: frozenset[str]
    counts: dict[int, list[str]]
    either: Line | Gone | None
    nothing: None
    flag: bool


EVERYTHING = Everything(
    "é\u2028\"\\ 💶", 2**70, -0.0, Decimal("1.10"), datetime(2026, 2, 28, 23, 59, 59, 999999, tzinfo=UTC), date(2024, 2, 29), timedelta(microseconds=1),
    UUID(int=7), b"\x00\xff", Colour.BLUE, (Line("a"), Line("b", 2)), frozenset({"x", "y"}), {1: [], 2: ["z"]}, Gone(datetime(1970, 1, 1, tzinfo=UTC)),
    None, True,
)  # fmt: skip


@frozen
class No:
    why: str
    line: Line | None = None


@activity("release.act", retry=Retry.constant("20ms", attempts=3, on=(No,)))
def act(name: str) -> Result[str, No]: ...


@activity("release.undo")
def undo(name: str) -> Result[None, Never]: ...


@activity("release.mark", transactional=True)
def mark(name: str) -> Result[str, Never]: ...


@activity("release.once", crash="fail")
def once(name: str) -> Result[str, Interrupted]: ...


@activity("release.echo")
def echo(one: Everything) -> Result[Everything, No]: ...


go = signal("release.go", Line)
told = signal("release.told", str)


@workflow("release.values")
def values(one: Everything) -> Steps[Everything, No]:
    return (yield from echo(one))


@workflow("release.part", key="{}".format)
def part(name: str) -> Steps[str, No]:
    return (yield from act(name))


@workflow("release.much")
def much(name: str) -> Steps[str, No]:
    yield from audit("BEGUN", name)
    first = yield from act(f"fails once {name}").compensate(lambda done: undo(done))
    when, chance, id = (yield from now()), (yield from random()), (yield from uuid())
    if (yield from changed("release-1")):
        first += yield from once(f"once {name}").attempt().map(lambda outcome: outcome.value_or("interrupted"))
    both = yield from each_attempt([f"{name} a", f"refused {name}"], act)
    found = yield from part.existing([f"{name} keyed"])
    child = yield from part.start(f"{name} keyed")
    dead = yield from broken.child(name).isolate().attempt()
    me = yield from execution()
    yield from told.send(me.id, "by myself")
    heard = yield from told.receive()
    winner = yield from race(act(f"{name} quick"), sleep("1d").map(lambda _: "slow"))
    yield from report("nearly there")
    seen = "died" if isinstance(dead, Failure) and isinstance(dead.failure(), Died) else "fine"
    facts = [first, heard, winner, seen, (yield from child.join()), str(len(both)), str(found == {}), str(0 <= chance < 1), str(id.version)]
    return ", ".join([*facts, str(when.tzinfo)])


@workflow("release.broken")
def broken(name: str) -> Steps[str, No]:
    return (yield from act(f"raises {name}"))


@workflow("release.fails")
def fails(name: str) -> Steps[str, No]:
    yield from act(name).compensate(lambda done: undo(done))
    return (yield from act(f"refused {name}"))


@workflow("release.again")
def again(name: str) -> Steps[str, No]:
    first = yield from act(f"{name} before")
    return first + (yield from act(f"fails at first {name}"))


@workflow("release.waits")
def waits(name: str) -> Steps[str, No]:
    """Ends when it is told thrice: by its id, by a key, and while a child of it waits."""
    first = yield from act(name).compensate(lambda done: undo(done))
    line = yield from go.receive()
    other = yield from race(go.receive(f"release {name}"), sleep("36500d").map(lambda _: Line("late")))
    child: Child[str, No] = yield from waiting_part.start(f"{name} part")
    return f"{first} {line.sku} {other.sku} {yield from child.join()}"


@workflow("release.waiting_part")
def waiting_part(name: str) -> Steps[str, No]:
    line = yield from go.receive(f"release {name}")
    return f"{yield from act(name)} x {line.count}"


@workflow("release.rounds")
def rounds(name: str) -> Steps[int, No]:
    """Three rounds, each begun by a signal; a checkpoint after each."""

    @do
    def one(at: tuple[int, int]) -> Steps[Round[tuple[int, int], int], No]:
        number, sum = at
        line = yield from go.receive()
        yield from all_(mark(f"{name} {number}"), act(f"{name} {number}"))
        return Done(sum + line.count) if number == 2 else Next((number + 1, sum + line.count))

    return (yield from iterate((0, 0), one))


@workflow("release.called_off")
def called_off(name: str) -> Steps[str, No]:
    yield from act(name).compensate(lambda done: undo(done))
    return (yield from go.receive().map(lambda line: line.sku).ensure(lambda _: act(f"{name} finalizer")))


WORKFLOWS = [values, part, much, broken, fails, again, waits, waiting_part, rounds, called_off]


@define
class Outside:
    """What the activities do, and each call of them."""

    calls: list[str] = field(factory=list[str])
    healed: bool = False

    async def act(self, name: str) -> Result[str, No]:
        self.calls.append(name)
        if name.startswith("raises"):
            raise RuntimeError(name)
        first = name.startswith("fails once") and this_attempt().number == 1
        refused = name.startswith("refused") or (name.startswith("fails at first") and not self.healed)
        return Failure(No(name, Line("why"))) if first or refused else Success(name)

    async def undo(self, name: str) -> Result[None, Never]:
        self.calls.append(f"undo {name}")
        return Success(None)

    async def mark(self, name: str) -> Result[str, Never]:
        self.calls.append(f"mark {name}")
        async with this_attempt().transaction() as connection:
            await connection.execute("select 1")
        return Success(name)

    async def once(self, name: str) -> Result[str, Interrupted]:
        self.calls.append(name)
        return Success(name)

    async def echo(self, one: Everything) -> Result[Everything, No]:
        self.calls.append("echo")
        return Success(one)

    def deployment(self) -> Deployment:
        return Deployment(
            WORKFLOWS, [bind(act, self.act), bind(undo, self.undo), bind(mark, self.mark), bind(once, self.once), bind(echo, self.echo)]
        )


@asynccontextmanager
async def working(dsn: str, outside: Outside) -> AsyncGenerator[Worker]:
    async with await Store.open(dsn) as store, Worker(outside.deployment(), store, TUNING) as worker:
        yield worker


async def tell(worker: Worker, to: str) -> None:
    await worker.store.send("default", to, "signal", go.name, b'{"sku":"s","count":2}', new_id())


async def tell_the_rest(worker: Worker, open: dict[str, str]) -> None:
    """What the open ones of the corpus still wait for."""
    for name in ("waits", "waits twice"):
        await tell(worker, f"release {open[name]}")
        await tell(worker, f"release {open[name]} part")
    await tell(worker, open["rounds id"])
    await worker.store.send("default", open["called off id"], "cancel", "", b'"no longer"', new_id())


# Making


async def made(dsn: str) -> tuple[str, dict[str, Any]]:
    """The export of a store in which some have ended and some wait, and how all of them end."""
    outside = Outside()
    async with working(dsn, outside) as worker:
        ended = [await worker.start(values, EVERYTHING)]
        ended += [await worker.start(one, f"n{number}") for number, one in enumerate((much, fails, broken, again))]
        waiting = {name: await worker.start(waits, name) for name in ("one", "two")}
        open = {
            "waits": "one",
            "waits twice": "two",
            "rounds id": await worker.start(rounds, "r"),
            "called off id": await worker.start(called_off, "c"),
        }
        for id in waiting.values():
            await tell(worker, id)
        for _ in range(2):
            await tell(worker, open["rounds id"])
        for id in ended:
            await worker.wait(id)
        outside.healed = True
        operator = Operator(worker.store, outside.deployment(), by="kim")
        await operator.retry(ended[-1], "healed")
        await operator.pause(waiting["two"], "to look at it")
        await worker.wait(ended[-1])
        ids = [*waiting.values(), open["rounds id"], open["called off id"]]
        await eventually(lambda: _rest(worker, ids), "the others wait", 60)
        document = await exported(worker.store, [*ended, *ids])
        outside.calls.clear()
        await operator.resume(waiting["two"])
        await tell_the_rest(worker, open)
        for id in ids:
            await worker.wait(id)
        known = [row["id"] for row in json.loads(document)["executions"]]
        rows = await worker.store.again("select id, status, exit from flowdsl.executions where id = any($1::uuid[])", [one["uuid"] for one in known])
        ends = {str(row["id"]): [row["status"], bytes(row["exit"]).decode().replace(f"{ROOT}/", "")] for row in rows}
        return placeless(json.dumps(json.loads(document), indent=1)) + "\n", {"open": open, "waits": ids, "ends": ends, "calls": outside.calls}


def placeless(document: str) -> str:
    """Without the folder in which this was written: a defect says where it was."""

    def changed(found: re.Match[str]) -> str:
        return b64encode(b64decode(found[1]).replace(f"{ROOT}/".encode(), b"")).decode()

    return re.sub(r'(?<="bytes": ")([^"]*)', changed, document)


async def _rest(worker: Worker, ids: list[str]) -> bool:
    """Whether each waits, has done something, and has taken all that was sent to it."""
    rows = await worker.store.again(
        "select x.status, (select count(*) from flowdsl.journal j where j.execution = x.id) as entries,"
        " (select count(*) from flowdsl.mailbox m where m.execution = x.id) as mail from flowdsl.executions x where x.id = any($1::uuid[])",
        ids,
    )
    return all(row["status"] in ("suspended", "blocked") and row["entries"] and not row["mail"] for row in rows)


def version() -> str:
    found: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return found


def sums(folder: Path) -> str:
    """The digests of its files, as `sha256sum` writes them."""
    return "".join(f"{sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.glob("*.json")))


def write() -> None:
    folder = FOLDER / version()
    if folder.exists():
        return
    base = Path(tempfile.mkdtemp(prefix="flowdsl-release-"))
    base.chmod(0o755)
    with embedded.start(base) as server:
        asyncio.run(migrate(server.dsn))
        document, facts = asyncio.run(made(server.dsn))
    shutil.rmtree(base)
    folder.mkdir(parents=True)
    (folder / "store.json").write_text(document)
    (folder / "ends.json").write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "SHA256SUMS").write_text(sums(folder))


if __name__ == "__main__":
    write()
