"""Reading ahead: the next page of a walk is asked for while the page before it is written, so the source and the database do not wait for each other.

Never more than a walk's next page, and only while the quota calls for no rest. What is read is kept in this process for a while; a crash, or another
worker that goes on with the walk, costs its requests and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from attrs import frozen

from domains.sync.paging import Cursor
from domains.sync.values import PageOrder
from flowdsl import this_attempt

A = TypeVar("A")
Walk: TypeAlias = tuple[str, str, str, datetime]

KEPT = 10.0
"""Seconds that what was read is kept. Who comes for it later asks anew."""


@frozen(eq=False)
class _Read:
    cursor: Cursor
    task: asyncio.Task[Any]

    def drop(self) -> None:
        self.task.cancel()


_reads: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Walk, _Read]] = WeakKeyDictionary()


def begin(order: PageOrder, cursor: Cursor, ask: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Begins to read the page of the same walk that `cursor` names."""
    loop, walk = asyncio.get_running_loop(), _walk(order)
    reads = _reads.setdefault(loop, {})
    _forget(reads, walk, reads.get(walk))
    read = reads[walk] = _Read(cursor, loop.create_task(ask(), name=f"read ahead {walk[1]}"))
    read.task.add_done_callback(_seen)
    loop.call_later(KEPT, _forget, reads, walk, read)


async def read(order: PageOrder, ask: Callable[[], Coroutine[Any, Any, A]]) -> A:
    """What was read ahead for this page, once; else what asking gives now."""
    found = _reads.get(asyncio.get_running_loop(), {}).pop(_walk(order), None)
    if found is not None and found.cursor == order.cursor:
        answer: A = await found.task
        return answer
    if found is not None:  # the page before it was read again, and ended elsewhere
        found.drop()
    return await ask()


def forget_all() -> None:
    """Nothing that this loop has read ahead is wanted any more."""
    for found in _reads.pop(asyncio.get_running_loop(), {}).values():
        found.drop()


def _walk(order: PageOrder) -> Walk:
    execution = this_attempt().idempotency_key.partition("/")[0]
    return execution, order.order.entity_name, order.endpoint.name, order.parameters.started_at


def _forget(reads: dict[Walk, _Read], walk: Walk, read: _Read | None) -> None:
    if read is not None and reads.get(walk) is read:
        del reads[walk]
        read.drop()


def _seen(task: asyncio.Task[Any]) -> None:
    """What it raised concerns whoever comes for it, and nobody else."""
    if not task.cancelled():
        task.exception()
