"""What a run in memory gave."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, overload

from attrs import frozen

from flowdsl.definition import Activity, Workflow
from flowdsl.flow import Exit, Report, Status
from flowdsl.journal import ATTEMPT, BUG, FAILURE, INTENT, INTERRUPTED, Entry, slept
from flowdsl.policy import shown
from flowdsl.story.happenings import Adopted, Began, Called, Happening, Noted, Recorded


class Recent:
    """The last run of this process, for whoever reports on it, and who is told of each run."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.listeners: list[Callable[[Run], None]] = []


recent = Recent()


@frozen(eq=False, repr=False)
class Run:
    """What an execution in memory did, its children included. `str(run)` tells it at length."""

    id: str
    workflow: Workflow[Any, Any, Any]
    exit: Exit[Any, Any] | None
    """How it ended; None when it waits for something that never comes."""
    status: Status
    cause: str | None
    """Why it is blocked."""
    waits: tuple[str, ...]
    """What it waits for while it is open: `signal approved`, `child ship`."""
    journal: tuple[Entry, ...]
    elapsed: timedelta
    """In virtual time, from its start to its end."""
    _log: Sequence[Happening]
    _until: int
    _look: Callable[[str], Run]

    @property
    def notes(self) -> tuple[Report, ...]:
        """What it and its children reported."""
        return tuple(one.note for one in self.happenings() if isinstance(one, Noted))

    @property
    def children(self) -> tuple[Run, ...]:
        """The executions that it started, in their order; detached ones too."""
        return tuple(self._look(id) for id in self._family(deep=False) if id != self.id)

    def story(self) -> list[str]:
        """What was recorded, in short words: `fetch_page`, `save_page!` (it failed), `sleep 1s`. What a crash cut short is left out."""
        return [line for one in self.happenings() if isinstance(one, Recorded) for entry in one.entries for line in _in_short(entry)]

    @overload
    def calls(self, activity: Activity[Any, Any, Any]) -> tuple[Any, ...]: ...
    @overload
    def calls(self) -> dict[str, tuple[Any, ...]]: ...
    def calls(self, activity: Activity[Any, Any, Any] | None = None) -> Any:
        """The requests that an activity was called with, one for each attempt; without an activity those of all, by their names."""
        if activity is not None:
            return tuple(one.request for one in self._attempts(activity))
        found: dict[str, list[Any]] = {}
        for one in self._attempts():
            found.setdefault(one.activity.name, []).append(one.request)
        return {name: tuple(requests) for name, requests in found.items()}

    def keys(self, activity: Activity[Any, Any, Any]) -> tuple[str, ...]:
        """The idempotency keys of these calls: attempts of one step have the same."""
        return tuple(one.key for one in self._attempts(activity))

    def count(self, activity: Activity[Any, Any, Any]) -> int:
        """How many times an activity was called, repeated attempts included."""
        return len(self._attempts(activity))

    def happenings(self) -> list[Happening]:
        """All that happened to it and its children, in order."""
        ids = self._family(deep=True)
        return [one for one in self._log[: self._until] if one.id in ids or not one.id]

    def keep(self) -> None:
        """From now on this is the last run."""
        recent.run = self
        for listener in recent.listeners:
            listener(self)

    def _attempts(self, activity: Activity[Any, Any, Any] | None = None) -> list[Called]:
        return [one for one in self.happenings() if isinstance(one, Called) and (activity is None or one.activity.name == activity.name)]

    def _family(self, *, deep: bool) -> dict[str, None]:
        """Its id, and those of its children, or of all that descend from it."""
        parents = [(one.id, one.execution.parent) for one in self._log[: self._until] if isinstance(one, Began)]
        parents += [(one.id, one.parent) for one in self._log[: self._until] if isinstance(one, Adopted)]
        found, size = {self.id: None}, 0
        while len(found) > size:  # who was adopted may have children that are older than that
            size = len(found)
            found |= {id: None for id, parent in parents if parent in found}
            if not deep:
                return {self.id: None} | {id: None for id, parent in parents if parent == self.id}
        return found

    def __repr__(self) -> str:
        ended = f"exit={self.exit!r}" if self.exit is not None else f"waits={self.waits!r}" if self.status == "open" else f"cause={self.cause!r}"
        return f"<run of {self.workflow.name}: {ended}>"

    def __str__(self) -> str:
        from flowdsl.story.telling import told

        return told(self)


def _in_short(entry: Entry) -> list[str]:
    """None for what only says that an attempt is about to begin, or was cut short; the wait before the next one after a failed one."""
    if entry.kind in (INTERRUPTED, INTENT):
        return []
    pause = datetime.fromisoformat(json.loads(entry.body)["due"]) - entry.at if entry.kind == ATTEMPT else timedelta()
    return [*words(entry), f"sleep {shown(pause)}"] if pause else words(entry)


def words(entry: Entry) -> list[str]:
    """What an entry answers, in a few words."""
    kind, _, rest = entry.fingerprint.partition(" ")
    name = rest.partition(" ")[0].rpartition(".")[2]
    if kind == "sleep":
        return [f"sleep {slept(rest)}"]
    if kind == "perform":
        return [name + ("!" if entry.kind in (ATTEMPT, FAILURE, BUG) else "")]
    return [f"{kind} {name}".strip()] if kind else []
