"""What a test tells a fake: what activities give, what comes from outside, where the process dies; and what is said to whoever is wrong."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import NoneType
from typing import Any, Never, TypeAlias, cast, get_origin

from attrs import define, field
from returns.result import Failure, Success

from flowdsl.codec import NotJournalable
from flowdsl.definition import Activity, Workflow
from flowdsl.errors import FlowError
from flowdsl.flow import Cancelled, Defect, Signal, members
from flowdsl.journal import INTENT, INTERRUPTED, Entry, codecs_of
from flowdsl.policy import shown
from flowdsl.story import When
from flowdsl.story.telling import exit_text

Answer: TypeAlias = Any
"""`Success(...)`, `Failure(...)`, an exception (it is raised), or a function of the request that gives one; plain or async."""

Place: TypeAlias = int | str | Activity[Any, Any, Any]
"""The n-th entry, or an activity, by itself or by its name."""


class ScriptError(FlowError):
    """A script that cannot be followed: what is wrong, and what to write instead."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(f"{problem}. {remedy}")


class Unscripted(ScriptError):
    """An activity was asked for that has no answer."""

    def __init__(self, activity: Activity[Any, Any, Any], request: Any, scripted: Sequence[str]) -> None:
        self.activity, self.request, self.scripted = activity, request, tuple(scripted)
        name = name_in_code(activity)
        so_far = f"Scripted so far: {', '.join(sorted(scripted))}" if scripted else "Nothing is scripted so far"
        super().__init__(
            f"{name} was asked with {brief(request)}, and the fake has no answer",
            f"Say before run() what it gives, {_exits(activity)}: fake.on({name}, Success(...)), or fake.on({name}, lambda request: ...). {so_far}",
        )


class Endless(ScriptError):
    """A run that does not come to rest."""

    def __init__(self, workflow: Workflow[Any, Any, Any], turns: int, elapsed: timedelta) -> None:
        self.workflow, self.turns, self.elapsed = workflow, turns, elapsed
        super().__init__(
            f"{workflow.name} does not come to rest: {turns} turns in {shown(elapsed)} of virtual time",
            'Say how long to look at it: fake.run(..., until="1d"); or give it what ends its loop',
        )


@define
class Script:
    """What one activity does."""

    activity: Activity[Any, Any, Any]
    answers: deque[Answer] = field(factory=deque[Answer])
    failures: deque[Answer] = field(factory=deque[Answer])
    """What comes before the answers."""
    takes: timedelta = timedelta()

    def next(self) -> Callable[[Any], Any] | None:
        """What carries out the next attempt; None when nothing is said."""
        if self.failures:
            return _carried_out(self.failures.popleft())
        if self.answers:
            return _carried_out(self.answers.popleft() if len(self.answers) > 1 else self.answers[0])
        return None


@define
class Crash:
    """A death of the process, once."""

    when: When
    place: Place
    struck: bool = False

    def __str__(self) -> str:
        return f"crash({self.when}={self.place!r})" if isinstance(self.place, (int, str)) else f"crash({self.when}={name_in_code(self.place)})"

    def strikes(self, when: When, entries: Sequence[Entry], recorded: int) -> bool:
        """`recorded`: how many entries there are, these not included when they are only about to be."""
        if self.struck or when != self.when:
            return False
        if isinstance(self.place, int):
            self.struck = recorded + (len(entries) if when == "before" else 0) >= self.place
        else:
            assert isinstance(self.place, Activity), "names are looked up when a run begins"
            self.struck = any(ends_of(entry, self.place) for entry in entries)
        return self.struck


@define
class Sent:
    """A signal that comes from outside."""

    signal: Signal[Any]
    payload: Any
    at: timedelta | None
    to: str | None
    delivery: str | None


@define
class Cancel:
    at: timedelta | None
    step: Activity[Any, Any, Any] | str | None
    reason: str
    done: bool = False


def _carried_out(answer: Answer) -> Callable[[Any], Any]:
    if isinstance(answer, BaseException) or _is_exception_class(answer):

        def as_scripted(_: Any) -> Any:
            raise answer.with_traceback(None) if isinstance(answer, BaseException) else answer

        return as_scripted
    return answer if callable(answer) else lambda _: answer


def _is_exception_class(answer: Answer) -> bool:
    return isinstance(answer, type) and issubclass(answer, BaseException)


def check_answer(activity: Activity[Any, Any, Any], answer: Answer, method: str) -> None:
    """Refuses at once what could not be given."""
    name = name_in_code(activity)
    said = f"fake.{method}({name}, {brief(answer)})"
    codecs = codecs_of(activity)
    try:
        if isinstance(answer, Success):
            codecs.answer.encode(answer.unwrap())
        elif isinstance(answer, Failure):
            codecs.failures.encode(answer.failure())
    except NotJournalable as error:
        wanted = f"It gives {_exits(activity)}"
        raise ScriptError(
            f"{said}: {name} cannot give that: {first_sentence(error)}", f"{wanted}; a bug is scripted as an exception, RuntimeError(...)"
        ) from None
    if isinstance(answer, (Success, Failure, BaseException)) or _is_exception_class(answer):
        return
    if isinstance(answer, (Defect, Cancelled)):
        raise ScriptError(f"{said}: no implementation returns that", f"Script a bug as an exception: fake.{method}({name}, RuntimeError(...))")
    if not callable(answer):
        raise ScriptError(f"{said}: that is no exit", f"Wrap it: fake.{method}({name}, Success({brief(answer)}))")
    try:
        inspect.signature(answer).bind(None)
    except TypeError:
        raise ScriptError(f"{said}: it cannot be called with the request", "Let it take one argument: lambda request: Success(...)") from None
    except ValueError:
        pass  # a builtin that does not tell


def _exits(activity: Activity[Any, Any, Any]) -> str:
    """What a contract may give, as it is written in a script."""
    failures = [f"Failure({spelled(one)}(...))" for one in members(activity.shape.failures) if one is not cast(Any, Never)]
    return " or ".join([f"Success({spelled(activity.shape.answer)})", *failures])


def first_sentence(error: Exception) -> str:
    return str(error).partition(". ")[0].rstrip(".")


def name_in_code(activity: Activity[Any, Any, Any]) -> str:
    """As it is called in code."""
    return str(getattr(activity.contract, "__name__", activity.name))


def is_named(place: Activity[Any, Any, Any] | str, activity: Activity[Any, Any, Any]) -> bool:
    if isinstance(place, str):
        return place in (activity.name, activity.name.rpartition(".")[2], name_in_code(activity))
    return place.root.name == activity.name


def ends_of(entry: Entry, activity: Activity[Any, Any, Any]) -> bool:
    """Whether an entry says how an attempt of that activity ended."""
    kind, _, rest = entry.fingerprint.partition(" ")
    return kind == "perform" and entry.kind not in (INTENT, INTERRUPTED) and rest.partition(" ")[0] == activity.root.name


def spelled(value: Any) -> str:
    if isinstance(value, Activity):
        return name_in_code(value)
    if get_origin(value) is None and isinstance(value, type):
        return "None" if value is NoneType else value.__name__
    return repr(value) if isinstance(value, str) else str(value)


def brief(value: object) -> str:
    if isinstance(value, (Success, Failure)):
        return exit_text(value)
    text = getattr(value, "__name__", None) if callable(value) else None
    text = repr(value) if text is None else text
    return text if len(text) <= 80 else text[:77] + "..."
