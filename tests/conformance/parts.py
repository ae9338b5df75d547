"""Contracts, failures and signals that the cases are made of. What an activity does is written by each case: `world.does(act, ...)`."""

from __future__ import annotations

from datetime import timedelta
from typing import Never

from attrs import frozen

from flowdsl import Interrupted, Result, Retry, TimedOut, activity, signal


@frozen
class Refused:
    why: str


@frozen
class Busy:
    retry_after: timedelta


@frozen
class Order:
    number: int
    note: str = ""


@activity("act", retry=Retry.constant("10ms", attempts=3, on=(Refused,)))
def act(name: str) -> Result[str, Refused]:
    """Its declared failure is tried again, three times in all."""
    ...


@activity("plain", retry=Retry.constant("10ms", attempts=3))
def plain(name: str) -> Result[str, Refused]:
    """Its declared failure is an answer; only defects are tried again."""
    ...


@activity("sure", retry=Retry.constant("10ms", attempts=3))
def sure(name: str) -> Result[str, Never]: ...


@activity("once", crash="fail")
def once(name: str) -> Result[str, Interrupted]:
    """At most once."""
    ...


@activity("brief", timeout="200ms", retry=Retry.constant("10ms", attempts=2))
def brief(name: str) -> Result[str, TimedOut]: ...


@activity("hasty", timeout="200ms", retry=Retry.constant("10ms", attempts=1))
def hasty(name: str) -> Result[str, Refused]:
    """Its time-out is no declared failure."""
    ...


@activity("watched", heartbeat="200ms", retry=Retry.constant("10ms", attempts=2))
def watched(name: str) -> Result[str, TimedOut]: ...


@activity("bounded", schedule_to_close="300ms", retry=Retry.constant("80ms", on=(Refused,)))
def bounded(name: str) -> Result[str, TimedOut | Refused]: ...


@activity("busy", retry=Retry.constant("1ms", attempts=3, on=(Busy,)))
def busy(name: str) -> Result[str, Busy]: ...


@activity("undo", retry=Retry.constant("10ms", attempts=2))
def undo(name: str) -> Result[None, Refused]: ...


@activity("mark", transactional=True, retry=Retry.constant("10ms", attempts=4))
def mark(name: str) -> Result[str, Refused]:
    """Writes its name into `marks`, in the transaction of its entry."""
    ...


news = signal("news", int)
word = signal("word", str)
other = signal("other", int)
