"""What a call makes: contracts, workflows, combinators, methods of flows, and functions of the project."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache, partial
from types import CodeType, ModuleType
from typing import Any, Final

from attrs import evolve, frozen

from flowdsl import flow as language
from flowdsl.definition import Activity, Workflow
from flowdsl.errors import FlowError
from flowdsl.flow import Flow, Perform, Signal, Sleep
from flowdsl.outline.reading import Reader
from flowdsl.outline.source import written
from flowdsl.outline.spelling import short
from flowdsl.outline.values import Catcher, ChildOf, Flowing, Function, Item, Known, Method, Running, Several, Unknown, Value
from flowdsl.policy import DEFAULT_RETRY, Concurrency, Policies, RateLimit, Retry, shown


@frozen(eq=False)
class Call:
    """A call that is being read."""

    reader: Reader
    node: ast.expr
    args: Sequence[Value]
    named: Mapping[str, Value]

    @property
    def line(self) -> int:
        return self.node.lineno

    def arg(self, index: int, name: str = "") -> Value | None:
        return self.args[index] if index < len(self.args) else self.named.get(name)

    def spelled(self, index: int, name: str = "") -> ast.expr | None:
        if not isinstance(self.node, ast.Call):
            return None
        if index < len(self.node.args):
            return self.node.args[index]
        return next((one.value for one in self.node.keywords if one.arg == name), None)

    def text(self, index: int, name: str = "", *, default: str = "") -> str:
        """An argument for people: text as it is, anything else as it is written."""
        value, node = self.arg(index, name), self.spelled(index, name)
        if isinstance(value, Known) and isinstance(value.value, str):
            return value.value
        return short(node, 40) if node is not None else default

    def flow(self, index: int, name: str = "") -> Item:
        value, node = self.arg(index, name), self.spelled(index, name)
        return flow_of(self.reader, value, node if node is not None else self.node)

    def made(self, function: Value | None, *args: Value) -> Item:
        """The flow that a function argument makes when it is called."""
        if function is None:
            return Item("unknown", "?", line=self.line)
        return flow_of(self.reader, call(self.reader, self.node, function, list(args) or [Unknown("…")], {}), self.node)

    def leaf(self, kind: str, label: str, *asks: str, facts: Mapping[str, str] | None = None, link: str = "", subject: Any = None) -> Item:
        return Item(kind, label, line=self.line, asks=asks, facts=facts or {}, link=link, source=self.node, subject=subject)

    def group(self, kind: str, label: str, *parts: Item, facts: Mapping[str, str] | None = None, asks: tuple[str, ...] = ()) -> Item:
        return Item(kind, label, line=self.line, parts=parts, facts=facts or {}, asks=asks, source=self.node)


def flow_of(reader: Reader, value: Value | None, node: ast.expr) -> Item:
    """The item of a flow; of what is not known to be one, its source."""
    match value:
        case Flowing():
            return value.item
        case Running():
            return Item("sequence", "", line=node.lineno, parts=value.items)
        case Known(Flow() as made):
            return _ready(made, node)
        case _:
            return Item("unknown", short(node), line=node.lineno, source=node)


def _ready(made: Flow[Any, Any], node: ast.expr) -> Item:
    """A flow that a module holds."""
    match made:
        case Perform():
            return _activity(made.activity, node)
        case Sleep():
            return Item("sleep", f"sleep {_time(made.until)}", line=node.lineno, asks=("sleep",), source=node)
        case _:
            return Item("unknown", short(node), line=node.lineno, source=node)


def _time(value: timedelta | datetime) -> str:
    return shown(value) if isinstance(value, timedelta) else value.isoformat()


# Contracts


def _activity(activity: Activity[Any, Any, Any], node: ast.expr) -> Item:
    return Item(
        "activity",
        activity.name,
        line=node.lineno,
        asks=(f"perform {activity.name}",),
        facts=policies_of(activity.policies),
        source=node,
        subject=activity,
    )


def policies_of(policies: Policies) -> dict[str, str]:
    """The policies that differ from what every activity gets, in words."""
    plain = Policies()
    facts: dict[str, str] = {}
    if policies.retry != DEFAULT_RETRY:
        facts["retry"] = retry_of(policies.retry)
    if policies.start_to_close != plain.start_to_close:
        facts["timeout"] = shown(policies.start_to_close)
    if policies.schedule_to_close is not None:
        facts["schedule to close"] = shown(policies.schedule_to_close)
    if policies.heartbeat is not None:
        facts["heartbeat"] = shown(policies.heartbeat)
    if policies.budget:
        facts["budget"] = ", ".join(one.name for one in policies.budget)
    if policies.crash == "fail":
        facts["at most once"] = "yes"
    if policies.transactional:
        facts["transactional"] = "yes"
    return facts


def retry_of(retry: Retry) -> str:
    """A retry policy in words."""
    limit = f" up to {shown(retry.maximum)}" if retry.maximum is not None else ""
    tries = f", {retry.attempts} attempts" if retry.attempts is not None else ", without end"
    return f"{retry.kind} {shown(retry.initial)}{limit}{tries}"


# Calls


def call(reader: Reader, node: ast.expr, function: Value, args: Sequence[Value], named: Mapping[str, Value]) -> Value:
    """What calling that value gives."""
    one = Call(reader, node, args, named)
    match function:
        case Known(Activity() as activity):
            return Flowing(_activity(activity, node))
        case Known(Workflow() as workflow):
            inlined = _workflow(reader, workflow, args)
            return Flowing(inlined)
        case Known(value):
            return _known(one, value)
        case Function():
            return _function(one, function)
        case Method(of, name):
            return _method(one, of, name)
        case Catcher(kind, handler):
            failing = evolve(one.made(handler), when=f"on {kind}")
            return Flowing(one.group("catch", f"catch {kind}", one.flow(0), failing))
        case _:
            return Unknown(short(node))


def _workflow(reader: Reader, workflow: Workflow[Any, Any, Any], args: Sequence[Value]) -> Item:
    source = written(workflow.body)
    if source is None:
        return Item("unknown", workflow.name)
    return reader.body("workflow", workflow.name, Function(source), args)


def _function(one: Call, function: Function) -> Value:
    reader, node = one.reader, function.written.node
    if function.part:
        return Flowing(reader.body("part", function.written.name, function, one.args, one.named))
    if isinstance(node, ast.AsyncFunctionDef):
        return Unknown(short(one.node))
    generator = function.written.generator
    if reader.active(node) or reader.deep:
        return Flowing(Item("again", function.written.name, link=function.written.name, line=one.line), sure=False) if generator else Unknown("…")
    items, given = reader.called(function, one.args, one.named, "generator" if generator else "plain")
    return Running(tuple(item for item in items if item.kind != "return"), given) if generator else given


MADE: Final = next(one for one in language.do.__code__.co_consts if isinstance(one, CodeType))
"""The code of every function that `@do` has made."""


def _known(one: Call, value: Any) -> Value:
    from flowdsl.outline.combinators import COMBINATORS

    try:
        made = COMBINATORS.get(value)
    except TypeError:
        made = None
    if made is not None:
        return made(one)
    if isinstance(value, partial):
        return _partial(one, value)
    if inspect.isfunction(value):
        source = written(value)
        if source is None or not _followed(value):
            return Unknown(short(one.node))
        return _function(one, Function(source, part=value.__code__ is MADE))
    if value in _CONCRETE or (inspect.ismethod(value) and value.__self__ is Retry):
        return _concrete(one, value)
    return Unknown(short(one.node), kind="set" if value in (set, frozenset) else "")


_CONCRETE: Final = (timedelta, RateLimit, Concurrency)


def _concrete(one: Call, value: Any) -> Value:
    """A policy or a span, where all of its arguments are known."""
    args, named = [getattr(arg, "value", ...) for arg in one.args], {name: getattr(arg, "value", ...) for name, arg in one.named.items()}
    if ... in args or ... in named.values():
        return Unknown(short(one.node))
    try:
        return Known(value(*args, **named))
    except (FlowError, TypeError, ValueError):
        return Unknown(short(one.node))


def _partial(one: Call, value: partial[Any]) -> Value:
    source = written(value.func)
    if source is None:
        return Unknown(short(one.node))
    part = getattr(value.func, "__code__", None) is MADE
    given = tuple(Known(arg) for arg in value.args)
    return _function(one, Function(source, part=part, given=given, named={name: Known(arg) for name, arg in value.keywords.items()}))


_TELLING: Final = ("Flow", "Steps", "Generator", "Iterator", "Child", "Node", "Callable", "Any", "Signal", "Workflow", "Activity")


@cache
def _followed(function: Callable[..., Any]) -> bool:
    """Whether a plain function may build a flow: neither Python's own nor one whose annotation says something else."""
    plain = inspect.unwrap(function)
    if function.__code__ is MADE:
        return True
    if str(plain.__module__).partition(".")[0] in sys.stdlib_module_names or plain.__module__ in ("flowdsl.flow", "flowdsl.definition"):
        return False
    said = str(plain.__annotations__.get("return", "Any"))
    return any(word in said for word in _TELLING)


