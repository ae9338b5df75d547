"""An execution as it goes on, as server-sent events: entries as they are recorded, its state as it changes, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from sse_starlette import EventSourceResponse, ServerSentEvent

from flowdsl.errors import FlowError
from flowdsl.postgres import looking
from flowdsl.postgres.connection import lost
from flowdsl.postgres.ends import ENDED
from flowdsl.postgres.store import Summary
from flowdsl.service.executions import event_data
from flowdsl.service.problem import Problem, invalid
from flowdsl.service.reading import payloads_shown
from flowdsl.service.route import Call, Route
from flowdsl.service.wire import entry_of, facts_of

PAUSE = 0.25
"""Seconds between two looks."""
PING = 15
SENDING = 30.0
"""Seconds after which a reader who takes nothing is left."""


async def events(call: Call) -> EventSourceResponse:
    """From the entry behind Last-Event-ID on, or from the first."""
    one = await looking.execution(call.store, call.tenant, call.path("id"))
    first = _after(call.request.headers.get("last-event-id"))
    service = call.service
    most = service.settings.streams
    if service.streams >= most:
        raise Problem(429, "too many streams", f"{most} are open here already: try again", headers={"Retry-After": "5"})
    await payloads_shown(call, "journal", [one.id])
    return EventSourceResponse(_counted(call, one, first), ping=PING, send_timeout=SENDING)


def _after(last: str | None) -> int:
    if not last:
        return 0
    if not last.isdecimal() or not last.isascii() or len(last) > 9:
        raise invalid([("header.Last-Event-ID", "expected the id of an event of this stream")])
    return int(last) + 1


async def _counted(call: Call, one: Summary, first: int) -> AsyncGenerator[ServerSentEvent]:
    call.service.streams += 1
    try:
        async for event in _told(call, one, first):
            yield event
    finally:
        call.service.streams -= 1


async def _told(call: Call, one: Summary, first: int) -> AsyncGenerator[ServerSentEvent]:
    """The id of an event is the position of its entry: a state has none, and is told anew at each connection."""
    yield ServerSentEvent(event="status", data=event_data(facts_of(one)), retry=1000)
    while not call.service.stopping.is_set():
        try:
            now = await looking.execution(call.store, call.tenant, one.id)
            found = await looking.entries(call.store, call.tenant, one.id, first=first)
        except FlowError:
            return  # pruned meanwhile
        except Exception as error:
            if not lost(error):
                raise
            return  # the reader comes again
        for entry in found:
            yield ServerSentEvent(event="entry", id=str(entry.position), data=event_data(entry_of(entry)))
            first = entry.position + 1
        if first < now.entries:
            continue
        if now.status in ENDED:
            yield ServerSentEvent(event="ended", data=event_data(facts_of(now)))
            return
        if _changed(one, now):
            yield ServerSentEvent(event="status", data=event_data(facts_of(now)))
        one = now
        with suppress(TimeoutError):
            await asyncio.wait_for(call.service.stopping.wait(), PAUSE)


def _changed(before: Summary, after: Summary) -> bool:
    return (before.status, before.note, before.done, before.total, before.cause) != (after.status, after.note, after.done, after.total, after.cause)


ROUTES = (
    Route("GET", "/api/v1/workflows/{id}/events", "events", "An execution as it goes on, as server-sent events. Last-Event-ID resumes.", "viewer",
          events, {200: None}, problems=(404, 429), headers={"Last-Event-ID": "The id of the last event that was seen."}, streams=True,
          media="text/event-stream"),
)  # fmt: skip
