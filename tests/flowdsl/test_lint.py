"""Lint: for each rule bodies that break it, and near misses that do not."""

# ruff: noqa: E501 (a case reads better on one line)

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from adapters.deployment import deployment as sync_deployment
from flowdsl import Workflow
from flowdsl.errors import DefinitionError
from flowdsl.lint import RULES, Finding, lint
from tests.typing import passages_enrichment, passages_erasure, passages_imports, passages_platform, passages_sync

HEAD = """
import os, time, logging, asyncio, pathlib, itertools, contextlib
import datetime as dt
from datetime import datetime, date, timedelta
from functools import partial
from pathlib import Path
from random import choice
from typing import Any, Never
from attrs import frozen
import flowdsl
from flowdsl import *
import random, secrets, uuid

@frozen
class Bad:
    why: str

@frozen
class Order:
    name: str
    parts: tuple[int, ...]
    tags: frozenset[str]

@frozen
class Card:
    def reveal(self) -> int:
        return 1

@frozen
class Access:
    token: Secret
    card: Card

ACCESS = Access(Secret("bank"), Card())

@activity("t.send")
def send(access: Access) -> Result[int, Bad]: ...

@activity("t.read")
def read(n: int) -> Result[int, Bad]: ...

@activity("t.create")
def create(n: int) -> Result[int, Bad]: ...

@activity("t.charge")
def charge(n: int) -> Result[int, Bad]: ...

@activity("t.delete")
def delete(n: int) -> Result[int, Bad]: ...

@activity("t.store_page", transactional=True)
def page(n: int) -> Result[int, Bad]: ...

AFTER_BAD = Retry.constant("1s", on=(Bad,))
AFTER_ALL = Retry.constant("1s", on=(Bad, Interrupted))

@activity("t.pay", crash="fail")
def pay(n: int) -> Result[int, Bad | Interrupted]: ...

@activity("t.pay_often", crash="fail", retry=Retry.constant("1s", attempts=3))
def pay_often(n: int) -> Result[int, Bad | Interrupted]: ...

@activity("t.pay_once", crash="fail", retry=Retry.constant("1s", attempts=1))
def pay_once(n: int) -> Result[int, Bad | Interrupted]: ...

news = signal("t.news", int)
KINDS = {"a": 1}
seen: list[int] = []
log = logging.getLogger("t")

def remember(n):
    seen.append(n)

def stamped(n):
    return f"{n} {datetime.now()}"

def pure_part(n):
    return n + 1

def later(n) -> Flow[int, Bad]:
    return read(n)

@workflow("t.child", key="{name}")
def child(order: Order) -> Steps[int, Bad]:
    return (yield from read(1))

"""

_numbers = itertools.count()


def linted(body: str, folder: Path, *, parameter: str = "n: int", head: str = "") -> list[Finding]:
    """The findings of a workflow with that body, `B` standing for the line of a finding's function."""
    lines = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    source = f"{HEAD}{head}\n@workflow('t.body')\ndef body({parameter}) -> Steps[Any, Any]:\n{lines}\n"
    path = folder / f"case_{next(_numbers)}.py"
    path.write_text(source)
    space: dict[str, Any] = {"__name__": path.stem}
    exec(compile(source, str(path), "exec"), space)
    return lint(space["body"])


