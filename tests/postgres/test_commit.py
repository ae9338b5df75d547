"""The commit functions, driven by hand over two to five connections: who wins, who waits for whom, what a repeat changes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from attrs import evolve

from flowdsl.activation import NewChild, Sent, Turn
from flowdsl.journal import Entry
from flowdsl.postgres import store
from flowdsl.postgres.committer import Commit, Committer
from flowdsl.postgres.store import connect
from tests.postgres.scene import NOON, Scene, an_id, child, claim, entries, entry, eventually, mail, scene_at, send, start, turn


@pytest.fixture
async def scene(database: str) -> AsyncIterator[Scene]:
    async with scene_at(database) as scene:
        yield scene


BOTH = pytest.mark.parametrize("narrow", [True, False], ids=["narrow", "wide"])


class TestTheFirstEntryDecides:
    @BOTH
    async def test_a_turn_is_recorded_whole(self, scene: Scene, narrow: bool) -> None:
        owner, connection = await scene.worker(), await scene.connection()
        one, two = await scene.execution(owner), await scene.execution(owner)
        fates = await send(connection, owner, turn(one, entries=entries(0, 1, 2)), turn(two, entries=entries(0)), narrow=narrow)
        assert fates == ["done", "done"]
        assert await scene.positions(one) == [(0, 1), (1, 1), (2, 1)]
        assert await scene.positions(two) == [(0, 1)]

    @BOTH
    async def test_a_zombies_turn_is_left_out_whole(self, scene: Scene, narrow: bool) -> None:
        zombie, owner = await scene.worker(), await scene.worker()
        one = await scene.execution(owner, epoch=2)
        a, b = await scene.connection(), await scene.connection()
        assert await send(a, owner, turn(one, 2, entries=entries(0)), narrow=narrow) == ["done"]
        assert await send(b, zombie, turn(one, 1, entries=entries(0, 1, 2)), narrow=narrow) == ["left"]
        assert await scene.positions(one) == [(0, 2)]

    @BOTH
    async def test_the_new_owner_loses_to_an_entry_that_landed_late(self, scene: Scene, narrow: bool) -> None:
        """The position was taken in the old epoch: whatever its bytes, this is no win, and nothing of the turn is written."""
        owner, connection = await scene.worker(), await scene.connection()
        old = await scene.execution(owner, epoch=1)
        assert await send(connection, owner, turn(old, 1, entries=entries(0)), narrow=narrow) == ["done"]
        await scene.watcher.execute("update flowdsl.executions set epoch = 2")
        other = await scene.execution(owner)
        same_bytes = turn(old, 2, entries=entries(0, 1))
        assert await send(connection, owner, same_bytes, turn(other, entries=entries(0)), narrow=narrow) == ["left", "done"]
        assert await scene.positions(old) == [(0, 1)]

    @BOTH
    @pytest.mark.parametrize("commits", [True, False])
    async def test_a_twin_in_flight_is_waited_for(self, scene: Scene, narrow: bool, commits: bool) -> None:
        owner = await scene.worker()
        one = await scene.execution(owner)
        first, second = await scene.connection(), await scene.connection()
        open_twin = first.transaction()
        await open_twin.start()
        assert await send(first, owner, turn(one, entries=entries(0, 1)), narrow=True) == ["done"]
        repeat = await scene.blocked(second, send(second, owner, turn(one, entries=entries(0, 1)), narrow=narrow))
        await (open_twin.commit() if commits else open_twin.rollback())
        assert await repeat == ["again" if commits else "done"]
        assert await scene.positions(one) == [(0, 1), (1, 1)]

    @BOTH
    async def test_only_the_owner_writes(self, scene: Scene, narrow: bool) -> None:
        owner, other, connection = await scene.worker(), await scene.worker(), await scene.connection()
        mine, free = await scene.execution(owner), await scene.execution(None)
        turns = turn(mine, entries=entries(0)), turn(free, entries=entries(0))
        assert await send(connection, other, *turns, narrow=narrow) == ["left", "left"]
        assert await scene.count("journal") == 0


class TestRepeats:
    async def test_again_applies_no_part_twice(self, scene: Scene) -> None:
        """Children, mail, takes, states, audit: a turn that is sent twice leaves exactly what one leaves."""
        owner, connection = await scene.worker(), await scene.connection()
        one, target, open_child = await scene.execution(owner, mail=1), await scene.execution(), an_id()
        await scene.execution(id=open_child, parent=one, parent_step="1.0")
        await scene.watcher.execute("insert into flowdsl.mailbox values ($1, 1, 'signal', 'x', null, '1')", one)
        full = turn(
            one, state="suspended", seen=1, entries=entries(0, 1), children=[child(an_id(), "7")], mails=[mail(target)], takes=[1],
            cancels=["1"], audits=[("HAPPENED", b"{}")],
        )  # fmt: skip
        assert await send(connection, owner, full) == ["done"]

        async def stored() -> list[Any]:
            tables = "executions", "journal", "mailbox", "audit"
            return [row for table in tables for row in await scene.watcher.fetch(f"select md5(x::text) from flowdsl.{table} x order by 1")]

        before = await stored()
        assert [len(await scene.mailbox(id)) for id in (one, target, open_child)] == [0, 1, 1]
        assert await scene.count("audit") == 1
        assert await send(connection, owner, full) == ["again"]
        assert await stored() == before

    @pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "suspended", "blocked"])
    async def test_a_bare_turn_repeats(self, scene: Scene, state: str) -> None:
        """Without entries nothing but the row says that it happened; to repeat it changes nothing."""
        owner, connection = await scene.worker(), await scene.connection()
        parent = await scene.execution()
        one = await scene.execution(owner, parent=parent)
        bare = turn(one, state=state, exit=b"{}", mails=[mail(parent, kind="exit")])
        assert await send(connection, owner, bare) == ["done"]
        before = await scene.row(one)
        assert (before["status"], before["owner"]) == (state, None)
        assert await send(connection, owner, bare) == ["again"]
        assert await scene.row(one) == before
        assert len(await scene.mailbox(parent)) == 1

    async def test_a_bare_release_repeats(self, scene: Scene) -> None:
        owner, connection = await scene.worker(), await scene.connection()
        one = await scene.execution(owner)
        assert await send(connection, owner, turn(one, state="released")) == ["done"]
        before = await scene.row(one)
        assert (before["status"], before["owner"]) == ("running", None)
        assert before["wake"] is not None
        assert await send(connection, owner, turn(one, state="released")) == ["left"]  # nothing to forget that is not let go of already
        assert await scene.row(one) == before

    async def test_a_bare_turn_of_an_old_epoch_changes_nothing(self, scene: Scene) -> None:
        zombie, owner, connection = await scene.worker(), await scene.worker(), await scene.connection()
        one = await scene.execution(owner, epoch=2)
        for state in ("suspended", "released", "succeeded"):
            assert await send(connection, zombie, turn(one, 1, state=state)) == ["left"]
        row = await scene.row(one)
        assert (row["status"], str(row["owner"]), row["epoch"]) == ("running", owner, 2)

    async def test_taking_mail_without_an_entry_repeats(self, scene: Scene) -> None:
        """A second wish to cancel is taken, and recorded as nothing."""
        owner, connection = await scene.worker(), await scene.connection()
        one = await scene.execution(owner, mail=1)
        await scene.watcher.execute("insert into flowdsl.mailbox values ($1, 1, 'cancel', '', null, '\"x\"')", one)
        assert await send(connection, owner, turn(one, takes=[1])) == ["done"]
        assert await send(connection, owner, turn(one, takes=[1])) == ["done"]
        assert await scene.mailbox(one) == []

    async def test_an_original_that_runs_after_its_repeat_changes_nothing(self, scene: Scene) -> None:
        owner, late, connection = await scene.worker(), await scene.connection(), await scene.connection()
        one, target = await scene.execution(owner), await scene.execution()
        full = turn(one, entries=entries(0), mails=[mail(target)], state="suspended")
        assert await send(connection, owner, full) == ["done"]
        claimed = (await scene.worker()), await scene.connection()
        await scene.watcher.execute("update flowdsl.executions set wake = now() where id = $1", one)
        assert [str(row["id"]) for row in await claim(claimed[1], claimed[0])] == [one]
        assert await send(late, owner, full) == ["again"]
        assert (await scene.row(one))["status"] == "running"
        assert len(await scene.mailbox(target)) == 1


class TestTheFence:
    @BOTH
    async def test_after_a_take_over_the_whole_batch_is_fenced(self, scene: Scene, narrow: bool) -> None:
        owner, connection = await scene.worker(lease=1, silent_for=5), await scene.connection()
        one, two = await scene.execution(owner), await scene.execution(owner)
        assert await scene.watcher.fetchval("select flowdsl.take_over()") == 1
        turns = turn(one, entries=entries(0)), turn(two, entries=entries(0, 1))
        assert await send(connection, owner, *turns, narrow=narrow) == ["fenced", "fenced"]
        assert await scene.count("journal") == 0

    @BOTH
    async def test_a_take_over_spares_a_worker_whose_commit_is_open(self, scene: Scene, narrow: bool) -> None:
        """The key share of a commit keeps the row from being declared gone, so no commit of a living epoch lands after a claim."""
        owner, connection = await scene.worker(lease=1, silent_for=5), await scene.connection()
        one = await scene.execution(owner)
        open_commit = connection.transaction()
        await open_commit.start()
        assert await send(connection, owner, turn(one, entries=entries(0)), narrow=narrow) == ["done"]
        assert await scene.watcher.fetchval("select flowdsl.take_over()") == 0
        await open_commit.commit()
        assert await scene.watcher.fetchval("select flowdsl.take_over()") == 1
        assert await scene.positions(one) == [(0, 1)]

    async def test_a_lock_for_update_waits_for_an_open_commit(self, scene: Scene) -> None:
        owner, connection, other = await scene.worker(lease=1, silent_for=5), await scene.connection(), await scene.connection()
        one = await scene.execution(owner)
        open_commit = connection.transaction()
        await open_commit.start()
        await send(connection, owner, turn(one, entries=entries(0)))
        locked = await scene.blocked(other, other.fetch("select 1 from flowdsl.workers where id = $1 for update", owner))
        await open_commit.commit()
        assert len(await locked) == 1

    @BOTH
    async def test_a_commit_that_meets_a_take_over_waits_and_is_fenced(self, scene: Scene, narrow: bool) -> None:
        owner, survivor, connection = await scene.worker(lease=1, silent_for=5), await scene.connection(), await scene.connection()
        one = await scene.execution(owner)
        open_take_over = survivor.transaction()
        await open_take_over.start()
        assert await survivor.fetchval("select flowdsl.take_over()") == 1
        late = await scene.blocked(connection, send(connection, owner, turn(one, entries=entries(0)), narrow=narrow))
        await open_take_over.commit()
        assert await late == ["fenced"]
        assert await scene.positions(one) == []

    async def test_a_heartbeat_passes_an_open_commit(self, scene: Scene) -> None:
        owner, connection, heart = await scene.worker(), await scene.connection(), await scene.connection()
        open_commit = connection.transaction()
        await open_commit.start()
        await send(connection, owner, turn(await scene.execution(owner), entries=entries(0)))
        beat = "update flowdsl.workers set beat = clock_timestamp() where id = $1 and not gone returning 1"
        assert await heart.fetchval(beat, owner, timeout=10) == 1
        await open_commit.commit()

    async def test_a_gone_worker_claims_nothing(self, scene: Scene) -> None:
        owner = await scene.worker(lease=1, silent_for=5)
        await scene.execution(wake=NOON)
        await scene.watcher.fetchval("select flowdsl.take_over()")
        assert await claim(scene.watcher, owner) == []


class TestSuspension:
    async def test_it_is_refused_while_there_is_unseen_mail(self, scene: Scene) -> None:
        owner, connection = await scene.worker(), await scene.connection()
        one = await scene.execution(owner, mail=2)
        assert await send(connection, owner, turn(one, state="suspended", seen=1, entries=entries(0))) == ["awake"]
        row = await scene.row(one)
        assert (row["status"], str(row["owner"])) == ("running", owner)
        assert await scene.positions(one) == [(0, 1)]  # the turn itself is recorded
        assert await send(connection, owner, turn(one, state="suspended", seen=2)) == ["done"]

    async def test_mail_that_was_seen_and_not_taken_does_not_keep_it(self, scene: Scene) -> None:
        owner, connection = await scene.worker(), await scene.connection()
        one = await scene.execution(owner)
        assert await send_signal(scene, one) == "sent"
        assert await send(connection, owner, turn(one, state="suspended", seen=1)) == ["done"]
        assert len(await scene.mailbox(one)) == 1

    @pytest.mark.parametrize("commits", [True, False])
    async def test_a_sender_in_flight_is_waited_for(self, scene: Scene, commits: bool) -> None:
        owner, connection, sender = await scene.worker(), await scene.connection(), await scene.connection()
        one = await scene.execution(owner)
        open_send = sender.transaction()
        await open_send.start()
        assert await send_signal(scene, one, connection=sender) == "sent"
        asleep = await scene.blocked(connection, send(connection, owner, turn(one, state="suspended")))
        await (open_send.commit() if commits else open_send.rollback())
        assert await asleep == ["awake" if commits else "done"]
        assert (await scene.row(one))["status"] == ("running" if commits else "suspended")

    async def test_a_sender_waits_for_a_suspension_and_wakes_it(self, scene: Scene) -> None:
        owner, connection, sender = await scene.worker(), await scene.connection(), await scene.connection()
        one = await scene.execution(owner)
        open_turn = connection.transaction()
        await open_turn.start()
        assert await send(connection, owner, turn(one, state="suspended")) == ["done"]
        sent = await scene.blocked(sender, send_signal(scene, one, connection=sender))
        await open_turn.commit()
        assert await sent == "sent"
        assert [str(row["id"]) for row in await claim(scene.watcher, owner)] == [one]

    async def test_mail_goes_before_states_in_one_batch(self, scene: Scene) -> None:
        """A child's exit meets its parent's suspension in one batch: the parent stays awake, whoever comes first by id."""
        owner, connection = await scene.worker(), await scene.connection()
        for parent, its_child in ((an_id(1), an_id(2)), (an_id(4), an_id(3))):
            await scene.execution(owner, id=parent)
            await scene.execution(owner, id=its_child, parent=parent)
            ended = turn(its_child, state="succeeded", exit=b"{}", mails=[mail(parent, its_child, kind="exit", body=b"{}")])
            waiting = turn(parent, state="suspended", wake=NOON + timedelta(days=9999), entries=entries(0))
            assert await send(connection, owner, ended, waiting) == ["done", "awake"]
            assert [(m.kind, m.name) for m in await scene.mailbox(parent)] == [("exit", its_child)]
            assert str((await scene.row(parent))["owner"]) == owner

    async def test_its_due_time_and_mail_each_make_it_claimable(self, scene: Scene) -> None:
        owner, connection = await scene.worker(), await scene.connection()
        due, later, silent = [await scene.execution(owner) for _ in range(3)]
        far = NOON + timedelta(days=9999)
        turns = turn(due, state="suspended", wake=NOON), turn(later, state="suspended", wake=far), turn(silent, state="suspended")
        assert await send(connection, owner, *turns) == ["done", "done", "done"]
        assert [str(row["id"]) for row in await claim(connection, owner)] == [due]
        await send_signal(scene, later)
        await send_signal(scene, silent)
        assert {str(row["id"]) for row in await claim(connection, owner)} == {later, silent}


class TestCancelsOfChildren:
    async def test_open_children_of_the_scope_get_the_wish(self, scene: Scene) -> None:
        owner, connection = await scene.worker(), await scene.connection()
        one = await scene.execution(owner)

        async def a_child(step: str, **columns: Any) -> str:
            return await scene.execution(parent=one, parent_step=step, **columns)

        inside = [await a_child("2.0"), await a_child("2.1.5", status="suspended"), await a_child("2.7", status="blocked")]
        outside = [
            await a_child("20.0"), await a_child("2"), await a_child("1.2.0"), await a_child("2.3", detached=True),
            await a_child("2.4", status="succeeded"), await scene.execution(parent=an_id(), parent_step="2.0"),
        ]  # fmt: skip
        assert await send(connection, owner, turn(one, entries=entries(0), cancels=["2"])) == ["done"]
        assert [[m.kind for m in await scene.mailbox(id)] for id in inside] == [["cancel"]] * 3
        assert [await scene.mailbox(id) for id in outside] == [[]] * 6
        assert [(await scene.row(id))["wake"] is not None for id in inside] == [False, True, False]  # the suspended one is woken

    async def test_the_end_of_a_parent_reaches_all_that_are_not_detached(self, scene: Scene) -> None:
        owner, connection = await scene.worker(), await scene.connection()
        one = await scene.execution(owner)
        tied, free = await scene.execution(parent=one, parent_step="3.1"), await scene.execution(parent=one, parent_step="3.2", detached=True)
        assert await send(connection, owner, turn(one, state="succeeded", cancels=[""])) == ["done"]
        assert [len(await scene.mailbox(id)) for id in (tied, free)] == [1, 0]

    async def test_a_child_of_the_same_turn_is_reached(self, scene: Scene) -> None:
        """Started and cancelled in one turn, it must not run on: a race lost in the turn, or a parent that ends at once."""
        owner, connection = await scene.worker(), await scene.connection()
        for scope, state in (("1", None), ("", "succeeded")):
            one, inside, free, outside = await scene.execution(owner), an_id(), an_id(), an_id()
            children = [child(inside, "1.0.0"), child(free, "1.0.1", detached=True), child(outside, "10.0")]
            assert await send(connection, owner, turn(one, state=state, entries=entries(0), children=children, cancels=[scope])) == ["done"]
            assert [len(await scene.mailbox(id)) for id in (inside, free, outside)] == [1, 0, 0 if scope else 1]

    async def test_mail_to_a_child_of_the_same_turn_reaches_it(self, scene: Scene) -> None:
        owner, connection = await scene.worker(), await scene.connection()
        one, id = await scene.execution(owner), an_id()
        assert await send(connection, owner, turn(one, entries=entries(0), children=[child(id, "0")], mails=[mail(id)])) == ["done"]
        assert [one.kind for one in await scene.mailbox(id)] == ["signal"]
        assert await scene.count("unmatched") == 0

    async def test_a_turn_that_is_left_out_cancels_nobody(self, scene: Scene) -> None:
        zombie, owner, connection = await scene.worker(), await scene.worker(), await scene.connection()
        one = await scene.execution(owner, epoch=2)
        tied = await scene.execution(parent=one, parent_step="1.0")
        other = await scene.execution(zombie)
        turns = turn(one, 1, entries=entries(0), cancels=["1"], mails=[mail(other)]), turn(other, entries=entries(0))
        assert await send(connection, zombie, *turns, narrow=False) == ["left", "done"]
        assert [await scene.mailbox(id) for id in (tied, other)] == [[], []]


class TestStarts:
    @pytest.mark.parametrize("key", ["k", None])
    async def test_a_repeat_finds_itself(self, scene: Scene, key: str | None) -> None:
        id = an_id()
        assert await start(scene.watcher, key, ids=[id]) == [(id, "new", "running")]
        assert await start(scene.watcher, key, ids=[id]) == [(id, "again", "running")]
        assert await scene.count("executions") == 1

    @pytest.mark.shows("S3.3", "S3.8")
    @pytest.mark.parametrize(
        ("reuse", "outcome"), [("join", "joined"), ("reject", "rejected"), ("after_close", "joined"), ("after_failure", "joined")]
    )
    async def test_two_race_for_a_key(self, scene: Scene, reuse: str, outcome: str) -> None:
        first, second = await scene.connection(), await scene.connection()
        open_start = first.transaction()
        await open_start.start()
        ((winner, _, _),) = await start(first, "k", reuse=reuse)
        loser = await scene.blocked(second, start(second, "k", reuse=reuse))
        await open_start.commit()
        assert await loser == [(winner, outcome, "running")]
        assert await scene.count("executions") == 1

    async def test_the_second_wins_when_the_first_rolls_back(self, scene: Scene) -> None:
        first, second = await scene.connection(), await scene.connection()
        open_start = first.transaction()
        await open_start.start()
        await start(first, "k")
        waiting = await scene.blocked(second, start(second, "k"))
        await open_start.rollback()
        assert [outcome for _, outcome, _ in await waiting] == ["new"]

    @pytest.mark.parametrize(
        ("reuse", "status", "outcome"),
        [
            ("join", "succeeded", "joined"), ("join", "failed", "joined"), ("reject", "cancelled", "rejected"),
            ("after_close", "succeeded", "new"), ("after_close", "failed", "new"), ("after_close", "cancelled", "new"),
            ("after_close", "blocked", "joined"), ("after_close", "suspended", "joined"), ("after_failure", "succeeded", "joined"),
            ("after_failure", "failed", "new"), ("after_failure", "cancelled", "new"), ("after_failure", "blocked", "joined"),
        ],
    )  # fmt: skip
    async def test_what_became_of_the_holder_decides(self, scene: Scene, reuse: str, status: str, outcome: str) -> None:
        old = await scene.execution(key="k", status=status)
        ((id, found, _),) = await start(scene.watcher, "k", reuse=reuse)
        assert found == outcome
        assert (id == old) == (outcome != "new")
        assert await scene.count("executions", "current") == 1

    async def test_two_race_to_follow_a_closed_one(self, scene: Scene) -> None:
        await scene.execution(key="k", status="failed")
        first, second = await scene.connection(), await scene.connection()
        open_start = first.transaction()
        await open_start.start()
        ((winner, outcome, _),) = await start(first, "k", reuse="after_failure")
        waiting = await scene.blocked(second, start(second, "k", reuse="after_failure"))
        await open_start.commit()
        assert outcome == "new"
        assert await waiting == [(winner, "joined", "running")]
        assert await scene.count("executions") == 2

    async def test_the_holder_ends_while_a_start_waits_for_its_row(self, scene: Scene) -> None:
        owner, ender, starter = await scene.worker(), await scene.connection(), await scene.connection()
        old = await scene.execution(owner, key="k")
        open_end = ender.transaction()
        await open_end.start()
        assert await send(ender, owner, turn(old, state="succeeded", exit=b"{}")) == ["done"]
        waiting = await scene.blocked(starter, start(starter, "k", reuse="after_close"))
        await open_end.commit()
        assert [outcome for _, outcome, _ in await waiting] == ["new"]

    async def test_joining_a_closed_child_posts_its_exit(self, scene: Scene) -> None:
        owner = await scene.worker()
        parent = await scene.execution(owner)
        old = await scene.execution(key="k", scope="p", status="succeeded", exit=b'{"success":1}')
        assert await start(scene.watcher, "k", parent=parent, step="4", scope="p") == [(old, "joined", "succeeded")]
        assert [(m.kind, m.name, m.body) for m in await scene.mailbox(parent)] == [("exit", old, b'{"success":1}')]
        row = await scene.row(old)
        assert (str(row["parent"]), row["parent_step"]) == (parent, "4")

    async def test_joining_an_open_child_hands_it_over(self, scene: Scene) -> None:
        owner, connection = await scene.worker(), await scene.connection()
        parent = await scene.execution(owner)
        running = await scene.execution(owner, key="k", scope="p")
        assert await start(connection, "k", parent=parent, step="4", scope="p") == [(running, "joined", "running")]
        assert await scene.mailbox(parent) == []
        assert str((await scene.row(running))["parent"]) == parent

    @pytest.mark.shows("S3.8")
    async def test_keys_are_apart_by_scope(self, scene: Scene) -> None:
        outcomes = [await start(scene.watcher, "k", scope=scope) for scope in ("", "a", "b", "a")]
        assert [outcome for ((_, outcome, _),) in outcomes] == ["new", "new", "new", "joined"]


class TestClaims:
    async def test_locked_rows_are_skipped(self, scene: Scene) -> None:
        first, second = await scene.connection(), await scene.connection()
        a, b = await scene.worker(), await scene.worker()
        due = {await scene.execution(wake=NOON + timedelta(seconds=n)) for n in range(6)}
        open_claim = first.transaction()
        await open_claim.start()
        mine = {str(row["id"]) for row in await claim(first, a, limit=4)}
        others = {str(row["id"]) for row in await claim(second, b, limit=4)}  # does not wait
        await open_claim.commit()
        assert (len(mine), len(others)) == (4, 2)
        assert mine | others == due
        assert await claim(second, b) == []

    async def test_the_epoch_rises_and_the_row_says_what_to_load(self, scene: Scene) -> None:
        worker = await scene.worker()
        id = await scene.execution(epoch=3, wake=NOON, status="suspended", mail=5)
        (row,) = await claim(scene.watcher, worker)
        assert (str(row["id"]), row["epoch"], row["mail"], row["taken_over"], row["blocked"]) == (id, 4, 5, False, False)
        stored = await scene.row(id)
        assert (str(stored["owner"]), stored["epoch"], stored["status"], stored["wake"]) == (worker, 4, "running", None)

    async def test_only_what_is_due_and_known(self, scene: Scene) -> None:
        worker = await scene.worker()
        future = NOON + timedelta(days=9999)
        due = await scene.execution(wake=NOON)
        for columns in ({"wake": future}, {"wake": None}, {"wake": NOON, "workflow": "unknown"}, {"status": "blocked"}, {"status": "succeeded"}):
            await scene.execution(**columns)
        assert [str(row["id"]) for row in await claim(scene.watcher, worker)] == [due]


class TestDeaths:
    async def die(self, scene: Scene, worker: str) -> None:
        await scene.watcher.execute("update flowdsl.workers set beat = clock_timestamp() - interval '1 hour' where id = $1", worker)
        assert await scene.watcher.fetchval("select flowdsl.take_over()") == 1

    async def test_three_deaths_block_and_the_second_is_served_alone(self, scene: Scene) -> None:
        """Four that died with their worker twice are taken one at a time; the killer alone dies a third time, and is blocked with the cause."""
        first, second = await scene.worker(), await scene.worker()
        held = {await scene.execution(first) for _ in range(4)}
        await self.die(scene, first)
        rows = await claim(scene.watcher, second)
        assert {str(row["id"]) for row in rows} == held
        assert {(row["deaths"], row["taken_over"]) for row in rows} == {(1, True)}
        await self.die(scene, second)

        third = await scene.worker()
        (suspect,) = await claim(scene.watcher, third)
        assert suspect["deaths"] == 2
        assert await claim(scene.watcher, third, suspect=False) == []
        await self.die(scene, third)

        fourth = await scene.worker()
        rows = await claim(scene.watcher, fourth)
        while not any(row["blocked"] for row in rows):  # which suspect comes first is not said
            (row,) = rows
            assert await send(scene.watcher, fourth, turn(str(row["id"]), row["epoch"], entries=entries(0), state="alive")) == ["done"]
            rows = await claim(scene.watcher, fourth)
        (blocked,) = rows
        assert blocked["id"] == suspect["id"]
        stored = await scene.row(str(blocked["id"]))
        assert (stored["status"], stored["owner"]) == ("blocked", None)
        assert "three workers died" in stored["cause"]
        while rows := await claim(scene.watcher, fourth):
            (row,) = rows
            assert not row["blocked"]
            assert await send(scene.watcher, fourth, turn(str(row["id"]), row["epoch"], entries=entries(0), state="alive")) == ["done"]
        assert await scene.count("executions", "status = 'blocked'") == 1

    async def test_an_entry_acquits(self, scene: Scene) -> None:
        first, second, connection = await scene.worker(), await scene.worker(), await scene.connection()
        id = await scene.execution(first)
        await self.die(scene, first)
        (row,) = await claim(connection, second)
        assert await send(connection, second, turn(id, row["epoch"], entries=entries(0), state="alive")) == ["done"]
        stored = await scene.row(id)
        assert (stored["deaths"], str(stored["owner"]), stored["status"]) == (0, second, "running")

    async def test_a_worker_that_left_in_order_is_no_death(self, scene: Scene) -> None:
        worker, connection = await scene.worker(), await scene.connection()
        id = await scene.execution(worker)
        assert await send(connection, worker, turn(id, state="released")) == ["done"]
        (row,) = await claim(connection, await scene.worker())
        assert (row["deaths"], row["taken_over"]) == (0, False)

    async def test_workers_that_have_long_gone_are_forgotten_unless_they_own_something(self, scene: Scene) -> None:
        for owns in (True, False):
            worker = await scene.worker(silent_for=3 * 86400)
            if owns:
                await scene.execution(worker)
        await scene.watcher.fetchval("select flowdsl.take_over()")
        assert await scene.count("workers") == 1


async def send_signal(
    scene: Scene, to: str, *, connection: Any = None, name: str = "news", delivery: str | None = None, tenant: str = "default"
) -> str:
    query = "select flowdsl.send($1, $2, 'signal', $3, '1', $4)"
    return str(await (connection or scene.watcher).fetchval(query, tenant, to, name, delivery or an_id()))


class TestSignals:
    async def test_a_delivery_id_acts_once(self, scene: Scene) -> None:
        id = await scene.execution(status="suspended")
        assert await send_signal(scene, id, delivery="d") == "sent"
        await scene.watcher.execute("delete from flowdsl.mailbox")  # taken meanwhile
        assert await send_signal(scene, id, delivery="d") == "again"
        assert await send_signal(scene, id, delivery="e") == "sent"
        assert len(await scene.mailbox(id)) == 1

    async def test_a_repeat_after_the_end_is_told_that_it_had_arrived(self, scene: Scene) -> None:
        id = await scene.execution()
        assert await send_signal(scene, id, delivery="d") == "sent"
        await scene.watcher.execute("update flowdsl.executions set status = 'succeeded'")
        assert await send_signal(scene, id, delivery="d") == "again"
        assert await send_signal(scene, id, delivery="e") == "ended"

    async def test_two_senders_of_one_delivery(self, scene: Scene) -> None:
        id = await scene.execution()
        first, second = await scene.connection(), await scene.connection()
        open_send = first.transaction()
        await open_send.start()
        assert await send_signal(scene, id, connection=first, delivery="d") == "sent"
        twin = await scene.blocked(second, send_signal(scene, id, connection=second, delivery="d"))
        await open_send.commit()
        assert await twin == "again"
        assert len(await scene.mailbox(id)) == 1

    async def test_mail_is_numbered_without_gaps(self, scene: Scene) -> None:
        id = await scene.execution()
        connections = [await scene.connection() for _ in range(4)]
        await asyncio.gather(*(send_signal(scene, id, connection=one) for one in connections))
        for _ in range(3):
            await send_signal(scene, id)
        assert [m.seq for m in await scene.mailbox(id)] == list(range(1, 8))
        assert (await scene.row(id))["mail"] == 7

    async def test_a_key_before_and_after_its_registration(self, scene: Scene) -> None:
        id = await scene.execution(status="suspended")
        assert await send_signal(scene, "order-7", delivery="early") == "unmatched"
        assert await send_signal(scene, "order-7", delivery="early") == "again"
        await scene.watcher.fetchval("select flowdsl.register('default', 'news', 'order-7', $1)", id)
        assert await send_signal(scene, "order-7", delivery="late") == "sent"
        assert await send_signal(scene, "order-7", name="other") == "unmatched"  # a key is one of a signal
        assert [(m.seq, m.name, m.key) for m in await scene.mailbox(id)] == [(1, "news", "order-7"), (2, "news", "order-7")]
        assert (await scene.row(id))["wake"] is not None

    @pytest.mark.parametrize("sender_first", [True, False])
    async def test_sender_and_registrant_meet(self, scene: Scene, sender_first: bool) -> None:
        """Both lock the key's row, so one sees the other: never "nobody waits" and "nothing came" together."""
        id = await scene.execution()
        sender, registrant = await scene.connection(), await scene.connection()
        sends = lambda: send_signal(scene, "k", connection=sender)  # noqa: E731
        registers = lambda: registrant.fetchval("select flowdsl.register('default', 'news', 'k', $1)", id)  # noqa: E731
        first, second = (sender, registrant) if sender_first else (registrant, sender)
        begins, follows = (sends, registers) if sender_first else (registers, sends)
        open_first = first.transaction()
        await open_first.start()
        await begins()
        waiting = await scene.blocked(second, follows())
        await open_first.commit()
        await waiting
        assert len(await scene.mailbox(id)) == 1
        assert await scene.count("unmatched") == 0

    async def test_the_order_is_that_of_arrival_though_the_clock_was_set_back(self, scene: Scene) -> None:
        for delivery in ("c", "a", "b"):
            await send_signal(scene, "k", delivery=delivery)
            await scene.watcher.execute("update flowdsl.unmatched set at = at - interval '1 hour', body = convert_to(delivery, 'UTF8')")
        id = await scene.execution()
        await scene.watcher.fetchval("select flowdsl.register('default', 'news', 'k', $1)", id)
        assert [(m.seq, m.body) for m in await scene.mailbox(id)] == [(1, b"c"), (2, b"a"), (3, b"b")]

    async def test_a_key_whose_holder_has_ended_keeps_mail_for_the_next(self, scene: Scene) -> None:
        old, young = await scene.execution(), await scene.execution()
        await scene.watcher.fetchval("select flowdsl.register('default', 'news', 'k', $1)", old)
        await scene.watcher.execute("update flowdsl.executions set status = 'succeeded' where id = $1", old)
        assert await send_signal(scene, "k") == "unmatched"
        await scene.watcher.fetchval("select flowdsl.register('default', 'news', 'k', $1)", young)
        assert len(await scene.mailbox(young)) == 1

    async def test_another_tenants_execution_is_nobody(self, scene: Scene) -> None:
        id = await scene.execution()
        assert await send_signal(scene, id, tenant="other") == "unmatched"
        assert await scene.mailbox(id) == []

    async def test_a_turn_sends_to_a_key(self, scene: Scene) -> None:
        """A flow's own `send` knows execution ids and correlation keys, waited for already or not."""
        owner, connection = await scene.worker(), await scene.connection()
        one, waiting = await scene.execution(owner), await scene.execution(status="suspended")
        await scene.watcher.fetchval("select flowdsl.register('default', 'news', 'waited', $1)", waiting)
        mails = [mail("waited"), mail("not yet"), mail("waited", "other"), mail(waiting)]
        full = turn(one, entries=entries(0), mails=mails)
        assert await send(connection, owner, full) == ["done"]
        assert await send(connection, owner, full) == ["again"]
        assert sorted((m.name, m.key) for m in await scene.mailbox(waiting) if m.key) == [("news", "waited")]
        assert len(await scene.mailbox(waiting)) == 2
        assert await scene.count("unmatched") == 2
        await scene.watcher.fetchval("select flowdsl.register('default', 'news', 'not yet', $1)", one)
        assert [m.key for m in await scene.mailbox(one)] == ["not yet"]

    async def test_a_turn_reaches_nobody_of_another_tenant(self, scene: Scene) -> None:
        owner, connection = await scene.worker(), await scene.connection()
        one, foreign = await scene.execution(owner), await scene.execution(tenant="other")
        assert await send(connection, owner, turn(one, entries=entries(0), mails=[mail(foreign)])) == ["done"]
        assert await scene.mailbox(foreign) == []


