"""What people do to executions over HTTP: the same interventions as on the command line, in the caller's name."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Literal, TypeVar

from attrs import frozen

from flowdsl.codec import codec
from flowdsl.errors import FlowError, NotFound, StoreError
from flowdsl.flow import Defect
from flowdsl.journal import FAILURE, SUCCESS, Divergence, Entry
from flowdsl.operating import CannotRetry, Written
from flowdsl.operating import Edits as StepEdits
from flowdsl.postgres import looking
from flowdsl.postgres.starting import new_id
from flowdsl.service.executions import PageQuery, cursor, limited, placed
from flowdsl.service.problem import Problem, invalid
from flowdsl.service.reading import payloads_shown
from flowdsl.service.route import Call, Reply, Route
from flowdsl.service.signals import payload_of
from flowdsl.service.wire import (
    Asked,
    Done,
    Edit,
    Edits,
    Fork,
    Forked,
    Reason,
    Rewind,
    Sent,
    Supposed,
    ToExecution,
    ToKey,
    Unmatched,
    UnmatchedSignal,
    told,
)

T = TypeVar("T")

Outcome = Literal["asked", "resumed", "terminated", "retried", "rewound"]
ANY = codec(object)


async def _done(call: Call, work: Awaitable[T]) -> T:
    """The work's answer. What its execution's state does not allow is a conflict, which says the state; what is not there is a 404."""
    id = call.path("id")
    try:
        return await work
    except NotFound as error:
        raise Problem(404, f"no such {error.kind}", str(error)) from None
    except (StoreError, CannotRetry, Divergence) as error:
        state = (await looking.execution(call.store, call.tenant, id)).status
        title = "code does not fit" if isinstance(error, Divergence) else f"its state is {state}"
        raise Problem(409, title, str(error), execution=id, state=state) from None
    except FlowError as error:
        raise invalid([("body", str(error))]) from None


async def _told(call: Call, outcome: Outcome, executions: Sequence[str] = (), dropped: Sequence[Entry] = ()) -> Done:
    after = await looking.execution(call.store, call.tenant, call.path("id"))
    again = tuple(dict.fromkeys(entry.step for entry in dropped if entry.step))
    return Done(after.id, outcome, after.status, tuple(executions) or (after.id,), again)


async def _there(call: Call) -> None:
    """Raises `NotFound` for what is no execution of the caller's tenant: before anything else is said about it."""
    await looking.execution(call.store, call.tenant, call.path("id"))


async def cancel(call: Call) -> Reply:
    """Asks it to end: finalizers and undos run."""
    await _there(call)
    await _done(call, call.operator.cancel(call.path("id"), call.body.reason or f"asked to by {call.caller.name}"))
    return Reply(await _told(call, "asked"), 202)


async def pause(call: Call) -> Reply:
    """Nothing new of it begins."""
    await _there(call)
    await _done(call, call.operator.pause(call.path("id"), call.body.reason or f"asked to by {call.caller.name}"))
    return Reply(await _told(call, "asked"), 202)


async def resume(call: Call) -> Done:
    """Lets a blocked one go on."""
    await _there(call)
    await _done(call, call.operator.resume(call.path("id"), call.body.reason))
    return await _told(call, "resumed")


async def terminate(call: Call) -> Done:
    """Ends it at once."""
    await _there(call)
    await _done(call, call.operator.terminate(call.path("id"), call.body.reason or f"asked to by {call.caller.name}"))
    return await _told(call, "terminated")


async def retry(call: Call) -> Done:
    """Does again what made it fail."""
    await _there(call)
    done = await _done(call, call.operator.retry(call.path("id"), call.body.reason))
    return await _told(call, "retried", done.executions, done.dropped)


async def rewind(call: Call) -> Done:
    """Takes it back."""
    await _there(call)
    done = await _done(call, call.operator.rewind(call.path("id"), call.body.to, call.body.reason))
    return await _told(call, "rewound", done.executions, done.dropped)


async def fork(call: Call) -> Reply:
    """A new execution from its record."""
    await _there(call)
    body: Fork = call.body
    work = call.operator.fork(call.path("id"), body.to, edits=_edits(body.edits), paused=body.paused, reason=body.reason)
    new = await _done(call, work)
    url = call.url("workflows", new, "status")
    return Reply(Forked(new, call.path("id"), url), 201, {"Location": url})


async def what_if(call: Call) -> Supposed:
    """Where it would go if steps had ended otherwise."""
    await _there(call)
    found = await _done(call, call.operator.what_if(call.path("id"), _edits(call.body.edits)))
    asks = tuple(Asked(*one) for one in found.asked)
    return Supposed(None if found.exit is None else str(found.exit), asks, len(found.used), len(found.unused))


def _edits(edits: Sequence[Edit]) -> StepEdits:
    found: dict[str, Any] = {}
    for number, one in enumerate(edits):
        if sum(part is not None for part in (one.success, one.failure, one.defect)) > 1 or one.step in found:
            raise invalid([(f"body.edits[{number}]", "expected one of success, failure and defect, once a step")])
        if one.defect is not None:
            found[one.step] = Defect("set by a person", one.defect)
        elif one.failure is not None:
            found[one.step] = Written(FAILURE, ANY.encode(one.failure))
        else:
            found[one.step] = Written(SUCCESS, ANY.encode(one.success))
    return found


