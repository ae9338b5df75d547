"""Access by key: `Authorization: Bearer flow_…`. What a key opens is remembered for seconds, so that a revoked one is soon known everywhere."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict

from attrs import define, field
from starlette.requests import HTTPConnection

from flowdsl.errors import StoreError
from flowdsl.postgres.connection import lost
from flowdsl.postgres.keys import Key, note_use, recognized
from flowdsl.postgres.store import Store
from flowdsl.service.access import Caller, Unauthenticated, agreed_tenant
from flowdsl.service.problem import Problem, busy

REMEMBERED = 3.0
"""Seconds for which an answer is believed: a revocation is known everywhere by then."""
MOST = 10_000
"""Answers that are remembered."""
WRONG = 20
"""Wrong keys from one address after which it waits."""
REST = 60.0
"""Seconds in which those are counted."""


@define
class _Guesses:
    since: float
    count: int = 0


@define(eq=False)
class KeyAccess:
    """Finds the caller by an API key. One that is wrong, expired, revoked or missing is refused alike; who tries many waits (429)."""

    store: Store
    _known: OrderedDict[bytes, tuple[float, Key]] = field(factory=OrderedDict[bytes, tuple[float, Key]], init=False)
    _guesses: OrderedDict[str, _Guesses] = field(factory=OrderedDict[str, _Guesses], init=False)

    async def authenticate(self, request: HTTPConnection) -> Caller:
        plain, address = _bearer(request), request.client.host if request.client else ""
        if plain is None:
            raise Unauthenticated()
        now, digest = asyncio.get_running_loop().time(), hashlib.sha256(plain.encode()).digest()
        key: Key | None
        until, key = self._known.get(digest, (0.0, None))
        if key is None or now >= until:  # who is known need not wait for who guesses from the same address
            self._may_try(address, now)
            key = await self._asked(plain)
            self._remember(digest, now + REMEMBERED, key)
        if key is None:
            self._guessed(address, now)
            raise Unauthenticated()
        return Caller(agreed_tenant(request, key.tenant), frozenset((key.role,)), f"key {key.id} ({key.name})")

    async def _asked(self, plain: str) -> Key | None:
        try:
            key = await recognized(self.store, plain)
            if key is not None:
                await note_use(self.store, [key.id])
        except Exception as error:
            if lost(error) or isinstance(error, StoreError):
                raise busy("the store cannot be asked who you are: try again") from error
            raise
        return key

    def _remember(self, digest: bytes, until: float, key: Key | None) -> None:
        if key is not None:
            self._known[digest] = (until, key)
            self._known.move_to_end(digest)
        while len(self._known) > MOST:
            self._known.popitem(last=False)

    def _may_try(self, address: str, now: float) -> None:
        guesses = self._guesses.get(address)
        if guesses is not None and guesses.count >= WRONG and now < guesses.since + REST:
            after = max(1, round(guesses.since + REST - now))
            raise Problem(429, "too many wrong keys", f"Wait {after} s, then send a valid key", headers={"Retry-After": str(after)})

    def _guessed(self, address: str, now: float) -> None:
        guesses = self._guesses.get(address)
        if guesses is None or now >= guesses.since + REST:
            guesses = self._guesses[address] = _Guesses(now)
        guesses.count += 1
        self._guesses.move_to_end(address)
        while len(self._guesses) > MOST:
            self._guesses.popitem(last=False)


def _bearer(request: HTTPConnection) -> str | None:
    scheme, _, plain = request.headers.get("authorization", "").partition(" ")
    return plain.strip() if scheme.lower() == "bearer" and plain.strip() else None


__all__ = ["REMEMBERED", "KeyAccess"]
