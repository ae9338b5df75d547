"""The server under the app: uvicorn, with a bound on what a connection may cost before there is a request."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from flowdsl.service.problem import MEDIA_TYPE, Problem
from flowdsl.service.settings import Server as ServerSettings

if TYPE_CHECKING:
    from starlette.applications import Starlette

HEAD_BYTES: Final = 65536
"""What the headers of a request may have together."""
SENDING: Final = 30.0
"""Seconds after which a connection whose other side takes nothing of an answer is cut."""
LAST: Final = 0.5
"""Seconds in which a connection that has asked nothing yet may still do so when the server stops."""


def server_of(app: Starlette, settings: ServerSettings | None = None, *, host: str = "127.0.0.1", port: int = 0) -> uvicorn.Server:
    """A server for an app of `create_app`. Signals are left to who runs it: set `app.state.service.stopping`, then `should_exit`."""
    chosen: ServerSettings = settings or app.state.service.settings
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, server_header=False, lifespan="on", loop="none", ws="none",
        http=_bounded(chosen, app.state.service.stopping), h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=max(1, round(chosen.drain_seconds)), timeout_keep_alive=max(1, round(chosen.head_seconds)),
    )  # fmt: skip
    return _Server(config)


class _Server(uvicorn.Server):
    """Signals are ours: open streams must be told before the server waits for them."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _bounded(settings: ServerSettings, stopping: asyncio.Event) -> type[H11Protocol]:
    """A connection that has so long to send the headers of each request, and of which there are only so many at a time."""

    class Bounded(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _stuck: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > settings.connections:
                transport.write(_TOO_MANY)
                transport.close()
                return
            self._wait_for_head()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._stop_waiting()
            elif self._head is None and (before is None or before.response_complete) and not self.transport.is_closing():
                self._wait_for_head()  # a first part of another request, on a connection that was idle
            if stopping.is_set() and self.cycle is not None:
                self.cycle.keep_alive = False

        def shutdown(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.loop.call_later(LAST, self._end)  # it came at the last moment: what it asks may be on its way
            else:
                super().shutdown()

        def _end(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                super().shutdown()

        def on_response_complete(self) -> None:
            self._stop_waiting()
            super().on_response_complete()
            if self._head is None and self.conn.their_state is h11.SEND_BODY:  # it was answered before its body was read, which may have no end
                self._head = self.loop.call_later(settings.body_seconds, self.transport.close)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stuck = self._stuck or self.loop.call_later(SENDING, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._read_on()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            self._read_on()
            super().connection_lost(exc)

        def _wait_for_head(self) -> None:
            self._head = self.loop.call_later(settings.head_seconds, self._too_slow)

        def _stop_waiting(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _read_on(self) -> None:
            if self._stuck is not None:
                self._stuck.cancel()
                self._stuck = None

        def _too_slow(self) -> None:
            if not self.transport.is_closing():
                if self.conn.trailing_data[0]:  # who has sent nothing need not be told
                    self.transport.write(_TOO_SLOW)
                self.transport.close()

    return Bounded


def _refusal(status: int, title: str, detail: str) -> bytes:
    answer = Problem(status, title, detail).response()
    head = f"HTTP/1.1 {status} {title}\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + bytes(answer.body)


_TOO_SLOW: Final = _refusal(408, "too slow", "The headers of the request did not arrive in time: send it again")
_TOO_MANY: Final = _refusal(503, "too many connections", "There are as many connections here as there may be: close some, or come again")


__all__ = ["HEAD_BYTES", "server_of"]
