"""Calls that give something else on each replay, or act on the world: in bodies, and in the functions of the project that they call."""

from __future__ import annotations

import ast
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any, Final, get_type_hints

from attrs import frozen

from flowdsl.definition import Activity, Workflow
from flowdsl.lint.finding import Finding, finding
from flowdsl.outline.source import Written, written
from flowdsl.secret import Secret

_NOW = "it differs in every replay: bind `yield from now()`"
_DRAWN = "it differs in every replay: bind `yield from random()` or `yield from uuid()`"
_OUTSIDE = "another worker answers otherwise: take it as input, or ask an activity"
_WORLD = "a body is replayed after every crash: do it in an activity"
_TWICE = "it is written again by every replay: bind `yield from report(…)`, which is shown once"
_HIDDEN = "its value would be part of the record: hand on the secret, whose name is recorded, and reveal it in an activity's implementation"
_LOOP = "a body has no event loop and no threads: `all_`, `each` and `race` run beside each other"

_EXACT: Final[dict[str, tuple[str, str]]] = {
    **dict.fromkeys(
        ("time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns", "time.process_time",
         "time.localtime", "time.gmtime", "time.ctime", "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today",
         "datetime.date.today"), ("clock", _NOW),
    ),
    "time.sleep": ("clock", "it blocks the worker and is no durable timer: bind `yield from sleep(…)`"),
    **dict.fromkeys(("uuid.uuid1", "uuid.uuid4", "uuid.uuid6", "uuid.uuid7", "uuid.getnode", "os.urandom", "os.getrandom"), ("chance", _DRAWN)),
    "builtins.hash": ("chance", "texts hash differently in every process: use `hashlib`"),
    "builtins.id": ("chance", "an address differs in every process: name things by a field of theirs"),
    **dict.fromkeys(("os.getenv", "os.getpid", "os.getcwd", "os.cpu_count", "os.uname", "os.getlogin", "socket.gethostname", "getpass.getuser"),
                    ("environment", _OUTSIDE)),
    **dict.fromkeys(("builtins.open", "io.open", "_io.open", "builtins.input", "sqlalchemy.create_engine"), ("io", _WORLD)),
    **dict.fromkeys((f"os.{name}" for name in ("listdir", "scandir", "remove", "unlink", "mkdir", "makedirs", "rename", "replace", "rmdir", "stat",
                     "walk", "system", "popen", "open", "read", "write", "kill", "chmod", "symlink", "link")), ("io", _WORLD)),
    **dict.fromkeys((f"{module}.{name}" for module in ("posixpath", "ntpath", "genericpath")
                     for name in ("exists", "isfile", "isdir", "getsize", "getmtime", "realpath")), ("io", _WORLD)),
    **dict.fromkeys((f"pathlib.Path.{name}" for name in ("read_text", "read_bytes", "write_text", "write_bytes", "open", "exists", "is_file",
                     "is_dir", "mkdir", "unlink", "iterdir", "glob", "rglob", "stat", "touch", "rename", "replace", "cwd", "home", "resolve")),
                    ("io", _WORLD)),
    "builtins.print": ("output", _TWICE),
}  # fmt: skip
_MODULES: Final[dict[str, tuple[str, str]]] = {
    "random": ("chance", _DRAWN),
    "secrets": ("chance", _DRAWN),
    "numpy.random": ("chance", _DRAWN),
    "platform": ("environment", _OUTSIDE),
    **dict.fromkeys(
        ("socket", "ssl", "urllib.request", "http.client", "requests", "httpx", "httpx2", "aiohttp", "urllib3", "asyncpg", "psycopg", "psycopg2",
         "sqlite3", "boto3", "botocore", "redis", "pymongo", "kafka", "grpc", "subprocess", "shutil", "tempfile", "smtplib", "ftplib", "glob"),
        ("io", _WORLD),
    ),
    **dict.fromkeys(("asyncio", "anyio", "trio", "threading", "concurrent.futures", "multiprocessing"), ("async", _LOOP)),
    **dict.fromkeys(("logging", "structlog", "loguru"), ("output", _TWICE)),
}  # fmt: skip
_HARMLESS: Final = ("URL", "Timeout", "Headers", "QueryParams", "Limits", "getLogger", "get_logger", "TimeoutError")


@frozen
class Names:
    """What the names in a function stand for, without running it: its imports and its surroundings; locals are not known."""

    around: Written
    imported: dict[str, Any]
    local: frozenset[str]

    def of(self, node: ast.expr) -> tuple[object, str]:
        """The object that an expression names, and its dotted name; `None` and nothing when it is not known."""
        match node:
            case ast.Name(name):
                value = self.imported.get(name, None if name in self.local else self.around.names.get(name))
                return value, _called(value)
            case ast.Attribute(ast.Call(function) as made, attribute):
                kind, name = self.of(function)
                return (None, f"{name}.{attribute}") if isinstance(kind, type) and not _seeded(name, made) else (None, "")
            case ast.Attribute(base, attribute):
                value, name = self.of(base)
                if isinstance(value, (ModuleType, type)):
                    found = inspect.getattr_static(value, attribute, None)
                    found = getattr(value, attribute, None) if isinstance(value, ModuleType) else found
                    return found, _called(found) if isinstance(found, (ModuleType, type)) or inspect.isfunction(found) else f"{name}.{attribute}"
                return None, f"{name}.{attribute}" if name else ""
            case _:
                return None, ""


