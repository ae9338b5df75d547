"""Which names exist, and who implements them: `bind`, `Deployment`, and what an implementation may ask about its attempt."""

from __future__ import annotations

import dis
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Protocol, TypeVar

from attrs import field, frozen

from flowdsl.definition import Activity, Implementation, Workflow, check_activity, check_workflow
from flowdsl.errors import DeploymentError, FlowError, NotFound
from flowdsl.flow import Signal
from flowdsl.policy import Budget, Limits
from flowdsl.schedule import Schedule

I = TypeVar("I")  # noqa: E741
A = TypeVar("A")
E = TypeVar("E")


@frozen(eq=False)
class Binding:
    """A contract, paired with what carries it out."""

    activity: Activity[Any, Any, Any]
    implementation: Callable[[Any], Any]
    is_async: bool


def bind(contract: Activity[I, A, E], implementation: Implementation[I, A, E]) -> Binding:
    """Pairs a contract with an `async` function, or a plain one that is run in a thread, of the same input and result."""
    call = implementation if inspect.isroutine(implementation) else getattr(implementation, "__call__", implementation)  # noqa: B004
    return Binding(contract.root, implementation, inspect.iscoroutinefunction(call))


class Attempt(Protocol):
    """One run of an implementation, as it may know it."""

    @property
    def idempotency_key(self) -> str:
        """The same on every retry, crash and worker: give it to the outside system."""
        ...

    @property
    def number(self) -> int:
        """From 1; attempts cut short by a crash count."""
        ...

    @property
    def tenant(self) -> str: ...

    @property
    def deadline(self) -> datetime:
        """When this attempt is given up."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether its answer is no longer wanted. What runs in a thread should look now and then, and return."""
        ...

    @property
    def last_heartbeat(self) -> object:
        """What the last heartbeat of an earlier attempt told, as plain JSON values, or None. After a crash it may be a little older."""
        ...

    def heartbeat(self, details: object = None) -> None:
        """Says that it is alive, and what the next attempt should know. From any thread, as often as you like.

        Raises `NotJournalable` or `TooLarge`, at once.
        """
        ...

    def connection(self) -> AbstractAsyncContextManager[Any]:
        """A connection of the journal's database, outside the journal's transaction: what is written there is at least once."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """A connection in a transaction that commits together with this attempt's success, and only then. Transactional activities only."""
        ...


current_attempt: ContextVar[Attempt] = ContextVar("flowdsl_attempt")


def this_attempt() -> Attempt:
    """The attempt that is running. Raises `FlowError` outside an implementation."""
    try:
        return current_attempt.get()
    except LookupError:
        raise FlowError("this_attempt() is for implementations while an interpreter runs them; there is none here") from None


