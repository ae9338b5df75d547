"""The calls that users asked for, in their words, against the deployment as it is served on a fresh machine.

A call belongs to a system. As soon as the deployment has the system's workflow the call has to work as written; until then it is refused with the
names of what there is.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from attrs import define, frozen

from adapters.deployment import deployment
from adapters.standins.planning_center import Organization, Quota, create_app, serve
from flowdsl.errors import NotFound
from flowdsl.service.app import table
from flowdsl.service.settings import Settings
from flowdsl.service.starting import named

ROOT = Path(__file__).resolve().parents[2]


@frozen
class Start:
    """A request as somebody wrote it, and the workflow that has to be there for it, as the path names it."""

    about: str
    workflow: str
    written: str

    @property
    def there(self) -> bool:
        path = "/" + self.url.partition("://")[2].partition("/")[2]
        if any(route.path == path for route in deployment.routes):
            return True
        try:
            return bool(named(deployment, self.workflow))
        except NotFound:
            return False

    @property
    def words(self) -> list[str]:
        return shlex.split(self.written.replace("\\\n", " "))

    @property
    def url(self) -> str:
        return next(word for word in self.words if word.startswith("http"))


STARTS = (
    Start(
        "S1 user onboarding",
        "user-onboarding",
        r"""curl -X POST http://localhost:8084/api/v1/workflows/user-onboarding \
  -H "Content-Type: application/json" \
  -H "X-Tenant-ID: tenant-123" \
  -d '{
    "user_email": "user@example.com",
    "user_name": "John Doe",
    "tenant_id": "tenant-123",
    "role": "user",
    "send_welcome_email": true,
    "setup_default_workspace": true,
    "assign_default_permissions": true,
    "create_sample_data": false
  }'""",
    ),
    Start(
        "S1 tenant switching",
        "tenant-switching",
        r"""curl -X POST http://localhost:8084/api/v1/workflows/tenant-switching \
  -H "Content-Type: application/json" \
  -H "X-Tenant-ID: tenant-456" \
  -d '{
    "user_id": "user-123",
    "current_tenant_id": "tenant-123",
    "target_tenant_id": "tenant-456",
    "preserve_session_data": true,
    "update_user_preferences": true
  }'""",
    ),
    Start(
        "S1 data migration",
        "data-migration",
        r"""curl -X POST http://localhost:8084/api/v1/workflows/data-migration \
  -H "Content-Type: application/json" \
  -H "X-Tenant-ID: tenant-123" \
  -d '{
    "migration_id": "migration-456",
    "target_tenant_id": "tenant-123",
    "migration_type": "CrossServiceSync",
    "data_selectors": [
      {
        "service": "user",
        "entity_type": "profile",
        "filters": {},
        "include_relationships": true
      }
    ],
    "migration_options": {
      "batch_size": 100,
      "parallel_workers": 4,
      "validate_data": true,
      "create_backup": true,
      "rollback_on_error": true,
      "dry_run": false
    }
  }'""",
    ),
    Start(
        "S1 compliance",
        "compliance",
        r"""curl -X POST http://localhost:8084/api/v1/workflows/compliance \
  -H "Content-Type: application/json" \
  -H "X-Tenant-ID: tenant-123" \
  -d '{
    "compliance_id": "gdpr-export-789",
    "tenant_id": "tenant-123",
    "compliance_type": "GdprDataExport",
    "subject_user_id": "user-123",
    "data_categories": ["personal", "usage"],
    "audit_requirements": {
      "include_access_logs": true,
      "include_modification_logs": true,
      "include_deletion_logs": false,
      "include_export_logs": true
    }
  }'""",
    ),
    Start(
        "S0 erasure request",
        "erasure-request",
        r"""curl -X POST http://localhost:3000/api/erasure-request \
  -H "Content-Type: application/json" \
  -d '{
    "userIdentifiers": {
      "userId": "user123",
      "emails": ["test@example.com"],
      "phones": ["+1234567890"],
      "aliases": ["testuser"]
    },
    "legalProof": {
      "type": "SIGNED_REQUEST",
      "evidence": "User consent form",
      "verifiedAt": "2024-01-01T00:00:00Z"
    },
    "jurisdiction": "EU",
    "requestedBy": {
      "userId": "admin",
      "role": "compliance_officer",
      "organization": "Test Org"
    }
  }'""",
    ),
    # The payloads of S4's and S3's examples; they name no address, so they are sent where every workflow is started.
    Start(
        "S4 example 1: a full sync by hand",
        "main-sync-orchestrator",
        r"""curl -X POST http://localhost:8084/api/v1/workflows/main-sync-orchestrator \
  -H "Content-Type: application/json" \
  -d '{"orgId": "org_123", "adapterName": "pco", "syncType": "full", "triggeredBy": "manual"}'""",
    ),
    Start(
        "S4 example 2: a delta sync",
        "main-sync-orchestrator",
        r"""curl -X POST http://localhost:8084/api/v1/workflows/main-sync-orchestrator \
  -H "Content-Type: application/json" \
  -d '{"orgId": "org_123", "adapterName": "pco", "syncType": "delta", "triggeredBy": "schedule"}'""",
    ),
    Start(
        "S4 example 3: one entity",
        "entity-sync",
        r"""curl -X POST http://localhost:8084/api/v1/workflows/entity-sync \
  -H "Content-Type: application/json" \
  -d '{"orgId": "org_123", "adapterName": "pco", "entityName": "Person", "syncType": "full", "dependencies": {"hard": [], "soft": []}}'""",
    ),
    Start(
        "S2 triggerScheduledEnrichmentBatch",
        "subscriber-enrichment",
        r"""curl -X POST http://localhost:8084/api/v1/workflows/subscriber-enrichment -H "Content-Type: application/json" -d '{}'""",
    ),
    Start(
        "S3 ProcessMealShortsCsvWorkflow(s3_url)",
        "meal-shorts-csv",
        r"""curl -X POST http://localhost:8084/api/v1/workflows/meal-shorts-csv -H "Content-Type: application/json" \
  -d '{"s3_url": "s3://bucket/meal_shorts.csv"}'""",
    ),
)

