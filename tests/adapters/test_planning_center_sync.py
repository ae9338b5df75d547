"""Whole syncs: the stand-in over real HTTP, a worker over real Postgres, and the verdict row by row."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from attrs import define

from adapters.deployment import deployment
from adapters.planning_center import ahead, bindings, client, settings
from adapters.planning_center.manifest import PEOPLE
from adapters.planning_center.pages import BATCH
from adapters.standins.planning_center import Churn, Faults, Organization, Quota, create_app, serve
from adapters.standins.planning_center.census import STRANGE_NAMES
from adapters.verdict import Verdict, verdict
from domains.sync.failures import NotConfigured, NotFound, Unauthorized, UnknownAdapter, Unreachable
from domains.sync.values import ApiClient, CheckSource, EntitySync, EntitySynced, MainSync, MainSynced
from domains.sync.workflows import entity_sync, main_sync
from flowdsl import Failure, Success
from flowdsl.codec import codec
from flowdsl.postgres.worker import Tuning, Worker, opened

Perform = Callable[[Callable[[Any], Awaitable[Any]], Any], Awaitable[Any]]
PEOPLE_HERE = 40


@define
class Church:
    """A running stand-in, the worker that syncs it, and the database."""

    url: str
    worker: Worker
    connection: Any

    async def sync(self, sync_type: Any = "full", org: str = "org") -> MainSynced:
        exit = await self.worker.wait(await self.worker.start(main_sync, MainSync(org, "pco", sync_type, "manual")))
        assert isinstance(exit, Success), exit
        found: MainSynced = exit.unwrap()
        assert [one for one in found.results if one.status != "completed"] == []
        return found

    async def one(self, entity: str, subject: str) -> EntitySynced:
        order = EntitySync("org", "pco", entity, "full", subject=subject)
        exit = await self.worker.wait(await self.worker.start(entity_sync, order))
        assert isinstance(exit, Success), exit
        found: EntitySynced = exit.unwrap()
        return found

    async def verdict(self, org: str = "org") -> Verdict:
        return await verdict(self.connection, self.url, org)

    async def agrees(self, org: str = "org") -> bool:
        found = await self.verdict(org)
        assert found.clean, found
        return found.records > 0

    def change(self, *changes: Any) -> list[dict[str, Any]]:
        wishes = [{"change": one} if isinstance(one, str) else one for one in changes]
        answer = httpx2.post(f"{self.url}/_standin/change", json=wishes, timeout=60).raise_for_status().json()
        return list(answer["changes"])

    def settle(self) -> None:
        httpx2.post(f"{self.url}/_standin/settle", timeout=60).raise_for_status()

    def truth(self, entity: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx2.get(f"{self.url}/_standin/truth", timeout=60).json()["entities"][entity]
        return found

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx2.get(f"{self.url}/_standin/stats", timeout=60).json()
        return found

    @contextmanager
    def counting(self) -> Iterator[dict[str, int]]:
        """Fills in how many requests each path got meanwhile, and how many rows were served under `rows`."""
        told: dict[str, int] = {}
        before = self.stats()
        yield told
        after = self.stats()
        for path, statuses in after["requests"].items():
            count = sum(statuses.values()) - sum(before["requests"].get(path, {}).values())
            if count:
                told[path.removeprefix("/people/v2/")] = count
        told["rows"] = sum(after["rows"].values()) - sum(before["rows"].values())


@pytest.fixture
def weather(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the stand-in is made with; `@pytest.mark.parametrize("weather", …, indirect=True)` changes it."""
    return {"people": PEOPLE_HERE, "seed": 7, "quota": Quota(limit=100_000), **getattr(request, "param", {})}


@pytest.fixture
async def church(canonical: str, connection: Any, weather: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Church]:
    organization = Organization.generate(weather.pop("people"), weather.pop("seed"))
    organization.quiet_merges = weather.pop("quiet_merges", False)
    if "faults" in weather:
        weather["faults"] = Faults.level(*weather["faults"])
    if "churn" in weather:
        every, changes, seed = weather["churn"]
        weather["churn"] = Churn(every=every, changes=changes, seed=seed)
    monkeypatch.setattr(ahead, "KEPT", 600.0)  # what is read ahead is asked for once, however long the machine stands still
    with serve(create_app(organization, **weather)) as url:
        monkeypatch.setenv(settings.URL, url)
        monkeypatch.setenv(settings.TOKEN, "app_id:secret")
        async with opened(deployment, canonical, Tuning(poll=0.2, grace=1)) as worker:
            yield Church(url, worker, connection)
        await client.close()


# Full, then delta


@pytest.mark.shows("S4.6", "S4.45", "S4.46", "S4.75")
async def test_a_full_sync_brings_everything(church: Church) -> None:
    found = await church.sync()
    assert await church.agrees()
    counted = {one.entity_name: one.result.total_records_processed for one in found.results if one.result}
    assert counted == {name: len(church.truth(name)) for name in counted}
    assert list(counted) == ["Campus", "Household", "Person", "HouseholdMembership", "PersonMerger", "Email", "PhoneNumber", "Address"]
    written = json.loads(codec(MainSynced).encode(found))
    assert written["entities_processed"] == 8
    assert written["results"][2]["result"]["pages_processed"] == 1


