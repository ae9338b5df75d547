"""The sync without a source: graphs out of manifests, and both workflows in memory, driven by nothing but data."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import define, evolve, field

from domains.sync import activities as contracts
from domains.sync.failures import PlanFault, Unauthorized, UnbreakableCycle, UnknownAdapter, UnknownEntity, UnknownTarget
from domains.sync.graph import Graph, Link, Needs, plan
from domains.sync.manifest import Entity, Manifest, Merge, Relationship
from domains.sync.paging import Cursor
from domains.sync.route import route
from domains.sync.values import (
    ApiClient,
    Definition,
    EntitySync,
    EntitySynced,
    Extent,
    Linked,
    LoadedManifest,
    MainSync,
    MainSynced,
    Page,
    PageOrder,
    SyncParameters,
    SyncStatus,
    Tally,
)
from domains.sync.workflows import entity_sync, main_sync
from flowdsl import Binding, Deployment, Failure, Result, Success, bind
from flowdsl.codec import codec
from flowdsl.memory import Memory, Run

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def needs(name: str, target: str, **more: bool) -> Relationship:
    return Relationship(name, target, required=True, **more)


# Planning Center's shape: Household and Person refer to each other
CHURCH = Manifest(
    "church",
    (
        Entity("Campus", "campuses", aliases=("PrimaryCampus",)),
        Entity("Person", "people", (Relationship("primary_campus", "PrimaryCampus"), Relationship("households", "Household"))),
        Entity("Household", "households", (needs("primary_contact", "Person", linked_later=True),)),
        Entity("Membership", "households/{owner}/memberships", (needs("household", "Household"), needs("person", "Person")), None, owner="household"),
        Entity("Email", "emails", (needs("person", "Person"),), owner="person", siblings="people/{owner}/emails"),
        Entity("Address", "addresses", (needs("person", "Person"),), filterable=False, owner="person"),
        Entity("Merger", "mergers", changed="created_at", merge=Merge("Person", "keep", "remove")),
    ),
)

# Nothing of the other one is in it
CRM = Manifest(
    "crm",
    (
        Entity("Deal", "deals", (needs("company", "Company"), Relationship("contact", "Contact"), needs("stage", "Stage"))),
        Entity("Contact", "contacts", (needs("company", "Company"), Relationship("manager", "Contact"))),
        Entity("Company", "companies", (Relationship("parent", "Company"), Relationship("main_contact", "Contact", linked_later=True))),
        Entity("Stage", "stages", changed=None),
        Entity("LineItem", "deals/{owner}/line_items", (needs("deal", "Deal"),), None, owner="deal"),
    ),
)


def graph_of(manifest: Manifest, sync_type: Any = "full") -> Graph:
    return plan(manifest, sync_type).unwrap()


# The graph


@pytest.mark.shows("S4.16", "S4.36-38", "S4.45", "S4.74")
def test_the_order_of_the_church() -> None:
    graph = graph_of(CHURCH)
    assert graph.sync_order == ("Campus", "Household", "Person", "Membership", "Merger", "Email", "Address")
    assert graph.dependencies["Person"] == Needs((), ("Campus", "Household"))
    assert graph.dependencies["Membership"] == Needs(("Household", "Person"))
    assert graph.dependencies["Email"] == Needs(("Person",), ("Merger",))


@pytest.mark.shows("S4.38")
def test_a_cycle_is_broken_by_linking_later() -> None:
    graph = graph_of(CHURCH)
    assert graph.dependencies["Household"] == Needs()
    assert graph.links == (Link("Household", "primary_contact", "Person"),)


def test_what_may_be_linked_later_still_waits_where_it_can() -> None:
    manifest = Manifest("m", (Entity("A", "as", (needs("b", "B", linked_later=True),)), Entity("B", "bs")))
    graph = graph_of(manifest)
    assert graph.sync_order == ("B", "A")
    assert graph.dependencies["A"] == Needs(("B",))


@pytest.mark.shows("S4.38")
def test_a_hard_cycle_is_refused_by_name() -> None:
    manifest = Manifest(
        "m",
        (Entity("A", "as", (needs("b", "B"),)), Entity("B", "bs", (needs("c", "C"),)), Entity("C", "cs", (needs("a", "A"),)), Entity("D", "ds")),
    )
    fault = plan(manifest, "full").failure()
    assert isinstance(fault, UnbreakableCycle)
    assert set(fault.entities) == {"A", "B", "C"}
    assert fault.entities[0] == fault.entities[-1]
    assert "→" in str(fault)
    assert "linked_later" in str(fault)


def test_a_soft_cycle_only_loses_its_order() -> None:
    manifest = Manifest("m", (Entity("A", "as", (Relationship("b", "B"),)), Entity("B", "bs", (Relationship("a", "A"),))))
    assert graph_of(manifest).dependencies == {"A": Needs((), ("B",)), "B": Needs()}


def test_an_entity_may_refer_to_itself() -> None:
    assert graph_of(CRM).dependencies["Contact"] == Needs(("Company",))


def test_a_target_that_nobody_describes_is_named() -> None:
    fault = plan(Manifest("m", (Entity("A", "as", (needs("b", "Bee"),)),)), "full").failure()
    assert fault == UnknownTarget("A", "b", "Bee")
    assert "Bee" in str(fault)


@pytest.mark.shows("S4.48")
def test_a_delta_leaves_out_what_nothing_tells_of() -> None:
    graph = graph_of(CRM, "delta")
    assert set(graph.sync_order) == {"Company", "Contact", "Deal", "LineItem"}
    assert graph.dependencies["Deal"] == Needs(("Company",), ("Contact",))


@pytest.mark.shows("S4.36", "S4.63")
def test_the_order_of_a_crm() -> None:
    graph = graph_of(CRM)
    assert graph.sync_order == ("Company", "Contact", "Stage", "Deal", "LineItem")
    assert graph.links == (Link("Company", "main_contact", "Contact"),)
    assert graph.dependencies["LineItem"] == Needs(("Deal",))


def test_a_part_of_a_graph() -> None:
    graph = graph_of(CHURCH).among(["Person", "Email"])
    assert graph == Graph(("Person", "Email"), {"Person": Needs(), "Email": Needs(("Person",))}, ())


# The endpoints


@pytest.mark.shows("S4.25", "S4.52")
@pytest.mark.parametrize(
    ("name", "sync_type", "subject", "endpoint", "then"),
    [
        ("Person", "full", None, "listPerson", ["getPersonById"]),
        ("Person", "delta", None, "listPersonChangedSince", ["getPersonById"]),
        ("Person", "full", "17", "getPersonById", []),
        ("Address", "delta", None, "listAddressNewestFirst", ["getAddressById"]),
        ("Address", "reconciliation", None, "listAddress", ["getAddressById"]),
        ("Email", "delta", None, "listEmailChangedSince", ["listEmailOfPerson", "getEmailById"]),
        ("Email", "full", "9", "getEmailById", ["listEmailOfPerson"]),
        ("Membership", "full", None, "listMembershipOfHousehold", []),
    ],
)
def test_the_endpoint_follows_from_entity_and_sync_type(name: str, sync_type: Any, subject: str | None, endpoint: str, then: list[str]) -> None:
    entity = CHURCH.entity(name)
    assert entity is not None
    found = route(entity, sync_type, subject)
    assert found.endpoint.name == endpoint
    assert [one.name for one in found.then] == then


# The workflows, in memory


@define
class Church:
    """A scripted source: what each page gives, by entity, endpoint and page number."""

    manifest: Manifest = CHURCH
    pages: dict[str, int] = field(factory=dict[str, int])
    pause: timedelta = timedelta()
    extents: dict[str, list[Extent]] = field(factory=dict[str, list[Extent]])
    watermarks: dict[str, datetime] = field(factory=dict[str, datetime])
    failing: dict[str, Any] = field(factory=dict[str, Any])
    refusal: Any = None

    def page(self, asked: PageOrder) -> Result[Page, Any]:
        name = asked.order.entity_name
        if name in self.failing:
            return Failure(self.failing[name])
        if asked.endpoint.kind != "list" and not (asked.definition.entity.nested or asked.endpoint.kind == "one"):
            return Success(Page(0, 0, None, None, timedelta()))
        last = asked.cursor.offset + 1 >= self.pages.get(name, 1)
        following = None if last else evolve(asked.cursor, offset=asked.cursor.offset + 1)
        return Success(Page(10, 0, following, NOON + timedelta(seconds=asked.cursor.offset), self.pause, None))

    def extent(self, name: str) -> Extent:
        told = self.extents.get(name, [])
        return told.pop(0) if len(told) > 1 else told[0] if told else Extent(10, NOON, 10)

    def definition(self, name: str) -> Result[Definition, UnknownEntity]:
        entity = self.manifest.entity(name)
        if entity is None:
            return Failure(UnknownEntity(name, self.manifest.names))
        listed = self.manifest.listed_under(entity)
        return Success(Definition(entity, listed, 100, self.manifest.overlap, self.manifest.pause, self.manifest.spare))

    def graph(self, asked: Any) -> Result[Graph, PlanFault]:
        return plan(asked.manifest, asked.sync_type)

    def answers(self) -> dict[Any, Callable[[Any], Any]]:
        known = self.manifest.adapter_name
        return {
            contracts.load_entity_manifest: lambda asked: (
                Success(LoadedManifest(self.manifest, len(self.manifest.entities)))
                if asked.adapter_name == known
                else Failure(UnknownAdapter(asked.adapter_name, (known,)))
            ),
            contracts.build_dependency_graph: self.graph,
            contracts.get_entity_definition: lambda asked: self.definition(asked.entity_name),
            contracts.select_endpoint: lambda asked: Success(route(asked.entity, asked.sync_type, asked.subject)),
            contracts.get_api_client: lambda asked: Success(ApiClient(asked.org_id, asked.adapter_name, "TOKEN")),
            contracts.check_source: lambda _: Failure(self.refusal) if self.refusal else Success(None),
            contracts.get_sync_parameters: lambda asked: Success(
                SyncParameters(NOON, self.watermarks.get(asked.order.entity_name) if asked.order.sync_type == "delta" else None, 0)
            ),
            contracts.measure_entity: lambda asked: Success(self.extent(asked.order.entity_name)),
            contracts.process_entity_page: self.page,
            contracts.update_sync_status: lambda _: Success(None),
            contracts.link_entity: lambda _: Success(Linked(1, 0)),
        }


def deployment() -> Deployment:
    every = [one for one in vars(contracts).values() if hasattr(one, "contract")]
    return Deployment([main_sync], [_unbound(one) for one in every])


def _unbound(contract: Any) -> Binding:
    def missing(_: Any) -> Any:
        raise AssertionError(f"{contract.name} is not scripted")

    return bind(contract, missing)


def run(church: Church, workflow: Any = main_sync, order: Any = None, **more: Any) -> Run:
    return Memory(deployment(), church.answers(), **more).run(workflow, order or MainSync("org_1", church.manifest.adapter_name, "full", "manual"))


def asked(found: Run) -> list[PageOrder]:
    return list(found.calls(contracts.process_entity_page))


def lists(found: Run, sync_type: str = "full") -> list[str]:
    """The entities in the order of their first pages."""
    names = [one.order.entity_name for one in asked(found) if one.order.sync_type == sync_type]
    return list(dict.fromkeys(names))


def answer(found: Run) -> Any:
    assert isinstance(found.exit, Success), found
    return found.exit.unwrap()


@pytest.mark.shows("S4.1-3", "S4.18", "S4.63", "S4.68", "S4.77")
@pytest.mark.parametrize("manifest", [CHURCH, CRM], ids=["church", "crm"])
def test_the_manifest_alone_decides_what_is_synced_and_after_what(manifest: Manifest) -> None:
    found = run(Church(manifest, pages={one.name: 3 for one in manifest.entities}))
    graph = graph_of(manifest)
    order = lists(found)
    assert set(order) == set(graph.sync_order)
    pages = [one.order.entity_name for one in asked(found) if one.order.sync_type == "full"]
    for name, what in graph.dependencies.items():
        for needed in (*what.hard, *what.soft):
            last = max(i for i, one in enumerate(pages) if one == needed)
            assert last < pages.index(name), f"{name} began before {needed} was over"
    assert [one.entity_name for one in answer(found).results] == list(graph.sync_order)
    assert [one.relationship for one in found.calls(contracts.link_entity)] == [link.relationship for link in graph.links]


@pytest.mark.shows("S4.5", "S4.17")
def test_each_child_is_told_its_dependencies() -> None:
    found = run(Church())
    told = {one.order.entity_name: one.order.dependencies for one in asked(found) if one.order.sync_type == "full"}
    assert told == graph_of(CHURCH).dependencies


@pytest.mark.shows("S4.20", "S4.21", "S4.33")
def test_the_answer_is_written_whole() -> None:
    found = answer(run(Church(pages={"Person": 4})))
    written = json.loads(codec(MainSynced).encode(found))
    assert (written["org_id"], written["adapter_name"], written["sync_type"], written["entities_processed"]) == ("org_1", "church", "full", 7)
    person = next(one for one in written["results"] if one["entity_name"] == "Person")
    assert person == {
        "entity_name": "Person",
        "status": "completed",
        "result": {"entity_name": "Person", "sync_type": "full", "total_records_processed": 40, "pages_processed": 4, "records_deleted": 0},
        "reason": None,
    }


@pytest.mark.shows("S4.18-20")
def test_what_hangs_on_a_failed_entity_is_skipped_and_says_so() -> None:
    found = run(Church(failing={"Person": Unauthorized(403, "PELICAN", "Ask for the scope")}))
    results = {one.entity_name: one for one in answer(found).results}
    assert (results["Person"].status, results["Person"].result) == ("failed", None)
    assert "PELICAN" in str(results["Person"].reason)
    assert "Ask for the scope" in str(results["Person"].reason)
    assert {name: one.reason for name, one in results.items() if one.status == "skipped"} == {
        "Membership": "Person was not synced",
        "Email": "Person was not synced",
        "Address": "Person was not synced",
    }
    assert results["Merger"].status == "completed"
    assert "LinkEntity" not in found.calls()


def test_a_refused_credential_ends_the_sync_before_it_begins() -> None:
    refusal = Unauthorized(401, "CAPUCHIN", "Check the token")
    found = run(Church(refusal=refusal))
    assert found.exit == Failure(refusal)
    assert "ProcessEntityPage" not in found.calls()


@pytest.mark.shows("S4.9")
def test_an_unknown_adapter_is_a_failure() -> None:
    found = run(Church(), order=MainSync("org_1", "elsewhere", "full"))
    assert found.exit == Failure(UnknownAdapter("elsewhere", ("church",)))


def test_an_unknown_entity_is_a_failure() -> None:
    found = run(Church(), entity_sync, EntitySync("org_1", "church", "Cow", "full"))
    assert isinstance(found.exit, Failure)
    assert isinstance(found.exit.failure(), UnknownEntity)


# Pages


PERSON = EntitySync("org_1", "church", "Person", "full")


@pytest.mark.shows("S4.4", "S4.28", "S4.31", "S4.33", "S4.69", "S4.43")
def test_pages_follow_each_other_with_the_pause_they_ask_for() -> None:
    found = run(Church(pages={"Person": 3}, pause=timedelta(seconds=1)), entity_sync, PERSON)
    told = [one for one in found.story() if one.startswith(("ProcessEntityPage", "sleep"))]
    assert told == ["ProcessEntityPage", "sleep 1s", "ProcessEntityPage", "sleep 1s", "ProcessEntityPage", "ProcessEntityPage"]
    assert answer(found) == EntitySynced("Person", "full", 30, 3, 0)


@pytest.mark.shows("S4.31")
def test_no_pause_is_no_timer() -> None:
    found = run(Church(pages={"Person": 3}), entity_sync, PERSON)
    assert not [one for one in found.story() if one.startswith("sleep")]


@pytest.mark.shows("S4.32")
def test_the_watermark_is_the_newest_change_seen() -> None:
    found = run(Church(pages={"Person": 3}), entity_sync, PERSON)
    status: SyncStatus = found.calls(contracts.update_sync_status)[0]
    assert status.newest == NOON + timedelta(seconds=2)
    assert status.records == 30


@pytest.mark.shows("S4.51", "S4.52")
def test_one_person_only_moves_no_watermark() -> None:
    found = run(Church(), entity_sync, evolve(PERSON, subject="501"))
    assert [one.endpoint.name for one in asked(found)] == ["getPersonById"]
    assert asked(found)[0].order.dependencies == Needs()
    assert "UpdateSyncStatus" not in found.calls()
    assert "MeasureEntity" not in found.calls()


@pytest.mark.shows("S4.23")
def test_two_persons_have_two_keys() -> None:
    keys = {entity_sync.key_of(evolve(PERSON, subject=id)) for id in (None, "1", "2")}
    assert len(keys) == 3


@pytest.mark.shows("S4.12", "S4.60")
def test_a_schedule_runs_again_after_the_last_run_has_ended() -> None:
    memory = Memory(deployment(), Church().answers())
    order = MainSync("org_1", "church", "full")
    first = memory.start(main_sync, order)
    assert memory.start(main_sync, order) == first
    memory.go()
    assert memory.start(main_sync, order) != first


# A delta, and its comparison


DELTA = evolve(PERSON, sync_type="delta")
SEEN = {"Person": NOON - timedelta(days=1)}


@pytest.mark.shows("S4.27", "S4.49")
def test_a_delta_starts_at_the_watermark() -> None:
    found = run(Church(watermarks=SEEN), entity_sync, DELTA)
    assert asked(found)[0].cursor == Cursor(floor=SEEN["Person"], since=SEEN["Person"])
    assert [one.comparing for one in asked(found)] == [False, False]


def test_a_delta_of_what_cannot_be_filtered_reads_the_newest_first() -> None:
    found = run(Church(watermarks={"Address": NOON}), entity_sync, evolve(DELTA, entity_name="Address"))
    assert asked(found)[0].cursor == Cursor(newest_first=True, floor=NOON, seeks=False)


def test_the_first_delta_of_all_is_a_whole_walk() -> None:
    found = run(Church(), entity_sync, DELTA)
    assert asked(found)[0].cursor == Cursor()


def test_a_delta_compares_every_row_when_the_source_has_fewer() -> None:
    church = Church(watermarks=SEEN, extents={"Person": [Extent(9, NOON, 10), Extent(9, NOON, 9)]})
    found = run(church, entity_sync, DELTA)
    assert [(one.endpoint.name, one.comparing) for one in asked(found)] == [
        ("listPersonChangedSince", False),
        ("getPersonById", False),
        ("listPerson", True),
        ("getPersonById", True),
    ]
    assert asked(found)[2].cursor == Cursor()
    assert all(one.counts_changes for one in asked(found))


def test_a_delta_does_not_compare_because_of_rows_that_are_never_listed() -> None:
    church = Church(watermarks=SEEN, extents={"Person": [Extent(12, NOON, 10)]})
    answers = church.answers()
    answers[contracts.get_sync_parameters] = lambda _: Success(SyncParameters(NOON, NOON, 2))
    found = Memory(deployment(), answers).run(entity_sync, DELTA)
    assert [one.comparing for one in asked(found)] == [False, False]


@pytest.mark.parametrize(("extent", "unlisted"), [(Extent(12, None, 10), 2), (Extent(9, None, 10), 0), (Extent(None, None, 10), None)])
def test_rows_of_ours_that_the_source_does_not_count_are_never_taken_for_normal(extent: Extent, unlisted: int | None) -> None:
    assert extent.unlisted == unlisted


# A full sync catches up with what moved


def test_a_full_sync_ends_with_what_moved_meanwhile() -> None:
    found = run(Church(watermarks={one.name: NOON for one in CHURCH.entities}))
    assert lists(found, "delta") == lists(found, "full")
    kinds = [one.order.sync_type for one in asked(found)]
    assert kinds == sorted(kinds, reverse=True)


def test_only_a_full_sync_does() -> None:
    for sync_type in ("delta", "reconciliation"):
        found = run(Church(), order=MainSync("org_1", "church", sync_type))
        assert {one.order.sync_type for one in asked(found)} == {sync_type}


@pytest.mark.shows("S4.29")
def test_tallies_add_up() -> None:
    one, two = Tally(1, 2, 3, NOON), Tally(10, 20, 30, None)
    assert one.and_then(two) == two.and_then(one) == Tally(11, 22, 33, NOON)


# Crashes


@pytest.mark.shows("S4.55")
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 9, 13, 21, 40])
def test_a_crash_after_any_entry_changes_nothing(n: int) -> None:
    def church() -> Church:
        return Church(pages={"Person": 3, "Email": 2}, pause=timedelta(seconds=1), watermarks={"Email": NOON})

    assert answer(run(church(), crash=lambda entry: entry == n)) == answer(run(church()))
