"""A service that is begun anew whenever a source file changes.

One process watches; the service is a child of it. Code that cannot be loaded is never tried on the service that runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path

import click
from attrs import define, field, frozen

from flowdsl.cli.edge import Refusal, Stop, aside
from flowdsl.cli.loading import load
from flowdsl.cli.serving import LISTEN_FD

PARENT = "FLOWDSL_DEVELOPED_BY"
"""Tells the service who began it."""
_LOADING = 60.0
"""Seconds that new code gets to be imported."""
_STOPPING = 30.0
"""Seconds that a service gets to stop, its activities' grace included."""
_LISTENS = "listening on "


@frozen
class Wish:
    """What is to be served, and how."""

    deployment: str
    logs: tuple[str, ...]
    options: tuple[str, ...]
    environment: Mapping[str, str]
    folders: tuple[Path, ...]
    opens: bool
    listening: socket.socket
    """Open as long as we are: who connects between two services waits for the next."""


async def developed(wish: Wish) -> int:
    """Serves until it is told to stop. Gives its exit code."""
    stop = Stop()
    watch = _Watch()
    watching = asyncio.create_task(watch.run(wish.folders))
    service: _Service | None = None
    try:
        while not stop.code:
            said = watch.taken()
            if await _sound(wish):
                if said and service is not None:
                    aside(f"{_listed(said)} changed: the service begins anew")
                service = await _replaced(service, wish)
                if not service.listened and not said and service.process.returncode is not None:
                    return service.process.returncode  # what was wrong is told, and there is no edit that it waits for
            else:
                lives = service is not None and service.process.returncode is None
                aside("the service goes on with the code from before" if lives else "the service begins when that is mended")
            await _until_news(stop, watch, service, watching)
    finally:
        watching.cancel()
        if service is not None:
            await service.stop()
    return 0


async def _until_news(stop: Stop, watch: _Watch, service: _Service | None, watching: asyncio.Task[None]) -> None:
    """Returns when there is something to do: a file changed, the service ended by itself, or we were told to stop."""
    waits: list[asyncio.Task[object]] = [asyncio.create_task(stop.asked.wait()), asyncio.create_task(watch.changed.wait())]
    if service is not None and service.listened:
        waits.append(asyncio.create_task(service.process.wait()))
    done, _ = await asyncio.wait([*waits, watching], return_when=asyncio.FIRST_COMPLETED)
    for one in waits:
        one.cancel()
    if watching in done:
        watching.result()  # it never ends by itself: this raises
    if service is not None and service.process.returncode is not None and not stop.code and not watch.changed.is_set():
        aside(f"the service ended by itself, with exit code {service.process.returncode}; it begins anew")
        await asyncio.sleep(1)


# The service


@define(eq=False)
class _Service:
    process: asyncio.subprocess.Process
    listened: bool = False
    tail: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        """Ends it kindly; what does not end in time is killed, and its executions are taken over when its lease is out."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), _STOPPING)
            except TimeoutError:
                aside(f"the service did not stop within {_STOPPING:.0f} s: killed")
                self.process.kill()
                await self.process.wait()
        if self.tail is not None:
            await self.tail


async def _replaced(before: _Service | None, wish: Wish) -> _Service:
    """Stops the service that is there and begins another one, on the same socket. Gives it when it listens or has ended."""
    if before is not None:
        await before.stop()
    listening = wish.listening.fileno()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flowdsl", *wish.logs, "dev", wish.deployment, *wish.options,
        env={**os.environ, **wish.environment, PARENT: str(os.getpid()), LISTEN_FD: str(listening)},
        stdout=asyncio.subprocess.PIPE, pass_fds=(listening,),
        start_new_session=True,  # Ctrl-C reaches us alone: we tell it once, and kindly
    )  # fmt: skip
    service, lines = _Service(process), _lines(process)
    async for line in lines:
        click.echo(line)
        if line.startswith(_LISTENS):
            service.listened = True
            if wish.opens and before is None:
                await asyncio.to_thread(_open, line.removeprefix(_LISTENS))
            service.tail = asyncio.create_task(_passed_on(lines))
            return service
    await process.wait()
    return service


async def _lines(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    assert process.stdout is not None
    async for line in process.stdout:
        yield line.decode(errors="replace").rstrip("\n")


async def _passed_on(lines: AsyncIterator[str]) -> None:
    async for line in lines:
        click.echo(line)


def _open(address: str) -> None:
    """Shows the workbench in a browser, or what there is instead."""
    import webbrowser
    from urllib.error import URLError
    from urllib.request import urlopen

    page = f"{address.removesuffix('/api/v1')}/workbench"
    try:
        urlopen(page, timeout=10).close()
    except URLError:
        page = f"{address}/openapi.json"
    if not webbrowser.open(page):
        aside(f"no browser could be opened: see {page}")


def end_with(parent: int) -> None:
    """From now on this process stops, kindly, when the one that began it is gone."""
    import threading
    import time

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="flowdsl-dev", daemon=True).start()


# The code


async def _sound(wish: Wish) -> bool:
    """Whether the code can be loaded, tried in a process of its own; what is wrong is told there."""
    trial = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys; from flowdsl.cli.reloading import trial; trial(sys.argv[1])", wish.deployment,
        stdout=sys.stderr, start_new_session=True,
    )  # fmt: skip
    try:
        return await asyncio.wait_for(trial.wait(), _LOADING) == 0
    except TimeoutError:
        aside(f"{wish.deployment} was not imported within {_LOADING:.0f} s")
        return False
    finally:
        if trial.returncode is None:
            trial.kill()
            await trial.wait()


def trial(deployment: str) -> None:
    """Loads it, in a process for nothing else; ends that with 2 if it cannot be loaded."""
    try:
        load(deployment)
    except Refusal as refusal:
        refusal.show()
        sys.exit(2)


@define(eq=False)
class _Watch:
    """Which source files changed since somebody asked."""

    changed: asyncio.Event = field(factory=asyncio.Event)
    _files: set[str] = field(init=False, factory=set[str])

    def __attrs_post_init__(self) -> None:
        self.changed = asyncio.Event()

    def taken(self) -> set[str]:
        files, self._files = self._files, set()
        self.changed.clear()
        for file in files:
            _forget_compiled(file)
        return files

    async def run(self, folders: tuple[Path, ...]) -> None:
        from watchfiles import PythonFilter, awatch

        sources = PythonFilter(extra_extensions=(".toml", ".sql"))
        try:
            async for found in awatch(*folders, watch_filter=sources, debounce=400, step=100):
                self._files |= {path for _, path in found}
                self.changed.set()
        except OSError as error:
            raise Refusal(f"files cannot be watched here ({error}): set WATCHFILES_FORCE_POLLING=true") from None


def _forget_compiled(file: str) -> None:
    """Python takes what it compiled for current when the source has the same size, and was written in the same second: so may the next edit be."""
    from importlib.util import cache_from_source

    if file.endswith(".py"):
        with suppress(OSError, NotImplementedError):  # it was never compiled; or nothing is kept
            os.unlink(cache_from_source(file))


def _listed(files: set[str]) -> str:
    """Some names, as somebody would say them."""
    names = sorted(os.path.relpath(file) for file in files)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
