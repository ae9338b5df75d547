"""The walk over a list whose rows move: no row that stays is missed, and it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.sync.paging import Cursor, Key, Seen, advance, begin, ignored, seen

START = datetime(2025, 1, 1, tzinfo=UTC)
PAGE = 5


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


def key(second: int, id: int) -> Key:
    return Key(at(second), str(id))


class Shelf:
    """A list as a source would serve it: sorted by change and id, or newest first with ids rising among equals."""

    def __init__(self, rows: dict[int, int], *, honours_filter: bool = True, ordered_ties: bool = True, ordered: bool = True) -> None:
        self.rows, self.honours, self.ties, self.ordered = dict(rows), honours_filter, ordered_ties, ordered
        self.clock = max(rows.values(), default=0)

    def touch(self, id: int) -> None:
        self.clock += 1
        self.rows[id] = self.clock

    def page(self, cursor: Cursor, size: int = PAGE) -> tuple[list[int], Seen]:
        rows = [(second, id) for id, second in self.rows.items()]
        if self.honours and cursor.since is not None and not cursor.newest_first:
            rows = [(second, id) for second, id in rows if at(second) >= cursor.since]
        scrambled = lambda id: (id * 7919) % 101  # noqa: E731
        rows.sort(key=lambda row: row[1] if self.ties else scrambled(row[1]))
        if self.ordered:
            rows.sort(key=lambda row: -row[0] if cursor.newest_first else row[0])
        found = rows[cursor.offset : cursor.offset + size]
        more = cursor.offset + size < len(rows)
        return [id for _, id in found], seen([key(*row) for row in found], more=more, newest_first=cursor.newest_first)


def walk(shelf: Shelf, cursor: Cursor | None, meanwhile: Callable[[Shelf], None] = lambda _: None, *, limit: int = 2000) -> tuple[set[int], int]:
    """What the walk has met, and in how many pages."""
    met: set[int] = set()
    pages = 0
    while cursor is not None:
        assert pages < limit, "the walk does not end"
        ids, page = shelf.page(cursor)
        met |= set(ids)
        pages += 1
        meanwhile(shelf)
        cursor = advance(cursor, page, PAGE)
    return met, pages


def everything(*, filterable: bool = True) -> Cursor:
    return begin(newest_first=False, filterable=filterable, floor=None)


# A list at rest


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 50])
@pytest.mark.parametrize("filterable", [True, False])
def test_a_list_at_rest_is_met_whole(count: int, filterable: bool) -> None:
    shelf = Shelf({id: id for id in range(1, count + 1)})
    met, pages = walk(shelf, everything(filterable=filterable))
    assert met == set(shelf.rows)
    assert pages <= max(1, count // (PAGE - 1) + 1)


@pytest.mark.parametrize("filterable", [True, False])
def test_hundreds_of_rows_of_one_second(filterable: bool) -> None:
    shelf = Shelf({id: 3 if id % 4 else id for id in range(1, 200)})
    assert walk(shelf, everything(filterable=filterable))[0] == set(shelf.rows)


def test_the_offset_stays_small_where_the_filter_can_be_moved() -> None:
    shelf = Shelf({id: id // 3 for id in range(1, 400)})
    cursor: Cursor | None = everything()
    while cursor is not None:
        assert cursor.offset <= PAGE
        cursor = advance(cursor, shelf.page(cursor)[1], PAGE)


# A list that moves


@pytest.mark.shows("S4.39")
@settings(max_examples=300, deadline=None)
@given(
    seconds=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    filterable=st.booleans(),
    seed=st.integers(0, 2**32),
    moves=st.integers(0, 60),
)
def test_no_row_that_stays_is_missed(seconds: list[int], filterable: bool, seed: int, moves: int) -> None:
    shelf, random = Shelf(dict(enumerate(seconds, 1))), Random(seed)
    left = [moves]
    deleted: set[int] = set()

    def meanwhile(here: Shelf) -> None:
        for _ in range(random.randint(0, 4)):
            if left[0] and here.rows:
                left[0] -= 1
                id = random.choice(list(here.rows))
                if random.random() < 0.4:
                    del here.rows[id]
                    deleted.add(id)
                else:
                    here.touch(id)

    met, _ = walk(shelf, everything(filterable=filterable), meanwhile)
    assert set(shelf.rows) <= met


@settings(max_examples=300, deadline=None)
@given(seconds=st.lists(st.integers(0, 30), min_size=1, max_size=60), floor=st.integers(0, 30), seed=st.integers(0, 2**32))
def test_newest_first_meets_all_that_changed_though_rows_are_deleted(seconds: list[int], floor: int, seed: int) -> None:
    shelf, random = Shelf(dict(enumerate(seconds, 1))), Random(seed)

    def meanwhile(here: Shelf) -> None:
        if here.rows and random.random() < 0.5:
            del here.rows[random.choice(list(here.rows))]

    met, _ = walk(shelf, begin(newest_first=True, filterable=False, floor=at(floor)), meanwhile)
    assert {id for id, second in shelf.rows.items() if second >= floor} <= met


def test_newest_first_stops_behind_the_floor() -> None:
    shelf = Shelf({id: id for id in range(1, 1000)})
    met, pages = walk(shelf, begin(newest_first=True, filterable=False, floor=at(992)))
    assert pages == 2
    assert set(range(992, 1000)) <= met


def test_a_row_that_moved_up_past_an_offset_is_gone_back_for() -> None:
    cursor = Cursor(offset=4, last=key(3, 5), seeks=False)
    shifted = Seen(5, True, key(3, 9), key(4, 13))
    assert advance(cursor, shifted, PAGE) == evolve(cursor, offset=2)


def test_an_empty_page_behind_rows_that_went_away_is_no_end() -> None:
    cursor = Cursor(offset=4, last=key(3, 5), seeks=False)
    assert advance(cursor, Seen(0, False), PAGE) == evolve(cursor, offset=2)


# Sources that do not keep their word


def test_a_filter_that_is_ignored_is_noticed_on_the_first_page() -> None:
    shelf = Shelf({id: id for id in range(1, 100)}, honours_filter=False)
    delta = begin(newest_first=False, filterable=True, floor=at(95))
    _, page = shelf.page(delta)
    assert ignored(delta, page)
    assert advance(delta, page, PAGE) == Cursor(newest_first=True, floor=at(95), seeks=False)
    met, pages = walk(shelf, delta)
    assert {95, 96, 97, 98, 99} <= met
    assert pages == 3


def test_a_whole_walk_goes_by_offset_when_the_filter_is_ignored() -> None:
    shelf = Shelf({id: id for id in range(1, 100)}, honours_filter=False)
    assert walk(shelf, everything())[0] == set(shelf.rows)


@pytest.mark.parametrize("seconds", [[7] * 60, [id // 20 for id in range(60)]])
def test_ties_in_no_order_do_not_hold_the_walk_up(seconds: Sequence[int]) -> None:
    shelf = Shelf(dict(enumerate(seconds, 1)), ordered_ties=False)
    assert walk(shelf, everything())[0] == set(shelf.rows)


def test_a_list_in_no_order_is_walked_by_offset() -> None:
    random = Random(3)
    shelf = Shelf({id: random.randint(0, 50) for id in range(1, 80)}, ordered=False)
    assert walk(shelf, everything())[0] == set(shelf.rows)
    assert walk(shelf, begin(newest_first=True, filterable=False, floor=at(20)))[0] == set(shelf.rows)


def test_rows_without_a_time_of_change_are_walked_by_offset() -> None:
    cursor: Cursor | None = everything()
    offsets = []
    for page in (Seen(5, True), Seen(5, True), Seen(2, False)):
        assert cursor is not None
        offsets.append(cursor.offset)
        cursor = advance(cursor, page, PAGE)
    assert cursor is None
    assert offsets == [0, 4, 8]


def test_ids_are_compared_as_numbers() -> None:
    page = seen([key(1, 9), key(1, 10), key(1, 2**53 + 1)], more=False, newest_first=False)
    assert page.sorted == "fully"