ENDPOINTS = """
GET /api/v1/workflows/:workflow_id/status
POST /api/v1/workflows/:workflow_id/cancel
POST /api/v1/workflows/:workflow_id/retry
GET /api/v1/workflows
GET /api/v1/workflows/history
POST /api/v1/coordination/health-check
GET /health
GET /ready
"""
"""S1's own words for what there is beside the starts; backup and restore belong to the platform's services."""


@define
class Fresh:
    """A service as a newcomer has it: no database, no settings, nothing but a command."""

    url: str
    said: str

    def run(self, call: Start) -> tuple[int, dict[str, Any]]:
        """The call as it is written, but for the port."""
        words = [re.sub(r"^http://localhost:\d+", self.url, word) for word in call.words]
        done = subprocess.run([*words, "-s", "-w", "\n%{http_code}"], capture_output=True, text=True, timeout=60, check=True)
        body, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(body)

    def ask(self, method: str, path: str, **sent: Any) -> tuple[int, Any]:
        answer = httpx2.request(method, self.url + path, timeout=60, **sent)
        return answer.status_code, answer.json()

    def well(self, method: str, path: str) -> Any:
        """What it answers once all is well: a check of a machine that is busy may take longer than it waits for."""
        until = time.monotonic() + 120
        while True:
            status, found = self.ask(method, path)
            if status == 200:
                return found
            assert status == 503 and time.monotonic() < until, found
            time.sleep(0.05)

    def ended(self, path: str, **headers: str) -> dict[str, Any]:
        until = time.monotonic() + 120
        while True:
            status, found = self.ask("GET", path, headers=headers)
            assert status == 200, found
            if found["ended"]:
                return dict(found)
            assert time.monotonic() < until, found
            time.sleep(0.05)


