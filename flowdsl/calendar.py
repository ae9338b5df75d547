"""Schedules in virtual time: the memory interpreter, with the deployment's schedules firing in it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from attrs import define, frozen

from flowdsl.activation import OPEN
from flowdsl.memory import Memory
from flowdsl.schedule import Schedule, begun, key_of, plan


@frozen
class Firing:
    """What became of an instant. `execution`: the one that was started; of a skipped or queued one, the one in its way."""

    schedule: str
    instant: datetime
    outcome: Literal["started", "queued", "skipped"]
    execution: str


@define
class _Hand:
    """Where a schedule stands."""

    schedule: Schedule
    upcoming: datetime
    due: datetime
    last: str | None = None
    queued: datetime | None = None


class Calendar(Memory):
    """Memory in which the deployment's schedules fire: a year of them in a moment.

    calendar = Calendar(deployment, {fetch: lambda day: Success(3)})
    firings = calendar.run_until(EPOCH + timedelta(days=7))

    Schedules begin when it first runs; set `now` before that to begin at another time.
    """

    _hands: list[_Hand]
    _until: datetime | None = None

    def run_until(self, until: datetime) -> tuple[Firing, ...]:
        """Lets time pass until then, and gives all that fired, in order; executions that are open then go on in the next call."""
        if not hasattr(self, "_hands"):
            self._firings: list[Firing] = []
            self._hands = [self._begun(schedule) for schedule in self._deployment.schedules]
        before, self._until = len(self._firings), until
        try:
            self.go()
        finally:
            self._until = None
        self.now = max(self.now, until)
        return tuple(self._firings[before:])

    def _begun(self, schedule: Schedule) -> _Hand:
        first = begun(schedule.timetable, self.now)
        return _Hand(schedule, first.upcoming, first.due)

    def _pass_time(self) -> bool:
        """Nothing more can happen now: what is queued starts, or time jumps to what is due next, here or in an execution."""
        if self._until is None:
            return super()._pass_time()
        for hand in self._hands:
            if hand.queued is not None and self._rival(hand) is None:
                self._start(hand, hand.queued)
                hand.queued = None
                return True
        first, others = min(self._hands, key=lambda one: one.due, default=None), self.next_due()
        if first is None or (others is not None and others < first.due):
            return others is not None and others <= self._until and super()._pass_time()
        if first.due > self._until:
            return False
        self.now = max(self.now, first.due)
        self._fire(first)
        return True

    def _fire(self, hand: _Hand) -> None:
        made = plan(hand.schedule.timetable, hand.upcoming, self.now)
        hand.upcoming, hand.due = made.upcoming, made.due
        for instant in made.firings:
            rival = self._rival(hand)
            if rival is None:
                self._start(hand, instant)
            elif hand.schedule.timetable.overlap == "queue" and hand.queued is None:
                hand.queued = instant
                self._firings.append(Firing(hand.schedule.id, instant, "queued", rival))
            else:
                self._firings.append(Firing(hand.schedule.id, instant, "skipped", rival))

    def _rival(self, hand: _Hand) -> str | None:
        """The last execution, if it is open and that matters."""
        if hand.schedule.timetable.overlap == "allow" or hand.last is None:
            return None
        return hand.last if self._kept[hand.last].status in OPEN else None

    def _start(self, hand: _Hand, instant: datetime) -> None:
        schedule: Any = hand.schedule
        tenant, self._tenant = self._tenant, schedule.tenant
        try:
            hand.last = self.start(schedule.workflow, schedule.request, key=key_of(schedule.id, instant))
        finally:
            self._tenant = tenant
        self._firings.append(Firing(schedule.id, instant, "started", hand.last))


__all__ = ["Calendar", "Firing"]
