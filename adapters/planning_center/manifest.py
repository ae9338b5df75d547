"""What Planning Center's People product offers. Everything that the orchestrator knows of it, it knows from here."""

from __future__ import annotations

from domains.sync.values import EntityDefinition, Manifest, Relationship

_PERSON = (Relationship("person", "Person", required=True),)

MANIFEST = Manifest(
    "pco",
    (
        EntityDefinition("Campus", "/campuses"),
        # A person's households are read through Household, which needs its people: a cycle, closed by linking.
        EntityDefinition(
            "Person", "/people", relationships=(Relationship("primary_campus", "Campus"), Relationship("households", "Household", many=True))
        ),
        EntityDefinition(
            "Household",
            "/households",
            relationships=(Relationship("primary_contact", "Person", required=True), Relationship("people", "Person", many=True)),
        ),
        # No timestamps and no list of its own: read again below each changed household.
        EntityDefinition(
            "HouseholdMembership",
            "/household_memberships",
            change=None,
            parent="Household",
            relationships=(Relationship("person", "Person", required=True), Relationship("household", "Household", required=True)),
        ),
        # Making one address primary changes the other silently.
        EntityDefinition("Email", "/emails", siblings="person", relationships=_PERSON),
        EntityDefinition("PhoneNumber", "/phone_numbers", relationships=_PERSON),
        EntityDefinition("Address", "/addresses", filterable=False, relationships=_PERSON),
        EntityDefinition(
            "PersonMerger",
            "/person_mergers",
            change="created_at",
            merges="Person",
            relationships=(
                Relationship("person_to_keep", "Person", required=True),
                *(Relationship(f"moved_{name}", name, many=True) for name in ("Email", "PhoneNumber", "Address")),
            ),
        ),
    ),
)

TYPE_ALIASES = {"PrimaryCampus": "Campus"}
"""The linkage type of a person's campus is not that of a campus."""
