"""What the README and the pages of docs/ show is run: each Python block as a script of its own, beside the hello.py that the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from flowdsl.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HELLO = [ROOT / "README.md", ROOT / "docs" / "tutorial.md"]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_every_block_runs(page: Path, tmp_path: Path) -> None:
    found = blocks(page)
    assert len(found) >= (2 if page in HELLO else 1)
    for number, block in enumerate(found):
        name = re.match(r"# (\w+\.py)\n", block)
        script = tmp_path / (name[1] if name else f"block_{number}.py")
        script.write_text(block, encoding="utf-8")
        # CI: Hypothesis sets no deadline for an example then. A machine that is busy is no failure.
        done = subprocess.run([sys.executable, script.name], cwd=tmp_path, env={**os.environ, "CI": "true"}, capture_output=True, text=True)
        assert done.returncode == 0, f"block {number} of {page.name}:\n{block}\n{done.stderr}"


def test_both_pages_show_the_same_hello() -> None:
    assert len({block for page in HELLO for block in blocks(page) if block.startswith("# hello.py")}) == 1


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


NAMED = re.compile(r"(?:(?<=`)|(?<=\$ )|(?<=\./dev )|^\s*)flowdsl (?:-[-\w]+ )*([a-z][\w-]*)([^`|;&#\n]*)", re.M)


def unknown(text: str) -> list[str]:
    """The commands and options in it that there are not."""
    found: list[str] = []
    for name, rest in NAMED.findall(text):
        command: click.Command | None = main.commands.get(name)
        words = rest.split()
        if isinstance(command, click.Group) and words and words[0] in command.commands:
            command = command.commands[words[0]]
        if command is None:
            found.append(name)
        elif name not in ("bench", "demo"):  # which hand on what they are given
            options = {"-h", "--help", *(one for each in command.params for one in (*each.opts, *each.secondary_opts))}
            found += [f"{name} {one}" for one in re.findall(r"(?<![\w-])--?[a-z][\w-]*", rest) if one not in options]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_and_option_that_is_named_exists(page: Path) -> None:
    assert unknown(page.read_text(encoding="utf-8")) == []


def test_what_does_not_exist_is_found() -> None:
    assert unknown("Run `flowdsl dance`, `flowdsl chaos --gently`,\n    $ flowdsl dead list --fast") == ["dance", "chaos --gently", "dead --fast"]
