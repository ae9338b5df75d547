"""What a run in memory gave, and its story."""

from flowdsl.story.happenings import (
    Adopted,
    Arrived,
    Began,
    Called,
    Died,
    Dropped,
    Fate,
    Folded,
    Happening,
    Missed,
    Noted,
    Over,
    Recorded,
    Role,
    When,
    Wished,
)
from flowdsl.story.run import Run, recent, words

__all__ = [
    "Adopted", "Arrived", "Began", "Called", "Died", "Dropped", "Fate", "Folded", "Happening", "Missed", "Noted", "Over", "Recorded", "Role", "Run",
    "When", "Wished", "recent", "words",
]  # fmt: skip
