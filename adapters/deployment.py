"""The composition root: which workflows run here, when, and who carries them out. Importing it opens nothing, and reads one setting: who is
synced by the clock."""

from __future__ import annotations

import os
from pathlib import Path

from adapters.planning_center.bindings import BINDINGS
from adapters.planning_center.schedules import delta_syncs
from domains.sync.workflows import entity_sync, main_sync
from flowdsl import Deployment

deployment = Deployment(
    workflows=[main_sync, entity_sync],
    bindings=[*BINDINGS],
    schedules=delta_syncs(os.environ),
    migrations=[Path(__file__).parent / "migrations" / "sync"],
)
