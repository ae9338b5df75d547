"""However much has ended, no statement of workers and of the service reads it: each is explained as it runs, beside a month's executions.

Never by time: by what was read. FLOWDSL_LONG=1 takes a million executions with ten million entries instead of twenty thousand.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Never

import asyncpg
import pytest
from attrs import frozen

from flowdsl import (
    Child,
    Concurrency,
    Deployment,
    Done,
    Failure,
    Flow,
    Next,
    RateLimit,
    Result,
    Round,
    Schedule,
    Steps,
    Success,
    activity,
    all_,
    bind,
    each,
    execution,
    iterate,
    race,
    report,
    signal,
    sleep,
    this_attempt,
    workflow,
)
from flowdsl.postgres import compat, keys, looking, scheduling, webhooks
from flowdsl.postgres.looking import Place, Sought
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.tenants import of_tenant
from flowdsl.postgres.worker import Tuning, Worker, new_id
from tests.bench.growth_rows import fill
from tests.postgres.plans import Plans, Ran, explained
from tests.postgres.scene import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(1800 if os.environ.get("FLOWDSL_LONG") else 120)]
FINISHED, STEPS, SUSPENDED = (1_000_000, 10, 100_000) if os.environ.get("FLOWDSL_LONG") else (20_000, 3, 5_000)
MOST_ROWS, MOST_PAGES, PAGES_A_ROW = 400, 1500, 20
"""What a statement of this test may look at: far more than the living are, far less than the tables have. Of pages so many more for each row that it
gives: how many a claim brings hangs on which worker comes first."""


@frozen
class No:
    why: str


@activity("plans.act", budget=(RateLimit("plans", 100_000, "1m"), Concurrency("plans", 100)), heartbeat="20s")
def act(name: str) -> Result[str, No]: ...


@activity("plans.mark", transactional=True)
def mark(name: str) -> Result[str, Never]: ...


news = signal("plans.news", int)
keyed = signal("plans.keyed", int)


@workflow("plans.leaf")
def leaf(name: str) -> Steps[str, Never]:
    yield from report(f"at {name}")
    return (yield from mark(name))


def itself(name: str) -> str:
    return name


@workflow("plans.known", key=itself)
def known(name: str) -> Steps[str, No]:
    return (yield from act(name))


def _joined(child: Child[str, Never]) -> Flow[str, Never]:
    return child.join()


@workflow("plans.family")
def family(name: str) -> Steps[str, No]:
    children: list[Child[str, Never]] = []
    for number in range(5):
        children.append((yield from leaf.start(f"{name} {number}")))
    heir = yield from known.start(f"{name}, heir")
    yield from known.existing([f"{name}, heir", "nobody"])
    answers = yield from each(children, _joined, concurrency=10)
    return ", ".join([*answers, (yield from heir.join())])


@workflow("plans.waits")
def waits(name: str) -> Steps[int, Never]:
    first = yield from keyed.receive(name)
    return first + (yield from race(news.receive(), sleep("1d").map(lambda _: 0)))


@workflow("plans.tells")
def tells(name: str) -> Steps[str, Never]:
    me = yield from execution()
    yield from keyed.send(name, 1)
    yield from keyed.send("nobody waits for this", 2)
    yield from leaf.start("left behind", detached=True)
    return me.id


@workflow("plans.rounds")
def rounds(count: int) -> Steps[int, No]:
    def one(number: int) -> Flow[Round[int, int], No]:
        return all_(act(f"round {number}"), sleep("1ms")).map(lambda _: Next(number + 1) if number < count else Done(number))

    return (yield from iterate(0, one))


WORKFLOWS = [leaf, known, family, waits, tells, rounds]


async def do_act(name: str) -> Result[str, No]:
    this_attempt().heartbeat({"at": name})
    return Failure(No("because")) if name.startswith("fails") else Success(name)


async def do_mark(name: str) -> Result[str, Never]:
    async with this_attempt().transaction() as connection:
        await connection.execute("select 1")
    return Success(name)


@pytest.fixture
async def watcher(database: str) -> AsyncIterator[Any]:
    """A month has gone by. Nobody has analyzed the tables since there was next to nothing in them, and then all of it was open."""
    connection = await asyncpg.connect(database)
    for table in ("executions", "journal"):
        await connection.execute(f"alter table flowdsl.{table} set (autovacuum_enabled = off)")
    await fill(connection, 0, suspended=300)
    await connection.execute("update flowdsl.executions set wake = clock_timestamp() - interval '1 hour', status = 'running'")
    await connection.execute("analyze")
    await connection.execute("delete from flowdsl.executions")
    await fill(connection, FINISHED, steps=STEPS, suspended=SUSPENDED)
    await connection.execute(_BESIDE)
    yield connection
    await connection.close()


# What senders, correlation keys, people and webhooks leave behind.
_BESIDE = """
insert into flowdsl.deliveries (scope, delivery, at) select 'default/made/' || n, 'one', clock_timestamp() - n * interval '1 second' from generate_series(1, 20000) n;
insert into flowdsl.aliases (tenant, name, key, execution)
  select 'default', 'made', 'key-' || row_number() over (), id from (select id from flowdsl.executions limit 20000) x;
