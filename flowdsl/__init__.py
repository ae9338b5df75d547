"""Durable workflows as pure, typed values.

A workflow is a value composed from activities; interpreters give it meaning. A name is loaded when it is asked for, and none loads an I/O library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from returns.result import Failure, Result, Success

    from flowdsl.binding import Attempt, Binding, Deployment, bind, this_attempt
    from flowdsl.definition import Activity, Workflow, activity, workflow
    from flowdsl.errors import FlowError, GiveUp, RetryAfter, TooLarge
    from flowdsl.flow import (
        Bound,
        Cancelled,
        Child,
        Defect,
        Died,
        Done,
        Execution,
        Exit,
        Flow,
        Interrupted,
        Next,
        Node,
        Nodes,
        Outcome,
        Round,
        Signal,
        Skipped,
        Status,
        Steps,
        TimedOut,
        all_,
        audit,
        catching,
        changed,
        dag,
        dag_attempt,
        do,
        each,
        each_attempt,
        execution,
        fail,
        iterate,
        masked,
        node,
        now,
        pure,
        race,
        random,
        report,
        saga,
        signal,
        sleep,
        uuid,
    )
    from flowdsl.policy import Concurrency, Limits, RateLimit, Retry
    from flowdsl.schedule import Schedule, scheduled_for
    from flowdsl.secret import Secret

_HOMES = {
    "returns.result": ("Failure", "Result", "Success"),
    "flowdsl.binding": ("Attempt", "Binding", "Deployment", "bind", "this_attempt"),
    "flowdsl.definition": ("Activity", "Workflow", "activity", "workflow"),
    "flowdsl.errors": ("FlowError", "GiveUp", "RetryAfter", "TooLarge"),
    "flowdsl.flow": (
        "Bound", "Cancelled", "Child", "Defect", "Died", "Done", "Execution", "Exit", "Flow", "Interrupted", "Next", "Node", "Nodes", "Outcome",
        "Round", "Signal", "Skipped", "Status", "Steps", "TimedOut", "all_", "audit", "catching", "changed", "dag", "dag_attempt", "do", "each",
        "each_attempt", "execution", "fail", "iterate", "masked", "node", "now", "pure", "race", "random", "report", "saga", "signal", "sleep",
        "uuid",
    ),
    "flowdsl.policy": ("Concurrency", "Limits", "RateLimit", "Retry"),
    "flowdsl.schedule": ("Schedule", "scheduled_for"),
    "flowdsl.secret": ("Secret",),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Activity", "Attempt", "Binding", "Bound", "Cancelled", "Child", "Concurrency", "Defect", "Deployment", "Died", "Done", "Execution", "Exit",
    "Failure", "Flow", "FlowError", "GiveUp", "Interrupted", "Limits", "Next", "Node", "Nodes", "Outcome", "RateLimit", "Result", "Retry",
    "RetryAfter", "Round", "Schedule", "Secret", "Signal", "Skipped", "Status", "Steps", "Success", "TimedOut", "TooLarge", "Workflow", "activity",
    "all_", "audit", "bind", "catching", "changed", "dag", "dag_attempt", "do", "each", "each_attempt", "execution", "fail", "iterate", "masked",
    "node", "now", "pure", "race", "random", "report", "saga", "scheduled_for", "signal", "sleep", "this_attempt", "uuid", "workflow",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
