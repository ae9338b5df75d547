"""All commands at once: each has help, an answer for scripts and exit codes that are written down; and none is slow to say so."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flowdsl.cli import main

PROMISED = (
    "demo new dev serve worker start status list signal cancel retry journal graph lint compat repro dead-letters schedules keys migrate doctor"
    " export import bench"
)
WITHOUT_JSON = {
    "graph": "its answer is a picture; --format json is its outline",
    "repro": "its answer is a Python file",
    "export": "its answer is a JSON document by itself",
    "audit anchor": "its answer is one line that is to be kept elsewhere",
    "completion": "its answer is a script for a shell",
    "encryption new-key": "its answer is a line of the key file",
    "demo": "its options are those of the demo",
    "bench": "its options are those of the measurements, --json among them",
    "serve": "it goes on until it is stopped; --log-json is for who reads along",
    "dev": "the same",
}


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Each command that does something."""
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from leaves(one, (*path, name))
        if not (command.invoke_without_command and path):
            return
    yield " ".join(path), command


COMMANDS = dict(leaves(main))


def test_the_promised_commands_are_there() -> None:
    assert [name for name in PROMISED.split() if name not in main.commands] == []
    assert list(main.commands["dead-letters"].commands) == list(main.commands["dead"].commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_answers_scripts_or_says_why_not(name: str) -> None:
    has = any("--json" in one.opts for one in COMMANDS[name].params)
    assert has != (name in WITHOUT_JSON), WITHOUT_JSON.get(name, "give it JSON of flowdsl.cli.edge")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_that_says_how_it_ends(name: str) -> None:
    path = name.split()
    if path in (["demo"], ["bench"]):  # they hand --help on
        assert "Exit codes" in str(COMMANDS[name].epilog)
        return
    shown = CliRunner().invoke(main, [*path, "--help"])
    text = " ".join(shown.output.split())
    assert shown.exit_code == 0
    assert f"Usage: main {name}" in text and "Exit codes: 0 " in text
    assert COMMANDS[name].short_help or COMMANDS[name].help, "a line for the list of commands"


def test_help_and_completion_load_click_and_nothing_else_that_is_slow() -> None:
    slow = ["asyncio", "asyncpg", "attrs", "cattrs", "rich", "ssl", "structlog", "subprocess", "starlette", "tempfile", "uvloop", "watchfiles"]
    for arguments, variables in ((["--help"], {}), ([], {"_FLOWDSL_COMPLETE": "zsh_complete", "COMP_WORDS": "flowdsl sch", "COMP_CWORD": "1"})):
        code = f"""
import sys
from flowdsl.cli import main
before = set(sys.modules)
try:
    main({arguments}, prog_name="flowdsl")
finally:
    print(*(name for name in {slow} if name in sys.modules), file=sys.stderr)
"""
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True)
        assert done.stderr.split() == [] and "schedules" in done.stdout, done.stderr


@pytest.mark.parametrize(("command", "library"), [("serve", "starlette"), ("serve", "typed_settings"), ("dev", "watchfiles"), ("dev", "starlette")])
def test_what_an_extra_brings_is_named_with_the_extra(command: str, library: str, tmp_path: Path) -> None:
    """As in an environment without it."""
    code = f"import sys; sys.modules[{library!r}] = None; from flowdsl.cli import main; main([{command!r}, 'shop:deployment'])"
    (tmp_path / "shop.py").write_text("from flowdsl import Deployment\ndeployment = Deployment([])\n")
    variables = {**os.environ, "FLOWDSL_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2, f"flowdsl: {library} is not installed: pip install 'flowdsl[service]'\n")


# Completion


def script(shell: str) -> str:
    return subprocess.run([sys.executable, "-m", "flowdsl", "completion", shell], capture_output=True, text=True, check=True).stdout


def test_an_unknown_shell_is_named() -> None:
    done = CliRunner().invoke(main, ["completion", "tcsh"])
    assert done.exit_code == 2 and "'bash', 'zsh', 'fish'" in done.output


SHELLS = {
    "bash": ("bash", ["--norc", "--noprofile", "-i"], 'eval "$(flowdsl completion bash)"\n'),
    "zsh": ("zsh", ["-f", "-i"], 'autoload -Uz compinit; compinit -u -D\neval "$(flowdsl completion zsh)"\n'),
    "fish": ("fish", ["--no-config", "-i"], "flowdsl completion fish | source\n"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_completes(tmp_path: Path, shell: str) -> None:
    """Typed at its prompt, with the tab key."""
    program, options, prepare = SHELLS[shell]
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")
    (tmp_path / "flowdsl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flowdsl "$@"\n')
    (tmp_path / "flowdsl").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "xterm", "COLUMNS": "120", "LC_ALL": "C.UTF-8"}
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execvpe(program, [program, *options], variables)
    try:
        os.write(terminal, f"{prepare}echo rea''dy\n".encode())
        read(terminal, "\nready" if shell != "fish" else "ready\r\n")
        os.write(terminal, b"flowdsl sched\t")
        read(terminal, "schedules")
        os.write(terminal, b"trigg\t")
        read(terminal, "trigger")
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


def read(terminal: int, awaited: str) -> None:
    """Reads until it is there; a shell redraws its line, so what steers the terminal is left out."""
    said, until = "", time.monotonic() + 60
    while awaited not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r(?!\n)", "", said).replace("\r\n", "\n") and awaited not in said:
        assert time.monotonic() < until, said
        if select.select([terminal], [], [], 1)[0]:
            said += os.read(terminal, 65536).decode(errors="replace")
