"""What an execution asks of the store itself: starts with a key, which keys exist, that it waits for a correlation key, how a child ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flowdsl.activation import child_id
from flowdsl.codec import codec
from flowdsl.errors import FlowError, KeyMissing, Rejected
from flowdsl.flow import Defect, Existing, Receive, Start
from flowdsl.journal import BUG, defect_body
from flowdsl.machine import Pending
from flowdsl.operating import public_status
from flowdsl.postgres.store import NewStart

if TYPE_CHECKING:
    from flowdsl.postgres.worker import Worker
    from flowdsl.replay import Resident


async def ask(worker: Worker, resident: Resident, one: Pending) -> None:
    """Asks, and feeds the answer."""
    activation = resident.activation
    match one.instruction:
        case Start() as start:
            await _keyed_child(worker, resident, one, start)
        case Existing() as existing:
            found = await worker.store.existing(_tenant(resident), existing.workflow.name, _scope(resident), existing.keys)
            body = codec(dict[str, str]).encode({key: public_status(status) for key, status in found.items()})
            resident.feed(lambda: activation.answered(one.step, body, worker.upper()))
        case Receive() as receive:
            await worker.store.register(_tenant(resident), receive.signal.name, receive.key or "", resident.id)
            await worker.intake.fetch_mail([resident.id])  # first: a look at a key finds what had come to it
            resident.feed(lambda: activation.registered(one.step))
        case _:
            raise FlowError(f"{one.instruction} cannot be asked of the store")


async def _keyed_child(worker: Worker, resident: Resident, one: Pending, start: Start[Any]) -> None:
    activation, workflow = resident.activation, start.workflow
    wish = NewStart(
        child_id(activation.fold.key(one.step)), _tenant(resident), workflow.name, workflow.version, _scope(resident), start.key, workflow.reuse,
        activation.fold.request(one), resident.id, one.step, start.detached, start.terminates,
    )  # fmt: skip
    started = await worker.starts.one(wish)
    if started.outcome == "rejected":
        taken = Defect(workflow.name, str(Rejected(workflow.name, start.key or "", started.id)))
        resident.feed(lambda: activation.answered(one.step, defect_body(taken), worker.upper(), kind=BUG))
    else:
        resident.feed(lambda: activation.answered(one.step, json.dumps(started.id).encode(), worker.upper()))


async def look_for(worker: Worker, resident: Resident, children: tuple[str, ...]) -> None:
    """Children that are waited for may have ended before: their exits are fed. One that is another's is looked at again, now and then."""
    try:
        known = await worker.store.children(children)
    except KeyMissing as error:
        await worker.put_off(resident.id, resident.epoch, error)
        return
    await worker.intake.fetch_mail([resident.id])
    for child in children:
        parent, exit = known.get(child, (None, None))
        if exit is not None:
            resident.feed(lambda child=child, exit=exit: resident.activation.found(child, exit, worker.upper()))  # type: ignore[misc]
        elif parent != resident.id:
            resident.strangers = True
    resident.looked()


def _tenant(resident: Resident) -> str:
    return resident.activation.execution.tenant


def _scope(resident: Resident) -> str:
    """The scope of a child's key: its parent's key, or else its parent's id."""
    return resident.activation.execution.key or resident.id
