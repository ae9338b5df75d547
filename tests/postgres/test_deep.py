"""The deep look: nothing is found in a store that workers are writing, and each corruption made by hand is found, by its number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Never

import pytest
from attrs import define

from flowdsl import (
    Cancelled,
    Deployment,
    Done,
    Failure,
    Next,
    Round,
    Steps,
    Success,
    audit,
    do,
    each,
    iterate,
    race,
    signal,
    sleep,
    workflow,
)
from flowdsl.postgres.audit import seal
from flowdsl.postgres.deep import Report, look
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Worker
from tests.postgres.scene import eventually
from tests.postgres.stage import Refused, Stage, act, stage_at

pytestmark = pytest.mark.anyio

news = signal("news", int)


@workflow("leaf")
def leaf(name: str) -> Steps[str, Refused]:
    return (yield from act(name))


@workflow("listening")
def listening(key: str) -> Steps[int, Never]:
    return (yield from news.receive(key or None))


@workflow("sleeping")
def sleeping(span: str) -> Steps[None, Never]:
    yield from sleep(span)


@workflow("working")
def working(name: str) -> Steps[str, Refused]:
    """A bit of everything, ended."""
    one = yield from act(name)
    yield from sleep("20ms")
    yield from each(["x", "y"], lambda part: leaf.child(part))
    yield from race(act("quick"), sleep("1h"))
    yield from audit("paid", {"name": name})
    two = yield from act("again")
    return one + two


@workflow("family")
def family(name: str) -> Steps[int, Never]:
    yield from listening.start("")
    yield from listening.start("", detached=True)
    yield from listening.start("", key="held")
    return (yield from news.receive())


@workflow("looping")
def looping(count: int) -> Steps[int, Refused]:
    @do
    def round(n: int) -> Steps[Round[int, int], Refused]:
        yield from act(str(n))
        return Done(n) if n == count else Next(n + 1)

    yield from act("before")
    return (yield from iterate(0, round))


WORKFLOWS = (leaf, listening, sleeping, working, family, looping)


@define
class Town:
    """A store in which something of everything is."""

    stage: Stage
    deployment: Deployment
    worked: str = ""
    parent: str = ""
    child: str = ""
    asleep: str = ""
    listens: str = ""
    keyed: str = ""
    looped: str = ""
    blocked: str = ""

    async def look(self, *, code: bool = True, **options: Any) -> Report:
        return await look(self.stage.watcher, self.deployment if code else None, **options)

    async def tampered(self, statements: str) -> None:
        async with self.stage.watcher.transaction():
            await self.stage.watcher.execute("set local session_replication_role = replica")
            for name in ("worked", "parent", "child", "asleep", "listens", "keyed", "looped", "blocked"):
                statements = statements.replace(f":{name}", f"'{getattr(self, name)}'::uuid")
            await self.stage.watcher.execute(statements)


@pytest.fixture
async def stage(database: str) -> AsyncIterator[Stage]:
    async with stage_at(database) as stage:
        yield stage


def flaky(stage: Stage, name: str) -> None:
    """Its first attempt fails."""
    stage.scripts[name] = lambda _: Success(name) if stage.counts[name] > 1 else Failure(Refused("not yet"))


@pytest.fixture
async def town(stage: Stage) -> AsyncIterator[Town]:
    flaky(stage, "again")
    town = Town(stage, stage.deployment(*WORKFLOWS))
    async with stage.worker(deployment=town.deployment) as worker:
        town.worked, town.looped = await worker.start(working, "a"), await worker.start(looping, 4)
        town.parent, town.asleep = await worker.start(family, "f"), await worker.start(sleeping, "1h")
        town.listens, town.keyed = await worker.start(listening, ""), await worker.start(listening, "k", key="one")
        town.blocked = await worker.start(sleeping, "2h")
        await stage.signal(worker, town.parent, "other", b"1")
        await stage.signal(worker, "somebody", "news", b"2")
        await worker.wait(town.worked)
        await worker.wait(town.looped)
        for id in (town.parent, town.asleep, town.listens, town.keyed, town.blocked):
            await stage.becomes(id, "suspended")

        async def at_rest() -> bool:
            return not await stage.watcher.fetchval("select count(*) from flowdsl.executions where status = 'running'")

        await eventually(at_rest, "their children wait too")
    children = await stage.watcher.fetch("select id, key, detached from flowdsl.executions where parent = $1", town.parent)
    assert len(children) == 3
    town.child = str(next(row["id"] for row in children if row["key"] is None and not row["detached"]))
    await stage.watcher.execute(
        "update flowdsl.executions set status = 'blocked', wake = null, cause = 'a person must look' where id = $1", town.blocked
    )
    async with await Store.open(stage.dsn) as store:
        await seal(store)
    yield town


async def test_nothing_is_found_where_nothing_is_wrong(town: Town) -> None:
    report = await town.look()
    assert [str(one) for one in report.findings] == []
    assert report.complete
    assert report.executions == 12
    assert report.entries > 20
    assert sorted(report.skipped) == [9, 10, 11]
    bare = await town.look(code=False)
    assert bare.findings == []
    assert sorted(bare.skipped) == [7, 8, 9, 10, 11]


FIRST_ACT = "execution = :worked and position = 0"
CORRUPTIONS: dict[str, tuple[int, str, str]] = {
    "a gap in a journal": (6, "worked", "delete from flowdsl.journal where execution = :worked and position = 2"),
    "a journal that does not begin at 0": (6, "worked", f"delete from flowdsl.journal where {FIRST_ACT}"),
    "two exits for one step": (
        1,
        "worked",
        "insert into flowdsl.journal select execution, (select max(position) + 1 from flowdsl.journal where execution = :worked), epoch, kind,"
        f" now() + interval '1 day', step, fingerprint, site, body, live from flowdsl.journal where {FIRST_ACT}",
    ),
    "an epoch that falls": (5, "worked", f"update flowdsl.journal set epoch = 7 where {FIRST_ACT}; update flowdsl.executions set epoch = 9"),
    "an epoch that it never had": (5, "worked", "update flowdsl.journal set epoch = 7 where execution = :worked"),
    "time that runs back": (6, "worked", f"update flowdsl.journal set at = at + interval '1 day' where {FIRST_ACT}"),
    "an effect before its cause": (
        6,
        "worked",
        "update flowdsl.journal j set step = case j.step when a.step then b.step else a.step end from flowdsl.journal a, flowdsl.journal b"
        " where j.execution = :worked and a.execution = :worked and b.execution = :worked and a.position = 0 and b.position = 1 and j.position in (0, 1)",
    ),
    "a live range that names a missing position": (
        6,
        "looped",
        "update flowdsl.journal set live = '{[0,1),[900,901)}' where execution = :looped and position ="
        " (select max(position) from flowdsl.journal where execution = :looped and live is not null)",
    ),
    "an ended one with an owner": (2, "worked", "update flowdsl.executions set owner = (select id from flowdsl.workers limit 1) where id = :worked"),
    "an ended one that is due": (2, "worked", "update flowdsl.executions set wake = now() + interval '1 h' where id = :worked"),
    "an ended one without an exit": (2, "worked", "update flowdsl.executions set exit = null where id = :worked"),
    "a running one that nobody will claim": (3, "asleep", "update flowdsl.executions set status = 'running', wake = null where id = :asleep"),
    "an owner that has no row": (
        3,
        "asleep",
        "update flowdsl.executions set status = 'running', wake = null, owner = gen_random_uuid() where id = :asleep",
    ),
    "a blocked one without a cause": (3, "blocked", "update flowdsl.executions set cause = null where id = :blocked"),
    "one that waits for nothing": (
        3,
        "asleep",
        "insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body)"
        " select id, 0, 1, 1, started + interval '1 h', '0', 'sleep 3600000000us', '', 'null' from flowdsl.executions where id = :asleep",
    ),
    "a timer that is lost": (14, "asleep", "update flowdsl.executions set wake = null where id = :asleep"),
    "a timer that is late": (14, "asleep", "update flowdsl.executions set wake = wake + interval '1 h' where id = :asleep"),
    "a signal that woke nobody": (
        14,
        "listens",
        "insert into flowdsl.mailbox (execution, seq, kind, name, body) values (:listens, 1, 'signal', 'news', '1');"
        "update flowdsl.executions set mail = 1 where id = :listens",
    ),
    "a wish to cancel that woke nobody": (
        14,
        "listens",
        "insert into flowdsl.mailbox (execution, seq, kind, name, body) values (:listens, 1, 'cancel', '', '\"stop\"');"
        "update flowdsl.executions set mail = 1 where id = :listens",
    ),
    "due, and nobody takes it": (
        4,
        "asleep",
        "update flowdsl.executions set wake = now() - interval '1 h' where id = :asleep;"
        "insert into flowdsl.workers (id, lease, host, pid) values (gen_random_uuid(), '10 s', 'h', 1)",
    ),
    "owned by one that is gone, and nobody takes it over": (
        4,
        "asleep",
        "insert into flowdsl.workers (id, lease, host, pid) values (gen_random_uuid(), '10 s', 'h', 1);"
        "with gone as (insert into flowdsl.workers (id, lease, host, pid, gone, beat) values (gen_random_uuid(), '10 s', 'h', 2, true, now() - interval '1 h')"
        " returning id) update flowdsl.executions set status = 'running', wake = null, owner = gone.id from gone where executions.id = :asleep",
    ),
    "a result that differs from the folded one": (7, "worked", 'update flowdsl.executions set exit = \'{"success":"forged"}\' where id = :worked'),
    "an answer that differs from the exit": (7, "worked", f"update flowdsl.journal set body = '\"forged\"' where {FIRST_ACT}"),
    "an answer that cannot be read": (7, "worked", f"update flowdsl.journal set body = 'x' where {FIRST_ACT}"),
    "a request that cannot be read": (7, "worked", "update flowdsl.executions set request = 'x' where id = :worked"),
    "another request than the code makes": (8, "worked", f"update flowdsl.journal set fingerprint = 'perform act 0123' where {FIRST_ACT}"),
    "another input": (8, "worked", "update flowdsl.executions set request = '\"b\"' where id = :worked"),
    "two executions with one key": (
        12,
        "?",
        "drop index flowdsl.executions_key; insert into flowdsl.executions (id, tenant, workflow, version, scope, key, request, status, started)"
        " select gen_random_uuid(), tenant, workflow, version, scope, key, request, status, started - interval '1 s' from flowdsl.executions where id = :keyed",
    ),
    "one that lost its key while it is open": (12, "keyed", "update flowdsl.executions set current = false where id = :keyed"),
    "mail beyond the count": (
        13,
        "worked",
        "insert into flowdsl.mailbox (execution, seq, kind, name, body) values (:worked, 99, 'signal', 'news', '1')",
    ),
    "a count below the mail": (13, "parent", "update flowdsl.executions set mail = 0 where id = :parent"),
    "a delivery without an effect": (13, "listens", "insert into flowdsl.deliveries (scope, delivery) values ('default/news/' || :listens, 'd1')"),
    "a kept signal that is gone": (13, "", "delete from flowdsl.unmatched"),
    "mail of nobody": (
        14,
        "?",
        "insert into flowdsl.mailbox (execution, seq, kind, name, body) values (gen_random_uuid(), 1, 'signal', 'news', '1')",
    ),
    "a journal of nobody": (6, "?", "update flowdsl.journal set execution = gen_random_uuid() where execution = :worked and position = 0"),
    "a schedule without a due time": (
        15,
        "",
        "alter table flowdsl.schedules drop constraint schedules_check1; insert into flowdsl.schedules (id, tenant, workflow, version, request, rule, zone, jitter, overlap, catch_up, within)"
        " values ('daily', 'default', 'leaf', 1, '\"a\"', '0 3 * * *', 'UTC', '0', 'skip', 'one', '1 day')",
    ),
    "a sleep that ended early": (
        16,
        "worked",
        "update flowdsl.journal set at = (select at from flowdsl.journal where execution = :worked and position = 0)"
        " where execution = :worked and fingerprint = 'sleep 20000us'",
    ),
    "an attempt beyond the limit": (
        17,
        "worked",
        "update flowdsl.journal set body = replace(encode(body, 'escape'), '\"number\":1', '\"number\":3')::bytea where execution = :worked and kind = 4",
    ),
    "an attempt that is missing": (
        17,
        "worked",
        "update flowdsl.journal set body = replace(encode(body, 'escape'), '\"number\":1', '\"number\":2')::bytea where execution = :worked and kind = 4",
    ),
    "an attempt before it was due": (
        17,
        "worked",
        "update flowdsl.journal set body = regexp_replace(encode(body, 'escape'), '\"due\":\"20..', '\"due\":\"2099')::bytea where execution = :worked and kind = 4",
    ),
    "a child that its parent does not know": (18, "child", "update flowdsl.executions set parent_step = '77' where id = :child"),
    "a child of another tenant": (18, "child", "update flowdsl.executions set tenant = 'other' where id = :child"),
    "a child that is not there": (18, "parent", "delete from flowdsl.executions where id = :child"),
    "a child that outlives its parent": (
        18,
        "child",
        'update flowdsl.executions set status = \'cancelled\', wake = null, exit = \'{"cancelled":{"reason":"x"}}\', ended = now() where id = :parent',
    ),
    "a row of another tenant": (
        19,
        "keyed",
        "insert into flowdsl.aliases (tenant, name, key, execution) values ('other', 'news', 'k', :keyed)",
    ),
    "an audit row of another tenant": (
        19,
        "worked",
        "insert into flowdsl.audit (tenant, execution, event, facts) values ('other', :worked, 'seen', '')",
    ),
    "a delivery from another tenant": (
        19,
        "parent",
        "insert into flowdsl.deliveries (scope, delivery) values ('other/news/' || :parent, 'd1')",
    ),
    "a broken audit chain": (20, "", "update flowdsl.audit set facts = 'nothing was paid' where event = 'paid'"),
    "an audit whose tail is cut off": (20, "", "delete from flowdsl.audit where seq = (select max(seq) from flowdsl.audit)"),
    "an intervention that nobody audited": (
        20,
        "asleep",
        "insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body) select id, 0, 1, 9, started, '', 'operator', '',"
        """ '{"action":"pause","by":"","reason":""}' from flowdsl.executions where id = :asleep""",
    ),
    "a block that nobody audited": (20, "blocked", "delete from flowdsl.audit where execution = :blocked"),
    "no index that forbids twins": (1, "", "alter table flowdsl.journal drop constraint journal_pkey"),
}


NEEDS_CODE = {what for what, (number, _, _) in CORRUPTIONS.items() if number in (7, 8)} | {
    "one that waits for nothing",
    "a timer that is lost",
    "a timer that is late",
    "a signal that woke nobody",
}
"""What is found only when the workflow's code is at hand."""