insert into flowdsl.unmatched (tenant, name, key, delivery, body)
  select case when n % 2 = 0 then 'default' else 'other' end, 'made', 'key-' || n, 'one', '1' from generate_series(1, 20000) n;
insert into flowdsl.audit (tenant, event, facts, seq, prev, hash)
  select 'other', 'MADE', '{}', n, sha256(n::text::bytea), sha256((n + 1)::text::bytea) from generate_series(1, 20000) n;
insert into flowdsl.webhooks (tenant, endpoint, delivery, body, due) select 'other', 'made', n::text, '{}', null from generate_series(1, 20000) n;
insert into flowdsl.mailbox (execution, seq, kind, name, body) select id, 1, 'signal', 'made', '1' from flowdsl.executions limit 20000;
insert into flowdsl.notes (execution, note) select id, 'made' from flowdsl.executions limit 20000;
"""


def deployment() -> Deployment:
    schedule = Schedule.every("1d", leaf, "by the clock", id="plans.daily")
    return Deployment(workflows=WORKFLOWS, bindings=[bind(act, do_act), bind(mark, do_mark)], schedules=[schedule])


async def live(database: str, watcher: Any) -> None:
    """Two workers run a few of everything, and one that has died is taken over; then, so that nothing ends meanwhile, people do what they do."""
    async with await Store.open(database) as store:
        failed = await worked(store, watcher)
        await looked(store, str(await watcher.fetchval("select parent from flowdsl.executions where parent is not null limit 1")))
        await operated(store, *failed)


async def worked(store: Store, watcher: Any) -> tuple[str, str]:
    """Gives one that has failed, and its key."""
    died = await dead_worker(watcher)
    tuning = Tuning(lease=5.0, poll=0.05, linger=0.05, look=0.2, claim=8)
    flood = [NewStart(new_id(), f"tenant-{n % 3}", leaf.name, 1, "", None, "join", b'"flood"') for n in range(60)]
    await store.start(flood)  # more than a claim takes: it goes from tenant to tenant
    async with Worker(deployment(), store, tuning) as one, Worker(deployment(), store, tuning) as other:
        running = [await one.start(family, f"f{number} {died}") for number in range(3)]
        running += [await other.start(rounds, 5), await one.start(known, f"k {died}"), await one.start(known, f"fails {died}")]
        names = [f"w{number} {died}" for number in range(4)]
        waiting = [await one.start(waits, name) for name in names]
        await eventually(lambda: _all(watcher, waiting, "suspended"), "all wait")
        running += [await other.start(tells, name) for name in names[:2]]
        await store.send("default", names[2], "signal", keyed.name, b"1", new_id())
        await store.send("default", waiting[3], "cancel", "", b'"asked to"', new_id())
        await store.send_many("default", news.name, [(id, b"1", new_id()) for id in waiting[:2]])
        await store.send("default", waiting[2], "signal", news.name, b"1", new_id())
        await eventually(lambda: _none(watcher, [*running, *waiting, *(wish.id for wish in flood)]), "all have ended")
        await eventually(lambda: _taken(watcher, died), "what a dead worker had was taken over")
    return running[-1], f"fails {died}"


async def dead_worker(watcher: Any) -> str:
    """A worker that has not beaten for a minute, with an execution of its own."""
    id = new_id()
    await watcher.execute(
        "insert into flowdsl.workers (id, beat, lease, host, pid) values ($1, clock_timestamp() - interval '1 minute', '5 seconds', 'here', 1)", id
    )
    await watcher.execute(
        "insert into flowdsl.executions (id, tenant, workflow, version, request, owner, epoch) values ($1, 'default', 'plans.leaf', 1, '\"orphan\"', $2, 1)",
        new_id(),
        id,
    )
    return id


async def _all(watcher: Any, ids: Sequence[str], status: str) -> bool:
    return not await watcher.fetchval("select count(*) from flowdsl.executions where id = any($1::uuid[]) and status <> $2", ids, status)


async def _none(watcher: Any, ids: Sequence[str]) -> bool:
    return not await watcher.fetchval("select count(*) from flowdsl.executions where id = any($1::uuid[]) and ended is null", ids)


async def _taken(watcher: Any, worker: str) -> bool:
    return not await watcher.fetchval("select count(*) from flowdsl.executions where owner = $1", worker)


async def looked(store: Store, parent: str) -> None:
    """What the service and the command line look at, of a tenant that has much and one that has nothing; each as the owner, and as that tenant."""
    old = datetime.now(UTC) - timedelta(days=15)
    views = [(tenant, view) for tenant in ("default", "nobody") for view in (store, of_tenant(store, tenant))]
    for tenant, view in views:
        for sought in (
            Sought(), Sought(workflow="bench.sequence"), Sought(ended=True), Sought(since=old), Sought(until=old), Sought(parent=parent),
            Sought(text=parent), Sought(since=old, workflow="made.1"), *(Sought(status=status) for status in ("running", "suspended", "blocked", "succeeded", "failed", "cancelled")),
        ):  # fmt: skip
            page = await looking.executions(view, tenant, sought, limit=20)
            if page and sought.text is None:  # what is looked for in texts is looked for in all there is
                await looking.executions(view, tenant, sought, after=Place(page[-1].started, page[-1].id), limit=20)
        await view.dead(tenant, None, 20)
        await looking.audited(view, tenant, limit=20)
        await looking.audited(view, tenant, execution=parent, limit=20)
        await view.unmatched(tenant, 20)
        await webhooks.received(view, tenant, limit=20)
        await looking.entries(view, tenant, parent)
        await view.existing(tenant, "bench.sequence", "", ["key-30", "nobody"])
        await scheduling.listed(view, tenant=tenant)
    await as_a_tenant(of_tenant(store, "default"), parent)
    for status in (None, "running", "blocked"):
        await store.list(status=status, limit=20)
    await store.list(parent=parent, limit=20)
    await looking.execution(store, "default", parent)
    await looking.entries(store, "default", parent)
    await store.by_key("default", "bench.sequence", "key-30")
    await store.correlation_keys(parent)
    await looking.workers(store)
    await webhooks.keep(store, "default", "plans", new_id(), b"{}")

    async def seen(_: webhooks.Received) -> str:
        return "seen"

    await webhooks.act(store, ["plans"], seen)
    _, plain = await keys.make(store, "default", "viewer", "plans")
    await keys.recognized(store, plain)


async def as_a_tenant(store: Store, parent: str) -> None:
    """What the service asks, and does, of one execution."""
    await looking.execution(store, "default", parent)
    await looking.request_of(store, "default", parent)
    await store.by_key("default", "bench.sequence", "key-30")
    await store.correlation_keys(parent)
    one, other = (NewStart(new_id(), "default", waits.name, 1, "", key, "join", b'"by a tenant"') for key in (None, new_id()))
    for _ in range(2):
        await store.start([one, other])
    for to, name in ((one.id, news.name), ("a tenant's", keyed.name)):
        for _ in range(2):
            await store.send("default", to, "signal", name, b"1", one.id)
    for change in (scheduling.pause, scheduling.resume, scheduling.trigger):
        await change(store, "plans.daily", by="a tenant", tenant="default")
    operator = Operator(store, deployment(), by="a tenant")
    await operator.pause(one.id)
    await operator.terminate(one.id)
    await operator.cancel(other.id)
    await operator.dead(workflow="plans.known", limit=10)


async def operated(store: Store, ended: str, key: str) -> None:
    operator = Operator(store, deployment(), by="somebody")
    [failed] = [one for one in await operator.dead(workflow="plans.known", limit=10) if one.key == key]
    await operator.retry(failed.id)
    await operator.terminate(failed.id)
    fork = await operator.fork(ended, 1, paused=True)
    await operator.resume(fork)
    await operator.terminate(fork)
    await operator.discard([failed.id])
    await scheduling.trigger(store, "plans.daily", by="somebody")


def judged(plans: Plans) -> list[Ran]:
    """What reads a table that grows as a whole, or more than anything here needs."""
    found = [ran for ran in plans.ran if ran.whole or ran.rows > MOST_ROWS or ran.pages > MOST_PAGES + PAGES_A_ROW * ran.plan.get("Actual Rows", 0)]
    return list({(ran.where, ran.query): ran for ran in found}.values())


@pytest.mark.shows("S3.34")
async def test_what_has_ended_is_never_read(watcher: Any, database: str) -> None:
    async with explained(database) as plans:
        await live(database, watcher)
        stale = judged(plans)
        await watcher.execute("vacuum analyze")
        plans.ran.clear()
        await live(database, watcher)
    wrong = {f"{what}: {ran}" for what, found in (("stale statistics", stale), ("fresh statistics", judged(plans))) for ran in found}
    assert not wrong, f"{len(wrong)} statements\n" + "\n\n".join(sorted(wrong))
    ran = {one.where.split("(")[0] for one in plans.ran} | {one.query for one in plans.ran}
    assert any("set_config('role'" in what for what in ran), "nothing ran as a tenant"
    for function in ("commit", "append", "claim", "fair", "start", "begin", "send", "register", "look", "take_over", "fire", "draw", "intervene"):
        assert any(f"flowdsl.{function}" in what for what in ran), f"flowdsl.{function} did not run: nothing is known of its plans"


async def test_what_is_compared_with_new_code_is_what_is_open(watcher: Any, database: str) -> None:
    async with explained(database) as plans, await Store.open(database) as store:
        for what in ("stale statistics", "fresh statistics"):
            plans.ran.clear()
            assert [one async for one in compat.compared(store, deployment(), workflow="plans.leaf")] == []
            assert plans.ran and not any(ran.whole for ran in plans.ran), f"{what}: {plans.ran[-1]}"
            assert max(ran.rows for ran in plans.ran) <= SUSPENDED + MOST_ROWS, f"{what}: {plans.ran[-1]}"
            await watcher.execute("vacuum analyze")


async def test_it_is_told_of_a_statement_that_reads_all(watcher: Any, database: str) -> None:
    """The judge itself: each way to read too much is seen, also inside a function."""
    async with explained(database) as plans, await Store.open(database) as store:
        await store.again("select count(*) from flowdsl.executions where cause = 'none'")
        await store.again("select count(*) from flowdsl.journal where execution > '00000000-0000-0000-0000-000000000000'")
        await watcher.execute(
            "create function public.reads() returns bigint language plpgsql as $$ begin"
            " return (select count(*) from flowdsl.executions where exit is null); end $$"
        )
        await store.again("select public.reads()")
        found = judged(plans)
        plans.ran.clear()
        await of_tenant(store, "default").again("select count(*) from flowdsl.executions where cause = 'none'")
        of_a_tenant = judged(plans)
    assert len(found) == 3 and found[-1].where.startswith("PL/pgSQL function")
    assert len(of_a_tenant) == 1
    assert found[0].whole == {"executions"} and found[0].rows == FINISHED + SUSPENDED
