"""Canonical rows: what may take the place of what, and what is kept of a string."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from adapters.sync_store import Counted, Mark, Record, Records

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DAY = datetime(2025, 6, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def row(id: str, *, changed: int | None = 0, owner: str | None = None, **attributes: Any) -> Record:
    links = {"person": {"type": "Person", "id": owner}} if owner else {}
    return Record(id, owner, None if changed is None else DAY + timedelta(seconds=changed), attributes, links)


@pytest.fixture
def emails(connection: Any) -> Records:
    return Records(connection, "org", "pco", "Email")


@pytest.fixture
def people(connection: Any) -> Records:
    return Records(connection, "org", "pco", "Person")


async def told(store: Records) -> dict[str, Any]:
    """What is here and alive, by id."""
    rows = await store.connection.fetch(
        "select id, attributes::text as a from sync.records where entity = $1 and deleted_at is null order by id", store.entity
    )
    return {row["id"]: json.loads(row["a"]) for row in rows}


async def put(store: Records, *rows: Record, read: float = 0, **more: Any) -> Counted:
    return await store.put(rows, at(read), since=more.pop("since", at(-1000)), **more)


# Newer takes the place of older


@pytest.mark.shows("S4.42")
async def test_a_page_is_taken_in(emails: Records) -> None:
    assert await put(emails, row("1", n=1), row("2", n=2)) == Counted(2, 2)
    assert await told(emails) == {"1": {"n": 1}, "2": {"n": 2}}


async def test_an_empty_page_is_no_trouble(emails: Records) -> None:
    assert await put(emails) == Counted(0, 0)


@pytest.mark.parametrize(
    ("changed", "read", "wins"),
    [
        (1, 1, True),  # newer, read later
        (1, -1, True),  # newer, though its request began earlier
        (0, 1, True),  # within the same second, or a change without a trace
        (0, 0, True),  # the same page again
        (0, -1, False),  # within the same second, but from an older request
        (-1, 1, False),  # a replica that lags
        (None, 1, True),
        (None, -1, False),
    ],
)
async def test_what_takes_the_place_of_what(emails: Records, changed: int | None, read: float, wins: bool) -> None:
    await put(emails, row("1", n="old"))
    await put(emails, row("1", changed=changed, n="new"), read=read)
    assert await told(emails) == {"1": {"n": "new" if wins else "old"}}


@pytest.mark.shows("S4.62")
async def test_the_same_page_twice_is_the_same(emails: Records) -> None:
    await put(emails, row("1", n=1), row("2", n=2))
    before = await emails.connection.fetch("select * from sync.records order by id")
    assert (await put(emails, row("1", n=1), row("2", n=2))).changed == 0
    assert await emails.connection.fetch("select * from sync.records order by id") == before


async def test_a_row_that_stands_twice_on_a_page_is_taken_in_its_newest_form(emails: Records) -> None:
    assert await put(emails, row("1", changed=2, n="new"), row("1", changed=1, n="old")) == Counted(1, 1)
    assert await told(emails) == {"1": {"n": "new"}}


@pytest.mark.shows("S4.42")
async def test_each_organization_and_entity_has_its_own_rows(connection: Any) -> None:
    places = [("org", "pco", "Email"), ("org", "pco", "Person"), ("other", "pco", "Email"), ("org", "crm", "Email")]
    for n, place in enumerate(places):
        await put(Records(connection, *place), row("1", n=n))
    assert await connection.fetchval("select count(*) from sync.records") == 4


# Nothing of a string is lost

STRANGE = [
    "Nul\x00Byte", "\u202eRight\u202c", "Jose\u0301", "José", "👩‍👩‍👧‍👦", "\ud83d", "\udc00\ud83d", "\\u0000", 'Anne "Annie"', "Back\\slash",
    "\t\n\r", "\ufeff\uffff", "x" * 5000, "", "'); drop table sync.records;--", "\x7f\x80",
]  # fmt: skip


async def test_strange_strings_come_back_as_they_were(emails: Records) -> None:
    await put(emails, *(row(str(n), text=text, **{f"key {text}": None}) for n, text in enumerate(STRANGE)))
    found = await told(emails)
    assert [found[str(n)] for n in range(len(STRANGE))] == [{"text": text, f"key {text}": None} for text in STRANGE]


async def test_big_numbers_and_ids_keep_their_digits(emails: Records) -> None:
    await put(emails, row("9007199254740993", n=2**63 + 1, ratio=0.1, none=None, flag=False))
    assert await told(emails) == {"9007199254740993": {"n": 2**63 + 1, "ratio": 0.1, "none": None, "flag": False}}


# Counting


@pytest.mark.shows("S4.29")
async def test_what_is_met_again_in_one_sync_counts_once(emails: Records) -> None:
    assert await put(emails, row("1", n=1), row("2", n=2), read=1, since=at(0)) == Counted(2, 2)
    assert await put(emails, row("2", n=2), row("3", n=3), read=2, since=at(0)) == Counted(1, 1)
    assert await put(emails, row("2", n=2), row("3", changed=5, n=4), read=11, since=at(10)) == Counted(2, 1)


# Gone


async def test_a_row_that_is_gone_comes_back_only_by_a_later_request(emails: Records) -> None:
    await put(emails, row("1", n=1))
    assert await emails.bury(["1", "2"], at(10)) == 1
    await put(emails, row("1", changed=5, n="stale"), read=9)
    assert await told(emails) == {}
    assert (await put(emails, row("1", changed=5, n="back"), read=11)).changed == 1
    assert await told(emails) == {"1": {"n": "back"}}


async def test_what_was_read_later_is_not_buried(emails: Records) -> None:
    await put(emails, row("1", n=1), read=20)
    assert await emails.bury(["1"], at(10)) == 0
    assert await emails.live() == 1


async def test_of_an_owner_there_are_no_rows_but_these(emails: Records) -> None:
    await put(emails, row("1", owner="a"), row("2", owner="a"), row("3", owner="b"))
    assert await emails.bury_others(["a"], ["2"], at(5)) == 1
    assert set(await told(emails)) == {"2", "3"}
    assert await emails.bury_others(["a"], [], at(6)) == 1
    assert set(await told(emails)) == {"3"}


async def test_rows_in_doubt(emails: Records, people: Records) -> None:
    await put(people, row("a"), row("b"))
    await put(emails, row("1", owner="a"), row("2", owner="b"), row("3", owner="b"), row("4", owner="nobody"))
    assert await emails.in_doubt("Person", at(10), 9, unseen=False) == []
    await people.bury(["a"], at(1))
    assert await emails.in_doubt("Person", at(10), 9, unseen=False) == ["1"]
    await emails.doubt_others(["b"], ["3"], at(2))
    assert await emails.in_doubt("Person", at(10), 9, unseen=False) == ["1", "2"]
    assert await emails.in_doubt("Person", at(10), 9, unseen=True) == ["1", "2", "3", "4"]
    assert await emails.in_doubt("Person", at(10), 3, unseen=True) == ["1", "2", "3"]
    await put(emails, row("1", owner="a"), row("2", owner="b"), read=11)
    assert await emails.in_doubt("Person", at(10), 9, unseen=False) == []
    assert await emails.in_doubt(None, at(10), 9, unseen=True) == ["3", "4"]


# Merges and links


async def test_a_merged_person_is_gone_and_its_links_are_pointed_at_the_other(connection: Any, people: Records) -> None:
    households = Records(connection, "org", "pco", "Household")
    await put(people, row("1"), row("2"))
    both = {"people": [{"type": "Person", "id": "1"}, {"type": "Person", "id": "2"}, {"type": "Person", "id": "404"}]}
    await households.put(
        [Record("h", None, DAY, {}, both), Record("g", None, DAY, {}, {"people": {"type": "Person", "id": "2"}}), Record("e", None, DAY, {}, {})],
        at(0),
        since=at(0),
    )
    assert await households.link("people", "Person") == (3, 1)
    assert await people.merge(["2"], ["1"], at(5)) == 1
    links = await connection.fetch("select id, target_id from sync.links order by id")
    assert [tuple(link) for link in links] == [("g", "1"), ("h", "1")]
    assert await connection.fetchval("select successor from sync.records where entity = 'Person' and id = '2'") == "1"
    assert set(await told(people)) == {"1"}
    assert await people.merge(["2"], ["1"], at(6)) == 0


async def test_links_follow_the_rows(connection: Any, people: Records) -> None:
    households = Records(connection, "org", "pco", "Household")
    await put(people, row("1"), row("2"))
    await households.put([Record("h", None, DAY, {}, {"contact": {"type": "Person", "id": "1"}})], at(0), since=at(0))
    assert await households.link("contact", "Person") == (1, 0)
    await households.put([Record("h", None, DAY, {}, {"contact": {"type": "Person", "id": "2"}})], at(1), since=at(0))
    assert await households.link("contact", "Person") == (1, 0)
    assert await connection.fetchval("select array_agg(target_id) from sync.links") == ["2"]
    await households.put([Record("h", None, DAY, {}, {"contact": None})], at(2), since=at(0))
    assert await households.link("contact", "Person") == (0, 0)
    assert await connection.fetchval("select count(*) from sync.links") == 0


# Rows that are to be read again

SIBLINGS = [Mark("Email", under_owner=True)]
BELOW = [Mark("Membership", under_owner=False)]
SETTLED = 86_400 * 365


async def test_a_changed_row_asks_for_its_siblings(emails: Records) -> None:
    await put(emails, row("1", owner="a"), row("2", owner="a"), row("3", owner="b"), marks=SIBLINGS)
    assert await emails.asked(9) == []  # read together, or alone: there was nobody to be changed
    await put(emails, row("1", owner="a", changed=5), row("3", owner="b", changed=5), read=SETTLED, marks=SIBLINGS)
    assert await emails.asked(9) == ["a"]
    await emails.answered(["a"], at(SETTLED - 1))
    assert await emails.asked(9) == ["a"]  # the reading began before the change was seen
    await emails.answered(["a"], at(SETTLED))
    assert await emails.asked(9) == []


async def test_in_a_whole_walk_only_rows_that_moved_ask(emails: Records) -> None:
    await put(emails, row("1", owner="a"), row("2", owner="b"))
    moving_since = DAY + timedelta(seconds=10)
    await put(emails, row("3", owner="a", changed=9), row("4", owner="b", changed=10), marks=SIBLINGS, moving_since=moving_since)
    assert await emails.asked(9) == ["b"]


async def test_a_changed_owner_asks_for_the_rows_below_it(connection: Any) -> None:
    households, below = Records(connection, "org", "pco", "Household"), Records(connection, "org", "pco", "Membership")
    await put(households, row("1"), row("2"), marks=BELOW)
    assert await below.asked(9) == ["1", "2"]
    await below.answered(["1", "2"], at(0))
    await put(households, row("1"), row("2", changed=8), read=SETTLED, marks=BELOW)
    assert await below.asked(9) == ["2"]


async def test_what_was_read_within_a_second_of_its_change_asks_once_more(emails: Records) -> None:
    young = [row("1", owner="a", changed=0), row("2", owner="a", changed=0)]
    await emails.put(young, DAY + timedelta(seconds=0.5), since=NOON)
    assert (await put(emails, *young, marks=SIBLINGS)).changed == 0
    assert await emails.asked(9) == ["a"]
    await emails.answered(["a"], at(0))
    await put(emails, *young, read=1, marks=SIBLINGS)
    assert await emails.asked(9) == []


async def test_which_owners_are_asked(connection: Any) -> None:
    households, below = Records(connection, "org", "pco", "Household"), Records(connection, "org", "pco", "Membership")

    def home(id: str, *people: str, told: bool = True) -> Record:
        return Record(id, None, DAY, {}, {"people": [{"id": one} for one in people]} if told else {})

    def member(id: str, owner: str, person: str) -> Record:
        return Record(id, owner, None, {}, {"person": {"id": person}})

    await put(households, home("same", "1", "2"), home("more", "1", "3"), home("less"), home("silent", told=False), home("empty"), home("gone"))
    await put(below, member("a", "same", "2"), member("b", "same", "1"), member("c", "more", "1"), member("d", "less", "4"), member("e", "gone", "5"))
    await households.bury(["gone"], at(1))
    await below.ask_differing("Household", at(2), owner_says="people", rows_say="person")
    assert set(await below.asked(9)) == {"more", "less", "silent"}
    await below.ask_bereft("Household", at(2))
    assert set(await below.asked(9)) == {"more", "less", "silent", "gone"}
    await below.ask_all("Household", at(2))
    assert set(await below.asked(9)) == {"same", "more", "less", "silent", "empty", "gone"}
    await below.ask(["new"], at(1))
    assert await below.asked(1) == ["new"]  # the one that waited longest


# Several at once


async def test_pages_with_the_same_rows_in_another_order_do_not_block_each_other(canonical: str) -> None:
    ids = [str(n) for n in range(300)]

    async def one(n: int) -> None:
        opened = await asyncpg.connect(canonical)
        order = ids if n % 2 else ids[::-1]
        for turn in range(5):
            await put(Records(opened, "org", "pco", "Email"), *(row(id, owner="a", by=n) for id in order), read=turn, marks=SIBLINGS)
        await opened.close()

    await asyncio.gather(*map(one, range(6)))


# What a page costs


async def read_by(store: Records, table: str, work: Awaitable[Any]) -> int:
    """How many rows of a table were looked at meanwhile."""
    query = "select coalesce(sum(seq_tup_read + idx_tup_fetch), 0) from pg_stat_xact_all_tables where schemaname = 'sync' and relname = $1"
    before = await store.connection.fetchval(query, table)
    await work
    return int(await store.connection.fetchval(query, table) - before)


async def test_a_page_looks_at_its_own_rows_only_however_many_there_are(emails: Records) -> None:
    """In a first sync too: the table has no statistics then, and what is planned without them must do."""
    owners = [str(owner) for owner in range(600)]
    await emails.connection.execute("alter table sync.records set (autovacuum_enabled = off)")
    await put(emails, *(row(f"{owner}-{n}", owner=owner, n=n) for owner in owners for n in range(2)))
    await emails.ask(owners, at(0))
    for turn in range(8):  # as often as it takes until plans are kept
        async with emails.connection.transaction():
            ten, page = owners[:10], [row(f"{owner}-0", owner=owner, n=turn) for owner in owners[:10]]
            ids = [one.id for one in page]
            assert await read_by(emails, "records", put(emails, *page, read=5, marks=SIBLINGS)) < 100
            assert await read_by(emails, "records", emails.doubt_others(ten, ids, at(-20))) < 100
            assert await read_by(emails, "records", emails.bury_others(ten, ids, at(-20))) < 100
            assert await read_by(emails, "rereads", emails.asked(10)) < 50
            assert await read_by(emails, "rereads", emails.answered(ten, at(5))) < 50
