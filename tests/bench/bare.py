"""The physical limit: one connection, one writer, group commit of rows as wide as ours. Each flow waits for its row's commit.

No engine, no fence."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import deque
from typing import Any

import asyncpg

from tests.bench.measured import Sample, Watch, lanes
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
            await writer.put("row", flow, seq, json.dumps({"i": seq, "ok": True, "data": FILLER}).encode())
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
