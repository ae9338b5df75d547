"""Mistakes in bodies that no type checker sees, found by reading: nothing of the user's runs."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

from flowdsl.binding import Deployment
from flowdsl.definition import Workflow
from flowdsl.lint.bodies import Text, lost
from flowdsl.lint.finding import RULES, Finding, Severity, heeded
from flowdsl.lint.purity import called, impure
from flowdsl.lint.shape import shapes
from flowdsl.outline import Item, read
from flowdsl.outline.reading import Read, Reader
from flowdsl.outline.source import Written, written
from flowdsl.outline.values import Function, Known


def lint(subject: Workflow[Any, Any, Any] | Deployment) -> list[Finding]:
    """What is wrong in the bodies of a workflow and its children, or of all workflows of a deployment, in the order of their files.

    Functions of the same project that a body calls are read too. A finding is silenced by a comment on its line, with a reason:
    `# flowdsl: allow RULE because …`. Raises `DefinitionError` for a workflow that has no source.
    """
    todo = [subject.workflow(name) for name in subject.names] if isinstance(subject, Deployment) else [subject]
    reader, seen = Reader(), dict[str, Item]()
    project: set[str] = set()
    while todo:
        one = todo.pop(0)
        if one.name not in seen:
            project.add(str(one.body.__module__).partition(".")[0])
            seen[one.name], _, _ = read(one, reader)
            todo += reader.children.values()
    found = set(_findings(reader, list(seen.values()), project))
    spans = {(node.file, _first(node), node.node.end_lineno or 0, node.name) for node in _functions(reader, project)}
    return sorted(set(heeded(found, spans)))


def _findings(reader: Reader, roots: list[Item], project: set[str]) -> Iterator[Finding]:
    owners = {node: one.written for one in reader.read.values() for node in ast.walk(one.written.node)}

    def file_of(node: ast.AST | None) -> Written | None:
        return owners.get(node) if node is not None else None

    for root in roots:
        yield from shapes(root, file_of)
    for one in _functions(reader, project):
        yield from impure(one)
    for body in list(reader.read.values()):
        yield from Text.of(reader, body).findings()
        yield from _lost(reader, body)


def _lost(reader: Reader, read: Read) -> Iterator[Finding]:
    """The step functions of `iterate` that a function names."""
    from flowdsl.flow import iterate

    for node in ast.walk(read.written.node):
        if not isinstance(node, ast.Call) or len(node.args) + len(node.keywords) < 2:
            continue
        what = reader.values.get(node.func)
        if isinstance(what, Known) and what.value is iterate:
            spelled = node.args[1] if len(node.args) > 1 else next((one.value for one in node.keywords if one.arg == "step"), None)
            step = reader.values.get(spelled) if spelled is not None else None
            if isinstance(step, Function):
                yield from lost(reader, read, step.written.node)


def _functions(reader: Reader, project: set[str]) -> list[Written]:
    """Each function that was read, and those of the project that they call, once; a function in another is read with it."""
    found: dict[ast.AST, Written] = {}
    todo = [one.written for one in reader.read.values()]
    while todo:
        one = todo.pop()
        if one.node in found:
            continue
        found[one.node] = one
        for name in project:
            todo += [source for source in map(_source, called(one, name)) if source is not None]
    inner = {node for one in found.values() for node in ast.walk(one.node) if node is not one.node}
    return [one for node, one in found.items() if node not in inner]


def _source(function: Callable[..., Any]) -> Written | None:
    return written(function)


def _first(one: Written) -> int:
    decorators = [] if isinstance(one.node, ast.Lambda) else one.node.decorator_list
    return min([one.node.lineno, *(decorator.lineno for decorator in decorators)])


__all__ = ["RULES", "Finding", "Severity", "lint"]
