"""The command line. Imports are inside the commands: `flowdsl --help` loads click and nothing else."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from flowdsl.binding import Deployment
    from flowdsl.postgres.store import Store, Summary

EXITS = "Exit codes: 0 succeeded · 1 failed, cancelled or blocked · 2 wrong usage or input, or no database."
_DATABASE = click.option(
    "--database", metavar="URL", help="A PostgreSQL 15 or newer. Default: FLOWDSL_DATABASE_URL, flowdsl.toml, else the embedded one."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
_DEPLOYMENT = click.argument("deployment", metavar="MODULE:DEPLOYMENT")
_MARKS = {"succeeded": "green", "failed": "red", "blocked": "red", "cancelled": "yellow", "running": "cyan", "suspended": "yellow"}


class _Group(click.Group):
    """Turns expected errors of every command into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        from flowdsl.errors import FlowError

        try:
            return super().invoke(ctx)
        except FlowError as error:
            raise _Refusal(str(error)) from None


class _Refusal(click.ClickException):
    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.secho(f"flowdsl: {self.message}", fg="red", err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flowdsl")
@click.option("-v", "--verbose", is_flag=True, help="Log what workers do, to stderr.")
@click.option("--log-json", is_flag=True, help="Log as JSON lines.")
def main(verbose: bool, log_json: bool) -> None:
    """Durable workflows in Python, on Postgres. With nothing named, flowdsl brings its own."""
    import logging

    import structlog

    render: Any = structlog.processors.JSONRenderer() if log_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper("iso"), structlog.processors.format_exc_info, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if verbose else logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


# Loading


def load(target: str) -> Deployment:
    """The deployment that MODULE:ATTRIBUTE names, with the current folder on the path. Raises `_Refusal`, in one line."""
    import difflib
    import importlib
    import traceback

    from flowdsl.binding import Deployment
    from flowdsl.errors import FlowError

    module_name, _, attribute = target.partition(":")
    attribute = attribute or "deployment"
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except FlowError as error:
        raise _Refusal(f"{module_name}: {error}") from None
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise _Refusal(f"{module_name} imports {error.name}, which is not installed") from None
        raise _Refusal(f"no module {module_name!r} here ({Path.cwd()}): name it as MODULE:DEPLOYMENT, from the folder that holds it") from None
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise _Refusal(f"{module_name} cannot be imported: {frame.filename}:{frame.lineno}: {type(error).__name__}: {error}") from None
    found = getattr(module, attribute, None)
    if not isinstance(found, Deployment):
        there = [name for name, value in vars(module).items() if isinstance(value, Deployment)]
        near = difflib.get_close_matches(attribute, there, 1) or there
        hint = f"did you mean {module_name}:{near[0]}?" if near else "put Deployment(workflows=[…], bindings=[…]) there"
        raise _Refusal(f"{module_name} has no deployment {attribute!r}: {hint}")
    return found


def read_input(text: str, deployment: Deployment, workflow: str) -> Any:
    """A workflow's input from JSON, a file (`@name`) or stdin (`-`). Raises `_Refusal` with the path of each bad field."""
    from flowdsl.codec import Undecodable
    from flowdsl.journal import codecs_of

    definition = deployment.workflow(workflow)
    if text == "-":
        data = sys.stdin.buffer.read()
    elif text.startswith("@"):
        try:
            data = Path(text[1:]).read_bytes()
        except OSError as error:
            raise _Refusal(f"--input: {error}") from None
    else:
        data = text.encode("utf-8", "surrogatepass")
    try:
        return codecs_of(definition).request.decode(data, root="input")
    except Undecodable as error:
        problems = "".join(f"\n  {path}: {problem}" for path, problem in error.problems)
        raise _Refusal(f"--input does not fit {workflow}:{problems}") from None


def _async(work: Callable[[], Coroutine[Any, Any, int]]) -> None:
    """Runs it on uvloop where that is installed, and leaves with its exit code."""
    gc.freeze()  # what is loaded by now stays; a step leaves little, so look for cycles less often
    gc.set_threshold(10_000, 20, 50)
    start: Callable[[Coroutine[Any, Any, int]], int] = asyncio.run
    with suppress(ImportError):
        from uvloop import run as start
    sys.exit(start(work()))


def _emit(facts: Any) -> None:
    click.echo(json.dumps(facts, default=str, ensure_ascii=True))


# Commands


@main.command(epilog=EXITS)
@_DEPLOYMENT
@click.argument("workflow")
@click.option("--input", "text", default="null", show_default=True, help="JSON; @file; or - for stdin.")
@click.option("--id", "key", help="The execution's key: the same command again finds it, and resumes it.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for its end; else only start it.")
@click.option("--lease", default=3.0, show_default=True, help="Seconds after which another process takes over from this one, should it die.")
@_DATABASE
@_JSON
def run(deployment: str, workflow: str, text: str, key: str | None, wait: bool, lease: float, database: str | None, as_json: bool) -> None:
    """Starts or resumes an execution, works on it here, and prints how it ended."""
    from flowdsl.postgres.choice import choose
    from flowdsl.postgres.worker import Tuning, opened

    loaded = load(deployment)
    request = read_input(text, loaded, workflow)
    definition = loaded.workflow(workflow)

    async def work() -> int:
        with choose(database) as choice:
            async with opened(loaded, choice.dsn, Tuning(lease=lease)) as worker:
                id = await worker.start(definition, request, key=key)
                if not wait:
                    _emit({"execution": id, "status": "running"}) if as_json else click.echo(id)
                    return 0
                await _until_ended(worker, id)
                return _report(await worker.store.summary(id), as_json)

    _async(work)


async def _until_ended(worker: Any, id: str) -> None:
    """Waits for the end; after Ctrl-C or SIGTERM the execution stays, and this says how to resume it."""
    from flowdsl.errors import StoreError

    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, asked.set)
    waiting, stopping = asyncio.ensure_future(worker.wait(id)), asyncio.ensure_future(asked.wait())
    await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if waiting.done():
        if isinstance(waiting.exception(), StoreError):
            return  # blocked: its summary tells
        waiting.result()
        return
    waiting.cancel()
    click.echo(f"stopped; execution {id} stays, and the same command resumes it", err=True)