# Attributes and methods


def attribute(of: Value, name: str, node: ast.expr) -> Value:
    """`of.name`: what it is, or a method to be called."""
    if isinstance(of, Known) and not isinstance(of.value, (Activity, Workflow, Signal, Flow)):
        found: object = inspect.getattr_static(of.value, name, None)
        if isinstance(of.value, (ModuleType, type)) or (found is not None and not isinstance(found, property) and not callable(found)):
            try:
                return Known(getattr(of.value, name))
            except Exception:
                return Unknown(short(node))
    return Method(of, name)


def _method(one: Call, of: Value, name: str) -> Value:
    from flowdsl.outline.combinators import METHODS

    match of:
        case Known(Activity() as activity):
            return _using(one, activity) if name == "using" else Unknown(short(one.node))
        case Known(Workflow() as workflow):
            return _of_workflow(one, workflow, name)
        case Known(Signal() as signal) if name in ("receive", "take", "send"):
            return Flowing(_mail(one, name, signal.name))
        case ChildOf() if name in ("join", "cancel"):
            return Flowing(_of_child(one, of, name))
        case Several():
            return _of_rows(one, of, name)
        case Flowing() | Known(Flow()) if name in METHODS:
            return METHODS[name](one, of)
        case Known():
            return Unknown(short(one.node))
        case _:
            return _of_unknown(one, of, name)


