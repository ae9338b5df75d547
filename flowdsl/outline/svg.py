"""Outlines as pictures. An outline is a tree, so its layout needs no solver: sequences go down, branches stand side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

from attrs import frozen

from flowdsl.outline.showing import BESIDE, ENDS, HANDLED, Shown, ends, shown

if TYPE_CHECKING:
    from flowdsl.outline import Lit, Outline

GAP, ROOM, PAD = 22, 18, 14
"""Between two steps, between two branches, inside a frame."""
_MOST = 46

_STYLE = """
.o{--bg:#ffffff;--ink:#1f2328;--soft:#59636e;--line:#8c959f;--box:#f6f8fa;--edge:#c4cbd3;--frame:#f6f8fa66;--blue:#0969da;
--violet:#8250df;--amber:#9a6700;--green:#1a7f37;--red:#cf222e;font:13px ui-sans-serif,system-ui,"Segoe UI","DejaVu Sans",sans-serif}
@media (prefers-color-scheme:dark){.o{--bg:#0d1117;--ink:#e6edf3;--soft:#9198a1;--line:#6e7681;--box:#161b22;--edge:#3d444d;
--frame:#161b2266;--blue:#4493f8;--violet:#ab7df8;--amber:#d29922;--green:#3fb950;--red:#f85149}}
.o .page{fill:var(--bg)}.o text{fill:var(--ink)}.o .soft{fill:var(--soft);font-size:11px}.o .head{font-size:16px;font-weight:600}
.o .box{fill:var(--box);stroke:var(--edge)}.o .bar{fill:var(--blue)}.o .wait .bar{fill:var(--amber)}.o .child .bar{fill:var(--violet)}
.o .child .box{stroke:var(--violet)}.o .quiet .bar{fill:var(--edge)}.o .quiet .box{stroke-dasharray:3 3}.o .undo .bar{fill:var(--red)}
.o .choice .box{fill:var(--bg);stroke:var(--blue)}.o .ending .box{fill:var(--bg);stroke:var(--soft)}
.o .ending.fail .box{stroke:var(--red)}.o .frame{fill:var(--frame);stroke:var(--edge)}
.o .beside>.frame{stroke:var(--blue);stroke-dasharray:6 4}.o .round>.frame{stroke:var(--violet)}
.o .around>.frame{stroke:var(--amber);stroke-dasharray:2 3}.o .way{fill:none;stroke:var(--line);stroke-width:1.4}
.o .back,.o .softly{stroke-dasharray:5 4}.o .tip{fill:var(--line)}.o .mark{fill:var(--green);font-weight:700}
.o .lit>.box{stroke:var(--green);stroke-width:2.4}.o .lit>.bar{fill:var(--green)}.o a text{text-decoration:underline}
""".strip()

_CLASSES = {
    "activity": "work", "sleep": "wait", "receive": "wait", "take": "wait", "join": "wait", "child": "child", "start": "child",
    "cancel-child": "child", "existing": "child", "now": "quiet", "uuid": "quiet", "random": "quiet", "execution": "quiet", "report": "quiet",
    "pure": "quiet", "again": "quiet", "unknown": "quiet", "all": "beside", "race": "beside", "each": "beside", "dag": "beside", "loop": "round",
    "iterate": "round", "timeout": "around", "retry": "around", "attempt": "around", "isolate": "around", "masked": "around", "saga": "around",
}  # fmt: skip


@frozen
class Box:
    """Something drawn: its size, where the way goes in and out, and whether the way goes on below it."""

    width: float
    height: float
    axis: float
    svg: str
    goes_on: bool = True


def svg(outlines: Sequence[tuple[Outline, Lit | None]]) -> str:
    """One picture of one or several outlines; a child links to the outline of its workflow, where that is drawn too."""
    drawn = {outline.workflow for outline, _ in outlines}
    y, width, pieces = 20.0, 320.0, list[str]()
    for outline, lit in outlines:
        body = _Drawing(drawn, lit).sequence(shown(outline.root).parts)
        told = f" · {lit}" if lit is not None else ""
        head = _text(20, y + 16, f"{outline.workflow}", "head") + _text(20, y + 34, f"version {outline.version}{told}", "soft")
        pieces.append(f'<g id="{anchor(outline.workflow)}">{head}{_at(body.svg, 20, y + 52)}</g>')
        width = max(width, body.width + 40, _wide(outline.workflow, 10) + 40)
        y += body.height + 52 + 40
    size = f'width="{width:.0f}" height="{y:.0f}" viewBox="0 0 {width:.0f} {y:.0f}"'
    title = escape(", ".join(outline.workflow for outline, _ in outlines))
    page = f'<rect class="page" width="{width:.0f}" height="{y:.0f}"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="o" role="img" {size}>'
        f"<title>{title}</title><style>{_STYLE}</style>{page}{''.join(pieces)}</svg>\n"
    )


def anchor(workflow: str) -> str:
    """The id of a workflow's outline in a picture."""
    return "workflow-" + re.sub(r"[^\w.-]", lambda found: f"_{ord(found[0]):x}", workflow)


@frozen
class _Drawing:
    drawn: set[str]
    lit: Lit | None

    def one(self, item: Shown) -> Box:
        kind = item.item.kind
        if kind == "sequence":
            return self.sequence(item.parts)
        if kind == "choice":
            return self.choice(item)
        if kind in HANDLED and item.parts:
            return self.handled(item)
        if kind == "dag" and len(item.parts) > 1:
            return self.framed(item, self.graph(item.parts))
        if kind in BESIDE and item.parts:
            return self.framed(item, self.beside([self.one(part) for part in item.parts], [part.item.when for part in item.parts]))
        if kind == "node":
            return self.framed(item, self.sequence(item.parts)) if item.parts else self.leaf(item)
        if item.parts:
            return self.framed(item, self.sequence(item.parts), back=kind in ("loop", "iterate"))
        return self.leaf(item)

    def leaf(self, item: Shown, title: str = "", shape: str = "") -> Box:
        kind = item.item.kind
        ending, lit = kind in ENDS, self.lit is not None and bool(self.lit.items.intersection(item.paths))
        text, detail = _cut(title or item.title), _cut(item.detail, 60)
        width = max(_wide(text), _wide(detail, 6), 40) + 28
        height = 26 if ending or shape else 44 if detail else 32
        corner = height / 2 if ending or shape else 6
        group = f"{shape or _CLASSES.get(kind, 'work')}{' ending' if ending else ''}{f' {kind}' if ending else ''}"
        group += f"{' undo' if item.item.when == 'undo' else ''}{' lit' if lit else ''}"
        bar = "" if ending or shape else f'<rect class="bar" x="0" y="6" width="4" height="{height - 12}" rx="2"/>'
        body = f'<rect class="box" width="{width:.1f}" height="{height}" rx="{corner}"/>{bar}'
        body += _text(width / 2, 17 if detail or ending or shape else 20.5, text, middle=True) + (_text(width / 2, 34, detail, "soft", middle=True))
        body += _text(width - 12, 12, "✓", "mark", middle=True) if lit else ""
        link = item.item.link if kind in ("child", "start") and item.item.link in self.drawn else ""
        inner = f'<a href="#{anchor(link)}">{body}</a>' if link else body
        return Box(width, height, width / 2, f'<g class="{group}">{_tip(item)}{inner}</g>', not ending)

    def sequence(self, items: Sequence[Shown]) -> Box:
        boxes: list[Box] = []
        for item in items:
            boxes.append(self.one(item))
            if ends(item):
                break
        if not boxes:
            return Box(40, GAP, 20, _way(20, 0, 20, GAP))
        axis = max(box.axis for box in boxes)
        y, pieces = 0.0, list[str]()
        for index, box in enumerate(boxes):
            if index:
                pieces.append(_way(axis, y, axis, y + GAP, tip=True))
                y += GAP
            pieces.append(_at(box.svg, axis - box.axis, y))
            y += box.height
        return Box(axis + max(box.width - box.axis for box in boxes), y, axis, "".join(pieces), boxes[-1].goes_on)

    def choice(self, item: Shown) -> Box:
        head = self.leaf(item, item.item.label, "choice")
        below = self.beside([self.one(part) for part in item.parts], [part.item.when for part in item.parts])
        axis = max(head.axis, below.axis)
        width = axis + max(head.width - head.axis, below.width - below.axis)
        body = _at(head.svg, axis - head.axis, 0) + _at(below.svg, axis - below.axis, head.height)
        return Box(width, head.height + below.height, axis, body, below.goes_on)

    def beside(self, boxes: Sequence[Box], words: Sequence[str]) -> Box:
        """Branches: from one way into several, and back into one."""
        spots: list[float] = []
        x = 0.0
        for box, word in zip(boxes, words, strict=True):
            extra = max(0.0, _wide(_cut(word, 34), 6) + 10 - (box.width - box.axis))
            spots.append(x)
            x += box.width + extra + ROOM
        width, top, tall = x - ROOM, 30.0, max(box.height for box in boxes)
        axes = [spot + box.axis for spot, box in zip(spots, boxes, strict=True)]
        axis = axes[0] if len(axes) == 1 else (axes[0] + axes[-1]) / 2
        goes_on = any(box.goes_on for box in boxes)
        low = top + tall + 10
        pieces: list[str] = []
        for box, spot, at, word in zip(boxes, spots, axes, words, strict=True):
            pieces.append(_way(axis, 0, axis, 9, at, 9, at, top, tip=box.height > GAP))
            pieces.append(_text(at + 6, top - 8, _cut(word, 34), "soft") if word else "")
            pieces.append(_at(box.svg, spot, top))
            if box.goes_on:
                pieces.append(_way(at, top + box.height, at, low, axis, low, axis, low + 8))
        return Box(width, low + 8 if goes_on else top + tall, axis, "".join(pieces), goes_on)

    def handled(self, item: Shown) -> Box:
        """The work, and beside it what handles how it ended."""
        work = self.one(item.parts[0])
        if len(item.parts) < 2:
            return work
        other, word = self.one(item.parts[1]), item.parts[1].item.when
        room = max(_wide(word, 6) + 22, 56)
        y = min(work.height, 44.0) / 2
        start, height = work.width + room, max(work.height, other.height + 4)
        link = _way(work.width, y, start, y, tip=True, extra=" softly") + _text(work.width + room / 2 - 3, y - 6, word, "soft", middle=True)
        down = _way(work.axis, work.height, work.axis, height) if height > work.height and work.goes_on else ""
        body = work.svg + _at(other.svg, start, y - min(other.height, 44.0) / 2) + link + down
        return Box(start + other.width, height + max(0.0, y - 22), work.axis, body, work.goes_on)

    def framed(self, item: Shown, inner: Box, *, back: bool = False) -> Box:
        """A frame with a title around what belongs together; a loop has a way back on its left."""
        title, detail = _cut(item.title, 60), _cut(item.detail, 60)
        left, top, low = PAD + (14.0 if back else 0.0), 42.0 if back else 34.0, PAD + (8.0 if back else 0.0)
        wide = max(_wide(title) + _wide(detail, 6) + 36, inner.width + left + PAD)
        shift = left + max(0.0, (wide - left - PAD - inner.width) / 2)
        axis, height = shift + inner.axis, top + inner.height + low
        lit = self.lit is not None and item.path in self.lit.items
        body = f'<rect class="frame" width="{wide:.1f}" height="{height:.1f}" rx="9"/>' + _text(12, 19, title)
        body += _text(22 + _wide(title), 19, detail, "soft") if detail else ""
        body += _text(wide - 14, 19, "✓", "mark", middle=True) if lit else ""
        body += _at(inner.svg, shift, top)
        free = 12 + _wide(title) + (_wide(detail, 6) + 16 if detail else 0) < axis - 6
        body += _way(axis, 0 if free else 26, axis, top, tip=back)
        if back and inner.goes_on:
            y = top + inner.height
            body += _way(axis, y, axis, y + 9, 12, y + 9, 12, top - 13, axis, top - 13, tip=True, extra=" back")
        kind = item.item.kind
        goes_on = not ends(item)
        if goes_on and not back and inner.goes_on:
            body += _way(axis, top + inner.height, axis, height)
        return Box(wide, height, axis, f'<g class="{_CLASSES.get(kind, "part")}">{_tip(item)}{body}</g>', goes_on)

    def graph(self, nodes: Sequence[Shown]) -> Box:
        """Nodes in rows, each below all that it comes after."""
        names = {node.item.label for node in nodes}
        needs = {node.item.label: [(name, word) for word in ("after", "soft") for name in node.item.facts.get(word, "").split(", ") if name in names]
                 for node in nodes}  # fmt: skip
        level: dict[str, int] = {}
        while len(level) < len(names):  # a cycle was refused when the graph was built; here it only has to end
            ready = [name for name in names - level.keys() if all(other in level for other, _ in needs[name])] or sorted(names - level.keys())
            level |= {name: 1 + max((level.get(other, -1) for other, _ in needs[name]), default=-1) for name in ready}
        rows = [[node for node in nodes if level[node.item.label] == row] for row in range(max(level.values()) + 1)]
        boxes = [[self.one(node) for node in row] for row in rows]
        width = max(sum(box.width for box in row) + ROOM * (len(row) - 1) for row in boxes)
        y, pieces, places = 0.0, list[str](), dict[str, tuple[float, float, float]]()
        for row, drawn in zip(rows, boxes, strict=True):
            x = (width - sum(box.width for box in drawn) - ROOM * (len(drawn) - 1)) / 2
            for node, box in zip(row, drawn, strict=True):
                places[node.item.label] = (x + box.axis, y, y + box.height)
                pieces.append(_at(box.svg, x, y))
                x += box.width + ROOM
            y += max(box.height for box in drawn) + 40
        for name, found in needs.items():
            pieces += [_curve(places[other], places[name], soft=word == "soft") for other, word in found]
        return Box(width, y - 40, width / 2, "".join(pieces))


# Marks


def _at(body: str, x: float, y: float) -> str:
    return f'<g transform="translate({x:.1f} {y:.1f})">{body}</g>'


def _way(*points: float, tip: bool = False, extra: str = "") -> str:
    places = list(zip(points[::2], points[1::2], strict=True))
    path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    (ax, ay), (x, y) = places[-2], places[-1]
    end = ""
    if tip:
        side = f"{x - 4:.1f} {y - 7:.1f} L{x + 4:.1f} {y - 7:.1f}" if y > ay else f"{x - 7:.1f} {y - 4:.1f} L{x - 7:.1f} {y + 4:.1f}"
        end = f'<path class="tip" d="M{x:.1f} {y:.1f} L{side} Z"/>'
    return f'<path class="way{extra}" d="{path}"/>{end}' if (ax, ay) != (x, y) else ""


def _curve(start: tuple[float, float, float], end: tuple[float, float, float], *, soft: bool) -> str:
    (x, _, y), (x2, y2, _) = start, end
    middle = (y + y2) / 2
    path = f"M{x:.1f} {y:.1f} C{x:.1f} {middle:.1f} {x2:.1f} {middle:.1f} {x2:.1f} {y2 - 5:.1f}"
    tip = f"M{x2:.1f} {y2:.1f} L{x2 - 4:.1f} {y2 - 7:.1f} L{x2 + 4:.1f} {y2 - 7:.1f} Z"
    return f'<path class="way{" softly" if soft else ""}" d="{path}"/><path class="tip" d="{tip}"/>'


def _text(x: float, y: float, text: str, kind: str = "", *, middle: bool = False) -> str:
    if not text:
        return ""
    classed, anchored = f' class="{kind}"' if kind else "", ' text-anchor="middle"' if middle else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{classed}{anchored}>{_plain(text)}</text>'


def _tip(item: Shown) -> str:
    said = [item.item.label, item.detail, item.item.site]
    return f"<title>{_plain(chr(10).join(one for one in said if one))}</title>"


def _plain(text: str) -> str:
    """Text for XML: escaped, without the characters that no XML may hold."""
    return escape("".join(char if char.isprintable() or char == "\n" else "�" for char in text))


def _cut(text: str, most: int = _MOST) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _wide(text: str, each: float = 7.4) -> float:
    """About how wide a text is: `each` is what a small letter takes."""
    return each * sum(1.8 if east_asian_width(one) in "WF" else 1.25 if one.isupper() else 0.55 if one in "ijl.,:;'|!()[]f " else 1 for one in text)


__all__ = ["anchor", "svg"]