def _report(summary: Summary, as_json: bool) -> int:
    facts = ended(summary)
    if as_json:
        _emit(facts)
    else:
        click.secho(f"{summary.id}  {summary.status}", fg=_MARKS.get(summary.status))
        for name in ("result", "failure", "defect", "cancelled", "cause"):
            if facts.get(name) is not None:
                click.echo(f"{name}: {json.dumps(facts[name], indent=2, ensure_ascii=False, default=str)}")
    return 0 if summary.status in ("succeeded", "running", "suspended") else 1


def ended(summary: Summary) -> dict[str, Any]:
    """An execution's end, as JSON shows it: result, failure, defect or cancelled."""
    facts: dict[str, Any] = {"execution": summary.id, "status": summary.status}
    if summary.exit:
        kind, value = next(iter(json.loads(summary.exit).items()))
        facts["result" if kind == "success" else kind] = value
    if summary.cause:
        facts["cause"] = summary.cause
    return facts


@main.command(epilog=EXITS)
@_DEPLOYMENT
@click.option("--processes", default=1, show_default=True, help="Worker processes; one that dies is started again.")
@click.option("--lease", default=10.0, show_default=True, help="Seconds after which another worker takes over from a dead one.")
@click.option("--embedded", is_flag=True, help="Allow the embedded Postgres.")
@_DATABASE
def worker(deployment: str, processes: int, lease: float, embedded: bool, database: str | None) -> None:
    """Works until it is told to stop (SIGTERM or Ctrl-C): then it lets running activities finish, and lets go of the rest."""
    from flowdsl.postgres.choice import choose, named
    from flowdsl.postgres.worker import Tuning, opened

    if named(database) is None and not embedded:
        raise _Refusal("no database is named: pass --database URL or set FLOWDSL_DATABASE_URL; or --embedded, for the one that flowdsl brings")
    if processes > 1:
        with choose(database) as choice:
            sys.exit(_supervise(deployment, processes, lease, choice.dsn))
    loaded = load(deployment)

    async def work() -> int:
        stop = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        with choose(database) as choice:
            async with opened(loaded, choice.dsn, Tuning(lease=lease)) as one:
                click.echo(f"worker {one.id} works on {', '.join(loaded.names)}", err=True)
                await stop.wait()
                click.echo("stopping", err=True)
        return 0

    _async(work)


