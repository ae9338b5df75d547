"""A start under a path and in words of its own: for callers who knew an interface before there was a workflow behind it.

erasure = starts("/api/erasure-request", erase, body=ErasureRequest, read=lambda body: Erase(body.userIdentifiers.userId, ...))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flowdsl.definition import Workflow
from flowdsl.errors import FlowError
from flowdsl.service.problem import invalid
from flowdsl.service.route import Call, Reply, Route, Rule
from flowdsl.service.starting import begun
from flowdsl.service.wire import Started

B = TypeVar("B")
I = TypeVar("I")  # noqa: E741

REPEATED: Mapping[str, str] = {"Idempotency-Key": "The same for the same request, however often it is sent: it acts once."}


def starts(
    path: str,
    workflow: Workflow[I, Any, Any],
    *,
    body: type[B],
    read: Callable[[B], I],
    summary: str,
    name: str | None = None,
    rule: Rule = "operator",
    example: Any = None,
) -> Route:
    """`POST path` starts the workflow: the body is of that type, `read` makes the workflow's input of it, and is pure.

    All else is as at `/api/v1/workflows/{name}`: 202 with id and status URL, 200 for one that is there already. What `read` refuses with a
    `FlowError` or `ValueError` is a 422.
    """

    async def start(call: Call) -> Reply:
        try:
            request = read(call.body)
        except (FlowError, ValueError) as error:
            raise invalid([("body", str(error))]) from None
        return await begun(call, workflow, request)

    return Route(
        "POST", path, name or f"start_{workflow.name}", summary, rule, start, {202: Started, 200: Started}, request=body,
        problems=(409,), example=example, headers=REPEATED, spends="starts",
    )  # fmt: skip


__all__ = ["starts"]
