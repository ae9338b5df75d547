"""What people do to executions of a store: pause, resume, terminate, retry, rewind, fork, what if; dead letters, retention."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal, cast

import asyncpg
from attrs import evolve, frozen

from flowdsl.activation import Stored
from flowdsl.binding import Deployment
from flowdsl.codec import encode_plain
from flowdsl.errors import FlowError, NotFound, StoreError
from flowdsl.flow import Execution
from flowdsl.journal import Entry, Intervention
from flowdsl.operating import CannotRetry, Edits, Plan, Subject, Supposed, edited, forked, position_of, retried, rewound, what_if
from flowdsl.postgres.encryption import entry_of, exit_of, mail_of, operator_of, request_of
from flowdsl.postgres.store import NewStart, Started, Store, Summary
from flowdsl.postgres.worker import new_id

ATTEMPTS = 5
"""How often an intervention is planned anew because the execution moved meanwhile."""
_WINDOW = 2000
"""How many executions retention looks at before it goes on behind them."""
_AT_ONCE = 5000
"""Rows of mail that retention deletes, or keys that it looks at, in one transaction."""
_REPEATED = timedelta(days=7)
"""How long a sender may repeat a delivery."""


@frozen
class Done:
    """An intervention that was carried out: on which executions (children first), and what will be done again."""

    executions: tuple[str, ...]
    dropped: tuple[Entry, ...]


@frozen
class Bulk:
    """What became of many: the ids that were done, and the others with the reason why not."""

    done: tuple[str, ...]
    refused: Mapping[str, str]


@frozen
class _Found:
    subject: Subject
    epoch: int
    status: Stored


class Operator:
    """Interventions in the name of a person, each audited. Those that need the workflow's code are given a deployment."""

    def __init__(self, store: Store, deployment: Deployment | None = None, *, by: str = "", tenant: str = "default") -> None:
        self._store, self._by, self._tenant = store, by, tenant
        self._deployment = deployment

    # Without the code

    async def cancel(self, id: str, reason: str = "asked to") -> str:
        """Asks it to end: finalizers and undos run. Gives `sent`; one that is blocked does so when it is resumed. Raises `NotFound`, `StoreError`."""
        return await self._wish(id, "cancel", reason)

    async def pause(self, id: str, reason: str = "asked to") -> str:
        """Nothing new of it begins: what runs may end and is recorded, then it is blocked until it is resumed."""
        return await self._wish(id, "pause", reason)

    async def terminate(self, id: str, reason: str = "asked to") -> None:
        """Ends it at once, also when it is blocked: no finalizer and no undo runs. Raises `NotFound`, or `StoreError` when it has ended."""
        encryption, own = self._store.encryption, id.lower()
        body = encryption.encrypt(operator_of(self._tenant, own), Intervention("terminate", self._by, reason).encode())
        exit = encryption.encrypt(exit_of(self._tenant, own), b'{"cancelled":{"reason":%s}}' % encode_plain(f"terminated: {reason}"))
        said = await self._said("select flowdsl.terminate($1, $2::uuid, $3, $4, $5)", self._tenant, id, body, exit, self._facts(reason))
        if said == "missing":
            raise NotFound("execution", id)
        if said != "terminated":
            raise StoreError(f"execution {id} has ended already: it is {said}", "Nothing was changed")

    async def start_paused(self, wish: NewStart) -> Started:
        """Starts it blocked: nothing of it begins until it is resumed. Whoever has its key already stays as it is. To repeat it changes nothing."""
        request = self._store.encryption.encrypt(request_of(wish.tenant, wish.id), wish.request)
        query = "select * from flowdsl.start_paused($1::uuid, $2, $3, $4, $5, $6, $7)"
        row = (await self._store.again(query, wish.id, wish.tenant, wish.workflow, wish.version, wish.key, wish.reuse, request))[0]
        return Started(str(row["id"]), row["outcome"], row["status"])

    async def discard(self, ids: Sequence[str], reason: str = "") -> list[str]:
        """Takes dead letters off the list; gives those that were on it."""
        rows = await self._store.again("select flowdsl.discard($1, $2::uuid[], $3)", self._tenant, list(ids), self._facts(reason))
        return [str(row[0]) for row in rows]

    async def dead(self, *, workflow: str | None = None, limit: int = 100, after: tuple[datetime, str] | None = None) -> list[Summary]:
        """Executions that failed or are blocked, and that nobody retried or discarded; newest first, behind the one of that start and id."""
        return await self._store.dead(self._tenant, workflow, limit, after=after)

    async def prune(
        self,
        older_than: timedelta,
        *,
        workflow: str | None = None,
        statuses: Sequence[Literal["succeeded", "failed", "cancelled"]] = ("succeeded", "failed", "cancelled"),
        batch: int = 500,
    ) -> int:
        """Deletes executions that ended longer ago than that, each whole or not at all; gives their number. Killed half way: call it again."""
        before = cast("datetime", (await self._store.again("select clock_timestamp() - $1::interval", older_than))[0][0])
        total, since = 0, datetime.min.replace(tzinfo=UTC)
        while since is not None:
            # Window by window, so that what stays is looked at once, however much of it there is.
            until = await self._said(
                "select (select x.started from flowdsl.executions x where x.tenant = $1 and x.started > $2 and x.started < $3"
                " order by x.started offset $4 limit 1)",
                self._tenant, since, before, _WINDOW,
            )  # fmt: skip
            query = "select flowdsl.prune($1, $2, $3::text[], $4, $5, $6, $7)"
            arguments = (self._tenant, workflow, list(statuses), before, batch, since, until or before)
            while gone := int(await self._said(query, *arguments)):
                total += gone
            since = until
        await self._prune_mail(max(older_than, _REPEATED))
        return total

    async def _prune_mail(self, older_than: timedelta) -> None:
        while int(await self._said("select flowdsl.prune_mail(clock_timestamp() - $1::interval, $2)", older_than, _AT_ONCE)):
            pass
        after: Any = ("", "", "")
        while after is not None:
            rows = await self._store.again("select * from flowdsl.prune_aliases($1, $2, $3, $4)", *after, _AT_ONCE)
            after = (rows[0]["tenant"], rows[0]["name"], rows[0]["key"]) if rows else None

    # With the code

    async def resume(self, id: str, reason: str = "") -> None:
        """Lets a blocked execution go on; undos that had failed run again. Raises `StoreError` when it is not blocked, and `NotFound`."""
        said = await self._said("select flowdsl.resume($1, $2::uuid, $3)", self._tenant, id, self._facts(reason))
        if said == "undos":
            await self.retry(id, reason)
        elif said == "missing":
            raise NotFound("execution", id)
        elif said != "resumed":
            raise StoreError(f"execution {id} is not blocked: it is {said}", "Nothing was changed")
        self._store.hints.tell(self._tenant, "", id)

    async def retry(self, id: str, reason: str = "") -> Done:
        """Does again what made it fail, be cancelled or have failing undos, and first the same for the children that it waits for.

        What succeeded and still stands does not run again. Raises `CannotRetry` when it has not failed or its own code decided the end.
        """
        done: list[str] = []
        plan = await self._intervene(id, partial(retried, by=self._by, reason=reason), "RETRIED", ("failed", "cancelled", "blocked"), done)
        return Done(tuple(done), plan.dropped)

    async def rewind(self, id: str, to: str | int, reason: str = "") -> Done:
        """Takes it back to just before a step was first answered, or to a position: from there on all is done anew, under new idempotency keys."""
        everything = ("running", "suspended", "blocked", "succeeded", "failed", "cancelled")
        plan = await self._intervene(id, partial(rewound, to=to, by=self._by, reason=reason), "REWOUND", everything, None)
        return Done((id,), plan.dropped)

    async def fork(self, id: str, to: str | int, *, edits: Edits | None = None, paused: bool = False, reason: str = "") -> str:
        """A new execution that goes on from where that one stood before a step, with these steps' exits replaced; gives its id.

        It has no key and no parent, and idempotency keys of its own. `paused`: it begins blocked, to be looked at first.
        """
        found = await self._found(id)
        subject = found.subject
        prefix = list(subject.journal[: position_of(subject.journal, to)])
        changed = [after for before, after in zip(prefix, edited(subject, prefix, edits or {}), strict=True) if before is not after]
        entry = forked(subject, prefix, by=self._by, reason=reason or f"from {id}")
        new, encryption = new_id(), self._store.encryption
        request = None
        if encryption.on:  # what is encrypted is bound to its execution: nothing of it can be copied
            changed = edited(subject, prefix, edits or {})
            changed = [
                evolve(one, body=encryption.encrypt(entry_of(self._tenant, new, one.position, one.kind, one.step), one.body)) for one in changed
            ]
            request = encryption.encrypt(request_of(self._tenant, new), subject.request)
        await self._said(
            "select flowdsl.fork($1, $2::uuid, $3::uuid, $4, $5, $6, $7::int[], $8::smallint[], $9::bytea[], $10, $11, $12)",
            self._tenant, id, new, len(prefix), encryption.encrypt(operator_of(self._tenant, new), entry.body), _live(entry.live or ()),
            [one.position for one in changed], [one.kind for one in changed], [one.body for one in changed], paused,
            self._facts(reason or f"from {id} before position {len(prefix)}"), request,
        )  # fmt: skip
        self._store.hints.tell(self._tenant, "", new)
        return new

    async def what_if(self, id: str, edits: Edits) -> Supposed:
        """Where it would go if these steps had ended otherwise. Nothing is called, nothing is changed."""
        return what_if((await self._found(id)).subject, edits)

    async def retry_dead(self, *, workflow: str | None = None, limit: int = 100, reason: str = "") -> Bulk:
        """Retries dead letters: failed ones are retried, blocked ones resumed. Those that cannot be are given with the reason."""
        done: list[str] = []
        refused: dict[str, str] = {}
        for one in await self.dead(workflow=workflow, limit=limit):
            try:
                if one.status == "blocked":
                    await self.resume(one.id, reason)
                    done.append(one.id)
                else:
                    done += (await self.retry(one.id, reason)).executions
            except FlowError as error:
                refused[one.id] = str(error)
        return Bulk(tuple(dict.fromkeys(done)), refused)

    # Inside

    async def _wish(self, id: str, kind: str, reason: str) -> str:
        said = await self._store.send(self._tenant, id, kind, kind, encode_plain(reason), new_id())
        if said == "unmatched":
            raise NotFound("execution", id)
        if said == "ended":
            raise StoreError(f"execution {id} has ended already", "Nothing was changed")
        await self._store.audit(self._tenant, id, f"ASKED_TO_{kind.upper()}", self._facts(reason))
        return said

    async def _intervene(self, id: str, planned: Callable[[Subject], Plan], event: str, allowed: Sequence[str], done: list[str] | None) -> Plan:
        """Plans from what the store holds and carries it out if it still holds that; else once more."""
        for attempt in range(ATTEMPTS):
            found = await self._found(id)
            if found.status not in allowed:
                raise CannotRetry(f"execution {id} has not failed: its state is {found.status}. Nothing was changed")
            plan = planned(found.subject)
            if done is not None:
                await self._retry_children(plan, event, allowed, done, planned)
            keys, encryption = await self._store.correlation_keys(id), self._store.encryption
            mails = plan.mails(keys)
            said = await self._said(
                "select flowdsl.intervene($1, $2::uuid, $3, $4, $5::text[], $6, $7, $8::text[], $9::text[], $10::bytea[], $11::uuid[], $12, $13)",
                self._tenant, id, found.epoch, len(found.subject.journal), list(allowed),
                encryption.encrypt(operator_of(self._tenant, id.lower()), plan.what.encode()), _live(plan.live),
                [name for name, _, _ in mails], [key for _, key, _ in mails],
                [encryption.encrypt(mail_of(self._tenant, key or id, "signal", name), body) for name, key, body in mails], list(plan.started), event,
                self._facts(plan.what.reason),
            )  # fmt: skip
            if said == "done":
                self._store.hints.tell(self._tenant, "", id)
                if done is not None:
                    done.append(id)
                return plan
            await asyncio.sleep(0.05 * attempt)
        raise StoreError(f"execution {id} moves on all the time", "Pause it first (flowdsl pause), then try again")

    async def _retry_children(self, plan: Plan, event: str, allowed: Sequence[str], done: list[str], planned: Callable[[Subject], Plan]) -> None:
        for child in await self._store.ended_badly(plan.joins):
            if child not in done:
                await self._intervene(child, planned, event, allowed, done)

    async def _found(self, id: str) -> _Found:
        """Raises `NotFound` for another tenant's too."""
        if self._deployment is None:
            raise FlowError("this takes the workflow's code: name the deployment (module:deployment)")
        one = await self._store.row(self._tenant, id)
        execution = Execution(id, one["tenant"], one["workflow"], one["key"], None if one["parent"] is None else str(one["parent"]), one["started"])
        definitions = self._deployment.definitions(one["workflow"], one["version"])
        subject = Subject(execution, one["request"], await self._store.journal(id), definitions)
        return _Found(subject, one["epoch"], one["status"])

    async def _said(self, query: str, *arguments: Any) -> Any:
        try:
            return (await self._store.again(query, *arguments))[0][0]
        except asyncpg.DataError as error:
            raise StoreError(f"Postgres refuses a value: {error}", "An execution's id looks like 01234567-89ab-7def-8123-456789abcdef") from error

    def _facts(self, reason: str) -> bytes:
        return encode_plain({"by": self._by, "reason": reason})


def _live(ranges: Sequence[tuple[int, int]]) -> str:
    return "{" + ",".join(f"[{low},{high})" for low, high in ranges) + "}"


__all__ = ["Bulk", "Done", "Operator"]