@pytest.mark.parametrize("what", CORRUPTIONS)
async def test_a_corruption_is_found(town: Town, what: str) -> None:
    number, where, statements = CORRUPTIONS[what]
    await town.tampered(statements)
    report = await town.look()
    wanted = {"?": None, "": None}.get(where, getattr(town, where, None))
    found = [one for one in report.findings if one.invariant == number and (where == "?" or one.execution == wanted)]
    assert found, "\n".join(map(str, report.findings))
    assert all(one.remedy for one in report.findings)
    if what not in NEEDS_CODE:
        bare = await town.look(code=False)
        assert any(one.invariant == number for one in bare.findings), "\n".join(map(str, bare.findings))


def test_the_corruptions_cover_all_that_a_store_can_tell() -> None:
    assert {number for number, _, _ in CORRUPTIONS.values()} == set(range(1, 21)) - {9, 10, 11}


async def test_the_newest_come_first_and_the_limit_is_told(town: Town) -> None:
    everything = await town.look()
    part = await town.look(limit=5, batch=2)
    assert (part.executions, part.complete) == (5, False)
    exact = await town.look(limit=everything.executions, batch=5)
    assert (exact.executions, exact.complete, exact.findings) == (everything.executions, True, [])


async def test_a_look_writes_nothing_and_holds_no_lock(town: Town) -> None:
    await town.stage.watcher.execute("set default_transaction_read_only = on")
    before = await town.stage.watcher.fetchval("select pg_current_xact_id_if_assigned()")
    assert (await town.look()).findings == []
    assert before is None
    assert await town.stage.watcher.fetchval("select pg_current_xact_id_if_assigned()") is None
    locks = await town.stage.watcher.fetchval(
        "select count(*) from pg_locks where pid = pg_backend_pid() and relation::regclass::text like 'flowdsl.%'"
    )
    assert locks == 0


