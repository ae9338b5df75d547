"""Workers in one process over a test's database, with activities whose behaviour each test writes, and a list of all calls."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Never

import asyncpg
from attrs import define, evolve, field, frozen

from flowdsl import Deployment, Result, Retry, Success, TimedOut, activity, bind, this_attempt
from flowdsl.definition import Workflow
from flowdsl.journal import Entry
from flowdsl.postgres.store import Store, Summary
from flowdsl.postgres.worker import Tuning, Worker, new_id
from tests.postgres.invariants import check
from tests.postgres.scene import eventually

BRISK = Tuning(lease=10.0, poll=0.05, linger=0.05, grace=3.0, look=0.2)
ENDED = ("succeeded", "failed", "cancelled")


@frozen
class Refused:
    why: str


@activity("act", retry=Retry.constant("20ms", attempts=3, on=(Refused,)), timeout="20s")
def act(name: str) -> Result[str, Refused]: ...


@activity("short", retry=Retry.constant("10ms", attempts=2), timeout="50ms")
def short(name: str) -> Result[str, TimedOut]: ...


@activity("plain")
def plain(name: str) -> Result[str, Never]: ...


@activity("mark", retry=Retry.constant("10ms", attempts=4), transactional=True, timeout="20s")
def mark(name: str) -> Result[str, Never]: ...


Script = Callable[[str], Any]


@define
class Stage:
    """Calls, and what the activities do: `scripts[name]` gives the answer, or an awaitable of it; without one it is `Success(name)`."""

    dsn: str
    watcher: Any
    scripts: dict[str, Script] = field(factory=dict[str, Script])
    calls: list[tuple[str, int, str]] = field(factory=list[tuple[str, int, str]])
    gates: dict[str, asyncio.Future[Any]] = field(factory=dict[str, asyncio.Future[Any]])
    deployments: list[Deployment] = field(factory=list[Deployment])

    # What runs

    def deployment(self, *workflows: Workflow[Any, Any, Any]) -> Deployment:
        bindings = [bind(act, self._acted), bind(short, self._acted), bind(mark, self._marked), bind(plain, self._threaded)]
        self.deployments.append(Deployment(workflows, bindings))
        return self.deployments[-1]

    @asynccontextmanager
    async def worker(
        self, *workflows: Workflow[Any, Any, Any], dsn: str | None = None, deployment: Deployment | None = None, **tuning: Any
    ) -> AsyncIterator[Worker]:
        deployment = deployment or self.deployment(*workflows)
        async with await Store.open(dsn or self.dsn) as store, Worker(deployment, store, evolve(BRISK, **tuning)) as worker:
            yield worker

    @asynccontextmanager
    async def workers(self, count: int, *workflows: Workflow[Any, Any, Any], **tuning: Any) -> AsyncIterator[list[Worker]]:
        deployment = self.deployment(*workflows)
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self.worker(deployment=deployment, **tuning)) for _ in range(count)]

    async def _acted(self, name: str) -> Any:
        self._note(name)
        answer = self.scripts.get(name, Success)(name)
        return await answer if inspect.isawaitable(answer) else answer

    async def _marked(self, name: str) -> Any:
        self._note(name)
        async with this_attempt().transaction() as connection:
            await connection.execute("insert into marks (name, key) values ($1, $2)", name, this_attempt().idempotency_key)
            answer = self.scripts.get(name, Success)(name)
            return await answer if inspect.isawaitable(answer) else answer

    def _threaded(self, name: str) -> Any:
        self._note(name)
        return self.scripts.get(name, Success)(name)

    def _note(self, name: str) -> None:
        attempt = this_attempt()
        self.calls.append((name, attempt.number, attempt.idempotency_key))

    def gate(self, name: str) -> None:
        """That activity waits until `open_gate`."""

        async def wait(_: str) -> Any:
            self.gates[name] = asyncio.get_running_loop().create_future()
            return await self.gates[name]

        self.scripts[name] = wait

    async def at_gate(self, name: str) -> None:
        await eventually(lambda: name in self.gates, f"{name} was called")

    def open_gate(self, name: str, answer: Any = None) -> None:
        gate = self.gates.pop(name)
        if not gate.done():
            gate.set_result(answer or Success(name))

    @property
    def counts(self) -> Counter[str]:
        return Counter(name for name, _, _ in self.calls)

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    # What is stored

    async def row(self, id: str) -> Any:
        return await self.watcher.fetchrow("select * from flowdsl.executions where id = $1", id)

    async def becomes(self, id: str, status: str) -> Any:
        async def is_so() -> bool:
            return (await self.row(id))["status"] == status

        await eventually(is_so, f"{id} is {status}")
        return await self.row(id)

    async def journal(self, id: str) -> list[Entry]:
        async with await Store.open(self.dsn) as store:
            return await store.journal(id)

    async def marks(self) -> list[str]:
        return [row["name"] for row in await self.watcher.fetch("select name from marks order by name")]

    async def signal(self, worker: Worker, to: str, name: str, body: bytes, delivery: str | None = None) -> str:
        return await worker.store.send("default", to, "signal", name, body, delivery or new_id())

    async def cancel(self, worker: Worker, id: str) -> None:
        await worker.store.send("default", id, "cancel", "", b'"asked to"', new_id())

    async def claimed(self, worker: Worker, workflow: Workflow[Any, Any, Any], request: str) -> str:
        """An execution that is the worker's by its row, and of which the worker does not know: nothing can claim it in between."""
        return str(
            await self.watcher.fetchval(
                "insert into flowdsl.executions (id, tenant, workflow, version, request, owner, epoch, wake)"
                " values ($1, 'default', $2, $3, convert_to($4, 'utf8'), $5, 1, null) returning id",
                new_id(),
                workflow.name,
                workflow.version,
                request,
                worker.id,
            )
        )

    async def kill_connections(self, application: str = "flowdsl%") -> int:
        """Ends every connection of that application to this database."""
        found = await self.watcher.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like $1 and datname = current_database()", application
        )
        return len(found)

    async def check(self) -> None:
        """The invariants of the whole store, by all that was deployed."""
        known: dict[str, Any] = {}
        for deployment in self.deployments:
            known |= deployment._workflows
        found = await check(self.watcher, self.deployments[-1]) if self.deployments else []
        assert found == []


@asynccontextmanager
async def stage_at(dsn: str) -> AsyncIterator[Stage]:
    watcher = await asyncpg.connect(dsn)
    await watcher.execute("create table marks (name text not null, key text not null)")
    try:
        yield Stage(dsn, watcher)
    finally:
        watcher.terminate()


__all__ = ["BRISK", "ENDED", "Refused", "Stage", "Summary", "act", "mark", "plain", "short", "stage_at"]