@frozen(eq=False)
class Deployment:
    """The workflows that may run here, and who implements their activities.

    Of a workflow there may be several versions: new executions take the newest, those that are open go on with the one that they began with.
    Children and activities that the bodies name are found from there. `webhooks` and `routes`: what the service answers for it beside its own.
    `migrations`: folders of numbered .sql files for tables of your own in the journal's database, applied as flowdsl's own are. Raises
    `DeploymentError` with everything that is missing or doubled.
    """

    workflows: Sequence[Workflow[Any, Any, Any]]
    bindings: Sequence[Binding] = ()
    schedules: Sequence[Schedule] = ()
    webhooks: Sequence[Any] = ()
    routes: Sequence[Any] = ()
    migrations: Sequence[Path] = ()
    limits: Limits = field(factory=Limits)
    _workflows: dict[str, Workflow[Any, Any, Any]] = field(init=False, factory=dict[str, Workflow[Any, Any, Any]])
    _versions: dict[tuple[str, int], Workflow[Any, Any, Any]] = field(init=False, factory=dict[tuple[str, int], Workflow[Any, Any, Any]])
    _bindings: dict[str, Binding] = field(init=False, factory=dict[str, Binding])
    _definitions: dict[tuple[str, int], Callable[[str], Workflow[Any, Any, Any]]] = field(init=False, factory=dict[Any, Any])

    def __attrs_post_init__(self) -> None:
        problems = list(self._gather_bindings())
        contracts = {name: binding.activity for name, binding in self._bindings.items()}
        problems += self._gather_workflows(contracts)
        ids = Counter(schedule.id for schedule in self.schedules)
        problems += [f"{count} schedules have the id {id}: rename all but one" for id, count in ids.items() if count > 1]
        problems += [f"activity {name} has no implementation: add bind(…, …)" for name in contracts if name not in self._bindings]
        problems += _refusals(check_workflow, self._versions.values())
        problems += _refusals(check_activity, contracts.values())
        problems += _two_limits(contracts.values())
        if problems:
            raise DeploymentError(problems)

    def _gather_bindings(self) -> Iterator[str]:
        for binding in self.bindings:
            if self._bindings.setdefault(binding.activity.name, binding) is not binding:
                yield f"activity {binding.activity.name} is bound twice: keep one bind(...)"

    def _gather_workflows(self, contracts: dict[str, Activity[Any, Any, Any]]) -> Iterator[str]:
        """Follows what the bodies name: children become part of the deployment, contracts are collected."""
        todo = [*self.workflows, *(schedule.workflow for schedule in self.schedules)]
        while todo:
            one = todo.pop(0)
            known = self._versions.get((one.name, one.version))
            if known is one:
                continue
            if known is not None:
                yield f"two workflows are named {one.name}: rename one, or give it another version"
                continue
            self._versions[one.name, one.version] = one
            newest = self._workflows.get(one.name)
            if newest is None or newest.version < one.version:
                self._workflows[one.name] = one
            for found in named_in(one.body):
                if isinstance(found, Workflow):
                    todo.append(found)
                elif contracts.setdefault(found.name, found.root) is not found.root:
                    yield f"two contracts are named {found.name}: rename one"

    def workflow(self, name: str, version: int | None = None) -> Workflow[Any, Any, Any]:
        """The workflow of that name, in its newest version if none is named. Raises `NotFound` with the names or versions there are."""
        if name not in self._workflows:
            raise NotFound("workflow", name, list(self._workflows))
        if version is None:
            return self._workflows[name]
        if (name, version) not in self._versions:
            raise NotFound(f"version of {name}", str(version), [str(known) for other, known in self._versions if other == name])
        return self._versions[name, version]

    def knows(self, name: str, version: int) -> bool:
        """Whether it has that version of a workflow."""
        return (name, version) in self._versions

    def binding(self, activity: str) -> Binding:
        """Who implements that activity. Raises `NotFound`."""
        if activity not in self._bindings:
            raise NotFound("bound activity", activity, list(self._bindings))
        return self._bindings[activity]

    def definitions(self, name: str, version: int) -> Callable[[str], Workflow[Any, Any, Any]]:
        """`workflow`, with that one in that version: what an execution of it is folded with."""
        found = self._definitions.get((name, version))
        if found is None:  # kept: each execution that is in memory holds it
            found = self._definitions[name, version] = lambda other: self.workflow(other, version if other == name else None)
        return found

    @property
    def versions(self) -> tuple[tuple[str, int], ...]:
        """Names and versions of all workflows: an execution goes on with the version that it began with, and only with that."""
        return tuple(self._versions)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all workflows, children included."""
        return tuple(self._workflows)


def _two_limits(contracts: Iterable[Activity[Any, Any, Any]]) -> Iterator[str]:
    known: dict[tuple[type, str], tuple[str, Budget]] = {}
    for contract in contracts:
        for budget in contract.policies.budget:
            other, same = known.setdefault((type(budget), budget.name), (contract.name, budget))
            if same != budget:
                yield f"activities {other} and {contract.name} declare {type(budget).__name__} {budget.name!r} differently: make it one value"


def _refusals(check: Callable[[Any], None], definitions: Iterable[Any]) -> Iterator[str]:
    for one in definitions:
        try:
            check(one)
        except FlowError as error:
            yield str(error)
        except NameError as error:
            yield f"{one.name}: {error}, but its annotations say so. Define or import it at the top of its module"


def named_in(function: Callable[..., Any]) -> Iterator[Activity[Any, Any, Any] | Workflow[Any, Any, Any]]:
    """The activities and workflows that a body names, in itself, in its nested functions and in the functions that it calls."""
    yield from _named(function, (Activity, Workflow))


def signals_in(function: Callable[..., Any]) -> Iterator[Signal[Any]]:
    """The signals that a body names, likewise."""
    yield from _named(function, (Signal,))


def _named(function: Callable[..., Any], kinds: tuple[type, ...]) -> Iterator[Any]:
    seen: set[int] = set()
    todo: list[Any] = [function]
    while todo:
        one = inspect.unwrap(todo.pop())
        if id(one) in seen:
            continue
        seen.add(id(one))
        for found in _values_named(one):
            if isinstance(found, kinds):
                yield found
            elif inspect.isfunction(inspect.unwrap(found)) and _same_project(found, function):
                todo.append(found)


def _same_project(found: Any, function: Callable[..., Any]) -> bool:
    return str(getattr(found, "__module__", "")).partition(".")[0] == function.__module__.partition(".")[0]


def _values_named(function: Any) -> Iterator[Any]:
    """What stands behind each name, in the order of the code; `module.name` is followed, an attribute of anything else is not a name."""
    closure = inspect.getclosurevars(function).nonlocals if function.__closure__ else {}
    for code in _codes(function.__code__):
        value: Any = None
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                value = function.__globals__.get(step.argval)
            elif step.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
                value = closure.get(step.argval)
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, ModuleType):
                value = getattr(value, step.argval, None)
            else:
                value = None
            yield value


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
