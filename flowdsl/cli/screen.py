"""How executions look: a headline, a tree of children that lives on a terminal, tables. Plain lines where there is no terminal."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from flowdsl.cli.edge import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from flowdsl.postgres.store import Store, Summary

ENDED = ("succeeded", "failed", "cancelled")
COLORS = {"succeeded": "green", "failed": "red", "blocked": "red", "cancelled": "yellow", "running": "cyan", "suspended": "yellow"}
MARKS = {"succeeded": "✓", "failed": "✗", "blocked": "■", "cancelled": "⊘", "running": "▶", "suspended": "…"}
BREADTH = 40
"""Children of one execution that are shown; of the others only their number is told."""
DEPTH = 20


# What is said of one execution


def name_of(one: Summary) -> str:
    return f"{shown(one.workflow)}{f' {shown(one.key)}' if one.key else ''}"


def took(one: Summary) -> str:
    """How long it took, or has taken until now."""
    return span(((one.ended or datetime.now(UTC)) - one.started).total_seconds())


def span(seconds: float) -> str:
    if seconds < 100:
        return f"{max(0.0, seconds):.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds:.0f} s"


def counted(entries: int) -> str:
    return "1 entry" if entries == 1 else f"{entries:,} entries"


def clock(at: datetime) -> str:
    """Local time; with the date if that is another than today's."""
    here = at.astimezone()
    return f"{here:%H:%M:%S}" if here.date() == datetime.now().date() else f"{here:%Y-%m-%d %H:%M}"


def progress(one: Summary) -> str:
    """The newest note, and how far it is."""
    count = "" if one.done is None else f" ({one.done:,}{f' of {one.total:,}' if one.total else ''})"
    return f"{shown(one.note)}{count}" if one.note else count.strip()


def waits_for(one: Summary, open_children: int) -> str:
    if one.status == "running" and one.owner is None:
        return "waits for a worker"
    if one.status != "suspended":
        return ""
    children = f"{open_children} {'child' if open_children == 1 else 'children'}" if open_children else ""
    until = f"until {clock(one.wake)}" if one.wake else ""
    return f"waits {' or '.join(filter(None, [children and f'for {children}', until])) or 'for a signal'}"


def headline(one: Summary) -> str:
    """One line for a person: who, how it stands, since when; and the cause, if it is blocked."""
    colored = click.style(f"{MARKS[one.status]} {one.status}", fg=COLORS[one.status])
    cause = f"\n{_lines(one.cause)}" if one.cause else ""
    return f"{colored}  {name_of(one)}  {'after' if one.ended else 'for'} {took(one)}, {counted(one.entries)}  {one.id}{cause}"


def _lines(text: str) -> str:
    return "\n".join(f"  {shown(line)}" for line in text.splitlines())


# The tree


@frozen
class Branch:
    """An execution and its children, the oldest first."""

    summary: Summary
    children: tuple[Branch, ...] = ()
    trouble: str = ""
    """Which attempt failed last, if that is the newest that is recorded; asked for the first of a tree alone."""

    @property
    def settled(self) -> bool:
        """Nothing in it will change."""
        return self.summary.status in ENDED and all(child.settled for child in self.children)

    @property
    def open_children(self) -> int:
        return sum(child.summary.status not in ENDED for child in self.children)

    def facts(self) -> dict[str, Any]:
        from flowdsl.cli.looking import facts_of

        return {**facts_of(self.summary), "children": [child.facts() for child in self.children]}

    def lines(self, depth: int = 0) -> Iterator[tuple[str, str]]:
        """Of each execution its id and its line."""
        one = self.summary
        parts = [f"{one.id}  {'  ' * depth}{one.status:<9}  {name_of(one)}", progress(one), waits_for(one, self.open_children)]
        more = "".join(f"\n{_lines(text)}" for text in (one.cause, self.trouble) if text)
        yield one.id, "  ".join(filter(None, parts)) + more
        for child in self.children:
            yield from child.lines(depth + 1)


async def grown(store: Store, id: str, before: Branch | None = None) -> Branch:
    """The tree as it stands; what had settled before is not asked for again. Raises `NotFound`."""
    known: dict[str, Branch] = {}
    todo = [before] if before is not None else []
    while todo:
        branch = todo.pop()
        known[branch.summary.id] = branch
        todo += branch.children
    return await _grown(store, await store.summary(id), known, 0)


async def _grown(store: Store, summary: Summary, known: dict[str, Branch], depth: int) -> Branch:
    old = known.get(summary.id)
    if old is not None and old.settled:
        return old
    if depth == DEPTH:
        return Branch(summary)
    children = reversed(await store.list(parent=summary.id, limit=1000))
    trouble = await trouble_of(store, summary) if depth == 0 else ""
    return Branch(summary, tuple([await _grown(store, child, known, depth + 1) for child in children]), trouble)


