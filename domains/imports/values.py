"""What an import and its rows are about."""

from __future__ import annotations

from attrs import evolve, frozen

# What is asked for


@frozen
class ProcessMealShortsCsv:
    """A CSV file with the columns `order_id` and `sku`, and any others."""

    s3_url: str


@frozen
class ProcessMealShort:
    """An article that was missing in an order."""

    order_id: str
    sku: str


@frozen
class Reference:
    """A row by the name under which the service knows what was done for it: the same however often the row is tried."""

    reference: str
    row: ProcessMealShort


# The file


@frozen
class Layout:
    """What the header says."""

    delimiter: str
    columns: int
    order_id: int
    sku: int


@frozen
class SourceFile:
    """The file as it was when the import began: what is read later is this one, or nothing."""

    url: str
    size: int
    etag: str | None
    version: str | None
    layout: Layout
    offset: int
    """Where the first row begins, in bytes."""
    line: int


@frozen
class ReadRows:
    file: SourceFile
    offset: int
    line: int
    rows: int


@frozen
class Row:
    line: int
    short: ProcessMealShort


@frozen
class RowError:
    """A line for the error file."""

    line: int
    order_id: str
    sku: str
    error: str


@frozen
class Chunk:
    """Some rows in the order of the file. `bad`: lines that no row can be made of."""

    rows: tuple[Row, ...]
    bad: tuple[RowError, ...]
    offset: int
    """Where the next row begins."""
    line: int
    last: bool


# The error file


@frozen
class WriteErrors:
    """A part of the error file, named by the offset of its rows: to write it again changes nothing."""

    url: str
    run: str
    offset: int
    errors: tuple[RowError, ...]


@frozen
class Report:
    """The error file of a run: its parts put together, or thrown away."""

    url: str
    run: str


# How far it is


@frozen
class Counts:
    """Every row is exactly one of these."""

    done: int = 0
    failed: int = 0
    already: int = 0
    """Done by an earlier run, or by an earlier line."""
    repeated: int = 0
    """The same as a line shortly before it."""
    malformed: int = 0

    @property
    def rows(self) -> int:
        return self.done + self.failed + self.already + self.repeated + self.malformed

    def and_then(self, other: Counts) -> Counts:
        return Counts(
            self.done + other.done,
            self.failed + other.failed,
            self.already + other.already,
            self.repeated + other.repeated,
            self.malformed + other.malformed,
        )


@frozen
class Position:
    """The checkpoint: where the next row begins, and what came of those before it."""

    offset: int
    line: int
    counts: Counts = Counts()

    def after(self, chunk: Chunk, counts: Counts) -> Position:
        return evolve(self, offset=chunk.offset, line=chunk.line, counts=self.counts.and_then(counts))


@frozen
class Imported:
    """What came of a file. `version` is that of the file which was read."""

    counts: Counts
    errors: str
    """Where the error file is: one line for each row that failed or could not be read."""
    version: str | None
