"""The testing kit: a fake interpreter, worlds, laws, interleavings, paths. Nothing of it is loaded before it is asked for."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowdsl.story import Run
    from flowdsl.testing.broken import LAWS, LawBroken
    from flowdsl.testing.fake import Endless, Fake, ScriptError, Unscripted
    from flowdsl.testing.flows import Sample, flows
    from flowdsl.testing.interleavings import Interleavings, TooShallow, interleavings
    from flowdsl.testing.laws import Checked, check
    from flowdsl.testing.paths import Paths, paths
    from flowdsl.testing.replies import Arrival, BadWorld, Reply
    from flowdsl.testing.values import Undrawable, values
    from flowdsl.testing.worlds import World, worlds

_HOMES = {
    "LAWS": "flowdsl.testing.broken",
    "LawBroken": "flowdsl.testing.broken",
    "Sample": "flowdsl.testing.flows",
    "flows": "flowdsl.testing.flows",
    "Interleavings": "flowdsl.testing.interleavings",
    "TooShallow": "flowdsl.testing.interleavings",
    "interleavings": "flowdsl.testing.interleavings",
    "Checked": "flowdsl.testing.laws",
    "check": "flowdsl.testing.laws",
    "Paths": "flowdsl.testing.paths",
    "paths": "flowdsl.testing.paths",
    "Arrival": "flowdsl.testing.replies",
    "BadWorld": "flowdsl.testing.replies",
    "Reply": "flowdsl.testing.replies",
    "Undrawable": "flowdsl.testing.values",
    "World": "flowdsl.testing.worlds",
    "values": "flowdsl.testing.values",
    "worlds": "flowdsl.testing.worlds",
    "Endless": "flowdsl.testing.fake",
    "Fake": "flowdsl.testing.fake",
    "Run": "flowdsl.story",
    "ScriptError": "flowdsl.testing.fake",
    "Unscripted": "flowdsl.testing.fake",
}

__all__ = [
    "LAWS",
    "Arrival",
    "BadWorld",
    "Checked",
    "Endless",
    "Fake",
    "Interleavings",
    "LawBroken",
    "Paths",
    "Reply",
    "Run",
    "Sample",
    "ScriptError",
    "TooShallow",
    "Undrawable",
    "Unscripted",
    "World",
    "check",
    "flows",
    "interleavings",
    "paths",
    "values",
    "worlds",
]


class _Front(ModuleType):
    """`worlds` is the strategy, also when its module of the same name has been loaded: the import system would put that in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
