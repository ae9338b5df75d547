"""Outlines as Mermaid flowcharts: text that GitHub, GitLab and most wikis draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from attrs import define, field

from flowdsl.outline.showing import BESIDE, ENDS, HANDLED, Shown, ends, shown
from flowdsl.outline.values import BODIES

if TYPE_CHECKING:
    from flowdsl.outline import Lit, Outline

_Ends: TypeAlias = list[tuple[str, str]]
"""Nodes that lead on, each with what stands on its edge."""

_SHAPES = {
    "activity": ("[", "]"), "sleep": ("([", "])"), "receive": ("[/", "/]"), "take": ("[/", "/]"), "send": ("[\\", "\\]"), "child": ("[[", "]]"),
    "start": ("[[", "]]"), "choice": ("{", "}"), "return": ("([", "])"), "fail": ("([", "])"), "raise": ("([", "])"),
}  # fmt: skip
_STYLES = (
    "classDef quiet stroke-dasharray:3 3,opacity:0.75",
    "classDef child stroke-width:2px",
    "classDef end_ stroke-width:1px,stroke-dasharray:2 2",
    "classDef lit stroke:#1a7f37,stroke-width:3px",
)
_CLASSES = {"now": "quiet", "uuid": "quiet", "random": "quiet", "execution": "quiet", "report": "quiet", "pure": "quiet", "again": "quiet",
            "child": "child", "start": "child", "return": "end_", "fail": "end_", "raise": "end_"}  # fmt: skip


def mermaid(outlines: Sequence[tuple[Outline, Lit | None]]) -> str:
    """One flowchart of one or several outlines; a child leads to the outline of its workflow, where that is drawn too."""
    chart = _Chart({outline.workflow: f"w{index}" for index, (outline, _) in enumerate(outlines)})
    for outline, lit in outlines:
        chart.outline(outline, lit)
    return "\n".join(["flowchart TD", *chart.lines, *(f"  {style}" for style in _STYLES), *chart.classes]) + "\n"


@define
class _Chart:
    drawn: dict[str, str]
    lines: list[str] = field(factory=list[str])
    classes: list[str] = field(factory=list[str])
    depth: int = 1
    count: int = 0
    lit: Lit | None = None
    heads: list[tuple[str, _Ends]] = field(factory=list[tuple[str, _Ends]])
    returns: list[_Ends] = field(factory=list[_Ends])

    def outline(self, outline: Outline, lit: Lit | None) -> None:
        self.lit = lit
        told = f" · {lit}" if lit is not None else ""
        with_title = f"{outline.workflow} v{outline.version}{told}"
        head = self.drawn[outline.workflow]
        self._line(f"subgraph {head}g[{quoted(with_title)}]")
        self.depth += 1
        self._line(f"{head}([{quoted('start')}])")
        leads = self._sequence(shown(outline.root).parts, [(head, "")])
        if leads:
            self._line(f"{head}e([{quoted('end')}])")
            self._join(leads, f"{head}e")
        self._close()

    def _line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def _close(self) -> None:
        self.depth -= 1
        self._line("end")

    def _node(self, one: Shown, text: str) -> str:
        self.count += 1
        name, kind = f"n{self.count}", one.item.kind
        begin, end = _SHAPES.get(kind, ("[", "]"))
        self._line(f"{name}{begin}{quoted(text)}{end}")
        if kind in _CLASSES:
            self.classes.append(f"  class {name} {_CLASSES[kind]}")
        if self.lit is not None and self.lit.items.intersection(one.paths):
            self.classes.append(f"  class {name} lit")
        if one.item.link in self.drawn and kind in ("child", "start"):
            self._line(f"{name} -.-> {self.drawn[one.item.link]}")
        return name

    def _join(self, leads: _Ends, to: str, arrow: str = "-->") -> None:
        for name, words in leads:
            self._line(f"{name} {arrow}|{quoted(words)}| {to}" if words else f"{name} {arrow} {to}")

    def _sequence(self, parts: Sequence[Shown], leads: _Ends) -> _Ends:
        for part in parts:
            if not leads:
                break  # what comes after an end is never reached
            leads = self._one(part, leads)
        return leads

    def _one(self, one: Shown, leads: _Ends) -> _Ends:
        kind = one.item.kind
        if kind == "sequence":
            return self._sequence(one.parts, leads)
        if kind in ENDS and self.heads and kind in ("break", "continue"):
            head, broken = self.heads[-1]
            if kind == "break":
                broken += leads
            else:
                self._join(leads, head, "-.->")
            return []
        if kind == "choice":
            return self._choice(one, leads)
        if kind in HANDLED:
            return self._handled(one, leads)
        if kind == "loop":
            return self._loop(one, leads)
        if one.parts:
            return self._group(one, leads)
        name = self._node(one, "\n".join(filter(None, (one.title, one.detail))))
        self._join(leads, name)
        if kind == "return" and self.returns:
            self.returns[-1].append((name, ""))
        return [] if kind in ENDS else [(name, "")]

    def _choice(self, one: Shown, leads: _Ends) -> _Ends:
        name = self._node(one, one.item.label)
        self._join(leads, name)
        return [lead for part in one.parts for lead in self._one(part, [(name, part.item.when)])]

    def _handled(self, one: Shown, leads: _Ends) -> _Ends:
        """The work, and its handler beside it."""
        done = self._one(one.parts[0], leads)
        if len(one.parts) < 2:
            return done
        handler = one.parts[1]
        if one.item.kind == "ensure":
            return self._one(handler, [(name, handler.item.when) for name, _ in done])
        here = len(self.lines)
        handled = self._one(handler, [(name, handler.item.when) for name, _ in done])
        self.lines[here:] = [line.replace(" -->|", " -.->|", 1) if f"|{quoted(handler.item.when)}|" in line else line for line in self.lines[here:]]
        return done if one.item.kind == "compensate" else done + handled

    def _loop(self, one: Shown, leads: _Ends) -> _Ends:
        self.count += 1
        head = f"n{self.count}"
        self._line(f"subgraph {head}g[{quoted(one.title)}]")
        self.depth += 1
        self._line(f"{head}(({quoted('↻')}))")
        self.heads.append((head, []))
        last = self._sequence(one.parts, [(head, "")])
        self._close()
        self._join(leads, head)
        self._join(last, head, "-.->")
        broken = self.heads.pop()[1]
        endless = one.item.label == "again and again"
        return [] if ends(one) else broken if endless else [(head, "done"), *broken]

    def _group(self, one: Shown, leads: _Ends) -> _Ends:
        self.count += 1
        self._line(f"subgraph g{self.count}[{quoted(' · '.join(filter(None, (one.title, one.detail))))}]")
        self.depth += 1
        heads, self.heads = self.heads, []
        if one.item.kind == "dag":
            out = self._dag(one, leads)
        elif one.item.kind in BESIDE:
            out = [lead for part in one.parts for lead in self._one(part, [(name, part.item.when or words) for name, words in leads])]
        elif one.item.kind in BODIES:
            self.returns.append([])
            out = self._sequence(one.parts, leads) + self.returns.pop()  # what a part returns its caller goes on with
        else:
            out = self._sequence(one.parts, leads)
        self.heads = heads
        self._close()
        return out or leads[:1]  # a failure that somebody further out handles

    def _dag(self, one: Shown, leads: _Ends) -> _Ends:
        """Each node after those it names; one that stands for many, with what it goes through."""
        out: dict[str, _Ends] = {}
        needed: set[str] = set()
        for part in one.parts:
            facts = part.item.facts
            before = [name for word in ("after", "soft") for name in facts.get(word, "").split(", ") if name in out]
            needed.update(before)
            begin = [(name, "") for other in before for name, _ in out[other]] if before else leads
            label = part.item.label if not part.item.when else ""
            out[part.item.label] = self._sequence(part.parts, [(name, label or words) for name, words in begin])
        return [lead for name, leads in out.items() if name not in needed for lead in leads]


def quoted(text: str) -> str:
    """Text as a Mermaid label: whatever is in it, it stays text."""
    kept = "".join(char if char.isalnum() or char in " .,:;()[]{}/+-*=_!?'∥↻◷✉▣▹§Δ↑·…\n" else f"#{ord(char)};" for char in text)
    return '"' + kept.replace("\n", "<br/>") + '"'


__all__ = ["mermaid", "quoted"]
