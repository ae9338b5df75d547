"""What a body's own text must not hold: exceptions around binds, lost flows, order that differs, values that change behind its back."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Final

import attrs
from attrs import define

from flowdsl.flow import Flow
from flowdsl.lint.finding import Finding, finding
from flowdsl.outline.reading import Read, Reader
from flowdsl.outline.source import Spelled, own, parsed
from flowdsl.outline.values import BODIES, Flowing, Known, Several, Value, unordered

_CHANGING: Final = frozenset(
    [
        "append",
        "appendleft",
        "extend",
        "add",
        "update",
        "insert",
        "remove",
        "pop",
        "popleft",
        "popitem",
        "clear",
        "setdefault",
        "discard",
        "sort",
        "reverse",
    ]
)
_ORDERLESS: Final = frozenset(["sorted", "set", "frozenset", "sum", "min", "max", "any", "all", "len"])
_LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@define
class Text:
    """The text of one function that was read."""

    reader: Reader
    read: Read
    parents: dict[ast.AST, ast.AST]

    @classmethod
    def of(cls, reader: Reader, read: Read) -> Text:
        return cls(reader, read, {child: node for node in ast.walk(read.written.node) for child in ast.iter_child_nodes(node)})

    def findings(self) -> Iterator[Finding]:
        for rule in (self.waits, self.tries, self.dropped, self.yields, self.flows_as_lists, self.sets, self.loop_variables, self.globals):
            yield from rule()

    def _found(self, rule: str, node: ast.AST, message: str) -> Finding:
        written = self.read.written
        return finding(rule, message, written.file, getattr(node, "lineno", written.node.lineno), written.name)

    def _value(self, node: ast.AST | None) -> Value | None:
        return self.reader.values.get(node) if node is not None else None

    @property
    def _own(self) -> list[ast.AST]:
        return own(self.read.written.node)

    def _around(self, node: ast.AST) -> Iterator[ast.AST]:
        while node in self.parents:
            node = self.parents[node]
            yield node

    # await

    def waits(self) -> Iterator[Finding]:
        node = self.read.written.node
        inner = [one for one in ast.walk(node) if isinstance(one, ast.AsyncFunctionDef)]
        advice = "a body is a generator and never awaits: bind a flow with `yield from`, and await in an activity's implementation"
        yield from (self._found("async", one, f"`async def {one.name}` in a body: {advice}") for one in inner)
        for one in self._own:
            asynchronous = isinstance(one, (ast.Await, ast.AsyncFor, ast.AsyncWith)) or (isinstance(one, ast.comprehension) and one.is_async)
            if asynchronous:
                yield self._found("async", one, f"`await` or `async`: {advice}")

    # try and with

    def tries(self) -> Iterator[Finding]:
        for one in self._own:
            if isinstance(one, (ast.Try, ast.TryStar)) and _binds(one.body):
                what, remedy = ("finally", "`.ensure(…)`") if one.finalbody else ("except", "`.attempt()`, `.catch(…)` or `.isolate()`")
                yield self._found("try", one, f"`try … {what}` around a bind: a failure ends the body without raising. Use {remedy}")
            elif isinstance(one, ast.With) and _binds(one.body):
                held = ast.unparse(one.items[0].context_expr)
                yield self._found("try", one, f"`with {held}` around a bind: nothing stays open while a workflow waits. Use `.ensure(…)`")

    # Flows that nobody binds

    def dropped(self) -> Iterator[Finding]:
        loaded = {one.id for one in ast.walk(self.read.written.node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)}
        for one in self._own:
            if isinstance(one, ast.Expr) and self._is_flow(one.value):
                yield self._found("dropped", one, f"`{_brief(one.value)}` is built and dropped, nothing runs: write `yield from` before it")
            elif (
                isinstance(one, ast.Assign)
                and isinstance(target := one.targets[0], ast.Name)
                and target.id not in loaded
                and self._is_flow(one.value)
            ):
                yield self._found("dropped", one, f"the flow in `{target.id}` is never bound, nothing runs: write `{target.id} = yield from …`")

    def _is_flow(self, node: ast.expr) -> bool:
        value = self._value(node)
        if isinstance(value, Several):
            return bool(value.rows) and all(isinstance(row, Flowing) and row.sure for _, row, _ in value.rows)
        return (isinstance(value, Flowing) and value.sure) or (isinstance(value, Known) and isinstance(value.value, Flow))

    def yields(self) -> Iterator[Finding]:
        delegates = any(isinstance(one, ast.YieldFrom) for one in self._own)
        for one in self._own:
            if isinstance(one, ast.Yield) and (delegates or self.read.role in BODIES):  # other generators only make values
                yield self._found("bare-yield", one, "a bare `yield` hands the machine nothing: write `yield from`")
            elif isinstance(one, ast.YieldFrom) and isinstance(self._value(one.value), Several):
                yield self._found("bare-yield", one, f"`yield from {_brief(one.value)}` delegates to a list: bind `each(…)` or `all_(…)`")

    def flows_as_lists(self) -> Iterator[Finding]:
        for one in self._own:
            taken: list[ast.expr] = []
            if isinstance(one, (ast.For, ast.comprehension)):
                taken = [one.iter]
            elif isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id in ("list", "tuple", "next", "iter", "sorted", "set"):
                taken = one.args[:1]
            for node in taken:
                value = self._value(node)
                if isinstance(value, Flowing) and value.sure:
                    line = node if isinstance(one, ast.comprehension) else one
                    yield self._found("flow-as-list", line, f"`{_brief(node)}` is a flow, not its answer: bind it first, `yield from {_brief(node)}`")

    # Order

    def sets(self) -> Iterator[Finding]:
        for one in self._own:
            if isinstance(one, ast.For) and self._is_set(one.iter) and (_binds(one.body) or _appends(one.body)):
                yield self._unsorted(one, one.iter)
            elif isinstance(one, (ast.ListComp, ast.DictComp, ast.GeneratorExp)) and not self._orderless(one):
                if any(self._is_set(part.iter) for part in one.generators):
                    yield self._unsorted(one, one.generators[0].iter)
            elif isinstance(one, ast.Call) and _name(one.func) in ("each", "each_attempt", "list", "tuple", "enumerate", "zip", "iter"):
                for arg in one.args[: 1 if _name(one.func).startswith("each") else None]:
                    if self._is_set(arg) and not self._orderless(one):
                        yield self._unsorted(one, arg)

    def _unsorted(self, node: ast.AST, items: ast.expr) -> Finding:
        return self._found("set-order", node, f"a set has another order in another process: go through `sorted({_brief(items)})`")

    def _orderless(self, node: ast.AST) -> bool:
        around = self.parents.get(node)
        return isinstance(around, ast.Call) and _name(around.func) in _ORDERLESS

    def _is_set(self, node: ast.expr) -> bool:
        value = self._value(node)
        if value is not None and unordered(value):
            return True
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
            return False
        spelled = self.read.written.node
        hints = {arg.arg: arg.annotation for one in ast.walk(spelled) if isinstance(one, ast.arguments) for arg in (*one.args, *one.kwonlyargs)}
        hint = hints.get(node.value.id)
        held = self.read.written.names.get(hint.id) if isinstance(hint, ast.Name) else None
        return _field_is_set(held, node.attr) if isinstance(held, type) and attrs.has(held) else False

    # Names

    def loop_variables(self) -> Iterator[Finding]:
        for made in ast.walk(self.read.written.node):
            if isinstance(made, (ast.Lambda, ast.FunctionDef)) and made is not self.read.written.node and self._owner(made) is self.read.written.node:
                free = _free(made)
                for loop in self._loops_to_bind(made):
                    for name in sorted(free & _changes_in(loop)):
                        advice = f"give it to the function as a default, `{name}={name}`, or as an argument of a `@do` part"
                        yield self._found("loop-variable", made, f"it reads `{name}` when the loop has gone on: {advice}")
                        free.discard(name)

    def _owner(self, node: ast.AST) -> ast.AST | None:
        return next((one for one in self._around(node) if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))), None)

    def _loops_to_bind(self, made: ast.AST) -> Iterator[ast.AST]:
        """The loops that go on before the flow that this function is in is bound: those between it and the next `yield from`."""
        flowing = False
        inner: ast.AST = made
        for one in self._around(made):
            value = self._value(one)
            flowing = flowing or isinstance(value, Flowing)
            if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                return
            if isinstance(one, ast.YieldFrom):
                return
            if isinstance(one, (ast.Assign, ast.AnnAssign)) and _bound_here(one, self._body_of(one)):
                return
            if isinstance(one, ast.Return):
                return
            if isinstance(one, _LOOPS) and (flowing or self._kept(made)) and not (isinstance(one, _COMPREHENSIONS) and inner is one.generators[0]):
                yield one
            inner = one

    def _body_of(self, node: ast.AST) -> ast.AST:
        return next((one for one in self._around(node) if isinstance(one, (ast.For, ast.While))), self.read.written.node)

    def _kept(self, made: ast.AST) -> bool:
        """A function defined in a loop whose flows are gathered there, and bound after it."""
        if not isinstance(made, ast.FunctionDef):
            return False
        uses = [one for one in ast.walk(self._body_of(made)) if isinstance(one, ast.Name) and one.id == made.name and isinstance(one.ctx, ast.Load)]
        return any(
            isinstance(around, ast.Call) and isinstance(around.func, ast.Attribute) and around.func.attr in ("append", "add", "extend")
            for use in uses
            for around in self._around(use)
        )

    def globals(self) -> Iterator[Finding]:
        node, names = self.read.written.node, self.read.written.names
        inside = {name: where for where, name in _changes(node)}
        local = {name for scope in _scopes(self.read) for name in scope} | _locals(node)
        told: set[str] = set()
        for one in self._own:
            if not isinstance(one, ast.Name) or one.id in local or one.id in told or one.id not in names:
                continue
            if isinstance(names[one.id], (list, dict, set, bytearray, deque)) and (
                one.id in inside or one.id in _changed_names(parsed(self.read.written.file))
            ):
                told.add(one.id)
                what = "is changed by this body" if one.id in inside else "is changed elsewhere in its module"
                advice = "another worker has another one: keep it in the workflow's state, or in an activity"
                yield self._found("global-state", inside.get(one.id, one), f"the global `{one.id}` {what}: {advice}")
        for statement in self._own:
            if isinstance(statement, ast.Global):
                text = f"`global {', '.join(statement.names)}`: what a body changes outside of itself is lost with its worker: return it"
                yield self._found("global-state", statement, text)


def lost(reader: Reader, read: Read, step: Spelled) -> Iterator[Finding]:
    """What the step function of `iterate` changes outside of itself: after a checkpoint no earlier round is replayed."""
    mine = _locals(step)
    for where, name in _changes(step):
        if name not in mine:
            advice = "a resumed loop has lost what earlier rounds did to it: carry it in the state, `Next(…)`"
            yield finding("lost-in-iterate", f"`{name}` is changed in a round: {advice}", read.written.file, where.lineno, read.written.name)


# Reading


def _binds(body: Iterable[ast.AST]) -> bool:
    todo = list(body)
    while todo:
        one = todo.pop()
        if isinstance(one, ast.YieldFrom):
            return True
        if not isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo += ast.iter_child_nodes(one)
    return False


def _appends(body: Iterable[ast.AST]) -> bool:
    calls = [one for node in body for one in ast.walk(node) if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute)]
    return any(isinstance(one.func, ast.Attribute) and one.func.attr in ("append", "extend", "insert") for one in calls)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _brief(node: ast.expr) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 40 else text[:39] + "…"


def _locals(node: Spelled) -> set[str]:
    """The names that belong to a function: parameters, and what is assigned there."""
    names = {one.id for one in own(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    outer = {name for one in own(node) if isinstance(one, (ast.Global, ast.Nonlocal)) for name in one.names}
    names |= {one.name for one in own(node) if isinstance(one, (ast.FunctionDef, ast.ClassDef, ast.MatchAs, ast.MatchStar)) and one.name}
    return (names - outer) | _parameters(node)


def _parameters(node: Spelled) -> set[str]:
    spelled = node.args
    rest = [one for one in (spelled.vararg, spelled.kwarg) if one is not None]
    return {one.arg for one in (*spelled.posonlyargs, *spelled.args, *spelled.kwonlyargs, *rest)}


def _free(node: ast.Lambda | ast.FunctionDef) -> set[str]:
    """The names that a function reads when it is called, and does not have itself."""
    bodies = node.body if isinstance(node, ast.FunctionDef) else [node.body]
    loads = {one.id for body in bodies for one in ast.walk(body) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)}
    return loads - _locals(node)


def _changes_in(loop: ast.AST) -> set[str]:
    """The names that a loop gives another value in each round."""
    if isinstance(loop, _COMPREHENSIONS):
        return {one.id for part in loop.generators for one in ast.walk(part.target) if isinstance(one, ast.Name)}
    return {one.id for one in ast.walk(loop) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


def _bound_here(assigned: ast.Assign | ast.AnnAssign, body: ast.AST) -> bool:
    """Whether what is assigned there is bound in the same round."""
    targets = assigned.targets if isinstance(assigned, ast.Assign) else [assigned.target]
    names = {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    binds = [one for one in ast.walk(body) if isinstance(one, ast.YieldFrom)]
    return any(isinstance(one, ast.Name) and one.id in names for bind in binds for one in ast.walk(bind))


def _changes(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Where something that a name holds is changed in place, or a name of further out is given another value."""
    outer = {name for one in ast.walk(node) if isinstance(one, (ast.Nonlocal, ast.Global)) for name in one.names}
    for one in ast.walk(node):
        match one:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr)) if attr in _CHANGING:
                yield one, name
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                yield one, name
            case ast.Name(id=name, ctx=ast.Store()) if name in outer:
                yield one, name
            case _:
                pass


@cache
def _changed_names(tree: ast.Module | None) -> frozenset[str]:
    """The globals of a module that its functions change."""
    if tree is None:
        return frozenset()
    functions = [one for one in ast.walk(tree) if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))]
    changed = ((name, function) for function in functions for name in {name for _, name in _changes(function)})
    return frozenset(name for name, function in changed if name not in _locals(function))


def _scopes(read: Read) -> Iterator[dict[str, Any]]:
    scope = read.scope.outer
    while scope is not None:
        yield scope.names
        scope = scope.outer


def _field_is_set(held: type, name: str) -> bool:
    field = next((one for one in attrs.fields(held) if one.name == name), None)
    spelled = getattr(field, "type", None)
    text = spelled if isinstance(spelled, str) else str(getattr(spelled, "__origin__", spelled))
    return any(text.startswith(word) for word in ("set", "frozenset", "<class 'set'", "<class 'frozenset'", "Set[", "FrozenSet["))


__all__ = ["Text", "lost"]
