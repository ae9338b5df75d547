"""What the shape of a workflow gives away: waits without end, growth without bound, steps that nothing undoes."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final, TypeAlias

from attrs import evolve, frozen

from flowdsl.definition import Activity
from flowdsl.flow import Interrupted
from flowdsl.lint.finding import Finding, finding
from flowdsl.outline.source import Written
from flowdsl.outline.values import BODIES, Item
from flowdsl.policy import DEFAULT_RETRY, Policies, Retry, duration

LONG: Final = 1000
"""Rounds of a plain loop whose entries are better a checkpoint's."""
BRIEF: Final = timedelta(minutes=1)

_WRITES: Final = frozenset(
    [
        "add",
        "append",
        "assign",
        "authorize",
        "book",
        "bill",
        "capture",
        "charge",
        "close",
        "create",
        "debit",
        "delete",
        "deliver",
        "deploy",
        "disable",
        "dispatch",
        "enable",
        "enroll",
        "erase",
        "grant",
        "import",
        "insert",
        "invite",
        "issue",
        "issues",
        "link",
        "make",
        "move",
        "notify",
        "open",
        "order",
        "pay",
        "place",
        "post",
        "provision",
        "publish",
        "purchase",
        "push",
        "put",
        "refund",
        "register",
        "release",
        "remove",
        "rename",
        "reserve",
        "revoke",
        "save",
        "schedule",
        "sell",
        "send",
        "set",
        "ship",
        "sign",
        "start",
        "store",
        "submit",
        "subscribe",
        "sync",
        "transfer",
        "trigger",
        "unlink",
        "update",
        "upload",
        "upsert",
        "withdraw",
        "write",
    ]
)
_OPTIONAL: Final = ("attempt", "isolate")
_Event: TypeAlias = tuple[str, Item]


@frozen
class _Around:
    """What surrounds an item."""

    written: Written | None = None
    limited: bool = False
    retried: bool = False
    rounds: bool = False
    loop: Item | None = None

    def entered(self, item: Item) -> _Around:
        kind = item.kind
        if kind in BODIES:
            return evolve(self, written=item.subject or self.written)
        if kind == "loop":
            return evolve(self, loop=item)
        if kind == "retry":
            return evolve(self, retried=self.retried or _takes_up_what_was_cut_short(item.subject))
        return evolve(self, rounds=True, loop=None) if kind == "iterate" else self


def shapes(root: Item, file_of: Callable[[ast.AST | None], Written | None]) -> Iterator[Finding]:
    """The findings of a workflow's tree."""
    yield from _Shapes(file_of).of(root, _Around())
    yield from undos(root, file_of)


class _Shapes:
    def __init__(self, file_of: Callable[[ast.AST | None], Written | None]) -> None:
        self._file_of = file_of
        self._seen: set[tuple[int, _Key]] = set()
        self._kept: list[Item] = []

    def of(self, item: Item, around: _Around) -> Iterator[Finding]:
        if item.kind in BODIES and item.parts:  # one body in the same surroundings says the same
            key = (id(item.parts), (around.limited, around.retried, around.rounds, around.loop is not None))
            if key in self._seen:
                return
            self._seen.add(key)
            self._kept.append(item)
        yield from self._here(item, around)
        inner = around.entered(item)
        for index, part in enumerate(item.parts):
            yield from self.of(part, evolve(inner, limited=inner.limited or _limits(item, index)))

    def _here(self, item: Item, around: _Around) -> Iterator[Finding]:
        for message in self._messages(item, around):
            rule, text = message
            written = self._file_of(item.source) or around.written
            if written is not None:
                yield finding(rule, text, written.file, item.line, written.name)

    def _messages(self, item: Item, around: _Around) -> Iterator[tuple[str, str]]:
        kind = item.kind
        if kind == "receive" and not around.limited:
            yield "no-timeout", f"`{item.label}` waits for ever when nothing comes: give it `.timeout(…)`, or race it with a `sleep`"
        elif kind == "start" and around.loop is not None and _goes_on(around.loop):
            advice = "`yield from each(items, lambda item: … .child(item), concurrency=…)` bounds them"
            yield "unbounded", f"`{item.label}` in a plain loop: as many children at once as there are rounds. {advice}"
        elif kind in ("all", "race") and item.subject == "spread":
            yield "unbounded", "as many branches at once as there are items: `each(items, …, concurrency=…)` bounds them"
        elif kind == "loop":
            yield from _loops(item, around)
        elif kind == "compensate" and around.rounds:
            advice = "make a round a child workflow with undos of its own, or undo all of it in one activity"
            yield "undo-in-loop", f"an undo in `iterate` keeps the entries of its round for as long as the workflow runs: {advice}"
        elif kind == "activity" and isinstance(item.subject, Activity) and item.subject.policies.crash == "fail":
            yield from _at_most_once(item.label, item.subject.policies, around)