class TestOneEntryInATransaction:
    async def append(self, connection: Any, owner: str, id: str, position: int = 0, epoch: int = 1) -> bool:
        one = entry(position)
        query = "select flowdsl.append_own($1,$2,$3,$4,$5,$6,$7,$8,$9,$10)"
        return bool(await connection.fetchval(query, owner, id, position, epoch, one.kind, one.at, one.step, one.fingerprint, one.site, one.body))

    async def test_it_commits_with_the_users_rows_or_not_at_all(self, scene: Scene) -> None:
        owner, connection = await scene.worker(), await scene.connection()
        await connection.execute("create table marks (n int)")
        id = await scene.execution(owner)
        for commits in (False, True):
            own = connection.transaction()
            await own.start()
            await connection.execute("insert into marks values (1)")
            assert await self.append(connection, owner, id)
            await (own.commit() if commits else own.rollback())
            assert await scene.watcher.fetchval("select count(*) from marks") == int(commits)
            assert await scene.positions(id) == ([(0, 1)] if commits else [])

    async def test_a_twin_is_an_error_not_a_second_entry(self, scene: Scene) -> None:
        owner, first, second = await scene.worker(), await scene.connection(), await scene.connection()
        id = await scene.execution(owner)
        own, twin = first.transaction(), second.transaction()
        await own.start()
        await twin.start()
        assert await self.append(first, owner, id)
        waiting = await scene.blocked(second, self.append(second, owner, id))
        await own.commit()
        with pytest.raises(asyncpg.UniqueViolationError):
            await waiting
        await twin.rollback()
        assert await scene.positions(id) == [(0, 1)]

    async def test_another_owner_or_a_gone_worker_appends_nothing(self, scene: Scene) -> None:
        owner, other = await scene.worker(lease=1, silent_for=5), await scene.worker()
        id = await scene.execution(owner)
        assert not await self.append(scene.watcher, other, id)
        assert not await self.append(scene.watcher, owner, id, epoch=0)
        await scene.watcher.fetchval("select flowdsl.take_over()")
        assert not await self.append(scene.watcher, owner, id)

    async def test_a_take_over_waits_until_it_has_ended(self, scene: Scene) -> None:
        owner, connection = await scene.worker(lease=1, silent_for=5), await scene.connection()
        id = await scene.execution(owner)
        own = connection.transaction()
        await own.start()
        assert await self.append(connection, owner, id)
        assert await scene.watcher.fetchval("select flowdsl.take_over()") == 0
        await own.commit()
        assert await scene.watcher.fetchval("select flowdsl.take_over()") == 1