def _called(value: object) -> str:
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(getattr(value, "__self__", None), random.Random):
        return f"random.{getattr(value, '__name__', '')}"
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__ or ''}.{value.__qualname__}".replace("pathlib._local.", "pathlib.")
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}" if value is not None and kind.__module__ != "builtins" else ""


def names_of(function: Written) -> Names:
    """What is known of the names in a function, those of functions around it included as local."""
    node = function.node
    imported: dict[str, Any] = {}
    local = {arg.arg for one in ast.walk(node) if isinstance(one, ast.arguments) for arg in (*one.posonlyargs, *one.args, *one.kwonlyargs)}
    local |= {arg.arg for one in ast.walk(node) if isinstance(one, ast.arguments) for arg in (one.vararg, one.kwarg) if arg is not None}
    local |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    local |= {one.name for one in ast.walk(node) if isinstance(one, (ast.MatchAs, ast.MatchStar, ast.ExceptHandler)) and one.name}
    for one in ast.walk(node):
        if isinstance(one, ast.Import):
            for alias in one.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                imported[alias.asname or name] = sys.modules.get(name) or _absent(name)
        elif isinstance(one, ast.ImportFrom) and one.module and not one.level:
            module = sys.modules.get(one.module)
            for alias in one.names:
                imported[alias.asname or alias.name] = getattr(module, alias.name, None) if module else _absent(f"{one.module}.{alias.name}")
    return Names(function, imported, frozenset(local - imported.keys()))


@cache
def _absent(name: str) -> ModuleType:
    """Stands for a module that is named but not loaded: lint imports nothing."""
    return ModuleType(name)


def impure(function: Written) -> Iterator[Finding]:
    """What a function must not call or read, its lambdas and inner functions included."""
    names = names_of(function)
    for node in ast.walk(function.node):
        if isinstance(node, ast.Call):
            _, name = names.of(node.func)
            verdict = _judged(name)
            if verdict is not None and not _seeded(name, node):
                rule, advice = verdict
                yield finding(rule, f"`{ast.unparse(node.func)}(…)`: {advice}", function.file, node.lineno, function.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            value, _ = names.of(node.value)
            if node.attr == "reveal" and _kind(names, node.value) in (None, Secret):
                yield finding("secret", f"`{ast.unparse(node)}`: {_HIDDEN}", function.file, node.lineno, function.name)
            if isinstance(value, ModuleType) and (value.__name__, node.attr) in (("os", "environ"), ("sys", "argv"), ("sys", "stdin")):
                yield finding("environment", f"`{ast.unparse(node)}`: {_OUTSIDE}", function.file, node.lineno, function.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            value, name = names.of(node)
            if name == "os._Environ":
                yield finding("environment", f"`{node.id}`: {_OUTSIDE}", function.file, node.lineno, function.name)


def _kind(names: Names, node: ast.expr) -> object | None:
    """The class of what an expression gives, by its annotations; `None` when they do not say."""
    match node:
        case ast.Name(name):
            hints = [one.annotation for one in ast.walk(names.around.node) if isinstance(one, ast.arg) and one.arg == name]
            found = names.of(hints[0])[0] if len(hints) == 1 and hints[0] is not None else names.around.names.get(name)
            return found if isinstance(found, type) or found is None else type(found)
        case ast.Attribute(base, attribute):
            holder = _kind(names, base)
            return _hint(holder, attribute, names) if isinstance(holder, type) else None
        case ast.Call(function):
            made, _ = names.of(function)
            return made if isinstance(made, type) else None
        case _:
            return None


def _hint(holder: type, attribute: str, names: Names) -> object | None:
    try:
        return get_type_hints(holder, localns=names.around.names).get(attribute)
    except (NameError, TypeError, AttributeError):  # a name that is there for checkers only
        return None


def _judged(name: str) -> tuple[str, str] | None:
    if not name or name.rpartition(".")[2] in _HARMLESS:
        return None
    if name in _EXACT:
        return _EXACT[name]
    module = name
    while module := module.rpartition(".")[0]:
        if module in _MODULES:
            return _MODULES[module]
        if module.startswith("_") and module[1:] in _MODULES:  # socket is written in _socket
            return _MODULES[module[1:]]
    return None


def _seeded(name: str, node: ast.Call) -> bool:
    """A generator with a seed draws the same each time."""
    return name == "random.Random" and bool(node.args or node.keywords)


def called(function: Written, project: str) -> Iterator[Callable[..., Any]]:
    """The functions of the project that a function calls."""
    names = names_of(function)
    for node in ast.walk(function.node):
        if isinstance(node, ast.Call):
            value, _ = names.of(node.func)
            if isinstance(value, (Activity, Workflow)) or not inspect.isfunction(value):
                continue
            module = str(inspect.unwrap(value).__module__)
            if module.partition(".")[0] == project and written(value) is not None:
                yield value


__all__ = ["Names", "called", "impure", "names_of"]
