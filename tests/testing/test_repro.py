"""From an execution in a store to a test that fails, and passes once the code is mended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHOP = """
from datetime import date
from decimal import Decimal
from typing import Never
from attrs import frozen
from flowdsl import Deployment, Failure, Result, Retry, Steps, Success, activity, bind, each, signal, workflow

@frozen
class Order:
    id: str
    email: str
    cents: Decimal
    on: date = date(2026, 1, 2)

@frozen
class Down:
    status: int

@frozen
class Declined:
    why: str

@activity("shop.stock", retry=Retry.constant("10ms", attempts=3, on=(Down,)))
def stock(order: Order) -> Result[int, Down]: ...

@activity("shop.charge")
def charge(order: Order) -> Result[str, Declined]: ...

@workflow("shop.part")
def part(order: Order) -> Steps[int, Down]:
    return (yield from stock(order))

@workflow("shop.order", key="{id}")
def place(order: Order) -> Steps[str, Down | Declined]:
    count = yield from part.child(order)
    share = order.cents / count
    receipt = yield from charge(order)
    return f"{receipt} {share}"

go = signal("shop.go", int)

@workflow("shop.wait")
def wait(name: str) -> Steps[int, Never]:
    first = yield from go.receive()
    second = yield from go.receive()
    return first - second

asked = []

def stocked(order):
    asked.append(order)
    return Failure(Down(503)) if len(asked) == 1 else Success(0)

deployment = Deployment([place, wait], [bind(stock, stocked), bind(charge, lambda order: Success("paid"))])
"""
MENDED = SHOP.replace("order.cents / count", "order.cents / max(count, 1)")


@pytest.fixture
def folder(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.setenv("FLOWDSL_DATABASE_URL", database)
    return tmp_path


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-B", "-m", *arguments], cwd=folder, capture_output=True, text=True, timeout=100)


def ran(folder: Path, workflow: str, request: Any) -> str:
    done = python(folder, "flowdsl", "run", "shop", workflow, "--input", json.dumps(request), "--json")
    return str(json.loads(done.stdout)["execution"])


def outcome(folder: Path, *, mended: bool) -> subprocess.CompletedProcess[str]:
    (folder / "shop.py").write_text(MENDED if mended else SHOP)
    return python(folder, "pytest", "-q", "-p", "no:cacheprovider", "test_it.py")


ORDER = {"id": "order-7", "email": "kim@example.org", "cents": "12.50", "on": "2026-03-04"}


def test_a_bug_in_production_is_a_failing_test_that_passes_once_it_is_mended(folder: Path) -> None:
    id = ran(folder, "shop.order", ORDER)
    done = python(folder, "flowdsl", "repro", "shop", id, "--output", "test_it.py")
    assert done.returncode == 0, done.stderr
    text = (folder / "test_it.py").read_text()
    assert "fake.on(stock, Failure(Down(status=503)), Success(0))" in text, text
    assert "Order(id='order-7', email='kim@example.org', cents=Decimal('12.50'), on=date.fromisoformat('2026-03-04'))" in text

    before = outcome(folder, mended=False)
    assert before.returncode == 1 and "DivisionByZero" in before.stdout, before.stdout
    after = outcome(folder, mended=True)  # its payment is not in the record: it never came so far
    assert "fake.on(charge" in after.stdout, after.stdout
    (folder / "test_it.py").write_text(text.replace("    return fake.run", "    fake.on(charge, Success('paid'))\n    return fake.run", 1).replace(
        "import Down, Order", "import Down, Order, charge"))  # fmt: skip
    after = outcome(folder, mended=True)
    assert after.returncode == 0, after.stdout


def test_redacted_it_tells_nothing_of_people_and_still_fails(folder: Path) -> None:
    id = ran(folder, "shop.order", ORDER)
    assert python(folder, "flowdsl", "repro", "shop", id, "--redact", "--output", "test_it.py").returncode == 0
    text = (folder / "test_it.py").read_text()
    assert "kim@" not in text and "order-7" not in text and "Decimal('12.50')" in text, text
    assert "DivisionByZero" in outcome(folder, mended=False).stdout


def test_what_no_longer_fits_is_a_test_that_shows_where(folder: Path) -> None:
    id = ran(folder, "shop.order", ORDER)
    document = python(folder, "flowdsl", "export", id).stdout
    (folder / "it.json").write_text(document)
    changed = SHOP.replace("    count = yield from part.child(order)\n", "    count = yield from stock(order)\n")
    (folder / "shop.py").write_text(changed)
    done = python(folder, "flowdsl", "repro", "shop", "it.json", "--output", "test_it.py")
    assert done.returncode == 0, done.stderr
    broken = python(folder, "pytest", "-q", "-p", "no:cacheprovider", "test_it.py")
    assert broken.returncode == 1 and "start shop.part" in broken.stdout, broken.stdout
    after = outcome(folder, mended=False)
    assert after.returncode == 0, after.stdout


def test_signals_come_again_at_their_times(folder: Path, database: str) -> None:
    done = python(folder, "flowdsl", "start", "shop", "shop.wait", "--input", '"a"', "--json")
    id = str(json.loads(done.stdout)["execution"])
    for number in (9, 4):
        assert python(folder, "flowdsl", "signal", id, "shop.go", str(number)).returncode == 0
    worker = subprocess.Popen([sys.executable, "-m", "flowdsl", "worker", "shop"], cwd=folder, stderr=subprocess.DEVNULL)
    try:
        python(folder, "flowdsl", "status", id, "--follow")
    finally:
        worker.terminate()
        worker.wait(60)
    assert python(folder, "flowdsl", "repro", "shop", id, "--output", "test_it.py").returncode == 0
    text = (folder / "test_it.py").read_text()
    assert text.index("fake.signal(go, 9") < text.index("fake.signal(go, 4") and "run.exit == Success(5)" in text
    after = outcome(folder, mended=False)
    assert after.returncode == 0, after.stdout
