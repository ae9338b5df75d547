"""The enrichment, as a part of the deployment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adapters.fullenrich.bindings import BINDINGS
from adapters.fullenrich.triggers import enrichment_schedules
from adapters.part import Part
from domains.enrichment.workflows import add_subscriber, enrich_batch, upload


def part(environment: Mapping[str, str]) -> Part:
    """By hand always; by the clock and by webhook once there is an API key."""
    from adapters.fullenrich.callbacks import enrichment_webhooks

    return Part(
        workflows=[enrich_batch, add_subscriber, upload],
        bindings=[*BINDINGS],
        schedules=enrichment_schedules(environment),
        webhooks=enrichment_webhooks(environment),
        migrations=[Path(__file__).parents[1] / "migrations" / "enrichment"],
    )


__all__ = ["part"]