# rule, body that breaks it (`# <-` marks each line that is found), near miss
CASES: list[tuple[str, str, str]] = [
    ("clock", "at = datetime.now()  # <-\nyield from read(1)", "at = yield from now()\nyield from read(1)"),
    ("clock", "yield from read(int(time.time()))  # <-", "yield from read(int(dt.timedelta(hours=1).total_seconds()))"),
    ("clock", "at = dt.date.today()  # <-\nyield from read(1)", "at = dt.date(2026, 1, 1)\nyield from read(1)"),
    ("clock", "time.sleep(1)  # <-\nyield from read(1)", "yield from sleep('1s')"),
    ("clock", "import time as t\nstart = t.monotonic()  # <-\nyield from read(1)", "time = 3\nyield from read(time)"),
    ("chance", "yield from read(random.randint(1, 6))  # <-", "yield from read(int((yield from flowdsl.random()) * 6))"),
    ("chance", "yield from read(choice([1, 2]))  # <-", "yield from read(random.Random(n).randint(1, 6))"),
    ("chance", "name = uuid.uuid4()  # <-\nyield from read(1)", "name = uuid.uuid5(uuid.NAMESPACE_URL, 'x')\nyield from read(1)"),
    ("chance", "yield from read(hash('x'))  # <-", "yield from read(len('x'))"),
    ("chance", "token = secrets.token_hex()  # <-\nyield from read(1)", "secrets = n\nyield from read(secrets)"),
    ("secret", "key = Secret('bank').reveal()  # <-\nyield from read(len(key))", "yield from send(Access(Secret('bank'), Card()))"),
    ("secret", "yield from read(len(list(map(Secret.reveal, [Secret('bank')]))))  # <-", "yield from read(Card().reveal())"),
    ("secret", "def shown(access: Access):\n    return access.token.reveal()  # <-\nyield from read(len(shown(ACCESS)))",
     "def shown(access: Access):\n    return access.card.reveal()\nyield from read(shown(ACCESS))"),
    ("secret", "token = ACCESS.token\nyield from read(len(token.reveal()))  # <-", "yield from read(len(ACCESS.token.name))"),
    ("environment", "yield from read(int(os.environ['N']))  # <-", "yield from read(int(os.path.join('1')))"),
    ("environment", "yield from read(int(os.getenv('N') or 0))  # <-", "from os import sep\nyield from read(len(sep))"),
    ("io", "with open('x') as file:  # <-\n    text = file.read()\nyield from read(len(text))", "opened = n\nyield from read(opened)"),
    ("io", "yield from read(len(Path('x').read_text()))  # <-", "yield from read(len(Path('x').name))"),
    ("io", "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')  # <-\nyield from read(1)",
     "from urllib.parse import quote\nyield from read(len(quote('x')))"),
    ("io", "import httpx\nhttpx.get('http://127.0.0.1')  # <-\nyield from read(1)", "import html\nhtml.escape('x')\nyield from read(1)"),
    ("io", "yield from read(int(os.path.exists('x')))  # <-", "yield from read(int(os.path.isabs('x')))"),
    ("io", "yield from read(len(str(Path.cwd())))  # <-", "yield from read(len(Path('x').parts))"),
    ("io", "os.remove('x')  # <-\nyield from read(1)", "name = os.path.basename('x')\nyield from read(1)"),
    ("output", "print('here')  # <-\nyield from read(1)", "yield from report('here')"),
    ("output", "log.info('here')  # <-\nyield from read(1)", "text = 'here'.upper()\nyield from read(1)"),
    ("async", "async def inner():  # <-\n    await asyncio.sleep(1)  # <-\nyield from read(1)", "def inner():\n    return 1\nyield from read(inner())"),
    ("async", "import threading\nthreading.Thread(target=print)  # <-\nyield from read(1)", "yield from all_(read(1), read(2))"),
    ("try", "try:  # <-\n    yield from read(1)\nfinally:\n    n += 1", "try:\n    m = int('1')\nexcept ValueError:\n    m = 0\nyield from read(m)"),
    ("try", "try:  # <-\n    yield from read(1)\nexcept Exception:\n    n += 1", "yield from read(1).attempt()"),
    ("try", "with contextlib.suppress(ValueError):  # <-\n    yield from read(1)", "with contextlib.suppress(ValueError):\n    int('x')\nyield from read(1)"),
    ("dropped", "read(1)  # <-\nyield from read(2)", "remember_not = read(1)\nyield from remember_not"),
    ("dropped", "unused = read(1).timeout('1s')  # <-\nyield from read(2)", "text = ', '.join(['a'])\nyield from read(len(text))"),
    ("dropped", "[read(i) for i in range(3)]  # <-\nyield from read(2)", "yield from all_(*[read(1), read(2)])"),
    ("dropped", "later(n)  # <-\nyield from read(2)", "pure_part(n)\nyield from read(2)"),
    ("dropped", "yield from read(2)\nsleep('1s')  # <-", "yield from read(2)\n', '.join(['x'])"),
    ("bare-yield", "yield read(1)  # <-\nyield from read(2)", "def numbers():\n    yield 1\nyield from read(sum(numbers()))"),
    ("bare-yield", "yield from [read(1), read(2)]  # <-", "def part(m):\n    return (yield from read(m))\nyield from part(1)"),
    ("flow-as-list", "for row in read(1):  # <-\n    pass\nyield from read(2)", "for row in range((yield from read(1))):\n    pass"),
    ("flow-as-list", "rows = [row for row in read(1)]  # <-\nyield from read(len(rows))", "rows = [read(i) for i in (1, 2)]\nyield from all_(*rows)"),
    ("flow-as-list", "rows = list(read(1))  # <-\nyield from read(len(rows))", "rows = list((yield from read(1)).items())\nyield from read(len(rows))"),
    ("set-order", "for i in {1, 2}:  # <-\n    yield from read(i)", "for i in sorted({1, 2}):\n    yield from read(i)"),
    ("set-order", "yield from each(set([1, 2]), read)  # <-", "yield from each(sorted(set([1, 2])), read)"),
    ("set-order", "rows = [i for i in {1, 2}]  # <-\nyield from read(rows[0])", "total = sum(i for i in {1, 2})\nyield from read(total)"),
    ("set-order", "names = {1, 2}\nrows = list(names)  # <-\nyield from read(rows[0])", "names = {1, 2}\nyield from read(1 if n in names else 0)"),
    ("loop-variable", "flows = []\nfor i in range(3):\n    flows.append(read(1).then(lambda a: read(a + i)))  # <-\nyield from each(flows, lambda f: f)",
     "flows = []\nfor i in range(3):\n    flows.append(read(1).then(lambda a, i=i: read(a + i)))\nyield from each(flows, lambda f: f)"),
    ("loop-variable", "yield from dag({str(i): node(read(1).catch(lambda e: read(i))) for i in range(3)})  # <-",
     "yield from dag({str(i): node(read(i).catch(lambda e: read(1))) for i in range(3)})"),
    ("loop-variable", "flows = [each([1], lambda a: read(a + i)) for i in range(3)]  # <-\nyield from each(flows, lambda f: f)",
     "for i in range(3):\n    yield from each([1], lambda a: read(a + i))"),
    ("loop-variable", "flows = []\nfor i in range(3):\n    def again(error):  # <-\n        return read(i)\n    flows.append(read(1).catch(again))\n"
     "yield from each(flows, lambda f: f)",
     "for i in range(3):\n    def again(error):\n        return read(i)\n    yield from read(1).catch(again)"),
    ("loop-variable", "flows = [read(1).ensure(lambda e: read(i)) for i in range(3)]  # <-\nyield from each(flows, lambda f: f)",
     "rows = []\nfor i in range(3):\n    rows.append(sorted([3, 1], key=lambda row: row - i))\n    step = read(1).catch(lambda e: read(i))\n    yield from step"),
    ("lost-in-iterate", "total = []\n@do\ndef turn(s: int) -> Steps[Any, Any]:\n    total.append((yield from read(s)))  # <-\n    return Done(s)\n"
     "yield from iterate(0, turn)",
     "@do\ndef turn(s: int) -> Steps[Any, Any]:\n    mine = []\n    mine.append((yield from read(s)))\n    return Done(s)\nyield from iterate(0, turn)"),
    ("lost-in-iterate", "count = 0\n@do\ndef turn(s: int) -> Steps[Any, Any]:\n    nonlocal count\n    count = yield from read(s)  # <-\n    return Done(s)\n"
     "yield from iterate(0, turn)",
     "count = 0\n@do\ndef part(s: int) -> Steps[Any, Any]:\n    nonlocal count\n    count = yield from read(s)\n    return Done(s)\nyield from part(0)"),
    ("lost-in-iterate", "found = {}\n@do\ndef turn(s: int) -> Steps[Any, Any]:\n    found[s] = yield from read(s)  # <-\n    return Done(s)\n"
     "yield from iterate(0, turn)",
     "found = {}\n@do\ndef turn(s: int) -> Steps[Any, Any]:\n    kept = {**found, s: (yield from read(s))}\n    return Done(len(kept))\n"
     "yield from iterate(0, turn)"),
    ("global-state", "yield from read(len(seen))  # <-", "yield from read(KINDS['a'])"),
    ("global-state", "KINDS['b'] = yield from read(1)  # <-", "kinds = dict(KINDS)\nkinds['b'] = yield from read(1)"),
    ("at-most-once", "yield from pay(1).retry(Retry.constant('1s', attempts=3))  # <-", "yield from pay(1).attempt()"),
    ("at-most-once", "yield from pay(1).retry(AFTER_ALL)  # <-", "yield from pay(1).retry(AFTER_BAD)"),
    ("at-most-once", "yield from pay_often(1)  # <-", "yield from pay_once(1)"),
    ("at-most-once", "yield from pay.using(retry=Retry.constant('1s', attempts=2))(1)  # <-", "yield from read(1).retry(Retry.constant('1s', attempts=3))"),
    ("no-timeout", "return (yield from news.receive())  # <-", "return (yield from news.receive().timeout('1h'))"),
    ("no-timeout", "yield from race(news.receive(), news.receive('x'))  # <-", "yield from race(news.receive(), sleep('1d'))"),
    ("no-timeout", "@do\ndef waits() -> Steps[Any, Any]:\n    return (yield from news.receive())  # <-\nyield from waits()",
     "@do\ndef waits() -> Steps[Any, Any]:\n    return (yield from news.receive())\nyield from waits().timeout('1h')"),
    ("no-timeout", "yield from read(1)\nyield from news.receive()  # <-", "yield from news.take()"),
    ("unbounded", "for i in range(n):\n    yield from child.start(Order(str(i), (), frozenset()))  # <-",
     "for i in range(n):\n    yield from child.child(Order(str(i), (), frozenset()))"),
    ("unbounded", "for i in range(n):\n    yield from child.start(Order(str(i), (), frozenset()))  # <-",
     "for i in range(n):\n    running = yield from child.start(Order(str(i), (), frozenset()))\n    yield from running.join()"),
    ("unbounded", "rows = yield from read(1)\nfor i in range(rows):\n    yield from child.start(Order('a', (), frozenset()), detached=True)  # <-",
     "for name in ('a', 'b'):\n    yield from child.start(Order(name, (), frozenset()))"),
    ("unbounded", "yield from all_(*[read(i) for i in range(n)])  # <-", "yield from each(range(n), read, concurrency=4)"),
    ("long-loop", "while True:  # <-\n    yield from read(1)\n    yield from sleep('1h')", "while True:\n    if (yield from read(1)):\n        return 1"),
    ("long-loop", "while (yield from read(1)):  # <-\n    yield from sleep('5s')", "while (yield from read(1)):\n    yield from sleep('15m')"),
    ("long-loop", "for i in range(100_000):  # <-\n    yield from read(i)", "for i in range(100):\n    yield from read(i)"),
    ("long-loop", "for i in itertools.count():  # <-\n    yield from read(i)",
     "for i in itertools.count():\n    if (yield from read(i)):\n        break"),
    ("long-loop", "while True:  # <-\n    for i in (1, 2):\n        yield from read(i)\n        break",
     "@do\ndef turn(s: int) -> Steps[Any, Any]:\n    yield from read(s)\n    return Next(s)\nyield from iterate(0, turn)"),
    ("long-loop", "@do\ndef polls() -> Steps[Any, Any]:\n    while (yield from read(1)):  # <-\n        yield from sleep('5s')\nyield from polls()",
     "@do\ndef polls() -> Steps[Any, Any]:\n    while (yield from read(1)):\n        yield from sleep('5s')\nyield from polls().timeout('10m')"),
    ("undo-missing", "yield from create(1).compensate(delete)\nyield from charge(1)  # <-\nyield from read(1)",
     "yield from create(1).compensate(delete)\nyield from read(1)\nyield from charge(1)"),
    ("undo-missing", "yield from create(1).compensate(delete)\nyield from page(1)  # <-\nyield from read(1)",
     "yield from create(1).compensate(delete)\nyield from charge(1).attempt()\nyield from read(1)"),
    ("undo-missing", "yield from create(1).compensate(delete)\nyield from charge(1)  # <-\nyield from read(1)",
     "yield from pure(1).compensate(delete)\nyield from create(1)\nyield from read(1)"),
    ("undo-missing", "yield from saga(create(1).compensate(delete).then(lambda a: charge(a)).then(lambda a: read(a)))  # <-",
     "yield from saga(create(1).compensate(delete))\nyield from charge(1)\nyield from read(1)"),
    ("undo-in-loop", "@do\ndef turn(s: int) -> Steps[Any, Any]:\n    yield from create(s).compensate(delete)  # <-\n    return Done(s)\n"
     "yield from iterate(0, turn)",
     "for i in range(3):\n    yield from create(i).compensate(delete)"),
    ("allow", "yield from read(1)  # flowdsl: allow clock\nprint('x')  # flowdsl: allow output because it is a demo",
     "at = datetime.now()  # flowdsl: allow clock because the answer is thrown away\nyield from read(1)"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "broken", "fine"), CASES, ids=[f"{rule}-{index}" for index, (rule, _, _) in enumerate(CASES)])