_Key: TypeAlias = tuple[bool, bool, bool, bool]


def _limits(item: Item, index: int) -> bool:
    """Whether this part of an item is ended by something else in time."""
    if item.kind == "timeout":
        return True
    return item.kind == "race" and any(not _waits(part) for other, part in enumerate(item.parts) if other != index)


def _waits(item: Item) -> bool:
    """Whether it may wait for ever: for mail, or round after round."""
    if item.kind in ("receive", "again"):
        return True
    if item.kind == "timeout":
        return False
    if item.kind == "race":
        return all(_waits(part) for part in item.parts)
    if item.kind == "loop" and isinstance(item.source, ast.While) and not _ways_out(item.source):
        return True
    return any(_waits(part) for part in item.parts)


# Loops


def _loops(item: Item, around: _Around) -> Iterator[tuple[str, str]]:
    node = item.source
    advice = "make its state that of `iterate`: each round is a checkpoint, and nothing before it is replayed"
    if isinstance(node, ast.For):
        rounds = _rounds(node.iter)
        if rounds is not None and rounds > LONG:
            yield "long-loop", f"{rounds:,} rounds are all replayed after a crash: {advice}"
    if not _unbounded(node) or around.limited or not _records(item):
        return
    if not _ways_out(node):
        yield "long-loop", f"a loop without a way out: its journal grows for ever. {advice[0].upper()}{advice[1:]}"
    elif any(pause < BRIEF for pause in _pauses(item)):
        yield "long-loop", f"a loop with pauses under a minute goes through many rounds: {advice}, or give it a `.timeout(…)`"


def _unbounded(node: ast.AST | None) -> bool:
    if isinstance(node, ast.For) and isinstance(node.iter, ast.Call):
        return ast.unparse(node.iter.func).rpartition(".")[2] in ("count", "cycle")
    return isinstance(node, ast.While)


def _ways_out(node: ast.AST | None) -> bool:
    """Whether a loop can end but by failing: by its condition, a `break` of its own, a `return` or a `raise`."""
    if isinstance(node, ast.While) and not (isinstance(node.test, ast.Constant) and node.test.value):
        return True
    todo: list[tuple[ast.AST, bool]] = [(one, True) for one in getattr(node, "body", [])]
    while todo:
        one, own = todo.pop()
        if isinstance(one, (ast.Return, ast.Raise)) or (isinstance(one, ast.Break) and own):
            return True
        if not isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo += [(child, own and not isinstance(one, (ast.For, ast.While))) for child in ast.iter_child_nodes(one)]
    return False


