"""Durable workflows as pure, typed values.

A workflow is a value composed from activities; interpreters give it meaning. Importing this loads no I/O library.
"""

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

__all__ = [
    "Activity", "Attempt", "Binding", "Bound", "Cancelled", "Child", "Concurrency", "Defect", "Deployment", "Died", "Done", "Execution", "Exit",
    "Failure", "Flow", "FlowError", "GiveUp", "Interrupted", "Limits", "Next", "Node", "Nodes", "Outcome", "RateLimit", "Result", "Retry",
    "RetryAfter", "Round", "Schedule", "Signal", "Skipped", "Status", "Steps", "Success", "TimedOut", "TooLarge", "Workflow", "activity", "all_",
    "audit", "bind", "catching", "changed", "dag", "dag_attempt", "do", "each", "each_attempt", "execution", "fail", "iterate", "masked", "node",
    "now", "pure", "race", "random", "report", "saga", "scheduled_for", "signal", "sleep", "this_attempt", "uuid", "workflow",
]  # fmt: skip
