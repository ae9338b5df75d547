"""The delta sync by the clock: off unless named, and one that runs over real HTTP and real Postgres."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from adapters.deployment import deployment
from adapters.planning_center.schedules import ORGS, delta_syncs
from domains.sync.values import MainSync, MainSynced
from domains.sync.workflows import main_sync
from flowdsl import Deployment, Success
from flowdsl.postgres.schedules import register
from flowdsl.postgres.scheduling import backfill
from tests.adapters.test_planning_center_sync import Church, church, weather

__all__ = ["church", "weather"]


@pytest.mark.shows("S4.47")
def test_off_unless_an_organization_is_named() -> None:
    assert delta_syncs({}) == delta_syncs({ORGS: " , "}) == []
    one, two = delta_syncs({ORGS: "org_123, org_456,org_123"})
    assert (one.id, one.workflow, one.request) == ("sync.delta.org_123", main_sync, MainSync("org_123", "pco", "delta", "schedule"))
    assert (str(one.timetable.rule), one.timetable.overlap) == ("*/15 * * * *", "skip")
    assert two.id == "sync.delta.org_456"


def test_the_deployment_has_those_of_the_environment() -> None:
    code = "from adapters.deployment import deployment; print(*(one.id for one in deployment.schedules))"
    for orgs, ids in (("", []), ("a,b", ["sync.delta.a", "sync.delta.b"])):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={ORGS: orgs}, check=True)
        assert done.stdout.split() == ids


@pytest.mark.shows("S4.12", "S4.47")
async def test_each_firing_brings_what_changed_since_the_last(church: Church) -> None:
    """Three quarters of an hour: one execution each, the key that a first run took never stands in the way of the next."""
    await church.sync()
    brought = Deployment(deployment.workflows, deployment.bindings, schedules=delta_syncs({ORGS: "org"}))
    store = church.worker.store
    await register(store, brought)
    counts: list[int] = []
    for minute in (0, 15, 30):
        church.change("edit_contact", "add_person")
        church.settle()
        quarter = datetime(2026, 1, 1, 12, minute, tzinfo=UTC)
        [fired] = await backfill(store, "sync.delta.org", quarter, quarter)
        assert fired.execution is not None
        exit: Any = await church.worker.wait(fired.execution)
        assert isinstance(exit, Success), exit
        found: MainSynced = exit.unwrap()
        assert found.sync_type == "delta"
        counts.append(sum(one.result.total_records_processed for one in found.results if one.result))
    assert await church.agrees()
    assert all(count < 40 for count in counts), "what changed, not everybody"
    assert len(await store.list(workflow="sync.main")) == 4
