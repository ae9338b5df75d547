"""The import of meal shorts, as a part of the deployment."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.meals import rows
from adapters.part import Part
from adapters.s3 import reading, reports
from domains.imports import activities
from domains.imports.workflows import process_meal_short, process_meal_shorts_csv
from flowdsl import bind

BINDINGS = (
    bind(activities.inspect_file, reading.inspect_file),
    bind(activities.read_rows, reading.read_rows),
    bind(activities.write_errors, reports.write_errors),
    bind(activities.publish_errors, reports.publish_errors),
    bind(activities.clear_parts, reports.clear_parts),
    bind(activities.validate_order, rows.validate_order),
    bind(activities.process, rows.process),
    bind(activities.send_confirmation, rows.send_confirmation),
)


def part(environment: Mapping[str, str]) -> Part:
    """The file's workflow and the row's. Where files and the order service are, is read when a call is made."""
    del environment
    return Part(workflows=[process_meal_shorts_csv, process_meal_short], bindings=[*BINDINGS])


__all__ = ["BINDINGS", "part"]