class TestLockOrder:
    async def test_random_batches_on_five_connections_meet_no_deadlock(self, scene: Scene) -> None:
        """Turns with mail, ends, suspensions and cancels, starts of the same keys, signals and registrations, in any mixture."""
        seed, rounds = random.randrange(2**32), 100
        print("seed", seed)
        draw = random.Random(seed)
        owner = await scene.worker(lease=3600)
        ids = [await scene.execution(owner) for _ in range(6)]
        ids += [await scene.execution(owner, parent=draw.choice(ids), parent_step="1.0") for _ in range(6)]
        keys = [f"k{n}" for n in range(6)]

        async def commits(connection: Any, mine: list[str]) -> None:
            positions = dict.fromkeys(mine, 0)
            for _ in range(rounds):
                batch = []
                for id in draw.sample(mine, draw.randint(1, len(mine))):
                    mails = [mail(draw.choice([*ids, *keys])) for _ in range(draw.randint(0, 3))]
                    cancels = [draw.choice(["", "1"])] * draw.randint(0, 1)
                    state = draw.choice([None, None, "alive", "suspended", "succeeded"])
                    batch.append(turn(id, state=state, entries=entries(positions[id], positions[id] + 1), mails=mails, cancels=cancels))
                    positions[id] += 2
                await send(connection, owner, *batch, narrow=False)
                for id in mine:
                    await connection.execute("update flowdsl.executions set status = 'running', owner = $2 where id = $1", id, owner)

        async def starts(connection: Any) -> None:
            for _ in range(rounds):
                reuse, parent = draw.choice(["join", "after_close", "after_failure"]), draw.choice([None, *ids])
                with suppress(asyncpg.LockNotAvailableError):  # asks to be tried again
                    await start(connection, *draw.sample(keys, draw.randint(1, 6)), reuse=reuse, parent=parent)
                ended = draw.choice(["succeeded", "failed", "running"])
                await connection.execute(
                    "update flowdsl.executions set status = $2, exit = '{}' where key = $1 and current", draw.choice(keys), ended
                )

        async def signals(connection: Any) -> None:
            for _ in range(rounds):
                await send_signal(scene, draw.choice([*ids, *keys]), connection=connection)
                await connection.fetchval("select flowdsl.register('default', 'news', $1, $2)", draw.choice(keys), draw.choice(ids))

        roles = [lambda one: commits(one, ids[::2]), lambda one: commits(one, ids[1::2]), starts, starts, signals]
        connections = [await scene.connection() for _ in roles]
        done = await asyncio.gather(*(role(one) for role, one in zip(roles, connections, strict=True)), return_exceptions=True)
        assert [f"{one}: {getattr(one, 'detail', '')}" for one in done if one is not None] == []


