"""Whether recorded executions fit the code at hand: each fits, needs a `changed` marker at a place, or breaks at a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from attrs import frozen

from flowdsl.codec import Undecodable
from flowdsl.errors import NotFound
from flowdsl.journal import Divergence, Entry
from flowdsl.operating import Subject


@frozen
class Fit:
    """What the code at hand makes of one recorded execution."""

    execution: str
    workflow: str
    verdict: Literal["fits", "needs a marker", "breaks", "unknown"]
    step: str = ""
    place: str = ""
    """Where in the code: function, file and line."""
    why: str = ""
    lines: tuple[str, ...] = ()

    @property
    def group(self) -> tuple[str, str, str, str]:
        """What is the same for executions that meet the same change."""
        return self.workflow, self.verdict, self.place, self.why


def fit(subject: Subject, entries: Sequence[Entry]) -> Fit:
    """Folds the live entries of an execution through the code at hand; nothing is called, nothing is changed."""
    id, workflow = subject.execution.id, subject.execution.workflow
    try:
        subject.fold().replay(entries)
    except Divergence as error:
        # A step that is only new can be guarded where it stands: those that are open keep to what they know.
        verdict: Literal["needs a marker", "breaks"] = "needs a marker" if error.difference == "inserted" else "breaks"
        return Fit(id, workflow, verdict, error.step, error.place, error.verdict, error.lines)
    except NotFound as error:
        return Fit(id, workflow, "unknown", why=str(error))
    except Undecodable as error:
        return Fit(id, workflow, "breaks", why=f"a recorded value no longer fits its type: {error}")
    return Fit(id, workflow, "fits")


__all__ = ["Fit", "fit"]
