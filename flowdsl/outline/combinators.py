"""What the combinators of the language and the methods of its flows make: an item each."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache, partial
from typing import Any, Final

from attrs import evolve

from flowdsl import flow as language
from flowdsl.errors import FlowError
from flowdsl.outline.calls import MADE, Call, call, flow_of, retry_of
from flowdsl.outline.source import written
from flowdsl.outline.spelling import short
from flowdsl.outline.values import Catcher, DagNode, Flowing, Function, Item, Known, Several, Unknown, Value, unordered
from flowdsl.policy import Retry, duration, shown

# Methods


def _then(one: Call, of: Value) -> Value:
    return Flowing(Item("sequence", "", line=one.line, parts=(flow_of(one.reader, of, one.node), one.made(one.arg(0)))))


def _map(one: Call, of: Value) -> Value:
    return Flowing(flow_of(one.reader, of, one.node))


def _held(kind: str) -> Callable[[Call, Value], Value]:
    return lambda one, of: Flowing(one.group(kind, kind, flow_of(one.reader, of, one.node)))


def _handled(kind: str, when: str) -> Callable[[Call, Value], Value]:
    return lambda one, of: Flowing(one.group(kind, kind, flow_of(one.reader, of, one.node), evolve(one.made(one.arg(0)), when=when)))


def _timeout(one: Call, of: Value) -> Value:
    words, ask = _until(one, "after")
    return Flowing(one.group("timeout", f"timeout {words}", flow_of(one.reader, of, one.node), asks=(ask,)))


def _until(one: Call, name: str) -> tuple[str, str]:
    """A time for people, and how the fingerprint of its sleep begins: with its length, where that is known."""
    given = one.arg(0, name)
    if isinstance(given, Known) and isinstance(given.value, (str, timedelta)):
        try:
            span = duration(given.value)
        except FlowError:
            return one.text(0, name), "sleep"
        return shown(span), f"sleep {span // timedelta(microseconds=1)}us"
    return one.text(0, name), "sleep"


def _retry(one: Call, of: Value) -> Value:
    """The tries are bound, and the pauses between them slept, in a body of the language's own."""
    given = one.arg(0, "policy")
    policy = given.value if isinstance(given, Known) and isinstance(given.value, Retry) else None
    words = one.text(0, "policy") if policy is None else retry_of(policy)
    tried, paused = _retried_sites()
    item = one.group("retry", f"retry {words}", flow_of(one.reader, of, one.node).at(tried), asks=("sleep",))
    return Flowing(evolve(item, site=paused, subject=policy))


@cache
def _retried_sites() -> tuple[str, str]:
    source = written(language._retried)
    if source is None:
        return "", ""
    bound = [node for node in ast.walk(source.node) if isinstance(node, ast.YieldFrom)]
    tried = next(node for node in bound if "attempt" in ast.unparse(node))
    paused = next(node for node in bound if "sleep" in ast.unparse(node))
    return source.site(tried.lineno), source.site(paused.lineno)


METHODS: Final[Mapping[str, Callable[[Call, Any], Value]]] = {
    "map": _map,
    "then": _then,
    "attempt": _held("attempt"),
    "isolate": _held("isolate"),
    "catch": _handled("catch", "on failure"),
    "ensure": _handled("ensure", "always, at the end"),
    "compensate": _handled("compensate", "undo"),
    "timeout": _timeout,
    "retry": _retry,
}


# Combinators


def _asked(what: str) -> Callable[[Call], Value]:
    return lambda one: Flowing(one.leaf(what, what))


def _sleep(one: Call) -> Value:
    given = one.arg(0, "time")
    words, ask = _until(one, "time")
    return Flowing(one.leaf("sleep", f"sleep {words}", ask, subject=given.value if isinstance(given, Known) else None))


def _noted(kind: str, name: str) -> Callable[[Call], Value]:
    def made(one: Call) -> Value:
        text, given = one.text(0, name), one.arg(0, name)
        exact = isinstance(given, Known) and isinstance(given.value, str)
        asks = () if kind == "report" else (f"{kind} {text}" if exact else kind,)
        return Flowing(one.leaf(kind, text if kind == "report" else f"{kind} {text}", *asks))

    return made


def _branches(kind: str) -> Callable[[Call], Value]:
    def made(one: Call) -> Value:
        parts: list[Item] = []
        spread = False
        for index, value in enumerate(one.args):
            star = isinstance(node := one.spelled(index), ast.Starred)
            spread = spread or (star and not (isinstance(value, Several) and not any(many for _, _, many in value.rows)))
            if star and isinstance(value, Several):
                parts += [evolve(flow_of(one.reader, row, one.node), when=name) for name, row, _ in value.rows]
            else:
                parts.append(evolve(flow_of(one.reader, value, node or one.node), when="each of them" if star else ""))
        group = one.group(kind, "all of" if kind == "all" else "race: the first of", *parts)
        return Flowing(evolve(group, subject="spread" if spread else None))

    return made


