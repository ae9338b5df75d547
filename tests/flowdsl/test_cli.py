"""The command line as a person and a script meet it: mostly real processes, over a real database."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from flowdsl.cli.edge import Refusal, database_of, shown
from flowdsl.cli.loading import load, read_input, workflow_of
from flowdsl.errors import NotFound, StoreError
from flowdsl.postgres.choice import named
from flowdsl.postgres.store import shown_dsn

WORK = """
import asyncio
import subprocess
from os.path import exists
from typing import Never
from attrs import frozen
from flowdsl import Deployment, Failure, Result, Steps, Success, activity, bind, each, fail, report, signal, sleep, workflow

print("a module that prints")

@frozen
class Bad:
    why: str

@frozen
class Order:
    name: str
    parts: tuple[int, ...] = ()

@activity("work.note")
def note(number: int) -> Result[int, Never]: ...

@workflow("work.count", reuse="after_close")
def count(until: int) -> Steps[int, Never]:
    for number in range(until):
        yield from note(number)
        yield from report("counting", done=number + 1, total=until)
        yield from sleep("50ms")
    return until

@workflow("work.once", reuse="reject")
def once(until: int) -> Steps[int, Never]:
    return (yield from count(until))

@workflow("work.part", key="{name}")
def part(order: Order) -> Steps[int, Never]:
    yield from each(order.parts, lambda n: part.child(Order(f"{order.name}.{n}")))
    yield from report(f"[bold]part[/] {order.name}\\x1b[31m")
    yield from sleep("300ms")
    return len(order.parts)

@workflow("work.tree")
def tree(order: Order) -> Steps[int, Never]:
    yield from each(order.parts, lambda n: part.child(Order(f"{order.name}-{n}", (1, 2))))
    return len(order.parts)

go = signal("go", str)

@workflow("work.wait")
def waits(_: int) -> Steps[str, Never]:
    return (yield from go.receive())

@workflow("work.refuse")
def refuse(why: str) -> Steps[int, Bad]:
    yield from fail(Bad(why))
    return 1

@frozen
class Missing:
    name: str

    def __str__(self) -> str:
        return f"there is no {self.name}: make one"

@workflow("work.miss")
def miss(name: str) -> Steps[int, Missing]:
    yield from fail(Missing(name))
    return 1

@workflow("work.crash")
def crash(_: int) -> Steps[int, Never]:
    yield from note(0)
    raise ValueError("a bug")

@activity("work.linger")
def linger(_: int) -> Result[int, Never]: ...

@workflow("work.slow")
def slow(_: int) -> Steps[int, Never]:
    yield from note(1)
    return (yield from linger(1))

async def do_linger(_: int) -> Result[int, Never]:
    open("lingers", "w").close()
    await asyncio.sleep(60)
    return Success(1)

async def do_note(number: int) -> Result[int, Never]:
    while number == 5 and exists("held"):
        await asyncio.sleep(0.02)
    print("an activity that prints")
    subprocess.run(["echo", "a process that prints"], check=True)
    with open("noted.txt", "a") as file:
        file.write(f"{number}\\n")
    return Success(number)