def _supervise(deployment: str, processes: int, lease: float, dsn: str) -> int:
    """Keeps that many workers alive; a signal to us is one to them. One that dies at once thrice in a row ends it all."""
    import time

    command = [sys.executable, "-m", "flowdsl", "worker", deployment, "--lease", str(lease), "--database", dsn]
    children = {n: (subprocess.Popen(command), time.monotonic(), 0) for n in range(processes)}
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        for one in children.values():
            one[0].terminate()

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, stop)
    while not stopping:
        for n, (child, begun, failures) in children.items():
            if child.poll() is not None and not stopping:
                failures = failures + 1 if time.monotonic() - begun < 5 else 0
                if failures >= 3:
                    click.echo("a worker dies again and again: stopping", err=True)
                    stop()
                    break
                click.echo(f"worker process {child.pid} ended with {child.returncode}; another is started", err=True)
                children[n] = (subprocess.Popen(command), time.monotonic(), failures)
        time.sleep(0.2)
    for one in children.values():
        one[0].wait()
    return 0 if not any(failures >= 3 for _, _, failures in children.values()) else 1


def _on_store(database: str | None, work: Callable[[Store], Coroutine[Any, Any, int]]) -> None:
    """Opens the store that is meant, for one command."""
    from flowdsl.postgres.choice import choose
    from flowdsl.postgres.store import Store, migrate

    async def opened() -> int:
        with choose(database) as choice:
            if choice.embedded:
                await migrate(choice.dsn)
            async with await Store.open(choice.dsn, size=4) as store:
                return await work(store)

    _async(opened)


@main.command(epilog=EXITS)
@_DEPLOYMENT
@click.argument("workflow")
@click.option("--input", "text", default="null", show_default=True, help="JSON; @file; or - for stdin.")
@click.option("--id", "key", help="The execution's key.")
@_DATABASE
@_JSON
def start(deployment: str, workflow: str, text: str, key: str | None, database: str | None, as_json: bool) -> None:
    """Starts an execution for workers to take, and prints its id."""
    from flowdsl.journal import codecs_of
    from flowdsl.postgres.store import NewStart
    from flowdsl.postgres.worker import new_id

    loaded = load(deployment)
    request = read_input(text, loaded, workflow)
    one = loaded.workflow(workflow)
    chosen = key if key is not None else one.key_of(request) if one.key is not None else None
    wish = NewStart(new_id(), "default", one.name, one.version, "", chosen, one.reuse, codecs_of(one).request.encode(request))

    async def work(store: Store) -> int:
        done = (await store.start([wish]))[0]
        _emit({"execution": done.id, "outcome": done.outcome, "status": done.status}) if as_json else click.echo(done.id)
        return 0 if done.outcome != "rejected" else 1

    _on_store(database, work)


@main.command()
@click.argument("id")
@click.option("--follow", is_flag=True, help="Until it ends.")
@_DATABASE
@_JSON
def status(id: str, follow: bool, database: str | None, as_json: bool) -> None:
    """An execution and its children: state, progress, what it ended with."""

    async def work(store: Store) -> int:
        shown = ""
        while True:
            summary = await store.summary(id)
            children = await store.list(parent=id, limit=1000)
            text = "\n".join([_line(summary), *(f"  {_line(child)}" for child in reversed(children))])
            over = summary.status not in ("running", "suspended")
            if not as_json and text != shown:
                click.echo(text if not shown else f"\n{text}")
                shown = text
            if over or not follow:
                break
            await asyncio.sleep(0.5)
        if as_json:
            _emit({**_facts(summary), **ended(summary), "children": [_facts(child) for child in children]})
        return 0 if summary.status in ("succeeded", "running", "suspended") else 1

    _on_store(database, work)


def _line(one: Summary) -> str:
    progress = f"  {one.note}" if one.note else ""
    count = f" ({one.done:,}{f' of {one.total:,}' if one.total else ''})" if one.done is not None else ""
    waits = f"  waits until {one.wake:%Y-%m-%d %H:%M:%S}" if one.status == "suspended" and one.wake else ""
    cause = f"\n    {one.cause.splitlines()[0]}" if one.cause else ""
    name = f"{one.workflow}{f' {one.key}' if one.key else ''}"
    return f"{one.id}  {click.style(f'{one.status:<10}', fg=_MARKS.get(one.status))} {name}  {one.entries} entries{progress}{count}{waits}{cause}"


def _facts(one: Summary) -> dict[str, Any]:
    return {
        "execution": one.id, "workflow": one.workflow, "key": one.key, "status": one.status, "parent": one.parent, "started": one.started,
        "ended": one.ended, "wake": one.wake, "entries": one.entries, "note": one.note, "done": one.done, "total": one.total, "cause": one.cause,
    }  # fmt: skip


