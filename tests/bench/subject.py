"""What is measured: no-op steps that answer with about 100 bytes of JSON, one after another or as rounds of a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Never

from attrs import frozen

from flowdsl import Deployment, Done, Flow, Next, Result, Round, Schedule, Steps, Success, activity, bind, do, each, iterate, workflow

STEPS = 10
"""Steps of one workflow."""
FILLER = "x" * 70


@frozen
class Noted:
    i: int
    ok: bool
    data: str


@activity("bench.note")
def note(i: int) -> Result[Noted, Never]:
    """Does nothing, and says so in 100 bytes."""


@workflow("bench.sequence")
def sequence(steps: int) -> Steps[int, Never]:
    for i in range(steps):
        yield from note(i)
    return steps


@workflow("bench.wide")
def wide(count: int) -> Steps[int, Never]:
    """That many steps at once."""
    return len((yield from each(range(count), note, concurrency=max(1, count))))


@workflow("bench.child")
def child(number: int) -> Steps[int, Never]:
    return (yield from note(number)).i


@workflow("bench.parent")
def parent(count: int) -> Steps[int, Never]:
    """That many children at once, of one step each."""
    return len((yield from each(range(count), child.child, concurrency=max(1, count))))


@do
def once_round(number: int) -> Steps[Round[int, int], Never]:
    noted = yield from note(number)
    return Next(number + 1) if noted.i < 1_000_000_000 else Done(number)


@workflow("bench.loop")
def loop(_: int) -> Steps[int, Never]:
    def one(number: int) -> Flow[Round[int, int], Never]:
        return once_round(number)

    return (yield from iterate(0, one))


def noted(i: int) -> Noted:
    return Noted(i, True, FILLER)


class Ticks:
    """Counts the steps that ran; `hook` is called at each, by latency measurements."""

    def __init__(self) -> None:
        self.count = 0
        self.hook: Callable[[], object] = int

    async def note(self, i: int) -> Result[Noted, Never]:
        self.count += 1
        self.hook()
        return Success(noted(i))

    def deployment(self, schedules: Sequence[Schedule] = ()) -> Deployment:
        async def carried_out(i: int) -> Result[Noted, Never]:
            return await self.note(i)

        return Deployment(workflows=[sequence, loop, wide, child, parent], bindings=[bind(note, carried_out)], schedules=schedules)
