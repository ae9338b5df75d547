"""Syntax in a reader's words: expressions on one line, the names that a pattern captures, what parameters stand for."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from flowdsl.outline.source import Spelled
from flowdsl.outline.values import Several, Unknown, Value


class _Answers(ast.NodeTransformer):
    def visit_YieldFrom(self, node: ast.YieldFrom) -> Any:
        return self.visit(node.value)


def short(node: ast.AST, most: int = 60) -> str:
    """An expression's source on one line, as a reader says it: without `yield from`, and text without its quotes."""
    if any(isinstance(one, ast.YieldFrom) for one in ast.walk(node)):
        node = _Answers().visit(deepcopy(node))
    if isinstance(node, ast.JoinedStr):
        text = "".join(f"{{{ast.unparse(one.value)}}}" if isinstance(one, ast.FormattedValue) else ast.literal_eval(one) for one in node.values)
    else:
        text = ast.unparse(node)
    text = " ".join(text.split())
    text = text[1:-1] if isinstance(node, ast.Tuple) and text.startswith("(") else text
    return text if len(text) <= most else text[: most - 1] + "…"


def key_of(node: ast.expr) -> str:
    """A subscript or a key as the name of a row."""
    return str(node.value) if isinstance(node, ast.Constant) else short(node)


def captured(pattern: ast.pattern) -> list[str]:
    """The names that a pattern gives a value."""
    nodes = list(ast.walk(pattern))
    return [one.name for one in nodes if isinstance(one, (ast.MatchAs, ast.MatchStar)) and one.name] + [
        one.rest for one in nodes if isinstance(one, ast.MatchMapping) and one.rest
    ]


def parameters(node: Spelled, args: Sequence[Value], named: Mapping[str, Value]) -> dict[str, Value]:
    """What a function's parameters stand for in a call."""
    spelled = node.args
    names: dict[str, Value] = {}
    for parameter in (*spelled.posonlyargs, *spelled.args, *spelled.kwonlyargs):
        annotation = ast.unparse(parameter.annotation) if parameter.annotation is not None else ""
        unordered = annotation.removeprefix("typing.").partition("[")[0] in ("set", "frozenset", "Set", "FrozenSet", "AbstractSet")
        names[parameter.arg] = named.get(parameter.arg) or Unknown(parameter.arg, kind="set" if unordered else "")
    for parameter, value in zip((*spelled.posonlyargs, *spelled.args), args, strict=False):
        if not isinstance(value, Unknown) or value.kind:
            names[parameter.arg] = value
    if spelled.vararg is not None:
        rest = args[len(spelled.posonlyargs) + len(spelled.args) :]
        names[spelled.vararg.arg] = Several([("", one, False) for one in rest]) if rest else Unknown(spelled.vararg.arg)
    if spelled.kwarg is not None:
        names[spelled.kwarg.arg] = Unknown(spelled.kwarg.arg)
    return names


__all__ = ["captured", "key_of", "parameters", "short"]