def _of_unknown(one: Call, of: Value, name: str) -> Value:
    """A method of who knows what: if it is bound, then it was a flow's, a child's or a signal's."""
    from flowdsl.outline.combinators import METHODS

    receiver = one.node.func.value if isinstance(one.node, ast.Call) and isinstance(one.node.func, ast.Attribute) else one.node
    if name in ("join", "cancel") and not one.args:
        return Flowing(_of_child(one, ChildOf(None), name), sure=False)
    if name in ("receive", "take", "send") and len(one.args) <= 2:
        return Flowing(_mail(one, name, ""), sure=False)
    if name in METHODS:
        guess = METHODS[name](one, Flowing(Item("unknown", short(receiver), line=one.line), sure=False))
        return evolve(guess, sure=False) if isinstance(guess, Flowing) else guess
    return Unknown(short(one.node))


def _using(one: Call, activity: Activity[Any, Any, Any]) -> Value:
    known = {name: value.value for name, value in one.named.items() if isinstance(value, Known)}
    try:
        return Known(activity.using(**known))
    except (FlowError, TypeError):
        return Known(activity)


def _of_workflow(one: Call, workflow: Workflow[Any, Any, Any], name: str) -> Value:
    if name not in ("child", "start", "existing"):
        return Unknown(short(one.node))
    one.reader.children.setdefault(workflow.name, workflow)
    if name == "existing":
        return Flowing(one.leaf("existing", f"existing {workflow.name}", f"existing {workflow.name}", link=workflow.name))
    detached = one.named.get("detached")
    facts = {"detached": "yes"} if isinstance(detached, Known) and detached.value else {}
    if "on_close" in one.named:
        facts["on close"] = one.text(9, "on_close")
    start = f"start {workflow.name}"
    if name == "child":
        return Flowing(one.leaf("child", workflow.name, start, f"join {workflow.name}", link=workflow.name, subject=workflow))
    return Flowing(one.leaf("start", start, start, link=workflow.name, facts=facts, subject=workflow), gives=ChildOf(workflow))


def _of_child(one: Call, child: ChildOf, name: str) -> Item:
    kind, link = ("join", "join") if name == "join" else ("cancel-child", "cancel"), child.workflow.name if child.workflow is not None else ""
    if not link and isinstance(one.node, ast.Call) and isinstance(one.node.func, ast.Attribute):
        return one.leaf(kind[0], f"{kind[1]} {short(one.node.func.value)}", kind[0])
    return one.leaf(kind[0], f"{kind[1]} {link}", f"{kind[0]} {link}", link=link)


def _mail(one: Call, name: str, signal: str) -> Item:
    called = signal or (short(one.node.func.value) if isinstance(one.node, ast.Call) and isinstance(one.node.func, ast.Attribute) else "")
    key = one.text(0, "key" if name != "send" else "to")
    facts = {"to" if name == "send" else "key": key} if key else {}
    return one.leaf(name, f"{name} {called}", f"{name} {signal}".rstrip(), facts=facts)


def _of_rows(one: Call, rows: Several, name: str) -> Value:
    first = one.arg(0)
    if name in ("append", "add", "appendleft") and first is not None:
        rows.rows.append(("", first, one.reader.looping))
        return Known(None)
    if name == "extend" and isinstance(first, Several):
        rows.rows += first.rows
        return Known(None)
    return rows if name in ("items", "values", "copy") else Unknown(short(one.node), kind="set" if rows.unordered else "")


__all__ = ["MADE", "Call", "attribute", "call", "flow_of", "policies_of", "retry_of"]
