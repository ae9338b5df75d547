"""Spans: of requests and of attempts, tied together by what is kept with a start; and nothing of what they were about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Never
from uuid import UUID

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from flowdsl import Deployment, Failure, Result, Retry, Steps, Success, activity, bind, tracing, workflow
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Worker
from flowdsl.service import create_app
from flowdsl.tracing import Tracing
from tests.service.stage import QUICK, listening, started, until

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@activity("t.plain", retry=Retry.constant("1ms", attempts=2))
def plain(order: str) -> Result[str, str]:
    """Runs in a thread."""
    ...


@activity("t.waited")
def waited(order: str) -> Result[str, Never]:
    """Runs in the loop."""
    ...


@activity("t.raising", retry=Retry.constant("1ms", attempts=1))
def raising(order: str) -> Result[str, Never]:
    """Raises."""
    ...


INSIDE: list[int] = []
FAILS: list[str] = []


def do_plain(order: str) -> Result[str, str]:
    INSIDE.append(trace.get_current_span().get_span_context().span_id)
    return Failure(FAILS.pop()) if FAILS else Success(order)


async def do_waited(order: str) -> Result[str, Never]:
    await asyncio.sleep(0)
    INSIDE.append(trace.get_current_span().get_span_context().span_id)
    return Success(order)


async def do_raising(order: str) -> Result[str, Never]:
    raise RuntimeError("canary")


@workflow("t.both")
def both(order: str) -> Steps[str, str]:
    yield from plain(order)
    return (yield from waited(order))


@workflow("t.child_of")
def child_of(order: str) -> Steps[str, str]:
    return (yield from both.child(order))


@workflow("t.breaks")
def breaks(order: str) -> Steps[str, Never]:
    return (yield from raising(order))


DEPLOYMENT = Deployment([both, child_of, breaks], [bind(plain, do_plain), bind(waited, do_waited), bind(raising, do_raising)])


@asynccontextmanager
async def traced(database: str, **options: Any) -> AsyncGenerator[tuple[httpx2.AsyncClient, InMemorySpanExporter]]:
    INSIDE.clear()
    exporter, provider = InMemorySpanExporter(), TracerProvider(**options)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = Tracing(provider)
    async with await Store.open(database) as store, Worker(DEPLOYMENT, store, QUICK) as worker:
        app = create_app(DEPLOYMENT, store=store, worker=worker, tracing=spans)
        async with listening(app) as address, httpx2.AsyncClient(base_url=address, timeout=30) as client:
            yield client, exporter


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def links(span: ReadableSpan) -> list[int]:
    return [link.context.trace_id for link in span.links]


async def test_attempts_are_in_the_trace_of_their_execution_and_lead_to_who_asked(database: str) -> None:
    async with traced(database) as (client, exporter):
        id = await started(client, "t.both", "canary", traceparent=CALLER)
        await until(client, id, "succeeded")
    (asked,) = named(exporter, "POST /api/v1/workflows/{name}")
    assert asked.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C and asked.parent is not None and asked.parent.span_id == 0xB7AD6B7169203331
    assert asked.attributes is not None and asked.attributes["http.response.status_code"] == 202
    assert links(asked) == [UUID(id).int]
    runs = [*named(exporter, "t.plain"), *named(exporter, "t.waited")]
    assert [span.context.trace_id for span in runs] == [UUID(id).int] * 2
    assert [[link.context.span_id for link in span.links] for span in runs] == [[asked.context.span_id]] * 2
    assert len({span.parent.span_id for span in runs if span.parent is not None}) == 1
    assert sorted(INSIDE) == sorted(span.context.span_id for span in runs), "what an implementation does is within its span"
    assert "canary" not in "".join(span.to_json() for span in exporter.get_finished_spans())


async def test_each_attempt_has_a_span_and_a_failure_its_class(database: str) -> None:
    async with traced(database) as (client, exporter):
        FAILS.append("canary")
        id = await started(client, "t.both", "o")
        await until(client, id, "succeeded", "failed")
    first, *more = named(exporter, "t.plain")
    assert first.status.description == "str" and not first.status.is_ok
    assert first.attributes is not None and (first.attributes["flowdsl.attempt"], first.attributes["flowdsl.execution"]) == (1, id)
    assert all(span.status.is_ok or span.status.is_unset for span in more)
    assert "canary" not in "".join(span.to_json() for span in exporter.get_finished_spans())


async def test_what_is_raised_is_told_by_its_class(database: str) -> None:
    async with traced(database) as (client, exporter):
        await until(client, await started(client, "t.breaks", "o"), "failed")
    (span,) = named(exporter, "t.raising")
    assert span.status.description == "RuntimeError" and not span.events and "canary" not in span.to_json()


async def test_a_child_leads_to_its_parent(database: str) -> None:
    async with traced(database) as (client, exporter):
        id = await started(client, "t.child_of", "o", traceparent=CALLER)
        await until(client, id, "succeeded")
    (run,) = named(exporter, "t.plain")
    assert run.context.trace_id != UUID(id).int and links(run) == [UUID(id).int]


async def test_what_is_not_sampled_makes_no_span(database: str) -> None:
    async with traced(database, sampler=ParentBased(ALWAYS_OFF)) as (client, exporter):
        await until(client, await started(client, "t.both", "o"), "succeeded")
        assert not exporter.get_finished_spans()
        await until(client, await started(client, "t.both", "o", traceparent=CALLER), "succeeded")
        assert len(named(exporter, "t.plain")) == 1


async def test_requests_that_are_refused_are_told(database: str) -> None:
    async with traced(database) as (client, exporter):
        await client.post("/api/v1/workflows/t.both", json=1)
        await client.get("/api/v1/workflows/none/status")
    statuses = {span.name: (span.attributes or {})["http.response.status_code"] for span in exporter.get_finished_spans()}
    assert statuses == {"POST /api/v1/workflows/{name}": 422, "GET /api/v1/workflows/{id}/status": 404}


async def test_a_trace_that_cannot_be_kept_costs_no_start(database: str) -> None:
    async with await Store.open(database) as store:
        await store.pool.execute("drop table flowdsl.traces")
    async with traced(database) as (client, exporter):
        await until(client, await started(client, "t.both", "o"), "succeeded")
        assert len(named(exporter, "t.plain")) == 1


async def test_what_is_kept_of_nothing_is_swept(database: str) -> None:
    async with await Store.open(database) as store:
        await store.pool.execute(
            "insert into flowdsl.traces values (gen_random_uuid(), 'x', now() - interval '2 days'), (gen_random_uuid(), 'x', now())"
        )
        async with traced(database) as (client, _):
            await started(client, "t.both", "o")
        assert await store.pool.fetchval("select count(*)::int from flowdsl.traces") == 2  # the new one, and the one that may be about to start


def test_nothing_is_traced_by_itself() -> None:
    import subprocess
    import sys

    code = "import flowdsl.service.app, flowdsl.postgres.worker, sys; print(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    FAILS.clear()
    monkeypatch.setattr(tracing, "REPLY", 60.0)  # a store that is busy is asked all the same
