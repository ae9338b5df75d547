"""Stand-ins on a real port: in a thread for tests, or as a process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

_HOST = "127.0.0.1"


def listen(port: int) -> socket.socket:
    """A socket of this machine; port 0 takes a free one."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((_HOST, port))
    listener.listen(512)
    return listener


def url(listener: socket.socket) -> str:
    """Its address."""
    return f"http://{_HOST}:{listener.getsockname()[1]}"


def server(app: Starlette) -> uvicorn.Server:
    """What answers on such a socket."""
    # A dropped connection is an error to uvicorn, and here it is made on purpose: nothing is logged below critical.
    return uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off", timeout_graceful_shutdown=1))


@contextmanager
def serve(app: Starlette, port: int = 0) -> Generator[str]:
    """Serve an app from a thread, on a free port unless one is named; yields its URL."""
    listener = listen(port)
    running = server(app)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, name="standin", daemon=True)
    thread.start()
    try:
        yield url(listener)
    finally:
        running.should_exit = True
        thread.join()
        listener.close()
