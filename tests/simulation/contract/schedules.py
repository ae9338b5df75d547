# ruff: noqa: E501 (statements are told as they are sent)
"""Schedules of real statements over two or three connections, and what comes of one on a server: answers, who waits for whom, what is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

import asyncpg
from attrs import define, field, frozen

from flowdsl.activation import Turn
from flowdsl.postgres import committer
from flowdsl.postgres.schedules import _DUE
from flowdsl.postgres.store import _LOAD
from tests.postgres.scene import NOON, START, child, entry, turn

PAST, FUTURE = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
KNOWN = (PAST, FUTURE, NOON)
WORKERS = [f"00000000-0000-0000-0000-0000000000a{n}" for n in range(2)]
EXECUTIONS = [f"00000000-0000-0000-0000-0000000000e{n}" for n in range(4)]
NEW = [f"00000000-0000-0000-0000-0000000000f{n}" for n in range(3)]
TABLES = ("workers", "executions", "journal", "mailbox", "deliveries", "aliases", "unmatched", "audit", "audit_heads", "heartbeats", "budgets", "slots", "demands",
          "firings", "schedules")  # fmt: skip


@frozen
class Step:
    connection: int
    name: str
    text: str
    arguments: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.connection}: {self.name} {self.text[:60]!r} {self.arguments}"


class _Written:
    """In the place of a connection: keeps what was to be sent."""

    async def fetchval(self, text: str, *arguments: Any, timeout: float | None = None) -> None:
        self.text, self.arguments = text, arguments


def _sent(worker: str, *turns: Any, narrow: bool) -> tuple[str, tuple[Any, ...]]:
    written = _Written()
    work = (committer._append if narrow else committer._commit)(written, worker, sorted(turns, key=lambda one: one.execution))
    with suppress(StopIteration):
        work.send(None)
    return written.text, written.arguments


# What may be said, each with values from small domains, so that they meet


@define
class Draw:
    random: Random

    def worker(self) -> str:
        return self.random.choice(WORKERS)

    def execution(self) -> str:
        return self.random.choice(EXECUTIONS)

    def some(self) -> list[str]:
        return self.random.sample(EXECUTIONS, self.random.randint(1, 3))

    def entries(self) -> list[Any]:
        first = self.random.randint(0, 1)
        return [entry(position) for position in range(first, first + self.random.randint(1, 2))]

    def append(self) -> tuple[str, tuple[Any, ...]]:
        turns = [turn(id, self.random.choice((1, 1, 2)), entries=self.entries()) for id in self.some()]
        return _sent(self.worker(), *turns, narrow=True)

    def commit(self) -> tuple[str, tuple[Any, ...]]:
        from flowdsl.activation import Sent

        turns = []
        for id in self.some():
            parts: dict[str, Any] = {"entries": self.entries() if self.random.random() < 0.7 else []}
            if parts["entries"] and self.random.random() < 0.4:
                to = self.random.choice([*EXECUTIONS, *NEW, "key"])
                parts["mails"] = [Sent(to, "signal", "news", b"1", self.random.choice(("d1", "d2")))]
            if parts["entries"] and self.random.random() < 0.3:
                parts["children"] = [child(self.random.choice(NEW), self.random.choice(("1", "2.0")), detached=self.random.random() < 0.3)]
            if self.random.random() < 0.3:
                parts["takes"] = [1]
            if self.random.random() < 0.3:
                parts["cancels"] = [self.random.choice(("", "2"))]
            if self.random.random() < 0.2:
                parts["audits"] = [("HAPPENED", b"{}")]
            state = self.random.choice((None, None, "suspended", "released", "succeeded", "failed", "blocked", "alive"))
            if state is None and not parts["entries"]:
                state = "suspended"
            ended = state in ("succeeded", "failed")
            turns.append(
                turn(id, self.random.choice((1, 1, 1, 2)), state=state, seen=self.random.randint(0, 1), exit=b"x" if ended else None,
                     wake=self.random.choice((None, PAST, FUTURE)) if state == "suspended" else None, **parts)
            )  # fmt: skip
        return _sent(self.worker(), *turns, narrow=False)

    def append_own(self) -> tuple[str, tuple[Any, ...]]:
        text = "select flowdsl.append_own($1,$2,$3,$4,$5,$6,$7,$8,$9,$10)"
        return text, (self.worker(), self.execution(), self.random.randint(0, 2), 1, 1, NOON, "0", "f", "s", b"1")

    def claim(self) -> tuple[str, tuple[Any, ...]]:
        text = "select id, epoch, deaths, mail, taken_over, blocked from flowdsl.claim($1, $2, $3, $4) order by id"
        return text, (self.worker(), self.random.choice((1, 2, 10)), ["w"], self.random.random() < 0.5)

    def take_over(self) -> tuple[str, tuple[Any, ...]]:
        return "select flowdsl.take_over()", ()

    def age(self) -> tuple[str, tuple[Any, ...]]:
        return "update flowdsl.workers set beat = $2 where id = $1", (self.worker(), PAST)

    def beat(self) -> tuple[str, tuple[Any, ...]]:
        return "update flowdsl.workers set beat = clock_timestamp() where id = $1 and not gone returning gone", (self.worker(),)

    def gone(self) -> tuple[str, tuple[Any, ...]]:
        return "update flowdsl.workers set gone = true where id = (select id from flowdsl.workers where id = $1 for update)", (self.worker(),)

    def let_go(self) -> tuple[str, tuple[Any, ...]]:
        text = (
            "update flowdsl.executions set owner = null, wake = clock_timestamp()"
            " where id = any(array(select id from flowdsl.executions where owner = $1 order by id for no key update)) and owner = $1"
        )
        return text, (self.worker(),)

    def reclaim(self) -> tuple[str, tuple[Any, ...]]:
        return "select id, epoch from flowdsl.reclaim($1, $2::uuid[]) order by id", (self.worker(), self.some())

    def start(self) -> tuple[str, tuple[Any, ...]]:
        n = self.random.randint(1, 2)
        ids = self.random.sample(NEW, n)
        keys = [self.random.choice(("k1", "k2", None)) for _ in ids]
        reuse = self.random.choice(("join", "reject", "after_close", "after_failure"))
        parents = [self.random.choice((None, EXECUTIONS[0])) for _ in ids]
        columns = (ids, ["t"] * n, ["w"] * n, [1] * n, [""] * n, keys, [reuse] * n, [b"null"] * n, parents, ["1"] * n, [False] * n)
        return START.replace("select *", "select asked, id, outcome, status"), columns

    def begin(self) -> tuple[str, tuple[Any, ...]]:
        ids = self.random.sample(NEW, 2)
        text = "select id, mine from flowdsl.begin($1, $2::uuid[], $3::text[], $4::text[], $5::int[], $6::bytea[])"
        return text, (self.worker(), ids, ["t"] * 2, ["w"] * 2, [1] * 2, [b"null"] * 2)

    def send(self) -> tuple[str, tuple[Any, ...]]:
        to = self.random.choice([*EXECUTIONS, "key", NEW[0]])
        kind = self.random.choice(("signal", "signal", "cancel"))
        return "select flowdsl.send($1, $2, $3, $4, $5, $6)", ("default", to, kind, "news", b"1", self.random.choice(("d1", "d2")))

    def register(self) -> tuple[str, tuple[Any, ...]]:
        return "select flowdsl.register($1, $2, $3, $4)", ("default", "news", "key", self.execution())

    def send_many(self) -> tuple[str, tuple[Any, ...]]:
        to = self.random.sample([*EXECUTIONS, NEW[0]], 2)
        text = "select flowdsl.send_many($1, $2::uuid[], $3, $4::bytea[], $5::text[])"
        return text, ("default", to, "news", [b"1", b"2"], [self.random.choice(("d1", "d2")) for _ in to])

    def block(self) -> tuple[str, tuple[Any, ...]]:
        text = "update flowdsl.executions set status = 'blocked', owner = null, wake = null, cause = $4 where id = $2 and epoch = $3 and owner = $1"
        return text, (self.worker(), self.execution(), 1, "why")

    def resume(self) -> tuple[str, tuple[Any, ...]]:
        return "select flowdsl.resume($1, $2, $3)", ("default", self.execution(), b"{}")

    def terminate(self) -> tuple[str, tuple[Any, ...]]:
        return "select flowdsl.terminate($1, $2, $3, $4, $5)", ("default", self.execution(), b"b", b"x", b"{}")

    def intervene(self) -> tuple[str, tuple[Any, ...]]:
        text = "select flowdsl.intervene($1,$2,$3,$4,$5::text[],$6,$7,$8::text[],$9::text[],$10::bytea[],$11::uuid[],$12,$13)"
        statuses = ["failed", "blocked", "running", "suspended", "succeeded"]
        position, mails = self.random.randint(0, 2), self.random.randint(0, 1)
        children = self.random.sample(EXECUTIONS, self.random.randint(0, 1))
        return text, (
            "default",
            self.execution(),
            1,
            position,
            statuses,
            b"b",
            "{[0,1)}",
            ["news"] * mails,
            [None] * mails,
            [b"1"] * mails,
            children,
            "E",
            b"{}",
        )

    def discard(self) -> tuple[str, tuple[Any, ...]]:
        return "select flowdsl.discard($1, $2::uuid[], $3)", ("default", self.some(), b"{}")

    def prune(self) -> tuple[str, tuple[Any, ...]]:
        return "select flowdsl.prune($1, null, $2, $3, 10)", ("default", ["succeeded", "failed", "cancelled"], FUTURE)

    def audited(self) -> tuple[str, tuple[Any, ...]]:
        return "select flowdsl.audited($1, $2::uuid, $3, $4)", ("default", self.execution(), "SAID", b"{}")

    def seal(self) -> tuple[str, tuple[Any, ...]]:
        return "select flowdsl.seal($1, $2)", ("default", self.random.choice((1, 100)))

    def heartbeat(self) -> tuple[str, tuple[Any, ...]]:
        ids = self.some()
        return "select flowdsl.beat($1, $2, $3, $4, $5)", (
            ids,
            ["0"] * len(ids),
            [self.random.choice((1, 2))] * len(ids),
            [1] * len(ids),
            [b"b"] * len(ids),
        )

    def forget(self) -> tuple[str, tuple[Any, ...]]:
        ids = self.some()
        return "select flowdsl.still($1, $2, $3)", (ids, ["0"] * len(ids), [1] * len(ids))

    def draw(self) -> tuple[str, tuple[Any, ...]]:
        text = "select granted, b_left from flowdsl.draw($1, $2::bigint[], $3::text[], $4::text[], $5::text[], $6::int[], $7::bigint[], $8::int[], $9::int[], $10::bigint[], $11::int[])"
        kinds = self.random.choice((["slots"], ["slots", "rate"]))
        n = len(kinds)
        rates: tuple[list[Any], list[Any]] = (
            [3_600_000_000 if kind == "rate" else None for kind in kinds],
            [2 if kind == "rate" else None for kind in kinds],
        )
        tickets = self.random.sample((1, 2, 3), 2)
        pairs = [(ticket, budget) for ticket in tickets for budget in range(1, n + 1)]
        back = self.random.sample((1, 2, 3), self.random.randint(0, 1))
        return text, (self.worker(), back, kinds, ["b"] * n, [""] * n, [2] * n, *rates, [2] * n, [a for a, _ in pairs], [b for _, b in pairs])

    def due(self) -> tuple[str, tuple[Any, ...]]:
        return _DUE.replace("select *, statement_timestamp() as now", "select id, upcoming, queued"), (1, ["w"])

    def fire(self) -> tuple[str, tuple[Any, ...]]:
        text = "select * from flowdsl.fire($1, $2::text[], $3::timestamptz[], $4::text[], $5::uuid[])"
        return text, (
            self.random.choice(("due", "triggered", "queued")),
            ["s"],
            [self.random.choice((PAST, NOON))],
            [self.random.choice(("k1", "k2"))],
            [NEW[2]],
        )

    def load(self) -> tuple[str, tuple[Any, ...]]:
        return _LOAD, (EXECUTIONS,)

    def look(self) -> tuple[str, tuple[Any, ...]]:
        return "select gone, others from flowdsl.look($1)", (self.worker(),)


WORDS: dict[str, int] = {
    "append": 4, "commit": 6, "append_own": 2, "claim": 3, "take_over": 2, "age": 1, "beat": 1, "gone": 1, "let_go": 1, "reclaim": 1, "start": 4, "begin": 2,
    "send": 3, "register": 2, "send_many": 2, "block": 1, "resume": 1, "terminate": 2, "intervene": 2, "discard": 1, "prune": 1, "audited": 1, "seal": 1,
    "heartbeat": 1, "forget": 1, "draw": 2, "due": 1, "fire": 1, "load": 1, "look": 1,
}  # fmt: skip


def schedule(seed: int) -> list[Step]:
    """The schedule of a seed: short transactions of up to three connections, mixed."""
    random = Random(seed)
    draw, steps, open_ = Draw(random), list[Step](), set[int]()
    connections = random.choice((2, 3))
    words = random.choices(list(WORDS), list(WORDS.values()), k=random.randint(3, 6))  # few different ones: they meet more often
    for _ in range(random.randint(5, 14)):
        at = random.randrange(connections)
        if at in open_ and random.random() < 0.35:
            open_.discard(at)
            steps.append(Step(at, "end", random.choice(("commit", "commit", "rollback"))))
        elif at not in open_ and random.random() < 0.5:
            open_.add(at)
            steps.append(Step(at, "open", "begin"))
        else:
            name = random.choice(words)
            steps.append(Step(at, name, *getattr(draw, name)()))
    return [*steps, *(Step(at, "end", "commit") for at in sorted(open_))]


SETTING: list[tuple[str, tuple[Any, ...]]] = [
    *(("insert into flowdsl.workers (id, lease, host, pid) values ($1, '1 hour', 'h', 1)", (id,)) for id in WORKERS),
    *(
        (
            "insert into flowdsl.executions (id, tenant, workflow, version, request, owner, epoch, status, wake, parent, parent_step, key, mail, exit, ended, started)"
            " values ($1, $2, 'w', 1, 'null', $3, 1, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            row,
        )
        for row in (
            (EXECUTIONS[0], "default", WORKERS[0], "running", None, None, "", None, 1, None, None, NOON),
            (EXECUTIONS[1], "default", WORKERS[0], "running", None, EXECUTIONS[0], "2.0", None, 0, None, None, NOON),
            (EXECUTIONS[2], "default", None, "suspended", PAST, EXECUTIONS[0], "1", None, 0, None, None, NOON),
            (EXECUTIONS[3], "default", None, "failed", None, None, "", "k1", 0, b"x", NOON, NOON),
        )
    ),
    ("insert into flowdsl.mailbox (execution, seq, kind, name, body) values ($1, 1, 'signal', 'news', '1')", (EXECUTIONS[0],)),
    (
        "insert into flowdsl.schedules (id, tenant, workflow, version, request, rule, zone, jitter, overlap, catch_up, within, upcoming, due)"
        " values ('s', 't', 'w', 1, 'null', 'r', 'UTC', '0', 'queue', 'one', '1 hour', $1, $1)",
        (PAST,),
    ),
]


# On a server


@define
class Outcome:
    """What came of a schedule: a line a step, and the tables at the end."""

    lines: list[str] = field(factory=list[str])
    tables: dict[str, list[str]] = field(factory=dict[str, "list[str]"])


@define
class Theatre:
    """Where a schedule is played: three connections, one that watches, and how to learn who waits for whom."""

    connections: list[Any]
    watcher: Any
    waiting: Callable[[list[Any]], Any]
    """Of connections whose statements are under way: for each the process ids that it waits for."""
    breath: float

    async def play(self, steps: list[Step]) -> Outcome:
        for text, arguments in SETTING:
            await self.watcher.execute(text, *arguments)
        outcome, running = Outcome(), dict[int, asyncio.Task[str]]()
        for step in steps:
            if step.connection in running:
                outcome.lines.append("busy")
                continue
            running[step.connection] = asyncio.ensure_future(_said(self.connections[step.connection], step))
            told, stuck = await self._settled(running)
            outcome.lines.append("; ".join(told))
            if stuck:
                break
        await self._end([connection for at, connection in enumerate(self.connections) if at in running])  # before who holds them up lets go
        await asyncio.gather(*running.values(), return_exceptions=True)
        for connection in self.connections:
            if not connection.is_closed() and connection.is_in_transaction():
                await connection.execute("rollback")
        for table in TABLES:
            rows = [dict(row) for row in await self.watcher.fetch(f"select * from flowdsl.{table}")]
            if table == "unmatched":  # numbers have gaps, of a server that was used before: their order counts
                for number, row in enumerate(sorted(rows, key=lambda row: row["seq"])):
                    row["seq"] = number
            outcome.tables[table] = sorted(repr([(name, plain(value)) for name, value in row.items()]) for row in rows)
        return outcome

    async def _settled(self, running: dict[int, asyncio.Task[str]]) -> tuple[list[str], bool]:
        """Until each statement has ended or waits for another's transaction; then what is new, and whether they wait in a circle."""
        told: list[str] = []
        while True:
            for at in [at for at, task in running.items() if task.done()]:
                told.append(f"{at} {running.pop(at).result()}")
            if not running:
                return sorted(told), False
            pids = {connection.get_server_pid(): at for at, connection in enumerate(self.connections)}
            waits = {at: [pids[pid] for pid in found if pid in pids] for at, found in (await self._waits(running)).items()}
            if all(waits.values()) and not any(task.done() for task in running.values()):
                roots = {at: _roots(at, waits) for at in waits}
                return sorted(told) + [f"{at} waits for {sorted(roots[at]) or 'ever'}" for at in sorted(waits)], not all(roots.values())
            await asyncio.sleep(self.breath)

    async def _waits(self, running: dict[int, asyncio.Task[str]]) -> dict[int, list[int]]:
        order = list(running)
        found = await self.waiting([self.connections[at] for at in order])
        return dict(zip(order, found, strict=True))

    async def _end(self, connections: list[Any]) -> None:
        """Ends their sessions, until the server has undone what they had open."""
        pids = [connection.get_server_pid() for connection in connections]
        await self.watcher.fetch("select pg_terminate_backend(u.pid) from unnest($1::int[]) as u(pid)", pids)
        while await self.watcher.fetchval("select count(*) from pg_stat_activity where pid = any($1::int[])", pids):
            await asyncio.sleep(self.breath)
        for connection in connections:
            connection.terminate()


