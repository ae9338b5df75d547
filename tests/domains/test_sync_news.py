"""From somebody else's news to the rows that are read again."""

from __future__ import annotations

from attrs import evolve

from domains.sync.manifest import Entity, Manifest, Merge, Relationship
from domains.sync.news import News, key_of, orders
from domains.sync.values import EntitySync

CRM = Manifest(
    "crm",
    (
        Entity("Company", "companies"),
        Entity("Contact", "contacts", relationships=(Relationship("company", "Company"),)),
        Entity("Seat", "companies/{owner}/seats", relationships=(Relationship("company", "Company", required=True),), owner="company"),
        Entity("Fusion", "fusions", merge=Merge("Contact", keep="winner_id", remove="loser_id")),
    ),
)
NEWS = News("n-1", "Contact", "7", {}, {"company": "3"})


def asked(news: News) -> list[tuple[str, str | None]]:
    return [(one.entity_name, one.subject) for one in orders(news, CRM, "org")]


def test_the_row_that_is_named_and_no_other() -> None:
    assert list(orders(NEWS, CRM, "org")) == [EntitySync("org", "crm", "Contact", "full", subject="7")]


def test_what_the_manifest_does_not_have_is_nothing_to_do() -> None:
    assert asked(evolve(NEWS, entity_name="Invoice")) == []


def test_what_has_no_address_of_its_own_is_read_by_its_owner() -> None:
    assert asked(evolve(NEWS, entity_name="Seat")) == [("Seat", "3")]
    assert asked(evolve(NEWS, entity_name="Seat", owners={})) == []


def test_a_merge_is_news_of_three_rows_and_who_is_gone_comes_first() -> None:
    merged = evolve(NEWS, entity_name="Fusion", attributes={"winner_id": "1", "loser_id": 2})
    assert asked(merged) == [("Contact", "2"), ("Contact", "1"), ("Fusion", "7")]
    assert asked(evolve(merged, attributes={"winner_id": "1"})) == [("Contact", "1"), ("Fusion", "7")]


def test_each_news_is_an_execution_and_the_same_news_is_the_same_one() -> None:
    """Two about one row: the first may have read it before the second happened."""
    (order,) = orders(NEWS, CRM, "org")
    other = evolve(NEWS, id="n-2", subject="8")
    assert key_of(order, NEWS) == key_of(order, evolve(NEWS, attributes={"later": True})) == "entity-sync:org:crm:Contact:full:7:n-1"
    assert len({key_of(order, NEWS), key_of(order, evolve(NEWS, id="n-2")), *(key_of(one, other) for one in orders(other, CRM, "org"))}) == 3
