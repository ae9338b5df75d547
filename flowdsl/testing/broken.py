"""What is said of a law that does not hold: the law in words, what to do, the world, and both stories where they part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from flowdsl.definition import Workflow

LAWS: Final[Mapping[int, str]] = {
    1: "running twice asks the same steps",
    2: "a crash after any entry, then a resume, gives the same exit and the same journal",
    3: "two crashes change nothing either",
    4: "every value comes back from the journal as it went in, byte for byte",
    5: "nothing fails that is not declared",
    6: "a cancellation at any step ends it, with its finalizers run and its undos in reverse",
    7: "no order of exits, timers and signals loses a wake-up or leaves it waiting for ever",
    8: "no step is answered twice",
    9: "every child that was started ends, or was left alone on purpose",
    10: "two ways to say the same do the same",
}
"""The laws that `check` holds, by number."""

REMEDIES: Final[Mapping[int, str]] = {
    1: "A body may depend on its input and on what it bound, on nothing else. Take time from now(), chance from random() or uuid(), "
    "order from sorted(), and everything else through an activity.",
    2: "What a body knows is gone when the process dies, and made again from the journal. Keep nothing outside of it: no global, no attribute "
    "of an object that lives longer, no default argument that is changed.",
    3: "As with one crash: keep nothing outside of the body, and nothing that counts how often the body ran.",
    4: "Mend the type's codec hooks, or give it a form of its own: what is recorded has to say all that the value says.",
    5: "Declare the failure and bind it, or mend the bug where it is raised. A finalizer and an undo meet every exit: also Cancelled and Defect.",
    6: "What runs when all is over must end by itself: put a timeout around what a mask, a finalizer or an undo waits for. If a finalizer or an undo "
    "did not run at all, that is a bug of flowdsl: please report it.",
    7: "A signal that was taken is gone. What it says must not be lost with a branch that a timer cuts: let race and timeout decide about "
    "receive() alone, and act on what came after that. If a wake-up was lost, that is a bug of flowdsl: please report it.",
    8: "This is a bug of flowdsl, or of an interpreter: please report it with the story below.",
    9: "Join the child, cancel it, or start it with on_close='abandon' or detached=True. If its parent has ended and nobody asked it to end, "
    "that is a bug of flowdsl: please report it.",
    10: "This is a bug of flowdsl, unless the body counts how often it is run: please report it with the stories below.",
}

SAME: Final = 6
"""Lines before the first difference that are shown."""
LINES: Final = 60
"""Lines of each story that are shown."""


@frozen
class Told:
    """A story, and what it is the story of."""

    title: str
    story: str


class LawBroken(AssertionError):
    """A law that does not hold: its number, and what shows it."""

    def __init__(self, number: int, workflow: Workflow[Any, Any, Any], what: str, world: str, stories: Sequence[Told], again: str) -> None:
        self.law, self.workflow, self.what, self.world, self.stories = number, workflow, what, world, tuple(stories)
        lines = [f"{workflow.name} breaks law {number}: {LAWS[number]}.", "", f"What is seen: {what}", f"What to do:   {REMEDIES[number]}"]
        lines += [f"In the world: {world}", f"Once more:    {again}"]
        super().__init__("\n".join([*lines, *_stories(stories)]))


KINDS: Final = {number: type(f"Law{number}Broken", (LawBroken,), {"__doc__": words}) for number, words in LAWS.items()}
"""A class for each law, so that a search for the smallest world does not slip from one law to another."""


def _stories(stories: Sequence[Told]) -> list[str]:
    same = 0
    texts = [told.story.splitlines() for told in stories]
    if len(texts) > 1:
        while all(same < len(text) and text[same] == texts[0][same] for text in texts):
            same += 1
    left_out = max(same - SAME, 0)
    lines: list[str] = []
    for told, text in zip(stories, texts, strict=True):
        lines += ["", f"{told.title}:"]
        lines += [f"        … {left_out} lines that are the same …"] if left_out else []
        shown = text[left_out:]
        if len(shown) > LINES:
            shown[LINES // 2 : -LINES // 2] = [f"        … {len(shown) - LINES} lines more …"]
        lines += shown
    return lines
