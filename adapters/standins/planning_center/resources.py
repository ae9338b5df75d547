"""What the People API (version 2025-03-20) says about each of its resources: attributes, orders, filters, includes, edges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import field, frozen

Kind = Literal["text", "number", "flag", "date", "instant", "id", "json"]


@frozen
class Edge:
    """The way from a row to related rows: its own relationship, rows that point back at it, or a join."""

    target: str
    own: str | None = None  # the row's relationship of this name
    back: str | None = None  # rows of `target` whose relationship of this name is the row
    through: str | None = None  # a joining resource: its `back` is the row, its `own` is the target


@frozen
class Resource:
    type: str
    path: str
    attributes: Mapping[str, Kind]
    order_by: tuple[str, ...]
    query_by: tuple[str, ...]
    can_include: tuple[str, ...] = ()
    can_filter: tuple[str, ...] = ()
    on_request: frozenset[str] = frozenset()  # shown only when `fields[Type]` names them
    edges: Mapping[str, Edge] = field(factory=dict[str, Edge])
    many: frozenset[str] = frozenset()  # relationships to many
    relationships: tuple[str, ...] = ()
    unlisted: frozenset[str] = frozenset()  # relationships that appear only when included
    grouped_by: tuple[str, ...] = ()  # relationships by which rows are looked up
    top_level: bool = True  # has a list of its own under /people/v2

    def leads_to_one(self, edge: str) -> bool:
        way = self.edges[edge]
        return way.own is not None and way.through is None and way.own not in self.many

    def kind(self, attribute: str) -> Kind:
        """How an attribute, or one of the names that only a filter knows, is compared."""
        if attribute in ("id", "primary_campus_id"):
            return "id"
        return self.attributes.get(attribute, "text")


def _attributes(**names: str) -> dict[str, Kind]:
    kinds: tuple[Kind, ...] = ("text", "number", "flag", "date", "instant", "id", "json")
    return {name: kind for kind in kinds for name in names.get(kind, "").split()}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_DATES = "created_at updated_at"
_TO_PERSON = {"person": Edge("Person", own="person")}

CAMPUS = Resource(
    type="Campus",
    path="campuses",
    attributes=_attributes(
        text="name description street city state zip country phone_number website contact_email_address time_zone time_zone_raw avatar_url",
        number="latitude longitude date_format",
        flag="geolocation_set_manually twenty_four_hour_time church_center_enabled",
        instant=_DATES,
    ),
    on_request=frozenset({"time_zone_raw"}),
    relationships=("organization",),
    order_by=_words("created_at name updated_at"),
    query_by=_words("created_at id updated_at"),
    can_include=_words("lists service_times"),
)

PERSON = Resource(
    type="Person",
    path="people",
    attributes=_attributes(
        text=(
            "avatar first_name last_name demographic_avatar_url name status given_name middle_name nickname people_permissions gender "
            "medical_notes membership directory_status school_type login_identifier stripe_customer_identifier"
        ),
        number="remote_id grade graduation_year",
        flag=("accounting_administrator child site_administrator can_create_forms can_email_lists passed_background_check mfa_configured"),
        date="anniversary birthdate",
        instant=f"inactivated_at {_DATES}",
        json="directory_shared_info resource_permission_flags",
    ),
    on_request=frozenset({"mfa_configured", "stripe_customer_identifier", "directory_shared_info"}),
    relationships=("primary_campus", "gender"),
    order_by=_words(
        "accounting_administrator anniversary birthdate child created_at first_name gender given_name grade graduation_year "
        "inactivated_at last_name membership middle_name nickname people_permissions remote_id site_administrator status updated_at"
    ),
    query_by=_words(
        "accounting_administrator anniversary birthdate child created_at first_name gender given_name grade graduation_year id "
        "inactivated_at last_name medical_notes membership mfa_configured middle_name nickname people_permissions primary_campus_id "
        "remote_id search_name search_name_or_email search_name_or_email_or_phone_number search_phone_number search_phone_number_e164 "
        "site_administrator status updated_at"
    ),
    can_include=_words(
        "addresses emails field_data households inactive_reason marital_status name_prefix name_suffix organization person_apps "
        "phone_numbers platform_notifications primary_campus school social_profiles"
    ),
    can_filter=_words("admins created_since organization_admins"),
    edges={
        "addresses": Edge("Address", back="person"),
        "emails": Edge("Email", back="person"),
        "phone_numbers": Edge("PhoneNumber", back="person"),
        "household_memberships": Edge("HouseholdMembership", back="person"),
        "households": Edge("Household", own="household", back="person", through="HouseholdMembership"),
        "primary_campus": Edge("Campus", own="primary_campus"),
    },
)

HOUSEHOLD = Resource(
    type="Household",
    path="households",
    attributes=_attributes(text="name primary_contact_name avatar", number="member_count", id="primary_contact_id", instant=_DATES),
    relationships=("primary_contact", "people"),
    many=frozenset({"people"}),
    order_by=_words("created_at member_count name primary_contact_name updated_at"),
    query_by=_words("created_at member_count name primary_contact_name updated_at"),
    can_include=("people",),
    edges={"household_memberships": Edge("HouseholdMembership", back="household"), "people": Edge("Person", own="people")},
)

HOUSEHOLD_MEMBERSHIP = Resource(
    type="HouseholdMembership",
    path="household_memberships",
    attributes=_attributes(text="person_name", flag="pending"),
    relationships=("person", "household"),
    unlisted=frozenset({"household"}),
    grouped_by=("household", "person"),
    order_by=_words("pending person_name"),
    query_by=_words("pending person_name"),
    can_include=_words("household person"),
    edges={"household": Edge("Household", own="household"), **_TO_PERSON},
    top_level=False,
)

EMAIL = Resource(
    type="Email",
    path="emails",
    attributes=_attributes(text="address location", flag="primary blocked", instant=_DATES),
    relationships=("person",),
    grouped_by=("person",),
    order_by=_words("address created_at location primary updated_at"),
    query_by=_words("address blocked created_at location primary updated_at"),
    edges=_TO_PERSON,
)

PHONE_NUMBER = Resource(
    type="PhoneNumber",
    path="phone_numbers",
    attributes=_attributes(text="number carrier location e164 international national country_code formatted_number", flag="primary", instant=_DATES),
    on_request=frozenset({"formatted_number"}),
    relationships=("person",),
    grouped_by=("person",),
    order_by=_words("carrier created_at location number primary updated_at"),
    query_by=_words("carrier created_at location number primary updated_at"),
    edges=_TO_PERSON,
)

ADDRESS = Resource(
    type="Address",
    path="addresses",
    attributes=_attributes(text="street_line_1 street_line_2 city state zip country_code country_name location", flag="primary", instant=_DATES),
    relationships=("person",),
    grouped_by=("person",),
    order_by=_words("city country_code created_at location primary state street_line_1 street_line_2 updated_at zip"),
    # No dates: a client has to order by -updated_at and stop at its watermark.
    query_by=_words("city country_code location primary state street_line_1 street_line_2 zip"),
    edges=_TO_PERSON,
)

PERSON_MERGER = Resource(
    type="PersonMerger",
    path="person_mergers",
    attributes=_attributes(id="person_to_keep_id person_to_remove_id", instant="created_at"),
    relationships=("person_to_keep", "person_to_remove"),
    order_by=("created_at",),
    query_by=_words("created_at person_to_keep_id person_to_remove_id"),
)

RESOURCES = (CAMPUS, PERSON, HOUSEHOLD, HOUSEHOLD_MEMBERSHIP, EMAIL, PHONE_NUMBER, ADDRESS, PERSON_MERGER)
BY_TYPE = {resource.type: resource for resource in RESOURCES}
BY_PATH = {resource.path: resource for resource in RESOURCES}
CONTACTS = ("Email", "PhoneNumber", "Address")