ODD = ["", "0.1", "a\x1fb", "\x1f", "\x1f\x1e", "\x1e", "NULL", "{a,b}", '"quoted"', "back\\slash", "ünï", " padded ", "line\nline"]


class TestColumns:
    """What goes to Postgres as joined text comes out as it was."""

    @pytest.mark.parametrize("narrow", [True, False])
    @pytest.mark.parametrize("together", [True, False])
    async def test_texts_of_every_kind_are_kept(self, scene: Scene, narrow: bool, together: bool) -> None:
        owner, connection = await scene.worker(), await scene.connection()
        odd = [Entry(n, 1, NOON, text, f"perform {text}", text, text.encode()) for n, text in enumerate(ODD)]
        ids = [await scene.execution(owner) for _ in odd]
        turns = [turn(id, entries=[evolve(one, position=0)]) for id, one in zip(ids, odd, strict=True)]
        for batch in [turns] if together else [[one] for one in turns]:
            assert set(await send(connection, owner, *batch, narrow=narrow)) == {"done"}
        for id, one in zip(ids, odd, strict=True):
            row = await scene.watcher.fetchrow("select * from flowdsl.journal where execution = $1", id)
            assert (row["step"], row["fingerprint"], row["site"], row["body"], row["at"]) == (one.step, one.fingerprint, one.site, one.body, NOON)

    async def test_so_are_those_of_mail_children_and_audit(self, scene: Scene) -> None:
        owner, connection = await scene.worker(), await scene.connection()
        one, to = await scene.execution(owner), await scene.execution(owner)
        mails = [Sent(to, "signal", text, b"1", f"{n}") for n, text in enumerate(ODD)]
        children = [NewChild(an_id(), text, 1, None, b"null", f"{n}", n % 2 == 0) for n, text in enumerate(ODD)]
        audits = [(text, text.encode()) for text in ODD]
        assert await send(connection, owner, turn(one, entries=entries(0), mails=mails, children=children, audits=audits)) == ["done"]
        assert [row["name"] for row in await scene.watcher.fetch("select name from flowdsl.mailbox order by seq")] == ODD
        rows = await scene.watcher.fetch("select workflow, detached from flowdsl.executions where parent = $1 order by parent_step::integer", one)
        assert [(row["workflow"], row["detached"]) for row in rows] == [(text, n % 2 == 0) for n, text in enumerate(ODD)]
        assert sorted(row["event"] for row in await scene.watcher.fetch("select event from flowdsl.audit")) == sorted(ODD)


