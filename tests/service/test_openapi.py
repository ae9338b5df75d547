"""The description is what is served: the schemas are the codec's types, and a fuzzer that reads it finds nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import httpx2
import hypothesis
import jsonschema_rs
import pytest
from attrs import frozen
from hypothesis import strategies as st

from flowdsl.codec import codec
from flowdsl.service.app import ROUTES
from flowdsl.service.openapi import openapi
from flowdsl.service.schema import Schemas
from tests.service.stage import DEPLOYMENT, serving


class Colour(Enum):
    RED = 1
    BLUE = 2


@frozen
class Point:
    x: int
    y: float = 0.0


@frozen
class Circle:
    at: Point
    inside: tuple[Circle, ...] = ()


@frozen
class Box:
    a: str | None
    b: list[int]
    c: dict[str, Point]
    d: Point | Circle | str | None
    e: Literal["x", "y", 3]
    f: Colour
    g: tuple[int, str]
    h: dict[int, str]
    i: object
    j: Literal["on"] | None = None
    k: frozenset[int] = frozenset()


POINTS = st.builds(Point, st.integers(-9, 9), st.floats(-9, 9))
CIRCLES = st.recursive(st.builds(Circle, POINTS), lambda inner: st.builds(Circle, POINTS, st.lists(inner, max_size=2).map(tuple)), max_leaves=4)
BOXES = st.builds(
    Box, st.none() | st.text(max_size=3), st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=2), POINTS, max_size=2),
    POINTS | CIRCLES | st.text(max_size=2) | st.none(), st.sampled_from(["x", "y", 3]), st.sampled_from(Colour),
    st.tuples(st.integers(), st.text(max_size=2)), st.dictionaries(st.integers(), st.text(max_size=2), max_size=2), st.none() | st.booleans(),
    st.sampled_from(["on", None]), st.frozensets(st.integers(0, 5)),
)  # fmt: skip


def validator(form: Any) -> Any:
    schemas = Schemas("#/$defs/")
    root = schemas.of(form)
    return jsonschema_rs.validator_for({"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": schemas.components})


BOX = validator(Box)


@hypothesis.given(BOXES)
@hypothesis.settings(max_examples=100)
def test_what_the_codec_writes_fits_the_schema(box: Box) -> None:
    BOX.validate(json.loads(codec(Box).encode(box)))


@hypothesis.given(
    BOXES,
    st.sampled_from([*"abcdefghijk", "z"]),
    st.none() | st.integers() | st.text(max_size=2) | st.lists(st.integers(), max_size=1),
    st.booleans(),
)
@hypothesis.settings(max_examples=200)
def test_the_schema_and_the_codec_refuse_the_same(box: Box, key: str, other: Any, drop: bool) -> None:
    plain = json.loads(codec(Box).encode(box))
    if drop:
        plain.pop(key, None)
    else:
        plain[key] = other
    try:
        codec(Box).structure(plain)
    except ValueError:
        raise
    except Exception:
        assert not BOX.is_valid(plain), plain
    else:
        assert BOX.is_valid(plain), plain


@pytest.mark.parametrize("form", [datetime, date, timedelta, Decimal, bytes, Circle, list[Point | Circle], Colour | None, dict[Colour, int]])
def test_every_kind_of_type_has_a_schema(form: Any) -> None:
    assert validator(form) is not None


def test_the_description_names_every_route() -> None:
    found = openapi(ROUTES, DEPLOYMENT)
    operations = {f"{method.upper()} {path}" for path, methods in found["paths"].items() for method in methods}
    for route in ROUTES:
        if route.name != "start":
            assert f"{route.method} {route.path}" in operations
    for name in DEPLOYMENT.names:
        assert f"POST /api/v1/workflows/{name}" in operations
    order = found["components"]["schemas"]["Order"]
    assert order["required"] == ["order_id"] and order["additionalProperties"] is False
    assert found["paths"]["/api/v1/workflows/{id}/terminate"]["post"]["x-role"] == "admin"
    jsonschema_rs.validator_for({"$ref": "#/components/schemas/Order", "components": found["components"]}).validate({"order_id": "o"})


async def test_it_is_served(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/api/v1/openapi.json")
    assert answer.status_code == 200 and answer.json() == json.loads(json.dumps(openapi(ROUTES, DEPLOYMENT, keyed=False)))


@contextmanager
def in_the_background(database: str) -> Iterator[str]:
    """The address of a service that runs on a loop of its own."""
    up, down = threading.Event(), threading.Event()
    address: list[str] = []

    async def serve() -> None:
        async with serving(database) as client:
            await client.post("/api/v1/workflows/shop.approval", json="")
            address.append(str(client.base_url).rstrip("/"))
            up.set()
            await asyncio.to_thread(down.wait)

    running = threading.Thread(target=lambda: asyncio.run(serve()))
    running.start()
    try:
        assert up.wait(60)
        yield address[0]
    finally:
        down.set()
        running.join(60)


@pytest.mark.timeout(600)
def test_a_fuzzer_finds_nothing(database: str) -> None:
    """Every operation, with what fits its schema and what does not: no 5xx, no answer that is not described, nothing wrong accepted.

    In a process of its own: the fuzzer replaces parts of Hypothesis for whoever comes after it.
    """
    root = Path(__file__).parents[2]
    with in_the_background(database) as address:
        done = subprocess.run([sys.executable, "-m", "tests.service.fuzzing", address], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = set(json.loads(done.stdout))
    described = openapi(ROUTES, DEPLOYMENT)["paths"]
    everything = {f"{method.upper()} {path}" for path, methods in described.items() for method in methods}
    assert everything - seen == {"GET /api/v1/workflows/{id}/events", "GET /api/v1/openapi.json"}