def test_a_rule_finds_what_breaks_it_and_nothing_else(rule: str, broken: str, fine: str, tmp_path: Path) -> None:
    found = linted(broken, tmp_path)
    text = Path(found[0].file).read_text().splitlines()
    marked = [number for number, line in enumerate(text, 1) if line.endswith("# <-")]
    mine = [one for one in found if one.rule == rule]
    if marked:
        assert [one.line for one in mine] == marked, found
    assert mine and {one.severity for one in mine} == {RULES[rule]}
    assert [str(one) for one in linted(fine, tmp_path)] == []


def test_every_rule_has_a_case() -> None:
    assert {rule for rule, _, _ in CASES} == set(RULES)


def passages() -> list[Workflow[Any, Any, Any]]:
    modules = (passages_enrichment, passages_erasure, passages_imports, passages_platform, passages_sync)
    return [value for module in modules for value in vars(module).values() if isinstance(value, Workflow)]


@pytest.mark.parametrize("flow", passages(), ids=lambda flow: flow.name)
def test_the_passages_are_clean(flow: Workflow[Any, Any, Any]) -> None:
    assert [str(one) for one in lint(flow)] == []


def test_the_sync_is_clean() -> None:
    assert [str(one) for one in lint(sync_deployment)] == []


# Where it looks