async def test_what_takes_too_long_is_said_to_be_skipped(town: Town) -> None:
    """Something holds a table: the look goes on without it."""
    async with await Store.open(town.stage.dsn) as store, store.connection() as holder, holder.transaction():
        await holder.execute("lock table flowdsl.schedules in access exclusive mode")
        report = await town.look(timeout=0.3)
    assert report.findings == []
    assert "0 s" in report.skipped[15]


async def test_no_false_alarm_beside_busy_workers(stage: Stage) -> None:
    """Two workers write, executions are signalled, cancelled, blocked and end: what is looked at is of one moment each time."""
    stage.scripts["again"] = lambda _: Success("again") if stage.counts["again"] % 3 else Failure(Refused("not yet"))
    deployment = stage.deployment(*WORKFLOWS)
    async with stage.worker(deployment=deployment) as one, stage.worker(deployment=deployment) as two, await Store.open(stage.dsn) as store:
        busy = asyncio.ensure_future(_busy(stage, one, two))
        looks = 0
        async with store.connection() as connection:
            while not busy.done():
                report = await look(connection, deployment, batch=7)
                assert [str(finding) for finding in report.findings] == []
                looks += 1
        await busy
    assert looks >= 3
    final = await look(stage.watcher, deployment)
    assert [str(finding) for finding in final.findings] == []
    assert final.executions > 150


