"""The composition root: which workflows run here, and who implements their activities."""

from __future__ import annotations

from pathlib import Path

from adapters.planning_center import pages
from domains.sync import activities
from domains.sync.workflows import entity_sync, main_sync
from flowdsl import Deployment, bind

deployment = Deployment(
    workflows=[main_sync, entity_sync],
    bindings=[
        bind(activities.load_entity_manifest, pages.load_manifest),
        bind(activities.build_dependency_graph, pages.build_graph),
        bind(activities.get_entity_definition, pages.get_definition),
        bind(activities.select_endpoint, pages.select_endpoint),
        bind(activities.get_api_client, pages.get_client),
        bind(activities.get_sync_parameters, pages.get_parameters),
        bind(activities.process_entity_page, pages.process_page),
        bind(activities.sweep_unseen, pages.sweep),
        bind(activities.link_entities, pages.link),
        bind(activities.update_sync_status, pages.update_status),
    ],
    migrations=[Path(__file__).parent / "migrations" / "sync"],
)
