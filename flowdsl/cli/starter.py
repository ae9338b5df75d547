"""`flowdsl new`: a project that one can read, test and run at once."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowdsl.cli.edge import JSON, Refusal, emit, only_json

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_LONGEST = 30
_END = ".template"
_FROM = ".flowdsl-from"
"""A file that git ignores: where flowdsl itself was installed from, if not from an index."""


@click.command(
    short_help="A starter project, with tests and a demo.",
    epilog="Exit codes: 0 it is there; 2 the name cannot be one, or something is in the way.",
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="NAME")
@JSON
def new(folder: Path, as_json: bool) -> None:
    """Makes a folder NAME with a small project in it: two workflows, what they need of the outside, tests, a schedule and a demo.

    It holds nothing that you could not have written. NAME may be a path, whose last part is the name. What is there already is never touched.
    """
    if as_json:
        only_json()
    name = folder.name
    package = _package(name)
    files = _written(folder, {"name": name, "package": package})
    if as_json:
        emit({"folder": str(folder), "package": package, "files": files})
        return
    click.echo(f"{folder}: {len(files)} files; {package}/orders.py is the one to read first")
    click.echo(f"next: cd {_quoted(folder)} && ./dev test && ./dev demo")


def _quoted(folder: Path) -> str:
    import shlex

    return shlex.quote(str(folder))


def _package(name: str) -> str:
    """The name to import it by. Raises `Refusal`."""
    import keyword
    from importlib.util import find_spec

    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:_LONGEST].strip("-")
        hint = f": did you mean {near}?" if _NAME.fullmatch(near) else ""
        raise Refusal(f"{name!r} cannot be the name: lower-case letters and digits, joined by - or _, at most {_LONGEST} of them{hint}")
    package = name.replace("-", "_")
    here = str(Path.cwd())
    if keyword.iskeyword(package) or package in sys.stdlib_module_names or package == "tests":
        raise Refusal(f"{name!r} cannot be the name: Python has something of that name; try my-{name[: _LONGEST - 3]}")
    installed = find_spec(package)
    if installed is not None and not (installed.origin or here).startswith(here):
        raise Refusal(f"{name!r} cannot be the name: a package of that name is installed ({installed.origin}), and it would be hidden; try my-{name}")
    return package


def _written(folder: Path, names: dict[str, str]) -> list[str]:
    """Writes all of it, or nothing. Gives the files. Raises `Refusal`."""
    import shutil
    from tempfile import mkdtemp

    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise Refusal(f"{folder} is there already: take another name, or move it away")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise Refusal(f"{folder} cannot be made: {error.strerror}") from None
    try:
        files = sorted(str(path) for path in _fill(made, names))
        made.chmod(0o777 & ~_umask())
        made.rename(folder)  # at once: who looks sees all of it or nothing, and of two that make it one is told
    except OSError as error:
        raise Refusal(f"{folder} cannot be made: {error.strerror}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return files


def _fill(made: Path, names: dict[str, str]) -> Iterator[Path]:
    from importlib.resources import files
    from string import Template

    for path, source in _templates(files("flowdsl") / "starter"):
        place = Path(*(names["package"] if part == "package" else part for part in path.parts))
        (made / place).parent.mkdir(parents=True, exist_ok=True)
        (made / place).write_text(Template(source.read_text(encoding="utf-8")).substitute(names), encoding="utf-8")
        if str(place) == "dev":
            (made / place).chmod(0o777 & ~_umask())
        yield place
    origin = _origin()
    if origin is not None:
        (made / _FROM).write_text(f"{origin}\n", encoding="utf-8")
        yield Path(_FROM)


def _templates(folder: Traversable, at: Path = Path()) -> Iterator[tuple[Path, Traversable]]:
    """Each file of the starter, and where it belongs. Their names end so that no tool takes them for code of ours."""
    for one in folder.iterdir():
        if one.is_dir():
            yield from _templates(one, at / one.name)
        elif one.name.endswith(_END):
            name = one.name.removesuffix(_END)
            yield at / (f".{name}" if name == "gitignore" else name), one


def _origin() -> str | None:
    """The address that this flowdsl was installed from, a checkout or a wheel; None when it came from an index."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        told = distribution("flowdsl").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    if told is None:
        return None
    facts = json.loads(told)
    if facts.get("dir_info", {}).get("editable"):
        return f"-e {url2pathname(urlsplit(facts['url']).path)}"
    commit = facts.get("vcs_info")
    return f"{commit['vcs']}+{facts['url']}@{commit['commit_id']}" if commit else str(facts["url"])


def _umask() -> int:
    import os

    mask = os.umask(0o077)
    os.umask(mask)
    return mask


COMMANDS = (new,)
"""What this module adds to the command line."""
