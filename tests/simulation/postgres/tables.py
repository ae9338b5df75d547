"""Tables: rows as chains of versions, who holds which, and what a snapshot sees of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field

if TYPE_CHECKING:
    from tests.simulation.postgres.transactions import Transaction

KEY_SHARE, SHARE, NO_KEY_UPDATE, UPDATE = 1, 2, 3, 4
CONFLICTS = {KEY_SHARE: (UPDATE,), SHARE: (NO_KEY_UPDATE, UPDATE), NO_KEY_UPDATE: (SHARE, NO_KEY_UPDATE, UPDATE), UPDATE: (1, 2, 3, 4)}


@define(eq=False)
class Column:
    name: str
    type: str
    required: bool = False
    default: Any = None
    """The parsed expression."""
    identity: bool = False


@define(eq=False)
class Unique:
    """A unique index: its columns, and for a partial one the rows that it is about."""

    name: str
    columns: tuple[int, ...]
    predicate: Callable[[Sequence[Any]], Any] | None = None


@define(eq=False)
class Table:
    """A definition; the rows are in `Rows`."""

    name: str
    columns: list[Column]
    uniques: list[Unique] = field(factory=list[Unique])
    checks: list[tuple[str, Any]] = field(factory=list[tuple[str, Any]])
    lookups: list[int] = field(factory=list[int])
    """Columns by which rows are found without a scan."""

    def at(self, name: str) -> int:
        for index, column in enumerate(self.columns):
            if column.name == name:
                return index
        raise KeyError(name)

    @property
    def keys(self) -> set[int]:
        """Columns whose change needs the strongest lock."""
        return {column for unique in self.uniques if unique.predicate is None for column in unique.columns}

    def copy(self) -> Table:
        return Table(self.name, list(self.columns), list(self.uniques), list(self.checks), list(self.lookups))


class Version(tuple[Any, ...]):
    """A row as it was, is or will be for some."""

    row: Row
    xmin: Transaction
    cmin: int
    xmax: Transaction | None
    cmax: int

    @staticmethod
    def of(values: Sequence[Any], row: Row, xmin: Transaction, cmin: int) -> Version:
        made = Version(values)
        made.row, made.xmin, made.cmin, made.xmax, made.cmax = row, xmin, cmin, None, 0
        return made

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class Row:
    """Its versions, oldest first, and who has it locked."""

    __slots__ = ("locks", "number", "rows", "versions")

    def __init__(self, rows: Rows, number: int) -> None:
        self.rows, self.number = rows, number
        self.versions: list[Version] = []
        self.locks: dict[Transaction, int] = {}


@define(eq=False)
class Snapshot:
    """What a statement sees: all that was committed by then, and what its own transaction's earlier statements did."""

    transaction: Transaction
    at: int
    command: int

    def sees(self, version: Version) -> bool:
        who = version.xmin
        if who is self.transaction:
            if version.cmin >= self.command:
                return False
        elif who.committed is None or who.committed > self.at:
            return False
        who_ended = version.xmax
        if who_ended is None:
            return True
        if who_ended is self.transaction:
            return version.cmax >= self.command
        return who_ended.committed is None or who_ended.committed > self.at


class Rows:
    """The rows of one table in one database."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.rows: dict[int, Row] = {}
        self.index: dict[int, dict[Any, dict[Row, None]]] = {column: {} for column in table.lookups}
        self.made = 0
        self.sequence = 0

    def visible(self, snapshot: Snapshot, rows: Sequence[Row] | None = None) -> Iterator[Version]:
        for row in list(self.rows.values()) if rows is None else rows:
            for version in reversed(row.versions):
                if snapshot.sees(version):
                    yield version
                    break

    def find(self, column: int, value: Any) -> list[Row]:
        return list(self.index[column].get(value, ()))

    def insert(self, values: Sequence[Any], transaction: Transaction, command: int) -> Version:
        self.made += 1
        row = self.rows[self.made] = Row(self, self.made)
        return self.put(row, values, transaction, command)

    def put(self, row: Row, values: Sequence[Any], transaction: Transaction, command: int) -> Version:
        version = Version.of(values, row, transaction, command)
        row.versions.append(version)
        for column, found in self.index.items():
            found.setdefault(version[column], {})[row] = None
        return version

    def drop(self, version: Version) -> None:
        """A version that nobody will see any more, or that never was."""
        row = version.row
        row.versions.remove(version)
        for column, found in self.index.items():
            value = version[column]
            if not any(other[column] == value for other in row.versions) and value in found:
                found[value].pop(row, None)
                if not found[value]:
                    del found[value]
        if not row.versions:
            self.rows.pop(row.number, None)

    def add_lookup(self, column: int) -> None:
        if column not in self.index:
            self.index[column] = {}
            for row in self.rows.values():
                for version in row.versions:
                    self.index[column].setdefault(version[column], {})[row] = None
