"""The delta sync by the clock, for the organizations that the environment names; for none unless it does."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.planning_center.webhooks import tenant
from domains.sync.values import MainSync
from domains.sync.workflows import main_sync
from flowdsl import Schedule

ORGS = "PLANNING_CENTER_SYNC_ORGS"


def delta_syncs(environment: Mapping[str, str]) -> list[Schedule]:
    """Every quarter of an hour what changed, for each organization: `PLANNING_CENTER_SYNC_ORGS=org_123,org_456`.

    Never two at once for one organization: while a sync is still going on, the next quarter is skipped. Spread over a minute, since they
    may share one quota. After a downtime there is one: it brings all that changed.
    """
    named = dict.fromkeys(name.strip() for name in environment.get(ORGS, "").split(","))
    return [
        Schedule.cron(
            "*/15 * * * *", main_sync, MainSync(org, "pco", "delta", "schedule"), id=f"sync.delta.{org}", jitter="1m", overlap="skip",
            tenant=tenant(environment),
        )
        for org in named
        if org
    ]  # fmt: skip
