"""Paths: what was reached is told, also by xdist's workers; what was not is named."""

from __future__ import annotations

import re

import pytest

pytest_plugins = ["pytester"]

SHOP = """
from returns.result import Result, Success
from flowdsl import Steps, activity, workflow
from typing import Never

@activity("paths.look")
def look(name: str) -> Result[int, Never]: ...

@activity("paths.few")
def few(name: str) -> Result[str, Never]: ...

@activity("paths.many")
def many(name: str) -> Result[str, Never]: ...

@workflow("paths.part")
def part(name: str) -> Steps[str, Never]:
    return (yield from many(name))

@workflow("paths.child")
def child(name: str) -> Steps[int, Never]:
    return (yield from look(name))

@workflow("paths.whole")
def whole(name: str) -> Steps[str, Never]:
    count = yield from child.child(name)
    if count < 5:
        return (yield from few(name))
    return (yield from part(name))
"""

FEW = """
from shop import *

def test_few(fake):
    fake.on(look, Success(1)).on(few, Success("few")).run(whole, "a")
"""

MANY = """
from shop import *

def test_many(fake):
    fake.on(look, Success(9)).on(many, Success("many")).run(whole, "a")
"""

ASKED = """
from shop import *
from flowdsl.testing import paths

def test_few(fake):
    assert len(paths(whole).missing) == len(paths(whole).sites)
    run = fake.on(look, Success(1)).on(few, Success("few")).run(whole, "a")
    assert paths(whole).missing == [] and paths(child).missing == []
    assert paths(part).missing == ["shop.py:16 paths.many"]
    assert str(paths(part)) == "paths.part 0 of 1 bind sites (missing: shop.py:16 paths.many)"
    assert paths(whole).lit.items and "reached" in paths(whole).outline.to_mermaid(paths(whole).lit)
"""


@pytest.fixture
def session(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(shop=SHOP)
    pytester.syspathinsert()
    return pytester


def told(session: pytest.Pytester, *arguments: str) -> list[str]:
    result = session.runpytest_subprocess("-p", "no:cacheprovider", *arguments)
    assert result.ret == 0, result.stdout.str()
    return [line for line in result.outlines if re.match(r"paths\.", line)]


def test_the_summary_names_what_no_run_has_reached(session: pytest.Pytester) -> None:
    session.makepyfile(test_few=FEW)
    lines = told(session, "--flowdsl-paths")
    assert lines[0] == "paths.child 1 of 1 bind sites"
    assert any(line.startswith("paths.whole ") for line in lines)
    assert any(line == "paths.part 0 of 1 bind sites (missing: shop.py:16 paths.many)" for line in lines)


def test_without_the_option_nothing_is_told(session: pytest.Pytester) -> None:
    session.makepyfile(test_few=FEW)
    assert told(session) == []


def test_what_workers_reach_counts_together(session: pytest.Pytester) -> None:
    session.makepyfile(test_few=FEW, test_many=MANY)
    lines = told(session, "--flowdsl-paths", "-n", "2", "--dist", "loadfile")
    assert lines and not any("missing" in line for line in lines)


def test_a_test_can_ask_itself(session: pytest.Pytester) -> None:
    session.makepyfile(test_asked=ASKED)
    told(session)
