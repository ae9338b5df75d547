"""Calls that come together go out together: many items in one request, each with an answer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

I = TypeVar("I")  # noqa: E741
A = TypeVar("A")


class Batches(Generic[I, A]):
    """What is asked while requests are under way is the next request. Nothing waits for company: the first item goes out at once."""

    def __init__(self, send: Callable[[Sequence[I]], Awaitable[Sequence[A]]], *, most: int = 200, at_once: int = 4) -> None:
        self._send, self._most, self._at_once = send, most, at_once
        self._items: list[tuple[I, asyncio.Future[A]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = 0

    async def ask(self, item: I) -> A:
        told: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._items.append((item, told))
        if not self._sending or (len(self._items) >= self._most and self._sending < self._at_once):
            self._sending += 1
            sender = asyncio.create_task(self._sender())
            self._tasks.add(sender)
            sender.add_done_callback(self._tasks.discard)
        return await told

    async def _sender(self) -> None:
        try:
            await asyncio.sleep(0)  # those that are asked for in this turn of the loop come along
            while self._items:
                batch, self._items = self._items[: self._most], self._items[self._most :]
                batch = [(item, told) for item, told in batch if not told.done()]  # nobody waits for what was cancelled
                if batch:
                    await self._one(batch)
        finally:
            self._sending -= 1  # before anybody else can ask

    async def _one(self, batch: list[tuple[I, asyncio.Future[A]]]) -> None:
        try:
            answers = await self._send([item for item, _ in batch])
            for (_, told), answer in zip(batch, answers, strict=True):
                if not told.done():
                    told.set_result(answer)
        except Exception as error:
            for _, told in batch:
                if not told.done():
                    told.set_exception(error)
