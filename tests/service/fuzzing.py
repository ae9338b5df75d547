"""`python -m tests.service.fuzzing ADDRESS`: fuzzes each operation that a service describes, and prints their names. A process of its own."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import hypothesis
import schemathesis
from schemathesis.checks import CHECKS, load_all_checks

LONG = os.environ.get("FLOWDSL_LONG") == "1"
PATIENCE = 60
"""Seconds for an answer: a machine that is busy is no failure."""
NAMES = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance", "negative_data_rejection")


def main(address: str) -> list[str]:
    load_all_checks()
    checks = [CHECKS.get_one(name) for name in NAMES]
    seen: list[str] = []
    for result in schemathesis.openapi.from_url(f"{address}/api/v1/openapi.json", timeout=PATIENCE).get_all_operations():
        operation = result.ok()
        if not operation.label.endswith("/events"):  # it has no end
            fuzzed(operation, checks)
            seen.append(operation.label)
    return seen


def fuzzed(operation: Any, checks: list[Any]) -> None:
    """Sends what fits and what does not, and checks each answer against the description."""

    @hypothesis.given(operation.as_strategy() | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    @hypothesis.settings(
        max_examples=100 if LONG else 6, deadline=None, database=None, derandomize=not LONG, suppress_health_check=list(hypothesis.HealthCheck)
    )
    def sent(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=checks, timeout=PATIENCE)

    sent()


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
