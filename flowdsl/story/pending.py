"""Open steps, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flowdsl.flow import Join, Perform, Receive, Sleep
from flowdsl.machine import Pending, _Ensured, _Rollback
from flowdsl.story.happenings import Role


def waits(pending: Iterable[Pending]) -> Iterator[str]:
    """What these steps wait for."""
    for one in pending:
        match one.instruction:
            case Receive() as receive if receive.wait:
                yield f"signal {receive.signal.name}" + (f" for {receive.key}" if receive.key is not None else "")
            case Join() as join:
                yield f"child {join.child.workflow}"
            case Sleep():
                yield "sleep"
            case Perform() as perform:
                yield perform.activity.name
            case _:
                pass


def awaits(pending: Iterable[Pending], signal: str, key: str | None) -> bool:
    """Whether one of them waits for such a signal."""
    asked = [one.instruction for one in pending]
    return any(isinstance(one, Receive) and one.wait and one.signal.name == signal and one.key == key for one in asked)


def role_of(one: Pending) -> Role:
    """Whether an activity undoes something, or is part of a finalizer."""
    fiber = one.fiber
    while True:
        for frame in reversed(fiber.frames):
            if isinstance(frame, _Rollback):
                return "undo"
            if isinstance(frame, _Ensured):
                return "finalizer"
        if fiber.parent is None:
            return ""
        fiber = fiber.parent
