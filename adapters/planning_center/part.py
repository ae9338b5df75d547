"""The sync of Planning Center, as a part of the deployment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adapters.part import Part
from adapters.planning_center.bindings import BINDINGS
from adapters.planning_center.routes import ROUTES
from adapters.planning_center.schedules import delta_syncs
from adapters.planning_center.webhooks import webhooks
from domains.sync.workflows import entity_sync, main_sync


def part(environment: Mapping[str, str]) -> Part:
    """Both tiers of the sync; by the clock and by webhook for the organizations that the environment names."""
    return Part(
        workflows=[main_sync, entity_sync],
        bindings=[*BINDINGS],
        schedules=delta_syncs(environment),
        webhooks=webhooks(environment),
        routes=ROUTES,
        migrations=[Path(__file__).parents[1] / "migrations" / "sync"],
    )


__all__ = ["part"]
