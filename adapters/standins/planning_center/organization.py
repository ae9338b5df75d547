"""One church's People data, and everything that can happen to it while somebody is reading."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from random import Random
from threading import RLock
from typing import TypeAlias

from adapters.standins.planning_center.census import ORGANIZATION_ID, Census, instant, populate
from adapters.standins.planning_center.resources import BY_TYPE, CONTACTS, RESOURCES, Edge
from adapters.standins.planning_center.table import Json, Ref, Relation, Row, Table

Clock: TypeAlias = Callable[[], float]


class Unknown(LookupError):
    """There is no such row: it never was, was deleted, or was merged away."""

    def __init__(self, type: str, id: str) -> None:
        self.type, self.id = type, id
        super().__init__(f"no {type} {id}")


class Organization:
    """Tables of rows. `clock` gives Unix seconds; changes are stamped with it, to the second. Thread-safe through `lock`."""

    def __init__(self, rows: Iterable[Row] = (), *, census: Census | None = None, clock: Clock = time.time) -> None:
        self.id = ORGANIZATION_ID
        self.clock = clock
        self.quiet_merges = False  # a merge moves contact rows without a trace in their updated_at
        self.lock = RLock()
        self.tables = {resource.type: Table(resource) for resource in RESOURCES}
        self.deleted: list[str] = []
        self.merged: dict[str, str] = {}
        self._census = census or Census(0, 0)
        for row in rows:
            self._put(row)

    @classmethod
    def generate(cls, people: int = 5000, seed: int = 7, *, clock: Clock = time.time) -> Organization:
        """The same organization for the same seed, whatever the clock says."""
        census = Census(seed, people)
        return cls(populate(census, people), census=census, clock=clock)

    # Reading

    def table(self, type: str) -> Table:
        if type not in self.tables:
            raise Unknown("table", type)
        return self.tables[type]

    def row(self, type: str, id: str) -> Row:
        row = self.table(type).get(id)
        if row is None:
            raise Unknown(type, id)
        return row

    def follow(self, row: Row, edge: Edge) -> list[Row]:
        """The rows at the other end of an edge, without those that are gone."""
        if edge.through is not None:
            joins = self.tables[edge.through].belonging(edge.back or "", row.number)
            return [target for join in joins for target in self._linked(join.relationships.get(edge.own or ""), edge.target)]
        if edge.back is not None:
            return self.tables[edge.target].belonging(edge.back, row.number)
        return self._linked(row.relationships.get(edge.own or ""), edge.target)

    def _linked(self, relation: Relation, type: str) -> list[Row]:
        refs = relation if isinstance(relation, tuple) else () if relation is None else (relation,)
        found = (self.tables[type].get(ref.id) for ref in refs)
        return [row for row in found if row is not None]

    def truth(self) -> dict[str, Json]:
        """Everything as the API would tell it: type → id → attributes and relationships, where absent and null are both null."""
        with self.lock:
            entities: dict[str, Json] = {type: {row.id: self._true(row) for row in table.rows.values()} for type, table in self.tables.items()}
            merged: dict[str, Json] = dict(self.merged)
            return {"entities": entities, "deleted": list[Json](self.deleted), "merged": merged}

    def _true(self, row: Row) -> dict[str, Json]:
        resource = BY_TYPE[row.type]
        attributes: dict[str, Json] = {name: row.attributes.get(name) for name in resource.attributes if name not in resource.on_request}
        relationships: dict[str, Json] = {name: linkage(row.relationships.get(name), name in resource.many) for name in resource.relationships}
        return {"attributes": attributes, "relationships": relationships}

    # Changing

    def touch(self, id: str, type: str = "Person") -> str:
        """Move `updated_at` to now and nothing else."""
        return self.edit(type, id)

    def edit(self, type: str, id: str, attributes: dict[str, Json] | None = None) -> str:
        """Set attributes and `updated_at`. Names kept in households and memberships follow when the household changes."""
        with self.lock:
            row = self.row(type, id)
            changes = dict(attributes or {})
            for name in changes.keys() - BY_TYPE[type].attributes.keys():
                raise Unknown(f"attribute of {type}", name)
            if not changes.keys().isdisjoint({"first_name", "last_name"}):
                first, last = (changes.get(name, row.attributes[name]) for name in ("first_name", "last_name"))
                changes.setdefault("name", f"{first} {last}")
            self._change(row, changes)
            return id

    def add_person(self, attributes: dict[str, Json] | None = None) -> str:
        """A new person with some contact rows; returns the id."""
        with self.lock:
            now = self.now()
            person = self._census.person(now)
            person.attributes.update(attributes or {})
            self._put(person)
            for contact in self._census.contacts(person, now):
                self._put(contact)
            return person.id

    def add_email(self, person: str, attributes: dict[str, Json] | None = None) -> str:
        with self.lock:
            owner = self.row("Person", person)
            first = not self.tables["Email"].belonging("person", owner.number)
            email = self._census.email(owner, first, self.now())
            email.attributes.update(attributes or {})
            return self._put(email).id

    def delete_person(self, id: str) -> str:
        """Gone with all contact rows, leaving every household; nothing in the API tells."""
        with self.lock:
            person = self.row("Person", id)
            for type in CONTACTS:
                for contact in self.tables[type].belonging("person", person.number):
                    self.tables[type].remove(contact)
            self._leave_all(person)
            self.tables["Person"].remove(person)
            self.deleted.append(id)
            return id

    def delete_contact(self, type: str, id: str) -> str:
        """Remove one e-mail, phone number or address; nothing in the API tells."""
        with self.lock:
            if type not in CONTACTS:
                raise Unknown("kind of contact", type)
            self.table(type).remove(self.row(type, id))
            return id

    def merge(self, keep: str, remove: str) -> str:
        """Move all that hangs on `remove` to `keep`, record a PersonMerger and drop `remove`; returns the merger's id."""
        with self.lock:
            kept, removed = self.row("Person", keep), self.row("Person", remove)
            if kept is removed:
                raise Unknown("second Person", remove)
            for type in CONTACTS:
                self._move_contacts(type, removed, kept)
            self._move_memberships(removed, kept)
            self.tables["Person"].remove(removed)
            self._change(kept, {})
            return self._put(self._census.merger(keep, remove, self.now())).id

    def make_primary_email(self, id: str) -> str:
        """The other addresses of the person stop being primary, and their `updated_at` stays what it was."""
        with self.lock:
            email = self.row("Email", id)
            table = self.tables["Email"]
            for other in table.belonging("person", email.linked("person") or 0):
                if other is not email and other.attributes["primary"]:
                    with table.changing(other):
                        other.attributes["primary"] = False
            self._change(email, {"primary": True})
            return id

    def join_household(self, household: str, person: str) -> str:
        """A new membership (or the one that exists); the household's `updated_at` moves. Returns the membership's id."""
        with self.lock:
            home, member = self.row("Household", household), self.row("Person", person)
            for membership in self._memberships(home):
                if membership.linked("person") == member.number:
                    return membership.id
            membership = self._put(self._census.membership(home, member, pending=False))
            self._regroup(home)
            return membership.id

    def leave_household(self, household: str, person: str) -> str:
        with self.lock:
            home, member = self.row("Household", household), self.row("Person", person)
            for membership in self._memberships(home):
                if membership.linked("person") == member.number:
                    self.tables["HouseholdMembership"].remove(membership)
            self._regroup(home)
            return household

    def pick(self, type: str, random: Random) -> str | None:
        row = self.table(type).pick(random)
        return row.id if row else None

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    def _put(self, row: Row) -> Row:
        if row.type == "PersonMerger":
            self.merged[row.text("person_to_remove_id")] = row.text("person_to_keep_id")
        return self.tables[row.type].put(row)

    def _change(self, row: Row, attributes: dict[str, Json]) -> None:
        with self.tables[row.type].changing(row):
            row.attributes.update(attributes)
            if "updated_at" in row.attributes and "updated_at" not in attributes:
                # A clock that went back must not take a change back.
                row.attributes["updated_at"] = max(row.text("updated_at"), instant(self.now()))

    def _memberships(self, household: Row) -> list[Row]:
        return self.tables["HouseholdMembership"].belonging("household", household.number)

    def _move_contacts(self, type: str, removed: Row, kept: Row) -> None:
        table = self.tables[type]
        has_primary = any(row.attributes["primary"] for row in table.belonging("person", kept.number))
        for row in table.belonging("person", removed.number):
            with table.changing(row):
                row.relationships["person"] = Ref("Person", kept.id)
                row.attributes["primary"] = bool(row.attributes["primary"]) and not has_primary
            if not self.quiet_merges:
                self._change(row, {})

    def _move_memberships(self, removed: Row, kept: Row) -> None:
        table = self.tables["HouseholdMembership"]
        already = {row.linked("household") for row in table.belonging("person", kept.number)}
        for membership in table.belonging("person", removed.number):
            if membership.linked("household") in already:
                table.remove(membership)
            else:
                with table.changing(membership):
                    membership.relationships["person"] = Ref("Person", kept.id)
            self._regroup(self._home(membership), instead={removed.id: kept.id})

    def _leave_all(self, person: Row) -> None:
        table = self.tables["HouseholdMembership"]
        for membership in table.belonging("person", person.number):
            table.remove(membership)
            self._regroup(self._home(membership))

    def _home(self, membership: Row) -> Row:
        return self.tables["Household"].rows[membership.linked("household") or 0]

    def _regroup(self, household: Row, instead: dict[str, str] | None = None) -> None:
        """Make a household agree with its memberships again: members, count, names, primary contact."""
        people = self.tables["Person"]
        memberships = self._memberships(household)
        members = [people.rows[number] for row in memberships if (number := row.linked("person")) is not None]
        for membership, member in zip(memberships, members, strict=True):
            with self.tables["HouseholdMembership"].changing(membership):
                membership.attributes["person_name"] = member.text("name")
        known = household.text("primary_contact_id")
        known = (instead or {}).get(known, known)
        contact = next((member for member in members if member.id == known), None)
        household.relationships["people"] = tuple(Ref("Person", member.id) for member in members)
        household.relationships["primary_contact"] = Ref("Person", contact.id) if contact else None
        self._change(
            household,
            {
                "member_count": len(members),
                "primary_contact_id": contact.id if contact else None,
                "primary_contact_name": contact.text("name") if contact else None,
            },
        )


def linkage(relation: Relation, many: bool) -> Json:
    """A relationship's `data`."""
    if isinstance(relation, tuple):
        return [{"type": ref.type, "id": ref.id} for ref in relation]
    if relation is None:
        return [] if many else None
    return {"type": relation.type, "id": relation.id}
