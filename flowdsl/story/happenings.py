"""What happens in memory, as it is noted down: a story is told from these."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

from attrs import define

from flowdsl.definition import Activity, Workflow
from flowdsl.flow import Execution, Exit, Report, Signal, Status
from flowdsl.journal import Entry, codecs_of
from flowdsl.machine import Pending

When: TypeAlias = Literal["before", "after"]
Role: TypeAlias = Literal["", "undo", "finalizer"]
Fate: TypeAlias = Literal["taken", "kept", "kept under its key", "again", "too late"]
"""What became of a signal when it came: `again` is a delivery that has acted already."""


@define(eq=False)
class Began:
    """An execution was started. `step`: where its parent asked for it."""

    at: datetime
    id: str
    execution: Execution
    workflow: Workflow[Any, Any, Any]
    request: bytes
    step: str = ""


@define(eq=False)
class Adopted:
    """An execution that was there already, by its key, is a child of this parent now."""

    at: datetime
    id: str
    parent: str


@define(eq=False)
class Called:
    """An attempt of an activity began. `exit` and `took` are known at once: time is virtual."""

    at: datetime
    id: str
    step: str
    activity: Activity[Any, Any, Any]
    body: bytes
    key: str
    number: int
    role: Role
    exit: Any = None
    took: timedelta = timedelta()
    remark: str = ""
    """What is told of it besides: "acts, and its answer is lost"."""

    @property
    def request(self) -> Any:
        return codecs_of(self.activity.root).request.decode(self.body)


@define(eq=False)
class Recorded:
    """A turn was committed: these entries are in the journal from here on."""

    at: datetime
    id: str
    entries: Sequence[Entry]


@define(eq=False)
class Dropped:
    """Nobody waits for this any more: its branch was cancelled, or lost a race."""

    at: datetime
    id: str
    what: Pending


@define(eq=False)
class Noted:
    """An execution reported how far it is."""

    at: datetime
    id: str
    note: Report


@define(eq=False)
class Arrived:
    """A signal came. `id` is empty when it found nobody."""

    at: datetime
    id: str
    signal: str
    payload: bytes
    to: str
    fate: Fate
    declared: Signal[Any] | None = None
    """The signal as it was declared, if it came from outside: its payload can be read then."""


@define(eq=False)
class Wished:
    """Somebody asked an execution to cancel, pause or end."""

    at: datetime
    id: str
    wish: str
    reason: str


@define(eq=False)
class Died:
    """The process died just before or just after these entries of that execution were recorded."""

    at: datetime
    id: str
    when: When
    entries: Sequence[Entry]


@define(eq=False)
class Folded:
    """Another process took the execution over, and folded so many entries."""

    at: datetime
    id: str
    entries: int


@define(eq=False)
class Over:
    """An execution ended, or is blocked."""

    at: datetime
    id: str
    status: Status
    exit: Exit[Any, Any] | None
    cause: str | None


@define(eq=False)
class Missed:
    """Something that a test had planned did not come about."""

    at: datetime
    id: str
    what: str


Happening: TypeAlias = Began | Adopted | Called | Recorded | Dropped | Noted | Arrived | Wished | Died | Folded | Over | Missed