class TestRefusedValues:
    async def test_halving_finds_the_one_turn(self, scene: Scene, database: str) -> None:
        """A NUL in a text is refused by Postgres and aborts the batch: the one turn is found, all others are recorded."""
        owner = await scene.worker()
        ids = [await scene.execution(owner) for _ in range(9)]
        fates: dict[str, str] = {}
        refused: dict[str, str] = {}

        def told(one: Commit, fate: str) -> None:
            fates[one.execution] = fate

        def refuse(one: Commit, reason: str) -> None:
            refused[one.execution] = reason

        committer = Committer(owner, lambda: connect(database))
        await committer.open()
        bad = ids[5]
        for id in ids:
            step = "0\0" if id == bad else "0"
            committer.submit(Commit(id, 1, "default", Turn(entries=[entry(0, step=step)]), told, refuse))
        await eventually(lambda: len(fates) + len(refused) == 9, "every fate is told")
        await committer.close()
        assert fates == dict.fromkeys([id for id in ids if id != bad], "done")
        assert list(refused) == [bad]
        assert "0x00" in refused[bad]

    @pytest.mark.parametrize("part", ["surrogate", "huge epoch"])
    async def test_what_cannot_even_be_sent_is_found_too(self, scene: Scene, database: str, part: str) -> None:
        owner = await scene.worker()
        good, bad = await scene.execution(owner), await scene.execution(owner)
        outcome: dict[str, str] = {}
        committer = Committer(owner, lambda: connect(database))
        await committer.open()
        for id, step, epoch in ((good, "0", 1), (bad, "\ud800" if part == "surrogate" else "0", 1 if part == "surrogate" else 2**40)):
            one = Commit(
                id,
                epoch,
                "default",
                Turn(entries=[entry(0, step=step)]),
                lambda c, f: outcome.update({c.execution: f}),
                lambda c, r: outcome.update({c.execution: "refused"}),
            )
            committer.submit(one)
        await eventually(lambda: len(outcome) == 2, "both fates are told")
        await committer.close()
        assert outcome == {good: "done", bad: "refused"}


