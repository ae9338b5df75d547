"""Tenants apart, by the server: for every table there is, found from the catalog, and whatever a statement forgets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4, uuid5

import asyncpg
import httpx2
import pytest
from attrs import evolve

from flowdsl.errors import FlowError
from flowdsl.postgres.doctor import examine
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.tenants import ROLE, not_apart, of_tenant
from flowdsl.service import create_app
from flowdsl.service.settings import Settings
from tests.postgres.pooler import pooled_at
from tests.service.stage import DEPLOYMENT

SHARED = {"migrations", "workers", "budgets", "slots", "demands", "audited_workflows"}
"""Tables that hold nothing of anybody's: counters, limits, and who is at work."""

FIRST, SECOND = "acme", "globex"


async def tables(connection: Any) -> dict[str, str]:
    """Each table of tenants' rows, and what must be true of a row."""
    return {row["name"]: row["guard"] for row in await connection.fetch("select name, guard from flowdsl.tenant_tables()")}


# One row of each tenant in each table, whatever tables there are


CHOSEN: Mapping[str, Any] = {
    "schedules.overlap": "skip",
    "schedules.catch_up": "one",
    "schedules.in_code": False,
    "firings.outcome": "started",
    "firings.cause": "due",
    "keys.role": "viewer",
    "keys.digest": b"0" * 32,
}
"""Where a column does not take just any value of its type."""


def _value(table: str, column: str, type: str, tenant: str) -> str:
    """SQL for a value of that type, another for each tenant."""
    space = UUID("00000000-0000-0000-0000-000000000000")
    if column == "tenant":
        return f"'{tenant}'"
    if column == "scope" and table == "deliveries":
        return f"'{tenant}/approved/order'"
    if column == "execution" or (table, column) == ("executions", "id"):
        return f"'{uuid5(space, tenant)}'"
    if column == "schedule" or (table, column) == ("schedules", "id"):
        return f"'{tenant}:nightly'"
    chosen = CHOSEN.get(f"{table}.{column}")
    if chosen is not None:
        return f"'\\x{chosen.hex()}'" if isinstance(chosen, bytes) else f"'{chosen}'"
    return {
        "text": f"'{tenant} {column}'", "uuid": f"'{uuid5(space, tenant + table + column)}'", "bytea": f"'{tenant}'::bytea", "integer": "1",
        "bigint": "1", "smallint": "1", "numeric": "1", "boolean": "false", "interval": "'1 day'", "timestamp with time zone": "clock_timestamp()",
    }[type]  # fmt: skip


async def fill(connection: Any) -> None:
    """A row of each tenant in each table. A new table is filled too; where its columns are choosy, `CHOSEN` says what they take."""
    known = await tables(connection)
    for table in sorted(known, key=lambda name: (name not in ("executions", "schedules"), name)):
        columns = await connection.fetch(
            "select column_name as name, data_type as type from information_schema.columns where table_schema = 'flowdsl' and table_name = $1"
            " and (is_nullable = 'NO' and column_default is null and is_identity = 'NO' and is_generated = 'NEVER' or table_name || '.' || column_name = any($2))",
            table,
            list(CHOSEN),
        )
        for tenant in (FIRST, SECOND):
            values = ", ".join(_value(table, row["name"], row["type"], tenant) for row in columns)
            await connection.execute(f"insert into flowdsl.{table} ({', '.join(row['name'] for row in columns)}) values ({values})")


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with await Store.open(database, size=4) as store:
        yield store


@pytest.fixture
async def full(store: Store) -> Store:
    async with store.connection() as connection:
        await fill(connection)
    return store


# Every table


async def test_every_table_is_a_tenants_or_nobodys(store: Store) -> None:
    """A new table has to be one of the two: by its columns, by a line in functions/tenants.sql, or by a word in SHARED."""
    everything = {row["name"] for row in await store.again("select relname as name from pg_class where relnamespace = 'flowdsl'::regnamespace"
                                                           " and relkind in ('r', 'p')")}  # fmt: skip
    async with store.connection() as connection:
        guarded = set(await tables(connection))
    assert guarded & SHARED == set()
    assert everything - guarded - SHARED == set(), "whose rows are these? say so in functions/tenants.sql, or in SHARED if nobody's"
    rows = await store.again("select table_name as name from information_schema.columns where table_schema = 'flowdsl' and column_name = 'tenant'")
    assert {row["name"] for row in rows} <= guarded


async def test_every_table_of_tenants_has_its_policy(store: Store) -> None:
    rows = await store.again(
        "select c.relname as name, c.relrowsecurity as secured, array_agg(p.polname::text) as policies from pg_class c"
        " left join pg_policy p on p.polrelid = c.oid where c.relnamespace = 'flowdsl'::regnamespace and c.relkind in ('r', 'p') group by 1, 2"
    )
    async with store.connection() as connection:
        guarded = await tables(connection)
    assert {row["name"] for row in rows if row["secured"] and row["policies"] == ["tenants_apart"]} == set(guarded)
    assert await not_apart(store) is None


