"""What a resident needs of the worker that it is in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from flowdsl.activation import Turn
from flowdsl.attempt import Ending, RunningAttempt, Transaction
from flowdsl.binding import Deployment
from flowdsl.flow import Report
from flowdsl.hands import Hands
from flowdsl.machine import Pending

if TYPE_CHECKING:
    from flowdsl.replay import Resident


class Gate(Protocol):
    """Where attempts wait that their budgets do not let begin yet. They take no thread and do not run."""

    def admit(self, resident: Resident, one: Pending) -> None:
        """`Resident.admitted` is to be called once its budgets allow it, or `Resident.never_began`."""
        ...

    def withdraw(self, resident: Resident, step: str) -> None:
        """It is not to begin any more."""
        ...

    def cancelled(self, attempt: RunningAttempt) -> None: ...
    def ended(self, resident: Resident, attempt: RunningAttempt, ending: Ending) -> None: ...


class Host(Protocol):
    """What a resident needs of its worker."""

    deployment: Deployment
    linger: float

    @property
    def hands(self) -> Hands: ...
    @property
    def budgets(self) -> Gate: ...

    def upper(self) -> datetime:
        """The store's time, at the latest."""
        ...

    def lower(self) -> datetime:
        """The store's time, at the earliest."""
        ...

    @property
    def fit(self) -> bool:
        """Whether its lease has certainly not run out: else nothing may leave."""
        ...

    def submit(self, resident: Resident, turn: Turn, state: str | None) -> None: ...
    def ask(self, resident: Resident, one: Pending) -> None: ...
    def look_for(self, resident: Resident, children: tuple[str, ...]) -> None: ...
    def note(self, resident: Resident, note: Report) -> None: ...
    def gone(self, resident: Resident) -> None: ...
    def broken(self, resident: Resident, error: Exception) -> None:
        """It cannot go on: it needs a person, with this as the cause."""
        ...

    def beaten(self, resident: Resident, attempt: RunningAttempt, *, at_once: bool = False) -> None:
        """What a heartbeat tells the next attempt is to be kept, soon or at once, so that another worker knows it too."""
        ...

    def forget(self, resident: Resident, places: Sequence[str]) -> None:
        """What heartbeats told there is needed no longer."""
        ...

    def connection(self) -> AbstractAsyncContextManager[Any]: ...
    async def begin_transaction(self, resident: Resident) -> Transaction: ...
