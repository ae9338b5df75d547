"""Who is behind an address: drawn from the address alone, so that whoever asks again is told the same."""

from __future__ import annotations

from random import Random
from typing import Any

_FIRST = ["Mira", "Tomás", "Aiko", "Søren", "Zoë", "Noor", "Ivan", "Li", "O'Neil", "Ján"]
_LAST = ["Okafor", "Núñez", "Sato", "Brandt", "d'Arc", "al-Amin", "Petrov", "王", "Smith-Jones", "Ångström"]
_COMPANIES = [("Example", "example.org", 180), ("Acme GmbH", "acme.test", 0), ("Nordlicht", "nordlicht.test", 12), ("Globex", "globex.test", 5200)]
_TITLES = [("VP Engineering", "VP"), ("Head of Sales", "Head"), ("Account Manager", "Manager"), ("Founder", "C-Level"), ("Analyst", "Entry")]


def profile_of(email: str, share: float = 0.75) -> dict[str, Any] | None:
    """The profile of that share of all addresses."""
    chance = Random(f"people {email}")
    if chance.random() >= share:
        return None
    first, last = chance.choice(_FIRST), chance.choice(_LAST)
    name, domain, headcount = chance.choice(_COMPANIES)
    title, seniority = chance.choice(_TITLES)
    company = {"id": f"c-{domain}", "name": name, "domain": domain, "headcount": headcount, "headcount_range": "51-200"}
    job = {"title": title, "seniority": seniority, "is_current": True, "start_at": "2022-03-15T00:00:00Z"}
    return {
        "id": f"p{chance.randrange(10**9)}",
        "full_name": f"{first} {last}",
        "headline": f"{title} at {name}",
        "location": {"country_code": chance.choice(["US", "DE", "JP"]), "city": chance.choice(["Austin", "Köln", "大阪"])},
        "social_profiles": {"professional_network": {"url": f"https://network.test/in/{chance.randrange(10**6)}", "handle": first.lower()}},
        "employment": {"current": {**job, "company": {**company, "industry": {"main_industry": "Software Development"}}}, "all": []},
    }
