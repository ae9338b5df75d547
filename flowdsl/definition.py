"""What has a durable name: activities (contracts) and workflows, with their keys."""

from __future__ import annotations

import inspect
import string
import typing
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import suppress
from datetime import date, datetime, timedelta
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any, Generic, Literal, Never, TypeAlias, TypeVar, cast, get_args, get_origin
from uuid import UUID

import attrs
from attrs import evolve, frozen
from returns.result import Result
from typing_extensions import TypeAliasType

from flowdsl.errors import DefinitionError
from flowdsl.flow import Child, Do, Existing, Flow, Interrupted, OnClose, Perform, Start, Status, Steps, members
from flowdsl.policy import Budget, Duration, Policies, Retry, duration

I = TypeVar("I")  # noqa: E741 (input; A and E are the answer and the failures)
A = TypeVar("A")
E = TypeVar("E")

Reuse: TypeAlias = Literal["join", "after_close", "after_failure", "reject"]
Implementation: TypeAlias = Callable[[I], Result[A, E]] | Callable[[I], Awaitable[Result[A, E]]]


@frozen
class Shape:
    """The types of a contract: input, answer, failures (`Never` when it cannot fail)."""

    request: Any
    answer: Any
    failures: Any


def _shape(name: str, function: Callable[..., Any], result: Any, spelled: str) -> Shape:
    """Reads the annotations of a contract or a body. Raises `DefinitionError`, or NameError while a name in them is not defined yet."""
    closure = inspect.getclosurevars(function).nonlocals if function.__closure__ else {}
    hints = typing.get_type_hints(function, localns=dict(closure), include_extras=True)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(parameters) != 1 or parameters[0].name not in hints or len(inspect.signature(function).parameters) != 1:
        raise DefinitionError(name, "it takes exactly one annotated input value", "Put several values into one frozen attrs class")
    returned = hints.get("return")
    if get_origin(returned) is not result or len(get_args(returned)) != 2:
        raise DefinitionError(name, f"its return annotation is {returned!r}", f"Annotate it as {spelled}")
    answer, failures = get_args(returned)
    return Shape(hints[parameters[0].name], answer, failures)


def _name(kind: str, name: object) -> str:
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > 200:
        raise DefinitionError(f"{kind} {name!r}", "a durable name is 1 to 200 printable characters", "Write it as a literal: it outlives refactors")
    return name


# Activities


@frozen(eq=False)
class Activity(Generic[I, A, E]):
    """A contract: what goes in, what comes out, how it may fail, how it is run. Its implementation is bound elsewhere."""

    name: str
    contract: Callable[[I], Result[A, E]]
    policies: Policies
    _origin: Activity[I, A, E] | None = None

    def __call__(self, request: I) -> Flow[A, E]:
        """The call, as a flow."""
        return Perform(self, request)

    def using(
        self,
        *,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        schedule_to_close: Duration | None = None,
        heartbeat: Duration | None = None,
        budget: tuple[Budget, ...] | None = None,
    ) -> Activity[I, A, E]:
        """The same contract with other policies for this call."""
        policies = _policies(self.policies, retry, timeout, schedule_to_close, heartbeat, budget)
        return evolve(self, policies=policies, origin=self.root)

    @property
    def root(self) -> Activity[I, A, E]:
        """The contract as it was declared, whatever `using` changed."""
        return self._origin or self

    @property
    def shape(self) -> Shape:
        """Input, answer and failure types. Raises `DefinitionError` when the annotations do not say them."""
        return _activity_shape(self.root)


_shapes: dict[int, tuple[object, Shape]] = {}


def _activity_shape(activity: Activity[Any, Any, Any]) -> Shape:
    found = _shapes.get(id(activity))
    if found is None:
        shape = _shape(activity.name, activity.contract, Result, "Result[Answer, Failures]")
        found = _shapes[id(activity)] = (activity, shape)
    return found[1]


def _policies(
    base: Policies,
    retry: Retry | None,
    timeout: Duration | None,
    schedule_to_close: Duration | None,
    heartbeat: Duration | None,
    budget: tuple[Budget, ...] | None,
) -> Policies:
    given: dict[str, Any] = {
        "retry": retry,
        "start_to_close": None if timeout is None else duration(timeout),
        "schedule_to_close": None if schedule_to_close is None else duration(schedule_to_close),
        "heartbeat": None if heartbeat is None else duration(heartbeat),
        "budget": budget,
    }
    return evolve(base, **{name: value for name, value in given.items() if value is not None})


class _Declare:
    """The decorator that `activity(...)` gives: from the typed stub to the contract."""

    def __init__(self, name: str, policies: Policies) -> None:
        self._name, self._policies = name, policies

    def __call__(self, contract: Callable[[I], Result[A, E]]) -> Activity[I, A, E]:
        declared = Activity(self._name, contract, self._policies)
        with suppress(NameError, ValueError):  # a name that is defined further down: checked again when a deployment is put together
            check_activity(declared)
        return declared


