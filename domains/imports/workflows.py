"""The import of a file, chunk by chunk, and of one of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from domains.imports.activities import (
    clear_parts,
    inspect_file,
    process,
    publish_errors,
    read_rows,
    send_confirmation,
    validate_order,
    write_errors,
)
from domains.imports.failures import ImportFailure, ReadFailure, RowFailure, StorageFailure
from domains.imports.place import import_key
from domains.imports.values import (
    Chunk,
    Counts,
    Imported,
    Position,
    ProcessMealShort,
    ProcessMealShortsCsv,
    ReadRows,
    Reference,
    Report,
    Row,
    RowError,
    SourceFile,
    WriteErrors,
)
from flowdsl import (
    Died,
    Done,
    Failure,
    Flow,
    Next,
    Nodes,
    Outcome,
    Round,
    Status,
    Steps,
    Success,
    dag,
    do,
    each_attempt,
    execution,
    fail,
    iterate,
    node,
    report,
    workflow,
)

ROWS = 1000
"""Rows in a chunk: one read, one question which of them are done, one checkpoint."""
WINDOW = 500
"""Rows that are worked on at a time."""

Ended: TypeAlias = Outcome[None, RowFailure | Died]


@workflow("imports.meal_short", key="meal-short-{order_id}-{sku}", reuse="after_failure")
def process_meal_short(row: ProcessMealShort) -> Steps[None, RowFailure]:
    """One row: three steps, each after the one before it."""
    known_as = Reference(process_meal_short.key_of(row), row)  # not the attempt's key: a row that failed half-way is done again by another execution
    steps: Nodes[None, RowFailure] = {
        "validate_order": node(validate_order(row)),
        "process_meal_short": node(process(known_as), after=["validate_order"]),
        "send_confirmation": node(send_confirmation(known_as), after=["process_meal_short"]),
    }
    yield from dag(steps)


@workflow("imports.meal_shorts_csv", key=import_key, reuse="after_close")
def process_meal_shorts_csv(order: ProcessMealShortsCsv) -> Steps[Imported, ImportFailure]:
    """The whole file. Started again for the same file, it skips the rows that are done, and does those that failed or are new."""
    file = yield from inspect_file(order)
    errors = Report(order.s3_url, (yield from execution()).id)
    outcome = yield from chunks(file, errors).attempt()
    if isinstance(outcome, Failure):
        yield from reported(errors).attempt()  # what is known of the rows before it is worth having
        return (yield from fail(outcome.failure()))
    return Imported(outcome.unwrap(), (yield from reported(errors)), file.version or file.etag)


def chunks(file: SourceFile, errors: Report) -> Flow[Counts, ReadFailure]:
    """Chunk by chunk to the end of the file."""

    @do
    def one_chunk(at: Position) -> Steps[Round[Position, Counts], ReadFailure]:
        chunk = yield from read_rows(ReadRows(file, at.offset, at.line, ROWS))
        rows = by_key(chunk.rows)
        known = yield from process_meal_short.existing(rows)
        tried = [row for key, row in rows.items() if known.get(key) not in ("succeeded", "blocked")]
        outcomes = yield from each_attempt(tried, lambda row: process_meal_short.child(row.short).isolate(), concurrency=WINDOW)
        failed = [*chunk.bad, *blocked(rows, known), *failures(tried, outcomes)]
        if failed:
            yield from write_errors(WriteErrors(errors.url, errors.run, at.offset, tuple(sorted(failed, key=lambda one: one.line))))
        at = at.after(chunk, counted(chunk, rows, known, outcomes))
        yield from report(f"{at.counts.rows} rows, {at.counts.failed + at.counts.malformed} of them failed", done=at.offset, total=file.size)
        return Done(at.counts) if chunk.last else Next(at)  # the checkpoint: nothing before it is replayed

    return iterate(Position(file.offset, file.line), one_chunk)


@do
def reported(errors: Report) -> Steps[str, StorageFailure]:
    address = yield from publish_errors(errors)
    yield from clear_parts(errors)
    return address


def by_key(rows: Iterable[Row]) -> dict[str, Row]:
    """The rows under their children's keys; of equal ones the first."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(process_meal_short.key_of(row.short), row)
    return found


def failures(tried: Iterable[Row], outcomes: Iterable[Ended]) -> list[RowError]:
    return [failed(row, outcome.failure()) for row, outcome in zip(tried, outcomes, strict=True) if isinstance(outcome, Failure)]


def blocked(rows: Mapping[str, Row], known: Mapping[str, Status]) -> list[RowError]:
    """Rows whose child waits for a person: to join it would be to wait too."""
    return [failed(row, f"blocked: see `flowdsl list`, key {key}") for key, row in rows.items() if known.get(key) == "blocked"]


def failed(row: Row, failure: RowFailure | Died | str) -> RowError:
    return RowError(row.line, row.short.order_id, row.short.sku, failure.cause if isinstance(failure, Died) else str(failure))


def counted(chunk: Chunk, rows: Mapping[str, Row], known: Mapping[str, Status], outcomes: Iterable[Ended]) -> Counts:
    done = [isinstance(outcome, Success) for outcome in outcomes]
    already = sum(status == "succeeded" for status in known.values())
    return Counts(sum(done), len(rows) - already - sum(done), already, len(chunk.rows) - len(rows), len(chunk.bad))
