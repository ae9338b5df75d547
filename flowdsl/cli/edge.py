"""What all commands share: how they refuse, what stdout is for, which database is meant, logs and signals."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from datetime import datetime
from io import TextIOBase, TextIOWrapper
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeVar, cast

import click

if TYPE_CHECKING:
    from flowdsl.postgres.choice import Choice
    from flowdsl.postgres.store import Store

F = TypeVar("F", bound=Callable[..., Any])

EXITS = "Exit codes: 0 succeeded, or going on; 1 failed, cancelled or blocked; 2 wrong usage or input, or no database; 130 Ctrl-C"
DATABASE = click.option(
    "--database",
    metavar="URL",
    help="PostgreSQL 15 or newer. Default: FLOWDSL_DATABASE_URL, [database] url in ./flowdsl.toml, PGHOST or PGSERVICE, else the embedded one.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document, and nothing else on stdout.")
DEPLOYMENT = click.argument("deployment", metavar="MODULE:DEPLOYMENT")


class Refusal(click.ClickException):
    """Something is wrong with what was asked or where: told in one line that says what to do."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.secho(f"flowdsl: {self.message}", fg="red", err=True)


class _Execution(click.ParamType[str]):
    """The id of an execution. A key is none: several workflows may have the same."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from uuid import UUID

        try:
            return str(UUID(value))
        except ValueError:
            pass
        raise Refusal(f"no execution named {value!r}: an id looks like 01a1ff70-0de7-ebd1-134f-7e884ffb811f. `flowdsl list` shows ids beside keys")


EXECUTION = _Execution()

_EXTRAS: dict[str, str] = {
    "service": "prometheus_client sse_starlette standardwebhooks starlette typed_settings uvicorn watchfiles",
    "testing": "hypothesis pytest",
}
"""Which libraries come with an extra."""


class Commands(click.Group):
    """The one place where expected errors of all commands become a line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        from flowdsl.errors import FlowError

        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to fail
        try:
            return super().invoke(ctx)
        except FlowError as error:
            raise Refusal(str(error)) from None
        except ModuleNotFoundError as error:
            library = str(error.name).partition(".")[0]
            extra = next((extra for extra, libraries in _EXTRAS.items() if library in libraries.split()), None)
            if extra is None:
                raise
            raise Refusal(f"{library} is not installed: pip install 'flowdsl[{extra}]'") from None
        except OSError as error:
            if not of_a_file(error):
                raise  # click ends quietly when nobody reads stdout any more
            raise Refusal(f"{error.filename} cannot be used ({error.strerror}): name another place, or mend that one") from None
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None


def of_a_file(error: BaseException) -> bool:
    """Whether it is about a file that somebody named: what a connection meets has no name."""
    return isinstance(error, OSError) and isinstance(error.filename, (str, bytes, os.PathLike))


# Stdout


_answer: IO[str] | None = None


def only_json() -> None:
    """From here on stdout is for the one document: what modules, activities and their processes print there goes to stderr."""
    global _answer
    sys.stdout.flush()
    _answer = os.fdopen(os.dup(1), "w", encoding="ascii")
    with suppress(OSError):
        os.dup2(2, 1)


def emit(facts: Any) -> None:
    """The one document."""
    import json

    text = json.dumps(facts, default=_plain)
    if _answer is None:
        click.echo(text)
    else:
        print(text, file=_answer, flush=True)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def aside(text: str) -> None:
    """A word to the person at the terminal that is not the answer."""
    click.secho(text, err=True, dim=True)


def shown(text: str) -> str:
    """Somebody else's text on one line, without what a terminal would obey or cannot print."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def show_exit(facts: dict[str, Any]) -> None:
    """What an execution ended with, for a person."""
    import json

    for name in ("result", "failure", "defect", "cancelled"):
        if name in facts:
            lines = json.dumps(facts[name], indent=2, ensure_ascii=False).split("\n")
            click.echo(f"{name}: " + "\n".join(map(shown, lines)))


# Logs


def _keep(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    wishes = ctx.find_root().ensure_object(dict)
    wishes[parameter.name] = wishes.get(parameter.name, False) or value
    return value


def LOGS(command: F) -> F:
    """The options for logs; they may stand before the command's name, or after it."""
    verbose = click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_keep, help="Log what workers do, to stderr.")
    as_json = click.option("--log-json", is_flag=True, expose_value=False, callback=_keep, help="Log as JSON lines, to stderr.")
    return verbose(as_json(command))


def log_options() -> list[str]:
    """The same wishes, for a process of ours."""
    wishes = click.get_current_context().find_root().ensure_object(dict)
    return [option for option, name in (("--verbose", "verbose"), ("--log-json", "log_json")) if wishes.get(name)]