def activity(
    name: str,
    *,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    schedule_to_close: Duration | None = None,
    heartbeat: Duration | None = None,
    budget: tuple[Budget, ...] = (),
    crash: Literal["retry", "fail"] = "retry",
    transactional: bool = False,
) -> _Declare:
    """Turns a typed stub `(request: I) -> Result[A, E]` into the contract of that durable name.

    `timeout` bounds one attempt (default 5 minutes), `schedule_to_close` all of them, `heartbeat` the silence between two heartbeats.
    `crash="fail"` runs it at most once: a crash in between is the failure `Interrupted`, which the contract must declare.
    `transactional=True`: the implementation's writes on `this_attempt().transaction()` commit together with its success.
    """
    base = Policies(crash=crash, transactional=transactional)
    return _Declare(_name("activity", name), _policies(base, retry, timeout, schedule_to_close, heartbeat, budget))


def check_activity(activity: Activity[Any, Any, Any]) -> None:
    """Refuses a contract whose policies speak of failures that it does not declare."""
    failures = members(activity.shape.failures)
    policies = activity.policies
    if policies.crash == "fail" and Interrupted not in failures:
        raise DefinitionError(activity.name, 'crash="fail" without the failure Interrupted', "Add it to the contract: Result[..., ... | Interrupted]")
    if isinstance(policies.retry.on, tuple):
        for kind in policies.retry.on:
            if kind not in failures:
                raise DefinitionError(
                    activity.name, f"retry on {kind.__name__}, which it does not declare", "Name a member of its failures in on=(…)"
                )


# Workflows


@frozen(eq=False, slots=False)
class Workflow(Generic[I, A, E]):
    """A named, versioned definition. Calling it gives the flow inline; `child` and `start` run it as an execution of its own."""

    name: str
    body: Callable[[I], Steps[A, E]]
    key: str | Callable[[I], str] | None
    reuse: Reuse
    version: int
    priority: int = 0

    def __call__(self, request: I) -> Flow[A, E]:
        """Inline: its steps are steps of the caller."""
        return Do(cast("Callable[..., Generator[Any, Any, Any]]", self.body), (request,), scope=True)

    def child(self, request: I, *, key: str | None = None) -> Flow[A, E]:
        """As a child execution, started and waited for in one scope, so cancelled with it."""
        return self.start(request, key=key).then(_join)

    def start(self, request: I, *, key: str | None = None, detached: bool = False, on_close: OnClose | None = None) -> Flow[Child[A, E], Never]:
        """A child that runs beside. When its parent, or the scope that started it, ends first, it is asked to end (`on_close="cancel"`, the default),
        ended at once without finalizers and undos (`"terminate"`), or left alone (`"abandon"`, for which `detached=True` is short).
        """
        if detached and on_close not in (None, "abandon"):
            raise DefinitionError(self.name, f"detached=True with on_close={on_close!r}", "Leave one of them out")
        if on_close is not None and on_close not in get_args(OnClose):
            raise DefinitionError(self.name, f"on_close={on_close!r}", f"Use one of {', '.join(get_args(OnClose))}")
        return Start(self, request, key if key is not None else self._key(request), detached or on_close == "abandon", on_close == "terminate")

    def key_of(self, request: I) -> str:
        """The idempotency key of an input. Raises `DefinitionError` when the workflow has none."""
        key = self._key(request)
        if key is None:
            raise DefinitionError(self.name, "it has no key", 'Give it one: @workflow(name, key="{field}")')
        return key

    def existing(self, keys: Iterable[str]) -> Flow[dict[str, Status], Never]:
        """Which children of this parent's key have one of these keys, and in what status, in one query."""
        return Existing(self, tuple(keys))

    def _key(self, request: I) -> str | None:
        if self.key is None:
            return None
        key = filled(self.key, request) if isinstance(self.key, str) else self.key(request)
        if not key or len(key) > 1000 or "\0" in key:
            raise DefinitionError(self.name, f"{key!r} is no key", "A key is 1 to 1000 characters without NUL")
        return key

    @cached_property
    def shape(self) -> Shape:
        """Input, answer and failure types. Raises `DefinitionError` when the annotations do not say them."""
        return _shape(self.name, self.body, Steps, "Steps[Answer, Failures]")


def _join(child: Child[A, E]) -> Flow[A, E]:
    return child.join()


