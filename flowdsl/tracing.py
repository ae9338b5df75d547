"""Spans for OpenTelemetry: one for each request of the service and for each run of an implementation. Off unless you make a `Tracing`.

tracing = Tracing()            # spans go to the provider that your process has set up, or to the one you give
tracing.watch(worker)
create_app(…, tracing=tracing)

An execution is a trace of its own: its id is the trace's, so that attempts on whatever worker, today or next month, are found together. Each
attempt links to the request that started the execution, and to the trace of the execution's parent. No input, answer or message is in a span.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import structlog
from attrs import evolve
from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from returns.result import Failure, Success

from flowdsl.binding import Attempt, Binding, this_attempt

if TYPE_CHECKING:
    from flowdsl.postgres.store import Store
    from flowdsl.postgres.worker import Worker

log = structlog.get_logger("flowdsl")

KNOWN: Final = 10_000
"""Executions of which it is remembered who asked for them."""
REPLY: Final = 5.0
"""Seconds after which an attempt goes on without its link."""
SWEEP: Final = 3600.0
"""Seconds between two looks for what is kept of executions that are no more."""

_WIRE = TraceContextTextMapPropagator()


class Tracing:
    """Makes spans. What goes wrong with them is logged, and changes nothing of what they are about."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider or trace.get_tracer_provider()
        self._tracer = self._provider.get_tracer("flowdsl", version("flowdsl"))
        self._known: OrderedDict[str, SpanContext | None] = OrderedDict()
        self._sweep_at = 0.0
        self._watched: set[Worker] = set()

    # The service

    @contextmanager
    def request(self, method: str, route: str, headers: Mapping[str, str]) -> Generator[Span]:
        """A span of a request, in the trace of who asks."""
        attributes = {"http.request.method": method, "http.route": route}
        parent = _WIRE.extract(dict(headers))
        with self._tracer.start_as_current_span(
            f"{method} {route}", parent, SpanKind.SERVER, attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            yield span

    @staticmethod
    def answered(span: Span, status: int) -> None:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))

    async def keep(self, store: Store, execution: str) -> None:
        """Keeps, with an execution that is about to be started, in which span that was asked for."""
        carrier: dict[str, str] = {}
        _WIRE.inject(carrier)
        here = trace.get_current_span()
        if "traceparent" not in carrier:
            return
        with _told("kept"):
            await store.pool.execute(
                "insert into flowdsl.traces (execution, parent) values ($1::uuid, $2) on conflict do nothing", execution, carrier["traceparent"]
            )
            here.set_attribute("flowdsl.execution", execution)
            here.add_link(_root(execution, here.get_span_context().trace_flags))
            now = asyncio.get_running_loop().time()
            if now >= self._sweep_at:
                self._sweep_at = now + SWEEP
                await store.pool.execute(_SWEEP)

    # Workers

    def watch(self, worker: Worker) -> None:
        """Makes spans of what that worker runs, from now on. To be called in its event loop."""
        if worker not in self._watched:
            self._watched.add(worker)
            loop = asyncio.get_running_loop()
            bindings = [self._traced(binding, worker.store, loop) for binding in worker.deployment.bindings]
            worker.deployment = evolve(worker.deployment, bindings=bindings)

    def _traced(self, binding: Binding, store: Store, loop: asyncio.AbstractEventLoop) -> Binding:
        name, carry_out = binding.activity.name, binding.implementation

        async def awaited(request: Any) -> Any:
            attempt = this_attempt()
            asked = await self._asked(store, _execution(attempt))
            with self._attempt(name, attempt, asked) as span:
                return _marked(span, await carry_out(request))

        async def finished(answer: Any, span: Span) -> Any:
            with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False), _class_of_error(span):
                return _marked(span, await answer)

        def called(request: Any) -> Any:
            attempt = this_attempt()
            asked: SpanContext | None = None
            with _told("found"):
                asked = asyncio.run_coroutine_threadsafe(self._asked(store, _execution(attempt)), loop).result(2 * REPLY)
            with self._attempt(name, attempt, asked, ends=False) as span:
                answer = carry_out(request)
                if hasattr(answer, "__await__"):
                    return finished(answer, span)
                span_of_answer = _marked(span, answer)
                span.end()
                return span_of_answer

        return evolve(binding, implementation=awaited if binding.is_async else called)

    @contextmanager
    def _attempt(self, name: str, attempt: Attempt, asked: SpanContext | None, *, ends: bool = True) -> Generator[Span]:
        execution = _execution(attempt)
        root = _root(execution, asked.trace_flags if asked is not None else self._flags(execution))
        parent: str | None = getattr(getattr(attempt, "owner", None), "parent", None)
        links = [Link(one) for one in (asked, None if parent is None else _root(parent, root.trace_flags)) if one is not None]
        span = self._tracer.start_span(
            name, trace.set_span_in_context(NonRecordingSpan(root)), SpanKind.INTERNAL, links=links,
            attributes={
                "flowdsl.execution": execution, "flowdsl.activity": name, "flowdsl.attempt": attempt.number, "flowdsl.tenant": attempt.tenant,
                "flowdsl.idempotency_key": attempt.idempotency_key,
            },
        )  # fmt: skip
        try:
            with trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False), _class_of_error(span):
                yield span
        except BaseException:
            span.end()
            raise
        if ends:
            span.end()

    def _flags(self, execution: str) -> TraceFlags:
        """Of an execution that nobody asked for in a trace: whether the provider's sampler takes it."""
        sampler: Any = getattr(self._provider, "sampler", None)
        if sampler is None:
            return TraceFlags(TraceFlags.SAMPLED)
        taken = sampler.should_sample(None, UUID(execution).int, "execution").decision.is_sampled()
        return TraceFlags(TraceFlags.SAMPLED if taken else TraceFlags.DEFAULT)

    async def _asked(self, store: Store, execution: str) -> SpanContext | None:
        """The span in which somebody asked for that execution."""
        if execution in self._known:
            return self._known[execution]
        found: SpanContext | None = None
        with _told("found"):
            parent = await store.pool.fetchval("select parent from flowdsl.traces where execution = $1::uuid", execution, timeout=REPLY)
            if parent is not None:
                found = trace.get_current_span(_WIRE.extract({"traceparent": parent})).get_span_context()
            self._known[execution] = found if found is not None and found.is_valid else None
            while len(self._known) > KNOWN:
                self._known.popitem(last=False)
        return found


