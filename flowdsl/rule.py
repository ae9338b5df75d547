"""What a rule names: instants, by the clock on a wall in some zone or by the time that has gone. Pure: no clock is read."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import frozen

from flowdsl.errors import DefinitionError
from flowdsl.policy import duration, shown

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)


@frozen
class Cron:
    """Five fields, or six with the second first, in the wall time of a zone. Days are named as Debian's cron does.

    A rule that names hours is about the wall clock: in a repeated hour it fires once, the first time; what falls into a gap fires at the
    first instant after it. With `*` for the hour it is about elapsed time: it goes on through a repeated hour, and a gap holds nothing.
    """

    expression: str
    zone: str = "UTC"

    def after(self, at: datetime) -> datetime:
        """The first instant later than `at`, in UTC."""
        at, zone = at.astimezone(UTC).replace(microsecond=0), _zone(self.zone)
        return _elapsed(self.expression, zone, at) if self.expression.split()[-4] == "*" else _by_the_wall(self.expression, zone, at)

    def __str__(self) -> str:
        return self.expression


@frozen
class Every:
    """Instants a period apart, counted from an anchor: the same for all who ask."""

    period: timedelta
    anchor: datetime = EPOCH

    zone = "UTC"

    def after(self, at: datetime) -> datetime:
        """The first instant later than `at`, in UTC."""
        return self.anchor + ((at - self.anchor) // self.period + 1) * self.period

    def __str__(self) -> str:
        return f"every {shown(self.period)}" + ("" if self.anchor == EPOCH else f" from {self.anchor.isoformat()}")


Rule: TypeAlias = Cron | Every


def rule_of(text: str, zone: str = "UTC") -> Rule:
    """The rule that `str(rule)` and its zone name. Raises `DefinitionError` for one that can never fire, or that is none."""
    spelled = re.fullmatch(r"every (\S+)(?: from (\S+))?", text)
    if spelled is None:
        return cron_of(text, zone)
    return every_of(duration(spelled[1]), datetime.fromisoformat(spelled[2]) if spelled[2] else EPOCH)


def cron_of(expression: str, zone: str) -> Cron:
    """Raises `DefinitionError` for what is no rule, and for one that no day ever fits."""
    from cronsim import CronSimError

    if not isinstance(expression, str):
        raise DefinitionError("cron", f"{expression!r} is no rule", 'Write it as text: "*/15 * * * *"')
    rule = Cron(" ".join(expression.split()), zone)
    _zone(zone)
    try:
        _next(rule.expression, datetime(2000, 1, 1))
    except CronSimError as error:
        fields = "minute, hour, day of month, month and day of week, or those with the second before them"
        raise DefinitionError(f"cron {expression!r}", f"it is no rule: {error}", f'Write five fields ({fields}), as in "*/15 * * * *"') from None
    except StopIteration:
        raise DefinitionError(f"cron {expression!r}", "no day is ever like that", "Name a date that comes, such as 28 in February") from None
    return rule


def every_of(period: timedelta, anchor: datetime) -> Every:
    """Raises `DefinitionError` for parts of a second."""
    if period < _SECOND or period % _SECOND:
        raise DefinitionError(f"every {shown(period)}", "a period is one or more whole seconds", 'Write "1s", "15m", "1h30m" or a timedelta')
    if anchor.tzinfo is None or anchor.microsecond:
        raise DefinitionError(f"every {shown(period)}", f"its anchor {anchor} is not a whole second of a known zone", "Use datetime(..., tzinfo=UTC)")
    return Every(period, anchor.astimezone(UTC))


def _zone(name: str) -> ZoneInfo:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        remedy = 'Use a name like "Europe/Berlin"; if it is right, install the system\'s time zones or the package tzdata'
        raise DefinitionError(f"zone {name!r}", "it is not known here", remedy) from None


def _next(expression: str, wall: datetime) -> datetime:
    """The first time on a wall, without a zone, that fits and is later. The library's own treatment of zones is not used: in zones that shift
    by half an hour it leaves out what comes right after, and from within a repeated hour it leads back."""
    from cronsim import CronSim

    return next(CronSim(expression, wall))


def _by_the_wall(expression: str, zone: ZoneInfo, at: datetime) -> datetime:
    wall = at.astimezone(zone).replace(tzinfo=None, fold=0)
    while True:
        wall = _next(expression, wall)
        instant = _first(wall, zone)
        if instant > at:  # not so in the second pass of a repeated hour
            return instant


def _first(wall: datetime, zone: ZoneInfo) -> datetime:
    """When a wall in that zone first shows this time; of a time in a gap, when the gap is over."""
    instant = wall.replace(tzinfo=zone).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None, fold=0) == wall:
        return instant
    # In a gap the time before it gives an instant after it, and the other way round.
    return _turn(wall.replace(tzinfo=zone, fold=1).astimezone(UTC), instant, zone) or instant


def _elapsed(expression: str, zone: ZoneInfo, at: datetime) -> datetime:
    """From turn to turn of the zone: between two of them the wall goes as time does."""
    wall = at.astimezone(zone).replace(tzinfo=None, fold=0)
    while True:
        offset = _offset(at, zone)
        instant = (_next(expression, wall) - offset).replace(tzinfo=UTC)
        turn = _turn(at, instant, zone)
        if turn is None:
            return instant
        at, wall = turn, turn.astimezone(zone).replace(tzinfo=None, fold=0) - _SECOND  # what falls on the turn itself counts


def _turn(since: datetime, until: datetime, zone: ZoneInfo) -> datetime | None:
    """The first second after `since`, and not after `until`, in which the zone has another offset."""
    offset = _offset(since, zone)
    while since < until:
        low, high = since, min(since + _DAY, until)
        if _offset(high, zone) != offset:
            while high - low > _SECOND:
                middle = low + (high - low) // _SECOND // 2 * _SECOND
                low, high = (middle, high) if _offset(middle, zone) == offset else (low, middle)
            return high
        since = high
    return None


def _offset(at: datetime, zone: ZoneInfo) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta()
