"""Invented people, drawn from a seed: ordinary ones for the most part, and every kind of row that breaks a careless reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import count
from random import Random

from adapters.standins.planning_center.resources import RESOURCES
from adapters.standins.planning_center.table import Json, Ref, Relation, Row

ORGANIZATION_ID = "77"
INSTANT = "%Y-%m-%dT%H:%M:%SZ"

_OLDEST = datetime(2018, 1, 7, 8, 0, 0, tzinfo=UTC)
_NEWEST = datetime(2025, 9, 30, 21, 59, 59, tzinfo=UTC)
# Imports and mass edits stamp hundreds of rows with one second.
_MASS_EDITS = tuple(datetime(2025, month, 3 * month, 2, 15, month, tzinfo=UTC) for month in (1, 2, 4, 5, 6, 7, 8, 9))
_FIRST = ("Mira", "Noah", "Ada", "Jonas", "Lena", "Tariq", "Sofia", "Kofi", "Ines", "Pavel", "Ruth", "Omar", "Grace", "Luca", "Hana", "Isaac")
_LAST = ("Okafor", "Meyer", "Silva", "Novak", "Haddad", "Lindqvist", "Garcia", "Smith", "Chen", "Rossi", "Park", "Dubois", "Brown", "Ito")
_CITIES = (("Carlsbad", "CA", "92008"), ("Austin", "TX", "78701"), ("Fargo", "ND", "58102"), ("Boise", "ID", "83702"), ("Tulsa", "OK", "74103"))
_CAMPUSES = ("Main", "North", "Río Norte", "Online", "St. Mary's", "West", "East")
STRANGE_NAMES = (
    ('Anne "Annie"', "O'Hara-D'Souza"),
    ("Robert'); DROP TABLE people;--", "Tables"),
    ("👩‍👩‍👧‍👦🎉", "Émile 🕊️"),
    ("Jose\u0301", "Nu\u0303n\u0303ez"),  # combining marks
    ("José", "Nuñez"),  # the same name, composed
    ("محمد", "الحسيني"),
    ("\u202eRight\u202c", "שלום"),
    ("Nul\x00Byte", "Van\x00der"),
    ("Max" + "imilian" * 130, "Wolfeschlegel" * 40),
    ("  Leading", "trailing  "),
    ("Tab\tNew\nline", "Back\\slash"),
    ("%", "_100%_"),
    ("<script>alert(1)</script>", "&amp;"),
    ("李", "小龍"),
    ("𝔘𝔫𝔦", "ﬃ\ufeff"),
    ("null", "None"),
    ("", "Nameless"),
)


def instant(moment: datetime) -> str:
    return moment.strftime(INSTANT)


def _numbers(random: Random, expected: int) -> Iterator[int]:
    """Rising ids: few digits first, so that text order is wrong, then past 32 bits, then past what a double holds."""
    yield from (1, 9, 10, 99, 100)
    number = random.randint(400_000, 900_000)
    for position in count(5):
        number += random.randint(1, 30)
        if position == max(6, expected // 2):
            number += 2**33
        if position == max(7, expected * 19 // 20):
            number += 2**53
        yield number


class Census:
    """Draws rows; it knows the campuses, and which ids are still free."""

    def __init__(self, seed: int, expected: int) -> None:
        self.random = Random(seed)
        self._free = {resource.type: _numbers(Random(f"{seed}/{resource.type}"), expected) for resource in RESOURCES}
        self._campuses: list[str] = []
        self._strange = iter(STRANGE_NAMES)  # the first people get one each, so that a small organization has them all

    def _row(self, type: str, attributes: dict[str, Json], relationships: dict[str, Relation]) -> Row:
        return Row(type, next(self._free[type]), attributes, relationships)

    def _dates(self, now: datetime | None) -> dict[str, Json]:
        if now is not None:
            return {"created_at": instant(now), "updated_at": instant(now)}
        created = _OLDEST + timedelta(seconds=self.random.randrange(int((_NEWEST - _OLDEST).total_seconds())))
        draw = self.random.random()
        if draw < 0.35:
            updated = max(created, _MASS_EDITS[int(self.random.random() ** 2 * len(_MASS_EDITS))])
        elif draw < 0.6:
            updated = created
        else:
            updated = created + (_NEWEST - created) * self.random.random()
        return {"created_at": instant(created), "updated_at": instant(updated)}

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _or_none(self, share: float, value: Json) -> Json:
        return value if self._chance(share) else None

    def campus(self, position: int) -> Row:
        city, state, zip = self.random.choice(_CITIES)
        name = _CAMPUSES[position % len(_CAMPUSES)]
        attributes: dict[str, Json] = {
            "latitude": round(self.random.uniform(26, 48), 6),
            "longitude": round(self.random.uniform(-122, -70), 6),
            "name": name,
            "description": self._or_none(0.5, f"The {name} campus"),
            "street": f"{self.random.randint(1, 9999)} Church Street",
            "city": city,
            "state": state,
            "zip": zip,
            "country": "US",
            "phone_number": self._or_none(0.8, f"(760) 555-01{position:02d}"),
            "website": self._or_none(0.5, f"https://campus{position}.example.org"),
            "contact_email_address": f"campus{position}@example.org",
            "time_zone": "America/Los_Angeles",
            "time_zone_raw": "America/Los_Angeles",
            "geolocation_set_manually": self._chance(0.2),
            "twenty_four_hour_time": (None, True, False)[position % 3],
            "date_format": self._or_none(0.5, 1),
            "church_center_enabled": self._chance(0.7),
            "avatar_url": None,
            **self._dates(None),
        }
        row = self._row("Campus", attributes, {"organization": Ref("Organization", ORGANIZATION_ID)})
        self._campuses.append(row.id)
        return row

    def _names(self) -> tuple[str, str]:
        strange = next(self._strange, None)
        if strange is None and self._chance(0.03):
            strange = self.random.choice(STRANGE_NAMES)
        return strange or (self.random.choice(_FIRST), self.random.choice(_LAST))

    def person(self, now: datetime | None = None) -> Row:
        random = self.random
        first, last = self._names()
        child = self._chance(0.25)
        born = date(2025, 9, 1) - timedelta(days=random.randint(200, 6_000) if child else random.randint(6_600, 33_000))
        grade = max(-1, min(12, 2025 - born.year - 6)) if child else None
        dates = self._dates(now)
        inactive = self._chance(0.08)
        administrator = self._chance(0.01)
        attributes: dict[str, Json] = {
            "avatar": f"https://avatars.example.org/{random.getrandbits(32):08x}.png",
            "demographic_avatar_url": f"https://avatars.example.org/{'child' if child else 'adult'}.png",
            "first_name": first,
            "last_name": last,
            "name": f"{first} {last}",
            "given_name": self._or_none(0.1, first),
            "middle_name": self._or_none(0.2, random.choice(_FIRST)),
            "nickname": self._or_none(0.15, first[:3]),
            "status": "inactive" if inactive else "active",
            "inactivated_at": dates["updated_at"] if inactive else None,
            "membership": random.choice(("Member", "Attender", "Visitor", None)),
            "directory_status": random.choice(("no_access", "published", "unpublished")),
            "child": child,
            "birthdate": self._or_none(0.8, born.isoformat()),
            "anniversary": None if child else self._or_none(0.3, f"{random.randint(1975, 2024)}-06-{random.randint(1, 30):02d}"),
            "grade": grade,
            "graduation_year": None if grade is None else 2026 + 12 - grade,
            "school_type": None if grade is None else "elementary" if grade < 6 else "middle" if grade < 9 else "high",
            "gender": random.choice(("Male", "Female", None)),
            "site_administrator": administrator,
            "accounting_administrator": administrator and self._chance(0.5),
            "people_permissions": random.choice(("Manager", "Editor", "Viewer")) if administrator or self._chance(0.04) else None,
            "can_create_forms": administrator,
            "can_email_lists": administrator,
            "passed_background_check": not child and self._chance(0.2),
            "resource_permission_flags": {"can_access_workflows": administrator},
            "medical_notes": self._or_none(0.04, "Peanut allergy 🥜"),
            "remote_id": self._or_none(0.2, random.getrandbits(31)),
            "login_identifier": self._or_none(0.3, f"user{random.getrandbits(24)}@example.org"),
            "mfa_configured": self._chance(0.1),
            "stripe_customer_identifier": self._or_none(0.1, f"cus_{random.getrandbits(40):010x}"),
            "directory_shared_info": {"email": self._chance(0.5)},
            **dates,
        }
        return self._row("Person", attributes, self._person_links(attributes["gender"]))

    def _person_links(self, gender: Json) -> dict[str, Relation]:
        links: dict[str, Relation] = {}
        if not self._chance(0.03):
            known = bool(self._campuses) and self._chance(0.85)
            links["primary_campus"] = Ref("PrimaryCampus", self.random.choice(self._campuses)) if known else None
        if not self._chance(0.03):
            links["gender"] = None if gender is None else Ref("Gender", "1" if gender == "Male" else "2")
        return links

    def contacts(self, person: Row, now: datetime | None = None) -> Iterator[Row]:
        """0 to 3 e-mails, 0 to 2 phone numbers, 0 to 2 addresses; the first of a kind is the primary one."""
        emails, phones, addresses = (self.random.choices(range(len(odds)), odds)[0] for odds in ((15, 55, 22, 8), (30, 55, 15), (40, 52, 8)))
        yield from (self.email(person, position == 0, now) for position in range(emails))
        yield from (self.phone_number(person, position == 0, now) for position in range(phones))
        yield from (self.address(person, position == 0, now) for position in range(addresses))

    def email(self, person: Row, primary: bool, now: datetime | None = None) -> Row:
        address = f"{self.random.choice(_FIRST)}.{self.random.choice(_LAST)}{self.random.randint(1, 4000)}@example.org"
        attributes: dict[str, Json] = {
            "address": address if self._chance(0.1) else address.lower(),
            "location": self.random.choice(("Home", "Work", "Other")),
            "primary": primary,
            "blocked": self._chance(0.03),
            **self._dates(now),
        }
        return self._row("Email", attributes, {"person": Ref("Person", person.id)})

    def phone_number(self, person: Row, primary: bool, now: datetime | None = None) -> Row:
        last = f"{self.random.randint(0, 9999):04d}"
        national = f"(760) 555-{last}"
        attributes: dict[str, Json] = {
            "number": national,
            "carrier": self._or_none(0.2, "Verizon"),
            "location": self.random.choice(("Mobile", "Home", "Work")),
            "primary": primary,
            "e164": f"+1760555{last}",
            "international": f"+1 760-555-{last}",
            "national": national,
            "country_code": "US",
            "formatted_number": national,
            **self._dates(now),
        }
        return self._row("PhoneNumber", attributes, {"person": Ref("Person", person.id)})

    def address(self, person: Row, primary: bool, now: datetime | None = None) -> Row:
        city, state, zip = self.random.choice(_CITIES)
        attributes: dict[str, Json] = {
            "street_line_1": f"{self.random.randint(1, 9999)} {self.random.choice(_LAST)} Ave",
            "street_line_2": self._or_none(0.2, f"Apt {self.random.randint(1, 99)}"),
            "city": city,
            "state": state,
            "zip": zip,
            "country_code": "US",
            "country_name": "United States",
            "location": self.random.choice(("Home", "Work", "Other")),
            "primary": primary,
            **self._dates(now),
        }
        return self._row("Address", attributes, {"person": Ref("Person", person.id)})

    def household(self, members: Sequence[Row]) -> tuple[Row, list[Row]]:
        """A household and its memberships. Some are empty, some have no primary contact, some count wrongly."""
        contact = members[0] if members and not self._chance(0.03) else None
        size = len(members) + (self.random.choice((-1, 1)) if members and self._chance(0.05) else 0)
        attributes: dict[str, Json] = {
            "name": f"{members[0].text('last_name') if members else 'Empty'} Household",
            "member_count": size,
            "primary_contact_id": contact.id if contact else None,
            "primary_contact_name": contact.text("name") if contact else None,
            "avatar": "https://avatars.example.org/household.png",
            **self._dates(None),
        }
        people = tuple(Ref("Person", member.id) for member in members)
        links: dict[str, Relation] = {"people": people}
        if contact or not self._chance(0.3):
            links = {"primary_contact": Ref("Person", contact.id) if contact else None, "people": people}
        household = self._row("Household", attributes, links)
        return household, [self.membership(household, member, pending=self._chance(0.05)) for member in members]

    def membership(self, household: Row, person: Row, *, pending: bool) -> Row:
        links: dict[str, Relation] = {"person": Ref("Person", person.id), "household": Ref("Household", household.id)}
        return self._row("HouseholdMembership", {"person_name": person.text("name"), "pending": pending}, links)

    def merger(self, keep: str, remove: str, now: datetime | None = None) -> Row:
        attributes: dict[str, Json] = {
            "created_at": self._dates(now)["created_at"],
            "person_to_keep_id": keep,
            "person_to_remove_id": remove,
        }
        return self._row("PersonMerger", attributes, {"person_to_keep": Ref("Person", keep), "person_to_remove": Ref("Person", remove)})

    def vanished_person(self) -> str:
        """The id of somebody who was merged away before anyone looked."""
        return str(next(self._free["Person"]))


def populate(census: Census, people: int) -> Iterator[Row]:
    """A whole organization: 5 campuses, about 0.4 households a person, a merger for every hundred."""
    yield from [census.campus(position) for position in range(5)]
    members: list[Row] = []
    for position in range(people):
        if position % 100 == 50:
            census.vanished_person()
        members.append(census.person())
    yield from members
    for person in members:
        yield from census.contacts(person)
    yield from _households(census, members)
    yield from _mergers(census, members)


def _households(census: Census, people: Sequence[Row]) -> Iterator[Row]:
    random = census.random
    waiting = list(people)
    random.shuffle(waiting)
    for position in range(len(people) * 2 // 5):
        size = 0 if position % 150 == 3 else random.choices((1, 2, 3, 4, 5, 6), (30, 38, 17, 10, 4, 1))[0]
        household = [waiting.pop() for _ in range(min(size, len(waiting)))]
        if household and random.random() < 0.05:  # a child of two homes
            elsewhere = random.choice(people)
            household += [elsewhere] if elsewhere not in household else []
        row, memberships = census.household(household)
        yield row
        yield from memberships


def _mergers(census: Census, people: Sequence[Row]) -> Iterator[Row]:
    for _ in range(max(2, len(people) // 100) if people else 0):
        yield census.merger(census.random.choice(people).id, census.vanished_person())
