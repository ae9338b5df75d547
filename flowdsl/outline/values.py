"""What an expression may stand for, as far as it can be told without running it."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from attrs import define, evolve, field, frozen

from flowdsl.definition import Workflow
from flowdsl.outline.source import Scope, Written


@frozen
class Item:
    """One thing in an outline: a step, or what holds steps together. `parts` are those that it holds, in order.

    `site` is what the journal has for its bind, and `asks` how the fingerprints of what it asks begin; both are empty where nothing is recorded.
    """

    kind: str
    label: str
    when: str = ""
    """When its holder comes to it: the case of a choice, the name of a node, `on failure`."""
    site: str = ""
    line: int = 0
    asks: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(factory=dict[str, str])
    link: str = ""
    """The workflow that a child runs; of a part that is drawn further up, the name of that part."""
    parts: tuple[Item, ...] = ()
    source: ast.AST | None = field(default=None, eq=False, repr=False)
    subject: Any = field(default=None, eq=False, repr=False)

    def at(self, site: str) -> Item:
        """The same, bound there: what a body in it has bound keeps its own place."""
        if self.site:
            return self
        parts = self.parts if self.kind in BODIES else tuple(part.at(site) for part in self.parts)
        return evolve(self, site=site, parts=parts)


BODIES = ("workflow", "part")
"""Kinds of items that hold a body: what is in them was bound there."""


@frozen(eq=False)
class Known:
    """A value that is there already: a contract, a workflow, a constant, a module, a class."""

    value: Any


@frozen(eq=False)
class Flowing:
    """A flow. `sure`: it is one for certain, whatever stands behind the names that are not known."""

    item: Item
    sure: bool = True
    gives: Value | None = None


@frozen(eq=False)
class Running:
    """A call of a plain generator function: what it binds is bound by whoever delegates to it."""

    items: tuple[Item, ...]
    gives: Value | None = None


@frozen(eq=False)
class Function:
    """A function of the project, with what is bound to its first parameters. `part`: `@do` makes a flow of it."""

    written: Written
    outer: Scope | None = None
    part: bool = False
    given: tuple[Value, ...] = ()
    named: Mapping[str, Value] = field(factory=dict[str, Any])


@define(eq=False)
class Several:
    """A list, tuple, set or dict whose rows are partly known: each with its name, and whether it stands for many."""

    rows: list[tuple[str, Value, bool]]
    unordered: bool = False


@frozen(eq=False)
class DagNode:
    flow: Value
    after: tuple[str, ...]
    soft: tuple[str, ...]


@frozen(eq=False)
class ChildOf:
    """A running child; None when it is not known of which workflow."""

    workflow: Workflow[Any, Any, Any] | None


@frozen(eq=False)
class Catcher:
    """`catching(kind, handler)`, waiting for its flow."""

    kind: str
    handler: Value


@frozen(eq=False)
class Method:
    """An attribute of a value, to be called."""

    of: Value
    name: str


@frozen(eq=False)
class Unknown:
    """Anything else: its source."""

    text: str
    kind: str = ""
    """`set` when it is one."""


Value: TypeAlias = "Known | Flowing | Running | Function | Several | DagNode | ChildOf | Catcher | Method | Unknown"


def either(values: Sequence[Value], label: str = "either") -> Value:
    """One of several: of flows a choice between them."""
    flows = list({id(one.item): one for one in values if isinstance(one, Flowing)}.values())
    telling = [one for one in values if not isinstance(one, Unknown) and not (isinstance(one, Known) and one.value is None)]
    if len(flows) > 1:
        parts = tuple(evolve(one.item, when="or" if index else "") for index, one in enumerate(flows))
        return Flowing(Item("choice", label, line=parts[0].line, parts=parts), all(one.sure for one in flows))
    return flows[0] if flows else telling[-1] if telling else values[-1] if values else Known(None)


def unordered(value: Value | None) -> bool:
    """Whether it is a set for certain."""
    return (
        (isinstance(value, Several) and value.unordered)
        or (isinstance(value, Unknown) and value.kind == "set")
        or (isinstance(value, Known) and isinstance(value.value, (set, frozenset)))
    )


def trimmed(items: Sequence[Item]) -> list[Item]:
    """Without what says only that the body ends where it ends."""
    kept = list(items)
    if kept and kept[-1].kind == "return":
        kept.pop()
    if kept and kept[-1].kind == "choice" and kept[-1].source is not None:
        last = kept.pop()
        parts = tuple(evolve(part, parts=tuple(trimmed(part.parts))) for part in last.parts)
        if any(part.parts for part in parts):
            kept.append(evolve(last, parts=parts))
        else:
            return trimmed(kept)
    return kept


__all__ = [
    "BODIES",
    "Catcher",
    "ChildOf",
    "DagNode",
    "Flowing",
    "Function",
    "Item",
    "Known",
    "Method",
    "Running",
    "Several",
    "Unknown",
    "Value",
    "either",
    "trimmed",
    "unordered",
]
