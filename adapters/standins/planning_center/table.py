"""Rows in memory, with orders that stay sorted while rows change, so that a page costs a slice."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Generator, Hashable, Iterable
from contextlib import contextmanager
from random import Random
from typing import TypeAlias

from attrs import define, field, frozen

from adapters.standins.planning_center.resources import Resource

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Test: TypeAlias = "Callable[[Row], bool]"
Rank: TypeAlias = tuple[int, str | float]

_REMEMBERED_SELECTIONS = 64


@frozen
class Ref:
    """A JSON:API linkage."""

    type: str
    id: str


Relation: TypeAlias = Ref | tuple[Ref, ...] | None


@define(eq=False)
class Row:
    type: str
    number: int
    attributes: dict[str, Json]
    relationships: dict[str, Relation] = field(factory=dict[str, Relation])  # a missing key is missing in the answer too
    rendered: str | None = None  # its JSON up to the end of the relationships, forgotten on change

    @property
    def id(self) -> str:
        return str(self.number)

    def text(self, attribute: str) -> str:
        return str(self.attributes.get(attribute) or "")

    def linked(self, relationship: str) -> int | None:
        ref = self.relationships.get(relationship)
        return int(ref.id) if isinstance(ref, Ref) else None


def rank(row: Row, attribute: str) -> Rank:
    """Where a row stands in an order; nulls last, as in Postgres."""
    value = row.number if attribute == "id" else row.attributes.get(attribute)
    if value is None:
        return (1, "")
    if isinstance(value, (bool, int, float)):
        return (0, value)
    return (0, str(value).casefold())


class Order:
    """All rows of a table by one attribute; ties come by rising id in both directions."""

    def __init__(self, attribute: str, descending: bool, rows: Iterable[Row]) -> None:
        self._attribute = attribute
        self._descending = descending
        self._entries = sorted(self._entry(row) for row in rows)

    def __len__(self) -> int:
        return len(self._entries)

    def _entry(self, row: Row) -> tuple[Rank, int]:
        # A descending order is read from its end, so its ids are negated to come out rising.
        return (rank(row, self._attribute), -row.number if self._descending else row.number)

    def add(self, row: Row) -> None:
        insort(self._entries, self._entry(row))

    def discard(self, row: Row) -> None:
        del self._entries[bisect_left(self._entries, self._entry(row))]

    def since(self, moment: str) -> range:
        """The places of rows from an instant on, without a look at the rows before it. Nulls are never in it."""
        nulls = bisect_left(self._entries, 1, key=lambda entry: entry[0][0])
        return range(bisect_left(self._entries, moment.casefold(), hi=nulls, key=_without_zone), nulls)

    def numbers(self, start: int, stop: int, places: range | None = None) -> list[int]:
        """A span of all rows, or of those in some places."""
        first, end = (0, len(self._entries)) if places is None else (places.start, places.stop)
        if not self._descending:
            return [number for _, number in self._entries[first + start : min(first + stop, end)]]
        return [-number for _, number in self._entries[max(first, end - stop) : max(first, end - start)][::-1]]


def _without_zone(entry: tuple[Rank, int]) -> str:
    """Filters compare instants so: `00.5` comes after `00`."""
    return str(entry[0][1])[:-1]


class Table:
    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self.rows: dict[int, Row] = {}
        self._orders: dict[str, Order] = {}
        self._groups: dict[str, dict[int, list[int]]] = {name: {} for name in resource.grouped_by}
        self._selections: dict[Hashable, list[int]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, id: str) -> Row | None:
        return self.rows.get(int(id)) if id.isascii() and id.isdigit() and len(id) < 20 else None

    def put(self, row: Row) -> Row:
        self.rows[row.number] = row
        self._link(row)
        return row

    def remove(self, row: Row) -> None:
        self._unlink(row)
        del self.rows[row.number]

    @contextmanager
    def changing(self, row: Row) -> Generator[Row]:
        """Take a row out of every order, let the caller change it, put it back."""
        self._unlink(row)
        yield row
        row.rendered = None
        self._link(row)

    def _link(self, row: Row) -> None:
        self._selections.clear()
        for order in self._orders.values():
            order.add(row)
        for name, group in self._groups.items():
            if (owner := row.linked(name)) is not None:
                insort(group.setdefault(owner, []), row.number)

    def _unlink(self, row: Row) -> None:
        self._selections.clear()
        for order in self._orders.values():
            order.discard(row)
        for name, group in self._groups.items():
            if (owner := row.linked(name)) is not None:
                group[owner].remove(row.number)

    def belonging(self, relationship: str, owner: int) -> list[Row]:
        return [self.rows[number] for number in self._groups[relationship].get(owner, ())]

    def order(self, name: str) -> Order:
        """By `attribute` or `-attribute`; sorted on first use, kept sorted from then on."""
        if name not in self._orders:
            self._orders[name] = Order(name.removeprefix("-"), name.startswith("-"), self.rows.values())
        return self._orders[name]

    def page(
        self, order: str, span: tuple[int, int], test: Test | None = None, *, since: str | None = None, key: Hashable = None
    ) -> tuple[list[Row], int]:
        """The rows of a span and the size of the whole; a `key` lets the filtered list be used again until a row changes.

        `since`: only rows from that instant on, by the attribute that the order is by. As with an index, none of the others is looked at.
        """
        every = self.order(order)
        places = range(len(every)) if since is None else every.since(since)
        if test is None:
            return [self.rows[number] for number in every.numbers(*span, places)], len(places)
        selection = self._selections.get((order, key)) if key is not None else None
        if selection is None:
            selection = [number for number in every.numbers(0, len(places), places) if test(self.rows[number])]
            if key is not None and len(self._selections) < _REMEMBERED_SELECTIONS:
                self._selections[(order, key)] = selection
        return [self.rows[number] for number in selection[slice(*span)]], len(selection)

    def pick(self, random: Random) -> Row | None:
        if not self.rows:
            return None
        position = random.randrange(len(self.rows))
        return self.rows[self.order("id").numbers(position, position + 1)[0]]
