"""The stand-in as a process."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from typing import cast, get_args

from adapters.standins.fullenrich.app import create_app
from adapters.standins.fullenrich.faults import Faults, Level
from adapters.standins.fullenrich.ledger import Ledger
from adapters.standins.listening import listen, server, url


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fullenrich", description="A stand-in of FullEnrich's reverse look-up.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--key", default="key", help="the API key")
    parser.add_argument("--credits", type=float, default=10_000.0)
    parser.add_argument("--seed", type=int, default=7, help="decides the faults")
    parser.add_argument("--faults", choices=get_args(Level), default="none")
    parser.add_argument("--work", type=float, default=0.5, help="seconds until a batch is done")
    parser.add_argument("--answer", type=float, default=0.0, help="seconds between taking a submission and answering it")
    parser.add_argument("--again", type=float, default=60.0, help="seconds between two tries of a callback")
    parser.add_argument("--per-minute", type=int, default=60, help="requests")
    parser.add_argument("--forgets", action="store_true", help="charge an address each time, not once in three months")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = _arguments(arguments)
    app = create_app(
        Ledger(chosen.credits, forgets=chosen.forgets),
        faults=Faults.level(cast("Level", chosen.faults), chosen.seed),
        key=chosen.key,
        work=chosen.work,
        answer=chosen.answer,
        per_minute=chosen.per_minute,
        again=chosen.again,
    )
    listener = listen(chosen.port)
    print(f"listening on {url(listener)}", flush=True)
    with suppress(KeyboardInterrupt):
        server(app).run(sockets=[listener])
