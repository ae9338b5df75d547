"""Which executions are asked for, page by page."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from attrs import frozen


@frozen
class Sought:
    """Which executions are asked for. `text` is looked for in keys and names of workflows, and is an id if it looks like one."""

    workflow: str | None = None
    status: str | None = None
    ended: bool = False
    parent: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None
    id: str | None = None
    dead: bool = False
    """Only what failed or is blocked, and was not discarded."""

    def arguments(self, tenant: str | None, after: Place | None, limit: int) -> tuple[Any, ...]:
        """Those of flowdsl.page."""
        text = None if self.text is None else re.escape(self.text)
        return (
            tenant, self.workflow, self.status, self.ended, self.dead, self.parent, self.since, self.until, text, self.id,
            after and after.started, after and after.id, limit,
        )  # fmt: skip


@frozen
class Place:
    """Where a page of executions ended: the next one begins behind it."""

    started: datetime
    id: str


__all__ = ["Place", "Sought"]
