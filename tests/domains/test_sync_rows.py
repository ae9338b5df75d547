"""What a sync tells on its way, and the steps of one entity in their order."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from adapters.planning_center import settings
from adapters.planning_center.bindings import get_api_client, load_entity_manifest
from adapters.planning_center.manifest import PEOPLE
from domains.sync.failures import Unauthorized, UnknownAdapter
from domains.sync.values import EntitySync, GetClient, LoadedManifest, LoadManifest
from domains.sync.workflows import entity_sync
from flowdsl import Failure, Success
from tests.domains.test_sync import Church, run

PERSON = EntitySync("org_1", "church", "Person", "full")


def told(found: Any) -> list[str]:
    return [note.note for note in found.notes]


@pytest.mark.shows("S4.14")
def test_it_tells_of_its_start_the_manifest_the_graph_each_entity_and_its_end() -> None:
    notes = told(run(Church(failing={"Person": Unauthorized(403, "PELICAN", "Ask for the scope")})))
    assert notes[:3] == [
        "full sync of org_1 begins (manual)",
        "the manifest of church has 7 entities",
        "in order: Campus, Household, Person, Membership, Merger, Email, Address",
    ]
    begun = [note.partition(":")[0] for note in notes if note.endswith("full sync begins")]
    assert set(begun) == {"Campus", "Household", "Person", "Merger"}, "the others wait for a person, and are passed over"
    assert notes[-1] == "3 of 7 entities completed"


@pytest.mark.shows("S4.24-28", "S4.32", "S4.69")
def test_the_steps_of_an_entity_follow_each_other() -> None:
    found = run(Church(pages={"Person": 2}), entity_sync, PERSON)
    story = [one for one in found.story() if not one.startswith(("MeasureEntity", "iterate"))]
    assert story == [
        "GetEntityDefinition",
        "SelectEndpoint",
        "GetApiClient",
        "GetSyncParameters",
        "ProcessEntityPage",
        "ProcessEntityPage",
        "ProcessEntityPage",
        "UpdateSyncStatus",
    ], "two pages of the list, and then the rows in doubt"


@pytest.mark.shows("S4.25", "S4.30")
def test_the_endpoint_and_each_page_are_told() -> None:
    notes = run(Church(pages={"Person": 3}, pause=timedelta(seconds=1)), entity_sync, PERSON).notes
    assert [note.note for note in notes][1] == "Person: reads listPerson"
    pages = [(note.note, note.done) for note in notes if "page" in note.note and "listPerson" in note.note]
    assert pages == [("Person: page 1 of listPerson", 10), ("Person: page 2 of listPerson", 20), ("Person: page 3 of listPerson", 30)]


@pytest.mark.anyio
@pytest.mark.shows("S4.15", "S4.35", "S4.9")
async def test_a_manifest_is_loaded_with_its_count_and_no_other_is_made_up() -> None:
    assert await load_entity_manifest(LoadManifest("pco")) == Success(LoadedManifest(PEOPLE, 8))
    missing = await load_entity_manifest(LoadManifest("crm"))
    assert isinstance(missing, Failure) and isinstance(missing.failure(), UnknownAdapter)


@pytest.mark.anyio
@pytest.mark.shows("S4.26")
async def test_the_client_is_a_reference_that_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.TOKEN, "app_id:a secret")
    client = (await get_api_client(GetClient("org_1", "pco"))).unwrap()
    assert (client.org_id, client.adapter_name) == ("org_1", "pco")
    assert "a secret" not in repr(client)
    assert client.credential, "which one: so that another can take its place"