async def test_strange_names_arrive_as_they_are(church: Church) -> None:
    await church.sync()
    rows = await church.connection.fetch("select attributes::text as a from sync.records where entity = 'Person'")
    names = {(told["first_name"], told["last_name"]) for told in (json.loads(row["a"]) for row in rows)}
    assert set(STRANGE_NAMES) <= names


async def test_households_and_persons_are_linked_when_both_are_there(church: Church) -> None:
    await church.sync()
    links = await church.connection.fetch("select id, target_id from sync.links where relationship = 'people'")
    there = {(id, one["id"]) for id, row in church.truth("Household").items() for one in row["relationships"]["people"]}
    assert {(link["id"], link["target_id"]) for link in links} == there


@pytest.mark.shows("S4.50")
async def test_a_delta_of_nothing_fetches_next_to_nothing(church: Church) -> None:
    await church.sync()
    whole = len([1 for name in PEOPLE.names for _ in church.truth(name)])
    await church.sync("delta")
    with church.counting() as told:
        found = await church.sync("delta")
    assert sum(one.result.total_records_processed for one in found.results if one.result) == 0
    assert told.pop("rows") < whole / 4
    assert max(told.values()) <= 3
    assert "households/{id}/household_memberships" not in told


CHANGES: list[Any] = [
    "touch", "edit_contact", "add_person", "add_email", "make_primary_email", "join_household", "leave_household",
    {"change": "edit", "type": "Campus", "attributes": {"name": "New\x00name"}},
    {"change": "edit_contact", "type": "Address"}, {"change": "edit_contact", "type": "PhoneNumber"},
]  # fmt: skip


@pytest.mark.shows("S4.49", "S4.50")
async def test_a_delta_brings_what_changed(church: Church) -> None:
    await church.sync()
    for one in CHANGES:
        church.change(one)
        assert not (await church.verdict()).clean
        await church.sync("delta")
        assert await church.agrees(), one


@pytest.mark.parametrize("weather", [{}, {"quiet_merges": True}], indirect=True, ids=["merges", "quiet merges"])
async def test_a_delta_finds_what_is_gone(church: Church) -> None:
    await church.sync()
    for one in ("delete_person", "merge", "delete_contact", "merge", "delete_person"):
        church.change(one)
        await church.sync("delta")
        assert await church.agrees(), one


async def test_a_delta_counts_the_members_that_changed_not_all_of_the_household(church: Church) -> None:
    await church.sync()
    church.change("join_household")
    found = await church.sync("delta")
    assert next(one.result.total_records_processed for one in found.results if one.result and one.entity_name == "HouseholdMembership") == 1


async def test_a_delta_that_had_to_compare_reports_what_changed(church: Church) -> None:
    await church.sync()
    church.change("delete_contact")
    found = await church.sync("delta")
    assert sum(one.result.total_records_processed for one in found.results if one.result) == 0
    assert sum(one.result.records_deleted for one in found.results if one.result) == 1


async def test_a_merged_person_is_remembered_as_the_other(church: Church) -> None:
    await church.sync()
    made = church.change("merge")[0]
    await church.sync("delta")
    row = await church.connection.fetchrow("select * from sync.records where entity = 'Person' and id = $1", made["remove"])
    assert row["successor"] == made["keep"]
    assert row["deleted_at"] is not None
    assert not await church.connection.fetchval("select count(*) from sync.links where target_id = $1", made["remove"])


async def test_a_reconciliation_reads_only_households_that_disagree(church: Church) -> None:
    await church.sync()
    await church.connection.execute("delete from sync.records where entity = 'HouseholdMembership' and id = (select min(id) from sync.records"
                                    " where entity = 'HouseholdMembership')")  # fmt: skip
    await church.connection.execute("update sync.records set id = id || '99' where entity = 'Email' and id = (select min(id) from sync.records"
                                    " where entity = 'Email')")  # fmt: skip
    with church.counting() as told:
        await church.sync("reconciliation")
    assert await church.agrees()
    assert told["households/{id}/household_memberships"] == 1


async def test_two_organizations_do_not_meet(church: Church) -> None:
    await church.sync()
    church.change("touch", "delete_person")
    await church.sync(org="other")
    assert await church.agrees("other")
    assert not (await church.verdict()).clean


@pytest.mark.parametrize("weather", [{"people": 200}], indirect=True)
async def test_reading_ahead_asks_for_nothing_twice(church: Church, monkeypatch: pytest.MonkeyPatch) -> None:
    with church.counting() as asked:
        await church.sync()
    monkeypatch.setattr(ahead, "begin", lambda *_: None)
    with church.counting() as without:
        await church.sync(org="other")
    assert asked == without and asked["households/{id}/household_memberships"] > BATCH
    assert await church.agrees() and await church.agrees("other")


# One person only


