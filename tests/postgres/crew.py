"""What worker processes of the tests run. Each call of an activity is a line in a file that outlives them: FLOWDSL_TEST_CALLS."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Never

from flowdsl import Deployment, Result, Steps, Success, activity, bind, this_attempt, workflow


@activity("crew.call", timeout="60s")
def call(name: str) -> Result[str, Never]: ...


@workflow("crew.two")
def two(name: str) -> Steps[str, Never]:
    first = yield from call(name)
    return first + (yield from call(f"{name}, then"))


@workflow("crew.one")
def one(name: str) -> Steps[str, Never]:
    return (yield from call(name))


def note(file: Path, line: str) -> None:
    with file.open("a") as told:
        told.write(f"{line}\n")


async def called(name: str) -> Result[str, Never]:
    """`slow …` waits for a file of its name; `deadly …` takes its worker with it."""
    told = Path(os.environ["FLOWDSL_TEST_CALLS"])
    note(told, f"{os.getpid()} {this_attempt().number} {name}")
    if name.startswith("deadly"):
        os.kill(os.getpid(), signal.SIGKILL)
    while name.startswith("slow") and not name.endswith("then") and not (told.parent / name).exists():
        await asyncio.sleep(0.02)
    return Success(name)


deployment = Deployment([one, two], [bind(call, called)])
