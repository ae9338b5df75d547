"""What encryption costs a step: the same work with and without a key, in turns, as a ratio.

python -m tests.bench.encryption [--rounds N] [--steps N]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Never

from flowdsl import Deployment, Result, Steps, Success, activity, bind, workflow
from flowdsl.postgres.embedded import start
from flowdsl.postgres.encryption import PLAIN, Encryption, EncryptionKey
from flowdsl.postgres.schema import migrate
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Tuning, Worker

LETTER = "x" * 200


@activity("bench.echo")
def echo(text: str) -> Result[str, Never]: ...


async def echoed(text: str) -> Result[str, Never]:
    return Success(text)


@workflow("bench.steps")
def steps(count: int) -> Steps[int, Never]:
    for number in range(count):
        yield from echo(f"{number}{LETTER}")
    return count


async def seconds(dsn: str, encryption: Encryption, many: int, count: int) -> tuple[float, float]:
    """How long many executions take together, and how much of a processor this process needs for it."""
    async with await Store.open(dsn, encryption=encryption) as store, Worker(Deployment([steps], [bind(echo, echoed)]), store, Tuning()) as worker:
        began, used = time.perf_counter(), time.process_time()
        ids = await asyncio.gather(*(worker.start(steps, count) for _ in range(many)))
        await asyncio.gather(*(worker.wait(id) for id in ids))
        return time.perf_counter() - began, time.process_time() - used


async def measure(dsn: str, rounds: int, many: int, count: int) -> None:
    await migrate(dsn)
    key = Encryption([EncryptionKey("bench", os.urandom(32))])
    await seconds(dsn, key, many, 2)
    walls, works = list[float](), list[float]()
    for number in range(rounds):
        pair = {}
        for which in (PLAIN, key) if number % 2 else (key, PLAIN):
            pair[which] = await seconds(dsn, which, many, count)
        walls.append(pair[key][0] / pair[PLAIN][0])
        works.append(pair[key][1] / pair[PLAIN][1])
        each = (pair[key][1] - pair[PLAIN][1]) / (many * count) * 1e6
        print(f"round {number + 1}: {walls[-1]:.2f} times the time, {works[-1]:.2f} times the work of the client ({each:+.0f} µs a step)")
    print(f"median of {rounds}: {statistics.median(walls):.2f} times the time, {statistics.median(works):.2f} times the work of the client")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--executions", type=int, default=100)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flowdsl-bench-") as folder:
        Path(folder).chmod(0o755)
        with start(Path(folder)) as server:
            asyncio.run(measure(server.dsn, given.rounds, given.executions, given.steps))


if __name__ == "__main__":
    main()