deployment = Deployment(workflows=[count, once, tree, waits, refuse, miss, crash, slow], bindings=[bind(note, do_note), bind(linger, do_linger)])
"""


@pytest.fixture
def folder(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work.py").write_text(WORK)
    monkeypatch.setenv("FLOWDSL_DATABASE_URL", database)
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flowdsl", *arguments]


def flowdsl(folder: Path, *arguments: str, said: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    return subprocess.run(command(*arguments), cwd=folder, input=said, capture_output=True, text=True, env=variables, timeout=120)


def document(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.stdout.count("\n") == 1, f"not one line: {done.stdout!r} {done.stderr}"
    return json.loads(done.stdout)


def eventually(true: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.05)


def until_said(lines: IO[str], what: str) -> str:
    """What was said, up to the line in which that is."""
    said = ""
    for line in lines:
        said += line
        if what in line:
            return said
    raise AssertionError(f"it never said {what!r}: {said}")


def noted(folder: Path) -> int:
    file = folder / "noted.txt"
    return len(file.read_text().split()) if file.exists() else 0


# Which database


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("FLOWDSL_DATABASE_URL", "DATABASE_URL", "PGHOST", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_names_the_database_first_wins_and_says_why(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def won() -> tuple[str, str]:
        choice = named()
        assert choice is not None
        assert choice.why
        return choice.dsn, choice.source

    assert named() is None
    monkeypatch.setenv("DATABASE_URL", "postgresql://another/application")
    assert named() is None, "that one belongs to somebody else"
    monkeypatch.setenv("PGHOST", "db.example")
    assert won() == ("postgresql://", "the environment (PGHOST=db.example and its like)")
    monkeypatch.setenv("PGSERVICE", "a service")
    assert won()[0] == "postgresql://?service=a%20service"
    (nowhere / "flowdsl.toml").write_text('[database]\nurl = "postgresql://file/x"')
    assert won()[0] == "postgresql://file/x"
    assert "flowdsl.toml" in won()[1]
    monkeypatch.setenv("FLOWDSL_DATABASE_URL", "postgresql://environment/x")
    assert won() == ("postgresql://environment/x", "the environment (FLOWDSL_DATABASE_URL)")
    said = named("postgresql://said/x")
    assert said is not None
    assert (said.dsn, said.source) == ("postgresql://said/x", "--database")
    with pytest.raises(StoreError, match="--database is empty"):
        named("")


@pytest.mark.parametrize("text", ["[database\n", "[database]\nurl = 5", 'database = "postgresql://x"', "\xff"])
def test_a_flowdsl_toml_that_cannot_be_is_refused(nowhere: Path, text: str) -> None:
    (nowhere / "flowdsl.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=r"flowdsl\.toml.*Write \[database\]"):
        named()


@pytest.mark.parametrize("text", ["", "[server]\nport = 1", "[database]\n"])
def test_a_flowdsl_toml_that_names_no_database_is_passed_over(nowhere: Path, text: str) -> None:
    (nowhere / "flowdsl.toml").write_text(text)
    assert named() is None


@pytest.mark.parametrize(
    "dsn",
    ["postgresql://u:secret@h/d", "postgresql://u:sec@ret@h/d", "postgresql://u:s/secret@h/d", "postgresql://u@/d?host=/x&password=secret&port=1"],
)
def test_a_password_is_never_shown(dsn: str) -> None:
    assert "ret" not in shown_dsn(dsn)


# Loading


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module into the current folder and gives its name."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(text: str) -> str:
        name = f"loaded_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("loaded_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import flowdsl\n\ndef broken(:\n", "{name}.py:3: SyntaxError: invalid syntax"),
        ("\n\nraise ValueError('half done')\n", "{name}.py:3: ValueError: half done"),
        ("import json\n\njson.loads('x')\n", "{name}.py:3: JSONDecodeError"),
        ("import not_there\n", "{name}.py:1: No module named 'not_there'"),
        ("from flowdsl import nothing_such\n", "{name}.py:1: ImportError: cannot import name 'nothing_such'"),
        ("import sys\nsys.exit('bye')\n", "{name}.py:2: SystemExit: bye"),
        ("from flowdsl import workflow\n\n@workflow('w')\ndef w(x: int): return 1\n", "{name}.py:3: w: its body is not a generator function"),
        (
            "from typing import Never\nfrom flowdsl import *\n@activity('a')\ndef a(x: int) -> Result[int, Never]: ...\n"
            "@workflow('w')\ndef w(x: int) -> Steps[int, Never]:\n    return (yield from a(x))\nd = Deployment(workflows=[w])\n",
            "{name}.py:8: this deployment cannot run: activity a has no implementation",
        ),
        ("from flowdsl import Deployment\nmine = Deployment(workflows=[])\n", "{name} has no 'deployment': did you mean {name}:mine?"),
        ("deployment = 1\n", "{name} has 'deployment', but it is of class int, no Deployment"),
    ],
)
def test_a_module_that_cannot_be_used_is_told_with_its_place(module: Callable[[str], str], text: str, says: str) -> None:
    name = module(text)
    with pytest.raises(Refusal) as refusal:
        load(name)
    assert says.format(name=name) in refusal.value.message
    assert refusal.value.exit_code == 2


def test_a_name_that_is_nearly_right_is_offered(module: Callable[[str], str]) -> None:
    name = module("from flowdsl import Deployment\ndeployment = Deployment(workflows=[])\n")
    for wrong in (f"{name[:-1]}:deployment", f"{name}.py", f"./{name}.py:deployment", f"{name}:deploymnt"):
        with pytest.raises(Refusal, match=f"did you mean {name}:deployment"):
            load(wrong)
    assert load(f"{name}:deployment") is load(name)


def test_a_wrong_input_names_each_field(module: Callable[[str], str], tmp_path: Path) -> None:
    deployment = load(module(WORK))
    tree, count = workflow_of(deployment, "work.tree"), workflow_of(deployment, "work.count")
    (tmp_path / "order.json").write_text('{"name": "a", "parts": [1]}')
    assert read_input("@order.json", tree) == read_input('{"name":"a","parts":[1]}', tree)
    for workflow, text, problems in (
        (tree, '{"name":1,"parts":["x",2],"wat":3}', ["input.name: expected str, got the number 1", "input.parts[0]: expected int", "input.wat:"]),
        (tree, "{}", ["input.name"]),
        (count, "true", ["input: expected int, got true"]),
        (count, "{'a'", ["expected JSON", """got "{'a'\""""]),
        (count, "@missing.json", ["missing.json cannot be read: No such file"]),
        (count, None, ["work.count needs an input: give it with --input"]),
    ):
        with pytest.raises(Refusal) as refusal:
            read_input(text, workflow)
        for problem in problems:
            assert problem in refusal.value.message
    with pytest.raises(Refusal, match=r"did you mean work\.tree\? Known: work\.count"):
        workflow_of(deployment, "work.tre")
    with pytest.raises(NotFound):
        workflow_of(deployment, "nothing like it")


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    assert shown("a\x1b[31m\n\x9b\ud800é") == "a\\x1b[31m\\n\\x9b\\ud800é"


