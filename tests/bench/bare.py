"""The physical limits: rows as wide as ours, no engine, no fence. Each flow waits for its row's commit.

One connection with one writer that commits what came together; or a connection each, with a commit for every row."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import Any

import asyncpg

from tests.bench.measured import Figures, Sample, Watch, lanes
from tests.bench.subject import FILLER

TABLES = """
create table if not exists bare_rows (flow uuid, seq integer, kind smallint, label text, body bytea, primary key (flow, seq));
create table if not exists bare_flows (id uuid primary key, state smallint, started timestamptz, request bytea, answer bytea) with (fillfactor = 80);
"""
LABEL = "perform bench.note 0123456789abcdef sequence subject.py:40"  # what an entry says beside its body
_ROWS = "insert into bare_rows select * from unnest($1::uuid[], $2::int[], $3::smallint[], $4::text[], $5::bytea[])"
_FLOWS = """
with begun as (insert into bare_flows select id, 1, now(), request, null from unnest($6::uuid[], $7::bytea[]) as t(id, request)),
     noted as (insert into bare_rows select * from unnest($1::uuid[], $2::int[], $3::smallint[], $4::text[], $5::bytea[])),
     ended as (update bare_flows set state = 2, answer = t.answer from unnest($8::uuid[], $9::bytea[]) as t(id, answer) where bare_flows.id = t.id)
select 1
"""


class Writer:
    """Takes what is pending whenever the last write returns."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._pending: deque[tuple[str, uuid.UUID, int, bytes, asyncio.Future[None]]] = deque()
        self._wake = asyncio.Event()
        self.steps = 0

    def put(self, kind: str, flow: uuid.UUID, seq: int, body: bytes) -> asyncio.Future[None]:
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((kind, flow, seq, body, told))
        self._wake.set()
        return told

    async def write(self) -> None:
        rows_only, with_flows = await self._connection.prepare(_ROWS), await self._connection.prepare(_FLOWS)
        while True:
            if not self._pending:
                self._wake.clear()
                await self._wake.wait()
            batch = list(self._pending)
            self._pending.clear()
            rows = [one for one in batch if one[0] == "row"]
            columns = [one[1] for one in rows], [one[2] for one in rows], [1] * len(rows), [LABEL] * len(rows), [one[3] for one in rows]
            if len(rows) == len(batch):
                await rows_only.fetch(*columns)
            else:
                begun, ended = [one for one in batch if one[0] == "begun"], [one for one in batch if one[0] == "ended"]
                await with_flows.fetch(
                    *columns, [one[1] for one in begun], [one[3] for one in begun], [one[1] for one in ended], [one[3] for one in ended]
                )
            self.steps += len(rows)
            for one in batch:
                one[4].set_result(None)


async def measure(dsn: str, watcher: Any, in_flight: int, seconds: float, *, flows: bool) -> Sample:
    """Rows alone; or with `flows` a start row and a finish update around each ten."""
    connection = await asyncpg.connect(dsn, server_settings={"jit": "off"})
    await connection.execute(TABLES)
    writer = Writer(connection)
    writing = asyncio.create_task(writer.write())

    async def one(steps: int) -> None:
        flow = uuid.uuid4()
        if flows:
            await writer.put("begun", flow, 0, b"10")
        for seq in range(steps):
            await writer.put("row", flow, seq, _body(seq))
        if flows:
            await writer.put("ended", flow, 0, b'{"success":10}')

    try:
        watch = Watch(watcher, lambda: writer.steps)
        return await lanes(in_flight, one, watch.window("bare with starts and ends" if flows else "bare", in_flight, seconds))
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await connection.execute("truncate bare_rows, bare_flows")
        await connection.close()


class Rows:
    """Group commit of rows alone."""

    flows = False

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._watcher: Any = None

    async def begin(self) -> str:
        self._watcher = await asyncpg.connect(self._dsn)
        return version("asyncpg")

    async def seq(self, in_flight: int, seconds: float) -> Figures:
        return (await measure(self._dsn, self._watcher, in_flight, seconds, flows=self.flows)).figures(seconds)

    async def fanout(self, count: int, _: float) -> Figures:
        """One flow's rows, all at once."""
        flow = uuid.uuid4()
        return await self._written(count, lambda writer: [writer.put("row", flow, seq, _body(seq)) for seq in range(count)])

    async def _written(self, count: int, put: Callable[[Writer], Sequence[Awaitable[None]]]) -> Figures:
        connection = await asyncpg.connect(self._dsn, server_settings={"jit": "off"})
        await connection.execute(TABLES)
        writer = Writer(connection)
        writing = asyncio.create_task(writer.write())
        await writer.put("row", uuid.uuid4(), 0, b"1")

        async def work() -> None:
            await asyncio.gather(*put(writer))

        found = await Watch(self._watcher, int).over(count, work())
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await connection.execute("truncate bare_rows, bare_flows")
        await connection.close()
        return found


class Ends(Rows):
    """The same with a start row and a finish update for each flow."""

    flows = True

    async def children(self, count: int, _: float) -> Figures:
        """As many flows of one row as there are children, all begun at once."""

        async def one(writer: Writer, number: int) -> None:
            flow = uuid.uuid4()
            await writer.put("begun", flow, 0, b"1")
            await writer.put("row", flow, 0, _body(number))
            await writer.put("ended", flow, 0, b'{"success":1}')

        return await self._written(count, lambda writer: [one(writer, number) for number in range(count)])

    async def storm(self, count: int, seconds: float) -> Figures:
        return await self.children(count, seconds)


class Single:
    """A commit for every row, as pgbench does: a connection for each flow, 32 at most."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._watcher: Any = None

    async def begin(self) -> str:
        self._watcher = await asyncpg.connect(self._dsn)
        return version("asyncpg")

    async def seq(self, in_flight: int, seconds: float) -> Figures:
        connections = [await asyncpg.connect(self._dsn, server_settings={"jit": "off"}) for _ in range(min(in_flight, 32))]
        await connections[0].execute(TABLES)
        free: asyncio.Queue[Any] = asyncio.Queue()
        for connection in connections:
            free.put_nowait(await connection.prepare("insert into bare_rows values ($1, $2, 1, $3, $4)"))
        made = 0

        async def one(steps: int) -> None:
            nonlocal made
            flow = uuid.uuid4()
            for seq in range(steps):
                insert = await free.get()
                await insert.fetch(flow, seq, LABEL, _body(seq))
                free.put_nowait(insert)
                made += 1

        sample = await lanes(in_flight, one, Watch(self._watcher, lambda: made).window("single", in_flight, seconds))
        for connection in connections:
            await connection.close()
        await self._watcher.execute("truncate bare_rows")
        return sample.figures(seconds, total=made)

    async def cold(self, steps: int, _: float) -> Figures:
        """A connection, and a row for each step."""
        connection = await asyncpg.connect(self._dsn)
        await connection.execute(TABLES)
        flow = uuid.uuid4()
        for seq in range(steps):
            await connection.execute("insert into bare_rows values ($1, $2, 1, $3, $4)", flow, seq, LABEL, _body(seq))
        await connection.close()
        return Figures(steps, 0.0)


def _body(seq: int) -> bytes:
    return json.dumps({"i": seq, "ok": True, "data": FILLER}).encode()
