"""The house rules, held by reading the code: who may import whom, what the pure parts must not touch, names, and traces of somebody's machine.

A rule takes the files of a tree and gives findings, `file:line: what is wrong`. Files that are not written yet break nothing. The last
tests plant a fault for every rule and look for it, because a rule that finds nothing looks just like a tree without faults.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from attrs import define, frozen

import flowdsl

ROOT = Path(__file__).resolve().parent.parent

ARROWS = ("flowdsl", "domains", "adapters", "tests")  # each may import those before it, never one after it

# Each file of `flowdsl` (or the folder it has grown into) imports only from levels above its own.
ORDER = [
    {"errors"},
    {"secret"},
    {"flow", "policy"},
    {"definition", "rule"},
    {"schedule"},
    {"binding"},
    {"machine"},
    {"codec"},
    {"journal"},
    {"activation"},
    {"operating"},
    {"compat"},
    {"outline"},
    {"lint"},
    {"budget"},
    {"attempt"},
    {"virtual"},
    {"story"},
    {"memory"},
    {"calendar", "collector"},
    {"chance", "threads"},
    {"hands"},
    {"host"},
    {"replay"},
    {"temporal"},
    {"postgres"},
    {"metrics", "tracing"},
    {"service"},
    {"testing"},
    {"bench"},
    {"cli", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
FRONT_DOOR = {"errors", "secret", "flow", "policy", "definition", "schedule", "binding"}  # what `flowdsl/__init__.py` hands on
LEVEL[""] = LEVEL["binding"] + 1  # `from flowdsl import Flow` loads all of these

LIBRARIES = {  # which modules may know a library
    "asyncpg": ("flowdsl.postgres", "adapters"),
    "starlette": ("flowdsl.service", "adapters"),
    "temporalio": ("flowdsl.temporal", "adapters.deployment"),
    "cattrs": ("flowdsl.codec", "adapters.deployment"),
    "cronsim": ("flowdsl.rule",),
    "prometheus_client": ("flowdsl.metrics", "flowdsl.service"),
    "opentelemetry": ("flowdsl.tracing",),
    "click": ("flowdsl.cli", "adapters"),
    "rich": ("flowdsl.cli", "adapters"),
}

PURE = (
    "domains",
    *(f"flowdsl.{name}" for name in ("flow", "policy", "definition", "rule", "schedule", "machine", "codec", "journal", "activation", "budget")),
)
IMPURE = {"time", "asyncio", "random", "structlog", "logging", "socket"}
CLOCKS = {"datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today"}

RUNTIME = ("flowdsl.postgres", "flowdsl.replay", "flowdsl.hands", "flowdsl.host", "flowdsl.attempt")
OUTSIDE_RUNTIME = ("flowdsl.postgres.embedded", "flowdsl.postgres.deep", "flowdsl.postgres.audit")  # servers of our own, and what people ask
SEAMED = {"time", "random", "threading", "concurrent"}
SEAMED_BUT = {"threading.get_ident"}
SEAMED_CALLS = {"os.urandom", "uuid.uuid1", "uuid.uuid4", "uuid4", "asyncio.to_thread", "datetime.datetime.now", "datetime.datetime.utcnow"}

IO_LIBRARIES = ["asyncio", "asyncpg", "click", "httpx2", "rich", "socket", "sqlite3", "ssl", "starlette", "structlog", "temporalio", "uvicorn"]

VAGUE_FILES = {"utils", "util", "common", "helpers", "helper", "types", "base"}
VAGUE_CLASSES = ("Manager", "Engine", "Handler", "Context", "Executor")

# Written so that none of these lines matches itself.
TRACES = {
    r"(?<![\w.})-])/wor[k]/": "a path of the machine it was written on",
    r"(?<![\w.})-])/roo[t]/(?!\.cache\b)": "a path of the machine it was written on",
    r"(?<![\w.})-])/(?:home|Users)/(?!app\b|flowdsl\b|you\b)\w": "somebody's home folder",
    r"\bfile:/[/]+\w": "the address of a local file",
    r"https?://\S+/simpl[e]\b": "the address of a package registry",
    r"\bfiles[.]python[h]osted\b": "the host of a package registry",
}


@frozen
class Import:
    line: int
    module: str
    """Absolute and dotted; with `from a import b`, `a.b`."""
    source: str
    """The `a` of it: the module that is loaded for sure."""
    hint: bool
    """Under `if TYPE_CHECKING`: never executed."""


@define(slots=False)
class Source:
    """One Python file: where it is, and what it says."""

    path: str
    text: str

    @cached_property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def imports(self) -> list[Import]:
        return list(self._imports(self.tree, hint=False))

    def _imports(self, node: ast.AST, *, hint: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, alias.name, hint) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = self._absolute(node)
            yield from (Import(node.lineno, f"{source}.{alias.name}", source, hint) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for guarded in node.body:
                yield from self._imports(guarded, hint=True)
            for other in node.orelse:
                yield from self._imports(other, hint=hint)
        else:
            for child in ast.iter_child_nodes(node):
                yield from self._imports(child, hint=hint)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.path.split("/")[: -node.level]
        return ".".join([*package, *([node.module] if node.module else [])])


Rule = Callable[[Source], Iterator[tuple[int, str]]]


def within(module: str, *places: str) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def member(module: str) -> str:
    """`postgres` of `flowdsl.postgres.store`; of `flowdsl` itself, or of a name it hands on, nothing."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else ""