@contextmanager
def fresh(folder: Path, **environment: str) -> Generator[Fresh]:
    """`flowdsl serve adapters.deployment:deployment`, with a home of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FLOWDSL_", "PG", "PLANNING_CENTER_"))}
    command = [sys.executable, "-m", "flowdsl", "serve", "adapters.deployment:deployment", "--port", "0"]
    own = {"FLOWDSL_STATE_DIR": str(folder / "state"), **environment}
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, env={**clean, **own}, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        said = (folder / "stderr").read_text()
        assert line.startswith("listening on http://127.0.0.1:"), said
        yield Fresh(line.removeprefix("listening on ").strip().removesuffix("/api/v1"), said)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.fixture(scope="module")
def service() -> Iterator[Fresh]:
    folder = Path(tempfile.mkdtemp(prefix="flowdsl-fresh-"))
    folder.chmod(0o755)  # as a home is, which the server's own user can enter
    standin = create_app(Organization.generate(12), quota=Quota(limit=10_000))
    with serve(standin) as source, fresh(folder, PLANNING_CENTER_URL=source, PLANNING_CENTER_TOKEN="app_id:secret") as found:
        yield found
    shutil.rmtree(folder, ignore_errors=True)


pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")


@pytest.mark.shows("S1.6", "S1.32", "S1.37", "S1.126", "S1.137", "S1.138")
def test_a_fresh_machine_needs_nothing_and_says_what_it_does(service: Fresh) -> None:
    assert "database: embedded" in service.said and "development mode" in service.said
    assert "this machine only" in service.said
    assert Settings().server.port == 8084
    found = service.well("GET", "/ready")
    assert found["status"] == "ok" and {"name": "database", "ok": True, "detail": ""} in found["checks"]
    assert service.well("POST", "/api/v1/coordination/health-check")["status"] == "ok"


@pytest.mark.shows("S2.20", "S3.9", "S4.8-11", "S4.22")
@pytest.mark.parametrize("call", STARTS, ids=lambda one: one.about)
def test_a_start_as_it_is_written(service: Fresh, call: Start) -> None:
    status, found = service.run(call)
    if not call.there:
        assert status == 404 and found["status"] == 404, found
        assert "/workflows/" not in call.url or "sync.main" in found["detail"], "it says what there is"
        return
    tenant = next((word.partition(": ")[2] for word in call.words if word.lower().startswith("x-tenant-id")), "default")
    assert status in (200, 202), found
    assert found["status_url"] == f"/api/v1/workflows/{found['id']}/status"
    status, again = service.ask("GET", found["status_url"], headers={"X-Tenant-ID": tenant})
    assert status == 200 and again["id"] == found["id"]
    assert service.ask("GET", found["status_url"], headers={"X-Tenant-ID": f"not {tenant}"})[0] == 404


def test_what_was_asked_for_is_in_the_route_table() -> None:
    known = {f"{route.method} {route.path}" for route in table(deployment)}
    for line in ENDPOINTS.split("\n"):
        assert not line or line.replace(":workflow_id", "{id}") in known, line


@pytest.mark.shows("S1.13", "S1.27", "S1.30", "S1.31", "S4.12", "S4.21", "S4.44", "S4.45", "S4.60")
def test_a_sync_is_started_watched_listed_and_known_again(service: Fresh) -> None:
    (call,) = [one for one in STARTS if "example 1" in one.about]
    status, begun = service.run(call)
    assert status in (200, 202) and begun["key"] == "main-sync:org_123:pco:full"
    outcome = service.ended(begun["status_url"])
    assert outcome["status"] == "succeeded", outcome
    order = [one["entity_name"] for one in outcome["result"]["results"]]
    assert outcome["result"]["entities_processed"] == len(order)
    assert order.index("Campus") < order.index("Person") < order.index("Address") and order.index("Household") < order.index("HouseholdMembership")

    # The same key again: a sync that has ended is done anew, and does not give the first one's result for ever.
    status, later = service.run(call)
    assert (status, later["outcome"]) == (202, "new") and later["id"] != begun["id"]
    status, same = service.run(call)
    assert (status, same["outcome"], same["id"]) in ((200, "joined", later["id"]), (202, "new", same["id"]))
    assert service.ended(later["status_url"])["status"] == "succeeded"

    status, listed = service.ask("GET", "/api/v1/workflows", params={"workflow": "sync.main"})
    assert status == 200 and begun["id"] in [one["id"] for one in listed["executions"]]
    status, history = service.ask("GET", "/api/v1/workflows/history", params={"workflow": "sync.main"})
    assert status == 200 and {one["status"] for one in history["executions"]} <= {"succeeded", "failed", "cancelled"}


@pytest.mark.shows("S4.23")
def test_one_person_of_two_is_not_taken_for_the_other(service: Fresh) -> None:
    """The key names the person too."""
    ids = set()
    for subject in ("1", "2"):
        body = {"orgId": "org_123", "adapterName": "pco", "entityName": "Person", "syncType": "full", "subject": subject}
        status, begun = service.ask("POST", "/api/v1/workflows/entity-sync", json=body)
        assert status == 202 and begun["key"].endswith(f":{subject}")
        ids.add(begun["id"])
    assert len(ids) == 2


@pytest.mark.shows("S1.28", "S1.29")
def test_what_has_ended_answers_cancel_and_retry_with_its_state(service: Fresh) -> None:
    body = {"orgId": "org_123", "adapterName": "pco", "entityName": "Campus", "syncType": "full"}
    _, begun = service.ask("POST", "/api/v1/workflows/entity-sync", json=body)
    assert service.ended(begun["status_url"])["status"] == "succeeded"
    for verb in ("cancel", "retry"):
        status, found = service.ask("POST", f"/api/v1/workflows/{begun['id']}/{verb}")
        assert (status, found["status"], found["state"]) == (409, 409, "succeeded"), found
    for verb in ("cancel", "retry"):
        assert service.ask("POST", f"/api/v1/workflows/00000000-0000-4000-8000-000000000000/{verb}")[0] == 404


@pytest.mark.shows("S1.15", "S1.29")
def test_a_failed_one_is_retried(service: Fresh) -> None:
    body = {"orgId": "org_123", "adapterName": "pco", "entityName": "Dragon", "syncType": "full"}
    _, begun = service.ask("POST", "/api/v1/workflows/entity-sync", json=body)
    outcome = service.ended(begun["status_url"])
    assert outcome["status"] == "failed" and "Dragon" in json.dumps(outcome["failure"])
    status, done = service.ask("POST", f"/api/v1/workflows/{begun['id']}/retry", json={"reason": "once more"})
    assert (status, done["outcome"]) == (200, "retried"), done
    assert service.ended(begun["status_url"])["status"] == "failed"


@pytest.mark.shows("S1.142", "S4.7", "S4.9", "S4.10")
@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"adapterName": "pco", "syncType": "full"}, "body.orgId"),
        ({"orgId": 5, "adapterName": "pco", "syncType": "full"}, "body.orgId"),
        ({"orgId": "o", "adapterName": "crm", "syncType": "full"}, "body.adapterName"),
        ({"orgId": "o", "adapterName": "pco", "syncType": "everything"}, "body.syncType"),
        ({"orgId": "o", "adapterName": "pco", "syncType": "full", "org_id": "o"}, "body.org_id"),
    ],
)
def test_a_wrong_field_is_named_as_it_was_written(service: Fresh, body: dict[str, Any], path: str) -> None:
    status, found = service.ask("POST", "/api/v1/workflows/main-sync-orchestrator", json=body)
    assert status == 422 and path in json.dumps(found["errors"]), found
