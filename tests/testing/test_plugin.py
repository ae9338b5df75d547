"""The plugin, in sessions of its own: the fixture, the section of a failing test, and how little it loads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest_plugins = ["pytester"]

SHOP = """
from returns.result import Result, Success
from flowdsl import Steps, activity, workflow
from typing import Never

@activity("plugin.greet")
def greet(name: str) -> Result[str, Never]: ...

@workflow("plugin.hello")
def hello(name: str) -> Steps[str, Never]:
    return (yield from greet(name))
"""

FAILING = """
from shop import *

def test_it_is_loud(fake):
    run = fake.on(greet, lambda name: Success(f"hello {name}")).run(hello, "you")
    assert run.exit == Success("HELLO YOU")

def test_that_ran_nothing():
    assert False

def test_that_is_fine(fake):
    assert fake.on(greet, Success("hi")).run(hello, "you").exit == Success("hi")
"""


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    for name in ("CI", "BUILD_NUMBER"):  # with these the last lines of a report are not cut: each story is in it once more
        monkeypatch.delenv(name, raising=False)
    pytester.makepyfile(shop=SHOP)
    pytester.syspathinsert()
    return pytester


def test_a_failing_test_shows_the_story_of_its_last_run_and_no_other(session: pytest.Pytester) -> None:
    session.makepyfile(test_shop=FAILING)
    result = session.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=2, passed=1)
    lines = result.stdout.str()
    assert lines.count("story of the last run") == 1
    result.stdout.fnmatch_lines(
        [
            "*- story of the last run -*",
            "*0s      plugin.hello begins with 'you'",
            "*0s  #0  greet('you') * → Success('hello you')",
            "It ended after 0s: Success('hello you')",
            "*test_that_ran_nothing*",
        ]
    )


def test_an_answer_that_is_missing_is_told_with_the_story_so_far(session: pytest.Pytester) -> None:
    session.makepyfile(
        test_shop="""
        from shop import *
        def test_it(fake):
            fake.run(hello, "you")
        """
    )
    result = session.runpytest_subprocess()
    result.stdout.fnmatch_lines(
        ["E*Unscripted: greet was asked with 'you'*fake.on(greet, Success(...))*", "*- story of the last run -*", "It has not ended.*"]
    )


def test_a_value_that_cannot_be_shown_hides_no_failure(session: pytest.Pytester) -> None:
    session.makepyfile(
        test_shop="""
        from attrs import frozen
        from shop import *
        @frozen(repr=False)
        class Mute:
            n: int
            def __repr__(self):
                raise RuntimeError("mute")
        @activity("plugin.mute")
        def mute(one: Mute) -> Result[str, Never]: ...
        @workflow("plugin.mutes")
        def mutes(n: int) -> Steps[str, Never]:
            return (yield from mute(Mute(n)))
        def test_it(fake):
            fake.on(mute, Success("x")).run(mutes, 1)
            assert 1 == 2
        """
    )
    result = session.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*assert 1 == 2", "*- story of the last run -*", "it cannot be told: RuntimeError('mute')"])


def test_what_hypothesis_prints_already_is_not_printed_twice(session: pytest.Pytester) -> None:
    session.makepyfile(
        test_shop="""
        from hypothesis import given, note, settings, strategies as st
        from flowdsl.testing import Fake
        from shop import *
        @settings(deadline=None)
        @given(st.integers(0, 3), st.booleans())
        def test_it(n, noted):
            run = Fake().on(greet, Success("hi")).run(hello, "x" * n)
            note(str(run))
            assert n < 2
        @settings(deadline=None)
        @given(st.integers(0, 3))
        def test_that_notes_nothing(n):
            run = Fake().on(greet, Success("hi")).run(hello, "x" * n)
            assert n < 2
        """
    )
    result = session.runpytest_subprocess()
    result.assert_outcomes(failed=2)
    assert result.stdout.str().count("story of the last run") == 1
    assert result.stdout.str().count("It ended after 0s: Success('hi')") == 2
    result.stdout.fnmatch_lines(["*plugin.hello begins with 'xx'"])


def test_under_xdist_too(session: pytest.Pytester) -> None:
    session.makepyfile(test_shop=FAILING)
    result = session.runpytest_subprocess("-n", "2")
    result.assert_outcomes(failed=2, passed=1)
    assert result.stdout.str().count("- story of the last run -") == 1


def test_without_hypothesis(session: pytest.Pytester) -> None:
    session.makepyfile(test_shop=FAILING)
    session.makepyfile(
        conftest="""
        import sys
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "hypothesis":
                    raise ModuleNotFoundError("No module named 'hypothesis'", name="hypothesis")
        sys.meta_path.insert(0, Missing())
        """
    )
    result = session.runpytest_subprocess("-p", "no:hypothesispytest")
    result.assert_outcomes(failed=2, passed=1)
    assert "No module named" not in result.stdout.str()


def test_it_can_be_left_out(session: pytest.Pytester) -> None:
    session.makepyfile(test_shop=FAILING)
    result = session.runpytest_subprocess("-p", "no:flowdsl")
    result.assert_outcomes(failed=1, errors=2)
    result.stdout.fnmatch_lines(["*fixture 'fake' not found"])


def test_it_is_listed(session: pytest.Pytester) -> None:
    session.makepyfile("")
    result = session.runpytest_subprocess("--fixtures")
    result.stdout.fnmatch_lines(["fake -- *testing/plugin.py*", "*A fake interpreter:*"])


@pytest.mark.parametrize("module", ["flowdsl.testing.plugin", "flowdsl.testing"])
def test_it_loads_nothing_that_strangers_would_wait_for(module: str) -> None:
    heavy = ("hypothesis", "asyncpg", "cattrs", "flowdsl.memory", "flowdsl.machine", "flowdsl.story", "flowdsl.testing.fake", "flowdsl.postgres")
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_of_the_kit_can_be_had() -> None:
    import flowdsl.testing

    for name in flowdsl.testing.__all__:
        assert not isinstance(getattr(flowdsl.testing, name), ModuleType)
    assert dir(flowdsl.testing) == sorted(flowdsl.testing.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flowdsl.testing.nothing  # noqa: B018


def test_the_page_of_five_minutes_does_what_it_says(pytester: pytest.Pytester) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "test-in-five-minutes.md"
    text = page.read_text(encoding="utf-8")
    found = {name: code for name, code in re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```", text, re.M | re.S)}
    story = text.partition("---- story of the last run -----------------------------\n")[2].partition("```")[0]
    pytester.makepyfile(**found, test_story=f"from test_checkout import *\nfrom test_checkout import shop\nSTORY = {story!r}\n" + STORY_TEST)
    pytester.syspathinsert()
    pytester.runpytest_subprocess("test_checkout.py").assert_outcomes(passed=7)
    pytester.runpytest_subprocess("test_story.py", "-k", "test_the_story").assert_outcomes(passed=1)


STORY_TEST = """
def test_the_story(fake):
    run = shop(fake).signal(packed, 2, at="1h").crash(before="charge").run(checkout, ORDER)
    assert str(run) + "\\n" == STORY
"""
