"""The front: starts executions, sends signals, cancels, and writes down what was acknowledged. It is killed too, and goes on from its log."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import define

from flowdsl.errors import FlowError
from flowdsl.journal import codecs_of
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.store import NewStart, Store, lost
from flowdsl.postgres.worker import new_id
from flowdsl.testing.chaos.api import Api, Unanswered
from flowdsl.testing.chaos.log import Log, read
from flowdsl.testing.chaos.orders import REASON, Errand, Order, by_http, correlation, drawn, errands, token
from flowdsl.testing.chaos.system import deployment_here
from flowdsl.testing.chaos.worker import begin_logs, die_with_our_maker

FILE = "front.jsonl"
deployment = deployment_here()
ENDED = ("succeeded", "failed", "cancelled")


@define
class Front:
    """Each errand is begun, and then acknowledged or repeated; an order's errands go one after another."""

    seed: int
    store: Store
    log: Log
    acknowledged: dict[str, str]
    """What was said to each call; a start is answered by the id of its execution."""
    operator: Operator
    api: Api | None = None
    """The service, if there is one: it is asked for every second order."""
    asking: int = 0

    async def serve(self, order: Order, at: float) -> None:
        await asyncio.sleep(at - time.time())
        for errand in errands(self.seed, order):
            if f"{order.index}/{errand.name}" not in self.acknowledged:
                await asyncio.sleep(errand.wait)
            calls = [errand.name, f"{errand.name}/again"][: 1 + errand.twice]
            if errand.call == "start":  # two starters of one key
                await asyncio.gather(*(self._until_acknowledged(order, errand, call) for call in calls))
            else:
                for call in calls:
                    await self._until_acknowledged(order, errand, call)

    async def _until_acknowledged(self, order: Order, errand: Errand, name: str) -> None:
        call, pause = f"{order.index}/{name}", 0.05
        while call not in self.acknowledged:
            try:
                self.log.note({"call": call, "state": "begun", "at": time.time()})
                said, more = await self._do(order, errand)
            except Exception as error:  # what became of it is unknown: it is repeated, under the same key or delivery id
                expected = (
                    lost(error) or isinstance(error, (FlowError, Unanswered)) or getattr(error, "sqlstate", None) in ("55P03", "40P01", "40001")
                )
                self.log.note({"call": call, "state": "unknown", "error": f"{type(error).__name__}: {error}", "expected": expected})
                await asyncio.sleep(pause)
                pause = min(2 * pause, 1.0)
                continue
            await self.log.add({"call": call, "state": "ok", "said": said, "at": time.time(), **more})
            self.acknowledged[call] = said

    async def _do(self, order: Order, errand: Errand) -> tuple[str, dict[str, Any]]:
        """What was said, and what else is to be kept of it."""
        api = self.api if by_http(self.seed, order) else None
        if errand.call == "start" and api is not None:
            workflow = deployment.workflow(f"chaos.{order.kind}")
            with self._asking():
                id, new = await api.start(workflow.name, order, codecs_of(workflow).request.encode(order))
            return id, {"new": new}
        if api is not None and errand.call in ("signal", "letter", "cancel"):
            with self._asking():
                return await self._ask(api, order, errand), {}
        return await self._tell(order, errand), {}

    async def _ask(self, api: Api, order: Order, errand: Errand) -> str:
        here, delivery = self.acknowledged.get(f"{order.index}/start", ""), f"{order.index}/{errand.name}"
        if errand.call == "cancel":
            return await api.cancel(here)
        payload = {"token": token(order.index, errand.number), "value": errand.number}
        if errand.call == "signal":
            return await api.signal(here, "chaos-news", payload, delivery)
        return await api.letter(correlation(order.index), "chaos-news", payload, delivery)

    @contextmanager
    def _asking(self) -> Generator[None]:
        """One more call waits for the service: whoever began us is told, on stdout."""
        self.asking += 1
        self._say()
        try:
            yield
        finally:
            self.asking -= 1
            self._say()

    def _say(self) -> None:
        sys.stdout.write(f"{self.asking}\n")
        sys.stdout.flush()

    async def _tell(self, order: Order, errand: Errand) -> str:
        if errand.call == "start":
            return await self._start(order)
        here = self.acknowledged.get(f"{order.index}/start", "")
        if errand.call in ("pause", "resume", "terminate", "retry"):
            return await self._operate(errand.call, here)
        delivery = f"{order.index}/{errand.name}"
        if errand.call == "cancel":
            return await self.store.send("default", here, "cancel", "", json.dumps(REASON).encode(), delivery)
        body = json.dumps({"token": token(order.index, errand.number), "value": errand.number}, separators=(",", ":")).encode()
        to = here if errand.call == "signal" else correlation(order.index)
        return await self.store.send("default", to, "signal", "chaos-news", body, delivery)

    async def _operate(self, what: str, id: str) -> str:
        """Does it, or finds that it was done or comes too late; a resumption waits for the pause, a retry for the failure."""
        while True:
            status = (await self.store.summary(id)).status
            if status in ENDED and not (what == "retry" and status == "failed"):
                return status
            try:
                match what:
                    case "pause":
                        return await self.operator.pause(id, REASON)
                    case "terminate":
                        await self.operator.terminate(id, REASON)
                        return "terminated"
                    case "resume" if status == "blocked":
                        await self.operator.resume(id, REASON)
                        return "resumed"
                    case "retry" if status == "failed":
                        await self.operator.retry(id, REASON)
                    case _:
                        pass
            except FlowError:  # it moved between our look and our word
                pass
            await asyncio.sleep(0.2)

    async def _start(self, order: Order) -> str:
        workflow = deployment.workflow(f"chaos.{order.kind}")
        key, request = workflow.key_of(order), codecs_of(workflow).request.encode(order)
        wish = NewStart(new_id(), "default", workflow.name, workflow.version, "", key, workflow.reuse, request)
        return (await self.store.start([wish]))[0].id


async def opened(dsn: str) -> Store:
    while True:
        try:
            return await Store.open(dsn, size=6)
        except FlowError:
            await asyncio.sleep(0.2)


async def run(folder: Path, seed: int, count: int, began: float, span: float, port: int) -> None:
    """Serves all orders, spread over `span` seconds from `began` on."""
    said = {record["call"]: record["said"] for record in read(folder / FILE) if record["state"] == "ok"}
    store = await opened(os.environ["FLOWDSL_DATABASE_URL"])
    front = Front(seed, store, Log(folder / FILE), said, Operator(store, deployment, by="front"), Api(port) if port else None)
    async with asyncio.TaskGroup() as group:
        for order in drawn(seed, count):
            group.create_task(front.serve(order, began + span * order.index / count))
    await store.close()


if __name__ == "__main__":
    begin_logs()
    threading.Thread(target=die_with_our_maker, daemon=True).start()
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6])))
