"""Delays before and after statements, at random, in the process that imports this and, by its name, in every Python that finds it first on its path.

What a test takes to have happened, or not to have happened yet, without waiting for it shows itself. `FLOWDSL_TEST_DELAYS=SEED[:SHARE[:SECONDS]]`.
"""

from __future__ import annotations

import functools
import importlib.machinery
import os
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

VARIABLE = "FLOWDSL_TEST_DELAYS"
_SHARE, _SECONDS = 0.1, 0.2
_SLOWED = {
    "asyncpg.connection": ("Connection", ("execute", "executemany", "fetch", "fetchmany", "fetchrow", "fetchval")),
    "asyncpg.prepared_stmt": ("PreparedStatement", ("executemany", "fetch", "fetchmany", "fetchrow", "fetchval")),
}


def spec(text: str) -> tuple[str, float, float]:
    """Seed, share of statements and the longest delay; raises ValueError."""
    seed, *rest = text.split(":")
    share, seconds = [float(one) for one in rest] + [_SHARE, _SECONDS][len(rest) :]
    if not (seed and 0 <= share <= 1 and 0 <= seconds <= 60):
        raise ValueError(text)
    return seed, share, seconds


def slow(text: str) -> None:
    """From now on, and as soon as asyncpg is imported. Each process draws for itself."""
    seed, share, seconds = spec(text)
    drawn = random.Random(f"{seed} {os.getpid()}")

    async def wait() -> None:
        import asyncio  # here: a process that only starts is not to have loaded it

        if drawn.random() < share:
            await asyncio.sleep(drawn.random() * seconds)

    def slowed(real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(real)
        async def statement(*arguments: Any, **named: Any) -> Any:
            await wait()
            try:
                return await real(*arguments, **named)
            finally:
                await wait()

        statement.__module__ = __name__  # how it is known
        return statement

    def patch(module: Any) -> None:
        kind, names = _SLOWED[module.__name__]
        for name in names:
            if (real := getattr(getattr(module, kind), name, None)) is not None:
                setattr(getattr(module, kind), name, slowed(real))

    for name in _SLOWED:
        if name in sys.modules:
            patch(sys.modules[name])
    sys.meta_path.insert(0, _Later(patch))


class _Later:
    """Patches those modules when they are imported."""

    def __init__(self, patch: Callable[[Any], None]) -> None:
        self._patch = patch

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        found = importlib.machinery.PathFinder.find_spec(name, path) if name in _SLOWED else None
        if found is None or found.loader is None:
            return None
        run = found.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            self._patch(module)

        found.loader.exec_module = exec_module  # type: ignore[method-assign]
        return found


if __name__ == "sitecustomize" and VARIABLE in os.environ:
    slow(os.environ[VARIABLE])
