"""The runtime's threads. Nothing else starts any, so that a simulation can carry out their work on its own loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from threading import Thread
from typing import Any


def beside(main: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    """Runs it in a thread and a loop of its own, whatever becomes of the loop here."""
    Thread(target=lambda: asyncio.run(main()), name=name, daemon=True).start()


class Hand:
    """A thread that carries out one call after the other, until it is dismissed."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Callable[[bool, Any], None]] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        Thread(target=self._main, name=name, daemon=True).start()

    def carry_out(self, call: Callable[[], Any], back: Callable[[bool, Any], None]) -> None:
        """`back` is called in the loop: whether the call returned, and what it returned or raised."""
        self._calls.put((call, back))

    def dismiss(self) -> None:
        self._calls.put(None)

    def _main(self) -> None:
        while (asked := self._calls.get()) is not None:
            call, back = asked
            try:
                returned, value = True, call()
            except BaseException as error:  # whatever it is, the thread lives and somebody waits
                returned, value = False, error
            try:
                self._loop.call_soon_threadsafe(back, returned, value)
            except RuntimeError:  # the loop has ended: nobody waits any more
                return
            del asked, call, back, value