def arrows(file: Source) -> Iterator[tuple[int, str]]:
    """adapters → domains → flowdsl, never back."""
    here = ARROWS.index(file.path.split("/")[0])
    for found in file.imports:
        top = found.module.split(".")[0]
        if top in ARROWS[here + 1 :]:
            yield found.line, f"{ARROWS[here]} must not import {top} ({found.module})"


def order(file: Source) -> Iterator[tuple[int, str]]:
    """Inside flowdsl a file imports only from files above it; a hint for type checkers is not an import."""
    if not within(file.module, "flowdsl") or file.module == "flowdsl":
        return
    name = file.module.split(".")[1]
    if name not in LEVEL:
        yield 1, f"flowdsl/{name} has no place in ORDER of tests/test_house.py: give it one"
        return
    for found in file.imports:
        other = member(found.module)
        if found.hint or not within(found.module, "flowdsl") or other == name:
            continue
        if LEVEL[other] > LEVEL[name]:
            yield found.line, f"{name} must not import {found.module}: it stands below"


def front_door(file: Source) -> Iterator[tuple[int, str]]:
    """`flowdsl/__init__.py` re-exports the description language, each name when it is asked for, and holds no other code."""
    if file.path != "flowdsl/__init__.py":
        return
    for found in file.imports:
        if within(found.module, "flowdsl") and member(found.module) not in FRONT_DOOR:
            yield found.line, f"the front door hands on {', '.join(sorted(FRONT_DOOR))} only, not {found.module}"
    for statement in file.tree.body:
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        dunder = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) in ("__all__", "_HOMES", "_HOME")
        lazy = isinstance(statement, ast.If | ast.FunctionDef) and ast.unparse(statement).startswith(
            ("if TYPE_CHECKING", "def __getattr__", "def __dir__")
        )
        if not (docstring or dunder or lazy or isinstance(statement, ast.Import | ast.ImportFrom)):
            yield statement.lineno, "the front door only re-exports"


