"""What an import asks of the storage, and a row of the order service. The names are durable."""

from __future__ import annotations

from domains.imports.failures import (
    InspectFailure,
    NotConfigured,
    NotInOrder,
    ReadFailure,
    Refused,
    StorageFailure,
    Unavailable,
    UnknownOrder,
)
from domains.imports.values import Chunk, ProcessMealShort, ProcessMealShortsCsv, ReadRows, Reference, Report, SourceFile, WriteErrors
from flowdsl import Result, Retry, activity

PATIENT = Retry.exponential("500ms", maximum="60s", attempts=40, on=(Unavailable,), jitter=0.3)
"""Half an hour of a storage that is down."""
ROW = Retry.exponential("500ms", maximum="30s", attempts=12, on=(Unavailable,), jitter=0.5)
"""Some minutes: a row that fails is tried again by the next run."""


@activity("imports.inspect_file", retry=PATIENT)
def inspect_file(request: ProcessMealShortsCsv) -> Result[SourceFile, InspectFailure]:
    """The file as it is now, and what its header says."""
    ...


@activity("imports.read_rows", retry=PATIENT)
def read_rows(request: ReadRows) -> Result[Chunk, ReadFailure]:
    """So many rows from an offset on, of that very version of the file."""
    ...


@activity("imports.write_errors", retry=PATIENT)
def write_errors(request: WriteErrors) -> Result[None, StorageFailure]: ...


@activity("imports.publish_errors", retry=PATIENT)
def publish_errors(request: Report) -> Result[str, StorageFailure]:
    """Puts the parts together, and gives the address of the whole. They stay until they are cleared, so that a second try finds them."""
    ...


@activity("imports.clear_parts", retry=PATIENT)
def clear_parts(request: Report) -> Result[None, StorageFailure]: ...


@activity("imports.validate_order", retry=ROW)
def validate_order(request: ProcessMealShort) -> Result[None, UnknownOrder | NotInOrder | Refused | Unavailable | NotConfigured]: ...


@activity("imports.process_meal_short", retry=ROW)
def process(request: Reference) -> Result[None, Refused | Unavailable | NotConfigured]:
    """Once for each reference, whoever asks again."""
    ...


@activity("imports.send_confirmation", retry=ROW)
def send_confirmation(request: Reference) -> Result[None, Refused | Unavailable | NotConfigured]:
    """Once for each reference, whoever asks again."""
    ...