async def trouble_of(store: Store, one: Summary) -> str:
    """What an attempt said that failed, where an open execution is to try again; else nothing."""
    import json

    from flowdsl.cli.looking import why_of
    from flowdsl.errors import FlowError
    from flowdsl.journal import ATTEMPT
    from flowdsl.postgres.looking import entries

    if one.status not in ("running", "suspended") or not one.entries:
        return ""
    tenant = (await store.tenants([one.id])).get(one.id, "")
    try:
        newest = await entries(store, tenant, one.id, first=one.entries - 1, limit=1)
    except FlowError:  # its key is not here: the execution can be looked at all the same
        return ""
    if not newest or newest[-1].kind != ATTEMPT:
        return ""
    said, activity = json.loads(newest[-1].body), newest[-1].fingerprint.split()[1]
    why = why_of(said).removesuffix(f" ({activity})")
    return f"attempt {said['number']} of {activity} failed: {why}; again at {clock(datetime.fromisoformat(said['due']))}"


def drawn(branch: Branch) -> Any:
    """The tree for a terminal."""
    from rich.tree import Tree

    root = Tree(_label(branch), guide_style="dim")
    _plant(root, branch)
    return root


def _plant(tree: Any, branch: Branch) -> None:
    children = branch.children
    if len(children) > BREADTH:  # those that did not simply succeed are the ones to look at
        telling = [child for child in children if child.summary.status != "succeeded"][:BREADTH]
        newest = [child for child in children if child.summary.status == "succeeded"][len(telling) - BREADTH :] if len(telling) < BREADTH else []
        children = tuple(child for child in children if child in telling or child in newest)
    for child in children:
        _plant(tree.add(_label(child)), child)
    hidden = Counter(child.summary.status for child in branch.children)
    hidden.subtract(child.summary.status for child in children)
    if hidden.total():
        tree.add(f"[dim]and {hidden.total()} more: {', '.join(f'{count} {status}' for status, count in hidden.items() if count)}")


def _label(branch: Branch) -> Text:
    from rich.text import Text

    one = branch.summary
    text = Text()
    text.append(f"{MARKS[one.status]} {one.status}", style=COLORS[one.status])
    text.append(f"  {name_of(one)}", style="bold")
    text.append(f"  {took(one)}, {counted(one.entries)}")
    if one.done is not None and one.total and one.status not in ENDED:
        share = min(1.0, one.done / one.total)
        text.append(f"  {'━' * round(20 * share)}", style="cyan")
        text.append(f"{'━' * (20 - round(20 * share))}", style="dim")
        text.append(f" {share:.0%}")
    for part, style in ((progress(one), ""), (waits_for(one, branch.open_children), "yellow")):
        if part:
            text.append(f"  {part}", style=style)
    text.append(f"  {one.id}", style="dim")
    for more in filter(None, (one.cause, branch.trouble)):
        text.append(f"\n{_lines(more)}", style="red")
    return text


# Following


async def follow(store: Store, id: str, show: Callable[[Branch], None]) -> Branch:
    """Shows the tree as it grows; gives it as it is when the execution has ended, or is blocked."""
    branch: Branch | None = None
    while True:
        begun = time.monotonic()
        branch = await grown(store, id, branch)
        show(branch)
        if branch.summary.status in (*ENDED, "blocked"):
            return branch
        await asyncio.sleep(max(0.3, 3 * (time.monotonic() - begun)))


@contextmanager
def alive() -> Generator[Callable[[Branch], None]]:
    """The tree, live on the terminal for the length of a block; cleared at its end."""
    from rich.live import Live

    with Live(console=console(), auto_refresh=False, transient=True, vertical_overflow="crop") as live:
        yield lambda branch: live.update(drawn(branch), refresh=True)


@asynccontextmanager
async def watching(store: Store, id: str) -> AsyncGenerator[None]:
    """The same while the block does something else."""
    with alive() as show:
        task = asyncio.create_task(follow(store, id, show))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def followed(store: Store, id: str, *, quiet: bool) -> Branch:
    """The tree at its end; until then live on a terminal, elsewhere a line for each execution that changed."""
    if quiet:
        return await follow(store, id, lambda _: None)
    if sys.stdout.isatty():
        with alive() as show:
            return await follow(store, id, show)
    told: dict[str, str] = {}

    def tell(branch: Branch) -> None:
        for one, line in branch.lines():
            if told.get(one) != line:
                told[one] = line
                click.echo(line)

    return await follow(store, id, tell)


# Tables


def console() -> Console:
    from rich.console import Console

    return Console(highlight=False, emoji=False)


@frozen
class Column:
    """A column of a table. `room`: left out on a terminal that is narrower."""

    title: str
    cells: Sequence[str]
    right: bool = False
    folds: bool = False
    room: int = 0


def table(*columns: Column) -> None:
    """A table that fits the terminal; elsewhere, or when it is long, plain columns with nothing left out or cut off."""
    length = len(columns[0].cells)
    if not sys.stdout.isatty() or length > 2000:
        widths = [max(map(len, (one.title, *one.cells))) for one in columns]
        for row in zip(*((one.title, *one.cells) for one in columns), strict=True):
            cells = [cell.rjust(width) if one.right else cell.ljust(width) for one, cell, width in zip(columns, row, widths, strict=True)]
            click.echo("  ".join(cells).rstrip())
        return
    from rich.table import Table
    from rich.text import Text

    screen = console()
    fitting = [one for one in columns if one.room <= screen.width]
    made = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for one in fitting:
        made.add_column(one.title, justify="right" if one.right else "left", no_wrap=not one.folds, overflow="fold")
    for row in zip(*(one.cells for one in fitting), strict=True):
        made.add_row(*(Text(cell, style=COLORS.get(cell, "")) for cell in row))
    screen.print(made)
