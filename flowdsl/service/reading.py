"""Who read payloads: a row in the audit before they are shown, and none for each further look of a reader who comes again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from flowdsl.codec import encode_plain
from flowdsl.service.route import Call

PAUSE: Final = 300.0
"""Seconds in which the further looks of one reader at the same thing are part of the first."""
_MOST: Final = 10_000


async def payloads_shown(call: Call, what: str, executions: Sequence[str]) -> None:
    """Writes down that the caller is about to be shown payloads of these executions. `what`: result, journal, signals, webhooks."""
    seen, now = call.service.reads, asyncio.get_running_loop().time()
    fresh = [id for id in executions if seen.get((call.tenant, call.caller.name, what, id), -PAUSE) + PAUSE <= now]
    if not fresh:
        return
    facts = {"by": call.caller.name, "what": what, **({"executions": fresh} if len(fresh) > 1 else {})}
    one = fresh[0] if len(fresh) == 1 and fresh[0] else None
    await call.store.audit(call.tenant, one, "READ", encode_plain(facts))
    if len(seen) > _MOST:
        for old in [key for key, at in seen.items() if at + PAUSE <= now] or list(seen):
            del seen[old]
    seen.update({(call.tenant, call.caller.name, what, id): now for id in fresh})


__all__ = ["PAUSE", "payloads_shown"]
