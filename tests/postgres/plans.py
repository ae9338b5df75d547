"""The plans of all statements that a database runs, those inside functions too, with what each of them read; told by the server's auto_explain."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from attrs import define, field, frozen

from flowdsl.postgres import connection

GROWS = {"executions", "journal", "mailbox", "deliveries", "aliases", "unmatched", "audit", "webhooks", "notes", "firings"}
"""Tables with a row for each of what there has been."""


@frozen
class Ran:
    """One statement as it ran once. `where`: the function that it is in, and the line; or nothing."""

    query: str
    where: str
    plan: Any

    @property
    def scans(self) -> Iterator[Any]:
        """The parts that read one of the tables that grow."""
        return (node for node in _nodes(self.plan) if node.get("Relation Name") in GROWS and "Scan" in node["Node Type"])

    @property
    def whole(self) -> set[str]:
        """The tables that were read from their beginning to their end. Of one that has next to nothing in it that is right."""
        return {node["Relation Name"] for node in self.scans if node["Node Type"] == "Seq Scan" and _looked_at(node) > 50}

    @property
    def rows(self) -> int:
        """Rows of those tables that were looked at, whether they fit or not."""
        return sum(_looked_at(node) for node in self.scans)

    @property
    def pages(self) -> int:
        return sum(self.plan.get(f"Shared {what} Blocks", 0) for what in ("Hit", "Read"))

    def __str__(self) -> str:
        return f"{self.where or 'by itself'}: {self.rows} rows, {self.pages} pages\n{self.query}\n" + "\n".join(_drawn(self.plan, 1))


@define
class Plans:
    """Every statement that was told of, in the order of their ends."""

    ran: list[Ran] = field(factory=list[Ran])

    def heard(self, message: str, context: str | None) -> None:
        what, _, plan = message.partition("plan:\n")
        if not what.startswith("duration: "):
            return
        found = json.loads(plan)
        self.ran.append(Ran(" ".join(found["Query Text"].split()), _innermost(context), found["Plan"]))

    async def connect(self, *arguments: Any, **more: Any) -> Any:
        return await asyncpg.connect(*arguments, **more, connection_class=self._telling())

    async def create_pool(self, **more: Any) -> Any:
        return await asyncpg.create_pool(**more, connection_class=self._telling())

    def _telling(plans) -> Any:  # pyright: ignore[reportSelfClsParameterName]
        class Telling(asyncpg.Connection):  # type: ignore[misc, type-arg]  # a pool complains of listeners: so this takes what they would hear
            def _process_log_message(self, fields: Any, last_query: str) -> None:
                plans.heard(fields.get("M", ""), fields.get("W"))

        return Telling


@asynccontextmanager
async def explained(dsn: str) -> AsyncGenerator[Plans]:
    """From now on connections to this database tell how each of their statements ran. Plans are made once for all values."""
    owner = await asyncpg.connect(dsn)
    try:
        await owner.execute("load 'auto_explain'")
    except asyncpg.PostgresError as error:
        pytest.skip(f"this server has no auto_explain: {error}")
    settings = {
        "session_preload_libraries": "auto_explain", "plan_cache_mode": "force_generic_plan", "auto_explain.log_min_duration": "0",
        "auto_explain.log_analyze": "on", "auto_explain.log_buffers": "on", "auto_explain.log_timing": "off", "auto_explain.log_format": "json",
        "auto_explain.log_nested_statements": "on", "auto_explain.log_level": "notice",
    }  # fmt: skip
    name = await owner.fetchval("select current_database()")
    for setting, value in settings.items():
        await owner.execute(f"alter database \"{name}\" set {setting} = '{value}'")
    await owner.close()
    plans = Plans()
    connection.drivers[dsn] = plans
    try:
        yield plans
    finally:
        del connection.drivers[dsn]


def _innermost(context: str | None) -> str:
    lines = [line for line in (context or "").splitlines() if line.startswith(("PL/pgSQL function", "SQL function"))]
    return lines[0] if lines else ""


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for below in node.get("Plans", ()):
        yield from _nodes(below)


def _looked_at(node: Any) -> int:
    rows = node.get("Actual Rows", 0) + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return round(rows * node.get("Actual Loops", 0))


def _drawn(node: Any, depth: int) -> Iterator[str]:
    what = " ".join(str(node[name]) for name in ("Node Type", "Relation Name", "Index Name") if name in node)
    condition = " and ".join(str(node[name]) for name in ("Index Cond", "Filter") if name in node)
    yield f"{'  ' * depth}{what}: {_looked_at(node)} rows {condition}"
    for below in node.get("Plans", ()):
        yield from _drawn(below, depth + 1)
