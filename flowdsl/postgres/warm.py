"""Machines of executions that were suspended here lately: who is claimed again before another had it need not be folded anew."""

from __future__ import annotations

from collections import OrderedDict

from attrs import frozen

from flowdsl.activation import Activation


@frozen(eq=False)
class _Kept:
    epoch: int
    activation: Activation
    weight: int


class Warm:
    """The least recently suspended go first. A machine is given back only for the epoch after the one that it was left in.

    Whatever else touches an execution, another worker's claim or an operator, raises its epoch: then what is kept here is not its state.
    """

    def __init__(self, entries: int, bytes: int) -> None:
        self._entries, self._bytes = entries, bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self.weight = 0
        """Bytes of what was folded into those that are kept: memory is some multiple of it."""
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, epoch: int, activation: Activation, weight: int) -> None:
        """Keeps a machine whose every entry is recorded, and which was suspended in that epoch."""
        self.forget(activation.execution.id)
        if weight > self._bytes or not self._entries:
            return
        self._kept[activation.execution.id] = _Kept(epoch, activation, weight)
        self.weight += weight
        while len(self._kept) > self._entries or self.weight > self._bytes:
            self.forget(next(iter(self._kept)))

    def take(self, id: str, epoch: int) -> tuple[Activation, int] | None:
        """The machine of an execution that was claimed into that epoch, and its weight; None when it must be folded anew. It is given once."""
        kept = self.forget(id)
        if kept is None or kept.epoch + 1 != epoch:
            self.misses += 1
            return None
        self.hits += 1
        return kept.activation, kept.weight

    def forget(self, id: str) -> _Kept | None:
        kept = self._kept.pop(id, None)
        if kept is not None:
            self.weight -= kept.weight
        return kept

    def clear(self) -> None:
        self._kept.clear()
        self.weight = 0