def _rounds(node: ast.expr) -> int | None:
    """How many rounds a `range` of numbers has."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
        return None
    numbers = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, int)]
    return len(range(*numbers)) if numbers and len(numbers) == len(node.args) and 0 not in numbers[2:] else None


def _records(item: Item) -> bool:
    return bool(item.asks) or item.kind in ("unknown", "again") or any(_records(part) for part in item.parts)


def _pauses(item: Item) -> Iterator[timedelta]:
    for part in item.parts:
        if part.kind == "sleep" and isinstance(part.subject, (str, timedelta)):
            yield duration(part.subject)
        elif part.kind in ("sequence", "choice"):
            yield from _pauses(part)


def _goes_on(loop: Item) -> bool:
    """Whether a loop starts without waiting for what it has started, and is not over a handful that is written down."""
    node = loop.source
    written_down = isinstance(node, ast.For) and isinstance(node.iter, (ast.Tuple, ast.List)) and not any(map(_star, node.iter.elts))
    few = isinstance(node, ast.For) and (_rounds(node.iter) or LONG) <= 16
    return not (written_down or few or _has(loop, "join"))


def _has(item: Item, kind: str) -> bool:
    return item.kind == kind or any(_has(part, kind) for part in item.parts)


def _star(node: ast.AST) -> bool:
    return isinstance(node, ast.Starred)


# Activities that run at most once


def _takes_up_what_was_cut_short(policy: object) -> bool:
    """Whether a retry runs again what a crash may have left half done: not one that names other failures only."""
    return not (isinstance(policy, Retry) and isinstance(policy.on, tuple) and policy.on and Interrupted not in policy.on)


def _at_most_once(name: str, policies: Policies, around: _Around) -> Iterator[tuple[str, str]]:
    if around.retried:
        advice = "leave it out, or name in `on=` what is safe to retry"
        yield "at-most-once", f'{name} runs at most once (crash="fail"), and `.retry(…)` runs it again: {advice}'
    elif policies.retry != DEFAULT_RETRY and policies.retry.attempts != 1:
        yield "at-most-once", f'{name} runs at most once (crash="fail"): its `retry=` never applies. Take it away, or declare crash="retry"'


# Undos


def undos(root: Item, file_of: Callable[[ast.AST | None], Written | None]) -> Iterator[Finding]:
    """Writes that nothing undoes, in a saga in which earlier ones are undone and later steps may still fail."""
    scopes: list[list[_Event]] = [[]]
    _gather(root, scopes, scopes[0], optional=False, depth=0)
    for events in scopes:
        undone = False
        for index, (kind, item) in enumerate(events):
            covered = index > 0 and events[index - 1][0] == "registered"
            if kind == "write" and undone and not covered and any(other in ("write", "step", "undone") for other, _ in events[index + 1 :]):
                written = file_of(item.source)
                if written is not None:
                    advice = "give it `.compensate(…)`, or say with a comment why it may stay"
                    text = f"{item.label} writes, and nothing undoes it when a later step fails, as earlier ones are: {advice}"
                    yield finding("undo-missing", text, written.file, item.line, written.name)
            undone = undone or kind in ("undone", "registered")


def _gather(item: Item, scopes: list[list[_Event]], events: list[_Event], *, optional: bool, depth: int) -> None:
    """Each saga's steps in order. An inner saga is a scope of its own."""
    kind = item.kind
    if depth > 60:
        return
    if kind == "saga":
        inner: list[_Event] = []
        scopes.append(inner)
        for part in item.parts:
            _gather(part, scopes, inner, optional=False, depth=depth + 1)
        events.append(("step", item))
        return
    if kind == "compensate":
        work = item.parts[0]
        events.append(("registered" if work.kind == "pure" else "undone", item))
        return
    if kind == "activity":
        events.append(("optional" if optional else "write" if writes(item) else "step", item))
    elif kind in ("child", "join"):
        events.append(("step", item))
    elif kind == "catch":
        _gather(item.parts[0], scopes, events, optional=True, depth=depth + 1)
        return
    elif kind == "ensure":
        _gather(item.parts[0], scopes, events, optional=optional, depth=depth + 1)
        return
    for part in item.parts:
        _gather(part, scopes, events, optional=optional or kind in _OPTIONAL, depth=depth + 1)


def writes(item: Item) -> bool:
    """Whether an activity changes something, by its declaration, else by the verb that its name begins with."""
    if not isinstance(item.subject, Activity):
        return False
    if item.subject.policies.transactional:
        return True
    verb = item.label.rpartition(".")[2].replace("-", "_").partition("_")[0]
    return verb in _WRITES or _camel(verb) in _WRITES


def _camel(name: str) -> str:
    first = ""
    for index, char in enumerate(name):
        if index and char.isupper():
            break
        first += char.lower()
    return first


__all__ = ["shapes", "undos", "writes"]
