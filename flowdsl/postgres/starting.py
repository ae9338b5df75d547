"""Starts: those that come together go out together, and what nobody else can have begins where it was asked for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from attrs import evolve

from flowdsl.chance import new_id as new_id
from flowdsl.postgres.store import NewStart, Started, refuses

if TYPE_CHECKING:
    from flowdsl.postgres.worker import Worker


AT_ONCE = 1000
"""Starts in one statement."""


class Starts:
    """The starts of one worker's process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._wishes: list[tuple[NewStart, asyncio.Future[Started]]] = []
        self.beginning: set[str] = set()
        """Those that the store may say are ours before memory knows them."""

    async def one(self, wish: NewStart) -> Started:
        """What became of a wish, once it is durable."""
        told: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
        self._wishes.append((wish, told))
        if len(self._wishes) == 1:
            self._worker.spawn(self._all())
        return await told

    async def _all(self) -> None:
        await asyncio.sleep(0)
        wishes, self._wishes = self._wishes, []
        for first in range(0, len(wishes), AT_ONCE):
            await self._these(wishes[first : first + AT_ONCE])

    async def _these(self, wishes: list[tuple[NewStart, asyncio.Future[Started]]]) -> None:
        try:
            first = {wish.id: wish for wish, _ in reversed(wishes)}  # the same request may come twice in a moment: it goes out once
            outcomes = dict(zip(first, await self._outcomes(list(first.values())), strict=True))
        except Exception as error:
            if len(wishes) > 1 and refuses(error):  # of one of them: not the others' fault
                for one in wishes:
                    await self._these([one])
                return
            for _, told in wishes:
                if not told.done():
                    told.set_exception(error)
            return
        for wish, told in wishes:
            outcome = outcomes[wish.id]
            if outcome.outcome == "new":
                outcomes[wish.id] = evolve(outcome, outcome="again")
            if not told.done():
                told.set_result(outcome)

    async def _outcomes(self, wishes: list[NewStart]) -> list[Started]:
        worker = self._worker
        here = self._to_begin_here(wishes)
        self.beginning |= here
        try:
            if len(here) == len(wishes) and not any(wish.key or wish.parent for wish in wishes):
                told, begun = await worker.store.begin(worker.id, wishes)
            else:
                told, begun = await worker.store.start_here(wishes, worker.id if here else None, here)
            await worker.intake.take(begun)
        finally:
            self.beginning -= here
        if len(begun) < len(wishes):
            worker.kick()
        if any(one.outcome == "again" for one in told):
            worker.look_around()  # it may be ours, and the answer that said so was lost
        return told

    def _to_begin_here(self, wishes: list[NewStart]) -> set[str]:
        """What has room begins here, without a claim; of the children of an execution only so many as to leave something for other workers."""
        worker = self._worker
        room = worker.room
        share = room if worker.store.hints.alone else min(room, worker.tuning.claim - len(worker.residents))
        here: set[str] = set()
        for wish in wishes:
            if len(here) < (room if wish.parent is None else share) and worker.deployment.knows(wish.workflow, wish.version):
                here.add(wish.id)
        return here