@main.command("list")
@click.option("--workflow", help="Of this workflow only.")
@click.option("--status", type=click.Choice(["running", "suspended", "blocked", "succeeded", "failed", "cancelled"]))
@click.option("--limit", default=30, show_default=True)
@_DATABASE
@_JSON
def list_(workflow: str | None, status: str | None, limit: int, database: str | None, as_json: bool) -> None:
    """The newest executions."""

    async def work(store: Store) -> int:
        found = await store.list(workflow=workflow, status=status, limit=limit)
        if as_json:
            _emit([_facts(one) for one in found])
        elif not found:
            click.echo("none")
        for one in () if as_json else found:
            click.echo(_line(one))
        return 0

    _on_store(database, work)


@main.command()
@click.argument("id")
@_DATABASE
@_JSON
def journal(id: str, database: str | None, as_json: bool) -> None:
    """What happened to an execution, entry by entry."""
    from flowdsl.journal import KINDS

    async def work(store: Store) -> int:
        await store.summary(id)
        entries = await store.journal(id)
        if as_json:
            _emit([
                {"position": e.position, "kind": KINDS[e.kind], "at": e.at, "step": e.step, "fingerprint": e.fingerprint, "site": e.site,
                 "body": json.loads(e.body), "live": e.live}
                for e in entries
            ])  # fmt: skip
            return 0
        for e in entries:
            body = e.body.decode(errors="replace")
            what = " ".join(e.fingerprint.split(" ")[:2])
            shown = body if len(body) <= 60 else f"{body[:57]}…"
            click.echo(f"{e.position:>5}  {e.at:%H:%M:%S.%f}  {e.step:<12} {KINDS[e.kind]:<14} {what:<36} {e.site:<28} {shown}")
        return 0

    _on_store(database, work)


@main.command()
@click.argument("id")
@click.option("--reason", default="cancelled by a person", show_default=True)
@_DATABASE
def cancel(id: str, reason: str, database: str | None) -> None:
    """Asks an execution to end: finalizers and undos run. To ask twice is to ask once."""

    async def work(store: Store) -> int:
        summary = await store.summary(id)
        over = summary.status in ("succeeded", "failed", "cancelled")
        said = "ended" if over else await store.send(summary.tenant, id, "cancel", "", json.dumps(reason).encode(), f"cancel-{id}")
        click.echo({"ended": "it has ended already", "again": "asked already"}.get(said, "asked"))
        return 1 if said == "ended" else 0

    _on_store(database, work)


@main.command()
@click.argument("deployment", required=False, metavar="[MODULE:DEPLOYMENT]")
@_DATABASE
@_JSON
def migrate(deployment: str | None, database: str | None, as_json: bool) -> None:
    """Brings the tables up to date; those of a deployment too, when one is named. To repeat it changes nothing."""
    from flowdsl.postgres.choice import choose
    from flowdsl.postgres.store import migrate as apply

    folders = load(deployment).migrations if deployment else ()

    async def work() -> int:
        with choose(database) as choice:
            applied = await apply(choice.dsn, folders)
        if as_json:
            _emit({"applied": applied})
        else:
            click.echo("\n".join(f"applied {name}" for name in applied) or "up to date")
        return 0

    _async(work)


@main.command()
@_DATABASE
@_JSON
def doctor(database: str | None, as_json: bool) -> None:
    """Says which database is meant and why, and what is wrong with it."""
    from flowdsl.postgres.choice import choose
    from flowdsl.postgres.doctor import examine
    from flowdsl.postgres.store import connect

    async def work() -> int:
        with choose(database) as choice:
            connection = await connect(choice.dsn)
            try:
                facts, problems = await examine(connection)
            finally:
                await connection.close()
        if as_json:
            _emit({"source": choice.source, **facts, "problems": problems})
        else:
            click.echo(f"database  {choice.source}")
            for name, value in facts.items():
                click.echo(f"{name:<9} {value}")
            for problem in problems:
                click.secho(f"✗ {problem}", fg="red")
            if not problems:
                click.secho("✓ nothing wrong", fg="green")
        return 1 if problems else 0

    _async(work)


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Runs the demo of the folder that you are in (`python -m adapters.demo`)."""
    if not (Path.cwd() / "adapters" / "demo").is_dir():
        raise _Refusal("there is no demo here: it lives in flowdsl's repository; clone it and type ./dev demo")
    sys.exit(subprocess.call([sys.executable, "-m", "adapters.demo", *arguments]))