def _roots(at: int, waits: dict[int, list[int]]) -> set[int]:
    """Who does not wait, and is waited for in the end; nobody: it is a circle."""
    seen, left, found = set[int](), [at], set[int]()
    while left:
        one = left.pop()
        if one in seen:
            continue
        seen.add(one)
        if one in waits:
            left += waits[one]
        else:
            found.add(one)
    return found


async def _said(connection: Any, step: Step) -> str:
    try:
        rows = await connection.fetch(step.text, *step.arguments)
    except asyncpg.PostgresError as error:
        return f"{type(error).__name__} {getattr(error, 'constraint_name', '') or ''}"
    except (asyncpg.InterfaceError, OSError) as error:
        return type(error).__name__
    found = [tuple(plain(value) for value in row.values()) for row in rows]
    return repr(found)


def plain(value: Any) -> Any:
    """The value as it is on every server: what a clock said is only there or not."""
    match value:
        case datetime():
            return value.isoformat() if value in KNOWN else "then"
        case UUID():
            return str(value)
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return format(value.normalize(), "f")
        case list() | tuple():
            return [plain(one) for one in value]
        case asyncpg.Range():
            return (value.lower, value.upper)
        case _ if type(value).__name__ == "UUID":
            return str(value)
        case bytes() if len(value) == 32:
            return "hash"  # of what a clock said
        case _:
            return value


__all__ = ["Outcome", "Step", "Theatre", "Turn", "schedule"]
