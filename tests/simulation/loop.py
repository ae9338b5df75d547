"""An event loop on which time is virtual and a seed decides who goes on. Several processes live on it, each with lanes of its own.

A lane is what is one event loop in production: the main loop of a process, or that of a thread beside it. Within a lane what is ready runs in
its order, as asyncio promises; between lanes, and between timers of one moment, the seed decides. Nothing here waits and nothing does I/O.
"""

from __future__ import annotations

import asyncio
import inspect
from asyncio import Handle, TimerHandle, events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from hashlib import blake2b
from heapq import heappop, heappush
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")


class Overrun(Exception):
    """Virtual time or the number of steps ran out: something goes round and round, or nobody ever comes."""


class Process:
    """What is killed and frozen as one. What it still holds when it dies is never run, and never finalized either: nobody tidies up after a kill."""

    def __init__(self, loop: Loop, name: str) -> None:
        self.loop, self.name = loop, name
        self.dead = False
        self.frozen = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.main = Lane(self, name)

    def __repr__(self) -> str:
        return self.name

    def start(self, main: Callable[[], Coroutine[Any, Any, Any]], lane: Lane | None = None) -> asyncio.Task[Any]:
        """Runs it in the process's main lane, or in one beside it."""
        context = copy_context()
        context.run(LANE.set, lane or self.main)
        return context.run(lambda: self.loop.create_task(main(), context=context))


class Lane:
    """One event loop's worth of order."""

    __slots__ = ("blocked", "context", "name", "process", "ready")

    def __init__(self, process: Process, name: str) -> None:
        self.process, self.name = process, name
        self.ready: deque[Handle] = deque()
        self.blocked = False
        self.context = Context()
        self.context.run(LANE.set, self)
        process.loop.lanes.append(self)

    @property
    def runs(self) -> bool:
        return not (self.blocked or self.process.frozen or self.process.dead)


LANE: ContextVar[Lane] = ContextVar("lane")
SERVER = "postgres-"
"""What the tasks of the server's sessions are called."""


class Policy:
    """Which lane goes on: any of them, each time anew."""

    name = "uniform"

    def __init__(self, chance: Random) -> None:
        self.chance = chance

    def pick(self, lanes: list[Lane], step: int) -> Lane:
        return lanes[int(self.chance.random() * len(lanes))]

    def nudge(self) -> None:
        """Something has just been committed."""


class Priorities(Policy):
    """The first in rank always goes on; a few times a run the one that runs falls to the end."""

    name = "priorities"

    def __init__(self, chance: Random) -> None:
        super().__init__(chance)
        self._rank: dict[int, float] = {}
        self._changes = {int(chance.expovariate(1 / 1500)) for _ in range(4)}

    def pick(self, lanes: list[Lane], step: int) -> Lane:
        rank = self._rank
        for lane in lanes:
            if id(lane) not in rank:
                rank[id(lane)] = self.chance.random()
        first = min(lanes, key=lambda lane: rank[id(lane)])
        if step in self._changes:
            rank[id(first)] = 1 + step
        return first


class Deep(Policy):
    """Stays where it is for long, and goes elsewhere just after a commit: what was decided is known here and not yet there."""

    name = "deep"

    def __init__(self, chance: Random) -> None:
        super().__init__(chance)
        self._last: Lane | None = None
        self._elsewhere = False

    def pick(self, lanes: list[Lane], step: int) -> Lane:
        if self._elsewhere and len(lanes) > 1:
            lanes = [lane for lane in lanes if lane is not self._last]
        elif self._last in lanes and self.chance.random() < 0.95:
            return self._last
        self._elsewhere = False
        self._last = lanes[int(self.chance.random() * len(lanes))]
        return self._last

    def nudge(self) -> None:
        self._elsewhere = self.chance.random() < 0.7


POLICIES: list[type[Policy]] = [Policy, Priorities, Deep]