# Speed


def test_help_loads_click_and_nothing_else_that_is_slow(tmp_path: Path) -> None:
    slow = ["asyncio", "asyncpg", "cattrs", "rich", "ssl", "structlog", "subprocess", "uvloop"]
    code = f"import flowdsl.cli, sys; print(*(name for name in {slow} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [], done.stderr


@pytest.mark.parametrize("name", ["run", "worker", "start", "status", "list", "journal", "cancel", "migrate", "doctor"])
def test_each_command_has_help_and_json(tmp_path: Path, name: str) -> None:
    done = flowdsl(tmp_path, name, "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout
    assert "--database" in done.stdout


# Run


def test_with_json_nothing_else_is_on_stdout(folder: Path) -> None:
    done = flowdsl(folder, "run", "work", "work.count", "--input", "-", "--json", said="2")
    assert document(done)["result"] == 2
    for said in ("module", "activity", "process"):
        assert f"{said} that prints" in done.stderr
    plain = flowdsl(folder, "run", "work", "work.count", "--input", "1")
    assert "an activity that prints" in plain.stdout
    assert "result: 1" in plain.stdout


def test_how_it_ended_is_in_the_document_and_in_the_exit_code(folder: Path) -> None:
    refused = flowdsl(folder, "run", "work", "work.refuse", "--input", '"no \\u001b"', "--json")
    assert refused.returncode == 1
    assert document(refused) | {"execution": ""} == {"execution": "", "status": "failed", "failure": {"$": "Bad", "why": "no \x1b"}}
    assert "\x1b" not in refused.stdout
    crashed = flowdsl(folder, "run", "work", "work.crash", "--input", "1", "--json")
    assert crashed.returncode == 1
    assert document(crashed)["defect"]["message"] == "ValueError: a bug"


def test_a_failure_that_has_words_for_it_says_them(folder: Path) -> None:
    told = flowdsl(folder, "run", "work", "work.miss", "--input", '"lamp\\u001b"')
    assert told.returncode == 1
    assert told.stdout.splitlines()[-1] == "there is no lamp\\x1b: make one"
    facts = document(flowdsl(folder, "run", "work", "work.miss", "--input", '"lamp"', "--json"))
    assert facts["cause"] == "there is no lamp: make one"
    assert facts["failure"] == {"$": "Missing", "name": "lamp"}


def test_an_id_that_succeeded_is_not_run_again_whatever_its_workflow_says_of_reuse(folder: Path) -> None:
    first = document(flowdsl(folder, "run", "work", "work.count", "--input", "2", "--id", "one", "--json"))
    again = flowdsl(folder, "run", "work", "work.count", "--input", "3", "--id", "one", "--json")
    assert document(again) == first
    assert "with another input" in again.stderr
    assert noted(folder) == 2


def test_a_run_that_is_told_to_stop_leaves_its_execution_for_the_same_command(folder: Path) -> None:
    (folder / "held").touch()
    arguments = ("run", "work", "work.once", "--input", "12", "--id", "one", "--json")  # reuse="reject": to resume is not to start
    process = subprocess.Popen(command(*arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    eventually(lambda: noted(folder) >= 5)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    said = until_said(process.stderr, "stopping")
    (folder / "held").unlink()  # what runs may end
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, said + err
    assert json.loads(out)["status"] == "running"
    assert "the same command resumes it" in err
    before = noted(folder)
    done = flowdsl(folder, *arguments)
    assert document(done)["result"] == 12
    assert before < 12
    assert noted(folder) == 12, "what had finished happened once: a graceful stop repeats nothing"
    assert json.loads(out)["execution"] == document(done)["execution"]


def test_a_key_that_is_taken_is_refused_where_the_workflow_says_so(folder: Path) -> None:
    assert flowdsl(folder, "start", "work", "work.once", "--input", "1", "--id", "k").returncode == 0
    done = flowdsl(folder, "start", "work", "work.once", "--input", "1", "--id", "k")
    assert done.returncode == 2
    assert "is taken by execution" in done.stderr
    assert flowdsl(folder, "start", "work", "work.once", "--input", "1", "--id", "").returncode == 2


def test_a_run_outlives_a_database_that_is_away_for_a_while(folder: Path, server: str, database: str) -> None:
    (folder / "held").touch()
    process = subprocess.Popen(command("run", "work", "work.count", "--input", "12", "--json"), cwd=folder, stdout=subprocess.PIPE)
    eventually(lambda: noted(folder) >= 2)
    name = urlsplit(database).path[1:]
    execute(server, f'alter database "{name}" allow_connections false')
    execute(server, f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")
    time.sleep(1)  # so long it is away
    (folder / "held").unlink()
    execute(server, f'alter database "{name}" allow_connections true')
    out, _ = process.communicate(timeout=60)
    assert json.loads(out)["result"] == 12


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionResetError("reset"), "cannot be reached"),
        (asyncpg.InvalidCatalogNameError("no"), "no such database"),
        (asyncpg.InsufficientPrivilegeError("no"), "not allowed"),
    ],
)
def test_a_database_that_is_lost_for_good_is_told_in_a_line(error: Exception, says: str) -> None:
    with pytest.raises(StoreError, match=says), database_of("postgresql://x/y"):
        raise error
    with pytest.raises(ZeroDivisionError), database_of("postgresql://x/y"):
        raise ZeroDivisionError


def test_a_second_signal_stops_at_once(folder: Path) -> None:
    process = subprocess.Popen(command("run", "work", "work.slow", "--input", "1"), cwd=folder, stderr=subprocess.PIPE, text=True)
    eventually((folder / "lingers").exists)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "running activities get 10 s to finish" in until_said(process.stderr, "stopping"), "a running activity has some seconds"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stays as it is" not in err, "it did not even say goodbye"


def execute(server: str, statement: str) -> None:
    async def done() -> None:
        connection = await asyncpg.connect(server)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(done())


def test_the_setting_to_correct_is_the_one_that_was_used(folder: Path) -> None:
    said = flowdsl(folder, "list", "--database", "postgresql://x:secret@127.0.0.1:1/none")
    assert "correct --database" in said.stderr
    assert "correct FLOWDSL_DATABASE_URL" in flowdsl(folder, "list", FLOWDSL_DATABASE_URL="postgresql://127.0.0.1:1/none").stderr
    (folder / "flowdsl.toml").write_text('[database]\nurl = "postgresql://127.0.0.1:1/none"')
    assert "correct [database] url in flowdsl.toml" in flowdsl(folder, "list", FLOWDSL_DATABASE_URL="").stderr


def test_logs_go_to_stderr_wherever_the_option_stands(folder: Path) -> None:
    before = flowdsl(folder, "-v", "run", "work", "work.count", "--input", "1", "--json")
    assert document(before)["result"] == 1
    assert "execution.reports" in before.stderr and "counting" not in before.stderr  # what a note says is not for logs
    after = flowdsl(folder, "run", "work", "work.count", "--input", "1", "--json", "--verbose", "--log-json")
    lines = [json.loads(line) for line in after.stderr.splitlines() if line.startswith("{")]
    assert any(line["event"] == "execution.reports" and line["done"] == 1 and line["level"] == "info" for line in lines)
    assert "execution.reports" not in flowdsl(folder, "run", "work", "work.count", "--input", "1", "--json").stderr


# Looking


@pytest.mark.shows("S3.2", "S3.5", "S3.32")
def test_the_tree_of_children_is_shown(folder: Path) -> None:
    order = '{"name":"a","parts":[1,2]}'
    id = document(flowdsl(folder, "run", "work", "work.tree", "--input", order, "--json"))["execution"]
    tree = document(flowdsl(folder, "status", id, "--json"))
    assert [child["key"] for child in tree["children"]] == ["a-1", "a-2"]
    assert [grandchild["key"] for grandchild in tree["children"][1]["children"]] == ["a-2.1", "a-2.2"]
    assert tree["result"] == 2
    lines = flowdsl(folder, "status", id).stdout.splitlines()
    assert [line.split()[3] for line in lines[1:7]] == ["a-1", "a-1.1", "a-1.2", "a-2", "a-2.1", "a-2.2"]
    assert "[bold]part[/] a-1\\x1b[31m" in lines[1]


def test_what_an_execution_waits_for_is_shown(folder: Path) -> None:
    id = flowdsl(folder, "start", "work", "work.wait", "--input", "1").stdout.split()[-1]
    assert "waits for a worker" in flowdsl(folder, "status", id).stdout
    worker = subprocess.Popen(command("worker", "work"), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    eventually(lambda: "waits for a signal" in flowdsl(folder, "status", id).stdout)
    worker.terminate()
    assert worker.wait(60) == 0
    assert document(flowdsl(folder, "cancel", id, "--json"))["outcome"] == "asked"
    assert document(flowdsl(folder, "cancel", id, "--json"))["outcome"] == "asked already"


TROUBLE = """
from typing import Never
from flowdsl import Deployment, Result, Steps, activity, bind, workflow

@activity("trouble.ask")
def ask(number: int) -> Result[int, Never]: ...

@workflow("trouble.once")
def once(number: int) -> Steps[int, Never]:
    return (yield from ask(number))

deployment = Deployment([once], [bind(ask, lambda number: number)])
"""


def test_an_attempt_that_failed_is_told_while_the_next_one_is_waited_for(folder: Path) -> None:
    (folder / "trouble.py").write_text(TROUBLE)
    id = flowdsl(folder, "start", "trouble", "trouble.once", "--input", "5").stdout.split()[-1]
    worker = subprocess.Popen(command("worker", "trouble"), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: "of trouble.ask failed: its implementation returned 5" in flowdsl(folder, "status", id).stdout)
    finally:
        worker.terminate()
    assert worker.wait(60) == 0


def test_dead_letters_say_why_and_what_is_set_must_fit(folder: Path) -> None:
    id = document(flowdsl(folder, "run", "work", "work.crash", "--input", "0", "--json"))["execution"]
    assert re.search(r"ValueError: a bug \(.*work.py:\d+", flowdsl(folder, "dead", "list").stdout)
    wrong = flowdsl(folder, "what-if", "work", id, "--set", '0={"failure": 1}')
    assert wrong.returncode == 2 and '--set 0={"failure": 1} does not fit' in wrong.stderr
    assert "write STEP=JSON" in flowdsl(folder, "what-if", "work", id, "--set", "0").stderr


def test_a_key_is_revoked_by_its_id_and_looked_for_among_keys(folder: Path) -> None:
    assert flowdsl(folder, "migrate").returncode == 0
    key = flowdsl(folder, "keys", "make", "ada").stdout.removeprefix("flow_").strip()
    said = flowdsl(folder, "keys", "revoke", "ada")
    assert said.returncode == 2 and key.startswith(said.stderr.split()[-1])
    assert "`flowdsl keys list` shows" in flowdsl(folder, "keys", "revoke", "nobody").stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("repro", "work", "it.json"), "there is no file 'it.json' here, and no execution"),
        (("audit", "list", "--execution", "one"), "an id looks like"),
    ],
)
def test_what_is_no_id_is_refused_before_the_store_is_asked(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    done = flowdsl(folder, *arguments, FLOWDSL_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_cannot_be_written_is_not_a_lost_database(folder: Path) -> None:
    assert flowdsl(folder, "migrate").returncode == 0
    file = folder / "none" / "anchors"
    done = flowdsl(folder, "audit", "anchor", "--file", str(file))
    assert done.returncode == 2 and f"{file} cannot be used (No such file or directory)" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("list",), ("list", "--json")])
