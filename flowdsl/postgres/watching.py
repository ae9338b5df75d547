"""Who wants to know what a worker does is told once a batch, a claim or a block, and never once a step. Nobody is told by default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from flowdsl.postgres.committer import Commit, Fate
    from flowdsl.postgres.store import Claimed


class Watch(Protocol):
    """Set as `Worker.watch` before or while it works. What it is told it may count; it must not raise, nor take long."""

    def recorded(self, batch: Sequence[Commit], fates: Sequence[Fate], seconds: float) -> None:
        """A batch is recorded, after so long. Those who submitted it are told next."""
        ...

    def repeated(self) -> None:
        """A batch is sent again: what became of it is not known, or something was in its way."""
        ...

    def claimed(self, found: Sequence[Claimed]) -> None:
        """What a claim brought; some of it was another worker's, which is gone."""
        ...

    def blocked(self, count: int) -> None:
        """So many executions need a person now, for what no turn of theirs said."""
        ...


__all__ = ["Watch"]
