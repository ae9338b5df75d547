"""One worker process of the system under chaos. Stops gracefully at SIGTERM, and dies with whoever started it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from contextlib import AsyncExitStack, suppress
from random import Random

import structlog

from flowdsl.errors import FlowError
from flowdsl.postgres.store import lost
from flowdsl.postgres.worker import Tuning, Worker, opened
from flowdsl.testing.chaos.system import deployment_here

GRACE = 3.0


def tuned(lease: float, chance: Random) -> Tuning:
    """Knobs turned low at random: what is kept in memory, what is claimed at a time, how soon is let go of what waits."""
    return Tuning(
        lease=lease,
        poll=chance.choice((0.1, 0.25, 0.5)),
        linger=chance.choice((0.02, 0.25, 1.0)),
        capacity=chance.choice((12, 200, 2000)),
        claim=chance.choice((2, 16, 128)),
        transactions=chance.choice((2, 16)),
        look=2.0,
        grace=GRACE,
    )


async def begun(stack: AsyncExitStack, dsn: str, tuning: Tuning) -> Worker:
    """A worker until the stack is closed. While Postgres is away it is begun again and again, as whoever runs workers does."""
    while True:
        try:
            return await stack.enter_async_context(opened(deployment_here(), dsn, tuning))
        except Exception as error:
            if not (lost(error) or isinstance(error, FlowError)):
                raise
        await asyncio.sleep(0.2)


async def work(dsn: str, tuning: Tuning) -> None:
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    async with AsyncExitStack() as stack:
        beginning = asyncio.create_task(begun(stack, dsn, tuning))
        stopped = asyncio.create_task(asked.wait())
        await asyncio.wait([beginning, stopped], return_when=asyncio.FIRST_COMPLETED)
        if beginning.done():
            beginning.result()
            await stopped
        else:
            beginning.cancel()
            await asyncio.gather(beginning, return_exceptions=True)


def die_with_our_maker() -> None:
    sys.stdin.read()
    os._exit(3)


def begin_logs() -> None:
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper("iso"), structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def main() -> None:
    begin_logs()
    threading.Thread(target=die_with_our_maker, daemon=True).start()
    run = asyncio.run
    with suppress(ImportError):
        from uvloop import run
    run(work(os.environ["FLOWDSL_DATABASE_URL"], tuned(float(sys.argv[1]), Random(sys.argv[2]))))


if __name__ == "__main__":
    main()
