"""The Postgres interpreter, as a world: a process that dies leaves its rows, its lease and nothing else; another one takes over."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import asyncpg
from attrs import define, field

from flowdsl import Activity, Deployment, Workflow
from flowdsl.activation import Turn
from flowdsl.codec import codec
from flowdsl.errors import Rejected
from flowdsl.flow import Exit, Signal
from flowdsl.journal import Entry, codecs_of, decode_exit
from flowdsl.operating import public_status
from flowdsl.postgres.committer import Commit, Fate
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.store import NewStart, Store
from flowdsl.postgres.worker import Tuning, Worker, new_id
from flowdsl.replay import Resident, Transaction
from tests.conformance.world import SOON, Row, World
from tests.postgres.invariants import check, of_journal
from tests.postgres.scene import eventually

BRISK = Tuning(lease=5.0, poll=0.05, linger=0.02, grace=0.3, look=0.5, transactions=2, threads=2, warm=0)
PATIENCE = 60.0
ENDED = ("succeeded", "failed", "cancelled")


class Mortal(Worker):
    """Dies as a process does that is killed: what is under way at the server goes on there, nothing else of it does."""

    def __init__(self, world: OnPostgres, deployment: Deployment, store: Store) -> None:
        super().__init__(deployment, store, BRISK)
        self.world, self.dead = world, False

    def strikes(self, when: str, entries: int) -> bool:
        doom = self.world.doom
        return not self.dead and doom is not None and doom.strikes(when, entries)

    def submit(self, resident: Resident, turn: Turn, state: str | None) -> None:
        if self.strikes("before", len(turn.entries)):
            self.die()
        if not self.dead:
            super().submit(resident, turn, state)

    def _told(self, commit: Commit, fate: Fate) -> None:
        if fate in ("done", "awake", "again") and self.strikes("after", len(commit.turn.entries)):
            self.die()
        if not self.dead:
            super()._told(commit, fate)

    async def begin_transaction(self, resident: Resident) -> Transaction:
        return _Cut(self, await super().begin_transaction(resident))

    def die(self) -> None:
        self.dead = self._stopping = True
        for resident in list(self.residents.values()):
            resident.drop()
        for task in (self._poller, self._lookout, self.committer._task, self.budgets._task, self.notes._task, self.heartbeats._task, *self._tasks):
            if task is not None:
                task.cancel()
        self.heart.stop()
        if self.committer._connection is not None:
            self.committer._connection.terminate()
        self.store.pool.terminate()
        self._transactions.terminate()
        self.world.died(self)


class _Cut:
    """A transaction of a process that may die just before or just after its commit."""

    def __init__(self, worker: Mortal, transaction: Transaction) -> None:
        self._worker, self._transaction = worker, transaction
        self.connection = transaction.connection

    async def append(self, entry: Entry) -> bool:
        if self._worker.strikes("before", 1):
            self._worker.die()
            return False
        recorded = await self._transaction.append(entry)
        if recorded and self._worker.strikes("after", 1):
            self._worker.die()
            return False
        return recorded

    async def rollback(self) -> None:
        if not self._worker.dead:
            await self._transaction.rollback()


@define(slots=False)
class OnPostgres(World):
    kind: ClassVar[str] = "postgres"
    dsn: str = ""
    watcher: Any = None
    store: Any = None
    worker: Mortal | None = None
    deploys: int = 0
    reviving: asyncio.Task[None] | None = None
    leftovers: list[Mortal] = field(factory=list[Mortal])

    async def open(self) -> None:
        self.watcher = await asyncpg.connect(self.dsn)
        await self._clear()
        self.store = await Store.open(self.dsn, size=3)

    async def _clear(self) -> None:
        """Nobody else is connected, and no row is left."""
        await self.watcher.execute(
            "create table if not exists marks (name text not null);"
            " select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        )
        tables = await self.watcher.fetch("select schemaname || '.' || tablename from pg_tables where schemaname = 'flowdsl' or tablename = 'marks'")
        # The rows of the audit log are never deleted: a trigger holds that, which is not asked here.
        await self.watcher.execute(
            "set session_replication_role = replica; " + "".join(f"delete from {name};" for (name,) in tables if "migrations" not in name)
        )
        await self.watcher.execute("reset session_replication_role")

    async def close(self) -> None:
        if self.reviving is not None:
            await self.reviving
        await self._stop()
        await self.store.close()
        self.watcher.terminate()
        left = [task for worker in self.leftovers for task in worker._tasks]
        for task in left:  # begun while it died
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # The process

    async def deploy(self, *workflows: Workflow[Any, Any, Any]) -> None:
        await self._stop()
        self.deploys += 1
        self.made(*workflows)
        await self._begin()

    async def _begin(self) -> None:
        store = await Store.open(self.dsn, size=3)
        self.worker = Mortal(self, self.deployment, store)
        await self.worker.begin()

    async def _stop(self) -> None:
        if self.reviving is not None:
            await self.reviving
        if self.worker is not None:
            worker, self.worker = self.worker, None
            await worker.stop()
            await worker.store.close()

    def died(self, worker: Mortal) -> None:
        self.deaths += 1
        self.leftovers.append(worker)
        self.reviving = asyncio.get_running_loop().create_task(self._revive(worker))

    async def _revive(self, dead: Mortal) -> None:
        """Its lease runs out, and another process begins."""
        await self.store.pool.execute("update flowdsl.workers set beat = clock_timestamp() - interval '1 hour' where id = $1", dead.id)
        await self._begin()

    async def crash(self) -> None:
        assert self.worker is not None
        self.worker.die()
        assert self.reviving is not None
        await self.reviving

    # Acting

    async def start(self, workflow: Workflow[Any, Any, Any], request: Any, *, key: str | None = None, tenant: str = "default") -> str:
        chosen = key if key is not None else workflow.key_of(request) if workflow.key is not None else None
        body = codecs_of(workflow).request.encode(request)
        [started] = await self.store.start([NewStart(new_id(), tenant, workflow.name, workflow.version, "", chosen, workflow.reuse, body)])
        if started.outcome == "rejected":
            raise Rejected(workflow.name, chosen or "", started.id)
        self._kick()
        return str(started.id)

    def _kick(self) -> None:
        if self.worker is not None:
            self.worker.kick()

    async def signal(self, to: str, signal: Signal[Any], payload: Any, *, delivery: str | None = None, tenant: str = "default") -> None:
        await self.store.send(tenant, to, "signal", signal.name, codec(signal.payload).encode(payload), delivery or new_id())
        self._kick()

    @property
    def operator(self) -> Operator:
        return Operator(self.store, self.deployment, by="ann")

    async def cancel(self, id: str, reason: str = "asked to") -> None:
        await self.operator.cancel(id, reason)
        self._kick()

    async def pause(self, id: str, reason: str = "asked to") -> None:
        await self.operator.pause(id, reason)
        self._kick()

    async def resume(self, id: str) -> None:
        await self.operator.resume(id)
        self._kick()

    async def terminate(self, id: str, reason: str = "asked to") -> None:
        await self.operator.terminate(id, reason)
        self._kick()

    async def retry(self, id: str) -> None:
        await self.operator.retry(id)
        self._kick()

    async def rewind(self, id: str, to: str | int) -> None:
        await self.operator.rewind(id, to)
        self._kick()

    async def fork(self, id: str, to: str | int, edits: Any = None) -> str:
        new = await self.operator.fork(id, to, edits=edits)
        self._kick()
        return new

    # Waiting

    async def ended(self, id: str) -> str:
        async def is_so() -> bool:
            return (await self._stored(id))["status"] in (*ENDED, "blocked")

        await eventually(is_so, f"{id} has ended", PATIENCE)
        await eventually(lambda: self._told(id), f"its process knows that {id} has ended", PATIENCE)
        return str((await self._stored(id))["status"])

    def _told(self, id: str) -> bool:
        """Whether its process has heard of all that is recorded of it: one that dies just after an entry is dead then."""
        return self.worker is None or self.worker.dead or not self.worker.committer.has(id)

    async def settle(self) -> None:
        query = (
            "select not exists (select 1 from flowdsl.executions where status = 'running'"
            " or (status = 'suspended' and wake <= clock_timestamp() + make_interval(secs => $1)))"
        )

        async def at_rest() -> bool:
            return bool(await self.store.pool.fetchval(query, SOON))

        await eventually(at_rest, "everything has ended or waits", PATIENCE)

    async def heard(self, id: str) -> None:
        async def so() -> bool:
            return not await self.store.pool.fetchval("select exists (select 1 from flowdsl.mailbox where execution = $1)", id)

        await eventually(so, f"{id} has taken its mail", PATIENCE)
        await eventually(lambda: self._told(id), f"its process knows that {id} has taken it", PATIENCE)

    async def called(self, contract: Activity[Any, Any, Any], times: int = 1) -> None:
        await eventually(lambda: self.count(contract) >= times, f"{contract.name} was called {times} times", PATIENCE)

    # Looking

    async def _stored(self, id: str) -> Any:
        return await self.store.pool.fetchrow("select * from flowdsl.executions where id = $1", id)

    async def row(self, id: str) -> Row:
        return _row(await self._stored(id))

    async def stored_exit(self, id: str) -> Exit[Any, Any] | None:
        one = await self._stored(id)
        return None if one["exit"] is None else decode_exit(self.deployment.workflow(one["workflow"], one["version"]), one["exit"])

    async def cause(self, id: str) -> str | None:
        found: str | None = (await self._stored(id))["cause"]
        return found

    async def journal(self, id: str) -> list[Entry]:
        entries: list[Entry] = await self.store.journal(id)
        return entries

    async def children(self, id: str) -> list[Row]:
        rows = await self.store.pool.fetch("select * from flowdsl.executions where parent = $1 order by started, id", id)
        return [_row(one) for one in rows]

    async def mails(self, id: str) -> list[str]:
        rows = await self.store.pool.fetch("select name from flowdsl.mailbox where execution = $1 and kind = 'signal' order by seq", id)
        return [one["name"] for one in rows]

    async def unmatched(self) -> list[tuple[str, str]]:
        return [(one["name"], one["key"]) for one in await self.store.pool.fetch("select name, key from flowdsl.unmatched order by 1, 2")]

    async def marks(self) -> list[str]:
        return [one["name"] for one in await self.store.pool.fetch("select name from marks order by 1")]

    async def check(self) -> None:
        await super().check()
        if self.deploys > 1:  # what has ended was recorded by other code: it is not folded again
            rows = await self.watcher.fetch("select * from flowdsl.journal order by execution, position")
            found = [what for id in {row["execution"] for row in rows} for what in of_journal([row for row in rows if row["execution"] == id])]
        else:
            found = await check(self.watcher, self.deployment)
        assert found == []


def _row(one: Any) -> Row:
    return Row(str(one["id"]), one["workflow"], one["key"], public_status(one["status"]), None if one["parent"] is None else str(one["parent"]))
