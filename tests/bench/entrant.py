"""One engine in a process of its own: `python -m tests.bench.entrant NAME DSN`. It is asked on standard input, a line a measurement, and answers so.

`{"do": "seq", "size": 32, "seconds": 1.0}` gives the figures of `measured.Figures`, or `{"error": …}`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from typing import Any

KINDS = {
    "ours": ("tests.bench.ours", "Ours"),
    "single": ("tests.bench.bare", "Single"),
    "bare": ("tests.bench.bare", "Rows"),
    "ends": ("tests.bench.bare", "Ends"),
    "dbos": ("tests.bench.peer_dbos", "Dbos"),
    "absurd": ("tests.bench.peer_absurd", "Absurd"),
    "absurd8": ("tests.bench.peer_absurd", "AbsurdTimes8"),
    "temporal": ("tests.bench.peer_temporal", "Temporal"),
    "restate": ("tests.bench.peer_restate", "Restate"),
}


class Laps:
    """Seconds since the process was begun, by what they went into."""

    def __init__(self) -> None:
        self._at = time.perf_counter()
        begun = os.environ.get("FLOWDSL_BENCH_BEGUN")  # by the clock that all processes of a machine share
        self.seconds = {"python_s": self._at - float(begun)} if begun else {}

    def end(self, what: str) -> None:
        now = time.perf_counter()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self._at
        self._at = now


def said(**facts: object) -> None:
    print(json.dumps({"bench": 1, **facts}), flush=True)


def quiet(name: str) -> None:
    """As `flowdsl worker` is: no log below a warning, and fewer looks for garbage."""
    if name != "ours":
        return
    import structlog

    from flowdsl.collector import calm

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR), logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    calm()


async def serve(name: str, dsn: str) -> None:
    module, kind = KINDS[name]
    laps = Laps()
    found = import_module(module)
    laps.end("imports_s")
    entrant: Any = getattr(found, kind)(dsn)
    ready = await entrant.begin()
    laps.end("schema_s")
    quiet(name)
    laps.end("imports_s")
    said(ready=ready, laps=laps.seconds)
    while line := await asyncio.to_thread(sys.stdin.readline):
        wish = json.loads(line)
        try:
            figures = await getattr(entrant, wish["do"])(wish["size"], wish["seconds"])
        except (Exception, SystemExit) as error:
            said(error=f"{type(error).__name__}: {error}")
        else:
            said(**figures.plain())
    if end := getattr(entrant, "end", None):
        await end()
    sys.stdout.flush()
    os._exit(0)  # some peers keep threads that nobody can end


def main() -> None:
    name, dsn = sys.argv[1:3]
    if find_spec("uvloop") and os.environ.get("FLOWDSL_BENCH_LOOP") != "asyncio" and name != "temporal":
        import uvloop

        uvloop.run(serve(name, dsn))
    else:
        asyncio.run(serve(name, dsn))


if __name__ == "__main__":
    main()