async def test_the_role_has_no_rights_where_nothing_is_a_tenants(store: Store) -> None:
    for table in SHARED:
        rows = await store.again("select has_table_privilege($1, 'flowdsl.' || $2, 'select, insert, update, delete, truncate')", ROLE, table)
        assert rows[0][0] is False, table
    (role,) = await store.again("select rolsuper, rolbypassrls, rolcanlogin from pg_roles where rolname = $1", ROLE)
    assert not any(role)
    (trail,) = await store.again("select has_table_privilege($1, 'flowdsl.audit', 'update, delete, truncate')", ROLE)
    assert trail[0] is False


# A statement that forgot


@pytest.mark.shows("S1.140")
async def test_a_statement_without_a_condition_sees_one_tenant(full: Store) -> None:
    async with full.connection() as connection:
        guarded = await tables(connection)
    for tenant in (FIRST, SECOND):
        theirs = of_tenant(full, tenant)
        for table, guard in guarded.items():
            rows = await theirs.again(f"select * from flowdsl.{table}")
            assert len(rows) == 1, (table, guard)
            assert "tenant" not in rows[0] or rows[0]["tenant"] == tenant
            assert len(await full.again(f"select * from flowdsl.{table}")) == 2, "who is no tenant sees all"


async def test_a_change_without_a_condition_changes_one_tenant(full: Store) -> None:
    async with full.connection() as connection:
        guarded = sorted(await tables(connection), key=lambda name: (name in ("executions", "schedules"), name))
    theirs = of_tenant(full, FIRST)
    for table in guarded:
        if table in ("audit", "audit_heads"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
                await theirs.again(f"delete from flowdsl.{table}")
            continue
        assert len(await theirs.again(f"delete from flowdsl.{table} returning 1")) == 1, table
        assert len(await full.again(f"select 1 from flowdsl.{table}")) == 1, table


async def test_nothing_can_be_made_anothers(full: Store) -> None:
    theirs = of_tenant(full, FIRST)
    for table in ("unmatched", "aliases"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await theirs.again(f"update flowdsl.{table} set tenant = $1 returning 1", SECOND)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await theirs.start([NewStart(str(uuid4()), SECOND, "shop.approval", 1, "", None, "join", b'"x"')])
    (theirs_too,) = await full.again("select id from flowdsl.executions where tenant = $1", SECOND)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await theirs.note(str(theirs_too["id"]), "read this", None, None)
    assert await theirs.send(SECOND, str(theirs_too["id"]), "cancel", "cancel", b"{}", "d") == "unmatched"


async def test_without_a_tenant_there_is_nothing(full: Store) -> None:
    async with full.connection() as connection, connection.transaction():
        await connection.execute(f"set local role {ROLE}")
        for table in await tables(connection):
            assert await connection.fetch(f"select 1 from flowdsl.{table}") == [], table
    with pytest.raises(FlowError, match="has a name"):
        of_tenant(full, "")


async def test_one_transaction_is_one_tenants(full: Store) -> None:
    """With options of its own, and with savepoints in it."""
    theirs = of_tenant(full, FIRST)
    async with theirs.connection() as connection:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            assert [row[0] for row in await connection.fetch("select tenant from flowdsl.audit")] == [FIRST]
            assert await connection.fetchval("show transaction_isolation") == "repeatable read"
            async with connection.transaction():
                assert await connection.fetchval("select tenant from flowdsl.executions") == FIRST
            assert [row["tenant"] async for row in connection.cursor("select tenant from flowdsl.executions")] == [FIRST]
        assert await connection.fetchval("select current_user") == ROLE and not connection.is_in_transaction()
        assert (await connection.fetchrow("select tenant from flowdsl.executions"))["tenant"] == FIRST


# Nothing stays behind


async def _is_ours(store: Store) -> None:
    (row,) = await store.again("select current_user = session_user as ours, coalesce(current_setting('flowdsl.tenant', true), '') as tenant,"
                               " (select count(*) from flowdsl.executions) as seen")  # fmt: skip
    assert (row["ours"], row["tenant"], row["seen"]) == (True, "", 2)


async def test_whoever_uses_the_connection_next_is_no_tenant(database: str) -> None:
    async with await Store.open(database, size=1) as store:
        async with store.connection() as connection:
            await fill(connection)
        theirs = of_tenant(store, FIRST)
        for query in ("select 1", "select 1/0", "select pg_sleep(10)", "select no_such_column"):
            for steps in range(6):
                task = asyncio.create_task(theirs.again(query))
                for _ in range(steps):
                    await asyncio.sleep(0)
                if steps < 5 or "sleep" in query:
                    task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await _is_ours(store)


async def test_one_plan_is_not_taken_for_another_tenant(database: str) -> None:
    """The same statement, prepared once on one connection, for tenants and for ourselves in turns: also through a function that was planned before."""
    async with await Store.open(database, size=1) as store:
        async with store.connection() as connection:
            await fill(connection)
        for _ in range(7):  # beyond the five calls after which a plan may become a general one
            for view, seen in ((store, 2), (of_tenant(store, FIRST), 1), (of_tenant(store, SECOND), 1)):
                assert (await view.again("select count(*) from flowdsl.executions"))[0][0] == seen
                (own,) = await store.again("select id from flowdsl.executions where tenant = $1", FIRST)
                found = (await view.again("select flowdsl.own_execution($1)", own["id"]))[0][0]
                assert found is (view is store or (await view.again("select tenant from flowdsl.executions"))[0][0] == FIRST)


async def test_workers_and_operators_are_not_asked(full: Store) -> None:
    plan = "\n".join(row[0] for row in await full.again("explain select * from flowdsl.executions x join flowdsl.journal j on j.execution = x.id"))
    assert "current_user" not in plan.lower() and "own_execution" not in plan
    plan = "\n".join(row[0] for row in await of_tenant(full, FIRST).again("explain select * from flowdsl.executions"))
    assert "flowdsl.tenant" in plan


async def test_behind_a_pooler(database: str) -> None:
    """Two server connections for all clients: each transaction may have another one, and the next client has ours."""
    async with await Store.open(database) as plain, plain.connection() as connection:
        await fill(connection)
    async with pooled_at(database, size=2) as pooler, await Store.open(pooler.dsn, size=8) as store:
        assert store.pooled
        views = [(of_tenant(store, FIRST), {FIRST}), (of_tenant(store, SECOND), {SECOND}), (store, {FIRST, SECOND})]

        async def look(number: int) -> None:
            view, expected = views[number % 3]
            assert {row["tenant"] for row in await view.again("select tenant from flowdsl.executions")} == expected

        await asyncio.gather(*(look(number) for number in range(60)))


# Where it cannot be


@pytest.fixture
async def humble(database: str) -> AsyncIterator[str]:
    """A database of which a user without any privilege beyond it is the owner, migrated by that user."""
    name = f"humble_{uuid4().hex[:8]}"
    parts = urlsplit(database)
    own = f"flowdsl_test_{name}"
    connection = await asyncpg.connect(database)
    await connection.execute(f"create role {name} login password 'humble'")
    await connection.execute(f"create database {own} owner {name}")
    query = f"?{parts.query}" if parts.query else ""
    host = parts.netloc.rpartition("@")[2]
    dsn = urlunsplit((parts.scheme, f"{name}:humble@{host}", f"/{own}", "", "")) + query
    try:
        await migrate(dsn)
        yield dsn
    finally:
        await connection.execute(f"drop database {own} with (force)")
        await connection.execute(f"drop role {name}")
        await connection.close()


async def test_a_user_who_may_not_is_told_what_to_do(humble: str, database: str) -> None:
    async with await Store.open(humble) as store:
        why = await not_apart(store)
        assert why is not None and "may not act as flowdsl_tenant: as a superuser, grant flowdsl_tenant to humble_" in why
        async with store.connection() as connection:
            _, problems = await examine(connection)
        assert [one for one in problems if "tenants are kept apart by the conditions" in one and why in one]
        server = evolve(Settings().server, require_row_level_security=True)
        for settings, status in ((Settings(), 200), (evolve(Settings(), server=server), 503)):
            app = create_app(DEPLOYMENT, settings, store=store)
            transport = httpx2.ASGITransport(app, client=("127.0.0.1", 4711))
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
                answer = await client.get("/api/v1/workflows", headers={"X-Tenant-ID": FIRST})
                assert answer.status_code == status, answer.text
                told = {one["name"]: one for one in (await client.post("/api/v1/coordination/health-check")).json()["checks"]}["tenants"]
                assert told["ok"] is (status == 200) and why in told["detail"], told
                assert (await client.get("/ready")).status_code == status
        assert "row-level security is required" in answer.text
        user = (await store.again("select current_user"))[0][0]
        connection = await asyncpg.connect(database)
        try:
            await connection.execute(f"grant {ROLE} to {user}")
            assert await migrate(humble) == []
            assert await not_apart(store) is None
            async with store.connection() as own:
                await fill(own)
            assert {row["tenant"] for row in await of_tenant(store, FIRST).again("select tenant from flowdsl.executions")} == {FIRST}
        finally:
            await connection.execute(f"revoke {ROLE} from {user}")
            await connection.close()


async def test_a_table_that_comes_later_is_guarded_by_the_next_migrate(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        await connection.execute("create table flowdsl.favours (id int primary key, tenant text not null)")
        assert "no policy yet on favours" in str(await connection.fetchval("select flowdsl.not_apart()"))
        await migrate(database)
        assert await connection.fetchval("select flowdsl.not_apart()") is None
        await connection.execute("insert into flowdsl.favours values (1, 'acme'), (2, 'globex')")
        async with await Store.open(database) as store:
            assert [row["id"] for row in await of_tenant(store, FIRST).again("select id from flowdsl.favours")] == [1]
    finally:
        await connection.close()
