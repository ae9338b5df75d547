"""The composition root: which workflows run here, and who carries them out. Importing it reads no setting and opens nothing."""

from __future__ import annotations

from pathlib import Path

from adapters.planning_center.bindings import BINDINGS
from domains.sync.workflows import entity_sync, main_sync
from flowdsl import Deployment

deployment = Deployment(
    workflows=[main_sync, entity_sync],
    bindings=[*BINDINGS],
    migrations=[Path(__file__).parent / "migrations" / "sync"],
)