class Loop(asyncio.AbstractEventLoop):
    """Same seed, same run, callback for callback: `trace` tells two runs apart."""

    def __init__(self, chance: Random, policy: type[Policy] = Policy, *, cost: float = 2e-5) -> None:
        self._chance, self.policy, self._cost = chance, policy(chance), cost
        self._now = 1000.0
        self._timers: list[tuple[float, float, int, TimerHandle, Lane]] = []
        self._count = self.steps = 0
        self.lanes: list[Lane] = []
        self._trace = blake2b(digest_size=12)
        self._closed = False
        self._graves: list[object] = []
        self.complaints: list[str] = []
        """What asyncio would have logged of a living process: an exception that nobody took."""
        self.heard: Callable[[str, str], None] | None = None
        """Told of each callback, for a trace that a person reads."""
        self.between: Callable[[], None] = lambda: None
        """Called between two callbacks, once that step is reached: where faults strike."""
        self.strikes_at = 1 << 60
        self.world = Process(self, "world")
        """What is not simulated as a process: the nemesis, the judge."""
        self.server = Process(self, "server").main

    # What runs

    def process(self, name: str) -> Process:
        return Process(self, name)

    def beside(self, name: str) -> Lane:
        """A lane for a thread of the process that asks."""
        return Lane(here().process, name)

    def kill(self, process: Process) -> None:
        process.dead = True
        for lane in [lane for lane in self.lanes if lane.process is process]:
            self._graves.append(lane)
            self.lanes.remove(lane)
        self._graves.append(process)

    def note(self, what: str) -> None:
        """Puts something into the trace that is not a callback: a fault, an answer."""
        self._trace.update(what.encode())

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()

    def run(self, main: Callable[[], Coroutine[Any, Any, T]], *, until: float, steps: int) -> T:
        """Runs it in the world's lane, and everything that there is beside it. Raises `Overrun`."""
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            task = self.world.start(main)
            while not task.done():
                if self._now > until or self.steps > steps:
                    raise Overrun(f"after {self.steps} steps, at {self._now - 1000:.3f} s")
                self._step()
            return task.result()
        finally:
            events._set_running_loop(before)

    def _step(self) -> None:
        now, timers = self._now, self._timers
        while timers and timers[0][0] <= now:
            _, _, _, timer, lane = heappop(timers)
            if not timer._cancelled and not lane.process.dead:  # type: ignore[attr-defined]
                lane.ready.append(timer)
        able = [lane for lane in self.lanes if lane.ready and not (lane.blocked or lane.process.frozen)]
        if not able:
            if not timers:
                raise Overrun("nothing is left that could ever happen")
            self._now = max(now, timers[0][0])
            return
        lane = able[0] if len(able) == 1 else self.policy.pick(able, self.steps)
        handle = lane.ready.popleft()
        if handle._cancelled:  # type: ignore[attr-defined]
            return
        self.steps += 1
        self._now = now + self._cost
        what = _said(handle)
        self._trace.update(f"{lane.name} {what} {now:.6f}\n".encode())
        if self.heard is not None:
            self.heard(lane.name, what)
        handle._run()
        if self.steps >= self.strikes_at:
            self.world.main.context.run(self.between)

    # What asyncio asks of a loop

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        context = context if context is not None else copy_context()
        handle = Handle(callback, args, self, context)
        lane = context.get(LANE)
        if self._closed:
            return handle
        (lane or self.world.main).ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        context = copy_context()
        context.run(LANE.set, here().process.main)
        return self.call_soon(callback, *args, context=context)

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> TimerHandle:  # type: ignore[override]
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> TimerHandle:  # type: ignore[override]
        context = context if context is not None else copy_context()
        timer = TimerHandle(when, callback, args, self, context)
        if not self._closed:
            self._count += 1
            heappush(self._timers, (when, self._chance.random(), self._count, timer, context.get(LANE) or self.world.main))
        return timer

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None: ...

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:  # type: ignore[override]
        if name is not None and name.startswith(SERVER):  # what the server does for a client is not the client's: it goes on without it
            context = self.server.context.copy()
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        place = context.get(LANE) if context is not None else LANE.get(None)
        if place is not None:
            tasks = place.process.tasks
            tasks.append(task)
            if len(tasks) > 256:
                tasks[:] = [one for one in tasks if not one.done()]
        return task

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed:
            error = context.get("exception")
            self.complaints.append(f"{context.get('message')}: {type(error).__name__}: {error}")

    def close(self) -> None:
        """The end of the run: whatever is finalized from now on changes nothing."""
        self._closed = True
        for process in {id(lane.process): lane.process for lane in [*self.lanes, *(one for one in self._graves if isinstance(one, Lane))]}.values():
            for task in process.tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                main: Any = task.get_coro()
                if inspect.iscoroutine(main) and inspect.getcoroutinestate(main) == inspect.CORO_CREATED:
                    main.close()  # it has not begun: no line of it runs, and nobody complains that none ever did


def here() -> Lane:
    """The lane that runs."""
    return LANE.get()


def _said(handle: Handle) -> str:
    """What a callback is, the same in every run: no addresses, no numbers of tasks."""
    callback: Any = handle._callback  # type: ignore[attr-defined]
    of = getattr(callback, "__self__", None)
    if isinstance(of, asyncio.Task):
        return str(getattr(of.get_coro(), "__qualname__", ""))
    while hasattr(callback, "func"):
        callback = callback.func
    return str(getattr(callback, "__qualname__", type(callback).__name__))