class _Stderr(TextIOBase):
    """Whatever stderr is when a line is written: a live display takes its place for a while."""

    def write(self, text: str, /) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def begin_logs() -> None:
    """structlog to stderr: from WARNING on, or from INFO on; for people, or as JSON lines."""
    import logging

    import structlog

    from flowdsl.secret import concealing

    wishes = log_options()
    plain = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ, exception_formatter=structlog.dev.plain_traceback
    )
    last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()] if "--log-json" in wishes else [plain]
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper("iso"), concealing, *last, concealing],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if "--verbose" in wishes else logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Stderr())),
    )
    root = logging.getLogger()
    root.handlers = [*(one for one in root.handlers if one.name != "flowdsl"), _of_libraries()]


def _of_libraries() -> Any:
    """What libraries log, as lines of ours: the first of their words, without the values put into them, and errors without what they quote."""
    import logging

    import structlog

    from flowdsl.postgres.connection import trace

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            more = {} if error is None else {"traceback": trace(error)}
            words = (str(record.msg).splitlines() or [""])[0][:200]
            structlog.get_logger("flowdsl").log(record.levelno, "library.told", library=record.name, words=words, **more)

    told = Told(logging.WARNING)
    told.name = "flowdsl"
    return told


# The event loop, and the database


def awaited(work: Coroutine[Any, Any, int], *, fast: bool = False) -> int:
    """Its exit code; with `fast` on uvloop, where that is installed, and with fewer looks for garbage."""
    import asyncio

    from flowdsl.collector import calm

    start: Callable[[Coroutine[Any, Any, int]], int] = asyncio.run
    if fast:
        calm()
        with suppress(ImportError):
            from uvloop import run as start
    return start(work)


_AWAY = ("28000", "28P01", "3D000", "42501")
"""Postgres's codes for: we are not let in, the database is gone, a right is missing."""


@contextmanager
def database_of(said: str | None) -> Generator[Choice]:
    """The database that is meant. What is wrong with it is told in one line that names the setting to correct."""
    from flowdsl.errors import EmbeddedPostgresError, StoreError
    from flowdsl.postgres.choice import choose
    from flowdsl.postgres.store import lost, refused

    with choose(said) as choice:
        try:
            try:
                yield choice
            except Exception as error:
                if of_a_file(error) or (isinstance(error, BrokenPipeError) and _nobody_reads()):
                    raise
                if lost(error) or getattr(error, "sqlstate", None) in _AWAY:
                    raise refused(choice.dsn, error) from error
                raise
        except EmbeddedPostgresError:
            raise
        except StoreError as error:
            raise StoreError(error.problem, error.remedy.replace("FLOWDSL_DATABASE_URL", choice.setting)) from error


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader is gone, as behind `| head`."""
    import select

    with suppress(OSError):
        look = select.poll()
        look.register(1 if _answer is None else _answer.fileno(), 0)
        return any(found & (select.POLLERR | select.POLLHUP) for _, found in look.poll(0))
    return False


def on_store(said: str | None, work: Callable[[Store], Coroutine[Any, Any, int]]) -> None:
    """Opens the store that is meant for one command, and leaves with its exit code. Raises `StoreError` where our tables are missing."""
    from flowdsl.errors import NotFound, StoreError
    from flowdsl.postgres.schema import migrate, pending_migrations
    from flowdsl.postgres.store import Store

    async def opened(choice: Choice) -> int:
        if choice.embedded:
            await migrate(choice.dsn)
        async with await Store.open(choice.dsn, size=4) as store:
            async with store.connection() as connection:
                missing = await pending_migrations(connection)
            if missing:
                what = "has no flowdsl tables" if missing[0].startswith("flowdsl/0001") else f"lacks {', '.join(missing)}"
                raise StoreError(f"the database of {choice.source} {what}", f"Run `flowdsl migrate{' --database …' if said else ''}`")
            try:
                return await work(store)
            except NotFound as error:
                what = {"schedule": "schedules", "key": "keys list"}.get(error.kind, "list")
                raise Refusal(f"{error} `flowdsl {what}` shows what is in this database: {choice.source}") from None

    with database_of(said) as choice:
        code = awaited(opened(choice))
    sys.exit(code)


class Stop:
    """SIGINT or SIGTERM, once it came: then `code` is this process's exit code. The second one ends the process at once."""

    def __init__(self, *, ignore_interrupt: bool = False) -> None:
        import asyncio
        import signal

        self.code = 0
        self.asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self._told, name)
        if ignore_interrupt:  # Ctrl-C reaches every process of a terminal; ours is told by its supervisor
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _told(self, name: int) -> None:
        if self.code:
            os._exit(128 + name)
        self.code = 128 + name
        self.asked.set()
