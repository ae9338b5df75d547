"""The service of the system under chaos: the HTTP API, and a worker, on a socket that outlives it. Stops gracefully at SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from contextlib import AsyncExitStack, suppress
from random import Random

from flowdsl.postgres.worker import Tuning
from flowdsl.service import create_app
from flowdsl.service.server import server_of
from flowdsl.testing.chaos.worker import begin_logs, begun, die_with_our_maker, tuned


async def serve(dsn: str, bound: socket.socket, tuning: Tuning) -> None:
    """Who asks before there is a worker waits."""
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    async with AsyncExitStack() as stack:
        worker = await begun(stack, dsn, tuning)
        app = create_app(worker.deployment, store=worker.store, worker=worker)
        server = server_of(app)
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        await asked.wait()
        app.state.service.stopping.set()
        server.should_exit = True
        await serving


def main() -> None:
    begin_logs()
    threading.Thread(target=die_with_our_maker, daemon=True).start()
    run = asyncio.run
    with suppress(ImportError):
        from uvloop import run
    bound = socket.socket(fileno=int(sys.argv[3]))
    run(serve(os.environ["FLOWDSL_DATABASE_URL"], bound, tuned(float(sys.argv[1]), Random(sys.argv[2]))))


if __name__ == "__main__":
    main()
