"""What one system brings to the deployment, and how the systems become one.

A system has its business in `domains/NAME` and its outside in `adapters/NAME`; there a function `part(environment)` says what it brings:

    def part(environment: Mapping[str, str]) -> Part:
        return Part(
            workflows=[enrich],                                   # children and activities that their bodies name are found from there
            bindings=[bind(submit, submitted), ...],              # who carries out its activities
            schedules=[Schedule.cron("0 * * * *", enrich, ...)],  # started by the clock, in every process that works
            webhooks=[webhook("fullenrich", full_enrich(key), on_results)],        # POST /webhooks/fullenrich
            routes=[starts("/api/enrichments", enrich, body=..., read=..., ...)],  # paths of its own (flowdsl.service.alias), or whole `Route`s
            migrations=[Path(__file__).parents[1] / "migrations" / "NAME"],        # its tables; the folder's name stands before theirs
        )

and `adapters/deployment.py` composes it by one line. A part opens nothing, and reads nothing but the environment that it is given: what is not set
is left out (no webhook without a secret, no schedule for nobody), what is set and wrong raises a `DefinitionError` that names the variable.
Addresses and credentials for calls are read when a call is made. Every workflow can be started over HTTP without any route, by its whole name
(`POST /api/v1/workflows/sync.main`) or the last part of it with hyphens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from flowdsl import Deployment, Schedule, Workflow
from flowdsl.binding import Binding

if TYPE_CHECKING:
    from flowdsl.service.route import Route
    from flowdsl.service.webhooks import Webhook


@frozen
class Part:
    """What one system brings. See this module's text."""

    workflows: Sequence[Workflow[Any, Any, Any]]
    bindings: Sequence[Binding] = ()
    schedules: Sequence[Schedule] = ()
    webhooks: Sequence[Webhook] = ()
    routes: Sequence[Route] = ()
    migrations: Sequence[Path] = ()


def composed(*parts: Part) -> Deployment:
    """One deployment of them all. Raises `DeploymentError` for what is missing or doubled."""
    return Deployment(
        workflows=[one for part in parts for one in part.workflows],
        bindings=[one for part in parts for one in part.bindings],
        schedules=[one for part in parts for one in part.schedules],
        webhooks=[one for part in parts for one in part.webhooks],
        routes=[one for part in parts for one in part.routes],
        migrations=[one for part in parts for one in part.migrations],
    )


__all__ = ["Part", "composed"]
