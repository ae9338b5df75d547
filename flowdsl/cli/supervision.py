"""Keeps worker processes alive: one that dies is started again, at longer and longer intervals if it dies at once each time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from attrs import define

from flowdsl.cli.edge import aside

_STEADY = 5.0
"""Seconds after which a process has proved that it can live."""
STOPPING = 15.0
"""Seconds that the processes get to stop, beside their own grace period: for saying goodbye to a store that is slow."""


@define
class _Seat:
    process: subprocess.Popen[bytes]
    begun: float
    pause: float = 0.5
    due: float | None = None
    """When it is started again; None while the process lives."""


def supervise(command: Sequence[str], environment: Mapping[str, str], processes: int, *, patience: float) -> int:
    """Runs so many until SIGTERM or SIGINT, then stops them; a second signal kills them. Gives how often one was started again."""
    told = 0

    def tell(*_: object) -> None:
        nonlocal told
        told += 1

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, tell)

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment)

    seats = [_Seat(begin(), time.monotonic()) for _ in range(processes)]
    restarts = 0
    while not told:
        for seat in seats:
            now = time.monotonic()
            if seat.due is not None and now >= seat.due and not told:
                seat.process, seat.begun, seat.due = begin(), now, None
                restarts += 1
            elif seat.due is None and seat.process.poll() is not None:
                seat.pause = min(2 * seat.pause, 10.0) if now - seat.begun < _STEADY else 0.5
                seat.due = now + seat.pause
                aside(f"worker process {seat.process.pid} {_how(seat.process.returncode)}; another is started in {seat.pause:g} s")
        time.sleep(0.1)
    _stop([seat.process for seat in seats if seat.due is None], patience, lambda: told > 1)
    return restarts


def _stop(processes: Sequence[subprocess.Popen[bytes]], patience: float, at_once: Callable[[], bool]) -> None:
    for one in processes:
        one.terminate()
    until = time.monotonic() + patience
    while any(one.poll() is None for one in processes):
        if time.monotonic() > until or at_once():
            for one in processes:
                one.kill()
        time.sleep(0.05)


def name_process() -> None:
    """Each line that this process logs says which of several it is."""
    import structlog

    def named(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**event, "process": os.getpid()}

    structlog.configure(processors=[named, *structlog.get_config()["processors"]])


def _how(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
