"""A function as it is written: its syntax tree, its file, and what the names in it stand for."""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
from collections.abc import Callable, Mapping
from functools import cache
from os.path import basename
from typing import Any, TypeAlias

from attrs import define, field, frozen

Spelled: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@frozen(eq=False)
class Written:
    """A function's source: `name` is what a journal's sites call it."""

    node: Spelled
    file: str
    name: str
    names: Mapping[str, Any]
    """What is known of the names outside of it: its closure, then its module."""

    def site(self, line: int) -> str:
        """The text that the journal has for a bind on that line of it."""
        return f"{self.name} {basename(self.file)}:{line}"

    @property
    def generator(self) -> bool:
        return any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in own(self.node))


def own(node: ast.AST) -> list[ast.AST]:
    """What belongs to a function itself: all of it but the bodies of functions and classes in it. Their defaults and decorators do."""
    found: list[ast.AST] = []
    todo: list[ast.AST] = list(reversed(node.body)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else []
    todo += [node.body] if isinstance(node, ast.Lambda) else []
    while todo:
        one = todo.pop()
        found.append(one)
        if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef)):
            todo += [*one.decorator_list, *one.args.defaults, *(default for default in one.args.kw_defaults if default)]
        elif isinstance(one, ast.Lambda):
            todo += [*one.args.defaults, *(default for default in one.args.kw_defaults if default)]
        elif not isinstance(one, ast.ClassDef):
            todo += reversed(list(ast.iter_child_nodes(one)))
    return found


def written(function: Callable[..., Any]) -> Written | None:
    """The source of a Python function, whatever decorates it; None when there is none."""
    try:
        plain: Any = inspect.unwrap(function)
    except ValueError:
        return None
    code = getattr(plain, "__code__", None)
    if code is None:
        return None
    node = _functions(code.co_filename).get((code.co_firstlineno, code.co_name))
    if node is None:
        node = next((one for one in _lambdas(code.co_filename, code.co_firstlineno) if _spells(one, code)), None)
    if node is None:
        return None
    names = _Names(plain.__globals__, dict(zip(code.co_freevars, plain.__closure__ or (), strict=False)))
    return Written(node, code.co_filename, code.co_qualname.rpartition("<locals>.")[2], names)


class _Names(Mapping[str, Any]):
    """Closure, globals, builtins; a cell that is still empty holds nothing."""

    def __init__(self, world: Mapping[str, Any], cells: Mapping[str, Any]) -> None:
        self._world, self._cells = world, cells

    def __getitem__(self, name: str) -> Any:
        if name in self._cells:
            try:
                return self._cells[name].cell_contents
            except ValueError:
                raise KeyError(name) from None
        return self._world[name] if name in self._world else vars(builtins)[name]

    def __iter__(self) -> Any:
        return iter({**self._world, **self._cells})

    def __len__(self) -> int:
        return len(self._world)


def lines(file: str) -> list[str]:
    """The lines of a source file as it was when it was first asked for."""
    return linecache.getlines(file)


@cache
def _parsed(text: str, file: str) -> ast.Module | None:
    try:
        return ast.parse(text, file)
    except SyntaxError:
        return None


def parsed(file: str) -> ast.Module | None:
    """The syntax tree of a file; None when it is none of Python's."""
    return _parsed("".join(lines(file)), file)


def _functions(file: str) -> dict[tuple[int, str], Spelled]:
    tree = parsed(file)
    return _by_line(tree) if tree is not None else {}


@cache
def _by_line(tree: ast.Module) -> dict[tuple[int, str], Spelled]:
    defined = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {(min([node.lineno, *(one.lineno for one in node.decorator_list)]), node.name): node for node in defined}


def _lambdas(file: str, line: int) -> list[ast.Lambda]:
    tree = parsed(file)
    return [node for node in ast.walk(tree) if isinstance(node, ast.Lambda) and node.lineno == line] if tree is not None else []


def _spells(node: ast.Lambda, code: Any) -> bool:
    """Whether a code object is this lambda's: several may stand on one line."""
    places = [(line, column) for line, _, column, _ in code.co_positions() if line is not None and column is not None and column > 0]
    body = node.body
    return any((body.lineno, body.col_offset) <= place < (body.end_lineno or 0, body.end_col_offset or 0) for place in places)


@define(eq=False)
class Scope:
    """What the names in a function stand for, as far as it has been read: its own, then those around it, then the module's."""

    written: Written
    outer: Scope | None = None
    names: dict[str, Any] = field(factory=dict[str, Any])

    def find(self, name: str) -> Any:
        """What a local of this or an outer function that was read stands for; None when there is none of that name."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return None


__all__ = ["Scope", "Spelled", "Written", "lines", "own", "parsed", "written"]