class TestTheCommitter:
    async def test_two_turns_of_one_execution_never_share_a_batch(self, scene: Scene, database: str) -> None:
        """A machine was thrown away with its turn still queued, and the next one of the same execution has a turn: each is told its own fate."""
        owner = await scene.worker()
        one = await scene.execution(owner, epoch=2)
        fates: list[tuple[int, str]] = []
        committer = Committer(owner, lambda: connect(database))
        old = Commit(one, 1, "default", Turn(entries=entries(0, 1)), lambda c, f: fates.append((c.epoch, f)), lambda c, r: None)
        new = Commit(one, 2, "default", Turn(entries=entries(0)), lambda c, f: fates.append((c.epoch, f)), lambda c, r: None, "alive")
        committer.submit(old)
        committer.submit(new)
        await committer.open()
        await eventually(lambda: len(fates) == 2, "both fates are told")
        await committer.close()
        assert sorted(fates) == [(1, "left"), (2, "done")]
        assert await scene.positions(one) == [(0, 2)]

    async def test_one_locked_row_does_not_hold_up_the_others(self, scene: Scene, database: str) -> None:
        owner, blocker = await scene.worker(), await scene.connection()
        ids = [await scene.execution(owner) for _ in range(5)]
        held = blocker.transaction()
        await held.start()
        await blocker.execute("select 1 from flowdsl.executions where id = $1 for update", ids[2])
        fates: dict[str, str] = {}
        committer = Committer(owner, lambda: connect(database, lock_timeout="50"))
        await committer.open()
        for id in ids:
            committer.submit(
                Commit(
                    id, 1, "default", Turn(), lambda c, f: fates.update({c.execution: f}), lambda c, r: fates.update({c.execution: r}), "suspended"
                )
            )
        await eventually(lambda: len(fates) == 4, "the others are told their fates while one is locked")
        assert ids[2] not in fates
        await held.rollback()
        await eventually(lambda: len(fates) == 5, "it goes through once it is free")
        await committer.close()
        assert set(fates.values()) == {"done"}

    async def test_a_told_fate_that_fails_stops_nobody(self, scene: Scene, database: str) -> None:
        owner = await scene.worker()
        ids = [await scene.execution(owner) for _ in range(3)]
        told: list[str] = []

        def tell(one: Commit, fate: str) -> None:
            told.append(one.execution)
            raise KeyError("a bug in one execution's machine")

        committer = Committer(owner, lambda: connect(database))
        await committer.open()
        for id in ids:
            committer.submit(Commit(id, 1, "default", Turn(entries=entries(0)), tell, lambda c, r: None))
            await eventually(lambda id=id: id in told, "its fate is told")
        await committer.close()

    async def test_a_missing_right_is_waited_out_and_blocks_nobody(self, scene: Scene, database: str) -> None:
        """An operator's slip is repaired; executions must not need a person each because of it."""
        owner = await scene.worker()
        one = await scene.execution(owner)
        outcome: list[str] = []
        await scene.watcher.execute("alter table flowdsl.journal rename to journal_away")
        committer = Committer(owner, lambda: connect(database))
        await committer.open()
        committer.submit(Commit(one, 1, "default", Turn(entries=entries(0)), lambda c, f: outcome.append(f), lambda c, r: outcome.append(r)))
        pids = "select count(distinct pid) from pg_stat_activity where application_name = 'flowdsl' and query like '%insert into flowdsl.journal%'"
        await eventually(lambda: seen(scene, pids), "it was tried")
        await scene.watcher.execute("alter table flowdsl.journal_away rename to journal")
        await eventually(lambda: bool(outcome), "its fate is told")
        await committer.close()
        assert outcome == ["done"]


