"""Reads bodies: each bind in its order, with the branches and loops around it. Nothing of the user's runs."""

from __future__ import annotations

import ast
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import define, field, frozen

from flowdsl.definition import Workflow
from flowdsl.outline.source import Scope, Written
from flowdsl.outline.spelling import captured, key_of, parameters, short
from flowdsl.outline.values import BODIES, Flowing, Function, Item, Known, Running, Several, Unknown, Value, either, trimmed, unordered

DEPTH = 40
"""How deep calls of plain functions are followed."""
MOST = 1000
"""How many items a plain function may make before it is only named."""


@frozen(eq=False)
class Read:
    """A function that was read, and what its names stood for at its end. `role`: workflow, part, generator or plain."""

    written: Written
    scope: Scope
    role: str


@define(eq=False)
class _Frame:
    scope: Scope
    own_sites: bool
    loops: int = 0
    returned: list[Value] = field(factory=list[Value])


class Reader:
    """Follows one or several workflows. `read` and `values` remember what was seen on the way, for who looks for mistakes."""

    def __init__(self) -> None:
        self.read: dict[ast.AST, Read] = {}
        self.values: dict[ast.AST, Value] = {}
        self.children: dict[str, Workflow[Any, Any, Any]] = {}
        self._given: dict[ast.AST, Value | None] = {}
        self._bodies: dict[Any, Item] = {}
        self._called: dict[Any, tuple[list[Item], Value]] = {}
        self._sizes: dict[int, int] = {}
        self._kept: list[Any] = []  # what keys name by id
        self._active: list[ast.AST] = []
        self._frames: list[_Frame] = []

    # Functions

    def body(self, kind: str, label: str, function: Function, args: Sequence[Value] = (), named: Mapping[str, Value] | None = None) -> Item:
        """A body as an item: read once for the same flows and functions given to it."""
        node = function.written.node
        if node in self._active:
            return Item("again", label, link=label, line=node.lineno)
        key = self._key(function, kind, args, named or {})
        if key not in self._bodies:
            items, _ = self.run(function, args, named or {}, kind)
            subject = function.written
            self._bodies[key] = Item(kind, label, line=node.lineno, parts=tuple(trimmed(items)), source=node, subject=subject)
        return self._bodies[key]

    def _key(self, function: Function, role: str, args: Sequence[Value], named: Mapping[str, Value]) -> Any:
        """The same for calls that read the same: what else is given makes no difference to a picture."""
        shapes = [one if isinstance(one, (Flowing, Function, Several, Running)) else None for one in (*args, *named.values())]
        self._kept += [function, shapes]
        return function.written.node, role, id(function.outer), tuple(map(id, shapes))

    def called(self, function: Function, args: Sequence[Value], named: Mapping[str, Value], role: str) -> tuple[list[Item], Value]:
        """What a plain function binds and returns: a module's is read once for the same flows and functions given to it."""
        if function.outer is not None:
            return self.run(function, args, named, role)
        key = self._key(function, role, args, named)
        if key not in self._called:
            items, given = self.run(function, args, named, role)
            if sum(map(self._size, items)) + (self._size(given.item) if isinstance(given, Flowing) else 0) > MOST:
                unfolded = Item("unknown", f"{function.written.name}(…)", line=function.written.node.lineno)
                items, given = [unfolded] * bool(items), Flowing(unfolded) if isinstance(given, Flowing) else given
            self._called[key] = (items, given)
        return self._called[key]

    def _size(self, item: Item) -> int:
        """How many items a picture of it would have; functions that call each other twice double it each time."""
        if id(item.parts) not in self._sizes:
            self._kept.append(item)
            self._sizes[id(item.parts)] = 1 + (0 if item.kind in BODIES else sum(map(self._size, item.parts)))
        return self._sizes[id(item.parts)]

    def run(self, function: Function, args: Sequence[Value], named: Mapping[str, Value], role: str) -> tuple[list[Item], Value]:
        """What a call of it binds, and what it returns."""
        written = function.written
        scope = Scope(written, function.outer)
        scope.names |= parameters(written.node, (*function.given, *args), {**function.named, **named})
        frame = _Frame(scope, role in ("workflow", "part"))
        self._active.append(written.node)
        self._frames.append(frame)
        try:
            if isinstance(written.node, ast.Lambda):
                items = self._binds(written.node.body)
                frame.returned.append(self.value(written.node.body))
            else:
                items = self._block(written.node.body)
        finally:
            self._frames.pop()
            self._active.pop()
        known = self.read.get(written.node)
        if known is None or role in ("workflow", "part"):
            self.read[written.node] = Read(written, scope, role)
        return items, either(frame.returned)

    @property
    def deep(self) -> bool:
        return len(self._active) > DEPTH

    def active(self, node: ast.AST) -> bool:
        return node in self._active

    @property
    def looping(self) -> bool:
        """Whether what is read stands in a loop of its function."""
        return self._frames[-1].loops > 0

    @property
    def scope(self) -> Scope:
        return self._frames[-1].scope

    # Statements

    def _block(self, statements: Iterable[ast.stmt]) -> list[Item]:
        return [item for statement in statements for item in self._statement(statement)]

    def _statement(self, node: ast.stmt) -> list[Item]:
        match node:
            case ast.Assign(targets, value):
                items = self._binds(value)
                given = self.value(value)
                for target in targets:
                    items += self._binds(target)
                    self._assign(target, given)
                return items
            case ast.AnnAssign(target, _, value):
                items = self._binds(value) if value is not None else []
                if value is not None:
                    self._assign(target, self.value(value))
                return items
            case ast.AugAssign(target, _, value):
                items = self._binds(value)
                before, more = self.value(target), self.value(value)
                if isinstance(before, Several) and isinstance(more, Several):
                    before.rows += more.rows
                else:
                    self._assign(target, Unknown(short(target), kind=getattr(before, "kind", "")))
                return items
            case ast.Return(value):
                items = self._binds(value) if value is not None else []
                self._frames[-1].returned.append(self.value(value) if value is not None else Known(None))
                return [*items, Item("return", "return", line=node.lineno)]
            case ast.Expr(value):
                items = self._binds(value)
                self.value(value)
                return items
            case ast.If():
                return self._if(node)
            case ast.Match():
                return self._match(node)
            case ast.While() | ast.For():
                return self._loop(node)
            case ast.With(items=withs, body=body):
                begun = [item for one in withs for item in self._binds(one.context_expr)]
                for one in withs:
                    if one.optional_vars is not None:
                        self._assign(one.optional_vars, Unknown(short(one.context_expr)))
                return begun + self._block(body)
            case ast.Try() | ast.TryStar():
                return self._try(node)
            case ast.FunctionDef():
                self.scope.names[node.name] = self._defined(node)
                return []
            case ast.AsyncFunctionDef() | ast.ClassDef():
                self.scope.names[node.name] = Unknown(node.name)
                return []
            case ast.Break() | ast.Continue():
                word = type(node).__name__.lower()
                return [Item(word, word, line=node.lineno)]
            case ast.Raise():
                return [*(item for child in ast.iter_child_nodes(node) for item in self._binds(child)), Item("raise", "raise", line=node.lineno)]
            case _:
                return [item for child in ast.iter_child_nodes(node) for item in self._binds(child)]

    def _defined(self, node: ast.FunctionDef) -> Value:
        """A function in a function, with what its decorators make of it, innermost first."""
        from flowdsl.outline.calls import call

        around = self.scope.written
        made: Value = Function(Written(node, around.file, node.name, around.names), self.scope)
        for decorator in reversed(node.decorator_list):
            made = call(self, decorator, self.value(decorator), [made], {})
        return made

    def _if(self, node: ast.If) -> list[Item]:
        items = self._binds(node.test)
        self.value(node.test)
        (yes, no) = self._alternatives([node.body, node.orelse])
        condition = short(node.test)
        if not yes and not no:
            return items
        parts = (Item("sequence", "", "yes", parts=tuple(yes)), Item("sequence", "", "no", parts=tuple(no)))
        return [*items, Item("choice", f"{condition}?", line=node.lineno, parts=parts, source=node)]

    def _match(self, node: ast.Match) -> list[Item]:
        items = self._binds(node.subject)
        self.value(node.subject)
        for case in node.cases:
            for name in captured(case.pattern):
                self.scope.names[name] = Unknown(name)
        whens = [short(case.pattern) + (f" if {short(case.guard)}" if case.guard else "") for case in node.cases]
        guards = [self._binds(case.guard) if case.guard else [] for case in node.cases]
        bodies = self._alternatives([case.body for case in node.cases])
        if not any(bodies) and not any(guards):
            return items
        parts = [
            Item("sequence", "", when, parts=(*guard, *body), line=case.pattern.lineno)
            for when, guard, body, case in zip(whens, guards, bodies, node.cases, strict=True)
        ]
        last = node.cases[-1]
        if last.guard is not None or not (isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None):
            parts.append(Item("sequence", "", "nothing fits"))
        return [*items, Item("choice", f"match {short(node.subject)}", line=node.lineno, parts=tuple(parts), source=node)]

    def _alternatives(self, blocks: Sequence[Sequence[ast.stmt]]) -> list[list[Item]]:
        """Each block from the same names; after them a name stands for either of what the blocks made of it."""
        before = self.scope.names
        found: list[list[Item]] = []
        after: list[dict[str, Value]] = []
        for block in blocks:
            self.scope.names = dict(before)
            found.append(self._block(block))
            after.append(self.scope.names)
        self.scope.names = before
        for name in {name for names in after for name in names}:
            values = list({id(one): one for names in after if (one := names.get(name)) is not None}.values())
            before[name] = values[0] if len(values) == 1 else either(values)
        return found

    def _loop(self, node: ast.While | ast.For) -> list[Item]:
        if isinstance(node, ast.For):
            items = self._binds(node.iter)
            over = self.value(node.iter)
            self._assign(node.target, either([value for _, value, _ in over.rows]) if isinstance(over, Several) and over.rows else None)
            test, label = [], f"for {short(node.target)} in {short(node.iter)}"
        else:
            items, test = [], self._binds(node.test)
            self.value(node.test)
            endless = isinstance(node.test, ast.Constant) and node.test.value
            label = "again and again" if endless else f"while {short(node.test)}"
        self._frames[-1].loops += 1
        body = self._block(node.body)
        self._frames[-1].loops -= 1
        after = self._block(node.orelse)
        if not body and not test:
            return items + after
        return [*items, Item("loop", label, line=node.lineno, parts=(*test, *body), source=node), *after]

    def _try(self, node: ast.Try | ast.TryStar) -> list[Item]:
        items = self._block(node.body)
        for handler in node.handlers:
            if handler.name:
                self.scope.names[handler.name] = Unknown(handler.name)
        handled = [Item("sequence", "", short(one.type) if one.type else "any", parts=tuple(self._block(one.body))) for one in node.handlers]
        if any(one.parts for one in handled):
            items.append(Item("choice", "except", line=node.lineno, parts=(Item("sequence", "", "no"), *handled), source=node))
        return items + self._block(node.orelse) + self._block(node.finalbody)

    def _assign(self, target: ast.expr, value: Value | None) -> None:
        match target:
            case ast.Name(name):
                self.scope.names[name] = value or Unknown(name)
            case ast.Tuple(parts) | ast.List(parts):
                rows = [one for _, one, _ in value.rows] if isinstance(value, Several) and len(value.rows) == len(parts) else [None] * len(parts)
                for part, one in zip(parts, rows, strict=True):
                    self._assign(part, one)
            case ast.Starred(part):
                self._assign(part, None)
            case ast.Subscript(holder, index):
                held = self.value(holder)
                if isinstance(held, Several) and value is not None:
                    held.rows.append((key_of(index), value, not isinstance(index, ast.Constant)))
            case _:
                pass

    # Binds

    def _binds(self, node: ast.AST) -> list[Item]:
        """The binds in an expression, in the order in which they run."""
        match node:
            case ast.YieldFrom(value):
                return [*self._binds(value), *self._bind(node, value)]
            case ast.Lambda() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                return []
            case ast.IfExp(test, yes, no):
                return self._binds(test) + self._either(test, [("yes", self._binds(yes)), ("no", self._binds(no))], "?")
            case ast.BoolOp(op, [first, *rest]):
                word = "and" if isinstance(op, ast.And) else "or"
                later = [item for one in rest for item in self._binds(one)]
                return self._binds(first) + self._either(first, [(word, later), ("else", [])], f" {word} …")
            case _:
                return [item for child in ast.iter_child_nodes(node) for item in self._binds(child)]

    def _either(self, test: ast.expr, branches: list[tuple[str, list[Item]]], mark: str) -> list[Item]:
        if not any(items for _, items in branches):
            return []
        parts = tuple(Item("sequence", "", when, parts=tuple(items)) for when, items in branches)
        return [Item("choice", short(test) + mark, line=test.lineno, parts=parts)]

    def _bind(self, node: ast.YieldFrom, value: ast.expr) -> list[Item]:
        from flowdsl.outline.calls import flow_of

        found = self.value(value)
        self._given[node] = getattr(found, "gives", None)
        items = list(found.items) if isinstance(found, Running) else [flow_of(self, found, value)]
        if not self._frames[-1].own_sites:  # a plain generator: who delegates to it is where the journal sees the bind
            return items
        site = self.scope.written.site(node.lineno)
        return [item.at(site) for item in items]

    # Expressions

    def value(self, node: ast.expr) -> Value:
        """What an expression stands for."""
        found = self.values[node] = self._value(node)
        return found

    def _value(self, node: ast.expr) -> Value:
        from flowdsl.outline.calls import attribute, call

        match node:
            case ast.Constant(value):
                return Known(value)
            case ast.Name(name):
                return self._named(name)
            case ast.Attribute(of, name):
                return attribute(self.value(of), name, node)
            case ast.Call(function, args, keywords):
                given = [self.value(arg) for arg in args]
                named = {one.arg or "**": self.value(one.value) for one in keywords}
                return call(self, node, self.value(function), given, named)
            case ast.IfExp(test, yes, no):
                self.value(test)
                return either([self.value(yes), self.value(no)], f"{short(test)}?")
            case ast.BoolOp():
                return either([self.value(one) for one in node.values])
            case ast.NamedExpr(target, value):
                self._assign(target, new := self.value(value))
                return new
            case ast.Starred(value):
                return self.value(value)
            case ast.Lambda():
                around = self.scope.written
                return Function(Written(node, around.file, "<lambda>", around.names), self.scope)
            case ast.YieldFrom(bound):
                return self._given.get(node) or Unknown(short(bound))
            case ast.List() | ast.Tuple() | ast.Set() | ast.Dict():
                return self._display(node)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return self._comprehension(node)
            case ast.Subscript(of, index):
                return self._item(self.value(of), index, node)
            case ast.BinOp(left, op, right):
                one, other = self.value(left), self.value(right)
                if isinstance(one, Several) and isinstance(other, Several) and isinstance(op, (ast.Add, ast.BitOr)):
                    return Several([*one.rows, *other.rows], one.unordered or other.unordered)
                sets = isinstance(op, (ast.BitOr, ast.BitAnd, ast.Sub, ast.BitXor)) and (unordered(one) or unordered(other))
                return Unknown(short(node), kind="set" if sets else "")
            case _:
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self.value(child)
                return Unknown(short(node))

    def _named(self, name: str) -> Value:
        known: Value | None = self.scope.find(name)
        if known is not None:
            return known
        names = self.scope.written.names
        return Known(names[name]) if name in names else Unknown(name)

    def _display(self, node: ast.List | ast.Tuple | ast.Set | ast.Dict) -> Several:
        if isinstance(node, ast.Dict):
            rows = [(key_of(key) if key else "**", self.value(value), key is None) for key, value in zip(node.keys, node.values, strict=True)]
            return Several(rows)
        rows = [("", self.value(one), isinstance(one, ast.Starred)) for one in node.elts]
        return Several(rows, isinstance(node, ast.Set))

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Several:
        with self._inner():
            over: list[Value] = []
            for one in node.generators:
                over.append(self.value(one.iter))
                self._assign(one.target, None)
                for test in one.ifs:
                    self.value(test)
            if isinstance(node, ast.DictComp):
                self.value(node.key)
            made = self.value(node.value if isinstance(node, ast.DictComp) else node.elt)
        label = " ".join(f"for {short(one.target)} in {short(one.iter)}" for one in node.generators)
        listed = all(isinstance(one.iter, (ast.Tuple, ast.List)) for one in node.generators)  # as many as are written down
        return Several([(label, made, not listed)], isinstance(node, ast.SetComp))

    @contextmanager
    def _inner(self) -> Generator[None]:
        """Names of its own, as a comprehension has."""
        frame = self._frames[-1]
        before = frame.scope
        frame.scope = Scope(before.written, before)
        try:
            yield
        finally:
            frame.scope = before

    def _item(self, of: Value, index: ast.expr, node: ast.expr) -> Value:
        key = self.value(index)
        if isinstance(of, Several) and of.rows:
            fitting = [value for name, value, many in of.rows if many or name == key_of(index)]
            return either(fitting or [value for _, value, _ in of.rows])
        if isinstance(of, Known) and isinstance(of.value, (dict, list, tuple)) and isinstance(key, Known):
            try:
                return Known(of.value[key.value])
            except (LookupError, TypeError):
                pass
        return Unknown(short(node))


__all__ = ["Read", "Reader"]
