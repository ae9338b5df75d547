"""Numbers for Prometheus: what workers record, what attempts take, how the service answers, and how much waits in the store.

metrics = Metrics()
metrics.watch(worker)          # any number of workers of this process
create_app(…, metrics=metrics) # serves them under /metrics; without the service, metrics.serve(9464) does

Labels are names that code gives: workflows, activities, routes, classes of failures. Never an id, a key or a tenant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.exposition import generate_latest

from flowdsl.binding import Deployment
from flowdsl.metrics.attempts import SHORT, Attempts
from flowdsl.metrics.recorded import Eye, Recorded

if TYPE_CHECKING:
    from flowdsl.postgres.worker import Worker

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class _Registry(CollectorRegistry):
    """Without the time at which each number was made: it would be half of the page."""

    def collect(self) -> Iterator[Any]:
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class Metrics:
    """The numbers of this process, in a registry of their own unless you give one."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else _Registry()
        self._attempts, self._recorded = Attempts(), Recorded()
        if registry is None:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
        self.requests = self._counter("http_requests", "Requests that were answered.", "method", "route", "status")
        self.answer_seconds = self._histogram("http_request_seconds", "How long answers took.", SHORT, "method", "route")
        self.webhooks = self._counter("webhooks", "Deliveries that came in, by what became of them.", "endpoint", "verdict")
        self.limited = self._counter("limited_requests", "Requests that were refused since their tenant had asked for too much.", "what")
        self.streams = Gauge("flowdsl_streams", "Streams of events that are open.", registry=self.registry)
        self.registry.register(self._attempts)
        self.registry.register(self._recorded)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"flowdsl_{name}", about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"flowdsl_{name}", about, labels, registry=self.registry, buckets=buckets)

    def watch(self, worker: Worker) -> None:
        """Counts what that worker does from now on. Does nothing when it is watched already."""
        if worker in self._recorded.workers:
            return
        self._recorded.workers[worker] = None
        worker.watch = worker.committer.watch = Eye(self._recorded, worker)
        worker.deployment = self.timed(worker.deployment)

    def forget(self, worker: Worker) -> None:
        """It has stopped."""
        self._recorded.workers.pop(worker, None)

    def timed(self, deployment: Deployment) -> Deployment:
        """The same deployment; its implementations are timed and counted when they run."""
        return evolve(deployment, bindings=[self._attempts.timed(binding) for binding in deployment.bindings])

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)

    def serve(self, port: int, host: str = "127.0.0.1") -> int:
        """Serves the page, and nothing else, from a thread of its own. Gives the port. Raises `OSError` when it is taken."""
        server, _ = start_http_server(port, host, self.registry)
        return int(server.server_port)


__all__ = ["MEDIA_TYPE", "Metrics"]