async def seen(scene: Scene, query: str) -> bool:
    return bool(await scene.watcher.fetchval(query))


class TestPlans:
    async def test_loading_reads_by_index(self, scene: Scene) -> None:
        """Among 100,000 rows of others, before and after statistics are gathered."""
        await scene.watcher.execute(
            "insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body, live)"
            " select ('00000000-0000-4000-8000-' || lpad(to_hex(e), 12, '0'))::uuid, p, 1, 1, now(), p::text, 'f', 's', 'null',"
            " case when p % 40 = 39 then '{[0,3)}'::int4multirange end"
            " from generate_series(1, 1000) e, generate_series(0, 99) p"
        )
        ids = [f"00000000-0000-4000-8000-{n:012x}" for n in range(1, 129)]
        for analyzed in (False, True):
            if analyzed:
                await scene.watcher.execute("analyze flowdsl.journal")
            for some in (ids[:1], ids):
                plan = "\n".join(row[0] for row in await scene.watcher.fetch("explain (analyze, timing off) " + store._LOAD, some))
                assert "Seq Scan" not in plan, plan
        rows = await scene.watcher.fetch(store._LOAD, ids[:2])
        assert [row["position"] for row in rows] == [0, 1, 2, *range(79, 100)] * 2

    async def test_claims_and_looks_read_by_index(self, scene: Scene) -> None:
        """Ten thousand that have ended or sleep do not slow down the living."""
        await scene.watcher.execute(
            "insert into flowdsl.executions (id, tenant, workflow, version, request, status, wake)"
            " select gen_random_uuid(), 'default', 'w', 1, 'null', case when n % 2 = 0 then 'succeeded' else 'suspended' end,"
            " case when n % 2 = 1 then now() + interval '1 day' end from generate_series(1, 10000) n"
        )
        await scene.watcher.execute("analyze flowdsl.executions")
        due = "select x.id from flowdsl.executions x where x.owner is null and x.wake <= clock_timestamp() and x.status <> 'blocked' and x.workflow = any('{w}') order by x.wake limit 9 for update skip locked"
        ours = "select x.id from flowdsl.executions x where x.owner = gen_random_uuid()"
        orphans = "select c.id from flowdsl.executions c where c.parent = gen_random_uuid() and starts_with(c.parent_step, '1.')"
        for query in (due, ours, orphans):
            plan = "\n".join(row[0] for row in await scene.watcher.fetch("explain " + query))
            assert "Seq Scan" not in plan, plan