def test_functions_of_the_project_that_a_body_calls_are_read(tmp_path: Path) -> None:
    found = linted("yield from read(len(stamped(n)))", tmp_path)
    assert [(one.rule, one.function) for one in found] == [("clock", "stamped")]


def test_children_and_parts_and_lambdas_are_read(tmp_path: Path) -> None:
    head = """
@workflow("t.deep")
def deep(n: int) -> Steps[int, Bad]:
    return (yield from read(int(time.time())))

@do
def part(n: int) -> Steps[int, Bad]:
    yield from read(random.randint(1, 2))
    return (yield from deep.child(n))
"""
    found = linted("yield from part(n)\nyield from each([1], lambda i: read(int(os.environ['N'])))", tmp_path, head=head)
    assert [(one.rule, one.function) for one in found] == [("clock", "deep"), ("chance", "part"), ("environment", "body")]


def test_an_implementation_may_do_what_a_body_may_not(tmp_path: Path) -> None:
    assert linted("yield from read(1)", tmp_path, head="async def do_read(n):\n    print(datetime.now())\n    return Success(1)\n") == []


def test_a_set_in_the_input_is_one(tmp_path: Path) -> None:
    found = linted("for tag in order.tags:\n    yield from read(len(tag))", tmp_path, parameter="order: Order")
    assert [one.rule for one in found] == ["set-order"]
    assert linted("for part in order.parts:\n    yield from read(part)", tmp_path, parameter="order: Order") == []