def test_who_stops_reading_ends_it_quietly(folder: Path, arguments: tuple[str, ...]) -> None:
    assert flowdsl(folder, "migrate").returncode == 0
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command(*arguments), cwd=folder, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert done.returncode == 1 and done.stderr == ""


def on_terminal(folder: Path, columns: int, *arguments: str) -> list[str]:
    """The lines that a command writes to a terminal, without colours."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ["COLUMNS"] = str(columns)
        os.execv(sys.executable, command(*arguments))
    written = b""
    while select.select([terminal], [], [], 120)[0]:
        try:
            written += os.read(terminal, 65536)
        except OSError:
            break
    os.waitpid(pid, 0)
    os.close(terminal)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode()).replace("\r", "\n").split("\n")


def test_on_a_terminal_everything_fits_and_ids_stay_whole(folder: Path) -> None:
    id = document(flowdsl(folder, "run", "work", "work.tree", "--input", '{"name":"a long name","parts":[1]}', "--json"))["execution"]
    for arguments in (("list",), ("status", id), ("status", id, "--follow"), ("journal", id)):
        lines = on_terminal(folder, 80, *arguments)
        assert max(map(len, lines)) <= 80
        if arguments[0] != "journal":
            assert any(id in line for line in lines)


def test_elsewhere_tables_are_plain_and_whole(folder: Path) -> None:
    id = document(flowdsl(folder, "run", "work", "work.count", "--input", "2", "--json"))["execution"]
    title, *rows = flowdsl(folder, "journal", id).stdout.splitlines()
    assert title.split() == ["position", "step", "kind", "what", "where", "at", "size"]
    at = r"(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d\.\d{3}"  # with the day, should midnight have come between
    assert re.match(rf" +0  0 +success  perform work\.note  count work\.py:\d+ +{at} +1 B$", rows[0])
    assert "sleep 0.05 s" in rows[1]
    title, row = flowdsl(folder, "list", "--limit", "1").stdout.splitlines()
    assert title.split()[0] == "execution"
    assert row.startswith(id)
    assert row.endswith("counting (2 of 2)")
    assert flowdsl(folder, "list", "--status", "blocked").stdout == "no executions that fit\n"


# Workers


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def supervisor(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command("worker", "work", "--processes", "2", "--lease", "8", "--json"), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
def test_a_worker_that_dies_is_started_again_and_all_stop_when_told(folder: Path, supervisor: subprocess.Popen[str], database: str) -> None:
    eventually(lambda: len(children(supervisor.pid)) == 2)
    first, second = children(supervisor.pid)
    assert database not in Path(f"/proc/{first}/cmdline").read_text()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(set(children(supervisor.pid)) - {first}) == 2)
    id = flowdsl(folder, "start", "work", "work.count", "--input", "2").stdout.split()[-1]
    assert document(flowdsl(folder, "status", id, "--follow", "--json"))["result"] == 2
    working = children(supervisor.pid)
    supervisor.terminate()
    out, err = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 0, err
    assert json.loads(out) == {"status": "stopped", "processes": 2, "restarts": 1}
    assert f"worker process {first} was ended by SIGKILL" in err
    assert not any(map(lives, [second, *working]))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
def test_workers_do_not_outlive_their_supervisor(folder: Path, supervisor: subprocess.Popen[str]) -> None:
    id = flowdsl(folder, "start", "work", "work.count", "--input", "1").stdout.split()[-1]
    assert flowdsl(folder, "status", id, "--follow", "--json").returncode == 0
    working = children(supervisor.pid)
    supervisor.kill()
    eventually(lambda: not any(map(lives, working)))


# The state of the store


@pytest.fixture
def bare(database: str) -> None:
    """The database has no tables of ours."""
    execute(database, "drop schema flowdsl cascade")


@pytest.mark.usefixtures("bare")
def test_without_tables_each_command_says_how_to_make_them(folder: Path) -> None:
    for arguments in (("list",), ("start", "work", "work.count", "--input", "1")):
        done = flowdsl(folder, *arguments)
        assert done.returncode == 2
        assert "has no flowdsl tables. Run `flowdsl migrate`" in done.stderr
        assert "Traceback" not in done.stderr
    missing = flowdsl(folder, "doctor", "--json")
    assert missing.returncode == 1
    assert "flowdsl migrate" in document(missing)["problems"][-1]
    assert document(flowdsl(folder, "migrate", "--json"))["applied"][0] == "flowdsl/0001_journal.sql"
    assert flowdsl(folder, "migrate", "work").stdout.splitlines()[-1] == "up to date"
    assert flowdsl(folder, "list").stdout == "no executions\n"


def test_the_demo_says_where_it_is(tmp_path: Path) -> None:
    done = flowdsl(tmp_path, "demo")
    assert done.returncode == 2
    assert "./dev demo" in done.stderr
