"""What Planning Center's People API has to offer (version 2025-03-20), as data."""

from __future__ import annotations

from domains.sync.manifest import Entity, Manifest, Merge, Mirror, Relationship

_PERSON = (Relationship("person", "Person", required=True),)

PEOPLE = Manifest(
    adapter_name="pco",
    entities=(
        Entity("Campus", "campuses", aliases=("PrimaryCampus",)),
        Entity(
            "Person",
            "people",
            relationships=(
                Relationship("primary_campus", "PrimaryCampus"),
                Relationship("households", "Household"),
            ),
        ),
        Entity(
            "Household",
            "households",
            # Household and Person refer to each other: the household is loaded first, and told its people when they are there.
            relationships=(
                Relationship("primary_contact", "Person", required=True, linked_later=True),
                Relationship("people", "Person", required=True, linked_later=True),
            ),
        ),
        Entity(
            "HouseholdMembership",
            "households/{owner}/household_memberships",
            relationships=(Relationship("household", "Household", required=True), *_PERSON),
            owner="household",
            mirror=Mirror("people", "person"),
            changed=None,
        ),
        # Another address that is made primary takes the flag from its siblings, whose updated_at stays.
        Entity("Email", "emails", relationships=_PERSON, owner="person", siblings="people/{owner}/emails"),
        Entity("PhoneNumber", "phone_numbers", relationships=_PERSON, owner="person", siblings="people/{owner}/phone_numbers"),
        Entity("Address", "addresses", relationships=_PERSON, owner="person", siblings="people/{owner}/addresses", filterable=False),
        Entity(
            "PersonMerger",
            "person_mergers",
            relationships=(Relationship("person_to_keep", "Person"), Relationship("person_to_remove", "Person")),
            changed="created_at",
            merge=Merge("Person", keep="person_to_keep_id", remove="person_to_remove_id"),
        ),
    ),
)
