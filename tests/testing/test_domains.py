"""The laws over every workflow there is: of the domains, of the system under chaos, of the README and the tutorial; and the sites they reach."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from domains.sync import activities as sync
from domains.sync.graph import plan
from domains.sync.manifest import Entity, Manifest, Relationship
from domains.sync.values import LoadedManifest
from domains.sync.workflows import entity_sync, main_sync
from flowdsl import Success
from flowdsl.definition import Workflow
from flowdsl.outline import outline
from flowdsl.testing import check
from flowdsl.testing.chaos import system
from flowdsl.testing.chaos.activities import Receipt, effect
from flowdsl.testing.chaos.orders import Order

LONG = 20 if os.environ.get("FLOWDSL_LONG") == "1" else 1
ROOT = Path(__file__).resolve().parents[2]

CHAOS = {one.name: one for one in vars(system).values() if isinstance(one, Workflow) and one.name.startswith("chaos.")}
TINY = Manifest(
    "tiny",
    (
        Entity("Household", "households", (Relationship("primary_contact", "Person", required=True, linked_later=True),)),
        Entity("Person", "people", (Relationship("household", "Household", required=True),)),
    ),
)
ORDERS = st.builds(Order, st.integers(0, 3), st.just("any"), st.integers(1, 2), st.integers(0, 2), st.sampled_from([50, 900]))
PARTS = st.builds(
    system.Part, st.just(0), st.just("child"), st.just(1), st.just(50), st.sampled_from(["fine", "refused", "forever"]), st.integers(0, 2)
)

ABOUT: dict[str, dict[str, Any]] = {
    "sync.main": {
        "given": {
            sync.load_entity_manifest: Success(LoadedManifest(TINY, 2)),
            sync.build_dependency_graph: lambda request: plan(request.manifest, request.sync_type),
        }
    },
    # A finalizer whose activity fails is a defect, and so it is meant there: the workload never lets it fail.
    "chaos.cancelled": {"given": {effect: Success(Receipt(1, 1))}},
    "chaos.terminated": {"given": {effect: Success(Receipt(1, 1))}},
}
UNREACHED: dict[str, dict[str, str]] = {
    "sync.main": {"one_page workflows.py:148": "a source that asks for a pause is drawn now and then only; the worlds of sync.entity have it"},
}
"""Sites that no generated world reaches, by workflow, and why."""


def holds(workflow: Any, examples: int = 4) -> None:
    about = dict(ABOUT.get(workflow.name, {}))
    if workflow.name in CHAOS:
        about["request"] = PARTS if workflow.shape.request is system.Part else ORDERS
    checked = check(workflow, examples=examples * LONG, elsewhere=LONG > 1, seed=4, **about)
    lit = outline(workflow).lit(entry for journal in checked.journals for entry in journal)
    missing = set(lit.missing) - set(UNREACHED.get(workflow.name, {}))
    print(f"{workflow.name}: {lit}, in {checked.runs} runs of {checked.worlds} worlds")
    assert not missing, f"{workflow.name}: {lit}; not {', '.join(sorted(missing))}"


@pytest.mark.parametrize("workflow", [entity_sync, main_sync], ids=lambda one: one.name)
def test_the_domains_workflows_keep_the_laws(workflow: Any) -> None:
    holds(workflow, 12 if workflow is entity_sync else 6)


@pytest.mark.parametrize("name", CHAOS)
def test_so_does_the_system_under_chaos(name: str) -> None:
    holds(CHAOS[name], 6)


@pytest.mark.parametrize(("page", "name"), [("README.md", "hello.count"), ("docs/tutorial.md", "hello.count"), ("docs/tutorial.md", "orders.total")])
def test_so_does_what_the_first_pages_show(page: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = (block for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S) if f'@workflow("{name}")' in block)
    module = f"shown_{page.partition('.')[0].rpartition('/')[2].lower()}_{name.replace('.', '_')}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ABOUT, "hello.count", {"request": st.integers(0, 3)})
    try:
        found = vars(import_module(module)).values()
        holds(next(one for one in found if isinstance(one, Workflow) and one.name == name), 8)
    finally:
        sys.modules.pop(module, None)