def _execution(attempt: Attempt) -> str:
    return attempt.idempotency_key.partition("/")[0]


def _root(execution: str, flags: TraceFlags) -> SpanContext:
    """What stands above all spans of an execution."""
    id = UUID(execution)
    return SpanContext(id.int, int.from_bytes(blake2b(id.bytes, digest_size=8).digest()) or 1, is_remote=True, trace_flags=flags)


def _marked(span: Span, answer: Any) -> Any:
    """The answer; its class is told, and nothing of what it holds."""
    if isinstance(answer, Failure):
        span.set_status(Status(StatusCode.ERROR, type(answer.failure()).__name__))
    elif not isinstance(answer, Success):
        span.set_status(Status(StatusCode.ERROR, "no result"))
    return answer


@contextmanager
def _class_of_error(span: Span) -> Generator[None]:
    try:
        yield
    except BaseException as error:
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise


@contextmanager
def _told(what: str) -> Generator[None]:
    """A trace that could not be kept or found is told to the log."""
    try:
        yield
    except Exception as error:
        log.warning("trace.lost", what=what, error=str(error) or type(error).__name__)


_SWEEP = """
delete from flowdsl.traces where execution = any(array(
  select t.execution from flowdsl.traces t where t.at < clock_timestamp() - interval '1 day'
     and not exists (select 1 from flowdsl.executions x where x.id = t.execution) limit 10000))
"""

__all__ = ["Tracing"]
