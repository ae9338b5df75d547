"""FullEnrich's documents: what is sent, and what comes back, from a look as from a callback. `ValueError`: it is not as documented."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

from domains.enrichment.values import Batch, BatchStatus, EnrichmentResults, Found, Profile


def submission(batch: Batch, callback_url: str | None) -> dict[str, Any]:
    """A batch as it is submitted. What stands in `custom` comes back with each item: the only safe way home."""
    items = [{"email": job.email, "custom": {"batch_id": batch.id, "job_id": str(job.id)}} for job in batch.jobs]
    return {"name": f"enrichment {batch.id}", "data": items} | ({"webhook_url": callback_url} if callback_url else {})


def results_of(document: Any) -> EnrichmentResults:
    """Items that are none of ours are left out; one that comes twice counts with its profile."""
    if not isinstance(document, dict) or not isinstance(document.get("id"), str) or not document["id"]:
        raise ValueError("it has no id")
    items = document.get("data") or []
    if not isinstance(items, list):
        raise ValueError("data is no list")
    found: dict[int, Found] = {}
    for item in items:
        one = _found(item)
        if one is not None and (one.profile is not None or one.job not in found):
            found[one.job] = one
    status = document.get("status")
    known = status if status in get_args(BatchStatus) else "UNKNOWN"
    return EnrichmentResults(document["id"], cast("BatchStatus", known), tuple(found.values()), _credits(document.get("cost")))


def batch_of(document: Any) -> str | None:
    """Our own id, which stands in every item; None when there is no item."""
    for item in document.get("data") or []:
        own = _mapping(_mapping(item).get("custom")).get("batch_id")
        if isinstance(own, str) and own:
            return own
    return None


def _found(item: Any) -> Found | None:
    job = _mapping(_mapping(item).get("custom")).get("job_id")
    if not (isinstance(job, str) and job.isascii() and job.isdigit() and len(job) < 19):
        return None
    return Found(int(job), _profile(_mapping(item).get("profile")))


def _profile(told: Any) -> Profile | None:
    if not isinstance(told, dict):
        return None
    location, current = _mapping(told.get("location")), _mapping(_mapping(told.get("employment")).get("current"))
    company = _mapping(current.get("company"))
    network = _mapping(_mapping(told.get("social_profiles")).get("professional_network"))
    return Profile(
        full_name=_text(told.get("full_name")) or "",
        headline=_text(told.get("headline")),
        city=_text(location.get("city")),
        country=_text(location.get("country_code")),
        linkedin_url=_text(network.get("url")),
        title=_text(current.get("title")),
        seniority=_text(current.get("seniority")),
        company=_text(company.get("name")),
        company_domain=_text(company.get("domain")),
        headcount=_text(company.get("headcount") or company.get("headcount_range")),  # 0 where only the range is known
        industry=_text(_mapping(company.get("industry")).get("main_industry")),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    """As text that a table can hold; nothing for nothing."""
    if value is None or isinstance(value, (dict, list)):
        return None
    return str(value).replace("\0", "").encode(errors="replace").decode() or None


def _credits(cost: Any) -> float:
    credits = _mapping(cost).get("credits", 0)
    if isinstance(credits, bool) or not isinstance(credits, (int, float)) or not 0 <= credits < 1e9:
        raise ValueError("cost.credits is no number")
    return float(credits)
