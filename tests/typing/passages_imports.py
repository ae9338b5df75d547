"""Imports: each row of a large file is a child of its own, so a second run of the same file does only what is left."""

# ruff: noqa: B905

from typing import TypeAlias

from attrs import frozen

from flowdsl import (
    Done,
    Failure,
    Next,
    Nodes,
    Result,
    Round,
    Steps,
    activity,
    dag,
    do,
    each_attempt,
    iterate,
    node,
    workflow,
)


@frozen
class MealShort:
    order_id: str
    sku: str
    quantity: int


@frozen
class ImportCsv:
    s3_url: str


@frozen
class Unavailable:
    status: int


@frozen
class Unreadable:
    s3_url: str
    message: str


@frozen
class UnknownOrder:
    order_id: str


@frozen
class NotShipped:
    sku: str


RowFailure: TypeAlias = UnknownOrder | NotShipped | Unavailable


@frozen
class Counts:
    done: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, done: int, failed: int, skipped: int) -> "Counts":
        return Counts(self.done + done, self.failed + failed, self.skipped + skipped)


@frozen
class Position:
    offset: int = 0
    counts: Counts = Counts()


@frozen
class ReadRows:
    s3_url: str
    offset: int
    rows: int


@frozen
class Chunk:
    rows: tuple[MealShort, ...]
    next_offset: int
    last: bool


@frozen
class RowError:
    row: MealShort
    message: str


@frozen
class RowErrors:
    s3_url: str
    offset: int
    errors: tuple[RowError, ...]


@activity("imports.validate_order")
def validate_order(request: MealShort) -> Result[str, UnknownOrder]: ...


@activity("imports.process")
def process(request: MealShort) -> Result[int, NotShipped]: ...


@activity("imports.send_confirmation")
def send_confirmation(request: MealShort) -> Result[None, Unavailable]: ...


@activity("imports.read_rows")
def read_rows(request: ReadRows) -> Result[Chunk, Unreadable | Unavailable]: ...


@activity("imports.append_errors")
def append_errors(request: RowErrors) -> Result[None, Unavailable]: ...


# The passage, laid out for reading.
# fmt: off

@workflow("imports.meal_short", key="meal-short-{order_id}-{sku}", reuse="after_failure")
def process_meal_short(row: MealShort) -> Steps[None, RowFailure]:
    steps: Nodes[object, RowFailure] = {                    # mixed nodes: name their common type, or mypy widens it to object
        "validate_order": node(validate_order(row)),
        "process_meal_short": node(process(row), after=["validate_order"]),
        "send_confirmation": node(send_confirmation(row), after=["process_meal_short"])}
    yield from dag(steps)

@workflow("imports.meal_shorts_csv", key="{s3_url}", reuse="after_close")
def process_meal_shorts_csv(order: ImportCsv) -> Steps[Counts, Unreadable | Unavailable]:
    @do
    def one_chunk(at: Position) -> Steps[Round[Position, Counts], Unreadable | Unavailable]:
        chunk = yield from read_rows(ReadRows(order.s3_url, at.offset, rows=1_000))
        rows = {process_meal_short.key_of(row): row for row in chunk.rows}
        known = yield from process_meal_short.existing(rows)                       # one query for a thousand keys
        new = [row for key, row in rows.items() if known.get(key) != "succeeded"]
        outcomes = yield from each_attempt(new, lambda row: process_meal_short.child(row).isolate(), concurrency=64)
        errors = tuple(RowError(row, str(o.failure())) for row, o in zip(new, outcomes) if isinstance(o, Failure))
        yield from append_errors(RowErrors(order.s3_url, at.offset, errors))
        counts = at.counts.add(len(new) - len(errors), len(errors), len(rows) - len(new))
        return Done(counts) if chunk.last else Next(Position(chunk.next_offset, counts))

    return (yield from iterate(Position(), one_chunk))
