"""What was sent, read within limits: size, time, nesting, and nothing kept of what is too large."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol, get_args

from starlette.requests import ClientDisconnect, Request

from flowdsl.codec import codec
from flowdsl.codec.forms import field_types, opened_fully
from flowdsl.codec.records import declared
from flowdsl.codec.shape import parsed
from flowdsl.service.problem import Problem, invalid


class BodyLimits(Protocol):
    """How much is read, how deep it may nest, and how long who sends may take."""

    @property
    def body_bytes(self) -> int: ...
    @property
    def body_depth(self) -> int: ...
    @property
    def body_seconds(self) -> float: ...


async def read(request: Request, limits: BodyLimits) -> bytes:
    """The body. Raises `Problem`: 413 too large, 408 too slow."""
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > limits.body_bytes:
        raise _too_large(limits)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.body_bytes:
                    raise _too_large(limits)
                chunks.append(chunk)
    except TimeoutError:
        raise Problem(
            408, "too slow", f"The body did not arrive within {limits.body_seconds:g} s: send it again", headers={"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise Problem(400, "incomplete", "The connection was closed before the body had arrived") from None
    return b"".join(chunks)


def not_json() -> Problem:
    detail = "Send the body as JSON, with the header Content-Type: application/json"
    return Problem(415, "not JSON", detail, headers={"Accept-Post": "application/json"})


def _too_large(limits: BodyLimits) -> Problem:
    detail = f"The body is larger than {limits.body_bytes:,} bytes: keep the data elsewhere and send a reference"
    return Problem(413, "too large", detail, headers={"Connection": "close"})


async def read_json(request: Request, limits: BodyLimits) -> Any:
    """The body as plain values. Raises `Problem`: also 415 for another media type, and 422 for what is no JSON or nests too deep."""
    media, _, rest = request.headers.get("content-type", "").partition(";")
    if media.strip().lower() != "application/json":
        raise not_json()
    if "charset" in rest.lower() and "utf-8" not in rest.lower():
        raise Problem(415, "not UTF-8", "Send the body in UTF-8")
    data = await read(request, limits)
    try:
        plain = parsed(data)
    except RecursionError:
        raise _too_deep(limits) from None
    except ValueError as error:
        raise invalid([("body", f"expected JSON: {error}")]) from None
    if data.count(b"[") + data.count(b"{") > limits.body_depth and _deeper(plain, limits.body_depth):
        raise _too_deep(limits)
    return plain


def _too_deep(limits: BodyLimits) -> Problem:
    return invalid([("body", f"expected at most {limits.body_depth} levels of nesting")])


def _deeper(plain: Any, most: int) -> bool:
    """Whether it nests in more levels than that: level by level, so that no depth costs a stack."""
    layer: list[Any] = [plain]
    for _ in range(most + 1):
        nodes = [node for node in layer if type(node) in (list, dict)]
        if not nodes:
            return False
        layer = [child for node in nodes for child in (node.values() if type(node) is dict else node)]
    return True


# Queries


def query_of(form: Any, given: Mapping[str, list[str]]) -> Any:
    """The query as a record of that class. Raises `Problem` with the path of each bad parameter; one that is unknown, or given twice, is bad."""
    kinds = _kinds(form)
    plain: dict[str, Any] = {}
    errors: list[tuple[str, str]] = []
    for name, values in given.items():
        if len(values) > 1:
            errors.append((f"query.{name}", "expected it once"))
        plain[name] = _read(kinds.get(name, str), values[-1])
    if errors:
        raise invalid(errors)
    return codec(form).structure(plain, root="query")


@cache
def _kinds(form: Any) -> dict[str, Any]:
    types = field_types(form)
    found: dict[str, Any] = {}
    for each in declared(form):
        opened = opened_fully(types[each.name])
        members = [one for one in get_args(opened) if one is not type(None)] or [opened]
        found[each.key] = members[0] if len(members) == 1 else str
    return found


def _read(kind: Any, text: str) -> Any:
    """As plain a value as the text can be: what does not fit stays text, and the codec says so."""
    if kind is bool:
        return {"true": True, "false": False}.get(text, text)
    if kind is int and text.removeprefix("-").isdecimal() and len(text) < 20:
        return int(text)
    return text
