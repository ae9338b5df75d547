"""Changes that are made while somebody walks the pages: by name, or drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from attrs import define, field

from adapters.standins.planning_center.organization import Organization
from adapters.standins.planning_center.resources import CONTACTS
from adapters.standins.planning_center.table import Json

_LEAST_PEOPLE = 5

_WEIGHTS: Mapping[str, int] = {
    "touch": 30,
    "edit_contact": 14,
    "add_person": 14,
    "delete_person": 10,
    "merge": 8,
    "make_primary_email": 10,
    "add_email": 5,
    "delete_contact": 4,
    "join_household": 6,
    "leave_household": 6,
}


class BadChange(ValueError):
    """A change that has no such name, or lacks a part."""


def change(organization: Organization, wish: Mapping[str, Json], random: Random) -> dict[str, Json]:
    """Make one change, such as {"change": "merge", "keep": "1", "remove": "9"}; ids left out are drawn. Returns it with ids and result."""
    name = wish.get("change")
    make = _CHANGES.get(name) if isinstance(name, str) else None
    if make is None:
        raise BadChange(f"no change is named {name!r}; known: {', '.join(sorted(_CHANGES))}")
    told = _Change(organization, dict(wish), random)
    result = make(told)
    return {**told.parts, "result": result}


@define
class _Change:
    organization: Organization
    parts: dict[str, Json]
    random: Random

    def id(self, part: str, type: str) -> str:
        """The id that was given, or a drawn one, which is then written into the parts."""
        given = self.parts.get(part)
        if given is None:
            given = self.organization.pick(type, self.random)
        if not isinstance(given, (str, int)):
            raise BadChange(f"there is no {type} to draw for {part!r}")
        self.parts[part] = str(given)
        return str(given)

    def type(self, default: str) -> str:
        given = self.parts.setdefault("type", default)
        return str(given)

    def attributes(self) -> dict[str, Json]:
        given = self.parts.get("attributes")
        if given is not None and not isinstance(given, dict):
            raise BadChange("attributes must be an object")
        return given or {}


def _touch(this: _Change) -> str:
    type = this.type("Person")
    return this.organization.touch(this.id("id", type), type)


def _edit(this: _Change) -> str:
    type = this.type("Person")
    return this.organization.edit(type, this.id("id", type), this.attributes())


def _edit_contact(this: _Change) -> str:
    type = this.type(this.random.choice(CONTACTS))
    attributes: dict[str, Json] = {"location": this.random.choice(("Home", "Work", "Other"))}
    return this.organization.edit(type, this.id("id", type), attributes)


def _delete_contact(this: _Change) -> str:
    type = this.type(this.random.choice(CONTACTS))
    return this.organization.delete_contact(type, this.id("id", type))


def _merge(this: _Change) -> str:
    keep = this.id("keep", "Person")
    given = this.parts.get("remove")
    remove = this.id("remove", "Person")
    while given is None and remove == keep and len(this.organization.tables["Person"]) > 1:
        del this.parts["remove"]
        remove = this.id("remove", "Person")
    if remove == keep:
        raise BadChange("a person cannot be merged with themselves")
    return this.organization.merge(keep, remove)


def _leave_household(this: _Change) -> str:
    household = this.id("household", "Household")
    people = this.organization.row("Household", household).relationships.get("people")
    if "person" not in this.parts and isinstance(people, tuple) and people:
        this.parts["person"] = this.random.choice(people).id
    return this.organization.leave_household(household, this.id("person", "Person"))


_CHANGES: Mapping[str, Callable[[_Change], str]] = {
    "touch": _touch,
    "edit": _edit,
    "edit_contact": _edit_contact,
    "delete_contact": _delete_contact,
    "add_person": lambda this: this.organization.add_person(this.attributes()),
    "add_email": lambda this: this.organization.add_email(this.id("person", "Person"), this.attributes()),
    "delete_person": lambda this: this.organization.delete_person(this.id("person", "Person")),
    "merge": _merge,
    "make_primary_email": lambda this: this.organization.make_primary_email(this.id("email", "Email")),
    "join_household": lambda this: this.organization.join_household(this.id("household", "Household"), this.id("person", "Person")),
    "leave_household": _leave_household,
}


@define
class Churn:
    """Every `every` list requests, up to `burst` changes, until `changes` are made: then a later run can catch up."""

    every: int = 5
    changes: int = 200
    burst: int = 4
    seed: int = 0
    made: list[dict[str, Json]] = field(factory=list[dict[str, Json]])
    stopped: bool = False
    _requests: int = 0
    _random: Random | None = None

    def list_requested(self, organization: Organization) -> None:
        self._requests += 1
        if self._requests % self.every == 0:
            random = self._random = self._random or Random(f"churn/{self.seed}")
            for _ in range(random.randint(1, self.burst)):
                self._make_one(organization, random)

    def _make_one(self, organization: Organization, random: Random) -> None:
        if self.stopped or len(self.made) >= self.changes:
            return
        name = random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        if name in ("delete_person", "merge") and len(organization.tables["Person"]) <= _LEAST_PEOPLE:
            name = "add_person"
        try:
            self.made.append(change(organization, {"change": name}, random))
        except BadChange:  # nothing of that kind is left to change
            self.made.append({"change": "none"})
