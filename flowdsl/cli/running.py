"""Commands that run workflows: `run`, `worker`, `start`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flowdsl.cli.edge import (
    DATABASE,
    DEPLOYMENT,
    EXITS,
    JSON,
    LOGS,
    Refusal,
    Stop,
    aside,
    awaited,
    begin_logs,
    database_of,
    emit,
    log_options,
    on_store,
    only_json,
    show_exit,
    shown,
)
from flowdsl.cli.loading import load, read_input, workflow_of

if TYPE_CHECKING:
    from flowdsl.binding import Deployment
    from flowdsl.definition import Workflow
    from flowdsl.policy import Limits
    from flowdsl.postgres.store import NewStart, Store, Summary
    from flowdsl.postgres.worker import Tuning

F = TypeVar("F", bound=Callable[..., Any])

_SUPERVISOR = "FLOWDSL_SUPERVISOR"
_INPUT = click.option("--input", "text", metavar="JSON", help="JSON; @file; or - for stdin. Default: null.")
_ID = click.option("--id", "key", metavar="KEY", help="The execution's key. Default: the workflow's own key, if it has one.")


def _lease(default: float) -> Callable[[F], F]:
    text = "How long after its last heartbeat a process counts as alive."
    return click.option("--lease", type=click.FloatRange(min=0.5), default=default, show_default=True, metavar="SECONDS", help=text)


@click.command(short_help="Run a workflow, or resume it.", epilog=f"{EXITS}; 143 SIGTERM. Stopped or killed, an execution stays: see --id.")
@DEPLOYMENT
@click.argument("workflow")
@_INPUT
@_ID
@click.option("--wait/--no-wait", default=True, show_default=True, help="Work on it until it ends, or only start it.")
@_lease(3.0)
@DATABASE
@JSON
@LOGS
def run(deployment: str, workflow: str, text: str | None, key: str | None, wait: bool, lease: float, database: str | None, as_json: bool) -> None:
    """Starts or resumes an execution, works on it here, and prints how it ended.

    With --id KEY the same command again resumes what was stopped or killed; once there is a result it prints that again.
    """
    if as_json:
        only_json()
    loaded, definition, request = _asked(deployment, workflow, text, key)
    begin_logs()
    with database_of(database) as choice:
        if wait:
            code = awaited(_run(loaded, definition, request, key, choice.dsn, lease, as_json), fast=True)
        else:
            code = awaited(_enqueue_migrated(loaded, definition, request, key, choice.dsn, as_json))
    sys.exit(code)


def _asked(deployment: str, workflow: str, text: str | None, key: str | None) -> tuple[Deployment, Workflow[Any, Any, Any], Any]:
    if key is not None and not 0 < len(key) <= 1000:
        raise Refusal(f"--id is {'empty' if not key else 'too long'}: a key is 1 to 1000 characters")
    loaded = load(deployment)
    definition = workflow_of(loaded, workflow)
    return loaded, definition, read_input(text, definition)


async def _run(
    deployment: Deployment, definition: Workflow[Any, Any, Any], request: Any, key: str | None, dsn: str, lease: float, as_json: bool
) -> int:
    from flowdsl.cli.screen import counted, trouble_of
    from flowdsl.postgres.schema import migrate
    from flowdsl.postgres.store import Store
    from flowdsl.postgres.worker import ENDED, Tuning, Worker

    stop = Stop()
    await migrate(dsn, deployment.migrations)
    async with await Store.open(dsn) as store:
        known = await store.by_key("default", definition.name, key) if key is not None else None
        if known is not None and known.status == "succeeded":
            await _compare(store, known.id, definition, request)
            return _report(known, definition, as_json)
        tuning = Tuning(lease=lease, schedules=False)
        async with Worker(deployment, store, tuning) as worker:
            resumes = known is not None and known.status not in ENDED
            id = known.id if known is not None and resumes else await worker.start(definition, request, key=key)
            before = await store.summary(id)
            await _compare(store, id, definition, request)
            if not as_json and before.status not in ENDED:
                click.echo(f"execution {id}  {f'resumes after {counted(before.entries)}' if before.entries else 'started'}")
            await _end_or_stop(worker, id, stop, show=not as_json and not log_options())
            if stop.code:
                aside(f"stopping: running activities get {tuning.grace:.0f} s to finish; the same signal again stops at once")
        summary = await store.summary(id)
        trouble = await trouble_of(store, summary)
    code = _report(summary, definition, as_json)
    if trouble:
        aside(trouble)
    if not stop.code or summary.status in ENDED:
        return code
    keyed = summary.key is not None
    again = (
        "the same command resumes it" if keyed else "without --id the same command starts another one; a worker of this deployment resumes this one"
    )
    aside(f"stopped; execution {id} stays as it is: {again}")
    return stop.code


async def _end_or_stop(worker: Any, id: str, stop: Stop, *, show: bool) -> None:
    """Returns when the execution has ended or is blocked, or we were told to stop; shows it meanwhile, on a terminal."""
    import asyncio

    from flowdsl.cli.screen import watching
    from flowdsl.errors import StoreError

    async with AsyncExitStack() as stack:
        if show and sys.stdout.isatty():
            await stack.enter_async_context(watching(worker.store, id))
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(one) for one in (worker.wait(id), stop.asked.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for one in tasks:
            one.cancel()
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(found, Exception) and not isinstance(found, StoreError):  # which says that it is blocked: so does its summary
                raise found


async def _compare(store: Store, id: str, definition: Workflow[Any, Any, Any], request: Any) -> None:
    """Says so when the execution was started with another input: that one counts."""
    from flowdsl.journal import codecs_of
    from flowdsl.postgres.encryption import request_of

    rows = await store.again("select tenant, request from flowdsl.executions where id = $1::uuid", id)
    if rows and store.encryption.decrypt(request_of(rows[0]["tenant"], id), rows[0]["request"]) != codecs_of(definition).request.encode(request):
        aside(f"execution {id} has that key already, with another input: that one counts, and --input does not")


def _report(summary: Summary, definition: Workflow[Any, Any, Any], as_json: bool) -> int:
    """Prints how an execution ended, or how it stands; its exit code."""
    from flowdsl.cli.looking import ended
    from flowdsl.cli.screen import headline

    facts = ended(summary)
    words = _own_words(definition, summary)
    if as_json:
        emit(facts if words is None else facts | {"cause": words})
    else:
        click.echo(headline(summary))
        show_exit(facts)
        if words is not None:
            click.echo(shown(words))
    return 1 if summary.status in ("failed", "cancelled", "blocked") else 0


def _own_words(definition: Workflow[Any, Any, Any], summary: Summary) -> str | None:
    """What a failure says of itself, if it has words for it."""
    from returns.result import Failure

    from flowdsl.errors import FlowError
    from flowdsl.journal import decode_exit

    try:
        exit = decode_exit(definition, summary.exit) if summary.status == "failed" and summary.exit else None
    except FlowError:  # of an older version of the workflow: as it is stored is all there is to say
        return None
    has_words = isinstance(exit, Failure) and any("__str__" in vars(one) for one in type(exit.failure()).__mro__[:-1])
    return str(exit.failure()) if isinstance(exit, Failure) and has_words else None


# Starting only


@click.command(short_help="Start an execution for workers to take.", epilog=EXITS)
@DEPLOYMENT
@click.argument("workflow")
@_INPUT
@_ID
@click.option("--paused", is_flag=True, help="It begins blocked: nothing is done until `flowdsl resume`.")
@DATABASE
@JSON
def start(deployment: str, workflow: str, text: str | None, key: str | None, paused: bool, database: str | None, as_json: bool) -> None:
    """Starts an execution for workers to take, and prints its id."""
    if as_json:
        only_json()
    loaded, definition, request = _asked(deployment, workflow, text, key)
    on_store(database, lambda store: _enqueue(store, loaded.limits, definition, request, key, as_json, paused=paused))


async def _enqueue_migrated(
    deployment: Deployment, definition: Workflow[Any, Any, Any], request: Any, key: str | None, dsn: str, as_json: bool
) -> int:
    from flowdsl.postgres.schema import migrate
    from flowdsl.postgres.store import Store

    await migrate(dsn, deployment.migrations)
    async with await Store.open(dsn, size=2) as store:
        return await _enqueue(store, deployment.limits, definition, request, key, as_json)


async def _enqueue(
    store: Store, limits: Limits, definition: Workflow[Any, Any, Any], request: Any, key: str | None, as_json: bool, *, paused: bool = False
) -> int:
    from flowdsl.errors import Rejected
    from flowdsl.postgres.operating import Operator

    wish = _wish(limits, definition, request, key)
    done = await Operator(store).start_paused(wish) if paused else (await store.start([wish]))[0]
    if done.outcome == "rejected":
        raise Rejected(definition.name, wish.key or "", done.id)
    if done.outcome == "joined":
        await _compare(store, done.id, definition, request)
    if as_json:
        emit({"execution": done.id, "status": done.status, "outcome": done.outcome})
    else:
        if done.outcome == "joined":
            aside(f"joined: the key {wish.key!r} has this execution already, which is {done.status}")
        click.echo(done.id)
    return 0


def _wish(limits: Limits, definition: Workflow[Any, Any, Any], request: Any, key: str | None) -> NewStart:
    from flowdsl.journal import codecs_of
    from flowdsl.policy import within
    from flowdsl.postgres.store import NewStart
    from flowdsl.postgres.worker import new_id

    chosen = key if key is not None else definition.key_of(request) if definition.key is not None else None
    body = within(limits.request, f"the input of {definition.name}", codecs_of(definition).request.encode(request))
    return NewStart(new_id(), "default", definition.name, definition.version, "", chosen, definition.reuse, body)


# Workers


@click.command(short_help="Work on executions until told to stop.", epilog="Exit codes: 0 stopped when told; 2 wrong usage, or no database.")
@DEPLOYMENT
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="One that dies is started again.")
@_lease(10.0)
@click.option(
    "--grace", type=click.FloatRange(min=0), default=10.0, show_default=True, metavar="SECONDS", help="For running activities, at the stop."
)
@click.option("--metrics", metavar="[HOST:]PORT", help="Numbers for Prometheus there; each of N processes takes the next port that is free.")
@click.option("--embedded", is_flag=True, help="Allow the embedded Postgres, should no database be named.")
@DATABASE
@JSON
@LOGS
def worker(
    deployment: str, processes: int, lease: float, grace: float, metrics: str | None, embedded: bool, database: str | None, as_json: bool
) -> None:
    """Works on executions until it is told to stop.

    SIGTERM or Ctrl-C: it claims nothing more, lets running activities finish for the grace period, and lets go of the rest for others. The
    same signal again stops it at once. With --processes N a parent does that for all of them.
    """
    from flowdsl.postgres.choice import named
    from flowdsl.postgres.schema import migrate
    from flowdsl.postgres.worker import Tuning

    if as_json:
        only_json()
    if named(database) is None and not embedded:
        raise Refusal("no database is named: pass --database URL or set FLOWDSL_DATABASE_URL; or --embedded, for the one that flowdsl brings")
    loaded, watched = load(deployment), _address_of(metrics)
    begin_logs()

    async def prepared(dsn: str) -> int:
        await migrate(dsn, loaded.migrations)
        return 0

    with database_of(database) as choice:
        if processes == 1:
            code = awaited(_work(loaded, choice.dsn, Tuning(lease=lease, grace=grace), deployment, watched), fast=True)
            restarts = 0
        else:
            from flowdsl.cli.supervision import STOPPING, supervise

            awaited(prepared(choice.dsn))  # what is wrong is told once, before there are children
            command = [sys.executable, "-m", "flowdsl", *log_options(), "worker", deployment, "--lease", str(lease), "--grace", str(grace)]
            if watched is not None:
                command += ["--metrics", f"{watched[0]}:{watched[1]}"]
            # By the environment: a password on a command line can be read by every user of the machine.
            settings = {**os.environ, "FLOWDSL_DATABASE_URL": choice.dsn, _SUPERVISOR: str(os.getpid())}
            restarts, code = supervise(command, settings, processes, patience=grace + STOPPING), 0
    if as_json:
        emit({"status": "stopped", "processes": processes, "restarts": restarts})
    sys.exit(code)


PORTS = 100
"""Ports that are tried for numbers, one after the other."""


def _address_of(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise Refusal(f"--metrics {text}: write a port, such as 9464, or with an address, such as 0.0.0.0:9464")
    return host or "127.0.0.1", int(port)


def _watch(worker: Any, address: tuple[str, int]) -> None:
    """Serves its numbers on the first port that is free."""
    try:
        from flowdsl.metrics import Metrics
    except ImportError:
        raise Refusal('--metrics: prometheus-client is not installed: pip install "flowdsl[metrics]"') from None
    metrics, (host, first) = Metrics(), address
    for port in range(first, min(first + PORTS, 65536)) if first else [0]:
        try:
            found = metrics.serve(port, host)
        except OSError:
            continue
        metrics.watch(worker)
        aside(f"process {os.getpid()}: numbers at http://{host}:{found}/metrics")
        return
    raise Refusal(f"--metrics: no port of {host} from {first} on is free")


async def _work(deployment: Deployment, dsn: str, tuning: Tuning, name: str, watched: tuple[str, int] | None = None) -> int:
    import asyncio

    from flowdsl.cli.supervision import name_process
    from flowdsl.postgres.worker import opened

    supervisor = int(os.environ.get(_SUPERVISOR) or 0)
    stop = Stop(ignore_interrupt=bool(supervisor))
    if supervisor:
        name_process()
    async with opened(deployment, dsn, tuning) as one:
        if watched is not None:
            _watch(one, watched)
        aside(f"worker {one.id}, process {os.getpid()}: works on {name} ({', '.join(deployment.names)})")
        waits = [asyncio.create_task(event.wait()) for event in (stop.asked, one.spent)]
        while not (stop.code or one.spent.is_set()) and (not supervisor or os.getppid() == supervisor):
            await asyncio.wait(waits, timeout=1 if supervisor else None, return_when=asyncio.FIRST_COMPLETED)
        for waiting in waits:
            waiting.cancel()
        spent = one.spent.is_set() and not stop.code
        why = "too many of its threads never returned; " if spent else "" if stop.code else "its supervisor is gone; "
        aside(f"process {os.getpid()}: {why}stops")
    code = 75 if spent else 0  # EX_TEMPFAIL: a process that begins anew has its threads again
    if one.hands.left_behind:
        sys.stderr.flush()
        os._exit(code)  # what ignores its cancellation would be waited for, for ever
    return code