# Signals


async def signal(call: Call) -> Reply:
    """To one execution of the caller's tenant."""
    one = await looking.execution(call.store, call.tenant, call.path("id"))
    return await _sent(call, call.path("id"), call.body, (one.workflow, one.version))


async def signal_key(call: Call) -> Reply:
    """To whoever waits for a correlation key, or will."""
    return await _sent(call, call.body.key, call.body)


async def _sent(call: Call, to: str, body: ToExecution | ToKey, workflow: tuple[str, int] | None = None) -> Reply:
    delivery = body.delivery or new_id()
    texts = (("name", body.name), ("key", to), ("delivery", delivery))
    errors = [(f"body.{name}", "expected 1 to 1000 characters") for name, text in texts if not 0 < len(text) <= 1000]
    if errors:
        raise invalid(errors)
    payload = payload_of(call.service.deployment, body.name, body.payload, workflow=workflow)
    said = await call.store.send(call.tenant, to, "signal", body.name, payload, delivery)
    if said == "ended":
        state = (await looking.execution(call.store, call.tenant, to)).status
        raise Problem(409, f"its state is {state}", f"execution {to} has ended: its state is {state}. Nothing was sent", execution=to, state=state)
    outcome: Literal["sent", "again", "unmatched"] = "sent" if said == "sent" else "again" if said == "again" else "unmatched"
    return Reply(Sent(outcome, delivery), 202)


@frozen
class Came:
    """Where a page of signals ended."""

    seq: int


async def unmatched(call: Call) -> Unmatched:
    """Kept for who comes."""
    most, place = limited(call, call.query.limit), placed(Came, call.query.cursor)
    if place is not None and not 0 <= place.seq < 1 << 63:
        raise invalid([("query.cursor", "expected what `next` said on another page")])
    rows = await call.store.unmatched(call.tenant, most + 1, before=None if place is None else place.seq)
    await payloads_shown(call, "signals", [""] if rows else [])
    page = [UnmatchedSignal(row["name"], row["key"], row["delivery"], row["at"], told(row["body"])) for row in rows[:most]]
    return Unmatched(tuple(page), cursor(Came(rows[most - 1]["seq"])) if len(rows) > most else None)


_MAY_BE_GONE = (404, 409)
_ONE = "/api/v1/workflows/{id}"

ROUTES = (
    Route("POST", f"{_ONE}/cancel", "cancel", "Ask an execution to end: its finalizers and undos run.", "operator", cancel, {202: Done},
          request=Reason, problems=_MAY_BE_GONE, example={"reason": "no longer wanted"}),
    Route("POST", f"{_ONE}/pause", "pause", "Hold an execution until it is resumed.", "operator", pause, {202: Done}, request=Reason,
          problems=_MAY_BE_GONE, example={}),
    Route("POST", f"{_ONE}/resume", "resume", "Let a blocked execution go on.", "operator", resume, {200: Done}, request=Reason,
          problems=_MAY_BE_GONE, example={}),
    Route("POST", f"{_ONE}/terminate", "terminate", "End an execution at once: no finalizer and no undo runs.", "admin", terminate, {200: Done},
          request=Reason, problems=_MAY_BE_GONE, example={}),
    Route("POST", f"{_ONE}/retry", "retry", "Do again what made an execution fail.", "operator", retry, {200: Done}, request=Reason,
          problems=_MAY_BE_GONE, example={"reason": "the bank is back"}),
    Route("POST", f"{_ONE}/rewind", "rewind", "Take an execution back to a step: from there on all is done anew.", "admin", rewind, {200: Done},
          request=Rewind, problems=_MAY_BE_GONE, example={"to": 0}),
    Route("POST", f"{_ONE}/fork", "fork", "Make a new execution from another's record, also with other exits.", "admin", fork, {201: Forked},
          request=Fork, problems=_MAY_BE_GONE, example={"to": 0, "paused": True}),
    Route("POST", f"{_ONE}/what-if", "what_if", "Where an execution would go if steps had ended otherwise. Nothing is called or changed.", "viewer",
          what_if, {200: Supposed}, request=Edits, problems=_MAY_BE_GONE, example={}),
    Route("POST", f"{_ONE}/signal", "signal", "Send a signal to an execution.", "operator", signal, {202: Sent}, request=ToExecution,
          problems=_MAY_BE_GONE, spends="signals", example={"name": "approved", "payload": True}),
    Route("POST", "/api/v1/signals", "signal_key", "Send a signal to a correlation key. What nobody waits for yet is kept.", "operator", signal_key,
          {202: Sent}, request=ToKey, problems=(404, 409), spends="signals", example={"name": "approved", "key": "order-1", "payload": True}),
    Route("GET", "/api/v1/signals", "unmatched", "Signals that nobody waits for yet, newest first.", "viewer", unmatched, {200: Unmatched},
          query=PageQuery),
)  # fmt: skip
