"""What comes into a worker's memory: executions that it claims, their journals, their mail."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, cast

import structlog

from flowdsl.activation import Activation, Mail
from flowdsl.errors import FlowError, KeyMissing, NotGenuine
from flowdsl.flow import Execution
from flowdsl.journal import Entry
from flowdsl.postgres.encryption import request_of
from flowdsl.postgres.store import Claimed, claimed, trace
from flowdsl.replay import Resident

if TYPE_CHECKING:
    from flowdsl.postgres.worker import Worker

log = structlog.get_logger("flowdsl")


AT_ONCE = 64
"""Executions that are folded before others in this process get their turn."""
MORE = 8
"""Times `Tuning.claim`: the most that a claim asks for while more is due than it brings."""


class Intake:
    """Fills `Worker.residents`. Everything here may be repeated, and is, at each look around."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._after = ""
        """The tenant that was claimed from last: where the next claim goes on, if it cannot look at all tenants."""
        self.mailed: dict[str, None] = {}
        """Residents that have mail, as far as somebody said so."""
        self.asked = 0
        """Executions that a claim under way may bring."""
        self.coming: dict[str, Claimed] = {}
        """Those that were claimed and are on their way into memory while the next claim is under way."""
        self._much = worker.tuning.claim
        """How many the next claim asks for: twice as many as the last while more is due, for each claim reads past what was claimed before."""
        self._told: dict[str, dict[str, bytes]] = {}
        """What earlier attempts have told, on its way to their residents."""

    async def claim(self) -> bool:
        """Takes what is due. True when there may be more at once."""
        worker = self._worker
        room = min(self._much, worker.tuning.capacity - len(worker.residents) - len(worker.starts.beginning) - len(self.coming))
        if room <= 0 or worker.outdated or worker.committer.full or worker.spent.is_set():
            return False
        self.asked = room
        try:
            return await self._claimed(room)
        finally:
            self.asked = 0

    async def _claimed(self, room: int) -> bool:
        worker = self._worker
        suspects = (*(resident.suspect for resident in worker.residents.values()), *(one.deaths > 0 for one in self.coming.values()))
        names = list(worker.deployment.names)
        held = Counter(resident.activation.execution.tenant for resident in worker.residents.values())
        held.update(one.tenant for one in self.coming.values())
        rows = await worker.store.pool.fetch(
            "select * from flowdsl.claim($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            worker.id,
            room,
            names,
            not any(suspects),
            [worker.deployment.workflow(name).priority for name in names],
            list(held),
            list(held.values()),
            self._after,
            [f"{name}@{version}" for name, version in worker.deployment.versions],
        )
        found = [claimed(row) for row in rows]
        if found and worker.watch is not None:
            worker.watch.claimed(found)
        self._after = found[-1].tenant if found else ""
        for one in found:
            if one.blocked:
                log.error("execution.blocked", execution=one.id, cause="three workers died while they had it")
                worker.ends.tell(one.id)
        more = len(rows) >= room
        self._much = min(2 * room, MORE * worker.tuning.claim) if more else worker.tuning.claim
        due = [one for one in found if not one.blocked]
        if more:
            self.coming |= {one.id: one for one in due}
            worker.spawn(self._taken(due))
        else:
            await self.take(due)
        return more

    async def _taken(self, found: Sequence[Claimed]) -> None:
        """Takes them while the next claim is under way."""
        try:
            await self.take(found)
        finally:
            for one in found:
                self.coming.pop(one.id, None)
            self._worker.kick()

    async def take(self, found: Sequence[Claimed]) -> None:
        """Goes on with those that are warm; loads and folds the others. What it comes to after the worker has begun to stop is left as it is."""
        worker, owner = self._worker, self._worker.id
        warm = [(one, kept) for one in found if (kept := self._still_warm(one)) is not None]
        known = {one.id for one, _ in warm}
        cold = [one for one in found if one.id not in known]
        old = [one.id for one in cold if one.epoch > 1]
        posted = [one.id for one in cold if one.mail] + [one.id for one, (activation, _) in warm if one.mail > activation.seen]
        journals = await worker.store.load(old) if old else {}
        running = old + [one.id for one, (activation, _) in warm if activation.performing]
        if running:
            self._told |= await worker.heartbeats.load(running)
        mails = await worker.store.mails(posted) if posted else {}
        for one, (activation, weight) in warm:
            opened = await self._opened(one.tenant, one.id, one.epoch, mails.get(one.id, []))
            if opened is not None and worker.takes(owner):
                self._go_on(one, activation, weight, opened)
        for number, one in enumerate(cold, 1):
            if worker.takes(owner):
                await self._fold(one, journals.get(one.id, []), mails.get(one.id, []))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)

    def _still_warm(self, one: Claimed) -> tuple[Activation, int] | None:
        if one.epoch <= 1:
            return None
        kept = self._worker.warm.take(one.id, one.epoch)
        return kept if kept is not None and not one.taken_over and kept[0].execution == _execution(one) else None

    def _go_on(self, one: Claimed, activation: Activation, weight: int, mails: Sequence[Mail]) -> None:
        resident = self._resident(one, activation, weight)
        resident.deliver(mails, one.mail)

    async def _fold(self, one: Claimed, entries: Sequence[Entry], mails: Sequence[Mail]) -> None:
        worker = self._worker
        known = worker.residents.get(one.id)
        if known is not None:
            known.drop()
        try:
            encryption = worker.store.encryption
            request = encryption.decrypt(request_of(one.tenant, one.id), one.request)
            entries, mails = encryption.entries(one.tenant, one.id, entries), encryption.mails(one.tenant, one.id, mails)
            deployment = worker.deployment
            workflow, definitions = deployment.workflow(one.workflow, one.version), deployment.definitions(one.workflow, one.version)
            activation = Activation(_execution(one), workflow, request, definitions, deployment.limits, doubt=worker.doubt)
            activation.begin(entries, mails, worker.upper(), taken_over=one.taken_over)
        except KeyMissing as error:
            await worker.put_off(one.id, one.epoch, error)
            return
        except Exception as error:  # Divergence, Undecodable, NotFound; whatever it is, the others that were claimed must not suffer from it
            if not isinstance(error, FlowError):
                log.error("execution.broken", execution=one.id, traceback=trace(error))
            await worker.block(one.id, one.epoch, cause_of(error))
            return
        activation.seen = max(activation.seen, one.mail)
        if one.taken_over:
            log.info("execution.taken_over", execution=one.id, workflow=one.workflow, entries=len(entries))
        self._resident(one, activation, len(one.request) + sum(len(entry.body) for entry in entries)).go()

    def _resident(self, one: Claimed, activation: Activation, weight: int) -> Resident:
        worker = self._worker
        known = worker.residents.get(one.id)
        if known is not None:
            known.drop()
        resident = Resident(worker, activation, one.epoch, parent=one.parent, scope=one.scope, suspect=one.deaths > 0)
        resident.weight = weight
        resident.heartbeats = self._told.pop(one.id, {})
        self.coming.pop(one.id, None)
        worker.residents[one.id] = resident
        if worker.spent.is_set():  # it became so while the claim was under way
            resident.leave()
        return resident

    async def fetch_mailed(self) -> None:
        mailed, self.mailed = self.mailed, {}
        try:
            await self.fetch_mail(mailed)
        except BaseException:
            self.mailed |= mailed
            raise

    async def fetch_mail(self, ids: Collection[str], accepted: Mapping[str, int] | None = None) -> None:
        """Delivers what is in the mailboxes; `accepted`: how many mails were ever, where that is known."""
        worker = self._worker
        here = [id for id in ids if id in worker.residents]
        if not here:
            return
        for id, mails in (await worker.store.mails(here)).items():
            resident = worker.residents.get(id)
            opened = None if resident is None else await self._opened(resident.activation.execution.tenant, id, resident.epoch, mails)
            if resident is not None and opened is not None:
                resident.deliver(opened, accepted.get(id, 0) if accepted else 0)

    async def _opened(self, tenant: str, id: str, epoch: int, mails: Sequence[Mail]) -> Sequence[Mail] | None:
        """Mail as it was sent. None: it cannot be read here, and what is to become of its execution is seen to."""
        try:
            return self._worker.store.encryption.mails(tenant, id, mails)
        except KeyMissing as error:
            await self._worker.put_off(id, epoch, error)
        except NotGenuine as error:
            known = self._worker.residents.get(id)
            if known is not None:
                known.drop()
            await self._worker.block(id, epoch, str(error))
        return None

    async def look_around(self) -> datetime | None:
        """The net under every hint: gone workers, mail for what is here, and what the store says is ours and memory does not.

        Gives when something is due next.
        """
        worker = self._worker
        seen = (await worker.store.again("select * from flowdsl.look($1)", worker.id))[0]
        worker.store.hints.alone = not seen["others"]
        worker.met(seen["needs"], int(seen["written"]))
        if seen["gone"]:
            worker.kick()
        before = set(worker.residents)
        rows = await worker.store.again("select x.id, x.mail from flowdsl.executions x where x.owner = $1", worker.id)
        ours = {str(row["id"]): row["mail"] for row in rows}
        here = {id: resident for id in ours if (resident := worker.residents.get(id)) is not None}
        await self.fetch_mail([id for id, resident in here.items() if ours[id] > resident.activation.seen], ours)
        expected = before | worker.starts.beginning | self.coming.keys()
        missing = [id for id in ours if id not in here and id not in expected and not worker.committer.has(id)]
        if missing:
            for id in missing:
                worker.warm.forget(id)
            await self.take(await worker.store.reclaim(worker.id, missing))
        for resident in here.values():
            if resident.suspect and asyncio.get_running_loop().time() - resident.since > worker.tuning.lease:
                resident.acquit()
        worker.ends.look(worker.residents)
        return cast("datetime | None", seen["next"])


def _execution(one: Claimed) -> Execution:
    return Execution(one.id, one.tenant, one.workflow, one.key, one.parent, one.started)


def cause_of(error: BaseException) -> str:
    return str(error) if isinstance(error, FlowError) else f"{type(error).__name__}: {error}"