def test_the_front_door_says_the_same_to_checkers_and_at_run_time() -> None:
    tree = ast.parse((ROOT / "flowdsl" / "__init__.py").read_text("utf-8"))
    (block,) = [statement for statement in tree.body if isinstance(statement, ast.If)]
    checked = {(str(found.module), alias.name) for found in block.body if isinstance(found, ast.ImportFrom) for alias in found.names}
    assert {(home, name) for home, names in flowdsl._HOMES.items() for name in names} == checked
    assert {name for _, name in checked} == set(flowdsl.__all__) <= set(dir(flowdsl))
    for home, name in checked:
        assert getattr(flowdsl, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flowdsl.nothing


def libraries(file: Source) -> Iterator[tuple[int, str]]:
    """Each library that reaches outside is known in one place."""
    for found in file.imports:
        library = found.module.split(".")[0]
        if library in LIBRARIES and not within(file.module, *LIBRARIES[library], "tests"):
            yield found.line, f"{library} belongs to {' and '.join(LIBRARIES[library])}"


def purity(file: Source) -> Iterator[tuple[int, str]]:
    """The description, the machine and the domains never log, read a clock, draw a number or await."""
    if not within(file.module, *PURE):
        return
    for found in file.imports:
        if found.module.split(".")[0] in IMPURE:
            yield found.line, f"{file.module} is pure: no {found.module.split('.')[0]}"
    known = names(file)
    for node in ast.walk(file.tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield node.lineno, f"{file.module} is pure: nothing async"
        elif isinstance(node, ast.comprehension) and node.is_async:
            yield node.iter.lineno, f"{file.module} is pure: nothing async"
        elif isinstance(node, ast.Attribute):
            head, _, rest = ast.unparse(node).partition(".")
            if f"{known.get(head, head)}.{rest}" in CLOCKS:
                yield node.lineno, f"{file.module} is pure: it reads no clock ({ast.unparse(node)})"


def names(file: Source) -> dict[str, str]:
    """What a name at hand stands for: `dt` → `datetime.datetime`."""
    known: dict[str, str] = {}
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return known


def seams(file: Source) -> Iterator[tuple[int, str]]:
    """The runtime's time is its event loop's, its chance is `flowdsl.chance`'s, its threads are `flowdsl.threads`': a simulation has others there."""
    if not within(file.module, *RUNTIME) or within(file.module, *OUTSIDE_RUNTIME):
        return
    for found in file.imports:
        if found.source.split(".")[0] in SEAMED and found.module not in SEAMED_BUT:
            yield found.line, f"{file.module} is simulated: no {found.module}, ask the loop's clock, `flowdsl.chance` or `flowdsl.threads`"
    known = names(file)
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Attribute):
            head, _, rest = ast.unparse(node).partition(".")
            if f"{known.get(head, head)}.{rest}" in SEAMED_CALLS:
                yield node.lineno, f"{file.module} is simulated: no {ast.unparse(node)}"


def vague_names(file: Source) -> Iterator[tuple[int, str]]:
    """A name says what is inside: no utils, no managers."""
    for part in file.path.removesuffix(".py").split("/"):
        if part in VAGUE_FILES:
            yield 1, f"{part} says nothing about what is inside"
    for node in ast.walk(file.tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith(VAGUE_CLASSES):
            yield node.lineno, f"class {node.name}: say what it is, not that it manages"


RULES: list[Rule] = [arrows, order, front_door, libraries, purity, seams, vague_names]


def findings(root: Path, rule: Rule) -> list[str]:
    files = [Source(str(path.relative_to(root)), path.read_text("utf-8")) for top in ARROWS for path in sorted((root / top).rglob("*.py"))]
    return [f"{file.path}:{line}: {what}" for file in files for line, what in sorted(set(rule(file)))]


def tracked(root: Path) -> list[Path]:
    """What git keeps or is about to; without git, every file outside hidden and made folders."""
    try:
        command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        return [root / name for name in listed if name and (root / name).is_file()]
    except (OSError, subprocess.CalledProcessError):
        made = re.compile(r"/(?:\.(?!ci/|github/|gitignore)|__pycache__/|build/|dist/)")
        return [path for path in root.rglob("*") if path.is_file() and not made.search(f"/{path.relative_to(root)}")]


def own_registries() -> set[str]:
    """Hosts and folders this machine is told to install from: nobody else's business."""
    told = [value for name, value in os.environ.items() if re.fullmatch(r"(PIP|UV)_.*(INDEX|LINKS).*", name) for value in value.split()]
    places = {f"{address.hostname or ''}{address.path.rstrip('/')}" for address in map(urlsplit, told)}
    return {place for place in places if len(place) > 4}


def traces(root: Path) -> list[str]:
    patterns = {re.compile(pattern): what for pattern, what in TRACES.items()}
    patterns |= {re.compile(re.escape(place)): "where this machine installs from" for place in own_registries()}
    found = []
    for path in sorted(tracked(root)):
        text = path.read_bytes()
        if b"\0" in text:
            continue
        for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
            found += [f"{path.relative_to(root)}:{number}: {what}" for pattern, what in patterns.items() if pattern.search(line)]
    return found


def loose_pins(text: str) -> list[str]:
    """Lines of a constraints file that say more than a name, a version and a marker."""
    pin = re.compile(r"[a-z0-9][a-z0-9._-]*==[0-9][\w.+!]*( ; [^/@]+)?")
    return [f"constraints.txt:{number}: {line}" for number, line in enumerate(text.splitlines(), 1) if not pin.fullmatch(line)]


@pytest.mark.shows("S4.13")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_code_keeps(rule: Rule) -> None:
    found = findings(ROOT, rule)
    assert not found, "\n".join([str(rule.__doc__), *found])


def test_no_trace_of_a_machine() -> None:
    found = traces(ROOT)
    assert not found, "\n".join(found)


def test_pins_are_names_and_versions() -> None:
    found = loose_pins((ROOT / "constraints.txt").read_text())
    assert not found, "\n".join(found)
    locks = [path.name for path in tracked(ROOT) if path.name == "uv.lock" or re.fullmatch(r"pylock.*\.toml", path.name)]
    assert not locks, f"{locks} write down registry addresses; constraints.txt takes their place"


def test_importing_flowdsl_loads_no_io_library() -> None:
    code = f"import flowdsl, sys; print(*(name for name in {IO_LIBRARIES} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"`import flowdsl` loads {done.stdout}"


PLANTED = [
    # rule, file, text, line of the finding, a word of it
    (arrows, "flowdsl/flow.py", "import re\nfrom domains.sync import values\n", 2, "domains"),
    (arrows, "flowdsl/cli.py", "def main():\n    import adapters.demo\n", 2, "adapters"),
    (arrows, "domains/sync/workflows.py", "import re\nfrom ...adapters import http\n", 2, "adapters"),
    (arrows, "adapters/demo.py", "import re\nimport tests.flowdsl\n", 2, "tests"),
    (order, "flowdsl/errors.py", "import re\nfrom flowdsl.flow import Flow\n", 2, "flow"),
    (order, "flowdsl/flow.py", "import re\nfrom flowdsl import machine\n", 2, "machine"),
    (order, "flowdsl/machine.py", "import re\nfrom .journal import Entry\n", 2, "journal"),
    (order, "flowdsl/policy.py", "import re\nfrom flowdsl import Flow\n", 2, "flowdsl.Flow"),
    (order, "flowdsl/memory.py", "import re\nimport flowdsl.postgres.store\n", 2, "postgres"),
    (order, "flowdsl/postgres/store.py", "import re\nfrom ..service.app import app\n", 2, "service"),
    (order, "flowdsl/postgres/sql/plan.py", "import re\nfrom ...testing import laws\n", 2, "testing"),
    (order, "flowdsl/novelty.py", "", 1, "novelty"),
    (front_door, "flowdsl/__init__.py", "'''Text.'''\nfrom flowdsl.memory import run\n", 2, "memory"),
    (front_door, "flowdsl/__init__.py", "'''Text.'''\n\ndef helper(): ...\n", 3, "re-exports"),
    (libraries, "flowdsl/replay.py", "import re\nimport asyncpg.pool\n", 2, "asyncpg"),
    (libraries, "domains/sync/activities.py", "if True:\n    from asyncpg import Pool\n", 2, "asyncpg"),
    (libraries, "flowdsl/postgres/worker.py", "import re\nfrom starlette.routing import Route\n", 2, "starlette"),
    (libraries, "adapters/crm/http.py", "import re\nimport temporalio.client\n", 2, "temporalio"),
    (libraries, "flowdsl/journal.py", "import re\nfrom cattrs import Converter\n", 2, "cattrs"),
    (libraries, "flowdsl/lint.py", "import re\nimport click\n", 2, "click"),
    (libraries, "flowdsl/service/app.py", "import re\nfrom rich import print\n", 2, "rich"),
    (purity, "flowdsl/machine.py", "import re\nimport time\n", 2, "time"),
    (purity, "flowdsl/machine/steps.py", "import re\nimport asyncio.tasks\n", 2, "asyncio"),
    (purity, "flowdsl/codec.py", "import re\nfrom random import choice\n", 2, "random"),
    (purity, "flowdsl/activation.py", "import re\nimport structlog\n", 2, "structlog"),
    (purity, "domains/sync/values.py", "import re\nimport logging as log\n", 2, "logging"),
    (purity, "domains/sync/values.py", "import re\nimport socket\n", 2, "socket"),
    (purity, "flowdsl/journal.py", "from datetime import datetime as dt\nat = dt.now()\n", 2, "clock"),
    (purity, "flowdsl/policy.py", "import datetime\nat = datetime.datetime.utcnow()\n", 2, "clock"),
    (purity, "domains/sync/values.py", "from datetime import date\ntoday = date.today\n", 2, "clock"),
    (purity, "domains/sync/workflows.py", "import re\nasync def body(): ...\n", 2, "async"),
    (purity, "flowdsl/flow.py", "def f(x):\n    return [a async for a in x]\n", 2, "async"),
    (seams, "flowdsl/postgres/worker.py", "import re\nimport time\n", 2, "time"),
    (seams, "flowdsl/postgres/committer.py", "import re\nfrom random import random\n", 2, "random"),
    (seams, "flowdsl/postgres/heart.py", "import re\nimport threading\n", 2, "threading"),
    (seams, "flowdsl/replay.py", "import asyncio\nwork = asyncio.to_thread\n", 2, "to_thread"),
    (seams, "flowdsl/postgres/starting.py", "import os\nid = os.urandom(16)\n", 2, "urandom"),
    (vague_names, "flowdsl/postgres/utils.py", "", 1, "utils"),
    (vague_names, "domains/common/values.py", "", 1, "common"),
    (vague_names, "adapters/types/__init__.py", "", 1, "types"),
    (vague_names, "flowdsl/replay.py", "import re\nclass RunManager: ...\n", 2, "RunManager"),
    (vague_names, "flowdsl/service/api.py", "def f():\n    class _ErrorHandler: ...\n", 2, "_ErrorHandler"),
]


def plant(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(("rule", "path", "text", "line", "word"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_fault_is_named(tmp_path: Path, rule: Rule, path: str, text: str, line: int, word: str) -> None:
    plant(tmp_path, path, text)
    found = findings(tmp_path, rule)
    assert len(found) == 1
    assert found[0].startswith(f"{path}:{line}: ")
    assert word in found[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("flowdsl/flow.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from flowdsl.definition import Workflow\n"),
        ("flowdsl/flow.py", "from datetime import datetime\nfrom flowdsl.policy import Retry\ndef now(): ...\nat = now()\n"),
        ("flowdsl/policy.py", "from flowdsl.flow import Flow\n"),
        ("flowdsl/__init__.py", "'''Text.'''\nfrom flowdsl.flow import Flow\n__all__ = ['Flow']\n"),
        ("flowdsl/machine.py", "from flowdsl import Flow\nfrom . import errors\n"),
        ("flowdsl/postgres/store.py", "import asyncio\nimport asyncpg\nfrom .embedded import start\nfrom flowdsl.replay import advance\n"),
        ("flowdsl/temporal.py", "from temporalio import workflow\n"),
        ("flowdsl/cli.py", "import click\nimport rich.live\n"),
        ("domains/sync/workflows.py", "import flowdsl as f\nfrom domains.sync import values\nat = f.now()\n"),
        ("adapters/deployment.py", "import asyncpg, cattrs, click, starlette, temporalio\nfrom domains import sync\n"),
        ("tests/postgres/test_store.py", "import asyncio, asyncpg, random\n"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, path: str, text: str) -> None:
    plant(tmp_path, path, text)
    assert [found for rule in RULES for found in findings(tmp_path, rule)] == []


def test_a_planted_trace_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://user@mirror.example.net/stable")
    work, home = "wor" + "k", "ho" + "me"
    plant(tmp_path, "docs/a.md", f"fine\ncd /{work}/main\n")
    plant(tmp_path, "docs/b.md", f"fine\nopen('/{home}/ada/notes')\n")
    plant(tmp_path, ".ci/run", "fine\npip install -i https://pip.example.org/" + "simple x\n")
    plant(tmp_path, "docs/c.md", "fine\nwheels from mirror.example.net/stable/x\n")
    plant(tmp_path, "docs/d.md", f"https://example.org/{work}/ and net{work}/ and /{home}work are fine\n")
    plant(tmp_path, ".venv/lib/e.txt", f"/{work}/main\n")
    assert [found.rsplit(":", 1)[0] for found in traces(tmp_path)] == [".ci/run:2", "docs/a.md:2", "docs/b.md:2", "docs/c.md:2"]


def test_a_planted_pin_is_named() -> None:
    good = "attrs==26.1.0\ncolorama==0.4.6 ; sys_platform == 'win32'\n"
    assert loose_pins(good) == []
    assert [line.split(" ")[0] for line in loose_pins(good + "click @ https://example.org/click.whl\nrich>=13\n-e .\n")] == [
        "constraints.txt:3:",
        "constraints.txt:4:",
        "constraints.txt:5:",
    ]