async def _busy(stage: Stage, *workers: Worker) -> None:
    for n in range(12):
        worker = workers[n % len(workers)]
        open = [await worker.start(family, "f") for _ in range(3)] + [await worker.start(listening, "") for _ in range(3)]
        ending = [await worker.start(working, f"w{n}"), await worker.start(looping, 5), await worker.start(sleeping, "50ms")]
        late = await worker.start(sleeping, "1h")
        await stage.signal(worker, f"nobody{n}", "news", b"1")
        for id in open[1::2]:
            await stage.signal(worker, id, "news", b"1")
        await asyncio.gather(*(worker.wait(id) for id in [*ending, *open[1::2]]))
        await stage.cancel(worker, late)
        assert isinstance(await worker.wait(late), Cancelled)


async def test_a_change_after_the_end_is_noticed_by_the_second_glance(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowdsl.postgres import deep

    async def meanwhile(*_: Any) -> None:
        async with await Store.open(town.stage.dsn) as store, store.connection() as other:
            await other.execute('update flowdsl.executions set exit = \'{"success":"other"}\' where id = $1', town.worked)

    monkeypatch.setattr(deep, "_wholes", meanwhile)
    report = await town.look()
    assert [(one.invariant, one.execution) for one in report.findings] == [(2, town.worked)]


async def test_one_that_a_person_rewound_is_no_finding(town: Town) -> None:
    """What was taken back is done again, in a later epoch."""
    from flowdsl.postgres.operating import Operator

    async with town.stage.worker(deployment=town.deployment) as worker:
        operator = Operator(worker.store, town.deployment, by="ann")
        await operator.rewind(town.worked, 1)
        await town.stage.becomes(town.worked, "succeeded")
        forked = await operator.fork(town.worked, 1)
        await town.stage.becomes(forked, "succeeded")
        await operator.terminate(town.asleep)
        await operator.pause(town.listens)
        await town.stage.becomes(town.listens, "blocked")
        assert [str(one) for one in (await town.look()).findings] == []
        await operator.resume(town.listens)
    assert [str(one) for one in (await town.look()).findings] == []


@pytest.mark.parametrize(("number", "found"), [(3, False), (4, True)])
async def test_the_last_attempt_may_be_interrupted_and_one_more_may_not(town: Town, number: int, found: bool) -> None:
    """`act` gives three attempts, and the worker died in the third, or in a fourth."""
    await town.tampered(
        f"update flowdsl.journal set kind = 5, body = replace(encode(body, 'escape'), '\"number\":1', '\"number\":{number}')::bytea"
        " where execution = :worked and kind = 4"
    )
    assert any("gives no more" in finding.found for finding in (await town.look()).findings) is found
