"""What the demo shows: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from attrs import frozen
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

_MARKS = {"succeeded": "[green]✓ done[/]", "running": "[cyan]● running[/]", "suspended": "[yellow]◌ waiting[/]", "failed": "[red]✗ failed[/]"}


@frozen
class Row:
    """One entity's sync, as the store has it now."""

    entity: str
    status: str
    pages: int
    records: int
    retries: int
    resumed: int
    entries: int


class Screen:
    """Says lines as they come, and keeps a table of entities below them while a sync runs."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._live: Live | None = None
        self._told: dict[str, str] = {}
        self._begun = time.monotonic()

    def say(self, line: str) -> None:
        if not self._quiet:
            self._console.print(f"[dim]{time.monotonic() - self._begun:5.1f}s[/] {line}", highlight=False, soft_wrap=True)

    def begin(self) -> None:
        self._told = {}
        if self._console.is_terminal and not self._quiet:
            self._live = Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.start()

    def show(self, title: str, rows: list[Row]) -> None:
        if self._live is not None:
            self._live.update(Group(Text(title), _table(rows)))
        elif not self._quiet:
            for row in rows:
                if self._told.get(row.entity) != row.status:
                    self._told[row.entity] = row.status
                    self.say(f"{row.entity:<20} {row.status:<10} {row.records:>7} records")

    def end(self, title: str, rows: list[Row]) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if not self._quiet:
            self._console.print(_table(rows, title))


def _table(rows: list[Row], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", show_footer=bool(title))
    table.add_column("entity", footer="total")
    table.add_column("status")
    for name, total in (
        ("pages", sum(row.pages for row in rows)),
        ("records", sum(row.records for row in rows)),
        ("retries", sum(row.retries for row in rows)),
        ("resumed steps", sum(row.resumed for row in rows)),
    ):
        table.add_column(name, justify="right", footer=f"{total:,}")
    for row in rows:
        counts = (f"{row.pages:,}", f"{row.records:,}", str(row.retries or ""), str(row.resumed or ""))
        table.add_row(row.entity, _MARKS.get(row.status, row.status), *counts)
    return table