def test_what_is_found_twice_is_told_once(tmp_path: Path) -> None:
    head = "@do\ndef part(n: int) -> Steps[int, Bad]:\n    return (yield from news.receive())\n"
    found = linted("yield from part(1)\nyield from part(2)\nyield from part(1).timeout('1s')", tmp_path, head=head)
    assert [one.rule for one in found] == ["no-timeout"]


# Silencing


@pytest.mark.parametrize(
    ("comment", "rules"),
    [
        ("# flowdsl: allow clock because the answer is thrown away", []),
        ("#flowdsl:allow clock because: it is a test", ["allow", "clock"]),
        ("# flowdsl: allow clock", ["allow", "clock"]),
        ("# flowdsl: allow clock because", ["allow", "clock"]),
        ("# flowdsl: allow chance because it is a test", ["allow", "clock"]),
        ("# flowdsl: allow klock because it is a test", ["allow", "clock"]),
        ("# flowdsl: allow because it is a test", ["allow", "clock"]),
        ("# clock is fine here", ["clock"]),
    ],
)
def test_a_comment_needs_a_rule_and_a_reason(comment: str, rules: list[str], tmp_path: Path) -> None:
    found = linted(f"at = datetime.now()  {comment}\nyield from read(1)", tmp_path)
    assert sorted(one.rule for one in found) == rules


