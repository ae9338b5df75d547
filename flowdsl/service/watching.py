"""`/metrics`: the numbers of this process, and of the store that it serves; those are asked for at most every few seconds."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import structlog
from prometheus_client.core import GaugeMetricFamily
from starlette.responses import Response

from flowdsl.metrics import MEDIA_TYPE, Metrics
from flowdsl.postgres.backlog import Backlog, backlog
from flowdsl.postgres.store import Store
from flowdsl.service.problem import Problem
from flowdsl.service.route import Call, Route, Service

log = structlog.get_logger("flowdsl")

FRESH: Final = 5.0
"""Seconds for which the store's numbers are told again."""
PATIENCE: Final = 4.0
"""Seconds after which a scrape does without them."""


class StoreNumbers:
    """A collector of what is open in a store. `look` asks; whoever scrapes gets what was heard last."""

    def __init__(self, metrics: Metrics) -> None:
        self._heard: Backlog | None = None
        self._until = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        metrics.registry.register(self)

    async def look(self, service: Service) -> None:
        """Asks the store, unless that was a moment ago. One that does not answer in time is told as down."""
        if asyncio.get_running_loop().time() >= self._until:
            if self._asking is None or self._asking.done():  # all who scrape at once wait for one question
                self._asking = asyncio.create_task(self._ask(service), name="flowdsl-numbers")
            _, late = await asyncio.wait([self._asking], timeout=PATIENCE)
            if late:
                self._heard = None

    async def _ask(self, service: Service) -> None:
        try:
            store: Store = await service.store()
            self._heard = await backlog(store)
        except Exception as error:
            log.warning("metrics.away", error=str(error) or type(error).__name__)
            self._heard = None
        self._until = asyncio.get_running_loop().time() + FRESH

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        heard = self._heard
        yield _gauge("store_up", "Whether the database answers.", float(heard is not None))
        if heard is None:
            return
        open_ones = GaugeMetricFamily(
            "flowdsl_executions", "Executions that are open, or failed and on nobody's desk.", labels=["workflow", "status"]
        )
        for one in heard.executions:
            open_ones.add_metric([one.workflow, one.status], one.count)
        due, oldest = Counter[str](), dict[str, float]()
        for one in heard.executions:
            due[one.workflow] += one.due
            oldest[one.workflow] = max(oldest.get(one.workflow, 0.0), one.oldest)
        yield open_ones
        yield _by_workflow("due", "Executions that could be worked on now, and that no worker has.", due)
        yield _by_workflow("oldest_due_seconds", "For how long the oldest of those has waited.", oldest)
        yield _gauge("workers", "Workers, of all processes, that are alive.", heard.workers)
        yield _gauge("schedules_late_seconds", "By how much the schedule that is latest is late.", heard.schedules_late)
        yield _gauge("webhooks_waiting", "Deliveries that are yet to be acted on.", heard.webhooks)
        yield _gauge("webhooks_late_seconds", "By how much the one that is latest is late.", heard.webhooks_late)
        yield _gauge("unmatched_signals", "Signals that nobody has waited for yet; counted up to 10,001.", heard.unmatched)


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"flowdsl_{name}", about, value=value)


def _by_workflow(name: str, about: str, values: dict[str, Any]) -> GaugeMetricFamily:
    found = GaugeMetricFamily(f"flowdsl_{name}", about, labels=["workflow"])
    for workflow, value in values.items():
        found.add_metric([workflow], value)
    return found


async def metrics(call: Call) -> Response:
    """The page that Prometheus reads."""
    service = call.service
    if service.metrics is None:
        raise Problem(404, "no such page", 'There are no metrics here: the settings say [server] metrics = "off"')
    if service.numbers is not None:
        await service.numbers.look(service)
    service.metrics.streams.set(service.streams)
    return Response(service.metrics.page(), media_type=None, headers={"Content-Type": MEDIA_TYPE})


ROUTES = (
    Route("GET", "/metrics", "metrics", "Numbers for Prometheus, of the whole service: no id and no tenant is in them.", "viewer", metrics,
          {200: None}, media="text/plain", problems=(404,), storeless=True),
)  # fmt: skip

__all__ = ["FRESH", "ROUTES", "StoreNumbers"]
