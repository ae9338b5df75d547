"""What both pictures share: which wrappers are a word on a step, which steps end the way, and what a step is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from attrs import evolve, frozen

from flowdsl.outline.values import Item

ENDS: Final = ("return", "raise", "fail", "break", "continue")
BESIDE: Final = ("all", "race")
HANDLED: Final = ("compensate", "ensure", "catch")
"""Kinds whose second part is a handler beside the first."""

_WRAPPERS: Final = ("attempt", "isolate", "timeout", "retry", "masked", "saga")

ICONS: Final[Mapping[str, str]] = {
    "sleep": "◷", "receive": "✉", "take": "✉", "send": "✉", "child": "▣", "start": "▣", "join": "▣", "cancel-child": "▣", "existing": "▣",
    "audit": "§", "report": "…", "changed": "Δ", "loop": "↻", "iterate": "↻", "all": "∥", "each": "∥", "dag": "∥", "race": "▹", "again": "↑",
    "unknown": "?",
}  # fmt: skip


@frozen
class Shown:
    """An item as it is drawn: what wraps a single step is a word on it."""

    item: Item
    path: str
    words: tuple[str, ...]
    parts: tuple[Shown, ...]
    paths: tuple[str, ...]
    """The paths of all items that it stands for."""

    @property
    def title(self) -> str:
        icon = ICONS.get(self.item.kind, "")
        return f"{icon} {self.item.label}".strip()

    @property
    def detail(self) -> str:
        """Its policies and wrappers, in one line."""
        said = [name if value == "yes" else f"{name} {value}" for name, value in self.item.facts.items()]
        return " · ".join([*self.words, *said])


def shown(item: Item, path: str = "0") -> Shown:
    """An item for drawing."""
    parts = tuple(one for index, part in enumerate(item.parts) for one in _flat(shown(part, f"{path}.{index}"), item))
    if item.kind in _WRAPPERS and len(parts) == 1 and not parts[0].parts and parts[0].item.kind not in ENDS:
        inner = parts[0]
        word = item.label if item.kind in ("timeout", "retry") else item.kind
        return evolve(inner, words=(*inner.words, word), path=inner.path, paths=(path, *inner.paths), item=evolve(inner.item, when=item.when))
    return Shown(item, path, (), parts, (path,))


def _flat(one: Shown, holder: Item) -> Iterator[Shown]:
    """A sequence in a sequence is one."""
    if one.item.kind == "sequence" and not one.item.when and holder.kind in ("sequence", "workflow", "part", "loop"):
        yield from one.parts
    else:
        yield one


def ends(one: Shown) -> bool:
    """Whether nothing comes after it: all ways through it have ended."""
    kind, parts = one.item.kind, one.parts
    if kind in ENDS:
        return True
    if kind == "choice":
        return bool(parts) and all(ends(part) for part in parts)
    if kind == "sequence":
        return any(ends(part) for part in parts)
    if kind == "loop":
        return one.item.label == "again and again" and not _breaks(one)
    return False


def _breaks(loop: Shown) -> bool:
    return any(part.item.kind == "break" or (part.item.kind in ("choice", "sequence") and _breaks(part)) for part in loop.parts)


__all__ = ["BESIDE", "ENDS", "HANDLED", "ICONS", "Shown", "ends", "shown"]