def test_a_comment_of_its_own_line_speaks_of_the_next(tmp_path: Path) -> None:
    above = "# flowdsl: allow clock because the answer is thrown away\nat = datetime.now()\nyield from read(1)"
    assert linted(above, tmp_path) == []
    beside = "yield from read(2)  # flowdsl: allow clock because it is the line before\nat = datetime.now()\nyield from read(1)"
    assert sorted(one.rule for one in linted(beside, tmp_path)) == ["allow", "clock"]


def test_a_comment_in_a_text_is_none(tmp_path: Path) -> None:
    found = linted("at = datetime.now(), '# flowdsl: allow clock because it says so'\nyield from read(1)", tmp_path)
    assert [one.rule for one in found] == ["clock"]


def test_a_stale_comment_is_named(tmp_path: Path) -> None:
    found = linted("yield from read(1)  # flowdsl: allow clock because it was so once", tmp_path)
    assert [one.rule for one in found] == ["allow"]
    assert "take the comment away" in found[0].message


# What is told


def test_messages_say_what_to_do(tmp_path: Path) -> None:
    for _, broken, _ in CASES:
        for one in linted(broken, tmp_path):
            assert re.search(r":|,", one.message) and len(one.message) < 220, one.message
            assert Path(one.file).read_text().splitlines()[one.line - 1]


def test_lint_runs_nothing_and_imports_nothing(tmp_path: Path) -> None:
    found = linted("import httpx_of_nowhere\nhttpx_of_nowhere.get('x')\nyield from read(1 // 0)", tmp_path)
    assert found == []


def test_a_workflow_without_source_is_refused() -> None:
    space: dict[str, Any] = {"__name__": "prompt"}
    exec("from flowdsl import *\n@workflow('t.typed')\ndef typed(n: int) -> Steps[int, int]:\n    return (yield from pure(n))", space)
    with pytest.raises(DefinitionError, match="source cannot be read"):
        lint(space["typed"])