class _Define:
    """The decorator that `workflow(...)` gives: from the generator function to the definition."""

    def __init__(self, name: str, key: str | Callable[[Any], str] | None, reuse: Reuse, version: int, priority: int) -> None:
        self._name, self._key, self._version, self._priority = name, key, version, priority
        self._reuse: Reuse = reuse

    def __call__(self, body: Callable[[I], Steps[A, E]]) -> Workflow[I, A, E]:
        if not inspect.isgeneratorfunction(body):
            raise DefinitionError(self._name, "its body is not a generator function", "Bind at least one flow with `yield from`")
        defined = Workflow(self._name, body, self._key, self._reuse, self._version, self._priority)
        vars(defined).update({name: getattr(body, name) for name in ("__doc__", "__name__", "__qualname__", "__module__")}, __wrapped__=body)
        with suppress(NameError, ValueError):  # a name that is defined further down: checked again when a deployment is put together
            check_workflow(defined)
        return defined


def workflow(
    name: str,
    *,
    key: str | Callable[[Any], str] | None = None,
    reuse: Reuse = "join",
    version: int = 1,
    priority: int = 0,
) -> _Define:
    """Turns a generator function `(request: I) -> Steps[A, E]` into the workflow of that durable name.

    `key` makes starts idempotent: a template over the input's fields, checked here, or a named function. `reuse` says what a second start
    with that key does: "join" the same execution, "after_close" a new one once the old has ended, "after_failure", or "reject". Where there is more
    to do than can begin at once, executions of a higher `priority` and their activities go first, whoever else waits.
    """
    if callable(key) and getattr(key, "__name__", "") == "<lambda>":
        raise DefinitionError(name, "its key is a lambda", "Use a template or a named function: a key must be findable in the source")
    if reuse not in get_args(Reuse):
        raise DefinitionError(name, f"reuse={reuse!r}", f"Use one of {', '.join(get_args(Reuse))}")
    if not isinstance(cast("object", priority), int) or not -1000 <= priority <= 1000:
        raise DefinitionError(name, f"priority={priority!r}", "Use a whole number from -1000 to 1000; 0 is what others have, and more goes first")
    return _Define(_name("workflow", name), key, reuse, version, priority)


def check_workflow(workflow: Workflow[Any, Any, Any]) -> None:
    """Refuses a body whose types are not said, and a key template over fields that the input lacks or that nothing separates."""
    request = workflow.shape.request
    if not isinstance(workflow.key, str):
        return
    origin = get_origin(request) or request
    known = {field.name for field in attrs.fields(origin)} if attrs.has(origin) else set[str]()
    since = ":"  # the literal text since the last field
    for literal, name, spec, conversion in _parsed(workflow.name, workflow.key):
        since += literal
        if name is None:
            continue
        if spec or conversion or name not in known:
            remedy = f"Its fields are: {', '.join(sorted(known))}" if known else "Only an attrs class has fields; use a named function"
            raise DefinitionError(workflow.name, f"the key names {{{name}}}, which is no field of the input", remedy)
        if not _separators(since):
            raise DefinitionError(workflow.name, f"nothing separates {{{name}}} from the field before it in the key", "Write {a}:{b}, not {a}{b}")
        since = ""


_FORMATTER = string.Formatter()


def _parsed(name: str, template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(_FORMATTER.parse(template))
    except ValueError as error:
        raise DefinitionError(name, f"its key {template!r} is no template: {error}", "Write {field}, and {{ or }} for a brace") from None


def _separators(text: str) -> set[str]:
    """What may stand between two fields; % escapes, so it separates nothing."""
    return {char for char in text if not char.isalnum() and char != "%"}


def filled(template: str, request: object) -> str:
    """The template with the input's fields. What separates fields in the template is percent-escaped inside them, so no two inputs meet.

    None is spelled as nothing; an empty text, to differ from it, as a lone %.
    """
    parts, escaped = _read(template)
    key = ""
    for literal, name in parts:
        key += literal
        if name is not None:
            value = getattr(request, name)
            text = _text(name, value)
            if not escaped.isdisjoint(text):
                text = "".join(_escape(char) if char in escaped else char for char in text)
            key += text if text or value is None else "%"
    return key


@lru_cache(maxsize=1000)
def _read(template: str) -> tuple[list[tuple[str, str | None]], frozenset[str]]:
    """Its literal texts, each with the field after it; and what is escaped inside fields."""
    parts = [(literal, name) for literal, name, _, _ in _FORMATTER.parse(template)]
    return parts, frozenset(_separators("".join(literal for literal, _ in parts)) | {"%"})


def _escape(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode())


def _text(name: str, value: object) -> str:
    match value:
        case None:
            return ""
        case Enum():
            return _text(name, value.value)
        case datetime() | date():
            return value.isoformat()
        case str() | int() | UUID() | timedelta():
            return str(value)
        case _:
            raise DefinitionError(f"key field {name}", f"a {type(value).__name__} has no one spelling", "Use a named function as key")


def unwrapped(form: Any) -> Any:
    """A type without its alias."""
    return unwrapped(form.__value__) if isinstance(form, TypeAliasType) else form
