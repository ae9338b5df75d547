"""What Postgres does when two sessions meet, as far as our SQL relies on it. The model of it in tests/simulation must do the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import asyncpg
import pytest

from flowdsl.postgres.connection import lost
from tests.postgres.scene import Scene, eventually, scene_at

pytestmark = pytest.mark.anyio

LOCKS = ("key share", "share", "no key update", "update")
CONFLICTS = {
    ("key share", "update"),
    ("share", "no key update"),
    ("share", "update"),
    ("no key update", "no key update"),
    ("no key update", "update"),
}
CONFLICTS |= {("update", "update")}


@pytest.fixture
async def scene(database: str) -> AsyncIterator[Scene]:
    async with scene_at(database) as scene:
        await scene.watcher.execute("create table things (id integer primary key, x integer not null)")
        await scene.watcher.execute("insert into things (id, x) values (1, 0), (2, 0), (3, 0)")
        yield scene


async def two(scene: Scene) -> tuple[Any, Any, Any]:
    """The first in a transaction of its own, and the second."""
    first, second = await scene.connection(), await scene.connection()
    opened = first.transaction()
    await opened.start()
    return first, second, opened


async def things(scene: Scene) -> dict[int, int]:
    return {row["id"]: row["x"] for row in await scene.watcher.fetch("select id, x from things order by id")}


class TestAfterAWait:
    """What waited for a lock looks again at the row as it is then."""

    async def test_a_row_that_fits_no_longer_is_left_alone(self, scene: Scene) -> None:
        first, second, opened = await two(scene)
        await first.execute("update things set x = 1 where id = 1")
        waiting = await scene.blocked(second, second.fetch("update things set x = x + 10 where x = 0 returning id"))
        await opened.commit()
        assert sorted(row["id"] for row in await waiting) == [2, 3]
        assert await things(scene) == {1: 1, 2: 10, 3: 10}

    async def test_one_that_still_fits_is_changed_as_it_is_then(self, scene: Scene) -> None:
        first, second, opened = await two(scene)
        await first.execute("update things set x = 5 where id = 1")
        waiting = await scene.blocked(second, second.execute("update things set x = x + 10 where id = 1"))
        await opened.commit()
        await waiting
        assert (await things(scene))[1] == 15

    async def test_one_whose_change_was_taken_back_is_as_it_was(self, scene: Scene) -> None:
        first, second, opened = await two(scene)
        await first.execute("update things set x = 1 where id = 1")
        waiting = await scene.blocked(second, second.execute("update things set x = x + 10 where x = 0 and id = 1"))
        await opened.rollback()
        await waiting
        assert (await things(scene))[1] == 10

    async def test_one_that_is_gone_is_gone(self, scene: Scene) -> None:
        first, second, opened = await two(scene)
        await first.execute("delete from things where id = 1")
        waiting = await scene.blocked(second, second.fetch("select id from things where id < 3 order by id for update"))
        await opened.commit()
        assert [row["id"] for row in await waiting] == [2]

    async def test_a_lock_gives_the_row_as_it_is_then(self, scene: Scene) -> None:
        first, second, opened = await two(scene)
        await first.execute("update things set x = 7 where id = 1")
        waiting = await scene.blocked(second, second.fetchval("select x from things where id = 1 for share"))
        await opened.commit()
        assert await waiting == 7

    async def test_one_that_came_to_fit_meanwhile_is_not_seen(self, scene: Scene) -> None:
        """A statement sees what was committed when it began; it looks again only at what it waited for."""
        first, second, opened = await two(scene)
        await first.execute("update things set x = case id when 1 then 1 else 0 end where id < 3")
        await first.execute("insert into things (id, x) values (4, 0)")
        waiting = await scene.blocked(second, second.fetch("update things set x = 10 where x = 0 returning id"))
        await opened.commit()
        assert sorted(row["id"] for row in await waiting) == [2, 3]


class TestTwins:
    """Who inserts a key that another is just inserting waits for what becomes of it."""

    @pytest.mark.parametrize("commits", [True, False])
    async def test_on_conflict_do_nothing(self, scene: Scene, commits: bool) -> None:
        first, second, opened = await two(scene)
        await first.execute("insert into things (id, x) values (9, 1)")
        waiting = await scene.blocked(second, second.fetch("insert into things (id, x) values (9, 2) on conflict do nothing returning x"))
        await (opened.commit() if commits else opened.rollback())
        assert [row["x"] for row in await waiting] == ([] if commits else [2])
        assert (await things(scene))[9] == (1 if commits else 2)

    async def test_on_conflict_do_update_changes_what_the_other_wrote(self, scene: Scene) -> None:
        first, second, opened = await two(scene)
        await first.execute("insert into things (id, x) values (9, 1)")
        work = second.fetchval("insert into things (id, x) values (9, 2) on conflict (id) do update set x = things.x + 10 returning x")
        waiting = await scene.blocked(second, work)
        await opened.commit()
        assert await waiting == 11

    async def test_a_plain_insert_fails(self, scene: Scene) -> None:
        first, second, opened = await two(scene)
        await first.execute("insert into things (id, x) values (9, 1)")
        waiting = await scene.blocked(second, second.execute("insert into things (id, x) values (9, 2)"))
        await opened.commit()
        with pytest.raises(asyncpg.UniqueViolationError):
            await waiting


class TestLocks:
    @pytest.mark.parametrize("held", LOCKS)
    @pytest.mark.parametrize("wanted", LOCKS)
    async def test_who_waits_for_whom(self, scene: Scene, held: str, wanted: str) -> None:
        first, second, opened = await two(scene)
        await first.execute(f"select 1 from things where id = 1 for {held}")
        if (held, wanted) in CONFLICTS or (wanted, held) in CONFLICTS:
            with pytest.raises(asyncpg.LockNotAvailableError):
                await second.execute(f"select 1 from things where id = 1 for {wanted} nowait")
            waiting = await scene.blocked(second, second.fetchval(f"select id from things where id = 1 for {wanted}"))
            await opened.commit()
            assert await waiting == 1
        else:
            assert await second.fetchval(f"select id from things where id = 1 for {wanted} nowait") == 1
            await opened.commit()

    async def test_skip_locked_passes_over(self, scene: Scene) -> None:
        first, second, opened = await two(scene)
        await first.execute("select 1 from things where id = 2 for update")
        assert [row["id"] for row in await second.fetch("select id from things order by id for update skip locked")] == [1, 3]
        await opened.commit()

    async def test_readers_wait_for_nobody_and_see_what_is_committed(self, scene: Scene) -> None:
        first, second, opened = await two(scene)
        await first.execute("update things set x = 1")
        assert await second.fetchval("select sum(x)::integer from things") == 0
        await opened.commit()
        assert await second.fetchval("select sum(x)::integer from things") == 3

    async def test_a_wait_for_each_other_ends_with_one_of_them(self, scene: Scene) -> None:
        first, second, opened = await two(scene)
        other = second.transaction()
        await other.start()
        await first.execute("update things set x = 1 where id = 1")
        await second.execute("update things set x = 2 where id = 2")
        waiting = await scene.blocked(first, first.execute("update things set x = 1 where id = 2"))
        fates = await asyncio.gather(waiting, self.ending(second.execute("update things set x = 2 where id = 1"), other), return_exceptions=True)
        assert [isinstance(fate, asyncpg.DeadlockDetectedError) for fate in fates].count(True) == 1, fates
        for one in (opened, other):
            with suppress(asyncpg.InterfaceError):  # the victim's has ended
                await one.rollback()

    async def ending(self, work: Any, transaction: Any) -> Any:
        """Lets go at once when it was the victim, so that the other goes on."""
        try:
            return await work
        except asyncpg.DeadlockDetectedError:
            await transaction.rollback()
            raise

    async def test_patience_ends(self, scene: Scene) -> None:
        first, second, opened = await two(scene)
        await first.execute("update things set x = 1 where id = 1")
        async with second.transaction():
            await second.execute("set local lock_timeout = '20ms'")
            with pytest.raises(asyncpg.LockNotAvailableError):
                async with second.transaction():
                    await second.execute("update things set x = 2 where id = 1")
            await second.execute("update things set x = 2 where id = 2")
        await opened.rollback()
        assert await things(scene) == {1: 0, 2: 2, 3: 0}

    async def test_an_advisory_lock_is_tried_and_goes_with_its_transaction(self, scene: Scene) -> None:
        first, second, opened = await two(scene)
        assert await first.fetchval("select pg_try_advisory_xact_lock(42)") is True
        assert await second.fetchval("select pg_try_advisory_xact_lock(42)") is False
        await opened.rollback()
        assert await second.fetchval("select pg_try_advisory_xact_lock(42)") is True


class TestTransactions:
    async def test_a_savepoint_takes_back_its_own_part(self, scene: Scene) -> None:
        connection = await scene.connection()
        async with connection.transaction():
            await connection.execute("update things set x = 1 where id = 1")
            with pytest.raises(ZeroDivisionError):
                async with connection.transaction():
                    await connection.execute("update things set x = 1 where id = 2")
                    raise ZeroDivisionError
        assert await things(scene) == {1: 1, 2: 0, 3: 0}

    async def test_its_now_stands_still(self, scene: Scene) -> None:
        connection = await scene.connection()
        async with connection.transaction():
            began = await connection.fetchrow("select now() as now, clock_timestamp() as clock")
            later = await connection.fetchrow("select now() as now, clock_timestamp() as clock")
        assert began["now"] == later["now"] <= began["clock"] < later["clock"]

    async def test_one_that_failed_answers_nothing_more(self, scene: Scene) -> None:
        connection = await scene.connection()
        opened = connection.transaction()
        await opened.start()
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute("insert into things (id, x) values (1, 1)")
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await connection.fetchval("select 1")
        await opened.rollback()
        assert await connection.fetchval("select 1") == 1

    async def test_who_is_ended_leaves_no_lock_and_no_change(self, scene: Scene) -> None:
        first, second, _ = await two(scene)
        await first.execute("update things set x = 1 where id = 1")
        waiting = await scene.blocked(second, second.execute("update things set x = x + 10 where id = 1"))
        await scene.watcher.fetchval("select pg_terminate_backend($1)", first.get_server_pid())
        await waiting
        assert (await things(scene))[1] == 10
        with pytest.raises(Exception) as raised:  # which of them, depends on how far the news has come
            await first.fetchval("select 1")
        assert lost(raised.value)

    async def test_a_number_once_drawn_is_not_drawn_again(self, scene: Scene) -> None:
        await scene.watcher.execute("create table numbered (id bigint generated always as identity, x integer)")
        first, second, opened = await two(scene)
        taken = await first.fetchval("insert into numbered (x) values (1) returning id")
        await opened.rollback()
        assert await second.fetchval("insert into numbered (x) values (1) returning id") > taken


class TestHints:
    async def test_a_notice_comes_with_the_commit_and_once(self, scene: Scene) -> None:
        heard: list[str] = []
        listener = await scene.connection()
        await listener.add_listener("news", lambda *said: heard.append(said[3]))
        first, second, opened = await two(scene)
        await first.execute("select pg_notify('news', 'a')")
        await first.execute("select pg_notify('news', 'a')")
        await second.execute("select pg_notify('news', 'b')")
        await eventually(lambda: heard == ["b"], "the one that is committed")
        await opened.commit()
        await eventually(lambda: heard == ["b", "a"], "the other, once")

    async def test_one_that_is_taken_back_was_never_there(self, scene: Scene) -> None:
        heard: list[str] = []
        listener = await scene.connection()
        await listener.add_listener("news", lambda *said: heard.append(said[3]))
        first, second, opened = await two(scene)
        await first.execute("select pg_notify('news', 'a')")
        await opened.rollback()
        await second.execute("select pg_notify('news', 'b')")
        await eventually(lambda: heard == ["b"], "only the other")