def _each(one: Call) -> Value:
    items, name = one.text(0, "items"), getattr(getattr(one.node, "func", None), "id", "each")
    body = one.made(one.arg(1, "fn"))
    facts = {"at a time": one.text(2, "concurrency", default="8")}
    if name == "each_attempt":
        body = one.group("attempt", "attempt", body)
    return Flowing(one.group("each", f"each of {items}", body, facts=facts))


def _dag(one: Call) -> Value:
    nodes = one.arg(0, "nodes")
    facts = {"at a time": one.text(1, "concurrency", default="8")}
    parts: list[Item] = []
    for name, value, many in nodes.rows if isinstance(nodes, Several) else []:
        held = value if isinstance(value, DagNode) else DagNode(value, (), ())
        item = Item("node", name, line=one.line, parts=(flow_of(one.reader, held.flow, one.node),), when="" if many else name)
        needs = {"after": held.after, "soft": held.soft}
        parts.append(evolve(item, facts={word: ", ".join(names) for word, names in needs.items() if names}))
    if not parts:
        parts.append(one.flow(0, "nodes"))
    return Flowing(one.group("dag", "graph", *parts, facts=facts))


def _node(one: Call) -> Value:
    def needs(name: str) -> tuple[str, ...]:
        value, node = one.named.get(name), one.spelled(9, name)
        if isinstance(value, Several) and all(isinstance(row, Known) for _, row, _ in value.rows):
            return tuple(str(row.value) for _, row, _ in value.rows if isinstance(row, Known))
        return (short(node),) if node is not None else ()

    return DagNode(one.arg(0, "flow") or Unknown("?"), needs("after"), needs("soft"))


def _iterate(one: Call) -> Value:
    return Flowing(one.group("iterate", f"iterate from {one.text(0, 'state')}", one.made(one.arg(1, "step")), asks=("iterate",)))


def _inner(kind: str) -> Callable[[Call], Value]:
    return lambda one: Flowing(one.group(kind, kind, one.flow(0, "flow")))


def _do(one: Call) -> Value:
    body = one.arg(0, "body")
    if isinstance(body, Known) and inspect.isfunction(body.value) and (source := written(body.value)) is not None:
        return Function(source, part=True)
    return evolve(body, part=True) if isinstance(body, Function) else Unknown(short(one.node))


def _catching(one: Call) -> Value:
    return Catcher(one.text(0, "kind"), one.arg(1, "handler") or Unknown("?"))


def _partially(one: Call) -> Value:
    function = one.arg(0)
    if isinstance(function, Function):
        return evolve(function, given=(*function.given, *one.args[1:]), named={**function.named, **one.named})
    if isinstance(function, Known) and inspect.isfunction(function.value) and (source := written(function.value)) is not None:
        return Function(source, part=function.value.__code__ is MADE, given=tuple(one.args[1:]), named=one.named)
    return function or Unknown(short(one.node))


def _same(one: Call) -> Value:
    """list(), tuple(), sorted(), reversed(): the same rows; sorted ones have an order."""
    first = one.arg(0)
    if isinstance(first, Several):
        sorts = isinstance(one.node, ast.Call) and short(one.node.func) == "sorted"
        return Several(list(first.rows), first.unordered and not sorts)
    return Unknown(short(one.node))


def _as_set(one: Call) -> Value:
    return Several([], unordered=True) if not one.args else Unknown(short(one.node), kind="set")


def _mapped(one: Call) -> Value:
    function = one.arg(0)
    if function is None:
        return Unknown(short(one.node))
    return Several([(f"for each of {one.text(1)}", call(one.reader, one.node, function, [Unknown("…")], {}), True)], unordered(one.arg(1)))


COMBINATORS: Final[Mapping[Any, Callable[[Call], Value]]] = {
    language.pure: lambda one: Flowing(one.leaf("pure", f"pure {one.text(0, 'value')}")),
    language.fail: lambda one: Flowing(one.leaf("fail", f"fail {one.text(0, 'error')}")),
    language.sleep: _sleep,
    language.now: _asked("now"),
    language.uuid: _asked("uuid"),
    language.random: _asked("random"),
    language.execution: _asked("execution"),
    language.report: _noted("report", "note"),
    language.audit: _noted("audit", "event"),
    language.changed: _noted("changed", "id"),
    language.all_: _branches("all"),
    language.race: _branches("race"),
    language.each: _each,
    language.each_attempt: _each,
    language.dag: _dag,
    language.dag_attempt: _dag,
    language.node: _node,
    language.iterate: _iterate,
    language.saga: _inner("saga"),
    language.masked: _inner("masked"),
    language.do: _do,
    language.catching: _catching,
    partial: _partially,
    list: _same,
    tuple: _same,
    sorted: _same,
    reversed: _same,
    set: _as_set,
    frozenset: _as_set,
    map: _mapped,
}

__all__ = ["COMBINATORS", "METHODS"]
