"""What must become of an order, worked out from its numbers alone: nothing of the runtime is used here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from flowdsl.testing.chaos.orders import REASON, RELEASES, Order, token

ANY: Any = object()
"""Whatever it says."""


@frozen
class Possible:
    """One way in which an execution may end, and what goes with it."""

    exit: str
    value: Any
    recorded: frozenset[str] = frozenset()
    """Labels whose success is recorded, each under one step."""
    maybe: frozenset[str] = frozenset()
    """Labels whose success may be recorded."""
    called: frozenset[str] = frozenset()
    """Labels that may have been called, and have no success."""
    undos: tuple[tuple[str, str], ...] = ()
    """Of what was done and is to be undone: its label and that of its undo, in the order of doing."""
    children: Mapping[str, tuple[Possible, ...]] = field(factory=dict[str, tuple["Possible", ...]])


Possibles = tuple[Possible, ...]


def _all(order: Order, prefix: str, numbers: range) -> frozenset[str]:
    return frozenset(order.label(f"{prefix}{n}") for n in numbers)


def _sum(order: Order, numbers: range) -> int:
    return sum(order.index + n for n in numbers)


def _undos(order: Order, count: int) -> tuple[tuple[str, str], ...]:
    return tuple((order.label(f"step{n}"), order.label(f"step{n}") + " undone") for n in range(count))


def _undo_labels(order: Order, count: int) -> frozenset[str]:
    return frozenset(undo for _, undo in _undos(order, count))


def _fine(order: Order, place: int) -> tuple[str, Possibles]:
    label = order.label(f"child{place}")
    return label, (Possible("success", order.index + place, frozenset({label})),)


def _forever(order: Order, place: int) -> tuple[str, Possibles]:
    return order.label(f"child{place}"), (Possible("cancelled", ANY),)


def predicted(order: Order) -> Possibles:
    """All the ways in which this order may end. Most have one."""
    return _PREDICTIONS[order.kind](order)


def _sequence(order: Order) -> Possibles:
    steps = range(order.size)
    return (Possible("success", _sum(order, steps), _all(order, "step", steps)),)


def _refused(order: Order) -> Possibles:
    label = order.label("refused")
    return (Possible("failure", {"$": "Refused", "label": label}, _all(order, "step", range(1)), called=frozenset({label})),)


def _exhausted(order: Order) -> Possibles:
    called = frozenset({order.label("exhausted")})
    # A third attempt that its worker's death cut short has no failure to tell.
    return Possible("failure", {"$": "Flaky", "label": order.label("exhausted")}, called=called), Possible("defect", ANY, called=called)


def _bug(order: Order) -> Possibles:
    return (Possible("defect", ANY, called=frozenset({order.label("bug")})),)


def _once(order: Order) -> Possibles:
    done, after = frozenset({order.label("once")}), _all(order, "step", range(1))
    return Possible("success", "once", done | after), Possible("success", "interrupted", after, called=done)


def _threaded(order: Order) -> Possibles:
    return (Possible("success", _sum(order, range(2)), _all(order, "step", range(2))),)


def _timers(order: Order) -> Possibles:
    steps = range(order.size + 1)
    return (Possible("success", _sum(order, steps), _all(order, "step", steps)),)


def _signals(order: Order) -> Possibles:
    tokens = [token(order.index, n) for n in range(order.size)]
    return (Possible("success", tokens, frozenset(order.label(f"step{n}") for n in range(1, order.size, 2))),)


def _letters(order: Order) -> Possibles:
    tokens = [token(order.index, n) for n in range(order.size)]
    return (Possible("success", tokens, _all(order, "step", range(1))),)


def _deadline(order: Order) -> Possibles:
    after, news = _all(order, "step", range(1)), token(order.index, 0)
    return Possible("success", f"in time {news}", after), Possible("success", f"late {news}", after)


def _silence(order: Order) -> Possibles:
    return (Possible("failure", {"$": "TimedOut", "after": ANY}),)


def _children(order: Order) -> Possibles:
    return (Possible("success", _sum(order, range(order.size)), children=dict(_fine(order, n) for n in range(order.size))),)


def _keyed(order: Order) -> Possibles:
    return (Possible("success", 2 * order.index + order.index + 1, children=dict(_fine(order, n) for n in range(2))),)


def _isolated(order: Order) -> Possibles:
    no, broken = order.label("child0"), order.label("child1")
    children = {
        no: (Possible("failure", {"$": "Refused", "label": no}, called=frozenset({no})),),
        broken: (Possible("defect", ANY, called=frozenset({broken})),),
    }
    return (Possible("success", ["refused", "died", "fine"], children={**children, **dict([_fine(order, 2)])}),)


def _beside(order: Order) -> Possibles:
    done, children = _all(order, "step", range(1)), dict([_forever(order, 0), _fine(order, 1)])
    if order.fails:
        return (Possible("failure", {"$": "Refused", "label": order.label("beside")}, done, children=children),)
    return (Possible("success", order.index, done, children=children),)


def _saga(order: Order) -> Possibles:
    recorded = _all(order, "step", range(order.size)) | _undo_labels(order, order.size)
    label = order.label("refused")
    failure = {"$": "Refused", "label": label}
    return (Possible("failure", failure, recorded, called=frozenset({label}), undos=_undos(order, order.size)),)


def _inner_saga(order: Order) -> Possibles:
    recorded = _all(order, "step", range(order.size + 1)) | _undo_labels(order, order.size)
    return (Possible("success", "rolled back", recorded, undos=_undos(order, order.size)),)


def _race(order: Order) -> Possibles:
    work, after = _all(order, "step", range(1)), frozenset({order.label("step1")})
    return Possible("success", "effect", work | after), Possible("success", "timer", after, called=work)


def _loop(order: Order) -> Possibles:
    rounds = range(order.size)
    return (Possible("success", _sum(order, rounds) + order.size, _all(order, "step", rounds) | _all(order, "mark", rounds)),)


def _fan(order: Order) -> Possibles:
    steps = range(order.size * 4)
    return (Possible("success", _sum(order, steps), _all(order, "step", steps)),)


def _pen_pals(order: Order) -> Possibles:
    replies = sum(order.index + n for n in range(order.size))
    pal = Possible("success", order.index, frozenset(order.label(f"pal{n}") for n in range(order.size)))
    return (Possible("success", replies + order.index, children={order.label("pal"): (pal,)}),)


def _cancelled(order: Order) -> Possibles:
    # What has an undo is finished before a cancellation is obeyed.
    recorded = _all(order, "step", range(1)) | _undo_labels(order, 1)
    return (Possible("cancelled", REASON, recorded, maybe=frozenset({order.label("finalizer")}), undos=_undos(order, 1)),)


def _too_late(order: Order) -> Possibles:
    steps = _all(order, "step", range(order.size))
    ended = Possible("success", _sum(order, range(order.size)), steps)
    return ended, Possible("cancelled", REASON, maybe=steps | _undo_labels(order, order.size), undos=_undos(order, order.size))


def _waiting(order: Order) -> Possibles:
    return (Possible("cancelled", REASON, children=dict([_forever(order, 0)])),)


def _terminated(order: Order) -> Possibles:
    done = _all(order, "step", range(1))
    return (Possible("cancelled", f"terminated: {REASON}", maybe=done, called=done),)


def _retried(order: Order) -> Possibles:
    return (Possible("success", 2 * order.index, _all(order, "step", range(1)) | {order.label("again")}),)


def _deployed(order: Order) -> Possibles:
    """By the version it was started with: see `verdict.versions`."""
    steps = range(order.size)
    return tuple(
        Possible("success", _sum(order, steps) + more, _all(order, "step", steps) | _all(order, "new", range(1, more + 1)))
        for more in range(RELEASES)
    )


_PREDICTIONS = {
    "sequence": _sequence, "refused": _refused, "exhausted": _exhausted, "bug": _bug, "once": _once, "threaded": _threaded, "marks": _sequence,
    "timers": _timers, "signals": _signals, "letters": _letters, "deadline": _deadline, "silence": _silence, "children": _children,
    "keyed": _keyed, "isolated": _isolated, "beside": _beside, "saga": _saga, "inner_saga": _inner_saga, "race": _race, "loop": _loop, "fan": _fan,
    "pen_pals": _pen_pals, "cancelled": _cancelled, "too_late": _too_late, "waiting": _waiting, "bounded": _sequence, "paused": _sequence,
    "terminated": _terminated, "retried": _retried, "deployed": _deployed,
}  # fmt: skip


def agrees(expected: Any, found: Any) -> bool:
    """Whether a decoded value is the expected one; `ANY` stands for everything."""
    if expected is ANY:
        return True
    if isinstance(expected, dict):
        return isinstance(found, dict) and expected.keys() == found.keys() and all(agrees(value, found[name]) for name, value in expected.items())
    return bool(expected == found and type(expected) is type(found))