@pytest.mark.shows("S4.51-53")
async def test_one_person_only(church: Church) -> None:
    await church.sync()
    before = await church.connection.fetch("select entity, watermark from sync.statuses order by entity")
    id = church.change("touch", "touch")[0]["id"]
    with church.counting() as told:
        assert await church.one("Person", str(id)) == EntitySynced("Person", "full", 1, 1, 0)
    assert told == {"people/{id}": 1, "rows": 1}
    assert await church.connection.fetch("select entity, watermark from sync.statuses order by entity") == before
    await church.sync("delta")
    assert await church.agrees()


async def test_one_person_who_is_gone(church: Church) -> None:
    await church.sync()
    id = church.change("delete_person")[0]["person"]
    assert (await church.one("Person", str(id))).records_deleted == 1
    with church.counting() as told:
        await church.sync("delta")
    assert await church.agrees()
    assert told["people"] == 2  # no comparison: their number agrees already


async def test_one_email_brings_its_siblings(church: Church) -> None:
    await church.sync()
    owners = [row["relationships"]["person"]["id"] for row in church.truth("Email").values()]
    owner = next(one for one in owners if owners.count(one) > 1)
    other = next(
        id for id, row in church.truth("Email").items() if row["relationships"]["person"]["id"] == owner and not row["attributes"]["primary"]
    )
    church.change({"change": "make_primary_email", "email": other})
    await church.one("Email", other)
    assert await church.agrees()


async def test_the_members_of_one_household(church: Church) -> None:
    await church.sync()
    id = church.change("join_household")[0]["household"]
    assert (await church.one("HouseholdMembership", str(id))).total_records_processed > 0
    assert not [one for one in (await church.verdict()).by_entity.items() if one[0] == "HouseholdMembership" and one[1].missing]


# Weather


ROUGH: dict[str, Any] = {"people": 60, "faults": ("rough", 3)}
MOVING: dict[str, Any] = {"churn": (3, 60, 5), "faults": ("mild", 5)}


@pytest.mark.shows("S4.57")
@pytest.mark.parametrize("weather", [ROUGH], indirect=True)
async def test_a_rough_source_is_survived(church: Church) -> None:
    await church.sync()
    assert await church.agrees()
    assert sum(church.stats()["faults"].values()) > 10


@pytest.mark.shows("S4.39")
@pytest.mark.parametrize("weather", [MOVING, {**MOVING, "quiet_merges": True}], indirect=True)
async def test_rows_that_move_during_the_walk(church: Church) -> None:
    await church.sync()
    church.settle()
    await church.sync("delta")
    assert await church.agrees()


@pytest.mark.parametrize("weather", [{"unqueryable": "refuse"}], indirect=True)
async def test_nothing_is_filtered_by_what_cannot_be(church: Church) -> None:
    await church.sync()
    church.change("edit_contact", "touch")
    await church.sync("delta")
    assert await church.agrees()


@pytest.mark.parametrize("weather", [{"quota": Quota(limit=30, period=6.0), "people": 60}], indirect=True)
async def test_a_small_quota_is_kept(church: Church) -> None:
    await church.sync()
    assert await church.agrees()
    answers = church.stats()["requests"].values()
    asked, refused = sum(sum(one.values()) for one in answers), sum(one.get("429", 0) for one in answers)
    assert refused < asked / 5


# What cannot be synced


async def refusal(church: Church, order: MainSync) -> Any:
    exit = await church.worker.wait(await church.worker.start(main_sync, order))
    assert isinstance(exit, Failure), exit
    assert "\n" not in str(exit.failure())
    return exit.failure()


@pytest.mark.parametrize(
    ("token", "hint"), [("expired", "BABOON"), ("revoked", "CAPUCHIN"), ("unscoped", "PELICAN"), ("outsider", "TRASH_PANDA"), ("a:b", "CAPUCHIN")]
)
async def test_a_refused_token_is_one_failure(church: Church, monkeypatch: pytest.MonkeyPatch, token: str, hint: str) -> None:
    monkeypatch.setenv(settings.TOKEN, token)
    failure = await refusal(church, MainSync("org", "pco", "full"))
    assert isinstance(failure, Unauthorized)
    assert failure.hint == hint


async def test_a_missing_token_is_one_failure(church: Church, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.TOKEN)
    assert isinstance(await refusal(church, MainSync("org", "pco", "full")), NotConfigured)


@pytest.mark.shows("S4.9")
async def test_an_adapter_that_is_not_there(church: Church) -> None:
    assert await refusal(church, MainSync("org", "elsewhere", "full")) == UnknownAdapter("elsewhere", ("pco",))


CHECK = CheckSource(ApiClient("org", "pco", settings.TOKEN), "campuses")


async def test_a_source_that_is_not_there(perform: Perform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.TOKEN, "app_id:secret")
    monkeypatch.setenv(settings.URL, "http://127.0.0.1:9")
    failure = (await perform(bindings.check_source, CHECK)).failure()
    await client.close()
    assert isinstance(failure, Unreachable)
    assert failure.url == "http://127.0.0.1:9"
    assert "Check the URL" in str(failure)


async def test_an_address_that_is_another(church: Church, perform: Perform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.URL, f"{church.url}/elsewhere")
    assert isinstance((await perform(bindings.check_source, CHECK)).failure(), NotFound)
